/** What a mesh asks of the facts of this node. Facts are read beside the loop, and what they were not read for must wait. Pure. */
import type { Mesh, MeshService } from '../mesh/plan.js';

interface OfService {
	/** The rest as one string. */
	readonly text: string;
	/** Published ports: who else answers them must be known before they are taken. */
	readonly frontends: readonly string[];
	/** Backends on this node, by key: `key addresses`. */
	readonly backends: ReadonlyMap<string, string>;
}

/** What facts are read for. */
export interface Asked {
	/** `name=address` */
	readonly nodes: ReadonlySet<string>;
	readonly services: ReadonlyMap<string, OfService>;
}

/** What stays as it was until facts know of it. */
export interface Held {
	/** Names of nodes: the way to them is not known. */
	readonly nodes: ReadonlySet<string>;
	/** Names of services that publish or leave ports: one that gives its port to another goes together with it. */
	readonly services: ReadonlySet<string>;
	/** Keys of backends on this node: their interface is not known. */
	readonly backends: ReadonlySet<string>;
}

export const NOTHING_HELD: Held = { nodes: new Set(), services: new Set(), backends: new Set() };

export function holds(h: Held): boolean {
	return h.nodes.size + h.services.size + h.backends.size > 0;
}

const known = new WeakMap<MeshService, { readonly self: string; readonly asked: OfService }>();

function ofService(s: MeshService, self: string): OfService {
	// A service that did not change is the same object: its 100 backends need not be gone through again.
	const was = known.get(s);
	if (was?.self === self) return was.asked;
	const frontends: string[] = [];
	const backends = new Map<string, string>();
	for (const f of s.frontends) if (!f.leaving) frontends.push(`${f.key}${s.options.allow.length > 0 ? '+' : ''}`);
	for (const b of s.backends)
		if (b.node === self && !b.gone) backends.set(b.key, `${b.key} ${b.address4} ${b.address6}`);
	const asked = { text: [...frontends, ...backends.values()].join(), frontends, backends };
	known.set(s, { self, asked });
	return asked;
}

/** What `mesh` asks of the facts of its node. */
export function asked(mesh: Mesh): Asked {
	return {
		nodes: new Set([...mesh.nodes.values()].map((n) => `${n.name}=${n.address}`)),
		services: new Map([...mesh.services.values()].map((s) => [s.name, ofService(s, mesh.self)])),
	};
}

/** undefined: `wants` is what facts were read for. Otherwise what of it they do not know, which may be nothing. */
export function newIn(wants: Asked, seen: Asked): Held | undefined {
	const nodes = new Set<string>();
	const published = new Set<string>();
	const left = new Set<string>();
	const backends = new Set<string>();
	let same = wants.nodes.size === seen.nodes.size && wants.services.size === seen.services.size;
	for (const n of wants.nodes) if (!seen.nodes.has(n)) nodes.add(n.slice(0, n.lastIndexOf('=')));
	for (const [name, s] of wants.services) {
		const was = seen.services.get(name);
		if (was?.text === s.text) continue;
		same = false;
		if (s.frontends.some((f) => was?.frontends.includes(f) !== true)) published.add(name);
		if (was?.frontends.some((f) => !s.frontends.includes(f))) left.add(name);
		for (const [key, text] of s.backends) if (was?.backends.get(key) !== text) backends.add(key);
	}
	if (same && nodes.size === 0) return undefined;
	if (published.size > 0) {
		for (const name of seen.services.keys()) if (!wants.services.has(name)) left.add(name);
		for (const name of left) published.add(name);
	}
	return { nodes, services: published, backends };
}
