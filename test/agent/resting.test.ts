/** What is held for services without tasks, and when it is put back (src/agent/resting.ts). */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createResting, type Resting } from '../../src/agent/resting.js';
import type { Held } from '../../src/loader/layout.gen.js';
import type { Entries } from '../../src/mesh/entries.js';
import type { Demand } from '../../src/mesh/sources/docker-scale.js';
import { waitFor } from '../support/wait.js';

const test = suite('resting');
const FRAME = new Uint8Array([1, 2, 3]);

let each: (held: Held, frame: Uint8Array) => void;
let injected: [number, Uint8Array][];
let demands: Demand[];
let packets: bigint;
let resting: Resting;

/** Entries as far as they are looked at: web has frontend 5. */
const rows = (active: boolean, rests = true): Entries =>
	({
		services: new Map([
			[
				'web',
				{
					mesh: {
						spec: rests ? { scaleFromZero: { idleMs: 1000 } } : {},
						backends: [{ state: active ? 'active' : 'draining' }],
					},
					frontends: [{ index: 5 }],
				},
			],
		]),
	}) as unknown as Entries;
const held = (port: number, over: Partial<Held> = {}): Held => ({
	time_ns: 0n,
	client: '192.0.2.9',
	addr: '192.0.2.1',
	client_port: port,
	port: 80,
	proto: 6,
	frontend: 5,
	ifindex: 3,
	len: FRAME.length,
	...over,
});

test.before.each(() => {
	injected = [];
	demands = [];
	packets = 0n;
	resting = createResting({
		listen(callback) {
			each = callback;
			return () => undefined;
		},
		inject: (ifindex, frame) => void injected.push([ifindex, frame]),
		packets: () => packets,
		bootTimeNs: () => 30_000_000_000n,
		demand: (d) => void demands.push(d),
		log: () => undefined,
		demandMs: 50,
	});
});
test.after.each(() => resting.close());
const wanted = () => demands.filter((d) => d.wanted.length > 0);

test('a SYN waits, its service is asked for once a second, and it is put back when a task is there', async () => {
	resting.update(rows(false));
	each(held(1000, { time_ns: 29_000_000_000n }), FRAME);
	each(held(1001, { time_ns: 29_000_000_000n }), FRAME);
	assert.equal(wanted(), [{ wanted: ['web'], busy: [] }]);
	assert.is(resting.counters().waiting, 2);
	await waitFor('it to be asked for again', () => wanted().length === 2, 3000);
	// The same client asks again: one packet.
	each(held(1000, { time_ns: 29_500_000_000n }), FRAME);
	assert.is(resting.counters().waiting, 2);
	resting.update(rows(true));
	await waitFor('both to be put back', () => injected.length >= 2);
	assert.equal(injected[0], [3, FRAME]);
	assert.equal(resting.counters(), { waiting: 0, ended: { released: 2, expired: 0, crowded: 0 } });
	await new Promise((done) => setTimeout(done, 1100));
	assert.is(injected.length, 10, 'each five times: the task’s node may be ready a moment later');
	assert.is(wanted().length, 2);
});

test('of a datagram there is one', async () => {
	resting.update(rows(false));
	each(held(1000, { time_ns: 29_000_000_000n, proto: 17 }), FRAME);
	resting.update(rows(true));
	await new Promise((done) => setTimeout(done, 1000));
	assert.is(injected.length, 1);
});

test('what no copy was made of wakes its service all the same; what is old, or of another service, does not', () => {
	resting.update(rows(false));
	each(held(1000, { time_ns: 1_000_000_000n }), FRAME);
	each(held(1000, { time_ns: 29_000_000_000n, frontend: 6 }), FRAME);
	assert.equal(wanted(), []);
	each(held(1000, { time_ns: 29_000_000_000n, len: 0 }), new Uint8Array());
	assert.is(wanted().length, 1);
	assert.is(resting.counters().waiting, 0);
});

test('a crowd has a limit', () => {
	resting.update(rows(false));
	for (let i = 0; i < 300; i++) each(held(1000 + i, { time_ns: 29_000_000_000n }), FRAME);
	assert.equal(resting.counters(), { waiting: 256, ended: { released: 0, expired: 0, crowded: 44 } });
	resting.update(rows(false, false));
	assert.equal(resting.counters(), { waiting: 0, ended: { released: 0, expired: 256, crowded: 44 } });
});

test('managers hear who is used, and that this node listens', async () => {
	resting.update(rows(true));
	await waitFor('a word', () => demands.length > 0);
	assert.equal(demands[0], { wanted: [], busy: [] });
	packets = 7n;
	await waitFor('busy', () => demands.some((d) => d.busy.join() === 'web'));
	const n = demands.length;
	await waitFor('another word', () => demands.length > n + 1);
	assert.equal(demands.at(-1), { wanted: [], busy: [] });
	resting.update(rows(true, false));
	await new Promise((done) => setTimeout(done, 60));
	const last = demands.length;
	await new Promise((done) => setTimeout(done, 200));
	assert.is(demands.length, last, 'with nobody to rest there is nothing to say');
});

test.run();
