/**
 * A node's datapath behind wrappers, with tables as a busy node has them:
 *
 *	10.200.1.1, 10.200.1.2        this node (node 1); nodes 2, 3 and 4 are 10.0.0.2 to .4
 *	8080/tcp, 5353/udp            20 backends on nodes 2 to 4, 1024 slots
 *	8081/tcp                      the same, 16384 slots
 *	8084/tcp, 40000/tcp           the same as 8080; the node may use 8084 as a source port of what it masquerades, 40000 of its own too
 *	8085/tcp, 40001/tcp           the same, and a connection did begin from there
 *	8082/tcp                      one backend on this node, whose clients came in here
 *	8083/tcp                      one backend on this node, whose clients came in at node 2
 *
 * The interface that frames seem to come from is `lo`, as BPF_PROG_TEST_RUN has it where nothing else is said.
 */
import { join } from 'node:path';
import { compile } from 'bpf-loader';
import { type BpfMap, type BpfObject, open, type Program } from 'libbpf-ts';
import { hasKernelConntrack } from '../../src/loader/datapath.js';
import {
	BackendState,
	Delivery,
	MAX_UPLINKS,
	NodeFlag,
	PortFlag,
	ReturnPath as Returns,
	RevnatState,
	revnatCodec,
	revnatKeyCodec,
	SettingsFlag,
} from '../../src/loader/layout.gen.js';
import { type KernelStore, kernelStore } from '../../src/loader/store.js';
import { HASH_SEED } from '../../src/mesh/entries.js';
import { maglev } from '../../src/mesh/maglev.js';
import { root } from '../support/tools.js';
import { TCP, UDP } from './frames.js';

export const OWN = '10.200.1.1';
export const MAC = '02:00:00:00:00:01';
export const CLIENT = '100.64.0.0';
export const CLIENT_NUMBER = 0x64400000;
export const SERVICE = 8080;
export const LARGE_SERVICE = 8081;
export const LOCAL_SERVICE = 8082;
export const TUNNEL_SERVICE = 8083;
export const UDP_SERVICE = 5353;
/** The node may use its port as a source port. */
export const SHARED_SERVICE = 40_000;
/** Only for what it masquerades. */
export const MASQUERADED_SERVICE = 8084;
/** The same two, and a connection began from each. */
export const USED_SHARED_SERVICE = 40_001;
export const USED_MASQUERADED_SERVICE = 8085;
export const LOCAL_ENDPOINT = '172.18.0.2';
export const TUNNEL_ENDPOINT = '172.18.0.3';
export const TUNNEL_MAC = '06:00:00:00:00:51';
export const PEER = '10.0.0.2';
export const SELF = '10.0.0.1';
export const VNI = 12509184;
export const VXLAN_PORT = 4789;
const LOCAL_MAC = '06:00:00:00:00:50';
const MARK = 0x5eed0000;
const BACKENDS = 20;
const FLOWS = 1 << 19;
const SINCE = 86_400_000_000_000n;

/** Programs whose packets come out of one BTF-typed set of variables (wrap.h). */
export interface Wrapped {
	readonly program: Program;
	readonly object: BpfObject;
}

export interface Rig {
	readonly store: KernelStore;
	wrapped(name: string): Wrapped;
	close(): void;
}

async function build(name: string): Promise<Uint8Array> {
	const { object } = await compile(join(root, 'test/bench/bpf', `${name}.bpf.c`), { includes: [join(root, 'bpf')] });
	return object;
}

/**
 * @param flows with it, records of 2^19 flows for each of the two local services
 * @param ifindex of the uplink
 */
export async function buildRig(o: { readonly flows: boolean; readonly ifindex?: number }): Promise<Rig> {
	const [floor, uplink, ...tc] = await Promise.all(['floor', 'uplink', 'endpoint', 'egress'].map(build));
	const objects: BpfObject[] = [];
	try {
		const f = open(floor, { name: 'floor' }).loadSync();
		objects.push(f);
		const opened = open(uplink, { name: 'uplink' });
		opened.disableProgram('uplink_xdp').disableProgram('uplink_xdp_frags');
		// Half a million flows of two services, and none evicted.
		if (hasKernelConntrack()) opened.setConst('has_kernel_conntrack', true);
		opened.setMaxEntries('revnat', o.flows ? 1 << 21 : 1 << 16);
		const u = opened.loadSync();
		objects.push(u);
		const maps = new Map<string, BpfMap>(Object.entries(u.maps as Record<string, BpfMap>));
		for (const bytes of tc) {
			const next = open(bytes, { name: 'tc' });
			for (const name of next.programNames()) if (!name.startsWith('w_')) next.disableProgram(name);
			for (const name of next.mapNames()) {
				const map = maps.get(name);
				if (map) next.reuseMap(name, map);
			}
			objects.push(next.loadSync());
		}
		const store = kernelStore(maps);
		fillFloor(f);
		fill(store, o.ifindex ?? 1);
		if (o.flows) fillFlows(u);
		return {
			store,
			wrapped(name) {
				const object = objects.find((x) => name in x.programs);
				if (!object) throw new Error(`no program ${name} in the bench's objects`);
				return { program: object.program(name), object };
			},
			close() {
				store.close();
				for (const x of objects.splice(0).reverse()) x[Symbol.dispose]();
			},
		};
	} catch (error) {
		for (const x of objects.reverse()) x[Symbol.dispose]();
		throw error;
	}
}

function fillFloor(floor: BpfObject): void {
	const slots = 65537;
	floor.map<number, number>('ring').setMany(Array.from({ length: slots }, (_, i) => [i, 1 + (i % BACKENDS)] as const));
	const key = new Uint8Array(new ArrayBuffer(12));
	key.set([10, 200, 1, 1]);
	// Ports of the floor's key are as in the packet.
	new DataView(key.buffer).setUint16(4, SERVICE);
	key[6] = TCP;
	const map = floor.map<unknown, unknown>('vips');
	const value = new Uint8Array(new ArrayBuffer(8));
	value[0] = 1;
	map.raw.update(key.subarray(0, map.keySize), value);
}

function fill(store: KernelStore, ifindex: number): void {
	const node = (vtep: string, n: number) => ({
		vtep,
		ifindex,
		dmac: `02:00:00:00:01:0${n}`,
		smac: MAC,
		mtu: 1500,
		flags: NodeFlag.NODE_RESOLVED | NodeFlag.NODE_DSR,
	});
	const vteps = [SELF, PEER, '10.0.0.3', '10.0.0.4'];
	store.settings.set({
		heartbeat_ns: store.now(),
		stale_after_ns: 60_000_000_000n,
		netns_cookie: 1n,
		table_digest: 1n,
		vtep: SELF,
		vni: VNI,
		vxlan_port: VXLAN_PORT,
		flags: SettingsFlag.SETTINGS_WATCH_SOURCES | SettingsFlag.SETTINGS_KNOW_SOURCES,
		self: 1,
		hash_seed: HASH_SEED,
		mark: MARK,
		mesh_mtu: 0,
		own4: [OWN, '10.200.1.2'],
		own6: ['fd00:200::1', 'fd00:200::2'],
	});
	store.uplinks.setMany([[ifindex & (MAX_UPLINKS - 1), { ifindex, mtu: 1500, mac: MAC, l3_ifindex: ifindex }]]);
	store.nodes.setMany(vteps.map((v, i) => [i + 1, node(v, i + 1)] as const));
	store.vteps.setMany(vteps.map((v, i) => [v, i + 1] as const));

	const remote = Array.from({ length: BACKENDS }, (_, i) => i + 1);
	const mac = (i: number) => `06:00:00:00:00:${(i + 0x10).toString(16).padStart(2, '0')}`;
	const row = (address: string, node: number) => ({
		state: BackendState.BACKEND_ACTIVE,
		generation: 0,
		mac: address,
		node,
	});
	const local = BACKENDS + 1;
	const tunnel = BACKENDS + 2;
	store.backends.setMany([
		...remote.map((i) => [i, row(mac(i), 2 + (i % 3))] as const),
		[local, row(LOCAL_MAC, 1)] as const,
		[tunnel, row(TUNNEL_MAC, 1)] as const,
	]);
	const lb = (address: string, ref: number, frontend: number) => ({
		addr4: address,
		addr6: '::',
		ref,
		ifindex,
		frontend,
		port: 80,
		proto: TCP,
		state: BackendState.BACKEND_ACTIVE,
		delivery: Delivery.DELIVER_PEER,
		return_path: Returns.RETURN_AUTO,
		flags: 0,
	});
	store.localBackends.setMany([
		[LOCAL_MAC, lb(LOCAL_ENDPOINT, local, 3)],
		[TUNNEL_MAC, lb(TUNNEL_ENDPOINT, tunnel, 4)],
	]);
	const hash = (i: number) => Math.imul(i, 2654435761) >>> 0;
	const table = (size: number, refs: readonly number[]) =>
		maglev(size, {
			offset: Uint32Array.from(refs.map(hash)),
			skip: Uint32Array.from(refs.map((r) => hash(r + 1000))),
			weight: new Uint16Array(refs.length).fill(1),
			down: new Uint8Array(refs.length),
			ref: Uint32Array.from(refs),
		});
	const frontends: readonly (readonly [number, number, number, number, readonly number[]])[] = [
		[1, SERVICE, TCP, 1024, remote],
		[2, LARGE_SERVICE, TCP, 16384, remote],
		[3, LOCAL_SERVICE, TCP, 1024, [local]],
		[4, TUNNEL_SERVICE, TCP, 1024, [tunnel]],
		[5, UDP_SERVICE, UDP, 1024, remote],
		[6, SHARED_SERVICE, TCP, 1024, remote],
		[7, MASQUERADED_SERVICE, TCP, 1024, remote],
		[8, USED_SHARED_SERVICE, TCP, 1024, remote],
		[9, USED_MASQUERADED_SERVICE, TCP, 1024, remote],
	];
	store.tables.create(frontends.map(([i, , , size, refs]) => [2 * i, table(size, refs)] as const));
	store.frontends.setMany(
		frontends.map(([i, port, proto, size]) => {
			const ref = { table: 2 * i, mask: size - 1 };
			return [
				i,
				{ tables: [ref, ref], window_ns: SINCE, udp_window_ns: SINCE, flags: 0, port, proto, acl: 0, generation: 0 },
			] as const;
		}),
	);
	const { PORT_LOCAL, PORT_MASQUERADED } = PortFlag;
	const sources = new Map([
		[SHARED_SERVICE, PORT_LOCAL | PORT_MASQUERADED],
		[USED_SHARED_SERVICE, PORT_LOCAL | PORT_MASQUERADED],
		[MASQUERADED_SERVICE, PORT_MASQUERADED],
		[USED_MASQUERADED_SERVICE, PORT_MASQUERADED],
	]);
	store.sourcePorts.setMany([USED_SHARED_SERVICE, USED_MASQUERADED_SERVICE].map((port) => [port, 1] as const));
	store.ports.setMany(
		frontends.map(([i, port, proto]) => [(proto === UDP ? 1 << 16 : 0) | port, i | (sources.get(port) ?? 0)]),
	);
}

/** Address of flow `i`'s client, as wrap.h counts them. */
function client(i: number): string {
	const n = CLIENT_NUMBER + (i >> 14);
	return [24, 16, 8, 0].map((s) => (n >>> s) & 255).join('.');
}

/** Records of established flows. */
function fillFlows(uplink: BpfObject): void {
	const map = uplink.map<unknown, unknown>('revnat');
	const batch = 1 << 14;
	const keys = new Uint8Array(batch * revnatKeyCodec.size);
	const values = new Uint8Array(batch * revnatCodec.size);
	const k = new DataView(keys.buffer);
	const v = new DataView(values.buffer);
	for (const [endpoint, port, node, ref] of [
		[LOCAL_ENDPOINT, LOCAL_SERVICE, 1, BACKENDS + 1],
		[TUNNEL_ENDPOINT, TUNNEL_SERVICE, 2, BACKENDS + 2],
	] as const)
		for (let start = 0; start < FLOWS; start += batch) {
			const address = client(start);
			for (let i = 0; i < batch; i++) {
				const client_port = 1024 + i;
				revnatKeyCodec.encode(
					{ client: address, endpoint, client_port, port: 80, proto: TCP },
					k,
					i * revnatKeyCodec.size,
				);
				revnatCodec.encode(
					{
						addr: OWN,
						client: address,
						port,
						client_port,
						node,
						ref,
						isn: 0,
						state: RevnatState.REVNAT_PROMOTED,
						fins: 0,
						return_path: Returns.RETURN_DSR,
						inside: 0,
						used_ns: 0n,
					},
					v,
					i * revnatCodec.size,
				);
			}
			map.raw.updateBatch(keys, values, batch);
		}
}
