/** Recorded answers of a real swarm → Membership. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { parseLabels } from '../../src/mesh/sources/docker-labels.js';
import {
	type Answers,
	legsOf,
	type Mapped,
	mapAnswers,
	ownContainers,
	type RawNode,
	type RawTask,
	swarmInfo,
	taskFact,
	withOwn,
} from '../../src/mesh/sources/docker-map.js';
import type { Membership } from '../../src/mesh/types.js';
import { root } from '../support/tools.js';

const read = (name: string): unknown =>
	JSON.parse(readFileSync(join(root, 'test/fixtures/engine', `${name}.json`), 'utf8'));

function answers(state: string, more: Partial<Answers> = {}): Answers {
	return {
		nodes: read(`${state}/nodes`) as Answers['nodes'],
		services: read(`${state}/services`) as Answers['services'],
		networks: read(`${state}/networks`) as Answers['networks'],
		tasks: (read(`${state}/tasks`) as RawTask[]).map(taskFact).filter((t) => t !== undefined),
		reportOf: () => undefined,
		...more,
	};
}
/** `webvip tcp/8080→80: node1 active, node2 active` */
function shown(m: Membership): string[] {
	return m.services.map((s) => {
		const ports = s.ports.map((p) => `${p.protocol}/${p.published}→${p.target}`).join(' ');
		const tasks = s.tasks.map((t) => `${t.node} ${t.state}`).sort();
		return `${s.name} ${ports}: ${tasks.join(', ')}`;
	});
}
const named = (m: Membership, name: string) => m.services.find((s) => s.name === name)!;
const map = (state: string, more: Partial<Answers> = {}): Mapped => mapAnswers(answers(state, more));

test('a steady swarm: ingress ports and VIPs; host mode and dnsrr are left alone', () => {
	const { membership, problems, skipped } = map('steady');
	assert.equal(shown(membership), [
		'webglob udp/8053→53 tcp/8082→80: node1 active, node2 active, node3 active',
		'webint : node1 active, node2 active',
		'webvip tcp/8080→80: node1 active, node2 active, node3 active',
	]);
	assert.equal(
		membership.nodes.map((n) => `${n.name} ${n.address} ${n.drained}`),
		['node1 192.168.77.1 false', 'node2 192.168.77.2 false', 'node3 192.168.77.3 false'],
	);
	assert.is(membership.nodes[0].id, '88es2hibchcu21cwmkiod3vwu');
	assert.equal([problems, skipped], [[], []]);
});

test('a task is known by its id, IPv4, and its addresses where its service has VIPs', () => {
	const t = named(map('steady').membership, 'webvip').tasks.find((x) => x.node === 'node2');
	assert.equal(t, {
		id: 'xftee1lli18gdjl9rrpggrdav',
		node: 'node2',
		families: [4],
		on: { appnet: '10.77.1.4' },
		weight: 1,
		state: 'active',
	});
});

test('VIPs by network, but for the ingress network’s; none in dnsrr mode', () => {
	const { services } = map('steady').membership;
	assert.equal(
		services.map((s) => `${s.name} ${(s.vips ?? []).map((v) => `${v.address}@${v.network}`).join(' ')}`),
		['webglob 10.77.2.5@app2', 'webint 10.77.2.2@app2 10.77.1.9@appnet', 'webvip 10.77.1.2@appnet'],
	);
	assert.not.ok(services.some((s) => s.name === 'webrr'));
	for (const t of named(map('steady').membership, 'webint').tasks)
		assert.equal(Object.keys(t.on ?? {}).sort(), ['app2', 'appnet']);
});

test('overlay networks have their VNI; bridge and host are none of ours', () => {
	assert.equal(
		map('steady').membership.networks.map(
			(n) => `${n.name} ${n.subnet} ${n.vni} ${n.attachable} ${n.ingress === true}`,
		),
		['app2 10.77.2.0/24 4098 true false', 'appnet 10.77.1.0/24 4097 true false', 'ingress 10.0.0.0/24 4096 false true'],
	);
});

test('the ingress network’s MTU is that of what comes in by published ports', () => {
	const options = (mtu?: string) =>
		answers('steady').networks.map((n) =>
			n.Ingress === true
				? { ...n, Options: { ...n.Options, ...(mtu === undefined ? {} : { 'com.docker.network.driver.mtu': mtu }) } }
				: n,
		);
	const of = (mtu?: string) =>
		map('steady', { networks: options(mtu) }).membership.networks.find((n) => n.ingress)?.options.mtu;
	assert.equal([of(), of('1200')], [undefined, 1200]);
});

test('a drained node is drained, and what Swarm stopped or never started is nowhere', () => {
	const { membership } = map('node3-drained');
	assert.equal(
		membership.nodes.filter((n) => n.drained).map((n) => n.name),
		['node3'],
	);
	for (const s of membership.services) for (const t of s.tasks) assert.is.not(t.node, 'node3');
});

test('a task that fails its health check does not serve', () => {
	const lines = shown(map('unhealthy-and-plain').membership);
	assert.ok(lines.includes('sick tcp/8099→80: '), lines.join('\n'));
});

test('a service at zero replicas keeps its ports', () => {
	const lines = shown(map('webvip-scaled-to-0').membership);
	assert.ok(lines.includes('webvip tcp/8080→80: '), lines.join('\n'));
});

test('a task that is to stop drains while it runs; one that served and is over is down; another is nothing', () => {
	const a = answers('steady');
	const of = (state: string, desired: string, served: boolean) =>
		named(
			mapAnswers({
				...a,
				tasks: a.tasks.map((t) => (t.id === 'xftee1lli18gdjl9rrpggrdav' ? { ...t, state, desired, served } : t)),
			}).membership,
			'webvip',
		)
			.tasks.filter((t) => t.node === 'node2')
			.map((t) => t.state);
	assert.equal(of('running', 'shutdown', true), ['draining']);
	assert.equal(of('running', 'remove', true), ['draining']);
	assert.equal(of('shutdown', 'shutdown', true), ['down']);
	assert.equal(of('failed', 'running', true), ['down']);
	assert.equal(of('shutdown', 'shutdown', false), []);
	assert.equal(of('starting', 'running', false), []);
});

test('a report makes a task worse, never better', () => {
	const report = (state: 'draining' | 'down') =>
		shown(
			map('steady', { reportOf: (t) => (t.id === 'xftee1lli18gdjl9rrpggrdav' ? { state } : undefined) }).membership,
		).find((l) => l.startsWith('webvip'));
	assert.is(report('down'), 'webvip tcp/8080→80: node1 active, node2 down, node3 active');
	assert.is(report('draining'), 'webvip tcp/8080→80: node1 active, node2 draining, node3 active');
});

test('SCTP stays with the kernel', () => {
	const a = answers('steady');
	const services = a.services.map((s) => ({
		...s,
		Endpoint: {
			Ports: [
				...(s.Endpoint?.Ports ?? []),
				{ Protocol: 'sctp', TargetPort: 9, PublishedPort: 9, PublishMode: 'ingress' },
			],
		},
	}));
	assert.equal(
		shown(mapAnswers({ ...a, services }).membership).map((l) => l.split(':')[0]),
		['webglob udp/8053→53 tcp/8082→80', 'webvip tcp/8080→80'],
	);
});

const node = (id: string, hostname: string, addr: string, more: Partial<RawNode> = {}): RawNode => ({
	ID: id,
	CreatedAt: '2026-01-01T00:00:00Z',
	Description: { Hostname: hostname },
	Status: { State: 'ready', Addr: addr },
	Spec: { Availability: 'active' },
	...more,
});
const nodesOf = (...nodes: RawNode[]) => mapAnswers({ ...answers('steady'), nodes, tasks: [] });

test('a machine that joined again leaves its old self behind', () => {
	const old = node('aaaaaaaaaaaa', 'm1', '10.0.0.1', { Status: { State: 'down', Addr: '10.0.0.1' } });
	const { membership, skipped } = nodesOf(
		old,
		node('bbbbbbbbbbbb', 'm1', '10.0.0.1', { CreatedAt: '2026-02-01T00:00:00Z' }),
	);
	assert.equal(
		membership.nodes.map((n) => `${n.name} ${n.id}`),
		['m1 bbbbbbbbbbbb'],
	);
	assert.is(skipped.length, 1);
});

test('of two machines with one hostname the older keeps the name', () => {
	const young = node('aaaaaaaaaaaa', 'm1', '10.0.0.2', { CreatedAt: '2026-02-01T00:00:00Z' });
	assert.equal(
		nodesOf(young, node('bbbbbbbbbbbb', 'm1', '10.0.0.1')).membership.nodes.map((n) => `${n.name} ${n.address}`),
		['m1 10.0.0.1', 'm1-aaaaaaaa 10.0.0.2'],
	);
});

test('a manager that says 0.0.0.0 of itself is reached where it manages; a node without an address is left out', () => {
	const any = node('aaaaaaaaaaaa', 'm1', '0.0.0.0', { ManagerStatus: { Addr: '10.0.0.9:2377' } });
	const { membership, skipped } = nodesOf(any, node('bbbbbbbbbbbb', 'm2', ''), node('cccccccccccc', 'm3', 'fd00::1'));
	assert.equal(
		membership.nodes.map((n) => n.address),
		['10.0.0.9'],
	);
	assert.equal(skipped, ['node m2: it has no address yet', 'node m3: its address is fd00::1, and VTEPs are IPv4']);
});

test('labels become options', () => {
	const { options, weightOf, problems } = parseLabels('web', {
		'beeline.return-path': 'dsr',
		'beeline.affinity': 'client-ip',
		'beeline.tracking': 'always',
		'beeline.drain-timeout': '2m',
		'beeline.prefer': 'local',
		'beeline.addresses': '192.168.77.1, fd00::1',
		'beeline.allow': '10.0.0.0/8 192.168.0.0/16',
		'beeline.deny': '10.9.0.0/16',
		'beeline.weight': 'node1=3,node2=0',
		'beeline.table-size': '16384',
		'beeline.enable': 'false',
		'com.docker.stack.namespace': 'x',
	});
	assert.equal(problems, []);
	assert.equal(
		[options.returnPath, options.affinity, options.tracking, options.drainTimeoutMs, options.prefer, options.tableSize],
		['dsr', 'client-ip', 'always', 120_000, 'local', 16384],
	);
	assert.equal(options.addresses, ['192.168.77.1', 'fd00::1']);
	assert.equal([options.allow, options.deny], [['10.0.0.0/8', '192.168.0.0/16'], ['10.9.0.0/16']]);
	assert.is(options.enable, false);
	assert.equal([weightOf('node1'), weightOf('node2'), weightOf('node3')], [3, 0, 1]);
});

test('a label that cannot be read is told and ignored; the others hold', () => {
	const { options, weightOf, problems } = parseLabels('web', {
		'beeline.return-path': 'fast',
		'beeline.drain-timeout': '10s',
		'beeline.weight': 'much',
		'beeline.alow': '10.0.0.0/8',
		'beeline.allow': '10.0.0.0/40',
	});
	assert.equal(
		problems.map((p) => p.label),
		['beeline.return-path', 'beeline.weight', 'beeline.alow', 'beeline.allow'],
	);
	assert.is(problems[0].reason, 'beeline.return-path is "fast": expected auto, dsr or tunnel');
	assert.equal([options.returnPath, options.drainTimeoutMs, options.allow], ['auto', 10_000, []]);
	assert.is(weightOf('node1'), 1);
});

test('labels that are named as what every object has are unknown ones', () => {
	for (const name of ['constructor', 'toString', '__proto__', 'hasOwnProperty']) {
		const { options, problems } = parseLabels('web', { [`beeline.${name}`]: 'x', 'beeline.prefer': 'local' });
		assert.equal(
			problems.map((p) => p.reason.slice(0, p.reason.indexOf(':'))),
			[`beeline.${name} is no label of Beeline`],
		);
		assert.is(options.prefer, 'local');
	}
});

test('one slip in an allow list does not admit everybody', () => {
	const { options, problems } = parseLabels('web', { 'beeline.allow': '10.0.0.0/8, 10.1.0.0/40' });
	assert.equal(
		problems.map((p) => p.reason),
		['beeline.allow is "10.1.0.0/40": expected a prefix such as 10.0.0.0/8 or fd00::/8'],
	);
	assert.equal(options.allow, ['10.0.0.0/8']);
});

test('host bits in a list are cleared and told: left out, they would admit whom the list was written against', () => {
	const { options, problems } = parseLabels('web', {
		'beeline.allow': '10.1.2.3/8',
		'beeline.deny': '10.9.0.0/16 fd00::1/16',
	});
	assert.equal([options.allow, options.deny], [['10.0.0.0/8'], ['10.9.0.0/16', 'fd00::/16']]);
	assert.equal(
		problems.map((p) => p.reason),
		[
			'beeline.allow is "10.1.2.3/8": expected 10.0.0.0/8 without host bits, or 10.1.2.3 for that address alone (it is read as 10.0.0.0/8)',
			'beeline.deny is "fd00::1/16": expected fd00::/16 without host bits, or fd00::1 for that address alone (it is read as fd00::/16)',
		],
	);
});

test('a container’s leg on docker_gwbridge becomes the address of its task, on its own node alone', () => {
	const legs = legsOf(read('worker/docker_gwbridge'));
	assert.is(legs.size, 5);
	const containers = ownContainers(read('worker/containers'));
	const own = new Map(containers.flatMap((c) => (legs.has(c.id) ? [[c.task, legs.get(c.id)!] as const] : [])));
	const m = map('steady').membership;
	const at = (self: string) =>
		named(withOwn(m, self, own, new Map()), 'webvip').tasks.map((t) => `${t.node} ${t.address4}`);
	assert.equal(at('node2').sort(), ['node1 undefined', 'node2 172.18.0.6', 'node3 undefined']);
	assert.equal(
		at('node1').filter((x) => !x.endsWith('undefined')),
		[],
	);
});

test('a task’s address on the ingress network is found by the network’s id, whatever its name', () => {
	const renamed = (read('worker/containers') as { NetworkSettings: { Networks: Record<string, unknown> } }[]).map(
		(c) => {
			const { ingress, ...others } = c.NetworkSettings.Networks;
			return { ...c, NetworkSettings: { Networks: { ...others, ...(ingress ? { 'my-ingress': ingress } : {}) } } };
		},
	);
	const id = map('steady').membership.networks.find((n) => n.ingress)?.id;
	const at = ownContainers(renamed, id).flatMap((c) => c.ingress ?? []);
	assert.equal(at.sort(), ['10.0.0.11', '10.0.0.7']);
	assert.equal(
		ownContainers(renamed).flatMap((c) => c.ingress ?? []),
		[],
	);
});

test('the engine’s own view of its swarm', () => {
	const worker = swarmInfo(read('worker/info'));
	assert.equal(
		[worker.nodeId, worker.nodeAddress, worker.manager, worker.managers, worker.problem],
		[
			'pyb140em6wnbmuykaspl4ozix',
			'192.168.77.2',
			false,
			[{ id: '88es2hibchcu21cwmkiod3vwu', host: '192.168.77.1' }],
			undefined,
		],
	);
	const manager = swarmInfo(read('manager-info'));
	assert.equal([manager.manager, manager.managers.length, manager.dataPathPort], [true, 3, 4789]);
	assert.is(
		swarmInfo({ Swarm: { LocalNodeState: 'inactive' } }).problem,
		'this engine is in no swarm: docker swarm init, or docker swarm join',
	);
});

test.run();
