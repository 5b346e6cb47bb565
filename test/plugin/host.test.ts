/* The plugin over the agent's registry of endpoints: what commands it runs, and what a source that gives out addresses is asked. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { innerEnd, NO_OVERLAY_STATE, Overlay, type OverlayState, UNSEEN } from '../../src/agent/overlay.js';
import type { Addresses } from '../../src/mesh/sources/etcd-store.js';
import { createPlugin, type Plugin } from '../../src/plugin/host.js';
import { openPluginStore } from '../../src/plugin/state.js';
import { NETWORKS } from './support.js';

interface Rig {
	readonly plugin: Plugin;
	readonly overlay: Overlay;
	readonly commands: string[];
	readonly asked: string[];
	readonly file: string;
	/** Host ends on the node, and their inner ends while those are there too. */
	readonly links: Map<string, string | undefined>;
	clock: Date;
	state(): OverlayState;
}

function rig(directory: string, withAddresses: boolean): Rig {
	const asked: string[] = [];
	const addresses: Pick<Addresses, 'allocate' | 'release' | 'describe'> = {
		async allocate(network, r) {
			asked.push(`allocate ${network} ${r.node} ${r.wanted ?? 'any'}`);
			return { id: r.endpoint, node: r.node, address: r.wanted ?? '10.44.0.42', aliases: [] };
		},
		async release(network, address) {
			asked.push(`release ${network} ${address}`);
			return true;
		},
		async describe(network, address, _endpoint, { name }) {
			asked.push(`describe ${network} ${address} ${name}`);
		},
	};
	let state = NO_OVERLAY_STATE;
	const r: Omit<Rig, 'plugin' | 'overlay'> & { plugin?: Plugin; overlay?: Overlay } = {
		commands: [],
		asked,
		file: join(directory, 'plugin.json'),
		links: new Map(),
		clock: new Date(0),
		state: () => state,
	};
	const run = async (command: string, args: readonly string[]): Promise<string> => {
		const line = [command, ...args].join(' ');
		if (line.startsWith('ip link add')) r.links.set(args[2], args[9]);
		if (line.startsWith('ip link del')) r.links.delete(args[2]);
		if (line === 'ip -j link show')
			return JSON.stringify([...r.links].flat().flatMap((ifname) => (ifname ? [{ ifname }] : [])));
		if (line.startsWith('ip -j link show dev')) return '[{"ifindex":7}]';
		r.commands.push(line);
		return '';
	};
	r.overlay = new Overlay({
		run,
		gateway: { removeLeg: async () => undefined } as never,
		state: () => state,
		save: (next) => {
			state = next;
		},
		now: () => r.clock,
		reserved: (n) => r.plugin?.driver.reserved(n) ?? new Set(),
	});
	r.plugin = createPlugin({
		overlay: r.overlay,
		stateFile: r.file,
		membership: () => ({ nodes: [], services: [], networks: NETWORKS }),
		self: () => 'node1',
		place: 'mesh.yaml',
		...(withAddresses ? { addresses } : {}),
		cookieOf: async () => '1',
		entered: () => undefined,
		names: {
			prepare: () => undefined,
			serve: async (e) => void asked.push(`names ${e.address}`),
			forget: (e) => void asked.push(`no names ${e.address}`),
		},
		named: () => undefined,
		underlayMtu: () => 1500,
		whyNoEncryption: async () => undefined,
		applied: async () => undefined,
		run,
		log: { info: () => undefined, warn: () => undefined, debug: () => undefined },
		env: { DOCKER_HOST: `unix://${join(directory, 'nobody.sock')}` },
	});
	return r as Rig;
}

async function container(r: Rig, id: string): Promise<string> {
	const d = r.plugin.driver;
	await d.createNetwork({
		NetworkID: 'net',
		Options: { 'com.docker.network.generic': { 'beeline.network': 'red' } },
		IPv4Data: [{ AddressSpace: 'beeline', Pool: '10.44.0.0/24', Gateway: '', AuxAddresses: {} }],
		IPv6Data: [],
	});
	const { Address } = await d.requestAddress({ PoolID: 'red/4', Address: '', Options: {} });
	const Interface = { Address, AddressIPv6: '', MacAddress: '' };
	await d.createEndpoint({ NetworkID: 'net', EndpointID: id, Options: {}, Interface });
	return (await d.join({ NetworkID: 'net', EndpointID: id, SandboxKey: '/nowhere', Options: {} })).InterfaceName
		.SrcName;
}

const test = suite<{ directory: string }>('Docker plugin: the agent’s part');
test.before.each((c) => {
	c.directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-plugin-`));
});
test.after.each((c) => rmSync(c.directory, { recursive: true, force: true }));

test('a veth is made with both ends here, and is an endpoint of the node like others', async ({ directory }) => {
	const r = rig(directory, false);
	const source = await container(r, 'ep');
	assert.is(source, innerEnd('ep'));
	const [e] = r.overlay.endpoints;
	assert.equal(
		[e.id, e.address, e.mac, e.mtu, e.ifindex, e.cookie, e.docker],
		['red-10.44.0.2', '10.44.0.2', '02:42:0a:2c:00:02', 1450, 7, UNSEEN, { endpoint: 'ep', network: 'net' }],
	);
	assert.ok(r.commands.includes(`ip link add ${e.host} mtu 1450 type veth peer name ${source} mtu 1450`));
	assert.ok(r.commands.some((c) => c.includes(`ethtool -K ${source}`)));
	const refusal = await r.overlay.detach(e.id).catch((x: Error) => x.message);
	assert.is(
		refusal,
		'endpoint red-10.44.0.2 is a container’s, attached by Docker: docker network disconnect'.replace('’', "'"),
	);
	await r.plugin.driver.deleteEndpoint({ NetworkID: 'net', EndpointID: 'ep' });
	assert.equal([r.overlay.endpoints, [...r.links]], [[], []]);
	r.plugin.close();
});

test('joined twice it is made anew', async ({ directory }) => {
	const r = rig(directory, false);
	await container(r, 'ep');
	await r.plugin.driver.join({ NetworkID: 'net', EndpointID: 'ep', SandboxKey: '/nowhere', Options: {} });
	assert.is(r.overlay.endpoints.length, 1);
	r.plugin.close();
});

test('a veth that Docker took out of its container and never spoke of again is taken away', async ({ directory }) => {
	const r = rig(directory, false);
	await container(r, 'one');
	await container(r, 'two');
	r.links.set(r.overlay.endpoints[0].host, undefined);
	await r.plugin.driver.reap();
	assert.equal(
		r.overlay.endpoints.map((e) => e.docker?.endpoint),
		['one'],
	);
	r.plugin.close();
});

test('a source that gives out addresses is asked for them, and gets them back', async ({ directory }) => {
	const r = rig(directory, true);
	await container(r, 'ep');
	assert.match(r.overlay.endpoints[0].id, /^red-[0-9a-f]{12}$/);
	await r.plugin.driver.requestAddress({ PoolID: 'red/4', Address: '10.44.0.200', Options: {} });
	await r.plugin.driver.deleteEndpoint({ NetworkID: 'net', EndpointID: 'ep' });
	await r.plugin.driver.releaseAddress({ PoolID: 'red/4', Address: '10.44.0.42' });
	assert.equal(r.asked, [
		'allocate red node1 any',
		'allocate red node1 10.44.0.200',
		'no names 10.44.0.42',
		'release red 10.44.0.42',
	]);
	r.plugin.close();
});

test('what was told outlives the agent; a file that cannot be read is not guessed at', async ({ directory }) => {
	const r = rig(directory, false);
	await container(r, 'ep');
	r.plugin.close();
	assert.equal(openPluginStore(r.file).get(), JSON.parse(readFileSync(r.file, 'utf8')));
	assert.is(openPluginStore(r.file).get().addresses[0].address, '10.44.0.2');
	writeFileSync(r.file, '{');
	assert.throws(
		() => openPluginStore(r.file),
		/plugin\.json: .*restore it, or remove it and Docker's beeline networks/,
	);
});

test.run();
