/**
 * What is true of this node: uplinks, addresses, ways to other nodes, interfaces of its own backends, ports. Read from the
 * kernel each time; parts that did not change keep their identity, which is how entries() knows that nothing is to do.
 */
import { readFileSync } from 'node:fs';
import { BeelineError } from '../errors.js';
import {
	type EndpointFact,
	type GatewayFact,
	type LocalFacts,
	type NextHop,
	portKey,
	type UplinkFact,
	type WayOut,
	within,
} from '../mesh/entries.js';
import { isProcess, type Mesh } from '../mesh/plan.js';
import type { Protocol } from '../mesh/types.js';
import { type Endpoint, type EndpointFacts, locateAll, readForwarding } from './endpoints.js';
import type { Run } from './exec.js';
import { covers, type Firewall, readFirewall } from './firewall.js';
import { chooseUplinks, connectedPrefixes, globalAddresses, type Link, readLinks, type UplinkChoice } from './links.js';
import { forget, manage, type Neighbour, readNeighbours } from './neighbours.js';
import {
	contestedPorts,
	localPortRange,
	type PortRules,
	type Published,
	readSockets,
	refusePorts,
	unaskedPorts,
} from './ports.js';
import { type DefaultRoute, defaultRoutes, type Way, waysTo } from './routes.js';

export interface LocalInput {
	readonly mesh: Mesh;
	/** From the configuration; the membership's where it says nothing. */
	readonly address: string | undefined;
	readonly uplinks: readonly string[] | undefined;
	readonly vxlanPort: number;
	readonly httpPorts: ReadonlySet<number>;
	/** UDP; undefined: this node encrypts nothing. */
	readonly keyPort?: number;
	readonly acceptFirewallBypass: boolean;
	/** Devices that hold the gateway of tasks, backends or not: beeline_gw, docker_gwbridge. */
	readonly gateways: readonly string[];
}

/** A way to another node, for the operator. */
export interface NodeWay {
	readonly device: string;
	readonly gateway: string | undefined;
	readonly mac: string | undefined;
	readonly mtu: number;
}

export interface Local {
	readonly facts: LocalFacts;
	readonly uplinks: readonly UplinkChoice[];
	/** Uplinks that are refused. */
	readonly refused: readonly { readonly name: string; readonly reason: string }[];
	readonly warnings: readonly string[];
	/** By VTEP. */
	readonly ways: ReadonlyMap<string, NodeWay>;
	/** Local backends' addresses that cannot be reached, and why. */
	readonly problems: ReadonlyMap<string, string>;
	/** Names of interfaces, by index. */
	readonly names: ReadonlyMap<number, string>;
	/** Names of refused ports, and why: `tcp/8080`. */
	readonly refusedPorts: readonly { readonly key: string; readonly service: string; readonly reason: string }[];
	/** Published ports that are (to be) served, as numbers: what is to be reserved. */
	readonly publishedPorts: ReadonlySet<number>;
	/** Those and the refused ones. */
	readonly allPublishedPorts: ReadonlySet<number>;
	/** Neighbours that this agent asked the kernel to keep. */
	readonly neighbours: readonly { readonly device: string; readonly address: string }[];
}

export interface LocalState {
	/** Reads everything anew. @throws BeelineError NO_UPLINK, NO_ADDRESS, NOT_A_MEMBER */
	collect(input: LocalInput): Promise<Local>;
	/** Whether a neighbour's line of the monitor says anything new about a next hop or an endpoint. */
	concerns(key: string, mac: string | undefined): boolean;
	/** The firewall is read again at the next collect(). */
	rereadFirewall(): void;
}

/** Rules of the node are read again after so long: Docker's for a port come later than the port. */
const FIREWALL_MS = 20_000;

export interface LocalDeps {
	readonly run: Run;
	readonly netnsCookie: bigint;
	/** Programs ask the kernel's conntrack. */
	readonly asksConntrack: boolean;
	readonly mark: number;
	/** `tcp/8080` that are served already, by the maps that an earlier agent left. */
	readonly served: ReadonlySet<string>;
	/** `tcp/8080` that the kernel's own mesh answers, by the state file. */
	readonly kernelPorts: readonly string[];
	/** That an earlier agent asked for. */
	readonly neighbours: readonly { readonly device: string; readonly address: string }[];
	/** Next hops' MACs that an earlier agent left in the maps, by VTEP: better than none until the kernel says. */
	readonly lastMacs: ReadonlyMap<string, string>;
	/** VTEPs whose source address this node may use. */
	readonly dsrProven: () => ReadonlySet<string>;
	/** Whether source ports of all flows by these uplinks are noted, those from before the programs too. */
	readonly knowsSources: (uplinks: readonly number[]) => boolean;
}

/** `tcp/8080` */
export function portName(protocol: Protocol, port: number): string {
	return `${protocol}/${port}`;
}

function keyOf(name: string): number {
	const [protocol, port] = name.split('/');
	return portKey(protocol as Protocol, Number(port));
}

/** The old value where the new one says the same. */
function keep<T>(old: T | undefined, next: T): T {
	return old !== undefined && text(old) === text(next) ? old : next;
}
function text(v: unknown): string {
	return JSON.stringify(v, (_k, x) =>
		x instanceof Map || x instanceof Set ? [...x] : typeof x === 'bigint' ? `${x}n` : x,
	);
}

function sysctl(path: string): string | undefined {
	try {
		return readFileSync(`/proc/sys/net/${path}`, 'utf8').trim();
	} catch {
		return undefined;
	}
}

/** Ports above 1023 that the kernel does not choose: the wider of what lies below and above its range. */
export function portsBeside(range: { readonly from: number; readonly to: number }): readonly [number, number] {
	const below = Math.max(0, range.from - 1024);
	const above = 65535 - range.to;
	return below >= above ? [1024, below] : [range.to + 1, above];
}

/** The gateway that each endpoint, and whoever else is on its bridge, has on this node; none behind an uplink's own bridge, whose subnet is the clients' too. */
function gatewaysOf(
	endpoints: ReadonlyMap<string, EndpointFact>,
	ways: ReadonlyMap<string, Way>,
	links: ReadonlyMap<string, Link>,
	named: readonly string[],
	uplinks: readonly UplinkChoice[],
): Map<number, GatewayFact> {
	const out = new Map<number, GatewayFact>();
	const add = (device: Link | undefined, endpoint?: EndpointFact) => {
		if (device === undefined || uplinks.some((u) => u.l3.name === device.name || u.link.name === device.name)) return;
		const addresses = globalAddresses(device);
		const address4 = addresses.find((a) => !a.includes(':'));
		const address6 = addresses.find((a) => a.includes(':'));
		const g: GatewayFact = {
			ifindex: device.ifindex,
			...(address4 === undefined ? {} : { address4 }),
			...(address6 === undefined ? {} : { address6 }),
			prefixes: connectedPrefixes(device),
		};
		out.set(device.ifindex, g);
		for (const l of links.values()) if (l.master === device.name) out.set(l.ifindex, g);
		if (endpoint !== undefined) out.set(endpoint.ifindex, g);
	};
	for (const name of named) add(links.get(name));
	for (const [address, e] of endpoints) add(links.get(ways.get(address)?.device ?? ''), e);
	return out;
}

/** The default route of a family, where it leaves by an uplink. */
function wayOut(family: 4 | 6, routes: readonly DefaultRoute[], uplinks: readonly UplinkChoice[]): WayOut | undefined {
	for (const r of routes) {
		const up = uplinks.find((u) => u.l3.name === r.device);
		if (
			r.family === family &&
			r.gateway !== undefined &&
			up !== undefined &&
			r.gateway.includes(':') === (family === 6)
		)
			return { gateway: r.gateway, ifindex: up.l3.ifindex };
	}
	return undefined;
}

export function createLocal(deps: LocalDeps): LocalState {
	const { run } = deps;
	let old: LocalFacts | undefined;
	let firewall: Firewall | undefined;
	let firewallFor = '';
	let firewallAt = Number.NEGATIVE_INFINITY;
	const served = new Set(deps.served);
	const kernelPorts = new Set(deps.kernelPorts);
	const joinedPorts = new Set<string>();
	const managed = new Map(deps.neighbours.map((n) => [`${n.device} ${n.address}`, n]));
	/** Last MAC of each neighbour that matters, by `device address`. */
	const macs = new Map<string, string>();
	const watched = new Set<string>();

	async function nextHops(
		vteps: readonly string[],
		ways: ReadonlyMap<string, Way>,
		uplinks: readonly UplinkChoice[],
		facts: EndpointFacts,
		warnings: string[],
	): Promise<{ hops: Map<string, NextHop>; shown: Map<string, NodeWay> }> {
		const hops = new Map<string, NextHop>();
		const shown = new Map<string, NodeWay>();
		let { neighbours, forwarding } = facts;
		const plan: { vtep: string; way: Way; via: UplinkChoice[]; target: string; key: string }[] = [];
		const lost: string[] = [];
		for (const vtep of vteps) {
			const way = ways.get(vtep);
			if (way === undefined || way.type !== 'unicast') {
				lost.push(`${vtep}: no route`);
				continue;
			}
			const via = uplinks.filter((u) => u.l3.name === way.device);
			if (via.length === 0) {
				lost.push(`${vtep}: its route leaves by ${way.device}, which is no uplink`);
				continue;
			}
			const target = way.gateway ?? vtep;
			plan.push({ vtep, way, via, target, key: `${way.device} ${target}` });
		}
		if (lost.length > 0)
			warnings.push(
				`nodes without a way: ${lost.slice(0, 5).join('; ')}${lost.length > 5 ? ` and ${lost.length - 5} more` : ''}`,
			);
		const wanted = new Map(plan.map((p) => [p.key, { device: p.way.device, address: p.target }]));
		let asked = false;
		for (const [key, n] of wanted) {
			const have = neighbours.get(key);
			if (have?.permanent === true || (have?.managed === true && managed.has(key))) continue;
			try {
				await manage(run, n.device, n.address);
				managed.set(key, n);
				asked = true;
			} catch (e) {
				warnings.push(
					`${n.address}: the kernel does not keep it resolved (${(e as Error).message}); Linux 5.16 and iproute2 5.17 do`,
				);
			}
		}
		for (const [key, n] of managed) {
			if (wanted.has(key)) continue;
			await forget(run, n.device, n.address);
			managed.delete(key);
		}
		for (let i = 0; asked && i < 5; i++) {
			await new Promise((r) => setTimeout(r, 20 << i));
			neighbours = await readNeighbours(run);
			if (plan.every((p) => neighbours.get(p.key)?.mac !== undefined)) break;
		}
		if (asked) forwarding = await readForwarding(run);
		for (const p of plan) {
			watched.add(p.key);
			const fresh = neighbours.get(p.key);
			// A next hop that does not answer for a moment keeps its MAC: better a packet to a dead node than none to a slow one.
			const mac = fresh?.mac ?? macs.get(p.key) ?? deps.lastMacs.get(p.vtep);
			if (mac !== undefined) macs.set(p.key, mac);
			const port = mac === undefined ? undefined : forwarding.get(`${p.way.device} ${mac.toLowerCase()}`);
			const up =
				p.via.find((u) => u.link.name === port) ?? [...p.via].sort((a, b) => a.link.ifindex - b.link.ifindex)[0]!;
			const mtu = p.way.mtu ?? up.l3.mtu;
			hops.set(p.vtep, { ifindex: up.link.ifindex, smac: up.l3.mac, mtu, ...(mac === undefined ? {} : { dmac: mac }) });
			shown.set(p.vtep, { device: up.link.name, gateway: p.way.gateway, mac, mtu });
		}
		return { hops, shown };
	}

	return {
		rereadFirewall() {
			firewall = undefined;
		},
		concerns(key, mac) {
			// A failed neighbour keeps its MAC, so its failing says nothing.
			return watched.has(key) && mac !== undefined && macs.get(key) !== mac;
		},
		async collect(input) {
			const { mesh } = input;
			const { self } = mesh;
			const warnings: string[] = [];
			const node = mesh.nodes.get(self);
			if (node === undefined) {
				const names = [...mesh.nodes.keys()];
				throw new BeelineError(
					'NOT_A_MEMBER',
					`this node is ${self}, and the membership names ${names.slice(0, 8).join(', ') || 'no node'}${names.length > 8 ? ', …' : ''}: add it, or set node.name`,
				);
			}
			const vtep = input.address ?? node.address;
			if (vtep !== node.address) {
				throw new BeelineError(
					'NO_ADDRESS',
					`node.address is ${vtep}, and the membership says ${self} is ${node.address}: make them the same`,
				);
			}

			const endpointAddresses: string[] = [];
			const published: Published[] = [];
			// The mesh, not the membership: what is leaving must be reached until it is gone.
			for (const s of mesh.services.values()) {
				const mine = s.backends.filter((b) => b.node === self && !b.gone);
				for (const b of mine) {
					if (b.address4 !== undefined) endpointAddresses.push(b.address4);
					if (b.address6 !== undefined) endpointAddresses.push(b.address6);
				}
				const processes = mine.filter(isProcess);
				for (const f of s.frontends) {
					if (f.leaving) continue;
					published.push({
						service: s.name,
						protocol: f.protocol,
						port: f.published,
						allow: s.options.allow.length > 0,
						ownTargets: new Set(processes.filter((b) => b.protocol === f.protocol).map((b) => b.target)),
					});
				}
			}
			const vteps = [...mesh.nodes.values()].filter((n) => n.name !== self).map((n) => n.address);
			const [links, defaults, ways, firstNeighbours, firstForwarding, sockets] = await Promise.all([
				readLinks(run),
				defaultRoutes(run),
				waysTo(run, [...new Set([...endpointAddresses, ...vteps])]),
				readNeighbours(run),
				readForwarding(run),
				readSockets(run).catch((e: Error) => {
					warnings.push(`sockets of the node cannot be listed: ${e.message}`);
					return [];
				}),
			]);
			const byName = new Map(links.map((l) => [l.name, l]));

			const endpointDevices = new Set<string>();
			for (const a of endpointAddresses) {
				const w = ways.get(a);
				const device = w === undefined ? undefined : byName.get(w.device);
				if (w?.type !== 'unicast' || w.gateway !== undefined || device === undefined) continue;
				if (!globalAddresses(device).includes(vtep)) endpointDevices.add(device.name);
				const mac = firstNeighbours.get(`${device.name} ${a}`)?.mac;
				const port = mac === undefined ? undefined : firstForwarding.get(`${device.name} ${mac.toLowerCase()}`);
				if (port !== undefined) endpointDevices.add(port);
			}
			const chosen = chooseUplinks(links, input.uplinks, new Set(defaults.map((d) => d.device)), endpointDevices, vtep);
			if (
				chosen.uplinks.length === 0 ||
				(input.uplinks !== undefined && chosen.refused.length > 0 && old === undefined)
			) {
				const why =
					chosen.refused.map((r) => r.reason).join('; ') ||
					'no Ethernet device has a global address or the default route: set uplinks';
				throw new BeelineError('NO_UPLINK', `uplink refused: ${why}`);
			}
			const uplinks: UplinkFact[] = chosen.uplinks.map(({ link, l3 }) => ({
				name: link.name,
				ifindex: link.ifindex,
				l3Ifindex: l3.ifindex,
				mtu: l3.mtu,
				mac: l3.mac,
				addresses: globalAddresses(l3),
			}));
			if (!uplinks.some((u) => u.addresses.includes(vtep))) {
				throw new BeelineError(
					'NO_ADDRESS',
					`${self} is ${vtep}, which is on none of its uplinks (${uplinks.map((u) => `${u.name}: ${u.addresses.join(' ') || 'no address'}`).join('; ')}): name the uplink that has it`,
				);
			}

			const uplinkDevices = new Set(chosen.uplinks.map((u) => u.link.name));
			// Behind a bridge that is an uplink's there may be backends too: its other ports.
			for (const u of chosen.uplinks) if (u.l3.kind !== 'bridge') uplinkDevices.add(u.l3.name);
			const facts: EndpointFacts = {
				links: byName,
				neighbours: firstNeighbours,
				forwarding: firstForwarding,
				uplinkDevices,
			};
			const located = await locateAll(
				[...new Set(endpointAddresses)].map((a) => ways.get(a)!),
				facts,
				async () => {
					const [neighbours, forwarding] = await Promise.all([readNeighbours(run), readForwarding(run)]);
					return { ...facts, neighbours, forwarding };
				},
			);
			const endpoints = new Map<string, EndpointFact>();
			const problems = new Map<string, string>();
			const lost: string[] = [];
			const known = (e: Endpoint, address: string) => {
				if (!('problem' in e)) {
					endpoints.set(address, { ifindex: e.ifindex, delivery: e.delivery === 'peer' ? 'peer' : 'neigh' });
					return;
				}
				// One that does not answer ARP for a moment stays where it was, while its interface lives.
				const was = old?.endpoints.get(address);
				if (was !== undefined && /does not answer/.test(e.problem) && links.some((l) => l.ifindex === was.ifindex)) {
					endpoints.set(address, was);
					return;
				}
				problems.set(address, e.problem);
				lost.push(`${ways.get(address)?.device} ${address}`);
			};
			for (const [address, e] of located) known(e, address);
			for (const a of endpointAddresses) {
				const device = byName.get(ways.get(a)?.device ?? '');
				if (device?.kind === 'bridge') watched.add(`${device.name} ${a}`);
			}
			for (const n of firstNeighbours.values()) {
				const key = `${n.device} ${n.address}`;
				if (watched.has(key) && n.mac !== undefined) macs.set(key, n.mac);
			}
			// The next container at an address has the MAC of the last: that it answers is news all the same.
			for (const key of lost) macs.delete(key);

			const { hops, shown } = await nextHops(vteps, ways, chosen.uplinks, facts, warnings);

			const ports = published.map((p) => portName(p.protocol, p.port));
			const signature = [...ports].sort().join();
			if (
				firewall === undefined ||
				signature !== firewallFor ||
				(ports.length > 0 && performance.now() - firewallAt > FIREWALL_MS)
			) {
				firewall = await readFirewall(run);
				firewallFor = signature;
				firewallAt = performance.now();
			}
			const rules = firewall;
			const portRules: PortRules = {
				sockets,
				firewall: rules,
				vxlanPort: input.vxlanPort,
				httpPorts: input.httpPorts,
				...(input.keyPort === undefined ? {} : { keyPort: input.keyPort }),
				acceptFirewallBypass: input.acceptFirewallBypass,
				served,
			};
			const refusedPorts = refusePorts(published, portRules);
			for (const c of contestedPorts(published, portRules))
				warnings.push(`${c.key} of ${c.service} is served all the same, for it was before: ${c.reason}`);
			const refusedKeys = new Set(refusedPorts.map((r) => r.key));
			// Docker writes such a rule only where it could set up what answers behind it: on a kernel without IPVS there is none.
			const answered = new Set(
				published
					.filter((p) => rules.dnat.some((r) => covers(r, p.protocol, p.port)))
					.map((p) => portName(p.protocol, p.port)),
			);
			for (const p of published) {
				const name = portName(p.protocol, p.port);
				if (refusedKeys.has(name) || served.has(name)) continue;
				served.add(name);
				if (answered.has(name)) joinedPorts.add(name);
			}
			// Docker's rule for a port may come after the port, and go before it.
			for (const name of answered) if (served.has(name)) kernelPorts.add(name);
			if (rules.complete === true) for (const name of ports) if (!answered.has(name)) kernelPorts.delete(name);
			// A port that is not published any more is forgotten only when nothing of it is left: kernelPorts says where it
			// goes back to, and costs nothing.
			for (const name of served)
				if (!ports.includes(name)) {
					served.delete(name);
					joinedPorts.delete(name);
				}

			for (const u of chosen.uplinks) {
				const strict = [
					sysctl('ipv4/conf/all/rp_filter'),
					sysctl(`ipv4/conf/${u.l3.name.replaceAll('.', '/')}/rp_filter`),
				];
				if (strict.includes('1') && chosen.uplinks.length > 1) {
					warnings.push(
						`${u.l3.name}: rp_filter is strict and there are several uplinks: the kernel drops what comes in by another (sysctl net.ipv4.conf.${u.l3.name}.rp_filter=2)`,
					);
				}
			}
			for (const r of chosen.refused) warnings.push(`uplink ${r.name}: ${r.reason}`);

			const range = localPortRange();
			const localPorts: [number, number][] = [[range.from, range.to]];
			// Masquerade without a range of its own keeps a source port or takes one of 1024 to 65535.
			const masqueradedPorts: [number, number][] = rules.masquerade ? [[1024, 65535]] : [];
			if (!deps.asksConntrack) {
				const told = unaskedPorts(published, masqueradedPorts);
				if (told !== undefined) warnings.push(told);
			}

			const mayBeSource = [...localPorts, ...(deps.asksConntrack ? masqueradedPorts : [])];
			const watches = published.some((p) => within(mayBeSource, p.port));
			const knows = watches && deps.knowsSources(uplinks.map((u) => u.ifindex));

			const gateways = gatewaysOf(endpoints, ways, byName, input.gateways, chosen.uplinks);
			const wayOut4 = keep(old?.wayOut4, wayOut(4, defaults, chosen.uplinks));
			const wayOut6 = keep(old?.wayOut6, wayOut(6, defaults, chosen.uplinks));
			const dsrProven = deps.dsrProven();
			const next: LocalFacts = {
				uplinks: keep(old?.uplinks, uplinks),
				vtep,
				netnsCookie: deps.netnsCookie,
				mark: deps.mark,
				nextHops: keep(old?.nextHops, hops),
				dsrProven: keep(old?.dsrProven, new Set(dsrProven)),
				endpoints: keep(old?.endpoints, endpoints),
				gateways: keep(old?.gateways, gateways),
				...(wayOut4 === undefined ? {} : { wayOut4 }),
				...(wayOut6 === undefined ? {} : { wayOut6 }),
				standInPorts: portsBeside(range),
				localPorts: keep(old?.localPorts, localPorts),
				masqueradedPorts: keep(old?.masqueradedPorts, deps.asksConntrack ? masqueradedPorts : []),
				...(watches ? { sources: knows ? 'known' : 'watched' } : {}),
				kernelPorts: keep(old?.kernelPorts, new Set([...kernelPorts].map(keyOf))),
				joinedPorts: keep(old?.joinedPorts, new Set([...joinedPorts].map(keyOf))),
				refusedPorts: keep(old?.refusedPorts, new Map(refusedPorts.map((r) => [keyOf(r.key), r.reason]))),
			};
			old = next;
			return {
				facts: next,
				uplinks: chosen.uplinks,
				refused: chosen.refused,
				warnings,
				ways: shown,
				problems,
				names: new Map(links.map((l: Link) => [l.ifindex, l.name])),
				refusedPorts,
				publishedPorts: new Set(
					published.filter((p) => !refusedKeys.has(portName(p.protocol, p.port))).map((p) => p.port),
				),
				allPublishedPorts: new Set(published.map((p) => p.port)),
				neighbours: [...managed.values()],
			};
		},
	};
}

export type { Neighbour };
