/**
 * Entries (desired) → maps. Adds before it deletes, writes nothing that is already so, may be repeated, keeps what it
 * could not do for the next time, and says what is true now.
 *
 *     add:    settings, uplinks, nodes → backends → tables → frontends → ports
 *     delete: ports → frontends → tables → backends → nodes, uplinks
 */

import { codeOf, sentence } from '../errors.js';
import {
	type Backend as BackendRow,
	BackendState as BackendStates,
	FrontendFlag,
	type Frontend as FrontendRow,
	type LocalBackend as LocalBackendRow,
	type Node as NodeRow,
	type OnLink as OnLinkRow,
	PORT_FRONTEND_MASK,
	REF_KERNEL,
	REF_NONE,
	type Settings,
	type TableRef,
	type Transition,
	type Uplink as UplinkRow,
} from '../loader/layout.gen.js';
import type { BackendEntry, Entries, FrontendSpec, ServiceEntries, TableSpec } from './entries.js';
import { codeOfMac, macOfCode } from './hash.js';
import { FORGET_AFTER_MS, type Ids } from './ids.js';
import { type MaglevMembers, type MaglevPool, maglev } from './maglev.js';
import type { OverlayEntries } from './overlay.js';
import {
	applySlots,
	countMoving,
	isOver,
	isRehash,
	isUntracking,
	leaveToKernel,
	refGeneration,
	refIndex,
	refOf,
	rehash,
	replaceSlots,
	settle,
	startFromKernel,
	trackedGeneration,
} from './slots.js';
import type { AclKey, ExactKey, MeshStore, OnLinkKey, RowStore } from './store.js';

/** Something that could not be made so. It is tried again by the next reconcile. */
export interface PartError {
	/** `backends`, `tables of web`, … */
	readonly part: string;
	readonly service?: string;
	readonly code: string;
	readonly message: string;
}

export interface ReconcileResult {
	readonly rowsWritten: number;
	readonly rowsDeleted: number;
	readonly tablesComputed: number;
	/** Slots whose `current` changed in tables that existed. */
	readonly slotsChanged: number;
	readonly durationMs: number;
	readonly errors: readonly PartError[];
	/** When to reconcile again although nothing changed, in the caller's ms; undefined: never. */
	readonly wakeAtMs?: number;
}

export interface SettleResult {
	readonly settled: number;
	/** Slots that are not stable yet, in all tables. */
	readonly moving: number;
}

/** Keeps the maps as the Entries say. One at a time: reconcile() must not be called while it runs. */
export interface Reconciler {
	reconcile(entries: Entries, nowMs: number): Promise<ReconcileResult>;
	/** Lets slots rest whose time is over. Cheap where nothing moves; call it every few seconds. */
	settle(): SettleResult;
	/** Slots in transition by frontend index. Reads the tables that move. */
	moving(): Map<number, number>;
	/**
	 * Hands new flows of every port that the kernel's mesh also serves back to it; returns when the last slot rests at the
	 * earliest (CLOCK_BOOTTIME, ns), or undefined where no port is such.
	 */
	leave(): { readonly frontends: number; readonly errors: readonly PartError[] };
}

interface TableState {
	/** Slots of the array. */
	size: number;
	spec?: TableSpec;
}

/** Slots above which worker threads pay for the messages. */
const POOL_FROM_SLOTS = 1 << 20;
/** Tables computed ahead of their being written: bounds the memory, 32 × 16384 slots are 2 MB. */
const CHUNK = 32;
const CHUNKS_AHEAD = 3;
/** Rows of backends that are made before they are written. */
const ROWS_AT_ONCE = 8192;
/** How long what an earlier agent left behind, and this one does not know, is kept for its flows. */
export const ORPHANS_LEAVE_MS = 60_000;

function sameColumn(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
	if (a.length !== b.length) return false;
	for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
	return true;
}

function sameMembers(a: MaglevMembers, b: MaglevMembers): boolean {
	return (
		sameColumn(a.ref, b.ref) &&
		sameColumn(a.weight, b.weight) &&
		sameColumn(a.down, b.down) &&
		sameColumn(a.offset, b.offset) &&
		sameColumn(a.skip, b.skip)
	);
}

function sameTable(a: TableSpec, b: TableSpec): boolean {
	return (
		a === b ||
		(a.size === b.size && a.toKernel === b.toKernel && a.tracked === b.tracked && sameMembers(a.members, b.members))
	);
}

/** Flat rows, bigints and lists of texts included. */
function sameRow(a: object, b: object): boolean {
	const x = a as Record<string, unknown>;
	const y = b as Record<string, unknown>;
	for (const key in x) {
		const p = x[key];
		const q = y[key];
		if (p === q) continue;
		if (Array.isArray(p) && Array.isArray(q) && p.length === q.length && p.every((v, i) => v === q[i])) continue;
		return false;
	}
	return true;
}

/** The rows of `backends` as they are in the map: index → row, in 16 bytes a row. */
class BackendRows {
	private rooms = 0;
	private there = new Uint8Array(0);
	private states = new Uint8Array(0);
	private generations = new Uint8Array(0);
	private nodes = new Uint32Array(0);
	private macs = new Float64Array(0);

	constructor(rows: Iterable<readonly [number, BackendRow]>) {
		for (const [index, row] of rows) this.set(index, row);
	}

	private grow(index: number): void {
		const rooms = Math.max(1024, this.rooms * 2, index + 1);
		const larger = <T extends Uint8Array | Uint32Array | Float64Array>(a: T, b: T): T => {
			b.set(a);
			return b;
		};
		this.there = larger(this.there, new Uint8Array(rooms));
		this.states = larger(this.states, new Uint8Array(rooms));
		this.generations = larger(this.generations, new Uint8Array(rooms));
		this.nodes = larger(this.nodes, new Uint32Array(rooms));
		this.macs = larger(this.macs, new Float64Array(rooms));
		this.rooms = rooms;
	}

	get(index: number): BackendRow | undefined {
		if (this.there[index] !== 1) return undefined;
		return {
			state: this.states[index],
			generation: this.generations[index],
			mac: macOfCode(this.macs[index]),
			node: this.nodes[index],
		};
	}

	set(index: number, row: BackendRow): void {
		if (index >= this.rooms) this.grow(index);
		this.there[index] = 1;
		this.states[index] = row.state;
		this.generations[index] = row.generation;
		this.macs[index] = codeOfMac(row.mac);
		this.nodes[index] = row.node;
	}

	delete(index: number): void {
		this.there[index] = 0;
	}

	holds(b: BackendEntry): boolean {
		const i = b.index;
		return (
			this.there[i] === 1 &&
			this.states[i] === b.state &&
			this.generations[i] === b.generation &&
			this.nodes[i] === b.node &&
			this.macs[i] === b.macCode
		);
	}

	/** Whether a row that is in use has the index and the generation. */
	lives(index: number, generation: number): boolean {
		return (
			this.there[index] === 1 &&
			this.states[index] !== BackendStates.BACKEND_NONE &&
			this.generations[index] === generation
		);
	}

	*[Symbol.iterator](): IterableIterator<[number, BackendRow]> {
		for (let i = 0; i < this.rooms; i++) {
			const row = this.get(i);
			if (row) yield [i, row];
		}
	}
}

/** One map of the overlay networks: whole rows, added in the order of the list and deleted in reverse. */
interface OverlayRows {
	readonly name: string;
	// Each part has a key and a row of its own.
	readonly rows: RowStore<never, never>;
	readonly cache: Map<never, never>;
	wanted(e: OverlayEntries): ReadonlyMap<never, never>;
}

function createOverlayRows(store: MeshStore): readonly OverlayRows[] {
	const part = <K, V>(name: string, rows: RowStore<K, V>, wanted: (e: OverlayEntries) => ReadonlyMap<K, V>) =>
		({ name, rows, cache: new Map(rows.entries()), wanted }) as unknown as OverlayRows;
	return [
		part('networks', store.networks, (e) => e.networks),
		part('overlay endpoints', store.overlayEndpoints, (e) => e.endpoints),
		part('overlay slices', store.overlaySlices, (e) => e.slices),
		part('overlay ports', store.overlayPorts, (e) => e.ports),
	];
}

const sameRef = (a: TableRef, b: TableRef): boolean => a.table === b.table && a.mask === b.mask;
const exactId = (k: ExactKey): string => `${k.proto}/${k.port}/${k.addr}`;
const aclId = (k: AclKey): string => `${k.acl}/${k.prefix}`;
const PROTO_NAME: Readonly<Record<number, string>> = { 6: 'tcp', 17: 'udp' };

/**
 * Reads the maps back and restores the indexes from them.
 *
 * @param nowMs the clock that reconcile() will be called with
 * @param pool for big syncs; without it tables are computed here
 */
export function createReconciler(store: MeshStore, ids: Ids, nowMs: number, pool?: MaglevPool): Reconciler {
	const cache = {
		settings: { ...store.settings.get(), heartbeat_ns: 0n } as Settings,
		uplinks: new Map<number, UplinkRow>(store.uplinks.entries()),
		own: new Set<string>([...store.ownAddresses.entries()].map(([a]) => a)),
		nodes: new Map<number, NodeRow>(store.nodes.entries()),
		vteps: new Map<string, number>(store.vteps.entries()),
		backends: new BackendRows(store.backends.entries()),
		local: new Map<string, LocalBackendRow>(store.localBackends.entries()),
		frontends: new Map<number, FrontendRow>(store.frontends.entries()),
		/** Frontend → since when flows may keep another hash, ns. */
		rehashes: new Map<number, bigint>([...store.rehashes.entries()].map(([index, r]) => [index, r.since_ns])),
		/** Frontend → since when it does not track always any more, ns. */
		untracked: new Map<number, bigint>([...store.untracked.entries()].map(([index, r]) => [index, r.since_ns])),
		ports: new Map<number, number>(store.ports.entries()),
		exact: new Map<string, readonly [ExactKey, number]>(
			[...store.exactFrontends.entries()].map((e) => [exactId(e[0]), e]),
		),
		allow: new Map<string, AclKey>([...store.allow.entries()].map(([k]) => [aclId(k), k])),
		deny: new Map<string, AclKey>([...store.deny.entries()].map(([k]) => [aclId(k), k])),
		onLink: new Map<string, readonly [OnLinkKey, OnLinkRow]>(
			[...store.onLink.entries()].map((e) => [`${e[0].list}/${e[0].prefix}`, e]),
		),
	};
	const overlay = createOverlayRows(store);
	const tables = new Map<number, TableState>();
	/** Table → when it may have come to rest, ns. */
	const restless = new Map<number, bigint>();
	const applied = new Map<string, ServiceEntries>();
	/** What the maps hold and no Entries has named: MAC or VTEP → when it goes. */
	const orphans = new Map<string, number>();
	let first = true;

	// --- what an earlier agent left
	for (const [index, row] of cache.backends)
		if (row.state === BackendStates.BACKEND_NONE) ids.backends.restoreFreed(index, row.generation, nowMs);
		else {
			ids.backends.restore(row.mac, index, row.generation);
			orphans.set(row.mac, nowMs + ORPHANS_LEAVE_MS);
		}
	for (const [index, row] of cache.nodes) {
		ids.nodes.restore(row.vtep, index, 0);
		orphans.set(row.vtep, nowMs + ORPHANS_LEAVE_MS);
	}
	const addressesOf = new Map<number, string[]>();
	for (const [key, index] of cache.exact.values()) {
		const list = addressesOf.get(index);
		if (list) list.push(key.addr);
		else addressesOf.set(index, [key.addr]);
	}
	for (const [index, row] of cache.frontends) {
		ids.frontends.restore(`found/${index}`, index, 0);
		ids.found.push({
			index,
			port: `${PROTO_NAME[row.proto] ?? row.proto}/${row.port}`,
			addresses: addressesOf.get(index) ?? [],
		});
		const [four, six] = row.tables;
		ids.tables.set(index, {
			four: four.table !== 0,
			six: six.table === 0 ? 'none' : six.table === 2 * index ? 'shared' : 'own',
		});
	}
	for (const id of store.tables.ids()) {
		const slots = store.tables.read(id);
		if (slots === undefined) continue;
		tables.set(id, { size: slots.length });
		if (countMoving(slots) > 0) restless.set(id, 0n);
	}

	// --- one reconcile
	const isKnown =
		(going: ReadonlySet<number>) =>
		(ref: number): boolean => {
			if (ref === REF_KERNEL) return true;
			if (ref === REF_NONE) return false;
			const index = refIndex(ref);
			return cache.backends.lives(index, refGeneration(ref)) && !going.has(index);
		};

	async function reconcile(e: Entries, now: number): Promise<ReconcileResult> {
		const started = performance.now();
		const errors: PartError[] = [];
		let rowsWritten = 0;
		let rowsDeleted = 0;
		let slotsChanged = 0;
		let tablesComputed = 0;
		let wakeAtMs = e.mesh.wakeAtMs;
		const failed = new Set<string>();
		const fail = (part: string, error: unknown, service?: string) => {
			errors.push({
				part,
				code: codeOf(error),
				message: sentence(error),
				...(service === undefined ? {} : { service }),
			});
			if (service !== undefined) failed.add(service);
		};
		const attempt = (part: string, action: () => void, service?: string): boolean => {
			try {
				action();
				return true;
			} catch (error) {
				fail(part, error, service);
				return false;
			}
		};
		/** Writes rows of several services at once; where that fails, service by service. */
		const writeRows = <K, V>(
			part: string,
			rowStore: RowStore<K, V>,
			rows: readonly { readonly service: string; readonly key: K; readonly row: V }[],
			written: (key: K, row: V) => void,
		): void => {
			const put = (list: typeof rows) => {
				if (list.length === 0) return;
				rowStore.setMany(list.map((r) => [r.key, r.row] as const));
				for (const r of list) written(r.key, r.row);
				rowsWritten += list.length;
			};
			const list = rows.filter((r) => !failed.has(r.service));
			try {
				put(list);
			} catch {
				for (const name of new Set(list.map((r) => r.service)))
					attempt(`${part} of ${name}`, () => put(list.filter((r) => r.service === name)), name);
			}
		};

		// Settings, uplinks, nodes: everything else leans on them.
		attempt('settings', () => {
			if (sameRow({ ...e.settings, heartbeat_ns: 0n }, cache.settings)) return;
			store.settings.set({ ...e.settings, heartbeat_ns: store.now() });
			cache.settings = { ...e.settings, heartbeat_ns: 0n };
			rowsWritten++;
		});
		const setChanged = <K, V extends object | number>(
			part: string,
			rowStore: RowStore<K, V>,
			have: Map<K, V>,
			want: ReadonlyMap<K, V>,
		) =>
			attempt(part, () => {
				const rows: [K, V][] = [];
				for (const [key, row] of want) {
					const old = have.get(key);
					if (old === undefined || (typeof row === 'object' ? !sameRow(row, old as object) : row !== old))
						rows.push([key, row]);
				}
				if (rows.length === 0) return;
				rowStore.setMany(rows);
				for (const [key, row] of rows) have.set(key, row);
				rowsWritten += rows.length;
			});
		attempt('own addresses', () => {
			const rows = [...e.ownAddresses].filter((a) => !cache.own.has(a));
			if (rows.length === 0) return;
			store.ownAddresses.setMany(rows.map((a) => [a, 1] as const));
			for (const a of rows) cache.own.add(a);
			rowsWritten += rows.length;
		});
		setChanged('nodes', store.nodes, cache.nodes, e.nodes);
		setChanged('vteps', store.vteps, cache.vteps, e.vteps);
		setChanged('uplinks', store.uplinks, cache.uplinks, e.uplinks);
		for (const part of overlay) setChanged(part.name, part.rows, part.cache, part.wanted(e.overlay));
		for (const vtep of e.vteps.keys()) orphans.delete(vtep);
		// Before the backends whose rows say that it is to be asked.
		attempt('on-link prefixes', () => {
			const rows = [...e.onLink].filter(([id, [, row]]) => {
				const old = cache.onLink.get(id);
				return old === undefined || !sameRow(row, old[1]);
			});
			if (rows.length === 0) return;
			store.onLink.setMany(rows.map(([, r]) => r));
			for (const [id, r] of rows) cache.onLink.set(id, r);
			rowsWritten += rows.length;
		});

		const changed = [...e.services.entries()].filter(([name, s]) => applied.get(name) !== s);
		const removed = [...applied.keys()].filter((name) => !e.services.has(name));

		// Backends: what this node delivers to before what it sends to.
		{
			const local: { service: string; key: string; row: LocalBackendRow }[] = [];
			let rows: { service: string; key: number; row: BackendRow }[] = [];
			for (const [service, s] of changed)
				for (const [mac, row] of s.localBackends) {
					const old = cache.local.get(mac);
					if (!old || !sameRow(row, old)) local.push({ service, key: mac, row });
				}
			writeRows('local backends', store.localBackends, local, (key, row) => cache.local.set(key, row));
			const flush = () => {
				writeRows('backends', store.backends, rows, (key, row) => cache.backends.set(key, row));
				rows = [];
			};
			for (const [service, s] of changed) {
				for (const b of s.backends) {
					if (orphans.size > 0) orphans.delete(b.mac);
					if (!cache.backends.holds(b)) rows.push({ service, key: b.index, row: b.row });
				}
				// A full sync in parts, for rows of 100 000 at once would be the agent's greatest need of memory.
				if (rows.length >= ROWS_AT_ONCE) flush();
			}
			flush();
		}

		// Which backends go in this run: a transition need not remember them.
		const staying = new Set<number>();
		if (removed.length > 0 || changed.some(([name]) => applied.has(name)))
			for (const [name, s] of changed) if (!failed.has(name)) for (const b of s.backends) staying.add(b.macCode);
		const goingBackends: BackendEntry[] = [];
		const goingLocal: string[] = [];
		const leavers = (old: ServiceEntries, next: ServiceEntries | undefined) => {
			for (const b of old.backends) if (!staying.has(b.macCode)) goingBackends.push(b);
			const kept = new Set(next?.localBackends.map(([mac]) => mac));
			for (const [mac] of old.localBackends) if (!kept.has(mac)) goingLocal.push(mac);
		};
		for (const [name, s] of changed) {
			const old = applied.get(name);
			if (old && !failed.has(name)) leavers(old, s);
		}
		for (const name of removed) leavers(applied.get(name) as ServiceEntries, undefined);
		const going = new Set(goingBackends.map((b) => b.index));
		const known = isKnown(going);

		const { FRONTEND_REHASHED, FRONTEND_TRACKED, FRONTEND_TRACK_ALWAYS, FRONTEND_TRACK_NONE } = FrontendFlag;
		// `tracking: none` ends before its tables change: they are at rest, and what changes now is a transition at once.
		for (const [service, s] of changed)
			for (const f of s.frontends) {
				const old = cache.frontends.get(f.index);
				if (old === undefined || (old.flags & ~f.row.flags & FRONTEND_TRACK_NONE) === 0) continue;
				const row = { ...old, flags: old.flags & ~FRONTEND_TRACK_NONE };
				attempt(
					`tracking of ${service}`,
					() => {
						store.frontends.setMany([[f.index, row]]);
						cache.frontends.set(f.index, row);
						rowsWritten++;
					},
					service,
				);
			}

		// Tables.
		const clockNs = store.now();
		const todo: { service: string; spec: TableSpec }[] = [];
		for (const [service, s] of changed) {
			if (failed.has(service)) continue;
			for (const spec of s.tables) {
				const state = tables.get(spec.id);
				if (state?.spec && sameTable(state.spec, spec)) state.spec = spec;
				else todo.push({ service, spec });
			}
		}
		const refresh = (id: number, mask: number) => {
			// The programs learn of a larger array here, before any of its slots differs from the one it inherits.
			const index = id >> 1;
			const row = cache.frontends.get(index);
			if (!row) return;
			for (const f of [0, 1] as const) {
				if (row.tables[f].table !== id || row.tables[f].mask === mask) continue;
				const ref = { table: id, mask };
				store.setTableRef(index, f === 0 ? 4 : 6, ref);
				const next: [TableRef, TableRef] = [row.tables[0], row.tables[1]];
				next[f] = ref;
				cache.frontends.set(index, { ...(cache.frontends.get(index) as FrontendRow), tables: next });
				rowsWritten++;
			}
		};
		const split = (spec: TableSpec) => {
			// IPv6 leaves the table that it shared with IPv4: it begins as a copy, so that no flow moves.
			const index = spec.frontend;
			const row = cache.frontends.get(index);
			const from = 2 * index;
			if (!row || row.tables[1].table !== from || spec.id === from) return;
			const slots = store.tables.read(from);
			if (!slots) return;
			store.tables.create([[spec.id, slots]]);
			if (store.tables.hasTransitions(from)) {
				const rows = store.tables.edit(from, (t) => Array.from({ length: t.size }, (_, i) => t.transition(i)));
				store.tables.edit(spec.id, (t) => {
					for (let i = 0; i < rows.length; i++) {
						const r = rows[i];
						if (r) t.setTransition(i, r);
					}
				});
			}
			tables.set(spec.id, { size: slots.length });
			if (restless.has(from)) restless.set(spec.id, 0n);
			const ref = { table: spec.id, mask: slots.length - 1 };
			store.setTableRef(index, 6, ref);
			cache.frontends.set(index, { ...row, tables: [row.tables[0], ref] });
		};
		// Before IPv4's half changes.
		for (const { service, spec } of todo)
			if (spec.family === 6 && !tables.has(spec.id)) attempt(`table of ${service}`, () => split(spec), service);
		const writeTable = (spec: TableSpec, slots: Uint32Array, fresh: [number, Uint32Array][]) => {
			const state = tables.get(spec.id);
			const clock = { nowNs: clockNs, windowNs: spec.windowNs };
			if (!state) {
				if (!spec.fromKernel || spec.toKernel || !spec.tracked) {
					fresh.push([spec.id, spec.toKernel ? new Uint32Array(slots.length).fill(REF_KERNEL) : slots]);
					return;
				}
				store.tables.create([[spec.id, slots]]);
				store.tables.edit(spec.id, (t) => startFromKernel(t, clock));
				tables.set(spec.id, { size: slots.length, spec });
				restless.set(spec.id, clockNs + spec.windowNs);
				return;
			}
			if (slots.length > state.size && !spec.toKernel) {
				store.tables.grow(spec.id, slots.length);
				state.size = slots.length;
				refresh(spec.id, slots.length - 1);
			}
			const done = store.tables.edit(spec.id, (t) =>
				!spec.tracked
					? replaceSlots(t, spec.toKernel ? Uint32Array.of(REF_KERNEL) : slots)
					: spec.toKernel
						? leaveToKernel(t, clock, known)
						: applySlots(t, slots, clock, known),
			);
			slotsChanged += done.changed;
			if (done.moving && (done.changed > 0 || !restless.has(spec.id))) restless.set(spec.id, clockNs + spec.windowNs);
			// The next settle() finds it at rest, and gives its transitions back.
			if (!spec.tracked && store.tables.hasTransitions(spec.id)) restless.set(spec.id, clockNs);
			state.spec = spec;
		};
		const total = todo.reduce((n, t) => n + t.spec.size, 0);
		const compute = (chunk: typeof todo): Promise<Uint32Array[]> | Uint32Array[] => {
			const jobs = chunk.map((t) => ({ size: t.spec.size, members: t.spec.members }));
			return pool && total >= POOL_FROM_SLOTS ? pool.run(jobs) : jobs.map((j) => maglev(j.size, j.members));
		};
		const big = pool !== undefined && total >= POOL_FROM_SLOTS;
		/** Workers are never without a chunk to go on with. */
		const ahead: (Promise<Uint32Array[]> | Uint32Array[])[] = [];
		let asked = 0;
		for (let at = 0; at < todo.length; at += CHUNK) {
			const chunk = todo.slice(at, at + CHUNK);
			for (; asked < todo.length && ahead.length < (big ? CHUNKS_AHEAD : 1); asked += CHUNK)
				ahead.push(compute(todo.slice(asked, asked + CHUNK)));
			const results = await (ahead.shift() as (typeof ahead)[number]);
			tablesComputed += chunk.length;
			// One wait of the kernel's for the chunk, not one a table.
			attempt('transitions of tables', () =>
				store.tables.prepareTransitions?.(
					chunk.filter((c) => c.spec.tracked && !failed.has(c.service) && tables.has(c.spec.id)).map((c) => c.spec.id),
				),
			);
			const fresh: [number, Uint32Array][] = [];
			const freshOf: typeof todo = [];
			for (let i = 0; i < chunk.length; i++) {
				const { service, spec } = chunk[i];
				if (failed.has(service)) continue;
				const before = fresh.length;
				attempt(`table of ${service}`, () => writeTable(spec, results[i], fresh), service);
				if (fresh.length > before) freshOf.push(chunk[i]);
			}
			const note = (i: number) => tables.set(fresh[i][0], { size: fresh[i][1].length, spec: freshOf[i].spec });
			try {
				if (fresh.length > 0) store.tables.create(fresh);
				for (let i = 0; i < fresh.length; i++) note(i);
			} catch {
				for (let i = 0; i < fresh.length; i++)
					if (attempt(`table of ${freshOf[i].service}`, () => store.tables.create([fresh[i]]), freshOf[i].service))
						note(i);
			}
			pool?.done(results);
		}

		// Frontends, and who may dial them.
		/** Whether records of `tracking: always` hold, which is no more. */
		const isTracked = (f: FrontendSpec): boolean =>
			cache.untracked.has(f.index) && (f.row.flags & (FRONTEND_TRACK_ALWAYS | FRONTEND_TRACK_NONE)) === 0;
		const rowOf = (f: FrontendSpec): FrontendRow => ({
			...f.row,
			flags:
				f.row.flags | (cache.rehashes.has(f.index) ? FRONTEND_REHASHED : 0) | (isTracked(f) ? FRONTEND_TRACKED : 0),
			generation: trackedGeneration(cache.frontends.get(f.index), f.row.flags, clockNs),
			tables: [
				{ table: f.table4, mask: f.table4 === 0 ? 0 : (tables.get(f.table4)?.size ?? 1) - 1 },
				{ table: f.table6, mask: f.table6 === 0 ? 0 : (tables.get(f.table6)?.size ?? 1) - 1 },
			],
		});
		{
			const lists = [
				['allow list', store.allow, cache.allow, 'allow'],
				['deny list', store.deny, cache.deny, 'deny'],
			] as const;
			for (const [part, rowStore, have, which] of lists) {
				const rows = changed.flatMap(([service, s]) =>
					s[which].filter((k) => !have.has(aclId(k))).map((key) => ({ service, key, row: 1 })),
				);
				writeRows(part, rowStore, rows, (key) => have.set(aclId(key), key));
			}
			const rows: { service: string; key: number; row: FrontendRow }[] = [];
			for (const [service, s] of changed) {
				if (failed.has(service)) continue;
				for (const f of s.frontends) {
					const old = cache.frontends.get(f.index);
					// What open flows are hashed by is known before others are hashed differently.
					if (
						old &&
						isRehash(old.flags, f.row.flags) &&
						!attempt(`affinity of ${service}`, () => beginRehash(f.index, old, f.row.window_ns), service)
					)
						break;
					if (
						old &&
						isUntracking(old.flags, f.row.flags) &&
						!attempt(`tracking of ${service}`, () => endTracking(f.index), service)
					)
						break;
					const row = rowOf(f);
					if (old) {
						attempt(
							`frontend of ${service}`,
							() => {
								for (const i of [0, 1] as const)
									if (!sameRef(old.tables[i], row.tables[i])) {
										store.setTableRef(f.index, i === 0 ? 4 : 6, row.tables[i]);
										rowsWritten++;
									}
								cache.frontends.set(f.index, { ...old, tables: row.tables, generation: row.generation });
								// Known before the flag that has records made with it.
								if (row.generation !== old.generation)
									store.frontends.setMany([[f.index, cache.frontends.get(f.index) as FrontendRow]]);
							},
							service,
						);
						const { tables: _a, ...rest } = row;
						if (sameRow(rest, old)) continue;
					}
					rows.push({ service, key: f.index, row });
				}
			}
			writeRows('frontends', store.frontends, rows, (key, row) => cache.frontends.set(key, row));
			const tracked = [...cache.untracked.keys()].filter((k) => {
				const f = cache.frontends.get(k);
				return f !== undefined && (f.flags & FRONTEND_TRACKED) === 0;
			});
			if (tracked.length > 0)
				attempt('untracked', () => {
					store.untracked.deleteMany(tracked);
					for (const k of tracked) cache.untracked.delete(k);
				});
		}

		// Ports. Those of a service that failed stay as they are.
		const exactWanted = new Map<string, readonly [ExactKey, number]>();
		for (const [name, s] of e.services)
			for (const x of (failed.has(name) ? applied.get(name)?.exact : s.exact) ?? []) exactWanted.set(exactId(x[0]), x);
		attempt('exact frontends', () => {
			const rows = [...exactWanted].filter(([id, [, index]]) => cache.exact.get(id)?.[1] !== index);
			if (rows.length === 0) return;
			store.exactFrontends.setMany(rows.map(([, r]) => r));
			for (const [id, r] of rows) cache.exact.set(id, r);
			rowsWritten += rows.length;
		});
		const portsWanted = new Map(e.ports);
		if (failed.size > 0)
			for (const [key, value] of portsWanted) {
				const index = value & PORT_FRONTEND_MASK;
				if (index !== 0 && !cache.frontends.has(index)) portsWanted.delete(key);
			}
		setChanged('ports', store.ports, cache.ports, portsWanted);

		// Deletes, in reverse.
		const drop = <K>(part: string, keys: readonly K[], act: (keys: readonly K[]) => void): boolean =>
			keys.length === 0 ||
			attempt(part, () => {
				act(keys);
				rowsDeleted += keys.length;
			});
		// A service that failed may still be what the maps say it was: keep every row until it is right again.
		if (failed.size === 0 || !first) {
			drop(
				'ports',
				[...cache.ports.keys()].filter((k) => !portsWanted.has(k)),
				(keys) => {
					store.ports.deleteMany(keys);
					for (const k of keys) cache.ports.delete(k);
				},
			);
			drop(
				'exact frontends',
				[...cache.exact.keys()].filter((k) => !exactWanted.has(k)),
				(keys) => {
					store.exactFrontends.deleteMany(keys.map((k) => (cache.exact.get(k) as readonly [ExactKey, number])[0]));
					for (const k of keys) cache.exact.delete(k);
				},
			);
			const goneServices = changed.length > 0 || removed.length > 0 || first;
			if (goneServices) {
				const frontends = new Set<number>();
				const names = new Set<string>();
				const lists = { allow: new Set<string>(), deny: new Set<string>() };
				const wantedTables = new Set<number>();
				const keep = (s: ServiceEntries) => {
					for (const f of s.frontends) {
						frontends.add(f.index);
						names.add(f.key);
						if (f.table4) wantedTables.add(f.table4);
						if (f.table6) wantedTables.add(f.table6);
					}
					for (const k of s.allow) lists.allow.add(aclId(k));
					for (const k of s.deny) lists.deny.add(aclId(k));
				};
				for (const [name, s] of e.services) {
					keep(s);
					const old = failed.has(name) ? applied.get(name) : undefined;
					if (old) keep(old);
				}
				drop(
					'frontends',
					[...cache.frontends.keys()].filter((k) => !frontends.has(k)),
					(keys) => {
						store.frontends.deleteMany(keys);
						for (const k of keys) cache.frontends.delete(k);
						store.clearCounters('frontends', keys);
					},
				);
				for (const part of ['rehashes', 'untracked'] as const)
					drop(
						part,
						[...cache[part].keys()].filter((k) => !frontends.has(k)),
						(keys) => {
							store[part].deleteMany(keys);
							for (const k of keys) cache[part].delete(k);
						},
					);
				for (const which of ['allow', 'deny'] as const)
					drop(
						`${which} list`,
						[...cache[which].keys()].filter((k) => !lists[which].has(k)),
						(keys) => {
							store[which].deleteMany(keys.map((k) => cache[which].get(k) as AclKey));
							for (const k of keys) cache[which].delete(k);
						},
					);
				drop(
					'tables',
					[...tables.keys()].filter((k) => !wantedTables.has(k)),
					(keys) => {
						store.tables.delete(keys);
						for (const k of keys) {
							tables.delete(k);
							restless.delete(k);
						}
					},
				);
				for (const [key, { index }] of [...ids.frontends.entries()])
					if (!names.has(key) && !cache.frontends.has(index)) {
						ids.frontends.release(key, now);
						ids.tables.delete(index);
						const at = ids.found.findIndex((f) => f.index === index);
						if (at >= 0) ids.found.splice(at, 1);
					}
			}
			// Backends: the row keeps its generation, so that a reference to it never comes to mean another.
			const tombs: { readonly mac: string; readonly index: number; readonly generation: number }[] =
				goingBackends.slice();
			const localGone = goingLocal.slice();
			for (const [key, until] of orphans) {
				const id = ids.backends.get(key);
				const row = id && cache.backends.get(id.index);
				if (!id || !row) continue;
				if (now < until) {
					wakeAtMs = Math.min(wakeAtMs ?? until, until);
					if (first && row.state !== BackendStates.BACKEND_DRAINING)
						attempt('orphans', () => {
							const next = { ...row, state: BackendStates.BACKEND_DRAINING };
							store.backends.setMany([[id.index, next]]);
							cache.backends.set(id.index, next);
							rowsWritten++;
						});
				} else {
					tombs.push({ mac: key, index: id.index, generation: row.generation });
					localGone.push(key);
					orphans.delete(key);
				}
			}
			drop('local backends', first ? [...localGone, ...strayLocals(e)] : localGone, (keys) => {
				store.localBackends.deleteMany(keys);
				for (const k of keys) cache.local.delete(k);
			});
			drop(
				'on-link prefixes',
				[...cache.onLink.keys()].filter((k) => !e.onLink.has(k)),
				(keys) => {
					store.onLink.deleteMany(keys.map((k) => (cache.onLink.get(k) as readonly [OnLinkKey, OnLinkRow])[0]));
					for (const k of keys) cache.onLink.delete(k);
				},
			);
			drop('backends', tombs, (list) => {
				const rows = list.map(
					(b) =>
						[
							b.index,
							{ state: BackendStates.BACKEND_NONE, generation: b.generation, mac: '00:00:00:00:00:00', node: 0 },
						] as const,
				);
				store.backends.setMany(rows);
				store.clearCounters(
					'backends',
					list.map((b) => b.index),
				);
				for (const [index, row] of rows) cache.backends.set(index, row);
				for (const b of list) ids.backends.release(b.mac, now);
			});
			const forgotten = ids.backends.forget(now, FORGET_AFTER_MS);
			drop('freed backends', forgotten, (keys) => {
				store.backends.deleteMany(keys);
				for (const k of keys) cache.backends.delete(k);
			});
			for (const part of overlay.toReversed()) {
				const wanted = part.wanted(e.overlay);
				drop(
					part.name,
					[...part.cache.keys()].filter((k) => !wanted.has(k)),
					(keys) => {
						part.rows.deleteMany(keys);
						for (const k of keys) part.cache.delete(k);
					},
				);
			}
			const used = new Set<number>();
			for (const key of orphans.keys()) {
				const id = ids.backends.get(key);
				const row = id && cache.backends.get(id.index);
				if (row) used.add(row.node);
			}
			const stays = (vtep: string, index: number): boolean => {
				if (e.vteps.has(vtep) || used.has(index)) return true;
				const until = orphans.get(vtep);
				if (until === undefined || now >= until) return false;
				wakeAtMs = Math.min(wakeAtMs ?? until, until);
				return true;
			};
			const vteps = [...cache.vteps].filter(([vtep, index]) => !stays(vtep, index));
			drop('vteps', vteps, (list) => {
				store.vteps.deleteMany(list.map(([v]) => v));
				for (const [v] of list) cache.vteps.delete(v);
			});
			const nodes = [...cache.nodes].filter(([index, row]) => !e.nodes.has(index) && !stays(row.vtep, index));
			drop('nodes', nodes, (list) => {
				store.nodes.deleteMany(list.map(([i]) => i));
				for (const [i, row] of list) {
					cache.nodes.delete(i);
					ids.nodes.release(row.vtep, now);
					orphans.delete(row.vtep);
				}
			});
			drop(
				'uplinks',
				[...cache.uplinks.keys()].filter((k) => !e.uplinks.has(k)),
				(keys) => {
					store.uplinks.deleteMany(keys);
					for (const k of keys) cache.uplinks.delete(k);
				},
			);
			drop(
				'own addresses',
				[...cache.own].filter((a) => !e.ownAddresses.has(a)),
				(keys) => {
					store.ownAddresses.deleteMany(keys);
					for (const k of keys) cache.own.delete(k);
				},
			);
		}

		for (const [name, s] of changed) if (!failed.has(name)) applied.set(name, s);
		for (const name of removed) applied.delete(name);
		if (failed.size === 0) first = false;
		return {
			rowsWritten,
			rowsDeleted,
			tablesComputed,
			slotsChanged,
			durationMs: performance.now() - started,
			errors,
			...(wakeAtMs === undefined ? {} : { wakeAtMs }),
		};
	}

	function beginRehash(index: number, old: FrontendRow, windowNs: bigint): void {
		const nowNs = store.now();
		// The programs write to it too.
		const row: Transition = rehash(old.flags, store.rehashes.get(index), { nowNs, windowNs });
		store.rehashes.setMany([[index, row]]);
		cache.rehashes.set(index, row.since_ns);
	}
	function endTracking(index: number): void {
		const nowNs = store.now();
		store.untracked.setMany([[index, { since_ns: nowNs, needed_ns: nowNs, previous: REF_NONE, generation: 0 }]]);
		cache.untracked.set(index, nowNs);
	}
	/** Frontends whose last flow with another hash, or elsewhere than its slot says, has been silent for a window. */
	function settleFrontends(part: 'rehashes' | 'untracked', flag: number, nowNs: bigint): void {
		for (const [index, since] of cache[part]) {
			const f = cache.frontends.get(index);
			if (f === undefined || nowNs - since <= f.window_ns) continue;
			const row = store[part].get(index);
			if (row !== undefined && !isOver(row, { nowNs, windowNs: f.window_ns })) continue;
			const next = { ...f, flags: f.flags & ~flag };
			store.frontends.setMany([[index, next]]);
			cache.frontends.set(index, next);
			store[part].deleteMany([index]);
			cache[part].delete(index);
		}
	}

	/** Local rows of an earlier agent whose backend has no row at all. */
	function strayLocals(e: Entries): string[] {
		const wanted = new Set<string>();
		for (const s of e.services.values()) for (const [mac] of s.localBackends) wanted.add(mac);
		return [...cache.local.keys()].filter((mac) => !wanted.has(mac) && !orphans.has(mac));
	}

	return {
		reconcile,
		settle() {
			const nowNs = store.now();
			settleFrontends('rehashes', FrontendFlag.FRONTEND_REHASHED, nowNs);
			settleFrontends('untracked', FrontendFlag.FRONTEND_TRACKED, nowNs);
			let settled = 0;
			let moving = 0;
			const stable: number[] = [];
			for (const [id, at] of restless) {
				const windowNs = windowOf(id);
				if (nowNs < at) {
					moving++;
					continue;
				}
				const done = store.tables.edit(id, (t) => settle(t, { nowNs, windowNs }));
				settled += done.settled;
				moving += done.moving;
				if (done.moving === 0) {
					restless.delete(id);
					stable.push(id);
				} else {
					const step = windowNs / 16n;
					restless.set(id, nowNs + (step < 5_000_000_000n ? step : 5_000_000_000n));
				}
			}
			if (stable.length > 0) store.tables.dropTransitions(stable);
			return { settled, moving };
		},
		moving() {
			const out = new Map<number, number>();
			for (const id of restless.keys()) {
				const slots = store.tables.read(id);
				if (slots) out.set(id >> 1, (out.get(id >> 1) ?? 0) + countMoving(slots));
			}
			return out;
		},
		leave() {
			const errors: PartError[] = [];
			let frontends = 0;
			const nowNs = store.now();
			const known = isKnown(new Set());
			for (const [index, row] of cache.frontends) {
				if ((row.flags & FrontendFlag.FRONTEND_KERNEL) === 0) continue;
				frontends++;
				for (const { table } of row.tables) {
					if (table === 0) continue;
					try {
						store.tables.edit(table, (t) => leaveToKernel(t, { nowNs, windowNs: row.window_ns }, known));
						restless.set(table, nowNs + row.window_ns);
						const state = tables.get(table);
						if (state) state.spec = undefined;
					} catch (error) {
						errors.push({ part: `table of frontend ${index}`, code: codeOf(error), message: sentence(error) });
					}
				}
			}
			return { frontends, errors };
		},
	};

	function windowOf(table: number): bigint {
		return tables.get(table)?.spec?.windowNs ?? cache.frontends.get(table >> 1)?.window_ns ?? 0n;
	}
}

/** The reference of a backend's row. */
export function refOfRow(index: number, row: BackendRow): number {
	return refOf(index, row.generation);
}
