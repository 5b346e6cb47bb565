/*
 * A task that does not answer ARP at first, as one whose container starts on a busy machine: it is looked for again, though
 * nothing of it changes that the kernel would tell. Topology: the default one; n2t1, n3t1, and n3t2 that joins later.
 */
import * as assert from 'uvu/assert';
import { startServed, targets, taskBackend } from '../support/beeline.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

scenario(
	'late endpoints',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	() =>
		startServed({ tasks: { n2: 1, n3: 1 } }, (backends) => [
			{ name: 'web', ports: [{ published: 8080, target: 80 }], backends },
		]),
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('a task that is not found is not chosen, and is found soon after it answers', async ({ net, mesh }) => {
			net.addTask('n3', 2);
			net.exec('n3t2', ['sysctl', '-qw', 'net.ipv4.conf.all.arp_ignore=8']);
			await net.httpd('n3t2', 80);
			const address = net.address('n3t2').v4;
			await mesh.setBackends('web', [
				...['n2t1', 'n3t1'].map((task) => taskBackend(net, task)),
				{ node: 'n3', address },
			]);
			const late = async () => (await mesh.agent('n3').backends()).find((b) => b.addresses.includes(address));
			assert.equal([(await late())?.state, (await late())?.delivery], ['down', null]);
			// Long enough for the looks that follow at once to be over.
			const { lastAt } = (await mesh.agent('n3').status()).reconcile;
			await waitFor(
				'two more looks at it',
				async () => (await mesh.agent('n3').status()).reconcile.lastAt !== lastAt,
				20_000,
			);
			const without = await net.load('c1', ['-n', 100, '-c', 10, '-t', 5000, ...targets(net, net.nodes, 8080, [4])]);
			assert.equal([without.failures, without.backends.n3t2], [{}, undefined]);

			net.exec('n3t2', ['sysctl', '-qw', 'net.ipv4.conf.all.arp_ignore=0']);
			const since = performance.now();
			await waitFor('it to be found', async () => (await late())?.state === 'active', 60_000, 50);
			const ms = performance.now() - since;
			// The kernel tells nothing; what looks at everything without a cause does so every 30 s.
			assert.ok(ms < 8000, `found after ${ms.toFixed(0)} ms`);
			const with3 = await net.load('c1', ['-n', 300, '-c', 10, '-t', 5000, ...targets(net, net.nodes, 8080, [4])]);
			assert.equal(with3.failures, {});
			assert.ok(with3.backends.n3t2 > 50, JSON.stringify(with3.backends));
		});
	},
);
