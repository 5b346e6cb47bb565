/**
 * The agent's half of tracked transitions (DESIGN 5.3): which slots move, what they remember, when they rest again.
 *
 *     stable ──change──▶ moving ──window after since──▶ settling ──window after needed──▶ stable
 *                         ▲  │change: the oldest previous stays       │change
 *                         └──┴────────────────────────────────────────┘
 *
 * Only stable and moving are stored; settling and the return to stable follow from the clock, so that nothing has to
 * happen for them. The programs compute the same from the same words.
 */
import {
	type Frontend,
	FrontendFlag,
	HashedBy,
	REF_GENERATION_MASK,
	REF_INDEX_BITS,
	REF_KERNEL,
	REF_MASK,
	REF_NONE,
	SLOT_PHASE_SHIFT,
	type Transition,
} from '../loader/layout.gen.js';
import type { OpenTable, TransitionRow } from './store.js';

const MOVING = 1 << SLOT_PHASE_SHIFT;

export type Phase = 'stable' | 'moving' | 'settling';

/** A reference from an index and the generation of its incarnation. */
export function refOf(index: number, generation: number): number {
	return ((generation << REF_INDEX_BITS) & REF_GENERATION_MASK) | index;
}
export const refIndex = (ref: number): number => ref & ((1 << REF_INDEX_BITS) - 1);
export const refGeneration = (ref: number): number => (ref & REF_GENERATION_MASK) >>> REF_INDEX_BITS;

export interface SlotClock {
	/** CLOCK_BOOTTIME, ns. */
	readonly nowNs: bigint;
	/** trackingWindow, ns. */
	readonly windowNs: bigint;
}

/** The phase that programs see at `nowNs`. */
export function phaseOf(word: number, row: TransitionRow | undefined, clock: SlotClock): Phase {
	if (word >>> SLOT_PHASE_SHIFT !== 1 || row === undefined) return 'stable';
	if (clock.nowNs - row.sinceNs <= clock.windowNs) return 'moving';
	return clock.nowNs - row.neededNs <= clock.windowNs ? 'settling' : 'stable';
}

/**
 * A generation that no record of this slot carries: one more than the last, or, where the last is not known any more
 * because a stable table's transitions were dropped, seconds since boot, which no counter can have overtaken unless the
 * slot changed more than once a second ever since.
 */
function nextGeneration(row: { readonly generation: number } | undefined, nowNs: bigint): number {
	if (row !== undefined) return (row.generation + 1) >>> 0 || 1;
	return Math.max(1, Number(nowNs / 1_000_000_000n) >>> 0);
}

export interface Applied {
	/** Slots whose `current` changed. */
	readonly changed: number;
	/** Whether a slot of the table is not stable now. */
	readonly moving: boolean;
}

/**
 * Makes `current` of every slot what `desired` says. A smaller `desired` is repeated to fill the table.
 *
 * The transition is written before the slot, so a program never sees a moving slot without what it needs.
 *
 * @param desired refs; its length is a power of two, at most the table's
 * @param isKnown whether a reference still names a backend; one that is down is known
 */
export function applySlots(
	t: OpenTable,
	desired: Uint32Array,
	clock: SlotClock,
	isKnown: (ref: number) => boolean,
): Applied {
	const wrap = desired.length - 1;
	let changed = 0;
	let moving = false;
	for (let i = 0; i < t.size; i++) {
		const word = t.slot(i);
		const current = word & REF_MASK;
		const want = desired[i & wrap];
		if (current === want) {
			if (word !== current) moving = true;
			continue;
		}
		changed++;
		if (current === REF_NONE) {
			// Nothing was served from here: nothing to remember. A transition under way goes on.
			t.setSlot(i, ((word & ~REF_MASK) | want) >>> 0);
			if (word !== current) moving = true;
			continue;
		}
		const row = t.transition(i);
		const phase = phaseOf(word, row, clock);
		const keepsOldest = phase === 'moving' && row !== undefined && row.previous !== REF_NONE && isKnown(row.previous);
		t.setTransition(i, {
			sinceNs: clock.nowNs,
			neededNs: clock.nowNs,
			previous: keepsOldest ? row.previous : current,
			generation: phase === 'stable' ? nextGeneration(row, clock.nowNs) : (row as TransitionRow).generation,
		});
		t.setSlot(i, (MOVING | want) >>> 0);
		moving = true;
	}
	return { changed, moving };
}

/**
 * The same with `tracking: none`: every slot is stable. No packet asks whether it moves, so flows are where `current` says
 * already, and a transition found later, tracked again, would take them for older ones and send them to `previous`.
 */
export function replaceSlots(t: OpenTable, desired: Uint32Array): Applied {
	const wrap = desired.length - 1;
	let changed = 0;
	for (let i = 0; i < t.size; i++) {
		const word = t.slot(i);
		const want = desired[i & wrap];
		if ((word & REF_MASK) !== want) changed++;
		if (word !== want) t.setSlot(i, want);
	}
	return { changed, moving: false };
}

/**
 * Marks the slots of a table that has just been made as moving away from the kernel's own mesh: flows that it served
 * when the agent attached stay with it (DESIGN 5.2, joining).
 */
export function startFromKernel(t: OpenTable, clock: SlotClock): void {
	for (let i = 0; i < t.size; i++) {
		const word = t.slot(i);
		t.setTransition(i, {
			sinceNs: clock.nowNs,
			neededNs: clock.nowNs,
			previous: REF_KERNEL,
			generation: nextGeneration(t.transition(i), clock.nowNs),
		});
		t.setSlot(i, (MOVING | (word & REF_MASK)) >>> 0);
	}
}

/** Hands all new flows back to the kernel's mesh; flows of the backends stay (DESIGN 5.2, leaving). */
export function leaveToKernel(t: OpenTable, clock: SlotClock, isKnown: (ref: number) => boolean): Applied {
	return applySlots(t, new Uint32Array([REF_KERNEL]), clock, isKnown);
}

/** Whether a change of flags changes what flows are hashed by, of a frontend that tracks them. */
export function isRehash(before: number, after: number): boolean {
	return ((before ^ after) & FrontendFlag.FRONTEND_AFFINITY) !== 0 && (after & FrontendFlag.FRONTEND_TRACK_NONE) === 0;
}

/** Whether a row of `rehashes` or `untracked` says nothing any more. */
export function isOver(row: Transition, clock: SlotClock): boolean {
	return clock.nowNs - row.since_ns > clock.windowNs && clock.nowNs - row.needed_ns > clock.windowNs;
}

/**
 * The row of `rehashes` for a frontend whose affinity changes: as with a slot, flows that no record tells of have the
 * oldest hash until a window is over, and records of an earlier change hold while that one is not.
 */
export function rehash(flagsBefore: number, was: Transition | undefined, clock: SlotClock): Transition {
	const over = was === undefined || isOver(was, clock);
	const moving = was !== undefined && clock.nowNs - was.since_ns <= clock.windowNs;
	const before =
		(flagsBefore & FrontendFlag.FRONTEND_AFFINITY) !== 0 ? HashedBy.HASHED_BY_CLIENT : HashedBy.HASHED_BY_FLOW;
	return {
		since_ns: clock.nowNs,
		needed_ns: clock.nowNs,
		previous: moving ? was.previous : before,
		generation: over ? nextGeneration(was, clock.nowNs) : was.generation,
	};
}

/** Whether a change of flags ends `tracking: always`, and its records are needed still. */
export function isUntracking(before: number, after: number): boolean {
	const { FRONTEND_TRACK_ALWAYS, FRONTEND_TRACK_NONE } = FrontendFlag;
	return (before & FRONTEND_TRACK_ALWAYS) !== 0 && (after & (FRONTEND_TRACK_ALWAYS | FRONTEND_TRACK_NONE)) === 0;
}

/**
 * The generation of records that a frontend tracks always with. Another each time that this begins, for in between nobody
 * looked at them, and a port of a client may belong to a new flow; the same where those of before hold still. The high bit
 * is no slot's.
 */
export function trackedGeneration(
	before: Pick<Frontend, 'flags' | 'generation'> | undefined,
	after: number,
	nowNs: bigint,
): number {
	const { FRONTEND_TRACK_ALWAYS, FRONTEND_TRACKED } = FrontendFlag;
	const last = before?.generation ?? 0;
	if (
		(after & FRONTEND_TRACK_ALWAYS) === 0 ||
		((before?.flags ?? 0) & (FRONTEND_TRACK_ALWAYS | FRONTEND_TRACKED)) !== 0
	)
		return last;
	return Math.max(last + 1, 2 ** 31 + Number((nowNs / 1_000_000_000n) & 0x3fff_ffffn)) >>> 0;
}

export interface Settled {
	/** Slots that were written back to stable. */
	readonly settled: number;
	/** Slots that are still moving or settling. */
	readonly moving: number;
}

/**
 * Writes slots whose time is over back to stable, so that packets stop looking at their transitions. Changes no
 * packet's way: the programs take such a slot as stable already.
 */
export function settle(t: OpenTable, clock: SlotClock): Settled {
	let settled = 0;
	let moving = 0;
	for (let i = 0; i < t.size; i++) {
		const word = t.slot(i);
		if (word >>> SLOT_PHASE_SHIFT !== 1) continue;
		if (phaseOf(word, t.transition(i), clock) !== 'stable') {
			moving++;
			continue;
		}
		t.setSlot(i, word & REF_MASK);
		settled++;
	}
	return { settled, moving };
}

/** Slots of a copied table that are not stored as stable. */
export function countMoving(slots: Uint32Array): number {
	let n = 0;
	for (let i = 0; i < slots.length; i++) if (slots[i] >>> SLOT_PHASE_SHIFT !== 0) n++;
	return n;
}
