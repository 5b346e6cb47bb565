import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export function sh(command: string): string {
	return execFileSync('sh', ['-c', command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export const isRoot = process.getuid?.() === 0;

/**
 * Runs the calling test file inside a network namespace of its own, with a veth pair bl0 (index 1000, no program) and
 * bl1 (index 1001). Returns true inside. Outside it waits for the inner run and takes its exit status.
 */
export function insideNetns(url: string, name: string): boolean {
	if (process.env.BL_LDR_NETNS) return true;
	if (!isRoot) {
		console.log(`skipped: ${name} needs root (CAP_BPF, CAP_NET_ADMIN)`);
		return false;
	}
	const ns = `bl-ldr-${name}-${process.pid}`;
	sh(`ip netns add ${ns}`);
	try {
		const r = spawnSync('nsenter', [`--net=/run/netns/${ns}`, process.execPath, fileURLToPath(url)], {
			stdio: 'inherit',
			env: { ...process.env, BL_LDR_NETNS: ns },
		});
		process.exitCode = r.status ?? 1;
	} finally {
		sh(`ip netns del ${ns}`);
	}
	return false;
}

/** The pair, new: bl0 has 10.99.0.1 and sends ARP to bl1 when asked for 10.99.0.2. */
export function freshPair(): void {
	spawnSync('ip', ['link', 'del', 'bl0']);
	sh('ip link set lo up; ip link add bl0 index 1000 type veth peer name bl1 index 1001');
	sh('ip addr add 10.99.0.1/24 dev bl0; ip link set bl0 up; ip link set bl1 up');
}

export const BL1 = 1001;

/** A frame for testRun: Ethernet broadcast of a type nobody speaks. */
export const FRAME = Uint8Array.from({ length: 64 }, (_, i) => (i < 6 ? 0xff : i === 12 ? 0x88 : i === 13 ? 0xb5 : i));

export interface Workshop {
	readonly dir: string;
	readonly cache: string;
	readonly run: string;
	readonly pinRoot: string;
	path(file: string): string;
	write(file: string, text: string): string;
	done(): void;
}

export function workshop(name: string): Workshop {
	const dir = mkdtempSync(join(tmpdir(), 'bl-ldr-'));
	mkdirSync(join(dir, 'src'));
	const pinRoot = `/sys/fs/bpf/bl-ldr-${name}-${process.pid}`;
	const path = (file: string) => join(dir, 'src', file);
	return {
		dir,
		cache: join(dir, 'cache'),
		run: join(dir, 'run'),
		pinRoot,
		path,
		write(file, text) {
			writeFileSync(path(file), text);
			return path(file);
		},
		done() {
			rmSync(pinRoot, { recursive: true, force: true });
			rmSync(dir, { recursive: true, force: true });
		},
	};
}

export const SHARED_H = `#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#ifndef ENTRIES
#define ENTRIES 16
#endif
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, __u32);
} table SEC(".maps");
static __always_inline void count(__u32 i, __u64 n)
{
	__u64 *c = bpf_map_lookup_elem(&counters, &i);
	__u32 *t = bpf_map_lookup_elem(&table, &i);
	if (c)
		__sync_fetch_and_add(c, n + (t ? *t : 0));
}
char LICENSE[] SEC("license") = "GPL";
`;

export const ONE_C = `#include "shared.h"
const volatile __u32 step = 1;
SEC("xdp") int in_xdp(struct xdp_md *ctx) { count(0, step); return XDP_PASS; }
SEC("xdp.frags") int in_xdp_frags(struct xdp_md *ctx) { count(0, step); return XDP_PASS; }
`;

export const TWO_C = `#include "shared.h"
SEC("tc") int in_tc(struct __sk_buff *skb) { count(1, 1); return -1; }
SEC("tc") int in_tc_late(struct __sk_buff *skb) { count(3, 1); return -1; }
SEC("cgroup/connect4") int dial4(struct bpf_sock_addr *ctx) { count(2, 1); return 1; }
`;

/** Reads past the packet: every verifier refuses it. */
export const BAD_C = `#include "shared.h"
SEC("xdp") int in_xdp(struct xdp_md *ctx) { count(0, 1); return *(__u8 *)(long)ctx->data; }
`;

export function sources(w: Workshop): void {
	w.write('shared.h', SHARED_H);
	w.write('one.bpf.c', ONE_C);
	w.write('two.bpf.c', TWO_C);
}
