import { existsSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { Btf, type Variable } from './btf.js';
import type { Codec } from './codec.js';
import { BpfError, UsageError, VerifierError } from './errors.js';
import { addressOf, native, type Ptr, viewOf } from './ffi.js';
import { OPEN_OPTS, Struct } from './layout.js';
import { BpfMap, type InnerTemplate, isOfMaps, kindOf, type MapKind, MapOfMaps, TypedMap } from './map.js';
import { anonymous, Mapping, pageUp } from './mapping.js';
import { Program } from './program.js';
import { RingBuffer } from './ring.js';
import { permissionHint } from './sys.js';

/** What an object holds, for the type checker: OpenObject.shape() writes it. At run time codecs come from BTF. */
export interface Shape {
	maps: Record<string, MapShape>;
	programs: string;
	vars: Record<string, unknown>;
}
export type MapShape = { kind: MapKind; key: unknown; value: unknown; innerKey?: unknown; innerValue?: unknown };
export type MapOf<M extends MapShape> = M['kind'] extends 'ringbuf'
	? RingBuffer<M['value']>
	: M['kind'] extends 'percpu_hash' | 'percpu_array' | 'lru_percpu_hash'
		? TypedMap<M['key'], M['value'][]>
		: M['kind'] extends 'array_of_maps' | 'hash_of_maps'
			? MapOfMaps<M['key'], M['innerKey'], M['innerValue']>
			: TypedMap<M['key'], M['value']>;

export interface OpenOptions {
	/** Name of the object; libbpf puts its first 8 letters before '.rodata' and its kin. */
	readonly name?: string;
	/** Another kernel's BTF, for CO-RE. */
	readonly btf?: string;
	/** Default on-failure: the kernel is asked for a log only after it refused. */
	readonly verifierLog?: 'on-failure' | 'always' | 'off';
	/** Bytes for each program's log; default 16 MiB, of which only what is written is ever touched. */
	readonly logSize?: number;
}

interface MapEntry {
	readonly ptr: Ptr;
	readonly name: string;
	readonly kind: MapKind;
	readonly internal: boolean;
	readonly key?: Codec<unknown>;
	readonly value?: Codec<unknown>;
	readonly keyType: number;
	readonly valueType: number;
	readonly inner?: InnerTemplate & { keyType: number; valueType: number };
	autocreate: boolean;
}
interface ProgEntry {
	readonly ptr: Ptr;
	readonly name: string;
	enabled: boolean;
}

const LOG_SIZE = 16 << 20;

/** Opens an object file (path or bytes). Nothing reaches the kernel before load(). */
export function open<S extends Shape = Shape>(elf: string | Uint8Array, o: OpenOptions = {}): OpenObject<S> {
	const n = native();
	const name =
		o.name ??
		(typeof elf === 'string'
			? basename(elf)
					.replace(/\.o$/, '')
					.replace(/\.bpf$/, '')
			: 'object');
	let bytes: Uint8Array;
	try {
		bytes = typeof elf === 'string' ? readFileSync(elf) : elf;
	} catch (e) {
		throw new BpfError(`open BPF object ${elf}`, 2, 'no such file can be read', e);
	}
	const cstr = (s: string) => Buffer.from(`${s}\0`);
	const nameBytes = copy(cstr(name));
	const btfBytes = o.btf ? copy(cstr(o.btf)) : undefined;
	const opts = new Struct(OPEN_OPTS, { object_name: addressOf(nameBytes) });
	if (btfBytes) opts.set('btf_custom_path', addressOf(btfBytes));
	const ptr = n.openMem(bytes, bytes.length, opts.bytes);
	if (!ptr)
		throw new BpfError(
			`open BPF object ${name}`,
			n.errno(),
			'is it an ELF object for BPF, compiled with clang -O2 -g -target bpf?',
		);
	try {
		return new OpenObject<S>(ptr, name, o);
	} catch (e) {
		n.close(ptr);
		throw e;
	}
}
const copy = (b: Uint8Array): Uint8Array => {
	const c = new Uint8Array(new ArrayBuffer(b.length));
	c.set(b);
	return c;
};

/** Opened, not yet loaded: configure, then load() once. */
export class OpenObject<S extends Shape = Shape> implements Disposable {
	readonly btf: Btf;
	private ptr: Ptr | undefined;
	private readonly mapEntries = new Map<string, MapEntry>();
	private readonly progEntries = new Map<string, ProgEntry>();
	private readonly variables: Map<string, Variable>;

	/** @internal Use open(). */
	constructor(
		ptr: Ptr,
		readonly name: string,
		private readonly options: OpenOptions,
	) {
		this.ptr = ptr;
		const n = native();
		const btfPtr = n.objectBtf(ptr);
		if (!btfPtr) throw new UsageError(`BPF object ${name} has no BTF: compile it with clang -g`);
		this.btf = Btf.fromLibbpf(btfPtr);
		for (let m = n.nextMap(ptr, null); m; m = n.nextMap(ptr, m)) {
			const e = this.describe(m);
			this.mapEntries.set(e.name, e);
		}
		for (let p = n.nextProgram(ptr, null); p; p = n.nextProgram(ptr, p)) {
			const name = n.progName(p);
			this.progEntries.set(name, { ptr: p, name, enabled: n.progAutoload(p) });
		}
		this.variables = new Map(
			this.btf
				.variables()
				.filter((v) => this.sectionMap(v.section) !== undefined)
				.map((v) => [v.name, v]),
		);
	}

	private describe(m: Ptr): MapEntry {
		const n = native();
		const name = n.mapName(m);
		const innerPtr = n.mapInner(m);
		const codec = (id: number) => (id ? this.btf.codec(id) : undefined);
		const kind = kindOf(n.mapType(m));
		const keyType = n.mapKeyType(m);
		const valueType = n.mapValueType(m);
		const internal = /\.(rodata|data|bss|kconfig)/.test(name);
		return {
			ptr: m,
			name,
			kind,
			internal,
			keyType,
			valueType,
			key: internal ? undefined : codec(keyType),
			value: internal || isOfMaps(kind) ? undefined : codec(valueType),
			autocreate: true,
			inner: innerPtr
				? {
						type: n.mapType(innerPtr),
						keySize: n.mapKeySize(innerPtr),
						valueSize: n.mapValueSize(innerPtr),
						maxEntries: n.mapMaxEntries(innerPtr),
						flags: n.mapFlags(innerPtr),
						keyType: n.mapKeyType(innerPtr),
						valueType: n.mapValueType(innerPtr),
						key: codec(n.mapKeyType(innerPtr)),
						value: codec(n.mapValueType(innerPtr)),
					}
				: undefined,
		};
	}
	private sectionMap(section: string): MapEntry | undefined {
		for (const e of this.mapEntries.values()) if (e.internal && e.name.endsWith(section)) return e;
		return undefined;
	}
	private get object(): Ptr {
		if (!this.ptr) throw new UsageError(`BPF object ${this.name} is loaded or closed already`);
		return this.ptr;
	}
	private needMap(name: string): MapEntry {
		this.object;
		const e = this.mapEntries.get(name);
		if (!e) throw new UsageError(`BPF object ${this.name} has no map ${name} (it has ${this.mapNames().join(', ')})`);
		return e;
	}
	private check(op: string, r: number): void {
		if (r < 0) throw new BpfError(op, -r, permissionHint(-r));
	}

	mapNames(): string[] {
		return [...this.mapEntries.values()].filter((e) => !e.internal).map((e) => e.name);
	}
	programNames(): string[] {
		return [...this.progEntries.keys()];
	}
	variableNames(): string[] {
		return [...this.variables.keys()];
	}

	/** Initial value of a global variable: `const volatile` ones are constants to the verifier. */
	setConst<K extends keyof S['vars'] & string>(name: K, value: S['vars'][K]): this {
		this.object;
		const v = this.variables.get(name);
		if (!v)
			throw new UsageError(
				`BPF object ${this.name} has no variable ${name} (it has ${[...this.variables.keys()].join(', ') || 'none'})`,
			);
		const size = new BigUint64Array(new ArrayBuffer(8));
		const at = native().mapInitialValue(this.sectionMap(v.section)!.ptr, new Uint8Array(size.buffer));
		if (!at) throw new UsageError(`variable ${name} in ${v.section} cannot be set`);
		const length = Number(size[0]);
		const bytes = new Uint8Array(viewOf(at, length));
		this.btf.codec(v.type).encode(value, bytes, v.offset);
		return this;
	}
	setMaxEntries(map: keyof S['maps'] & string, n: number): this {
		this.check(`set ${map} to ${n} entries`, native().mapSetMaxEntries(this.needMap(map).ptr, n));
		return this;
	}
	/** Uses a map that exists instead of creating one. */
	reuseMap(map: keyof S['maps'] & string, m: BpfMap | number): this {
		const fd = typeof m === 'number' ? m : m.fd;
		this.check(`reuse a map as ${map}`, native().mapReuseFd(this.needMap(map).ptr, fd));
		return this;
	}
	/** load() takes the map pinned there if it is alike, and otherwise creates one and pins it. */
	setPinPath(map: keyof S['maps'] & string, path: string): this {
		this.check(`pin ${map} at ${path}`, native().mapSetPinPath(this.needMap(map).ptr, path));
		return this;
	}
	/** A map that no enabled program uses need not be created. */
	setAutocreate(map: keyof S['maps'] & string, on: boolean): this {
		const e = this.needMap(map);
		this.check(`set autocreate of ${map}`, native().mapSetAutocreate(e.ptr, on));
		e.autocreate = on;
		return this;
	}
	disableProgram(name: S['programs']): this {
		this.object;
		const p = this.progEntries.get(name);
		if (!p)
			throw new UsageError(`BPF object ${this.name} has no program ${name} (it has ${this.programNames().join(', ')})`);
		this.check(`disable program ${name}`, native().progSetAutoload(p.ptr, false));
		p.enabled = false;
		return this;
	}

	/** Off the event loop. On failure the object is closed. */
	async load(): Promise<BpfObject<S>> {
		const { ptr, logs } = this.begin();
		return this.finish(ptr, logs, await native().loadAsync(ptr));
	}
	loadSync(): BpfObject<S> {
		const { ptr, logs } = this.begin();
		return this.finish(ptr, logs, native().load(ptr));
	}

	private begin(): { ptr: Ptr; logs: Logs } {
		const ptr = this.object;
		const n = native();
		const mode = this.options.verifierLog ?? 'on-failure';
		const size = this.options.logSize ?? LOG_SIZE;
		const logs: Logs = new Map();
		if (mode !== 'off')
			for (const p of this.progEntries.values()) {
				if (!p.enabled) continue;
				const memory = anonymous(size);
				logs.set(p.name, { at: memory.at, size, free: memory.free });
				this.check(`set log of ${p.name}`, n.progSetLog(p.ptr, memory.at, size));
				if (mode === 'always') this.check(`set log level of ${p.name}`, n.progSetLogLevel(p.ptr, 1));
			}
		this.ptr = undefined;
		return { ptr, logs };
	}

	private finish(ptr: Ptr, logs: Logs, r: number): BpfObject<S> {
		const n = native();
		const text = new Map<string, string>();
		for (const [name, l] of logs) {
			const log = cString(l.at, l.size);
			if (log) text.set(name, log);
			l.free();
		}
		try {
			if (r < 0) throw this.loadError(-r, text);
			for (const p of this.progEntries.values()) n.progSetLog(p.ptr, null, 0);
			return new BpfObject<S>(
				ptr,
				this.name,
				this.btf,
				[...this.mapEntries.values()],
				[...this.progEntries.values()],
				this.variables,
				text,
			);
		} catch (e) {
			n.close(ptr);
			throw e;
		}
	}

	private loadError(errno: number, logs: ReadonlyMap<string, string>): Error {
		const last = [...logs].at(-1);
		if (last) return new VerifierError(last[0], errno, last[1]);
		const op = `load BPF object ${this.name}`;
		const n = native();
		for (const e of this.mapEntries.values()) {
			const path = n.mapPinPath(e.ptr);
			if (!path || !existsSync(path)) continue;
			const diff = differences(path, {
				kind: e.kind,
				keySize: n.mapKeySize(e.ptr),
				valueSize: n.mapValueSize(e.ptr),
				maxEntries: n.mapMaxEntries(e.ptr),
			});
			if (diff) return new BpfError(op, errno, `the map pinned at ${path} is not like ${e.name}: ${diff}`);
		}
		return new BpfError(
			op,
			errno,
			permissionHint(errno) ||
				(errno === 22 || errno === 7 || errno === 12
					? 'no program was refused, so creating a map was: check sizes, max_entries and flags'
					: ''),
		);
	}

	/** TypeScript source of this object's Shape. */
	shape(name = 'Shape'): string {
		const q = (s: string) => (/^[A-Za-z_$][\w$]*$/.test(s) ? s : JSON.stringify(s));
		const ts = (id: number, size: number) =>
			id ? this.btf.tsOf(id) : size === 4 ? 'number' : size === 8 ? 'bigint' : size ? 'Uint8Array' : 'never';
		const n = native();
		const lines = [`export interface ${name} {`, '\tmaps: {'];
		for (const e of this.mapEntries.values()) {
			if (e.internal) continue;
			const key = ts(e.keyType, n.mapKeySize(e.ptr));
			const value =
				e.kind === 'ringbuf' ? 'Uint8Array' : isOfMaps(e.kind) ? 'number' : ts(e.valueType, n.mapValueSize(e.ptr));
			const inner = e.inner
				? `; innerKey: ${ts(e.inner.keyType, e.inner.keySize)}; innerValue: ${ts(e.inner.valueType, e.inner.valueSize)}`
				: '';
			lines.push(`\t\t${q(e.name)}: { kind: '${e.kind}'; key: ${key}; value: ${value}${inner} };`);
		}
		const programs = this.programNames().map((p) => `'${p}'`);
		lines.push('\t};', `\tprograms: ${programs.join(' | ') || 'never'};`, '\tvars: {');
		for (const v of this.variables.values()) lines.push(`\t\t${q(v.name)}: ${this.btf.tsOf(v.type)};`);
		lines.push('\t};', '}', '');
		return lines.join('\n');
	}

	[Symbol.dispose](): void {
		if (this.ptr) native().close(this.ptr);
		this.ptr = undefined;
	}
}

type Logs = Map<string, { at: bigint; size: number; free(): void }>;

function cString(at: bigint, size: number): string {
	const b = Buffer.from(viewOf(at, size));
	const end = b.indexOf(0);
	return b.toString('utf8', 0, end < 0 ? size : end);
}

/** What of a pinned map differs from what is wanted. */
function differences(path: string, want: Pick<BpfMap, 'kind' | 'keySize' | 'valueSize' | 'maxEntries'>): string {
	const fd = native().get(path);
	if (fd < 0) return '';
	using have = new BpfMap(fd, '', true);
	const fields = ['kind', 'keySize', 'valueSize', 'maxEntries'] as const;
	return fields
		.filter((f) => have[f] !== want[f])
		.map((f) => `${f} is ${have[f]} there, ${want[f]} here`)
		.join(', ');
}

/** A global variable of a loaded object. Constants can only be read. */
export interface GlobalVar<T> {
	get(): T;
	set(v: T): void;
}

type MapsOf<S extends Shape> = { readonly [K in keyof S['maps']]: MapOf<S['maps'][K]> };
type VarsOf<S extends Shape> = { readonly [K in keyof S['vars']]: GlobalVar<S['vars'][K]> };

/** Loaded. dispose() closes maps and programs, and what nothing else holds (pins, links) goes. */
export class BpfObject<S extends Shape = Shape> implements Disposable {
	readonly maps: MapsOf<S>;
	readonly programs: { readonly [K in S['programs']]: Program };
	readonly vars: VarsOf<S>;
	private ptr: Ptr | undefined;
	private readonly all = new Map<string, BpfMap>();
	private readonly progs = new Map<string, Program>();
	private readonly sections = new Map<string, Mapping>();

	/** @internal */
	constructor(
		ptr: Ptr,
		readonly name: string,
		readonly btf: Btf,
		entries: readonly MapEntry[],
		programs: readonly ProgEntry[],
		variables: ReadonlyMap<string, Variable>,
		/** Verifier logs by program: with verifierLog 'always'. */
		readonly logs: ReadonlyMap<string, string>,
	) {
		const n = native();
		this.ptr = ptr;
		for (const e of entries) {
			const fd = n.mapFd(e.ptr);
			if (fd < 0) continue;
			this.all.set(e.name, wrapMap(fd, e));
		}
		for (const p of programs) {
			const fd = n.progFd(p.ptr);
			if (p.enabled && fd >= 0)
				this.progs.set(p.name, new Program(fd, p.name, false, n.progAttachType(p.ptr), n.progSection(p.ptr)));
		}
		const visible = entries.filter((e) => !e.internal && this.all.has(e.name));
		this.maps = named('map', name, new Map(visible.map((e) => [e.name, this.all.get(e.name)!]))) as MapsOf<S>;
		this.programs = named('program', name, this.progs) as { readonly [K in S['programs']]: Program };
		const vars = [...variables.values()].map((v) => [v.name, this.variable(v)] as const);
		this.vars = named('variable', name, new Map(vars)) as VarsOf<S>;
	}

	private variable(v: Variable): GlobalVar<unknown> {
		const codec = this.btf.codec(v.type);
		const map = () => {
			for (const [name, m] of this.all) if (name.endsWith(v.section)) return m;
			throw new UsageError(`${this.name}: section ${v.section} was not loaded`);
		};
		const constant = v.section.startsWith('.rodata') || v.section === '.kconfig';
		return {
			get: () => {
				if (!constant) return codec.decode(this.section(v.section, map()).bytes, v.offset);
				const bytes = new Uint8Array(map().valueSize);
				native().lookup(map().fd, new Uint8Array(4), bytes);
				return codec.decode(bytes, v.offset);
			},
			set: (x) => {
				if (constant) throw new UsageError(`variable ${v.name} is constant: use setConst before load`);
				codec.encode(x, this.section(v.section, map()).bytes, v.offset);
			},
		};
	}
	private section(section: string, map: BpfMap): Mapping {
		let m = this.sections.get(section);
		if (!m) {
			m = Mapping.of(`mmap ${map.name}`, map.fd, pageUp(map.valueSize));
			this.sections.set(section, m);
		}
		return m;
	}

	/** By name, typed by the caller. Per-CPU maps: V is an array. */
	map<K, V>(name: string): TypedMap<K, V> {
		return this.need(name, TypedMap) as TypedMap<K, V>;
	}
	mapOfMaps<K = number, IK = unknown, IV = unknown>(name: string): MapOfMaps<K, IK, IV> {
		return this.need(name, MapOfMaps) as unknown as MapOfMaps<K, IK, IV>;
	}
	/** With `type`, a struct's name in BTF, the async iterator gives decoded events. */
	ringBuffer<E = Uint8Array>(name: string, type?: string): RingBuffer<E> {
		const r = this.need(name, RingBuffer);
		return type ? r.decodeWith(this.btf.codec<E>(type)) : (r as unknown as RingBuffer<E>);
	}
	program(name: string): Program {
		return (this.programs as Record<string, Program>)[name];
	}
	private need<T extends BpfMap>(name: string, kind: abstract new (...args: never[]) => T): T {
		const m = (this.maps as Record<string, BpfMap>)[name];
		if (!(m instanceof kind)) throw new UsageError(`map ${name} is ${m.kind}, which is no ${kind.name}`);
		return m;
	}

	[Symbol.dispose](): void {
		if (!this.ptr) return;
		for (const m of this.sections.values()) m.unmap();
		for (const m of this.all.values()) m.forget();
		for (const p of this.progs.values()) p.forget();
		native().close(this.ptr);
		this.ptr = undefined;
	}
}

function wrapMap(fd: number, e: MapEntry): BpfMap {
	if (e.kind === 'ringbuf') return new RingBuffer(fd, e.name, false);
	if (isOfMaps(e.kind)) return new MapOfMaps(fd, e.name, false, e.key as Codec<number> | undefined, e.inner);
	if (e.internal || e.kind === 'other') return new BpfMap(fd, e.name, false);
	return new TypedMap(fd, e.name, false, e.key, e.value);
}

/** Names that are not there give a sentence, not undefined. */
function named<T>(what: string, object: string, items: ReadonlyMap<string, T>): Record<string, T> {
	return new Proxy(Object.fromEntries(items) as Record<string, T>, {
		get(target, key) {
			if (typeof key !== 'string' || key in target || key === 'then' || key === 'toJSON') return target[key as string];
			throw new UsageError(
				`BPF object ${object} has no ${what} ${key} (it has ${Object.keys(target).join(', ') || 'none'})`,
			);
		},
	});
}
