import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Headers and programs of the repository; tests run from dist/test/loader. */
export const BPF_DIR = fileURLToPath(new URL('../../../bpf', import.meta.url));

const MAP_USE = `
static __always_inline void touch(void)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (s && s->flags & SETTINGS_TRACE) {
		struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
		if (e) {
			__builtin_memset(e, 0, sizeof(*e));
			e->time_ns = bpf_ktime_get_boot_ns();
			e->sport = bpf_htons(4242);
			e->src.s6_addr[10] = 0xff;
			e->src.s6_addr[11] = 0xff;
			e->src.s6_addr[12] = 10;
			e->src.s6_addr[15] = 1;
			e->verdict = ENCAP_NODE;
			bpf_ringbuf_submit(e, 0);
		}
	}
}
`;
const HEAD = `#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "maps.h"
char LICENSE[] SEC("license") = "Dual BSD/GPL";
${MAP_USE}`;

/** The smallest programs with the names and sections of the real ones: each uses the maps and passes. */
export const FIXTURE: Readonly<Record<string, string>> = {
	'uplink_xdp.bpf.c': `${HEAD}
/*VERSION*/
SEC("xdp") int uplink_xdp(struct xdp_md *ctx)
{
	__u32 key = PASS_NOT_OURS;
	touch();
	struct packets_bytes *c = bpf_map_lookup_elem(&verdict_counters, &key);
	if (c) {
		c->packets += STEP;
		c->bytes += ctx->data_end - ctx->data;
	}
	return XDP_PASS;
}
SEC("xdp.frags") int uplink_xdp_frags(struct xdp_md *ctx) { touch(); return XDP_PASS; }
`,
	'uplink_tc.bpf.c': `${HEAD}
SEC("tc") int uplink_tc(struct __sk_buff *skb) { touch(); return -1; }
SEC("tc") int uplink_tc_egress(struct __sk_buff *skb) { touch(); return -1; }
`,
	'overlay_tc.bpf.c': `${HEAD}
SEC("tc") int overlay_tc(struct __sk_buff *skb) { touch(); return -1; }
`,
	'esp_tc.bpf.c': `${HEAD}
SEC("tc") int esp_tc(struct __sk_buff *skb) { touch(); return -1; }
`,
	'endpoint_tc.bpf.c': `${HEAD}
SEC("tc") int endpoint_tc(struct __sk_buff *skb) { touch(); return -1; }
`,
	'gateway_tc.bpf.c': `${HEAD}
SEC("tc") int gateway_tc(struct __sk_buff *skb) { touch(); return -1; }
`,
	'socket.bpf.c': `${HEAD}
${['connect4', 'connect6', 'sendmsg4', 'sendmsg6', 'recvmsg4', 'recvmsg6', 'getpeername4', 'getpeername6']
	.map((p) => `SEC("cgroup/${p}") int ${p}(struct bpf_sock_addr *ctx) { touch(); return 1; }`)
	.join('\n')}
`,
};

export interface Workshop {
	/** C files and headers. */
	readonly bpf: string;
	readonly cache: string;
	readonly run: string;
	readonly pinRoot: string;
	write(name: string, text: string): void;
	done(): void;
}

/** Fixture programs beside the real headers, with directories of their own for cache, locks and pins. */
export function workshop(name: string): Workshop {
	const dir = mkdtempSync(join(tmpdir(), 'bl-ldr-'));
	const bpf = join(dir, 'bpf');
	mkdirSync(bpf);
	for (const f of readdirSync(BPF_DIR)) if (f.endsWith('.h')) cpSync(join(BPF_DIR, f), join(bpf, f));
	const write = (file: string, text: string) => writeFileSync(join(bpf, file), text);
	for (const [file, text] of Object.entries(FIXTURE)) write(file, text.replace('STEP', '1'));
	const pinRoot = `/sys/fs/bpf/bl-ldr-${name}-${process.pid}`;
	return {
		bpf,
		cache: join(dir, 'cache'),
		run: join(dir, 'run'),
		pinRoot,
		write,
		done() {
			rmSync(dir, { recursive: true, force: true });
			rmSync(pinRoot, { recursive: true, force: true });
		},
	};
}

export function sh(command: string): string {
	return execFileSync('sh', ['-c', command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** Maps small enough for many tests in a row. */
export const SMALL: Readonly<Record<string, number>> = {
	conntrack: 1024,
	conntrack_half_open: 1024,
	conntrack_old: 1024,
	revnat: 4096,
	revnat_new: 1024,
	fragments: 256,
};

export const skipped = (): string | undefined => (process.getuid?.() === 0 ? undefined : 'needs root (CAP_BPF)');
