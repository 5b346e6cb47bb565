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
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NetworkFlag } from '../../src/loader/layout.gen.js';
import { innerMtu, macOfAddress } from '../../src/mesh/subnets.js';
import { mountBpffs, type Running, Topology } from '../support/netns.js';
import { waitFor } from '../support/wait.js';
import type { NodeFile, NodeReport } from './encryption-node.js';
import { sight } from './sight.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);

/** Emulated machines are thirty times slower than real ones. */
const PATIENCE_MS = 200_000;
/** Between keys. */
const INTERVAL_MS = 30_000;
const MARKER = 'beeline-must-not-be-read-on-the-wire';
const BULK_BYTES = Number(process.env.BEELINE_BULK_BYTES ?? 100_000_000);
const SPEED_BYTES = Number(process.env.BEELINE_SPEED_BYTES ?? 10_000_000);
const SPEED_ROUNDS = Number(process.env.BEELINE_SPEED_ROUNDS ?? 11);
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

/** VXLAN of the encrypted network in the clear, from one node to another. */
function plainFrame(net: Topology, from: string, to: string): string {
	const inner = Buffer.from(
		'02420a2d000202420a2d00010800' + '4500001c000000004011' + '0000' + '0a2d0001' + '0a2d0002' + '0009000900080000',
		'hex',
	);
	const mac = (node: string) => Buffer.from(net.mac(node).replaceAll(':', ''), 'hex');
	const ip = Buffer.from([0x45, 0, 0, 36 + inner.length, 0, 0, 0x40, 0, 64, 17, 0, 0]);
	const header = Buffer.concat([ip, ...[from, to].map((n) => Buffer.from(net.address(n).v4.split('.').map(Number)))]);
	let sum = 0;
	for (let k = 0; k < 20; k += 2) sum += header.readUInt16BE(k);
	header.writeUInt16BE(~((sum & 0xffff) + (sum >> 16)) & 0xffff, 10);
	const udp = Buffer.from([0xc0, 1, 4789 >> 8, 4789 & 255, 0, 16 + inner.length, 0, 0]);
	const vxlan = Buffer.from([8, 0, 0, 0, SECRET >> 16, (SECRET >> 8) & 255, SECRET & 255, 0]);
	return Buffer.concat([mac(to), mac(from), Buffer.from([8, 0]), header, udp, vxlan, inner]).toString('hex');
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
		guarded: node !== 'n3',
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

export interface Seen {
	/** What was tried → whether it worked. */
	matrix: Record<string, boolean>;
	/** Requests that were answered, failures, and who answered or how often TCP sent again. */
	tcp: Record<'few' | 'bulk', readonly unknown[]>;
	/** Packets that the switch saw by kind; whether it could read what endpoints said. */
	wire: { kinds: Record<string, number>; marker: boolean };
	counters: Record<string, NodeReport['counters']>;
	refused: { plain: number; copies: number };
	/** Sent and received, while keys change and an agent is killed and started. */
	steady: [number, number][];
	keys: {
		n1: NodeReport['metrics'];
		n2: NodeReport['metrics'];
		warnings: readonly string[];
		associations: number;
	};
	/** By direction. */
	bulk: Record<string, { ok: number; failures: Readonly<Record<string, number>>; retransmits: number; mbps: number }>;
	/** Packets that IPsec dropped meanwhile, by node and reason. */
	bulkDropped: Record<string, number>;
	/** Packets of the encrypted network in the clear. */
	plainInBulk: number;
	/** TCP, Mbit/s by round, and the median of encrypted to plain. */
	speed: { secret: number[]; open: number[] };
	ratio: number;
}

async function main(): Promise<Seen> {
	const seen = {} as Seen;
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
		await waitFor('the first ping under ESP', () => pings('s1', address4('s2')), 60_000, 500);
		say('the first packets came');
		const secrets = ['s1', 's2', 's3'] as const;
		const matrix: Record<string, boolean> = {};
		seen.matrix = matrix;
		for (const from of secrets)
			for (const to of secrets) {
				if (from === to) continue;
				await waitFor(`${from} > ${to}`, () => pings(from, address4(to)), 20_000).catch(() => undefined);
				matrix[`${from} > ${to}`] = pings(from, address4(to));
				matrix[`${from} > ${to} by IPv6`] = pings(from, address6(to));
			}
		matrix['o1 > o2'] = pings('o1', address4('o2'));
		matrix['1408 bytes'] = pings('s1', address4('s2'), ['-M', 'do', '-s', '1380']);
		matrix['4000 bytes'] = pings('s1', address4('s2'), ['-s', '4000']);
		matrix.patterned = pings('s1', address4('s2'), [
			'-p',
			Buffer.from(MARKER).toString('hex').slice(0, 32),
			'-s',
			'200',
		]);
		say(JSON.stringify(matrix));

		await net.httpd('s2', 80, MARKER);
		const few = await net.load('s1', ['-n', 5, '-c', 2, '-t', 20_000, `${address4('s2')}:80`]);
		const bulk = await net.load('s1', ['-n', 1, '-c', 1, '-t', 60_000, '-D', 1 << 20, `[${address6('s2')}]:80`]);
		seen.tcp = { few: [few.ok, few.failures, few.backends], bulk: [bulk.ok, bulk.failures, bulk.retransmits] };
		say(JSON.stringify(seen.tcp));
		const wire = await capture.stop().then(() => sight(capture.file, MARKER.slice(0, 16)));
		seen.wire = { kinds: wire.kinds, marker: wire.marker };
		say(JSON.stringify(seen.wire));

		const counter = async (node: string, name: string) => (await nodes.report(node)).counters[name] ?? 0;
		seen.counters = Object.fromEntries(
			await Promise.all(net.nodes.map(async (n) => [n, (await nodes.report(n)).counters] as const)),
		);

		// In the clear, from a node of the mesh to another: exactly what it would send of a plain network.
		const plain = await counter('n2', 'uplink_xdp drop_plain');
		for (let k = 0; k < 3; k++) net.frame('n1', 'eth0', plainFrame(net, 'n1', 'n2'));
		// A copy of what was encrypted.
		const rejected = () =>
			Number(/XfrmInStateSeqError\s+(\d+)/.exec(net.exec('n2', ['cat', '/proc/net/xfrm_stat']).stdout)?.[1]);
		const before = rejected();
		const sealed = wire.esp[`${net.address('n1').v4} > ${net.address('n2').v4}`];
		if (sealed !== undefined) net.frame('n1', 'eth0', sealed);
		await waitFor('the copy to be rejected', () => rejected() > before, 5000).catch(() => undefined);
		seen.refused = {
			plain: (await counter('n2', 'uplink_xdp drop_plain')) - plain,
			copies: rejected() - before,
		};
		say(JSON.stringify(seen.refused));

		// New keys, and an agent that dies and comes back, under packets that are counted.
		const spis = async () => (await nodes.report('n1')).sessions.map((x) => [x.spiIn, x.spiOut].join()).sort();
		const old = await spis();
		const steady = net.spawn('s1', ['ping', '-n', '-i', '0.25', '-w', '110', address4('s2')]);
		const also = net.spawn('s3', ['ping', '-n', '-i', '0.25', '-w', '110', address4('s1')]);
		await waitFor('new keys', async () => (await spis()).every((x) => !old.includes(x)), 60_000, 1000);
		say('the keys are new');
		await nodes.kill('n2');
		say('the agent of n2 is dead');
		await nodes.start('n2');
		say('the agent of n2 is back');
		const ended = await Promise.all([steady.ended, also.ended]);
		seen.steady = ended.map((r) => {
			const m = /(\d+) packets transmitted, (\d+) received/.exec(r.stdout);
			return [Number(m?.[1] ?? 0), Number(m?.[2] ?? 0)];
		});
		seen.keys = {
			n1: (await nodes.report('n1')).metrics,
			n2: (await nodes.report('n2')).metrics,
			warnings: (await nodes.report('n1')).warnings,
			associations: net.exec('n1', ['ip', 'xfrm', 'state', 'list', 'nokeys']).stdout.match(/^src /gm)?.length ?? 0,
		};
		say(JSON.stringify([seen.steady, seen.keys]));

		// Bulk, while keys go on to change. The kernel of the switch looks for the VNI: little is asked of the machine.
		const encryptedVni = ['(udp[12:4]', '&', '0xffffff00)', '=', `${SECRET * 256}`].join(' ');
		const never = await net.capture('sw', 'br0', `udp dst port 4789 and ${encryptedVni}`);
		for (const name of ['s1', 'o1', 'o2'] as const) await net.httpd(name, 80);
		const dropped = () =>
			Object.fromEntries(
				net.nodes.flatMap((n) =>
					[...net.exec(n, ['cat', '/proc/net/xfrm_stat']).stdout.matchAll(/^(\w+)\s+(\d+)$/gm)].map(
						([, reason, count]) => [`${n} ${reason}`, Number(count)] as const,
					),
				),
			);
		const fetch = async (from: Name, to: Name, bytes: number) => {
			const limit = 900_000;
			const r = await net.load(from, ['-n', 1, '-c', 1, '-t', limit, '-D', bytes, `${address4(to)}:80`], limit);
			const mbps = Math.round((bytes * 8) / r.durationMs / 10) / 100;
			return { ok: r.ok, failures: r.failures, retransmits: r.retransmits, mbps };
		};
		const droppedBefore = dropped();
		seen.bulk = {};
		for (const [from, to] of [
			['s1', 's2'],
			['s2', 's1'],
		] as const) {
			seen.bulk[`${to} > ${from}`] = await fetch(from, to, BULK_BYTES);
			say(JSON.stringify(seen.bulk));
		}
		seen.bulkDropped = Object.fromEntries(
			Object.entries(dropped()).flatMap(([k, n]) => (n > droppedBefore[k] ? [[k, n - droppedBefore[k]]] : [])),
		);
		seen.speed = { secret: [], open: [] };
		for (let round = 0; round < SPEED_ROUNDS; round++) {
			seen.speed.secret.push((await fetch('s1', 's2', SPEED_BYTES)).mbps);
			seen.speed.open.push((await fetch('o1', 'o2', SPEED_BYTES)).mbps);
		}
		const ratios = seen.speed.secret.map((x, i) => x / seen.speed.open[i]).sort((a, b) => a - b);
		seen.ratio = Math.round((ratios[ratios.length >> 1] ?? Number.NaN) * 1000) / 1000;
		await never.stop();
		seen.plainInBulk = Object.values(sight(never.file, MARKER).kinds).reduce((a, b) => a + b, 0);
		say(JSON.stringify([seen.bulkDropped, seen.speed, seen.ratio, seen.plainInBulk]));
		return seen;
	} catch (error) {
		say(`so far: ${JSON.stringify(seen)}`);
		say(nodes.log());
		for (const n of net.nodes)
			for (const command of [
				'ip -s link show bl-esp',
				'ip xfrm policy list',
				'ip xfrm state count',
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
