import { type ChildProcess, spawn as spawnProcess, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { keptPath, statePath } from '../../src/agent/state.js';
import { tool } from './tools.js';
import { waitFor } from './wait.js';

/*
 * Networks of namespaces for tests. The default, which every option of `Topology` varies:
 *
 *	 c1 (.100, ::100)     n1 (.1, ::1)        n2 (.2, ::2)        n3 (.3, ::3)
 *	   eth0                 eth0                eth0                eth0
 *	    |                    |                   |                   |        192.168.78.0/24, fd78::/64
 *	  --+--------------------+---- br0 in sw ----+-------------------+--      MTU 1500
 *
 *	 n2:  gwbr0 172.18.0.1/16, fd00:18::1/64      the same on every node, as docker_gwbridge is
 *	        |            |
 *	      n2t1 .2      n2t2 .3                    tasks: namespaces of their own, default route to gwbr0
 *
 * Everything is named bl<pid>-…; pins lie in /sys/fs/bpf/bl<pid>-…, files in /tmp/bl<pid>-…. What a dead run left
 * behind is removed by the next one (sweep).
 */

const prefixPattern = /^bl(\d+)-/;
const bpffs = '/sys/fs/bpf';

export interface Result {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

export interface ExecOptions {
	readonly input?: string;
	readonly timeoutMs?: number;
	/** Does not throw when the command fails. */
	readonly mayFail?: boolean;
	readonly env?: Readonly<Record<string, string>>;
}

/** A process that was started and may be looked at while it runs. */
export interface Running {
	readonly pid: number;
	readonly child: ChildProcess;
	stdout(): string;
	stderr(): string;
	/** Resolves when the process has ended. */
	readonly ended: Promise<Result>;
	/** Sends a signal and waits for the end; SIGKILL after `limitMs`. */
	stop(signal?: NodeJS.Signals, limitMs?: number): Promise<Result>;
}

export interface TopologyOptions {
	/** Nodes, `n1` upward; default 3. */
	readonly nodes?: number;
	/** Clients, `c1` upward; default 1. */
	readonly clients?: number;
	/** Of the nodes' and the switch's interfaces; default 1500. */
	readonly mtu?: number;
	/** Of the clients' interfaces; default 1500. */
	readonly clientMtu?: number;
	/** Tasks by node, behind gwbr0 (`bridge`) or each behind a veth of its own (`veth`). */
	readonly tasks?: Readonly<Record<string, number>>;
	readonly taskLink?: 'bridge' | 'veth';
	/** Nodes whose uplink eth0 is a port of their own br0, which holds the addresses. */
	readonly bridged?: readonly string[];
	/** Nodes with a second uplink eth1 on a network of its own (192.168.79.0/24), where the default route is. */
	readonly twoUplinks?: readonly string[];
	/** Nodes (and clients) behind a router `r`, on 192.168.80.0/24 and fd80::/64. */
	readonly routed?: readonly string[];
	/** Leaves gwbr0 without an IPv6 address and the tasks without IPv6, as Docker's default is. */
	readonly tasks4Only?: boolean;
	/** The bridge drops what comes from a node's port with a source address that is not the node's (port security). */
	readonly portSecurity?: boolean;
}

interface Address {
	readonly v4: string;
	readonly v6: string;
}

/** A living topology. Close it; a test that dies is closed by the exit handler, a killed one by the next run's sweep. */
export class Topology {
	readonly prefix: string;
	/** Files of this run: configurations, sockets, captures. */
	readonly directory: string;
	readonly #namespaces: string[] = [];
	readonly #running = new Set<ChildProcess>();
	readonly #addresses = new Map<string, Address>();
	#closed = false;

	private constructor(readonly options: TopologyOptions) {
		this.prefix = `bl${process.pid}-`;
		this.directory = mkdtempSync(join(tmpdir(), this.prefix));
	}

	/** Builds the namespaces; on failure nothing is left. */
	static async build(options: TopologyOptions = {}): Promise<Topology> {
		if (open.size) throw new Error('one topology at a time: close the other one first (names carry the pid)');
		sweep();
		const topology = new Topology(options);
		open.add(topology);
		try {
			topology.#build();
		} catch (error) {
			topology.close();
			throw error;
		}
		return topology;
	}

	/** Name of the namespace as `ip netns` knows it. */
	ns(name: string): string {
		return `${this.prefix}${name}`;
	}

	/** Where pins of an agent in this namespace go. */
	pinRoot(name: string): string {
		return join(bpffs, this.ns(name));
	}

	/** Addresses of a node, a client or a task (`n2t1`). */
	address(name: string): Address {
		const address = this.#addresses.get(name);
		if (!address) throw new Error(`no ${name} in this topology`);
		return address;
	}

	get nodes(): string[] {
		return Array.from({ length: this.options.nodes ?? 3 }, (_, i) => `n${i + 1}`);
	}

	get clients(): string[] {
		return Array.from({ length: this.options.clients ?? 1 }, (_, i) => `c${i + 1}`);
	}

	/** Tasks of a node, or of all. */
	tasks(node?: string): string[] {
		return Object.entries(this.options.tasks ?? {})
			.filter(([name]) => !node || name === node)
			.flatMap(([name, count]) => Array.from({ length: count }, (_, i) => `${name}t${i + 1}`));
	}

	/** Adds an empty namespace with lo up. */
	addNamespace(name: string): void {
		const ns = this.ns(name);
		// First, for Ctrl-C ends `ip` too, and what it had done by then is to be removed.
		this.#namespaces.push(ns);
		run('ip', ['netns', 'add', ns]);
		this.ip(name, ['link set lo up']);
		// Addresses are given without waiting for duplicates, and no router is asked.
		this.sysctl(name, { 'net.ipv6.conf.all.accept_dad': '0', 'net.ipv6.conf.default.accept_dad': '0' });
		this.sysctl(name, { 'net.ipv6.conf.all.accept_ra': '0', 'net.ipv6.conf.default.accept_ra': '0' });
	}

	/** Removes one namespace: its veths go with it. */
	removeNamespace(name: string): void {
		const ns = this.ns(name);
		killInside(ns);
		run('ip', ['netns', 'del', ns]);
		this.#namespaces.splice(this.#namespaces.indexOf(ns), 1);
	}

	/** Runs lines of `ip -batch` in a namespace. */
	ip(name: string, lines: readonly string[]): void {
		run('ip', ['-n', this.ns(name), '-batch', '-'], { input: `${lines.join('\n')}\n` });
	}

	/** Output of `ip -j …` in a namespace. */
	ipJson(name: string, args: string): unknown {
		return JSON.parse(run('ip', ['-n', this.ns(name), '-j', ...args.split(' ')]).stdout || '[]');
	}

	sysctl(name: string, values: Readonly<Record<string, string>>): void {
		this.exec(name, ['sysctl', '-qw', ...Object.entries(values).map(([key, value]) => `${key}=${value}`)]);
	}

	/** Runs a command in a namespace and waits. Throws when it fails, unless `mayFail`. */
	exec(name: string, command: readonly string[], options: ExecOptions = {}): Result {
		return run('nsenter', [`--net=/run/netns/${this.ns(name)}`, '--', ...command], options);
	}

	/** The same without blocking this process: for commands whose server is this process' own child. */
	async execAsync(name: string, command: readonly string[], options: ExecOptions = {}): Promise<Result> {
		const running = this.spawn(name, command, options.env ? { env: options.env } : {});
		const limit = options.timeoutMs ?? 60_000;
		const timer = setTimeout(() => running.child.kill('SIGKILL'), limit);
		const result = await running.ended;
		clearTimeout(timer);
		if (result.code !== 0 && !options.mayFail)
			throw new Error(`${command.join(' ')} in ${name}: exit ${result.code}: ${result.stderr.trim()}`);
		return result;
	}

	/** Starts a command in a namespace. It is killed when the topology is closed. */
	spawn(name: string, command: readonly string[], options: { env?: Readonly<Record<string, string>> } = {}): Running {
		// nsenter without --fork execs the command: the pid is the command's own.
		const child = spawnProcess('nsenter', [`--net=/run/netns/${this.ns(name)}`, '--', ...command], {
			stdio: ['ignore', 'pipe', 'pipe'],
			env: { ...process.env, ...options.env },
		});
		this.#running.add(child);
		let stdout = '';
		let stderr = '';
		child.stdout.setEncoding('utf8').on('data', (text: string) => {
			stdout += text;
		});
		child.stderr.setEncoding('utf8').on('data', (text: string) => {
			stderr += text;
		});
		const ended = new Promise<Result>((resolve) => {
			child.on('error', (error) => resolve({ code: -1, stdout, stderr: error.message }));
			child.on('close', (code, signal) => {
				this.#running.delete(child);
				resolve({ code: code ?? (signal ? 128 : -1), stdout, stderr });
			});
		});
		return {
			pid: child.pid ?? -1,
			child,
			stdout: () => stdout,
			stderr: () => stderr,
			ended,
			stop: async (signal = 'SIGTERM', limitMs = 10_000) => {
				child.kill(signal);
				const timer = setTimeout(() => child.kill('SIGKILL'), limitMs);
				const result = await ended;
				clearTimeout(timer);
				return result;
			},
		};
	}

	/** Starts an HTTP server named after its namespace, or `as`; resolves when it can be dialled. */
	async httpd(name: string, port: number, as = name, more: readonly string[] = []): Promise<Running> {
		return this.#listening(name, [tool('httpd'), '-n', as, '-p', `${port}`, ...more]);
	}

	/** Starts a UDP server; resolves when it can be asked. */
	async udpecho(name: string, port: number, as = name, more: readonly string[] = []): Promise<Running> {
		return this.#listening(name, [tool('udpecho'), '-n', as, '-p', `${port}`, ...more]);
	}

	async #listening(name: string, command: readonly string[]): Promise<Running> {
		const running = this.spawn(name, command);
		await waitFor(`${command.join(' ')} in ${name} to listen`, () => {
			if (running.child.exitCode !== null) throw new Error(`it ended: ${running.stderr()}`);
			return running.stdout().includes('listening');
		});
		return running;
	}

	/** Runs `load` (see test/support/c/load.c) to its end. */
	async load(name: string, args: readonly (string | number)[], timeoutMs = 120_000): Promise<LoadReport> {
		const result = await this.execAsync(name, [tool('load'), ...args.map(String)], { timeoutMs });
		return parseReport(result);
	}

	/** Starts `load` and returns at once; `ready` waits until every connection of -n had its first answer. */
	startLoad(name: string, args: readonly (string | number)[]): RunningLoad<LoadReport> {
		const running = this.spawn(name, [tool('load'), ...args.map(String)]);
		return {
			running,
			ready: async (limitMs = 15_000) => {
				await waitFor(`load in ${name} to be ready`, () => running.stderr().includes('ready'), limitMs);
			},
			finish: async () => parseReport(await running.stop('SIGTERM', 30_000)),
			report: async () => parseReport(await running.ended),
		};
	}

	/** Runs `udpload` (see test/support/c/udpload.c) to its end. */
	async udpload(name: string, args: readonly (string | number)[], timeoutMs = 120_000): Promise<UdpReport> {
		const result = await this.execAsync(name, [tool('udpload'), ...args.map(String)], { timeoutMs });
		return parseReport(result);
	}

	startUdpload(name: string, args: readonly (string | number)[]): RunningLoad<UdpReport> {
		const running = this.spawn(name, [tool('udpload'), ...args.map(String)]);
		return {
			running,
			ready: async () => {},
			finish: async () => parseReport(await running.stop('SIGTERM', 30_000)),
			report: async () => parseReport(await running.ended),
		};
	}

	/** Starts tcpdump on an interface; `stop` returns what tshark or tcpdump prints of it, a packet a line. */
	async capture(
		name: string,
		device: string,
		filter: string,
	): Promise<{ stop(): Promise<string[]>; readonly file: string }> {
		const file = join(this.directory, `${name}-${device}-${Math.random().toString(36).slice(2, 8)}.pcap`);
		const running = this.spawn(name, [
			'tcpdump',
			// Debian's gives its privileges away before it opens the file, in a directory that is ours alone.
			...['-Z', 'root'],
			'-U',
			'--immediate-mode',
			'-n',
			'-i',
			device,
			'-w',
			file,
			...filter.split(' ').filter(Boolean),
		]);
		await waitFor('tcpdump to listen', () => running.stderr().includes('listening'));
		return {
			file,
			stop: async () => {
				// Packets lie in the kernel's buffer for a moment.
				await new Promise((resolve) => setTimeout(resolve, 150));
				await running.stop('SIGINT');
				return run('tcpdump', ['-n', '-e', '-v', '-r', file], { mayFail: true })
					.stdout.split(/\n(?!\s)/)
					.map((line) => line.replaceAll(/\s+/g, ' ').trim())
					.filter(Boolean);
			},
		};
	}

	/** Puts a raw frame on an interface. `hex` may contain spaces. */
	frame(name: string, device: string, hex: string): void {
		this.exec(name, [tool('frame'), device, hex.replaceAll(/[\s:]/g, '')]);
	}

	/** MAC address of a device, `02:…`. */
	mac(name: string, device = 'eth0'): string {
		return (this.ipJson(name, `link show dev ${device}`) as { address: string }[])[0].address;
	}

	/** Connects two namespaces: `a:device` and `b:device`. */
	veth(a: string, deviceA: string, b: string, deviceB: string, mtu = 1500): void {
		run('ip', [
			...['link', 'add', deviceA, 'netns', this.ns(a), 'mtu', `${mtu}`],
			...['type', 'veth', 'peer', 'name', deviceB, 'netns', this.ns(b), 'mtu', `${mtu}`],
		]);
	}

	/** Makes an end behave as a real card does: full checksums, no packet above the MTU. */
	asWire(name: string, device: string): void {
		this.exec(name, ['ethtool', '-K', device, 'tx', 'off', 'tso', 'off', 'gso', 'off', 'gro', 'off']);
		// Older ethtools know some of these by other names only; what cannot be set is not there to be turned off.
		for (const feature of ['tx-udp_tnl-segmentation', 'tx-udp_tnl-csum-segmentation', 'tx-udp-segmentation'])
			this.exec(name, ['ethtool', '-K', device, feature, 'off'], { mayFail: true });
	}

	/** Attaches XDP_PASS: what XDP_TX and redirects on the other end need (NAPI on the receiving one). */
	napi(name: string, device: string): void {
		// Pinned once: `ip link set xdp obj` would load it again for each port, and leave directories in bpffs.
		const pin = join(bpffs, this.ns('pass'));
		if (!existsSync(pin)) {
			mountBpffs();
			run('bpftool', ['prog', 'load', tool('pass.o'), pin, 'type', 'xdp']);
		}
		this.exec(name, ['bpftool', 'net', 'attach', 'xdpdrv', 'pinned', pin, 'dev', device]);
	}

	/** Plugs a namespace's device into a switch. */
	plug(name: string, device: string, options: { readonly bridge?: string; readonly mtu?: number } = {}): void {
		const port = `${name}-${device}`;
		this.veth('sw', port, name, device, options.mtu ?? this.options.mtu ?? 1500);
		this.ip('sw', [`link set ${port} master ${options.bridge ?? 'br0'} up`]);
		this.napi('sw', port);
		this.asWire(name, device);
		// A bridge takes VLAN tags off; a veth that need not put them back hands them over beside the frame, unseen by XDP.
		this.exec('sw', ['ethtool', '-K', port, 'txvlan', 'off']);
		this.ip(name, [`link set ${device} up`]);
	}

	/** Adds a task to a node: a namespace behind gwbr0, or behind a veth of its own. Returns its name. */
	addTask(node: string, number: number): string {
		const name = `${node}t${number}`;
		const host = number + 1;
		const link = this.options.taskLink ?? 'bridge';
		this.addNamespace(name);
		const v4 = link === 'bridge' ? `172.18.0.${host}` : `172.19.${number}.2`;
		const v6 = link === 'bridge' ? `fd00:18::${host.toString(16)}` : `fd00:19:${number}::2`;
		this.#addresses.set(name, { v4, v6 });
		const gateway4 = link === 'bridge' ? '172.18.0.1' : `172.19.${number}.1`;
		const gateway6 = link === 'bridge' ? 'fd00:18::1' : `fd00:19:${number}::1`;
		const with6 = !this.options.tasks4Only;
		this.veth(node, `t${number}`, name, 'eth0');
		if (link === 'bridge') this.ip(node, [`link set t${number} master gwbr0 up`]);
		else
			this.ip(node, [
				`addr add ${gateway4}/24 dev t${number}`,
				...(with6 ? [`addr add ${gateway6}/64 dev t${number} nodad`] : []),
				`link set t${number} up`,
			]);
		this.ip(name, [
			`addr add ${v4}/${link === 'bridge' ? 16 : 24} dev eth0`,
			...(with6 ? [`addr add ${v6}/64 dev eth0 nodad`] : []),
			'link set eth0 up',
			`route add default via ${gateway4}`,
			...(with6 ? [`route add ::/0 via ${gateway6}`] : []),
		]);
		return name;
	}

	#build(): void {
		const { options } = this;
		const mtu = options.mtu ?? 1500;
		this.addNamespace('sw');
		this.ip('sw', [
			'link add br0 type bridge',
			`link set br0 mtu ${mtu} up`,
			'link set br0 type bridge mcast_snooping 0',
		]);
		const second = options.twoUplinks ?? [];
		const routed = options.routed ?? [];
		if (second.length)
			this.ip('sw', [
				'link add br1 type bridge',
				`link set br1 mtu ${mtu} up`,
				'link set br1 type bridge mcast_snooping 0',
			]);
		if (routed.length) this.#router(mtu);

		const place = (name: string, host: number, isClient: boolean) => {
			this.addNamespace(name);
			const behind = routed.includes(name);
			const own = isClient ? Math.min(options.clientMtu ?? 1500, mtu) : mtu;
			const net4 = behind ? '192.168.80' : '192.168.78';
			const net6 = behind ? 'fd80::' : 'fd78::';
			const v4 = `${net4}.${host}`;
			// The host part in both families reads the same: .100 and ::100.
			const v6 = `${net6}${host}`;
			this.#addresses.set(name, { v4, v6 });
			this.plug(name, 'eth0', { bridge: behind ? 'br2' : 'br0' });
			if (own !== mtu) this.ip(name, [`link set eth0 mtu ${own}`]);
			let holder = 'eth0';
			if (options.bridged?.includes(name)) {
				holder = 'br0';
				this.ip(name, ['link add br0 type bridge', 'link set eth0 master br0', `link set br0 mtu ${own} up`]);
			}
			const gateway4 = `${net4}.254`;
			this.ip(name, [
				`addr add ${v4}/24 dev ${holder}`,
				`addr add ${v6}/64 dev ${holder} nodad`,
				...(routed.length ? [`route add default via ${gateway4}`, `route add ::/0 via ${net6}254`] : []),
			]);
			if (second.includes(name)) {
				this.plug(name, 'eth1', { bridge: 'br1' });
				this.ip(name, [
					`addr add 192.168.79.${host}/24 dev eth1`,
					`addr add fd79::${host}/64 dev eth1 nodad`,
					'route add default via 192.168.79.254',
					'route add ::/0 via fd79::254',
				]);
			}
			if (!isClient) this.sysctl(name, { 'net.ipv4.ip_forward': '1', 'net.ipv6.conf.all.forwarding': '1' });
		};
		for (const [i, name] of this.nodes.entries()) place(name, i + 1, false);
		for (const [i, name] of this.clients.entries()) place(name, 100 + i, true);

		const link = options.taskLink ?? 'bridge';
		for (const node of this.nodes) {
			const count = options.tasks?.[node] ?? 0;
			if (!count) continue;
			if (link === 'bridge')
				this.ip(node, [
					'link add gwbr0 type bridge',
					'link set gwbr0 up',
					'addr add 172.18.0.1/16 dev gwbr0',
					...(options.tasks4Only ? [] : ['addr add fd00:18::1/64 dev gwbr0 nodad']),
				]);
			for (let i = 1; i <= count; i++) this.addTask(node, i);
		}
		if (options.portSecurity) this.portSecurity();
	}

	/** The bridge forwards from a node's port only what has that node's own source address. */
	portSecurity(): void {
		const rules = this.nodes.map((node) => {
			const { v4, v6 } = this.address(node);
			return `iifname "${node}-eth0" ip saddr != ${v4} counter drop\niifname "${node}-eth0" ip6 saddr != { ${v6}, fe80::/10, :: } counter drop`;
		});
		this.exec('sw', ['nft', '-f', '-'], {
			input: `table bridge guard {\nchain forward {\ntype filter hook forward priority 0;\n${rules.join('\n')}\n}\n}\n`,
		});
	}

	#router(mtu: number): void {
		this.addNamespace('r');
		this.ip('sw', [
			'link add br2 type bridge',
			`link set br2 mtu ${mtu} up`,
			'link set br2 type bridge mcast_snooping 0',
		]);
		this.plug('r', 'eth0', { bridge: 'br0' });
		this.plug('r', 'eth1', { bridge: 'br2' });
		this.ip('r', [
			'addr add 192.168.78.254/24 dev eth0',
			'addr add fd78::254/64 dev eth0 nodad',
			'addr add 192.168.80.254/24 dev eth1',
			'addr add fd80::254/64 dev eth1 nodad',
		]);
		this.sysctl('r', { 'net.ipv4.ip_forward': '1', 'net.ipv6.conf.all.forwarding': '1' });
	}

	/** Kills what runs inside, removes the namespaces, pins and files. May be called twice. */
	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		open.delete(this);
		for (const child of this.#running) child.kill('SIGKILL');
		for (const ns of this.#namespaces) {
			killInside(ns);
			undisturbed('ip', ['netns', 'del', ns]);
			removeRunFiles(ns);
		}
		// KEEP_TEST_FILES=1 leaves configurations, logs and captures to be read; pins never stay.
		removeFiles(this.prefix, !process.env.KEEP_TEST_FILES);
	}
}

export interface LoadReport {
	readonly connections: number;
	readonly requests: number;
	readonly ok: number;
	readonly moved: number;
	readonly retransmits: number;
	readonly durationMs: number;
	readonly failures: Readonly<Record<string, number>>;
	readonly backends: Readonly<Record<string, number>>;
	readonly connectionsByBackend: Readonly<Record<string, number>>;
	readonly clients: Readonly<Record<string, number>>;
	/** Addresses that getpeername() told, once a connection. */
	readonly peers: Readonly<Record<string, number>>;
	readonly latencyUs: { readonly p50: number; readonly p99: number; readonly max: number };
	/** Unix time, with -v. */
	readonly startedAtMs?: number;
	readonly rows?: readonly {
		/** When it was begun, ms after the start. */
		readonly atMs: number;
		readonly port: number;
		readonly target: string;
		readonly backend: string;
		readonly last: string;
		readonly requests: number;
		/** Till connect() was done. */
		readonly connectMs: number;
		readonly retransmits: number;
		readonly failure: string | null;
	}[];
}

export interface UdpReport {
	readonly sent: number;
	readonly answered: number;
	readonly replies: number;
	readonly lost: number;
	readonly corrupt: number;
	readonly moved: number;
	/** Smallest MTU that an error told, bytes; 0: none. */
	readonly mtu: number;
	readonly durationMs: number;
	readonly errors: Readonly<Record<string, number>>;
	readonly backends: Readonly<Record<string, number>>;
	readonly clients: Readonly<Record<string, number>>;
	/** Whom answers seemed to be from. */
	readonly sources: Readonly<Record<string, number>>;
	readonly latencyUs: { readonly p50: number; readonly p99: number; readonly max: number };
}

export interface RunningLoad<R> {
	readonly running: Running;
	ready(limitMs?: number): Promise<void>;
	/** Ends it and returns its report. */
	finish(): Promise<R>;
	/** Waits for its own end. */
	report(): Promise<R>;
}

function parseReport<R>(result: Result): R {
	try {
		return JSON.parse(result.stdout) as R;
	} catch (error) {
		throw new Error(`no report (exit ${result.code}): ${result.stderr.trim() || result.stdout.trim()}`, {
			cause: error,
		});
	}
}

/** Runs a command and waits. Throws one line that says what failed, unless `mayFail`. */
export function run(command: string, args: readonly string[], options: ExecOptions = {}): Result {
	const done = spawnSync(command, args, {
		encoding: 'utf8',
		input: options.input,
		timeout: options.timeoutMs ?? 30_000,
		maxBuffer: 1 << 28,
		env: options.env ? { ...process.env, ...options.env } : process.env,
	});
	const result = {
		code: done.status ?? -1,
		stdout: done.stdout ?? '',
		stderr: done.stderr ?? done.error?.message ?? '',
	};
	if (result.code !== 0 && !options.mayFail)
		throw new Error(
			`${command} ${args.join(' ')}: exit ${result.code}: ${result.stderr.trim() || done.error?.message || result.stdout.trim()}`,
		);
	return result;
}

/** Runs a command of the clean-up out of reach of the terminal's Ctrl-C: a second one must not end it half-way. */
function undisturbed(command: string, args: readonly string[]) {
	// spawnSync takes `detached` as spawn does, though its types do not say so.
	const apart = { detached: true };
	for (let tries = 1; ; tries++) {
		const done = spawnSync(command, args, { encoding: 'utf8', ...apart });
		// One that came between fork() and setsid() ended it all the same.
		if (done.signal === null || tries === 10) return done;
	}
}

/** Kills every process of a namespace that we made. */
function killInside(ns: string): void {
	const pids = undisturbed('ip', ['netns', 'pids', ns]).stdout ?? '';
	for (const pid of pids.split('\n').map(Number).filter(Boolean)) {
		try {
			process.kill(pid, 'SIGKILL');
		} catch {
			// It ended by itself.
		}
	}
}

/** What agents of a namespace keep in /run/beeline, by their pinRoot: a run that gets the pid again must not find it. */
function removeRunFiles(ns: string): void {
	const pinRoot = join(bpffs, ns);
	const state = statePath(pinRoot);
	const lock = `pins-${createHash('sha256').update(pinRoot).digest('hex').slice(0, 16)}.lock`;
	for (const file of [state, keptPath(state, 'membership'), keptPath(state, 'etcd'), join(dirname(state), lock)])
		rmSync(file, { force: true });
}

function removeFiles(prefix: string, temporary: boolean): void {
	for (const [directory, wanted] of [
		[bpffs, true],
		[tmpdir(), temporary],
	] as const) {
		if (!wanted || !existsSync(directory)) continue;
		for (const name of readdirSync(directory))
			if (name.startsWith(prefix)) rmSync(join(directory, name), { recursive: true, force: true });
	}
}

/** Removes what one run left: processes in its namespaces, namespaces, pins, files. */
export function removeLeftovers(pid: number): void {
	const prefix = `bl${pid}-`;
	if (existsSync('/run/netns'))
		for (const ns of readdirSync('/run/netns').filter((name) => name.startsWith(prefix))) {
			killInside(ns);
			undisturbed('ip', ['netns', 'del', ns]);
			removeRunFiles(ns);
		}
	removeFiles(prefix, true);
}

/** Removes what runs that are dead left behind: their names carry their pid. */
export function sweep(): void {
	const pids = new Set<number>();
	for (const directory of ['/run/netns', bpffs, tmpdir()])
		if (existsSync(directory))
			for (const name of readdirSync(directory)) {
				const pid = prefixPattern.exec(name)?.[1];
				if (pid) pids.add(Number(pid));
			}
	for (const pid of pids) if (!alive(pid)) removeLeftovers(pid);
}

/** A run is a node process: another process may have got its number since. */
function alive(pid: number): boolean {
	try {
		return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')[0].includes('node');
	} catch {
		return false;
	}
}

/** Mounts bpffs where it is missing. */
export function mountBpffs(): void {
	if (
		readFileSync('/proc/mounts', 'utf8')
			.split('\n')
			.some((line) => line.split(' ')[1] === bpffs && line.includes(' bpf '))
	)
		return;
	mkdirSync(bpffs, { recursive: true });
	run('mount', ['-t', 'bpf', 'bpf', bpffs]);
}

const open = new Set<Topology>();

function closeAll(): void {
	for (const topology of [...open]) topology.close();
}

process.on('exit', closeAll);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
	process.on(signal, () => {
		closeAll();
		process.exit(1);
	});
process.on('uncaughtException', (error) => {
	console.error(error);
	closeAll();
	process.exit(1);
});
