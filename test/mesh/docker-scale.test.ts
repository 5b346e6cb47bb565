/** 1000 services × 20 tasks, by an engine in another process that answers after the recorded ones. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createLister } from '../../src/mesh/sources/docker-lister.js';
import type { Mapped } from '../../src/mesh/sources/docker-map.js';
import { createEngine } from '../../src/mesh/sources/engine.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';

const SERVICES = 1000;
const TASKS = 20;
const NODES = 100;

const test = suite('a swarm of 20 000 tasks');

test('is listed whole, again and again; what that takes is printed', async () => {
	const child = spawn(
		process.execPath,
		[join(root, 'dist/test/mesh/docker-big.js'), String(SERVICES), String(TASKS), String(NODES)],
		{
			stdio: ['ignore', 'pipe', 'inherit'],
		},
	);
	let socket = '';
	child.stdout.setEncoding('utf8').on('data', (t: string) => {
		socket += t;
	});
	try {
		await waitFor('the engine', () => socket.includes('\n'), 30_000);
		let mapped: Mapped | undefined;
		let lists = 0;
		const began = performance.now();
		const lister = createLister(
			{ engine: createEngine({ place: 'fake', socketPath: socket.trim() }) },
			{
				onMapped(m) {
					mapped = m;
					lists++;
				},
				onError: (e) => console.error(e.message),
				onRecovered: () => undefined,
			},
		);
		await waitFor('the first list', () => mapped, 20_000);
		const firstMs = performance.now() - began;
		assert.is(mapped?.membership.services.length, SERVICES);
		assert.is(
			mapped?.membership.services.reduce((n, s) => n + s.tasks.length, 0),
			SERVICES * TASKS,
		);
		// Two rounds at least, so that what is measured is the pace and not its beginning.
		await waitFor('the second list', () => lists >= 2, 60_000, 100);
		const cpu = process.cpuUsage();
		const from = performance.now();
		const was = lists;
		await waitFor('two more lists', () => lists >= was + 2, 90_000, 100);
		const { user, system } = process.cpuUsage(cpu);
		const share = (user + system) / 1000 / (performance.now() - from);
		lister.close();
		console.log(
			`  first list ${firstMs.toFixed(0)} ms; then ${(share * 100).toFixed(1)} % of a core, ${((performance.now() - from) / (lists - was) / 1000).toFixed(1)} s apart; RSS ${(process.memoryUsage().rss / 1e6).toFixed(0)} MB`,
		);
	} finally {
		child.kill();
	}
});

test.run();
