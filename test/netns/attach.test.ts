/*
 * `beeline endpoint attach --pid`: processes in namespaces that have no name. Two nodes of the default topology, and on them
 *
 *	red  5001 10.44.0.0/24     one on n1, two on n2: each a sleep in a namespace of its own (unshare)
 */
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { Mesh } from '../support/beeline.js';
import { type Running, Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

interface Built {
	readonly net: Topology;
	readonly mesh: Mesh;
}

async function build(): Promise<Built> {
	const net = await Topology.build({ nodes: 2, clients: 1, tasks: {} });
	try {
		const mesh = await Mesh.start(net, {
			services: [],
			networks: [{ name: 'red', subnet: '10.44.0.0/24', vni: 5001, attachable: true }],
		});
		return { net, mesh };
	} catch (error) {
		net.close();
		throw error;
	}
}

/** A process in a namespace of its own, once it is there. */
async function sleeper(net: Topology, node: string): Promise<{ readonly pid: number; readonly process: Running }> {
	const process = net.spawn(node, ['unshare', '--net', 'sleep', '300']);
	const pid = process.child.pid as number;
	await waitFor('the process to sleep', () => net.exec(node, ['cat', `/proc/${pid}/comm`]).stdout.trim() === 'sleep');
	return { pid, process };
}

async function attach({ mesh }: Built, node: string, args: readonly (string | number)[]): Promise<EndpointView> {
	const attach = ['endpoint', 'attach', '--network', 'red', ...args.map(String), '-o', 'json'];
	return JSON.parse((await mesh.agent(node).cli(attach)).stdout) as EndpointView;
}
async function refused({ mesh }: Built, node: string, args: readonly (string | number)[]): Promise<string> {
	const attach = ['endpoint', 'attach', '--network', 'red', ...args.map(String)];
	const r = await mesh.agent(node).cli(attach, { mayFail: true });
	assert.is(r.code, 1, args.join(' '));
	return r.stderr;
}
const inside = (net: Topology, pid: number, ...command: string[]) =>
	net.exec('n1', ['nsenter', '-t', `${pid}`, '-n', ...command], { mayFail: true });
const endpoints = async ({ mesh }: Built, node: string) =>
	(await mesh.agent(node).get<{ endpoints: EndpointView[] }>('/v1/endpoints')).endpoints;

scenario(
	'endpoint attach --pid',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('processes on two nodes reach each other, by name where one node knows it, and the world', async (b) => {
			const { net } = b;
			const [one, two] = [await sleeper(net, 'n1'), await sleeper(net, 'n2')];
			const e1 = await attach(b, 'n1', ['--pid', one.pid, '--name', 'one']);
			const e2 = await attach(b, 'n2', ['--pid', two.pid, '--name', 'two']);
			assert.equal([e1.address, e2.address], ['10.44.0.2', '10.44.0.128']);
			assert.is(e1.netns, `/proc/${one.pid}/ns/net`);
			const [link] = JSON.parse(inside(net, one.pid, 'ip', '-j', 'addr', 'show', 'dev', e1.interface).stdout);
			assert.equal([link.address, link.mtu], ['02:42:0a:2c:00:02', 1450]);
			assert.is(inside(net, one.pid, 'ping', '-n', '-c1', '-W2', '10.44.0.128').code, 0);
			assert.is(inside(net, two.pid, 'ping', '-n', '-c1', '-W2', '10.44.0.2').code, 0);
			assert.is(inside(net, one.pid, 'ping', '-n', '-c1', '-W2', net.address('c1').v4).code, 0, 'the way out');
			const dig = inside(net, one.pid, 'dig', '@127.0.0.11', '+short', '+tries=1', 'one');
			assert.is(dig.stdout, '10.44.0.2\n');
		});

		test('no such process, one of the node itself, and one that is attached are refused, and leave nothing', async (b) => {
			const { net } = b;
			const before = await endpoints(b, 'n1');
			const links = () => (net.ipJson('n1', 'link show') as unknown[]).length;
			const had = links();
			const gone = await sleeper(net, 'n1');
			await gone.process.stop();
			assert.match(await refused(b, 'n1', ['--pid', gone.pid]), new RegExp(`there is no process ${gone.pid} where`));
			const own = net.spawn('n1', ['sleep', '300']);
			assert.match(await refused(b, 'n1', ['--pid', own.child.pid as number]), /is the node's own network namespace/);
			assert.match(await refused(b, 'n1', ['--pid', 'x']), /--pid x: expected the number of a process/);
			const [e] = before as [EndpointView];
			const pid = /\d+/.exec(e.netns)?.[0] as string;
			assert.match(await refused(b, 'n1', ['--pid', pid]), /is on network red already, as 10\.44\.0\.2/);
			assert.equal(await endpoints(b, 'n1'), before);
			assert.is(links(), had);
		});

		test('an endpoint goes with its last process, names with the process that was named', async (b) => {
			const { net } = b;
			const { pid, process } = await sleeper(net, 'n1');
			const e = await attach(b, 'n1', ['--pid', pid, '--name', 'brief']);
			await process.stop('SIGKILL');
			await waitFor('the endpoint to be forgotten', async () => !(await endpoints(b, 'n1')).some((x) => x.id === e.id));
			const again = await sleeper(net, 'n1');
			assert.is((await attach(b, 'n1', ['--pid', again.pid])).address, e.address, 'its address is free');
		});
	},
);
