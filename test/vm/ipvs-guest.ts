/*
 * Inside a guest of ./run whose kernel has IPVS: Docker's own mesh serves a port, and a VIP on an overlay network; Beeline is
 * installed, dies, comes back and is uninstalled. Topology: test/swarm/bed with one node. Prints what was seen as JSON; ./ipvs.test.ts judges it.
 * argv: directory of compiled objects.
 */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beeline } from '../support/beeline.js';
import type { LoadReport, UdpReport } from '../support/netns.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm } from '../swarm/swarm.js';
import { answers, type Load, say, short } from './docker-mesh.js';
import { traces } from './traces.js';

/** From a task, to the VIP of a service on its overlay network. */
interface Inside {
	tcp(n: number): Promise<object>;
	udp(): Promise<object>;
	open(n: number): Promise<{ stop(): Promise<LoadReport> }>;
	/** A connection each second, and the questions of two UDP sockets of each kind. */
	always(): Promise<() => Promise<object>>;
}

const peersOf = (r: LoadReport) => ({ ...short(r), peers: r.peers });
const ofUdp = (r: UdpReport) => ({
	sent: r.sent,
	lost: r.lost,
	corrupt: r.corrupt,
	moved: r.moved,
	errors: r.errors,
	backends: r.backends,
	clients: r.clients,
	sources: r.sources,
});

async function inside(swarm: Swarm, service: string, client: string): Promise<Inside> {
	const at = await swarm.container(1, client);
	const text = swarm.docker(1, 'service', 'inspect', service, '--format', '{{json .Endpoint.VirtualIPs}}');
	const vip = (JSON.parse(text) as { Addr: string }[])[0].Addr.replace(/\/.*/, '');
	const start = <R>(...command: (string | number)[]) => ({
		...swarm.startInside<R>(1, at, command),
		// `docker exec` hands no signal on; all of them end together.
		end: () => void swarm.exec(1, ['docker', 'exec', at, 'busybox', 'killall', 'load', 'udpload'], true),
	});
	return {
		tcp: async (n) =>
			peersOf(await swarm.inside<LoadReport>(1, at, ['/load', '-n', n, '-c', 4, '-t', 20_000, `${vip}:80`])),
		udp: async () =>
			ofUdp(await swarm.inside<UdpReport>(1, at, ['/udpload', '-n', 3, '-c', 6, '-t', 10_000, `${vip}:53`])),
		async open(n) {
			const l = start<LoadReport>('/load', '-n', n, '-c', n, '-k', 0, '-i', 1000, '-t', 60_000, `${vip}:80`);
			await l.ready();
			return {
				async stop() {
					l.end();
					return await l.report();
				},
			};
		},
		async always() {
			const all = {
				dials: start<LoadReport>('/load', '-n', 0, '-c', 50, '-r', 1, '-d', 1_700_000, '-t', 30_000, `${vip}:80`),
				sockets: start<UdpReport>('/udpload', '-n', 0, '-d', 1_700_000, '-c', 2, '-i', 1000, '-t', 10_000, `${vip}:53`),
				datagrams: start<UdpReport>(
					'/udpload',
					'-u',
					'-n',
					0,
					'-d',
					1_700_000,
					'-c',
					2,
					'-i',
					1000,
					'-t',
					10_000,
					`${vip}:53`,
				),
			};
			return async () => {
				for (const l of Object.values(all)) l.end();
				return {
					dials: peersOf(await all.dials.report()),
					sockets: ofUdp(await all.sockets.report()),
					datagrams: ofUdp(await all.datagrams.report()),
				};
			};
		},
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
		swarm.docker(1, 'network', 'create', '-d', 'overlay', '--subnet', '10.77.1.0/24', 'red');
		for (const [name, replicas] of [
			['red-web', '2'],
			['red-client', '1'],
		])
			swarm.docker(
				1,
				...['service', 'create', '-d', '--no-resolve-image', '--name', name, '--replicas', replicas],
				...['--network', 'red', 'beeline-test:latest'],
			);
		const load = (n: number) => swarm.load(['-n', n, '-c', 4, '-t', 20_000, ...swarm.targets(8080)]);
		await waitFor('web to run', () => swarm.tasks('web').length === 2, 120_000, 500);
		const note = (r: Load) => {
			seen.last = r;
		};
		await answers('Docker’s mesh', 8, async () => short(await load(8)), note);
		seen.before = short(await load(20));
		await waitFor('red-web to run', () => swarm.tasks('red-web').length === 2, 120_000, 500);
		const red = await inside(swarm, 'red-web', 'red-client');
		await answers('Docker’s VIP', 4, async () => (await red.tcp(4)) as Load, note);
		const vip: Record<string, unknown> = {};
		seen.vip = vip;
		vip.address = swarm.docker(
			1,
			'service',
			'inspect',
			'red-web',
			'--format',
			'{{(index .Endpoint.VirtualIPs 0).Addr}}',
		);
		const client = await swarm.container(1, 'red-client');
		vip.client = swarm.docker(1, 'inspect', '--format', '{{.NetworkSettings.Networks.red.IPAddress}}', client);
		vip.before = { tcp: await red.tcp(20), udp: await red.udp() };
		seen.tracesBefore = traces(swarm);
		say('Docker’s mesh serves');

		const open = async (n: number, ...more: (string | number)[]) => {
			const l = swarm.startLoad(['-n', n, '-c', n, '-k', 0, '-i', 1000, '-t', 60_000, ...more, ...swarm.targets(8080)]);
			const report = l.report();
			await l.ready();
			return { stop: l.stop, report };
		};
		const old = await open(20);
		const redOld = await red.open(10);
		const always = await red.always();
		say('20 connections are open through it, 10 to the VIP');

		await swarm.start(1, { datapath: { staleAfter: '30s' } }, 180_000);
		await swarm.serving('web', 2, 60_000);
		say('the agent is ready');
		seen.attached = /xdp/.test(swarm.exec(1, ['ip', 'link', 'show', 'eth0']).stdout);
		seen.installed = short(await load(20));
		vip.installed = { tcp: await red.tcp(20), udp: await red.udp() };
		const redMade = await red.open(10);
		say('VIPs are dialled');

		await swarm.stopAgent(1, 'SIGKILL');
		seen.dead = short(await load(20));
		await sleep(40_000);
		say('no agent for longer than staleAfter');
		seen.stale = short(await load(20));
		vip.stale = { tcp: await red.tcp(20), udp: await red.udp() };
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
		vip.after = { tcp: await red.tcp(20), udp: await red.udp() };
		say('after: loads end');
		for (const [name, l] of [
			['made', redMade],
			['old', redOld],
		] as const) {
			const r = await l.stop();
			vip[name] = { ...peersOf(r), connections: r.connections, requests: r.requests, moved: r.moved };
		}
		vip.always = await always();
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
