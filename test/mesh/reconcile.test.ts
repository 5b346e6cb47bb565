import * as fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
	FrontendFlag,
	HashedBy,
	PORT_FRONTEND_MASK,
	PortFlag,
	REF_KERNEL,
	SettingsFlag,
	SLOT_PHASE_SHIFT,
} from '../../src/loader/layout.gen.js';
import { portKey } from '../../src/mesh/entries.js';
import { countMoving } from '../../src/mesh/slots.js';
import { FACTS, mesh, node, service } from './support.js';

const test = suite('reconcile');
const two = ['node1', 'node2'];

test('the first sync writes backends before tables before frontends before ports', async () => {
	const n = node();
	const r = await n.apply(mesh(two, [service('web', '8080:80', ['node1', 'node2 10.0.0.1'])]));
	assert.equal(r.errors, []);
	const order = n.log().map((l) => l.split(' ')[0]);
	const at = (what: string) => order.indexOf(what);
	assert.ok(at('nodes.set') < at('backends.set') && at('local_backends.set') < at('backends.set'), order.join());
	assert.ok(at('backends.set') < at('tables.create') && at('tables.create') < at('frontends.set'), order.join());
	assert.ok(at('frontends.set') < at('ports.set'), order.join());
	const index = (n.store.ports.get(8080) as number) & PORT_FRONTEND_MASK;
	const f = n.store.frontends.get(index);
	assert.equal(f?.tables, [
		{ table: 2 * index, mask: 1023 },
		{ table: 2 * index + 1, mask: 1023 },
	]);
	assert.equal([...n.shares(2 * index).values()], [512, 512]);
	assert.equal([...n.shares(2 * index + 1)], [['node1/process', 1024]]);
});

test('the same again writes nothing', async () => {
	const n = node();
	const m = mesh(two, [
		service('web', ['8080:80', '53:53/udp'], ['node1', 'node2 10.0.0.1'], {
			allow: ['10.0.0.0/8'],
			addresses: ['192.168.78.1'],
		}),
	]);
	await n.apply(m);
	n.log();
	const r = await n.apply(structuredClone(m));
	assert.equal(n.log(), []);
	assert.equal([r.rowsWritten, r.rowsDeleted, r.tablesComputed], [0, 0, 0]);
});

test('a new agent on the same maps writes nothing and keeps every index', async () => {
	const n = node();
	const m = mesh(two, [
		service('web', '8080:80', ['node1', 'node2 10.0.0.1']),
		service('db', '5432:5432', ['node2 10.0.0.2'], { addresses: ['192.168.78.1'], deny: ['10.9.0.0/16'] }),
	]);
	await n.apply(m);
	const before = n.store.memory.rows();
	n.log();
	n.restart();
	const r = await n.apply(m);
	assert.equal(r.errors, []);
	assert.equal(
		n.log().filter((l) => !l.startsWith('tables.edit')),
		[],
	);
	assert.equal(n.store.memory.rows(), before);
	assert.is(r.slotsChanged, 0);
});

test('a story that ends in empty maps', async () => {
	const n = node();
	n.facts = { ...FACTS, endpoints: new Map([['10.0.0.1', { ifindex: 9, delivery: 'peer' as const }]]) };
	await n.apply(
		mesh(two, [
			service('web', ['8080:80', '53:53/udp'], ['node1 10.0.0.1', 'node2 10.0.0.2'], {
				allow: ['10.0.0.0/8'],
				deny: ['10.1.0.0/16'],
				addresses: ['192.168.78.1'],
			}),
		]),
	);
	assert.ok(n.store.memory.rows().length > 12);
	await n.apply(mesh(two, [service('web', '8080:80', ['node1 10.0.0.1'])]));
	n.wait(31_000);
	await n.apply(mesh(['node1'], []));
	n.wait(61_000);
	await n.apply();
	n.facts = { ...FACTS, uplinks: [] };
	await n.apply({ nodes: [], services: [], networks: [] });
	n.wait(61_000);
	await n.apply();
	assert.equal(n.store.memory.rows(), []);
	n.wait(25 * 3_600_000);
	await n.apply();
	assert.equal([...n.store.backends.entries()], [], 'not even their generations are left a day later');
});

test('one backend more: one row, the slots it takes, nothing else', async () => {
	const n = node();
	await n.apply(
		mesh(two, [
			service('web', '8080:80', ['node2 10.0.0.1', 'node2 10.0.0.2']),
			service('db', '5432:5432', ['node2 10.0.0.9']),
		]),
	);
	n.log();
	const r = await n.apply(
		mesh(two, [
			service('web', '8080:80', ['node2 10.0.0.1', 'node2 10.0.0.2', 'node2 10.0.0.3']),
			service('db', '5432:5432', ['node2 10.0.0.9']),
		]),
	);
	assert.equal(n.log(), ['settings.set', 'backends.set 4', 'tables.edit 2']);
	assert.equal([...n.shares(2).values()].sort(), [341, 341, 342]);
	assert.ok(r.slotsChanged >= 341 && r.slotsChanged < 600, String(r.slotsChanged));
	assert.is(n.reconciler.moving().get(1), r.slotsChanged);
	assert.equal(n.reconciler.settle().settled, 0);
	n.wait(60_001);
	assert.equal(n.reconciler.settle(), { settled: r.slotsChanged, moving: 0 });
	assert.is(n.store.tables.hasTransitions(2), false);
});

test('tracking that changes: records of `always` count until no flow needs them, and another time others do', async () => {
	const n = node();
	const { FRONTEND_TRACK_ALWAYS, FRONTEND_TRACK_NONE, FRONTEND_TRACKED } = FrontendFlag;
	const web = (tracking: 'auto' | 'always' | 'none') =>
		mesh(two, [service('web', '8080:80', ['node1', 'node2 10.0.0.1'], { tracking })]);
	const row = () => {
		const f = n.store.frontends.get(1)!;
		return [f.flags, f.generation];
	};
	const written = () => n.log().filter((l) => /^(untracked|frontends)/.test(l));
	await n.apply(web('auto'));
	assert.equal(row(), [0, 0]);
	n.log();
	await n.apply(web('always'));
	assert.equal(written(), ['frontends.set 1', 'frontends.set 1'], 'its generation is known before the flag');
	const [, first] = row();
	assert.ok(first > 2 ** 31, 'no generation of a slot');
	assert.equal(row(), [FRONTEND_TRACK_ALWAYS, first]);

	n.wait(1000);
	await n.apply(web('auto'));
	assert.equal(written(), ['untracked.set 1', 'frontends.set 1']);
	assert.equal(row(), [FRONTEND_TRACKED, first]);
	// Back before that was over: the same records.
	n.wait(1000);
	await n.apply(web('always'));
	assert.equal(written(), ['frontends.set 1', 'untracked.delete 1']);
	assert.equal(row(), [FRONTEND_TRACK_ALWAYS, first]);

	await n.apply(web('auto'));
	n.wait(50_000);
	// A program has just seen a flow that is elsewhere; an agent that starts finds all as it was.
	n.store.untracked.setMany([[1, { ...n.store.untracked.get(1)!, needed_ns: n.store.now() }]]);
	n.restart();
	n.log();
	await n.apply();
	assert.equal(written(), []);
	n.wait(30_000);
	n.reconciler.settle();
	assert.equal(row(), [FRONTEND_TRACKED, first], 'one window after the change, and not after the last packet');
	n.wait(31_000);
	n.log();
	n.reconciler.settle();
	assert.equal(n.log(), ['frontends.set 1', 'untracked.delete 1']);
	assert.equal(row(), [0, first]);

	await n.apply(web('always'));
	const [, second] = row();
	assert.ok(second > first, 'a port may belong to a new flow by now');
	await n.apply(web('auto'));
	await n.apply(web('none'));
	assert.equal([row(), [...n.store.untracked.entries()]], [[FRONTEND_TRACK_NONE, second], []]);
	await n.apply(web('auto'));
	assert.equal(row(), [0, second]);
	await n.apply(web('always'));
	assert.ok(row()[1] > second, 'within the same second too');
	await n.apply(web('auto'));
	await n.apply(mesh(two, []));
	n.wait(30_000);
	await n.apply();
	assert.equal(
		n.store.memory.rows().filter((r) => /^(untracked|frontends)/.test(r)),
		[],
	);
});

test('tracking none: tables are at rest whatever changes, and with none ended a change is a transition from where flows are', async () => {
	const n = node();
	const { FRONTEND_TRACK_NONE } = FrontendFlag;
	const web = (tracking: 'auto' | 'always' | 'none', ...tasks: string[]) =>
		mesh(two, [service('web', '8080:80', tasks, { tracking })]);
	const moving = () => countMoving(n.store.tables.read(2)!);
	await n.apply(web('auto', 'node2 10.0.0.1'));
	await n.apply(web('auto', 'node2 10.0.0.1', 'node2 10.0.0.2'));
	assert.is(moving(), 512);
	await n.apply(web('none', 'node2 10.0.0.1', 'node2 10.0.0.2'));
	assert.equal([moving(), n.reconciler.moving().get(1)], [0, 0]);
	n.reconciler.settle();
	assert.is(n.store.tables.hasTransitions(2), false);
	await n.apply(web('none', 'node2 10.0.0.1', 'node2 10.0.0.2', 'node2 10.0.0.3'));
	assert.equal([moving(), n.store.tables.hasTransitions(2), [...n.reconciler.moving()]], [0, false, []]);
	const before = n.store.tables.read(2)!;
	n.restart();
	await n.apply();
	assert.equal(n.store.tables.read(2), before);
	n.log();
	n.wait(5000);
	await n.apply(web('always', 'node2 10.0.0.1', 'node2 10.0.0.3'));
	const order = n.log().filter((l) => /^(frontends|tables)/.test(l));
	assert.is(order[0], 'frontends.set 1', `it is tracked before a slot moves: ${order}`);
	assert.is((n.store.frontends.get(1)?.flags ?? 0) & FRONTEND_TRACK_NONE, 0);
	assert.ok(moving() > 300 && moving() < 400, `${moving()} slots move`);
	n.store.tables.edit(2, (t) => {
		for (let i = 0; i < t.size; i++)
			if (t.slot(i) >>> SLOT_PHASE_SHIFT !== 0) assert.is(t.transition(i)?.previous, before[i]);
	});
});

test('an affinity that changes: the hash of open flows is known first, and forgotten when none speaks', async () => {
	const n = node();
	const { FRONTEND_AFFINITY, FRONTEND_REHASHED } = FrontendFlag;
	const web = (affinity: 'none' | 'client-ip', tracking: 'auto' | 'none' = 'auto') =>
		mesh(two, [service('web', '8080:80', ['node1', 'node2 10.0.0.1'], { affinity, tracking })]);
	const flags = () => n.store.frontends.get(1)?.flags;
	await n.apply(web('none'));
	assert.equal([flags(), [...n.store.rehashes.entries()]], [0, []]);
	n.log();
	await n.apply(web('client-ip'));
	const frontendsOnly = () => n.log().filter((l) => /^(rehashes|frontends)/.test(l));
	assert.equal(frontendsOnly(), ['rehashes.set 1', 'frontends.set 1']);
	assert.is(flags(), FRONTEND_AFFINITY | FRONTEND_REHASHED);
	const first = n.store.rehashes.get(1)!;
	assert.equal([first.previous, first.since_ns], [HashedBy.HASHED_BY_FLOW, n.store.now()]);

	// Back within the window: who never spoke meanwhile began before all that; records stay records.
	n.wait(30_000);
	await n.apply(web('none'));
	assert.is(flags(), FRONTEND_REHASHED);
	const second = n.store.rehashes.get(1)!;
	assert.equal([second.previous, second.generation], [HashedBy.HASHED_BY_FLOW, first.generation]);

	// A program has just seen a flow of the other hash; an agent that starts finds all as it was.
	n.wait(50_000);
	n.store.rehashes.setMany([[1, { ...second, needed_ns: n.store.now() }]]);
	n.restart();
	n.log();
	await n.apply();
	assert.equal(frontendsOnly(), []);
	n.wait(30_000);
	n.reconciler.settle();
	assert.is(flags(), FRONTEND_REHASHED, 'one window after the change, and not after the last packet');
	n.wait(31_000);
	n.log();
	n.reconciler.settle();
	assert.equal(n.log(), ['frontends.set 1', 'rehashes.delete 1']);
	assert.is(flags(), 0);

	await n.apply(web('client-ip', 'none'));
	assert.equal([...n.store.rehashes.entries()], [], 'who wants no tracking gets none');
	await n.apply(web('none'));
	assert.is([...n.store.rehashes.entries()].length, 1);
	await n.apply(mesh(two, []));
	n.wait(30_000);
	await n.apply();
	assert.equal(
		n.store.memory.rows().filter((r) => /^(rehashes|frontends)/.test(r)),
		[],
	);
});

test('a table that must grow is grown, then named, then changed', async () => {
	const n = node();
	const tasks = (k: number) => Array.from({ length: k }, (_, i) => `node2 10.0.0.${i + 1}`);
	await n.apply(mesh(two, [service('web', '8080:80', tasks(51))]));
	n.log();
	await n.apply(mesh(two, [service('web', '8080:80', tasks(52))]));
	const log = n.log().filter((l) => !l.startsWith('backends') && l !== 'settings.set');
	assert.equal(log, ['tables.grow 2', 'frontends.setTableRef 1', 'tables.edit 2']);
	assert.is(n.store.frontends.get(1)?.tables[0].mask, 16383);
	await n.apply(mesh(two, [service('web', '8080:80', tasks(20))]));
	assert.is(n.store.frontends.get(1)?.tables[0].mask, 16383, 'it never shrinks');
	const s = [...n.shares(2).values()];
	assert.ok(s.length === 20 && Math.max(...s) - Math.min(...s) <= 16, 'a smaller table is repeated');
});

test('both families share a table while they have the same backends, and part without moving a flow', async () => {
	const n = node();
	await n.apply(mesh(two, [service('web', '8080:80', ['node1', 'node2 10.0.0.1 fd00::1'])]));
	assert.equal(
		n.store.frontends.get(1)?.tables.map((t) => t.table),
		[2, 2],
	);
	await n.apply(mesh(two, [service('web', '8080:80', ['node1', 'node2 10.0.0.1 fd00::1', 'node2 10.0.0.2'])]));
	assert.equal(
		n.store.frontends.get(1)?.tables.map((t) => t.table),
		[2, 3],
	);
	assert.is(n.shares(2).size, 3);
	assert.equal([...n.shares(3).values()], [512, 512]);
	assert.is(countMoving(n.store.tables.read(3) as Uint32Array), 0);
	n.restart();
	await n.apply();
	assert.equal(
		n.store.frontends.get(1)?.tables.map((t) => t.table),
		[2, 3],
	);
});

test('a family that never had a backend passes; one that lost its last has empty slots', async () => {
	const n = node();
	await n.apply(mesh(two, [service('web', '8080:80', ['node2 10.0.0.1'])]));
	assert.equal(n.store.frontends.get(1)?.tables, [
		{ table: 2, mask: 1023 },
		{ table: 0, mask: 0 },
	]);
	await n.apply(mesh(two, [service('web', '8080:80', [])]));
	assert.equal([...n.shares(2)], [['node2/10.0.0.1', 1024]], 'while it drains it is better than nobody');
	n.wait(30_000);
	await n.apply();
	assert.equal([...n.shares(2)], [['none', 1024]]);
});

test('down is a table change like any other, and is undone on recovery', async () => {
	const n = node();
	const m = mesh(
		['node1', 'node2', 'node3'],
		[service('web', '8080:80', ['node1 10.0.0.1', 'node2 10.0.0.2', 'node3 10.0.0.3'])],
	);
	await n.apply(m);
	const before = [...(n.store.tables.read(2) as Uint32Array)];
	n.health = { downNodes: new Set(['node3']), downBackends: new Set() };
	await n.apply();
	assert.equal([...n.shares(2).keys()], ['node1/10.0.0.1', 'node2/10.0.0.2']);
	assert.is(
		countMoving(n.store.tables.read(2) as Uint32Array),
		before.filter((r) => r === before.find((x) => n.store.backends.get(x & 0x3fffff)?.state === 3)).length,
	);
	n.health = { downNodes: new Set(), downBackends: new Set() };
	await n.apply();
	assert.equal(
		[...(n.store.tables.read(2) as Uint32Array)].map((w) => w & 0x3fffffff),
		before,
	);
});

test('joining: ports that the kernel serves start with the kernel as previous; disabling leaves to it', async () => {
	const n = node();
	n.facts = { ...FACTS, kernelPorts: new Set([portKey('tcp', 8080)]) };
	await n.apply(
		mesh(two, [service('web', '8080:80', ['node2 10.0.0.1']), service('db', '5432:5432', ['node2 10.0.0.2'])]),
	);
	const web = n.store.tables.read(2) as Uint32Array;
	assert.is(countMoving(web), 1024);
	n.store.tables.edit(2, (t) => assert.is(t.transition(5)?.previous, REF_KERNEL));
	assert.is(countMoving(n.store.tables.read(4) as Uint32Array), 0, 'others start stable');
	await n.apply(
		mesh(two, [
			service('web', '8080:80', ['node2 10.0.0.1'], { enable: false }),
			service('db', '5432:5432', ['node2 10.0.0.2']),
		]),
	);
	assert.equal([...n.shares(2)], [['kernel', 1024]]);
	assert.ok(n.store.ports.get(8080));
	n.wait(30_001);
	await n.apply();
	assert.is(n.store.ports.get(8080), undefined);
	assert.is(n.store.frontends.get(1), undefined);
});

test('leaving hands the ports that the kernel serves back to it', async () => {
	const n = node();
	n.facts = { ...FACTS, kernelPorts: new Set([portKey('tcp', 8080)]) };
	await n.apply(
		mesh(two, [service('web', '8080:80', ['node2 10.0.0.1']), service('db', '5432:5432', ['node2 10.0.0.2'])]),
	);
	assert.equal(n.reconciler.leave(), { frontends: 1, errors: [] });
	assert.equal([...n.shares(2)], [['kernel', 1024]]);
	assert.equal([...n.shares(4)], [['node2/10.0.0.2', 1024]]);
});

test('a backend that comes back after its row is gone has another generation, and another index while some are unused', async () => {
	const n = node();
	const full = mesh(two, [service('web', '8080:80', ['node2 10.0.0.1', 'node2 10.0.0.2'])]);
	await n.apply(full);
	await n.apply(mesh(two, [service('web', '8080:80', ['node2 10.0.0.1'])]));
	n.wait(30_000);
	await n.apply();
	assert.equal(n.store.backends.get(2), { state: 0, generation: 1, mac: '00:00:00:00:00:00', node: 0 });
	n.restart();
	await n.apply(full);
	assert.is(n.store.backends.get(2)?.state, 0, 'the freed index rests');
	assert.is(n.store.backends.get(3)?.state, 1);
});

test('what an earlier agent left and nobody names drains for a minute, then goes', async () => {
	const n = node();
	await n.apply(
		mesh(two, [
			service('web', '8080:80', ['node2 10.0.0.1', 'node2 10.0.0.2']),
			service('old', '81:81', ['node2 10.0.0.3']),
		]),
	);
	n.restart();
	const r = await n.apply(mesh(['node1', 'node2'], [service('web', '8080:80', ['node2 10.0.0.1'])]));
	assert.is(n.store.ports.get(81), undefined);
	assert.is(n.store.backends.get(2)?.state, 2);
	assert.is(r.wakeAtMs, 60_000);
	n.wait(59_000);
	await n.apply();
	assert.is(n.store.backends.get(2)?.state, 2);
	n.wait(1000);
	await n.apply();
	assert.is(n.store.backends.get(2)?.state, 0);
	assert.is(n.store.backends.get(1)?.state, 1);
});

test('an orphan that is wanted again before its minute is over stays', async () => {
	const n = node();
	const full = mesh(two, [service('web', '8080:80', ['node2 10.0.0.1', 'node2 10.0.0.2'])]);
	await n.apply(full);
	n.restart();
	await n.apply(mesh(two, [service('web', '8080:80', ['node2 10.0.0.1'])]));
	n.wait(1000);
	await n.apply(full);
	n.wait(120_000);
	await n.apply();
	assert.is(n.store.backends.get(2)?.state, 1);
});

test('a part that fails is told, the rest is done, and it is tried again', async () => {
	const n = node();
	n.store.memory.failures.set('tables.create 2', Object.assign(new Error('no memory'), { code: 'ENOMEM' }));
	const m = mesh(two, [service('web', '8080:80', ['node2 10.0.0.1']), service('db', '5432:5432', ['node2 10.0.0.2'])]);
	const r = await n.apply(m);
	assert.equal(
		r.errors.map((e) => [e.part, e.service, e.code]),
		[['table of web', 'web', 'ENOMEM']],
	);
	assert.is(n.store.ports.get(8080), undefined, 'no port leads to a table that is not there');
	assert.ok(n.store.ports.get(5432));
	n.store.memory.failures.clear();
	assert.equal((await n.apply()).errors, []);
	assert.ok(n.store.ports.get(8080));
});

test('a node that changes its address takes its backends along', async () => {
	const n = node();
	const m = mesh(two, [service('web', '8080:80', ['node2 10.0.0.1'])]);
	await n.apply(m);
	await n.apply({ ...m, nodes: [m.nodes[0], { ...m.nodes[1], address: '192.168.78.9' }] });
	const index = n.store.vteps.get('192.168.78.9') as number;
	assert.is(n.store.backends.get(1)?.node, index);
	assert.is(n.store.nodes.get(index)?.vtep, '192.168.78.9');
	assert.is(n.store.vteps.get('192.168.78.2'), undefined);
});

test('ports carry what packets must ask', async () => {
	const n = node();
	await n.apply(
		mesh(two, [
			service('web', '40000:80', ['node1']),
			service('c', '8080:80', ['node1']),
			service('a', '81:8081', ['node2 10.0.0.1'], { addresses: ['192.168.78.1'] }),
			service('b', '81:8082', ['node2 10.0.0.2']),
		]),
	);
	const flags = (port: number) => ((n.store.ports.get(port) as number) & ~PORT_FRONTEND_MASK) >>> 0;
	assert.is(flags(40000), PortFlag.PORT_LOCAL | PortFlag.PORT_MASQUERADED);
	assert.is(n.store.ports.get(80), PortFlag.PORT_PROCESS);
	assert.is(flags(81), PortFlag.PORT_EXACT);
	assert.is(flags(8080), PortFlag.PORT_MASQUERADED);
	const exact = n.store.exactFrontends.get({ addr: '192.168.78.1', port: 81, proto: 6 });
	assert.is.not(exact, (n.store.ports.get(81) as number) & PORT_FRONTEND_MASK);
	const { SETTINGS_PROCESSES: processes, SETTINGS_WATCH_SOURCES: watch, SETTINGS_KNOW_SOURCES: know } = SettingsFlag;
	assert.is(n.store.settings.get().flags, processes);
	for (const [sources, want] of [
		['watched', watch],
		['known', watch | know],
	] as const) {
		n.facts = { ...FACTS, sources };
		await n.apply();
		assert.is(n.store.settings.get().flags, processes | want);
	}
});

test('the ingress network’s MTU is the mesh’s; another network’s is its own', async () => {
	const n = node();
	const of = async (...networks: [ingress: boolean, mtu: number | undefined][]) => {
		await n.apply({
			...mesh(two, [service('web', '8080:80', ['node1'])]),
			networks: networks.map(([ingress, mtu], i) => ({
				name: `net${i}`,
				driver: 'beeline',
				subnet: `10.1${i}.0.0/16`,
				vni: 5000 + i,
				attachable: false,
				ingress,
				options: mtu === undefined ? {} : { mtu },
			})),
		});
		return n.store.settings.get().mesh_mtu;
	};
	assert.is(await of([false, 1300]), 0);
	assert.is(await of([false, 1300], [true, 1200]), 1200);
	assert.is(await of([true, undefined]), 0);
});

test('a port that must not be published is refused alone', async () => {
	const n = node();
	n.facts = { ...FACTS, refusedPorts: new Map([[portKey('tcp', 22), 'port 22 is held by sshd']]) };
	await n.apply(mesh(two, [service('web', ['22:22', '8080:80'], ['node1'])]));
	assert.is(n.store.ports.get(8080) !== undefined, true);
	assert.is((n.store.ports.get(22) ?? 0) & PORT_FRONTEND_MASK, 0);
	assert.equal(n.entries?.services.get('web')?.refused, [
		{ port: 22, protocol: 'tcp', reason: 'port 22 is held by sshd' },
	]);
});

test('random histories: the maps of an agent that saw them all are those of one that starts now', async () => {
	const state = fc.array(
		fc.record({
			name: fc.constantFrom('web', 'db', 'x'),
			port: fc.constantFrom('80:80', '81:80', '53:53/udp'),
			tasks: fc.uniqueArray(
				fc.constantFrom(
					'node1',
					'node1 10.0.0.1',
					'node2 10.0.0.2 fd00::2',
					'node2 10.0.0.3 w=3',
					'node2 fd00::4',
					'node2 10.0.0.5 drain',
				),
			),
			allow: fc.constantFrom([], ['10.0.0.0/8']),
			addresses: fc.constantFrom([], ['192.168.78.1'], ['192.168.78.1', 'fd00:78::1']),
		}),
		{ maxLength: 3 },
	);
	await fc.assert(
		fc.asyncProperty(fc.array(fc.tuple(state, fc.boolean()), { minLength: 1, maxLength: 6 }), async (states) => {
			const n = node();
			let last = mesh(two, []);
			for (const [list, restart] of states) {
				const seen = new Set<string>();
				const services = list.filter((s) => {
					const fresh = !seen.has(s.name) && !seen.has(s.port);
					seen.add(s.name).add(s.port);
					return fresh;
				});
				last = mesh(
					two,
					services.map((s) =>
						service(s.name, s.port, s.tasks, { allow: s.allow, addresses: s.addresses, tableSize: 64 }),
					),
				);
				if (restart) n.restart();
				assert.equal((await n.apply(last)).errors, []);
				n.wait(1000);
			}
			for (let i = 0; i < 3; i++) {
				n.wait(61_000);
				assert.equal((await n.apply()).errors, []);
				n.reconciler.settle();
			}
			const fresh = node();
			await fresh.apply(last);
			fresh.wait(61_000);
			await fresh.apply();
			const picture = (x: typeof n) => ({
				backends: [...x.store.backends.entries()]
					.filter(([, r]) => r.state)
					.map(([, r]) => `${r.mac} ${r.state}`)
					.sort(),
				local: [...x.store.localBackends.entries()].map(([mac]) => mac).sort(),
				ports: [...x.store.ports.entries()]
					.map(([k, v]) => `${k} ${v & ~PORT_FRONTEND_MASK} ${v & PORT_FRONTEND_MASK ? 'frontend' : ''}`)
					.sort(),
				lists: [...x.store.allow.entries()].length,
				exact: [...x.store.exactFrontends.entries()].map(([k]) => `${k.addr} ${k.proto}/${k.port}`).sort(),
				nodes: [...x.store.nodes.entries()].length,
				shares: [...x.store.frontends.entries()]
					.map(([, f]) => `${f.proto}/${f.port} ${[...x.shares(f.tables[0].table)].join(' ')}`)
					.sort(),
			});
			const a = picture(n);
			const b = picture(fresh);
			// A table that was once there stays, empty: its family had a backend and is not the kernel's to answer.
			const filled = (s: string[]) => s.map((l) => l.replace(/ none,64$/, ' '));
			assert.equal({ ...a, shares: filled(a.shares) }, { ...b, shares: filled(b.shares) });
		}),
		{ numRuns: 150 },
	);
});

test.run();
