/*
 * On a kernel with ESP: three nodes with the datapath and its encryption (./encryption-node.ts), an encrypted network and a plain one.
 *
 *	secret 5101 10.45.0.0/24 fd00:45::/64, encrypted    s1 .1 on n1   s2 .2 on n2   s3 .3 on n3
 *	open   5102 10.46.0.0/24                            o1 .1 on n1   o2 .2 on n2
 *
 * The switch sees all that goes between nodes, and is asked what it saw. Prints that as JSON; ./encryption.test.ts judges it.
 * Stands alone: node dist/test/vm/encryption-guest.js, on any such kernel.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NetworkFlag } from '../../src/loader/layout.gen.js';
import { innerMtu, macOfAddress } from '../../src/mesh/subnets.js';
import { mountBpffs, type Running, Topology } from '../support/netns.js';
import { waitFor } from '../support/wait.js';
import type { NodeFile, NodeReport } from './encryption-node.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);

/** Emulated machines are thirty times slower than real ones. */
const PATIENCE_MS = 200_000;
/** Between keys. */
const INTERVAL_MS = 30_000;
const MARKER = 'beeline-must-not-be-read-on-the-wire';
const SECRET = 5101;
const OPEN = 5102;
const PLACES = [
	['s1', 'n1', SECRET, 1],
	['s2', 'n2', SECRET, 2],
	['s3', 'n3', SECRET, 3],
	['o1', 'n1', OPEN, 1],
	['o2', 'n2', OPEN, 2],
] as const;
type Name = (typeof PLACES)[number][0];
const place = (name: Name) => PLACES.find(([n]) => n === name) as (typeof PLACES)[number];
const address4 = (name: Name) => `10.${place(name)[2] === SECRET ? 45 : 46}.0.${place(name)[3]}`;
const address6 = (name: Name) => `fd00:${place(name)[2] === SECRET ? 45 : 46}::${place(name)[3]}`;

/** Packets between nodes that the switch saw, by kind. */
function sight(file: string): {
	readonly kinds: Record<string, number>;
	readonly marker: boolean;
	readonly lines: string[];
} {
	const bytes = readFileSync(file);
	const kinds: Record<string, number> = {};
	const lines: string[] = [];
	// pcap: a header of 24, then for each packet 16 and its bytes.
	for (let at = 24; at + 16 <= bytes.length; ) {
		const length = bytes.readUInt32LE(at + 8);
		const p = bytes.subarray(at + 16, at + 16 + length);
		at += 16 + length;
		let kind = `ethertype ${p.readUInt16BE(12).toString(16)}`;
		if (p.readUInt16BE(12) === 0x0800) {
			const l4 = 14 + (p[14] & 15) * 4;
			kind = `ip ${p[23]}`;
			if (p[23] === 50) kind = 'esp';
			if (p[23] === 17) {
				const port = p.readUInt16BE(l4 + 2);
				kind = `udp ${port}`;
				if (port === 4789 && p.length >= l4 + 16) kind = `vxlan ${p.readUInt32BE(l4 + 12) >>> 8}`;
			}
		}
		kinds[kind] = (kinds[kind] ?? 0) + 1;
		if (kind === `vxlan ${SECRET}`) lines.push(p.toString('hex'));
	}
	return { kinds, marker: bytes.includes(MARKER), lines };
}

/** The file of rows of a node: what an agent would work out. */
function rows(net: Topology, node: string, secretFile: string): NodeFile {
	const ifindexOf = (device: string) =>
		(net.ipJson(node, `link show dev ${device}`) as { ifindex: number }[])[0].ifindex;
	const index = (name: string) => net.nodes.indexOf(name) + 1;
	const ifindex = ifindexOf('eth0');
	const mac = net.mac(node);
	const endpoints: [string, NodeFile['endpoints'][number][1]][] = [];
	const ports: [number, NodeFile['ports'][number][1]][] = [];
	for (const [name, at, vni] of PLACES) {
		const [four, six] = [address4(name), address6(name)];
		const own = at === node ? ifindexOf(`e-${name}`) : 0;
		const row = { node: index(at), ifindex: own, mac: macOfAddress(four), flags: 0 };
		endpoints.push([`${vni} ${four}`, row], [`${vni} ${six}`, row]);
		if (own > 0) ports.push([own, { addr4: four, addr6: six, vni, mac: row.mac }]);
	}
	const nodes = net.nodes.map((name) => ({ name, address: net.address(name).v4 }));
	return {
		pinRoot: net.pinRoot(node),
		stateFile: join(net.directory, `${node}-state.json`),
		secretFile,
		keyIntervalMs: INTERVAL_MS,
		uplink: { ifindex, name: 'eth0', mtu: 1500, mac },
		guarded: node === 'n2',
		self: index(node),
		nodes: net.nodes.map((m) => [
			index(m),
			{ vtep: net.address(m).v4, ifindex, dmac: net.mac(m), smac: mac, mtu: 1500 },
		]),
		networks: [
			[SECRET, { flags: NetworkFlag.NETWORK_ENCRYPTED }],
			[OPEN, { flags: 0 }],
		],
		endpoints,
		ports,
		encryption: {
			self: node,
			nodes,
			networks: [
				{
					name: 'secret',
					driver: 'beeline',
					subnet: '10.45.0.0/24',
					vni: SECRET,
					attachable: true,
					options: { encrypted: true },
					endpoints: PLACES.filter(([, , vni]) => vni === SECRET).map(([name, at]) => ({
						id: name,
						node: at,
						address: address4(name),
						aliases: [],
					})),
				} as unknown as NodeFile['encryption']['networks'][number],
			],
			attached: [SECRET],
		},
	};
}

class Nodes {
	readonly #running = new Map<string, Running>();

	constructor(
		readonly net: Topology,
		readonly secretFile: string,
	) {}

	async start(node: string): Promise<void> {
		const file = join(this.net.directory, `${node}-rows.json`);
		writeFileSync(file, JSON.stringify(rows(this.net, node, this.secretFile)));
		const program = fileURLToPath(new URL('encryption-node.js', import.meta.url));
		const running = this.net.spawn(node, [process.execPath, '--enable-source-maps', program, file]);
		this.#running.set(node, running);
		await waitFor(
			`the datapath on ${node}`,
			() => {
				if (running.child.exitCode !== null) throw new Error(`it ended: ${running.stderr()}`);
				return running.stdout().includes('ready');
			},
			PATIENCE_MS,
			200,
		);
	}

	async kill(node: string): Promise<void> {
		await this.#running.get(node)?.stop('SIGKILL');
	}

	async report(node: string): Promise<NodeReport> {
		const running = this.#running.get(node) as Running;
		const before = running.stdout().length;
		running.child.kill('SIGUSR1');
		const line = await waitFor(
			`the report of ${node}`,
			() => {
				const text = running.stdout().slice(before);
				return text.endsWith('\n') && text.trim();
			},
			30_000,
		);
		return JSON.parse(line) as NodeReport;
	}

	log(): string {
		return [...this.#running].map(([n, r]) => `${n}: ${r.stderr().slice(-3000)}`).join('\n');
	}
}

async function main(): Promise<object> {
	const seen: Record<string, unknown> = {};
	const net = await Topology.build({ clients: 1 });
	const secretFile = join(net.directory, 'secret');
	writeFileSync(secretFile, randomBytes(48).toString('base64'), { mode: 0o600 });
	const nodes = new Nodes(net, secretFile);
	try {
		mountBpffs();
		for (const [name, node, vni] of PLACES) {
			const mtu = innerMtu(1500, vni === SECRET);
			net.addNamespace(name);
			net.veth(node, `e-${name}`, name, 'eth0', mtu);
			net.ip(name, [
				`link set eth0 address ${macOfAddress(address4(name))} up`,
				`addr add ${address4(name)}/24 dev eth0`,
				`addr add ${address6(name)}/64 dev eth0 nodad`,
			]);
			net.ip(node, [`link set e-${name} up`]);
		}
		say('the topology stands');
		await Promise.all(net.nodes.map((node) => nodes.start(node).then(() => say(`${node} is ready`))));
		const pings = (from: string, address: string, more: readonly string[] = []) =>
			net.exec(from, ['ping', '-n', '-c', '1', '-W', '2', ...more, address], { mayFail: true }).code === 0;
		const capture = await net.capture('sw', 'br0', '');
		await waitFor('the first ping under ESP', () => pings('s1', address4('s2')), 40_000, 500);
		say('the first packets came');
		const matrix: Record<string, boolean> = {};
		const secrets = ['s1', 's2', 's3'] as const;
		for (const from of secrets)
			for (const to of secrets) {
				if (from === to) continue;
				await waitFor(`${from} > ${to}`, () => pings(from, address4(to)), 20_000).catch(() => undefined);
				matrix[`${from} > ${to}`] = pings(from, address4(to));
				matrix[`${from} > ${to} by IPv6`] = pings(from, address6(to));
				say(`${from} > ${to}: ${matrix[`${from} > ${to}`]} ${matrix[`${from} > ${to} by IPv6`]}`);
			}
		matrix['o1 > o2'] = pings('o1', address4('o2'));
		matrix['1416 bytes'] = pings('s1', address4('s2'), ['-M', 'do', '-s', '1388']);
		matrix['4000 bytes'] = pings('s1', address4('s2'), ['-s', '4000']);
		seen.matrix = matrix;
		say(JSON.stringify(matrix));
		const pattern = Buffer.from(MARKER).toString('hex').slice(0, 32);
		seen.patterned = pings('s1', address4('s2'), ['-p', pattern, '-s', '200']);
		await net.httpd('s2', 80, MARKER);
		const few = await net.load('s1', ['-n', 5, '-c', 2, '-t', 20_000, `${address4('s2')}:80`]);
		seen.tcp = { failures: few.failures, backends: few.backends, retransmits: few.retransmits };
		const bulk = await net.load('s1', ['-n', 1, '-c', 1, '-t', 60_000, '-D', 1 << 20, `${address4('s2')}:80`]);
		seen.bulk = { failures: bulk.failures, ok: bulk.ok, retransmits: bulk.retransmits };
		say(JSON.stringify([seen.tcp, seen.bulk]));
		await capture.stop();
		const wire = sight(capture.file);
		seen.wire = { kinds: wire.kinds, marker: wire.marker };
		say(JSON.stringify(seen.wire));
		const reports = async () =>
			Object.fromEntries(await Promise.all(net.nodes.map(async (n) => [n, await nodes.report(n)] as const)));
		seen.reports = await reports();
		say(JSON.stringify(seen.reports));
		return seen;
	} catch (error) {
		say(nodes.log());
		for (const n of net.nodes)
			for (const command of [
				'ip -s link show bl-esp',
				'ip xfrm policy list',
				'ip -s xfrm state list nokeys',
				'grep -v \\s0$ /proc/net/xfrm_stat',
			])
				say(`${n}: ${net.exec(n, command.split(' '), { mayFail: true }).stdout}`);
		for (const n of net.nodes) say(JSON.stringify(await nodes.report(n).catch((e: Error) => e.message)));
		throw error;
	} finally {
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
