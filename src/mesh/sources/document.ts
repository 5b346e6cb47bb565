/** YAML 1.2 documents of an operator: values checked with their place, edits that keep his comments. */
import {
	chmodSync,
	chownSync,
	closeSync,
	copyFileSync,
	fsyncSync,
	openSync,
	readFileSync,
	realpathSync,
	renameSync,
	rmSync,
	statSync,
	writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import ipaddr from 'ipaddr.js';
import { type Document, isMap, isNode, isScalar, LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { BeelineError, codeOf } from '../../errors.js';

type Path = readonly (string | number)[];

/** A value that `parse` accepts; anything else is reported as "expected …". */
export function value<T>(expected: string, parse: (x: unknown) => T | undefined) {
	return z.unknown().transform((x, ctx): T => {
		const v = parse(x);
		if (v !== undefined) return v;
		ctx.issues.push({ code: 'custom', message: expected, input: x });
		return z.NEVER;
	});
}

const isInteger = (x: unknown): x is number => typeof x === 'number' && Number.isInteger(x);

export const integer = (min: number, max: number, what = 'a whole number') =>
	value(`${what} from ${min} to ${max}`, (x) => (isInteger(x) && x >= min && x <= max ? x : undefined));
export const port = integer(1, 65535, 'a port');
export const bool = value('true or false', (x) => (typeof x === 'boolean' ? x : undefined));
export const text = (what = 'a text') =>
	value(what, (x) => (typeof x === 'string' && x.length > 0 && !x.includes('\0') ? x : undefined));
export const oneOf = <const T extends string>(...words: readonly T[]) =>
	value(`${words.slice(0, -1).join(', ')}${words.length > 1 ? ' or ' : ''}${words.at(-1)}`, (x) =>
		words.find((w) => w === x),
	);

/** Names of nodes, services and networks: they become parts of ids, URLs and metric labels. */
export const name = value(
	'a name of letters, digits, _ . or -, beginning with a letter or digit, at most 128 long',
	(x) => (typeof x === 'string' && /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/.test(x) ? x : undefined),
);

const UNITS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `2h15m`, `60s`, `500ms`, `0` in milliseconds; undefined where it is none. At most 365 days. */
export function parseDuration(x: unknown): number | undefined {
	if (x === 0 || x === '0') return 0;
	if (typeof x !== 'string' || !/^(\d+(\.\d+)?(ms|s|m|h|d))+$/.test(x)) return undefined;
	let ms = 0;
	for (const [, n, unit] of x.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g)) ms += Number(n) * UNITS_MS[unit];
	return ms <= 365 * 86_400_000 ? Math.round(ms) : undefined;
}

/** Milliseconds in the notation of `parseDuration`: 8100000 is `2h15m`. */
export function formatDuration(ms: number): string {
	if (ms === 0) return '0s';
	let rest = ms;
	let out = '';
	for (const [unit, size] of [
		['h', 3_600_000],
		['m', 60_000],
		['s', 1000],
		['ms', 1],
	] as const) {
		const n = Math.floor(rest / size);
		if (n > 0) out += `${n}${unit}`;
		rest -= n * size;
	}
	return out;
}

export const duration = value('a duration such as 60s or 2h15m', parseDuration);

/** `512k`, `1Mi`, `65536`: powers of 1024. */
export function parseSize(x: unknown): number | undefined {
	if (isInteger(x)) return x >= 0 ? x : undefined;
	const m = typeof x === 'string' ? /^(\d+)(k|Ki|KiB|M|Mi|MiB|G|Gi|GiB)?$/.exec(x) : null;
	if (!m) return undefined;
	const scale: Readonly<Record<string, number>> = { k: 1024, K: 1024, M: 1024 ** 2, G: 1024 ** 3 };
	const n = Number(m[1]) * (m[2] ? scale[m[2][0]] : 1);
	return Number.isSafeInteger(n) ? n : undefined;
}

export const size = (min: number, max: number) =>
	value(`a size from ${min} to ${max}, such as 65536 or 64k`, (x) => {
		const n = parseSize(x);
		return n !== undefined && n >= min && n <= max ? n : undefined;
	});

/** An address in its shortest text (RFC 5952), or undefined. IPv4-mapped IPv6 becomes IPv4: they are one address. */
export function parseAddress(x: unknown, family?: 4 | 6): string | undefined {
	if (typeof x !== 'string' || x.includes('%') || x.includes('/')) return undefined;
	if (/^\d+\.\d+\.\d+\.\d+$/.test(x)) {
		if (family === 6 || !ipaddr.IPv4.isValidFourPartDecimal(x) || /(^|\.)0\d/.test(x)) return undefined;
		return x;
	}
	if (!x.includes(':') || !ipaddr.IPv6.isValid(x)) return undefined;
	const a = ipaddr.IPv6.parse(x);
	if (a.isIPv4MappedAddress()) return family === 6 ? undefined : a.toIPv4Address().toString();
	return family === 4 ? undefined : a.toRFC5952String();
}

/** Addresses that a packet can be sent to: not `0.0.0.0`, multicast, broadcast, loopback or link-local. */
export function isUsable(address: string): boolean {
	const range = ipaddr.parse(address).range();
	return !['unspecified', 'multicast', 'broadcast', 'loopback', 'linkLocal'].includes(range);
}

export const address = value('an IPv4 or IPv6 address such as 10.0.0.1 or fd00::1', (x) => {
	const a = parseAddress(x);
	return a !== undefined && isUsable(a) ? a : undefined;
});
export const address4 = value('an IPv4 address such as 10.0.0.1', (x) => {
	const a = parseAddress(x, 4);
	return a !== undefined && isUsable(a) ? a : undefined;
});

export const mac = value('a unicast MAC address such as 02:42:0a:00:00:05', (x) =>
	typeof x === 'string' && /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/i.test(x) ? x.toLowerCase() : undefined,
);

/** `10.0.0.0/8` with the host bits cleared, or undefined. A bare address is a prefix of its full length. */
export function parsePrefix(x: unknown): string | undefined {
	if (typeof x !== 'string') return undefined;
	const [a, bits, more] = x.split('/');
	const base = parseAddress(a);
	if (base === undefined || more !== undefined) return undefined;
	const full = base.includes(':') ? 128 : 32;
	if (bits !== undefined && (!/^\d{1,3}$/.test(bits) || Number(bits) > full)) return undefined;
	const length = bits === undefined ? full : Number(bits);
	const network =
		full === 32
			? ipaddr.IPv4.networkAddressFromCIDR(`${base}/${length}`).toString()
			: ipaddr.IPv6.networkAddressFromCIDR(`${base}/${length}`).toRFC5952String();
	return `${network}/${length}`;
}

/**
 * A prefix that has bits set behind its length (`10.1.2.3/8`), and what was meant; undefined: it has none, or is no prefix.
 * `address`: that address alone may have been meant as well.
 */
export function hostBits(x: unknown): { readonly prefix: string; readonly address: string } | undefined {
	const meant = parsePrefix(x);
	const address = parseAddress(String(x).split('/')[0]);
	return meant === undefined || address === undefined || !String(x).includes('/') || meant.split('/')[0] === address
		? undefined
		: { prefix: meant, address };
}

/** What is expected in place of one with host bits. */
export const withoutHostBits = (m: { readonly prefix: string; readonly address: string }, isList: boolean): string =>
	`${m.prefix} without host bits${isList ? `, or ${m.address} for that address alone` : ''}`;

/** Host bits are refused: they are a slip, and whether in the address or in the length only the operator knows. */
const exactPrefix = (isList: boolean) =>
	z.unknown().transform((x, ctx): string => {
		const meant = hostBits(x);
		const v = parsePrefix(x);
		if (v !== undefined && meant === undefined) return v;
		const message = meant === undefined ? 'a prefix such as 10.0.0.0/8 or fd00::/8' : withoutHostBits(meant, isList);
		ctx.issues.push({ code: 'custom', message, input: x });
		return z.NEVER;
	});
/** Of a network. */
export const prefix = exactPrefix(false);
/** In a list of clients, where a bare address stands for itself. */
export const clientPrefix = exactPrefix(true);

/** What an object of a schema may hold; zod does not say it, so the schema's owner does. */
export function keysOf(schema: z.ZodType, path: Path): string[] {
	let at: unknown = schema;
	const unwrap = () => {
		for (;;) {
			if (at instanceof z.ZodOptional || at instanceof z.ZodDefault || at instanceof z.ZodPrefault)
				at = at.def.innerType;
			else if (at instanceof z.ZodPipe) at = at.def.in;
			else return;
		}
	};
	for (const step of path) {
		unwrap();
		if (at instanceof z.ZodArray) at = at.element;
		else if (at instanceof z.ZodRecord) at = at.valueType;
		else if (at instanceof z.ZodObject) at = at.shape[String(step)];
		else return [];
	}
	unwrap();
	return at instanceof z.ZodObject ? Object.keys(at.shape) : [];
}

/** `services[0].ports[1].published` */
export function pathText(path: Path): string {
	return path.map((p, i) => (typeof p === 'number' ? `[${p}]` : i === 0 ? p : `.${p}`)).join('');
}

/** `is 70000`, cut where it is long: what is wrong with a megabyte is no sentence of a megabyte. */
export const shown = (x: unknown): string => {
	if (x === undefined) return 'is missing';
	if (Array.isArray(x)) return 'is a list';
	if (typeof x === 'object' && x !== null) return 'is a mapping';
	const s = JSON.stringify(x);
	return `is ${s.length > 60 ? `${s.slice(0, 57)}…` : s}`;
};

/** One thing that is wrong with a document. */
export interface Problem {
	readonly path: Path;
	/** Follows the place: `is 70000: expected a port from 1 to 65535`. */
	readonly text: string;
	/** Points at the key rather than at its value. */
	readonly key?: boolean;
}

/** A document that was read: its value, and where each part of it stands. */
export interface Source {
	readonly file: string;
	readonly text: string;
	readonly data: unknown;
	/** The parsed document; built when first needed, because building it costs 20 times a JSON.parse. */
	doc(): Document;
	/** `mesh.yaml:12:5` */
	place(path: Path, key?: boolean): string;
}

/**
 * Reads YAML 1.2 (JSON included).
 * @throws BeelineError BAD_YAML with file, line and column
 */
export function parseSource(file: string, content: string): Source {
	const lines = new LineCounter();
	let doc: Document | undefined;
	const build = (): Document => {
		if (doc) return doc;
		const d = parseDocument(content, { version: '1.2', lineCounter: lines, prettyErrors: false, uniqueKeys: true });
		const error = d.errors[0];
		if (error) {
			const at = lines.linePos(error.pos[0]);
			const why =
				error.code === 'MULTIPLE_DOCS' ? 'a second document begins: expected one' : error.message.split('\n')[0];
			throw new BeelineError('BAD_YAML', `${file}:${at.line}:${at.col}: not YAML: ${why}`);
		}
		doc = d;
		return d;
	};
	let data: unknown;
	// A generated mesh of 100 000 backends is JSON, and JSON is YAML: no need to build its syntax tree.
	if (/^\s*\{/.test(content)) {
		try {
			data = JSON.parse(content);
		} catch {
			data = undefined;
		}
	}
	if (data === undefined) {
		const d = build();
		try {
			data = d.toJS({ maxAliasCount: 1000 });
		} catch (e) {
			if (!(e instanceof ReferenceError)) throw e;
			throw new BeelineError(
				'BAD_YAML',
				`${file}:1:1: not YAML: its aliases (*name) stand for too much: expected the values themselves`,
			);
		}
	}
	return {
		file,
		text: content,
		data,
		doc: build,
		place(path, key = false) {
			const d = build();
			for (let n = path.length; n >= 0; n--) {
				const parent = n > 0 ? d.getIn(path.slice(0, n - 1), true) : undefined;
				const pair = isMap(parent)
					? parent.items.find((p) => (isScalar(p.key) ? String(p.key.value) : '') === String(path[n - 1]))
					: undefined;
				const node = (key || n < path.length) && pair && isNode(pair.key) ? pair.key : d.getIn(path.slice(0, n), true);
				const found = isNode(node) ? node : pair && isNode(pair.key) ? pair.key : undefined;
				if (found?.range) {
					const at = lines.linePos(found.range[0]);
					return `${file}:${at.line}:${at.col}`;
				}
			}
			return `${file}:1:1`;
		},
	};
}

/** Turns problems into the one sentence that names the first of them. */
export function refuse(source: Source, problems: readonly Problem[]): BeelineError {
	const [first] = problems;
	const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
	const where = pathText(first.path);
	return new BeelineError(
		'INVALID_CONFIG',
		`${source.file === '' ? '' : `${source.place(first.path, first.key)}: `}${where}${where ? ' ' : ''}${first.text}${more}`,
		{ field: where },
	);
}

/** Checks a value against a schema whose objects are strict. */
export function check<T extends z.ZodType>(schema: T, data: unknown): { data?: z.output<T>; problems: Problem[] } {
	const result = schema.safeParse(data, { reportInput: true });
	if (result.success) return { data: result.data, problems: [] };
	const problems: Problem[] = [];
	for (const issue of result.error.issues) {
		const path = issue.path.filter((p): p is string | number => typeof p !== 'symbol');
		if (issue.code === 'unrecognized_keys') {
			const keys = keysOf(schema, path);
			for (const key of issue.keys)
				problems.push({
					path: [...path, key],
					key: true,
					text: `is an unknown key: expected ${keys.length > 1 ? 'one of ' : ''}${keys.join(', ')}`,
				});
		} else if (issue.code === 'invalid_type') {
			const expected = { object: 'a mapping', record: 'a mapping', array: 'a list' }[issue.expected as string];
			problems.push({ path, text: `${shown(issue.input)}: expected ${expected ?? issue.expected}` });
		} else problems.push({ path, text: `${shown(issue.input)}: expected ${issue.message}` });
	}
	// A key that is not known is why another seems to be missing.
	return { problems: problems.sort((a, b) => Number(b.key ?? false) - Number(a.key ?? false)) };
}

/**
 * Replaces a file at once: readers see the old text or the new, and mode and owner stay. A symbolic link is followed.
 * A file that is itself a mount point (Docker's bind mounts) cannot be renamed over and is written in place.
 */
export function writeAtomically(file: string, content: string): void {
	const target = realpathSync(file);
	const temporary = join(dirname(target), `.${basename(target)}.${process.pid}.tmp`);
	const stat = statSync(target);
	try {
		const fd = openSync(temporary, 'w', stat.mode & 0o777);
		try {
			writeSync(fd, content);
			fsyncSync(fd);
		} finally {
			closeSync(fd);
		}
		chmodSync(temporary, stat.mode & 0o7777);
		try {
			chownSync(temporary, stat.uid, stat.gid);
		} catch {
			// not root: the file becomes ours, as with any editor
		}
		try {
			renameSync(temporary, target);
		} catch (error) {
			if (codeOf(error) !== 'EBUSY') throw error;
			copyFileSync(temporary, target);
			rmSync(temporary);
		}
	} catch (error) {
		rmSync(temporary, { force: true });
		throw new BeelineError('WRITE_FAILED', `write ${file}: ${(error as Error).message}`, { cause: error });
	}
}

/** Reads a file as text. @throws BeelineError READ_FAILED */
export function readText(file: string, what: string): string {
	try {
		return readFileSync(file, 'utf8');
	} catch (error) {
		throw readFailed(error, file, what);
	}
}

export function readFailed(error: unknown, file: string, what: string): BeelineError {
	const why =
		{ ENOENT: 'it does not exist', EISDIR: 'it is a directory: name a file in it' }[codeOf(error)] ??
		(error as Error).message;
	return new BeelineError('READ_FAILED', `read ${what} ${file}: ${why}`, { cause: error });
}
