/*
 * Nodes that go and come back, and DSR that stops being possible. Topology: the default one; n2t1 n3t1.
 *
 *	 c1 .100       n1 .1       n2 .2       n3 .3
 *	   |             |           |           |          192.168.78.0/24, fd78::/64
 *	 --+-------------+-----------+-----------+--  br0
 *	                           n2t1        n3t1
 */
import { readdirSync, rmSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { type Mesh, startServed, targets } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const build = () =>
	startServed({ tasks: { n2: 1, n3: 1 } }, (backends) => [
		{ name: 'web', ports: [{ published: 8080, target: 80 }], options: { returnPath: 'auto' }, backends },
		// Its only backend is the last, whatever its node does.
		{ name: 'lone', ports: [{ published: 8081, target: 80 }], backends: backends.slice(1) },
	]);

const state = async (mesh: Mesh, seenBy: string, service: string, node: string) =>
	(await mesh.agent(seenBy).backends()).find((b) => b.service === service && b.node === node)?.state;

/** Milliseconds until the node's backend of `web` is in this state for another node. */
async function until(mesh: Mesh, wanted: string, by = 'n1', limitMs = 20_000): Promise<number> {
	const began = performance.now();
	await waitFor(
		`n3's backend to be ${wanted} for ${by}`,
		async () => (await state(mesh, by, 'web', 'n3')) === wanted,
		limitMs,
		10,
	);
	return performance.now() - began;
}

async function metric(mesh: Mesh, node: string, name: string): Promise<number> {
	const { text } = await mesh.agent(node).request('GET', '/metrics');
	return Number(new RegExp(`^${name.replaceAll(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1]);
}

/** A name of the table of the packet filter that swallows spoofed packets (Topology.portSecurity). */
const guard = ['nft', 'delete', 'table', 'bridge', 'guard'];

scenario(
	'peers',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('all nodes answer, and say what their tables are', async ({ mesh }) => {
			// A node that was never heard counts as reachable, and is called down only when all have had their time to start.
			await waitFor('every node to have heard the others', async () => {
				const views = await Promise.all(mesh.net.nodes.map((node) => mesh.agent(node).nodes()));
				return views.every((nodes) => nodes.every((n) => n.self || n.rttMs !== null));
			});
			for (const node of ['n1', 'n2', 'n3']) {
				for (const other of await mesh.agent(node).nodes())
					assert.is(other.reachable, other.self ? null : true, `${other.name} as ${node} sees it`);
				assert.equal((await mesh.agent(node).status()).differing, []);
			}
			assert.is(await metric(mesh, 'n1', 'beeline_node_reachable{node="n2"}'), 1);
		});

		for (const [what, stop, start, agentPresent] of [
			[
				'whose link goes down',
				async (net: Topology) => net.ip('sw', ['link set n3-eth0 down']),
				async (net: Topology) => net.ip('sw', ['link set n3-eth0 up']),
				null,
			],
			[
				'whose XDP is gone',
				async (net: Topology, mesh: Mesh) => {
					// A killed agent leaves its pins, and the hook goes with its own.
					await mesh.agent('n3').stop('SIGKILL');
					const links = join(net.pinRoot('n3'), 'links');
					const pins = readdirSync(links).filter((pin) => pin.startsWith('uplink_xdp'));
					assert.is(pins.length, 1);
					for (const pin of pins) rmSync(join(links, pin));
				},
				(_net: Topology, mesh: Mesh) => mesh.agent('n3').start(),
				false,
			],
			[
				'that is detached',
				(_net: Topology, mesh: Mesh) => mesh.agent('n3').detach(),
				(_net: Topology, mesh: Mesh) => mesh.agent('n3').start(),
				false,
			],
		] as const)
			test(`a node ${what} loses its backends in under a second, and gets them back`, async ({ net, mesh }) => {
				await until(mesh, 'active');
				const stopping = stop(net, mesh);
				// Detaching is a process of its own: when its hook is off is not known.
				if (what !== 'that is detached') await stopping;
				try {
					const took = await until(mesh, 'down');
					await stopping;
					console.log(`  down for n1 after ${Math.round(took)} ms`);
					// Where others want the processors, probes are late by no fault of the mesh's; unit tests have a clock of their own.
					const busy = loadavg()[0] > 2 * availableParallelism();
					if (!busy && what !== 'that is detached') assert.ok(took < 1000, `${took} ms`);
					assert.is(await metric(mesh, 'n1', 'beeline_node_reachable{node="n3"}'), 0);
					const seen = async () => (await mesh.agent('n1').nodes()).find((n) => n.name === 'n3');
					assert.is((await seen())?.reachable, false);
					// The kernel of a node whose link was down a moment ago may first have to resolve whom it refuses, by ARP, once a
					// second; and it sends one refusal a second at most. Silence alone says down meanwhile.
					if (agentPresent === false)
						await waitFor('n3 to refuse', async () => (await seen())?.agentPresent === false, 10_000, 50);
					else assert.is((await seen())?.agentPresent, agentPresent);
					// Each node sees for itself, and flows come in by n2 as well.
					console.log(`  down for n2 ${Math.round(await until(mesh, 'down', 'n2'))} ms later`);
					assert.is(await state(mesh, 'n1', 'lone', 'n3'), 'active', 'the last backend is never taken out');
					const report = await net.load('c1', ['-n', 200, '-t', 1500, ...targets(net, ['n1', 'n2'], 8080, [4, 6])]);
					assert.equal(report.failures, {}, JSON.stringify(report));
					assert.equal(Object.keys(report.backends), ['n2t1']);
				} finally {
					// Also after a failure, which would be every later test's otherwise.
					await start(net, mesh);
				}
				const back = await until(mesh, 'active');
				console.log(`  back for n1 after ${Math.round(back)} ms`);
				await waitFor('n2 to see it too', async () => (await state(mesh, 'n2', 'web', 'n3')) === 'active');
				await waitFor('n3 to see the others', async () => (await state(mesh, 'n3', 'web', 'n2')) === 'active');
				const again = await net.load('c1', ['-n', 200, '-t', 1500, ...targets(net, net.nodes, 8080, [4, 6])]);
				assert.equal(again.failures, {}, JSON.stringify(again));
				assert.equal(Object.keys(again.backends).sort(), ['n2t1', 'n3t1']);
			});

		test('an agent that is killed is nobody’s loss: its datapath goes on answering', async ({ net, mesh }) => {
			await mesh.agent('n3').stop('SIGKILL');
			const load = await net.load('c1', ['-n', 0, '-c', 20, '-r', 100, '-d', 3000, ...targets(net, ['n1'], 8080)]);
			assert.equal(load.failures, {}, JSON.stringify(load));
			assert.is(await state(mesh, 'n1', 'web', 'n3'), 'active');
			await mesh.agent('n3').start();
		});

		test('a restarted agent does not give a dead node its backends back', async ({ net, mesh }) => {
			net.ip('sw', ['link set n3-eth0 down']);
			await until(mesh, 'down');
			await mesh.agent('n1').stop('SIGKILL');
			await mesh.agent('n1').start();
			assert.is(await state(mesh, 'n1', 'web', 'n3'), 'down');
			const report = await net.load('c1', ['-n', 100, '-t', 1500, ...targets(net, ['n1'], 8080)]);
			assert.equal(report.failures, {}, JSON.stringify(report));
			net.ip('sw', ['link set n3-eth0 up']);
			await until(mesh, 'active');
		});

		test('a node with other tables is named', async ({ mesh }) => {
			mesh.agent('n3').writeMesh({
				nodes: mesh.net.nodes.map((name) => ({ name, address: mesh.net.address(name).v4 })),
				services: mesh.document.services.slice(1),
			});
			await waitFor('n1 to name n3', async () => (await mesh.agent('n1').status()).differing.includes('n3'), 10_000);
			assert.equal((await mesh.agent('n1').status()).differing, ['n3']);
			await mesh.change(mesh.document);
			await waitFor('them to agree', async () => (await mesh.agent('n1').status()).differing.length === 0);
		});

		test('DSR is proven on a plain bridge, given up when the network swallows it, and no connection fails after', async ({
			net,
			mesh,
		}) => {
			const dsr = async () =>
				(await mesh.agent('n2').nodes()).filter((node) => !node.self && node.dsr).map((node) => node.name);
			await waitFor('DSR to be proven', async () => (await dsr()).length === 2, 40_000);
			net.portSecurity();
			const began = performance.now();
			await waitFor('DSR to be given up', async () => (await dsr()).length === 0, 30_000);
			console.log(`  given up after ${Math.round(performance.now() - began)} ms`);
			await waitFor(
				'n3 to give it up too',
				async () => (await mesh.agent('n3').nodes()).every((node) => !node.dsr),
				30_000,
			);
			const report = await net.load('c1', ['-n', 400, '-t', 1500, ...targets(net, net.nodes, 8080, [4, 6])]);
			assert.equal(report.failures, {}, JSON.stringify(report));
			net.exec('sw', guard);
			await waitFor('DSR to be proven again', async () => (await dsr()).length === 2, 50_000);
		});
	},
);
