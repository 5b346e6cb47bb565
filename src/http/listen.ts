/** Listens for the application: the unix socket at mode 0600, and TCP addresses. */
import { accessSync, chmodSync, constants, existsSync, lstatSync, mkdirSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { getRequestListener } from '@hono/node-server';

interface Fetcher {
	fetch(request: Request, env: object): Response | Promise<Response>;
}

export interface Listening {
	/** host:port or path, as bound. */
	readonly addresses: readonly string[];
	/** Stops listening and ends every connection, event streams included. */
	close(): Promise<void>;
}

/** `127.0.0.1:7980`, `[::1]:7980` or `localhost:7980`. */
export function splitListen(text: string): { host: string; port: number } {
	const m = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d+)$/.exec(text);
	const port = Number(m?.[3]);
	if (m === null || port > 65535) throw new Error(`http.listen: ${JSON.stringify(text)}: expected address:port`);
	return { host: (m[1] ?? m[2])!, port };
}

function answers(path: string): Promise<boolean> {
	return new Promise((resolve) => {
		const s = connect(path);
		s.once('connect', () => {
			s.destroy();
			resolve(true);
		});
		s.once('error', () => resolve(false));
	});
}

function start(
	server: Server,
	where: { host: string; port: number; ipv6Only: boolean } | { path: string },
): Promise<void> {
	return new Promise((resolve, reject) => {
		server.once('error', reject);
		server.listen(where, () => {
			server.removeListener('error', reject);
			resolve();
		});
	});
}

/** Node's own recursion never ends where a file system has no directories to make (/proc). */
function makeDirectory(path: string): void {
	if (existsSync(path)) return;
	makeDirectory(dirname(path));
	mkdirSync(path, { mode: 0o755 });
}

/**
 * Whether a unix socket can be made at a path. A leftover of a dead agent is in nobody's way.
 * @param key where the configuration names it
 */
export async function trySocket(path: string, key = 'http.socket'): Promise<void> {
	const directory = dirname(path);
	try {
		makeDirectory(directory);
		accessSync(directory, constants.W_OK | constants.X_OK);
	} catch (e) {
		const why = (e as NodeJS.ErrnoException).code ?? (e as Error).message;
		throw new Error(`${path}: no socket can be made in ${directory} (${why}): set ${key}`);
	}
	const there = lstatSync(path, { throwIfNoEntry: false });
	if (there === undefined) return;
	if (!there.isSocket()) throw new Error(`${path}: exists and is no socket: remove it, or set ${key}`);
	if (await answers(path)) throw new Error(`${path}: another agent answers there: stop it, or set ${key}`);
}

/** Why a TCP address cannot be listened on, and what to do. */
function cannotListen(text: string, e: unknown): Error {
	const { code, message } = e as NodeJS.ErrnoException;
	const why =
		{ EADDRINUSE: 'the port is taken', EADDRNOTAVAIL: 'this node has no such address' }[code ?? ''] ?? message;
	return new Error(`listen on ${text}: ${why}: set http.listen`);
}

/** Whether TCP addresses are free. @throws as listen() does */
export async function tryTcp(tcp: readonly string[]): Promise<void> {
	const servers: Server[] = [];
	try {
		for (const text of tcp) {
			const server = createServer();
			servers.push(server);
			await start(server, bindTo(text, tcp)).catch((e) => {
				throw cannotListen(text, e);
			});
		}
	} finally {
		await Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))));
	}
}

/** [::] is both families, unless 0.0.0.0 is named with the same port. */
function bindTo(text: string, all: readonly string[]) {
	const { host, port } = splitListen(text);
	return { host, port, ipv6Only: host === '::' && all.includes(`0.0.0.0:${port}`) };
}

/**
 * @param socket path of the unix socket; a leftover of a dead agent is replaced, a living one's is not.
 * @param tcp `address:port` each.
 * @param options.key where the configuration names the socket
 * @param options.host stands for every Host header: Docker's engine sends the socket's path, which is none
 * @throws with the address in the message where it cannot listen.
 */
export async function listen(
	app: Fetcher,
	socket: string | undefined,
	tcp: readonly string[],
	options: { readonly key?: string; readonly host?: string } = {},
): Promise<Listening> {
	const key = options.key ?? 'http.socket';
	const servers: Server[] = [];
	const addresses: string[] = [];
	const make = () => {
		const respond = getRequestListener((request, env) => app.fetch(request, env));
		const { host } = options;
		const server = createServer((request, response) => {
			if (host !== undefined) request.headers.host = host;
			void respond(request, response);
		});
		// A reader that sends its headers a byte at a time holds a connection no longer than this.
		server.headersTimeout = 10_000;
		server.requestTimeout = 30_000;
		server.maxHeadersCount = 100;
		// Above the clients' own: a server that closes an idle connection first races with the next request on it.
		server.keepAliveTimeout = 75_000;
		servers.push(server);
		return server;
	};
	const close = async () => {
		await Promise.all(
			servers.map(
				(s) =>
					new Promise<void>((resolve) => {
						s.close(() => resolve());
						s.closeAllConnections();
					}),
			),
		);
	};
	try {
		if (socket !== undefined) {
			await trySocket(socket, key);
			rmSync(socket, { force: true });
			// Between bind and chmod the socket must not be open to others.
			const mask = process.umask(0o177);
			try {
				await start(make(), { path: socket });
			} finally {
				process.umask(mask);
			}
			chmodSync(socket, 0o600);
			addresses.push(socket);
		}
		for (const text of tcp) {
			const server = make();
			try {
				await start(server, bindTo(text, tcp));
			} catch (e) {
				throw cannotListen(text, e);
			}
			const a = server.address();
			if (a !== null && typeof a === 'object') {
				addresses.push(a.family === 'IPv6' ? `[${a.address}]:${a.port}` : `${a.address}:${a.port}`);
			}
		}
	} catch (e) {
		await close();
		throw e;
	}
	return { addresses, close };
}
