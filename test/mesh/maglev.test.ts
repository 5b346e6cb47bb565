import * as fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { hash64 } from '../../src/mesh/hash.js';
import { createMaglevPool, type MaglevMembers, maglev, tableSize } from '../../src/mesh/maglev.js';

const test = suite('maglev');

interface Member {
	readonly key: string;
	readonly weight?: number;
	readonly down?: boolean;
}

/** Members as plan() hands them over: sorted by key; the ref is a hash of the key, so that it names the same everywhere. */
function members(list: readonly Member[]): MaglevMembers {
	const l = [...list].sort((a, b) => (a.key < b.key ? -1 : 1));
	return {
		offset: Uint32Array.from(l, (m) => hash64(m.key, 1).low),
		skip: Uint32Array.from(l, (m) => hash64(m.key, 1).high),
		weight: Uint16Array.from(l, (m) => m.weight ?? 1),
		down: Uint8Array.from(l, (m) => (m.down ? 1 : 0)),
		ref: Uint32Array.from(l, (m) => refOf(m.key)),
	};
}
const refOf = (key: string): number => (hash64(key).low & 0x3ffffffe) | 1;
const named = (n: number): Member[] =>
	Array.from({ length: n }, (_, i) => ({ key: `web/node${i % 7}/10.0.0.${i}/80/tcp` }));

function shares(table: Uint32Array): Map<number, number> {
	const out = new Map<number, number>();
	for (const r of table) out.set(r, (out.get(r) ?? 0) + 1);
	return out;
}
const spread = (table: Uint32Array): number => {
	const s = [...shares(table).values()];
	return Math.max(...s) - Math.min(...s);
};
const differing = (a: Uint32Array, b: Uint32Array): number => a.reduce((n, r, i) => n + (r === b[i] ? 0 : 1), 0);

test('with equal weights shares differ by at most one slot', () => {
	fc.assert(
		fc.property(fc.integer({ min: 1, max: 200 }), fc.constantFrom(1024, 4096, 16384), (n, size) => {
			const table = maglev(size, members(named(n)));
			assert.is(shares(table).size, n);
			assert.ok(spread(table) <= 1, `${n} members, ${size} slots: ${spread(table)}`);
		}),
		{ numRuns: 40 },
	);
});

test('the order in which members are listed does not matter to nodes that sort them', () => {
	const list = named(20);
	assert.equal(maglev(1024, members(list)), maglev(1024, members([...list].reverse())));
});

test('shares follow the weights to within two slots and nobody is left out', () => {
	fc.assert(
		fc.property(fc.array(fc.integer({ min: 1, max: 1000 }), { minLength: 1, maxLength: 40 }), (weights) => {
			const list = weights.map((weight, i) => ({ key: `k${i}`, weight }));
			const table = maglev(16384, members(list));
			const total = weights.reduce((a, b) => a + b, 0);
			const s = shares(table);
			for (const m of list) {
				const want = (16384 * m.weight) / total;
				const got = s.get(refOf(m.key)) ?? 0;
				assert.ok(got >= 1 && Math.abs(got - want) <= 2 + want * 0.02, `${m.weight} of ${total}: ${got}, not ${want}`);
			}
		}),
		{ numRuns: 60 },
	);
});

test('no members: every slot is empty', () => {
	assert.ok(maglev(1024, members([])).every((r) => r === 0));
});

test('one more member takes its share and moves few other slots, fewer in larger tables', () => {
	const moved = [1024, 16384, 131072].map((size) => {
		const before = maglev(size, members(named(50)));
		const after = maglev(size, members([...named(50), { key: 'web/node9/10.0.9.9/80/tcp' }]));
		const fresh = refOf('web/node9/10.0.9.9/80/tcp');
		const others = after.reduce((n, r, i) => n + (r !== before[i] && r !== fresh ? 1 : 0), 0);
		assert.ok(Math.abs((shares(after).get(fresh) ?? 0) - size / 51) <= 1);
		return others / size;
	});
	assert.ok(moved[0] < 0.25 && moved[1] < 0.06 && moved[2] < 0.02, `others moved: ${moved.join(' ')}`);
});

test('a member that goes down moves its own slots and no other, and leaves the rest even', () => {
	const list = named(11);
	const before = maglev(1024, members(list));
	const dead = list[3].key;
	const after = maglev(1024, members(list.map((m) => ({ ...m, down: m.key === dead }))));
	for (let i = 0; i < before.length; i++)
		if (before[i] !== refOf(dead)) assert.is(after[i], before[i], `slot ${i} moved`);
	assert.is(shares(after).has(refOf(dead)), false);
	assert.ok(spread(after) <= 1, `spread ${spread(after)}`);
});

test('when all are down the table is as if none were', () => {
	const list = named(5);
	assert.equal(maglev(1024, members(list.map((m) => ({ ...m, down: true })))), maglev(1024, members(list)));
});

test('sizes: the smallest of 1024, 16384 and 131072 that is at least 20 times the members', () => {
	for (const [n, size] of [
		[0, 1024],
		[51, 1024],
		[52, 16384],
		[819, 16384],
		[820, 131072],
		[50000, 131072],
	])
		assert.is(tableSize(n), size, `${n} members`);
});

test('worker threads give the same tables', async () => {
	const jobs = Array.from({ length: 9 }, (_, i) => ({ size: 1024, members: members(named(i)) }));
	const pool = createMaglevPool(2);
	try {
		assert.equal(
			await pool.run(jobs),
			jobs.map((j) => maglev(j.size, j.members)),
		);
		assert.equal(await pool.run(jobs.slice(0, 1)), [maglev(1024, members([]))]);
	} finally {
		await pool.close();
	}
});

test('the table of a mesh is the same for ever', () => {
	// A changed hash or walk would move every flow of a cluster that is upgraded node by node.
	const table = maglev(1024, members(named(5)));
	assert.is(differing(table, maglev(1024, members(named(5)))), 0);
	assert.equal([...shares(table).values()].sort(), [204, 205, 205, 205, 205]);
	assert.is(hash64(table.join()).low, FINGERPRINT);
});
const FINGERPRINT = 3347287967;

test.run();
