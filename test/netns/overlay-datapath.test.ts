/*
 * Overlay networks on the wire: two networks with the same subnet over three nodes, beside a node with nothing but Linux' own
 * vxlan device, and a stranger.
 *
 *	 n1 .1                 n2 .2              n3 .3              c1 .100           c2 .101
 *	   |                     |                  |                  |  Linux vxlan    |  no node of the mesh
 *	 --+---------------------+------------------+------------------+-----------------+--   192.168.78.0/24, MTU 1500
 *	red 5001   r1 .2 r1b .3   r2 .66             r3 .130            vx0 .194                10.7.0.0/24, fd07::/64, MTU 1450
 *	blue 5002  b1 .2          b2 .66             b3 .130                                    the same subnet
 *
 * The maps are filled by hand (test/support/overlay.ts): what is proven is the datapath alone.
 */
import * as assert from 'uvu/assert';
import { build as frameOf, type Packet } from '../datapath/packets.js';
import { Topology } from '../support/netns.js';
import { address4, address6, type Counters, type EndpointSpec, endpointMac, Overlay } from '../support/overlay.js';
import { scenario } from '../support/scenario.js';
import { cannotDecode, cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';
import { tool } from '../support/tools.js';
import { wrongVxlan } from '../support/tshark.js';

const RED = 5001;
const BLUE = 5002;
const endpoint = (name: string, node: string, vni: number, host: number): EndpointSpec => ({ name, node, vni, host });
const ENDPOINTS = [
	endpoint('r1', 'n1', RED, 2),
	endpoint('r1b', 'n1', RED, 3),
	endpoint('r2', 'n2', RED, 66),
	endpoint('r3', 'n3', RED, 130),
	endpoint('b1', 'n1', BLUE, 2),
	endpoint('b2', 'n2', BLUE, 66),
	endpoint('b3', 'n3', BLUE, 130),
];
const KERNEL = endpoint('c1', 'c1', RED, 194);
const RED_ONES = [...ENDPOINTS.filter((e) => e.vni === RED), KERNEL];
const BLUE_ONES = ENDPOINTS.filter((e) => e.vni === BLUE);
const GIGABYTE = 1_000_000_000;

const addresses = (host: number): readonly string[] => [address4(host), address6(host)];
const target = (address: string, port: number): string =>
	address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
const hex = (p: Packet): string => Buffer.from(frameOf(p)).toString('hex');

function ping(net: Topology, from: string, to: string, more: readonly string[] = []): boolean {
	return net.exec(from, ['ping', '-q', '-c', '1', '-W', '1', ...more, to], { mayFail: true }).code === 0;
}

/** TCP segments sent and sent again, of a namespace. */
function segments(net: Topology, name: string): { out: number; again: number } {
	const text = net.exec(name, ['cat', '/proc/self/net/snmp']).stdout;
	const [names, values] = text
		.split('\n')
		.filter((l) => l.startsWith('Tcp:'))
		.map((l) => l.split(' '));
	const of = (field: string): number => Number(values[names.indexOf(field)]);
	return { out: of('OutSegs'), again: of('RetransSegs') };
}

async function build(): Promise<{ net: Topology; overlay: Overlay }> {
	const net = await Topology.build({ clients: 2 });
	try {
		const overlay = await Overlay.start(net, {
			endpoints: ENDPOINTS,
			networks: { [RED]: 0, [BLUE]: 0 },
			strangers: ['c1'],
			elsewhere: [KERNEL],
		});
		overlay.kernelNode('c1', KERNEL);
		for (const { name } of [...ENDPOINTS, KERNEL]) {
			await net.httpd(name, 80);
			await net.udpecho(name, 53);
		}
		return { net, overlay };
	} catch (error) {
		net.close();
		throw error;
	}
}

/** Everything that one may ask of another, in both families. */
async function reaches(net: Topology, from: EndpointSpec, to: EndpointSpec): Promise<void> {
	const what = `${from.name} to ${to.name}`;
	for (const [i, address] of addresses(to.host).entries()) {
		assert.ok(ping(net, from.name, address), `${what}: ping ${address}`);
		const source = addresses(from.host)[i];
		const tcp = await net.load(from.name, ['-n', 3, '-t', 3000, target(address, 80)]);
		assert.equal(tcp.failures, {}, what);
		assert.equal([Object.keys(tcp.backends), Object.keys(tcp.clients)], [[to.name], [source]], what);
		const udp = await net.udpload(from.name, ['-n', 3, target(address, 53)]);
		assert.equal([udp.answered, udp.corrupt, Object.keys(udp.backends)], [3, 0, [to.name]], what);
		assert.equal(Object.keys(udp.clients), [source], what);
	}
}

scenario(
	'overlay datapath',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, overlay }) => {
		await overlay.close();
		net.close();
	},
	(test) => {
		test('within each network everybody reaches everybody: ping, TCP and UDP, both families', async ({ net }) => {
			for (const members of [RED_ONES, BLUE_ONES])
				for (const from of members) for (const to of members) if (from !== to) await reaches(net, from, to);
		});

		test('across networks nobody reaches anybody: the same addresses are others', async ({ net, overlay }) => {
			// .3 and .194 are red's alone. Where both networks have an address, the matrix above saw who answered.
			for (const from of BLUE_ONES)
				for (const host of [3, 194])
					for (const address of addresses(host))
						assert.not.ok(ping(net, from.name, address), `${from.name} to ${address}`);
			// Not even a neighbour entry: as if somebody had told it the MAC.
			net.ip('b1', [`neigh replace ${address4(3)} lladdr ${endpointMac(3)} dev eth0 nud permanent`]);
			const dropped = await overlay.counted('n1', 'overlay_tc drop_no_endpoint', () => {
				assert.not.ok(ping(net, 'b1', address4(3)));
			});
			assert.is(dropped, 1);
		});

		test("Linux' own vxlan device: what crosses is VXLAN of the network's VNI to tshark, without a complaint", async ({
			net,
		}) => {
			const missing = cannotDecode();
			if (missing !== undefined) return skip('decoding by tshark', missing);
			const capture = await net.capture('c1', 'eth0', 'udp port 4789');
			for (const other of ENDPOINTS.filter((e) => e.vni === RED)) {
				await reaches(net, KERNEL, other);
				await reaches(net, other, KERNEL);
			}
			await net.load('r1', ['-n', 1, '-D', 300_000, target(address4(KERNEL.host), 80)]);
			await net.load('c1', ['-n', 1, '-D', 300_000, target(address6(2), 80)]);
			await capture.stop();
			assert.is(wrongVxlan(capture.file, RED, net.address('c1').v4), undefined);
		});

		test('MTU: 1450 inside crosses whole, one byte more is refused at the sender', ({ net }) => {
			for (const [from, to] of [
				['r1', 66],
				['r1', 194],
				['c1', 2],
				['r1', 3],
			] as const)
				for (const [i, address] of addresses(to).entries()) {
					const room = 1450 - (i ? 48 : 28);
					assert.ok(ping(net, from, address, ['-M', 'do', '-s', `${room}`]), `${from} to ${address}: ${room}`);
					assert.not.ok(
						ping(net, from, address, ['-M', 'do', '-s', `${room + 1}`]),
						`${from} to ${address}: ${room + 1}`,
					);
				}
		});

		test('MTU: an endpoint that believes in 1500 is told 1450, and TCP finds its way', async ({ net, overlay }) => {
			net.ip('n1', ['link set e-r1 mtu 1500']);
			net.ip('r1', ['link set eth0 mtu 1500']);
			try {
				for (const [i, address] of addresses(66).entries()) {
					const room = 1450 - (i ? 48 : 28);
					const told = await overlay.counted('n1', 'overlay_tc return_too_big', () => {
						const { stdout } = net.exec(
							'r1',
							['ping', '-c', '1', '-W', '1', '-M', 'do', '-s', `${room + 1}`, address],
							{ mayFail: true },
						);
						assert.match(stdout, i ? /Packet too big: mtu=1450/ : /Frag needed and DF set \(mtu = 1450\)/);
					});
					assert.is(told, 1);
					net.exec('r1', ['ip', i ? '-6' : '-4', 'route', 'flush', 'cache']);
					const up = await net.load('r1', ['-n', 1, '-t', 5000, '-U', 1_000_000, target(address, 80)]);
					assert.equal([up.ok, up.failures], [1, {}]);
				}
			} finally {
				net.ip('r1', ['link set eth0 mtu 1450']);
				net.ip('n1', ['link set e-r1 mtu 1450']);
			}
		});

		test('a tunnel within the network: endpoints with vxlan devices of their own', async ({ net, overlay }) => {
			const ends = [
				['r1', 1, 66],
				['r2', 2, 2],
			] as const;
			for (const [name, own, other] of ends)
				net.ip(name, [
					`link add vx9 type vxlan id 99 remote ${address4(other)} dstport 4789 dev eth0`,
					'link set vx9 up',
					`addr add 10.99.0.${own}/24 dev vx9`,
				]);
			try {
				const refused = await overlay.counted('n1', 'overlay_tc drop_helper', async () => {
					for (const way of ['-D', '-U']) {
						const tcp = await net.load('r1', ['-n', 4, '-t', 5000, way, 1_000_000, '10.99.0.2:80']);
						assert.equal([tcp.ok, tcp.failures], [4, {}], way);
					}
				});
				assert.is(refused, 0);
			} finally {
				for (const [name] of ends) net.ip(name, ['link del vx9']);
			}
		});

		test('a storm of 100 000 ARP requests: all answered or dropped here, nobody else notices', async ({
			net,
			overlay,
		}) => {
			const question = (host: number): string =>
				hex({
					eth: { src: endpointMac(3), dst: 'ff:ff:ff:ff:ff:ff' },
					arp: { operation: 'request', sender: address4(3), senderMac: endpointMac(3), target: address4(host) },
				});
			const seen = await net.capture('r1', 'eth0', 'arp');
			const wire = await net.capture('sw', 'n1-eth0', 'udp port 4789');
			const others = net.spawn('r1', ['ping', '-q', '-c', '100', '-i', '0.02', address4(66)]);
			// The veth's own queue overflows in such a storm: more is sent until so many have arrived.
			const arrived = { return_neighbour: 0, drop_no_endpoint: 0 };
			for (let round = 0; round < 10 && arrived.return_neighbour + arrived.drop_no_endpoint < 100_000; round++) {
				const before = await overlay.counters('n1');
				for (const host of [66, 77]) await net.execAsync('r1b', [tool('frame'), '-n', '50000', 'eth0', question(host)]);
				const after = await overlay.counters('n1');
				for (const verdict of ['return_neighbour', 'drop_no_endpoint'] as const) {
					const name = `overlay_tc ${verdict}`;
					arrived[verdict] += (after[name]?.[0] ?? 0) - (before[name]?.[0] ?? 0);
				}
			}
			assert.ok(arrived.return_neighbour > 20_000 && arrived.drop_no_endpoint > 20_000, JSON.stringify(arrived));
			assert.ok(arrived.return_neighbour + arrived.drop_no_endpoint >= 100_000, JSON.stringify(arrived));
			const { stdout } = await others.ended;
			assert.match(stdout, /100 received, 0% packet loss/);
			const heard = (await seen.stop()).filter((l) => l.includes(endpointMac(3)));
			assert.equal(heard, []);
			// The pings alone crossed the wire, there and back.
			const crossed = (await wire.stop()).filter((l) => l.includes('VXLAN')).length;
			assert.ok(crossed >= 100 && crossed <= 220, `${crossed} packets`);
		});

		test('an endpoint cannot send as another: MAC, addresses, tags, broadcasts; counted, and nobody receives it', async ({
			net,
			overlay,
		}) => {
			const good = { src: endpointMac(2), dst: endpointMac(66) };
			const udp = { udp: { sport: 9, dport: 9999 }, data: 'spoofed' };
			const seen = await net.capture('r2', 'eth0', 'udp port 9999 or vlan');
			const tries: readonly (readonly [string, Packet])[] = [
				[
					'drop_spoofed',
					{ eth: { ...good, src: endpointMac(3) }, ip: { src: address4(2), dst: address4(66) }, ...udp },
				],
				['drop_spoofed', { eth: good, ip: { src: address4(3), dst: address4(66) }, ...udp }],
				['drop_spoofed', { eth: good, ip: { src: address6(3), dst: address6(66) }, ...udp }],
				['drop_spoofed', { eth: good, ip: { src: '192.168.78.1', dst: address4(66) }, ...udp }],
				['drop_flood', { eth: good, vlan: 7, ip: { src: address4(2), dst: address4(66) }, ...udp }],
				[
					'drop_flood',
					{ eth: { ...good, dst: 'ff:ff:ff:ff:ff:ff' }, ip: { src: address4(2), dst: '255.255.255.255' }, ...udp },
				],
				[
					'drop_flood',
					{ eth: { ...good, dst: '01:00:5e:00:00:fb' }, ip: { src: address4(2), dst: '224.0.0.251' }, ...udp },
				],
				[
					'drop_flood',
					{ eth: { ...good, dst: '33:33:00:00:00:fb' }, ip: { src: address6(2), dst: 'ff02::fb' }, ...udp },
				],
			];
			for (const [verdict, p] of tries) {
				const n = await overlay.counted('n1', `overlay_tc ${verdict}`, () => net.frame('r1', 'eth0', hex(p)));
				assert.is(n, 1, `${verdict} of ${JSON.stringify(p)}`);
			}
			// The same, sent rightly, arrives: the capture would have seen the others.
			net.frame('r1', 'eth0', hex({ eth: good, ip: { src: address4(2), dst: address4(66) }, ...udp }));
			assert.is((await seen.stop()).length, 1);
		});

		test('what others send in: a stranger, another VNI, a source that lives elsewhere; counted, and nobody receives it', async ({
			net,
			overlay,
		}) => {
			const seen = await net.capture('r1', 'eth0', 'udp port 9999');
			const from = (name: string, vni: number, source: number): Packet => ({
				eth: { src: net.mac(name), dst: net.mac('n1') },
				ip: { src: net.address(name).v4, dst: net.address('n1').v4 },
				udp: {
					sport: 50000,
					dport: 4789,
					vxlan: {
						vni,
						frame: {
							eth: { src: endpointMac(source), dst: endpointMac(2) },
							ip: { src: address4(source), dst: address4(2) },
							udp: { sport: 9, dport: 9999 },
							data: 'foreign',
						},
					},
				},
			});
			for (const [verdict, name, vni, source] of [
				['drop_unknown_vtep', 'c2', RED, 194],
				['drop_spoofed', 'c1', RED, 66],
				['drop_spoofed', 'c1', RED, 3],
				['drop_spoofed', 'c1', BLUE, 194],
				['pass_foreign_vni', 'c1', 5003, 194],
				['pass_foreign_vni', 'c2', 5003, 194],
			] as const) {
				const n = await overlay.counted('n1', `uplink_xdp ${verdict}`, () =>
					net.frame(name, 'eth0', hex(from(name, vni, source))),
				);
				assert.is(n, 1, `${verdict} of ${name}, VNI ${vni}, ${source}`);
			}
			net.frame('c1', 'eth0', hex(from('c1', RED, 194)));
			assert.is((await seen.stop()).length, 1);
		});

		test('1 GB each way at once, and less by IPv6: whole, hardly a segment twice, and many in one skb at both ends', async ({
			net,
			overlay,
		}) => {
			// As real cards do: received segments are joined again.
			for (const node of ['n1', 'n2']) net.exec(node, ['ethtool', '-K', 'eth0', 'gro', 'on']);
			for (const [address, bytes] of [
				[address4(66), GIGABYTE],
				[address6(66), GIGABYTE / 5],
			] as const) {
				const before = [segments(net, 'r1'), segments(net, 'r2')];
				const [one, two] = [await overlay.counters('n1'), await overlay.counters('n2')];
				const [down, up] = await Promise.all([
					net.load('r1', ['-n', 1, '-t', 200_000, '-D', bytes, target(address, 80)]),
					net.load('r1', ['-n', 1, '-t', 200_000, '-U', bytes, target(address, 80)]),
				]);
				assert.equal([down.ok, up.ok, down.failures, up.failures], [1, 1, {}, {}]);
				const grown = async (node: string, was: Counters, verdict: string): Promise<number> =>
					((await overlay.counters(node))[verdict]?.[0] ?? 0) - (was[verdict]?.[0] ?? 0);
				// Of n1's skbs the uplink makes packets, which n2 takes in one by one and GRO joins again.
				const sentSkbs = await grown('n1', one, 'overlay_tc encap_overlay');
				const packets = await grown('n2', two, 'uplink_xdp deliver_overlay');
				const joined = await grown('n2', two, 'uplink_tc deliver_endpoint');
				console.log(`# ${address}: ${sentSkbs} skbs became ${packets} packets, and those ${joined} skbs`);
				assert.ok(sentSkbs < packets / 2, 'segmentation is left to the uplink');
				assert.ok(joined < packets / 2, 'segments are joined behind XDP');
				for (const [i, name] of ['r1', 'r2'].entries()) {
					const { out, again } = segments(net, name);
					const sent = out - before[i].out;
					const twice = again - before[i].again;
					// 1 GB is some 715 000 segments of 1398 bytes. The switch's queues overflow now and then, as real ones do.
					assert.ok(twice < bytes / 1398 / 100, `${name}: ${twice} of ${sent} segments were sent again`);
					console.log(
						`# ${address}: ${name} sent ${sent} segments, ${twice} again; ${(bytes / 1e6 / (down.durationMs / 1000)).toFixed(0)} MB/s down, ${(bytes / 1e6 / (up.durationMs / 1000)).toFixed(0)} MB/s up`,
					);
				}
			}
		});
	},
);
