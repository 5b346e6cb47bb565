/**
 * Docker's networks on Beeline's: what an engine asks, answered from the membership, this node's part of each subnet and the
 * agent's endpoints. The engine moves the veth into the container and sets its addresses; the host end is the agent's
 * (docs/decisions/0034).
 *
 *	engine                                     driver                              agent
 *	network create    RequestPool              the network and its subnet
 *	                  CreateNetwork            remembers which network it is
 *	container start   RequestAddress           an address of this node's part  ◄── not attached, not declared for another node
 *	                  CreateEndpoint           remembers address and MAC
 *	                  Join                     the veth's name                 ◄── veth, overlay_tc, rows
 *	container stop    Leave, DeleteEndpoint                                    ──► gone
 *	                  ReleaseAddress           free again
 */
import ipaddr from 'ipaddr.js';
import { BeelineError } from '../errors.js';
import { address6Of, contains, gatewayOf, macOfAddress } from '../mesh/subnets.js';
import type { NetworkSpec } from '../mesh/types.js';
import type * as p from './protocol.js';
import { OPTION } from './protocol.js';
import type { DockerEndpoint, DockerNetwork, PluginState, PluginStore } from './state.js';

/** What the agent does for it. */
export interface PluginHost {
	networks(): readonly NetworkSpec[];
	/** Why no endpoint may be on it; undefined: it may. */
	refusal(network: NetworkSpec): string | undefined;
	/** Where an operator declares them. */
	readonly place: string;
	/** Why this node cannot carry its packets now; undefined: it can. */
	cannotCarry(network: NetworkSpec): Promise<string | undefined>;
	/** An address that nobody has: the wanted one, or one of this node's; and who is to have it. @throws BeelineError */
	pick(network: NetworkSpec, wanted?: string): Promise<{ readonly address: string; readonly holder: string }>;
	/** It is not used (any more). */
	release(network: string, address: string, holder: string): Promise<void>;
	/** Makes the veth and lets packets through. @returns the name of the end that Docker takes. @throws BeelineError */
	plug(request: PlugRequest): Promise<string>;
	/** By Docker's id; nothing where there is no such endpoint. */
	unplug(endpoint: string): Promise<void>;
	/** Docker's ids of the endpoints that have a veth. */
	plugged(): ReadonlySet<string>;
	/** Of those, which Docker gave back or never took, since before `at` (ms since 1970). */
	idle(at: number): Promise<readonly string[]>;
}

export interface PlugRequest {
	readonly id: string;
	readonly network: NetworkSpec;
	/** Docker's ids. */
	readonly docker: { readonly endpoint: string; readonly network: string };
	readonly address: string;
	readonly address6?: string;
	readonly mac: string;
	/** Bytes, of the underlay; undefined: the network's, or the uplinks'. */
	readonly mtu?: number;
	/** Path of the container's namespace, as Docker names it. */
	readonly sandbox: string;
}

/** All throw BeelineError with a sentence for whoever typed the docker command. */
export interface Driver {
	createNetwork(r: p.CreateNetworkRequest): Promise<void>;
	deleteNetwork(id: string): Promise<void>;
	createEndpoint(r: p.CreateEndpointRequest): Promise<{ MacAddress?: string }>;
	deleteEndpoint(r: p.EndpointRequest): Promise<void>;
	info(r: p.EndpointRequest): Record<string, string>;
	join(r: p.JoinRequest): Promise<p.JoinAnswer>;
	leave(r: p.EndpointRequest): void;
	requestPool(r: p.RequestPoolRequest): { PoolID: string; Pool: string; Data: Record<string, string> };
	requestAddress(r: p.RequestAddressRequest): Promise<{ Address: string; Data: Record<string, string> }>;
	releaseAddress(r: p.ReleaseAddressRequest): Promise<void>;
	/** Addresses of a network that are given out, IPv4. */
	reserved(network: string): ReadonlySet<string>;
	/** Frees what the engine never came back for. @returns what was freed */
	reap(): Promise<string[]>;
}

export interface DriverDeps {
	readonly host: PluginHost;
	readonly store: PluginStore;
	/** The engine's answer to GET /networks/{id}, for networks of an engine whose file was lost; undefined: none. */
	readonly lookUp?: (id: string) => Promise<Readonly<Record<string, string>> | undefined>;
	/** ms since 1970. */
	readonly now?: () => number;
}

/** Between the request for an address and a container that runs lie some 100 ms; an engine that died in between never returns. */
export const LEAK_AFTER_MS = 120_000;

const fail = (code: string, text: string): never => {
	throw new BeelineError(code, text);
};

/** `name/4`, `name/4/10.44.0.0/28`, `name/6` */
const poolId = (network: string, family: 4 | 6, part: string): string =>
	`${network}/${family}${part === '' ? '' : `/${part}`}`;

function parsePool(id: string): { network: string; family: 4 | 6; part?: string } {
	const m = /^([^/]+)\/([46])(?:\/(.+))?$/.exec(id);
	if (m === null) return fail('NOT_FOUND', `${id} is no pool of Beeline's`);
	return { network: m[1], family: m[2] === '6' ? 6 : 4, ...(m[3] === undefined ? {} : { part: m[3] }) };
}

const bits = (prefix: string): string => prefix.split('/')[1];
const bare = (address: string): string => address.split('/')[0];
const same = (a: string, b: string): boolean => {
	try {
		const [x, xb] = ipaddr.parseCIDR(a);
		const [y, yb] = ipaddr.parseCIDR(b);
		return x.kind() === y.kind() && xb === yb && x.match(y, yb);
	} catch {
		return false;
	}
};

/** The IPv4 address in the last 32 bits; undefined: it is not of that prefix. */
function address4Of(subnet6: string, address6: string): string | undefined {
	try {
		const a = ipaddr.IPv6.parse(address6);
		const four = a.toByteArray().slice(12).join('.');
		return address6Of(subnet6, four) === a.toRFC5952String() ? four : undefined;
	} catch {
		return undefined;
	}
}

export function createDriver(deps: DriverDeps): Driver {
	const { host, store } = deps;
	const now = deps.now ?? Date.now;
	const change = (part: Partial<PluginState>): void => store.set({ ...store.get(), ...part });

	const ours = (): NetworkSpec[] => host.networks().filter((n) => n.driver === 'beeline');
	const names = (): string =>
		ours()
			.slice(0, 8)
			.map((n) => n.name)
			.join(', ') || `none yet: add it to ${host.place}`;
	function named(name: string): NetworkSpec {
		const n = ours().find((x) => x.name === name);
		if (n === undefined) return fail('NOT_FOUND', `Beeline has no network ${name}; it has ${names()}`);
		const why = host.refusal(n);
		return why === undefined ? n : fail('REFUSED', why);
	}

	async function carried(n: NetworkSpec): Promise<NetworkSpec> {
		const why = await host.cannotCarry(n);
		return why === undefined ? n : fail('REFUSED', why);
	}

	/** The network that options or a subnet mean. */
	function meant(options: Readonly<Record<string, unknown>>, subnet: string, how: string): NetworkSpec {
		const name = options[OPTION.network];
		if (typeof name === 'string' && name !== '') return named(name);
		const vni = options[OPTION.vni];
		const which =
			typeof vni === 'string' && vni !== ''
				? ours().filter((n) => String(n.vni) === vni)
				: subnet === ''
					? []
					: ours().filter((n) => same(n.subnet, subnet) || (n.subnet6 !== undefined && same(n.subnet6, subnet)));
		if (which.length === 1) return named(which[0].name);
		if (which.length > 1)
			return fail(
				'AMBIGUOUS',
				`${subnet} is the subnet of ${which.map((n) => n.name).join(' and ')}: say which by ${how} beeline.network=NAME`,
			);
		if (typeof vni === 'string' && vni !== '')
			return fail('NOT_FOUND', `Beeline has no network with VNI ${vni}; it has ${names()}`);
		return fail(
			'NOT_FOUND',
			subnet === ''
				? `say which network of Beeline's it is, by ${how} beeline.network=NAME: ${names()}`
				: `Beeline has no network with the subnet ${subnet}; say which one by ${how} beeline.network=NAME: ${names()}`,
		);
	}

	async function dockerNetwork(id: string): Promise<DockerNetwork> {
		const known = store.get().networks.find((n) => n.id === id);
		if (known !== undefined) return known;
		const options = await deps.lookUp?.(id).catch(() => undefined);
		const network = options?.[OPTION.network];
		if (network === undefined)
			return fail(
				'NOT_FOUND',
				`Beeline does not know Docker's network ${id.slice(0, 12)}: remove it and create it again`,
			);
		const found: DockerNetwork = { id, network: named(network).name, internal: options?.[OPTION.internal] === 'true' };
		change({ networks: [...store.get().networks, found] });
		return found;
	}

	const dropEndpoint = (id: string): void => {
		const { endpoints } = store.get();
		if (endpoints.some((e) => e.id === id)) change({ endpoints: endpoints.filter((e) => e.id !== id) });
	};

	const endpointOf = (r: p.EndpointRequest): DockerEndpoint =>
		store.get().endpoints.find((e) => e.id === r.EndpointID) ??
		fail('NOT_FOUND', `Beeline does not know the endpoint ${r.EndpointID.slice(0, 12)}: restart the container`);

	/** Given out, and by an endpoint or lately enough not to be a leak. */
	function inUse(network: string, address: string): boolean {
		const { addresses, endpoints } = store.get();
		const r = addresses.find((x) => x.network === network && x.address === address);
		if (r === undefined) return false;
		const used = endpoints.some((e) => e.network === network && (e.address === address || e.address6 === address));
		return used || r.kept === true || now() - r.at < LEAK_AFTER_MS;
	}

	/** One at a time: an address is looked for and taken in two steps. */
	let last: Promise<unknown> = Promise.resolve();
	function inTurn<T>(act: () => Promise<T>): Promise<T> {
		const next = last.catch(() => undefined).then(act);
		last = next;
		return next;
	}

	function reserve(network: string, address: string, holder: string): void {
		const { addresses } = store.get();
		change({
			addresses: [
				...addresses.filter((a) => a.network !== network || a.address !== address),
				{ network, address, holder, at: now() },
			],
		});
	}

	async function release(network: string, address: string): Promise<void> {
		const { addresses } = store.get();
		const held = addresses.find((a) => a.network === network && a.address === address);
		if (held === undefined) return;
		change({ addresses: addresses.filter((a) => a !== held) });
		if (held.holder !== '') await host.release(network, address, held.holder);
	}

	return {
		async createNetwork(r) {
			const generic = (r.Options[OPTION.generic] ?? {}) as Record<string, unknown>;
			const v4 = r.IPv4Data[0];
			const n = await carried(meant(generic, v4?.Pool ?? '', '-o'));
			if (v4 === undefined || v4.AddressSpace !== 'beeline')
				fail(
					'REFUSED',
					`addresses of network ${n.name} are Beeline's to give, or two nodes would give the same: add --ipam-driver beeline --ipam-opt beeline.network=${n.name}`,
				);
			if (!same(v4.Pool, n.subnet))
				fail(
					'REFUSED',
					`network ${n.name} is ${n.subnet}, and the addresses are those of ${v4.Pool}: name the same network in -o and in --ipam-opt`,
				);
			const mtu = generic[OPTION.mtu];
			const bytes = mtu === undefined ? undefined : Number(mtu);
			if (bytes !== undefined && !(Number.isInteger(bytes) && bytes >= 576 && bytes <= 65535))
				fail('INVALID', `${OPTION.mtu} is ${mtu}: expected an MTU from 576 to 65535`);
			const known = new Set<string>([OPTION.network, OPTION.vni, OPTION.mtu, OPTION.encrypted]);
			const strange = Object.keys(generic).find((k) => !known.has(k));
			if (strange !== undefined)
				fail('INVALID', `${strange} is no option of Beeline's: expected ${[...known].join(', ')}`);
			const vni = generic[OPTION.vni];
			if (vni !== undefined && String(vni) !== String(n.vni))
				fail('INVALID', `${OPTION.vni} is ${vni}, and network ${n.name} has VNI ${n.vni}: leave it out`);
			// Whether it is, the membership says, for all nodes: whoever types it must not believe what is not so.
			const encrypted = generic[OPTION.encrypted];
			if (encrypted !== undefined && (encrypted !== 'false') !== (n.options.encrypted ?? false))
				fail(
					'REFUSED',
					n.options.encrypted
						? `network ${n.name} is encrypted: leave -o encrypted=false out`
						: `network ${n.name} is not encrypted: say options: { encrypted: true } of it in ${host.place}`,
				);
			const network: DockerNetwork = {
				id: r.NetworkID,
				network: n.name,
				internal: r.Options[OPTION.internal] === true || (n.options.internal ?? false),
				...(bytes === undefined ? {} : { mtu: bytes }),
			};
			const kept = new Set(r.IPv4Data.flatMap((d) => Object.values(d.AuxAddresses).map(bare)));
			const { addresses, networks } = store.get();
			change({
				networks: [...networks.filter((x) => x.id !== network.id), network],
				addresses: addresses.map((a) => (a.network === n.name && kept.has(a.address) ? { ...a, kept: true } : a)),
			});
		},
		async deleteNetwork(id) {
			const { endpoints, networks } = store.get();
			const left = endpoints.filter((e) => e.networkId === id);
			for (const e of left) await host.unplug(e.id);
			change({ networks: networks.filter((n) => n.id !== id), endpoints: endpoints.filter((e) => e.networkId !== id) });
		},
		async createEndpoint(r) {
			const d = await dockerNetwork(r.NetworkID);
			const n = named(d.network);
			const address = bare(r.Interface.Address);
			if (address === '') fail('REFUSED', `an endpoint on network ${n.name} needs an IPv4 address`);
			if (!contains(n.subnet, address)) fail('NO_ADDRESS', `${address} is no address of ${n.subnet}`);
			const there = store
				.get()
				.endpoints.find((e) => e.network === n.name && e.address === address && e.id !== r.EndpointID);
			if (there !== undefined && host.plugged().has(there.id))
				fail('ADDRESS_TAKEN', `${address} on network ${n.name}: another endpoint of this node has it`);
			const declared = n.endpoints?.find((e) => e.address === address)?.mac;
			const mac = r.Interface.MacAddress || declared || macOfAddress(address);
			const six = bare(r.Interface.AddressIPv6);
			const endpoint: DockerEndpoint = {
				id: r.EndpointID,
				networkId: r.NetworkID,
				network: n.name,
				name:
					store.get().addresses.find((a) => a.network === n.name && a.address === address)?.holder ??
					`${n.name}-${address}`,
				address,
				...(six === '' ? {} : { address6: ipaddr.IPv6.parse(six).toRFC5952String() }),
				mac,
				at: now(),
			};
			change({
				endpoints: [...store.get().endpoints.filter((e) => e.id !== endpoint.id && e.id !== there?.id), endpoint],
			});
			// What the engine said itself it does not want to hear again.
			return r.Interface.MacAddress === '' ? { MacAddress: mac } : {};
		},
		async deleteEndpoint(r) {
			await host.unplug(r.EndpointID);
			dropEndpoint(r.EndpointID);
		},
		info(r) {
			const e = endpointOf(r);
			const vni = ours().find((n) => n.name === e.network)?.vni;
			return {
				'beeline.network': e.network,
				...(vni === undefined ? {} : { [OPTION.vni]: String(vni) }),
				'com.docker.network.endpoint.macaddress': e.mac,
			};
		},
		async join(r) {
			const e = endpointOf(r);
			const d = await dockerNetwork(r.NetworkID);
			const source = await host.plug({
				id: e.name,
				network: await carried(named(e.network)),
				docker: { endpoint: e.id, network: e.networkId },
				address: e.address,
				...(e.address6 === undefined ? {} : { address6: e.address6 }),
				mac: e.mac,
				...(d.mtu === undefined ? {} : { mtu: d.mtu }),
				sandbox: r.SandboxKey,
			});
			return {
				InterfaceName: { SrcName: source, DstPrefix: 'eth' },
				// No gateway on the network itself: docker_gwbridge leads out, and has the published ports.
				Gateway: '',
				GatewayIPv6: '',
				StaticRoutes: [],
				DisableGatewayService: d.internal,
			};
		},
		// The engine takes the interface back first, and misses it where it is gone.
		leave: () => undefined,
		requestPool(r) {
			const n = meant(r.Options, r.Pool, '--ipam-opt');
			if (r.V6 && n.subnet6 === undefined)
				fail('REFUSED', `network ${n.name} has no IPv6 subnet: leave out --ipv6, or add subnet6 to it`);
			const subnet = r.V6 ? (n.subnet6 as string) : n.subnet;
			if (r.Pool !== '' && !same(r.Pool, subnet))
				fail('REFUSED', `network ${n.name} is ${subnet}, not ${r.Pool}: leave out --subnet`);
			if (r.SubPool !== '') {
				const [base, length] = r.SubPool.split('/');
				if (r.V6) fail('REFUSED', 'an IPv6 --ip-range is not needed: IPv6 addresses follow from IPv4 ones');
				if (!contains(subnet, base) || Number(length) < Number(bits(subnet)))
					fail('REFUSED', `${r.SubPool} is no part of ${subnet}`);
			}
			// Nobody is there; the engine would reserve an address for it otherwise.
			const Data: Record<string, string> = r.V6 ? {} : { [OPTION.gateway]: `${gatewayOf(n)}/${bits(subnet)}` };
			return { PoolID: poolId(n.name, r.V6 ? 6 : 4, r.SubPool), Pool: subnet, Data };
		},
		requestAddress: (r) =>
			inTurn(async () => {
				const { network, family, part } = parsePool(r.PoolID);
				const n = named(network);
				const gateway = r.Options[OPTION.requestType] === OPTION.gateway;
				if (family === 6) {
					const { subnet6 } = n;
					if (subnet6 === undefined) return fail('REFUSED', `network ${n.name} has no IPv6 subnet any more`);
					const length = bits(subnet6);
					if (gateway)
						return {
							Address: `${r.Address === '' ? address6Of(subnet6, gatewayOf(n)) : r.Address}/${length}`,
							Data: {},
						};
					const { addresses, endpoints } = store.get();
					const taken = new Set(addresses.flatMap((a) => (a.network === network ? [a.address] : [])));
					const four = addresses
						.filter((a) => a.network === network && !a.address.includes(':'))
						.map((a) => a.address)
						.filter((a) => !endpoints.some((e) => e.network === network && e.address === a))
						.filter((a) => !taken.has(address6Of(subnet6, a)));
					const wanted = r.Address === '' ? undefined : address4Of(subnet6, r.Address);
					const fits = r.Address === '' ? four.at(-1) : four.find((a) => a === wanted);
					if (fits === undefined)
						return fail(
							'NO_ADDRESS',
							`${r.Address || 'an IPv6 address'} on network ${n.name}: an endpoint's IPv6 address is ${subnet6} with its IPv4 address in the last 32 bits${wanted === undefined ? '' : `: give --ip ${wanted} with it`}`,
						);
					const address = address6Of(subnet6, fits);
					reserve(network, address, '');
					return { Address: `${address}/${length}`, Data: {} };
				}
				const length = bits(n.subnet);
				if (gateway) {
					if (r.Address !== '' && r.Address !== gatewayOf(n))
						fail('REFUSED', `the gateway of network ${n.name} is ${gatewayOf(n)}: leave out --gateway`);
					return { Address: `${gatewayOf(n)}/${length}`, Data: {} };
				}
				const wanted = r.Address === '' ? undefined : r.Address;
				if (wanted !== undefined && inUse(network, wanted))
					fail('ADDRESS_TAKEN', `${wanted} on network ${n.name}: Docker has it already, on this node`);
				// What nobody came for is free again.
				if (wanted !== undefined) await release(network, wanted);
				const { address, holder } = await host.pick(part === undefined ? n : { ...n, ipRange: part }, wanted);
				try {
					reserve(network, address, holder);
				} catch (e) {
					await host.release(network, address, holder);
					throw e;
				}
				return { Address: `${address}/${length}`, Data: {} };
			}),
		releaseAddress: (r) =>
			inTurn(async () => {
				const { network } = parsePool(r.PoolID);
				const { endpoints } = store.get();
				const address = r.Address.includes(':') ? ipaddr.IPv6.parse(r.Address).toRFC5952String() : r.Address;
				// An engine that cleans up after a boot may name what was freed, and given to another, meanwhile.
				const plugged = host.plugged();
				if (endpoints.some((e) => e.network === network && e.address === address && plugged.has(e.id))) return;
				await release(network, address);
			}),
		reserved: (network) =>
			new Set(
				store.get().addresses.flatMap((a) => (a.network === network && !a.address.includes(':') ? [a.address] : [])),
			),
		reap: () =>
			inTurn(async () => {
				// An engine whose agent was away takes a container's interface out and never says that it is gone.
				for (const id of await host.idle(now() - LEAK_AFTER_MS)) await host.unplug(id);
				const { addresses, endpoints } = store.get();
				const plugged = host.plugged();
				const old = (at: number) => now() - at >= LEAK_AFTER_MS;
				const gone = endpoints.filter((e) => !plugged.has(e.id) && old(e.at));
				const stay = endpoints.filter((e) => !gone.includes(e));
				const used = (a: { network: string; address: string }) =>
					stay.some((e) => e.network === a.network && (e.address === a.address || e.address6 === a.address));
				const lost = addresses.filter((a) => a.kept !== true && old(a.at) && !used(a));
				if (gone.length === 0 && lost.length === 0) return [];
				change({ endpoints: stay });
				for (const a of lost) await release(a.network, a.address);
				return [
					...gone.map((e) => `endpoint ${e.address} on ${e.network}`),
					...lost.map((a) => `${a.address} on ${a.network}`),
				];
			}),
	};
}
