import * as fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { REF_KERNEL, REF_MASK, REF_NONE } from '../../src/loader/layout.gen.js';
import {
	applySlots,
	leaveToKernel,
	phaseOf,
	refOf,
	replaceSlots,
	settle,
	startFromKernel,
} from '../../src/mesh/slots.js';
import type { OpenTable, TransitionRow } from '../../src/mesh/store.js';
import { createMemoryStore } from './memory-store.js';

const test = suite('slots');
const A = refOf(1, 1);
const B = refOf(2, 1);
const C = refOf(3, 1);
const WINDOW = 60n;
const known = () => true;

/** One slot, and what is done to it. */
function slot(first: number) {
	const store = createMemoryStore(false);
	store.tables.create([[2, Uint32Array.of(first)]]);
	const t = { now: 1_000_000_000_000n };
	const clock = () => ({ nowNs: t.now, windowNs: WINDOW });
	const edit = <T>(f: (o: OpenTable) => T): T => store.tables.edit(2, f);
	return {
		to: (ref: number, isKnown: (r: number) => boolean = known) =>
			edit((o) => applySlots(o, Uint32Array.of(ref), clock(), isKnown)),
		wait: (ns: bigint) => {
			t.now += ns;
		},
		packetElsewhere: () =>
			edit((o) => {
				const row = o.transition(0) as TransitionRow;
				o.setTransition(0, { ...row, neededNs: t.now });
			}),
		replace: (ref: number) => edit((o) => replaceSlots(o, Uint32Array.of(ref))),
		settle: () => edit((o) => settle(o, clock())),
		state: () =>
			edit((o) => ({
				current: o.slot(0) & REF_MASK,
				stored: o.slot(0) >>> 30,
				phase: phaseOf(o.slot(0), o.transition(0), clock()),
				previous: o.transition(0)?.previous,
				generation: o.transition(0)?.generation,
			})),
	};
}

test('a table that is made now is stable and remembers nothing', () => {
	const s = slot(A);
	assert.equal(s.state(), { current: A, stored: 0, phase: 'stable', previous: undefined, generation: undefined });
});

test('a change of a stable slot: previous is the old current, since and needed are now', () => {
	const s = slot(A);
	assert.equal(s.to(B), { changed: 1, moving: true });
	assert.equal(s.state(), { current: B, stored: 1, phase: 'moving', previous: A, generation: 1000 });
});

test('no change writes nothing', () => {
	const s = slot(A);
	assert.equal(s.to(A), { changed: 0, moving: false });
	assert.is(s.state().stored, 0);
});

test('while it moves the oldest previous stays, and so does the generation', () => {
	const s = slot(A);
	s.to(B);
	s.wait(30n);
	s.to(C);
	assert.equal(s.state(), { current: C, stored: 1, phase: 'moving', previous: A, generation: 1000 });
	s.wait(45n);
	assert.is(s.state().phase, 'moving', 'the window starts anew with each change');
});

test('while it moves a previous that is gone yields to the old current', () => {
	const s = slot(A);
	s.to(B);
	s.to(C, (r) => r !== A);
	assert.equal(s.state().previous, B);
});

test('one that is down is not gone', () => {
	const s = slot(A);
	s.to(B);
	s.to(A);
	s.to(C);
	assert.equal(s.state().previous, A);
});

test('it settles one window after the last change and rests one window after it was last needed', () => {
	const s = slot(A);
	s.to(B);
	s.wait(60n);
	s.packetElsewhere();
	assert.is(s.state().phase, 'moving');
	s.wait(1n);
	assert.is(s.state().phase, 'settling');
	s.wait(59n);
	assert.is(s.state().phase, 'settling');
	s.wait(1n);
	assert.is(s.state().phase, 'stable');
	assert.is(s.state().stored, 1, 'by the clock alone');
});

test('a change while it settles takes the old current as previous and keeps the generation', () => {
	const s = slot(A);
	s.to(B);
	s.wait(60n);
	s.packetElsewhere();
	s.wait(10n);
	s.to(C);
	assert.equal(s.state(), { current: C, stored: 1, phase: 'moving', previous: B, generation: 1000 });
});

test('a slot that is stable by the clock is stable at its next change: another generation, the old current', () => {
	const s = slot(A);
	s.to(B);
	s.wait(1000n);
	s.to(C);
	assert.equal(s.state(), { current: C, stored: 1, phase: 'moving', previous: B, generation: 1001 });
});

test('untracked, a slot rests at once, and its next transition has another generation', () => {
	const s = slot(A);
	s.to(B);
	s.wait(1n);
	assert.equal(s.replace(B), { changed: 0, moving: false });
	assert.equal([s.state().phase, s.state().current], ['stable', B]);
	s.to(C);
	assert.equal(s.replace(A), { changed: 1, moving: false });
	assert.equal([s.state().stored, s.state().current], [0, A]);
	s.to(B);
	assert.equal(s.state(), { current: B, stored: 1, phase: 'moving', previous: A, generation: 1002 });
});

test('settle() writes back what rests and nothing else', () => {
	const s = slot(A);
	s.to(B);
	assert.equal(s.settle(), { settled: 0, moving: 1 });
	s.wait(61n);
	assert.equal(s.settle(), { settled: 1, moving: 0 });
	assert.is(s.state().stored, 0);
	s.to(A);
	assert.is(s.state().generation, 1001, 'the generation goes on after the sweep');
});

test('a slot without a backend takes its first one with nothing to remember', () => {
	const s = slot(REF_NONE);
	s.to(A);
	assert.equal(s.state(), { current: A, stored: 0, phase: 'stable', previous: undefined, generation: undefined });
});

test('a slot that loses its backend remembers it', () => {
	const s = slot(A);
	s.to(REF_NONE);
	assert.equal(s.state(), { current: REF_NONE, stored: 1, phase: 'moving', previous: A, generation: 1000 });
	s.to(B);
	assert.equal(s.state(), { current: B, stored: 1, phase: 'moving', previous: A, generation: 1000 });
});

test('joining: the kernel is what was before, until the window ends; leaving is the reverse', () => {
	const store = createMemoryStore(false);
	store.tables.create([[2, Uint32Array.of(A, B)]]);
	const clock = { nowNs: 5_000_000_000n, windowNs: WINDOW };
	store.tables.edit(2, (t) => startFromKernel(t, clock));
	store.tables.edit(2, (t) => {
		assert.is(t.slot(1) & REF_MASK, B);
		assert.is(phaseOf(t.slot(1), t.transition(1), clock), 'moving');
		assert.is(t.transition(1)?.previous, REF_KERNEL);
		applySlots(t, Uint32Array.of(B), clock, known);
		assert.is(t.transition(0)?.previous, REF_KERNEL, 'the kernel is never gone');
	});
	const later = { nowNs: 6_000_000_000n, windowNs: WINDOW };
	store.tables.edit(2, (t) => {
		assert.is(leaveToKernel(t, later, known).changed, 2);
		assert.is(t.slot(0) & REF_MASK, REF_KERNEL);
		assert.is(t.transition(0)?.previous, B);
	});
});

test('a smaller table is repeated to fill the array', () => {
	const store = createMemoryStore(false);
	store.tables.create([[2, new Uint32Array(8).fill(A)]]);
	store.tables.edit(2, (t) => applySlots(t, Uint32Array.of(A, B), { nowNs: 1n, windowNs: WINDOW }, known));
	assert.equal(
		[...(store.tables.read(2) as Uint32Array)].map((w) => w & REF_MASK),
		[A, B, A, B, A, B, A, B],
	);
});

test('the transition is written before the slot', () => {
	const log: string[] = [];
	const t: OpenTable = {
		size: 1,
		slot: () => A,
		setSlot: () => log.push('slot'),
		transition: () => undefined,
		setTransition: () => log.push('transition'),
	};
	applySlots(t, Uint32Array.of(B), { nowNs: 1n, windowNs: WINDOW }, known);
	assert.equal(log, ['transition', 'slot']);
});

/** DESIGN 5.3 as it reads, with the phases changed by a sweep: what slots.ts computes from the clock. */
class Model {
	current: number;
	previous = 0;
	phase: 'stable' | 'moving' | 'settling' = 'stable';
	generation = 0;
	since = 0n;
	needed = 0n;
	constructor(first: number) {
		this.current = first;
	}
	tick(now: bigint) {
		if (this.phase === 'moving' && now - this.since > WINDOW) this.phase = 'settling';
		if (this.phase === 'settling' && now - this.needed > WINDOW) this.phase = 'stable';
	}
	to(ref: number, now: bigint, isKnown: (r: number) => boolean) {
		if (ref === this.current) return;
		if (this.phase !== 'moving' || !isKnown(this.previous)) this.previous = this.current;
		if (this.phase === 'stable') this.generation++;
		this.current = ref;
		this.phase = 'moving';
		this.since = now;
		this.needed = now;
	}
}

test('any sequence of changes, packets, pauses and sweeps: as the model that ticks', () => {
	const step = fc.oneof(
		fc.record({ kind: fc.constant('to' as const), ref: fc.constantFrom(A, B, C), gone: fc.constantFrom(0, A, B, C) }),
		fc.record({ kind: fc.constant('wait' as const), ns: fc.integer({ min: 1, max: 90 }) }),
		fc.record({ kind: fc.constant('packet' as const) }),
		fc.record({ kind: fc.constant('settle' as const) }),
	);
	fc.assert(
		fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
			const s = slot(A);
			const m = new Model(A);
			let now = 0n;
			let first: number | undefined;
			for (const x of steps) {
				m.tick(now);
				if (x.kind === 'to') {
					const isKnown = (r: number) => r !== x.gone;
					s.to(x.ref, isKnown);
					m.to(x.ref, now, isKnown);
				} else if (x.kind === 'wait') {
					s.wait(BigInt(x.ns));
					now += BigInt(x.ns);
				} else if (x.kind === 'packet') {
					if (s.state().phase !== 'stable') {
						s.packetElsewhere();
						m.needed = now;
					}
				} else s.settle();
				m.tick(now);
				const got = s.state();
				assert.is(got.current, m.current);
				assert.is(got.phase, m.phase);
				if (m.phase !== 'stable') {
					assert.is(got.previous, m.previous);
					first ??= (got.generation as number) - m.generation;
					assert.is((got.generation as number) - first, m.generation);
				}
			}
		}),
		{ numRuns: 500 },
	);
});

test.run();
