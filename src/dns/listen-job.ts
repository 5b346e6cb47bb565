/** Runs in a Worker of libbpf-ts: makes the two sockets of a namespace. Their fds are the process's. */
import { randomInt } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { BpfError, type Listeners, listenersOn, loopbackUp, netnsCookie, withinNetns } from 'libbpf-ts';
import { parseSockets, writtenAs } from '../proc-net.js';

export interface ListenJob {
	readonly netns: string;
	/** Host order. */
	readonly address: number;
	readonly port: number;
	/** Where Docker's resolver has the address: `never`, `maybe`: where it is there already, `soon`: it will be, if it is not. */
	readonly docker: 'never' | 'maybe' | 'soon';
}

export type ListenResult =
	| (Listeners & {
			readonly identity: string;
			/** Beside Docker's resolver: what bpf_get_netns_cookie() returns there, and the port. */
			readonly beside?: { readonly cookie: bigint; readonly port: number };
	  })
	/** Somebody else answers there, and who that may be. */
	| { readonly held: string };

const EADDRINUSE = 98;
/** IANA's dynamic ports: what an image's own servers listen on is below. */
const DYNAMIC = [49152, 65536] as const;
const TRIES = 16;

const isTaken = (e: unknown): boolean => e instanceof BpfError && e.errno === EADDRINUSE;

/** Docker's resolver has port 53 by a rule of its namespace: ours is any other, and `socket` knows it. */
function dynamic(address: number): Listeners & { readonly port: number } {
	for (let left = TRIES; ; left--) {
		const port = randomInt(...DYNAMIC);
		try {
			return { ...listenersOn(address, port), port };
		} catch (e) {
			if (!isTaken(e) || left === 0) throw e;
		}
	}
}

export function run(job: ListenJob): ListenResult {
	return withinNetns(job.netns, () => {
		// Docker's resolver has a port of its own choice on this address, and rules that turn port 53 there: binding 53 would
		// succeed and never be asked.
		const [local] = writtenAs([24, 16, 8, 0].map((s) => (job.address >>> s) & 255).join('.'));
		const isThere = parseSockets(readFileSync('/proc/thread-self/net/udp', 'utf8')).some((s) => s.local === local);
		if (isThere && job.docker === 'never')
			return { held: "a resolver is there already (Docker's, or another agent's)" };
		// `ip netns add` leaves lo down, and then there is no 127.0.0.11 to ask.
		loopbackUp();
		const { ino, dev } = statSync('/proc/thread-self/ns/net');
		const identity = `${dev}:${ino}`;
		if (isThere || job.docker === 'soon') {
			const { port, ...listeners } = dynamic(job.address);
			return { ...listeners, identity, beside: { cookie: netnsCookie(), port } };
		}
		try {
			return { ...listenersOn(job.address, job.port), identity };
		} catch (e) {
			if (isTaken(e)) return { held: `a server of its own has port ${job.port} there` };
			throw e;
		}
	});
}
