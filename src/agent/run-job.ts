import { parentPort } from 'node:worker_threads';
import { codeOf, sentence } from '../errors.js';
import { run } from './exec.js';
import type { Order, Outcome } from './runner.js';

parentPort?.on('message', ({ id, command, args, input }: Order) => {
	run(command, args, input).then(
		(out) => parentPort?.postMessage({ id, out } satisfies Outcome),
		(e: unknown) => parentPort?.postMessage({ id, error: { code: codeOf(e), message: sentence(e) } } satisfies Outcome),
	);
});
