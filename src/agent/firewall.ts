/**
 * What the node's own netfilter rules say of a port, from `nft -j list ruleset` and `iptables-save`. XDP runs before all
 * of them: a filter rule would silently stop to hold, and a DNAT rule means that the kernel's own mesh serves the port.
 */
import type { Protocol } from '../mesh/types.js';
import type { Run } from './exec.js';

export interface PortRule {
	readonly protocol: Protocol | undefined;
	readonly from: number;
	readonly to: number;
	/** Where it stands, for the operator: `iptables INPUT`, `nft inet filter input`. */
	readonly place: string;
}

export interface Firewall {
	/** Ports that the kernel sends elsewhere: Docker's ingress, kube-proxy, nftables balancers. */
	readonly dnat: readonly PortRule[];
	/** Ports that a filter rule restricts. */
	readonly filter: readonly PortRule[];
	/** Some traffic gets this node's address as source, and with it a port of this node's. */
	readonly masquerade: boolean;
	/** Every tool that is there has answered: a rule that is missing is gone. */
	readonly complete?: boolean;
}

type Json = { readonly [key: string]: unknown };

const isJson = (v: unknown): v is Json => typeof v === 'object' && v !== null && !Array.isArray(v);

/** Numbers and ranges of the right side of a match: 80, {"set": [80, {"range": [1, 9]}]}, maps of a verdict map. */
function portsOf(right: unknown): [number, number][] {
	if (typeof right === 'number') return [[right, right]];
	if (Array.isArray(right)) return right.flatMap((r) => portsOf(Array.isArray(r) ? r[0] : r));
	if (!isJson(right)) return [];
	if ('set' in right) return portsOf(right.set);
	if (Array.isArray(right.range) && right.range.length === 2) return [[Number(right.range[0]), Number(right.range[1])]];
	if ('concat' in right) return portsOf(right.concat);
	if ('elem' in right && isJson(right.elem)) return portsOf(right.elem.val);
	return [];
}

function protocolOf(text: unknown): Protocol | undefined {
	return text === 'tcp' || text === 'udp' ? text : undefined;
}

interface Chain {
	readonly hook: string | undefined;
	readonly type: string | undefined;
}

/** @param text output of `nft -j list ruleset` */
export function parseNft(text: string): Firewall {
	const dnat: PortRule[] = [];
	const filter: PortRule[] = [];
	if (text.trim() === '') return { dnat, filter, masquerade: false };
	const objects = (JSON.parse(text) as { nftables?: Json[] }).nftables ?? [];
	const chains = new Map<string, Chain>();
	const sets = new Map<string, unknown>();
	const callers = new Map<string, Set<string>>();
	const rules: { id: string; chain: string; expr: Json[]; place: string }[] = [];
	for (const o of objects) {
		if (isJson(o.chain)) {
			const c = o.chain;
			chains.set(`${c.family} ${c.table} ${c.name}`, {
				hook: c.hook as string | undefined,
				type: c.type as string | undefined,
			});
		} else if (isJson(o.set) || isJson(o.map)) {
			const s = (o.set ?? o.map) as Json;
			sets.set(`${s.family} ${s.table} @${s.name}`, s.elem);
		} else if (isJson(o.rule)) {
			const r = o.rule;
			const table = `${r.family} ${r.table}`;
			const expr = (Array.isArray(r.expr) ? r.expr : []).filter(isJson);
			rules.push({ id: table, chain: `${table} ${r.chain}`, expr, place: `nft ${table} ${r.chain}` });
			for (const target of JSON.stringify(expr).matchAll(/"(?:jump|goto)":\{"target":"([^"]+)"/g)) {
				const called = `${table} ${target[1]}`;
				callers.set(called, (callers.get(called) ?? new Set()).add(`${table} ${r.chain}`));
			}
		}
	}
	const hooked = (chain: string, seen = new Set<string>()): Chain[] => {
		if (seen.has(chain)) return [];
		seen.add(chain);
		const own = chains.get(chain);
		const here = own?.hook === undefined ? [] : [own];
		return [...here, ...[...(callers.get(chain) ?? [])].flatMap((c) => hooked(c, seen))];
	};
	for (const r of rules) {
		const found: { protocol: Protocol | undefined; range: [number, number] }[] = [];
		let restricted = false;
		let protocol: Protocol | undefined;
		const dports = (left: unknown): boolean | Protocol => {
			if (!isJson(left)) return false;
			if (isJson(left.payload) && left.payload.field === 'dport') return protocolOf(left.payload.protocol) ?? true;
			return Array.isArray(left.concat) && left.concat.some((l) => dports(l) !== false);
		};
		const add = (left: unknown, right: unknown) => {
			const of = dports(left);
			const set = typeof right === 'string' && right.startsWith('@') ? sets.get(`${r.id} ${right}`) : right;
			for (const range of portsOf(set)) found.push({ protocol: of === true ? protocol : (of as Protocol), range });
		};
		const text = JSON.stringify(r.expr);
		for (const e of r.expr) {
			if (isJson(e.match)) {
				const { left, right } = e.match;
				if (isJson(left) && isJson(left.meta) && left.meta.key === 'l4proto') protocol = protocolOf(right) ?? protocol;
				else if (isJson(left) && isJson(left.payload) && left.payload.field === 'protocol')
					protocol = protocolOf(right) ?? protocol;
				else if (dports(left) !== false) add(left, right);
				else restricted = true;
			}
			if (isJson(e.vmap) && dports(e.vmap.key) !== false) add(e.vmap.key, e.vmap.data);
		}
		// `dnat to tcp dport map { 8080 : … }`: the port is the key of the map.
		for (const m of text.matchAll(
			/"map":\{"key":\{"payload":\{"protocol":"(tcp|udp|th)","field":"dport"\}\},"data":(\{"set":\[.*?\]\]\}|"@[^"]+")/g,
		)) {
			try {
				add({ payload: { protocol: m[1], field: 'dport' } }, JSON.parse(m[2]!));
			} catch {
				// A form that this reader does not know; iptables-save may still show it.
			}
		}
		if (found.length === 0) continue;
		const rule = ({ protocol: p, range: [from, to] }: (typeof found)[number]): PortRule => ({
			protocol: p,
			from,
			to,
			place: r.place,
		});
		if (/"(dnat|redirect|tproxy)":|"name":"(DNAT|REDIRECT|TPROXY)"/.test(text)) {
			dnat.push(...found.map(rule));
			continue;
		}
		const harmless = !restricted && /"accept":null/.test(text);
		const stands = hooked(r.chain).some(
			(c) => c.type === 'filter' && ['input', 'prerouting', 'ingress', 'forward'].includes(c.hook ?? ''),
		);
		if (!harmless && stands) filter.push(...found.map(rule));
	}
	return { dnat, filter, masquerade: /"(masquerade|snat)":|"name":"(MASQUERADE|SNAT)"/.test(text) };
}

/** @param text output of `iptables-save`, both backends; `name` goes into the place. */
export function parseIptables(name: string, text: string): Firewall {
	const dnat: PortRule[] = [];
	const filter: PortRule[] = [];
	let table = '';
	for (const line of text.split('\n')) {
		if (line.startsWith('*')) table = line.slice(1).trim();
		const chain = /^-A (\S+)/.exec(line)?.[1];
		const ports = /(?:^| )(!? ?)--(?:dport|dports|destination-port|destination-ports) (\S+)/.exec(line);
		if (chain === undefined || ports === null) continue;
		const protocol = protocolOf(/ -p (tcp|udp)\b/.exec(line)?.[1]);
		const target = / -j (\S+)/.exec(line)?.[1];
		const rules = ports[2]!.split(',').map((p): PortRule => {
			const [from, to] = p.split(':').map(Number);
			return { protocol, from: from!, to: to ?? from!, place: `${name} -t ${table} ${chain}` };
		});
		if (target === 'DNAT' || target === 'REDIRECT' || target === 'TPROXY') dnat.push(...rules);
		else if ((table === 'filter' && chain !== 'OUTPUT') || table === 'raw') {
			const restricted = / (-s|-d|-i|--source|--src-range|--ctstate|--state|--match-set|--limit) /.test(line);
			if (target !== 'ACCEPT' || restricted) filter.push(...rules);
		}
	}
	return { dnat, filter, masquerade: / -j (MASQUERADE|SNAT)\b/.test(text) };
}

const NOTHING: Firewall = { dnat: [], filter: [], masquerade: false };

/** Reads what there is; a tool that is not installed has no rules. */
export async function readFirewall(run: Run): Promise<Firewall> {
	let complete = true;
	const failed = (e: unknown): Firewall => {
		if ((e as { code?: string }).code !== 'NO_COMMAND') complete = false;
		return NOTHING;
	};
	const all: Firewall[] = await Promise.all([
		run('nft', ['-j', 'list', 'ruleset']).then(parseNft).catch(failed),
		...['iptables', 'ip6tables'].map((n) =>
			run(`${n}-save`, [])
				.then((t) => parseIptables(n, t))
				.catch(failed),
		),
	]);
	return {
		dnat: all.flatMap((f) => f.dnat),
		filter: all.flatMap((f) => f.filter),
		masquerade: all.some((f) => f.masquerade),
		complete,
	};
}

export function covers(rule: PortRule, protocol: Protocol, port: number): boolean {
	return (rule.protocol === undefined || rule.protocol === protocol) && rule.from <= port && port <= rule.to;
}
