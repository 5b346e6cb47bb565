/**
 * Changes of what etcd keeps: read, change, check, and write in one transaction that fails where anything it was decided
 * from has changed meanwhile. Two writers cannot both publish a port, add an address, or hold one of a network.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { BeelineError, codeOf } from '../../errors.js';
import { contains, isForEndpoints, macOfAddress, randomFreeAddress } from '../subnets.js';
import type { NetworkEndpoint, NetworkSpec, ServiceSpec } from '../types.js';
import { parseAddress, parseSource } from './document.js';
import { type Compare, type Etcd, endOf, type KeyValue, type Op } from './etcd-client.js';
import {
	addressKey,
	type Document,
	keyOf,
	mapDocuments,
	type ParseNetwork,
	parseDocument,
	parseNetwork,
	placeOf,
	readDocument,
	readSpec,
} from './etcd-map.js';
import { changeService, drainBackend, type ServiceChange, type ServiceDocument } from './service-change.js';

/** Writers that meet wait a little and try again. */
const ATTEMPTS = 40;
/** etcd refuses a transaction of more than 128 comparisons or operations. */
const MAX_COMPARE = 100;

export interface AddressRequest {
	readonly node: string;
	/** Id of the endpoint, chosen by its node; whoever asks again with it for the same address is given it again. */
	readonly endpoint: string;
	/** This address and no other. */
	readonly wanted?: string;
	/** Default: Docker's, `02:42:` and the address. */
	readonly mac?: string;
	/** It is a service's, and no endpoint. */
	readonly vip?: boolean;
	readonly address6?: string;
	readonly name?: string;
	readonly aliases?: readonly string[];
	readonly service?: string;
	/** Not to be given out; the network's own address, its broadcast address and its gateway never are. */
	readonly reserved?: ReadonlySet<string>;
}

/** Addresses of networks: one holder each, on all nodes. */
export interface Addresses {
	/** @throws BeelineError NOT_FOUND (no such network), CONFLICT (held, or none is free), INVALID_CONFIG, ETCD_… */
	allocate(network: string, request: AddressRequest): Promise<NetworkEndpoint>;
	/** False: it was free already. @throws BeelineError CONFLICT where another endpoint holds it */
	release(network: string, address: string, endpoint: string): Promise<boolean>;
	/** What an endpoint is called, once that is known: Docker tells it late. @throws BeelineError NOT_FOUND, CONFLICT */
	describe(
		network: string,
		address: string,
		endpoint: string,
		what: { readonly name?: string; readonly aliases: readonly string[] },
	): Promise<void>;
	/** As etcd has them now. */
	list(network: string): Promise<NetworkEndpoint[]>;
}

export interface EtcdStore extends Addresses {
	/** All changes resolve to the revision they are in. `basis`: the document's revision that the change was decided from. */
	createService(name: string, document: ServiceDocument): Promise<number>;
	changeService(name: string, change: ServiceChange, basis?: number): Promise<number>;
	removeService(name: string, basis?: number): Promise<number>;
	drainBackend(id: string, drain: boolean, basis?: number): Promise<number>;
	addNode(node: { readonly name: string; readonly address: string }): Promise<number>;
	drainNode(name: string, drain: boolean, basis?: number): Promise<number>;
	/** Its addresses of networks become free. @throws BeelineError CONFLICT where services have backends there */
	removeNode(name: string, basis?: number): Promise<number>;
	createNetwork(name: string, document: Readonly<Record<string, unknown>>): Promise<number>;
	/** @throws BeelineError CONFLICT where somebody holds an address */
	removeNetwork(name: string, basis?: number): Promise<number>;
}

type Doc = Readonly<Record<string, unknown>>;
type Kind = 'nodes' | 'services' | 'networks';
const SINGULAR = { nodes: 'node', services: 'service', networks: 'network' } as const;

const notFound = (kind: Kind, name: string) =>
	new BeelineError(
		'NOT_FOUND',
		`there is no ${SINGULAR[kind]} ${JSON.stringify(name)} in etcd: look with beeline ${kind}`,
	);
const exists = (kind: Kind, name: string) =>
	new BeelineError('CONFLICT', `${SINGULAR[kind]} ${name} exists already: remove it, or choose another name`);

/** @param meshVni VNI of the tunnel between nodes, which no network gets */
export function createStore(
	etcd: Etcd,
	prefix: string,
	network: ParseNetwork = parseNetwork,
	meshVni?: number,
): EtcdStore {
	const under = (kind: Kind) => `${prefix}/${kind}/`;
	/** What was read before need not be parsed again. */
	let parsed = new Map<string, { readonly value: string; readonly document: Document }>();

	function documentsOf(kvs: readonly KeyValue[]): Document[] {
		const next = new Map<string, { readonly value: string; readonly document: Document }>();
		for (const kv of kvs) {
			const known = parsed.get(kv.key);
			if (known !== undefined && known.value === kv.value) {
				next.set(kv.key, { value: kv.value, document: { ...known.document, create: kv.create, mod: kv.mod } });
				continue;
			}
			const document = readDocument(prefix, kv, undefined, network);
			if (!('unknown' in document)) next.set(kv.key, { value: kv.value, document });
		}
		parsed = next;
		return [...next.values()].map((x) => x.document);
	}

	interface View {
		readonly kv: KeyValue | undefined;
		readonly all: readonly KeyValue[];
		readonly services: readonly ServiceSpec[];
	}

	/**
	 * @param change the document as it shall be; undefined: removed
	 * @param more what else must hold when it is written
	 */
	async function edit(
		kind: Kind,
		name: string,
		basis: number | undefined,
		change: (before: Doc | undefined, view: View) => Doc | undefined,
		more: readonly Compare[] = [],
	): Promise<number> {
		const key = keyOf(prefix, kind, name);
		const kinds: readonly Kind[] = kind === 'networks' ? ['nodes', 'networks'] : ['nodes', 'services'];
		/** Written perhaps, without an answer. */
		let unsure: { readonly text: string | undefined; readonly error: unknown } | undefined;
		for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
			if (attempt > 0) await sleep(randomInt(2, Math.min(500, 10 << Math.min(attempt, 6))));
			let now: Awaited<ReturnType<Etcd['txn']>>;
			try {
				now = await etcd.txn(
					[],
					kinds.map((k): Op => ({ get: under(k), end: endOf(under(k)) })),
				);
			} catch (e) {
				throw unsure?.error ?? e;
			}
			const all = now.gets.flat();
			const kv = all.find((x) => x.key === key);
			if (unsure !== undefined && kv?.value === unsure.text) return now.revision;
			if (basis !== undefined && (kv?.mod ?? 0) !== basis)
				throw new BeelineError(
					'STALE',
					`${SINGULAR[kind]} ${name} changed since it was read: read it again and repeat the change`,
				);
			const before = kv === undefined ? undefined : (parseSource(key, kv.value).data as Doc);
			const documents = documentsOf(all);
			const mapped = mapDocuments(documents, [], meshVni);
			const next = change(before, {
				kv,
				all,
				services: documents
					.filter((d) => d.place.kind === 'services' && d.spec !== undefined)
					.map((d) => d.spec as ServiceSpec),
			});
			if (next === undefined && kv === undefined) return now.revision;
			const text = next === undefined ? undefined : JSON.stringify(next);
			const needs: Compare[] = [...more];
			if (text !== undefined) {
				if (text === kv?.value) return now.revision;
				const place = { kind, name } as const;
				const { spec, slips } = readSpec(place, text, network);
				const document: Document = {
					key,
					place,
					// A new key is the youngest.
					create: kv?.create ?? now.revision + 1,
					mod: now.revision + 1,
					spec,
					slips,
				};
				const after = mapDocuments([...documents.filter((d) => d.key !== key), document], [], meshVni);
				const old = new Set((mapped.byKey.get(key) ?? []).map((c) => c.what));
				const worse = (after.byKey.get(key) ?? []).find((c) => !old.has(c.what));
				if (worse !== undefined)
					throw new BeelineError(
						'INVALID_CONFIG',
						`${SINGULAR[kind]} ${name} ${worse.what}`,
						worse.field === undefined ? {} : { field: worse.field },
					);
				if (kind === 'services') {
					const nodes = new Set((spec as ServiceSpec).tasks.map((t) => t.node));
					if (nodes.size <= MAX_COMPARE)
						for (const n of nodes) {
							const node = keyOf(prefix, 'nodes', n);
							if (all.some((x) => x.key === node)) needs.push({ key: node, exists: true });
						}
				}
			}
			try {
				const done = await etcd.txn(
					[
						{ key, mod: kv?.mod ?? 0 },
						...kinds.map((k): Compare => ({ key: under(k), end: endOf(under(k)), notAfter: now.revision })),
						...needs,
					],
					[text === undefined ? { delete: key } : { put: key, value: text }],
				);
				if (done.ok) return done.revision;
			} catch (e) {
				if (codeOf(e) !== 'ETCD_NO_ANSWER') throw e;
				unsure = { text, error: e };
			}
		}
		throw (
			unsure?.error ?? new BeelineError('BUSY', `${SINGULAR[kind]} ${name}: others are writing all the time: try again`)
		);
	}

	async function addressesOf(of: string): Promise<KeyValue[]> {
		const start = addressKey(prefix, of, '');
		const out: KeyValue[] = [];
		let from = start;
		let revision: number | undefined;
		for (;;) {
			const page = await etcd.range({
				key: from,
				end: endOf(start),
				limit: 2000,
				...(revision === undefined ? {} : { revision }),
			});
			out.push(...page.kvs);
			if (!page.more) return out;
			revision ??= page.revision;
			from = `${page.kvs[page.kvs.length - 1]?.key}\0`;
		}
	}

	function holderOf(kv: KeyValue): NetworkEndpoint | undefined {
		const place = placeOf(prefix, kv.key);
		if (place?.kind !== 'addresses') return undefined;
		try {
			return parseDocument(place, kv.value, network) as NetworkEndpoint;
		} catch {
			return undefined;
		}
	}

	/** By network: addresses that are held as far as this process knows; being wrong costs it another attempt. */
	const held = new Map<string, { create: number; addresses: Set<string> }>();

	async function freshHeld(of: string, create: number): Promise<Set<string>> {
		const addresses = new Set((await addressesOf(of)).map((kv) => kv.key.slice(addressKey(prefix, of, '').length)));
		held.set(of, { create, addresses });
		return addresses;
	}

	async function allocate(of: string, request: AddressRequest): Promise<NetworkEndpoint> {
		const networkKey = keyOf(prefix, 'networks', of);
		const { wanted: _wanted, reserved: more, endpoint, ...rest } = request;
		let isFresh = false;
		let misses = 0;
		/** Written perhaps, without an answer: it is asked for again, so that nothing is held by nobody. */
		let unsure: { readonly address: string; readonly error: unknown } | undefined;
		let found: { kv: KeyValue; spec: NetworkSpec } | undefined;
		for (let attempt = 0; attempt < ATTEMPTS * 4; attempt++) {
			if (unsure !== undefined) await sleep(randomInt(5, 100));
			if (found === undefined) {
				const kv = (await etcd.range({ key: networkKey })).kvs[0];
				if (kv === undefined) throw notFound('networks', of);
				found = { kv, spec: parseDocument({ kind: 'networks', name: of }, kv.value, network) as NetworkSpec };
			}
			const { kv, spec } = found;
			const reserved = new Set([...(more ?? []), ...(spec.endpoints ?? []).map((e) => e.address)]);
			let address: string;
			const known = held.get(of);
			const taken =
				known !== undefined && known.create === kv.create ? known.addresses : await freshHeld(of, kv.create);
			if (request.wanted !== undefined) {
				const parsedAddress = parseAddress(request.wanted, 4);
				if (parsedAddress === undefined || !contains(spec.subnet, parsedAddress))
					throw new BeelineError(
						'INVALID_CONFIG',
						`address is ${JSON.stringify(request.wanted)}: expected one of network ${of}, ${spec.subnet}`,
						{ field: 'address' },
					);
				if (reserved.has(parsedAddress) || !isForEndpoints(spec, parsedAddress))
					throw new BeelineError(
						'INVALID_CONFIG',
						`address is ${parsedAddress}, which is reserved in network ${of}: choose another, or none`,
						{ field: 'address' },
					);
				address = parsedAddress;
			} else if (unsure !== undefined) address = unsure.address;
			else {
				const free = randomFreeAddress(spec, (a) => taken.has(a) || reserved.has(a), randomInt);
				if (free === undefined) {
					if (isFresh)
						throw new BeelineError(
							'CONFLICT',
							`network ${of} has no free address in ${spec.subnet} (${taken.size} are held): release some, or make a larger network`,
						);
					await freshHeld(of, kv.create);
					isFresh = true;
					continue;
				}
				address = free;
			}
			const holder = { ...rest, mac: request.mac ?? macOfAddress(address) };
			const key = addressKey(prefix, of, address);
			try {
				const done = await etcd.txn(
					[
						{ key, mod: 0 },
						{ key: networkKey, mod: kv.mod },
					],
					[{ put: key, value: JSON.stringify({ endpoint, ...holder }) }],
					[{ get: key }, { get: networkKey }],
				);
				if (done.ok) {
					taken.add(address);
					return { id: endpoint, address, aliases: [], ...holder };
				}
				const [[present] = [], [networkNow] = []] = done.gets;
				if (networkNow?.mod !== kv.mod) found = undefined;
				if (present === undefined) continue;
				taken.add(address);
				// Others have taken much since the last look.
				if (++misses % 4 === 0) await freshHeld(of, kv.create);
				const other = holderOf(present);
				// Ours: asked for again, or written by an attempt that had no answer.
				if (
					other?.id === endpoint &&
					other.node === request.node &&
					(request.wanted !== undefined || unsure !== undefined)
				)
					return other;
				unsure = undefined;
				if (request.wanted !== undefined)
					throw new BeelineError(
						'CONFLICT',
						`${address} of network ${of} is held by endpoint ${other?.id ?? '?'} on ${other?.node ?? '?'}: choose another, or none`,
						{ field: 'address' },
					);
			} catch (e) {
				if (codeOf(e) !== 'ETCD_NO_ANSWER') throw e;
				unsure = { address, error: e };
			}
		}
		throw unsure?.error ?? new BeelineError('BUSY', `network ${of}: others take addresses all the time: try again`);
	}

	async function release(of: string, address: string, endpoint: string): Promise<boolean> {
		const key = addressKey(prefix, of, parseAddress(address) ?? address);
		for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
			const kv = (await etcd.range({ key })).kvs[0];
			if (kv === undefined) {
				held.get(of)?.addresses.delete(address);
				return attempt > 0;
			}
			const holder = holderOf(kv);
			if (holder !== undefined && holder.id !== endpoint)
				throw new BeelineError(
					'CONFLICT',
					`${address} of network ${of} is held by endpoint ${holder.id} on ${holder.node}, not by ${endpoint}`,
				);
			try {
				const done = await etcd.txn([{ key, mod: kv.mod }], [{ delete: key }]);
				if (done.ok) {
					held.get(of)?.addresses.delete(address);
					return true;
				}
			} catch (e) {
				if (codeOf(e) !== 'ETCD_NO_ANSWER' || attempt === ATTEMPTS - 1) throw e;
				await sleep(randomInt(5, 100));
			}
		}
		throw new BeelineError('BUSY', `${address} of network ${of}: others write it all the time: try again`);
	}

	async function describe(
		of: string,
		address: string,
		endpoint: string,
		what: { readonly name?: string; readonly aliases: readonly string[] },
	): Promise<void> {
		const key = addressKey(prefix, of, parseAddress(address) ?? address);
		for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
			const kv = (await etcd.range({ key })).kvs[0];
			const holder = kv === undefined ? undefined : holderOf(kv);
			if (kv === undefined || holder?.id !== endpoint)
				throw new BeelineError('CONFLICT', `${address} of network ${of} is not held by endpoint ${endpoint} any more`);
			const { name: _name, aliases: _aliases, ...rest } = parseSource(key, kv.value).data as Doc;
			const value = JSON.stringify({ ...rest, ...what });
			if (value === kv.value) return;
			try {
				if ((await etcd.txn([{ key, mod: kv.mod }], [{ put: key, value }])).ok) return;
			} catch (e) {
				if (codeOf(e) !== 'ETCD_NO_ANSWER' || attempt === ATTEMPTS - 1) throw e;
				await sleep(randomInt(5, 100));
			}
		}
		throw new BeelineError('BUSY', `${address} of network ${of}: others write it all the time: try again`);
	}

	return {
		createService: (name, document) =>
			edit('services', name, undefined, (before) => {
				if (before !== undefined) throw exists('services', name);
				const { name: _name, ...rest } = document;
				return JSON.parse(JSON.stringify(rest)) as Doc;
			}),
		changeService: (name, change, basis) =>
			edit('services', name, basis, (before) => {
				if (before === undefined) throw notFound('services', name);
				return changeService(name, before as ServiceDocument, change) as Doc;
			}),
		removeService: (name, basis) =>
			edit('services', name, basis, (before) => {
				if (before === undefined) throw notFound('services', name);
				return undefined;
			}),
		async drainBackend(id, drain, basis) {
			const name = id.split('~', 1)[0] as string;
			return await edit('services', name, basis, (before, { services }) => {
				const spec = services.find((s) => s.name === name);
				const next =
					before === undefined || spec === undefined
						? undefined
						: drainBackend(before as ServiceDocument, spec, id, drain);
				if (next === undefined)
					throw new BeelineError(
						'NOT_FOUND',
						`there is no backend ${JSON.stringify(id)} in etcd: look with beeline backends`,
					);
				return next as Doc;
			});
		},
		addNode: ({ name, address }) =>
			edit('nodes', name, undefined, (before) => {
				if (before !== undefined) throw exists('nodes', name);
				return { address };
			}),
		drainNode: (name, drain, basis) =>
			edit('nodes', name, basis, (before) => {
				if (before === undefined) throw notFound('nodes', name);
				const { drain: _drain, ...rest } = before;
				return drain ? { ...rest, drain } : rest;
			}),
		async removeNode(name, basis) {
			const revision = await edit('nodes', name, basis, (before, { services }) => {
				if (before === undefined) throw notFound('nodes', name);
				const service = services.find((s) => s.tasks.some((t) => t.node === name));
				if (service !== undefined)
					throw new BeelineError(
						'CONFLICT',
						`node ${name} has backends of service ${service.name}: remove or move them first`,
					);
				return undefined;
			});
			const start = under('networks');
			const all = await etcd.range({ key: start, end: endOf(start) });
			for (const kv of all.kvs)
				if (holderOf(kv)?.node === name && !holderOf(kv)?.vip)
					await etcd.txn([{ key: kv.key, mod: kv.mod }], [{ delete: kv.key }]);
			return revision;
		},
		createNetwork: (name, document) =>
			edit('networks', name, undefined, (before) => {
				if (before !== undefined) throw exists('networks', name);
				const { name: _name, ...rest } = document;
				return JSON.parse(JSON.stringify(rest)) as Doc;
			}),
		removeNetwork(name, basis) {
			const addresses = addressKey(prefix, name, '');
			return edit(
				'networks',
				name,
				basis,
				(before, { all }) => {
					if (before === undefined) throw notFound('networks', name);
					const held = all.find((kv) => kv.key.startsWith(addresses));
					if (held !== undefined)
						throw new BeelineError(
							'CONFLICT',
							`network ${name} has endpoints, such as ${held.key.slice(addresses.length)}: detach them first`,
						);
					return undefined;
				},
				// None of its addresses may come meanwhile.
				[{ key: addresses, end: endOf(addresses), notAfter: 0 }],
			);
		},
		allocate,
		release,
		describe,
		list: async (of) =>
			(await addressesOf(of)).flatMap((kv) => {
				const holder = holderOf(kv);
				return holder === undefined ? [] : [holder];
			}),
	};
}
