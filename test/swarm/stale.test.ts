/*
 * Nodes of a swarm (./bed, two engines) without an agent for longer than `staleAfter`, on a kernel without IPVS, where Docker's own
 * mesh does not answer. Where it does: test/vm/ipvs.
 */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import type { LoadReport } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const config = { datapath: { staleAfter: '2s' } };

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(2);
	try {
		const create = ['service', 'create', '-d', '--no-resolve-image', '--name', 'web', '--replicas', '2'];
		const more = ['--label', 'beeline.drain-timeout=1s', '--stop-grace-period', '1s', 'beeline-test:latest'];
		swarm.docker(1, ...create, '--publish', '8080:80', '--publish', '8053:53/udp', ...more);
		await waitFor('web to run', () => swarm.tasks('web').length === 2, 45_000, 200);
		for (const n of [1, 2]) swarm.launch(n, config);
		for (const n of [1, 2]) await swarm.ready(n);
		await swarm.serving('web', 4);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function lossless(r: LoadReport, what: string): void {
	assert.equal([r.failures, r.ok], [{}, r.connections], `${what}: ${JSON.stringify({ ...r, rows: undefined })}`);
}

scenario(
	'stale',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		const dial = (swarm: Swarm, node: number) =>
			swarm.load(['-n', 40, '-c', 5, '-t', 3000, ...swarm.targets(8080, [node])]);

		test('killed for longer than staleAfter where no mesh of the kernel answers: the tables keep serving', async ({
			swarm,
		}) => {
			if (existsSync('/proc/net/ip_vs')) return skip('no mesh of the kernel', 'this kernel has IPVS');
			for (const n of [1, 2]) await swarm.stopAgent(n, 'SIGKILL');
			await sleep(3000);
			for (const n of [1, 2]) {
				const r = await dial(swarm, n);
				lossless(r, `node${n}`);
				assert.equal(Object.keys(r.clients), [swarm.client]);
				const u = await swarm.udpload(['-n', 2, '-c', 10, '-t', 2000, ...swarm.targets(8053, [n])]);
				assert.is(u.lost, 0, JSON.stringify(u));
			}
			for (const n of [1, 2]) await swarm.start(n, config);
		});

		test('a drained node whose agent is told to end serves on where no mesh of the kernel answers', async ({
			swarm,
		}) => {
			if (existsSync('/proc/net/ip_vs')) return skip('no mesh of the kernel', 'this kernel has IPVS');
			swarm.docker(1, 'node', 'update', '--availability', 'drain', 'node2');
			await waitFor(
				'node2 to know that it is drained',
				async () => (await swarm.nodeViews(2)).find((n) => n.name === 'node2')?.state === 'drained',
				20_000,
			);
			await waitFor('tasks to leave node2', () => swarm.tasks('web').every((t) => t.node === 'node1'), 45_000, 300);
			await swarm.serving('web', 4);
			await swarm.stopAgent(2);
			await sleep(3000);
			lossless(await dial(swarm, 2), 'node2');
			swarm.docker(1, 'node', 'update', '--availability', 'active', 'node2');
			await swarm.start(2, config);
		});
	},
);
