/** The plugin's driver over an agent: its endpoints, its membership, and the engine's names for what it attached. */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import { json, type Run } from '../agent/exec.js';
import { type AttachedEndpoint, innerEnd, type Overlay, UNSEEN } from '../agent/overlay.js';
import { isNamespace, namespaceOf } from '../agent/veth.js';
import { BeelineError, sentence } from '../errors.js';
import { createEngine, parseDockerHost } from '../mesh/sources/engine.js';
import type { Addresses } from '../mesh/sources/etcd-store.js';
import type { Membership } from '../mesh/types.js';
import { createDriver, type Driver } from './driver.js';
import { openPluginStore } from './state.js';

export interface HostDeps {
	readonly overlay: Overlay;
	readonly stateFile: string;
	readonly membership: () => Membership;
	/** Name of this node. */
	readonly self: () => string;
	/** Where an operator changes the membership. */
	readonly place: string;
	/** Where the source gives out addresses; undefined: each node has its slices. */
	readonly addresses?: Pick<Addresses, 'allocate' | 'release' | 'describe'>;
	/** Names in a container's namespace, and none any more. */
	readonly names: { prepare(): void; serve(e: AttachedEndpoint): Promise<void>; forget(e: AttachedEndpoint): void };
	/** A namespace that is on networks has been seen. @throws Error */
	readonly entered: (cookie: bigint) => void;
	/** What bpf_get_netns_cookie() returns in a namespace, as decimal text. */
	readonly cookieOf: (netns: string) => Promise<string>;
	/** An endpoint has got a name. */
	readonly named: () => void;
	/** Bytes, of the uplinks; undefined: not known yet. */
	readonly underlayMtu: () => number | undefined;
	/** Why this node cannot encrypt; undefined: it can. */
	readonly whyNoEncryption: () => Promise<string | undefined>;
	/** Resolves when packets take what the endpoints are now for granted. */
	readonly applied: (cause: string) => Promise<void>;
	readonly run: Run;
	readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>;
	readonly env?: Readonly<Record<string, string | undefined>>;
}

export interface Plugin {
	readonly driver: Driver;
	close(): void;
}

/** A container that was given an interface is not listed before it runs. */
const ASK_MS = [300, 1000, 3000, 10_000];
const REAP_MS = 30_000;
/** A container's namespace is made after its endpoints: looked for so often at first, and later. */
const LOOK_MS = 5;
const LOOK_LATER_MS = 500;
const LOOK_LATER_AFTER_MS = 10_000;
const LOOK_FOR_MS = 120_000;

interface Described {
	readonly name?: string;
	readonly aliases: readonly string[];
}

/** @throws BeelineError READ_FAILED, INVALID_CONFIG */
export function createPlugin(deps: HostDeps): Plugin {
	const { overlay, log } = deps;
	const engineHost = parseDockerHost(deps.env ?? process.env);
	const timers = new Set<NodeJS.Timeout>();
	let closed = false;

	async function ask<T>(path: string): Promise<T> {
		const engine = createEngine(engineHost);
		try {
			return (await engine.get(path)) as T;
		} finally {
			engine.close();
		}
	}

	async function nameOf(network: string, endpoint: string): Promise<Described | undefined> {
		const { Containers } = await ask<{ Containers?: Record<string, { EndpointID?: string }> }>(`/networks/${network}`);
		const id = Object.entries(Containers ?? {}).find(([, c]) => c.EndpointID === endpoint)?.[0];
		if (id === undefined) return undefined;
		const c = await ask<{
			Name?: string;
			NetworkSettings?: { Networks?: Record<string, { EndpointID?: string; Aliases?: string[] | null }> };
		}>(`/containers/${encodeURIComponent(id)}/json`);
		const on = Object.values(c.NetworkSettings?.Networks ?? {}).find((n) => n.EndpointID === endpoint);
		const name = c.Name?.replace(/^\//, '');
		return { ...(name === undefined ? {} : { name }), aliases: on?.Aliases ?? [] };
	}

	/** Once its container has a namespace an endpoint dials VIPs, and asks for names. */
	function enter(endpoint: string, since = performance.now()): void {
		const e = overlay.endpoints.find((x) => x.docker?.endpoint === endpoint);
		if (e === undefined || e.cookie !== UNSEEN) return;
		const waited = performance.now() - since;
		if (!isNamespace(e.netns)) {
			if (waited < LOOK_FOR_MS) {
				later(waited < LOOK_LATER_AFTER_MS ? LOOK_MS : LOOK_LATER_MS, () => enter(endpoint, since));
				return;
			}
			log.warn(
				`endpoint ${e.id}: its namespace ${e.netns} is not to be seen from here: it has neither names of other nodes nor VIPs; mount /run/docker/netns into the agent's container, with rslave propagation`,
			);
			return;
		}
		void (async () => {
			const found = { namespace: namespaceOf(e.netns), cookie: await deps.cookieOf(e.netns) };
			if (closed) return;
			overlay.describe(endpoint, found);
			deps.entered(BigInt(found.cookie));
			await deps.names.serve({ ...e, ...found });
			await inForce(`the namespace of endpoint ${e.id}`);
		})().catch((x) => {
			log.debug(`endpoint ${e.id}: ${sentence(x)}`);
			later(LOOK_LATER_MS, () => enter(endpoint, since));
		});
	}

	/** The interface's name inside; undefined: its namespace cannot be looked into. */
	async function interfaceOf(netns: string, mac: string): Promise<string | undefined> {
		const out = await deps.run('nsenter', [`--net=${netns}`, 'ip', '-j', 'link', 'show']).catch(() => '');
		return json<{ ifname: string; address?: string }>(out).find((l) => l.address === mac)?.ifname;
	}

	function later(ms: number, act: () => void): void {
		if (closed) return;
		const t = setTimeout(() => {
			timers.delete(t);
			act();
		}, ms);
		t.unref();
		timers.add(t);
	}

	function describe(network: string, endpoint: string, tries = 0): void {
		const next = ASK_MS[tries];
		if (next === undefined) return;
		later(next, () => {
			void (async () => {
				const e = overlay.endpoints.find((x) => x.docker?.endpoint === endpoint);
				if (e === undefined) return;
				const found = await nameOf(network, endpoint).catch((x) => {
					log.debug(`the container of endpoint ${e.id}: ${sentence(x)}`);
					return undefined;
				});
				if (found === undefined) return describe(network, endpoint, tries + 1);
				const inside = await interfaceOf(e.netns, e.mac);
				if (closed) return;
				overlay.describe(endpoint, { ...found, ...(inside === undefined ? {} : { interface: inside }) });
				deps.named();
				// Where the source gives out addresses it is asked for names too.
				await deps.addresses
					?.describe(e.network, e.address, e.id, found)
					.catch((x) => log.warn(`other nodes do not learn the name of endpoint ${e.id}: ${sentence(x)}`));
			})();
		});
	}

	/** What fails to be in force is tried again by the agent; a container need not wait for an unlike matter. */
	const inForce = (cause: string): Promise<void> =>
		deps.applied(cause).catch((e) => log.warn(`${cause}: ${sentence(e)}`));

	const driver = createDriver({
		store: openPluginStore(deps.stateFile),
		async lookUp(id) {
			const n = await ask<{ Options?: Record<string, string>; Internal?: boolean }>(`/networks/${id}`);
			return { ...n.Options, 'com.docker.network.internal': String(n.Internal === true) };
		},
		host: {
			networks: () => deps.membership().networks,
			place: deps.place,
			refusal(n) {
				return n.attachable
					? undefined
					: `network ${n.name} is not manually attachable: say attachable: true of it in ${deps.place}`;
			},
			async cannotCarry(n) {
				const why = n.options.encrypted ? await deps.whyNoEncryption() : undefined;
				return why === undefined ? undefined : `network ${n.name} is encrypted, and ${why}`;
			},
			async pick(network, wanted) {
				const { addresses } = deps;
				if (addresses === undefined) {
					const vips = deps.membership().services.flatMap((s) => s.vips ?? []);
					const address = overlay.pick({
						network,
						self: deps.self(),
						reserved: new Set(vips.filter((v) => v.network === network.name).map((v) => v.address)),
						...(wanted === undefined ? {} : { address: wanted }),
					});
					return { address, holder: `${network.name}-${address}` };
				}
				const holder = `${network.name}-${randomBytes(6).toString('hex')}`;
				const { address } = await addresses.allocate(network.name, {
					node: deps.self(),
					endpoint: holder,
					...(wanted === undefined ? {} : { wanted }),
				});
				return { address, holder };
			},
			async release(network, address, holder) {
				await deps.addresses
					?.release(network, address, holder)
					.catch((e) => log.warn(`${address} of network ${network} is not given back: ${sentence(e)}`));
			},
			async plug(r) {
				const underlay = deps.underlayMtu();
				if (underlay === undefined)
					throw new BeelineError('NOT_READY', 'the agent has not found its uplinks yet: try again');
				deps.names.prepare();
				const { endpoint, inside } = await overlay.plug({ ...r, mtu: r.mtu ?? r.network.options.mtu ?? underlay });
				await inForce(`endpoint ${endpoint.id} attached`);
				enter(r.docker.endpoint);
				describe(r.docker.network, r.docker.endpoint);
				return inside;
			},
			async unplug(id) {
				const e = await overlay.unplug(id);
				if (e === undefined) return;
				deps.names.forget(e);
				await inForce(`endpoint ${e.id} detached`);
			},
			async idle(at) {
				const here = new Set(
					json<{ ifname: string }>(await deps.run('ip', ['-j', 'link', 'show'])).map((l) => l.ifname),
				);
				return overlay.endpoints.flatMap((e) =>
					e.docker !== undefined && Date.parse(e.attachedAt) <= at && here.has(innerEnd(e.docker.endpoint))
						? [e.docker.endpoint]
						: [],
				);
			},
			plugged: () => new Set(overlay.endpoints.flatMap((e) => (e.docker === undefined ? [] : [e.docker.endpoint]))),
		},
	});

	const reaper = setInterval(() => {
		driver.reap().then(
			(freed) => {
				for (const x of freed) log.info(`${x}: Docker did not come back for it; it is free again`);
			},
			(e) => log.warn(sentence(e)),
		);
	}, REAP_MS);
	reaper.unref();
	// Of those whose agent ended before their container was listed.
	for (const e of overlay.endpoints) {
		if (e.docker === undefined) continue;
		enter(e.docker.endpoint);
		if (e.name === undefined) describe(e.docker.network, e.docker.endpoint);
	}

	return {
		driver,
		close() {
			closed = true;
			clearInterval(reaper);
			for (const t of timers) clearTimeout(t);
		},
	};
}
