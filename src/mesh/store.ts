import type {
	Backend,
	Frontend,
	LocalBackend,
	Network,
	Node,
	OnLink,
	OverlayEndpoint,
	OverlayPort,
	Settings,
	Transition,
	Uplink,
	Vip,
	VipBackend,
	VipKey,
} from '../loader/layout.gen.js';

/**
 * The datapath's maps as reconcile() sees them. src/loader implements it on pinned maps, tests in memory; one contract
 * suite (test/mesh/store.contract.ts) holds for both.
 *
 * Rows use the C names and units of bpf/mesh.h; addresses are text (`10.0.0.1`, `fd00::1`), MACs are `06:…` text,
 * ports are host-order numbers.
 */
export interface RowStore<K, V> {
	get(key: K): V | undefined;
	/** Every row that is not empty (arrays: not all zero). */
	entries(): Iterable<[K, V]>;
	/** Adds or replaces, in batches where the kernel can. */
	setMany(rows: Iterable<readonly [K, V]>): void;
	/** Deletes; in an array: writes zeroes. Missing keys are no error. */
	deleteMany(keys: Iterable<K>): void;
}

/** Cold data of one slot (struct transition). */
export interface TransitionRow {
	sinceNs: bigint;
	neededNs: bigint;
	previous: number;
	generation: number;
}

/** One Maglev table while it is mapped for writing. Every write is visible to the programs at once. */
export interface OpenTable {
	readonly size: number;
	/** reference | phase << 30 */
	slot(i: number): number;
	/** A single aligned 32-bit store, ordered after all earlier stores. */
	setSlot(i: number, value: number): void;
	/** undefined where the table has no transitions map or the row was never written. */
	transition(i: number): TransitionRow | undefined;
	/** Creates the transitions map on first use. */
	setTransition(i: number, row: TransitionRow): void;
}

export interface TableStore {
	/** Ids of the tables that exist. */
	ids(): Iterable<number>;
	/** Slots of a table, copied. */
	read(table: number): Uint32Array | undefined;
	hasTransitions(table: number): boolean;
	/** Creates many tables at once, all slots as given (stable ones need no transitions); replaces existing ones. */
	create(tables: Iterable<readonly [number, Uint32Array]>): void;
	/** Puts a larger table beside the old one: child i inherits slot and transition i mod the old size. */
	grow(table: number, size: number): void;
	/** Maps a table, runs `edit`, unmaps. */
	edit<T>(table: number, edit: (t: OpenTable) => T): T;
	/**
	 * Creates the transitions maps of many tables that are about to leave stable: the kernel waits once (5-15 ms) for all of
	 * them, where setTransition() makes it wait for each.
	 */
	prepareTransitions?(tables: Iterable<number>): void;
	/** Removes the transitions maps of tables whose slots are all stable; many at once, for the same reason. */
	dropTransitions(tables: number | Iterable<number>): void;
	delete(tables: Iterable<number>): void;
}

/** Maps of service VIPs inside overlay networks. */
export interface VipStore {
	/** Cookie of a network namespace → VNIs of the networks that it is attached to. */
	readonly namespaces: RowStore<bigint, readonly number[]>;
	readonly vips: RowStore<VipKey, Vip>;
	readonly backends: RowStore<number, VipBackend>;
	readonly tables: {
		/** Slots of a table, copied; undefined: there is none. */
		read(table: number): Uint32Array | undefined;
		/** Puts whole tables in, each at once, in place of those that were there; the kernel waits once for all of them. */
		put(tables: Iterable<readonly [number, Uint32Array]>): void;
		/** Writes slots of a table of the same size in place, each in one store. */
		write(table: number, slots: Uint32Array): void;
		delete(tables: Iterable<number>): void;
		ids(): Iterable<number>;
	};
}

export interface ExactKey {
	addr: string;
	port: number;
	proto: number;
}

export interface AclKey {
	acl: number;
	/** Text CIDR, either family. */
	prefix: string;
}

/** Clients that an endpoint must not see as they are (struct on_link_key). */
export interface OnLinkKey {
	/** ifindex of the endpoint; 0: the node itself. */
	list: number;
	/** Text CIDR, either family. */
	prefix: string;
}

/** A flow record of revnat, for GET /v1/flows. */
export interface FlowRow {
	client: string;
	clientPort: number;
	frontend: string;
	frontendPort: number;
	endpoint: string;
	targetPort: number;
	protocol: 'tcp' | 'udp';
	node: number;
	ref: number;
	state: 'new' | 'replied' | 'established' | 'closing';
	idleMs: number;
}

export interface Counters {
	/** [program][verdict] */
	verdicts: { program: number; verdict: number; packets: bigint; bytes: bigint }[];
	frontends: Map<number, { packets: bigint; bytes: bigint }>;
	backends: Map<number, { packets: bigint; bytes: bigint; newFlows: bigint }>;
}

export interface MeshStore {
	readonly settings: { get(): Settings; set(row: Settings): void };
	/** Key: ifindex. */
	readonly uplinks: RowStore<number, Uplink>;
	readonly ownAddresses: RowStore<string, number>;
	/** Key: protocol (TCP 0, UDP 1) << 16 | port. Value: flags | frontend index, as an unsigned 32-bit number. */
	readonly ports: RowStore<number, number>;
	/** Key, as in `ports`: what something left from; value: 1. The programs add to it. */
	readonly sourcePorts: RowStore<number, number>;
	readonly exactFrontends: RowStore<ExactKey, number>;
	readonly frontends: RowStore<number, Frontend>;
	/** One aligned 64-bit store of a frontend's (table, mask): switches a family's table. */
	setTableRef(frontend: number, family: 4 | 6, ref: { table: number; mask: number }): void;
	/** Key: index of a frontend whose affinity changed. */
	readonly rehashes: RowStore<number, Transition>;
	/** Key: index of a frontend that does not track always any more. */
	readonly untracked: RowStore<number, Transition>;
	readonly tables: TableStore;
	readonly backends: RowStore<number, Backend>;
	readonly localBackends: RowStore<string, LocalBackend>;
	readonly nodes: RowStore<number, Node>;
	readonly vteps: RowStore<string, number>;
	readonly allow: RowStore<AclKey, number>;
	readonly deny: RowStore<AclKey, number>;
	/** Key: VNI. */
	readonly networks: RowStore<number, Network>;
	/** Key: `5001 10.44.0.2`. */
	readonly overlayEndpoints: RowStore<string, OverlayEndpoint>;
	/** Key: `5001 10.44.0.0/26`; value: index of the node. */
	readonly overlaySlices: RowStore<string, number>;
	/** Key: ifindex of the host end. */
	readonly overlayPorts: RowStore<number, OverlayPort>;
	readonly vip: VipStore;
	readonly onLink: RowStore<OnLinkKey, OnLink>;
	counters(): Counters;
	/** Resets the counters of indexes that are about to be reused. */
	clearCounters(kind: 'frontends' | 'backends', indexes: Iterable<number>): void;
	/** Living flows of this node's backends, at most `limit`; `limited` says that more exist. */
	flows(limit: number): { flows: FlowRow[]; limited: boolean };
	/** Entries and capacity of each map, for metrics. */
	sizes(): { map: string; entries: number; maxEntries: number }[];
	/** CLOCK_BOOTTIME in ns. */
	now(): bigint;
}
