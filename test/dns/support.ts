import packet, { type Packet } from 'dns-packet';
import ipaddr from 'ipaddr.js';
import type { Transport } from '../../src/dns/resolver.js';
import { resolve } from '../../src/dns/resolver.js';
import { type NamedNetwork, namesOf, type View, viewOf } from '../../src/dns/zone.js';

/** Two networks as an agent would give them. */
export const red: NamedNetwork = {
	id: 'red',
	services: [
		{
			name: 'web',
			mode: 'vip',
			vips: ['10.44.0.2', 'fd44::2'],
			tasks: ['10.44.0.10', '10.44.0.11', 'fd44::10'],
			aliases: ['www'],
		},
		{ name: 'db', mode: 'dnsrr', vips: [], tasks: ['10.44.0.20', '10.44.0.21', '10.44.0.22'] },
		{ name: 'idle', mode: 'vip', vips: ['10.44.0.3'], tasks: [] },
		{ name: 'empty', mode: 'dnsrr', vips: [], tasks: [] },
	],
	endpoints: [
		{ name: 'alice', aliases: ['al', 'db-admin'], addresses: ['10.44.0.30', 'fd44::30'] },
		{ name: 'bob', aliases: ['al'], addresses: ['10.44.0.31'] },
		{ aliases: ['nameless'], addresses: ['10.44.0.32'] },
		{ name: 'web.1.q7r', aliases: [], addresses: ['10.44.0.10'] },
	],
};

export const blue: NamedNetwork = {
	id: 'blue',
	services: [{ name: 'web', mode: 'vip', vips: ['10.55.0.2'], tasks: ['10.55.0.10'] }],
	endpoints: [{ name: 'carol', aliases: [], addresses: ['fd55::40'] }],
};

export const view = (...networks: NamedNetwork[]): View => viewOf(networks.map(namesOf));

/** The name that a PTR query for an address asks for. */
export function reverseName(address: string): string {
	const bytes = ipaddr.process(address).toByteArray();
	if (bytes.length === 4) return `${bytes.reverse().join('.')}.in-addr.arpa`;
	const nibbles = bytes.flatMap((b) => [(b >> 4).toString(16), (b & 15).toString(16)]);
	return `${nibbles.reverse().join('.')}.ip6.arpa`;
}

export const IN = 'IN' as const;

export function ask(name: string, type: string, more: Partial<Packet> = {}): Buffer {
	return packet.encode({
		type: 'query',
		id: 4711,
		flags: packet.RECURSION_DESIRED,
		questions: [{ name, type: type as 'A', class: IN }],
		...more,
	});
}

/** With EDNS0. */
export const edns = (size: number, version = 0): Partial<Packet> => ({
	additionals: [
		{
			name: '.',
			type: 'OPT',
			udpPayloadSize: size,
			extendedRcode: 0,
			ednsVersion: version,
			flags: 0,
			flag_do: false,
			options: [],
		},
	],
});

export interface Read {
	readonly kind: string;
	readonly result?: string;
	readonly rcode?: string;
	readonly tc?: boolean;
	readonly length?: number;
	readonly answers?: readonly string[];
	readonly packet?: ReturnType<typeof packet.decode>;
}

/** What the resolver makes of a query, read by dns-packet. */
export function answered(query: Uint8Array, v: View, via: Transport = 'udp', random: () => number = () => 0): Read {
	const o = resolve(query, v, via, random);
	if (o.kind !== 'answer') return { kind: o.kind };
	const p = packet.decode(Buffer.from(o.bytes)) as ReturnType<typeof packet.decode> & { rcode: string };
	if (packet.decode.bytes !== o.bytes.length) throw new Error('bytes after the message');
	return {
		kind: 'answer',
		result: o.result,
		rcode: p.rcode,
		tc: p.flag_tc,
		length: o.bytes.length,
		answers: (p.answers ?? []).map(
			(a) => `${a.name} ${'ttl' in a ? a.ttl : ''} ${a.type} ${'data' in a ? a.data : ''}`,
		),
		packet: p,
	};
}
