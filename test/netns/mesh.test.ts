/*
 * The ingress mesh carries real traffic.
 *
 *	 c1 .100           n1 .1                n2 .2                          n3 .3
 *	   |                 |                    |                              |       192.168.78.0/24, fd78::/64, MTU 1500
 *	 --+-----------------+--------------------+------------------------------+--
 *	                                    gwbr0 172.18.0.1              gwbr0 172.18.0.1
 *	                                  n2t1   n2t2   n2t3               n3t1   n3t2
 *
 * Published on every node: 8080 auto, 8081 tunnel, 8082 dsr (TCP 80), 8053 tunnel, 8054 dsr (UDP 53), and 8090, a process on n1
 * and n2.
 */
import * as assert from 'uvu/assert';
import { type ServiceDocument, startServed, targets } from '../support/beeline.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';

const large = 16_000_000;

const build = () =>
	startServed(
		{ tasks: { n2: 3, n3: 2 } },
		(backends) => {
			const service = (
				name: string,
				published: number,
				target: number,
				protocol: 'tcp' | 'udp',
				returnPath: string,
			): ServiceDocument => ({
				name,
				ports: [{ published, target, protocol }],
				options: { returnPath },
				backends,
			});
			return [
				service('web', 8080, 80, 'tcp', 'auto'),
				service('web-tunnel', 8081, 80, 'tcp', 'tunnel'),
				service('web-dsr', 8082, 80, 'tcp', 'dsr'),
				service('echo-tunnel', 8053, 53, 'udp', 'tunnel'),
				service('echo-dsr', 8054, 53, 'udp', 'dsr'),
				{
					name: 'process',
					ports: [{ published: 8090, target: 9000 }],
					backends: [{ node: 'n1' }, { node: 'n2' }],
				},
			];
		},
		async (net) => {
			for (const node of ['n1', 'n2']) await net.httpd(node, 9000);
		},
	);

scenario(
	'ingress mesh',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('each node answers on each return path, in both families', async ({ net, mesh }) => {
			for (const port of [8080, 8081, 8082])
				for (const family of [4, 6] as const)
					for (const node of net.nodes) {
						const report = await net.load('c1', ['-n', 10, '-t', 2000, ...targets(net, [node], port, [family])]);
						assert.is(
							report.ok,
							10,
							`port ${port}, IPv${family}, dialled ${node}: ${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`,
						);
						assert.equal(Object.keys(report.clients), [family === 4 ? net.address('c1').v4 : net.address('c1').v6]);
					}
		});

		test('slots of backends with equal weight differ by one at most, in every table of every node', ({ net, mesh }) => {
			for (const node of net.nodes) {
				const tables = mesh.agent(node).slots();
				assert.is.not(tables.length, 0, node);
				for (const { table, counts } of tables) {
					const slots = [...counts.values()];
					assert.ok([2, 5].includes(slots.length), `${node}, table ${table}: ${slots.length} backends`);
					assert.ok(Math.max(...slots) - Math.min(...slots) <= 1, `${node}, table ${table}: ${slots.join(' ')}`);
				}
			}
		});

		for (const family of [4, 6] as const)
			test(`10 000 connections over three nodes to five backends, IPv${family}: none fails, all see the client, spread is even`, async ({
				net,
			}) => {
				const report = await net.load('c1', ['-n', 10_000, '-c', 200, ...targets(net, net.nodes, 8080, [family])]);
				assert.equal(report.failures, {});
				assert.is(report.ok, 10_000);
				assert.equal(report.clients, { [family === 4 ? net.address('c1').v4 : net.address('c1').v6]: 10_000 });
				assert.is(Object.keys(report.backends).length, 5);
				// Binomial: 2000 expected, sigma = sqrt(10000 * 0.2 * 0.8) = 40, and five of them are allowed.
				for (const [backend, count] of Object.entries(report.backends))
					assert.ok(Math.abs(count - 2000) <= 200, `${backend} answered ${count} of 10000, expected 2000 ± 200`);
			});

		for (const [path, port] of [
			['tunnel', 8081],
			['dsr', 8082],
		] as const)
			for (const family of [4, 6] as const)
				for (const [way, flag] of [
					['down', '-D'],
					['up', '-U'],
				] as const)
					test(`bodies of 16 MB ${way} by ${path}, IPv${family}`, async ({ net }) => {
						const report = await net.load('c1', [
							'-n',
							6,
							'-c',
							2,
							flag,
							large,
							...targets(net, net.nodes, port, [family]),
						]);
						assert.equal(report.failures, {}, JSON.stringify(report));
						assert.is(report.ok, 6);
					});

		for (const [path, port] of [
			['tunnel', 8053],
			['dsr', 8054],
		] as const)
			for (const family of [4, 6] as const)
				test(`UDP echo by ${path}, IPv${family}`, async ({ net }) => {
					const report = await net.udpload('c1', [
						'-n',
						20,
						'-c',
						60,
						'-S',
						512,
						...targets(net, net.nodes, port, [family]),
					]);
					assert.equal(
						[report.answered, report.lost, report.corrupt, report.moved],
						[1200, 0, 0, 0],
						JSON.stringify(report),
					);
					assert.equal(Object.keys(report.clients), [family === 4 ? net.address('c1').v4 : net.address('c1').v6]);
					assert.is(Object.keys(report.backends).length, 5);
				});

		test('a process on a node is a backend like any other, and a direct dial of it still works', async ({ net }) => {
			const report = await net.load('c1', ['-n', 300, ...targets(net, net.nodes, 8090, [4, 6])]);
			assert.equal(report.failures, {}, JSON.stringify(report));
			assert.equal(Object.keys(report.backends).sort(), ['n1', 'n2']);
			assert.equal(report.clients, { [net.address('c1').v4]: 150, [net.address('c1').v6]: 150 });
			const direct = await net.load('c1', ['-n', 60, ...targets(net, ['n1', 'n2'], 9000, [4, 6])]);
			assert.equal(direct.failures, {});
			assert.equal(direct.backends, { n1: 30, n2: 30 });
		});

		test('one source port through two nodes at once: both connections work', async ({ net }) => {
			// As many as it takes for pairs to meet on one backend: five backends, twenty pairs.
			for (let port = 30_000; port < 30_020; port++) {
				const report = await net.load('c1', [
					'-n',
					3,
					'-c',
					3,
					'-k',
					3,
					'-i',
					5,
					'-p',
					port,
					'-t',
					2000,
					...targets(net, net.nodes, 8081),
				]);
				assert.equal(report.failures, {}, `source port ${port}: ${JSON.stringify(report)}`);
				assert.is(report.ok, 9);
				assert.is(report.moved, 0);
			}
			const udp = await net.udpload('c1', ['-n', 10, '-c', 3, '-p', 30_100, ...targets(net, net.nodes, 8053)]);
			assert.equal([udp.answered, udp.lost], [30, 0], JSON.stringify(udp));
		});

		test('a client on a node itself reaches the mesh, by localhost and by every address', async ({ net }) => {
			for (const node of net.nodes) {
				const report = await net.load(node, [
					'-n',
					40,
					'-t',
					2000,
					'127.0.0.1:8080',
					'[::1]:8080',
					...targets(net, net.nodes, 8080, [4, 6]),
				]);
				assert.equal(report.failures, {}, `${node}: ${JSON.stringify(report)}`);
			}
		});
	},
);
