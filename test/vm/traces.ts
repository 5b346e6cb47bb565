/** What a node's network and BPF file system hold, to be compared before and after. */
import type { Swarm } from '../swarm/swarm.js';

/** What of Beeline, or touched by it, there is on the node. */
export function traces(swarm: Swarm): Record<string, unknown> {
	const run = (...command: string[]) => swarm.exec(1, command, true).stdout;
	const kinds = (what: string, of: (x: Record<string, unknown>) => unknown) =>
		(JSON.parse(run('bpftool', '-j', what, 'show') || '[]') as Record<string, unknown>[]).map(of).sort();
	return {
		programs: kinds('prog', (x) => `${x.type} ${x.name ?? ''}`),
		maps: kinds('map', (x) => `${x.type} ${x.name ?? ''}`),
		links: kinds('link', (x) => x.type),
		pins: run('ls', '/sys/fs/bpf'),
		qdiscs: run('tc', 'qdisc', 'show'),
		reserved: run('cat', '/proc/sys/net/ipv4/ip_local_reserved_ports'),
		rules: run('iptables-save')
			.replace(/^#.*\n/gm, '')
			.replace(/\[\d+:\d+\]/g, ''),
		links2: run('ip', '-o', 'link', 'show').replace(/^\d+: |qdisc \S+ /gm, ''),
		neighbours: run('ip', 'neigh', 'show')
			.split('\n')
			.filter((l) => l.includes('extern_learn')),
	};
}
