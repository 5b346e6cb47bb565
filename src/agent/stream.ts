/**
 * The stream between agents: managers publish the membership, every node reports what befell its own containers
 * (docs/decisions/0012). One server where this node is a manager, one connection to each other manager.
 */
import { randomBytes } from 'node:crypto';
import { connect, createServer, type Server, type TLSSocket } from 'node:tls';
import { sentence } from '../errors.js';
import type { Feed, FeedEvents } from '../mesh/sources/docker.js';
import type { SwarmInfo, TaskReport } from '../mesh/sources/docker-map.js';
import { shareMembership } from '../mesh/sources/file.js';
import type { Membership } from '../mesh/types.js';
import {
	applyDelta,
	deltaOf,
	type FromManager,
	type Position,
	PROTOCOL,
	parseFromManager,
	parseToManager,
	readLines,
	type ToManager,
} from './stream-lines.js';
import { type Credentials, clientIdentity, createCredentials, whyNotManager } from './stream-tls.js';

export const STREAM_PORT = 7981;

export interface StreamDeps {
	readonly port?: number;
	/** A shared secret in place of Swarm's certificates. */
	readonly tokenFile?: string;
	/** Where Swarm's certificates are; default: under Docker's data root. */
	readonly certificates?: string;
	readonly log: (level: 'info' | 'warn' | 'error', text: string) => void;
	/** Shorter in tests, ms. */
	readonly pingMs?: number;
	readonly backoffMs?: readonly number[];
	readonly staleMs?: number;
	readonly answerMs?: number;
}

/** A connection that says nothing for three of them is dead. */
const PING_MS = 5000;
const BACKOFF_MS: readonly number[] = [200, 500, 1000, 2000, 5000, 10_000];
const HISTORY = 256;
const HISTORY_BYTES = 8 * 1024 * 1024;
const MAX_MEMBERSHIP_BYTES = 256 * 1024 * 1024;
const MAX_REPORT_BYTES = 4 * 1024 * 1024;
/** A follower that does not read is cut off; it comes back and gets the whole. */
const MAX_QUEUE_BYTES = 64 * 1024 * 1024;
const HANDSHAKE_MS = 5000;
/** For the reason to arrive. */
const REFUSED_MS = 1000;
/** What a node said of tasks that drain, after it was heard last. */
const SILENT_MS = 30_000;
const SERVE_RETRY_MS = 5000;
/** Between following a manager and its first word. */
const ANSWER_MS = 3000;
const CREDENTIALS_MS = 10_000;
/** A manager that has not listed the swarm for so long is left for one that has. The slowest lists come each 30 s. */
const STALE_MS = 60_000;

interface Follower {
	readonly socket: TLSSocket;
	node: string | undefined;
	follows: boolean;
	heardAt: number;
}

interface Link {
	readonly id: string;
	readonly host: string;
	socket: TLSSocket | undefined;
	up: boolean;
	/** This connection brought a word of the manager's: it is not refused. */
	welcome: boolean;
	tries: number;
	timer: NodeJS.Timeout | undefined;
	heardAt: number;
	/** When this manager listed the swarm last, by our clock; undefined where it does not say. */
	listedAt: number | undefined;
	problem: string | undefined;
	closed: boolean;
}

export function openStream(deps: StreamDeps, on: FeedEvents): Feed {
	const port = deps.port ?? STREAM_PORT;
	const pingMs = deps.pingMs ?? PING_MS;
	const backoff = deps.backoffMs ?? BACKOFF_MS;
	const staleMs = deps.staleMs ?? STALE_MS;
	const answerMs = deps.answerMs ?? ANSWER_MS;
	const credentials = createCredentials(deps.tokenFile);
	const epoch = randomBytes(8).toString('hex');
	let info: SwarmInfo | undefined;
	let closed = false;
	const now = () => performance.now();
	const directory = () => deps.certificates ?? `${info?.dockerRoot ?? '/var/lib/docker'}/swarm/certificates`;

	// ---- what is wrong, each said once ----
	const told = new Map<string, string>();
	function problem(key: string, text: string | undefined): void {
		if (text === undefined) {
			told.delete(key);
			return;
		}
		if (told.get(key) === text) return;
		told.set(key, text);
		deps.log('warn', text);
	}
	function getCredentials(): Credentials | undefined {
		try {
			const c = credentials.get(directory());
			problem('credentials', undefined);
			return c;
		} catch (e) {
			problem('credentials', `agents cannot speak to each other: ${sentence(e)}`);
			return undefined;
		}
	}

	// ---- as a manager: publish ----
	let server: Server | undefined;
	let serverAt = '';
	let serverStamp = '';
	let serveTimer: NodeJS.Timeout | undefined;
	const followers = new Set<Follower>();
	let published: Membership | undefined;
	let publishedAt = 0;
	let version = 0;
	let history: { readonly from: number; readonly line: string }[] = [];
	let historyBytes = 0;
	const said = new Map<string, ReadonlyMap<string, TaskReport>>();
	const silence = new Map<string, NodeJS.Timeout>();

	const write = (f: Follower, line: string): void => {
		if (f.socket.destroyed) return;
		if (f.socket.writableLength > MAX_QUEUE_BYTES) {
			problem(
				`slow ${f.node}`,
				`${f.node} does not take the membership as fast as it changes: it is cut off and starts anew`,
			);
			f.socket.destroy();
			return;
		}
		f.socket.write(`${line}\n`);
	};
	const fullLine = (membership: Membership): string =>
		JSON.stringify({ t: 'full', epoch, version, membership } satisfies FromManager);

	function follow(f: Follower, at: Position | undefined): void {
		f.follows = true;
		if (published === undefined) return;
		if (at?.epoch === epoch && at.version === version) {
			write(f, JSON.stringify({ t: 'same', epoch, version } satisfies FromManager));
			return;
		}
		const first = at?.epoch === epoch ? history.findIndex((h) => h.from === at.version) : -1;
		if (first !== -1) {
			for (const h of history.slice(first)) write(f, h.line);
			return;
		}
		write(f, fullLine(published));
	}

	function reported(node: string, tasks: ReadonlyMap<string, TaskReport>, look: boolean): void {
		clearTimeout(silence.get(node));
		silence.delete(node);
		said.set(node, tasks);
		on.onReport(node, tasks, look);
	}

	/** A node that is not heard any more cannot say that a task which was to drain lives on. */
	function silent(node: string): void {
		if ([...followers].some((f) => f.node === node)) return;
		clearTimeout(silence.get(node));
		const timer = setTimeout(() => {
			silence.delete(node);
			const kept = new Map([...(said.get(node) ?? [])].filter(([, r]) => r.state === 'down' || r.six === true));
			said.set(node, kept);
			if (!closed) on.onReport(node, kept, false);
		}, SILENT_MS);
		timer.unref();
		silence.set(node, timer);
	}

	function accept(socket: TLSSocket, c: Credentials): void {
		const f: Follower = { socket, node: undefined, follows: false, heardAt: now() };
		followers.add(f);
		let refused = false;
		const refuse = (why: string) => {
			if (refused) return;
			refused = true;
			problem(`client ${socket.remoteAddress}`, `an agent at ${socket.remoteAddress} is refused: ${why}`);
			// It is told, for TLS 1.3 lets a client believe that it is in before its certificate is looked at.
			socket.end(`${JSON.stringify({ t: 'refused', why } satisfies FromManager)}\n`);
			setTimeout(() => socket.destroy(), REFUSED_MS).unref();
		};
		socket.on('error', () => socket.destroy());
		if (c.kind === 'certificate' && !socket.authorized) {
			followers.delete(f);
			refuse(
				`its certificate is not valid (${String(socket.authorizationError)}): is it of this swarm, and its clock right?`,
			);
			return;
		}
		socket.setNoDelay(true);
		socket.on('close', () => {
			followers.delete(f);
			if (f.node !== undefined && !closed) silent(f.node);
		});
		readLines(
			socket,
			MAX_REPORT_BYTES,
			(line) => {
				if (refused) return;
				f.heardAt = now();
				const m = parseToManager(line);
				if (m === undefined) return refuse('it sends what is no message');
				if (m.t === 'ping') return;
				if (m.t === 'hello') {
					if (m.protocol !== PROTOCOL)
						return refuse(`it speaks protocol ${m.protocol}, and this agent ${PROTOCOL}: upgrade the older one`);
					const identity = clientIdentity(socket, c, tokenNode.get(socket) ?? '');
					if (typeof identity === 'string') return refuse(identity);
					if (identity.nodeId !== m.node) return refuse(`it says that it is ${m.node}, and is ${identity.nodeId}`);
					f.node = identity.nodeId;
					clearTimeout(silence.get(f.node));
					problem(`client ${socket.remoteAddress}`, undefined);
					return;
				}
				if (f.node === undefined) return refuse('it has not said who it is');
				if (m.t === 'follow') follow(f, m.at);
				else if (m.t === 'unfollow') f.follows = false;
				else if (m.t === 'demand') on.onDemand(f.node, m);
				else reported(f.node, new Map(Object.entries(m.tasks)), m.look);
			},
			() => refuse('it sends more than a node has to say'),
		);
	}
	const tokenNode = new WeakMap<TLSSocket, string>();

	function serve(): void {
		clearTimeout(serveTimer);
		if (closed) return;
		const host = info?.manager === true ? info.nodeAddress : undefined;
		if (host === undefined || host === '') {
			stopServing();
			return;
		}
		const c = getCredentials();
		const again = (ms: number) => {
			serveTimer = setTimeout(serve, ms);
			serveTimer.unref();
		};
		if (c === undefined) {
			again(SERVE_RETRY_MS);
			return;
		}
		if (server !== undefined && serverAt === host && (serverStamp === c.stamp || c.kind === 'certificate')) {
			// Rotated: connections that stand go on, new ones see the new certificate.
			if (serverStamp !== c.stamp) server.setSecureContext({ ...c.context, minVersion: 'TLSv1.3' });
			serverStamp = c.stamp;
			again(CREDENTIALS_MS);
			return;
		}
		stopServing();
		const s: Server = createServer(
			c.kind === 'certificate'
				? {
						...c.context,
						minVersion: 'TLSv1.3',
						requestCert: true,
						// Node would hang up without a word; accept() says why.
						rejectUnauthorized: false,
						handshakeTimeout: HANDSHAKE_MS,
					}
				: {
						...c.context,
						handshakeTimeout: HANDSHAKE_MS,
						pskCallback: (socket: TLSSocket, identity: string) => {
							tokenNode.set(socket, identity);
							return c.psk as Buffer;
						},
					},
			(socket) => accept(socket, c),
		);
		s.on('tlsClientError', (e, socket) => {
			// A scanner that hangs up is no news; one that shows a certificate is.
			if (/certificate|psk|decrypt|bad record/i.test(e.message))
				problem(
					`client ${socket.remoteAddress}`,
					`an agent at ${socket.remoteAddress ?? 'an unknown address'} is refused: ${e.message}: is it of this swarm, and its clock right?`,
				);
		});
		s.on('error', (e: NodeJS.ErrnoException) => {
			if (server === s) server = undefined;
			problem('serve', `workers cannot be served on ${host}:${port}: ${e.message}`);
			again(SERVE_RETRY_MS);
		});
		s.listen({ host, port }, () => {
			problem('serve', undefined);
			deps.log('info', `serving the membership to workers on ${host}:${port}`);
		});
		server = s;
		serverAt = host;
		serverStamp = c.stamp;
		again(CREDENTIALS_MS);
	}

	function stopServing(): void {
		server?.close();
		server = undefined;
		for (const f of followers) f.socket.destroy();
	}

	// ---- as any node: to the other managers ----
	const links = new Map<string, Link>();
	let chosen: Link | undefined;
	let received: { readonly at: Position; readonly membership: Membership } | undefined;
	let answerTimer: NodeJS.Timeout | undefined;
	let askedAt = 0;
	let mute: string | undefined;
	let report: { readonly tasks: ReadonlyMap<string, TaskReport>; readonly look: boolean } | undefined;

	const send = (l: Link, m: ToManager): void => {
		if (l.up) l.socket?.write(`${JSON.stringify(m)}\n`);
	};
	const sendReport = (l: Link, look: boolean): void => {
		if (report !== undefined) send(l, { t: 'report', tasks: Object.fromEntries(report.tasks), look });
	};

	/** Asks the manager that is followed for what is new, or for the whole. */
	function ask(l: Link): void {
		askedAt = now();
		send(l, { t: 'follow', ...(received === undefined ? {} : { at: received.at }) });
	}

	const isStale = (l: Link): boolean => l.listedAt !== undefined && now() - l.listedAt > staleMs;

	/** What a ping says: lost words are asked for again, and a manager whose own lists fail is left for another. */
	function pinged(l: Link, at: Position | undefined, ageMs: number | undefined): void {
		l.listedAt = ageMs === undefined ? undefined : now() - ageMs;
		if (l !== chosen) return;
		if (isStale(l) && [...links.values()].some((o) => o.up && o.listedAt !== undefined && !isStale(o))) {
			deps.log(
				'warn',
				`manager ${l.id} at ${l.host} has not listed the swarm for ${ageMs} ms: another one is followed`,
			);
			send(l, { t: 'unfollow' });
			chosen = undefined;
			choose();
			return;
		}
		const behind = at !== undefined && (received?.at.epoch !== at.epoch || received.at.version !== at.version);
		// What was asked for may be on its way.
		if (behind && now() - askedAt > answerMs) ask(l);
	}

	/** A worker follows one manager; a manager none. */
	function choose(): void {
		const wanted = info !== undefined && !info.manager;
		if (chosen !== undefined && (!wanted || !chosen.up)) {
			if (chosen.up) send(chosen, { t: 'unfollow' });
			chosen = undefined;
		}
		if (!wanted || chosen !== undefined) return;
		const all = [...links.values()].filter((l) => l.up);
		const others = all.filter((l) => l.id !== mute);
		const fresh = others.filter((l) => !isStale(l));
		const up = fresh.length > 0 ? fresh : others.length > 0 ? others : all;
		if (up.length === 0) return;
		// Workers spread over the managers by chance.
		const next = up[Math.floor(Math.random() * up.length)];
		chosen = next;
		clearTimeout(answerTimer);
		// One that has no membership itself (it has just started, its managers have no quorum) must not keep us from another.
		answerTimer = setTimeout(() => {
			if (chosen !== next || all.length < 2) return;
			mute = next.id;
			send(next, { t: 'unfollow' });
			chosen = undefined;
			choose();
		}, answerMs);
		answerTimer.unref();
		ask(next);
	}

	function take(l: Link, line: string): string | undefined {
		const m = parseFromManager(line);
		if (m === undefined) return 'it sends what is no message';
		if (m.t === 'refused') return `it refuses this node: ${m.why}`;
		if (m.t === 'ping') {
			pinged(l, m.at, m.ageMs);
			return undefined;
		}
		if (l !== chosen) return undefined;
		clearTimeout(answerTimer);
		mute = undefined;
		if (m.t === 'same') {
			if (received !== undefined) on.onMembership(received.membership);
			return undefined;
		}
		const at: Position = { epoch: m.epoch, version: m.version };
		if (m.t === 'full') received = { at, membership: shareMembership(received?.membership, m.membership) };
		else {
			// Asked for twice.
			if (received?.at.epoch === m.epoch && received.at.version >= m.version) return undefined;
			if (received?.at.epoch !== m.epoch || received.at.version !== m.from) {
				received = undefined;
				ask(l);
				return undefined;
			}
			received = { at, membership: applyDelta(received.membership, m) };
		}
		on.onMembership(received.membership);
		return undefined;
	}

	function dial(l: Link): void {
		if (closed || l.closed || info === undefined) return;
		const c = getCredentials();
		const name = `manager ${l.id} at ${l.host}:${port}`;
		const retry = () => {
			if (closed || l.closed) return;
			const ms = backoff[Math.min(l.tries++, backoff.length - 1)];
			clearTimeout(l.timer);
			l.timer = setTimeout(() => dial(l), ms * (0.75 + Math.random() / 2));
			l.timer.unref();
		};
		if (c === undefined) {
			retry();
			return;
		}
		const self = info.nodeId;
		let why: string | undefined;
		const socket = connect({
			host: l.host,
			port,
			...(c.kind === 'certificate'
				? {
						...c.context,
						minVersion: 'TLSv1.3' as const,
						servername: '',
						checkServerIdentity: (_host: string, cert: Parameters<typeof whyNotManager>[0]) => {
							const bad = whyNotManager(cert, c.cluster, l.id);
							return bad === undefined ? undefined : new Error(bad);
						},
					}
				: {
						...c.context,
						// Nobody has a certificate; who holds the token is believed.
						checkServerIdentity: () => undefined,
						pskCallback: () => ({ psk: c.psk as Buffer, identity: self }),
					}),
		});
		l.socket = socket;
		l.welcome = false;
		socket.setNoDelay(true);
		socket.setTimeout(HANDSHAKE_MS, () => {
			if (l.up) return;
			why = 'no answer';
			socket.destroy();
		});
		socket.once('secureConnect', () => {
			// With a certificate checkServerIdentity was asked; a resumed session would not ask, so none is.
			socket.setTimeout(0);
			l.up = true;
			l.heardAt = now();
			l.listedAt = undefined;
			send(l, { t: 'hello', protocol: PROTOCOL, node: self });
			sendReport(l, false);
			choose();
		});
		socket.on('error', (e) => {
			why ??= e.message;
		});
		socket.on('close', () => {
			const was = l.welcome;
			l.up = false;
			if (l.socket === socket) l.socket = undefined;
			if (closed || l.closed) return;
			if (!was || why !== undefined)
				problem(`manager ${l.id}`, `${name} is not followed: ${why ?? 'it closed the connection'}`);
			choose();
			if (l.socket === undefined) retry();
		});
		readLines(
			socket,
			MAX_MEMBERSHIP_BYTES,
			(line) => {
				l.heardAt = now();
				const bad = take(l, line);
				if (bad === undefined) {
					if (l.welcome) return;
					l.welcome = true;
					l.tries = 0;
					problem(`manager ${l.id}`, undefined);
					return;
				}
				why = bad;
				socket.destroy();
			},
			() => {
				why = 'it sends too much';
				socket.destroy();
			},
		);
	}

	function drop(l: Link): void {
		l.closed = true;
		clearTimeout(l.timer);
		l.socket?.destroy();
		l.up = false;
		problem(`manager ${l.id}`, undefined);
		links.delete(l.id);
	}

	function relink(): void {
		const wanted = new Map((info?.managers ?? []).filter((m) => m.id !== info?.nodeId).map((m) => [m.id, m.host]));
		for (const l of [...links.values()]) if (wanted.get(l.id) !== l.host) drop(l);
		for (const [id, host] of wanted) {
			if (links.has(id)) continue;
			const l: Link = {
				id,
				host,
				socket: undefined,
				up: false,
				welcome: false,
				tries: 0,
				timer: undefined,
				heardAt: now(),
				listedAt: undefined,
				problem: undefined,
				closed: false,
			};
			links.set(id, l);
			dial(l);
		}
		choose();
	}

	const pinger = setInterval(() => {
		const dead = now() - pingMs * 3;
		const ping = JSON.stringify({
			t: 'ping',
			...(published === undefined
				? {}
				: { at: { epoch, version }, ageMs: Math.max(0, Math.round(now() - publishedAt)) }),
		} satisfies FromManager);
		for (const f of followers) {
			if (f.heardAt < dead) f.socket.destroy();
			else write(f, ping);
		}
		for (const l of links.values()) {
			if (!l.up) continue;
			if (l.heardAt < dead) l.socket?.destroy(new Error('it fell silent'));
			else send(l, { t: 'ping' });
		}
	}, pingMs);
	pinger.unref();

	return {
		update(next) {
			const before = info;
			info = next;
			if (before?.manager !== next.manager || before.nodeAddress !== next.nodeAddress) serve();
			relink();
		},
		publish(m, listed) {
			if (closed) return;
			const before = published;
			const next = shareMembership(before, m);
			if (listed) publishedAt = now();
			if (before === undefined) {
				published = next;
				version = 1;
				for (const f of followers) if (f.follows) write(f, fullLine(next));
				return;
			}
			if (next.nodes === before.nodes && next.services === before.services && next.networks === before.networks) return;
			const delta = deltaOf(epoch, version, before, next);
			published = next;
			version = delta.version;
			const line = JSON.stringify({ t: 'delta', ...delta } satisfies FromManager);
			history.push({ from: delta.from, line });
			historyBytes += line.length;
			while (history.length > HISTORY || (historyBytes > HISTORY_BYTES && history.length > 1)) {
				historyBytes -= history[0].line.length;
				history = history.slice(1);
			}
			for (const f of followers) if (f.follows) write(f, line);
		},
		report(tasks, look) {
			report = { tasks, look };
			for (const l of links.values()) sendReport(l, look);
		},
		demand(demand) {
			for (const l of links.values()) send(l, { t: 'demand', ...demand });
		},
		problems() {
			const out = [...told.values()];
			if (info !== undefined && !info.manager && chosen === undefined && links.size > 0)
				out.push('no manager’s agent is followed: the last known membership stays');
			return out;
		},
		async close() {
			if (closed) return;
			closed = true;
			clearInterval(pinger);
			clearTimeout(serveTimer);
			clearTimeout(answerTimer);
			for (const t of silence.values()) clearTimeout(t);
			for (const l of [...links.values()]) drop(l);
			const s = server;
			stopServing();
			if (s !== undefined) await new Promise<void>((r) => s.close(() => r())).catch(() => undefined);
		},
	};
}
