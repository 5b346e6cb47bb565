/** Endpoints of overlay networks as tasks of services, and as names. Pure. */
import type { NamedEndpoint, NamedNetwork } from '../dns/zone.js';
import { address6Of } from './subnets.js';
import type { Membership, NetworkEndpoint, NetworkSpec, ServiceSpec, Task } from './types.js';

/** What only an endpoint's own node knows of it. */
export interface LocalEndpoint {
	readonly id: string;
	readonly network: string;
	readonly address: string;
	readonly address6?: string;
	readonly name?: string;
	readonly aliases: readonly string[];
	readonly service?: string;
	/** Where published ports reach it: its leg on the gateway's bridge. */
	readonly legAddress?: string;
}

const ours = (n: NetworkSpec): boolean => n.driver === 'beeline';

/**
 * Endpoints that are a service's become its tasks: one task for all endpoints of a node that have one name (a container on
 * two networks), else one each. Published ports reach them in IPv4, over their node's gateway bridge.
 */
export function withEndpointTasks(m: Membership): Membership {
	const by = new Map<string, Map<string, { endpoint: NetworkEndpoint; on: Record<string, string> }>>();
	for (const n of m.networks)
		for (const e of ours(n) ? (n.endpoints ?? []) : []) {
			if (e.service === undefined) continue;
			const tasks = by.get(e.service) ?? new Map();
			by.set(e.service, tasks);
			const key = e.name === undefined ? e.id : `${e.node} ${e.name}`;
			const task = tasks.get(key);
			if (task === undefined) tasks.set(key, { endpoint: e, on: { [n.name]: e.address } });
			else task.on[n.name] = e.address;
		}
	if (by.size === 0) return m;
	const services = m.services.map((s): ServiceSpec => {
		const tasks = by.get(s.name);
		if (tasks === undefined) return s;
		return {
			...s,
			tasks: [
				...s.tasks,
				...[...tasks.values()].map(
					({ endpoint: e, on }): Task => ({
						id: e.id,
						families: [4],
						node: e.node,
						on,
						weight: 1,
						state: 'active',
					}),
				),
			],
		};
	});
	return { ...m, services };
}

/** The same with the addresses that this node alone knows: of the legs of its own endpoints. */
export function withLegs(m: Membership, self: string, local: readonly LocalEndpoint[]): Membership {
	const legs = new Map(local.flatMap((e) => (e.legAddress === undefined ? [] : [[e.id, e.legAddress] as const])));
	if (legs.size === 0) return m;
	const services = m.services.map((s): ServiceSpec => {
		if (!s.tasks.some((t) => t.node === self && t.id !== undefined && legs.has(t.id))) return s;
		return {
			...s,
			tasks: s.tasks.map((t) => {
				const address4 = t.node === self && t.id !== undefined ? legs.get(t.id) : undefined;
				return address4 === undefined ? t : { ...t, address4 };
			}),
		};
	});
	return { ...m, services };
}

/** Names of our networks: services, endpoints that the source knows, and those that only this node has. */
export function namedNetworks(m: Membership, local: readonly LocalEndpoint[]): NamedNetwork[] {
	return m.networks.filter(ours).map((n): NamedNetwork => {
		const known = new Set((n.endpoints ?? []).map((e) => e.address));
		const all: Omit<NetworkEndpoint, 'node'>[] = [
			...(n.endpoints ?? []),
			...local.filter((e) => e.network === n.name && !known.has(e.address)),
		];
		const addresses = (e: { readonly address: string; readonly address6?: string }): string[] => {
			const six = e.address6 ?? (n.subnet6 === undefined ? undefined : address6Of(n.subnet6, e.address));
			return six === undefined ? [e.address] : [e.address, six];
		};
		const tasksOf = (service: string) => all.filter((e) => e.service === service).flatMap(addresses);
		const specs = new Map(m.services.map((s) => [s.name, s]));
		const here = new Set(all.flatMap((e) => (e.service === undefined ? [] : [e.service])));
		for (const s of m.services) if (s.networks?.includes(n.name)) here.add(s.name);
		return {
			id: n.name,
			...(n.options.internal ? { internal: true } : {}),
			services: [...here].sort().map((name) => {
				const vips = (specs.get(name)?.vips ?? []).filter((v) => v.network === n.name).map((v) => v.address);
				return { name, mode: vips.length > 0 ? 'vip' : 'dnsrr', vips, tasks: tasksOf(name) } as const;
			}),
			endpoints: all.map(
				(e): NamedEndpoint => ({
					...(e.name === undefined ? {} : { name: e.name }),
					aliases: e.aliases,
					addresses: addresses(e),
				}),
			),
		};
	});
}
