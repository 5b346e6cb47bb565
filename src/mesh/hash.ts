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
