import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { asked, holds, newIn } from '../../src/agent/asked.js';
import { FactReader, knownPart } from '../../src/agent/facts.js';
import type { Local } from '../../src/agent/local.js';
import { HEALTHY, type Mesh, plan } from '../../src/mesh/plan.js';
import { parseMembership } from '../../src/mesh/sources/file.js';

type Service = { name: string; published: number; backends: { node: string; address: string }[]; allow?: string[] };

function membershipOf(services: Service[], nodes = ['n1', 'n2']) {
	return parseMembership(
		'mesh.yaml',
		JSON.stringify({
			nodes: nodes.map((name, i) => ({ name, address: `10.7.0.${i + 1}` })),
			services: services.map(({ name, published, backends, allow }) => ({
				name,
				ports: [{ published, target: 80 }],
				backends,
				...(allow === undefined ? {} : { options: { allow } }),
			})),
		}),
	);
}
function meshOf(services: Service[], nodes?: string[], previous?: Mesh): Mesh {
	return plan({
		membership: membershipOf(services, nodes),
		self: 'n1',
		health: HEALTHY,
		nowMs: 1000,
		...(previous === undefined ? {} : { previous }),
	});
}
const here = { node: 'n1', address: '172.18.0.2' };
const there = { node: 'n2', address: '172.18.0.2' };
const web = { name: 'web', published: 8080, backends: [here, there] };

test('what other nodes do asks nothing new of this one', () => {
	const seen = asked(meshOf([web]));
	assert.is(newIn(asked(meshOf([web])), seen), undefined);
	const more = { ...web, backends: [here, there, { node: 'n2', address: '172.18.0.3' }] };
	assert.is(newIn(asked(meshOf([more])), seen), undefined);
});

test('what goes is looked at, and holds nothing', () => {
	const first = meshOf([web]);
	const gone = newIn(asked(meshOf([{ ...web, backends: [there] }])), asked(first));
	assert.ok(gone);
	assert.not(holds(gone));
	const node = newIn(asked(meshOf([{ ...web, backends: [here] }], ['n1'])), asked(first));
	assert.ok(node);
	assert.not(holds(node));
});

test('a new backend of this node is held, by its key; the same key with another address too', () => {
	const seen = asked(meshOf([web]));
	const next = meshOf([{ ...web, backends: [here, { node: 'n1', address: '172.18.0.9' }] }]);
	const held = newIn(asked(next), seen);
	const key = next.services.get('web')?.backends.find((b) => b.address4 === '172.18.0.9')?.key;
	assert.equal([...(held?.backends ?? [])], [key]);
	assert.is(held?.services.size, 0);
});

test('a new node is held', () => {
	const held = newIn(asked(meshOf([web], ['n1', 'n2', 'n3'])), asked(meshOf([web])));
	assert.equal([...(held?.nodes ?? [])], ['n3']);
});

test('a service with a new port is held as it was, with the one that gives the port away', () => {
	const before = meshOf([web, { ...web, name: 'old', published: 9090 }]);
	const full = membershipOf([web, { ...web, name: 'new', published: 9090 }]);
	const next = plan({ membership: full, self: 'n1', health: HEALTHY, nowMs: 2000, previous: before });
	const held = newIn(asked(next), asked(before));
	assert.ok(held);
	assert.equal([...held.services].sort(), ['new', 'old']);
	const part = knownPart(full, held, before);
	assert.equal(part.services.map((s) => s.name).sort(), ['old', 'web']);
	assert.is(
		part.services.find((s) => s.name === 'web'),
		full.services.find((s) => s.name === 'web'),
	);
	assert.is(knownPart(full, { ...held, services: new Set() }, before), full);
});

test('a service that only leaves its port holds nobody', () => {
	const held = newIn(asked(meshOf([web])), asked(meshOf([web, { ...web, name: 'old', published: 9090 }])));
	assert.ok(held);
	assert.not(holds(held));
});

test('allow on a port that had none asks for its firewall', () => {
	const held = newIn(asked(meshOf([{ ...web, allow: ['10.0.0.0/8'] }])), asked(meshOf([web])));
	assert.equal([...(held?.services ?? [])], ['web']);
});

test('facts are read one at a time; who comes meanwhile is told of the next', async () => {
	const mesh = meshOf([web]);
	const ends: ((l: Local) => void)[] = [];
	const read: boolean[] = [];
	const r = new FactReader(
		() => new Promise((resolve) => ends.push(resolve)),
		(again) => read.push(again),
	);
	const local = {} as Local;
	assert.is(r.order(mesh, asked(mesh)), 1);
	assert.is(r.order(mesh, asked(mesh)), 2);
	assert.is(r.take(), undefined);
	assert.is(r.taken, 0);
	assert.is(ends.length, 1);
	ends[0]?.(local);
	await r.idle();
	assert.equal(read, [true]);
	assert.is(r.take()?.local, local);
	assert.is(r.taken, 1);
	assert.is(r.order(mesh, asked(mesh)), 2);
	ends[1]?.(local);
	await r.idle();
	assert.equal(read, [true, false]);
});

test('what could not be read is said once, and counts as told', async () => {
	const mesh = meshOf([web]);
	const r = new FactReader(
		async () => {
			throw new Error('no uplink');
		},
		() => undefined,
	);
	r.order(mesh, asked(mesh));
	await r.idle();
	assert.throws(() => r.take(), /no uplink/);
	assert.is(r.taken, 1);
	assert.is(r.take(), undefined);
});

test.run();
