/** Where this node's own backends lie: behind which interface, and how a packet gets there. */
import { json, type Run } from './exec.js';
import type { Link } from './links.js';
import { type Neighbour, nudge } from './neighbours.js';
import type { Way } from './routes.js';

export type Endpoint =
	| {
			readonly address: string;
			readonly delivery: 'peer' | 'neighbour';
			readonly interface: string;
			readonly ifindex: number;
	  }
	| { readonly address: string; readonly problem: string };

/** MAC → port of each bridge. */
export async function readForwarding(run: Run): Promise<Map<string, string>> {
	const out = new Map<string, string>();
	const rows = json<{ mac?: string; ifname?: string; master?: string; state?: string }>(
		await run('bridge', ['-j', 'fdb', 'show']).catch(() => ''),
	);
	for (const r of rows) {
		if (r.mac === undefined || r.ifname === undefined || r.master === undefined || r.state === 'permanent') continue;
		out.set(`${r.master} ${r.mac.toLowerCase()}`, r.ifname);
	}
	return out;
}

export interface EndpointFacts {
	readonly links: ReadonlyMap<string, Link>;
	readonly neighbours: ReadonlyMap<string, Neighbour>;
	readonly forwarding: ReadonlyMap<string, string>;
	/** Devices that carry the mesh: a backend behind one is not on this node. */
	readonly uplinkDevices: ReadonlySet<string>;
}

/** Pure: what the tables say about one address. `unresolved` asks for a nudge and another look. */
export function locate(way: Way, facts: EndpointFacts): Endpoint | 'unresolved' {
	const { address } = way;
	const bad = (problem: string): Endpoint => ({ address, problem });
	if (way.type === 'unreachable') return bad(`${address}: this node has no route to it`);
	if (way.type === 'local')
		return bad(`${address} is this node's own address: leave the address out for a process on the node`);
	const device = facts.links.get(way.device);
	if (device === undefined) return bad(`${address}: its device ${way.device} is gone`);
	if (facts.uplinkDevices.has(device.name)) {
		return bad(
			`${address} lies behind the uplink ${device.name}: a backend must be behind an interface of its own node`,
		);
	}
	if (way.gateway !== undefined) {
		return bad(`${address} is routed by ${way.gateway}: a backend must be on a network of its own node`);
	}
	if (device.type !== 'ether') return bad(`${address} lies behind ${device.name}, which is not Ethernet`);
	if (device.kind !== 'bridge') return at(address, device);
	const neighbour = facts.neighbours.get(`${device.name} ${address}`);
	if (neighbour?.mac === undefined) return 'unresolved';
	const portName = facts.forwarding.get(`${device.name} ${neighbour.mac.toLowerCase()}`);
	const port = portName === undefined ? undefined : facts.links.get(portName);
	if (port === undefined) return 'unresolved';
	if (facts.uplinkDevices.has(port.name))
		return bad(`${address} lies behind the uplink ${port.name}: it is not on this node`);
	if (port.kind === 'veth') return at(address, port);
	return { address, delivery: 'neighbour', interface: device.name, ifindex: device.ifindex };
}

function at(address: string, link: Link): Endpoint {
	const delivery = link.kind === 'veth' && link.peerElsewhere ? ('peer' as const) : ('neighbour' as const);
	return { address, delivery, interface: link.name, ifindex: link.ifindex };
}

/**
 * Locates addresses; what the kernel has not resolved is nudged once, and looked at again for a quarter of a second.
 * @param refresh reads neighbours and forwarding tables anew
 */
export async function locateAll(
	ways: readonly Way[],
	facts: EndpointFacts,
	refresh: () => Promise<EndpointFacts>,
): Promise<Map<string, Endpoint>> {
	const out = new Map<string, Endpoint>();
	let open = ways;
	let now = facts;
	for (let round = 0; ; round++) {
		const next: Way[] = [];
		for (const w of open) {
			const e = locate(w, now);
			if (e === 'unresolved') next.push(w);
			else out.set(w.address, e);
		}
		open = next;
		if (open.length === 0 || round === 4) break;
		if (round === 0) await Promise.all(open.map((w) => nudge(w.address)));
		await new Promise((r) => setTimeout(r, 60));
		now = await refresh();
	}
	for (const w of open) {
		out.set(w.address, { address: w.address, problem: `${w.address} does not answer on ${w.device}: is it up?` });
	}
	return out;
}
