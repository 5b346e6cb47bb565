// bpf(2) itself, for what libbpf 1.1 has no function for.
import { existsSync } from 'node:fs';
import { BpfError, UsageError } from './errors.js';
import { addressOf, native } from './ffi.js';
import {
	ATTR_GET_ID,
	ATTR_INFO,
	ATTR_LINK_CREATE,
	ATTR_LINK_UPDATE,
	type Layout,
	LINK_INFO,
	MAP_INFO,
	PROG_INFO,
	Struct,
} from './layout.js';

export const CMD = {
	PROG_GET_FD_BY_ID: 13,
	MAP_GET_FD_BY_ID: 14,
	OBJ_GET_INFO_BY_FD: 15,
	PROG_QUERY: 16,
	BTF_GET_FD_BY_ID: 19,
	LINK_CREATE: 28,
	LINK_UPDATE: 29,
	LINK_GET_FD_BY_ID: 30,
	LINK_DETACH: 34,
} as const;

const SYS_BPF = process.arch === 'x64' ? 321 : 280;
const CLONE_NEWNET = 0x40000000;
const F_DUPFD_CLOEXEC = 1030;
const SOL_SOCKET = 1;
const SO_NETNS_COOKIE = 71;

/** bpf(2): the result, or -errno. */
export function bpf(cmd: number, attr: Uint8Array): number {
	const n = native();
	const r = n.syscall(SYS_BPF, cmd, attr, attr.length);
	return r < 0 ? -n.errno() : r;
}

/** Throws for a negative result. */
export function check(op: string, r: number, hint = ''): number {
	if (r < 0) throw new BpfError(op, -r, hint || permissionHint(-r));
	return r;
}

export function permissionHint(errno: number): string {
	return errno === 1 && process.geteuid?.() !== 0 ? 'run as root, or with CAP_BPF and CAP_NET_ADMIN' : '';
}

export function closeFd(fd: number): void {
	if (fd >= 0) native().closeFd(fd);
}

export function dupFd(fd: number): number {
	const n = native();
	const r = n.fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (r < 0) throw new BpfError(`duplicate fd ${fd}`, n.errno());
	return r;
}

export function linkCreate(
	progFd: number,
	target: number,
	attachType: number,
	flags = 0,
	relative = 0,
	revision = 0n,
): number {
	const a = new Struct(ATTR_LINK_CREATE, {
		prog_fd: progFd,
		target,
		attach_type: attachType,
		flags,
		relative,
		expected_revision: revision,
	});
	return bpf(CMD.LINK_CREATE, a.bytes);
}

const F_REPLACE = 4;
export function linkUpdate(linkFd: number, newProgFd: number, expectProgFd?: number): number {
	const a = new Struct(ATTR_LINK_UPDATE, { link_fd: linkFd, new_prog_fd: newProgFd });
	if (expectProgFd !== undefined) a.set('flags', F_REPLACE).set('old_prog_fd', expectProgFd);
	return bpf(CMD.LINK_UPDATE, a.bytes);
}

export function linkDetach(linkFd: number): number {
	return bpf(CMD.LINK_DETACH, new Struct(ATTR_LINK_UPDATE, { link_fd: linkFd }).bytes.subarray(0, 4));
}

/** An fd for the object with this id, or -errno. */
export function fdById(
	cmd: (typeof CMD)['PROG_GET_FD_BY_ID' | 'MAP_GET_FD_BY_ID' | 'BTF_GET_FD_BY_ID' | 'LINK_GET_FD_BY_ID'],
	id: number,
): number {
	return bpf(cmd, new Struct(ATTR_GET_ID, { id }).bytes);
}

/** BPF_OBJ_GET_INFO_BY_FD into a struct (whose fields may hold pointers for the kernel to fill). */
export function infoInto<F extends string>(op: string, fd: number, into: Struct<F>): Struct<F> {
	const a = new Struct(ATTR_INFO, { bpf_fd: fd, info_len: into.bytes.length, info: addressOf(into.bytes) });
	check(op, bpf(CMD.OBJ_GET_INFO_BY_FD, a.bytes));
	return into;
}

export const infoOf = <F extends string>(op: string, fd: number, l: Layout<F>): Struct<F> =>
	infoInto(op, fd, new Struct(l));

export interface ProgramInfo {
	readonly id: number;
	readonly name: string;
	/** enum bpf_prog_type: 3 sched_cls, 6 xdp, 18 cgroup_sock_addr, … */
	readonly type: number;
	/** Hash of the instructions, 16 hex digits. */
	readonly tag: string;
	/** Total run time and count, counted while statistics are on (enableStats). */
	readonly runTimeNs: bigint;
	readonly runCnt: bigint;
	readonly recursionMisses: bigint;
	readonly verifiedInsns: number;
	/** Bytes. */
	readonly xlatedLen: number;
	readonly jitedLen: number;
	/** Nanoseconds since boot. */
	readonly loadTime: bigint;
	readonly mapIds: number[];
	readonly btfId: number;
}

export function programInfo(fd: number): ProgramInfo {
	const op = 'read program info';
	const count = infoOf(op, fd, PROG_INFO).num('nr_map_ids');
	const ids = new Uint32Array(new ArrayBuffer(4 * Math.max(1, count)));
	const s = new Struct(PROG_INFO);
	if (count) s.set('nr_map_ids', count).set('map_ids', addressOf(new Uint8Array(ids.buffer)));
	infoInto(op, fd, s);
	return {
		id: s.num('id'),
		name: s.text('name'),
		type: s.num('type'),
		tag: Buffer.from(s.bytes.subarray(PROG_INFO.at.tag, PROG_INFO.at.tag + 8)).toString('hex'),
		runTimeNs: s.big('run_time_ns'),
		runCnt: s.big('run_cnt'),
		recursionMisses: s.big('recursion_misses'),
		verifiedInsns: s.num('verified_insns'),
		xlatedLen: s.num('xlated_prog_len'),
		jitedLen: s.num('jited_prog_len'),
		loadTime: s.big('load_time'),
		mapIds: [...ids.subarray(0, count)],
		btfId: s.num('btf_id'),
	};
}

export const mapInfo = (fd: number): Struct<keyof (typeof MAP_INFO)['at'] & string> =>
	infoOf('read map info', fd, MAP_INFO);
export const linkInfo = (fd: number): Struct<keyof (typeof LINK_INFO)['at'] & string> =>
	infoOf('read link info', fd, LINK_INFO);

/** A device by name or index, looked up in the calling thread's network namespace. */
export function ifindexOf(dev: string | number): number {
	if (typeof dev === 'number') {
		if (!Number.isInteger(dev) || dev <= 0) throw new UsageError(`interface index ${dev} is not a positive integer`);
		return dev;
	}
	const i = native().ifIndex(dev);
	if (i === 0)
		throw new BpfError(`find interface ${dev}`, 19, 'no interface of that name in this network namespace: ip link');
	return i;
}

let cpus = 0;
/** Possible CPUs: how many values an entry of a per-CPU map has. */
export function possibleCpus(): number {
	cpus ||= check('count possible CPUs', native().possibleCpus());
	return cpus;
}

/** Moves the calling thread into a network namespace. Never on the main thread: libuv's threads would inherit it. */
export function setNetns(fd: number): void {
	const n = native();
	if (n.setns(fd, CLONE_NEWNET) !== 0)
		throw new BpfError('enter network namespace', n.errno(), permissionHint(n.errno()));
}

/** SO_NETNS_COOKIE of the calling thread's network namespace: what bpf_get_netns_cookie() returns there. */
export function netnsCookie(): bigint {
	const n = native();
	const fd = n.socket(2, 2 | 0o2000000, 0);
	if (fd < 0) throw new BpfError('read network namespace cookie', n.errno());
	try {
		const value = new BigUint64Array(1);
		const length = new Uint32Array([8]);
		const r = n.getsockopt(
			fd,
			SOL_SOCKET,
			SO_NETNS_COOKIE,
			new Uint8Array(value.buffer),
			new Uint8Array(length.buffer),
		);
		if (r < 0) throw new BpfError('read network namespace cookie', n.errno(), 'SO_NETNS_COOKIE needs Linux 5.14');
		return value[0];
	} finally {
		closeFd(fd);
	}
}

/** 'eth0' for 2 where the interface still exists. */
export function ifName(index: number): string | undefined {
	return native().ifName(index, new Uint8Array(new ArrayBuffer(16))) ?? undefined;
}

export const nsPath = (netns: string): string => {
	const path = netns.includes('/') ? netns : `/run/netns/${netns}`;
	if (!existsSync(path))
		throw new BpfError(`open network namespace ${netns}`, 2, `${path} does not exist: ip netns list`);
	return path;
};

/** glibc's M_ARENA_MAX. */
const ARENA_MAX = -8;

/**
 * Keeps glibc from giving each thread a heap of its own, which it never gives back: libuv and V8 have about ten threads. For
 * processes that live long and seldom allocate from several threads at once. Threads that have a heap keep it.
 */
export function shareHeap(): void {
	native().mallopt(ARENA_MAX, 1);
}

/** Gives free pages of glibc's heaps back to the system (malloc_trim). Takes milliseconds. */
export function trimHeap(): void {
	native().mallocTrim(0);
}
