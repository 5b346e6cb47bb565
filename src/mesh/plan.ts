/** Membership (observed) → Mesh (desired). Pure: time, health and the Mesh before come in as arguments. */
import { codeOfHash, hash40, hash64, macOfCode, toBigInt } from './hash.js';
import { backendKey, idOf } from './keys.js';
import { tableSize } from './maglev.js';
import type {
	BackendState,
	Family,
	Membership,
	NetworkSpec,
	NodeSpec,
	Protocol,
	ServiceOptions,
	ServiceSpec,
	Task,
} from './types.js';
import { type MeshVips, planVips } from './vips.js';

/** One item per service, (node, task or address), target port and protocol; both families together. */
export interface MeshBackend {
	/** URL-safe; the same on every node. */
	readonly id: string;
	/** Stable key: what tables are sorted by and MACs are made from. */
	readonly key: string;
	/** 06 + 40 bits of the key's hash, unique in the mesh. */
	readonly mac: string;
	/** The MAC's 48 bits. */
	readonly macCode: number;
	/** The 40 bits. */
	readonly hash: number;
	/** Where its permutation of a Maglev table starts, and how it goes on. */
	readonly offset: number;
	readonly skip: number;
	readonly service: string;
	readonly node: string;
	/** Neither, and no `families`: a process on the node itself, in both families. */
	readonly address4: string | undefined;
	readonly address6: string | undefined;
	/** Networks that it answers on-link, beside its gateway's; known on its own node only. */
	readonly onLink: readonly string[];
	/** Where it listens, if not on `address4`, which only says behind which interface it is. */
	readonly listens4: string | undefined;
	/** Of a task whose addresses only its own node knows. */
	readonly families: readonly Family[] | undefined;
	readonly target: number;
	readonly protocol: Protocol;
	readonly weight: number;
	readonly state: BackendState;
	/** Not in the membership any more; kept until its flows are done or drainTimeout is over. */
	readonly leaving: boolean;
	/** Drained, and its drainTimeout is over: it has no row and no flow. */
	readonly gone: boolean;
	/** When it began to drain, ms. */
	readonly drainingSinceMs: number | undefined;
}

/** A backend's place in a table. */
export interface Member {
	readonly backend: MeshBackend;
	/** ≥ 1 */
	readonly weight: number;
	/** Its slots are dealt to the others. */
	readonly down: boolean;
}

/** One published port of one service. */
export interface MeshFrontend {
	/** `web/tcp/8080` */
	readonly key: string;
	readonly published: number;
	readonly target: number;
	readonly protocol: Protocol;
	/** Sorted by key. Empty: the family has no backend. */
	readonly members4: readonly Member[];
	readonly members6: readonly Member[];
	/** Slots. */
	readonly size4: number;
	readonly size6: number;
	/** Going back to the kernel's mesh: no new flows, until the service's `leavingUntilMs`. */
	readonly leaving: boolean;
}

export interface MeshService {
	readonly name: string;
	readonly options: ServiceOptions;
	readonly frontends: readonly MeshFrontend[];
	/** Sorted by key. */
	readonly backends: readonly MeshBackend[];
	/** Of what every node must agree on. */
	readonly digest: bigint;
	/** When something changes by time alone, ms. */
	readonly wakeAtMs?: number;
	readonly leavingUntilMs?: number;
	/** What it was planned from; undefined: it has left the membership. */
	readonly spec?: ServiceSpec;
}

export interface MeshNode {
	readonly name: string;
	readonly address: string;
	readonly drained: boolean;
	/** Not in the membership any more; its row stays while flows may enter or leave by it. */
	readonly leaving: boolean;
	readonly leavingSinceMs?: number;
}

/** What this node has seen of the others. */
export interface Health {
	/** Names of nodes that do not answer. */
	readonly downNodes: ReadonlySet<string>;
	/** Keys of backends that cannot be delivered to. */
	readonly downBackends: ReadonlySet<string>;
}

export const HEALTHY: Health = { downNodes: new Set(), downBackends: new Set() };

/** The desired state of the mesh, as this node is to see it. */
export interface Mesh {
	readonly self: string;
	readonly nodes: ReadonlyMap<string, MeshNode>;
	readonly services: ReadonlyMap<string, MeshService>;
	readonly networks: readonly NetworkSpec[];
	/** VIPs inside the networks. */
	readonly vips: MeshVips;
	readonly health: Health;
	/** Of all services: nodes with the same membership have the same digest, whatever each has seen or prefers. */
	readonly digest: bigint;
	/** When something changes by time alone, ms; undefined: never. */
	readonly wakeAtMs?: number;
	/** Two keys share their 40 bits. */
	readonly collides?: true;
}

export interface PlanInput {
	readonly membership: Membership;
	/** Name of this node. */
	readonly self: string;
	readonly health: Health;
	/** Any monotonic clock, ms. */
	readonly nowMs: number;
	/** The Mesh before: what drains since when, and what need not be worked out again. */
	readonly previous?: Mesh;
}

/** How long a removed node's row stays for flows that entered by it. */
export const NODE_LEAVES_MS = 60_000;

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function family(b: MeshBackend, f: Family): boolean {
	if (b.families !== undefined) return b.families.includes(f);
	if (b.address4 === undefined && b.address6 === undefined) return true;
	return (f === 4 ? b.address4 : b.address6) !== undefined;
}

/** Of the cluster, the same for ever: another seed would move every flow. */
const TABLE_SEED = 0x6d61676c;

/** What the backends of one service and target have in common. */
interface Common {
	readonly service: string;
	readonly target: number;
	readonly protocol: Protocol;
}

interface Status {
	readonly state: BackendState;
	readonly leaving: boolean;
	readonly gone: boolean;
	readonly drainingSinceMs: number | undefined;
}
/** A status that lacks nothing but the health. */
const unwellOf = (b: Planned): Status =>
	b.state === 'active' ? DOWN : { state: 'down', leaving: b.leaving, gone: b.gone, drainingSinceMs: b.drainingSinceMs };
const ACTIVE: Status = { state: 'active', leaving: false, gone: false, drainingSinceMs: undefined };
const DOWN: Status = { ...ACTIVE, state: 'down' };

/** What of a task a backend shows. */
type Place = Pick<Task, 'id' | 'node' | 'address4' | 'address6' | 'onLink' | 'elsewhere' | 'weight' | 'families'>;
const NO_NETWORKS: readonly string[] = [];

/**
 * A backend that holds what no other has, in numbers that need no memory of their own, and leads to the rest: there may be
 * 100 000, and as plain objects they were most of the agent. It also is its own place in a table wherever it serves.
 */
class Planned implements MeshBackend, Member {
	private constructor(
		private readonly common: Common,
		private readonly place: Place,
		private readonly status: Status,
		/** undefined: its own hash. */
		private readonly otherMac: number | undefined,
		private readonly hashLow: number,
		private readonly hashHigh: number,
		private readonly start: number,
		private readonly step: number,
	) {}

	static make(common: Common, key: string, place: Place, status: Status, otherMac: number | undefined): Planned {
		const own = hash64(key);
		const table = hash64(key, TABLE_SEED);
		return new Planned(common, place, status, otherMac, own.low | 0, own.high & 255, table.low | 0, table.high | 0);
	}

	/** The same backend, its hashes not worked out again. */
	again(common: Common, place: Place, status: Status, otherMac: number | undefined): Planned {
		return new Planned(common, place, status, otherMac, this.hashLow, this.hashHigh, this.start, this.step);
	}

	as(status: Status): Planned {
		return this.again(this.common, this.place, status, this.otherMac);
	}

	/** What leads to it after its task has left the membership. */
	get origin(): Place {
		return this.place;
	}
	get key(): string {
		return backendKey(this.common.service, this.place, this.common.target, this.common.protocol);
	}
	get id(): string {
		return idOf(this.key);
	}
	get hash(): number {
		return this.hashHigh * 4294967296 + (this.hashLow >>> 0);
	}
	get macCode(): number {
		return this.otherMac ?? codeOfHash(this.hash);
	}
	get mac(): string {
		return macOfCode(this.macCode);
	}
	get offset(): number {
		return this.start >>> 0;
	}
	get skip(): number {
		return this.step >>> 0;
	}
	get service(): string {
		return this.common.service;
	}
	get target(): number {
		return this.common.target;
	}
	get protocol(): Protocol {
		return this.common.protocol;
	}
	get node(): string {
		return this.place.node;
	}
	get address4(): string | undefined {
		return this.place.address4;
	}
	get address6(): string | undefined {
		return this.place.address6;
	}
	get onLink(): readonly string[] {
		return this.place.onLink ?? NO_NETWORKS;
	}
	get listens4(): string | undefined {
		const { elsewhere } = this.place;
		return elsewhere?.ports.includes(`${this.protocol}/${this.target}`) ? elsewhere.address4 : undefined;
	}
	get families(): readonly Family[] | undefined {
		return this.place.families;
	}
	get weight(): number {
		return this.place.weight;
	}
	get state(): BackendState {
		return this.status.state;
	}
	get leaving(): boolean {
		return this.status.leaving;
	}
	get gone(): boolean {
		return this.status.gone;
	}
	get drainingSinceMs(): number | undefined {
		return this.status.drainingSinceMs;
	}
	get backend(): MeshBackend {
		return this;
	}
	get down(): boolean {
		return this.status.state === 'down';
	}
}

interface Draft {
	readonly key: string;
	backend: Planned;
	/** Down by health alone: spared where it would be the last. */
	unwell: boolean;
	/** Unwell for more than its node's silence: nothing leads to it yet. */
	readonly unknown: boolean;
}

/**
 * Who may be in a table. The first of these groups that has anyone: serving, of weight 0, draining, down. `holds`: whoever
 * comes is held rather than sent to a task that is being stopped.
 */
function membersOf(
	backends: readonly Planned[],
	target: number,
	protocol: Protocol,
	f: Family,
	preferred: string | undefined,
	holds: boolean,
): readonly Member[] {
	const here = backends.filter((b) => b.target === target && b.protocol === protocol && family(b, f) && !b.gone);
	let weighed = here.filter((b) => b.state !== 'draining' && b.weight > 0);
	if (weighed.some((b) => b.state === 'active')) {
		if (preferred !== undefined && weighed.some((b) => b.state === 'active' && b.node === preferred))
			weighed = weighed.filter((b) => b.node === preferred);
		// Where all serve, the list that there is anyway.
		return weighed.length === backends.length ? backends : weighed;
	}
	for (const state of ['active', 'draining', 'down'] as const) {
		if (holds && state === 'draining') continue;
		const group = here.filter((b) => b.state === state);
		if (group.length > 0) return group.map((b) => ({ backend: b, weight: Math.max(1, b.weight), down: false }));
	}
	return [];
}

function sameFamilies(a: readonly Family[] | undefined, b: readonly Family[] | undefined): boolean {
	return a === b || (a !== undefined && b !== undefined && a.length === b.length && a.every((f, i) => f === b[i]));
}

/** A process on the node itself: it has no address of its own. */
export function isProcess(b: Pick<MeshBackend, 'address4' | 'address6' | 'families'>): boolean {
	return b.address4 === undefined && b.address6 === undefined && b.families === undefined;
}

/** Of two with the same key. */
function sameBackend(a: Planned, b: Planned): boolean {
	return (
		a.macCode === b.macCode &&
		a.address4 === b.address4 &&
		a.address6 === b.address6 &&
		sameFamilies(a.families, b.families) &&
		(a.onLink === b.onLink || a.onLink.join() === b.onLink.join()) &&
		a.listens4 === b.listens4 &&
		a.weight === b.weight &&
		a.state === b.state &&
		a.leaving === b.leaving &&
		a.gone === b.gone &&
		a.drainingSinceMs === b.drainingSinceMs
	);
}

function sameMembers(a: readonly Member[], b: readonly Member[]): boolean {
	return (
		a === b ||
		(a.length === b.length &&
			a.every((m, i) => m.backend === b[i].backend && m.weight === b[i].weight && m.down === b[i].down))
	);
}

interface Context {
	readonly nodes: ReadonlyMap<string, NodeSpec>;
	readonly input: PlanInput;
	/** MACs of keys whose own hash another key has. */
	readonly macs: ReadonlyMap<string, number>;
}

function planService(
	name: string,
	spec: ServiceSpec | undefined,
	old: MeshService | undefined,
	c: Context,
): MeshService {
	const { input, nodes } = c;
	const { health, self, nowMs } = input;
	const options = spec?.options ?? (old as MeshService).options;
	const serves = spec?.options.enable ?? false;
	const before = new Map(((old?.backends ?? []) as readonly Planned[]).map((b) => [b.key, b]));
	const drafts: Draft[] = [];
	const seen = new Set<string>();
	const add = (
		key: string,
		was: Planned | undefined,
		place: Place,
		common: Common,
		state: BackendState,
		leaving: boolean,
		unwell: boolean,
	) => {
		const other = c.macs.get(key);
		const status: Status =
			state === 'active'
				? ACTIVE
				: state === 'down'
					? DOWN
					: { state, leaving, gone: false, drainingSinceMs: was?.drainingSinceMs ?? nowMs };
		const backend = was ? was.again(common, place, status, other) : Planned.make(common, key, place, status, other);
		drafts.push({ key, backend, unwell, unknown: health.downBackends.has(key) });
	};
	for (const { target, protocol } of spec?.ports ?? []) {
		const common: Common = { service: name, target, protocol };
		for (const t of spec?.tasks ?? []) {
			const node = nodes.get(t.node);
			if (node === undefined) continue;
			const key = backendKey(name, t, target, protocol);
			if (seen.has(key)) continue;
			seen.add(key);
			const down = t.state === 'down';
			const drains = t.state === 'draining' || node.drained || !serves;
			const unwell = (t.node !== self && health.downNodes.has(t.node)) || health.downBackends.has(key);
			const state = down ? 'down' : drains ? 'draining' : 'active';
			add(key, before.get(key), t, common, state, false, unwell && !down);
		}
	}
	if (old?.spec !== undefined || spec === undefined) {
		// One that its source called down has no flow to wait for. One that only we cannot reach may have.
		const dead = new Set<string>();
		for (const t of old?.spec?.tasks ?? [])
			if (t.state === 'down')
				for (const p of old?.spec?.ports ?? []) dead.add(backendKey(name, t, p.target, p.protocol));
		for (const [key, b] of before)
			if (!seen.has(key) && !b.gone && !dead.has(key)) {
				const common: Common = { service: name, target: b.target, protocol: b.protocol };
				add(key, b, b.origin, common, 'draining', true, b.node !== self && health.downNodes.has(b.node));
			}
	}

	// A false alarm about every backend must not take a service down: what all seem to have, none has. That nothing leads to
	// one yet is no alarm, so what is being drained serves until then; it cannot stand in for silent nodes, whose open flows
	// would go to it (docs/decisions/0044).
	const holds = spec?.scaleFromZero !== undefined;
	const isServing = (d: Draft): boolean => {
		const { drainingSinceMs: since, leaving } = d.backend;
		return since !== undefined && !d.unwell && !leaving && !holds && nowMs < since + options.drainTimeoutMs;
	};
	for (const f of [4, 6] as const) {
		const candidates = drafts.filter((d) => d.backend.state === 'active' && family(d.backend, f));
		if (!candidates.every((d) => d.unwell)) continue;
		const silent = candidates.filter((d) => !d.unknown);
		if (silent.length === 0 && drafts.some((d) => isServing(d) && family(d.backend, f))) continue;
		for (const d of silent.length > 0 ? silent : candidates) d.unwell = false;
	}
	drafts.sort((a, b) => compare(a.key, b.key));
	for (const d of drafts) if (d.unwell) d.backend = d.backend.as(unwellOf(d.backend));
	let backends: Planned[] = drafts.map((d) => d.backend);

	const tableOf = (list: readonly Planned[], target: number, protocol: Protocol, f: Family) =>
		membersOf(list, target, protocol, f, options.prefer === 'local' ? self : undefined, holds);
	let wakeAtMs: number | undefined;
	const wake = (ms: number) => {
		wakeAtMs = wakeAtMs === undefined ? ms : Math.min(wakeAtMs, ms);
	};
	if (backends.some((b) => b.drainingSinceMs !== undefined)) {
		// Drained ones go when their time is over, unless a table has nobody else.
		const inUse = new Set<MeshBackend>();
		if (serves)
			for (const p of spec?.ports ?? [])
				for (const f of [4, 6] as const)
					for (const m of tableOf(backends, p.target, p.protocol, f)) inUse.add(m.backend);
		backends = backends.flatMap((b) => {
			if (b.drainingSinceMs === undefined) return [b];
			const until = b.drainingSinceMs + options.drainTimeoutMs;
			if (nowMs < until) wake(until);
			else if (b.leaving) return [];
			else if (!inUse.has(b))
				return [b.as({ state: b.state, leaving: b.leaving, gone: true, drainingSinceMs: b.drainingSinceMs })];
			return [b];
		});
	}
	if (before.size > 0)
		backends = backends.map((b) => {
			const was = before.get(b.key);
			return was && sameBackend(was, b) ? was : b;
		});

	// A port that was served and is not any more goes back to whoever served it before us.
	const ports = serves ? (spec?.ports ?? []) : [];
	const leftovers = (old?.frontends ?? []).filter(
		(f) => !ports.some((p) => p.published === f.published && p.protocol === f.protocol),
	);
	const leavingUntilMs = leftovers.length === 0 ? undefined : (old?.leavingUntilMs ?? nowMs + options.drainTimeoutMs);
	const frontends: MeshFrontend[] = [];
	const frontend = (published: number, target: number, protocol: Protocol, leaving: boolean) => {
		const key = `${name}/${protocol}/${published}`;
		const list4 = tableOf(backends, target, protocol, 4);
		const list6 = tableOf(backends, target, protocol, 6);
		const was = old?.frontends.find((f) => f.key === key);
		const size = (n: number) => (options.tableSize === 'auto' ? tableSize(n) : options.tableSize);
		const members4 = was && sameMembers(was.members4, list4) ? was.members4 : list4;
		const members6 = was && sameMembers(was.members6, list6) ? was.members6 : list6;
		frontends.push({
			key,
			published,
			target,
			protocol,
			members4,
			members6,
			size4: size(members4.length),
			size6: size(members6.length),
			leaving,
		});
	};
	for (const p of ports) frontend(p.published, p.target, p.protocol, false);
	if (leavingUntilMs !== undefined && nowMs < leavingUntilMs) {
		wake(leavingUntilMs);
		for (const f of leftovers) frontend(f.published, f.target, f.protocol, true);
	}

	const agreed = serves
		? backends.filter((b) => !b.leaving).map((b) => `${b.key}=${b.weight}${drainsBySource(b, spec, nodes) ? 'd' : ''}`)
		: [];
	const digest = toBigInt(
		hash64(
			`${ports.map((p) => `${p.protocol}/${p.published}/${p.target}`).join()} ${options.tableSize} ${agreed.join()}`,
		),
	);
	return {
		name,
		options,
		frontends,
		backends,
		digest,
		...(wakeAtMs === undefined ? {} : { wakeAtMs }),
		...(leavingUntilMs === undefined ? {} : { leavingUntilMs }),
		...(spec ? { spec } : {}),
	};
}

/** Draining as every node must see it: what one has seen of another's health does not count. */
function drainsBySource(b: MeshBackend, spec: ServiceSpec | undefined, nodes: ReadonlyMap<string, NodeSpec>): boolean {
	return b.drainingSinceMs !== undefined || (nodes.get(b.node)?.drained ?? false) || spec === undefined;
}

function differing<T>(a: ReadonlySet<T>, b: ReadonlySet<T>): T[] {
	return [...a].filter((x) => !b.has(x)).concat([...b].filter((x) => !a.has(x)));
}

/** Keys that share their 40 bits with another: all but the first of each get the MAC of the next free hash. */
function collisions(services: Iterable<MeshService>): Map<string, number> {
	const lists = [...services].map((s) => s.backends);
	let n = 0;
	for (const l of lists) n += l.length;
	let slots = 1024;
	while (slots < n * 2) slots *= 2;
	// Open addressing, since a Map of 100 000 numbers made anew for each change would be most of its cost.
	const seen = new Float64Array(slots).fill(-1);
	const find = (hash: number): number => {
		let i = hash & (slots - 1);
		while (seen[i] !== -1 && seen[i] !== hash) i = (i + 1) & (slots - 1);
		return i;
	};
	const shared = new Set<number>();
	for (const l of lists)
		for (let k = 0; k < l.length; k++) {
			const { hash } = l[k];
			const i = find(hash);
			if (seen[i] === hash) shared.add(hash);
			seen[i] = hash;
		}
	const out = new Map<string, number>();
	if (shared.size === 0) return out;
	const keys = new Set(lists.flatMap((l) => l.filter((b) => shared.has(b.hash)).map((b) => b.key)));
	const owner = new Set<number>();
	for (const key of [...keys].sort(compare)) {
		const own = hash40(hash64(key));
		if (!owner.has(own)) {
			owner.add(own);
			continue;
		}
		for (let i = 1; ; i++) {
			const hash = hash40(hash64(`${key}#${i}`));
			if (owner.has(hash) || seen[find(hash)] === hash) continue;
			owner.add(hash);
			out.set(key, codeOfHash(hash));
			break;
		}
	}
	return out;
}

/** Places of the filter before the set: most of 100 000 backends are told from a few new ones by it. */
const FILTER = 4096;

/** Whether a backend that `previous`, where none collided, did not have shares its 40 bits with another. */
function mayCollide(services: ReadonlyMap<string, MeshService>, previous: Mesh): boolean {
	const fresh = new Set<number>();
	const filter = new Uint8Array(FILTER);
	for (const s of services.values()) {
		const old = previous.services.get(s.name);
		if (old === s) continue;
		const had = new Set(old?.backends.map((b) => b.hash));
		const mine = new Set<number>();
		for (const { hash } of s.backends) {
			// Its own service may hold the other one, which it did before.
			if (mine.has(hash)) return true;
			mine.add(hash);
			if (had.has(hash)) continue;
			if (fresh.has(hash) || fresh.size === FILTER) return true;
			fresh.add(hash);
			filter[hash & (FILTER - 1)] = 1;
		}
	}
	if (fresh.size === 0) return false;
	let found = 0;
	for (const s of services.values())
		for (const { hash } of s.backends) if (filter[hash & (FILTER - 1)] === 1 && fresh.has(hash)) found++;
	return found !== fresh.size;
}

/**
 * Works out what should be. Services and backends that did not change are the same objects as in `previous`, so that
 * whoever comes after can tell by looking.
 */
export function plan(input: PlanInput): Mesh {
	const { membership, self, health, nowMs, previous } = input;
	const specs = new Map(membership.nodes.map((n) => [n.name, n]));
	const changed = new Set<string>();
	if (previous) {
		for (const n of differing(previous.health.downNodes, health.downNodes)) changed.add(n);
		for (const n of specs.values()) {
			const was = previous.nodes.get(n.name);
			if (!was || was.leaving || was.drained !== n.drained || was.address !== n.address) changed.add(n.name);
		}
		for (const n of previous.nodes.values()) if (!n.leaving && !specs.has(n.name)) changed.add(n.name);
	}
	const changedKeys = new Set(previous ? differing(previous.health.downBackends, health.downBackends) : []);
	const touched = (s: MeshService, spec: ServiceSpec): boolean =>
		(changed.size > 0 && spec.tasks.some((t) => changed.has(t.node))) ||
		(changed.size > 0 && s.backends.some((b) => changed.has(b.node))) ||
		(changedKeys.size > 0 && s.backends.some((b) => changedKeys.has(b.key)));

	const work = (macs: ReadonlyMap<string, number>, all: boolean): [Map<string, MeshService>, boolean] => {
		const context: Context = { nodes: specs, input, macs };
		const services = new Map<string, MeshService>();
		let anyNew = false;
		for (const spec of membership.services) {
			const old = previous?.services.get(spec.name);
			const rests =
				!all &&
				old !== undefined &&
				old.spec === spec &&
				(old.wakeAtMs === undefined || nowMs < old.wakeAtMs) &&
				previous?.self === self &&
				!touched(old, spec);
			const next = rests ? old : planService(spec.name, spec, old, context);
			if (next !== old) anyNew = true;
			services.set(spec.name, next);
		}
		for (const old of previous?.services.values() ?? [])
			if (!services.has(old.name)) {
				anyNew = true;
				const next = planService(old.name, undefined, old, context);
				if (next.frontends.length > 0 && next.backends.length > 0) services.set(old.name, next);
			}
		return [services, anyNew];
	};
	let [services, anyNew] = work(new Map(), false);
	let collides = previous?.collides ?? false;
	if (anyNew && (previous === undefined || collides || mayCollide(services, previous))) {
		const macs = collisions(services.values());
		collides = macs.size > 0;
		if (collides) [services] = work(macs, true);
	}

	const nodes = new Map<string, MeshNode>();
	for (const n of membership.nodes)
		nodes.set(n.name, { name: n.name, address: n.address, drained: n.drained, leaving: false });
	let wakeAtMs: number | undefined;
	const wake = (ms: number | undefined) => {
		if (ms !== undefined) wakeAtMs = wakeAtMs === undefined ? ms : Math.min(wakeAtMs, ms);
	};
	const addresses = new Set(membership.nodes.map((n) => n.address));
	for (const n of previous?.nodes.values() ?? []) {
		if (nodes.has(n.name) || addresses.has(n.address)) continue;
		const leavingSinceMs = n.leavingSinceMs ?? nowMs;
		const needed = [...services.values()].some((s) => s.backends.some((b) => b.node === n.name && !b.gone));
		if (!needed && nowMs >= leavingSinceMs + NODE_LEAVES_MS) continue;
		if (!needed) wake(leavingSinceMs + NODE_LEAVES_MS);
		nodes.set(n.name, { ...n, leaving: true, leavingSinceMs });
	}
	let digest = 0n;
	for (const s of services.values()) {
		wake(s.wakeAtMs);
		// Of tables that packets meet: whoever dials a VIP asks no other node.
		if (s.frontends.length === 0 && s.backends.length === 0) continue;
		digest ^= BigInt.asUintN(64, s.digest * 0x9e3779b97f4a7c15n + toBigInt(hash64(s.name)));
	}
	return {
		self,
		nodes,
		services,
		networks: membership.networks,
		vips: planVips(membership, self, health, previous?.vips),
		health,
		digest,
		...(wakeAtMs === undefined ? {} : { wakeAtMs }),
		...(collides ? { collides } : {}),
	};
}

/** All backends of a mesh, by id. */
export function backendsById(mesh: Mesh): Map<string, MeshBackend> {
	const out = new Map<string, MeshBackend>();
	for (const s of mesh.services.values()) for (const b of s.backends) out.set(b.id, b);
	return out;
}
