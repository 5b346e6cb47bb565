import { cString, readElf, viewOf } from './elf.js';
import { LoaderError } from './errors.js';

/** Offsets in bits, from the start of the struct. */
export interface BtfMember {
	readonly name: string;
	readonly type: number;
	readonly bitOffset: number;
}

/** BTF types by id, as in Documentation/bpf/btf.rst; kinds that no layout needs are `other`. */
export type BtfType =
	| { readonly kind: 'void' }
	| { readonly kind: 'int'; readonly name: string; readonly size: number; readonly signed: boolean }
	| { readonly kind: 'ptr' | 'const' | 'volatile' | 'restrict'; readonly type: number }
	| { readonly kind: 'typedef'; readonly name: string; readonly type: number }
	| { readonly kind: 'array'; readonly type: number; readonly length: number }
	| {
			readonly kind: 'struct' | 'union';
			readonly name: string;
			readonly size: number;
			readonly members: readonly BtfMember[];
	  }
	| {
			readonly kind: 'enum';
			readonly name: string;
			readonly size: number;
			readonly values: readonly (readonly [string, number])[];
	  }
	| { readonly kind: 'var'; readonly name: string; readonly type: number }
	| { readonly kind: 'datasec'; readonly name: string; readonly vars: readonly number[] }
	| { readonly kind: 'other'; readonly name: string };

const KINDS = [
	'void',
	'int',
	'ptr',
	'array',
	'struct',
	'union',
	'enum',
	'fwd',
	'typedef',
	'volatile',
	'const',
	'restrict',
	'func',
	'func_proto',
	'var',
	'datasec',
	'float',
	'decl_tag',
	'type_tag',
	'enum64',
] as const;

/**
 * Types of an object's `.BTF` section, indexed by type id. Enough for layouts: sizes and offsets of what lies in maps.
 * @throws LoaderError BAD_OBJECT where there is no BTF (compile with -g)
 */
export function readBtf(object: Uint8Array): readonly BtfType[] {
	const data = readElf(object).find((s) => s.name === '.BTF')?.data;
	if (!data || data.length < 24) throw new LoaderError('BAD_OBJECT', 'the object has no BTF: compile it with clang -g');
	const v = viewOf(data);
	if (v.getUint16(0, true) !== 0xeb9f) throw new LoaderError('BAD_OBJECT', "the object's BTF is not little-endian BTF");
	const header = v.getUint32(4, true);
	const types = header + v.getUint32(8, true);
	const end = types + v.getUint32(12, true);
	const strings = data.subarray(header + v.getUint32(16, true));
	const out: BtfType[] = [{ kind: 'void' }];
	for (let at = types; at < end; ) {
		const name = cString(strings, v.getUint32(at, true));
		const info = v.getUint32(at + 4, true);
		const sizeOrType = v.getUint32(at + 8, true);
		const count = info & 0xffff;
		const flag = info >>> 31 === 1;
		const kind = KINDS[(info >>> 24) & 0x1f];
		at += 12;
		switch (kind) {
			case 'int': {
				const bits = v.getUint32(at, true);
				out.push({ kind, name, size: sizeOrType, signed: ((bits >>> 24) & 1) === 1 });
				at += 4;
				break;
			}
			case 'ptr':
			case 'const':
			case 'volatile':
			case 'restrict':
				out.push({ kind, type: sizeOrType });
				break;
			case 'typedef':
				out.push({ kind, name, type: sizeOrType });
				break;
			case 'array':
				out.push({ kind, type: v.getUint32(at, true), length: v.getUint32(at + 8, true) });
				at += 12;
				break;
			case 'struct':
			case 'union': {
				const members = Array.from({ length: count }, (_, i) => {
					const m = at + i * 12;
					const offset = v.getUint32(m + 8, true);
					return {
						name: cString(strings, v.getUint32(m, true)),
						type: v.getUint32(m + 4, true),
						bitOffset: flag ? offset & 0xffffff : offset,
					};
				});
				out.push({ kind, name, size: sizeOrType, members });
				at += count * 12;
				break;
			}
			case 'enum': {
				const values = Array.from({ length: count }, (_, i) => {
					const value = at + i * 8 + 4;
					return [
						cString(strings, v.getUint32(value - 4, true)),
						flag ? v.getInt32(value, true) : v.getUint32(value, true),
					] as const;
				});
				out.push({ kind, name, size: sizeOrType, values });
				at += count * 8;
				break;
			}
			case 'var':
				out.push({ kind, name, type: sizeOrType });
				at += 4;
				break;
			case 'datasec':
				out.push({ kind, name, vars: Array.from({ length: count }, (_, i) => v.getUint32(at + i * 12, true)) });
				at += count * 12;
				break;
			default:
				out.push({ kind: 'other', name });
				if (kind === 'func_proto') at += count * 8;
				else if (kind === 'decl_tag') at += 4;
				else if (kind === 'enum64') at += count * 12;
		}
	}
	return out;
}
