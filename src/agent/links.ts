/** Links and addresses (`ip -d -j addr show`), and which of them are uplinks. Pure but for readLinks(). */
import ipaddr from 'ipaddr.js';
import { json, type Run } from './exec.js';

export interface Link {
	readonly ifindex: number;
	readonly name: string;
	/** ether, loopback, none (tun, WireGuard), … */
	readonly type: string;
	/** veth, bridge, vlan, bond, … ; undefined for hardware. */
	readonly kind: string | undefined;
	/** Kind of the device it is enslaved to. */
	readonly masterKind: string | undefined;
	readonly master: string | undefined;
	readonly mac: string;
	readonly mtu: number;
	readonly up: boolean;
	/** The other end lies in another network namespace. */
	readonly peerElsewhere: boolean;
	/** Name of the device below (VLAN's parent), where it is in this namespace. */
	readonly parent: string | undefined;
	readonly addresses: readonly LinkAddress[];
}

export interface LinkAddress {
	readonly family: 4 | 6;
	readonly address: string;
	readonly prefixLength: number;
	readonly scope: string;
	/** Duplicate address detection is not done, or failed. */
	readonly tentative: boolean;
}

interface RawLink {
	ifindex: number;
	ifname: string;
	flags?: string[];
	link_type?: string;
	address?: string;
	mtu?: number;
	master?: string;
	link?: string;
	link_netnsid?: number;
	linkinfo?: { info_kind?: string; info_slave_kind?: string };
	addr_info?: {
		family?: string;
		local?: string;
		prefixlen?: number;
		scope?: string;
		tentative?: boolean | null;
		dadfailed?: boolean | null;
	}[];
}

export function parseLinks(text: string): Link[] {
	return json<RawLink>(text)
		.filter((l) => typeof l.ifindex === 'number')
		.map((l) => ({
			ifindex: l.ifindex,
			name: l.ifname,
			type: l.link_type ?? 'none',
			kind: l.linkinfo?.info_kind,
			masterKind: l.linkinfo?.info_slave_kind,
			master: l.master,
			mac: l.address ?? '',
			mtu: l.mtu ?? 0,
			up: l.flags?.includes('UP') ?? false,
			peerElsewhere: l.link_netnsid !== undefined,
			parent: l.link,
			addresses: (l.addr_info ?? []).flatMap((a) =>
				a.local === undefined || (a.family !== 'inet' && a.family !== 'inet6')
					? []
					: [
							{
								family: a.family === 'inet' ? (4 as const) : (6 as const),
								address: a.local,
								prefixLength: a.prefixlen ?? 0,
								scope: a.scope ?? 'global',
								tentative: 'tentative' in a || 'dadfailed' in a,
							},
						],
			),
		}));
}

export async function readLinks(run: Run): Promise<Link[]> {
	return parseLinks(await run('ip', ['-d', '-j', 'addr', 'show']));
}

/** Addresses that clients may dial: global scope only, never link-local. */
export function globalAddresses(link: Link): string[] {
	return link.addresses
		.filter((a) => a.scope === 'global' && !a.tentative && !/^fe[89ab]/i.test(a.address))
		.map((a) => a.address);
}

/** Subnets of a device's global addresses, as `172.18.0.0/16`. */
export function connectedPrefixes(link: Link): string[] {
	const global = new Set(globalAddresses(link));
	const out = new Set<string>();
	for (const a of link.addresses) {
		if (!global.has(a.address) || a.prefixLength === 0) continue;
		const kind = a.family === 4 ? ipaddr.IPv4 : ipaddr.IPv6;
		out.add(`${kind.networkAddressFromCIDR(`${a.address}/${a.prefixLength}`)}/${a.prefixLength}`);
	}
	return [...out];
}

/** A device to attach to, and the device above it that has the addresses. */
export interface UplinkChoice {
	readonly link: Link;
	readonly l3: Link;
}

export interface Uplinks {
	readonly uplinks: readonly UplinkChoice[];
	readonly refused: readonly { readonly name: string; readonly reason: string }[];
}

const ATTACHABLE = new Set<string | undefined>([
	undefined,
	'veth',
	'bond',
	'team',
	'dummy',
	'netdevsim',
	'netvsc',
	'hv_netvsc',
]);

/** Why a device cannot be an uplink, or undefined. */
export function whyNot(link: Link, links: readonly Link[]): string | undefined {
	const n = link.name;
	if (link.type === 'loopback') return `${n} is the loopback device: name an Ethernet device`;
	if (link.kind === 'wireguard')
		return `${n} is a WireGuard tunnel, not Ethernet: name the device that its packets leave by`;
	if (link.kind === 'tun') return `${n} is a tun/tap device: name an Ethernet device`;
	if (link.type !== 'ether') return `${n} is not Ethernet (${link.kind ?? link.type}): name an Ethernet device`;
	if (link.kind === 'vlan') {
		return `${n} is a VLAN of ${link.parent ?? 'another device'}: its tags are not read; give the untagged device an address and name that`;
	}
	if (link.kind === 'bridge') {
		const ports = links.filter((l) => l.master === n).map((l) => l.name);
		return `${n} is a bridge: name the port that leads outside${ports.length > 0 ? ` (its ports are ${ports.slice(0, 8).join(', ')})` : ''}`;
	}
	if (link.masterKind === 'bond' || link.masterKind === 'team')
		return `${n} is a member of ${link.master}: name ${link.master}`;
	if (link.masterKind === 'openvswitch')
		return `${n} is a port of an Open vSwitch bridge, which takes its packets first`;
	if (!ATTACHABLE.has(link.kind)) return `${n} is a ${link.kind} device: name the Ethernet device below it`;
	if (!link.up) return `${n} is down: ip link set ${n} up`;
	return undefined;
}

function above(link: Link, links: readonly Link[]): Link {
	if (link.masterKind !== 'bridge') return link;
	return links.find((l) => l.name === link.master) ?? link;
}

const DOCKERS = /^(docker0|docker_gwbridge|br-[0-9a-f]{12})$/;

/**
 * @param wanted names from the configuration; undefined: chosen by DESIGN 5.1
 * @param defaultDevices devices of default routes
 * @param endpointDevices devices behind which this node's own backends lie: never chosen unasked
 * @param vtep this node's outer address
 */
export function chooseUplinks(
	links: readonly Link[],
	wanted: readonly string[] | undefined,
	defaultDevices: ReadonlySet<string>,
	endpointDevices: ReadonlySet<string>,
	vtep?: string,
): Uplinks {
	const uplinks: UplinkChoice[] = [];
	const refused: { name: string; reason: string }[] = [];
	if (wanted !== undefined) {
		for (const name of wanted) {
			const link = links.find((l) => l.name === name);
			const reason =
				link === undefined
					? `${name} does not exist: this node has ${
							links
								.filter((l) => l.type === 'ether')
								.map((l) => l.name)
								.slice(0, 8)
								.join(', ') || 'no Ethernet device'
						}`
					: whyNot(link, links);
			if (reason !== undefined || link === undefined) refused.push({ name, reason: reason ?? '' });
			else uplinks.push({ link, l3: above(link, links) });
		}
		return { uplinks, refused };
	}
	for (const link of links) {
		if (!defaultDevices.has(link.name) && globalAddresses(link).length === 0) continue;
		if (link.type === 'loopback' || DOCKERS.test(link.name)) continue;
		if (endpointDevices.has(link.name) && !defaultDevices.has(link.name)) continue;
		if (link.kind === 'bridge') {
			// What leads outside is the port that is no veth. Where there is none (a node in a container, a test), it is a veth of
			// the bridge that has the VTEP; any other bridge of veths is one of containers.
			const ports = links.filter((l) => l.master === link.name);
			const outside = ports.filter((l) => l.kind !== 'veth');
			const carries = vtep !== undefined && globalAddresses(link).includes(vtep);
			for (const port of outside.length > 0 || !carries ? outside : ports.filter((l) => !endpointDevices.has(l.name))) {
				const reason = whyNot(port, links);
				if (reason === undefined) uplinks.push({ link: port, l3: link });
				else if (defaultDevices.has(link.name)) refused.push({ name: port.name, reason });
			}
			continue;
		}
		const reason = whyNot(link, links);
		if (reason === undefined) uplinks.push({ link, l3: link });
		else if (defaultDevices.has(link.name)) refused.push({ name: link.name, reason });
	}
	return { uplinks, refused };
}
