/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An IPv4 datagram that fits its link but not the tunnel, and may be fragmented: two fragments, each encapsulated.
 *
 *	original  eth | IP | UDP | payload ................................
 *	first     outer | eth | IP (MF) | UDP | payload to a multiple of 8
 *	second    outer | eth | IP (offset) | rest
 *
 * The second is a clone of the original skb, sent once more through this program with a mark, and written in place: its
 * outer UDP header lies where the datagram's UDP header lay. That is not thrift. The stack may have left the
 * checksum open (CHECKSUM_PARTIAL: to be summed up from there, and stored 6 bytes on); no helper closes it, but in
 * this place what gets closed is the outer header's checksum, which RFC 7348 allows. In the first fragment the
 * open checksum gets a start value that makes the sum over the fragment come out as the whole datagram's.
 */
#ifndef BEELINE_FRAGMENT_H
#define BEELINE_FRAGMENT_H

#include "tc.h"

struct cut {
	__u32 header;	/* bytes of the IP header */
	__u32 at;	/* bytes of IP payload in the first fragment */
	__u32 payload;	/* bytes of IP payload */
	__u16 limit;
	bool open;	/* the stack left the UDP checksum open */
	__u16 check;	/* of the whole datagram */
	__u16 first;	/* folded sum of the first fragment's payload, checksum field taken as zero */
};

/* bpf_csum_diff() wants whole chunks, so what lies behind the datagram must be zero. */
INLINE void clear(struct bytes *b)
{
	__u64 *w = (__u64 *)b->b;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_FRAGMENTED / 8; i++) {
		w[i] = 0;
		asm volatile("" ::: "memory");	/* or clang makes it a memset, which BPF has not */
	}
}

INLINE __u64 sum_chunks(struct bytes *b)
{
	__s64 sum = 0;

#pragma unroll
	for (int i = 0; i < MAX_FRAGMENTED; i += 512)
		sum = bpf_csum_diff(0, 0, (__be32 *)(b->b + i), 512, sum);
	return (__u32)sum;
}

/* `n`: at most MAX_FRAGMENTED, at least 1. The barrier keeps what the verifier of 6.1 can follow. */
INLINE int load(struct __sk_buff *skb, __u32 from, struct bytes *to, __u32 n)
{
	asm volatile("" : "+r"(n));
	n = ((n - 1) & (MAX_FRAGMENTED - 1)) + 1;
	return bpf_skb_load_bytes(skb, from, to, n);
}

/* Works out where to cut and, for a UDP datagram that is no fragment yet, what its checksum is. */
GLOBAL int plan_cut(struct __sk_buff *skb, const struct packet *p, struct cut *c)
{
	__u32 zero = 0;
	struct bytes *b = bpf_map_lookup_elem(&fragment_scratch, &zero);
	__be16 check;

	if (!p || !c || !b)
		return -1;
	c->header = p->l4 - ETH_HLEN;
	c->payload = skb->len - p->l4;
	c->at = (c->limit - c->header) & ~7u;
	c->open = false;
	if (c->at >= c->payload || c->payload > MAX_FRAGMENTED || c->payload - c->at + c->header > c->limit || c->at < 8)
		return -1;
	if (p->fragment != NOT_FRAGMENT)
		return 0;

	clear(b);
	if (load(skb, p->l4, b, c->payload))
		return -1;
	check = *(__be16 *)(b->b + 6);
	*(__be16 *)(b->b + 6) = 0;

	__u64 pseudo = (__u64)p->src.s6_addr32[3] + p->dst.s6_addr32[3] + bpf_htons(IPPROTO_UDP) + *(__be16 *)(b->b + 4);
	__u16 whole = ~fold(sum_chunks(b) + pseudo);

	/* A closed checksum that happens to equal the start value of an open one: treated as open, and comes out right. */
	c->open = check == fold(pseudo) && check != whole;
	c->check = check && !c->open ? check : whole ? whole : 0xffff;
	if (!c->open)
		return 0;
	clear(b);
	if (load(skb, p->l4, b, c->at))
		return -1;
	*(__be16 *)(b->b + 6) = 0;
	c->first = fold(sum_chunks(b));
	return 0;
}

INLINE int set_fragment(struct __sk_buff *skb, __u32 ip, __u32 len, __u16 or_bits, __u16 skip)
{
	struct iphdr h;

	if (bpf_skb_load_bytes(skb, ip, &h, sizeof(h)))
		return -1;
	h.tot_len = bpf_htons(len);
	h.frag_off = bpf_htons((bpf_ntohs(h.frag_off) + skip) | or_bits);
	__u32 options = (h.ihl & 15) * 4 - 20;

	if (options)
		return -1;
	h.check = 0;
	h.check = ip_checksum(&h);
	return bpf_skb_store_bytes(skb, ip, &h, sizeof(h), 0);
}

/* Leaves the first fragment in the skb, not yet encapsulated. */
GLOBAL int make_first(struct __sk_buff *skb, const struct packet *p, const struct cut *c)
{
	if (!p || !c)
		return -1;
	if (bpf_skb_change_tail(skb, p->l4 + c->at, 0) ||
	    set_fragment(skb, ETH_HLEN, c->header + c->at, IP_MF, 0))
		return -1;
	if (!c->open)
		return 0;
	/* ~(first + start) == check */
	__u16 start = fold((__u64)(__u16)~c->check + (__u16)~c->first);

	return bpf_skb_store_bytes(skb, p->l4 + 6, &start, 2, 0);
}

/* Leaves the second fragment in the skb, encapsulated. */
GLOBAL int make_second(struct __sk_buff *skb, const struct packet *p, const struct cut *c, const struct node *n,
		       const struct mac_key *to)
{
	struct settings *s = settings_row();
	__u32 zero = 0;
	struct bytes *b = bpf_map_lookup_elem(&fragment_scratch, &zero);

	if (!p || !c || !n || !to || !s || !b)
		return -1;
	__u32 rest = c->payload - c->at, frame = ETH_HLEN + c->header + rest;
	struct ethhdr *inner = (void *)b->b + ENCAP_LEN;

	if (c->header != 20 || rest == 0 || rest > 1024 ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, b->b + ENCAP_LEN + ETH_HLEN, 20))
		return -1;
	/* Kernel 6.1 does not see from `rest == 0` above that the length is at least 1. */
	asm volatile("" : "+r"(rest));
	rest = ((rest - 1) & 1023) + 1;
	if (bpf_skb_load_bytes(skb, p->l4 + c->at, b->b + ENCAP_LEN + ETH_HLEN + 20, rest))
		return -1;
	fill_outer((struct outer *)b->b, s, n, frame, p->fragment_id * 0x9e3779b1u);
	if (c->open) {
		struct outer *o = (struct outer *)b->b;

		o->udp.check = fold((__u64)s->vtep + n->vtep + bpf_htons(IPPROTO_UDP) + o->udp.len);
	}
	inner->h_proto = bpf_htons(ETH_P_IP);
	copy_mac(inner->h_dest, to->mac);
	fill_source_mac(inner->h_source, s->vtep, 0);

	__u32 total = ENCAP_LEN + frame;

	if (bpf_skb_change_tail(skb, total, 0))
		return -1;
	asm volatile("" : "+r"(total));
	total = ((total - 1) & (MAX_FRAGMENTED - 1)) + 1;
	if (bpf_skb_store_bytes(skb, 0, b->b, total, BPF_F_INVALIDATE_HASH))
		return -1;
	if (set_fragment(skb, ENCAP_LEN + ETH_HLEN, c->header + c->payload - c->at, 0, c->at / 8))
		return -1;
	skb->mark = s->mark + SKB_OURS;
	return 0;
}

/*
 * Called twice for each datagram, the second time for its clone. Leaves an encapsulated fragment, ready to be redirected.
 */
GLOBAL int fragment_skb(struct __sk_buff *skb, const struct packet *p, const struct node *n, const struct mac_key *to,
			__u32 second)
{
	struct settings *s = settings_row();
	struct cut c = {};

	if (!p || !n || !to || !s)
		return -1;
	c.limit = mesh_mtu(s, n) - INNER_OVERHEAD;
	if (plan_cut(skb, p, &c))
		return -1;
	if (second)
		return make_second(skb, p, &c, n, to);
	return make_first(skb, p, &c) ? -1 : encap_skb(skb, n, to);
}

#endif
