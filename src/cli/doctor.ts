/** beeline doctor: what this node can do, and what to do about what it cannot. Changes nothing; needs no agent. */

import { createSocket } from 'node:dgram';
import { existsSync, readFileSync, statfsSync } from 'node:fs';
import { cgroupRoot } from '../agent/agent.js';
import { readSecret, whyNoEsp } from '../agent/encryption.js';
import { run } from '../agent/exec.js';
import { chooseUplinks, globalAddresses, readLinks } from '../agent/links.js';
import { parseFeatures } from '../agent/offloads.js';
import { defaultRoutes } from '../agent/routes.js';
import { etcdOptions } from '../agent/source.js';
import { loadConfig } from '../config.js';
import { BeelineError, codeOf, sentence } from '../errors.js';
import type { EtcdSourceOptions } from '../mesh/sources/etcd.js';
import { createEtcd, type Etcd, endOf } from '../mesh/sources/etcd-client.js';
import { type Format, print, table } from './output.js';
import { sources } from './places.js';

interface Finding {
	readonly level: 'ok' | 'warning' | 'error';
	readonly what: string;
	readonly finding: string;
	/** What to do. */
	readonly advice: string;
}

/** BPF_FS_MAGIC, linux/magic.h */
const BPF_FS = 0xcafe4a11;

function sysctl(path: string): string | undefined {
	try {
		return readFileSync(`/proc/sys/${path}`, 'utf8').trim();
	} catch {
		return undefined;
	}
}

function udpPortFree(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const s = createSocket('udp4');
		s.once('error', () => resolve(false));
		s.bind({ port, exclusive: true }, () => s.close(() => resolve(true)));
	});
}

/** Each endpoint by itself: one of three that is away is no error, and one that refuses this node is. */
async function askEtcd(
	options: EtcdSourceOptions,
	add: (level: Finding['level'], what: string, finding: string, advice?: string) => void,
): Promise<void> {
	const failed: { readonly endpoint: string; readonly error: unknown }[] = [];
	for (const endpoint of options.endpoints) {
		let etcd: Etcd | undefined;
		try {
			etcd = createEtcd({ ...options, endpoints: [endpoint], timeoutMs: 2000 });
			const nodes = `${options.prefix}/nodes/`;
			const { kvs } = await etcd.range({ key: nodes, end: endOf(nodes), keysOnly: true });
			add('ok', `etcd ${endpoint}`, `${kvs.length} nodes under ${nodes}`);
			for (const p of etcd.problems()) add('warning', `etcd ${endpoint}`, p);
		} catch (error) {
			failed.push({ endpoint, error });
		} finally {
			etcd?.close();
		}
	}
	for (const { endpoint, error } of failed) {
		const away = codeOf(error) === 'ETCD_AWAY';
		const level = away && failed.length < options.endpoints.length ? 'warning' : 'error';
		const advice = away ? 'start it, or mend the way to it; until then the last known state stays' : '';
		add(level, `etcd ${endpoint}`, sentence(error), advice);
	}
}

export async function doctor(o: { readonly config?: string; readonly format: Format }): Promise<void> {
	const found: Finding[] = [];
	const add = (level: Finding['level'], what: string, finding: string, advice = '') =>
		found.push({ level, what, finding, advice });
	let config: ReturnType<typeof loadConfig> | undefined;
	if (o.config !== undefined) {
		try {
			config = loadConfig(o.config);
			add('ok', 'configuration', o.config);
		} catch (e) {
			add('error', 'configuration', sentence(e));
		}
	}

	if (config?.membership.source === 'etcd') await askEtcd(etcdOptions(config), add);

	const release = sysctl('kernel/osrelease') ?? '?';
	const [major, minor] = release.split('.').map(Number) as [number, number];
	if (major > 6 || (major === 6 && minor >= 1)) add('ok', 'kernel', release);
	else add('error', 'kernel', `${release} is older than 6.1`, 'install Linux 6.1 or later');
	if (process.geteuid?.() !== 0) add('error', 'root', 'not root', 'run it as root');
	if (existsSync('/sys/kernel/btf/vmlinux')) add('ok', 'BTF', '/sys/kernel/btf/vmlinux');
	else add('warning', 'BTF', 'the kernel has none', 'use a kernel with CONFIG_DEBUG_INFO_BTF');
	try {
		if (statfsSync('/sys/fs/bpf').type === BPF_FS) add('ok', 'bpffs', '/sys/fs/bpf');
		else
			add(
				'warning',
				'bpffs',
				'not mounted at /sys/fs/bpf',
				'the agent mounts it; for a pinRoot elsewhere mount one there',
			);
		const mounts = readFileSync('/proc/mounts', 'utf8')
			.split('\n')
			.filter((l) => l.split(' ')[2] === 'bpf' && l.split(' ')[1] === '/sys/fs/bpf');
		if (mounts.length > 1)
			add(
				'warning',
				'bpffs',
				`mounted ${mounts.length} times at /sys/fs/bpf: older pins are hidden`,
				'umount the upper ones',
			);
	} catch (e) {
		add('warning', 'bpffs', sentence(e), 'mount -t bpf bpf /sys/fs/bpf');
	}
	const cgroup = cgroupRoot();
	if (cgroup !== undefined) add('ok', 'cgroup2', cgroup);
	else
		add(
			'warning',
			'cgroup2',
			'not mounted: processes of this node cannot dial published ports on it',
			'mount -t cgroup2 none /sys/fs/cgroup',
		);
	try {
		const { probe } = await import('libbpf-ts');
		const needed = ['ringbuf', 'xdp-link', 'batch'] as const;
		const missing = needed.filter((f) => !probe(f));
		if (missing.length === 0) add('ok', 'BPF features', needed.join(', '));
		else add('error', 'BPF features', `missing: ${missing.join(', ')}`, 'use a kernel that has them, as root');
		add('ok', 'TC attachment', probe('tcx') ? 'tcx links' : 'clsact filters (tcx links need Linux 6.6)');
	} catch (e) {
		add('error', 'libbpf', sentence(e), 'install libbpf (Debian: libbpf1)');
	}
	// Only who has a secret, or may want one, is told: most clusters have no encrypted network.
	const noEsp = await whyNoEsp(run);
	if (noEsp === undefined) add('ok', 'encryption', 'this kernel has IPsec ESP and xfrm interfaces');
	else
		add(
			config?.datapath.secretFile === undefined ? 'ok' : 'error',
			'encryption',
			`encrypted networks are refused: ${noEsp.split(': boot ')[0]}`,
			'a distribution’s kernel has it; without encrypted networks it is not needed',
		);
	if (config?.datapath.secretFile !== undefined) {
		try {
			readSecret(config.datapath.secretFile);
			add(
				'ok',
				'secret',
				`${config.datapath.secretFile}; UDP ${config.datapath.keyPort} and IP protocol 50 must be open between nodes`,
			);
		} catch (e) {
			add('error', 'secret', sentence(e));
		}
	}
	const s = sources();
	const clang = await run('clang', ['--version']).then(
		(t) => t.split('\n')[0]!,
		() => undefined,
	);
	if (s.objectDir !== undefined) add('ok', 'programs', `compiled beforehand: ${s.objectDir}`);
	else if (clang !== undefined) add('ok', 'programs', `compiled at start by ${clang}`);
	else
		add(
			'error',
			'programs',
			'neither clang nor compiled objects',
			'install clang, or an installation with compiled objects',
		);
	for (const [tool, args] of [
		['ip', ['-V']],
		['bridge', ['-V']],
		['ethtool', ['--version']],
		['ss', ['-V']],
		['nft', ['--version']],
	] as const) {
		const there = await run(tool, args).then(
			() => true,
			() => false,
		);
		if (!there)
			add(
				tool === 'nft' || tool === 'ethtool' ? 'warning' : 'error',
				tool,
				'not installed',
				'install iproute2, ethtool, nftables',
			);
	}

	try {
		const links = await readLinks(run);
		const chosen = chooseUplinks(
			links,
			config?.uplinks,
			new Set((await defaultRoutes(run)).map((r) => r.device)),
			new Set(),
		);
		for (const r of chosen.refused) add('error', `uplink ${r.name}`, r.reason);
		if (chosen.uplinks.length === 0 && chosen.refused.length === 0) {
			add('error', 'uplinks', 'no Ethernet device has a global address or the default route', 'set uplinks');
		}
		for (const { link, l3 } of chosen.uplinks) {
			const name = `uplink ${link.name}`;
			const info = await run('ethtool', ['-i', link.name]).catch(() => '');
			const driver = /^driver: (.+)$/m.exec(info)?.[1] ?? link.kind ?? '?';
			add('ok', name, `${driver}, ${globalAddresses(l3).join(' ') || 'no global address'}, MTU ${l3.mtu}`);
			if (globalAddresses(l3).length === 0) add('warning', name, 'has no global address: clients cannot dial it');
			if (l3.mtu <= 1500) {
				add(
					'warning',
					name,
					`MTU ${l3.mtu}: replies by tunnel lose 50 bytes, so TCP's MSS is clamped and large UDP is fragmented`,
					'an MTU of 1550 or more between the nodes avoids it',
				);
			}
			const on = parseFeatures(await run('ethtool', ['-k', link.name]).catch(() => ''));
			const off = ['rx-vlan-offload', 'large-receive-offload'].filter((f) => on.has(f));
			if (off.length > 0)
				add(
					'warning',
					name,
					`${off.join(', ')} on: they hide frames from XDP`,
					'the agent turns them off while it is attached',
				);
			const rp = [
				sysctl('net/ipv4/conf/all/rp_filter'),
				sysctl(`net/ipv4/conf/${l3.name.replaceAll('.', '/')}/rp_filter`),
			];
			if (rp.includes('1')) {
				add(
					'warning',
					name,
					'rp_filter is strict: the kernel drops what comes in by another interface than it would answer by',
					`sysctl net.ipv4.conf.${l3.name}.rp_filter=2`,
				);
			}
		}
	} catch (e) {
		add('error', 'uplinks', sentence(e));
	}
	const vxlanPort = config?.datapath.vxlanPort ?? 4789;
	if (!(await udpPortFree(vxlanPort))) {
		add('ok', 'VXLAN port', `UDP ${vxlanPort} is in use (Docker's overlay, usually): shared, told apart by the VNI`);
	}

	if (o.format === 'json') print(JSON.stringify({ findings: found }, null, 2));
	else {
		print(
			table(
				['', 'WHAT', 'FINDING', 'WHAT TO DO'],
				found.map((f) => [f.level === 'ok' ? 'ok' : f.level.toUpperCase(), f.what, f.finding, f.advice]),
			),
		);
	}
	const errors = found.filter((f) => f.level === 'error');
	if (errors.length > 0) {
		throw new BeelineError(
			'UNFIT',
			`${errors.length} ${errors.length === 1 ? 'error' : 'errors'}: ${errors.map((e) => e.what).join(', ')}`,
		);
	}
}
