import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, renameSync, rmSync, statSync, unlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { BpfError, type BpfMap, type BpfObject, Link, maps, open, Program, VerifierError } from 'libbpf-ts';
import { ensureBpffs, lockPinRoot, makeDir, needPinDirectory, type PinLock } from './bpffs.js';
import { LoaderError, reason } from './errors.js';
import type { LoadableObject } from './objects.js';
import {
	type ClsactPin,
	clsactPinName,
	clsactPins,
	type LinkPin,
	type LinkPinKind,
	linkPinName,
	linkPins,
	list,
	netnsInode,
	type PinPaths,
	pinnedAbi,
	pinPaths,
	programPinName,
	programPins,
} from './pins.js';
import { type MapSpec, mapSpecs } from './specs.js';

export interface LoadOptions {
	readonly objects: readonly LoadableObject[];
	/** A directory on a BPF file system, this loader's alone. */
	readonly pinRoot: string;
	/** Where the lock lies; default /run/bpf-loader. */
	readonly runDir?: string;
	/** Raised when the meaning of a map's rows changes without its layout: pinned maps of another number are not reused. */
	readonly abi?: number;
	/** `const volatile` variables, in every object that has one of that name. */
	readonly consts?: Readonly<Record<string, unknown>>;
	/** In place of what the objects declare. */
	readonly maxEntries?: Readonly<Record<string, number>>;
	/** Mount bpffs at /sys/fs/bpf where it is not; default true. */
	readonly mount?: boolean;
}

export type XdpMode = 'auto' | 'native' | 'generic';

/** Something attached, as the kernel says now. */
export interface Attachment {
	readonly slot: string;
	readonly kind: 'xdp' | 'tcx' | 'clsact' | 'cgroup';
	/** XDP only. */
	readonly mode?: 'native' | 'generic';
	readonly ifindex?: number;
	readonly cgroupId?: string;
	readonly direction?: 'ingress' | 'egress';
	/** Name of the program where it is one of ours. */
	readonly program: string | undefined;
	/** 0: severed, its interface or cgroup is gone. */
	readonly programId: number;
	readonly severed: boolean;
}

interface LoadedProgram {
	readonly program: Program;
	readonly digest: string;
	readonly attachType: number;
}

/** In a verdict of the kernel's: this mode or this program will not do here, another may. */
const REFUSED = new Set([22, 34, 95, 524]);

function remove(path: string): void {
	try {
		unlinkSync(path);
	} catch (e) {
		if ((e as NodeJS.ErrnoException).code !== 'ENOENT') throw e;
	}
}

const sameLayout = (a: MapSpec, b: MapSpec) =>
	a.type === b.type &&
	a.keySize === b.keySize &&
	a.valueSize === b.valueSize &&
	a.maxEntries === b.maxEntries &&
	a.flags === b.flags;

function wantedMaps(o: LoadOptions, perObject: readonly (readonly MapSpec[])[]): ReadonlyMap<string, MapSpec> {
	const wanted = new Map<string, MapSpec>();
	perObject.forEach((specs, i) => {
		for (const declared of specs) {
			const spec = { ...declared, maxEntries: o.maxEntries?.[declared.name] ?? declared.maxEntries };
			const other = wanted.get(spec.name);
			if (other && !sameLayout(other, spec))
				throw new LoaderError(
					'BAD_OBJECT',
					`load ${o.objects[i].name}: its map ${spec.name} differs from another object's: compile both from the same headers`,
				);
			wanted.set(spec.name, spec);
		}
	});
	return wanted;
}

function loadFailed(object: LoadableObject, e: unknown): LoaderError {
	if (e instanceof LoaderError) return e;
	if (e instanceof VerifierError)
		return new LoaderError(
			'VERIFIER_REJECTED',
			`load ${e.program} of ${object.name}: the kernel's verifier refused it: ${e.reason} (what runs is unchanged)`,
			{ detail: e.log, cause: e },
		);
	return new LoaderError('LOAD_FAILED', `load ${object.name}: ${reason(e)} (what runs is unchanged)`, { cause: e });
}

/** Names, types and numbers in a stable order. */
function stable(value: unknown): string {
	return (
		JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}n` : v instanceof Uint8Array ? [...v] : v)) ?? ''
	);
}

/**
 * Loads all programs of all objects. Maps are shared by name; a pinned map whose layout and ABI are unchanged is used
 * again, others are made aside. Nothing that is pinned or attached changes before commit(): a program that the verifier
 * refuses leaves the running datapath alone.
 *
 *	const d = await load({ objects, pinRoot });
 *	for (const name of d.newMaps) refill(name);
 *	d.commit();
 *	d.attachXdp({ slot: 'uplink', programs: ['uplink_xdp'], ifindex, mode: 'auto' });
 *
 * @throws LoaderError LOCKED, NO_BPFFS, STACKED_BPFFS, BAD_OBJECT, VERIFIER_REJECTED, LOAD_FAILED
 */
export async function load(o: LoadOptions): Promise<Loaded> {
	const root = resolve(o.pinRoot);
	const specs = o.objects.map((x) => mapSpecs(x.object));
	const wanted = wantedMaps(o, specs);
	await ensureBpffs(root, o);
	const lock = lockPinRoot(root, o.runDir ?? '/run/bpf-loader');
	const owned: Disposable[] = [];
	try {
		const paths = pinPaths(root);
		for (const dir of [paths.root, paths.maps, paths.programs, paths.links, paths.clsact]) await makeDir(dir);
		rmSync(paths.next, { recursive: true, force: true });
		const abi = o.abi ?? 0;
		const sameAbi = pinnedAbi(paths) === abi;
		const known = new Map<string, BpfMap>();
		for (const spec of wanted.values()) {
			const path = join(paths.maps, spec.name);
			if (!sameAbi || !existsSync(path)) continue;
			const map = maps.fromPin(path);
			owned.push(map);
			if (sameLayout(spec, { ...map.info(), name: spec.name })) known.set(spec.name, map);
		}
		const newMaps: string[] = [];
		const programs = new Map<string, LoadedProgram>();
		const pinned = programPins(paths);
		for (const [i, object] of o.objects.entries()) {
			const digest = (): string => {
				const h = createHash('sha256');
				h.update(object.object).update(stable(o.consts ?? {}));
				for (const s of specs[i]) h.update(`;${s.name}=${known.get(s.name)?.id}`);
				return h.digest('hex').slice(0, 16);
			};
			try {
				using opened = open(object.object, { name: object.name.replace(/\..*$/, '') });
				const names = opened.programNames();
				if (specs[i].every((s) => known.has(s.name))) {
					// The same code on the same maps is pinned already: take it as it is, whatever it is attached to stays.
					const d = digest();
					const pins = names.map((n) => pinned.find((p) => p.name === n && p.digest === d));
					if (pins.every((p) => p !== undefined)) {
						for (const p of pins) {
							const program = Program.fromPin(p.path);
							owned.push(program);
							programs.set(p.name, { program, digest: d, attachType: p.attachType });
						}
						continue;
					}
				}
				for (const s of specs[i]) {
					const map = known.get(s.name);
					if (map) opened.reuseMap(s.name, map);
					else opened.setMaxEntries(s.name, wanted.get(s.name)?.maxEntries ?? s.maxEntries);
				}
				const variables = new Set(opened.variableNames());
				for (const [name, value] of Object.entries(o.consts ?? {}))
					if (variables.has(name)) opened.setConst(name, value);
				const loaded: BpfObject = await opened.load();
				owned.push(loaded);
				for (const s of specs[i]) {
					if (known.has(s.name)) continue;
					known.set(s.name, loaded.maps[s.name] as BpfMap);
					newMaps.push(s.name);
				}
				const d = digest();
				for (const name of names) {
					const program = loaded.program(name);
					programs.set(name, { program, digest: d, attachType: program.expectedAttachType ?? 0 });
				}
			} catch (e) {
				throw loadFailed(object, e);
			}
		}
		return new Loaded(paths, abi, known, newMaps, programs, owned, lock);
	} catch (e) {
		for (const x of owned.reverse()) x[Symbol.dispose]();
		lock.release();
		throw e;
	}
}

/** Loaded programs and their maps. close() leaves attached what is attached. */
export class Loaded implements Disposable {
	private committed = false;

	/** @internal Use load(). */
	constructor(
		private readonly paths: PinPaths,
		private readonly abi: number,
		/** Every map of the objects, by name. They belong to this object. */
		readonly maps: ReadonlyMap<string, BpfMap>,
		/** Maps that were made by this load and are empty. To be filled before commit(). */
		readonly newMaps: readonly string[],
		private readonly loaded: ReadonlyMap<string, LoadedProgram>,
		private readonly owned: readonly Disposable[],
		private readonly lock: PinLock,
	) {}

	/** @throws LoaderError NO_OBJECT where no object has it */
	program(name: string): Program {
		return this.need(name).program;
	}
	get programNames(): readonly string[] {
		return [...this.loaded.keys()];
	}

	private need(name: string): LoadedProgram {
		const p = this.loaded.get(name);
		if (!p)
			throw new LoaderError('NO_OBJECT', `no object has a program ${name} (there are ${this.programNames.join(', ')})`);
		return p;
	}

	/**
	 * Pins new maps and programs and switches what is attached, each link atomically. Killed at any point it leaves each
	 * link on its old or its new program, with that program's own maps; the next load() and commit() finish the work.
	 * @throws LoaderError ATTACH_FAILED after the links already switched were switched back
	 */
	commit(): void {
		if (this.committed) return;
		const p = this.paths;
		if (this.newMaps.length > 0) {
			mkdirSync(p.next, { recursive: true, mode: 0o700 });
			for (const name of this.newMaps) this.maps.get(name)?.pin(join(p.next, name));
			for (const name of this.newMaps) renameSync(join(p.next, name), join(p.maps, name));
			rmSync(p.next, { recursive: true, force: true });
		}
		const marker = join(p.root, `abi-${this.abi}`);
		const old = pinnedAbi(p);
		if (old === undefined) mkdirSync(marker, { mode: 0o700 });
		else if (old !== this.abi) renameSync(join(p.root, `abi-${old}`), marker);

		const keep = new Set<string>();
		for (const [name, l] of this.loaded) {
			const file = programPinName(name, l.digest, l.attachType);
			keep.add(file);
			if (!existsSync(join(p.programs, file))) l.program.pin(join(p.programs, file));
		}
		this.switchLinks();
		for (const file of list(p.programs)) if (!keep.has(file)) remove(join(p.programs, file));
		for (const file of list(p.maps)) if (!this.maps.has(file)) remove(join(p.maps, file));
		this.committed = true;
	}

	/** Name of the program with this id, among those pinned by this or an earlier version. */
	private namesById(): Map<number, string> {
		const names = new Map<number, string>();
		for (const pin of programPins(this.paths)) {
			using program = Program.fromPin(pin.path);
			names.set(program.id, pin.name);
		}
		return names;
	}

	private switchLinks(): void {
		const names = this.namesById();
		const undo: (() => void)[] = [];
		// Let go of when all is switched, or a program that runs nowhere would hold its maps as long as this process lives.
		const replaced: Program[] = [];
		try {
			for (const pin of linkPins(this.paths)) {
				const link = openLink(pin);
				if (!link) continue;
				using _ = link;
				const running = link.info().progId;
				const name = names.get(running) ?? pin.slot;
				const next = this.loaded.get(name);
				if (!next) {
					// A program that this version no longer has.
					link.detach();
					remove(pin.path);
					continue;
				}
				if (next.program.id === running) continue;
				const before = Program.fromId(running);
				replaced.push(before);
				link.update(next.program);
				undo.push(() => {
					using back = Link.fromPin(pin.path);
					back.update(before);
				});
			}
			for (const pin of clsactPins(this.paths)) {
				const filter = ourFilter(pin);
				if (!filter) continue;
				const name = names.get(filter.info().progId) ?? pin.slot;
				const next = this.loaded.get(name);
				if (!next) {
					filter.detach();
					remove(pin.path);
				} else if (next.program.id !== filter.info().progId) {
					filter.update(next.program);
					this.pinFilter(pin, next.program);
				}
				filter.disown();
			}
		} catch (e) {
			for (const back of undo.reverse()) {
				try {
					back();
				} catch {
					// The link went away meanwhile; the first error is the one to tell.
				}
			}
			throw new LoaderError('ATTACH_FAILED', `switch to the new programs: ${reason(e)} (the old ones are back)`, {
				cause: e,
			});
		} finally {
			for (const p of replaced) p[Symbol.dispose]();
		}
	}

	private pinFilter(c: Omit<ClsactPin, 'path'>, program: Program): void {
		// The pin tells our filter from others of the same priority and handle, so it changes in one step too.
		mkdirSync(this.paths.next, { recursive: true, mode: 0o700 });
		const aside = join(this.paths.next, 'filter');
		remove(aside);
		program.pin(aside);
		renameSync(aside, join(this.paths.clsact, clsactPinName(c)));
		rmSync(this.paths.next, { recursive: true, force: true });
	}

	private ready(what: string): void {
		if (!this.committed)
			throw new LoaderError(
				'NOT_COMMITTED',
				`${what}: the new maps and programs are not in place yet: call commit() first`,
			);
	}

	/**
	 * Attaches the first of `programs` that the driver takes: natively where it can, else (mode auto) generically. What
	 * is attached in `slot` already is switched to it without a gap; only another mode asked for by name detaches first.
	 * @returns the mode and the program
	 * @throws LoaderError ATTACH_FAILED
	 */
	attachXdp(o: {
		readonly slot: string;
		readonly programs: readonly string[];
		readonly ifindex: number;
		readonly mode: XdpMode;
	}): {
		readonly mode: 'native' | 'generic';
		readonly program: string;
	} {
		this.ready(`attach ${o.slot}`);
		for (const pin of linkPins(this.paths)) {
			if (pin.slot !== o.slot || pin.target !== String(o.ifindex)) continue;
			const link = openLink(pin);
			if (!link) continue;
			using _ = link;
			const mode = pin.kind === 'generic' ? 'generic' : 'native';
			if (o.mode !== 'auto' && o.mode !== mode) {
				link.detach();
				remove(pin.path);
				continue;
			}
			return { mode, program: this.updateFirst(link, o) };
		}
		let last: unknown;
		for (const mode of o.mode === 'auto' ? (['native', 'generic'] as const) : [o.mode]) {
			for (const name of o.programs) {
				try {
					using link = this.need(name).program.attachXdp(o.ifindex, { mode });
					link.pin(join(this.paths.links, linkPinName(o.slot, o.ifindex, mode)));
					return { mode, program: name };
				} catch (e) {
					last = e;
					if (!(e instanceof BpfError) || !REFUSED.has(e.errno)) throw attachFailed(o.slot, e);
				}
			}
		}
		throw attachFailed(o.slot, last);
	}

	private updateFirst(link: Link, o: { readonly slot: string; readonly programs: readonly string[] }): string {
		const running = link.info().progId;
		let last: unknown;
		for (const name of o.programs) {
			const { program } = this.need(name);
			if (program.id === running) return name;
			try {
				link.update(program);
				return name;
			} catch (e) {
				last = e;
			}
		}
		throw attachFailed(o.slot, last);
	}

	/** tcx where the kernel has it, else clsact; `via` for a choice by name. @throws LoaderError ATTACH_FAILED */
	attachTc(o: {
		readonly slot: string;
		readonly program: string;
		readonly ifindex: number;
		readonly direction: 'ingress' | 'egress';
		readonly via?: 'tcx' | 'clsact' | 'auto';
		/** tcx: a slot of ours to run ahead of, where it is attached to the interface already: first of all then. */
		readonly ahead?: string;
		/** clsact only. */
		readonly priority?: number;
		readonly handle?: number;
	}): { readonly via: 'tcx' | 'clsact' } {
		this.ready(`attach ${o.slot}`);
		const { program } = this.need(o.program);
		const via = o.via ?? 'auto';
		try {
			for (const pin of linkPins(this.paths)) {
				if (pin.slot !== o.slot || pin.target !== String(o.ifindex)) continue;
				const link = openLink(pin);
				if (!link) continue;
				using _ = link;
				if (via === 'clsact') {
					link.detach();
					remove(pin.path);
					continue;
				}
				if (link.info().progId !== program.id) link.update(program);
				return { via: 'tcx' };
			}
			for (const pin of clsactPins(this.paths)) {
				if (pin.slot !== o.slot || pin.ifindex !== o.ifindex || pin.direction !== o.direction) continue;
				const filter = ourFilter(pin);
				if (!filter) continue;
				if (via === 'tcx') {
					filter.detach();
					remove(pin.path);
					continue;
				}
				if (filter.info().progId !== program.id) {
					filter.update(program);
					this.pinFilter(pin, program);
				}
				filter.disown();
				return { via: 'clsact' };
			}
			const link = program.attachTc(o.ifindex, o.direction, {
				via,
				first: this.isPinned(o.ahead, o.ifindex),
				priority: o.priority ?? 1,
				handle: o.handle ?? HANDLE,
			});
			return this.keepTc(o, program, link);
		} catch (e) {
			throw attachFailed(o.slot, e);
		}
	}

	private isPinned(slot: string | undefined, ifindex: number): boolean {
		const target = String(ifindex);
		return slot !== undefined && linkPins(this.paths).some((p) => p.slot === slot && p.target === target);
	}

	private keepTc(
		o: { readonly slot: string; readonly ifindex: number },
		program: Program,
		link: Link,
	): { readonly via: 'tcx' | 'clsact' } {
		if (link.kind === 'tcx') {
			using _ = link;
			link.pin(join(this.paths.links, linkPinName(o.slot, o.ifindex, 'tcx')));
			return { via: 'tcx' };
		}
		const filter = link.clsactFilter;
		if (!filter) throw new LoaderError('ATTACH_FAILED', `attach ${o.slot}: the filter has no handle`);
		try {
			this.pinFilter({ ...filter, slot: o.slot, netns: netnsInode() }, program);
		} catch (e) {
			link.detach();
			throw e;
		}
		link.disown();
		return { via: 'clsact' };
	}

	/** As attachTc() where nothing of the slot is attached yet; the caller's thread does not wait for the kernel's lock of all interfaces. */
	async attachTcAsync(o: {
		readonly slot: string;
		readonly program: string;
		readonly ifindex: number;
		readonly direction: 'ingress' | 'egress';
		readonly ahead?: string;
		/** clsact only. */
		readonly priority?: number;
	}): Promise<void> {
		this.ready(`attach ${o.slot}`);
		const { program } = this.need(o.program);
		if (
			this.isPinned(o.slot, o.ifindex) ||
			clsactPins(this.paths).some((p) => p.slot === o.slot && p.ifindex === o.ifindex)
		) {
			this.attachTc(o);
			return;
		}
		try {
			const link = await program.attachTcAsync(o.ifindex, o.direction, {
				first: this.isPinned(o.ahead, o.ifindex),
				priority: o.priority ?? 1,
				handle: HANDLE,
			});
			this.keepTc(o, program, link);
		} catch (e) {
			throw attachFailed(o.slot, e);
		}
	}

	/** Removes the pins of what was attached to an interface that is gone, and was detached with it. */
	forget(slot: string, ifindex: number): void {
		for (const pin of linkPins(this.paths)) if (pin.slot === slot && pin.target === String(ifindex)) remove(pin.path);
		for (const pin of clsactPins(this.paths)) if (pin.slot === slot && pin.ifindex === ifindex) remove(pin.path);
	}

	/** `path`: a cgroup2 directory. @throws LoaderError ATTACH_FAILED */
	attachCgroup(o: { readonly slot: string; readonly program: string; readonly path: string }): void {
		this.ready(`attach ${o.slot}`);
		const { program, attachType } = this.need(o.program);
		try {
			const id = String(statSync(o.path, { bigint: true }).ino);
			for (const pin of linkPins(this.paths)) {
				if (pin.slot !== o.slot || pin.target !== id || pin.kind !== 'cgroup') continue;
				const link = openLink(pin);
				if (!link) continue;
				using _ = link;
				if (link.info().progId !== program.id) link.update(program);
				return;
			}
			using link = program.attachCgroup(o.path, { attachType });
			link.pin(join(this.paths.links, linkPinName(o.slot, id, 'cgroup')));
		} catch (e) {
			throw attachFailed(o.slot, e);
		}
	}

	/** Detaches `slot` from one interface or cgroup id; nothing where it is not attached. */
	detach(slot: string, target: number | string): void {
		for (const pin of linkPins(this.paths)) if (pin.slot === slot && pin.target === String(target)) detachLink(pin);
		for (const pin of clsactPins(this.paths))
			if (pin.slot === slot && String(pin.ifindex) === String(target)) detachFilter(pin);
	}

	/** What is attached, read from the kernel. */
	attachments(): readonly Attachment[] {
		const names = new Map([...this.loaded].map(([name, l]) => [l.program.id, name]));
		const out: Attachment[] = [];
		for (const pin of linkPins(this.paths)) {
			using link = Link.fromPin(pin.path);
			const info = link.info();
			const severed = pin.kind === 'cgroup' ? info.cgroupId === 0n : info.ifindex === 0;
			const xdp = pin.kind === 'native' || pin.kind === 'generic';
			out.push({
				slot: pin.slot,
				kind: xdp ? 'xdp' : (pin.kind as Exclude<LinkPinKind, 'native' | 'generic'>),
				...(xdp ? { mode: pin.kind as 'native' | 'generic' } : {}),
				...(pin.kind === 'cgroup' ? { cgroupId: pin.target } : { ifindex: Number(pin.target) }),
				...(pin.kind === 'tcx'
					? { direction: info.attachType === 47 ? ('egress' as const) : ('ingress' as const) }
					: {}),
				program: names.get(info.progId),
				programId: severed ? 0 : info.progId,
				severed,
			});
		}
		for (const pin of clsactPins(this.paths)) {
			const filter = ourFilter(pin, false);
			const programId = filter?.info().progId ?? 0;
			filter?.disown();
			out.push({
				slot: pin.slot,
				kind: 'clsact',
				ifindex: pin.ifindex,
				direction: pin.direction,
				program: names.get(programId),
				programId,
				severed: programId === 0,
			});
		}
		return out;
	}

	/** Detaches everything and removes every pin; the object is closed afterwards. */
	takeDown(): TakenDown {
		const r = takeDownPins(this.paths);
		this.close();
		return r;
	}

	/** Closes maps and programs and gives the lock back. What is attached stays. */
	close(): void {
		for (const x of [...this.owned].reverse()) x[Symbol.dispose]();
		this.lock.release();
	}
	[Symbol.dispose](): void {
		this.close();
	}
}

/** Of clsact filters, unless another is asked for. */
const HANDLE = 0xbee;

const ENODEV = 19;

function attachFailed(slot: string, e: unknown): LoaderError {
	if (e instanceof LoaderError) return e;
	const code = e instanceof BpfError && e.errno === ENODEV ? 'NO_INTERFACE' : 'ATTACH_FAILED';
	return new LoaderError(code, `attach ${slot}: ${reason(e)}`, { cause: e });
}

/** The pinned link; undefined where it was severed, and then its pin is gone. */
function openLink(pin: LinkPin): Link | undefined {
	const link = Link.fromPin(pin.path);
	const info = link.info();
	// A link whose interface went keeps its pin file, with ifindex 0, and updating it gives ENOLINK.
	if (pin.kind === 'cgroup' ? info.cgroupId !== 0n : info.ifindex !== 0) return link;
	link[Symbol.dispose]();
	remove(pin.path);
	return undefined;
}

/** The filter that a pin stands for, where it still runs the pinned program; otherwise the pin is removed (`tidy`). */
function ourFilter(pin: ClsactPin, tidy = true): Link | undefined {
	if (pin.netns !== netnsInode()) return undefined;
	const filter = Link.clsact(pin);
	using program = Program.fromPin(pin.path);
	if (filter && filter.info().progId === program.id) return filter;
	filter?.disown();
	if (tidy) remove(pin.path);
	return undefined;
}

function detachLink(pin: LinkPin): void {
	const link = openLink(pin);
	if (!link) return;
	using _ = link;
	link.detach();
	remove(pin.path);
}

function detachFilter(pin: ClsactPin): boolean {
	if (pin.netns !== netnsInode()) return false;
	ourFilter(pin)?.detach();
	remove(pin.path);
	return true;
}

export interface TakenDown {
	readonly links: number;
	readonly filters: number;
	readonly maps: number;
	readonly programs: number;
	/** What could not be removed, a sentence each. */
	readonly left: readonly string[];
}

function takeDownPins(p: PinPaths): TakenDown {
	const left: string[] = [];
	let links = 0;
	let filters = 0;
	for (const pin of linkPins(p)) {
		try {
			detachLink(pin);
			links++;
		} catch (e) {
			left.push(`${pin.slot} on ${pin.target}: ${reason(e)}`);
		}
	}
	for (const pin of clsactPins(p)) {
		try {
			if (detachFilter(pin)) filters++;
			else if (!existsSync(pin.path)) continue;
			else
				left.push(
					`${pin.slot} on interface ${pin.ifindex}: its filter is in another network namespace (${pin.netns}): run this there (nsenter --net)`,
				);
		} catch (e) {
			left.push(`${pin.slot} on interface ${pin.ifindex}: ${reason(e)}`);
		}
	}
	const programs = programPins(p).length;
	const maps = list(p.maps).length;
	if (left.length === 0) rmSync(p.root, { recursive: true, force: true });
	return { links, filters, maps, programs, left };
}

/**
 * Detaches and removes everything below `pinRoot`, from the pins alone: links, filters, programs, maps, the directory.
 * Nothing there is no error.
 * @throws LoaderError LOCKED where a process still works on it, NO_BPFFS where it can be no directory of pins
 */
export function detachAll(pinRoot: string, o: { readonly runDir?: string } = {}): TakenDown {
	const root = resolve(pinRoot);
	if (!existsSync(root)) return { links: 0, filters: 0, maps: 0, programs: 0, left: [] };
	needPinDirectory(root);
	const lock = lockPinRoot(root, o.runDir ?? '/run/bpf-loader');
	try {
		return takeDownPins(pinPaths(root));
	} finally {
		lock.release();
	}
}
