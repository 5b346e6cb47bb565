/*
 * Docker's networks on Beeline's, on real engines (./bed) whose agents follow mesh.yaml: the plugin socket of the agent is what
 * `docker network create -d beeline` speaks to. Containers are on
 *
 *	red     5001 10.44.0.0/24 fd00:44::/64    node1 owns .0/25, node2 .128/25; mesh.yaml names two endpoints of each
 *	blue    5002 10.44.0.0/24                 the same subnet
 *	shut    5003 10.45.0.0/24 internal
 *	closed  5004 10.46.0.0/24                 not attachable
 *	green   5005 10.47.0.0/24                 a network of the swarm, by the managed plugin
 */
import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const NODES = [1, 2];

/** Docker takes `--ip` only where somebody typed a subnet. */
const RED = ['--ipv6', '--subnet', '10.44.0.0/24', '--subnet', 'fd00:44::/64'];

interface Shared {
	readonly swarm: Swarm;
}

function mesh(swarm: Swarm): object {
	return {
		nodes: NODES.map((n) => ({ name: `node${n}`, address: swarm.address(n) })),
		services: [{ name: 'shop', ports: [], networks: [{ name: 'red', vip: '10.44.0.100' }] }],
		networks: [
			{
				name: 'red',
				subnet: '10.44.0.0/24',
				subnet6: 'fd00:44::/64',
				vni: 5001,
				attachable: true,
				endpoints: [
					{ node: 'node1', address: '10.44.0.60', name: 'till1', service: 'shop' },
					{ node: 'node1', address: '10.44.0.61', name: 'near' },
					{ node: 'node2', address: '10.44.0.160', name: 'till2', service: 'shop' },
					{ node: 'node2', address: '10.44.0.161', name: 'far', aliases: ['away'] },
				],
			},
			{ name: 'blue', subnet: '10.44.0.0/24', vni: 5002, attachable: true },
			{ name: 'shut', subnet: '10.45.0.0/24', vni: 5003, attachable: true, options: { internal: true } },
			{ name: 'closed', subnet: '10.46.0.0/24', vni: 5004 },
			{ name: 'sealed', subnet: '10.48.0.0/24', vni: 5006, attachable: true, options: { encrypted: true } },
			{ name: 'green', subnet: '10.47.0.0/24', vni: 5005, attachable: true },
		],
	};
}

async function build(): Promise<Shared> {
	sweepBeds();
	const swarm = Swarm.up(2);
	try {
		for (const n of NODES) {
			writeFileSync(join(swarm.directory, `node${n}`, 'mesh.yaml'), JSON.stringify(mesh(swarm)));
			swarm.launch(n, agentConfig(swarm, n));
		}
		for (const n of NODES) await swarm.ready(n);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function agentConfig(swarm: Swarm, n: number): object {
	return {
		membership: { source: 'file', file: 'mesh.yaml' },
		dockerPlugin: { stateFile: join(swarm.directory, `node${n}`, 'docker-plugin.json') },
	};
}

const create = (swarm: Swarm, node: number, name: string, ...more: string[]) =>
	swarm.docker(
		node,
		...['network', 'create', '-d', 'beeline', '-o', `beeline.network=${name}`],
		...['--ipam-driver', 'beeline', '--ipam-opt', `beeline.network=${name}`],
		...more,
		name,
	);

const run = (swarm: Swarm, node: number, name: string, network: string, ...more: string[]) =>
	swarm.docker(
		node,
		...['run', '-d', '--name', name, '--hostname', name, '--network', network, ...more, 'beeline-test'],
	);

const addressOf = (swarm: Swarm, node: number, name: string) =>
	swarm.docker(node, 'inspect', '-f', '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}', name);

/** What the docker command printed when it failed. */
function refused(swarm: Swarm, node: number, ...args: string[]): string {
	try {
		swarm.docker(node, ...args);
	} catch (e) {
		return (e as { stderr: string }).stderr;
	}
	throw new Error(`docker ${args.join(' ')} was expected to fail`);
}

const pings = (swarm: Swarm, node: number, from: string, to: string): boolean => {
	try {
		swarm.docker(node, 'exec', from, 'ping', '-c', '1', '-W', '2', to);
		return true;
	} catch {
		return false;
	}
};

/** Waits until the tasks of `web` on both nodes have answered a container by the name of their service. */
async function answersFromBoth(swarm: Swarm, node: number, container: string): Promise<void> {
	const seen = new Set<string>();
	await waitFor(
		`web to answer ${container} from both nodes`,
		() => {
			try {
				const page = swarm.docker(node, 'exec', container, 'wget', '-qO-', 'http://web/');
				seen.add((JSON.parse(page) as { backend: string }).backend);
			} catch {
				// Names travel by gossip.
			}
			return NODES.every((n) => seen.has(`node${n}`));
		},
		60_000,
		100,
	);
}

const endpoints = async (swarm: Swarm, node: number) =>
	(await swarm.get<{ endpoints: EndpointView[] }>(node, '/v1/endpoints')).endpoints;

scenario(
	'Docker plugin',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('a container on one engine has an address of its node’s part, Docker’s MAC, the MTU and a way out', async ({
			swarm,
		}) => {
			create(swarm, 1, 'red', ...RED, '--aux-address', 'printer=10.44.0.77');
			run(swarm, 1, 'r1', 'red');
			assert.is(addressOf(swarm, 1, 'r1'), '10.44.0.2');
			const shown = swarm.docker(1, 'exec', 'r1', 'ip', 'addr', 'show', 'dev', 'eth0');
			assert.match(shown, /mtu 1450/);
			assert.match(shown, /02:42:0a:2c:00:02/);
			assert.match(shown, /inet 10\.44\.0\.2\/24/);
			assert.match(shown, /inet6 fd00:44::a2c:2\/64/);
			assert.ok(pings(swarm, 1, 'r1', swarm.client), 'by docker_gwbridge');
			await waitFor('the engine to be asked for its name', async () => {
				const [e] = await endpoints(swarm, 1);
				return e?.name === 'r1' && e.interface === 'eth0';
			});
			const [e] = await endpoints(swarm, 1);
			assert.equal(
				[e.id, e.network, e.mac, e.address6],
				['red-10.44.0.2', 'red', '02:42:0a:2c:00:02', 'fd00:44::a2c:2'],
			);
		});

		test('containers on two engines, and on one, reach each other in both families', async ({ swarm }) => {
			create(swarm, 2, 'red', ...RED);
			run(swarm, 2, 'r2', 'red');
			run(swarm, 2, 'r2b', 'red');
			assert.is(addressOf(swarm, 2, 'r2'), '10.44.0.128');
			for (const to of ['10.44.0.128', '10.44.0.129', 'fd00:44::a2c:80']) assert.ok(pings(swarm, 1, 'r1', to), to);
			for (const to of ['10.44.0.2', '10.44.0.129', 'fd00:44::a2c:2', 'fd00:44::a2c:81'])
				assert.ok(pings(swarm, 2, 'r2', to), to);
			assert.ok(pings(swarm, 2, 'r2', 'r2b'), 'by name on one engine');
			const page = JSON.parse(swarm.docker(1, 'exec', 'r1', 'wget', '-qO-', 'http://10.44.0.128/')) as {
				backend: string;
				client: string;
			};
			assert.equal([page.backend, page.client], ['r2', '10.44.0.2']);
		});

		test('two containers on two engines without a swarm between them reach each other by name', async ({ swarm }) => {
			const upstream = swarm.ipc(
				'client',
				fileURLToPath(new URL('../support/upstream.js', import.meta.url)),
				swarm.client,
			);
			try {
				await upstream.call('asked');
				run(swarm, 1, 'near', 'red', '--ip', '10.44.0.61', '--dns', swarm.client);
				run(swarm, 1, 'till1', 'red', '--ip', '10.44.0.60');
				run(swarm, 2, 'till2', 'red', '--ip', '10.44.0.160');
				run(swarm, 2, 'local', 'red');
				// Docker knows a "local" of its own on node2, and node1's is another.
				run(swarm, 2, 'far', 'red', '--ip', '10.44.0.161');
				// Names are there a moment after the container's namespace.
				await waitFor('near to reach far by name', () => pings(swarm, 1, 'near', 'far'));
				await waitFor('far to reach near by name', () => pings(swarm, 2, 'far', 'near'));
				for (const to of ['away', 'far.red']) assert.ok(pings(swarm, 1, 'near', to), to);
				const page = JSON.parse(swarm.docker(1, 'exec', 'near', 'wget', '-qO-', 'http://far/')) as Record<
					string,
					string
				>;
				assert.is(page.backend, 'far');
				assert.ok(['10.44.0.61', 'fd00:44::a2c:3d'].includes(page.client), page.client);

				const dig = (node: number, container: string, ...what: string[]): string[] => {
					const netns = swarm.docker(node, 'inspect', '-f', '{{.NetworkSettings.SandboxKey}}', container);
					const ask = ['dig', '@127.0.0.11', '+short', '+tries=1', '+time=10', ...what];
					return swarm
						.exec(node, ['nsenter', `--net=${netns}`, '--', ...ask], true)
						.stdout.trim()
						.split('\n')
						.sort();
				};
				assert.equal(dig(1, 'near', 'far'), ['10.44.0.161']);
				assert.equal(dig(1, 'near', 'far', 'AAAA'), ['fd00:44::a2c:a1']);
				assert.equal(dig(1, 'near', '+tcp', 'far'), ['10.44.0.161']);
				assert.equal(dig(1, 'near', '-x', '10.44.0.161'), ['far.red.']);
				assert.equal(dig(1, 'near', 'shop'), ['10.44.0.100'], 'the VIP of a service of mesh.yaml');
				assert.equal(dig(2, 'far', 'tasks.shop'), ['10.44.0.160', '10.44.0.60']);
				const answered = new Set(
					Array.from({ length: 20 }, () => {
						const got = swarm.docker(1, 'exec', 'near', 'wget', '-qO-', 'http://shop/');
						return (JSON.parse(got) as { backend: string }).backend;
					}),
				);
				assert.equal([...answered].sort(), ['till1', 'till2'], 'the name, its VIP, its tasks on both nodes');

				assert.equal(dig(1, 'near', 'good.example'), ['203.0.113.7'], 'by the server of --dns');
				assert.is(dig(1, 'near', 'big.example').length, 100, 'cut over UDP, whole over TCP');
				assert.match(dig(1, 'near', '+noshort', '+comments', 'no.example').join('\n'), /status: NXDOMAIN/);
				assert.match(
					dig(2, 'far', '+noshort', '+comments', 'good.example').join('\n'),
					/status: SERVFAIL/,
					'nobody to ask',
				);
				// Whoever asks that server himself means it.
				const netns = swarm.docker(1, 'inspect', '-f', '{{.NetworkSettings.SandboxKey}}', 'near');
				const direct = ['dig', `@${swarm.client}`, '+tries=1', 'far'];
				assert.match(swarm.exec(1, ['nsenter', `--net=${netns}`, '--', ...direct]).stdout, /status: NXDOMAIN/);
				const asked = await upstream.call<string[]>('asked');
				assert.equal([...new Set(asked.filter((q) => /^far |^shop /.test(q)))], ['far A'], 'by the direct query alone');

				// Docker's own names win: its engine's "local" is node2's container, and what mesh.yaml says of "far" comes after.
				assert.equal(dig(2, 'far', 'local'), [addressOf(swarm, 2, 'local')]);
				assert.equal(dig(1, 'near', 'local'), [''], 'a container that mesh.yaml does not name is its engine’s alone');
				const facts = await swarm.exec(1, [
					'sh',
					'-c',
					'curl -s --unix-socket /run/beeline/beeline.sock http://x/metrics',
				]);
				assert.match(facts.stdout, /beeline_dns_namespaces\{state="beside"\} 3/);
			} finally {
				await upstream.kill();
			}
		});

		test('without an agent names outside are asked of the world as ever', async ({ swarm }) => {
			const upstream = swarm.ipc(
				'client',
				fileURLToPath(new URL('../support/upstream.js', import.meta.url)),
				swarm.client,
			);
			try {
				await upstream.call('asked');
				await swarm.stopAgent(1, 'SIGKILL');
				const netns = swarm.docker(1, 'inspect', '-f', '{{.NetworkSettings.SandboxKey}}', 'near');
				const dig = (what: string) =>
					swarm.exec(1, ['nsenter', `--net=${netns}`, '--', 'dig', '@127.0.0.11', '+short', '+tries=1', what], true)
						.stdout;
				assert.is(dig('good.example'), '203.0.113.7\n');
				await swarm.start(1, agentConfig(swarm, 1));
				await waitFor('names to be served again', () => dig('far') === '10.44.0.161\n');
				assert.is(dig('good.example'), '203.0.113.7\n');
				for (const name of ['near', 'till1']) swarm.docker(1, 'rm', '-f', name);
				for (const name of ['far', 'till2', 'local']) swarm.docker(2, 'rm', '-f', name);
			} finally {
				await upstream.kill();
			}
		});

		test('networks are apart though their subnets are one, and an internal one has no way out', async ({ swarm }) => {
			for (const n of NODES) create(swarm, n, 'blue');
			create(swarm, 1, 'shut');
			run(swarm, 1, 'b1', 'blue');
			run(swarm, 2, 'b2', 'blue');
			run(swarm, 1, 's1', 'shut');
			assert.is(addressOf(swarm, 1, 'b1'), '10.44.0.2', 'another network, the same subnet');
			assert.ok(pings(swarm, 1, 'b1', '10.44.0.128'), 'b2');
			assert.not(pings(swarm, 1, 'b1', '10.44.0.129'), 'r2b is on red');
			assert.not(pings(swarm, 1, 's1', swarm.client));
			assert.match(swarm.docker(1, 'exec', 's1', 'ip', 'addr'), /inet 10\.45\.0\.2\/24/);
		});

		test('addresses that are not this node’s to give, and networks that cannot be, are refused with a sentence', async ({
			swarm,
		}) => {
			const image = ['beeline-test', 'true'];
			const red = ['run', '--rm', '--network', 'red'];
			assert.match(refused(swarm, 1, ...red, '--ip', '10.44.0.200', ...image), /outside of 10\.44\.0\.0\/25, the part/);
			for (const taken of ['10.44.0.2', '10.44.0.77'])
				assert.match(refused(swarm, 1, ...red, '--ip', taken, ...image), /Docker has it already, on this node/);
			const net = ['network', 'create', '-d', 'beeline'];
			const ipam = ['--ipam-driver', 'beeline'];
			const both = (name: string) => [
				...ipam,
				'--ipam-opt',
				`beeline.network=${name}`,
				'-o',
				`beeline.network=${name}`,
			];
			assert.match(refused(swarm, 1, ...net, ...both('none'), 'x'), /no network none; it has red, blue, shut/);
			assert.match(
				refused(swarm, 1, ...net, ...both('sealed'), 'x'),
				/sealed is encrypted, and datapath.secretFile is not/,
			);
			assert.match(refused(swarm, 1, ...net, ...both('closed'), 'x'), /closed is not manually attachable/);
			assert.match(refused(swarm, 1, ...net, '-o', 'beeline.network=red', 'x'), /add --ipam-driver beeline --ipam-opt/);
			assert.match(
				refused(swarm, 1, ...net, ...ipam, '--subnet', '10.44.0.0/24', 'x'),
				/the subnet of red and blue: say which/,
			);
			assert.match(refused(swarm, 1, ...net, ...both('red'), '-o', 'mtu=3', 'x'), /mtu is no option of Beeline's/);
			assert.match(
				refused(swarm, 1, ...net, ...both('red'), '--gateway', '10.44.0.9', '--subnet', '10.44.0.0/24', 'x'),
				/gateway of network red is 10\.44\.0\.1/,
			);
			swarm.docker(1, ...net, ...ipam, '--subnet', '10.47.0.0/24', 'by-subnet');
			swarm.docker(1, 'network', 'rm', 'by-subnet');
			const r = swarm.exec(1, [join(root, 'bin/beeline'), 'endpoint', 'detach', 'red-10.44.0.2'], true);
			assert.match(r.stderr, /attached by Docker: docker network disconnect/);
		});

		test('a container that is gone leaves nothing, and its address is free', async ({ swarm }) => {
			const before = await endpoints(swarm, 2);
			run(swarm, 1, 'r3', 'red', '--ip', '10.44.0.9', '--ip6', 'fd00:44::a2c:9');
			swarm.docker(1, 'network', 'disconnect', 'red', 'r3');
			assert.is((await endpoints(swarm, 1)).filter((e) => e.network === 'red').length, 1);
			swarm.docker(1, 'network', 'connect', 'red', 'r3');
			assert.ok(pings(swarm, 1, 'r3', '10.44.0.128'));
			swarm.docker(1, 'rm', '-f', 'r3');
			swarm.docker(2, 'rm', '-f', 'r2b');
			assert.is((await endpoints(swarm, 2)).length, before.length - 1);
			assert.not(pings(swarm, 1, 'r1', '10.44.0.129'));
			run(swarm, 2, 'r2c', 'red');
			assert.is(addressOf(swarm, 2, 'r2c'), '10.44.0.129');
			assert.ok(pings(swarm, 1, 'r1', '10.44.0.129'));
			swarm.docker(2, 'rm', '-f', 'r2c');
		});

		test('an agent that is killed leaves containers their network, and its successor serves Docker', async ({
			swarm,
		}) => {
			await swarm.stopAgent(2, 'SIGKILL');
			assert.ok(pings(swarm, 1, 'r1', '10.44.0.128'));
			await swarm.start(2, agentConfig(swarm, 2));
			assert.ok(pings(swarm, 1, 'r1', '10.44.0.128'));
			run(swarm, 2, 'r2d', 'red');
			assert.is(addressOf(swarm, 2, 'r2d'), '10.44.0.129');
			assert.ok(pings(swarm, 1, 'r1', '10.44.0.129'));
			swarm.docker(2, 'rm', '-f', 'r2d');
		});

		test('by the managed plugin a network is the swarm’s: containers and services of two engines meet by name', async ({
			swarm,
		}) => {
			const plugin = join(swarm.directory, 'plugin');
			execFileSync(join(root, 'docker/plugin/build'), [plugin]);
			const config = ['--ipam-driver', 'beeline-swarm:latest', '--ipam-opt', 'beeline.network=green'];
			for (const n of NODES) {
				swarm.docker(n, 'plugin', 'create', 'beeline-swarm', plugin);
				swarm.docker(n, 'plugin', 'enable', 'beeline-swarm');
				swarm.docker(n, 'network', 'create', '--config-only', ...config, '-o', 'beeline.network=green', 'green-here');
			}
			const net = ['network', 'create', '-d', 'beeline-swarm:latest', '--scope', 'swarm', '--attachable'];
			swarm.docker(1, ...net, '--config-from', 'green-here', 'green');
			run(swarm, 1, 'g1', 'green');
			run(swarm, 2, 'g2', 'green', '--network-alias', 'store');
			for (const to of ['g2', 'store'])
				await waitFor(`g1 to reach ${to}`, () => pings(swarm, 1, 'g1', to), 20_000, 200);
			await waitFor('g2 to reach g1', () => pings(swarm, 2, 'g2', 'g1'), 20_000, 200);

			const create = ['service', 'create', '-d', '--no-resolve-image', '--network', 'green', '--replicas', '2'];
			swarm.docker(
				1,
				...create,
				'--name',
				'web',
				'--hostname',
				'{{.Node.Hostname}}',
				'--stop-grace-period',
				'1s',
				'beeline-test:latest',
			);
			await waitFor('web on both nodes', () => new Set(swarm.tasks('web').map((t) => t.node)).size === 2, 30_000, 200);
			await answersFromBoth(swarm, 2, 'g2');
		});

		test('an engine that is killed and comes again finds its networks, and leaves no endpoint of the dead', async ({
			swarm,
		}) => {
			swarm.exec(2, ['sh', '-c', 'kill -KILL $(cat /run/docker.pid)']);
			await waitFor(
				'the engine of node2',
				() => {
					try {
						return swarm.docker(2, 'ps', '-aq').length > 0;
					} catch {
						return false;
					}
				},
				30_000,
				200,
			);
			swarm.docker(2, 'start', 'r2');
			await waitFor('r2 to be alone on red', async () => {
				const red = (await endpoints(swarm, 2)).filter((e) => e.network === 'red');
				return red.length === 1 && red[0].address === addressOf(swarm, 2, 'r2');
			});
			assert.ok(pings(swarm, 1, 'r1', addressOf(swarm, 2, 'r2')));
			await answersFromBoth(swarm, 1, 'g1');
		});

		test('a plugin whose file was lost asks the engine which network one is', async ({ swarm }) => {
			await swarm.stopAgent(2);
			rmSync(join(swarm.directory, 'node2', 'docker-plugin.json'));
			await swarm.start(2, agentConfig(swarm, 2));
			run(swarm, 2, 'r2e', 'red');
			assert.ok(pings(swarm, 2, 'r2e', '10.44.0.2'));
			swarm.docker(2, 'rm', '-f', 'r2e');
		});

		test('nothing is left when containers, networks and agents have gone', async ({ swarm }) => {
			swarm.docker(1, 'service', 'rm', 'web');
			swarm.docker(1, 'rm', '-f', 'r1', 'b1', 's1', 'g1');
			swarm.docker(2, 'rm', '-f', 'r2', 'b2', 'g2');
			for (const n of NODES)
				await waitFor(
					`node${n} to have no endpoint`,
					async () => (await endpoints(swarm, n)).length === 0,
					20_000,
					100,
				);
			for (const n of NODES) {
				swarm.docker(n, 'network', 'rm', 'red', 'blue');
				// Swarm's tasks take their time, and what an engine forgot to give back is free again after two minutes.
				await waitFor(
					`the plugin of node${n} to have given nothing out`,
					() => {
						const file = join(swarm.directory, `node${n}`, 'docker-plugin.json');
						const kept = JSON.parse(swarm.exec(n, ['cat', file]).stdout) as Record<
							'endpoints' | 'addresses',
							unknown[]
						>;
						return kept.endpoints.length + kept.addresses.length === 0;
					},
					150_000,
					200,
				);
				assert.is(swarm.exec(n, ['sh', '-c', 'ip -o link | grep -c "bl-\\|blp-"'], true).stdout.trim(), '0');
			}
		});
	},
);
