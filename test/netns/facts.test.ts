/*
 * Facts of the node that are slow to read (here: ss takes 4 s) delay what needs them, and nothing else.
 * Topology: the default one; n2t1, n3t1.
 */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { startServed, targets, taskBackend } from '../support/beeline.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const build = () =>
	startServed(
		{ tasks: { n2: 1, n3: 1 } },
		(backends) => [{ name: 'web', ports: [{ published: 8080, target: 80 }], backends }],
		undefined,
		async ({ net, mesh }) => {
			const directory = join(net.directory, 'slow');
			const notes = join(directory, 'notes');
			mkdirSync(directory);
			writeFileSync(notes, '');
			writeFileSync(
				join(directory, 'ss'),
				`#!/bin/sh\ncase "$*" in *p*) echo begun >>${notes}; sleep 4; echo ended >>${notes} ;; esac\nPATH=\${PATH#*:} exec ss "$@"\n`,
			);
			chmodSync(join(directory, 'ss'), 0o755);
			const agent = mesh.agent('n1');
			await agent.stop();
			agent.env = { PATH: `${directory}:${process.env.PATH}` };
			await agent.start();
			const count = (what: string) => readFileSync(notes, 'utf8').split(what).length - 1;
			await waitFor('facts at rest', async () => count('begun') === count('ended'));
			/** A reading that has begun and lasts. */
			const slow = async (name: string) => {
				const before = count('begun');
				net.exec('n1', ['ip', 'link', 'add', name, 'type', 'bridge']);
				await waitFor('facts to be read', async () => count('begun') > before, 5000, 10);
			};
			return { agent, count, slow };
		},
	);

scenario(
	'facts that are slow to read',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		test('a backend that is drained meanwhile is out at once', async ({ net, agent, count, slow }) => {
			const { v4 } = net.address('n2t1');
			const one = (await agent.backends()).find((b) => b.service === 'web' && b.addresses.includes(v4));
			assert.ok(one);
			await slow('aside1');
			await agent.post(`/v1/backends/${one.id}/drain`);
			assert.ok(count('begun') > count('ended'), 'facts were still being read');
			const load = await net.load('c1', ['-n', 200, '-c', 20, '-t', 5000, ...targets(net, ['n1'], 8080, [4])]);
			assert.equal([load.failures, Object.keys(load.backends)], [{}, ['n3t1']]);
			await agent.post(`/v1/backends/${one.id}/undrain`);
		});

		test('a port that is new waits for them: who else answers it must be known', async ({ net, mesh, count, slow }) => {
			await slow('aside2');
			const before = count('ended');
			const more = { name: 'more', ports: [{ published: 9090, target: 80 }], backends: [taskBackend(net, 'n2t1')] };
			await mesh.change({ ...mesh.document, services: [...mesh.document.services, more] });
			assert.ok(count('ended') >= before + 2, 'the reading that began before did not know of it');
			const load = await net.load('c1', ['-n', 50, '-c', 10, '-t', 5000, ...targets(net, ['n1'], 9090, [4])]);
			assert.equal(load.failures, {});
		});
	},
);
