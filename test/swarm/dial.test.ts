/*
 * On a real swarm of three engines whose docker_gwbridge was made with IPv6: tasks that dial published ports, clients that
 * a task is on-link with, and IPv6 clients. Drawing of the network: ./bed. The wire has fd79::/64 too.
 *
 * web runs on every node, one on node2 and solo on node1 alone, caller on node1 publishes nothing. web and caller are on the overlay app (10.77.1.0/24).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(3, 1, true);
	try {
		await swarm.startAll();
		swarm.docker(1, 'network', 'create', '-d', 'overlay', '--subnet', '10.77.1.0/24', 'app');
		const create = (name: string, ...more: readonly string[]) =>
			swarm.docker(
				1,
				'service',
				'create',
				'-d',
				'--no-resolve-image',
				'--stop-grace-period',
				'1s',
				'--name',
				name,
				...more,
			);
		const image = 'beeline-test:latest';
		// Tasks that come one by one move slots, and for the UDP window a datagram of nobody's goes where its slot led before.
		const soon = ['--label', 'beeline.udp-window=1s'];
		const ports = ['--publish', '8080:80', '--publish', '8053:53/udp'];
		create('web', '--mode', 'global', '--network', 'app', ...soon, ...ports, image);
		create('one', '--constraint', 'node.hostname==node2', '--publish', '8081:80', '--publish', '8054:53/udp', image);
		create('solo', '--constraint', 'node.hostname==node1', '--publish', '8082:80', image);
		create('caller', '--constraint', 'node.hostname==node1', '--network', 'app', image);
		// Its server listens on the task's address of the ingress network only.
		const listen =
			'a=$(/bin/busybox ip -4 -o addr show | /bin/busybox sed -n "s/.* inet \\(10[.]0[.]0[.][0-9]*\\).*/\\1/p"); exec /httpd -n bound -a $a -p 80 -L 3600';
		create('bound', '--constraint', 'node.hostname==node2', '--publish', '8083:80', image, '/bin/sh', '-c', listen);
		await swarm.serving('web', 6, 90_000);
		await swarm.serving('one', 2, 60_000);
		await swarm.serving('solo', 1, 60_000);
		await sleep(1500);
		await waitFor('caller to run', () => swarm.tasks('caller').length === 1, 60_000, 200);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function container(swarm: Swarm, node: number, service: string): string {
	const id = swarm
		.docker(node, 'ps', '-q', '--filter', `label=com.docker.swarm.service.name=${service}`)
		.split('\n')[0];
	assert.ok(id, `node${node} has a task of ${service}`);
	return id;
}

scenario(
	'swarm: tasks that dial',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		for (const family of [4, 6] as const) {
			const at = (swarm: Swarm, node: number, port: number) =>
				family === 4 ? `${swarm.address(node)}:${port}` : `[${swarm.address6(node)}]:${port}`;
			const address = (swarm: Swarm, node: number) => (family === 4 ? swarm.address(node) : swarm.address6(node));
			const gateway = family === 4 ? '172.18.0.1' : 'fd00:18::1';

			test(`a client reaches tasks on every node and keeps its address, IPv${family}`, async ({ swarm }) => {
				for (const node of [1, 2, 3]) {
					const r = await swarm.load(['-n', 60, '-c', 5, '-t', 3000, at(swarm, node, 8080)]);
					assert.equal(r.failures, {}, `node${node}: ${JSON.stringify(r)}`);
					assert.is(Object.keys(r.backends).length, 3, JSON.stringify(r.backends));
					assert.equal(Object.keys(r.clients), [family === 4 ? swarm.client : swarm.client6]);
				}
			});

			for (const from of ['caller', 'solo'])
				test(`${from} dials published ports of its own node: a task there, itself, and another node’s, IPv${family}`, async ({
					swarm,
				}) => {
					const id = container(swarm, 1, from);
					const dial = async (port: number) => {
						const r = await swarm.loadIn(1, id, ['-n', 60, '-c', 5, '-t', 3000, at(swarm, 1, port)]);
						assert.equal(r.failures, {}, `${port}: ${JSON.stringify(r)}`);
						return r;
					};
					const web = await dial(8080);
					assert.is(Object.keys(web.backends).length, 3, JSON.stringify(web.backends));
					assert.equal(Object.keys(web.clients).sort(), [address(swarm, 1), gateway].sort());
					const one = await dial(8081);
					assert.equal(Object.keys(one.clients), [address(swarm, 1)]);
					const solo = await dial(8082);
					assert.equal([Object.keys(solo.clients), Object.keys(solo.backends).length], [[gateway], 1]);
					for (const [port, clients] of [
						[8053, 2],
						[8054, 1],
					]) {
						const u = await swarm.udploadIn(1, id, ['-n', 5, '-c', 30, '-t', 2000, at(swarm, 1, port)]);
						assert.equal([u.lost, Object.keys(u.clients).length], [0, clients], `${port}: ${JSON.stringify(u)}`);
					}
				});

			if (family === 4)
				test('a task dials another node’s published port, by Docker’s masquerade', async ({ swarm }) => {
					const id = container(swarm, 1, 'caller');
					for (const port of [8080, 8081, 8082]) {
						const r = await swarm.loadIn(1, id, ['-n', 30, '-c', 5, '-t', 3000, at(swarm, 3, port)]);
						assert.equal(
							[r.failures, Object.keys(r.clients)],
							[{}, [swarm.address(1)]],
							`${port}: ${JSON.stringify(r)}`,
						);
					}
				});
		}

		test('bodies of 2 MB, both ways, to a task of the node and of another', async ({ swarm }) => {
			const id = container(swarm, 1, 'solo');
			for (const port of [8081, 8082])
				for (const flag of ['-D', '-U']) {
					const r = await swarm.loadIn(1, id, [
						'-n',
						2,
						'-c',
						1,
						'-t',
						20_000,
						flag,
						2_000_000,
						`${swarm.address(1)}:${port}`,
					]);
					assert.equal([r.failures, r.ok], [{}, 2], `${port} ${flag}: ${JSON.stringify(r)}`);
				}
		});

		test('a task that binds only its ingress address is served there', async ({ swarm }) => {
			await swarm.serving('bound', 1);
			await waitFor(
				'node2 to see where it listens',
				async () => (await swarm.load(['-n', 1, '-t', 500, `${swarm.address(2)}:8083`])).ok === 1,
				20_000,
				200,
			);
			for (const node of [1, 2, 3]) {
				const r = await swarm.load(['-n', 30, '-c', 5, '-t', 3000, `${swarm.address(node)}:8083`]);
				assert.equal(
					[r.failures, Object.keys(r.backends), Object.keys(r.clients)],
					[{}, ['bound'], [swarm.client]],
					`node${node}: ${JSON.stringify(r)}`,
				);
			}
			const r = await swarm.loadIn(1, container(swarm, 1, 'caller'), [
				'-n',
				10,
				'-t',
				3000,
				`${swarm.address(1)}:8083`,
			]);
			assert.equal([r.failures, r.ok], [{}, 10], JSON.stringify(r));
		});

		// On docker_gwbridge, on the service's own overlay, on the ingress network: each is somebody's LAN.
		for (const lan of ['172.18.9.9', '10.77.1.99', '10.0.0.99'])
			test(`a client at ${lan} is served, and seen as the gateway`, async ({ swarm }) => {
				const sw = ['nsenter', `--net=/run/netns/${swarm.prefix}-sw`];
				const route = [...sw, 'ip', 'route'];
				swarm.exec('client', ['ip', 'addr', 'add', `${lan}/32`, 'dev', 'eth0']);
				swarm.exec('client', [...route, 'add', `${lan}/32`, 'via', swarm.client]);
				for (const n of [1, 2, 3])
					swarm.exec('client', ['ip', 'route', 'add', `${swarm.address(n)}/32`, 'dev', 'eth0', 'src', lan]);
				try {
					for (const node of [1, 2, 3])
						for (const port of [8080, 8081]) {
							const r = await swarm.load(['-n', 30, '-c', 5, '-t', 3000, `${swarm.address(node)}:${port}`]);
							assert.equal(r.failures, {}, `node${node}:${port} ${JSON.stringify(r)}`);
							// one is not on the overlay app, so it need not hide who calls from there.
							const seen = lan.startsWith('10.77') && port === 8081 ? lan : '172.18.0.1';
							assert.equal(Object.keys(r.clients), [seen], `node${node}:${port}`);
						}
				} finally {
					for (const n of [1, 2, 3]) swarm.exec('client', ['ip', 'route', 'del', `${swarm.address(n)}/32`]);
					swarm.exec('client', [...route, 'del', `${lan}/32`]);
					swarm.exec('client', ['ip', 'addr', 'del', `${lan}/32`, 'dev', 'eth0']);
				}
				const { warnings } = await swarm.status(2);
				assert.ok(
					warnings.some((w) => w.includes('172.18.0.0/16') && w.includes('as their gateway')),
					warnings.join('; '),
				);
			});
	},
);
