import { parentPort } from 'node:worker_threads';
import { type MaglevJob, maglev } from './maglev.js';

parentPort?.on('message', ({ id, jobs }: { id: number; jobs: readonly MaglevJob[] }) => {
	try {
		const tables = jobs.map((j) => maglev(j.size, j.members));
		parentPort?.postMessage(
			{ id, tables },
			tables.map((t) => t.buffer as ArrayBuffer),
		);
	} catch (error) {
		parentPort?.postMessage({ id, error: String(error) });
	}
});
