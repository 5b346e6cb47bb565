/** A list of JSON objects, cut as it arrives, against JSON.parse of the whole. */
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { createItems } from '../../src/mesh/sources/engine.js';

function cut(text: string, at: readonly number[]): unknown[] {
	const out: unknown[] = [];
	const items = createItems((x) => out.push(x));
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

test('an empty list, null, a list that breaks off, and what is no list', () => {
	assert.equal(cut('[]\n', []), []);
	assert.equal(cut('null\n', []), []);
	assert.throws(() => cut('[{"a":1},{"b":', []), /not whole/);
	assert.throws(() => cut('{"message":"x"}', []), /no list/);
	assert.throws(() => cut('', []), /not whole/);
});

test.run();
