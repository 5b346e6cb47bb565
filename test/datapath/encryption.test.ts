/**
 * overlay_tc and esp_tc on an encrypted network, packet by packet: what goes to the interface that encrypts, and what it gives
 * back. Hosts: world.ts, networks: overlay.ts. That it is ESP on the wire is shown in vm/encryption.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { Node } from '../../src/loader/layout.gen.js';
import { at, FAR, FAR_MAC, fillOverlay, HERE, VNIS } from './overlay.js';
import { build, frame, type Packet } from './packets.js';
import { fill } from './services.js';
import { buildInterfaces, closeInterfaces, insideNetns, MAC, type Ran, UP1, World } from './world.js';

const test = suite('encryption');
let w: World;
/** Stands for the interface that encrypts. */
const ESP = UP1;
const ANY = '02:00:00:00:00:99';
const FAMILIES = [false, true] as const;

function expect(r: Ran, verdict: string, action: string, out?: string): void {
	assert.is(`${r.verdict} ${r.action}`, `${verdict} ${action}`, r.out);
	if (out !== undefined)
		assert.is(r.out.replace(/^udp (4915[2-9]|491[6-9]\d|49[2-9]\d\d|5\d{4}|6\d{4}) > 4789/m, 'udp HASH > 4789'), out);
	assert.not.match(r.out, /bad checksum/);
}

const udp = (from: number, to: number, six = false, more: Partial<Packet> = {}): Packet => ({
	data: 'hello',
	...more,
	ip: { src: at(from, six), dst: at(to, six), ...more.ip },
	udp: { sport: 5000, dport: 7000 },
});
const tcp = (from: number, to: number, six: boolean, data: number): Packet => ({
	ip: { src: at(from, six), dst: at(to, six), ...(six ? {} : { df: true }) },
	tcp: { sport: 5000, dport: 7000, seq: 9 },
	data,
});
const says = (p: Packet, gso = 0): Ran =>
	w.run('overlay_tc', build({ ...p, eth: { src: HERE.e.mac, dst: ANY } }), HERE.e.ifindex, 0, gso);

interface Around {
	readonly vni?: number;
	readonly valid?: boolean;
	readonly port?: number;
	readonly ip?: Partial<NonNullable<Packet['ip']>>;
}
/** What the kernel decrypted: the frame of a node's endpoint in VXLAN. */
const decrypted = (inner: Packet, o: Around = {}): Packet => ({
	eth: { src: MAC.node2, dst: MAC.up0 },
	ip: { src: '10.0.0.2', dst: '10.0.0.1', df: true, ...o.ip },
	udp: {
		sport: 50000,
		dport: o.port ?? 4789,
		vxlan: {
			vni: o.vni ?? VNIS.secret,
			...(o.valid === undefined ? {} : { valid: o.valid }),
			frame: { ...inner, eth: { src: FAR_MAC, dst: ANY, ...inner.eth } },
		},
	},
});
const arrives = (inner: Packet, o: Around = {}): Ran => w.run('esp_tc', build(decrypted(inner, o)), ESP);

if (insideNetns(import.meta.url, 'datapath: encrypted networks')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open();
		fill(w);
		fillOverlay(w);
	});
	test.before.each(() => {
		w.store.encryption.set({ ifindex: ESP });
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	test('what an endpoint sends to another node goes to the interface that encrypts, as VXLAN', () => {
		expect(
			says(udp(2, FAR)),
			'encap_esp',
			'redirect',
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 83
				udp HASH > 4789 no checksum
				vxlan 5003
				  eth 02:42:0a:07:00:02 > 02:99:00:00:00:66
				  ip 10.7.0.2 > 10.7.0.66 ttl 64 len 33
				  udp 5000 > 7000
				  data "hello"
			`,
		);
		expect(
			says(udp(2, FAR, true)),
			'encap_esp',
			'redirect',
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 103
				udp HASH > 4789 no checksum
				vxlan 5003
				  eth 02:42:0a:07:00:02 > 02:99:00:00:00:66
				  ip fd07::2 > fd07::42 ttl 64 len 53
				  udp 5000 > 7000
				  data "hello"
			`,
		);
	});
	test('without such an interface nothing leaves; on the node itself nothing is sent', () => {
		w.store.encryption.set({ ifindex: 0 });
		for (const six of FAMILIES) {
			expect(says(udp(2, FAR, six)), 'drop_plain', 'drop');
			expect(says(udp(2, 3, six)), 'deliver_overlay', 'redirect');
		}
	});
	test('what would not fit once encrypted is refused to the endpoint: 1408 of 1500 bytes are left', () => {
		const node = w.store.nodes.get(2) as Node;
		w.store.nodes.setMany([[2, { ...node, mtu: 1500 }]]);
		for (const six of FAMILIES) {
			const head = six ? 60 : 40;
			expect(says(tcp(2, FAR, six, 1408 - head)), 'encap_esp', 'redirect');
			const r = says(tcp(2, FAR, six, 1409 - head));
			expect(r, 'return_too_big', 'redirect');
			assert.match(r.out, /icmp6? type [23] code [04] mtu 1408/);
			// Many segments in one skb: what counts is one of them.
			expect(says(tcp(2, FAR, six, 3000), 1409 - head), 'return_too_big', 'redirect');
		}
		w.store.nodes.setMany([[2, node]]);
	});
	test('a plain network goes its way', () => {
		const r = w.run('overlay_tc', build({ ...udp(2, FAR), eth: { src: HERE.a.mac, dst: ANY } }), HERE.a.ifindex);
		expect(r, 'encap_overlay', 'redirect');
	});
	test('what was encrypted comes into its endpoint, with the endpoint’s MAC', () => {
		expect(
			arrives(udp(FAR, 2)),
			'deliver_overlay',
			'redirect',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:02
				ip 10.7.0.66 > 10.7.0.2 ttl 64 len 33
				udp 5000 > 7000
				data "hello"
			`,
		);
		expect(
			arrives(udp(FAR, 3, true)),
			'deliver_overlay',
			'redirect',
			frame`
				eth 02:99:00:00:00:66 > 02:42:0a:07:00:03
				ip fd07::42 > fd07::3 ttl 64 len 53
				udp 5000 > 7000
				data "hello"
			`,
		);
		expect(arrives(tcp(FAR, 2, false, 1368)), 'deliver_overlay', 'redirect');
	});
	test('an encrypted packet of a plain network, or of none, is no packet of ours', () => {
		expect(arrives(udp(FAR, 2), { vni: VNIS.red }), 'drop_no_endpoint', 'drop');
		expect(arrives(udp(FAR, 2), { vni: 5999 }), 'drop_no_endpoint', 'drop');
		expect(arrives(udp(FAR, 2), { vni: 12509184 }), 'drop_no_endpoint', 'drop');
	});
	test('only nodes, and not this one, send', () => {
		expect(arrives(udp(FAR, 2), { ip: { src: '10.0.0.77' } }), 'drop_unknown_vtep', 'drop');
		expect(arrives(udp(FAR, 2), { ip: { src: '10.0.0.1' } }), 'drop_unknown_vtep', 'drop');
	});
	test('the inner source must live on the node that encrypted it', () => {
		for (const six of FAMILIES) {
			expect(arrives(udp(FAR, 2, six), { ip: { src: '10.1.0.3' } }), 'drop_spoofed', 'drop');
			expect(arrives(udp(3, 2, six)), 'drop_spoofed', 'drop');
			expect(arrives(udp(99, 2, six)), 'drop_spoofed', 'drop');
		}
	});
	test('addresses that nobody here has, and groups', () => {
		for (const six of FAMILIES) expect(arrives(udp(FAR, 44, six)), 'drop_no_endpoint', 'drop');
		expect(arrives(udp(FAR, FAR)), 'drop_no_endpoint', 'drop');
		expect(arrives({ ...udp(FAR, 2), ip: { src: at(FAR), dst: '224.0.0.1' } }), 'drop_flood', 'drop');
		expect(arrives({ ...udp(FAR, 2, true), ip: { src: at(FAR, true), dst: 'ff02::1' } }), 'drop_flood', 'drop');
		expect(
			arrives({ arp: { operation: 'request', sender: at(FAR), senderMac: FAR_MAC, target: at(2) } }),
			'drop_flood',
			'drop',
		);
	});
	test('headers that are not as nodes write them', () => {
		expect(arrives(udp(FAR, 2), { port: 4790 }), 'drop_malformed', 'drop');
		expect(arrives(udp(FAR, 2), { valid: false }), 'drop_malformed', 'drop');
		expect(arrives(udp(FAR, 2), { ip: { dst: '10.0.0.9' } }), 'drop_malformed', 'drop');
		expect(arrives(udp(FAR, 2), { ip: { options: 4 } }), 'drop_malformed', 'drop');
		expect(arrives(udp(FAR, 2), { ip: { more: true } }), 'drop_malformed', 'drop');
		expect(arrives(udp(FAR, 2), { ip: { offset: 8 } }), 'drop_malformed', 'drop');
		const eth = { src: MAC.node2, dst: MAC.up0 };
		const ip = { src: '10.0.0.2', dst: '10.0.0.1' };
		expect(
			w.run('esp_tc', build({ eth, ip, tcp: { sport: 1, dport: 4789 }, data: 60 }), ESP),
			'drop_malformed',
			'drop',
		);
		expect(
			w.run(
				'esp_tc',
				build({ eth, ip: { src: 'fd00::2', dst: 'fd00::1' }, udp: { sport: 1, dport: 4789 }, data: 60 }),
				ESP,
			),
			'drop_malformed',
			'drop',
		);
		const whole = build(decrypted(udp(FAR, 2)));
		for (const length of [14 + 20, 14 + 49, 14 + 50, 14 + 50 + 19, 14 + 50 + 20 + 7])
			expect(w.run('esp_tc', whole.slice(0, length), ESP), 'drop_malformed', 'drop');
	});
	test.run();
}
