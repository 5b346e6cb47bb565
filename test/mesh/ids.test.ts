/** The pool of MACs is a pool like any other. */
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { codeOfMac, macOf, macOfCode } from '../../src/mesh/hash.js';
import { createIds, createIndexPool, REUSE_AFTER_MS } from '../../src/mesh/ids.js';

const test = suite('ids');

/** Neighbours in the table, so that they meet. */
const key = fc.oneof(
	fc.integer({ min: 0, max: 40 }).map((n) => macOf(1020 + (n % 20) + Math.floor(n / 20) * 2 ** 32)),
	fc.constantFrom('found/1', 'web'),
);
const step = fc.tuple(fc.constantFrom('acquire', 'acquire', 'release', 'rename', 'restore'), key, key);

test('MACs are kept in numbers, and found again whatever comes and goes', () => {
	fc.assert(
		fc.property(fc.array(step, { maxLength: 300, size: 'max' }), (steps) => {
			const limit = 4000;
			const macs = createIds({ backends: limit }).backends;
			const plain = createIndexPool('backends', limit, REUSE_AFTER_MS, true);
			let restored = 2000;
			steps.forEach(([what, a, b], i) => {
				for (const pool of [macs, plain]) {
					if (what === 'acquire') pool.acquire(a, i);
					else if (what === 'release') pool.release(a, i);
					else if (what === 'rename') pool.rename(a, b);
					else if (pool.get(a) === undefined) pool.restore(a, restored, (i % 255) + 1);
				}
				restored++;
				for (const k of [a, b]) assert.equal(macs.get(k), plain.get(k));
				assert.is(macs.size, plain.size);
			});
			assert.equal(new Map([...macs.entries()].sort()), new Map([...plain.entries()].sort()));
		}),
		{ numRuns: 300 },
	);
});

test('a table of many MACs grows', () => {
	const macs = createIds().backends;
	const all = Array.from({ length: 20_000 }, (_, i) => macOf((i * 54_975_581) % 2 ** 40));
	const given = all.map((m, i) => macs.acquire(m, i).index);
	assert.is(new Set(given).size, all.length);
	assert.ok(all.every((m, i) => macs.get(codeOfMac(m))?.index === given[i]));
	for (const m of all) macs.release(m, 0);
	assert.is(macs.size, 0);
	assert.is(macs.get(all[5]), undefined);
});

test('a MAC and its number are one', () => {
	for (const mac of ['00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff', '06:12:80:00:00:01', '06:ff:fe:dc:ba:98'])
		assert.is(macOfCode(codeOfMac(mac)), mac);
	for (const no of ['', '06:00:00:00:00', '06-00-00-00-00-00', '0g:00:00:00:00:00', 'web/node1/process'])
		assert.is(codeOfMac(no), -1);
});

test.run();
