/** Published ports and the node's own sockets: which are refused, and which are kept from being source ports. */
import { readFileSync, writeFileSync } from 'node:fs';
import { within } from '../mesh/entries.js';
import type { Protocol } from '../mesh/types.js';
import type { Run } from './exec.js';
import { covers, type Firewall } from './firewall.js';

export interface Held {
	readonly protocol: Protocol;
	readonly port: number;
	readonly address: string;
	/** Names of the processes; empty where they cannot be seen. */
	readonly by: readonly string[];
}

/** @param text output of `ss -H -lntup` */
export function parseSockets(text: string): Held[] {
	const out: Held[] = [];
	for (const line of text.split('\n')) {
		const m = /^(tcp|udp)\s+\S+\s+\d+\s+\d+\s+(\S+):(\d+)\s+\S+\s*(.*)$/.exec(line);
		if (m === null) continue;
		out.push({
			protocol: m[1] as Protocol,
			port: Number(m[3]),
			address: m[2]!.replace(/%.*$/, '').replace(/^\[|\]$/g, ''),
			by: [...new Set([...m[4]!.matchAll(/\("([^"]+)",pid=/g)].map((p) => p[1]!))],
		});
	}
	return out;
}

export async function readSockets(run: Run): Promise<Held[]> {
	return parseSockets(await run('ss', ['-H', '-lntup']));
}

/**
 * Ports that are listened on, of those given, as one text: what to compare cheaply. Without names of processes, which take
 * a walk through /proc.
 */
export async function listening(run: Run, ports: ReadonlySet<number>): Promise<string> {
	const held = parseSockets(await run('ss', ['-H', '-lntu'])).filter((s) => ports.has(s.port));
	return [...new Set(held.map((s) => `${s.protocol}/${s.port} ${s.address}`))].sort().join();
}

export interface Published {
	readonly service: string;
	readonly protocol: Protocol;
	readonly port: number;
	/** The service restricts its clients itself. */
	readonly allow: boolean;
	/** Ports that the service's own processes on this node listen on. */
	readonly ownTargets: ReadonlySet<number>;
}

export interface Refused {
	/** `tcp/8080` */
	readonly key: string;
	readonly service: string;
	readonly reason: string;
}

export interface PortRules {
	readonly sockets: readonly Held[];
	readonly firewall: Firewall;
	readonly vxlanPort: number;
	readonly httpPorts: ReadonlySet<number>;
	/** UDP. */
	readonly keyPort?: number;
	readonly acceptFirewallBypass: boolean;
	/** Ports that are served already: a socket or a rule that came later does not take them away. */
	readonly served: ReadonlySet<string>;
}

const DOCKERS = new Set(['dockerd', 'docker-proxy']);

/** What came after a port was taken, and would have kept it from being taken: told, for its flows stay where they are. Pure. */
export function contestedPorts(published: readonly Published[], rules: PortRules): Refused[] {
	const served = published.filter((p) => rules.served.has(`${p.protocol}/${p.port}`));
	return refusePorts(served, { ...rules, served: new Set() });
}

/** Which published ports must not be taken on this node (DESIGN 5.2), and why. Pure. */
export function refusePorts(published: readonly Published[], rules: PortRules): Refused[] {
	const out: Refused[] = [];
	for (const p of published) {
		const key = `${p.protocol}/${p.port}`;
		const reason = whyRefused(p, rules, key);
		if (reason !== undefined) out.push({ key, service: p.service, reason });
	}
	return out;
}

function whyRefused(p: Published, rules: PortRules, key: string): string | undefined {
	const publishAnother = 'publish another port';
	if (p.port === 2377 && p.protocol === 'tcp') return `port 2377 belongs to Swarm's managers: ${publishAnother}`;
	if (p.port === 7946) return `port 7946 belongs to Swarm's gossip: ${publishAnother}`;
	if (p.port === rules.vxlanPort && p.protocol === 'udp') return `port ${p.port} is the VXLAN port: ${publishAnother}`;
	if (p.port === rules.keyPort && p.protocol === 'udp')
		return `port ${p.port} is for keys of encrypted networks (datapath.keyPort): ${publishAnother}`;
	if (rules.httpPorts.has(p.port) && p.protocol === 'tcp')
		return `port ${p.port} is this agent's own HTTP port: ${publishAnother}`;
	if (rules.served.has(key)) return undefined;
	const holder = rules.sockets.find(
		(s) =>
			s.protocol === p.protocol && s.port === p.port && !s.by.some((b) => DOCKERS.has(b)) && !p.ownTargets.has(p.port),
	);
	// What the kernel sends elsewhere never reached that socket; behind Docker's ingress rules it is dockerd's own, whose
	// name an agent in a container cannot see.
	const elsewhere = holder?.by.length === 0 && rules.firewall.dnat.some((r) => covers(r, p.protocol, p.port));
	if (holder !== undefined && !elsewhere) {
		const by = holder.by.length > 0 ? holder.by.join(', ') : 'a socket';
		return `port ${p.port} is held by ${by} on ${holder.address}: stop it, or ${publishAnother}`;
	}
	if (p.allow || rules.acceptFirewallBypass) return undefined;
	const rule = rules.firewall.filter.find((r) => covers(r, p.protocol, p.port));
	if (rule === undefined) return undefined;
	return `a firewall rule (${rule.place}) restricts port ${p.port} and would not be asked: give the service an allow list, or set datapath.acceptFirewallBypass`;
}

const RESERVED = '/proc/sys/net/ipv4/ip_local_reserved_ports';
const RANGE = '/proc/sys/net/ipv4/ip_local_port_range';

/** `80,443,8000-8010` */
export function parsePortList(text: string): Set<number> {
	const out = new Set<number>();
	for (const part of text.trim().split(',')) {
		const m = /^(\d+)(?:-(\d+))?$/.exec(part.trim());
		if (m === null) continue;
		for (let p = Number(m[1]); p <= Number(m[2] ?? m[1]); p++) out.add(p);
	}
	return out;
}

export function formatPortList(ports: Iterable<number>): string {
	const sorted = [...new Set(ports)].sort((a, b) => a - b);
	const parts: string[] = [];
	for (let i = 0; i < sorted.length; ) {
		let j = i;
		while (sorted[j + 1] === sorted[j]! + 1) j++;
		parts.push(i === j ? String(sorted[i]) : `${sorted[i]}-${sorted[j]}`);
		i = j + 1;
	}
	return parts.join(',');
}

/**
 * What to tell where connections are masqueraded and programs cannot ask the kernel's conntrack whose a packet is.
 * @param masqueradedPorts ranges that masquerade takes source ports from
 * @returns undefined where no published port is among them. Pure.
 */
export function unaskedPorts(
	published: readonly Pick<Published, 'port'>[],
	masqueradedPorts: readonly (readonly [number, number])[],
): string | undefined {
	const ports = published.map((p) => p.port).filter((port) => within(masqueradedPorts, port));
	if (ports.length === 0) return undefined;
	return `a connection that this node masquerades gets no answers where its source port is a published one (${formatPortList(ports)}): the kernel's conntrack cannot be asked (no /sys/kernel/btf/nf_conntrack when the agent started): start the agent again once the module is loaded, or publish ports below 1024`;
}

export function localPortRange(): { readonly from: number; readonly to: number } {
	const [from, to] = readFileSync(RANGE, 'utf8').trim().split(/\s+/).map(Number);
	return { from: from ?? 32768, to: to ?? 60999 };
}

/**
 * Keeps the kernel from choosing published ports as source ports. What the operator had reserved stays.
 * @param ours what was added before (from the state file)
 * @param wanted published ports now
 * @returns what is ours now
 */
export function reservePorts(ours: ReadonlySet<number>, wanted: ReadonlySet<number>): Set<number> {
	const there = parsePortList(readFileSync(RESERVED, 'utf8'));
	const operators = new Set([...there].filter((p) => !ours.has(p)));
	const next = new Set([...wanted].filter((p) => !operators.has(p)));
	const all = new Set([...operators, ...next]);
	if (all.size !== there.size || [...all].some((p) => !there.has(p))) {
		// An empty write changes nothing; a newline clears the list.
		writeFileSync(RESERVED, `${formatPortList(all)}\n`);
	}
	return next;
}
