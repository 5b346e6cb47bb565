/** The docker source against an engine over a real socket: stories of what the engine says, and what is known then. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { BeelineError } from '../../src/errors.js';
import { type DockerSource, type Feed, type FeedEvents, openDockerSource } from '../../src/mesh/sources/docker.js';
import type { SwarmInfo, TaskReport } from '../../src/mesh/sources/docker-map.js';
import type { Demand } from '../../src/mesh/sources/docker-scale.js';
import { chooseVersion, createEngine, EngineError, parseDockerHost } from '../../src/mesh/sources/engine.js';
import type { Membership } from '../../src/mesh/types.js';
import { waitFor } from '../support/wait.js';
import { FakeEngine, recorded } from './docker-engine.js';

/** What the other agents would hear. */
class FakeFeed implements Feed {
	info: SwarmInfo | undefined;
	published: Membership[] = [];
	said: { tasks: ReadonlyMap<string, TaskReport>; look: boolean }[] = [];
	closed = false;
	constructor(readonly on: FeedEvents) {}
	update(info: SwarmInfo): void {
		this.info = info;
	}
	publish(m: Membership): void {
		this.published.push(m);
	}
	report(tasks: ReadonlyMap<string, TaskReport>, look: boolean): void {
		this.said.push({ tasks, look });
	}
	asked: Demand[] = [];
	demand(demand: Demand): void {
		this.asked.push(demand);
	}
	problems(): readonly string[] {
		return [];
	}
	async close(): Promise<void> {
		this.closed = true;
	}
}

interface Story {
	engine: FakeEngine;
	feed: FakeFeed;
	source: DockerSource;
	changes: Membership[];
	errors: string[];
	kept: { nodeId: string; membership: Membership } | undefined;
}

const WEBVIP2 = 'xftee1lli18gdjl9rrpggrdav';
/** node1 of the recorded swarm as a manager, node2 as a worker. */
const asManager = {
	DockerRootDir: '/var/lib/docker',
	Swarm: {
		NodeID: '88es2hibchcu21cwmkiod3vwu',
		NodeAddr: '192.168.77.1',
		LocalNodeState: 'active',
		ControlAvailable: true,
		RemoteManagers: [{ NodeID: '88es2hibchcu21cwmkiod3vwu', Addr: '192.168.77.1:2377' }],
	},
};
const node2AsManager = {
	...asManager,
	Swarm: { ...asManager.Swarm, NodeID: 'pyb140em6wnbmuykaspl4ozix', NodeAddr: '192.168.77.2' },
};

const MESH_VNI = 12509184;

async function open(info: unknown, more: (s: Story) => void = () => undefined): Promise<Story> {
	const engine = new FakeEngine();
	engine.info = info;
	const story = { engine, changes: [], errors: [], kept: undefined } as unknown as Story;
	more(story);
	await engine.listen();
	story.source = await openDockerSource(
		{
			engine: createEngine({ place: 'fake', socketPath: engine.socket }),
			openFeed: (on) => {
				story.feed = new FakeFeed(on);
				return story.feed;
			},
			memory: {
				read: () => story.kept,
				write: (nodeId, membership) => {
					story.kept = { nodeId, membership };
				},
			},
			log: () => undefined,
			meshVni: MESH_VNI,
		},
		{
			onChange: (m) => story.changes.push(m),
			onSame: () => undefined,
			onError: (e) => story.errors.push(e.message),
		},
	);
	return story;
}
async function close(s: Story): Promise<void> {
	await s.source.close();
	await s.engine.close();
}
const states = (m: Membership, service = 'webvip'): string =>
	m.services
		.find((x) => x.name === service)
		?.tasks.map((t) => `${t.node} ${t.state}`)
		.sort()
		.join(', ') ?? 'none';
const webvip = (m: Membership) => m.services.find((x) => x.name === 'webvip')!;
const ALL = 'node1 active, node2 active, node3 active';

const test = suite('docker source');

test('a manager lists, knows itself, and publishes without addresses', async () => {
	const s = await open(node2AsManager);
	try {
		assert.is(s.source.self, 'node2');
		assert.is(states(s.source.current()), ALL);
		await waitFor('its own leg', () =>
			webvip(s.source.current()).tasks.some((t) => t.node === 'node2' && t.address4 === '172.18.0.6'),
		);
		const addresses = webvip(s.source.current()).tasks.map((t) => t.on?.appnet);
		assert.is(
			addresses.filter((a) => a?.startsWith('10.77.1.')).length,
			3,
			'addresses inside networks are in the lists',
		);
		for (const m of s.feed.published) for (const t of webvip(m).tasks) assert.is(t.address4, undefined);
		assert.is(s.kept?.nodeId, 'pyb140em6wnbmuykaspl4ozix');
	} finally {
		await close(s);
	}
});

test('a network of Docker’s with the VNI of the tunnel between nodes is told, for nothing can be refused there', async () => {
	const s = await open(asManager);
	try {
		assert.equal(
			s.source.problems().filter((p) => /VNI/.test(p)),
			[],
		);
		const option = 'com.docker.network.driver.overlay.vxlanid_list';
		s.engine.networks = s.engine.networks.map((n) =>
			n.Name === 'appnet' ? { ...n, Options: { ...n.Options, [option]: String(MESH_VNI) } } : n,
		);
		s.source.reload();
		const told = await waitFor('the warning', () => s.source.problems().find((p) => /VNI/.test(p)));
		assert.is(
			told,
			'Docker’s network appnet has VNI 12509184, that of the tunnel between nodes, so that its packets are taken for the mesh’s: set datapath.vni to another on every node and restart the agents',
		);
	} finally {
		await close(s);
	}
});

test('an event of a service is listed at once', async () => {
	const s = await open(asManager);
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		await new Promise((r) => setTimeout(r, 100));
		const began = performance.now();
		s.engine.services = s.engine.services.filter((x) => x.Spec?.Name !== 'webglob');
		s.engine.event('service', 'remove', 'yefrohi9rn4o291ihdq850thc', { name: 'webglob' });
		await waitFor('webglob to be gone', () => states(s.source.current(), 'webglob') === 'none');
		assert.ok(performance.now() - began < 400, `${performance.now() - began} ms`);
	} finally {
		await close(s);
	}
});

test('a task that is stopped drains, is down when it is over, and is gone after', async () => {
	const s = await open(asManager);
	const set = (desired: string, state: string) => {
		s.engine.tasks = s.engine.tasks.map((t) =>
			t.ID === WEBVIP2 ? { ...t, DesiredState: desired, Status: { ...t.Status, State: state } } : t,
		);
	};
	try {
		set('shutdown', 'running');
		await waitFor('draining', () => states(s.source.current()) === 'node1 active, node2 draining, node3 active', 3000);
		assert.ok(s.engine.asked.some((a) => a.includes(encodeURIComponent(JSON.stringify({ id: [WEBVIP2] })))));
		set('shutdown', 'shutdown');
		await waitFor('down', () => states(s.source.current()) === 'node1 active, node2 down, node3 active', 3000);
		await waitFor('gone', () => states(s.source.current()) === 'node1 active, node3 active', 6000);
	} finally {
		await close(s);
	}
});

test('what is stopped in favour of tasks that have just come serves on until they are found, or it is told to end', async () => {
	const s = await open(node2AsManager);
	const [node1, node3] = ['node1', 'node3'].map((n) => webvip(s.source.current()).tasks.find((t) => t.node === n)?.id);
	const set = (id: string | undefined, desired: string, state = 'running', as = id) => {
		s.engine.tasks = s.engine.tasks.map((t) =>
			t.ID === id ? { ...t, ID: as, DesiredState: desired, Status: { ...t.Status, State: state } } : t,
		);
	};
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		// Another serves, and has for long.
		set(WEBVIP2, 'shutdown');
		set(node3, 'running', 'running', 'new3');
		await waitFor('draining', () => /node2 draining/.test(states(s.source.current())), 3000);
		set(WEBVIP2, 'shutdown', 'shutdown');
		set(node1, 'shutdown', 'shutdown');
		await waitFor('node3 alone', () => states(s.source.current()) === 'node3 active', 9000);
		// node3's is old by now, and goes in favour of one that is not.
		s.engine.tasks = [
			...s.engine.tasks,
			{ ...s.engine.tasks.find((t) => t.ID === 'new3'), ID: 'new1', NodeID: asManager.Swarm.NodeID },
		];
		set('new3', 'shutdown');
		const began = performance.now();
		await waitFor('both', () => states(s.source.current()) === 'node1 active, node3 active', 3000, 5);
		await waitFor('the older to drain', () => states(s.source.current()) === 'node1 active, node3 draining', 4000, 5);
		assert.ok(performance.now() - began > 1000, `${performance.now() - began} ms`);
		// The same, and the node says that the task is being ended.
		s.engine.tasks = [
			...s.engine.tasks.filter((t) => t.ID !== 'new3'),
			{ ...s.engine.tasks.find((t) => t.ID === 'new1'), ID: 'new2', NodeID: node2AsManager.Swarm.NodeID },
		];
		set('new1', 'shutdown');
		await waitFor('both', () => /node1 active, node2 active/.test(states(s.source.current())), 3000, 5);
		s.feed.on.onReport(asManager.Swarm.NodeID, new Map([['new1', { state: 'draining' }]]), false);
		await waitFor('drained at once', () => /node1 draining, node2 active/.test(states(s.source.current())), 300, 1);
	} finally {
		await close(s);
	}
});

test('a task that Swarm forgot is down, then gone', async () => {
	const s = await open(asManager);
	try {
		s.engine.tasks = s.engine.tasks.filter((t) => t.ID !== WEBVIP2);
		await waitFor('down', () => states(s.source.current()) === 'node1 active, node2 down, node3 active', 3000);
		await waitFor('gone', () => states(s.source.current()) === 'node1 active, node3 active', 6000);
	} finally {
		await close(s);
	}
});

test('a list that fails takes nothing away, and the next one that succeeds counts', async () => {
	const s = await open(asManager);
	try {
		s.engine.status = 503;
		await waitFor('the failure to be told', () => s.errors.some((e) => e.includes('503')));
		const told = s.errors.length;
		await new Promise((r) => setTimeout(r, 900));
		assert.is(states(s.source.current()), ALL);
		assert.is(s.changes.length, 0);
		assert.is(s.errors.length, told, `told once: ${s.errors.join('; ')}`);
		assert.ok(s.source.error()?.message.includes('does not have a leader'));
		s.engine.tasks = s.engine.tasks.filter((t) => t.ServiceID !== 'oyn0qqk3sbwj0yeouksoqa5hv');
		s.engine.status = undefined;
		await waitFor('the new list', () => !states(s.source.current()).includes('active'), 6000);
		assert.is(s.source.error(), undefined);
	} finally {
		await close(s);
	}
});

test('an engine that restarts is met again, and what changed meanwhile is seen', async () => {
	const s = await open(asManager);
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		await s.engine.stop();
		await waitFor('the loss to be told', () => s.errors.length > 0);
		assert.is(states(s.source.current()), ALL);
		s.engine.services = s.engine.services.filter((x) => x.Spec?.Name !== 'webglob');
		await s.engine.listen();
		await waitFor('webglob to be gone', () => states(s.source.current(), 'webglob') === 'none');
		await waitFor('the event stream', () => s.engine.listeners === 1);
		assert.is(states(s.source.current()), ALL);
	} finally {
		await close(s);
	}
});

test('die of an own container makes its task down here at once, and is told to the others', async () => {
	const s = await open(node2AsManager);
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		const began = performance.now();
		s.engine.event('container', 'die', 'c', { 'com.docker.swarm.task.id': WEBVIP2 });
		await waitFor('down', () => states(s.source.current()) === 'node1 active, node2 down, node3 active', 500, 1);
		assert.ok(performance.now() - began < 100);
		assert.equal(s.feed.said.at(-1)?.tasks.get(WEBVIP2), { state: 'down' });
		assert.is(states(s.feed.published.at(-1) as Membership), 'node1 active, node2 down, node3 active');
	} finally {
		await close(s);
	}
});

test('kill drains, a signal that ends nothing does not, and a stranger’s container is none of ours', async () => {
	const s = await open(node2AsManager);
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		s.engine.event('container', 'kill', 'c', { 'com.docker.swarm.task.id': WEBVIP2, signal: '1' });
		s.engine.event('container', 'die', 'c', { name: 'plain' });
		await new Promise((r) => setTimeout(r, 50));
		assert.is(states(s.source.current()), ALL);
		s.engine.event('container', 'kill', 'c', { 'com.docker.swarm.task.id': WEBVIP2, signal: '15' });
		await waitFor(
			'draining',
			() => states(s.source.current()) === 'node1 active, node2 draining, node3 active',
			500,
			1,
		);
	} finally {
		await close(s);
	}
});

test('unhealthy drains, healthy serves again', async () => {
	const s = await open(node2AsManager);
	try {
		await waitFor('the event stream', () => s.engine.listeners === 1);
		s.engine.event('container', 'health_status: unhealthy', 'c', { 'com.docker.swarm.task.id': WEBVIP2 });
		await waitFor(
			'draining',
			() => states(s.source.current()) === 'node1 active, node2 draining, node3 active',
			500,
			1,
		);
		s.engine.event('container', 'health_status: healthy', 'c', { 'com.docker.swarm.task.id': WEBVIP2 });
		await waitFor('active', () => states(s.source.current()) === ALL, 500, 1);
		assert.is(s.feed.said.at(-1)?.look, true, 'managers are asked to look');
	} finally {
		await close(s);
	}
});

test('another node’s report counts for its own tasks only', async () => {
	const s = await open(asManager);
	try {
		s.feed.on.onReport('pyb140em6wnbmuykaspl4ozix', new Map([[WEBVIP2, { state: 'down' as const }]]), false);
		assert.is(states(s.source.current()), 'node1 active, node2 down, node3 active');
		s.feed.on.onReport('pyb140em6wnbmuykaspl4ozix', new Map(), false);
		assert.is(states(s.source.current()), ALL);
		s.feed.on.onReport('pyro2intvpjgbhnm5a5a5en9t', new Map([[WEBVIP2, { state: 'down' as const }]]), false);
		assert.is(states(s.source.current()), ALL, 'node3 has nothing to say of a task of node2');
	} finally {
		await close(s);
	}
});

test('a worker follows the feed and adds its own addresses', async () => {
	const manager = await open(asManager);
	const whole = manager.source.current();
	await close(manager);
	const opening = open(recorded('worker/info'), (s) => {
		setTimeout(() => s.feed.on.onMembership(whole), 300);
	});
	const s = await opening;
	try {
		assert.is(s.source.self, 'node2');
		await waitFor('its own leg', () =>
			webvip(s.source.current()).tasks.some((t) => t.node === 'node2' && t.address4 === '172.18.0.6'),
		);
		assert.not.ok(
			s.engine.asked.some((a) => /^\/(tasks|nodes|services)/.test(a)),
			'a worker is not asked for lists',
		);
	} finally {
		await close(s);
	}
});

test('a worker that finds no manager goes by what it knew', async () => {
	const manager = await open(asManager);
	const whole = manager.source.current();
	await close(manager);
	const s = await open(recorded('worker/info'), (x) => {
		x.kept = { nodeId: 'pyb140em6wnbmuykaspl4ozix', membership: whole };
	});
	try {
		assert.is(states(s.source.current()), ALL);
	} finally {
		await close(s);
	}
});

test('promoted it lists itself, demoted it follows again', async () => {
	const manager = await open(asManager);
	const whole = manager.source.current();
	await close(manager);
	const s = await open(recorded('worker/info'), (x) => {
		x.kept = { nodeId: 'pyb140em6wnbmuykaspl4ozix', membership: whole };
	});
	try {
		s.engine.info = node2AsManager;
		s.source.reload();
		await waitFor('lists', () => s.engine.asked.some((a) => a.startsWith('/tasks')));
		await waitFor('publishing', () => s.feed.published.length > 0);
		s.engine.info = recorded('worker/info');
		s.source.reload();
		await waitFor('following', () => s.feed.info?.manager === false);
		s.feed.on.onMembership({ ...whole, services: [] });
		await waitFor('the feed’s word', () => s.source.current().services.length === 0);
	} finally {
		await close(s);
	}
});

test('an engine in no swarm is waited for, and the waiting can be ended', async () => {
	const engine = new FakeEngine();
	engine.info = { Swarm: { LocalNodeState: 'inactive' } };
	await engine.listen();
	const stop = new AbortController();
	const logged: string[] = [];
	const opening = openDockerSource(
		{
			engine: createEngine({ place: 'fake', socketPath: engine.socket }),
			openFeed: (on) => new FakeFeed(on),
			meshVni: MESH_VNI,
			memory: { read: () => undefined, write: () => undefined },
			log: (_level, text) => logged.push(text),
		},
		{ onChange: () => undefined, onSame: () => undefined, onError: () => undefined },
		stop.signal,
	);
	const ended = opening.then(
		() => 'opened',
		(e: unknown) => (e instanceof BeelineError ? e.code : 'error'),
	);
	await waitFor('the reason', () => logged.some((l) => l.includes('docker swarm init')));
	stop.abort();
	assert.is(await ended, 'STOPPED');
	await engine.close();
});

test('API versions from 1.41 upward are spoken', () => {
	assert.is(chooseVersion('x', { ApiVersion: '1.41', MinAPIVersion: '1.12' }), '1.41');
	assert.is(chooseVersion('x', { ApiVersion: '1.60', MinAPIVersion: '1.44' }), '1.51');
	assert.is(chooseVersion('x', { ApiVersion: '1.80', MinAPIVersion: '1.70' }), '1.70');
	assert.throws(
		() => chooseVersion('x', { ApiVersion: '1.40' }),
		(e: unknown) => e instanceof EngineError && /1\.41/.test(e.message),
	);
});

test('DOCKER_HOST as the docker command reads it', () => {
	assert.is(parseDockerHost({}).socketPath, '/var/run/docker.sock');
	assert.is(parseDockerHost({ DOCKER_HOST: 'unix:///x/y.sock' }).socketPath, '/x/y.sock');
	const tcp = parseDockerHost({ DOCKER_HOST: 'tcp://10.0.0.1:2375' });
	assert.equal([tcp.host, tcp.port, tcp.tls], ['10.0.0.1', 2375, undefined]);
	assert.equal(parseDockerHost({ DOCKER_HOST: 'tcp://[fd00::1]' }).host, 'fd00::1');
	assert.throws(() => parseDockerHost({ DOCKER_HOST: 'ssh://me@there' }), /ssh/);
	assert.throws(
		() => parseDockerHost({ DOCKER_HOST: 'tcp://a:1', DOCKER_TLS_VERIFY: '1', DOCKER_CERT_PATH: '/nowhere' }),
		/ca\.pem/,
	);
});

test.run();
