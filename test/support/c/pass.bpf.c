/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP_TX and redirects into a veth need NAPI on the receiving end, and a program there is what turns it on. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
