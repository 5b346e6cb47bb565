/**
 * This node's own containers: where each task is delivered to, and what befalls it, at once. Swarm says the same later.
 */
import { sentence } from '../../errors.js';
import { type Listener, onlyAt, readListeners } from './docker-listeners.js';
import { type Leg, legsOf, ownContainers, sameLeg, TASK_LABEL, type TaskReport } from './docker-map.js';
import { type Engine, EngineError, type EngineEvent } from './engine.js';

export interface OwnEvents {
	/** Legs or reports have changed. `look`: a task may have begun to serve, which only a list can say. */
	onChange(look: boolean): void;
	onError(error: Error): void;
}

export interface Own {
	/** By task. */
	readonly legs: ReadonlyMap<string, Leg>;
	readonly reports: ReadonlyMap<string, TaskReport>;
	/** An event of this engine. */
	event(event: EngineEvent): void;
	/** Reads everything anew: events may have been missed. */
	refresh(): void;
	/** Tasks of this node that should have a leg, and the ingress network's id, by the membership. */
	expect(tasks: readonly string[], ingressId: string | undefined): void;
	close(): void;
}

/** Signals that end what does not say otherwise: TERM, INT, QUIT, KILL. */
const ENDING = new Set(['2', '3', '9', '15', 'SIGINT', 'SIGQUIT', 'SIGKILL', 'SIGTERM']);
/** A task that lives on after a signal that should have ended it serves again after so long. */
const KILL_MS = 20_000;
/** It takes connections into its backlog and answers none of them, for as long as somebody wants. */
const PAUSED: Said = { state: 'draining', untilMs: Number.POSITIVE_INFINITY, paused: true };
/** A dead container is remembered until Swarm has surely seen it. */
const DEAD_MS = 120_000;
/** The leg of a container that starts appears some 100 ms before it serves. */
const RETRY_MS = [50, 100, 200, 400, 800, 1600, 3200];
const DEBOUNCE_MS = 10;
/** When a task's sockets are looked at, after it was first seen: a server may take its time to listen. */
const LISTENS_MS = [500, 1500, 4000, 10_000, 30_000, 90_000];

interface Said {
	readonly state: 'draining' | 'down';
	readonly untilMs: number;
	readonly paused?: true;
}

export interface OwnDeps {
	readonly engine: Pick<Engine, 'get'>;
	readonly now?: () => number;
	/** Sockets of a container by its process; undefined: not to be seen from here. */
	readonly listeners?: (container: string, pid: number) => readonly Listener[] | undefined;
}

/** A task whose sockets are still to be looked at. */
interface Unheard {
	readonly container: string;
	readonly ingress: string;
	pid: number | undefined;
	readonly sinceMs: number;
	looks: number;
}

export function createOwn(deps: OwnDeps, on: OwnEvents): Own {
	const { engine } = deps;
	const now = deps.now ?? (() => performance.now());
	let legs: ReadonlyMap<string, Leg> = new Map();
	const said = new Map<string, Said>();
	let reports: ReadonlyMap<string, TaskReport> = new Map();
	let expected: readonly string[] = [];
	let ingressId: string | undefined;
	let timer: NodeJS.Timeout | undefined;
	let expiry: NodeJS.Timeout | undefined;
	let reading = false;
	let again = false;
	let tries = 0;
	let closed = false;
	let lastError = '';

	const listeners = deps.listeners ?? readListeners;
	const unheard = new Map<string, Unheard>();
	const elsewhere = new Map<string, NonNullable<Leg['elsewhere']>>();
	let looking: NodeJS.Timeout | undefined;

	/** Whose time has come is looked at, and the next look is set. */
	async function listen(): Promise<void> {
		looking = undefined;
		let news = false;
		for (const [task, u] of unheard) {
			if (closed) return;
			if (u.looks >= LISTENS_MS.length || now() < u.sinceMs + LISTENS_MS[u.looks]) continue;
			u.looks++;
			try {
				const raw = (u.pid === undefined ? await engine.get(`/containers/${u.container}/json`) : undefined) as
					| { State?: { Pid?: number } }
					| undefined;
				u.pid ??= raw?.State?.Pid ?? 0;
				const there = listeners(u.container, u.pid);
				const leg = legs.get(task);
				if (there === undefined || leg === undefined) continue;
				const ports = onlyAt(there, u.ingress, leg.address4);
				if (ports.length > 0) elsewhere.set(task, { address4: u.ingress, ports });
				else elsewhere.delete(task);
				const next = withElsewhere(task, leg);
				if (sameLeg(next, leg)) continue;
				legs = new Map([...legs, [task, next]]);
				news = true;
			} catch {
				// It is gone, or the engine is: the next look will tell.
			}
		}
		if (news && !closed) restate(false);
		listenLater();
	}

	function listenLater(): void {
		if (closed || looking !== undefined) return;
		let at = Number.POSITIVE_INFINITY;
		for (const u of unheard.values())
			if (u.looks < LISTENS_MS.length) at = Math.min(at, u.sinceMs + LISTENS_MS[u.looks]);
		if (at < Number.POSITIVE_INFINITY) looking = setTimeout(() => void listen(), Math.max(10, at - now()));
	}

	function withElsewhere(task: string, leg: Leg): Leg {
		const { elsewhere: _, ...rest } = leg;
		const there = elsewhere.get(task);
		return there === undefined ? rest : { ...rest, elsewhere: there };
	}

	function restate(look: boolean): void {
		const at = now();
		let nextMs = Number.POSITIVE_INFINITY;
		const next = new Map<string, TaskReport>();
		for (const [task, s] of said) {
			if (s.untilMs <= at) {
				said.delete(task);
				continue;
			}
			nextMs = Math.min(nextMs, s.untilMs - at);
			next.set(task, { state: s.state });
		}
		for (const [task, leg] of legs) {
			if (leg.address6 !== undefined) next.set(task, { ...next.get(task), six: true });
		}
		reports = next;
		clearTimeout(expiry);
		// setTimeout takes 31 bits.
		if (nextMs < 2 ** 31) expiry = setTimeout(() => restate(false), nextMs + 1);
		on.onChange(look);
	}

	async function read(): Promise<void> {
		if (closed) return;
		if (reading) {
			again = true;
			return;
		}
		reading = true;
		again = false;
		const before = new Map(said);
		try {
			const filter = encodeURIComponent(JSON.stringify({ label: [TASK_LABEL] }));
			const [containers, bridge] = await Promise.all([
				engine.get(`/containers/json?all=1&filters=${filter}`),
				engine.get('/networks/docker_gwbridge').catch((e: unknown) => {
					// A node that never ran a task of an overlay has no such bridge.
					if (e instanceof EngineError && e.status === 404) return undefined;
					throw e;
				}),
			]);
			if (closed) return;
			const byContainer = legsOf(bridge);
			const next = new Map<string, Leg>();
			let news = false;
			const there = new Set<string>();
			for (const c of ownContainers(containers, ingressId)) {
				there.add(c.task);
				const leg = byContainer.get(c.id);
				if (leg !== undefined) {
					next.set(c.task, withElsewhere(c.task, c.networks.length === 0 ? leg : { ...leg, onLink: c.networks }));
					if (c.running && c.ingress !== undefined && !unheard.has(c.task)) {
						const { id: container, ingress } = c;
						unheard.set(c.task, { container, ingress, pid: undefined, sinceMs: now(), looks: 0 });
					}
				}
				const known = said.get(c.task);
				// Paused, or no more, while events were not heard; what was heard since the asking is newer than the answer.
				const heard = known !== before.get(c.task);
				if (!heard && c.paused !== (known?.paused === true) && known?.state !== 'down') {
					if (c.paused) said.set(c.task, PAUSED);
					else said.delete(c.task);
					news = true;
				}
				// One that died while events were not heard.
				if (!c.running && c.ended && known?.state !== 'down') {
					said.set(c.task, { state: 'down', untilMs: now() + DEAD_MS });
					news = true;
				}
			}
			lastError = '';
			for (const task of unheard.keys())
				if (!there.has(task)) {
					unheard.delete(task);
					elsewhere.delete(task);
				}
			const same = next.size === legs.size && [...next].every(([t, l]) => sameLeg(legs.get(t), l));
			if (!same) legs = next;
			if (!same || news) restate(false);
			listenLater();
			const missing = expected.some((t) => !legs.has(t) && there.has(t) && said.get(t)?.state !== 'down');
			if (missing && tries < RETRY_MS.length) later(RETRY_MS[tries++]);
			else if (!missing) tries = 0;
		} catch (e) {
			if (closed) return;
			if (sentence(e) !== lastError) {
				lastError = sentence(e);
				on.onError(e instanceof Error ? e : new Error(sentence(e)));
			}
			later(RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
		} finally {
			reading = false;
			if (again) later(0);
		}
	}

	function later(inMs: number): void {
		if (closed) return;
		clearTimeout(timer);
		timer = setTimeout(() => void read(), inMs);
	}

	function say(task: string, next: Said | undefined, look: boolean): void {
		const was = said.get(task);
		// What is dead stays so: a task has one container.
		if (was?.state === 'down') return;
		if (next === undefined) said.delete(task);
		else said.set(task, next);
		if (was?.state !== next?.state || look) restate(look);
	}

	return {
		get legs() {
			return legs;
		},
		get reports() {
			return reports;
		},
		event(e) {
			if (e.type === 'network') {
				if (e.action === 'connect' || e.action === 'disconnect') {
					tries = 0;
					later(DEBOUNCE_MS);
				}
				return;
			}
			const task = e.attributes[TASK_LABEL];
			if (e.type !== 'container' || task === undefined || task === '') return;
			const action = e.action.split(':')[0];
			if (action === 'kill') {
				if (ENDING.has(e.attributes.signal ?? '15')) say(task, { state: 'draining', untilMs: now() + KILL_MS }, false);
			} else if (action === 'die') {
				say(task, { state: 'down', untilMs: now() + DEAD_MS }, true);
				later(DEBOUNCE_MS);
			} else if (action === 'health_status') {
				const healthy = e.action.includes('unhealthy') === false && e.action.includes('healthy');
				if (healthy) say(task, undefined, true);
				else if (e.action.includes('unhealthy'))
					say(task, { state: 'draining', untilMs: Number.POSITIVE_INFINITY }, false);
			} else if (action === 'pause') say(task, PAUSED, false);
			else if (action === 'unpause') say(task, undefined, true);
			else if (action === 'start') {
				tries = 0;
				later(0);
				restate(true);
			}
		},
		refresh() {
			tries = 0;
			later(0);
		},
		expect(tasks, ingress) {
			const before = new Set(expected);
			const other = ingress !== ingressId;
			expected = tasks;
			ingressId = ingress;
			if (!other && !tasks.some((t) => !legs.has(t) && !before.has(t))) return;
			tries = 0;
			later(0);
		},
		close() {
			closed = true;
			clearTimeout(timer);
			clearTimeout(expiry);
			clearTimeout(looking);
		},
	};
}
