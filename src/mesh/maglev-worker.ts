import { parentPort } from 'node:worker_threads';
import { maglev, type Task } from './maglev.js';

parentPort?.on('message', ({ id, jobs, memory, at }: Task) => {
	try {
		let from = at;
		for (const { size, members } of jobs) {
			maglev(size, members, new Uint32Array(memory, from, size));
			from += size * 4;
		}
		parentPort?.postMessage({ id });
	} catch (error) {
		parentPort?.postMessage({ id, error: String(error) });
	}
});
