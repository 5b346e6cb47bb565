/** What `beeline service update|scale` and drains do to a service's document, wherever it is kept. Pure. */
import { BeelineError } from '../../errors.js';
import { backendKey, idOf } from '../keys.js';
import type { Protocol, ServiceSpec } from '../types.js';
import { parseAddress } from './document.js';

export interface BackendDocument {
	readonly node: string;
	readonly address?: string | undefined;
	readonly addresses?: readonly string[] | undefined;
	readonly weight?: number | undefined;
	readonly drain?: boolean | undefined;
}

export interface PortDocument {
	readonly published: number;
	readonly target: number;
	readonly protocol?: Protocol | undefined;
}

export interface ServiceChange {
	/** Notation of DESIGN 7.2; `null` takes one back to its default. */
	readonly options?: Readonly<Record<string, unknown>> | undefined;
	readonly ports?:
		| {
				readonly add?: readonly PortDocument[] | undefined;
				/** Those that agree with everything named here. */
				readonly remove?: readonly Partial<PortDocument>[] | undefined;
		  }
		| undefined;
	readonly backends?:
		| {
				/** One in the place of another (node and address) takes its weight. */
				readonly add?: readonly BackendDocument[] | undefined;
				readonly remove?: readonly Pick<BackendDocument, 'node' | 'address' | 'addresses'>[] | undefined;
		  }
		| undefined;
	/** How many backends take new flows: the others are drained. */
	readonly replicas?: number | undefined;
}

/** A service's document as it stands in a file or a key. */
export interface ServiceDocument {
	readonly options?: Readonly<Record<string, unknown>>;
	readonly ports?: readonly PortDocument[];
	readonly backends?: readonly BackendDocument[];
	readonly [more: string]: unknown;
}

const addressesOf = (b: Pick<BackendDocument, 'address' | 'addresses'>): string[] =>
	(b.addresses ?? (b.address === undefined ? [] : [b.address])).map((a) => parseAddress(a) ?? a).sort();
const placeText = (b: Pick<BackendDocument, 'node' | 'address' | 'addresses'>) => [b.node, ...addressesOf(b)].join(' ');
const portText = (p: Partial<PortDocument>) =>
	[p.published, p.target].filter((x) => x !== undefined).join(':') + (p.protocol === undefined ? '' : `/${p.protocol}`);

/** Whether a backend is the one that is named: by one of its addresses, by all, or, a process, by its node alone. */
function isNamed(b: BackendDocument, named: Pick<BackendDocument, 'node' | 'address' | 'addresses'>): boolean {
	const [has, wanted] = [addressesOf(b), addressesOf(named)];
	if (b.node !== named.node) return false;
	return wanted.length === 0 ? has.length === 0 : wanted.every((a) => has.includes(a));
}

function drained(b: BackendDocument, drain: boolean): BackendDocument {
	const { drain: was, ...rest } = b;
	if ((was ?? false) === drain) return b;
	return drain ? { ...rest, drain } : rest;
}

/**
 * Parts that do not change are the same objects in the result.
 * @throws BeelineError NOT_FOUND where something to be removed is not there, INVALID_CONFIG, CONFLICT
 */
export function changeService(name: string, document: ServiceDocument, change: ServiceChange): ServiceDocument {
	let { options, ports = [], backends = [] } = document;
	if (change.options !== undefined) {
		const next: Record<string, unknown> = { ...options };
		for (const [key, v] of Object.entries(change.options))
			if (v === null) delete next[key];
			else if (v !== undefined) next[key] = v;
		options = next;
	}
	for (const p of change.ports?.remove ?? []) {
		const stay = ports.filter(
			(q) =>
				(p.published !== undefined && p.published !== q.published) ||
				(p.target !== undefined && p.target !== q.target) ||
				(p.protocol !== undefined && p.protocol !== (q.protocol ?? 'tcp')),
		);
		if (stay.length === ports.length)
			throw new BeelineError(
				'NOT_FOUND',
				`service ${name} publishes no port ${portText(p)}: look with beeline services`,
			);
		ports = stay;
	}
	for (const p of change.ports?.add ?? []) {
		// Docker's --publish-add: another target for what is published already takes its place.
		const is = (q: PortDocument) => q.published === p.published && (q.protocol ?? 'tcp') === (p.protocol ?? 'tcp');
		ports = [...ports.filter((q) => !is(q)), p];
	}
	for (const b of change.backends?.remove ?? []) {
		const stay = backends.filter((x) => !isNamed(x, b));
		if (stay.length === backends.length)
			throw new BeelineError('NOT_FOUND', `service ${name} has no backend ${placeText(b)}: look with beeline backends`);
		backends = stay;
	}
	for (const b of change.backends?.add ?? []) {
		const at = backends.findIndex((x) => placeText(x) === placeText(b));
		backends = at < 0 ? [...backends, b] : backends.map((x, i) => (i === at ? { ...x, ...b } : x));
	}
	if (change.replicas !== undefined) {
		if (change.replicas > backends.length)
			throw new BeelineError(
				'CONFLICT',
				`service ${name} has ${backends.length} backends, and Beeline starts no processes: add some with beeline service update --backend-add NODE=ADDRESS ${name}`,
			);
		// Down: the last ones rest. Up: the first that rest work again.
		let surplus = backends.filter((b) => b.drain !== true).length - change.replicas;
		if (surplus > 0)
			backends = backends
				.map((b) => b)
				.reverse()
				.map((b) => (b.drain !== true && surplus-- > 0 ? drained(b, true) : b))
				.reverse();
		else backends = backends.map((b) => (b.drain === true && surplus++ < 0 ? drained(b, false) : b));
	}
	return {
		...document,
		...(change.options === undefined ? {} : { options: options ?? {} }),
		...(change.ports === undefined ? {} : { ports }),
		...(change.backends === undefined && change.replicas === undefined ? {} : { backends }),
	};
}

/**
 * Drains or undrains one backend, named by its id. In a document a backend is one item for all ports of its service: they
 * drain together. undefined: it is none of this service.
 */
export function drainBackend(
	document: ServiceDocument,
	spec: ServiceSpec,
	id: string,
	drain: boolean,
): ServiceDocument | undefined {
	const at = spec.tasks.findIndex((t) =>
		spec.ports.some((p) => idOf(backendKey(spec.name, t, p.target, p.protocol)) === id),
	);
	if (at < 0) return undefined;
	return { ...document, backends: (document.backends ?? []).map((b, i) => (i === at ? drained(b, drain) : b)) };
}
