/**
 * The Engine API of this node's Docker, as far as it is needed: GET requests, updates and the event stream. The only file that knows
 * how an engine is spoken to (docs/decisions/0011).
 */
import { readFileSync } from 'node:fs';
import { type ClientRequest, request as httpRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { join } from 'node:path';
import { BeelineError } from '../../errors.js';

export interface EngineHost {
	/** As DOCKER_HOST writes it, for the operator. */
	readonly place: string;
	readonly socketPath?: string;
	readonly host?: string;
	readonly port?: number;
	readonly tls?: { readonly ca: Buffer; readonly cert: Buffer; readonly key: Buffer };
}

export const DEFAULT_HOST = 'unix:///var/run/docker.sock';

/** The oldest API that has all that is asked for: Docker 20.10. */
export const MIN_API = '1.41';
/** The newest whose answers are known. */
const KNOWN_API = '1.51';

/** A request that is not answered within this is a failed one, ms. Lists of 20 000 tasks take seconds. */
const ANSWER_MS = 20_000;
/** Of a list: 20 000 tasks are some 60 MB. */
const MAX_ANSWER_BYTES = 512 * 1024 * 1024;

const bad = (why: string): BeelineError => new BeelineError('INVALID_CONFIG', why, { field: 'DOCKER_HOST' });

/**
 * Reads DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH as the docker command does.
 * @throws BeelineError INVALID_CONFIG
 */
export function parseDockerHost(env: Readonly<Record<string, string | undefined>>): EngineHost {
	const place = env.DOCKER_HOST === undefined || env.DOCKER_HOST === '' ? DEFAULT_HOST : env.DOCKER_HOST;
	const unix = /^unix:\/\/(\/.+)$/.exec(place);
	if (unix !== null) return { place, socketPath: unix[1] };
	if (place.startsWith('ssh://'))
		throw bad('DOCKER_HOST is an ssh:// address: the agent speaks to the engine of its own node, by unix:// or tcp://');
	const tcp = /^(tcp|http|https):\/\/(?:\[([^\]]+)\]|([^:/]+))(?::(\d{1,5}))?\/?$/.exec(place);
	if (tcp === null) throw bad(`DOCKER_HOST is ${place}: expected unix:///path or tcp://host:port`);
	const secure = tcp[1] === 'https' || (env.DOCKER_TLS_VERIFY ?? '') !== '';
	const host = tcp[2] ?? tcp[3];
	const port = tcp[4] === undefined ? (secure ? 2376 : 2375) : Number(tcp[4]);
	if (!secure) return { place, host, port };
	const directory = env.DOCKER_CERT_PATH ?? join(env.HOME ?? '/root', '.docker');
	const read = (name: string): Buffer => {
		try {
			return readFileSync(join(directory, name));
		} catch (e) {
			throw new BeelineError(
				'READ_FAILED',
				`read ${join(directory, name)}: ${(e as Error).message}: set DOCKER_CERT_PATH`,
				{
					cause: e,
				},
			);
		}
	};
	return { place, host, port, tls: { ca: read('ca.pem'), cert: read('cert.pem'), key: read('key.pem') } };
}

/** An answer that is no success. */
export class EngineError extends BeelineError {
	/** undefined: the engine was not reached, or fell silent. */
	readonly status: number | undefined;

	constructor(message: string, status: number | undefined, cause?: unknown) {
		super(status === undefined ? 'ENGINE_UNREACHABLE' : 'ENGINE_ERROR', message, { cause });
		this.status = status;
	}
}

/** One event of the engine (`GET /events`). */
export interface EngineEvent {
	readonly type: string;
	/** `kill`, `die`, `health_status: healthy`, … */
	readonly action: string;
	readonly id: string;
	readonly attributes: Readonly<Record<string, string>>;
}

export interface Engine {
	readonly place: string;
	/** @param path without version, with query. @throws EngineError */
	get(path: string): Promise<unknown>;
	/** @throws EngineError */
	post(path: string, body: unknown): Promise<unknown>;
	/**
	 * The same for an answer that is a list: item by item as it arrives, so that a list of 20 000 tasks is never in memory as a
	 * whole. Nothing counts that was handed over before it fails.
	 * @param members that are read of each item; the rest, which is most of a task, is passed over. @throws EngineError
	 */
	each(path: string, onItem: (item: unknown) => void, members: readonly string[]): Promise<void>;
	/**
	 * Follows events until closed. `onEnd` is called once, when the stream is lost: what happened meanwhile is not told later.
	 * `onOpen`: from here on events are seen, so what is listed after it misses none.
	 */
	events(
		types: readonly string[],
		on: { onOpen(): void; onEvent(event: EngineEvent): void; onEnd(error: EngineError): void },
	): { close(): void };
	close(): void;
}

/** -1, 0, 1 of `1.41` and `1.9`. */
export function compareVersions(a: string, b: string): number {
	const [x, y] = [a, b].map((v) => v.split('.').map(Number));
	for (let i = 0; i < 2; i++) {
		const d = (x[i] ?? 0) - (y[i] ?? 0);
		if (d !== 0) return Math.sign(d);
	}
	return 0;
}

/**
 * The API version to ask for.
 * @throws EngineError where the engine is older than 1.41
 */
export function chooseVersion(
	place: string,
	version: { readonly ApiVersion?: string; readonly MinAPIVersion?: string },
): string {
	const theirs = version.ApiVersion ?? '0';
	if (compareVersions(theirs, MIN_API) < 0)
		throw new EngineError(
			`the engine at ${place} speaks API ${theirs}: Beeline needs ${MIN_API} (Docker 20.10) or newer`,
			400,
		);
	const wanted = compareVersions(theirs, KNOWN_API) < 0 ? theirs : KNOWN_API;
	const least = version.MinAPIVersion ?? MIN_API;
	return compareVersions(wanted, least) < 0 ? least : wanted;
}

function toEvent(line: string): EngineEvent | undefined {
	let raw: unknown;
	try {
		raw = JSON.parse(line);
	} catch {
		return undefined;
	}
	if (typeof raw !== 'object' || raw === null) return undefined;
	const e = raw as { Type?: unknown; Action?: unknown; Actor?: { ID?: unknown; Attributes?: Record<string, string> } };
	if (typeof e.Type !== 'string' || typeof e.Action !== 'string') return undefined;
	return {
		type: e.Type,
		action: e.Action,
		id: typeof e.Actor?.ID === 'string' ? e.Actor.ID : '',
		attributes: e.Actor?.Attributes ?? {},
	};
}

const [OPEN_LIST, CLOSE_LIST, OPEN, CLOSE, QUOTE, BACKSLASH] = [0x5b, 0x5d, 0x7b, 0x7d, 0x22, 0x5c];
const [COMMA, COLON] = [0x2c, 0x3a];

/**
 * Cuts a JSON list of objects into its items, byte by byte: structure is ASCII, and no byte of a longer UTF-8 sequence is.
 * `null` is an empty list, as Go writes one.
 * @param members of each item that are read; all where nothing is said
 */
export function createItems(
	onItem: (item: unknown) => void,
	members?: readonly string[],
): { write(chunk: Uint8Array): void; end(): void } {
	const wanted = new Set(members);
	/** Most names are told from the wanted ones by this alone, without making a text of them. */
	const likely = new Set((members ?? []).map((m) => (m.length << 8) | m.charCodeAt(0)));
	let depth = 0;
	let inString = false;
	let escaped = false;
	let opened = false;
	let whole = false;
	let head = '';
	let kept: Buffer[] = [];
	/** Bytes of the item that are in `kept`. */
	let before = 0;
	/** Of the item's members, where each name and value begins and ends, counted from the item's first byte. */
	let marks: number[] = [];
	let nameAt = -1;
	let nameEnd = -1;
	let valueAt = -1;
	const mark = (end: number) => {
		if (valueAt >= 0) marks.push(nameAt, nameEnd, valueAt, end);
		nameAt = -1;
		valueAt = -1;
	};
	const hand = (item: Buffer) => {
		if (members === undefined) return onItem(JSON.parse(item.toString('utf8')));
		let text = '';
		for (let m = 0; m < marks.length; m += 4) {
			const from = marks[m] + 1;
			const to = marks[m + 1];
			if (!likely.has(((to - from) << 8) | item[from]) || !wanted.has(item.toString('latin1', from, to))) continue;
			text += `${text === '' ? '{' : ','}${item.toString('utf8', from - 1, to + 1)}:${item.toString('utf8', marks[m + 2], marks[m + 3])}`;
		}
		onItem(text === '' ? {} : JSON.parse(`${text}}`));
	};
	return {
		write(chunk) {
			const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
			let from = depth > 1 ? 0 : -1;
			const { length } = bytes;
			for (let i = 0; i < length; i++) {
				// Most bytes are in strings.
				while (inString && i < length) {
					const c = bytes[i];
					if (escaped) escaped = false;
					else if (c === BACKSLASH) escaped = true;
					else if (c === QUOTE) {
						inString = false;
						if (depth === 2 && valueAt < 0) nameEnd = before + i - from;
					}
					i++;
				}
				if (i === length) break;
				const c = bytes[i];
				if (c === QUOTE) {
					inString = true;
					if (depth === 2 && valueAt < 0) nameAt = before + i - from;
				} else if (c === OPEN || c === OPEN_LIST) {
					if (depth === 0) {
						if (c !== OPEN_LIST || opened) throw new Error('no list');
						opened = true;
					} else if (depth === 1) from = i;
					depth++;
				} else if (c === CLOSE || c === CLOSE_LIST) {
					depth--;
					if (depth === 1) {
						mark(before + i - from);
						kept.push(bytes.subarray(from, i + 1));
						hand(kept.length === 1 ? kept[0] : Buffer.concat(kept));
						kept = [];
						before = 0;
						marks = [];
						from = -1;
					} else if (depth === 0) whole = true;
				} else if (depth === 2) {
					if (c === COMMA) mark(before + i - from);
					else if (c === COLON && valueAt < 0) valueAt = before + i - from + 1;
				} else if (!opened && head.length < 8) head += String.fromCharCode(c);
			}
			// The chunk's memory is the socket's again after this.
			if (from !== -1) {
				kept.push(Buffer.from(bytes.subarray(from)));
				before += bytes.length - from;
			}
		},
		end() {
			if (!whole && head.trim() !== 'null') throw new Error('the list is not whole');
		},
	};
}

/** Opens no connection by itself; each request does, so an engine that restarts is met again by the next one. */
export function createEngine(host: EngineHost, answerMs = ANSWER_MS): Engine {
	const open = new Set<ClientRequest>();
	let version: Promise<string> | undefined;
	let closed = false;

	function ask(
		path: string,
		timeoutMs: number,
		body?: string,
	): { request: ClientRequest; answer: Promise<IncomingMessage> } {
		const options: RequestOptions = {
			method: body === undefined ? 'GET' : 'POST',
			path,
			headers: {
				host: 'docker',
				accept: 'application/json',
				...(body === undefined
					? {}
					: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
			},
			agent: false,
			...(host.socketPath === undefined ? { host: host.host, port: host.port } : { socketPath: host.socketPath }),
		};
		const request =
			host.tls === undefined
				? httpRequest(options)
				: httpsRequest({ ...options, ...host.tls, rejectUnauthorized: true });
		open.add(request);
		request.once('close', () => open.delete(request));
		const answer = new Promise<IncomingMessage>((resolve, reject) => {
			const failed = (e: Error) =>
				reject(
					new EngineError(`no answer from the engine at ${host.place}: ${e.message}: is Docker running?`, undefined, e),
				);
			const timer = setTimeout(() => request.destroy(new Error(`silent for ${timeoutMs / 1000} s`)), timeoutMs);
			request.once('response', (m) => {
				clearTimeout(timer);
				resolve(m);
			});
			// Stays: what breaks later is told by the answer's own end.
			request.on('error', (e) => {
				clearTimeout(timer);
				failed(e);
			});
		});
		request.end(body);
		return { request, answer };
	}

	async function getRaw(
		path: string,
		onItem?: (item: unknown) => void,
		members?: readonly string[],
		sent?: string,
	): Promise<unknown> {
		const verb = sent === undefined ? 'GET' : 'POST';
		if (closed) throw new EngineError('the engine client is closed', undefined);
		const { request, answer } = ask(path, answerMs, sent);
		const message = await answer;
		const timer = setTimeout(() => request.destroy(new Error(`silent for ${answerMs / 1000} s`)), answerMs);
		const parts: Buffer[] = [];
		let size = 0;
		const items = onItem !== undefined && message.statusCode === 200 ? createItems(onItem, members) : undefined;
		try {
			for await (const part of message) {
				size += (part as Buffer).length;
				if (size > MAX_ANSWER_BYTES) throw new Error(`more than ${MAX_ANSWER_BYTES >> 20} MB`);
				if (items === undefined) parts.push(part as Buffer);
				else items.write(part as Buffer);
			}
			items?.end();
		} catch (e) {
			request.destroy();
			throw new EngineError(`${verb} ${path} of ${host.place} broke off: ${(e as Error).message}`, undefined, e);
		} finally {
			clearTimeout(timer);
		}
		if (items !== undefined) return undefined;
		const text = Buffer.concat(parts).toString('utf8');
		const status = message.statusCode ?? 0;
		let body: unknown;
		try {
			body = text === '' ? undefined : JSON.parse(text);
		} catch (e) {
			throw new EngineError(`${verb} ${path} of ${host.place}: ${status}, and no JSON`, status, e);
		}
		if (status >= 200 && status < 300) return body;
		const said = (body as { message?: unknown } | undefined)?.message;
		throw new EngineError(
			`${verb} ${path} of ${host.place}: ${status} ${typeof said === 'string' ? said : message.statusMessage}`,
			status,
		);
	}

	async function versioned(path: string): Promise<string> {
		version ??= getRaw('/version').then((v) => chooseVersion(host.place, (v ?? {}) as { ApiVersion?: string }));
		try {
			return `/v${await version}${path}`;
		} catch (e) {
			version = undefined;
			throw e;
		}
	}

	async function again<T>(ask: () => Promise<T>): Promise<T> {
		try {
			return await ask();
		} catch (e) {
			// It may come back as another version.
			if (e instanceof EngineError && (e.status === undefined || e.status === 400)) version = undefined;
			throw e;
		}
	}

	return {
		place: host.place,
		get: (path) => again(async () => getRaw(await versioned(path))),
		post: (path, body) => again(async () => getRaw(await versioned(path), undefined, undefined, JSON.stringify(body))),
		each: (path, onItem, members) => again(async () => void (await getRaw(await versioned(path), onItem, members))),
		events(types, on) {
			let request: ClientRequest | undefined;
			let ended = false;
			const end = (e: EngineError) => {
				if (ended) return;
				ended = true;
				version = undefined;
				request?.destroy();
				on.onEnd(e);
			};
			void (async () => {
				try {
					const path = await versioned(`/events?filters=${encodeURIComponent(JSON.stringify({ type: types }))}`);
					if (ended) return;
					const asked = ask(path, answerMs);
					request = asked.request;
					const message = await asked.answer;
					if (message.statusCode !== 200) {
						message.resume();
						throw new EngineError(`GET ${path} of ${host.place}: ${message.statusCode}`, message.statusCode);
					}
					if (!ended) on.onOpen();
					let rest = '';
					message.setEncoding('utf8');
					for await (const part of message) {
						const lines = (rest + part).split('\n');
						rest = lines.pop() as string;
						for (const line of lines) {
							const event = line.trim() === '' ? undefined : toEvent(line);
							if (event !== undefined && !ended) on.onEvent(event);
						}
					}
					throw new EngineError(`the event stream of ${host.place} has ended: the engine restarts?`, undefined);
				} catch (e) {
					end(
						e instanceof EngineError
							? e
							: new EngineError(`the event stream of ${host.place} broke: ${(e as Error).message}`, undefined, e),
					);
				}
			})();
			return {
				close() {
					ended = true;
					request?.destroy();
				},
			};
		},
		close() {
			closed = true;
			for (const r of open) r.destroy();
		},
	};
}
