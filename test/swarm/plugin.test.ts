/*
 * Docker's networks on Beeline's, on real engines (./bed) whose agents follow mesh.yaml: the plugin socket of the agent is what
 * `docker network create -d beeline` speaks to. Containers are on
 *
 *	red   5001 10.44.0.0/24 fd00:44::/64    node1 owns .0/25, node2 .128/25
 *	blue  5002 10.44.0.0/24                 the same subnet
 *	shut  5003 10.45.0.0/24 internal
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const NODES = [1, 2];

interface Shared {
	readonly swarm: Swarm;
}

function mesh(swarm: Swarm): object {
	return {
		nodes: NODES.map((n) => ({ name: `node${n}`, address: swarm.address(n) })),
		services: [],
		networks: [
			{ name: 'red', subnet: '10.44.0.0/24', subnet6: 'fd00:44::/64', vni: 5001, attachable: true },
			{ name: 'blue', subnet: '10.44.0.0/24', vni: 5002, attachable: true },
			{ name: 'shut', subnet: '10.45.0.0/24', vni: 5003, attachable: true, options: { internal: true } },
			{ name: 'closed', subnet: '10.46.0.0/24', vni: 5004 },
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

const pings = (swarm: Swarm, node: number, from: string, to: string): boolean => {
	try {
		swarm.docker(node, 'exec', from, 'ping', '-c', '1', '-W', '2', to);
		return true;
	} catch {
		return false;
	}
};

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
			create(swarm, 1, 'red');
			run(swarm, 1, 'r1', 'red');
			assert.is(addressOf(swarm, 1, 'r1'), '10.44.0.2');
			const shown = swarm.docker(1, 'exec', 'r1', 'ip', 'addr', 'show', 'dev', 'eth0');
			assert.match(shown, /mtu 1450/);
			assert.match(shown, /02:42:0a:2c:00:02/);
			assert.match(shown, /inet 10\.44\.0\.2\/24/);
			assert.ok(pings(swarm, 1, 'r1', swarm.client), 'by docker_gwbridge');
			const [e] = await endpoints(swarm, 1);
			assert.equal([e.id, e.network, e.mac], ['red-10.44.0.2', 'red', '02:42:0a:2c:00:02']);
		});

		test('containers on two engines reach each other', async ({ swarm }) => {
			create(swarm, 2, 'red');
			run(swarm, 2, 'r2', 'red');
			assert.is(addressOf(swarm, 2, 'r2'), '10.44.0.128');
			assert.ok(pings(swarm, 1, 'r1', '10.44.0.128'));
			assert.ok(pings(swarm, 2, 'r2', '10.44.0.2'));
			run(swarm, 2, 'r2b', 'red');
			assert.ok(pings(swarm, 2, 'r2', '10.44.0.129'), 'and on one');
		});

		test('a container that is gone leaves nothing, and its address is free', async ({ swarm }) => {
			swarm.docker(2, 'rm', '-f', 'r2b');
			await waitFor('its endpoint to go', async () => (await endpoints(swarm, 2)).length === 1);
			run(swarm, 2, 'r2c', 'red');
			assert.is(addressOf(swarm, 2, 'r2c'), '10.44.0.129');
		});
	},
);
