/** Verbs that change something: drain, undrain, config set, service create|update|scale|rm, node add|rm. */
import { BeelineError } from '../errors.js';
import type { BackendView, NodeView, StatusView } from '../http/schemas.js';
import type { Client } from './client.js';
import { print } from './output.js';

const at = (path: string, name: string, rest = '') => `${path}/${encodeURIComponent(name)}${rest}`;

/**
 * A backend by its id or address, or a node by name; what names several is refused.
 * @throws BeelineError NOT_FOUND, AMBIGUOUS
 */
export async function drain(client: Client, name: string, verb: 'drain' | 'undrain'): Promise<void> {
	const { nodes } = JSON.parse((await client.get('/v1/nodes')).body) as { nodes: NodeView[] };
	const { backends } = JSON.parse((await client.get('/v1/backends')).body) as { backends: BackendView[] };
	const found = [
		...nodes
			.filter((n) => n.name === name)
			.map((n) => ({ path: at('/v1/nodes', n.name, `/${verb}`), what: `node ${n.name}` })),
		...backends
			.filter((b) => b.id === name || b.addresses.includes(name))
			.map((b) => ({ path: at('/v1/backends', b.id, `/${verb}`), what: `backend ${b.id}` })),
	];
	if (found.length === 0)
		throw new BeelineError('NOT_FOUND', `${name} is neither a node nor a backend: beeline backends lists ids`);
	if (found.length > 1) {
		throw new BeelineError('AMBIGUOUS', `${name} names ${found.map((f) => f.what).join(' and ')}: give the id`);
	}
	await client.send('POST', found[0]!.path);
	print(`${found[0]!.what} ${verb}ed`);
}

/** Text of the command line → the value it means: numbers, true and false, lists by commas where the key is a list. */
function parseValue(key: string, text: string): unknown {
	if (/(^|\.)(addresses|allow|deny)$/.test(key)) return text === '' ? [] : text.split(',').map((s) => s.trim());
	if (text === 'true' || text === 'false') return text === 'true';
	return /^\d+$/.test(text) ? Number(text) : text;
}

export async function configSet(client: Client, key: string, text: string): Promise<void> {
	// Without a prototype: __proto__ is a key as any other, and refused as unknown.
	const empty = (): Record<string, unknown> => Object.create(null);
	const body = empty();
	const steps = key.split('.');
	let to = body;
	for (const s of steps.slice(0, -1)) {
		const next = empty();
		to[s] = next;
		to = next;
	}
	to[steps.at(-1)!] = parseValue(key, text);
	await client.send('PATCH', '/v1/config', body);
}

function options(list: readonly string[]): Record<string, unknown> {
	const out: Record<string, unknown> = {};
	for (const o of list) {
		const eq = o.indexOf('=');
		if (eq < 1) throw new BeelineError('BAD_OPTION', `--option ${o}: expected NAME=VALUE`);
		out[o.slice(0, eq)] = parseValue(o.slice(0, eq), o.slice(eq + 1));
	}
	return out;
}

/** `8080:80`, `8080:80/udp`, `published=8080,target=80,protocol=udp` (Docker's grammar). */
export function parsePublish(text: string): { published: number; target: number; protocol: string } {
	const short = /^(\d+):(\d+)(?:\/(\w+))?$/.exec(text);
	if (short !== null) return { published: Number(short[1]), target: Number(short[2]), protocol: short[3] ?? 'tcp' };
	const fields = new Map(text.split(',').map((f) => f.split('=', 2) as [string, string]));
	const published = Number(fields.get('published'));
	const target = Number(fields.get('target'));
	if (!Number.isInteger(published) || !Number.isInteger(target)) {
		throw new BeelineError(
			'BAD_PUBLISH',
			`--publish ${text}: expected PUBLISHED:TARGET[/PROTOCOL] or published=PUBLISHED,target=TARGET[,protocol=PROTOCOL]`,
		);
	}
	const unknown = [...fields.keys()].find((f) => !['published', 'target', 'protocol', 'mode'].includes(f));
	if (unknown !== undefined)
		throw new BeelineError('BAD_PUBLISH', `--publish ${text}: ${unknown} is none of published, target, protocol`);
	if ((fields.get('mode') ?? 'ingress') !== 'ingress')
		throw new BeelineError('BAD_PUBLISH', `--publish ${text}: every port is published on all nodes: leave mode out`);
	return { published, target, protocol: fields.get('protocol') ?? 'tcp' };
}

/** What `--publish-rm` names: a target port (Docker's grammar), or a port as `--publish` writes it. */
export function parseUnpublish(text: string): { published?: number; target?: number; protocol?: string } {
	const short = /^(\d+)(?:\/(\w+))?$/.exec(text);
	if (short !== null) return { target: Number(short[1]), ...(short[2] === undefined ? {} : { protocol: short[2] }) };
	const fields = new Map(text.split(',').map((f) => f.split('=', 2) as [string, string]));
	const [published, target, protocol] = ['published', 'target', 'protocol'].map((f) => fields.get(f));
	if (published === undefined && target === undefined) return parsePublish(text);
	return {
		...(published === undefined ? {} : { published: Number(published) }),
		...(target === undefined ? {} : { target: Number(target) }),
		...(protocol === undefined ? {} : { protocol }),
	};
}

/** `node1`, `node1=172.18.0.2`, `node1=172.18.0.2,fd00::2`, each with `*WEIGHT` behind it. */
export function parseBackend(text: string): { node: string; addresses?: string[]; weight?: number } {
	const m = /^([^=*]+)(?:=([^*]+))?(?:\*(\d+))?$/.exec(text);
	if (m === null)
		throw new BeelineError('BAD_BACKEND', `--backend ${text}: expected NODE[=ADDRESS[,ADDRESS]][*WEIGHT]`);
	return {
		node: m[1]!,
		...(m[2] === undefined ? {} : { addresses: m[2].split(',') }),
		...(m[3] === undefined ? {} : { weight: Number(m[3]) }),
	};
}

/** `red`, or `name=red,vip=10.44.0.250`. */
function parseNetwork(text: string): { name: string; vip?: string } {
	if (!text.includes('=')) return { name: text };
	const fields = new Map(text.split(',').map((f) => f.split('=', 2) as [string, string]));
	const name = fields.get('name');
	if (name === undefined)
		throw new BeelineError('BAD_NETWORK', `--network ${text}: expected NAME or name=NAME,vip=ADDRESS`);
	const vip = fields.get('vip');
	return vip === undefined ? { name } : { name, vip };
}

export async function serviceCreate(
	client: Client,
	name: string,
	o: {
		readonly publish: readonly string[];
		readonly backend: readonly string[];
		readonly option: readonly string[];
		readonly network: readonly string[];
		readonly endpointMode?: string;
	},
): Promise<void> {
	if (o.publish.length === 0 && o.network.length === 0)
		throw new BeelineError('NO_PUBLISH', `service create ${name}: give at least one --publish, or a --network`);
	await client.send('POST', '/v1/services', {
		name,
		ports: o.publish.map(parsePublish),
		backends: o.backend.map(parseBackend),
		...(o.network.length === 0 ? {} : { networks: o.network.map(parseNetwork) }),
		...(o.endpointMode === undefined ? {} : { endpointMode: o.endpointMode }),
		...(o.option.length === 0 ? {} : { options: options(o.option) }),
	});
	print(name);
}

export interface ServiceUpdate {
	readonly option: readonly string[];
	readonly publishAdd: readonly string[];
	readonly publishRm: readonly string[];
	readonly backendAdd: readonly string[];
	readonly backendRm: readonly string[];
	readonly replicas?: number;
}

export async function serviceUpdate(client: Client, name: string, o: ServiceUpdate): Promise<void> {
	const lists = (add: readonly unknown[], remove: readonly unknown[]) =>
		add.length + remove.length === 0
			? undefined
			: { ...(add.length > 0 ? { add } : {}), ...(remove.length > 0 ? { remove } : {}) };
	const ports = lists(o.publishAdd.map(parsePublish), o.publishRm.map(parseUnpublish));
	const backends = lists(
		o.backendAdd.map(parseBackend),
		o.backendRm.map((b) => {
			const { weight: _weight, ...place } = parseBackend(b);
			return place;
		}),
	);
	const patch = {
		...(o.option.length === 0 ? {} : { options: options(o.option) }),
		...(ports === undefined ? {} : { ports }),
		...(backends === undefined ? {} : { backends }),
		...(o.replicas === undefined ? {} : { replicas: o.replicas }),
	};
	if (Object.keys(patch).length === 0)
		throw new BeelineError(
			'NO_OPTION',
			'service update: give at least one of --option, --publish-add, --publish-rm, --backend-add, --backend-rm, --replicas',
		);
	await client.send('PATCH', at('/v1/services', name), patch);
	print(name);
}

/** `web=3` of each: how many of its backends take new flows. */
export async function serviceScale(client: Client, list: readonly string[]): Promise<void> {
	const wanted = list.map((text) => {
		const m = /^(.+)=(\d+)$/.exec(text);
		if (m === null)
			throw new BeelineError('BAD_SCALE', `service scale ${text}: expected SERVICE=BACKENDS such as web=3`);
		return { name: m[1] as string, replicas: Number(m[2]) };
	});
	for (const { name, replicas } of wanted) {
		await client.send('PATCH', at('/v1/services', name), { replicas });
		print(`${name} scaled to ${replicas}`);
	}
}

export async function serviceRemove(client: Client, names: readonly string[]): Promise<void> {
	for (const name of names) {
		await client.send('DELETE', at('/v1/services', name));
		print(name);
	}
}

/** With a file, what was written is this node's alone. On standard error, for the names on standard output are read by scripts. */
async function sayWhoseCopy(client: Client): Promise<void> {
	const { node, membership, totals } = JSON.parse((await client.get('/v1/status')).body) as StatusView;
	if (membership.source !== 'file' || totals.nodes < 2) return;
	process.stderr.write(
		`written into ${membership.place} of ${node} alone: every other node reads its own copy, so write it into theirs too\n`,
	);
}

export async function nodeAdd(client: Client, name: string, address: string): Promise<void> {
	await client.send('POST', '/v1/nodes', { name, address });
	print(name);
	await sayWhoseCopy(client);
}

export async function nodeRemove(client: Client, names: readonly string[]): Promise<void> {
	for (const name of names) {
		await client.send('DELETE', at('/v1/nodes', name));
		print(name);
	}
	await sayWhoseCopy(client);
}
