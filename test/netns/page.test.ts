/*
 * The live page's script against a real agent, over its unix socket. Topology: the default one; n1t1 and n2t1 serve.
 */
import * as assert from 'uvu/assert';
import { startServed, targets } from '../support/beeline.js';
import { fetchOver, open } from '../support/browser.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

scenario(
	'live page of an agent',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	() =>
		startServed(
			{ tasks: { n1: 1, n2: 1 } },
			(backends) => [{ name: 'web', ports: [{ published: 8080, target: 80 }], backends }],
			undefined,
			async ({ mesh }) => ({ page: await open(fetchOver(mesh.agent('n1').socket)) }),
		),
	async ({ net, mesh, page }) => {
		await page.close();
		await mesh.close();
		net.close();
	},
	(test) => {
		test('it shows what the agent knows, and the rates of what it sends', async ({ net, page }) => {
			await waitFor('the first answer', () => page.rows('backends').length === 2);
			assert.is(page.text('state'), 'n1: ready, running');
			assert.equal(
				page.rows('nodes').map((row) => row[0]),
				['n1 (this one)', 'n2', 'n3'],
			);
			await waitFor('the ways to the nodes', () =>
				page
					.rows('nodes')
					.slice(1)
					.every((row) => row[3] === 'yes'),
			);
			const [service] = page.rows('services');
			assert.equal(service!.slice(0, 3), ['web', '8080→80/tcp', '2 of 2 active']);
			const dials = async () => {
				const report = await net.load('c1', ['-n', 200, '-c', 4, '-t', 5000, ...targets(net, ['n1'], 8080, [4])]);
				assert.equal(report.failures, {});
			};
			const above0 = (text: string | undefined) => Number(text?.replaceAll(',', '')) > 0;
			await waitFor(
				'rates of the service and of both backends',
				async () => {
					await dials();
					const [web] = page.rows('services');
					return (
						above0(web![3]) &&
						page.rows('backends').every((row) => above0(row[5]) && (row[2] === 'n2' ? row[6] === '–' : above0(row[6])))
					);
				},
				30_000,
			);
			await waitFor('the verdict', () => page.rows('verdicts').some((row) => row[0] === 'encap_node'));
		});

		test('verdicts of packets come when they are asked for, and a drain is an event and a state', async (x) => {
			const { net, mesh, page } = x;
			page.set('trace', { checked: true });
			await waitFor(
				'a packet’s verdict',
				async () => {
					await net.load('c1', ['-n', 4, '-c', 1, '-t', 5000, ...targets(net, ['n1'], 8080, [4])]);
					return page.rows('events').some((row) => row[1] === 'encap_node' && / → 192\.168\.78\.1:8080/.test(row[2]!));
				},
				30_000,
			);
			const backends = mesh.document.services[0]!.backends.map((b) => ({ ...b, drain: b.node === 'n2' }));
			await mesh.setBackends('web', backends);
			await waitFor('the drain', () => page.rows('backends').some((row) => row[2] === 'n2' && row[3] === 'draining'));
			await waitFor('the reconcile', () =>
				page.rows('events').some((row) => row[1] === 'reconcile' && /: [1-9][\d,]* changes in /.test(row[2]!)),
			);
			page.set('trace', { checked: false });
		});

		test('an agent that is killed is told of, and its successor is followed', async ({ mesh, page }) => {
			const agent = mesh.agent('n1');
			await agent.stop('SIGKILL');
			await waitFor('the error', () => page.text('state').startsWith('No answer from the agent'));
			assert.is(page.rows('backends').length, 2);
			await agent.start();
			await waitFor('the agent', () => page.text('state') === 'n1: ready, running');
			await waitFor('its events', () => page.text('stream') === '');
		});
	},
);
