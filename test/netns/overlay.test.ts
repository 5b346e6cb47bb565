/*
 * Overlay networks over three nodes: endpoints are namespaces of their own, attached by the command. Two networks have the
 * same subnet. Topology: the default one, and on it
 *
 *	red  5001 10.44.0.0/24 fd00:44::/64    r1 on n1   r2 on n2   r2b on n2   r3 on n3   w2 on n2 and w3 on n3: tasks of web
 *	blue 5002 10.44.0.0/24                 b1 on n1   b2 on n2
 *	shut 5003 10.45.0.0/24 internal        s1 on n1
 */
import * as assert from 'uvu/assert';
import type { EndpointView, NetworkView } from '../../src/http/schemas.js';
import { Mesh, type MeshDocument, targets } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const document: MeshDocument = {
	services: [
		{
			name: 'web',
			ports: [{ published: 9000, target: 80 }],
			networks: [{ name: 'red', vip: '10.44.0.250' }],
			backends: [],
		},
	],
	networks: [
		{
			name: 'red',
			subnet: '10.44.0.0/24',
			subnet6: 'fd00:44::/64',
			vni: 5001,
			attachable: true,
			endpoints: [
				{ node: 'n2', address: '10.44.0.80', name: 'w2', service: 'web', aliases: ['www'] },
				{ node: 'n3', address: '10.44.0.150', name: 'w3', service: 'web' },
			],
		},
		{ name: 'blue', subnet: '10.44.0.0/24', vni: 5002, attachable: true },
		{ name: 'shut', subnet: '10.45.0.0/24', vni: 5003, attachable: true, options: { internal: true } },
		{ name: 'closed', subnet: '10.46.0.0/24', vni: 5004 },
	],
};

const PLACES = { r1: 'n1', r2: 'n2', r2b: 'n2', r3: 'n3', b1: 'n1', b2: 'n2', s1: 'n1' } as const;
type Name = keyof typeof PLACES;
const NETWORK = { r: 'red', b: 'blue', s: 'shut' } as const;
const networkOf = (name: string) => NETWORK[name[0] as keyof typeof NETWORK];

interface Built {
	readonly net: Topology;
	readonly mesh: Mesh;
	readonly endpoints: Map<string, EndpointView>;
}

async function attach(b: Built, name: string, node: string, network: string, more: readonly string[] = []) {
	const { stdout } = await b.mesh
		.agent(node)
		.cli(['endpoint', 'attach', '--network', network, '--netns', b.net.ns(name), '-o', 'json', ...more]);
	const e = JSON.parse(stdout) as EndpointView;
	b.endpoints.set(name, e);
	return e;
}

async function build(): Promise<Built> {
	const net = await Topology.build();
	try {
		const mesh = await Mesh.start(net, document);
		const built = { net, mesh, endpoints: new Map<string, EndpointView>() };
		for (const [name, node] of Object.entries(PLACES)) {
			net.addNamespace(name);
			await attach(built, name, node, networkOf(name));
		}
		return built;
	} catch (error) {
		net.close();
		throw error;
	}
}

const pings = (net: Topology, from: string, to: string, more: readonly string[] = []) =>
	net.exec(from, ['ping', '-n', '-c', '1', '-W', '1', ...more, to], { mayFail: true }).code === 0;
const reds = ['r1', 'r2', 'r2b', 'r3'] as const;

scenario(
	'overlay networks',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('an endpoint has an address of its node’s slice, Docker’s MAC, the MTU less 50, and a way out', ({
			net,
			endpoints,
		}) => {
			const e = (name: Name) => endpoints.get(name) as EndpointView;
			assert.is(e('r1').address, '10.44.0.2');
			assert.is(e('r2').address, '10.44.0.64');
			assert.is(e('r2b').address, '10.44.0.65');
			assert.is(e('r3').address, '10.44.0.128');
			assert.is(e('b1').address, '10.44.0.2', 'another network, the same subnet');
			assert.is(e('r1').mac, '02:42:0a:2c:00:02');
			assert.is(e('r1').address6, 'fd00:44::a2c:2');
			assert.is(e('r1').mtu, 1450);
			const [link] = net.ipJson('r1', `addr show dev ${e('r1').interface}`) as {
				mtu: number;
				address: string;
			}[];
			assert.equal([link.mtu, link.address], [1450, '02:42:0a:2c:00:02']);
			assert.is(e('r1').gatewayAddress, '172.30.0.2');
			assert.is(e('s1').gatewayAddress, null, 'an internal network has no way out');
			assert.ok(pings(net, 'r1', net.address('c1').v4), 'a client outside is reached');
			assert.not(pings(net, 's1', net.address('c1').v4));
			assert.not(pings(net, 'r1', e('b1').gatewayAddress as string), 'legs do not reach each other');
		});

		test('who is on a network reaches all of it in both families, and nothing of another', ({ net, endpoints }) => {
			for (const from of reds)
				for (const to of reds) {
					const e = endpoints.get(to) as EndpointView;
					assert.ok(pings(net, from, e.address), `${from} > ${to}`);
					assert.ok(pings(net, from, e.address6 as string), `${from} > ${to} by IPv6`);
				}
			assert.ok(pings(net, 'b1', '10.44.0.64'), 'b1 > b2');
			assert.not(pings(net, 'b1', '10.44.0.65'), 'r2b is on red, and b1 on blue');
			assert.not(pings(net, 's1', '10.44.0.2'));
			assert.not(pings(net, 'r1', '10.44.0.77'), 'nobody has that address');
		});

		test('1450 bytes cross, one more is refused where it is sent', ({ net, endpoints }) => {
			const to = (endpoints.get('r2') as EndpointView).address;
			assert.ok(pings(net, 'r1', to, ['-M', 'do', '-s', '1422']));
			const over = net.exec('r1', ['ping', '-n', '-c', '1', '-W', '1', '-M', 'do', '-s', '1423', to], {
				mayFail: true,
			});
			assert.match(over.stdout + over.stderr, /message too long, mtu[=:] ?1450/i);
			assert.ok(pings(net, 'r1', to, ['-s', '4000']), 'without DF it is fragmented');
		});

		test('TCP streams and UDP cross between nodes and within one', async ({ net, endpoints }) => {
			for (const to of ['r2', 'r2b', 'r3']) {
				await net.httpd(to, 80);
				await net.udpecho(to, 7);
			}
			for (const [from, to] of [
				['r1', 'r2'],
				['r3', 'r2'],
				['r2', 'r2b'],
				['r1', 'r3'],
			]) {
				const e = endpoints.get(to) as EndpointView;
				for (const host of [e.address, `[${e.address6}]`]) {
					const few = await net.load(from, ['-n', 50, '-c', 8, `${host}:80`]);
					assert.equal(few.failures, {}, `${from} > ${to} ${JSON.stringify(few)}`);
					assert.equal(Object.keys(few.backends), [to]);
					assert.is(Object.keys(few.clients).length, 1);
					for (const way of ['-D', '-U']) {
						const report = await net.load(from, ['-n', 4, '-c', 4, way, 4 << 20, `${host}:80`]);
						assert.equal(report.failures, {}, `${from} > ${to} ${JSON.stringify(report)}`);
						assert.is(report.requests, 4);
					}
					const udp = await net.udpload(from, ['-n', 50, `${host}:7`]);
					assert.is(udp.lost, 0, `${from} > ${to} ${JSON.stringify(udp)}`);
				}
			}
		});

		test('what an endpoint may not send is dropped and counted', async ({ net, mesh, endpoints }) => {
			const e = endpoints.get('r1') as EndpointView;
			const before = (await mesh.agent('n1').verdicts())['overlay_tc drop_spoofed'] ?? 0;
			net.ip('r1', [`addr add 10.44.0.99/32 dev ${e.interface}`]);
			assert.not(pings(net, 'r1', '10.44.0.64', ['-I', '10.44.0.99']));
			net.ip('r1', [`addr del 10.44.0.99/32 dev ${e.interface}`]);
			const after = (await mesh.agent('n1').verdicts())['overlay_tc drop_spoofed'] ?? 0;
			assert.ok(after > before);
		});

		test('a restarted and a killed agent leave the traffic, and know their endpoints', async ({ net, mesh }) => {
			await mesh.agent('n2').stop('SIGKILL');
			assert.ok(pings(net, 'r1', '10.44.0.64'));
			await mesh.agent('n2').start();
			const { endpoints } = await mesh.agent('n2').get<{ endpoints: EndpointView[] }>('/v1/endpoints');
			assert.equal(
				endpoints.map((e) => e.id),
				['red-10.44.0.64', 'red-10.44.0.65', 'blue-10.44.0.64'],
			);
			assert.ok(pings(net, 'r1', '10.44.0.64'));
		});

		test('bad requests are refused with a sentence', async ({ net, mesh }) => {
			const refused = async (args: readonly string[]) => {
				const r = await mesh.agent('n1').cli(['endpoint', 'attach', ...args], { mayFail: true });
				assert.is(r.code, 1, args.join(' '));
				return r.stderr;
			};
			net.addNamespace('x1');
			const x1 = ['--netns', net.ns('x1')];
			assert.match(await refused(['--network', 'none', ...x1]), /network none not found/);
			assert.match(await refused(['--network', 'closed', ...x1]), /network closed not manually attachable/);
			assert.match(await refused(['--network', 'red']), /exactly one of --netns, --pid and --container/);
			assert.match(
				await refused(['--network', 'red', '--netns', 'nowhere']),
				/nowhere cannot be used: it does not exist/,
			);
			assert.match(await refused(['--network', 'red', '--netns', net.ns('r1')]), /is on network red already/);
			assert.match(await refused(['--network', 'red', ...x1, '--ip', '10.44.0.2']), /an endpoint of this node has it/);
			assert.match(await refused(['--network', 'red', ...x1, '--ip', '10.44.0.70']), /outside of 10.44.0.0\/26/);
			assert.match(await refused(['--network', 'red', ...x1, '--ip', '10.99.0.2']), /no address of 10.44.0.0\/24/);
			assert.equal(net.ipJson('x1', 'link show') as unknown[], net.ipJson('x1', 'link show dev lo') as unknown[]);
		});

		test('a service on a network: its VIP, its names, and its published port lead to its tasks', async (b) => {
			const { net, mesh } = b;
			for (const [task, node] of [
				['w2', 'n2'],
				['w3', 'n3'],
			] as const) {
				net.addNamespace(task);
				const e = await attach(b, task, node, 'red', ['--service', 'web']);
				assert.is(e.address, task === 'w2' ? '10.44.0.80' : '10.44.0.150');
				assert.is(e.name, task);
				await net.httpd(task, 80);
				await net.udpecho(task, 7);
			}
			const dig = (from: string, ...args: string[]) =>
				net
					.exec(from, ['dig', '+short', '+tries=1', '+time=2', '@127.0.0.11', ...args])
					.stdout.trim()
					.split('\n')
					.sort();
			assert.equal(dig('r1', 'web'), ['10.44.0.250']);
			assert.equal(dig('r1', 'tasks.web'), ['10.44.0.150', '10.44.0.80']);
			assert.equal(dig('r1', 'www'), ['10.44.0.80']);
			assert.equal(dig('r1', 'w3', 'AAAA'), ['fd00:44::a2c:96']);
			assert.equal(dig('r1', '-x', '10.44.0.150'), ['w3.red.']);
			assert.equal(dig('b1', 'tasks.web'), [''], 'blue has no web');
			assert.ok(pings(net, 'r1', '10.44.0.250'), 'ping of the VIP');
			const vip = await net.load('r1', ['-n', 200, '-c', 10, '10.44.0.250:80']);
			assert.equal(vip.failures, {}, JSON.stringify(vip));
			assert.equal(Object.keys(vip.backends).sort(), ['w2', 'w3']);
			assert.equal(Object.keys(vip.clients), ['10.44.0.2']);
			// A node that misses probes for a moment, as on a busy machine, gets nothing meanwhile.
			await waitFor('UDP to reach both tasks', async () => {
				const udp = await net.udpload('r1', ['-n', 100, '-c', 20, '10.44.0.250:7']);
				assert.is(udp.lost, 0, JSON.stringify(udp));
				return Object.keys(udp.backends).sort().join() === 'w2,w3';
			});
			const self = await net.load('w2', ['-n', 100, '-c', 10, '10.44.0.250:80']);
			assert.equal([self.failures, Object.keys(self.backends).sort()], [{}, ['w2', 'w3']], 'itself too');
			const other = await net.load('b1', ['-n', 2, '-t', 500, '10.44.0.250:80']);
			assert.is(other.ok, 0, 'the VIP is of red alone');

			await waitFor('the published port to reach both tasks', async () => {
				const published = await net.load('c1', ['-n', 300, '-c', 20, ...targets(net, net.nodes, 9000)]);
				assert.equal(published.failures, {}, JSON.stringify(published));
				assert.equal(Object.keys(published.clients), [net.address('c1').v4], 'the client’s own address');
				return Object.keys(published.backends).sort().join() === 'w2,w3';
			});

			net.addNamespace('x3');
			const refused = await mesh
				.agent('n1')
				.cli(['endpoint', 'attach', '--network', 'red', '--netns', net.ns('x3'), '--service', 'web'], {
					mayFail: true,
				});
			assert.match(refused.stderr, /no endpoint of service web is declared for n1 on network red: write it into/);
		});

		test('published connections keep to the MTU of a customised ingress network', async ({ net, mesh }) => {
			const edge = {
				...{ name: 'edge', subnet: '10.11.0.0/16', gateway: '10.11.0.2', vni: 5010 },
				...{ ingress: true, options: { mtu: 1200 } },
			};
			await mesh.change({ ...document, networks: [...(document.networks ?? []), edge] });
			/** Segments as the client's wire and the task's interface have them: the largest, and what each side offers. */
			const seen = async (flags: readonly (string | number)[]) => {
				const captures = await Promise.all([net.capture('c1', 'eth0', 'tcp'), net.capture('w2', 'any', 'tcp port 80')]);
				const report = await net.load('c1', [
					'-n',
					12,
					'-c',
					2,
					'-t',
					20_000,
					...flags,
					...targets(net, net.nodes, 9000, [4]),
				]);
				const lines = (await Promise.all(captures.map((c) => c.stop()))).flat();
				assert.equal(
					[report.failures, Object.keys(report.backends).sort()],
					[{}, ['w2', 'w3']],
					JSON.stringify(report),
				);
				const offers = (kind: RegExp) => [
					...new Set(lines.flatMap((l) => (kind.test(l) ? (/mss (\d+)/.exec(l)?.[1] ?? []) : []))),
				];
				return {
					atClient: offers(/:9000|\.9000 > .*Flags \[S\.\]/),
					atTask: offers(/> 172\.30\.0\.\d+\.80: Flags \[S\]/),
					// On a wire: what tasks' interfaces carry may be many segments at once.
					longest: Math.max(
						...lines.flatMap((l) => (/\.9000/.test(l) ? [Number(/length (\d+)$/.exec(l)?.[1] ?? 0)] : [])),
					),
				};
			};
			for (const flags of [
				['-D', 500_000],
				['-U', 500_000],
			]) {
				const { atClient, atTask, longest } = await seen(flags);
				assert.equal(atTask, ['1110'], 'a SYN that a task sees, entered on its own node or another');
				assert.ok(atClient.includes('1110'), atClient.join());
				assert.is(longest, 1110 - 12, 'with timestamps');
			}
			await mesh.change(document);
			assert.equal((await seen(['-D', 500_000])).longest > 1110, true);
		});

		test('a task that is taken out of the mesh: sockets connected to it by the VIP are closed', async ({
			net,
			mesh,
		}) => {
			const load = net.startUdpload('r1', ['-n', 0, '-c', 30, '-i', 20, '-t', 500, '-d', 30_000, '10.44.0.250:7']);
			const connected = () =>
				net.exec('r1', ['ss', '-Hun', 'dst', '10.44.0.150']).stdout.split('\n').filter(Boolean).length;
			await waitFor(
				'sockets to be connected to w3',
				async () => {
					if (connected() > 3) return true;
					const { services } = await mesh.agent('n1').get<{ services: { vips: unknown }[] }>('/v1/services');
					throw new Error(`${JSON.stringify(services.map((s) => s.vips))} ${net.exec('r1', ['ss', '-un']).stdout}`);
				},
				30_000,
				200,
			);
			const [red, ...others] = document.networks ?? [];
			const only = { ...red, endpoints: red.endpoints?.filter((e) => e.name !== 'w3') ?? [] };
			await mesh.change({ ...document, networks: [only, ...others] }, ['n1']);
			await waitFor('them to be closed', () => connected() === 0);
			// Each socket asks once more, and learns of it.
			await new Promise((resolve) => setTimeout(resolve, 1000));
			const r = await load.finish();
			assert.ok((r.errors.EDESTADDRREQ ?? 0) > 0, JSON.stringify(r.errors));
			await mesh.change(document, ['n1']);
		});

		test('a container on two networks has two interfaces and one way out', async (b) => {
			await attach(b, 'x1', 'n1', 'red', ['--ip', '10.44.0.9', '--name', 'both']);
			await attach(b, 'x1', 'n1', 'shut');
			assert.ok(pings(b.net, 'x1', '10.44.0.64'));
			assert.ok(pings(b.net, 'x1', '10.45.0.2'), 's1');
			const routes = b.net.ipJson('x1', '-4 route show default') as unknown[];
			assert.is(routes.length, 1);
			const [red] = JSON.parse((await b.mesh.agent('n1').cli(['network', 'inspect', 'red'])).stdout) as NetworkView[];
			assert.is(red.Containers['red-10.44.0.9'].Name, 'both');
			assert.is(red.IPAM.Config[0].Gateway, '10.44.0.1');
		});

		test('an endpoint goes when it is detached, or with its namespace, and its address is free again', async (b) => {
			const agent = b.mesh.agent('n1');
			await agent.cli(['endpoint', 'detach', 'red-10.44.0.9']);
			assert.not(pings(b.net, 'r2', '10.44.0.9'));
			b.net.removeNamespace('x1');
			await waitFor('the endpoint to be forgotten', async () => {
				const { endpoints } = await agent.get<{ endpoints: EndpointView[] }>('/v1/endpoints');
				return endpoints.every((e) => e.id !== 'shut-10.45.0.3');
			});
			b.net.addNamespace('x2');
			const e = await attach(b, 'x2', 'n1', 'shut');
			assert.is(e.address, '10.45.0.3');
			const rows = (await agent.entries()).maps.find((m) => m.map === 'overlay_endpoints');
			assert.is(
				rows?.rows.some((r) => r.includes('10.44.0.9')),
				false,
				JSON.stringify(rows),
			);
		});

		test('detach leaves no veth, no bridge and no rule', async ({ net, mesh }) => {
			await mesh.agent('n3').detach();
			const links = (net.ipJson('n3', 'link show') as { ifname: string }[]).map((l) => l.ifname);
			assert.equal(links, ['lo', 'eth0']);
			assert.not.match(net.exec('n3', ['nft', 'list', 'ruleset']).stdout, /beeline/);
			assert.equal(
				(net.ipJson('r3', 'link show') as { ifname: string }[]).map((l) => l.ifname),
				['lo'],
			);
		});
	},
);
