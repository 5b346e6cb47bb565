/**
 * Indexes of rows. A row's index is what packets, slots and records hold, so it must survive a restart of the agent
 * (restored from the maps) and must not come to mean something else while anything may still hold it: a freed index
 * waits out a grace, and an index of a backend comes back with another generation.
 */

import { BeelineError } from '../errors.js';
import { MAX_BACKENDS, MAX_FRONTENDS, MAX_NODES } from '../loader/layout.gen.js';
import { codeOfMac, macOfCode } from './hash.js';
import { refOf } from './slots.js';

export interface Index {
	readonly index: number;
	/** 1 to 255 where the pool has generations, else 0. Never 0 there, so that a freed row is not all zero. */
	readonly generation: number;
}

/** Indexes of one kind of row. */
export interface IndexPool {
	readonly size: number;
	/** A MAC may be given as its 48 bits. */
	get(key: string | number): Index | undefined;
	/** The key's index, or a free one. @throws BeelineError FULL */
	acquire(key: string | number, nowMs: number): Index;
	/** Frees the key's index; it is not given out before the grace is over. */
	release(key: string | number, nowMs: number): void;
	/** Gives a key an index that it is known to have. */
	restore(key: string, index: number, generation: number): void;
	/** Marks an index as freed at `nowMs`, with the generation that it had. */
	restoreFreed(index: number, generation: number, nowMs: number): void;
	/** Gives the index of one key to another. */
	rename(from: string, to: string): void;
	/** Freed indexes that nothing can hold any more after `afterMs`: their rows may be cleared. Forgets them. */
	forget(nowMs: number, afterMs: number): number[];
	entries(): IterableIterator<[string, Index]>;
}

/** Key → index, as a Map has it. */
interface Used {
	readonly size: number;
	get(key: string | number): Index | undefined;
	set(key: string | number, id: Index): unknown;
	delete(key: string | number): unknown;
	entries(): IterableIterator<[string, Index]>;
}

const EMPTY = -1;
const DELETED = -2;

/**
 * MAC → index and generation in 16 bytes each, where a Map of texts and objects takes 150: there are 100 000. Open
 * addressing with linear probing; keys that are no MACs go into a Map beside it.
 */
function usedByMac(): Used {
	let codes = new Float64Array(1024).fill(EMPTY);
	let refs = new Uint32Array(1024);
	/** Places that are not EMPTY. */
	let filled = 0;
	let size = 0;
	const others = new Map<string, Index>();
	const find = (code: number): number => {
		const mask = codes.length - 1;
		// The MAC's low bits are a hash already.
		let i = (code >>> 0) & mask;
		while (codes[i] !== EMPTY && codes[i] !== code) i = (i + 1) & mask;
		return i;
	};
	const resize = () => {
		let room = 1024;
		while (room < size * 3) room *= 2;
		const [oldCodes, oldRefs] = [codes, refs];
		codes = new Float64Array(room).fill(EMPTY);
		refs = new Uint32Array(room);
		filled = size;
		for (let i = 0; i < oldCodes.length; i++) {
			if (oldCodes[i] < 0) continue;
			const at = find(oldCodes[i]);
			codes[at] = oldCodes[i];
			refs[at] = oldRefs[i];
		}
	};
	const idAt = (i: number): Index => ({ index: refs[i] & 0xffffff, generation: refs[i] >>> 24 });
	const codeOf = (key: string | number): number => (typeof key === 'number' ? key : codeOfMac(key));
	return {
		get size() {
			return size + others.size;
		},
		get(key) {
			const code = codeOf(key);
			if (code < 0) return others.get(key as string);
			const i = find(code);
			return codes[i] === code ? idAt(i) : undefined;
		},
		set(key, id) {
			const code = codeOf(key);
			if (code < 0) return others.set(key as string, id);
			let i = find(code);
			if (codes[i] !== code) {
				if ((filled + 1) * 4 > codes.length * 3) {
					resize();
					i = find(code);
				}
				codes[i] = code;
				filled++;
				size++;
			}
			refs[i] = ((id.generation << 24) | id.index) >>> 0;
			return undefined;
		},
		delete(key) {
			const code = codeOf(key);
			if (code < 0) return others.delete(key as string);
			const i = find(code);
			if (codes[i] !== code) return false;
			codes[i] = DELETED;
			size--;
			return true;
		},
		*entries() {
			for (let i = 0; i < codes.length; i++) if (codes[i] >= 0) yield [macOfCode(codes[i]), idAt(i)] as [string, Index];
			yield* others.entries();
		},
	};
}

interface Freed {
	readonly index: number;
	readonly generation: number;
	readonly atMs: number;
}

/**
 * @param limit indexes are 1 to limit - 1: 0 means "none" everywhere
 * @param graceMs before a freed index is used again
 */
export function createIndexPool(
	what: string,
	limit: number,
	graceMs: number,
	generations: boolean,
	used: Used = new Map<string, Index>() as Used,
): IndexPool {
	const taken = new Uint8Array(limit);
	/** Oldest first. */
	let freed: Freed[] = [];
	let head = 0;
	let next = 1;
	const compact = () => {
		if (head > 1024 && head * 2 > freed.length) {
			freed = freed.slice(head);
			head = 0;
		}
	};
	return {
		get size() {
			return used.size;
		},
		get: (key) => used.get(key),
		acquire(key, nowMs) {
			const old = used.get(key);
			if (old) return old;
			// Never-used indexes first: the longer a freed one rests, the less can still hold it.
			while (next < limit && taken[next] === 1) next++;
			let id: Index;
			if (next < limit) id = { index: next++, generation: generations ? 1 : 0 };
			else {
				const first = freed[head];
				if (first === undefined || nowMs - first.atMs < graceMs)
					throw new BeelineError(
						'FULL',
						`${what}: all ${limit - 1} indexes are in use or were freed less than ${graceMs / 1000} s ago: remove some, or wait`,
					);
				head++;
				compact();
				id = { index: first.index, generation: generations ? (first.generation % 255) + 1 : 0 };
			}
			taken[id.index] = 1;
			used.set(key, id);
			return id;
		},
		release(key, nowMs) {
			const id = used.get(key);
			if (!id) return;
			used.delete(key);
			freed.push({ ...id, atMs: nowMs });
		},
		restore(key, index, generation) {
			used.set(key, { index, generation });
			taken[index] = 1;
		},
		restoreFreed(index, generation, nowMs) {
			taken[index] = 1;
			freed.push({ index, generation, atMs: nowMs });
		},
		rename(from, to) {
			const id = used.get(from);
			if (!id) return;
			used.delete(from);
			used.set(to, id);
		},
		forget(nowMs, afterMs) {
			const out: number[] = [];
			while (head < freed.length && nowMs - freed[head].atMs >= afterMs) {
				const { index } = freed[head++];
				taken[index] = 0;
				if (index < next) next = index;
				out.push(index);
			}
			compact();
			return out;
		},
		entries: () => used.entries(),
	};
}

/** What family 6 of a frontend uses: no table, family 4's, or its own. */
export type Tables = { readonly four: boolean; readonly six: 'none' | 'shared' | 'own' };

/** A frontend that the maps hold and no service has claimed yet. */
export interface FoundFrontend {
	readonly index: number;
	/** `tcp/8080` */
	readonly port: string;
	/** Empty: every address of the node. */
	readonly addresses: readonly string[];
}

/** All indexes of a node's maps. */
export interface Ids {
	/** Key: MAC. */
	readonly backends: IndexPool;
	/** Key: `web/tcp/8080`. */
	readonly frontends: IndexPool;
	/** Key: VTEP. */
	readonly nodes: IndexPool;
	/** By frontend index. */
	readonly tables: Map<number, Tables>;
	readonly found: FoundFrontend[];
}

/** How long a freed index rests before it is used again. 255 generations at this pace outlast any tracking window. */
export const REUSE_AFTER_MS = 60_000;
/** How long a freed backend's row keeps its generation. Above the longest time that a record can outlive it. */
export const FORGET_AFTER_MS = 24 * 3_600_000;

export function createIds(limits: { backends?: number; frontends?: number; nodes?: number } = {}): Ids {
	return {
		backends: createIndexPool('backends', limits.backends ?? MAX_BACKENDS, REUSE_AFTER_MS, true, usedByMac()),
		frontends: createIndexPool('frontends', limits.frontends ?? MAX_FRONTENDS, REUSE_AFTER_MS, false),
		// Replies of a flow go to the node it entered by, for as long as it lives: rest long, there is room.
		nodes: createIndexPool('nodes', limits.nodes ?? MAX_NODES, 3 * 3_600_000, false),
		tables: new Map(),
		found: [],
	};
}

/** The table of a frontend and family: 2 × index, + 1 for an IPv6 table of its own. Index 0 is no frontend's. */
export function tableId(frontend: number, family: 4 | 6, tables: Tables): number {
	if (family === 4) return tables.four ? 2 * frontend : 0;
	return tables.six === 'none' ? 0 : tables.six === 'shared' ? 2 * frontend : 2 * frontend + 1;
}

/** The frontend's index: its own, one that the maps hold for the same port and addresses, or a new one. */
export function acquireFrontend(
	ids: Ids,
	key: string,
	port: string,
	addresses: readonly string[],
	nowMs: number,
): { index: number; isNew: boolean } {
	const known = ids.frontends.get(key);
	if (known) return { index: known.index, isNew: false };
	const at = ids.found.findIndex(
		(f) =>
			f.port === port &&
			(addresses.length === 0 ? f.addresses.length === 0 : f.addresses.some((a) => addresses.includes(a))),
	);
	if (at >= 0) {
		const [found] = ids.found.splice(at, 1);
		ids.frontends.rename(`found/${found.index}`, key);
		return { index: found.index, isNew: false };
	}
	return { index: ids.frontends.acquire(key, nowMs).index, isNew: true };
}

/** The reference of a backend that has an index. */
export function refOfKey(ids: Ids, mac: string): number | undefined {
	const id = ids.backends.get(mac);
	return id && refOf(id.index, id.generation);
}
