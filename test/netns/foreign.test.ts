/*
 * A packet that is not ours leaves as it came: the same things are tried before and after the agents start.
 *
 *	 c1 .100          n1 .1 (eth0 is a port of br0)         n2 .2           n3 .3
 *	   |                |            \                        |               |
 *	 --+----------------+---          p1 --- vm .50           +---------------+
 *	                    |
 *	                   x0 10.99.0.1 --- x 10.99.0.2         behind n1, routed
 *
 * Published: 8080, 18080, 28080 and 40000 (inside ip_local_port_range), TCP; 28080 and 40000, UDP. vxlan 77 on port 4789 joins n1 and n2. Connections of
 * what is behind n1 to ports 9100 and 9153 are masqueraded, as a container's are.
 */
import * as assert from 'uvu/assert';
import { SettingsFlag } from '../../src/loader/layout.gen.js';
import { type Agent, Mesh, targets, taskBackend } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

interface World {
	readonly net: Topology;
	readonly mesh: { started?: Mesh };
	/** Connections that began before the agents: by what, and what they see. */
	readonly held: Map<string, ReturnType<Topology['startLoad']>>;
}

async function build(): Promise<World> {
	const net = await Topology.build({ tasks: { n2: 1, n3: 1 }, bridged: ['n1'] });
	try {
		for (const task of net.tasks()) {
			await net.httpd(task, 80);
			await net.udpecho(task, 53);
		}
		await net.httpd('c1', 9100);
		await net.udpecho('c1', 9153);
		for (const name of ['c1', ...net.nodes]) {
			await net.httpd(name, 9000);
			await net.udpecho(name, 9053);
		}
		// A machine bridged through n1.
		net.addNamespace('vm');
		net.veth('n1', 'p1', 'vm', 'eth0');
		net.ip('n1', ['link set p1 master br0 up']);
		net.ip('vm', ['addr add 192.168.78.50/24 dev eth0', 'addr add fd78::50/64 dev eth0 nodad', 'link set eth0 up']);
		// A machine routed through n1.
		net.addNamespace('x');
		net.veth('n1', 'x0', 'x', 'eth0');
		net.ip('n1', ['addr add 10.99.0.1/24 dev x0', 'addr add fd99::1/64 dev x0 nodad', 'link set x0 up']);
		net.ip('x', [
			...['addr add 10.99.0.2/24 dev eth0', 'addr add fd99::2/64 dev eth0 nodad', 'link set eth0 up'],
			...['route add default via 10.99.0.1', 'route add ::/0 via fd99::1'],
		]);
		net.ip('c1', ['route add 10.99.0.0/24 via 192.168.78.1', 'route add fd99::/64 via fd78::1']);
		net.exec('n1', ['nft', '-f', '-'], {
			input: `table inet behind { chain postrouting { type nat hook postrouting priority srcnat;
				iifname x0 meta l4proto { tcp, udp } th dport { 9100, 9153 } masquerade\n}\n}\n`,
		});
		for (const name of ['vm', 'x']) {
			net.asWire(name, 'eth0');
			await net.httpd(name, 8080);
		}
		for (const [node, other, host] of [
			['n1', 'n2', 1],
			['n2', 'n1', 2],
		] as const)
			net.ip(node, [
				`link add vx77 type vxlan id 77 dstport 4789 local ${net.address(node).v4} remote ${net.address(other).v4}`,
				`addr add 10.77.0.${host}/24 dev vx77`,
				'link set vx77 up',
			]);
		return { net, mesh: {}, held: new Map() };
	} catch (error) {
		net.close();
		throw error;
	}
}

type Try = readonly [name: string, attempt: (net: Topology) => Promise<void>];

async function answers(net: Topology, from: string, who: string, args: readonly (string | number)[]): Promise<void> {
	const report = await net.load(from, ['-t', 2000, ...args]);
	assert.equal(report.failures, {}, JSON.stringify(report));
	assert.equal(Object.keys(report.backends), [who]);
}

async function masqueraded(net: Topology, ports: readonly number[]): Promise<void> {
	const { v4, v6 } = net.address('n1');
	for (const port of ports)
		for (const target of targets(net, ['c1'], 9100, [4, 6])) {
			const report = await net.load('x', ['-t', 2000, '-p', port, '-k', 5, '-D', 300_000, target]);
			const what = `${port}, ${target}: ${JSON.stringify(report)}`;
			assert.equal([report.failures, report.requests], [{}, 5], what);
			assert.ok(
				Object.keys(report.clients).every((c) => c === v4 || c === v6),
				what,
			);
		}
}

async function datagrams(net: Topology, port: number): Promise<void> {
	for (const target of targets(net, ['c1'], 9153, [4, 6])) {
		const report = await net.udpload('x', ['-n', 5, '-p', port, target]);
		assert.equal([report.answered, report.backends], [5, { c1: 5 }], `${target}: ${JSON.stringify(report)}`);
	}
}

const tries: readonly Try[] = [
	[
		'a local client whose source port is a published port, TCP',
		async (net) => {
			// 8080 lies outside ip_local_port_range: no socket gets it as a source port that does not ask for it by name.
			for (const node of net.nodes)
				for (const target of targets(net, ['c1'], 9000, [4, 6])) await answers(net, node, 'c1', ['-p', 40_000, target]);
		},
	],
	[
		'a local client whose source port is a published port, UDP',
		async (net) => {
			for (const node of net.nodes)
				for (const target of targets(net, ['c1'], 9053, [4, 6])) {
					const report = await net.udpload(node, ['-n', 3, '-p', 40_000, target]);
					assert.equal(
						[report.answered, report.backends],
						[3, { c1: 3 }],
						`${node} to ${target}: ${JSON.stringify(report)}`,
					);
				}
		},
	],
	[
		'a direct dial of a process, and of another node from a published source port',
		async (net) => {
			for (const node of net.nodes) await answers(net, 'c1', node, ['-n', 4, ...targets(net, [node], 9000, [4, 6])]);
			await answers(net, 'n1', 'n2', ['-p', 40_000, ...targets(net, ['n2'], 9000)]);
			await answers(net, 'c1', 'n2', ['-p', 40_000, ...targets(net, ['n2'], 9000)]);
		},
	],
	[
		'traffic to port 8080 of a machine bridged through the node',
		async (net) => answers(net, 'c1', 'vm', ['-n', 20, '192.168.78.50:8080', '[fd78::50]:8080']),
	],
	[
		'16 MB through the bridge of the node',
		async (net) => answers(net, 'c1', 'vm', ['-n', 2, '-D', 16_000_000, '192.168.78.50:8080', '[fd78::50]:8080']),
	],
	[
		'traffic to port 8080 of a machine routed through the node',
		async (net) => answers(net, 'c1', 'x', ['-n', 20, '10.99.0.2:8080', '[fd99::2]:8080']),
	],
	[
		'a dial by a machine routed through the node, from a published source port',
		async (net) => answers(net, 'x', 'c1', ['-p', 40_000, `${net.address('c1').v4}:9000`]),
	],
	[
		'a masqueraded connection whose source port is a published port, TCP',
		async (net) => {
			await masqueraded(net, [18_080, 40_000]);
		},
	],
	['masqueraded datagrams whose source port is a published port', async (net) => datagrams(net, 40_000)],
	[
		'ARP and neighbour discovery after every entry was flushed',
		async (net) => {
			for (const name of ['c1', ...net.nodes]) {
				net.exec(name, ['ip', 'neigh', 'flush', 'all'], { mayFail: true });
				net.exec(name, ['ip', '-6', 'neigh', 'flush', 'all'], { mayFail: true });
			}
			for (const node of net.nodes) await answers(net, 'c1', node, ['-n', 2, ...targets(net, [node], 9000, [4, 6])]);
			for (const node of net.nodes) await answers(net, node, 'c1', ['-n', 2, ...targets(net, ['c1'], 9000, [4, 6])]);
		},
	],
	['foreign VXLAN on port 4789', async (net) => answers(net, 'n1', 'n2', ['-n', 10, '10.77.0.2:9000'])],
	[
		'a frame with a VLAN tag arrives as it was sent',
		async (net) => {
			// IPv4 TCP SYN to 8080, tagged 10, to n2: dead if it were taken for an untagged one.
			const frame = [
				net.mac('n2').replaceAll(':', ''),
				net.mac('c1').replaceAll(':', ''),
				'8100000a0800',
				'4500002812340000400600000a0a0a0ac0a84e02',
				'd4311f90000000010000000050022000aaaa0000',
			].join('');
			const capture = await net.capture('n2', 'eth0', 'vlan');
			net.frame('c1', 'eth0', frame);
			const seen = await capture.stop();
			assert.is(seen.length, 1, seen.join('\n'));
			assert.match(seen[0], /vlan 10/);
			assert.match(seen[0], /10\.10\.10\.10\.54321 > 192\.168\.78\.2\.8080/);
			assert.match(seen[0], /ttl 64/);
		},
	],
];

scenario(
	'what is not ours',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.started?.close();
		net.close();
	},
	(test) => {
		for (const [name, attempt] of tries) test(`without Beeline: ${name}`, ({ net }) => attempt(net));
		test('without Beeline: connections from published source ports begin', async ({ net, held }) => {
			for (const [from, port] of [
				['x', 18_080],
				['x', 40_000],
				['n1', 40_000],
			] as const)
				for (const target of targets(net, ['c1'], from === 'x' ? 9100 : 9000, [4, 6])) {
					const load = net.startLoad(from, ['-p', port, '-k', 0, '-i', 50, '-d', 120_000, '-t', 2000, target]);
					await load.ready();
					held.set(`${from}:${port} > ${target}`, load);
				}
		});
		test('the agents start', async ({ net, mesh }) => {
			const backends = net.tasks().map((task) => taskBackend(net, task));
			mesh.started = await Mesh.start(
				net,
				{
					services: [
						{
							name: 'web',
							ports: [
								{ published: 8080, target: 80 },
								{ published: 18_080, target: 80 },
								{ published: 28_080, target: 80 },
								{ published: 40_000, target: 80 },
							],
							backends,
						},
						{
							name: 'dns',
							ports: [
								{ published: 40_000, target: 53, protocol: 'udp' },
								{ published: 28_080, target: 53, protocol: 'udp' },
							],
							backends,
						},
					],
				},
				{ configs: { n1: { uplinks: ['eth0'] } } },
			);
			const report = await net.load('c1', [
				'-n',
				60,
				...targets(net, net.nodes, 8080, [4, 6]),
				...targets(net, net.nodes, 40_000, [4, 6]),
			]);
			assert.equal(report.failures, {}, JSON.stringify(report));
		});
		test('connections that began before go on, and what their ports are is known from then on', async ({
			mesh,
			held,
		}) => {
			const n1 = mesh.started?.agent('n1') as Agent;
			const flags = async () => {
				const { maps } = await n1.get<{ maps: { map: string; rows: string[] }[] }>('/v1/entries');
				return Number(/ flags (\d+)/.exec(maps.find((m) => m.map === 'settings')?.rows[0] ?? '')?.[1]);
			};
			await waitFor(
				'source ports to be known',
				async () => ((await flags()) & SettingsFlag.SETTINGS_KNOW_SOURCES) !== 0,
			);
			await new Promise((done) => setTimeout(done, 1000));
			for (const [what, load] of held) {
				const report = await load.finish();
				assert.equal(report.failures, {}, `${what}: ${JSON.stringify(report)}`);
				assert.ok(report.requests > 10, what);
			}
		});
		for (const [name, attempt] of tries) test(`with Beeline: ${name}`, ({ net }) => attempt(net));
		test('with Beeline: masqueraded, from a published port that nothing left from before', async ({ net }) => {
			await masqueraded(net, [28_080]);
			await datagrams(net, 28_080);
		});
	},
);
