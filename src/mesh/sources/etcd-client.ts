/**
 * etcd v3 through its own JSON gateway (`/v3/…`, etcd 3.4 and later), by node:http: the five calls that a membership needs
 * (docs/decisions/0014). Keys and values are UTF-8 text here; base64 and the gateway's numbers in quotes stay in this file.
 */
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { createSecureContext, type SecureContextOptions } from 'node:tls';
import { BeelineError, codeOf, sentence } from '../../errors.js';
import { readText } from './document.js';

export interface EtcdOptions {
	/** `http://10.0.0.1:2379`, `https://etcd1:2379`; tried in this order. */
	readonly endpoints: readonly string[];
	/** PEM files. They are read anew for new connections after a failure, so that renewed certificates are taken up. */
	readonly ca?: string;
	readonly cert?: string;
	readonly key?: string;
	readonly user?: string;
	/** Its first line is the password. */
	readonly passwordFile?: string;
	/** Of one request to one endpoint, between two signs of life, ms. */
	readonly timeoutMs?: number;
}

export interface KeyValue {
	readonly key: string;
	readonly value: string;
	/** Revision that the key came with; a key that was deleted and made again has a new one. */
	readonly create: number;
	/** Revision of its last change. */
	readonly mod: number;
}

export interface RangeQuery {
	readonly key: string;
	/** Exclusive; undefined: this key alone. */
	readonly end?: string;
	readonly limit?: number;
	/** As of this revision; undefined: now, agreed by the majority. */
	readonly revision?: number;
	readonly keysOnly?: boolean;
}

export interface Range {
	readonly revision: number;
	readonly cluster: string;
	readonly kvs: readonly KeyValue[];
	/** There are more than `limit`. */
	readonly more: boolean;
}

export type Compare =
	/** `mod` 0: there is no such key. */
	| { readonly key: string; readonly mod: number }
	| { readonly key: string; readonly exists: true }
	/** No key from `key` to `end` has changed after the revision (deleted ones are not seen). */
	| { readonly key: string; readonly end: string; readonly notAfter: number };

export type Op =
	| { readonly put: string; readonly value: string }
	| { readonly delete: string }
	| { readonly get: string; readonly end?: string; readonly revision?: number };

export interface TxnResult {
	/** Whether all comparisons held and `success` was done; else `failure`. */
	readonly ok: boolean;
	readonly revision: number;
	/** Of each `get` that was done, in their order. */
	readonly gets: readonly (readonly KeyValue[])[];
}

export interface Watch {
	/** Where it was opened. */
	readonly endpoint: string;
	close(): void;
}

export interface Etcd {
	/** Endpoints for a sentence. */
	readonly place: string;
	/** The one that is spoken to now. */
	readonly endpoint: string;
	/** What works, but not as it was configured. */
	problems(): readonly string[];
	/** @throws BeelineError ETCD_AWAY, ETCD_TLS, ETCD_AUTH, ETCD_ANSWER, ETCD_COMPACTED */
	range(query: RangeQuery): Promise<Range>;
	/** @throws BeelineError as range(); ETCD_NO_ANSWER where it may have been done all the same */
	txn(compare: readonly Compare[], success: readonly Op[], failure?: readonly Op[]): Promise<TxnResult>;
	/** Events from `from` (a revision) on. `onEvent` says that something changed and no more; after `onEnd` nothing follows. */
	watch(
		query: { readonly key: string; readonly end: string; readonly from: number },
		on: { onOpen(): void; onEvent(): void; onEnd(error: BeelineError): void },
	): Watch;
	close(): void;
}

/** The end of the range of all keys that begin with `prefix`. */
export function endOf(prefix: string): string {
	return prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
}

const TIMEOUT_MS = 5000;
/** gRPC status codes (google.rpc.Code) that etcd answers with. */
const PERMISSION_DENIED = 7;
const RESOURCE_EXHAUSTED = 8;
const FAILED_PRECONDITION = 9;
const OUT_OF_RANGE = 11;
const UNAVAILABLE = 14;
const UNAUTHENTICATED = 16;

const b64 = (text: string) => Buffer.from(text, 'utf8').toString('base64');
const text = (b: unknown) => (typeof b === 'string' ? Buffer.from(b, 'base64').toString('utf8') : '');
/** The gateway leaves zeros out and writes 64-bit numbers as texts. */
const number = (x: unknown) => (x === undefined ? 0 : Number(x));

type Json = Readonly<Record<string, unknown>>;
const isJson = (x: unknown): x is Json => typeof x === 'object' && x !== null && !Array.isArray(x);
const child = (x: unknown, key: string): Json | undefined => {
	const v = isJson(x) ? x[key] : undefined;
	return isJson(v) ? v : undefined;
};

/** Whatever etcd itself refused. */
class Refused extends Error {
	constructor(
		readonly grpc: number,
		message: string,
	) {
		super(message);
	}
}

/** Failed before the request was on its way: nothing can have been done. */
const NOT_SENT = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'EADDRNOTAVAIL']);
const isTls = (code: string) =>
	/^(ERR_SSL_|ERR_TLS_|ERR_OSSL_|CERT_|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_|EPROTO|HOSTNAME_MISMATCH)/.test(code);

function kvOf(x: unknown): KeyValue {
	const kv = x as Json;
	return { key: text(kv.key), value: text(kv.value), create: number(kv.create_revision), mod: number(kv.mod_revision) };
}
const kvsOf = (x: unknown): KeyValue[] => (Array.isArray(x) ? x.map(kvOf) : []);

function rangeBody(q: RangeQuery): Json {
	return {
		key: b64(q.key),
		...(q.end === undefined ? {} : { range_end: b64(q.end) }),
		...(q.limit === undefined ? {} : { limit: String(q.limit) }),
		...(q.revision === undefined ? {} : { revision: String(q.revision) }),
		...(q.keysOnly === true ? { keys_only: true } : {}),
	};
}

function compareBody(c: Compare): Json {
	const key = b64(c.key);
	if ('notAfter' in c)
		return { key, range_end: b64(c.end), target: 'MOD', result: 'LESS', mod_revision: String(c.notAfter + 1) };
	if ('exists' in c) return { key, target: 'VERSION', result: 'GREATER', version: '0' };
	return { key, target: 'MOD', result: 'EQUAL', mod_revision: String(c.mod) };
}

function opBody(o: Op): Json {
	if ('put' in o) return { request_put: { key: b64(o.put), value: b64(o.value) } };
	if ('delete' in o) return { request_delete_range: { key: b64(o.delete) } };
	return {
		request_range: rangeBody({
			key: o.get,
			...(o.end === undefined ? {} : { end: o.end }),
			...(o.revision === undefined ? {} : { revision: o.revision }),
		}),
	};
}

/** @throws BeelineError READ_FAILED, ETCD_TLS where a file of `o` is not what it should be */
export function createEtcd(o: EtcdOptions): Etcd {
	const timeoutMs = o.timeoutMs ?? TIMEOUT_MS;
	const place = o.endpoints.join(', ');
	const urls = o.endpoints.map((e) => new URL(e));
	let at = 0;
	let token: string | undefined;
	/** One attempt for all that wait for it. */
	let authenticating: Promise<void> | undefined;
	let authIsOff = false;
	let closed = false;
	let agents: { http: HttpAgent; https: HttpsAgent } | undefined;
	const watches = new Set<() => void>();
	/** Those that are etcd for certain. */
	const answered = new Set<URL>();

	function tlsOptions(): SecureContextOptions {
		const read = (file: string | undefined, what: string) => (file === undefined ? undefined : readText(file, what));
		const ca = read(o.ca, 'membership.ca');
		const cert = read(o.cert, 'membership.cert');
		const key = read(o.key, 'membership.key');
		return {
			...(ca === undefined ? {} : { ca }),
			...(cert === undefined ? {} : { cert }),
			...(key === undefined ? {} : { key }),
		};
	}
	function checked(options: SecureContextOptions): SecureContextOptions {
		for (const [name, part] of [
			['ca', { ca: options.ca }],
			['cert', { cert: options.cert }],
			['key', { key: options.key }],
			['cert and membership.key', { cert: options.cert, key: options.key }],
		] as const) {
			try {
				createSecureContext(part);
			} catch (e) {
				const files =
					name === 'ca' ? o.ca : name === 'cert' ? o.cert : name === 'key' ? o.key : `${o.cert} and ${o.key}`;
				const what = /KEY_VALUES_MISMATCH/.test(codeOf(e))
					? 'they do not belong together'
					: `not PEM that can be read (${(e as { reason?: string }).reason ?? sentence(e)})`;
				throw new BeelineError('ETCD_TLS', `membership.${name} ${files}: ${what}`, { cause: e });
			}
		}
		// A text without any certificate in it is accepted by OpenSSL, and trusts nobody.
		if (o.ca !== undefined && !/-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----/.test(String(options.ca)))
			throw new BeelineError('ETCD_TLS', `membership.ca ${o.ca}: there is no PEM certificate in it`);
		return options;
	}
	function agentsNow(): { http: HttpAgent; https: HttpsAgent } {
		agents ??= {
			http: new HttpAgent({ keepAlive: true, maxSockets: 8 }),
			https: new HttpsAgent({ keepAlive: true, maxSockets: 8, ...checked(tlsOptions()) }),
		};
		return agents;
	}
	/** New requests get new connections; those on their way are not disturbed. */
	function dropConnections(): void {
		for (const a of agents === undefined ? [] : [agents.http, agents.https]) {
			(a as { keepAlive?: boolean }).keepAlive = false;
			for (const list of Object.values(a.freeSockets)) for (const socket of list ?? []) socket.destroy();
		}
		agents = undefined;
	}
	if (urls.some((u) => u.protocol === 'https:')) agentsNow();

	/** What to say about one endpoint's failure. */
	function why(e: unknown, url: URL): string {
		const code = codeOf(e);
		const said = sentence(e);
		switch (code) {
			case 'ECONNREFUSED':
				return 'connection refused';
			case 'ENOTFOUND':
			case 'EAI_AGAIN':
				return 'its name is not known';
			case 'EHOSTUNREACH':
			case 'ENETUNREACH':
				return 'no route to it';
			case 'ETIMEDOUT':
				return `no answer in ${timeoutMs / 1000} s`;
			case 'ECONNRESET':
				// A server without TLS resets it sooner or later, which Node.js tells apart: one sentence, to be said once.
				if (/before secure TLS/.test(said) || (url.protocol === 'https:' && !answered.has(url)))
					return 'it closed the connection: if it speaks no TLS, write http://';
				return answered.has(url)
					? 'it closed the connection'
					: 'it closed the connection: if it speaks TLS, write https://';
			case 'CERT_HAS_EXPIRED':
				return 'its certificate has expired';
			case 'ERR_TLS_CERT_ALTNAME_INVALID':
			case 'HOSTNAME_MISMATCH':
				return 'its certificate is for other names than this one';
			case 'EPROTO':
			case 'ERR_SSL_WRONG_VERSION_NUMBER':
			case 'ERR_SSL_PACKET_LENGTH_TOO_LONG':
				return 'it speaks no TLS: write http://';
		}
		if (/^(SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_)/.test(code))
			return o.ca === undefined
				? 'its certificate is signed by nobody that this machine knows: set membership.ca'
				: `its certificate is not signed by an authority in ${o.ca}`;
		if (/^ERR_SSL_.*ALERT/.test(code))
			return o.cert === undefined
				? 'it wants a client certificate: set membership.cert and membership.key'
				: `it refuses the certificate in ${o.cert} (${(e as { reason?: string }).reason ?? said})`;
		return said.split('\n')[0] as string;
	}

	/** One request to one endpoint, answered by headers. */
	function open(url: URL, path: string, body: Json, own: boolean): Promise<IncomingMessage> {
		return new Promise((resolve, reject) => {
			const secure = url.protocol === 'https:';
			const a = agentsNow();
			const payload = JSON.stringify(body);
			const options: RequestOptions = {
				method: 'POST',
				host: url.hostname.replace(/^\[|\]$/g, ''),
				port: url.port || (secure ? 443 : 80),
				path: `${url.pathname.replace(/\/$/, '')}/v3/${path}`,
				headers: {
					'content-type': 'application/json',
					'content-length': Buffer.byteLength(payload),
					...(token === undefined ? {} : { authorization: token }),
				},
				timeout: timeoutMs,
				// A watch has a connection of its own: it may be ended without ending another's request.
				agent: own
					? secure
						? new HttpsAgent({ ...checked(tlsOptions()) })
						: new HttpAgent()
					: secure
						? a.https
						: a.http,
			};
			const req = (secure ? httpsRequest : httpRequest)(options, resolve);
			req.on('timeout', () => req.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })));
			req.on('error', reject);
			req.on('socket', (s) => s.setKeepAlive(true, 5000));
			req.end(payload);
		});
	}

	function refusal(status: number, body: string, url: URL): Error {
		let said: unknown;
		try {
			said = JSON.parse(body);
		} catch {
			said = undefined;
		}
		// A refused stream says `{ error: { grpc_code, message } }`, a refused call `{ error, code }`.
		const inner = child(said, 'error') ?? said;
		if (isJson(inner) && (typeof inner.message === 'string' || typeof inner.error === 'string'))
			return new Refused(number(inner.code ?? inner.grpc_code), String(inner.message ?? inner.error));
		if (status === 404)
			return new BeelineError(
				'ETCD_ANSWER',
				`etcd ${url.origin} has no /v3 gateway: it must be etcd 3.4 or later, with enable-grpc-gateway: true`,
			);
		if (status === 400 && /HTTPS/i.test(body))
			return new BeelineError('ETCD_TLS', `etcd ${url.origin}: it speaks TLS: write https://`);
		return new BeelineError(
			'ETCD_ANSWER',
			`${url.origin} answered ${status} and is no etcd: ${body.trim().slice(0, 80)}`,
		);
	}

	async function once(url: URL, path: string, body: Json): Promise<Json> {
		const res = await open(url, path, body, false);
		const chunks: Buffer[] = [];
		for await (const c of res) chunks.push(c as Buffer);
		const said = Buffer.concat(chunks).toString('utf8');
		if (res.statusCode !== 200) throw refusal(res.statusCode ?? 0, said, url);
		answered.add(url);
		try {
			return JSON.parse(said) as Json;
		} catch {
			throw new BeelineError('ETCD_ANSWER', `${url.origin} answered something other than JSON: is it etcd?`);
		}
	}

	const staleToken = (e: unknown) =>
		e instanceof Refused && (e.grpc === UNAUTHENTICATED || /auth store is old|invalid auth token/.test(e.message));

	/** etcd's refusal as a sentence for the operator. */
	function explain(e: unknown, url: URL): unknown {
		if (!(e instanceof Refused)) return e;
		const who = `etcd ${url.origin}`;
		const auth = (what: string) => new BeelineError('ETCD_AUTH', `${who} ${what}`);
		if (/user name is empty|user name not found/.test(e.message))
			return auth('wants a user: set membership.user and membership.passwordFile');
		if (/authentication failed/.test(e.message))
			return auth(`refuses the password of user ${o.user}: look at membership.user and ${o.passwordFile}`);
		if (e.grpc === PERMISSION_DENIED || /permission denied/.test(e.message))
			return auth(
				`does not let user ${o.user} do this: etcdctl role grant-permission ROLE --prefix=true readwrite the prefix of membership.prefix, with a / behind it`,
			);
		if (e.grpc === UNAUTHENTICATED) return auth(`refuses the token of user ${o.user}: ${e.message}`);
		if (e.grpc === OUT_OF_RANGE && /compacted/.test(e.message))
			return new BeelineError('ETCD_COMPACTED', `${who}: the revision is compacted`);
		if (e.grpc === RESOURCE_EXHAUSTED && /space/.test(e.message))
			return new BeelineError(
				'ETCD_FULL',
				`${who}: its database is full: compact and defragment it, then etcdctl alarm disarm`,
			);
		// The gateway is a client of the member's own port, with the member's own certificate.
		if (e.grpc === UNAVAILABLE && o.cert !== undefined && /^(connection|transport|all SubConns)/.test(e.message))
			return new BeelineError(
				'ETCD_AWAY',
				`${who}: its gateway cannot reach it: with client-cert-auth etcd's own certificate must be one for clients too (extendedKeyUsage clientAuth)`,
			);
		if (e.grpc === UNAVAILABLE)
			return new BeelineError('ETCD_AWAY', `${who}: ${e.message.replace(/^etcdserver: /, '')}`);
		return new BeelineError('ETCD_ANSWER', `${who}: ${e.message}`);
	}

	async function authenticate(url: URL): Promise<void> {
		if (o.user === undefined || authIsOff || token !== undefined) return;
		authenticating ??= (async () => {
			const password =
				o.passwordFile === undefined
					? ''
					: (readText(o.passwordFile, 'membership.passwordFile').split('\n', 1)[0] ?? '').trim();
			try {
				const got = await once(url, 'auth/authenticate', { name: o.user, password });
				token = String(got.token);
			} catch (e) {
				if (!(e instanceof Refused && e.grpc === FAILED_PRECONDITION && /not enabled/.test(e.message))) throw e;
				authIsOff = true;
			}
		})().finally(() => {
			authenticating = undefined;
		});
		await authenticating;
	}

	/** A request to one endpoint, with a token where one is needed. */
	async function authorized<T>(url: URL, ask: () => Promise<T>): Promise<T> {
		await authenticate(url);
		try {
			return await ask();
		} catch (e) {
			const enabledMeanwhile = authIsOff && e instanceof Refused && /user name is empty/.test(e.message);
			if (o.user === undefined || !(staleToken(e) || enabledMeanwhile)) throw e;
			token = undefined;
			authIsOff = false;
			await authenticate(url);
			return await ask();
		}
	}

	/** Whether another endpoint may do better. */
	const isAway = (e: unknown) =>
		!(e instanceof Refused) && !(e instanceof BeelineError) ? true : e instanceof Refused && e.grpc === UNAVAILABLE;

	/** Tries the endpoints in turn, beginning with the one that answered last. */
	async function call(path: string, body: Json, writes: boolean): Promise<Json> {
		const failed: { url: URL; error: unknown }[] = [];
		let reused = false;
		for (let i = 0; i < urls.length; i++) {
			const url = urls[at] as URL;
			if (closed) throw new BeelineError('CLOSED', 'the connection to etcd is closed');
			try {
				return await authorized(url, () => once(url, path, body));
			} catch (e) {
				const code = codeOf(e);
				// A connection that was kept had been closed by the other end: that says nothing about the endpoint.
				if (code === 'ECONNRESET' && !writes && !reused) {
					reused = true;
					i--;
					dropConnections();
					continue;
				}
				if (!isAway(e) && code !== 'ETCD_TLS' && code !== 'ETCD_ANSWER') throw explain(e, url);
				failed.push({ url, error: e });
				dropConnections();
				at = (at + 1) % urls.length;
				const unsent = NOT_SENT.has(code) || isTls(code) || code === 'ETCD_TLS' || code === 'ETCD_ANSWER';
				if (writes && !unsent)
					throw new BeelineError(
						'ETCD_NO_ANSWER',
						`etcd ${url.origin}: ${why(explain(e, url), url)}: whether the change is written is not known: look, and repeat it if not`,
						{ cause: e },
					);
			}
		}
		const tls = failed.every((f) => isTls(codeOf(f.error)) || codeOf(f.error) === 'ETCD_TLS');
		const same = new Set(failed.map((f) => codeOf(f.error)));
		const code = tls ? 'ETCD_TLS' : same.size === 1 && same.has('ETCD_ANSWER') ? 'ETCD_ANSWER' : 'ETCD_AWAY';
		const [first] = failed;
		if (failed.length === 1 && first?.error instanceof BeelineError) throw first.error;
		const list = failed.map(
			(f) => `${f.url.origin}: ${why(explain(f.error, f.url), f.url).replace(`etcd ${f.url.origin}: `, '')}`,
		);
		throw new BeelineError(
			code,
			failed.length === 1 ? `etcd ${list[0]}` : `no etcd endpoint answers (${list.join('; ')})`,
			{
				cause: first?.error,
			},
		);
	}

	function watch(
		query: { readonly key: string; readonly end: string; readonly from: number },
		on: { onOpen(): void; onEvent(): void; onEnd(error: BeelineError): void },
	): Watch {
		const url = urls[at] as URL;
		let res: IncomingMessage | undefined;
		let ended = false;
		const end = (e: unknown): void => {
			if (ended) return;
			ended = true;
			watches.delete(close);
			res?.destroy();
			const told = explain(e, url);
			on.onEnd(
				told instanceof BeelineError
					? told
					: new BeelineError('ETCD_AWAY', `etcd ${url.origin}: ${why(told, url)}: the watch is lost`, { cause: e }),
			);
		};
		const close = (): void => {
			ended = true;
			watches.delete(close);
			res?.destroy();
		};
		watches.add(close);
		const each = (line: string): void => {
			const said = JSON.parse(line) as Json;
			const result = child(said, 'result');
			if (result === undefined) throw refusal(200, line, url);
			if (result.canceled === true) {
				if (result.compact_revision !== undefined)
					throw new BeelineError('ETCD_COMPACTED', `etcd ${url.origin}: what the watch asked for is compacted`);
				throw new Refused(0, String(result.cancel_reason ?? 'the watch was cancelled'));
			}
			if (result.created === true) on.onOpen();
			if (Array.isArray(result.events) && result.events.length > 0) on.onEvent();
		};
		void (async () => {
			const body = {
				create_request: { key: b64(query.key), range_end: b64(query.end), start_revision: String(query.from) },
			};
			const answer = await authorized(url, async () => {
				const r = await open(url, 'watch', body, true);
				if (r.statusCode === 200) return r;
				const chunks: Buffer[] = [];
				for await (const c of r) chunks.push(c as Buffer);
				throw refusal(r.statusCode ?? 0, Buffer.concat(chunks).toString('utf8'), url);
			});
			res = answer;
			if (ended) {
				answer.destroy();
				return;
			}
			// From here on silence is no sign of anything: the lists, made now and then, find out.
			answer.socket.setTimeout(0);
			answer.setEncoding('utf8');
			let rest = '';
			for await (const chunk of answer) {
				rest += chunk as string;
				for (let nl = rest.indexOf('\n'); nl >= 0; nl = rest.indexOf('\n')) {
					const line = rest.slice(0, nl);
					rest = rest.slice(nl + 1);
					if (line.trim() !== '') each(line);
				}
			}
			throw Object.assign(new Error('closed'), { code: 'ECONNRESET' });
		})().catch(end);
		return { endpoint: url.origin, close };
	}

	return {
		place,
		get endpoint() {
			return (urls[at] as URL).origin;
		},
		problems: () =>
			authIsOff
				? [`etcd's authentication is not enabled, so membership.user ${o.user} is not used: etcdctl auth enable`]
				: [],
		async range(query) {
			const r = await call('kv/range', rangeBody(query), false);
			const header = child(r, 'header');
			if (header === undefined)
				throw new BeelineError('ETCD_ANSWER', `${place} answered something other than a range: is it etcd?`);
			return {
				revision: number(header.revision),
				cluster: String(header.cluster_id),
				kvs: kvsOf(r.kvs),
				more: r.more === true,
			};
		},
		async txn(compare, success, failure = []) {
			const r = await call(
				'kv/txn',
				{ compare: compare.map(compareBody), success: success.map(opBody), failure: failure.map(opBody) },
				[...success, ...failure].some((op) => !('get' in op)),
			);
			const gets = (Array.isArray(r.responses) ? r.responses : []).flatMap((one: unknown) => {
				const range = child(one, 'response_range');
				return range === undefined ? [] : [kvsOf(range.kvs)];
			});
			return { ok: r.succeeded === true, revision: number(child(r, 'header')?.revision), gets };
		},
		watch,
		close() {
			closed = true;
			for (const w of [...watches]) w();
			agents?.http.destroy();
			agents?.https.destroy();
		},
	};
}
