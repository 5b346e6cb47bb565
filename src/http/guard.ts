/** Who may do what: DESIGN 7.3. Unix socket: all. Loopback: reading. Anything else: with the token. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import type { Context, MiddlewareHandler } from 'hono';
import { problem } from './problem.js';

/** Where a request came in. */
export type Peer =
	| { readonly kind: 'unix' }
	| { readonly kind: 'tcp'; readonly local: string; readonly remote: string };

/** What @hono/node-server hands over, or, in tests, the peer itself. */
export interface Env {
	Bindings: { incoming?: IncomingMessage; peer?: Peer };
}

export function peerOf(c: Context<Env>): Peer {
	if (c.env?.peer !== undefined) return c.env.peer;
	const socket = c.env?.incoming?.socket;
	if (socket === undefined) return { kind: 'tcp', local: '', remote: '' };
	// A unix socket has no addresses; a TCP socket that is already closed has none either, and is answered to nobody.
	if (socket.localAddress === undefined && socket.remoteAddress === undefined && !socket.destroyed)
		return { kind: 'unix' };
	return { kind: 'tcp', local: socket.localAddress ?? '', remote: socket.remoteAddress ?? '' };
}

export function isLoopback(address: string): boolean {
	const a = address.startsWith('::ffff:') ? address.slice(7) : address;
	return a === '::1' || /^127\.\d+\.\d+\.\d+$/.test(a);
}

/**
 * A page in the operator's browser can reach loopback: by a name that it rebinds to 127.0.0.1 (caught by the Host header,
 * which then carries that name) or by a cross-site request (caught by Origin and Sec-Fetch-Site).
 */
function fromForeignPage(c: Context): string | undefined {
	const host = c.req.header('host') ?? '';
	const name = host.replace(/:\d+$/, '').toLowerCase();
	const literal = /^\[[0-9a-f:.]+\]$/.test(name) || /^\d+\.\d+\.\d+\.\d+$/.test(name);
	if (!literal && name !== 'localhost') {
		return `the Host header says ${JSON.stringify(host.slice(0, 80))}: dial localhost or an address, or send the token`;
	}
	const site = c.req.header('sec-fetch-site');
	if (site !== undefined && site !== 'same-origin' && site !== 'none')
		return `the request comes from another site (${site})`;
	const origin = c.req.header('origin');
	if (origin !== undefined && origin !== `http://${host}`)
		return `the request comes from a page of ${origin.slice(0, 80)}`;
	return undefined;
}

/** The token, read again when its file changes. */
export interface TokenSource {
	/** undefined: no token file is configured. */
	current(): { readonly token: string } | { readonly error: string } | undefined;
}

/** @param file path of the token file; its first line is the token. */
export function tokenFile(file: string | undefined): TokenSource {
	if (file === undefined) return { current: () => undefined };
	let stamp = '';
	let token = '';
	return {
		current() {
			try {
				const s = statSync(file);
				const now = `${s.ino}:${s.size}:${s.mtimeMs}:${s.ctimeMs}`;
				if (now !== stamp) {
					token = readFileSync(file, 'utf8').split('\n', 1)[0]!.trim();
					stamp = now;
				}
				return token === '' ? { error: `token file ${file} is empty: write a token on its first line` } : { token };
			} catch (e) {
				return { error: `token file ${file} cannot be read: ${(e as Error).message}` };
			}
		},
	};
}

/** Compares in a time that does not depend on where the texts differ, nor on their lengths. */
function sameSecret(a: string, b: string): boolean {
	const digest = (s: string) => createHash('sha256').update(s).digest();
	return timingSafeEqual(digest(a), digest(b));
}

const OPEN = new Set(['/healthz', '/readyz']);

export function guard(tokens: TokenSource): MiddlewareHandler<Env> {
	return async (c, next) => {
		const peer = peerOf(c);
		if (peer.kind === 'unix') return next();
		const changing = !['GET', 'HEAD', 'OPTIONS'].includes(c.req.method);
		if (OPEN.has(c.req.path) && !changing) return next();
		const given = /^Bearer +(\S+)$/i.exec(c.req.header('authorization') ?? '')?.[1];
		if (given === undefined && !changing && isLoopback(peer.local) && isLoopback(peer.remote)) {
			const foreign = fromForeignPage(c);
			if (foreign === undefined) return next();
			return problem(c, { status: 403, code: 'FOREIGN_PAGE', detail: foreign });
		}
		const secret = tokens.current();
		if (secret === undefined) {
			return problem(c, {
				status: 403,
				code: 'NO_TOKEN_FILE',
				detail:
					'this agent has no http.tokenFile, so nothing can be changed over TCP: use the unix socket, or configure one',
			});
		}
		if ('error' in secret) return problem(c, { status: 403, code: 'NO_TOKEN', detail: secret.error });
		if (given === undefined || !sameSecret(given, secret.token)) {
			return problem(c, {
				status: 401,
				code: 'UNAUTHORIZED',
				detail:
					given === undefined
						? 'send Authorization: Bearer and the token of http.tokenFile'
						: 'the token is not that of http.tokenFile',
				headers: { 'www-authenticate': 'Bearer realm="beeline"' },
			});
		}
		return next();
	};
}
