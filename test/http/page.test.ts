/** The live page: its answer, and its script run against the application over TCP. */
import { createHash } from 'node:crypto';
import { suite, test } from 'uvu';
import * as assert from 'uvu/assert';
import { createApp } from '../../src/http/app.js';
import type { Peer } from '../../src/http/guard.js';
import { type Listening, listen } from '../../src/http/listen.js';
import { backendRows, counts, eventRow, problemRows, rates, serviceRows } from '../../src/http/page/live.js';
import { type Opened, open } from '../support/browser.js';
import { waitFor } from '../support/wait.js';
import { type FakeAgent, fakeAgent } from './fake.js';

const LOOPBACK: Peer = { kind: 'tcp', local: '127.0.0.1', remote: '127.0.0.1' };
const LAN: Peer = { kind: 'tcp', local: '192.168.78.1', remote: '192.168.78.9' };

function appOf(api: FakeAgent, metrics = () => '') {
	return createApp({
		api,
		tokens: { current: () => ({ token: 'sesame' }) },
		metrics: async () => ({ text: metrics(), contentType: 'text/plain; version=0.0.4' }),
		version: '0.1.0',
		maxEventReaders: 2,
	});
}

function ask(peer: Peer, method: string, path: string, headers: Record<string, string> = {}) {
	const app = appOf(fakeAgent());
	return app.request(path, { method, headers: { host: '127.0.0.1:7980', ...headers } }, { peer });
}

const sha256 = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

test('GET / is one document that may load nothing, run its own script only and speak to its agent only', async () => {
	const res = await ask(LOOPBACK, 'GET', '/');
	assert.is(res.status, 200);
	assert.match(res.headers.get('content-type') ?? '', /^text\/html; charset=utf-8$/i);
	assert.is(res.headers.get('cache-control'), 'no-cache');
	assert.is(res.headers.get('x-content-type-options'), 'nosniff');
	assert.is(res.headers.get('referrer-policy'), 'no-referrer');
	const html = await res.text();
	const inside = (tag: string) =>
		[...html.matchAll(new RegExp(`<${tag}[^>]*>([^]*?)</${tag}>`, 'g'))].map((m) => m[1]!);
	const [scripts, styles] = [inside('script'), inside('style')];
	assert.equal([scripts.length, styles.length], [1, 1]);
	const policy = (res.headers.get('content-security-policy') ?? '').split('; ');
	for (const directive of [
		"default-src 'none'",
		`script-src ${sha256(scripts[0]!)}`,
		`style-src ${sha256(styles[0]!)}`,
		"connect-src 'self'",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
		"require-trusted-types-for 'script'",
	])
		assert.ok(policy.includes(directive), directive);
	assert.not.match(html, /https?:\/\/|<[^>]+ (style|on\w+)=|<(script|img|iframe)[^>]* src=/);
	assert.not.match(scripts[0]!, /^import |innerHTML|sourceMappingURL/m);
});

test('HEAD, 304 and 405 of the page; what is beside it is a problem', async () => {
	const head = await ask(LOOPBACK, 'HEAD', '/');
	assert.is(head.status, 200);
	assert.is(await head.text(), '');
	assert.match(head.headers.get('content-security-policy') ?? '', /script-src 'sha256-/);
	const tag = head.headers.get('etag')!;
	assert.is((await ask(LOOPBACK, 'GET', '/', { 'if-none-match': tag })).status, 304);
	const post = await ask(LOOPBACK, 'POST', '/', { authorization: 'Bearer sesame' });
	assert.is(post.status, 405);
	assert.is(post.headers.get('allow'), 'GET, HEAD');
	for (const path of ['/index.html', '/favicon.ico', '//']) {
		const res = await ask(LOOPBACK, 'GET', path);
		assert.equal([res.status, res.headers.get('content-type')], [404, 'application/problem+json'], path);
	}
});

test('who may see the page: as with all reading', async () => {
	assert.is((await ask({ kind: 'unix' }, 'GET', '/')).status, 200);
	assert.is((await ask(LAN, 'GET', '/')).status, 401);
	assert.is((await ask(LAN, 'GET', '/', { authorization: 'Bearer sesame' })).status, 200);
	assert.is((await ask(LOOPBACK, 'GET', '/', { host: 'evil.example:7980' })).status, 403);
	assert.is((await ask(LOOPBACK, 'GET', '/', { 'sec-fetch-site': 'cross-site' })).status, 403);
	assert.is((await ask(LOOPBACK, 'GET', '/', { 'sec-fetch-site': 'none' })).status, 200);
});

test('rates: of counters that rose, by what they count; none for a new one, nor for one that went back', () => {
	const at = (ms: number, packets: number, more = '') =>
		counts(
			`# HELP beeline_service_packets_total x\nbeeline_service_packets_total{service="a\\"b\\\\n",protocol="tcp",port="80"} ${packets}\n` +
				`beeline_service_packets_total{service="a\\"b\\\\n",protocol="udp",port="80"} 5\nother_total{service="x"} 9\n${more}`,
			ms,
		);
	const key = 'service a"b\\n';
	assert.equal([...at(0, 10).of], [[key, 15]]);
	assert.equal([...rates(undefined, at(0, 10))], []);
	assert.equal([...rates(at(0, 10), at(2000, 40))], [[key, 15]]);
	assert.equal([...rates(at(0, 10), at(2000, 3))], []);
	const born = at(2000, 10, 'beeline_backend_new_flows_total{service="x",backend="b",node="n"} 4\n');
	assert.equal([...rates(at(0, 10), born)], [[key, 0]]);
});

test('what is wrong is listed, and nothing else is', () => {
	const status = fakeAgent().status();
	assert.equal(
		problemRows(status).map((row) => row.flat().filter((t) => t !== 'bad' && t !== 'warn')),
		[
			['Membership', 'mesh.yaml:3: unknown key'],
			['Reconcile', 'no uplink'],
			['Tables differ from', 'node2'],
			['No keys with', 'node3'],
			['tcp/22 of web refused', 'port 22 is held by sshd'],
			['Warning', 'eth0: rp_filter is strict'],
		],
	);
	const well = { membership: { ...status.membership, error: null }, differing: [], refused: [], warnings: [] };
	const reconcile = { ...status.reconcile, lastError: null };
	assert.equal(problemRows({ ...status, ...well, reconcile, encryption: null }), []);
});

test('services as rows: what of them serves, and one at rest is not one that fails', () => {
	const [web] = fakeAgent().services();
	const none = { total: 0, active: 0, draining: 0, down: 0 };
	const some = { total: 4, active: 1, draining: 2, down: 1 };
	const ports = [{ published: 53, target: 53, protocol: 'udp' as const, state: 'empty' as const, reason: null }];
	const shown = serviceRows(
		[
			{ ...web!, backends: some },
			{ ...web!, ports, backends: none },
			{ ...web!, ports, backends: none, scaleFromZero: '5m' },
		],
		new Map([['service web', 99_999.5]]),
	);
	assert.equal(
		shown.map((row) => [row[1]![1], row[2], row[3]]),
		[
			['bad', ['1 of 4 active, 2 draining, 1 down', 'bad'], '100,000'],
			['warn', ['0 of 0 active', 'bad'], '100,000'],
			['warn', 'none until somebody comes', '100,000'],
		],
	);
	assert.equal(shown[1]![1], ['53→53/udp empty', 'warn']);
});

test('events and backends as rows', () => {
	const reconcile = { type: 'reconcile', at: '2026-01-02T03:04:05.678Z', cause: 'a < b', ms: 4.25, changes: 3 };
	assert.equal(eventRow('reconcile', JSON.stringify({ ...reconcile, error: null })), [
		'03:04:05.678',
		'reconcile',
		'a < b: 3 changes in 4.3 ms',
	]);
	assert.equal(eventRow('reconcile', JSON.stringify({ ...reconcile, error: 'EINVAL' }))?.[2], 'a < b: EINVAL');
	assert.equal(eventRow('lost', '{"events":4100}')?.[2], '4,100 events: more came than were read');
	assert.is(eventRow('hello', '{}'), undefined);
	const verdict = {
		at: '2026-01-02T03:04:05.678Z',
		program: 'uplink_tc',
		verdict: 'deliver_endpoint',
		protocol: null,
		source: null,
		destination: null,
		interface: 'eth0',
		bytes: 74,
		backend: null,
	};
	assert.equal(eventRow('verdict', JSON.stringify(verdict)), [
		'03:04:05.678',
		['deliver_endpoint', ''],
		'not read here, 74 bytes, uplink_tc on eth0',
	]);
	const [process, task] = fakeAgent().backends();
	const per = new Map([
		[`packets ${task!.id}`, 1234.5],
		[`flows ${task!.id}`, 0],
		[`flows ${process!.id}`, 0.25],
	]);
	const shown = backendRows([process!, { ...task!, protocol: 'udp', problem: 'no neighbour' }], per);
	assert.equal(shown, [
		['process, 80/tcp', 'web', 'node1', ['active', 'good'], '1', '–', '0.3'],
		['172.18.0.2, fd00::2, 80/udp', 'web', 'node2', ['active: no neighbour', 'bad'], '2', '1,235', '–'],
	]);
});
test.run();

interface Shown {
	api: FakeAgent;
	/** What readers of events asked for, those that are there now. */
	wanted: boolean[];
	asked: number;
	address: string;
	page: Opened;
	serve(): Promise<void>;
	server: Listening;
}
const live = suite<Shown>('live page');

live.before.each(async (x) => {
	const api = fakeAgent();
	const { subscribe } = api;
	x.api = api;
	x.wanted = [];
	x.asked = 0;
	api.subscribe = (want, listener) => {
		x.wanted = [...x.wanted, want.verdicts];
		const stop = subscribe(want, listener);
		return () => {
			if (api.listeners.has(listener)) x.wanted = x.wanted.toSpliced(x.wanted.indexOf(want.verdicts), 1);
			stop();
		};
	};
	const [{ id }] = api.backends();
	// 100 packets and 5 flows a second.
	const app = appOf(api, () => {
		x.asked++;
		const hundredths = Math.floor(performance.now() / 10);
		return (
			`beeline_backend_packets_total{service="web",backend="${id}",node="node1"} ${hundredths}\n` +
			`beeline_backend_new_flows_total{service="web",backend="${id}",node="node1"} ${hundredths / 20}\n` +
			'beeline_packets_total{program="uplink_xdp",verdict="encap_node"} 7\n'
		);
	});
	let tcp = '127.0.0.1:0';
	x.serve = async () => {
		x.server = await listen(app, undefined, [tcp]);
		tcp = x.server.addresses[0]!;
	};
	await x.serve();
	x.address = tcp;
	x.page = await open((path, init) => fetch(`http://${tcp}${path}`, init as RequestInit));
});
live.after.each(async (x) => {
	await x.page.close();
	await x.server.close();
});

live('it shows the node, its mesh and its rates', async ({ page }) => {
	await waitFor('the first answer', () => page.rows('nodes').length > 0);
	assert.is(page.text('state'), 'node1: ready, running');
	assert.match(page.document.title, /^node1 ready, running \(6\)/);
	assert.is(page.rows('problems').length, 6);
	assert.equal(page.rows('nodes')[1], ['node2', '192.168.78.2', 'active', 'yes', 'answers', '0.10 ms', '1']);
	assert.equal(page.rows('services'), [
		['web', '8080→80/tcp, 22→22/tcp refused: port 22 is held by sshd', '2 of 2 active', '–', '12'],
	]);
	assert.equal(page.rows('verdicts'), [['encap_node', 'uplink_xdp', '–', '7']]);
	const rate = () => page.rows('backends')[0]!.slice(5).map(Number) as [number, number];
	await waitFor('rates', () => !Number.isNaN(rate()[0]));
	const [packets, flows] = rate();
	// The counters are clocks; answers come when the machine lets them.
	assert.ok(packets > 50 && packets < 200, `${packets} packets/s`);
	assert.ok(flows > 2.5 && flows < 10, `${flows} flows/s`);
	const first = page.document.getElementById('nodes')!.firstElementChild;
	await waitFor('another round', () => page.rows('verdicts')[0]![2] === '0');
	assert.is(page.document.getElementById('nodes')!.firstElementChild, first, 'rows are kept: they may be selected');
});

live(
	'it is told apart by more than looks: headings, headers of columns and rows, one live region',
	async ({ page }) => {
		await waitFor('the first answer', () => page.rows('nodes').length > 0);
		const { document } = page;
		assert.is(document.documentElement.getAttribute('lang'), 'en');
		assert.equal(
			[...document.querySelectorAll('h1, h2')].map((h) => h.textContent),
			['Beeline', 'Problems', 'This node', 'Nodes', 'Services', 'Backends', 'Verdicts', 'Events'],
		);
		for (const table of document.querySelectorAll('table')) {
			assert.ok(document.getElementById(table.getAttribute('aria-labelledby')!), 'a table is named by its heading');
			for (const th of table.querySelectorAll('thead th')) assert.is(th.getAttribute('scope'), 'col');
			for (const tr of table.querySelectorAll('tbody tr'))
				assert.is(tr.firstElementChild!.getAttribute('scope'), 'row');
		}
		assert.is(document.querySelectorAll('[role=status], [aria-live]').length, 1);
	},
);

live('names from outside are text', async ({ page, api }) => {
	const evil = '<img src=x onerror="document.title=1">';
	const [services, nodes, status] = [api.services(), api.nodes(), api.status()];
	api.services = () => services.map((s) => ({ ...s, name: evil }));
	api.nodes = () => nodes.map((n) => ({ ...n, name: evil }));
	api.status = () => ({ ...status, warnings: [evil] });
	await waitFor('the name', () => page.rows('services')[0]?.[0] === evil);
	assert.is(page.rows('nodes')[1]![0], evil);
	assert.equal(page.rows('problems').at(-1), ['Warning', evil]);
	const emit = {
		type: 'reconcile' as const,
		at: '2026-01-02T03:04:05.000Z',
		cause: evil,
		ms: 1,
		changes: 1,
		error: null,
	};
	await waitFor('a reader', () => api.listeners.size === 1);
	api.emit(emit);
	await waitFor('the event', () => page.rows('events').some((row) => row[2]!.startsWith(evil)));
	assert.is(page.document.querySelectorAll('img').length, 0);
	assert.equal(
		[...page.document.querySelectorAll('#service option')].map((o) => o.textContent),
		['all', evil],
	);
});

live('packets are traced only where that is asked for, and a tab that nobody sees takes no place', async (x) => {
	const { page } = x;
	await waitFor('a reader of reconciles', () => x.wanted.join() === 'false');
	page.set('trace', { checked: true });
	await waitFor('a reader of verdicts instead', () => x.wanted.join() === 'true');
	page.hide(true);
	await waitFor('no reader', () => x.wanted.length === 0);
	const asked = x.asked;
	await new Promise((resolve) => setTimeout(resolve, 2500));
	assert.ok(x.asked <= asked + 1, 'one round at most was under way');
	assert.is(x.wanted.length, 0);
	page.hide(false);
	await waitFor('a reader again', () => x.wanted.join() === 'true');
	await waitFor('another round', () => x.asked > asked + 1);
});

live(
	'a service that is chosen is shown alone; where there are very many backends one must be',
	async ({ page, api }) => {
		const [status, web] = [api.status(), api.services()[0]!];
		const backends = [...api.backends(), { ...api.backends()[0]!, id: 'dns~x', service: 'dns' }];
		api.services = () => [web, { ...web, name: 'dns' }];
		api.backends = () => backends;
		await waitFor('both services', () => page.rows('backends').length === 3);
		page.set('service', { value: 'dns' });
		await waitFor('one', () => page.rows('services').length === 1 && page.rows('backends').length === 1);
		assert.is(page.rows('backends')[0]![1], 'dns');
		api.status = () => ({ ...status, totals: { ...status.totals, backends: 100_000 } });
		page.set('service', { value: '' });
		await waitFor('the advice', () => page.text('no-backends') === '100,000: choose a service to see its backends.');
		assert.equal(page.rows('backends'), []);
	},
);

live('an agent with no place for another reader says so, and gives one when there is', async (x) => {
	const { address, api } = x;
	await waitFor('the page to read', () => api.listeners.size === 1);
	x.page.hide(true);
	await waitFor('its place', () => api.listeners.size === 0);
	const others = [new AbortController(), new AbortController()];
	for (const { signal } of others) await fetch(`http://${address}/v1/events`, { signal });
	x.page.hide(false);
	await waitFor('the reason', () => /too many readers of \/v1\/events/.test(x.page.text('stream')));
	others[0]!.abort();
	await waitFor('a place', () => x.page.text('stream') === '' && api.listeners.size === 2);
	others[1]!.abort();
});

live('an agent that is away is told of, and what is shown is old; it recovers by itself', async (x) => {
	const { page } = x;
	await waitFor('the first answer', () => page.rows('nodes').length > 0);
	await x.server.close();
	await waitFor('the error', () => /^No answer from the agent: .*trying again/.test(page.text('state')));
	assert.is(page.document.getElementById('main')!.className, 'away');
	assert.match(page.text('stream'), /^No events/);
	assert.is(page.rows('nodes').length, 2);
	await x.serve();
	await waitFor('the agent again', () => page.text('state') === 'node1: ready, running');
	assert.is(page.document.getElementById('main')!.className, '');
	await waitFor('its events', () => page.text('stream') === '' && x.api.listeners.size === 1);
});
live.run();
