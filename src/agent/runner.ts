/**
 * Programs started by a thread of their own. Whoever starts one waits until it runs, some 5 ms at rest and up to 100 on a busy
 * node, and facts of a node take eight of them: what died must not wait for that.
 */
import { Worker } from 'node:worker_threads';
import { BeelineError } from '../errors.js';
import type { Run } from './exec.js';

export interface Order {
	readonly id: number;
	readonly command: string;
	readonly args: readonly string[];
	readonly input?: string;
}

export interface Outcome {
	readonly id: number;
	readonly out?: string;
	readonly error?: { readonly code: string; readonly message: string };
}

/** `run` as exec.ts has it. The thread is started when it is first needed; close() ends it, and what it runs ends by itself. */
export function createRunner(): { readonly run: Run; close(): Promise<void> } {
	let worker: Worker | undefined;
	let last = 0;
	const waiting = new Map<number, { readonly resolve: (out: string) => void; readonly reject: (e: Error) => void }>();

	function start(): Worker {
		const w = new Worker(new URL('./run-job.js', import.meta.url), {
			execArgv: [],
			resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 128 },
		});
		w.unref();
		w.on('message', ({ id, out, error }: Outcome) => {
			const to = waiting.get(id);
			waiting.delete(id);
			if (waiting.size === 0) w.unref();
			if (error === undefined) to?.resolve(out ?? '');
			else to?.reject(new BeelineError(error.code, error.message));
		});
		const ended = (why: string) => {
			if (worker !== w) return;
			worker = undefined;
			for (const to of waiting.values()) to.reject(new BeelineError('COMMAND_FAILED', `run programs: ${why}`));
			waiting.clear();
		};
		w.on('error', (e) => ended(e.message));
		w.on('exit', () => ended('the thread that runs them ended'));
		return w;
	}

	return {
		run: (command, args, input) =>
			new Promise((resolve, reject) => {
				worker ??= start();
				const id = ++last;
				waiting.set(id, { resolve, reject });
				// A program that runs keeps the process, as it would without the thread.
				worker.ref();
				worker.postMessage({ id, command, args: [...args], ...(input === undefined ? {} : { input }) } satisfies Order);
			}),
		async close() {
			await worker?.terminate();
		},
	};
}
