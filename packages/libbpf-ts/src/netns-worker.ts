// The Worker behind Netns: enters the namespace, then answers requests. Uses only synchronous calls and child
// processes, both of which stay on this thread; libuv's pool belongs to the main namespace.
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { attachClsact, attachTcFd, attachXdpFd, clsactProgram, detachClsact } from './attach.js';
import { BpfError } from './errors.js';
import type { Answer, ExecResult, NetnsOps, Request } from './netns.js';
import { queryTcx } from './query.js';
import { ifindexOf, netnsCookie, setNetns } from './sys.js';

const ops: NetnsOps = {
	xdp: attachXdpFd,
	tc: attachTcFd,
	clsactReplace: (progFd, f) => void attachClsact(progFd, f.ifindex, f.direction, f.priority, f.handle, true),
	clsactProgram,
	clsactDetach: detachClsact,
	queryTcx,
	ifindex: ifindexOf,
	cookie: netnsCookie,
	exec: (command, args, input) =>
		new Promise<ExecResult>((done, fail) => {
			const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
			const out = { stdout: '', stderr: '' };
			for (const s of ['stdout', 'stderr'] as const)
				child[s].setEncoding('utf8').on('data', (d: string) => {
					out[s] += d;
				});
			child.on('error', fail);
			child.on('close', (status) => done({ status, ...out }));
			child.stdin.on('error', () => {});
			child.stdin.end(input ?? '');
		}),
	async run(module, args) {
		return (await jobOf(module))(args);
	},
	async visit(path, module, args) {
		const job = await jobOf(module);
		// From here to the way back nothing may wait, or another request would be answered from there.
		enter(path);
		try {
			return job(args);
		} finally {
			setNetns(home);
		}
	},
};

async function jobOf(module: string): Promise<(a: unknown) => unknown> {
	const m = (await import(module)) as { run?: (a: unknown) => unknown; default?: (a: unknown) => unknown };
	const f = m.run ?? m.default;
	if (typeof f !== 'function') throw new TypeError(`${module} exports neither run nor a default function`);
	return f;
}

function enter(path: string): void {
	let fd: number;
	try {
		fd = openSync(path, 'r');
	} catch (e) {
		throw new BpfError(`open network namespace ${path}`, 2, 'it cannot be opened', e);
	}
	try {
		setNetns(fd);
	} finally {
		closeSync(fd);
	}
}

function plain(e: unknown): NonNullable<Answer['error']> {
	if (e instanceof BpfError) return { name: e.name, message: e.message, op: e.op, errno: e.errno, hint: e.hint };
	if (e instanceof Error) return { name: e.name, message: e.message, stack: e.stack };
	return { name: 'Error', message: String(e) };
}

const { path, port } = workerData as { path: string; port: MessagePort };
const parent = parentPort!;
let home = -1;

try {
	enter(path);
	// The thread's own: /proc/self would be the main thread's.
	home = openSync('/proc/thread-self/ns/net', 'r');
	port.on('message', async ({ id, op, args, done }: Request) => {
		let answer: Answer;
		try {
			const f = ops[op] as (...a: readonly unknown[]) => unknown;
			const r = f(...args);
			answer = { id, result: r instanceof Promise ? await r : r };
		} catch (e) {
			answer = { id, error: plain(e) };
		}
		port.postMessage(answer);
		if (done) {
			Atomics.store(done, 0, 1);
			Atomics.notify(done, 0);
		}
	});
	parent.once('message', () => {
		port.close();
		parent.close();
	});
	parent.postMessage('ready');
} catch (e) {
	parent.postMessage(plain(e));
	port.close();
}
