/** Sockets inside the namespaces of endpoints, and what happens to a query that arrives there. */
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { closeSync, type FSWatcher, statSync, watch } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { type Netns, openNetns, UsageError } from 'libbpf-ts';
import type { Logger } from 'pino';
import { BeelineError, sentence } from '../errors.js';
import type { AskJob } from './ask-job.js';
import { type DnsCounters, RESULTS, type ServeState } from './counters.js';
import { Forwarder, type ForwardLimits, NodeServers, type Way } from './forward.js';
import type { ListenJob, ListenResult } from './listen-job.js';
import { type Outcome, plainAnswer, resolve, type Transport } from './resolver.js';
import { type NamedNetwork, type NetworkNames, namesOf, type View, viewOf } from './zone.js';

/**
 * Namespaces where Docker's resolver has 127.0.0.11: what it asks of the world there, the kernel brings to a port of ours
 * (bpf/names.h). By cookie of the namespace.
 */
export interface BesideDocker {
	set(cookie: bigint, port: number): void;
	delete(cookie: bigint): void;
	/** The server that Docker's resolver asked last there. */
	dialled(cookie: bigint): string | undefined;
}

export interface NameServiceDeps {
	readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>;
	/** The node's servers; default /etc/resolv.conf. */
	readonly resolvConf?: string;
	/** In [0, 1): the order of addresses. */
	readonly random?: () => number;
	/** ms, monotonic. */
	readonly nowMs?: () => number;
	readonly limits?: Partial<ForwardLimits>;
	/** Without it Docker's resolvers are left alone. */
	readonly docker?: BesideDocker;
}

export interface ServedEndpoint {
	readonly id: string;
	/** Path or name of its network namespace. */
	readonly netns: string;
	/** Names of the networks it is attached to. */
	readonly networks: readonly string[];
	/** A container's of Docker's: its resolver will be there, if it is not yet. */
	readonly docker?: boolean;
}

const ADDRESS = 0x7f00000b; // forward.ts: OWN_ADDRESS
const PORT = 53;
/** Answers that a UDP socket may keep for the kernel, bytes. */
const MAX_QUEUED = 256 << 10;
/** Connections of one namespace. */
const MAX_CONNECTIONS = 64;
/** Queries of one connection that wait for their answers; more are not read meanwhile. */
const MAX_PIPELINED = 16;
/** A connection without a byte; ms (RFC 7766 section 6.2.3: a few seconds). */
const IDLE_MS = 10_000;
/** How often a held namespace is tried again, at most; ms. */
const HELD_RETRY_MS = 5000;
/** Between two looks at whether namespaces are still there, beside what inotify tells; ms. */
const LOOK_MS = 1000;
/** The Worker that enters namespaces ends after this; ms. */
const WORKER_IDLE_MS = 2000;
/** The same where a namespace is expected. */
const WORKER_READY_MS = 15_000;
/** libnetwork's: one line in 2 s about queries turned away. */
const LOG_EVERY_MS = 2000;

/** A namespace by its device and inode: the same whatever path leads there. */
function identityOf(path: string): string | undefined {
	try {
		const { dev, ino } = statSync(path);
		return `${dev}:${ino}`;
	} catch {
		return undefined;
	}
}

interface Space {
	readonly identity: string;
	/** Endpoints in it: one namespace may have one on each of several networks. */
	readonly endpoints: Map<string, { readonly path: string; readonly networks: readonly string[] }>;
	state: ServeState | undefined;
	beside?: { readonly cookie: bigint; readonly port: number };
	view?: View;
	udp?: UdpSocket;
	tcp?: Server;
	readonly connections: Set<Socket>;
	opening?: Promise<ServeState>;
	triedMs: number;
	closed: boolean;
}

/** A network as it was given, and its names once somebody asked. */
interface Known {
	readonly source: NamedNetwork;
	names?: NetworkNames;
}

const countsOf = <K extends string>(keys: readonly K[]): Record<K, number> =>
	Object.fromEntries(keys.map((k) => [k, 0])) as Record<K, number>;

/**
 * A resolver on 127.0.0.11:53 in each endpoint's namespace, or behind the one that Docker has there. Its sockets keep a namespace alive, so they are closed as soon
 * as the path that led there does so no more.
 */
export class NameService {
	readonly #log: NameServiceDeps['log'];
	readonly #random: () => number;
	readonly #nowMs: () => number;
	readonly #docker: BesideDocker | undefined;
	readonly #forwarder: Forwarder;
	readonly #spaces = new Map<string, Space>();
	/** By identity of the namespace. */
	readonly #opening = new Map<string, Promise<ServeState>>();
	/** Endpoint → identity of its namespace. */
	readonly #where = new Map<string, string>();
	#networks = new Map<string, Known>();
	readonly #queries = countsOf(RESULTS);
	#truncated = 0;
	#saidBusyMs = Number.NEGATIVE_INFINITY;
	readonly #watchers = new Map<string, FSWatcher>();
	readonly #timer: NodeJS.Timeout;
	#worker: Promise<Netns> | undefined;
	#workerUsers = 0;
	#workerTimer: NodeJS.Timeout | undefined;
	#closed = false;

	constructor(deps: NameServiceDeps) {
		this.#log = deps.log;
		this.#random = deps.random ?? Math.random;
		this.#nowMs = deps.nowMs ?? (() => performance.now());
		this.#docker = deps.docker;
		const path = deps.resolvConf ?? '/etc/resolv.conf';
		const servers = new NodeServers(path, this.#nowMs, (list, why) => {
			if (why !== undefined)
				this.#log.warn(
					`read ${path}: ${why}; unknown names go to ${list.map((s) => s.address).join(', ') || 'nobody'} meanwhile`,
				);
			else if (list.length === 0)
				this.#log.warn(`${path} names no server that can be asked: unknown names get SERVFAIL until it does`);
			else this.#log.info({ servers: list.map((s) => s.address) }, 'unknown names go to these servers');
		});
		this.#forwarder = new Forwarder(
			() => servers.current(),
			() => this.#busy(),
			deps.limits,
		);
		this.#timer = setInterval(() => this.#look(), LOOK_MS);
		this.#timer.unref();
	}

	/** All networks with their names, as they are now: the next query sees them. Unchanged objects cost nothing. */
	update(networks: readonly NamedNetwork[]): void {
		const next = new Map<string, Known>();
		for (const network of networks) {
			const old = this.#networks.get(network.id);
			next.set(network.id, old?.source === network ? old : { source: network });
		}
		this.#networks = next;
		for (const space of this.#spaces.values()) space.view = undefined;
	}

	/**
	 * Answers in an endpoint's namespace. May be repeated; with other networks its view changes.
	 *
	 * @throws BeelineError where the namespace is not there; BpfError where it cannot be entered
	 */
	async serve(endpoint: ServedEndpoint): Promise<ServeState> {
		if (this.#closed) throw new BeelineError('CLOSED', 'serve names: the name service is closed');
		const path = endpoint.netns.includes('/') ? endpoint.netns : `/run/netns/${endpoint.netns}`;
		const identity = identityOf(path);
		if (identity === undefined) {
			this.forget(endpoint.id);
			throw new BeelineError(
				'NETNS_GONE',
				`serve names to ${endpoint.id}: there is no namespace ${path} (ip netns list)`,
			);
		}
		if (this.#where.get(endpoint.id) !== identity) this.forget(endpoint.id);
		let space = this.#spaces.get(identity);
		if (space === undefined) {
			space = {
				identity,
				endpoints: new Map(),
				state: undefined,
				connections: new Set(),
				triedMs: 0,
				closed: false,
			};
			this.#spaces.set(identity, space);
		}
		space.endpoints.set(endpoint.id, { path, networks: [...endpoint.networks] });
		space.view = undefined;
		this.#where.set(endpoint.id, identity);
		this.#watch(path);
		if (space.state === 'serving' || space.state === 'beside') return space.state;
		if (space.state === 'held' && this.#nowMs() - space.triedMs < HELD_RETRY_MS) return 'held';
		space.opening ??= this.#openInTurn(space, path, endpoint.docker === true);
		try {
			return await space.opening;
		} catch (e) {
			// Forgotten, so that the next call begins anew; a later call's space is not this one.
			if (space.state === undefined && this.#spaces.get(identity) === space) this.forget(endpoint.id);
			throw e;
		}
	}

	/** A namespace will be served soon: its first query should not wait for a thread to start. */
	prepare(): void {
		if (this.#closed) return;
		this.#worker ??= openNetns('/proc/self/ns/net');
		this.#worker.catch(() => {
			this.#worker = undefined;
		});
		if (this.#workerUsers === 0) this.#endWorkerIn(WORKER_READY_MS);
	}

	/** The endpoint is gone, or its namespace: with the last one of a namespace its sockets are closed. */
	forget(id: string): void {
		const identity = this.#where.get(id);
		if (identity === undefined) return;
		this.#where.delete(id);
		const space = this.#spaces.get(identity)!;
		space.endpoints.delete(id);
		space.view = undefined;
		if (space.endpoints.size === 0) this.#shut(space);
		this.#unwatch();
	}

	counters(): DnsCounters {
		const namespaces = { serving: 0, beside: 0, held: 0 };
		for (const { state } of this.#spaces.values()) if (state !== undefined) namespaces[state]++;
		return {
			queries: { ...this.#queries },
			truncated: this.#truncated,
			failures: { ...this.#forwarder.failures },
			inFlight: this.#forwarder.inFlight,
			namespaces,
		};
	}

	async close(): Promise<void> {
		this.#closed = true;
		clearInterval(this.#timer);
		this.#forwarder.close();
		const opening = [...this.#opening.values()];
		for (const id of [...this.#where.keys()]) this.forget(id);
		await Promise.allSettled(opening);
		clearTimeout(this.#workerTimer);
		await (await this.#worker?.catch(() => undefined))?.close();
	}

	#shut(space: Space): void {
		space.closed = true;
		if (space.beside !== undefined) this.#docker?.delete(space.beside.cookie);
		this.#spaces.delete(space.identity);
		space.udp?.close();
		space.tcp?.close();
		for (const c of space.connections) c.destroy();
	}

	/** Which namespaces are no longer where their endpoints say. */
	#look(): void {
		for (const space of [...this.#spaces.values()])
			for (const [id, { path }] of [...space.endpoints])
				if (identityOf(path) !== space.identity) {
					this.#log.debug({ endpoint: id, netns: path }, 'the namespace is gone: its names are served no more');
					this.forget(id);
				}
	}

	/** inotify on the directory of namespaces: `ip netns del` is seen at once. /proc tells nothing that way. */
	#watch(path: string): void {
		const dir = dirname(path);
		if (dir.startsWith('/proc/') || this.#watchers.has(dir)) return;
		try {
			const watcher = watch(dir, () => this.#look());
			watcher.on('error', () => {
				this.#watchers.delete(dir);
				watcher.close();
			});
			watcher.unref();
			this.#watchers.set(dir, watcher);
		} catch {
			// The timer looks too.
		}
	}

	#unwatch(): void {
		const dirs = new Set<string>();
		for (const space of this.#spaces.values()) for (const { path } of space.endpoints.values()) dirs.add(dirname(path));
		for (const [dir, watcher] of this.#watchers)
			if (!dirs.has(dir)) {
				watcher.close();
				this.#watchers.delete(dir);
			}
	}

	/** After whoever is still opening there for an endpoint that was forgotten meanwhile: its sockets would be in the way. */
	#openInTurn(space: Space, path: string, isDocker: boolean): Promise<ServeState> {
		const { identity } = space;
		const former = this.#opening.get(identity);
		const opened = (async () => {
			await former?.catch(() => undefined);
			return await this.#open(space, path, isDocker);
		})().finally(() => {
			space.opening = undefined;
			if (this.#opening.get(identity) === opened) this.#opening.delete(identity);
		});
		this.#opening.set(identity, opened);
		return opened;
	}

	async #open(space: Space, path: string, isDocker: boolean): Promise<ServeState> {
		space.triedMs = this.#nowMs();
		const docker = this.#docker === undefined ? 'never' : isDocker ? 'soon' : 'maybe';
		const r = await this.#run<ListenResult>('listen-job', {
			netns: path,
			address: ADDRESS,
			port: PORT,
			docker,
		} satisfies ListenJob);
		if ('held' in r) {
			if (space.state !== 'held')
				this.#log.warn(`names are not served in ${path}: ${r.held}; containers there keep the resolver they have`);
			space.state = 'held';
			return 'held';
		}
		if (space.closed || r.identity !== space.identity) {
			closeSync(r.udp);
			closeSync(r.tcp);
			throw new BeelineError('NETNS_GONE', `serve names in ${path}: the namespace went or was replaced meanwhile`);
		}
		// Whoever forgets the endpoint meanwhile closes what is in `space` by then, and the rest is closed here.
		const gone = new BeelineError('NETNS_GONE', `serve names in ${path}: the namespace went meanwhile`);
		try {
			space.udp = await this.#adoptUdp(space, r.udp);
		} catch (e) {
			closeSync(r.tcp);
			throw e;
		}
		if (space.closed) {
			closeSync(r.tcp);
			throw gone;
		}
		try {
			space.tcp = await this.#adoptTcp(space, r.tcp);
		} catch (e) {
			if (!space.closed) space.udp.close();
			space.udp = undefined;
			throw e;
		}
		if (space.closed) {
			space.tcp.close();
			throw gone;
		}
		if (r.beside === undefined) {
			space.state = 'serving';
			return 'serving';
		}
		// Only now is anything sent there.
		this.#docker?.set(r.beside.cookie, r.beside.port);
		space.beside = r.beside;
		space.state = 'beside';
		return 'beside';
	}

	/** As Docker's resolver would have asked: the server that it dialled, from the container's namespace. */
	#way(space: Space): Way | undefined {
		if (space.beside === undefined) return undefined;
		const dialled = this.#docker?.dialled(space.beside.cookie);
		if (dialled === undefined) return undefined;
		return {
			servers: [{ address: dialled, family: dialled.includes(':') ? 6 : 4, port: PORT }],
			open: async ({ address, port }, via) => {
				const path = [...space.endpoints.values()][0]?.path;
				if (path === undefined || identityOf(path) !== space.identity) throw new Error('the namespace is gone');
				return await this.#run<number>('ask-job', { netns: path, via, address, port } satisfies AskJob);
			},
		};
	}

	/** One Worker for all: it enters a namespace, makes sockets and comes home, and ends when it has been idle. */
	async #run<T>(job: 'listen-job' | 'ask-job', args: ListenJob | AskJob): Promise<T> {
		clearTimeout(this.#workerTimer);
		this.#workerUsers++;
		this.#worker ??= openNetns('/proc/self/ns/net');
		try {
			const worker = await this.#worker.catch((e: unknown) => {
				this.#worker = undefined;
				throw e;
			});
			return await worker.run<T>({ module: new URL(`./${job}.js`, import.meta.url), args });
		} catch (e) {
			// It was the Worker that failed, not what it was asked for: the next one gets another.
			if (e instanceof UsageError) this.#worker = undefined;
			throw e;
		} finally {
			this.#workerUsers--;
			if (this.#workerUsers === 0) this.#endWorkerIn(WORKER_IDLE_MS);
		}
	}

	#endWorkerIn(ms: number): void {
		clearTimeout(this.#workerTimer);
		this.#workerTimer = setTimeout(() => {
			const idle = this.#worker;
			this.#worker = undefined;
			void idle?.then((w) => w.close()).catch(() => {});
		}, ms);
		this.#workerTimer.unref();
	}

	#view(space: Space): View {
		if (space.view === undefined) {
			const ids = new Set([...space.endpoints.values()].flatMap((e) => e.networks));
			const networks: NetworkNames[] = [];
			for (const id of ids) {
				const network = this.#networks.get(id);
				if (network === undefined) continue;
				network.names ??= namesOf(network.source);
				networks.push(network.names);
			}
			const view = viewOf(networks);
			// What Docker's resolver forwards goes where it was sent to: the container may be on networks of Docker's too.
			space.view = space.beside === undefined ? view : { ...view, forward: true };
		}
		return space.view;
	}

	#busy(): void {
		const now = this.#nowMs();
		if (now - this.#saidBusyMs < LOG_EVERY_MS) return;
		this.#saidBusyMs = now;
		this.#log.warn(
			`names: too many queries wait for the node's servers (${this.#forwarder.inFlight} under way): the rest are refused`,
		);
	}

	/** Answers one message, or not. @param say is called at most once, perhaps later */
	#handle(space: Space, bytes: Uint8Array, via: Transport, say: (answer: Uint8Array | undefined) => void): void {
		let outcome: Outcome;
		try {
			outcome = resolve(bytes, this.#view(space), via, this.#random);
		} catch (e) {
			// A container's message must not end the agent, whatever is wrong with our reading of it.
			this.#log.debug(`names: a query could not be read: ${sentence(e)}`);
			outcome = { kind: 'drop' };
		}
		if (outcome.kind === 'drop') {
			this.#queries.dropped++;
			say(undefined);
		} else if (outcome.kind === 'answer') {
			this.#queries[outcome.result]++;
			if (outcome.truncated) this.#truncated++;
			say(outcome.bytes);
		} else {
			const { query } = outcome;
			void this.#forwarder.forward(space.identity, bytes, query, via, this.#way(space)).then((r) => {
				if (r === 'busy') {
					this.#queries.refused++;
					say(plainAnswer(query, 'REFUSED'));
				} else if (r === 'failed') {
					this.#queries.servfail++;
					say(plainAnswer(query, 'SERVFAIL'));
				} else {
					this.#queries.forwarded++;
					say(r);
				}
			});
		}
	}

	#adoptUdp(space: Space, fd: number): Promise<UdpSocket> {
		return new Promise((done, fail) => {
			const socket = createSocket({
				type: 'udp4',
				// dns.lookup takes a turn of the event loop to see that an address is one.
				lookup: (address, _options, found) => found(null, address, 4),
			});
			socket.once('error', (e) => {
				closeSync(fd);
				fail(e);
			});
			socket.bind({ fd }, () => {
				socket.removeAllListeners('error');
				socket.on('error', (e) => this.#log.debug(`names: UDP: ${sentence(e)}`));
				done(socket);
			});
			socket.on('message', (bytes, from) =>
				this.#handle(space, bytes, 'udp', (answer) => {
					if (answer === undefined || space.closed) return;
					if (socket.getSendQueueSize() > MAX_QUEUED) {
						this.#queries.dropped++;
						return;
					}
					socket.send(answer, from.port, from.address, () => {});
				}),
			);
		});
	}

	#adoptTcp(space: Space, fd: number): Promise<Server> {
		return new Promise((done, fail) => {
			const server = createServer({ allowHalfOpen: true }, (c) => this.#connection(space, c));
			server.maxConnections = MAX_CONNECTIONS;
			server.once('error', (e) => {
				closeSync(fd);
				fail(e);
			});
			server.listen({ fd }, () => {
				server.removeAllListeners('error');
				server.on('error', (e) => this.#log.debug(`names: TCP: ${sentence(e)}`));
				done(server);
			});
		});
	}

	/** RFC 7766: several queries on one connection, answered as they are known. */
	#connection(space: Space, c: Socket): void {
		space.connections.add(c);
		c.on('close', () => space.connections.delete(c));
		c.on('error', () => c.destroy());
		c.setTimeout(IDLE_MS, () => c.destroy());
		let kept: Buffer = Buffer.alloc(0);
		let pending = 0;
		let ended = false;
		const full = () => pending >= MAX_PIPELINED || c.writableNeedDrain;
		const go = () => {
			while (!c.destroyed && !full() && kept.length >= 2) {
				const length = kept.readUInt16BE(0);
				if (kept.length < 2 + length) break;
				const query = kept.subarray(2, 2 + length);
				kept = kept.subarray(2 + length);
				pending++;
				this.#handle(space, query, 'tcp', (answer) => {
					pending--;
					if (c.destroyed) return;
					// What is no query over a connection has lost its framing, or its mind.
					if (answer === undefined) return void c.destroy();
					const head = Buffer.alloc(2);
					head.writeUInt16BE(answer.length);
					c.write(Buffer.concat([head, answer]));
					setImmediate(go);
				});
			}
			if (c.destroyed) return;
			if (full()) c.pause();
			else if (!ended) c.resume();
			else if (pending === 0) c.end();
		};
		c.on('drain', go);
		c.on('data', (chunk: Buffer) => {
			kept = kept.length > 0 ? Buffer.concat([kept, chunk]) : chunk;
			go();
		});
		// The client has said all it wants to: it still hears the answers.
		c.on('end', () => {
			ended = true;
			go();
		});
	}
}
