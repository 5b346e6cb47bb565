/*
 * Backends come, go, drain and change weight while connections are open.
 * Topology: the default one; n2t1 n2t2 n2t3, n3t1 n3t2, and n3t3 that joins later.
 */
import * as assert from 'uvu/assert';
import { type Mesh, startServed, targets, taskBackend } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const build = () =>
	startServed(
		{ tasks: { n2: 3, n3: 2 } },
		(backends) => [
			{ name: 'web', ports: [{ published: 8080, target: 80 }], options: { drainTimeout: '10m' }, backends },
			{
				name: 'kept',
				ports: [{ published: 8090, target: 80 }],
				options: { drainTimeout: '10m', tracking: 'always', trackingWindow: '1s' },
				backends,
			},
			{
				name: 'next',
				ports: [{ published: 8091, target: 80 }],
				backends: backends.filter((b) => b.node === 'n3').slice(0, 1),
			},
			{
				name: 'dns',
				ports: [{ published: 8053, target: 53, protocol: 'udp' }],
				options: { drainTimeout: '10m' },
				backends,
			},
		],
		undefined,
		async ({ net }) => {
			// 300 connections that live through everything below, a request each 200 ms.
			const held = net.startLoad('c1', [
				...['-n', 300, '-c', 300, '-k', 0, '-i', 200, '-d', 240_000, '-t', 5000, '-v'],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			await held.ready();
			return { held };
		},
	);

const fresh = (net: Topology, connections = 700) =>
	net.load('c1', ['-n', connections, '-c', 50, '-t', 5000, ...targets(net, net.nodes, 8080, [4, 6])]);

/** A metric of the service `kept`, of all nodes. */
async function totalOfKept(mesh: Mesh, metric: string): Promise<number> {
	let n = 0;
	for (const agent of mesh.agents.values()) {
		const { text } = await agent.request('GET', '/metrics');
		for (const [, value] of text.matchAll(new RegExp(`^${metric}{[^}]*service="kept"[^}]*} (\\S+)$`, 'gm')))
			n += Number(value);
	}
	return n;
}

scenario(
	'changes under load',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('a backend with weight 3 gets three shares of the new connections', async ({ net, mesh }) => {
			await mesh.setBackends(
				'web',
				net.tasks().map((task) => taskBackend(net, task, { weight: task === 'n2t1' ? 3 : 1 })),
			);
			const report = await fresh(net, 7000);
			assert.equal(report.failures, {});
			// 3/7 of 7000 = 3000, sigma = sqrt(7000 * 3/7 * 4/7) = 41.4: five of them and one slot in 1024.
			assert.ok(Math.abs(report.backends.n2t1 - 3000) < 215, JSON.stringify(report.backends));
		});

		test('an added backend gets new connections', async ({ net, mesh }) => {
			net.addTask('n3', 3);
			await net.httpd('n3t3', 80);
			await mesh.setBackends(
				'web',
				[...net.tasks(), 'n3t3'].map((task) => taskBackend(net, task)),
			);
			const report = await fresh(net, 1200);
			assert.equal(report.failures, {});
			assert.is(Object.keys(report.backends).length, 6);
			// 200 expected, sigma 12.9.
			assert.ok(Math.abs(report.backends.n3t3 - 200) < 70, JSON.stringify(report.backends));
		});

		test('a node hears of its new backend last: what was begun meanwhile goes on where it began', async ({
			net,
			mesh,
		}) => {
			net.addTask('n3', 4);
			await net.httpd('n3t4', 80);
			await net.udpecho('n3t4', 53);
			const before = mesh.document;
			const after = {
				...before,
				services: before.services.map((one) => ({ ...one, backends: [...one.backends, taskBackend(net, 'n3t4')] })),
			};
			await mesh.change(after, ['n1', 'n2']);
			const load = net.startLoad('c1', [
				...['-n', 100, '-c', 100, '-k', 0, '-i', 50, '-d', 60_000, '-t', 3000],
				...targets(net, ['n1', 'n2'], 8080, [4, 6]),
			]);
			const udp = net.startUdpload('c1', [
				...['-n', 0, '-c', 60, '-i', 50, '-d', 60_000],
				...targets(net, ['n1', 'n2'], 8053, [4, 6]),
			]);
			await load.ready();
			const sent = async () => (await mesh.agent('n3').verdicts())['uplink_xdp encap_rebalanced'] ?? 0;
			await waitFor('flows to be sent on by n3', async () => (await sent()) > 20);
			await mesh.change(after);
			const report = await fresh(net);
			assert.equal(report.failures, {});
			assert.ok(report.backends.n3t4 > 0);
			const held = await load.finish();
			assert.equal([held.failures, held.moved], [{}, 0], JSON.stringify(held));
			const datagrams = await udp.finish();
			assert.equal([datagrams.lost, datagrams.moved], [0, 0], JSON.stringify(datagrams));
			await mesh.change(before);
		});

		test('a drained backend gets no new connection, on any node, and comes back', async ({ net, mesh }) => {
			const drained = (await mesh.agent('n1').backends()).find(
				(backend) =>
					backend.service === 'web' && backend.addresses.includes(net.address('n2t2').v4) && backend.node === 'n2',
			);
			assert.ok(drained, 'the backend n2t2 is listed');
			// With the file source each node has its own mesh.yaml: the operator drains on each.
			for (const agent of mesh.agents.values()) await agent.post(`/v1/backends/${drained.id}/drain`);
			for (const agent of mesh.agents.values()) {
				const state = (await agent.backends()).find((backend) => backend.id === drained.id)?.state;
				assert.is(state, 'draining', agent.node);
			}
			const without = await fresh(net);
			assert.equal(without.failures, {});
			assert.is(without.backends.n2t2, undefined);
			for (const agent of mesh.agents.values()) await agent.post(`/v1/backends/${drained.id}/undrain`);
			const again = await fresh(net);
			assert.equal(again.failures, {});
			assert.ok(again.backends.n2t2 > 0);
		});

		test('a node that drains its backend before others hear of it sends their new connections on', async ({
			net,
			mesh,
		}) => {
			const own = (await mesh.agent('n3').backends()).find(
				(b) => b.service === 'web' && b.addresses.includes(net.address('n3t1').v4) && b.node === 'n3',
			);
			assert.ok(own, 'the backend n3t1 is listed');
			await mesh.agent('n3').post(`/v1/backends/${own.id}/drain`);
			const report = await fresh(net);
			assert.equal(report.failures, {});
			assert.is(report.backends.n3t1, undefined, JSON.stringify(report.backends));
			await mesh.agent('n3').post(`/v1/backends/${own.id}/undrain`);
			const again = await fresh(net);
			assert.equal(again.failures, {});
			assert.ok(again.backends.n3t1 > 0);
		});

		test('a removed backend gets no new connection; its open ones go on', async ({ net, mesh }) => {
			await mesh.setBackends(
				'web',
				['n2t1', 'n2t2', 'n3t1', 'n3t2', 'n3t3'].map((task) => taskBackend(net, task)),
			);
			const report = await fresh(net);
			assert.equal(report.failures, {});
			assert.is(report.backends.n2t3, undefined);
		});

		test('affinity that is set and taken back moves no open connection; new ones follow it', async ({ net, mesh }) => {
			const load = net.startLoad('c1', [
				...['-n', 0, '-c', 60, '-r', 400, '-k', 3, '-i', 30, '-d', 120_000, '-t', 5000],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			const set = (affinity: 'none' | 'client-ip') =>
				mesh.change({
					...mesh.document,
					services: mesh.document.services.map((one) => ({ ...one, options: { ...one.options, affinity } })),
				});
			await set('client-ip');
			const one = await fresh(net, 200);
			assert.equal(one.failures, {});
			assert.ok(
				Object.keys(one.backends).length <= 2,
				`one for each of its addresses: ${JSON.stringify(one.backends)}`,
			);
			await set('none');
			const all = await fresh(net);
			assert.equal(all.failures, {});
			assert.is(Object.keys(all.backends).length, 5);
			const report = await load.finish();
			assert.equal([report.failures, report.moved], [{}, 0], JSON.stringify(report));
		});

		test('tracking that is changed, and back, moves no open connection', async ({ net, mesh }) => {
			const all = ['n2t1', 'n2t2', 'n3t1', 'n3t2', 'n3t3'];
			// A pause longer than the window at first: only `always` remembers such connections.
			const held = net.startLoad('c1', [
				...['-n', 120, '-c', 120, '-k', 0, '-i', 3000, '-d', 240_000, '-t', 5000],
				...targets(net, net.nodes, 8090, [4, 6]),
			]);
			await held.ready();
			const set = (options: object, without = '') =>
				mesh.change({
					...mesh.document,
					services: mesh.document.services.map((one) =>
						one.name === 'kept'
							? {
									...one,
									options: { ...one.options, ...options },
									backends: all.filter((task) => task !== without).map((task) => taskBackend(net, task)),
								}
							: one,
					),
				});
			const moving = async () => (await totalOfKept(mesh, 'beeline_slots_in_transition')) > 0;
			const packets = () => totalOfKept(mesh, 'beeline_service_packets_total');
			await set({}, 'n2t1');
			assert.ok(await moving(), 'slots move');
			await waitFor('the slots to rest', async () => !(await moving()), 60_000, 200);
			await set({ tracking: 'auto', trackingWindow: '10m' }, 'n2t1');
			const before = await packets();
			// A request is two packets at least, so most have spoken twice.
			await waitFor('the held connections to speak', async () => (await packets()) > before + 4 * 120, 60_000, 200);
			// Born while slots move, on backends that these move to and from.
			await set({}, 'n3t2');
			const young = net.startLoad('c1', [
				...['-n', 120, '-c', 120, '-k', 0, '-i', 200, '-d', 240_000, '-t', 5000],
				...targets(net, net.nodes, 8090, [4, 6]),
			]);
			await young.ready();
			for (const [tracking, without] of [
				['always', 'n3t2'],
				['always', 'n2t2'],
				['auto', 'n2t2'],
				['auto', ''],
				['always', 'n3t1'],
				['auto', 'n2t1'],
			]) {
				await set({ tracking }, without);
				const report = await net.load('c1', [
					'-n',
					200,
					'-c',
					50,
					'-t',
					5000,
					...targets(net, net.nodes, 8090, [4, 6]),
				]);
				assert.equal(report.failures, {}, `${tracking}, without ${without}`);
			}
			const reports = [await young.finish(), await held.finish()];
			assert.equal(
				reports.map((report) => [report.failures, report.moved]),
				[
					[{}, 0],
					[{}, 0],
				],
				JSON.stringify(reports),
			);
		});

		test('tracking that was none while backends changed moves no connection opened since', async ({ net, mesh }) => {
			const all = ['n2t1', 'n2t2', 'n3t1', 'n3t2', 'n3t3'];
			const set = (tracking: string, without: string) =>
				mesh.change({
					...mesh.document,
					services: mesh.document.services.map((one) =>
						one.name === 'kept'
							? {
									...one,
									options: { ...one.options, tracking, trackingWindow: '10m' },
									backends: all.filter((task) => task !== without).map((task) => taskBackend(net, task)),
								}
							: one,
					),
				});
			await set('none', '');
			// Not as it was when these slots began to move, or `previous` would be where the flows are.
			await set('none', 'n2t2');
			const held = net.startLoad('c1', [
				...['-n', 120, '-c', 120, '-k', 0, '-i', 200, '-d', 240_000, '-t', 5000],
				...targets(net, net.nodes, 8090, [4, 6]),
			]);
			await held.ready();
			const packets = () => totalOfKept(mesh, 'beeline_service_packets_total');
			// The second time with a change of slots.
			for (const [tracking, without] of [
				['auto', 'n2t2'],
				['none', 'n2t2'],
				['always', 'n3t2'],
			] as const) {
				await set(tracking, without);
				const before = await packets();
				// A request is two packets at least, so most have spoken.
				await waitFor('the held connections to speak', async () => (await packets()) > before + 3 * 120, 30_000, 100);
			}
			const report = await held.finish();
			assert.equal([report.failures, report.moved], [{}, 0], JSON.stringify(report));
		});

		test('while nothing leads to the new backend, the one that is being drained serves', async ({ net, mesh }) => {
			const absent = { node: 'n2', addresses: [net.address('n2t1').v4.replace(/\d+$/, '250')] };
			await mesh.setBackends('next', [taskBackend(net, 'n3t1', { drain: true }), absent]);
			const seen = async () =>
				(await mesh.agent('n2').backends()).filter((b) => b.service === 'next').map((b) => `${b.node} ${b.state}`);
			const report = await net.load('c1', ['-n', 100, '-c', 20, '-t', 1500, ...targets(net, ['n1', 'n3'], 8091)]);
			assert.equal([report.failures, report.ok], [{}, 100], `${JSON.stringify(report)} ${await seen()}`);
		});

		test('twenty changes in a row under new connections: none fails', async ({ net, mesh }) => {
			const all = ['n2t1', 'n2t2', 'n3t1', 'n3t2', 'n3t3'];
			const load = net.startLoad('c1', [
				...['-n', 0, '-c', 60, '-r', 400, '-k', 3, '-i', 30, '-d', 120_000, '-t', 5000],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			for (let i = 0; i < 20; i++) {
				const out = i % 2 ? all[i % all.length] : '';
				await mesh.setBackends(
					'web',
					all.filter((task) => task !== out).map((task, j) => taskBackend(net, task, { weight: 1 + ((i + j) % 3) })),
				);
			}
			const report = await load.finish();
			assert.equal(report.failures, {}, JSON.stringify(report));
			assert.is(report.moved, 0);
		});

		test('UDP flows keep their backend while others come and go', async ({ net, mesh }) => {
			const load = net.startUdpload('c1', [
				...['-n', 0, '-c', 120, '-i', 50, '-d', 60_000],
				...targets(net, net.nodes, 8053, [4, 6]),
			]);
			const without = (gone: string) =>
				net
					.tasks()
					.filter((task) => task !== gone)
					.map((task) => taskBackend(net, task));
			await mesh.setBackends('dns', without('n2t1'));
			await mesh.setBackends('dns', without(''));
			await mesh.setBackends('dns', without('n3t2'));
			const report = await load.finish();
			assert.equal([report.lost, report.moved], [0, 0], JSON.stringify(report));
		});

		test('no connection that was open all the time moved or broke', async ({ held }) => {
			const report = await held.finish();
			const broken = report.rows?.filter((row) => row.failure || row.last !== row.backend);
			assert.equal(broken, [], JSON.stringify(broken?.slice(0, 20)));
			assert.equal(report.failures, {});
			assert.is(report.moved, 0);
			assert.is(Object.keys(report.backends).length, 5);
			assert.ok(report.ok > 3000, `only ${report.ok} answers`);
		});
	},
);
