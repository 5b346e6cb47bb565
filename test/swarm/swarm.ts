/** A swarm of real engines (see `bed`), and an agent of Beeline on each node. */
import { execFileSync, spawn as spawnProcess, spawnSync } from 'node:child_process';
import {
	chmodSync,
	copyFileSync,
	existsSync,
	mkdirSync,
	readdirSync,
	rmSync,
	symlinkSync,
	writeFileSync,
} from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BackendView, NodeView, ServiceView, StatusView } from '../../src/http/schemas.js';
import { beeline } from '../support/beeline.js';
import { IpcChild } from '../support/ipc.js';
import { type LoadReport, mountBpffs, type Result, type UdpReport } from '../support/netns.js';
import { hasTool } from '../support/skip.js';
import { root, tool } from '../support/tools.js';
import { slowness, waitFor } from '../support/wait.js';

const subnet = '192.168.79';

/** Why no swarm can be made here, or undefined. */
export function cannotUseDocker(): string | undefined {
	for (const [name, pkg] of [
		['dockerd', 'docker.io'],
		['docker', 'docker.io'],
		['iptables', 'iptables'],
		['bpftool', 'bpftool'],
		['gcc', 'gcc'],
	] as const)
		if (!hasTool(name)) return `needs ${name} (install the package ${pkg}, or run scripts/setup --swarm)`;
	if (!existsSync('/bin/busybox')) return 'needs /bin/busybox (install busybox-static, or run scripts/setup --swarm)';
	if (spawnSync('ldd', ['/bin/busybox'], { stdio: 'ignore' }).status === 0)
		return 'needs a busybox without libraries (install busybox-static)';
	return undefined;
}

interface Started {
	readonly child: ReturnType<typeof spawnProcess>;
	output: string;
	ended: boolean;
}

export class Swarm {
	readonly prefix = `bl${process.pid}-swarm`;
	readonly directory = join(tmpdir(), this.prefix);
	readonly agents = new Map<number, Started>();
	readonly #installed = new Set<number>();
	readonly #pass = `/sys/fs/bpf/${this.prefix}-pass`;
	readonly #loads = new Set<ReturnType<typeof spawnProcess>>();

	private constructor(readonly nodes: number) {}

	/** Engines joined in one swarm; nodes 1…managers are managers. `ipv6`: on the wire and on docker_gwbridge. */
	static up(nodes: number, managers = 1, ipv6 = false): Swarm {
		const s = new Swarm(nodes);
		open.add(s);
		mountBpffs();
		spawnSync('bpftool', ['prog', 'load', tool('pass.o'), s.#pass, 'type', 'xdp']);
		const rootfs = makeRootfs();
		s.#bed(
			['up', String(nodes)],
			{
				BED_MANAGERS: String(managers),
				BED_ROOTFS: rootfs,
				...(ipv6 ? { BED_IPV6: '1' } : {}),
			},
			150_000,
		);
		return s;
	}

	#bed(args: readonly string[], env: Readonly<Record<string, string>> = {}, timeout = 60_000): string {
		return execFileSync(join(root, 'test/swarm/bed'), args, {
			env: { ...process.env, ...this.#env(), ...env },
			encoding: 'utf8',
			timeout: timeout * slowness,
			stdio: ['ignore', 'pipe', 'inherit'],
		});
	}

	#env(): Record<string, string> {
		return { BED_NS: this.prefix, BED_DIR: this.directory, BED_SUBNET: subnet, BED_PASS: this.#pass };
	}

	address(node: number): string {
		return `${subnet}.${node}`;
	}
	readonly client = `${subnet}.100`;

	/** Where the swarm was made with IPv6. */
	address6(node: number): string {
		return `fd79::${node}`;
	}
	readonly client6 = 'fd79::100';

	/** The docker command against a node's engine. @throws where it fails */
	docker(node: number, ...args: readonly string[]): string {
		return execFileSync('docker', args, {
			env: { ...process.env, DOCKER_HOST: `unix://${this.directory}/node${node}/run/docker.sock` },
			encoding: 'utf8',
			timeout: 60_000 * slowness,
			stdio: ['ignore', 'pipe', 'pipe'],
		}).trim();
	}

	/** Runs a command in a node's namespaces, or the client's. */
	exec(where: number | 'client', command: readonly string[], mayFail = false): Result {
		const r = spawnSync(join(root, 'test/swarm/bed'), ['exec', String(where), ...command], {
			env: { ...process.env, ...this.#env() },
			encoding: 'utf8',
			timeout: 60_000 * slowness,
		});
		const result = { code: r.status ?? -1, stdout: r.stdout ?? '', stderr: r.stderr ?? '' };
		if (result.code !== 0 && !mayFail)
			throw new Error(`${command.join(' ')} on ${where}: ${result.stderr}${result.stdout}`);
		return result;
	}

	/** A node process in a node's namespaces, or the client's (see IpcChild). */
	ipc(where: number | 'client', script: string, ...args: readonly string[]): IpcChild {
		return new IpcChild(
			[join(root, 'test/swarm/bed'), 'exec', String(where), process.execPath, script, ...args],
			this.#env(),
		);
	}

	#spawn(where: number | 'client', command: readonly string[]): ReturnType<typeof spawnProcess> {
		return spawnProcess(join(root, 'test/swarm/bed'), ['exec', String(where), ...command], {
			env: { ...process.env, ...this.#env(), BEELINE_NO_BUILD: '1', NO_COLOR: '1' },
			stdio: ['ignore', 'pipe', 'pipe'],
		});
	}

	/** Starts the agent of a node with nothing configured but the source. */
	launch(node: number, config: object = {}): void {
		const file = join(this.directory, `node${node}`, 'beeline.yaml');
		writeFileSync(file, JSON.stringify({ membership: { source: 'docker' }, log: { level: 'debug' }, ...config }));
		// nsenter stays between us and what runs in another PID namespace, and hands no signal on.
		const child = this.#spawn(node, [
			'sh',
			'-c',
			'echo $$ >/run/agent.pid; exec "$@"',
			'sh',
			beeline,
			'agent',
			'--config',
			file,
		]);
		const started: Started = { child, output: '', ended: false };
		for (const stream of [child.stdout, child.stderr])
			stream?.setEncoding('utf8').on('data', (text: string) => {
				started.output += text;
			});
		child.on('exit', () => {
			started.ended = true;
		});
		this.agents.set(node, started);
	}

	/** Waits until a node's agent has applied everything once. */
	async ready(node: number, limitMs = 90_000): Promise<void> {
		await waitFor(
			`the agent of node${node} to be ready`,
			async () => {
				if (this.agents.get(node)?.ended === true) throw new Error(`it ended: ${this.output(node)}`);
				return (await this.#request(node, '/readyz').catch(() => ({ status: 0 }))).status === 200;
			},
			limitMs,
			50,
		).catch((e: Error) => {
			throw new Error(`${e.message}\n${this.output(node)}`);
		});
	}

	/** An agent that this did not start: it is asked like the others, and ends with its node. */
	installed(node: number): void {
		this.#installed.add(node);
	}

	async start(node: number, config: object = {}, limitMs = 30_000): Promise<void> {
		this.launch(node, config);
		await this.ready(node, limitMs);
	}

	/** Runs a command on a node while other things happen. */
	async background(node: number, command: readonly string[]): Promise<Result> {
		const child = this.#spawn(node, command);
		const parts = { stdout: '', stderr: '' };
		for (const of of ['stdout', 'stderr'] as const)
			child[of]?.setEncoding('utf8').on('data', (text: string) => {
				parts[of] += text;
			});
		const code = await new Promise<number>((resolve) => child.on('close', (c) => resolve(c ?? -1)));
		return { code, ...parts };
	}

	async startAll(): Promise<void> {
		const all = Array.from({ length: this.nodes }, (_, i) => i + 1);
		for (const n of all) this.launch(n);
		await Promise.all(all.map((n) => this.ready(n)));
	}

	/** The end of what an agent printed. */
	output(node: number): string {
		return this.agents.get(node)?.output.slice(-4000) ?? '';
	}

	/** Ends a node's agent; its datapath stays. */
	async stopAgent(node: number, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
		const a = this.agents.get(node);
		if (a === undefined) return;
		this.agents.delete(node);
		this.exec(node, ['sh', '-c', `kill -${signal.slice(3)} $(cat /run/agent.pid)`]);
		await waitFor(`the agent of node${node} to end`, () => a.ended, 60_000);
	}

	#request(node: number, path: string): Promise<{ status: number; text: string }> {
		return new Promise((resolve, reject) => {
			const ask = request(
				{
					socketPath: join(this.directory, `node${node}/run/beeline/beeline.sock`),
					path,
					headers: { host: 'localhost' },
					timeout: 5000 * slowness,
				},
				(answer) => {
					let text = '';
					answer.setEncoding('utf8').on('data', (part: string) => {
						text += part;
					});
					answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text }));
				},
			);
			ask.on('timeout', () => ask.destroy(new Error(`${path}: no answer`)));
			ask.on('error', reject);
			ask.end();
		});
	}

	async get<T>(node: number, path: string): Promise<T> {
		const { status, text } = await this.#request(node, path);
		if (status !== 200) throw new Error(`GET ${path} on node${node}: ${status} ${text}`);
		return JSON.parse(text) as T;
	}

	/** GET /metrics. */
	async metrics(node: number): Promise<string> {
		return (await this.#request(node, '/metrics')).text;
	}
	status(node: number): Promise<StatusView> {
		return this.get(node, '/v1/status');
	}
	async backends(node: number): Promise<BackendView[]> {
		return (await this.get<{ backends: BackendView[] }>(node, '/v1/backends')).backends;
	}
	async services(node: number): Promise<ServiceView[]> {
		return (await this.get<{ services: ServiceView[] }>(node, '/v1/services')).services;
	}
	async nodeViews(node: number): Promise<NodeView[]> {
		return (await this.get<{ nodes: NodeView[] }>(node, '/v1/nodes')).nodes;
	}

	/** Waits until every agent knows exactly so many active backends of a service, and its own node can deliver to its own. */
	async serving(service: string, active: number, limitMs = 45_000): Promise<void> {
		let last = '';
		await waitFor(
			`${active} active backends of ${service} on every node`,
			async () => {
				last = '';
				for (const n of [...this.agents.keys(), ...this.#installed]) {
					const all = (await this.backends(n)).filter((b) => b.service === service && b.state === 'active');
					const bad = all.find((b) => b.local && b.delivery === null);
					if (all.length === active && bad === undefined) continue;
					const { reconcile, membership, warnings } = await this.status(n);
					const shown = all.map((b) => `${b.node} ${b.protocol} ${b.delivery}`);
					last = `node${n}: ${JSON.stringify({ shown, reconcile, membership, warnings })}`;
					return false;
				}
				return true;
			},
			limitMs,
			25,
		).catch(async (e: Error) => {
			// Whose knowledge is old: this node's, all nodes', or Docker's own.
			const views = await Promise.all(
				[...this.agents.keys(), ...this.#installed].map(async (n) => {
					const of = (await this.backends(n).catch(() => [])).filter((b) => b.service === service);
					return `node${n}: ${of.map((b) => `${b.id} ${b.node} ${b.protocol} ${b.state}`).join(', ')}`;
				}),
			);
			const docker = this.docker(1, 'service', 'ps', '--no-trunc', service);
			throw new Error(`${e.message}\n${last}\n${views.join('\n')}\n${docker}`);
		});
	}

	/** Runs a test program in the client's namespace to its end. */
	load(args: readonly (string | number)[]): Promise<LoadReport> {
		return this.startLoad(args).report();
	}
	startLoad(args: readonly (string | number)[]): {
		report(): Promise<LoadReport>;
		/** Resolves when each connection has had its first answer. */
		ready(): Promise<void>;
		stop(): void;
	} {
		const child = this.#spawn('client', [tool('load'), ...args.map(String)]);
		return {
			report: () => this.#report<LoadReport>(child),
			ready: () => ready(child),
			stop: () => void child.kill('SIGTERM'),
		};
	}
	/** Runs a test program in the network of a container of a node. */
	loadIn(node: number, container: string, args: readonly (string | number)[]): Promise<LoadReport> {
		return this.#report<LoadReport>(this.#spawn(node, this.#inside(node, container, 'load', args)));
	}
	udploadIn(node: number, container: string, args: readonly (string | number)[]): Promise<UdpReport> {
		return this.#report<UdpReport>(this.#spawn(node, this.#inside(node, container, 'udpload', args)));
	}
	#inside(node: number, container: string, program: 'load' | 'udpload', args: readonly (string | number)[]): string[] {
		const netns = this.docker(node, 'inspect', '--format', '{{.NetworkSettings.SandboxKey}}', container);
		return ['nsenter', `--net=${netns}`, '--', tool(program), ...args.map(String)];
	}
	udpload(args: readonly (string | number)[]): Promise<UdpReport> {
		return this.#report<UdpReport>(this.#spawn('client', [tool('udpload'), ...args.map(String)]));
	}

	async #report<T>(child: ReturnType<typeof spawnProcess>): Promise<T> {
		this.#loads.add(child);
		let stdout = '';
		let stderr = '';
		child.stdout?.setEncoding('utf8').on('data', (t: string) => {
			stdout += t;
		});
		child.stderr?.setEncoding('utf8').on('data', (t: string) => {
			stderr += t;
		});
		const code = await new Promise<number>((resolve) => child.on('close', (c) => resolve(c ?? -1)));
		this.#loads.delete(child);
		try {
			return JSON.parse(stdout) as T;
		} catch (e) {
			throw new Error(`no report (exit ${code}): ${stderr}${stdout}`, { cause: e });
		}
	}

	/** Container of a service's task on a node, the first of them. */
	async container(node: number, service: string): Promise<string> {
		return await waitFor(
			`a container of ${service} on node${node}`,
			() =>
				this.docker(node, 'ps', '-q', '--filter', `label=com.docker.swarm.service.name=${service}`).split('\n')[0] ??
				'',
			30_000,
			100,
		);
	}

	/** Runs a test program inside a container to its end. */
	async inside<R>(node: number, container: string, command: readonly (string | number)[]): Promise<R> {
		return await this.startInside<R>(node, container, command).report();
	}
	startInside<R>(
		node: number,
		container: string,
		command: readonly (string | number)[],
	): { report(): Promise<R>; ready(): Promise<void>; stop(): void } {
		const child = spawnProcess('docker', ['exec', container, ...command.map(String)], {
			env: { ...process.env, DOCKER_HOST: `unix://${this.directory}/node${node}/run/docker.sock` },
			stdio: ['ignore', 'pipe', 'pipe'],
		});
		const report = this.#report<R>(child);
		// Whoever waits for it is told; nobody may be waiting yet.
		report.catch(() => undefined);
		return { report: () => report, ready: () => ready(child), stop: () => void child.kill('SIGTERM') };
	}

	/** Addresses of `port` on nodes. */
	targets(port: number, nodes: readonly number[] = Array.from({ length: this.nodes }, (_, i) => i + 1)): string[] {
		return nodes.map((n) => `${this.address(n)}:${port}`);
	}

	/** Ids of a service's running tasks, with node and container, as the manager lists them. */
	tasks(service: string, manager = 1): { id: string; node: string }[] {
		return this.docker(
			manager,
			'service',
			'ps',
			'--no-trunc',
			'--filter',
			'desired-state=running',
			'--format',
			'{{.ID}} {{.Node}} {{.CurrentState}}',
			service,
		)
			.split('\n')
			.filter((l) => / Running /.test(l))
			.map((l) => {
				const [id, node] = l.split(' ');
				return { id, node };
			});
	}

	/** When the youngest running task of a service came to run, by its engine's clock, ms. */
	newestRunningMs(service: string, manager = 1): number {
		const ids = this.tasks(service, manager).map((t) => t.id);
		const times = this.docker(manager, 'inspect', '--format', '{{.Status.Timestamp}}', ...ids).split('\n');
		// `2026-11-20 23:20:14.297680725 +0000 UTC`
		return Math.max(...times.map((t) => Date.parse(t.replace(/^(\S+) (\S+?\.\d{3})\d* .*$/, '$1T$2Z'))));
	}

	close(): void {
		if (!open.delete(this)) return;
		for (const a of this.agents.values()) a.child.kill('SIGKILL');
		for (const l of this.#loads) l.kill('SIGKILL');
		const keep = process.env.BEELINE_KEEP_LOGS;
		if (keep !== undefined) for (const [n, a] of this.agents) writeFileSync(join(keep, `agent${n}.log`), a.output);
		try {
			this.#bed(['down']);
		} catch (e) {
			console.error(`bed down: ${(e as Error).message}`);
		}
		rmSync(this.#pass, { force: true });
		rmSync(join(tmpdir(), `${this.prefix}-rootfs`), { recursive: true, force: true });
	}
}

/** When `load` says that each connection has had its first answer. */
function ready(child: ReturnType<typeof spawnProcess>): Promise<void> {
	return new Promise((resolve, reject) => {
		let text = '';
		child.stderr?.on('data', (part: string) => {
			text += part;
			if (/^ready$/m.test(text)) resolve();
		});
		child.on('close', () => reject(new Error(`load ended before it was ready: ${text}`)));
	});
}

/** The image: busybox, and the servers of the other tests, linked without libraries. */
function makeRootfs(): string {
	const at = join(tmpdir(), `bl${process.pid}-swarm-rootfs`);
	rmSync(at, { recursive: true, force: true });
	for (const d of ['bin', 'etc', 'tmp', 'proc', 'sys', 'dev']) mkdirSync(join(at, d), { recursive: true });
	copyFileSync('/bin/busybox', join(at, 'bin/busybox'));
	chmodSync(join(at, 'bin/busybox'), 0o755);
	for (const applet of ['sh', 'cat', 'sleep', 'test', 'hostname', 'wget', 'nc', 'rm', 'touch', 'kill', 'ip', 'ping'])
		symlinkSync('busybox', join(at, 'bin', applet));
	for (const name of ['httpd', 'udpecho', 'load', 'udpload'] as const)
		copyFileSync(tool(`${name}-static`), join(at, name));
	writeFileSync(join(at, 'etc/passwd'), 'root:x:0:0:root:/:/bin/sh\n');
	// A PID 1 ignores SIGTERM unless it says otherwise; a task that is told to stop should.
	writeFileSync(
		join(at, 'start'),
		'/udpecho -n "$(hostname)" -p 53 -L 3600 &\n/httpd -n "$(hostname)" -p 80 -L 3600 &\ntrap "kill -9 -1; exit 0" TERM\nwait\n',
	);
	return at;
}

const open = new Set<Swarm>();
function closeAll(): void {
	for (const s of [...open]) s.close();
}
process.on('exit', closeAll);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));

/** Cgroups and directories of beds whose process is dead. */
export function sweepBeds(): void {
	for (const name of readdirSync(tmpdir())) {
		const m = /^bl(\d+)-swarm$/.exec(name);
		if (m === null || existsSync(`/proc/${m[1]}`)) continue;
		spawnSync(join(root, 'test/swarm/bed'), ['down'], {
			env: { ...process.env, BED_NS: name, BED_DIR: join(tmpdir(), name) },
		});
	}
}
