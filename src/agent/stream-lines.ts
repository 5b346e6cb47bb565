/** Messages of the stream between agents: a line of JSON each. What comes in is checked before it is believed. */
import type { Socket } from 'node:net';
import type { TaskReport } from '../mesh/sources/docker-map.js';
import type { Demand } from '../mesh/sources/docker-scale.js';
import type { Membership, NetworkSpec, NodeSpec, ServiceSpec } from '../mesh/types.js';

/** Of the messages; another one is refused. */
export const PROTOCOL = 1;

export interface Position {
	/** One run of one manager's agent. */
	readonly epoch: string;
	readonly version: number;
}

export type ToManager =
	| { readonly t: 'hello'; readonly protocol: number; readonly node: string }
	| { readonly t: 'follow'; readonly at?: Position }
	| { readonly t: 'unfollow' }
	| { readonly t: 'report'; readonly tasks: Readonly<Record<string, TaskReport>>; readonly look: boolean }
	| ({ readonly t: 'demand' } & Demand)
	| { readonly t: 'ping' };

export interface Delta {
	readonly epoch: string;
	readonly from: number;
	readonly version: number;
	readonly nodes?: readonly NodeSpec[];
	readonly networks?: readonly NetworkSpec[];
	readonly services: readonly ServiceSpec[];
	readonly removed: readonly string[];
}

export type FromManager =
	| ({ readonly t: 'full'; readonly membership: Membership } & Position)
	| ({ readonly t: 'delta' } & Delta)
	| ({ readonly t: 'same' } & Position)
	/**
	 * `at`: what a follower should have by now, lines come in order. `ageMs`: since the manager last listed the swarm. Both are
	 * absent where it never did, and from agents of 0.1.0.
	 */
	| { readonly t: 'ping'; readonly at?: Position; readonly ageMs?: number }
	/** The last line of a connection that is not taken. */
	| { readonly t: 'refused'; readonly why: string };

/** What turns `before` into `after`; parts that are the same objects are the same. */
export function deltaOf(epoch: string, from: number, before: Membership, after: Membership): Delta {
	const old = new Map(before.services.map((s) => [s.name, s]));
	const names = new Set(after.services.map((s) => s.name));
	return {
		epoch,
		from,
		version: from + 1,
		...(before.nodes === after.nodes ? {} : { nodes: after.nodes }),
		...(before.networks === after.networks ? {} : { networks: after.networks }),
		services: after.services.filter((s) => old.get(s.name) !== s),
		removed: before.services.filter((s) => !names.has(s.name)).map((s) => s.name),
	};
}

export function applyDelta(m: Membership, d: Delta): Membership {
	const services = new Map(m.services.map((s) => [s.name, s]));
	for (const name of d.removed) services.delete(name);
	for (const s of d.services) services.set(s.name, s);
	return {
		nodes: d.nodes ?? m.nodes,
		networks: d.networks ?? m.networks,
		services: [...services.values()].sort((a, b) => (a.name < b.name ? -1 : 1)),
	};
}

type Json = Readonly<Record<string, unknown>>;
const isJson = (x: unknown): x is Json => typeof x === 'object' && x !== null && !Array.isArray(x);
const isCount = (x: unknown): x is number => typeof x === 'number' && Number.isSafeInteger(x) && x >= 0;
const isList = (x: unknown, ok: (y: Json) => boolean): boolean =>
	Array.isArray(x) && x.every((y) => isJson(y) && ok(y));

const isNames = (x: unknown): x is readonly string[] => Array.isArray(x) && x.every((y) => typeof y === 'string');
const isNode = (n: Json): boolean =>
	typeof n.name === 'string' && typeof n.address === 'string' && typeof n.drained === 'boolean';
const isTask = (t: Json): boolean =>
	typeof t.node === 'string' &&
	typeof t.id === 'string' &&
	Array.isArray(t.families) &&
	isCount(t.weight) &&
	(t.on === undefined || (isJson(t.on) && Object.values(t.on).every((a) => typeof a === 'string'))) &&
	(t.state === 'active' || t.state === 'draining' || t.state === 'down');
const isPort = (p: Json): boolean =>
	isCount(p.published) && isCount(p.target) && (p.protocol === 'tcp' || p.protocol === 'udp');
const isVip = (v: Json): boolean => typeof v.network === 'string' && typeof v.address === 'string';
const isService = (s: Json): boolean =>
	typeof s.name === 'string' &&
	isList(s.ports, isPort) &&
	isJson(s.options) &&
	isList(s.tasks, isTask) &&
	(s.vips === undefined || isList(s.vips, isVip)) &&
	(s.scaleFromZero === undefined || (isJson(s.scaleFromZero) && isCount(s.scaleFromZero.idleMs)));
const isNetwork = (n: Json): boolean => typeof n.name === 'string' && typeof n.subnet === 'string' && isCount(n.vni);

export function isMembership(x: unknown): x is Membership {
	return isJson(x) && isList(x.nodes, isNode) && isList(x.services, isService) && isList(x.networks, isNetwork);
}

/** @returns undefined where the line is no message that a manager sends */
export function parseFromManager(line: string): FromManager | undefined {
	const m = parse(line);
	if (m === undefined) return undefined;
	if (m.t === 'ping')
		return {
			t: 'ping',
			...(isJson(m.at) && typeof m.at.epoch === 'string' && isCount(m.at.version)
				? { at: { epoch: m.at.epoch, version: m.at.version } }
				: {}),
			...(isCount(m.ageMs) ? { ageMs: m.ageMs } : {}),
		};
	if (m.t === 'refused') return typeof m.why === 'string' ? { t: 'refused', why: m.why.slice(0, 300) } : undefined;
	if (typeof m.epoch !== 'string' || !isCount(m.version)) return undefined;
	if (m.t === 'same') return m as unknown as FromManager;
	if (m.t === 'full') return isMembership(m.membership) ? (m as unknown as FromManager) : undefined;
	if (m.t !== 'delta' || !isCount(m.from)) return undefined;
	const ok =
		(m.nodes === undefined || isList(m.nodes, isNode)) &&
		(m.networks === undefined || isList(m.networks, isNetwork)) &&
		isList(m.services, isService) &&
		Array.isArray(m.removed) &&
		m.removed.every((n) => typeof n === 'string');
	return ok ? (m as unknown as FromManager) : undefined;
}

/** @returns undefined where the line is no message that a node sends */
export function parseToManager(line: string): ToManager | undefined {
	const m = parse(line);
	if (m === undefined) return undefined;
	switch (m.t) {
		case 'hello':
			return isCount(m.protocol) && typeof m.node === 'string'
				? { t: 'hello', protocol: m.protocol, node: m.node }
				: undefined;
		case 'follow':
			return isJson(m.at) && typeof m.at.epoch === 'string' && isCount(m.at.version)
				? { t: 'follow', at: { epoch: m.at.epoch, version: m.at.version } }
				: { t: 'follow' };
		case 'unfollow':
		case 'ping':
			return { t: m.t };
		case 'demand':
			return isNames(m.wanted) && isNames(m.busy) ? { t: 'demand', wanted: m.wanted, busy: m.busy } : undefined;
		case 'report': {
			if (!isJson(m.tasks) || typeof m.look !== 'boolean') return undefined;
			const tasks: Record<string, TaskReport> = {};
			for (const [id, r] of Object.entries(m.tasks)) {
				if (!isJson(r)) return undefined;
				if (r.state !== undefined && r.state !== 'draining' && r.state !== 'down') return undefined;
				tasks[id] = {
					...(r.state === undefined ? {} : { state: r.state }),
					...(r.six === true ? { six: true } : {}),
				};
			}
			return { t: 'report', tasks, look: m.look };
		}
		default:
			return undefined;
	}
}

function parse(line: string): Json | undefined {
	try {
		const x: unknown = JSON.parse(line);
		return isJson(x) ? x : undefined;
	} catch {
		return undefined;
	}
}

/** Cuts what arrives into lines. `onBad` is called once, for a line that is longer than `maxBytes`. */
export function readLines(socket: Socket, maxBytes: number, onLine: (line: string) => void, onBad: () => void): void {
	let parts: Buffer[] = [];
	let size = 0;
	let bad = false;
	socket.on('data', (chunk: Buffer) => {
		let rest = chunk;
		while (!bad) {
			const end = rest.indexOf(10);
			const part = end === -1 ? rest : rest.subarray(0, end);
			size += part.length;
			if (size > maxBytes) {
				bad = true;
				onBad();
				return;
			}
			if (part.length > 0) parts.push(part);
			if (end === -1) return;
			const line = Buffer.concat(parts).toString('utf8');
			parts = [];
			size = 0;
			rest = rest.subarray(end + 1);
			if (line !== '') onLine(line);
			if (rest.length === 0) return;
		}
	});
}
