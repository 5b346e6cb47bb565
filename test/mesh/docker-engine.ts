/** An engine that says what it is told to, over a real unix socket: the answers are recorded ones, or made after them. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { RawNetwork, RawNode, RawService, RawTask } from '../../src/mesh/sources/docker-map.js';
import { root } from '../support/tools.js';

export const recorded = <T>(name: string): T =>
	JSON.parse(readFileSync(join(root, 'test/fixtures/engine', `${name}.json`), 'utf8')) as T;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

export class FakeEngine {
	readonly directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-engine-`));
	readonly socket = join(this.directory, 'docker.sock');
	version: unknown = recorded('version');
	info: unknown = recorded('manager-info');
	nodes: RawNode[] = recorded<RawNode[]>('steady/nodes');
	services: Mutable<RawService>[] = recorded<RawService[]>('steady/services');
	tasks: RawTask[] = recorded<RawTask[]>('steady/tasks');
	networks: RawNetwork[] = recorded<RawNetwork[]>('steady/networks');
	containers: unknown = recorded('worker/containers');
	bridge: unknown = recorded('worker/docker_gwbridge');
	/** Answer to everything but /version, where it is set. */
	status: number | undefined;
	readonly asked: string[] = [];
	#server: Server | undefined;
	#streams = new Set<ServerResponse>();

	async listen(): Promise<void> {
		rmSync(this.socket, { force: true });
		const server = createServer((ask, answer) => {
			const url = new URL(ask.url ?? '/', 'http://docker');
			const path = url.pathname.replace(/^\/v1\.\d+/, '');
			this.asked.push(`${path}${url.search}`);
			const say = (status: number, body: unknown) => {
				answer.writeHead(status, { 'content-type': 'application/json' });
				answer.end(JSON.stringify(body));
			};
			if (path === '/version') return say(200, this.version);
			if (this.status !== undefined)
				return say(this.status, { message: 'rpc error: The swarm does not have a leader' });
			const filters = JSON.parse(url.searchParams.get('filters') ?? '{}') as Record<string, string[]>;
			switch (path) {
				case '/info':
					return say(200, this.info);
				case '/nodes':
					return say(200, this.nodes);
				case '/services':
					return say(200, this.services);
				case '/networks':
					return say(200, this.networks);
				case '/tasks':
					return say(
						200,
						this.tasks.filter(
							(t) =>
								(filters['desired-state'] === undefined || filters['desired-state'].includes(t.DesiredState ?? '')) &&
								(filters.id === undefined || filters.id.includes(t.ID ?? '')),
						),
					);
				case '/containers/json':
					return say(200, this.containers);
				case '/networks/docker_gwbridge':
					return this.bridge === undefined ? say(404, { message: 'no such network' }) : say(200, this.bridge);
				case '/events':
					answer.writeHead(200, { 'content-type': 'application/json' });
					answer.flushHeaders();
					this.#streams.add(answer);
					answer.on('close', () => this.#streams.delete(answer));
					return;
				default:
					return say(404, { message: `no ${path}` });
			}
		});
		this.#server = server;
		await new Promise<void>((resolve) => server.listen(this.socket, resolve));
	}

	get listeners(): number {
		return this.#streams.size;
	}

	/** An event to all that listen. */
	event(type: string, action: string, id: string, attributes: Record<string, string> = {}): void {
		const line = JSON.stringify({ Type: type, Action: action, Actor: { ID: id, Attributes: attributes } });
		for (const s of this.#streams) s.write(`${line}\n`);
	}

	/** As a restart: connections break, nobody listens. */
	async stop(): Promise<void> {
		for (const s of this.#streams) s.destroy();
		const server = this.#server;
		this.#server = undefined;
		if (server === undefined) return;
		server.closeAllConnections();
		await new Promise<void>((resolve) => server.close(() => resolve()));
	}

	async close(): Promise<void> {
		await this.stop();
		rmSync(this.directory, { recursive: true, force: true });
	}
}
