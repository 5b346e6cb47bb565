/*
 * `beeline endpoint attach --container` on a real engine (./bed), whose containers are started by the docker command alone. Node 1
 * has an agent that follows mesh.yaml:
 *
 *	red  5001 10.44.0.0/24     process: a namespace without a container     plain  --network none     docked  on a network of Docker's
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { beeline } from '../support/beeline.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

interface Shared {
	readonly swarm: Swarm;
}

async function build(): Promise<Shared> {
	sweepBeds();
	const swarm = Swarm.up(1);
	try {
		const mesh = {
			nodes: [{ name: 'node1', address: swarm.address(1) }],
			services: [],
			networks: [{ name: 'red', subnet: '10.44.0.0/24', vni: 5001, attachable: true }],
		};
		writeFileSync(join(swarm.directory, 'node1', 'mesh.yaml'), JSON.stringify(mesh));
		await swarm.start(1, { membership: { source: 'file', file: 'mesh.yaml' } });
		swarm.exec(1, ['ip', 'netns', 'add', 'process']);
		attach(swarm, ['--netns', 'process', '--name', 'process']);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

function attach(swarm: Swarm, args: readonly string[]): EndpointView {
	const r = swarm.exec(1, [beeline, 'endpoint', 'attach', '--network', 'red', ...args, '-o', 'json']);
	return JSON.parse(r.stdout) as EndpointView;
}
function refused(swarm: Swarm, args: readonly string[]): string {
	const r = swarm.exec(1, [beeline, 'endpoint', 'attach', '--network', 'red', ...args], true);
	assert.is(r.code, 1, args.join(' '));
	assert.is(r.stderr.trim().split('\n').length, 1, r.stderr);
	return r.stderr;
}
/** The image's own start has a server on port 53, which ours would leave alone. */
const run = (swarm: Swarm, name: string, ...more: string[]) =>
	swarm.docker(1, 'run', '-d', '--name', name, ...more, 'beeline-test', '/httpd', '-n', name, '-p', '80', '-L', '600');
const sleeps = (swarm: Swarm, name: string, ...more: string[]) =>
	swarm.docker(1, 'run', '-d', '--name', name, ...more, 'beeline-test', 'sleep', '600');
function pings(swarm: Swarm, from: string, to: string): boolean {
	try {
		swarm.docker(1, 'exec', from, 'ping', '-c', '1', '-W', '2', to);
		return true;
	} catch {
		return false;
	}
}
const endpoints = async (swarm: Swarm) =>
	(await swarm.get<{ endpoints: EndpointView[] }>(1, '/v1/endpoints')).endpoints;

scenario(
	'endpoint attach --container',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('a container without a network gets one: address, way out, names', ({ swarm }) => {
			run(swarm, 'plain', '--network', 'none', '--dns', '127.0.0.11');
			const e = attach(swarm, ['--container', 'plain', '--name', 'plain']);
			assert.equal([e.address, e.interface], ['10.44.0.3', 'eth0']);
			assert.match(e.netns, /^\/var\/run\/docker\/netns\//, 'a path that is gone when the namespace is');
			assert.match(swarm.docker(1, 'exec', 'plain', 'ip', 'addr', 'show', 'dev', 'eth0'), /inet 10\.44\.0\.3\/24/);
			assert.ok(pings(swarm, 'plain', '10.44.0.2'), 'process');
			assert.ok(pings(swarm, 'plain', 'process'), 'by name');
			assert.ok(pings(swarm, 'plain', swarm.client), 'the way out');
			const back = swarm.exec(1, ['nsenter', '--net=/run/netns/process', 'ping', '-c1', '-W2', '10.44.0.3'], true);
			assert.is(back.code, 0, back.stdout + back.stderr);
			const page = swarm.exec(1, ['nsenter', '--net=/run/netns/process', 'curl', '-s', 'http://10.44.0.3/']).stdout;
			assert.is((JSON.parse(page) as { backend: string }).backend, 'plain');
		});

		test('one that is on a network of Docker’s has both, their names too, and its way out', async ({ swarm }) => {
			swarm.docker(1, 'network', 'create', 'docks');
			run(swarm, 'docked', '--network', 'docks', '--network-alias', 'berth');
			run(swarm, 'ship', '--network', 'docks');
			const id = swarm.docker(1, 'inspect', '-f', '{{.Id}}', 'docked');
			const e = attach(swarm, ['--container', id.slice(0, 12), '--name', 'pier']);
			assert.is(e.interface, 'eth1');
			assert.ok(pings(swarm, 'docked', '10.44.0.2'));
			for (const to of ['ship', 'berth', 'process', 'plain', swarm.client])
				assert.ok(pings(swarm, 'docked', to), `${to}: Docker’s own names, and what its resolver asks us`);
			assert.ok(pings(swarm, 'plain', 'pier'));
		});

		test('a container in another’s namespace is that one', ({ swarm }) => {
			sleeps(swarm, 'rider', '--network', 'container:plain');
			assert.match(refused(swarm, ['--container', 'rider']), /is on network red already, as 10\.44\.0\.3/);
			run(swarm, 'lone', '--network', 'none');
			sleeps(swarm, 'guest', '--network', 'container:lone');
			assert.ok(attach(swarm, ['--container', 'guest']).address);
			assert.ok(pings(swarm, 'lone', '10.44.0.2'));
		});

		test('what cannot be is refused with a sentence, and leaves nothing', async ({ swarm }) => {
			const before = await endpoints(swarm);
			const links = () => swarm.exec(1, ['ip', '-o', 'link']).stdout.split('\n').length;
			const had = links();
			assert.match(refused(swarm, ['--container', 'nobody']), /container nobody: this node has no such container/);
			assert.match(refused(swarm, ['--container', 'plain']), /is on network red already, as 10\.44\.0\.3/);
			run(swarm, 'host', '--network', 'host');
			assert.match(refused(swarm, ['--container', 'host']), /in the node's own network namespace \(--network host\)/);
			swarm.docker(1, 'create', '--name', 'unborn', '--network', 'none', 'beeline-test');
			assert.match(refused(swarm, ['--container', 'unborn']), /container unborn: it is not running/);
			run(swarm, 'dead', '--network', 'none');
			swarm.docker(1, 'kill', 'dead');
			assert.match(refused(swarm, ['--container', 'dead']), /container dead: it is not running/);
			assert.equal(await endpoints(swarm), before);
			assert.is(links(), had);
		});

		test('a container that is removed takes its endpoint along; a restarted one is attached anew', async ({
			swarm,
		}) => {
			const there = async (name: string) => (await endpoints(swarm)).some((e) => e.name === name);
			swarm.docker(1, 'rm', '-f', 'docked');
			await waitFor('pier to be forgotten', async () => !(await there('pier')));
			assert.not(pings(swarm, 'plain', 'pier'));
			swarm.docker(1, 'rm', '-f', 'rider');
			swarm.docker(1, 'restart', '-t', '0', 'plain');
			await waitFor('plain to be forgotten', async () => !(await there('plain')));
			attach(swarm, ['--container', 'plain', '--name', 'plain']);
			assert.ok(pings(swarm, 'plain', 'process'));
		});
	},
);
