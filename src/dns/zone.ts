/** Names of networks → what an endpoint that is attached to some of them sees. Pure. */
import ipaddr from 'ipaddr.js';

/** A network with what has names on it. Addresses are text, of either family. */
export interface NamedNetwork {
	/** Its name: also the last labels of `web.red`. */
	readonly id: string;
	/** No way out: an endpoint that is on such networks alone gets nothing forwarded. */
	readonly internal?: boolean;
	readonly services: readonly NamedService[];
	readonly endpoints: readonly NamedEndpoint[];
}

export interface NamedService {
	readonly name: string;
	/** `dnsrr`: the name is all tasks; `vip`: it is the VIPs, whether there are tasks or not. */
	readonly mode: 'vip' | 'dnsrr';
	readonly vips: readonly string[];
	/** Active ones. */
	readonly tasks: readonly string[];
	readonly aliases?: readonly string[];
}

export interface NamedEndpoint {
	readonly name?: string;
	/** On this network. */
	readonly aliases: readonly string[];
	readonly addresses: readonly string[];
}

/** What a name stands for, each address once. A name may be ours and have no address (a service without tasks). */
export interface Addresses {
	readonly v4: readonly string[];
	readonly v6: readonly string[];
}

/** One network's names, lower case. */
export interface NetworkNames {
	readonly id: string;
	readonly internal: boolean;
	readonly names: ReadonlyMap<string, Addresses>;
	/** `4.3.2.1.in-addr.arpa` → `name.network`; worked out when it is first asked for. */
	reverse(): ReadonlyMap<string, string>;
}

/** What one endpoint sees. */
export interface View {
	/** In the order in which they are asked. */
	readonly networks: readonly NetworkNames[];
	/** Whether what is unknown may be asked of the node's servers. */
	readonly forward: boolean;
}

export type Family = 'v4' | 'v6';

/** Canonical text and family; undefined for what is no address. `::ffff:1.2.3.4` is IPv4. */
function canonical(address: string): { family: Family; text: string } | undefined {
	if (address.includes('%') || !ipaddr.isValid(address)) return undefined;
	const a = ipaddr.process(address);
	// ipaddr.js takes 10.1 for 10.0.0.1, as inet_aton does; nobody here means that.
	if (a.kind() === 'ipv4' && !address.includes(':') && address.split('.').length !== 4) return undefined;
	return { family: a.kind() === 'ipv4' ? 'v4' : 'v6', text: a.toString() };
}

/** The name that PTR queries ask for (RFC 1035 section 3.5, RFC 3596 section 2.5), lower case, without the last dot. */
export function reverseName(address: string): string {
	const bytes = ipaddr.process(address).toByteArray();
	if (bytes.length === 4) return `${bytes.reverse().join('.')}.in-addr.arpa`;
	const nibbles = bytes.flatMap((b) => [(b >> 4).toString(16), (b & 15).toString(16)]);
	return `${nibbles.reverse().join('.')}.ip6.arpa`;
}

/** Names compare without regard to case (RFC 4343), and without the root's dot. */
export const nameKey = (name: string): string => name.toLowerCase().replace(/\.$/, '');

/** Whether a name can be written into a message: labels of 1 to 63 bytes, 255 in all. */
export function encodable(name: string): boolean {
	const bytes = Buffer.byteLength(name);
	return bytes > 0 && bytes <= 253 && name.split('.').every((l) => l !== '' && Buffer.byteLength(l) <= 63);
}

/** @param network addresses that are none are left out */
export function namesOf(network: NamedNetwork): NetworkNames {
	const sets = new Map<string, Record<Family, Set<string>>>();
	const add = (name: string | undefined, addresses: readonly string[]): void => {
		if (name === undefined || name === '') return;
		const key = nameKey(name);
		let set = sets.get(key);
		if (set === undefined) {
			set = { v4: new Set(), v6: new Set() };
			sets.set(key, set);
		}
		for (const address of addresses) {
			const a = canonical(address);
			if (a !== undefined) set[a.family].add(a.text);
		}
	};
	for (const service of network.services) {
		for (const name of [service.name, ...(service.aliases ?? [])]) {
			add(name, service.mode === 'vip' ? service.vips : service.tasks);
			if (name !== '') add(`tasks.${name}`, service.tasks);
		}
	}
	for (const endpoint of network.endpoints)
		for (const name of [endpoint.name, ...endpoint.aliases]) add(name, endpoint.addresses);

	const names = new Map<string, Addresses>();
	for (const [key, { v4, v6 }] of sets) names.set(key, { v4: [...v4], v6: [...v6] });

	let reverse: Map<string, string> | undefined;
	return {
		id: network.id,
		internal: network.internal ?? false,
		names,
		reverse: () => {
			reverse ??= reverseOf(network);
			return reverse;
		},
	};
}

/** The first name of an address counts: an endpoint's own, then a service's for its VIPs, then `tasks.SERVICE`. */
function reverseOf(network: NamedNetwork): Map<string, string> {
	const out = new Map<string, string>();
	const add = (name: string | undefined, addresses: readonly string[]): void => {
		const full = `${name}.${network.id}`;
		if (name === undefined || !encodable(full)) return;
		for (const address of addresses) {
			if (canonical(address) === undefined) continue;
			const key = reverseName(address);
			if (!out.has(key)) out.set(key, full);
		}
	};
	for (const e of network.endpoints) add(e.name ?? e.aliases[0], e.addresses);
	for (const s of network.services) add(s.name, s.vips);
	for (const s of network.services) add(`tasks.${s.name}`, s.tasks);
	return out;
}

/**
 * The view of an endpoint. Networks are asked in the order of Docker's (libnetwork's Endpoint.Less, as far as overlay
 * networks differ): those with a way out before internal ones, then by name.
 */
export function viewOf(networks: readonly NetworkNames[]): View {
	const sorted = [...networks].sort(
		(a, b) => Number(a.internal) - Number(b.internal) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0),
	);
	return { networks: sorted, forward: sorted.some((n) => !n.internal) };
}

const NONE: readonly string[] = [];

/**
 * Addresses of a name in a view: of the first network that has one of this family. `a.b.c` is looked for as itself on every
 * network, then as `a.b` on network `c`, then as `a` on network `b.c` (libnetwork's Sandbox.ResolveName).
 *
 * @returns undefined where nobody has the name; an empty list where it is ours and has no address of this family
 */
export function addressesOf(view: View, name: string, family: Family): readonly string[] | undefined {
	const wanted = nameKey(name);
	for (let end = wanted.length; end > 0; end = wanted.lastIndexOf('.', end - 1)) {
		const key = wanted.slice(0, end);
		const of = wanted.slice(end + 1);
		let known = false;
		for (const network of view.networks) {
			if (of !== '' && nameKey(network.id) !== of) continue;
			const found = network.names.get(key);
			if (found === undefined) continue;
			if (found[family].length > 0) return found[family];
			known = true;
		}
		if (known) return NONE;
	}
	return undefined;
}

/** The name for a PTR query, or undefined. */
export function pointerOf(view: View, name: string): string | undefined {
	const key = nameKey(name);
	if (!key.endsWith('.in-addr.arpa') && !key.endsWith('.ip6.arpa')) return undefined;
	for (const network of view.networks) {
		const found = network.reverse().get(key);
		if (found !== undefined) return found;
	}
	return undefined;
}
