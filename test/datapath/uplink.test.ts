/**
 * uplink_xdp, packet by packet: what comes in, the verdict, the action, and the packet that leaves with every field. Hosts
 * and interfaces are drawn in world.ts, services listed in services.ts.
 */
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { FlowKind, SettingsFlag } from '../../src/loader/layout.gen.js';
import { waitFor } from '../support/wait.js';
import { build, ETHER, fragments, frame, type Packet, PROTOCOL, print } from './packets.js';
import { BACKENDS, type BackendName, fill, macOf, serviceIndex, tableOf } from './services.js';
import {
	ACTIVE,
	buildInterfaces,
	closeInterfaces,
	DOWN,
	DRAINING,
	insideNetns,
	MAC,
	type Ran,
	UP0,
	UP1,
	VNI,
	World,
} from './world.js';

const test = suite('uplink_xdp');
let w: World;
let nextPort = 20000;

const fromClient = { src: MAC.router, dst: MAC.up0 };
const C4 = '192.0.2.9';
const C6 = 'fd09::9';
const A4 = '10.0.0.1';
const A6 = 'fd00::1';

const xdp = (p: Packet | Uint8Array, ifindex = UP0): Ran =>
	w.run('uplink_xdp', p instanceof Uint8Array ? p : build(p), ifindex);

/** A client's TCP packet to a port of this node. */
function tcp(
	dport: number,
	over: Omit<Partial<Packet>, 'tcp' | 'ip'> & { tcp?: object; ip?: object; six?: boolean } = {},
): Packet {
	const { six, ...rest } = over;
	return {
		eth: fromClient,
		...rest,
		ip: { src: six ? C6 : C4, dst: six ? A6 : A4, ttl: 57, ...(six ? {} : { df: true }), ...over.ip },
		tcp: { sport: 30000, dport, flags: 'ack', seq: 1001, ack: 5001, ...over.tcp },
	};
}
function udp(
	dport: number,
	over: Omit<Partial<Packet>, 'udp' | 'ip'> & { udp?: object; ip?: object; six?: boolean } = {},
): Packet {
	const { six, ...rest } = over;
	return {
		eth: fromClient,
		data: 'query',
		...rest,
		ip: { src: six ? C6 : C4, dst: six ? A6 : A4, ttl: 57, ...over.ip },
		udp: { sport: 30000, dport, ...over.udp },
	};
}
const SYN = { flags: 'syn', seq: 1000, ack: 0 };

/** What another node sends: `p` in the mesh's tunnel, for a backend. */
function tunnelled(
	backend: BackendName | string,
	p: Packet,
	over: { vtep?: string; vni?: number; source?: string; valid?: boolean; eth?: object; ip?: object } = {},
): Packet {
	return {
		eth: { src: MAC.node2, dst: MAC.up0, ...over.eth },
		ip: { src: over.vtep ?? '10.0.0.2', dst: A4, df: true, ...over.ip },
		udp: {
			sport: 55555,
			dport: 4789,
			vxlan: {
				vni: over.vni ?? VNI,
				valid: over.valid ?? true,
				frame: {
					...p,
					eth: {
						dst: backend in BACKENDS ? macOf(backend as BackendName) : backend,
						src: over.source ?? '06:00:0a:00:00:02',
					},
				},
			},
		},
	};
}

/** The source port of a tunnel's packet is the flow's hash: any of its range. */
const anyPort = (text: string): string =>
	text.replace(/^udp (\d+) > 4789/m, (_, port) => {
		assert.ok(Number(port) >= 49152, `source port ${port} is a dynamic one`);
		return 'udp HASH > 4789';
	});

/** `inner` as it leaves this node for another one. */
function encapped(inner: Packet, to: BackendName, over: { node?: 2 | 3; source?: string } = {}): string {
	const bytes = build({
		...inner,
		eth: { src: over.source ?? '06:00:0a:00:00:01', dst: macOf(to), type: inner.eth?.type },
	});
	const three = over.node === 3;
	return frame`
		eth ${three ? MAC.up1 : MAC.up0} > ${three ? MAC.node3 : MAC.node2}
		ip 10.0.0.1 > ${three ? '10.1.0.3' : '10.0.0.2'} ttl 64 df len ${bytes.length + 36}
		udp HASH > 4789 no checksum
		vxlan ${VNI}
	`.concat(
		'\n',
		print(bytes)
			.split('\n')
			.map((l) => `  ${l}`)
			.join('\n'),
	);
}

function expect(r: Ran, verdict: string, action: string, mark?: string): void {
	assert.is(`${r.verdict}, ${r.action}, mark ${r.mark}`, `${verdict}, ${action}, mark ${mark}`, r.out);
}
/** It leaves as it came. */
function untouched(p: Packet | Uint8Array, verdict: string, ifindex = UP0): void {
	const bytes = p instanceof Uint8Array ? p : build(p);
	const r = xdp(bytes, ifindex);
	expect(r, verdict, 'pass');
	assert.is(r.out, print(bytes));
	assert.equal(r.bytes, bytes);
	assert.is(r.mark, undefined);
}
function dropped(p: Packet, verdict: string, ifindex = UP0): void {
	expect(xdp(p, ifindex), verdict, 'drop');
}

if (insideNetns(import.meta.url, 'datapath: uplink_xdp')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open();
		fill(w);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	// --- to another node

	test('a TCP packet goes to its backend’s node in a tunnel, 50 bytes longer, itself untouched', () => {
		const p = tcp(8080, { data: 'GET / HTTP/1.1' });
		const r = xdp(p);
		expect(r, 'encap_node', 'tx');
		assert.is(
			anyPort(r.out),
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 104
				udp HASH > 4789 no checksum
				vxlan 12509184
				  eth 06:00:0a:00:00:01 > 06:00:00:00:00:01
				  ip 192.0.2.9 > 10.0.0.1 ttl 57 df len 54
				  tcp 30000 > 8080 ack seq 1001 ack 5001 win 65535
				  data "GET / HTTP/1.1"
			`,
		);
		assert.equal(r.bytes.slice(64), build(p).slice(14));
		assert.is(r.bytes.length, build(p).length + 50);
		assert.equal(
			[
				r.event.src,
				r.event.sport,
				r.event.dst,
				r.event.dport,
				r.event.proto,
				r.event.ref,
				r.event.len,
				r.event.ifindex,
			],
			[C4, 30000, A4, 8080, 6, BACKENDS.far, 68, UP0],
		);
	});
	for (const [name, p] of [
		['an IPv6 TCP packet', tcp(8080, { six: true, data: 'x' })],
		['a SYN', tcp(8080, { tcp: SYN })],
		['an IPv6 SYN', tcp(8080, { six: true, tcp: SYN })],
		['a FIN', tcp(8080, { tcp: { flags: 'fin ack' } })],
		['a RST', tcp(8080, { tcp: { flags: 'rst' } })],
		['a UDP packet', udp(53)],
		['a UDP packet without a checksum', udp(53, { udp: { checksum: false } })],
		['a UDP packet without payload', udp(53, { data: '' })],
		['an IPv6 UDP packet', udp(53, { six: true })],
		['a packet to another of the node’s addresses', tcp(8080, { ip: { dst: '10.1.0.1' } })],
		['a packet with IP options', tcp(8080, { ip: { options: 12 } })],
		['a packet with all the options that IP has room for', udp(53, { ip: { options: 40 } })],
		['a packet behind a hop-by-hop header', udp(53, { six: true, ip: { extensions: ['hop-by-hop'] } })],
		[
			'a packet behind four extension headers',
			tcp(8080, { six: true, ip: { extensions: ['hop-by-hop', 'destination', { routing: 0 }, 'destination'] } }),
		],
		['an atomic fragment', udp(53, { six: true, ip: { extensions: [{ fragment: 3, offset: 0, more: false }] } })],
		['a packet with Ethernet padding', tcp(8080, { padding: 6 })],
		['a packet of type of service 184', tcp(8080, { ip: { tos: 184 } })],
		['a packet of TTL 1', tcp(8080, { ip: { ttl: 1 } })],
		['the largest packet that fits', tcp(8080, { data: 1460 })],
		['the largest IPv6 packet that fits', tcp(8080, { six: true, data: 1440 })],
	] as const)
		test(`${name} goes to its backend’s node`, () => {
			const r = xdp(p);
			expect(r, 'encap_node', 'tx');
			assert.is(anyPort(r.out), encapped(p, 'far'));
		});
	test('a node behind another uplink is reached by that one', () => {
		for (const six of [false, true]) {
			const p = tcp(8081, { six });
			const r = xdp(p);
			expect(r, 'encap_node', 'redirect');
			assert.is(anyPort(r.out), encapped(p, 'farther', { node: 3 }));
		}
	});
	test('a client may come in by any uplink', () => {
		const p = tcp(8081, { eth: { src: MAC.router, dst: MAC.up1 } });
		const r = xdp(p, UP1);
		expect(r, 'encap_node', 'tx');
		assert.is(anyPort(r.out), encapped(p, 'farther', { node: 3 }));
	});
	test('the tunnel’s source port is constant for a flow and differs between flows', () => {
		const portOf = (sport: number) => new DataView(xdp(tcp(8080, { tcp: { sport } })).bytes.buffer).getUint16(34);
		const ports = new Set<number>();
		for (let sport = 1024; sport < 1524; sport++) ports.add(portOf(sport));
		assert.ok(ports.size > 400, `${ports.size} ports for 500 flows`);
		assert.is(portOf(1024), portOf(1024));
	});
	test('flows spread over the slots; with affinity a client stays on one', () => {
		const backendOf = (port: number, sport: number, six: boolean) => xdp(tcp(port, { six, tcp: { sport } })).event.ref;
		for (const six of [false, true]) {
			const spread = new Set<number>();
			const affine = new Set<number>();
			for (let sport = 2000; sport < 2100; sport++) {
				spread.add(backendOf(8096, sport, six));
				affine.add(backendOf(8095, sport, six));
			}
			assert.is(spread.size, 4);
			assert.is(affine.size, 1);
		}
		const clients = new Set<number>();
		for (let i = 1; i < 60; i++) clients.add(xdp(tcp(8095, { ip: { src: `192.0.2.${i}` } })).event.ref);
		assert.is(clients.size, 4, 'affinity spreads clients');
	});

	// --- not ours

	for (const [name, p] of [
		['another port', tcp(9999)],
		['another protocol’s port', udp(8080)],
		['a frontend’s port on an address that is not the node’s', tcp(8080, { ip: { dst: '10.0.0.77' } })],
		['0.0.0.0, which is no address of the node', tcp(8080, { ip: { dst: '0.0.0.0' } })],
		['::, which is no address of the node', tcp(8080, { six: true, ip: { dst: '::' } })],
		['a port on the node’s link-local address', tcp(8080, { six: true, ip: { src: 'fe80::2', dst: 'fe80::1' } })],
		[
			'a multicast address',
			udp(53, { eth: { src: MAC.router, dst: '01:00:5e:00:00:fb' }, ip: { dst: '224.0.0.251' } }),
		],
		['a broadcast', udp(53, { eth: { src: MAC.router, dst: 'ff:ff:ff:ff:ff:ff' }, ip: { dst: '255.255.255.255' } })],
		['another MAC', tcp(8080, { eth: { src: MAC.router, dst: MAC.node2 } })],
		['the other uplink’s MAC', tcp(8080, { eth: { src: MAC.router, dst: MAC.up1 } })],
		['a VLAN', tcp(8080, { vlan: 7 })],
		['an ARP request', { eth: { src: MAC.router, dst: 'ff:ff:ff:ff:ff:ff', type: ETHER.arp }, data: 28 }],
		[
			'a neighbour solicitation',
			{
				eth: { src: MAC.router, dst: '33:33:ff:00:00:01' },
				ip: { src: C6, dst: 'ff02::1:ff00:1', ttl: 255 },
				icmp: { type: 135 },
				data: 20,
			},
		],
		[
			'a neighbour advertisement to the node',
			{ eth: fromClient, ip: { src: 'fd00::fe', dst: A6, ttl: 255 }, icmp: { type: 136 }, data: 20 },
		],
		['a ping of the node', { eth: fromClient, ip: { src: C4, dst: A4 }, icmp: { type: 8 }, data: 56 }],
		['an IPv6 ping of the node', { eth: fromClient, ip: { src: C6, dst: A6 }, icmp: { type: 128 }, data: 56 }],
		['GRE', { eth: fromClient, ip: { src: C4, dst: A4, protocol: PROTOCOL.gre }, data: 30 }],
		['routed traffic', tcp(8080, { ip: { dst: '172.18.0.2' } })],
		[
			'VXLAN for another address of the node',
			{ ...tunnelled('task', tcp(8082)), ip: { src: '10.0.0.2', dst: '10.1.0.1' } },
		],
	] as [string, Packet][])
		test(`${name}: passes untouched`, () => untouched(p, 'pass_not_ours'));
	test('an interface that is no uplink passes everything', () => untouched(tcp(8080), 'pass_not_ours', 1));
	test('a SYN-ACK to a published port answers a dial of the node itself', () => {
		untouched(tcp(8080, { tcp: { flags: 'syn ack' } }), 'pass_syn_ack');
		untouched(tcp(8080, { six: true, tcp: { flags: 'syn ack' } }), 'pass_syn_ack');
	});
	test('a family without backends passes', () => {
		untouched(tcp(8084, { six: true }), 'pass_no_backend');
		expect(xdp(tcp(8084)), 'encap_node', 'tx');
	});
	for (const six of [false, true]) {
		const records = () => {
			const seen: { frontend: number; flow: string; len: number; frame: Uint8Array }[] = [];
			w.store.held.listen((h, frame) => {
				const flow = `${h.client}:${h.client_port} > ${h.addr}:${h.port} ${h.proto} if ${h.ifindex}`;
				seen.push({ frontend: h.frontend, flow, len: h.len, frame });
			})();
			return seen;
		};
		const [client, at] = six ? [C6, A6] : [C4, A4];
		test(`the first packet to a service that rests is held, with a copy for the agent, IPv${six ? 6 : 4}`, () => {
			records();
			for (const [p, name, port, proto] of [
				[tcp(8106, { six, tcp: SYN }), 'rests', 8106, 6],
				[tcp(8107, { six, tcp: SYN }), 'restsDown', 8107, 6],
				[udp(58, { six }), 'restsUdp', 58, 17],
			] as const) {
				expect(xdp(p), 'held', 'drop');
				const frame = build(p);
				const flow = `${client}:30000 > ${at}:${port} ${proto} if ${UP0}`;
				assert.equal(records(), [{ frontend: serviceIndex(name), flow, len: frame.length, frame }]);
			}
		});
		test(`of another packet, of a denied client and of a long one no copy is made, IPv${six ? 6 : 4}`, () => {
			records();
			untouched(tcp(8106, { six }), 'pass_no_backend');
			dropped(tcp(8107, { six }), 'drop_no_backend');
			dropped(tcp(8109, { six, tcp: SYN }), 'drop_denied');
			assert.equal(records(), []);
			expect(xdp(udp(58, { six, data: 600 })), 'held', 'drop');
			assert.equal(
				records().map((r) => [r.frontend, r.len]),
				[[serviceIndex('restsUdp'), 0]],
			);
		});
	}
	test('a family without backends passes where the other has some', () => {
		untouched(tcp(8108, { six: true, tcp: SYN }), 'pass_no_backend');
	});
	test('a full ring holds nothing, and takes more once it was read', () => {
		const syn = tcp(8106, { tcp: SYN });
		let n = 0;
		for (; xdp(syn).verdict === 'held'; n++) assert.ok(n < 10_000);
		assert.ok(n > 100, String(n));
		dropped(syn, 'drop_no_backend');
		w.store.held.listen(() => undefined)();
		expect(xdp(syn), 'held', 'drop');
		w.store.held.listen(() => undefined)();
	});
	test('extension headers that are not followed pass', () => {
		const extensions = ['destination', 'destination', 'destination', 'destination', 'destination'] as const;
		untouched(tcp(8080, { six: true, ip: { extensions } }), 'pass_headers');
		untouched(tcp(8080, { six: true, ip: { extensions: [{ routing: 1 }] } }), 'pass_headers');
	});
	test('a packet that ends within its headers passes; one byte more and it is ours', () => {
		for (const [p, whole] of [
			[tcp(8080), 54],
			[tcp(8080, { six: true }), 74],
			[udp(53, { data: '' }), 42],
			[udp(53, { six: true, data: '' }), 62],
			[tcp(8080, { ip: { options: 8 } }), 62],
			[udp(53, { six: true, data: '', ip: { extensions: ['hop-by-hop'] } }), 70],
		] as const) {
			const bytes = build(p);
			assert.is(bytes.length, whole);
			for (let n = 14; n < whole; n++) untouched(bytes.slice(0, n), 'pass_not_ours');
			expect(xdp(bytes), 'encap_node', 'tx');
		}
	});
	test('IP of a wrong version or header length passes', () => {
		for (const first of [4 * 16 + 4, 6 * 16 + 5, 4 * 16, 5 * 16 + 5]) {
			const bytes = build(tcp(8080));
			bytes[14] = first;
			untouched(bytes, 'pass_not_ours');
		}
	});

	// --- exact addresses, lists, backends that are down

	test('a service on one address answers there and nowhere else', () => {
		const p = tcp(8087, { ip: { dst: '10.1.0.1' } });
		const r = xdp(p);
		expect(r, 'encap_node', 'tx');
		assert.is(anyPort(r.out), encapped(p, 'far'));
		untouched(tcp(8087), 'pass_not_ours');
		untouched(tcp(8087, { six: true }), 'pass_not_ours');
	});
	test('beside a service on one address another has the others', () => {
		const there = tcp(8088, { ip: { dst: '10.1.0.1' } });
		assert.is(anyPort(xdp(there).out), encapped(there, 'farther', { node: 3 }));
		assert.is(anyPort(xdp(tcp(8088)).out), encapped(tcp(8088), 'far'));
	});
	test('an allow list, a deny list, and deny wins', () => {
		for (const six of [false, true]) {
			const stranger = six ? 'fd0a::1' : '203.0.113.1';
			expect(xdp(tcp(8089, { six })), 'encap_node', 'tx');
			dropped(tcp(8089, { six, ip: { src: stranger } }), 'drop_denied');
			dropped(tcp(8090, { six }), 'drop_denied');
			expect(xdp(tcp(8090, { six, ip: { src: stranger } })), 'encap_node', 'tx');
		}
		dropped(tcp(8091), 'drop_denied');
		expect(xdp(tcp(8091, { ip: { src: '192.0.2.10' } })), 'encap_node', 'tx');
		dropped(tcp(8091, { ip: { src: '203.0.113.1' } }), 'drop_denied');
	});
	test('every backend down drops; one that lives takes the slots of the others', () => {
		for (const six of [false, true]) {
			dropped(tcp(8085, { six, tcp: SYN }), 'drop_no_backend');
			dropped(tcp(8085, { six }), 'drop_no_backend');
			for (let sport = 3000; sport < 3020; sport++) {
				const p = tcp(8086, { six, tcp: { sport } });
				assert.is(anyPort(xdp(p).out), encapped(p, 'far'));
			}
		}
	});
	test('a node without a next hop gets nothing', () => dropped(tcp(8093), 'drop_no_next_hop'));

	// --- on this node

	test('a local task gets the packet with its own address and port, marked for its veth', () => {
		const r = xdp(tcp(8082, { tcp: SYN, data: 'x' }));
		expect(r, 'deliver_endpoint', 'pass', 'peer 200');
		assert.is(r.mark, 'peer 200');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:02:fe > 02:00:00:00:01:00
				ip 192.0.2.9 > 172.18.0.2 ttl 57 df len 41
				tcp 30000 > 80 syn seq 1000 win 65535
				data "x"
			`,
		);
		assert.is(r.event.ref, BACKENDS.task);
		const row = w.map<object, { port: number; node: number; addr: string }>('revnat_new');
		const found = [...row.entries()].filter(([k]) => (k as { client_port: number }).client_port === 30000);
		assert.is(found.length, 1);
		assert.is(found[0][1].port, 8082);
		assert.is(found[0][1].node, 1);
	});
	test('IPv6, UDP, UDP without a checksum, options and extension headers come to a local task whole', () => {
		assert.is(
			xdp(tcp(8082, { six: true, data: 100 })).out,
			frame`
				eth 02:00:00:00:02:fe > 02:00:00:00:01:00
				ip fd09::9 > fd18::2 ttl 57 len 160
				tcp 30000 > 80 ack seq 1001 ack 5001 win 65535
				data 100 bytes #18953
			`,
		);
		assert.is(
			xdp(udp(54)).out,
			frame`
				eth 02:00:00:00:02:fe > 02:00:00:00:01:00
				ip 192.0.2.9 > 172.18.0.2 ttl 57 len 33
				udp 30000 > 5353
				data "query"
			`,
		);
		assert.match(xdp(udp(54, { udp: { checksum: false } })).out, /172\.18\.0\.2.*\nudp 30000 > 5353 no checksum\n/);
		assert.match(xdp(udp(54, { six: true })).out, /fd18::2 ttl 57 len 53\nudp 30000 > 5353\n/);
		assert.match(
			xdp(tcp(8082, { ip: { options: 8 } })).out,
			/172\.18\.0\.2 ttl 57 df options 8 len 48\ntcp 30000 > 80 ack/,
		);
		assert.match(
			xdp(tcp(8082, { six: true, ip: { extensions: ['destination'] } })).out,
			/fd18::2 ttl 57 destination len 68\ntcp 30000 > 80 ack/,
		);
		for (const text of [tcp(8082, { ip: { options: 8 } }), udp(54, { six: true }), tcp(8082, { six: true })])
			assert.not.match(xdp(text).out, /bad checksum/);
	});
	test('a UDP checksum that would become zero is written as all ones', () => {
		// Some payload of 65536 makes it so: look for it with the sum of the rewritten packet.
		let seen = 0;
		for (let i = 0; i < 65536; i++) {
			const bytes = build(udp(54, { data: Uint8Array.from([i >> 8, i & 255]) }));
			const r = w.runner('uplink_xdp');
			r.data.set(bytes);
			const ctx = new DataView(r.ctx.buffer);
			ctx.setUint32(4, bytes.length, true);
			ctx.setUint32(12, UP0, true);
			r.run(bytes.length);
			const check = new DataView(r.out.buffer).getUint16(8 + 14 + 26);
			assert.is.not(check, 0);
			if (check === 65535) seen++;
			if (i % 4096 === 0) w.drain();
		}
		assert.ok(seen >= 1);
	});
	test('a process on the node gets the packet on the node’s own address', () => {
		const r = xdp(tcp(8083, { tcp: SYN }));
		expect(r, 'deliver_local_process', 'pass');
		assert.is(r.mark, undefined);
		assert.match(r.out, /ip 192\.0\.2\.9 > 10\.0\.0\.1 ttl 57 df len 40\ntcp 30000 > 9000 syn seq 1000 win 65535$/);
		assert.match(xdp(tcp(8083, { six: true })).out, /fd09::9 > fd00::1 ttl 57 len 60\ntcp 30000 > 9000 ack/);
		assert.match(xdp(udp(55)).out, /udp 30000 > 9001\n/);
	});
	test('a task reached by its neighbour entry is marked so', () => {
		const r = xdp(tcp(8101));
		expect(r, 'deliver_endpoint', 'pass', 'neigh 200');
		assert.is(r.mark, 'neigh 200');
	});

	// --- from other nodes

	test('a tunnelled packet is taken out, addressed to its task and marked', () => {
		const r = xdp(tunnelled('task', tcp(8082, { tcp: { sport: 30001 }, data: 'x' })));
		expect(r, 'deliver_endpoint', 'pass', 'peer 200');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:02:02 > 02:00:00:00:01:00
				ip 192.0.2.9 > 172.18.0.2 ttl 57 df len 41
				tcp 30001 > 80 ack seq 1001 ack 5001 win 65535
				data "x"
			`,
		);
		assert.is(r.event.len, 105);
		const six = xdp(tunnelled('task', tcp(8082, { six: true, tcp: { sport: 30001 } })));
		assert.match(six.out, /fd09::9 > fd18::2 ttl 57 len 60\ntcp 30001 > 80 ack/);
		assert.match(xdp(tunnelled('udpTask', udp(54, { six: true }))).out, /udp 30000 > 5353\n/);
		assert.match(xdp(tunnelled('process', tcp(8083))).out, /192\.0\.2\.9 > 10\.0\.0\.1 .*\ntcp 30000 > 9000/);
	});
	test('another VNI, an address that is no node’s, a node behind another uplink, this node itself', () => {
		untouched(tunnelled('task', tcp(8082), { vni: 4096 }), 'pass_foreign_vni');
		untouched(tunnelled('task', tcp(8082), { ip: { options: 4 } }), 'pass_foreign_vni');
		for (const vtep of ['10.0.0.77', '10.1.0.3', A4, '0.0.0.0'])
			dropped(tunnelled('task', tcp(8082), { vtep }), 'drop_unknown_vtep');
	});
	test('an inner MAC that names no backend of this node, or none that lives', () => {
		for (const mac of ['06:11:22:33:44:55', macOf('far'), '02:42:0a:00:00:02', 'ff:ff:ff:ff:ff:ff', MAC.up0])
			dropped(tunnelled(mac, tcp(8082)), 'drop_unknown_backend');
		dropped(tunnelled('gone', tcp(8100)), 'drop_unknown_backend');
		dropped(tunnelled('task', tcp(8082), { source: '02:42:0a:00:00:02' }), 'drop_unknown_backend');
		dropped(tunnelled('task4', tcp(8082, { six: true })), 'drop_unknown_backend');
		expect(xdp(tunnelled('task4', tcp(8082))), 'deliver_endpoint', 'pass', 'peer 200');
	});
	test('a tunnelled packet of the wrong protocol, without the VNI flag, or cut short', () => {
		dropped(tunnelled('task', udp(8082)), 'drop_malformed');
		dropped(tunnelled('task', tcp(8082), { valid: false }), 'drop_malformed');
		dropped(
			tunnelled('task', { eth: fromClient, ip: { src: C4, dst: A4 }, icmp: { type: 8 }, data: 8 }),
			'drop_malformed',
		);
		dropped(tunnelled('task', { vlan: 7, ...tcp(8082) }), 'drop_malformed');
		const bytes = build(tunnelled('task', tcp(8082)));
		for (let n = 42; n < bytes.length; n++) {
			const r = xdp(bytes.slice(0, n));
			assert.is(`${n} ${r.verdict}`, `${n} ${n < 50 ? 'pass_foreign_vni' : 'drop_malformed'}`);
		}
	});
	test('a SYN for a backend that is down goes to another node, once', () => {
		for (const six of [false, true]) {
			const p = tcp(8100, { six, tcp: SYN });
			const r = xdp(tunnelled('gone', p));
			expect(r, 'encap_rebalanced', 'tx');
			assert.is(anyPort(r.out), encapped(p, 'far', { source: '06:01:0a:00:00:02' }));
			dropped(tunnelled('gone', p, { source: '06:01:0a:01:00:03' }), 'drop_unknown_backend');
		}
		const nowhere = tcp(8085, { tcp: SYN });
		assert.match(xdp(tunnelled('gone', nowhere)).verdict, /^drop_(no|unknown)_backend$/);
	});
	test('a SYN that was passed on to a backend that is unknown here too goes on once more, and not back', () => {
		const before = [4, 6].map((f) => w.store.tables.read(tableOf('gone', f as 4 | 6))!);
		for (const six of [false, true]) {
			w.store.tables.create([[tableOf('gone', six ? 6 : 4), Uint32Array.of(BACKENDS.far, BACKENDS.farther)]]);
			const flow = { sport: nextPort++ };
			const p = tcp(8100, { six, tcp: { ...SYN, ...flow } });
			// From node2, of a flow that entered at node3.
			const r = xdp(tunnelled('gone', p, { source: '06:01:0a:01:00:03' }));
			expect(r, 'encap_rebalanced', 'redirect');
			assert.is(anyPort(r.out), encapped(p, 'farther', { node: 3, source: '06:03:0a:01:00:03' }));
			// Where the flow entered here, this node has a record of its own for it.
			const records = w.map<{ kind: number; client_port: number }, { ref: number; generation: number }>('conntrack');
			for (const [k, f] of [...records.entries()])
				if (k.kind === FlowKind.FLOW_SENT_ON && k.client_port === flow.sport)
					records.set({ ...k, kind: FlowKind.FLOW_SLOT }, { ...f, ref: BACKENDS.far, generation: 7 });
			const data = tcp(8100, { six, tcp: flow });
			const again = xdp(tunnelled('gone', data, { source: '06:01:0a:01:00:03' }));
			assert.is(anyPort(again.out), encapped(data, 'farther', { node: 3, source: '06:03:0a:01:00:03' }));
			dropped(tunnelled('gone', p, { source: '06:03:0a:01:00:03' }), 'drop_unknown_backend');
			w.store.tables.create([[tableOf('gone', six ? 6 : 4), Uint32Array.of(BACKENDS.far, BACKENDS.far)]]);
			const back = tcp(8100, { six, tcp: { ...SYN, sport: nextPort++ } });
			dropped(tunnelled('gone', back, { source: '06:01:0a:01:00:03' }), 'drop_unknown_backend');
		}
		w.store.tables.create(before.map((t, i) => [tableOf('gone', i === 0 ? 4 : 6), t]));
	});
	test('a SYN for a backend that drains goes to another node, once; what it has had before stays', () => {
		const local = (state: number) => {
			const [mac, row] = [macOf('gone'), w.store.localBackends.get(macOf('gone'))!];
			w.store.localBackends.setMany([[mac, { ...row, state }]]);
			const b = w.store.backends.get(BACKENDS.gone)!;
			w.store.backends.setMany([[BACKENDS.gone, { ...b, state }]]);
		};
		const table = w.store.tables.read(tableOf('gone', 4))!;
		for (const six of [false, true]) {
			local(ACTIVE);
			const sport = nextPort++;
			const begun = tcp(8100, { six, tcp: { ...SYN, sport } });
			expect(xdp(tunnelled('gone', begun)), 'deliver_endpoint', 'pass', 'peer 200');
			local(DRAINING);
			// Its SYN-ACK may have been lost, or be on its way.
			expect(xdp(tunnelled('gone', begun)), 'deliver_endpoint', 'pass', 'peer 200');
			expect(xdp(tunnelled('gone', tcp(8100, { six, tcp: { sport } }))), 'deliver_endpoint', 'pass', 'peer 200');
			w.store.tables.create([[tableOf('gone', six ? 6 : 4), Uint32Array.of(BACKENDS.far, BACKENDS.far)]]);
			const late = nextPort++;
			const p = tcp(8100, { six, tcp: { ...SYN, sport: late } });
			const r = xdp(tunnelled('gone', p));
			expect(r, 'encap_rebalanced', 'tx');
			assert.is(anyPort(r.out), encapped(p, 'far', { source: '06:01:0a:00:00:02' }));
			const data = tcp(8100, { six, tcp: { sport: late } });
			assert.is(anyPort(xdp(tunnelled('gone', data)).out), encapped(data, 'far', { source: '06:01:0a:00:00:02' }));
			expect(
				xdp(tunnelled('gone', tcp(8100, { six, tcp: { ...SYN, sport: nextPort++ } }), { source: '06:01:0a:01:00:03' })),
				'deliver_endpoint',
				'pass',
				'peer 200',
			);
			// Nobody else is left.
			w.store.tables.create([[tableOf('gone', six ? 6 : 4), Uint32Array.of(BACKENDS.gone, BACKENDS.gone)]]);
			const alone = tcp(8100, { six, tcp: { ...SYN, sport: nextPort++ } });
			expect(xdp(tunnelled('gone', alone)), 'deliver_endpoint', 'pass', 'peer 200');
			w.store.tables.create([[tableOf('gone', six ? 6 : 4), table]]);
		}
		local(DOWN);
	});
	test('a re-balanced SYN is delivered on behalf of the node that it entered', () => {
		const sport = nextPort++;
		expect(
			xdp(tunnelled('task', tcp(8082, { tcp: { ...SYN, sport } }), { source: '06:01:0a:01:00:03' })),
			'deliver_endpoint',
			'pass',
			'peer 200',
		);
		const row = [...w.map<{ client_port: number }, { node: number }>('revnat_new').entries()].find(
			([k]) => k.client_port === sport,
		);
		assert.is(row?.[1].node, 3);
		dropped(tunnelled('task', tcp(8082, { tcp: SYN }), { source: '06:01:0a:63:63:63' }), 'drop_unknown_vtep');
	});
	test('a returned reply goes on only if it comes from a frontend', () => {
		const reply = (over: { src?: string; dst?: string; sport?: number; six?: boolean }): Packet => ({
			ip: { src: over.src ?? (over.six ? A6 : A4), dst: over.dst ?? (over.six ? C6 : C4), ttl: 64 },
			tcp: { sport: over.sport ?? 8080, dport: 30000, flags: 'ack', seq: 1 },
			data: 'answer',
		});
		const r = xdp(tunnelled('0a:00:00:00:00:00', reply({})));
		expect(r, 'return_forward', 'pass', 'return');
		assert.is(r.mark, 'return');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:02:02 > 02:00:00:00:01:00
				ip 10.0.0.1 > 192.0.2.9 ttl 64 len 46
				tcp 8080 > 30000 ack seq 1 win 65535
				data "answer"
			`,
		);
		expect(xdp(tunnelled('0a:00:00:00:00:00', reply({ six: true }))), 'return_forward', 'pass', 'return');
		for (const bad of [
			{ sport: 22 },
			{ src: '10.0.0.77' },
			{ src: '172.18.0.2' },
			{ src: '0.0.0.0' },
			{ six: true, src: 'fd00::77' },
			{ sport: 8087 },
		])
			dropped(tunnelled('0a:00:00:00:00:00', reply(bad)), 'drop_bad_return');
		expect(
			xdp(tunnelled('0a:00:00:00:00:00', reply({ src: '10.1.0.1', sport: 8087 }))),
			'return_forward',
			'pass',
			'return',
		);
		dropped(tunnelled('0a:00:00:00:00:00', reply({}), { vtep: '10.0.0.77' }), 'drop_unknown_vtep');
	});

	// --- segment size, too big, fragments, ICMP

	test('a SYN that came by tunnel offers no more than the tunnel takes back', () => {
		const offered = (backend: BackendName, dport: number, mss: number, over: object = {}, vtep = '10.0.0.5') =>
			/mss (\d+)/.exec(
				xdp(
					tunnelled(backend, tcp(dport, { tcp: { ...SYN, sport: nextPort++, options: [{ mss }], ...over } }), {
						vtep,
						source: '06:00:0a:00:00:05',
					}),
				).out,
			)?.[1];
		assert.is(offered('task', 8082, 1460), '1360');
		assert.is(offered('task', 8082, 1360), '1360');
		assert.is(offered('task', 8082, 1000), '1000');
		assert.is(offered('taskTunnel', 8097, 9000), '1360');
		assert.is(offered('taskDsr', 8098, 1460), '1460');
		assert.is(offered('task', 8082, 1460, {}, '10.0.0.2'), '1460');
		assert.is(offered('task', 8082, 1460, { flags: 'ack' }), '1460');
		for (const options of [
			['nop', { mss: 1460 }],
			['nop', 'nop', { mss: 1460 }],
			['timestamps', 'nop', { mss: 1461 }],
			[{ mss: 1460 }, 'timestamps'],
		] as const) {
			const r = xdp(
				tunnelled('task', tcp(8082, { tcp: { ...SYN, sport: nextPort++, options } }), { vtep: '10.0.0.5' }),
			);
			assert.match(r.out, /mss 1360/);
			assert.not.match(r.out, /bad checksum/);
		}
		const six = xdp(
			tunnelled('task', tcp(8082, { six: true, tcp: { ...SYN, options: ['nop', { mss: 1440 }] } }), {
				vtep: '10.0.0.5',
			}),
		);
		assert.match(six.out, /mss 1340/);
		assert.not.match(six.out, /bad checksum/);
		// A local client's is left alone.
		assert.match(xdp(tcp(8082, { tcp: { ...SYN, sport: nextPort++, options: [{ mss: 9000 }] } })).out, /mss 9000/);
	});
	test('an ingress network of MTU 1200: no connection has larger segments, whatever way it goes, and nothing longer crosses', () => {
		const mtu = (mesh_mtu: number) => w.store.settings.set({ ...w.store.settings.get(), mesh_mtu });
		const syn = (dport: number, six: boolean, mss: number) =>
			tcp(dport, { six, tcp: { ...SYN, sport: nextPort++, options: [{ mss }] } });
		const offered = (p: Parameters<typeof xdp>[0]) => {
			const r = xdp(p);
			assert.not.match(r.out, /bad checksum/);
			return /mss (\d+)/.exec(r.out)?.[1];
		};
		try {
			mtu(1200);
			for (const [backend, port] of [
				['task', 8082],
				['taskTunnel', 8097],
				['taskDsr', 8098],
			] as const)
				for (const vtep of ['10.0.0.2', '10.0.0.5']) {
					assert.is(offered(tunnelled(backend, syn(port, false, 1460), { vtep })), '1110', `${backend} ${vtep}`);
					assert.is(offered(tunnelled(backend, syn(port, false, 1000), { vtep })), '1000', `${backend} ${vtep}`);
				}
			assert.is(offered(tunnelled('task', syn(8082, true, 1440), { vtep: '10.0.0.5' })), '1090');
			assert.is(offered(syn(8082, false, 1460)), '1110', 'a client that enters where the task is');
			assert.is(offered(syn(8082, true, 1440)), '1090');
			mtu(9000);
			assert.is(
				offered(tunnelled('task', syn(8082, false, 8960), { vtep: '10.0.0.5' })),
				'1360',
				'the way is narrower',
			);
			mtu(1200);
			expect(xdp(tcp(8092, { data: 1110 })), 'encap_node', 'tx');
			const r = xdp(tcp(8092, { data: 1111 }));
			expect(r, 'return_too_big', 'tx');
			assert.match(r.out, /icmp type 3 code 4 mtu 1150/);
			expect(xdp(tcp(8092, { six: true, data: 1091 })), 'return_too_big', 'tx');
			expect(xdp(udp(56, { data: 1122, ip: { df: true } })), 'encap_node', 'tx');
			expect(xdp(udp(56, { data: 1123, ip: { df: true } })), 'return_too_big', 'tx');
			expect(xdp(udp(56, { data: 1123, ip: { id: 9 } })), 'encap_fragments', 'pass', `encap ${BACKENDS.narrow}`);
		} finally {
			mtu(0);
		}
		assert.is(offered(syn(8082, false, 1460)), '1460');
	});
	test('an MSS option that reaches beyond the header is not one', () => {
		const options = ['nop', 'nop', { mss: 1460 }] as const;
		const bytes = build(
			tunnelled('task', tcp(8082, { tcp: { ...SYN, sport: nextPort++, options }, data: 'payload' }), {
				vtep: '10.0.0.5',
			}),
		);
		bytes[50 + 14 + 20 + 12] = 6 * 16; // data offset: 24 bytes
		const r = xdp(bytes);
		expect(r, 'deliver_endpoint', 'pass', 'peer 200');
		assert.equal(r.bytes.slice(54), bytes.slice(104), 'the bytes behind the header are payload');
	});
	test('a packet too big for its tunnel is answered to its sender, with its first bytes', () => {
		const p = tcp(8092, { data: 1361 });
		const r = xdp(p);
		expect(r, 'return_too_big', 'tx');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:fe
				ip 10.0.0.1 > 192.0.2.9 ttl 64 df len 156
				icmp type 3 code 4 mtu 1400
				  about ip 192.0.2.9 > 10.0.0.1 ttl 57 df len 1401
				  about tcp 30000 > 8092 ack seq 1001 ack 5001 win 65535
				  about ${print(build({ eth: { ...fromClient, type: 0x88b7 }, data: build(p).slice(54, 142) })).split('\n')[2]}
			`,
		);
		expect(xdp(tcp(8092, { data: 1360 })), 'encap_node', 'tx');
		const six = tcp(8092, { six: true, data: 1341 });
		const r6 = xdp(six);
		expect(r6, 'return_too_big', 'tx');
		assert.is(
			r6.out,
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:fe
				ip fd00::1 > fd09::9 ttl 64 len 304
				icmp6 type 2 code 0 mtu 1400
				  about ip fd09::9 > fd00::1 ttl 57 len 1401
				  about tcp 30000 > 8092 ack seq 1001 ack 5001 win 65535
				  about ${print(build({ eth: { ...fromClient, type: 0x88b7 }, data: build(six).slice(74, 270) })).split('\n')[2]}
			`,
		);
		expect(xdp(tcp(8092, { six: true, data: 1340 })), 'encap_node', 'tx');
	});
	test('what may be fragmented is left to uplink_tc, untouched', () => {
		const p = udp(56, { data: 1400, ip: { id: 9 } });
		const r = xdp(p);
		expect(r, 'encap_fragments', 'pass', `encap ${BACKENDS.narrow}`);
		assert.is(r.mark, `encap ${BACKENDS.narrow}`);
		assert.is(r.out, print(build(p)));
		expect(xdp(udp(56, { data: 1400, ip: { df: true } })), 'return_too_big', 'tx');
	});
	test('later fragments follow the first; before it they pass', () => {
		for (const [six, id] of [
			[false, 501],
			[true, 502],
		] as const) {
			const whole = udp(53, { six, data: 600 });
			const [first, second, third] = fragments(whole, id, 256);
			untouched(second, 'pass_not_ours');
			for (const p of [first, third, second, second]) {
				const r = xdp(p);
				expect(r, 'encap_node', 'tx');
				assert.is(anyPort(r.out), encapped(p, 'far'));
			}
			untouched(fragments(whole, id + 1000, 256)[1], 'pass_not_ours');
			const local = fragments(udp(54, { six, data: 600 }), id + 10, 256);
			const to = six ? 'fd18::2' : '172.18.0.2';
			expect(xdp(local[0]), 'deliver_endpoint', 'pass', 'peer 200');
			const later = xdp(local[1]);
			expect(later, 'deliver_fragment', 'pass', 'peer 200');
			assert.is(
				later.out,
				print(build({ ...local[1], ip: { ...(local[1].ip as NonNullable<Packet['ip']>), dst: to } })),
			);
			// And by tunnel, each by its MAC.
			expect(xdp(tunnelled('udpTask', local[1])), 'deliver_fragment', 'pass', 'peer 200');
		}
	});
	test('fragments whose checksum is rewritten by the first make a good datagram', () => {
		for (const six of [false, true]) {
			const parts = fragments(udp(54, { six, data: 500 }), 777, 256).map((p) => xdp(p).bytes);
			const head = six ? 62 : 34;
			const payload = parts.flatMap((b) => [...b.slice(head)]);
			const again: Packet = {
				eth: fromClient,
				ip: { src: six ? C6 : C4, dst: six ? 'fd18::2' : '172.18.0.2', protocol: PROTOCOL.udp },
				data: Uint8Array.from(payload),
			};
			assert.not.match(print(build(again)), /bad checksum/);
			assert.match(print(build(again)), /udp 30000 > 5353\n/);
		}
	});
	test('the extension headers of a first fragment do not part it from the later ones', () => {
		const whole = udp(53, { six: true, data: 600 });
		const [first, second] = fragments(whole, 601, 256);
		// Destination options behind the fragment header, as RFC 8200 has them.
		const bytes = build(first);
		const moved = new Uint8Array(bytes.length + 8);
		moved.set(bytes.slice(0, 62));
		moved.set(bytes.slice(62), 70);
		moved[54] = 60;
		moved.set([17, 0, 1, 4, 0, 0, 0, 0], 62);
		new DataView(moved.buffer).setUint16(18, moved.length - 54);
		expect(xdp(moved), 'encap_node', 'tx');
		const later = build(second);
		later[54] = 60;
		expect(xdp(later), 'encap_node', 'tx');
	});

	const error4 = (about: Packet, over: object = {}): Packet => ({
		eth: fromClient,
		ip: { src: '198.51.100.1', dst: A4, ttl: 60 },
		icmp: { type: 3, code: 4, mtu: 1300, about, quoteBytes: 28, ...over },
	});
	const error6 = (about: Packet, over: object = {}): Packet => ({
		eth: fromClient,
		ip: { src: 'fd33::1', dst: A6, ttl: 60 },
		icmp: { type: 2, code: 0, mtu: 1300, about, quoteBytes: 100, ...over },
	});
	const replyOf = (sport: number, dport: number, six = false, proto: 'tcp' | 'udp' = 'tcp'): Packet => ({
		ip: { src: six ? A6 : A4, dst: six ? C6 : C4, ttl: 50 },
		...(proto === 'tcp' ? { tcp: { sport, dport, seq: 77 } } : { udp: { sport, dport } }),
		data: 'reply reply reply',
	});
	test('an ICMP error about a reply goes to the backend’s node', () => {
		for (const p of [
			error4(replyOf(8080, 30000)),
			error6(replyOf(8080, 30000, true)),
			error4(replyOf(53, 30000, false, 'udp'), { type: 3, code: 3 }),
			error4(replyOf(8080, 30000), { type: 11, code: 0 }),
		]) {
			const r = xdp(p);
			expect(r, 'encap_node', 'tx');
			assert.is(anyPort(r.out), encapped(p, 'far'));
		}
	});
	test('an ICMP error comes to a local task about its own packet, with good checksums', () => {
		xdp(tcp(8082, { tcp: { ...SYN, sport: 31000 } }));
		const r = xdp(error4(replyOf(8082, 31000)));
		expect(r, 'deliver_icmp', 'pass', 'peer 200');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:02:fe > 02:00:00:00:01:00
				ip 198.51.100.1 > 172.18.0.2 ttl 60 len 56
				icmp type 3 code 4 mtu 1300
				  about ip 172.18.0.2 > 192.0.2.9 ttl 50 len 57
				  about tcp, 8 bytes
			`,
		);
		assert.equal([...r.bytes.slice(62, 66)], [0, 80, 31000 >> 8, 31000 & 255], 'quoted ports');
		xdp(tcp(8082, { six: true, tcp: { ...SYN, sport: 31000 } }));
		const r6 = xdp(error6(replyOf(8082, 31000, true)));
		expect(r6, 'deliver_icmp', 'pass', 'peer 200');
		assert.is(
			r6.out,
			frame`
				eth 02:00:00:00:02:fe > 02:00:00:00:01:00
				ip fd33::1 > fd18::2 ttl 60 len 125
				icmp6 type 2 code 0 mtu 1300
				  about ip fd18::2 > fd09::9 ttl 50 len 77
				  about tcp 80 > 31000 ack seq 77 win 65535
				  about data "reply reply reply"
			`,
		);
		// By tunnel likewise.
		expect(xdp(tunnelled('task', error4(replyOf(8082, 31000)))), 'deliver_icmp', 'pass', 'peer 200');
		dropped(tunnelled('task', error4(replyOf(8082, 31999))), 'drop_unknown_backend');
	});
	test('ICMP errors that are not about a flow of ours pass', () => {
		untouched(error4(replyOf(22, 30000)), 'pass_not_ours');
		untouched(error6(replyOf(22, 30000, true)), 'pass_not_ours');
		untouched(error4({ ip: { src: A4, dst: C4 }, icmp: { type: 8 }, data: 20 }), 'pass_not_ours');
		untouched(error4(replyOf(8080, 30000), { quoteBytes: 20 }), 'pass_not_ours');
		untouched(error4({ ...replyOf(8080, 30000), ip: { src: '10.0.0.77', dst: C4 } }), 'pass_not_ours');
	});

	test('what a socket of the node owns is left to it: packets, and ICMP errors about them', async () => {
		const socket = createSocket('udp4');
		await new Promise<void>((done) => socket.bind(40000, A4, done));
		const connection = connect({ host: C4, port: 30000, localAddress: A4, localPort: 40000 });
		connection.on('error', () => {});
		try {
			await new Promise<void>((done) => socket.connect(30000, C4, done));
			await waitFor(
				'the socket to be on its way',
				() => w.run('uplink_xdp', build(tcp(40000)), UP0).verdict === 'pass_local_socket',
			);
			untouched(tcp(40000), 'pass_local_socket');
			untouched(udp(40000), 'pass_local_socket');
			untouched(error4(replyOf(40000, 30000)), 'pass_not_ours');
			untouched(error4(replyOf(40000, 30000, false, 'udp')), 'pass_not_ours');
			expect(xdp(tcp(40000, { tcp: { sport: 30001 } })), 'encap_node', 'tx');
			expect(xdp(udp(40000, { udp: { sport: 30001 } })), 'encap_node', 'tx');
			expect(xdp(error4(replyOf(40000, 30001))), 'encap_node', 'tx');
			expect(xdp(tcp(40000, { tcp: SYN })), 'encap_node', 'tx');
			// Where source ports are known it is asked about those alone that something left from.
			const settings = w.store.settings.get();
			w.store.settings.set({ ...settings, flags: settings.flags | SettingsFlag.SETTINGS_KNOW_SOURCES });
			expect(xdp(tcp(40000)), 'encap_node', 'tx');
			expect(xdp(error4(replyOf(40000, 30000))), 'encap_node', 'tx');
			expect(xdp(udp(40000)), 'encap_node', 'tx');
			w.store.sourcePorts.setMany([[40000, 1]]);
			untouched(tcp(40000), 'pass_local_socket');
			expect(xdp(udp(40000)), 'encap_node', 'tx');
			w.store.sourcePorts.setMany([[(1 << 16) | 40000, 1]]);
			untouched(udp(40000), 'pass_local_socket');
			untouched(error4(replyOf(40000, 30000)), 'pass_not_ours');
			w.store.sourcePorts.deleteMany([40000, (1 << 16) | 40000]);
			w.store.settings.set(settings);
		} finally {
			connection.destroy();
			socket.close();
		}
	});

	// --- probes

	const probe = (over: { via?: string; vtep?: string; type?: number } = {}): Packet => ({
		eth: { src: MAC.node2, dst: MAC.up0 },
		ip: { src: over.vtep ?? '10.0.0.2', dst: A4, ttl: 64, df: true },
		udp: {
			sport: 41000,
			dport: 4789,
			vxlan: {
				vni: VNI,
				frame: {
					eth: { src: MAC.node2, dst: MAC.up0, type: over.type ?? ETHER.probe },
					probe: { nonce: 12345n, via: over.via },
				},
			},
		},
	});
	test('a probe is answered with the digest of the tables', () => {
		const r = xdp(probe());
		expect(r, 'return_probe', 'tx');
		assert.is(
			r.out,
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 74
				udp 4789 > 41000 no checksum
				vxlan 12509184
				  eth 02:00:00:00:02:02 > 02:00:00:00:01:00
				  probe answer nonce 12345 digest 77 via 0.0.0.0
			`,
		);
	});
	test('a probe in another’s name is answered to the node that it names', () => {
		const r = xdp(probe({ vtep: '10.0.0.4', via: '10.0.0.2' }));
		expect(r, 'return_probe', 'tx');
		assert.match(
			r.out,
			/^eth 02:00:00:00:01:00 > 02:00:00:00:02:02\nip 10\.0\.0\.1 > 10\.0\.0\.2 ttl 64 df len 74\nudp 4789 > 41000/,
		);
		const away = xdp(probe({ vtep: '10.0.0.4', via: '10.1.0.3' }));
		expect(away, 'return_probe', 'redirect');
		assert.match(away.out, /^eth 02:00:00:00:01:01 > 02:00:00:00:02:03\nip 10\.0\.0\.1 > 10\.1\.0\.3/);
		dropped(probe({ via: '10.0.0.77' }), 'drop_malformed');
		dropped(probe({ via: '10.0.0.6' }), 'drop_malformed');
	});
	test('an answer passes to the agent’s socket; a probe from nowhere is dropped; a short one too', () => {
		untouched(probe({ type: ETHER.answer }), 'pass_not_ours');
		dropped(probe({ vtep: '10.0.0.77' }), 'drop_unknown_vtep');
		const bytes = build(probe());
		for (let n = 64; n < bytes.length; n++) assert.is(xdp(bytes.slice(0, n)).verdict, 'drop_malformed');
	});

	test('what the counters say is what the monitor said', async () => {
		using fresh = await World.open();
		fill(fresh);
		const told = new Map<string, { packets: bigint; bytes: bigint }>();
		for (const p of [
			tcp(8080),
			tcp(8080, { data: 100 }),
			tcp(9999),
			tcp(8085),
			udp(54),
			tunnelled('task', tcp(8082)),
			probe(),
		]) {
			const bytes = build(p);
			const r = fresh.run('uplink_xdp', bytes, UP0);
			const c = told.get(r.verdict) ?? { packets: 0n, bytes: 0n };
			told.set(r.verdict, { packets: c.packets + 1n, bytes: c.bytes + BigInt(bytes.length) });
		}
		assert.equal([...fresh.counted('uplink_xdp')].sort(), [...told].sort());
		const { frontends, backends } = fresh.store.counters();
		assert.equal(frontends.get(1), { packets: 2n, bytes: 54n + 154n });
		assert.equal(backends.get(BACKENDS.far), { packets: 2n, bytes: 54n + 154n, newFlows: 0n });
		assert.is(backends.get(BACKENDS.udpTask)?.newFlows, 1n);
	});
	test('xdp.frags does the same', () => {
		for (const p of [tcp(8080), tcp(8082, { six: true }), udp(53), tunnelled('task', tcp(8082)), tcp(9999)]) {
			const a = xdp(p);
			const b = w.run('uplink_xdp_frags', build(p), UP0);
			assert.equal([b.verdict, b.action, b.out, b.mark], [a.verdict, a.action, a.out, a.mark]);
		}
	});

	test.run();
}
