/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The far end of a veth: counts what arrived, and ends it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 arrived;

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&arrived, 1);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
