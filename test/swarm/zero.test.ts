/*
 * On a real swarm of three engines: a service without tasks is started by whoever comes, by any node, and goes back to rest.
 * Drawing of the network: ./bed.
 */
import * as assert from 'uvu/assert';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(3);
	try {
		await swarm.startAll();
		const ports = ['--publish', '8080:80', '--publish', '8053:53/udp'];
		swarm.docker(
			1,
			'service',
			'create',
			'-d',
			'--no-resolve-image',
			'--name',
			'nap',
			'--replicas',
			'2',
			'--label',
			'beeline.scale-from-zero=10s',
			'--label',
			'beeline.udp-window=1s',
			...ports,
			'beeline-test:latest',
		);
		await swarm.serving('nap', 4, 90_000);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

/** Replicas that Swarm is asked for. */
const replicas = (swarm: Swarm): number =>
	Number(swarm.docker(1, 'service', 'inspect', '-f', '{{.Spec.Mode.Replicated.Replicas}}', 'nap').trim());
const label = (swarm: Swarm): string =>
	swarm.docker(1, 'service', 'inspect', '-f', '{{index .Spec.Labels "beeline.replicas"}}', 'nap').trim();

/** No agent knows a backend, so whoever comes is held. */
async function atRest(swarm: Swarm): Promise<void> {
	await waitFor('the service to rest', () => replicas(swarm) === 0, 60_000, 300);
	await swarm.serving('nap', 0, 60_000);
}

scenario(
	'swarm: scale from zero',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('nobody comes: it goes to rest, and its replicas are kept', async ({ swarm }) => {
			assert.is(replicas(swarm), 2);
			await atRest(swarm);
			assert.is(label(swarm), '2');
		});

		test('the first clients, on all nodes at once, are served by what they started, with their address', async ({
			swarm,
		}) => {
			const reports = await Promise.all(
				[1, 2, 3].map((n) => swarm.load(['-v', '-n', 3, '-c', 3, '-t', 30_000, `${swarm.address(n)}:8080`])),
			);
			for (const r of reports) {
				assert.equal([r.failures, r.ok, Object.keys(r.clients)], [{}, 3, [swarm.client]], JSON.stringify(r));
				console.log(
					`  ${JSON.stringify((r as unknown as { rows: { connectMs: number; retransmits: number }[] }).rows.map((x) => [x.connectMs, x.retransmits]))} ms, SYNs sent again`,
				);
			}
			assert.equal([replicas(swarm), label(swarm)], [2, '']);
			const held = /^beeline_held_packets_total\{outcome="released"\} (\d+)$/m.exec(await swarm.metrics(3));
			assert.ok(Number(held?.[1]) >= 3, String(held?.[0]));
		});

		test('a client that stays keeps it awake, and a datagram wakes it too', async ({ swarm }) => {
			const r = await swarm.load(['-n', 1, '-k', 16, '-i', 1000, '-t', 5000, `${swarm.address(2)}:8080`]);
			assert.equal([r.failures, r.ok, replicas(swarm)], [{}, 16, 2], JSON.stringify(r));
			await atRest(swarm);
			const u = await swarm.udpload(['-n', 1, '-c', 1, '-t', 20_000, `${swarm.address(3)}:8053`]);
			assert.equal([u.answered, u.lost, Object.keys(u.clients)], [1, 0, [swarm.client]], JSON.stringify(u));
		});

		test('while a node’s agent is away it does not rest, and status says why', async ({ swarm }) => {
			assert.is((await swarm.load(['-n', 1, '-t', 10_000, `${swarm.address(1)}:8080`])).ok, 1);
			await swarm.stopAgent(2);
			await waitFor(
				'the manager to say so',
				async () => (await swarm.status(1)).warnings.some((w) => /do not go to rest: no agent of node2/.test(w)),
				40_000,
				300,
			);
			assert.ok(replicas(swarm) > 0);
			swarm.launch(2);
			await swarm.ready(2);
			await atRest(swarm);
		});

		test('a task that dials wakes it, and without the label it stays', async ({ swarm }) => {
			swarm.docker(1, 'network', 'create', '-d', 'overlay', 'app');
			swarm.docker(
				1,
				'service',
				'create',
				'-d',
				'--no-resolve-image',
				'--name',
				'caller',
				'--network',
				'app',
				'--constraint',
				'node.hostname==node2',
				'beeline-test:latest',
			);
			await waitFor('caller to run', () => swarm.tasks('caller').length === 1, 60_000, 200);
			const id = swarm.docker(2, 'ps', '-q', '--filter', 'label=com.docker.swarm.service.name=caller').split('\n')[0];
			const r = await swarm.loadIn(2, id, ['-n', 1, '-t', 30_000, `${swarm.address(2)}:8080`]);
			assert.equal([r.failures, r.ok], [{}, 1], JSON.stringify(r));
			swarm.docker(1, 'service', 'update', '-d', '--label-rm', 'beeline.scale-from-zero', 'nap');
			await new Promise((done) => setTimeout(done, 20_000));
			assert.is(replicas(swarm), 2);
		});
	},
);
