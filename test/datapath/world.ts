/**
 * The real programs on maps of their own, run packet by packet through BPF_PROG_TEST_RUN, in a network namespace whose
 * interfaces they may name:
 *
 *	clients ── 192.0.2.254 ──┐                      endpoint 172.18.0.2, fd18::2
 *	node2 10.0.0.2 ──────────┼── up0 (100)   ep0 (200) ──┘
 *	node3 10.1.0.3 ─────────────  up1 (101)       node1: 10.0.0.1, 10.1.0.1, fd00::1
 *
 * and host ends of overlay endpoints, ov0 to ov3 (300-303), whose rows are overlay.ts'.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compile } from 'bpf-loader';
import {
	type BpfMap,
	type BpfObject,
	type Link,
	open,
	type Program,
	type RingBuffer,
	type Runner,
	type TypedMap,
} from 'libbpf-ts';
import {
	BackendState,
	type Event,
	eventCodec,
	PROGRAMS,
	type Revnat,
	type RevnatKey,
	SettingsFlag,
	VERDICT_ROWS,
	VERDICTS,
} from '../../src/loader/layout.gen.js';
import { type KernelStore, kernelStore } from '../../src/loader/store.js';
import { cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';
import { root } from '../support/tools.js';
import { print } from './packets.js';

/** Interfaces and their MACs. */
export const UP0 = 100;
export const UP1 = 101;
export const EP0 = 200;
/** Host ends of overlay endpoints: OV, OV + 1, … */
export const OV = 300;
const OVERLAYS = 5;
export const MAC = {
	up0: '02:00:00:00:01:00',
	up1: '02:00:00:00:01:01',
	/** Far ends: the clients' router and the other nodes. */
	router: '02:00:00:00:02:fe',
	node2: '02:00:00:00:02:02',
	node3: '02:00:00:00:02:03',
	endpoint: '02:42:ac:12:00:02',
	gateway: '02:42:ac:12:00:01',
} as const;
export const VNI = 12509184;
export const SELF = 1;
export const MARK = 0x1234567;

/** Runs the calling file again inside a namespace of its own. True inside. */
export function insideNetns(url: string, name: string): boolean {
	if (process.env.BEELINE_DATAPATH_NETNS) return true;
	const why = cannotUseNamespaces() ?? cannotLoadBpf();
	if (why) {
		skip(name, why);
		return false;
	}
	const ns = `bl${process.pid}-dp`;
	execFileSync('ip', ['netns', 'add', ns]);
	try {
		const r = spawnSync(
			'nsenter',
			[`--net=/run/netns/${ns}`, process.execPath, '--enable-source-maps', fileURLToPath(url)],
			{
				stdio: 'inherit',
				env: { ...process.env, BEELINE_DATAPATH_NETNS: ns },
			},
		);
		process.exitCode = r.status ?? 1;
	} finally {
		execFileSync('ip', ['netns', 'del', ns]);
	}
	return false;
}

function sh(script: string): void {
	execFileSync('sh', ['-ec', script], { stdio: ['ignore', 'ignore', 'inherit'] });
}

function interfaces(): void {
	sh(`
		ip link set lo up
		ip link add up0 index ${UP0} address ${MAC.up0} type veth peer name far0 index 1100
		ip link add up1 index ${UP1} address ${MAC.up1} type veth peer name far1 index 1101
		ip link add ep0 index ${EP0} address ${MAC.gateway} type veth peer name task0 index 1200
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		for i in up0 up1 ep0 far0 far1 task0; do ip link set $i up; done
		ip addr add 10.0.0.1/24 dev up0; ip addr add 10.1.0.1/24 dev up1; ip addr add 172.18.0.1/16 dev ep0
		ip addr add fd00::1/64 dev up0 nodad; ip addr add fd18::1/64 dev ep0 nodad
		ip route add 192.0.2.0/24 via 10.0.0.254; ip -6 route add fd09::/16 via fd00::fe
		for i in $(seq 0 ${OVERLAYS - 1}); do
			ip link add ov$i index $((${OV} + i)) type veth peer name ovtask$i index $((1300 + i))
			ip link set ov$i up; ip link set ovtask$i up
		done
		ip neigh add 10.0.0.254 lladdr ${MAC.router} dev up0; ip neigh add fd00::fe lladdr ${MAC.router} dev up0
	`);
}

export interface Ran {
	readonly verdict: string;
	readonly action: string;
	/** The packet as it left, printed. */
	readonly out: string;
	/** Its bytes, behind the mark. */
	readonly bytes: Uint8Array;
	/** What XDP tells TC: `peer 200`, `return`. */
	readonly mark: string | undefined;
	readonly event: Event;
}

const XDP_ACTIONS = ['aborted', 'drop', 'pass', 'tx', 'redirect'];
const TC_ACTIONS: Readonly<Record<number, string>> = { [-1]: 'continue', 0: 'pass', 2: 'drop', 7: 'redirect' };
const MARKS = ['', 'peer', 'neigh', 'return', 'encap'];
const SKB_CTX = 192;
/** Offsets in struct __sk_buff. */
const GSO_SEGS = 164;
const GSO_SIZE = 176;
const XDP_CTX = 24;

export type ProgramName =
	| 'uplink_xdp'
	| 'uplink_xdp_frags'
	| 'uplink_tc'
	| 'uplink_tc_egress'
	| 'endpoint_tc'
	| 'gateway_tc'
	| 'overlay_tc'
	| 'esp_tc';

/** Sizes that make a copy of the maps cheap. */
export const SMALL_MAPS: Readonly<Record<string, number>> = {
	conntrack: 16384,
	conntrack_half_open: 8192,
	conntrack_old: 16384,
	revnat: 16384,
	revnat_new: 8192,
	fragments: 1024,
	backends: 4096,
	backend_counters: 4096,
	frontends: 256,
	frontend_counters: 256,
	tables: 512,
	transitions: 512,
	overlay_endpoints: 1024,
};

export interface WorldOptions {
	readonly maxEntries?: Readonly<Record<string, number>>;
	/** The test drives `clock`; only uplink_xdp is loaded. */
	readonly clockIsGiven?: boolean;
}

const objects = new Map<string, Promise<Uint8Array>>();
function objectOf(name: string): Promise<Uint8Array> {
	let o = objects.get(name);
	if (!o) {
		// Another directory of programs: to see which tests a broken one fails.
		o = compile(join(process.env.BEELINE_TEST_BPF ?? join(root, 'bpf'), `${name}.bpf.c`), {
			cacheDir: join(tmpdir(), 'beeline-test-objects'),
		}).then((c) => c.object);
		objects.set(name, o);
	}
	return o;
}

/** The programs, their maps, and a way to run them. */
export class World implements Disposable {
	readonly store: KernelStore;
	private readonly runners = new Map<string, Runner>();
	private readonly ring: RingBuffer<Event>;

	private constructor(
		private readonly loaded: readonly BpfObject[],
		readonly maps: ReadonlyMap<string, BpfMap>,
		private readonly links: readonly Link[],
	) {
		this.store = kernelStore(maps);
		this.ring = maps.get('events') as RingBuffer<Event>;
	}

	static async open(o: WorldOptions = {}): Promise<World> {
		const loaded: BpfObject[] = [];
		const maps = new Map<string, BpfMap>();
		for (const name of o.clockIsGiven
			? ['uplink_xdp']
			: ['uplink_xdp', 'uplink_tc', 'endpoint_tc', 'gateway_tc', 'overlay_tc', 'esp_tc']) {
			const obj = open(await objectOf(name), { name: `${name}.bpf` });
			if (name === 'uplink_xdp') {
				for (const [map, n] of Object.entries({ ...SMALL_MAPS, ...o.maxEntries })) obj.setMaxEntries(map, n);
				if (o.clockIsGiven) obj.setConst('clock_is_given', true).disableProgram('uplink_xdp_frags');
			} else {
				for (const map of obj.mapNames()) {
					const there = maps.get(map);
					if (there) obj.reuseMap(map, there);
				}
			}
			const b = await obj.load();
			loaded.push(b);
			for (const map of obj.mapNames())
				if (!maps.has(map) && !map.startsWith('.') && !map.includes('.'))
					maps.set(map, (b.maps as Record<string, BpfMap>)[map]);
		}
		return new World(loaded, maps, []);
	}

	/** Nanoseconds, where the clock is given. */
	set clock(ns: bigint) {
		(this.loaded[0].vars as Record<string, { set(v: bigint): void }>).given_clock_ns.set(ns);
	}

	program(name: ProgramName): Program {
		for (const b of this.loaded) if (name in b.programs) return b.program(name);
		throw new Error(`no object has a program ${name}`);
	}

	map<K, V>(name: string): TypedMap<K, V> {
		return this.maps.get(name) as TypedMap<K, V>;
	}

	runner(name: ProgramName): Runner {
		let r = this.runners.get(name);
		if (!r) {
			const tc = name.includes('tc');
			r = this.program(name).runner({ dataSize: 4096, outSize: 8192, ctxSize: tc ? SKB_CTX : XDP_CTX });
			this.runners.set(name, r);
		}
		return r;
	}

	/** One packet; `ifindex`: where it came in (egress: where it goes out); `gso`: bytes of a segment, where it is several. */
	run(name: ProgramName, packet: Uint8Array, ifindex: number, mark = 0, gso = 0): Ran {
		const r = this.runner(name);
		r.data.set(packet);
		const ctx = new DataView(r.ctx.buffer);
		const tc = name.includes('tc');
		if (tc) {
			ctx.setUint32(8, mark, true);
			ctx.setUint32(36, name === 'uplink_tc_egress' ? 0 : ifindex, true);
			ctx.setUint32(40, ifindex, true);
			ctx.setUint32(GSO_SEGS, gso ? Math.ceil(packet.length / gso) : 0, true);
			ctx.setUint32(GSO_SIZE, gso, true);
		} else {
			ctx.setUint32(4, packet.length, true);
			ctx.setUint32(12, ifindex, true);
		}
		this.drain();
		const code = r.run(packet.length);
		const events = this.drain();
		const counted: Partial<Record<ProgramName, ProgramName>> = {
			uplink_xdp_frags: 'uplink_xdp',
			gateway_tc: 'endpoint_tc',
		};
		const program = PROGRAMS.indexOf(counted[name] ?? name);
		const event = events.filter((e) => e.program === program).at(-1);
		if (!event) throw new Error(`${name} left no event for ${print(packet)}`);
		let bytes = r.out.slice(0, r.outLength);
		let told: string | undefined;
		if (!tc) {
			const out = new DataView(r.ctxOut.buffer);
			const meta = out.getUint32(0, true) - out.getUint32(8, true);
			if (meta > 0) {
				const m = new DataView(bytes.buffer);
				const what = m.getUint32(4, true);
				const value = what & 0xfffffff;
				told = m.getUint32(0, true) === MARK ? `${MARKS[what >>> 28]}${value ? ` ${value}` : ''}` : 'of another secret';
				bytes = bytes.slice(meta);
			}
		}
		return {
			verdict: VERDICTS[event.verdict],
			action: tc ? (TC_ACTIONS[code] ?? `${code}`) : XDP_ACTIONS[code],
			out: print(bytes),
			bytes,
			mark: told,
			event,
		};
	}

	drain(): Event[] {
		const events: Event[] = [];
		this.ring.drain((b) => events.push(eventCodec.decode(new DataView(b.buffer, b.byteOffset, b.byteLength), 0)));
		return events;
	}

	/** Verdict numbers of the events since the last drain, into `into`; how many. */
	verdicts(into: Uint8Array): number {
		let n = 0;
		const at = eventCodec.offsets.verdict;
		this.ring.drain((b) => {
			into[n++] = b[at];
		});
		return n;
	}

	/** The backend of the last event since the last drain, 0 for none. */
	lastRef(): number {
		let ref = 0;
		const at = eventCodec.offsets.ref;
		this.ring.drain((b) => {
			ref = (b[at] | (b[at + 1] << 8) | (b[at + 2] << 16) | (b[at + 3] << 24)) >>> 0;
		});
		return ref;
	}

	/** Packets by verdict of one program, all CPUs. */
	counted(program: ProgramName): Map<string, { packets: bigint; bytes: bigint }> {
		const index = PROGRAMS.indexOf(program);
		const rows = this.store.counters().verdicts.filter((v) => v.program === index && v.verdict < VERDICT_ROWS);
		return new Map(rows.map((v) => [VERDICTS[v.verdict], { packets: v.packets, bytes: v.bytes }]));
	}

	/** Makes a reply's record as a client's packet would have, where a test needs one out of thin air. */
	get revnat(): TypedMap<RevnatKey, Revnat> {
		return this.map('revnat');
	}

	[Symbol.dispose](): void {
		this.store.close();
		for (const l of this.links) l[Symbol.dispose]();
		for (const b of [...this.loaded].reverse()) b[Symbol.dispose]();
	}
}

let built = false;
let held: Link[] = [];
let pass: BpfObject | undefined;

/** The namespace's interfaces: an XDP program on both ends of the uplinks, or the kernel has no receive queue to run from. */
export async function buildInterfaces(): Promise<void> {
	if (built) return;
	built = true;
	interfaces();
	const object = await compile(join(root, 'test/support/c/pass.bpf.c'), {
		cacheDir: join(tmpdir(), 'beeline-test-objects'),
	});
	pass = open(object.object, { name: 'pass' }).loadSync();
	const program = Object.values(pass.programs)[0] as Program;
	held = ['up0', 'up1', 'far0', 'far1', 'task0'].map((dev) => program.attachXdp(dev));
}

export function closeInterfaces(): void {
	for (const l of held) l[Symbol.dispose]();
	held = [];
	pass?.[Symbol.dispose]();
	pass = undefined;
}

export const ACTIVE = BackendState.BACKEND_ACTIVE;
export const DRAINING = BackendState.BACKEND_DRAINING;
export const DOWN = BackendState.BACKEND_DOWN;

/** This node, its uplinks, and the other nodes. */
export function fillNode(s: KernelStore): void {
	s.settings.set({
		heartbeat_ns: 0n,
		stale_after_ns: 0n,
		netns_cookie: 0n,
		table_digest: 77n,
		vtep: '10.0.0.1',
		vni: VNI,
		vxlan_port: 4789,
		flags: SettingsFlag.SETTINGS_TRACE | SettingsFlag.SETTINGS_PROCESSES,
		self: SELF,
		hash_seed: 5,
		mark: MARK,
		mesh_mtu: 0,
		own4: ['10.0.0.1', '10.1.0.1'],
		own6: ['fd00::1'],
	});
	s.uplinks.setMany([
		[UP0, { ifindex: UP0, mtu: 1500, mac: MAC.up0, l3_ifindex: UP0 }],
		[UP1, { ifindex: UP1, mtu: 1500, mac: MAC.up1, l3_ifindex: UP1 }],
	]);
	const node = (vtep: string, ifindex: number, dmac: string, smac: string, mtu = 1550) => ({
		vtep,
		ifindex,
		dmac,
		smac,
		mtu,
		flags: 1,
	});
	s.nodes.setMany([
		[1, node('10.0.0.1', UP0, MAC.up0, MAC.up0)],
		[2, node('10.0.0.2', UP0, MAC.node2, MAC.up0)],
		[3, node('10.1.0.3', UP1, MAC.node3, MAC.up1)],
		// Four knows that its source address is believed; five has a narrow way; six is not resolved.
		[4, { ...node('10.0.0.4', UP0, MAC.node2, MAC.up0), flags: 3 }],
		[5, node('10.0.0.5', UP0, MAC.node2, MAC.up0, 1450)],
		[6, { ...node('10.0.0.6', UP0, '00:00:00:00:00:00', MAC.up0), flags: 0 }],
	]);
	s.vteps.setMany([
		['10.0.0.1', 1],
		['10.0.0.2', 2],
		['10.1.0.3', 3],
		['10.0.0.4', 4],
		['10.0.0.5', 5],
		['10.0.0.6', 6],
	]);
}
