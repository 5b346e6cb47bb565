import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { generateLayout } from '../../src/loader/gen-layout.js';
import * as layout from '../../src/loader/layout.gen.js';
import { type Codec, getIp, getIp4, getMac, putIp, putIp4, putMac } from '../../src/loader/text.js';
import { BPF_DIR } from './fixture.js';

const COMMITTED = fileURLToPath(new URL('../../../src/loader/layout.gen.ts', import.meta.url));

/** C name and codec of every struct. */
const CODECS: readonly (readonly [string, Codec<unknown>])[] = Object.entries(layout)
	.filter(([name]) => name.endsWith('Codec'))
	.map(([name, codec]) => [
		name.replace(/Codec$/, '').replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`),
		codec as unknown as Codec<unknown>,
	]);

test('the committed layout is what the generator makes of bpf/mesh.h', async () => {
	assert.is(readFileSync(COMMITTED, 'utf8'), await generateLayout(BPF_DIR), 'run: npm run layout');
});

test('sizes and offsets are those of the C compiler', () => {
	const dir = mkdtempSync(join(tmpdir(), 'bl-ldr-'));
	try {
		const lines = CODECS.flatMap(([name, c]) => [
			`printf("${name} %zu\\n", sizeof(struct ${name}));`,
			...Object.keys(c.offsets).map((f) => `printf("${name}.${f} %zu\\n", offsetof(struct ${name}, ${f}));`),
		]);
		const source = join(dir, 'offsets.c');
		writeFileSync(
			source,
			`#include <stdio.h>\n#include <stddef.h>\n#include "mesh.h"\nint main(void) {\n${lines.join('\n')}\n}\n`,
		);
		execFileSync('cc', ['-I', BPF_DIR, '-o', join(dir, 'offsets'), source]);
		const c = execFileSync(join(dir, 'offsets'), { encoding: 'utf8' }).trim().split('\n');
		const ours = CODECS.flatMap(([name, codec]) => [
			`${name} ${codec.size}`,
			...Object.entries(codec.offsets).map(([f, at]) => `${name}.${f} ${at}`),
		]);
		assert.equal(ours, c);
		assert.ok(CODECS.length >= 20);
	} finally {
		rmSync(dir, { recursive: true, force: true });
	}
});

test('what is decoded from any bytes encodes to the same bytes, padding zero', () => {
	const once = (c: Codec<unknown>, bytes: Uint8Array) => {
		const out = new Uint8Array(c.size + 2).fill(0xaa);
		c.encode(c.decode(new DataView(bytes.buffer, bytes.byteOffset), 0), new DataView(out.buffer), 1);
		assert.equal([out[0], out.at(-1)], [0xaa, 0xaa], 'nothing beyond the row is written');
		return out.slice(1, -1);
	};
	for (const [, c] of CODECS) {
		fc.assert(
			fc.property(fc.uint8Array({ minLength: c.size, maxLength: c.size }), (bytes) => {
				const first = once(c, bytes);
				assert.equal(once(c, first), first);
			}),
			{ numRuns: 50 },
		);
	}
});

test('a row is written in the order of bytes that the programs read', () => {
	const v = new DataView(new ArrayBuffer(256));
	layout.settingsCodec.encode(
		{
			heartbeat_ns: 1n,
			stale_after_ns: 0n,
			netns_cookie: 0n,
			table_digest: 0n,
			vtep: '192.168.78.1',
			vni: 12509184,
			vxlan_port: 4789,
			flags: 3,
			self: 2,
			hash_seed: 0xdeadbeef,
			mark: 7,
			mesh_mtu: 1400,
			own4: ['10.0.0.1', '10.0.0.2'],
			own6: ['fd00::1'],
		},
		v,
		0,
	);
	assert.is(v.getUint8(0), 1);
	assert.equal([...new Uint8Array(v.buffer, 32, 10)], [192, 168, 78, 1, 0xbe, 0xe0, 0x00, 0, 0x12, 0xb5]);
	assert.equal(layout.settingsCodec.decode(v, 0).own4, ['10.0.0.1', '10.0.0.2']);
	assert.equal(layout.settingsCodec.decode(v, 0).own6, ['fd00::1']);
	assert.is(layout.settingsCodec.decode(v, 0).vni, 12509184);
});

test('verdicts are named in snake_case, by number', () => {
	assert.is(layout.VERDICTS[layout.Verdict.ENCAP_NODE], 'encap_node');
	assert.is(layout.VERDICTS.length, layout.Verdict.VERDICT_COUNT);
	assert.is(layout.PROGRAMS[layout.Program.PROGRAM_UPLINK_TC_EGRESS], 'uplink_tc_egress');
	assert.is(layout.PROGRAMS.length, layout.Program.PROGRAM_COUNT);
});

test('addresses and MACs go to bytes and back as ipaddr.js and URLs have them', () => {
	const v = new DataView(new ArrayBuffer(16));
	const four = fc.ipV4();
	fc.assert(
		fc.property(four, (text) => {
			putIp(text, v, 0);
			assert.equal([...new Uint8Array(v.buffer)], ipaddr.IPv4.parse(text).toIPv4MappedAddress().toByteArray());
			assert.is(getIp(v, 0), text);
			putIp4(text, v, 4);
			assert.is(getIp4(v, 4), text);
		}),
	);
	fc.assert(
		fc.property(fc.ipV6(), (text) => {
			putIp(text, v, 0);
			const bytes = [...new Uint8Array(v.buffer)];
			const shown = getIp(v, 0);
			// WHATWG URLs write IPv6 as RFC 5952 does, but IPv4-mapped ones in hex.
			const canonical = (t: string) => new URL(`http://[${t.includes(':') ? t : `::ffff:${t}`}]`).hostname;
			assert.is(canonical(shown), canonical(text));
			if (shown.includes(':')) assert.is(`[${shown}]`, canonical(text));
			putIp(shown, v, 0);
			assert.equal([...new Uint8Array(v.buffer)], bytes);
		}),
		{ numRuns: 1000 },
	);
	fc.assert(
		fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (bytes) => {
			new Uint8Array(v.buffer).set(bytes);
			const text = getMac(v, 0);
			putMac(text.toUpperCase(), v, 8);
			assert.equal(new Uint8Array(v.buffer, 8, 6), bytes);
		}),
	);
});

for (const text of [
	'',
	'1',
	'1.2.3',
	'1.2.3.4.5',
	'256.1.1.1',
	'01.2.3.4',
	'1..2.3',
	'10.0.0.1 ',
	':',
	':::',
	'1::2::3',
	'12345::',
	'1:2:3:4:5:6:7',
	'1:2:3:4:5:6:7:8:9',
	'fe80::1%eth0',
	'::g',
	'1:',
	'::1.2.3',
	'::1.2.3.4:5',
]) {
	test(`${JSON.stringify(text)} is no address`, () => {
		assert.throws(() => putIp(text, new DataView(new ArrayBuffer(16)), 0), /expected IPv4 or IPv6/);
	});
}

for (const text of ['', '06:00:00:00:00', '06:00:00:00:00:0g', '06-00-00-00-00-01', '06:00:00:00:00:001']) {
	test(`${JSON.stringify(text)} is no MAC`, () => {
		assert.throws(() => putMac(text, new DataView(new ArrayBuffer(8)), 0), /expected aa:bb/);
	});
}

test('more own addresses than the row has room for are refused', () => {
	const nine = Array.from({ length: 9 }, (_, i) => `10.0.0.${i}`);
	const row = { ...layout.settingsCodec.decode(new DataView(new ArrayBuffer(216)), 0), own4: nine };
	assert.throws(
		() => layout.settingsCodec.encode(row, new DataView(new ArrayBuffer(216)), 0),
		/settings\.own4.*at most 8/,
	);
});

test.run();
