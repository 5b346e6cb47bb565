// Values ⇄ bytes, built once from BTF. Numbers up to 32 bits are number, 64 bits bigint, __u8[N] Uint8Array,
// char[N] string, bool boolean; __be16/32/64 are host numbers swapped on the way.
import type { Btf, BtfType } from './btf.js';
import { UsageError } from './errors.js';

export interface Codec<T> {
	/** Bytes. */
	readonly size: number;
	/** Writes all `size` bytes: what the value leaves out is zero. */
	encode(value: T, into: Uint8Array, off?: number): void;
	decode(from: Uint8Array, off?: number): T;
}

interface Node {
	readonly size: number;
	read(dv: DataView, off: number): unknown;
	/** The bytes are zero beforehand. */
	write(dv: DataView, off: number, v: unknown): void;
}

export function codecOf<T>(btf: Btf, id: number): Codec<T> {
	return wrap(node(btf, id, btf.cOf(id)));
}

function wrap<T>(n: Node): Codec<T> {
	// One view is kept for the buffer used last: maps reuse one scratch buffer for every call.
	let last: Uint8Array | undefined;
	let dv: DataView = new DataView(new ArrayBuffer(0));
	const view = (b: Uint8Array, off: number): DataView => {
		if (off < 0 || off + n.size > b.length)
			throw new UsageError(`${n.size} bytes at ${off} do not fit a buffer of ${b.length}`);
		if (b !== last) {
			dv = new DataView(b.buffer, b.byteOffset, b.byteLength);
			last = b;
		}
		return dv;
	};
	return {
		size: n.size,
		encode(value, into, off = 0) {
			const d = view(into, off);
			into.fill(0, off, off + n.size);
			n.write(d, off, value);
		},
		decode: (from, off = 0) => n.read(view(from, off), off) as T,
	};
}

const show = (v: unknown): string =>
	typeof v === 'bigint'
		? `${v}n`
		: typeof v === 'string'
			? JSON.stringify(v)
			: v instanceof Object
				? v.constructor.name
				: String(v);

function node(btf: Btf, id: number, path: string): Node {
	const t = btf.resolve(id);
	switch (t.kind) {
		case 'INT':
			return t.bool && t.size === 1 ? boolNode() : intNode(t.size, t.signed, btf.isBigEndian(id), path);
		case 'ENUM':
		case 'ENUM64':
			return intNode(t.size, t.signed, false, path);
		case 'PTR':
			return intNode(8, false, false, path);
		case 'FLOAT':
			return {
				size: t.size,
				read: (dv, o) => (t.size === 4 ? dv.getFloat32(o, true) : dv.getFloat64(o, true)),
				write: (dv, o, v) => (t.size === 4 ? dv.setFloat32(o, Number(v), true) : dv.setFloat64(o, Number(v), true)),
			};
		case 'ARRAY':
			return arrayNode(btf, t, path);
		case 'STRUCT':
		case 'UNION':
			return recordNode(btf, t, path);
		default:
			throw new UsageError(`${path}: no codec for ${btf.cOf(id)}`);
	}
}

function boolNode(): Node {
	return { size: 1, read: (dv, o) => dv.getUint8(o) !== 0, write: (dv, o, v) => dv.setUint8(o, v ? 1 : 0) };
}

function intNode(size: number, signed: boolean, big: boolean, path: string): Node {
	const little = !big;
	if (size === 8) {
		const min = signed ? -(1n << 63n) : 0n;
		const max = signed ? (1n << 63n) - 1n : (1n << 64n) - 1n;
		const check = (v: unknown): bigint => {
			const b = typeof v === 'bigint' ? v : typeof v === 'number' && Number.isSafeInteger(v) ? BigInt(v) : undefined;
			if (b === undefined || b < min || b > max)
				throw new UsageError(`${path}: ${show(v)} does not fit (a bigint from ${min} to ${max})`);
			return b;
		};
		return {
			size,
			read: signed ? (dv, o) => dv.getBigInt64(o, little) : (dv, o) => dv.getBigUint64(o, little),
			write: (dv, o, v) => dv.setBigUint64(o, BigInt.asUintN(64, check(v)), little),
		};
	}
	if (size === 16) {
		return {
			size,
			read: (dv, o) => dv.getBigUint64(o, true) | (dv.getBigUint64(o + 8, true) << 64n),
			write: (dv, o, v) => {
				const b = BigInt(v as bigint);
				dv.setBigUint64(o, BigInt.asUintN(64, b), true);
				dv.setBigUint64(o + 8, BigInt.asUintN(64, b >> 64n), true);
			},
		};
	}
	const bits = size * 8;
	const min = signed ? -(2 ** (bits - 1)) : 0;
	const max = signed ? 2 ** (bits - 1) - 1 : 2 ** bits - 1;
	const check = (v: unknown): number => {
		if (typeof v !== 'number' || !Number.isInteger(v) || v < min || v > max)
			throw new UsageError(`${path}: ${show(v)} does not fit (an integer from ${min} to ${max})`);
		return v;
	};
	switch (size) {
		case 1:
			return {
				size,
				read: signed ? (dv, o) => dv.getInt8(o) : (dv, o) => dv.getUint8(o),
				write: (dv, o, v) => dv.setUint8(o, check(v)),
			};
		case 2:
			return {
				size,
				read: signed ? (dv, o) => dv.getInt16(o, little) : (dv, o) => dv.getUint16(o, little),
				write: (dv, o, v) => dv.setUint16(o, check(v), little),
			};
		case 4:
			return {
				size,
				read: signed ? (dv, o) => dv.getInt32(o, little) : (dv, o) => dv.getUint32(o, little),
				write: (dv, o, v) => dv.setUint32(o, check(v), little),
			};
		default:
			throw new UsageError(`${path}: integers of ${size} bytes are not supported`);
	}
}

function isByte(btf: Btf, id: number): boolean {
	const t = btf.resolve(id);
	return t.kind === 'INT' && t.size === 1 && !t.bool;
}
const isChar = (btf: Btf, id: number): boolean => isByte(btf, id) && btf.resolve(id).name === 'char';

function arrayNode(btf: Btf, t: BtfType, path: string): Node {
	const { count } = t;
	if (isChar(btf, t.elem))
		return {
			size: count,
			read(dv, o) {
				let text = '';
				for (let i = 0; i < count; i++) {
					const c = dv.getUint8(o + i);
					if (c === 0) break;
					if (c > 127) {
						const b = Buffer.from(dv.buffer, dv.byteOffset + o, count);
						const end = b.indexOf(0);
						return b.toString('utf8', 0, end < 0 ? count : end);
					}
					text += String.fromCharCode(c);
				}
				return text;
			},
			write(dv, o, v) {
				const b = typeof v === 'string' ? Buffer.from(v) : v;
				if (!(b instanceof Uint8Array) || b.length > count)
					throw new UsageError(`${path}: ${show(v)} does not fit (a string of up to ${count} bytes)`);
				new Uint8Array(dv.buffer, dv.byteOffset + o, count).set(b);
			},
		};
	if (isByte(btf, t.elem))
		return {
			size: count,
			read: (dv, o) => new Uint8Array(dv.buffer, dv.byteOffset + o, count).slice(),
			write(dv, o, v) {
				if (!(v instanceof Uint8Array) || v.length !== count)
					throw new UsageError(
						`${path}: ${v instanceof Uint8Array ? `${v.length} bytes do` : `${show(v)} does`} not fit (a Uint8Array of ${count} bytes)`,
					);
				for (let i = 0; i < count; i++) dv.setUint8(o + i, v[i]);
			},
		};
	const elem = node(btf, t.elem, `${path}[]`);
	return {
		size: count * elem.size,
		read(dv, o) {
			const r = new Array<unknown>(count);
			for (let i = 0; i < count; i++) r[i] = elem.read(dv, o + i * elem.size);
			return r;
		},
		write(dv, o, v) {
			if (!Array.isArray(v) || v.length !== count)
				throw new UsageError(
					`${path}: ${Array.isArray(v) ? `${v.length} elements` : show(v)} given (an array of ${count} is wanted)`,
				);
			for (let i = 0; i < count; i++) elem.write(dv, o + i * elem.size, v[i]);
		},
	};
}

interface Field {
	readonly name: string;
	readonly off: number;
	readonly node: Node;
	/** Members of one union share this: which union, so that contradictions can be refused. */
	readonly union: number;
}

function bitNode(bitOffset: number, bits: number, signed: boolean, path: string): { off: number; node: Node } {
	const off = bitOffset >> 3;
	const shift = BigInt(bitOffset & 7);
	const bytes = Math.ceil(((bitOffset & 7) + bits) / 8);
	const mask = (1n << BigInt(bits)) - 1n;
	const load = (dv: DataView, o: number) => {
		let v = 0n;
		for (let i = 0; i < bytes; i++) v |= BigInt(dv.getUint8(o + i)) << BigInt(8 * i);
		return v;
	};
	return {
		off,
		node: {
			size: bytes,
			read(dv, o) {
				const raw = (load(dv, o) >> shift) & mask;
				const v = signed ? BigInt.asIntN(bits, raw) : raw;
				return bits > 32 ? v : Number(v);
			},
			write(dv, o, v) {
				const min = signed ? -(1n << BigInt(bits - 1)) : 0n;
				const max = signed ? (1n << BigInt(bits - 1)) - 1n : mask;
				const n = typeof v === 'bigint' ? v : Number.isInteger(v) ? BigInt(v as number) : undefined;
				if (n === undefined || n < min || n > max)
					throw new UsageError(`${path}: ${show(v)} does not fit (an integer from ${min} to ${max})`);
				const w = (load(dv, o) & ~(mask << shift)) | ((n & mask) << shift);
				for (let i = 0; i < bytes; i++) dv.setUint8(o + i, Number((w >> BigInt(8 * i)) & 0xffn));
			},
		},
	};
}

function recordNode(btf: Btf, t: BtfType, path: string): Node {
	const fields: Field[] = [];
	let unions = 0;
	const walk = (s: BtfType, baseBits: number, union: number) => {
		const mine = s.kind === 'UNION' && union === 0 ? ++unions : union;
		for (const m of s.members) {
			const at = baseBits + m.bitOffset;
			const mt = btf.resolve(m.type);
			if (!m.name && (mt.kind === 'STRUCT' || mt.kind === 'UNION')) walk(mt, at, mine);
			else if (!m.name) continue;
			else if (m.bits) {
				const b = bitNode(at, m.bits, mt.signed, `${path}.${m.name}`);
				fields.push({ name: m.name, off: b.off, node: b.node, union: mine });
			} else fields.push({ name: m.name, off: at / 8, node: node(btf, m.type, `${path}.${m.name}`), union: mine });
		}
	};
	walk(t, 0, 0);
	const names = new Set(fields.map((f) => f.name));
	const unknown = (v: object): never => {
		const bad = Object.keys(v).filter((k) => !names.has(k));
		throw new UsageError(`${path} has no field ${bad.join(', ')} (it has ${[...names].join(', ')})`);
	};
	const plain = unions === 0;
	return {
		size: t.size,
		read(dv, o) {
			const r: Record<string, unknown> = {};
			for (const f of fields) r[f.name] = f.node.read(dv, o + f.off);
			return r;
		},
		write(dv, o, v) {
			if (typeof v !== 'object' || v === null || ArrayBuffer.isView(v) || Array.isArray(v))
				throw new UsageError(`${path}: ${show(v)} given (an object with ${[...names].join(', ')} is wanted)`);
			const record = v as Record<string, unknown>;
			let used = 0;
			for (const f of fields) {
				const x = record[f.name];
				if (x === undefined) continue;
				used++;
				if (plain || f.union === 0) f.node.write(dv, o + f.off, x);
				else writeUnionMember(dv, o, f, fields, record, path);
			}
			let given = 0;
			for (const k in record) if (record[k] !== undefined) given++;
			if (given !== used) unknown(record);
		},
	};
}

/** Several members of a union may be given (a decoded value has them all) as long as they agree on every byte. */
function writeUnionMember(
	dv: DataView,
	o: number,
	f: Field,
	fields: readonly Field[],
	record: Record<string, unknown>,
	path: string,
): void {
	let others = false;
	for (const g of fields) if (g !== f && g.union === f.union && record[g.name] !== undefined) others = true;
	if (!others) {
		f.node.write(dv, o + f.off, record[f.name]);
		return;
	}
	const size = f.node.size;
	const mine = new DataView(new ArrayBuffer(size));
	f.node.write(mine, 0, record[f.name]);
	for (const g of fields) {
		if (g === f) break;
		if (g.union !== f.union || record[g.name] === undefined) continue;
		const from = Math.max(f.off, g.off);
		const to = Math.min(f.off + size, g.off + g.node.size);
		for (let i = from; i < to; i++)
			if (dv.getUint8(o + i) !== mine.getUint8(i - f.off))
				throw new UsageError(
					`${path}: ${g.name} and ${f.name} share memory and contradict each other (give one of them)`,
				);
	}
	for (let i = 0; i < size; i++) dv.setUint8(o + f.off + i, dv.getUint8(o + f.off + i) | mine.getUint8(i));
}

/** For maps without BTF: 4 bytes are a number, 8 a bigint, anything else bytes. */
export function plainCodec(size: number): Codec<unknown> {
	if (size === 4 || size === 8) return wrap(intNode(size, false, false, `${size}-byte integer`));
	return bytesCodec(size);
}

/** Bytes as they are. */
export function bytesCodec(size: number): Codec<Uint8Array> {
	return {
		size,
		encode(value, into, off = 0) {
			if (!(value instanceof Uint8Array) || value.length !== size)
				throw new UsageError(
					`${size} bytes are wanted, ${value instanceof Uint8Array ? value.length : show(value)} given`,
				);
			into.set(value, off);
		},
		decode: (from, off = 0) => from.slice(off, off + size),
	};
}

/** Codecs for plain integers, for maps made by hand. */
export const u32: Codec<number> = wrap(intNode(4, false, false, '__u32'));
export const u64: Codec<bigint> = wrap(intNode(8, false, false, '__u64'));

export function tsOfType(btf: Btf, id: number): string {
	const t = btf.resolve(id);
	switch (t.kind) {
		case 'INT':
			return t.bool ? 'boolean' : t.size >= 8 ? 'bigint' : 'number';
		case 'ENUM':
		case 'ENUM64':
			return t.size >= 8 ? 'bigint' : 'number';
		case 'FLOAT':
			return 'number';
		case 'PTR':
			return 'bigint';
		case 'ARRAY':
			if (isChar(btf, t.elem)) return 'string';
			if (isByte(btf, t.elem)) return 'Uint8Array';
			return `${/[ {]/.test(tsOfType(btf, t.elem)) ? `(${tsOfType(btf, t.elem)})` : tsOfType(btf, t.elem)}[]`;
		case 'STRUCT':
		case 'UNION': {
			const parts: string[] = [];
			const walk = (s: BtfType) => {
				for (const m of s.members) {
					const mt = btf.resolve(m.type);
					if (!m.name && (mt.kind === 'STRUCT' || mt.kind === 'UNION')) walk(mt);
					else if (m.name)
						parts.push(`${m.name}: ${m.bits > 32 ? 'bigint' : m.bits ? 'number' : tsOfType(btf, m.type)}`);
				}
			};
			walk(t);
			return parts.length ? `{ ${parts.join('; ')} }` : 'Record<string, never>';
		}
		default:
			return 'unknown';
	}
}
