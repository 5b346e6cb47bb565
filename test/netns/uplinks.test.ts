/*
 * The same mesh on other uplinks: one topology a test, drawn where it differs from the default one.
 */
import * as assert from 'uvu/assert';
import { Mesh, type MeshDocument, targets, taskBackend } from '../support/beeline.js';
import { Topology, type TopologyOptions } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';

const tasks = { n2: 2, n3: 1 };

function document(net: Topology): MeshDocument {
	const backends = net.tasks().map((task) => taskBackend(net, task));
	return {
		services: [
			{ name: 'web', ports: [{ published: 8080, target: 80 }], backends },
			{ name: 'web-tunnel', ports: [{ published: 8081, target: 80 }], options: { returnPath: 'tunnel' }, backends },
		],
	};
}

async function serving(
	options: TopologyOptions,
	body: (net: Topology, mesh: Mesh) => Promise<void>,
	prepare: (net: Topology) => void = () => {},
): Promise<void> {
	const net = await Topology.build({ tasks, ...options });
	try {
		prepare(net);
		for (const task of net.tasks()) await net.httpd(task, 80);
		const mesh = await Mesh.start(net, document(net));
		await body(net, mesh);
		await mesh.close();
	} finally {
		net.close();
	}
}

async function works(
	net: Topology,
	mesh: Mesh,
	client: string,
	to: readonly string[],
	seenAs?: readonly string[],
): Promise<void> {
	const report = await net.load(client, ['-n', 60 * to.length, '-t', 3000, ...to]);
	assert.equal(report.failures, {}, `${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
	assert.is(Object.keys(report.backends).length, 3);
	if (seenAs) assert.equal(Object.keys(report.clients).sort(), [...seenAs].sort());
	for (const way of ['-D', '-U']) {
		const large = await net.load(client, ['-n', to.length, '-c', 1, way, 8_000_000, '-t', 5000, ...to]);
		assert.equal(large.failures, {}, `${way} ${JSON.stringify(large)}`);
	}
}

scenario(
	'uplinks',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	async () => ({}),
	() => {},
	(test) => {
		for (const port of [8080, 8081])
			test(`uplinks that are ports of br0, port ${port}`, () =>
				serving({ bridged: ['n1', 'n2'] }, async (net, mesh) => {
					const { v4, v6 } = net.address('c1');
					await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]), [v4, v6]);
				}));

		//	 c1 --- br0 (78.0/24) --- n1 eth0        c2 --- br1 (79.0/24) --- n1 eth1, default route there
		test('two uplinks, the default route on the second: clients of both networks are served', () =>
			serving(
				{ twoUplinks: ['n1'] },
				async (net, mesh) => {
					const { v4, v6 } = net.address('c1');
					await works(net, mesh, 'c1', targets(net, net.nodes, 8080, [4, 6]), [v4, v6]);
					await works(net, mesh, 'c2', ['192.168.79.1:8081', '[fd79::1]:8081'], ['192.168.79.102', 'fd79::102']);
				},
				(net) => {
					net.addNamespace('c2');
					net.plug('c2', 'eth0', { bridge: 'br1' });
					net.ip('c2', ['addr add 192.168.79.102/24 dev eth0', 'addr add fd79::102/64 dev eth0 nodad']);
				},
			));

		test('MTU 9000 between the nodes, clients with 1500', () =>
			serving({ mtu: 9000 }, async (net, mesh) => {
				for (const port of [8080, 8081]) await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]));
			}));

		test('MTU 9000 everywhere', () =>
			serving({ mtu: 9000, clientMtu: 9000 }, async (net, mesh) => {
				for (const port of [8080, 8081]) await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]));
			}));

		//	 c1, n1, n2 on 78.0/24 --- r --- n3 on 80.0/24
		test('a node behind a router', () =>
			serving({ routed: ['n3'] }, async (net, mesh) => {
				for (const port of [8080, 8081]) await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]));
			}));

		//	 n1, n2, n3 on 78.0/24 --- r --- c1 on 80.0/24
		test('a client behind a router', () =>
			serving({ routed: ['c1'] }, async (net, mesh) => {
				const { v4, v6 } = net.address('c1');
				for (const port of [8080, 8081]) await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]), [v4, v6]);
			}));

		test('tasks behind veths of their own instead of a bridge', () =>
			serving({ taskLink: 'veth' }, async (net, mesh) => {
				for (const port of [8080, 8081]) await works(net, mesh, 'c1', targets(net, net.nodes, port, [4, 6]));
			}));

		test('an uplink that does not exist is refused with the reason', async () => {
			const net = await Topology.build({ nodes: 1, clients: 0 });
			try {
				const mesh = Mesh.start(net, { services: [] }, { config: { uplinks: ['eth7'] } });
				await mesh.then(
					() => assert.unreachable('the agent started'),
					(error: Error) => assert.match(error.message, /eth7/),
				);
			} finally {
				net.close();
			}
		});

		test('a device that is no Ethernet is refused with the reason', async () => {
			const net = await Topology.build({ nodes: 1, clients: 0 });
			try {
				// tun needs no module beyond the kernel's own.
				if (net.exec('n1', ['ip', 'tuntap', 'add', 'dev', 'tun0', 'mode', 'tun'], { mayFail: true }).code !== 0) {
					console.log('SKIP a device that is no Ethernet: needs /dev/net/tun (modprobe tun)');
					return;
				}
				net.ip('n1', ['addr add 10.88.0.1/24 dev tun0', 'link set tun0 up']);
				await Mesh.start(net, { services: [] }, { config: { uplinks: ['tun0'] } }).then(
					() => assert.unreachable('the agent started'),
					(error: Error) => assert.match(error.message, /tun0.*(Ethernet|ethernet)/),
				);
			} finally {
				net.close();
			}
		});
	},
);
