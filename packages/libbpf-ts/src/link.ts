import { unlinkSync } from 'node:fs';
import {
	attachClsact,
	type ClsactFilter,
	clsactProgram,
	type Direction,
	detachClsact,
	type XdpMode,
} from './attach.js';
import { BpfError, UsageError } from './errors.js';
import { native } from './ffi.js';
import type { Program } from './program.js';
import { CMD, check, closeFd, fdById, linkDetach, linkInfo, linkUpdate, permissionHint, programInfo } from './sys.js';

export type LinkKind = 'xdp' | 'tcx' | 'clsact' | 'cgroup' | 'other';
export interface LinkInfo {
	/** 0 for clsact, which is no kernel object. */
	readonly id: number;
	readonly kind: LinkKind;
	readonly progId: number;
	/** xdp, tcx, clsact: 0 when the interface is gone (the link is severed). */
	readonly ifindex?: number;
	/** enum bpf_attach_type: 37 xdp, 46 tcx ingress, 47 tcx egress, … */
	readonly attachType?: number;
	readonly cgroupId?: bigint;
}

const KIND_OF_TYPE: Record<number, LinkKind> = { 3: 'cgroup', 6: 'xdp', 11: 'tcx' };

/** What to do for a clsact filter, which lives in one network namespace: here, or in a Worker's. */
export interface ClsactOps {
	replace(progFd: number, f: ClsactFilter): void;
	program(f: ClsactFilter): number | undefined;
	detach(f: ClsactFilter): boolean;
}
const HERE: ClsactOps = {
	replace: (progFd, f) => void attachClsact(progFd, f.ifindex, f.direction, f.priority, f.handle, true),
	program: clsactProgram,
	detach: detachClsact,
};

/**
 * A program attached somewhere. Disposing of it closes the fd: an unpinned link detaches, a pinned one stays.
 * A clsact filter is no kernel link and cannot be pinned: dispose() detaches it, disown() leaves it.
 */
export class Link implements Disposable {
	private handle: number;
	private filter: ClsactFilter | undefined;
	private pinnedAt: string | undefined;
	/** xdp: how it was attached, where this process attached it. */
	readonly mode: XdpMode | undefined;
	/** xdp, mode auto: why native was refused. */
	readonly fallback: BpfError | undefined;

	/** @internal Use Program.attach… or Link.fromPin. */
	constructor(
		readonly kind: LinkKind,
		fd: number,
		o: {
			mode?: XdpMode;
			fallback?: BpfError;
			filter?: ClsactFilter;
			pinnedAt?: string;
			clsact?: ClsactOps;
		} = {},
	) {
		this.handle = fd;
		this.mode = o.mode;
		this.fallback = o.fallback;
		this.filter = o.filter;
		this.pinnedAt = o.pinnedAt;
		this.clsact = o.clsact ?? HERE;
	}
	private readonly clsact: ClsactOps;

	static fromPin(path: string): Link {
		const fd = check(`open pinned link ${path}`, native().get(path), `is a link pinned there? ls -l ${path}`);
		return Link.fromFd(fd, path);
	}
	static fromId(id: number): Link {
		return Link.fromFd(check(`open link ${id}`, fdById(CMD.LINK_GET_FD_BY_ID, id)));
	}
	/** Takes the fd over. */
	static fromFd(fd: number, pinnedAt?: string): Link {
		try {
			return new Link(KIND_OF_TYPE[linkInfo(fd).num('type')] ?? 'other', fd, { pinnedAt });
		} catch (e) {
			closeFd(fd);
			throw e;
		}
	}
	/** A clsact filter attached earlier, by this process or another. */
	static clsact(filter: ClsactFilter): Link | undefined {
		return clsactProgram(filter) === undefined ? undefined : new Link('clsact', -1, { filter });
	}

	/** -1 for clsact. */
	get fd(): number {
		if (this.kind !== 'clsact' && this.handle < 0) throw new UsageError('the link is closed');
		return this.handle;
	}
	/** Where it is pinned, as far as this object knows. */
	get pinPath(): string | undefined {
		return this.pinnedAt;
	}
	/** Interface, direction, priority and handle of a clsact filter. */
	get clsactFilter(): ClsactFilter | undefined {
		return this.filter;
	}

	/** Swaps the program without a gap. With `expect`, only if that program is the one attached (EPERM otherwise). */
	update(next: Program, o: { expect?: Program } = {}): void {
		const op = `update ${this.kind} link to program ${next.name}`;
		if (this.kind === 'clsact') {
			const f = this.needFilter();
			if (o.expect && this.clsact.program(f) !== o.expect.id)
				throw new BpfError(op, 1, `program ${o.expect.name} is not the one attached`);
			this.clsact.replace(next.fd, f);
			return;
		}
		const r = linkUpdate(this.fd, next.fd, o.expect?.fd);
		if (r < 0)
			throw new BpfError(
				op,
				-r,
				r === -67
					? 'the interface or its namespace is gone: unpin this link and attach anew'
					: r === -1 && o.expect
						? `program ${o.expect.name} is not the one attached`
						: r === -22
							? 'is the program of the same type and attach type?'
							: permissionHint(-r),
			);
	}

	info(): LinkInfo {
		if (this.kind === 'clsact') {
			const f = this.needFilter();
			const progId = this.clsact.program(f);
			return { id: 0, kind: 'clsact', progId: progId ?? 0, ifindex: progId === undefined ? 0 : f.ifindex };
		}
		const s = linkInfo(this.fd);
		const base = { id: s.num('id'), kind: this.kind, progId: s.num('prog_id') };
		switch (this.kind) {
			case 'xdp':
				return { ...base, ifindex: s.u32At(16), attachType: 37 };
			case 'tcx':
				return { ...base, ifindex: s.u32At(16), attachType: s.u32At(20) };
			case 'cgroup':
				return { ...base, cgroupId: s.u64At(16), attachType: s.u32At(24) };
			default:
				return base;
		}
	}

	/** The path must lie on a bpffs. */
	pin(path: string): void {
		if (this.kind === 'clsact')
			throw new UsageError('a clsact filter cannot be pinned: it stays by itself once disown() is called');
		check(
			`pin ${this.kind} link to ${path}`,
			native().pin(this.fd, path),
			'is the directory there, on a bpffs, and the name free?',
		);
		this.pinnedAt = path;
	}
	/** Removes the pin this object knows of; the link then lives as long as an fd does. */
	unpin(): void {
		if (this.pinnedAt === undefined) throw new UsageError('the link is not pinned');
		unlinkSync(this.pinnedAt);
		this.pinnedAt = undefined;
	}
	/** Detaches at once, pinned or not; a pin file stays until unpin(). */
	detach(): void {
		if (this.kind === 'clsact') {
			if (this.filter) this.clsact.detach(this.filter);
			this.filter = undefined;
			return;
		}
		check(`detach ${this.kind} link`, linkDetach(this.fd));
	}
	/** Closes this handle and leaves a clsact filter attached. */
	disown(): void {
		this.filter = undefined;
		closeFd(this.handle);
		this.handle = -1;
	}
	private needFilter(): ClsactFilter {
		if (!this.filter) throw new UsageError('the clsact filter is detached');
		return this.filter;
	}
	[Symbol.dispose](): void {
		if (this.kind === 'clsact') this.detach();
		closeFd(this.handle);
		this.handle = -1;
	}
}

export const directionOf = (attachType: number): Direction | undefined =>
	attachType === 46 ? 'ingress' : attachType === 47 ? 'egress' : undefined;
export { programInfo };
