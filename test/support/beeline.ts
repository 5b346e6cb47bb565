import { existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import type { BackendView, EntriesView, NodeView, ServiceView, StatusView } from '../../src/http/schemas.js';
import {
	type LoadReport,
	mountBpffs,
	type Result,
	type Running,
	run,
	Topology,
	type TopologyOptions,
} from './netns.js';
import { root } from './tools.js';
import { waitFor } from './wait.js';

/** mesh.yaml as the tests write it (DESIGN 7.2). */
export interface MeshDocument {
	readonly nodes?: readonly { readonly name: string; readonly address: string; readonly drained?: boolean }[];
	readonly services: readonly ServiceDocument[];
	readonly networks?: readonly NetworkDocument[];
}

export interface NetworkDocument {
	readonly name: string;
	readonly subnet: string;
	readonly subnet6?: string;
	readonly slices?: Readonly<Record<string, string>>;
	readonly vni: number;
	readonly attachable?: boolean;
	readonly ingress?: boolean;
	readonly gateway?: string;
	readonly options?: Readonly<Record<string, unknown>>;
	readonly endpoints?: readonly { readonly node: string; readonly address: string; readonly [key: string]: unknown }[];
}

export interface ServiceDocument {
	readonly name: string;
	readonly ports: readonly { readonly published: number; readonly target: number; readonly protocol?: 'tcp' | 'udp' }[];
	readonly options?: Readonly<Record<string, unknown>>;
	readonly backends: readonly BackendDocument[];
	readonly networks?: readonly { readonly name: string; readonly vip?: string }[];
	readonly endpointMode?: 'vip' | 'dnsrr';
}

export interface BackendDocument {
	readonly node: string;
	readonly address?: string;
	readonly addresses?: readonly string[];
	readonly weight?: number;
	readonly drain?: boolean;
}

export interface Answer {
	readonly status: number;
	readonly text: string;
}

type Overrides = Readonly<Record<string, unknown>>;

/** Until an agent has done what it was told, at most: with a load of 15, agents that compile and start together took more than 30 s. */
const READY_MS = 90_000;

/** The command as a user runs it; BEELINE_COMMAND tests one that is installed elsewhere. */
export const beeline = process.env.BEELINE_COMMAND ?? join(root, 'bin/beeline');

/** A task of the topology as a backend, with both its addresses. */
export function taskBackend(net: Topology, task: string, more: Partial<BackendDocument> = {}): BackendDocument {
	const { v4, v6 } = net.address(task);
	return { node: task.replace(/t\d+$/, ''), addresses: net.options.tasks4Only ? [v4] : [v4, v6], ...more };
}

/** One agent in a node's namespace, with files, pins and socket of its own. */
export class Agent {
	readonly directory: string;
	readonly configFile: string;
	readonly meshFile: string;
	readonly socket: string;
	running: Running | undefined;
	/** More of the environment, from the next start on. */
	env: Readonly<Record<string, string>> = {};
	/** Everything that agents of this node printed so far. */
	log = '';

	constructor(
		readonly net: Topology,
		readonly node: string,
		readonly overrides: Overrides = {},
	) {
		this.directory = join(net.directory, node);
		mkdirSync(this.directory, { recursive: true });
		this.configFile = join(this.directory, 'beeline.yaml');
		this.meshFile = join(this.directory, 'mesh.yaml');
		this.socket = join(this.directory, 'beeline.sock');
	}

	writeConfig(overrides: Overrides = this.overrides): void {
		const { http, ...rest } = overrides as { http?: object };
		const config = {
			node: { name: this.node, address: this.net.address(this.node).v4 },
			membership: { source: 'file', file: this.meshFile },
			http: { listen: [], socket: this.socket, ...http },
			pinRoot: this.net.pinRoot(this.node),
			...rest,
		};
		writeFileSync(this.configFile, `${JSON.stringify(config, null, 2)}\n`);
	}

	/** Replaces the file at once, as an editor or a deployment tool does. */
	writeMesh(mesh: MeshDocument): void {
		const aside = `${this.meshFile}.new`;
		writeFileSync(aside, `${JSON.stringify(mesh, null, 2)}\n`);
		renameSync(aside, this.meshFile);
	}

	/** Starts the process and waits until it has applied everything once. */
	async start(limitMs = READY_MS): Promise<void> {
		this.launch();
		await this.ready(limitMs);
	}

	/** Starts the process and returns at once. `command`: another checkout's bin/beeline. */
	launch(command = beeline): Running {
		mountBpffs();
		const running = this.net.spawn(this.node, [command, 'agent', '--config', this.configFile], {
			env: { BEELINE_NO_BUILD: '1', ...this.env },
		});
		this.running = running;
		void running.ended.then((result) => {
			this.log += result.stdout + result.stderr;
			if (existsSync(this.directory)) writeFileSync(join(this.directory, 'agent.log'), this.log);
		});
		return running;
	}

	async ready(limitMs = READY_MS): Promise<void> {
		const running = this.running;
		await waitFor(
			`the agent on ${this.node} to be ready`,
			async () => {
				if (running && running.child.exitCode !== null) return true;
				return existsSync(this.socket) && (await this.request('GET', '/readyz')).status === 200;
			},
			limitMs,
			50,
		).catch((error: Error) => {
			throw new Error(`${error.message}\n${this.output().slice(-3000)}`);
		});
		if (running && running.child.exitCode !== null)
			throw new Error(`the agent on ${this.node} ended: ${this.output().slice(-3000)}`);
	}

	/** What the present process printed. */
	output(): string {
		return this.running ? this.running.stdout() + this.running.stderr() : '';
	}

	async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Result | undefined> {
		const result = await this.running?.stop(signal);
		this.running = undefined;
		return result;
	}

	/** Ends the process (if it runs) and removes everything of Beeline from the node. */
	async detach(args: readonly string[] = ['--now']): Promise<Result> {
		await this.stop();
		return this.cli(['detach', '--config', this.configFile, ...args], { local: true });
	}

	/** A client verb, spoken to this agent; `local` verbs need none. */
	async cli(args: readonly string[], options: { local?: boolean; mayFail?: boolean } = {}): Promise<Result> {
		return this.net.execAsync(this.node, [beeline, ...args], {
			env: { BEELINE_NO_BUILD: '1', ...(options.local ? {} : { BEELINE_AGENT: `unix:${this.socket}` }) },
			mayFail: options.mayFail ?? false,
			timeoutMs: 90_000,
		});
	}

	/** Asks the agent's HTTP over its socket. */
	request(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
		return new Promise((resolve, reject) => {
			const ask = request(
				{
					socketPath: this.socket,
					method,
					path,
					headers: {
						host: 'localhost',
						...(body === undefined ? {} : { 'content-type': 'application/json' }),
						...headers,
					},
					timeout: 10_000,
				},
				(answer) => {
					let text = '';
					answer.setEncoding('utf8').on('data', (part: string) => {
						text += part;
					});
					answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text }));
				},
			);
			ask.on('timeout', () => ask.destroy(new Error(`${method} ${path}: no answer in 10 s`)));
			ask.on('error', reject);
			ask.end(body === undefined ? undefined : JSON.stringify(body));
		});
	}

	async get<T>(path: string): Promise<T> {
		const { status, text } = await this.request('GET', path);
		if (status !== 200) throw new Error(`GET ${path} on ${this.node}: ${status} ${text}`);
		return JSON.parse(text) as T;
	}

	async post(path: string, body?: unknown): Promise<void> {
		const { status, text } = await this.request('POST', path, body);
		if (status >= 300) throw new Error(`POST ${path} on ${this.node}: ${status} ${text}`);
	}

	status(): Promise<StatusView> {
		return this.get('/v1/status');
	}

	async nodes(): Promise<NodeView[]> {
		return (await this.get<{ nodes: NodeView[] }>('/v1/nodes')).nodes;
	}

	async services(): Promise<ServiceView[]> {
		return (await this.get<{ services: ServiceView[] }>('/v1/services')).services;
	}

	async backends(): Promise<BackendView[]> {
		return (await this.get<{ backends: BackendView[] }>('/v1/backends')).backends;
	}

	entries(limit = 100_000): Promise<EntriesView> {
		return this.get(`/v1/entries?limit=${limit}`);
	}

	/**
	 * Slots of each backend in each table of the node, read from the pinned maps by another program than ours (bpftool).
	 * Key: the backend's reference (bpf/mesh.h).
	 */
	slots(): { readonly table: number; readonly counts: ReadonlyMap<number, number> }[] {
		const dump = (...map: string[]) =>
			JSON.parse(run('bpftool', ['-j', 'map', 'dump', ...map]).stdout) as {
				key: string[];
				value?: string[];
				inner_map_id?: string[];
			}[];
		const number = (bytes: readonly string[]) => bytes.reduceRight((total, byte) => total * 256 + Number(byte), 0);
		const out = [];
		for (const { key, inner_map_id, value } of dump('pinned', join(this.net.pinRoot(this.node), 'maps', 'tables'))) {
			const id = inner_map_id ?? value;
			if (!Array.isArray(id)) continue;
			const counts = new Map<number, number>();
			for (const row of dump('id', `${number(id)}`)) {
				const reference = number(row.value ?? []) % 2 ** 30;
				counts.set(reference, (counts.get(reference) ?? 0) + 1);
			}
			out.push({ table: number(key), counts });
		}
		return out;
	}

	/** Packets by `program verdict`, from /metrics. */
	async verdicts(): Promise<Record<string, number>> {
		const { text } = await this.request('GET', '/metrics');
		const out: Record<string, number> = {};
		for (const [, labels, value] of text.matchAll(/^beeline_packets_total\{([^}]*)\} (\S+)$/gm)) {
			const label = (name: string) => new RegExp(`${name}="([^"]*)"`).exec(labels)?.[1] ?? '';
			if (Number(value)) out[`${label('program')} ${label('verdict')}`] = Number(value);
		}
		return out;
	}
}

export interface Served {
	readonly net: Topology;
	readonly mesh: Mesh;
}

/**
 * A topology, servers on each of its tasks (HTTP on 80, UDP echo on 53), and agents whose services have the tasks as
 * backends. What was built is taken down again where something fails; else it is the caller's to close.
 *
 * @param also more servers
 * @param then what the scenario holds besides, with the mesh running
 */
export async function startServed<T extends object = object>(
	topology: TopologyOptions,
	services: (backends: readonly BackendDocument[]) => readonly ServiceDocument[],
	also: (net: Topology) => Promise<unknown> = async () => undefined,
	then?: (served: Served) => Promise<T>,
): Promise<Served & T> {
	return onTopology(topology, async (net) => {
		for (const task of net.tasks()) {
			await net.httpd(task, 80);
			await net.udpecho(task, 53);
		}
		await also(net);
		const mesh = await Mesh.start(net, { services: services(net.tasks().map((task) => taskBackend(net, task))) });
		return { mesh, ...((await then?.({ net, mesh })) as T) };
	});
}

/** A topology and what is built on it, which takes it down again where it fails; else it is the caller's to close. */
export async function onTopology<T extends object>(
	topology: TopologyOptions | undefined,
	then: (net: Topology) => Promise<T>,
): Promise<{ readonly net: Topology } & T> {
	const net = await Topology.build(topology);
	try {
		return { net, ...(await then(net)) };
	} catch (error) {
		net.close();
		throw error;
	}
}

/** Dials from a namespace, 20 times unless told; all must work. */
export async function dialAll(
	{ net, mesh }: Served,
	from: string,
	to: readonly string[],
	more: readonly (string | number)[] = [],
): Promise<LoadReport> {
	const report = await net.load(from, ['-n', 20, '-c', 4, '-t', 2000, ...more, ...to]);
	if (Object.keys(report.failures).length > 0)
		throw new Error(`${from} to ${to.join(' ')}: ${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
	return report;
}

/** Agents on all (or some) nodes of a topology, each with the same mesh. */
export class Mesh {
	readonly agents = new Map<string, Agent>();
	document: MeshDocument;

	private constructor(
		readonly net: Topology,
		document: MeshDocument,
	) {
		this.document = document;
	}

	/** Starts agents on `nodes` (default: all) and waits until each is ready and has its next hops. */
	static async start(
		net: Topology,
		document: MeshDocument,
		options: {
			readonly nodes?: readonly string[];
			readonly config?: Overrides;
			readonly configs?: Record<string, Overrides>;
		} = {},
	): Promise<Mesh> {
		const mesh = new Mesh(net, document);
		await Promise.all(
			(options.nodes ?? net.nodes).map((node) => mesh.add(node, { ...options.config, ...options.configs?.[node] })),
		);
		await mesh.connected();
		return mesh;
	}

	/** Starts one more agent. */
	async add(node: string, overrides: Overrides = {}): Promise<Agent> {
		const agent = new Agent(this.net, node, overrides);
		this.agents.set(node, agent);
		agent.writeConfig();
		agent.writeMesh(this.#full(this.document));
		await agent.start();
		return agent;
	}

	agent(node: string): Agent {
		const agent = this.agents.get(node);
		if (!agent) throw new Error(`no agent on ${node}`);
		return agent;
	}

	/** Every running agent knows the MAC of the next hop to every node that has backends. */
	async connected(limitMs = READY_MS): Promise<void> {
		await waitFor(
			'next hops to be resolved',
			async () => {
				for (const agent of this.agents.values()) {
					if (!agent.running) continue;
					const nodes = await agent.nodes();
					if (nodes.some((node) => !node.self && node.backends > 0 && !node.nextHop?.mac)) return false;
				}
				return true;
			},
			limitMs,
		);
	}

	/** Writes a new mesh for all nodes and waits until each running agent has applied it. */
	async change(document: MeshDocument, only: readonly string[] = [...this.agents.keys()]): Promise<void> {
		this.document = document;
		const agents = only.map((node) => this.agent(node)).filter((agent) => agent.running);
		const before = await Promise.all(agents.map((agent) => agent.status()));
		for (const node of only) this.agent(node).writeMesh(this.#full(document));
		let late = '';
		await waitFor(
			'the mesh to be applied on every node',
			async () => {
				for (const [i, agent] of agents.entries()) {
					const status = await agent.status();
					late = `${agent.node}: ${JSON.stringify({ was: before[i].membership, is: status.membership, reconcile: status.reconcile })}`;
					if (status.membership.error) throw new Error(`${agent.node}: ${status.membership.error}`);
					if (status.membership.readAt === before[i].membership.readAt) return false;
					if (status.reconcile.runs <= before[i].reconcile.runs) return false;
				}
				return true;
			},
			READY_MS,
		).catch((error: Error) => {
			throw new Error(`${error.message}; ${late}`);
		});
		await this.connected();
	}

	/** Replaces the backends of one service. */
	async setBackends(service: string, backends: readonly BackendDocument[]): Promise<void> {
		await this.change({
			...this.document,
			services: this.document.services.map((one) => (one.name === service ? { ...one, backends } : one)),
		});
	}

	/** Sum of the verdicts of all nodes. */
	async verdicts(): Promise<Record<string, Record<string, number>>> {
		const out: Record<string, Record<string, number>> = {};
		for (const [node, agent] of this.agents) if (agent.running) out[node] = await agent.verdicts();
		return out;
	}

	/** Ends the agents and removes what they attached. */
	async close(): Promise<void> {
		await Promise.all(
			[...this.agents.values()].map(async (agent) => {
				await agent.detach().catch((error: Error) => console.error(`detach on ${agent.node}: ${error.message}`));
			}),
		);
	}

	#full(document: MeshDocument): MeshDocument {
		return {
			...document,
			nodes: document.nodes ?? this.net.nodes.map((name) => ({ name, address: this.net.address(name).v4 })),
		};
	}
}

/** Targets for load: a port on several nodes, in one or both families. */
export function targets(
	net: Topology,
	nodes: readonly string[],
	port: number,
	families: readonly (4 | 6)[] = [4],
): string[] {
	return families.flatMap((family) =>
		nodes.map((node) => (family === 4 ? `${net.address(node).v4}:${port}` : `[${net.address(node).v6}]:${port}`)),
	);
}
