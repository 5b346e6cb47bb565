import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';

/**
 * Says that a test was not run, and why, in the words that test/run.ts lists. A skip is printed, never silent.
 *
 * @param name of the test or the file
 * @param reason what is missing, and how to have it
 */
export function skip(name: string, reason: string): void {
	console.log(`SKIP ${name}: ${reason}`);
}

/** Why this process cannot make network namespaces, or undefined. */
export function cannotUseNamespaces(): string | undefined {
	if (process.getuid?.() !== 0) return 'needs root (run as root: network namespaces and BPF programs are made)';
	for (const [tool, pkg] of [
		['ip', 'iproute2'],
		['nsenter', 'util-linux'],
		['ethtool', 'ethtool'],
	] as const)
		if (!hasTool(tool)) return `needs ${tool} (install the package ${pkg}, or run scripts/setup)`;
	return undefined;
}

/** Why this process cannot load BPF programs, or undefined. */
export function cannotLoadBpf(): string | undefined {
	if (process.getuid?.() !== 0) {
		const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
		const bits = BigInt(`0x${effective}`);
		if (((bits >> 39n) & 1n) === 0n || ((bits >> 12n) & 1n) === 0n)
			return 'needs CAP_BPF and CAP_NET_ADMIN (run as root)';
	}
	if (!existsSync('/sys/kernel/btf/vmlinux')) return 'needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)';
	return undefined;
}

/** Why no capture can be decoded, or undefined. */
export function cannotDecode(): string | undefined {
	return hasTool('tshark') ? undefined : 'needs tshark (install the package tshark, or run scripts/setup)';
}

/** Whether a command is in PATH. */
export function hasTool(name: string): boolean {
	return spawnSync('sh', ['-c', `command -v "${name}"`], { stdio: 'ignore' }).status === 0;
}
