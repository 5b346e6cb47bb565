/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC ingress on each device that holds the gateway address of tasks: published ports that they dial. On a bridge's ports
 * too, where br_netfilter has not yet put fragments together; on the bridge itself for those that came a moment ago.
 */
#include "dial.h"

INLINE int walk(struct __sk_buff *skb, struct packet *p)
{
	struct settings *s = settings_row();

	if (!s || parse_skb(skb, p))
		return PASS_NOT_OURS;
	return dial(skb, p, s);
}

/* Counted with endpoint_tc: what tasks send. */
SEC("tc")
int gateway_tc(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_ENDPOINT_TC, &p, walk(skb, &p));
}

char _license[] SEC("license") = "Dual BSD/GPL";
