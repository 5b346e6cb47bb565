/*
 * Published ports that must not be taken on a node, on a swarm of two engines (./bed): refused there with a sentence, served on
 * the other node, and nothing else is touched.
 */
import { chmodSync, copyFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { root, tool } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(2);
	try {
		// Before the agents: a process holds 8090 on node2, and a rule of node2's drops 8091.
		void swarm.background(2, [tool('httpd'), '-n', 'holder', '-p', '8090', '-L', '600']);
		// What administrators come in by, under its own name.
		const sshd = join(swarm.directory, 'sshd');
		copyFileSync(tool('httpd'), sshd);
		chmodSync(sshd, 0o755);
		void swarm.background(2, [sshd, '-n', 'sshd', '-p', '22', '-L', '600']);
		swarm.exec(2, ['iptables', '-I', 'INPUT', '-p', 'tcp', '--dport', '8091', '-j', 'DROP']);
		await swarm.startAll();
		const create = ['service', 'create', '-d', '--no-resolve-image', '--mode', 'global', '--stop-grace-period', '1s'];
		for (const [name, port] of [
			['good', 8080],
			['held', 8090],
			['dropped', 8091],
			['listed', 8092],
			['ssh', 22],
		] as const)
			swarm.docker(1, ...create, '--name', name, '--publish', `${port}:80`, 'beeline-test:latest');
		await swarm.serving('good', 2);
		for (const name of ['held', 'dropped', 'listed', 'ssh'])
			await waitFor(`${name} to run`, () => swarm.tasks(name).length === 2, 45_000, 300);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

scenario(
	'ports',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		const served = async (swarm: Swarm, node: number, port: number) => {
			const r = await swarm.load(['-n', 20, '-c', 4, '-t', 3000, ...swarm.targets(port, [node])]);
			assert.equal([r.ok, r.failures], [20, {}], `node${node}:${port} ${JSON.stringify(r)}`);
			assert.equal(Object.keys(r.clients), [swarm.client]);
		};
		/** What held the port answers node2's clients itself. */
		const kept = async (swarm: Swarm, port: number, by: string) => {
			const r = await swarm.load(['-n', 50, '-c', 4, '-t', 3000, ...swarm.targets(port, [2])]);
			assert.equal([r.ok, r.failures, Object.keys(r.backends)], [50, {}, [by]], JSON.stringify(r));
			assert.equal(Object.keys(r.clients), [swarm.client]);
		};
		const refusal = async (swarm: Swarm, node: number, port: number) =>
			await waitFor(
				`node${node} to refuse ${port}`,
				async () => (await swarm.status(node)).refused.find((r) => JSON.stringify(r).includes(String(port))),
				20_000,
			);

		test('a port that another process holds is refused on that node, and served on the other', async ({ swarm }) => {
			const r = JSON.stringify(await refusal(swarm, 2, 8090));
			assert.match(r, /port 8090 is held by httpd/);
			await kept(swarm, 8090, 'holder');
			await served(swarm, 1, 8090);
			await served(swarm, 1, 8080);
			await served(swarm, 2, 8080);
		});

		test('port 22 is refused where somebody listens on it, and served where nobody does', async ({ swarm }) => {
			assert.match(JSON.stringify(await refusal(swarm, 2, 22)), /port 22 is held by sshd on /);
			await kept(swarm, 22, 'sshd');
			await served(swarm, 1, 22);
			await served(swarm, 2, 8080);
			assert.match(swarm.exec(2, ['ss', '-Hltnp', 'sport = :22']).stdout, /"sshd"/);
			swarm.docker(1, 'service', 'rm', 'ssh');
			await waitFor(
				'nothing of 22 to be refused',
				async () => !(await swarm.status(2)).refused.some((r) => JSON.stringify(r).includes('port 22 ')),
				20_000,
			);
			await kept(swarm, 22, 'sshd');
		});

		test('a port that an INPUT rule drops is refused there, with the ways out', async ({ swarm }) => {
			const r = JSON.stringify(await refusal(swarm, 2, 8091));
			assert.match(r, /a firewall rule .* restricts port 8091 .*allow list, or set datapath\.acceptFirewallBypass/);
			await served(swarm, 1, 8091);
			const client = await swarm.load(['-n', 2, '-t', 1500, ...swarm.targets(8091, [2])]);
			assert.is(client.ok, 0, 'the rule still holds');
		});

		test('with an allow list the service answers the clients that it names', async ({ swarm }) => {
			swarm.docker(1, 'service', 'update', '-d', '--label-add', 'beeline.allow=192.168.79.0/24', 'dropped');
			await waitFor(
				'8091 to be served on node2',
				async () => !(await swarm.status(2)).refused.some((r) => JSON.stringify(r).includes('8091')),
				20_000,
			);
			await served(swarm, 2, 8091);
		});

		test('Swarm’s own ports are refused everywhere, and the swarm goes on', async ({ swarm }) => {
			const global = ['service', 'create', '-d', '--no-resolve-image', '--mode', 'global', '--stop-grace-period', '1s'];
			const create = ['service', 'create', '-d', '--no-resolve-image', '--replicas', '1', '--stop-grace-period', '1s'];
			for (const port of [2377, 7946]) {
				swarm.docker(1, ...create, '--name', `p${port}`, '--publish', `${port}:80`, 'beeline-test:latest');
				for (const n of [1, 2]) assert.match(JSON.stringify(await refusal(swarm, n, port)), /belongs to Swarm/);
			}
			// The managers' port of node1 is dockerd's as before, and node2 speaks to it: what is made now runs there.
			swarm.docker(1, ...global, '--name', 'later', '--publish', '8095:80', 'beeline-test:latest');
			await waitFor('a task on node2', () => swarm.tasks('later').some((t) => t.node === 'node2'), 45_000, 300);
			await swarm.serving('later', 2);
			await served(swarm, 2, 8095);
			assert.match(swarm.exec(1, ['ss', '-Hltnp', 'sport = :2377']).stdout, /"dockerd"/);
			await served(swarm, 2, 8080);
			assert.is(swarm.exec(2, [`${root}/bin/beeline`, 'status']).code, 0);
		});
	},
);
