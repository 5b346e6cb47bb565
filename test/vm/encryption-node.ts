/**
 * The datapath of one node of ./encryption-guest.ts, and its encryption, without the rest of an agent: in an emulated machine
 * that takes minutes to start. Run in the node's namespace with a file of rows. Prints "ready" when attached; SIGUSR1 prints a
 * report as a line of JSON. Ends as a killed agent does: everything stays.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { EncryptionMetrics, EncryptionState } from '../../src/agent/encryption.js';
import { Encryption, type EncryptionInput, NO_ENCRYPTION_STATE, readSecret } from '../../src/agent/encryption.js';
import { run } from '../../src/agent/exec.js';
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
import { root } from '../support/tools.js';

export interface NodeFile {
	readonly pinRoot: string;
	readonly stateFile: string;
	readonly secretFile: string;
	readonly keyIntervalMs: number;
	readonly uplink: { readonly ifindex: number; readonly name: string; readonly mtu: number; readonly mac: string };
	/** With uplink_xdp, which takes an emulated machine long to verify. */
	readonly guarded: boolean;
	readonly self: number;
	readonly nodes: readonly (readonly [number, Omit<Node, 'flags'>])[];
	readonly networks: readonly (readonly [number, Network])[];
	readonly endpoints: readonly (readonly [string, OverlayEndpoint])[];
	readonly ports: readonly (readonly [number, OverlayPort])[];
	readonly encryption: Omit<EncryptionInput, 'attached'> & { readonly attached: readonly number[] };
}

export interface NodeReport {
	readonly counters: Readonly<Record<string, number>>;
	readonly metrics: EncryptionMetrics | undefined;
	readonly warnings: readonly string[];
	readonly sessions: EncryptionState['sessions'];
}

const f = JSON.parse(readFileSync(process.argv[2], 'utf8')) as NodeFile;
const small = ['revnat', 'revnat_new', 'conntrack', 'conntrack_old', 'conntrack_half_open', 'fragments'];
const d = await openDatapath({
	pinRoot: f.pinRoot,
	bpfDir: join(root, 'bpf'),
	cacheDir: process.env.BEELINE_CACHE ?? '/var/cache/beeline',
	runDir: f.pinRoot.replace('/sys/fs/bpf', tmpdir()),
	objects: [...(f.guarded ? ['uplink_xdp.bpf.o', 'uplink_tc.bpf.o'] : []), 'overlay_tc.bpf.o', 'esp_tc.bpf.o'],
	maxEntries: {
		...Object.fromEntries(small.map((m) => [m, 1024])),
		backends: 1024,
		backend_counters: 1024,
		frontends: 1024,
		frontend_counters: 1024,
		tables: 1024,
		transitions: 1024,
		vip_backends: 1024,
	},
});
const { store } = d;
const vtep = f.nodes.find(([i]) => i === f.self)?.[1].vtep as string;
store.settings.set({
	heartbeat_ns: store.now(),
	stale_after_ns: 60_000_000_000n,
	netns_cookie: ownNetnsCookie(),
	table_digest: 1n,
	vtep,
	vni: 12509184,
	vxlan_port: 4789,
	flags: 0,
	self: f.self,
	hash_seed: 5,
	mark: 0x1234567,
	mesh_mtu: 0,
	own4: [vtep],
	own6: [],
});
const { ifindex, name, mtu, mac } = f.uplink;
store.uplinks.setMany([[ifindex & (MAX_UPLINKS - 1), { ifindex, mtu, mac, l3_ifindex: ifindex }]]);
store.nodes.setMany(f.nodes.map(([i, n]) => [i, { ...n, flags: NodeFlag.NODE_RESOLVED }]));
store.vteps.setMany(f.nodes.map(([i, n]) => [n.vtep, i]));
store.networks.setMany(f.networks);
store.overlayEndpoints.setMany(f.endpoints);
store.overlayPorts.setMany(f.ports);
d.commit();
if (f.guarded) d.attachUplink({ ifindex, name, mode: 'native', mtu });
for (const [port] of f.ports) d.attachOverlay(port);

const state = (): EncryptionState =>
	existsSync(f.stateFile) ? (JSON.parse(readFileSync(f.stateFile, 'utf8')) as EncryptionState) : NO_ENCRYPTION_STATE;
const encryption = new Encryption({
	run,
	secret: readSecret(f.secretFile),
	vxlanPort: 4789,
	keyPort: 7982,
	intervalMs: f.keyIntervalMs,
	state,
	save: (next) => writeFileSync(f.stateFile, JSON.stringify(next)),
	attach: (i) => d.attachEsp(i),
	log: (level, text) => console.error(`${level}: ${text}`),
});
const input = { ...f.encryption, attached: new Set(f.encryption.attached) };
store.encryption.set({ ifindex: await encryption.update(input) });

process.on('SIGUSR1', () => {
	const counters = Object.fromEntries(
		store
			.counters()
			.verdicts.filter((v) => v.packets > 0n)
			.map((v) => [`${PROGRAMS[v.program]} ${VERDICTS[v.verdict]}`, Number(v.packets)]),
	);
	const report: NodeReport = {
		counters,
		metrics: encryption.metrics(),
		warnings: encryption.warnings(),
		sessions: state().sessions,
	};
	console.log(JSON.stringify(report));
});
console.log('ready');
setInterval(() => undefined, 60_000);
