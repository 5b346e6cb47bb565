/**
 * endpoint_tc and uplink_tc_egress, packet by packet: replies of tasks and of the node's own processes, on their way back by
 * tunnel, straight to the client, or through this node. Each flow enters through uplink_xdp first. Hosts: world.ts.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type Revnat, type RevnatKey, RevnatState, SettingsFlag } from '../../src/loader/layout.gen.js';
import { build, fragments, frame, type Packet, print } from './packets.js';
import { BACKENDS, type BackendName, fill, macOf, SERVICES, type ServiceName } from './services.js';
import { buildInterfaces, closeInterfaces, EP0, insideNetns, MAC, type Ran, UP0, UP1, VNI, World } from './world.js';

const test = suite('replies');
let w: World;
let nextPort = 20000;
const C4 = '192.0.2.9';
const C6 = 'fd09::9';
const SYN = { flags: 'syn', seq: 1000 };
const SYN_ACK = { flags: 'syn ack', seq: 5000, ack: 1001 };
const ACK = { flags: 'ack', seq: 1001, ack: 5001 };

/** VTEPs of the nodes by number. */
const NODES: Readonly<Record<number, string>> = { 2: '10.0.0.2', 4: '10.0.0.4', 5: '10.0.0.5' };

interface Flow {
	readonly port: number;
	/** What the endpoint saw of the last client's packet. */
	seen: string;
	readonly client: (l4: object, more?: Partial<Packet>) => Ran;
	readonly endpoint: (l4: object, more?: Partial<Packet>) => Ran;
	readonly row: () => { map: string; key: RevnatKey; row: Revnat } | undefined;
}
/** A flow to a service; `node`: where it entered the mesh, this one by default. */
function flow(
	service: ServiceName,
	backend: BackendName,
	o: { six?: boolean; node?: number; port?: number; proto?: 'tcp' | 'udp'; target?: number; process?: boolean } = {},
): Flow {
	const { six = false, node, proto = 'tcp', process: own = false } = o;
	const port = o.port ?? nextPort++;
	const published = SERVICES[service].port;
	const target = o.target ?? 80;
	const task = own ? (six ? 'fd00::1' : '10.0.0.1') : six ? 'fd18::2' : '172.18.0.2';
	const f: Flow = {
		port,
		seen: '',
		client(l4, more) {
			const p: Packet = {
				eth: { src: MAC.router, dst: MAC.up0 },
				...more,
				ip: { src: six ? C6 : C4, dst: six ? 'fd00::1' : '10.0.0.1', ...more?.ip },
				[proto]: { sport: port, dport: published, ...l4 },
			};
			const packet: Packet =
				node === undefined
					? p
					: {
							eth: { src: MAC.node2, dst: MAC.up0 },
							ip: { src: NODES[node], dst: '10.0.0.1' },
							udp: {
								sport: 50000,
								dport: 4789,
								vxlan: { vni: VNI, frame: { ...p, eth: { src: '06:00:0a:00:00:02', dst: macOf(backend) } } },
							},
						};
			const r = w.run('uplink_xdp', build(packet), UP0);
			assert.match(r.verdict, /^deliver/, r.out);
			f.seen = r.out;
			return r;
		},
		endpoint(l4, more) {
			const seen = /^(?:tcp|udp) (\d+) >/m.exec(f.seen);
			const dport = seen ? Number(seen[1]) : port;
			const p: Packet = {
				eth: { src: MAC.endpoint, dst: MAC.gateway },
				...more,
				ip: { src: task, dst: six ? C6 : C4, ...(six ? {} : { df: true }), ...more?.ip },
				[proto]: { sport: target, dport, ...l4 },
			};
			return own ? w.run('uplink_tc_egress', build(p), UP0) : w.run('endpoint_tc', build(p), EP0);
		},
		row() {
			for (const map of ['revnat', 'revnat_new'])
				for (const [key, row] of w.map<RevnatKey, Revnat>(map).entries())
					if (row.client_port === port && row.port === published) return { map, key, row };
			return undefined;
		},
	};
	return f;
}
const stateOf = (f: Flow): string => {
	const r = f.row();
	const name = Object.entries(RevnatState).find(([, n]) => n === r?.row.state)?.[0];
	return r ? `${r.map} ${name}` : 'none';
};
function expect(r: Ran, verdict: string, action: string): void {
	assert.is(`${r.verdict} ${r.action}`, `${verdict} ${action}`, r.out);
	assert.not.match(r.out, /bad checksum/);
}
const anyPort = (text: string): string => text.replace(/^udp \d+ > 4789/m, 'udp HASH > 4789');

if (insideNetns(import.meta.url, 'datapath: replies')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open();
		fill(w);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	test('by tunnel: the reply of its frontend, whole, to the node that the flow entered', () => {
		const f = flow('taskTunnel', 'taskTunnel', { node: 2, target: 81, port: 41000 });
		f.client(SYN);
		const r = f.endpoint(ACK, { data: 'answer' });
		expect(r, 'return_encap', 'redirect');
		assert.is(
			anyPort(r.out),
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 96
				udp HASH > 4789 no checksum
				vxlan 12509184
				  eth 06:00:0a:00:00:01 > 0a:00:00:00:00:00
				  ip 10.0.0.1 > 192.0.2.9 ttl 64 df len 46
				  tcp 8097 > 41000 ack seq 1001 ack 5001 win 65535
				  data "answer"
			`,
		);
		const g = flow('taskTunnel', 'taskTunnel', { node: 2, target: 81, port: 41000, six: true });
		g.client(SYN);
		const six = g.endpoint(ACK);
		expect(six, 'return_encap', 'redirect');
		assert.match(
			six.out,
			/vxlan 12509184\n {2}eth 06:00:0a:00:00:01 > 0a:00:00:00:00:00\n {2}ip fd00::1 > fd09::9 ttl 64 len 60\n {2}tcp 8097 > 41000 ack/,
		);
	});
	test('straight to the client: where the service wants it, or the pair is proven', () => {
		for (const six of [false, true]) {
			const f = flow('taskDsr', 'taskDsr', { node: 2, target: 82, six });
			f.client(SYN);
			const r = f.endpoint(ACK, { data: 'answer' });
			expect(r, 'return_client_dsr', 'redirect');
			assert.match(
				r.out,
				six
					? /^eth .*\nip fd00::1 > fd09::9 ttl 64 len 66\n/
					: /^eth .*\nip 10\.0\.0\.1 > 192\.0\.2\.9 ttl 64 df len 46\n/,
			);
			assert.match(r.out, new RegExp(`tcp 8098 > ${f.port} ack seq 1001 ack 5001 win 65535\ndata "answer"$`));
			const proven = flow('local', 'task', { node: 4, six });
			proven.client(SYN);
			expect(proven.endpoint(ACK), 'return_client_dsr', 'redirect');
			const unproven = flow('local', 'task', { node: 2, six });
			unproven.client(SYN);
			expect(unproven.endpoint(ACK), 'return_encap', 'redirect');
		}
	});
	test('a flow that entered here goes straight back', () => {
		const f = flow('local', 'task');
		f.client(SYN);
		const r = f.endpoint(SYN_ACK);
		expect(r, 'return_client_local', 'redirect');
		assert.match(r.out, /ip 10\.0\.0\.1 > 192\.0\.2\.9 .*\ntcp 8082 > \d+ syn ack seq 5000 ack 1001 win 65535$/);
		assert.is(r.event.ref, BACKENDS.task);
	});
	test('UDP, without a checksum too, and IPv6', () => {
		for (const six of [false, true]) {
			const f = flow('dnsLocal', 'udpTask', { six, proto: 'udp', target: 5353, node: 2 });
			f.client({}, { data: 'q' });
			const r = f.endpoint({}, { data: 'answer' });
			expect(r, 'return_encap', 'redirect');
			assert.match(r.out, new RegExp(` {2}udp 54 > ${f.port}\n {2}data "answer"$`));
			if (!six) assert.match(f.endpoint({ checksum: false }, { data: 'x' }).out, / {2}udp 54 > \d+ no checksum\n/);
		}
	});
	test('a process on the node: rewritten where it leaves', () => {
		for (const six of [false, true]) {
			const f = flow('process', 'process', { process: true, target: 9000, six });
			f.client(SYN);
			const r = f.endpoint(SYN_ACK);
			expect(r, 'return_client_local', 'continue');
			assert.match(r.out, /\ntcp 8083 > \d+ syn ack/);
			const far = flow('process', 'process', { process: true, target: 9000, six, node: 2 });
			far.client(SYN);
			const t = far.endpoint(SYN_ACK);
			expect(t, 'return_encap', 'redirect');
			assert.match(t.out, /\n {2}tcp 8083 > \d+ syn ack/);
		}
		const u = flow('dnsProcess', 'udpProcess', { process: true, target: 9001, proto: 'udp' });
		u.client({}, { data: 'q' });
		expect(u.endpoint({}, { data: 'a' }), 'return_client_local', 'continue');
	});
	test('what answers no flow leaves as it came', () => {
		const eth = { src: MAC.endpoint, dst: MAC.gateway };
		for (const [p, verdict] of [
			[
				{ eth, ip: { src: '172.18.0.2', dst: '203.0.113.5' }, tcp: { sport: 50000, dport: 443, flags: 'syn' } },
				'pass_no_revnat',
			],
			[
				{ eth, ip: { src: 'fd18::2', dst: '2001:db8::1' }, udp: { sport: 50000, dport: 443 }, data: 9 },
				'pass_no_revnat',
			],
			[{ eth, ip: { src: '172.18.0.2', dst: '203.0.113.5' }, icmp: { type: 8 }, data: 56 }, 'pass_not_ours'],
			[{ eth, ip: { src: 'fd18::2', dst: 'ff02::1', ttl: 255 }, icmp: { type: 136 }, data: 24 }, 'pass_not_ours'],
			[
				{
					eth,
					ip: { src: '172.18.0.2', dst: '203.0.113.5' },
					icmp: {
						type: 3,
						code: 3,
						about: { ip: { src: '203.0.113.5', dst: '172.18.0.2' }, udp: { sport: 1, dport: 2 } },
					},
				},
				'pass_not_ours',
			],
			[
				{ eth, ip: { src: '172.18.0.2', dst: '203.0.113.5', id: 6, offset: 256, protocol: 17 }, data: 99 },
				'pass_not_ours',
			],
			[{ eth, data: 28 }, 'pass_not_ours'],
		] as [Packet, string][]) {
			const bytes = build(p);
			const r = w.run('endpoint_tc', bytes, EP0);
			expect(r, verdict, 'continue');
			assert.equal(r.bytes, bytes);
		}
		const direct = build({ eth, ip: { src: '10.0.0.1', dst: C4 }, tcp: { sport: 9000, dport: 50001 } });
		expect(w.run('uplink_tc_egress', direct, UP0), 'pass_no_revnat', 'continue');
		const other = build({ eth, ip: { src: '10.0.0.1', dst: C4 }, tcp: { sport: 22, dport: 50001 } });
		expect(w.run('uplink_tc_egress', other, UP0), 'pass_not_ours', 'continue');
	});

	test('source ports of what leaves by an uplink are noted, while that is wanted', () => {
		const sent = (over: Packet, ifindex = UP0, gso = 0) => {
			const p = build({ eth: { src: MAC.up0, dst: MAC.gateway }, ip: { src: '10.0.0.1', dst: C4 }, ...over });
			assert.is(w.run('uplink_tc_egress', p, ifindex, 0, gso).action, 'continue');
			const noted = [...w.store.sourcePorts.entries()].map(([port]) => port);
			w.store.sourcePorts.deleteMany(noted);
			return noted;
		};
		const syn = (sport: number): Packet => ({ tcp: { sport, dport: 443, flags: 'syn' } });
		assert.equal(sent(syn(8080)), [], 'nobody wants to know');
		const settings = w.store.settings.get();
		for (const others of [0, SettingsFlag.SETTINGS_PROCESSES]) {
			w.store.settings.set({
				...settings,
				flags: SettingsFlag.SETTINGS_TRACE | SettingsFlag.SETTINGS_WATCH_SOURCES | others,
			});
			assert.equal(sent(syn(8080)), [8080]);
			assert.equal(sent(syn(65535), UP1), [65535]);
			assert.equal(sent({ ip: { src: 'fd00::1', dst: C6 }, ...syn(40000) }), [40000]);
			assert.equal(sent(syn(8080), EP0), [], 'no uplink');
			for (const flags of ['syn ack', 'ack', 'fin ack', 'rst'])
				assert.equal(sent({ tcp: { sport: 8080, dport: 443, flags } }), [], flags);
			const datagram: Packet = { udp: { sport: 8080, dport: 443 }, data: 30 };
			assert.equal(sent(datagram), [(1 << 16) | 8080]);
			assert.equal(sent({ ...datagram, data: 90 }, UP0, 30), [(1 << 16) | 8080], 'many segments');
			assert.equal(sent(datagram, EP0), []);
		}
		w.store.settings.set(settings);
	});

	// --- revnat

	test('one client port through several frontends: stand-in ports, restored on the way back', () => {
		for (const six of [false, true]) {
			const port = nextPort++;
			const flows = (six ? (['local', 'second'] as const) : (['local', 'second', 'fourth'] as const)).map((s) =>
				flow(s, 'task', { port, six }),
			);
			const ports = flows.map((f) => {
				f.client(SYN);
				return Number(/^tcp (\d+) > 80 syn/m.exec(f.seen)?.[1]);
			});
			assert.is(ports[0], port);
			assert.is(new Set(ports).size, flows.length, 'each its own');
			for (const p of ports) assert.ok(p >= 1024);
			for (const [i, f] of flows.entries()) {
				const r = f.endpoint(SYN_ACK);
				expect(r, 'return_client_local', 'redirect');
				assert.match(r.out, new RegExp(`tcp ${[8082, 8099, 8103, 8104][i]} > ${port} syn ack`));
				f.client(ACK);
				assert.match(f.seen, new RegExp(`^tcp ${ports[i]} > 80 ack`, 'm'), 'and the same again');
			}
			if (six) continue;
			// One of them ends. Its place is not for the next: the task may still wait for the last ACK.
			flows[0].client({ flags: 'rst', seq: 1001 });
			const soon = flow('fifth', 'task', { port });
			soon.client(SYN);
			assert.not.match(soon.seen, new RegExp(`^tcp (${ports.join('|')}) > 80 syn`, 'm'));
			assert.match(soon.endpoint(SYN_ACK).out, new RegExp(`tcp 8104 > ${port} syn ack`));
			// After a minute it is.
			const closed = flows[0].row();
			assert.ok(closed);
			w.map<RevnatKey, Revnat>(closed.map).set(closed.key, { ...closed.row, used_ns: 1n });
			const later = flow('sixth', 'task', { port });
			later.client(SYN);
			assert.match(later.seen, new RegExp(`^tcp ${port} > 80 syn`, 'm'));
			assert.match(later.endpoint(SYN_ACK).out, new RegExp(`tcp 8105 > ${port} syn ack`));
		}
	});
	test('TCP is promoted by an ACK that answers the SYN-ACK; a wrong one is not enough', () => {
		const f = flow('local', 'task');
		f.client(SYN);
		assert.is(stateOf(f), 'revnat_new REVNAT_NEW');
		f.client({ ...ACK, ack: 1 });
		assert.is(stateOf(f), 'revnat_new REVNAT_NEW');
		f.endpoint(SYN_ACK);
		assert.is(stateOf(f), 'revnat_new REVNAT_REPLIED');
		f.client({ ...ACK, ack: 77 });
		assert.is(stateOf(f), 'revnat_new REVNAT_REPLIED');
		f.client(ACK);
		assert.is(stateOf(f), 'revnat REVNAT_PROMOTED');
		f.client({ ...ACK, flags: 'fin ack' });
		assert.is(stateOf(f), 'revnat REVNAT_PROMOTED');
		f.endpoint({ flags: 'fin ack', seq: 5001, ack: 1002 });
		assert.is(stateOf(f), 'revnat REVNAT_CLOSING');
		expect(f.endpoint(ACK), 'return_client_local', 'redirect');
		f.client(SYN);
		assert.is(stateOf(f), 'revnat REVNAT_PROMOTED');
		f.endpoint({ flags: 'rst', seq: 1 });
		assert.is(stateOf(f), 'revnat REVNAT_CLOSING');
	});
	test('UDP is promoted by the client’s packet after a reply; a flow without its SYN by a reply that is no RST', () => {
		const u = flow('dnsLocal', 'udpTask', { proto: 'udp', target: 5353 });
		u.client({}, { data: 'a' });
		u.client({}, { data: 'b' });
		assert.is(stateOf(u), 'revnat_new REVNAT_NEW');
		u.endpoint({}, { data: 'c' });
		assert.is(stateOf(u), 'revnat_new REVNAT_REPLIED');
		u.client({}, { data: 'd' });
		assert.is(stateOf(u), 'revnat REVNAT_PROMOTED');
		const f = flow('local', 'task');
		f.client(ACK);
		assert.is(stateOf(f), 'revnat_new REVNAT_NEW');
		f.endpoint(ACK);
		assert.is(stateOf(f), 'revnat REVNAT_PROMOTED');
		const g = flow('local', 'task');
		g.client(ACK);
		g.endpoint({ flags: 'rst', seq: 1 });
		assert.is(stateOf(g), 'revnat_new REVNAT_CLOSING');
	});
	test('a client that comes in through another node is answered through that', () => {
		const port = nextPort++;
		flow('taskTunnel', 'taskTunnel', { node: 2, port, target: 81 }).client(SYN);
		const moved = flow('taskTunnel', 'taskTunnel', { node: 4, port, target: 81 });
		moved.client(ACK);
		assert.match(moved.endpoint(ACK).out, /ip 10\.0\.0\.1 > 10\.0\.0\.4 /);
	});
	test('a direct dial of a process’ port passes, and gets a stand-in where a flow of the mesh has its port', () => {
		const dial = (port: number, l4: object) =>
			w.run(
				'uplink_xdp',
				build({
					eth: { src: MAC.router, dst: MAC.up0 },
					ip: { src: C4, dst: '10.0.0.1' },
					tcp: { sport: port, dport: 9000, ...l4 },
				}),
				UP0,
			);
		const port = nextPort++;
		assert.equal([dial(port, SYN).verdict, dial(port, ACK).verdict], ['pass_direct', 'pass_direct']);
		const f = flow('process', 'process', { process: true, target: 9000 });
		f.client(SYN);
		const r = dial(f.port, SYN);
		assert.is(r.verdict, 'deliver_local_process');
		const stand = Number(/^tcp (\d+) > 9000 syn/m.exec(r.out)?.[1]);
		assert.is.not(stand, f.port);
		const back = w.run(
			'uplink_tc_egress',
			build({
				eth: { src: MAC.up0, dst: MAC.router },
				ip: { src: '10.0.0.1', dst: C4 },
				tcp: { sport: 9000, dport: stand, ...SYN_ACK },
			}),
			UP0,
		);
		expect(back, 'return_client_local', 'continue');
		assert.match(back.out, new RegExp(`ip 10\\.0\\.0\\.1 > 192\\.0\\.2\\.9 .*\ntcp 9000 > ${f.port} syn ack`));
		assert.match(f.endpoint(SYN_ACK).out, new RegExp(`tcp 8083 > ${f.port} syn ack`));
	});

	// --- sizes

	test('a SYN-ACK to another node offers what fits a tunnel, by whatever way it goes', () => {
		for (const [service, backend, target] of [
			['local', 'task', 80],
			['taskDsr', 'taskDsr', 82],
		] as const)
			for (const options of [
				[{ mss: 1460 }],
				['nop', { mss: 1460 }],
				['nop', 'nop', 'nop', { mss: 1460 }, 'timestamps'],
			] as const) {
				const f = flow(service, backend, { node: 5, target });
				f.client(SYN);
				const r = f.endpoint({ ...SYN_ACK, options });
				assert.match(r.out, /mss 1360/);
				assert.not.match(r.out, /bad checksum/);
				assert.match(f.endpoint({ ...ACK, options }).out, /mss 1460/);
			}
		const here = flow('local', 'task');
		here.client(SYN);
		assert.match(here.endpoint({ ...SYN_ACK, options: [{ mss: 1460 }] }).out, /mss 1460/);
		const six = flow('local', 'task', { node: 5, six: true });
		six.client(SYN);
		assert.match(six.endpoint({ ...SYN_ACK, options: ['nop', { mss: 1440 }] }).out, /mss 1340/);
	});
	test('a SYN-ACK offers no more than the ingress network’s MTU, and no longer reply goes by tunnel', () => {
		const mtu = (mesh_mtu: number) => w.store.settings.set({ ...w.store.settings.get(), mesh_mtu });
		mtu(1200);
		try {
			for (const [service, backend, target, node] of [
				['local', 'task', 80, undefined],
				['local', 'task', 80, 2],
				['local', 'task', 80, 5],
				['taskDsr', 'taskDsr', 82, 2],
			] as const)
				for (const six of service === 'local' ? [false, true] : [false]) {
					const f = flow(service, backend, { target, six, ...(node === undefined ? {} : { node }) });
					f.client(SYN);
					const r = f.endpoint({ ...SYN_ACK, options: ['nop', { mss: 1440 }] });
					assert.match(r.out, six ? /mss 1090/ : /mss 1110/, `${service} ${String(node)}`);
					assert.not.match(r.out, /bad checksum/);
					assert.match(f.endpoint({ ...SYN_ACK, options: [{ mss: 900 }] }).out, /mss 900/);
				}
			const f = flow('local', 'task', { node: 2 });
			f.client(SYN);
			expect(f.endpoint(ACK, { data: 1110 }), 'return_encap', 'redirect');
			const r = f.endpoint(ACK, { data: 1111 });
			expect(r, 'return_too_big', 'redirect');
			assert.match(r.out, /icmp type 3 code 4 mtu 1150/);
		} finally {
			mtu(0);
		}
	});
	test('a reply too big for its tunnel: the task is told, in its own words', () => {
		const f = flow('local', 'task', { node: 5 });
		f.client(SYN);
		const r = f.endpoint(ACK, { data: 1361 });
		expect(r, 'return_too_big', 'redirect');
		assert.match(
			r.out,
			new RegExp(
				`^eth 02:42:ac:12:00:01 > 02:42:ac:12:00:02\nip 192\\.0\\.2\\.9 > 172\\.18\\.0\\.2 ttl 64 df len 156\nicmp type 3 code 4 mtu 1400\n {2}about ip 172\\.18\\.0\\.2 > 192\\.0\\.2\\.9 ttl 64 df len 1401\n {2}about tcp 80 > ${f.port} ack`,
			),
		);
		expect(f.endpoint(ACK, { data: 1360 }), 'return_encap', 'redirect');
		const g = flow('local', 'task', { node: 5, six: true });
		g.client(SYN);
		const six = g.endpoint(ACK, { data: 1341 });
		expect(six, 'return_too_big', 'redirect');
		assert.match(
			six.out,
			/ip fd09::9 > fd18::2 ttl 64 len 304\nicmp6 type 2 code 0 mtu 1400\n {2}about ip fd18::2 > fd09::9 ttl 64 len 1401/,
		);
	});
	test('a datagram too big for its tunnel that may be fragmented goes in two, with its checksum', () => {
		const f = flow('dnsLocal', 'udpTask', { node: 5, proto: 'udp', target: 5353 });
		f.client({}, { data: 'q' });
		const r = f.endpoint({}, { data: 1400, ip: { src: '172.18.0.2', dst: C4, df: false, id: 44 } });
		expect(r, 'return_fragmented', 'redirect');
		assert.match(r.out, /\n {2}ip 10\.0\.0\.1 > 192\.0\.2\.9 ttl 64 id 44 more len 1396\n {2}udp 54 > \d+ len 1408\n/);
	});
	test('later fragments of a reply follow the first', () => {
		for (const six of [false, true]) {
			const f = flow('dnsLocal', 'udpTask', { node: 2, proto: 'udp', target: 5353, six });
			f.client({}, { data: 'q' });
			const whole: Packet = {
				eth: { src: MAC.endpoint, dst: MAC.gateway },
				ip: { src: six ? 'fd18::2' : '172.18.0.2', dst: six ? C6 : C4 },
				udp: { sport: 5353, dport: f.port },
				data: 600,
			};
			const [first, second] = fragments(whole, six ? 91 : 90, 304);
			const one = w.run('endpoint_tc', build(first), EP0);
			const two = w.run('endpoint_tc', build(second), EP0);
			expect(one, 'return_encap', 'redirect');
			expect(two, 'return_encap', 'redirect');
			assert.is(two.event.ref, BACKENDS.udpTask);
			const src = six ? 'fd00::1' : '10.0.0.1';
			const expected = print(build({ ...second, ip: { ...(second.ip as NonNullable<Packet['ip']>), src } }));
			assert.is(
				two.out
					.split('\n')
					.slice(5)
					.map((l) => l.slice(2))
					.join('\n'),
				expected.split('\n').slice(1).join('\n'),
			);
			// Together they are the datagram as its frontend would have sent it.
			const head = six ? 62 : 34;
			const data = Uint8Array.from([...one.bytes.slice(50 + head), ...two.bytes.slice(50 + head)]);
			const again = print(build({ eth: whole.eth, ip: { src, dst: six ? C6 : C4, protocol: 17 }, data }));
			assert.match(again, new RegExp(`udp 54 > ${f.port}\n`));
			assert.not.match(again, /bad checksum/);
		}
	});
	test('an ICMP error of a task speaks of what the client sent', () => {
		for (const six of [false, true]) {
			const f = flow('dnsLocal', 'udpTask', { node: 2, proto: 'udp', target: 5353, six });
			f.client({}, { data: 'q' });
			const task = six ? 'fd18::2' : '172.18.0.2';
			const client = six ? C6 : C4;
			const r = w.run(
				'endpoint_tc',
				build({
					eth: { src: MAC.endpoint, dst: MAC.gateway },
					ip: { src: task, dst: client },
					icmp: {
						type: six ? 1 : 3,
						code: six ? 4 : 3,
						about: { ip: { src: client, dst: task, ttl: 60 }, udp: { sport: f.port, dport: 5353 }, data: 'q' },
					},
				}),
				EP0,
			);
			expect(r, 'return_encap', 'redirect');
			const own = six ? 'fd00::1' : '10.0.0.1';
			assert.match(
				r.out,
				new RegExp(
					`\n {2}ip ${own} > ${client} .*\n {2}icmp6? type [13] code [34]\n {4}about ip ${client} > ${own} ttl 60 len \\d+\n {4}about udp ${f.port} > 54\n`,
				),
			);
		}
	});
	test('what our own programs marked is not looked at again', () => {
		const f = flow('process', 'process', { process: true, target: 9000 });
		f.client(SYN);
		const p = build({
			eth: { src: MAC.up0, dst: MAC.router },
			ip: { src: '10.0.0.1', dst: C4 },
			tcp: { sport: 9000, dport: f.port, ...SYN_ACK },
		});
		expect(w.run('uplink_tc_egress', p, UP0, w.store.settings.get().mark), 'pass_not_ours', 'continue');
		expect(w.run('uplink_tc_egress', p, UP0), 'return_client_local', 'continue');
		expect(w.run('uplink_tc', p, UP0), 'pass_unmarked', 'continue');
	});
	test('a reply whose ingress node has no next hop is dropped', () => {
		const f = flow('local', 'task', { node: 2 });
		f.client(SYN);
		const n = w.store.nodes.get(2);
		if (!n) throw new Error('node 2 has no row');
		w.store.nodes.setMany([[2, { ...n, flags: 0 }]]);
		assert.is(f.endpoint(ACK).verdict, 'drop_no_next_hop');
		w.store.nodes.setMany([[2, n]]);
	});

	test.run();
}
