/**
 * A quick reading of the plain part of YAML, for meshes that a program wrote: JSON, and block YAML whose scalars are
 * words, whole numbers, addresses and simple quotes, each value in one line. The list under one top-level key is split
 * into the bytes of its items first, so that a change of one item needs no reading of the others.
 *
 * Whatever is not plain makes every function here say undefined, and the real parser (document.ts) takes over: it alone
 * refuses a document, and says why. test/mesh/plain.test.ts holds the two together.
 */

/** How the list is written. */
export interface Form {
	readonly json: boolean;
	/** Column of the list's dashes; 0 in JSON. */
	readonly indent: number;
}

/** Where the items of the list lie: item i is bytes starts[i] to ends[i]. */
export interface Items extends Form {
	readonly starts: readonly number[];
	readonly ends: readonly number[];
}

/** A document in two parts: what is around the list's items, parsed, and where the items are. */
export interface Split extends Items {
	readonly head: Readonly<Record<string, unknown>>;
}

const SPACE = 0x20;
const NEWLINE = 0x0a;
const QUOTE = 0x22;
const HASH = 0x23;
const COMMA = 0x2c;
const DASH = 0x2d;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_MAP = 0x7b;
const CLOSE_MAP = 0x7d;

/** @param bytes ASCII */
export function splitPlain(bytes: Buffer, key: string): Split | undefined {
	let i = 0;
	while (i < bytes.length && (bytes[i] === SPACE || bytes[i] === NEWLINE)) i++;
	return bytes[i] === OPEN_MAP ? splitJson(bytes, key) : splitYaml(bytes, key);
}

/** Items of a part of the list, from the start of one item to the end of one. */
export function splitItems(bytes: Buffer, from: number, to: number, { json, indent }: Form): Items | undefined {
	const starts: number[] = [];
	const ends: number[] = [];
	if (json) {
		const at = jsonItems(bytes, from, to, starts, ends);
		return at === to ? { json, indent, starts, ends } : undefined;
	}
	// A line that was cut in two would be read as two.
	if (to < bytes.length && bytes[to - 1] !== NEWLINE) return undefined;
	const at = yamlItems(bytes, from, to, indent, starts, ends);
	return at === to ? { json, indent, starts, ends } : undefined;
}

/** The value of one item, undefined where it is not plain. */
export function parseItem(bytes: Buffer, from: number, to: number, like: Form): unknown {
	const text = bytes.toString('latin1', from, to);
	if (like.json) {
		try {
			return JSON.parse(text);
		} catch {
			return undefined;
		}
	}
	const list = parsePlainYaml(text);
	return Array.isArray(list) && list.length === 1 ? list[0] : undefined;
}

// --- JSON (RFC 8259): brackets are counted here, everything else is JSON.parse's to judge

function jsonSpace(b: Buffer, at: number): number {
	let i = at;
	while (b[i] === SPACE || b[i] === NEWLINE || b[i] === 0x09 || b[i] === 0x0d) i++;
	return i;
}

/** After the value that begins at `at`. */
function jsonValue(b: Buffer, at: number, to: number): number {
	let i = at;
	let depth = 0;
	while (i < to) {
		const c = b[i];
		if (c === QUOTE) {
			for (i++; i < to && b[i] !== QUOTE; i++) if (b[i] === BACKSLASH) i++;
		} else if (c === OPEN_MAP || c === OPEN_LIST) depth++;
		else if (c === CLOSE_MAP || c === CLOSE_LIST) {
			if (depth === 0) return i;
			depth--;
		} else if (c === COMMA && depth === 0) return i;
		i++;
		if (depth === 0 && (c === CLOSE_MAP || c === CLOSE_LIST || c === QUOTE)) return i;
	}
	return i;
}

/** Reads items and the commas between them; stops after the last. -1: something else stands there. */
function jsonItems(b: Buffer, from: number, to: number, starts: number[], ends: number[]): number {
	let i = jsonSpace(b, from);
	for (;;) {
		if (b[i] !== OPEN_MAP) return -1;
		const end = jsonValue(b, i, to);
		starts.push(i);
		ends.push(end);
		i = jsonSpace(b, end);
		if (i >= to || b[i] !== COMMA) return end;
		i = jsonSpace(b, i + 1);
	}
}

function splitJson(b: Buffer, wanted: string): Split | undefined {
	const starts: number[] = [];
	const ends: number[] = [];
	let cut: readonly [number, number] | undefined;
	let i = jsonSpace(b, 0) + 1;
	for (;;) {
		i = jsonSpace(b, i);
		if (b[i] !== QUOTE) return undefined;
		const end = b.indexOf(QUOTE, i + 1);
		if (end < 0) return undefined;
		const key = b.toString('latin1', i + 1, end);
		if (key.includes('\\')) return undefined;
		i = jsonSpace(b, end + 1);
		if (b[i] !== COLON) return undefined;
		i = jsonSpace(b, i + 1);
		if (key === wanted) {
			if (cut || b[i] !== OPEN_LIST) return undefined;
			const from = i + 1;
			i = jsonSpace(b, from);
			if (b[i] !== CLOSE_LIST) i = jsonItems(b, i, b.length, starts, ends);
			if (i < 0) return undefined;
			i = jsonSpace(b, i);
			if (b[i] !== CLOSE_LIST) return undefined;
			cut = [from, i];
			i++;
		} else i = jsonValue(b, i, b.length);
		i = jsonSpace(b, i);
		if (b[i] === COMMA) i++;
		else if (b[i] === CLOSE_MAP) break;
		else return undefined;
	}
	if (!cut) return undefined;
	try {
		const head = JSON.parse(b.toString('latin1', 0, cut[0]) + b.toString('latin1', cut[1]));
		return { json: true, starts, ends, indent: 0, head };
	} catch {
		return undefined;
	}
}

// --- YAML

/** Cuts lines into items. Answers where the list ends: at a line that is less indented, or `to`. -1: not plain. */
function yamlItems(b: Buffer, from: number, to: number, indent: number, starts: number[], ends: number[]): number {
	let i = from;
	while (i < to) {
		let at = i;
		while (b[at] === SPACE) at++;
		const c = at < to ? b[at] : NEWLINE;
		if (c !== NEWLINE && c !== HASH) {
			const column = at - i;
			if (column < indent || (column === indent && c !== DASH)) break;
			if (column === indent) {
				if (b[at + 1] !== SPACE) return -1;
				if (starts.length > 0) ends.push(i);
				starts.push(i);
			} else if (starts.length === 0) return -1;
		}
		const end = b.indexOf(NEWLINE, at);
		i = end < 0 || end >= to ? to : end + 1;
	}
	if (starts.length === 0) return -1;
	ends.push(i);
	return i;
}

function splitYaml(b: Buffer, wanted: string): Split | undefined {
	// Its own line at the very left: inside of anything plain nothing else can be.
	const line = `${wanted}:`;
	let at = -1;
	for (let from = 0; ; ) {
		const found = b.indexOf(line, from, 'latin1');
		if (found < 0) break;
		if (found === 0 || b[found - 1] === NEWLINE) {
			if (at >= 0) return undefined;
			at = found;
		}
		from = found + 1;
	}
	if (at < 0) return undefined;
	let i = at + line.length;
	while (b[i] === SPACE) i++;
	if (b[i] !== NEWLINE) return undefined;
	const from = i + 1;
	// The first dash says how deep the list is.
	let indent = -1;
	for (let k = from; k < b.length; ) {
		let p = k;
		while (b[p] === SPACE) p++;
		if (p < b.length && b[p] !== NEWLINE && b[p] !== HASH) {
			if (b[p] === DASH) indent = p - k;
			break;
		}
		const end = b.indexOf(NEWLINE, p);
		k = end < 0 ? b.length : end + 1;
	}
	if (indent < 0) return undefined;
	const starts: number[] = [];
	const ends: number[] = [];
	const to = yamlItems(b, from, b.length, indent, starts, ends);
	if (to < 0) return undefined;
	const head = parsePlainYaml(b.toString('latin1', 0, from) + b.toString('latin1', to));
	if (typeof head !== 'object' || head === null || Array.isArray(head)) return undefined;
	return { json: false, starts, ends, indent, head: head as Record<string, unknown> };
}

/** Stands for "not plain" where null is a value. */
const NOT: unique symbol = Symbol('not plain');
type Maybe = unknown | typeof NOT;

interface Line {
	/** Column of its first character. */
	readonly indent: number;
	readonly text: string;
}

const KEY = /([A-Za-z][A-Za-z0-9_-]*):(?: +|$)/y;
const WORD = /[A-Za-z0-9](?:[A-Za-z0-9._~/-]|:(?=[A-Za-z0-9._~/:-]))*/y;
const QUOTED = /"([ !#-[\]-~]*)"|'([ -&(-~]*)'/y;
const COMMENT_OR_END = /(?: +#.*| *)$/y;
/** Words that the core schema (YAML 1.2.2, 10.3.2) takes for something other than a text or a plain whole number. */
const NOT_A_TEXT = /^(?:null|true|false|[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|0[ox].*)$/i;

function scalar(word: string): Maybe {
	if (!NOT_A_TEXT.test(word)) return word;
	if (word === 'true') return true;
	if (word === 'false') return false;
	return /^(?:0|[1-9][0-9]{0,14})$/.test(word) ? Number(word) : NOT;
}

/** A value in one line, from `at`; `end` is where it ended. */
class LineReader {
	at = 0;

	constructor(private readonly text: string) {}

	private match(r: RegExp): RegExpExecArray | null {
		r.lastIndex = this.at;
		const m = r.exec(this.text);
		if (m) this.at = r.lastIndex;
		return m;
	}

	private space(): void {
		while (this.text.charCodeAt(this.at) === SPACE) this.at++;
	}

	private take(code: number): boolean {
		if (this.text.charCodeAt(this.at) !== code) return false;
		this.at++;
		return true;
	}

	key(): string | undefined {
		const key = this.match(KEY)?.[1];
		return key === undefined || NOT_A_TEXT.test(key) ? undefined : key;
	}

	/** Nothing but a comment is left. */
	ends(): boolean {
		if (this.text.charCodeAt(this.at) === HASH && this.text.charCodeAt(this.at - 1) === SPACE) return true;
		return this.match(COMMENT_OR_END) !== null;
	}

	value(): Maybe {
		const c = this.text.charCodeAt(this.at);
		if (c === OPEN_MAP) return this.map();
		if (c === OPEN_LIST) return this.list();
		if (c === QUOTE || c === 0x27) {
			const m = this.match(QUOTED);
			return m ? (m[1] ?? m[2]) : NOT;
		}
		const word = this.match(WORD)?.[0];
		return word === undefined ? NOT : scalar(word);
	}

	private map(): Maybe {
		const out: Record<string, unknown> = {};
		this.at++;
		this.space();
		if (this.take(CLOSE_MAP)) return out;
		for (;;) {
			this.space();
			const key = this.key();
			if (key === undefined || Object.hasOwn(out, key)) return NOT;
			const v = this.value();
			if (v === NOT) return NOT;
			out[key] = v;
			this.space();
			if (this.take(CLOSE_MAP)) return out;
			if (!this.take(COMMA)) return NOT;
		}
	}

	private list(): Maybe {
		const out: unknown[] = [];
		this.at++;
		this.space();
		if (this.take(CLOSE_LIST)) return out;
		for (;;) {
			this.space();
			const v = this.value();
			if (v === NOT) return NOT;
			out.push(v);
			this.space();
			if (this.take(CLOSE_LIST)) return out;
			if (!this.take(COMMA)) return NOT;
		}
	}
}

/** The value of plain block YAML; undefined where it is not plain or empty. */
export function parsePlainYaml(text: string): unknown {
	if (/[\r\t\0]/.test(text)) return undefined;
	const lines: Line[] = [];
	for (const line of text.split('\n')) {
		let indent = 0;
		while (line.charCodeAt(indent) === SPACE) indent++;
		if (indent < line.length && line.charCodeAt(indent) !== HASH)
			lines.push({ indent, text: indent === 0 ? line : line.slice(indent) });
	}
	if (lines.length === 0) return undefined;
	let n = 0;

	/** The value of a key or dash that has nothing else in its line. */
	const below = (indent: number, dashesToo: boolean): Maybe => {
		const next = lines[n];
		if (next === undefined || next.indent < indent) return null;
		if (next.indent > indent) return block(next.indent);
		return dashesToo && isDash(next.text) ? sequence(indent) : null;
	};
	/** The rest of a line; what follows must not continue it. */
	const inline = (r: LineReader, indent: number): Maybe => {
		const v = r.value();
		if (v === NOT || !r.ends()) return NOT;
		return lines[n] !== undefined && lines[n].indent > indent ? NOT : v;
	};
	const isDash = (t: string): boolean => t.charCodeAt(0) === DASH && (t.length === 1 || t.charCodeAt(1) === SPACE);
	const block = (indent: number): Maybe => (isDash(lines[n].text) ? sequence(indent) : mapping(indent));
	const mapping = (indent: number): Maybe => {
		const out: Record<string, unknown> = {};
		while (n < lines.length && lines[n].indent === indent && !isDash(lines[n].text)) {
			const r = new LineReader(lines[n].text);
			const key = r.key();
			if (key === undefined || Object.hasOwn(out, key)) return NOT;
			n++;
			const v = r.ends() ? below(indent, true) : inline(r, indent);
			if (v === NOT) return NOT;
			out[key] = v;
		}
		return lines[n] !== undefined && lines[n].indent > indent ? NOT : out;
	};
	const sequence = (indent: number): Maybe => {
		const out: unknown[] = [];
		while (n < lines.length && lines[n].indent === indent && isDash(lines[n].text)) {
			const { text } = lines[n];
			let rest = 1;
			while (text.charCodeAt(rest) === SPACE) rest++;
			let v: Maybe;
			if (rest >= text.length || text.charCodeAt(rest) === HASH) {
				n++;
				v = below(indent, false);
			} else {
				const inner = text.slice(rest);
				if (isDash(inner)) return NOT;
				if (new LineReader(inner).key() !== undefined) {
					// `- name: web`: a mapping whose first key stands behind the dash.
					lines[n] = { indent: indent + rest, text: inner };
					v = mapping(indent + rest);
				} else {
					n++;
					v = inline(new LineReader(inner), indent);
				}
			}
			if (v === NOT) return NOT;
			out.push(v);
		}
		return lines[n] !== undefined && lines[n].indent > indent ? NOT : out;
	};
	const value = block(lines[0].indent);
	return value === NOT || n < lines.length ? undefined : value;
}
