/** Overlay networks → rows of the datapath. Pure. */
import {
	NetworkFlag,
	type Network as NetworkRow,
	type OverlayEndpoint as OverlayEndpointRow,
	OverlayFlag,
	type OverlayPort as OverlayPortRow,
} from '../loader/layout.gen.js';
import { address6Of, macOfAddress, slice6 } from './subnets.js';
import type { NetworkSpec } from './types.js';

/** An endpoint of this node, as it is on it. */
export interface OverlayEndpointFact {
	readonly id: string;
	readonly vni: number;
	readonly address4: string;
	readonly address6?: string;
	readonly mac: string;
	/** Host end of its veth. */
	readonly ifindex: number;
}

/** Rows of the datapath; keys as the store writes them: `VNI address`, `VNI prefix`. */
export interface OverlayEntries {
	readonly networks: ReadonlyMap<number, NetworkRow>;
	readonly endpoints: ReadonlyMap<string, OverlayEndpointRow>;
	readonly slices: ReadonlyMap<string, number>;
	readonly ports: ReadonlyMap<number, OverlayPortRow>;
}

/** A service's address on a network: answers pings; connections are turned at connect time. */
function vipRow(address4: string): OverlayEndpointRow {
	return { node: 0, ifindex: 0, mac: macOfAddress(address4), flags: OverlayFlag.OVERLAY_VIP };
}

/**
 * @param nodeIndex name of a node → its index in the maps
 * @param self index of this node
 */
export function overlayEntries(
	networks: readonly NetworkSpec[],
	nodeIndex: ReadonlyMap<string, number>,
	self: number,
	local: readonly OverlayEndpointFact[],
	vips: Iterable<{ readonly network: number; readonly address: string }> = [],
): OverlayEntries {
	const out = {
		networks: new Map<number, NetworkRow>(),
		endpoints: new Map<string, OverlayEndpointRow>(),
		slices: new Map<string, number>(),
		ports: new Map<number, OverlayPortRow>(),
	};
	for (const n of networks) {
		if (n.driver !== 'beeline') continue;
		out.networks.set(n.vni, { flags: n.options.encrypted ? NetworkFlag.NETWORK_ENCRYPTED : 0 });
		for (const [node, slice] of Object.entries(n.options.slices ?? {})) {
			const index = nodeIndex.get(node);
			if (index === undefined) continue;
			out.slices.set(`${n.vni} ${slice}`, index);
			if (n.subnet6 !== undefined) out.slices.set(`${n.vni} ${slice6(n.subnet6, slice)}`, index);
		}
		for (const e of n.endpoints ?? []) {
			const node = nodeIndex.get(e.node);
			// This node's own are known when they are attached.
			if (node === undefined || node === self) continue;
			const row = { node, ifindex: 0, mac: e.mac ?? macOfAddress(e.address), flags: 0 };
			out.endpoints.set(`${n.vni} ${e.address}`, row);
			const six = e.address6 ?? (n.subnet6 === undefined ? undefined : address6Of(n.subnet6, e.address));
			if (six !== undefined) out.endpoints.set(`${n.vni} ${six}`, row);
		}
	}
	for (const v of vips)
		if (out.networks.has(v.network)) out.endpoints.set(`${v.network} ${v.address}`, vipRow(v.address));
	for (const e of local) {
		if (!out.networks.has(e.vni)) continue;
		const row = { node: self, ifindex: e.ifindex, mac: e.mac, flags: 0 };
		out.endpoints.set(`${e.vni} ${e.address4}`, row);
		if (e.address6 !== undefined) out.endpoints.set(`${e.vni} ${e.address6}`, row);
		out.ports.set(e.ifindex, { addr4: e.address4, addr6: e.address6 ?? '::', vni: e.vni, mac: e.mac });
	}
	return out;
}
