/**
 * A million mutated packets through the real programs: cut short, bits flipped, fields at their extremes, spliced. Whatever
 * comes in, a verdict comes out that fits its action, a packet that is not ours leaves as it came, and nothing is delivered
 * that no known node or client may send. Hosts are drawn in world.ts.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { VERDICTS, Verdict } from '../../src/loader/layout.gen.js';
import { getIp, getIp4 } from '../../src/loader/text.js';
import { at, FAR, FAR_MAC, fillOverlay, HERE, VIP, VNIS } from './overlay.js';
import { build, ETHER, fragments, type Packet, print, sum16 } from './packets.js';
import { fill, macOf, SERVICES } from './services.js';
import {
	buildInterfaces,
	closeInterfaces,
	EP0,
	insideNetns,
	MAC,
	MARK,
	OV,
	type ProgramName,
	UP0,
	VNI,
	World,
} from './world.js';

const test = suite('mutated packets');
const RUNS = Number(process.env.MUTATIONS ?? 1_000_000);
let w: World;

const C4 = '192.0.2.9';
const C6 = 'fd09::9';
const A4 = '10.0.0.1';
const A6 = 'fd00::1';
const fromClient = { src: MAC.router, dst: MAC.up0 };
const tcp = (dport: number, flags: string, six = false, data = 20): Packet => ({
	eth: fromClient,
	ip: six ? { src: C6, dst: A6 } : { src: C4, dst: A4, df: true },
	tcp: { sport: 30000, dport, flags, seq: 1000, ack: 7, options: ['nop', { mss: 1460 }] },
	data,
});
const udp = (dport: number, six = false, data = 40): Packet => ({
	eth: fromClient,
	ip: six ? { src: C6, dst: A6 } : { src: C4, dst: A4 },
	udp: { sport: 30000, dport },
	data,
});
const icmp = (six: boolean): Packet => ({
	eth: fromClient,
	ip: six ? { src: 'fd33::1', dst: A6 } : { src: '198.51.100.1', dst: A4 },
	icmp: {
		type: six ? 2 : 3,
		code: six ? 0 : 4,
		mtu: 1300,
		about: { ip: { src: six ? A6 : A4, dst: six ? C6 : C4 }, tcp: { sport: 8082, dport: 30000 }, data: 30 },
	},
});
const tunnel = (mac: string, frame: Packet, source = '06:00:0a:00:00:02'): Packet => ({
	eth: { src: MAC.node2, dst: MAC.up0 },
	ip: { src: '10.0.0.2', dst: A4, df: true },
	udp: {
		sport: 50000,
		dport: 4789,
		vxlan: { vni: VNI, frame: { ...frame, eth: { ...frame.eth, src: source, dst: mac } } },
	},
});
const reply = (six: boolean): Packet => ({
	ip: { src: six ? A6 : A4, dst: six ? C6 : C4 },
	tcp: { sport: 8080, dport: 30000 },
});

/** Of an overlay network's endpoint, with and without a tunnel around it. */
function overlayPackets(from: number, to: readonly number[]): Packet[] {
	const list: Packet[] = [];
	for (const six of [false, true])
		for (const n of to) {
			const ip = { src: at(from, six), dst: at(n, six) };
			list.push(
				{ ip, tcp: { sport: 5000, dport: 7000 }, data: 60 },
				{ ip, udp: { sport: 5000, dport: 7000 }, data: 30 },
				{ ip, icmp: { type: six ? 128 : 8 }, data: 30 },
				{ ip: { ...ip, protocol: 132 }, data: 30 },
				...fragments({ ip, udp: { sport: 5000, dport: 7000 }, data: 300 }, n, 256),
			);
		}
	list.push({ ip: { src: at(from), dst: at(to[0]), options: 8 }, udp: { sport: 5000, dport: 7000 }, data: 30 });
	const extensions = ['hop-by-hop', 'destination'] as const;
	list.push({ ip: { src: at(from, true), dst: at(to[0], true), extensions }, udp: { sport: 1, dport: 2 }, data: 30 });
	return list;
}
const overlayTunnel = (vni: number, frame: Packet): Packet => ({
	eth: { src: MAC.node2, dst: MAC.up0 },
	ip: { src: '10.0.0.2', dst: A4, df: true },
	udp: {
		sport: 50000,
		dport: 4789,
		vxlan: { vni, frame: { ...frame, eth: { src: FAR_MAC, dst: HERE.a.mac } } },
	},
});

function clients(): Packet[] {
	const list: Packet[] = [];
	for (const six of [false, true]) {
		for (const flags of ['syn', 'ack', 'fin ack', 'rst', 'syn ack'])
			for (const port of [8080, 8082, 8083, 8085, 8086, 8092, 8100, 40000, 9000]) list.push(tcp(port, flags, six));
		for (const port of [53, 54, 55, 56]) list.push(udp(port, six), ...fragments(udp(port, six, 600), 40 + port, 256));
		list.push(tcp(8092, 'ack', six, 1400), icmp(six));
		for (const [name, port] of [
			['task', 8082],
			['process', 8083],
			['taskTunnel', 8097],
			['gone', 8100],
		] as const)
			for (const flags of ['syn', 'ack']) list.push(tunnel(macOf(name), tcp(port, flags, six)));
		list.push(
			tunnel(macOf('udpTask'), udp(54, six)),
			tunnel(macOf('task'), icmp(six)),
			tunnel('0a:00:00:00:00:00', reply(six)),
		);
		list.push(tunnel(macOf('task'), tcp(8082, 'syn', six), '06:01:0a:01:00:03'));
	}
	list.push(
		{ ...tcp(8080, 'ack'), ip: { src: C4, dst: A4, options: 12 } },
		{ ...udp(53, true), ip: { src: C6, dst: A6, extensions: ['hop-by-hop', { routing: 0 }, 'destination'] } },
		{
			eth: { src: MAC.node2, dst: MAC.up0 },
			ip: { src: '10.0.0.2', dst: A4 },
			udp: {
				sport: 41000,
				dport: 4789,
				vxlan: {
					vni: VNI,
					frame: { eth: { src: MAC.node2, dst: MAC.up0, type: ETHER.probe }, probe: { nonce: 1n, via: '10.0.0.4' } },
				},
			},
		},
		udp(56, false, 1450),
	);
	list.push(
		...overlayPackets(FAR, [2, 3]).map((p) => overlayTunnel(VNIS.red, p)),
		...overlayPackets(130, [2]).map((p) => overlayTunnel(VNIS.blue, p)),
		...overlayPackets(FAR, [2]).map((p) => overlayTunnel(VNIS.secret, p)),
	);
	return list;
}

function rng(seed: number): () => number {
	let a = seed >>> 0;
	return () => {
		a = (a + 0x6d2b79f5) | 0;
		let t = Math.imul(a ^ (a >>> 15), 1 | a);
		t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
		return (t ^ (t >>> 14)) >>> 0;
	};
}

/** Fills `to` with a mutation of one of `corpus`; returns its length. */
function mutate(corpus: readonly Uint8Array[], to: Uint8Array, random: () => number, least: number): number {
	const from = corpus[random() % corpus.length];
	to.set(from);
	let length = from.length;
	// Most of what matters lies in the first headers.
	const place = () => (random() % 4 ? random() % Math.min(length, 120) : random() % length);
	for (let n = random() % 3; n >= 0; n--) {
		switch (random() % 7) {
			case 0:
				length = Math.max(least, random() % 2 ? random() % (length + 1) : length - (random() % 8));
				break;
			case 1:
			case 2:
				to[place()] ^= 1 << (random() % 8);
				break;
			case 3:
				to[place()] = [0, 255, 127, 128][random() % 4];
				break;
			case 4: {
				const at = place() & ~1;
				to[at] = to[at + 1] = random() % 2 ? 255 : 0;
				break;
			}
			case 5: {
				const other = corpus[random() % corpus.length];
				const at = random() % Math.min(other.length, length);
				const n = Math.min(1 + (random() % 40), other.length - at, length - at);
				to.set(other.subarray(at, at + n), at);
				break;
			}
			default: {
				const more = Math.min(random() % 64, 2048 - length);
				to.fill(random() & 255, length, length + more);
				length += more;
			}
		}
	}
	return length;
}

const equal = (a: Uint8Array, from: number, b: Uint8Array, at: number, n: number): boolean =>
	Buffer.compare(a.subarray(from, from + n), b.subarray(at, at + n)) === 0;
const text = (b: Uint8Array, at: number): string => `${b[at]}.${b[at + 1]}.${b[at + 2]}.${b[at + 3]}`;
const macText = (b: Uint8Array, at: number): string =>
	[...b.subarray(at, at + 6)].map((x) => x.toString(16).padStart(2, '0')).join(':');

const KNOWN_VTEPS = new Set(['10.0.0.2', '10.0.0.4', '10.0.0.5', '10.0.0.6']);
const LIVING = new Set(
	(['task', 'process', 'taskTunnel', 'taskDsr', 'udpTask', 'udpProcess', 'neigh', 'task4'] as const).map(macOf),
);
const OWN = new Set([A4, '10.1.0.1']);
const TASK6 = build({ ip: { src: '::', dst: 'fd18::2' }, tcp: { sport: 0, dport: 0 } }).slice(24, 40);
const OWN6 = build({ ip: { src: '::', dst: A6 }, tcp: { sport: 0, dport: 0 } }).slice(24, 40);

const PUBLISHED = new Set<number>(Object.values(SERVICES).map((service) => service.port));
/** Whether a frame in a tunnel goes to a published port; one with extension headers is given the benefit of the doubt. */
function toPublished(b: Uint8Array): boolean {
	const four = b[62] === 8;
	if (!four && b[70] !== 6 && b[70] !== 17) return true;
	const at = four ? 64 + (b[64] & 15) * 4 : 104;
	return PUBLISHED.has(b[at + 2] * 256 + b[at + 3]);
}

/** Where addresses of networks are, by `VNI address`; that of a slice's last address answers for the slice. */
function nodeOf(vni: number, address: string): number | undefined {
	const six = address.includes(':');
	const n = six ? (/^fd07::([0-9a-f]{1,2})$/.exec(address)?.[1] ?? '') : (/^10\.7\.0\.(\d+)$/.exec(address)?.[1] ?? '');
	const i = Number.parseInt(n, six ? 16 : 10);
	if (Number.isNaN(i)) return undefined;
	if (Object.values(HERE).some((e) => VNIS[e.network] === vni && e.n === i)) return 1;
	if (vni === VNIS.blue) return i >= 128 ? 2 : undefined;
	if (vni === VNIS.secret) return i === FAR ? 2 : undefined;
	if (vni !== VNIS.red || i === VIP) return undefined;
	return [1, 2, 3, 5][i >> 6] === 5 && i >= 224 ? 6 : [1, 2, 3, 5][i >> 6];
}
const NODE_VTEPS: readonly string[] = ['', '10.0.0.1', '10.0.0.2', '10.1.0.3', '10.0.0.4', '10.0.0.5', '10.0.0.6'];
/** Source and destination of an IP packet at an offset. */
function addressesOf(b: Uint8Array, ip: number): { src: string; dst: string } {
	const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
	return b[ip - 1] === 0
		? { src: getIp4(v, ip + 12), dst: getIp4(v, ip + 16) }
		: { src: getIp(v, ip + 8), dst: getIp(v, ip + 24) };
}
const hereOf = (vni: number, address: string) =>
	Object.values(HERE).find((e) => VNIS[e.network] === vni && (at(e.n) === address || at(e.n, true) === address));

/** Why an answer of overlay_tc to endpoint `a` is wrong, or undefined. */
function wrongOverlay(
	input: Uint8Array,
	n: number,
	action: number,
	verdict: number,
	out: Uint8Array,
	m: number,
): string | undefined {
	if (verdict < Verdict.ENCAP_NODE) return "an endpoint's packet passes to the node";
	if (verdict >= Verdict.DROP_MALFORMED) return action === 2 ? undefined : 'action';
	if (action !== 7) return 'action';
	if (macText(input, 6) !== HERE.a.mac) return 'a foreign MAC';
	if (verdict === Verdict.RETURN_NEIGHBOUR) {
		if (macText(out, 0) !== HERE.a.mac) return 'told another one';
		if (out[13] === 6) return m === n && out[21] === 2 ? undefined : 'ARP';
		return m === 86 && out[54] === 136 && !print(out).includes('bad checksum') ? undefined : 'advertisement';
	}
	const { src, dst } = addressesOf(input, 14);
	if (src !== at(2) && src !== at(2, true)) return 'a foreign source';
	switch (verdict) {
		case Verdict.RETURN_ECHO:
			return m === n && (dst === at(VIP) || dst === at(VIP, true)) ? undefined : 'echo';
		case Verdict.DELIVER_OVERLAY: {
			const to = hereOf(VNIS.red, dst);
			return to && m === n && macText(out, 0) === to.mac && equal(input, 6, out, 6, n - 6) ? undefined : 'delivered';
		}
		case Verdict.ENCAP_OVERLAY:
			if (m !== n + 50 || !equal(input, 6, out, 56, n - 6)) return 'inner packet';
			if (sum16(out.subarray(14, 34)) !== 65535) return 'outer checksum';
			if (out[16] * 256 + out[17] !== m - 14 || out[38] * 256 + out[39] !== m - 34) return 'outer length';
			if (out[46] * 65536 + out[47] * 256 + out[48] !== VNIS.red) return 'another VNI';
			return text(out, 26) === A4 && text(out, 30) === NODE_VTEPS[nodeOf(VNIS.red, dst) ?? 0]
				? undefined
				: 'outer header';
		case Verdict.RETURN_TOO_BIG:
			return m === 170 || m === 318 ? undefined : 'error';
	}
	return 'a verdict that overlay_tc has not';
}

/** Why an answer of uplink_xdp is wrong, or undefined. `out` begins behind the mark. */
function wrongUplink(
	input: Uint8Array,
	n: number,
	action: number,
	verdict: number,
	out: Uint8Array,
	m: number,
	mark: number,
): string | undefined {
	const PASS = 2;
	const TX = 3;
	const REDIRECT = 4;
	if (verdict >= VERDICTS.length) return 'no verdict';
	if (verdict < Verdict.ENCAP_NODE)
		return action !== PASS
			? 'action'
			: mark !== 0
				? 'mark'
				: m === n && equal(input, 0, out, 0, n)
					? undefined
					: 'edited';
	if (verdict >= Verdict.HELD) return action === 1 ? undefined : 'action';
	const kind = mark >>> 28;
	// Is the way in one that a node or a client may take?
	const tunnelled =
		input[12] === 8 &&
		input[13] === 0 &&
		input[14] === 69 &&
		input[23] === 17 &&
		input[36] === 18 &&
		input[37] === 181 &&
		text(input, 30) === A4;
	const trusted = tunnelled && KNOWN_VTEPS.has(text(input, 26));
	if (macText(input, 0) !== MAC.up0) return 'another MAC';
	switch (verdict) {
		case Verdict.ENCAP_NODE:
		case Verdict.ENCAP_REBALANCED: {
			const again = verdict === Verdict.ENCAP_REBALANCED;
			const inner = again ? 64 : 14;
			if (action !== TX && action !== REDIRECT) return 'action';
			if (again && !trusted) return 'unknown VTEP';
			if (m !== (again ? n : n + 50)) return 'length';
			if (!equal(input, inner, out, 64, n - inner)) return 'inner packet';
			if (sum16(out.subarray(14, 34)) !== 65535) return 'outer checksum';
			if (out[16] * 256 + out[17] !== m - 14 || out[38] * 256 + out[39] !== m - 34) return 'outer length';
			return text(out, 26) === A4 && out[22] === 64 ? undefined : 'outer header';
		}
		case Verdict.ENCAP_FRAGMENTS:
			return action === PASS && kind === 4 && m === n && equal(input, 0, out, 0, n)
				? undefined
				: 'action, mark or packet';
		case Verdict.DELIVER_ENDPOINT:
		case Verdict.DELIVER_FRAGMENT:
		case Verdict.DELIVER_ICMP:
		case Verdict.DELIVER_LOCAL_PROCESS: {
			if (action !== PASS) return 'action';
			if (m !== n) {
				if (m !== n - 50) return 'length';
				if (!trusted) return 'delivered from an unknown VTEP';
				if (input[46] * 65536 + input[47] * 256 + input[48] !== VNI) return 'another VNI';
				// A flow of a backend that is unknown may be re-balanced, also to one of this node.
				if (!LIVING.has(macText(input, 50)) && !toPublished(input)) return 'delivered to an unknown MAC';
			}
			const four = out[12] === 8;
			const task = four ? text(out, 30) === '172.18.0.2' : equal(out, 38, TASK6, 0, 16);
			const own = four ? OWN.has(text(out, 30)) : equal(out, 38, OWN6, 0, 16);
			if (mark !== 0)
				return task && (kind === 1 || kind === 2) && (mark & 0xfffffff) === EP0 ? undefined : 'delivered elsewhere';
			return own ? undefined : 'passed to nobody of ours';
		}
		case Verdict.DELIVER_OVERLAY: {
			if (action !== PASS || m !== n - 50) return 'action or length';
			if (!trusted) return 'delivered from an unknown VTEP';
			const vni = input[46] * 65536 + input[47] * 256 + input[48];
			if (vni === VNIS.secret) return 'plain of an encrypted network';
			const { src, dst } = addressesOf(out, 14);
			const there = NODE_VTEPS[nodeOf(vni, src) ?? 0];
			if (there !== text(input, 26)) return 'delivered from another node than its own';
			const to = hereOf(vni, dst);
			if (!to || kind !== 1 || (mark & 0xfffffff) !== to.ifindex) return 'delivered elsewhere';
			return macText(out, 0) === to.mac && equal(input, 56, out, 6, n - 56) ? undefined : 'edited';
		}
		case Verdict.RETURN_FORWARD:
			return action === PASS && kind === 3 && trusted && m === n - 50 && equal(input, 64, out, 14, n - 64)
				? undefined
				: 'returned';
		case Verdict.RETURN_TOO_BIG:
			return (action === TX || action === REDIRECT) && m < n && (m === 170 || m === 318) ? undefined : 'error';
		case Verdict.RETURN_PROBE:
			return (action === TX || action === REDIRECT) && trusted && m === n ? undefined : 'probe';
	}
	return 'a verdict that uplink_xdp has not';
}

/** Of endpoint_tc: what it does not answer for leaves as it came. */
function wrongEndpoint(
	input: Uint8Array,
	n: number,
	action: number,
	verdict: number,
	out: Uint8Array,
	m: number,
): string | undefined {
	if (verdict < Verdict.ENCAP_NODE)
		return action !== -1 ? 'action' : m === n && equal(input, 0, out, 0, n) ? undefined : 'edited';
	if (verdict >= Verdict.DROP_MALFORMED) return action === 2 ? undefined : 'action';
	if (action !== 7) return 'action';
	switch (verdict) {
		case Verdict.RETURN_CLIENT_DSR:
		case Verdict.RETURN_CLIENT_LOCAL:
			return m === n ? undefined : 'length';
		case Verdict.RETURN_ENCAP:
			if (m !== n + 50) return 'length';
			return sum16(out.subarray(14, 34)) === 65535 && text(out, 26) === A4 ? undefined : 'outer header';
		case Verdict.RETURN_FRAGMENTED:
			return sum16(out.subarray(14, 34)) === 65535 && m <= 1550 + 14 ? undefined : 'fragment';
		case Verdict.RETURN_TOO_BIG:
			return m === 170 || m === 318 ? undefined : 'error';
	}
	return 'a verdict that endpoint_tc has not';
}

/** @param again called now and then: mutated packets end the flows that replies belong to */
function run(
	name: ProgramName,
	packets: readonly Packet[],
	runs: number,
	seed: number,
	again?: () => void,
): Map<string, number> {
	const corpus = packets.map(build);
	const random = rng(seed);
	const r = w.runner(name);
	const tc = name !== 'uplink_xdp';
	const wrongTc = name === 'overlay_tc' ? wrongOverlay : wrongEndpoint;
	const ctx = new DataView(r.ctx.buffer);
	const back = new DataView(r.ctxOut.buffer);
	const out = new DataView(r.out.buffer);
	const BATCH = 2000;
	const verdicts = new Uint8Array(BATCH);
	const tally = new Map<string, number>();
	ctx.setUint32(12, UP0, true);
	if (tc) {
		ctx.setUint32(12, 0, true);
		const ifindex = name === 'overlay_tc' ? OV : EP0;
		ctx.setUint32(36, ifindex, true);
		ctx.setUint32(40, ifindex, true);
	}
	w.drain();
	// The kernel refuses to run TC programs on frames that end within the IP header.
	const least = tc ? 54 : 14;
	for (let i = 0; i < runs; i++) {
		if (again && i % 100 === 0) {
			again();
			w.drain();
		}
		const n = mutate(corpus, r.data, random, least);
		if (!tc) ctx.setUint32(4, n, true);
		const action = r.run(n);
		const meta = tc ? 0 : back.getUint32(0, true) - back.getUint32(8, true);
		let mark = 0;
		if (meta > 0) {
			mark = out.getUint32(4, true);
			assert.is(out.getUint32(0, true), MARK);
		}
		// The clone of a packet that is cut in two runs no program here: one run, one event.
		const got = w.verdicts(verdicts);
		assert.is(got, 1, `${got} verdicts of one packet: ${print(r.data.slice(0, n))}`);
		const result = r.out.subarray(meta, r.outLength);
		const wrong = tc
			? wrongTc(r.data, n, action, verdicts[0], result, result.length)
			: wrongUplink(r.data, n, action, verdicts[0], result, result.length, mark);
		if (wrong !== undefined)
			throw new Error(
				`run ${i}: ${wrong}: ${VERDICTS[verdicts[0]]}, action ${action}, mark ${mark}\n${print(r.data.slice(0, n))}\nbecame\n${print(result)}`,
			);
		const verdict = VERDICTS[verdicts[0]];
		tally.set(verdict, (tally.get(verdict) ?? 0) + 1);
	}
	return tally;
}

if (insideNetns(import.meta.url, 'datapath: mutated packets')) {
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

	test('uplink_xdp: every verdict fits its action, nothing is delivered wrongly, the counters agree', () => {
		const list = clients();
		for (const p of list) w.run('uplink_xdp', build(p), UP0);
		const before = w.counted('uplink_xdp');
		const tally = run('uplink_xdp', list, Math.floor(RUNS * 0.8), 11);
		const after = w.counted('uplink_xdp');
		for (const [verdict, n] of tally)
			assert.is(Number((after.get(verdict)?.packets ?? 0n) - (before.get(verdict)?.packets ?? 0n)), n, verdict);
		for (const verdict of [
			'encap_node',
			'encap_rebalanced',
			'deliver_endpoint',
			'deliver_local_process',
			'deliver_icmp',
			'deliver_overlay',
			'return_forward',
			'return_too_big',
			'return_probe',
			'drop_spoofed',
			'drop_no_endpoint',
			'drop_flood',
			'drop_plain',
			'drop_malformed',
			'drop_unknown_vtep',
			'drop_unknown_backend',
			'drop_bad_return',
			'pass_not_ours',
			'pass_foreign_vni',
			'pass_headers',
		])
			assert.ok((tally.get(verdict) ?? 0) > 20, `${verdict} was met ${tally.get(verdict) ?? 0} times`);
		assert.is(tally.get('drop_helper') ?? 0, 0);
	});
	test('endpoint_tc: every verdict fits its action, what answers no flow leaves as it came', () => {
		// Mutated packets took the clients' ports for other frontends.
		for (const map of ['revnat', 'revnat_new']) w.map(map).clear();
		const list: Packet[] = [];
		const flows: Uint8Array[] = [];
		const enter = () => {
			for (const p of flows) assert.is(w.run('uplink_xdp', p, UP0).verdict, 'deliver_endpoint');
		};
		for (const six of [false, true]) {
			const task = six ? 'fd18::2' : '172.18.0.2';
			const eth = { src: MAC.endpoint, dst: MAC.gateway };
			const ip = { src: task, dst: six ? C6 : C4 };
			for (const [name, port, target] of [
				['task', 8082, 80],
				['taskTunnel', 8097, 81],
				['taskDsr', 8098, 82],
			] as const) {
				flows.push(build(tunnel(macOf(name), tcp(port, 'syn', six))));
				for (const flags of ['syn ack', 'ack', 'fin ack', 'rst'])
					list.push({
						eth,
						ip,
						tcp: { sport: target, dport: 30000, flags, options: ['nop', { mss: 1460 }] },
						data: 30,
					});
			}
			flows.push(build(tunnel(macOf('udpTask'), udp(54, six))));
			list.push(
				{ eth, ip, udp: { sport: 5353, dport: 30000 }, data: 100 },
				{ eth, ip, udp: { sport: 5353, dport: 30000 }, data: 1450 },
			);
			list.push(...fragments({ eth, ip, udp: { sport: 5353, dport: 30000 }, data: 600 }, 5, 256));
			list.push({ eth, ip: { ...ip, df: !six }, tcp: { sport: 81, dport: 30000 }, data: 1460 });
			list.push({
				eth,
				ip: { src: task, dst: six ? C6 : C4 },
				icmp: {
					type: six ? 1 : 3,
					code: 3,
					about: { ip: { src: six ? C6 : C4, dst: task }, udp: { sport: 30000, dport: 5353 }, data: 30 },
				},
			});
			list.push({ eth, ip: { src: task, dst: '2001:db8::1' }, tcp: { sport: 50000, dport: 443, flags: 'syn' } });
		}
		// Both addresses of one family.
		const good = list.filter((p) => p.ip?.src.includes(':') === p.ip?.dst.includes(':'));
		const tally = run('endpoint_tc', good, Math.ceil(RUNS * 0.1), 12, enter);
		for (const verdict of ['return_encap', 'return_client_dsr', 'pass_no_revnat', 'pass_not_ours'])
			assert.ok((tally.get(verdict) ?? 0) > 20, `${verdict} was met ${tally.get(verdict) ?? 0} times`);
	});
	test("overlay_tc: nothing leaves the network, nor with another source than the endpoint's own", () => {
		const eth = { src: HERE.a.mac, dst: HERE.b.mac };
		const all = { src: HERE.a.mac, dst: 'ff:ff:ff:ff:ff:ff' };
		const list: Packet[] = overlayPackets(2, [3, FAR, 70, 130, VIP, 5]).map((p) => ({ ...p, eth }));
		for (const n of [3, FAR, 70, VIP, 2]) {
			const arp = { operation: 'request', sender: at(2), senderMac: HERE.a.mac, target: at(n) } as const;
			list.push({ eth: all, arp, padding: 18 });
			const neighbour = { target: at(n, true), mac: HERE.a.mac };
			const ip = { src: at(2, true), dst: 'ff02::1:ff00:3', ttl: 255 };
			list.push({ eth: all, ip, icmp: { type: 135, neighbour } });
		}
		for (const six of [false, true])
			list.push({ eth, ip: { src: at(2, six), dst: at(200, six), df: !six }, tcp: { sport: 1, dport: 2 }, data: 1400 });
		list.push({ eth: all, ip: { src: at(2), dst: '224.0.0.251' }, udp: { sport: 5353, dport: 5353 }, data: 30 });
		const before = w.counted('overlay_tc');
		const tally = run('overlay_tc', list, Math.ceil(RUNS * 0.1), 13);
		const after = w.counted('overlay_tc');
		for (const [verdict, n] of tally)
			assert.is(Number((after.get(verdict)?.packets ?? 0n) - (before.get(verdict)?.packets ?? 0n)), n, verdict);
		for (const verdict of [
			'deliver_overlay',
			'encap_overlay',
			'return_neighbour',
			'return_echo',
			'return_too_big',
			'drop_malformed',
			'drop_spoofed',
			'drop_no_endpoint',
			'drop_flood',
		])
			assert.ok((tally.get(verdict) ?? 0) > 20, `${verdict} was met ${tally.get(verdict) ?? 0} times`);
		assert.is(tally.get('drop_helper') ?? 0, 0);
	});
	test.run();
}
