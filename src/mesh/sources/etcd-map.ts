/**
 * Keys and documents in etcd → Membership. Pure, and a function of the keys alone: every node that sees the same keys works
 * out the same membership, also where documents contradict each other. Then the one whose key is older (its create
 * revision) keeps what both want, whoever wrote last.
 *
 *	PREFIX/nodes/NAME                            an item of `nodes:` in mesh.yaml (DESIGN 7.2), its name in the key
 *	PREFIX/services/NAME                         an item of `services:`
 *	PREFIX/networks/NAME                         an item of `networks:`
 *	PREFIX/networks/NAME/addresses/ADDRESS       an endpoint that holds the address: { node, endpoint, mac, … }, `endpoint` its id
 *
 * Values are YAML 1.2, so JSON too; what Beeline writes is JSON.
 */
import { BeelineError, sentence } from '../../errors.js';
import { contains } from '../subnets.js';
import type { Membership, NetworkEndpoint, NetworkSpec, NodeSpec, ServiceSpec } from '../types.js';
import {
	bool,
	check,
	hostBits,
	parseAddress,
	parseSource,
	pathText,
	refuse,
	type Source,
	shown,
	text,
	withoutHostBits,
} from './document.js';
import type { KeyValue } from './etcd-client.js';
import { parseNetwork as parseNetworkDocument, parseNode, parseService } from './file.js';
import { endpointSchema } from './network.js';

export type Kind = 'nodes' | 'services' | 'networks' | 'addresses';

export interface Place {
	readonly kind: Kind;
	/** Of the node, service or network. */
	readonly name: string;
	/** Of `addresses`, in its shortest text. */
	readonly address?: string;
}

/** Reads a network's document. The one place to exchange for another schema. */
export type ParseNetwork = (source: Source, data: unknown) => NetworkSpec;
export const parseNetwork: ParseNetwork = parseNetworkDocument;

export const keyOf = (prefix: string, kind: 'nodes' | 'services' | 'networks', of: string) => `${prefix}/${kind}/${of}`;
export const addressKey = (prefix: string, network: string, address: string) =>
	`${prefix}/networks/${network}/addresses/${address}`;

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/** What a key stands for; undefined: it is none of ours. */
export function placeOf(prefix: string, key: string): Place | undefined {
	if (!key.startsWith(`${prefix}/`)) return undefined;
	const [kind, of, sub, last, more] = key.slice(prefix.length + 1).split('/');
	if (of === undefined || !NAME.test(of)) return undefined;
	if (sub === undefined)
		return kind === 'nodes' || kind === 'services' || kind === 'networks' ? { kind, name: of } : undefined;
	if (kind !== 'networks' || sub !== 'addresses' || last === undefined || more !== undefined) return undefined;
	const address = parseAddress(last);
	return address === last ? { kind: 'addresses', name: of, address } : undefined;
}

/** An endpoint as network.ts has it; its address is in the key. */
const addressSchema = endpointSchema.omit({ address: true }).extend({
	endpoint: text('the id of an endpoint'),
	vip: bool.optional(),
});

export type Spec = NodeSpec | ServiceSpec | NetworkSpec | NetworkEndpoint;

type Data = Readonly<Record<string, unknown>>;
const isData = (x: unknown): x is Data => typeof x === 'object' && x !== null && !Array.isArray(x);

/**
 * Clears host bits in the prefixes of a document, and tells. Nobody waits for an answer when a key is read: refused, such a
 * prefix would take its whole service or network away. A writer is refused (etcd-store).
 */
function clearHostBits(kind: Kind, data: Data): { readonly data: Data; readonly slips: readonly Complaint[] } {
	const slips: Complaint[] = [];
	const isList = kind === 'services';
	const clear = (path: (string | number)[], x: unknown): unknown => {
		const meant = hostBits(x);
		if (meant === undefined) return x;
		const field = pathText(path);
		slips.push({
			what: `${field} is ${JSON.stringify(x)}: expected ${withoutHostBits(meant, isList)}`,
			effect: `it is read as ${meant.prefix}`,
			field,
		});
		return meant.prefix;
	};
	const out: Record<string, unknown> = { ...data };
	if (kind === 'services' && isData(data.options)) {
		const options: Record<string, unknown> = { ...data.options };
		for (const key of ['allow', 'deny'])
			if (Array.isArray(options[key]))
				options[key] = (options[key] as unknown[]).map((x, i) => clear(['options', key, i], x));
		out.options = options;
	}
	if (kind === 'networks') {
		for (const key of ['subnet', 'subnet6', 'ipRange']) if (key in data) out[key] = clear([key], data[key]);
		if (isData(data.slices))
			out.slices = Object.fromEntries(Object.entries(data.slices).map(([n, x]) => [n, clear(['slices', n], x)]));
	}
	return slips.length === 0 ? { data, slips } : { data: out, slips };
}

/**
 * One document. Its name may stand in it, if it is the key's.
 * @throws BeelineError BAD_YAML, INVALID_CONFIG: what is wrong, where, and what was expected
 */
export function parseDocument(place: Place, value: string, network: ParseNetwork = parseNetwork): Spec {
	return readSpec(place, value, network).spec;
}

/** As parseDocument(), with what was mended. */
export function readSpec(
	place: Place,
	value: string,
	network: ParseNetwork = parseNetwork,
): { readonly spec: Spec; readonly slips: readonly Complaint[] } {
	const whole = parseSource('document', value);
	// Places in lines are of no use in a value of etcd: the path says enough.
	const source: Source = { ...whole, file: '' };
	const { data } = whole;
	if (!isData(data))
		throw new BeelineError(
			'INVALID_CONFIG',
			`${data === null || data === undefined ? 'is empty' : shown(data)}: expected a mapping`,
		);
	if (place.kind === 'addresses') {
		const result = check(addressSchema, data);
		if (!result.data) throw refuse(source, result.problems);
		const { endpoint, ...rest } = result.data;
		return { spec: { id: endpoint, address: place.address as string, ...rest } as NetworkEndpoint, slips: [] };
	}
	const named = data.name;
	if (named !== undefined && named !== place.name)
		throw new BeelineError('INVALID_CONFIG', `name ${shown(named)}: expected ${place.name}, as its key says`, {
			field: 'name',
		});
	const { data: cleared, slips } = clearHostBits(place.kind, data);
	const full = { ...cleared, name: place.name };
	const parse = { nodes: parseNode, services: parseService, networks: network }[place.kind];
	return { spec: parse(source, full), slips };
}

/** A key with its document, or what is wrong with it. */
export interface Document {
	readonly key: string;
	readonly place: Place;
	readonly create: number;
	readonly mod: number;
	readonly spec: Spec | undefined;
	/** Why the present value is not taken; with `spec`: the last good one is. */
	readonly problem?: string;
	/** What was mended in it. */
	readonly slips?: readonly Complaint[];
}

export interface Mapped {
	readonly membership: Membership;
	/** One sentence each, for the operator; the same on every node. */
	readonly problems: readonly string[];
	/** By key: what a writer is refused for. */
	readonly byKey: ReadonlyMap<string, readonly Complaint[]>;
}

export interface Complaint {
	readonly what: string;
	/** What is done about it. */
	readonly effect: string;
	/** Of the document. */
	readonly field?: string;
}

/** Reads a key. @param lastGood what it said when it could be read last */
export function readDocument(
	prefix: string,
	kv: KeyValue,
	lastGood?: Spec,
	network: ParseNetwork = parseNetwork,
): Document | { readonly unknown: true } {
	const place = placeOf(prefix, kv.key);
	if (place === undefined) return { unknown: true };
	const common = { key: kv.key, place, create: kv.create, mod: kv.mod };
	try {
		return { ...common, ...readSpec(place, kv.value, network) };
	} catch (e) {
		return { ...common, spec: lastGood, problem: sentence(e) };
	}
}

const byAge = (a: Document, b: Document) => a.create - b.create || (a.key < b.key ? -1 : 1);

/**
 * The membership that documents describe. Every list is sorted by name.
 * @param meshVni VNI of the tunnel between nodes, the same on all of them; no network's
 */
export function mapDocuments(
	documents: Iterable<Document>,
	strangers: readonly string[] = [],
	meshVni?: number,
): Mapped {
	const byKey = new Map<string, Complaint[]>();
	const complain = (key: string, what: string, effect: string, field?: string) => {
		const one = { what, effect, ...(field === undefined ? {} : { field }) };
		const list = byKey.get(key);
		if (list === undefined) byKey.set(key, [one]);
		else list.push(one);
	};
	for (const key of strangers) complain(key, 'is no key of a node, service, network or address', 'it is ignored');
	const of: Record<Kind, Document[]> = { nodes: [], services: [], networks: [], addresses: [] };
	for (const d of documents) {
		if (d.problem !== undefined)
			complain(d.key, d.problem, d.spec === undefined ? 'it is ignored' : 'what it said before stays in force');
		for (const { what, effect, field } of d.slips ?? []) complain(d.key, what, effect, field);
		if (d.spec !== undefined) of[d.place.kind].push(d);
	}
	for (const list of Object.values(of)) list.sort(byAge);

	const nodes: NodeSpec[] = [];
	const owners = new Map<string, string>();
	for (const d of of.nodes) {
		const spec = d.spec as NodeSpec;
		const owner = owners.get(spec.address);
		if (owner !== undefined) {
			complain(d.key, `address is ${spec.address}, which is node ${owner}'s`, 'the node is ignored', 'address');
			continue;
		}
		owners.set(spec.address, spec.name);
		nodes.push(spec);
	}
	const known = new Set(nodes.map((n) => n.name));

	const services: ServiceSpec[] = [];
	const taken = new Map<string, { readonly addresses: readonly string[]; readonly service: string }[]>();
	for (const d of of.services) {
		const spec = d.spec as ServiceSpec;
		const { addresses } = spec.options;
		const ports = spec.ports.filter((p) => {
			const key = `${p.protocol}/${p.published}`;
			const list = taken.get(key) ?? [];
			taken.set(key, list);
			// A service on one address beside one on all is no conflict: the more exact answers.
			const other = list.find((t) =>
				addresses.length === 0 ? t.addresses.length === 0 : t.addresses.some((a) => addresses.includes(a)),
			);
			if (other === undefined) list.push({ addresses, service: spec.name });
			else
				complain(
					d.key,
					`publishes ${key}, which service ${other.service} published before`,
					'the port is left out',
					'ports',
				);
			return other === undefined;
		});
		const missing = new Set<string>();
		const tasks = spec.tasks.filter((t) => {
			if (known.has(t.node)) return true;
			missing.add(t.node);
			return false;
		});
		for (const node of missing)
			complain(d.key, `has backends on ${node}, which is no node`, 'they are left out', 'backends');
		if (ports.length === 0 && spec.networks === undefined) continue;
		services.push(
			ports.length === spec.ports.length && tasks.length === spec.tasks.length ? spec : { ...spec, ports, tasks },
		);
	}

	const networks = new Map<string, NetworkSpec>();
	const vnis = new Map<number, string>();
	const endpoints = new Map<string, NetworkEndpoint[]>();
	for (const d of of.networks) {
		const spec = d.spec as NetworkSpec;
		if (spec.vni === meshVni) {
			complain(
				d.key,
				`vni is ${spec.vni}, that of the tunnel between nodes (datapath.vni): expected another`,
				'the network is ignored',
				'vni',
			);
			continue;
		}
		const other = vnis.get(spec.vni);
		if (other !== undefined) {
			complain(d.key, `vni is ${spec.vni}, which is network ${other}'s`, 'the network is ignored', 'vni');
			continue;
		}
		vnis.set(spec.vni, spec.name);
		const there = (spec.endpoints ?? []).filter((e) => known.has(e.node));
		for (const e of spec.endpoints ?? [])
			if (!known.has(e.node))
				complain(d.key, `endpoint ${e.address} is on ${e.node}, which is no node`, 'it is left out', 'endpoints');
		networks.set(spec.name, spec);
		endpoints.set(spec.name, there);
	}
	for (const d of of.addresses) {
		const spec = d.spec as NetworkEndpoint;
		// Held, so that no endpoint gets it; the service's document says what it is for.
		if (spec.vip) continue;
		const of = networks.get(d.place.name);
		if (of === undefined) complain(d.key, `there is no network ${d.place.name}`, 'the address is ignored');
		else if (!contains(of.subnet, spec.address))
			complain(d.key, `is no address of ${of.subnet}`, 'the address is ignored');
		else if (!known.has(spec.node)) complain(d.key, `node is ${spec.node}, which is no node`, 'the address is ignored');
		else if ((of.endpoints ?? []).some((e) => e.address === spec.address))
			complain(d.key, `is an endpoint in the document of network ${of.name} already`, 'the address is ignored');
		else endpoints.get(of.name)?.push(spec);
	}
	const text = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
	const byName = (a: { name: string }, b: { name: string }) => text(a.name, b.name);
	return {
		membership: {
			nodes: nodes.sort(byName),
			services: services.sort(byName),
			networks: [...networks.values()].sort(byName).map((n) => ({
				...n,
				endpoints: (endpoints.get(n.name) ?? []).sort((a, b) => text(a.address, b.address)),
			})),
		},
		problems: [...byKey]
			.sort(([a], [b]) => text(a, b))
			.flatMap(([key, list]) => list.map((p) => `${key}: ${p.what} (${p.effect})`)),
		byKey,
	};
}
