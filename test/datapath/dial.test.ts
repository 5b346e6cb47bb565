/**
 * Clients that an endpoint is on-link with, and tasks that dial (docs/decisions/0006), packet by packet: uplink_xdp and
 * endpoint_tc for the former, gateway_tc for the latter. Hosts: world.ts; endpoints see 172.18.0.1 and fd18::1 as their gateway.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { LocalFlag, type Revnat, type RevnatKey, revnatCodec, revnatKeyCodec } from '../../src/loader/layout.gen.js';
import { build, fragments, frame, type Packet, print } from './packets.js';
import { BACKENDS, fill, macOf } from './services.js';
import { buildInterfaces, closeInterfaces, EP0, insideNetns, MAC, type Ran, UP0, VNI, World } from './world.js';

const test = suite('dials');
let w: World;
let nextPort = 21000;
const SYN = { flags: 'syn', seq: 1000 };
const ACK = { flags: 'ack', seq: 1001, ack: 5001 };
const FAMILIES = [false, true] as const;
const GATEWAY = (six: boolean) => (six ? 'fd18::1' : '172.18.0.1');
const TASK = (six: boolean) => (six ? 'fd18::2' : '172.18.0.2');
const OWN = (six: boolean) => (six ? 'fd00::1' : '10.0.0.1');
/** A client on the LAN, inside the endpoints' subnet. */
const GUEST = (six: boolean) => (six ? 'fd18::7:7' : '172.18.7.7');

const fromUplink = (p: Packet): Ran =>
	w.run('uplink_xdp', build({ ...p, eth: { src: MAC.router, dst: MAC.up0 } }), UP0);
const fromTask = (p: Packet, program: 'endpoint_tc' | 'gateway_tc' = 'gateway_tc'): Ran =>
	w.run(program, build({ ...p, eth: { src: MAC.endpoint, dst: MAC.gateway } }), EP0);
/** As another node would send it: the inner MAC names the backend. */
const tunnelled = (p: Packet, backend: keyof typeof BACKENDS, node = '10.0.0.2'): Ran =>
	w.run(
		'uplink_xdp',
		build({
			eth: { src: MAC.node2, dst: MAC.up0 },
			ip: { src: node, dst: '10.0.0.1' },
			udp: {
				sport: 50000,
				dport: 4789,
				vxlan: { vni: VNI, frame: { ...p, eth: { src: '06:00:0a:00:00:02', dst: macOf(backend) } } },
			},
		}),
		UP0,
	);

function expect(r: Ran, verdict: string, action: string): void {
	assert.is(`${r.verdict} ${r.action}`, `${verdict} ${action}`, r.out);
	assert.not.match(r.out, /bad checksum/);
}
/** Source port of a packet to `port`. */
function sourcePort(r: Ran, port: number): number {
	const m = new RegExp(`(?:tcp|udp) (\\d+) > ${port}\\b`).exec(r.out);
	assert.ok(m, r.out);
	return Number(m[1]);
}
const isStandIn = (port: number) => port >= 1024 && port < 1024 + 31744;
/** Records of flows whose client's own port is `port`. */
function rows(port: number): { key: RevnatKey; row: Revnat }[] {
	const out: { key: RevnatKey; row: Revnat }[] = [];
	const view = (b: Uint8Array) => new DataView(b.buffer, b.byteOffset, b.byteLength);
	for (const name of ['revnat', 'revnat_new']) {
		const { raw } = w.map(name);
		const k = new Uint8Array(revnatKeyCodec.size);
		const v = new Uint8Array(revnatCodec.size);
		for (let more = raw.nextKey(null, k); more; more = raw.nextKey(k.slice(), k)) {
			if (!raw.lookup(k, v)) continue;
			const row = revnatCodec.decode(view(v), 0);
			if (row.client_port === port) out.push({ key: revnatKeyCodec.decode(view(k), 0), row });
		}
	}
	return out;
}

if (insideNetns(import.meta.url, 'datapath: dials')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open();
		fill(w);
		const shown = { ifindex: 0, first_port: 1024, port_count: 31744 };
		const out = { first_port: 0, port_count: 0, ifindex: UP0 };
		w.store.onLink.setMany([
			[
				{ list: EP0, prefix: '172.18.0.0/16' },
				{ ...shown, gateway: '172.18.0.1' },
			],
			[
				{ list: EP0, prefix: 'fd18::/64' },
				{ ...shown, gateway: 'fd18::1' },
			],
			[
				{ list: EP0, prefix: '10.77.1.0/24' },
				{ ...shown, gateway: '172.18.0.1' },
			],
			[
				{ list: 0, prefix: '172.18.0.0/16' },
				{ ...out, gateway: '10.0.0.254' },
			],
			[
				{ list: 0, prefix: 'fd18::/64' },
				{ ...out, gateway: 'fd00::fe' },
			],
		]);
		for (const name of ['task', 'udpTask', 'taskTunnel', 'taskDsr'] as const) {
			const row = w.store.localBackends.get(macOf(name));
			if (!row) throw new Error(`${name} has no row`);
			w.store.localBackends.setMany([[macOf(name), { ...row, flags: LocalFlag.LOCAL_ON_LINK }]]);
		}
		// A list that admits this node, as what its tasks dial is asked for.
		w.store.allow.setMany([
			[{ acl: 1, prefix: '10.0.0.1/32' }, 1],
			[{ acl: 1, prefix: 'fd00::1/128' }, 1],
		]);
		w.store.deny.setMany([[{ acl: 2, prefix: '10.0.0.1/32' }, 1]]);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	test('a client inside the endpoint’s subnet is shown as the gateway, and its reply is its frontend’s', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const r = fromUplink({ ip: { src: GUEST(six), dst: OWN(six) }, tcp: { sport: port, dport: 8082, ...SYN } });
			expect(r, 'deliver_on_link', 'pass');
			assert.is(r.mark, `peer ${EP0}`);
			const c = sourcePort(r, 80);
			assert.ok(isStandIn(c), `${c} is a port that the node's own dials do not use`);
			assert.match(r.out, new RegExp(`ip ${GATEWAY(six)} > ${TASK(six)} ttl 64 .*\ntcp ${c} > 80 syn seq 1000 `));
			const again = fromUplink({ ip: { src: GUEST(six), dst: OWN(six) }, tcp: { sport: port, dport: 8082, ...ACK } });
			assert.is(sourcePort(again, 80), c);
			const back = fromTask(
				{ ip: { src: TASK(six), dst: GATEWAY(six), df: !six }, tcp: { sport: 80, dport: c, ...ACK }, data: 'a' },
				'endpoint_tc',
			);
			expect(back, 'return_client_local', 'redirect');
			assert.match(back.out, new RegExp(`ip ${OWN(six)} > ${GUEST(six)} .*\ntcp 8082 > ${port} ack`));
			assert.equal(
				rows(port).map(({ key, row }) => [key.client, row.client, row.inside]),
				[[GATEWAY(six), GUEST(six), 0]],
			);
		}
	});
	test('so is one inside another network of the endpoint; one outside is not', () => {
		const port = nextPort++;
		const dial = (src: string) =>
			fromUplink({ ip: { src, dst: '10.0.0.1' }, tcp: { sport: port, dport: 8082, ...SYN } });
		expect(dial('10.77.1.9'), 'deliver_on_link', 'pass');
		const r = dial('10.77.2.9');
		expect(r, 'deliver_endpoint', 'pass');
		assert.match(r.out, new RegExp(`ip 10\\.77\\.2\\.9 > 172\\.18\\.0\\.2 .*\ntcp ${port} > 80 `));
	});
	test('clients that share a port get stand-ins of their own', () => {
		const seen = new Set<number>();
		for (let i = 1; i <= 50; i++)
			seen.add(
				sourcePort(
					fromUplink({ ip: { src: `172.18.8.${i}`, dst: '10.0.0.1' }, tcp: { sport: 20999, dport: 8082, ...SYN } }),
					80,
				),
			);
		assert.is(seen.size, 50);
	});
	test('by tunnel too: the reply goes back to the node that the client dialled', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const own = six ? 'fd00::2' : '10.0.0.2';
			const r = tunnelled(
				{ ip: { src: GUEST(six), dst: own }, tcp: { sport: port, dport: 8097, ...SYN } },
				'taskTunnel',
			);
			expect(r, 'deliver_on_link', 'pass');
			const c = sourcePort(r, 81);
			const back = fromTask(
				{ ip: { src: TASK(six), dst: GATEWAY(six), df: !six }, tcp: { sport: 81, dport: c, ...ACK } },
				'endpoint_tc',
			);
			expect(back, 'return_encap', 'redirect');
			assert.match(back.out, new RegExp(`\n {2}ip ${own} > ${GUEST(six)} .*\n {2}tcp 8097 > ${port} ack`));
		}
	});
	test('fragments of it, both ways', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const whole: Packet = {
				eth: { src: MAC.router, dst: MAC.up0 },
				ip: { src: GUEST(six), dst: OWN(six) },
				udp: { sport: port, dport: 54 },
				data: 1200,
			};
			const [first, second] = fragments(whole, 77, 800);
			const one = w.run('uplink_xdp', build(first), UP0);
			const two = w.run('uplink_xdp', build(second), UP0);
			expect(one, 'deliver_on_link', 'pass');
			expect(two, 'deliver_fragment', 'pass');
			for (const r of [one, two]) assert.match(r.out, new RegExp(`\nip ${GATEWAY(six)} > ${TASK(six)} `));
			const c = sourcePort(one, 5353);
			const answer: Packet = {
				eth: { src: MAC.endpoint, dst: MAC.gateway },
				ip: { src: TASK(six), dst: GATEWAY(six) },
				udp: { sport: 5353, dport: c },
				data: 1200,
			};
			for (const part of fragments(answer, 78, 800)) {
				const r = w.run('endpoint_tc', build(part), EP0);
				assert.is(r.action, 'redirect', `${r.verdict} ${r.out}`);
				assert.match(r.out, new RegExp(`\nip ${OWN(six)} > ${GUEST(six)} `));
			}
		}
	});
	test('ICMP errors about it, both ways, speak of what each side knows', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const c = sourcePort(
				fromUplink({ ip: { src: GUEST(six), dst: OWN(six) }, udp: { sport: port, dport: 54 }, data: 'q' }),
				5353,
			);
			const error = six ? { type: 1, code: 4 } : { type: 3, code: 3 };
			const inwards = fromUplink({
				ip: { src: six ? 'fd00::fe' : '10.0.0.254', dst: OWN(six) },
				icmp: {
					...error,
					about: { ip: { src: OWN(six), dst: GUEST(six), ttl: 60 }, udp: { sport: 54, dport: port }, data: 'a' },
				},
			});
			expect(inwards, 'deliver_icmp', 'pass');
			assert.match(
				inwards.out,
				new RegExp(
					`\nip ${GATEWAY(six)} > ${TASK(six)} .*\nicmp6? .*\n {2}about ip ${TASK(six)} > ${GATEWAY(six)} .*\n {2}about udp 5353 > ${c}\n`,
				),
			);
			const outwards = fromTask(
				{
					ip: { src: TASK(six), dst: GATEWAY(six) },
					icmp: {
						...error,
						about: { ip: { src: GATEWAY(six), dst: TASK(six), ttl: 60 }, udp: { sport: c, dport: 5353 }, data: 'q' },
					},
				},
				'endpoint_tc',
			);
			expect(outwards, 'return_client_local', 'redirect');
			assert.match(
				outwards.out,
				new RegExp(
					`\nip ${OWN(six)} > ${GUEST(six)} .*\nicmp6? .*\n {2}about ip ${GUEST(six)} > ${OWN(six)} .*\n {2}about udp ${port} > 54\n`,
				),
			);
		}
	});

	test('a task dials another of its node, or itself: seen as the gateway, and answered', () => {
		for (const six of FAMILIES)
			for (const from of [six ? 'fd18::3' : '172.18.0.3', TASK(six)]) {
				const port = nextPort++;
				const r = fromTask({ ip: { src: from, dst: OWN(six), df: !six }, tcp: { sport: port, dport: 8082, ...SYN } });
				expect(r, 'deliver_endpoint', 'redirect');
				const c = sourcePort(r, 80);
				assert.ok(isStandIn(c));
				assert.match(r.out, new RegExp(`\nip ${GATEWAY(six)} > ${TASK(six)} ttl 64 .*\ntcp ${c} > 80 syn seq 1000 `));
				assert.is(r.event.ref, BACKENDS.task);
				const back = fromTask(
					{ ip: { src: TASK(six), dst: GATEWAY(six), df: !six }, tcp: { sport: 80, dport: c, ...ACK } },
					'endpoint_tc',
				);
				expect(back, 'return_client_local', 'redirect');
				assert.match(back.out, new RegExp(`\nip ${OWN(six)} > ${from} .*\ntcp 8082 > ${port} ack`));
				assert.equal(
					rows(port).map(({ row }) => row.inside),
					[1],
				);
			}
	});
	test('a process of its node sees the task, and its reply seems the frontend’s', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const r = fromTask({
				ip: { src: TASK(six), dst: OWN(six), df: !six },
				tcp: { sport: port, dport: 8083, ...SYN },
			});
			expect(r, 'deliver_local_process', 'continue');
			assert.match(r.out, new RegExp(`\nip ${TASK(six)} > ${OWN(six)} .*\ntcp ${port} > 9000 syn`));
			const back = w.run(
				'uplink_tc_egress',
				build({
					eth: { src: MAC.gateway, dst: MAC.endpoint },
					ip: { src: OWN(six), dst: TASK(six) },
					tcp: { sport: 9000, dport: port, ...ACK },
				}),
				EP0,
			);
			expect(back, 'return_client_local', 'continue');
			assert.match(back.out, new RegExp(`\nip ${OWN(six)} > ${TASK(six)} .*\ntcp 8083 > ${port} ack`));
		}
	});
	test('a backend of another node: the node’s own address, in the tunnel', () => {
		const port = nextPort++;
		const r = fromTask({
			ip: { src: '172.18.0.2', dst: '10.0.0.1', df: true },
			tcp: { sport: port, dport: 8080, ...SYN, options: [{ mss: 1460 }] },
		});
		expect(r, 'encap_node', 'redirect');
		assert.is(
			r.out.replace(/^udp \d+ > 4789/m, 'udp HASH > 4789'),
			frame`
				eth 02:00:00:00:01:00 > 02:00:00:00:02:02
				ip 10.0.0.1 > 10.0.0.2 ttl 64 df len 94
				udp HASH > 4789 no checksum
				vxlan 12509184
				  eth 06:00:0a:00:00:01 > ${macOf('far')}
				  ip 10.0.0.1 > 10.0.0.1 ttl 64 df len 44
				  tcp ${String(port)} > 8080 syn seq 1000 win 65535 mss 1460
			`,
		);
		const narrow = fromTask({
			ip: { src: '172.18.0.2', dst: '10.0.0.1' },
			tcp: { sport: nextPort++, dport: 8092, ...SYN, options: [{ mss: 1460 }] },
		});
		expect(narrow, 'encap_node', 'redirect');
		assert.match(narrow.out, /mss 1360/);
		w.store.settings.set({ ...w.store.settings.get(), mesh_mtu: 1200 });
		const ingress = fromTask({
			ip: { src: '172.18.0.2', dst: '10.0.0.1' },
			tcp: { sport: nextPort++, dport: 8092, ...SYN, options: [{ mss: 1460 }] },
		});
		assert.match(ingress.out, /mss 1110/);
		w.store.settings.set({ ...w.store.settings.get(), mesh_mtu: 0 });
		assert.equal(
			rows(port).map(({ key, row }) => [key.client, key.endpoint, key.client_port, row.client, row.inside]),
			[['10.0.0.1', '10.0.0.1', port, '172.18.0.2', 1]],
		);
		// Another task with the same port is another flow.
		const other = fromTask({ ip: { src: '172.18.0.3', dst: '10.0.0.1' }, tcp: { sport: port, dport: 8080, ...SYN } });
		assert.not.match(other.out, new RegExp(`tcp ${port} > 8080`));
		const six = fromTask({ ip: { src: 'fd18::2', dst: 'fd00::1' }, tcp: { sport: port, dport: 8080, ...SYN } });
		expect(six, 'encap_node', 'redirect');
		assert.match(six.out, new RegExp(`\n {2}ip fd00::1 > fd00::1 .*\n {2}tcp ${port} > 8080 syn`));
	});
	test('what comes back to it passes the ingress node’s check', () => {
		const port = nextPort++;
		fromTask({ ip: { src: '172.18.0.2', dst: '10.0.0.1' }, tcp: { sport: port, dport: 8080, ...SYN } });
		const inner: Packet = {
			eth: { src: '06:00:0a:00:00:02', dst: '0a:00:00:00:00:00' },
			ip: { src: '10.0.0.1', dst: '10.0.0.1' },
			tcp: { sport: 8080, dport: port, flags: 'syn ack', seq: 5000, ack: 1001 },
		};
		const r = w.run(
			'uplink_xdp',
			build({
				eth: { src: MAC.node2, dst: MAC.up0 },
				ip: { src: '10.0.0.2', dst: '10.0.0.1' },
				udp: { sport: 50000, dport: 4789, vxlan: { vni: VNI, frame: inner } },
			}),
			UP0,
		);
		expect(r, 'return_forward', 'pass');
		assert.is(r.mark, 'return');
	});
	test('a reply to another node’s task goes by tunnel, though the service returns straight', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const node = six ? 'fd00::2' : '10.0.0.2';
			const r = tunnelled({ ip: { src: node, dst: node }, tcp: { sport: port, dport: 8098, ...SYN } }, 'taskDsr');
			expect(r, 'deliver_endpoint', 'pass');
			const back = fromTask(
				{ ip: { src: TASK(six), dst: node, df: !six }, tcp: { sport: 82, dport: port, ...ACK } },
				'endpoint_tc',
			);
			expect(back, 'return_encap', 'redirect');
			assert.match(back.out, new RegExp(`\n {2}ip ${node} > ${node} .*\n {2}tcp 8098 > ${port} ack`));
		}
	});
	test('the gateway’s own address will do: other nodes hear of the node’s', () => {
		for (const six of FAMILIES) {
			const port = nextPort++;
			const to = (dport: number) =>
				fromTask({ ip: { src: TASK(six), dst: GATEWAY(six), df: !six }, tcp: { sport: port, dport, ...SYN } });
			expect(to(8082), 'deliver_endpoint', 'redirect');
			const r = to(8080);
			expect(r, 'encap_node', 'redirect');
			assert.match(r.out, new RegExp(`\n {2}ip ${OWN(six)} > ${OWN(six)} `));
			assert.is(rows(port).filter(({ row }) => row.addr === GATEWAY(six)).length, 2);
			const exact = fromTask({ ip: { src: TASK(six), dst: GATEWAY(six) }, tcp: { sport: port, dport: 8087, ...SYN } });
			expect(exact, 'pass_not_ours', 'continue');
		}
	});
	test('fragments that a task sends follow the first one', () => {
		for (const six of FAMILIES)
			for (const [dport, verdicts] of [
				[54, ['deliver_endpoint', 'deliver_fragment']],
				[53, ['encap_node', 'encap_node']],
			] as const) {
				const whole: Packet = {
					eth: { src: MAC.endpoint, dst: MAC.gateway },
					ip: { src: TASK(six), dst: OWN(six) },
					udp: { sport: nextPort++, dport },
					data: 1200,
				};
				const ran = fragments(whole, nextPort, 800).map((p) => w.run('gateway_tc', build(p), EP0));
				assert.equal(
					ran.map((r) => r.verdict),
					verdicts,
				);
				const seen = dport === 54 ? `\nip ${GATEWAY(six)} > ${TASK(six)} ` : `\n {2}ip ${OWN(six)} > ${OWN(six)} `;
				for (const r of ran) assert.match(r.out, new RegExp(seen));
			}
	});
	test('what does not fit the tunnel is told to the task, with or without DF', () => {
		for (const df of [true, false]) {
			const r = fromTask({
				ip: { src: '172.18.0.2', dst: '10.0.0.1', df },
				udp: { sport: nextPort++, dport: 56 },
				data: 1440,
			});
			expect(r, 'return_too_big', 'redirect');
			assert.match(r.out, /\nip 10\.0\.0\.1 > 172\.18\.0\.2 .*\nicmp type 3 code 4 mtu 1400\n/);
		}
	});

	const four = (more: Partial<Packet>): Packet => ({ ip: { src: '172.18.0.2', dst: '10.0.0.1' }, ...more });
	for (const [name, packet, verdict] of [
		['a port that nothing is published on', four({ tcp: { sport: 1, dport: 9999, ...SYN } }), 'pass_not_ours'],
		[
			'a published port of another host',
			{ ip: { src: '172.18.0.2', dst: '192.0.2.1' }, tcp: { sport: 1, dport: 8080, ...SYN } },
			'pass_not_ours',
		],
		['an echo request', four({ icmp: { type: 8 }, data: 56 }), 'pass_not_ours'],
		['a SYN-ACK to the node', four({ tcp: { sport: 1, dport: 8080, flags: 'syn ack' } }), 'pass_syn_ack'],
		[
			'a family without backend',
			{ ip: { src: 'fd18::2', dst: 'fd00::1' }, tcp: { sport: 1, dport: 8084, ...SYN } },
			'pass_no_backend',
		],
		['a service whose every backend is down', four({ tcp: { sport: 1, dport: 8085, ...SYN } }), 'drop_no_backend'],
		['a service that rests', four({ tcp: { sport: 1, dport: 8106, ...SYN } }), 'held'],
		['a service that rests, amid a flow', four({ tcp: { sport: 1, dport: 8106, flags: 'ack' } }), 'pass_no_backend'],
		['a service on another address', four({ tcp: { sport: 1, dport: 8087, ...SYN } }), 'pass_not_ours'],
		['a list that admits the node', four({ tcp: { sport: 1, dport: 8089, ...SYN } }), 'encap_node'],
		['a list that denies the node', four({ tcp: { sport: 1, dport: 8090, ...SYN } }), 'drop_denied'],
		['a node without next hop', four({ tcp: { sport: 1, dport: 8093, ...SYN } }), 'drop_no_next_hop'],
	] as const)
		test(`${name}: ${verdict}`, () => {
			const r = fromTask(packet);
			assert.is(r.verdict, verdict, r.out);
			if (verdict.startsWith('pass'))
				assert.is(r.out, print(build({ ...packet, eth: { src: MAC.endpoint, dst: MAC.gateway } })), 'as it came');
		});

	test.run();
}
