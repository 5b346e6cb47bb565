/*
 * docker/stack.yaml on a real swarm of three engines (./bed), all of them managers: installed under a service that runs
 * already, followed through promote, demote and drain, and taken away again.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { LoadReport } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { IMPORT_ARGS, makeAgentImage } from './image.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const image = 'beeline:test';

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	// `docker save` of what docker/Dockerfile built, where somebody has built it; else the same programs from this machine.
	const saved = process.env.BEELINE_TEST_IMAGE;
	const made = saved === undefined ? await makeAgentImage(`bl${process.pid}-swarm`) : undefined;
	const swarm = Swarm.up(3, 3);
	try {
		for (const n of [1, 2, 3])
			if (made !== undefined) swarm.docker(n, 'import', ...IMPORT_ARGS, made.tar, image);
			else {
				const id = /Loaded image(?: ID)?: (\S+)/.exec(swarm.docker(n, 'load', '-i', saved as string))?.[1] ?? '';
				swarm.docker(n, 'tag', id, image);
			}
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	} finally {
		if (made !== undefined) rmSync(made.directory, { recursive: true, force: true });
	}
}

/** What a node's agent printed, by Docker. */
function logs(swarm: Swarm, node: number): string {
	const id = swarm
		.docker(node, 'ps', '-aq', '--filter', 'label=com.docker.swarm.service.name=beeline_agent')
		.split('\n')[0];
	return id === ''
		? 'no container'
		: swarm.exec(node, ['docker', 'logs', '--tail', '30', id], true).stdout +
				swarm.exec(node, ['docker', 'logs', '--tail', '30', id], true).stderr;
}

scenario(
	'stack',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('docker stack deploy, and a service that ran before is served on every node', async ({ swarm }) => {
			const create = ['service', 'create', '-d', '--no-resolve-image', '--name', 'web', '--mode', 'global'];
			swarm.docker(1, ...create, '--publish', '8080:80', '--stop-grace-period', '2s', 'beeline-test:latest');
			await waitFor('web to run', () => swarm.tasks('web').length === 3, 45_000, 200);
			process.env.BEELINE_IMAGE = image;
			swarm.docker(1, 'stack', 'deploy', '--resolve-image', 'never', '-c', join(root, 'docker/stack.yaml'), 'beeline');
			for (const n of [1, 2, 3]) {
				swarm.installed(n);
				await waitFor(`the agent of node${n}`, async () => (await swarm.status(n)).ready, 60_000, 200).catch(
					(e: Error) => {
						throw new Error(
							`${e.message}\n${logs(swarm, n)}\n${swarm.docker(1, 'service', 'ps', '--no-trunc', 'beeline_agent')}`,
						);
					},
				);
			}
			await swarm.serving('web', 3);
			for (const node of [1, 2, 3]) {
				const r = await swarm.load(['-n', 60, '-c', 5, '-t', 3000, ...swarm.targets(8080, [node])]);
				assert.equal([r.ok, r.failures], [60, {}], `${JSON.stringify(r)}\n${logs(swarm, node)}`);
				assert.is(Object.keys(r.backends).length, 3, JSON.stringify(r.backends));
				assert.equal(Object.keys(r.clients), [swarm.client]);
			}
			for (const n of [1, 2, 3]) assert.equal((await swarm.status(n)).refused, [], `node${n}`);
		});

		test('its agents see the namespaces of tasks: a VIP is answered', async ({ swarm }) => {
			swarm.docker(1, 'network', 'create', '-d', 'overlay', '--attachable', 'xnet');
			for (const [name, ...more] of [
				['x-client', '--mode', 'global'],
				['x-web', '--replicas', '3'],
			])
				swarm.docker(
					1,
					...['service', 'create', '-d', '--no-resolve-image', '--name', name, '--network', 'xnet'],
					...['--stop-grace-period', '1s', ...more, 'beeline-test:latest'],
				);
			for (const n of [1, 2, 3])
				await waitFor(
					`node${n} to know x-web`,
					async () =>
						(await swarm.services(n)).find((s) => s.name === 'x-web')?.vips[0]?.tasks.active === 3 &&
						swarm.tasks('x-client').length === 3,
					60_000,
					200,
				);
			const [vip] = (await swarm.services(1)).find((s) => s.name === 'x-web')!.vips;
			for (const n of [1, 2, 3]) {
				const client = await swarm.container(n, 'x-client');
				const r = await swarm.inside<LoadReport>(n, client, ['/load', '-n', 30, '-t', 3000, `${vip.address}:80`]);
				assert.equal([r.ok, r.failures], [30, {}], `node${n}: ${logs(swarm, n)}`);
				assert.equal(
					(await swarm.status(n)).warnings.filter((w) => w.includes('netns')),
					[],
				);
			}
			swarm.docker(1, 'service', 'rm', 'x-client', 'x-web');
		});

		test('demoted managers follow another, promoted ones list; nothing is lost meanwhile', async ({ swarm }) => {
			const load = swarm.startLoad(['-n', 0, '-r', 200, '-c', 100, '-t', 5000, '-d', 100_000, ...swarm.targets(8080)]);
			const report = load.report();
			// They live through a change of affinity on every node, twice.
			const held = swarm.startLoad([
				'-n',
				60,
				'-c',
				60,
				'-k',
				0,
				'-i',
				100,
				'-t',
				5000,
				'-d',
				100_000,
				...swarm.targets(8080),
			]);
			const longOnes = held.report();
			await held.ready();
			swarm.docker(1, 'node', 'demote', 'node3');
			await waitFor('node3 to follow', () => logs(swarm, 3).includes('no manager any more'), 40_000, 300);
			swarm.docker(1, 'service', 'update', '-d', '--label-add', 'beeline.affinity=client-ip', 'web');
			await waitFor(
				'node3 to hear of the label',
				async () => (await swarm.services(3))[0]?.options.affinity === 'client-ip',
				20_000,
			);
			swarm.docker(1, 'node', 'promote', 'node3');
			await waitFor('node3 to list', () => logs(swarm, 3).includes('is a manager now'), 40_000, 300);
			swarm.docker(1, 'service', 'update', '-d', '--label-rm', 'beeline.affinity', 'web');
			await waitFor(
				'node3 to see the label gone',
				async () => (await swarm.services(3))[0]?.options.affinity === 'none',
				20_000,
			);
			load.stop();
			held.stop();
			const r = await report;
			assert.equal(r.failures, {}, JSON.stringify(r));
			const open = await longOnes;
			assert.equal([open.failures, open.moved], [{}, 0], JSON.stringify(open));
		});

		test('a node that is drained loses its agent, and its clients are served on; it comes back without a cut', async ({
			swarm,
		}) => {
			const agent = () =>
				swarm.docker(3, 'ps', '-q', '--filter', 'label=com.docker.swarm.service.name=beeline_agent').split('\n')[0];
			const before = agent();
			const load = swarm.startLoad(['-n', 0, '-r', 200, '-c', 100, '-t', 5000, '-d', 100_000, ...swarm.targets(8080)]);
			const report = load.report();
			swarm.docker(1, 'node', 'update', '--availability', 'drain', 'node3');
			await waitFor('the agent of node3 to end', () => agent() === '', 40_000, 300);
			// Docker's own mesh does not answer on a kernel without IPVS: nobody would take over.
			const r = await swarm.load(['-n', 60, '-c', 5, '-t', 3000, ...swarm.targets(8080, [3])]);
			assert.equal([r.ok, r.failures], [60, {}], `${JSON.stringify(r)}\n${logs(swarm, 3)}`);
			assert.is(Object.keys(r.backends).length, 2, 'the tasks of the other nodes');
			swarm.docker(1, 'node', 'update', '--availability', 'active', 'node3');
			await waitFor('another agent on node3', () => agent() !== '' && agent() !== before, 40_000, 300);
			await waitFor('it to be ready', async () => (await swarm.status(3)).ready, 60_000, 200);
			await swarm.serving('web', 3).catch((e: Error) => {
				throw new Error(`${e.message}\n${logs(swarm, 3)}`);
			});
			load.stop();
			const whole = await report;
			assert.equal(whole.failures, {}, JSON.stringify(whole));
		});

		test('docker stack rm leaves a datapath that serves, and beeline detach removes everything', async ({ swarm }) => {
			swarm.docker(1, 'stack', 'rm', 'beeline');
			await waitFor(
				'agents to end',
				() =>
					[1, 2, 3].every(
						(n) => swarm.docker(n, 'ps', '-q', '--filter', 'label=com.docker.swarm.service.name=beeline_agent') === '',
					),
				40_000,
				300,
			);
			const r = await swarm.load(['-n', 60, '-c', 5, '-t', 3000, ...swarm.targets(8080)]);
			assert.equal([r.ok, r.failures], [60, {}], JSON.stringify(r));
			for (const n of [1, 2, 3]) {
				swarm.exec(n, [join(root, 'bin/beeline'), 'detach', '--now']);
				assert.is(swarm.exec(n, ['sh', '-c', 'ls /sys/fs/bpf | grep beeline'], true).stdout, '', `pins of node${n}`);
				assert.not.ok(/prog\/xdp|tcx/.test(swarm.exec(n, ['ip', '-d', 'link', 'show', 'eth0']).stdout));
			}
		});
	},
);
