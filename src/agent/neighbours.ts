/** Next hops' MACs: installed so that the kernel keeps them resolved, and read back. */
import { createSocket } from 'node:dgram';
import { json, type Run } from './exec.js';

export interface Neighbour {
	readonly address: string;
	readonly device: string;
	readonly mac: string | undefined;
	readonly managed: boolean;
	readonly failed: boolean;
	/** Entered by hand (`nud permanent`): never touched. */
	readonly permanent: boolean;
}

interface RawNeighbour {
	dst?: string;
	dev?: string;
	lladdr?: string;
	managed?: null;
	state?: string[];
}

export async function readNeighbours(run: Run): Promise<Map<string, Neighbour>> {
	const out = new Map<string, Neighbour>();
	for (const n of json<RawNeighbour>(await run('ip', ['-j', 'neigh', 'show']))) {
		if (n.dst === undefined || n.dev === undefined) continue;
		const state = n.state ?? [];
		out.set(`${n.dev} ${n.dst}`, {
			address: n.dst,
			device: n.dev,
			mac: n.lladdr,
			managed: 'managed' in n,
			failed: state.includes('FAILED') || state.includes('INCOMPLETE'),
			permanent: state.includes('PERMANENT') || state.includes('NOARP'),
		});
	}
	return out;
}

/**
 * Asks the kernel to resolve a neighbour now, to probe it again every few seconds and never to collect it
 * (NTF_EXT_MANAGED, Linux 5.16; NTF_EXT_LEARNED).
 */
export async function manage(run: Run, device: string, address: string): Promise<void> {
	await run('ip', ['neigh', 'replace', address, 'dev', device, 'managed', 'extern_learn']);
}

export async function forget(run: Run, device: string, address: string): Promise<void> {
	await run('ip', ['neigh', 'del', address, 'dev', device]).catch(() => '');
}

/** Makes the kernel resolve an address by sending it one datagram of no content; port 9 is discard (RFC 863). */
export function nudge(address: string): Promise<void> {
	return new Promise((resolve) => {
		const s = createSocket(address.includes(':') ? 'udp6' : 'udp4');
		const done = () => {
			try {
				s.close();
			} catch {
				// Closed already: an error came after the send.
			}
			resolve();
		};
		s.on('error', done);
		s.send(new Uint8Array(0), 9, address, done);
	});
}
