/**
 * Who speaks on the stream between agents: Swarm's own certificates, or a shared token where those cannot be read
 * (docs/decisions/0012).
 */
import { createHash, createPrivateKey, hkdfSync, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { PeerCertificate, SecureContextOptions, TLSSocket } from 'node:tls';
import { BeelineError, codeOf } from '../errors.js';

/** What TLS needs, and who it makes of this node. */
export interface Credentials {
	readonly kind: 'certificate' | 'token';
	readonly context: SecureContextOptions;
	/** Organisation of the certificate: Swarm's cluster id. */
	readonly cluster: string | undefined;
	readonly psk: Buffer | undefined;
	/** Changes with the contents. */
	readonly stamp: string;
}

const FILES = ['swarm-root-ca.crt', 'swarm-node.crt', 'swarm-node.key'] as const;

/**
 * Swarm writes its own headers (`kek-version`, `raft-dek`) into the key's PEM, which OpenSSL takes for an encryption it
 * does not know.
 * @throws BeelineError AUTOLOCK where the key is encrypted
 */
export function cleanKey(pem: string): string {
	if (/ENCRYPTED/.test(pem))
		throw new BeelineError(
			'AUTOLOCK',
			'Swarm’s key is encrypted (autolock): set membership.tokenFile to the same secret on every node',
		);
	return pem
		.split('\n')
		.filter((line) => !/^[A-Za-z][A-Za-z0-9-]*: /.test(line))
		.join('\n')
		.replace(/(-----BEGIN [^-]+-----)\n\s*\n/, '$1\n');
}

function readFile(path: string): string {
	try {
		return readFileSync(path, 'utf8');
	} catch (e) {
		throw new BeelineError(
			'NO_CERTIFICATE',
			`read ${path}: ${codeOf(e) === 'ENOENT' ? 'it does not exist' : (e as Error).message}: mount Docker’s swarm/certificates, or set membership.tokenFile`,
			{ cause: e },
		);
	}
}

/** Reads Swarm's certificates from `<data root>/swarm/certificates`. @throws BeelineError NO_CERTIFICATE, AUTOLOCK */
export function readCertificates(directory: string): Credentials {
	const [ca, cert, rawKey] = FILES.map((f) => readFile(join(directory, f)));
	const key = cleanKey(rawKey);
	let cluster: string | undefined;
	try {
		const leaf = new X509Certificate(cert);
		cluster = /^O=(.+)$/m.exec(leaf.subject)?.[1];
		if (!leaf.checkPrivateKey(createPrivateKey(key))) throw new Error('the key is another certificate’s');
	} catch (e) {
		throw new BeelineError('NO_CERTIFICATE', `${directory}: ${(e as Error).message}: Swarm renews it, wait`, {
			cause: e,
		});
	}
	return {
		kind: 'certificate',
		context: { ca, cert, key },
		cluster,
		psk: undefined,
		stamp: createHash('sha256').update(ca).update(cert).update(key).digest('hex'),
	};
}

/** @throws BeelineError NO_CERTIFICATE where it cannot be read, INVALID_CONFIG where it is too short to be a secret */
export function readToken(path: string): Credentials {
	const token = readFile(path).trim();
	if (token.length < 32)
		throw new BeelineError('INVALID_CONFIG', `${path}: a token of less than 32 characters: openssl rand -hex 32`, {
			field: 'membership.tokenFile',
		});
	const psk = Buffer.from(hkdfSync('sha256', token, 'beeline', 'membership stream', 32));
	return {
		kind: 'token',
		// Nothing but pre-shared keys, with an ephemeral exchange: TLS 1.3 of Node has no external ones.
		context: {
			ciphers: 'DHE-PSK-AES256-GCM-SHA384:DHE-PSK-CHACHA20-POLY1305',
			minVersion: 'TLSv1.2',
			maxVersion: 'TLSv1.2',
			dhparam: 'auto',
		},
		cluster: undefined,
		psk,
		stamp: createHash('sha256').update(psk).digest('hex'),
	};
}

/** Reads again only what has changed on disk: rotation replaces the files. */
export function createCredentials(tokenFile: string | undefined): { get(certificates: string): Credentials } {
	let seen = '';
	let last: Credentials | undefined;
	return {
		get(directory) {
			const files = tokenFile === undefined ? FILES.map((f) => join(directory, f)) : [tokenFile];
			const stat = files
				.map((f) => {
					try {
						const s = statSync(f);
						return `${f} ${s.ino} ${s.mtimeMs} ${s.size}`;
					} catch {
						return f;
					}
				})
				.join();
			if (last === undefined || stat !== seen) {
				last = tokenFile === undefined ? readCertificates(directory) : readToken(tokenFile);
				seen = stat;
			}
			return last;
		},
	};
}

/** The node that a certificate names, and what it may be. */
export interface Identity {
	readonly nodeId: string;
	readonly role: 'manager' | 'worker';
}

/** @returns a sentence where the certificate is no node's of this cluster */
export function identityOf(
	cert: Pick<PeerCertificate, 'subject'> | undefined,
	cluster: string | undefined,
): Identity | string {
	const subject = cert?.subject as
		| { CN?: string | string[]; OU?: string | string[]; O?: string | string[] }
		| undefined;
	const [cn, ou, o] = [subject?.CN, subject?.OU, subject?.O];
	if (typeof cn !== 'string' || cn === '') return 'its certificate names no node';
	if (o !== cluster) return `its certificate is of another swarm (${String(o)})`;
	if (ou === 'swarm-manager') return { nodeId: cn, role: 'manager' };
	if (ou === 'swarm-worker') return { nodeId: cn, role: 'worker' };
	return `its certificate’s role is ${String(ou)}`;
}

/** A client's check of the server: undefined where it is that manager. */
export function whyNotManager(
	cert: Pick<PeerCertificate, 'subject'>,
	cluster: string | undefined,
	nodeId: string,
): string | undefined {
	const identity = identityOf(cert, cluster);
	if (typeof identity === 'string') return identity;
	if (identity.role !== 'manager') return `it is ${identity.nodeId}, a worker that poses as manager`;
	if (identity.nodeId !== nodeId) return `it is ${identity.nodeId}, and manager ${nodeId} was expected`;
	return undefined;
}

/** Who is on the other end of an accepted connection. A text is a reason to refuse. */
export function clientIdentity(socket: TLSSocket, credentials: Credentials, claimed: string): Identity | string {
	if (credentials.kind === 'token') return claimed === '' ? 'it names no node' : { nodeId: claimed, role: 'worker' };
	if (!socket.authorized) return `its certificate is not valid (${String(socket.authorizationError)})`;
	return identityOf(socket.getPeerCertificate(), credentials.cluster);
}
