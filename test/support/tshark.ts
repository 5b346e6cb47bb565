/** Captures as tshark sees them, who knows nothing of us. */
import { run } from './netns.js';

function tshark(file: string, args: readonly string[]): string[] {
	const sums = ['ip', 'udp', 'tcp'].flatMap((p) => ['-o', `${p}.check_checksum:TRUE`]);
	// A segment that was sent again is no fault of the tunnel: streams are not put together.
	const apart = ['-o', 'tcp.desegment_tcp_streams:FALSE'];
	return run('tshark', ['-r', file, '-n', ...sums, ...apart, ...args], { timeoutMs: 60_000 })
		.stdout.split('\n')
		.filter(Boolean);
}

/** Values of fields, a row for each packet; of a field that is there more than once all, with commas. */
export function fieldsOf(file: string, fields: readonly string[]): string[][] {
	const rows = tshark(file, ['-T', 'fields', '-E', 'separator=|', ...fields.flatMap((f) => ['-e', f])]);
	return rows.map((l) => l.split('|'));
}

/**
 * Packets that are malformed, or have a bad checksum or another error, a line each. A TCP checksum that is right and
 * written 0xffff for 0 is Linux's (skb_checksum_help, one segment in 65 536), not ours: tshark calls that an error too.
 */
export function complaints(file: string): string[] {
	const bad = ['ip', 'udp', 'icmp', 'icmpv6'].map((p) => `${p}.checksum.status == "Bad"`);
	const others = '((_ws.expert.severity >= "Error" or tcp.checksum.status == "Bad") and not tcp.checksum.ffff)';
	return tshark(file, ['-Y', ['_ws.malformed', others, ...bad].join(' or ')]);
}

/**
 * A capture of VXLAN is nothing but VXLAN of one network, of both ends, with all that was sent in it.
 * @param from outer address of one end
 */
export function wrongVxlan(file: string, vni: number, from: string): string | undefined {
	const rows = fieldsOf(file, ['frame.protocols', 'vxlan.vni', 'vxlan.flags', 'ip.src', 'frame.len']);
	const kinds = ['ip:icmp', 'ipv6:icmpv6', 'ip:tcp', 'ipv6:tcp', 'ip:udp', 'ipv6:udp'];
	for (const kind of kinds)
		for (const ours of [true, false])
			if (
				!rows.some(
					([protocols, , , source]) =>
						protocols.includes(`udp:vxlan:eth:ethertype:${kind}`) && (source.split(',')[0] === from) === ours,
				)
			)
				return `no ${kind} ${ours ? 'from' : 'to'} ${from}`;
	for (const [protocols, id, flags, , length] of rows) {
		if (!protocols.startsWith('eth:ethertype:ip:udp:vxlan:eth:ethertype:ip')) return protocols;
		if (id !== `${vni}` || Number(flags) !== 0x0800) return `VNI ${id}, flags ${flags}`;
		if (Number(length) > 1514) return `${length} bytes on a wire of 1500`;
	}
	return complaints(file)[0];
}
