/** The datapath's maps in memory: what reconcile() writes to in tests that need no kernel. */
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
	TableRef,
	Transition,
	Uplink,
	Vip,
	VipBackend,
	VipKey,
} from '../../src/loader/layout.gen.js';
import type {
	AclKey,
	ExactKey,
	MeshStore,
	OnLinkKey,
	OpenTable,
	RowStore,
	TableStore,
	TransitionRow,
} from '../../src/mesh/store.js';

interface MemoryTable {
	slots: Uint32Array;
	transitions: (TransitionRow | undefined)[] | undefined;
}

/** What a test may do besides: look at the tables, count writes, make a part fail, move the clock. */
export interface MemoryStore extends MeshStore {
	readonly memory: {
		readonly tables: Map<number, MemoryTable>;
		/** Every write in order, as `backends.set 1` or `tables.create 2`. */
		readonly log: string[];
		/** Thrown by the next write whose log line starts so; stays until deleted. */
		readonly failures: Map<string, Error>;
		nowNs: bigint;
		/** Rows of all maps, for "ends in empty maps". Tombs of backends do not count. */
		rows(): string[];
	};
}

const isZero = (v: unknown): boolean =>
	typeof v === 'number'
		? v === 0
		: typeof v === 'bigint'
			? v === 0n
			: typeof v === 'string'
				? v === '::' || v === '0.0.0.0' || v === '00:00:00:00:00:00'
				: Array.isArray(v)
					? v.every(isZero)
					: typeof v === 'object' && v !== null
						? Object.values(v).every(isZero)
						: false;

const EMPTY_SETTINGS: Settings = {
	heartbeat_ns: 0n,
	stale_after_ns: 0n,
	netns_cookie: 0n,
	table_digest: 0n,
	vtep: '0.0.0.0',
	vni: 0,
	vxlan_port: 0,
	flags: 0,
	self: 0,
	hash_seed: 0,
	mark: 0,
	mesh_mtu: 0,
	own4: [],
	own6: [],
};

const keyText = (k: unknown): unknown => (typeof k === 'bigint' ? String(k) : k);

/**
 * @param log whether to note every write; 100 000 rows do not want it
 */
export function createMemoryStore(log = true): MemoryStore {
	const memory: MemoryStore['memory'] = {
		tables: new Map(),
		log: [],
		failures: new Map(),
		nowNs: 1_000_000_000_000n,
		rows: () => [
			...[...backends.entries()].filter(([, r]) => r.state !== 0).map(([k]) => `backends ${k}`),
			...[...local.entries()].map(([k]) => `local_backends ${k}`),
			...[...frontends.entries()].map(([k]) => `frontends ${k}`),
			...[...rehashes.entries()].map(([k]) => `rehashes ${k}`),
			...[...untracked.entries()].map(([k]) => `untracked ${k}`),
			...[...ports.entries()].map(([k]) => `ports ${k}`),
			...[...exact.entries()].map(([k]) => `exact_frontends ${JSON.stringify(k)}`),
			...[...allow.entries()].map(([k]) => `allow ${JSON.stringify(k)}`),
			...[...deny.entries()].map(([k]) => `deny ${JSON.stringify(k)}`),
			...[...onLink.entries()].map(([k]) => `on_link ${JSON.stringify(k)}`),
			...[...nodes.entries()].map(([k]) => `nodes ${k}`),
			...[...vteps.entries()].map(([k]) => `vteps ${k}`),
			...[...networks.entries()].map(([k]) => `networks ${k}`),
			...[...overlayEndpoints.entries()].map(([k]) => `overlay_endpoints ${k}`),
			...[...overlaySlices.entries()].map(([k]) => `overlay_slices ${k}`),
			...[...overlayPorts.entries()].map(([k]) => `overlay_ports ${k}`),
			...[...uplinks.entries()].map(([k]) => `uplinks ${k}`),
			...[...own.entries()].map(([k]) => `own_addresses ${k}`),
			...[...memory.tables.keys()].map((k) => `tables ${k}`),
			...[...namespaces.entries()].map(([k]) => `netns_networks ${k}`),
			...[...vips.entries()].map(([k]) => `vips ${k.network} ${k.addr}`),
			...[...vipBackends.entries()].map(([k]) => `vip_backends ${k}`),
			...[...vipTables.keys()].map((k) => `vip_tables ${k}`),
		],
	};
	const note = (line: string) => {
		for (const [prefix, error] of memory.failures) if (line.startsWith(prefix)) throw error;
		if (log) memory.log.push(line);
	};
	/** In an array a row of zeroes is none. */
	function rows<K, V>(
		map: string,
		keyOf: (k: K) => unknown = (k) => k,
		kind: 'array' | 'hash' = 'array',
	): RowStore<K, V> {
		const data = new Map<unknown, [K, V]>();
		return {
			get: (key) => data.get(keyOf(key))?.[1],
			entries: () => [...data.values()],
			setMany(list) {
				const all = [...list];
				if (log || memory.failures.size > 0) for (const [k] of all) note(`${map}.set ${JSON.stringify(keyText(k))}`);
				for (const [k, v] of all)
					if (kind === 'array' && isZero(v)) data.delete(keyOf(k));
					else data.set(keyOf(k), [k, v]);
			},
			deleteMany(keys) {
				for (const k of keys) {
					note(`${map}.delete ${JSON.stringify(keyText(k))}`);
					data.delete(keyOf(k));
				}
			},
		};
	}
	let settings: Settings = EMPTY_SETTINGS;
	const uplinks = rows<number, Uplink>('uplinks', (k) => k & 1023);
	const own = rows<string, number>('own_addresses');
	const ports = rows<number, number>('ports');
	const sourcePorts = rows<number, number>('source_ports');
	const exact = rows<ExactKey, number>('exact_frontends', (k) => `${k.proto}/${k.port}/${k.addr}`);
	const frontends = rows<number, Frontend>('frontends');
	const rehashes = rows<number, Transition>('rehashes', undefined, 'hash');
	const untracked = rows<number, Transition>('untracked', undefined, 'hash');
	const backends = rows<number, Backend>('backends');
	const local = rows<string, LocalBackend>('local_backends');
	const nodes = rows<number, Node>('nodes');
	const vteps = rows<string, number>('vteps');
	const allow = rows<AclKey, number>('allow', (k) => `${k.acl}/${k.prefix}`);
	const networks = rows<number, Network>('networks', undefined, 'hash');
	const overlayEndpoints = rows<string, OverlayEndpoint>('overlay_endpoints', undefined, 'hash');
	const overlaySlices = rows<string, number>('overlay_slices', undefined, 'hash');
	const overlayPorts = rows<number, OverlayPort>('overlay_ports', undefined, 'hash');
	const deny = rows<AclKey, number>('deny', (k) => `${k.acl}/${k.prefix}`);

	const namespaces = rows<bigint, readonly number[]>('netns_networks', String, 'hash');
	const vips = rows<VipKey, Vip>('vips', (k) => `${k.network} ${k.addr}`, 'hash');
	const vipBackends = rows<number, VipBackend>('vip_backends');
	const vipTables = new Map<number, Uint32Array>();
	const onLink = rows<OnLinkKey, OnLink>('on_link', (k) => `${k.list}/${k.prefix}`);

	const table = (id: number): MemoryTable => {
		const t = memory.tables.get(id);
		if (!t) throw Object.assign(new Error(`table ${id} does not exist`), { code: 'ENOENT' });
		return t;
	};
	const tables: TableStore = {
		ids: () => memory.tables.keys(),
		read: (id) => memory.tables.get(id)?.slots.slice(),
		hasTransitions: (id) => memory.tables.get(id)?.transitions !== undefined,
		create(list) {
			for (const [id, slots] of list) {
				note(`tables.create ${id}`);
				memory.tables.set(id, { slots: slots.slice(), transitions: undefined });
			}
		},
		grow(id, size) {
			note(`tables.grow ${id}`);
			const old = table(id);
			const n = old.slots.length;
			const { transitions } = old;
			memory.tables.set(id, {
				slots: Uint32Array.from({ length: size }, (_, i) => old.slots[i % n]),
				transitions:
					transitions &&
					Array.from({ length: size }, (_, i) => transitions[i % n] && { ...(transitions[i % n] as TransitionRow) }),
			});
		},
		edit(id, edit) {
			note(`tables.edit ${id}`);
			const t = table(id);
			const open: OpenTable = {
				size: t.slots.length,
				slot: (i) => t.slots[i],
				setSlot(i, v) {
					t.slots[i] = v;
				},
				transition: (i) => t.transitions?.[i],
				setTransition(i, row) {
					t.transitions ??= new Array(t.slots.length).fill(undefined);
					t.transitions[i] = { ...row };
				},
			};
			return edit(open);
		},
		dropTransitions(ids) {
			for (const id of typeof ids === 'number' ? [ids] : ids) {
				note(`tables.dropTransitions ${id}`);
				table(id).transitions = undefined;
			}
		},
		delete(ids) {
			for (const id of ids) {
				note(`tables.delete ${id}`);
				memory.tables.delete(id);
			}
		},
	};
	return {
		memory,
		settings: {
			get: () => settings,
			set(row) {
				note('settings.set');
				settings = { ...row };
			},
		},
		uplinks,
		ownAddresses: own,
		ports,
		sourcePorts,
		exactFrontends: exact,
		frontends,
		setTableRef(index, family, ref) {
			note(`frontends.setTableRef ${index}`);
			const row = frontends.get(index);
			if (!row) throw Object.assign(new Error(`frontend ${index} does not exist`), { code: 'ENOENT' });
			const next: [TableRef, TableRef] = [row.tables[0], row.tables[1]];
			next[family === 4 ? 0 : 1] = { ...ref };
			const old = log;
			frontends.setMany([[index, { ...row, tables: next }]]);
			if (old) memory.log.pop();
		},
		rehashes,
		untracked,
		tables,
		backends,
		localBackends: local,
		nodes,
		vteps,
		networks,
		overlayEndpoints,
		overlaySlices,
		overlayPorts,
		allow,
		deny,
		vip: {
			namespaces,
			vips,
			backends: vipBackends,
			tables: {
				ids: () => [...vipTables.keys()],
				read: (id) => vipTables.get(id)?.slice(),
				put(list) {
					for (const [id, slots] of list) {
						note(`vip_tables.put ${id} ${slots.length}`);
						vipTables.set(id, slots.slice());
					}
				},
				write(id, slots) {
					note(`vip_tables.write ${id}`);
					if (vipTables.get(id)?.length !== slots.length) throw new Error(`table ${id} has another size`);
					vipTables.set(id, slots.slice());
				},
				delete(ids) {
					for (const id of ids) {
						note(`vip_tables.delete ${id}`);
						vipTables.delete(id);
					}
				},
			},
		},
		onLink,
		counters: () => ({ verdicts: [], frontends: new Map(), backends: new Map() }),
		clearCounters() {},
		flows: () => ({ flows: [], limited: false }),
		sizes: () => [
			{ map: 'backends', entries: [...backends.entries()].length, maxEntries: 131072 },
			{ map: 'frontends', entries: [...frontends.entries()].length, maxEntries: 65536 },
		],
		now: () => memory.nowNs,
	};
}
