/** The three states of the control river: Membership (observed) → plan() → Mesh (desired) → entries() → Entries (rows). */

export type Family = 4 | 6;
export type Protocol = 'tcp' | 'udp';
export type ReturnPath = 'auto' | 'dsr' | 'tunnel';
export type BackendState = 'active' | 'draining' | 'down';

/** Options of one service; DESIGN names, units in the name or the comment. */
export interface ServiceOptions {
	readonly returnPath: ReturnPath;
	readonly affinity: 'none' | 'client-ip';
	readonly tracking: 'auto' | 'always' | 'none';
	readonly trackingWindowMs: number;
	readonly udpWindowMs: number;
	/** Slots of each Maglev table, a power of two, or the smallest of 1024, 16384, 131072 that is ≥ 20 × backends. */
	readonly tableSize: 'auto' | number;
	readonly drainTimeoutMs: number;
	/** Addresses the service is published on; empty: every address of the node's uplinks. */
	readonly addresses: readonly string[];
	/** CIDR prefixes; empty: no list. `deny` wins. */
	readonly allow: readonly string[];
	readonly deny: readonly string[];
	readonly prefer: 'none' | 'local';
	readonly enable: boolean;
}

export interface PublishedPort {
	readonly published: number;
	readonly target: number;
	readonly protocol: Protocol;
}

/**
 * Where a task answers: addresses behind an interface of its node; or, with `families`, addresses that only its own node
 * knows (docs/decisions/0010); or neither: a process on the node itself.
 */
export interface Task {
	/** Where the source names tasks (Docker's id); else the address tells it from the others. */
	readonly id?: string;
	/** Families that it answers in, the same on every node, whoever knows its addresses. */
	readonly families?: readonly Family[];
	readonly node: string;
	readonly address4?: string;
	readonly address6?: string;
	/** Addresses inside overlay networks, by network: where its service's VIPs lead. Absent where the service has none. */
	readonly on?: Readonly<Record<string, string>>;
	/** Networks that it is on beside its gateway's, where its node knows: `10.0.1.0/24`. It answers clients in there on-link. */
	readonly onLink?: readonly string[];
	/** Ports (`tcp/80`) that it listens on at another of its addresses only, where its node knows. */
	readonly elsewhere?: { readonly address4: string; readonly ports: readonly string[] };
	readonly weight: number;
	readonly state: BackendState;
}

/** A service's address inside an overlay network: every port and protocol of it is the service's. */
export interface Vip {
	/** Name of the network. */
	readonly network: string;
	readonly address: string;
}

export interface ServiceSpec {
	readonly name: string;
	/** Published ones; may be none where it has VIPs. */
	readonly ports: readonly PublishedPort[];
	readonly options: ServiceOptions;
	readonly tasks: readonly Task[];
	/** Our overlay networks that its tasks are on, and where its name is known. */
	readonly networks?: readonly string[];
	/** Absent: none (its tasks are on no overlay network, or names lead to them one by one: dnsrr). */
	readonly vips?: readonly Vip[];
	/** It may have no tasks: who comes then is held, and wakes it. `idleMs`: without a packet, before it goes to rest. */
	readonly scaleFromZero?: { readonly idleMs: number };
}

export interface NodeSpec {
	readonly name: string;
	/** Where the source names nodes by more than their name (Swarm's id). */
	readonly id?: string;
	/** IPv4 of the VTEP. */
	readonly address: string;
	readonly drained: boolean;
}

export interface NetworkOptions {
	/** Of the underlay; endpoints get 50 bytes less, as with Docker's driver. undefined: that of the uplink. */
	readonly mtu?: number;
	/** Endpoints get no way out of the network. */
	readonly internal?: boolean;
	readonly encrypted?: boolean;
	/** Node → its part of the subnet, where the source has nowhere to give out single addresses. */
	readonly slices?: Readonly<Record<string, string>>;
}

/** An endpoint that the source knows. Others have only an address of their node's slice. */
export interface NetworkEndpoint {
	/** The same on every node. */
	readonly id: string;
	readonly node: string;
	readonly address: string;
	readonly address6?: string;
	/** Default: `02:42:` and the address. */
	readonly mac?: string;
	readonly name?: string;
	readonly aliases: readonly string[];
	/** The service whose task it is. */
	readonly service?: string;
	/** No endpoint: the address is a service's VIP. */
	readonly vip?: boolean;
}

export interface NetworkSpec {
	readonly name: string;
	/** Where the source names networks by more than their name (Docker's id). */
	readonly id?: string;
	/** beeline: its packets are ours; overlay: Docker's driver carries them. */
	readonly driver: 'beeline' | 'overlay';
	/** IPv4. */
	readonly subnet: string;
	/** IPv6, at most /96: an endpoint's address is this prefix and, in the last 32 bits, its IPv4 address. */
	readonly subnet6?: string;
	/** Never given to an endpoint. Default: the subnet's first address. */
	readonly gateway?: string;
	/** Endpoints without a wish get addresses of this part only. */
	readonly ipRange?: string;
	/** Unique in the cluster. */
	readonly vni: number;
	readonly attachable: boolean;
	readonly ingress?: boolean;
	readonly labels?: Readonly<Record<string, string>>;
	readonly options: NetworkOptions;
	/** Those that the source knows; absent: none. */
	readonly endpoints?: readonly NetworkEndpoint[];
}

/** What a source observed. Complete by construction: a source never hands out a partial list. */
export interface Membership {
	readonly nodes: readonly NodeSpec[];
	readonly services: readonly ServiceSpec[];
	readonly networks: readonly NetworkSpec[];
}
