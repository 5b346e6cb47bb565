/*
 * Tasks that dial a published port of a node, and clients that a task is on-link with.
 *
 *	 c1 .100 + 172.18.9.9/32          n1 .1                                   n2 .2
 *	   |                                |                                       |       192.168.78.0/24, fd78::/64, MTU 1500
 *	 --+--------------------------------+---------------------------------------+--     (the default route of nodes leads to c1)
 *	                              gwbr0 172.18.0.1                        gwbr0 172.18.0.1
 *	                          n1t1    n1t2    n1t3                          n2t1   n2t2   n2t3
 *
 * Ports of gwbr0 are isolated from one another and masqueraded beyond the node, as docker_gwbridge's are. n1t3 and n2t3 are
 * nobody's backends. Published: 8080 n1t1 and n1t2, 8081 n2t1 and n2t2 (tunnel), 8082 n1t1 alone, 8083 n2t1 by DSR, 8090 processes of
 * n1, 8091 of n2, 8053 and 8054 UDP of n1t1 and n2t1, 8084 with a list that admits the nodes.
 */
import * as assert from 'uvu/assert';
import { dialAll, Mesh, onTopology, type ServiceDocument, targets, taskBackend } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const large = 4_000_000;
const lan4 = '172.18.9.9';
const lan6 = 'fd00:18::9:9';
/** What n2 can show clients as: 64 ports, sixteen of which are published. */
const fewPorts = 65_472;
const publishedFew = Array.from({ length: 16 }, (_, i) => fewPorts + i);

async function build(): Promise<{ net: Topology; mesh: Mesh }> {
	return onTopology({ nodes: 2, tasks: { n1: 3, n2: 3 } }, async (net) => {
		for (const task of net.tasks()) {
			await net.httpd(task, 80);
			await net.udpecho(task, 53);
		}
		for (const node of net.nodes) {
			await net.httpd(node, 9000);
			for (const task of net.tasks(node))
				net.exec(node, ['bridge', 'link', 'set', 'dev', task.replace(node, ''), 'isolated', 'on']);
			net.ip(node, [`route add default via ${net.address('c1').v4}`, `route add ::/0 via ${net.address('c1').v6}`]);
			net.exec(node, ['nft', '-f', '-'], {
				input: `table inet nat {
					chain post {
						type nat hook postrouting priority 100;
						oifname "eth0" ip saddr 172.18.0.0/16 masquerade
						oifname "eth0" ip6 saddr fd00:18::/64 masquerade
					}
					chain forward {
						type filter hook forward priority 0;
						iifname "gwbr0" oifname "gwbr0" drop
					}
				}\n`,
			});
		}
		net.exec('n2', ['sysctl', '-qw', `net.ipv4.ip_local_port_range=1024 ${fewPorts - 1}`]);
		net.ip('c1', [`addr add ${lan4}/32 dev eth0`, `addr add ${lan6}/128 dev eth0 nodad`]);
		const service = (
			name: string,
			published: number,
			backends: ServiceDocument['backends'],
			more: { target?: number; protocol?: 'tcp' | 'udp'; options?: object } = {},
		): ServiceDocument => ({
			name,
			ports: [{ published, target: more.target ?? 80, protocol: more.protocol ?? 'tcp' }],
			options: { returnPath: 'tunnel', ...more.options },
			backends,
		});
		const at = (...tasks: string[]) => tasks.map((t) => taskBackend(net, t));
		const mesh = await Mesh.start(net, {
			services: [
				service('here', 8080, at('n1t1', 'n1t2')),
				service('there', 8081, at('n2t1', 'n2t2')),
				service('itself', 8082, at('n1t1')),
				service('dsr', 8083, at('n2t1'), { options: { returnPath: 'dsr' } }),
				service('listed', 8084, at('n1t2'), { options: { allow: ['192.168.78.1/32', 'fd78::1/128'] } }),
				service('process', 8090, [{ node: 'n1' }], { target: 9000 }),
				service('process2', 8091, [{ node: 'n2' }], { target: 9000 }),
				service('echo', 8053, at('n1t1'), { target: 53, protocol: 'udp' }),
				service('echo2', 8054, at('n2t1'), { target: 53, protocol: 'udp' }),
			],
		});
		return { mesh };
	});
}

const gateway = { 4: '172.18.0.1', 6: 'fd00:18::1' } as const;

scenario(
	'tasks that dial',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		/** Dials `port` of `node` from a namespace; all must work. Who answered, and whom they saw. */
		const dial = async (
			net: Topology,
			mesh: Mesh,
			from: string,
			node: string,
			port: number,
			family: 4 | 6,
			more: readonly (string | number)[] = [],
		) => {
			const report = await dialAll({ net, mesh }, from, targets(net, [node], port, [family]), more);
			return { backends: Object.keys(report.backends).sort(), clients: Object.keys(report.clients) };
		};
		const own = (net: Topology, node: string, family: 4 | 6) =>
			family === 4 ? net.address(node).v4 : net.address(node).v6;

		for (const family of [4, 6] as const) {
			test(`tasks of the node, the dialling one too, answer as their gateway’s guests, IPv${family}`, async ({
				net,
				mesh,
			}) => {
				for (const from of ['n1t1', 'n1t3']) {
					const seen = await dial(net, mesh, from, 'n1', 8080, family, ['-n', 60]);
					assert.equal(seen.backends, ['n1t1', 'n1t2'], from);
					assert.equal(seen.clients, [gateway[family]]);
				}
				const itself = await dial(net, mesh, 'n1t1', 'n1', 8082, family);
				assert.equal(itself, { backends: ['n1t1'], clients: [gateway[family]] });
			});

			test(`tasks of another node see the dialling task’s node, IPv${family}`, async ({ net, mesh }) => {
				for (const from of ['n1t1', 'n1t3']) {
					const seen = await dial(net, mesh, from, 'n1', 8081, family, ['-n', 60]);
					assert.equal(seen, { backends: ['n2t1', 'n2t2'], clients: [own(net, 'n1', family)] });
				}
				assert.equal(await dial(net, mesh, 'n1t3', 'n1', 8083, family), {
					backends: ['n2t1'],
					clients: [own(net, 'n1', family)],
				});
			});

			test(`processes of the node and of another, IPv${family}`, async ({ net, mesh }) => {
				const task = net.address('n1t3');
				assert.equal(await dial(net, mesh, 'n1t3', 'n1', 8090, family), {
					backends: ['n1'],
					clients: [family === 4 ? task.v4 : task.v6],
				});
				assert.equal(await dial(net, mesh, 'n1t3', 'n1', 8091, family), {
					backends: ['n2'],
					clients: [own(net, 'n1', family)],
				});
			});

			test(`another node’s published port is dialled as by any client, IPv${family}`, async ({ net, mesh }) => {
				for (const port of [8080, 8081])
					assert.equal((await dial(net, mesh, 'n1t3', 'n2', port, family)).clients, [own(net, 'n1', family)]);
			});

			test(`lists are asked for the node’s address, IPv${family}`, async ({ net, mesh }) => {
				assert.equal((await dial(net, mesh, 'n1t3', 'n1', 8084, family)).backends, ['n1t2']);
				const report = await net.load('n2t1', ['-n', 1, '-t', 300, ...targets(net, ['n2'], 8084, [family])]);
				assert.is(report.ok, 0, JSON.stringify(report));
			});

			for (const [way, flag] of [
				['down', '-D'],
				['up', '-U'],
			] as const)
				test(`bodies of 4 MB ${way}, IPv${family}`, async ({ net, mesh }) => {
					for (const port of [8080, 8081, 8082, 8083, 8090, 8091])
						await dial(net, mesh, 'n1t1', 'n1', port, family, ['-n', 2, '-c', 1, '-t', 20_000, flag, large]);
				});

			test(`UDP, also of datagrams that no tunnel holds, IPv${family}`, async ({ net }) => {
				for (const [from, port, size] of [
					['n1t1', 8053, 512],
					['n1t2', 8053, 512],
					['n1t2', 8053, 4000],
					['n1t3', 8054, 512],
				] as const) {
					const report = await net.udpload(from, [
						'-n',
						10,
						'-c',
						5,
						'-S',
						size,
						...targets(net, ['n1'], port, [family]),
					]);
					assert.equal(
						[report.answered, report.lost, report.corrupt],
						[50, 0, 0],
						`${from} ${port} ${JSON.stringify(report)}`,
					);
					assert.equal(Object.keys(report.clients), [port === 8054 ? own(net, 'n1', family) : gateway[family]]);
				}
				// The first is lost, and the task's kernel learns from the error what fits.
				const report = await net.udpload('n1t3', [
					'-n',
					10,
					'-c',
					1,
					'-S',
					1472,
					...targets(net, ['n1'], 8054, [family]),
				]);
				assert.is(report.corrupt, 0);
				assert.ok(report.mtu === 1450 || report.answered >= 8, JSON.stringify(report));
			});

			test(`an ICMP error reaches the task that dialled, IPv${family}`, async ({ net, mesh }) => {
				// Nothing listens on the target any more: the backend's kernel says so.
				const document = mesh.document;
				await mesh.change({
					...document,
					services: [
						...document.services,
						{
							name: 'dead',
							ports: [{ published: 8060, target: 60, protocol: 'udp' }],
							backends: [taskBackend(net, 'n1t2')],
						},
						{
							name: 'dead2',
							ports: [{ published: 8061, target: 60, protocol: 'udp' }],
							backends: [taskBackend(net, 'n2t1')],
						},
					],
				});
				for (const [port, verdict] of [
					[8060, 'endpoint_tc return_client_local'],
					[8061, 'uplink_tc return_task'],
				] as const) {
					const before = (await mesh.agent('n1').verdicts())[verdict] ?? 0;
					const report = await net.udpload('n1t1', ['-n', 2, '-c', 1, ...targets(net, ['n1'], port, [family])]);
					const after = await mesh.agent('n1').verdicts();
					assert.ok(
						Object.keys(report.errors).some((e) => /refused/i.test(e)),
						`${port}: ${JSON.stringify(report)} ${JSON.stringify(after)}`,
					);
					// Not from the node's own kernel, on whose port nothing listens either.
					assert.ok((after[verdict] ?? 0) > before, `${port}: ${JSON.stringify(after)}`);
				}
				await mesh.change(document);
			});
		}

		test('many connections at once, from many tasks, collide with nothing', async ({ net }) => {
			const loads = ['n1t1', 'n1t2', 'n1t3'].map((from) =>
				net.load(from, [
					'-n',
					3000,
					'-c',
					100,
					'-t',
					5000,
					...targets(net, ['n1'], 8080),
					...targets(net, ['n1'], 8081),
				]),
			);
			for (const report of await Promise.all(loads)) assert.equal([report.failures, report.ok], [{}, 3000]);
		});

		test('the same source port from two tasks, to the same frontend', async ({ net, mesh }) => {
			for (const port of [8080, 8081, 8090]) {
				const reports = await Promise.all(
					['n1t1', 'n1t2', 'n1t3'].map((from) =>
						net.load(from, ['-n', 1, '-k', 10, '-i', 20, '-p', 33_333, '-t', 2000, ...targets(net, ['n1'], port)]),
					),
				);
				for (const r of reports)
					assert.equal(
						[r.failures, r.ok, r.moved],
						[{}, 10, 0],
						`${port} ${JSON.stringify(r)} ${JSON.stringify(await mesh.verdicts())}`,
					);
			}
		});

		test('no address of a bridge is ever on the wire', async ({ net }) => {
			const capture = await net.capture('sw', 'n1-eth0', 'ip or ip6');
			await net.load('n1t3', ['-n', 4, ...targets(net, ['n1'], 8081, [4, 6])]);
			const seen = await capture.stop();
			assert.ok(
				seen.some((line) => / 192\.168\.78\.1\.\d+ > 192\.168\.78\.1\.8081/.test(line)),
				seen[0],
			);
			assert.equal(
				seen.filter((line) => /172\.18\.0\.\d|fd00:18::/.test(line)),
				[],
			);
		});

		test('clients inside the bridge’s subnet are served, seen as the gateway, and said to be', async ({
			net,
			mesh,
		}) => {
			// The LAN's router (c1) is where their replies go.
			const from = async (family: 4 | 6, port: number, node: string, more: readonly (string | number)[] = []) => {
				const report = await dialAll({ net, mesh }, 'c1', targets(net, [node], port, [family]), more);
				return Object.keys(report.clients);
			};
			// What c1 dials with: its address in the bridges' subnet.
			net.ip(
				'c1',
				net.nodes.flatMap((n) => [
					`route replace ${net.address(n).v4}/32 dev eth0 src ${lan4}`,
					`route replace ${net.address(n).v6}/128 dev eth0 src ${lan6}`,
				]),
			);
			for (const family of [4, 6] as const)
				for (const [port, node] of [
					[8082, 'n1'], // enters at the backend's node
					[8082, 'n2'], // by tunnel
					[8083, 'n1'], // by DSR
				] as const) {
					assert.equal(await from(family, port, node), [gateway[family]], `${node}:${port}`);
					await from(family, port, node, ['-n', 1, '-c', 1, '-D', large]);
					await from(family, port, node, ['-n', 1, '-c', 1, '-U', large]);
				}
			for (const family of [4, 6] as const) {
				const report = await net.udpload('c1', [
					'-n',
					10,
					'-c',
					5,
					'-S',
					2000,
					...targets(net, ['n1'], 8053, [family]),
				]);
				assert.equal([report.answered, Object.keys(report.clients)], [50, [gateway[family]]], JSON.stringify(report));
			}
			const { warnings } = await mesh.agent('n1').status();
			assert.ok(
				warnings.some((w) => /172\.18\.0\.0\/16/.test(w) && /gateway/.test(w)),
				warnings.join('; '),
			);
		});

		// Of a task that comes: its bridge port had gateway_tc before endpoint_tc.
		test('a reply to a client that is shown with a published port is a reply', async ({ net, mesh }) => {
			const document = mesh.document;
			const port = (published: number, target: number, protocol: 'tcp' | 'udp') => ({ published, target, protocol });
			await mesh.change({
				...document,
				services: [
					...document.services,
					{
						name: 'few',
						ports: [
							...[8085, ...publishedFew].map((p) => port(p, 80, 'tcp')),
							...[8055, ...publishedFew].map((p) => port(p, 53, 'udp')),
						],
						options: { returnPath: 'tunnel' },
						backends: [taskBackend(net, 'n2t3')],
					},
				],
			});
			for (const family of [4, 6] as const)
				for (const node of ['n1', 'n2']) {
					const r = await net.load('c1', ['-n', 100, '-c', 2, '-t', 2000, ...targets(net, [node], 8085, [family])]);
					assert.equal([r.failures, Object.keys(r.clients)], [{}, [gateway[family]]], `${node}: ${JSON.stringify(r)}`);
					const u = await net.udpload('c1', ['-n', 2, '-c', 8, ...targets(net, [node], 8055, [family])]);
					assert.equal([u.answered, u.lost], [16, 0], `${node}: ${JSON.stringify(u)}`);
				}
			await mesh.change(document);
		});

		test('others keep their address', async ({ net }) => {
			net.ip(
				'c1',
				net.nodes.flatMap((n) => [
					`route del ${net.address(n).v4}/32 dev eth0`,
					`route del ${net.address(n).v6}/128 dev eth0`,
				]),
			);
			await waitFor('others to keep their address', async () => {
				const report = await net.load('c1', ['-n', 4, ...targets(net, net.nodes, 8082)]);
				return Object.keys(report.clients).join() === net.address('c1').v4;
			});
		});
	},
);
