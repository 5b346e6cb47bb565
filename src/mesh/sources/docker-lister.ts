/**
 * A manager's lists. Events and a clock say when; complete lists say what. Where a list fails the last answers stay.
 */
import { sentence } from '../../errors.js';
import {
	isOver,
	type Mapped,
	mapAnswers,
	type RawNetwork,
	type RawNode,
	type RawService,
	type RawTask,
	type TaskFact,
	type TaskReport,
	taskFact,
} from './docker-map.js';
import type { Engine } from './engine.js';

export interface ListerEvents {
	/** Complete, and perhaps the same as before. */
	onMapped(mapped: Mapped): void;
	/** A list failed; told once for each sentence until one succeeds. */
	onError(error: Error): void;
	/** It succeeded again. */
	onRecovered(): void;
}

export interface Lister {
	/** Something has changed: list at once. `objects`: not tasks alone. */
	dirty(objects: boolean): void;
	/** What a node says of its own tasks, all of it; nothing is remembered of what it said before. */
	reports(nodeId: string, reports: ReadonlyMap<string, TaskReport>): void;
	close(): void;
}

/** Tasks have no events: what changed is seen at the next list. */
const TICK_MS = 1000;
/** While things move. */
const HOT_TICK_MS = 250;
const HOT_MS = 5000;
/** Nodes, services and networks have events; this is for those that were missed. */
const OBJECTS_MS = 10_000;
/** 5 % of a core. */
const COST_FACTOR = 20;
const MAX_TICK_MS = 30_000;
const BACKOFF_MS = [200, 500, 1000, 2000, 5000];
/** What is over is shown as down for so long, so that nobody waits for its flows. */
const OVER_MS = 3000;
/** Ids in one query. */
const CHUNK = 40;

const query = (path: string, filters: Readonly<Record<string, readonly string[]>>): string =>
	`${path}?filters=${encodeURIComponent(JSON.stringify(filters))}`;

function array<T>(x: unknown): T[] {
	return Array.isArray(x) ? (x as T[]) : [];
}

export interface ListerDeps {
	readonly engine: Pick<Engine, 'get'>;
	/** ms, monotonic. */
	readonly now?: () => number;
	/** ms of processor time that this process has used. */
	readonly cpuMs?: () => number;
}

export function createLister(deps: ListerDeps, on: ListerEvents): Lister {
	const { engine } = deps;
	const now = deps.now ?? (() => performance.now());
	const cpuMs =
		deps.cpuMs ??
		(() => {
			const { user, system } = process.cpuUsage();
			return (user + system) / 1000;
		});
	let nodes: readonly RawNode[] = [];
	let services: readonly RawService[] = [];
	let networks: readonly RawNetwork[] = [];
	let tasks = new Map<string, TaskFact>();
	/** When each that is over was seen to be. */
	const over = new Map<string, number>();
	const said = new Map<string, ReadonlyMap<string, TaskReport>>();
	let complete = false;
	let objectsAt = Number.NEGATIVE_INFINITY;
	let wantsObjects = true;
	let hotUntil = Number.NEGATIVE_INFINITY;
	let failures = 0;
	let lastError = '';
	let closed = false;
	let running = false;
	let again = false;
	let lastEnd = Number.NEGATIVE_INFINITY;
	/** Of one list, ms of processor time. */
	let cost = 5;
	let timer: NodeJS.Timeout | undefined;

	function map(): void {
		on.onMapped(
			mapAnswers({
				nodes,
				services,
				networks,
				tasks: [...tasks.values()],
				reportOf: (t) => said.get(t.node)?.get(t.id),
			}),
		);
	}

	async function listTasks(): Promise<Map<string, TaskFact>> {
		const facts = (raw: unknown) => array<RawTask>(raw).flatMap((t) => taskFact(t) ?? []);
		// The first list is whole, so that what drains already is known; later ones spare the history of each slot.
		const listed = facts(await engine.get(complete ? query('/tasks', { 'desired-state': ['running'] }) : '/tasks'));
		const next = new Map<string, TaskFact>();
		for (const t of listed) {
			const was = tasks.get(t.id);
			const served = was?.served === true || was?.state === 'running';
			next.set(t.id, served ? { ...t, served } : t);
		}
		const gone = [...tasks.values()].filter((t) => !next.has(t.id) && (t.served === true || t.state === 'running'));
		const ask = gone.filter((t) => !over.has(t.id));
		for (let i = 0; i < ask.length; i += CHUNK) {
			const part = ask.slice(i, i + CHUNK);
			const found = new Map(
				facts(await engine.get(query('/tasks', { id: part.map((t) => t.id) }))).map((t) => [t.id, t]),
			);
			// One that Swarm has forgotten is as over as one that it calls so.
			for (const t of part) next.set(t.id, { ...(found.get(t.id) ?? { ...t, state: 'remove' }), served: true });
		}
		for (const t of gone) if (over.has(t.id)) next.set(t.id, t);
		for (const t of next.values()) if (isOver(t) && t.served === true && !over.has(t.id)) over.set(t.id, now());
		for (const [id, at] of over) {
			if (next.has(id) && now() - at < OVER_MS) continue;
			next.delete(id);
			over.delete(id);
		}
		// History: nothing of it will ever serve.
		for (const [id, t] of next) if (isOver(t) && t.served !== true) next.delete(id);
		return next;
	}

	async function list(): Promise<void> {
		if (closed) return;
		if (running) {
			again = true;
			return;
		}
		running = true;
		again = false;
		clearTimeout(timer);
		timer = undefined;
		const cpu = cpuMs();
		const began = now();
		const whole = wantsObjects || began - objectsAt >= OBJECTS_MS;
		if (whole) wantsObjects = false;
		try {
			// Tasks last: a task whose service is not known yet would be lost until the next list.
			const objects = whole
				? await Promise.all([engine.get('/nodes'), engine.get('/services'), engine.get('/networks')])
				: undefined;
			const nextTasks = await listTasks();
			if (closed) return;
			if (objects !== undefined) {
				nodes = array<RawNode>(objects[0]);
				services = array<RawService>(objects[1]);
				networks = array<RawNetwork>(objects[2]);
				objectsAt = began;
			}
			tasks = nextTasks;
			complete = true;
			failures = 0;
			if (lastError !== '') {
				lastError = '';
				on.onRecovered();
			}
			map();
		} catch (e) {
			if (whole) wantsObjects = true;
			if (!closed) {
				failures++;
				if (sentence(e) !== lastError) {
					lastError = sentence(e);
					on.onError(e instanceof Error ? e : new Error(sentence(e)));
				}
			}
		} finally {
			running = false;
			lastEnd = now();
			// What else ran meanwhile counts too: too careful rather than too busy.
			cost = Math.max(1, cpuMs() - cpu);
			if (!closed) schedule();
		}
	}

	function schedule(): void {
		if (failures > 0) {
			arm(BACKOFF_MS[Math.min(failures, BACKOFF_MS.length) - 1]);
			return;
		}
		const hot = now() < hotUntil;
		const tick = Math.max(hot ? HOT_TICK_MS : TICK_MS, cost * (hot ? COST_FACTOR / 4 : COST_FACTOR));
		arm(again ? Math.min(tick, Math.max(0, cost * 4)) : Math.min(MAX_TICK_MS, tick));
	}

	function arm(inMs: number): void {
		clearTimeout(timer);
		timer = setTimeout(() => void list(), inMs);
	}

	void list();
	return {
		dirty(objects) {
			if (closed) return;
			wantsObjects ||= objects;
			hotUntil = now() + HOT_MS;
			if (running) {
				again = true;
				return;
			}
			const wait = lastEnd + cost * 4 - now();
			arm(failures > 0 ? BACKOFF_MS[0] : Math.max(0, wait));
		},
		reports(nodeId, reports) {
			if (reports.size === 0) said.delete(nodeId);
			else said.set(nodeId, reports);
			if (complete && !closed) map();
		},
		close() {
			closed = true;
			clearTimeout(timer);
		},
	};
}
