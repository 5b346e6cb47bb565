// Microseconds a call, best of five. `node dist/test/bench.js` as root. Compare as ratios: machines differ.
import { maps, open, u32, u64 } from '../src/index.js';
import { compile } from './helpers.js';

function time(what: string, n: number, f: (i: number) => unknown, per = 'µs'): void {
	let best = Number.POSITIVE_INFINITY;
	for (let round = 0; round < 5; round++) {
		const t = process.hrtime.bigint();
		for (let i = 0; i < n; i++) f(i);
		best = Math.min(best, Number(process.hrtime.bigint() - t) / 1000 / n);
	}
	console.log(`${what.padEnd(56)} ${(per === 'ms' ? best / 1000 : best).toFixed(per === 'ms' ? 2 : 3)} ${per}`);
}

using b = open(compile('all.bpf.c')).loadSync();
const N = 65536;
using m = maps.create<number, bigint>({ kind: 'hash', key: u32, value: u64, maxEntries: 2 * N, name: 'bench' });
const key = new Uint32Array(new ArrayBuffer(4));
const k = new Uint8Array(key.buffer);
const v = new Uint8Array(new ArrayBuffer(8));
time('raw update', 200_000, (i) => {
	key[0] = i & (N - 1);
	m.raw.update(k, v);
});
time('raw lookup', 200_000, (i) => {
	key[0] = i & (N - 1);
	m.raw.lookup(k, v);
});
time('typed set (__u32 → __u64)', 200_000, (i) => m.set(i & (N - 1), 1n));
time('typed get', 200_000, (i) => m.get(i & (N - 1)));
const flows = b.map<object, object>('flows');
const flow = { saddr: 1, port: 80, proto: 6 };
const backend = { mac: new Uint8Array(6), port: 1, v4: 2, hits: 3n, name: 'a', up: true };
time('typed set, struct of 8 → struct of 56 bytes', 100_000, () => flows.set(flow, backend));
time('typed get, struct of 8 → struct of 56 bytes', 100_000, () => flows.get(flow));
const keys = new Uint8Array(4 * N);
new Uint32Array(keys.buffer).forEach((_, i, a) => {
	a[i] = i;
});
const vals = new Uint8Array(8 * N);
time('raw update batch of 65536', 5, () => m.raw.updateBatch(keys, vals, N), 'ms');
const all = Array.from({ length: N }, (_, i) => [i, 1n] as const);
time('setMany of 65536', 5, () => m.setMany(all), 'ms');
time('entries of 65536', 5, () => [...m.entries(8192)].length, 'ms');
time('per-CPU get (all CPUs)', 100_000, () => b.map<number, bigint[]>('stats').get(0));
const rings = b.mapOfMaps<number, number, number>('rings');
const inner = rings.createInner(65537);
time(
	'mmap, write 65537 values, unmap',
	5,
	() => {
		using w = inner.raw.mmap();
		const words = w.u32;
		for (let i = 0; i < 65537; i++) words[2 * i] = i;
	},
	'ms',
);
const inners = Array.from({ length: 64 }, (_, i) => [i, inner] as const);
time('map-in-map: 64 in one batch', 3, () => rings.setMany(inners), 'ms');
time(
	'map-in-map: 64 one by one',
	1,
	() => {
		for (const [i, x] of inners) rings.set(i, x);
	},
	'ms',
);
const p = b.program('tc_other');
const data = new Uint8Array(64);
time('testRun, 64 bytes', 100_000, () => p.testRun({ data }));
const run = p.runner({ dataSize: 64 });
time('runner.run, 64 bytes', 200_000, () => run.run());
const x = b.program('xdp_main');
const xr = x.runner({ dataSize: 64 });
time('runner.run, 64 bytes, xdp', 200_000, () => xr.run());
{
	using s = open(compile('all.bpf.c')).setConst('cfg', { sample: 1 }).loadSync();
	const ring = s.ringBuffer('events');
	const sr = s.program('xdp_main').runner({ dataSize: 64, repeat: 150 });
	let ns = 0n;
	let n = 0;
	for (let i = 0; i < 500; i++) {
		sr.run();
		const t = process.hrtime.bigint();
		n += ring.drain(() => {});
		ns += process.hrtime.bigint() - t;
	}
	console.log(`${'ring buffer drain, an event'.padEnd(56)} ${(Number(ns) / n / 1000).toFixed(3)} µs`);
}
