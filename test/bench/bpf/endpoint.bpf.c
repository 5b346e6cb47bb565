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

/* A reply's client is its destination. */
#define WRAP_TC(name, called)								\
SEC("tc")										\
int name(struct __sk_buff *skb)								\
{											\
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;	\
											\
	if (data + PLAIN > end)								\
		return TC_ACT_SHOT;							\
	if (flow_mask)									\
		put_flow(data, 30, 36);							\
	int action = called(skb);							\
	skb->mark = 0;									\
	data = (void *)(long)skb->data;							\
	end = (void *)(long)skb->data_end;						\
	if (data + PLAIN > end)								\
		return TC_ACT_SHOT;							\
	__u64 *to = data;								\
	_Pragma("unroll") for (int i = 0; i < PLAIN / 8; i++)				\
		to[i] = frame_words[i];							\
	actions[action & 7]++;								\
	return action;									\
}

WRAP_TC(w_endpoint, target)
WRAP_TC(w_null_tc, nothing)
