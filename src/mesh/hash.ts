/** Hashes of stable keys: the same on every node and in every version, because tables and MACs follow from them. */

/** 64 bits of a text, as two unsigned halves. */
export interface Hash64 {
	readonly low: number;
	readonly high: number;
}

/** cyrb53's two lanes (public domain, bryc), unmasked: 64 bits, no better than they need to be against accidents. */
export function hash64(text: string, seed = 0): Hash64 {
	let a = 0xdeadbeef ^ seed;
	let b = 0x41c6ce57 ^ seed;
	for (let i = 0; i < text.length; i++) {
		const c = text.charCodeAt(i);
		a = Math.imul(a ^ c, 2654435761);
		b = Math.imul(b ^ c, 1597334677);
	}
	a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
	b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
	return { low: a >>> 0, high: b >>> 0 };
}

export function toBigInt(h: Hash64): bigint {
	return (BigInt(h.high) << 32n) | BigInt(h.low);
}

/** The lower 40 bits, exact as a number. */
export function hash40(h: Hash64): number {
	return (h.high & 255) * 4294967296 + h.low;
}

const HEX = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));

/** `06:` + 40 bits: locally administered, unicast, and unlike Docker's `02:42:`. */
export function macOf(hash: number): string {
	const low = hash >>> 0;
	const high = Math.floor(hash / 4294967296);
	return `06:${HEX[high]}:${HEX[low >>> 24]}:${HEX[(low >>> 16) & 255]}:${HEX[(low >>> 8) & 255]}:${HEX[low & 255]}`;
}

/** The 48 bits of a MAC as a number, -1 where the text is none. */
export function codeOfMac(mac: string): number {
	if (mac.length !== 17) return -1;
	let high = 0;
	let low = 0;
	for (let i = 0; i < 17; i++) {
		const c = mac.charCodeAt(i);
		if (i % 3 === 2) {
			if (c !== 58) return -1;
			continue;
		}
		const digit = c >= 48 && c <= 57 ? c - 48 : c >= 97 && c <= 102 ? c - 87 : -1;
		if (digit < 0) return -1;
		if (i < 6) high = high * 16 + digit;
		else low = low * 16 + digit;
	}
	return high * 4294967296 + low;
}

/** The MAC of `codeOfMac`. */
export function macOfCode(code: number): string {
	const low = code >>> 0;
	const high = Math.floor(code / 4294967296);
	return `${HEX[high >>> 8]}:${HEX[high & 255]}:${HEX[low >>> 24]}:${HEX[(low >>> 16) & 255]}:${HEX[(low >>> 8) & 255]}:${HEX[low & 255]}`;
}

const LOCAL_MAC = 0x06 * 2 ** 40;

/** The code of `macOf(hash)`. */
export function codeOfHash(hash: number): number {
	return LOCAL_MAC + hash;
}
