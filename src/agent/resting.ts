/**
 * Services that may have no tasks, on this node: their first packets are held until a backend is there, and managers are
 * told who is wanted and who is used (docs/decisions/0045).
 */
import type { Held } from '../loader/layout.gen.js';
import type { Entries } from '../mesh/entries.js';
import { DEMAND_MS, type Demand } from '../mesh/sources/docker-scale.js';
import type { HeldCounters } from '../metrics/registry.js';

const UDP = 17;
const MAX_HELD = 1024;
/** One service's crowd must not keep the others' clients out. */
const MAX_OF_SERVICE = 256;
/** Since the client asked last. TCP asks after 1, 3, 7 and 15 s. */
const EXPIRE_MS = 20_000;
/** A service that is still wanted is asked for again: a manager may have been lost on the way. */
const WANT_AGAIN_MS = 1000;
/**
 * When a SYN is put back, after a backend is known: that one's own node may be ready for it a moment later, and the client asks
 * again only after a second. A second copy is answered with an ACK. Of a datagram there is only one.
 */
const PUT_BACK_MS: readonly number[] = [0, 100, 250, 500, 750];
const PUT_BACK_UDP_MS: readonly number[] = [300];

export interface RestingDeps {
	listen(each: (held: Held, frame: Uint8Array) => void): () => void;
	/** @throws where the kernel does not take it */
	inject(ifindex: number, frame: Uint8Array): void;
	/** Packets that frontends of these indexes have seen. */
	packets(frontend: number): bigint;
	/** CLOCK_BOOTTIME, ns. */
	bootTimeNs(): bigint;
	demand(demand: Demand): void;
	readonly log: (text: string) => void;
	/** Shorter in tests, ms. */
	readonly demandMs?: number;
}

export interface Resting {
	/** The rows in force. */
	update(now: Entries): void;
	counters(): HeldCounters;
	close(): void;
}

interface Waiting {
	readonly frame: Uint8Array;
	readonly ifindex: number;
	readonly proto: number;
	readonly at: number;
}

interface Service {
	frontends: readonly number[];
	served: boolean;
	readonly waiting: Map<string, Waiting>;
	packets: bigint;
	wantedAt: number;
}

export function createResting(deps: RestingDeps): Resting {
	const services = new Map<string, Service>();
	const serviceOf = new Map<number, string>();
	const timers = new Set<NodeJS.Timeout>();
	const ended = { released: 0, expired: 0, crowded: 0 };
	const waiting = () => [...services.values()].reduce((n, s) => n + s.waiting.size, 0);
	let closed = false;
	const now = () => performance.now();

	const after = (ms: number, run: () => void): void => {
		const t = setTimeout(() => {
			timers.delete(t);
			if (!closed) run();
		}, ms);
		t.unref();
		timers.add(t);
	};

	function want(name: string, s: Service): void {
		if (now() - s.wantedAt < WANT_AGAIN_MS) return;
		s.wantedAt = now();
		deps.log(`service ${name} has no task, and ${s.waiting.size} packets wait`);
		deps.demand({ wanted: [name], busy: [] });
		after(WANT_AGAIN_MS, () => {
			for (const [flow, w] of s.waiting) {
				if (now() - w.at < EXPIRE_MS) continue;
				s.waiting.delete(flow);
				ended.expired++;
			}
			// The clock that ends this wait may be a little ahead of the one that is asked.
			s.wantedAt = Number.NEGATIVE_INFINITY;
			if (s.waiting.size > 0 && !s.served && services.get(name) === s) want(name, s);
		});
	}

	function putBack(w: Waiting): void {
		for (const ms of w.proto === UDP ? PUT_BACK_UDP_MS : PUT_BACK_MS)
			after(ms, () => {
				try {
					deps.inject(w.ifindex, w.frame);
				} catch {
					// The interface is gone, or takes no such frames: the client asks again.
				}
			});
		ended.released++;
	}

	function release(name: string, s: Service): void {
		if (s.waiting.size === 0) return;
		const first = Math.min(...[...s.waiting.values()].map((w) => w.at));
		deps.log(
			`service ${name} is there: ${s.waiting.size} packets are put back, the first after ${Math.round(now() - first)} ms`,
		);
		for (const w of s.waiting.values()) putBack(w);
		s.waiting.clear();
	}

	const stop = deps.listen((h, frame) => {
		const name = serviceOf.get(h.frontend);
		const s = name === undefined ? undefined : services.get(name);
		// What lay in the ring while no agent ran is nobody's any more.
		if (s === undefined || deps.bootTimeNs() - h.time_ns > BigInt(EXPIRE_MS) * 1_000_000n) return;
		if (frame.length > 0) {
			const w: Waiting = { frame, ifindex: h.ifindex, proto: h.proto, at: now() };
			const flow = `${h.proto} ${h.client} ${h.client_port} ${h.addr} ${h.port}`;
			if (s.served) return putBack(w);
			const hasRoom = s.waiting.has(flow) || (s.waiting.size < MAX_OF_SERVICE && waiting() < MAX_HELD);
			if (hasRoom) s.waiting.set(flow, w);
			else ended.crowded++;
		}
		if (!s.served) want(name as string, s);
	});

	const packetsOf = (s: Service) => s.frontends.reduce((n, i) => n + deps.packets(i), 0n);
	const ticker = setInterval(() => {
		if (services.size === 0) return;
		const busy: string[] = [];
		for (const [name, s] of services) {
			const packets = packetsOf(s);
			if (packets !== s.packets || s.waiting.size > 0) busy.push(name);
			s.packets = packets;
		}
		deps.demand({ wanted: [], busy });
	}, deps.demandMs ?? DEMAND_MS);
	ticker.unref();

	return {
		update(entries) {
			serviceOf.clear();
			const seen = new Set<string>();
			for (const [name, e] of entries.services) {
				if (e.mesh.spec?.scaleFromZero === undefined) continue;
				seen.add(name);
				const frontends = e.frontends.map((f) => f.index);
				for (const i of frontends) serviceOf.set(i, name);
				const served = e.mesh.backends.some((b) => b.state === 'active');
				let s = services.get(name);
				if (s === undefined) {
					s = { frontends, served, waiting: new Map(), packets: 0n, wantedAt: Number.NEGATIVE_INFINITY };
					s.packets = packetsOf(s);
					services.set(name, s);
				}
				s.frontends = frontends;
				s.served = served;
				if (served) release(name, s);
			}
			for (const [name, s] of services) {
				if (seen.has(name)) continue;
				ended.expired += s.waiting.size;
				s.waiting.clear();
				services.delete(name);
			}
		},
		counters: () => ({ waiting: waiting(), ended: { ...ended } }),
		close() {
			closed = true;
			stop();
			clearInterval(ticker);
			for (const t of timers) clearTimeout(t);
		},
	};
}
