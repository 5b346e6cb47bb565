/** Overlay networks as the agent offers them: what exists, what this node has attached, and the commands for it. */

import type { Logger } from 'pino';
import type { NameService } from '../dns/server.js';
import type { NamedNetwork } from '../dns/zone.js';
import { sentence } from '../errors.js';
import type {
	EndpointAttachBody,
	EndpointView,
	NetworkCreateBody,
	NetworkView,
	ServiceCreateBody,
} from '../http/schemas.js';
import type { Datapath } from '../loader/datapath.js';
import { type LocalEndpoint, namedNetworks, withLegs } from '../mesh/endpoints.js';
import type { OverlayEndpointFact } from '../mesh/overlay.js';
import type { Addresses } from '../mesh/sources/etcd-store.js';
import { freeSubnet, gatewayOf, localSubnet6 } from '../mesh/subnets.js';
import type { Membership, NetworkSpec } from '../mesh/types.js';
import { AgentError } from './api.js';
import { type AttachedEndpoint, netnsOfPid, type Overlay, type OverlayState, UNSEEN } from './overlay.js';
import { removeResolvConf, writeResolvConf } from './resolv.js';
import { namespaceOf } from './veth.js';

export interface NetworksDeps {
	readonly overlay: Overlay;
	readonly state: () => OverlayState;
	readonly membership: () => Membership;
	/** Name of this node. */
	readonly self: () => string;
	/** Bytes, of the uplinks; undefined: not known yet. */
	readonly underlayMtu: () => number | undefined;
	/** VNI of the tunnel between nodes. */
	readonly meshVni: () => number;
	/** Path of a container's network namespace. @throws BeelineError */
	readonly netnsOfContainer: (id: string) => Promise<string>;
	/** Why this node cannot encrypt. */
	readonly whyNoEncryption: () => Promise<string | undefined>;
	/** Where the source gives out addresses; undefined: each node has its slices. */
	readonly addresses?: Pick<Addresses, 'allocate' | 'release'>;
	/** Where an operator changes the membership. */
	readonly place: string;
	/** Where the node's routes lead, IPv4. */
	readonly routes: () => Promise<readonly string[]>;
	readonly names: Pick<NameService, 'update' | 'serve' | 'forget' | 'prepare'>;
	readonly log: Pick<Logger, 'info' | 'warn'>;
}

export interface Networks {
	/** The membership with what this node alone knows: the legs of its endpoints. */
	complete(m: Membership): Membership;
	/** A network's document with what was left to us: subnet and VNI. @throws AgentError, BeelineError */
	draft(body: NetworkCreateBody): Promise<NetworkCreateBody & { readonly subnet: string; readonly vni: number }>;
	/** @throws AgentError where somebody uses the network */
	refuseRemoval(name: string): void;
	/** A service with a VIP on each of its networks, where the source gives them out. @throws AgentError, BeelineError */
	withVips(service: ServiceCreateBody): Promise<ServiceCreateBody>;
	/** What gives back a service's VIPs once it is removed. */
	releaserOf(service: string): () => Promise<void>;
	/** Cookies of endpoints' namespaces → VNIs. */
	namespaces(): ReadonlyMap<bigint, readonly number[]>;
	/** A container's namespace is about to be made. */
	prepare(): void;
	/** Names in the namespace of an endpoint, which may be Docker's. Never throws. */
	serve(e: AttachedEndpoint): Promise<void>;
	/** No more names for an endpoint of Docker's. */
	forget(e: AttachedEndpoint): void;
	/** Names follow the membership and what is attached. Cheap where neither changed. */
	updateNames(): void;
	/** What an earlier boot left in the source is given back; names are served. Once, at the start. */
	begin(): Promise<void>;
	/** Paths of the namespaces that are on a network, by its VNI; those that are another's by now are left out. */
	paths(vni: number): readonly string[];
	facts(): readonly OverlayEndpointFact[];
	/** Programs on the host ends: before rows name them. @returns what could not be done, by interface */
	attachPrograms(d: Datapath): ReadonlyMap<string, string>;
	/** After no row names them. */
	detachPrograms(d: Datapath): void;
	/** Forgets what went with its namespace. */
	reap(names: ReadonlyMap<number, string>, at: Date): Promise<readonly AttachedEndpoint[]>;
	list(): NetworkView[];
	endpoints(): EndpointView[];
	/** @throws AgentError, BeelineError */
	attach(request: EndpointAttachBody): Promise<AttachedEndpoint>;
	detach(id: string): Promise<AttachedEndpoint>;
	view(e: AttachedEndpoint): EndpointView;
}

/** Docker's first. */
const FIRST_VNI = 4096;

const vipHolder = (service: string): string => `vip-${service}`;

/** The last answer again where the arguments are the same objects. */
function memoize<A extends readonly unknown[], R>(f: (...args: A) => R): (...args: A) => R {
	let last: { args: A; result: R } | undefined;
	return (...args) => {
		if (last === undefined || args.some((a, i) => a !== last?.args[i])) last = { args, result: f(...args) };
		return last.result;
	};
}

export function createNetworks(deps: NetworksDeps): Networks {
	const { overlay } = deps;
	/** Host ends with overlay_tc; undefined: those of an earlier agent are not looked at yet. */
	let programs: Set<number> | undefined;
	const attached = (d: Datapath): Set<number> => {
		programs ??= new Set(
			d.status().attachments.flatMap((a) => (a.slot === 'overlay_tc' && !a.severed && a.ifindex ? [a.ifindex] : [])),
		);
		return programs;
	};

	const find = (name: string): NetworkSpec => {
		const n = deps.membership().networks.find((x) => x.name === name);
		if (n === undefined) throw new AgentError(404, 'NOT_FOUND', `network ${name} not found`, 'network');
		return n;
	};

	const view = (e: AttachedEndpoint): EndpointView => ({
		id: e.id,
		network: e.network,
		node: deps.self(),
		address: e.address,
		address6: e.address6 ?? null,
		mac: e.mac,
		mtu: e.mtu,
		interface: e.interface,
		netns: e.netns,
		gatewayAddress: deps.state().legs.find((l) => l.namespace === e.namespace)?.address ?? null,
		name: e.name ?? null,
		aliases: [...e.aliases],
		service: e.service ?? null,
	});

	const localEndpoints = (): LocalEndpoint[] => {
		const legs = new Map(deps.state().legs.map((l) => [l.namespace, l.address]));
		return overlay.endpoints.map((e) => {
			const legAddress = legs.get(e.namespace);
			return { ...e, ...(legAddress === undefined ? {} : { legAddress }) };
		});
	};
	const serve = async (namespace: string): Promise<void> => {
		// Docker's alone to see where this process cannot.
		for (const e of overlay.endpoints.filter((x) => x.namespace === namespace && x.cookie !== UNSEEN)) {
			try {
				const docker = e.docker !== undefined;
				const state = await deps.names.serve({ id: e.id, netns: e.netns, networks: [e.network], docker });
				if (state === 'serving') writeResolvConf(e.netns);
			} catch (x) {
				deps.log.warn(`names are not served in ${e.netns}: ${sentence(x)}`);
			}
		}
	};
	const gone = async (e: AttachedEndpoint): Promise<void> => {
		deps.names.forget(e.id);
		if (overlay.endpoints.every((x) => x.namespace !== e.namespace)) removeResolvConf(e.netns);
		await deps.addresses
			?.release(e.network, e.address, e.id)
			.catch((x) => deps.log.warn(`${e.address} of network ${e.network} is not given back: ${sentence(x)}`));
	};
	const completed = memoize((m: Membership, _state: OverlayState) => withLegs(m, deps.self(), localEndpoints()));
	const named = memoize((m: Membership, _state: OverlayState) => namedNetworks(m, localEndpoints()));
	let told: readonly NamedNetwork[] | undefined;
	/** Where this node cannot encrypt. */
	const refuseEncrypted = async (name: string): Promise<void> => {
		const why = await deps.whyNoEncryption();
		if (why !== undefined)
			throw new AgentError(409, 'NO_ENCRYPTION', `network ${name} is encrypted, and ${why}`, 'network');
	};

	return {
		async draft(body) {
			const { networks } = deps.membership();
			const refuse = (code: string, why: string, field: string): never => {
				throw new AgentError(409, code, why, field);
			};
			if (networks.some((n) => n.name === body.name))
				refuse('CONFLICT', `network with name ${body.name} already exists`, 'name');
			const ingress = body.ingress === true ? networks.find((n) => n.ingress) : undefined;
			if (ingress !== undefined) refuse('CONFLICT', `ingress network (${ingress.name}) is already present`, 'ingress');
			if (body.ingress === true && body.attachable === true)
				refuse('REFUSED', 'an ingress network cannot be attachable: leave one of the two out', 'attachable');
			const others = networks.map((n) => n.subnet);
			let { subnet, vni } = body;
			if (subnet === undefined) {
				subnet = freeSubnet([...others, ...(await deps.routes())]);
				if (subnet === undefined)
					throw new AgentError(409, 'NO_SUBNET', 'no part of 10.0.0.0/8 is free: give --subnet', 'subnet');
			}
			if (vni === undefined) {
				const taken = new Set([...networks.map((n) => n.vni), deps.meshVni()]);
				for (vni = FIRST_VNI; taken.has(vni); vni++);
			} else if (vni === deps.meshVni())
				refuse(
					'CONFLICT',
					`VNI ${vni} is that of the tunnel between nodes (datapath.vni): choose another, or none`,
					'vni',
				);
			else {
				const other = networks.find((n) => n.vni === vni);
				if (other !== undefined) refuse('CONFLICT', `VNI ${vni} is network ${other.name}'s: choose another`, 'vni');
			}
			if (body.options?.encrypted) await refuseEncrypted(body.name);
			const { ipv6, ...document } = body;
			const six = ipv6 === true && body.subnet6 === undefined ? { subnet6: localSubnet6(vni) } : {};
			return { ...document, subnet, vni, ...six };
		},
		refuseRemoval(name) {
			const n = find(name);
			const { services } = deps.membership();
			const refuse = (why: string): never => {
				throw new AgentError(409, 'IN_USE', `network ${name} ${why}`);
			};
			const mine = overlay.endpoints.find((e) => e.network === name);
			const other = mine ?? n.endpoints?.[0];
			if (other !== undefined) refuse(`has active endpoints, such as ${other.id}: detach them first`);
			const service = services.find((s) => s.networks?.includes(name));
			if (service !== undefined) refuse(`is in use by service ${service.name}`);
			const publishing = n.ingress ? services.find((s) => s.ports.length > 0) : undefined;
			if (publishing !== undefined)
				refuse(`is the ingress network, and service ${publishing.name} publishes a port: remove that first`);
		},
		async withVips(service) {
			const { addresses } = deps;
			if (service.networks === undefined) return service;
			for (const n of service.networks) find(n.name);
			if (addresses === undefined || service.endpointMode === 'dnsrr') return service;
			const networks: { name: string; vip?: string }[] = [];
			try {
				for (const n of service.networks) {
					const held = await addresses.allocate(n.name, {
						node: deps.self(),
						endpoint: vipHolder(service.name),
						vip: true,
						...(n.vip === undefined ? {} : { wanted: n.vip }),
					});
					networks.push({ name: n.name, vip: held.address });
				}
			} catch (e) {
				for (const n of networks)
					await addresses.release(n.name, n.vip as string, vipHolder(service.name)).catch(() => false);
				throw e;
			}
			return { ...service, networks };
		},
		releaserOf(name) {
			const vips = deps.membership().services.find((s) => s.name === name)?.vips ?? [];
			return async () => {
				for (const v of vips) await deps.addresses?.release(v.network, v.address, vipHolder(name)).catch(() => false);
			};
		},
		complete: (m) => completed(m, deps.state()),
		namespaces() {
			const out = new Map<bigint, number[]>();
			for (const e of overlay.endpoints) {
				if (e.cookie === UNSEEN) continue;
				const cookie = BigInt(e.cookie);
				out.set(cookie, [...(out.get(cookie) ?? []), e.vni]);
			}
			return out;
		},
		prepare: () => deps.names.prepare(),
		serve: (e) => serve(e.namespace),
		forget: (e) => deps.names.forget(e.id),
		updateNames() {
			const next = named(deps.membership(), deps.state());
			if (next === told) return;
			told = next;
			deps.names.update(next);
		},
		async begin() {
			for (const namespace of new Set(overlay.endpoints.map((e) => e.namespace))) await serve(namespace);
			const known = new Set(overlay.endpoints.map((e) => e.id));
			if (deps.addresses === undefined) return;
			for (const n of deps.membership().networks)
				for (const e of n.endpoints ?? [])
					if (
						e.node === deps.self() &&
						!known.has(e.id) &&
						!n.options.slices &&
						!overlay.reserved(n.name).has(e.address)
					)
						await deps.addresses.release(n.name, e.address, e.id).catch(() => false);
		},
		paths: (vni) => [
			...new Set(
				overlay.endpoints.flatMap((e) => {
					if (e.vni !== vni) return [];
					try {
						return namespaceOf(e.netns) === e.namespace ? [e.netns] : [];
					} catch {
						return [];
					}
				}),
			),
		],
		facts: () => overlay.facts(),
		attachPrograms(d) {
			const errors = new Map<string, string>();
			const has = attached(d);
			for (const e of overlay.endpoints) {
				if (has.has(e.ifindex)) continue;
				try {
					d.attachOverlay(e.ifindex);
					has.add(e.ifindex);
				} catch (x) {
					errors.set(e.host, `endpoint ${e.id}: ${(x as Error).message}`);
				}
			}
			return errors;
		},
		detachPrograms(d) {
			const wanted = new Set(overlay.endpoints.map((e) => e.ifindex));
			const has = attached(d);
			for (const ifindex of has) {
				if (wanted.has(ifindex)) continue;
				d.detachOverlay(ifindex);
				has.delete(ifindex);
			}
		},
		async reap(names, at) {
			const list = await overlay.reap(names, at);
			for (const e of list) await gone(e);
			return list;
		},
		list: () =>
			deps.membership().networks.map((n): NetworkView => {
				const mine = overlay.endpoints.filter((e) => e.network === n.name);
				const here = new Set(mine.map((e) => e.address));
				const bits = n.subnet.split('/')[1];
				const container = (e: { name?: string; mac?: string; address: string; address6?: string }, id: string) => ({
					Name: e.name ?? '',
					EndpointID: id,
					MacAddress: e.mac ?? '',
					IPv4Address: `${e.address}/${bits}`,
					IPv6Address: e.address6 === undefined ? '' : `${e.address6}/${n.subnet6?.split('/')[1] ?? 128}`,
				});
				return {
					Name: n.name,
					Id: n.name,
					Scope: n.driver === 'overlay' ? 'swarm' : 'global',
					Driver: n.driver,
					EnableIPv6: n.subnet6 !== undefined,
					IPAM: {
						Driver: 'default',
						Config: [
							{
								Subnet: n.subnet,
								Gateway: gatewayOf(n),
								...(n.ipRange === undefined ? {} : { IPRange: n.ipRange }),
							},
							...(n.subnet6 === undefined ? [] : [{ Subnet: n.subnet6 }]),
						],
					},
					Internal: n.options.internal ?? false,
					Attachable: n.attachable,
					Ingress: n.ingress ?? false,
					Containers: Object.fromEntries([
						...mine.map((e) => [e.id, container(e, e.id)] as const),
						...(n.endpoints ?? []).filter((e) => !here.has(e.address)).map((e) => [e.id, container(e, e.id)] as const),
					]),
					Options: {
						'com.docker.network.driver.overlay.vxlanid_list': String(n.vni),
						...(n.options.mtu === undefined ? {} : { 'com.docker.network.driver.mtu': String(n.options.mtu) }),
						...(n.options.encrypted ? { encrypted: '' } : {}),
					},
					Labels: { ...n.labels },
				};
			}),
		endpoints: () => overlay.endpoints.map(view),
		async attach(request) {
			const network = find(request.network);
			if (network.driver !== 'beeline')
				throw new AgentError(
					409,
					'REFUSED',
					`network ${network.name} is Docker's own: docker network connect`,
					'network',
				);
			if (!network.attachable && request.service === undefined)
				throw new AgentError(
					409,
					'NOT_ATTACHABLE',
					`Could not attach to network ${network.name}: network ${network.name} not manually attachable`,
					'network',
				);
			if (network.options.encrypted) await refuseEncrypted(network.name);
			const netns =
				request.netns ??
				(request.pid !== undefined
					? netnsOfPid(request.pid)
					: await deps.netnsOfContainer(request.container as string));
			const underlayMtu = deps.underlayMtu();
			if (underlayMtu === undefined) throw new AgentError(503, 'NOT_READY', 'the agent has not found its uplinks yet');
			const { addresses } = deps;
			const { services, nodes } = deps.membership();
			const self = deps.self();
			if (addresses === undefined && request.service !== undefined && nodes.length > 1) {
				const here = network.endpoints?.some((e) => e.node === self && e.service === request.service);
				if (!here)
					throw new AgentError(
						409,
						'REFUSED',
						`no endpoint of service ${request.service} is declared for ${self} on network ${network.name}: write it into networks.endpoints of ${deps.place} on every node, for other nodes must know it too`,
						'service',
					);
			}
			const e = await overlay.attach({
				network,
				netns,
				self,
				underlayMtu,
				reserved: new Set(
					services.flatMap((s) => (s.vips ?? []).filter((v) => v.network === network.name).map((v) => v.address)),
				),
				...(addresses === undefined
					? {}
					: {
							allocate: ({ id, ...rest }) => addresses.allocate(network.name, { node: self, endpoint: id, ...rest }),
							release: async (address, id) => void (await addresses.release(network.name, address, id)),
						}),
				...(request.service === undefined ? {} : { service: request.service }),
				...(request.name === undefined ? {} : { name: request.name }),
				...(request.aliases === undefined ? {} : { aliases: request.aliases }),
				...(request.address === undefined ? {} : { address: request.address }),
			});
			await serve(e.namespace);
			return e;
		},
		async detach(id) {
			const e = await overlay.detach(id);
			await gone(e);
			return e;
		},
		view,
	};
}
