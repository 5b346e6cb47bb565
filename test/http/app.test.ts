import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { z } from '@hono/zod-openapi';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { AgentError } from '../../src/agent/api.js';
import { createApp } from '../../src/http/app.js';
import { type Peer, tokenFile } from '../../src/http/guard.js';
import { listen } from '../../src/http/listen.js';
import * as s from '../../src/http/schemas.js';
import { fakeAgent } from './fake.js';

const UNIX: Peer = { kind: 'unix' };
const LOOPBACK: Peer = { kind: 'tcp', local: '127.0.0.1', remote: '127.0.0.1' };
const LAN: Peer = { kind: 'tcp', local: '192.168.78.1', remote: '192.168.78.9' };
const secret = { current: () => ({ token: 'sesame' }) };
const none = { current: () => undefined };

function setUp(tokens: typeof secret | typeof none = secret) {
	const api = fakeAgent();
	const errors: Error[] = [];
	const app = createApp({
		api,
		tokens,
		metrics: async () => ({ text: 'beeline_build_info 1\n', contentType: 'text/plain; version=0.0.4' }),
		version: '0.1.0',
		verdicts: ['encap_node', 'drop_denied'],
		onError: (e) => errors.push(e),
		eventQueue: 4,
		heartbeatMs: 30,
		maxEventReaders: 2,
	});
	const ask = (peer: Peer, method: string, path: string, body?: unknown, headers: Record<string, string> = {}) =>
		app.request(
			path,
			{
				method,
				headers: {
					host: '127.0.0.1:7980',
					...(body === undefined ? {} : { 'content-type': 'application/json' }),
					...headers,
				},
				...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
			},
			{ peer },
		);
	return { api, app, ask, errors };
}

async function isProblem(res: Response, status: number, code: string, field?: string) {
	assert.is(res.status, status);
	assert.is(res.headers.get('content-type'), 'application/problem+json');
	const body = s.Problem.parse(await res.json());
	assert.is(body.status, status);
	assert.is(body.code, code);
	if (field !== undefined) assert.is(body.field, field);
	assert.ok(body.detail.length > 5, body.detail);
	assert.ok(body.title.length > 2 && body.title !== 'Error', `title of ${status}`);
}

const RESOURCES: [string, z.ZodType][] = [
	['/v1/status', s.Status],
	['/v1/nodes', s.Nodes],
	['/v1/nodes/node2', s.Node],
	['/v1/services', s.Services],
	['/v1/services/web', s.Service],
	['/v1/backends', s.Backends],
	['/v1/backends/web~node1~process~80~tcp', s.Backend],
	['/v1/flows', s.Flows],
	['/v1/entries', s.Entries],
	['/v1/config', s.Config],
];

/** Fails where `value` has a key that the schema does not know, at any depth. */
function strictly(schema: z.ZodType, value: unknown, where: string) {
	assert.equal(JSON.parse(JSON.stringify(schema.parse(value))), value, where);
}

test('every resource answers what the document says, and nothing else', async () => {
	const { ask } = setUp();
	for (const [path, schema] of RESOURCES) {
		const res = await ask(LOOPBACK, 'GET', path);
		assert.is(res.status, 200, path);
		assert.match(res.headers.get('content-type') ?? '', /^application\/json/);
		strictly(schema, await res.json(), path);
	}
});

interface Doc {
	openapi: string;
	paths: Record<
		string,
		Record<string, { responses: Record<string, { content?: Record<string, { schema: { $ref?: string } }> }> }>
	>;
	components: { schemas: Record<string, { example?: unknown }> };
}

test('the document has one valid example for each resource, and each path of the interface', async () => {
	const { ask } = setUp();
	const res = await ask(LOOPBACK, 'GET', '/openapi.json');
	assert.is(res.status, 200);
	const doc = (await res.json()) as Doc;
	assert.is(doc.openapi, '3.1.0');
	const byName: Record<string, z.ZodType> = { ...s } as never;
	for (const [name, component] of Object.entries(doc.components.schemas)) {
		assert.ok(component.example !== undefined, `${name} has no example`);
		if (byName[name] !== undefined) strictly(byName[name], component.example, name);
	}
	for (const [path, operations] of Object.entries(doc.paths)) {
		for (const [method, operation] of Object.entries(operations)) {
			const ok = operation.responses['200'] ?? operation.responses['201'];
			const ref = ok?.content?.['application/json']?.schema.$ref;
			if (ok?.content?.['application/json'] !== undefined) assert.ok(ref, `${method} ${path} answers no named schema`);
		}
	}
	for (const path of [
		'/',
		'/healthz',
		'/readyz',
		'/metrics',
		'/v1/status',
		'/v1/nodes',
		'/v1/services',
		'/v1/services/{name}',
		'/v1/backends',
		'/v1/networks',
		'/v1/networks/{name}',
		'/v1/endpoints',
		'/v1/endpoints/{id}',
		'/v1/flows',
		'/v1/entries',
		'/v1/config',
		'/v1/backends/{id}/drain',
		'/v1/backends/{id}/undrain',
		'/v1/nodes/{name}/drain',
		'/v1/nodes/{name}/undrain',
		'/v1/events',
	]) {
		assert.ok(doc.paths[path], path);
	}
});

test('/readyz is 503 until the first complete apply', async () => {
	const { ask, api } = setUp();
	assert.is((await ask(LOOPBACK, 'GET', '/readyz')).status, 200);
	api.ready = false;
	const res = await ask(LOOPBACK, 'GET', '/readyz');
	await isProblem(res.clone() as Response, 503, 'NOT_READY');
	assert.match(((await res.json()) as { detail: string }).detail, /no uplink/);
});

test('what is not there is a 404, and a wrong method is a 405 with Allow', async () => {
	const { ask } = setUp();
	await isProblem(await ask(UNIX, 'GET', '/nothing'), 404, 'NOT_FOUND');
	await isProblem(await ask(UNIX, 'GET', '/v1/services/nope'), 404, 'NOT_FOUND');
	await isProblem(await ask(UNIX, 'POST', '/v1/backends/nope/drain'), 404, 'NOT_FOUND');
	await isProblem(await ask(UNIX, 'POST', '/v1/nodes/nope/drain'), 404, 'NOT_FOUND');
	await isProblem(await ask(UNIX, 'GET', '/v1/networks/none'), 404, 'NOT_FOUND');
	await isProblem(await ask(UNIX, 'GET', '/v1/endpoints/x'), 404, 'NOT_FOUND');
	const res = await ask(UNIX, 'PUT', '/v1/config');
	assert.is(res.headers.get('allow'), 'GET, HEAD, PATCH');
	await isProblem(res, 405, 'METHOD_NOT_ALLOWED');
	await isProblem(await ask(UNIX, 'DELETE', '/v1/status'), 405, 'METHOD_NOT_ALLOWED');
});

test('bodies: malformed is 400, not JSON 415, over 1 MiB 413, invalid 422 with the field', async () => {
	const { ask } = setUp();
	await isProblem(await ask(UNIX, 'PATCH', '/v1/config', '{"log"'), 400, 'MALFORMED');
	await isProblem(await ask(UNIX, 'PATCH', '/v1/config', 'a=1', { 'content-type': 'text/plain' }), 415, 'NOT_JSON');
	await isProblem(await ask(UNIX, 'PATCH', '/v1/config'), 415, 'NOT_JSON');
	const big = JSON.stringify({ log: 'x'.repeat(1 << 20) });
	await isProblem(
		await ask(UNIX, 'PATCH', '/v1/config', big, { 'content-length': String(big.length) }),
		413,
		'TOO_LARGE',
	);
	const table: [string, string, unknown, string][] = [
		['PATCH', '/v1/config', { log: { level: 'loud' } }, 'log.level'],
		['PATCH', '/v1/config', { pinRoot: '/x' }, 'pinRoot'],
		['PATCH', '/v1/config', { datapath: { vni: 4 } }, 'datapath.vni'],
		['PATCH', '/v1/services/web', { options: { returnPath: 'nat' } }, 'options.returnPath'],
		['PATCH', '/v1/services/web', { options: { tableSize: 1000 } }, 'options.tableSize'],
		['PATCH', '/v1/services/web', { options: { drainTimeout: 'soon' } }, 'options.drainTimeout'],
		['PATCH', '/v1/services/web', { options: { colour: 'red' } }, 'options.colour'],
		['PATCH', '/v1/services/web', {}, ''],
		['PATCH', '/v1/services/web', { replicas: -1 }, 'replicas'],
		['PATCH', '/v1/services/web', { ports: { add: [{ published: 0, target: 80 }] } }, 'ports.add[0].published'],
		['PATCH', '/v1/services/web', { backends: { remove: [{}] } }, 'backends.remove[0].node'],
		['POST', '/v1/services', { name: 'x', ports: [{ published: 0, target: 80 }] }, 'ports[0].published'],
		['POST', '/v1/services', { name: 'x', ports: [{ published: 80, target: 70000 }] }, 'ports[0].target'],
		['POST', '/v1/services', { name: 'x', ports: [] }, 'ports'],
		['POST', '/v1/services', { ports: [{ published: 80, target: 80 }] }, 'name'],
	];
	for (const [method, path, body, field] of table)
		await isProblem(await ask(UNIX, method, path, body), 422, 'INVALID', field);
	await isProblem(await ask(UNIX, 'GET', '/v1/flows?limit=0'), 422, 'INVALID', 'limit');
});

test('a refused value is told in words: what was expected there', async () => {
	const { ask } = setUp();
	const table: [string, string, unknown, string][] = [
		['PATCH', '/v1/services/web', null, 'the body: expected a JSON object'],
		['PATCH', '/v1/services/web', { options: { returnPath: 'x' } }, 'options.returnPath: expected auto, dsr or tunnel'],
		[
			'PATCH',
			'/v1/services/web',
			{ options: { tableSize: 1000 } },
			'options.tableSize: expected auto or a power of two from 1024 to 131072',
		],
		[
			'PATCH',
			'/v1/services/web',
			{ options: { tableSize: 'big' } },
			'options.tableSize: expected auto or a power of two from 1024 to 131072',
		],
		[
			'PATCH',
			'/v1/services/web',
			{ options: { trackingWindow: 60 } },
			'options.trackingWindow: expected a duration such as 60s or 2h15m',
		],
		['PATCH', '/v1/services/web', { options: { allow: '::/0' } }, 'options.allow: expected a list'],
		['PATCH', '/v1/services/web', { options: { enable: 'yes' } }, 'options.enable: expected true or false'],
		[
			'POST',
			'/v1/services',
			{ name: 'x', ports: [{ published: 70000, target: 80 }] },
			'ports[0].published: expected a port from 1 to 65535',
		],
		['POST', '/v1/services', { ports: [{ published: 80, target: 80 }] }, 'name: is missing: expected a text'],
		['GET', '/v1/flows?limit=abc', undefined, 'limit: expected a whole number from 1 to 100000'],
		['GET', '/v1/entries?limit=100001', undefined, 'limit: expected a whole number from 1 to 100000'],
		['GET', '/v1/events?verdicts=maybe', undefined, 'verdicts: expected true or false'],
	];
	for (const [method, path, body, detail] of table) {
		const res = await ask(UNIX, method, path, body);
		assert.is(res.status, 422, path);
		assert.is(((await res.json()) as { detail: string }).detail, detail);
	}
});

test('a key that is read at the start only is told as such, and where it is set; others are unknown', async () => {
	const { ask, api } = setUp();
	const before = api.config();
	const table: [unknown, string][] = [
		[{ datapath: { vni: 4 } }, 'datapath.vni'],
		[{ datapath: { returnPath: 'dsr', maxFlows: 4096 } }, 'datapath.maxFlows'],
		[{ pinRoot: '/x' }, 'pinRoot'],
		[{ node: { name: 'n2' } }, 'node.name'],
		[{ membership: { source: 'etcd' } }, 'membership.source'],
		[{ http: { listen: ['127.0.0.1:1'] } }, 'http.listen'],
		[{ dockerPlugin: { socket: '/x.sock' } }, 'dockerPlugin.socket'],
		[{ uplinks: ['eth1'] }, 'uplinks'],
		[{ gatewayBridge: {} }, 'gatewayBridge'],
	];
	for (const [body, key] of table) {
		const res = await ask(UNIX, 'PATCH', '/v1/config', body);
		assert.is(res.status, 422, key);
		const { detail, field } = s.Problem.parse(await res.json());
		assert.is(
			detail,
			`${key}: is read when the agent starts and cannot be changed while it runs: set it in the configuration file (beeline.yaml) and restart the agent`,
		);
		assert.is(field, key);
	}
	for (const [body, key] of [
		[{ colour: 'red' }, 'colour'],
		[{ datapath: { colour: 'red' } }, 'datapath.colour'],
		[{ membership: { colour: 'red' } }, 'membership.colour'],
		[{ uplinks: { x: 1 } }, 'uplinks.x'],
		['{"datapath":{"__proto__":{"x":1}}}', 'datapath.__proto__'],
		['{"constructor":1}', 'constructor'],
	] as const) {
		const res = await ask(UNIX, 'PATCH', '/v1/config', body);
		assert.is(s.Problem.parse(await res.json()).detail, `${key}: unknown key`);
	}
	assert.equal(api.config(), before);
	const other = await ask(UNIX, 'POST', '/v1/nodes', { name: 'n', address: '10.0.0.1', pinRoot: '/x' });
	assert.is(s.Problem.parse(await other.json()).detail, 'pinRoot: unknown key');
});

test('the type of a body is read as RFC 9110 writes it', async () => {
	const { ask } = setUp();
	for (const type of [
		'Application/JSON',
		'application/json ; charset=utf-8',
		'application/json;',
		'application/a+json',
	]) {
		const res = await ask(UNIX, 'PATCH', '/v1/config', { datapath: { staleAfter: '7s' } }, { 'content-type': type });
		assert.is(res.status, 200, type);
		const left = await ask(UNIX, 'PATCH', '/v1/config', { colour: 'red' }, { 'content-type': type });
		await isProblem(left, 422, 'INVALID', 'colour');
	}
	await isProblem(await ask(UNIX, 'PATCH', '/v1/config', {}, { 'content-type': 'application/jsonx' }), 415, 'NOT_JSON');
});

test('changes: options, configuration, create, remove, drain', async () => {
	const { ask, api } = setUp();
	let res = await ask(UNIX, 'PATCH', '/v1/services/web', { options: { returnPath: 'dsr' } });
	assert.is(res.status, 200);
	assert.is(s.Service.parse(await res.json()).options.returnPath, 'dsr');
	res = await ask(UNIX, 'PATCH', '/v1/config', { trace: true, datapath: { staleAfter: '5s' } });
	assert.is(s.Config.parse(await res.json()).datapath.staleAfter, '5s');
	res = await ask(UNIX, 'POST', '/v1/services', {
		name: 'dns',
		ports: [{ published: 53, target: 53, protocol: 'udp' }],
	});
	assert.is(res.status, 201);
	assert.is(res.headers.get('location'), '/v1/services/dns');
	assert.is((await ask(UNIX, 'DELETE', '/v1/services/dns')).status, 204);
	assert.is(api.services().length, 1);
	await isProblem(
		await ask(UNIX, 'POST', '/v1/services', { name: 'elsewhere', ports: [{ published: 53, target: 53 }] }),
		409,
		'REFUSED',
	);
	res = await ask(UNIX, 'POST', '/v1/backends/web~node1~process~80~tcp/drain');
	assert.is(s.Backend.parse(await res.json()).state, 'draining');
	res = await ask(UNIX, 'POST', '/v1/backends/web~node1~process~80~tcp/undrain');
	assert.is(s.Backend.parse(await res.json()).state, 'active');
	res = await ask(UNIX, 'POST', '/v1/nodes/node2/drain');
	assert.is(s.Node.parse(await res.json()).state, 'drained');
	res = await ask(UNIX, 'POST', '/v1/nodes', { name: 'node3', address: '192.168.78.3' });
	assert.is(res.status, 201);
	assert.is((await ask(UNIX, 'DELETE', '/v1/nodes/node3')).status, 204);
	await isProblem(await ask(UNIX, 'POST', '/v1/nodes', { name: 'x', address: 'fd00::1' }), 422, 'INVALID', 'address');
});

test('entity tags: 304 for what is known, 412 for a stale change, and a changed resource has another', async () => {
	const { ask } = setUp();
	const first = (await ask(UNIX, 'GET', '/v1/services/web')).headers.get('etag')!;
	assert.match(first, /^"[\w-]{22}"$/);
	assert.is((await ask(UNIX, 'GET', '/v1/services/web', undefined, { 'if-none-match': `W/${first}` })).status, 304);
	const change = { options: { prefer: 'local' } };
	const res = await ask(UNIX, 'PATCH', '/v1/services/web', change, { 'if-match': first });
	assert.is(res.status, 200);
	assert.is.not(res.headers.get('etag'), first);
	await isProblem(await ask(UNIX, 'PATCH', '/v1/services/web', change, { 'if-match': first }), 412, 'STALE');
	await isProblem(await ask(UNIX, 'DELETE', '/v1/services/web', undefined, { 'if-match': first }), 412, 'STALE');
	await isProblem(await ask(UNIX, 'PATCH', '/v1/config', { trace: true }, { 'if-match': '"x"' }), 412, 'STALE');
	assert.is((await ask(UNIX, 'PATCH', '/v1/config', { trace: true }, { 'if-match': '*' })).status, 200);
});

test('what is measured makes no change stale: round-trip times, slots in transition', async () => {
	const { ask, api } = setUp();
	const tag = async (path: string) => (await ask(UNIX, 'GET', path)).headers.get('etag')!;
	const [nodes, services] = [api.nodes(), api.services()];
	const [node, service] = [await tag('/v1/nodes/node2'), await tag('/v1/services/web')];
	api.nodes = () => nodes.map((n) => ({ ...n, rttMs: 7.25, reachable: false, digest: 'another' }));
	api.services = () => services.map((one) => ({ ...one, slotsInTransition: 99 }));
	assert.is.not(await tag('/v1/nodes/node2'), node, 'a strong tag is of every byte');
	assert.is.not(await tag('/v1/services/web'), service);
	assert.is((await ask(UNIX, 'POST', '/v1/nodes/node2/drain', undefined, { 'if-match': node })).status, 200);
	const change = { options: { prefer: 'local' } };
	assert.is((await ask(UNIX, 'PATCH', '/v1/services/web', change, { 'if-match': service })).status, 200);
	api.nodes = () => nodes.map((n) => ({ ...n, state: 'drained' }));
	const stale = await ask(UNIX, 'POST', '/v1/nodes/node2/drain', undefined, { 'if-match': node });
	await isProblem(stale, 412, 'STALE');
	for (const other of [`W/${node}`, node.replaceAll('"', ''), `"${'x'.repeat(22)}"`])
		await isProblem(await ask(UNIX, 'POST', '/v1/nodes/node2/undrain', undefined, { 'if-match': other }), 412, 'STALE');
});

test('If-Match reaches the source, which may know of a change that the agent does not see yet', async () => {
	const { ask, api } = setUp();
	const asked: unknown[] = [];
	api.patchService = async (_name, patch, exact) => {
		asked.push([patch, exact]);
		if (exact === true) throw new AgentError(412, 'STALE', 'service web changed since it was read');
	};
	const change = { ports: { add: [{ published: 81, target: 81, protocol: 'udp' }] }, replicas: 2 };
	const tag = (await ask(UNIX, 'GET', '/v1/services/web')).headers.get('etag')!;
	assert.is((await ask(UNIX, 'PATCH', '/v1/services/web', change)).status, 200);
	assert.is((await ask(UNIX, 'PATCH', '/v1/services/web', change, { 'if-match': '*' })).status, 200);
	await isProblem(await ask(UNIX, 'PATCH', '/v1/services/web', change, { 'if-match': tag }), 412, 'STALE');
	assert.equal(asked, [
		[change, false],
		[change, false],
		[change, true],
	]);
});

test('who may: unix all; loopback reads; the token changes; beyond loopback nothing without it', async () => {
	const drain = '/v1/nodes/node2/drain';
	const good = { authorization: 'Bearer sesame' };
	const { ask } = setUp();
	assert.is((await ask(UNIX, 'POST', drain)).status, 200);
	assert.is((await ask(LOOPBACK, 'GET', '/v1/status')).status, 200);
	const res = await ask(LOOPBACK, 'POST', drain);
	assert.match(res.headers.get('www-authenticate') ?? '', /^Bearer/);
	await isProblem(res, 401, 'UNAUTHORIZED');
	await isProblem(
		await ask(LOOPBACK, 'POST', drain, undefined, { authorization: 'Bearer sesam' }),
		401,
		'UNAUTHORIZED',
	);
	assert.is((await ask(LOOPBACK, 'POST', drain, undefined, good)).status, 200);
	await isProblem(await ask(LAN, 'GET', '/v1/status'), 401, 'UNAUTHORIZED');
	await isProblem(await ask(LAN, 'GET', '/metrics'), 401, 'UNAUTHORIZED');
	assert.is((await ask(LAN, 'GET', '/metrics', undefined, good)).status, 200);
	assert.is((await ask(LAN, 'GET', '/healthz')).status, 200);
	await isProblem(
		await ask(LOOPBACK, 'GET', '/v1/status', undefined, { authorization: 'Bearer wrong' }),
		401,
		'UNAUTHORIZED',
	);

	const open = setUp(none);
	await isProblem(await open.ask(LOOPBACK, 'POST', drain, undefined, good), 403, 'NO_TOKEN_FILE');
	assert.is((await open.ask(LOOPBACK, 'GET', '/v1/status')).status, 200);
	assert.is((await open.ask(UNIX, 'POST', drain)).status, 200);
});

test('a page in a browser cannot read loopback: rebinding, other origins', async () => {
	const { ask } = setUp();
	await isProblem(
		await ask(LOOPBACK, 'GET', '/v1/status', undefined, { host: 'evil.example:7980' }),
		403,
		'FOREIGN_PAGE',
	);
	await isProblem(
		await ask(LOOPBACK, 'GET', '/v1/status', undefined, { origin: 'http://evil.example' }),
		403,
		'FOREIGN_PAGE',
	);
	await isProblem(
		await ask(LOOPBACK, 'GET', '/v1/events', undefined, { 'sec-fetch-site': 'cross-site' }),
		403,
		'FOREIGN_PAGE',
	);
	for (const host of ['localhost:7980', '[::1]:7980', '127.0.0.1', 'LOCALHOST']) {
		assert.is((await ask(LOOPBACK, 'GET', '/v1/status', undefined, { host })).status, 200, host);
	}
	const named = { host: 'node1.example:7980', authorization: 'Bearer sesame' };
	assert.is((await ask(LOOPBACK, 'GET', '/v1/status', undefined, named)).status, 200);
});

test('the token file is read again when it changes; empty or missing opens nothing', () => {
	const dir = mkdtempSync(join(tmpdir(), 'bl-token-'));
	try {
		const file = join(dir, 'token');
		const tokens = tokenFile(file);
		assert.match((tokens.current() as { error: string }).error, /cannot be read/);
		writeFileSync(file, 'one\n');
		assert.equal(tokens.current(), { token: 'one' });
		writeFileSync(file, 'second\n');
		assert.equal(tokens.current(), { token: 'second' });
		writeFileSync(file, '\n');
		assert.match((tokens.current() as { error: string }).error, /empty/);
		assert.is(tokenFile(undefined).current(), undefined);
	} finally {
		rmSync(dir, { recursive: true });
	}
});

test('an error that nobody foresaw is a 500 without its text, and reaches the log', async () => {
	const { ask, api, errors } = setUp();
	api.nodes = () => {
		throw new Error('secret detail');
	};
	const res = await ask(UNIX, 'GET', '/v1/nodes');
	assert.not.match(await res.clone().text(), /secret/);
	await isProblem(res, 500, 'INTERNAL');
	assert.is(errors.length, 1);
});

test('events: filtered, with heartbeats, a bounded queue, and nothing left behind when the reader goes', async () => {
	const { ask, api } = setUp();
	const res = await ask(LOOPBACK, 'GET', '/v1/events?verdict=encap_node');
	assert.match(res.headers.get('content-type') ?? '', /^text\/event-stream/);
	const reader = res.body!.getReader();
	const text = new TextDecoder();
	let seen = '';
	const until = async (what: RegExp) => {
		const limit = Date.now() + 3000;
		while (!what.test(seen)) {
			assert.ok(Date.now() < limit, `waited for ${what} in ${seen}`);
			const { value, done } = await reader.read();
			assert.not(done);
			seen += text.decode(value);
		}
	};
	await until(/event: hello/);
	const verdict = s.VerdictEvent.parse(EXAMPLE_VERDICT);
	api.emit({ ...verdict, verdict: 'drop_denied' });
	api.emit(verdict);
	await until(/event: verdict\ndata: .*encap_node/);
	assert.not.match(seen, /drop_denied/);
	await until(/: heartbeat/);
	for (let i = 0; i < 50; i++) api.emit({ ...verdict, bytes: i });
	await until(/event: lost\ndata: {"events":4\d}/);
	assert.is(api.listeners.size, 1);
	await reader.cancel();
	const limit = Date.now() + 1000;
	while (api.listeners.size > 0 && Date.now() < limit) await new Promise((r) => setTimeout(r, 5));
	assert.is(api.listeners.size, 0);
});

const EXAMPLE_VERDICT = {
	type: 'verdict',
	at: '2026-01-02T03:04:05.000Z',
	program: 'uplink_xdp',
	verdict: 'encap_node',
	protocol: 'tcp',
	source: '192.168.78.100:51234',
	destination: '192.168.78.1:8080',
	interface: 'eth0',
	bytes: 74,
	service: 'web',
	backend: null,
};

test('a third reader of events is refused while two are connected', async () => {
	const { ask } = setUp();
	const a = await ask(UNIX, 'GET', '/v1/events');
	const b = await ask(UNIX, 'GET', '/v1/events');
	await isProblem(await ask(UNIX, 'GET', '/v1/events'), 503, 'TOO_MANY_READERS');
	await a.body!.cancel();
	await b.body!.cancel();
});

test('HEAD of the events takes no reader’s place, and a verdict that does not exist is refused', async () => {
	const { ask, api } = setUp();
	for (let i = 0; i < 4; i++) {
		const res = await ask(UNIX, 'HEAD', '/v1/events');
		assert.is(res.status, 200);
		assert.match(res.headers.get('content-type') ?? '', /^text\/event-stream/);
	}
	assert.is(api.listeners.size, 0);
	await isProblem(await ask(UNIX, 'GET', '/v1/events?verdict=drop_denid'), 422, 'INVALID', 'verdict');
	const res = await ask(UNIX, 'GET', '/v1/events?verdict=drop_denied');
	assert.is(res.status, 200);
	await res.body!.cancel();
});

test('listening: the socket has mode 0600 and changes without a token, TCP reads; a living socket is not taken over', async () => {
	const { app } = setUp();
	const dir = mkdtempSync(join(tmpdir(), 'bl-http-'));
	const path = join(dir, 'run', 'beeline.sock');
	const server = await listen(app, path, ['127.0.0.1:0']);
	try {
		assert.is(statSync(path).mode & 0o777, 0o600);
		const send = (options: object) =>
			new Promise<number>((resolve, reject) => {
				const req = httpRequest({ path: '/v1/nodes/node2/drain', method: 'POST', ...options }, (res) => {
					res.resume();
					res.on('end', () => resolve(res.statusCode!));
				});
				req.on('error', reject);
				req.end();
			});
		assert.is(await send({ socketPath: path }), 200);
		// Without a length: chunked, which the limit must read before it can count.
		assert.is(await send({ socketPath: path, method: 'DELETE', path: '/v1/nodes/node2' }), 204);
		const big = await new Promise<number>((resolve, reject) => {
			const req = httpRequest(
				{ socketPath: path, path: '/v1/config', method: 'PATCH', headers: { 'content-type': 'application/json' } },
				(res) => {
					res.resume();
					res.on('end', () => resolve(res.statusCode!));
				},
			);
			req.on('error', reject);
			for (let i = 0; i < 17; i++) req.write('x'.repeat(65536));
			req.end();
		});
		assert.is(big, 413);
		const port = Number(server.addresses[1]!.split(':')[1]);
		assert.is(await send({ host: '127.0.0.1', port }), 401);
		assert.is(await send({ host: '127.0.0.1', port, method: 'GET', path: '/v1/status' }), 200);
		let refused = '';
		await listen(app, path, []).catch((e: Error) => {
			refused = e.message;
		});
		assert.match(refused, /another agent answers there/);
		await listen(app, undefined, [`127.0.0.1:${port}`]).catch((e: Error) => {
			refused = e.message;
		});
		assert.match(refused, /the port is taken/);
	} finally {
		await server.close();
		rmSync(dir, { recursive: true });
	}
});

test.run();
