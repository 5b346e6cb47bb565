/**
 * The programs' half of tracked transitions (DESIGN 5.3) in TypeScript, over a store in memory: what the BPF programs
 * must do, and what they can be put in the place of.
 */
import {
	BackendState,
	type Frontend,
	FrontendFlag,
	REF_KERNEL,
	REF_MASK,
	REF_NONE,
	type Transition,
} from '../../src/loader/layout.gen.js';
import { phaseOf, refGeneration, refIndex } from '../../src/mesh/slots.js';
import type { MemoryStore } from './memory-store.js';

export type Kind = 'syn' | 'ack' | 'data' | 'fin' | 'udp';

/** A client's packet to the one published port of the model. */
export interface Packet {
	/** Names the flow: its 5-tuple follows from it. */
	readonly key: number;
	readonly kind: Kind;
	/** Of the SYN; in other TCP packets the one that their sequence numbers follow. */
	readonly isn: number;
}

/** Where a node sends a packet. */
export interface Picker {
	/** MAC of the backend, `kernel`, or undefined: dropped. */
	pick(p: Packet): string | 'kernel' | undefined;
	/** Flows that are remembered, at most so far. */
	peak(): number;
}

export interface PickerLimits {
	readonly halfOpen: number;
	readonly conntrack: number;
	readonly old: number;
}

/** As BPF_MAP_TYPE_LRU_HASH, but exact. */
class Lru<V> {
	readonly rows = new Map<number, V>();
	peak = 0;
	constructor(private readonly limit: number) {}
	get(key: number): V | undefined {
		const v = this.rows.get(key);
		if (v !== undefined) {
			this.rows.delete(key);
			this.rows.set(key, v);
		}
		return v;
	}
	peek(key: number): V | undefined {
		return this.rows.get(key);
	}
	set(key: number, v: V): void {
		this.rows.delete(key);
		this.rows.set(key, v);
		if (this.rows.size > this.limit) this.rows.delete(this.rows.keys().next().value as number);
		if (this.rows.size > this.peak) this.peak = this.rows.size;
	}
	delete(key: number): void {
		this.rows.delete(key);
	}
}

interface Flow {
	ref: number;
	generation: number;
	closing: boolean;
}

export function mix(x: number, y = 0): number {
	let h = (x ^ Math.imul(y + 0x9e3779b9, 0x85ebca6b)) >>> 0;
	h ^= h >>> 16;
	h = Math.imul(h, 0x7feb352d);
	h ^= h >>> 15;
	h = Math.imul(h, 0x846ca68b);
	h ^= h >>> 16;
	return h >>> 0;
}

/** @param frontend reads the row each time: its table and mask change */
export function createPicker(
	store: MemoryStore,
	limits: PickerLimits,
	frontend: (udp: boolean) => Frontend | undefined,
): Picker {
	const halfOpen = new Lru<{ ref: number; isn: number }>(limits.halfOpen);
	const promoted = new Lru<Flow>(limits.conntrack);
	const old = new Lru<Flow>(limits.old);

	const backend = (ref: number) => {
		const row = store.backends.get(refIndex(ref));
		return row && row.generation === refGeneration(ref) ? row : undefined;
	};
	const alive = (ref: number): boolean => {
		if (ref === REF_KERNEL) return true;
		const state = ref === REF_NONE ? undefined : backend(ref)?.state;
		return state === BackendState.BACKEND_ACTIVE || state === BackendState.BACKEND_DRAINING;
	};

	function ref(p: Packet): number {
		// The protocol is part of a flow's key.
		const key = p.kind === 'udp' ? -p.key : p.key;
		const f = frontend(p.kind === 'udp');
		if (!f || f.tables[0].table === 0) return REF_NONE;
		const { table, mask } = f.tables[0];
		const { slots, transitions } = store.memory.tables.get(table) as {
			slots: Uint32Array;
			transitions:
				| ({ sinceNs: bigint; neededNs: bigint; previous: number; generation: number } | undefined)[]
				| undefined;
		};
		const s = mix(p.key, 77) & mask;
		const up = (): number => {
			for (let i = 0; i <= mask; i++) {
				const r = slots[(s + i) & mask] & REF_MASK;
				if (alive(r)) return r;
			}
			return REF_NONE;
		};
		const word = slots[s];
		const nowNs = store.memory.nowNs;
		const phase = phaseOf(word, transitions?.[s], { nowNs, windowNs: f.window_ns });
		const row = phase === 'stable' ? undefined : transitions?.[s];
		const always = (f.flags & FrontendFlag.FRONTEND_TRACK_ALWAYS) !== 0;
		const tracked = (f.flags & FrontendFlag.FRONTEND_TRACKED) !== 0;
		const none = (f.flags & FrontendFlag.FRONTEND_TRACK_NONE) !== 0;
		if (none || (!row && !always && !tracked)) return up();
		const current = word & REF_MASK;
		const stamp = (to: number): number => {
			if (to === current) return to;
			if (row) row.neededNs = nowNs;
			else if (tracked) {
				const since = store.untracked.get(table >> 1) as Transition;
				store.untracked.setMany([[table >> 1, { ...since, needed_ns: nowNs }]]);
			}
			return to;
		};
		// Records are made with this generation, and count with another while the other kind does.
		const generation = row && !always ? row.generation : f.generation;
		const other = row && always ? row.generation : tracked ? f.generation : generation;
		const record = (to: number, closing: boolean, guess: boolean): number => {
			const flow = { ref: to, generation, closing };
			if (guess) old.set(key, flow);
			else {
				old.delete(key);
				promoted.set(key, flow);
			}
			return stamp(to);
		};

		// A record of another generation is none, and must not hide one in the other table.
		const mine = (flow: Flow | undefined) =>
			flow?.generation === generation || flow?.generation === other ? flow : undefined;
		const flow = mine(promoted.get(key)) ?? mine(old.get(key));
		const half = halfOpen.peek(key);
		if (flow) {
			// A newer SYN was answered, and this follows it: its record replaces the old one.
			const stale = (flow.closing || !alive(flow.ref)) && p.kind !== 'syn' && half?.isn === p.isn && alive(half.ref);
			const reopens = p.kind === 'syn' && (flow.closing || !alive(flow.ref));
			const lost = p.kind === 'udp' && !alive(flow.ref);
			if (!stale && !reopens && !lost) {
				if (p.kind === 'fin') flow.closing = true;
				flow.generation = generation;
				stamp(flow.ref);
				return alive(flow.ref) ? flow.ref : up();
			}
			if (lost) {
				promoted.delete(key);
				old.delete(key);
			}
		}
		if (half && half.isn === p.isn && p.kind !== 'udp' && alive(half.ref)) {
			if (p.kind === 'syn') return half.ref;
			halfOpen.delete(key);
			return record(half.ref, p.kind === 'fin', false);
		}
		const c = up();
		if (!flow && !row && !always) return c;
		if (p.kind === 'syn') {
			halfOpen.set(key, { ref: c, isn: p.isn });
			return c;
		}
		if (phase !== 'moving' || !row) return always && c !== REF_NONE ? record(c, p.kind === 'fin', false) : c;
		if (p.kind === 'udp') {
			const to = alive(row.previous) && nowNs - row.sinceNs <= f.udp_window_ns ? row.previous : c;
			return to === REF_NONE ? to : record(to, false, to === row.previous);
		}
		// A stand-in for a backend that is down is not recorded: that backend may return.
		return alive(row.previous) ? record(row.previous, p.kind === 'fin', true) : c;
	}

	return {
		pick(p) {
			const to = ref(p);
			return to === REF_KERNEL ? 'kernel' : to === REF_NONE ? undefined : backend(to)?.mac;
		},
		peak: () => Math.max(promoted.peak, old.peak, halfOpen.peak),
	};
}
