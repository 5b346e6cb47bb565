/** What the loop knows, as the HTTP interface shows it. Pure but for what reads the maps. */
import type { Config } from '../config.js';
import type {
	BackendView,
	ConfigView,
	EntriesView,
	FlowsView,
	NodeView,
	ServiceView,
	StatusView,
	VerdictEventBody,
} from '../http/schemas.js';
import type { Datapath } from '../loader/datapath.js';
import { type Event, PROGRAMS, REF_INDEX_MASK, VERDICTS } from '../loader/layout.gen.js';
import type { Entries } from '../mesh/entries.js';
import { endpointsOf, portKey } from '../mesh/entries.js';
import { isProcess, type Mesh, type MeshBackend, type MeshService } from '../mesh/plan.js';
import { formatDuration } from '../mesh/sources/document.js';
import { formatOptions } from '../mesh/sources/file.js';
import type { Counters, FlowRow, MeshStore } from '../mesh/store.js';
import type { MetricsSnapshot } from '../metrics/registry.js';
import type { EncryptionView } from './encryption.js';
import type { Local } from './local.js';
import type { PeerView } from './peers.js';

const indexed = new WeakMap<Entries, ReadonlyMap<number, MeshBackend>>();

/** Row of `backends` → backend. */
export function backendsByIndex(e: Entries): ReadonlyMap<number, MeshBackend> {
	const known = indexed.get(e);
	if (known !== undefined) return known;
	const out = new Map<number, MeshBackend>();
	for (const s of e.services.values()) for (const b of s.backends) out.set(b.index, b.backend);
	indexed.set(e, out);
	return out;
}

/** Of slots by frontend, those of each service that has any. */
export function movingByService(e: Entries, byFrontend: ReadonlyMap<number, number>): Map<string, number> {
	const out = new Map<string, number>();
	for (const s of e.services.values())
		for (const f of s.frontends) {
			const n = byFrontend.get(f.index);
			if (n) out.set(s.mesh.name, (out.get(s.mesh.name) ?? 0) + n);
		}
	return out;
}

const counted = new WeakMap<MeshService, number>();

/** Backends that serve. A service that did not change is the same object, and is asked about with every status. */
function activeOf(s: MeshService): number {
	let n = counted.get(s);
	if (n === undefined) {
		n = 0;
		for (const b of s.backends) if (b.state === 'active') n++;
		counted.set(s, n);
	}
	return n;
}

export function digestText(digest: bigint): string {
	return digest.toString(16).padStart(16, '0');
}

export interface StatusInput {
	readonly version: string;
	readonly config: Config;
	readonly since: Date;
	readonly ready: boolean;
	readonly leaving: boolean;
	readonly source: {
		readonly name: string;
		readonly place: string;
		readonly readAt: Date;
		readonly error: string | undefined;
	};
	readonly recent: StatusView['reconcile'];
	readonly mesh: Mesh | undefined;
	readonly local: Local | undefined;
	readonly attached: ReadonlyMap<number, { readonly mode: 'native' | 'generic' }>;
	/** Nodes whose tables differ from this one's. */
	readonly differing: readonly string[];
	readonly moving: ReadonlyMap<string, number>;
	readonly encryption: EncryptionView | undefined;
	readonly warnings: readonly string[];
}

export function status(i: StatusInput): StatusView {
	const { config, mesh, local } = i;
	let all = 0;
	let active = 0;
	for (const s of mesh?.services.values() ?? []) {
		all += s.backends.length;
		active += activeOf(s);
	}
	return {
		version: i.version,
		node: config.node.name,
		address: local?.facts.vtep ?? config.node.address ?? '',
		state: i.leaving ? 'leaving' : i.ready ? 'running' : 'starting',
		ready: i.ready,
		since: i.since.toISOString(),
		pinRoot: config.pinRoot,
		vni: config.datapath.vni,
		vxlanPort: config.datapath.vxlanPort,
		membership: {
			source: i.source.name,
			place: i.source.place,
			readAt: i.source.readAt.toISOString(),
			error: i.source.error ?? null,
		},
		reconcile: { ...i.recent },
		uplinks: (local?.uplinks ?? []).map(({ link, l3 }) => ({
			name: link.name,
			ifindex: link.ifindex,
			device: l3.name,
			mac: l3.mac,
			mtu: l3.mtu,
			addresses: [...(local?.facts.uplinks.find((u) => u.ifindex === link.ifindex)?.addresses ?? [])],
			xdp: i.attached.get(link.ifindex)?.mode ?? 'none',
		})),
		totals: {
			nodes: mesh?.nodes.size ?? 0,
			services: mesh?.services.size ?? 0,
			backends: all,
			backendsActive: active,
			slotsInTransition: [...i.moving.values()].reduce((a, b) => a + b, 0),
		},
		digest: digestText(mesh?.digest ?? 0n),
		differing: [...i.differing],
		refused: [
			...(local?.refusedPorts ?? []).map((r) => ({ what: r.key, service: r.service, reason: r.reason })),
			...(local?.refused ?? []).map((r) => ({ what: r.name, reason: r.reason })),
		],
		encryption:
			i.encryption === undefined
				? null
				: {
						interface: i.encryption.interface,
						ready: i.encryption.ready,
						missing: [...i.encryption.missing],
						stale: [...i.encryption.stale],
						oldestKeysAt: i.encryption.oldest?.toISOString() ?? null,
						keyInterval: formatDuration(i.encryption.intervalMs),
					},
		warnings: [...i.warnings, ...(local?.problems.values() ?? [])],
	};
}

export function nodes(
	mesh: Mesh | undefined,
	local: Local | undefined,
	peers: ReadonlyMap<string, PeerView>,
	revisionOf: (name: string) => number | undefined = () => undefined,
): NodeView[] {
	if (mesh === undefined) return [];
	const count = new Map<string, number>();
	for (const s of mesh.services.values()) for (const b of s.backends) count.set(b.node, (count.get(b.node) ?? 0) + 1);
	return [...mesh.nodes.values()]
		.filter((n) => !n.leaving)
		.map((n) => {
			const self = n.name === mesh.self;
			const way = local?.ways.get(n.address);
			const peer = self ? undefined : peers.get(n.name);
			return {
				name: n.name,
				address: n.address,
				self,
				state: n.drained ? ('drained' as const) : ('active' as const),
				reachable: self || local === undefined ? null : way?.mac !== undefined && peer?.reachable !== false,
				nextHop:
					way === undefined
						? null
						: { device: way.device, gateway: way.gateway ?? null, mac: way.mac ?? null, mtu: way.mtu },
				dsr: local?.facts.dsrProven.has(n.address) ?? false,
				agentPresent: peer?.agentPresent ?? null,
				rttMs: peer?.rttMs ?? null,
				digest: peer === undefined || peer.digest === null ? null : digestText(peer.digest),
				digestDiffers: peer?.digestDiffers ?? false,
				backends: count.get(n.name) ?? 0,
				revision: revisionOf(n.name) ?? null,
			};
		});
}

export function services(
	mesh: Mesh | undefined,
	e: Entries | undefined,
	local: Local | undefined,
	moving: ReadonlyMap<string, number>,
	revisionOf: (name: string) => number | undefined = () => undefined,
): ServiceView[] {
	return [...(mesh?.services.values() ?? [])]
		.filter((s) => s.spec !== undefined)
		.map((s) => {
			const count = (state: MeshBackend['state']) => s.backends.filter((b) => b.state === state).length;
			const refused = new Map(
				(e?.services.get(s.name)?.refused ?? []).map((r) => [portKey(r.protocol, r.port), r.reason]),
			);
			const ports: ServiceView['ports'] = (s.spec?.ports ?? []).map((p) => {
				const key = portKey(p.protocol, p.published);
				const frontend = s.frontends.find((f) => f.published === p.published && f.protocol === p.protocol);
				const reason = refused.get(key) ?? local?.facts.refusedPorts.get(key) ?? null;
				const empty = frontend === undefined || frontend.members4.length + frontend.members6.length === 0;
				const state = reason !== null ? 'refused' : !s.options.enable ? 'kernel' : empty ? 'empty' : 'serving';
				return { ...p, state, reason };
			});
			return {
				name: s.name,
				ports,
				options: formatOptions(s.options) as ServiceView['options'],
				backends: {
					total: s.backends.length,
					active: count('active'),
					draining: count('draining'),
					down: count('down'),
				},
				slotsInTransition: moving.get(s.name) ?? 0,
				scaleFromZero: s.spec?.scaleFromZero === undefined ? null : formatDuration(s.spec.scaleFromZero.idleMs),
				vips: (mesh?.vips.services.get(s.name)?.vips ?? []).map((v) => {
					const tasks = (state: MeshBackend['state']) => v.backends.filter((b) => b.state === state).length;
					return {
						network: v.networkName,
						vni: v.network,
						address: v.address,
						tasks: {
							total: v.backends.length,
							active: tasks('active'),
							draining: tasks('draining'),
							down: tasks('down'),
						},
					};
				}),
				revision: revisionOf(s.name) ?? null,
			};
		});
}

export function backends(mesh: Mesh | undefined, e: Entries | undefined, local: Local | undefined): BackendView[] {
	const out: BackendView[] = [];
	const shown = onLinkByEndpoint(e);
	for (const s of mesh?.services.values() ?? []) {
		const rows = e?.services.get(s.name);
		for (const b of s.backends) {
			const here = b.node === mesh?.self;
			const addresses = [b.address4, b.address6].filter((a): a is string => a !== undefined);
			const [at4, at6] = local === undefined ? [] : endpointsOf(b, local.facts.endpoints);
			const endpoint = at4 ?? at6;
			const problems = addresses.map((a) => local?.problems.get(a)).filter((p) => p !== undefined);
			out.push({
				id: b.id,
				service: b.service,
				node: b.node,
				addresses,
				target: b.target,
				protocol: b.protocol,
				weight: b.weight,
				state: b.state,
				local: here,
				delivery: !here
					? null
					: isProcess(b)
						? 'process'
						: endpoint === undefined
							? null
							: endpoint.delivery === 'peer'
								? 'peer'
								: 'neighbour',
				interface: endpoint === undefined ? null : (local?.names.get(endpoint.ifindex) ?? null),
				onLink: here && endpoint !== undefined ? (shown.get(endpoint.ifindex) ?? []) : [],
				problem: here ? (problems[0] ?? rows?.undeliverable.get(b.key) ?? null) : null,
			});
		}
	}
	return out;
}

/** Prefixes whose clients are shown as the gateway, by the endpoint's ifindex. */
export function onLinkByEndpoint(e: Entries | undefined): Map<number, string[]> {
	const out = new Map<number, string[]>();
	for (const [{ list, prefix }] of e?.onLink.values() ?? []) {
		if (list === 0) continue;
		const of = out.get(list);
		if (of === undefined) out.set(list, [prefix]);
		else of.push(prefix);
	}
	return out;
}

const DELIVER_ON_LINK = VERDICTS.indexOf('deliver_on_link');

/** The one case where a client's address is not kept, once it has happened. */
export function onLinkWarnings(e: Entries | undefined, counters: Counters | undefined): string[] {
	const packets = (counters?.verdicts ?? [])
		.filter((v) => v.verdict === DELIVER_ON_LINK)
		.reduce((n, v) => n + v.packets, 0n);
	if (packets === 0n) return [];
	const prefixes = [...new Set([...onLinkByEndpoint(e).values()].flat())].sort();
	const some = `${prefixes.slice(0, 8).join(', ')}${prefixes.length > 8 ? ` and ${prefixes.length - 8} more` : ''}`;
	return [
		`tasks see clients inside ${some} as their gateway, not by their own address (${packets} packets so far): these subnets are the tasks’ own; give docker_gwbridge and overlay networks subnets that no client has`,
	];
}

function nodeNames(e: Entries): Map<number, string> {
	const byAddress = new Map([...e.mesh.nodes.values()].map((n) => [n.address, n.name]));
	return new Map([...e.nodes].map(([index, row]) => [index, byAddress.get(row.vtep) ?? row.vtep]));
}

export function flows(found: { readonly flows: readonly FlowRow[]; readonly limited: boolean }, e: Entries): FlowsView {
	const byIndex = backendsByIndex(e);
	const names = nodeNames(e);
	return {
		limited: found.limited,
		flows: found.flows.map((f) => {
			const b = byIndex.get(f.ref & REF_INDEX_MASK);
			return {
				protocol: f.protocol,
				client: f.client,
				clientPort: f.clientPort,
				frontend: f.frontend,
				frontendPort: f.frontendPort,
				service: b?.service ?? null,
				backend: b?.id ?? null,
				ingress: names.get(f.node) ?? null,
				state: f.state,
				idleMs: f.idleMs,
			};
		}),
	};
}

/** A row as one line. */
function line(row: unknown): string {
	if (typeof row !== 'object' || row === null) return typeof row === 'number' ? `0x${row.toString(16)}` : String(row);
	return Object.entries(row)
		.map(
			([k, v]) =>
				`${k} ${Array.isArray(v) ? `[${v.map(line).join(', ')}]` : typeof v === 'object' && v !== null ? `{${line(v)}}` : v}`,
		)
		.join(' ');
}

function keyText(key: unknown): string {
	return typeof key === 'object' && key !== null ? Object.values(key).join(' ') : String(key);
}

export function entries(store: MeshStore, limit: number): EntriesView {
	const sizes = new Map(store.sizes().map((s) => [s.map, s]));
	const maps: EntriesView['maps'] = [];
	const add = (map: string, rows: Iterable<readonly [unknown, unknown]>) => {
		const text: string[] = [];
		let limited = false;
		for (const [k, v] of rows) {
			if (text.length === limit) {
				limited = true;
				break;
			}
			text.push(`${map === 'ports' || map === 'source_ports' ? portText(k as number) : keyText(k)}: ${line(v)}`);
		}
		const size = sizes.get(map);
		maps.push({
			map,
			entries: size?.entries ?? text.length,
			maxEntries: size?.maxEntries ?? text.length,
			rows: text,
			limited,
		});
	};
	add('settings', [['0', store.settings.get()]]);
	add('uplinks', store.uplinks.entries());
	add('own_addresses', store.ownAddresses.entries());
	add('ports', store.ports.entries());
	add('source_ports', store.sourcePorts.entries());
	add('exact_frontends', store.exactFrontends.entries());
	add('frontends', store.frontends.entries());
	add('rehashes', store.rehashes.entries());
	add('untracked', store.untracked.entries());
	add('backends', store.backends.entries());
	add('local_backends', store.localBackends.entries());
	add('nodes', store.nodes.entries());
	add('vteps', store.vteps.entries());
	add('allow', store.allow.entries());
	add('deny', store.deny.entries());
	add('networks', store.networks.entries());
	add('overlay_endpoints', store.overlayEndpoints.entries());
	add('overlay_slices', store.overlaySlices.entries());
	add('overlay_ports', store.overlayPorts.entries());
	add('on_link', store.onLink.entries());
	add('tables', tables(store));
	add('netns_networks', store.vip.namespaces.entries());
	add('vips', store.vip.vips.entries());
	add('vip_backends', store.vip.backends.entries());
	return { maps };
}

function portText(key: number): string {
	return `${key >>> 16 === 1 ? 'udp' : 'tcp'}/${key & 0xffff}`;
}

function* tables(store: MeshStore): IterableIterator<[string, string]> {
	for (const id of store.tables.ids()) {
		const slots = store.tables.read(id);
		if (slots === undefined) continue;
		const by = new Map<number, number>();
		let moving = 0;
		for (const s of slots) {
			if (s >>> 30 !== 0) moving++;
			const index = s & REF_INDEX_MASK;
			by.set(index, (by.get(index) ?? 0) + 1);
		}
		const shares = [...by].slice(0, 16).map(([index, n]) => `${index}×${n}`);
		yield [
			String(id),
			`${slots.length} slots, ${moving} in transition: ${shares.join(' ')}${by.size > 16 ? ' …' : ''}`,
		];
	}
}

export function config(c: Config, local: Local | undefined, trace: boolean): ConfigView {
	return {
		node: { name: c.node.name, address: local?.facts.vtep ?? c.node.address ?? '' },
		uplinks: local === undefined ? [...(c.uplinks ?? [])] : local.uplinks.map((u) => u.link.name),
		membership: {
			source: c.membership.source,
			file: c.membership.source === 'file' ? c.membership.file : null,
			endpoints: c.membership.endpoints === undefined ? null : [...c.membership.endpoints],
			prefix: c.membership.prefix ?? null,
		},
		http: {
			listen: c.http.listen.map((l) => (l.host.includes(':') ? `[${l.host}]:${l.port}` : `${l.host}:${l.port}`)),
			socket: c.http.socket,
			tokenFile: c.http.tokenFile ?? null,
		},
		datapath: {
			...c.datapath,
			staleAfter: formatDuration(c.datapath.staleAfter),
			secretFile: c.datapath.secretFile ?? null,
			keyInterval: formatDuration(c.datapath.keyInterval),
		},
		pinRoot: c.pinRoot,
		log: { level: c.log.level },
		trace,
	};
}

export function metricsSnapshot(
	e: Entries,
	mesh: Mesh,
	local: Local | undefined,
	peers: ReadonlyMap<string, PeerView>,
	counts: {
		readonly flows: ReadonlyMap<string, number>;
		readonly moving: ReadonlyMap<string, number>;
		/** Of the source: labels and documents. */
		readonly problems: number;
	},
): MetricsSnapshot {
	const frontends: MetricsSnapshot['frontends'][number][] = [];
	const rows: MetricsSnapshot['backends'][number][] = [];
	for (const s of e.services.values()) {
		for (const f of s.frontends) {
			frontends.push({
				index: f.index,
				service: s.mesh.name,
				protocol: f.row.proto === 17 ? 'udp' : 'tcp',
				port: f.row.port,
			});
		}
	}
	for (const [index, b] of backendsByIndex(e)) {
		rows.push({ index, id: b.id, service: b.service, node: b.node, state: b.state });
	}
	return {
		frontends,
		backends: rows,
		slotsInTransition: new Map([...mesh.services.keys()].map((s) => [s, counts.moving.get(s) ?? 0])),
		flows: counts.flows,
		nodes: nodes(mesh, local, peers)
			.filter((n) => !n.self)
			.map((n) => ({ name: n.name, reachable: n.reachable === true })),
		refused: (local?.refusedPorts.length ?? 0) + (local?.refused.length ?? 0) + counts.problems,
	};
}

/** Seconds each program ran; undefined while kernel.bpf_stats_enabled is 0. */
export function runSeconds(d: Datapath): { program: string; seconds: number }[] | undefined {
	const rows = d.status().programs.flatMap((p) => {
		const ns = d.program(p.name).info().runTimeNs;
		return ns === 0n ? [] : [{ program: p.name, seconds: Number(ns) / 1e9 }];
	});
	return rows.length === 0 ? undefined : rows;
}

const PROTOCOLS: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmp6' };

export function verdictEvent(
	event: Event,
	e: Entries,
	names: ReadonlyMap<number, string> | undefined,
	nowNs: bigint,
): VerdictEventBody {
	const b = event.ref === 0 ? undefined : backendsByIndex(e).get(event.ref & REF_INDEX_MASK);
	// uplink_tc hands over by the mark alone what uplink_xdp has read, whose event names the addresses.
	const isRead = event.proto !== 0 || event.src !== '::' || event.dst !== '::';
	const at = (address: string, port: number) => (address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);
	return {
		type: 'verdict',
		at: new Date(Date.now() - Number((nowNs - event.time_ns) / 1_000_000n)).toISOString(),
		program: PROGRAMS[event.program] ?? String(event.program),
		verdict: VERDICTS[event.verdict] ?? String(event.verdict),
		protocol: isRead ? (PROTOCOLS[event.proto] ?? String(event.proto)) : null,
		source: isRead ? at(event.src, event.sport) : null,
		destination: isRead ? at(event.dst, event.dport) : null,
		interface: names?.get(event.ifindex) ?? String(event.ifindex),
		bytes: event.len,
		service: b?.service ?? null,
		backend: b?.id ?? null,
	};
}
