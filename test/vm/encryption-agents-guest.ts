/*
 * On a kernel with ESP: two nodes with whole agents, and the life of an encrypted network on them: attached, carried, agent killed and
 * back, detached, taken down. Prints what was seen as JSON; ./encryption.test.ts judges it.
 *
 *	secret 5101 10.45.0.0/24, encrypted    s1 on n1   s2 on n2
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { EndpointView, StatusView } from '../../src/http/schemas.js';
import { Agent, type MeshDocument } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { waitFor } from '../support/wait.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);
/** Emulated machines are thirty times slower than real ones. */
const PATIENCE_MS = 400_000;

const document: MeshDocument = {
	services: [],
	networks: [
		{
			name: 'secret',
			subnet: '10.45.0.0/24',
			vni: 5101,
			attachable: true,
			options: { encrypted: true, internal: true },
		},
	],
};

export interface AgentsSeen {
	mtu: number;
	pings: boolean;
	verdicts: Record<string, number>;
	metrics: Record<string, number>;
	warnings: readonly string[];
	/** Of n1: before the agent was killed, and when it was back. */
	spis: readonly string[];
	spisAfter: readonly string[];
	/** Sent and received while it was away and back. */
	steady: readonly [number, number];
	/** Security associations of n1 after its last endpoint was detached. */
	left: number;
	/** Interfaces and policies of n2 after `beeline detach`. */
	links: readonly string[];
	policies: string;
	/** Whether the agents' logs or state files hold a key or the secret. */
	leaks: boolean;
}

async function main(): Promise<AgentsSeen> {
	const seen = {} as AgentsSeen;
	const net = await Topology.build({ nodes: 2, clients: 1 });
	const agents = new Map<string, Agent>();
	try {
		const secret = randomBytes(48).toString('base64');
		const secretFile = join(net.directory, 'secret');
		writeFileSync(secretFile, secret, { mode: 0o600 });
		const nodes = net.nodes.map((name) => ({ name, address: net.address(name).v4 }));
		for (const name of net.nodes) {
			const datapath = { secretFile, maxFlows: 1024, maxTracked: 1024, maxHalfOpen: 1024 };
			const a = new Agent(net, name, { datapath, log: { level: 'debug' } });
			agents.set(name, a);
			a.writeConfig();
			a.writeMesh({ ...document, nodes });
			a.launch();
		}
		const agent = (name: string) => agents.get(name) as Agent;
		await Promise.all([...agents.values()].map((a) => a.ready(PATIENCE_MS)));
		say('the agents are ready');
		const endpoints = new Map<string, EndpointView>();
		for (const [name, node] of [
			['s1', 'n1'],
			['s2', 'n2'],
		]) {
			net.addNamespace(name);
			const body = { network: 'secret', netns: `/run/netns/${net.ns(name)}` };
			// It may take longer than a request may wait.
			const r = await agent(node)
				.request('POST', '/v1/endpoints', body)
				.catch(() => undefined);
			if (r !== undefined && r.status >= 300) throw new Error(`attach ${name}: ${r.status} ${r.text}`);
			const attached = await waitFor(
				`${name} to be attached`,
				async () => (await agent(node).get<{ endpoints: EndpointView[] }>('/v1/endpoints')).endpoints[0],
				90_000,
				1000,
			);
			endpoints.set(name, attached);
			say(`${name} is attached`);
		}
		const to = endpoints.get('s2') as EndpointView;
		seen.mtu = to.mtu;
		const ping = () => net.exec('s1', ['ping', '-n', '-c', '1', '-W', '2', to.address], { mayFail: true }).code === 0;
		seen.pings = await waitFor('a ping by ESP', ping, 60_000, 500).catch(() => false);
		say(`pings: ${seen.pings}`);
		seen.verdicts = Object.fromEntries(
			Object.entries(await agent('n1').verdicts()).filter(([k]) => /^(overlay|esp)_tc/.test(k)),
		);
		const { text } = await agent('n1').request('GET', '/metrics');
		seen.metrics = Object.fromEntries(
			[...text.matchAll(/^(beeline_encryption_\S+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]),
		);
		seen.warnings = (await agent('n1').get<StatusView>('/v1/status')).warnings.filter((x) => /encrypt|keys/.test(x));
		say(JSON.stringify(seen));

		const spis = () =>
			[...net.exec('n1', ['ip', 'xfrm', 'state', 'list', 'nokeys']).stdout.matchAll(/spi (0x\w+)/g)]
				.map((m) => m[1])
				.sort();
		seen.spis = spis();
		const steady = net.spawn('s1', ['ping', '-n', '-i', '0.5', to.address]);
		await agent('n1').stop('SIGKILL');
		agent('n1').launch();
		await agent('n1').ready(PATIENCE_MS);
		say('the agent of n1 is back');
		await waitFor(
			'it to speak of its keys',
			async () =>
				/beeline_encryption_peers\{state="ready"\} 1/.test((await agent('n1').request('GET', '/metrics')).text),
			60_000,
			500,
		);
		seen.spisAfter = spis();
		const { stdout } = await steady.stop('SIGINT');
		const m = /(\d+) packets transmitted, (\d+) received/.exec(stdout);
		seen.steady = [Number(m?.[1] ?? 0), Number(m?.[2] ?? 0)];
		say(JSON.stringify(seen.steady));

		const files = net.exec('n1', ['sh', '-c', `cat /run/beeline/state-*.json ${net.directory}/n*/*.yaml`]).stdout;
		const keys = net.exec('n1', ['ip', 'xfrm', 'state', 'list']).stdout.match(/0x[0-9a-f]{72}/g) ?? [];
		const told = [...agents.values()].map((a) => a.output()).join() + files;
		seen.leaks = keys.length === 0 || [...keys.map((k) => k.slice(2)), secret].some((k) => told.includes(k));

		const one = endpoints.get('s1') as EndpointView;
		await agent('n1')
			.request('DELETE', `/v1/endpoints/${one.id}`)
			.catch(() => undefined);
		await waitFor('n1 to drop its keys', () => spis().length === 0, 60_000, 500).catch(() => undefined);
		seen.left = spis().length;
		say('detached');
		await agent('n2').stop();
		await agent('n2').cli(['detach', '--config', agent('n2').configFile, '--now'], { local: true });
		seen.links = (net.ipJson('n2', 'link show') as { ifname: string }[]).map((l) => l.ifname);
		seen.policies = net.exec('n2', ['ip', 'xfrm', 'policy', 'list']).stdout;
		return seen;
	} catch (error) {
		say(`so far: ${JSON.stringify(seen)}`);
		for (const a of agents.values()) say(`${a.node}: ${a.output().slice(-2500)}`);
		throw error;
	} finally {
		for (const a of agents.values()) await a.stop('SIGKILL');
		net.close();
	}
}

main().then(
	(seen) => console.log(JSON.stringify(seen, null, 1)),
	(error: Error) => {
		console.error(error.stack);
		process.exitCode = 1;
	},
);
