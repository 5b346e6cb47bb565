import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type BpfObject, open } from '../src/index.js';
import { compile, until, when, why } from './helpers.js';

const lack = why('root', 'clang');
let elf = '';
test.before(() => {
	if (!lack) elf = compile('all.bpf.c');
});
const load = (): BpfObject => open(elf).setConst('cfg', { sample: 1 }).loadSync();
interface Event {
	ifindex: number;
	len: number;
	seq: bigint;
}
const packet = new Uint8Array(64);

when(test, lack, 'drain gives records in order, some or all, over many turns of the ring', () => {
	using b = load();
	const p = b.program('xdp_main');
	const ring = b.ringBuffer('events');
	let seen = 0n;
	for (let turn = 0; turn < 100; turn++) {
		p.testRun({ data: packet, repeat: 40 });
		const take = (r: Uint8Array) => {
			assert.is(r.length, 16);
			const seq = new DataView(r.buffer, r.byteOffset).getBigUint64(8, true);
			assert.is(seq, ++seen);
		};
		assert.is(ring.drain(take, 15), 15);
		assert.is(ring.drain(take), 25);
		assert.is(ring.drain(take), 0);
	}
	ring.close();
});

when(test, lack, 'the async iterator wakes for events and ends at close', async () => {
	using b = load();
	const p = b.program('xdp_main');
	const ring = b.ringBuffer<Event>('events', 'event');
	const got: Event[] = [];
	const loop = (async () => {
		for await (const e of ring) got.push(e);
	})();
	await new Promise((r) => setImmediate(r));
	p.testRun({ data: packet, repeat: 3 });
	await until('three events', () => got.length === 3);
	p.testRun({ data: packet });
	await until('a fourth', () => got.length === 4);
	assert.equal(
		got.map((e) => [e.len, e.seq]),
		[1n, 2n, 3n, 4n].map((n) => [64, n]),
	);
	ring.close();
	await loop;
});

when(test, lack, 'listen calls back until stopped, and a second consumer is refused', async () => {
	using b = load();
	const ring = b.ringBuffer('events');
	let n = 0;
	const stop = ring.listen(() => void n++);
	assert.throws(() => ring.listen(() => {}), /has a consumer already/);
	b.program('xdp_main').testRun({ data: packet, repeat: 7 });
	await until('seven records', () => n === 7);
	stop();
	b.program('xdp_main').testRun({ data: packet });
	assert.is(
		ring.drain(() => {}),
		1,
	);
});

when(test, lack, 'a callback that throws loses its own record and no other', () => {
	using b = load();
	const ring = b.ringBuffer('events');
	b.program('xdp_main').testRun({ data: packet, repeat: 2 });
	assert.throws(
		() =>
			ring.drain(() => {
				throw new Error('mine');
			}),
		/mine/,
	);
	assert.is(
		ring.drain(() => {}),
		1,
	);
});

when(test, lack, 'an object closed from within the callback ends the drain', () => {
	const b = load();
	const ring = b.ringBuffer('events');
	b.program('xdp_main').testRun({ data: packet, repeat: 5 });
	assert.is(
		ring.drain(() => b[Symbol.dispose]()),
		1,
	);
});

test.run();
