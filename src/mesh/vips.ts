/**
 * Service VIPs inside overlay networks: which address leads to which tasks (docs/decisions/0013). Pure. A task's address in
 * a network takes every port and protocol, so there are no frontends here, and as a socket asks once, no transitions.
 */
import { hash64 } from './hash.js';
import type { Health } from './plan.js';
import type { BackendState, Membership, NodeSpec, ServiceSpec } from './types.js';

/** A task's address in one network. */
export interface VipBackend {
	/** `4097 10.77.1.5` */
	readonly key: string;
	/** VNI. */
	readonly network: number;
	readonly address: string;
	readonly node: string;
	readonly weight: number;
	readonly state: BackendState;
	/** Where its permutation of a Maglev table starts, and how it goes on. */
	readonly offset: number;
	readonly skip: number;
}

/** A backend's place in a table. */
export interface VipMember {
	readonly backend: VipBackend;
	/** ≥ 1 */
	readonly weight: number;
	/** Its slots are dealt to the others. */
	readonly down: boolean;
}

export interface MeshVip {
	/** `4097 10.77.1.2` */
	readonly key: string;
	/** VNI. */
	readonly network: number;
	readonly networkName: string;
	readonly address: string;
	/** The same client namespace gets the same task. */
	readonly affinity: boolean;
	/** All tasks of the service in this network, sorted by key. */
	readonly backends: readonly VipBackend[];
	/** Who may be chosen. Empty: dials are refused. */
	readonly members: readonly VipMember[];
}

/** VIPs of one service. */
export interface ServiceVips {
	readonly service: string;
	readonly vips: readonly MeshVip[];
}

export interface MeshVips {
	/** By service. One that did not change is the same object as before. */
	readonly services: ReadonlyMap<string, ServiceVips>;
	/** What it was planned from. */
	readonly from: {
		readonly membership: Membership;
		readonly self: string;
		readonly downNodes: ReadonlySet<string>;
	};
}

export const NO_VIPS: MeshVips = {
	services: new Map(),
	from: { membership: { nodes: [], services: [], networks: [] }, self: '', downNodes: new Set() },
};

/** Of the cluster, the same for ever: another seed would move unconnected sockets. */
const TABLE_SEED = 0x76697073;

/** `4097 10.77.1.5`: an address means something only in its network. */
export function vipKey(network: number, address: string): string {
	return `${network} ${address}`;
}

/** Slots for a number of tasks: a power of two, so many that shares differ by 5 % at most. */
export function vipTableSize(members: number): number {
	let size = 64;
	while (size < members * 20 && size < 65536) size *= 2;
	return size;
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function membersOf(backends: readonly VipBackend[], preferred: string | undefined): readonly VipMember[] {
	const serving = backends.filter((b) => b.state !== 'draining');
	const active = (list: readonly VipBackend[]) => list.some((b) => b.state === 'active');
	let chosen = serving.filter((b) => b.weight > 0);
	// Weight 0 is the last resort, as with published ports.
	if (!active(chosen)) chosen = serving;
	if (!active(chosen)) return [];
	if (preferred !== undefined) {
		const near = chosen.filter((b) => b.node === preferred);
		if (active(near)) chosen = near;
	}
	return chosen.map((backend) => ({ backend, weight: Math.max(1, backend.weight), down: backend.state === 'down' }));
}

interface Context {
	readonly vnis: ReadonlyMap<string, number>;
	readonly nodes: ReadonlyMap<string, NodeSpec>;
	readonly self: string;
	readonly downNodes: ReadonlySet<string>;
}

function planService(s: ServiceSpec, c: Context): ServiceVips {
	const vips: MeshVip[] = [];
	for (const { network: networkName, address } of s.vips ?? []) {
		const network = c.vnis.get(networkName);
		if (network === undefined) continue;
		const drafts = new Map<string, { backend: VipBackend; unwell: boolean }>();
		for (const t of s.tasks) {
			const at = t.on?.[networkName];
			const node = c.nodes.get(t.node);
			if (at === undefined || node === undefined) continue;
			const key = vipKey(network, at);
			const state: BackendState = t.state === 'active' && node.drained ? 'draining' : t.state;
			// Docker gives an address to the next task when the one before it is over: the living one has it.
			const other = drafts.get(key);
			if (other !== undefined && (state === 'down' || other.backend.state === 'active')) continue;
			const { low, high } = hash64(key, TABLE_SEED);
			drafts.set(key, {
				backend: { key, network, address: at, node: t.node, weight: t.weight, state, offset: low, skip: high },
				unwell: state === 'active' && t.node !== c.self && c.downNodes.has(t.node),
			});
		}
		// A false alarm about every task must not take the service down: what all seem to have, none has.
		const candidates = [...drafts.values()].filter((d) => d.backend.state === 'active');
		const alarm = candidates.every((d) => d.unwell);
		const backends = [...drafts.values()]
			.map(({ backend, unwell }): VipBackend => (unwell && !alarm ? { ...backend, state: 'down' } : backend))
			.sort((a, b) => compare(a.key, b.key));
		vips.push({
			key: vipKey(network, address),
			network,
			networkName,
			address,
			affinity: s.options.affinity === 'client-ip',
			backends,
			members: membersOf(backends, s.options.prefer === 'local' ? c.self : undefined),
		});
	}
	return { service: s.name, vips };
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
	return a.size === b.size && [...a].every((x) => b.has(x));
}

/** Works out where VIPs lead. `enable: false` leaves a service's VIPs to Docker, as its ports. */
export function planVips(
	membership: Membership,
	self: string,
	health: Pick<Health, 'downNodes'>,
	previous: MeshVips = NO_VIPS,
): MeshVips {
	const { from } = previous;
	const { downNodes } = health;
	const rests =
		from.membership.nodes === membership.nodes &&
		from.membership.networks === membership.networks &&
		from.self === self &&
		sameSet(from.downNodes, downNodes);
	if (rests && from.membership.services === membership.services) return previous;
	const context: Context = {
		vnis: new Map(membership.networks.map((n) => [n.name, n.vni])),
		nodes: new Map(membership.nodes.map((n) => [n.name, n])),
		self,
		downNodes,
	};
	const specs = rests ? new Map(from.membership.services.map((s) => [s.name, s])) : undefined;
	const services = new Map<string, ServiceVips>();
	for (const s of membership.services) {
		if (s.vips === undefined || s.vips.length === 0 || !s.options.enable) continue;
		const old = specs?.get(s.name) === s ? previous.services.get(s.name) : undefined;
		services.set(s.name, old ?? planService(s, context));
	}
	return { services, from: { membership, self, downNodes } };
}
