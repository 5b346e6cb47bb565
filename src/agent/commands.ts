/**
 * What a running agent answers to HTTP: views of what its loop knows, and commands, which write a change where it belongs
 * and wait for the run that carries it out.
 */
import type { Logger } from 'pino';
import { type Config, updateConfig } from '../config.js';
import { BeelineError, codeOf, sentence } from '../errors.js';
import type { Entries } from '../mesh/entries.js';
import type { Mesh } from '../mesh/plan.js';
import { parseDuration } from '../mesh/sources/document.js';
import type { MeshStore } from '../mesh/store.js';
import type { Membership } from '../mesh/types.js';
import { type AgentApi, AgentError } from './api.js';
import type { Encryption } from './encryption.js';
import type { Local } from './local.js';
import type { Networks } from './networks.js';
import type { Peers } from './peers.js';
import type { Source } from './source.js';
import * as views from './views.js';

/** What the loop knows now; it alone writes it. */
export interface Known {
	readonly config: Config;
	readonly mesh: Mesh | undefined;
	/** What `mesh` was planned from. */
	readonly planned: Membership | undefined;
	/** What the maps are to hold. */
	readonly entries: Entries | undefined;
	readonly local: Local | undefined;
	/** When the membership was read that the maps follow. */
	readonly readAt: Date;
	readonly ready: boolean;
	/** The maps are not to be read any more. */
	readonly closed: boolean;
	readonly trace: boolean;
	readonly recent: views.StatusInput['recent'];
}

export interface CommandsDeps {
	readonly version: string;
	readonly since: Date;
	readonly log: Logger;
	readonly store: MeshStore;
	readonly source: Source;
	readonly networks: Networks;
	readonly peers: Peers;
	readonly encryption: Encryption;
	readonly known: Known;
	/** Uplinks. */
	readonly attached: views.StatusInput['attached'];
	/** Slots in transition of the services that have any. */
	readonly moving: () => ReadonlyMap<string, number>;
	readonly isLeaving: () => boolean;
	/** For the operator, besides those of the source, the peers, encryption and the facts of this node. */
	readonly warnings: () => readonly string[];
	/** Why containers' namespaces are not known. */
	readonly namespacesProblem: () => string | undefined;
	/** What has no program. */
	readonly attachErrors: () => readonly string[];
	/** Resolves when a run that begins after now has ended; rejects with what it could not do. */
	readonly applied: (cause: string, kernel: boolean) => Promise<void>;
	readonly configure: (next: { readonly config?: Config; readonly trace?: boolean }) => void;
	readonly subscribe: AgentApi['subscribe'];
}

/** What a command's refusal is over HTTP. */
function refuse(e: unknown): never {
	if (e instanceof AgentError || !(e instanceof Error)) throw e;
	const code = codeOf(e);
	if (code === 'NOT_FOUND') throw new AgentError(404, code, e.message);
	const field = e instanceof BeelineError ? e.field : undefined;
	if (code === 'INVALID_CONFIG') throw new AgentError(422, 'INVALID', e.message, field);
	if (code === 'STALE') throw new AgentError(412, code, e.message);
	// The source does not answer, or others write all the time.
	if (/^(ETCD_|BUSY$|CLOSED$)/.test(code)) throw new AgentError(503, code, e.message);
	throw new AgentError(409, code, e.message, field);
}

export function createApi(deps: CommandsDeps): AgentApi {
	const { known, source, networks, peers, encryption, applied, log, store } = deps;

	/** Carries out a change of the source and waits until the maps follow. */
	async function change(what: string, edit: () => void | Promise<void>): Promise<void> {
		try {
			await edit();
		} catch (e) {
			refuse(e);
		}
		source.reload();
		await applied(what, false);
	}
	const revisionOf = (kind: 'nodes' | 'services') => (name: string) =>
		known.planned === undefined ? undefined : source.revisionOf?.(known.planned, kind, name);
	/** What a change is decided from, where it is to hold only for that. */
	const basis = (exact: boolean | undefined, kind: 'nodes' | 'services', name: string) =>
		exact === true ? revisionOf(kind)(name) : undefined;
	const drainBackend = (id: string, drained: boolean, exact: boolean | undefined) => {
		const from = basis(exact, 'services', id.split('~', 1)[0] as string);
		return change(`${drained ? 'drain' : 'undrain'} ${id}`, () => source.drainBackend(id, drained, from));
	};
	const drainNode = (node: string, drained: boolean, exact: boolean | undefined) => {
		const from = basis(exact, 'nodes', node);
		return change(`${drained ? 'drain' : 'undrain'} ${node}`, () => source.drainNode(node, drained, from));
	};
	const moving = () => (known.entries === undefined || known.closed ? new Map<string, number>() : deps.moving());

	return {
		status: () =>
			views.status({
				version: deps.version,
				config: known.config,
				since: deps.since,
				ready: known.ready,
				leaving: deps.isLeaving(),
				source: { name: source.name, place: source.place, readAt: known.readAt, error: source.error()?.message },
				recent: known.recent,
				mesh: known.mesh,
				local: known.local,
				attached: deps.attached,
				differing: peers.differing(),
				moving: moving(),
				encryption: encryption.view(),
				warnings: [
					...source.problems(),
					...[...peers.downNodes].map(
						(n) =>
							`${n} does not answer probes (no agent there, or cut off): its backends are not chosen while there are others`,
					),
					...deps.warnings(),
					...encryption.warnings(),
					...((known.mesh?.vips.services.size ?? 0) > 0 && deps.namespacesProblem() !== undefined
						? [deps.namespacesProblem() as string]
						: []),
					...views.onLinkWarnings(known.entries, known.closed ? undefined : store.counters()),
					...(known.local?.warnings ?? []),
					...deps.attachErrors(),
				],
			}),
		nodes: () => views.nodes(known.mesh, known.local, peers.views(), revisionOf('nodes')),
		services: () => views.services(known.mesh, known.entries, known.local, moving(), revisionOf('services')),
		backends: () => views.backends(known.mesh, known.entries, known.local),
		flows: (limit) =>
			known.entries === undefined || known.closed
				? { flows: [], limited: false }
				: views.flows(store.flows(limit), known.entries),
		entries: (limit) => (known.closed ? { maps: [] } : views.entries(store, limit)),
		config: () => views.config(known.config, known.local, known.trace),
		drainBackend: (id, exact) => drainBackend(id, true, exact),
		undrainBackend: (id, exact) => drainBackend(id, false, exact),
		drainNode: (node, exact) => drainNode(node, true, exact),
		undrainNode: (node, exact) => drainNode(node, false, exact),
		patchService(name, patch, exact) {
			const from = basis(exact, 'services', name);
			return change(`update ${name}`, () => source.patchService(name, patch, from));
		},
		createService: async (service) => {
			const whole = await networks.withVips(service).catch(refuse);
			await change(`create ${service.name}`, () => source.createService(whole));
		},
		removeService(name, exact) {
			const from = basis(exact, 'services', name);
			const release = networks.releaserOf(name);
			return change(`remove ${name}`, async () => {
				await source.removeService(name, from);
				await release();
			});
		},
		addNode: (node) => change(`add ${node.name}`, () => source.addNode(node)),
		removeNode(name, exact) {
			const from = basis(exact, 'nodes', name);
			return change(`remove ${name}`, () => source.removeNode(name, from));
		},
		networks: () => networks.list(),
		createNetwork: async (body) => {
			const document = await networks.draft(body).catch(refuse);
			await change(`create network ${body.name}`, () => source.createNetwork(document));
		},
		removeNetwork: (name) =>
			change(`remove network ${name}`, () => {
				networks.refuseRemoval(name);
				return source.removeNetwork(name);
			}),
		endpoints: () => networks.endpoints(),
		async attachEndpoint(request) {
			const e = await networks.attach(request).catch(refuse);
			await applied(`endpoint ${e.id} attached`, true);
			return networks.view(e);
		},
		async detachEndpoint(id) {
			await networks.detach(id).catch(refuse);
			await applied(`endpoint ${id} detached`, true);
		},
		async patchConfig(patch) {
			const values: Record<string, unknown> = {};
			if (patch.datapath?.returnPath !== undefined) values['datapath.returnPath'] = patch.datapath.returnPath;
			if (patch.datapath?.staleAfter !== undefined) values['datapath.staleAfter'] = patch.datapath.staleAfter;
			if (patch.log !== undefined) values['log.level'] = patch.log.level;
			if (Object.keys(values).length > 0) {
				const { config } = known;
				if (config.file !== undefined) {
					try {
						updateConfig(config.file, values);
					} catch (e) {
						throw new AgentError(409, codeOf(e), sentence(e));
					}
				}
				const staleAfter =
					patch.datapath?.staleAfter === undefined ? undefined : parseDuration(patch.datapath.staleAfter);
				const next = {
					...config,
					datapath: {
						...config.datapath,
						...(patch.datapath?.returnPath === undefined ? {} : { returnPath: patch.datapath.returnPath }),
						...(staleAfter === undefined ? {} : { staleAfter }),
					},
					log: patch.log ?? config.log,
				};
				deps.configure({ config: next });
				log.level = next.log.level;
			}
			if (patch.trace !== undefined) deps.configure({ trace: patch.trace });
			await applied('configuration', false);
		},
		subscribe: deps.subscribe,
	};
}
