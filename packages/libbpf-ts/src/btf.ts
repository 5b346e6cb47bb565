// BTF: the compiler's description of the object's types. Parsed from raw bytes, always little-endian.

import { type Codec, codecOf, tsOfType } from './codec.js';
import { UsageError } from './errors.js';
import { addressOf, native, type Ptr, viewOf } from './ffi.js';
import { BTF_INFO, Struct } from './layout.js';
import { CMD, check, closeFd, fdById, infoInto } from './sys.js';

export type BtfKind =
	| 'VOID'
	| 'INT'
	| 'PTR'
	| 'ARRAY'
	| 'STRUCT'
	| 'UNION'
	| 'ENUM'
	| 'FWD'
	| 'TYPEDEF'
	| 'VOLATILE'
	| 'CONST'
	| 'RESTRICT'
	| 'FUNC'
	| 'FUNC_PROTO'
	| 'VAR'
	| 'DATASEC'
	| 'FLOAT'
	| 'DECL_TAG'
	| 'TYPE_TAG'
	| 'ENUM64';
const KINDS: readonly BtfKind[] = [
	'VOID',
	'INT',
	'PTR',
	'ARRAY',
	'STRUCT',
	'UNION',
	'ENUM',
	'FWD',
	'TYPEDEF',
	'VOLATILE',
	'CONST',
	'RESTRICT',
	'FUNC',
	'FUNC_PROTO',
	'VAR',
	'DATASEC',
	'FLOAT',
	'DECL_TAG',
	'TYPE_TAG',
	'ENUM64',
];
const MODIFIERS: ReadonlySet<BtfKind> = new Set(['TYPEDEF', 'VOLATILE', 'CONST', 'RESTRICT', 'TYPE_TAG']);

export interface BtfMember {
	readonly name: string;
	readonly type: number;
	readonly bitOffset: number;
	/** 0 unless a bit field. */
	readonly bits: number;
}
export interface BtfType {
	readonly id: number;
	readonly kind: BtfKind;
	readonly name: string;
	/** Bytes, for types that have a size of their own. */
	readonly size: number;
	/** The type referred to, for pointers, modifiers, variables. */
	readonly type: number;
	readonly signed: boolean;
	readonly bool: boolean;
	readonly elem: number;
	readonly count: number;
	readonly members: readonly BtfMember[];
	readonly values: readonly (readonly [string, number | bigint])[];
	readonly vars: readonly { readonly type: number; readonly offset: number; readonly size: number }[];
}

export interface StructField {
	readonly name: string;
	/** Bytes from the start of the struct; members of anonymous structs and unions are flattened in. */
	readonly offset: number;
	readonly size: number;
	/** The type as C writes it: `__be16`, `__u8[6]`, `struct in6_addr`. */
	readonly c: string;
	/** The type the codec gives. */
	readonly ts: string;
	/** Network order on the wire; the codec converts. */
	readonly bigEndian: boolean;
	/** Only for bit fields: position within the struct and width, in bits. */
	readonly bitOffset?: number;
	readonly bits?: number;
}
export interface StructLayout {
	readonly kind: 'struct' | 'union';
	readonly name: string;
	readonly size: number;
	readonly fields: readonly StructField[];
}
export interface Variable {
	readonly name: string;
	/** '.rodata', '.data', '.bss', … */
	readonly section: string;
	readonly offset: number;
	readonly size: number;
	readonly type: number;
}

export class Btf {
	readonly types: readonly BtfType[];
	private readonly codecs = new Map<number, Codec<unknown>>();

	constructor(readonly bytes: Uint8Array) {
		this.types = parse(bytes);
	}

	/** The BTF the kernel holds for a loaded map or program. */
	static fromKernel(id: number): Btf {
		const op = `read BTF ${id}`;
		const fd = check(op, fdById(CMD.BTF_GET_FD_BY_ID, id));
		try {
			const size = infoInto(op, fd, new Struct(BTF_INFO)).num('btf_size');
			const bytes = new Uint8Array(new ArrayBuffer(size));
			infoInto(op, fd, new Struct(BTF_INFO, { btf: addressOf(bytes), btf_size: size }));
			return new Btf(bytes);
		} finally {
			closeFd(fd);
		}
	}

	/** libbpf's copy after open: unlike the ELF section its DATASEC offsets are filled in. */
	static fromLibbpf(btf: Ptr): Btf {
		const size = new Uint32Array(new ArrayBuffer(4));
		const at = native().btfRaw(btf, new Uint8Array(size.buffer));
		if (!at) throw new UsageError('the object has no BTF: compile it with clang -g');
		return new Btf(new Uint8Array(viewOf(at, size[0]).slice(0)));
	}

	/** Follows typedefs and qualifiers. */
	resolve(id: number): BtfType {
		let t = this.types[id];
		while (t && MODIFIERS.has(t.kind)) t = this.types[t.type];
		if (!t) throw new UsageError(`BTF has no type ${id}`);
		return t;
	}

	sizeOf(id: number): number {
		const t = this.resolve(id);
		return t.kind === 'ARRAY' ? t.count * this.sizeOf(t.elem) : t.kind === 'PTR' ? 8 : t.size;
	}

	/** `__be16` and its kin on the way through the typedefs. */
	isBigEndian(id: number): boolean {
		for (let t = this.types[id]; t && MODIFIERS.has(t.kind); t = this.types[t.type])
			if (t.kind === 'TYPEDEF' && /^__be(16|32|64)$/.test(t.name)) return true;
		return false;
	}

	/** Id of a named type: 'struct x', 'union x', 'enum x', or a bare name (typedefs included). */
	find(name: string): number | undefined {
		const m = /^(struct|union|enum)\s+(\S+)$/.exec(name);
		const bare = m ? m[2] : name;
		const fits = (k: BtfKind) =>
			!m
				? k !== 'VAR' && k !== 'FUNC' && k !== 'DATASEC' && k !== 'FWD'
				: k === m[1].toUpperCase() || (m[1] === 'enum' && k === 'ENUM64');
		return this.types.find((t) => t.name === bare && fits(t.kind))?.id;
	}

	private need(name: string): number {
		const id = this.find(name);
		if (id === undefined)
			throw new UsageError(
				`BTF has no type ${name} (a type used only in inlined code is left out: give it one const volatile variable)`,
			);
		return id;
	}

	/** Offsets, sizes and types of a struct's or union's fields. */
	struct(name: string): StructLayout {
		const t = this.resolve(this.need(name));
		if (t.kind !== 'STRUCT' && t.kind !== 'UNION')
			throw new UsageError(`${name} is not a struct but ${this.cOf(t.id)}`);
		const fields: StructField[] = [];
		const walk = (s: BtfType, base: number) => {
			for (const m of s.members) {
				const at = base + m.bitOffset;
				const mt = this.resolve(m.type);
				if (!m.name && (mt.kind === 'STRUCT' || mt.kind === 'UNION')) walk(mt, at);
				else if (m.name) {
					const elem = mt.kind === 'ARRAY' ? mt.elem : m.type;
					fields.push({
						name: m.name,
						offset: Math.floor(at / 8),
						size: this.sizeOf(m.type),
						c: this.cOf(m.type),
						ts: tsOfType(this, m.type),
						bigEndian: this.isBigEndian(elem),
						...(m.bits ? { bitOffset: at, bits: m.bits } : {}),
					});
				}
			}
		};
		walk(t, 0);
		return { kind: t.kind === 'UNION' ? 'union' : 'struct', name: t.name || name, size: t.size, fields };
	}

	/** Names and values of an enum. */
	enum(name: string): Record<string, number | bigint> {
		const t = this.resolve(this.need(/\s/.test(name) ? name : this.find(`enum ${name}`) ? `enum ${name}` : name));
		if (t.kind !== 'ENUM' && t.kind !== 'ENUM64') throw new UsageError(`${name} is not an enum but ${this.cOf(t.id)}`);
		return Object.fromEntries(t.values);
	}

	/** Every enum of the object; anonymous ones have the name ''. */
	enums(): { name: string; values: Record<string, number | bigint> }[] {
		return this.types
			.filter((t) => t.kind === 'ENUM' || t.kind === 'ENUM64')
			.map((t) => ({ name: t.name, values: Object.fromEntries(t.values) }));
	}

	/** Names of every named struct and union. */
	structs(): string[] {
		return this.types
			.filter((t) => (t.kind === 'STRUCT' || t.kind === 'UNION') && t.name)
			.map((t) => `${t.kind.toLowerCase()} ${t.name}`);
	}

	/** Global variables by section. */
	variables(): Variable[] {
		return this.types.flatMap((s) =>
			s.kind !== 'DATASEC'
				? []
				: s.vars.map((v) => ({
						name: this.types[v.type].name,
						section: s.name,
						offset: v.offset,
						size: v.size,
						type: this.types[v.type].type,
					})),
		);
	}

	/** The TypeScript type of what the codec gives for a type. */
	tsOf(nameOrId: string | number): string {
		return tsOfType(this, typeof nameOrId === 'number' ? nameOrId : this.need(nameOrId));
	}

	/** The type as C writes it. */
	cOf(id: number): string {
		const t = this.types[id];
		switch (t.kind) {
			case 'ARRAY':
				return `${this.cOf(t.elem)}[${t.count}]`;
			case 'PTR':
				return `${t.type ? this.cOf(t.type) : 'void'} *`;
			case 'CONST':
			case 'VOLATILE':
			case 'RESTRICT':
			case 'TYPE_TAG':
				return t.type ? this.cOf(t.type) : 'void';
			case 'STRUCT':
			case 'UNION':
				return `${t.kind.toLowerCase()} ${t.name || '{…}'}`;
			case 'ENUM':
			case 'ENUM64':
				return `enum ${t.name || '{…}'}`;
			default:
				return t.name || t.kind.toLowerCase();
		}
	}

	/** Encoder and decoder of a type. Little-endian, __be16/32/64 excepted. */
	codec<T>(nameOrId: string | number): Codec<T> {
		const id = typeof nameOrId === 'number' ? nameOrId : this.need(nameOrId);
		let c = this.codecs.get(id);
		if (!c) {
			c = codecOf(this, id);
			this.codecs.set(id, c);
		}
		return c as Codec<T>;
	}
}

function parse(bytes: Uint8Array): BtfType[] {
	const dv = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	if (bytes.length < 24 || dv.getUint16(0, true) !== 0xeb9f)
		throw new UsageError('these bytes are not (little-endian) BTF');
	const buf = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	const hdr = dv.getUint32(4, true);
	const start = hdr + dv.getUint32(8, true);
	const end = start + dv.getUint32(12, true);
	const strings = hdr + dv.getUint32(16, true);
	const text = (off: number) => buf.toString('utf8', strings + off, buf.indexOf(0, strings + off));
	const none = {
		id: 0,
		size: 0,
		type: 0,
		signed: false,
		bool: false,
		elem: 0,
		count: 0,
		members: [],
		values: [],
		vars: [],
	};
	const types: BtfType[] = [{ ...none, kind: 'VOID', name: '' }];
	let p = start;
	const u32 = () => {
		p += 4;
		return dv.getUint32(p - 4, true);
	};
	while (p < end) {
		const name = text(u32());
		const info = u32();
		const sizeOrType = u32();
		const n = info & 0xffff;
		const kind = KINDS[(info >>> 24) & 31];
		const flag = info >>> 31 === 1;
		if (!kind) throw new UsageError(`BTF kind ${(info >>> 24) & 31} is unknown`);
		const t: { -readonly [K in keyof BtfType]: BtfType[K] } = {
			...none,
			id: types.length,
			kind,
			name,
			size: sizeOrType,
			type: sizeOrType,
		};
		switch (kind) {
			case 'INT': {
				const e = u32();
				t.signed = ((e >>> 24) & 1) === 1;
				t.bool = ((e >>> 24) & 4) === 4;
				break;
			}
			case 'ARRAY':
				t.elem = u32();
				u32();
				t.count = u32();
				break;
			case 'STRUCT':
			case 'UNION':
				t.members = Array.from({ length: n }, () => {
					const name = text(u32());
					const type = u32();
					const off = u32();
					return { name, type, bitOffset: flag ? off & 0xffffff : off, bits: flag ? off >>> 24 : 0 };
				});
				break;
			case 'ENUM':
				// clang before 15 never sets the flag of a signed enum: small negative numbers are told by their look.
				t.values = Array.from({ length: n }, () => {
					const name = text(u32());
					const v = u32();
					return [name, flag || v >= 0xffff0000 ? v | 0 : v] as const;
				});
				t.signed = flag || t.values.some(([, v]) => v < 0);
				break;
			case 'ENUM64':
				t.signed = flag;
				t.values = Array.from({ length: n }, () => {
					const name = text(u32());
					const v = BigInt(u32()) | (BigInt(u32()) << 32n);
					return [name, flag ? BigInt.asIntN(64, v) : v] as const;
				});
				break;
			case 'FUNC_PROTO':
				p += 8 * n;
				break;
			case 'VAR':
			case 'DECL_TAG':
				p += 4;
				break;
			case 'DATASEC':
				t.vars = Array.from({ length: n }, () => ({ type: u32(), offset: u32(), size: u32() }));
				break;
		}
		types.push(t);
	}
	return types;
}
