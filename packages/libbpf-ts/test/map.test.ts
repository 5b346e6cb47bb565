import { test } from 'uvu';
import * as assert from 'uvu/assert';
import {
	type BpfError,
	type BpfObject,
	MAP_FLAG,
	maps,
	open,
	possibleCpus,
	UsageError,
	u32,
	u64,
} from '../src/index.js';
import { type All, compile, pinDir, when, why } from './helpers.js';

const lack = why('root', 'clang');
let b: BpfObject;
test.before(() => {
	if (!lack) b = open(compile('all.bpf.c')).loadSync();
});
test.after(() => b?.[Symbol.dispose]());
const thrown = (f: () => unknown): Error => {
	try {
		f();
	} catch (e) {
		return e as Error;
	}
	throw new Error('nothing was thrown');
};

when(test, lack, 'hash: get, has, set with modes, delete, getAndDelete', () => {
	const m = b.map<All['key'], All['value']>('flows');
	const k = { saddr: 0x0a000001, port: 80, proto: 6 };
	assert.is(m.get(k), undefined);
	assert.is(m.delete(k), false);
	m.set(k, { hits: 1n }, 'create');
	assert.ok(m.has(k));
	const twice = thrown(() => m.set(k, { hits: 2n }, 'create')) as BpfError;
	assert.is(twice.code, 'EEXIST');
	assert.match(twice.message, /update in map flows: file already exists \(the key exists already\)/);
	m.set(k, { hits: 3n }, 'exist');
	assert.is(m.getAndDelete(k)?.hits, 3n);
	assert.is(m.getAndDelete(k), undefined);
	assert.is((thrown(() => m.set(k, {}, 'exist')) as BpfError).code, 'ENOENT');
});

when(test, lack, 'what a program writes is read as the compiler meant it, and written back byte for byte', () => {
	const m = b.map<All['key'], All['value']>('flows');
	assert.is(b.program('tc_writes').testRun({ data: new Uint8Array(64) }).retval, 0);
	const key = { saddr: 0x0a000001, port: 443, proto: 6, pad: 0 };
	const value = m.get(key)!;
	assert.equal(
		{ ...value, v6: undefined },
		{
			mac: new Uint8Array([2, 0, 0, 0, 0, 9]),
			port: 8443,
			v4: 0xc0a80001,
			v6: undefined,
			nested: [
				{ a: 65535, b: -2 },
				{ a: 3, b: 32767 },
			],
			hits: 1n << 63n,
			low: 17,
			high: (1 << 27) - 5,
			name: 'backend',
			up: true,
		},
	);
	const [k, first, second] = [m.keySize, m.valueSize, m.valueSize].map((n) => new Uint8Array(n));
	m.key.encode(key, k);
	assert.ok(m.raw.lookup(k, first));
	m.value.encode(value, second);
	assert.equal(second, first);
	m.delete(key);
});

when(test, lack, 'a full hash says so', () => {
	using m = maps.create<number, bigint>({ kind: 'hash', key: u32, value: u64, maxEntries: 2, name: 'tiny' });
	m.set(1, 1n);
	m.set(2, 2n);
	const e = thrown(() => m.set(3, 3n)) as BpfError;
	assert.is(e.code, 'E2BIG');
	assert.match(e.message, /the map is full: 2 entries/);
});

when(test, lack, 'setMany, entries, keys and deleteMany agree over several batches', () => {
	using m = maps.create<number, bigint>({ kind: 'hash', key: u32, value: u64, maxEntries: 100_000, name: 'many' });
	const all = Array.from({ length: 70_000 }, (_, i) => [i, BigInt(i) * 3n] as const);
	assert.is(m.setMany(all), 70_000);
	const read = [...m.entries(500)];
	assert.is(read.length, 70_000);
	assert.ok(read.every(([k, v]) => v === BigInt(k) * 3n));
	assert.is(new Set(read.map(([k]) => k)).size, 70_000);
	assert.is([...m.keys()].length, 70_000);
	assert.is(m.deleteMany([1, 200_000, 2, 200_001, 3]), 3, 'absent keys are passed over');
	assert.is(m.clear(), 69_997);
	assert.equal([...m], []);
});

when(test, lack, 'entries of a map smaller than one hash bucket, and of an empty one', () => {
	using m = maps.create<number, bigint>({ kind: 'hash', key: u32, value: u64, maxEntries: 1, name: 'one' });
	assert.equal([...m], []);
	m.set(7, 7n);
	assert.equal([...m], [[7, 7n]]);
});

when(test, lack, 'batch updates stop at the entry that failed and say which', () => {
	using m = maps.create<number, bigint>({ kind: 'hash', key: u32, value: u64, maxEntries: 3, name: 'small' });
	const e = thrown(() => m.setMany([1, 2, 3, 4].map((i) => [i, 0n] as const))) as BpfError;
	assert.match(e.message, /update batch \(entry 3 of 4\) in map small: .*the map is full/);
});

when(test, lack, 'LRU keeps taking entries', () => {
	const m = b.map<number, bigint>('recent');
	for (let i = 0; i < 3000; i++) m.set(i, BigInt(i));
	assert.is(m.get(2999), 2999n);
	assert.ok([...m].length <= 1024);
	m.clear();
});

when(test, lack, 'arrays have every index and no other', () => {
	const m = b.map<number, number>('table');
	m.set(3, 33);
	assert.equal(
		[...m].map(([, v]) => v),
		[0, 0, 0, 33, 0, 0, 0, 0],
	);
	assert.is(m.get(8), undefined);
	assert.is((thrown(() => m.set(8, 1)) as BpfError).code, 'E2BIG');
});

when(test, lack, 'per-CPU maps give one value for each possible CPU', () => {
	const n = possibleCpus();
	const m = b.map<number, number[]>('per_key');
	const values = Array.from({ length: n }, (_, i) => i + 1);
	m.set(5, values);
	assert.equal(m.get(5), values);
	assert.equal([...m], [[5, values]]);
	assert.match(thrown(() => m.set(5, [...values, 1])).message, new RegExp(`one value for each of ${n} possible CPUs`));
	m.delete(5);
});

when(test, lack, 'per-CPU counters are summed in one pass', () => {
	const m = b.map<number, bigint[]>('stats');
	const before = new BigUint64Array(4);
	m.raw.sumPerCpu(before);
	b.program('xdp_grow').testRun({ data: new Uint8Array(64) });
	const after = new BigUint64Array(4);
	m.raw.sumPerCpu(after);
	assert.is(after[1] - before[1], 1n);
	assert.match(thrown(() => m.raw.sumPerCpu(new BigUint64Array(3))).message, /need more room/);
});

when(test, lack, 'LPM tries find the longest prefix', () => {
	const m = b.map<{ prefixlen: number; addr: Uint8Array }, number>('routes');
	m.set({ prefixlen: 8, addr: new Uint8Array([10, 0, 0, 0]) }, 8);
	m.set({ prefixlen: 24, addr: new Uint8Array([10, 1, 2, 0]) }, 24);
	assert.is(m.get({ prefixlen: 32, addr: new Uint8Array([10, 1, 2, 3]) }), 24);
	assert.is(m.get({ prefixlen: 32, addr: new Uint8Array([10, 9, 9, 9]) }), 8);
	assert.is(m.get({ prefixlen: 32, addr: new Uint8Array([11, 0, 0, 0]) }), undefined);
	assert.is([...m].length, 2);
	assert.is(m.clear(), 2);
});

when(test, lack, 'raw calls refuse buffers the kernel would overrun', () => {
	const stats = b.map('stats').raw;
	assert.is(stats.lookupSize, 8 * possibleCpus());
	const short = new Uint8Array(stats.lookupSize - 1);
	const e = thrown(() => stats.lookup(new Uint8Array(4), short));
	assert.instance(e, UsageError);
	assert.match(e.message, /map stats: value buffer has \d+ bytes, \d+ are needed/);
	assert.match(
		thrown(() => stats.lookup(new Uint8Array(3), new Uint8Array(4096))).message,
		/key buffer has 3 bytes, 4/,
	);
	const flows = b.map('flows').raw;
	assert.match(thrown(() => flows.updateBatch(new Uint8Array(15), new Uint8Array(1000), 2)).message, /keys buffer/);
	assert.match(thrown(() => flows.deleteBatch(new Uint8Array(15), 2)).message, /keys buffer/);
	const out = { cursor: new Uint8Array(8), keys: new Uint8Array(8), vals: new Uint8Array(1000), n: 2 };
	assert.match(thrown(() => flows.lookupBatch(null, out)).message, /keys buffer/);
});

when(test, lack, 'codecs that do not fit a map are refused', () => {
	const e = thrown(() => maps.fromId(b.maps.recent.id, { value: u32 }));
	assert.match(e.message, /values of 8 bytes, the codecs 4 and 4/);
});

when(test, lack, 'a mapped array is the map, until unmap', () => {
	const m = b.map<number, bigint>('shared');
	const mem = m.raw.mmap();
	assert.is(mem.length, 40_000);
	mem.u64[4999] = 42n;
	assert.is(m.get(4999), 42n);
	m.set(0, 7n);
	assert.is(mem.u64[0], 7n);
	const kept = mem.u64;
	mem.unmap();
	mem.unmap();
	for (const f of [() => mem.u64, () => mem.u32, () => mem.bytes, () => mem.buffer])
		assert.match(thrown(f).message, /mmap map shared: already unmapped/);
	kept[0] = 99n;
	assert.is(m.get(0), 7n, 'a kept view no longer reaches the map, and does not crash');
	using part = m.raw.mmap({ offset: 4096, length: 4096, readonly: true });
	assert.is(part.u64.length, 512);
	assert.match(thrown(() => m.raw.mmap({ offset: 40_960 })).message, /are not within/);
	assert.match(thrown(() => b.map('table').raw.mmap()).message, /not created with BPF_F_MMAPABLE/);
});

when(test, lack, 'maps in maps: other sizes, one batch, mmap, open again', () => {
	const rings = b.mapOfMaps<number, number, number>('rings');
	const inner = Array.from({ length: 20 }, (_, i) => rings.createInner(100 + i));
	assert.is(inner[3].maxEntries, 103);
	assert.is(inner[3].flags, MAP_FLAG.INNER_MAP | MAP_FLAG.MMAPABLE);
	assert.is(rings.setMany(inner.map((m, i) => [i, m] as const)), 20);
	assert.is(rings.getId(19), inner[19].id);
	assert.is(rings.getId(63), undefined);
	{
		using mem = inner[5].raw.mmap();
		mem.u32[2 * 2] = 123;
	}
	using again = rings.openInner(5)!;
	assert.is(again.get(2), 123);
	assert.is(again.maxEntries, 105);
	assert.is(rings.openInner(63), undefined);
	using wrong = maps.create({ kind: 'hash', key: u32, value: u32, maxEntries: 4, name: 'wrong' });
	assert.match(thrown(() => rings.set(1, wrong)).message, /put map wrong into rings: invalid argument \(it differs/);
	assert.ok(rings.delete(5));
	assert.is(rings.getId(5), undefined);
	for (const m of inner) m[Symbol.dispose]();
});

when(test, lack, 'a hash of maps takes struct keys, from a pin too', () => {
	const m = b.mapOfMaps<All['key'], number, number>('by_flow');
	const key = { saddr: 1, port: 2, proto: 6, pad: 0 };
	using inner = m.createInner();
	inner.set(1, 11);
	m.set(key, inner);
	assert.equal([...m.keys()], [key]);
	const path = `${pinDir()}/by_flow`;
	m.pin(path);
	using pinned = maps.mapOfMapsFromPin<All['key'], number, number>(path, { key: m.key });
	using opened = pinned.openInner(key)!;
	assert.is(opened.get(1), 11);
	assert.match(thrown(() => pinned.createInner()).message, /pass \{ inner \} to fromPin/);
	m.unpin(path);
});

when(test, lack, 'sk_storage is there as a map and no more', () => {
	const m = b.maps.sockets;
	assert.is(m.kind, 'sk_storage');
	assert.ok(m.info().id > 0);
});

when(test, lack, 'map info', () => {
	const i = b.maps.flows.info();
	assert.is(i.name, 'flows');
	assert.is(i.kind, 'hash');
	assert.is(i.keySize, 8);
	assert.is(i.maxEntries, 1024);
	assert.ok(i.btfId > 0);
});

test.run();
