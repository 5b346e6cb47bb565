/** VIPs (desired) → rows as they should be. Pure but for the indexes, which are given out here. */
import {
	BackendState as BackendStates,
	MAX_NETNS_NETWORKS,
	MAX_VIP_BACKENDS,
	MAX_VIPS,
	type VipBackend as VipBackendRow,
	VipFlag,
} from '../loader/layout.gen.js';
import { createIndexPool, type IndexPool, REUSE_AFTER_MS } from './ids.js';
import type { MaglevMembers } from './maglev.js';
import { type MeshVip, type MeshVips, type ServiceVips, vipTableSize } from './vips.js';

/** Indexes of the rows of VIPs. */
export interface VipIds {
	/** Key: `4097 10.77.1.2`; a VIP's index is its table's. */
	readonly vips: IndexPool;
	/** Key: `4097 10.77.1.5` */
	readonly backends: IndexPool;
}

export function createVipIds(limits: { readonly vips?: number; readonly backends?: number } = {}): VipIds {
	return {
		vips: createIndexPool('VIPs', limits.vips ?? MAX_VIPS, REUSE_AFTER_MS, false),
		backends: createIndexPool('tasks behind VIPs', limits.backends ?? MAX_VIP_BACKENDS, REUSE_AFTER_MS, false),
	};
}

/** Rows of one VIP. */
export interface VipEntry {
	readonly vip: MeshVip;
	/** Its table; there is none where `size` is 0. */
	readonly table: number;
	/** Slots; 0: nobody may be chosen. */
	readonly size: number;
	readonly flags: number;
	readonly members: MaglevMembers;
	readonly backends: readonly (readonly [number, VipBackendRow])[];
}

export interface VipEntries {
	readonly vips: MeshVips;
	/** By service. */
	readonly services: ReadonlyMap<string, { readonly from: ServiceVips; readonly entries: readonly VipEntry[] }>;
	/**
	 * Cookie of a namespace → VNIs of the networks that it is attached to, at most MAX_NETNS_NETWORKS. undefined: not known
	 * yet, and what the maps hold stays.
	 */
	readonly namespaces: ReadonlyMap<bigint, readonly number[]> | undefined;
	readonly kernel: boolean;
}

/** What is true of this node. */
export interface VipFacts {
	/** See VipEntries. */
	readonly namespaces: ReadonlyMap<bigint, readonly number[]> | undefined;
	/** The kernel has IPVS, with which Docker answers for VIPs where we do not. */
	readonly kernel: boolean;
}

const STATE = {
	active: BackendStates.BACKEND_ACTIVE,
	draining: BackendStates.BACKEND_DRAINING,
	down: BackendStates.BACKEND_DOWN,
} as const;

function entry(vip: MeshVip, kernel: boolean, ids: VipIds, nowMs: number): VipEntry {
	const backends = vip.backends.map(
		(b) =>
			[
				ids.backends.acquire(b.key, nowMs).index,
				{ addr: b.address, network: b.network, state: STATE[b.state] },
			] as const,
	);
	const n = vip.members.length;
	const members: MaglevMembers = {
		offset: Uint32Array.from(vip.members, (m) => m.backend.offset),
		skip: Uint32Array.from(vip.members, (m) => m.backend.skip),
		weight: Uint16Array.from(vip.members, (m) => m.weight),
		down: Uint8Array.from(vip.members, (m) => (m.down ? 1 : 0)),
		ref: Uint32Array.from(vip.members, (m) => ids.backends.acquire(m.backend.key, nowMs).index),
	};
	return {
		vip,
		table: ids.vips.acquire(vip.key, nowMs).index,
		size: n === 0 ? 0 : vipTableSize(n),
		flags: (vip.affinity ? VipFlag.VIP_AFFINITY : 0) | (kernel ? VipFlag.VIP_KERNEL : 0),
		members,
		backends,
	};
}

/**
 * Works out the rows of VIPs. Services that did not change are the same objects as in `previous`.
 * @throws BeelineError FULL where a map's indexes do not suffice
 */
export function vipEntries(
	vips: MeshVips,
	facts: VipFacts,
	ids: VipIds,
	nowMs: number,
	previous?: VipEntries,
): VipEntries {
	const { namespaces, kernel } = facts;
	const services = new Map<string, { from: ServiceVips; entries: readonly VipEntry[] }>();
	for (const [name, from] of vips.services) {
		const old = previous?.kernel === kernel ? previous.services.get(name) : undefined;
		services.set(
			name,
			old?.from === from ? old : { from, entries: from.vips.map((v) => entry(v, kernel, ids, nowMs)) },
		);
	}
	return {
		vips,
		services,
		namespaces:
			namespaces === undefined
				? undefined
				: new Map([...namespaces].map(([cookie, vnis]) => [cookie, vnis.slice(0, MAX_NETNS_NETWORKS)])),
		kernel,
	};
}
