/*
 * Bad configuration: one sentence, exit 1, nothing changed. Topology: n1 alone.
 */
import { existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import * as assert from 'uvu/assert';
import { Agent, beeline, Mesh, type MeshDocument, targets, taskBackend } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { root } from '../support/tools.js';
import { slowness, waitFor } from '../support/wait.js';

const nodes = [{ name: 'n1', address: '192.168.78.1' }];
const service = (more: object) => ({
	name: 'web',
	ports: [{ published: 8080, target: 80 }],
	backends: [{ node: 'n1' }],
	...more,
});

/** name, beeline.yaml's additions, mesh.yaml, what the sentence must say */
const cases: readonly (readonly [string, object, object, RegExp])[] = [
	['an unknown key in beeline.yaml', { uplink: ['eth0'] }, { nodes, services: [] }, /beeline\.yaml.*uplink/],
	['an unknown key in mesh.yaml', {}, { nodes, services: [service({ colour: 'red' })] }, /mesh\.yaml.*colour/],
	['port 0', {}, { nodes, services: [service({ ports: [{ published: 0, target: 80 }] })] }, /published.*0/],
	['port 70000', {}, { nodes, services: [service({ ports: [{ published: 70_000, target: 80 }] })] }, /70000/],
	['a published port twice', {}, { nodes, services: [service({}), service({ name: 'other' })] }, /8080/],
	['a node without address', {}, { nodes: [{ name: 'n1' }], services: [] }, /address/],
	['a backend on an unknown node', {}, { nodes, services: [service({ backends: [{ node: 'n9' }] })] }, /n9/],
	['a VNI out of range', { datapath: { vni: 16_777_216 } }, { nodes, services: [] }, /vni|VNI/],
	[
		'a network with the VNI of the tunnel between nodes',
		{ datapath: { vni: 77 } },
		{ nodes, services: [], networks: [{ name: 'red', subnet: '10.44.0.0/24', vni: 77 }] },
		/mesh\.yaml:\d+:\d+: networks\[0\]\.vni is 77, the VNI of the tunnel between nodes \(datapath\.vni\): expected another$/,
	],
	['an uplink without the node’s address', { uplinks: ['t1'] }, { nodes, services: [] }, /t1.*name the uplink/],
	['a missing uplink', { uplinks: ['eth7'] }, { nodes, services: [] }, /eth7/],
	[
		'listening beyond loopback without a token',
		{ http: { listen: ['0.0.0.0:7980'] } },
		{ nodes, services: [] },
		/token/,
	],
	[
		'listening beyond loopback with a token file that is not there',
		{ http: { listen: ['192.168.78.1:7980'], tokenFile: '/nonexistent/token' } },
		{ nodes, services: [] },
		/beyond loopback needs a token: token file \/nonexistent\/token cannot be read/,
	],
	[
		'an address to listen on that is not this node’s',
		{ http: { listen: ['127.0.0.1:7980', '[fd99::1]:7980'], tokenFile: '/etc/passwd' } },
		{ nodes, services: [] },
		/^listen on \[fd99::1\]:7980: this node has no such address: set http\.listen$/,
	],
	[
		'a socket where no directory can be made',
		{ http: { socket: '/proc/none/beeline.sock' } },
		{ nodes, services: [] },
		/no socket can be made in \/proc\/none \(ENOENT\): set http\.socket$/,
	],
	[
		'a file where the socket should be',
		{ http: { socket: '/etc/passwd' } },
		{ nodes, services: [] },
		/^\/etc\/passwd: exists and is no socket: remove it, or set http\.socket$/,
	],
	[
		'a socket whose path is too long',
		{ http: { socket: `/tmp/${'x'.repeat(120)}` } },
		{ nodes, services: [] },
		/beeline\.yaml:\d+:\d+: http\.socket is 125 bytes long/,
	],
	[
		'a node whose address the membership does not know',
		{ node: { name: 'n1', address: '192.168.78.77' } },
		{ nodes, services: [] },
		/^node\.address is 192\.168\.78\.77, and .*mesh\.yaml says n1 is 192\.168\.78\.1: make them the same$/,
	],
];

async function build(): Promise<{ net: Topology }> {
	return { net: await Topology.build({ nodes: 1, tasks: { n1: 1 } }) };
}

scenario(
	'bad configuration',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	({ net }) => net.close(),
	(test) => {
		for (const [name, config, mesh, expected] of cases)
			test(`${name}: one sentence, exit 1, nothing changed`, async ({ net }) => {
				const agent = new Agent(net, 'n1', config as Record<string, unknown>);
				agent.writeConfig();
				agent.writeMesh(mesh as MeshDocument);
				const running = agent.launch();
				const result = await Promise.race([
					running.ended,
					new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), 30_000 * slowness)),
				]);
				if (!result) {
					await agent.detach();
					assert.unreachable('the agent started');
					return;
				}
				assert.is(result.code, 1, result.stdout + result.stderr);
				const lines = result.stderr.trim().split('\n');
				assert.is(lines.length, 1, result.stderr);
				assert.match(lines[0], expected);
				assert.not(existsSync(net.pinRoot('n1')), 'no pin is left');
				assert.not(/xdp/.test(net.exec('n1', ['ip', 'link', 'show', 'eth0']).stdout), 'no program is attached');
			});

		test('without root: one sentence, exit 1', async ({ net }) => {
			const agent = new Agent(net, 'n1');
			agent.writeConfig();
			agent.writeMesh({ nodes, services: [] });
			const result = net.exec(
				'n1',
				[
					'setpriv',
					'--reuid=65534',
					'--regid=65534',
					'--clear-groups',
					'node',
					`${process.cwd()}/bin/beeline`,
					'agent',
					'--config',
					agent.configFile,
				],
				{ mayFail: true },
			);
			assert.is(result.code, 1, result.stdout + result.stderr);
			assert.is(result.stderr.trim().split('\n').length, 1, result.stderr);
			assert.match(result.stderr, /root|CAP_|permission/i);
		});

		test('no clang and no object: one sentence, exit 1, nothing changed', async ({ net }) => {
			if (existsSync(join(root, 'dist/bpf'))) {
				console.log('SKIP no clang and no object: precompiled objects are there (rm -r dist/bpf)');
				return;
			}
			const agent = new Agent(net, 'n1');
			agent.writeConfig();
			agent.writeMesh({ nodes, services: [] });
			// Every command of the machine but clang's.
			const commands = join(net.directory, 'commands');
			mkdirSync(commands);
			for (const directory of ['/usr/bin', '/usr/sbin', '/bin', '/sbin', '/usr/local/bin', dirname(process.execPath)])
				for (const name of existsSync(directory) ? readdirSync(directory) : [])
					if (!/^clang/.test(name) && !existsSync(join(commands, name)))
						symlinkSync(join(directory, name), join(commands, name));
			const result = net.exec('n1', [beeline, 'agent', '--config', agent.configFile], {
				mayFail: true,
				env: { PATH: commands, BEELINE_CACHE: join(net.directory, 'cache'), BEELINE_NO_BUILD: '1' },
			});
			assert.is(result.code, 1, result.stdout + result.stderr);
			assert.is(result.stderr.trim().split('\n').length, 1, result.stderr);
			assert.match(result.stderr, /clang/);
			assert.not(existsSync(net.pinRoot('n1')), 'no pin is left');
		});

		test('a second agent, on the same socket or port, is refused before it touches anything; the first goes on', async ({
			net,
		}) => {
			const first = new Agent(net, 'n1', { http: { listen: ['127.0.0.1:7980'] } });
			first.writeConfig();
			first.writeMesh({ nodes, services: [] });
			await first.start();
			const config = (http: object, pinRoot: string) => {
				const file = join(net.directory, 'second.yaml');
				const membership = { source: 'file', file: first.meshFile };
				writeFileSync(file, JSON.stringify({ node: { name: 'n1' }, membership, http, pinRoot }));
				return file;
			};
			const other = `${net.pinRoot('n1')}-second`;
			const free = join(net.directory, 'second.sock');
			for (const [http, pinRoot, expected] of [
				[{ listen: [], socket: first.socket }, other, /another agent answers there: stop it, or set http\.socket$/],
				[
					{ listen: ['127.0.0.1:7980'], socket: free },
					other,
					/^listen on 127\.0\.0\.1:7980: the port is taken: set http\.l/,
				],
				[{ listen: [], socket: free }, net.pinRoot('n1'), /another process works on it .*: stop it first, or choose/],
			] as const) {
				const result = await net.execAsync('n1', [beeline, 'agent', '--config', config(http, pinRoot)], {
					mayFail: true,
					env: { BEELINE_NO_BUILD: '1' },
				});
				assert.is(result.code, 1, result.stdout + result.stderr);
				assert.is(result.stderr.trim().split('\n').length, 1, result.stderr);
				assert.match(result.stderr.trim(), expected);
				assert.not(existsSync(other), 'no pin is left');
				assert.is((await first.status()).ready, true);
			}
			await first.detach();
			assert.not(existsSync(net.pinRoot('n1')), 'no pin is left');
		});

		test('both families on one port, each named', async ({ net }) => {
			const file = join(net.directory, 'token');
			writeFileSync(file, 'sesame\n');
			const agent = new Agent(net, 'n1', { http: { listen: ['0.0.0.0:7980', '[::]:7980'], tokenFile: file } });
			agent.writeConfig();
			agent.writeMesh({ nodes, services: [] });
			await agent.start();
			for (const host of ['127.0.0.1', '[::1]'])
				assert.is(net.exec('n1', ['curl', '-fsS', `http://${host}:7980/healthz`]).stdout, '{"ok":true}');
			await agent.detach();
		});

		test('a bad reload keeps the running state, says so, and a good one heals it', async ({ net }) => {
			await net.httpd('n1t1', 80);
			const document = {
				services: [{ name: 'web', ports: [{ published: 8080, target: 80 }], backends: [taskBackend(net, 'n1t1')] }],
			};
			const mesh = await Mesh.start(net, document);
			const agent = mesh.agent('n1');
			const works = async () => {
				const report = await net.load('c1', ['-n', 20, '-t', 2000, ...targets(net, ['n1'], 8080)]);
				assert.equal(report.failures, {});
			};
			await works();
			writeFileSync(agent.meshFile, '{ "nodes": [], "servces": [] }');
			const error = await waitFor('the refusal', async () => (await agent.status()).membership.error);
			assert.match(error, /servces|nodes/);
			await works();
			await mesh.change(document);
			await waitFor('the refusal to go', async () => (await agent.status()).membership.error === null);
			await works();
			await mesh.close();
			assert.not(existsSync(net.pinRoot('n1')), 'no pin is left');
		});
	},
);
