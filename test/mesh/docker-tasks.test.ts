/** Tasks that are known by their id: the same tables everywhere, addresses on their own node alone. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { entries, undeliverable } from '../../src/mesh/entries.js';
import { createIds } from '../../src/mesh/ids.js';
import { HEALTHY, type Mesh, plan } from '../../src/mesh/plan.js';
import type { Membership, Task } from '../../src/mesh/types.js';
import { DATAPATH, FACTS, mesh, service } from './support.js';

function withTasks(...tasks: Task[]): Membership {
	return mesh(['node1', 'node2'], [{ ...service('web', '8080:80', []), tasks }]);
}
const byId = (id: string, node: string, more: Partial<Task> = {}): Task => ({
	id,
	node,
	families: [4],
	weight: 1,
	state: 'active',
	...more,
});
const run = (m: Membership, self = 'node1', previous?: Mesh): Mesh =>
	plan({ membership: m, self, health: HEALTHY, nowMs: 0, ...(previous ? { previous } : {}) });

test('a task without an address is in the tables of its families, on every node alike', () => {
	const m = withTasks(byId('t1', 'node1'), byId('t2', 'node2'));
	for (const self of ['node1', 'node2']) {
		const [f] = run(m, self).services.get('web')!.frontends;
		assert.equal([f.members4.length, f.members6.length], [2, 0], self);
	}
	const own = withTasks(byId('t1', 'node1', { address4: '172.18.0.3' }), byId('t2', 'node2'));
	assert.is(run(own).digest, run(m, 'node2').digest);
	assert.equal(
		run(own)
			.services.get('web')!
			.backends.map((b) => b.mac),
		run(m, 'node2')
			.services.get('web')!
			.backends.map((b) => b.mac),
	);
});

test('on its own node it cannot be delivered to until its address is known', () => {
	const before = run(withTasks(byId('t1', 'node1')));
	const ids = createIds();
	const e = entries(before, FACTS, DATAPATH, ids, 0);
	assert.equal([...undeliverable(e)], [['web/node1/t1/80/tcp', 'its container has no address on this node yet']]);
	const after = run(withTasks(byId('t1', 'node1', { address4: '172.18.0.3' })), 'node1', before);
	const facts = { ...FACTS, endpoints: new Map([['172.18.0.3', { ifindex: 9, delivery: 'peer' as const }]]) };
	const next = entries(after, facts, DATAPATH, ids, 0, e);
	assert.is(undeliverable(next).size, 0);
	const [[, row]] = next.services.get('web')!.localBackends;
	assert.equal([row.addr4, row.ifindex, row.port], ['172.18.0.3', 9, 80]);
});

test('elsewhere it needs none', () => {
	const e = entries(run(withTasks(byId('t2', 'node2'))), FACTS, DATAPATH, createIds(), 0);
	assert.is(undeliverable(e).size, 0);
	assert.is(e.services.get('web')!.backends.length, 1);
	assert.equal(e.services.get('web')!.processPorts, []);
});

test.run();
