/**
 * A swarm as a membership source. Managers list; workers follow a manager's agent (the feed); every node knows its own
 * containers. Nothing that fails takes away what was known.
 */
import { BeelineError, sentence } from '../../errors.js';
import type { Membership } from '../types.js';
import { createLister, type Lister } from './docker-lister.js';
import { type SwarmInfo, swarmInfo, type TaskReport, withOwn } from './docker-map.js';
import { createOwn, type Own } from './docker-own.js';
import { createScaler, type Demand, type Scaler } from './docker-scale.js';
import { type Engine, EngineError } from './engine.js';
import { shareMembership } from './file.js';

/** The channel between agents: membership to workers, reports to managers. */
export interface Feed {
	/** Who this node is, and who manages: to serve, to follow, or both. */
	update(info: SwarmInfo): void;
	/** The membership as all nodes are to see it; from managers only. `listed`: the swarm has just been listed. */
	publish(membership: Membership, listed: boolean): void;
	/** What befell this node's containers, all of it. `look`: a task may have begun to serve. */
	report(reports: ReadonlyMap<string, TaskReport>, look: boolean): void;
	/** What this node's clients want of services that may rest. */
	demand(demand: Demand): void;
	/** What is wrong with it, for the operator. */
	problems(): readonly string[];
	close(): Promise<void>;
}

export interface FeedEvents {
	onMembership(membership: Membership): void;
	/** A node, authenticated, says what befell its containers. */
	onReport(nodeId: string, reports: ReadonlyMap<string, TaskReport>, look: boolean): void;
	onDemand(nodeId: string, demand: Demand): void;
}

/** What was known last, for a worker that starts with no manager in reach. */
export interface Memory {
	read(): { readonly nodeId: string; readonly membership: Membership } | undefined;
	write(nodeId: string, membership: Membership): void;
}

export interface DockerSourceDeps {
	readonly engine: Engine;
	readonly openFeed: (on: FeedEvents) => Feed;
	readonly memory: Memory;
	/** VNI of the tunnel between nodes. */
	readonly meshVni: number;
	readonly log: (level: 'info' | 'warn' | 'error', text: string) => void;
}

export interface DockerSourceEvents {
	/** Not called for the first. */
	onChange(membership: Membership): void;
	/** Read again, and the same. */
	onSame(): void;
	onError(error: BeelineError): void;
}

export interface DockerSource {
	/** Name of this node in the membership. */
	readonly self: string;
	readonly dataPathPort: number | undefined;
	current(): Membership;
	error(): BeelineError | undefined;
	/** What an operator should know: labels without effect, nodes that were left out, the channel. */
	problems(): readonly string[];
	reload(): void;
	/** To the managers' agents: what this node's clients want of services that may rest. */
	demand(demand: Demand): void;
	close(): Promise<void>;
}

const INFO_MS = 10_000;
const RETRY_MS = [200, 500, 1000, 2000, 5000];
/** How long a start waits for a manager before it goes by what it remembers. */
const REMEMBER_MS = 3000;
const EVENT_TYPES = ['container', 'network', 'service', 'node'];
/** Objects whose events only managers see. */
const OBJECTS = new Set(['service', 'node', 'network']);

function sameMembership(a: Membership | undefined, b: Membership): boolean {
	return a !== undefined && a.nodes === b.nodes && a.services === b.services && a.networks === b.networks;
}

/**
 * Resolves when a membership that names this node is known, however long that takes: Docker, the swarm or its managers may
 * all start later than the agent.
 * @throws BeelineError when `stop` is aborted
 */
export function openDockerSource(
	deps: DockerSourceDeps,
	on: DockerSourceEvents,
	stop?: AbortSignal,
): Promise<DockerSource> {
	const { engine, log, memory } = deps;
	let info: SwarmInfo | undefined;
	let infoAt = Number.NEGATIVE_INFINITY;
	let shared: Membership | undefined;
	let current: Membership | undefined;
	let error: BeelineError | undefined;
	let lister: Lister | undefined;
	let scaler: Scaler | undefined;
	let mapProblems: readonly string[] = [];
	let closed = false;
	let infoTimer: NodeJS.Timeout | undefined;
	let rememberTimer: NodeJS.Timeout | undefined;
	let events: { close(): void } | undefined;
	let eventsTimer: NodeJS.Timeout | undefined;
	let eventTries = 0;
	let infoTries = 0;
	let asking = false;
	let settled = false;
	let onReady: (s: DockerSource) => void = () => undefined;
	let onRefused: (e: Error) => void = () => undefined;

	const fail = (e: unknown): void => {
		const next = e instanceof BeelineError ? e : new BeelineError('ENGINE_ERROR', sentence(e), { cause: e });
		if (next.message === error?.message) return;
		error = next;
		if (settled) on.onError(next);
		else log('warn', next.message);
	};

	const feed = deps.openFeed({
		onMembership(m) {
			// A manager's own lists are nearer to the truth than another's.
			if (info?.manager === true || closed) return;
			error = undefined;
			take(m);
		},
		onReport(nodeId, reports, look) {
			lister?.reports(nodeId, reports);
			if (look) lister?.dirty(false, { node: nodeId });
		},
		onDemand: (nodeId, demand) => scaler?.demand(nodeId, demand),
	});
	const own: Own = createOwn(
		{ engine },
		{
			onChange(look) {
				if (closed) return;
				if (info !== undefined) lister?.reports(info.nodeId, own.reports);
				feed.report(own.reports, look);
				if (look) lister?.dirty(false, info === undefined ? {} : { node: info.nodeId });
				compose();
			},
			onError: fail,
		},
	);

	function selfName(m: Membership): string | undefined {
		return m.nodes.find((n) => n.id === info?.nodeId)?.name;
	}

	function take(m: Membership): void {
		const next = shareMembership(shared, m);
		const same = sameMembership(shared, next);
		shared = same ? shared : next;
		if (!same && info !== undefined && selfName(next) !== undefined) memory.write(info.nodeId, next);
		compose();
	}

	/** Self, as it was at the start: a hostname that changes is another node to the maps, so it waits for a restart. */
	let self: string | undefined;

	function compose(): void {
		if (shared === undefined || closed || info === undefined) return;
		const name = self ?? selfName(shared);
		if (name === undefined) return;
		const next = shareMembership(current, withOwn(shared, name, own.legs, own.reports));
		const same = sameMembership(current, next);
		if (!same) current = next;
		own.expect(
			next.services.flatMap((s) =>
				// Without a published port nothing is delivered to the leg, and on internal networks there is none.
				s.ports.length === 0
					? []
					: s.tasks.flatMap((t) => (t.node === name && t.id !== undefined && t.state !== 'down' ? [t.id] : [])),
			),
			next.networks.find((n) => n.ingress)?.id,
		);
		if (!settled) {
			settled = true;
			self = name;
			clearTimeout(rememberTimer);
			onReady(source(name));
		} else if (same) on.onSame();
		else on.onChange(current as Membership);
	}

	/** Of this manager among all: they act one after another. */
	function rank(): number {
		const ids = (info?.managers ?? []).map((m) => m.id).filter((id) => id !== info?.nodeId);
		return ids.filter((id) => id < (info?.nodeId ?? '')).length;
	}

	function becomes(next: SwarmInfo): void {
		const was = info;
		info = next;
		if (next.manager && lister === undefined) {
			if (was !== undefined) log('info', 'this node is a manager now: it lists the swarm itself');
			lister = createLister(
				{ engine },
				{
					onMapped(m, listed) {
						error = undefined;
						mapProblems = [...m.skipped, ...m.problems.map((p) => `service ${p.service}: ${p.reason}`)];
						feed.publish(m.membership, listed);
						scaler?.update(m.membership, rank());
						take(m.membership);
					},
					onError(e) {
						fail(e);
						// Demoted, or the engine is another one now.
						if (e instanceof EngineError) askInfo();
					},
					onRecovered: () => log('info', 'the swarm can be listed again'),
				},
			);
			lister.reports(next.nodeId, own.reports);
			scaler = createScaler({ engine, log });
		} else if (!next.manager && lister !== undefined) {
			log('info', 'this node is no manager any more: it follows one');
			lister.close();
			lister = undefined;
			scaler?.close();
			scaler = undefined;
			mapProblems = [];
		}
		feed.update(next);
		if (!next.manager) error = undefined;
		compose();
	}

	function askInfo(): void {
		if (asking || closed) return;
		asking = true;
		clearTimeout(infoTimer);
		void (async () => {
			try {
				const next = swarmInfo(await engine.get('/info'));
				if (closed) return;
				infoAt = performance.now();
				if (next.problem !== undefined) throw new BeelineError('NO_SWARM', next.problem);
				if (info !== undefined && info.nodeId !== next.nodeId)
					throw new BeelineError(
						'OTHER_SWARM',
						`this engine was node ${info.nodeId} and is ${next.nodeId} now: restart the agent`,
					);
				infoTries = 0;
				becomes(next);
			} catch (e) {
				infoTries++;
				if (!closed) fail(e);
			} finally {
				asking = false;
				if (!closed) {
					clearTimeout(infoTimer);
					infoTimer = setTimeout(
						askInfo,
						infoTries === 0 ? INFO_MS : RETRY_MS[Math.min(infoTries, RETRY_MS.length) - 1],
					);
				}
			}
		})();
	}

	function follow(): void {
		if (closed) return;
		events = engine.events(EVENT_TYPES, {
			onOpen() {
				eventTries = 0;
				// What happened before was not told.
				own.refresh();
				lister?.dirty(true);
				askInfo();
			},
			onEvent(e) {
				own.event(e);
				if (OBJECTS.has(e.type) && e.attributes.container === undefined) {
					lister?.dirty(true, e.type === 'service' ? { service: e.id } : e.type === 'node' ? { node: e.id } : {});
					// Promoted or demoted, perhaps.
					if (e.type === 'node' && performance.now() - infoAt > 1000) askInfo();
				}
			},
			onEnd(e) {
				if (closed) return;
				fail(e);
				eventsTimer = setTimeout(follow, RETRY_MS[Math.min(eventTries++, RETRY_MS.length - 1)]);
			},
		});
	}

	function source(name: string): DockerSource {
		return {
			self: name,
			get dataPathPort() {
				return info?.dataPathPort;
			},
			current: () => current as Membership,
			error: () => error,
			problems: () => [
				...mapProblems,
				...(current?.networks ?? [])
					.filter((n) => n.vni === deps.meshVni)
					.map(
						(n) =>
							`Docker’s network ${n.name} has VNI ${n.vni}, that of the tunnel between nodes, so that its packets are taken for the mesh’s: set datapath.vni to another on every node and restart the agents`,
					),
				...(scaler?.problems() ?? []),
				...feed.problems(),
			],
			reload() {
				own.refresh();
				lister?.dirty(true);
				askInfo();
			},
			demand(demand) {
				if (info !== undefined) scaler?.demand(info.nodeId, demand);
				feed.demand(demand);
			},
			close,
		};
	}

	async function close(): Promise<void> {
		if (closed) return;
		closed = true;
		clearTimeout(infoTimer);
		clearTimeout(rememberTimer);
		clearTimeout(eventsTimer);
		events?.close();
		lister?.close();
		scaler?.close();
		own.close();
		engine.close();
		await feed.close();
	}

	return new Promise<DockerSource>((resolve, reject) => {
		onReady = resolve;
		onRefused = reject;
		const aborted = () => {
			if (settled) return;
			void close().then(() => onRefused(new BeelineError('STOPPED', 'stopped while waiting for the swarm')));
		};
		if (stop?.aborted === true) return aborted();
		stop?.addEventListener('abort', aborted, { once: true });
		const remember = () => {
			if (settled || closed || info?.manager === true) return;
			if (info === undefined) {
				// Not even the engine has answered; it knows who this node is.
				rememberTimer = setTimeout(remember, REMEMBER_MS);
				return;
			}
			const kept = memory.read();
			if (kept === undefined || kept.nodeId !== info.nodeId) {
				log('info', 'waiting for the membership: no manager’s agent has answered yet');
				return;
			}
			log('warn', 'no manager’s agent answers: going by the membership that was known last');
			take(kept.membership);
		};
		rememberTimer = setTimeout(remember, REMEMBER_MS);
		follow();
		askInfo();
	});
}
