import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
	type Attachment,
	compile,
	type Loaded,
	LoaderError,
	load,
	loadableObjects,
	type TakenDown,
	writeObjects,
	type XdpMode,
} from 'bpf-loader';
import { LIVE_FRAMES, netnsCookie, type Program } from 'libbpf-ts';
import { MESH_ABI } from './layout.gen.js';
import { type KernelStore, kernelStore } from './store.js';

/** Objects of the datapath; each is `<name>.c` in bpf/ without the `.o`. */
export const OBJECTS: readonly string[] = [
	'uplink_xdp.bpf.o',
	'uplink_tc.bpf.o',
	'endpoint_tc.bpf.o',
	'overlay_tc.bpf.o',
	'gateway_tc.bpf.o',
	'esp_tc.bpf.o',
	'socket.bpf.o',
];

/** Hooks of socket.bpf.c. */
const SOCKET_PROGRAMS: readonly string[] = [
	'connect4',
	'connect6',
	'sendmsg4',
	'sendmsg6',
	'recvmsg4',
	'recvmsg6',
	'getpeername4',
	'getpeername6',
];

/** Largest MTU whose frames lie in one page with the kernel's headroom: above it native XDP wants a program for frags. */
export const MAX_LINEAR_MTU = 3498;

/**
 * Whether programs can ask the kernel's conntrack (bpf/kernel_conntrack.h): it is compiled in, or its module is loaded, and
 * has its types.
 * @param btf directory of the kernel's types
 */
export function hasKernelConntrack(btf = '/sys/kernel/btf'): boolean {
	return ['nf_conntrack', 'vmlinux'].some((name) => {
		try {
			const types = readFileSync(join(btf, name));
			return ['bpf_xdp_ct_lookup', 'bpf_ct_release'].every((f) => types.includes(`\0${f}\0`));
		} catch {
			return false;
		}
	});
}

/** Locks lie here. */
export const RUN_DIR = '/run/beeline';

export interface DatapathOptions {
	readonly pinRoot: string;
	/** C sources. At least one of the two; precompiled objects are taken first. */
	readonly bpfDir?: string;
	readonly objectDir?: string;
	/** Where compiled objects are kept between starts. */
	readonly cacheDir?: string;
	readonly clang?: string;
	/** Sizes of maps by name, in place of bpf/maps.h. */
	readonly maxEntries?: Readonly<Record<string, number>>;
	/** `const volatile` variables of the programs. */
	readonly consts?: Readonly<Record<string, unknown>>;
	readonly runDir?: string;
	/** Default: all of OBJECTS. */
	readonly objects?: readonly string[];
}

export interface UplinkAttachment {
	readonly mode: 'native' | 'generic';
	readonly program: string;
	readonly via: 'tcx' | 'clsact';
}

export interface DatapathStatus {
	readonly pinRoot: string;
	readonly attachments: readonly Attachment[];
	readonly programs: readonly { readonly name: string; readonly id: number; readonly tag: string }[];
	/** Compiler warnings, where objects were compiled by this start. */
	readonly warnings: string;
}

/**
 * The node's datapath: programs loaded, maps open. The order of a start is
 *
 *	const d = await openDatapath({ pinRoot, bpfDir });
 *	fill d.newMaps through d.store
 *	d.commit();
 *	d.attachUplink(…), d.attachEndpoint(…), d.attachSocket(…)
 *
 * Until commit() what ran before runs on, with the maps it had. Interfaces are those of this process' network namespace.
 */
export interface Datapath {
	readonly store: KernelStore;
	/** Programs ask the kernel's conntrack whose a packet is that comes to a published port the node uses as a source port. */
	readonly asksConntrack: boolean;
	/** Maps that are new and empty (no map of this layout was pinned): all at a first start, none at a restart. */
	readonly newMaps: readonly string[];
	/** Switches to the loaded programs and maps. Can be repeated. @throws LoaderError ATTACH_FAILED */
	commit(): void;
	/** XDP, TC ingress and TC egress. Can be repeated: a changed mode or MTU is taken up. @throws LoaderError ATTACH_FAILED */
	attachUplink(o: {
		readonly ifindex: number;
		readonly name: string;
		readonly mode: XdpMode;
		readonly mtu: number;
	}): UplinkAttachment;
	detachUplink(ifindex: number): void;
	/** TC ingress on the host side of a veth. Can be repeated. @throws LoaderError ATTACH_FAILED */
	attachEndpoint(ifindex: number): { readonly via: 'tcx' | 'clsact' };
	/** For an interface that is new; does not wait for the kernel's lock of all interfaces. @throws LoaderError ATTACH_FAILED */
	attachEndpointAsync(ifindex: number): Promise<void>;
	detachEndpoint(ifindex: number): void;
	/** The interface is gone. */
	forgetEndpoint(ifindex: number): void;
	/** The same for a veth that leads to an overlay endpoint. */
	attachOverlay(ifindex: number): { readonly via: 'tcx' | 'clsact' };
	detachOverlay(ifindex: number): void;
	/**
	 * TC ingress on a device that holds the gateway address of tasks, or a port of it; `own`: the former, where TC egress
	 * answers for processes of the node. Can be repeated. @throws LoaderError ATTACH_FAILED
	 */
	attachGateway(ifindex: number, own: boolean): { readonly via: 'tcx' | 'clsact' };
	/** For an interface that is new. @throws LoaderError ATTACH_FAILED */
	attachGatewayAsync(ifindex: number, own: boolean): Promise<void>;
	detachGateway(ifindex: number): void;
	/** The interface is gone. */
	forgetGateway(ifindex: number): void;
	/** TC ingress on the xfrm interface of encrypted networks. */
	attachEsp(ifindex: number): { readonly via: 'tcx' | 'clsact' };
	/** All hooks of `socket` on a cgroup2 directory, usually the root. @throws LoaderError ATTACH_FAILED */
	attachSocket(cgroupPath: string): void;
	detachSocket(): void;
	/** What is attached where, read from the kernel. */
	status(): DatapathStatus;
	/** A loaded program, for testRun. @throws LoaderError NO_OBJECT */
	program(name: string): Program;
	/**
	 * Puts a frame (14 to 3368 bytes) into `uplink_xdp` as if it had arrived on the interface. That it was sent is not
	 * known: the kernel answers the same for every verdict.
	 */
	inject(ifindex: number, frame: Uint8Array): void;
	/** Detaches everything, removes every pin, closes. */
	takeDown(): TakenDown;
	/** Leaves the datapath as it is and gives up the handles and the lock. */
	close(): void;
}

/** Cookie of this process' network namespace, for settings.netns_cookie. */
export const ownNetnsCookie = netnsCookie;

/**
 * Compiles (or reads) and loads the datapath. Nothing that runs is changed, also where it fails.
 * @throws LoaderError COMPILE_FAILED, NO_OBJECT, VERIFIER_REJECTED, LOCKED, …; BpfError without root or libbpf
 */
export async function openDatapath(o: DatapathOptions): Promise<Datapath> {
	const objects = await loadableObjects(o.objects ?? OBJECTS, {
		...(o.bpfDir === undefined ? {} : { sourceDir: o.bpfDir }),
		...(o.objectDir === undefined ? {} : { objectDir: o.objectDir }),
		...(o.cacheDir === undefined ? {} : { cacheDir: o.cacheDir }),
		...(o.clang === undefined ? {} : { clang: o.clang }),
	});
	const loadWith = (asksConntrack: boolean): Promise<Loaded> =>
		load({
			objects,
			pinRoot: o.pinRoot,
			runDir: o.runDir ?? RUN_DIR,
			abi: MESH_ABI,
			...(o.maxEntries === undefined ? {} : { maxEntries: o.maxEntries }),
			consts: { has_kernel_conntrack: asksConntrack, ...o.consts },
		});
	let asksConntrack = hasKernelConntrack();
	let loaded: Loaded;
	try {
		loaded = await loadWith(asksConntrack);
	} catch (e) {
		// Another kernel's functions may be others, and a container may not see a module's types: what needs none is tried.
		if (!asksConntrack || !(e instanceof LoaderError && ['VERIFIER_REJECTED', 'LOAD_FAILED'].includes(e.code))) throw e;
		asksConntrack = false;
		loaded = await loadWith(false);
	}
	try {
		return datapath(
			o.pinRoot,
			loaded,
			kernelStore(loaded.maps, loaded.newMaps),
			objects.map((x) => x.warnings).join(''),
			asksConntrack,
		);
	} catch (e) {
		loaded.close();
		throw e;
	}
}

/** Is it the error of an interface that is gone, or in another namespace? */
export const isNoInterface = (e: unknown): boolean => e instanceof LoaderError && e.code === 'NO_INTERFACE';

/** A bridge's port is a gateway's before it is known to be an endpoint's. */
const ENDPOINT = { slot: 'endpoint_tc', program: 'endpoint_tc', direction: 'ingress', ahead: 'gateway_tc' } as const;

function datapath(
	pinRoot: string,
	loaded: Loaded,
	store: KernelStore,
	warnings: string,
	asksConntrack: boolean,
): Datapath {
	const detachUplink = (ifindex: number) => {
		for (const slot of ['uplink_xdp', 'uplink_tc', 'uplink_tc_egress']) loaded.detach(slot, ifindex);
	};
	const isAttached = (slot: string, ifindex: number) =>
		loaded.attachments().some((a) => a.slot === slot && a.ifindex === ifindex && !a.severed);
	return {
		store,
		newMaps: loaded.newMaps,
		asksConntrack,
		commit: () => loaded.commit(),
		attachUplink({ ifindex, name, mode, mtu }) {
			const before = isAttached('uplink_xdp', ifindex);
			try {
				// What finishes a packet is there before what marks it.
				const tc = loaded.attachTc({ slot: 'uplink_tc', program: 'uplink_tc', ifindex, direction: 'ingress' });
				loaded.attachTc({ slot: 'uplink_tc_egress', program: 'uplink_tc_egress', ifindex, direction: 'egress' });
				const plain = ['uplink_xdp', 'uplink_xdp_frags'];
				const programs = (mtu <= MAX_LINEAR_MTU ? plain : plain.reverse()).filter((p) =>
					loaded.programNames.includes(p),
				);
				const xdp = loaded.attachXdp({ slot: 'uplink_xdp', programs, ifindex, mode });
				return { ...xdp, ...tc };
			} catch (e) {
				// Half an uplink is none, unless it served before.
				if (!before) detachUplink(ifindex);
				if (!(e instanceof LoaderError)) throw e;
				throw new LoaderError(e.code, `uplink ${name}: ${e.message}`, { cause: e, detail: e.detail });
			}
		},
		detachUplink,
		attachEndpoint: (ifindex) => loaded.attachTc({ ...ENDPOINT, ifindex }),
		attachEndpointAsync: (ifindex) => loaded.attachTcAsync({ ...ENDPOINT, ifindex }),
		detachEndpoint: (ifindex) => loaded.detach('endpoint_tc', ifindex),
		forgetEndpoint: (ifindex) => loaded.forget('endpoint_tc', ifindex),
		attachOverlay: (ifindex) =>
			loaded.attachTc({ slot: 'overlay_tc', program: 'overlay_tc', ifindex, direction: 'ingress' }),
		detachOverlay: (ifindex) => loaded.detach('overlay_tc', ifindex),
		attachGateway(ifindex, own) {
			// What answers a dial is there before what lets it in.
			// It comes behind endpoint_tc, which may be on the same veth: replies are many.
			const o = { ifindex, priority: 2 };
			if (own) loaded.attachTc({ ...o, slot: 'gateway_tc_egress', program: 'uplink_tc_egress', direction: 'egress' });
			return loaded.attachTc({ ...o, slot: 'gateway_tc', program: 'gateway_tc', direction: 'ingress' });
		},
		async attachGatewayAsync(ifindex, own) {
			const o = { ifindex, priority: 2 };
			if (own)
				await loaded.attachTcAsync({
					...o,
					slot: 'gateway_tc_egress',
					program: 'uplink_tc_egress',
					direction: 'egress',
				});
			await loaded.attachTcAsync({ ...o, slot: 'gateway_tc', program: 'gateway_tc', direction: 'ingress' });
		},
		detachGateway(ifindex) {
			for (const slot of ['gateway_tc', 'gateway_tc_egress']) loaded.detach(slot, ifindex);
		},
		forgetGateway(ifindex) {
			for (const slot of ['gateway_tc', 'gateway_tc_egress']) loaded.forget(slot, ifindex);
		},
		attachEsp: (ifindex) => loaded.attachTc({ slot: 'esp_tc', program: 'esp_tc', ifindex, direction: 'ingress' }),
		attachSocket(path) {
			// Answers before questions: a rewritten connect() whose getpeername() tells the backend would be seen.
			for (const program of [...SOCKET_PROGRAMS].reverse())
				if (loaded.programNames.includes(program)) loaded.attachCgroup({ slot: program, program, path });
		},
		detachSocket() {
			for (const a of loaded.attachments())
				if (a.kind === 'cgroup' && a.cgroupId !== undefined) loaded.detach(a.slot, a.cgroupId);
		},
		status: () => ({
			pinRoot,
			attachments: loaded.attachments(),
			programs: loaded.programNames.map((name) => {
				const info = loaded.program(name).info();
				return { name, id: info.id, tag: info.tag };
			}),
			warnings,
		}),
		program: (name) => loaded.program(name),
		inject(ifindex, frame) {
			// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
			const ctx = new DataView(new ArrayBuffer(24));
			ctx.setUint32(4, frame.length, true);
			ctx.setUint32(12, ifindex, true);
			loaded
				.program('uplink_xdp')
				.testRun({ data: frame, ctx: new Uint8Array(ctx.buffer), flags: LIVE_FRAMES, repeat: 1 });
		},
		takeDown() {
			store.close();
			return loaded.takeDown();
		},
		close() {
			store.close();
			loaded.close();
		},
	};
}

/** Compiles all objects into `outDir` with a manifest, for nodes without clang. @returns their names */
export async function buildObjects(o: {
	readonly bpfDir: string;
	readonly outDir: string;
	readonly clang?: string;
}): Promise<readonly string[]> {
	const built = [];
	for (const name of OBJECTS)
		built.push(
			await compile(join(o.bpfDir, name.replace(/\.o$/, '.c')), o.clang === undefined ? {} : { clang: o.clang }),
		);
	await writeObjects(o.outDir, built);
	return OBJECTS;
}
