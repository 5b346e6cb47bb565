/** Mesh (desired) + what is true of this node → Entries: the rows that the maps should hold. */
import {
	type Backend as BackendRow,
	BackendState as BackendStates,
	Delivery,
	FrontendFlag,
	type Frontend as FrontendRow,
	type LocalBackend as LocalBackendRow,
	LocalFlag,
	MAX_OWN_ADDRESSES,
	NodeFlag,
	type Node as NodeRow,
	type OnLink as OnLinkRow,
	PortFlag,
	ReturnPath as ReturnPaths,
	type Settings,
	SettingsFlag,
	type Uplink as UplinkRow,
} from '../loader/layout.gen.js';
import { acquireFrontend, type Ids, type Tables, tableId } from './ids.js';
import type { MaglevMembers } from './maglev.js';
import { type OverlayEndpointFact, type OverlayEntries, overlayEntries } from './overlay.js';
import { isProcess, type Member, type Mesh, type MeshBackend, type MeshFrontend, type MeshService } from './plan.js';
import { refOf } from './slots.js';
import { isUsable } from './sources/document.js';
import type { AclKey, ExactKey, OnLinkKey } from './store.js';
import type { Protocol, ReturnPath } from './types.js';

/** One interface that clients and other nodes arrive on. */
export interface UplinkFact {
	readonly name: string;
	readonly ifindex: number;
	/** The device that holds the addresses: the bridge, where the uplink is its port. */
	readonly l3Ifindex: number;
	/** Bytes, of the device that holds the addresses. */
	readonly mtu: number;
	/** Of the device that holds the addresses. */
	readonly mac: string;
	/** Without prefix length. */
	readonly addresses: readonly string[];
}

/** How packets to another node leave. */
export interface NextHop {
	/** An uplink. */
	readonly ifindex: number;
	/** undefined: not resolved. */
	readonly dmac?: string;
	readonly smac: string;
	/** Bytes, of the way. */
	readonly mtu: number;
}

/** How a local address is reached. */
export interface EndpointFact {
	/** peer: the host end of a veth; neigh: any other interface. */
	readonly ifindex: number;
	readonly delivery: 'peer' | 'neigh';
}

/** The device through which the node reaches endpoints, and they everything: docker_gwbridge, another bridge, a veth. */
export interface GatewayFact {
	readonly ifindex: number;
	readonly address4?: string;
	readonly address6?: string;
	/** Subnets of the device, as `172.18.0.0/16`: endpoints answer clients in there on-link. */
	readonly prefixes: readonly string[];
}

/** A default route. */
export interface WayOut {
	readonly gateway: string;
	/** The device that holds the addresses. */
	readonly ifindex: number;
}

/** Whether a port is in one of the ranges, which are inclusive. */
export function within(ranges: LocalFacts['localPorts'], port: number): boolean {
	return ranges.some(([low, high]) => port >= low && port <= high);
}

/** Where the addresses of a backend of this node lead, IPv4 and IPv6: it is reached by the first that leads anywhere. */
export function endpointsOf(
	b: Pick<MeshBackend, 'address4' | 'address6'>,
	endpoints: LocalFacts['endpoints'],
): readonly [EndpointFact | undefined, EndpointFact | undefined] {
	const at = (a: string | undefined) => (a === undefined ? undefined : endpoints.get(a));
	return [at(b.address4), at(b.address6)];
}

/** protocol (TCP 0, UDP 1) << 16 | port: the key of a port in the maps. */
export function portKey(protocol: Protocol, port: number): number {
	return ((protocol === 'udp' ? 1 : 0) << 16) | port;
}

/**
 * What is true of this node. Parts are compared by identity: hand in the same map where nothing changed, and no
 * service is worked out again.
 */
export interface LocalFacts {
	readonly uplinks: readonly UplinkFact[];
	/** This node's outer address. */
	readonly vtep: string;
	readonly netnsCookie: bigint;
	/** Random per boot. */
	readonly mark: number;
	/** By VTEP. */
	readonly nextHops: ReadonlyMap<string, NextHop>;
	/** VTEPs whose source address this node may use: proven by a probe. */
	readonly dsrProven: ReadonlySet<string>;
	/** By address, as plan writes it. */
	readonly endpoints: ReadonlyMap<string, EndpointFact>;
	/** By ifindex: of endpoints, of the gateways themselves and of all ports of those that are bridges. None where endpoints lie behind an uplink's own bridge. */
	readonly gateways: ReadonlyMap<number, GatewayFact>;
	readonly wayOut4?: WayOut;
	readonly wayOut6?: WayOut;
	/** Ports that this node's own dials do not use: first, how many. */
	readonly standInPorts: readonly [number, number];
	/** Where processes of this node get packets: addresses of its own. Default: the VTEP and the uplinks' first IPv6. */
	readonly processAddress4?: string;
	readonly processAddress6?: string;
	/** Inclusive: `ip_local_port_range`. */
	readonly localPorts: readonly (readonly [number, number])[];
	/** Inclusive: what masquerade may use, where a rule of this node masquerades and programs can ask for such connections. */
	readonly masqueradedPorts?: readonly (readonly [number, number])[];
	/**
	 * Ports that connections and datagrams leave from are noted (`watched`), and those of older flows are (`known`). Default:
	 * not, and whose a packet is is asked for every packet of a port that may be one.
	 */
	readonly sources?: 'watched' | 'known';
	/** Port keys that the kernel's own mesh answers too: it gets new flows when the agent is stale or leaves. */
	readonly kernelPorts: ReadonlySet<number>;
	/** Those that it answered when this agent took them: flows may be open there. Default: kernelPorts. */
	readonly joinedPorts?: ReadonlySet<number>;
	/** Port keys that must not be published here, and why. */
	readonly refusedPorts: ReadonlyMap<number, string>;
	/** Endpoints of this node on overlay networks. */
	readonly overlay?: readonly OverlayEndpointFact[];
}

/**
 * The row of the node itself: where a reply to a client that is this node goes in, and the way out where the kernel
 * does not forward.
 */
function ownWay(facts: LocalFacts): NextHop | undefined {
	const u = facts.uplinks.find((u) => u.addresses.includes(facts.vtep)) ?? facts.uplinks[0];
	return u && { ifindex: u.l3Ifindex, dmac: u.mac, smac: u.mac, mtu: u.mtu };
}

/** What beeline.yaml says of the datapath. */
export interface DatapathOptions {
	readonly vni: number;
	readonly vxlanPort: number;
	readonly staleAfterMs: number;
	/** For services whose own is `auto`. */
	readonly returnPath: ReturnPath;
	/** Verdicts go to the ring buffer. */
	readonly trace: boolean;
}

/** A Maglev table that should be. */
export interface TableSpec {
	readonly id: number;
	readonly frontend: number;
	readonly family: 4 | 6;
	/** Slots. */
	readonly size: number;
	readonly windowNs: bigint;
	/** Changes are transitions: its service's `tracking` is not `none`. */
	readonly tracked: boolean;
	readonly members: MaglevMembers;
	/** A table that is made now takes its flows over from the kernel's mesh. */
	readonly fromKernel: boolean;
	/** New flows go back to the kernel's mesh. */
	readonly toKernel: boolean;
}

/** A frontend's row but for what follows from the maps: masks from the sizes that its tables have grown to, its generation. */
export interface FrontendSpec {
	readonly key: string;
	readonly index: number;
	readonly row: Omit<FrontendRow, 'tables' | 'generation'>;
	/** 0: none. */
	readonly table4: number;
	readonly table6: number;
}

/** The row of a backend, which is made when it is asked for: 100 000 of them are compared in numbers. */
export class BackendEntry {
	constructor(
		readonly backend: MeshBackend,
		readonly index: number,
		readonly generation: number,
		/** Index of the node's row. */
		readonly node: number,
	) {}

	get mac(): string {
		return this.backend.mac;
	}

	get macCode(): number {
		return this.backend.macCode;
	}

	get state(): number {
		return STATE[this.backend.state];
	}

	get row(): BackendRow {
		return { state: this.state, generation: this.generation, mac: this.mac, node: this.node };
	}
}

/** Bits of a BackendEntries' first number that are the index; the rest is the generation. */
const INDEX_BITS = 24;

/** Rows of a service's backends, in eight bytes each: as objects that stay, 100 000 of them took 6 MB. */
export class BackendEntries implements Iterable<BackendEntry> {
	readonly #numbers: Uint32Array;

	/** @param numbers of each backend: index | generation << 24, index of the node's row */
	constructor(
		private readonly backends: readonly MeshBackend[],
		numbers: readonly number[],
	) {
		this.#numbers = Uint32Array.from(numbers);
	}

	get length(): number {
		return this.backends.length;
	}

	*[Symbol.iterator](): IterableIterator<BackendEntry> {
		for (let i = 0; i < this.backends.length; i++) {
			const ref = this.#numbers[2 * i];
			yield new BackendEntry(
				this.backends[i],
				ref & ((1 << INDEX_BITS) - 1),
				ref >>> INDEX_BITS,
				this.#numbers[2 * i + 1],
			);
		}
	}
}

/** Rows of one service. */
export interface ServiceEntries {
	readonly mesh: MeshService;
	readonly backends: BackendEntries;
	readonly localBackends: readonly (readonly [string, LocalBackendRow])[];
	readonly tables: readonly TableSpec[];
	readonly frontends: readonly FrontendSpec[];
	readonly allow: readonly AclKey[];
	readonly deny: readonly AclKey[];
	readonly exact: readonly (readonly [ExactKey, number])[];
	/** Port key → the frontend that answers on every address. */
	readonly ports: readonly (readonly [number, number])[];
	/** Port keys with exact addresses. */
	readonly exactPorts: readonly number[];
	/** Port keys of processes on this node. */
	readonly processPorts: readonly number[];
	/** Networks that backends of this node are on, beside their gateway's: ifindex → prefixes. */
	readonly networks: readonly (readonly [number, readonly string[]])[];
	/** Backends of this node whose interface was not found, and why. */
	readonly undeliverable: ReadonlyMap<string, string>;
	/** Published ports that are not served here, and why. */
	readonly refused: readonly { readonly port: number; readonly protocol: Protocol; readonly reason: string }[];
}

/** Everything that the maps should hold. */
export interface Entries {
	readonly mesh: Mesh;
	readonly facts: LocalFacts;
	readonly options: DatapathOptions;
	/** heartbeat_ns is 0 here: whoever writes it fills it in. */
	readonly settings: Settings;
	readonly uplinks: ReadonlyMap<number, UplinkRow>;
	readonly ownAddresses: ReadonlySet<string>;
	readonly nodes: ReadonlyMap<number, NodeRow>;
	readonly vteps: ReadonlyMap<string, number>;
	readonly services: ReadonlyMap<string, ServiceEntries>;
	readonly ports: ReadonlyMap<number, number>;
	readonly overlay: OverlayEntries;
	/** By `list/prefix`. */
	readonly onLink: ReadonlyMap<string, readonly [OnLinkKey, OnLinkRow]>;
}

/** Constant: every node of a cluster hashes alike. */
export const HASH_SEED = 0x62656531;

const NO_MAC = '00:00:00:00:00:00';
const PROTO = { tcp: 6, udp: 17 } as const;
const STATE = {
	active: BackendStates.BACKEND_ACTIVE,
	draining: BackendStates.BACKEND_DRAINING,
	down: BackendStates.BACKEND_DOWN,
} as const;
const RETURN = {
	auto: ReturnPaths.RETURN_AUTO,
	dsr: ReturnPaths.RETURN_DSR,
	tunnel: ReturnPaths.RETURN_TUNNEL,
} as const;
const NS = 1_000_000n;

function sameTable(a: MeshFrontend): boolean {
	return (
		a.size4 === a.size6 &&
		a.members4.length === a.members6.length &&
		a.members4.every((m, i) => m.backend === a.members6[i].backend && m.down === a.members6[i].down)
	);
}

function columns(members: readonly Member[], ids: Ids): MaglevMembers {
	const n = members.length;
	// One memory for the five: it is kept for each table, and there may be thousands.
	const memory = new ArrayBuffer(n * 15);
	const out = {
		offset: new Uint32Array(memory, 0, n),
		skip: new Uint32Array(memory, n * 4, n),
		ref: new Uint32Array(memory, n * 8, n),
		weight: new Uint16Array(memory, n * 12, n),
		down: new Uint8Array(memory, n * 14, n),
	};
	for (let i = 0; i < n; i++) {
		const { backend, weight, down } = members[i];
		const id = ids.backends.get(backend.macCode);
		out.offset[i] = backend.offset;
		out.skip[i] = backend.skip;
		out.weight[i] = weight;
		out.down[i] = down ? 1 : 0;
		out.ref[i] = id ? refOf(id.index, id.generation) : 0;
	}
	return out;
}

interface Context {
	readonly mesh: Mesh;
	readonly facts: LocalFacts;
	readonly options: DatapathOptions;
	readonly ids: Ids;
	readonly nowMs: number;
	/** Port key → the service that serves it on every address: a port that is leaving yields to it. */
	readonly servedBy: ReadonlyMap<number, string>;
	readonly vteps: ReadonlyMap<string, number>;
	readonly process4: string;
	readonly process6: string;
}

function serviceEntries(s: MeshService, c: Context): ServiceEntries {
	const { ids, facts, nowMs } = c;
	const { options } = s;
	const undeliverable = new Map<string, string>();
	const refused: { port: number; protocol: Protocol; reason: string }[] = [];

	const published = s.frontends.filter(
		// Only where someone else answers does a port leave slowly; elsewhere there is nobody to leave it to.
		(f) => {
			const key = portKey(f.protocol, f.published);
			return !f.leaving || (facts.kernelPorts.has(key) && !c.servedBy.has(key));
		},
	);
	const specs = published.map((f) => {
		// Clients do not dial a refused port on this node, but its tasks here get what other nodes send them.
		const reason = f.leaving ? undefined : facts.refusedPorts.get(portKey(f.protocol, f.published));
		if (reason !== undefined) refused.push({ port: f.published, protocol: f.protocol, reason });
		return {
			frontend: f,
			index: acquireFrontend(ids, f.key, `${f.protocol}/${f.published}`, options.addresses, nowMs).index,
			refused: reason !== undefined,
		};
	});

	const served: MeshBackend[] = [];
	const numbers: number[] = [];
	const localBackends: [string, LocalBackendRow][] = [];
	const processPorts = new Set<number>();
	const networks: [number, readonly string[]][] = [];
	if (published.length > 0)
		for (const b of s.backends) {
			if (b.gone) continue;
			const node = c.mesh.nodes.get(b.node);
			if (!node) continue;
			const id = ids.backends.acquire(b.macCode, nowMs);
			served.push(b);
			numbers.push(id.index | (id.generation << INDEX_BITS), c.vteps.get(node.address) as number);
			if (b.node !== c.mesh.self) continue;
			const [at4, at6] = endpointsOf(b, facts.endpoints);
			const endpoint = at4 ?? at6;
			if (!isProcess(b) && endpoint === undefined) {
				const address = b.address4 ?? b.address6;
				undeliverable.set(
					b.key,
					address === undefined
						? 'its container has no address on this node yet'
						: `no interface of this node leads to ${address}`,
				);
				continue;
			}
			if (isProcess(b)) processPorts.add(portKey(b.protocol, b.target));
			if (endpoint !== undefined && b.onLink.length > 0) networks.push([endpoint.ifindex, b.onLink]);
			const own = specs.find((f) => f.frontend.target === b.target && f.frontend.protocol === b.protocol);
			const wanted = options.returnPath === 'auto' ? c.options.returnPath : options.returnPath;
			localBackends.push([
				b.mac,
				{
					addr4: isProcess(b) ? c.process4 : at4 ? (b.listens4 ?? (b.address4 as string)) : '::',
					addr6: isProcess(b) ? c.process6 : at6 ? (b.address6 as string) : '::',
					ref: refOf(id.index, id.generation),
					ifindex: endpoint?.ifindex ?? 0,
					frontend: own?.index ?? specs[0].index,
					port: b.target,
					proto: PROTO[b.protocol],
					state: STATE[b.state],
					delivery: isProcess(b)
						? Delivery.DELIVER_PROCESS
						: endpoint?.delivery === 'peer'
							? Delivery.DELIVER_PEER
							: Delivery.DELIVER_NEIGH,
					return_path: RETURN[wanted],
					flags:
						endpoint !== undefined && facts.gateways.has(endpoint.ifindex) && !isProcess(b)
							? LocalFlag.LOCAL_ON_LINK
							: 0,
				},
			]);
		}

	const tables: TableSpec[] = [];
	const frontends: FrontendSpec[] = [];
	const exact: [ExactKey, number][] = [];
	const ports: [number, number][] = [];
	const exactPorts: number[] = [];
	const acl = specs[0]?.index ?? 0;
	const windowNs = BigInt(options.trackingWindowMs) * NS;
	for (const { frontend: f, index, refused: notHere } of specs) {
		const key = portKey(f.protocol, f.published);
		const was: Tables = ids.tables.get(index) ?? { four: false, six: 'none' };
		const same = sameTable(f);
		const have: Tables = {
			four: was.four || f.members4.length > 0,
			six:
				was.six === 'own'
					? 'own'
					: was.six === 'shared'
						? same
							? 'shared'
							: 'own'
						: f.members6.length === 0
							? 'none'
							: same
								? 'shared'
								: 'own',
		};
		ids.tables.set(index, have);
		const table4 = tableId(index, 4, have);
		const table6 = tableId(index, 6, have);
		const kernel = facts.kernelPorts.has(key);
		const spec = (id: number, family: 4 | 6, size: number, members: readonly Member[]): void => {
			tables.push({
				id,
				frontend: index,
				family,
				size,
				windowNs,
				tracked: options.tracking !== 'none',
				members: columns(members, ids),
				fromKernel: (facts.joinedPorts ?? facts.kernelPorts).has(key),
				toKernel: f.leaving,
			});
		};
		if (table4 !== 0) spec(table4, 4, f.size4, f.members4);
		if (have.six === 'own') spec(table6, 6, f.size6, f.members6);
		let flags = 0;
		if (options.affinity === 'client-ip') flags |= FrontendFlag.FRONTEND_AFFINITY;
		if (options.tracking === 'always') flags |= FrontendFlag.FRONTEND_TRACK_ALWAYS;
		if (options.tracking === 'none') flags |= FrontendFlag.FRONTEND_TRACK_NONE;
		if (options.allow.length > 0) flags |= FrontendFlag.FRONTEND_ALLOW;
		if (options.deny.length > 0) flags |= FrontendFlag.FRONTEND_DENY;
		if (kernel) flags |= FrontendFlag.FRONTEND_KERNEL;
		if (s.spec?.scaleFromZero !== undefined && !f.leaving) flags |= FrontendFlag.FRONTEND_HOLDS;
		frontends.push({
			key: f.key,
			index,
			row: {
				window_ns: windowNs,
				udp_window_ns: BigInt(options.udpWindowMs) * NS,
				flags,
				port: f.published,
				proto: PROTO[f.protocol],
				acl,
			},
			table4,
			table6,
		});
		if (notHere) continue;
		if (options.addresses.length === 0) ports.push([key, index]);
		else {
			exactPorts.push(key);
			for (const addr of options.addresses) exact.push([{ addr, port: f.published, proto: PROTO[f.protocol] }, index]);
		}
	}
	const list = (prefixes: readonly string[]): AclKey[] =>
		acl === 0 ? [] : [...new Set(prefixes)].map((prefix) => ({ acl, prefix }));
	return {
		mesh: s,
		// Where every backend has a row, the list that there is anyway.
		backends: new BackendEntries(served.length === s.backends.length ? s.backends : served, numbers),
		localBackends,
		tables,
		frontends,
		allow: list(options.allow),
		deny: list(options.deny),
		exact,
		ports,
		exactPorts,
		processPorts: [...processPorts],
		networks,
		undeliverable,
		refused,
	};
}

/** Whether what services depend on is the same. */
function sameForServices(a: Entries, mesh: Mesh, facts: LocalFacts, options: DatapathOptions): boolean {
	const f = a.facts;
	return (
		a.mesh.self === mesh.self &&
		f.endpoints === facts.endpoints &&
		f.gateways === facts.gateways &&
		f.kernelPorts === facts.kernelPorts &&
		f.joinedPorts === facts.joinedPorts &&
		f.refusedPorts === facts.refusedPorts &&
		f.vtep === facts.vtep &&
		f.processAddress4 === facts.processAddress4 &&
		process6(f) === process6(facts) &&
		a.options.returnPath === options.returnPath
	);
}

function process6(facts: LocalFacts): string {
	return (
		facts.processAddress6 ??
		facts.uplinks.flatMap((u) => u.addresses).find((a) => a.includes(':') && isUsable(a)) ??
		'::'
	);
}

const familyOf = (address: string): 4 | 6 => (address.includes(':') ? 6 : 4);

/** Clients that endpoints must not be shown as they are, and those that this node's own routes would lose. */
function onLinkRows(facts: LocalFacts, services: Iterable<ServiceEntries>): Entries['onLink'] {
	const rows = new Map<string, readonly [OnLinkKey, OnLinkRow]>();
	const [first_port, port_count] = facts.standInPorts;
	const add = (list: number, prefix: string, row: OnLinkRow) => rows.set(`${list}/${prefix}`, [{ list, prefix }, row]);
	const show = (list: number, prefix: string, g: GatewayFact) => {
		const gateway = familyOf(prefix) === 4 ? g.address4 : g.address6;
		if (gateway !== undefined) add(list, prefix, { gateway, ifindex: 0, first_port, port_count });
	};
	for (const [list, g] of facts.gateways) {
		for (const prefix of g.prefixes) {
			show(list, prefix, g);
			const out = familyOf(prefix) === 4 ? facts.wayOut4 : facts.wayOut6;
			if (out) add(0, prefix, { ...out, first_port: 0, port_count: 0 });
		}
	}
	for (const s of services)
		for (const [list, prefixes] of s.networks) {
			const g = facts.gateways.get(list);
			if (g) for (const prefix of prefixes) show(list, prefix, g);
		}
	return rows;
}

/**
 * Works out the rows. Indexes are given out here and freed by the reconciler once their rows are gone. Services whose
 * plan and facts did not change are the same objects as in `previous`.
 *
 * @throws BeelineError FULL where a map's indexes do not suffice
 */
export function entries(
	mesh: Mesh,
	facts: LocalFacts,
	options: DatapathOptions,
	ids: Ids,
	nowMs: number,
	previous?: Entries,
): Entries {
	const nodes = new Map<number, NodeRow>();
	const vteps = new Map<string, number>();
	for (const n of mesh.nodes.values()) {
		const { index } = ids.nodes.acquire(n.address, nowMs);
		const self = n.name === mesh.self;
		const hop = self ? ownWay(facts) : facts.nextHops.get(n.address);
		nodes.set(index, {
			vtep: n.address,
			ifindex: hop?.ifindex ?? 0,
			dmac: hop?.dmac ?? NO_MAC,
			smac: hop?.dmac === undefined ? NO_MAC : hop.smac,
			mtu: hop?.mtu ?? 0,
			flags:
				(hop?.dmac === undefined ? 0 : NodeFlag.NODE_RESOLVED) |
				(facts.dsrProven.has(n.address) ? NodeFlag.NODE_DSR : 0),
		});
		vteps.set(n.address, index);
	}

	const servedBy = new Map<number, string>();
	for (const s of mesh.services.values())
		if (s.options.addresses.length === 0)
			for (const f of s.frontends) if (!f.leaving) servedBy.set(portKey(f.protocol, f.published), s.name);
	const context: Context = {
		mesh,
		facts,
		options,
		ids,
		nowMs,
		servedBy,
		vteps,
		process4: facts.processAddress4 ?? facts.vtep,
		process6: process6(facts),
	};
	const reuse = previous !== undefined && sameForServices(previous, mesh, facts, options);
	const services = new Map<string, ServiceEntries>();
	for (const s of mesh.services.values()) {
		const old = reuse ? previous.services.get(s.name) : undefined;
		const rests = old !== undefined && old.mesh === s && !s.frontends.some((f) => f.leaving);
		services.set(s.name, rests ? old : serviceEntries(s, context));
	}

	const sourceFlags = (port: number) =>
		(within(facts.localPorts, port) ? PortFlag.PORT_LOCAL : 0) |
		(within(facts.masqueradedPorts ?? [], port) ? PortFlag.PORT_MASQUERADED : 0);
	const ports = new Map<number, number>();
	const flag = (key: number, bits: number) => ports.set(key, ((ports.get(key) ?? 0) | bits) >>> 0);
	let processes = false;
	for (const s of services.values()) {
		for (const [key, index] of s.ports) flag(key, index | sourceFlags(key & 0xffff));
		for (const key of s.exactPorts) flag(key, PortFlag.PORT_EXACT | sourceFlags(key & 0xffff));
		for (const key of s.processPorts) {
			flag(key, PortFlag.PORT_PROCESS);
			processes = true;
		}
	}

	const own4: string[] = [];
	const own6: string[] = [];
	const more = new Set<string>();
	for (const a of new Set(facts.uplinks.flatMap((u) => u.addresses))) {
		if (!isUsable(a)) continue;
		const list = a.includes(':') ? own6 : own4;
		if (list.length < MAX_OWN_ADDRESSES) list.push(a);
		else more.add(a);
	}
	const self = vteps.get(mesh.nodes.get(mesh.self)?.address ?? '') ?? 0;
	const nodeIndex = new Map([...mesh.nodes.values()].map((n) => [n.name, vteps.get(n.address) as number]));
	const settings: Settings = {
		heartbeat_ns: 0n,
		stale_after_ns: BigInt(options.staleAfterMs) * NS,
		netns_cookie: facts.netnsCookie,
		table_digest: mesh.digest,
		vtep: facts.vtep,
		vni: options.vni,
		vxlan_port: options.vxlanPort,
		flags:
			(more.size > 0 ? SettingsFlag.SETTINGS_MORE_ADDRESSES : 0) |
			(options.trace ? SettingsFlag.SETTINGS_TRACE : 0) |
			(processes ? SettingsFlag.SETTINGS_PROCESSES : 0) |
			(facts.sources === undefined ? 0 : SettingsFlag.SETTINGS_WATCH_SOURCES) |
			(facts.sources === 'known' ? SettingsFlag.SETTINGS_KNOW_SOURCES : 0),
		self,
		hash_seed: HASH_SEED,
		mark: facts.mark,
		// As Docker has it: of all that comes in by a published port.
		mesh_mtu: mesh.networks.find((n) => n.ingress)?.options.mtu ?? 0,
		own4,
		own6,
	};
	return {
		mesh,
		facts,
		options,
		settings,
		uplinks: new Map(
			facts.uplinks.map((u) => [u.ifindex, { ifindex: u.ifindex, mtu: u.mtu, mac: u.mac, l3_ifindex: u.l3Ifindex }]),
		),
		ownAddresses: more,
		nodes,
		vteps,
		services,
		ports,
		overlay: overlayEntries(
			mesh.networks,
			nodeIndex,
			self,
			facts.overlay ?? [],
			[...mesh.vips.services.values()].flatMap((s) => s.vips),
		),
		onLink: onLinkRows(facts, services.values()),
	};
}

/** Backends of this node that cannot be delivered to: key → why. Feed them back to plan() as Health.downBackends. */
export function undeliverable(e: Entries): Map<string, string> {
	const out = new Map<string, string>();
	for (const s of e.services.values()) for (const [key, why] of s.undeliverable) out.set(key, why);
	return out;
}
