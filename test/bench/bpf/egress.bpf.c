/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* uplink_tc_egress as it is, behind a wrapper that puts the packet back (uplink.bpf.c says why it is included). */
#include "uplink_tc.bpf.c"
#include "wrap.h"

__attribute__((noinline, weak)) int target(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_UPLINK_TC_EGRESS, &p, egress(skb, &p));
}

WRAP_TC(w_egress, target)
