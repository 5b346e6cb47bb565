// Attaching by numbers alone: runs on the main thread and inside a namespace Worker.
import { BpfError, NotSupportedError } from './errors.js';
import { native } from './ffi.js';
import { ATTR_QUERY, LINK_CREATE_OPTS, Struct, TC_HOOK, TC_OPTS } from './layout.js';
import { bpf, CMD, ifindexOf, ifName, linkCreate, permissionHint } from './sys.js';

export type Dev = string | number;
export type XdpMode = 'native' | 'generic' | 'offload';
export type Direction = 'ingress' | 'egress';

const BPF_XDP = 37;
const TCX = { ingress: 46, egress: 47 } as const;
const XDP_FLAGS = { generic: 2, native: 4, offload: 8 } as const;
const F_BEFORE = 8;
const F_AFTER = 16;
const F_LINK = 1 << 13;
const MAP_FD_NONE = 0;

export interface XdpAttachment {
	readonly fd: number;
	readonly ifindex: number;
	readonly mode: XdpMode;
	/** Why not native, where `auto` fell back. */
	readonly fallback?: { errno: number };
}

const nameOf = (dev: Dev): string => (typeof dev === 'string' ? dev : (ifName(dev) ?? `interface ${dev}`));

function xdpHint(errno: number, dev: string, mode: string): string {
	switch (errno) {
		case 16:
		case 17:
			return `another XDP program is attached: ip link show ${dev}`;
		case 19:
			return 'no such interface in this network namespace: ip link';
		case 95:
			return mode === 'native' ? 'the driver has no native XDP: use mode generic' : 'the interface refuses XDP';
		case 22:
		case 34:
			return `does its MTU fit one page, is LRO off, and is the program not bound to another device? ip -d link show ${dev}`;
		default:
			return permissionHint(errno);
	}
}

export function attachXdpFd(progFd: number, dev: Dev, mode: XdpMode | 'auto'): XdpAttachment {
	const ifindex = ifindexOf(dev);
	const name = nameOf(dev);
	const first = mode === 'auto' ? 'native' : mode;
	const fd = linkCreate(progFd, ifindex, BPF_XDP, XDP_FLAGS[first]);
	if (fd >= 0) return { fd, ifindex, mode: first };
	if (mode === 'auto' && [95, 22, 34, 524].includes(-fd)) {
		const generic = linkCreate(progFd, ifindex, BPF_XDP, XDP_FLAGS.generic);
		if (generic >= 0) return { fd: generic, ifindex, mode: 'generic', fallback: { errno: -fd } };
		throw new BpfError(
			`attach xdp to ${name}`,
			-generic,
			xdpHint(-generic, name, 'generic'),
			new BpfError(`attach native xdp to ${name}`, -fd),
		);
	}
	throw new BpfError(`attach xdp to ${name}`, -fd, xdpHint(-fd, name, first));
}

let tcx: boolean | undefined;
/** tcx appeared in Linux 6.6: older kernels do not know the query. Asked once: it waits for the lock of all interfaces. */
export function hasTcx(): boolean {
	tcx ??= bpf(CMD.PROG_QUERY, new Struct(ATTR_QUERY, { target: 1, attach_type: TCX.ingress }).bytes) !== -22;
	return tcx;
}

export interface TcOptions {
	readonly via?: 'tcx' | 'clsact' | 'auto';
	/** tcx: place relative to another link of the same hook (fd). */
	readonly beforeFd?: number;
	readonly afterFd?: number;
	/** tcx: ahead of all that is on the hook. */
	readonly first?: boolean;
	/** tcx: fail with ESTALE unless the hook is at this revision. */
	readonly expectedRevision?: bigint;
	/** clsact: filter priority and handle; 0 lets the kernel choose. */
	readonly priority?: number;
	readonly handle?: number;
}
export interface ClsactFilter {
	readonly ifindex: number;
	readonly direction: Direction;
	readonly priority: number;
	readonly handle: number;
}
export type TcAttachment =
	| { readonly kind: 'tcx'; readonly fd: number; readonly ifindex: number; readonly direction: Direction }
	| { readonly kind: 'clsact'; readonly filter: ClsactFilter };

export function attachTcFd(progFd: number, dev: Dev, direction: Direction, o: TcOptions = {}): TcAttachment {
	const ifindex = ifindexOf(dev);
	const name = nameOf(dev);
	const via = o.via ?? 'auto';
	if (via === 'tcx' || (via === 'auto' && hasTcx())) {
		const anchor = o.beforeFd ?? o.afterFd;
		const ahead = o.beforeFd !== undefined || o.first ? F_BEFORE : F_AFTER;
		const flags = anchor !== undefined ? ahead | F_LINK : o.first ? F_BEFORE : 0;
		const fd = linkCreate(progFd, ifindex, TCX[direction], flags, anchor ?? MAP_FD_NONE, o.expectedRevision ?? 0n);
		return attachedTcx(fd, ifindex, name, direction);
	}
	return { kind: 'clsact', filter: attachClsact(progFd, ifindex, direction, o.priority ?? 1, o.handle ?? 1, false) };
}

/** @param fd of the link, or -errno */
function attachedTcx(fd: number, ifindex: number, name: string, direction: Direction): TcAttachment {
	if (fd >= 0) return { kind: 'tcx', fd, ifindex, direction };
	const op = `attach tcx ${direction} to ${name}`;
	if (fd === -22 && !hasTcx())
		throw new NotSupportedError(op, 'tcx', 'tcx needs Linux 6.6: use via clsact or auto', 22);
	throw new BpfError(
		op,
		-fd,
		-fd === 19
			? 'no such interface in this network namespace: ip link'
			: -fd === 17
				? `this program is attached there already: bpftool net show dev ${name}`
				: -fd === 116
					? 'the hook has changed since its revision was read'
					: permissionHint(-fd),
	);
}

/** Ahead of all others. An anchor would need libbpf 1.3. Kept here: the other thread reads it. */
const FIRST = new Struct(LINK_CREATE_OPTS, { flags: F_BEFORE });

/**
 * As attachTcFd() with tcx, waiting on another thread: the kernel has one lock for all interfaces, and namespaces that come
 * and go hold it for hundreds of milliseconds.
 */
export async function attachTcxFdAsync(
	progFd: number,
	ifindex: number,
	direction: Direction,
	first = false,
): Promise<TcAttachment> {
	const name = nameOf(ifindex);
	const fd = await native().linkCreateAsync(progFd, ifindex, TCX[direction], first ? FIRST.bytes : null);
	return attachedTcx(fd, ifindex, name, direction);
}

const hook = (ifindex: number, direction: Direction) =>
	new Struct(TC_HOOK, { ifindex, attach_point: direction === 'ingress' ? 1 : 2 });
const TC_F_REPLACE = 1;

export function attachClsact(
	progFd: number,
	ifindex: number,
	direction: Direction,
	priority: number,
	handle: number,
	replace: boolean,
): ClsactFilter {
	const n = native();
	const h = hook(ifindex, direction);
	const name = nameOf(ifindex);
	const op = `attach clsact ${direction} to ${name}`;
	const made = n.tcHookCreate(h.bytes);
	if (made < 0 && made !== -17) throw new BpfError(op, -made, permissionHint(-made));
	const opts = new Struct(TC_OPTS, { prog_fd: progFd, flags: replace ? TC_F_REPLACE : 0, handle, priority });
	const r = n.tcAttach(h.bytes, opts.bytes);
	if (r < 0)
		throw new BpfError(
			op,
			-r,
			-r === 17
				? `a filter with priority ${priority} and handle ${handle} is there: tc filter show dev ${name} ${direction}`
				: permissionHint(-r),
		);
	return { ifindex, direction, priority: opts.num('priority'), handle: opts.num('handle') };
}

/** The id of the program a filter runs; undefined when there is no such filter. */
export function clsactProgram(f: ClsactFilter): number | undefined {
	const opts = new Struct(TC_OPTS, { handle: f.handle, priority: f.priority });
	const r = native().tcQuery(hook(f.ifindex, f.direction).bytes, opts.bytes);
	if (r === -2 || r === -22 || r === -19) return undefined;
	if (r < 0) throw new BpfError(`query clsact ${f.direction} of ${nameOf(f.ifindex)}`, -r, permissionHint(-r));
	return opts.num('prog_id');
}

/** True when a filter was removed. */
export function detachClsact(f: ClsactFilter): boolean {
	const opts = new Struct(TC_OPTS, { handle: f.handle, priority: f.priority });
	const r = native().tcDetach(hook(f.ifindex, f.direction).bytes, opts.bytes);
	if (r === -2 || r === -22 || r === -19) return false;
	if (r < 0) throw new BpfError(`detach clsact ${f.direction} from ${nameOf(f.ifindex)}`, -r, permissionHint(-r));
	return true;
}
