/** What is asked of a namespace, by a thread that is in it for the moment (Netns.visit). Nothing here may wait. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { netnsCookie } from 'libbpf-ts';
import { parseSockets, writtenAs } from '../proc-net.js';

export interface Interface {
	readonly mac: string;
	readonly address: string;
}

export interface Look {
	/** What bpf_get_netns_cookie() returns there. */
	readonly cookie: bigint;
	readonly interfaces: readonly Interface[];
}

export interface Closed {
	/** Connected UDP sockets that were closed, or should have been. */
	readonly found: number;
	/** Those that are still there: the kernel cannot close them. */
	readonly left: number;
}

/** `look`, or addresses: UDP sockets that are connected to one of them get ECONNABORTED. */
export type Job = { readonly look: true } | { readonly close: readonly string[] };

/** Remote addresses of connected sockets, as /proc writes them, of the thread's namespace. */
function connected(): string[] {
	return ['udp', 'udp6'].flatMap((file) => {
		let text: string;
		try {
			text = readFileSync(`/proc/thread-self/net/${file}`, 'latin1');
		} catch {
			return []; // a kernel without IPv6
		}
		return parseSockets(text).flatMap((s) => (s.remotePort === 0 ? [] : [s.remote]));
	});
}

export function run(job: Job): Look | Closed {
	if ('look' in job)
		return {
			cookie: netnsCookie(),
			interfaces: Object.values(networkInterfaces()).flatMap((list) =>
				(list ?? []).filter((i) => !i.internal).map(({ mac, address }) => ({ mac, address })),
			),
		};
	const wanted = new Map(job.close.flatMap((a) => writtenAs(a).map((hex) => [hex, a] as const)));
	const count = () => connected().filter((hex) => wanted.has(hex));
	const found = count();
	if (found.length === 0) return { found: 0, left: 0 };
	for (const address of new Set(found.map((hex) => wanted.get(hex) as string)))
		spawnSync('ss', ['-K', '-u', '-n', 'dst', address], { stdio: 'ignore', timeout: 5000 });
	return { found: found.length, left: count().length };
}
