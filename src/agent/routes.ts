/** Ways to addresses, as the kernel would send (`ip -j route get`). */
import ipaddr from 'ipaddr.js';
import { json, jsonLines, type Run } from './exec.js';

export interface Way {
	readonly address: string;
	/** local: the address is this node's own. */
	readonly type: 'unicast' | 'local' | 'unreachable';
	readonly device: string;
	readonly gateway: string | undefined;
	/** Of the route, where one is set. */
	readonly mtu: number | undefined;
}

interface RawRoute {
	type?: string;
	dst?: string;
	gateway?: string;
	via?: { host?: string };
	dev?: string;
	metrics?: { mtu?: number }[];
}

function wayOf(address: string, r: RawRoute): Way {
	const type = r.type === 'local' ? 'local' : r.type === undefined || r.type === 'unicast' ? 'unicast' : 'unreachable';
	return {
		address,
		type: r.dev === undefined ? 'unreachable' : type,
		device: r.dev ?? '',
		gateway: r.gateway ?? r.via?.host,
		mtu: r.metrics?.find((m) => m.mtu !== undefined)?.mtu,
	};
}

/** Ways to many addresses; one that has no route is `unreachable`. */
export async function waysTo(run: Run, addresses: readonly string[]): Promise<Map<string, Way>> {
	const ways = new Map<string, Way>();
	if (addresses.length === 0) return ways;
	const none = (address: string): Way => ({
		address,
		type: 'unreachable',
		device: '',
		gateway: undefined,
		mtu: undefined,
	});
	let answers: RawRoute[][] = [];
	try {
		answers = jsonLines(await run('ip', ['-j', '-batch', '-'], addresses.map((a) => `route get ${a}\n`).join('')));
	} catch {
		// One address without a route ends the batch: ask for each.
	}
	if (answers.length === addresses.length) {
		for (const [i, a] of addresses.entries())
			ways.set(a, answers[i]?.[0] === undefined ? none(a) : wayOf(a, answers[i]![0]!));
		return ways;
	}
	for (const a of addresses) {
		try {
			const r = json<RawRoute>(await run('ip', ['-j', 'route', 'get', a]))[0];
			ways.set(a, r === undefined ? none(a) : wayOf(a, r));
		} catch {
			ways.set(a, none(a));
		}
	}
	return ways;
}

export interface DefaultRoute {
	readonly family: 4 | 6;
	readonly device: string;
	/** undefined: the whole world is on-link there. */
	readonly gateway: string | undefined;
	readonly metric: number;
}

/** The default routes of both families, the preferred ones first. */
export async function defaultRoutes(run: Run): Promise<DefaultRoute[]> {
	const out: DefaultRoute[] = [];
	for (const family of [4, 6] as const) {
		const routes = json<RawRoute & { metric?: number; nexthops?: RawRoute[] }>(
			await run('ip', ['-j', `-${family}`, 'route', 'show', 'default']).catch(() => ''),
		);
		const found: DefaultRoute[] = [];
		for (const r of routes)
			for (const h of [r, ...(r.nexthops ?? [])])
				if (h.dev !== undefined)
					found.push({ family, device: h.dev, gateway: h.gateway ?? h.via?.host, metric: r.metric ?? 0 });
		out.push(...found.sort((a, b) => a.metric - b.metric));
	}
	return out;
}

/** IPv4 prefixes that routes of this node lead to, in all tables; the default is none. */
export async function routedPrefixes(run: Run): Promise<string[]> {
	const routes = json<RawRoute>(await run('ip', ['-j', '-4', 'route', 'show', 'table', 'all']));
	return routes
		.map((r) => r.dst ?? 'default')
		.map((d) => (d.includes('/') ? d : `${d}/32`))
		.filter((d) => ipaddr.IPv4.isValidCIDR(d));
}
