/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The floor: the least that a VXLAN load balancer can do, each row a bit more than the one before. No IPv6, no ICMP, no
 * fragments, no settings, no next hops, one counter. What the datapath costs is told as a ratio to these rows.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "wrap.h"

#define INLINE static __always_inline
#define TARGET __attribute__((noinline, weak))
#define RING 65537

struct flow {
	__u32 src, dst;
	__u16 sport, dport;
	__u8 proto, pad[3];
};

struct vip_key {
	__u32 vip;
	__u16 port;
	__u8 proto, pad;
};

struct position {
	__u32 pos, flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, struct vip_key);
	__type(value, struct position);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RING);
	__type(key, __u32);
	__type(value, __u32);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, struct flow);
	__type(value, struct position);
} lru SEC(".maps");

struct counter {
	__u64 packets, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

struct outer {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__be32 flags, vni;
} __attribute__((packed));

INLINE int parse(struct xdp_md *ctx, struct flow *f)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end)
		return -1;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff))
		return -1;
	if (ip->protocol != IPPROTO_TCP)
		return -1;
	f->src = ip->saddr;
	f->dst = ip->daddr;
	f->sport = tcp->source;
	f->dport = tcp->dest;
	f->proto = ip->protocol;
	return 0;
}

INLINE __u32 rol32(__u32 w, int s)
{
	return (w << s) | (w >> (32 - s));
}

INLINE __u32 jhash3(__u32 a, __u32 b, __u32 c)
{
	a += 0xdeadbeef;
	b += 0xdeadbeef;
	c += 0xdeadbeef;
	c ^= b; c -= rol32(b, 14);
	a ^= c; a -= rol32(c, 11);
	b ^= a; b -= rol32(a, 25);
	c ^= b; c -= rol32(b, 16);
	a ^= c; a -= rol32(c, 4);
	b ^= a; b -= rol32(a, 14);
	c ^= b; c -= rol32(b, 24);
	return c;
}

INLINE __u32 hash_of(const struct flow *f)
{
	return jhash3(f->src, f->dst, ((__u32)f->sport << 16) | f->dport);
}

INLINE void count(struct xdp_md *ctx, __u32 pos)
{
	__u32 i = pos & 63;
	struct counter *c = bpf_map_lookup_elem(&counters, &i);

	if (c) {
		c->packets++;
		c->bytes += ctx->data_end - ctx->data;
	}
}

INLINE int vxlan(struct xdp_md *ctx, __u32 hash, __u32 to)
{
	__u32 len = ctx->data_end - ctx->data, sum = 0;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct outer)))
		return XDP_DROP;

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct outer *o = data;
	struct ethhdr *in = (void *)(o + 1);
	__u16 *words = (void *)&o->ip;

	if ((void *)(in + 1) > end)
		return XDP_DROP;
	__builtin_memcpy(o->eth.h_dest, "\x02\x00\x00\x00\x00\x05", 6);
	__builtin_memcpy(o->eth.h_source, "\x02\x00\x00\x00\x00\x06", 6);
	o->eth.h_proto = bpf_htons(ETH_P_IP);
	__builtin_memcpy(in->h_dest, "\x02\x42\x00\x00\x00\x07", 6);
	__builtin_memcpy(in->h_source, "\x02\x42\x00\x00\x00\x08", 6);
	o->ip.ihl = 5;
	o->ip.version = 4;
	o->ip.tos = 0;
	o->ip.tot_len = bpf_htons(len + 36);
	o->ip.id = 0;
	o->ip.frag_off = bpf_htons(0x4000);
	o->ip.ttl = 64;
	o->ip.protocol = IPPROTO_UDP;
	o->ip.saddr = bpf_htonl(0x0a000001);
	o->ip.daddr = to;
	o->ip.check = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	o->ip.check = ~sum;
	o->udp.source = bpf_htons(0xc000 | (hash & 0x3fff));
	o->udp.dest = bpf_htons(4789);
	o->udp.len = bpf_htons(len + 16);
	o->udp.check = 0;
	o->flags = bpf_htonl(0x08000000);
	o->vni = bpf_htonl(4096 << 8);
	return XDP_TX;
}

TARGET int f_null(struct xdp_md *ctx)
{
	return XDP_TX;
}

TARGET int f_parse_drop(struct xdp_md *ctx)
{
	struct flow f = {};

	if (parse(ctx, &f))
		return XDP_PASS;
	return (f.sport ^ f.dport ^ f.src) == 0x12345 ? XDP_PASS : XDP_DROP;
}

/* Parse, VIP, ring, one counter, encapsulation: the row to be compared with. */
TARGET int f_lb_vxlan_stateless(struct xdp_md *ctx)
{
	struct flow f = {};

	if (parse(ctx, &f))
		return XDP_PASS;
	struct vip_key k = { .vip = f.dst, .port = f.dport, .proto = f.proto };
	struct position *v = bpf_map_lookup_elem(&vips, &k);

	if (!v)
		return XDP_PASS;
	__u32 h = hash_of(&f), i = h % RING, *pos = bpf_map_lookup_elem(&ring, &i);

	if (!pos)
		return XDP_DROP;
	count(ctx, *pos);
	return vxlan(ctx, h, bpf_htonl(0x0a000000 | (*pos & 0xffff)));
}

/* The same with a record of each flow, as most balancers keep one. */
TARGET int f_lb_vxlan(struct xdp_md *ctx)
{
	struct flow f = {};

	if (parse(ctx, &f))
		return XDP_PASS;
	struct vip_key k = { .vip = f.dst, .port = f.dport, .proto = f.proto };
	struct position *v = bpf_map_lookup_elem(&vips, &k);

	if (!v)
		return XDP_PASS;
	__u32 h = hash_of(&f), pos;
	struct position *known = bpf_map_lookup_elem(&lru, &f);

	if (known) {
		pos = known->pos;
	} else {
		__u32 i = h % RING, *slot = bpf_map_lookup_elem(&ring, &i);

		if (!slot)
			return XDP_DROP;
		struct position n = { .pos = pos = *slot };

		bpf_map_update_elem(&lru, &f, &n, BPF_ANY);
	}
	count(ctx, pos);
	return vxlan(ctx, h, bpf_htonl(0x0a000000 | (pos & 0xffff)));
}

WRAP_XDP(w_null, f_null, PLAIN, 0)
WRAP_XDP(w_parse_drop, f_parse_drop, PLAIN, 0)
WRAP_XDP(w_lb_vxlan_stateless, f_lb_vxlan_stateless, PLAIN, 0)
WRAP_XDP(w_lb_vxlan, f_lb_vxlan, PLAIN, 0)
WRAP_LIVE(l_null, f_null)
WRAP_LIVE(l_lb_vxlan_stateless, f_lb_vxlan_stateless)

char _license[] SEC("license") = "Dual BSD/GPL";
