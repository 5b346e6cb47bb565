/** Packets of the client 192.0.2.9 (fd09::9) to a published port of this node, for tests of flows. Hosts are drawn in world.ts. */
import type { Packet } from './packets.js';
import { MAC } from './world.js';

const eth = { src: MAC.router, dst: MAC.up0 };

export function tcpPacket(sport: number, dport: number, flags: string, seq: number, six = false): Packet {
	return {
		eth,
		ip: { src: six ? 'fd09::9' : '192.0.2.9', dst: six ? 'fd00::1' : '10.0.0.1' },
		tcp: { sport, dport, flags, seq: seq >>> 0 },
	};
}

export function udpPacket(sport: number, dport: number): Packet {
	return { eth, ip: { src: '192.0.2.9', dst: '10.0.0.1' }, udp: { sport, dport }, data: 'q' };
}

/** A router tells that a reply of the flow is too big. */
export function icmpError(sport: number, dport: number): Packet {
	return {
		eth,
		ip: { src: '198.51.100.1', dst: '10.0.0.1' },
		icmp: {
			type: 3,
			code: 4,
			mtu: 1300,
			about: { ip: { src: '10.0.0.1', dst: '192.0.2.9' }, tcp: { sport: dport, dport: sport, seq: 9 } },
		},
	};
}
