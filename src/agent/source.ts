/** What the agent needs of a membership source. Each source of src/mesh/sources is fitted to it here. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { BeelineError, type BeelineError as SourceError } from '../errors.js';
import type { ServiceCreateBody, ServicePatchBody } from '../http/schemas.js';
import { type Memory, openDockerSource } from '../mesh/sources/docker.js';
import type { Demand } from '../mesh/sources/docker-scale.js';
import { createEngine, parseDockerHost } from '../mesh/sources/engine.js';
import { type EtcdMemory, type EtcdSourceOptions, openEtcdSource } from '../mesh/sources/etcd.js';
import type { KeyValue } from '../mesh/sources/etcd-client.js';
import type { Addresses } from '../mesh/sources/etcd-store.js';
import * as file from '../mesh/sources/file.js';
import type { Membership } from '../mesh/types.js';
import { keptPath, statePath } from './state.js';
import { openStream, STREAM_PORT } from './stream.js';
import { isMembership } from './stream-lines.js';

export interface Source {
	readonly name: string;
	/** Where an operator changes it. */
	readonly place: string;
	/** Name of this node, where the source knows it better than the configuration. */
	readonly self?: string;
	/** The last membership that was accepted. */
	current(): Membership;
	/** Why the last reading was refused. */
	error(): SourceError | undefined;
	/** What has no effect, is left out or cannot be reached, for the operator. */
	problems(): readonly string[];
	/** Reads now; a change is told before this returns. */
	reload(): void;
	close(): Promise<void>;
	/**
	 * Each writes the change where the source keeps it, and reads it again. `basis`: what revisionOf() said of the document
	 * that the change was decided from; STALE where it changed since.
	 * @throws BeelineError
	 */
	drainBackend(id: string, drained: boolean, basis?: number): void | Promise<void>;
	drainNode(name: string, drained: boolean, basis?: number): void | Promise<void>;
	patchService(name: string, patch: ServicePatchBody, basis?: number): void | Promise<void>;
	createService(service: ServiceCreateBody): void | Promise<void>;
	removeService(name: string, basis?: number): void | Promise<void>;
	addNode(node: { readonly name: string; readonly address: string }): void | Promise<void>;
	removeNode(name: string, basis?: number): void | Promise<void>;
	/** An item of `networks:` in mesh.yaml, whole. */
	createNetwork(network: Readonly<Record<string, unknown>> & { readonly name: string }): void | Promise<void>;
	removeNetwork(name: string): void | Promise<void>;
	/** Of a document as it was in that membership; undefined: the source has no revisions. */
	revisionOf?(membership: Membership, kind: 'nodes' | 'services', name: string): number | undefined;
	/** Where tasks can be asked for: what this node's clients want of services that may rest. */
	demand?(demand: Demand): void;
	/** Where addresses of networks are given out by the source, without duplicates on all nodes. */
	readonly addresses?: Addresses;
}

export interface SourceEvents extends file.FileSourceEvents {
	/** A reading said what the one before it said; nothing need be done. */
	readonly onRead?: () => void;
}

export interface SourceDeps {
	readonly config: Config;
	readonly log: Logger;
	/** Where state lies that does not outlive a boot. */
	readonly runDir: string;
	/** Ends the waiting for a swarm. */
	readonly stop?: AbortSignal;
}

/**
 * Resolves when there is a membership. A file must be right at once; a swarm is waited for.
 * @throws BeelineError where the first reading is refused, or the waiting was ended
 */
export async function openSource(deps: SourceDeps, events: SourceEvents): Promise<Source> {
	const { config } = deps;
	const { source } = config.membership;
	if (source === 'file') return openFile(config.membership.file, config.datapath.vni, events);
	if (source === 'docker') return await openDocker(deps, events);
	return await openEtcd(deps, events);
}

/** @throws BeelineError INVALID_CONFIG where the source is not etcd */
export function etcdOptions(config: Config): EtcdSourceOptions {
	const { source, endpoints, prefix, ca, cert, key, user, passwordFile } = config.membership;
	if (source !== 'etcd' || endpoints === undefined || prefix === undefined)
		throw new BeelineError('INVALID_CONFIG', `membership.source is ${source}: expected etcd`, {
			field: 'membership.source',
		});
	return {
		endpoints,
		prefix,
		...(ca === undefined ? {} : { ca }),
		...(cert === undefined ? {} : { cert }),
		...(key === undefined ? {} : { key }),
		...(user === undefined ? {} : { user }),
		...(passwordFile === undefined ? {} : { passwordFile }),
	};
}

const isKeyValue = (x: unknown): x is KeyValue => {
	const kv = x as KeyValue | null;
	return (
		typeof kv === 'object' &&
		kv !== null &&
		typeof kv.key === 'string' &&
		typeof kv.value === 'string' &&
		Number.isSafeInteger(kv.create) &&
		Number.isSafeInteger(kv.mod)
	);
};

async function openEtcd(deps: SourceDeps, events: SourceEvents): Promise<Source> {
	const { config } = deps;
	const options = etcdOptions(config);
	const kept = keptAt<{ prefix: string; documents: readonly KeyValue[] }>(
		keptPath(statePath(config.pinRoot, deps.runDir), 'etcd'),
	);
	const memory: EtcdMemory = {
		read() {
			const was = kept.read() as { prefix?: unknown; documents?: unknown } | undefined;
			return was?.prefix === options.prefix && Array.isArray(was.documents) && was.documents.every(isKeyValue)
				? was.documents
				: undefined;
		},
		write: (documents) => kept.write({ prefix: options.prefix, documents }),
	};
	const source = await openEtcdSource(
		{ options, memory, meshVni: config.datapath.vni, log: (level, text) => deps.log[level](text) },
		{
			onChange: (m, at) => events.onChange(m, at),
			onSame: () => events.onRead?.(),
			onError: (e) => events.onError(e),
		},
		deps.stop,
	);
	const { store } = source;
	const written = async (revision: Promise<number>) => source.reach(await revision);
	return {
		name: 'etcd',
		place: source.place,
		current: () => source.current(),
		error: () => source.error(),
		problems: () => source.problems(),
		reload: () => source.reload(),
		async close() {
			await source.close();
			kept.flush();
		},
		revisionOf: (membership, kind, name) => source.revisionOf(membership, kind, name),
		addresses: store,
		drainBackend: (id, drained, basis) => written(store.drainBackend(id, drained, basis)),
		drainNode: (name, drained, basis) => written(store.drainNode(name, drained, basis)),
		patchService: (name, patch, basis) => written(store.changeService(name, patch, basis)),
		createService: (service) => written(store.createService(service.name, service)),
		removeService: (name, basis) => written(store.removeService(name, basis)),
		addNode: (node) => written(store.addNode(node)),
		removeNode: (name, basis) => written(store.removeNode(name, basis)),
		createNetwork: (network) => written(store.createNetwork(network.name, network)),
		removeNetwork: (name) => written(store.removeNetwork(name)),
	};
}

function openFile(path: string, meshVni: number, events: SourceEvents): Source {
	const source = file.openFileSource(path, { ...events, meshVni });
	return {
		name: 'file',
		place: path,
		current: () => source.current(),
		error: () => source.error(),
		problems: () => [],
		reload: () => source.reload(),
		close: async () => source.close(),
		drainBackend: (id, drained) => void file.setBackendDrained(path, id, drained),
		drainNode: (name, drained) => void file.setNodeDrained(path, name, drained),
		patchService: (name, patch) => void file.changeService(path, name, patch),
		createService: (service) => void file.createService(path, service),
		removeService: (name) => void file.removeService(path, name),
		addNode: (node) => void file.addNode(path, node),
		removeNode: (name) => void file.removeNode(path, name),
		createNetwork: (network) => void file.createNetwork(path, network),
		removeNetwork: (name) => void file.removeNetwork(path, name),
	};
}

/** What was known last, beside the agent's other state; it is written no more often than once a second. */
function keptAt<T>(path: string): { read(): unknown; write(value: T): void; flush(): void } {
	let next: T | undefined;
	let timer: NodeJS.Timeout | undefined;
	const flush = () => {
		clearTimeout(timer);
		timer = undefined;
		if (next === undefined) return;
		try {
			mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
			writeFileSync(`${path}.${process.pid}`, JSON.stringify(next), { mode: 0o600 });
			renameSync(`${path}.${process.pid}`, path);
		} catch {
			// It only spares a start the waiting.
		}
		next = undefined;
	};
	return {
		flush,
		read() {
			try {
				return JSON.parse(readFileSync(path, 'utf8')) as unknown;
			} catch {
				return undefined;
			}
		},
		write(value) {
			next = value;
			timer ??= setTimeout(flush, 1000).unref();
		},
	};
}

/** The last membership of a swarm. */
function memoryAt(path: string): Memory & { flush(): void } {
	const kept = keptAt<{ nodeId: string; membership: Membership }>(path);
	return {
		flush: kept.flush,
		read() {
			const was = kept.read() as { nodeId?: unknown; membership?: unknown } | undefined;
			return typeof was?.nodeId === 'string' && isMembership(was.membership)
				? { nodeId: was.nodeId, membership: was.membership }
				: undefined;
		},
		write: (nodeId, membership) => kept.write({ nodeId, membership }),
	};
}

async function openDocker(deps: SourceDeps, events: SourceEvents): Promise<Source> {
	const { config } = deps;
	const log = (level: 'info' | 'warn' | 'error', text: string) => deps.log[level](text);
	const engine = createEngine(parseDockerHost(process.env));
	const memory = memoryAt(keptPath(statePath(config.pinRoot, deps.runDir), 'membership'));
	const source = await openDockerSource(
		{
			engine,
			memory,
			meshVni: config.datapath.vni,
			log,
			openFeed: (on) =>
				openStream(
					{
						log,
						port: config.membership.port ?? STREAM_PORT,
						...(config.membership.tokenFile === undefined ? {} : { tokenFile: config.membership.tokenFile }),
						...(config.membership.certificates === undefined ? {} : { certificates: config.membership.certificates }),
					},
					on,
				),
		},
		{
			onChange: (m) => events.onChange(m, Date.now()),
			onSame: () => events.onRead?.(),
			onError: (e) => events.onError(e),
		},
		deps.stop,
	);
	const refuse = (instead: string) => (): never => {
		throw new BeelineError('REFUSED', `the swarm's managers keep this: ${instead}`);
	};
	const labels = 'docker service update --label-add beeline.…=… SERVICE';
	return {
		name: 'docker',
		place: engine.place,
		self: source.self,
		current: () => source.current(),
		error: () => source.error(),
		problems: () => {
			const port = source.dataPathPort;
			const other = port !== undefined && port !== config.datapath.vxlanPort;
			return [
				...source.problems(),
				...(other
					? [
							`Swarm's data-path port is ${port}, and datapath.vxlanPort is ${config.datapath.vxlanPort}: set it to ${port}, which is open between the nodes`,
						]
					: []),
			];
		},
		reload: () => source.reload(),
		demand: (demand) => source.demand(demand),
		async close() {
			await source.close();
			memory.flush();
		},
		drainBackend: refuse('tasks are stopped by Swarm; docker node update --availability drain NODE drains a node'),
		drainNode: refuse('docker node update --availability drain NODE, or --availability active'),
		patchService: refuse(labels),
		createService: refuse('docker service create --publish …'),
		removeService: refuse('docker service rm SERVICE'),
		addNode: refuse('docker swarm join'),
		createNetwork: refuse('docker network create -d overlay NAME'),
		removeNetwork: refuse('docker network rm NAME'),
		removeNode: refuse('docker swarm leave on the node, then docker node rm'),
	};
}
