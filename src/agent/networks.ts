/** Overlay networks as the agent offers them: what exists, what this node has attached, and the commands for it. */

import type { EndpointAttachBody, EndpointView, NetworkView } from '../http/schemas.js';
import type { Datapath } from '../loader/datapath.js';
import type { OverlayEndpointFact } from '../mesh/overlay.js';
import { gatewayOf } from '../mesh/subnets.js';
import type { Membership, NetworkSpec } from '../mesh/types.js';
import { AgentError } from './api.js';
import type { AttachedEndpoint, Overlay, OverlayState } from './overlay.js';

export interface NetworksDeps {
	readonly overlay: Overlay;
	readonly state: () => OverlayState;
	readonly membership: () => Membership;
	/** Name of this node. */
	readonly self: () => string;
	/** Bytes, of the uplinks; undefined: not known yet. */
	readonly underlayMtu: () => number | undefined;
	/** Path of a container's network namespace. @throws BeelineError */
	readonly netnsOfContainer: (id: string) => Promise<string>;
}

export interface Networks {
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

	return {
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
		reap: (names, at) => overlay.reap(names, at),
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
			if (network.options.encrypted)
				throw new AgentError(
					409,
					'NO_ENCRYPTION',
					`network ${network.name} is encrypted, which this version cannot carry: no packet of it would leave the node`,
					'network',
				);
			const netns =
				request.netns ??
				(request.pid !== undefined
					? `/proc/${request.pid}/ns/net`
					: await deps.netnsOfContainer(request.container as string));
			const underlayMtu = deps.underlayMtu();
			if (underlayMtu === undefined) throw new AgentError(503, 'NOT_READY', 'the agent has not found its uplinks yet');
			return overlay.attach({
				network,
				netns,
				self: deps.self(),
				underlayMtu,
				...(request.service === undefined ? {} : { service: request.service }),
				...(request.name === undefined ? {} : { name: request.name }),
				...(request.aliases === undefined ? {} : { aliases: request.aliases }),
				...(request.address === undefined ? {} : { address: request.address }),
			});
		},
		detach: (id) => overlay.detach(id),
		view,
	};
}
