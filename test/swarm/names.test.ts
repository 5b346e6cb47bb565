/*
 * Names and Docker's own containers, on a real engine (./bed): a container on a network of Docker's keeps Docker's resolver,
 * one that has none is served, and a container that is removed while it is served goes at once.
 */
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { DnsCounters } from '../../src/dns/counters.js';
import { red } from '../dns/support.js';
import type { IpcChild } from '../support/ipc.js';
import { scenario } from '../support/scenario.js';
import { cannotUseNamespaces, hasTool } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

interface Shared {
	readonly swarm: Swarm;
	readonly names: IpcChild;
}

async function build(): Promise<Shared> {
	sweepBeds();
	const swarm = Swarm.up(1);
	try {
		const script = fileURLToPath(new URL('../support/nameservice.js', import.meta.url));
		const names = swarm.ipc(1, script, '/etc/resolv.conf', JSON.stringify({ timeoutMs: 1000 }));
		await names.call('update', [red]);
		return { swarm, names };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function container(swarm: Swarm, name: string, ...args: string[]): string {
	swarm.docker(1, 'run', '-d', '--name', name, ...args, 'beeline-test', 'sleep', '600');
	return swarm.docker(1, 'inspect', '--format', '{{.NetworkSettings.SandboxKey}}', name);
}

scenario(
	"names and Docker's containers",
	cannotUseNamespaces() ??
		cannotUseDocker() ??
		(hasTool('dig') ? undefined : 'needs dig (install the package bind9-dnsutils, or run scripts/setup)'),
	build,
	async ({ swarm, names }) => {
		await names.kill();
		swarm.close();
	},
	(test) => {
		test("a container on a network of Docker's keeps Docker's resolver", async ({ swarm, names }) => {
			swarm.docker(1, 'network', 'create', 'docks');
			const netns = container(swarm, 'docked', '--network', 'docks', '--network-alias', 'berth');
			const dig = () =>
				swarm.exec(1, ['nsenter', `--net=${netns}`, '--', 'dig', '@127.0.0.11', '+short', '+tries=1', 'berth'], true)
					.stdout;
			const before = dig();
			assert.match(before, /^\d+\.\d+\.\d+\.\d+\n$/);
			assert.is(await names.call('serve', { id: 'docked', netns, networks: ['red'] }), 'held');
			assert.is(dig(), before);
			assert.ok(
				(await names.call<string[]>('log')).some((l) =>
					/names are not served in .*a resolver is there already/.test(l),
				),
			);
		});

		test('a container on the default bridge has none, and is served; removed, nothing of it stays', async ({
			swarm,
			names,
		}) => {
			const netns = container(swarm, 'plain');
			const before = await names.call<{ fds: number }>('facts');
			assert.is(await names.call('serve', { id: 'plain', netns, networks: ['red'] }), 'serving');
			assert.is(
				swarm.exec(1, ['nsenter', `--net=${netns}`, '--', 'dig', '@127.0.0.11', '+short', 'web']).stdout,
				'10.44.0.2\n',
			);
			swarm.docker(1, 'rm', '-f', 'plain');
			await waitFor(
				'its sockets to be closed',
				async () => (await names.call<DnsCounters>('counters')).namespaces.serving === 0,
			);
			await waitFor(
				'no fd more than before',
				async () => (await names.call<{ fds: number }>('facts')).fds <= before.fds,
			);
		});
	},
);
