/*
 * returnPath: auto, in a network that forwards only what has the port's own source address (port security), and in one that
 * does not care. Topology: the default one; n2t1 n3t1.
 */
import * as assert from 'uvu/assert';
import { Mesh, targets, taskBackend } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

async function serving(portSecurity: boolean, body: (net: Topology, mesh: Mesh) => Promise<void>): Promise<void> {
	const net = await Topology.build({ tasks: { n2: 1, n3: 1 }, portSecurity });
	try {
		for (const task of net.tasks()) await net.httpd(task, 80);
		const backends = net.tasks().map((task) => taskBackend(net, task));
		const mesh = await Mesh.start(net, {
			services: [
				{ name: 'web', ports: [{ published: 8080, target: 80 }], options: { returnPath: 'auto' }, backends },
				{ name: 'web-dsr', ports: [{ published: 8082, target: 80 }], options: { returnPath: 'dsr' }, backends },
			],
		});
		await body(net, mesh);
		await mesh.close();
	} finally {
		net.close();
	}
}

scenario(
	'return path auto',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	async () => ({}),
	() => {},
	(test) => {
		test('a network that swallows DSR: the switch drops it, and with auto no connection fails', () =>
			serving(true, async (net, mesh) => {
				// The premise: with DSR forced, connections to a remote backend do fail here.
				const forced = await net.load('c1', ['-n', 20, '-t', 700, ...targets(net, ['n1'], 8082)]);
				assert.is(forced.ok, 0, JSON.stringify(forced));
				const load = net.startLoad('c1', [
					...['-n', 0, '-c', 50, '-r', 200, '-d', 6000, '-t', 3000],
					...targets(net, net.nodes, 8080, [4, 6]),
				]);
				const report = await load.report();
				assert.equal(report.failures, {}, `${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
				assert.ok(report.ok > 1000);
				for (const agent of mesh.agents.values())
					for (const node of await agent.nodes())
						assert.is(node.self ? false : node.dsr, false, `${agent.node} believes in DSR for ${node.name}`);
			}));

		test('a network that lets DSR through: it is found out and used, and no connection fails meanwhile', () =>
			serving(false, async (net, mesh) => {
				const load = net.startLoad('c1', [
					...['-n', 0, '-c', 50, '-r', 100, '-k', 10, '-i', 100, '-d', 60_000, '-t', 3000],
					...targets(net, net.nodes, 8080, [4, 6]),
				]);
				await waitFor(
					'DSR to be proven',
					async () => (await mesh.agent('n2').nodes()).some((node) => node.name === 'n1' && node.dsr),
					40_000,
				);
				await waitFor(
					'replies to leave by DSR',
					async () => ((await mesh.agent('n2').verdicts())['endpoint_tc return_client_dsr'] ?? 0) > 0,
				);
				const report = await load.finish();
				assert.equal(report.failures, {}, JSON.stringify(report));
				assert.is(report.moved, 0);
			}));
	},
);
