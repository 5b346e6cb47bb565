/* Service VIPs, from the membership to the maps. Networks: red is VNI 4097, blue 4098. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { BackendState, Membership, ServiceSpec, Task } from '../../src/mesh/types.js';
import { createVipIds, type VipEntries, vipEntries } from '../../src/mesh/vip-entries.js';
import { createVipReconciler } from '../../src/mesh/vip-reconcile.js';
import { type MeshVips, planVips, vipTableSize } from '../../src/mesh/vips.js';
import { createMemoryStore } from './memory-store.js';
import { OPTIONS } from './support.js';

const test = suite('VIPs');

const task = (id: string, node: string, address: string, state: BackendState = 'active', weight = 1): Task => ({
	id,
	node,
	families: [4],
	on: { red: address },
	weight,
	state,
});
const web = (...tasks: Task[]): ServiceSpec => ({
	name: 'web',
	ports: [],
	options: OPTIONS,
	tasks,
	vips: [{ network: 'red', address: '10.77.1.2' }],
});
const mesh = (...services: ServiceSpec[]): Membership => ({
	nodes: ['node1', 'node2', 'node3'].map((name, i) => ({ name, address: `192.168.78.${i + 1}`, drained: false })),
	services,
	networks: [
		{ name: 'blue', driver: 'overlay', subnet: '10.77.2.0/24', vni: 4098, attachable: true, options: {} },
		{ name: 'red', driver: 'overlay', subnet: '10.77.1.0/24', vni: 4097, attachable: true, options: {} },
	],
});
const healthy = { downNodes: new Set<string>() };
const three = () => [task('a', 'node1', '10.77.1.5'), task('b', 'node2', '10.77.1.6'), task('c', 'node3', '10.77.1.7')];
const states = (m: MeshVips, service = 'web') =>
	m.services.get(service)?.vips.map((v) => v.backends.map((b) => `${b.address} ${b.state}`));
const chosen = (m: MeshVips, service = 'web') =>
	m.services.get(service)?.vips.flatMap((v) => v.members.filter((x) => !x.down).map((x) => x.backend.address));

test('a VIP leads to the tasks of its service in its network, named by the VNI', () => {
	const m = planVips(mesh(web(...three())), 'node1', healthy);
	const [vip] = m.services.get('web')!.vips;
	assert.is(vip.key, '4097 10.77.1.2');
	assert.equal(chosen(m), ['10.77.1.5', '10.77.1.6', '10.77.1.7']);
});

test('a service with VIPs in two networks leads to each task’s address of that network', () => {
	const both: ServiceSpec = {
		...web({ ...three()[0], on: { red: '10.77.1.5', blue: '10.77.2.5' } }),
		vips: [
			{ network: 'blue', address: '10.77.2.2' },
			{ network: 'red', address: '10.77.1.2' },
		],
	};
	const m = planVips(mesh(both), 'node1', healthy);
	assert.equal(
		m.services.get('web')!.vips.map((v) => `${v.key}: ${v.members.map((x) => x.backend.key)}`),
		['4098 10.77.2.2: 4098 10.77.2.5', '4097 10.77.1.2: 4097 10.77.1.5'],
	);
});

test('no VIP: dnsrr, a network that is not known, and a service that is left to Docker', () => {
	const { vips: _, ...dnsrr } = web(...three());
	const lost = { ...web(...three()), vips: [{ network: 'green', address: '10.77.3.2' }] };
	const left = { ...web(...three()), options: { ...OPTIONS, enable: false } };
	assert.equal(states(planVips(mesh(dnsrr), 'node1', healthy)), undefined);
	assert.equal(states(planVips(mesh(lost), 'node1', healthy)), []);
	assert.equal(states(planVips(mesh(left), 'node1', healthy)), undefined);
});

test('tasks that drain, are down or weigh nothing are not chosen', () => {
	const tasks = [
		task('a', 'node1', '10.77.1.5', 'draining'),
		task('b', 'node2', '10.77.1.6', 'down'),
		task('c', 'node3', '10.77.1.7'),
		task('d', 'node3', '10.77.1.8', 'active', 0),
	];
	assert.equal(chosen(planVips(mesh(web(...tasks)), 'node1', healthy)), ['10.77.1.7']);
	assert.equal(
		chosen(planVips(mesh(web(tasks[0], tasks[3])), 'node1', healthy)),
		['10.77.1.8'],
		'weight 0 is the last resort',
	);
	assert.equal(chosen(planVips(mesh(web(tasks[0], tasks[1])), 'node1', healthy)), [], 'nobody: dials are refused');
});

test('tasks of a node that does not answer are not chosen, unless that would be all', () => {
	const m = mesh(web(...three()));
	assert.equal(chosen(planVips(m, 'node1', { downNodes: new Set(['node2']) })), ['10.77.1.5', '10.77.1.7']);
	assert.equal(
		chosen(planVips(mesh(web(three()[1], three()[2])), 'node1', { downNodes: new Set(['node2', 'node3']) })),
		['10.77.1.6', '10.77.1.7'],
	);
});

test('prefer local: tasks of this node, while there are any', () => {
	const local = { ...web(...three()), options: { ...OPTIONS, prefer: 'local' as const } };
	assert.equal(chosen(planVips(mesh(local), 'node2', healthy)), ['10.77.1.6']);
	assert.equal(chosen(planVips(mesh({ ...local, tasks: three().slice(0, 2) }), 'node3', healthy)), [
		'10.77.1.5',
		'10.77.1.6',
	]);
});

test('an address that went from a task that is over to its successor is the successor’s', () => {
	for (const tasks of [
		[task('old', 'node1', '10.77.1.5', 'down'), task('new', 'node2', '10.77.1.5')],
		[task('new', 'node2', '10.77.1.5'), task('old', 'node1', '10.77.1.5', 'down')],
	])
		assert.equal(states(planVips(mesh(web(...tasks)), 'node1', healthy)), [['10.77.1.5 active']]);
});

test('what did not change is the same object', () => {
	const m = mesh(web(...three()), { ...web(task('z', 'node1', '10.77.1.9')), name: 'db' });
	const before = planVips(m, 'node1', healthy);
	assert.is(planVips(m, 'node1', { downNodes: new Set() }, before), before);
	const after = planVips({ ...m, services: [web(...three().slice(1)), m.services[1]] }, 'node1', healthy, before);
	assert.is(after.services.get('db'), before.services.get('db'));
	assert.is.not(after.services.get('web'), before.services.get('web'));
});

// ---- rows

function world() {
	const store = createMemoryStore();
	let ids = createVipIds();
	let reconciler = createVipReconciler(store.vip, ids);
	let before: VipEntries | undefined;
	let plan: MeshVips | undefined;
	const namespaces = new Map<bigint, readonly number[]>();
	return {
		store,
		namespaces,
		restart() {
			ids = createVipIds();
			reconciler = createVipReconciler(store.vip, ids);
			before = plan = undefined;
		},
		apply(m: Membership, known = true, kernel = false, nowMs = 1000) {
			plan = planVips(m, 'node1', healthy, plan);
			before = vipEntries(plan, { namespaces: known ? namespaces : undefined, kernel }, ids, nowMs, before);
			store.memory.log.length = 0;
			return reconciler.reconcile(before, nowMs);
		},
		attach: (cookie: bigint, vnis: readonly number[]) => reconciler.attach(cookie, vnis),
		/** Address → share of the VIP's slots. */
		shares(address = '10.77.1.2') {
			const row = store.vip.vips.get({ network: 4097, addr: address });
			const out: Record<string, number> = {};
			for (const index of (row?.table && store.vip.tables.read(row.table)) || []) {
				const b = store.vip.backends.get(index);
				const name = b?.state === 1 ? b.addr : `${b?.addr} not active`;
				out[name] = (out[name] ?? 0) + 1;
			}
			return out;
		},
	};
}

test('tables are small, even, and a power of two', () => {
	assert.equal([0, 1, 3, 4, 100, 1000, 5000].map(vipTableSize), [64, 64, 64, 128, 2048, 32768, 65536]);
	const w = world();
	w.apply(mesh(web(...three())));
	const shares = Object.values(w.shares());
	assert.is(shares.length, 3);
	assert.ok(Math.max(...shares) - Math.min(...shares) <= 1, shares.join());
});

test('an address is there before a table, a table before a VIP; deletes in reverse; nothing is left', () => {
	const w = world();
	w.namespaces.set(7n, [4097]);
	w.apply(mesh(web(...three())));
	assert.equal(
		w.store.memory.log.map((l) => l.split(' ')[0]),
		['vip_backends.set', 'vip_backends.set', 'vip_backends.set', 'vip_tables.put', 'vips.set', 'netns_networks.set'],
	);
	assert.equal(w.apply(mesh(web(...three()))).rowsWritten, 0, 'a second time nothing is written');
	assert.equal(w.store.memory.log, []);
	w.namespaces.clear();
	const r = w.apply(mesh());
	assert.equal(
		w.store.memory.log.map((l) => l.split(' ')[0]),
		['netns_networks.delete', 'vips.delete', 'vip_tables.delete', ...Array(3).fill('vip_backends.delete')],
	);
	assert.equal(r.gone.map((g) => g.address).sort(), ['10.77.1.5', '10.77.1.6', '10.77.1.7']);
	assert.equal(w.store.memory.rows(), []);
});

test('a task that goes gives its slots to the others, and nobody else’s move', () => {
	const w = world();
	w.apply(mesh(web(...three())));
	const row = w.store.vip.vips.get({ network: 4097, addr: '10.77.1.2' })!;
	const was = w.store.vip.tables.read(row.table)!;
	const b = [...w.store.vip.backends.entries()].find(([, x]) => x.addr === '10.77.1.6')![0];
	const r = w.apply(mesh(web(three()[0], task('b', 'node2', '10.77.1.6', 'down'), three()[2])));
	assert.is(w.store.memory.log[0], `vip_backends.set ${b}`, 'from the first write on it is not chosen');
	assert.equal(r.gone, [{ network: 4097, address: '10.77.1.6' }]);
	assert.equal(Object.keys(w.shares()).sort(), ['10.77.1.5', '10.77.1.7']);
	const is = w.store.vip.tables.read(row.table)!;
	assert.is(was.filter((x, i) => x !== b && x !== is[i]).length, 0);
	assert.equal(w.apply(mesh(web(three()[0], three()[2]))).gone, [], 'it was told once');
	w.apply(mesh(web(...three())));
	assert.is(Object.keys(w.shares()).length, 3, 'and back');
});

test('one that drains keeps its connected sockets', () => {
	const w = world();
	w.apply(mesh(web(...three())));
	assert.equal(w.apply(mesh(web(three()[0], task('b', 'node2', '10.77.1.6', 'draining')))).gone, [
		{ network: 4097, address: '10.77.1.7' },
	]);
});

test('a mask never reaches beyond its table', () => {
	const w = world();
	const many = Array.from({ length: 12 }, (_, i) => task(`t${i}`, 'node1', `10.77.1.${20 + i}`));
	w.apply(mesh(web(...three())));
	w.apply(mesh(web(...many)));
	const order = () => w.store.memory.log.map((l) => l.split(' ')[0]).filter((l) => /^vips|^vip_tables/.test(l));
	assert.equal(order(), ['vip_tables.put', 'vips.set']);
	w.apply(mesh(web(...three())));
	assert.equal(order(), ['vips.set', 'vip_tables.put']);
});

test('where the kernel has IPVS every VIP says so', () => {
	const w = world();
	w.apply(mesh(web(...three())));
	w.apply(mesh(web(...three())), true, true);
	assert.is(w.store.vip.vips.get({ network: 4097, addr: '10.77.1.2' })?.flags, 2);
	assert.equal(w.store.memory.log.length, 1);
});

test('scaled to zero the VIP stays and has no table', () => {
	const w = world();
	w.apply(mesh(web(...three())));
	w.apply(mesh(web()));
	assert.equal(
		[...w.store.vip.vips.entries()].map(([, r]) => r),
		[{ table: 1, mask: 0, flags: 0 }],
	);
	assert.equal([...w.store.vip.tables.ids()], []);
	w.apply(mesh(web(three()[0])));
	assert.equal(Object.keys(w.shares()), ['10.77.1.5']);
});

test('a restart finds its rows, and keeps namespaces until they are known', () => {
	const w = world();
	w.namespaces.set(7n, [4097]).set(8n, [4098, 4097]);
	w.apply(mesh(web(...three())));
	const rows = w.store.memory.rows().sort();
	w.restart();
	assert.equal(w.apply(mesh(web(...three())), false).rowsWritten, 0);
	assert.equal(w.store.memory.rows().sort(), rows);
	w.namespaces.delete(8n);
	w.apply(mesh(web(...three())));
	assert.equal([...w.store.vip.namespaces.entries()], [[7n, [4097]]]);
	w.restart();
	assert.equal(w.apply(mesh()).gone.length, 3, 'what went while no agent ran is told too');
});

test('a namespace is attached before the next full look, which keeps it', () => {
	const w = world();
	w.apply(mesh(web(...three())));
	w.attach(9n, [4097]);
	assert.equal(w.store.vip.namespaces.get(9n), [4097]);
	w.namespaces.set(9n, [4097]);
	assert.is(w.apply(mesh(web(...three()))).rowsWritten, 0);
});

test('what fails is told, and done the next time', () => {
	const w = world();
	w.store.memory.failures.set('vip_tables.put', new Error('no memory'));
	const r = w.apply(mesh(web(...three())));
	assert.equal(
		r.errors.map((e) => e.message),
		['no memory'],
	);
	assert.equal([...w.store.vip.vips.entries()], [], 'no VIP leads to a table that is not there');
	w.store.memory.failures.clear();
	assert.equal(w.apply(mesh(web(...three()))).errors, []);
	assert.is(Object.keys(w.shares()).length, 3);
});

test.run();
