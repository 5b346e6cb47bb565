import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { HEALTHY, type Health, type Member, type Mesh, type MeshService, plan } from '../../src/mesh/plan.js';
import type { Membership } from '../../src/mesh/types.js';
import { mesh, service } from './support.js';

const test = suite('plan');
const run = (m: Membership, nowMs = 0, previous?: Mesh, health: Health = HEALTHY, self = 'node1') =>
	plan({ membership: m, self, health, nowMs, ...(previous ? { previous } : {}) });
const web = (m: Mesh): MeshService => m.services.get('web') as MeshService;
const names = (l: readonly Member[]) =>
	l.map(
		(x) =>
			`${x.backend.node}/${x.backend.address4 ?? x.backend.address6 ?? 'process'}${x.weight === 1 ? '' : ` w=${x.weight}`}${x.down ? ' down' : ''}`,
	);
const states = (m: Mesh) =>
	Object.fromEntries(
		web(m).backends.map((b) => [b.id, `${b.state}${b.leaving ? ' leaving' : ''}${b.gone ? ' gone' : ''}`]),
	);
const down = (...nodes: string[]): Health => ({ downNodes: new Set(nodes), downBackends: new Set() });

test('a backend is one item per node, address, target and protocol; its id is URL-safe', () => {
	const m = run(
		mesh(
			['node1', 'node2'],
			[service('web', ['8080:80', '8081:80', '53:53/udp'], ['node2 172.18.0.3 fd00::3', 'node1', 'node2 fd00::4'])],
		),
	);
	assert.equal(
		web(m).backends.map((b) => b.id),
		[
			'web~node1~process~53~udp',
			'web~node1~process~80~tcp',
			'web~node2~172.18.0.3~53~udp',
			'web~node2~172.18.0.3~80~tcp',
			'web~node2~fd00--4~53~udp',
			'web~node2~fd00--4~80~tcp',
		],
	);
	for (const b of web(m).backends) {
		assert.is(encodeURIComponent(b.id), b.id);
		assert.match(b.mac, /^06(:[0-9a-f]{2}){5}$/);
	}
	assert.is(new Set(web(m).backends.map((b) => b.mac)).size, 6);
	assert.equal(names(web(m).frontends[0].members4), ['node1/process', 'node2/172.18.0.3']);
	assert.equal(names(web(m).frontends[0].members6), ['node1/process', 'node2/172.18.0.3', 'node2/fd00::4']);
});

test('two backends whose keys share their 40 bits have two MACs, whichever came first', () => {
	// Found by trying four million addresses; they end in 60.242.206 and 31.28.51 for this service, node and port.
	const [a, b] = ['node2 10.31.28.51', 'node2 10.60.242.206'];
	const other = service('db', '5432:5432', ['node2 10.0.0.9']);
	const of = (...tasks: string[]) => mesh(['node1', 'node2'], [service('web', '8080:80', tasks), other]);
	const macs = (m: Mesh) => web(m).backends.map((x) => `${x.address4} ${x.mac}`);
	const both = run(of(a, b));
	assert.is(web(both).backends[0].hash, web(both).backends[1].hash);
	assert.is(new Set(web(both).backends.map((x) => x.mac)).size, 2);
	for (const one of [a, b]) {
		const later = run(of(a, b), 1, run(of(one)));
		assert.equal(macs(later), macs(both));
		const more = run(of(a, b, 'node2 10.0.0.7'), 2, later);
		assert.equal(
			macs(more).filter((x) => !x.startsWith('10.0.0.7')),
			macs(both),
		);
	}
});

test('every node plans the same ids, MACs and digest, in whatever order the file lists them', () => {
	const tasks = ['node1', 'node2 172.18.0.2', 'node3 172.18.0.3'];
	const a = run(
		mesh(['node1', 'node2', 'node3'], [service('web', '8080:80', tasks), service('db', '5432:5432', tasks)]),
	);
	const b = run(
		mesh(
			['node3', 'node2', 'node1'],
			[service('db', '5432:5432', tasks), service('web', '8080:80', [...tasks].reverse())],
		),
		7,
		undefined,
		down('node3'),
		'node2',
	);
	assert.equal(
		web(a).backends.map((x) => [x.id, x.mac]),
		web(b).backends.map((x) => [x.id, x.mac]),
	);
	assert.is(a.digest, b.digest);
	assert.is.not(a.digest, run(mesh(['node1'], [service('web', '8080:80', ['node1'])])).digest);
});

test('what did not change is the same object', () => {
	const one = service('web', '8080:80', ['node1', 'node2 10.0.0.1']);
	const two = service('db', '5432:5432', ['node2 10.0.0.2']);
	const a = run(mesh(['node1', 'node2'], [one, two]));
	const b = run(mesh(['node1', 'node2'], [service('web', '8080:80', ['node1']), two]), 1, a);
	assert.is(b.services.get('db'), a.services.get('db'));
	assert.is.not(web(b), web(a));
	assert.is(web(b).backends[0], web(a).backends[0]);
});

test('a backend taken from the file drains for drainTimeout and is gone then', () => {
	const full = mesh(['node1', 'node2'], [service('web', '8080:80', ['node1', 'node2 10.0.0.1'])]);
	const less = mesh(['node1', 'node2'], [service('web', '8080:80', ['node1'])]);
	const a = run(full);
	const b = run(less, 1000, a);
	assert.equal(states(b), { 'web~node1~process~80~tcp': 'active', 'web~node2~10.0.0.1~80~tcp': 'draining leaving' });
	assert.equal(names(web(b).frontends[0].members4), ['node1/process']);
	assert.is(b.wakeAtMs, 31_000);
	const c = run(less, 30_999, b);
	assert.is(web(c).backends.length, 2);
	assert.equal(states(run(less, 31_000, c)), { 'web~node1~process~80~tcp': 'active' });
	assert.equal(states(run(full, 5000, b))['web~node2~10.0.0.1~80~tcp'], 'active', 'it may come back meanwhile');
});

test('a drained backend stays listed; after drainTimeout it has no row', () => {
	const m = mesh(['node1', 'node2'], [service('web', '8080:80', ['node1', 'node2 10.0.0.1 drain'])]);
	const a = run(m);
	assert.is(states(a)['web~node2~10.0.0.1~80~tcp'], 'draining');
	assert.is(states(run(m, 30_000, a))['web~node2~10.0.0.1~80~tcp'], 'draining gone');
});

test('a drained node drains its backends, and those only', () => {
	const a = run(mesh(['node1', 'node2 drain'], [service('web', '8080:80', ['node1', 'node2 10.0.0.1'])]));
	assert.equal(states(a), { 'web~node1~process~80~tcp': 'active', 'web~node2~10.0.0.1~80~tcp': 'draining' });
});

test('the last backend is never ejected: drained ones serve when nobody else does, and do not expire', () => {
	const m = mesh(['node1'], [service('web', '8080:80', ['node1 10.0.0.1 drain', 'node1 10.0.0.2 drain'])]);
	const b = run(m, 100_000, run(m));
	assert.equal(names(web(b).frontends[0].members4), ['node1/10.0.0.1', 'node1/10.0.0.2']);
	assert.equal(Object.values(states(b)), ['draining', 'draining']);
});

test('weight 0 takes no new flows while another weighs something', () => {
	const a = run(mesh(['node1'], [service('web', '8080:80', ['node1 10.0.0.1 w=0', 'node1 10.0.0.2 w=5'])]));
	assert.equal(names(web(a).frontends[0].members4), ['node1/10.0.0.2 w=5']);
	const b = run(mesh(['node1'], [service('web', '8080:80', ['node1 10.0.0.1 w=0', 'node1 10.0.0.2 drain'])]));
	assert.equal(names(web(b).frontends[0].members4), ['node1/10.0.0.1']);
});

test('a node that does not answer has its backends down; they keep their place in the table', () => {
	const m = mesh(['node1', 'node2'], [service('web', '8080:80', ['node1', 'node2 10.0.0.1'])]);
	const a = run(m);
	const b = run(m, 1, a, down('node2'));
	assert.is(states(b)['web~node2~10.0.0.1~80~tcp'], 'down');
	assert.equal(names(web(b).frontends[0].members4), ['node1/process', 'node2/10.0.0.1 down']);
	assert.equal(states(run(m, 2, b)), states(a));
});

test('when no node answers the alarm is false: all stay active, in each family', () => {
	const m = mesh(
		['node1', 'node2', 'node3'],
		[service('web', '8080:80', ['node2 10.0.0.1', 'node3 10.0.0.2 fd00::2'])],
	);
	assert.equal(Object.values(states(run(m, 0, undefined, down('node2', 'node3')))), ['active', 'active']);
	assert.equal(
		Object.values(states(run(m, 0, undefined, down('node3')))),
		['active', 'active'],
		'the only one of IPv6',
	);
	assert.equal(Object.values(states(run(m, 0, undefined, down('node2')))), ['down', 'active']);
});

test('while nothing leads to those that shall serve, one that is being drained does', () => {
	const tasks = ['node2 10.0.0.1', 'node3 10.0.0.2 drain'];
	const all = ['node1', 'node2', 'node3', 'node4'];
	const m = mesh(all, [service('web', '8080:80', tasks)]);
	const a = run(m);
	const unknown = (m: Mesh, n: number, ...silent: string[]) => ({
		downNodes: new Set(silent),
		downBackends: new Set(
			web(m)
				.backends.slice(0, n)
				.map((b) => b.key),
		),
	});
	const b = run(m, 1, a, unknown(a, 1));
	assert.equal(Object.values(states(b)), ['down', 'draining']);
	assert.equal(names(web(b).frontends[0].members4), ['node3/10.0.0.2']);
	assert.is(web(b).digest, web(a).digest);
	assert.equal(Object.values(states(run(m, 2, b))), ['active', 'draining'], 'found');
	assert.is(b.wakeAtMs, 30_000);
	assert.equal(
		Object.values(states(run(m, 30_000, b, unknown(a, 1)))),
		['active', 'draining gone'],
		'no longer than that',
	);
	assert.equal(
		Object.values(states(run(m, 1, a, unknown(a, 1, 'node3')))),
		['active', 'down'],
		'its node is silent too',
	);
	assert.equal(
		Object.values(states(run(m, 1, a, down('node2')))),
		['active', 'draining'],
		'silence may be a false alarm',
	);
	const more = mesh(all, [service('web', '8080:80', [...tasks, 'node4 10.0.0.3'])]);
	const three = run(more);
	assert.equal(
		Object.values(states(run(more, 1, three, unknown(three, 1, 'node4')))),
		['down', 'draining', 'active'],
		'and so the silent one is likelier to serve',
	);
	const six = mesh(all, [service('web', '8080:80', ['node2 10.0.0.1 fd00::1', 'node3 10.0.0.2 drain'])]);
	assert.equal(
		Object.values(states(run(six, 1, undefined, unknown(run(six), 1)))),
		['active', 'draining'],
		'the last of IPv6',
	);
	const rests = { ...m, services: m.services.map((s) => ({ ...s, scaleFromZero: { idleMs: 60_000 } })) };
	const held = run(rests);
	assert.equal(
		Object.values(states(run(rests, 1, held, unknown(held, 1)))),
		['active', 'draining'],
		'holds its clients',
	);
	// Who is not listed any more may be dead.
	const gone = mesh(all, [service('web', '8080:80', tasks.slice(0, 1))]);
	assert.equal(Object.values(states(run(gone, 1, a, unknown(a, 1)))), ['active', 'draining leaving']);
});

test('a backend that its source called down goes at once when it is removed', () => {
	const a = run(mesh(['node1'], [service('web', '8080:80', ['node1 10.0.0.1', 'node1 10.0.0.2 down'])]));
	const b = run(mesh(['node1'], [service('web', '8080:80', ['node1 10.0.0.1'])]), 1, a);
	assert.equal(states(b), { 'web~node1~10.0.0.1~80~tcp': 'active' });
});

test('prefer local: only this node’s backends while one lives, else all', () => {
	const tasks = ['node1 10.0.0.1', 'node1 10.0.0.2', 'node2 10.0.0.3'];
	const m = mesh(['node1', 'node2', 'node3'], [service('web', '8080:80', tasks, { prefer: 'local' })]);
	const on = (self: string) => names(web(run(m, 0, undefined, HEALTHY, self)).frontends[0].members4);
	assert.equal(on('node1'), ['node1/10.0.0.1', 'node1/10.0.0.2']);
	assert.equal(on('node2'), ['node2/10.0.0.3']);
	assert.equal(on('node3'), ['node1/10.0.0.1', 'node1/10.0.0.2', 'node2/10.0.0.3']);
	assert.is(run(m).digest, run(m, 0, undefined, HEALTHY, 'node2').digest, 'a preference is not a difference');
});

test('enable: false has no frontends', () => {
	const a = run(mesh(['node1'], [service('web', '8080:80', ['node1'], { enable: false })]));
	assert.equal(web(a).frontends, []);
	assert.is(web(a).backends.length, 1);
});

test('a service that is disabled leaves its ports for drainTimeout', () => {
	const a = run(mesh(['node1'], [service('web', '8080:80', ['node1'])]));
	const off = mesh(['node1'], [service('web', '8080:80', ['node1'], { enable: false })]);
	const b = run(off, 1000, a);
	assert.equal(
		web(b).frontends.map((f) => [f.key, f.leaving]),
		[['web/tcp/8080', true]],
	);
	assert.equal(web(run(off, 31_000, b)).frontends, []);
});

test('a service without backends has a frontend with an empty table', () => {
	const a = run(mesh(['node1'], [service('web', '8080:80', [])]));
	assert.equal([web(a).frontends[0].members4, web(a).frontends[0].members6], [[], []]);
});

test('a removed node stays while its backends drain, and a minute for flows that entered by it', () => {
	const a = run(mesh(['node1', 'node2'], [service('web', '8080:80', ['node1', 'node2 10.0.0.1'])]));
	const less = mesh(['node1'], [service('web', '8080:80', ['node1'])]);
	const b = run(less, 0, a);
	assert.is(b.nodes.get('node2')?.leaving, true);
	const c = run(less, 30_000, b);
	assert.is(web(c).backends.length, 1);
	assert.is(c.nodes.has('node2'), true);
	assert.is(run(less, 60_000, c).nodes.has('node2'), false);
});

test.run();
