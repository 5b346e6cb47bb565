/*
 * On a kernel with ESP: three nodes with whole agents, an encrypted network and a plain one with the same subnet.
 *
 *	secret 5101 10.45.0.0/24 fd00:45::/64, encrypted    s1 .2 on n1    s2 .64 on n2   s3 .128 on n3
 *	open   5102 10.45.0.0/24                            o1 .11 on n1   o2 .75 on n2   o3 .139 on n3
 *
 * In order: endpoints that speak before there are keys, a node with another secret, agents killed and ended under packets that are counted,
 * everybody with everybody, MTU, keys that change under load, a node cut off, a node whose kernel lost all, the network
 * removed and made again, and the end. The switch between the nodes sees all that they
 * send, from before the agents start, and is asked what it saw. Prints that as JSON; ./encryption-agents.test.ts judges it.
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { EndpointView, StatusView } from '../../src/http/schemas.js';
import { Agent, type MeshDocument, type NetworkDocument } from '../support/beeline.js';
import { type Running, Topology } from '../support/netns.js';
import { waitFor } from '../support/wait.js';
import { type Sight, sight } from './sight.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);
/** Times BEELINE_SLOWNESS: agents take minutes to start in an emulated machine. */
const PATIENCE_MS = 120_000;
const MARKER = 'beeline-must-not-be-read-on-the-wire';
/** What pings carry, again and again: sixteen bytes. */
const CARRIED = MARKER.slice(0, 16);
const PATTERN = Buffer.from(CARRIED).toString('hex');
const OPEN_PATTERN = Buffer.from('of the plain net').toString('hex');
const SECRET = 5101;

const open: NetworkDocument = {
	name: 'open',
	subnet: '10.45.0.0/24',
	vni: 5102,
	attachable: true,
	options: { internal: true },
};
const secretNetwork: NetworkDocument = {
	name: 'secret',
	subnet: '10.45.0.0/24',
	subnet6: 'fd00:45::/64',
	vni: SECRET,
	attachable: true,
	options: { encrypted: true, internal: true },
};
const PLACES = {
	s1: ['n1', 'secret', '10.45.0.2'],
	s2: ['n2', 'secret', '10.45.0.64'],
	s3: ['n3', 'secret', '10.45.0.128'],
	o1: ['n1', 'open', '10.45.0.11'],
	o2: ['n2', 'open', '10.45.0.75'],
	o3: ['n3', 'open', '10.45.0.139'],
} as const;
type Name = keyof typeof PLACES;
const secrets = ['s1', 's2', 's3'] as const;
const opens = ['o1', 'o2', 'o3'] as const;
const address = (name: Name): string => PLACES[name][2];
const pairs = <T>(list: readonly T[]): (readonly [T, T])[] =>
	list.flatMap((a) => list.filter((b) => b !== a).map((b) => [a, b] as const));

/** Packets asked and answered. */
type Counted = readonly [number, number];

export interface AgentsSeen {
	mtu: Record<string, number>;
	/** Before there were keys: packets that the interface dropped for want of them, and what the switch saw of the network by then. */
	early: { dropped: number; esp: number; vxlan: number };
	/** With another secret on n3. */
	foreign: {
		/** Pings to and from it that were answered; those between the others. */
		reached: number;
		others: boolean;
		associations: number;
		warnings: Record<string, readonly string[]>;
		/** Lines of the log that name it. */
		said: Record<string, number>;
		refused: number;
		status: StatusView['encryption'];
	};
	/** While all agents went and came back; what n1 had of keys with n2, before and after; whether n3, with the right secret, was reached. */
	restart: { pings: Record<string, Counted>; spis: readonly string[]; spisAfter: readonly string[]; back: boolean };
	/** What was tried → whether it worked. */
	matrix: Record<string, boolean>;
	/** What was tried → whether it came through, though it must not. */
	across: Record<string, boolean>;
	edge: { fits: boolean; fits6: boolean; local: string; beyond: string };
	/** While keys changed. */
	rotation: {
		sessions: number;
		udp: { sent: number; lost: number; corrupt: number };
		tcp: { requests: number; failures: Readonly<Record<string, number>>; retransmits: number };
		pings: Counted;
		associations: number;
		errors: number;
	};
	/** Cut off: whether anything came meanwhile, and whether all came when it was back. */
	cut: { meanwhile: boolean; back: boolean; others: Counted };
	/** n3's kernel lost interface, associations and policies, with no agent there. */
	lost: { meanwhile: boolean; dropped: boolean; back: boolean };
	removed: { links: readonly string[]; associations: number; meanwhile: boolean; back: boolean };
	wire: Omit<Sight, 'esp'> & { sealed: Omit<Sight, 'esp' | 'inner'>; missed: number };
	metrics: Record<string, number>;
	warnings: Record<string, readonly string[]>;
	/** Security associations after the last endpoint was detached. */
	left: number;
	/** Interfaces and policies of n2 after `beeline detach`. */
	links: readonly string[];
	policies: string;
	/** Whether the agents' logs, states or configurations hold a key or a secret. */
	leaks: boolean;
}

/** tcpdump on the switch, which says how much it missed. */
async function watch(net: Topology, name: string, args: readonly string[]) {
	const file = join(net.directory, `${name}.pcap`);
	const running = net.spawn('sw', [
		...['tcpdump', '-Z', 'root', '-U', '--immediate-mode', '-B', '32768', '-n', '-i', 'br0', '-w', file],
		...args,
	]);
	await waitFor('tcpdump to listen', () => running.stderr().includes('listening'));
	return {
		file,
		stop: async (): Promise<number> => {
			await sleep(1000);
			const { stderr } = await running.stop('SIGINT', 60_000);
			return Number(/(\d+) packets? dropped by kernel/.exec(stderr)?.[1] ?? Number.NaN);
		},
	};
}

const endless = (to: string): string[] => ['ping', '-n', '-i', '0.2', '-p', PATTERN, to];

class Story {
	readonly agents = new Map<string, Agent>();
	readonly endpoints = new Map<Name, EndpointView>();
	readonly #right: string;
	readonly #wrong: string;
	readonly secret = randomBytes(48).toString('base64');
	readonly otherSecret = randomBytes(48).toString('base64');

	constructor(readonly net: Topology) {
		this.#right = join(net.directory, 'secret');
		this.#wrong = join(net.directory, 'another');
		writeFileSync(this.#right, this.secret, { mode: 0o600 });
		writeFileSync(this.#wrong, this.otherSecret, { mode: 0o600 });
	}

	agent(node: string): Agent {
		return this.agents.get(node) as Agent;
	}

	configure(node: string, o: { readonly wrong?: boolean; readonly keyInterval?: string } = {}): void {
		const datapath = {
			secretFile: o.wrong === true ? this.#wrong : this.#right,
			...(o.keyInterval === undefined ? {} : { keyInterval: o.keyInterval }),
			...{ maxFlows: 1024, maxTracked: 1024, maxHalfOpen: 1024 },
		};
		let a = this.agents.get(node);
		if (a === undefined) {
			a = new Agent(this.net, node);
			this.agents.set(node, a);
		}
		a.writeConfig({ datapath, log: { level: 'info' } });
	}

	mesh(networks: readonly NetworkDocument[]): void {
		const nodes = this.net.nodes.map((name) => ({ name, address: this.net.address(name).v4 }));
		const document: MeshDocument = { services: [], networks, nodes };
		for (const a of this.agents.values()) a.writeMesh(document);
	}

	async attach(name: Name): Promise<void> {
		const [node, network, wanted] = PLACES[name];
		this.net.addNamespace(name);
		const body = { network, netns: `/run/netns/${this.net.ns(name)}`, address: wanted };
		// It may take longer than a request may wait.
		const r = await this.agent(node)
			.request('POST', '/v1/endpoints', body)
			.catch(() => undefined);
		if (r !== undefined && r.status >= 300) throw new Error(`attach ${name}: ${r.status} ${r.text}`);
		const attached = await waitFor(
			`${name} to be attached`,
			async () =>
				(await this.agent(node).get<{ endpoints: EndpointView[] }>('/v1/endpoints')).endpoints.find(
					(e) => e.network === network && e.address === wanted,
				),
			20_000,
			500,
		);
		this.endpoints.set(name, attached);
		say(`${name} is attached`);
	}

	/** Whether one ping of a few is answered. */
	pings(from: Name, to: string, more: readonly string[] = [], tries = 3): boolean {
		const pattern = PLACES[from][1] === 'open' ? OPEN_PATTERN : PATTERN;
		for (let k = 0; k < tries; k++)
			if (
				this.net.exec(from, ['ping', '-n', '-c', '1', '-W', '2', '-p', pattern, ...more, to], { mayFail: true })
					.code === 0
			)
				return true;
		return false;
	}

	reached(from: Name, to: Name, limitMs = 20_000): Promise<boolean> {
		return waitFor(`${from} > ${to}`, () => this.pings(from, address(to), [], 1), limitMs, 500).then(
			() => true,
			() => false,
		);
	}

	steady(from: Name, to: Name): () => Promise<Counted> {
		const running = this.net.spawn(from, ['ping', '-n', '-i', '0.25', '-p', PATTERN, address(to)]);
		return async () => {
			const { stdout } = await running.stop('SIGINT');
			const m = /(\d+) packets transmitted, (\d+) received/.exec(stdout);
			return [Number(m?.[1] ?? 0), Number(m?.[2] ?? 0)];
		};
	}

	spis(node: string, peer?: string): string[] {
		const text = this.net.exec(node, ['ip', 'xfrm', 'state', 'list', 'nokeys']).stdout;
		const other = peer === undefined ? undefined : this.net.address(peer).v4;
		return [...text.matchAll(/^src (\S+) dst (\S+)\n\s+proto esp spi (0x\w+)/gm)]
			.filter(([, src, dst]) => other === undefined || src === other || dst === other)
			.map((m) => m[3])
			.sort();
	}

	async metrics(node: string): Promise<Record<string, number>> {
		const { text } = await this.agent(node).request('GET', '/metrics');
		return Object.fromEntries(
			[...text.matchAll(/^(beeline_encryption_\S+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]),
		);
	}

	async warnings(node: string): Promise<readonly string[]> {
		return (await this.agent(node).status()).warnings.filter((x) => /encrypt|keys/.test(x));
	}

	async ready(nodes: readonly string[] = this.net.nodes): Promise<void> {
		await Promise.all(nodes.map((n) => this.agent(n).ready(PATIENCE_MS)));
	}

	log(): string {
		return [...this.agents.values()].map((a) => `${a.node}: ${a.output().slice(-2500)}`).join('\n');
	}
}

async function tell(net: Topology, s: Story, seen: AgentsSeen): Promise<void> {
	const plain = await watch(net, 'plain', ['not', 'ip', 'proto', '50']);
	const sealed = await watch(net, 'sealed', ['-s', '60', 'ip', 'proto', '50']);
	for (const n of net.nodes) s.configure(n, { wrong: n === 'n3' });
	s.mesh([secretNetwork, open]);
	for (const a of s.agents.values()) a.launch();
	await s.ready();
	say('the agents are ready');

	// s1 speaks to endpoints that are not there yet, on nodes that there are no keys with.
	await s.attach('s1');
	const early: Running[] = (['s2', 's3'] as const).map((to) => net.spawn('s1', endless(address(to))));
	await Promise.all((['s2', 's3'] as const).map((name) => s.attach(name)));
	await Promise.all(opens.map((name) => s.attach(name)));
	seen.mtu = Object.fromEntries([...s.endpoints].map(([name, e]) => [name, e.mtu]));
	await s.reached('s1', 's2', 60_000);
	say('s1 reaches s2');
	await Promise.all(early.map((r) => r.stop('SIGINT')));
	const noKeys = 'beeline_encryption_dropped_packets_total{direction="out",reason="no_keys"}';
	const soFar = sight(plain.file, CARRIED);
	seen.early = {
		dropped: (await s.metrics('n1'))[noKeys] ?? 0,
		esp: sight(sealed.file, CARRIED).kinds.esp ?? 0,
		vxlan: soFar.kinds[`vxlan ${SECRET}`] ?? 0,
	};
	say(JSON.stringify(seen.early));

	const tried = (
		[
			['s1', 's3'],
			['s3', 's1'],
			['s2', 's3'],
			['s3', 's2'],
		] as const
	).map(([from, to]) => s.pings(from, address(to)));
	const n3 = ['n1', 'n2', 'n3'] as const;
	const warned: Record<string, readonly string[]> = {};
	for (const n of n3)
		warned[n] = await waitFor(
			`the warning of ${n}`,
			async () => {
				const all = await s.warnings(n);
				return all.some((w) => w.includes('is another than')) && all;
			},
			20_000,
			500,
		).catch(() => []);
	await sleep(5000);
	seen.foreign = {
		reached: tried.filter(Boolean).length,
		others: s.pings('s1', address('s2')) && s.pings('s2', address('s1')) && s.pings('o1', address('o3')),
		associations: s.spis('n3').length,
		warnings: warned,
		said: Object.fromEntries(
			n3.map((n) => [
				n,
				s
					.agent(n)
					.output()
					.match(/is another than this/g)?.length ?? 0,
			]),
		),
		refused: (await s.metrics('n3')).beeline_encryption_refused_messages_total ?? 0,
		status: (await s.agent('n1').status()).encryption,
	};
	say(JSON.stringify(seen.foreign));

	// All agents go and come back, two killed and one ended; n3's with the right secret, and wants new keys every 20 s.
	const spis = s.spis('n1', 'n2');
	const ends = [s.steady('s1', 's2'), s.steady('s2', 's1')] as const;
	await Promise.all(n3.map((n) => s.agent(n).stop(n === 'n2' ? 'SIGTERM' : 'SIGKILL')));
	await sleep(5000);
	s.configure('n3', { keyInterval: '20s' });
	for (const n of n3) s.agent(n).launch();
	await s.ready();
	say('the agents are back');
	for (const n of ['n1', 'n2'])
		await waitFor(
			`${n} to speak of its keys`,
			async () => ((await s.metrics(n))['beeline_encryption_peers{state="ready"}'] ?? 0) >= 1,
			20_000,
			500,
		);
	const spisAfter = s.spis('n1', 'n2');
	const back3 = (await s.reached('s1', 's3', 60_000)) && (await s.reached('s2', 's3', 60_000));
	seen.restart = { pings: { 's1 > s2': await ends[0](), 's2 > s1': await ends[1]() }, spis, spisAfter, back: back3 };
	say(JSON.stringify(seen.restart));

	for (const name of secrets) {
		await net.httpd(name, 80, MARKER);
		await net.udpecho(name, 53, MARKER);
	}
	for (const name of opens) await net.httpd(name, 80, `open-${name}`);
	seen.matrix = {};
	for (const [from, to] of pairs(secrets)) {
		const to6 = s.endpoints.get(to)?.address6 as string;
		seen.matrix[`${from} > ${to}`] = s.pings(from, address(to));
		seen.matrix[`${from} > ${to} by IPv6`] = s.pings(from, to6);
		const tcp = await net.load(from, ['-n', 2, '-c', 1, '-t', 20_000, `${address(to)}:80`, `[${to6}]:80`]);
		seen.matrix[`${from} > ${to} by TCP`] = tcp.ok === 2 && tcp.backends[MARKER] === 2;
		const udp = await net.udpload(from, ['-n', 3, '-c', 2, '-t', 10_000, `${address(to)}:53`, `[${to6}]:53`]);
		seen.matrix[`${from} > ${to} by UDP`] = udp.answered === 6 && udp.lost === 0;
	}
	for (const [from, to] of pairs(opens)) seen.matrix[`${from} > ${to}`] = s.pings(from, address(to));
	seen.across = {};
	for (const k of [0, 1, 2]) {
		const [secret, plainOne] = [secrets[(k + 1) % 3], opens[(k + 1) % 3]];
		seen.across[`${secrets[k]} > ${plainOne}`] = s.pings(secrets[k], address(plainOne), [], 1);
		seen.across[`${opens[k]} > ${secret}`] = s.pings(opens[k], address(secret), [], 1);
	}
	say(JSON.stringify([seen.matrix, seen.across]));

	const dont = (to: string, size: number) => ['ping', '-n', '-c', '1', '-W', '2', '-M', 'do', '-s', `${size}`, to];
	const told = (size: number) => {
		const r = net.exec('s1', dont(address('s2'), size), { mayFail: true });
		return (r.stdout + r.stderr).replace(/\s+/g, ' ');
	};
	const s1 = s.endpoints.get('s1') as EndpointView;
	seen.edge = {
		fits: s.pings('s1', address('s2'), ['-M', 'do', '-s', '1380']),
		fits6: s.pings('s1', s.endpoints.get('s2')?.address6 as string, ['-M', 'do', '-s', '1360']),
		local: told(1381),
		beyond: '',
	};
	// An endpoint that thinks it may send more is told by the datapath.
	net.ip('s1', [`link set ${s1.interface} mtu 1500`]);
	seen.edge = { ...seen.edge, beyond: told(1381) };
	net.ip('s1', [`link set ${s1.interface} mtu 1408`]);
	say(JSON.stringify(seen.edge));

	const made = async () => (await s.metrics('n3')).beeline_encryption_sessions_total ?? 0;
	const before = await made();
	const udp = net.startUdpload('s1', ['-n', 0, '-d', 900_000, '-c', 8, '-i', 50, '-t', 20_000, `${address('s3')}:53`]);
	const tcp = net.startLoad('s2', ['-n', 4, '-c', 4, '-k', 0, '-i', 50, '-t', 60_000, `${address('s3')}:80`]);
	const steady = s.steady('s3', 's2');
	await waitFor('keys to change three times with both', async () => (await made()) >= before + 6, 60_000, 2000);
	const [u, t] = await Promise.all([udp.finish(), tcp.finish()]);
	seen.rotation = {
		sessions: (await made()) - before,
		udp: { sent: u.sent, lost: u.lost, corrupt: u.corrupt },
		tcp: { requests: t.ok, failures: t.failures, retransmits: t.retransmits },
		pings: await steady(),
		associations: s.spis('n3').length,
		errors: (await s.metrics('n3')).beeline_encryption_errors_total ?? Number.NaN,
	};
	say(JSON.stringify(seen.rotation));

	const others = s.steady('s1', 's2');
	net.ip('sw', ['link set n3-eth0 down']);
	const meanwhile = s.pings('s1', address('s3'));
	await sleep(20_000);
	net.ip('sw', ['link set n3-eth0 up']);
	const back = (await s.reached('s1', 's3')) && (await s.reached('s3', 's2'));
	seen.cut = { meanwhile, back, others: await others() };
	say(JSON.stringify(seen.cut));

	// All that the kernel of n3 had of it is gone, and s3 goes on speaking.
	await s.agent('n3').stop('SIGKILL');
	const stubborn = net.spawn('s3', endless(address('s1')));
	const towards = net.spawn('s1', endless(address('s3')));
	net.exec('n3', ['ip', 'xfrm', 'state', 'flush']);
	const withoutStates = s.pings('s3', address('s1'), [], 2);
	net.exec('n3', ['ip', 'xfrm', 'policy', 'flush']);
	const withoutPolicies = s.pings('s3', address('s1'), [], 2);
	net.ip('n3', ['link del bl-esp']);
	const withoutInterface = s.pings('s3', address('s1'), [], 2);
	s.agent('n3').launch();
	await s.ready(['n3']);
	seen.lost = {
		meanwhile: withoutStates || withoutPolicies || withoutInterface,
		dropped: Number(/XfrmInNoStates\s+(\d+)/.exec(net.exec('n3', ['cat', '/proc/net/xfrm_stat']).stdout)?.[1]) > 0,
		back: (await s.reached('s3', 's1', 60_000)) && (await s.reached('s2', 's3')),
	};
	await Promise.all([stubborn.stop('SIGINT'), towards.stop('SIGINT')]);
	say(JSON.stringify(seen.lost));

	const unaware = net.spawn('s1', endless(address('s2')));
	s.mesh([open]);
	const device = () => (net.ipJson('n1', 'link show') as { ifname: string }[]).some((l) => l.ifname === 'bl-esp');
	await waitFor('n1 to have no keys', () => !device() && s.spis('n1').length === 0, 20_000, 500).catch(() => undefined);
	seen.removed = {
		links: (net.ipJson('n1', 'link show') as { ifname: string }[]).map((l) => l.ifname),
		associations: s.spis('n1').length,
		meanwhile: s.pings('s1', address('s2')),
		back: false,
	};
	s.mesh([secretNetwork, open]);
	const again = await Promise.all([s.reached('s1', 's2', 40_000), s.reached('s3', 's1', 40_000)]);
	seen.removed = { ...seen.removed, back: again.every(Boolean) };
	await unaware.stop('SIGINT');
	say(JSON.stringify(seen.removed));

	seen.metrics = await s.metrics('n1');
	seen.warnings = {};
	// Commands take an emulated machine seconds, and keys are old after 30 here: they may be about to be renewed.
	for (const n of net.nodes)
		await waitFor(`no warnings on ${n}`, async () => (await s.warnings(n)).length === 0, 10_000, 1000).catch(
			async () => {
				seen.warnings[n] = await s.warnings(n);
			},
		);
	const files = net.exec('n1', ['sh', '-c', `cat /run/beeline/state-*.json ${net.directory}/n*/*.yaml`]).stdout;
	const keys = net.exec('n1', ['ip', 'xfrm', 'state', 'list']).stdout.match(/0x[0-9a-f]{72}/g) ?? [];
	const everything = [...s.agents.values()].map((a) => a.log + a.output()).join() + files;
	seen.leaks =
		keys.length === 0 || [...keys.map((k) => k.slice(2)), s.secret, s.otherSecret].some((k) => everything.includes(k));

	await s
		.agent('n1')
		.request('DELETE', `/v1/endpoints/${s1.id}`)
		.catch(() => undefined);
	await waitFor('n1 to drop its keys', () => s.spis('n1').length === 0, 20_000, 500).catch(() => undefined);
	seen.left = s.spis('n1').length;
	say('detached');
	const last = [net.spawn('s2', endless(address('s3'))), net.spawn('s3', endless(address('s2')))];
	await s.agent('n2').stop();
	await s.agent('n2').cli(['detach', '--config', s.agent('n2').configFile, '--now'], { local: true });
	await sleep(5000);
	await Promise.all(last.map((r) => r.stop('SIGINT')));
	seen.links = (net.ipJson('n2', 'link show') as { ifname: string }[]).map((l) => l.ifname);
	seen.policies = net.exec('n2', ['ip', 'xfrm', 'policy', 'list']).stdout;

	const missed = (await plain.stop()) + (await sealed.stop());
	const { esp: _, ...clear } = sight(plain.file, CARRIED);
	const { esp: _e, inner: _i, ...hidden } = sight(sealed.file, CARRIED);
	seen.wire = { ...clear, sealed: hidden, missed };
	say(JSON.stringify(seen.wire));
}

async function main(): Promise<AgentsSeen> {
	const seen = {} as AgentsSeen;
	const net = await Topology.build({ clients: 1 });
	const s = new Story(net);
	try {
		await tell(net, s, seen);
		return seen;
	} catch (error) {
		say(`so far: ${JSON.stringify(seen)}`);
		say(s.log());
		for (const n of net.nodes)
			for (const command of ['ip -s link show bl-esp', 'ip xfrm policy list', 'cat /proc/net/xfrm_stat'])
				say(`${n}: ${net.exec(n, command.split(' '), { mayFail: true }).stdout}`);
		throw error;
	} finally {
		for (const a of s.agents.values()) await a.stop('SIGKILL');
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
