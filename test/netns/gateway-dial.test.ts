/*
 * Tasks on Beeline's own overlay networks that dial a published port of a node: through their leg on the gateway's bridge, as
 * dial.test.ts has it for Docker's.
 *
 *	 c1 .100                  n1 .1                            n2 .2                     n3 .3          192.168.78.0/24
 *	 --+------------------------+--------------------------------+-------------------------+--
 *	                  beeline_gw 172.30.0.1            beeline_gw 172.30.0.1     beeline_gw 172.30.0.1
 *	                 h1    h2    i1    x1               t1    t2    x2                    x3
 *
 * All are on red (5001, 10.44.0.0/24). x1, x2 and x3 are no service's, so n3 has no backend at all. Published: 8080 h1 and h2, 8081 t1 and t2 (tunnel), 8082 i1 alone,
 * 8090 a process
 * of n1, 8053 UDP of h1 and h2, 8054 UDP of t1 and t2.
 */
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { dialAll, Mesh, onTopology, type ServiceDocument, targets } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const GATEWAY = '172.30.0.1';
/** Endpoint → its node, its address, and its services. */
const PLACES = {
	h1: ['n1', '10.44.0.11', 'here'],
	h2: ['n1', '10.44.0.12', 'here'],
	i1: ['n1', '10.44.0.13', 'itself'],
	t1: ['n2', '10.44.0.81', 'there'],
	t2: ['n2', '10.44.0.82', 'there'],
	x1: ['n1', '10.44.0.19', undefined],
	x2: ['n2', '10.44.0.89', undefined],
	x3: ['n3', '10.44.0.139', undefined],
} as const;

function service(name: string, ports: ServiceDocument['ports'], options: object = {}): ServiceDocument {
	return {
		name,
		ports,
		options: { returnPath: 'tunnel', ...options },
		networks: [{ name: 'red' }],
		endpointMode: 'dnsrr',
		backends: [],
	};
}

async function build(): Promise<{ net: Topology; mesh: Mesh }> {
	return onTopology({ nodes: 3, clients: 1, tasks: {} }, async (net) => {
		const mesh = await Mesh.start(net, {
			services: [
				service('here', [
					{ published: 8080, target: 80 },
					{ published: 8053, target: 53, protocol: 'udp' },
				]),
				service('there', [
					{ published: 8081, target: 80 },
					{ published: 8054, target: 53, protocol: 'udp' },
				]),
				service('itself', [{ published: 8082, target: 80 }]),
				{
					name: 'process',
					ports: [{ published: 8090, target: 9000 }],
					backends: [{ node: 'n1' }],
				},
			],
			networks: [
				{
					name: 'red',
					subnet: '10.44.0.0/24',
					vni: 5001,
					attachable: true,
					endpoints: Object.entries(PLACES).map(([name, [node, address, of]]) => ({
						...{ node, address, name },
						...(of === undefined ? {} : { service: of }),
					})),
				},
			],
		});
		for (const [name, [node, , of]] of Object.entries(PLACES)) {
			net.addNamespace(name);
			const attach = ['endpoint', 'attach', '--network', 'red', '--netns', net.ns(name), '-o', 'json'];
			const { stdout } = await mesh
				.agent(node)
				.cli([...attach, '--name', name, ...(of === undefined ? [] : ['--service', of])]);
			assert.is((JSON.parse(stdout) as EndpointView).address, PLACES[name as keyof typeof PLACES][1]);
			await net.httpd(name, 80);
			await net.udpecho(name, 53);
		}
		await net.httpd('n1', 9000);
		// Each node knows that the other can deliver to its own.
		await waitFor(
			'the published ports to be served on all nodes',
			async () => {
				for (const [port, count] of [
					[8080, 2],
					[8081, 2],
					[8082, 1],
				] as const) {
					const report = await net.load('c1', ['-n', 40, '-c', 4, '-t', 1000, ...targets(net, net.nodes, port, [4])]);
					if (report.ok !== 40 || Object.keys(report.backends).length !== count) return false;
				}
				return true;
			},
			20_000,
		);
		return { mesh };
	});
}

scenario(
	'tasks of overlay networks that dial',
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
			more: readonly (string | number)[] = [],
		) => {
			const report = await dialAll({ net, mesh }, from, targets(net, [node], port, [4]), ['-n', 60, ...more]);
			return { backends: Object.keys(report.backends).sort(), clients: Object.keys(report.clients) };
		};

		test('its own node’s port: tasks there, the dialling one too, see their gateway', async ({ net, mesh }) => {
			for (const from of ['h1', 'x1'])
				assert.equal(await dial(net, mesh, from, 'n1', 8080), { backends: ['h1', 'h2'], clients: [GATEWAY] }, from);
			assert.equal(await dial(net, mesh, 'i1', 'n1', 8082), { backends: ['i1'], clients: [GATEWAY] }, 'itself');
		});

		test('its own node’s port: tasks of another node, and a process, see the node and the task', async ({
			net,
			mesh,
		}) => {
			const node = net.address('n1').v4;
			for (const from of ['h1', 'x1'])
				assert.equal(await dial(net, mesh, from, 'n1', 8081), { backends: ['t1', 't2'], clients: [node] }, from);
			const { backends, clients } = await dial(net, mesh, 'x1', 'n1', 8090);
			assert.equal(backends, ['n1']);
			assert.match(clients.join(), /^172\.30\.0\.\d+$/);
		});

		test('a node without a backend: its own port, and another’s', async ({ net, mesh }) => {
			const node = net.address('n3').v4;
			for (const [at, port, backends] of [
				['n3', 8080, ['h1', 'h2']],
				['n3', 8081, ['t1', 't2']],
				['n1', 8080, ['h1', 'h2']],
				['n1', 8081, ['t1', 't2']],
			] as const)
				assert.equal(
					await dial(net, mesh, 'x3', at, port),
					{ backends: [...backends], clients: [node] },
					`${at}:${port}`,
				);
		});

		test('another node’s port, whose tasks are here, there, or itself', async ({ net, mesh }) => {
			const node = net.address('n1').v4;
			for (const [from, port, backends] of [
				['x1', 8080, ['h1', 'h2']],
				['x1', 8081, ['t1', 't2']],
				['i1', 8082, ['i1']],
			] as const)
				assert.equal(await dial(net, mesh, from, 'n2', port), { backends: [...backends], clients: [node] }, `${port}`);
			assert.equal((await dial(net, mesh, 'x2', 'n2', 8081)).clients, [GATEWAY], 'on the other node as here');
		});

		for (const [way, flag] of [
			['down', '-D'],
			['up', '-U'],
		] as const)
			test(`bodies of 4 MB ${way}`, async ({ net, mesh }) => {
				for (const [node, port] of [
					['n1', 8080],
					['n1', 8081],
					['n1', 8090],
					['n2', 8080],
					['n2', 8081],
				] as const)
					await dial(net, mesh, 'h1', node, port, ['-n', 2, '-c', 1, '-t', 20_000, flag, 4_000_000]);
				await dial(net, mesh, 'i1', 'n1', 8082, ['-n', 2, '-c', 1, '-t', 20_000, flag, 4_000_000]);
			});

		test('UDP', async ({ net }) => {
			for (const [from, port] of [
				['h1', 8053],
				['x1', 8053],
				['x1', 8054],
			] as const) {
				const report = await net.udpload(from, ['-n', 10, '-c', 5, ...targets(net, ['n1'], port, [4])]);
				assert.equal([report.answered, report.lost], [50, 0], `${from} ${port} ${JSON.stringify(report)}`);
				assert.equal(Object.keys(report.clients), [port === 8054 ? net.address('n1').v4 : GATEWAY]);
			}
		});

		test('no address of a bridge is ever on the wire', async ({ net }) => {
			const capture = await net.capture('sw', 'n1-eth0', 'ip');
			await net.load('x1', ['-n', 4, ...targets(net, ['n1'], 8081, [4])]);
			const seen = await capture.stop();
			assert.ok(
				seen.some((line) => / 192\.168\.78\.1\.\d+ > 192\.168\.78\.1\.8081/.test(line)),
				seen[0],
			);
			assert.equal(
				seen.filter((line) => /172\.30\.0\.\d/.test(line)),
				[],
			);
		});

		test('a killed agent leaves them served, and so does its successor', async ({ net, mesh }) => {
			await mesh.agent('n1').stop('SIGKILL');
			assert.equal((await dial(net, mesh, 'x1', 'n1', 8080)).clients, [GATEWAY]);
			await mesh.agent('n1').start();
			assert.equal((await dial(net, mesh, 'x1', 'n1', 8081)).clients, [net.address('n1').v4]);
		});
	},
);
