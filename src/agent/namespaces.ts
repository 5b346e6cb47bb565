/**
 * Which network namespaces of this node are attached to which of Docker's overlay networks: what `socket` must know before
 * a task's first dial. The engine says "container start" some 100 ms after that dial, and answers no question about a
 * container that starts. So three sources are joined:
 *
 *	network connect (event)    names a network; GET /networks/{id} has the endpoint's address and MAC, before there is a namespace
 *	/run/docker/netns (inotify) the namespace, as soon as it is there; looked into for its cookie, addresses and MACs
 *	GET /containers/json       every endpoint of every running container: the truth, looked up after each event
 *
 * A namespace is attached to the networks whose endpoints it has an interface for, address and MAC alike.
 */
import { type FSWatcher, readdirSync, statSync, watch } from 'node:fs';
import { join } from 'node:path';
import { openNetns } from 'libbpf-ts';
import { sentence } from '../errors.js';
import { parseAddress } from '../mesh/sources/document.js';
import type { Engine, EngineEvent } from '../mesh/sources/engine.js';
import type { Closed, Interface, Job, Look } from './namespace-job.js';

export const DOCKER_NETNS = '/run/docker/netns';

/** A container's interface in a network, as the engine tells it. */
interface Endpoint {
	/** Network id. */
	readonly network: string;
	readonly address: string;
	/** Empty: not told. */
	readonly mac: string;
	readonly container: string;
}

export interface Attachment {
	readonly cookie: bigint;
	/** Network ids. */
	readonly networks: readonly string[];
}

export interface Namespaces {
	/** Cookie → network ids. undefined: not looked at wholly yet, or the directory cannot be read. */
	current(): ReadonlyMap<bigint, readonly string[]> | undefined;
	/** Why namespaces are not known, for the operator. */
	problem(): string | undefined;
	/**
	 * Closes UDP sockets that are connected to addresses of a network, in the namespaces that are attached to it: what is
	 * connected asks for no task again, and a dead one would be written to for ever.
	 */
	closeSockets(network: string, addresses: readonly string[]): Promise<Closed>;
	close(): Promise<void>;
}

export interface NamespacesDeps {
	readonly engine: Pick<Engine, 'get' | 'events'>;
	readonly directory?: string;
	readonly log: (level: 'info' | 'warn' | 'debug', text: string) => void;
	/** How long a namespace may be away before it is told. Default: BLIND_MS. */
	readonly blindMs?: number;
	/** Runs a job in a namespace; default: a visitor of its own. */
	readonly visit?: { call(path: string, job: Job): Promise<unknown>; close(): Promise<void> };
}

export interface NamespacesEvents {
	/** A namespace has got a network, at once. */
	onAttached(attachment: Attachment): void;
	/** current() or problem() is another. */
	onChange(): void;
}

/** A sandbox of a container: the first 12 digits of its id. Others are the engine's own (`1-…`, `lb_…`, `ingress_sbox`). */
const SANDBOX = /^[0-9a-f]{12}$/;
/** The file is there before the namespace is mounted on it, and that before its addresses, which come one by one. */
const LOOK_AGAIN_MS = 4;
const LOOK_FOR_MS = 3000;
const LOOK_ON_MS = 100;
/** An endpoint that the engine told of, until its list of containers must have it. */
const FRESH_MS = 30_000;
const DEBOUNCE_MS = 50;
const RETRY_MS = [200, 500, 1000, 2000, 5000];
/** Of what no event told. */
const FULL_MS = 30_000;
const MAX_ENDPOINTS = 65536;
/** For so long a file without a namespace is one of a container that comes or goes. */
const BLIND_MS = 10_000;

interface Known {
	readonly inode: bigint;
	cookie: bigint;
	interfaces: readonly Interface[];
	networks: readonly string[];
}

/** One thread that goes from namespace to namespace. It is started at the first call. */
export function createVisitor(): NonNullable<NamespacesDeps['visit']> {
	const module = new URL('./namespace-job.js', import.meta.url);
	let thread: ReturnType<typeof openNetns> | undefined;
	return {
		async call(path, args) {
			thread ??= openNetns('/proc/self/ns/net');
			try {
				return await (await thread).visit(path, { module, args });
			} catch (e) {
				// A thread that could not be started, or has ended, is replaced at the next call.
				if (!(e instanceof Error && 'errno' in e)) thread = undefined;
				throw e;
			}
		},
		async close() {
			await (await thread?.catch(() => undefined))?.close();
		},
	};
}

interface RawContainer {
	readonly Id?: string;
	readonly NetworkSettings?: {
		readonly Networks?: Readonly<
			Record<string, { readonly NetworkID?: string; readonly IPAddress?: string; readonly MacAddress?: string } | null>
		> | null;
	};
}

/** GET /containers/json → endpoints. */
export function endpointsOfContainers(raw: unknown): Endpoint[] {
	if (!Array.isArray(raw)) return [];
	return (raw as RawContainer[]).flatMap((c) =>
		Object.values(c.NetworkSettings?.Networks ?? {}).flatMap((n) => {
			const address = parseAddress(n?.IPAddress);
			return c.Id === undefined || !n?.NetworkID || address === undefined
				? []
				: [{ network: n.NetworkID, address, mac: (n.MacAddress ?? '').toLowerCase(), container: c.Id }];
		}),
	);
}

/** GET /networks/{id} → its endpoints on this node. */
export function endpointsOfNetwork(network: string, raw: unknown): Endpoint[] {
	const { Containers } = (raw ?? {}) as {
		Containers?: Readonly<Record<string, { readonly IPv4Address?: string; readonly MacAddress?: string }>> | null;
	};
	return Object.entries(Containers ?? {}).flatMap(([container, c]) => {
		const address = parseAddress(c.IPv4Address?.replace(/\/\d+$/, ''));
		return address === undefined ? [] : [{ network, address, mac: (c.MacAddress ?? '').toLowerCase(), container }];
	});
}

/** Namespaces and their networks from two who know of some each: a container may be on Docker's networks and on ours. */
export function mergeAttached(
	a: ReadonlyMap<bigint, readonly number[]>,
	b: ReadonlyMap<bigint, readonly number[]>,
): ReadonlyMap<bigint, readonly number[]> {
	const out = new Map(a);
	for (const [cookie, vnis] of b) out.set(cookie, [...new Set([...(out.get(cookie) ?? []), ...vnis])]);
	return out;
}

export function watchNamespaces(deps: NamespacesDeps, on: NamespacesEvents): Namespaces {
	const { engine, log } = deps;
	const directory = deps.directory ?? DOCKER_NETNS;
	const visit = deps.visit ?? createVisitor();
	/** By name of the file. */
	const known = new Map<string, Known>();
	const entering = new Set<string>();
	/** By address: the running containers', and those that the engine has just told of. */
	let listed: readonly Endpoint[] = [];
	let fresh: { readonly endpoint: Endpoint; readonly until: number }[] = [];
	let byAddress = new Map<string, Endpoint[]>();
	let complete = false;
	let problem: string | undefined;
	let closed = false;
	let watcher: FSWatcher | undefined;
	let timer: NodeJS.Timeout | undefined;
	let timerAt = Number.POSITIVE_INFINITY;
	let running = false;
	let again = false;
	let relook = false;
	let failures = 0;
	let events: { close(): void } | undefined;
	let eventsTimer: NodeJS.Timeout | undefined;
	let eventTries = 0;
	/** Files without a namespace, and addresses of running containers that no namespace has: since when. */
	let bare = new Map<string, number>();
	let unseen = new Map<string, number>();
	let blind: string | undefined;
	const blindMs = deps.blindMs ?? BLIND_MS;
	const now = () => performance.now();

	function index(): void {
		const at = now();
		fresh = fresh.filter((f) => f.until > at).slice(-MAX_ENDPOINTS);
		byAddress = new Map();
		for (const e of [...listed, ...fresh.map((f) => f.endpoint)]) {
			const of = byAddress.get(e.address);
			if (of === undefined) byAddress.set(e.address, [e]);
			else of.push(e);
		}
	}

	function networksOf(interfaces: readonly Interface[]): string[] {
		const out = new Set<string>();
		for (const i of interfaces)
			for (const e of byAddress.get(i.address) ?? []) if (e.mac === '' || e.mac === i.mac) out.add(e.network);
		return [...out].sort();
	}

	/** Works out a namespace's networks anew. @returns whether they are others */
	function match(k: Known): boolean {
		const next = networksOf(k.interfaces);
		if (next.join() === k.networks.join()) return false;
		k.networks = next;
		if (next.length > 0) on.onAttached({ cookie: k.cookie, networks: next });
		return true;
	}

	function matchAll(): boolean {
		index();
		let changed = false;
		for (const k of known.values()) changed = match(k) || changed;
		return changed;
	}

	const look = (name: string) => visit.call(join(directory, name), { look: true }) as Promise<Look>;

	function inodeOf(name: string): bigint | undefined {
		try {
			return statSync(join(directory, name), { bigint: true }).ino;
		} catch {
			return undefined;
		}
	}

	/** A namespace that has just appeared: looked into until it has an address that belongs to a network. */
	async function enter(name: string): Promise<void> {
		if (entering.has(name)) return;
		entering.add(name);
		let end = now() + LOOK_FOR_MS;
		let found = 0;
		try {
			while (!closed) {
				const seen = await look(name).catch(() => undefined);
				if (closed) return;
				// The namespace's own inode, once it is mounted on the file.
				const inode = inodeOf(name);
				if (inode === undefined) {
					if (known.delete(name)) on.onChange();
					return;
				}
				if (seen !== undefined) {
					const k = known.get(name);
					const next: Known =
						k?.cookie === seen.cookie ? k : { inode, cookie: seen.cookie, interfaces: [], networks: [] };
					next.interfaces = seen.interfaces;
					known.set(name, next);
					if (match(next)) on.onChange();
					if (next.networks.length > found) {
						found = next.networks.length;
						end = now() + LOOK_ON_MS;
					}
				}
				if (now() > end) return;
				await new Promise((r) => setTimeout(r, LOOK_AGAIN_MS));
			}
		} finally {
			entering.delete(name);
		}
	}

	function openWatcher(): void {
		if (watcher !== undefined || closed) return;
		try {
			watcher = watch(directory, (_kind, file) => {
				if (file === null || !SANDBOX.test(file)) return;
				if (inodeOf(file) !== undefined) void enter(file);
				else if (known.delete(file)) on.onChange();
			});
			watcher.unref();
			watcher.on('error', () => {
				watcher?.close();
				watcher = undefined;
				later(RETRY_MS[0]);
			});
		} catch (e) {
			throw new Error(
				`${directory} cannot be watched (${sentence(e)}): tasks of this node that dial a service’s VIP are left to Docker; mount it into the agent’s container, with rslave propagation`,
			);
		}
	}

	/** Everything anew. */
	async function refresh(): Promise<void> {
		if (closed) return;
		if (running) {
			again = true;
			return;
		}
		running = true;
		again = false;
		const all = relook;
		relook = false;
		const before = problem;
		let changed = false;
		try {
			openWatcher();
			const names = readdirSync(directory).filter((n) => SANDBOX.test(n));
			const containers = await engine.get('/containers/json');
			if (closed) return;
			listed = endpointsOfContainers(containers);
			index();
			const there = new Set(names);
			for (const name of known.keys())
				if (!there.has(name) && inodeOf(name) === undefined) changed = known.delete(name) || changed;
			for (const name of names) {
				if (entering.has(name)) continue;
				const k = known.get(name);
				const inode = inodeOf(name);
				if (inode === undefined || (k !== undefined && k.inode === inode && !all)) continue;
				try {
					const { cookie, interfaces } = await look(name);
					if (closed) return;
					known.set(name, { inode, cookie, interfaces, networks: k?.cookie === cookie ? k.networks : [] });
					changed = true;
				} catch (e) {
					// Gone meanwhile, or not mounted yet: the watcher tells.
					log('debug', `namespace ${name}: ${sentence(e)}`);
				}
			}
			changed = matchAll() || changed || !complete;
			complete = true;
			problem = undefined;
			failures = 0;
			later(lookForUnseen(names) ? blindMs : FULL_MS);
		} catch (e) {
			if (closed) return;
			problem = sentence(e);
			later(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
		} finally {
			running = false;
			if (again) later(0);
		}
		if (changed || problem !== before) on.onChange();
	}

	/** Docker mounts a namespace on each file; a container that runs and a file that stays bare say that it is not seen here. @returns whether it may be so */
	function lookForUnseen(names: readonly string[]): boolean {
		const at = now();
		const since = (before: ReadonlyMap<string, number>, keys: readonly string[]) =>
			new Map(keys.map((k) => [k, before.get(k) ?? at]));
		const found = new Set([...known.values()].flatMap((k) => k.interfaces.map((i) => i.address)));
		bare = since(
			bare,
			names.filter((n) => !known.has(n)),
		);
		unseen = since(
			unseen,
			listed.map((e) => e.address).filter((a) => !found.has(a)),
		);
		const long = (m: ReadonlyMap<string, number>) => [...m].filter(([, t]) => at - t >= blindMs).map(([k]) => k);
		const without = long(unseen);
		const told = blind;
		blind =
			without.length > 0 && long(bare).length > 0
				? `namespaces that Docker mounts in ${directory} do not reach the agent (of containers ${without.slice(0, 3).join(', ')}${without.length > 3 ? ', …' : ''}): where these dial a service’s VIP they are left to Docker; give the agent’s mounts rslave propagation and start it again`
				: undefined;
		if (blind !== told) on.onChange();
		return blind === undefined && bare.size > 0 && unseen.size > 0;
	}

	function later(inMs: number): void {
		if (closed) return;
		const at = now() + inMs;
		if (timer !== undefined && timerAt <= at) return;
		clearTimeout(timer);
		timerAt = at;
		timer = setTimeout(() => {
			timer = undefined;
			timerAt = Number.POSITIVE_INFINITY;
			void refresh();
		}, inMs);
		timer.unref();
	}

	async function connected(network: string): Promise<void> {
		try {
			const found = endpointsOfNetwork(network, await engine.get(`/networks/${network}`));
			if (closed) return;
			const until = now() + FRESH_MS;
			const had = new Set(fresh.map((f) => `${f.endpoint.network} ${f.endpoint.address} ${f.endpoint.container}`));
			for (const endpoint of found)
				if (!had.has(`${endpoint.network} ${endpoint.address} ${endpoint.container}`)) fresh.push({ endpoint, until });
			if (matchAll()) on.onChange();
		} catch (e) {
			log('debug', `network ${network}: ${sentence(e)}`);
		}
	}

	function hear(e: EngineEvent): void {
		if (e.type === 'network' && (e.action === 'connect' || e.action === 'disconnect')) {
			if (e.attributes.type !== 'overlay') return;
			if (e.action === 'connect') void connected(e.id);
			else {
				const { container } = e.attributes;
				fresh = fresh.filter((f) => f.endpoint.network !== e.id || f.endpoint.container !== container);
			}
			// A container that runs may have got another interface, or lost one.
			relook = true;
			later(DEBOUNCE_MS);
		} else if (e.type === 'container' && e.action === 'start') {
			relook = true;
			later(DEBOUNCE_MS);
		}
	}

	function follow(): void {
		if (closed) return;
		events = engine.events(['network', 'container'], {
			onOpen() {
				eventTries = 0;
				relook = true;
				later(0);
			},
			onEvent: hear,
			onEnd() {
				if (closed) return;
				eventsTimer = setTimeout(follow, RETRY_MS[Math.min(eventTries++, RETRY_MS.length - 1)]);
			},
		});
	}

	follow();
	later(0);
	return {
		current: () =>
			complete && problem === undefined
				? new Map([...known.values()].map((k) => [k.cookie, k.networks] as const))
				: undefined,
		problem: () => problem ?? blind,
		async closeSockets(network, addresses) {
			let found = 0;
			let left = 0;
			for (const [name, k] of known) {
				if (!k.networks.includes(network)) continue;
				try {
					const r = (await visit.call(join(directory, name), { close: addresses })) as Closed;
					found += r.found;
					left += r.left;
				} catch (e) {
					log('debug', `namespace ${name}: ${sentence(e)}`);
				}
			}
			return { found, left };
		},
		async close() {
			closed = true;
			clearTimeout(timer);
			clearTimeout(eventsTimer);
			watcher?.close();
			events?.close();
			if (deps.visit === undefined) await visit.close();
		},
	};
}
