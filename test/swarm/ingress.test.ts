/*
 * A swarm of three engines (./bed) whose ingress network is customised as Docker's documentation has it: removed, made anew
 * with a subnet, a gateway and an MTU of its own, and once more under another name. Agents run from before it to after it.
 */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { scenario } from '../support/scenario.js';
import { cannotDecode, cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { fieldsOf } from '../support/tshark.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const NODES = [1, 2, 3];
const PORTS = ['8080:80', '8053:53/udp'];
const BODY = 4_000_000;

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(3);
	try {
		await swarm.startAll();
		service(swarm, 'web', PORTS);
		await swarm.serving('web', 6, 90_000);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function service(swarm: Swarm, name: string, ports: readonly string[], ...command: string[]): void {
	const create = ['service', 'create', '-d', '--no-resolve-image', '--mode', 'global', '--stop-grace-period', '1s'];
	const more = ['--update-parallelism', '0', '--label', 'beeline.udp-window=1s', '--label', 'beeline.drain-timeout=1s'];
	const publish = ports.flatMap((p) => ['--publish', p]);
	swarm.docker(1, ...create, ...more, '--name', name, ...publish, 'beeline-test:latest', ...command);
}

/** What Docker says to what it refuses. */
function refusal(swarm: Swarm, ...args: string[]): string {
	try {
		swarm.docker(1, ...args);
	} catch (e) {
		return (e as { stderr?: string }).stderr ?? '';
	}
	return '';
}

/** Its client asks whether one is sure. */
function remove(swarm: Swarm, network: string): string {
	const r = swarm.exec(1, ['sh', '-c', `echo y | docker network rm ${network}`], true);
	return r.code === 0 ? '' : r.stderr;
}

const create = (name: string, subnet: string, gateway: string, mtu: number) => [
	...['network', 'create', '--driver', 'overlay', '--ingress', `--subnet=${subnet}`, `--gateway=${gateway}`],
	...['--opt', `com.docker.network.driver.mtu=${mtu}`, name],
];

const answers = (swarm: Swarm, service: string, node: number, target: number) =>
	swarm.load(['-n', 30, '-c', 5, '-t', 5000, ...swarm.targets(target, [node])]).then((r) => {
		assert.equal([r.failures, r.ok], [{}, 30], `${service} node${node}: ${JSON.stringify(r)}`);
		assert.equal(Object.keys(r.clients), [swarm.client], `${service} node${node}`);
		return Object.keys(r.backends);
	});

/** Every node answers, by every task, which sees who asks. */
async function reached(swarm: Swarm): Promise<void> {
	await swarm.serving('web', 6, 90_000);
	for (const node of NODES) assert.is((await answers(swarm, 'web', node, 8080)).length, 3, `tasks by node${node}`);
	// Of the tasks that were there before a UDP flow may be led to for a window.
	await sleep(1500);
	for (const node of NODES) {
		const r = await swarm.udpload(['-n', 5, '-c', 40, '-t', 3000, ...swarm.targets(8053, [node])]);
		assert.equal([r.lost, r.corrupt], [0, 0], JSON.stringify(r));
		assert.equal([Object.keys(r.backends).length, Object.keys(r.clients)], [3, [swarm.client]], `UDP by node${node}`);
	}
}

/** Bytes of the longest IP packet between nodes, while bodies go whole both ways and datagrams that have to be cut. */
async function longest(swarm: Swarm): Promise<number> {
	const file = join(swarm.directory, 'wire.pcap');
	const dump = ['tcpdump', '-Z', 'root', '-U', '-B', '16384', '-s', '128', '-n', '-i', 'any', '-Q', 'in', '-w', file];
	// A later fragment of an outer packet has no port.
	const filter = ['udp', 'port', '4789', 'or', '(ip[6:2]', '&', '0x1fff', '!=', '0)'];
	const child = spawn('nsenter', [`--net=/run/netns/${swarm.prefix}-sw`, '--', ...dump, ...filter], {
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	let said = '';
	child.stderr.setEncoding('utf8').on('data', (t: string) => {
		said += t;
	});
	await waitFor('tcpdump to listen', () => said.includes('listening'));
	for (const flag of ['-D', '-U']) {
		const r = await swarm.load(['-n', 18, '-c', 3, '-t', 20_000, flag, BODY, ...swarm.targets(8080)]);
		assert.equal([r.failures, r.ok], [{}, 18], `${flag}: ${JSON.stringify(r)}`);
		assert.is(Object.keys(r.backends).length, 3, JSON.stringify(r.backends));
	}
	// Longer than the network holds: it crosses in fragments.
	const u = await swarm.udpload(['-n', 5, '-c', 12, '-S', 1400, '-t', 3000, ...swarm.targets(8053)]);
	assert.equal([u.lost, u.corrupt, u.errors], [0, 0, {}], JSON.stringify(u));
	await new Promise<void>((done) => {
		child.once('exit', () => done());
		// Packets lie in the kernel's buffer for a moment.
		setTimeout(() => child.kill('SIGINT'), 500);
	});
	assert.match(said, /\n0 packets dropped by kernel/);
	const lengths = fieldsOf(file, ['ip.len']).map(([l]) => Number(l.split(',')[0]));
	return lengths.reduce((a, b) => Math.max(a, b));
}

/** web is published no more, and Docker's ingress network is taken away on every node. */
async function withdrawn(swarm: Swarm, network: string): Promise<void> {
	swarm.docker(1, 'service', 'update', '-d', '--publish-rm', '80', '--publish-rm', '53/udp', 'web');
	for (const n of NODES)
		await waitFor(
			`node${n} to publish nothing`,
			async () => (await swarm.services(n)).every((s) => s.ports.length === 0),
			45_000,
			100,
		);
	// An engine on which something still has a leg there keeps it, and does not try again.
	for (const n of NODES)
		await waitFor(
			`${network} to be used by nobody on node${n}`,
			() => {
				const format = '{{range .Containers}}{{.Name}} {{end}}';
				return swarm.docker(n, 'network', 'inspect', '--format', format, network) === `${network}-endpoint`;
			},
			60_000,
			200,
		).catch((e: Error) => {
			throw new Error(`${e.message}: ${swarm.docker(n, 'network', 'inspect', network)}`);
		});
	await waitFor('Docker to remove it', () => remove(swarm, network) === '', 60_000, 500);
	for (const n of NODES)
		await waitFor(`${network} to be gone from node${n}`, () => !networks(swarm, n).includes(network), 60_000, 200);
}
function networks(swarm: Swarm, node: number): string[] {
	return swarm.docker(node, 'network', 'ls', '--format', '{{.Name}}').split('\n');
}
function published(swarm: Swarm): void {
	swarm.docker(1, 'service', 'update', '-d', ...PORTS.flatMap((p) => ['--publish-add', p]), 'web');
}

scenario(
	'swarm: a customised ingress network',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker() ?? cannotDecode(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('Docker refuses to remove an ingress network that a service needs, and a second one; packets fill the wire', async ({
			swarm,
		}) => {
			await reached(swarm);
			assert.match(
				remove(swarm, 'ingress'),
				/ingress network cannot be removed because service [0-9a-z]{25} depends on it/,
			);
			assert.match(
				refusal(swarm, ...create('my-ingress', '10.11.0.0/16', '10.11.0.2', 1200)),
				/ingress network \([0-9a-z]{25}\) is already present/,
			);
			assert.is(await longest(swarm), 1500);
			await reached(swarm);
		});

		test('removed and made anew with an MTU of 1200: reached as before, and no packet between nodes is longer', async ({
			swarm,
		}) => {
			await withdrawn(swarm, 'ingress');
			assert.match(
				refusal(swarm, 'service', 'update', '-d', '--publish-add', '8080:80', 'web'),
				/service needs ingress network, but no ingress network is present/,
			);
			swarm.docker(1, ...create('my-ingress', '10.11.0.0/16', '10.11.0.2', 1200));
			published(swarm);
			await reached(swarm);
			assert.is(await longest(swarm), 1200);
		});

		test('a task that listens on its address of that network only is served there', async ({ swarm }) => {
			const listen =
				'a=$(/bin/busybox ip -4 -o addr show | /bin/busybox sed -n "s/.* inet \\(10[.]11[.][0-9.]*\\).*/\\1/p"); exec /httpd -n bound -a $a -p 80 -L 3600';
			service(swarm, 'bound', ['8083:80'], '/bin/sh', '-c', listen);
			try {
				await swarm.serving('bound', 3, 60_000);
				// It is looked at half a second after it was seen.
				for (const node of NODES)
					await waitFor(
						`bound to be served by node${node}`,
						async () => (await swarm.load(['-n', 12, '-t', 500, ...swarm.targets(8083, [node])])).ok === 12,
						20_000,
						200,
					);
				for (const node of NODES) await answers(swarm, 'bound', node, 8083);
			} finally {
				swarm.docker(1, 'service', 'rm', 'bound');
			}
		});

		test('a second time, under another name and with another MTU', async ({ swarm }) => {
			await withdrawn(swarm, 'my-ingress');
			swarm.docker(1, ...create('edge', '10.12.0.0/16', '10.12.0.1', 1300));
			published(swarm);
			await reached(swarm);
			assert.is(await longest(swarm), 1300);
		});
	},
);
