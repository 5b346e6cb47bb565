/** Queries that are not ours, asked of the node's own name servers, from the node's own namespace. */
import { randomInt } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { closeSync, readFileSync, statSync } from 'node:fs';
import { connect, isIP, Socket } from 'node:net';
import { sentence } from '../errors.js';
import type { Failure } from './counters.js';
import type { Query, Transport } from './resolver.js';

export interface Upstream {
	readonly address: string;
	readonly family: 4 | 6;
	readonly port: number;
}

/** Servers that are tried, one after the other; Docker's number, and glibc's. */
const MAX_SERVERS = 3;
/** Docker's resolver: never asked from here, for its answers to us would be our own to it. */
export const OWN_ADDRESS = '127.0.0.11';

/** The servers of a resolv.conf(5), in its order. */
export function upstreamsOf(text: string): Upstream[] {
	const out: Upstream[] = [];
	for (const line of text.split('\n')) {
		const address = /^\s*nameserver\s+(\S+)/.exec(line)?.[1];
		if (address === undefined || out.length === MAX_SERVERS) continue;
		// A zone names an interface: fe80::1%eth0.
		const family = isIP(address.replace(/%.*$/, ''));
		if (family === 0 || address === OWN_ADDRESS || address === `::ffff:${OWN_ADDRESS}`) continue;
		out.push({ address, family: family as 4 | 6, port: 53 });
	}
	return out;
}

/**
 * What belongs into the resolv.conf of a namespace that is served: the resolver, the node's search domains, and the
 * options of Docker's (`ndots:0`: a name without dots is asked as it is before it is searched for).
 */
export function resolvConfFor(node: string): string {
	const search = /^\s*(?:search|domain)\s+(.*\S)/gm;
	let domains = '';
	for (let m = search.exec(node); m !== null; m = search.exec(node)) domains = m[1]!;
	return `nameserver ${OWN_ADDRESS}\n${domains ? `search ${domains}\n` : ''}options ndots:0\n`;
}

/** The node's resolv.conf, read again when it has changed. What cannot be read leaves the servers as they were. */
export class NodeServers {
	#servers: readonly Upstream[] = [];
	#seen = '';
	#checkedMs = Number.NEGATIVE_INFINITY;
	#complained = false;

	/** @param onChange the servers, or why they cannot be read: said once until they can */
	constructor(
		private readonly path: string,
		private readonly nowMs: () => number,
		private readonly onChange: (servers: readonly Upstream[], why?: string) => void,
	) {}

	/** Looks at the file at most once a second. */
	current(): readonly Upstream[] {
		const now = this.nowMs();
		if (now - this.#checkedMs < 1000) return this.#servers;
		this.#checkedMs = now;
		try {
			const s = statSync(this.path);
			const seen = `${s.dev}:${s.ino}:${s.size}:${s.mtimeMs}:${s.ctimeMs}`;
			if (seen !== this.#seen) {
				this.#servers = upstreamsOf(readFileSync(this.path, 'utf8'));
				this.#seen = seen;
				this.onChange(this.#servers);
			}
			this.#complained = false;
		} catch (e) {
			if (!this.#complained) this.onChange(this.#servers, sentence(e));
			this.#complained = true;
		}
		return this.#servers;
	}
}

/** Asks other servers than the node's, from another namespace. */
export interface Way {
	readonly servers: readonly Upstream[];
	/** The fd of a UDP socket, or of a TCP socket that is being connected. @throws where there is no way there */
	open(server: Upstream, via: Transport): Promise<number>;
}

export interface ForwardLimits {
	/** Queries under way at once (libnetwork: 1024 a container), and as many again that wait for their turn. */
	readonly concurrent: number;
	/** Of one namespace, waiting ones included: one that floods leaves room for the others. */
	readonly perSource: number;
	/** For one server's answer, and for a turn; ms. */
	readonly timeoutMs: number;
}
export const LIMITS: ForwardLimits = { concurrent: 1024, perSource: 512, timeoutMs: 4000 };

/** An upstream's bytes with the client's id, or `busy` (REFUSED), or `failed` (SERVFAIL). */
export type Forwarded = Uint8Array | 'busy' | 'failed';

const lower = (b: number): number => (b >= 65 && b <= 90 ? b + 32 : b);

/**
 * Whether this is the answer to what we asked: our id, our question. An answer without a question is believed only where it
 * is an error.
 */
export function answers(bytes: Uint8Array, id: number, question: Uint8Array): boolean {
	if (bytes.length < 12) return false;
	const v = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	if (v.getUint16(0) !== id) return false;
	const flags = v.getUint16(2);
	// An answer to a query of operation 0.
	if ((flags & 0xf800) !== 0x8000) return false;
	const questions = v.getUint16(4);
	if (questions === 0) return (flags & 15) !== 0;
	if (questions !== 1 || bytes.length < 12 + question.length) return false;
	return question.every((b, i) => lower(b) === lower(bytes[12 + i]!));
}

/** dns.lookup takes a turn of the event loop to see that an address is one. */
const noLookup = (address: string, _: unknown, done: (e: null, address: string, family: number) => void): void =>
	done(null, address, address.includes(':') ? 6 : 4);

type Exchange = { readonly answer: Buffer } | { readonly failure: Failure };

export class Forwarder {
	readonly #limits: ForwardLimits;
	readonly #under = new Map<string, number>();
	#active = 0;
	/** Oldest first; undefined: gave up. */
	readonly #waiting: (() => void)[] = [];
	readonly #aborts = new Set<() => void>();
	#closed = false;
	readonly failures: Record<Failure, number> = { timeout: 0, unreachable: 0, failure: 0, no_server: 0, busy: 0 };

	/** @param onBusy a query was turned away: not rate-limited here */
	constructor(
		private readonly servers: () => readonly Upstream[],
		private readonly onBusy: () => void = () => {},
		limits: Partial<ForwardLimits> = {},
	) {
		this.#limits = { ...LIMITS, ...limits };
	}

	get inFlight(): number {
		return this.#active;
	}

	get waiting(): number {
		return this.#waiting.length;
	}

	/**
	 * Asks one server after the other, by the transport that the client uses: a truncated answer goes to the client, who
	 * asks again over TCP. Never throws.
	 *
	 * @param source whose query it is: limits count by it
	 * @param bytes the query as it came
	 * @param way other servers than the node's
	 */
	async forward(source: string, bytes: Uint8Array, query: Query, via: Transport, way?: Way): Promise<Forwarded> {
		const under = this.#under.get(source) ?? 0;
		if (under >= this.#limits.perSource || this.#closed) return this.#busy();
		this.#under.set(source, under + 1);
		try {
			if (this.#active >= this.#limits.concurrent) {
				if (this.#waiting.length >= this.#limits.concurrent || !(await this.#turn())) return this.#busy();
			} else this.#active++;
			try {
				return await this.#ask(bytes, query, via, way);
			} finally {
				// Whoever waits longest gets this one's place.
				const next = this.#waiting.shift();
				if (next) next();
				else this.#active--;
			}
		} finally {
			const left = this.#under.get(source)! - 1;
			if (left > 0) this.#under.set(source, left);
			else this.#under.delete(source);
		}
	}

	#busy(): 'busy' {
		this.failures.busy++;
		this.onBusy();
		return 'busy';
	}

	/** Waits for a place. @returns false after the limit, or when all is closed */
	#turn(): Promise<boolean> {
		return new Promise((done) => {
			const end = (got: boolean) => {
				clearTimeout(timer);
				this.#aborts.delete(abort);
				done(got);
			};
			const mine = () => end(true);
			const abort = () => {
				const at = this.#waiting.indexOf(mine);
				if (at >= 0) this.#waiting.splice(at, 1);
				end(false);
			};
			const timer = setTimeout(abort, this.#limits.timeoutMs);
			this.#waiting.push(mine);
			this.#aborts.add(abort);
		});
	}

	async #ask(bytes: Uint8Array, query: Query, via: Transport, way: Way | undefined): Promise<Forwarded> {
		const servers = way?.servers ?? this.servers();
		if (servers.length === 0) this.failures.no_server++;
		for (const server of servers) {
			if (this.#closed) break;
			// An id nobody can foresee, and a port that the kernel draws: together some 31 bits against a blind forger.
			const id = randomInt(0x10000);
			const asked = Buffer.from(bytes);
			asked.writeUInt16BE(id, 0);
			const fd = await way?.open(server, via).catch(() => -1);
			let r: Exchange = { failure: 'unreachable' };
			if (this.#closed && fd !== undefined && fd !== -1) closeSync(fd);
			else if (fd !== -1)
				r = await (via === 'udp' ? this.#udp(server, asked, id, query, fd) : this.#tcp(server, asked, id, query, fd));
			if ('failure' in r) {
				this.failures[r.failure]++;
				continue;
			}
			// SERVFAIL and REFUSED may be this server's alone.
			const rcode = r.answer[3]! & 15;
			if (rcode === 2 || rcode === 5) {
				this.failures.failure++;
				continue;
			}
			r.answer.writeUInt16BE(query.id, 0);
			return r.answer;
		}
		return 'failed';
	}

	/** A socket of its own for each query: connected, so that the kernel drops what comes from elsewhere. */
	#udp(server: Upstream, asked: Buffer, id: number, query: Query, fd: number | undefined): Promise<Exchange> {
		return new Promise((done) => {
			const socket = createSocket({ type: server.family === 6 ? 'udp6' : 'udp4', lookup: noLookup });
			let ended = false;
			const end = (r: Exchange) => {
				if (ended) return;
				ended = true;
				clearTimeout(timer);
				this.#aborts.delete(abort);
				socket.close();
				done(r);
			};
			const abort = () => end({ failure: 'timeout' });
			const timer = setTimeout(abort, this.#limits.timeoutMs);
			this.#aborts.add(abort);
			socket.on('error', () => end({ failure: 'unreachable' }));
			// What is no answer to this question is not there: the real one may still come.
			socket.on('message', (m) => {
				if (answers(m, id, query.question)) end({ answer: m });
			});
			if (fd !== undefined) socket.bind({ fd });
			socket.connect(server.port, server.address, (e?: Error) => {
				if (e) return end({ failure: 'unreachable' });
				if (ended) return;
				socket.send(asked, (error) => {
					if (error) end({ failure: 'unreachable' });
				});
			});
		});
	}

	#tcp(server: Upstream, asked: Buffer, id: number, query: Query, fd: number | undefined): Promise<Exchange> {
		return new Promise((done) => {
			const socket =
				fd === undefined
					? connect({ host: server.address, port: server.port, lookup: noLookup as never })
					: new Socket({ fd });
			let ended = false;
			const end = (r: Exchange) => {
				if (ended) return;
				ended = true;
				clearTimeout(timer);
				this.#aborts.delete(abort);
				socket.destroy();
				done(r);
			};
			const abort = () => end({ failure: 'timeout' });
			const timer = setTimeout(abort, this.#limits.timeoutMs);
			this.#aborts.add(abort);
			socket.on('error', () => end({ failure: 'unreachable' }));
			socket.on('close', () => end({ failure: 'unreachable' }));
			const say = () => {
				const head = Buffer.alloc(2);
				head.writeUInt16BE(asked.length);
				socket.write(Buffer.concat([head, asked]));
			};
			if (fd === undefined) socket.on('connect', say);
			let got = Buffer.alloc(0);
			socket.on('data', (chunk: Buffer) => {
				got = Buffer.concat([got, chunk]);
				if (got.length < 2) return;
				const length = got.readUInt16BE(0);
				if (got.length < 2 + length) return;
				// Over a connection nothing else is to be expected.
				const answer = got.subarray(2, 2 + length);
				end(answers(answer, id, query.question) ? { answer } : { failure: 'failure' });
			});
			// The kernel keeps it until there is a connection.
			if (fd !== undefined) say();
		});
	}

	/** Gives up what is under way. */
	close(): void {
		this.#closed = true;
		for (const abort of [...this.#aborts]) abort();
	}
}
