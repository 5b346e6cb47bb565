import { closeSync, openSync } from 'node:fs';
import {
	attachTcFd,
	attachTcxFdAsync,
	attachXdpFd,
	type Dev,
	type Direction,
	hasTcx,
	type TcAttachment,
	type XdpAttachment,
	type XdpMode,
} from './attach.js';
import { BpfError, UsageError } from './errors.js';
import { addressOf, native } from './ffi.js';
import { Struct, TEST_RUN_OPTS } from './layout.js';
import { type ClsactOps, Link } from './link.js';
import { Owned } from './owned.js';
import { CMD, check, fdById, linkCreate, type ProgramInfo, permissionHint, programInfo } from './sys.js';

/** BPF_F_TEST_XDP_LIVE_FRAMES: testRun's packets really go where the program sends them. */
export const LIVE_FRAMES = 2;

export interface TestRunOptions {
	/** The packet, from its Ethernet header (at least 14 bytes). */
	readonly data?: Uint8Array;
	/** struct xdp_md or __sk_buff; see the kernel's Documentation/bpf/bpf_prog_run.rst. */
	readonly ctx?: Uint8Array;
	readonly repeat?: number;
	/** Room for the packet the program leaves; default data.length + 512. */
	readonly outSize?: number;
	readonly flags?: number;
	/** Live frames: packets per batch, up to 256. */
	readonly batchSize?: number;
	readonly cpu?: number;
}
export interface TestRunResult {
	/** What the program returned, as a signed 32-bit number. 0 for live frames, whatever happened to them. */
	readonly retval: number;
	readonly data: Uint8Array;
	readonly ctx: Uint8Array;
	/** Mean per repetition. */
	readonly durationNs: number;
}

export interface RunnerOptions {
	/** Bytes; likewise ctxSize and outSize (default dataSize + 512). */
	readonly dataSize: number;
	readonly ctxSize?: number;
	readonly outSize?: number;
	readonly repeat?: number;
	readonly flags?: number;
	readonly batchSize?: number;
	readonly cpu?: number;
}
const AT = TEST_RUN_OPTS.at;
const room = (n: number): Uint8Array => new Uint8Array(new ArrayBuffer(n));

/** Program.testRun without allocation: fill `data` (and `ctx`), call run(), read `out`. All buffers are reused. */
export class Runner {
	readonly data: Uint8Array;
	readonly out: Uint8Array;
	readonly ctx: Uint8Array;
	readonly ctxOut: Uint8Array;
	private readonly opts = new Struct(TEST_RUN_OPTS);
	private readonly dv: DataView;
	private readonly n = native();
	/** Bytes offered to the kernel for its answers; 0 means a null pointer, which it insists on. */
	private outSize = -1;
	private ctxSize = -1;

	constructor(
		private readonly program: Program,
		o: RunnerOptions,
	) {
		this.data = room(o.dataSize);
		this.out = room(o.outSize ?? (o.dataSize ? o.dataSize + 512 : 0));
		this.ctx = room(o.ctxSize ?? 0);
		this.ctxOut = room(o.ctxSize ?? 0);
		this.dv = new DataView(this.opts.bytes.buffer);
		if (this.data.length) this.opts.set('data_in', addressOf(this.data));
		this.configure(o, this.out.length, this.ctx.length);
	}

	/** @internal */
	configure(o: Omit<RunnerOptions, 'dataSize'>, outSize: number, ctxSize: number): void {
		const live = ((o.flags ?? 0) & LIVE_FRAMES) !== 0;
		this.dv.setInt32(AT.repeat, o.repeat ?? 1, true);
		this.dv.setUint32(AT.flags, o.flags ?? 0, true);
		this.dv.setUint32(AT.batch_size, o.batchSize ?? 0, true);
		this.dv.setUint32(AT.cpu, o.cpu ?? 0, true);
		const out = live ? 0 : outSize;
		if (out !== this.outSize) this.opts.set('data_out', out ? addressOf(this.out) : 0n);
		this.outSize = out;
		const ctx = live && ctxSize ? -2 : ctxSize;
		if (ctx !== this.ctxSize) {
			this.opts.set('ctx_in', ctxSize ? addressOf(this.ctx) : 0n);
			this.opts.set('ctx_out', ctx > 0 ? addressOf(this.ctxOut) : 0n);
		}
		this.ctxSize = ctx;
	}

	/** Runs on the first `dataLength` bytes of `data`; returns the program's result (signed). */
	run(dataLength = this.data.length, ctxLength = this.ctx.length): number {
		const { dv } = this;
		if (dataLength > this.data.length || ctxLength > this.ctx.length)
			throw new UsageError(`test run: ${dataLength} bytes of data and ${ctxLength} of ctx exceed the runner's buffers`);
		dv.setUint32(AT.data_size_in, dataLength, true);
		dv.setUint32(AT.data_size_out, this.outSize, true);
		dv.setUint32(AT.ctx_size_in, ctxLength, true);
		dv.setUint32(AT.ctx_size_out, this.ctxSize > 0 ? ctxLength : 0, true);
		dv.setUint32(AT.retval, 0, true);
		const r = this.n.testRun(this.program.fd, this.opts.bytes);
		if (r < 0) this.fail(-r);
		return dv.getInt32(AT.retval, true);
	}
	private fail(errno: number): never {
		throw new BpfError(
			`test run of program ${this.program.name}`,
			errno,
			errno === 28
				? `the packet it leaves is larger than outSize ${this.outSize}`
				: errno === 22
					? 'is the packet at least 14 bytes, the ctx as the kernel wants it, and flags fit for this type?'
					: errno === 524 || errno === 95
						? 'programs of this type have no test run'
						: permissionHint(errno),
		);
	}
	/** Bytes of `out` the last run filled. */
	get outLength(): number {
		return this.outSize ? Math.min(this.dv.getUint32(AT.data_size_out, true), this.out.length) : 0;
	}
	get ctxOutLength(): number {
		return this.ctxSize > 0 ? this.dv.getUint32(AT.ctx_size_out, true) : 0;
	}
	/** Mean per repetition of the last run. */
	get durationNs(): number {
		return this.dv.getUint32(AT.duration, true);
	}
	set repeat(n: number) {
		this.dv.setInt32(AT.repeat, n, true);
	}
}

/** @internal The Link of an attachment made here or by a namespace Worker. */
export function xdpLink(a: XdpAttachment, dev: Dev): Link {
	const fallback = a.fallback && new BpfError(`attach native xdp to ${dev}`, a.fallback.errno);
	return new Link('xdp', a.fd, { mode: a.mode, fallback });
}
/** @internal */
export function tcLink(a: TcAttachment, clsact?: ClsactOps): Link {
	return a.kind === 'tcx' ? new Link('tcx', a.fd) : new Link('clsact', -1, { filter: a.filter, clsact });
}

export interface AttachTcOptions {
	/** auto: tcx where the kernel has it (6.6), else clsact. */
	readonly via?: 'tcx' | 'clsact' | 'auto';
	readonly before?: Link;
	readonly after?: Link;
	/** tcx: ahead of all that is on the hook. */
	readonly first?: boolean;
	readonly expectedRevision?: bigint;
	/** clsact only; default 1 and 1. */
	readonly priority?: number;
	readonly handle?: number;
}

export class Program extends Owned {
	private programId = 0;

	/** @internal Programs come from a BpfObject or fromPin. */
	constructor(
		fd: number,
		name: string,
		owned: boolean,
		/** enum bpf_attach_type the program was loaded for; unknown for a program opened from a pin. */
		readonly expectedAttachType?: number,
		readonly section?: string,
	) {
		super('program', fd, name || programInfo(fd).name, owned, 'is closed or was not loaded');
	}

	static fromPin(path: string): Program {
		return new Program(
			check(`open pinned program ${path}`, native().get(path), `is a program pinned there? ls -l ${path}`),
			'',
			true,
		);
	}
	static fromId(id: number): Program {
		return new Program(check(`open program ${id}`, fdById(CMD.PROG_GET_FD_BY_ID, id)), '', true);
	}

	get id(): number {
		this.programId ||= this.info().id;
		return this.programId;
	}
	info(): ProgramInfo {
		return programInfo(this.fd);
	}

	/** `auto`: native, then generic where the driver refuses; the link's `mode` says which. */
	attachXdp(dev: Dev, o: { mode?: XdpMode | 'auto' } = {}): Link {
		return xdpLink(attachXdpFd(this.fd, dev, o.mode ?? 'auto'), dev);
	}
	attachTc(dev: Dev, direction: Direction, o: AttachTcOptions = {}): Link {
		const { before, after, ...rest } = o;
		return tcLink(attachTcFd(this.fd, dev, direction, { ...rest, beforeFd: before?.fd, afterFd: after?.fd }));
	}
	/**
	 * As attachTc() by number, last of its hook or first; where the kernel has tcx the caller's thread does not wait for the
	 * lock of all interfaces. The rest of `o` is for clsact.
	 */
	async attachTcAsync(ifindex: number, direction: Direction, o: AttachTcOptions = {}): Promise<Link> {
		if (!hasTcx()) return this.attachTc(ifindex, direction, o);
		return tcLink(await attachTcxFdAsync(this.fd, ifindex, direction, o.first));
	}
	/** A cgroup2 directory or an fd of one. `attachType` only for programs opened from a pin. */
	attachCgroup(cgroup: string | number, o: { attachType?: number } = {}): Link {
		const type = o.attachType ?? this.expectedAttachType;
		if (type === undefined)
			throw new UsageError(`attach program ${this.name} to a cgroup: it was opened from a pin, so give its attachType`);
		const op = `attach program ${this.name} to cgroup ${cgroup}`;
		let dir = -1;
		if (typeof cgroup === 'string') {
			try {
				dir = openSync(cgroup, 'r');
			} catch (e) {
				throw new BpfError(op, 2, 'is it a cgroup2 directory? grep cgroup2 /proc/mounts', e);
			}
		}
		try {
			const r = linkCreate(this.fd, typeof cgroup === 'number' ? cgroup : dir, type);
			const hint =
				r === -9
					? 'it is not a cgroup2 directory: grep cgroup2 /proc/mounts'
					: r === -22
						? 'the program type does not attach to cgroups, or another attach type was loaded'
						: r === -1
							? 'a program without BPF_F_ALLOW_MULTI is attached there or above: bpftool cgroup tree'
							: '';
			return new Link('cgroup', check(op, r, hint));
		} finally {
			if (dir >= 0) closeSync(dir);
		}
	}

	/** One run in the kernel. The answer is the caller's to keep; for a run without copies, see runner(). */
	testRun(o: TestRunOptions = {}): TestRunResult {
		const size = o.data?.length ?? 0;
		const ctxSize = o.ctx?.length ?? 0;
		const outSize = o.outSize ?? (size ? size + 512 : 0);
		let r = this.spare;
		if (!r || r.data.length < size || r.out.length < outSize || r.ctx.length < ctxSize) {
			r = new Runner(this, {
				dataSize: Math.max(2048, size, r?.data.length ?? 0),
				outSize: Math.max(4096, outSize, r?.out.length ?? 0),
				ctxSize: Math.max(ctxSize, r?.ctx.length ?? 0),
			});
			this.spare = r;
		}
		r.configure(o, outSize, ctxSize);
		if (o.data) r.data.set(o.data);
		if (o.ctx) r.ctx.set(o.ctx);
		const retval = r.run(size, ctxSize);
		return {
			retval,
			data: r.out.slice(0, r.outLength),
			ctx: r.ctxOut.slice(0, r.ctxOutLength),
			durationNs: r.durationNs,
		};
	}
	private spare: Runner | undefined;
	/** For 10⁶ runs: native buffers made once. */
	runner(o: RunnerOptions): Runner {
		return new Runner(this, o);
	}
}
