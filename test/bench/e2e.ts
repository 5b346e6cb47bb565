/**
 * Real connections through a balancing node, beside nftables DNAT and HAProxy in its place:
 *
 *	 c1 .100           n1 .1                 n2 .2
 *	   |                 |                     |         192.168.78.0/24, MTU 1500
 *	 --+-----------------+---------------------+--
 *	                 balancer             gwbr0 172.18.0.1
 *	                                    n2t1  n2t2  n2t3  n2t4     httpd on 80
 *
 * One balancer at a time: what another leaves in the kernel (connection tracking, XDP) would be paid for by all.
 * CPU is that of client, servers, HAProxy, agents and the kernel's softirq threads: packets are worked on in the context of
 * whoever sent them, so a balancer in the kernel shows in the client's and the servers' time, and `direct` is what to compare with.
 */
import { writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { Mesh, taskBackend } from '../support/beeline.js';
import { type LoadReport, Topology } from '../support/netns.js';
import { waitFor } from '../support/wait.js';
import { measured, softirqThreads } from './cpu.js';
import { median, print, progress, spread } from './report.js';

/** A client looks ever longer for a free port towards one address and port: with eight it does not show. */
const PORTS = Array.from({ length: 8 }, (_, i) => 8080 + i);
const CONNECTIONS = 20_000;
const AT_ONCE = 64;
const STREAMS = 8;
const STREAM_BYTES = 128_000_000;
const TABLE = 'blbench';

interface Balancer {
	/** Targets of the client by row. */
	readonly rows: Readonly<Record<string, readonly string[]>>;
	readonly pids: readonly number[];
	stop(): Promise<void>;
}

const published = (net: Topology, ports: readonly number[] = PORTS) => ports.map((p) => `${net.address('n1').v4}:${p}`);
const tasks = (net: Topology) => net.tasks('n2').map((t) => net.address(t).v4);

async function direct(net: Topology): Promise<Balancer> {
	const via = net.address('n2').v4;
	net.ip('c1', [`route replace 172.18.0.0/16 via ${via}`]);
	return {
		rows: { 'direct, no balancer': tasks(net).map((a) => `${a}:80`) },
		pids: [],
		stop: async () => net.ip('c1', ['route del 172.18.0.0/16']),
	};
}

async function nftables(net: Topology): Promise<Balancer> {
	const list = tasks(net).map((a, i) => `${i} : ${a} . 80`);
	net.exec('n1', ['nft', '-f', '-'], {
		input: `table ip ${TABLE} {
	chain in { type nat hook prerouting priority -100; tcp dport ${PORTS[0]}-${PORTS.at(-1)} dnat ip to numgen inc mod ${list.length} map { ${list.join(', ')} }; }
	chain out { type nat hook postrouting priority 100; ip daddr 172.18.0.0/16 masquerade; }
}
`,
	});
	return {
		rows: { 'nftables DNAT and masquerade': published(net) },
		pids: [],
		stop: async () => void net.exec('n1', ['nft', 'delete', 'table', 'ip', TABLE]),
	};
}

async function haproxy(net: Topology): Promise<Balancer> {
	const file = join(net.directory, 'haproxy.cfg');
	const servers = tasks(net).map((a, i) => `\tserver t${i} ${a}:80`);
	writeFileSync(
		file,
		`global
	maxconn 4096
defaults
	mode tcp
	timeout connect 5s
	timeout client 30s
	timeout server 30s
listen web
	bind ${net.address('n1').v4}:${PORTS[0]}-${PORTS.at(-1)}
	balance roundrobin
${servers.join('\n')}
`,
	);
	const running = net.spawn('n1', ['haproxy', '-db', '-f', file]);
	await waitFor('haproxy to answer', async () => {
		if (running.child.exitCode !== null) throw new Error(`haproxy ended: ${running.stderr()}`);
		return net.exec('n1', ['ss', '-Hltn', 'sport = :8080']).stdout.includes('8080');
	});
	return {
		rows: { 'HAProxy, mode tcp': published(net) },
		pids: [running.pid],
		stop: async () => void (await running.stop('SIGTERM')),
	};
}

async function beeline(net: Topology): Promise<Balancer> {
	const backends = net.tasks('n2').map((t) => taskBackend(net, t));
	const direct = PORTS.map((p) => p + 100);
	const service = (name: string, ports: readonly number[], returnPath: string) => ({
		name,
		ports: ports.map((published) => ({ published, target: 80 })),
		options: { returnPath },
		backends,
	});
	const mesh = await Mesh.start(net, {
		services: [service('tunnel', PORTS, 'tunnel'), service('dsr', direct, 'dsr')],
	});
	return {
		rows: { 'Beeline, return by tunnel': published(net), 'Beeline, direct return': published(net, direct) },
		pids: [...mesh.agents.values()].flatMap((a) => (a.running ? [a.running.pid] : [])),
		stop: () => mesh.close(),
	};
}

interface Row {
	readonly perSecond: number[];
	readonly cpuUs: number[];
	readonly p50: number[];
	readonly p99: number[];
	readonly gbit: number[];
	readonly cpuPerGb: number[];
	readonly failures: number[];
}

const failed = (r: LoadReport) => Object.values(r.failures).reduce((a, b) => a + b, 0);

async function measure(net: Topology, pids: readonly number[], targets: readonly string[], row: Row): Promise<void> {
	// The first connections resolve neighbours and wake servers.
	await net.load('c1', ['-n', 200, '-c', 20, ...targets]);
	const short = await measured<LoadReport>(net, 'c1', pids, 'load', ['-n', CONNECTIONS, '-c', AT_ONCE, ...targets]);
	row.perSecond.push((short.report.ok / short.report.durationMs) * 1000);
	row.cpuUs.push((short.cpu / short.report.ok) * 1e6);
	row.p50.push(short.report.latencyUs.p50);
	row.p99.push(short.report.latencyUs.p99);
	const long = await measured<LoadReport>(net, 'c1', pids, 'load', [
		'-n',
		STREAMS,
		'-c',
		STREAMS,
		'-D',
		STREAM_BYTES,
		...targets,
	]);
	const bytes = long.report.ok * STREAM_BYTES;
	row.gbit.push((bytes * 8) / long.report.durationMs / 1e6);
	row.cpuPerGb.push(long.cpu / (bytes / 1e9));
	row.failures.push(failed(short.report) + failed(long.report));
}

export async function e2eBench(runs: number): Promise<void> {
	const net = await Topology.build({ nodes: 2, tasks: { n2: 4 }, tasks4Only: true });
	const rows = new Map<string, Row>();
	try {
		net.sysctl('c1', { 'net.ipv4.ip_local_port_range': '1024 65535', 'net.ipv4.tcp_tw_reuse': '1' });
		net.ip('n1', [`route add 172.18.0.0/16 via ${net.address('n2').v4}`]);
		const common = softirqThreads();
		for (const task of net.tasks()) common.push((await net.httpd(task, 80)).pid);
		const balancers = [direct, nftables, haproxy, beeline];
		for (let i = 0; i < runs; i++) {
			for (const start of balancers) {
				const balancer = await start(net);
				try {
					for (const [name, targets] of Object.entries(balancer.rows)) {
						let row = rows.get(name);
						if (!row) {
							row = { perSecond: [], cpuUs: [], p50: [], p99: [], gbit: [], cpuPerGb: [], failures: [] };
							rows.set(name, row);
						}
						await measure(net, [...common, ...balancer.pids], targets, row);
					}
				} finally {
					await balancer.stop();
				}
			}
			progress(`e2e: run ${i + 1} of ${runs}`);
		}
	} finally {
		net.close();
	}
	const base = [...rows.values()][0];
	const over = (values: readonly number[], of: readonly number[]) => median(values.map((v, i) => v - of[i]));
	print(
		`Connections of one request, ${CONNECTIONS} by ${AT_ONCE} at once: median of ${runs} interleaved runs, ${availableParallelism()} CPUs for client, balancer and servers`,
		['balancer', 'connections/s', 'range', 'CPU µs each', 'over direct', 'p50 µs', 'p99 µs', 'failed'],
		[...rows].map(([name, r]) => [
			name,
			median(r.perSecond).toFixed(0),
			spread(r.perSecond),
			median(r.cpuUs).toFixed(0),
			r === base ? '' : over(r.cpuUs, base.cpuUs).toFixed(0),
			median(r.p50).toFixed(0),
			median(r.p99).toFixed(0),
			`${r.failures.reduce((a, b) => a + b, 0)}`,
		]),
	);
	print(
		`Bodies of ${STREAM_BYTES / 1e6} MB to the client, ${STREAMS} at once`,
		['balancer', 'Gbit/s', 'range', 'CPU s per GB', 'over direct'],
		[...rows].map(([name, r]) => [
			name,
			median(r.gbit).toFixed(2),
			spread(r.gbit, 2),
			median(r.cpuPerGb).toFixed(2),
			r === base ? '' : over(r.cpuPerGb, base.cpuPerGb).toFixed(2),
		]),
	);
}
