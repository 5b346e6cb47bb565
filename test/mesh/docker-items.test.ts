/** A list of JSON objects, cut as it arrives, against JSON.parse of the whole. */
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { createItems } from '../../src/mesh/sources/engine.js';

function cut(text: string, at: readonly number[], members?: readonly string[]): unknown[] {
	const out: unknown[] = [];
	const items = createItems((x) => out.push(x), members);
	const bytes = Buffer.from(text);
	const ends = [...new Set(at.map((n) => n % (bytes.length + 1)))].sort((a, b) => a - b).concat(bytes.length);
	let from = 0;
	for (const end of ends) {
		items.write(Uint8Array.from(bytes.subarray(from, end)));
		from = end;
	}
	items.end();
	return out;
}

test('any list of objects, cut anywhere', () => {
	fc.assert(
		fc.property(
			fc.array(fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue({ stringUnit: 'binary' }))),
			fc.array(fc.nat(5000)),
			fc.constantFrom(undefined, 1),
			(list, at, indent) => {
				const text = JSON.stringify(list, null, indent);
				assert.equal(JSON.stringify(cut(text, at)), JSON.stringify(JSON.parse(text)));
			},
		),
		{ numRuns: 300 },
	);
});

test('only the members that are wanted, of any list of objects, cut anywhere', () => {
	const wanted = ['ID', 'Status', 'State'];
	const name = fc.constantFrom('ID', 'Status', 'State', 'Stat\\"us', 'IX', 'Stetus', 'Id', 'Spec', '');
	fc.assert(
		fc.property(
			fc.array(fc.array(fc.tuple(name, fc.jsonValue({ stringUnit: 'binary' })))),
			fc.array(fc.nat(5000)),
			fc.constantFrom(undefined, 1),
			(list, at, indent) => {
				const text = JSON.stringify(
					list.map((members) => Object.fromEntries(members)),
					null,
					indent,
				);
				const whole = JSON.parse(text) as Record<string, unknown>[];
				assert.equal(
					JSON.stringify(cut(text, at, wanted)),
					JSON.stringify(whole.map((x) => Object.fromEntries(Object.entries(x).filter(([k]) => wanted.includes(k))))),
				);
			},
		),
		{ numRuns: 500 },
	);
});

test('an empty list, null, a list that breaks off, and what is no list', () => {
	assert.equal(cut('[]\n', []), []);
	assert.equal(cut('null\n', []), []);
	assert.throws(() => cut('[{"a":1},{"b":', []), /not whole/);
	assert.throws(() => cut('{"message":"x"}', []), /no list/);
	assert.throws(() => cut('', []), /not whole/);
});

test.run();
