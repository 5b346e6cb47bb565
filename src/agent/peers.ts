/**
 * The other nodes, as this one sees them: who answers probes, whose agent is absent, whose tables differ, and by whose
 * address this node may reply (DSR). One UDP socket and one timer for all; a tick reads what came, judges, and sends what
 * is due, so the cost is two or three system calls a tick however many nodes there are.
 *
 * A node that stops answering is down after MISSES probes in a row: an interval and three timeouts, well under a second.
 * Nothing is judged while nothing can be sent, and a node that was never heard of counts as reachable until then.
 */
import { Datagrams } from 'libbpf-ts';
import { decodeAnswer, encodeProbe, ip4Number, type ReusedProbe, reusedProbe } from './probe.js';
import { DsrProofs, type DsrSend, type DsrTarget } from './probe-dsr.js';

/** At most so often anything is looked at; answers carry the kernel's times, so nothing is gained by looking at once. */
export const TICK_MS = 40;
/** Between probes of a node that answers, in a cluster of up to 200; each further node adds a little. */
export const INTERVAL_MS = 200;
export const INTERVAL_MOST_MS = 450;
/** An answer is waited for at least so long, and longer where the way is. */
export const TIMEOUT_MS = 100;
const TIMEOUT_MOST_MS = 500;
/** Probes in a row without an answer until a node is down, and with one until it is back. */
export const MISSES = 3;
export const ANSWERS = 2;
const SOON_MS = 50;
/** How often the dead are asked, by how long they have been. */
const DEAD: readonly (readonly [afterMs: number, everyMs: number])[] = [
	[300_000, 2000],
	[30_000, 1000],
];
/** Linux sends an address one ICMP error a second at most: a refusal holds for some of the probes after it. */
const REFUSED_HOLDS_MS = 10_000;
/** Tables follow a change of the membership within this. */
const DIFFERS_AFTER_MS = 5000;
/** With no sign of anybody: the socket's port may have been taken for a service, or its address changed. */
const REOPEN_AFTER_MS = 2000;
const REOPEN_EVERY_MS = 10_000;
const DSR_TURN_MS = 100;
const ECONNREFUSED = 111;
const REMEMBERED = 4;

/** What probes need of Datagrams. Addresses are numbers in host order. */
export type ProbeSocket = Pick<Datagrams, 'port' | 'nowMs' | 'send' | 'receive' | 'errors' | 'sendFrom' | 'close'>;

export interface PeersInput {
	/** Name of this node. */
	readonly self: string;
	/** Its VTEP, IPv4. */
	readonly vtep: string;
	readonly vni: number;
	readonly vxlanPort: number;
	/** All nodes; this one may be among them. */
	readonly nodes: Iterable<{ readonly name: string; readonly address: string }>;
	/** Of this node's tables. */
	readonly digest: bigint;
	/** Some service leaves its return path to what is proven. */
	readonly wantsDsr: boolean;
}

export type PeerState = 'unknown' | 'reachable' | 'unreachable' | 'noAgent';

export interface PeerView {
	readonly name: string;
	readonly address: string;
	/** unknown counts as reachable. noAgent: the node refuses probes, so it lives and its datapath is not attached. */
	readonly state: PeerState;
	readonly reachable: boolean;
	/** null: it did not say. */
	readonly agentPresent: boolean | null;
	readonly rttMs: number | null;
	/** Of its tables; null: not heard. */
	readonly digest: bigint | null;
	/** For more than a few seconds now. */
	readonly digestDiffers: boolean;
	/** Replies with its source address, sent by this node, arrive. */
	readonly dsr: boolean;
}

export interface PeersChange {
	/** Names of nodes that went down or came back. */
	readonly down: readonly string[];
	readonly up: readonly string[];
	/** The set of nodes with proven DSR is another. */
	readonly dsr: boolean;
}

export interface PeersDeps {
	/** Opens a socket bound to an address (host order) and a port that the kernel chooses. */
	readonly open?: (address: number) => ProbeSocket;
	/** Any monotonic clock, ms. */
	readonly now?: () => number;
	readonly random?: () => number;
	/** For so long after start() a node that was never heard counts as reachable: all may be starting. ms */
	readonly graceMs?: number;
	readonly onChange?: (change: PeersChange) => void;
	/** What cannot be done, once each time it begins. */
	readonly onError?: (e: Error) => void;
}

interface Peer {
	readonly name: string;
	readonly address: string;
	/** Its address as a number, the VXLAN port and a probe: as a socket takes them. */
	readonly to: number;
	readonly port: number;
	readonly payload: Uint8Array;
	readonly probe: ReusedProbe;
	down: boolean;
	/** Ever answered. */
	heard: boolean;
	misses: number;
	answers: number;
	/** A probe is on its way, until `deadline`. */
	waiting: boolean;
	deadline: number;
	due: number;
	/** The last probes' nonces and times, a ring. */
	readonly nonces: number[];
	readonly sentMs: number[];
	next: number;
	downSince: number;
	refusedAt: number;
	rttMs: number | undefined;
	digest: bigint | undefined;
	differsSince: number | undefined;
}

export class Peers {
	readonly #deps: Required<Omit<PeersDeps, 'onChange' | 'onError'>>;
	readonly #onChange: ((c: PeersChange) => void) | undefined;
	readonly #onError: ((e: Error) => void) | undefined;
	readonly #dsr: DsrProofs;
	readonly #secret: number;
	#sequence: number;
	#peers: Peer[] = [];
	#byIp = new Map<number, Peer>();
	#input: PeersInput | undefined;
	#socket: ProbeSocket | undefined;
	#bound = '';
	#opensAt = 0;
	#failing = '';
	/** Anything heard from anybody, refusals included. */
	#heardAt = 0;
	#startedAt = 0;
	#dsrAt = 0;
	#timer: NodeJS.Timeout | undefined;
	#closed = false;
	#down = new Set<string>();
	#up: string[] = [];
	#fell: string[] = [];

	constructor(deps: PeersDeps = {}) {
		const random = deps.random ?? Math.random;
		this.#deps = {
			open: deps.open ?? ((address) => new Datagrams(address)),
			now: deps.now ?? (() => performance.now()),
			random,
			graceMs: deps.graceMs ?? 0,
		};
		this.#onChange = deps.onChange;
		this.#onError = deps.onError;
		const word = () => Math.floor(random() * 0x1_0000_0000) >>> 0;
		this.#secret = word();
		this.#sequence = word();
		this.#dsr = new DsrProofs(random, () => this.#nonce());
		this.#startedAt = this.#deps.now();
	}

	#nonce(): number {
		this.#sequence = (this.#sequence + 1) >>> 0;
		return this.#sequence;
	}

	/** Takes over who there is and what this node's tables are. Cheap where nothing changed. */
	update(input: PeersInput): void {
		if (this.#closed) return;
		const now = this.#deps.now();
		const before = this.#input;
		this.#input = input;
		if (before?.vni !== input.vni || before.vxlanPort !== input.vxlanPort || before.self !== input.self)
			this.#peers = [];
		if (before?.digest !== input.digest) {
			for (const p of this.#peers) this.#compare(p, now);
		}
		const wanted = [...input.nodes].filter((n) => n.name !== input.self && n.address !== input.vtep);
		const known = this.#peers;
		if (
			wanted.length !== known.length ||
			wanted.some((n, i) => n.name !== known[i].name || n.address !== known[i].address)
		) {
			const old = new Map(known.map((p) => [`${p.name} ${p.address}`, p]));
			const many = wanted.length > 50;
			this.#peers = wanted.map(
				(n) =>
					old.get(`${n.name} ${n.address}`) ??
					this.#create(input, n, now + (many ? this.#deps.random() * this.#interval(wanted.length) : 0)),
			);
			this.#byIp = new Map(this.#peers.map((p) => [p.to, p]));
			this.#down = new Set(this.#peers.filter((p) => p.down).map((p) => p.name));
		}
		if (!input.wantsDsr && this.#dsr.clear()) this.#tell(true);
	}

	/** Begins to probe. The timer keeps no process alive. */
	start(): void {
		if (this.#timer !== undefined || this.#closed) return;
		this.#startedAt = this.#deps.now();
		this.#heardAt = this.#startedAt;
		this.tick();
		this.#timer = setInterval(() => this.tick(), TICK_MS);
		this.#timer.unref();
	}

	stop(): void {
		this.#closed = true;
		clearInterval(this.#timer);
		this.#timer = undefined;
		this.#socket?.close();
		this.#socket = undefined;
	}

	/** Names of nodes that are not to get encapsulated packets. Another set each time it changes. */
	get downNodes(): ReadonlySet<string> {
		return this.#down;
	}

	/** VTEPs whose source address this node may use. */
	dsrProven(): Set<string> {
		return new Set(this.#peers.filter((p) => this.#dsr.proven(p.to)).map((p) => p.address));
	}

	/** Every other node has answered or is known not to: what a restarted agent waits for before its first plan. */
	get settled(): boolean {
		return this.#peers.every((p) => p.heard || p.down);
	}

	/** Names of nodes whose tables have differed from this node's for more than a few seconds. */
	differing(): string[] {
		const now = this.#deps.now();
		return this.#peers.filter((p) => this.#differs(p, now)).map((p) => p.name);
	}

	/** By name; this node itself is not among them. */
	views(): Map<string, PeerView> {
		const now = this.#deps.now();
		return new Map(this.#peers.map((p) => [p.name, this.#view(p, now)]));
	}

	/** One turn, at any time: reads, judges, sends. */
	tick(): void {
		const input = this.#input;
		if (this.#closed || input === undefined) return;
		const now = this.#deps.now();
		if (this.#peers.length === 0) {
			this.#heardAt = now;
			return;
		}
		const socket = this.#open(input, now);
		if (socket === undefined) return;
		// What lies in the socket first: after a stall of this process answers are there, and no node is at fault.
		this.#read(socket, input, now);
		this.#judge(socket, now);
		let dsr = false;
		if (input.wantsDsr && now >= this.#dsrAt) {
			this.#dsrAt = now + DSR_TURN_MS;
			dsr = this.#dsr.turn(now, this.#targets(), (list) => this.#sendDsr(socket, input, list));
		}
		this.#tell(dsr);
	}

	#create(input: PeersInput, n: { readonly name: string; readonly address: string }, due: number): Peer {
		const probe = reusedProbe(input.vni, this.#secret);
		return {
			name: n.name,
			address: n.address,
			to: ip4Number(n.address),
			port: input.vxlanPort,
			payload: probe.payload,
			probe,
			down: false,
			heard: false,
			misses: 0,
			answers: 0,
			waiting: false,
			deadline: 0,
			due,
			nonces: [],
			sentMs: [],
			next: 0,
			downSince: 0,
			refusedAt: Number.NEGATIVE_INFINITY,
			rttMs: undefined,
			digest: undefined,
			differsSince: undefined,
		};
	}

	#open(input: PeersInput, now: number): ProbeSocket | undefined {
		const silent = now - this.#heardAt > REOPEN_AFTER_MS && now >= this.#opensAt;
		if (this.#socket !== undefined && this.#bound === input.vtep && !silent) return this.#socket;
		if (this.#socket === undefined && now < this.#opensAt) return undefined;
		this.#socket?.close();
		this.#socket = undefined;
		this.#opensAt = silent ? now + REOPEN_EVERY_MS : now;
		try {
			this.#socket = this.#deps.open(ip4Number(input.vtep));
			this.#bound = input.vtep;
			this.#failing = '';
		} catch (e) {
			this.#opensAt = now + 1000;
			this.#error('other nodes cannot be probed', e);
		}
		return this.#socket;
	}

	#error(what: string, e: unknown): void {
		const cause = e instanceof Error ? e : new Error(String(e));
		if (this.#failing === cause.message) return;
		this.#failing = cause.message;
		this.#onError?.(new Error(`${what}: ${cause.message}`, { cause }));
	}

	#read(socket: ProbeSocket, input: PeersInput, now: number): void {
		for (const d of socket.receive()) {
			if (d.port !== input.vxlanPort) continue;
			const a = decodeAnswer(d.payload, input.vni);
			if (a === undefined || a.nonce.high !== this.#secret) continue;
			const p = this.#byIp.get(d.from);
			if (p === undefined) continue;
			this.#heardAt = now;
			if (this.#dsr.answered(a.nonce.low, d.from)) continue;
			const i = p.nonces.indexOf(a.nonce.low);
			if (i < 0) continue;
			p.nonces[i] = -1;
			const rttMs = d.atMs - p.sentMs[i];
			// The clock was set meanwhile.
			if (rttMs >= 0 && rttMs < 60_000) p.rttMs = p.rttMs === undefined ? rttMs : p.rttMs * 0.8 + rttMs * 0.2;
			p.digest = a.digest;
			this.#compare(p, now);
			this.#answered(p, now);
		}
		for (const e of socket.errors()) {
			if (e.errno !== ECONNREFUSED || !e.icmp) continue;
			const p = this.#byIp.get(e.to);
			if (p === undefined) continue;
			this.#heardAt = now;
			p.refusedAt = now;
			if (p.waiting) this.#missed(p, now);
		}
	}

	#judge(socket: ProbeSocket, now: number): void {
		const list: Peer[] = [];
		for (const p of this.#peers) {
			if (p.waiting && now >= p.deadline) this.#missed(p, now);
			if (p.waiting || now < p.due) continue;
			const low = this.#nonce();
			p.nonces[p.next] = low;
			p.probe.renew(low);
			list.push(p);
			p.waiting = true;
			p.deadline = now + Math.min(TIMEOUT_MOST_MS, Math.max(TIMEOUT_MS, 2 * (p.rttMs ?? 0) + 60));
		}
		if (list.length === 0) return;
		const atMs = socket.nowMs();
		for (const p of list) {
			p.sentMs[p.next] = atMs;
			p.next = (p.next + 1) % REMEMBERED;
		}
		// What the kernel refuses to send (no route to that node) is not answered either.
		socket.send(list);
	}

	#interval(peers = this.#peers.length): number {
		return Math.min(INTERVAL_MOST_MS, INTERVAL_MS + Math.max(0, peers - 200) / 3);
	}

	#answered(p: Peer, now: number): void {
		p.waiting = false;
		p.heard = true;
		p.misses = 0;
		p.answers++;
		p.refusedAt = Number.NEGATIVE_INFINITY;
		if (!p.down) {
			p.due = now + this.#interval() * (0.85 + 0.15 * this.#deps.random());
			return;
		}
		p.due = now + SOON_MS;
		if (p.answers < ANSWERS) return;
		p.down = false;
		this.#up.push(p.name);
	}

	#missed(p: Peer, now: number): void {
		p.waiting = false;
		p.misses++;
		p.answers = 0;
		if (!p.down && p.misses >= MISSES && (p.heard || now - this.#startedAt >= this.#deps.graceMs)) {
			p.down = true;
			p.downSince = now;
			this.#fell.push(p.name);
		}
		const every = p.down ? DEAD.find(([after]) => now - p.downSince >= after)?.[1] : undefined;
		const pause = every ?? (p.misses < MISSES ? (p.refusedAt === now ? SOON_MS : 0) : this.#interval());
		p.due = now + pause * (0.85 + 0.15 * this.#deps.random());
	}

	#targets(): DsrTarget[] {
		return this.#peers.map((p) => ({ address: p.to, answers: p.heard && !p.down && p.misses === 0, rttMs: p.rttMs }));
	}

	#sendDsr(socket: ProbeSocket, input: PeersInput, list: readonly DsrSend[]): void {
		const own = ip4Number(input.vtep);
		try {
			for (const { to, source, nonce } of list)
				socket.sendFrom(
					{ address: source ?? own, port: socket.port },
					{ address: to, port: input.vxlanPort },
					encodeProbe(input.vni, { high: this.#secret, low: nonce }, own),
				);
		} catch (e) {
			this.#error('direct return cannot be proven', e);
		}
	}

	#compare(p: Peer, now: number): void {
		if (p.digest === undefined || p.digest === this.#input?.digest) p.differsSince = undefined;
		else p.differsSince ??= now;
	}

	#differs(p: Peer, now: number): boolean {
		return !p.down && p.differsSince !== undefined && now - p.differsSince >= DIFFERS_AFTER_MS;
	}

	#view(p: Peer, now: number): PeerView {
		const refused = now - p.refusedAt < REFUSED_HOLDS_MS;
		const state = p.down ? (refused ? 'noAgent' : 'unreachable') : p.heard ? 'reachable' : 'unknown';
		return {
			name: p.name,
			address: p.address,
			state,
			reachable: !p.down,
			agentPresent: state === 'reachable' ? true : refused ? false : null,
			rttMs: p.rttMs === undefined || p.down ? null : Math.round(p.rttMs * 1000) / 1000,
			digest: p.digest ?? null,
			digestDiffers: this.#differs(p, now),
			dsr: this.#dsr.proven(p.to),
		};
	}

	#tell(dsr: boolean): void {
		if (this.#fell.length === 0 && this.#up.length === 0 && !dsr) return;
		const down = this.#fell;
		const up = this.#up;
		this.#fell = [];
		this.#up = [];
		if (down.length + up.length > 0) this.#down = new Set(this.#peers.filter((p) => p.down).map((p) => p.name));
		this.#onChange?.({ down, up, dsr });
	}
}
