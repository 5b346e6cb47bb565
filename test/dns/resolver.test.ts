import packet from 'dns-packet';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { resolve, shuffled } from '../../src/dns/resolver.js';
import { namesOf, viewOf } from '../../src/dns/zone.js';
import { answered, ask, blue, edns, red, reverseName, view } from './support.js';

const tableView = view(red, blue);
/** name and type → what is said. Addresses without their order. */
const TABLE: readonly [what: string, name: string, type: string, rcode: string, answers: string[]][] = [
	['dnsrr within a network', 'db.red', 'A', 'NOERROR', ['10.44.0.20', '10.44.0.21', '10.44.0.22']],
	['networks with one name: the first in order', 'web', 'A', 'NOERROR', ['10.55.0.2']],
	['a family that only the second network has', 'web', 'AAAA', 'NOERROR', ['fd44::2']],
	['a name within a network', 'web.red', 'A', 'NOERROR', ['10.44.0.2']],
	['the case does not matter', 'wEb.ReD', 'A', 'NOERROR', ['10.44.0.2']],
	['tasks, of the first network', 'tasks.web', 'A', 'NOERROR', ['10.55.0.10']],
	['tasks within a network', 'tasks.web.red', 'A', 'NOERROR', ['10.44.0.10', '10.44.0.11']],
	['tasks of the other family', 'tasks.web.red', 'AAAA', 'NOERROR', ['fd44::10']],
	['dnsrr is all tasks', 'db', 'A', 'NOERROR', ['10.44.0.20', '10.44.0.21', '10.44.0.22']],
	['tasks.dnsrr too', 'tasks.db', 'A', 'NOERROR', ['10.44.0.20', '10.44.0.21', '10.44.0.22']],
	['a service alias', 'www', 'A', 'NOERROR', ['10.44.0.2']],
	['tasks of an alias', 'tasks.www', 'A', 'NOERROR', ['10.44.0.10', '10.44.0.11']],
	['a service at rest keeps its VIP', 'idle', 'A', 'NOERROR', ['10.44.0.3']],
	['and has no tasks', 'tasks.idle', 'A', 'NOERROR', []],
	['dnsrr without tasks is still ours', 'empty', 'A', 'NOERROR', []],
	['an endpoint', 'alice', 'A', 'NOERROR', ['10.44.0.30']],
	['an endpoint, v6', 'alice', 'AAAA', 'NOERROR', ['fd44::30']],
	['the other family of an endpoint', 'bob', 'AAAA', 'NOERROR', []],
	['an alias of two endpoints', 'al', 'A', 'NOERROR', ['10.44.0.30', '10.44.0.31']],
	['an alias of an endpoint without a name', 'nameless', 'A', 'NOERROR', ['10.44.0.32']],
	['a name with dots', 'web.1.q7r', 'A', 'NOERROR', ['10.44.0.10']],
	['a name with dots within a network', 'web.1.q7r.red', 'A', 'NOERROR', ['10.44.0.10']],
	['only in v6', 'carol', 'A', 'NOERROR', []],
	['MX of a name of ours', 'web', 'MX', 'NOERROR', []],
	['TXT of a name of ours', 'web', 'TXT', 'NOERROR', []],
	['SRV of a name of ours', 'web', 'SRV', 'NOERROR', []],
	['ANY is both families', 'alice', 'ANY', 'NOERROR', ['10.44.0.30', 'fd44::30']],
	['PTR of an endpoint', '30.0.44.10.in-addr.arpa', 'PTR', 'NOERROR', ['alice.red']],
	['PTR, v6', reverseName('fd44::30'), 'PTR', 'NOERROR', ['alice.red']],
	['PTR, any case', reverseName('fd44::30').toUpperCase(), 'PTR', 'NOERROR', ['alice.red']],
	['PTR of a task that is an endpoint', '10.0.44.10.in-addr.arpa', 'PTR', 'NOERROR', ['web.1.q7r.red']],
	['PTR of a task without a name', '11.0.44.10.in-addr.arpa', 'PTR', 'NOERROR', ['tasks.web.red']],
	['PTR of a VIP', '2.0.44.10.in-addr.arpa', 'PTR', 'NOERROR', ['web.red']],
	['PTR of an alias alone', '32.0.44.10.in-addr.arpa', 'PTR', 'NOERROR', ['nameless.red']],
	['a zone transfer', 'web', 'AXFR', 'REFUSED', []],
];

for (const [what, name, type, rcode, wanted] of TABLE)
	test(`${what}: ${name} ${type}`, () => {
		const r = answered(ask(name, type), tableView);
		assert.is(r.kind, 'answer');
		assert.is(r.rcode, rcode);
		assert.equal([...r.packet!.answers!].map((a) => (a as { data: string }).data).sort(), [...wanted].sort());
		for (const a of r.packet!.answers!) {
			assert.is((a as { ttl: number }).ttl, 600);
			assert.is(a.name, name);
		}
		assert.is(r.result, rcode === 'REFUSED' ? 'refused' : wanted.length ? 'answer' : 'nodata');
	});

test('what nobody has is forwarded, single labels too', () => {
	for (const [name, type] of [
		['example.com', 'A'],
		['printer', 'A'],
		['web.green', 'A'],
		['tasks', 'A'],
		['red', 'A'],
		['example.com', 'MX'],
		['example.com', 'TXT'],
		['1.0.0.127.in-addr.arpa', 'PTR'],
		['44.10.in-addr.arpa', 'PTR'],
		['300.0.44.10.in-addr.arpa', 'PTR'],
		['x.30.0.44.10.in-addr.arpa', 'PTR'],
		['4.4.d.f.ip6.arpa', 'PTR'],
		['in-addr.arpa', 'PTR'],
		['.', 'NS'],
	] as const)
		assert.is(answered(ask(name, type), tableView).kind, 'forward', name);
});

test('an endpoint sees the networks it is on and nothing else', () => {
	assert.equal(answered(ask('web', 'A'), view(red)).answers, ['web 600 A 10.44.0.2']);
	assert.equal(answered(ask('web', 'A'), view(blue)).answers, ['web 600 A 10.55.0.2']);
	assert.is(answered(ask('alice', 'A'), view(blue)).kind, 'forward');
	assert.is(answered(ask('alice.red', 'A'), view(blue)).kind, 'forward');
	assert.is(answered(ask('30.0.44.10.in-addr.arpa', 'PTR'), view(blue)).kind, 'forward');
});

test('internal networks are asked last; on them alone nothing is forwarded', () => {
	const inner = { ...blue, internal: true };
	assert.equal(answered(ask('web', 'A'), view(inner, red)).answers, ['web 600 A 10.44.0.2']);
	assert.is(answered(ask('example.com', 'A'), view(inner, red)).kind, 'forward');
	const r = answered(ask('example.com', 'A'), view(inner));
	assert.equal([r.kind, r.rcode, r.result], ['answer', 'SERVFAIL', 'servfail']);
	assert.is(answered(ask('example.com', 'A'), view()).rcode, 'SERVFAIL', 'not attached to anything that is known');
});

test('the question returns as it came, and flags as they must be', () => {
	const q = ask('wEB', 'A', { flags: packet.RECURSION_DESIRED | packet.CHECKING_DISABLED });
	const r = answered(q, view(red)).packet!;
	assert.is(r.id, 4711);
	assert.is(r.type, 'response');
	assert.equal(r.questions, [{ name: 'wEB', type: 'A', class: 'IN' }]);
	assert.equal([r.flag_aa, r.flag_tc, r.flag_rd, r.flag_ra], [false, false, true, true]);
	assert.ok(((r.flags ?? 0) & packet.CHECKING_DISABLED) !== 0);
	assert.is(answered(ask('web', 'A', { flags: 0 }), view(red)).packet!.flag_rd, false);
});

test('records point to the question: 16 bytes an IPv4 address', () => {
	const q = ask('db', 'A');
	assert.is(answered(q, view(red)).length, q.length + 3 * 16);
});

const many = {
	id: 'many',
	services: [
		{
			name: 'big',
			mode: 'dnsrr' as const,
			vips: [],
			tasks: Array.from({ length: 200 }, (_, i) => `10.9.${i >> 7}.${(i & 127) + 1}`),
		},
	],
	endpoints: [],
};

test('200 tasks: cut to 512 bytes, to what EDNS0 says, whole over TCP', () => {
	const v = view(many);
	const plain = answered(ask('big', 'A'), v);
	assert.ok(plain.tc);
	assert.ok(plain.length! <= 512 && plain.length! > 512 - 16, `${plain.length}`);
	assert.is(plain.answers!.length, Math.floor((512 - 12 - 9) / 16));
	const wide = answered(ask('big', 'A', edns(1232)), v);
	assert.ok(wide.tc && wide.length! <= 1232 && wide.length! > 1232 - 16);
	assert.is(wide.packet!.additionals!.length, 1, 'OPT stays');
	const tiny = answered(ask('big', 'A', edns(100)), v);
	assert.ok(tiny.length! > 400 && tiny.length! <= 512, 'less than 512 is read as 512');
	const whole = answered(ask('big', 'A', edns(4096)), v);
	assert.equal([whole.tc, whole.answers!.length], [false, 200]);
	const tcp = answered(ask('big', 'A'), v, 'tcp');
	assert.equal([tcp.tc, tcp.answers!.length, new Set(tcp.answers).size], [false, 200, 200]);
});

test('more than TCP can hold is cut there too', () => {
	const huge = {
		...many,
		services: [
			{
				...many.services[0]!,
				tasks: Array.from({ length: 5000 }, (_, i) => `10.${8 + (i >> 14)}.${(i >> 7) & 127}.${(i & 127) + 1}`),
			},
		],
	};
	const r = answered(ask('big', 'A'), view(huge), 'tcp');
	assert.ok(r.tc && r.length! <= 65535);
});

test('addresses come in another order each time, each once; a cut answer has any of them', () => {
	const v = view(many);
	const seen = new Set<string>();
	for (let i = 0; i < 400; i++) for (const a of answered(ask('big', 'A'), v, 'udp', Math.random).answers!) seen.add(a);
	assert.is(seen.size, 200);
	const first = new Map<string, number>();
	for (let i = 0; i < 3000; i++) {
		const [a] = answered(ask('db', 'A'), view(red), 'udp', Math.random).answers!;
		first.set(a!, (first.get(a!) ?? 0) + 1);
	}
	// Three addresses, 3000 draws: 1000 each, standard deviation 26; eight of those.
	for (const n of first.values()) assert.ok(Math.abs(n - 1000) < 210, `${[...first]}`);
	fc.assert(
		fc.property(
			fc.array(fc.integer()),
			fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })),
			(list, r) => {
				const out = shuffled(list, () => r.next().value);
				assert.equal([...out].sort(), [...list].sort());
			},
		),
	);
});

test('messages that are no query, or not ours to understand', () => {
	const v = view(red);
	const q = ask('web', 'A');
	const with16 = (at: number, value: number) => {
		const b = Buffer.from(q);
		b.writeUInt16BE(value, at);
		return b;
	};
	assert.is(answered(with16(2, 0x8100), v).kind, 'drop', 'an answer');
	assert.is(answered(q.subarray(0, 11), v).kind, 'drop', 'no header');
	assert.is(answered(Buffer.alloc(0), v).kind, 'drop');
	const said = (b: Uint8Array) => {
		const r = answered(b, v);
		return [r.rcode, r.result, r.answers?.length];
	};
	assert.equal(said(with16(2, 0x2900)), ['NOTIMP', 'unsupported', 0], 'UPDATE');
	assert.equal(said(with16(4, 2)), ['FORMERR', 'malformed', 0], 'two questions');
	assert.equal(said(with16(4, 0)), ['FORMERR', 'malformed', 0], 'no question');
	assert.equal(said(with16(6, 2)), ['FORMERR', 'malformed', 0], 'answers');
	assert.equal(said(with16(10, 65535)), ['FORMERR', 'malformed', 0], 'additional records without end');
	assert.equal(said(q.subarray(0, q.length - 1)), ['FORMERR', 'malformed', 0], 'cut short');
	const pointer = Buffer.concat([q.subarray(0, 12), Buffer.from([0xc0, 0x04, 0, 1, 0, 1])]);
	assert.equal(said(pointer), ['FORMERR', 'malformed', 0], 'a name that points into the header');
	const long = Buffer.concat([
		q.subarray(0, 12),
		...Array(5).fill(Buffer.concat([Buffer.from([63]), Buffer.alloc(63, 97)])),
		Buffer.from([0, 0, 1, 0, 1]),
	]);
	assert.equal(said(long), ['FORMERR', 'malformed', 0], 'a name of more than 255 bytes');
	assert.equal(said(with16(q.length - 2, 3)), ['REFUSED', 'refused', 0], 'class CH');
	assert.equal(said(with16(q.length - 2, 255)), ['NOERROR', 'answer', 1], 'class ANY');
	const bad = answered(ask('web', 'A', edns(1232, 1)), v);
	assert.equal(
		[bad.rcode, (bad.packet!.additionals![0] as { extendedRcode: number }).extendedRcode, bad.answers!.length],
		['NOERROR', 1, 0],
		'EDNS of another version: BADVERS',
	);
	const twice = ask('web', 'A', { additionals: [...edns(512).additionals!, ...edns(512).additionals!] });
	assert.equal(said(twice), ['FORMERR', 'malformed', 0], 'two OPT records');
});

test('labels that are no text, and dots within labels, come back as they were', () => {
	const q = Buffer.concat([ask('x', 'A').subarray(0, 12), Buffer.from([3, 0xff, 0x2e, 0x00, 0, 0, 1, 0, 1])]);
	assert.is(answered(q, view(red)).kind, 'forward');
	// The label "web.red" is read as the name web.red, and what is answered points to the label.
	const dotted = Buffer.concat([
		q.subarray(0, 12),
		Buffer.from([7]),
		Buffer.from('web.red'),
		Buffer.from([0, 0, 1, 0, 1]),
	]);
	const r = resolve(dotted, view(red), 'udp', () => 0);
	assert.is(r.kind, 'answer');
	assert.equal(Buffer.from((r as { bytes: Uint8Array }).bytes).subarray(12, 25), dotted.subarray(12, 25));
});

test('what is no address, and names that cannot be written, do no harm', () => {
	const odd = view({
		id: 'odd',
		services: [],
		endpoints: [
			{
				name: 'mixed',
				aliases: [''],
				addresses: ['10.0.0.1/24', 'nonsense', '10.1', 'fe80::1%eth0', '', '::ffff:10.0.0.9', 'FD00::0001'],
			},
			{ name: `${'x'.repeat(64)}`, aliases: [], addresses: ['10.0.0.7'] },
		],
	});
	assert.equal(answered(ask('mixed', 'A'), odd).answers, ['mixed 600 A 10.0.0.9']);
	assert.equal(answered(ask('mixed', 'AAAA'), odd).answers, ['mixed 600 AAAA fd00::1']);
	assert.is(answered(ask('7.0.0.10.in-addr.arpa', 'PTR'), odd).kind, 'forward');
});

test('every address of a view has its reverse name, which leads back to it', () => {
	const address = fc.oneof(
		fc.ipV4(),
		fc.ipV6().filter((a) => !/\./.test(a)),
	);
	fc.assert(
		fc.property(fc.uniqueArray(address, { minLength: 1, maxLength: 5 }), (addresses) => {
			const v = viewOf([namesOf({ id: 'n', services: [], endpoints: [{ name: 'e', aliases: [], addresses }] })]);
			for (const a of addresses) {
				assert.equal(answered(ask(reverseName(a), 'PTR'), v).answers, [`${reverseName(a)} 600 PTR e.n`]);
			}
			const back = ['A', 'AAAA'].flatMap((t) => answered(ask('e.n', t), v).packet!.answers!);
			assert.is(back.length, new Set(addresses.map((a) => reverseName(a))).size);
		}),
	);
});

test('arbitrary bytes never throw, and never get an answer that does not parse', () => {
	const v = view(red, blue, many);
	const check = (bytes: Uint8Array, via: 'udp' | 'tcp') => {
		const r = answered(bytes, v, via);
		if (r.kind !== 'answer') return;
		assert.ok(r.length! <= 65535);
		assert.is(r.packet!.id, (bytes[0]! << 8) | bytes[1]!);
		assert.is(r.packet!.type, 'response');
	};
	const via = fc.constantFrom('udp' as const, 'tcp' as const);
	fc.assert(fc.property(fc.uint8Array({ maxLength: 600 }), via, check), { numRuns: 3000 });
	// Nearly right: queries with some bytes changed, cut or added.
	const names = fc.constantFrom('web', 'tasks.web', 'big', 'alice.red', 'example.com', '30.0.44.10.in-addr.arpa');
	const types = fc.constantFrom('A', 'AAAA', 'PTR', 'MX', 'ANY', 'TXT', 'SRV');
	const size = fc.option(fc.integer({ min: 0, max: 65535 }));
	const changes = fc.array(fc.tuple(fc.nat(80), fc.nat(255)), { maxLength: 6 });
	fc.assert(
		fc.property(
			names,
			types,
			size,
			changes,
			fc.uint8Array({ maxLength: 20 }),
			fc.nat(20),
			via,
			(n, t, s, c, tail, cut, how) => {
				const q = Buffer.concat([ask(n, t, s === null ? {} : edns(s)), tail]);
				for (const [at, value] of c) if (at < q.length) q[at] = value;
				check(q.subarray(0, q.length - cut), how);
			},
		),
		{ numRuns: 20_000 },
	);
});

test.run();
