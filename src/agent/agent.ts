/**
 * The loop that joins everything: source → plan → local facts → entries → reconcile → attach. Events only mark it dirty; one
 * run at a time works from what is true then. What fails is tried again, and the last known state stays.
 */
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { shareHeap, trimHeap } from 'libbpf-ts';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { NameService } from '../dns/server.js';
import { BeelineError, sentence } from '../errors.js';
import { type Datapath, openDatapath, ownNetnsCookie, RUN_DIR } from '../loader/datapath.js';
import {
	type Event,
	MESH_ABI,
	NodeFlag,
	PORT_FRONTEND_MASK,
	PortFlag,
	PROGRAMS,
	REF_INDEX_MASK,
	VERDICTS,
} from '../loader/layout.gen.js';
import { withEndpointTasks } from '../mesh/endpoints.js';
import { type DatapathOptions, entries, undeliverable } from '../mesh/entries.js';
import { createIds } from '../mesh/ids.js';
import { createMaglevPool } from '../mesh/maglev.js';
import { type Health, type Mesh, plan } from '../mesh/plan.js';
import { createReconciler, type Reconciler } from '../mesh/reconcile.js';
import { createEngine, parseDockerHost } from '../mesh/sources/engine.js';
import type { Membership } from '../mesh/types.js';
import { createVipIds, type VipEntries, vipEntries } from '../mesh/vip-entries.js';
import { createVipReconciler, type GoneBackend, type VipReconciler } from '../mesh/vip-reconcile.js';
import { createMetrics, type Metrics, type MetricsSnapshot } from '../metrics/registry.js';
import type { Driver } from '../plugin/driver.js';
import { createPlugin, type Plugin } from '../plugin/host.js';
import type { AgentApi, AgentEvent } from './api.js';
import { AgentError } from './api.js';
import { type Asked, asked, holds, NOTHING_HELD, newIn } from './asked.js';
import { Attachments } from './attachments.js';
import { createApi, type Known } from './commands.js';
import { Encryption, readSecret, removeEncryption } from './encryption.js';
import { type Run, run as runCommand } from './exec.js';
import { FactReader, knownPart } from './facts.js';
import { createGateway, GATEWAY_BRIDGE } from './gateway.js';
import { readLinks, whyNot } from './links.js';
import { createLocal, type Local, portName } from './local.js';
import { watchKernel, watchRules } from './monitor.js';
import type { Closed, Look } from './namespace-job.js';
import { createVisitor, mergeAttached, type Namespaces, watchNamespaces } from './namespaces.js';
import { createNetworks } from './networks.js';
import { createNewcomers } from './newcomers.js';
import { turnOnOffload } from './offloads.js';
import { netnsOfContainer, Overlay, removeOverlay } from './overlay.js';
import { Peers } from './peers.js';
import { listening, localPortRange, reservePorts } from './ports.js';
import { createResting } from './resting.js';
import { routedPrefixes } from './routes.js';
import { createRunner } from './runner.js';
import { openSource, type Source } from './source.js';
import { SourcePorts } from './source-ports.js';
import { type AgentState, readState, removeState, statePath, writeState } from './state.js';
import { STREAM_PORT } from './stream.js';
import * as views from './views.js';

export interface AgentDeps {
	readonly config: Config;
	readonly version: string;
	readonly log: Logger;
	/** C sources and precompiled objects; at least one of them. */
	readonly bpfDir?: string;
	readonly objectDir?: string;
	readonly cacheDir?: string;
	readonly runDir?: string;
	readonly run?: Run;
	/** Ends a start that still waits for its membership. */
	readonly stop?: AbortSignal;
}

export interface Agent {
	readonly api: AgentApi;
	readonly metrics: Metrics;
	/** What Docker's plugin socket is answered from; undefined: none is configured. */
	readonly plugin: Driver | undefined;
	/** Reads source and kernel anew. */
	reload(cause: string): void;
	/** Resolves when the first complete apply has happened. @throws what made it impossible */
	readonly ready: Promise<void>;
	/** This node is no longer in the membership, or is drained and the kernel's own mesh answers in its stead. */
	readonly leaving: boolean;
	/** Leaves the datapath as it is and closes. */
	close(): Promise<void>;
	/** Hands flows back to the kernel's mesh for at most `waitMs` where it serves the ports too, then removes everything. */
	detach(waitMs: number): Promise<readonly string[]>;
}

/**
 * What reading and planning a large mesh left behind would stay in the agent's memory until much else is done, which in a
 * quiet mesh is never. A collection of a moment when nothing waits for it; packets know nothing of it.
 */
function collectGarbage(): void {
	setFlagsFromString('--expose-gc');
	const gc: unknown = runInNewContext('gc');
	setFlagsFromString('--no-expose-gc');
	if (typeof gc === 'function') gc();
	trimHeap();
}
/** Rows from which on a run leaves that much. */
const LARGE_RUN_ROWS = 10_000;
/** After the Maglev threads have gone. */
const COLLECT_AFTER_MS = 3000;
/** Before what the start leaves is collected, so that what this leaves is too. */
const REHEARSE_AFTER_MS = 2000;
/** One second: DESIGN 5.2. */
const HEARTBEAT_MS = 1000;
const SETTLE_MS = 5000;
/** Facts of this node that are older are read again without any sign of a change: what no event told. */
const FULL_MS = 30_000;
/** An endpoint that does not answer is looked for again, first after so long: nothing tells when it does. */
const FIND_AGAIN_MS = 250;
/** Between looks at what listens on published ports. */
const SOCKETS_MS = 3000;
const BACKOFF_MS = [200, 500, 1000, 2000, 5000, 10_000];
const HEALTHY: Health = { downNodes: new Set(), downBackends: new Set() };
/** On a node's first start all may be starting: one that was never heard is not down before. */
const PEERS_START_MS = 5000;
/** A restarted agent first asks who is down, or it would give the dead their flows back for a moment. */
const PEERS_SETTLE_MS = 800;

function usesLegacyIptables(): boolean {
	try {
		return ['ip', 'ip6'].some((f) => readFileSync(`/proc/net/${f}_tables_names`, 'utf8').trim() !== '');
	} catch {
		return false;
	}
}

/** Where cgroup2 is mounted; undefined: nowhere. */
export function cgroupRoot(mounts = readFileSync('/proc/mounts', 'utf8')): string | undefined {
	return mounts
		.split('\n')
		.map((l) => l.split(' '))
		.find((f) => f[2] === 'cgroup2')?.[1];
}

/** Whether IPVS is there, with which Docker answers for VIPs too; it is loaded when Docker first needs it. */
function hasIpvs(): boolean {
	return existsSync('/proc/net/ip_vs');
}

/** TCP ports that the agent itself listens on. */
function ownPorts(config: Config): ReadonlySet<number> {
	const stream = config.membership.source === 'docker' ? [config.membership.port ?? STREAM_PORT] : [];
	return new Set([...config.http.listen.map((h) => h.port), ...stream]);
}

/** `tcp/8080` of every port in the maps. */
function servedPorts(d: Datapath): Set<string> {
	const out = new Set<string>();
	for (const [key, value] of d.store.ports.entries()) {
		if ((value & PORT_FRONTEND_MASK) !== 0 || (value & PortFlag.PORT_EXACT) !== 0) {
			out.add(portName(key >>> 16 === 1 ? 'udp' : 'tcp', key & 0xffff));
		}
	}
	return out;
}

type Writable<T> = { -readonly [K in keyof T]: T[K] };
/** What is known, to the loop. */
type LoopState = Writable<Omit<Known, 'recent'>> & { readonly recent: Writable<Known['recent']> };

/**
 * Opens the datapath, brings it to what the source says and keeps it there.
 * @throws BeelineError, LoaderError: one sentence; nothing that ran before is changed
 */
export async function startAgent(deps: AgentDeps): Promise<Agent> {
	const { log } = deps;
	const runner = createRunner();
	const run = deps.run ?? runner.run;
	let config = deps.config;
	const runDir = deps.runDir ?? RUN_DIR;
	const stateFile = statePath(config.pinRoot, runDir);
	const since = new Date();
	shareHeap();

	// What is wrong with the configuration is said before anything is compiled or loaded.
	let onChange: (m: Membership) => void = () => undefined;
	let onSame = (): void => undefined;
	let onRead = (): void => undefined;
	const source: Source = await openSource(
		{ config, log, runDir, ...(deps.stop ? { stop: deps.stop } : {}) },
		{
			onChange: (m) => onChange(m),
			onSame: () => onSame(),
			onRead: () => onRead(),
			onError: (e) => log.error(`${e.message} (the state before it is kept)`),
		},
	);
	if (source.self !== undefined) config = { ...config, node: { ...config.node, name: source.self } };
	let observed: Membership = source.current();
	let membership: Membership = withEndpointTasks(observed);
	let readAt = new Date();
	try {
		return await start();
	} catch (e) {
		await source.close();
		await runner.close();
		throw e;
	}

	async function start(): Promise<Agent> {
		if (config.uplinks !== undefined) {
			const links = await readLinks(run);
			for (const name of config.uplinks) {
				const link = links.find((l) => l.name === name);
				const why =
					link === undefined ? `${name} does not exist: name an Ethernet device of this node` : whyNot(link, links);
				if (why !== undefined) throw new BeelineError('NO_UPLINK', `uplink refused: ${why}`);
			}
		}
		if (!membership.nodes.some((n) => n.name === config.node.name)) {
			const names = membership.nodes.map((n) => n.name).slice(0, 8);
			throw new BeelineError(
				'NOT_A_MEMBER',
				`this node is ${config.node.name}, and ${source.place} names ${names.join(', ') || 'no node'}: add it there, or set node.name`,
			);
		}

		const address = membership.nodes.find((n) => n.name === config.node.name)?.address;
		if (config.node.address !== undefined && config.node.address !== address)
			throw new BeelineError(
				'NO_ADDRESS',
				`node.address is ${config.node.address}, and ${source.place} says ${config.node.name} is ${address}: make them the same`,
			);

		const secret = config.datapath.secretFile === undefined ? undefined : readSecret(config.datapath.secretFile);

		// Where nothing was pinned before, a start that is refused leaves nothing.
		const untouched = !existsSync(config.pinRoot);
		const d = await openDatapath({
			pinRoot: config.pinRoot,
			runDir,
			...(deps.bpfDir === undefined ? {} : { bpfDir: deps.bpfDir }),
			...(deps.objectDir === undefined ? {} : { objectDir: deps.objectDir }),
			...(deps.cacheDir === undefined ? {} : { cacheDir: deps.cacheDir }),
			maxEntries: {
				revnat: config.datapath.maxFlows,
				conntrack: config.datapath.maxTracked,
				conntrack_half_open: config.datapath.maxHalfOpen,
			},
		});
		const known: LoopState = {
			config,
			mesh: undefined,
			planned: undefined,
			entries: undefined,
			local: undefined,
			readAt,
			ready: false,
			closed: false,
			trace: false,
			recent: { runs: 0, errors: 0, lastAt: null, lastMs: null, lastError: null },
		};
		const fresh = d.newMaps.length > 0;
		let state: AgentState = readState(stateFile);
		const pool = createMaglevPool();
		const nowMs = () => Number(d.store.now() / 1_000_000n);
		const ids = createIds();
		const vipIds = createVipIds();
		let reconciler: Reconciler;
		let vips: VipReconciler;
		try {
			reconciler = createReconciler(d.store, ids, nowMs(), pool);
			vips = createVipReconciler(d.store.vip, vipIds);
		} catch (e) {
			await pool.close();
			d.close();
			throw e;
		}
		const served = servedPorts(d);
		const peers = new Peers({
			graceMs: served.size === 0 ? PEERS_START_MS : 0,
			onChange: ({ down, up, dsr }) => {
				for (const n of down) log.warn(`${n} does not answer probes: its backends get no packets until it does`);
				for (const n of up) log.info(`${n} answers probes again`);
				if (down.length + up.length > 0) mark('another node’s health', false);
				if (dsr) mark('direct return', true);
			},
			onError: (e) => log.error(e.message),
		});
		const oldMark = d.store.settings.get().mark;
		const gatewayBridge = createGateway(run, {
			...(known.config.gatewayBridge.subnet === undefined ? {} : { subnet: known.config.gatewayBridge.subnet }),
			icc: known.config.gatewayBridge.enableIcc,
			masquerade: known.config.gatewayBridge.enableIpMasquerade,
		});
		// Whose sockets they were is gone.
		d.store.nameServices.deleteMany([...d.store.nameServices.entries()].map(([cookie]) => cookie));
		const names = new NameService({
			log,
			docker: {
				set: (cookie, port) => d.store.nameServices.setMany([[cookie, { dialled: '::', port }]]),
				delete: (cookie) => d.store.nameServices.deleteMany([cookie]),
				dialled(cookie) {
					const server = d.store.nameServices.get(cookie)?.dialled;
					return server === '::' ? undefined : server;
				},
			},
		});
		/** Bridges that hold the gateway of tasks, backends here or not. */
		const bridges = [
			GATEWAY_BRIDGE,
			...(known.config.membership.source === 'docker' || known.config.dockerPlugin !== undefined
				? ['docker_gwbridge']
				: []),
		];
		let plugin: Plugin | undefined;
		const overlay = new Overlay({
			run,
			gateway: gatewayBridge,
			state: () => state.overlay,
			save: (next) => saveState({ ...state, overlay: next }),
			reserved: (network) => plugin?.driver.reserved(network) ?? new Set(),
		});
		const underlayMtu = () =>
			known.local === undefined ? undefined : Math.min(...known.local.facts.uplinks.map((u) => u.mtu));
		const networks = createNetworks({
			overlay,
			state: () => state.overlay,
			membership: () => membership,
			self: () => known.config.node.name,
			underlayMtu,
			netnsOfContainer,
			meshVni: () => known.config.datapath.vni,
			place: source.place,
			...(source.addresses === undefined ? {} : { addresses: source.addresses }),
			routes: () => routedPrefixes(run),
			names,
			log,
			whyNoEncryption: () => encryption.whyNot(),
		});
		const encryption = new Encryption({
			run,
			...(secret === undefined ? {} : { secret }),
			vxlanPort: known.config.datapath.vxlanPort,
			keyPort: known.config.datapath.keyPort,
			intervalMs: known.config.datapath.keyInterval,
			state: () => state.encryption,
			save: (next) => saveState({ ...state, encryption: next }),
			attach: (ifindex) => d.attachEsp(ifindex),
			log: (level, text) => log[level](text),
		});
		const sourcePorts = new SourcePorts({
			note: (ports) => d.store.sourcePorts.setMany([...ports].map((port) => [port, 1] as const)),
			asksConntrack: d.asksConntrack,
			ownRange: localPortRange,
			onKnown: () => mark('source ports', true),
			log: (text) => log.info(text),
		});
		const locals = createLocal({
			run,
			netnsCookie: ownNetnsCookie(),
			asksConntrack: d.asksConntrack,
			mark: oldMark !== 0 ? oldMark : randomInt(1, 0xffff_ffff),
			served,
			kernelPorts: state.kernelPorts,
			neighbours: state.neighbours,
			lastMacs: new Map(
				[...d.store.nodes.entries()].flatMap(([, n]) =>
					(n.flags & NodeFlag.NODE_RESOLVED) === 0 ? [] : [[n.vtep, n.dmac] as const],
				),
			),
			dsrProven: () => peers.dsrProven(),
			knowsSources: (uplinks) => sourcePorts.knows(uplinks),
		});

		// ---- state of the loop ----
		/** What `known.local` was read for. */
		let seen: Asked | undefined;
		let vipsNow: VipEntries | undefined;
		let namespaces: Namespaces | undefined;
		const visitor = createVisitor();
		let health = HEALTHY;
		let committed = false;
		let verdictReaders = 0;
		const warnings = new Map<string, string>();
		const attachments = new Attachments({
			datapath: d,
			run,
			log,
			xdp: () => known.config.datapath.xdp,
			names: () => known.local?.names,
			isClosed: () => known.closed,
			warnings,
			onOffloads: (device, features) =>
				saveState({ ...state, offloads: [...state.offloads, ...features.map((feature) => ({ device, feature }))] }),
			onGone: () => mark('an interface that went', true, 100),
			onDone: () => mark('programs of new interfaces', false),
		});
		const listeners = new Set<(e: AgentEvent) => void>();
		const emit = (e: AgentEvent) => {
			for (const l of listeners) l(e);
		};

		const options = (): DatapathOptions => ({
			vni: known.config.datapath.vni,
			vxlanPort: known.config.datapath.vxlanPort,
			staleAfterMs: known.config.datapath.staleAfter,
			returnPath: known.config.datapath.returnPath,
			trace: known.trace || verdictReaders > 0,
		});

		// ---- metrics ----
		let flowsAt = 0;
		let flowsBy = new Map<string, number>();
		/** Slots in transition of the services that have any. */
		const movingBy = (): Map<string, number> => {
			const moving = reconciler.moving();
			return known.entries === undefined || moving.size === 0
				? new Map()
				: views.movingByService(known.entries, moving);
		};
		const metrics = createMetrics({
			version: deps.version,
			abi: MESH_ABI,
			encryption: () => encryption.metrics(),
			held: () => resting.counters(),
			programs: PROGRAMS,
			verdicts: VERDICTS,
			counters: () => (known.closed ? undefined : d.store.counters()),
			sizes: () => (known.closed ? [] : d.store.sizes()),
			runSeconds: () => (known.closed ? undefined : views.runSeconds(d)),
			dns: () => names.counters(),
			snapshot(): MetricsSnapshot | undefined {
				if (known.entries === undefined || known.mesh === undefined || known.closed) return undefined;
				if (Date.now() - flowsAt > 10_000) {
					// Counting goes through every flow: not more often than Prometheus usually asks.
					flowsBy = new Map([...known.mesh.services.keys()].map((s) => [s, 0]));
					const byRef = views.backendsByIndex(known.entries);
					for (const f of d.store.flows(1_000_000).flows) {
						const s = byRef.get(f.ref & REF_INDEX_MASK)?.service;
						if (s !== undefined) flowsBy.set(s, (flowsBy.get(s) ?? 0) + 1);
					}
					flowsAt = Date.now();
				}
				return views.metricsSnapshot(known.entries, known.mesh, known.local, peers.views(), {
					flows: flowsBy,
					moving: movingBy(),
					problems: source.problems().length,
				});
			},
		});

		// ---- the loop ----
		const dirty = new Set<string>();
		/** When what is dirty is to be looked at, performance.now(). */
		let wantedAt = Number.POSITIVE_INFINITY;
		let dirtySince: number | undefined;
		let needsLocal = true;
		let running: Promise<void> | undefined;
		let timer: NodeJS.Timeout | undefined;
		let timerAt = Number.POSITIVE_INFINITY;
		let failures = 0;
		const waiters: { resolve: () => void; reject: (e: Error) => void; run: number; kernel: boolean; look?: number }[] =
			[];
		let runNumber = 0;

		/** The first run waits for what it is to know; causes that come before are in it. */
		let begun = false;
		function schedule(inMs: number): void {
			if (known.closed || !begun) return;
			const at = performance.now() + inMs;
			if (timer !== undefined && timerAt <= at) return;
			clearTimeout(timer);
			timerAt = at;
			timer = setTimeout(() => {
				timer = undefined;
				timerAt = Number.POSITIVE_INFINITY;
				void loop();
			}, inMs);
		}
		function mark(cause: string, kernel: boolean, inMs = 0): void {
			dirty.add(cause);
			wantedAt = Math.min(wantedAt, performance.now() + inMs);
			dirtySince ??= performance.now();
			if (kernel) needsLocal = true;
			schedule(inMs);
		}
		/** Resolves when a run that begins after now has ended; rejects with what it could not do. */
		function applied(cause: string, kernel: boolean): Promise<void> {
			const p = new Promise<void>((resolve, reject) => {
				// The one that runs has taken its number.
				waiters.push({ resolve, reject, run: runNumber + 1, kernel });
			});
			mark(cause, kernel);
			return p;
		}

		async function loop(): Promise<void> {
			if (running !== undefined || known.closed) return;
			running = once().finally(() => {
				running = undefined;
				// What was marked during the run may have found its timer ended: the run's own next look must not hide it.
				if (dirty.size > 0) schedule(Math.max(0, wantedAt - performance.now()));
			});
			await running;
		}

		function saveState(next: AgentState): void {
			if (JSON.stringify(next) === JSON.stringify(state)) return;
			state = next;
			writeState(stateFile, state);
		}

		/** What must outlive this agent is in the state file before it is in force. */
		function keepFacts(l: Local): void {
			saveState({
				...state,
				neighbours: l.neighbours,
				kernelPorts: [...l.facts.kernelPorts].map((k) => portName(k >>> 16 === 1 ? 'udp' : 'tcp', k & 0xffff)),
				reservedPorts: [...new Set([...state.reservedPorts, ...l.publishedPorts])],
			});
			try {
				const reserved = reservePorts(new Set(state.reservedPorts), l.publishedPorts);
				saveState({ ...state, reservedPorts: [...reserved] });
				warnings.delete('reserve');
			} catch (e) {
				// In a container /proc/sys is read-only. The datapath asks for the socket where a port is in the range.
				warnings.set(
					'reserve',
					`published ports cannot be kept from being source ports (${sentence(e)}): set net.ipv4.ip_local_reserved_ports on the node`,
				);
			}
		}

		function updatePeers(nodes: Iterable<{ name: string; address: string }>, digest: bigint): void {
			const vtep = membership.nodes.find((n) => n.name === known.config.node.name)?.address;
			if (vtep === undefined) return;
			const { vni, vxlanPort, returnPath } = known.config.datapath;
			const wantsDsr = returnPath === 'auto' && membership.services.some((s) => s.options.returnPath === 'auto');
			peers.update({ self: known.config.node.name, vtep, vni, vxlanPort, nodes, digest, wantsDsr });
		}

		const newcomers = createNewcomers({
			before: served.size === 0 ? undefined : new Set([...d.store.backends.entries()].map(([, row]) => row.mac)),
			nowMs,
			views: () => peers.views(),
		});

		/** VNIs of networks that Docker names by their ids; nobody dials a VIP of the ingress network. */
		function vnisOf(networkIds: readonly string[]): number[] {
			return membership.networks.flatMap((n) =>
				n.id !== undefined && !n.ingress && networkIds.includes(n.id) ? [n.vni] : [],
			);
		}
		function attachedNamespaces(): ReadonlyMap<bigint, readonly number[]> | undefined {
			const own = networks.namespaces();
			if (namespaces === undefined) return own;
			const found = namespaces.current();
			return found && mergeAttached(own, new Map([...found].map(([cookie, ids]) => [cookie, vnisOf(ids)])));
		}
		/** VIPs wait for nothing else: no fact of this node but its namespaces is in them. */
		function applyVips(m: Mesh): { readonly changes: number; readonly errors: readonly string[] } {
			try {
				const facts = { namespaces: attachedNamespaces(), kernel: hasIpvs() };
				vipsNow = vipEntries(m.vips, facts, vipIds, nowMs(), vipsNow);
				const r = vips.reconcile(vipsNow, nowMs());
				if (r.gone.length > 0) void closeSockets(r.gone);
				return { changes: r.rowsWritten + r.rowsDeleted, errors: r.errors.map((x) => `${x.part}: ${x.message}`) };
			} catch (e) {
				return { changes: 0, errors: [sentence(e)] };
			}
		}
		async function closeSockets(gone: readonly GoneBackend[]): Promise<void> {
			for (const vni of new Set(gone.map((g) => g.network))) {
				if (known.closed) return;
				const id = membership.networks.find((n) => n.vni === vni)?.id;
				const addresses = gone.filter((g) => g.network === vni).map((g) => g.address);
				const done: Closed[] = [];
				if (id !== undefined && namespaces !== undefined) done.push(await namespaces.closeSockets(id, addresses));
				for (const path of networks.paths(vni)) {
					try {
						done.push((await visitor.call(path, { close: addresses })) as Closed);
					} catch (e) {
						log.debug(`namespace ${path}: ${sentence(e)}`);
					}
				}
				const sum = (of: (c: Closed) => number) => done.reduce((n, c) => n + of(c), 0);
				const found = sum((c) => c.found);
				if (found > 0) log.debug({ addresses, found }, 'connected UDP sockets of tasks that ended are closed');
				if (sum((c) => c.left) > 0)
					warnings.set(
						'close sockets',
						'connected UDP sockets of tasks that ended stay as they are: this kernel closes none (CONFIG_INET_DIAG_DESTROY), or ss is missing (iproute2)',
					);
			}
		}

		/** The interface that encrypts is in the map while it is there, and its program on it. */
		async function encrypt(looks: boolean): Promise<void> {
			const ifindex = await encryption.update({
				self: known.config.node.name,
				nodes: membership.nodes,
				networks: membership.networks,
				attached: new Set(networks.facts().map((f) => f.vni)),
				looks,
			});
			if (d.store.encryption.get().ifindex !== ifindex) d.store.encryption.set({ ifindex });
		}

		let socketTried = false;
		function commit(): void {
			d.commit();
			committed = true;
			attachments.adopt();
		}

		const reader = new FactReader(
			(m) =>
				locals.collect({
					mesh: m,
					address: known.config.node.address,
					uplinks: known.config.uplinks,
					vxlanPort: known.config.datapath.vxlanPort,
					httpPorts: ownPorts(known.config),
					...(known.config.datapath.secretFile === undefined ? {} : { keyPort: known.config.datapath.keyPort }),
					acceptFirewallBypass: known.config.datapath.acceptFirewallBypass,
					gateways: bridges,
				}),
			(again) => mark('facts of this node', again),
		);
		let takenAt = performance.now();
		/** Of the last look at everything that is attached. */
		let attachedAt = Number.NEGATIVE_INFINITY;
		let uplinksSeen: Local['facts']['uplinks'] | undefined;
		/** The kernel told of an uplink. */
		let uplinkNews = false;
		let findAgain: NodeJS.Timeout | undefined;
		let findAgainMs = 0;
		/** What the reader has found. @throws what it could not do */
		async function takeFacts(): Promise<Local | undefined> {
			const found = reader.take();
			if (found === undefined) return undefined;
			takenAt = performance.now();
			clearTimeout(findAgain);
			const lost = [...found.local.problems.keys()];
			if (lost.some((a) => known.local?.problems.has(a) !== true)) findAgainMs = 0;
			if (lost.length > 0) {
				findAgainMs = Math.min(FULL_MS, Math.max(FIND_AGAIN_MS, findAgainMs * 2));
				findAgain = setTimeout(() => mark('an endpoint that was not found', true), findAgainMs);
			}
			seen = found.asked;
			known.local = found.local;
			for (const e of await networks.reap(known.local.names, found.at))
				log.info(`endpoint ${e.id}: its namespace is gone, and it with it`);
			keepFacts(found.local);
			return found.local;
		}

		async function once(): Promise<void> {
			const number = ++runNumber;
			const readAtNow = readAt;
			const cause = [...dirty].join(', ') || 'a full look';
			const began = performance.now();
			const since = dirtySince ?? began;
			const rereads = needsLocal || dirty.size === 0 || began - takenAt >= FULL_MS;
			/** What is attached is looked at too. */
			const whole = !known.ready || began - attachedAt >= FULL_MS;
			dirty.clear();
			wantedAt = Number.POSITIVE_INFINITY;
			dirtySince = undefined;
			needsLocal = false;
			const errors: string[] = [];
			let changes = 0;
			let wakeAt: number | undefined;
			/** The look that knows everything that this run was asked for; 0: facts were new enough. */
			let covering = 0;
			/** Of those that membership or configuration asked for: what the kernel told at the same time is another matter. */
			let coveringNews = 0;
			let held = NOTHING_HELD;
			try {
				let took: Local | undefined;
				try {
					took = await takeFacts();
				} catch (e) {
					errors.push(sentence(e));
				}
				health = { ...health, downNodes: peers.downNodes };
				networks.updateNames();
				const nextPlanned = observed;
				const full = networks.complete(membership);
				const planWith = (m: Membership, downNodes: ReadonlySet<string>) =>
					plan({
						membership: m,
						self: known.config.node.name,
						health: { ...health, downNodes },
						nowMs: nowMs(),
						...(known.mesh === undefined ? {} : { previous: known.mesh }),
					});
				let nextMesh = planWith(full, health.downNodes);
				const done = applyVips(nextMesh);
				changes += done.changes;
				errors.push(...done.errors);

				const wants = asked(nextMesh);
				// Without facts, and where the membership says that this node is gone or another, nothing can be done before them.
				if (
					known.local === undefined ||
					nextMesh.nodes.get(known.config.node.name)?.address !== known.local.facts.vtep
				) {
					await reader.read(nextMesh, wants);
					took = await takeFacts();
				} else {
					const news = newIn(wants, seen as Asked);
					if (rereads || news !== undefined) covering = reader.order(nextMesh, wants);
					if (news !== undefined) coveringNews = covering;
					held = news ?? NOTHING_HELD;
				}
				const l = known.local as Local;
				const downNodes = held.nodes.size === 0 ? health.downNodes : new Set([...health.downNodes, ...held.nodes]);
				const part = knownPart(full, held, known.mesh);
				if (held.nodes.size > 0 || part !== full) nextMesh = planWith(part, downNodes);

				known.mesh = nextMesh;
				if (part === full) known.planned = nextPlanned;
				updatePeers(known.mesh.nodes.values(), known.mesh.digest);
				const facts = { ...l.facts, overlay: networks.facts() };
				// Maps that an earlier agent filled serve with the new programs as they are; new ones must be filled first.
				if (!committed && !fresh) commit();
				// Replies need their program before requests arrive.
				const wantedEndpoints = new Set([...l.facts.endpoints.values()].map((x) => x.ifindex));
				if (committed && (took !== undefined || whole))
					attachments.attachEndpoints(wantedEndpoints, { known: whole, beside: known.ready });
				let e = entries(known.mesh, facts, options(), ids, nowMs(), known.entries);
				const unheard = newcomers(known.mesh);
				if (unheard.length > 0) mark('new backends', false, 100);
				const down = new Set([
					...undeliverable(e).keys(),
					...unheard,
					...held.backends,
					...attachments.unattached(known.mesh, l),
				]);
				if (down.size !== health.downBackends.size || [...down].some((k) => !health.downBackends.has(k))) {
					health = { ...health, downBackends: down };
					known.mesh = planWith(part, downNodes);
					e = entries(known.mesh, facts, options(), ids, nowMs(), e);
				}
				if (committed) errors.push(...networks.attachPrograms(d).values());
				const result = await reconciler.reconcile(e, nowMs());
				known.entries = e;
				resting.update(e);
				if (!holds(held) && !attachments.busy) known.readAt = readAtNow;
				changes += result.rowsWritten + result.rowsDeleted + result.slotsChanged;
				wakeAt = result.wakeAtMs;
				for (const x of result.errors) errors.push(`${x.part}: ${x.message}`);
				if (!committed && errors.length === 0) {
					commit();
					attachments.attachEndpoints(wantedEndpoints, { known: true, beside: false });
					errors.push(...networks.attachPrograms(d).values());
				}
				if (committed) {
					networks.detachPrograms(d);
					await encrypt(took !== undefined);
				}
				if (committed && !socketTried) {
					socketTried = true;
					const root = cgroupRoot();
					try {
						if (root === undefined) throw new Error('no cgroup2 is mounted');
						d.attachSocket(root);
					} catch (x) {
						warnings.set(
							'socket',
							`processes of this node cannot dial published ports on it, nor its tasks VIPs: ${sentence(x)}`,
						);
					}
				}
				// What is attached stays so unless the kernel said something: each look at a link is a system call or five.
				if (committed && (took !== undefined || whole)) {
					if (whole || uplinkNews || attachments.uplinkFailed || l.facts.uplinks !== uplinksSeen) {
						uplinkNews = false;
						uplinksSeen = l.facts.uplinks;
						await attachments.attachUplinks(l);
					}
					// The rows say so by now, and the programs do so where they are attached.
					const watched =
						l.facts.sources === undefined || result.errors.length > 0 ? [] : [...attachments.uplinks.keys()];
					sourcePorts.watch(
						watched,
						l.facts.uplinks.flatMap((u) => u.addresses),
					);
					attachments.attachGateways(l, { known: whole, beside: known.ready });
					if (whole) attachedAt = began;
					// Also what no plan knows any more, after a restart, may have flows: its row says so.
					const inUse = new Set([...d.store.localBackends.entries()].map(([, row]) => row.ifindex));
					attachments.detachEndpoints((ifindex) => wantedEndpoints.has(ifindex) || inUse.has(ifindex), l.names);
				}
				errors.push(...attachments.errors());
			} catch (e) {
				errors.push(sentence(e));
				log.debug({ err: e }, 'reconcile failed');
				if (!known.ready) firstFailure = e instanceof Error ? e : new Error(sentence(e));
			}
			const ms = performance.now() - began;
			known.recent.runs++;
			known.recent.lastAt = new Date().toISOString();
			known.recent.lastMs = Math.round(ms * 100) / 100;
			known.recent.lastError = errors[0] ?? null;
			metrics.reconciled(ms / 1000);
			if (errors.length > 0) {
				known.recent.errors++;
				metrics.reconcileFailed();
				if (errors.join() !== lastLogged) for (const e of errors.slice(0, 10)) log.error(e);
				lastLogged = errors.join();
			} else {
				lastLogged = '';
				if (!holds(held) && !attachments.busy) metrics.converged((performance.now() - since) / 1000);
				else dirtySince = Math.min(dirtySince ?? since, since);
				if (!known.ready && known.local !== undefined && committed) {
					known.ready = true;
					log.info(
						{ ms: known.recent.lastMs, services: membership.services.length, nodes: membership.nodes.length },
						'ready',
					);
					setTimeout(rehearse, REHEARSE_AFTER_MS).unref();
				}
			}
			if (changes > LARGE_RUN_ROWS || number === 1) setTimeout(collectGarbage, COLLECT_AFTER_MS).unref();
			if (changes > 0) log.debug({ cause, ms: known.recent.lastMs, changes }, 'reconciled');
			if (changes > 0 || errors.length > 0) {
				emit({
					type: 'reconcile',
					at: known.recent.lastAt,
					cause,
					ms: known.recent.lastMs,
					changes,
					error: known.recent.lastError,
				});
			}
			for (const w of waiters.splice(0)) {
				if (w.run <= number) w.look ??= w.kernel ? covering : coveringNews;
				if (w.run > number || (w.look ?? 0) > reader.taken || attachments.busy) waiters.push(w);
				else if (errors.length > 0)
					w.reject(new AgentError(503, 'NOT_APPLIED', `written, but not in force yet: ${errors[0]}`));
				else w.resolve();
			}
			if (errors.length > 0) {
				needsLocal = true;
				schedule(BACKOFF_MS[Math.min(failures++, BACKOFF_MS.length - 1)]!);
			} else {
				failures = 0;
				const wakes = [known.mesh?.wakeAtMs, wakeAt].filter((x): x is number => x !== undefined);
				const next = wakes.length === 0 ? FULL_MS : Math.min(FULL_MS, Math.max(10, Math.min(...wakes) - nowMs()));
				schedule(next);
			}
		}
		let lastLogged = '';
		let firstFailure: Error | undefined;

		/** A change that is none: the first of a service would find its code cold, which is 20 ms with 100 000 backends. */
		function rehearse(): void {
			const [one, ...others] = observed.services;
			if (known.closed || one === undefined) return;
			membership = withEndpointTasks({ ...observed, services: [{ ...one }, ...others] });
			mark('a rehearsal', false);
		}
		onChange = (next) => {
			observed = next;
			membership = withEndpointTasks(next);
			readAt = new Date();
			// A swarm changes by itself; who changes a file wants to be told that it was read.
			log[source.name === 'file' ? 'info' : 'debug'](
				`${source.place} is read: ${next.services.length} services, ${next.nodes.length} nodes`,
			);
			mark(`${source.name} changed`, false);
		};
		onRead = () => {
			readAt = new Date();
			if (dirty.size === 0 && running === undefined) known.readAt = readAt;
		};
		onSame = () => {
			readAt = new Date();
			mark(`${source.name} read again`, false);
		};

		// ---- services that rest ----
		const resting = createResting({
			listen: (each) => d.store.held.listen(each),
			inject: (ifindex, frame) => d.inject(ifindex, frame),
			packets: (frontend) => d.store.frontendPackets(frontend),
			bootTimeNs: () => d.store.now(),
			demand: (demand) => source.demand?.(demand),
			log: (text) => log.debug(text),
		});

		// ---- verdicts ----
		let stopVerdicts: (() => void) | undefined;
		function verdictsWanted(change: number): void {
			verdictReaders += change;
			if (verdictReaders > 0 && stopVerdicts === undefined) {
				stopVerdicts = d.store.events.listen((e: Event) => {
					if (known.entries !== undefined)
						emit(views.verdictEvent(e, known.entries, known.local?.names, d.store.now()));
				});
			} else if (verdictReaders === 0) {
				stopVerdicts?.();
				stopVerdicts = undefined;
			}
			mark('trace', false);
		}

		// ---- interface ----
		const api = createApi({
			version: deps.version,
			since,
			log,
			store: d.store,
			source,
			networks,
			peers,
			encryption,
			known,
			attached: attachments.uplinks,
			moving: movingBy,
			isLeaving,
			warnings: () => [...warnings.values()],
			namespacesProblem: () => namespaces?.problem(),
			attachErrors: () => attachments.errors(),
			applied,
			configure(next) {
				known.config = next.config ?? known.config;
				known.trace = next.trace ?? known.trace;
			},
			subscribe(want, listener) {
				listeners.add(listener);
				if (want.verdicts) verdictsWanted(1);
				let open = true;
				return () => {
					if (!open) return;
					open = false;
					listeners.delete(listener);
					if (want.verdicts && !known.closed) verdictsWanted(-1);
				};
			},
		});

		// ---- clocks and watchers ----
		const beat = () => {
			if (!committed || known.closed) return;
			try {
				d.store.settings.set({ ...d.store.settings.get(), heartbeat_ns: d.store.now() });
			} catch (e) {
				log.error(`heartbeat: ${sentence(e)}`);
			}
		};
		const heartbeat = setInterval(beat, HEARTBEAT_MS);
		const settle = setInterval(() => {
			if (!committed || known.closed || running !== undefined) return;
			try {
				reconciler.settle();
			} catch (e) {
				log.error(`settle: ${sentence(e)}`);
			}
		}, SETTLE_MS);
		const monitor = watchKernel(
			(kind, line) => {
				if (kind === 'kernel') {
					if (/restarted/.test(line) || [...attachments.uplinks.values()].some((a) => line.includes(a.name)))
						uplinkNews = true;
					return mark('the kernel', true, 30);
				}
				const m = /^(?:Deleted )?(\S+) dev (\S+)(?: lladdr (\S+))?/.exec(line);
				if (m !== null && locals.concerns(`${m[2]} ${m[1]}`, m[3])) mark('a neighbour', true, 10);
			},
			(why) => log.warn(`${why}; started again`),
		);

		if (source.name === 'docker') {
			namespaces = watchNamespaces(
				{ engine: createEngine(parseDockerHost(process.env)), visit: visitor, log: (level, text) => log[level](text) },
				{
					onAttached({ cookie, networks: ids }) {
						try {
							const vnis = new Map([[cookie, vnisOf(ids)]]);
							vips.attach(cookie, mergeAttached(networks.namespaces(), vnis).get(cookie) ?? []);
						} catch (e) {
							log.warn(`namespace ${cookie}: ${sentence(e)}`);
						}
					},
					onChange: () => mark('namespaces', false),
				},
			);
		}

		let closing: Promise<void> | undefined;
		/** An engine that starts drops what beeline_gw forwards. */
		const admitLegs = () => {
			if (state.overlay.legs.length > 0) void gatewayBridge.admit();
		};
		const rules = watchRules(() => {
			locals.rereadFirewall();
			admitLegs();
			mark('the firewall', true);
		});
		// What listens on a published port by now, and rules that no monitor hears of: told within seconds.
		let heard: string | undefined;
		const sockets = setInterval(() => {
			const ports = known.local?.allPublishedPorts;
			if (ports === undefined || ports.size === 0) return;
			void listening(run, ports).then(
				(what) => {
					if (known.closed || heard === what) return;
					heard = what;
					mark('a socket', true);
				},
				() => undefined,
			);
		}, SOCKETS_MS);
		const legacy = setInterval(() => {
			if (!rules.running || usesLegacyIptables()) {
				locals.rereadFirewall();
				admitLegs();
				mark('the firewall', true);
			}
		}, FULL_MS);

		function stop(): void {
			clearInterval(sockets);
			clearInterval(legacy);
			rules.close();
			clearTimeout(timer);
			clearTimeout(findAgain);
			clearInterval(heartbeat);
			clearInterval(settle);
			closing ??= source.close();
			void Promise.resolve(namespaces?.close()).then(() => visitor.close());
			peers.stop();
			plugin?.close();
			monitor.close();
			stopVerdicts?.();
			resting.close();
		}
		async function rest(): Promise<void> {
			stop();
			known.closed = true;
			await running;
			await reader.idle();
			await attachments.idle();
			clearTimeout(timer);
			clearTimeout(findAgain);
			await names.close();
			for (const w of waiters.splice(0)) w.reject(new AgentError(503, 'CLOSING', 'the agent is ending'));
			await encryption.close();
			await pool.close();
			// It writes what it remembers.
			await closing;
		}
		function isLeaving(): boolean {
			const self = membership.nodes.find((n) => n.name === known.config.node.name);
			if (self === undefined) return true;
			if (!self.drained) return false;
			// Clients still dial a drained node. Where nobody else answers them the tables serve on.
			const { publishedPorts, facts } = known.local ?? { publishedPorts: new Set<number>(), facts: undefined };
			const kernel = new Set([...(facts?.kernelPorts ?? [])].map((k) => k & 0xffff));
			const alone = [...publishedPorts].filter((p) => !kernel.has(p));
			if (alone.length > 0)
				log.warn(
					`this node is drained, but the kernel's own mesh does not answer ${alone.slice(0, 8).join(', ')}: the datapath stays (beeline detach removes it)`,
				);
			return alone.length === 0;
		}
		const agent: Agent = {
			api,
			metrics,
			get plugin() {
				return plugin?.driver;
			},
			get leaving() {
				return isLeaving();
			},
			reload(cause) {
				locals.rereadFirewall();
				source.reload();
				mark(cause, true);
			},
			ready: Promise.resolve(),
			async close() {
				await rest();
				d.close();
				await runner.close();
			},
			async detach(waitMs) {
				await running;
				stop();
				if (waitMs > 0 && committed) {
					const { frontends } = reconciler.leave();
					if (frontends > 0) {
						log.info({ frontends, waitMs }, 'new flows go to the kernel; the open ones stay until the wait is over');
						const end = performance.now() + waitMs;
						while (performance.now() < end) {
							beat();
							await new Promise((r) => setTimeout(r, Math.min(HEARTBEAT_MS, end - performance.now())));
						}
					}
				}
				await rest();
				const { left } = d.takeDown();
				await undo(stateFile, run);
				await runner.close();
				return left;
			},
		};

		if (known.config.dockerPlugin !== undefined) {
			try {
				plugin = createPlugin({
					overlay,
					stateFile: known.config.dockerPlugin.stateFile,
					membership: () => membership,
					self: () => known.config.node.name,
					place: source.place,
					...(source.addresses === undefined ? {} : { addresses: source.addresses }),
					names: {
						prepare() {
							networks.prepare();
							// The visitor's thread as well.
							visitor.call('/proc/self/ns/net', { look: true }).catch(() => undefined);
						},
						serve: networks.serve,
						forget: networks.forget,
					},
					cookieOf: async (netns) => ((await visitor.call(netns, { look: true })) as Look).cookie.toString(),
					entered(cookie) {
						// Before its first dial, which waits for no loop.
						vips.attach(cookie, attachedNamespaces()?.get(cookie) ?? []);
					},
					named: () => mark('the name of a container', false),
					underlayMtu,
					whyNoEncryption: () => encryption.whyNot(),
					applied: (cause) => applied(cause, true),
					run,
					log,
				});
			} catch (e) {
				await rest();
				d.close();
				throw e;
			}
		}

		updatePeers(membership.nodes, 0n);
		peers.start();
		if (served.size > 0) {
			const end = performance.now() + PEERS_SETTLE_MS;
			while (!peers.settled && performance.now() < end) await new Promise((r) => setTimeout(r, 20));
		}

		// The first run decides: a node that cannot start says so and leaves things as they were.
		begun = true;
		await loop();
		if (!known.ready && !committed) {
			await rest();
			if (untouched) {
				d.takeDown();
				await undo(stateFile, run);
			} else d.close();
			throw firstFailure ?? new BeelineError('NOT_APPLIED', known.recent.lastError ?? 'the first apply failed');
		}
		if (!known.ready && fresh && attachments.uplinks.size === 0) {
			await rest();
			d.takeDown();
			await undo(stateFile, run);
			throw new BeelineError('ATTACH_FAILED', known.recent.lastError ?? 'no uplink could be attached');
		}
		beat();
		await networks.begin();
		return agent;
	}
}

/** Gives back what the state file names, and removes it. */
export async function undo(stateFile: string, run: Run = runCommand): Promise<void> {
	const state = readState(stateFile);
	try {
		reservePorts(new Set(state.reservedPorts), new Set());
	} catch {
		// The sysctl is gone with its namespace.
	}
	for (const n of state.neighbours) await run('ip', ['neigh', 'del', n.address, 'dev', n.device]).catch(() => '');
	for (const o of state.offloads) await turnOnOffload(run, o.device, o.feature);
	await removeOverlay(run, state.overlay);
	if (state.encryption.up) await removeEncryption(run);
	removeState(stateFile);
}
