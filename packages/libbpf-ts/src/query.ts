// Which programs a hook runs (BPF_PROG_QUERY), whoever attached them.
import { closeSync, openSync } from 'node:fs';
import { type Dev, type Direction, hasTcx } from './attach.js';
import { BpfError, NotSupportedError } from './errors.js';
import { addressOf } from './ffi.js';
import { ATTR_QUERY, Struct } from './layout.js';
import { bpf, CMD, check, ifindexOf } from './sys.js';

export interface Attached {
	readonly progId: number;
	/** 0 where a program is attached without a link; always 0 for cgroups, whose query does not tell. */
	readonly linkId: number;
}
export interface HookState {
	/** In the order they run. */
	readonly programs: Attached[];
	/** Changes whenever the hook does: attachTc's expectedRevision. 0 where the kernel keeps none. */
	readonly revision: bigint;
}

const MAX = 64;

function query(op: string, target: number, attachType: number, links: boolean): HookState {
	const ids = new Uint32Array(new ArrayBuffer(4 * MAX));
	const linkIds = new Uint32Array(new ArrayBuffer(4 * MAX));
	const a = new Struct(ATTR_QUERY, {
		target,
		attach_type: attachType,
		prog_ids: addressOf(new Uint8Array(ids.buffer)),
		prog_cnt: MAX,
		link_ids: links ? addressOf(new Uint8Array(linkIds.buffer)) : 0,
	});
	check(op, bpf(CMD.PROG_QUERY, a.bytes));
	return {
		programs: Array.from({ length: a.num('prog_cnt') }, (_, i) => ({ progId: ids[i], linkId: linkIds[i] })),
		revision: a.big('revision'),
	};
}

/** The tcx programs of a device of this thread's namespace (in another one: Netns.queryTcx). */
export function queryTcx(dev: Dev, direction: Direction): HookState {
	const op = `query tcx ${direction} of ${dev}`;
	if (!hasTcx()) throw new NotSupportedError(op, 'tcx', 'tcx needs Linux 6.6');
	return query(op, ifindexOf(dev), direction === 'ingress' ? 46 : 47, true);
}

/** The programs attached to a cgroup2 directory itself, by enum bpf_attach_type (10: connect4). */
export function queryCgroup(path: string, attachType: number): HookState {
	const op = `query cgroup ${path}`;
	let fd: number;
	try {
		fd = openSync(path, 'r');
	} catch (e) {
		throw new BpfError(op, 2, 'is it a cgroup2 directory? grep cgroup2 /proc/mounts', e);
	}
	try {
		return query(op, fd, attachType, false);
	} finally {
		closeSync(fd);
	}
}
