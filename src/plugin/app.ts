/** The plugin's protocol as a function of its driver: Hono, POST and JSON. It never listens. */
import { Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import type { z } from 'zod';
import { sentence } from '../errors.js';
import type { Driver } from './driver.js';
import * as p from './protocol.js';

export interface PluginDeps {
	readonly driver: Driver;
	/** What was asked and how it went; `ms` since it came. */
	readonly log: (call: string, request: unknown, answer: object, ms: number) => void;
}

const MAX_BODY_BYTES = 1 << 20;
/** What the engine's own plugins answer. */
const TYPE = 'application/vnd.docker.plugins.v1.1+json';
const EMPTY = {};

export function createPluginApp(deps: PluginDeps): Hono {
	const { driver: d } = deps;
	const app = new Hono();
	app.use(bodyLimit({ maxSize: MAX_BODY_BYTES }));

	/** An error is a sentence that the engine prints: `docker: Error response from daemon: … remote: SENTENCE`. */
	function on<S extends z.ZodType>(
		call: string,
		schema: S | undefined,
		act: (request: z.output<S>) => object | Promise<object>,
	): void {
		app.post(`/${call}`, async (c) => {
			const began = performance.now();
			let request: unknown;
			let answer: object;
			try {
				// Engines send no body, or an empty one, where there is nothing to say.
				const body = await c.req.text();
				try {
					request = body.trim() === '' ? {} : JSON.parse(body);
				} catch {
					throw new Error('the request is no JSON');
				}
				const parsed = schema?.safeParse(request);
				if (parsed?.success === false) {
					const issue = parsed.error.issues[0];
					throw new Error(`the request is not understood: ${issue?.path.join('.')}: ${issue?.message}`);
				}
				answer = await act(parsed?.data as z.output<S>);
			} catch (e) {
				// libnetwork reads `Err` of a network driver and `Error` of an IPAM driver.
				answer = { [call.startsWith('IpamDriver.') ? 'Error' : 'Err']: sentence(e) };
			}
			deps.log(call, request, answer, performance.now() - began);
			return c.body(JSON.stringify(answer), 200, { 'Content-Type': TYPE });
		});
	}

	on('Plugin.Activate', undefined, () => ({ Implements: ['NetworkDriver', 'IpamDriver'] }));

	on('NetworkDriver.GetCapabilities', undefined, () => ({ Scope: 'local', ConnectivityScope: 'global' }));
	on('NetworkDriver.CreateNetwork', p.CreateNetwork, async (r) => {
		await d.createNetwork(r);
		return EMPTY;
	});
	on('NetworkDriver.DeleteNetwork', p.DeleteNetwork, async (r) => {
		await d.deleteNetwork(r.NetworkID);
		return EMPTY;
	});
	on('NetworkDriver.CreateEndpoint', p.CreateEndpoint, async (r) => ({ Interface: await d.createEndpoint(r) }));
	on('NetworkDriver.DeleteEndpoint', p.OfEndpoint, async (r) => {
		await d.deleteEndpoint(r);
		return EMPTY;
	});
	on('NetworkDriver.EndpointOperInfo', p.OfEndpoint, (r) => ({ Value: d.info(r) }));
	on('NetworkDriver.Join', p.Join, (r) => d.join(r));
	on('NetworkDriver.Leave', p.OfEndpoint, (r) => {
		d.leave(r);
		return EMPTY;
	});
	// Who is in the cluster is the membership's to say, and published ports go by docker_gwbridge.
	for (const call of [
		'AllocateNetwork',
		'FreeNetwork',
		'DiscoverNew',
		'DiscoverDelete',
		'ProgramExternalConnectivity',
		'RevokeExternalConnectivity',
	])
		on(`NetworkDriver.${call}`, undefined, () => EMPTY);

	on('IpamDriver.GetCapabilities', undefined, () => ({ RequiresMACAddress: false, RequiresRequestReplay: false }));
	on('IpamDriver.GetDefaultAddressSpaces', undefined, () => ({
		LocalDefaultAddressSpace: 'beeline',
		GlobalDefaultAddressSpace: 'beeline',
	}));
	on('IpamDriver.RequestPool', p.RequestPool, (r) => d.requestPool(r));
	on('IpamDriver.ReleasePool', p.ReleasePool, () => EMPTY);
	on('IpamDriver.RequestAddress', p.RequestAddress, (r) => d.requestAddress(r));
	on('IpamDriver.ReleaseAddress', p.ReleaseAddress, async (r) => {
		await d.releaseAddress(r);
		return EMPTY;
	});

	app.notFound((c) => c.body(JSON.stringify({ Err: `${c.req.path} is unknown to Beeline's plugin` }), 404));
	return app;
}
