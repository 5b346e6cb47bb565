/** A mesh in few words, and one node's control river on maps in memory. */
import { type DatapathOptions, type Entries, entries, type LocalFacts } from '../../src/mesh/entries.js';
import { createIds, type Ids } from '../../src/mesh/ids.js';
import { HEALTHY, type Health, type Mesh, plan } from '../../src/mesh/plan.js';
import { createReconciler, type ReconcileResult, type Reconciler } from '../../src/mesh/reconcile.js';
import type { Membership, PublishedPort, ServiceOptions, ServiceSpec, Task } from '../../src/mesh/types.js';
import { createMemoryStore, type MemoryStore } from './memory-store.js';

export const OPTIONS: ServiceOptions = {
	returnPath: 'auto',
	affinity: 'none',
	tracking: 'auto',
	trackingWindowMs: 60_000,
	udpWindowMs: 60_000,
	tableSize: 'auto',
	drainTimeoutMs: 30_000,
	addresses: [],
	allow: [],
	deny: [],
	prefer: 'none',
	enable: true,
};

/** `node2 172.18.0.2`, `node1` (a process), `node2 172.18.0.3 fd00::3`, then `w=3`, `drain`, `down`. */
export function task(text: string): Task {
	const [node, ...rest] = text.split(' ');
	const words = rest.filter((w) => /^[a-z]+(=|$)/.test(w) && !w.includes(':'));
	const addresses = rest.filter((w) => !words.includes(w));
	const address4 = addresses.find((a) => !a.includes(':'));
	const address6 = addresses.find((a) => a.includes(':'));
	return {
		node,
		...(address4 === undefined ? {} : { address4 }),
		...(address6 === undefined ? {} : { address6 }),
		weight: Number(words.find((w) => w.startsWith('w='))?.slice(2) ?? 1),
		state: words.includes('drain') ? 'draining' : words.includes('down') ? 'down' : 'active',
	};
}

/** `8080:80`, `53:53/udp` */
export function published(text: string): PublishedPort {
	const [ports, protocol] = text.split('/');
	const [p, t] = ports.split(':').map(Number);
	return { published: p, target: t, protocol: protocol === 'udp' ? 'udp' : 'tcp' };
}

export function service(
	name: string,
	ports: string | readonly string[],
	tasks: readonly string[],
	options: Partial<ServiceOptions> = {},
): ServiceSpec {
	return {
		name,
		ports: [ports].flat().map(published),
		options: { ...OPTIONS, ...options },
		tasks: tasks.map(task),
	};
}

/** Nodes `node1`… at 192.168.78.1…; a name followed by ` drain` is drained. */
export function mesh(nodes: readonly string[], services: readonly ServiceSpec[]): Membership {
	return {
		nodes: nodes.map((n) => {
			const [name, drained] = n.split(' ');
			return { name, address: `192.168.78.${name.replace(/\D/g, '')}`, drained: drained === 'drain' };
		}),
		services,
		networks: [],
	};
}

export const FACTS: LocalFacts = {
	uplinks: [
		{
			name: 'eth0',
			ifindex: 2,
			l3Ifindex: 2,
			mtu: 1500,
			mac: '52:54:00:00:00:01',
			addresses: ['192.168.78.1', 'fd00:78::1', 'fe80::1'],
		},
	],
	vtep: '192.168.78.1',
	netnsCookie: 42n,
	mark: 7,
	nextHops: new Map([
		['192.168.78.2', { ifindex: 2, dmac: '52:54:00:00:00:02', smac: '52:54:00:00:00:01', mtu: 1500 }],
	]),
	dsrProven: new Set(),
	endpoints: new Map(),
	gateways: new Map(),
	standInPorts: [1024, 31744],
	localPorts: [[32768, 60999]],
	masqueradedPorts: [[1024, 65535]],
	kernelPorts: new Set(),
	refusedPorts: new Map(),
};

export const DATAPATH: DatapathOptions = {
	vni: 12509184,
	vxlanPort: 4789,
	staleAfterMs: 60_000,
	returnPath: 'auto',
	trace: false,
};

/** One node: what comes in, and what its maps hold then. */
export interface TestNode {
	readonly store: MemoryStore;
	ids: Ids;
	reconciler: Reconciler;
	mesh: Mesh | undefined;
	entries: Entries | undefined;
	facts: LocalFacts;
	options: DatapathOptions;
	health: Health;
	nowMs: number;
	/** Moves both clocks. */
	wait(ms: number): void;
	apply(m?: Membership): Promise<ReconcileResult>;
	/** A new agent on the same maps. */
	restart(): void;
	/** Writes since the last call. */
	log(): string[];
	/** Slots per backend of a table: `node2/172.18.0.2` → slots; REF_NONE is `none`. */
	shares(table: number): Map<string, number>;
}

export function node(self = 'node1'): TestNode {
	const store = createMemoryStore();
	const ids = createIds();
	let last: Membership = mesh([self], []);
	let logged = 0;
	const n: TestNode = {
		store,
		ids,
		reconciler: createReconciler(store, ids, 0),
		mesh: undefined,
		entries: undefined,
		facts: FACTS,
		options: DATAPATH,
		health: HEALTHY,
		nowMs: 0,
		wait(ms) {
			n.nowMs += ms;
			store.memory.nowNs += BigInt(ms) * 1_000_000n;
		},
		async apply(m = last) {
			last = m;
			n.mesh = plan({ membership: m, self, health: n.health, nowMs: n.nowMs, previous: n.mesh });
			n.entries = entries(n.mesh, n.facts, n.options, n.ids, n.nowMs, n.entries);
			return n.reconciler.reconcile(n.entries, n.nowMs);
		},
		restart() {
			n.ids = createIds();
			n.reconciler = createReconciler(store, n.ids, n.nowMs);
			n.mesh = undefined;
			n.entries = undefined;
		},
		log() {
			const out = store.memory.log.slice(logged);
			logged = store.memory.log.length;
			return out;
		},
		shares(table) {
			const names = new Map<string, string>();
			for (const s of n.mesh?.services.values() ?? [])
				for (const b of s.backends) names.set(b.mac, `${b.node}/${b.address4 ?? b.address6 ?? 'process'}`);
			const out = new Map<string, number>();
			for (const word of store.tables.read(table) ?? []) {
				const ref = word & 0x3fffffff;
				const row = store.backends.get(ref & 0x3fffff);
				const name = ref === 0 ? 'none' : ref === 0x3fffff ? 'kernel' : (names.get(row?.mac ?? '') ?? `? ${ref}`);
				out.set(name, (out.get(name) ?? 0) + 1);
			}
			return new Map([...out].sort());
		},
	};
	return n;
}
