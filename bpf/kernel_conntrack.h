/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel's own conntrack (net/netfilter/nf_conntrack_bpf.c, since 5.18), which is a module on most systems: whether it can
 * be asked is known when the programs are loaded. The functions are weak: where the kernel has none, the verifier removes
 * the calls with the branch that has_kernel_conntrack closes.
 */
#ifndef BEELINE_KERNEL_CONNTRACK_H
#define BEELINE_KERNEL_CONNTRACK_H

#include "maps.h"

const volatile bool has_kernel_conntrack;

/* Looked at nowhere: a type of this kind is all that libbpf compares. */
struct nf_conn {
	unsigned long status;
};

/* struct bpf_ct_opts as it was first. Later kernels, where it is longer, tell by the length. */
struct kernel_ct_options {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;	/* out: of the packet within its connection */
	__u8 reserved[2];
};
_Static_assert(sizeof(struct kernel_ct_options) == 12, "kernels know the length");

#define KERNEL_CT_REPLY 1	/* IP_CT_DIR_REPLY */

extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *t, __u32 t_size,
					 struct kernel_ct_options *o, __u32 o_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *ct) __ksym __weak;

#endif
