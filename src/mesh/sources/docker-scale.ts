/**
 * Services that may rest (label beeline.scale-from-zero): a manager's agent asks Swarm for their tasks when a client comes,
 * and takes them away when none has for a while (docs/decisions/0045). The replicas that a service had are kept in a label of
 * the service itself, so any manager, and the next agent, knows them.
 */
import { sentence } from '../../errors.js';
import type { Membership } from '../types.js';
import type { Engine } from './engine.js';

/** What a node says of services that may rest. */
export interface Demand {
	/** Names of services that a client waits for, and that have no backend. */
	readonly wanted: readonly string[];
	/** Names of services that had a packet since this node spoke last. */
	readonly busy: readonly string[];
}

export interface ScaleDeps {
	readonly engine: Pick<Engine, 'get' | 'post'>;
	readonly log: (level: 'info' | 'warn', text: string) => void;
	/** Shorter in tests, ms. */
	readonly tickMs?: number;
	readonly heardMs?: number;
}

export interface Scaler {
	/** @param rank of this manager among the managers: the first acts, the next looks a moment later whether it has. */
	update(membership: Membership, rank: number): void;
	demand(nodeId: string, demand: Demand): void;
	/** What keeps services from resting, or from being woken. */
	problems(): readonly string[];
	close(): void;
}

/** Replicas to go back to. */
export const REPLICAS_LABEL = 'beeline.replicas';

const TICK_MS = 1000;
/** How often nodes speak. */
export const DEMAND_MS = 5000;
/** One that was not heard for so long may have clients that we do not know of. */
const HEARD_MS = 1.5 * DEMAND_MS;
/** When the operator is told so, as a multiple of that. */
const TOLD = 2;
const RANK_MS = 250;
/** Between two attempts at one service. */
const AGAIN_MS = 1000;

interface RawSpec {
	readonly Labels?: Readonly<Record<string, string>> | null;
	readonly Mode?: { readonly Replicated?: { readonly Replicas?: number } };
}

interface Resting {
	readonly idleMs: number;
	/** A task serves, or may. */
	hasTasks: boolean;
	busyAt: number;
	/** When it was last tried to wake it, and to let it rest. */
	readonly triedAt: { up: number; down: number };
	problem?: string;
}

export function createScaler(deps: ScaleDeps): Scaler {
	const { engine, log } = deps;
	const heardMs = deps.heardMs ?? HEARD_MS;
	const now = () => performance.now();
	const services = new Map<string, Resting>();
	const heardAt = new Map<string, number>();
	const timers = new Set<NodeJS.Timeout>();
	let nodes: Membership['nodes'] = [];
	let place = 0;
	let closed = false;

	function silent(forMs: number): string[] {
		const since = now() - forMs;
		return nodes.filter((n) => (heardAt.get(n.id ?? '') ?? Number.NEGATIVE_INFINITY) < since).map((n) => n.name);
	}

	/** To so many as it had, or to none; nothing where somebody else has done it. */
	async function scale(name: string, s: Resting, up: boolean): Promise<void> {
		if (closed || services.get(name) !== s) return;
		try {
			const raw = (await engine.get(`/services/${encodeURIComponent(name)}`)) as
				| { ID?: string; Version?: { Index?: number }; Spec?: RawSpec }
				| undefined;
			const replicas = raw?.Spec?.Mode?.Replicated?.Replicas;
			if (raw?.ID === undefined || raw.Spec === undefined || replicas === undefined) return;
			if (up ? replicas > 0 : replicas === 0 || now() - s.busyAt < s.idleMs) return;
			const labels = { ...raw.Spec.Labels };
			const kept = Number(labels[REPLICAS_LABEL]);
			const to = up ? (Number.isSafeInteger(kept) && kept > 0 ? kept : 1) : 0;
			if (up) delete labels[REPLICAS_LABEL];
			else labels[REPLICAS_LABEL] = String(replicas);
			await engine.post(`/services/${raw.ID}/update?version=${raw.Version?.Index ?? 0}`, {
				...raw.Spec,
				Labels: labels,
				Mode: { ...raw.Spec.Mode, Replicated: { ...raw.Spec.Mode?.Replicated, Replicas: to } },
			});
			delete s.problem;
			log('info', `service ${name}: ${up ? `a client waits, ${to} replicas` : `idle for ${s.idleMs} ms, no replicas`}`);
		} catch (e) {
			// Another manager, or the operator, was first.
			if (/out of sequence/.test(sentence(e))) return;
			const problem = `service ${name} could not be scaled: ${sentence(e)}`;
			if (s.problem !== problem) log('warn', problem);
			s.problem = problem;
		}
	}

	function later(name: string, s: Resting, up: boolean): void {
		s.triedAt[up ? 'up' : 'down'] = now();
		const t = setTimeout(() => {
			timers.delete(t);
			void scale(name, s, up);
		}, place * RANK_MS);
		timers.add(t);
	}

	const ticker = setInterval(() => {
		if (services.size === 0 || silent(heardMs).length > 0) return;
		for (const [name, s] of services)
			if (s.hasTasks && now() - s.busyAt >= s.idleMs && now() - s.triedAt.down >= AGAIN_MS) later(name, s, false);
	}, deps.tickMs ?? TICK_MS);
	ticker.unref();

	return {
		update(membership, rank) {
			nodes = membership.nodes;
			place = rank;
			for (const name of services.keys())
				if (!membership.services.some((s) => s.name === name && s.scaleFromZero !== undefined)) services.delete(name);
			for (const s of membership.services) {
				if (s.scaleFromZero === undefined) continue;
				const hasTasks = s.tasks.some((t) => t.state === 'active');
				const was = services.get(s.name);
				if (was?.idleMs !== s.scaleFromZero.idleMs) {
					services.set(s.name, {
						idleMs: s.scaleFromZero.idleMs,
						hasTasks,
						busyAt: was?.busyAt ?? now(),
						triedAt: was?.triedAt ?? { up: Number.NEGATIVE_INFINITY, down: Number.NEGATIVE_INFINITY },
					});
					continue;
				}
				// It has just been started: for somebody.
				if (hasTasks && !was.hasTasks) was.busyAt = now();
				was.hasTasks = hasTasks;
			}
		},
		demand(nodeId, { wanted, busy }) {
			heardAt.set(nodeId, now());
			for (const name of busy) {
				const s = services.get(name);
				if (s !== undefined) s.busyAt = now();
			}
			for (const name of wanted) {
				const s = services.get(name);
				if (s === undefined) continue;
				s.busyAt = now();
				if (now() - s.triedAt.up >= AGAIN_MS) later(name, s, true);
			}
		},
		problems() {
			const out = [...services.values()].flatMap((s) => (s.problem === undefined ? [] : [s.problem]));
			const mute = services.size === 0 ? [] : silent(heardMs * TOLD);
			if (mute.length > 0)
				out.push(
					`services with beeline.scale-from-zero do not go to rest: no agent of ${mute.join(', ')} says whether clients are there`,
				);
			return out;
		},
		close() {
			closed = true;
			clearInterval(ticker);
			for (const t of timers) clearTimeout(t);
		},
	};
}
