/** Speaks to an agent's HTTP, over its unix socket or TCP. */
import { readFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { BeelineError } from '../errors.js';

export const DEFAULT_AGENT = 'unix:/run/beeline/beeline.sock';

export interface ClientOptions {
	/** `unix:/path`, `http://host:port`; default BEELINE_AGENT, else the local socket. */
	readonly agent?: string;
	readonly tokenFile?: string;
}

type Where = { readonly socketPath: string } | { readonly host: string; readonly port: number };

export interface Answer {
	readonly status: number;
	readonly body: string;
	readonly etag: string | undefined;
}

export interface Client {
	/** @throws BeelineError NO_AGENT, or what the agent refused, in its own words */
	get(path: string): Promise<Answer>;
	send(method: 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown): Promise<Answer>;
	/** Server-sent events until the signal aborts or the agent ends them. */
	events(path: string, each: (event: string, data: string) => void): Promise<void>;
}

/** @throws BeelineError BAD_AGENT */
export function parseAgent(text: string): Where {
	if (text.startsWith('unix:')) {
		const socketPath = text.slice(5).replace(/^\/\//, '');
		if (socketPath.startsWith('/')) return { socketPath };
	} else if (/^https?:/.test(text)) {
		let url: URL | undefined;
		try {
			url = new URL(text);
		} catch {
			url = undefined;
		}
		if (url?.protocol === 'http:' && url.hostname !== '') {
			return { host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port || 80) };
		}
	}
	throw new BeelineError('BAD_AGENT', `--agent ${JSON.stringify(text)}: expected unix:/path or http://host:port`);
}

function token(o: ClientOptions, env: NodeJS.ProcessEnv): string | undefined {
	if (o.tokenFile !== undefined) {
		try {
			return readFileSync(o.tokenFile, 'utf8').split('\n', 1)[0]?.trim();
		} catch (e) {
			throw new BeelineError('NO_TOKEN', `--token-file ${o.tokenFile}: ${(e as Error).message}`);
		}
	}
	return env.BEELINE_TOKEN === '' ? undefined : env.BEELINE_TOKEN;
}

export function createClient(o: ClientOptions, env: NodeJS.ProcessEnv = process.env): Client {
	const name = o.agent ?? (env.BEELINE_AGENT || DEFAULT_AGENT);
	const where = parseAgent(name);
	const bearer = token(o, env);
	const open = (method: string, path: string, body: unknown, timeoutMs: number): Promise<IncomingMessage> =>
		new Promise((resolve, reject) => {
			const text = body === undefined ? undefined : JSON.stringify(body);
			const req = request(
				{
					...where,
					method,
					path,
					headers: {
						accept: 'application/json',
						...('socketPath' in where ? { host: 'localhost' } : {}),
						...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }),
						...(text === undefined
							? {}
							: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
					},
				},
				resolve,
			);
			if (timeoutMs > 0) {
				req.setTimeout(timeoutMs, () =>
					req.destroy(new BeelineError('TIMEOUT', `the agent at ${name} did not answer within ${timeoutMs / 1000} s`)),
				);
			}
			req.on('error', (e: NodeJS.ErrnoException) => {
				if (e instanceof BeelineError) return reject(e);
				const why =
					e.code === 'ENOENT' || e.code === 'ECONNREFUSED'
						? `no agent answers at ${name}: start one with beeline agent --config FILE, or name another with --agent`
						: e.code === 'EACCES'
							? `the agent's socket ${name} is root's: run as root, or use --agent http://127.0.0.1:7980`
							: `the agent at ${name} cannot be reached: ${e.message}`;
				reject(new BeelineError('NO_AGENT', why, { cause: e }));
			});
			req.end(text);
		});
	const read = async (res: IncomingMessage): Promise<Answer> => {
		const chunks: Buffer[] = [];
		for await (const c of res) chunks.push(c as Buffer);
		const body = Buffer.concat(chunks).toString('utf8');
		const status = res.statusCode ?? 0;
		if (status >= 400) {
			let detail = body.trim().split('\n')[0] ?? '';
			let code = 'HTTP';
			try {
				const p = JSON.parse(body) as { detail?: string; title?: string; code?: string };
				detail = p.detail ?? p.title ?? detail;
				code = p.code ?? code;
			} catch {
				// Not a problem document: something else listens there.
			}
			throw new BeelineError(code, detail || `the agent answered ${status}`);
		}
		return { status, body, etag: res.headers.etag };
	};
	return {
		get: async (path) => read(await open('GET', path, undefined, 30_000)),
		send: async (method, path, body) => read(await open(method, path, body, 60_000)),
		async events(path, each) {
			const res = await open('GET', path, undefined, 0);
			if ((res.statusCode ?? 0) >= 400) {
				await read(res);
				return;
			}
			res.setEncoding('utf8');
			let rest = '';
			for await (const chunk of res) {
				rest += chunk as string;
				for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
					const lines = rest.slice(0, end).split('\n');
					rest = rest.slice(end + 2);
					const field = (f: string) => lines.filter((l) => l.startsWith(`${f}: `)).map((l) => l.slice(f.length + 2));
					const data = field('data').join('\n');
					if (data !== '') each(field('event')[0] ?? 'message', data);
				}
			}
		},
	};
}
