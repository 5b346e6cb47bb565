/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* endpoint_tc as it is, behind a wrapper that puts the packet back (uplink.bpf.c says why it is included). */
#include "endpoint_tc.bpf.c"
#include "wrap.h"

__attribute__((noinline, weak)) int target(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_ENDPOINT_TC, &p, walk(skb, &p));
}

__attribute__((noinline, weak)) int nothing(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

WRAP_TC(w_endpoint, target)
WRAP_TC(w_null_tc, nothing)
