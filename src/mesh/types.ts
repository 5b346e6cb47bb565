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
	/** Networks that it is on beside its gateway's, where its node knows: `10.0.1.0/24`. It answers clients in there on-link. */
	readonly onLink?: readonly string[];
	readonly weight: number;
	readonly state: BackendState;
}

export interface ServiceSpec {
	readonly name: string;
	readonly ports: readonly PublishedPort[];
	readonly options: ServiceOptions;
	readonly tasks: readonly Task[];
}

export interface NodeSpec {
	readonly name: string;
	/** Where the source names nodes by more than their name (Swarm's id). */
	readonly id?: string;
	/** IPv4 of the VTEP. */
	readonly address: string;
	readonly drained: boolean;
}

export interface NetworkSpec {
	readonly name: string;
	readonly subnet: string;
	readonly vni: number;
	readonly attachable: boolean;
	readonly options: Readonly<Record<string, unknown>>;
}

/** What a source observed. Complete by construction: a source never hands out a partial list. */
export interface Membership {
	readonly nodes: readonly NodeSpec[];
	readonly services: readonly ServiceSpec[];
	readonly networks: readonly NetworkSpec[];
}
