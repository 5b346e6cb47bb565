/**
 * Overlay networks beside what the kernel offers for the same: a bridge and a vxlan device on each node, as Docker's overlay
 * driver has them, between the same namespaces:
 *
 *	    x1 .2   x1b .3                  x2 .66
 *	   eth0 eth1                       eth0 eth1       eth0: Beeline, 10.7.0.0/24; eth1: the kernel's, 10.8.0.0/24; MTU 1450
 *	     |    |                          |    |
 *	     |   kbr ── kvx                  |   kbr ── kvx
 *	     n1 .1                           n2 .2                192.168.78.0/24, MTU 1500
 *	     |                               |
 *	   --+-------------------------------+--
 *
 * One of them at a time: Beeline's programs are taken off the uplinks where the kernel's path is measured. Frames on the wire are as cards
 * send them (whole checksums, no more than 1500 bytes), and joined again on arrival (GRO) for both. A veth hands its frames
 * to XDP through a conversion that a card need not make; the row "with XDP_PASS" has the kernel's path pay for that too.
 */
import { availableParallelism } from 'node:os';
import { type LoadReport, Topology, type UdpReport } from '../support/netns.js';
import { address4, type EndpointSpec, endpointMac, Overlay } from '../support/overlay.js';
import { measured, softirqThreads } from './cpu.js';
import { median, print, progress, spread } from './report.js';

const VNI = 5001;
const KERNEL_VNI = 6001;
const STREAMS = 4;
/** Less on a machine that is emulated. */
const STREAM_BYTES = Number(process.env.BENCH_STREAM_BYTES ?? 50_000_000);
const SOCKETS = 32;
const UDP_MS = Number(process.env.BENCH_UDP_MS ?? 500);
const INNER_MTU = 1450;
/** TCP with timestamps over IPv4. */
const SEGMENT = INNER_MTU - 52;

const X1: EndpointSpec = { name: 'x1', node: 'n1', vni: VNI, host: 2 };
const X1B: EndpointSpec = { name: 'x1b', node: 'n1', vni: VNI, host: 3 };
const X2: EndpointSpec = { name: 'x2', node: 'n2', vni: VNI, host: 66 };
const ENDPOINTS = [X1, X1B, X2];
const kernelAddress = (host: number): string => `10.8.0.${host}`;

/** The kernel's path: eth1 of each endpoint on a bridge with a vxlan device, neighbours and forwarding told by hand. */
function buildKernelPath(net: Topology): void {
	for (const node of ['n1', 'n2'])
		net.ip(node, [
			'link add kbr type bridge',
			'link set kbr type bridge mcast_snooping 0',
			`link set kbr mtu ${INNER_MTU} up`,
			`link add kvx type vxlan id ${KERNEL_VNI} local ${net.address(node).v4} dstport 4789 nolearning`,
			`link set kvx mtu ${INNER_MTU} master kbr up`,
		]);
	for (const { name, node, host } of ENDPOINTS) {
		net.veth(node, `k-${name}`, name, 'eth1', INNER_MTU);
		net.ip(name, [
			`link set eth1 address ${endpointMac(host)} up`,
			`addr add ${kernelAddress(host)}/24 dev eth1`,
			...ENDPOINTS.filter((e) => e.host !== host).map(
				(e) => `neigh add ${kernelAddress(e.host)} lladdr ${endpointMac(e.host)} dev eth1 nud permanent`,
			),
		]);
		net.ip(node, [`link set k-${name} master kbr up`]);
		for (const other of ['n1', 'n2'])
			if (other !== node)
				net.exec(other, ['bridge', 'fdb', 'append', endpointMac(host), 'dev', 'kvx', 'dst', net.address(node).v4]);
	}
}

interface Row {
	readonly gbit: number[];
	readonly cpuPerGb: number[];
	readonly cpuPerSegment: number[];
	readonly again: number[];
	readonly perSecond: number[];
	readonly cpuPerPacket: number[];
}

interface Path {
	readonly name: string;
	readonly address: (host: number) => string;
	/** Makes it the only one, and returns how to undo that. */
	readonly enter: (net: Topology, overlay: Overlay) => Promise<() => Promise<void>>;
}

const PATHS: readonly Path[] = [
	{ name: 'bridge and vxlan', address: kernelAddress, enter: async () => async () => {} },
	{
		name: 'bridge and vxlan, with XDP_PASS',
		address: kernelAddress,
		async enter(net) {
			for (const node of ['n1', 'n2']) net.napi(node, 'eth0');
			return async () => {
				for (const node of ['n1', 'n2']) net.exec(node, ['bpftool', 'net', 'detach', 'xdpdrv', 'dev', 'eth0']);
			};
		},
	},
	{
		name: 'Beeline',
		address: address4,
		async enter(_net, overlay) {
			await overlay.toggle();
			return () => overlay.toggle();
		},
	},
];

async function measure(net: Topology, pids: readonly number[], to: string, row: Row): Promise<void> {
	await net.load('x1', ['-n', 20, '-c', 4, `${to}:80`]);
	const long = await measured<LoadReport>(net, 'x1', pids, 'load', [
		...['-n', STREAMS, '-c', STREAMS, '-D', STREAM_BYTES],
		`${to}:80`,
	]);
	if (long.report.ok !== STREAMS) throw new Error(`streams to ${to}: ${JSON.stringify(long.report.failures)}`);
	const bytes = STREAMS * STREAM_BYTES;
	row.gbit.push((bytes * 8) / long.report.durationMs / 1e6);
	row.cpuPerGb.push(long.cpu / (bytes / 1e9));
	row.cpuPerSegment.push((long.cpu / (bytes / SEGMENT)) * 1e6);
	row.again.push(long.report.retransmits);
	const short = await measured<UdpReport>(net, 'x1', pids, 'udpload', [
		...['-n', 0, '-c', SOCKETS, '-d', UDP_MS],
		`${to}:53`,
	]);
	row.perSecond.push((short.report.answered / short.report.durationMs) * 1000);
	// A question and its answer.
	row.cpuPerPacket.push((short.cpu / (2 * short.report.answered)) * 1e6);
}

export async function overlayBench(runs: number): Promise<void> {
	const net = await Topology.build({ nodes: 2, clients: 0 });
	const rows = new Map<string, Row>();
	const destinations = [
		['another node', X2],
		['the same node', X1B],
	] as const;
	try {
		const overlay = await Overlay.start(net, { endpoints: ENDPOINTS, networks: { [VNI]: 0 } });
		await overlay.toggle();
		buildKernelPath(net);
		for (const node of ['n1', 'n2']) net.exec(node, ['ethtool', '-K', 'eth0', 'gro', 'on']);
		const pids = softirqThreads();
		for (const { name } of [X1B, X2]) pids.push((await net.httpd(name, 80)).pid, (await net.udpecho(name, 53)).pid);
		for (let i = 0; i < runs; i++) {
			// Each goes first now and then.
			for (let j = 0; j < PATHS.length; j++) {
				const path = PATHS[(i + j) % PATHS.length];
				const leave = await path.enter(net, overlay);
				try {
					for (const [where, to] of destinations) {
						const key = `${where}|${path.name}`;
						let row = rows.get(key);
						if (!row) {
							row = { gbit: [], cpuPerGb: [], cpuPerSegment: [], again: [], perSecond: [], cpuPerPacket: [] };
							rows.set(key, row);
						}
						await measure(net, pids, path.address(to.host), row);
					}
				} finally {
					await leave();
				}
			}
			progress(`overlay: run ${i + 1} of ${runs}`);
		}
	} finally {
		net.close();
	}
	const ratio = (mine: readonly number[], of: readonly number[]) => median(mine.map((v, i) => v / of[i])).toFixed(2);
	for (const [where] of destinations) {
		const list = PATHS.map((p) => [p.name, rows.get(`${where}|${p.name}`) as Row] as const);
		const base = list[0][1];
		print(
			`${STREAMS} TCP streams of ${STREAM_BYTES / 1e6} MB from ${where}: median of ${runs} interleaved runs, ${availableParallelism()} CPUs for all; ratios to the first row`,
			['path', 'Gbit/s', 'range', 'ratio', 'CPU s per GB', 'CPU µs per segment', 'ratio', 'sent again'],
			list.map(([name, r]) => [
				name,
				median(r.gbit).toFixed(2),
				spread(r.gbit, 2),
				ratio(r.gbit, base.gbit),
				median(r.cpuPerGb).toFixed(2),
				median(r.cpuPerSegment).toFixed(2),
				ratio(r.cpuPerSegment, base.cpuPerSegment),
				`${median(r.again)}`,
			]),
		);
		print(
			`UDP of 64 bytes, ${SOCKETS} questions at once to ${where}`,
			['path', 'questions/s', 'range', 'ratio', 'CPU µs per packet', 'ratio'],
			list.map(([name, r]) => [
				name,
				median(r.perSecond).toFixed(0),
				spread(r.perSecond),
				ratio(r.perSecond, base.perSecond),
				median(r.cpuPerPacket).toFixed(2),
				ratio(r.cpuPerPacket, base.cpuPerPacket),
			]),
		);
	}
}
