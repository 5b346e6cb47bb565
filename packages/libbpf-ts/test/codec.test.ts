import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type Btf, bytesCodec, type Codec, open, UsageError, u32, u64 } from '../src/index.js';
import { compile, when, why } from './helpers.js';

const lack = why('clang');
let btf: Btf;
test.before(() => {
	if (lack) return;
	using o = open(compile('all.bpf.c'));
	btf = o.btf;
});
const bytes = <T>(c: Codec<T>, v: T): Uint8Array => {
	const b = new Uint8Array(c.size).fill(0xee);
	c.encode(v, b);
	return b;
};
const refuses = (f: () => unknown, text: RegExp) => {
	let error: unknown;
	try {
		f();
	} catch (e) {
		error = e;
	}
	assert.instance(error, UsageError);
	assert.match((error as Error).message, text);
	assert.not.match((error as Error).message, /\n/);
};

when(test, lack, '__be16 and __be32 are host numbers outside and network order inside', () => {
	const c = btf.codec<object>('struct flow_key');
	assert.is(c.size, 8);
	assert.equal(bytes(c, { saddr: 0x0a000001, port: 443, proto: 6 }), new Uint8Array([10, 0, 0, 1, 1, 187, 6, 0]));
	assert.equal(c.decode(new Uint8Array([10, 0, 0, 1, 1, 187, 6, 0])), {
		saddr: 0x0a000001,
		port: 443,
		proto: 6,
		pad: 0,
	});
});

when(test, lack, 'nested structs, unions, bit fields, strings and booleans come back as they went in', () => {
	const c = btf.codec<Record<string, unknown>>('struct backend');
	const value = {
		mac: new Uint8Array([2, 0, 0, 0, 0, 1]),
		port: 8080,
		v6: new Uint8Array(16).fill(7),
		nested: [
			{ a: 65535, b: -32768 },
			{ a: 0, b: 32767 },
		],
		hits: (1n << 64n) - 1n,
		low: 31,
		high: (1 << 27) - 1,
		name: 'häng',
		up: true,
	};
	const back = c.decode(bytes(c, value));
	assert.equal(back, { ...value, v4: 0x07070707 });
	assert.equal(bytes(c, back), bytes(c, value), 'a decoded union encodes again');
});

when(test, lack, 'what is left out is zero', () => {
	const b = bytes(btf.codec<object>('struct backend'), {});
	assert.ok(b.every((x) => x === 0));
});

when(test, lack, 'contradicting members of a union are refused', () => {
	const c = btf.codec<object>('struct backend');
	refuses(() => bytes(c, { v4: 1, v6: new Uint8Array(16) }), /v4 and v6 share memory/);
});

when(test, lack, 'numbers out of range, unknown fields and wrong lengths are refused in one sentence', () => {
	const key = btf.codec<object>('struct flow_key');
	const value = btf.codec<object>('struct backend');
	refuses(() => bytes(key, { proto: 256 }), /struct flow_key\.proto: 256 does not fit \(an integer from 0 to 255\)/);
	refuses(() => bytes(key, { port: -1 }), /flow_key\.port: -1/);
	refuses(() => bytes(key, { port: 1.5 }), /flow_key\.port: 1\.5/);
	refuses(() => bytes(key, { sport: 1 }), /struct flow_key has no field sport \(it has saddr, port, proto, pad\)/);
	refuses(() => bytes(key, 5 as unknown as object), /an object with saddr/);
	refuses(() => bytes(value, { mac: new Uint8Array(5) }), /backend\.mac: 5 bytes do not fit/);
	refuses(() => bytes(value, { hits: -1n }), /backend\.hits: -1n/);
	refuses(() => bytes(value, { low: 32 }), /backend\.low: 32/);
	refuses(() => bytes(value, { name: 'much too long' }), /a string of up to 8 bytes/);
	refuses(() => bytes(value, { nested: [] }), /0 elements given/);
	refuses(() => key.encode({}, new Uint8Array(7)), /8 bytes at 0 do not fit a buffer of 7/);
	refuses(() => btf.codec('struct nothing'), /BTF has no type struct nothing/);
});

when(test, lack, 'a safe integer serves where a bigint is wanted', () => {
	assert.equal(bytes(u64 as Codec<unknown>, 5), bytes(u64, 5n));
	refuses(() => bytes(u64 as Codec<unknown>, 2 ** 60), /does not fit/);
});

when(test, lack, 'plain codecs', () => {
	assert.equal(bytes(u32, 0x01020304), new Uint8Array([4, 3, 2, 1]));
	assert.equal(bytes(bytesCodec(2), new Uint8Array([1, 2])), new Uint8Array([1, 2]));
	refuses(() => bytes(bytesCodec(2), new Uint8Array(3)), /2 bytes are wanted, 3 given/);
});

when(test, lack, 'layouts name every field with offset, size and C type', () => {
	const s = btf.struct('flow_key');
	assert.is(s.kind, 'struct');
	assert.is(s.size, 8);
	assert.equal(
		s.fields.map((f) => [f.name, f.offset, f.size, f.c, f.ts, f.bigEndian]),
		[
			['saddr', 0, 4, '__be32', 'number', true],
			['port', 4, 2, '__be16', 'number', true],
			['proto', 6, 1, '__u8', 'number', false],
			['pad', 7, 1, '__u8', 'number', false],
		],
	);
	const b = btf.struct('struct backend').fields;
	assert.equal(
		b.map((f) => [f.name, f.offset]),
		[
			['mac', 0],
			['port', 6],
			['v4', 8],
			['v6', 8],
			['nested', 24],
			['hits', 32],
			['low', 40],
			['high', 40],
			['name', 44],
			['up', 52],
		],
	);
	assert.equal(
		b.filter((f) => f.bits).map((f) => [f.bitOffset, f.bits]),
		[
			[320, 5],
			[325, 27],
		],
	);
});

when(test, lack, 'enums keep signs, and types can be written as TypeScript', () => {
	assert.equal(btf.enum('verdict'), { VERDICT_PASS: 2, VERDICT_DROP: 1, VERDICT_ODD: -3 });
	assert.ok(btf.enums().some((e) => e.name === 'verdict'));
	assert.ok(btf.structs().includes('struct flow_key'));
	assert.is(btf.tsOf('struct flow_key'), '{ saddr: number; port: number; proto: number; pad: number }');
});

test.run();
