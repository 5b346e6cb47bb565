import { type BtfType, readBtf } from './btf.js';
import { LoaderError } from './errors.js';

/** What an object declares of a map (libbpf's BTF-defined maps); numbers as in `struct bpf_map_info`. */
export interface MapSpec {
	readonly name: string;
	readonly type: number;
	/** Bytes. */
	readonly keySize: number;
	readonly valueSize: number;
	readonly maxEntries: number;
	readonly flags: number;
}

function sizeOf(types: readonly BtfType[], id: number): number {
	const t = types[id];
	switch (t.kind) {
		case 'ptr':
			return 8;
		case 'array':
			return t.length * sizeOf(types, t.type);
		case 'const':
		case 'volatile':
		case 'restrict':
		case 'typedef':
			return sizeOf(types, t.type);
		default:
			return 'size' in t ? t.size : 0;
	}
}

/**
 * Maps of an object's `.maps` section, without those libbpf makes of global variables.
 * @throws LoaderError BAD_OBJECT
 */
export function mapSpecs(object: Uint8Array): readonly MapSpec[] {
	const types = readBtf(object);
	const section = types.find((t) => t.kind === 'datasec' && t.name === '.maps');
	if (section?.kind !== 'datasec') return [];
	return section.vars.map((id) => {
		const variable = types[id];
		const def = variable.kind === 'var' ? types[variable.type] : undefined;
		if (variable.kind !== 'var' || def?.kind !== 'struct')
			throw new LoaderError(
				'BAD_OBJECT',
				'the object declares a map that is no struct: use SEC(".maps") with __uint and __type',
			);
		const pointee = (field: string): number | undefined => {
			const m = def.members.find((f) => f.name === field);
			const t = m && types[m.type];
			return t?.kind === 'ptr' ? t.type : undefined;
		};
		/** __uint(field, n) is a pointer to an array of n. */
		const number = (field: string): number | undefined => {
			const at = pointee(field);
			const t = at === undefined ? undefined : types[at];
			return t?.kind === 'array' ? t.length : undefined;
		};
		const bytes = (field: 'key' | 'value') => {
			const at = pointee(field);
			return number(`${field}_size`) ?? (at === undefined ? undefined : sizeOf(types, at));
		};
		const ofMaps = def.members.some((m) => m.name === 'values');
		return {
			name: variable.name,
			type: number('type') ?? 0,
			keySize: bytes('key') ?? (ofMaps ? 4 : 0),
			valueSize: bytes('value') ?? (ofMaps ? 4 : 0),
			maxEntries: number('max_entries') ?? 0,
			flags: number('map_flags') ?? 0,
		};
	});
}
