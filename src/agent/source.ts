/** What the agent needs of a membership source. Each source of src/mesh/sources is fitted to it here. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { BeelineError, type BeelineError as SourceError } from '../errors.js';
import type { ServiceCreateBody, ServiceOptionsPatchBody } from '../http/schemas.js';
import { type Memory, openDockerSource } from '../mesh/sources/docker.js';
import { createEngine, parseDockerHost } from '../mesh/sources/engine.js';
import * as file from '../mesh/sources/file.js';
import type { Membership } from '../mesh/types.js';
import { statePath } from './state.js';
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
	/** Each writes the change where the source keeps it. @throws BeelineError */
	drainBackend(id: string, drained: boolean): void;
	drainNode(name: string, drained: boolean): void;
	patchService(name: string, options: ServiceOptionsPatchBody): void;
	createService(service: ServiceCreateBody): void;
	removeService(name: string): void;
	addNode(node: { readonly name: string; readonly address: string }): void;
	removeNode(name: string): void;
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
	if (source === 'file') return openFile(config.membership.file, events);
	if (source === 'docker') return await openDocker(deps, events);
	throw new BeelineError(
		'NOT_AVAILABLE',
		`membership.source ${source} is not available in this version: use file or docker`,
		{
			field: 'membership.source',
		},
	);
}

function openFile(path: string, events: SourceEvents): Source {
	const source = file.openFileSource(path, events);
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
		patchService: (name, options) => void file.setServiceOptions(path, name, options),
		createService: (service) => void file.createService(path, service),
		removeService: (name) => void file.removeService(path, name),
		addNode: (node) => void file.addNode(path, node),
		removeNode: (name) => void file.removeNode(path, name),
	};
}

/** The last membership of a swarm, beside the agent's other state; it is written no more often than once a second. */
function memoryAt(path: string): Memory & { flush(): void } {
	let next: { nodeId: string; membership: Membership } | undefined;
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
			// It only spares a worker the waiting.
		}
		next = undefined;
	};
	return {
		flush,
		read() {
			try {
				const kept = JSON.parse(readFileSync(path, 'utf8')) as { nodeId?: unknown; membership?: unknown };
				return typeof kept.nodeId === 'string' && isMembership(kept.membership)
					? { nodeId: kept.nodeId, membership: kept.membership }
					: undefined;
			} catch {
				return undefined;
			}
		},
		write(nodeId, membership) {
			next = { nodeId, membership };
			timer ??= setTimeout(flush, 1000).unref();
		},
	};
}

async function openDocker(deps: SourceDeps, events: SourceEvents): Promise<Source> {
	const { config } = deps;
	const log = (level: 'info' | 'warn' | 'error', text: string) => deps.log[level](text);
	const engine = createEngine(parseDockerHost(process.env));
	const memory = memoryAt(statePath(config.pinRoot, deps.runDir).replace(/state-([^/]*)$/, 'membership-$1'));
	const source = await openDockerSource(
		{
			engine,
			memory,
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
		removeNode: refuse('docker swarm leave on the node, then docker node rm'),
	};
}
