/** Asking the node's servers: who is asked, what is believed, what is bounded. Servers are on loopback ports of this process. */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import packet from 'dns-packet';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { answers, Forwarder, NodeServers, resolvConfFor, type Upstream, upstreamsOf } from '../../src/dns/forward.js';
import { type Query, understand } from '../../src/dns/resolver.js';
import { waitFor } from '../support/wait.js';
import { ask } from './support.js';

const closers: (() => void)[] = [];
test.after(() => {
	for (const c of closers) c();
});

type Server = (query: Buffer, from: RemoteInfo, socket: Socket) => void;

/** A UDP server that does what it is told with each query. */
async function server(answer: Server): Promise<Upstream & { readonly seen: Buffer[]; readonly ports: Set<number> }> {
	const socket = createSocket('udp4');
	const seen: Buffer[] = [];
	const ports = new Set<number>();
	socket.on('message', (m, from) => {
		seen.push(m);
		ports.add(from.port);
		answer(m, from, socket);
	});
	await new Promise<void>((done) => socket.bind(0, '127.0.0.1', done));
	closers.push(() => socket.close());
	return { address: '127.0.0.1', family: 4, port: socket.address().port, seen, ports };
}

/** The answer to a query: rcode, and one address. */
function reply(query: Buffer, change: { rcode?: number; address?: string; id?: number; name?: string } = {}): Buffer {
	const q = packet.decode(query);
	return packet.encode({
		type: 'response',
		id: change.id ?? q.id!,
		flags: packet.RECURSION_DESIRED | packet.RECURSION_AVAILABLE | (change.rcode ?? 0),
		questions: change.name ? [{ ...q.questions![0]!, name: change.name }] : q.questions!,
		answers: change.rcode
			? []
			: [{ name: q.questions![0]!.name, type: 'A', ttl: 60, data: change.address ?? '203.0.113.7' }],
	});
}

const say =
	(change: Parameters<typeof reply>[1] = {}): Server =>
	(m, from, socket) =>
		socket.send(reply(m, change), from.port, from.address);
const silent: Server = () => {};

function query(name = 'example.com', type = 'A'): { bytes: Buffer; query: Query } {
	const bytes = ask(name, type);
	const u = understand(bytes, 'udp');
	if (!('query' in u)) throw new Error('no query');
	return { bytes, query: u.query };
}

function forwarder(servers: readonly Upstream[], limits: ConstructorParameters<typeof Forwarder>[2] = {}) {
	let busy = 0;
	const f = new Forwarder(
		() => servers,
		() => busy++,
		{ timeoutMs: 300, ...limits },
	);
	closers.push(() => f.close());
	return {
		f,
		busy: () => busy,
		go: (source = 'a', name?: string, via: 'udp' | 'tcp' = 'udp') => {
			const { bytes, query: q } = query(name);
			return f.forward(source, bytes, q, via);
		},
	};
}
const addresses = (r: unknown): unknown =>
	r instanceof Uint8Array ? packet.decode(Buffer.from(r)).answers!.map((a) => (a as { data: string }).data) : r;

test('an answer comes back with the id of the client; ids and ports of ours differ', async () => {
	const up = await server(say());
	const { f, go } = forwarder([up]);
	const all = await Promise.all(Array.from({ length: 50 }, () => go()));
	for (const r of all) {
		assert.equal(addresses(r), ['203.0.113.7']);
		assert.is(packet.decode(Buffer.from(r as Uint8Array)).id, 4711);
	}
	// 50 drawn of 65536: 48 different ones are less likely than 1 in 10^5.
	assert.ok(new Set(up.seen.map((m) => m.readUInt16BE(0))).size > 47);
	assert.ok(up.ports.size > 47);
	assert.equal([f.inFlight, f.waiting], [0, 0]);
});

test('SERVFAIL, REFUSED, silence and a closed port: the next server; NXDOMAIN is an answer', async () => {
	const dead = await server(silent);
	const good = await server(say());
	for (const bad of [await server(say({ rcode: 2 })), await server(say({ rcode: 5 })), dead]) {
		assert.equal(addresses(await forwarder([bad, good]).go()), ['203.0.113.7']);
		assert.is(bad.seen.length, 1);
	}
	assert.equal(addresses(await forwarder([{ address: '127.0.0.1', family: 4, port: 1 }, good]).go()), ['203.0.113.7']);
	const asked = good.seen.length;
	const nx = await forwarder([await server(say({ rcode: 3 })), good]).go();
	assert.is((nx as Uint8Array)[3]! & 15, 3);
	assert.is(good.seen.length, asked, 'the second was not asked');
	const all = forwarder([dead, await server(say({ rcode: 2 }))]);
	assert.is(await all.go(), 'failed');
	assert.equal(all.f.failures, { timeout: 1, unreachable: 0, failure: 1, no_server: 0, busy: 0 });
	assert.is(await forwarder([]).go(), 'failed');
});

test('forged answers are not believed: another id, another question, another sender; the real one is waited for', async () => {
	const other = createSocket('udp4');
	closers.push(() => other.close());
	const up = await server((m, from, socket) => {
		const send = (b: Buffer, by = socket) => by.send(b, from.port, from.address);
		send(reply(m, { id: (m.readUInt16BE(0) + 1) & 0xffff, address: '6.6.6.6' }));
		send(reply(m, { name: 'example.org', address: '6.6.6.6' }));
		send(reply(m, { address: '6.6.6.6' }), other);
		send(Buffer.from('rubbish'));
		send(m);
		setTimeout(() => send(reply(m)), 50);
	});
	assert.equal(addresses(await forwarder([up]).go()), ['203.0.113.7']);
});

test('what counts as the answer', () => {
	const { bytes, query: q } = query('ExAmple.com');
	const right = reply(bytes);
	assert.ok(answers(right, 4711, q.question));
	assert.not(answers(right, 4712, q.question));
	assert.not(answers(bytes, 4711, q.question), 'the query itself');
	assert.not(answers(right.subarray(0, 20), 4711, q.question));
	assert.ok(answers(reply(bytes, { name: 'eXaMPLE.com' }), 4711, q.question), 'the case may differ');
	const bare = Buffer.from([0x12, 0x67, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
	assert.ok(answers(bare, 0x1267, q.question), 'an error without a question');
	bare[3] = 0x80;
	assert.not(answers(bare, 0x1267, q.question), 'success without a question');
});

test('over TCP: whole messages in pieces; a peer that closes or says nothing ends it', async () => {
	const mode: { now: string } = { now: 'pieces' };
	const tcp = createServer((c) => {
		c.on('error', () => {});
		c.once('data', (b) => {
			if (mode.now === 'close') return c.destroy();
			if (mode.now === 'silent') return;
			const r = reply(b.subarray(2));
			const head = Buffer.alloc(2);
			head.writeUInt16BE(r.length);
			c.write(Buffer.concat([head, r.subarray(0, 5)]));
			setTimeout(() => c.write(r.subarray(5)), 20);
		});
	});
	await new Promise<void>((done) => tcp.listen(0, '127.0.0.1', done));
	closers.push(() => tcp.close());
	const up: Upstream = { address: '127.0.0.1', family: 4, port: (tcp.address() as { port: number }).port };
	const { f, go } = forwarder([up]);
	assert.equal(addresses(await go('a', 'x.example', 'tcp')), ['203.0.113.7']);
	mode.now = 'close';
	assert.is(await go('a', 'x.example', 'tcp'), 'failed');
	mode.now = 'silent';
	assert.is(await go('a', 'x.example', 'tcp'), 'failed');
	assert.equal([f.failures.unreachable, f.failures.timeout, f.inFlight], [1, 1, 0]);
});

test('bounded: so many at once, so many waiting, so many of one namespace; the rest is refused at once', async () => {
	const up = await server(silent);
	const { f, go, busy } = forwarder([up], { concurrent: 4, perSource: 6, timeoutMs: 400 });
	const flood = Array.from({ length: 20 }, () => go('flooder'));
	assert.equal([f.inFlight, f.waiting], [4, 2], 'the rest of the flood was refused');
	const late = Array.from({ length: 4 }, () => go('other'));
	assert.equal([f.inFlight, f.waiting], [4, 4], 'others wait, as many as may be under way');
	assert.ok((await Promise.all(flood)).filter((r) => r === 'busy').length >= 14);
	await Promise.all(late);
	assert.equal([f.inFlight, f.waiting], [0, 0]);
	assert.is(busy(), f.failures.busy);
	assert.ok(busy() >= 16);
});

test('whoever waits gets the place that becomes free', async () => {
	const up = await server((m, from, socket) => setTimeout(() => socket.send(reply(m), from.port, from.address), 20));
	const { f, go } = forwarder([up], { concurrent: 2, perSource: 100 });
	const all = await Promise.all(['a', 'a', 'b', 'b'].map((s) => go(s)));
	for (const r of all) assert.equal(addresses(r), ['203.0.113.7']);
	assert.is(f.inFlight, 0);
	// Nothing is kept of those who went.
	assert.equal(addresses(await go('c')), ['203.0.113.7']);
});

test('close ends what is under way, and what waits', async () => {
	const up = await server(silent);
	const { f, go } = forwarder([up], { concurrent: 1, timeoutMs: 60_000 });
	const two = [go('a'), go('b')];
	await waitFor('the query to be asked', () => up.seen.length === 1);
	f.close();
	assert.equal(await Promise.all(two), ['failed', 'busy']);
	assert.is(await go('a'), 'busy');
});

test('resolv.conf: three servers, of both families, never our own', () => {
	const text = `# comment
; another
domain example.org
nameserver 127.0.0.11
nameserver 127.0.0.53
	nameserver  fe80::1%eth0 # the router
nameserver nonsense
nameserver
nameserver 192.0.2.1
nameserver 192.0.2.2
search a.example b.example
options edns0
`;
	assert.equal(
		upstreamsOf(text).map((u) => [u.address, u.family]),
		[
			['127.0.0.53', 4],
			['fe80::1%eth0', 6],
			['192.0.2.1', 4],
		],
	);
	assert.equal(upstreamsOf(''), []);
	assert.is(resolvConfFor(text), 'nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:0\n');
	assert.is(resolvConfFor(''), 'nameserver 127.0.0.11\noptions ndots:0\n');
});

test('resolv.conf is read again when it changes; what cannot be read changes nothing and is said once', () => {
	const dir = mkdtempSync(join(tmpdir(), `bl${process.pid}-dns`));
	closers.push(() => rmSync(dir, { recursive: true, force: true }));
	const path = join(dir, 'resolv.conf');
	const said: (string | undefined)[] = [];
	let now = 0;
	const servers = new NodeServers(
		path,
		() => now,
		(list, why) => said.push(why === undefined ? list.map((s) => s.address).join() : 'cannot'),
	);
	const current = () => {
		now += 1000;
		return servers.current().map((s) => s.address);
	};
	assert.equal(current(), []);
	assert.equal(current(), []);
	assert.equal(said, ['cannot']);
	writeFileSync(path, 'nameserver 192.0.2.1\n');
	assert.equal(servers.current(), [], 'not looked at twice within a second');
	assert.equal(current(), ['192.0.2.1']);
	assert.equal(current(), ['192.0.2.1']);
	writeFileSync(`${path}.new`, 'nameserver 192.0.2.2\n');
	renameSync(`${path}.new`, path);
	assert.equal(current(), ['192.0.2.2']);
	rmSync(path);
	assert.equal(current(), ['192.0.2.2']);
	assert.equal(said, ['cannot', '192.0.2.1', '192.0.2.2', 'cannot']);
});

test.run();
