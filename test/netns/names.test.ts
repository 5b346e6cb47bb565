/*
 * Names inside namespaces: a NameService in the node n1, real resolvers (dig, glibc) in its tasks, a name server on c1.
 *
 *	 c1 (.100, ::100)          n1 (.1, ::1)  NameService, forwards from here
 *	  upstream :53               |    \
 *	   |                       n1t1   n1t2    127.0.0.11:53 in each, made and served by n1
 *	  -+--------- br0 in sw -----+
 *
 *	 x1 … x100                  empty namespaces, for counting
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { DnsCounters } from '../../src/dns/counters.js';
import type { NamedNetwork } from '../../src/dns/zone.js';
import { blue, red } from '../dns/support.js';
import { IpcChild } from '../support/ipc.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotUseNamespaces, hasTool } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

const dnsPacket = createRequire(import.meta.url).resolve('dns-packet');
const script = (name: string): string => fileURLToPath(new URL(`../support/${name}.js`, import.meta.url));

const child = (net: Topology, name: string, file: string, ...args: string[]): IpcChild =>
	new IpcChild(['nsenter', `--net=/run/netns/${net.ns(name)}`, '--', process.execPath, script(file), ...args]);

interface Facts {
	readonly fds: number;
	readonly namespaces: number;
	readonly threads: number;
	readonly rssMb: number;
	readonly delayMaxMs: number;
}

const many: NamedNetwork = {
	id: 'many',
	services: [
		{
			name: 'big',
			mode: 'dnsrr',
			vips: [],
			tasks: Array.from({ length: 200 }, (_, i) => `10.9.${i >> 7}.${(i & 127) + 1}`),
		},
	],
	endpoints: [],
};

interface Shared {
	readonly net: Topology;
	readonly conf: string;
	readonly upstream: IpcChild;
	names: IpcChild;
}

function startNames(net: Topology, conf: string): IpcChild {
	return child(net, 'n1', 'nameservice', conf, JSON.stringify({ timeoutMs: 1000 }));
}

async function build(): Promise<Shared> {
	const net = await Topology.build({ nodes: 1, clients: 1, tasks: { n1: 2 } });
	const conf = join(net.directory, 'resolv.conf');
	const { v4, v6 } = net.address('c1');
	writeFileSync(conf, `nameserver 127.0.0.11\nnameserver ${v4}\n`);
	const upstream = child(net, 'c1', 'upstream', v4, v6);
	const names = startNames(net, conf);
	await names.call('update', [red, blue, many]);
	await upstream.call('asked');
	return { net, conf, upstream, names };
}

async function close({ net, names, upstream }: Shared): Promise<void> {
	await names.kill();
	await upstream.kill();
	net.close();
}

const path = (net: Topology, name: string): string => `/run/netns/${net.ns(name)}`;

/** dig in a namespace: the sections asked for, one line a record. */
async function dig(net: Topology, name: string, ...args: string[]): Promise<string[]> {
	const r = await net.execAsync(name, ['dig', '@127.0.0.11', '+tries=1', '+time=6', '+nocookie', ...args], {
		mayFail: true,
	});
	return r.stdout.split('\n').filter(Boolean);
}
const short = async (net: Topology, name: string, ...args: string[]): Promise<string[]> =>
	(await dig(net, name, '+short', ...args)).sort();
const status = (lines: readonly string[]): string | undefined => /status: ([A-Z]+)/.exec(lines.join('\n'))?.[1];
const flags = (lines: readonly string[]): string | undefined => /flags: ([a-z ]+);/.exec(lines.join('\n'))?.[1];

scenario(
	'names in namespaces',
	cannotUseNamespaces() ??
		(hasTool('dig') ? undefined : 'needs dig (install the package bind9-dnsutils, or run scripts/setup)'),
	build,
	close,
	(test) => {
		test('before it is served nobody answers; then dig, getent and others get names', async ({ net, names }) => {
			assert.match((await dig(net, 'n1t1', 'web')).join('\n'), /connection refused|no servers could be reached/);
			assert.is(await names.call('serve', { id: 'e1', netns: path(net, 'n1t1'), networks: ['red'] }), 'serving');
			assert.is(
				await names.call('serve', { id: 'e1', netns: net.ns('n1t1'), networks: ['red'] }),
				'serving',
				'again, by name',
			);
			assert.equal(await short(net, 'n1t1', 'web'), ['10.44.0.2']);
			assert.equal(await short(net, 'n1t1', 'WEB.Red', 'AAAA'), ['fd44::2']);
			assert.equal(await short(net, 'n1t1', 'tasks.web'), ['10.44.0.10', '10.44.0.11']);
			assert.equal(await short(net, 'n1t1', 'db'), ['10.44.0.20', '10.44.0.21', '10.44.0.22']);
			assert.equal(await short(net, 'n1t1', 'db', '+tcp'), ['10.44.0.20', '10.44.0.21', '10.44.0.22']);
			assert.equal(await short(net, 'n1t1', '-x', '10.44.0.30'), ['alice.red.']);
			assert.equal(await short(net, 'n1t1', '-x', 'fd44::30'), ['alice.red.']);
			const full = await dig(net, 'n1t1', 'alice');
			assert.is(status(full), 'NOERROR');
			assert.is(flags(full), 'qr rd ra');
			assert.ok(
				full.some((l) => /^alice\.\s+600\s+IN\s+A\s+10\.44\.0\.30$/.test(l)),
				full.join('\n'),
			);
			assert.not.match(full.join('\n'), /WARNING|malformed|extra bytes/i);
			const none = await dig(net, 'n1t1', 'bob', 'AAAA');
			assert.equal([status(none), none.some((l) => /AAAA\s+\S+:/.test(l))], ['NOERROR', false]);
		});

		test('glibc resolves through resolv.conf, as programs do', async ({ net }) => {
			// `ip netns exec` puts this file in the place of /etc/resolv.conf.
			const dir = `/etc/netns/${net.ns('n1t1')}`;
			mkdirSync(dir, { recursive: true });
			try {
				writeFileSync(join(dir, 'resolv.conf'), 'nameserver 127.0.0.11\noptions ndots:0 timeout:3\n');
				const inside = (...command: string[]) => {
					const child = spawn('ip', ['netns', 'exec', net.ns('n1t1'), ...command], {
						stdio: ['ignore', 'pipe', 'pipe'],
					});
					let out = '';
					child.stdout.setEncoding('utf8').on('data', (t: string) => {
						out += t;
					});
					return new Promise<{ code: number | null; out: string }>((done) =>
						child.on('close', (code) => done({ code, out })),
					);
				};
				const both = await inside('getent', 'ahosts', 'alice');
				assert.equal(
					[
						...new Set(
							both.out
								.split('\n')
								.map((l) => l.split(/\s/)[0])
								.filter(Boolean),
						),
					].sort(),
					['10.44.0.30', 'fd44::30'],
				);
				assert.match((await inside('getent', 'hosts', '10.44.0.30')).out, /alice\.red/);
				assert.match((await inside('getent', 'ahostsv4', 'good.example')).out, /203\.0\.113\.7/);
				assert.is((await inside('getent', 'hosts', 'nosuch')).code, 2);
				assert.is((await inside('getent', 'ahostsv4', 'empty')).code, 2);
				// A name of more addresses than 512 bytes hold: glibc asks again over TCP.
				assert.ok((await inside('getent', 'ahostsv4', 'tasks.web')).out.includes('10.44.0.11'));
				const ping = existsSync('/bin/busybox') ? ['/bin/busybox', 'ping'] : hasTool('ping') ? ['ping'] : undefined;
				// What is printed before the first echo is what counts: 10.44.0.30 is nowhere.
				if (ping) assert.match((await inside(...ping, '-c', '1', '-W', '1', 'alice')).out, /10\.44\.0\.30|fd44::30/);
			} finally {
				rmSync(dir, { recursive: true, force: true });
			}
		});

		test('what is unknown goes to the server of the node, from the node; never what is ours', async ({
			net,
			upstream,
		}) => {
			assert.equal(await short(net, 'n1t1', 'good.example'), ['203.0.113.7']);
			assert.equal(await short(net, 'n1t1', 'good.example', 'AAAA'), ['2001:db8::7']);
			assert.equal(await short(net, 'n1t1', 'forged.example'), ['203.0.113.8']);
			assert.is((await short(net, 'n1t1', 'big.example')).length, 100, 'cut over UDP, whole over TCP');
			assert.is(status(await dig(net, 'n1t1', 'nosuch')), 'NXDOMAIN');
			assert.is(status(await dig(net, 'n1t1', 'fail.example')), 'SERVFAIL');
			assert.is(status(await dig(net, 'n1t1', 'silent.example')), 'SERVFAIL');
			assert.is(status(await dig(net, 'n1t1', 'carol')), 'NXDOMAIN', 'on a network that this endpoint is not on');
			assert.is(status(await dig(net, 'n1t1', 'version.bind', 'CH', 'TXT')), 'REFUSED');
			assert.is(status(await dig(net, 'n1t1', 'web', 'TXT')), 'NOERROR');
			const asked = await upstream.call<string[]>('asked');
			assert.ok(asked.includes('nosuch A'));
			assert.equal(
				asked.filter((a) => /^(web|www|alice|al|bob|db|tasks|empty|idle|version)\b/i.test(a)),
				[],
			);
		});

		test('200 tasks: cut where the client takes no more, whole over TCP and with room', async ({ net, names }) => {
			await names.call('serve', { id: 'e1', netns: path(net, 'n1t1'), networks: ['red', 'many'] });
			const cut = await dig(net, 'n1t1', 'big', '+noedns', '+ignore');
			assert.match(flags(cut) ?? '', /\btc\b/);
			assert.is(cut.filter((l) => /\sA\s+10\.9\./.test(l)).length, 30);
			assert.is((await short(net, 'n1t1', 'big', '+noedns')).length, 200, 'dig asks again over TCP');
			assert.is((await short(net, 'n1t1', 'big', '+bufsize=4096', '+ignore')).length, 200);
			assert.match(flags(await dig(net, 'n1t1', 'big', '+bufsize=1232', '+ignore')) ?? '', /\btc\b/);
			assert.is((await short(net, 'n1t1', 'tasks.big', '+tcp')).length, 200);
			assert.match((await dig(net, 'n1t1', 'web', '+edns=1', '+noednsnegotiation')).join('\n'), /BADVERS/);
			// Several queries on one connection.
			const kept = await dig(net, 'n1t1', '+tcp', '+keepopen', '+short', 'web', 'alice', 'good.example');
			assert.equal(kept.sort(), ['10.44.0.2', '10.44.0.30', '203.0.113.7']);
		});

		test('TCP: many queries on one connection, half closed, in pieces; rubbish and crowds end their own connection', async ({
			net,
		}) => {
			const client = async (code: string) => {
				const r = await net.execAsync('n1t1', [
					process.execPath,
					'-e',
					`const net = require('net'), packet = require(${JSON.stringify(dnsPacket)});
					const query = (name, id) => packet.streamEncode({ type: 'query', id, flags: 256, questions: [{ name, type: 'A' }] });
					const dial = () => net.connect({ host: '127.0.0.11', port: 53, allowHalfOpen: true });
					${code}`,
				]);
				return JSON.parse(r.stdout) as unknown;
			};
			// 300 at once, ours and forwarded ones by turns, and nothing more to say.
			const read = `let got = Buffer.alloc(0); const ids = new Set();
				c.on('data', (d) => { got = Buffer.concat([got, d]);
					while (got.length > 1 && got.length >= 2 + got.readUInt16BE(0)) {
						const n = 2 + got.readUInt16BE(0); const p = packet.streamDecode(got.subarray(0, n)); ids.add(p.id + p.answers.length * 1000); got = got.subarray(n); } });
				c.on('end', () => { console.log(JSON.stringify([...ids].sort((a, b) => a - b))); c.end(); });`;
			const wanted = Array.from({ length: 300 }, (_, i) => 1000 + i);
			assert.equal(
				await client(`const c = dial(); ${read}
					c.end(Buffer.concat(Array.from({ length: 300 }, (_, i) => query(i % 3 ? 'web' : 'good.example', i))));`),
				wanted,
			);
			// Byte by byte.
			assert.equal(
				await client(`const c = dial(); c.setNoDelay(true); ${read}
					const all = query('web', 7); let i = 0;
					const next = () => i < all.length ? c.write(all.subarray(i, ++i), () => setTimeout(next, 1)) : c.end(); next();`),
				[1007],
			);
			// An answer for a query, and a length without its message.
			assert.equal(
				await client(`let closed = 0; const done = () => { if (++closed === 2) console.log(closed); };
					const a = dial(); a.on('close', done).on('error', () => {}).on('end', () => a.end()).resume();
					a.write(Buffer.concat([Buffer.from([0, 12]), Buffer.from([0, 1, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0])]));
					const b = dial(); b.on('close', done).on('error', () => {}).on('end', () => b.end()).resume();
					b.end(Buffer.from([255, 255, 1, 2, 3]));`),
				2,
			);
			// 80 connections: 64 are kept, and answered.
			assert.equal(
				await client(`const all = Array.from({ length: 80 }, dial); let open = 0, closed = 0, tried = 0;
					const look = () => { if (open + closed === 80) { console.log(JSON.stringify([open, closed])); process.exit(); } };
					for (const c of all) { let answered = false; c.on('error', () => {});
						c.on('connect', () => c.write(query('web', 1)));
						c.on('data', () => { answered = true; open++; look(); });
						c.on('end', () => c.end()); c.on('close', () => { if (!answered) { closed++; look(); } }); }`),
				[64, 16],
			);
			await waitFor('room for another', async () => (await short(net, 'n1t1', 'web', '+tcp'))[0] === '10.44.0.2');
			// It reads nothing of what it asked for: its connection waits, nothing grows, others are served.
			const deaf = net.spawn('n1t1', [
				process.execPath,
				'-e',
				`const packet = require(${JSON.stringify(dnsPacket)}); const c = require('net').connect(53, '127.0.0.11');
				c.pause(); const q = packet.streamEncode({ type: 'query', id: 1, flags: 256, questions: [{ name: 'big', type: 'A' }] });
				const many = Buffer.concat(Array(1000).fill(q)); let n = 0;
				const more = () => { while (n++ < 100 && c.write(many)); }; c.on('drain', more); c.on('connect', () => { more(); console.log('asked'); });`,
			]);
			await waitFor('it to ask', () => deaf.stdout().includes('asked'));
			assert.equal(await short(net, 'n1t1', 'web', '+tcp'), ['10.44.0.2']);
			await deaf.stop();
		});

		test('each namespace sees the networks it is on; two endpoints in one see both', async ({ net, names }) => {
			await names.call('serve', { id: 'e2', netns: path(net, 'n1t2'), networks: ['blue'] });
			assert.equal(await short(net, 'n1t2', 'web'), ['10.55.0.2']);
			assert.equal(await short(net, 'n1t1', 'web'), ['10.44.0.2']);
			await names.call('serve', { id: 'e2b', netns: path(net, 'n1t2'), networks: ['red'] });
			assert.equal(await short(net, 'n1t2', 'web'), ['10.55.0.2'], 'blue is asked before red');
			assert.equal(await short(net, 'n1t2', 'web.red'), ['10.44.0.2']);
			await names.call('forget', 'e2');
			assert.equal(await short(net, 'n1t2', 'web'), ['10.44.0.2']);
			await names.call('forget', 'e2b');
			assert.match((await dig(net, 'n1t2', 'web')).join('\n'), /connection refused|no servers could be reached/);
		});

		test('served, forgotten and served again before the first was done: the last one counts', async ({
			net,
			names,
		}) => {
			const serve = () => names.call<string>('serve', { id: 'e2', netns: path(net, 'n1t2'), networks: ['blue'] });
			const first = serve().catch((e: Error) => e.message);
			const forgotten = names.call('forget', 'e2');
			const second = serve();
			// On a busy machine it may be done before it is forgotten.
			assert.match(await first, /^serving$|the namespace went/);
			await forgotten;
			assert.is(await second, 'serving');
			assert.equal(await short(net, 'n1t2', 'web'), ['10.55.0.2']);
			await names.call('forget', 'e2');
		});

		test('scaling is visible in the next query', async ({ net, names }) => {
			const scaled = { ...red, services: [{ ...red.services[1]!, tasks: ['10.44.0.99'] }] };
			await names.call('update', [scaled, blue, many]);
			assert.equal(await short(net, 'n1t1', 'tasks.db'), ['10.44.0.99']);
			assert.is(status(await dig(net, 'n1t1', 'web')), 'NXDOMAIN');
			await names.call('update', [red, blue, many]);
			assert.equal(await short(net, 'n1t1', 'tasks.db'), ['10.44.0.20', '10.44.0.21', '10.44.0.22']);
		});

		test('on internal networks alone nothing leaves the node', async ({ net, names, upstream }) => {
			await names.call('update', [{ ...red, internal: true }, blue, many]);
			await names.call('serve', { id: 'e1', netns: path(net, 'n1t1'), networks: ['red'] });
			const before = (await upstream.call<string[]>('asked')).length;
			assert.equal(await short(net, 'n1t1', 'web'), ['10.44.0.2']);
			assert.is(status(await dig(net, 'n1t1', 'good.example')), 'SERVFAIL');
			assert.is((await upstream.call<string[]>('asked')).length, before);
			await names.call('update', [red, blue, many]);
			assert.equal(await short(net, 'n1t1', 'good.example'), ['203.0.113.7']);
		});

		test('another server in resolv.conf is asked from the next second on, over IPv6 too', async ({
			net,
			names,
			conf,
		}) => {
			writeFileSync(conf, `nameserver ${net.address('c1').v6}\n`);
			await waitFor('the new servers to be read', async () => {
				await short(net, 'n1t1', 'good.example');
				return (await names.call<string[]>('log')).filter((l) => l.startsWith('info: unknown names')).length === 2;
			});
			assert.equal(await short(net, 'n1t1', 'good.example'), ['203.0.113.7']);
			assert.is((await short(net, 'n1t1', 'big.example')).length, 100);
		});

		test('where a resolver is already, it is left alone, and that is said once', async ({ net, names }) => {
			// As Docker's is: on 127.0.0.11, at a port of its own.
			net.addNamespace('dk');
			const docker = net.spawn('dk', [
				process.execPath,
				'-e',
				"require('dgram').createSocket('udp4').bind(40000, '127.0.0.11', () => console.log('listening'))",
			]);
			await waitFor('the other resolver', () => docker.stdout().includes('listening'));
			const serve = () => names.call('serve', { id: 'dk', netns: path(net, 'dk'), networks: ['red'] });
			assert.is(await serve(), 'held');
			assert.is(await serve(), 'held');
			const said = (await names.call<string[]>('log')).filter((l) => l.startsWith('warn') && l.includes(net.ns('dk')));
			assert.is(said.length, 1);
			assert.match(said[0]!, /names are not served in .*: a resolver is there already \(Docker's/);
			assert.equal((await names.call<DnsCounters>('counters')).namespaces, { serving: 1, beside: 0, held: 1 });
			// It goes: a later call serves.
			await docker.stop();
			await waitFor('the namespace to be served', async () => (await serve()) === 'serving', 15_000, 500);
			assert.equal(await short(net, 'dk', 'web'), ['10.44.0.2']);
			await names.call('forget', 'dk');

			const own = await net.udpecho('dk', 53);
			assert.is(await names.call('serve', { id: 'dk2', netns: path(net, 'dk'), networks: ['red'] }), 'held');
			assert.ok((await names.call<string[]>('log')).some((l) => /a server of its own has port 53 there/.test(l)));
			await own.stop();
			net.removeNamespace('dk');
		});

		test('a namespace whose lo is down, or that is not there', async ({ net, names }) => {
			spawnSync('ip', ['netns', 'add', net.ns('down')]);
			try {
				assert.is(await names.call('serve', { id: 'down', netns: path(net, 'down'), networks: ['red'] }), 'serving');
				const [lo] = net.ipJson('down', 'link show lo') as { flags: string[] }[];
				assert.ok(lo!.flags.includes('UP'), 'it was brought up');
				assert.equal(await short(net, 'down', 'web'), ['10.44.0.2']);
			} finally {
				spawnSync('ip', ['netns', 'del', net.ns('down')]);
			}
			let e: Error | undefined;
			await names.call('serve', { id: 'no', netns: path(net, 'nosuch'), networks: ['red'] }).catch((x: Error) => {
				e = x;
			});
			assert.match(e?.message ?? '', /serve names to no: there is no namespace .*nosuch/);
		});

		test('a namespace that is deleted while it is served is free, and its sockets are closed', async ({
			net,
			names,
		}) => {
			const before = await waitFor('the Worker to end', async () => {
				const f = await names.call<Facts>('facts');
				return f.namespaces === 1 && (await names.call<DnsCounters>('counters')).namespaces.serving === 1 && f;
			});
			await names.call('serve', { id: 'e2', netns: path(net, 'n1t2'), networks: ['red'] });
			assert.equal(await short(net, 'n1t2', 'web'), ['10.44.0.2']);
			const links = () => (net.ipJson('n1', 'link show') as { ifname: string }[]).map((l) => l.ifname).join(' ');
			const had = links();
			net.removeNamespace('n1t2');
			// The kernel ends a namespace, and its veth, when nothing holds it: not even a socket of ours.
			await waitFor('its veth to go', () => links() !== had, 5000);
			await waitFor(
				'no fd more than before',
				async () => (await names.call<Facts>('facts')).fds <= before.fds,
				8000,
				100,
			);
			assert.is((await names.call<DnsCounters>('counters')).namespaces.serving, 1);
		});

		test('a killed agent leaves nothing that the next one stumbles over', async (shared) => {
			const { net, conf } = shared;
			// Connections that the server's end closes stay in TIME_WAIT there.
			assert.equal(await short(net, 'n1t1', 'web', '+tcp'), ['10.44.0.2']);
			await shared.names.kill();
			assert.match((await dig(net, 'n1t1', 'web')).join('\n'), /connection refused|no servers could be reached/);
			shared.names = startNames(net, conf);
			await shared.names.call('serve', { id: 'e1', netns: path(net, 'n1t1'), networks: ['red', 'many'] });
			assert.is(
				status(await dig(net, 'n1t1', 'good.example')),
				'SERVFAIL',
				'before it knows a network it forwards nothing',
			);
			await shared.names.call('update', [red, blue, many]);
			assert.equal(await short(net, 'n1t1', 'web'), ['10.44.0.2']);
			assert.equal(await short(net, 'n1t1', 'web', '+tcp'), ['10.44.0.2']);
		});

		test('100 000 queries, 64 at a time: every one is answered', async ({ net, names }) => {
			const before = await names.call<Facts>('facts');
			const r = await net.execAsync('n1t1', [process.execPath, script('dnsflood'), '100000', 'tasks.web', '', '64'], {
				timeoutMs: 120_000,
			});
			const report = JSON.parse(r.stdout) as { sent: number; answers: number; ms: number };
			const after = await names.call<Facts>('facts');
			console.log(`   ${r.stdout.trim()}; ${(after.rssMb - before.rssMb).toFixed(1)} MB more`);
			assert.equal([report.sent, report.answers], [100_000, 100_000]);
			assert.ok(after.rssMb - before.rssMb < 100, `memory grew by ${after.rssMb - before.rssMb} MB`);
		});

		test('a flood of 100 000 queries: bounded in time and memory, and others are served meanwhile', async (shared) => {
			const { net, names, conf } = shared;
			writeFileSync(conf, `nameserver ${net.address('c1').v4}\n`);
			net.addNamespace('quiet');
			await names.call('serve', { id: 'quiet', netns: path(net, 'quiet'), networks: ['red'] });
			await short(net, 'quiet', 'web');
			const before = await names.call<Facts>('facts');
			const began = performance.now();
			const flood = net.spawn('n1t1', [process.execPath, script('dnsflood'), '100000', 'tasks.big', 'silent.example']);
			let asked = 0;
			let worstMs = 0;
			while (flood.child.exitCode === null && flood.child.signalCode === null) {
				const from = performance.now();
				assert.equal(await short(net, 'quiet', 'web'), ['10.44.0.2']);
				worstMs = Math.max(worstMs, performance.now() - from);
				asked++;
				assert.ok(performance.now() - began < 90_000, 'it does not end');
			}
			const report = JSON.parse((await flood.ended).stdout) as { sent: number; answers: number; rcodes: object };
			const counters = await names.call<DnsCounters>('counters');
			const after = await names.call<Facts>('facts');
			console.log(
				`   flood: ${JSON.stringify(report)} in ${Math.round(performance.now() - began)} ms; ${asked} answers elsewhere meanwhile, the slowest dig ${Math.round(worstMs)} ms`,
			);
			console.log(`   ${JSON.stringify(counters)}`);
			console.log(`   before ${JSON.stringify(before)}\n   after  ${JSON.stringify(after)}`);
			assert.is(report.sent, 100_000);
			assert.ok(asked > 0);
			assert.ok(report.answers > 1000, 'some arrived, and were answered');
			assert.ok(counters.failures.busy > 0, 'those over the limit were refused');
			assert.ok(after.rssMb - before.rssMb < 150, `memory grew by ${after.rssMb - before.rssMb} MB`);
			await waitFor(
				'queries under way to end',
				async () => (await names.call<DnsCounters>('counters')).inFlight === 0,
				15_000,
			);
			await waitFor(
				'their sockets to be closed',
				async () => (await names.call<Facts>('facts')).fds <= before.fds,
				5000,
			);
			await names.call('forget', 'quiet');
			net.removeNamespace('quiet');
			assert.ok(
				(await names.call<string[]>('log')).filter((l) => l.includes('too many queries')).length <= 45,
				'one line in 2 s',
			);
		});

		test('100 namespaces: two fds each, no thread in any, and nothing left of them', async ({ net, names }) => {
			const all = Array.from({ length: 100 }, (_, i) => `x${i + 1}`);
			const before = await waitFor('the Worker to end', async () => {
				const f = await names.call<Facts>('facts');
				return f.namespaces === 1 && f;
			});
			for (const x of all) net.addNamespace(x);
			const began = performance.now();
			const states = await Promise.all(
				all.map((x) => names.call('serve', { id: x, netns: path(net, x), networks: ['red'] })),
			);
			const ms = performance.now() - began;
			assert.equal([...new Set(states)], ['serving']);
			const serving = await names.call<Facts>('facts');
			console.log(
				`   100 namespaces in ${Math.round(ms)} ms, ${(serving.rssMb - before.rssMb).toFixed(1)} MB more, ${serving.fds - before.fds} fds more`,
			);
			for (const x of all.filter((_, i) => i % 10 === 0)) {
				assert.equal(await short(net, x, 'web'), ['10.44.0.2']);
				assert.equal(await short(net, x, 'alice', '+tcp'), ['10.44.0.30']);
			}
			const alone = await waitFor('no thread in another namespace', async () => {
				const f = await names.call<Facts>('facts');
				return f.namespaces === 1 && f.threads <= before.threads && f;
			});
			assert.ok(alone.fds - before.fds <= 201, `${alone.fds} fds, ${before.fds} before`);
			for (const x of all.slice(0, 50)) net.removeNamespace(x);
			await waitFor(
				'50 to be noticed',
				async () => (await names.call<DnsCounters>('counters')).namespaces.serving === 51,
			);
			for (const x of all.slice(50)) await names.call('forget', x);
			await waitFor('every fd to be closed', async () => (await names.call<Facts>('facts')).fds <= before.fds, 5000);
			for (const x of all.slice(50)) net.removeNamespace(x);
			assert.equal(await short(net, 'n1t1', '-x', '10.44.0.2'), ['web.red.']);
		});

		test('close ends it: no fd, no timer, no thread keeps the process', async ({ net, names }) => {
			await names.call('close');
			assert.match((await dig(net, 'n1t1', 'web')).join('\n'), /connection refused|no servers could be reached/);
			let e: Error | undefined;
			await names.call('serve', { id: 'e1', netns: path(net, 'n1t1'), networks: ['red'] }).catch((x: Error) => {
				e = x;
			});
			assert.match(e?.message ?? '', /closed/);
		});
	},
);
