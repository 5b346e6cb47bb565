/** Names of networks → what an endpoint that is attached to some of them sees. Pure. */
import { isIPv4 } from 'node:net';
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

/** One network's names. */
export interface NetworkNames {
	readonly id: string;
	readonly internal: boolean;
	/** @param key a name as nameKey() has it */
	lookup(key: string): Addresses | undefined;
	/** `name.network` of an address in canonical text. */
	pointer(address: string): string | undefined;
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
	// Without this a network of 100 000 tasks takes a second.
	if (isIPv4(address)) return { family: 'v4', text: address };
	if (address.includes('%') || !address.includes(':') || !ipaddr.isValid(address)) return undefined;
	const a = ipaddr.process(address);
	return { family: a.kind() === 'ipv4' ? 'v4' : 'v6', text: a.toString() };
}

const IN_ADDR = '.in-addr.arpa';
const IP6 = '.ip6.arpa';

/** The address that a PTR query is about (RFC 1035 section 3.5, RFC 3596 section 2.5). @param key lower case */
function addressOfPointer(key: string): string | undefined {
	if (key.endsWith(IN_ADDR)) {
		const address = key.slice(0, -IN_ADDR.length).split('.').reverse().join('.');
		return isIPv4(address) ? address : undefined;
	}
	if (!key.endsWith(IP6)) return undefined;
	const nibbles = key.slice(0, -IP6.length).split('.').reverse();
	if (nibbles.length !== 32 || !nibbles.every((n) => /^[0-9a-f]$/.test(n))) return undefined;
	return canonical((nibbles.join('').match(/.{4}/g) ?? []).join(':'))?.text;
}

/** Names compare without regard to case (RFC 4343), and without the root's dot. */
export function nameKey(name: string): string {
	const lower = name.toLowerCase();
	return lower.endsWith('.') ? lower.slice(0, -1) : lower;
}

/** Whether a name can be written into a message: labels of 1 to 63 bytes, 255 in all. */
function encodable(name: string): boolean {
	const bytes = Buffer.byteLength(name);
	return bytes > 0 && bytes <= 253 && name.split('.').every((l) => l !== '' && Buffer.byteLength(l) <= 63);
}

/**
 * The names of a network. What costs something is done when it is asked for: the index with the first name, each name's
 * addresses with the first query for it, pointers with the first of those. Addresses that are none are left out.
 */
export function namesOf(network: NamedNetwork): NetworkNames {
	let index: Map<string, readonly string[] | Several> | undefined;
	let pointers: Map<string, string> | undefined;
	const known = new Map<string, Addresses>();
	return {
		id: network.id,
		internal: network.internal ?? false,
		lookup(key) {
			index ??= indexOf(network);
			const found = index.get(key);
			if (found === undefined) return undefined;
			let addresses = known.get(key);
			if (addresses === undefined) {
				const sets = { v4: new Set<string>(), v6: new Set<string>() };
				for (const list of found instanceof Several ? found.lists : [found])
					for (const address of list) {
						const a = canonical(address);
						if (a !== undefined) sets[a.family].add(a.text);
					}
				addresses = { v4: [...sets.v4], v6: [...sets.v6] };
				known.set(key, addresses);
			}
			return addresses;
		},
		pointer(address) {
			pointers ??= pointersOf(network);
			const name = pointers.get(address);
			if (name === undefined) return undefined;
			const full = `${name}.${network.id}`;
			return encodable(full) ? full : undefined;
		},
	};
}

/** Address lists of things that share a name: few names have more than one, so most need no list of lists. */
class Several {
	constructor(readonly lists: (readonly string[])[]) {}
}

/** Whose addresses each name has; several may share one (an alias), and it has them all. */
function indexOf(network: NamedNetwork): Map<string, readonly string[] | Several> {
	const index = new Map<string, readonly string[] | Several>();
	const add = (name: string | undefined, addresses: readonly string[]): void => {
		if (name === undefined || name === '') return;
		const key = nameKey(name);
		const before = index.get(key);
		if (before === undefined) index.set(key, addresses);
		else if (before instanceof Several) before.lists.push(addresses);
		else index.set(key, new Several([before, addresses]));
	};
	for (const service of network.services) {
		for (const name of [service.name, ...(service.aliases ?? [])]) {
			add(name, service.mode === 'vip' ? service.vips : service.tasks);
			if (name !== '') add(`tasks.${name}`, service.tasks);
		}
	}
	for (const endpoint of network.endpoints) {
		add(endpoint.name, endpoint.addresses);
		for (const alias of endpoint.aliases) add(alias, endpoint.addresses);
	}
	return index;
}

/** The first name of an address counts: an endpoint's own, then a service's for its VIPs, then `tasks.SERVICE`. */
function pointersOf(network: NamedNetwork): Map<string, string> {
	const out = new Map<string, string>();
	const add = (name: string | undefined, addresses: readonly string[]): void => {
		if (name === undefined || name === '') return;
		for (const address of addresses) {
			const a = canonical(address);
			if (a !== undefined && !out.has(a.text)) out.set(a.text, name);
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
			const found = network.lookup(key);
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
	const address = addressOfPointer(nameKey(name));
	if (address === undefined) return undefined;
	for (const network of view.networks) {
		const found = network.pointer(address);
		if (found !== undefined) return found;
	}
	return undefined;
}
