/** Runs in a Worker of libbpf-ts: makes the two sockets of a namespace. Their fds are the process's. */
import { readFileSync, statSync } from 'node:fs';
import { BpfError, type Listeners, listenersOn, loopbackUp, withinNetns } from 'libbpf-ts';

export interface ListenJob {
	readonly netns: string;
	/** Host order. */
	readonly address: number;
	readonly port: number;
}

export type ListenResult =
	| (Listeners & { readonly identity: string })
	/** Somebody else answers there, and who that may be. */
	| { readonly held: string };

const EADDRINUSE = 98;

/** `0B00007F`: an address as /proc/net/udp writes it, on a little-endian machine. */
const procAddress = (address: number): string =>
	[0, 8, 16, 24]
		.map((s) => ((address >>> s) & 255).toString(16).padStart(2, '0'))
		.join('')
		.toUpperCase();

export function run(job: ListenJob): ListenResult {
	return withinNetns(job.netns, () => {
		// Docker's resolver has a port of its own choice on this address, and rules that turn port 53 there: binding 53 would
		// succeed and never be asked.
		const local = procAddress(job.address);
		for (const line of readFileSync('/proc/thread-self/net/udp', 'utf8').split('\n')) {
			const [at] = /[0-9A-F]{8}:[0-9A-F]{4}/.exec(line) ?? [];
			if (at?.startsWith(local)) return { held: "a resolver is there already (Docker's, or another agent's)" };
		}
		// `ip netns add` leaves lo down, and then there is no 127.0.0.11 to ask.
		loopbackUp();
		try {
			const { ino, dev } = statSync('/proc/thread-self/ns/net');
			return { ...listenersOn(job.address, job.port), identity: `${dev}:${ino}` };
		} catch (e) {
			if (e instanceof BpfError && e.errno === EADDRINUSE)
				return { held: `a server of its own has port ${job.port} there` };
			throw e;
		}
	});
}
