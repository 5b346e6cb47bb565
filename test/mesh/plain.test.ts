/** The quick reading of mesh.yaml says what the real parser says, or nothing. */
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { parse } from 'yaml';
import { BeelineError } from '../../src/errors.js';
import { type Reading, readMesh } from '../../src/mesh/sources/file.js';
import { parsePlainYaml } from '../../src/mesh/sources/plain.js';
import type { Membership } from '../../src/mesh/types.js';

const test = suite('quick reading of the mesh file');

const MESH = `nodes:
  - { name: n1, address: 192.168.78.1 } # first
  - { name: n2, address: 192.168.78.2 }
services:
  # the web
  - name: web
    ports: [{ published: 8080, target: 80, protocol: tcp }]
    options: { returnPath: auto, trackingWindow: 2h15m }
    backends:
      - { node: n2, address: 172.18.0.2, weight: 1 } # one

      - { node: n2, addresses: [172.18.0.3, "fd00::3"] }
      - node: n1
  - name: dns
    ports:
    - published: 53
      target: 5353
      protocol: udp
    backends:
    - node: n1
      address: 172.18.0.9
      drain: true
  - name: empty
    ports: [{ published: 90, target: 9 }]
networks:
  - { name: red, subnet: 10.44.0.0/24, vni: 5001, options: { mtu: 1500 } }
`;

test('plain YAML is read as the real parser reads it', () => {
	assert.equal(parsePlainYaml(MESH), parse(MESH));
	assert.ok(readMesh('m', Buffer.from(MESH)).prints);
});

test('what is not plain is left to the real parser', () => {
	for (const text of [
		'a: &x 1',
		'a: |\n  b',
		'a: 007',
		'a: 1e3',
		'a: 0x10',
		'a: "\\n"',
		'a: b: c',
		'a: True',
		'- - a',
		'a: b\n  c',
		'---\na: b',
		'"a": b',
		'a: 1\na: 2',
		'a:\tb',
		'a: *x',
		'a: b#c',
		'a: !!str b',
		'{a}',
		'a: [b,\n c]',
		"a: 'it''s'",
	])
		assert.is(parsePlainYaml(text), undefined, text);
});

const outcome = (f: () => unknown): unknown => {
	try {
		return f();
	} catch {
		return undefined;
	}
};

const TOKENS = [
	'a',
	'b:',
	'c: ',
	'- ',
	'-',
	'\n',
	'\n  ',
	'\n    ',
	'{',
	'}',
	'[',
	']',
	', ',
	',',
	'"x y"',
	"'z'",
	'#',
	' # c',
	'1',
	'0',
	'12',
	'1.5',
	'10.0.0.1',
	'fd00::1',
	'::',
	': ',
	'true',
	'null',
	'no',
	'~',
	'60s',
	'1_0',
	'0b1',
	'2001-01-01',
	'1:30',
	'e',
	' ',
	'<<',
	'10.0.0.0/8',
	'x: y',
];

test('whatever it reads of scrambled text, the real parser reads the same', () => {
	let read = 0;
	const line = fc.tuple(
		fc.constantFrom(0, 0, 2, 2, 4),
		fc.constantFrom('', '', '- '),
		fc.constantFrom('', 'a: ', 'b: ', 'c:'),
		fc.array(fc.constantFrom(...TOKENS), { maxLength: 5 }),
	);
	const lines = fc
		.array(line, { minLength: 1, maxLength: 6 })
		.map((all) => all.map(([n, dash, key, rest]) => ' '.repeat(n) + dash + key + rest.join('')).join('\n'));
	fc.assert(
		fc.property(lines, (text) => {
			const quick = parsePlainYaml(text);
			if (quick === undefined) return;
			read++;
			assert.equal(quick, parse(text), JSON.stringify(text));
		}),
		{ numRuns: 10_000 },
	);
	assert.ok(read > 250, `${read} of 10 000 were plain`);
});

/** The reading of the whole text by the real parser: a quoted key is not plain. */
const slowly = (text: string): Membership | undefined =>
	outcome(
		() =>
			readMesh('m', Buffer.from(text.startsWith('{') ? `${text} # not JSON` : `${text}\n"networks": []`)).membership,
	) as Membership | undefined;

interface Row {
	readonly s: number;
	readonly b: readonly number[];
	readonly weight: number;
}

const write = {
	yaml: (rows: readonly Row[]) =>
		`nodes:\n  - { name: n1, address: 10.0.0.1 }\nservices:\n${rows
			.map(
				(r) =>
					`  - name: s${r.s}\n    ports: [{ published: ${1000 + r.s}, target: 80 }]\n    backends:\n${r.b.map((b) => `      - { node: n1, address: 172.18.0.${b}, weight: ${r.weight} }\n`).join('')}`,
			)
			.join('')}`,
	json: (rows: readonly Row[], indent?: number) =>
		JSON.stringify(
			{
				nodes: [{ name: 'n1', address: '10.0.0.1' }],
				services: rows.map((r) => ({
					name: `s${r.s}`,
					ports: [{ published: 1000 + r.s, target: 80 }],
					backends: r.b.map((b) => ({ node: 'n1', address: `172.18.0.${b}`, weight: r.weight })),
				})),
			},
			null,
			indent,
		),
};

const row = fc.record({
	s: fc.integer({ min: 1, max: 12 }),
	b: fc.uniqueArray(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 6 }),
	weight: fc.integer({ min: 0, max: 3 }),
});
/** A service each, a few, or all in one part of the file. */
const partBytes = fc.constantFrom(1, 300, 65536);
const rows = fc.uniqueArray(row, { minLength: 1, maxLength: 8, selector: (r) => r.s });

test('a change is read as the whole file would be, and services that it leaves alone stay the same objects', () => {
	for (const [name, text] of [
		['yaml', write.yaml],
		['json', (r: readonly Row[]) => write.json(r)],
		['indented json', (r: readonly Row[]) => write.json(r, 2)],
	] as const)
		fc.assert(
			fc.property(rows, fc.array(rows, { maxLength: 4 }), partBytes, (start, later, part) => {
				let reading: Reading = readMesh('m', Buffer.from(text(start)), undefined, part);
				for (const next of later) {
					const before = reading.membership;
					reading = readMesh('m', Buffer.from(text(next)), reading, part);
					assert.equal(reading.membership, slowly(text(next)), name);
					assert.ok(reading.prints, name);
					for (const s of reading.membership.services) {
						const was = before.services.find((x) => x.name === s.name);
						if (was && JSON.stringify(was) === JSON.stringify(s)) assert.is(s, was);
					}
				}
			}),
			{ numRuns: 150 },
		);
});

test('only what is around a change is read: a service that is changed, added or removed anywhere', () => {
	const all: Row[] = Array.from({ length: 9 }, (_, i) => ({ s: i + 1, b: [1, 2], weight: 1 }));
	const more: Row = { s: 10, b: [7], weight: 2 };
	const changes: Record<string, readonly Row[]> = Object.fromEntries(
		[0, 4, 8].flatMap((at) => [
			[`changed at ${at}`, all.map((r, i) => (i === at ? { ...r, b: [1, 2, 3] } : r))],
			[`added at ${at}`, all.toSpliced(at, 0, more)],
			[`added behind ${at}`, all.toSpliced(at + 1, 0, more)],
			[`removed at ${at}`, all.toSpliced(at, 1)],
		]),
	);
	for (const [form, text] of [
		['yaml', write.yaml],
		['json', (r: readonly Row[]) => write.json(r)],
		['indented json', (r: readonly Row[]) => write.json(r, 2)],
	] as const)
		for (const [what, changed] of Object.entries(changes)) {
			const reading = readMesh('m', Buffer.from(text(all)), undefined, 1);
			const bytes = Buffer.from(text(changed));
			let whole = 0;
			let most = 0;
			const next = readMesh(
				'm',
				{
					size: bytes.length,
					read(from, to) {
						most = Math.max(most, to - from);
						return bytes.subarray(from, to);
					},
					whole() {
						whole++;
						return bytes;
					},
				},
				reading,
				1,
			);
			assert.equal(next.membership, slowly(text(changed)), `${form}, ${what}`);
			assert.is(whole, 0, `${form}, ${what}`);
			assert.ok(most < bytes.length / 2, `${form}, ${what}: ${most} of ${bytes.length} bytes at once`);
			assert.is(readMesh('m', bytes, next, 1), next);
		}
});

test('a file that was damaged anywhere is read, or refused, as if it were new', () => {
	const texts = [
		MESH,
		write.json([
			{ s: 1, b: [1, 2], weight: 1 },
			{ s: 2, b: [3], weight: 2 },
			{ s: 3, b: [4], weight: 0 },
		]),
		write.yaml([
			{ s: 1, b: [1, 2], weight: 1 },
			{ s: 2, b: [3], weight: 2 },
		]),
	];
	fc.assert(
		fc.property(
			fc.constantFrom(...texts),
			fc.nat(1000),
			fc.nat(12),
			fc.array(fc.constantFrom(...TOKENS, 'n1', 'services:', '\nservices:\n', 'é', '  - name: s3\n', '},{', '"'), {
				maxLength: 2,
			}),
			partBytes,
			(text, at, gone, put, part) => {
				const from = at % text.length;
				const damaged = text.slice(0, from) + put.join('') + text.slice(from + gone);
				const said = (before?: Reading): unknown => {
					try {
						return readMesh('m', Buffer.from(damaged), before, part).membership;
					} catch (e) {
						assert.instance(e, BeelineError);
						return (e as BeelineError).message;
					}
				};
				const fresh = said();
				assert.equal(said(readMesh('m', Buffer.from(text), undefined, part)), fresh);
				if (typeof fresh !== 'string' && !damaged.startsWith('{')) assert.equal(fresh, slowly(damaged) ?? fresh);
			},
		),
		{ numRuns: 2000 },
	);
});

test.run();
