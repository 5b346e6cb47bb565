import type { Mesh } from '../mesh/plan.js';

/** How long a backend that came while no agent ran may wait for its node's agent. */
const WAIT_MS = 15_000;

export interface NewcomersDeps {
	/** MACs of what an earlier agent had sent to; undefined: there was none, and everything is new everywhere. */
	readonly before: ReadonlySet<string> | undefined;
	readonly nowMs: () => number;
	/** By node, what its tables are as its answers to probes say; none, null: it does not answer, or not yet. */
	readonly views: () => ReadonlyMap<string, { readonly digest: bigint | null }>;
}

/**
 * Says keys of backends whose node does not know them yet: its digest, in its answers to probes, is not ours. Agents that
 * were stopped start seconds or minutes apart; flows sent there meanwhile would all be sent on by that node. (While
 * agents run, it is a matter of milliseconds, and the datapath's.)
 */
export function createNewcomers({ before, nowMs, views }: NewcomersDeps): (m: Mesh) => readonly string[] {
	/** Other nodes' backends that came while no agent ran here: until when they wait for their node, ms. */
	let waiting: Map<string, { readonly node: string; readonly until: number }> | undefined;
	return (m) => {
		if (waiting === undefined) {
			waiting = new Map();
			const until = nowMs() + WAIT_MS;
			for (const s of before === undefined ? [] : m.services.values()) {
				for (const b of s.backends) {
					if (b.node !== m.self && before?.has(b.mac) === false) waiting.set(b.key, { node: b.node, until });
				}
			}
		}
		if (waiting.size === 0) return [];
		const seen = views();
		for (const [key, w] of waiting) {
			const theirs = seen.get(w.node)?.digest;
			// A node that does not answer is no reason to wait: whether it is down is another question.
			if (nowMs() >= w.until || theirs === undefined || theirs === null || theirs === m.digest) waiting.delete(key);
		}
		return [...waiting.keys()];
	};
}
