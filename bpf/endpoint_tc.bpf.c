/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TC ingress on the host side of each endpoint's veth: what a task sends. */
#include "reply.h"

INLINE int walk(struct __sk_buff *skb, struct packet *p)
{
	struct settings *s = settings_row();

	if (!s || parse_skb(skb, p))
		return PASS_NOT_OURS;
	return reply(skb, p, s, false);
}

SEC("tc")
int endpoint_tc(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_ENDPOINT_TC, &p, walk(skb, &p));
}

char _license[] SEC("license") = "Dual BSD/GPL";
