/**
 * Proof of DSR: may this node send with the source address of node A? It sends a third node C a probe with A's address as
 * source that asks C to answer to this node itself, and beside it a control probe with its own source. The first answered:
 * such packets get through. Only the control answered: something on the way swallows them. Neither: C says nothing about A.
 *
 * What is not proven: the way to a client may lie elsewhere than the way to C, and IPv6 (VTEPs are IPv4).
 */

/** Another node, as the prober sees it. */
export interface DsrTarget {
	/** IPv4, host order. */
	readonly address: number;
	/** It answers probes. */
	readonly answers: boolean;
	readonly rttMs: number | undefined;
}

export interface DsrSend {
	/** Of node C. */
	readonly to: number;
	/** undefined: this node's own. */
	readonly source: number | undefined;
	/** Low half of the nonce. */
	readonly nonce: number;
}

interface Test {
	readonly via: number;
	readonly deadline: number;
	spoofed: boolean;
	control: boolean;
}

interface Proof {
	proven: boolean;
	/** In a row. */
	successes: number;
	failures: number;
	due: number;
	test: Test | undefined;
}

/** Answers in a row that prove, and failures in a row that disprove. */
export const DSR_SUCCESSES = 2;
export const DSR_FAILURES = 3;
/** What is proven is tested again this often: for so long flows may be lost when a network begins to swallow them. */
export const DSR_AGAIN_MS = 10_000;
/** What failed is asked again at once, and then at leisure: a network that swallows seldom changes. */
export const DSR_RETRY_MS = 500;
export const DSR_GIVEN_UP_MS = 30_000;
const ANSWER_MS = 300;
/** Tests begun in one turn: 1000 nodes must not be a burst. */
const AT_ONCE = 16;

export class DsrProofs {
	readonly #random: () => number;
	readonly #nonce: () => number;
	readonly #proofs = new Map<number, Proof>();
	readonly #pending = new Map<number, { readonly test: Test; readonly kind: 'spoofed' | 'control' }>();

	/** @param nonce a number of 32 bits that was not used lately */
	constructor(random: () => number, nonce: () => number) {
		this.#random = random;
		this.#nonce = nonce;
	}

	/** Whether packets with this source address (IPv4, host order) are known to arrive. */
	proven(address: number): boolean {
		return this.#proofs.get(address)?.proven ?? false;
	}

	/** An answer came. Whether it was to one of these tests. */
	answered(nonce: number, from: number): boolean {
		const p = this.#pending.get(nonce);
		if (p === undefined) return false;
		if (from === p.test.via) p.test[p.kind] = true;
		return true;
	}

	/** Forgets everything: nobody wants to know any more. Whether anything had been proven. */
	clear(): boolean {
		const any = [...this.#proofs.values()].some((p) => p.proven);
		this.#proofs.clear();
		this.#pending.clear();
		return any;
	}

	/**
	 * Judges tests that are over and begins those that are due.
	 * @returns whether what is proven changed
	 */
	turn(now: number, targets: readonly DsrTarget[], send: (list: readonly DsrSend[]) => void): boolean {
		let changed = false;
		const known = new Set(targets.map((t) => t.address));
		for (const [address, p] of this.#proofs) {
			if (!known.has(address)) {
				changed ||= p.proven;
				this.#proofs.delete(address);
			}
		}
		const able = targets.filter((t) => t.answers);
		const out: DsrSend[] = [];
		let begun = 0;
		for (const target of targets) {
			let p = this.#proofs.get(target.address);
			if (p === undefined) {
				p = { proven: false, successes: 0, failures: 0, due: now, test: undefined };
				this.#proofs.set(target.address, p);
			}
			const { test } = p;
			if (test !== undefined) {
				if (!test.spoofed && now < test.deadline) continue;
				p.test = undefined;
				if (this.#judge(p, test, now)) changed = true;
			}
			// Nothing enters by a node that is down, so nothing need be known of it; what was known stays.
			if (now < p.due || !target.answers || begun >= AT_ONCE) continue;
			const via = this.#third(able, target);
			if (via === undefined) continue;
			begun++;
			p.test = {
				via: via.address,
				deadline: now + Math.max(ANSWER_MS, 3 * (via.rttMs ?? 0)),
				spoofed: false,
				control: false,
			};
			for (const kind of ['control', 'spoofed'] as const) {
				const nonce = this.#nonce();
				this.#pending.set(nonce, { test: p.test, kind });
				out.push({ to: via.address, source: kind === 'control' ? undefined : target.address, nonce });
			}
		}
		for (const [nonce, { test }] of this.#pending) {
			if (now > test.deadline + 1000) this.#pending.delete(nonce);
		}
		if (out.length > 0) send(out);
		return changed;
	}

	#third(able: readonly DsrTarget[], target: DsrTarget): DsrTarget | undefined {
		const n = able.length;
		if (n === 0) return undefined;
		const first = Math.floor(this.#random() * n) % n;
		const one = able[first];
		if (one.address !== target.address) return one;
		return n > 1 ? able[(first + 1) % n] : undefined;
	}

	#judge(p: Proof, test: Test, now: number): boolean {
		const was = p.proven;
		const jitter = 0.9 + 0.2 * this.#random();
		if (test.spoofed) {
			p.failures = 0;
			p.successes++;
			if (p.successes >= DSR_SUCCESSES) p.proven = true;
			p.due = now + (p.proven ? DSR_AGAIN_MS * jitter : DSR_RETRY_MS);
		} else if (test.control) {
			p.successes = 0;
			p.failures++;
			if (p.failures >= DSR_FAILURES) p.proven = false;
			p.due = now + (p.failures < DSR_FAILURES ? DSR_RETRY_MS : DSR_GIVEN_UP_MS * jitter);
		} else {
			// C itself was silent: ask another.
			p.due = now + DSR_RETRY_MS;
		}
		return was !== p.proven;
	}
}
