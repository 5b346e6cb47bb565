/**
 * mesh.yaml: the whole mesh as one document, the same on every node (DESIGN 7.2). Read into a Membership, watched, and
 * written back where an operator drains or tunes over HTTP, so that the file stays the truth.
 */
import { isAscii } from 'node:buffer';
import { createHash } from 'node:crypto';
import {
	closeSync,
	type FSWatcher,
	fstatSync,
	openSync,
	readFileSync,
	readSync,
	realpathSync,
	statSync,
	watch,
} from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { type Document, isMap, isScalar, isSeq, type YAMLMap, type YAMLSeq } from 'yaml';
import { z } from 'zod';
import { BeelineError, codeOf } from '../../errors.js';
import { backendKey, idOf } from '../keys.js';
import { contains, equalSlices, gatewayOf } from '../subnets.js';
import type { Membership, NetworkSpec, NodeSpec, PublishedPort, ServiceOptions, ServiceSpec, Task } from '../types.js';
import {
	address,
	address4,
	bool,
	check,
	clientPrefix,
	duration,
	formatDuration,
	integer,
	isUsable,
	name,
	oneOf,
	type Problem,
	parseAddress,
	parseSource,
	port,
	readFailed,
	readText,
	refuse,
	type Source,
	value,
	writeAtomically,
} from './document.js';
import { checkNetwork, networkSchema, toNetwork } from './network.js';
import { type Items, parseItem, splitItems, splitPlain } from './plain.js';
import { changeService as changeServiceDocument, type ServiceChange, type ServiceDocument } from './service-change.js';

const tableSize = value('auto or a power of two from 1024 to 131072', (x) =>
	x === 'auto' || (typeof x === 'number' && x >= 1024 && x <= 131072 && Number.isInteger(x) && (x & (x - 1)) === 0)
		? (x as 'auto' | number)
		: undefined,
);

const optionsSchema = z.strictObject({
	returnPath: oneOf('auto', 'dsr', 'tunnel').default('auto'),
	affinity: oneOf('none', 'client-ip').default('none'),
	tracking: oneOf('auto', 'always', 'none').default('auto'),
	trackingWindow: duration.default(8_100_000),
	udpWindow: duration.default(60_000),
	tableSize: tableSize.default('auto'),
	drainTimeout: duration.default(60_000),
	addresses: z.array(address).default([]),
	allow: z.array(clientPrefix).default([]),
	deny: z.array(clientPrefix).default([]),
	prefer: oneOf('none', 'local').default('none'),
	enable: bool.default(true),
});

const portSchema = z.strictObject({
	published: port,
	target: port,
	protocol: oneOf('tcp', 'udp').default('tcp'),
});

const backendSchema = z.strictObject({
	node: name,
	address: address.optional(),
	addresses: z
		.array(address)
		.min(1, 'one address, or one of each family')
		.max(2, 'one address, or one of each family')
		.optional(),
	weight: integer(0, 1000, 'a weight').default(1),
	drain: bool.default(false),
});

const serviceSchema = z.strictObject({
	name,
	ports: z.array(portSchema).default([]),
	options: optionsSchema.prefault({}),
	backends: z.array(backendSchema).default([]),
	/** Overlay networks that its tasks, their endpoints, are on. */
	networks: z.array(z.strictObject({ name, vip: address4.optional() })).optional(),
	endpointMode: oneOf('vip', 'dnsrr').default('vip'),
});

const nodeSchema = z.strictObject({
	name,
	address: address4,
	drain: bool.default(false),
});

export const meshSchema = z.strictObject({
	nodes: z.array(nodeSchema).min(1, 'at least one node'),
	services: z.array(serviceSchema).default([]),
	networks: z.array(networkSchema).default([]),
});
type MeshFile = z.output<typeof meshSchema>;

/** Options as DESIGN 7.2 writes them: durations as text. */
export function formatOptions(o: ServiceOptions): Record<string, unknown> {
	return {
		returnPath: o.returnPath,
		affinity: o.affinity,
		tracking: o.tracking,
		trackingWindow: formatDuration(o.trackingWindowMs),
		udpWindow: formatDuration(o.udpWindowMs),
		tableSize: o.tableSize,
		drainTimeout: formatDuration(o.drainTimeoutMs),
		addresses: o.addresses,
		allow: o.allow,
		deny: o.deny,
		prefer: o.prefer,
		enable: o.enable,
	};
}

function toOptions(o: MeshFile['services'][number]['options']): ServiceOptions {
	const { trackingWindow, udpWindow, drainTimeout, ...rest } = o;
	return { ...rest, trackingWindowMs: trackingWindow, udpWindowMs: udpWindow, drainTimeoutMs: drainTimeout };
}

/** Options from their notation in DESIGN 7.2, defaults filled in. @throws BeelineError INVALID_CONFIG naming the field */
export function parseOptions(options: unknown): ServiceOptions {
	const result = check(optionsSchema, options ?? {});
	if (!result.data) throw refuse({ ...parseSource('', ''), file: '' }, result.problems);
	return toOptions(result.data);
}

/** What a schema cannot say: names that must exist or be unique, addresses that must fit together. */
function crossCheck(m: MeshFile): Problem[] {
	const problems: Problem[] = [];
	const unique = <T>(
		list: readonly T[],
		at: (string | number)[],
		field: string,
		keyOf: (x: T) => string,
		what: string,
	) => {
		const seen = new Map<string, number>();
		for (const [i, x] of list.entries()) {
			const key = keyOf(x);
			const before = seen.get(key);
			if (before === undefined) seen.set(key, i);
			else
				problems.push({
					path: [...at, i, field],
					text: `is ${key}, as ${at.join('.')}[${before}] is: expected ${what}`,
				});
		}
	};
	unique(m.nodes, ['nodes'], 'name', (n) => n.name, 'each node once');
	unique(m.nodes, ['nodes'], 'address', (n) => n.address, 'an address of its own for each node');
	unique(m.services, ['services'], 'name', (s) => s.name, 'each service once');
	unique(m.networks, ['networks'], 'name', (n) => n.name, 'each network once');
	unique(m.networks, ['networks'], 'vni', (n) => String(n.vni), 'a VNI of its own for each network');
	const nodes = new Set(m.nodes.map((n) => n.name));
	const taken = new Map<string, { addresses: readonly string[]; where: string }[]>();
	for (const [i, s] of m.services.entries()) {
		if (s.ports.length === 0 && (s.networks ?? []).length === 0)
			problems.push({
				path: ['services', i, 'ports'],
				text: 'is missing: expected at least one published port, or networks',
			});
		for (const [k, p] of s.ports.entries()) {
			const key = `${p.protocol}/${p.published}`;
			const list = taken.get(key) ?? [];
			taken.set(key, list);
			const addresses = s.options.addresses;
			// A service on one address beside one on all is no conflict: the more exact answers.
			const other = list.find((t) =>
				addresses.length === 0 ? t.addresses.length === 0 : t.addresses.some((a) => addresses.includes(a)),
			);
			if (other)
				problems.push({
					path: ['services', i, 'ports', k, 'published'],
					text: `is ${key}, which ${other.where} publishes already: expected each published port once per protocol and address`,
				});
			list.push({ addresses, where: `service ${s.name}` });
		}
		const places = new Map<string, number>();
		for (const [k, b] of s.backends.entries()) {
			const path = ['services', i, 'backends', k];
			if (!nodes.has(b.node))
				problems.push({
					path: [...path, 'node'],
					text: `is ${JSON.stringify(b.node)}, which is no node: expected one of ${[...nodes].slice(0, 8).join(', ')}`,
				});
			if (b.address !== undefined && b.addresses !== undefined)
				problems.push({
					path: [...path, 'addresses'],
					text: 'stands beside address: expected one of the two',
					key: true,
				});
			const list = b.addresses ?? (b.address === undefined ? [] : [b.address]);
			if (list.length === 2 && list[0].includes(':') === list[1].includes(':'))
				problems.push({
					path: [...path, 'addresses', 1],
					text: `is ${list[1]}, of the same family as the first: expected one address of each family`,
				});
			for (const a of list.length === 0 ? ['a process'] : list) {
				const place = `${b.node}/${a}`;
				const before = places.get(place);
				if (before !== undefined)
					problems.push({ path, text: `is ${a} on ${b.node}, as backends[${before}] is: expected each backend once` });
				places.set(place, k);
			}
		}
	}
	for (const [i, n] of m.networks.entries())
		for (const p of checkNetwork(n, m.nodes)) problems.push({ ...p, path: ['networks', i, ...p.path] });
	const ingress = m.networks.filter((n) => n.ingress);
	if (ingress.length > 1)
		problems.push({
			path: ['networks', m.networks.indexOf(ingress[1]), 'ingress'],
			text: `is true, as that of ${ingress[0].name} is: expected one ingress network`,
		});
	return problems;
}

function toTask(b: MeshFile['services'][number]['backends'][number]): Task {
	const list = b.addresses ?? (b.address === undefined ? [] : [b.address]);
	const address4 = list.find((a) => !a.includes(':'));
	const address6 = list.find((a) => a.includes(':'));
	return {
		node: b.node,
		...(address4 === undefined ? {} : { address4 }),
		...(address6 === undefined ? {} : { address6 }),
		weight: b.weight,
		state: b.drain ? 'draining' : 'active',
	};
}

/** What a service's document says of overlay networks. */
export function onNetworks(s: z.output<typeof serviceSchema>): Pick<ServiceSpec, 'networks' | 'vips'> {
	const list = s.networks ?? [];
	if (list.length === 0) return {};
	const vips = list.flatMap((n) =>
		n.vip === undefined || s.endpointMode === 'dnsrr' ? [] : [{ network: n.name, address: n.vip }],
	);
	return { networks: list.map((n) => n.name), ...(vips.length === 0 ? {} : { vips }) };
}

/** Services on networks: of the file, where nobody gives out a VIP. */
function checkOnNetworks(m: MeshFile): Problem[] {
	const problems: Problem[] = [];
	const networks = new Map(m.networks.map((n) => [n.name, n]));
	const taken = new Set(m.networks.flatMap((n) => n.endpoints.map((e) => `${n.name} ${e.address}`)));
	for (const [i, s] of m.services.entries()) {
		for (const [k, { name: of, vip }] of (s.networks ?? []).entries()) {
			const path = ['services', i, 'networks', k];
			const n = networks.get(of);
			if (n === undefined) {
				const names = [...networks.keys()].slice(0, 8).join(', ') || 'none here';
				problems.push({ path: [...path, 'name'], text: `is ${of}, which is no network: expected one of ${names}` });
				continue;
			}
			if (s.endpointMode === 'dnsrr') continue;
			if (vip === undefined)
				problems.push({
					path: [...path, 'vip'],
					text: `is missing: expected an address of ${n.subnet}, or endpointMode: dnsrr`,
				});
			else if (!contains(n.subnet, vip) || vip === gatewayOf(n))
				problems.push({
					path: [...path, 'vip'],
					text: `is ${vip}: expected an address of ${n.subnet} that is not the gateway`,
				});
			else if (taken.has(`${of} ${vip}`))
				problems.push({ path: [...path, 'vip'], text: `is ${vip}, which is taken: expected an address of its own` });
			taken.add(`${of} ${vip}`);
		}
	}
	return problems;
}

function toMembership(m: MeshFile): Membership {
	return {
		nodes: m.nodes.map((n): NodeSpec => ({ name: n.name, address: n.address, drained: n.drain })),
		services: m.services.map(
			(s): ServiceSpec => ({
				name: s.name,
				ports: s.ports,
				options: toOptions(s.options),
				tasks: s.backends.map(toTask),
				...onNetworks(s),
			}),
		),
		networks: m.networks.map((n) => {
			const network = toNetwork(n);
			const slices =
				network.options.slices ??
				equalSlices(
					n.subnet,
					m.nodes.map((x) => x.name),
				);
			return { ...network, options: { ...network.options, slices } };
		}),
	};
}

function membershipOf(source: Source): Membership {
	const result = check(meshSchema, source.data ?? {});
	if (!result.data) throw refuse(source, result.problems);
	const problems = [...crossCheck(result.data), ...checkOnNetworks(result.data)];
	if (problems.length > 0) throw refuse(source, problems);
	return toMembership(result.data);
}

const parsed = <T extends z.ZodType>(schema: T, source: Source, data: unknown): z.output<T> => {
	const result = check(schema, data);
	if (!result.data) throw refuse(source, result.problems);
	return result.data as z.output<T>;
};

/** One item of `nodes:`, for sources that keep each as a document of its own. @throws BeelineError INVALID_CONFIG */
export function parseNode(source: Source, data: unknown): NodeSpec {
	const n = parsed(nodeSchema, source, data);
	return { name: n.name, address: n.address, drained: n.drain };
}

/** One item of `services:`; whether its nodes exist and its ports are free is not asked. @throws BeelineError INVALID_CONFIG */
export function parseService(source: Source, data: unknown): ServiceSpec {
	const s = parsed(serviceSchema, source, data);
	const nodes = [...new Set(s.backends.map((b) => b.node))].map((name, i) => ({
		name,
		address: `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}`,
		drain: false,
	}));
	const problems: Problem[] = crossCheck({ nodes, services: [s], networks: [] });
	if (problems.length > 0)
		throw refuse(
			source,
			problems.map((p) => ({ ...p, path: p.path.slice(2) })),
		);
	return {
		name: s.name,
		ports: s.ports,
		options: toOptions(s.options),
		tasks: s.backends.map(toTask),
		...onNetworks(s),
	};
}

/** One item of `networks:`; whether its nodes exist is not asked. @throws BeelineError INVALID_CONFIG */
export function parseNetwork(source: Source, data: unknown): NetworkSpec {
	const n = parsed(networkSchema, source, data);
	const named = [...n.endpoints.map((e) => e.node), ...Object.keys(n.slices ?? {})];
	const problems = checkNetwork(
		n,
		named.map((name) => ({ name })),
	);
	if (problems.length > 0) throw refuse(source, problems);
	return toNetwork(n);
}

/** The bytes of a file, of which the reading of a change needs few at a time. */
export interface Content {
	readonly size: number;
	/** Valid until the next call. */
	read(from: number, to: number): Buffer;
	whole(): Buffer;
}

/** What is kept of a plain file to see what has changed in the next: prints of its parts, for its text may be 8 MB. */
interface Prints {
	readonly json: boolean;
	/** Column of the list's dashes. */
	readonly indent: number;
	/** Part k is bytes cuts[k] to cuts[k + 1]: what is before the services, some services each, what is behind them. */
	readonly cuts: readonly number[];
	/** The service that each part begins with. */
	readonly items: readonly number[];
	readonly prints: readonly string[];
}

/** A membership, and what the next reading needs to look only at what changed. */
export interface Reading {
	readonly membership: Membership;
	readonly size: number;
	/** undefined: the file is not plain, or has no services. */
	readonly prints?: Prints;
}

/** Bytes from which on a part is not made larger: 128 of them are a file of 8 MB, and one of them is read in a moment. */
const PART_BYTES = 65536;

/** Says whether bytes are others; nobody is kept out by it, and of the hashes that suffice it is the quickest. */
const printOf = (bytes: Buffer): string => createHash('sha1').update(bytes).digest('base64');

/** Parts of services that begin at `starts` in bytes. */
function partsOf(
	bytes: Buffer,
	starts: readonly number[],
	to: number,
	least: number,
): Pick<Prints, 'cuts' | 'items' | 'prints'> {
	const cuts: number[] = [0];
	const items: number[] = [0];
	for (let i = 1; i < starts.length; i++)
		if (starts[i] - cuts[cuts.length - 1] >= least) {
			cuts.push(starts[i]);
			items.push(i);
		}
	return { cuts, items, prints: cuts.map((at, k) => printOf(bytes.subarray(at, cuts[k + 1] ?? to))) };
}

/**
 * Reads mesh.yaml. Services whose text lies outside of what changed since `before` are the same objects as there; where
 * nothing changed the answer is `before` itself.
 * @param partBytes for tests: parts of small files
 * @throws BeelineError BAD_YAML or INVALID_CONFIG: file, line, column, what was expected
 */
export function readMesh(file: string, content: Content | Buffer, before?: Reading, partBytes = PART_BYTES): Reading {
	const text = Buffer.isBuffer(content) ? contentOf(content) : content;
	const change = readChange(text, before, partBytes);
	if (change !== undefined && change === before) return before;
	const bytes = change ? undefined : text.whole();
	const quick = change ?? readPlain(bytes as Buffer, partBytes);
	if (quick) return before ? { ...quick, membership: shareMembership(before.membership, quick.membership) } : quick;
	const membership = membershipOf(parseSource(file, (bytes as Buffer).toString('utf8')));
	return { size: text.size, membership: shareMembership(before?.membership, membership) };
}

function contentOf(bytes: Buffer): Content {
	return { size: bytes.length, read: (from, to) => bytes.subarray(from, to), whole: () => bytes };
}

/** Reads the text of mesh.yaml. @throws BeelineError BAD_YAML or INVALID_CONFIG: file, line, column, what was expected */
export function parseMembership(file: string, content: string): Membership {
	return readMesh(file, Buffer.from(content, 'utf8')).membership;
}

const DEFAULT_OPTIONS: ServiceOptions = toOptions(optionsSchema.parse({}));

/** Where a list's items end that are followed by a comma and spaces up to `to`. -1: something else stands there. */
function beforeComma(bytes: Buffer, to: number): number {
	const back = (from: number) => {
		let i = from;
		while (i > 0 && bytes[i - 1] <= 0x20) i--;
		return i;
	};
	const comma = back(to) - 1;
	return bytes[comma] === 0x2c ? back(comma) : -1;
}

/**
 * Only the parts of the file that the change touches are read: what stands in a list may be exchanged for something else
 * without looking at the rest. Everything else (nodes, what is around the services, an error) is for the whole reading.
 */
function readChange(text: Content, before: Reading | undefined, partBytes: number): Reading | undefined {
	if (!before?.prints) return undefined;
	const { json, cuts, items, prints } = before.prints;
	const behind = prints.length - 1;
	const shift = text.size - before.size;
	const stands = (k: number, at: number): boolean => {
		const to = at + (cuts[k + 1] ?? before.size) - cuts[k];
		return at >= 0 && to <= text.size && printOf(text.read(at, to)) === prints[k];
	};
	let first = 0;
	while (first < behind && stands(first, cuts[first])) first++;
	let next = behind + 1;
	while (next > first && cuts[next - 1] + shift >= cuts[first] && stands(next - 1, cuts[next - 1] + shift)) next--;
	if (shift === 0 && first === behind && next === behind) return before;
	if (first === 0 || next > behind) return undefined;
	// What is new between two parts, and what is no more, is read with a part beside it.
	const nothing = cuts[first] === cuts[next] + shift;
	if (first > 1 && (first === next || nothing)) first--;
	else if (nothing && next < behind) next++;
	const from = cuts[first];
	const length = cuts[next] + shift - from;
	const bytes = text.read(from, Math.min(from + length + 1, text.size));
	const to = json && next < behind ? beforeComma(bytes, length) : length;
	if (to < 0 || !isAscii(bytes.subarray(0, to))) return undefined;
	const some = splitItems(bytes, 0, to, before.prints);
	if (!some) return undefined;
	const { nodes, networks } = before.membership;
	const services = readServices(bytes, some, new Map(nodes.map((n) => [n.name, n.name])));
	if (!services) return undefined;
	const all = before.membership.services.slice();
	all.splice(items[first], items[next] - items[first], ...services);
	if (!fitTogether(all)) return undefined;
	const made = partsOf(bytes, some.starts, length, partBytes);
	const more = all.length - before.membership.services.length;
	return {
		size: text.size,
		membership: { nodes, services: all, networks },
		prints: {
			...before.prints,
			cuts: [...cuts.slice(0, first), ...made.cuts.map((x) => x + from), ...cuts.slice(next).map((x) => x + shift)],
			items: [
				...items.slice(0, first),
				...made.items.map((x) => x + items[first]),
				...items.slice(next).map((x) => x + more),
			],
			prints: [...prints.slice(0, first), ...made.prints, ...prints.slice(next)],
		},
	};
}

/** The whole file service by service: nothing of the size of all of them is made but what stays. */
function readPlain(bytes: Buffer, partBytes: number): Reading | undefined {
	if (!isAscii(bytes)) return undefined;
	const split = splitPlain(bytes, 'services');
	if (!split) return undefined;
	// What is around the services is small: the schema reads it, and only what it accepts without a word is accepted.
	const head = meshSchema.safeParse({ ...split.head, services: [] });
	if (!head.success || crossCheck(head.data).length > 0) return undefined;
	const around = toMembership(head.data);
	const services = readServices(bytes, split, new Map(around.nodes.map((n) => [n.name, n.name])));
	if (!services || !fitTogether(services)) return undefined;
	const membership = { ...around, services };
	const size = bytes.length;
	if (services.length === 0) return { size, membership };
	const { json, starts, ends, indent } = split;
	const from = starts[0];
	const to = ends[ends.length - 1];
	const made = partsOf(
		bytes.subarray(from, to),
		starts.map((x) => x - from),
		to - from,
		partBytes,
	);
	return {
		size,
		membership,
		prints: {
			json,
			indent,
			cuts: [0, ...made.cuts.map((x) => x + from), to],
			items: [0, ...made.items, services.length],
			prints: [printOf(bytes.subarray(0, from)), ...made.prints, printOf(bytes.subarray(to))],
		},
	};
}

/** @param nodes name → the one text of it that is kept */
function readServices(bytes: Buffer, items: Items, nodes: ReadonlyMap<string, string>): ServiceSpec[] | undefined {
	const services: ServiceSpec[] = [];
	for (let i = 0; i < items.starts.length; i++) {
		const spec = toService(parseItem(bytes, items.starts[i], items.ends[i], items), nodes);
		if (!spec) return undefined;
		services.push(spec);
	}
	return services;
}

const isRecord = (x: unknown): x is Readonly<Record<string, unknown>> =>
	typeof x === 'object' && x !== null && !Array.isArray(x);

/** A service that needs no word about it: what the schema and crossCheck() accept, or undefined where they must say. */
function toService(item: unknown, nodes: ReadonlyMap<string, string>): ServiceSpec | undefined {
	if (!isRecord(item)) return undefined;
	const { backends, ...rest } = item;
	const result = serviceSchema.safeParse(rest);
	if (!result.success) return undefined;
	const { name, ports, networks } = result.data;
	if (ports.length === 0 || networks !== undefined) return undefined;
	const options = rest.options === undefined ? DEFAULT_OPTIONS : toOptions(result.data.options);
	const tasks: Task[] = [];
	if (backends !== undefined) {
		if (!Array.isArray(backends)) return undefined;
		const places = new Map<string, Set<string>>();
		for (const b of backends) {
			const task = toQuickTask(b, nodes);
			if (!task) return undefined;
			let here = places.get(task.node);
			if (!here) {
				here = new Set();
				places.set(task.node, here);
			}
			const { address4, address6 } = task;
			const before = here.size;
			if (address4 !== undefined) here.add(address4);
			if (address6 !== undefined) here.add(address6);
			if (address4 === undefined && address6 === undefined) here.add('a process');
			if (here.size - before < (address4 !== undefined && address6 !== undefined ? 2 : 1)) return undefined;
			tasks.push(task);
		}
	}
	return { name, ports, options, tasks };
}

/** An address as the schema would give it back, or undefined. */
function quickAddress(x: unknown): string | undefined {
	if (typeof x !== 'string') return undefined;
	if (isPlainAddress4(x)) return x;
	const a = parseAddress(x);
	return a !== undefined && isUsable(a) ? a : undefined;
}

/** Unicast IPv4 in four decimal parts without leading zeros; false where it takes a longer look. */
function isPlainAddress4(x: string): boolean {
	let parts = 0;
	let value = -1;
	for (let i = 0; i <= x.length; i++) {
		const c = i < x.length ? x.charCodeAt(i) : 46;
		if (c === 46) {
			if (value < 0 || value > 255) return false;
			// 0 and 127 are no addresses of a backend, 169.254 may be link-local, 224 and above are no unicast.
			if (parts === 0 && (value === 0 || value === 127 || value === 169 || value >= 224)) return false;
			parts++;
			value = -1;
		} else {
			if (c < 48 || c > 57 || value === 0) return false;
			value = (value < 0 ? 0 : value * 10) + (c - 48);
		}
	}
	return parts === 4;
}

/** A backend that needs no word about it. Every field in one literal: 100 000 of these have one shape. */
function toQuickTask(b: unknown, nodes: ReadonlyMap<string, string>): Task | undefined {
	if (!isRecord(b)) return undefined;
	let list: readonly unknown[] | undefined;
	let drain: unknown = false;
	let weight: unknown = 1;
	for (const key in b)
		switch (key) {
			case 'node':
				break;
			case 'address':
				if (list) return undefined;
				list = [b[key]];
				break;
			case 'addresses': {
				const found = b[key];
				if (list || !Array.isArray(found) || found.length < 1 || found.length > 2) return undefined;
				list = found;
				break;
			}
			case 'weight':
				weight = b[key];
				break;
			case 'drain':
				drain = b[key];
				break;
			default:
				return undefined;
		}
	const node = typeof b.node === 'string' ? nodes.get(b.node) : undefined;
	if (node === undefined || typeof drain !== 'boolean') return undefined;
	if (typeof weight !== 'number' || !Number.isInteger(weight) || weight < 0 || weight > 1000) return undefined;
	let address4: string | undefined;
	let address6: string | undefined;
	for (const x of list ?? []) {
		const a = quickAddress(x);
		if (a === undefined) return undefined;
		if (a.includes(':')) {
			if (address6 !== undefined) return undefined;
			address6 = a;
		} else {
			if (address4 !== undefined) return undefined;
			address4 = a;
		}
	}
	const state = drain ? 'draining' : 'active';
	if (address6 === undefined)
		return address4 === undefined ? { node, weight, state } : { node, address4, weight, state };
	return address4 === undefined ? { node, address6, weight, state } : { node, address4, address6, weight, state };
}

/** Whether no service has the name or a published port of another; crossCheck() says it in words. */
function fitTogether(services: readonly ServiceSpec[]): boolean {
	const names = new Set<string>();
	const taken = new Map<string, (readonly string[])[]>();
	for (const { name, ports, options } of services) {
		if (names.has(name)) return false;
		names.add(name);
		for (const p of ports) {
			const key = `${p.protocol}/${p.published}`;
			const list = taken.get(key);
			const { addresses } = options;
			if (!list) taken.set(key, [addresses]);
			else if (list.some((t) => (addresses.length === 0 ? t.length === 0 : t.some((a) => addresses.includes(a)))))
				return false;
			else list.push(addresses);
		}
	}
	return true;
}

/** The old objects wherever nothing changed, so that whoever comes after need not look inside. */
export function shareMembership(old: Membership | undefined, next: Membership): Membership {
	if (!old) return next;
	const share = <T>(before: readonly T[], after: readonly T[], keyOf: (x: T) => string): readonly T[] => {
		const known = new Map(before.map((x) => [keyOf(x), x]));
		const list = after.map((x) => {
			const was = known.get(keyOf(x));
			return was !== undefined && same(was, x) ? was : x;
		});
		return list.length === before.length && list.every((x, i) => x === before[i]) ? before : list;
	};
	return {
		nodes: share(old.nodes, next.nodes, (n) => n.name),
		services: share(old.services, next.services, (s) => s.name),
		networks: share(old.networks, next.networks, (n) => n.name),
	};
}

function same(a: unknown, b: unknown): boolean {
	if (a === b) return true;
	if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
	const x = a as Record<string, unknown>;
	const y = b as Record<string, unknown>;
	const keys = Object.keys(x);
	return keys.length === Object.keys(y).length && keys.every((k) => k in y && same(x[k], y[k]));
}

/** A membership source that is a file. Closing it stops the watching. */
export interface FileSource {
	readonly file: string;
	/** The last one that was accepted. */
	current(): Membership;
	/** Why the last reading was refused; undefined when it was accepted. */
	error(): BeelineError | undefined;
	/** Reads the file now, as the watcher would. */
	reload(): void;
	close(): void;
}

export interface FileSourceEvents {
	/** A new membership, not called for the first. `readAtMs` is when the change was noticed (Date.now()). */
	readonly onChange: (membership: Membership, readAtMs: number) => void;
	/** A reading was refused; the membership before it stays. */
	readonly onError: (error: BeelineError) => void;
	/** A reading was accepted and says what the one before it said. */
	readonly onSame?: () => void;
	/** VNI of the tunnel between nodes: no network may have it. */
	readonly meshVni?: number;
}

/** After the last event: lets a writer of several write(2) calls finish. */
const DEBOUNCE_MS = 5;
/** For file systems without inotify (NFS, some bind mounts). */
const POLL_MS = 1000;

/**
 * Reads mesh.yaml and watches it: written in place, replaced by rename, or a symbolic link that is switched.
 * @throws BeelineError where the first reading is refused
 */
export function openFileSource(file: string, events: FileSourceEvents): FileSource {
	const full = resolve(file);
	let stamp = stampOf(full);
	let reading = readFile(file, full, events.meshVni);
	let error: BeelineError | undefined;
	let timer: NodeJS.Timeout | undefined;
	let settled: NodeJS.Immediate | undefined;
	let noticedAt = 0;
	const look = () => ({ stamp: stampOf(full), next: attempt(() => readFile(file, full, events.meshVni, reading)) });
	/** Read when the first event came: right where no other event follows, and the file is as it was then. */
	let ahead: ReturnType<typeof look> | undefined;
	let looking: NodeJS.Immediate | undefined;
	const stop = () => {
		clearTimeout(timer);
		clearImmediate(settled);
		clearImmediate(looking);
		timer = undefined;
	};
	const reload = (): void => {
		const at = noticedAt || Date.now();
		noticedAt = 0;
		stop();
		try {
			const { stamp: now, next } = ahead !== undefined && ahead.stamp === stampOf(full) ? ahead : look();
			ahead = undefined;
			if (stampOf(full) !== now) {
				// Still being written: half a file can be a valid one that lacks half of the services.
				later();
				return;
			}
			stamp = now;
			if ('failure' in next) throw next.failure;
			if (next.value === reading) {
				// As it was accepted before; if something else was refused meanwhile, that is over.
				error = undefined;
				events.onSame?.();
				return;
			}
			reading = next.value;
			error = undefined;
			events.onChange(reading.membership, at);
		} catch (e) {
			const next =
				e instanceof BeelineError
					? e
					: new BeelineError('READ_FAILED', `read membership ${file}: ${String(e)}`, { cause: e });
			if (error?.message === next.message) return;
			error = next;
			events.onError(next);
		}
	};
	const later = () => {
		noticedAt ||= Date.now();
		ahead = undefined;
		// Behind the events that wait already; a writer of many parts is read ahead once.
		if (timer === undefined)
			looking = setImmediate(() => {
				ahead = look();
			});
		clearTimeout(timer);
		clearImmediate(settled);
		// Events that came during that reading are seen before the file is taken for settled.
		timer = setTimeout(() => {
			settled = setImmediate(reload);
		}, DEBOUNCE_MS);
	};
	const watchers: FSWatcher[] = [];
	let watched = '';
	const rewatch = () => {
		// The directory, not the file: a rename over the file would take the watch away with the old inode.
		const directories = new Map<string, string>([[dirname(full), basename(full)]]);
		try {
			const target = realpathSync(full);
			directories.set(dirname(target), basename(target));
		} catch {
			// gone for a moment: its directory tells when it is back
		}
		const key = [...directories].join();
		if (key === watched) return;
		watched = key;
		for (const w of watchers.splice(0)) w.close();
		for (const [directory, base] of directories) {
			try {
				const w = watch(directory, { persistent: false }, (_event, changed) => {
					if (changed !== null && changed !== base && directory !== dirname(full)) return;
					if (changed !== null && changed !== base && stampOf(full) === stamp) return;
					later();
				});
				w.on('error', () => w.close());
				watchers.push(w);
			} catch {
				// no inotify left: the poll below still sees it
			}
		}
	};
	rewatch();
	const poll = setInterval(() => {
		rewatch();
		if (stampOf(full) !== stamp) later();
	}, POLL_MS);
	poll.unref();
	return {
		file: full,
		current: () => reading.membership,
		error: () => error,
		reload,
		close() {
			clearInterval(poll);
			stop();
			for (const w of watchers) w.close();
		},
	};
}

/** Reads the file at a path; `file` is what it is called. @throws BeelineError */
function readFile(file: string, path: string, meshVni: number | undefined, before?: Reading): Reading {
	let fd: number | undefined;
	try {
		fd = openSync(path, 'r');
		const reading = readMesh(file, fileContent(fd), before);
		const taken = reading.membership.networks.findIndex((n) => n.vni === meshVni);
		if (taken < 0) return reading;
		throw refuse(parseSource(file, readText(path, 'membership')), [
			{
				path: ['networks', taken, 'vni'],
				text: `is ${meshVni}, the VNI of the tunnel between nodes (datapath.vni): expected another`,
			},
		]);
	} catch (error) {
		if (error instanceof BeelineError) throw error;
		throw readFailed(error, path, 'membership');
	} finally {
		if (fd !== undefined) closeSync(fd);
	}
}

/** An open file. What is shorter than it was is for whoever compares its stamps. */
function fileContent(fd: number): Content {
	const { size } = fstatSync(fd);
	let buffer = Buffer.alloc(0);
	const read = (into: Buffer, from: number): Buffer => {
		let n = 0;
		for (;;) {
			const more = readSync(fd, into, n, into.length - n, from + n);
			n += more;
			if (more === 0 || n === into.length) return into.subarray(0, n);
		}
	};
	return {
		size,
		read(from, to) {
			if (buffer.length < to - from) buffer = Buffer.allocUnsafeSlow(Math.max(2 * PART_BYTES, to - from));
			return read(buffer.subarray(0, to - from), from);
		},
		// What has no size (a pipe, /proc) is read to its end.
		whole: () => (size === 0 ? readFileSync(fd) : read(Buffer.allocUnsafeSlow(size), 0)),
	};
}

function attempt<T>(action: () => T): { readonly value: T } | { readonly failure: unknown } {
	try {
		return { value: action() };
	} catch (failure) {
		return { failure };
	}
}

function stampOf(file: string): string {
	try {
		const s = statSync(file, { bigint: true });
		return `${s.dev}/${s.ino}/${s.size}/${s.mtimeNs}`;
	} catch (error) {
		return codeOf(error);
	}
}

// --- writing back

/** Whoever refused is named in `detail`; the HTTP layer turns the code into 404, 409 or 422. */
function notFound(what: string, which: string): BeelineError {
	return new BeelineError(
		'NOT_FOUND',
		`${what} ${JSON.stringify(which)} is not in the mesh file: look with beeline ${what}s`,
	);
}

function listOf(doc: Document, key: string): YAMLSeq {
	let list = doc.get(key, true);
	if (!isSeq(list)) {
		list = doc.createNode([]);
		doc.set(key, list);
	}
	return list as YAMLSeq;
}

function itemOf(doc: Document, key: string, wanted: string): YAMLMap | undefined {
	return listOf(doc, key).items.find((i): i is YAMLMap => isMap(i) && i.get('name') === wanted);
}

function setValue(doc: Document, map: YAMLMap, key: string, v: unknown): void {
	const old = map.get(key, true);
	if (isScalar(old) && (typeof v !== 'object' || v === null)) old.value = v;
	else {
		const node = doc.createNode(v);
		if (isSeq(node)) node.flow = true;
		map.set(key, node);
	}
}

/**
 * Edits the file and checks the result; nothing is written where it would be refused. Comments, order and quoting of what
 * was not touched stay.
 * @throws BeelineError NOT_FOUND, CONFLICT, INVALID_CONFIG, WRITE_FAILED
 */
function edit(file: string, change: (doc: Document, membership: Membership) => string | undefined): Membership {
	const source = parseSource(file, readText(file, 'membership'));
	const before = membershipOf(source);
	const doc = source.doc();
	const item = change(doc, before);
	const text = /^\s*\{/.test(source.text)
		? `${JSON.stringify(doc.toJS(), null, '\t')}\n`
		: doc.toString({ lineWidth: 0, flowCollectionPadding: true });
	let after: Membership;
	try {
		after = parseMembership(file, text);
	} catch (e) {
		throw item === undefined ? e : ofItem(e, item);
	}
	if (text !== source.text) writeAtomically(file, text);
	return after;
}

/** A refusal as who sent the item must read it: the line and the index are of a text that was never written. */
function ofItem(e: unknown, item: string): unknown {
	if (!(e instanceof BeelineError) || e.code !== 'INVALID_CONFIG' || !e.field?.startsWith(`${item}.`)) return e;
	const skip = item.length + 1;
	const at = e.message.indexOf(e.field);
	return new BeelineError(e.code, at < 0 ? e.message : e.message.slice(at + skip), {
		field: e.field.slice(skip),
		cause: e,
	});
}

/** @throws BeelineError INVALID_CONFIG with `field` */
function checkOptions(options: Readonly<Record<string, unknown>>): void {
	const set = Object.fromEntries(Object.entries(options).filter(([, v]) => v !== null && v !== undefined));
	const result = check(optionsSchema, set);
	if (!result.data)
		throw refuse(
			{ ...parseSource('', ''), file: '' },
			result.problems.map((p) => ({ ...p, path: ['options', ...p.path] })),
		);
}

/** Makes a list what it shall be; items that stay the same objects are not touched. */
function setItems(
	doc: Document,
	item: YAMLMap,
	key: string,
	before: readonly unknown[],
	after: readonly unknown[],
): void {
	let list: unknown = item.get(key, true);
	if (!isSeq(list)) {
		const made = doc.createNode([]) as YAMLSeq;
		made.flow = true;
		item.set(key, made);
		list = made;
	}
	const seq = list as YAMLSeq;
	const nodes = new Map(before.map((x, i) => [x, seq.items[i]]));
	const like = seq.items[0];
	seq.items = after.map((x) => {
		const known = nodes.get(x);
		if (known !== undefined) return known;
		const node = doc.createNode(JSON.parse(JSON.stringify(x))) as YAMLMap;
		node.flow = isMap(like) ? (like.flow ?? false) : true;
		return node;
	});
}

/**
 * Changes a service as `beeline service update|scale` says. Options, and who is drained, may be changed in any file; ports and
 * backends only where it names one node, for every node must have the same.
 * @throws BeelineError NOT_FOUND, CONFLICT, INVALID_CONFIG with `field`
 */
export function changeService(file: string, service: string, change: ServiceChange): Membership {
	if (change.options !== undefined) checkOptions(change.options);
	return edit(file, (doc, m) => {
		const item = itemOf(doc, 'services', service);
		if (!item) throw notFound('service', service);
		if (change.ports !== undefined || change.backends !== undefined) refuseShared(file, m, `update service ${service}`);
		const before = item.toJS(doc) as ServiceDocument;
		const after = changeServiceDocument(service, before, change);
		if (change.options !== undefined) {
			let map: unknown = item.get('options', true);
			if (!isMap(map)) {
				const made = doc.createNode({});
				made.flow = true;
				item.set('options', made);
				map = made;
			}
			for (const [key, v] of Object.entries(change.options))
				if (v === null) (map as YAMLMap).delete(key);
				else if (v !== undefined) setValue(doc, map as YAMLMap, key, v);
		}
		for (const key of ['ports', 'backends'] as const)
			if (after[key] !== before[key]) setItems(doc, item, key, before[key] ?? [], after[key] ?? []);
		return `services[${m.services.findIndex((s) => s.name === service)}]`;
	});
}

/**
 * Sets options of a service, in the notation of DESIGN 7.2; `null` takes one back to its default.
 * @throws BeelineError NOT_FOUND, INVALID_CONFIG with `field`
 */
export function setServiceOptions(
	file: string,
	service: string,
	options: Readonly<Record<string, unknown>>,
): Membership {
	return changeService(file, service, { options });
}

/**
 * Drains or undrains one backend, named by its id (`web~node2~172.18.0.2~80~tcp`). In the file a backend is one line for
 * all ports of its service: they drain together.
 * @throws BeelineError NOT_FOUND
 */
export function setBackendDrained(file: string, id: string, drained: boolean): Membership {
	return edit(file, (doc, membership) => {
		for (const [i, s] of membership.services.entries())
			for (const [k, t] of s.tasks.entries())
				for (const p of s.ports) {
					if (idOf(backendKey(s.name, t, p.target, p.protocol)) !== id) continue;
					const item = doc.getIn(['services', i, 'backends', k], true) as YAMLMap;
					if (drained) setValue(doc, item, 'drain', true);
					else item.delete('drain');
					return;
				}
		throw notFound('backend', id);
	});
}

/** Drains or undrains all backends of a node. @throws BeelineError NOT_FOUND */
export function setNodeDrained(file: string, node: string, drained: boolean): Membership {
	return edit(file, (doc) => {
		const item = itemOf(doc, 'nodes', node);
		if (!item) throw notFound('node', node);
		if (drained) setValue(doc, item, 'drain', true);
		else item.delete('drain');
	});
}

/** @returns where it is in the document: `services[3]` */
function append(doc: Document, key: string, v: unknown): string {
	const list = listOf(doc, key);
	const node = doc.createNode(v) as YAMLMap;
	const last = list.items.at(-1);
	// As the operator writes his: in one line, or in many.
	if (isMap(last)) node.flow = last.flow;
	else list.flow = false;
	list.add(node);
	return `${key}[${list.items.length - 1}]`;
}

/** @throws BeelineError CONFLICT, INVALID_CONFIG */
export function addNode(file: string, node: { readonly name: string; readonly address: string }): Membership {
	return edit(file, (doc) => {
		if (itemOf(doc, 'nodes', node.name))
			throw new BeelineError('CONFLICT', `node ${node.name} exists already: remove it first`);
		return append(doc, 'nodes', { name: node.name, address: node.address });
	});
}

/** @throws BeelineError NOT_FOUND; CONFLICT where backends are on it */
export function removeNode(file: string, node: string): Membership {
	return edit(file, (doc, m) => {
		const item = itemOf(doc, 'nodes', node);
		if (!item) throw notFound('node', node);
		const service = m.services.find((s) => s.tasks.some((t) => t.node === node));
		if (service)
			throw new BeelineError(
				'CONFLICT',
				`node ${node} has backends of service ${service.name}: remove or move them first`,
			);
		const list = listOf(doc, 'nodes');
		list.items.splice(list.items.indexOf(item), 1);
	});
}

/** What one agent alone cannot make true for all is refused with the place to write it. */
function refuseShared(file: string, m: Membership, what: string): void {
	if (m.nodes.length > 1)
		throw new BeelineError(
			'CONFLICT',
			`${what}: ${file} names ${m.nodes.length} nodes and this agent can write only its own copy: write it into ${file} on each node`,
		);
}

export interface NewService {
	readonly name: string;
	readonly ports: readonly PublishedPort[];
	/** Notation of DESIGN 7.2. */
	readonly options?: Readonly<Record<string, unknown>>;
	readonly backends: readonly {
		readonly node: string;
		readonly address?: string;
		readonly addresses?: readonly string[];
		readonly weight?: number;
	}[];
}

/** @throws BeelineError REFUSED where several nodes share the file, CONFLICT, INVALID_CONFIG */
export function createNetwork(file: string, network: Readonly<Record<string, unknown>> & { name: string }): Membership {
	return edit(file, (doc, m) => {
		refuseShared(file, m, `create network ${network.name}`);
		if (m.networks.some((n) => n.name === network.name))
			throw new BeelineError('CONFLICT', `network ${network.name} exists already: remove it, or choose another name`);
		return append(doc, 'networks', JSON.parse(JSON.stringify(network)));
	});
}

/** @throws BeelineError REFUSED, NOT_FOUND */
export function removeNetwork(file: string, name: string): Membership {
	return edit(file, (doc, m) => {
		refuseShared(file, m, `remove network ${name}`);
		const i = m.networks.findIndex((n) => n.name === name);
		if (i < 0) throw new BeelineError('NOT_FOUND', `network ${name} not found`);
		doc.deleteIn(['networks', i]);
	});
}

/** @throws BeelineError CONFLICT where it exists or the file names several nodes; INVALID_CONFIG with `field` */
export function createService(file: string, service: NewService): Membership {
	return edit(file, (doc, m) => {
		refuseShared(file, m, `create service ${service.name}`);
		if (m.services.some((s) => s.name === service.name))
			throw new BeelineError('CONFLICT', `service ${service.name} exists already: remove it, or choose another name`);
		return append(doc, 'services', JSON.parse(JSON.stringify(service)));
	});
}

/** @throws BeelineError NOT_FOUND; CONFLICT where the file names several nodes */
export function removeService(file: string, service: string): Membership {
	return edit(file, (doc, m) => {
		const item = itemOf(doc, 'services', service);
		if (!item) throw notFound('service', service);
		refuseShared(file, m, `remove service ${service}`);
		const list = listOf(doc, 'services');
		list.items.splice(list.items.indexOf(item), 1);
	});
}

/** For tests and tools: the membership of a file, not watched. */
export function readMembership(file: string): Membership {
	return parseMembership(file, readFileSync(file, 'utf8'));
}
