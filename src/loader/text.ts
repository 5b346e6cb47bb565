/**
 * Text ⇄ bytes for what layout.gen.ts encodes: addresses and MACs. Hand-written, because 100 000 rows are encoded at a
 * start and a general parser costs microseconds a row.
 */

function bad(what: string, text: string, expected: string): Error {
	return Object.assign(new RangeError(`${what} ${JSON.stringify(text)}: expected ${expected}`), { code: 'BAD_ROW' });
}

const HEX = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));

function nibble(c: number): number {
	if (c >= 48 && c <= 57) return c - 48;
	const l = c | 32;
	return l >= 97 && l <= 102 ? l - 87 : -1;
}

/** Writes `aa:bb:cc:dd:ee:ff` as 6 bytes. @throws RangeError */
export function putMac(text: string, v: DataView, at: number): void {
	if (text.length !== 17) throw bad('MAC', text, 'aa:bb:cc:dd:ee:ff');
	for (let i = 0; i < 6; i++) {
		const high = nibble(text.charCodeAt(i * 3));
		const low = nibble(text.charCodeAt(i * 3 + 1));
		if (high < 0 || low < 0 || (i < 5 && text.charCodeAt(i * 3 + 2) !== 58))
			throw bad('MAC', text, 'aa:bb:cc:dd:ee:ff');
		v.setUint8(at + i, (high << 4) | low);
	}
}

export function getMac(v: DataView, at: number): string {
	let s = HEX[v.getUint8(at)];
	for (let i = 1; i < 6; i++) s += `:${HEX[v.getUint8(at + i)]}`;
	return s;
}

/** IPv4 text from `from` on as a big-endian number; -1 where it is none. */
function parse4(text: string, from: number): number {
	let value = 0;
	let byte = -1;
	let dots = 0;
	for (let i = from; i < text.length; i++) {
		const c = text.charCodeAt(i);
		if (c >= 48 && c <= 57) {
			if (byte === 0) return -1; // 010 is octal to some and decimal to others
			byte = byte < 0 ? c - 48 : byte * 10 + c - 48;
			if (byte > 255) return -1;
		} else if (c === 46 && byte >= 0 && dots < 3) {
			value = value * 256 + byte;
			byte = -1;
			dots++;
		} else return -1;
	}
	return dots === 3 && byte >= 0 ? value * 256 + byte : -1;
}

/** Writes `10.0.0.1` as 4 bytes, network order. @throws RangeError */
export function putIp4(text: string, v: DataView, at: number): void {
	const n = parse4(text, 0);
	if (n < 0) throw bad('address', text, 'IPv4, as 10.0.0.1');
	v.setUint32(at, n);
}

export function getIp4(v: DataView, at: number): string {
	return `${v.getUint8(at)}.${v.getUint8(at + 1)}.${v.getUint8(at + 2)}.${v.getUint8(at + 3)}`;
}

/** Writes an address of either family as 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). @throws RangeError */
export function putIp(text: string, v: DataView, at: number): void {
	const n = parse4(text, 0);
	if (n >= 0) {
		v.setUint32(at, 0);
		v.setUint32(at + 4, 0);
		v.setUint32(at + 8, 0xffff);
		v.setUint32(at + 12, n);
		return;
	}
	const words: number[] = [];
	let gap = -1;
	let i = 0;
	const fail = () => bad('address', text, 'IPv4 or IPv6, as 10.0.0.1 or fd00::1');
	if (text.startsWith('::')) {
		gap = 0;
		i = 2;
	}
	while (i < text.length) {
		let end = text.indexOf(':', i);
		if (end < 0) end = text.length;
		if (end === text.length && text.indexOf('.', i) >= 0) {
			const tail = parse4(text, i);
			if (tail < 0) throw fail();
			words.push(tail >>> 16, tail & 0xffff);
			break;
		}
		if (end === i || end - i > 4) throw fail();
		let w = 0;
		for (let k = i; k < end; k++) {
			const d = nibble(text.charCodeAt(k));
			if (d < 0) throw fail();
			w = (w << 4) | d;
		}
		words.push(w);
		i = end + 1;
		if (end === text.length) break;
		if (text.charCodeAt(i) === 58) {
			if (gap >= 0) throw fail();
			gap = words.length;
			i++;
		} else if (i === text.length) throw fail();
	}
	if (gap < 0 ? words.length !== 8 : words.length > 7) throw fail();
	const zeroes = 8 - words.length;
	for (let k = 0; k < 8; k++) {
		const w = gap < 0 || k < gap ? words[k] : k < gap + zeroes ? 0 : words[k - zeroes];
		v.setUint16(at + k * 2, w);
	}
}

/** 16 bytes as text: IPv4-mapped as dotted, all else as RFC 5952; all zero is `::`. */
export function getIp(v: DataView, at: number): string {
	if (v.getUint32(at) === 0 && v.getUint32(at + 4) === 0 && v.getUint32(at + 8) === 0xffff) return getIp4(v, at + 12);
	// The longest run of two or more zero words, the first of equals, becomes `::`.
	let best = -1;
	let length = 1;
	for (let i = 0; i < 8; ) {
		let j = i;
		while (j < 8 && v.getUint16(at + j * 2) === 0) j++;
		if (j - i > length) {
			best = i;
			length = j - i;
		}
		i = j + 1;
	}
	let text = '';
	for (let i = 0; i < 8; i++) {
		if (i === best) {
			text += '::';
			i += length - 1;
			continue;
		}
		if (text !== '' && !text.endsWith(':')) text += ':';
		text += v.getUint16(at + i * 2).toString(16);
	}
	return text;
}

/** One struct of mesh.h. Rows hold its fields under their C names, without padding. */
export interface Codec<T> {
	/** Bytes. */
	readonly size: number;
	/** Byte offsets of all fields, padding included. */
	readonly offsets: Readonly<Record<string, number>>;
	/** Writes every byte of the struct, padding as zero. @throws RangeError where a text is no address or MAC */
	encode(row: T, v: DataView, at: number): void;
	decode(v: DataView, at: number): T;
}

/** Writes at most `length` addresses and zeroes after them. @throws RangeError where there are more */
export function putList(
	list: readonly string[],
	v: DataView,
	at: number,
	length: number,
	size: number,
	put: (text: string, v: DataView, at: number) => void,
	what: string,
): void {
	if (list.length > length) throw bad(what, list.join(' '), `at most ${length} addresses`);
	for (let i = 0; i < length; i++) {
		if (i < list.length) put(list[i], v, at + i * size);
		else for (let b = 0; b < size; b += 4) v.setUint32(at + i * size + b, 0);
	}
}

/** Addresses up to the first that is all zero. */
export function getList(
	v: DataView,
	at: number,
	length: number,
	size: number,
	get: (v: DataView, at: number) => string,
): string[] {
	const out: string[] = [];
	for (let i = 0; i < length; i++) {
		const text = get(v, at + i * size);
		if (text === '::' || text === '0.0.0.0') break;
		out.push(text);
	}
	return out;
}
