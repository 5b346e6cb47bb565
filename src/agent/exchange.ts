/**
 * Which keys this node has with each other node, and when there are new ones. Time, sockets and the kernel come in as
 * arguments. Messages may be lost, doubled, late, or an attacker's copies of old ones.
 *
 * A node accepts under a key before the other may send under it, and drops the old one a while after both have changed, so
 * no packet is lost; while the other's agent is away the old keys stay. A key to send under is used by one security
 * association in its life: AES-GCM forgives no second (decision 0035).
 */
import { BeelineError, sentence } from '../errors.js';
import {
	decodeMessage,
	deriveKey,
	type EspKey,
	encodeMessage,
	isMessage,
	type KeyPair,
	type Message,
	type MessageType,
	messageKey,
	NO_KEY,
	newKeyPair,
	offers,
} from './handshake.js';

/** Keys of a pair of nodes. Nothing in it is secret. */
export interface Session {
	/** Address of the other node. */
	readonly peer: string;
	/** Public keys that it came from, in hexadecimal. */
	readonly a: string;
	readonly b: string;
	readonly spiIn: number;
	readonly spiOut: number;
	/** ms since 1970 */
	readonly at: number;
}

/** Security associations of the kernel. */
export interface EspKernel {
	/** What the peer sends under the key is let in. */
	accept(peer: string, key: EspKey): Promise<void>;
	/** What goes to the peer is sent under the key from now on. */
	use(peer: string, key: EspKey): Promise<void>;
	/** Forgets associations; those that are gone already are no error. */
	drop(peer: string, sas: { readonly in?: number; readonly out?: number }): Promise<void>;
	/** Nothing is sent to the peer any more. */
	close(peer: string): Promise<void>;
}

export interface ExchangeDeps {
	/** This node's address, IPv4. */
	readonly self: string;
	readonly secret: Uint8Array;
	/** Between new keys, ms. */
	readonly intervalMs: number;
	/** How long old keys stay beside new ones, ms. */
	readonly overlapMs: number;
	readonly now: () => number;
	readonly send: (peer: string, message: Buffer) => void;
	readonly kernel: EspKernel;
	/** Sessions are others than before. */
	readonly onChange: (sessions: readonly Session[]) => void;
	readonly onError: (sentence: string) => void;
	readonly keyPair?: () => KeyPair;
}

/** By address. */
export interface Problems {
	/** Peers that are wanted and have no keys. */
	readonly missing: readonly string[];
	/** Peers whose keys should have been renewed. */
	readonly stale: readonly string[];
	/** Of both: messages come from there, signed with another secret. An attacker can make it seem so; nothing else follows from it. */
	readonly foreign: ReadonlySet<string>;
}

export interface ExchangeCounters {
	/** Sessions made. */
	sessions: number;
	/** Messages that were nobody's who has the secret, or of a node that shares no encrypted network. */
	refused: number;
	/** Security associations that the kernel would not take. */
	errors: number;
}

interface Retry {
	nextAt: number;
	tries: number;
}

interface Old {
	readonly in?: number;
	readonly out?: number;
	until: number;
}

interface Peer {
	readonly address: string;
	/** Endpoints of this node may send to it. */
	wanted: boolean;
	/** This node makes the offers. */
	readonly offers: boolean;
	current?: Session;
	/** Offered, not answered. */
	attempt?: Retry & { readonly pair: KeyPair };
	/** Answered, oldest first: accepted, and not sent under yet. The other may send under any of them. */
	pending: Pending[];
	/** Offers that led to keys here: what is said of them again is late, or a copy. */
	readonly seen: Set<string>;
	/** In use here; the other has not said that it is there. */
	confirm?: Retry & { readonly a: Buffer; readonly b: Buffer; readonly at: number };
	asking: Retry;
	old: Old[];
	lastStart: number;
	lastPending: number;
	lastSent: number;
	/** When a message came that was signed with another secret. */
	foreignAt: number;
	/** Changes of the kernel, one after the other, and how many are under way. */
	work: Promise<void>;
	working: number;
}

interface Pending {
	readonly a: Buffer;
	readonly b: Buffer;
	readonly keys: Keys;
	readonly at: number;
	ready: boolean;
}

interface Keys {
	readonly in: EspKey;
	readonly out: EspKey;
}

const FIRST_RETRY_MS = 100;
/** Without keys nothing flows; with old ones nothing is lost meanwhile. */
const LONGEST_RETRY_MS = 2000;
const LONGEST_REKEY_RETRY_MS = 30_000;
/** An answer that nobody confirms. */
const PENDING_MS = 60_000;
/** Copies of old offers must not keep this node busy. */
const LEAST_BETWEEN_OFFERS_MS = 100;
const LEAST_BETWEEN_STARTS_MS = 1000;
/** The offering node renews; the other asks for it when that does not come. */
const GRACE = 0.01;
const MOST_OLD = 16;
const MOST_PENDING = 16;
/** So long, when there are too many. */
const LEAST_PENDING_MS = 5000;
const MOST_SEEN = 64;
/** A confirmation takes no longer, unless it is lost again and again. */
const CONFIRM_MS = 10_000;
/** Who has another secret tries again and again: later than this after the last it may have been given the right one. */
const FOREIGN_MS = LONGEST_REKEY_RETRY_MS * 2;
/** Keys so old, in intervals, are worth a warning; unwanted ones go. */
const STALE_INTERVALS = 1.5;
const UNWANTED_INTERVALS = 2;

export class Exchange {
	readonly counters: ExchangeCounters = { sessions: 0, refused: 0, errors: 0 };
	readonly #deps: ExchangeDeps;
	readonly #key: Buffer;
	readonly #peers = new Map<string, Peer>();
	#closed = false;

	/** @param sessions of an earlier agent, whose associations are in the kernel @param rest other associations that are there */
	constructor(
		deps: ExchangeDeps,
		sessions: readonly Session[] = [],
		rest: readonly { readonly peer: string; readonly in?: number; readonly out?: number }[] = [],
	) {
		this.#deps = deps;
		this.#key = messageKey(deps.secret);
		const until = deps.now() + deps.overlapMs;
		for (const s of sessions) {
			const p = this.#add(s.peer);
			p.current = s;
			// Whether the other heard that they are in use is not known.
			if (p.offers)
				p.confirm = { a: Buffer.from(s.a, 'hex'), b: Buffer.from(s.b, 'hex'), at: deps.now(), nextAt: 0, tries: 0 };
			else p.seen.add(s.a);
		}
		for (const { peer, ...sas } of rest) this.#add(peer).old.push({ ...sas, until });
	}

	get sessions(): readonly Session[] {
		return [...this.#peers.values()].flatMap((p) => (p.current === undefined ? [] : [p.current]));
	}

	problems(): Problems {
		const missing: string[] = [];
		const stale: string[] = [];
		const foreign = new Set<string>();
		for (const p of this.#peers.values()) {
			if (!p.wanted) continue;
			const isForeign = this.#deps.now() - p.foreignAt < FOREIGN_MS;
			if (p.current === undefined) missing.push(p.address);
			else if (this.#age(p) > this.#deps.intervalMs * STALE_INTERVALS || (isForeign && this.#isDue(p)))
				stale.push(p.address);
			else continue;
			if (isForeign) foreign.add(p.address);
		}
		return { missing, stale, foreign };
	}

	/** @param peers every node that shares an encrypted network with this one → whether endpoints of this node may send to it */
	update(peers: ReadonlyMap<string, boolean>): void {
		for (const [address, wanted] of peers) {
			const p = this.#add(address);
			if (p.wanted && !wanted) this.#clear(p);
			p.wanted = wanted;
		}
		for (const p of [...this.#peers.values()]) {
			if (peers.has(p.address)) continue;
			this.#clear(p);
			this.#peers.delete(p.address);
		}
		this.tick();
	}

	/** The kernel has lost these: what is left of them is no session. @param has whether an association is there */
	verify(has: (spi: number) => boolean): void {
		for (const p of this.#peers.values()) {
			if (p.current === undefined || (has(p.current.spiIn) && has(p.current.spiOut))) continue;
			this.#deps.onError(`keys with ${p.address} are gone from the kernel: new ones are made`);
			this.#clear(p);
		}
	}

	/** What is due now. To be called a few times a second. */
	tick(): void {
		if (this.#closed) return;
		const now = this.#deps.now();
		for (const p of this.#peers.values()) {
			this.#expire(p, now);
			if (this.#isDue(p)) {
				if (p.offers) {
					if (p.attempt === undefined && p.confirm === undefined && p.working === 0) this.#start(p, now);
					else if (p.attempt !== undefined && now >= p.attempt.nextAt) this.#offer(p, p.attempt, now);
				} else if (now >= p.asking.nextAt && !this.#isAnswering(p, now)) this.#ask(p, now);
			} else if (p.attempt !== undefined && now >= p.attempt.nextAt) this.#offer(p, p.attempt, now);
			if (p.confirm !== undefined && now >= p.confirm.nextAt) {
				this.#again(p, p.confirm, now, LONGEST_RETRY_MS);
				this.#send(p, 'confirm', p.confirm.a, p.confirm.b);
			}
		}
	}

	/** A datagram that came from `from`. */
	receive(datagram: Buffer, from: string): void {
		if (this.#closed) return;
		const m = decodeMessage(datagram, this.#key);
		const p = m === undefined ? undefined : this.#peers.get(m.from);
		if (m === undefined || p === undefined || m.from !== from || m.to !== this.#deps.self) {
			this.counters.refused++;
			const sender = m === undefined && isMessage(datagram) ? this.#peers.get(from) : undefined;
			if (sender !== undefined) sender.foreignAt = this.#deps.now();
			return;
		}
		const now = this.#deps.now();
		// Each message has one side that may send it: a copy that is sent back says nothing.
		if ((m.type === 'offer' || m.type === 'confirm') === p.offers) {
			this.counters.refused++;
			return;
		}
		if (m.type === 'ask') this.#onAsk(p, m, now);
		else if (m.type === 'offer') this.#onOffer(p, m, now);
		else if (m.type === 'answer') this.#onAnswer(p, m, now);
		else if (m.type === 'confirm') this.#onConfirm(p, m, now);
		else if (p.confirm?.a.equals(m.a) && p.confirm.b.equals(m.b)) {
			p.confirm = undefined;
			for (const o of p.old) o.until = now + this.#deps.overlapMs;
		}
	}

	/** Resolves when the kernel has all that was decided. */
	async settled(): Promise<void> {
		for (const p of this.#peers.values()) await p.work;
	}

	/** Stops. Associations stay. */
	async close(): Promise<void> {
		this.#closed = true;
		await this.settled();
	}

	#add(address: string): Peer {
		const there = this.#peers.get(address);
		if (there !== undefined) return there;
		const p: Peer = {
			address,
			wanted: false,
			offers: offers(this.#deps.self, address),
			asking: { nextAt: 0, tries: 0 },
			pending: [],
			seen: new Set(),
			old: [],
			lastStart: Number.NEGATIVE_INFINITY,
			lastPending: Number.NEGATIVE_INFINITY,
			lastSent: Number.NEGATIVE_INFINITY,
			foreignAt: Number.NEGATIVE_INFINITY,
			work: Promise.resolve(),
			working: 0,
		};
		this.#peers.set(address, p);
		return p;
	}

	/** Nothing is sent to, or accepted from, the peer any more. */
	#clear(p: Peer): void {
		const drop: Old[] = [...p.old];
		if (p.current !== undefined) drop.push({ in: p.current.spiIn, out: p.current.spiOut, until: 0 });
		for (const { keys } of p.pending) drop.push({ in: keys.in.spi, until: 0 });
		const had = p.current !== undefined;
		p.current = undefined;
		p.attempt = undefined;
		p.pending = [];
		p.confirm = undefined;
		p.old = [];
		p.asking = { nextAt: 0, tries: 0 };
		if (drop.length > 0)
			this.#work(p, async () => {
				await this.#deps.kernel.close(p.address);
				for (const o of drop) await this.#deps.kernel.drop(p.address, o);
			});
		if (had) this.#deps.onChange(this.sessions);
	}

	#age(p: Peer): number {
		// A clock that was set back makes no key young for years.
		return p.current === undefined ? Number.POSITIVE_INFINITY : Math.abs(this.#deps.now() - p.current.at);
	}

	#isDue(p: Peer): boolean {
		if (!p.wanted) return false;
		return this.#age(p) >= this.#deps.intervalMs * (p.offers || p.current === undefined ? 1 : 1 + GRACE);
	}

	#expire(p: Peer, now: number): void {
		// What the other may still send under stays until it has said that it does not.
		const gone = p.confirm === undefined ? p.old.filter((o) => now >= o.until) : p.old.slice(0, -MOST_OLD);
		if (gone.length > 0) {
			p.old = p.old.filter((o) => !gone.includes(o));
			this.#work(p, async () => {
				for (const o of gone) await this.#deps.kernel.drop(p.address, o);
			});
		}
		while (p.pending.length > 0 && now - p.pending[0].at > PENDING_MS) this.#forgetPending(p);
		if (!p.wanted && p.current !== undefined && this.#age(p) > this.#deps.intervalMs * UNWANTED_INTERVALS)
			this.#clear(p);
	}

	/** The oldest. */
	#forgetPending(p: Peer): void {
		const spi = p.pending.shift()?.keys.in.spi;
		if (spi !== undefined) this.#work(p, () => this.#deps.kernel.drop(p.address, { in: spi }));
	}

	#work(p: Peer, what: () => Promise<void>): void {
		p.working++;
		p.work = p.work
			.then(what)
			.catch((e) => {
				this.counters.errors++;
				this.#deps.onError(`keys with ${p.address}: ${sentence(e)}`);
			})
			.finally(() => {
				p.working--;
			});
	}

	#again(p: Peer, r: Retry, now: number, longest?: number): void {
		const most = longest ?? (p.current === undefined ? LONGEST_RETRY_MS : LONGEST_REKEY_RETRY_MS);
		r.nextAt = now + Math.min(most, FIRST_RETRY_MS * 2 ** r.tries);
		r.tries++;
	}

	#send(p: Peer, type: MessageType, a: Buffer = NO_KEY, b: Buffer = NO_KEY): void {
		this.#deps.send(p.address, encodeMessage({ type, from: this.#deps.self, to: p.address, a, b }, this.#key));
	}

	#start(p: Peer, now: number): void {
		if (now - p.lastStart < LEAST_BETWEEN_STARTS_MS) return;
		p.lastStart = now;
		p.attempt = { pair: (this.#deps.keyPair ?? newKeyPair)(), nextAt: 0, tries: 0 };
		this.#offer(p, p.attempt, now);
	}

	#offer(p: Peer, attempt: NonNullable<Peer['attempt']>, now: number): void {
		this.#again(p, attempt, now);
		this.#send(p, 'offer', attempt.pair.publicKey);
	}

	/** An offer is being answered: to ask for one would only make another. Many are an attacker's copies. */
	#isAnswering(p: Peer, now: number): boolean {
		return p.working > 0 || (p.pending.length === 1 && now - p.pending[0].at < CONFIRM_MS);
	}

	#ask(p: Peer, now: number): void {
		this.#again(p, p.asking, now);
		this.#send(p, 'ask');
	}

	#onAsk(p: Peer, m: Message, now: number): void {
		if (p.working > 0) return;
		if (p.attempt === undefined) {
			// What it waits for may be under way; unless it says that it knows nothing of it.
			if (p.confirm === undefined || p.confirm.a.equals(m.a) || now - p.confirm.at >= CONFIRM_MS) this.#start(p, now);
			else this.#send(p, 'confirm', p.confirm.a, p.confirm.b);
		} else if (now - p.lastSent >= LEAST_BETWEEN_OFFERS_MS) {
			p.lastSent = now;
			this.#send(p, 'offer', p.attempt.pair.publicKey);
		}
	}

	#onOffer(p: Peer, m: Message, now: number): void {
		const answered = p.pending.find((x) => x.a.equals(m.a));
		if (answered !== undefined) {
			if (answered.ready) this.#send(p, 'answer', answered.a, answered.b);
			return;
		}
		if (p.seen.has(m.a.toString('hex')) || now - p.lastPending < LEAST_BETWEEN_OFFERS_MS) return;
		if (p.pending.length >= MOST_PENDING) {
			// Somebody sends copies of old offers: what may be in use is kept, and what is new waits.
			if (now - p.pending[0].at < LEAST_PENDING_MS) return;
			this.#forgetPending(p);
		}
		p.lastPending = now;
		const pair = (this.#deps.keyPair ?? newKeyPair)();
		const b = pair.publicKey;
		const keys = this.#keys(p, pair, m.a, m.a, b);
		if (keys === undefined) return;
		const pending = { a: m.a, b, keys, at: now, ready: false };
		p.pending.push(pending);
		this.#work(p, async () => {
			if (!p.pending.includes(pending)) return;
			try {
				await this.#deps.kernel.accept(p.address, keys.in);
			} catch (e) {
				p.pending = p.pending.filter((x) => x !== pending);
				throw e;
			}
			pending.ready = true;
			this.#send(p, 'answer', pending.a, pending.b);
		});
	}

	#onAnswer(p: Peer, m: Message, now: number): void {
		const { attempt } = p;
		if (attempt === undefined || !attempt.pair.publicKey.equals(m.a)) {
			if (p.confirm?.a.equals(m.a) && p.confirm.b.equals(m.b)) this.#send(p, 'confirm', m.a, m.b);
			return;
		}
		// From here on the pair is used up, whatever becomes of it.
		p.attempt = undefined;
		const keys = this.#keys(p, attempt.pair, m.b, m.a, m.b);
		if (keys === undefined) return;
		this.#work(p, async () => {
			await this.#deps.kernel.accept(p.address, keys.in);
			await this.#take(p, keys, m, now);
			p.confirm = { a: m.a, b: m.b, at: this.#deps.now(), nextAt: 0, tries: 0 };
			this.#again(p, p.confirm, this.#deps.now(), LONGEST_RETRY_MS);
			this.#send(p, 'confirm', m.a, m.b);
		});
	}

	#onConfirm(p: Peer, m: Message, now: number): void {
		const at = p.pending.findIndex((x) => x.ready && x.a.equals(m.a) && x.b.equals(m.b));
		const name = m.a.toString('hex');
		if (at >= 0) {
			// The other has given up those before it, and may have sent under them a moment ago.
			const [pending, ...given] = p.pending.splice(0, at + 1).reverse();
			for (const { keys, a } of given) {
				this.#see(p, a.toString('hex'));
				p.old.push({ in: keys.in.spi, until: now + this.#deps.overlapMs });
			}
			this.#see(p, name);
			this.#work(p, async () => {
				try {
					await this.#take(p, pending.keys, m, now);
				} catch (e) {
					// The other sends under what this node could not complete: new keys, by what it asks next.
					p.seen.delete(name);
					throw e;
				}
				this.#send(p, 'done', m.a, m.b);
			});
		} else if (p.current?.a === name && p.current.b === m.b.toString('hex')) {
			this.#send(p, 'done', m.a, m.b);
		} else if (!p.seen.has(name) && now - p.lastSent >= LEAST_BETWEEN_OFFERS_MS) {
			// It sends under keys that this node has lost.
			p.lastSent = now;
			this.#send(p, 'ask', m.a);
		}
	}

	#see(p: Peer, a: string): void {
		p.seen.add(a);
		for (const first of p.seen) {
			if (p.seen.size <= MOST_SEEN) break;
			p.seen.delete(first);
		}
	}

	#keys(p: Peer, mine: KeyPair, theirs: Buffer, a: Buffer, b: Buffer): Keys | undefined {
		const { self, secret } = this.#deps;
		try {
			const g = { secret, mine, theirs, a, b };
			return { in: deriveKey(g, p.address, self), out: deriveKey(g, self, p.address) };
		} catch (e) {
			this.counters.errors++;
			this.#deps.onError(`keys with ${p.address}: ${sentence(e)}`);
			return undefined;
		}
	}

	/** Sends under new keys; the old ones stay for what is on its way. */
	async #take(p: Peer, keys: Keys, m: Message, now: number): Promise<void> {
		try {
			await this.#deps.kernel.use(p.address, keys.out);
		} catch (e) {
			await this.#deps.kernel.drop(p.address, { in: keys.in.spi, out: keys.out.spi }).catch(() => undefined);
			throw e;
		}
		if (!this.#peers.has(p.address)) {
			await this.#deps.kernel.drop(p.address, { in: keys.in.spi, out: keys.out.spi });
			throw new BeelineError('NOT_SHARED', 'the node shares no encrypted network any more');
		}
		if (p.current !== undefined)
			p.old.push({ in: p.current.spiIn, out: p.current.spiOut, until: now + this.#deps.overlapMs });
		p.current = {
			peer: p.address,
			a: m.a.toString('hex'),
			b: m.b.toString('hex'),
			spiIn: keys.in.spi,
			spiOut: keys.out.spi,
			at: this.#deps.now(),
		};
		p.asking = { nextAt: 0, tries: 0 };
		p.foreignAt = Number.NEGATIVE_INFINITY;
		this.counters.sessions++;
		this.#deps.onChange(this.sessions);
	}
}
