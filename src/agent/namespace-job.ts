/** What is asked of a namespace, by a thread that is in it for the moment (Netns.visit). Nothing here may wait. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { netnsCookie } from 'libbpf-ts';

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

/** An address as /proc/net/udp and udp6 write it: words of 32 bits in host order. */
export function procAddresses(address: string): readonly string[] {
	const words = (bytes: readonly number[]): string => {
		let out = '';
		for (let i = 0; i < bytes.length; i += 4)
			for (let k = 3; k >= 0; k--) out += bytes[i + k].toString(16).padStart(2, '0').toUpperCase();
		return out;
	};
	if (!address.includes(':')) {
		const four = address.split('.').map(Number);
		// In a socket of IPv6 the address is mapped.
		return [words(four), words([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ...four])];
	}
	const [head, tail = ''] = address.split('::');
	const part = (s: string) => s.split(':').filter(Boolean);
	const gap = 8 - part(head).length - part(tail).length;
	const hextets = [...part(head), ...Array<string>(Math.max(0, gap)).fill('0'), ...part(tail)].map((x) =>
		Number.parseInt(x, 16),
	);
	return [words(hextets.flatMap((x) => [x >> 8, x & 255]))];
}

/** Remote addresses of connected sockets, of the thread's namespace. */
function connected(): string[] {
	return ['udp', 'udp6'].flatMap((file) => {
		let text: string;
		try {
			text = readFileSync(`/proc/thread-self/net/${file}`, 'latin1');
		} catch {
			return []; // a kernel without IPv6
		}
		return text
			.split('\n')
			.slice(1)
			.flatMap((line) => /^\s*\d+:\s\S+\s([0-9A-F]+):(?!0000)/.exec(line)?.[1] ?? []);
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
	const wanted = new Map(job.close.flatMap((a) => procAddresses(a).map((hex) => [hex, a] as const)));
	const count = () => connected().filter((hex) => wanted.has(hex));
	const found = count();
	if (found.length === 0) return { found: 0, left: 0 };
	for (const address of new Set(found.map((hex) => wanted.get(hex) as string)))
		spawnSync('ss', ['-K', '-u', '-n', 'dst', address], { stdio: 'ignore', timeout: 5000 });
	return { found: found.length, left: count().length };
}
