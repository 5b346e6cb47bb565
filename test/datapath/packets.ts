/**
 * One builder and one printer for the packets of the datapath's tests and documents. Packets go in as plain objects with
 * addresses as text; they come out as text that states every field, one line a header:
 *
 *	eth 02:00:00:00:00:01 > 02:00:00:00:00:02
 *	ip 192.0.2.9 > 10.0.0.1 ttl 64 df len 44
 *	tcp 40000 > 8080 syn seq 1000 win 65535 mss 1460
 *
 * Checksums are checked, never printed: a wrong one ends its line in `, bad checksum`. Fields that are zero or off are
 * left out; lengths are printed only where they disagree with the bytes that are there, except for `len` of IP.
 */
import { getIp, getIp4, getMac, putIp, putIp4, putMac } from '../../src/loader/text.js';

/** Ethernet types and protocols by name: tests use no numbers for them. */
export const ETHER = { ipv4: 0x0800, arp: 0x0806, vlan: 0x8100, ipv6: 0x86dd, probe: 0x88b5, answer: 0x88b6 } as const;
export const PROTOCOL = {
	hopByHop: 0,
	icmp: 1,
	tcp: 6,
	udp: 17,
	routing: 43,
	fragment: 44,
	gre: 47,
	esp: 50,
	icmp6: 58,
	destination: 60,
	sctp: 132,
} as const;
const FLAGS = ['fin', 'syn', 'rst', 'psh', 'ack', 'urg', 'ece', 'cwr'] as const;
export type TcpFlag = (typeof FLAGS)[number];
export const VXLAN_PORT = 4789;

export interface Tcp {
	readonly sport: number;
	readonly dport: number;
	/** As `syn` or `syn ack`; default `ack`. */
	readonly flags?: string;
	readonly seq?: number;
	readonly ack?: number;
	readonly window?: number;
	/** `{ mss: 1460 }`, `'nop'`, or bytes; padded with end-of-list to four bytes. */
	readonly options?: readonly ({ readonly mss: number } | 'nop' | 'timestamps' | 'end')[];
}
export interface Udp {
	readonly sport: number;
	readonly dport: number;
	/** False: zero, which is "none" in IPv4. */
	readonly checksum?: boolean;
	readonly vxlan?: Vxlan;
}
export interface Vxlan {
	readonly vni: number;
	/** Whether the flag is set that says that there is a VNI. */
	readonly valid?: boolean;
	readonly frame: Packet;
}
export interface Icmp {
	readonly type: number;
	readonly code?: number;
	/** Fragmentation needed, packet too big: bytes. */
	readonly mtu?: number;
	/** The IP packet that an error is about; the whole of it unless `quoteBytes`. */
	readonly about?: Packet;
	readonly quoteBytes?: number;
	/** Neighbour solicitation (type 135) or advertisement (136). */
	readonly neighbour?: {
		readonly target: string;
		/** Source (in a solicitation) or target MAC option. */
		readonly mac?: string;
	};
}
export interface Arp {
	readonly operation: 'request' | 'reply' | number;
	readonly sender: string;
	readonly senderMac: string;
	readonly target: string;
	/** Default: zero, as in a request. */
	readonly targetMac?: string;
	/** Default: Ethernet, 1. */
	readonly hardware?: number;
	/** Default: 6. */
	readonly macLength?: number;
}
export interface Probe {
	readonly nonce: bigint;
	readonly digest?: bigint;
	readonly via?: string;
}
export type Extension =
	| 'hop-by-hop'
	| 'destination'
	| { readonly routing: number }
	| { readonly fragment: number; readonly offset: number; readonly more: boolean };
export interface Packet {
	readonly eth?: { readonly src: string; readonly dst: string; readonly type?: number };
	readonly vlan?: number;
	/** Either family, by the addresses' text. */
	readonly ip?: {
		readonly src: string;
		readonly dst: string;
		/** Default 64. */
		readonly ttl?: number;
		readonly tos?: number;
		readonly id?: number;
		readonly df?: boolean;
		readonly more?: boolean;
		/** Bytes. */
		readonly offset?: number;
		/** IPv4: bytes of options (NOP), a multiple of four. */
		readonly options?: number;
		readonly extensions?: readonly Extension[];
		/** Where no layer below says it. */
		readonly protocol?: number;
		/** In place of the true one. */
		readonly length?: number;
	};
	readonly tcp?: Tcp;
	readonly udp?: Udp;
	readonly icmp?: Icmp;
	readonly probe?: Probe;
	readonly arp?: Arp;
	/** Text, or a number of bytes that count up. */
	readonly data?: string | number | Uint8Array;
	/** Ethernet padding behind the packet, bytes. */
	readonly padding?: number;
}

const view = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.byteLength);

function concat(parts: readonly Uint8Array[]): Uint8Array {
	const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
	let at = 0;
	for (const p of parts) {
		out.set(p, at);
		at += p.length;
	}
	return out;
}

/** RFC 1071: the folded sum of 16-bit words, not complemented. */
export function sum16(bytes: Uint8Array, start = 0): number {
	let sum = start;
	for (let i = 0; i + 1 < bytes.length; i += 2) sum += bytes[i] * 256 + bytes[i + 1];
	if (bytes.length & 1) sum += bytes[bytes.length - 1] * 256;
	while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
	return sum;
}

function addressBytes(text: string): Uint8Array {
	if (text.includes(':')) {
		const b = new Uint8Array(16);
		putIp(text, view(b), 0);
		return b;
	}
	const b = new Uint8Array(4);
	putIp4(text, view(b), 0);
	return b;
}

function pseudo(src: Uint8Array, dst: Uint8Array, protocol: number, length: number): number {
	return sum16(concat([src, dst]), protocol + (length & 0xffff) + (length >>> 16));
}

function payloadOf(p: Packet): Uint8Array {
	if (typeof p.data === 'string') return new TextEncoder().encode(p.data);
	if (typeof p.data === 'number') return Uint8Array.from({ length: p.data }, (_, i) => i);
	return p.data ?? new Uint8Array(0);
}

function tcpOptions(list: NonNullable<Tcp['options']>): Uint8Array {
	const bytes: number[] = [];
	for (const o of list) {
		if (o === 'nop') bytes.push(1);
		else if (o === 'end') bytes.push(0);
		else if (o === 'timestamps') bytes.push(8, 10, 0, 0, 0, 7, 0, 0, 0, 0);
		else bytes.push(2, 4, o.mss >> 8, o.mss & 255);
	}
	while (bytes.length % 4) bytes.push(0);
	return Uint8Array.from(bytes);
}

function finish(check: number, udp: boolean): number {
	const c = ~check & 0xffff;
	return udp && c === 0 ? 0xffff : c;
}

function transport(p: Packet, src: Uint8Array, dst: Uint8Array): { protocol: number; bytes: Uint8Array } {
	const payload = payloadOf(p);
	if (p.tcp) {
		const options = tcpOptions(p.tcp.options ?? []);
		const b = concat([new Uint8Array(20), options, payload]);
		const v = view(b);
		const flags = (p.tcp.flags ?? 'ack').split(' ');
		v.setUint16(0, p.tcp.sport);
		v.setUint16(2, p.tcp.dport);
		v.setUint32(4, p.tcp.seq ?? 0);
		v.setUint32(8, p.tcp.ack ?? 0);
		v.setUint8(12, ((20 + options.length) / 4) << 4);
		v.setUint8(
			13,
			FLAGS.reduce((n, f, i) => n | (flags.includes(f) ? 1 << i : 0), 0),
		);
		v.setUint16(14, p.tcp.window ?? 65535);
		v.setUint16(16, finish(sum16(b, pseudo(src, dst, PROTOCOL.tcp, b.length)), false));
		return { protocol: PROTOCOL.tcp, bytes: b };
	}
	if (p.udp) {
		let inner = payload;
		if (p.udp.vxlan) {
			const head = new Uint8Array(8);
			view(head).setUint8(0, p.udp.vxlan.valid === false ? 0 : 8);
			view(head).setUint32(4, p.udp.vxlan.vni * 256);
			inner = concat([head, build(p.udp.vxlan.frame)]);
		}
		const b = concat([new Uint8Array(8), inner]);
		const v = view(b);
		v.setUint16(0, p.udp.sport);
		v.setUint16(2, p.udp.dport);
		v.setUint16(4, b.length);
		if (p.udp.checksum ?? !p.udp.vxlan)
			v.setUint16(6, finish(sum16(b, pseudo(src, dst, PROTOCOL.udp, b.length)), true));
		return { protocol: PROTOCOL.udp, bytes: b };
	}
	if (p.icmp) {
		const six = src.length === 16;
		const head = new Uint8Array(8);
		const v = view(head);
		v.setUint8(0, p.icmp.type);
		v.setUint8(1, p.icmp.code ?? 0);
		if (p.icmp.mtu !== undefined) six ? v.setUint32(4, p.icmp.mtu) : v.setUint16(6, p.icmp.mtu);
		const about = p.icmp.neighbour;
		if (about) {
			const mac = new Uint8Array(about.mac === undefined ? 0 : 8);
			if (about.mac !== undefined) {
				mac.set([p.icmp.type === 136 ? 2 : 1, 1]);
				putMac(about.mac, view(mac), 2);
			}
			if (p.icmp.type === 136) v.setUint8(4, 0x60); // solicited, override
			const b = concat([head, addressBytes(about.target), mac, payload]);
			view(b).setUint16(2, finish(sum16(b, pseudo(src, dst, PROTOCOL.icmp6, b.length)), false));
			return { protocol: PROTOCOL.icmp6, bytes: b };
		}
		let quoted = p.icmp.about ? build({ ...p.icmp.about, eth: undefined }) : payload;
		if (p.icmp.quoteBytes !== undefined) quoted = quoted.slice(0, p.icmp.quoteBytes);
		const b = concat([head, quoted]);
		const protocol = six ? PROTOCOL.icmp6 : PROTOCOL.icmp;
		view(b).setUint16(2, finish(sum16(b, six ? pseudo(src, dst, protocol, b.length) : 0), false));
		return { protocol, bytes: b };
	}
	return { protocol: p.ip?.protocol ?? PROTOCOL.gre, bytes: payload };
}

function network(p: Packet): Uint8Array {
	const ip = p.ip as NonNullable<Packet['ip']>;
	const src = addressBytes(ip.src);
	const dst = addressBytes(ip.dst);
	// A fragment's L4 checksum is the whole datagram's: cutDatagram() below makes fragments.
	const { protocol: named, bytes } =
		ip.offset || ip.protocol !== undefined
			? { protocol: ip.protocol ?? (p.tcp ? PROTOCOL.tcp : PROTOCOL.udp), bytes: payloadOf(p) }
			: transport(p, src, dst);
	if (src.length === 4) {
		const options = ip.options ?? 0;
		const b = concat([new Uint8Array(20), new Uint8Array(options).fill(1), bytes]);
		const v = view(b);
		v.setUint8(0, 0x40 | (5 + options / 4));
		v.setUint8(1, ip.tos ?? 0);
		v.setUint16(2, ip.length ?? b.length);
		v.setUint16(4, ip.id ?? 0);
		v.setUint16(6, (ip.df ? 0x4000 : 0) | (ip.more ? 0x2000 : 0) | ((ip.offset ?? 0) >> 3));
		v.setUint8(8, ip.ttl ?? 64);
		v.setUint8(9, named);
		b.set(src, 12);
		b.set(dst, 16);
		v.setUint16(10, finish(sum16(b.subarray(0, 20 + options)), false));
		return b;
	}
	const parts: Uint8Array[] = [];
	const extensions = ip.extensions ?? [];
	const number = (e: Extension): number =>
		e === 'hop-by-hop'
			? PROTOCOL.hopByHop
			: e === 'destination'
				? PROTOCOL.destination
				: 'routing' in e
					? PROTOCOL.routing
					: PROTOCOL.fragment;
	extensions.forEach((e, i) => {
		const b = new Uint8Array(8);
		const v = view(b);
		v.setUint8(0, i + 1 < extensions.length ? number(extensions[i + 1]) : named);
		if (typeof e === 'string') {
			v.setUint8(2, 1); // PadN
			v.setUint8(3, 4);
		} else if ('routing' in e) {
			v.setUint8(3, e.routing);
		} else {
			v.setUint16(2, (e.offset & 0xfff8) | (e.more ? 1 : 0));
			v.setUint32(4, e.fragment);
		}
		parts.push(b);
	});
	const b = concat([new Uint8Array(40), ...parts, bytes]);
	const v = view(b);
	v.setUint32(0, 0x60000000 + (ip.tos ?? 0) * 0x100000);
	v.setUint16(4, ip.length ?? b.length - 40);
	v.setUint8(6, extensions.length ? number(extensions[0]) : named);
	v.setUint8(7, ip.ttl ?? 64);
	b.set(src, 8);
	b.set(dst, 24);
	return b;
}

function arpBytes(a: Arp): Uint8Array {
	const b = new Uint8Array(28);
	const v = view(b);
	v.setUint16(0, a.hardware ?? 1);
	v.setUint16(2, ETHER.ipv4);
	v.setUint8(4, a.macLength ?? 6);
	v.setUint8(5, 4);
	v.setUint16(6, a.operation === 'request' ? 1 : a.operation === 'reply' ? 2 : a.operation);
	putMac(a.senderMac, v, 8);
	putIp4(a.sender, v, 14);
	putMac(a.targetMac ?? '00:00:00:00:00:00', v, 18);
	putIp4(a.target, v, 24);
	return b;
}

/** A packet's bytes, lengths and checksums as they should be; without `eth` the IP packet alone. */
export function build(p: Packet): Uint8Array {
	let body: Uint8Array;
	if (p.ip) body = network(p);
	else if (p.arp) body = arpBytes(p.arp);
	else if (p.probe) {
		body = new Uint8Array(24);
		view(body).setBigUint64(0, p.probe.nonce, true);
		view(body).setBigUint64(8, p.probe.digest ?? 0n, true);
		putIp4(p.probe.via ?? '0.0.0.0', view(body), 16);
	} else body = payloadOf(p);
	if (!p.eth) return body;
	const head = new Uint8Array(14);
	const v = view(head);
	putMac(p.eth.dst, v, 0);
	putMac(p.eth.src, v, 6);
	const type =
		p.eth.type ?? (p.ip ? (p.ip.src.includes(':') ? ETHER.ipv6 : ETHER.ipv4) : p.probe ? ETHER.probe : ETHER.arp);
	v.setUint16(12, p.vlan === undefined ? type : ETHER.vlan);
	const tag = new Uint8Array(p.vlan === undefined ? 0 : 4);
	if (p.vlan !== undefined) {
		view(tag).setUint16(0, p.vlan);
		view(tag).setUint16(2, type);
	}
	return concat([head, tag, body, new Uint8Array(p.padding ?? 0)]);
}

/** The fragments of an IP packet, each with at most `size` bytes of payload (a multiple of 8). */
export function fragments(p: Packet, id: number, size: number): Packet[] {
	const ip = p.ip as NonNullable<Packet['ip']>;
	const src = addressBytes(ip.src);
	const { protocol, bytes } = transport(p, src, addressBytes(ip.dst));
	const out: Packet[] = [];
	for (let at = 0; at < bytes.length; at += size) {
		const more = at + size < bytes.length;
		const data = bytes.slice(at, at + size);
		const place =
			src.length === 4
				? { id, offset: at, more, protocol }
				: { extensions: [...(ip.extensions ?? []), { fragment: id, offset: at, more }], protocol };
		out.push({ eth: p.eth, ip: { ...ip, ...place }, data });
	}
	return out;
}

function words(...w: (string | false | undefined)[]): string {
	return w.filter(Boolean).join(' ');
}

function printData(b: Uint8Array): string[] {
	if (b.length === 0) return [];
	const text = new TextDecoder().decode(b);
	if (b.length <= 40 && /^[ -~]+$/.test(text)) return [`data ${JSON.stringify(text)}`];
	// The sum of its positions and bytes tells two payloads of one length apart.
	let sum = 0;
	for (let i = 0; i < b.length; i++) sum = (sum * 31 + b[i]) % 65521;
	return [`data ${b.length} bytes #${sum}`];
}

function printTcp(b: Uint8Array, start: number | undefined): string[] {
	if (b.length < 20) return [`tcp, ${b.length} bytes`];
	const v = view(b);
	const header = (v.getUint8(12) >> 4) * 4;
	const options: string[] = [];
	for (let i = 20; i < header && i < b.length; ) {
		const kind = b[i];
		if (kind === 0) break;
		if (kind === 1) {
			options.push('nop');
			i++;
			continue;
		}
		if (kind === 2 && i + 4 <= b.length) options.push(`mss ${v.getUint16(i + 2)}`);
		else if (kind === 8) options.push('timestamps');
		else options.push(`option ${kind}`);
		i += Math.max(2, b[i + 1] ?? 2);
	}
	const flags = FLAGS.filter((_, i) => v.getUint8(13) & (1 << i)).join(' ');
	const good = start === undefined || sum16(b, start) === 0xffff;
	return [
		words(
			`tcp ${v.getUint16(0)} > ${v.getUint16(2)}`,
			flags,
			`seq ${v.getUint32(4)}`,
			v.getUint32(8) !== 0 && `ack ${v.getUint32(8)}`,
			`win ${v.getUint16(14)}`,
			...options,
		) + (good ? '' : ', bad checksum'),
		...printData(b.subarray(Math.min(header, b.length))),
	];
}

function printUdp(b: Uint8Array, start: number | undefined, depth: number): string[] {
	if (b.length < 8) return [`udp, ${b.length} bytes`];
	const v = view(b);
	const check = v.getUint16(6);
	const good = start === undefined || check === 0 || sum16(b, start) === 0xffff;
	const line =
		words(
			`udp ${v.getUint16(0)} > ${v.getUint16(2)}`,
			v.getUint16(4) !== b.length && `len ${v.getUint16(4)}`,
			check === 0 && 'no checksum',
		) + (good ? '' : ', bad checksum');
	if (v.getUint16(2) === VXLAN_PORT || v.getUint16(0) === VXLAN_PORT)
		if (b.length >= 16 && depth < 2)
			return [
				line,
				words(`vxlan ${v.getUint32(12) >>> 8}`, v.getUint32(8) !== 0x08000000 && 'not valid'),
				...printFrame(b.subarray(16), depth + 1).map((l) => `  ${l}`),
			];
	return [line, ...printData(b.subarray(8))];
}

function printIcmp(b: Uint8Array, start: number | undefined, six: boolean): string[] {
	if (b.length < 8) return [`icmp, ${b.length} bytes`];
	const v = view(b);
	const type = v.getUint8(0);
	const error = six ? type < 128 : type === 3 || type === 11 || type === 12;
	const mtu = six ? (type === 2 ? v.getUint32(4) : 0) : type === 3 && b[1] === 4 ? v.getUint16(6) : 0;
	const good = start === undefined || sum16(b, start) === 0xffff;
	const line =
		words(`${six ? 'icmp6' : 'icmp'} type ${type} code ${b[1]}`, mtu !== 0 && `mtu ${mtu}`) +
		(good ? '' : ', bad checksum');
	const rest = b.subarray(8);
	if (six && (type === 135 || type === 136) && rest.length >= 16) {
		const flags = v.getUint32(4) >>> 29;
		const mac = rest.length >= 24 && rest[17] === 1 && (rest[16] === 1 ? 'source' : rest[16] === 2 && 'target');
		const neighbour = words(
			(flags & 4) !== 0 && 'router',
			(flags & 2) !== 0 && 'solicited',
			(flags & 1) !== 0 && 'override',
			`target ${getIp(view(rest), 0)}`,
			mac && `${mac} mac ${getMac(view(rest), 18)}`,
		);
		return [line, neighbour, ...printData(rest.subarray(mac ? 24 : 16))];
	}
	return [line, ...(error ? printIp(rest, 3, true).map((l) => `  about ${l}`) : printData(rest))];
}

function printL4(
	protocol: number,
	b: Uint8Array,
	sums: ((protocol: number, length: number) => number) | undefined,
	six: boolean,
	depth: number,
): string[] {
	const start = sums?.(protocol, b.length);
	if (protocol === PROTOCOL.tcp) return printTcp(b, start);
	if (protocol === PROTOCOL.udp) return printUdp(b, start, depth);
	if (protocol === PROTOCOL.icmp && !six) return printIcmp(b, sums && 0, false);
	if (protocol === PROTOCOL.icmp6 && six) return printIcmp(b, start, true);
	return [`protocol ${protocol}`, ...printData(b)];
}

/** @param quoted in an ICMP error: cut short, so lengths and L4 checksums say nothing */
function printIp(b: Uint8Array, depth: number, quoted = false): string[] {
	const version = b.length > 0 ? b[0] >> 4 : 0;
	const v = view(b);
	if (version === 4 && b.length >= 20) {
		const header = (b[0] & 15) * 4;
		const length = v.getUint16(2);
		const frag = v.getUint16(6);
		const offset = (frag & 0x1fff) * 8;
		const end = quoted ? b.length : Math.max(header, Math.min(length, b.length));
		const good = sum16(b.subarray(0, header)) === 0xffff;
		const line =
			words(
				`ip ${getIp4(v, 12)} > ${getIp4(v, 16)} ttl ${b[8]}`,
				b[1] !== 0 && `tos ${b[1]}`,
				v.getUint16(4) !== 0 && `id ${v.getUint16(4)}`,
				(frag & 0x4000) !== 0 && 'df',
				(frag & 0x2000) !== 0 && 'more',
				offset !== 0 && `offset ${offset}`,
				header > 20 && `options ${header - 20}`,
				`len ${length}`,
				!quoted && length > b.length && `of which ${b.length} are there`,
			) + (good ? '' : ', bad checksum');
		const body = b.subarray(header, end);
		const padding = b.length > end ? [`padding ${b.length - end} bytes`] : [];
		if (offset !== 0) return [line, `protocol ${b[9]}`, ...printData(body), ...padding];
		const whole = !quoted && (frag & 0x2000) === 0 && length <= b.length;
		const sums = (protocol: number, n: number) => pseudo(b.subarray(12, 16), b.subarray(16, 20), protocol, n);
		return [line, ...printL4(b[9], body, whole ? sums : undefined, false, depth), ...padding];
	}
	if (version === 6 && b.length >= 40) {
		const length = v.getUint16(4);
		let next = b[6];
		let at = 40;
		let offset = 0;
		let more = false;
		const extensions: string[] = [];
		while (at + 8 <= b.length) {
			if (next === PROTOCOL.fragment) {
				offset = v.getUint16(at + 2) & 0xfff8;
				more = (v.getUint16(at + 2) & 1) === 1;
				extensions.push(
					words('fragment', `id ${v.getUint32(at + 4)}`, more && 'more', offset !== 0 && `offset ${offset}`),
				);
				next = b[at];
				at += 8;
				if (offset) break;
			} else if (next === PROTOCOL.hopByHop || next === PROTOCOL.destination || next === PROTOCOL.routing) {
				extensions.push({ 0: 'hop-by-hop', 60: 'destination', 43: 'routing' }[next] as string);
				next = b[at];
				at += 8 + b[at + 1] * 8;
			} else break;
		}
		const end = quoted ? b.length : Math.max(40, Math.min(40 + length, b.length));
		const line = words(
			`ip ${getIp(v, 8)} > ${getIp(v, 24)} ttl ${b[7]}`,
			((v.getUint16(0) >> 4) & 255) !== 0 && `tos ${(v.getUint16(0) >> 4) & 255}`,
			...extensions,
			`len ${40 + length}`,
			!quoted && 40 + length > b.length && `of which ${b.length} are there`,
		);
		const body = b.subarray(Math.min(at, end), end);
		const padding = b.length > end ? [`padding ${b.length - end} bytes`] : [];
		if (offset !== 0) return [line, `protocol ${next}`, ...printData(body), ...padding];
		const whole = !quoted && !more && 40 + length <= b.length;
		const sums = (protocol: number, n: number) => pseudo(b.subarray(8, 24), b.subarray(24, 40), protocol, n);
		return [line, ...printL4(next, body, whole ? sums : undefined, true, depth), ...padding];
	}
	return ['ip, cut short', ...printData(b)];
}

function printFrame(b: Uint8Array, depth: number): string[] {
	if (b.length < 14) return [`eth, ${b.length} bytes`];
	const v = view(b);
	let type = v.getUint16(12);
	let at = 14;
	const lines = [`eth ${getMac(v, 6)} > ${getMac(v, 0)}`];
	if (type === ETHER.vlan && b.length >= 18) {
		lines.push(`vlan ${v.getUint16(14) & 4095}`);
		type = v.getUint16(16);
		at = 18;
	}
	const rest = b.subarray(at);
	if (type === ETHER.ipv4 || type === ETHER.ipv6) return [...lines, ...printIp(rest, depth)];
	if ((type === ETHER.probe || type === ETHER.answer) && rest.length >= 24) {
		const p = view(rest);
		const what = type === ETHER.probe ? 'probe' : 'probe answer';
		return [
			...lines,
			`${what} nonce ${p.getBigUint64(0, true)} digest ${p.getBigUint64(8, true)} via ${getIp4(p, 16)}`,
			...printData(rest.subarray(24)),
		];
	}
	if (type === ETHER.arp && rest.length >= 28) {
		const a = view(rest);
		const operation = a.getUint16(6);
		return [
			...lines,
			words(
				`arp ${operation === 1 ? 'request' : operation === 2 ? 'reply' : operation}`,
				`${getIp4(a, 14)} (${getMac(a, 8)}) > ${getIp4(a, 24)} (${getMac(a, 18)})`,
				a.getUint16(0) !== 1 && `hardware ${a.getUint16(0)}`,
				a.getUint16(2) !== ETHER.ipv4 && `protocol ${a.getUint16(2)}`,
				(rest[4] !== 6 || rest[5] !== 4) && `lengths ${rest[4]} ${rest[5]}`,
			),
			...printData(rest.subarray(28)),
		];
	}
	return [...lines, type === ETHER.arp ? 'arp, cut short' : `type ${type}`, ...printData(rest)];
}

/** A frame as text, a line for each header; the frame inside a tunnel is indented. */
export function print(frame: Uint8Array): string {
	return printFrame(frame, 0).join('\n');
}

/** The text of a template, without its indentation and the empty lines around it: how tests state a frame. */
export function frame(strings: TemplateStringsArray, ...values: (string | number)[]): string {
	const text = String.raw({ raw: strings }, ...values).replace(/^\n|\n\s*$/g, '');
	const lines = text.split('\n');
	const indent = Math.min(...lines.filter((l) => l.trim()).map((l) => (/^\t*/.exec(l) as RegExpExecArray)[0].length));
	return lines.map((l) => l.slice(indent)).join('\n');
}
