/**
 * Writes layout.gen.ts from the BTF of bpf/layout.bpf.c (npm run layout): C is the truth, the result is committed, and
 * test/loader/layout.test.ts holds that it is what this makes.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type BtfType, compile, readBtf } from 'bpf-loader';

type Struct = Extract<BtfType, { kind: 'struct' | 'union' }>;

/** Structs of mesh.h, read from its text, so that BTF's other structs (map definitions, kernel headers) stay out. */
function structNames(header: string): string[] {
	return [...header.matchAll(/^struct (\w+) \{/gm)].map((m) => m[1]);
}

function enumNames(header: string): string[] {
	return [...header.matchAll(/^enum (\w+) \{/gm)].map((m) => m[1]);
}

/** `#define NAME number`; what is no plain number is no constant of the ABI. */
function constants(header: string): [string, string][] {
	return [...header.matchAll(/^#define (\w+)[ \t]+(0x[0-9a-f]+|\d+)u?[ \t]*(?:\/\*.*)?$/gm)].map((m) => [m[1], m[2]]);
}

const isPad = (name: string) => /^pad\d*$/.test(name);
const pascal = (s: string) => s.replace(/(?:^|_)(\w)/g, (_, c: string) => c.toUpperCase());
const camel = (s: string) => s.replace(/_(\w)/g, (_, c: string) => c.toUpperCase());

interface Field {
	readonly name: string;
	readonly at: number;
	readonly type: string;
	readonly encode: (row: string, at: string) => string;
	readonly decode: (at: string) => string;
}

function scalar(types: readonly BtfType[], id: number): { typedef: string; type: BtfType } {
	let typedef = '';
	let type = types[id];
	for (;;) {
		if (type.kind === 'typedef') typedef ||= type.name;
		else if (type.kind !== 'const' && type.kind !== 'volatile') return { typedef, type };
		type = types[type.type];
	}
}

function sizeOf(types: readonly BtfType[], id: number): number {
	const { type } = scalar(types, id);
	if (type.kind === 'array') return type.length * sizeOf(types, type.type);
	if ('size' in type) return type.size;
	throw new Error(`layout: type ${id} (${type.kind}) has no size`);
}

/** How one value of C is a value of TypeScript. */
function value(types: readonly BtfType[], struct: string, name: string, id: number): Omit<Field, 'name' | 'at'> {
	const { typedef, type } = scalar(types, id);
	const call = (f: string, ts: string): Omit<Field, 'name' | 'at'> => ({
		type: ts,
		encode: (row, at) => `put${f}(${row}, v, ${at});`,
		decode: (at) => `get${f}(v, ${at})`,
	});
	if (type.kind === 'struct') {
		if (type.name === 'in6_addr') return call('Ip', 'string');
		const codec = `${camel(type.name)}Codec`;
		return {
			type: pascal(type.name),
			encode: (row, at) => `${codec}.encode(${row}, v, ${at});`,
			decode: (at) => `${codec}.decode(v, ${at})`,
		};
	}
	if (type.kind === 'array') {
		const item = scalar(types, type.type).type;
		if (item.kind === 'int' && item.size === 1 && type.length === 6) return call('Mac', 'string');
		const inner = value(types, struct, name, type.type);
		const size = sizeOf(types, type.type);
		if (inner.type === 'string') {
			// Addresses: only those in use, in order; zero ends the list.
			const kind = scalar(types, type.type).type.kind === 'struct' ? 'Ip' : 'Ip4';
			return {
				type: 'readonly string[]',
				encode: (row, at) => `putList(${row}, v, ${at}, ${type.length}, ${size}, put${kind}, '${struct}.${name}');`,
				decode: (at) => `getList(v, ${at}, ${type.length}, ${size}, get${kind})`,
			};
		}
		const each = Array.from({ length: type.length }, (_, i) => i);
		return {
			type: `readonly [${each.map(() => inner.type).join(', ')}]`,
			encode: (row, at) => each.map((i) => inner.encode(`${row}[${i}]`, `${at} + ${i * size}`)).join('\n\t\t'),
			decode: (at) => `[${each.map((i) => inner.decode(`${at} + ${i * size}`)).join(', ')}]`,
		};
	}
	if (type.kind !== 'int') throw new Error(`layout: ${struct}.${name} is of a kind that has no text: ${type.kind}`);
	if (typedef === '__be32') {
		if (name === 'vni')
			return {
				type: 'number',
				encode: (row, at) => `v.setUint32(${at}, ${row} << 8);`,
				decode: (at) => `v.getUint32(${at}) >>> 8`,
			};
		return call('Ip4', 'string');
	}
	const bits = type.size * 8;
	if (bits === 64)
		return {
			type: 'bigint',
			encode: (row, at) => `v.setBigUint64(${at}, ${row}, true);`,
			decode: (at) => `v.getBigUint64(${at}, true)`,
		};
	const order = bits === 8 || typedef === '__be16' ? '' : ', true';
	return {
		type: 'number',
		encode: (row, at) => `v.setUint${bits}(${at}, ${row}${order});`,
		decode: (at) => `v.getUint${bits}(${at}${order})`,
	};
}

function struct(types: readonly BtfType[], s: Struct): string {
	const name = pascal(s.name);
	const fields: Field[] = s.members
		.filter((m) => !isPad(m.name))
		.map((m) => ({ name: m.name, at: m.bitOffset / 8, ...value(types, s.name, m.name, m.type) }));
	const at = (f: Field) => (f.at === 0 ? 'at' : `at + ${f.at}`);
	// Padding, named or the compiler's: hash maps compare every byte.
	const unused = new Set(Array.from({ length: s.size }, (_, i) => i));
	for (const m of s.members)
		if (!isPad(m.name)) for (let i = 0; i < sizeOf(types, m.type); i++) unused.delete(m.bitOffset / 8 + i);
	const zero = [...unused].map((i) => `v.setUint8(at + ${i}, 0);`);
	return `/** struct ${s.name}, ${s.size} bytes */
export interface ${name} {
${fields.map((f) => `\treadonly ${f.name}: ${f.type};`).join('\n')}
}

export const ${camel(s.name)}Codec: Codec<${name}> = {
	size: ${s.size},
	offsets: { ${s.members.map((m) => `${m.name}: ${m.bitOffset / 8}`).join(', ')} },
	encode(row, v, at) {
		${[...fields.map((f) => f.encode(`row.${f.name}`, at(f))), ...zero].join('\n\t\t')}
	},
	decode: (v, at) => ({
${fields.map((f) => `\t\t${f.name}: ${f.decode(at(f))},`).join('\n')}
	}),
};
`;
}

/** The text of layout.gen.ts for the headers in `bpfDir`. @throws LoaderError where clang refuses them */
export async function generateLayout(bpfDir: string): Promise<string> {
	const header = readFileSync(join(bpfDir, 'mesh.h'), 'utf8');
	const maps = readFileSync(join(bpfDir, 'maps.h'), 'utf8');
	const types = readBtf((await compile(join(bpfDir, 'layout.bpf.c'))).object);
	const structs = structNames(header).map((name) => {
		const found = types.find((t): t is Struct => t.kind === 'struct' && t.name === name);
		if (!found)
			throw new Error(
				`layout: struct ${name} is not in the BTF of layout.bpf.c: give it a const volatile variable there`,
			);
		return found;
	});
	const enums = enumNames(header).map((name) => {
		const found = types.find((t) => t.kind === 'enum' && t.name === name);
		if (found?.kind !== 'enum')
			throw new Error(
				`layout: enum ${name} is not in the BTF of layout.bpf.c: give it a const volatile variable there`,
			);
		return found;
	});
	const verdicts = enums.find((e) => e.name === 'verdict')?.values.filter(([n]) => n !== 'VERDICT_COUNT') ?? [];
	const programs = enums.find((e) => e.name === 'program')?.values.filter(([n]) => n !== 'PROGRAM_COUNT') ?? [];
	return `// Generated from bpf/mesh.h by src/loader/gen-layout.ts (npm run layout). Do not edit.
import { type Codec, getIp, getIp4, getList, getMac, putIp, putIp4, putList, putMac } from './text.js';

${[...constants(header), ...constants(maps)].map(([n, v]) => `export const ${n} = ${v};`).join('\n')}

${enums.map((e) => `/** enum ${e.name} */\nexport const ${pascal(e.name)} = {\n${e.values.map(([n, v]) => `\t${n}: ${v >>> 0},`).join('\n')}\n} as const;\n`).join('\n')}
/** Names of the verdicts, by number: labels of metrics and names in the monitor. */
export const VERDICTS: readonly string[] = [
${verdicts.map(([n]) => `\t'${n.toLowerCase()}',`).join('\n')}
];

/** Names of the programs, by number. */
export const PROGRAMS: readonly string[] = [${programs.map(([n]) => `'${n.replace('PROGRAM_', '').toLowerCase()}'`).join(', ')}];

${structs.map((s) => struct(types, s)).join('\n')}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
	// Run from dist/src/loader: the repository is three levels up.
	const root = fileURLToPath(new URL('../../..', import.meta.url));
	writeFileSync(join(root, 'src/loader/layout.gen.ts'), await generateLayout(join(root, 'bpf')));
}
