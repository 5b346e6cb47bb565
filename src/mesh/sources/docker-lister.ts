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
	stateOf,
	TASK_MEMBERS,
	type TaskFact,
	type TaskReport,
	taskFact,
} from './docker-map.js';
import type { Engine } from './engine.js';

export interface ListerEvents {
	/** Complete, and perhaps the same as before. `listed`: by a list, not because a node reported. */
	onMapped(mapped: Mapped, listed: boolean): void;
	/** A list failed; told once for each sentence until one succeeds. */
	onError(error: Error): void;
	/** It succeeded again. */
	onRecovered(): void;
}

export interface Lister {
	/** Something has changed: list at once. `objects`: not tasks alone. `service`, `node`: its tasks are about to change. */
	dirty(objects: boolean, hot?: { readonly service?: string; readonly node?: string }): void;
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
/** 2.5 % of a core by itself; below 5 % with the collections of garbage that each list sets off after its end. */
const COST_FACTOR = 40;
const MAX_TICK_MS = 30_000;
const BACKOFF_MS = [200, 500, 1000, 2000, 5000];
/** What is over is shown as down for so long, so that nobody waits for its flows. */
const OVER_MS = 3000;
/**
 * How long after it is first listed a task may not be delivered to yet: its node has to find its interface. Swarm waits 2 s
 * between its decision to stop a task and the signal.
 */
const YOUNG_MS = 1500;
/** A service or a node whose tasks change is looked at alone, where looking at all costs more than this, ms. */
const CHEAP_MS = 50;
/** How long after its last event. */
const ALONE_MS = 60_000;
const ALONE_TICK_MS = 500;
/** Ids in one query. */
const CHUNK = 40;

const query = (path: string, filters: Readonly<Record<string, readonly string[]>>): string =>
	`${path}?filters=${encodeURIComponent(JSON.stringify(filters))}`;

function sameFact(was: TaskFact, t: TaskFact, served: boolean): boolean {
	return (
		(was.served === true) === served &&
		was.state === t.state &&
		was.desired === t.desired &&
		was.node === t.node &&
		was.service === t.service &&
		(was.attached ?? []).join() === (t.attached ?? []).join()
	);
}

function array<T>(x: unknown): T[] {
	return Array.isArray(x) ? (x as T[]) : [];
}

interface Scope {
	readonly service: ReadonlySet<string>;
	readonly node: ReadonlySet<string>;
}

export interface ListerDeps {
	readonly engine: Pick<Engine, 'get' | 'each'>;
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
	let fullCost = 0;
	let fullAt = Number.NEGATIVE_INFINITY;
	/** `service ID` or `node ID`, and till when its tasks are looked at alone. */
	const alone = new Map<string, number>();
	let timer: NodeJS.Timeout | undefined;
	/** When each task that serves, and is young, was first listed so. */
	const since = new Map<string, number>();
	let grown: NodeJS.Timeout | undefined;
	/** Tasks that drained before: nobody who came later is their successor. */
	const drained = new Set<string>();

	/** Services whose tasks that serve are all young: what Swarm stops in their favour is kept until one of them is not. */
	function young(): ReadonlySet<string> {
		const services = new Set<string>();
		for (const [id, at] of since) if (!tasks.has(id) || now() - at >= YOUNG_MS) since.delete(id);
		clearTimeout(grown);
		if (since.size === 0) return services;
		const serving = (t: TaskFact) => stateOf(t) === 'active' && said.get(t.node)?.get(t.id)?.state === undefined;
		for (const id of since.keys()) {
			const t = tasks.get(id);
			if (t !== undefined && serving(t)) services.add(t.service);
		}
		for (const t of tasks.values())
			if (services.has(t.service) && !since.has(t.id) && serving(t)) services.delete(t.service);
		if (services.size > 0 && !closed)
			grown = setTimeout(() => map(false), Math.max(1, Math.min(...since.values()) + YOUNG_MS - now()));
		return services;
	}

	function map(listed: boolean): void {
		const kept = young();
		const ready = new Set(
			kept.size === 0 ? [] : nodes.flatMap((n) => (n.Status?.State === 'ready' ? (n.ID ?? []) : [])),
		);
		const keeps = (t: TaskFact) => kept.has(t.service) && ready.has(t.node) && !drained.has(t.id);
		for (const id of drained) if (!tasks.has(id)) drained.delete(id);
		const mapped = mapAnswers({
			nodes,
			services,
			networks,
			tasks: [...tasks.values()],
			reportOf: (t) => said.get(t.node)?.get(t.id),
			keeps,
		});
		for (const t of tasks.values()) if (stateOf(t) === 'draining' && !keeps(t)) drained.add(t.id);
		on.onMapped(mapped, listed);
	}

	async function facts(path: string): Promise<TaskFact[]> {
		const out: TaskFact[] = [];
		await engine.each(
			path,
			(raw) => {
				const t = taskFact(raw as RawTask);
				if (t !== undefined) out.push(t);
			},
			TASK_MEMBERS,
		);
		return out;
	}

	/** @param scope some services' or some nodes' tasks; undefined: all */
	async function listTasks(scope: Scope | undefined): Promise<Map<string, TaskFact>> {
		const next = new Map<string, TaskFact>();
		const listed: TaskFact[] = [];
		if (scope === undefined) {
			// The first list is whole, so that what drains already is known; later ones spare the history of each slot.
			listed.push(...(await facts(complete ? query('/tasks', { 'desired-state': ['running'] }) : '/tasks')));
		} else {
			for (const kind of ['service', 'node'] as const) {
				const ids = [...scope[kind]];
				for (let i = 0; i < ids.length; i += CHUNK)
					listed.push(
						...(await facts(query('/tasks', { 'desired-state': ['running'], [kind]: ids.slice(i, i + CHUNK) }))),
					);
			}
			// What is not looked at stays as it was.
			for (const t of tasks.values()) if (!scope.service.has(t.service) && !scope.node.has(t.node)) next.set(t.id, t);
		}
		for (const t of listed) {
			const was = tasks.get(t.id);
			const served = was?.served === true || was?.state === 'running';
			// Nearly all are what they were: the object that there is spares making one, and collecting the other.
			next.set(t.id, was !== undefined && sameFact(was, t, served) ? was : served ? { ...t, served } : t);
			// Those of the first list may be as old as the swarm.
			if (complete && !served && stateOf(t) === 'active') since.set(t.id, now());
		}
		const gone = [...tasks.values()].filter((t) => !next.has(t.id) && (t.served === true || t.state === 'running'));
		const ask = gone.filter((t) => !over.has(t.id));
		for (let i = 0; i < ask.length; i += CHUNK) {
			const part = ask.slice(i, i + CHUNK);
			const found = new Map(
				(await facts(query('/tasks', { id: part.map((t) => t.id) }))).map((t) => [t.id, t] as const),
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
		const scope = scopeAt(began);
		if (scope === undefined) fullAt = began;
		try {
			// Tasks last: a task whose service is not known yet would be lost until the next list.
			const objects = whole
				? await Promise.all([engine.get('/nodes'), engine.get('/services'), engine.get('/networks')])
				: undefined;
			const nextTasks = await listTasks(scope);
			if (closed) return;
			if (objects !== undefined) {
				nodes = array<RawNode>(objects[0]);
				services = array<RawService>(objects[1]);
				networks = array<RawNetwork>(objects[2]);
				objectsAt = began;
				for (const x of services)
					if (x.ID !== undefined && /^(updating|rollback_started)$/.test(x.UpdateStatus?.State ?? ''))
						warm('service', x.ID);
			}
			tasks = nextTasks;
			complete = true;
			failures = 0;
			if (lastError !== '') {
				lastError = '';
				on.onRecovered();
			}
			map(true);
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
			if (scope === undefined) fullCost = cost;
			if (!closed) schedule();
		}
	}

	function schedule(): void {
		if (failures > 0) {
			arm(BACKOFF_MS[Math.min(failures, BACKOFF_MS.length) - 1]);
			return;
		}
		const hot = now() < hotUntil;
		let tick = Math.max(hot ? HOT_TICK_MS : TICK_MS, cost * (hot ? COST_FACTOR / 5 : COST_FACTOR));
		if (fullCost > CHEAP_MS) {
			tick = fullAt + fullTick() - now();
			if (services.length > 0 && alone.size > 0)
				tick = Math.min(tick, Math.max(ALONE_TICK_MS, cost * (COST_FACTOR / 2)));
		}
		tick = Math.max(0, Math.min(MAX_TICK_MS, tick));
		arm(again ? Math.min(tick, cost * 4) : tick);
	}

	const fullTick = (): number => Math.min(MAX_TICK_MS, Math.max(TICK_MS, fullCost * COST_FACTOR));

	/** Whose tasks alone are looked at now; undefined: all. */
	function scopeAt(at: number): Scope | undefined {
		for (const [key, until] of alone) if (until <= at) alone.delete(key);
		if (!complete || fullCost <= CHEAP_MS || at - fullAt >= fullTick()) return undefined;
		const of = (kind: string) =>
			new Set([...alone.keys()].filter((k) => k.startsWith(kind)).map((k) => k.slice(kind.length + 1)));
		return { service: of('service'), node: of('node') };
	}

	function warm(kind: 'service' | 'node', id: string): void {
		alone.set(`${kind} ${id}`, now() + ALONE_MS);
	}

	function arm(inMs: number): void {
		clearTimeout(timer);
		timer = setTimeout(() => void list(), inMs);
	}

	void list();
	return {
		dirty(objects, hot) {
			if (closed) return;
			if (hot?.service !== undefined) warm('service', hot.service);
			if (hot?.node !== undefined) warm('node', hot.node);
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
			if (complete && !closed) map(false);
		},
		close() {
			closed = true;
			clearTimeout(timer);
			clearTimeout(grown);
		},
	};
}
