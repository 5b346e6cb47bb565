/**
 * overlay_tc and uplink_xdp, packet by packet: what an endpoint of an overlay network sends, and what other nodes send it.
 * Every exit of both walks, both families, every field of what leaves. Hosts: world.ts, networks: overlay.ts. Where a
 * redirect leads is seen in test/netns/overlay-datapath.test.ts: the kernel does not tell it here.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { at, FAR, FAR_MAC, fillOverlay, HERE, type Name, VIP, VNIS } from './overlay.js';
import { type Arp, build, ETHER, fragments, frame, type Packet, PROTOCOL, print } from './packets.js';
import { fill } from './services.js';
import { buildInterfaces, closeInterfaces, insideNetns, MAC, OV, type Ran, UP0, UP1, World } from './world.js';

const test = suite('overlay');
let w: World;
/** What an endpoint believes its neighbours' MAC to be: nobody's, for only addresses count. */
const ANY = '02:00:00:00:00:99';
const FAMILIES = [false, true] as const;

function expect(r: Ran, verdict: string, action: string, out?: string): void {
	assert.is(`${r.verdict} ${r.action}`, `${verdict} ${action}`, r.out);
	if (out !== undefined) assert.is(anyPort(r.out), out);
	assert.not.match(r.out, /bad checksum/);
}
const anyPort = (text: string): string =>
	text.replace(/^udp (4915[2-9]|491[6-9]\d|49[2-9]\d\d|5\d{4}|6\d{4}) > 4789/m, 'udp HASH > 4789');

/** A packet of an endpoint, from its own MAC and address unless `p` says otherwise. */
function says(who: Name, p: Packet, gso = 0): Ran {
	return w.run(
		'overlay_tc',
		build({ ...p, eth: { src: HERE[who].mac, dst: ANY, ...p.eth } }),
		HERE[who].ifindex,
		0,
		gso,
	);
}
const echo = (from: number, to: number, six = false, more: Partial<Packet> = {}): Packet => ({
	...more,
	ip: { src: at(from, six), dst: at(to, six), ...more.ip },
	icmp: { type: six ? 128 : 8 },
	data: more.data ?? 'ping',
});
const udp = (from: number, to: number, six = false, more: Partial<Packet> = {}): Packet => ({
	data: 'hello',
	...more,
	ip: { src: at(from, six), dst: at(to, six), ...more.ip },
	udp: { sport: 5000, dport: 7000 },
});
const tcp = (from: number, to: number, six = false, more: Partial<Packet> = {}): Packet => ({
	...more,
	ip: { src: at(from, six), dst: at(to, six), ...(six ? {} : { df: true }), ...more.ip },
	tcp: { sport: 5000, dport: 7000, seq: 9 },
});
const arp = (who: Name, target: number | string, more: Partial<Arp> = {}): Packet => ({
	eth: { src: HERE[who].mac, dst: 'ff:ff:ff:ff:ff:ff' },
	arp: {
		operation: 'request',
		sender: at(HERE[who].n),
		senderMac: HERE[who].mac,
		target: typeof target === 'number' ? at(target) : target,
		...more,
	},
});
const solicit = (who: Name, target: string, more: { src?: string; ip?: object; mac?: string } = {}): Packet => ({
	eth: { src: HERE[who].mac, dst: `33:33:ff:00:00:${target.slice(-2).replace(':', '0')}` },
	ip: { src: more.src ?? at(HERE[who].n, true), dst: 'ff02::1:ff00:3', ttl: 255, ...more.ip },
	icmp: { type: 135, neighbour: { target, mac: more.mac ?? HERE[who].mac } },
});

interface Tunnelled {
	readonly from?: string;
	readonly vni?: number;
	readonly uplink?: number;
	readonly valid?: boolean;
	readonly outer?: Partial<Packet>;
}
/** A frame as another node sends it. */
function arrives(frame: Packet, o: Tunnelled = {}): Ran {
	const uplink = o.uplink ?? UP0;
	return w.run(
		'uplink_xdp',
		build({
			eth: { src: MAC.node2, dst: uplink === UP0 ? MAC.up0 : MAC.up1 },
			...o.outer,
			ip: { src: o.from ?? '10.0.0.2', dst: '10.0.0.1', df: true, ...o.outer?.ip },
			udp: {
				sport: 50000,
				dport: 4789,
				vxlan: {
					vni: o.vni ?? VNIS.red,
					...(o.valid === undefined ? {} : { valid: o.valid }),
					frame: { ...frame, eth: { src: FAR_MAC, dst: ANY, ...frame.eth } },
				},
			},
		}),
		uplink,
	);
}

if (insideNetns(import.meta.url, 'datapath: overlay networks')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open();
		fill(w);
		fillOverlay(w);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	test('ARP: the map answers for a neighbour here, for one elsewhere, and for a slice', () => {
		expect(
			says('a', arp('a', 3)),
			'return_neighbour',
			'redirect',
			frame`
				eth 02:42:0a:07:00:03 > 02:42:0a:07:00:02
				arp reply 10.7.0.3 (02:42:0a:07:00:03) > 10.7.0.2 (02:42:0a:07:00:02)
			`,
		);
		expect(
			says('a', arp('a', FAR)),
			'return_neighbour',
			'redirect',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:02
				arp reply 10.7.0.66 (02:99:00:00:00:66) > 10.7.0.2 (02:42:0a:07:00:02)
			`,
		);
		expect(
			says('a', arp('a', 70)),
			'return_neighbour',
			'redirect',
			frame`
				eth 02:42:0a:07:00:46 > 02:42:0a:07:00:02
				arp reply 10.7.0.70 (02:42:0a:07:00:46) > 10.7.0.2 (02:42:0a:07:00:02)
			`,
		);
		expect(says('a', arp('a', VIP)), 'return_neighbour', 'redirect');
		// A request straight to a neighbour, as its entry is confirmed.
		expect(says('a', { ...arp('a', 3), eth: { src: HERE.a.mac, dst: HERE.b.mac } }), 'return_neighbour', 'redirect');
		// Padding of short frames stays.
		expect(
			says('a', { ...arp('a', 3), padding: 18 }),
			'return_neighbour',
			'redirect',
			frame`
				eth 02:42:0a:07:00:03 > 02:42:0a:07:00:02
				arp reply 10.7.0.3 (02:42:0a:07:00:03) > 10.7.0.2 (02:42:0a:07:00:02)
				data 18 bytes #0
			`,
		);
	});
	test('ARP: nobody answers for oneself, for strangers, or for another network', () => {
		expect(says('a', arp('a', 2)), 'drop_no_endpoint', 'drop');
		// Whether an address is taken is asked without a sender: by its own endpoint nobody has it, by another somebody has.
		expect(says('a', arp('a', 2, { sender: '0.0.0.0' })), 'drop_no_endpoint', 'drop');
		expect(says('a', arp('a', 3, { sender: '0.0.0.0' })), 'return_neighbour', 'redirect');
		expect(says('a', arp('a', '10.9.0.1')), 'drop_no_endpoint', 'drop');
		expect(says('c', arp('c', 3)), 'drop_no_endpoint', 'drop');
		expect(
			says('c', arp('c', 130)),
			'return_neighbour',
			'redirect',
			frame`
				eth 02:42:0a:07:00:82 > 02:42:0a:07:00:02
				arp reply 10.7.0.130 (02:42:0a:07:00:82) > 10.7.0.2 (02:42:0a:07:00:02)
			`,
		);
	});
	test('ARP: announcements and answers reach nobody, broken ones are malformed, foreign MACs are spoofed', () => {
		expect(says('a', arp('a', 2, { operation: 'reply', targetMac: HERE.a.mac })), 'drop_flood', 'drop');
		expect(says('a', arp('a', 3, { operation: 'reply', sender: at(FAR) })), 'drop_flood', 'drop');
		expect(says('a', arp('a', 3, { operation: 3 })), 'drop_flood', 'drop');
		expect(says('a', arp('a', 3, { hardware: 6 })), 'drop_malformed', 'drop');
		expect(says('a', arp('a', 3, { macLength: 8 })), 'drop_malformed', 'drop');
		const cut = build(arp('a', 3)).slice(0, 40);
		expect(w.run('overlay_tc', cut, OV), 'drop_malformed', 'drop');
		expect(says('a', { ...arp('a', 3), eth: { src: HERE.b.mac, dst: ANY } }), 'drop_spoofed', 'drop');
	});
	test('neighbour solicitations: the map answers, with the whole answer and its checksum', () => {
		const answer = (n: number, mac: string, to = at(2, true)): string => frame`
			eth ${mac} > 02:42:0a:07:00:02
			ip ${at(n, true)} > ${to} ttl 255 len 72
			icmp6 type 136 code 0
			solicited override target ${at(n, true)} target mac ${mac}
		`;
		expect(says('a', solicit('a', at(3, true))), 'return_neighbour', 'redirect', answer(3, HERE.b.mac));
		expect(says('a', solicit('a', at(FAR, true))), 'return_neighbour', 'redirect', answer(FAR, FAR_MAC));
		expect(says('a', solicit('a', at(70, true))), 'return_neighbour', 'redirect', answer(70, '02:42:00:00:00:46'));
		expect(says('a', solicit('a', at(VIP, true))), 'return_neighbour', 'redirect', answer(VIP, '02:42:0a:07:00:0a'));
		// Asked from a link-local address, as the kernel does now and then, or without the asker's MAC.
		expect(
			says('a', solicit('a', at(3, true), { src: 'fe80::42:aff:fe07:2' })),
			'return_neighbour',
			'redirect',
			answer(3, HERE.b.mac, 'fe80::42:aff:fe07:2'),
		);
		const bare: Packet = {
			eth: { src: HERE.a.mac, dst: HERE.b.mac },
			ip: { src: at(2, true), dst: at(3, true), ttl: 255 },
			icmp: { type: 135, neighbour: { target: at(3, true) } },
		};
		expect(says('a', bare), 'return_neighbour', 'redirect', answer(3, HERE.b.mac));
		// Options beyond the asker's MAC: the answer has none of them.
		expect(says('a', { ...bare, data: 32 }), 'return_neighbour', 'redirect', answer(3, HERE.b.mac));
	});
	test('neighbour solicitations: nobody answers for oneself or strangers, nor whether an address is taken', () => {
		expect(says('a', solicit('a', at(2, true))), 'drop_no_endpoint', 'drop');
		expect(says('a', solicit('a', at(2, true), { src: '::' })), 'drop_no_endpoint', 'drop');
		expect(says('a', solicit('a', at(3, true), { src: '::' })), 'drop_no_endpoint', 'drop');
		expect(says('a', solicit('a', 'fd07:1::3')), 'drop_no_endpoint', 'drop');
		expect(says('a', solicit('a', 'fe80::1')), 'drop_no_endpoint', 'drop');
		expect(says('c', solicit('c', at(3, true))), 'drop_no_endpoint', 'drop');
		// RFC 4861 section 7.1.1: what a router passed on is no neighbour's.
		expect(says('a', solicit('a', at(3, true), { ip: { ttl: 64 } })), 'drop_malformed', 'drop');
		expect(says('a', solicit('a', at(3, true), { ip: { extensions: ['destination'] } })), 'drop_malformed', 'drop');
		const cut = build(solicit('a', at(3, true)));
		expect(w.run('overlay_tc', cut.slice(0, 14 + 40 + 20), OV), 'drop_malformed', 'drop');
		const foreign = { ...solicit('a', at(3, true)), eth: { src: HERE.b.mac, dst: ANY } };
		expect(says('a', foreign), 'drop_spoofed', 'drop');
	});
	test('a source that is not its own: MAC, IPv4, IPv6, none', () => {
		for (const six of FAMILIES) {
			expect(says('a', { ...udp(2, 3, six), eth: { src: HERE.b.mac, dst: ANY } }), 'drop_spoofed', 'drop');
			for (const to of [3, FAR, 70, VIP]) expect(says('a', udp(3, to, six)), 'drop_spoofed', 'drop');
			expect(says('a', udp(66, 3, six)), 'drop_spoofed', 'drop');
		}
		expect(says('a', { ...udp(2, 3), ip: { src: '192.0.2.9', dst: at(3) } }), 'drop_spoofed', 'drop');
		expect(says('a', { ...udp(2, 3), ip: { src: '0.0.0.0', dst: at(3) } }), 'drop_spoofed', 'drop');
		expect(says('a', { ...udp(2, 3), ip: { src: '::', dst: at(3, true) } }), 'drop_spoofed', 'drop');
		expect(says('a', { ...udp(2, 3), ip: { src: 'fe80::2', dst: at(3, true) } }), 'drop_spoofed', 'drop');
		// The other family's address in this one's clothes.
		expect(says('a', { ...udp(2, 3), ip: { src: '::ffff:10.7.0.2', dst: at(3, true) } }), 'drop_spoofed', 'drop');
		expect(says('a', { ...udp(2, 3), ip: { src: at(2, true), dst: '::ffff:10.7.0.3' } }), 'drop_no_endpoint', 'drop');
	});
	test('an endpoint without an IPv6 address has none to send from', () => {
		w.store.overlayPorts.setMany([[OV + 1, { addr4: at(3), addr6: '::', vni: VNIS.red, mac: HERE.b.mac }]]);
		expect(says('b', { ...udp(3, 2), ip: { src: '::', dst: at(2, true) } }), 'drop_spoofed', 'drop');
		expect(says('b', udp(3, 2)), 'deliver_overlay', 'redirect');
		fillOverlay(w);
	});
	test('broadcast, multicast and what is not IP: dropped', () => {
		for (const dst of ['255.255.255.255', '224.0.0.1', '224.0.0.251', '239.1.2.3'])
			expect(says('a', { ...udp(2, 3), ip: { src: at(2), dst } }), 'drop_flood', 'drop');
		for (const dst of ['ff02::1', 'ff02::2', 'ff02::16', 'ff02::fb', 'ff05::1:3'])
			expect(says('a', { ...udp(2, 3), ip: { src: at(2, true), dst } }), 'drop_flood', 'drop');
		// Router solicitation, and a listener's report behind a hop-by-hop header.
		expect(
			says('a', { ip: { src: 'fe80::2', dst: 'ff02::2', ttl: 255 }, icmp: { type: 133 }, data: 8 }),
			'drop_flood',
			'drop',
		);
		expect(
			says('a', { ip: { src: '::', dst: 'ff02::16', ttl: 1, extensions: ['hop-by-hop'] }, icmp: { type: 143 } }),
			'drop_flood',
			'drop',
		);
		// DHCP's discovery has no source yet.
		expect(
			says('a', { ip: { src: '0.0.0.0', dst: '255.255.255.255' }, udp: { sport: 68, dport: 67 } }),
			'drop_flood',
			'drop',
		);
		expect(says('a', { eth: { src: HERE.a.mac, dst: ANY, type: 0x88cc }, data: 60 }), 'drop_flood', 'drop');
		expect(says('a', { ...udp(2, 3), vlan: 7 }), 'drop_flood', 'drop');
		// The subnet's own broadcast is an address like any other, and nobody's.
		expect(says('a', { ...udp(2, 3), ip: { src: at(2), dst: at(63) } }), 'drop_no_endpoint', 'drop');
	});
	test('a neighbour on this node: its MAC, and nothing else is touched', () => {
		for (const six of FAMILIES) {
			const before = tcp(2, 3, six, { data: 'x' });
			const sent = print(build({ ...before, eth: { src: HERE.a.mac, dst: HERE.b.mac } }));
			expect(says('a', before), 'deliver_overlay', 'redirect', sent);
			expect(says('a', udp(2, 3, six)), 'deliver_overlay', 'redirect');
			expect(says('a', echo(2, 3, six)), 'deliver_overlay', 'redirect');
		}
		expect(
			says('a', udp(2, 3)),
			'deliver_overlay',
			'redirect',
			frame`
				eth 02:42:0a:07:00:02 > 02:42:0a:07:00:03
				ip 10.7.0.2 > 10.7.0.3 ttl 64 len 33
				udp 5000 > 7000
				data "hello"
			`,
		);
		// Many segments in one.
		expect(says('a', tcp(2, 3, false, { data: 3000 }), 1400), 'deliver_overlay', 'redirect');
	});
	test('a neighbour on another node: in a tunnel of its own VNI', () => {
		expect(
			says('a', udp(2, FAR)),
			'encap_overlay',
			'redirect',
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 83
				udp HASH > 4789 no checksum
				vxlan 5001
				  eth 02:42:0a:07:00:02 > 02:99:00:00:00:66
				  ip 10.7.0.2 > 10.7.0.66 ttl 64 len 33
				  udp 5000 > 7000
				  data "hello"
			`,
		);
		expect(
			says('a', tcp(2, FAR, true)),
			'encap_overlay',
			'redirect',
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 110
				udp HASH > 4789 no checksum
				vxlan 5001
				  eth 02:42:0a:07:00:02 > 02:99:00:00:00:66
				  ip fd07::2 > fd07::42 ttl 64 len 60
				  tcp 5000 > 7000 ack seq 9 win 65535
			`,
		);
		// Only its node's slice is known: Docker's MAC of the address. The other uplink leads there.
		expect(
			says('a', echo(2, 130)),
			'encap_overlay',
			'redirect',
			frame`
				eth 02:00:00:00:01:01 > 02:00:00:00:02:03
				ip 10.0.0.1 > 10.1.0.3 ttl 64 df len 82
				udp HASH > 4789 no checksum
				vxlan 5001
				  eth 02:42:0a:07:00:02 > 02:42:0a:07:00:82
				  ip 10.7.0.2 > 10.7.0.130 ttl 64 len 32
				  icmp type 8 code 0
				  data "ping"
			`,
		);
		expect(
			says('a', echo(2, 130, true)),
			'encap_overlay',
			'redirect',
			frame`
				eth 02:00:00:00:01:01 > 02:00:00:00:02:03
				ip 10.0.0.1 > 10.1.0.3 ttl 64 df len 102
				udp HASH > 4789 no checksum
				vxlan 5001
				  eth 02:42:0a:07:00:02 > 02:42:00:00:00:82
				  ip fd07::2 > fd07::82 ttl 64 len 52
				  icmp6 type 128 code 0
				  data "ping"
			`,
		);
	});
	test("the source port of the tunnel is the flow's: one for all its packets, many for many", () => {
		const port = (r: Ran): string => /^udp (\d+) > 4789/m.exec(r.out)?.[1] ?? r.out;
		for (const six of FAMILIES) {
			const of = (sport: number, data: number) =>
				port(says('a', { ip: { src: at(2, six), dst: at(FAR, six) }, udp: { sport, dport: 7000 }, data }));
			const ports = new Set<string>();
			for (let sport = 1000; sport < 1200; sport++) {
				const p = of(sport, 10);
				assert.is(of(sport, 300), p);
				assert.ok(Number(p) >= 49152);
				ports.add(p);
			}
			assert.ok(ports.size > 190, `${ports.size} source ports for 200 flows`);
		}
	});
	test('nobody has the address: unknown, in the own slice but not attached, no next hop', () => {
		for (const six of FAMILIES) {
			expect(says('a', udp(2, 5, six)), 'drop_no_endpoint', 'drop');
			expect(says('a', udp(2, 230, six)), 'drop_no_next_hop', 'drop');
			expect(says('c', udp(2, 3, six)), 'drop_no_endpoint', 'drop');
		}
		expect(says('a', { ...udp(2, 3), ip: { src: at(2), dst: '10.9.0.1' } }), 'drop_no_endpoint', 'drop');
		expect(says('a', { ...udp(2, 3), ip: { src: at(2, true), dst: 'fd09::1' } }), 'drop_no_endpoint', 'drop');
		// A row that says "here" but names no interface: never out to ourselves.
		w.store.overlayEndpoints.setMany([
			[`${VNIS.red} ${at(20)}`, { node: 1, ifindex: 0, mac: '02:42:0a:07:00:14', flags: 0 }],
		]);
		expect(says('a', udp(2, 20)), 'drop_no_endpoint', 'drop');
		w.store.overlayEndpoints.deleteMany([`${VNIS.red} ${at(20)}`]);
	});
	test("a service's address answers pings, and nothing else", () => {
		expect(
			says('a', { ...echo(2, VIP), eth: { src: HERE.a.mac, dst: '02:42:0a:07:00:0a' } }),
			'return_echo',
			'redirect',
			frame`
				eth 02:42:0a:07:00:0a > 02:42:0a:07:00:02
				ip 10.7.0.10 > 10.7.0.2 ttl 64 len 32
				icmp type 0 code 0
				data "ping"
			`,
		);
		expect(
			says('a', { ...echo(2, VIP, true), eth: { src: HERE.a.mac, dst: '02:42:0a:07:00:0a' } }),
			'return_echo',
			'redirect',
			frame`
				eth 02:42:0a:07:00:0a > 02:42:0a:07:00:02
				ip fd07::a > fd07::2 ttl 64 len 52
				icmp6 type 129 code 0
				data "ping"
			`,
		);
		for (const six of FAMILIES) {
			expect(says('a', tcp(2, VIP, six)), 'drop_no_endpoint', 'drop');
			expect(says('a', udp(2, VIP, six)), 'drop_no_endpoint', 'drop');
			// An answer is no question, the other family's type is none of this one's, and a fragment is half a ping.
			const ip = { src: at(2, six), dst: at(VIP, six) };
			for (const type of [six ? 129 : 0, six ? 8 : 128])
				expect(says('a', { ip, icmp: { type } }), 'drop_no_endpoint', 'drop');
			for (const p of fragments(echo(2, VIP, six, { data: 600 }), 7, 256))
				expect(says('a', p), 'drop_no_endpoint', 'drop');
		}
	});
	test('any protocol over IP is carried, with options, headers and in fragments', () => {
		for (const six of FAMILIES) {
			for (const protocol of [PROTOCOL.sctp, PROTOCOL.gre, PROTOCOL.esp, 4, 41, 89]) {
				const p: Packet = { ip: { src: at(2, six), dst: at(FAR, six), protocol }, data: 24 };
				const r = says('a', p);
				expect(r, 'encap_overlay', 'redirect');
				assert.ok(
					r.out.endsWith(print(build({ ...p, eth: { src: HERE.a.mac, dst: FAR_MAC } })).replace(/^/gm, '  ')),
					r.out,
				);
				expect(
					says('a', { ip: { src: at(2, six), dst: at(3, six), protocol }, data: 24 }),
					'deliver_overlay',
					'redirect',
				);
			}
			const parts = fragments(udp(2, FAR, six, { data: 900 }), 77, 304);
			assert.is(parts.length, 3);
			for (const p of parts) {
				const r = says('a', p);
				expect(r, 'encap_overlay', 'redirect');
				assert.ok(
					r.out.endsWith(print(build({ ...p, eth: { src: HERE.a.mac, dst: FAR_MAC } })).replace(/^/gm, '  ')),
					r.out,
				);
			}
			for (const p of fragments(udp(2, 3, six, { data: 900 }), 77, 304))
				expect(says('a', p), 'deliver_overlay', 'redirect');
		}
		expect(
			says('a', udp(2, FAR, false, { ip: { src: at(2), dst: at(FAR), options: 12 } })),
			'encap_overlay',
			'redirect',
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 95
				udp HASH > 4789 no checksum
				vxlan 5001
				  eth 02:42:0a:07:00:02 > 02:99:00:00:00:66
				  ip 10.7.0.2 > 10.7.0.66 ttl 64 options 12 len 45
				  udp 5000 > 7000
				  data "hello"
			`,
		);
		// Also what is not looked behind: many headers, and a way that is not at its end.
		for (const extensions of [
			['hop-by-hop', 'destination'],
			['hop-by-hop', 'destination', 'destination', 'destination', 'destination', 'destination'],
			[{ routing: 1 }],
		] as const)
			expect(
				says('a', udp(2, FAR, true, { ip: { src: at(2, true), dst: at(FAR, true), extensions } })),
				'encap_overlay',
				'redirect',
			);
	});
	test('headers that end too soon or contradict each other are malformed', () => {
		for (const six of FAMILIES) {
			const whole = build({ ...tcp(2, 3, six), eth: { src: HERE.a.mac, dst: ANY } });
			expect(w.run('overlay_tc', whole.slice(0, whole.length - 4), OV), 'drop_malformed', 'drop');
			const version = whole.slice();
			version[14] ^= 0x30;
			const r = w.run('overlay_tc', version, OV);
			assert.is(`${r.verdict} ${r.action}`, 'drop_malformed drop');
		}
		const short = build({ ...tcp(2, 3), eth: { src: HERE.a.mac, dst: ANY } });
		short[14] = 0x44;
		assert.is(w.run('overlay_tc', short, OV).verdict, 'drop_malformed');
	});
	test('two networks with one subnet do not mix', () => {
		// c of blue is 10.7.0.2 as a of red is; .3 and .66 are red's alone, and .130 is on node 3 in red, on node 2 in blue.
		for (const six of FAMILIES) {
			for (const n of [3, FAR, VIP]) expect(says('c', udp(2, n, six)), 'drop_no_endpoint', 'drop');
			const r = says('c', udp(2, 130, six));
			expect(r, 'encap_overlay', 'redirect');
			assert.match(r.out, /^ip 10\.0\.0\.1 > 10\.0\.0\.2 /m);
			assert.match(r.out, /^vxlan 5002$/m);
			expect(arrives(udp(130, 2, six), { vni: VNIS.blue }), 'deliver_overlay', 'pass');
			assert.is(arrives(udp(130, 2, six), { vni: VNIS.blue }).mark, `peer ${OV + 2}`);
			assert.is(arrives(udp(70, 2, six), { vni: VNIS.red }).mark, `peer ${OV}`);
			expect(arrives(udp(70, 2, six), { vni: VNIS.blue }), 'drop_spoofed', 'drop');
			expect(arrives(udp(130, 3, six), { vni: VNIS.blue }), 'drop_no_endpoint', 'drop');
		}
	});
	test('an encrypted network: nothing plain out, nothing plain in; on the node itself nothing is sent', () => {
		for (const six of FAMILIES) {
			expect(says('e', udp(2, FAR, six)), 'drop_plain', 'drop');
			expect(says('e', udp(2, 3, six)), 'deliver_overlay', 'redirect');
			expect(arrives(udp(FAR, 2, six), { vni: VNIS.secret }), 'drop_plain', 'drop');
		}
		expect(says('e', arp('e', FAR)), 'return_neighbour', 'redirect');
	});
	test('a way too narrow: the endpoint is told, in an error from whom it dialled', () => {
		const r = says('a', tcp(2, 200, false, { data: 1400 }));
		expect(
			r,
			'return_too_big',
			'redirect',
			frame`
				eth 02:00:00:00:00:99 > 02:42:0a:07:00:02
				ip 10.7.0.200 > 10.7.0.2 ttl 64 df len 156
				icmp type 3 code 4 mtu 1400
				  about ip 10.7.0.2 > 10.7.0.200 ttl 64 df len 1440
				  about tcp 5000 > 7000 ack seq 9 win 65535
				  about data 88 bytes #${checkOf(r, 88)}
			`,
		);
		const six = says('a', tcp(2, 200, true, { data: 1400 }));
		expect(
			six,
			'return_too_big',
			'redirect',
			frame`
				eth 02:00:00:00:00:99 > 02:42:0a:07:00:02
				ip fd07::c8 > fd07::2 ttl 64 len 304
				icmp6 type 2 code 0 mtu 1400
				  about ip fd07::2 > fd07::c8 ttl 64 len 1460
				  about tcp 5000 > 7000 ack seq 9 win 65535
				  about data 196 bytes #${checkOf(six, 196)}
			`,
		);
		for (const s of FAMILIES) {
			// At the edge, and one above.
			const head = s ? 48 : 28;
			expect(says('a', echo(2, 200, s, { data: 1400 - head })), 'encap_overlay', 'redirect');
			expect(says('a', echo(2, 200, s, { data: 1401 - head })), 'return_too_big', 'redirect');
			// Many segments in one skb: one of them is too big.
			expect(says('a', tcp(2, 200, s, { data: 3000 }), 1390), 'return_too_big', 'redirect');
			// No error about an error, nor about the rest of a datagram.
			const about = { ip: { src: at(200, s), dst: at(2, s) }, udp: { sport: 1, dport: 2 }, data: 1400 };
			const error: Packet = { ip: { src: at(2, s), dst: at(200, s) }, icmp: { type: s ? 1 : 3, code: 3, about } };
			expect(says('a', error), 'drop_too_big', 'drop');
			const [first, second] = fragments(udp(2, 200, s, { data: 2900 }), 9, 1440);
			expect(says('a', first), 'return_too_big', 'redirect');
			expect(says('a', second), 'drop_too_big', 'drop');
		}
	});

	test('from another node: into the endpoint, its MAC written anew', () => {
		const r = arrives(udp(FAR, 2));
		expect(
			r,
			'deliver_overlay',
			'pass',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:02
				ip 10.7.0.66 > 10.7.0.2 ttl 64 len 33
				udp 5000 > 7000
				data "hello"
			`,
		);
		assert.is(r.mark, `peer ${OV}`);
		const six = arrives(tcp(FAR, 3, true));
		expect(
			six,
			'deliver_overlay',
			'pass',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:03
				ip fd07::42 > fd07::3 ttl 64 len 60
				tcp 5000 > 7000 ack seq 9 win 65535
			`,
		);
		assert.is(six.mark, `peer ${OV + 1}`);
		// Of a slice, over the uplink that leads to its node; with a sum in the outer header, which is not looked at.
		assert.is(arrives(echo(130, 2), { from: '10.1.0.3', uplink: UP1 }).verdict, 'deliver_overlay');
		assert.is(arrives(echo(130, 2, true), { from: '10.1.0.3', uplink: UP1 }).mark, `peer ${OV}`);
	});
	test('from another node: any protocol, options, headers and fragments', () => {
		for (const six of FAMILIES) {
			for (const protocol of [PROTOCOL.sctp, PROTOCOL.gre, PROTOCOL.esp])
				expect(arrives({ ip: { src: at(FAR, six), dst: at(2, six), protocol }, data: 24 }), 'deliver_overlay', 'pass');
			for (const p of fragments(udp(FAR, 2, six, { data: 900 }), 77, 304)) {
				const r = arrives(p);
				expect(r, 'deliver_overlay', 'pass', print(build({ ...p, eth: { src: FAR_MAC, dst: HERE.a.mac } })));
				assert.is(r.mark, `peer ${OV}`);
			}
		}
		expect(arrives(udp(FAR, 2, false, { ip: { src: at(FAR), dst: at(2), options: 40 } })), 'deliver_overlay', 'pass');
		expect(
			arrives(
				udp(FAR, 2, true, {
					ip: {
						src: at(FAR, true),
						dst: at(2, true),
						extensions: ['hop-by-hop', 'destination', 'destination', 'destination', 'destination'],
					},
				}),
			),
			'deliver_overlay',
			'pass',
		);
		// Padding behind the inner packet is the endpoint's stack to cut.
		expect(
			arrives({ ...echo(FAR, 2), padding: 18 }),
			'deliver_overlay',
			'pass',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:02
				ip 10.7.0.66 > 10.7.0.2 ttl 64 len 32
				icmp type 8 code 0
				data "ping"
				padding 18 bytes
			`,
		);
	});
	test('from a stranger, from ourselves, or by a way that leads elsewhere', () => {
		for (const six of FAMILIES) {
			expect(arrives(udp(FAR, 2, six), { from: '10.0.0.77' }), 'drop_unknown_vtep', 'drop');
			expect(arrives(udp(3, 2, six), { from: '10.0.0.1' }), 'drop_unknown_vtep', 'drop');
			expect(arrives(udp(FAR, 2, six), { uplink: UP1 }), 'drop_unknown_vtep', 'drop');
			expect(arrives(udp(130, 2, six), { from: '10.1.0.3' }), 'drop_unknown_vtep', 'drop');
		}
	});
	test('an inner source that lives elsewhere: on another node, here, nowhere', () => {
		for (const six of FAMILIES) {
			for (const n of [130, 3, 2, 5, VIP]) expect(arrives(udp(n, 2, six)), 'drop_spoofed', 'drop');
			// A single address goes before the slice that it lies in.
			expect(arrives(udp(FAR, 2, six), { from: '10.0.0.4' }), 'drop_spoofed', 'drop');
		}
		expect(arrives({ ...udp(2, 3), ip: { src: '192.0.2.9', dst: at(2) } }), 'drop_spoofed', 'drop');
		expect(arrives({ ...udp(2, 3), ip: { src: 'fe80::2', dst: at(2, true) } }), 'drop_spoofed', 'drop');
		expect(arrives({ ...udp(2, 3), ip: { src: '0.0.0.0', dst: at(2) } }), 'drop_spoofed', 'drop');
		expect(arrives({ ...udp(2, 3), ip: { src: '::ffff:10.7.0.66', dst: at(2, true) } }), 'drop_spoofed', 'drop');
	});
	test("for nobody: not attached here, a service's address, a group", () => {
		for (const six of FAMILIES) {
			for (const n of [5, FAR, 130, VIP]) expect(arrives(udp(FAR, n, six)), 'drop_no_endpoint', 'drop');
			expect(
				arrives(udp(FAR, 2, six, { ip: { src: at(FAR, six), dst: six ? 'ff02::1' : '255.255.255.255' } })),
				'drop_flood',
				'drop',
			);
		}
		expect(
			arrives(udp(FAR, 2, true, { ip: { src: at(FAR, true), dst: '::ffff:10.7.0.2' } })),
			'drop_no_endpoint',
			'drop',
		);
	});
	test('what is not IP crosses no node: ARP, VLAN tags, anything', () => {
		expect(arrives(arp('a', 2)), 'drop_flood', 'drop');
		expect(arrives({ ...udp(FAR, 2), vlan: 7 }), 'drop_flood', 'drop');
		expect(arrives({ eth: { src: FAR_MAC, dst: ANY, type: 0x88cc }, data: 60 }), 'drop_flood', 'drop');
		expect(arrives({ eth: { src: FAR_MAC, dst: ANY, type: ETHER.probe }, data: 60 }), 'drop_flood', 'drop');
	});
	test("another VNI is the kernel's, and leaves as it came", () => {
		for (const vni of [4096, 5000, 5004, 0xffffff]) {
			const r = arrives(udp(FAR, 2), { vni });
			expect(r, 'pass_foreign_vni', 'pass');
			assert.match(r.out, new RegExp(`^vxlan ${vni}$`, 'm'));
			assert.is(r.mark, undefined);
		}
		// From a stranger too: Beeline does not judge what is not its own.
		expect(arrives(udp(FAR, 2), { vni: 4096, from: '10.0.0.77' }), 'pass_foreign_vni', 'pass');
	});
	test('headers that end too soon or contradict each other', () => {
		expect(arrives(udp(FAR, 2), { valid: false }), 'drop_malformed', 'drop');
		const whole = build({
			eth: { src: MAC.node2, dst: MAC.up0 },
			ip: { src: '10.0.0.2', dst: '10.0.0.1' },
			udp: {
				sport: 50000,
				dport: 4789,
				vxlan: { vni: VNIS.red, frame: { ...tcp(FAR, 2), eth: { src: FAR_MAC, dst: ANY } } },
			},
		});
		const cut = (n: number) => w.run('uplink_xdp', whole.slice(0, n), UP0);
		expect(cut(whole.length - 1), 'drop_malformed', 'drop');
		expect(cut(50 + 14 + 19), 'drop_malformed', 'drop');
		expect(cut(50 + 14), 'drop_malformed', 'drop');
		// Not even an inner Ethernet header: nothing says that it is ours.
		expect(cut(50 + 13), 'pass_foreign_vni', 'pass');
		// A bit of the VNI field that must be zero (RFC 7348: ignored) is no other network.
		const reserved = whole.slice();
		reserved[49] = 0xff;
		expect(w.run('uplink_xdp', reserved, UP0), 'deliver_overlay', 'pass');
	});
	test('a port whose row or network is gone: nothing passes', () => {
		w.store.networks.deleteMany([VNIS.blue]);
		expect(says('c', udp(2, 130)), 'drop_no_endpoint', 'drop');
		expect(says('c', arp('c', 130)), 'drop_no_endpoint', 'drop');
		expect(arrives(udp(130, 2), { vni: VNIS.blue }), 'pass_foreign_vni', 'pass');
		w.store.overlayPorts.deleteMany([OV + 2]);
		fillOverlay(w);
		w.store.overlayPorts.deleteMany([OV + 2]);
		expect(says('c', udp(2, 130)), 'drop_no_endpoint', 'drop');
		fillOverlay(w);
		expect(says('c', udp(2, 130)), 'encap_overlay', 'redirect');
	});
	test('every packet is counted once, by its bytes', () => {
		const before = w.counted('overlay_tc').get('deliver_overlay') ?? { packets: 0n, bytes: 0n };
		const p = build({ ...udp(2, 3), eth: { src: HERE.a.mac, dst: ANY } });
		for (let i = 0; i < 5; i++) w.run('overlay_tc', p, OV);
		const after = w.counted('overlay_tc').get('deliver_overlay');
		assert.is((after?.packets ?? 0n) - before.packets, 5n);
		assert.is((after?.bytes ?? 0n) - before.bytes, BigInt(5 * p.length));
	});
	test.run();
}

/** The printed sum of the last `n` bytes of data. */
function checkOf(r: Ran, n: number): number {
	return Number(new RegExp(`data ${n} bytes #(\\d+)$`).exec(r.out)?.[1]);
}
