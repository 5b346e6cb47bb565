import { Btf } from './btf.js';
import { type Codec, plainCodec } from './codec.js';
import { BpfError, NotSupportedError, UsageError } from './errors.js';
import { type Mem, native } from './ffi.js';
import { BATCH_OPTS, MAP_CREATE_OPTS, Struct } from './layout.js';
import { Mapping, pageUp } from './mapping.js';
import { Owned } from './owned.js';
import { CMD, check, closeFd, fdById, mapInfo, permissionHint, possibleCpus } from './sys.js';

export const MAP_TYPE = {
	hash: 1,
	array: 2,
	prog_array: 3,
	perf_event_array: 4,
	percpu_hash: 5,
	percpu_array: 6,
	lru_hash: 9,
	lru_percpu_hash: 10,
	lpm_trie: 11,
	array_of_maps: 12,
	hash_of_maps: 13,
	devmap: 14,
	sockmap: 15,
	cpumap: 16,
	xskmap: 17,
	sockhash: 18,
	queue: 22,
	stack: 23,
	sk_storage: 24,
	devmap_hash: 25,
	ringbuf: 27,
} as const;
export type MapKind = keyof typeof MAP_TYPE | 'other';
const KIND_OF = new Map<number, MapKind>(Object.entries(MAP_TYPE).map(([k, v]) => [v, k as MapKind]));
export const kindOf = (type: number): MapKind => KIND_OF.get(type) ?? 'other';
const PER_CPU: ReadonlySet<MapKind> = new Set(['percpu_hash', 'percpu_array', 'lru_percpu_hash']);
const OF_MAPS: ReadonlySet<MapKind> = new Set(['array_of_maps', 'hash_of_maps']);

/** Map flags, as for BPF_MAP_CREATE. */
export const MAP_FLAG = {
	NO_PREALLOC: 1,
	NO_COMMON_LRU: 2,
	RDONLY_PROG: 1 << 7,
	WRONLY_PROG: 1 << 8,
	MMAPABLE: 1 << 10,
	/** Inner arrays may differ from their template in max_entries. */
	INNER_MAP: 1 << 12,
} as const;

const MODE = { any: 0, create: 1, exist: 2 } as const;
export type UpdateMode = keyof typeof MODE;

const ENOENT = 2;
/** What a kernel without the batch operation answers. */
const noBatch = (errno: number): boolean => errno === 524 || errno === 95 || errno === 22;

export interface MapInfo {
	readonly id: number;
	readonly name: string;
	readonly kind: MapKind;
	readonly type: number;
	readonly keySize: number;
	readonly valueSize: number;
	readonly maxEntries: number;
	readonly flags: number;
	readonly btfId: number;
}

function readInfo(fd: number): MapInfo & { keyType: number; valueType: number } {
	const s = mapInfo(fd);
	return {
		id: s.num('id'),
		name: s.text('name'),
		kind: kindOf(s.num('type')),
		type: s.num('type'),
		keySize: s.num('key_size'),
		valueSize: s.num('value_size'),
		maxEntries: s.num('max_entries'),
		flags: s.num('map_flags'),
		btfId: s.num('btf_id'),
		keyType: s.num('btf_key_type_id'),
		valueType: s.num('btf_value_type_id'),
	};
}

/** What every map has. */
export class BpfMap extends Owned {
	readonly kind: MapKind;
	readonly keySize: number;
	readonly valueSize: number;
	readonly maxEntries: number;
	readonly flags: number;

	constructor(fd: number, name: string, owned: boolean) {
		const i = readInfo(fd);
		super('map', fd, name || i.name, owned);
		this.kind = i.kind;
		this.keySize = i.keySize;
		this.valueSize = i.valueSize;
		this.maxEntries = i.maxEntries;
		this.flags = i.flags;
	}

	get id(): number {
		return this.info().id;
	}
	info(): MapInfo {
		return readInfo(this.fd);
	}
	/** Bytes a lookup writes: for per-CPU maps round_up(value, 8) × possible CPUs. */
	get lookupSize(): number {
		return PER_CPU.has(this.kind) ? cpuStride(this.valueSize) * possibleCpus() : this.valueSize;
	}
}

const cpuStride = (valueSize: number): number => Math.ceil(valueSize / 8) * 8;

/** Bytes in, bytes out: no codecs, no allocation per call. All sizes are asserted, for the kernel writes blindly. */
export class RawMap {
	private readonly opts = new Struct(BATCH_OPTS);
	private readonly count = new Uint32Array(new ArrayBuffer(4));
	private readonly countBytes = new Uint8Array(this.count.buffer);
	private readonly n = native();
	/** Bytes of one value in lookups: per-CPU maps give all CPUs at once. */
	readonly lookupSize: number;
	readonly keySize: number;

	constructor(private readonly map: BpfMap) {
		this.lookupSize = map.lookupSize;
		this.keySize = map.keySize;
	}

	private need(what: string, b: Uint8Array, bytes: number): void {
		if (b.length < bytes)
			throw new UsageError(`map ${this.map.name}: ${what} buffer has ${b.length} bytes, ${bytes} are needed`);
	}
	private fail(what: string, r: number): never {
		throw mapError(this.map, what, -r);
	}

	/** False when the key is absent. */
	lookup(key: Uint8Array, out: Uint8Array): boolean {
		if (key.length < this.keySize) this.need('key', key, this.keySize);
		if (out.length < this.lookupSize) this.need('value', out, this.lookupSize);
		const r = this.n.lookup(this.map.fd, key, out);
		if (r === 0) return true;
		return r === -ENOENT ? false : this.fail('lookup', r);
	}
	update(key: Uint8Array, value: Uint8Array, flags = 0): void {
		if (key.length < this.keySize) this.need('key', key, this.keySize);
		if (value.length < this.lookupSize) this.need('value', value, this.lookupSize);
		const r = this.n.update(this.map.fd, key, value, flags);
		if (r < 0) this.fail('update', r);
	}
	/** False when the key was absent. */
	delete(key: Uint8Array): boolean {
		if (key.length < this.keySize) this.need('key', key, this.keySize);
		const r = this.n.remove(this.map.fd, key);
		if (r === 0) return true;
		return r === -ENOENT ? false : this.fail('delete', r);
	}
	lookupAndDelete(key: Uint8Array, out: Uint8Array): boolean {
		this.need('key', key, this.keySize);
		this.need('value', out, this.lookupSize);
		const r = this.n.lookupAndDelete(this.map.fd, key, out);
		if (r === 0) return true;
		return r === -ENOENT ? false : this.fail('lookup and delete', r);
	}
	/** The key after `key`, the first for null; false at the end. */
	nextKey(key: Uint8Array | null, next: Uint8Array): boolean {
		if (key) this.need('key', key, this.keySize);
		this.need('key', next, this.keySize);
		const r = this.n.nextKey(this.map.fd, key, next);
		if (r === 0) return true;
		return r === -ENOENT ? false : this.fail('next key', r);
	}

	/** `n` entries in one call; returns how many. On failure the error says at which one. */
	updateBatch(keys: Uint8Array, values: Uint8Array, n: number, mode: UpdateMode = 'any'): number {
		this.need('keys', keys, n * this.keySize);
		this.need('values', values, n * this.lookupSize);
		if (n === 0) return 0;
		this.count[0] = n;
		this.opts.set('elem_flags', MODE[mode]);
		const r = this.n.updateBatch(this.map.fd, keys, values, this.countBytes, this.opts.bytes);
		if (r < 0) this.batchFailed('update', r, n);
		return this.count[0];
	}
	/** Stops at the first absent key: returns how many were deleted before it. */
	deleteBatch(keys: Uint8Array, n: number): number {
		this.need('keys', keys, n * this.keySize);
		if (n === 0) return 0;
		this.count[0] = n;
		this.opts.set('elem_flags', 0);
		const r = this.n.deleteBatch(this.map.fd, keys, this.countBytes, this.opts.bytes);
		if (r < 0 && r !== -ENOENT) this.batchFailed('delete', r, n);
		return this.count[0];
	}
	/**
	 * Up to `out.n` entries after `cursor` (null: from the start); pass `out.cursor` to the next call. Cursors have
	 * max(4, keySize) bytes. ENOSPC (a hash bucket fuller than `out.n`) throws: offer more room.
	 */
	lookupBatch(
		cursor: Uint8Array | null,
		out: { cursor: Uint8Array; keys: Uint8Array; vals: Uint8Array; n: number },
	): { n: number; done: boolean } {
		this.need('cursor', out.cursor, Math.max(4, this.keySize));
		if (cursor) this.need('cursor', cursor, Math.max(4, this.keySize));
		this.need('keys', out.keys, out.n * this.keySize);
		this.need('values', out.vals, out.n * this.lookupSize);
		this.count[0] = out.n;
		this.opts.set('elem_flags', 0);
		const r = this.n.lookupBatch(this.map.fd, cursor, out.cursor, out.keys, out.vals, this.countBytes, this.opts.bytes);
		if (r < 0 && r !== -ENOENT) this.batchFailed('lookup', r, out.n);
		return { n: this.count[0], done: r === -ENOENT };
	}
	private batchFailed(what: string, r: number, n: number): never {
		if (r === -524 || r === -95)
			throw new NotSupportedError(
				`${what} a batch in map ${this.map.name}`,
				'batch',
				`${this.map.kind} has no batches here`,
				-r,
			);
		throw mapError(this.map, `${what} batch (entry ${this.count[0]} of ${n})`, -r);
	}

	/** Reads one 64-bit counter of every entry of a per-CPU array, summed over the CPUs, into `sums`. */
	sumPerCpu(sums: BigUint64Array): void {
		const m = this.map;
		if (m.kind !== 'percpu_array' || m.valueSize % 8)
			throw new UsageError(`map ${m.name}: sums want a percpu_array of 64-bit counters`);
		const words = m.valueSize / 8;
		if (sums.length < m.maxEntries * words)
			throw new UsageError(`map ${m.name}: ${m.maxEntries * words} sums need more room than ${sums.length}`);
		const cpus = possibleCpus();
		this.scratch ??= {
			key: new Uint32Array(new ArrayBuffer(4)),
			value: new BigUint64Array(new ArrayBuffer(this.lookupSize)),
		};
		const { key, value } = this.scratch;
		const k = new Uint8Array(key.buffer);
		const v = new Uint8Array(value.buffer);
		for (let i = 0; i < m.maxEntries; i++) {
			key[0] = i;
			this.lookup(k, v);
			for (let w = 0; w < words; w++) {
				let s = 0n;
				for (let c = 0; c < cpus; c++) s += value[c * words + w];
				sums[i * words + w] = s;
			}
		}
	}
	private scratch: { key: Uint32Array; value: BigUint64Array } | undefined;

	/**
	 * The map's memory (arrays with BPF_F_MMAPABLE only). Element `i` starts at i × round_up(valueSize, 8); offset and
	 * length in bytes, offset a multiple of the page size.
	 */
	mmap(o: { offset?: number; length?: number; readonly?: boolean } = {}): Mapping {
		const m = this.map;
		const all = cpuStride(m.valueSize) * m.maxEntries;
		const offset = o.offset ?? 0;
		const length = o.length ?? all - offset;
		if (offset < 0 || length <= 0 || offset + length > pageUp(all))
			throw new UsageError(`map ${m.name}: ${length} bytes at ${offset} are not within its ${all}`);
		return Mapping.of(`mmap map ${m.name}`, m.fd, length, offset, o.readonly);
	}
}

function mapError(map: BpfMap, what: string, errno: number): BpfError {
	const hint =
		errno === 7
			? `the map is full: ${map.maxEntries} entries`
			: errno === 28
				? 'no room left in the map, or the batch is smaller than a hash bucket'
				: errno === 17
					? 'the key exists already'
					: errno === ENOENT
						? 'the key does not exist'
						: permissionHint(errno);
	return new BpfError(`${what} in map ${map.name}`, errno, hint);
}

/** Keys and values by codec. Per-CPU maps take and give V[] with one value per possible CPU. */
export class TypedMap<K = unknown, V = unknown> extends BpfMap {
	readonly key: Codec<K>;
	readonly value: Codec<V>;
	private readonly k: Uint8Array;
	private readonly v: Uint8Array;
	private rawMap: RawMap | undefined;

	constructor(fd: number, name: string, owned: boolean, key?: Codec<K>, value?: Codec<unknown>) {
		super(fd, name, owned);
		this.key = key ?? (plainCodec(this.keySize) as Codec<K>);
		const one = value ?? plainCodec(this.valueSize);
		if (this.key.size !== this.keySize || one.size !== this.valueSize)
			throw new UsageError(
				`map ${this.name} has keys of ${this.keySize} and values of ${this.valueSize} bytes, the codecs ${this.key.size} and ${one.size}`,
			);
		this.value = (PER_CPU.has(this.kind) ? perCpu(one, this.name) : one) as Codec<V>;
		this.k = new Uint8Array(new ArrayBuffer(Math.max(4, this.keySize)));
		this.v = new Uint8Array(new ArrayBuffer(Math.max(8, this.lookupSize)));
	}

	/** The fast path over bytes. */
	get raw(): RawMap {
		this.rawMap ??= new RawMap(this);
		return this.rawMap;
	}

	get(key: K): V | undefined {
		this.key.encode(key, this.k);
		return this.raw.lookup(this.k, this.v) ? this.value.decode(this.v) : undefined;
	}
	has(key: K): boolean {
		this.key.encode(key, this.k);
		return this.raw.lookup(this.k, this.v);
	}
	/** `create` fails with EEXIST, `exist` with ENOENT. */
	set(key: K, value: V, mode: UpdateMode = 'any'): void {
		this.key.encode(key, this.k);
		this.value.encode(value, this.v);
		this.raw.update(this.k, this.v, MODE[mode]);
	}
	/** False when the key was absent. */
	delete(key: K): boolean {
		this.key.encode(key, this.k);
		return this.raw.delete(this.k);
	}
	getAndDelete(key: K): V | undefined {
		this.key.encode(key, this.k);
		return this.raw.lookupAndDelete(this.k, this.v) ? this.value.decode(this.v) : undefined;
	}

	/** All entries, `chunk` at a time. Entries changed meanwhile may or may not show; none shows twice on hash maps. */
	*entries(chunk = 1024): IterableIterator<[K, V]> {
		let n = Math.min(chunk, Math.max(1, this.maxEntries));
		const size = this.lookupSize;
		const cursors = [0, 1].map(() => new Uint8Array(new ArrayBuffer(Math.max(4, this.keySize))));
		let from: Uint8Array | null = null;
		let keys = new Uint8Array(n * this.keySize);
		let vals = new Uint8Array(n * size);
		for (let turn = 0; ; ) {
			let got: { n: number; done: boolean };
			try {
				got = this.raw.lookupBatch(from, { cursor: cursors[turn], keys, vals, n });
			} catch (e) {
				if (!(e instanceof BpfError)) throw e;
				if (e.errno === 28 && n < this.maxEntries * 2) {
					n *= 2;
					keys = new Uint8Array(n * this.keySize);
					vals = new Uint8Array(n * size);
					continue;
				}
				if (from === null && noBatch(e.errno)) {
					yield* this.entriesOneByOne();
					return;
				}
				throw e;
			}
			for (let i = 0; i < got.n; i++)
				yield [this.key.decode(keys, i * this.keySize), this.value.decode(vals, i * size)];
			if (got.done) return;
			from = cursors[turn];
			turn ^= 1;
		}
	}
	private *entriesOneByOne(): IterableIterator<[K, V]> {
		for (const key of this.keys()) {
			const v = this.get(key);
			if (v !== undefined) yield [key, v];
		}
	}
	/** By GET_NEXT_KEY. A key deleted meanwhile makes the kernel start over; keys already given are left out. */
	*keys(): IterableIterator<K> {
		const seen = new Set<string>();
		let prev: Uint8Array | null = null;
		let next = new Uint8Array(new ArrayBuffer(Math.max(4, this.keySize)));
		let repeats = 0;
		while (this.raw.nextKey(prev, next)) {
			const id = Buffer.from(next.buffer, 0, this.keySize).toString('latin1');
			if (!seen.has(id)) {
				seen.add(id);
				yield this.key.decode(next);
			} else if (++repeats > 4 * this.maxEntries) return;
			const spare: Uint8Array<ArrayBuffer> = (prev ??
				new Uint8Array(new ArrayBuffer(next.length))) as Uint8Array<ArrayBuffer>;
			prev = next;
			next = spare;
		}
	}
	[Symbol.iterator](): IterableIterator<[K, V]> {
		return this.entries();
	}

	/** In batches of up to 64k entries; one at a time where the kernel has no batches for this kind. Returns how many. */
	setMany(entries: Iterable<readonly [K, V]>, mode: UpdateMode = 'any'): number {
		const all = Array.isArray(entries) ? (entries as (readonly [K, V])[]) : [...entries];
		const size = this.lookupSize;
		for (let start = 0; start < all.length; start += BATCH) {
			const n = Math.min(BATCH, all.length - start);
			const keys = new Uint8Array(n * this.keySize);
			const vals = new Uint8Array(n * size);
			for (let i = 0; i < n; i++) {
				this.key.encode(all[start + i][0], keys, i * this.keySize);
				this.value.encode(all[start + i][1], vals, i * size);
			}
			try {
				this.raw.updateBatch(keys, vals, n, mode);
			} catch (e) {
				if (start !== 0 || !(e instanceof NotSupportedError)) throw e;
				for (const [k, v] of all) this.set(k, v, mode);
				return all.length;
			}
		}
		return all.length;
	}
	/** Absent keys are passed over. Returns how many were deleted. */
	deleteMany(keys: Iterable<K>): number {
		const all = [...keys];
		const buf = new Uint8Array(all.length * this.keySize);
		all.forEach((k, i) => void this.key.encode(k, buf, i * this.keySize));
		let deleted = 0;
		for (let i = 0; i < all.length; ) {
			let n: number;
			try {
				n = this.raw.deleteBatch(buf.subarray(i * this.keySize), all.length - i);
			} catch (e) {
				if (!(e instanceof NotSupportedError)) throw e;
				for (; i < all.length; i++) if (this.delete(all[i])) deleted++;
				return deleted;
			}
			deleted += n;
			i += n;
			if (i < all.length) i++;
		}
		return deleted;
	}
	/** Deletes every entry. */
	clear(): number {
		return this.deleteMany([...this.keys()]);
	}
}

const BATCH = 65536;

function perCpu<T>(one: Codec<T>, name: string): Codec<T[]> {
	const stride = cpuStride(one.size);
	const cpus = possibleCpus();
	return {
		size: stride * cpus,
		encode(values, into, off = 0) {
			if (!Array.isArray(values) || values.length !== cpus)
				throw new UsageError(`map ${name}: an array with one value for each of ${cpus} possible CPUs is wanted`);
			into.fill(0, off, off + stride * cpus);
			values.forEach((v, i) => void one.encode(v, into, off + i * stride));
		},
		decode(from, off = 0) {
			const r = new Array<T>(cpus);
			for (let i = 0; i < cpus; i++) r[i] = one.decode(from, off + i * stride);
			return r;
		},
	};
}

/** How the inner maps of a map-in-map look. */
export interface InnerTemplate {
	readonly type: number;
	readonly keySize: number;
	readonly valueSize: number;
	readonly maxEntries: number;
	readonly flags: number;
	readonly key?: Codec<unknown>;
	readonly value?: Codec<unknown>;
}

/** array_of_maps and hash_of_maps. */
export class MapOfMaps<K = number, IK = unknown, IV = unknown> extends BpfMap {
	readonly key: Codec<K>;
	private readonly k: Uint8Array;
	private readonly v = new Uint32Array(new ArrayBuffer(4));
	private readonly raw: RawMap;

	constructor(
		fd: number,
		name: string,
		owned: boolean,
		key?: Codec<K>,
		readonly inner?: InnerTemplate,
	) {
		super(fd, name, owned);
		this.key = key ?? (plainCodec(this.keySize) as Codec<K>);
		this.k = new Uint8Array(new ArrayBuffer(Math.max(4, this.keySize)));
		this.raw = new RawMap(this);
	}

	/** A new inner map like the template, flags included; other sizes need a hash, or an array with BPF_F_INNER_MAP. */
	createInner(maxEntries?: number, name = `${this.name.slice(0, 12)}_in`): TypedMap<IK, IV> {
		const t = this.inner;
		if (!t)
			throw new UsageError(`map ${this.name}: what its inner maps look like is unknown (pass { inner } to fromPin)`);
		const n = maxEntries ?? t.maxEntries;
		if (n !== t.maxEntries && t.type === MAP_TYPE.array && !(t.flags & MAP_FLAG.INNER_MAP))
			throw new UsageError(
				`map ${this.name}: its inner arrays have ${t.maxEntries} entries (BPF_F_INNER_MAP in their map_flags allows other sizes)`,
			);
		return new TypedMap<IK, IV>(
			createFd({ ...t, maxEntries: n, name }),
			name,
			true,
			t.key as Codec<IK> | undefined,
			t.value,
		);
	}
	set(key: K, inner: BpfMap): void {
		this.key.encode(key, this.k);
		this.v[0] = inner.fd;
		const r = native().update(this.fd, this.k, new Uint8Array(this.v.buffer), 0);
		if (r < 0)
			throw new BpfError(
				`put map ${inner.name} into ${this.name}`,
				-r,
				-r === 22
					? 'it differs from the inner template in type, key, value, flags or (without BPF_F_INNER_MAP) entries'
					: '',
			);
	}
	/** All at once: the kernel waits for one grace period instead of one per map (recent kernels). */
	setMany(entries: Iterable<readonly [K, BpfMap]>): number {
		const all = [...entries];
		const keys = new Uint8Array(all.length * this.keySize);
		const fds = new Uint32Array(all.length);
		all.forEach(([k, m], i) => {
			this.key.encode(k, keys, i * this.keySize);
			fds[i] = m.fd;
		});
		try {
			return this.raw.updateBatch(keys, new Uint8Array(fds.buffer), all.length);
		} catch (e) {
			if (!(e instanceof BpfError) || !noBatch(e.errno)) throw e;
			for (const [k, m] of all) this.set(k, m);
			return all.length;
		}
	}
	/** The id of the inner map. */
	getId(key: K): number | undefined {
		this.key.encode(key, this.k);
		return this.raw.lookup(this.k, new Uint8Array(this.v.buffer)) ? this.v[0] : undefined;
	}
	openInner(key: K): TypedMap<IK, IV> | undefined {
		const id = this.getId(key);
		return id === undefined ? undefined : this.openById(id);
	}
	/**
	 * An inner map by its id, undefined when it is gone. Before Linux 6.8 each lookup in an array or hash of maps waits for
	 * an RCU grace period (5-20 ms); whoever knows the id is spared that.
	 */
	openById(id: number): TypedMap<IK, IV> | undefined {
		const fd = fdById(CMD.MAP_GET_FD_BY_ID, id);
		if (fd === -ENOENT) return undefined;
		check(`open map ${id} in ${this.name}`, fd);
		if (this.inner)
			return new TypedMap<IK, IV>(fd, '', true, this.inner.key as Codec<IK> | undefined, this.inner.value);
		const c = codecsOf(fd, {});
		return new TypedMap<IK, IV>(fd, '', true, c.key as Codec<IK> | undefined, c.value);
	}
	delete(key: K): boolean {
		this.key.encode(key, this.k);
		return this.raw.delete(this.k);
	}
	*keys(): IterableIterator<K> {
		let prev: Uint8Array | null = null;
		for (;;) {
			const next: Uint8Array = new Uint8Array(new ArrayBuffer(Math.max(4, this.keySize)));
			if (!this.raw.nextKey(prev, next)) return;
			yield this.key.decode(next);
			prev = next;
		}
	}
}

export interface CreateOptions {
	readonly kind: MapKind;
	readonly key?: Codec<unknown>;
	readonly value?: Codec<unknown>;
	/** Bytes, where there is no codec. */
	readonly keySize?: number;
	readonly valueSize?: number;
	readonly maxEntries: number;
	readonly flags?: number;
	readonly innerFd?: number;
	readonly name?: string;
}

function createFd(t: {
	type: number;
	keySize: number;
	valueSize: number;
	maxEntries: number;
	flags: number;
	name: string;
	innerFd?: number;
}): number {
	const opts = new Struct(MAP_CREATE_OPTS, { map_flags: t.flags, inner_map_fd: t.innerFd ?? 0 });
	const name = t.name.replace(/[^\w.]/g, '_').slice(0, 15);
	const r = native().mapCreate(t.type, name, t.keySize, t.valueSize, t.maxEntries, opts.bytes);
	return check(`create ${kindOf(t.type)} map ${t.name} of ${t.maxEntries} entries`, r);
}

export interface FromPinOptions {
	/** Codecs, in place of those made from the BTF the kernel keeps for the map. */
	readonly key?: Codec<unknown>;
	readonly value?: Codec<unknown>;
	/** Look types up by name here: with `keyType`, `valueType`. */
	readonly btf?: Btf;
	readonly keyType?: string;
	readonly valueType?: string;
	readonly inner?: InnerTemplate;
}

function codecsOf(fd: number, o: FromPinOptions): { key?: Codec<unknown>; value?: Codec<unknown> } {
	const i = readInfo(fd);
	let key = o.key ?? (o.btf && o.keyType ? o.btf.codec(o.keyType) : undefined);
	let value = o.value ?? (o.btf && o.valueType ? o.btf.codec(o.valueType) : undefined);
	if ((!key || !value) && i.btfId && i.valueType) {
		const btf = Btf.fromKernel(i.btfId);
		if (i.keyType) key ??= btf.codec(i.keyType);
		value ??= btf.codec(i.valueType);
	}
	return { key, value };
}

function typedFromFd<K, V>(fd: number, o: FromPinOptions): TypedMap<K, V> {
	try {
		const c = codecsOf(fd, o);
		return new TypedMap<K, V>(fd, '', true, c.key as Codec<K> | undefined, c.value);
	} catch (e) {
		closeFd(fd);
		throw e;
	}
}

export const maps = {
	/** Codecs come from the kernel's BTF of the map unless given. */
	fromPin<K = unknown, V = unknown>(path: string, o: FromPinOptions = {}): TypedMap<K, V> {
		return typedFromFd(openPin(path), o);
	},
	fromId<K = unknown, V = unknown>(id: number, o: FromPinOptions = {}): TypedMap<K, V> {
		return typedFromFd(check(`open map ${id}`, fdById(CMD.MAP_GET_FD_BY_ID, id)), o);
	},
	/** A pinned array_of_maps or hash_of_maps; createInner() needs `inner`. */
	mapOfMapsFromPin<K = number, IK = unknown, IV = unknown>(path: string, o: FromPinOptions = {}): MapOfMaps<K, IK, IV> {
		return new MapOfMaps<K, IK, IV>(openPin(path), '', true, o.key as Codec<K> | undefined, o.inner);
	},
	create<K = unknown, V = unknown>(o: CreateOptions): TypedMap<K, V> {
		if (o.kind === 'other') throw new UsageError('create map: name its kind');
		const name = o.name ?? 'map';
		const fd = createFd({
			type: MAP_TYPE[o.kind],
			keySize: o.key?.size ?? o.keySize ?? (o.kind === 'ringbuf' ? 0 : 4),
			valueSize: o.value?.size ?? o.valueSize ?? (o.kind === 'ringbuf' ? 0 : 4),
			maxEntries: o.maxEntries,
			flags: o.flags ?? 0,
			name,
			innerFd: o.innerFd,
		});
		return new TypedMap<K, V>(fd, name, true, o.key as Codec<K> | undefined, o.value);
	},
};

function openPin(path: string): number {
	return check(`open pin ${path}`, native().get(path), `is it pinned there? ls -l ${path}`);
}

export const isPerCpu = (kind: MapKind): boolean => PER_CPU.has(kind);
export const isOfMaps = (kind: MapKind): boolean => OF_MAPS.has(kind);
export type { Mem };
