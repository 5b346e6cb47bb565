/** Verbs that show something: status, nodes, services, backends, flows, entries, config get, monitor. */
import { BeelineError } from '../errors.js';
import type {
	BackendView,
	EntriesView,
	FlowsView,
	NodeView,
	ServiceView,
	StatusView,
	VerdictEventBody,
} from '../http/schemas.js';
import type { Client } from './client.js';
import { type Format, print, table } from './output.js';

async function show<T>(client: Client, path: string, format: Format, asTable: (body: T) => string): Promise<void> {
	const { body } = await client.get(path);
	print(format === 'json' ? body : asTable(JSON.parse(body) as T));
}

function keys(e: NonNullable<StatusView['encryption']>): string {
	const missing = e.missing.length === 0 ? '' : `, none with ${e.missing.length} that they are wanted with`;
	const oldest = e.oldestKeysAt === null ? '' : `, the oldest of ${e.oldestKeysAt}`;
	return `keys with ${e.ready} node${e.ready === 1 ? '' : 's'}${missing}${oldest}, new ones every ${e.keyInterval}`;
}

export async function status(client: Client, format: Format): Promise<void> {
	await show<StatusView>(client, '/v1/status', format, (s) => {
		const lines = [
			`node         ${s.node} (${s.address})`,
			`state        ${s.state}${s.ready ? '' : ', not ready'}, since ${s.since}`,
			`membership   ${s.membership.source}: ${s.membership.place}${s.membership.error === null ? '' : `\n             refused: ${s.membership.error}`}`,
			`reconcile    ${s.reconcile.runs} runs, ${s.reconcile.errors} with errors, last ${s.reconcile.lastMs ?? '-'} ms${s.reconcile.lastError === null ? '' : `\n             ${s.reconcile.lastError}`}`,
			`mesh         ${s.totals.nodes} nodes, ${s.totals.services} services, ${s.totals.backendsActive} of ${s.totals.backends} backends active, ${s.totals.slotsInTransition} slots in transition`,
			`datapath     ${s.pinRoot}, VNI ${s.vni}, UDP ${s.vxlanPort}, digest ${s.digest}`,
			...s.uplinks.map(
				(u) =>
					`uplink       ${u.name}${u.device === u.name ? '' : ` of ${u.device}`}: XDP ${u.xdp}, MTU ${u.mtu}, ${u.addresses.join(' ')}`,
			),
			...(s.differing.length > 0 ? [`differing    ${s.differing.join(' ')}`] : []),
			...s.refused.map(
				(r) => `refused      ${r.what}${r.service === undefined ? '' : ` of ${r.service}`}: ${r.reason}`,
			),
			...(s.encryption === null ? [] : [`encryption   ${keys(s.encryption)}`]),
			...s.warnings.map((w) => `warning      ${w}`),
		];
		return lines.join('\n');
	});
}

export async function nodes(client: Client, format: Format): Promise<void> {
	await show<{ nodes: NodeView[] }>(client, '/v1/nodes', format, ({ nodes: list }) =>
		table(
			['NAME', 'ADDRESS', 'STATE', 'REACHABLE', 'NEXT HOP', 'RETURN', 'BACKENDS'],
			list.map((n) => [
				n.name + (n.self ? ' *' : ''),
				n.address,
				n.state,
				n.reachable === null ? '-' : n.reachable ? 'yes' : n.agentPresent === false ? 'no agent' : 'no',
				n.nextHop === null
					? '-'
					: `${n.nextHop.gateway ?? 'direct'} ${n.nextHop.device} ${n.nextHop.mac ?? 'unresolved'}`,
				n.self ? '-' : n.dsr ? 'dsr' : 'tunnel',
				n.backends,
			]),
		),
	);
}

export async function services(client: Client, format: Format): Promise<void> {
	await show<{ services: ServiceView[] }>(client, '/v1/services', format, ({ services: list }) =>
		table(
			['NAME', 'PORTS', 'BACKENDS', 'RETURN', 'TRANSITION', 'VIPS'],
			list.map((s) => [
				s.name,
				s.ports
					.map((p) => `${p.published}->${p.target}/${p.protocol}${p.state === 'serving' ? '' : ` (${p.state})`}`)
					.join(' '),
				`${s.backends.active}/${s.backends.total}${s.backends.draining > 0 ? ` ${s.backends.draining} draining` : ''}${s.backends.down > 0 ? ` ${s.backends.down} down` : ''}`,
				s.options.returnPath,
				s.slotsInTransition,
				s.vips.map((v) => `${v.address}@${v.network} ${v.tasks.active}/${v.tasks.total}`).join(' '),
			]),
		),
	);
}

export async function service(client: Client, name: string): Promise<void> {
	const { body } = await client.get(`/v1/services/${encodeURIComponent(name)}`);
	print(JSON.stringify(JSON.parse(body), null, 2));
}

export async function backends(client: Client, format: Format, of: string | undefined): Promise<void> {
	const query = of === undefined ? '' : `?service=${encodeURIComponent(of)}`;
	await show<{ backends: BackendView[] }>(client, `/v1/backends${query}`, format, ({ backends: list }) =>
		table(
			['ID', 'SERVICE', 'NODE', 'ADDRESS', 'TARGET', 'WEIGHT', 'STATE', 'DELIVERY'],
			list.map((b) => [
				b.id,
				b.service,
				b.node,
				b.addresses.join(' ') || 'process',
				`${b.target}/${b.protocol}`,
				b.weight,
				b.state,
				b.problem ?? (b.delivery === null ? '-' : `${b.delivery}${b.interface === null ? '' : ` ${b.interface}`}`),
			]),
		),
	);
}

const ends = (address: string, port: number) => (address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);

export async function flows(client: Client, format: Format, limit: number): Promise<void> {
	await show<FlowsView>(client, `/v1/flows?limit=${limit}`, format, (f) => {
		const text = table(
			['PROTOCOL', 'CLIENT', 'FRONTEND', 'BACKEND', 'INGRESS', 'STATE', 'IDLE'],
			f.flows.map((x) => [
				x.protocol,
				ends(x.client, x.clientPort),
				ends(x.frontend, x.frontendPort),
				x.backend ?? '-',
				x.ingress ?? '-',
				x.state,
				`${(x.idleMs / 1000).toFixed(1)}s`,
			]),
		);
		return f.limited ? `${text}\n(more exist: --limit)` : text;
	});
}

export async function entries(client: Client, format: Format, limit: number): Promise<void> {
	await show<EntriesView>(client, `/v1/entries?limit=${limit}`, format, (e) =>
		e.maps
			.map((m) =>
				[
					`${m.map} (${m.entries} of ${m.maxEntries})`,
					...m.rows.map((r) => `  ${r}`),
					...(m.limited ? ['  …'] : []),
				].join('\n'),
			)
			.join('\n'),
	);
}

/** `datapath.staleAfter` → its value. */
export async function configGet(client: Client, key: string | undefined, format: Format): Promise<void> {
	const { body } = await client.get('/v1/config');
	if (key === undefined) {
		if (format === 'json') return print(body);
		const { stringify } = await import('yaml');
		return print(stringify(JSON.parse(body)));
	}
	let value: unknown = JSON.parse(body);
	for (const step of key.split('.')) {
		value = typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[step] : undefined;
		if (value === undefined)
			throw new BeelineError('NO_KEY', `there is no ${key}: beeline config get lists what there is`);
	}
	print(typeof value === 'object' || format === 'json' ? JSON.stringify(value) : String(value));
}

export async function monitor(
	client: Client,
	format: Format,
	of: string | undefined,
	verdict: string | undefined,
): Promise<void> {
	const query = new URLSearchParams();
	if (of !== undefined) query.set('service', of);
	if (verdict !== undefined) query.set('verdict', verdict);
	const text = query.toString();
	await client.events(`/v1/events${text === '' ? '' : `?${text}`}`, (event, data) => {
		if (event === 'lost')
			process.stderr.write(`${(JSON.parse(data) as { events: number }).events} events were lost: too many to print\n`);
		if (event !== 'verdict') return;
		if (format === 'json') return print(data);
		const v = JSON.parse(data) as VerdictEventBody;
		const ends = v.protocol === null ? '(not read here)' : `${v.protocol} ${v.source} > ${v.destination}`;
		print(
			`${v.at.slice(11, 23)} ${v.interface.padEnd(10)} ${v.program.padEnd(16)} ${v.verdict.padEnd(20)} ${ends} ${v.bytes}${v.backend === null ? '' : ` ${v.backend}`}`,
		);
	});
	throw new BeelineError('ENDED', 'the agent ended the stream: it was stopped or restarted');
}
