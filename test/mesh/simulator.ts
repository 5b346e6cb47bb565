/**
 * Four ingress nodes, one service, clients, and a trivial model: a map of which backend owns which flow. Each node runs
 * the whole control river (plan, entries, reconcile) on a store of its own and gets each membership when it gets it.
 *
 *     clients ──packets──▶ node 0…3 ──pick──▶ backend      a flow that its owner's life did not end
 *     operator ─membership─▶ (delays, restarts)            must stay with its owner
 */

import { PORT_FRONTEND_MASK } from '../../src/loader/layout.gen.js';
import { type Entries, entries, type LocalFacts, portKey } from '../../src/mesh/entries.js';
import { createIds, type Ids } from '../../src/mesh/ids.js';
import { HEALTHY, type Mesh, plan } from '../../src/mesh/plan.js';
import { createReconciler, type Reconciler } from '../../src/mesh/reconcile.js';
import type { MeshStore } from '../../src/mesh/store.js';
import type { BackendState, Membership, ServiceOptions } from '../../src/mesh/types.js';
import { createMemoryStore } from './memory-store.js';
import { createPicker, type Kind, type Picker, type PickerLimits } from './picker.js';

export interface Profile {
	readonly name: string;
	/** Seconds that a membership may take to a node; node 1 takes `slow` more now and then. */
	readonly delay: number;
	readonly slow: number;
	/** Random SYNs a second, in bursts of 20 s. */
	readonly flood: number;
	readonly limits: PickerLimits;
	/** Chance of an agent's restart, each 2 s. */
	readonly restart: number;
	readonly resize: boolean;
	/** Share of UDP flows. */
	readonly udp: number;
	/** SYNs a second with a living flow's 5-tuple and another sequence number. */
	readonly spoof: number;
	/** Chance that a flow is idle for longer than the window. */
	readonly longIdle: number;
	/** Chance per packet that a flow comes in by another node. */
	readonly move: number;
	readonly kinds: readonly ('add' | 'drain' | 'remove' | 'die' | 'flap' | 'weight' | 'roll' | 'track')[];
	/** Of the service at first. */
	readonly tracking: Tracking;
	/** What `track` changes it to, in turn. */
	readonly trackings: readonly Tracking[];
}

type Tracking = ServiceOptions['tracking'];

export const base: Profile = {
	name: 'one view',
	delay: 0,
	slow: 0,
	flood: 0,
	limits: { halfOpen: 65536, conntrack: 262144, old: 131072 },
	restart: 0,
	resize: false,
	udp: 0,
	spoof: 0,
	longIdle: 0,
	move: 0,
	kinds: ['add', 'drain', 'remove', 'die', 'weight', 'roll'],
	tracking: 'auto',
	trackings: ['always', 'auto'],
};

/** All that may happen, at once. */
export const everything: Partial<Profile> = {
	resize: true,
	delay: 4,
	slow: 20,
	restart: 0.02,
	spoof: 1,
	udp: 0.2,
	flood: 500,
	kinds: [...base.kinds, 'flap'],
};

export interface Outcome {
	readonly packets: number;
	readonly flows: number;
	readonly changes: number;
	/** Established TCP flows sent to another living backend although theirs lived. */
	readonly established: number;
	/** Handshakes whose ACK went elsewhere than the SYN. */
	readonly handshakes: number;
	readonly udp: number;
	/** Packets of living flows sent to a dead backend. */
	readonly stalled: number;
	/** Flows that moved because the mesh held their backend for down. */
	readonly decided: number;
	readonly newToDraining: number;
	readonly peak: number;
	/** What the first moved flows did. */
	readonly examples: readonly string[];
}

const WINDOW_S = 60;
const DRAIN_S = 30;
const NODES = 4;

function rng(seed: number): () => number {
	let a = seed >>> 0;
	return () => {
		a = (a + 0x6d2b79f5) | 0;
		let t = Math.imul(a ^ (a >>> 15), 1 | a);
		t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
		return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
	};
}

/** Events in the order of their time. */
class Agenda {
	private readonly heap: { at: number; run: () => void | Promise<void> }[] = [];
	now = 0;
	push(at: number, run: () => void | Promise<void>): void {
		const h = this.heap;
		let i = h.length;
		h.push({ at, run });
		while (i > 0) {
			const up = (i - 1) >> 1;
			if (h[up].at <= h[i].at) break;
			[h[up], h[i]] = [h[i], h[up]];
			i = up;
		}
	}
	pop(): void | Promise<void> {
		const h = this.heap;
		const top = h[0];
		const last = h.pop() as (typeof h)[number];
		if (h.length > 0) {
			h[0] = last;
			for (let i = 0; ; ) {
				let c = 2 * i + 1;
				if (c >= h.length) break;
				if (c + 1 < h.length && h[c + 1].at < h[c].at) c++;
				if (h[i].at <= h[c].at) break;
				[h[c], h[i]] = [h[i], h[c]];
				i = c;
			}
		}
		this.now = top.at;
		return top.run();
	}
}

const options: ServiceOptions = {
	returnPath: 'auto',
	affinity: 'none',
	tracking: 'auto',
	trackingWindowMs: WINDOW_S * 1000,
	udpWindowMs: WINDOW_S * 1000,
	tableSize: 128,
	drainTimeoutMs: DRAIN_S * 1000,
	addresses: [],
	allow: [],
	deny: [],
	prefer: 'none',
	enable: true,
};

/** One ingress node: its maps outlive its agent. */
class Node {
	readonly world: World;
	readonly store: MeshStore;
	readonly picker: Picker;
	version = 0;
	private ids!: Ids;
	private reconciler!: Reconciler;
	private mesh: Mesh | undefined;
	private entries: Entries | undefined;
	private membership: Membership | undefined;
	private busy: Promise<void> = Promise.resolve();
	private wakeAtMs: number | undefined;

	constructor(
		readonly index: number,
		private readonly agenda: Agenda,
		newWorld: NewWorld,
		limits: PickerLimits,
	) {
		this.world = newWorld(limits);
		this.store = this.world.store;
		this.picker = this.world.picker;
		this.start();
	}
	private start(): void {
		this.ids = createIds();
		this.clock();
		this.reconciler = createReconciler(this.store, this.ids, this.agenda.now * 1000);
		this.mesh = undefined;
		this.entries = undefined;
	}
	clock(): void {
		this.world.setNow(1_000_000_000_000n + BigInt(Math.round(this.agenda.now * 1e9)));
	}
	apply(membership: Membership): Promise<void> {
		this.membership = membership;
		this.busy = this.busy.then(() => this.run());
		return this.busy;
	}
	restart(): Promise<void> {
		this.busy = this.busy.then(() => {
			this.start();
			return this.run();
		});
		return this.busy;
	}
	settle(): void {
		this.clock();
		this.reconciler.settle();
	}
	private async run(): Promise<void> {
		if (!this.membership) return;
		this.clock();
		const nowMs = this.agenda.now * 1000;
		const mesh: Mesh = plan({
			membership: this.membership,
			self: `node${this.index}`,
			health: HEALTHY,
			nowMs,
			previous: this.mesh,
		});
		this.mesh = mesh;
		this.entries = entries(
			mesh,
			facts,
			{ vni: 1, vxlanPort: 4789, staleAfterMs: 1, returnPath: 'auto', trace: false },
			this.ids,
			nowMs,
			this.entries,
		);
		const result = await this.reconciler.reconcile(this.entries, nowMs);
		if (result.errors.length > 0) throw new Error(JSON.stringify(result.errors));
		const at = result.wakeAtMs;
		if (at !== undefined && at !== this.wakeAtMs) {
			this.wakeAtMs = at;
			// A millisecond late: at / 1000 × 1000 may be less than at, for ever.
			this.agenda.push(Math.max(this.agenda.now, at / 1000) + 0.001, () => {
				this.wakeAtMs = undefined;
				this.busy = this.busy.then(() => this.run());
				return this.busy;
			});
		}
	}
}

const facts: LocalFacts = {
	uplinks: [],
	vtep: '192.168.0.1',
	netnsCookie: 1n,
	mark: 1,
	nextHops: new Map(),
	dsrProven: new Set(),
	endpoints: new Map(),
	localPorts: [],
	gateways: new Map(),
	standInPorts: [1024, 31744],
	kernelPorts: new Set(),
	refusedPorts: new Map(),
};

/** Maps of one node, and the packet side on them: the rules in TypeScript, or the BPF programs on real maps. */
export interface World {
	readonly store: MeshStore;
	readonly picker: Picker;
	/** What `store.now()` and the packet side take for CLOCK_BOOTTIME from here on. */
	setNow(ns: bigint): void;
	/** Called once at the end, also after a failure. */
	close(): void;
}
export type NewWorld = (limits: PickerLimits) => World;

/** The model publishes port 8080, TCP and UDP. */
export const typescriptWorld: NewWorld = (limits) => {
	const store = createMemoryStore(false);
	const picker = createPicker(store, limits, (udp) => {
		const index = store.ports.get(portKey(udp ? 'udp' : 'tcp', 8080));
		return index === undefined ? undefined : store.frontends.get(index & PORT_FRONTEND_MASK);
	});
	return {
		store,
		picker,
		setNow(ns) {
			store.memory.nowNs = ns;
		},
		close() {},
	};
};

interface Backend {
	readonly id: number;
	/** Raised when it starts anew: flows of an earlier life are dead. */
	life: number;
	alive: boolean;
	state: BackendState | 'gone';
	weight: number;
}

interface Flow {
	key: number;
	isn: number;
	udp: boolean;
	owner: Backend | undefined;
	life: number;
	mac: string | undefined;
	incarnation: string | undefined;
	node: number;
	left: number;
	established: boolean;
	ended: boolean;
	tries: number;
	idler: boolean;
	fin: boolean;
	unpromised: boolean;
	log: string[];
}

/** Runs until `packets` packets were sent. */
export async function simulate(
	p: Profile,
	seed: number,
	packets: number,
	newWorld: NewWorld = typescriptWorld,
): Promise<Outcome> {
	const r = rng(seed * 7919 + 13);
	const rf = rng(seed * 104729 + 7);
	const agenda = new Agenda();
	const out = {
		packets: 0,
		flows: 0,
		changes: 0,
		established: 0,
		handshakes: 0,
		udp: 0,
		stalled: 0,
		decided: 0,
		newToDraining: 0,
		peak: 0,
		examples: [] as string[],
	};
	const nodes = Array.from({ length: NODES }, (_, i) => new Node(i, agenda, newWorld, p.limits));
	const backends = new Map<number, Backend>();
	const byMac = new Map<string, Backend>();
	const retired: number[] = [];
	const living: Flow[] = [];
	let nextId = 1;
	let version = 0;
	let { tracking } = p;
	let tracks = 0;

	// --- control
	const sizeOf = (n: number) => (!p.resize ? 128 : n <= 4 ? 32 : n <= 8 ? 128 : 512);
	const publish = async () => {
		out.changes++;
		const listed = [...backends.values()].filter((b) => b.state !== 'gone');
		const serving = listed.filter((b) => b.state === 'active').length;
		const membership: Membership = {
			nodes: Array.from({ length: NODES }, (_, i) => ({
				name: `node${i}`,
				address: `192.168.0.${i + 1}`,
				drained: false,
			})),
			services: [
				{
					name: 'web',
					ports: [
						{ published: 8080, target: 80, protocol: 'tcp' },
						{ published: 8080, target: 80, protocol: 'udp' },
					],
					options: { ...options, tracking, tableSize: sizeOf(serving) },
					tasks: listed.map((b) => ({
						node: `node${b.id % NODES}`,
						address4: `10.0.${b.id >> 8}.${b.id & 255}`,
						weight: b.weight,
						state: b.state as BackendState,
					})),
				},
			],
			networks: [],
		};
		const v = ++version;
		// Nothing is promised to who was open when a table changed with `none`, until it has been seen where it is now.
		if (tracking === 'none') for (const f of living) f.unpromised = true;
		for (const n of nodes) {
			const late = p.delay > 0 && v > 1 ? r() * r() * p.delay + (n.index === 1 && r() < 0.2 ? p.slow : 0) : 0;
			const arrive = () => {
				// The latest view wins: nodes skip versions.
				if (v <= n.version) return undefined;
				n.version = v;
				return n.apply(membership).then(() => {
					for (const [, row] of n.store.backends.entries())
						if (row.state !== 0 && !byMac.has(row.mac)) learn(membership);
				});
			};
			if (late === 0) await arrive();
			else agenda.push(agenda.now + late, arrive);
		}
	};
	const learn = (membership: Membership) => {
		const mesh = plan({ membership, self: 'node0', health: HEALTHY, nowMs: 0 });
		for (const b of mesh.services.get('web')?.backends ?? []) {
			const [, , c, d] = (b.address4 as string).split('.').map(Number);
			byMac.set(b.mac, backends.get(c * 256 + d) as Backend);
		}
	};
	const add = (fresh: boolean): Backend => {
		let b: Backend;
		if (!fresh && retired.length > 0 && r() < 0.5) {
			b = backends.get(retired.splice(Math.floor(r() * retired.length), 1)[0]) as Backend;
			b.life++;
		} else {
			b = { id: nextId++, life: 1, alive: true, state: 'active', weight: 1 };
			backends.set(b.id, b);
		}
		b.alive = true;
		b.state = 'active';
		b.weight = 1;
		return b;
	};
	const bury = (b: Backend) => {
		b.alive = false;
		b.state = 'gone';
		retired.push(b.id);
	};
	const active = () => [...backends.values()].filter((b) => b.state === 'active' && b.alive);
	const drain = (b: Backend, seconds: number) => {
		b.state = 'draining';
		const { life } = b;
		const back = r() < 0.3;
		agenda.push(agenda.now + (back ? r() : 1) * seconds, () => {
			if (b.state !== 'draining' || b.life !== life) return undefined;
			if (back) b.state = 'active';
			else bury(b);
			return publish();
		});
	};
	/** Taken out of the file at once: the agents drain it by themselves. */
	const remove = (b: Backend) => {
		b.state = 'gone';
		const { life } = b;
		agenda.push(agenda.now + DRAIN_S, () => {
			if (b.state === 'gone' && b.life === life) bury(b);
		});
	};
	const change = async () => {
		const a = active();
		const listed = [...backends.values()].filter((b) => b.state !== 'gone').length;
		const kind = p.kinds[Math.floor(r() * p.kinds.length)];
		const x = a[Math.floor(r() * a.length)];
		if (kind === 'add' && listed < 14) {
			add(false);
			if (r() < 0.3) add(false);
			await publish();
		} else if (kind === 'drain' && a.length > 2) {
			drain(x, DRAIN_S);
			await publish();
		} else if (kind === 'remove' && a.length > 2) {
			remove(x);
			await publish();
		} else if (kind === 'die' && a.length > 2) {
			x.alive = false;
			const { life } = x;
			agenda.push(agenda.now + 1 + 2 * r(), () => {
				if (x.life !== life || x.state !== 'active') return undefined;
				x.state = 'down';
				agenda.push(agenda.now + 20, () => {
					if (x.life !== life || x.state !== 'down') return undefined;
					if (r() < 0.5) {
						x.life++;
						x.alive = true;
						x.state = 'active';
					} else bury(x);
					return publish();
				});
				return publish();
			});
		} else if (kind === 'flap' && a.length > 2) {
			x.state = 'down';
			await publish();
			agenda.push(agenda.now + 5 + 10 * r(), () => {
				if (x.state !== 'down' || !x.alive) return undefined;
				x.state = 'active';
				return publish();
			});
		} else if (kind === 'track') {
			tracking = p.trackings[tracks++ % p.trackings.length];
			await publish();
		} else if (kind === 'weight') {
			x.weight = 1 + Math.floor(r() * 4);
			await publish();
		} else if (kind === 'roll' && listed < 12) {
			const n = Math.max(1, Math.floor(a.length * r()));
			for (let i = 0; i < n; i++)
				agenda.push(agenda.now + i * 3, () => {
					const y = a[i];
					if (y.state !== 'active' || !y.alive) return undefined;
					add(true);
					agenda.push(agenda.now + 1, () => {
						if (y.state !== 'active' || !y.alive || active().length <= 1) return undefined;
						drain(y, 20);
						return publish();
					});
					return publish();
				});
		}
		agenda.push(agenda.now + 10 * (0.2 + 1.6 * r()), change);
	};
	for (let i = 0; i < 6; i++) add(true);
	await publish();
	out.changes = 0;
	agenda.push(10, change);
	const tick = async () => {
		for (const n of nodes) {
			n.settle();
			if (p.restart > 0 && r() < p.restart) await n.restart();
		}
		agenda.push(agenda.now + 2, tick);
	};
	agenda.push(2, tick);

	// --- packets
	let lastMac: string | undefined;
	/** The incarnation of a backend on a node: a node that took it for gone has another when it comes back. */
	const incarnation = (node: number, mac: string | undefined): string | undefined => {
		for (const [index, row] of nodes[node].store.backends.entries())
			if (row.mac === mac && row.state !== 0) return `${index}/${row.generation}/${row.state}`;
		return undefined;
	};
	const own = (f: Flow, b: Backend) => {
		f.owner = b;
		f.life = b.life;
		f.mac = lastMac;
		f.incarnation = incarnation(f.node, lastMac)?.replace(/\d+$/, '');
	};
	const send = (f: { key: number; isn: number; node: number; log?: string[] }, kind: Kind): Backend | undefined => {
		if (p.move > 0 && rf() < p.move) f.node = Math.floor(rf() * NODES);
		const n = nodes[f.node];
		n.clock();
		out.packets++;
		const mac = n.picker.pick({ key: f.key, kind, isn: f.isn });
		lastMac = mac;
		const b = mac === undefined ? undefined : byMac.get(mac);
		f.log?.push(`${agenda.now.toFixed(1)} ${kind} ${b?.id ?? '-'}`);
		return b;
	};
	const ended: number[] = [];
	let nextKey = 1;
	const lives = (f: Flow): boolean => f.owner?.alive === true && f.owner.life === f.life;
	const end = (f: Flow) => {
		f.ended = true;
		if ((f.left <= 0 && f.fin) || rf() < 0.1) ended.push(f.key);
		if (ended.length > 500) ended.shift();
		const i = living.indexOf(f);
		if (i >= 0) {
			living[i] = living[living.length - 1];
			living.pop();
		}
	};
	const gap = (f: Flow): number =>
		f.idler ? (rf() < p.longIdle ? WINDOW_S * (1 + rf()) : rf() * WINDOW_S * 0.9) : -Math.log(1 - rf()) * 4;
	const moved = (f: Flow, to: Backend, what: 'established' | 'handshakes' | 'udp') => {
		const owner = f.owner as Backend;
		const seen = incarnation(f.node, f.mac);
		// The promise holds while the mesh holds that backend alive. One that it takes for down is not, nor one whose
		// drainTimeout was over on this node before it heard that the drain was taken back.
		if (f.unpromised || owner.state === 'down' || !seen?.startsWith(f.incarnation ?? '?') || seen.endsWith('/3')) {
			out.decided++;
			end(f);
			return;
		}
		out[what]++;
		if (out.examples.length < 3)
			out.examples.push(
				`flow ${f.key} of ${owner.id} on node ${f.node} sent to ${to.id}: ${f.log.slice(-6).join(', ')}`,
			);
		end(f);
		return;
	};
	const data = (f: Flow): void => {
		if (f.ended) return;
		if (!lives(f)) {
			end(f);
			return;
		}
		const last = --f.left <= 0;
		const to = send(f, f.udp ? 'udp' : last && f.fin ? 'fin' : 'data');
		if (to !== f.owner) {
			if (to?.alive) {
				moved(f, to, f.udp ? 'udp' : 'established');
				return;
			}
			out.stalled++;
			agenda.push(agenda.now + 1, () => data(f));
			return;
		}
		f.unpromised = false;
		if (!last) {
			agenda.push(agenda.now + gap(f), () => data(f));
			return;
		}
		if (f.fin && !f.udp)
			agenda.push(agenda.now + 0.05, () => {
				if (!f.ended && lives(f)) send(f, 'data');
				end(f);
			});
		else end(f);
	};
	const syn = (f: Flow): void => {
		if (f.ended) return;
		const b = send(f, 'syn');
		if (!b?.alive) {
			if (++f.tries < 3) agenda.push(agenda.now + 1, () => syn(f));
			else end(f);
			return;
		}
		if (b.state === 'draining') out.newToDraining++;
		// After a repeated SYN that went elsewhere, the first backend's SYN-ACK may win all the same.
		if (!(f.tries > 0 && f.owner && f.owner !== b && lives(f) && rf() < 0.5)) {
			own(f, b);
		}
		if (rf() < 0.01 && f.tries < 2) {
			f.tries++;
			agenda.push(agenda.now + 1, () => syn(f));
			return;
		}
		agenda.push(agenda.now + 0.02 + rf() * 0.1, () => {
			if (f.ended) return;
			if (!lives(f)) {
				end(f);
				return;
			}
			const to = send(f, 'ack');
			if (to !== f.owner) {
				if (to?.alive) {
					moved(f, to, 'handshakes');
					return;
				}
				out.stalled++;
			}
			f.established = true;
			agenda.push(agenda.now + gap(f), () => data(f));
		});
	};
	const arrive = () => {
		const again = ended.length > 0 && rf() < 0.1;
		const f: Flow = {
			key: again ? ended.splice(Math.floor(rf() * ended.length), 1)[0] : nextKey++,
			isn: Math.floor(rf() * 4294967296),
			udp: rf() < p.udp,
			owner: undefined,
			life: 0,
			mac: undefined,
			incarnation: undefined,
			node: Math.floor(rf() * NODES),
			left: 1 + Math.floor(-Math.log(1 - rf()) * 20),
			established: false,
			ended: false,
			tries: 0,
			idler: rf() < 0.05,
			fin: rf() < 0.7,
			unpromised: false,
			log: [],
		};
		out.flows++;
		living.push(f);
		if (f.udp) {
			const b = send(f, 'udp');
			if (!b?.alive) end(f);
			else {
				own(f, b);
				agenda.push(agenda.now + gap(f), () => data(f));
			}
		} else syn(f);
		agenda.push(agenda.now - Math.log(1 - rf()) * 0.05, arrive);
	};
	agenda.push(0.1, arrive);
	if (p.flood > 0) {
		const flood = () => {
			if (Math.floor(agenda.now / 20) % 4 === 3)
				for (let i = 0; i < 20; i++)
					send({ key: 1e9 + Math.floor(rf() * 1e9), isn: 1, node: Math.floor(rf() * NODES) }, 'syn');
			agenda.push(agenda.now + 20 / p.flood, flood);
		};
		agenda.push(1, flood);
	}
	if (p.spoof > 0) {
		const spoof = () => {
			const f = living[Math.floor(rf() * living.length)];
			if (f?.established) send({ key: f.key, isn: 12345, node: f.node }, 'syn');
			agenda.push(agenda.now + 1 / p.spoof, spoof);
		};
		agenda.push(1, spoof);
	}
	try {
		while (out.packets < packets) {
			const wait = agenda.pop();
			if (wait) await wait;
		}
		for (const n of nodes) out.peak = Math.max(out.peak, n.picker.peak());
		return out;
	} finally {
		for (const n of nodes) n.world.close();
	}
}
