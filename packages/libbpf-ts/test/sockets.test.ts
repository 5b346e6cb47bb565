import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { closeSync, readdirSync, readlinkSync } from 'node:fs';
import { createServer, Socket } from 'node:net';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { inNetns, openNetns, withinNetns } from '../src/index.js';
import type { run } from './fixtures/listen.js';
import { cleanup, when, why } from './helpers.js';

const lack = why('root', 'ip');
const ns = `lbts-sock-${process.pid}`;
test.before(() => {
	if (lack) return;
	execFileSync('ip', ['netns', 'add', ns]);
	cleanup(() => execFileSync('ip', ['netns', 'del', ns]));
});
const module = new URL('./fixtures/listen.js', import.meta.url);
const ADDRESS = 0x7f00000b;
const listen = (more: object = {}) =>
	inNetns<ReturnType<typeof run>>('/proc/self/ns/net', {
		module,
		args: { netns: ns, address: ADDRESS, port: 53, ...more },
	});
const fds = (): number => readdirSync('/proc/self/fd').length;

when(test, lack, 'a thread steps into a namespace and comes home, also where the work fails', async () => {
	const home = readlinkSync('/proc/self/ns/net');
	const failed = await listen({ fail: true });
	assert.equal([failed.before, failed.after, failed.error], [home, home, 'the work fails']);
	assert.is.not(failed.inside, home);
	assert.ok(failed.wasDown, 'ip netns add leaves lo down');
	const missing = await listen({ netns: 'nosuch' });
	assert.match(missing.error ?? '', /open network namespace nosuch: .*ip netns list/);
	assert.throws(() => withinNetns(ns, () => 0), /a Worker is needed/);
});

when(test, lack, 'node adopts sockets made in a namespace: they are asked there and not here', async () => {
	const r = await listen();
	assert.is(r.wasDown, false, 'the test before brought lo up');
	const { udp, tcp } = r.listeners!;
	const u = createSocket('udp4').on('message', (m, from) => u.send(`udp ${m}`, from.port, from.address));
	await new Promise<void>((done) => u.bind({ fd: udp }, done));
	const t = createServer((c) => c.on('error', () => {}).end('tcp hello'));
	await new Promise<void>((done) => t.listen({ fd: tcp }, done));
	assert.is(u.address().address, '127.0.0.11');
	const net = await openNetns(ns);
	const ask = (kind: string) =>
		net.exec('bash', ['-c', `exec 3<>/dev/${kind}/127.0.0.11/53; echo -n hi >&3; timeout 5 head -c 6 <&3`]);
	assert.is((await ask('udp')).stdout, 'udp hi');
	assert.is((await ask('tcp')).stdout, 'tcp he');
	await net.close();
	u.close();
	await new Promise((done) => t.close(done));
});

when(test, lack, 'where a port is taken both are closed again, and the error says which', async () => {
	const first = (await listen()).listeners!;
	const before = fds();
	const second = await listen();
	assert.match(second.error ?? '', /listen on 127\.0\.0\.11:53 \(UDP\): address already in use/);
	closeSync(first.udp);
	const third = await listen();
	assert.match(third.error ?? '', /listen on 127\.0\.0\.11:53 \(TCP\): address already in use/);
	assert.is(fds(), before - 1);
	closeSync(first.tcp);
	const fourth = (await listen()).listeners!;
	closeSync(fourth.udp);
	closeSync(fourth.tcp);
});

when(test, lack, 'sockets to a server are of the namespace: adopted by node they speak to what is there', async () => {
	const r = await listen();
	const { udp, tcp } = r.listeners!;
	const u = createSocket('udp4').on('message', (m, from) => u.send(`udp ${m}`, from.port, from.address));
	await new Promise<void>((done) => u.bind({ fd: udp }, done));
	const t = createServer((c) => c.on('error', () => {}).on('data', (m) => c.end(`tcp ${m}`)));
	await new Promise<void>((done) => t.listen({ fd: tcp }, done));
	const fd = (via: 'udp' | 'tcp', address = '127.0.0.11') =>
		inNetns<number>('/proc/self/ns/net', {
			module: new URL('./fixtures/dial.js', import.meta.url),
			args: { netns: ns, via, address, port: 53 },
		});
	const client = createSocket('udp4');
	client.bind({ fd: await fd('udp') });
	const heard = new Promise<string>((done) => client.once('message', (m) => done(`${m}`)));
	client.connect(53, '127.0.0.11', () => client.send('hi'));
	assert.is(await heard, 'udp hi');
	client.close();
	for (const address of ['127.0.0.11', '::ffff:127.0.0.11']) {
		const stream = new Socket({ fd: await fd('tcp', address) });
		stream.write('hi');
		const said = await new Promise<string>((done) => stream.once('data', (m) => done(`${m}`)));
		assert.is(said, 'tcp hi', address);
		stream.destroy();
	}
	const nowhere = await fd('tcp', '203.0.113.1').catch((e: Error) => e.message);
	assert.match(`${nowhere}`, /connect to 203\.0\.113\.1 port 53: network is unreachable/i);
	u.close();
	await new Promise((done) => t.close(done));
});

test.run();
