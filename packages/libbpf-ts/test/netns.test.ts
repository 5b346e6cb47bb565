import { readdirSync, readlinkSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { inNetns, netnsCookie, openNetns } from '../src/index.js';
import { namespace, until, when, why } from './helpers.js';

const lack = why('root', 'ip');
let ns = '';
test.before(() => {
	if (!lack) ns = namespace('ns');
});
const threads = (): number => readdirSync('/proc/self/task').length;
/** The network namespace of every thread of this process. */
const spaces = (): Set<string> =>
	new Set(readdirSync('/proc/self/task').map((t) => readlinkSync(`/proc/self/task/${t}/ns/net`)));

when(test, lack, 'commands, names and the cookie are those of the namespace', async () => {
	const net = await openNetns(ns);
	const links = await net.exec('ip', ['-br', 'link']);
	assert.is(links.status, 0);
	assert.match(links.stdout, /v0@v1/);
	assert.is((await net.exec('cat', [], { input: 'hello' })).stdout, 'hello');
	assert.is((await net.exec('sh', ['-c', 'echo no >&2; exit 3'])).status, 3);
	assert.ok((await net.ifindex('v0')) > 1);
	const cookie = await net.cookie();
	assert.is(typeof cookie, 'bigint');
	assert.is.not(cookie, netnsCookie());
	assert.is(await net.cookie(), cookie);
	let e: Error | undefined;
	await net.ifindex('nosuch0').catch((x) => {
		e = x;
	});
	assert.match(e?.message ?? '', /find interface nosuch0/);
	await net.close();
	await net.close();
	assert.throws(() => net.cookie(), /is closed/);
});

when(test, lack, 'no thread is left behind, in that namespace or at all', async () => {
	await (await openNetns(ns)).close();
	const before = threads();
	const home = spaces();
	assert.is(home.size, 1);
	for (let i = 0; i < 5; i++) {
		const net = await openNetns(ns);
		assert.is(spaces().size, 2, 'one thread sits there while it is open');
		await net.exec('true');
		await net.run({ module: new URL('./fixtures/where.js', import.meta.url), args: 1 });
		await net.close();
	}
	await until('the threads to end', () => threads() <= before);
	assert.equal(spaces(), home);
});

when(test, lack, 'a job runs inside and its result comes out', async () => {
	const module = new URL('./fixtures/where.js', import.meta.url);
	const r = await inNetns<{ ns: string; args: unknown }>(ns, { module, args: { n: 5n } });
	assert.equal(r.args, { n: 5n });
	assert.is.not(r.ns, readlinkSync('/proc/thread-self/ns/net'));
	let e: Error | undefined;
	await inNetns(ns, { module: new URL('./fixtures/nothing.js', import.meta.url) }).catch((x) => {
		e = x;
	});
	assert.match(e?.message ?? '', /nothing\.js/);
});

when(test, lack, 'calls may overlap', async () => {
	const net = await openNetns(`/run/netns/${ns}`);
	const all = await Promise.all([net.exec('sleep', ['0.05']), net.cookie(), net.ifindex('v1'), net.exec('true')]);
	assert.is(all[0].status, 0);
	await net.close();
});

when(test, lack, 'a namespace that is not there is named', async () => {
	let e: Error | undefined;
	await openNetns('lbts-nowhere').catch((x) => {
		e = x;
	});
	assert.match(e?.message ?? '', /open network namespace lbts-nowhere: .*\/run\/netns\/lbts-nowhere does not exist/);
});

test.run();
