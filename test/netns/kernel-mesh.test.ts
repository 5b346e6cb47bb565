/*
 * A node joins and leaves while the kernel's own balancer (nftables DNAT, as Docker's mesh) serves the published port.
 * Topology: the default one; n2t1 n2t2, n3t1. nftables on n2 sends 8080 to n2t1 and n2t2.
 */
import * as assert from 'uvu/assert';
import { FrontendFlag } from '../../src/loader/layout.gen.js';
import { Mesh, onTopology, targets, taskBackend } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

/** REF_KERNEL of bpf/mesh.h. */
const kernel = 0x003fffff;

async function build(): Promise<{ net: Topology }> {
	return onTopology({ tasks: { n2: 2, n3: 1 } }, async (net) => {
		for (const task of net.tasks()) await net.httpd(task, 80);
		net.exec('n2', ['nft', '-f', '-'], {
			input: `table ip mesh {
				chain prerouting {
					type nat hook prerouting priority dstnat;
					tcp dport 8080 dnat to numgen inc mod 2 map { 0 : 172.18.0.2 . 80, 1 : 172.18.0.3 . 80 }
				}
			}`,
		});
		return {};
	});
}

scenario(
	'joining and leaving',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	({ net }) => net.close(),
	(test) => {
		test('no connection is cut when a node joins, nor when it leaves', async ({ net }) => {
			const old = net.startLoad('c1', [
				...['-n', 60, '-c', 60, '-k', 0, '-i', 50, '-d', 120_000, '-t', 4000, '-v'],
				...targets(net, ['n2'], 8080),
			]);
			await old.ready();
			// A load of new connections runs through everything.
			const steady = net.startLoad('c1', [
				...['-n', 0, '-c', 50, '-r', 200, '-d', 120_000, '-t', 4000, '-v'],
				...targets(net, ['n2'], 8080),
			]);
			const mesh = await Mesh.start(net, {
				services: [
					{
						name: 'web',
						ports: [{ published: 8080, target: 80 }],
						backends: net.tasks().map((task) => taskBackend(net, task)),
					},
				],
			});
			const joined = await net.load('c1', ['-n', 300, '-t', 3000, ...targets(net, net.nodes, 8080)]);
			assert.equal(joined.failures, {}, JSON.stringify(joined));
			assert.is(Object.keys(joined.backends).length, 3, 'new connections are balanced by Beeline');

			// Client ports whose flows through another node are over when the kernel gets them.
			const ports = Array.from({ length: 24 }, (_, i) => 20_000 + i);
			const dialFrom = async (node: string) => {
				for (const port of ports) {
					const report = await net.load('c1', ['-p', port, '-t', 800, ...targets(net, [node], 8080)]);
					assert.equal(report.failures, {}, `${node} from port ${port}: ${JSON.stringify(report.failures)}`);
				}
			};
			await dialFrom('n1');

			// Connections that Beeline made, which end in time while the node leaves.
			const short = net.startLoad('c1', [
				...['-n', 60, '-c', 60, '-k', 20, '-i', 100, '-t', 4000],
				...targets(net, ['n2'], 8080),
			]);
			await short.ready();
			const agent = mesh.agent('n2');
			await agent.stop();
			const leaving = agent.cli(['detach', '--config', agent.configFile, '--wait', '6s'], { local: true });
			const tables = () => new Set(agent.slots().flatMap(({ counts }) => [...counts.keys()]));
			await waitFor('new connections to go to the kernel', () => tables().has(kernel));
			await dialFrom('n2');
			const left = await leaving;
			assert.is(left.code, 0, left.stderr);
			const shortReport = await short.report();
			assert.equal(shortReport.failures, {}, `made by Beeline, ended while it left: ${JSON.stringify(shortReport)}`);

			const after = await net.load('c1', ['-n', 100, '-t', 3000, ...targets(net, ['n2'], 8080)]);
			assert.equal(after.failures, {}, `made after it left: ${JSON.stringify(after)}`);
			assert.equal(Object.keys(after.backends).sort(), ['n2t1', 'n2t2'], 'the kernel serves again');

			const oldReport = await old.finish();
			assert.equal(
				oldReport.failures,
				{},
				`made by the kernel before Beeline came: ${JSON.stringify(oldReport.failures)}`,
			);
			assert.is(oldReport.moved, 0);
			const steadyReport = await steady.finish();
			assert.equal(
				steadyReport.failures,
				{},
				`made all the time: ${JSON.stringify(steadyReport.failures)} ${JSON.stringify(steadyReport.rows?.filter((row) => row.failure))}`,
			);
			await mesh.close();
		});

		test('a rule that comes after the port counts too: its mesh serves when the agent is dead', async ({ net }) => {
			const mesh = await Mesh.start(
				net,
				{
					services: [
						{
							name: 'late',
							ports: [{ published: 8081, target: 80 }],
							backends: net.tasks().map((task) => taskBackend(net, task)),
						},
					],
				},
				{ config: { datapath: { staleAfter: '2s' } } },
			);
			const agent = mesh.agent('n2');
			const dial = () => net.load('c1', ['-n', 60, '-t', 3000, ...targets(net, ['n2'], 8081)]);
			const served = await dial();
			assert.equal([served.failures, Object.keys(served.backends).length], [{}, 3]);
			const rule =
				'add rule ip mesh prerouting tcp dport 8081 dnat to numgen inc mod 2 map { 0 : 172.18.0.2 . 80, 1 : 172.18.0.3 . 80 }';
			net.exec('n2', ['nft', rule]);
			// Rules are read again now and then; SIGHUP asks for it.
			const flag = (row: string) =>
				(Number(/\bflags (0x[0-9a-f]+|\d+)/.exec(row)?.[1] ?? 0) & FrontendFlag.FRONTEND_KERNEL) !== 0;
			agent.running?.child.kill('SIGHUP');
			await waitFor(
				'the agent to see the rule',
				async () => (await agent.entries()).maps.some((m) => m.map === 'frontends' && m.rows.some(flag)),
				60_000,
			).catch(async (e: Error) => {
				throw new Error(
					`${e.message}: ${JSON.stringify((await agent.entries()).maps.find((m) => m.map === 'frontends'))}`,
				);
			});
			const still = await dial();
			assert.equal(
				[still.failures, Object.keys(still.backends).length],
				[{}, 3],
				'Beeline serves while its agent lives',
			);
			await agent.stop('SIGKILL');
			await waitFor('the heartbeat to be stale', async () => Object.keys((await dial()).backends).length === 2, 15_000);
			const stale = await dial();
			assert.equal(stale.failures, {}, JSON.stringify(stale));
			assert.equal(Object.keys(stale.backends).sort(), ['n2t1', 'n2t2'], 'the kernel serves');
			await mesh.close();
		});
	},
);
