/** Veth pairs between this node and the namespaces of endpoints. */
import { statfsSync, statSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { inNetns } from 'libbpf-ts';
import { BeelineError, codeOf, sentence } from '../errors.js';
import { json, type Run } from './exec.js';
import type { Look } from './namespace-job.js';

const NSFS_MAGIC = 0x6e736673;

/** Whether a namespace is mounted on a file: Docker makes the file first. */
export function isNamespace(path: string): boolean {
	try {
		return statfsSync(path).type === NSFS_MAGIC;
	} catch {
		return false;
	}
}

/** Device and inode of a network namespace. @throws BeelineError NO_NETNS */
export function namespaceOf(path: string): string {
	if (!isAbsolute(path))
		throw new BeelineError(
			'NO_NETNS',
			`${path} is no path of a network namespace: expected one such as /run/netns/NAME or /proc/PID/ns/net`,
			{ field: 'netns' },
		);
	try {
		const s = statSync(path);
		return `${s.dev}:${s.ino}`;
	} catch (e) {
		const why = codeOf(e) === 'ENOENT' ? 'it does not exist' : sentence(e);
		throw new BeelineError('NO_NETNS', `the network namespace ${path} cannot be used: ${why}`, { field: 'netns' });
	}
}

/** What bpf_get_netns_cookie() returns in a namespace, as decimal text: JSON has no 64-bit numbers. */
export async function cookieOf(netns: string): Promise<string> {
	const job = { module: new URL('./namespace-job.js', import.meta.url), args: { look: true } };
	return ((await inNetns(netns, job)) as Look).cookie.toString();
}

/** Runs `ip` commands in a namespace, one a line. */
export async function ipIn(run: Run, netns: string, lines: readonly string[]): Promise<void> {
	await run('nsenter', [`--net=${netns}`, 'ip', '-batch', '-'], `${lines.join('\n')}\n`);
}

/** The first of eth0, eth1, … that the namespace has not. */
export async function freeName(run: Run, netns: string): Promise<string> {
	const links = json<{ ifname: string }>(await run('nsenter', [`--net=${netns}`, 'ip', '-j', 'link', 'show']));
	const taken = new Set(links.map((l) => l.ifname));
	for (let i = 0; ; i++) if (!taken.has(`eth${i}`)) return `eth${i}`;
}

/**
 * What an overlay endpoint's stack segments by itself, as ethtool names it: the datapath cannot put one more tunnel around an skb
 * of many segments that is a tunnel's already (a VXLAN device in a container), nor around SCTP's.
 */
export const SEGMENTED_INSIDE: readonly string[] = [
	'tx-udp_tnl-segmentation',
	'tx-udp_tnl-csum-segmentation',
	'tx-gre-segmentation',
	'tx-gre-csum-segmentation',
	'tx-ipxip4-segmentation',
	'tx-ipxip6-segmentation',
	'tx-sctp-segmentation',
];

/** Turns these off at the end inside. What this kernel's veth has not, or where there is no ethtool, stays as it is. */
export async function segmentInside(run: Run, netns: string, inside: string): Promise<void> {
	const off = (features: readonly string[]) =>
		run('nsenter', [`--net=${netns}`, 'ethtool', '-K', inside, ...features.flatMap((f) => [f, 'off'])]);
	await off(SEGMENTED_INSIDE).catch(async () => {
		for (const feature of SEGMENTED_INSIDE) await off([feature]).catch(() => '');
	});
}

/**
 * Makes a veth whose one end is in `netns`, by a name that nothing there has; both ends are down.
 * @param netns undefined: both are here
 * @returns its ifindex here
 */
export async function makeVeth(
	run: Run,
	host: string,
	netns: string | undefined,
	inside: string,
	mtu: number,
): Promise<number> {
	// What an attach that was killed left behind is nobody's.
	await run('ip', ['link', 'del', host]).catch(() => '');
	await run('ip', [
		'link',
		'add',
		host,
		'mtu',
		`${mtu}`,
		'type',
		'veth',
		'peer',
		'name',
		inside,
		'mtu',
		`${mtu}`,
		...(netns === undefined ? [] : ['netns', netns]),
	]);
	const [link] = json<{ ifindex: number }>(await run('ip', ['-j', 'link', 'show', 'dev', host]));
	return link.ifindex;
}
