/**
 * The datapath of one node without an agent: loads, fills the maps with the rows of a file, attaches, and stays.
 * Run in the node's namespace by overlay.ts. SIGHUP reads the file again (rows are added, none is taken away); SIGUSR1 prints
 * the counters as a line of JSON, `{"overlay_tc encap_overlay": [packets, bytes], …}`. Prints "ready" when attached;
 * SIGUSR2 detaches the uplink and prints "detached", the next one attaches it and prints "attached"; SIGTERM takes everything down.
 */
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDatapath, ownNetnsCookie } from '../../src/loader/datapath.js';
import {
	MAX_UPLINKS,
	type Network,
	type Node,
	NodeFlag,
	type OverlayEndpoint,
	type OverlayPort,
	PROGRAMS,
	VERDICTS,
} from '../../src/loader/layout.gen.js';
import { root } from './tools.js';

export interface NodeRows {
	readonly pinRoot: string;
	readonly uplink: { readonly ifindex: number; readonly name: string; readonly mtu: number; readonly mac: string };
	readonly self: number;
	readonly vtep: string;
	/** Without `flags`, which are "resolved". */
	readonly nodes: readonly (readonly [number, Omit<Node, 'flags'>])[];
	readonly networks: readonly (readonly [number, Network])[];
	readonly endpoints: readonly (readonly [string, OverlayEndpoint])[];
	readonly slices: readonly (readonly [string, number])[];
	readonly ports: readonly (readonly [number, OverlayPort])[];
}

const file = process.argv[2];
const rows = (): NodeRows => JSON.parse(readFileSync(file, 'utf8')) as NodeRows;
const first = rows();
const datapath = await openDatapath({
	pinRoot: first.pinRoot,
	bpfDir: process.env.BEELINE_TEST_BPF ?? join(root, 'bpf'),
	cacheDir: join(tmpdir(), 'beeline-test-objects'),
	runDir: first.pinRoot.replace('/sys/fs/bpf', tmpdir()),
	objects: ['uplink_xdp.bpf.o', 'uplink_tc.bpf.o', 'overlay_tc.bpf.o'],
	// Tens of megabytes each, and no packet here asks for them.
	maxEntries: { revnat: 1024, revnat_new: 1024, conntrack: 1024, conntrack_old: 1024, conntrack_half_open: 1024 },
});
const { store } = datapath;

function fill(r: NodeRows): void {
	store.nodes.setMany(r.nodes.map(([i, n]) => [i, { ...n, flags: NodeFlag.NODE_RESOLVED }]));
	store.vteps.setMany(r.nodes.map(([i, n]) => [n.vtep, i]));
	store.networks.setMany(r.networks);
	store.overlayEndpoints.setMany(r.endpoints);
	store.overlaySlices.setMany(r.slices);
	store.overlayPorts.setMany(r.ports);
}

store.settings.set({
	heartbeat_ns: store.now(),
	stale_after_ns: 60_000_000_000n,
	netns_cookie: ownNetnsCookie(),
	table_digest: 1n,
	vtep: first.vtep,
	vni: 12509184,
	vxlan_port: 4789,
	flags: 0,
	self: first.self,
	hash_seed: 5,
	mark: 0x1234567,
	mesh_mtu: 0,
	own4: [first.vtep],
	own6: [],
});
const { ifindex, name, mtu, mac } = first.uplink;
store.uplinks.setMany([[ifindex & (MAX_UPLINKS - 1), { ifindex, mtu, mac, l3_ifindex: ifindex }]]);
fill(first);
datapath.commit();
datapath.attachUplink({ ifindex, name, mode: 'native', mtu });
for (const [port] of first.ports) datapath.attachOverlay(port);

process.on('SIGHUP', () => {
	fill(rows());
	console.log('filled');
});
process.on('SIGUSR1', () => {
	const counted = store
		.counters()
		.verdicts.filter((v) => v.packets > 0n)
		.map((v) => [`${PROGRAMS[v.program]} ${VERDICTS[v.verdict]}`, [Number(v.packets), Number(v.bytes)]]);
	console.log(JSON.stringify(Object.fromEntries(counted)));
});
let attached = true;
process.on('SIGUSR2', () => {
	attached = !attached;
	if (attached) datapath.attachUplink({ ifindex, name, mode: 'native', mtu });
	else datapath.detachUplink(ifindex);
	console.log(attached ? 'attached' : 'detached');
});
process.on('SIGTERM', () => {
	datapath.takeDown();
	process.exit(0);
});
console.log('ready');
setInterval(() => {}, 60_000);
