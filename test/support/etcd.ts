import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect as dial, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { hasTool } from './skip.js';
import { waitFor } from './wait.js';

/** Why no etcd can be started here, or undefined. */
export function cannotRunEtcd(): string | undefined {
	if (!hasTool('etcd')) return 'needs etcd (install the package etcd-server, or run scripts/setup)';
	if (!hasTool('etcdctl')) return 'needs etcdctl (install the package etcd-client, or run scripts/setup)';
	return undefined;
}

async function freePort(): Promise<number> {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const { port } = server.address() as { port: number };
	await new Promise((resolve) => server.close(resolve));
	return port;
}

export interface Certificates {
	readonly ca: string;
	/** For 127.0.0.1 and localhost, for servers and clients. */
	readonly cert: string;
	readonly key: string;
}

/** An authority of its own, and a certificate that it signed. */
export function makeCertificates(
	directory: string,
	name: string,
	addresses = '127.0.0.1',
	usage = 'serverAuth,clientAuth',
): Certificates {
	const at = (file: string) => join(directory, `${name}-${file}`);
	const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'pipe' });
	mkdirSync(directory, { recursive: true });
	const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
	openssl(
		...['req', '-x509', ...ec, '-days', '2', '-subj', `/CN=${name} authority`],
		...['-keyout', at('ca.key'), '-out', at('ca.pem')],
	);
	openssl('req', ...ec, '-subj', `/CN=${name}`, '-keyout', at('key.pem'), '-out', at('csr.pem'));
	writeFileSync(
		at('ext'),
		`subjectAltName=IP:${addresses},DNS:localhost\nextendedKeyUsage=${usage}\nbasicConstraints=CA:FALSE\n`,
	);
	openssl(
		...['x509', '-req', '-in', at('csr.pem'), '-CA', at('ca.pem'), '-CAkey', at('ca.key'), '-CAcreateserial'],
		...['-days', '2', '-extfile', at('ext'), '-out', at('cert.pem')],
	);
	return { ca: at('ca.pem'), cert: at('cert.pem'), key: at('key.pem') };
}

/** One real etcd on loopback, or in a namespace; its data outlive a kill, and are removed on close. */
export class EtcdServer {
	readonly directory: string;
	#child: ChildProcess | undefined;
	#log = '';

	private constructor(
		readonly port: number,
		readonly peerPort: number,
		readonly options: {
			/** Serves TLS; `clients`: and wants certificates of clients; `serves`, `trusts`: others than its clients have. */
			readonly tls?: Certificates & {
				readonly clients?: boolean;
				readonly serves?: Certificates;
				readonly trusts?: string;
			};
			readonly address?: string;
			/** What stands before the command: nsenter … */
			readonly before?: readonly string[];
			readonly args?: readonly string[];
			/** Of a cluster: this member's name, and `name=peer URL,…` of all. */
			readonly member?: { readonly name: string; readonly all: string };
		},
	) {
		this.directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-etcd-`));
	}

	static async start(options: EtcdServer['options'] = {}): Promise<EtcdServer> {
		const inNamespace = options.before !== undefined;
		const server = new EtcdServer(
			inNamespace ? 2379 : await freePort(),
			inNamespace ? 2380 : await freePort(),
			options,
		);
		process.on('exit', () => server.#child?.kill('SIGKILL'));
		await server.launch();
		return server;
	}

	/** Three members on loopback. */
	static async cluster(): Promise<EtcdServer[]> {
		const names = ['e1', 'e2', 'e3'];
		const ports = await Promise.all(names.map(async () => [await freePort(), await freePort()] as const));
		const all = names.map((name, i) => `${name}=http://127.0.0.1:${ports[i]?.[1]}`).join();
		const servers = names.map((name, i) => {
			const [port, peer] = ports[i] as readonly [number, number];
			const server = new EtcdServer(port, peer, { member: { name, all } });
			process.on('exit', () => server.#child?.kill('SIGKILL'));
			return server;
		});
		// None is healthy before two are there.
		await Promise.all(servers.map((s) => s.launch()));
		return servers;
	}

	get url(): string {
		return `${this.options.tls === undefined ? 'http' : 'https'}://${this.options.address ?? '127.0.0.1'}:${this.port}`;
	}

	/** Starts the process (again) on the same data and ports. */
	async launch(): Promise<void> {
		const { tls, before = [], member } = this.options;
		const peer = `http://127.0.0.1:${this.peerPort}`;
		const { name, all } = member ?? { name: 'e', all: `e=${peer}` };
		const command = [
			// A test that is killed outright takes its etcd along.
			...['setpriv', '--pdeathsig', 'KILL', '--'],
			...before,
			'etcd',
			...['--name', name, '--data-dir', join(this.directory, 'data'), '--log-level', 'error'],
			...['--listen-client-urls', this.url, '--advertise-client-urls', this.url],
			...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', all],
			...(tls === undefined ? [] : ['--cert-file', (tls.serves ?? tls).cert, '--key-file', (tls.serves ?? tls).key]),
			...(tls?.clients === true ? ['--client-cert-auth', '--trusted-ca-file', tls.trusts ?? tls.ca] : []),
			...(this.options.args ?? []),
		];
		const child = spawn(command[0] as string, command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
		this.#child = child;
		for (const stream of [child.stdout, child.stderr])
			stream?.setEncoding('utf8').on('data', (part: string) => {
				this.#log = (this.#log + part).slice(-10_000);
			});
		await waitFor(
			'etcd to answer',
			() => {
				if (child.exitCode !== null) throw new Error(`etcd ended: ${this.#log.slice(-2000)}`);
				return this.#isHealthy();
			},
			20_000,
			100,
		).catch((error: Error) => {
			child.kill('SIGKILL');
			throw new Error(`${error.message}\n${this.#log.slice(-2000)}`);
		});
	}

	async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
		const child = this.#child;
		this.#child = undefined;
		if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
		const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
		child.kill(signal);
		await ended;
	}

	/** Also where users are wanted, which etcdctl's health is not for. */
	#isHealthy(): boolean {
		const { tls, before = [] } = this.options;
		const own = tls?.clients === true ? ['--cert', tls.cert, '--key', tls.key] : [];
		const command = [...before, 'curl', '-skf', '--noproxy', '*', '--max-time', '2', ...own, `${this.url}/health`];
		const r = spawnSync(command[0] as string, command.slice(1), { encoding: 'utf8', timeout: 5000 });
		return r.status === 0 && /"health":\s*"true"/.test(r.stdout);
	}

	/** Stops or continues the process: it holds its connections and answers nothing. */
	freeze(frozen: boolean): void {
		this.#child?.kill(frozen ? 'SIGSTOP' : 'SIGCONT');
	}

	tryCtl(...args: string[]): { code: number; stdout: string; stderr: string } {
		const { tls, before = [] } = this.options;
		const command = [
			...before,
			...['etcdctl', '--endpoints', this.url, '--dial-timeout', '2s', '--command-timeout', '10s'],
			...(tls === undefined
				? []
				: tls.clients === true
					? ['--cacert', tls.ca, '--cert', tls.cert, '--key', tls.key]
					: ['--insecure-skip-tls-verify']),
			...args,
		];
		const r = spawnSync(command[0] as string, command.slice(1), {
			encoding: 'utf8',
			env: { ...process.env, ETCDCTL_API: '3' },
			timeout: 30_000,
		});
		return { code: r.status ?? -1, stdout: r.stdout, stderr: r.stderr };
	}

	/** etcdctl, so that what we read was written by another program than ours. */
	ctl(...args: string[]): string {
		const r = this.tryCtl(...args);
		if (r.code !== 0) throw new Error(`etcdctl ${args.join(' ')}: ${r.stderr.trim()}`);
		return r.stdout;
	}

	put(key: string, value: unknown): void {
		this.ctl('put', '--', key, typeof value === 'string' ? value : JSON.stringify(value));
	}

	get(key: string): unknown {
		const text = this.ctl('get', '--print-value-only', key).trim();
		return text === '' ? undefined : JSON.parse(text);
	}

	/** Forgets everything, as a new installation on the same address would. */
	async wipe(): Promise<void> {
		await this.kill();
		rmSync(join(this.directory, 'data'), { recursive: true, force: true });
		await this.launch();
	}

	async close(): Promise<void> {
		await this.kill();
		rmSync(this.directory, { recursive: true, force: true });
	}
}

/** A wire to a port of loopback that can be cut without either end knowing the reason. */
export class Wire {
	readonly #server: Server;
	readonly #sockets = new Set<Socket>();
	#cut = false;

	private constructor(
		readonly port: number,
		server: Server,
	) {
		this.#server = server;
	}

	static async to(target: number): Promise<Wire> {
		const server = createServer();
		await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
		const wire = new Wire((server.address() as { port: number }).port, server);
		server.on('connection', (near) => {
			if (wire.#cut) {
				near.destroy();
				return;
			}
			const far = dial(target, '127.0.0.1');
			for (const [a, b] of [
				[near, far],
				[far, near],
			] as const) {
				wire.#sockets.add(a);
				a.on('error', () => undefined);
				a.on('close', () => {
					wire.#sockets.delete(a);
					b.destroy();
				});
				a.pipe(b);
			}
		});
		return wire;
	}

	cut(): void {
		this.#cut = true;
		for (const s of this.#sockets) s.destroy();
	}

	mend(): void {
		this.#cut = false;
	}

	close(): void {
		this.cut();
		this.#server.close();
	}
}
