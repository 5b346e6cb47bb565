import { readFileSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import {
	type BpfMap,
	MapOfMaps,
	type Mapping,
	NotSupportedError,
	RingBuffer,
	TypedMap,
	type Codec as WireCodec,
} from 'libbpf-ts';
import type {
	AclKey,
	Counters,
	ExactKey,
	FlowRow,
	MeshStore,
	OnLinkKey,
	OpenTable,
	RowStore,
	TableStore,
	TransitionRow,
	VipStore,
} from '../mesh/store.js';
import {
	type AclKey as AclKeyRow,
	aclKeyCodec,
	type Backend,
	backendCodec,
	backendCountersCodec,
	type Encryption,
	type Event,
	encryptionCodec,
	eventCodec,
	type Frontend,
	frontendCodec,
	frontendKeyCodec,
	type Held,
	heldCodec,
	type LocalBackend,
	localBackendCodec,
	MAX_NETNS_NETWORKS,
	MAX_UPLINKS,
	macKeyCodec,
	type NameService as NameServiceRow,
	type Node,
	nameServiceCodec,
	networkCodec,
	nodeCodec,
	onLinkCodec,
	onLinkKeyCodec,
	overlayEndpointCodec,
	overlayKeyCodec,
	overlayPortCodec,
	overlaySliceKeyCodec,
	packetsBytesCodec,
	RevnatState,
	revnatCodec,
	revnatKeyCodec,
	type Settings,
	settingsCodec,
	transitionCodec,
	type Uplink,
	uplinkCodec,
	VERDICT_ROWS,
	VERDICTS,
	type VipBackend,
	vipBackendCodec,
	vipCodec,
	vipKeyCodec,
} from './layout.gen.js';
import { type Codec, getIp, getIp4, putIp, putIp4 } from './text.js';

const ARRAY = 2;
const MMAPABLE = 1 << 10;
const INNER_MAP = 1 << 12;
const TCP = 6;
const IPV4_MAPPED_BITS = 96;
const ACL_BITS = 32;
/** Rows read in one batch. */
const CHUNK = 4096;
/** How long a count of a map that the programs fill is good for, in ms: an LRU of half a million takes a while to count. */
const COUNT_AGE_MS = 10_000;

function rowError(message: string): Error {
	return Object.assign(new RangeError(message), { code: 'BAD_ROW' });
}

/** A layout codec as libbpf-ts wants it; one DataView is kept, as maps encode into the same buffer again and again. */
function wire<T>(c: Pick<Codec<T>, 'size' | 'encode' | 'decode'>): WireCodec<T> {
	let last: Uint8Array | undefined;
	let view: DataView = new DataView(new ArrayBuffer(0));
	const of = (b: Uint8Array): DataView => {
		if (b !== last) {
			view = new DataView(b.buffer, b.byteOffset, b.byteLength);
			last = b;
		}
		return view;
	};
	return {
		size: c.size,
		encode: (row, into, off = 0) => c.encode(row, of(into), off),
		decode: (from, off = 0) => c.decode(of(from), off),
	};
}

const u32: WireCodec<number> = wire({
	size: 4,
	encode: (n: number, v, at) => v.setUint32(at, n, true),
	decode: (v, at) => v.getUint32(at, true),
});
const u8: WireCodec<number> = wire({
	size: 1,
	encode: (n: number, v, at) => v.setUint8(at, n),
	decode: (v, at) => v.getUint8(at),
});
const ip: WireCodec<string> = wire({ size: 16, encode: putIp, decode: getIp });
const ip4: WireCodec<string> = wire({ size: 4, encode: putIp4, decode: getIp4 });
const mac: WireCodec<string> = wire({
	size: macKeyCodec.size,
	encode: (s: string, v, at) => macKeyCodec.encode({ mac: s }, v, at),
	decode: (v, at) => macKeyCodec.decode(v, at).mac,
});
const u64: WireCodec<bigint> = wire({
	size: 8,
	encode: (n: bigint, v, at) => v.setBigUint64(at, n, true),
	decode: (v, at) => v.getBigUint64(at, true),
});
const exactKey: WireCodec<ExactKey> = wire(frontendKeyCodec);
/** struct netns_networks: 0 ends the list. */
const networkList: WireCodec<readonly number[]> = wire({
	size: 4 * MAX_NETNS_NETWORKS,
	encode: (list: readonly number[], v, at) => {
		if (list.length > MAX_NETNS_NETWORKS)
			throw rowError(`${list.length} networks of a namespace: expected at most ${MAX_NETNS_NETWORKS}`);
		for (let i = 0; i < MAX_NETNS_NETWORKS; i++) v.setUint32(at + 4 * i, list[i] ?? 0, true);
	},
	decode: (v, at) => {
		const out: number[] = [];
		for (let i = 0; i < MAX_NETNS_NETWORKS; i++) {
			const vni = v.getUint32(at + 4 * i, true);
			if (vni === 0) break;
			out.push(vni);
		}
		return out;
	},
});

/** The prefix with its host bits zero, as the trie's key. */
export function aclRow(key: AclKey): AclKeyRow {
	const slash = key.prefix.indexOf('/');
	const addr = slash < 0 ? key.prefix : key.prefix.slice(0, slash);
	const v = new DataView(new ArrayBuffer(16));
	putIp(addr, v, 0);
	const four = !addr.includes(':');
	const most = four ? 32 : 128;
	const bits = slash < 0 ? most : Number(key.prefix.slice(slash + 1));
	if (!Number.isInteger(bits) || bits < 0 || bits > most || key.prefix.endsWith('/'))
		throw rowError(
			`prefix ${JSON.stringify(key.prefix)}: expected a length of 0 to ${most}, as 10.0.0.0/8 or fd00::/8`,
		);
	const length = four ? IPV4_MAPPED_BITS + bits : bits;
	for (let i = 0; i < 16; i++) {
		const keep = Math.min(8, Math.max(0, length - i * 8));
		v.setUint8(i, v.getUint8(i) & (0xff00 >> keep));
	}
	return { prefixlen: ACL_BITS + length, acl: key.acl, addr: getIp(v, 0) };
}

export function aclKey(row: AclKeyRow): AclKey {
	const length = row.prefixlen - ACL_BITS;
	const four = !row.addr.includes(':') && length >= IPV4_MAPPED_BITS;
	return { acl: row.acl, prefix: `${row.addr}/${four ? length - IPV4_MAPPED_BITS : length}` };
}

const overlayKey: WireCodec<string> = (() => {
	const c = wire(overlayKeyCodec);
	return {
		size: c.size,
		encode(k, into, off) {
			const [vni, addr] = k.split(' ');
			c.encode({ vni: Number(vni), addr }, into, off);
		},
		decode(b, off) {
			const { vni, addr } = c.decode(b, off);
			return `${vni} ${addr}`;
		},
	};
})();

/** The same trie key as those of `allow` and `deny`, with the VNI in the list's place. */
const overlaySliceKey: WireCodec<string> = (() => {
	const c = wire(overlaySliceKeyCodec);
	return {
		size: c.size,
		encode(k, into, off) {
			const [vni, prefix] = k.split(' ');
			const { prefixlen, acl, addr } = aclRow({ acl: Number(vni), prefix });
			c.encode({ prefixlen, vni: acl, addr }, into, off);
		},
		decode(b, off) {
			const { prefixlen, vni, addr } = c.decode(b, off);
			return `${vni} ${aclKey({ prefixlen, acl: vni, addr }).prefix}`;
		},
	};
})();

const acl: WireCodec<AclKey> = (() => {
	const c = wire(aclKeyCodec);
	return {
		size: c.size,
		encode: (k, into, off) => c.encode(aclRow(k), into, off),
		decode: (b, off) => aclKey(c.decode(b, off)),
	};
})();

const onLinkKey: WireCodec<OnLinkKey> = (() => {
	const c = wire(onLinkKeyCodec);
	return {
		size: c.size,
		encode(k, into, off) {
			const { prefixlen, addr } = aclRow({ acl: 0, prefix: k.prefix });
			c.encode({ prefixlen, list: k.list, addr }, into, off);
		},
		decode(b, off) {
			const { prefixlen, list, addr } = c.decode(b, off);
			return { list, prefix: aclKey({ prefixlen, acl: 0, addr }).prefix };
		},
	};
})();

/** Rows in one batch of writing. */
const WRITE_CHUNK = 8192;

/** Encodes and writes some rows at a time, so that 100 000 of them leave no garbage of their size. */
function writeRows<K, V>(map: TypedMap<K, V>, rows: Iterable<readonly [K, V]>, check?: (key: K) => void): void {
	const { raw, key, value } = map;
	const room = Array.isArray(rows) ? Math.min(WRITE_CHUNK, Math.max(1, rows.length)) : WRITE_CHUNK;
	const keys = new Uint8Array(new ArrayBuffer(room * key.size));
	const values = new Uint8Array(new ArrayBuffer(room * value.size));
	let n = 0;
	const flush = () => {
		if (n === 0) return;
		try {
			raw.updateBatch(keys, values, n);
		} catch (e) {
			if (!(e instanceof NotSupportedError)) throw e;
			for (let i = 0; i < n; i++)
				raw.update(
					keys.subarray(i * key.size, (i + 1) * key.size),
					values.subarray(i * value.size, (i + 1) * value.size),
				);
		}
		n = 0;
	};
	for (const [k, v] of rows) {
		check?.(k);
		key.encode(k, keys, n * key.size);
		value.encode(v, values, n * value.size);
		if (++n === room) flush();
	}
	flush();
}

/** A hash or trie: rows as they are. */
function hashStore<K, V>(map: TypedMap<K, V>): RowStore<K, V> {
	return {
		get: (key) => map.get(key),
		entries: () => map.entries(CHUNK),
		setMany: (rows) => writeRows(map, rows),
		deleteMany: (keys) => void map.deleteMany(keys),
	};
}

/** A trie's lookup answers with the longest prefix, which is not the row that was asked for. */
function trieStore<K, V>(map: TypedMap<K, V>): RowStore<K, V> {
	const base = hashStore(map);
	const bytes = (key: K): string => {
		const b = new Uint8Array(map.key.size);
		map.key.encode(key, b, 0);
		return Buffer.from(b).toString('hex');
	};
	return {
		...base,
		get(key) {
			if (map.get(key) === undefined) return undefined;
			const wanted = bytes(key);
			for (const [k, v] of map.entries(CHUNK)) if (bytes(k) === wanted) return v;
			return undefined;
		},
	};
}

/**
 * An array: index → row, all zero is no row. Written by batches rather than through mmap, since the kernel copies a row
 * in words while a codec writes byte by byte under the programs' eyes; read whole through mmap where it can be.
 */
class ArrayRows<V> implements RowStore<number, V> {
	/** No row at or above it was ever seen: counters need not be read beyond. */
	top = 0;
	private readonly stride: number;

	constructor(
		readonly map: TypedMap<number, V>,
		private readonly value: WireCodec<V>,
	) {
		this.stride = Math.ceil(value.size / 8) * 8;
		this.top = [...this.indexes()].at(-1) ?? -1;
		this.top++;
	}

	private readonly one = new Uint8Array(new ArrayBuffer(256));
	private readonly key = new Uint32Array(new ArrayBuffer(4));

	private check(index: number): void {
		if (!Number.isInteger(index) || index < 0 || index >= this.map.maxEntries)
			throw rowError(`write map ${this.map.name}: index ${index} is not within its ${this.map.maxEntries} rows`);
	}

	get(index: number): V | undefined {
		if (!Number.isInteger(index) || index < 0 || index >= this.map.maxEntries) return undefined;
		this.key[0] = index;
		const bytes = this.one.subarray(0, this.value.size);
		if (!this.map.raw.lookup(new Uint8Array(this.key.buffer), bytes) || bytes.every((b) => b === 0)) return undefined;
		return this.value.decode(bytes);
	}

	/** All rows as bytes, a copy, `stride` apart. */
	private bytes(): Uint8Array {
		const { map } = this;
		if (map.flags & MMAPABLE) {
			using m = map.raw.mmap({ readonly: true });
			return m.bytes.slice();
		}
		const out = new Uint8Array(map.maxEntries * this.stride);
		const n = Math.min(CHUNK, map.maxEntries);
		const cursors = [new Uint8Array(new ArrayBuffer(4)), new Uint8Array(new ArrayBuffer(4))];
		const keys = new Uint8Array(n * 4);
		const vals = new Uint8Array(n * this.value.size);
		let from: Uint8Array | null = null;
		for (let row = 0, turn = 0; row < map.maxEntries; turn ^= 1) {
			const got = map.raw.lookupBatch(from, { cursor: cursors[turn], keys, vals, n });
			for (let i = 0; i < got.n; i++, row++)
				out.set(vals.subarray(i * this.value.size, (i + 1) * this.value.size), row * this.stride);
			if (got.done || got.n === 0) break;
			from = cursors[turn];
		}
		return out;
	}

	private *indexes(bytes = this.bytes()): IterableIterator<number> {
		const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 3);
		const per = this.stride >> 3;
		for (let i = 0; i < this.map.maxEntries; i++) {
			for (let w = 0; w < per; w++) {
				if (words[i * per + w] !== 0n) {
					yield i;
					break;
				}
			}
		}
	}

	*entries(): IterableIterator<[number, V]> {
		const bytes = this.bytes();
		for (const i of this.indexes(bytes)) yield [i, this.value.decode(bytes, i * this.stride)];
	}

	count(): number {
		let n = 0;
		for (const _ of this.indexes()) n++;
		return n;
	}

	setMany(rows: Iterable<readonly [number, V]>): void {
		writeRows(this.map, rows, (i) => {
			this.check(i);
			if (i >= this.top) this.top = i + 1;
		});
	}

	deleteMany(keys: Iterable<number>): void {
		const all = [...keys].filter((i) => Number.isInteger(i) && i >= 0 && i < this.map.maxEntries);
		for (let at = 0; at < all.length; at += CHUNK) {
			const some = Uint32Array.from(all.slice(at, at + CHUNK));
			this.map.raw.updateBatch(new Uint8Array(some.buffer), new Uint8Array(some.length * this.value.size), some.length);
		}
	}
}

/** `uplinks`: the index is part of the interface's number. */
function uplinkStore(rows: ArrayRows<Uplink>): RowStore<number, Uplink> {
	const index = (ifindex: number) => ifindex & (MAX_UPLINKS - 1);
	const get = (ifindex: number) => {
		const row = rows.get(index(ifindex));
		return row?.ifindex === ifindex ? row : undefined;
	};
	return {
		get,
		*entries() {
			for (const [, row] of rows.entries()) yield [row.ifindex, row] as [number, Uplink];
		},
		setMany(list) {
			const all = [...list];
			for (const [ifindex] of all) {
				const there = rows.get(index(ifindex));
				if (there && there.ifindex !== ifindex)
					throw rowError(
						`uplink ${ifindex}: interface ${there.ifindex} has the same last ten bits and is an uplink already: recreate one of the two interfaces`,
					);
			}
			rows.setMany(all.map(([ifindex, row]) => [index(ifindex), row] as const));
		},
		deleteMany: (keys) => rows.deleteMany([...keys].filter((i) => get(i) !== undefined).map(index)),
	};
}

const SLOT_STRIDE = 8;
const TRANSITION_STRIDE = Math.ceil(transitionCodec.size / 8) * 8;
const SLOT_WORDS = SLOT_STRIDE / 4;

/**
 * Before Linux 6.8 every lookup, update and batch entry of an array of maps waits for an RCU grace period (kernel commits
 * "bpf: Remove unnecessary wait from bpf_map_copy_value()" and "… only once for generic_map_update_batch()"). 1000 tables
 * would take half a minute.
 */
function waitsForEachEntry(release: string): boolean {
	const [major, minor] = release.split('.').map(Number);
	return major < 6 || (major === 6 && minor < 8);
}

const SLOW = waitsForEachEntry(release());

const RCU_EXPEDITED = '/sys/kernel/rcu_expedited';

/** Runs `f` while the kernel is asked for expedited grace periods (tens of microseconds), where it waits for many. */
function withShortGracePeriods<T>(f: () => T): T {
	let was: string | undefined;
	try {
		was = readFileSync(RCU_EXPEDITED, 'utf8').trim();
		if (was === '0') writeFileSync(RCU_EXPEDITED, '1');
	} catch {
		was = undefined; // read-only sysfs: it takes longer, and works
	}
	try {
		return f();
	} finally {
		if (was === '0') writeFileSync(RCU_EXPEDITED, '0');
	}
}

/**
 * An array of maps. The kernel waits for a grace period (5-15 ms) at each update or delete of one, but only once for a
 * whole batch; and it has no batch of deletes. So every change is a batch, and what is deleted is replaced by one shared
 * inner map of a single zero row, known by its name.
 */
class Outer {
	private present: Map<number, number> | undefined;
	private none: TypedMap<unknown, unknown> | undefined;

	/**
	 * @param places where somebody may have put something, each once; undefined: the map is new and empty.
	 * The default map has 131 072 places, which takes 0.2 to 1 s to ask, in which the agent does nothing else.
	 */
	constructor(
		readonly map: MapOfMaps<number>,
		private readonly places: (() => Iterable<number>) | undefined,
	) {}

	private quickly<T>(f: () => T): T {
		return SLOW ? withShortGracePeriods(f) : f();
	}

	/** Keys that hold a map of their own, with its id; asked of the kernel once, as no one else writes. */
	get keys(): Map<number, number> {
		if (this.present) return this.present;
		const ids = new Map<number, number[]>();
		for (const [key, id] of this.quickly(() => [...this.read()])) {
			const keys = ids.get(id);
			if (keys) keys.push(key);
			else ids.set(id, [key]);
		}
		this.present = new Map();
		for (const [id, keys] of ids) {
			if (keys.length === 1 && !this.isNone(id)) this.present.set(keys[0], id);
		}
		return this.present;
	}

	private isNone(id: number): boolean {
		using inner = this.map.openById(id);
		return inner === undefined || inner.info().name === NONE;
	}

	private *read(): IterableIterator<[number, number]> {
		// One by one: a batch lookup in an array of maps ends at its first empty place (before Linux 6.15).
		for (const key of this.places?.() ?? []) {
			const id = this.map.getId(key);
			if (id !== undefined) yield [key, id];
		}
	}

	has(key: number): boolean {
		return this.keys.has(key);
	}

	open(key: number): TypedMap<unknown, unknown> | undefined {
		const id = this.keys.get(key);
		return id === undefined ? undefined : this.map.openById(id);
	}

	put(entries: readonly (readonly [number, TypedMap<unknown, unknown>])[]): void {
		if (entries.length === 0) return;
		const keys = this.keys;
		withShortGracePeriods(() => this.map.setMany(entries));
		for (const [key, inner] of entries) keys.set(key, inner.id);
	}

	remove(list: Iterable<number>): void {
		const going = [...new Set(list)].filter((key) => this.has(key));
		if (going.length === 0) return;
		this.none ??= this.map.createInner(1, NONE);
		const { none } = this;
		withShortGracePeriods(() => this.map.setMany(going.map((key) => [key, none] as const)));
		for (const key of going) this.keys.delete(key);
	}

	[Symbol.dispose](): void {
		this.none?.[Symbol.dispose]();
		this.none = undefined;
	}
}
const NONE = 'none';

/** Tables made at once: each holds an open file until it is in the outer map. */
const MADE_AT_ONCE = 256;

/** What the kernel's tables have beyond TableStore. */
export interface KernelTables extends TableStore {
	/** Creates the transitions maps of many tables in one step (one grace period, not one a table). */
	prepareTransitions(tables: Iterable<number>): void;
	dropTransitions(tables: number | Iterable<number>): void;
}

/** Tables: an inner array for each, mapped only while it is read or written, for a mapped array counts as the agent's memory. */
class Tables implements KernelTables {
	readonly slots: Outer;
	readonly transitions: Outer;

	constructor(slots: MapOfMaps<number>, transitions: MapOfMaps<number>, places: (() => Iterable<number>) | undefined) {
		this.slots = new Outer(slots, places);
		// Nothing but a table has any: they go before it and come after it.
		this.transitions = new Outer(transitions, () => this.slots.keys.keys());
	}

	ids(): Iterable<number> {
		return [...this.slots.keys.keys()];
	}

	read(table: number): Uint32Array | undefined {
		using inner = this.slots.open(table);
		if (!inner) return undefined;
		using m = inner.raw.mmap({ readonly: true });
		const from = m.u32;
		const out = new Uint32Array(inner.maxEntries);
		for (let i = 0; i < out.length; i++) out[i] = from[i * SLOT_WORDS];
		return out;
	}

	hasTransitions(table: number): boolean {
		return this.transitions.has(table);
	}

	private make(slots: Uint32Array, size = slots.length): TypedMap<unknown, unknown> {
		const inner = this.slots.map.createInner(size, 'slots');
		using m = inner.raw.mmap();
		const to = m.u32;
		const mask = slots.length;
		if (size === mask) for (let i = 0; i < size; i++) to[i * SLOT_WORDS] = slots[i];
		else for (let i = 0; i < size; i++) to[i * SLOT_WORDS] = slots[i % mask];
		return inner;
	}

	/** `make` for each, then all into the outer map, some at a time. */
	private putAll<T>(
		outer: Outer,
		list: Iterable<T>,
		key: (x: T) => number,
		make: (x: T) => TypedMap<unknown, unknown>,
	): void {
		let some: [number, TypedMap<unknown, unknown>][] = [];
		const flush = () => {
			try {
				outer.put(some);
			} finally {
				for (const [, m] of some) m[Symbol.dispose]();
				some = [];
			}
		};
		try {
			for (const x of list) {
				some.push([key(x), make(x)]);
				if (some.length === MADE_AT_ONCE) flush();
			}
		} finally {
			flush();
		}
	}

	create(tables: Iterable<readonly [number, Uint32Array]>): void {
		const all = [...tables];
		const replaced = all.map(([t]) => t).filter((t) => this.transitions.has(t));
		this.putAll(
			this.slots,
			all,
			([t]) => t,
			([, slots]) => this.make(slots),
		);
		this.transitions.remove(replaced);
	}

	prepareTransitions(tables: Iterable<number>): void {
		const wanted = [...new Set(tables)].filter((t) => this.slots.has(t) && !this.transitions.has(t));
		this.putAll(
			this.transitions,
			wanted,
			(t) => t,
			(t) => {
				using inner = this.slots.open(t);
				return this.transitions.map.createInner(inner?.maxEntries ?? 1, 'transitions');
			},
		);
	}

	grow(table: number, size: number): void {
		const old = this.read(table);
		if (!old) throw rowError(`grow table ${table}: it does not exist`);
		if (size < old.length || size % old.length !== 0)
			throw rowError(`grow table ${table}: ${size} slots are no multiple of its ${old.length}`);
		if (size === old.length) return;
		using oldTransitions = this.transitions.open(table);
		if (oldTransitions) {
			using fresh = this.transitions.map.createInner(size, 'transitions');
			using from = oldTransitions.raw.mmap({ readonly: true });
			using to = fresh.raw.mmap();
			const part = old.length * TRANSITION_STRIDE;
			for (let at = 0; at < size * TRANSITION_STRIDE; at += part) to.bytes.set(from.bytes.subarray(0, part), at);
			// Transitions first: the programs use the lower part of either while the frontend's mask is the old one.
			this.transitions.put([[table, fresh]]);
			// Programs may have stamped the old array meanwhile.
			const needed = (transitionCodec.offsets.needed_ns >> 3) | 0;
			const words = TRANSITION_STRIDE >> 3;
			for (let i = 0; i < size; i++) {
				const was = from.u64[(i % old.length) * words + needed];
				if (was > to.u64[i * words + needed]) Atomics.store(to.u64, i * words + needed, was);
			}
		}
		using inner = this.make(old, size);
		this.slots.put([[table, inner]]);
	}

	edit<T>(table: number, edit: (t: OpenTable) => T): T {
		using inner = this.slots.open(table);
		if (!inner) throw rowError(`edit table ${table}: it does not exist`);
		using open = new MappedTable(table, inner, this);
		return edit(open);
	}

	dropTransitions(tables: number | Iterable<number>): void {
		this.transitions.remove(typeof tables === 'number' ? [tables] : tables);
	}

	delete(tables: Iterable<number>): void {
		const all = [...tables];
		this.transitions.remove(all);
		this.slots.remove(all);
	}

	[Symbol.dispose](): void {
		this.slots[Symbol.dispose]();
		this.transitions[Symbol.dispose]();
	}
}

class MappedTable implements OpenTable, Disposable {
	readonly size: number;
	private readonly slots: Mapping;
	private cold: { map: TypedMap<unknown, unknown>; memory: Mapping; view: DataView } | undefined;

	constructor(
		private readonly table: number,
		inner: TypedMap<unknown, unknown>,
		private readonly tables: Tables,
	) {
		this.size = inner.maxEntries;
		this.slots = inner.raw.mmap();
		this.openCold();
	}

	private openCold(): void {
		const map = this.tables.transitions.open(this.table);
		if (!map) return;
		const memory = map.raw.mmap();
		this.cold = { map, memory, view: new DataView(memory.buffer) };
	}

	private check(i: number): void {
		if (!Number.isInteger(i) || i < 0 || i >= this.size)
			throw rowError(`table ${this.table}: slot ${i} is not within its ${this.size}`);
	}

	slot(i: number): number {
		this.check(i);
		return Atomics.load(this.slots.u32, i * SLOT_WORDS);
	}

	setSlot(i: number, value: number): void {
		this.check(i);
		Atomics.store(this.slots.u32, i * SLOT_WORDS, value);
	}

	transition(i: number): TransitionRow | undefined {
		this.check(i);
		if (!this.cold || i >= this.cold.map.maxEntries) return undefined;
		const r = transitionCodec.decode(this.cold.view, i * TRANSITION_STRIDE);
		if (r.since_ns === 0n && r.needed_ns === 0n && r.previous === 0 && r.generation === 0) return undefined;
		return { sinceNs: r.since_ns, neededNs: r.needed_ns, previous: r.previous, generation: r.generation };
	}

	setTransition(i: number, row: TransitionRow): void {
		this.check(i);
		if (!this.cold) {
			this.tables.prepareTransitions([this.table]);
			this.openCold();
			if (!this.cold) throw rowError(`table ${this.table}: its transitions went away while it was edited`);
		}
		const at = i * TRANSITION_STRIDE;
		const { u32: words, u64: longs } = this.cold.memory;
		const o = transitionCodec.offsets;
		// Field by field in whole words: programs read this row while it is written.
		Atomics.store(words, (at + o.previous) >> 2, row.previous);
		Atomics.store(words, (at + o.generation) >> 2, row.generation);
		Atomics.store(longs, (at + o.since_ns) >> 3, row.sinceNs);
		Atomics.store(longs, (at + o.needed_ns) >> 3, row.neededNs);
	}

	[Symbol.dispose](): void {
		this.slots.unmap();
		this.cold?.memory.unmap();
		this.cold?.map[Symbol.dispose]();
	}
}

/** Tables of VIPs: as Tables, but that nothing in them moves. */
class VipTables implements Disposable {
	readonly outer: Outer;

	constructor(map: MapOfMaps<number>, places: (() => Iterable<number>) | undefined) {
		this.outer = new Outer(map, places);
	}

	ids(): Iterable<number> {
		return [...this.outer.keys.keys()];
	}

	read(table: number): Uint32Array | undefined {
		using inner = this.outer.open(table);
		if (!inner) return undefined;
		using m = inner.raw.mmap({ readonly: true });
		const from = m.u32;
		return Uint32Array.from({ length: inner.maxEntries }, (_, i) => from[i * SLOT_WORDS]);
	}

	put(tables: Iterable<readonly [number, Uint32Array]>): void {
		let some: [number, TypedMap<unknown, unknown>][] = [];
		const flush = () => {
			try {
				this.outer.put(some);
			} finally {
				for (const [, m] of some) m[Symbol.dispose]();
				some = [];
			}
		};
		for (const [id, slots] of tables) {
			const inner = this.outer.map.createInner(slots.length, 'vip_slots');
			using m = inner.raw.mmap();
			const to = m.u32;
			for (let i = 0; i < slots.length; i++) to[i * SLOT_WORDS] = slots[i];
			some.push([id, inner]);
			if (some.length === MADE_AT_ONCE) flush();
		}
		flush();
	}

	write(table: number, slots: Uint32Array): void {
		using inner = this.outer.open(table);
		if (inner?.maxEntries !== slots.length)
			throw rowError(`write table ${table} of a VIP: it has ${inner?.maxEntries ?? 'no'} slots, not ${slots.length}`);
		using m = inner.raw.mmap();
		for (let i = 0; i < slots.length; i++) Atomics.store(m.u32, i * SLOT_WORDS, slots[i]);
	}

	delete(tables: Iterable<number>): void {
		this.outer.remove(tables);
	}

	[Symbol.dispose](): void {
		this.outer[Symbol.dispose]();
	}
}

/** CLOCK_BOOTTIME in ns, as bpf_ktime_get_boot_ns() in the programs. */
export function bootTimeNs(): bigint {
	const monotonic = process.hrtime.bigint();
	const at = performance.now();
	if (boot.at === undefined || at - boot.at > 1000) {
		// The two clocks differ by the time the machine slept; /proc/uptime counts that, to 10 ms.
		const seconds = readFileSync('/proc/uptime', 'utf8').split(' ')[0];
		const slept = BigInt(seconds.replace('.', '')) * 10_000_000n - process.hrtime.bigint();
		boot.at = at;
		// Below its resolution the machine never slept, and the monotonic clock is exact.
		if (slept < 100_000_000n && slept > -100_000_000n) boot.slept = 0n;
		else if (slept - boot.slept > 100_000_000n || boot.slept - slept > 100_000_000n) boot.slept = slept;
	}
	return monotonic + boot.slept;
}
const boot: { at: number | undefined; slept: bigint } = { at: undefined, slept: 0n };

/** Sums of a per-CPU array's first `top` rows: `each(index, words)` for rows that are not zero. */
function sumPerCpu(
	map: BpfMap & { readonly raw: TypedMap['raw'] },
	top: number,
	each: (index: number, sums: bigint[]) => void,
): void {
	const words = map.valueSize / 8;
	const cpus = map.lookupSize / map.valueSize;
	const n = Math.min(CHUNK, Math.max(1, top));
	const keys = new Uint8Array(n * 4);
	const vals = new BigUint64Array(n * words * cpus);
	const cursors = [new Uint8Array(new ArrayBuffer(4)), new Uint8Array(new ArrayBuffer(4))];
	const bytes = new Uint8Array(vals.buffer);
	let from: Uint8Array | null = null;
	for (let row = 0, turn = 0; row < top; turn ^= 1) {
		const got = map.raw.lookupBatch(from, { cursor: cursors[turn], keys, vals: bytes, n: Math.min(n, top - row) });
		for (let i = 0; i < got.n; i++, row++) {
			const sums: bigint[] = new Array<bigint>(words).fill(0n);
			let some = false;
			for (let c = 0; c < cpus; c++) {
				for (let w = 0; w < words; w++) {
					const x = vals[(i * cpus + c) * words + w];
					if (x !== 0n) {
						sums[w] += x;
						some = true;
					}
				}
			}
			if (some) each(row, sums);
		}
		if (got.done || got.n === 0) break;
		from = cursors[turn];
	}
}

/** Rows of a hash, batch by batch. */
function* batches(
	map: BpfMap & { readonly raw: TypedMap['raw'] },
	chunk = CHUNK,
): IterableIterator<{ keys: Uint8Array; vals: Uint8Array; n: number }> {
	let n = Math.min(chunk, Math.max(1, map.maxEntries));
	let keys = new Uint8Array(n * map.keySize);
	let vals = new Uint8Array(n * map.lookupSize);
	const cursors = [0, 1].map(() => new Uint8Array(new ArrayBuffer(Math.max(4, map.keySize))));
	let from: Uint8Array | null = null;
	for (let turn = 0; ; ) {
		let got: { n: number; done: boolean };
		try {
			got = map.raw.lookupBatch(from, { cursor: cursors[turn], keys, vals, n });
		} catch (e) {
			// ENOSPC: one bucket holds more than fits.
			if ((e as { errno?: number }).errno !== 28 || n > 2 * map.maxEntries) throw e;
			n *= 2;
			keys = new Uint8Array(n * map.keySize);
			vals = new Uint8Array(n * map.lookupSize);
			continue;
		}
		yield { keys, vals, n: got.n };
		if (got.done) return;
		// A kernel that neither advances nor ends would be asked for ever.
		if (got.n === 0)
			throw Object.assign(new Error(`read map ${map.name}: the kernel's batch does not advance`), { errno: 95 });
		from = cursors[turn];
		turn ^= 1;
	}
}

const STATES: Readonly<Record<number, FlowRow['state']>> = {
	[RevnatState.REVNAT_NEW]: 'new',
	[RevnatState.REVNAT_REPLIED]: 'replied',
	[RevnatState.REVNAT_PROMOTED]: 'established',
	[RevnatState.REVNAT_CLOSING]: 'closing',
};

/** Verdicts as they happen, while the settings ask for them. */
export interface Events extends AsyncIterable<Event> {
	/** Calls back for each event until the returned function is called. One consumer at a time. */
	listen(each: (event: Event) => void): () => void;
	close(): void;
}

/** Packets that came to services without a backend, as they come. */
export interface HeldPackets {
	/** Calls back for each until the returned function is called; `frame` is a copy, empty where it cannot be put back. One consumer at a time. */
	listen(each: (held: Held, frame: Uint8Array) => void): () => void;
}

export interface KernelStore extends MeshStore {
	readonly events: Events;
	readonly held: HeldPackets;
	/** Packets of one row of frontend_counters. */
	frontendPackets(index: number): bigint;
	readonly tables: KernelTables;
	/** The interface that encrypts. */
	readonly encryption: { get(): Encryption; set(row: Encryption): void };
	/** Cookie of a network namespace → the name service beside Docker's resolver there. */
	readonly nameServices: RowStore<bigint, NameServiceRow>;
	/** Gives up the store's own handles; the maps stay. */
	close(): void;
}

/**
 * The store on the datapath's maps, by their names in bpf/maps.h. The maps stay the caller's.
 * @param empty names of maps that are new
 * @throws BpfError
 */
export function kernelStore(maps: ReadonlyMap<string, BpfMap>, empty: readonly string[] = []): KernelStore {
	const owned: Disposable[] = [];
	const find = (name: string): BpfMap => {
		const m = maps.get(name);
		if (!m) throw rowError(`open the datapath's maps: there is no ${name}`);
		return m;
	};
	const typed = <K, V>(name: string, key: WireCodec<K>, value: WireCodec<V>): TypedMap<K, V> => {
		const m = new TypedMap<K, V>(find(name).dup(), name, true, key, value);
		owned.push(m);
		return m;
	};
	const array = <V>(name: string, value: WireCodec<V>) => new ArrayRows(typed(name, u32, value), value);
	const tableOf = (name: string, valueSize: number): MapOfMaps<number> => {
		const inner = { type: ARRAY, keySize: 4, valueSize, maxEntries: 1, flags: MMAPABLE | INNER_MAP };
		const m = new MapOfMaps<number>(find(name).dup(), name, true, u32, inner);
		owned.push(m);
		return m;
	};

	/** Places of an array of maps that may be in use: all, or where asking is slow those that `named` rows refer to. */
	const placesOf = (map: MapOfMaps<number>, named: () => Iterable<number>) =>
		empty.includes(map.name) ? undefined : SLOW ? () => new Set(named()) : () => Array(map.maxEntries).keys();

	const settings = typed('settings', u32, wire(settingsCodec));
	const uplinks = array('uplinks', wire(uplinkCodec));
	const ownAddresses = typed('own_addresses', ip, u8);
	const ports = array('ports', u32);
	const sourcePorts = array('source_ports', u8);
	const exactFrontends = typed('exact_frontends', exactKey, u32);
	const frontends = array<Frontend>('frontends', wire(frontendCodec));
	const rehashes = typed('rehashes', u32, wire(transitionCodec));
	const untracked = typed('untracked', u32, wire(transitionCodec));
	const backends = array<Backend>('backends', wire(backendCodec));
	const nodes = array<Node>('nodes', wire(nodeCodec));
	const localBackends = typed<string, LocalBackend>('local_backends', mac, wire(localBackendCodec));
	const vteps = typed('vteps', ip4, u32);
	const allow = typed('allow', acl, u8);
	const deny = typed('deny', acl, u8);
	const onLink = typed('on_link', onLinkKey, wire(onLinkCodec));
	const networks = typed('networks', u32, wire(networkCodec));
	const overlayEndpoints = typed('overlay_endpoints', overlayKey, wire(overlayEndpointCodec));
	const overlaySlices = typed('overlay_slices', overlaySliceKey, u32);
	const overlayPorts = typed('overlay_ports', u32, wire(overlayPortCodec));
	const encryption = typed('encryption', u32, wire(encryptionCodec));
	const slots = tableOf('tables', 4);
	const transitions = tableOf('transitions', transitionCodec.size);
	const tables = new Tables(
		slots,
		transitions,
		placesOf(slots, function* () {
			for (const [, row] of frontends.entries()) for (const t of row.tables) if (t.table !== 0) yield t.table;
		}),
	);
	owned.push(tables);
	const netnsNetworks = typed('netns_networks', u64, networkList);
	const nameServices = typed('name_services', u64, wire(nameServiceCodec));
	const vips = typed('vips', wire(vipKeyCodec), wire(vipCodec));
	const vipBackends = array<VipBackend>('vip_backends', wire(vipBackendCodec));
	const vipSlots = tableOf('vip_tables', 4);
	const vipTables = new VipTables(
		vipSlots,
		placesOf(vipSlots, function* () {
			for (const [, row] of vips.entries(CHUNK)) if (row.table !== 0) yield row.table;
		}),
	);
	owned.push(vipTables);
	const vip: VipStore = {
		namespaces: hashStore(netnsNetworks),
		vips: hashStore(vips),
		backends: vipBackends,
		tables: vipTables,
	};
	const revnatKey = wire(revnatKeyCodec);
	const revnatRow = wire(revnatCodec);
	const revnat = typed('revnat', revnatKey, revnatRow);
	const revnatNew = typed('revnat_new', revnatKey, revnatRow);
	const counter = (name: string, size: number) =>
		typed(name, u32, { size, encode() {}, decode: () => undefined } as WireCodec<unknown>);
	const verdictCounters = counter('verdict_counters', packetsBytesCodec.size);
	const frontendCounters = counter('frontend_counters', packetsBytesCodec.size);
	const backendCounters = counter('backend_counters', backendCountersCodec.size);
	const ring = new RingBuffer<Event>(find('events').dup(), 'events', true, wire(eventCodec));
	owned.push(ring);
	const heldRing = new RingBuffer(find('held').dup(), 'held', true);
	owned.push(heldRing);
	const lrus = ['conntrack_half_open', 'conntrack', 'conntrack_old', 'fragments'].map((name) => {
		const m = find(name);
		return typed(name, plain(m.keySize), plain(m.valueSize));
	});

	const counts = new Map<string, { at: number; n: number }>();
	const count = (map: TypedMap<unknown, unknown>, maxAgeMs: number): number => {
		const had = counts.get(map.name);
		if (had && performance.now() - had.at < maxAgeMs) return had.n;
		let n = 0;
		for (const b of batchesOrKeys(map)) n += b;
		counts.set(map.name, { at: performance.now(), n });
		return n;
	};

	return {
		settings: {
			get: () => settings.get(0)!,
			set: (row: Settings) => settings.set(0, row),
		},
		uplinks: uplinkStore(uplinks),
		ownAddresses: hashStore(ownAddresses),
		ports,
		sourcePorts,
		exactFrontends: hashStore(exactFrontends),
		frontends,
		setTableRef(frontend, family, ref) {
			if (!Number.isInteger(frontend) || frontend < 0 || frontend >= frontends.map.maxEntries)
				throw rowError(`frontend ${frontend}: not within the ${frontends.map.maxEntries} rows`);
			const at = frontend * frontendCodec.size + (family === 4 ? 0 : 8);
			const page = Math.floor(at / 4096) * 4096;
			using m = frontends.map.raw.mmap({ offset: page, length: 4096 });
			Atomics.store(m.u64, (at - page) >> 3, (BigInt(ref.mask >>> 0) << 32n) | BigInt(ref.table >>> 0));
		},
		rehashes: hashStore(rehashes),
		untracked: hashStore(untracked),
		tables,
		backends,
		localBackends: hashStore(localBackends),
		nodes,
		vteps: hashStore(vteps),
		allow: trieStore(allow),
		deny: trieStore(deny),
		networks: hashStore(networks),
		overlayEndpoints: hashStore(overlayEndpoints),
		overlaySlices: trieStore(overlaySlices),
		overlayPorts: hashStore(overlayPorts),
		encryption: { get: () => encryption.get(0)!, set: (row: Encryption) => encryption.set(0, row) },
		nameServices: hashStore(nameServices),
		vip,
		onLink: trieStore(onLink),
		counters(): Counters {
			const out: Counters = { verdicts: [], frontends: new Map(), backends: new Map() };
			sumPerCpu(verdictCounters, verdictCounters.maxEntries, (i, [packets, bytes]) => {
				const verdict = i % VERDICT_ROWS;
				if (verdict < VERDICTS.length)
					out.verdicts.push({ program: Math.floor(i / VERDICT_ROWS), verdict, packets, bytes });
			});
			sumPerCpu(frontendCounters, frontends.top, (i, [packets, bytes]) => out.frontends.set(i, { packets, bytes }));
			sumPerCpu(backendCounters, backends.top, (i, [packets, bytes, newFlows]) =>
				out.backends.set(i, { packets, bytes, newFlows }),
			);
			return out;
		},
		frontendPackets(index) {
			const row = new BigUint64Array(frontendCounters.lookupSize / 8);
			const words = frontendCounters.valueSize / 8;
			frontendCounters.raw.lookup(new Uint8Array(Uint32Array.of(index).buffer), new Uint8Array(row.buffer));
			return row.reduce((n, x, i) => (i % words === 0 ? n + x : n), 0n);
		},
		clearCounters(kind, indexes) {
			const map = kind === 'frontends' ? frontendCounters : backendCounters;
			const all = [...indexes];
			for (let at = 0; at < all.length; at += CHUNK) {
				const some = Uint32Array.from(all.slice(at, at + CHUNK));
				map.raw.updateBatch(new Uint8Array(some.buffer), new Uint8Array(some.length * map.lookupSize), some.length);
			}
		},
		flows(limit) {
			const now = bootTimeNs();
			const flows: FlowRow[] = [];
			const seen = new Set<string>();
			for (const map of [revnatNew, revnat]) {
				for (const b of batches(map)) {
					for (let i = 0; i < b.n; i++) {
						const k = revnatKey.decode(b.keys, i * map.keySize);
						// A flow may be found in both while it is promoted.
						const name = `${k.client} ${k.client_port} ${k.endpoint} ${k.port} ${k.proto}`;
						if (map === revnatNew) seen.add(name);
						else if (seen.has(name)) continue;
						if (flows.length === limit) return { flows, limited: true };
						const r = revnatRow.decode(b.vals, i * map.valueSize);
						flows.push({
							client: r.client,
							clientPort: r.client_port,
							frontend: r.addr,
							frontendPort: r.port,
							endpoint: k.endpoint,
							targetPort: k.port,
							protocol: k.proto === TCP ? 'tcp' : 'udp',
							node: r.node,
							ref: r.ref,
							state: STATES[r.state] ?? 'new',
							idleMs: now > r.used_ns ? Number((now - r.used_ns) / 1_000_000n) : 0,
						});
					}
				}
			}
			return { flows, limited: false };
		},
		sizes() {
			const of = (map: BpfMap, entries: number) => ({ map: map.name, entries, maxEntries: map.maxEntries });
			const tableIds = [...tables.ids()];
			return [
				...[uplinks, ports, sourcePorts, frontends, backends, nodes, vipBackends].map((r) => of(r.map, r.count())),
				...[
					ownAddresses,
					exactFrontends,
					rehashes,
					untracked,
					localBackends,
					vteps,
					allow,
					deny,
					onLink,
					networks,
					overlayEndpoints,
					overlaySlices,
					overlayPorts,
					netnsNetworks,
					nameServices,
					vips,
				].map((m) => of(m, count(m as TypedMap<unknown, unknown>, 1000))),
				...[revnatNew, revnat, ...lrus].map((m) => of(m, count(m as TypedMap<unknown, unknown>, COUNT_AGE_MS))),
				of(slots, tableIds.length),
				of(transitions, tables.transitions.keys.size),
				of(vipSlots, vipTables.outer.keys.size),
			];
		},
		now: bootTimeNs,
		events: {
			listen: (each) =>
				ring.listen((b) => each(eventCodec.decode(new DataView(b.buffer, b.byteOffset, b.byteLength), 0)), {
					ref: false,
				}),
			close: () => ring.close(),
			[Symbol.asyncIterator]: () => ring[Symbol.asyncIterator](),
		},
		held: {
			listen: (each) =>
				heldRing.listen(
					(b) => {
						const head = heldCodec.decode(new DataView(b.buffer, b.byteOffset, b.byteLength), 0);
						each(head, b.slice(heldCodec.size, heldCodec.size + head.len));
					},
					{ ref: false },
				),
		},
		close() {
			for (const x of owned.splice(0).reverse()) x[Symbol.dispose]();
		},
	};
}

/** Bytes nobody decodes. */
function plain(size: number): WireCodec<unknown> {
	return { size, encode() {}, decode: () => undefined };
}

function* batchesOrKeys(map: TypedMap<unknown, unknown>): IterableIterator<number> {
	try {
		for (const b of batches(map)) yield b.n;
	} catch (e) {
		// A kernel without batches for this kind.
		if (![95, 524, 22].includes((e as { errno?: number }).errno ?? 0)) throw e;
		let n = 0;
		for (const _ of map.keys()) n++;
		yield n;
	}
}
