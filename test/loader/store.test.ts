/** The kernel store on real maps. What holds for every store is in test/mesh/store.contract.ts; here is what only maps have. */
import { MapOfMaps } from 'libbpf-ts';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type Datapath, openDatapath } from '../../src/loader/datapath.js';
import { backendCodec, type Event, VERDICTS, Verdict } from '../../src/loader/layout.gen.js';
import type { KernelStore } from '../../src/loader/store.js';
import { aclKey, aclRow, bootTimeNs } from '../../src/loader/store.js';
import { SMALL, skipped, type Workshop, workshop } from './fixture.js';

const FRAME = Uint8Array.from({ length: 100 }, (_, i) => (i === 12 ? 0x88 : i === 13 ? 0xb5 : 1));

let w: Workshop;
let d: Datapath;
let s: KernelStore;

const why = skipped();
if (why) console.log(`skipped: kernel store: ${why}`);
else {
	test.before(async () => {
		w = workshop('store');
		d = await openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
		d.commit();
		s = d.store;
	});
	test.after(() => {
		d.takeDown();
		w.done();
	});

	test('a prefix is a key of the trie with its host bits zero', () => {
		assert.equal(aclRow({ acl: 3, prefix: '10.1.2.3/8' }), { prefixlen: 136, acl: 3, addr: '10.0.0.0' });
		assert.equal(aclRow({ acl: 3, prefix: 'fd00:ffff::1/17' }), { prefixlen: 49, acl: 3, addr: 'fd00:8000::' });
		assert.equal(aclRow({ acl: 0, prefix: '::/0' }), { prefixlen: 32, acl: 0, addr: '::' });
		for (const prefix of ['10.0.0.0/8', '0.0.0.0/0', '10.0.0.1/32', '::/0', 'fd00::/8', '2001:db8::1/128'])
			assert.equal(aclKey(aclRow({ acl: 9, prefix })), { acl: 9, prefix });
		for (const prefix of ['10.0.0.0/33', '10.0.0.0/', 'fd00::/129', '10.0.0/8', 'x', '10.0.0.0/-1', '10.0.0.0/a'])
			assert.throws(() => aclRow({ acl: 1, prefix }), /expected/);
	});

	test('a longer prefix is not found under a shorter one', () => {
		s.allow.setMany([[{ acl: 1, prefix: '10.0.0.0/8' }, 1]]);
		assert.is(s.allow.get({ acl: 1, prefix: '10.0.0.0/16' }), undefined);
		assert.is(s.allow.get({ acl: 1, prefix: '10.9.9.9/8' }), 1);
		s.allow.deleteMany([
			{ acl: 1, prefix: '10.0.0.0/8' },
			{ acl: 2, prefix: '10.0.0.0/8' },
		]);
		assert.equal([...s.allow.entries()], []);
	});

	test('uplinks are found by interface, and two that share an index are refused', () => {
		const row = { ifindex: 5, mtu: 1500, mac: '02:00:00:00:00:01', l3_ifindex: 5 };
		s.uplinks.setMany([[5, row]]);
		assert.equal([...s.uplinks.entries()], [[5, row]]);
		assert.is(s.uplinks.get(1029), undefined);
		assert.throws(() => s.uplinks.setMany([[1029, { ...row, ifindex: 1029 }]]), /same last ten bits/);
		s.uplinks.deleteMany([1029]);
		assert.equal(s.uplinks.get(5), row);
		s.uplinks.deleteMany([5]);
		assert.is(s.uplinks.get(5), undefined);
	});

	test('an index beyond the array is refused, and nothing of the batch is written', () => {
		const row = backendCodec.decode(new DataView(Uint8Array.from({ length: 16 }, () => 1).buffer), 0);
		assert.throws(
			() =>
				s.backends.setMany([
					[1, row],
					[131072, row],
				]),
			/backends: index 131072 is not within its 131072/,
		);
		assert.is(s.backends.get(1), undefined);
	});

	test('100 000 backends are written and read back', () => {
		const rows = Array.from({ length: 100_000 }, (_, i) => {
			const mac = `06:00:00:${(i >> 16).toString(16).padStart(2, '0')}:${((i >> 8) & 255).toString(16).padStart(2, '0')}:${(i & 255).toString(16).padStart(2, '0')}`;
			return [i + 1, { state: 1, generation: i & 255, mac, node: i & 1023 }] as const;
		});
		s.backends.setMany(rows);
		const back = [...s.backends.entries()];
		assert.is(back.length, 100_000);
		assert.equal(back[77_777], rows[77_777]);
		s.backends.deleteMany(rows.map(([i]) => i));
		assert.equal([...s.backends.entries()], []);
	});

	test("a frontend's table is switched by one store, whichever page its row is on", () => {
		const row = {
			tables: [
				{ table: 1, mask: 1023 },
				{ table: 2, mask: 1023 },
			],
			window_ns: 5n,
			udp_window_ns: 6n,
			flags: 1,
			port: 8080,
			proto: 6,
			acl: 0,
			generation: 0,
		} as const;
		for (const i of [1, 85, 86, 65535]) {
			s.frontends.setMany([[i, row]]);
			s.setTableRef(i, 4, { table: 70000, mask: 16383 });
			s.setTableRef(i, 6, { table: 3, mask: 131071 });
			assert.equal(s.frontends.get(i), {
				...row,
				tables: [
					{ table: 70000, mask: 16383 },
					{ table: 3, mask: 131071 },
				],
			});
			s.frontends.deleteMany([i]);
		}
		assert.throws(() => s.setTableRef(65536, 4, { table: 1, mask: 1 }), /frontend 65536/);
	});

	test('tables: made, edited, grown with their transitions, read by another start, deleted', async () => {
		s.tables.create([
			[5, Uint32Array.from({ length: 1024 }, (_, i) => i + 1)],
			[131071, new Uint32Array(16384).fill(7)],
		]);
		assert.equal(
			[...s.tables.ids()].sort((a, b) => a - b),
			[5, 131071],
		);
		assert.is(s.tables.read(5)?.[1023], 1024);
		assert.is(s.tables.read(6), undefined);
		assert.is(s.tables.hasTransitions(5), false);
		const row = { sinceNs: 1n << 40n, neededNs: 3n, previous: 0x3fc00001, generation: 0xffffffff };
		s.tables.edit(5, (t) => {
			assert.is(t.size, 1024);
			assert.is(t.transition(3), undefined);
			t.setTransition(3, row);
			t.setSlot(3, 0x40000009);
			assert.equal(t.transition(3), row);
			assert.is(t.transition(4), undefined);
			assert.throws(() => t.setSlot(1024, 1), /slot 1024 is not within its 1024/);
		});
		s.tables.grow(5, 4096);
		s.tables.edit(5, (t) => {
			assert.is(t.size, 4096);
			for (const i of [3, 1027, 2051, 3075]) {
				assert.is(t.slot(i), 0x40000009);
				assert.equal(t.transition(i), row);
			}
			assert.is(t.slot(4095), 1024);
		});
		assert.throws(() => s.tables.grow(5, 5000), /no multiple/);
		d.close();
		d = await openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
		d.commit();
		s = d.store;
		assert.equal(
			[...s.tables.ids()].sort((a, b) => a - b),
			[5, 131071],
		);
		assert.is(s.tables.hasTransitions(5), true);
		s.tables.create([[5, new Uint32Array(1024)]]);
		assert.is(s.tables.hasTransitions(5), false, 'a replaced table is stable');
		s.tables.delete([5, 131071, 9]);
		assert.equal([...s.tables.ids()], []);
		assert.is(s.tables.read(5), undefined);
		assert.throws(() => s.tables.edit(5, () => 0), /does not exist/);
	});

	test('transitions of many tables are made and dropped at once, and a deleted table stays deleted', async () => {
		const ids = Array.from({ length: 600 }, (_, i) => i + 1);
		s.tables.create(ids.map((i) => [i, new Uint32Array(64)] as const));
		s.tables.prepareTransitions([...ids, 7, 9999]);
		assert.ok(ids.every((i) => s.tables.hasTransitions(i)));
		assert.is(s.tables.hasTransitions(9999), false, 'a table that does not exist has none');
		assert.is(
			s.tables.edit(3, (t) => t.transition(63)),
			undefined,
		);
		s.tables.dropTransitions(ids.slice(1));
		s.tables.delete(ids.slice(0, 599));
		d.close();
		d = await openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
		d.commit();
		s = d.store;
		assert.equal([...s.tables.ids()], [600]);
		assert.equal(
			ids.filter((i) => s.tables.hasTransitions(i)),
			[],
		);
		assert.is(s.tables.read(5), undefined);
		s.tables.create([[5, Uint32Array.of(1, 2)]]);
		assert.equal(s.tables.read(5), Uint32Array.of(1, 2));
		s.tables.delete([5, 600]);
	});

	test('a first change looks at as many places as there are tables, and at none where the maps are new', async () => {
		const looks = async (pinRoot: string) => {
			const own = await openDatapath({ pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
			own.commit();
			const { getId } = MapOfMaps.prototype;
			let n = 0;
			MapOfMaps.prototype.getId = function (...args) {
				n++;
				return getId.apply(this, args);
			};
			try {
				const ids = [...own.store.tables.ids()];
				if (ids.length === 0) own.store.tables.create([8, 9].map((t) => [t, new Uint32Array(64)] as const));
				const found = n;
				own.store.tables.prepareTransitions([8]);
				assert.is(own.store.tables.hasTransitions(8), true);
				return [found, n - found];
			} finally {
				MapOfMaps.prototype.getId = getId;
				own.close();
			}
		};
		const pinRoot = `${w.pinRoot}-new`;
		assert.equal(await looks(pinRoot), [0, 0]);
		const [, again] = await looks(pinRoot);
		assert.is(again, 2);
		const last = await openDatapath({ pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
		last.takeDown();
	});

	test('a slot above 2^31 keeps its sign to itself', () => {
		s.tables.create([[1, Uint32Array.of(0xffffffff)]]);
		s.tables.edit(1, (t) => {
			assert.is(t.slot(0), 0xffffffff);
			t.setSlot(0, 0x80000001);
			assert.is(t.slot(0), 0x80000001);
		});
		s.tables.delete([1]);
		s.ports.setMany([[1, 0xffffffff]]);
		assert.equal([...s.ports.entries()], [[1, 0xffffffff]]);
		s.ports.deleteMany([1]);
	});

	test('counters are summed over the CPUs and cleared by index', () => {
		d.program('uplink_xdp').testRun({ data: FRAME, repeat: 3 });
		assert.equal(s.counters().verdicts, [{ program: 0, verdict: Verdict.PASS_NOT_OURS, packets: 3n, bytes: 300n }]);
		assert.is(VERDICTS[Verdict.PASS_NOT_OURS], 'pass_not_ours');
		const row = { state: 1, generation: 0, mac: '06:00:00:00:00:01', node: 1 };
		s.backends.setMany([[9, row]]);
		assert.equal([...s.counters().backends], []);
		s.clearCounters('backends', [9]);
		s.clearCounters('frontends', [1, 2]);
		s.backends.deleteMany([9]);
	});

	test('events come while the settings ask for them', async () => {
		const seen: Event[] = [];
		const stop = s.events.listen((e) => seen.push(e));
		d.program('uplink_tc').testRun({ data: FRAME });
		s.settings.set({ ...s.settings.get(), flags: 2 });
		const before = bootTimeNs();
		d.program('uplink_tc').testRun({ data: FRAME, repeat: 2 });
		for (let i = 0; i < 200 && seen.length < 2; i++) await new Promise((r) => setTimeout(r, 5));
		s.settings.set({ ...s.settings.get(), flags: 0 });
		stop();
		assert.is(seen.length, 2);
		assert.equal(
			[seen[0].src, seen[0].dst, seen[0].sport, seen[0].verdict],
			['10.0.0.1', '::', 4242, Verdict.ENCAP_NODE],
		);
		const after = bootTimeNs();
		assert.ok(
			seen[0].time_ns >= before - 100_000_000n && seen[0].time_ns <= after + 100_000_000n,
			'both read the same clock',
		);
	});

	test('sizes name every map that can fill', () => {
		s.vteps.setMany([
			['10.0.0.1', 1],
			['10.0.0.2', 2],
		]);
		const sizes = s.sizes();
		assert.equal(
			sizes.find((x) => x.map === 'vteps'),
			{ map: 'vteps', entries: 2, maxEntries: 4096 },
		);
		for (const map of ['revnat', 'conntrack', 'backends', 'tables', 'local_backends', 'exact_frontends'])
			assert.ok(
				sizes.some((x) => x.map === map && x.entries === 0),
				map,
			);
		s.vteps.deleteMany(['10.0.0.1', '10.0.0.2']);
	});
}
test.run();
