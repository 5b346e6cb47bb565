/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * BPF_PROG_TEST_RUN repeats a program on the same buffer and does not undo what it did. A wrapper chooses the flow,
 * calls the measured program as a subprogram, and puts the frame back. Its cost is part of every row; row `null` shows it.
 */
#ifndef BENCH_WRAP_H
#define BENCH_WRAP_H

#include <linux/types.h>

#define FRAME 112			/* bytes put back at most: a multiple of 8 */
#define PLAIN 56			/* Ethernet, IPv4, TCP */
#define TUNNELLED 104			/* the same behind outer headers of 50 bytes */

__u64 frame_words[FRAME / 8];
__u32 frame_bytes;
__u32 flow_mask;			/* flows - 1; 0: the frame's own flow */
__u32 flow_base;			/* first client address, host order */
__u64 turn;
__u64 actions[8];

/* An odd multiplier is a bijection on [0, mask]: every flow once a round, in no order that a cache would like. */
static __always_inline __u32 next_flow(void)
{
	__u32 n = turn++;

	return (n * 2654435761u) & flow_mask;
}

/* `addr`, `port`: offsets of the client's in the frame. */
static __always_inline void put_flow(void *data, __u32 addr, __u32 port)
{
	__u32 i = next_flow();

	*(__u32 *)(data + addr) = __builtin_bswap32(flow_base + (i >> 14));
	*(__u16 *)(data + port) = __builtin_bswap16(1024 + (i & 0x3fff));
}

/* `size`: bytes put back; `at`: where the frame whose flow is varied begins. */
#define WRAP_XDP(name, target, size, at)						\
SEC("xdp")										\
int name(struct xdp_md *ctx)								\
{											\
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;	\
											\
	if (data + size > end)								\
		return XDP_ABORTED;							\
	if (flow_mask)									\
		put_flow(data, at + 26, at + 34);					\
	int action = target(ctx);							\
	int meta = (int)(ctx->data - ctx->data_meta);					\
	if (meta && bpf_xdp_adjust_meta(ctx, meta))					\
		return XDP_ABORTED;							\
	__u64 len = (__u64)ctx->data_end - (__u64)ctx->data;				\
	asm volatile("" : "+r"(len));							\
	int grown = (int)len - (int)frame_bytes;						\
	if (grown && bpf_xdp_adjust_head(ctx, grown))					\
		return XDP_ABORTED;							\
	data = (void *)(long)ctx->data;							\
	end = (void *)(long)ctx->data_end;						\
	if (data + size > end)								\
		return XDP_ABORTED;							\
	__u64 *to = data;								\
	_Pragma("unroll") for (int i = 0; i < size / 8; i++)				\
		to[i] = frame_words[i];							\
	actions[action & 7]++;								\
	return action;									\
}

/*
 * Live frames (BPF_F_TEST_XDP_LIVE_FRAMES) leave by the wire, and their pages come back as they were left: the frame is
 * written before the program runs.
 */
#define WRAP_LIVE(name, target)								\
SEC("xdp")										\
int name(struct xdp_md *ctx)								\
{											\
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;	\
											\
	if (data + PLAIN > end)								\
		return XDP_ABORTED;							\
	__u64 *to = data;								\
	_Pragma("unroll") for (int i = 0; i < PLAIN / 8; i++)				\
		to[i] = frame_words[i];							\
	if (flow_mask)									\
		put_flow(data, 26, 34);							\
	int action = target(ctx);							\
	actions[action & 7]++;								\
	return action;									\
}

/* What leaves: a client is its destination. */
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

#endif
