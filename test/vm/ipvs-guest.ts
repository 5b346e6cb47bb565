/*
 * Inside a guest of ./run whose kernel has IPVS: Docker's own mesh serves a port, Beeline is installed, dies, comes back and is
 * uninstalled. Topology: test/swarm/bed with one node. Prints what was seen as JSON; ./ipvs.test.ts judges it.
 * argv: directory of compiled objects.
 */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beeline } from '../support/beeline.js';
import type { LoadReport } from '../support/netns.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm } from '../swarm/swarm.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);
const short = (r: LoadReport) => ({ ok: r.ok, failures: r.failures, backends: r.backends, clients: r.clients });

/** What of Beeline, or touched by it, there is on the node. */
function traces(swarm: Swarm): Record<string, unknown> {
	const run = (...command: string[]) => swarm.exec(1, command, true).stdout;
	const kinds = (what: string, of: (x: Record<string, unknown>) => unknown) =>
		(JSON.parse(run('bpftool', '-j', what, 'show') || '[]') as Record<string, unknown>[]).map(of).sort();
	return {
		programs: kinds('prog', (x) => `${x.type} ${x.name ?? ''}`),
		maps: kinds('map', (x) => `${x.type} ${x.name ?? ''}`),
		links: kinds('link', (x) => x.type),
		pins: run('ls', '/sys/fs/bpf'),
		qdiscs: run('tc', 'qdisc', 'show'),
		reserved: run('cat', '/proc/sys/net/ipv4/ip_local_reserved_ports'),
		rules: run('iptables-save')
			.replace(/^#.*\n/gm, '')
			.replace(/\[\d+:\d+\]/g, ''),
		links2: run('ip', '-o', 'link', 'show').replace(/^\d+: |qdisc \S+ /gm, ''),
		neighbours: run('ip', 'neigh', 'show')
			.split('\n')
			.filter((l) => l.includes('extern_learn')),
	};
}

async function main(): Promise<object> {
	const missing = cannotUseDocker();
	if (missing !== undefined) throw new Error(missing);
	// Of the guest alone: it goes with the machine.
	cpSync(process.argv[2], join(root, 'dist/bpf'), { recursive: true });
	// A new namespace takes this from the machine's first, and Docker's own (ingress_sbox) must forward what IPVS answers.
	writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
	const seen: Record<string, unknown> = {};
	const swarm = Swarm.up(1);
	try {
		say('the swarm is up');
		const create = ['service', 'create', '-d', '--no-resolve-image', '--name', 'web', '--replicas', '2'];
		swarm.docker(1, ...create, '--publish', '8080:80', 'beeline-test:latest');
		const load = (n: number) => swarm.load(['-n', n, '-c', 4, '-t', 20_000, ...swarm.targets(8080)]);
		await waitFor('web to run', () => swarm.tasks('web').length === 2, 120_000, 500);
		await waitFor(
			'Docker’s mesh to answer',
			async () => {
				const r = await load(8);
				seen.last = short(r);
				return r.ok === 8 && Object.keys(r.backends).length === 2;
			},
			120_000,
			1000,
		);
		seen.before = short(await load(20));
		seen.tracesBefore = traces(swarm);
		say('Docker’s mesh serves');

		const open = async (n: number, ...more: (string | number)[]) => {
			const l = swarm.startLoad(['-n', n, '-c', n, '-k', 0, '-i', 1000, '-t', 60_000, ...more, ...swarm.targets(8080)]);
			const report = l.report();
			await l.ready();
			return { stop: l.stop, report };
		};
		const old = await open(20);
		say('20 connections are open through it');

		await swarm.start(1, { datapath: { staleAfter: '30s' } }, 180_000);
		await swarm.serving('web', 2, 60_000);
		say('the agent is ready');
		seen.attached = /xdp/.test(swarm.exec(1, ['ip', 'link', 'show', 'eth0']).stdout);
		seen.installed = short(await load(20));

		await swarm.stopAgent(1, 'SIGKILL');
		seen.dead = short(await load(20));
		await sleep(40_000);
		say('no agent for longer than staleAfter');
		seen.stale = short(await load(20));
		await swarm.start(1, { datapath: { staleAfter: '30s' } }, 180_000);
		await swarm.serving('web', 2, 60_000);
		seen.back = short(await load(20));
		say('the agent is back');

		// Connections that Beeline made: these end within the wait, and none of them may be cut.
		const made = await open(10);
		await swarm.stopAgent(1);
		const leaving = swarm.background(1, [beeline, 'detach', '--wait', '120s']);
		await waitFor(
			'new connections to go to Docker’s mesh again',
			async () => {
				const r = await load(2);
				return r.ok === 2 && !(swarm.client in r.clients);
			},
			120_000,
			500,
		);
		say('leaving: new connections go to Docker’s mesh');
		seen.leaving = short(await load(20));
		made.stop();
		seen.made = short(await made.report);
		const left = await leaving;
		seen.detach = left;
		say('detached');
		seen.tracesAfter = traces(swarm);
		seen.after = short(await load(20));
		old.stop();
		const r = await old.report;
		seen.old = { ...short(r), connections: r.connections, requests: r.requests, moved: r.moved };
		seen.client = swarm.client;
		return seen;
	} catch (e) {
		const look = swarm.exec(
			1,
			[
				'sh',
				'-c',
				'uname -r; iptables-save -t nat; ls /run/docker/netns; for n in /run/docker/netns/*; do echo "== $n"; nsenter --net=$n sh -c "ip -br addr; cat /proc/net/ip_vs; iptables-save; sysctl net.ipv4.ip_forward net.ipv4.vs.conntrack"; done; docker service ps --no-trunc web',
			],
			true,
		).stdout;
		const log = readFileSync(join(swarm.directory, 'node1/dockerd.log'), 'utf8').slice(-6000);
		throw new Error(`${(e as Error).message}\n${JSON.stringify(seen)}\n${swarm.output(1)}\n${look}\n${log}`);
	} finally {
		swarm.close();
	}
}

console.log(JSON.stringify(await main()));
process.exit(0);
