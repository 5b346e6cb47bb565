/**
 * How two nodes agree on keys for ESP, from a secret that all nodes have. Pure: bytes in, bytes out.
 * docs/decisions/0035-encryption.md says why it is so.
 *
 *	the node with the lower address                          the other
 *	   │                          ask              ◄──────────  has no keys, or old ones, and wants some
 *	   │  draws a key pair
 *	   ├── offer a ─────────────────────────────────────────►   draws a key pair, accepts under the new key
 *	   │  accepts and sends under the new key  ◄── answer a b ──┤
 *	   ├── confirm a b ─────────────────────────────────────►   sends under the new key
 *	   │  forgets the old one                  ◄──── done a b ──┤
 *
 * A message is 144 bytes: magic 4, type 1, zero 3, addresses of sender and receiver 4 each, a 32, b 32, zero 32, and HMAC-SHA256
 * over all before it. Nothing in it is secret.
 */
import {
	createHash,
	createHmac,
	createPrivateKey,
	createPublicKey,
	diffieHellman,
	generateKeyPairSync,
	hkdfSync,
	type KeyObject,
	timingSafeEqual,
} from 'node:crypto';

export const MESSAGE_TYPES = ['ask', 'offer', 'answer', 'confirm', 'done'] as const;
export type MessageType = (typeof MESSAGE_TYPES)[number];

export interface Message {
	readonly type: MessageType;
	/** Addresses of the nodes, IPv4. */
	readonly from: string;
	readonly to: string;
	/** Public keys of the offering and of the answering node; 32 bytes, zero where there is none yet. */
	readonly a: Buffer;
	readonly b: Buffer;
}

/** Of one run of the handshake: drawn for it, used for it, thrown away. */
export interface KeyPair {
	readonly publicKey: Buffer;
	readonly privateKey: KeyObject;
}

/** One direction. */
export interface EspKey {
	readonly spi: number;
	/** For rfc4106(gcm(aes)): AES-256's key and the four bytes of salt. */
	readonly key: Buffer;
}

const MAGIC = Buffer.from('BLE1');
const BODY = 112;
export const MESSAGE_BYTES = BODY + 32;
export const NO_KEY = Buffer.alloc(32);
/** Least bytes of the secret. */
export const MIN_SECRET_BYTES = 32;
/** 0 to 255 are reserved (RFC 4303 section 2.1). */
const FIRST_SPI = 256;

const octets = (address: string): Buffer => Buffer.from(address.split('.').map(Number));
const text = (b: Buffer): string => [...b].join('.');

/** What signs messages: not the secret itself, so that no key of one use is a key of another. */
export function messageKey(secret: Uint8Array): Buffer {
	return Buffer.from(hkdfSync('sha256', secret, Buffer.alloc(0), 'beeline messages 1', 32));
}

export function encodeMessage(m: Message, key: Uint8Array): Buffer {
	const out = Buffer.alloc(MESSAGE_BYTES);
	MAGIC.copy(out, 0);
	out[4] = MESSAGE_TYPES.indexOf(m.type);
	octets(m.from).copy(out, 8);
	octets(m.to).copy(out, 12);
	m.a.copy(out, 16);
	m.b.copy(out, 48);
	createHmac('sha256', key).update(out.subarray(0, BODY)).digest().copy(out, BODY);
	return out;
}

/** Whether it has the form of a message, whoever signed it. */
export function isMessage(b: Buffer): boolean {
	return b.length === MESSAGE_BYTES && b.subarray(0, 4).equals(MAGIC);
}

/** undefined: it is something else, or not by somebody who has the secret. */
export function decodeMessage(b: Buffer, key: Uint8Array): Message | undefined {
	if (!isMessage(b)) return undefined;
	const mac = createHmac('sha256', key).update(b.subarray(0, BODY)).digest();
	if (!timingSafeEqual(mac, b.subarray(BODY))) return undefined;
	const type = MESSAGE_TYPES[b[4]];
	if (type === undefined) return undefined;
	return {
		type,
		from: text(b.subarray(8, 12)),
		to: text(b.subarray(12, 16)),
		a: Buffer.from(b.subarray(16, 48)),
		b: Buffer.from(b.subarray(48, 80)),
	};
}

/** X25519 (RFC 7748). */
export function newKeyPair(): KeyPair {
	const { publicKey, privateKey } = generateKeyPairSync('x25519');
	return { privateKey, publicKey: publicKey.export({ type: 'spki', format: 'der' }).subarray(-32) };
}

/** SPKI of X25519 (RFC 8410), before the 32 bytes of the key. */
const SPKI = Buffer.from('302a300506032b656e032100', 'hex');
const PKCS8 = Buffer.from('302e020100300506032b656e04220420', 'hex');

/** For tests that want the same key again. */
export function keyPairOf(seed: Uint8Array): KeyPair {
	const privateKey = createPrivateKey({
		key: Buffer.concat([PKCS8, createHash('sha256').update(seed).digest()]),
		format: 'der',
		type: 'pkcs8',
	});
	const publicKey = createPublicKey(privateKey).export({ type: 'spki', format: 'der' }).subarray(-32);
	return { privateKey, publicKey };
}

export interface Agreement {
	readonly secret: Uint8Array;
	readonly mine: KeyPair;
	readonly theirs: Buffer;
	/** As in the messages. */
	readonly a: Buffer;
	readonly b: Buffer;
}

/**
 * Keys of both directions. They are as fresh as the fresher of the two key pairs: whatever an attacker replays, a node that
 * draws a pair never sends under a key that was in use before.
 * @param from sends under it
 * @throws Error where the other key is no point of the curve that yields a secret
 */
export function deriveKey(g: Agreement, from: string, to: string): EspKey {
	const publicKey = createPublicKey({ key: Buffer.concat([SPKI, g.theirs]), format: 'der', type: 'spki' });
	const shared = diffieHellman({ privateKey: g.mine.privateKey, publicKey });
	const info = Buffer.concat([Buffer.from('beeline esp 1'), octets(from), octets(to), g.a, g.b]);
	const bytes = Buffer.from(hkdfSync('sha256', shared, g.secret, info, 40));
	return { spi: FIRST_SPI + (bytes.readUInt32BE(36) % (2 ** 32 - FIRST_SPI)), key: bytes.subarray(0, 36) };
}

/** Whether a node makes the offers of a pair. */
export function offers(self: string, peer: string): boolean {
	return Buffer.compare(octets(self), octets(peer)) < 0;
}
