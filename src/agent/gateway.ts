/**
 * The way out of overlay networks, as Docker's docker_gwbridge is: a bridge of this node alone, one leg for each namespace,
 * legs kept from each other, sources masqueraded. Published ports reach endpoints by their legs too.
 */
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import ipaddr from 'ipaddr.js';
import { BeelineError } from '../errors.js';
import { overlaps } from '../mesh/subnets.js';
import { json, type Run } from './exec.js';
import { routedPrefixes } from './routes.js';
import { freeName, ipIn, makeVeth } from './veth.js';

export const GATEWAY_BRIDGE = 'beeline_gw';
const TABLE = 'beeline_gw';

export interface GatewayConfig {
	/** undefined: the first of 172.30.0.0/16, 172.29.0.0/16, … that no route of the node overlaps. */
	readonly subnet?: string;
	/** Legs reach each other. */
	readonly icc: boolean;
	readonly masquerade: boolean;
	/** Bytes. */
	readonly mtu?: number;
}

/** One namespace's interface on the bridge. */
export interface GatewayLeg {
	/** Device and inode. */
	readonly namespace: string;
	readonly netns: string;
	readonly address: string;
	readonly interface: string;
	readonly host: string;
	readonly ifindex: number;
}

export interface Gateway {
	/** Makes the bridge where it is missing, and a leg with the default route. @throws BeelineError */
	addLeg(netns: string, namespace: string, legs: readonly GatewayLeg[]): Promise<GatewayLeg>;
	removeLeg(leg: GatewayLeg): Promise<void>;
	/** Where Docker drops what is forwarded, legs are excepted. To be repeated, for an engine may start later. Never throws. */
	admit(): Promise<void>;
}

/**
 * With Docker the node forwards nothing that no rule of Docker's lets pass (`-P FORWARD DROP`), and only a rule of the same table can
 * say otherwise. DOCKER-USER is the chain that Docker leaves to others, and never empties.
 */
const DOCKER_USER = 'DOCKER-USER';
const ADMITTED: readonly (readonly string[])[] = [
	['-i', GATEWAY_BRIDGE, '!', '-o', GATEWAY_BRIDGE, '-j', 'ACCEPT'],
	['-o', GATEWAY_BRIDGE, '-m', 'conntrack', '--ctstate', 'RELATED,ESTABLISHED', '-j', 'ACCEPT'],
];

const parse = (cidr: string): [ipaddr.IPv4, number] => ipaddr.IPv4.parseCIDR(cidr);

/** Address number `i` of a subnet. */
function host(subnet: string, i: number): string {
	const [base] = parse(subnet);
	let n = i;
	const octets = [...base.octets];
	for (let k = 3; k >= 0; k--) {
		n += octets[k];
		octets[k] = n & 255;
		n >>= 8;
	}
	return octets.join('.');
}

export function createGateway(run: Run, config: GatewayConfig): Gateway {
	let subnet: string | undefined;

	async function freeSubnet(): Promise<string> {
		const taken = await routedPrefixes(run);
		for (let i = 30; i >= 16; i--) {
			const s = `172.${i}.0.0/16`;
			if (!taken.some((t) => overlaps(t, s))) return s;
		}
		throw new BeelineError(
			'NO_SUBNET',
			'every part of 172.16.0.0/12 is routed on this node: set gatewayBridge.subnet to a free prefix',
		);
	}

	async function bridge(): Promise<string> {
		const [there] = json<{ addr_info?: { family: string; local: string; prefixlen: number }[] }>(
			await run('ip', ['-j', 'addr', 'show', 'dev', GATEWAY_BRIDGE]).catch(() => ''),
		);
		const own = there?.addr_info?.find((a) => a.family === 'inet');
		if (own !== undefined) {
			const base = ipaddr.IPv4.networkAddressFromCIDR(`${own.local}/${own.prefixlen}`);
			subnet = `${base.toString()}/${own.prefixlen}`;
			if (config.subnet === undefined || config.subnet === subnet) return subnet;
		}
		subnet = config.subnet ?? (await freeSubnet());
		if (there === undefined) await run('ip', ['link', 'add', GATEWAY_BRIDGE, 'type', 'bridge']);
		else await run('ip', ['addr', 'flush', 'dev', GATEWAY_BRIDGE]);
		await run('ip', ['addr', 'add', `${host(subnet, 1)}/${subnet.split('/')[1]}`, 'dev', GATEWAY_BRIDGE]);
		await run('ip', ['link', 'set', GATEWAY_BRIDGE, 'up']);
		writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
		await rules(subnet);
		return subnet;
	}

	/** A table of our own: whatever else filters this node stays as it is. */
	async function rules(s: string): Promise<void> {
		const masquerade = config.masquerade ? `ip saddr ${s} oifname != "${GATEWAY_BRIDGE}" masquerade` : '';
		await run(
			'nft',
			['-f', '-'],
			`table ip ${TABLE}
			delete table ip ${TABLE}
			table ip ${TABLE} {
				chain postrouting { type nat hook postrouting priority srcnat; policy accept; ${masquerade}
				}
			}\n`,
		);
	}

	async function admit(): Promise<void> {
		for (const rule of ADMITTED) {
			const command = (verb: string) => run('iptables', ['-w', verb, DOCKER_USER, ...rule]);
			// Without Docker there is no such chain, and perhaps no such command.
			await command('-C').catch(() => command('-I').catch(() => ''));
		}
	}

	return {
		admit,
		async addLeg(netns, namespace, legs) {
			const s = await bridge();
			await admit();
			const [, bits] = parse(s);
			const taken = new Set(legs.map((l) => l.address));
			let address: string | undefined;
			for (let i = 2; i < 2 ** (32 - bits) - 1 && address === undefined; i++)
				if (!taken.has(host(s, i))) address = host(s, i);
			if (address === undefined)
				throw new BeelineError('NO_ADDRESS', `no address is free in ${s}, the subnet of ${GATEWAY_BRIDGE}`);
			const name = `blg-${createHash('sha256').update(namespace).digest('hex').slice(0, 11)}`;
			const inside = await freeName(run, netns);
			try {
				const ifindex = await makeVeth(run, name, netns, inside, config.mtu ?? 1500);
				await run('ip', ['link', 'set', name, 'master', GATEWAY_BRIDGE, 'up']);
				if (!config.icc) await run('bridge', ['link', 'set', 'dev', name, 'isolated', 'on']);
				await ipIn(run, netns, [`link set dev ${inside} up`, `address add ${address}/${bits} dev ${inside}`]);
				// A namespace that has a way out keeps it.
				await ipIn(run, netns, [`route add default via ${host(s, 1)} dev ${inside}`]).catch((e: Error) => {
					if (!/File exists/.test(e.message)) throw e;
				});
				return { namespace, netns, address, interface: inside, host: name, ifindex };
			} catch (e) {
				await run('ip', ['link', 'del', name]).catch(() => '');
				throw e;
			}
		},
		async removeLeg(leg) {
			await run('ip', ['link', 'del', leg.host]).catch(() => '');
		},
	};
}

/** The bridge, its legs and its rules. */
export async function removeGateway(run: Run): Promise<void> {
	const legs = json<{ ifname: string }>(
		await run('ip', ['-j', 'link', 'show', 'master', GATEWAY_BRIDGE]).catch(() => ''),
	);
	for (const l of legs) if (l.ifname.startsWith('blg-')) await run('ip', ['link', 'del', l.ifname]).catch(() => '');
	await run('ip', ['link', 'del', GATEWAY_BRIDGE]).catch(() => '');
	for (const rule of ADMITTED) await run('iptables', ['-w', '-D', DOCKER_USER, ...rule]).catch(() => '');
	await run('nft', ['delete', 'table', 'ip', TABLE]).catch(() => '');
}
