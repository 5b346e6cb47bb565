/**
 * A query's bytes and a view → the answer's bytes, or that it is to be forwarded. Pure but for the random numbers given.
 *
 * dns-packet reads the messages and writes the records. Beside it stand the header, and the question as it came: a
 * reader's own spelling (RFC 4343, and clients that mix the case to recognise their answers) and labels that are no text
 * return unchanged, and every record points to it (RFC 1035 section 4.1.4), which dns-packet does not do.
 */
import packet, { type Answer, type OptAnswer } from 'dns-packet';
import type { Result } from './counters.js';
import { addressesOf, type Family, pointerOf, type View } from './zone.js';

/** Seconds; Docker's. */
export const TTL = 600;
/** What a client without EDNS0 takes over UDP (RFC 1035 section 4.2.1). */
const MIN_UDP = 512;
/** The largest UDP payload of IPv4; `lo` has an MTU that holds it. */
const MAX_UDP = 65507;
const MAX_TCP = 65535;
/** What we take over UDP, told in answers with EDNS0. */
const OUR_UDP = 4096;

const QR = 0x8000;
const TC = 0x0200;
const RD = 0x0100;
const RA = 0x0080;
const CD = 0x0010;

export const RCODE = { NOERROR: 0, FORMERR: 1, SERVFAIL: 2, NXDOMAIN: 3, NOTIMP: 4, REFUSED: 5 } as const;
export type Rcode = keyof typeof RCODE;

export type Transport = 'udp' | 'tcp';

/** A query that was understood, with what an answer to it needs. */
export interface Query {
	readonly id: number;
	readonly flags: number;
	readonly name: string;
	/** Number, as in RFC 1035 and IANA's table. */
	readonly type: number;
	readonly class: number;
	/** Its question section, as it came. */
	readonly question: Uint8Array;
	readonly edns: boolean;
	/** Bytes that an answer may have. */
	readonly limit: number;
}

export type Outcome =
	| { readonly kind: 'answer'; readonly result: Result; readonly bytes: Uint8Array; readonly truncated: boolean }
	| { readonly kind: 'forward'; readonly query: Query }
	/** Nothing is to be said: it is an answer itself, or no message. */
	| { readonly kind: 'drop' };

const A = 1;
const PTR = 12;
const AAAA = 28;
const IXFR = 251;
const AXFR = 252;
const ANY_TYPE = 255;
const IN = 1;
const ANY_CLASS = 255;
const HEADER = 12;

interface Counts {
	readonly answers: number;
	readonly additionals: number;
}

/** An answer's bytes. What is after the question comes ready. */
function message(id: number, flags: number, question: Uint8Array, counts: Counts, rest: readonly Uint8Array[]): Buffer {
	const header = Buffer.alloc(HEADER);
	header.writeUInt16BE(id, 0);
	header.writeUInt16BE(flags, 2);
	header.writeUInt16BE(question.length > 0 ? 1 : 0, 4);
	header.writeUInt16BE(counts.answers, 6);
	header.writeUInt16BE(counts.additionals, 10);
	return Buffer.concat([header, question, ...rest]);
}

/** One record as dns-packet writes it, without its name. */
function recordTail(answer: Answer): Uint8Array {
	// Header, and one byte of the root's name.
	return new Uint8Array(packet.encode({ type: 'response', answers: [answer] })).subarray(HEADER + 1);
}

/** A record whose name is the question's. */
function record(type: 'A' | 'AAAA' | 'PTR', data: string): Uint8Array {
	return Buffer.concat([Buffer.from([0xc0, HEADER]), recordTail({ name: '.', type, class: 'IN', ttl: TTL, data })]);
}

/** RFC 6891. @param extended the upper bits of the response code */
function optOf(extended: number): Uint8Array {
	const opt: OptAnswer = {
		name: '.',
		type: 'OPT',
		udpPayloadSize: OUR_UDP,
		extendedRcode: extended,
		ednsVersion: 0,
		flags: 0,
		flag_do: false,
		options: [],
	};
	return new Uint8Array(packet.encode({ type: 'response', additionals: [opt] })).subarray(HEADER);
}
const OPT = optOf(0);
const OPT_BADVERS = optOf(1);

/** Records of a name's addresses, written once for each list that a zone holds. */
const records = new WeakMap<readonly string[], readonly Uint8Array[]>();

function recordsOf(type: 'A' | 'AAAA', addresses: readonly string[]): readonly Uint8Array[] {
	let r = records.get(addresses);
	if (r === undefined) {
		r = addresses.map((a) => record(type, a));
		records.set(addresses, r);
	}
	return r;
}

/** The first `count` of a list shuffled (Fisher and Yates). @param random in [0, 1) */
export function shuffled<T>(list: readonly T[], random: () => number, count = list.length): T[] {
	const out = [...list];
	for (let i = 0; i < Math.min(count, out.length - 1); i++) {
		const j = i + Math.floor(random() * (out.length - i));
		[out[i], out[j]] = [out[j]!, out[i]!];
	}
	return out.slice(0, count);
}

/**
 * Where the question ends, or undefined: a name of labels, without pointers (there is nothing before it to point to),
 * then type and class.
 */
function questionEnd(bytes: Uint8Array): number | undefined {
	let at = HEADER;
	for (;;) {
		const length = bytes[at];
		if (length === undefined || length > 63) return undefined;
		at += 1 + length;
		if (length === 0) break;
		if (at - HEADER > 255) return undefined;
	}
	return at - HEADER <= 255 && at + 4 <= bytes.length ? at + 4 : undefined;
}

const reply = (flags: number, rcode: number): number =>
	// Operation code, recursion desired and checking disabled are the question's.
	QR | (flags & 0x7800) | (flags & (RD | CD)) | RA | rcode;

type Understood = { readonly query: Query } | { readonly outcome: Outcome };

/**
 * Reads a query, and answers what is none as miekg/dns does for Docker: more than one question, answers in a question, or
 * more than two additional records are a format error; operations other than QUERY are not implemented.
 */
export function understand(bytes: Uint8Array, via: Transport): Understood {
	const drop: Understood = { outcome: { kind: 'drop' } };
	if (bytes.length < HEADER) return drop;
	const b = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	const id = b.readUInt16BE(0);
	const flags = b.readUInt16BE(2);
	if (flags & QR) return drop;
	const say = (rcode: Rcode, result: Result): Understood => ({
		outcome: {
			kind: 'answer',
			result,
			bytes: message(id, reply(flags, RCODE[rcode]), new Uint8Array(0), { answers: 0, additionals: 0 }, []),
			truncated: false,
		},
	});
	if ((flags >> 11) & 15) return say('NOTIMP', 'unsupported');
	if (b.readUInt16BE(4) !== 1 || b.readUInt16BE(6) > 1 || b.readUInt16BE(8) > 1 || b.readUInt16BE(10) > 2)
		return say('FORMERR', 'malformed');
	const end = questionEnd(b);
	if (end === undefined) return say('FORMERR', 'malformed');
	let decoded: packet.DecodedPacket;
	try {
		decoded = packet.decode(b);
	} catch {
		return say('FORMERR', 'malformed');
	}
	const opts = (decoded.additionals ?? []).filter((a): a is OptAnswer => a.type === 'OPT');
	if (opts.length > 1) return say('FORMERR', 'malformed');
	const opt = opts[0];
	const query: Query = {
		id,
		flags,
		name: decoded.questions?.[0]?.name ?? '.',
		type: b.readUInt16BE(end - 4),
		class: b.readUInt16BE(end - 2),
		question: Uint8Array.prototype.slice.call(b, HEADER, end),
		edns: opt !== undefined,
		limit: via === 'tcp' ? MAX_TCP : Math.min(MAX_UDP, Math.max(MIN_UDP, opt?.udpPayloadSize ?? 0)),
	};
	if (opt !== undefined && opt.ednsVersion !== 0)
		return {
			outcome: {
				kind: 'answer',
				result: 'unsupported',
				bytes: message(id, reply(flags, 0), query.question, { answers: 0, additionals: 1 }, [OPT_BADVERS]),
				truncated: false,
			},
		};
	return { query };
}

/** An answer without records. */
export function plainAnswer(query: Query, rcode: Rcode): Uint8Array {
	return message(
		query.id,
		reply(query.flags, RCODE[rcode]),
		query.question,
		{ answers: 0, additionals: query.edns ? 1 : 0 },
		query.edns ? [OPT] : [],
	);
}

/** As many of the records as fit. @param size bytes of each */
function fit(query: Query, lists: readonly { readonly list: readonly Uint8Array[]; readonly random?: () => number }[]) {
	let room = query.limit - HEADER - query.question.length - (query.edns ? OPT.length : 0);
	const out: Uint8Array[] = [];
	let truncated = false;
	for (const { list, random } of lists) {
		if (list.length === 0) continue;
		// Those of one list are alike, but for a PTR, which stands alone.
		const count = Math.min(list.length, Math.max(0, Math.floor(room / list[0]!.length)));
		if (count < list.length) truncated = true;
		out.push(...(random ? shuffled(list, random, count) : list.slice(0, count)));
		room -= count * list[0]!.length;
	}
	return { out, truncated };
}

/**
 * @param bytes one message
 * @param random in [0, 1): the order of addresses
 */
export function resolve(bytes: Uint8Array, view: View, via: Transport, random: () => number): Outcome {
	const u = understand(bytes, via);
	if ('outcome' in u) return u.outcome;
	const { query } = u;
	const plain = (rcode: Rcode, result: Result): Outcome => ({
		kind: 'answer',
		result,
		bytes: plainAnswer(query, rcode),
		truncated: false,
	});
	const withRecords = (lists: Parameters<typeof fit>[1]): Outcome => {
		const { out, truncated } = fit(query, lists);
		return {
			kind: 'answer',
			result: 'answer',
			truncated,
			bytes: message(
				query.id,
				reply(query.flags, 0) | (truncated ? TC : 0),
				query.question,
				{ answers: out.length, additionals: query.edns ? 1 : 0 },
				query.edns ? [...out, OPT] : out,
			),
		};
	};
	// Chaosnet and the rest would ask about the node's own servers (version.bind).
	if (query.class !== IN && query.class !== ANY_CLASS) return plain('REFUSED', 'refused');
	// Zone transfers, which are many messages, are nobody's business here.
	if (query.type === AXFR || query.type === IXFR) return plain('REFUSED', 'refused');

	if (query.type === PTR) {
		const name = pointerOf(view, query.name);
		if (name !== undefined) return withRecords([{ list: [record('PTR', name)] }]);
	}
	const families: Family[] = query.type === A ? ['v4'] : query.type === AAAA ? ['v6'] : ['v4', 'v6'];
	const found = families.map((family) => addressesOf(view, query.name, family));
	if (found.some((f) => f !== undefined)) {
		// Whatever else is asked about a name of ours: the name is there, that kind of record is not. Docker forwards all but
		// MX, and the world's "no such domain" then denies the name for every type (RFC 8020).
		if (query.type !== A && query.type !== AAAA && query.type !== ANY_TYPE) return plain('NOERROR', 'nodata');
		const lists = families.map((family, i) => ({
			list: recordsOf(family === 'v4' ? 'A' : 'AAAA', found[i] ?? []),
			random,
		}));
		return lists.every((l) => l.list.length === 0) ? plain('NOERROR', 'nodata') : withRecords(lists);
	}
	return view.forward ? { kind: 'forward', query } : plain('SERVFAIL', 'servfail');
}
