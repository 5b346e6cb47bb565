// Other network namespaces. setns() on the main thread would leak into libuv's threads; a Worker is one OS thread that
// enters the namespace and ends with it. fds are the process's, so links made there outlive the Worker.
import { stat } from 'node:fs/promises';
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import type { ClsactFilter, Dev, Direction, TcAttachment, TcOptions, XdpAttachment, XdpMode } from './attach.js';
import { BpfError, UsageError } from './errors.js';
import type { ClsactOps, Link } from './link.js';
import { type AttachTcOptions, type Program, tcLink, xdpLink } from './program.js';
import type { HookState } from './query.js';
import { nsPath } from './sys.js';

export interface ExecResult {
	readonly status: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

/** @internal What the Worker does, by name. */
export interface NetnsOps {
	xdp(progFd: number, dev: Dev, mode: XdpMode | 'auto'): XdpAttachment;
	tc(progFd: number, dev: Dev, direction: Direction, o: TcOptions): TcAttachment;
	clsactReplace(progFd: number, f: ClsactFilter): void;
	clsactProgram(f: ClsactFilter): number | undefined;
	clsactDetach(f: ClsactFilter): boolean;
	queryTcx(dev: Dev, direction: Direction): HookState;
	exec(command: string, args: readonly string[], input: string | undefined): Promise<ExecResult>;
	ifindex(name: string): number;
	cookie(): bigint;
	run(module: string, args: unknown): Promise<unknown>;
	visit(path: string, module: string, args: unknown): Promise<unknown>;
}
/** @internal */
export interface Request {
	readonly id: number;
	readonly op: keyof NetnsOps;
	readonly args: readonly unknown[];
	/** Set and notified when the answer has been posted, for a caller that blocks. */
	readonly done?: Int32Array;
}
/** @internal */
export interface Answer {
	readonly id: number;
	readonly result?: unknown;
	readonly error?: { message: string; name: string; op?: string; errno?: number; hint?: string; stack?: string };
}

const SYNC_LIMIT_MS = 10_000;

function revive(e: NonNullable<Answer['error']>): Error {
	if (e.op !== undefined && e.errno) return new BpfError(e.op, e.errno, e.hint);
	if (e.name === 'UsageError') return new UsageError(e.message);
	const err = new Error(e.message);
	err.name = e.name;
	if (e.stack) err.stack = e.stack;
	return err;
}

/** A thread that sits in one network namespace until close(). */
export class Netns implements AsyncDisposable {
	private nextId = 1;
	private readonly waiting = new Map<number, { done: (v: unknown) => void; fail: (e: Error) => void }>();
	private readonly exited: Promise<void>;
	private closed = false;

	/** @internal Use openNetns(). */
	constructor(
		readonly path: string,
		private readonly worker: Worker,
		private readonly port: MessagePort,
	) {
		port.on('message', (a: Answer) => this.settle(a));
		this.exited = new Promise((done) => worker.once('exit', () => done()));
		void this.exited.then(() => {
			this.closed = true;
			port.close();
			for (const w of this.waiting.values()) w.fail(new UsageError(`the thread in ${path} has ended`));
			this.waiting.clear();
		});
	}

	private settle(a: Answer): void {
		const w = this.waiting.get(a.id);
		this.waiting.delete(a.id);
		if (a.error) w?.fail(revive(a.error));
		else w?.done(a.result);
		this.keepAlive();
	}
	/** Only calls under way keep the process alive. */
	private keepAlive(): void {
		if (this.closed) return;
		if (this.waiting.size) this.port.ref();
		else this.port.unref();
	}
	private open(): void {
		if (this.closed) throw new UsageError(`network namespace ${this.path} is closed`);
	}

	/** @internal */
	call<K extends keyof NetnsOps>(op: K, ...args: Parameters<NetnsOps[K]>): Promise<Awaited<ReturnType<NetnsOps[K]>>> {
		this.open();
		const id = this.nextId++;
		return new Promise((done, fail) => {
			this.waiting.set(id, { done: done as (v: unknown) => void, fail });
			this.keepAlive();
			this.port.postMessage({ id, op, args } satisfies Request);
		});
	}
	/** @internal For Link.update and detach of clsact filters, which cannot wait: blocks this thread. */
	callSync<K extends keyof NetnsOps>(op: K, ...args: Parameters<NetnsOps[K]>): Awaited<ReturnType<NetnsOps[K]>> {
		this.open();
		const id = this.nextId++;
		const done = new Int32Array(new SharedArrayBuffer(4));
		this.port.postMessage({ id, op, args, done } satisfies Request);
		if (Atomics.wait(done, 0, 0, SYNC_LIMIT_MS) === 'timed-out')
			throw new BpfError(`${op} in ${this.path}`, 110, `no answer in ${SYNC_LIMIT_MS} ms`);
		for (;;) {
			const got = receiveMessageOnPort(this.port) as { message: Answer } | undefined;
			if (!got) throw new UsageError(`${op} in ${this.path}: no answer`);
			if (got.message.id !== id) {
				this.settle(got.message);
				continue;
			}
			if (got.message.error) throw revive(got.message.error);
			return got.message.result as Awaited<ReturnType<NetnsOps[K]>>;
		}
	}

	/** `dev`: name or index within that namespace. */
	async attachXdp(program: Program, dev: Dev, o: { mode?: XdpMode | 'auto' } = {}): Promise<Link> {
		return xdpLink(await this.call('xdp', program.fd, dev, o.mode ?? 'auto'), dev);
	}
	/** A clsact link made here needs this Netns open for update() and detach(); a tcx link does not. */
	async attachTc(program: Program, dev: Dev, direction: Direction, o: AttachTcOptions = {}): Promise<Link> {
		const { before, after, ...rest } = o;
		const a = await this.call('tc', program.fd, dev, direction, { ...rest, beforeFd: before?.fd, afterFd: after?.fd });
		return tcLink(a, this.clsact);
	}
	private readonly clsact: ClsactOps = {
		replace: (fd, f) => this.callSync('clsactReplace', fd, f),
		program: (f) => this.callSync('clsactProgram', f),
		detach: (f) => this.callSync('clsactDetach', f),
	};

	/** The tcx programs of a device there. */
	queryTcx(dev: Dev, direction: Direction): Promise<HookState> {
		return this.call('queryTcx', dev, direction);
	}
	/** Runs a command in the namespace. It does not throw for a non-zero status. */
	exec(command: string, args: readonly string[] = [], o: { input?: string } = {}): Promise<ExecResult> {
		return this.call('exec', command, args, o.input);
	}
	ifindex(name: string): Promise<number> {
		return this.call('ifindex', name);
	}
	/** SO_NETNS_COOKIE: what bpf_get_netns_cookie() returns there. */
	cookie(): Promise<bigint> {
		return this.call('cookie');
	}
	/** Imports a module in the Worker and calls its `run` (or default) export with `args` (both cloned). */
	run<T>(job: { module: URL; args?: unknown }): Promise<T> {
		return this.call('run', job.module.href, job.args) as Promise<T>;
	}

	/**
	 * Calls the module's function in another namespace, and comes back: one thread sees hundreds of them, a millisecond each.
	 * The function must be done when it returns. @throws BpfError where `netns` (as openNetns) is no namespace, or none yet
	 */
	visit<T>(netns: string, job: { module: URL; args?: unknown }): Promise<T> {
		return this.call('visit', nsPath(netns), job.module.href, job.args) as Promise<T>;
	}

	/** Ends the thread. Links made through it stay. */
	async close(): Promise<void> {
		if (!this.closed) {
			this.closed = true;
			this.worker.ref();
			this.worker.postMessage('close');
		}
		await this.exited;
	}
	[Symbol.asyncDispose](): Promise<void> {
		return this.close();
	}
}

/** Opens a namespace by name under /run/netns, by path (`/proc/PID/ns/net`), or by fd. */
export async function openNetns(netns: string | number): Promise<Netns> {
	const path = typeof netns === 'number' ? `/proc/self/fd/${netns}` : nsPath(netns);
	// libuv's threads are made by whoever needs them first and inherit its namespace: have them made here.
	await stat('/');
	const { port1, port2 } = new MessageChannel();
	const self = import.meta.url;
	const worker = new Worker(new URL(`./netns-worker${self.endsWith('.ts') ? '.ts' : '.js'}`, self), {
		workerData: { path, port: port2 },
		transferList: [port2],
	});
	await new Promise<void>((done, fail) => {
		worker.once('message', (m: 'ready' | NonNullable<Answer['error']>) => (m === 'ready' ? done() : fail(revive(m))));
		worker.once('error', fail);
		worker.once('exit', (code) => fail(new UsageError(`the thread for ${path} ended with ${code}`)));
	}).catch(async (e) => {
		port1.close();
		await worker.terminate();
		throw e;
	});
	worker.removeAllListeners();
	worker.on('error', () => {});
	worker.unref();
	port1.unref();
	return new Netns(path, worker, port1);
}

/** One job in a namespace, in a thread of its own. fds in the result are valid here. */
export async function inNetns<T>(netns: string | number, job: { module: URL; args?: unknown }): Promise<T> {
	const ns = await openNetns(netns);
	try {
		return await ns.run<T>(job);
	} finally {
		await ns.close();
	}
}
