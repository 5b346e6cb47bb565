/** What every MeshStore must do: run on maps in memory and on the kernel's own. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend, Frontend, LocalBackend, Node, Settings, Uplink } from '../../src/loader/layout.gen.js';
import { applySlots, countMoving, refOf, settle } from '../../src/mesh/slots.js';
import type { MeshStore } from '../../src/mesh/store.js';

const settings: Settings = {
	heartbeat_ns: 5n,
	stale_after_ns: 60_000_000_000n,
	netns_cookie: 4026531840n,
	table_digest: 0xfedcba9876543210n,
	vtep: '192.168.78.1',
	vni: 12509184,
	vxlan_port: 4789,
	flags: 3,
	self: 1,
	hash_seed: 0x62656531,
	mark: 0xbee,
	mesh_mtu: 1400,
	own4: ['192.168.78.1', '10.0.0.1'],
	own6: ['fd00:78::1'],
};
const uplink: Uplink = { ifindex: 1027, mtu: 9000, mac: '52:54:00:12:34:56', l3_ifindex: 4 };
const backend = (index: number): Backend => ({
	state: 1,
	generation: (index % 255) + 1,
	mac: `06:00:00:00:${(index >> 8).toString(16).padStart(2, '0')}:${(index & 255).toString(16).padStart(2, '0')}`,
	node: 2,
});
const local: LocalBackend = {
	addr4: '172.18.0.2',
	addr6: 'fd00::2',
	ref: refOf(7, 3),
	ifindex: 12,
	frontend: 5,
	port: 80,
	proto: 6,
	state: 1,
	delivery: 1,
	return_path: 2,
	flags: 1,
};
const frontend: Frontend = {
	tables: [
		{ table: 10, mask: 1023 },
		{ table: 11, mask: 16383 },
	],
	window_ns: 8_100_000_000_000n,
	udp_window_ns: 60_000_000_000n,
	flags: 9,
	port: 8080,
	proto: 6,
	acl: 5,
	generation: 0x8000_0007,
};
const node: Node = {
	vtep: '192.168.78.2',
	ifindex: 3,
	dmac: '52:54:00:12:34:57',
	smac: '52:54:00:12:34:56',
	mtu: 1500,
	flags: 1,
};

const byKey = <K, V>(rows: Iterable<[K, V]>): [K, V][] =>
	[...rows].sort((a, b) => (JSON.stringify(a[0]) < JSON.stringify(b[0]) ? -1 : 1));

/**
 * Defines the suite; the caller runs it with `test.run()` of its file or `.run()` of the value returned.
 *
 * @param open an empty store, and how to take it down
 */
export function storeContract(name: string, open: () => { store: MeshStore; close: () => void }): { run: () => void } {
	const test = suite(`MeshStore: ${name}`);
	const check = (title: string, body: (store: MeshStore) => void) =>
		test(title, () => {
			const { store, close } = open();
			try {
				body(store);
			} finally {
				close();
			}
		});

	check('settings are read as they were written', (s) => {
		s.settings.set(settings);
		assert.equal(s.settings.get(), settings);
	});

	check('an empty store has no rows', (s) => {
		for (const rows of [
			s.uplinks,
			s.ownAddresses,
			s.ports,
			s.sourcePorts,
			s.exactFrontends,
			s.frontends,
			s.rehashes,
			s.untracked,
			s.backends,
			s.localBackends,
			s.nodes,
			s.vteps,
			s.allow,
			s.deny,
			s.networks,
			s.overlayEndpoints,
			s.overlaySlices,
			s.overlayPorts,
			s.onLink,
		])
			assert.equal([...rows.entries()], []);
		assert.equal([...s.tables.ids()], []);
		assert.is(s.backends.get(1)?.state ?? 0, 0);
		assert.is(s.localBackends.get('06:00:00:00:00:01'), undefined);
	});

	check('rows of every map come back, are replaced and are deleted', (s) => {
		s.uplinks.setMany([[1027, uplink]]);
		assert.equal([...s.uplinks.entries()], [[1027, uplink]], 'uplinks are keyed by ifindex, not by row');
		assert.equal(s.uplinks.get(1027), uplink);
		s.ownAddresses.setMany([
			['10.9.9.9', 1],
			['fd00:99::1', 1],
		]);
		assert.equal(byKey(s.ownAddresses.entries()), [
			['10.9.9.9', 1],
			['fd00:99::1', 1],
		]);
		s.ports.setMany([
			[8080, (0x80000000 | 5) >>> 0],
			[(1 << 16) | 53, 6],
		]);
		assert.equal(byKey(s.ports.entries()), [
			[(1 << 16) | 53, 6],
			[8080, (0x80000000 | 5) >>> 0],
		]);
		s.sourcePorts.setMany([[40_000, 1]]);
		assert.equal([[...s.sourcePorts.entries()], s.sourcePorts.get(40_001)], [[[40_000, 1]], undefined]);
		s.exactFrontends.setMany([
			[{ addr: '192.168.78.1', port: 8080, proto: 6 }, 5],
			[{ addr: 'fd00:78::1', port: 8080, proto: 17 }, 6],
		]);
		assert.is(s.exactFrontends.get({ addr: 'fd00:78::1', port: 8080, proto: 17 }), 6);
		assert.is([...s.exactFrontends.entries()].length, 2);
		s.frontends.setMany([[5, frontend]]);
		assert.equal(s.frontends.get(5), frontend);
		const rehash = { since_ns: 1n << 40n, needed_ns: (1n << 40n) + 7n, previous: 2, generation: 9 };
		s.rehashes.setMany([[5, rehash]]);
		s.untracked.setMany([[6, rehash]]);
		assert.equal([...s.rehashes.entries()], [[5, rehash]]);
		assert.equal([...s.untracked.entries()], [[6, rehash]]);
		s.backends.setMany([[7, backend(7)]]);
		assert.equal([...s.backends.entries()], [[7, backend(7)]]);
		s.backends.setMany([[7, { ...backend(7), state: 3 }]]);
		assert.is(s.backends.get(7)?.state, 3);
		s.localBackends.setMany([['06:00:00:00:00:07', local]]);
		assert.equal([...s.localBackends.entries()], [['06:00:00:00:00:07', local]]);
		s.nodes.setMany([[2, node]]);
		assert.equal([...s.nodes.entries()], [[2, node]]);
		s.vteps.setMany([['192.168.78.2', 2]]);
		assert.is(s.vteps.get('192.168.78.2'), 2);
		s.allow.setMany([
			[{ acl: 5, prefix: '10.0.0.0/8' }, 1],
			[{ acl: 5, prefix: 'fd00::/8' }, 1],
		]);
		s.deny.setMany([[{ acl: 5, prefix: '10.1.0.0/16' }, 1]]);
		assert.equal(byKey(s.allow.entries()), [
			[{ acl: 5, prefix: '10.0.0.0/8' }, 1],
			[{ acl: 5, prefix: 'fd00::/8' }, 1],
		]);
		assert.equal([...s.deny.entries()], [[{ acl: 5, prefix: '10.1.0.0/16' }, 1]]);
		s.networks.setMany([
			[5001, { flags: 0 }],
			[5002, { flags: 1 }],
		]);
		assert.equal(byKey(s.networks.entries()), [
			[5001, { flags: 0 }],
			[5002, { flags: 1 }],
		]);
		const endpoint = { node: 2, ifindex: 0, mac: '02:42:0a:2c:00:02', flags: 0 };
		s.overlayEndpoints.setMany([
			['5001 10.44.0.2', endpoint],
			['5001 fd00:44::a2c:2', endpoint],
			['5002 10.44.0.2', { ...endpoint, node: 3, ifindex: 9 }],
		]);
		assert.equal(s.overlayEndpoints.get('5002 10.44.0.2'), { ...endpoint, node: 3, ifindex: 9 });
		assert.equal(byKey(s.overlayEndpoints.entries()).length, 3);
		s.overlaySlices.setMany([
			['5001 10.44.0.0/24', 1],
			['5001 10.44.0.64/26', 2],
			['5001 fd00:44::/64', 1],
		]);
		assert.is(s.overlaySlices.get('5001 10.44.0.64/26'), 2);
		assert.is(s.overlaySlices.get('5001 10.44.0.0/26'), undefined, 'a prefix of a prefix is another row');
		assert.is(s.overlaySlices.get('5001 fd00:44::/64'), 1);
		const port = { addr4: '10.44.0.2', addr6: '::', vni: 5001, mac: '02:42:0a:2c:00:02' };
		s.overlayPorts.setMany([[77, port]]);
		assert.equal([...s.overlayPorts.entries()], [[77, port]]);
		const shown = { gateway: '172.18.0.1', ifindex: 0, first_port: 1024, port_count: 31744 };
		const out = { gateway: 'fd00::fe', ifindex: 2, first_port: 0, port_count: 0 };
		s.onLink.setMany([
			[{ list: 9, prefix: '172.18.0.0/16' }, shown],
			[{ list: 0, prefix: 'fd18::/64' }, out],
		]);
		assert.equal(byKey(s.onLink.entries()), [
			[{ list: 0, prefix: 'fd18::/64' }, out],
			[{ list: 9, prefix: '172.18.0.0/16' }, shown],
		]);
		assert.equal(s.onLink.get({ list: 9, prefix: '172.18.0.0/16' }), shown);
		assert.is(s.onLink.get({ list: 9, prefix: '172.18.7.0/24' }), undefined);

		s.networks.deleteMany([5001, 5002, 5003]);
		s.overlayEndpoints.deleteMany(['5001 10.44.0.2', '5001 fd00:44::a2c:2', '5002 10.44.0.2', '1 10.0.0.1']);
		s.overlaySlices.deleteMany(['5001 10.44.0.0/24', '5001 10.44.0.64/26', '5001 fd00:44::/64']);
		s.overlayPorts.deleteMany([77]);
		s.uplinks.deleteMany([1027, 9]);
		s.ownAddresses.deleteMany(['10.9.9.9', 'fd00:99::1', '10.9.9.9']);
		s.ports.deleteMany([8080, (1 << 16) | 53, 1]);
		s.exactFrontends.deleteMany([
			{ addr: '192.168.78.1', port: 8080, proto: 6 },
			{ addr: 'fd00:78::1', port: 8080, proto: 17 },
		]);
		s.frontends.deleteMany([5]);
		s.rehashes.deleteMany([5, 6]);
		s.sourcePorts.deleteMany([40_000]);
		s.untracked.deleteMany([5, 6]);
		s.backends.deleteMany([7]);
		s.localBackends.deleteMany(['06:00:00:00:00:07', '06:00:00:00:00:08']);
		s.nodes.deleteMany([2]);
		s.vteps.deleteMany(['192.168.78.2', '1.2.3.4']);
		s.allow.deleteMany([
			{ acl: 5, prefix: '10.0.0.0/8' },
			{ acl: 5, prefix: 'fd00::/8' },
			{ acl: 9, prefix: 'fd00::/8' },
		]);
		s.deny.deleteMany([{ acl: 5, prefix: '10.1.0.0/16' }]);
		s.onLink.deleteMany([
			{ list: 9, prefix: '172.18.0.0/16' },
			{ list: 0, prefix: 'fd18::/64' },
			{ list: 1, prefix: 'fd18::/64' },
		]);
		for (const rows of [
			s.uplinks,
			s.ownAddresses,
			s.ports,
			s.sourcePorts,
			s.exactFrontends,
			s.frontends,
			s.rehashes,
			s.untracked,
			s.backends,
			s.localBackends,
			s.nodes,
			s.vteps,
			s.allow,
			s.deny,
			s.networks,
			s.overlayEndpoints,
			s.overlaySlices,
			s.overlayPorts,
			s.onLink,
		])
			assert.equal([...rows.entries()], []);
	});

	check('many rows at once come back as they were', (s) => {
		const n = 3000;
		s.backends.setMany(Array.from({ length: n }, (_, i) => [i + 1, backend(i + 1)] as const));
		assert.is([...s.backends.entries()].length, n);
		assert.equal(s.backends.get(n), backend(n));
		s.localBackends.setMany(Array.from({ length: n }, (_, i) => [backend(i + 1).mac, local] as const));
		assert.is([...s.localBackends.entries()].length, n);
		s.backends.deleteMany(Array.from({ length: n - 1 }, (_, i) => i + 1));
		assert.equal([...s.backends.entries()], [[n, backend(n)]]);
	});

	check('a freed backend keeps its generation', (s) => {
		const tomb: Backend = { state: 0, generation: 9, mac: '00:00:00:00:00:00', node: 0 };
		s.backends.setMany([[7, tomb]]);
		assert.equal([...s.backends.entries()], [[7, tomb]]);
	});

	check('setTableRef switches one family and nothing else', (s) => {
		s.frontends.setMany([[5, frontend]]);
		s.setTableRef(5, 4, { table: 10, mask: 16383 });
		assert.equal(s.frontends.get(5), { ...frontend, tables: [{ table: 10, mask: 16383 }, frontend.tables[1]] });
		s.setTableRef(5, 6, { table: 10, mask: 16383 });
		assert.equal(s.frontends.get(5)?.tables[1], { table: 10, mask: 16383 });
	});

	check('tables are made, read, edited and deleted', (s) => {
		const slots = Uint32Array.from({ length: 1024 }, (_, i) => refOf(1 + (i % 5), 1));
		s.tables.create([
			[10, slots],
			[11, slots.slice().fill(0)],
		]);
		assert.equal([...s.tables.ids()].sort(), [10, 11]);
		assert.equal(s.tables.read(10), slots);
		assert.is(s.tables.read(12), undefined);
		assert.is(s.tables.hasTransitions(10), false);
		const size = s.tables.edit(10, (t) => {
			assert.is(t.slot(3), slots[3]);
			assert.is(t.transition(3), undefined, 'no transition was ever written');
			t.setTransition(3, { sinceNs: 1n << 40n, neededNs: 7n, previous: slots[3], generation: 0xffffffff });
			t.setSlot(3, ((1 << 30) | refOf(9, 255)) >>> 0);
			return t.size;
		});
		assert.is(size, 1024);
		assert.is(s.tables.hasTransitions(10), true);
		s.tables.edit(10, (t) => {
			assert.is(t.slot(3), ((1 << 30) | refOf(9, 255)) >>> 0);
			assert.equal(t.transition(3), {
				sinceNs: 1n << 40n,
				neededNs: 7n,
				previous: slots[3],
				generation: 0xffffffff,
			});
			assert.is(t.transition(4), undefined, 'rows that were never written are undefined');
		});
		const copy = s.tables.read(10) as Uint32Array;
		copy[0] = 77;
		assert.is(s.tables.read(10)?.[0], slots[0], 'read gives a copy');
		s.tables.dropTransitions(10);
		assert.is(s.tables.hasTransitions(10), false);
		s.tables.delete([10, 11]);
		assert.equal([...s.tables.ids()], []);
	});

	check('create replaces a table of another size, transitions and all', (s) => {
		s.tables.create([[10, new Uint32Array(1024).fill(refOf(1, 1))]]);
		s.tables.edit(10, (t) => t.setTransition(0, { sinceNs: 1n, neededNs: 1n, previous: 1, generation: 1 }));
		s.tables.create([[10, new Uint32Array(16384).fill(refOf(2, 1))]]);
		assert.is(s.tables.read(10)?.length, 16384);
		assert.is(s.tables.hasTransitions(10), false);
	});

	check('a table that grows inherits slots and transitions', (s) => {
		const old = Uint32Array.from({ length: 1024 }, (_, i) => refOf(1 + (i % 7), 1));
		s.tables.create([[10, old]]);
		s.tables.edit(10, (t) => {
			for (const i of [0, 5, 1023]) {
				t.setTransition(i, { sinceNs: BigInt(i) + 1n, neededNs: 2n, previous: old[i], generation: i + 1 });
				t.setSlot(i, ((1 << 30) | refOf(9, 2)) >>> 0);
			}
		});
		s.tables.grow(10, 16384);
		const grown = s.tables.read(10) as Uint32Array;
		assert.is(grown.length, 16384);
		for (let i = 0; i < grown.length; i++) {
			const from = i % 1024;
			const want = [0, 5, 1023].includes(from) ? ((1 << 30) | refOf(9, 2)) >>> 0 : old[from];
			if (grown[i] !== want) assert.unreachable(`slot ${i} is ${grown[i]}, not ${want}`);
		}
		s.tables.edit(10, (t) => {
			assert.is(t.size, 16384);
			for (const i of [5, 1029, 15365])
				assert.equal(t.transition(i), { sinceNs: 6n, neededNs: 2n, previous: old[5], generation: 6 });
			assert.is(t.transition(6), undefined);
			assert.is(t.transition(1030), undefined);
		});
	});

	check('a change of the table leaves slots in transition, and time lets them rest', (s) => {
		s.tables.create([[10, new Uint32Array(1024).fill(refOf(1, 1))]]);
		const desired = Uint32Array.from({ length: 1024 }, (_, i) => refOf(i % 2 === 0 ? 1 : 2, 1));
		const now = s.now();
		const window = 1_000_000_000n;
		const clock = (after: bigint) => ({ nowNs: now + after, windowNs: window });
		const done = s.tables.edit(10, (t) => applySlots(t, desired, clock(0n), () => true));
		assert.equal(done, { changed: 512, moving: true });
		assert.is(countMoving(s.tables.read(10) as Uint32Array), 512);
		assert.equal(
			s.tables.edit(10, (t) => settle(t, clock(window))),
			{ settled: 0, moving: 512 },
		);
		assert.equal(
			s.tables.edit(10, (t) => settle(t, clock(window + 1n))),
			{ settled: 512, moving: 0 },
		);
		assert.equal(s.tables.read(10), desired);
	});

	check('rows of VIPs come back, are replaced and are deleted', (s) => {
		const { namespaces, vips, backends } = s.vip;
		for (const rows of [namespaces, vips, backends]) assert.equal([...rows.entries()], []);
		const cookie = (1n << 40n) + 5n;
		namespaces.setMany([
			[cookie, [4097]],
			[7n, Array.from({ length: 16 }, (_, i) => i + 1)],
		]);
		namespaces.setMany([[cookie, [4097, 0xfffffe]]]);
		assert.equal(namespaces.get(cookie), [4097, 0xfffffe]);
		assert.is(namespaces.get(7n)?.length, 16);
		vips.setMany([
			[
				{ network: 4097, addr: '10.77.1.2' },
				{ table: 1, mask: 63, flags: 1 },
			],
			[
				{ network: 4098, addr: '10.77.1.2' },
				{ table: 2, mask: 127, flags: 0 },
			],
			[
				{ network: 4098, addr: 'fd00::2' },
				{ table: 3, mask: 63, flags: 0 },
			],
		]);
		assert.equal(vips.get({ network: 4098, addr: '10.77.1.2' }), { table: 2, mask: 127, flags: 0 });
		assert.is([...vips.entries()].length, 3);
		backends.setMany([[9, { addr: '10.77.1.5', network: 4097, state: 1 }]]);
		assert.equal([...backends.entries()], [[9, { addr: '10.77.1.5', network: 4097, state: 1 }]]);
		namespaces.deleteMany([cookie, 7n, 8n]);
		vips.deleteMany([...vips.entries()].map(([k]) => k));
		backends.deleteMany([9, 10]);
		for (const rows of [namespaces, vips, backends]) assert.equal([...rows.entries()], []);
	});

	check('tables of VIPs are put, written in place, replaced by others of any size, and deleted', (s) => {
		const { tables } = s.vip;
		const slots = Uint32Array.from({ length: 64 }, (_, i) => 1 + (i % 5));
		tables.put([
			[1, slots],
			[2, slots],
		]);
		assert.equal([...tables.ids()].sort(), [1, 2]);
		assert.equal(tables.read(1), slots);
		assert.is(tables.read(3), undefined);
		const other = slots.map((x) => x + 1);
		tables.write(1, other);
		assert.equal(tables.read(1), other);
		assert.equal(tables.read(2), slots);
		assert.throws(() => tables.write(1, new Uint32Array(128)));
		tables.put([[1, new Uint32Array(128).fill(7)]]);
		assert.is(tables.read(1)?.length, 128);
		tables.delete([1, 2, 3]);
		assert.equal([...tables.ids()], []);
	});

	check('now() goes forward', (s) => {
		const a = s.now();
		assert.ok(a > 0n);
		assert.ok(s.now() >= a);
	});

	check('counters and flows of an idle store are empty or zero', (s) => {
		for (const v of s.counters().verdicts) assert.is(v.packets, 0n);
		assert.equal(s.flows(10), { flows: [], limited: false });
		s.clearCounters('backends', [1, 2, 3]);
		s.clearCounters('frontends', [1]);
		assert.ok(s.sizes().some((m) => m.map === 'backends' && m.maxEntries > 0));
	});

	return { run: () => test.run() };
}
