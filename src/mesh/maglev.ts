/**
 * Maglev tables (Eisenbud et al., NSDI 2016, section 3.4) on powers of two: an odd skip is coprime to the size, so each
 * member's permutation visits every slot.
 */
import { Worker } from 'node:worker_threads';

/** What a table is made of; the same members in the same order give the same table on every node. */
export interface MaglevMembers {
	/** Two 32-bit hashes of each member's stable key, in the order of the stable keys. */
	readonly offset: Uint32Array;
	readonly skip: Uint32Array;
	/** Whole numbers ≥ 1. */
	readonly weight: Uint16Array;
	/** 1: down. Its slots are dealt to the others, and nothing else moves. */
	readonly down: Uint8Array;
	/** What a slot that falls to the member holds. */
	readonly ref: Uint32Array;
}

const EMPTY = 0xffff;

let scratch = new Uint16Array(16384);

/** Member index of each slot, in memory that the next call uses again. With equal weights the shares differ by at most 1. */
function populate(size: number, m: MaglevMembers): Uint16Array {
	if (scratch.length < size) scratch = new Uint16Array(size);
	const table = scratch.subarray(0, size).fill(EMPTY);
	const n = m.ref.length;
	if (n === 0) return table;
	if (n >= EMPTY) throw new RangeError(`${n} members: a table holds fewer than ${EMPTY}`);
	const mask = size - 1;
	const at = new Uint32Array(n);
	const skip = new Uint32Array(n);
	let heaviest = 1;
	let lightest = 0xffff;
	for (let i = 0; i < n; i++) {
		at[i] = m.offset[i] & mask;
		skip[i] = (m.skip[i] | 1) & mask;
		if (m.weight[i] > heaviest) heaviest = m.weight[i];
		if (m.weight[i] < lightest) lightest = m.weight[i];
	}
	let left = size;
	if (heaviest === lightest) {
		for (;;)
			for (let i = 0; i < n; i++) {
				let s = at[i];
				const step = skip[i];
				while (table[s] !== EMPTY) s = (s + step) & mask;
				table[s] = i;
				at[i] = (s + step) & mask;
				if (--left === 0) return table;
			}
	}
	// A member takes a turn in round r when r × its weight has reached its target: shares follow the weights to within
	// one turn, where giving each as many turns in a row as it weighs would starve the last of a round cut short.
	const target = new Float64Array(n);
	for (let round = 1; ; round++)
		for (let i = 0; i < n; i++) {
			if (round * m.weight[i] < target[i]) continue;
			target[i] += heaviest;
			let s = at[i];
			const step = skip[i];
			while (table[s] !== EMPTY) s = (s + step) & mask;
			table[s] = i;
			at[i] = (s + step) & mask;
			if (--left === 0) return table;
		}
}

/** Deals the slots of members that are down to those that are not, always to the one furthest below its share. */
function deal(table: Uint16Array, m: MaglevMembers): void {
	const n = m.ref.length;
	const living: number[] = [];
	for (let i = 0; i < n; i++) if (m.down[i] === 0) living.push(i);
	if (living.length === 0 || living.length === n) return;
	const load = new Float64Array(n);
	for (let s = 0; s < table.length; s++) load[table[s]] += 1 / m.weight[table[s]];
	for (let s = 0; s < table.length; s++) {
		if (m.down[table[s]] === 0) continue;
		let best = living[0];
		for (let k = 1; k < living.length; k++) if (load[living[k]] < load[best] - 1e-9) best = living[k];
		table[s] = best;
		load[best] += 1 / m.weight[best];
	}
}

/**
 * The refs of all slots; all 0 (REF_NONE) where there are no members. Where every member is down the table is as if
 * none were: the programs look for one that lives, and a wrong alarm costs nothing.
 */
export function maglev(size: number, members: MaglevMembers, into: Uint32Array = new Uint32Array(size)): Uint32Array {
	const slots = into;
	if (members.ref.length === 0) return slots.fill(0);
	const table = populate(size, members);
	if (members.down.includes(1)) deal(table, members);
	for (let s = 0; s < size; s++) slots[s] = members.ref[table[s]];
	return slots;
}

/** Slots for a number of members: the smallest of 1024, 16384, 131072 that is ≥ 20 × members (DESIGN 5.3). */
export function tableSize(members: number): number {
	return members * 20 <= 1024 ? 1024 : members * 20 <= 16384 ? 16384 : 131072;
}

export interface MaglevJob {
	readonly size: number;
	readonly members: MaglevMembers;
}

/** Worker threads that compute tables; started at the first big request, idle ones do not keep the process alive. */
export interface MaglevPool {
	/** Tables in the order of the jobs, in memory shared with the workers. */
	run(jobs: readonly MaglevJob[]): Promise<Uint32Array[]>;
	/** The tables of a run are not needed any more: their memory may be used again. */
	done(tables: readonly Uint32Array[]): void;
	close(): Promise<void>;
}

interface Answer {
	readonly id: number;
	readonly error?: string;
}

/** What a worker is to do: write table after table from a byte of the memory on. */
export interface Task {
	readonly id: number;
	readonly jobs: readonly MaglevJob[];
	readonly memory: SharedArrayBuffer;
	readonly at: number;
}

/** Memories that are kept for the next runs. */
const KEPT = 4;
/** A big sync is rare, and two idle threads are 15 MB. */
const IDLE_MS = 2000;

/**
 * @param workers threads; 0 computes in the caller's
 */
export function createMaglevPool(workers = 2): MaglevPool {
	let threads: Worker[] = [];
	let next = 0;
	let idle: NodeJS.Timeout | undefined;
	const kept: SharedArrayBuffer[] = [];
	const waiting = new Map<number, { resolve: () => void; reject: (e: Error) => void; on: Worker }>();
	const start = () => {
		for (let i = 0; i < workers; i++) {
			const w = new Worker(new URL('./maglev-worker.js', import.meta.url), {
				execArgv: [],
				resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 64 },
			});
			w.unref();
			w.on('message', (a: Answer) => {
				const to = waiting.get(a.id);
				waiting.delete(a.id);
				if (a.error === undefined) to?.resolve();
				else to?.reject(new Error(a.error));
			});
			const fail = (e: Error) => {
				for (const [id, to] of waiting)
					if (to.on === w) {
						waiting.delete(id);
						to.reject(e);
					}
				threads = threads.filter((t) => t !== w);
			};
			w.on('error', fail);
			w.on('exit', () => fail(new Error('maglev worker ended')));
			threads.push(w);
		}
	};
	const ask = (on: Worker, jobs: readonly MaglevJob[], memory: SharedArrayBuffer, at: number) =>
		new Promise<void>((resolve, reject) => {
			const id = next++;
			waiting.set(id, { resolve, reject, on });
			on.ref();
			on.postMessage({ id, jobs, memory, at } satisfies Task);
		}).finally(() => {
			if (![...waiting.values()].some((w) => w.on === on)) on.unref();
		});
	const stop = async () => {
		clearTimeout(idle);
		const all = threads;
		threads = [];
		kept.length = 0;
		await Promise.all(all.map((w) => w.terminate()));
	};
	const rest = () => {
		clearTimeout(idle);
		idle = setTimeout(() => {
			if (waiting.size === 0) void stop();
		}, IDLE_MS).unref();
	};
	return {
		async run(jobs) {
			if (workers === 0) return jobs.map((j) => maglev(j.size, j.members));
			clearTimeout(idle);
			if (threads.length === 0) start();
			const total = jobs.reduce((n, j) => n + j.size, 0) * 4;
			const found = kept.findIndex((k) => k.byteLength >= total);
			const memory = found < 0 ? new SharedArrayBuffer(total) : kept.splice(found, 1)[0];
			const tables: Uint32Array[] = [];
			const parts: Promise<void>[] = [];
			const each = Math.ceil(jobs.length / threads.length);
			let at = 0;
			for (let i = 0; i < threads.length && i * each < jobs.length; i++) {
				const mine = jobs.slice(i * each, (i + 1) * each);
				parts.push(ask(threads[i], mine, memory, at));
				for (const { size } of mine) {
					tables.push(new Uint32Array(memory, at, size));
					at += size * 4;
				}
			}
			try {
				await Promise.all(parts);
				return tables;
			} catch {
				// Slower, but true: a lost thread must not keep a table from being written.
				return jobs.map((j) => maglev(j.size, j.members));
			} finally {
				if (waiting.size === 0) rest();
			}
		},
		done(tables) {
			const memory = tables[0]?.buffer;
			if (memory instanceof SharedArrayBuffer && threads.length > 0 && kept.length < KEPT) kept.push(memory);
		},
		close: stop,
	};
}

/** Many tables at once on a pool of their own. */
export async function maglevMany(jobs: readonly MaglevJob[], workers = 2): Promise<Uint32Array[]> {
	const pool = createMaglevPool(workers);
	try {
		return await pool.run(jobs);
	} finally {
		await pool.close();
	}
}
