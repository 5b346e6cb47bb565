/** The stream between agents: TLS with certificates like Swarm's, on loopback. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectTcp, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, createServer as createTlsServer } from 'node:tls';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openStream } from '../../src/agent/stream.js';
import { cleanKey, readCertificates } from '../../src/agent/stream-tls.js';
import { BeelineError } from '../../src/errors.js';
import type { Feed } from '../../src/mesh/sources/docker.js';
import type { SwarmInfo, TaskReport } from '../../src/mesh/sources/docker-map.js';
import type { Membership } from '../../src/mesh/types.js';
import { OPTIONS } from '../mesh/support.js';
import { hasTool, skip } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-stream-`));
process.on('exit', () => rmSync(directory, { recursive: true, force: true }));

const openssl = (...args: string[]): void => void execFileSync('openssl', args, { stdio: 'pipe', cwd: directory });

function makeCa(name: string): void {
	openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', `${name}.key`);
	openssl('req', '-x509', '-new', '-key', `${name}.key`, '-subj', '/CN=swarm-ca', '-days', '10', '-out', `${name}.crt`);
}

/** What Swarm puts under its data root; headers in the key included. */
function makeNode(
	id: string,
	role: 'manager' | 'worker',
	ca = 'ca',
	cluster = 'cluster1',
	days = ['-days', '5'],
): string {
	const at = join(directory, `${id}-${role}-${ca}-${cluster}-${days.length}`);
	mkdirSync(at, { recursive: true });
	const key = join(at, 'plain.key');
	openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', `${at}/ec.key`);
	openssl('pkcs8', '-topk8', '-nocrypt', '-in', `${at}/ec.key`, '-out', key);
	openssl('req', '-new', '-key', key, '-subj', `/O=${cluster}/OU=swarm-${role}/CN=${id}`, '-out', `${at}/csr`);
	writeFileSync(
		`${at}/ext`,
		`subjectAltName=DNS:swarm-${role},DNS:${id}\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n`,
	);
	const dates = days[0] === 'expired' ? ['-days', '0'] : days;
	openssl(
		'x509',
		'-req',
		'-in',
		`${at}/csr`,
		'-CA',
		`${ca}.crt`,
		'-CAkey',
		`${ca}.key`,
		'-CAcreateserial',
		'-extfile',
		`${at}/ext`,
		...dates,
		'-out',
		`${at}/swarm-node.crt`,
	);
	const pem = readFileSync(key, 'utf8');
	writeFileSync(
		join(at, 'swarm-node.key'),
		pem.replace('-----BEGIN PRIVATE KEY-----\n', '-----BEGIN PRIVATE KEY-----\nkek-version: 0\nraft-dek: EiDyX\n\n'),
	);
	writeFileSync(join(at, 'swarm-root-ca.crt'), readFileSync(join(directory, `${ca}.crt`)));
	return at;
}

let nextPort = 20_000 + (process.pid % 20_000);

interface Peer {
	readonly feed: Feed;
	readonly memberships: Membership[];
	readonly reports: { node: string; tasks: ReadonlyMap<string, TaskReport>; look: boolean }[];
	readonly demands: { node: string; wanted: readonly string[]; busy: readonly string[] }[];
	readonly logged: string[];
}
const peers = new Set<Peer>();

function open(
	certificates: string | undefined,
	port: number,
	more: { tokenFile?: string; staleMs?: number; answerMs?: number } = {},
): Peer {
	const memberships: Membership[] = [];
	const reports: Peer['reports'] = [];
	const demands: Peer['demands'] = [];
	const logged: string[] = [];
	const feed = openStream(
		{
			port,
			...(certificates === undefined ? {} : { certificates }),
			...more,
			log: (_level, text) => logged.push(text),
			pingMs: 200,
			backoffMs: [50, 100],
		},
		{
			onMembership: (m) => memberships.push(m),
			onReport: (node, tasks, look) => reports.push({ node, tasks, look }),
			onDemand: (node, { wanted, busy }) => demands.push({ node, wanted, busy }),
		},
	);
	const p: Peer = { feed, memberships, reports, demands, logged };
	peers.add(p);
	return p;
}
async function closeAll(): Promise<void> {
	for (const p of peers) await p.feed.close();
	peers.clear();
}

/** A wire between a worker and a manager's agent that can go dead without a word, or drop what the manager says. */
async function wire(from: string, to: string, port: number): Promise<{ cut(): void; mend(): void; close(): void }> {
	let dead = false;
	const sockets = new Set<Socket>();
	const server = createServer((near) => {
		// What is connected while the wire is dead is accepted by nobody's agent, as by one that hangs.
		const far = connectTcp({ host: to, port });
		const held = dead;
		for (const [a, b] of [
			[near, far],
			[far, near],
		]) {
			sockets.add(a);
			a.on('data', (data) => {
				if (!held && !dead && !b.destroyed) b.write(data);
			});
			a.on('error', () => undefined);
			a.on('close', () => {
				sockets.delete(a);
				if (!dead) b.destroy();
			});
		}
	});
	await new Promise<void>((resolve) => server.listen({ host: from, port }, resolve));
	return {
		cut() {
			dead = true;
		},
		// Connections from before stay dead: both ends think that they stand.
		mend() {
			for (const s of sockets) s.removeAllListeners('data').resume();
			dead = false;
		},
		close() {
			for (const s of sockets) s.destroy();
			server.close();
		},
	};
}

const info = (
	nodeId: string,
	host: string,
	manager: boolean,
	managers: readonly (readonly [string, string])[],
): SwarmInfo => ({
	nodeId,
	nodeAddress: host,
	manager,
	managers: managers.map(([id, h]) => ({ id, host: h })),
	dockerRoot: '/nowhere',
});
const membership = (...services: string[]): Membership => ({
	nodes: [{ name: 'n1', id: 'm1', address: '10.0.0.1', drained: false }],
	networks: [],
	services: services.map((name) => ({
		name,
		ports: [{ published: 80, target: 80, protocol: 'tcp' }],
		options: OPTIONS,
		tasks: [{ id: `${name}1`, node: 'n1', families: [4], weight: 1, state: 'active' }],
	})),
});
const names = (m: Membership | undefined): string => m?.services.map((s) => s.name).join() ?? 'nothing';

// The stream itself keeps no process alive.
const alive = setInterval(() => undefined, 1000);

const test = suite('stream');
test.after(() => clearInterval(alive));
test.after.each(closeAll);

test('a worker gets the membership, then what changes, and what befell its containers is told', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a', 'b'), true);
	const w = open(makeNode('w1', 'worker'), port);
	w.feed.report(new Map([['a1', { state: 'down' }]]), true);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the whole', () => names(w.memberships.at(-1)) === 'a,b');
	m.feed.publish(membership('a', 'c'), true);
	await waitFor('the change', () => names(w.memberships.at(-1)) === 'a,c');
	assert.is(w.memberships.at(-1)?.services[0], w.memberships[0].services[0], 'what did not change is the same object');
	await waitFor('the report', () => m.reports.length > 0);
	assert.equal([m.reports[0].node, [...m.reports[0].tasks]], ['w1', [['a1', { state: 'down' }]]]);
	w.feed.demand({ wanted: ['web'], busy: [] });
	await waitFor('the demand', () => m.demands.length > 0);
	assert.equal(m.demands, [{ node: 'w1', wanted: ['web'], busy: [] }]);
	const began = performance.now();
	w.feed.report(new Map([['a1', { state: 'draining' }]]), true);
	await waitFor('the next report', () => m.reports.at(-1)?.look === true);
	assert.ok(performance.now() - began < 150);
});

test('a connection that was lost resumes from the version it had', async () => {
	const port = nextPort++;
	const certificates = makeNode('m1', 'manager');
	const m = open(certificates, port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const w = open(makeNode('w1', 'worker'), port);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the whole', () => names(w.memberships.at(-1)) === 'a');
	// The manager is not named for a moment, as when it is demoted and promoted again.
	w.feed.update(info('w1', '127.0.0.3', false, []));
	m.feed.publish(membership('a', 'b'), true);
	m.feed.publish(membership('a', 'b', 'c'), true);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('what was missed', () => names(w.memberships.at(-1)) === 'a,b,c');
	assert.equal(w.memberships.map(names), ['a', 'a,b', 'a,b,c'], 'two changes, not the whole anew');
});

test('a manager that dies is replaced by another; the worker keeps what it had meanwhile', async () => {
	const port = nextPort++;
	const managers = [
		['m1', '127.0.0.2'],
		['m2', '127.0.0.4'],
	] as const;
	const all = managers.map(([id, host]) => {
		const m = open(makeNode(id, 'manager'), port);
		m.feed.update(info(id, host, true, managers));
		m.feed.publish(membership('a'), true);
		return m;
	});
	const w = open(makeNode('w1', 'worker'), port);
	w.feed.update(info('w1', '127.0.0.3', false, managers));
	w.feed.report(new Map([['a1', { state: 'down' }]]), false);
	await waitFor('the whole', () => w.memberships.length > 0);
	await waitFor('both to be told', () => all.every((m) => m.reports.some((r) => r.node === 'w1')));
	for (const [i, m] of all.entries()) {
		const other = all[1 - i];
		await m.feed.close();
		const name = `after${i}`;
		if (i === 0) {
			other.feed.publish(membership('a', name), true);
			await waitFor('the other’s word', () => names(w.memberships.at(-1)) === `a,${name}`);
		}
	}
	assert.is(names(w.memberships.at(-1)), 'a,after0');
	await waitFor('it to be said', () => w.feed.problems().some((p) => p.includes('no manager’s agent is followed')));
});

test('a manager’s agent that is killed and started again, and has nothing to say at first, is followed again', async () => {
	const port = nextPort++;
	const certificates = makeNode('m1', 'manager');
	const first = open(certificates, port);
	first.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	first.feed.publish(membership('a'), true);
	const w = open(makeNode('w1', 'worker'), port);
	w.feed.report(new Map([['a1', { state: 'down' }]]), false);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the whole', () => names(w.memberships.at(-1)) === 'a');
	await first.feed.close();
	await waitFor('it to be missed', () => w.feed.problems().length > 0);
	// Longer than all the pauses between two attempts.
	await new Promise((r) => setTimeout(r, 600));
	const second = open(certificates, port);
	second.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	await waitFor('the worker to be there', () => second.reports.some((r) => r.node === 'w1'));
	await new Promise((r) => setTimeout(r, 500));
	second.feed.publish(membership('b'), true);
	await waitFor('the whole of another epoch', () => names(w.memberships.at(-1)) === 'b');
	second.feed.publish(membership('b', 'c'), true);
	await waitFor('what changes then', () => names(w.memberships.at(-1)) === 'b,c');
	assert.equal(w.feed.problems(), []);
});

test('a connection that went dead without a word, and an agent that hangs, are left after three pings', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const line = await wire('127.0.0.6', '127.0.0.2', port);
	try {
		const w = open(makeNode('w1', 'worker'), port);
		w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.6']]));
		await waitFor('the whole', () => names(w.memberships.at(-1)) === 'a');
		line.cut();
		m.feed.publish(membership('a', 'b'), true);
		await waitFor('the silence to be noticed', () => w.feed.problems().some((p) => p.includes('it fell silent')));
		assert.is(names(w.memberships.at(-1)), 'a', 'what was known stays');
		line.mend();
		// An attempt that began while the wire was dead ends with the limit of a handshake.
		await waitFor('what was missed', () => names(w.memberships.at(-1)) === 'a,b', 15_000);
	} finally {
		line.close();
	}
});

test('words that a manager’s agent lost are asked for again', async () => {
	const port = nextPort++;
	const c = readCertificates(makeNode('m1', 'manager'));
	let follows = 0;
	// An agent that loses the first change: what it says next, it says of a version that the worker does not have.
	const server = createTlsServer({ ...c.context, requestCert: true, minVersion: 'TLSv1.3' }, (socket) => {
		socket.on('error', () => undefined);
		const say = (m: object) => socket.write(`${JSON.stringify(m)}\n`);
		const at = () => ({ epoch: 'e', version: follows });
		const ping = setInterval(() => say({ t: 'ping', at: { epoch: 'e', version: 2 }, ageMs: 0 }), 100);
		socket.on('close', () => clearInterval(ping));
		socket.setEncoding('utf8').on('data', (text: string) => {
			for (const line of text.split('\n'))
				if (line.includes('"follow"')) {
					follows++;
					say({ t: 'full', ...at(), membership: membership(...['a', 'b'].slice(0, follows)) });
				}
		});
	});
	await new Promise<void>((resolve) => server.listen({ host: '127.0.0.2', port }, resolve));
	try {
		const w = open(makeNode('w1', 'worker'), port, { answerMs: 300 });
		w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
		await waitFor('what was lost', () => names(w.memberships.at(-1)) === 'a,b');
		await new Promise((r) => setTimeout(r, 500));
		assert.is(follows, 2, 'and no more than that');
	} finally {
		await closeAll();
		server.close();
	}
});

test('a manager that cannot list the swarm any more is left for one that can', async () => {
	const port = nextPort++;
	const managers = [
		['m1', '127.0.0.2'],
		['m2', '127.0.0.4'],
	] as const;
	const all = managers.map(([id, host]) => {
		const m = open(makeNode(id, 'manager'), port);
		m.feed.update(info(id, host, true, managers));
		m.feed.publish(membership('a'), true);
		return m;
	});
	const w = open(makeNode('w1', 'worker'), port, { staleMs: 1000 });
	w.feed.update(info('w1', '127.0.0.3', false, managers));
	await waitFor('the whole', () => w.memberships.length > 0);
	// Whoever it follows: each of them fails once, while the other goes on.
	for (const [i, failing] of all.entries()) {
		const other = all[1 - i];
		const timer = setInterval(() => other.feed.publish(membership('a', `only${i}`), true), 100);
		// What nodes report is no list.
		const reports = setInterval(() => failing.feed.publish(membership('a'), false), 100);
		try {
			await waitFor('the other’s word', () => names(w.memberships.at(-1)) === `a,only${i}`);
		} finally {
			clearInterval(timer);
			clearInterval(reports);
		}
	}
});

for (const [what, make, reason] of [
	['a worker that poses as manager', () => makeNode('m1', 'worker'), 'a worker that poses as manager'],
	['another manager than was named', () => makeNode('m9', 'manager'), 'it is m9, and manager m1 was expected'],
	[
		'a manager of another swarm under the same CA',
		() => makeNode('m1', 'manager', 'ca', 'cluster2'),
		'of another swarm (cluster2)',
	],
	[
		'a manager under another CA',
		() => makeNode('m1', 'manager', 'otherca'),
		'self-signed certificate|unable to verify|local issuer',
	],
	[
		'a manager whose certificate has expired',
		() => makeNode('m1', 'manager', 'ca', 'cluster1', ['expired']),
		'expired',
	],
] as const)
	test(`refused, and logged once: ${what}`, async () => {
		const port = nextPort++;
		const m = open(make(), port);
		m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
		m.feed.publish(membership('a'), true);
		const w = open(makeNode('w1', 'worker'), port);
		w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
		const found = () => w.logged.filter((l) => new RegExp(reason.replaceAll(/[()]/g, '\\$&')).test(l));
		await waitFor(`"${reason}" in ${JSON.stringify(w.logged)}`, () => found().length > 0);
		await new Promise((r) => setTimeout(r, 500));
		assert.is(found().length, 1, w.logged.join('\n'));
		assert.is(w.memberships.length, 0);
	});

test('a client under another CA is refused by the manager', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const stranger = makeNode('w1', 'worker', 'otherca');
	writeFileSync(join(stranger, 'swarm-root-ca.crt'), readFileSync(join(directory, 'ca.crt')));
	const w = open(stranger, port);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the refusal', () => m.logged.some((l) => l.includes('is refused')));
	await new Promise((r) => setTimeout(r, 300));
	assert.is(w.memberships.length, 0);
	assert.is(m.logged.filter((l) => l.includes('is refused')).length, 1, m.logged.join('\n'));
});

test('a client whose certificate has expired is refused, and both ends say so once', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const w = open(makeNode('w1', 'worker', 'ca', 'cluster1', ['expired']), port);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the refusal', () => m.logged.some((l) => /is refused: .*EXPIRED/.test(l)));
	await waitFor('the worker to be told', () =>
		w.feed.problems().some((l) => /it refuses this node: .*EXPIRED/.test(l)),
	);
	// Several attempts.
	await new Promise((r) => setTimeout(r, 600));
	assert.is(m.logged.filter((l) => l.includes('is refused')).length, 1, m.logged.join('\n'));
	assert.is(w.logged.filter((l) => l.includes('is not followed')).length, 1, w.logged.join('\n'));
	assert.is(w.memberships.length, 0);
});

test('a worker that says it is another node is refused', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	const c = readCertificates(makeNode('w1', 'worker'));
	await waitFor('the server', () => m.logged.some((l) => l.includes('serving')));
	const socket = connect({ host: '127.0.0.2', port, ...c.context, checkServerIdentity: () => undefined });
	socket.on('error', () => undefined);
	socket.resume();
	socket.write('{"t":"hello","protocol":1,"node":"w2"}\n{"t":"report","tasks":{"x":{"state":"down"}},"look":false}\n');
	await waitFor('the refusal', () => m.logged.some((l) => l.includes('it says that it is w2, and is w1')));
	assert.is(m.reports.length, 0);
});

test('garbage ends the connection and nothing else', async () => {
	const port = nextPort++;
	const m = open(makeNode('m1', 'manager'), port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const c = readCertificates(makeNode('w1', 'worker'));
	await waitFor('the server', () => m.logged.some((l) => l.includes('serving')));
	const socket = connect({ host: '127.0.0.2', port, ...c.context, checkServerIdentity: () => undefined });
	socket.on('error', () => undefined);
	socket.resume();
	const closed = new Promise<void>((r) => socket.on('close', () => r()));
	socket.write('{"t":"hello","protocol":1,"node":"w1"}\n{"t":"follow","at":17}\n{"t":"report","tasks":7}\n');
	await closed;
	assert.ok(m.logged.some((l) => l.includes('no message')));
	const w = open(makeNode('w1', 'worker'), port);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('others to be served on', () => names(w.memberships.at(-1)) === 'a');
});

test('a certificate that is renewed is taken up', async () => {
	const port = nextPort++;
	const at = makeNode('m1', 'manager');
	const own = makeNode('w1', 'worker');
	const m = open(at, port);
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const w = open(own, port);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('the whole', () => w.memberships.length > 0);
	makeNode('w1', 'worker');
	w.feed.update(info('w1', '127.0.0.3', false, []));
	m.feed.publish(membership('a', 'b'), true);
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	await waitFor('what came after', () => names(w.memberships.at(-1)) === 'a,b');
});

test('a key that autolock encrypts is named, with the way out', () => {
	assert.throws(
		() =>
			cleanKey('-----BEGIN ENCRYPTED PRIVATE KEY-----\nkek-version: 3\n\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n'),
		(e: unknown) => e instanceof BeelineError && e.code === 'AUTOLOCK' && /membership\.tokenFile/.test(e.message),
	);
});

test('with a token instead of certificates: the right one is served, a wrong one is not', async () => {
	const port = nextPort++;
	const token = join(directory, 'token');
	const wrong = join(directory, 'wrong');
	writeFileSync(token, 'a'.repeat(40));
	writeFileSync(wrong, 'b'.repeat(40));
	const m = open(undefined, port, { tokenFile: token });
	m.feed.update(info('m1', '127.0.0.2', true, [['m1', '127.0.0.2']]));
	m.feed.publish(membership('a'), true);
	const w = open(undefined, port, { tokenFile: token });
	w.feed.update(info('w1', '127.0.0.3', false, [['m1', '127.0.0.2']]));
	w.feed.report(new Map([['a1', { state: 'down' }]]), false);
	await waitFor(`the whole: ${w.logged.join()} ${m.logged.join()}`, () => names(w.memberships.at(-1)) === 'a');
	await waitFor('the report', () => m.reports.some((r) => r.node === 'w1'));
	const x = open(undefined, port, { tokenFile: wrong });
	x.feed.update(info('w2', '127.0.0.5', false, [['m1', '127.0.0.2']]));
	await waitFor('it to be refused', () => x.logged.some((l) => l.includes('is not followed')));
	assert.is(x.memberships.length, 0);
});

if (!hasTool('openssl')) skip('stream', 'needs openssl (install the package openssl)');
else {
	makeCa('ca');
	makeCa('otherca');
	test.run();
}
