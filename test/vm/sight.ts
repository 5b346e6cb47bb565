/** What a capture (pcap, Ethernet) shows: packets by kind, and whether anything of an encrypted network is to be read in it. */
import { readFileSync } from 'node:fs';

export interface Sight {
	/** Packets by kind: esp, vxlan VNI, vxlan VNI answered, udp PORT, tcp, icmp, icmp6, ip PROTOCOL, ethertype HEX. */
	readonly kinds: Record<string, number>;
	/** Of the outer IPv4 packets. */
	readonly fragments: number;
	/** Bytes of the longest frame. */
	readonly longest: number;
	/** Something that only endpoints say is to be read. */
	readonly marker: boolean;
	/** Pairs of addresses inside VXLAN, by VNI. */
	readonly inner: Record<string, string[]>;
	/** The first packet of ESP of each direction, `from > to`, in hexadecimal. */
	readonly esp: Record<string, string>;
}

const ip = (b: Buffer): string => [...b.subarray(0, 4)].join('.');

export function sight(file: string, marker: string, vxlanPort = 4789): Sight {
	const bytes = readFileSync(file);
	const kinds: Record<string, number> = {};
	const inner: Record<string, Set<string>> = {};
	const esp: Record<string, string> = {};
	let fragments = 0;
	let longest = 0;
	// A header of 24 bytes, then for each packet 16 (seconds, microseconds, kept, length) and what was kept of it.
	for (let at = 24; at + 16 <= bytes.length; ) {
		const kept = bytes.readUInt32LE(at + 8);
		// Still being written.
		if (at + 16 + kept > bytes.length) break;
		longest = Math.max(longest, bytes.readUInt32LE(at + 12));
		const p = bytes.subarray(at + 16, at + 16 + kept);
		at += 16 + kept;
		const type = p.readUInt16BE(12);
		let kind = `ethertype ${type.toString(16)}`;
		if (type === 0x86dd) kind = p[20] === 58 ? 'icmp6' : p[20] === 0 ? 'icmp6 mld' : `ip6 ${p[20]}`;
		if (type === 0x0800) {
			const l4 = 14 + (p[14] & 15) * 4;
			const protocol = p[23];
			if ((p.readUInt16BE(20) & 0x3fff) !== 0) fragments++;
			kind = { 1: 'icmp', 6: 'tcp', 50: 'esp' }[protocol] ?? `ip ${protocol}`;
			if (protocol === 50) esp[`${ip(p.subarray(26))} > ${ip(p.subarray(30))}`] ??= p.toString('hex');
			if (protocol === 17) {
				const [source, port] = [p.readUInt16BE(l4), p.readUInt16BE(l4 + 2)];
				kind = `udp ${port}`;
				// Probes of the mesh are answered by what they were asked with, addresses and ports changed about.
				if ((port === vxlanPort || source === vxlanPort) && p.length >= l4 + 16) {
					const vni = p.readUInt32BE(l4 + 12) >>> 8;
					kind = `vxlan ${vni}${port === vxlanPort ? '' : ' answered'}`;
					const frame = l4 + 16;
					if (p.length >= frame + 34 && p.readUInt16BE(frame + 12) === 0x0800) {
						inner[vni] ??= new Set();
						inner[vni].add(`${ip(p.subarray(frame + 26))} > ${ip(p.subarray(frame + 30))}`);
					}
				}
			}
		}
		kinds[kind] = (kinds[kind] ?? 0) + 1;
	}
	return {
		kinds,
		fragments,
		longest,
		marker: bytes.includes(marker),
		inner: Object.fromEntries(Object.entries(inner).map(([vni, pairs]) => [vni, [...pairs].sort()])),
		esp,
	};
}
