/** Docker's own mesh on IPVS in a guest: what the stories of ./ipvs-guest.ts and ./stack-guest.ts have in common. */
import type { LoadReport } from '../support/netns.js';
import { waitFor } from '../support/wait.js';

export type Load = Pick<LoadReport, 'ok' | 'failures' | 'backends' | 'clients'>;
/** Of connections that are held open. */
export type Opened = Load & Pick<LoadReport, 'connections' | 'requests' | 'moved'>;

export const MODULES = ['ip_vs', 'ip_vs_rr', 'xt_ipvs', 'br_netfilter', 'veth', 'bridge', 'vxlan', 'overlay'] as const;

const began = performance.now();
/** On stderr, which the host passes on. */
export const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);

export const short = (r: LoadReport): Load => ({
	ok: r.ok,
	failures: r.failures,
	backends: r.backends,
	clients: r.clients,
});

/** Waits until `n` dials work and two tasks answer them. */
export async function answers(what: string, n: number, dial: () => Promise<Load>, note: (r: Load) => void) {
	await waitFor(
		`${what} to answer`,
		async () => {
			const r = await dial();
			note(r);
			return r.ok === n && Object.keys(r.backends).length === 2;
		},
		120_000,
		1000,
	);
}
