/** The HTTP interface (DESIGN 7.3) as a function of its dependencies. It never listens: src/http/listen.ts does. */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { HTTPException } from 'hono/http-exception';
import { type AgentApi, AgentError } from '../agent/api.js';
import { isConfigKey } from '../config.js';
import { pathText } from '../mesh/sources/document.js';
import { etagOf, known, unchanged } from './etag.js';
import { streamEvents } from './events.js';
import { type Env, guard, type TokenSource } from './guard.js';
import { expected } from './invalid.js';
import { PAGE } from './page/page.js';
import { HttpProblem, problem } from './problem.js';
import type { NodeView, ServiceView } from './schemas.js';
import * as s from './schemas.js';

export interface AppDeps {
	readonly api: AgentApi;
	readonly tokens: TokenSource;
	/** The text of GET /metrics and its content type. */
	readonly metrics: () => Promise<{ readonly text: string; readonly contentType: string }>;
	readonly version: string;
	/** Names that /v1/events can be asked for; undefined: any. */
	readonly verdicts?: readonly string[];
	/** Called with what answered 500. */
	readonly onError?: (error: Error, path: string) => void;
	/** Readers of /v1/events at once; one more is answered 503. */
	readonly maxEventReaders?: number;
	readonly eventQueue?: number;
	readonly heartbeatMs?: number;
}

const MAX_BODY_BYTES = 1 << 20;
const JSON_TYPE = /^application\/([a-z.-]+\+)?json\s*(;|$)/i;

const problemContent = { 'application/problem+json': { schema: s.Problem } };
const failure = (description: string) => ({ description, content: problemContent });
const reading = {
	401: failure('Beyond loopback: no or a wrong token'),
	403: failure('Foreign Host header, or no token file is configured'),
};
const changing = {
	...reading,
	404: failure('No such resource'),
	409: failure('Refused: detail says where to do it'),
	412: failure('If-Match is stale'),
	422: failure('Invalid: field names the value'),
	503: failure('etcd does not answer, or the change is written and not in force yet'),
};
const bodied = {
	...changing,
	400: failure('Malformed JSON'),
	413: failure('Body over 1 MiB'),
	415: failure('Body is not JSON'),
};
const ok = <T extends z.ZodType>(schema: T, description: string) => ({
	200: { description, content: { 'application/json': { schema } } },
});
const ifMatch = z.object({
	'if-match': z.string().optional().openapi({
		description:
			'Entity tag of the resource as it was read; 412 if it changed (what is measured, as round-trip times, aside)',
	}),
});
const bearer: Record<string, string[]>[] = [{}, { bearer: [] }];

const named = z.object({ name: z.string().openapi({ param: { name: 'name', in: 'path' }, example: 'web' }) });
const byId = z.object({
	id: z.string().openapi({ param: { name: 'id', in: 'path' }, example: 'web~node2~172.18.0.2~80~tcp' }),
});
const ROWS = 'expected a whole number from 1 to 100000';
const limited = z.object({
	limit: z.coerce
		.number(ROWS)
		.int(ROWS)
		.min(1, ROWS)
		.max(100_000, ROWS)
		.default(1000)
		.openapi({ description: 'Rows at most' }),
});
const json = <T extends z.ZodType>(schema: T) => ({
	required: true,
	content: { 'application/json': { schema } },
});

/** The reader has what would be sent. */
class NotModified extends Error {
	readonly tag: string;
	constructor(tag: string) {
		super('not modified');
		this.tag = tag;
	}
}

/** Of a node and a service, what is not measured: entity tags that change by themselves would refuse every change. */
function settingsOf(body: unknown): unknown {
	if (typeof body !== 'object' || body === null) return body;
	if ('rttMs' in body) {
		const { name, address, state, backends, revision } = body as NodeView;
		return { name, address, state, backends, revision };
	}
	if ('slotsInTransition' in body && 'vips' in body) {
		const { slotsInTransition: _, vips, ...rest } = body as ServiceView;
		return { ...rest, vips: vips.map((v) => [v.network, v.address]) };
	}
	return body;
}

/** Answers a resource with its entity tag; 304 where the reader has it already. */
function tagged<T>(c: Context, body: T): T {
	const tag = etagOf(body, settingsOf(body));
	c.header('etag', tag);
	const header = c.req.header('if-none-match');
	if (header !== undefined && ['GET', 'HEAD'].includes(c.req.method) && known(header, tag)) throw new NotModified(tag);
	return body;
}

/** @returns whether the change is to hold only for the resource as it is now */
function checkIfMatch(c: Context, current: unknown): boolean {
	const header = c.req.header('if-match');
	if (header !== undefined && !unchanged(header, etagOf(current, settingsOf(current)))) {
		throw new HttpProblem({
			status: 412,
			code: 'STALE',
			detail: 'the resource changed since it was read: read it again and repeat the change',
		});
	}
	return header !== undefined && header.trim() !== '*';
}

function find<T>(list: readonly T[], what: string, name: string, is: (item: T) => boolean): T {
	const item = list.find(is);
	if (item === undefined) {
		throw new HttpProblem({ status: 404, code: 'NOT_FOUND', detail: `there is no ${what} ${JSON.stringify(name)}` });
	}
	return item;
}

const AT_START_ONLY =
	'is read when the agent starts and cannot be changed while it runs: set it in the configuration file (beeline.yaml) and restart the agent';

/** The key of beeline.yaml that a body names at a path: whole (`node.name`), or up to the first that there is not. */
function configKey(path: readonly string[], body: unknown): string[] {
	let at = path.reduce((o, step) => (o as Record<string, unknown> | undefined)?.[step], body);
	const key = [...path];
	while (isConfigKey(key) && typeof at === 'object' && at !== null && !Array.isArray(at)) {
		const [next] = Object.entries(at);
		if (next === undefined) break;
		key.push(next[0]);
		at = next[1];
	}
	return key;
}

export function createApp(deps: AppDeps): OpenAPIHono<Env> {
	const { api } = deps;
	const app = new OpenAPIHono<Env>({
		defaultHook: (result, c) => {
			if (result.success) return;
			const issue = result.error.issues[0]!;
			let path = issue.path.map((p) => (typeof p === 'number' ? p : String(p)));
			let what = '';
			if (issue.code === 'unrecognized_keys') {
				path.push(issue.keys[0]!);
				what = 'unknown key';
				if (c.req.path === '/v1/config') {
					path = configKey(path.map(String), (result as { data?: unknown }).data);
					if (isConfigKey(path.map(String))) what = AT_START_ONLY;
				}
			} else what = expected(issue);
			const field = pathText(path);
			const where = field === '' ? 'the body: ' : `${field}: `;
			return problem(c, { status: 422, code: 'INVALID', detail: `${where}${what}`, field });
		},
	});

	app.use(async (c, next) => {
		await next();
		c.header('x-content-type-options', 'nosniff');
		if (!c.res.headers.has('cache-control')) c.header('cache-control', 'no-cache');
	});
	app.use(guard(deps.tokens));
	app.use(
		bodyLimit({
			maxSize: MAX_BODY_BYTES,
			onError: (c) => problem(c, { status: 413, code: 'TOO_LARGE', detail: 'the body is over 1 MiB' }),
		}),
	);

	const routes: { method: string; path: string; pattern: RegExp; body: boolean }[] = [];
	const know = <R>(route: R): R => {
		const r = route as { method: string; path: string; request?: { body?: unknown } };
		const pattern = new RegExp(`^${r.path.replace(/\{[^}]+\}/g, '[^/]+')}$`);
		routes.push({ method: r.method.toUpperCase(), path: r.path, pattern, body: r.request?.body !== undefined });
		return route;
	};
	// Before validation, which would otherwise look at a body of another type as at none.
	app.use(async (c, next) => {
		const route = routes.find((r) => r.method === c.req.method && r.pattern.test(c.req.path));
		if (route?.body !== true) return next();
		if (!JSON_TYPE.test(c.req.header('content-type') ?? '')) {
			return problem(c, { status: 415, code: 'NOT_JSON', detail: 'send the body as content-type: application/json' });
		}
		// The validator knows fewer spellings of the type than RFC 9110 has, and looks at the others as at no body.
		const headers = new Headers(c.req.raw.headers);
		headers.set('content-type', 'application/json');
		c.req.raw = new Request(c.req.raw, { headers });
		return next();
	});

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/',
				summary: 'The live page: this node at a glance, in a browser',
				security: bearer,
				responses: { 200: { description: 'Page', content: { 'text/html': { schema: z.string() } } }, ...reading },
			}),
		),
		(c) => c.html(tagged(c, PAGE.html), 200, PAGE.headers),
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/healthz',
				summary: 'The agent answers',
				responses: ok(z.object({ ok: z.boolean() }).openapi('Health', { example: { ok: true } }), 'Alive'),
			}),
		),
		(c) => c.json({ ok: true }, 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/readyz',
				summary: 'A complete apply has happened',
				responses: {
					...ok(z.object({ ready: z.boolean() }).openapi('Readiness', { example: { ready: true } }), 'Ready'),
					503: failure('Not yet'),
				},
			}),
		),
		(c) => {
			const status = api.status();
			if (status.ready) return c.json({ ready: true }, 200);
			const why = status.reconcile.lastError ?? status.membership.error;
			throw new HttpProblem({
				status: 503,
				code: 'NOT_READY',
				detail: `no complete apply yet${why === null ? '' : `: ${why}`}`,
			});
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/metrics',
				summary: 'Prometheus metrics',
				security: bearer,
				responses: {
					200: {
						description: 'Text format',
						content: {
							'text/plain': { schema: z.string().openapi({ example: 'beeline_build_info{version="0.1.0"} 1\n' }) },
						},
					},
					...reading,
				},
			}),
		),
		async (c) => {
			const m = await deps.metrics();
			return c.text(m.text, 200, { 'content-type': m.contentType });
		},
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/status',
				summary: 'This agent, its node and what it could not do',
				security: bearer,
				responses: { ...ok(s.Status, 'Status'), ...reading },
			}),
		),
		(c) => c.json(api.status(), 200),
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/nodes',
				summary: 'Nodes of the mesh',
				security: bearer,
				responses: { ...ok(s.Nodes, 'Nodes'), ...reading },
			}),
		),
		(c) => c.json(tagged(c, { nodes: api.nodes() }), 200),
	);
	const node = (name: string) => find(api.nodes(), 'node', name, (n) => n.name === name);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/nodes/{name}',
				summary: 'One node',
				security: bearer,
				request: { params: named },
				responses: { ...ok(s.Node, 'Node'), ...reading, 404: failure('No such node') },
			}),
		),
		(c) => c.json(tagged(c, node(c.req.valid('param').name)), 200),
	);

	app.openapi(
		know(
			createRoute({
				method: 'post',
				path: '/v1/nodes',
				summary: 'Add a node to etcd, or to this agent’s mesh file',
				security: bearer,
				request: { body: json(s.NodeCreate) },
				responses: {
					201: { description: 'Added', content: { 'application/json': { schema: s.Node } } },
					...bodied,
				},
			}),
		),
		async (c) => {
			const body = c.req.valid('json');
			await api.addNode(body);
			c.header('location', `/v1/nodes/${encodeURIComponent(body.name)}`);
			return c.json(tagged(c, node(body.name)), 201);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'delete',
				path: '/v1/nodes/{name}',
				summary: 'Remove a node from etcd, or from this agent’s mesh file',
				security: bearer,
				request: { params: named, headers: ifMatch },
				responses: { 204: { description: 'Removed' }, ...changing },
			}),
		),
		async (c) => {
			const { name } = c.req.valid('param');
			await api.removeNode(name, checkIfMatch(c, node(name)));
			return c.body(null, 204);
		},
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/services',
				summary: 'Services and their published ports',
				security: bearer,
				responses: { ...ok(s.Services, 'Services'), ...reading },
			}),
		),
		(c) => c.json(tagged(c, { services: api.services() }), 200),
	);
	const service = (name: string) => find(api.services(), 'service', name, (v) => v.name === name);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/services/{name}',
				summary: 'One service',
				security: bearer,
				request: { params: named },
				responses: { ...ok(s.Service, 'Service'), ...reading, 404: failure('No such service') },
			}),
		),
		(c) => c.json(tagged(c, service(c.req.valid('param').name)), 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'patch',
				path: '/v1/services/{name}',
				summary: 'Change options, published ports, backends or replicas of a service',
				security: bearer,
				request: { params: named, headers: ifMatch, body: json(s.ServicePatch) },
				responses: { ...ok(s.Service, 'The service as it is now'), ...bodied },
			}),
		),
		async (c) => {
			const { name } = c.req.valid('param');
			const exact = checkIfMatch(c, service(name));
			await api.patchService(name, c.req.valid('json'), exact);
			return c.json(tagged(c, service(name)), 200);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'post',
				path: '/v1/services',
				summary: 'Create a service (etcd, or a mesh file of one node)',
				security: bearer,
				request: { body: json(s.ServiceCreate) },
				responses: {
					201: { description: 'Created', content: { 'application/json': { schema: s.Service } } },
					...bodied,
				},
			}),
		),
		async (c) => {
			const body = c.req.valid('json');
			await api.createService(body);
			c.header('location', `/v1/services/${encodeURIComponent(body.name)}`);
			return c.json(tagged(c, service(body.name)), 201);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'delete',
				path: '/v1/services/{name}',
				summary: 'Remove a service (etcd, or a mesh file of one node)',
				security: bearer,
				request: { params: named, headers: ifMatch },
				responses: { 204: { description: 'Removed' }, ...changing },
			}),
		),
		async (c) => {
			const { name } = c.req.valid('param');
			await api.removeService(name, checkIfMatch(c, service(name)));
			return c.body(null, 204);
		},
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/networks',
				summary: 'Overlay networks',
				security: bearer,
				responses: { ...ok(s.Networks, 'Networks'), ...reading },
			}),
		),
		(c) => c.json(tagged(c, { networks: api.networks() }), 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/networks/{name}',
				summary: 'One network, as docker network inspect shows it',
				security: bearer,
				request: { params: named },
				responses: { ...ok(s.Network, 'Network'), ...reading, 404: failure('No such network') },
			}),
		),
		(c) => {
			return c.json(tagged(c, network(c.req.valid('param').name)), 200);
		},
	);
	const network = (name: string) => find(api.networks(), 'network', name, (n) => n.Name === name);
	app.openapi(
		know(
			createRoute({
				method: 'post',
				path: '/v1/networks',
				summary: 'Create a network (etcd; the file source on one node)',
				security: bearer,
				request: { body: json(s.NetworkCreate) },
				responses: {
					201: { description: 'Created', content: { 'application/json': { schema: s.Network } } },
					...bodied,
				},
			}),
		),
		async (c) => {
			const body = c.req.valid('json');
			await api.createNetwork(body);
			c.header('location', `/v1/networks/${encodeURIComponent(body.name)}`);
			return c.json(tagged(c, network(body.name)), 201);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'delete',
				path: '/v1/networks/{name}',
				summary: 'Remove a network that nobody uses',
				security: bearer,
				request: { params: named, headers: ifMatch },
				responses: { 204: { description: 'Removed' }, ...changing },
			}),
		),
		async (c) => {
			const { name } = c.req.valid('param');
			checkIfMatch(c, network(name));
			await api.removeNetwork(name);
			return c.body(null, 204);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/endpoints',
				summary: 'Endpoints of this node on overlay networks',
				security: bearer,
				responses: { ...ok(s.Endpoints, 'Endpoints'), ...reading },
			}),
		),
		(c) => c.json(tagged(c, { endpoints: api.endpoints() }), 200),
	);
	const endpoint = (id: string) => find(api.endpoints(), 'endpoint', id, (e) => e.id === id);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/endpoints/{id}',
				summary: 'One endpoint',
				security: bearer,
				request: { params: byId },
				responses: { ...ok(s.Endpoint, 'Endpoint'), ...reading, 404: failure('No such endpoint') },
			}),
		),
		(c) => c.json(tagged(c, endpoint(c.req.valid('param').id)), 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'post',
				path: '/v1/endpoints',
				summary: 'Give a namespace of this node an interface on a network',
				security: bearer,
				request: { body: json(s.EndpointAttach) },
				responses: {
					201: { description: 'Attached', content: { 'application/json': { schema: s.Endpoint } } },
					...bodied,
				},
			}),
		),
		async (c) => {
			const e = await api.attachEndpoint(c.req.valid('json'));
			c.header('location', `/v1/endpoints/${encodeURIComponent(e.id)}`);
			return c.json(tagged(c, e), 201);
		},
	);
	app.openapi(
		know(
			createRoute({
				method: 'delete',
				path: '/v1/endpoints/{id}',
				summary: 'Take an endpoint’s interface away',
				security: bearer,
				request: { params: byId, headers: ifMatch },
				responses: { 204: { description: 'Detached' }, ...changing },
			}),
		),
		async (c) => {
			const { id } = c.req.valid('param');
			checkIfMatch(c, endpoint(id));
			await api.detachEndpoint(id);
			return c.body(null, 204);
		},
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/backends',
				summary: 'Where flows are sent',
				security: bearer,
				request: { query: z.object({ service: z.string().optional() }) },
				responses: { ...ok(s.Backends, 'Backends'), ...reading },
			}),
		),
		(c) => {
			const of = c.req.valid('query').service;
			const backends = api.backends();
			return c.json(
				tagged(c, { backends: of === undefined ? backends : backends.filter((b) => b.service === of) }),
				200,
			);
		},
	);
	const backend = (id: string) => find(api.backends(), 'backend', id, (b) => b.id === id);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/backends/{id}',
				summary: 'One backend',
				security: bearer,
				request: { params: byId },
				responses: { ...ok(s.Backend, 'Backend'), ...reading, 404: failure('No such backend') },
			}),
		),
		(c) => c.json(tagged(c, backend(c.req.valid('param').id)), 200),
	);
	for (const verb of ['drain', 'undrain'] as const) {
		app.openapi(
			know(
				createRoute({
					method: 'post',
					path: `/v1/backends/{id}/${verb}`,
					summary: verb === 'drain' ? 'No new flow to this backend' : 'New flows again',
					security: bearer,
					request: { params: byId, headers: ifMatch },
					responses: { ...ok(s.Backend, 'The backend as it is now'), ...changing },
				}),
			),
			async (c) => {
				const { id } = c.req.valid('param');
				const exact = checkIfMatch(c, backend(id));
				await (verb === 'drain' ? api.drainBackend(id, exact) : api.undrainBackend(id, exact));
				return c.json(tagged(c, backend(id)), 200);
			},
		);
		app.openapi(
			know(
				createRoute({
					method: 'post',
					path: `/v1/nodes/{name}/${verb}`,
					summary: verb === 'drain' ? 'No new flow to backends on this node' : 'New flows again',
					security: bearer,
					request: { params: named, headers: ifMatch },
					responses: { ...ok(s.Node, 'The node as it is now'), ...changing },
				}),
			),
			async (c) => {
				const { name } = c.req.valid('param');
				const exact = checkIfMatch(c, node(name));
				await (verb === 'drain' ? api.drainNode(name, exact) : api.undrainNode(name, exact));
				return c.json(tagged(c, node(name)), 200);
			},
		);
	}

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/flows',
				summary: 'Living flows of this node’s backends',
				security: bearer,
				request: { query: limited },
				responses: { ...ok(s.Flows, 'Flows'), ...reading, 422: failure('Invalid limit') },
			}),
		),
		(c) => c.json(api.flows(c.req.valid('query').limit), 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/entries',
				summary: 'The maps as they are, as text',
				security: bearer,
				request: { query: limited },
				responses: { ...ok(s.Entries, 'Entries'), ...reading, 422: failure('Invalid limit') },
			}),
		),
		(c) => c.json(api.entries(c.req.valid('query').limit), 200),
	);

	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/config',
				summary: 'This node’s configuration as it is in force',
				security: bearer,
				responses: { ...ok(s.Config, 'Configuration'), ...reading },
			}),
		),
		(c) => c.json(tagged(c, api.config()), 200),
	);
	app.openapi(
		know(
			createRoute({
				method: 'patch',
				path: '/v1/config',
				summary: 'Change what can be changed while the agent runs; beeline.yaml is written too, but for trace',
				security: bearer,
				request: { headers: ifMatch, body: json(s.ConfigPatch) },
				responses: { ...ok(s.Config, 'The configuration as it is now'), ...bodied },
			}),
		),
		async (c) => {
			checkIfMatch(c, api.config());
			await api.patchConfig(c.req.valid('json'));
			return c.json(tagged(c, api.config()), 200);
		},
	);

	let readers = 0;
	app.openapi(
		know(
			createRoute({
				method: 'get',
				path: '/v1/events',
				summary: 'Verdicts and reconciles as they happen (server-sent events)',
				security: bearer,
				request: {
					query: z.object({
						service: z.string().optional(),
						verdict: z.string().optional(),
						verdicts: z
							.enum(['true', 'false'])
							.default('true')
							.openapi({ description: 'false: reconciles only, and no tracing' }),
					}),
				},
				responses: {
					200: {
						description: 'event: verdict | reconcile | lost (the reader was too slow)',
						content: { 'text/event-stream': { schema: z.union([s.VerdictEvent, s.ReconcileEvent]) } },
					},
					...reading,
					422: failure('No such verdict'),
					503: failure('Too many readers'),
				},
			}),
		),
		(c) => {
			const q = c.req.valid('query');
			if (q.verdict !== undefined && deps.verdicts?.includes(q.verdict) === false) {
				throw new HttpProblem({
					status: 422,
					code: 'INVALID',
					detail: `verdict: there is no ${JSON.stringify(q.verdict)}: bpf/README.md lists them, such as drop_no_backend`,
					field: 'verdict',
				});
			}
			// Nobody reads what a HEAD would stream, so nothing would ever end it.
			if (c.req.method === 'HEAD') return c.body(null, 200, { 'content-type': 'text/event-stream' });
			if (readers >= (deps.maxEventReaders ?? 32)) {
				throw new HttpProblem({
					status: 503,
					code: 'TOO_MANY_READERS',
					detail: 'too many readers of /v1/events: close one',
				});
			}
			readers++;
			return streamEvents(
				c,
				api,
				{ verdicts: q.verdicts === 'true', service: q.service, verdict: q.verdict },
				{ queue: deps.eventQueue ?? 4096, heartbeatMs: deps.heartbeatMs ?? 15_000 },
				() => readers--,
			);
		},
	);

	app.openAPIRegistry.registerComponent('securitySchemes', 'bearer', { type: 'http', scheme: 'bearer' });
	routes.push({ method: 'GET', path: '/openapi.json', pattern: /^\/openapi\.json$/, body: false });
	app.doc31('/openapi.json', {
		openapi: '3.1.0',
		info: {
			title: 'Beeline',
			version: deps.version,
			license: { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' },
			description:
				'One agent of the mesh. On the unix socket everything is allowed; on TCP changing needs a token, and reading does beyond loopback. Errors are RFC 9457 problem details.',
		},
	});

	app.notFound((c) => {
		const allowed = routes.filter((r) => r.pattern.test(c.req.path)).map((r) => r.method);
		if (allowed.length > 0) {
			const allow = [...new Set([...allowed, ...(allowed.includes('GET') ? ['HEAD'] : [])])].sort().join(', ');
			return problem(c, {
				status: 405,
				code: 'METHOD_NOT_ALLOWED',
				detail: `${c.req.path} takes ${allow}`,
				headers: { allow },
			});
		}
		return problem(c, {
			status: 404,
			code: 'NOT_FOUND',
			detail: `there is no ${c.req.path}: /openapi.json lists what there is`,
		});
	});
	app.onError((e, c) => {
		if (e instanceof NotModified) return c.body(null, 304, { etag: e.tag });
		if (e instanceof HttpProblem) return problem(c, e.init);
		if (e instanceof AgentError) {
			const field = e.field === undefined ? {} : { field: e.field };
			return problem(c, { status: e.status, code: e.code, detail: e.message, ...field });
		}
		if (e instanceof HTTPException) {
			if (e.res !== undefined) return e.res;
			return problem(c, { status: e.status as 400, code: e.status === 400 ? 'MALFORMED' : 'HTTP', detail: e.message });
		}
		deps.onError?.(e, c.req.path);
		return problem(c, {
			status: 500,
			code: 'INTERNAL',
			detail: 'the agent failed to answer: its log says why',
		});
	});
	return app;
}
