/*
 * Service VIPs on Docker's own overlay networks, in a real swarm of three engines whose kernel has no IPVS: whoever answers
 * for a VIP is Beeline. `web` (TCP 80, UDP 53, no published port) and `client` are in red, `stranger` in blue alone; each
 * has a task on every node. Drawing of the network: ./bed.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { beeline } from '../support/beeline.js';
import type { LoadReport, UdpReport } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const IMAGE = 'beeline-test:latest';

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(3);
	try {
		await swarm.startAll();
		for (const [name, subnet] of [
			['red', '10.77.1.0/24'],
			['blue', '10.77.2.0/24'],
		])
			swarm.docker(1, 'network', 'create', '-d', 'overlay', '--attachable', '--subnet', subnet, name);
		const create = (name: string, ...more: string[]) =>
			swarm.docker(
				1,
				'service',
				'create',
				'-d',
				'--no-resolve-image',
				'--name',
				name,
				'--stop-grace-period',
				'1s',
				...more,
				IMAGE,
			);
		create('web', '--network', 'red', '--replicas', '6');
		create('client', '--network', 'red', '--mode', 'global');
		create('stranger', '--network', 'blue', '--mode', 'global');
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

/** The VIP of a service in a network, as Docker says. */
function vip(swarm: Swarm, service: string): string {
	const text = swarm.docker(1, 'service', 'inspect', service, '--format', '{{json .Endpoint.VirtualIPs}}');
	const [first] = JSON.parse(text) as { Addr: string }[];
	return first.Addr.replace(/\/.*/, '');
}

/** Waits until every node knows exactly so many active tasks behind a service's VIP. */
async function known(swarm: Swarm, service: string, active: number): Promise<void> {
	let last = '';
	await waitFor(
		`${active} tasks behind ${service}'s VIP on every node`,
		async () => {
			for (const n of swarm.agents.keys()) {
				const of = (await swarm.services(n)).find((s) => s.name === service)?.vips[0];
				last = `node${n}: ${JSON.stringify(of)}`;
				if (of?.tasks.active !== active) return false;
			}
			return true;
		},
		120_000,
		50,
	).catch((e: Error) => {
		throw new Error(`${e.message}: ${last}`);
	});
}

/** Container ids that serve, by their first 12 digits: what `httpd -n $(hostname)` calls itself. */
function serving(swarm: Swarm, service: string): string[] {
	return [1, 2, 3].flatMap((n) =>
		swarm
			.docker(n, 'ps', '-q', '--filter', `label=com.docker.swarm.service.name=${service}`, '--filter', 'status=running')
			.split('\n')
			.filter(Boolean),
	);
}

scenario(
	'swarm VIPs',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('from a task on every node the VIP reaches the tasks on all nodes, by TCP and UDP', async ({ swarm }) => {
			await known(swarm, 'web', 6);
			const address = vip(swarm, 'web');
			const all = serving(swarm, 'web').sort();
			assert.is(all.length, 6);
			for (const node of [1, 2, 3]) {
				const client = await swarm.container(node, 'client');
				const r = await swarm.inside<LoadReport>(node, client, [
					'/load',
					'-n',
					120,
					'-c',
					10,
					'-t',
					3000,
					`${address}:80`,
				]);
				assert.equal(r.failures, {}, `node${node}`);
				assert.equal(Object.keys(r.backends).sort(), all, `node${node}`);
				assert.equal(r.peers, { [address]: 120 });
				for (const mode of [[], ['-u']]) {
					const udp = await swarm.inside<UdpReport>(node, client, [
						'/udpload',
						...mode,
						'-n',
						3,
						'-c',
						80,
						'-t',
						3000,
						`${address}:53`,
					]);
					assert.equal([udp.lost, udp.moved, udp.errors], [0, 0, {}], `node${node} ${mode}: ${JSON.stringify(udp)}`);
					assert.equal(Object.keys(udp.backends).sort(), all);
					assert.equal(udp.sources, { [address]: 240 });
				}
			}
		});

		test('by name: Docker’s resolver answers with the VIP', async ({ swarm }) => {
			const client = await swarm.container(2, 'client');
			const answer = swarm.docker(2, 'exec', client, 'wget', '-q', '-O', '-', 'http://web/');
			assert.match(answer, /"backend":"[0-9a-f]{12}"/);
		});

		test('a task of another network does not reach it', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			for (const node of [1, 2]) {
				const stranger = await swarm.container(node, 'stranger');
				const r = await swarm.inside<LoadReport>(node, stranger, [
					'/load',
					'-n',
					2,
					'-c',
					2,
					'-t',
					1500,
					`${address}:80`,
				]);
				assert.is(r.ok, 0, JSON.stringify(r));
				const udp = await swarm.inside<UdpReport>(node, stranger, [
					'/udpload',
					'-u',
					'-n',
					1,
					'-c',
					2,
					'-t',
					500,
					`${address}:53`,
				]);
				assert.is(udp.answered, 0);
			}
		});

		test('a plain container on the attachable network reaches it with its first dial', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			for (let i = 0; i < 5; i++) {
				const out = swarm.docker(
					3,
					'run',
					'--rm',
					'--network',
					'red',
					IMAGE,
					'/load',
					'-n',
					'1',
					'-t',
					'900',
					`${address}:80`,
				);
				assert.is((JSON.parse(out) as LoadReport).ok, 1, out);
			}
		});

		test('a killed task is not chosen afterwards, and connected UDP sockets do not stick to it', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			const client = await swarm.container(1, 'client');
			const victim = await swarm.container(2, 'web');
			const sockets = swarm.startInside<UdpReport>(1, client, [
				'/udpload',
				'-n',
				0,
				'-c',
				60,
				'-i',
				50,
				'-t',
				1000,
				'-d',
				7000,
				`${address}:53`,
			]);
			const unconnected = swarm.startInside<UdpReport>(1, client, [
				'/udpload',
				'-u',
				'-n',
				0,
				'-c',
				60,
				'-i',
				50,
				'-t',
				1000,
				'-d',
				7000,
				`${address}:53`,
			]);
			const udp = sockets.report();
			const loose = unconnected.report();
			await sleep(1000);
			swarm.docker(2, 'kill', victim);
			await sleep(500);
			const r = await swarm.inside<LoadReport>(1, client, ['/load', '-n', 100, '-c', 10, '-t', 3000, `${address}:80`]);
			assert.equal(r.failures, {});
			assert.not.ok(Object.keys(r.backends).includes(victim), `${victim} in ${Object.keys(r.backends)}`);
			const connected = await udp;
			assert.ok(
				(connected.errors.ECONNABORTED ?? 0) + (connected.errors.EDESTADDRREQ ?? 0) > 0,
				`they are told: ${JSON.stringify(connected.errors)}`,
			);
			const rest = await loose;
			assert.ok(rest.moved > 0, 'unconnected ones picked another');
			assert.ok(rest.lost <= 30, `${rest.lost} of ${rest.sent} lost`);
			await known(swarm, 'web', 6);
		});

		test('a paused task gets no new connection until it goes on', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			const client = await swarm.container(3, 'client');
			const victim = await swarm.container(1, 'web');
			swarm.docker(1, 'pause', victim);
			try {
				await known(swarm, 'web', 5);
				const r = await swarm.inside<LoadReport>(3, client, [
					'/load',
					'-n',
					100,
					'-c',
					10,
					'-t',
					3000,
					`${address}:80`,
				]);
				assert.equal(r.failures, {});
				assert.not.ok(Object.keys(r.backends).includes(victim));
			} finally {
				swarm.docker(1, 'unpause', victim);
			}
			await known(swarm, 'web', 6);
		});

		test('scaled to 2, to 0 and back: no dial goes where nobody is', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			const client = await swarm.container(2, 'client');
			const load = swarm.startInside<LoadReport>(2, client, [
				'/load',
				'-n',
				0,
				'-r',
				100,
				'-c',
				50,
				'-t',
				3000,
				'-d',
				12_000,
				`${address}:80`,
			]);
			const report = load.report();
			swarm.docker(1, 'service', 'scale', '-d', 'web=2');
			await known(swarm, 'web', 2);
			const r = await report;
			assert.equal(r.failures, {}, JSON.stringify({ ...r, rows: undefined }));
			swarm.docker(1, 'service', 'scale', '-d', 'web=0');
			await known(swarm, 'web', 0);
			const none = await swarm.inside<LoadReport>(2, client, ['/load', '-n', 3, '-t', 3000, `${address}:80`]);
			assert.equal(none.failures, { refused: 3 });
			assert.ok(none.durationMs < 2000, `refused at once: ${none.durationMs} ms`);
			swarm.docker(1, 'service', 'scale', '-d', 'web=3');
			await known(swarm, 'web', 3);
			assert.is((await swarm.inside<LoadReport>(2, client, ['/load', '-n', 30, '-t', 3000, `${address}:80`])).ok, 30);
		});

		test('without an agent dials go on; a restarted one keeps what is attached', async ({ swarm }) => {
			const address = vip(swarm, 'web');
			const client = await swarm.container(2, 'client');
			const dial = () => swarm.inside<LoadReport>(2, client, ['/load', '-n', 30, '-c', 5, '-t', 3000, `${address}:80`]);
			await swarm.stopAgent(2, 'SIGKILL');
			assert.is((await dial()).ok, 30);
			const load = swarm.startInside<LoadReport>(2, client, [
				'/load',
				'-n',
				0,
				'-r',
				50,
				'-c',
				50,
				'-t',
				3000,
				'-d',
				5000,
				`${address}:80`,
			]);
			const report = load.report();
			await swarm.start(2);
			assert.equal((await report).failures, {});
			assert.is((await dial()).ok, 30);
		});

		test('a service in dnsrr mode has no VIP, and its tasks are reached as before', async ({ swarm }) => {
			swarm.docker(
				1,
				'service',
				'create',
				'-d',
				'--no-resolve-image',
				'--name',
				'rr',
				'--endpoint-mode',
				'dnsrr',
				'--network',
				'red',
				'--replicas',
				'2',
				IMAGE,
			);
			await waitFor('tasks of rr', () => swarm.tasks('rr').length === 2, 45_000, 300);
			const client = await swarm.container(1, 'client');
			await waitFor(
				'its name to be known',
				() => /"backend"/.test(swarm.docker(1, 'exec', client, 'wget', '-q', '-O', '-', 'http://rr/')),
				45_000,
				500,
			);
			assert.not.ok((await swarm.services(1)).some((s) => s.name === 'rr'));
			swarm.docker(1, 'service', 'rm', 'rr');
		});

		test('namespaces and services that go leave no row; detach leaves nothing', async ({ swarm }) => {
			const rows = async (node: number, map: string) =>
				(await swarm.get<{ maps: { map: string; rows: string[] }[] }>(node, '/v1/entries')).maps.find(
					(m) => m.map === map,
				)?.rows ?? [];
			assert.ok((await rows(1, 'netns_networks')).length > 0);
			for (const s of ['web', 'client', 'stranger']) swarm.docker(1, 'service', 'rm', s);
			for (const node of [1, 2, 3])
				for (const map of ['netns_networks', 'vips', 'vip_backends'])
					await waitFor(
						`no row in ${map} of node${node}`,
						async () => {
							const left = await rows(node, map);
							if (left.length > 0) throw new Error(left.join('; '));
							return true;
						},
						45_000,
						200,
					);
			await swarm.stopAgent(1);
			swarm.exec(1, [beeline, 'detach', '--now']);
			const left = swarm.exec(1, ['sh', '-c', 'ls /sys/fs/bpf'], true).stdout;
			assert.not.match(left, /beeline/);
		});
	},
);
