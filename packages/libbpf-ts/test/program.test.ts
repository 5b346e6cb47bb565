import { test } from 'uvu';
import * as assert from 'uvu/assert';
import {
	type BpfObject,
	enableStats,
	type Feature,
	LIVE_FRAMES,
	open,
	openNetns,
	Program,
	probe,
} from '../src/index.js';
import { compile, namespace, pinDir, when, why } from './helpers.js';

const lack = why('root', 'clang');
let b: BpfObject;
test.before(() => {
	if (!lack) b = open(compile('all.bpf.c')).loadSync();
});
test.after(() => b?.[Symbol.dispose]());
const packet = Uint8Array.from({ length: 64 }, (_, i) => i);

when(test, lack, 'a test run gives verdict, packet and time', () => {
	const r = b.program('xdp_grow').testRun({ data: packet });
	assert.is(r.retval, 2);
	assert.is(r.data.length, 72, 'the program grew the packet by 8');
	assert.equal(r.data.subarray(8), packet);
	assert.type(r.durationNs, 'number');
});

when(test, lack, 'negative verdicts are negative', () => {
	assert.is(b.program('tc_main').testRun({ data: packet }).retval, -1);
});

when(test, lack, 'results are kept apart from later runs', () => {
	const p = b.program('xdp_grow');
	const first = p.testRun({ data: packet });
	const second = p.testRun({ data: new Uint8Array(100) });
	assert.is(first.data.length, 72);
	assert.equal(first.data.subarray(8), packet);
	assert.is(second.data.length, 108);
});

when(test, lack, 'a context goes in and comes out', () => {
	// struct xdp_md { data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex }
	const ctx = new Uint8Array(new Uint32Array([0, 64, 0, 1, 0, 0]).buffer);
	const r = b.program('xdp_grow').testRun({ data: packet, ctx });
	assert.is(r.ctx.length, 24);
	assert.is(new Uint32Array(r.ctx.buffer, r.ctx.byteOffset, 6)[1], 72);
	assert.is(b.program('xdp_grow').testRun({ data: packet }).ctx.length, 0);
});

when(test, lack, 'too little room and too short a packet are explained', () => {
	assert.throws(() => b.program('xdp_grow').testRun({ data: packet, outSize: 32 }), /larger than outSize 32/);
	assert.throws(() => b.program('xdp_grow').testRun({ data: new Uint8Array(4) }), /at least 14 bytes/);
});

when(test, lack, 'a runner reuses its buffers', () => {
	const r = b.program('xdp_grow').runner({ dataSize: 1500 });
	r.data.set(packet);
	for (let n = 60; n < 70; n++) {
		assert.is(r.run(n), 2);
		assert.is(r.outLength, n + 8);
		assert.is(r.out[8 + 5], 5);
	}
	assert.throws(() => r.run(1501), /exceed the runner's buffers/);
});

when(test, why('root', 'clang', 'ip'), 'live frames leave through the interface named in the context', async () => {
	// v0 sends what the program answers with XDP_TX; v1 counts it. The ifindex is the calling thread's namespace's.
	const ns = namespace('live');
	const net = await openNetns(ns);
	try {
		const counted = b.program('xdp_grow');
		using sink = await net.attachXdp(counted, 'v1', { mode: 'native' });
		using source = await net.attachXdp(counted, 'v0', { mode: 'native' });
		assert.ok((sink.info().ifindex ?? 0) > 0 && (source.info().ifindex ?? 0) > 0);
		const sent = await net.run<number>({
			module: new URL('./fixtures/live.js', import.meta.url),
			args: { progFd: b.program('xdp_main').fd, dev: 'v0' },
		});
		assert.is(sent, 0);
		// xdp_main passes: frames enter v0's own stack, and the run counts them.
		const counter = b.vars.counter.get() as bigint;
		assert.ok(counter >= 64n, `the program ran ${counter} times`);
	} finally {
		await net.close();
	}
});

when(test, lack, 'run time is counted while statistics are on', () => {
	const p = b.program('tc_other');
	using on = enableStats();
	const before = p.info();
	// Only attached or test-run programs count; test runs count since 5.1.
	p.testRun({ data: packet, repeat: 1000 });
	const after = p.info();
	assert.ok(on);
	assert.ok(after.runCnt >= before.runCnt);
	assert.is(after.tag.length, 16);
	assert.is(after.name, 'tc_other');
	assert.ok(after.mapIds.includes(b.maps.stats.id));
	assert.ok(after.xlatedLen > 0);
});

when(test, lack, 'a program is found again by pin and id', () => {
	const p = b.program('xdp_main');
	const path = `${pinDir()}/xdp_main`;
	p.pin(path);
	using again = Program.fromPin(path);
	using byId = Program.fromId(p.id);
	assert.is(again.id, p.id);
	assert.is(byId.name, 'xdp_main');
	p.unpin(path);
	assert.throws(
		() => Program.fromPin(path),
		/open pinned program .*no such file or directory \(is a program pinned there/,
	);
});

when(test, lack, 'probes answer for every feature', () => {
	for (const f of ['tcx', 'netkit', 'batch', 'ringbuf', 'xdp-link', 'prog-stats'] satisfies Feature[])
		assert.type(probe(f), 'boolean', f);
	assert.ok(
		probe('ringbuf') && probe('xdp-link') && probe('batch') && probe('prog-stats'),
		'in every kernel since 5.9',
	);
	assert.is(LIVE_FRAMES, 2);
});

test.run();
