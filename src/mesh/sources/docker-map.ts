/** Answers of a manager's Engine API → Membership. Pure: what an engine says is data, and wrong data is left out and told. */
import ipaddr from 'ipaddr.js';
import type {
	BackendState,
	Membership,
	NetworkSpec,
	NodeSpec,
	PublishedPort,
	ServiceSpec,
	Task,
	Vip,
} from '../types.js';
import { type LabelProblem, parseLabels } from './docker-labels.js';
import { isUsable, parseAddress, parsePrefix } from './document.js';

// What is read of each answer; all of it may be absent, since an engine is another program.

export interface RawNode {
	readonly ID?: string;
	readonly CreatedAt?: string;
	readonly Spec?: { readonly Role?: string; readonly Availability?: string };
	readonly Description?: { readonly Hostname?: string };
	readonly Status?: { readonly State?: string; readonly Addr?: string };
	readonly ManagerStatus?: { readonly Addr?: string };
}

interface RawPort {
	readonly Protocol?: string;
	readonly TargetPort?: number;
	readonly PublishedPort?: number;
	readonly PublishMode?: string;
}

export interface RawService {
	readonly ID?: string;
	readonly Spec?: {
		readonly Name?: string;
		readonly Labels?: Readonly<Record<string, string>> | null;
		readonly Mode?: { readonly Replicated?: object };
	};
	readonly Endpoint?: {
		readonly Ports?: readonly RawPort[] | null;
		readonly VirtualIPs?: readonly { readonly NetworkID?: string; readonly Addr?: string }[] | null;
	};
	readonly UpdateStatus?: { readonly State?: string };
}

/** Of a RawTask. The rest (the specification, its networks) is nine tenths of an answer. */
export const TASK_MEMBERS = ['ID', 'ServiceID', 'NodeID', 'DesiredState', 'Status', 'NetworksAttachments'] as const;

export interface RawTask {
	readonly ID?: string;
	readonly ServiceID?: string;
	readonly NodeID?: string;
	readonly DesiredState?: string;
	readonly Status?: {
		readonly State?: string;
		readonly ContainerStatus?: { readonly ContainerID?: string } | null;
	};
	readonly NetworksAttachments?:
		| readonly { readonly Network?: { readonly ID?: string }; readonly Addresses?: readonly string[] | null }[]
		| null;
}

export interface RawNetwork {
	readonly Name?: string;
	readonly Id?: string;
	readonly Driver?: string;
	readonly Scope?: string;
	readonly Attachable?: boolean;
	readonly Internal?: boolean;
	readonly Ingress?: boolean;
	readonly IPAM?: { readonly Config?: readonly { readonly Subnet?: string }[] | null };
	readonly Options?: Readonly<Record<string, string>> | null;
}

/** Of a task, what the mesh needs. Lists of 20 000 are kept, so no more than this. */
export interface TaskFact {
	readonly id: string;
	readonly service: string;
	readonly node: string;
	readonly desired: string;
	readonly state: string;
	/** It ran when it was listed before: its end is news. */
	readonly served?: boolean;
	/** Network id, address, network id, address, …; absent: on none. */
	readonly attached?: readonly string[];
}

/** Network ids, each once: 20 000 tasks name the same few. */
const networkIds = new Map<string, string>();
const MAX_NETWORK_IDS = 10_000;

function intern(id: string): string {
	const known = networkIds.get(id);
	if (known !== undefined) return known;
	if (networkIds.size >= MAX_NETWORK_IDS) networkIds.clear();
	networkIds.set(id, id);
	return id;
}

export function taskFact(raw: RawTask): TaskFact | undefined {
	const { ID: id, ServiceID: service, NodeID: node } = raw;
	if (id === undefined || service === undefined || node === undefined || node === '') return undefined;
	const attached: string[] = [];
	for (const n of raw.NetworksAttachments ?? []) {
		const address = n.Addresses?.[0]?.replace(/\/\d+$/, '');
		if (n.Network?.ID !== undefined && address !== undefined) attached.push(intern(n.Network.ID), address);
	}
	return {
		id,
		service,
		node,
		desired: raw.DesiredState ?? '',
		state: raw.Status?.State ?? '',
		...(attached.length === 0 ? {} : { attached }),
	};
}

/** Nothing comes after these. */
const OVER = new Set(['complete', 'shutdown', 'failed', 'rejected', 'remove', 'orphaned']);

/**
 * What a task is to the mesh; undefined: nothing, it does not serve (yet, or any more).
 * `running` means healthy too, where the image has a health check: Swarm calls a task `starting` until then.
 */
export function stateOf(t: Pick<TaskFact, 'desired' | 'state' | 'served'>): BackendState | undefined {
	if (t.state !== 'running') return t.served === true && OVER.has(t.state) ? 'down' : undefined;
	return t.desired === 'running' ? 'active' : 'draining';
}

/** Whether a task is over for good. */
export function isOver(t: Pick<TaskFact, 'state'>): boolean {
	return OVER.has(t.state);
}

/** What a node says of a task of its own, before Swarm does. */
export interface TaskReport {
	/** Worse than what is listed: `kill` draining, `die` down. */
	readonly state?: 'draining' | 'down';
	/** Its leg on docker_gwbridge has an IPv6 address. */
	readonly six?: boolean;
}

export interface Answers {
	readonly nodes: readonly RawNode[];
	readonly services: readonly RawService[];
	readonly tasks: readonly TaskFact[];
	readonly networks: readonly RawNetwork[];
	/** What the task's own node says of it. */
	readonly reportOf: (task: TaskFact) => TaskReport | undefined;
	/** A task that Swarm is about to stop serves on for a moment (docs/decisions/0043). */
	readonly keeps?: (task: TaskFact) => boolean;
}

export interface Mapped {
	readonly membership: Membership;
	readonly problems: readonly LabelProblem[];
	/** Nodes and services that are left out, and why. */
	readonly skipped: readonly string[];
}

/** The address that other nodes reach it at. A manager that listens on all addresses says 0.0.0.0 of itself. */
function addressOf(n: RawNode): string | undefined {
	const candidates = [n.Status?.Addr, n.ManagerStatus?.Addr?.replace(/:\d+$/, '').replace(/^\[|\]$/g, '')];
	return candidates.map((a) => parseAddress(a)).find((a) => a !== undefined && isUsable(a));
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/** Ready before down, then the newer: a machine that joined again leaves its old self behind. */
function rank(a: RawNode, b: RawNode): number {
	const ready = (n: RawNode) => (n.Status?.State === 'ready' ? 0 : n.Status?.State === 'down' ? 2 : 1);
	return ready(a) - ready(b) || ((a.CreatedAt ?? '' < (b.CreatedAt ?? '')) ? 1 : -1);
}

function mapNodes(raw: readonly RawNode[], skipped: string[]): NodeSpec[] {
	const byAddress = new Map<string, RawNode>();
	for (const n of [...raw].sort(rank)) {
		const name = n.Description?.Hostname ?? '';
		if (n.ID === undefined || name === '') continue;
		const address = addressOf(n);
		if (address === undefined) skipped.push(`node ${name}: it has no address yet`);
		else if (address.includes(':')) skipped.push(`node ${name}: its address is ${address}, and VTEPs are IPv4`);
		else if (!NAME.test(name)) skipped.push(`node ${n.ID}: its hostname ${JSON.stringify(name)} is no name`);
		else if (byAddress.has(address))
			skipped.push(`node ${name} (${n.ID}): ${address} belongs to another node that is newer`);
		else byAddress.set(address, n);
	}
	// The oldest of a name keeps it, or a newcomer would rename its elders and move their flows.
	const oldestFirst = [...byAddress].sort(([, a], [, b]) =>
		`${a.CreatedAt ?? ''} ${a.ID}` < `${b.CreatedAt ?? ''} ${b.ID}` ? -1 : 1,
	);
	const taken = new Set<string>();
	const out: NodeSpec[] = [];
	for (const [address, n] of oldestFirst) {
		const id = n.ID as string;
		const hostname = n.Description?.Hostname as string;
		const name = taken.has(hostname) ? `${hostname}-${id.slice(0, 8)}` : hostname;
		taken.add(name);
		out.push({ name, id, address, drained: n.Spec?.Availability === 'drain' });
	}
	return out.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Ports that the ingress mesh publishes. SCTP stays with the kernel's, host mode with its node. */
export function ingressPorts(s: RawService): PublishedPort[] {
	const out: PublishedPort[] = [];
	for (const p of s.Endpoint?.Ports ?? []) {
		if ((p.PublishMode ?? 'ingress') !== 'ingress') continue;
		if (p.Protocol !== 'tcp' && p.Protocol !== 'udp') continue;
		if (!p.PublishedPort || !p.TargetPort) continue;
		out.push({ published: p.PublishedPort, target: p.TargetPort, protocol: p.Protocol });
	}
	return out.sort((a, b) => a.published - b.published || (a.protocol < b.protocol ? -1 : 1));
}

function mapNetworks(raw: readonly RawNetwork[]): NetworkSpec[] {
	const out: NetworkSpec[] = [];
	for (const n of raw) {
		if (n.Driver !== 'overlay' || n.Scope !== 'swarm' || n.Name === undefined) continue;
		// Host bits are cleared without a word: the network is Docker’s own, and nothing can be refused here.
		const subnet = (n.IPAM?.Config ?? []).map((c) => parsePrefix(c.Subnet)).find((s) => s?.includes('.'));
		const vni = Number(/^\d+/.exec(n.Options?.['com.docker.network.driver.overlay.vxlanid_list'] ?? '')?.[0] ?? 0);
		if (subnet === undefined || vni === 0) continue;
		const mtu = Number(n.Options?.['com.docker.network.driver.mtu'] ?? 0);
		out.push({
			name: n.Name,
			driver: 'overlay',
			...(n.Id === undefined ? {} : { id: n.Id }),
			subnet,
			vni,
			attachable: n.Attachable ?? false,
			...(n.Ingress === true ? { ingress: true } : {}),
			options: {
				internal: n.Internal ?? false,
				encrypted: n.Options?.encrypted !== undefined,
				...(mtu > 0 ? { mtu } : {}),
			},
		});
	}
	return out.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Service VIPs in overlay networks; none in dnsrr mode. Nobody dials the one of the ingress network. */
function mapVips(s: RawService, networkOf: ReadonlyMap<string, string>): Vip[] {
	const out: Vip[] = [];
	for (const v of s.Endpoint?.VirtualIPs ?? []) {
		const network = networkOf.get(v.NetworkID ?? '');
		const address = parseAddress(v.Addr?.replace(/\/\d+$/, ''));
		if (network !== undefined && address !== undefined && isUsable(address)) out.push({ network, address });
	}
	return out.sort((a, b) => (a.network < b.network ? -1 : 1));
}

/** A task's addresses in the networks where its service has a VIP. */
function addressesOn(
	t: TaskFact,
	vips: readonly Vip[],
	networkOf: ReadonlyMap<string, string>,
): Record<string, string> | undefined {
	const { attached } = t;
	if (attached === undefined || vips.length === 0) return undefined;
	const on: Record<string, string> = {};
	let some = false;
	for (const { network } of vips)
		for (let i = 0; i + 1 < attached.length; i += 2) {
			if (networkOf.get(attached[i]) !== network) continue;
			const address = parseAddress(attached[i + 1]);
			if (address === undefined) continue;
			on[network] = address;
			some = true;
		}
	return some ? on : undefined;
}

function worse(listed: BackendState, reported: 'draining' | 'down' | undefined): BackendState {
	return listed === 'down' || reported === 'down' ? 'down' : (reported ?? listed);
}

/** Works out the membership as every node is to see it: no addresses of tasks (docs/decisions/0010). */
export function mapAnswers(answers: Answers): Mapped {
	const skipped: string[] = [];
	const problems: LabelProblem[] = [];
	const nodes = mapNodes(answers.nodes, skipped);
	const nodeOf = new Map(nodes.map((n) => [n.id as string, n.name]));
	const tasksOf = new Map<string, TaskFact[]>();
	for (const t of answers.tasks) {
		const of = tasksOf.get(t.service);
		if (of === undefined) tasksOf.set(t.service, [t]);
		else of.push(t);
	}
	const networks = mapNetworks(answers.networks);
	const networkOf = new Map(networks.flatMap((n) => (n.ingress ? [] : [[n.id as string, n.name] as const])));
	const services: ServiceSpec[] = [];
	for (const s of answers.services) {
		const name = s.Spec?.Name ?? '';
		const ports = ingressPorts(s);
		const vips = mapVips(s, networkOf);
		if (s.ID === undefined || (ports.length === 0 && vips.length === 0)) continue;
		if (!NAME.test(name)) {
			skipped.push(`service ${s.ID}: its name ${JSON.stringify(name)} is no name`);
			continue;
		}
		const labels = parseLabels(name, s.Spec?.Labels ?? {});
		problems.push(...labels.problems);
		const tasks: Task[] = [];
		for (const t of tasksOf.get(s.ID) ?? []) {
			const node = nodeOf.get(t.node);
			const listed = stateOf(t);
			if (node === undefined || listed === undefined) continue;
			const report = answers.reportOf(t);
			const state = worse(listed === 'draining' && answers.keeps?.(t) === true ? 'active' : listed, report?.state);
			const on = addressesOn(t, vips, networkOf);
			tasks.push({
				id: t.id,
				node,
				families: report?.six === true ? [4, 6] : [4],
				...(on === undefined ? {} : { on }),
				weight: labels.weightOf(node),
				state,
			});
		}
		tasks.sort((a, b) => ((a.id as string) < (b.id as string) ? -1 : 1));
		const { scaleFromZero } = labels;
		const scales = s.Spec?.Mode?.Replicated !== undefined && ports.length > 0;
		if (scaleFromZero !== undefined && !scales)
			problems.push({
				service: name,
				label: 'beeline.scale-from-zero',
				reason: `beeline.scale-from-zero has no effect: ${ports.length === 0 ? 'nothing of the service is published, so nobody comes by whom it would be woken' : 'only a replicated service can be scaled'}`,
			});
		services.push({
			name,
			ports,
			options: labels.options,
			tasks,
			...(vips.length === 0 ? {} : { vips }),
			...(scaleFromZero !== undefined && scales ? { scaleFromZero } : {}),
		});
	}
	services.sort((a, b) => (a.name < b.name ? -1 : 1));
	return { membership: { nodes, services, networks }, problems, skipped };
}

/** Addresses of a task's leg on docker_gwbridge. */
export interface Leg {
	readonly address4?: string;
	readonly address6?: string;
	/** Subnets of its other networks, the ingress network too: it answers clients in there on-link. */
	readonly onLink?: readonly string[];
	/** Ports that it listens on at its ingress address only. */
	readonly elsewhere?: { readonly address4: string; readonly ports: readonly string[] };
}

export function sameLeg(a: Leg | undefined, b: Leg | undefined): boolean {
	return (
		a === b ||
		(a?.address4 === b?.address4 &&
			a?.address6 === b?.address6 &&
			(a?.onLink ?? []).join() === (b?.onLink ?? []).join() &&
			a?.elsewhere?.address4 === b?.elsewhere?.address4 &&
			(a?.elsewhere?.ports ?? []).join() === (b?.elsewhere?.ports ?? []).join())
	);
}

/** The membership as the node itself is to see it: with the addresses of its own tasks, and what befell them just now. */
export function withOwn(
	m: Membership,
	self: string,
	legs: ReadonlyMap<string, Leg>,
	reports: ReadonlyMap<string, TaskReport>,
): Membership {
	if (legs.size === 0 && reports.size === 0) return m;
	return {
		...m,
		services: m.services.map((s) => {
			if (!s.tasks.some((t) => t.node === self)) return s;
			return {
				...s,
				tasks: s.tasks.map((t) => {
					if (t.node !== self || t.id === undefined) return t;
					return { ...t, ...legs.get(t.id), state: worse(t.state, reports.get(t.id)?.state) };
				}),
			};
		}),
	};
}

/** GET /networks/docker_gwbridge → container → leg. */
export function legsOf(raw: unknown): Map<string, Leg> {
	const out = new Map<string, Leg>();
	const containers = (
		raw as { Containers?: Record<string, { IPv4Address?: string; IPv6Address?: string }> } | undefined
	)?.Containers;
	for (const [id, c] of Object.entries(containers ?? {})) {
		const address4 = parseAddress(c.IPv4Address?.replace(/\/\d+$/, ''), 4);
		const address6 = parseAddress(c.IPv6Address?.replace(/\/\d+$/, ''), 6);
		if (address4 === undefined && address6 === undefined) continue;
		out.set(id, {
			...(address4 === undefined ? {} : { address4 }),
			...(address6 === undefined ? {} : { address6 }),
		});
	}
	return out;
}

export interface OwnContainer {
	readonly id: string;
	readonly task: string;
	readonly running: boolean;
	readonly paused: boolean;
	/** It ran and does not any more. */
	readonly ended: boolean;
	/** Subnets of the networks that it is on, but for docker_gwbridge, which no engine lists here. */
	readonly networks: readonly string[];
	/** Its IPv4 address on the ingress network. */
	readonly ingress: string | undefined;
}

interface RawAttachment {
	readonly NetworkID?: string;
	readonly IPAddress?: string;
	readonly IPPrefixLen?: number;
	readonly GlobalIPv6Address?: string;
	readonly GlobalIPv6PrefixLen?: number;
}

function subnetsOf(networks: Readonly<Record<string, RawAttachment | null>> | null | undefined): string[] {
	const out = new Set<string>();
	for (const n of Object.values(networks ?? {}))
		for (const [address, length] of [
			[n?.IPAddress, n?.IPPrefixLen],
			[n?.GlobalIPv6Address, n?.GlobalIPv6PrefixLen],
		] as const) {
			if (!address || !length || parseAddress(address) === undefined) continue;
			const kind = address.includes(':') ? ipaddr.IPv6 : ipaddr.IPv4;
			const cidr = `${address}/${length}`;
			if (kind.isValidCIDR(cidr)) out.add(`${kind.networkAddressFromCIDR(cidr)}/${length}`);
		}
	return [...out].sort();
}

interface RawContainer {
	readonly Id?: string;
	readonly State?: string;
	readonly Labels?: Readonly<Record<string, string>>;
	readonly NetworkSettings?: { readonly Networks?: Readonly<Record<string, RawAttachment | null>> | null } | null;
}

/**
 * GET /containers/json?all=1&filters={"label":["com.docker.swarm.task.id"]} → this node's tasks.
 * @param ingressId the ingress network's, whose name is the operator's choice
 */
export function ownContainers(raw: unknown, ingressId?: string): OwnContainer[] {
	if (!Array.isArray(raw)) return [];
	return raw.flatMap((c: RawContainer): OwnContainer[] => {
		const task = c.Labels?.[TASK_LABEL];
		if (c.Id === undefined || !task) return [];
		const networks = c.NetworkSettings?.Networks;
		const ingress = Object.values(networks ?? {}).find((n) => n?.NetworkID !== undefined && n.NetworkID === ingressId);
		return [
			{
				id: c.Id,
				task,
				running: c.State === 'running',
				paused: c.State === 'paused',
				ended: c.State === 'exited' || c.State === 'dead',
				networks: subnetsOf(networks),
				ingress: parseAddress(ingress?.IPAddress, 4),
			},
		];
	});
}

export const TASK_LABEL = 'com.docker.swarm.task.id';

/** Swarm's part of GET /info. */
export interface SwarmInfo {
	readonly nodeId: string;
	readonly nodeAddress: string;
	/** Lists can be had here. */
	readonly manager: boolean;
	/** All managers that this node knows, itself too if it is one. */
	readonly managers: readonly { readonly id: string; readonly host: string }[];
	readonly dockerRoot: string;
	/** UDP port of the overlay networks, where the engine says it: managers only. */
	readonly dataPathPort?: number;
	/** Why there is no swarm here; undefined: there is. */
	readonly problem?: string;
}

export function swarmInfo(raw: unknown): SwarmInfo {
	const info = (raw ?? {}) as {
		DockerRootDir?: string;
		Swarm?: {
			NodeID?: string;
			NodeAddr?: string;
			LocalNodeState?: string;
			ControlAvailable?: boolean;
			Error?: string;
			RemoteManagers?: readonly { NodeID?: string; Addr?: string }[] | null;
			Cluster?: { DataPathPort?: number } | null;
		};
	};
	const s = info.Swarm ?? {};
	const state = s.LocalNodeState ?? 'inactive';
	const port = s.Cluster?.DataPathPort;
	const problem =
		state === 'inactive'
			? 'this engine is in no swarm: docker swarm init, or docker swarm join'
			: state === 'locked'
				? 'this engine is locked: docker swarm unlock'
				: s.NodeID
					? undefined
					: `this engine’s swarm is ${state}${s.Error ? `: ${s.Error}` : ''}`;
	return {
		nodeId: s.NodeID ?? '',
		nodeAddress: parseAddress(s.NodeAddr) ?? '',
		manager: s.ControlAvailable === true,
		managers: (s.RemoteManagers ?? []).flatMap((m) => {
			const host = parseAddress(m.Addr?.replace(/:\d+$/, '').replace(/^\[|\]$/g, ''));
			return m.NodeID === undefined || host === undefined ? [] : [{ id: m.NodeID, host }];
		}),
		dockerRoot: info.DockerRootDir ?? '/var/lib/docker',
		...(port !== undefined && port > 0 ? { dataPathPort: port } : {}),
		...(problem === undefined ? {} : { problem }),
	};
}
