/*
 * A node without Beeline in an overlay network: Linux' own vxlan device, with neighbours and forwarding entries told by hand.
 * It is a node of the membership and owns a part of the subnet; the agents know nothing more of it.
 *
 *	 n1 .1              n2 .2              n3 .3             c1 .100: Linux vxlan, no agent
 *	   |                  |                  |                 |
 *	 --+------------------+------------------+-----------------+--     192.168.78.0/24, MTU 1500
 *	red 5001  r1 .2       r2 .64                              vx0 .200        10.44.0.0/24, fd00:44::/64, MTU 1450
 *	          slice .0/26   .64/26             .128/26            .192/26
 */
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { Mesh, onTopology } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotDecode, cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';
import { wrongVxlan } from '../support/tshark.js';
import { waitFor } from '../support/wait.js';

const VNI = 5001;
const KERNEL = { v4: '10.44.0.200', v6: 'fd00:44::a2c:c8', mac: '02:42:0a:2c:00:c8' };

interface Built {
	readonly net: Topology;
	readonly mesh: Mesh;
	readonly endpoints: ReadonlyMap<string, EndpointView>;
}

async function build(): Promise<Built> {
	return onTopology(undefined, async (net) => {
		const members = [...net.nodes, 'c1'];
		const mesh = await Mesh.start(net, {
			nodes: members.map((name) => ({ name, address: net.address(name).v4 })),
			services: [],
			networks: [
				{
					name: 'red',
					subnet: '10.44.0.0/24',
					subnet6: 'fd00:44::/64',
					vni: VNI,
					attachable: true,
					slices: Object.fromEntries(members.map((name, i) => [name, `10.44.0.${64 * i}/26`])),
				},
			],
		});
		const endpoints = new Map<string, EndpointView>();
		for (const [name, node] of [
			['r1', 'n1'],
			['r2', 'n2'],
		] as const) {
			net.addNamespace(name);
			const { stdout } = await mesh
				.agent(node)
				.cli(['endpoint', 'attach', '--network', 'red', '--netns', net.ns(name), '-o', 'json']);
			endpoints.set(name, JSON.parse(stdout) as EndpointView);
		}
		const others = [...endpoints.values()];
		net.ip('c1', [
			`link add vx0 address ${KERNEL.mac} type vxlan id ${VNI} local ${net.address('c1').v4} dstport 4789 dev eth0 nolearning`,
			'link set vx0 mtu 1450 up',
			`addr add ${KERNEL.v4}/24 dev vx0`,
			`addr add ${KERNEL.v6}/64 dev vx0 nodad`,
			...others.flatMap((e) => [
				`neigh add ${e.address} lladdr ${e.mac} dev vx0 nud permanent`,
				`neigh add ${e.address6} lladdr ${e.mac} dev vx0 nud permanent`,
			]),
		]);
		for (const [name, e] of endpoints) {
			const node = net.address(name.replace('r', 'n')).v4;
			net.exec('c1', ['bridge', 'fdb', 'append', e.mac, 'dev', 'vx0', 'dst', node]);
		}
		for (const name of [...endpoints.keys(), 'c1']) {
			await net.httpd(name, 80);
			await net.udpecho(name, 53);
		}
		return { mesh, endpoints };
	});
}

scenario(
	'overlay network with a stock node',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('both ways, IPv4 and IPv6: ping, TCP and UDP; what crosses is VXLAN to tshark, without a complaint', async ({
			net,
			endpoints,
		}) => {
			const ping = (from: string, to: string) =>
				net.exec(from, ['ping', '-q', '-c', '1', '-W', '1', to], { mayFail: true }).code === 0;
			// Next hops to a node without backends are looked up when they are wanted.
			await waitFor('the first ping', () => ping('r1', KERNEL.v4) && ping('r2', KERNEL.v4));
			// Not the agents' probes of the stock node, which are VXLAN of the mesh's own VNI.
			const vni = `udp[12:4]=0x${(VNI << 8).toString(16)}`;
			const capture = await net.capture('c1', 'eth0', `udp port 4789 and ${vni}`);
			for (const [name, e] of endpoints) {
				const six = e.address6 as string;
				for (const [from, to, source, address] of [
					[name, 'c1', e.address, KERNEL.v4],
					[name, 'c1', six, KERNEL.v6],
					['c1', name, KERNEL.v4, e.address],
					['c1', name, KERNEL.v6, six],
				]) {
					const what = `${from} > ${address}`;
					const host = address.includes(':') ? `[${address}]` : address;
					assert.ok(ping(from, address), what);
					for (const way of ['-D', '-U']) {
						const tcp = await net.load(from, ['-n', 4, '-c', 4, '-t', 5000, way, 1 << 20, `${host}:80`]);
						assert.equal([tcp.ok, tcp.failures], [4, {}], `${what} ${way}`);
					}
					const tcp = await net.load(from, ['-n', 20, `${host}:80`]);
					assert.equal([tcp.ok, Object.keys(tcp.backends), Object.keys(tcp.clients)], [20, [to], [source]], what);
					const udp = await net.udpload(from, ['-n', 20, '-S', 1400, `${host}:53`]);
					assert.equal([udp.answered, udp.corrupt, Object.keys(udp.clients)], [20, 0, [source]], what);
				}
			}
			await capture.stop();
			const missing = cannotDecode();
			if (missing !== undefined) return skip('decoding by tshark', missing);
			assert.is(wrongVxlan(capture.file, VNI, net.address('c1').v4), undefined);
		});

		test('what the stock node may not say: an address of another node', async ({ net, mesh, endpoints }) => {
			const spoofed = async () => (await mesh.agent('n1').verdicts())['uplink_xdp drop_spoofed'] ?? 0;
			const before = await spoofed();
			const { address } = endpoints.get('r1') as EndpointView;
			net.ip('c1', ['addr add 10.44.0.140/32 dev vx0']);
			const { code } = net.exec('c1', ['ping', '-q', '-c', '2', '-i', '0.2', '-W', '1', '-I', '10.44.0.140', address], {
				mayFail: true,
			});
			net.ip('c1', ['addr del 10.44.0.140/32 dev vx0']);
			assert.is.not(code, 0);
			assert.is((await spoofed()) - before, 2);
		});
	},
);
