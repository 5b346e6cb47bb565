/**
 * Endpoints of this node on overlay networks: a veth pair each, one end in the endpoint's namespace, the other here with
 * overlay_tc on it. What is attached lies in the state file, so that a restarted agent knows its own; an endpoint whose
 * namespace goes takes its veth along, and is forgotten.
 *
 *	namespace:  eth1 02:42:0a:2c:00:02  10.44.0.2/24        eth0 172.30.0.2/16, default route
 *	                 │ (overlay_tc here)                      │ one for all of its networks, none where all are internal
 *	node:       bl-3f9a1c…                                  blg-77aa… ── beeline_gw 172.30.0.1
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { BeelineError } from '../errors.js';
import type { OverlayEndpointFact } from '../mesh/overlay.js';
import { createEngine, EngineError, parseDockerHost } from '../mesh/sources/engine.js';
import { address6Of, contains, freeAddress, gatewayOf, innerMtu, macOfAddress } from '../mesh/subnets.js';
import type { NetworkEndpoint, NetworkSpec } from '../mesh/types.js';
import type { Run } from './exec.js';
import { type Gateway, type GatewayLeg, removeGateway } from './gateway.js';
import { removeResolvConf } from './resolv.js';
import { cookieOf, freeName, ipIn, isNamespace, makeVeth, namespaceOf, segmentInside } from './veth.js';

/** An endpoint of this node, as it is kept. */
export interface AttachedEndpoint {
	/** Unique in the cluster; safe in a URL. */
	readonly id: string;
	readonly network: string;
	readonly vni: number;
	readonly address: string;
	readonly address6?: string;
	readonly mac: string;
	readonly mtu: number;
	readonly name?: string;
	readonly aliases: readonly string[];
	readonly service?: string;
	/** Path of its namespace, as it was attached. */
	readonly netns: string;
	/** Which namespace that was: device and inode, for paths are used again. */
	readonly namespace: string;
	/** What bpf_get_netns_cookie() returns in it, as decimal text. */
	readonly cookie: string;
	/** Its interface inside. */
	readonly interface: string;
	/** Host end of its veth. */
	readonly host: string;
	readonly ifindex: number;
	readonly attachedAt: string;
	/** Docker's, which moves and configures the inner end by itself: its ids. */
	readonly docker?: { readonly endpoint: string; readonly network: string };
}

export interface OverlayState {
	readonly endpoints: readonly AttachedEndpoint[];
	readonly legs: readonly GatewayLeg[];
}

/** Cookie of a namespace that is not there yet, or that this process cannot see. */
export const UNSEEN = '0';

export const NO_OVERLAY_STATE: OverlayState = { endpoints: [], legs: [] };

export interface AttachRequest {
	readonly network: NetworkSpec;
	/** Path of the namespace. */
	readonly netns: string;
	/** Name of this node. */
	readonly self: string;
	readonly service?: string;
	readonly name?: string;
	readonly aliases?: readonly string[];
	/** Wanted address. */
	readonly address?: string;
	/** Bytes, of the uplinks. */
	readonly underlayMtu: number;
	/** Addresses that no endpoint gets: those of services. */
	readonly reserved: ReadonlySet<string>;
	/** Where the source gives out addresses. Without it one of this node's slice is taken. */
	readonly allocate?: (endpoint: Allocation) => Promise<NetworkEndpoint>;
	/** Gives back what was allocated, where the attaching failed. */
	readonly release?: (address: string, id: string) => Promise<void>;
}

/** What a source is told of an endpoint that wants an address. */
export interface Allocation {
	readonly id: string;
	readonly wanted?: string;
	readonly name?: string;
	readonly service?: string;
	readonly aliases: readonly string[];
}

/** An endpoint whose inner end Docker takes. */
export interface PlugRequest {
	readonly id: string;
	readonly network: NetworkSpec;
	readonly docker: { readonly endpoint: string; readonly network: string };
	readonly address: string;
	readonly address6?: string;
	readonly mac: string;
	/** Bytes, of the underlay. */
	readonly mtu: number;
	/** Path of the container's namespace, which this process may not see. */
	readonly sandbox: string;
}

const OWN_NETNS = '/proc/self/ns/net';

const short = (text: string, length: number): string =>
	createHash('sha256').update(text).digest('hex').slice(0, length);

/** The end of a veth that Docker takes, while it is here. */
export const innerEnd = (dockerEndpoint: string): string => `blp-${short(dockerEndpoint, 11)}`;

export interface OverlayDeps {
	readonly run: Run;
	readonly gateway: Gateway;
	readonly state: () => OverlayState;
	readonly save: (state: OverlayState) => void;
	readonly now?: () => Date;
	/** Addresses of a network that are given out and not attached: Docker asks before it has an endpoint. */
	readonly reserved?: (network: string) => ReadonlySet<string>;
}

export class Overlay {
	private readonly deps: OverlayDeps;
	/** One at a time: an address is looked for and taken in two steps. */
	private last: Promise<unknown> = Promise.resolve();
	/** Host ends that are being made: no sign of an endpoint's end. */
	private readonly making = new Set<string>();

	constructor(deps: OverlayDeps) {
		this.deps = deps;
	}

	get endpoints(): readonly AttachedEndpoint[] {
		return this.deps.state().endpoints;
	}

	facts(): OverlayEndpointFact[] {
		return this.endpoints.map((e) => ({
			id: e.id,
			vni: e.vni,
			address4: e.address,
			...(e.address6 === undefined ? {} : { address6: e.address6 }),
			mac: e.mac,
			ifindex: e.ifindex,
		}));
	}

	/**
	 * Gives a namespace an interface on a network.
	 * @throws BeelineError NO_NETNS, ADDRESS_TAKEN, NO_ADDRESS, ATTACHED, COMMAND_FAILED; nothing is left behind
	 */
	attach(request: AttachRequest): Promise<AttachedEndpoint> {
		const next = this.last.catch(() => undefined).then(() => this.make(request));
		this.last = next;
		return next;
	}

	/** Takes the interface out of its namespace. @returns what was detached */
	detach(id: string): Promise<AttachedEndpoint> {
		const next = this.last
			.catch(() => undefined)
			.then(async () => {
				const e = this.endpoints.find((x) => x.id === id);
				if (e === undefined) throw new BeelineError('NOT_FOUND', `there is no endpoint ${id} on this node`);
				if (e.docker !== undefined)
					throw new BeelineError(
						'REFUSED',
						`endpoint ${id} is a container's, attached by Docker: docker network disconnect`,
					);
				await this.unlink(e);
				return e;
			});
		this.last = next;
		return next;
	}

	private async unlink(e: AttachedEndpoint): Promise<void> {
		await this.deps.run('ip', ['link', 'del', e.host]).catch((x: Error) => {
			if (!/Cannot find device/.test(x.message)) throw x;
		});
		await this.forget([e]);
	}

	/**
	 * Makes an endpoint whose inner end stays here until Docker takes it.
	 * @returns the endpoint, and the name of that end
	 * @throws BeelineError ADDRESS_TAKEN, COMMAND_FAILED; nothing is left behind
	 */
	plug(r: PlugRequest): Promise<{ endpoint: AttachedEndpoint; inside: string }> {
		const next = this.last.catch(() => undefined).then(() => this.makePlugged(r));
		this.last = next;
		return next;
	}

	/** By Docker's id. @returns what was taken away; undefined: there was none */
	unplug(dockerEndpoint: string): Promise<AttachedEndpoint | undefined> {
		const next = this.last
			.catch(() => undefined)
			.then(async () => {
				const e = this.endpoints.find((x) => x.docker?.endpoint === dockerEndpoint);
				if (e !== undefined) await this.unlink(e);
				return e;
			});
		this.last = next;
		return next;
	}

	/** What is known of an endpoint of Docker's once its container has a namespace, or runs. */
	describe(
		dockerEndpoint: string,
		what: Partial<Pick<AttachedEndpoint, 'name' | 'aliases' | 'interface' | 'namespace' | 'cookie'>>,
	): void {
		const state = this.deps.state();
		this.deps.save({
			...state,
			endpoints: state.endpoints.map((e) => (e.docker?.endpoint === dockerEndpoint ? { ...e, ...what } : e)),
		});
	}

	/** Addresses of a network that are given out and not attached. */
	reserved(network: string): ReadonlySet<string> {
		return this.deps.reserved?.(network) ?? new Set();
	}

	/** An address that no endpoint has: the wanted one, or one of this node's. @throws BeelineError NO_ADDRESS, ADDRESS_TAKEN */
	pick(r: Pick<AttachRequest, 'network' | 'self' | 'address' | 'reserved'>): string {
		return this.choose(r).address;
	}

	/**
	 * Forgets endpoints whose veth went with their namespace.
	 * @param names interfaces of this node by index, as they were at `at`
	 * @returns what is gone
	 */
	async reap(names: ReadonlyMap<number, string>, at: Date): Promise<readonly AttachedEndpoint[]> {
		const gone = this.endpoints.filter(
			(e) => names.get(e.ifindex) !== e.host && !this.making.has(e.host) && new Date(e.attachedAt) < at,
		);
		if (gone.length > 0) await this.forget(gone);
		return gone;
	}

	private async forget(gone: readonly AttachedEndpoint[]): Promise<void> {
		const ids = new Set(gone.map((e) => e.id));
		const state = this.deps.state();
		const endpoints = state.endpoints.filter((e) => !ids.has(e.id));
		const inUse = new Set(endpoints.map((e) => e.namespace));
		const legs: GatewayLeg[] = [];
		for (const leg of state.legs) {
			if (inUse.has(leg.namespace)) legs.push(leg);
			else await this.deps.gateway.removeLeg(leg);
		}
		this.deps.save({ endpoints, legs });
	}

	/** The address that an endpoint gets, and what the source says of it. @throws BeelineError */
	private choose(r: Omit<AttachRequest, 'netns' | 'underlayMtu'>): {
		id: string;
		address: string;
		known?: NetworkEndpoint;
	} {
		const { network: n, self } = r;
		const attached = new Set(this.endpoints.filter((e) => e.network === n.name).map((e) => e.address));
		for (const a of this.reserved(n.name)) attached.add(a);
		const declared = n.endpoints ?? [];
		const slice = n.options.slices?.[self];
		const of = (address: string) => `${n.name}-${address}`;
		if (r.address !== undefined) {
			const wanted = r.address;
			const known = declared.find((e) => e.address === wanted);
			const refuse = (code: string, why: string): never => {
				throw new BeelineError(code, `${wanted} on network ${n.name}: ${why}`, { field: 'address' });
			};
			if (!contains(n.subnet, wanted)) refuse('NO_ADDRESS', `it is no address of ${n.subnet}`);
			if (wanted === gatewayOf(n)) refuse('NO_ADDRESS', 'it is the gateway');
			if (r.reserved.has(wanted)) refuse('ADDRESS_TAKEN', 'a service has it');
			if (attached.has(wanted)) refuse('ADDRESS_TAKEN', 'an endpoint of this node has it');
			if (known !== undefined && known.node !== self) refuse('ADDRESS_TAKEN', `it is declared for ${known.node}`);
			if (known === undefined && (slice === undefined || !contains(slice, wanted)))
				refuse(
					'NO_ADDRESS',
					slice === undefined
						? `this node owns no part of ${n.subnet}`
						: `it is outside of ${slice}, the part of ${n.subnet} that this node owns`,
				);
			return { id: known?.id ?? of(wanted), address: wanted, ...(known === undefined ? {} : { known }) };
		}
		const waiting = declared.find(
			(e) => e.node === self && !attached.has(e.address) && e.service === r.service && (r.name ?? e.name) === e.name,
		);
		if (waiting !== undefined && (r.service !== undefined || r.name !== undefined))
			return { id: waiting.id, address: waiting.address, known: waiting };
		const taken = new Set([...attached, ...r.reserved, ...declared.map((e) => e.address)]);
		const address = slice === undefined ? undefined : freeAddress(n, slice, taken);
		if (address === undefined)
			throw new BeelineError(
				'NO_ADDRESS',
				slice === undefined
					? `network ${n.name}: this node owns no part of ${n.subnet}: add it to the network's slices`
					: `network ${n.name}: no address is free in ${slice}, the part that this node owns`,
			);
		return { id: of(address), address };
	}

	private async allocated(r: AttachRequest): Promise<{ id: string; address: string; known: NetworkEndpoint }> {
		const id = `${r.network.name}-${randomBytes(6).toString('hex')}`;
		const known = await (r.allocate as NonNullable<AttachRequest['allocate']>)({
			id,
			aliases: r.aliases ?? [],
			...(r.address === undefined ? {} : { wanted: r.address }),
			...(r.name === undefined ? {} : { name: r.name }),
			...(r.service === undefined ? {} : { service: r.service }),
		});
		return { id, address: known.address, known };
	}

	private async makePlugged(r: PlugRequest): Promise<{ endpoint: AttachedEndpoint; inside: string }> {
		const { run } = this.deps;
		const { id, network: n } = r;
		const host = `bl-${short(id, 12)}`;
		const inside = innerEnd(r.docker.endpoint);
		// Joined a second time, Docker wants a new one.
		const before = this.endpoints.find((e) => e.docker?.endpoint === r.docker.endpoint);
		if (before !== undefined) await this.unlink(before);
		if (this.endpoints.some((e) => e.network === n.name && e.address === r.address))
			throw new BeelineError(
				'ADDRESS_TAKEN',
				`${r.address} on network ${n.name}: another endpoint of this node has it`,
			);
		this.making.add(host);
		try {
			const mtu = innerMtu(r.mtu, n.options.encrypted ?? false);
			const ifindex = await makeVeth(run, host, undefined, inside, mtu);
			await segmentInside(run, OWN_NETNS, inside);
			await run('ip', ['link', 'set', host, 'addrgenmode', 'none']);
			await run('ip', ['link', 'set', host, 'up']);
			const endpoint: AttachedEndpoint = {
				id,
				network: n.name,
				vni: n.vni,
				address: r.address,
				...(r.address6 === undefined ? {} : { address6: r.address6 }),
				mac: r.mac,
				mtu,
				aliases: [],
				netns: r.sandbox,
				// Docker makes it later.
				namespace: `docker:${r.docker.endpoint}`,
				cookie: UNSEEN,
				interface: 'eth',
				host,
				ifindex,
				attachedAt: (this.deps.now ?? (() => new Date()))().toISOString(),
				docker: r.docker,
			};
			const state = this.deps.state();
			this.deps.save({ endpoints: [...state.endpoints, endpoint], legs: state.legs });
			return { endpoint, inside };
		} catch (e) {
			await run('ip', ['link', 'del', host]).catch(() => '');
			throw e;
		} finally {
			this.making.delete(host);
		}
	}

	private async make(r: AttachRequest): Promise<AttachedEndpoint> {
		const { run, gateway } = this.deps;
		const { network: n } = r;
		const namespace = namespaceOf(r.netns);
		if (namespace === namespaceOf(OWN_NETNS))
			throw new BeelineError('NO_NETNS', `${r.netns} is the node's own network namespace: name another`, {
				field: 'netns',
			});
		const there = this.endpoints.find((e) => e.network === n.name && e.namespace === namespace);
		if (there !== undefined)
			throw new BeelineError('ATTACHED', `${r.netns} is on network ${n.name} already, as ${there.address}`);
		const { id, address, known } = r.allocate === undefined ? this.choose(r) : await this.allocated(r);
		const host = `bl-${short(id, 12)}`;
		const mac = known?.mac ?? macOfAddress(address);
		const address6 = known?.address6 ?? (n.subnet6 === undefined ? undefined : address6Of(n.subnet6, address));
		const mtu = innerMtu(n.options.mtu ?? r.underlayMtu, n.options.encrypted ?? false);
		this.making.add(host);
		let leg: GatewayLeg | undefined;
		try {
			// The way out first: eth0 is what programs take for the main interface, as in Docker's containers it is the network's.
			const inside = await freeName(run, r.netns);
			const ifindex = await makeVeth(run, host, r.netns, inside, mtu);
			await segmentInside(run, r.netns, inside);
			await run('ip', ['link', 'set', host, 'addrgenmode', 'none']);
			await run('ip', ['link', 'set', host, 'up']);
			const [, bits] = n.subnet.split('/');
			await ipIn(run, r.netns, [
				'link set lo up',
				`link set dev ${inside} address ${mac}`,
				`link set dev ${inside} up`,
				`address add ${address}/${bits} dev ${inside}`,
				...(address6 === undefined ? [] : [`address add ${address6}/${n.subnet6?.split('/')[1]} dev ${inside} nodad`]),
			]);
			const state = this.deps.state();
			if (!n.options.internal && !state.legs.some((l) => l.namespace === namespace))
				leg = await gateway.addLeg(r.netns, namespace, state.legs);
			const service = r.service ?? known?.service;
			const name = r.name ?? known?.name;
			const endpoint: AttachedEndpoint = {
				id,
				network: n.name,
				vni: n.vni,
				address,
				...(address6 === undefined ? {} : { address6 }),
				mac,
				mtu,
				...(name === undefined ? {} : { name }),
				aliases: [...new Set([...(r.aliases ?? []), ...(known?.aliases ?? [])])],
				...(service === undefined ? {} : { service }),
				netns: r.netns,
				namespace,
				cookie: await cookieOf(r.netns),
				interface: inside,
				host,
				ifindex,
				attachedAt: (this.deps.now ?? (() => new Date()))().toISOString(),
			};
			this.deps.save({
				endpoints: [...state.endpoints, endpoint],
				legs: leg === undefined ? state.legs : [...state.legs, leg],
			});
			return endpoint;
		} catch (e) {
			await run('ip', ['link', 'del', host]).catch(() => '');
			if (leg !== undefined) await gateway.removeLeg(leg);
			await r.release?.(address, id).catch(() => undefined);
			throw e;
		} finally {
			this.making.delete(host);
		}
	}
}

/** Removes what the state names: every endpoint, and the gateway's bridge. Needs no agent. */
export async function removeOverlay(run: Run, state: OverlayState): Promise<void> {
	for (const e of state.endpoints) {
		await run('ip', ['link', 'del', e.host]).catch(() => '');
		removeResolvConf(e.netns);
	}
	if (state.legs.length > 0) await removeGateway(run);
}

/** Path of a process's network namespace. @throws BeelineError NO_NETNS */
export function netnsOfPid(pid: number): string {
	if (!existsSync(`/proc/${pid}`))
		throw new BeelineError(
			'NO_NETNS',
			`there is no process ${pid} where the agent runs; one in a container sees only its own: give --netns or --container`,
			{ field: 'pid' },
		);
	return `/proc/${pid}/ns/net`;
}

interface RawContainer {
	readonly State?: { readonly Pid?: number };
	readonly HostConfig?: { readonly NetworkMode?: string };
	readonly NetworkSettings?: { readonly SandboxKey?: string };
}

/** Path of a running container's network namespace, by the engine of this node. @throws BeelineError NO_CONTAINER */
export async function netnsOfContainer(id: string): Promise<string> {
	const refuse = (why: string): never => {
		throw new BeelineError('NO_CONTAINER', `container ${id}: ${why}`, { field: 'container' });
	};
	const engine = createEngine(parseDockerHost(process.env));
	const inspect = async (which: string): Promise<RawContainer> =>
		(await engine
			.get(`/containers/${encodeURIComponent(which)}/json`)
			.catch((e: Error) =>
				refuse(
					e instanceof EngineError && e.status === 404 ? 'this node has no such container (docker ps)' : e.message,
				),
			)) as RawContainer;
	try {
		let found = await inspect(id);
		const pid = found.State?.Pid ?? 0;
		if (pid === 0) refuse('it is not running: docker start it first');
		// In another's namespace (--network container:…), which may be in a third's.
		for (let left = 8; left > 0; left--) {
			const other = /^container:(.+)$/.exec(found.HostConfig?.NetworkMode ?? '')?.[1];
			if (other === undefined) break;
			found = await inspect(other);
		}
		if (found.HostConfig?.NetworkMode === 'host')
			refuse(
				"it is in the node's own network namespace (--network host): start it with --network none, or on a network",
			);
		const sandbox = found.NetworkSettings?.SandboxKey;
		// An agent in a container sees the namespaces that Docker mounts, and not the node's processes.
		return sandbox !== undefined && isNamespace(sandbox) ? sandbox : `/proc/${pid}/ns/net`;
	} finally {
		engine.close();
	}
}
