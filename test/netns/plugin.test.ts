/*
 * Docker's plugin on agents whose source gives out addresses: the test asks as an engine does, over the socket, and moves the
 * interface as an engine does. (test/swarm/plugin has real engines, whose agents follow a file.)
 *
 *	 n1 (.1)       n2 (.2)       e1 (.50)
 *	   |             |             |        192.168.78.0/24      e1: a real etcd on port 2379
 *	 --+---- br0 ----+-------------+--
 *	   d1 on red      d2 on red             red: 10.44.0.0/24, addresses by transactions of etcd
 *
 * An engine that knows the names of containers answers for both nodes. What a process called `dockerd` asks of a name server from
 * inside d1 is what Docker's resolver forwards; the name server is d2.
 */
import { createServer, request, type Server } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { EndpointView, NetworkView } from '../../src/http/schemas.js';
import { Agent } from '../support/beeline.js';
import { cannotRunEtcd, EtcdServer } from '../support/etcd.js';
import { IpcChild } from '../support/ipc.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

interface Shared {
	readonly net: Topology;
	readonly etcd: EtcdServer;
	readonly agents: Readonly<Record<string, Agent>>;
	readonly engine: Server;
}

const pluginSocket = (a: Agent): string => join(a.directory, 'docker.sock');

/** Knows a container d1 with an alias and one d2, by what they are asked for by a plugin. */
function startEngine(path: string): Promise<Server> {
	const containers = ['d1', 'd2'];
	const server = createServer((ask, answer) => {
		const [, what, id] = /^(?:\/v[\d.]+)?\/(\w+)(?:\/(\w+))?/.exec(ask.url ?? '') ?? [];
		const found =
			what === 'version'
				? { ApiVersion: '1.41', MinAPIVersion: '1.12' }
				: what === 'networks'
					? { Containers: Object.fromEntries(containers.map((c) => [c, { EndpointID: c }])) }
					: { Name: `/${id}`, NetworkSettings: { Networks: { red: { EndpointID: id, Aliases: [`the-${id}`] } } } };
		answer.setHeader('content-type', 'application/json').end(JSON.stringify(found));
	});
	return new Promise((done) => server.listen(path, () => done(server)));
}

async function build(): Promise<Shared> {
	const net = await Topology.build({ nodes: 2, tasks: { n1: 0, n2: 0 } });
	let etcd: EtcdServer | undefined;
	const engine = await startEngine(join(net.directory, 'engine.sock'));
	process.env.DOCKER_HOST = `unix://${join(net.directory, 'engine.sock')}`;
	try {
		net.addNamespace('e1');
		net.plug('e1', 'eth0');
		net.ip('e1', ['addr add 192.168.78.50/24 dev eth0']);
		etcd = await EtcdServer.start({
			address: '192.168.78.50',
			before: ['nsenter', `--net=/run/netns/${net.ns('e1')}`, '--'],
		});
		const membership = { source: 'etcd', endpoints: [etcd.url] };
		const agents: Record<string, Agent> = {};
		for (const node of net.nodes) {
			const a = new Agent(net, node);
			const dockerPlugin = { socket: pluginSocket(a), stateFile: join(a.directory, 'docker-plugin.json') };
			a.writeConfig({ membership, dockerPlugin });
			await a.cli(['node', 'add', '--config', a.configFile], { local: true });
			agents[node] = a;
		}
		await Promise.all(Object.values(agents).map((a) => a.start()));
		const create = ['network', 'create', '-d', 'overlay', '--subnet', '10.44.0.0/24', '--attachable', 'red'];
		await agents.n1.cli(create);
		return { net, etcd, agents, engine };
	} catch (error) {
		engine.close();
		await etcd?.close();
		net.close();
		throw error;
	}
}

interface Answer {
	readonly Err?: string;
	readonly Error?: string;
	readonly PoolID: string;
	readonly Pool: string;
	readonly Address: string;
	readonly Interface: { readonly MacAddress: string };
	readonly InterfaceName: { readonly SrcName: string };
}

/** As an engine asks; it names the socket's path as the host. */
function call(a: Agent, path: string, body: object): Promise<Answer> {
	return new Promise((resolve, reject) => {
		const headers = { host: pluginSocket(a), accept: 'application/vnd.docker.plugins.v1.2+json' };
		const ask = request({ socketPath: pluginSocket(a), path: `/${path}`, method: 'POST', headers }, (answer) => {
			let text = '';
			answer.setEncoding('utf8').on('data', (part: string) => {
				text += part;
			});
			answer.on('end', () => {
				const r = JSON.parse(text) as Answer;
				const error = r.Err ?? r.Error;
				if (error === undefined) resolve(r);
				else reject(new Error(error));
			});
		});
		ask.on('error', reject);
		ask.end(JSON.stringify(body));
	});
}

/** What an engine does for `docker network create` and `docker run`; returns the address. */
async function container({ net, agents }: Shared, node: string, name: string): Promise<string> {
	const a = agents[node];
	const { PoolID, Pool } = await call(a, 'IpamDriver.RequestPool', { Options: { 'beeline.network': 'red' } });
	await call(a, 'NetworkDriver.CreateNetwork', {
		NetworkID: 'net',
		Options: { 'com.docker.network.generic': { 'beeline.network': 'red' } },
		IPv4Data: [{ AddressSpace: 'beeline', Pool, Gateway: '' }],
	});
	const { Address } = await call(a, 'IpamDriver.RequestAddress', { PoolID, Address: '' });
	const { Interface } = await call(a, 'NetworkDriver.CreateEndpoint', {
		NetworkID: 'net',
		EndpointID: name,
		Interface: { Address },
	});
	net.addNamespace(name);
	const { InterfaceName } = await call(a, 'NetworkDriver.Join', {
		NetworkID: 'net',
		EndpointID: name,
		SandboxKey: `/run/netns/${net.ns(name)}`,
	});
	net.ip(node, [`link set ${InterfaceName.SrcName} netns ${net.ns(name)} name eth0`]);
	net.ip(name, [`link set eth0 address ${Interface.MacAddress} up`, `addr add ${Address} dev eth0`]);
	return Address.split('/')[0];
}

const pings = (net: Topology, from: string, to: string) =>
	net.exec(from, ['ping', '-n', '-c', '1', '-W', '1', to], { mayFail: true }).code === 0;

scenario(
	'Docker plugin, addresses from etcd',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotRunEtcd(),
	build,
	async ({ net, etcd, agents, engine }) => {
		engine.close();
		for (const a of Object.values(agents)) await a.detach().catch((e: Error) => console.error(e.message));
		await etcd.close();
		net.close();
	},
	(test) => {
		test('two nodes give out different addresses of one network, and what has them is reached', async (shared) => {
			const { net, agents } = shared;
			await waitFor('n2 to know red', async () =>
				(await agents.n2.get<{ networks: NetworkView[] }>('/v1/networks')).networks.some((n) => n.Name === 'red'),
			);
			const d1 = await container(shared, 'n1', 'd1');
			const d2 = await container(shared, 'n2', 'd2');
			assert.is.not(d1, d2);
			await waitFor('d1 to reach d2', () => pings(net, 'd1', d2));
			assert.ok(pings(net, 'd2', d1));
			const refusal = await call(agents.n2, 'IpamDriver.RequestAddress', { PoolID: 'red/4', Address: d1 }).then(
				() => 'given',
				(e: Error) => e.message,
			);
			assert.ok(refusal.includes(d1), refusal);
		});

		test('what Docker’s resolver forwards is answered where another node’s container has the name, and goes on where not', async ({
			net,
			agents,
		}) => {
			const { endpoints } = await agents.n2.get<{ endpoints: EndpointView[] }>('/v1/endpoints');
			const server = (endpoints[0] as EndpointView).address;
			const script = (name: string) => fileURLToPath(new URL(`../support/${name}.js`, import.meta.url));
			const inside = ['nsenter', `--net=/run/netns/${net.ns('d2')}`, '--', process.execPath] as const;
			const upstream = new IpcChild([...inside, script('upstream'), server]);
			/** Asked from d1. */
			const ask = (title: string, via: string, of: string, name: string, type = 'A') =>
				net
					.exec('d1', [process.execPath, script('ask'), title, via, of, name, type])
					.stdout.trim()
					.split('\n');
			try {
				await upstream.call('asked');
				await waitFor('etcd to tell n1 of d2', () => ask('dockerd', 'udp', server, 'd2')[1] === server, 20_000, 100);
				// Until n1 knew of d2 its name went on to the server.
				const early = (await upstream.call<string[]>('asked')).length;
				for (const via of ['udp', 'tcp'])
					for (const of of [server, '203.0.113.53', '2001:db8::53']) {
						assert.equal(ask('dockerd', via, of, 'd2'), ['NOERROR', server], `${via} ${of}`);
						assert.equal(ask('dockerd', via, of, 'the-d2.red'), ['NOERROR', server], `${via} ${of}`);
					}
				const pointer = `${server.split('.').reverse().join('.')}.in-addr.arpa`;
				assert.equal(ask('dockerd', 'udp', server, pointer, 'PTR'), ['NOERROR', 'd2.red']);

				assert.equal(
					ask('dockerd', 'udp', server, 'good.example'),
					['NOERROR', '203.0.113.7'],
					'the server that was dialled',
				);
				assert.equal(ask('dockerd', 'tcp', server, 'good.example'), ['NOERROR', '203.0.113.7']);
				assert.equal(ask('dockerd', 'udp', server, 'no.example'), ['NXDOMAIN']);
				assert.equal(
					ask('dockerd', 'udp', '203.0.113.53', 'good.example'),
					['SERVFAIL'],
					'there is no way to that one',
				);

				const later = (await upstream.call<string[]>('asked')).slice(early);
				assert.equal(
					later.filter((q) => q.startsWith('d2 ')),
					[],
					'names of ours stay here',
				);
				assert.equal(ask('docker', 'udp', server, 'd2'), ['NXDOMAIN'], 'a process of the container means its server');
				assert.equal(ask('docker', 'udp', '203.0.113.53', 'd2'), ['ENETUNREACH']);

				await agents.n1.stop('SIGKILL');
				assert.equal(ask('dockerd', 'udp', server, 'd2'), ['NXDOMAIN'], 'nobody is there to be asked first');
				assert.equal(ask('dockerd', 'tcp', server, 'good.example'), ['NOERROR', '203.0.113.7']);
				await agents.n1.start();
				await waitFor('the next agent to be asked', () => ask('dockerd', 'udp', server, 'd2')[1] === server);
				const maps = (await agents.n1.get<{ endpoints: EndpointView[] }>('/v1/endpoints')).endpoints;
				assert.equal(
					maps.map((e) => e.name),
					['d1'],
				);
			} finally {
				await upstream.kill();
			}
		});

		test('an agent that is killed knows its endpoint, and an address that is released is another’s', async (shared) => {
			const { net, agents } = shared;
			await agents.n1.stop('SIGKILL');
			await agents.n1.start();
			const { endpoints } = await agents.n1.get<{ endpoints: EndpointView[] }>('/v1/endpoints');
			const [e] = endpoints;
			assert.is(endpoints.length, 1);
			assert.ok(pings(net, 'd2', e.address));
			await call(agents.n1, 'NetworkDriver.DeleteEndpoint', { NetworkID: 'net', EndpointID: 'd1' });
			await call(agents.n1, 'IpamDriver.ReleaseAddress', { PoolID: 'red/4', Address: e.address });
			assert.not(pings(net, 'd2', e.address));
			const again = await call(agents.n2, 'IpamDriver.RequestAddress', { PoolID: 'red/4', Address: e.address });
			assert.is(again.Address, `${e.address}/24`);
		});

		test('a container whose namespace dies with its engine is forgotten', async (shared) => {
			const { net, agents } = shared;
			net.removeNamespace('d2');
			await waitFor(
				'n2 to have no endpoint',
				async () => (await agents.n2.get<{ endpoints: EndpointView[] }>('/v1/endpoints')).endpoints.length === 0,
			);
		});
	},
);
