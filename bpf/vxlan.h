/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * RFC 7348. What a frame of our VNI is lies in its inner MAC addresses:
 *
 *	destination  06:h:h:h:h:h   a packet for the backend whose stable key hashes to h…
 *	             0a:0:0:0:0:0   a reply for a client of the receiving node
 *	source       06:f:v:v:v:v   v.v.v.v: VTEP of the ingress node; f: FRAME_… flags
 */
#ifndef BEELINE_VXLAN_H
#define BEELINE_VXLAN_H

#include "checksum.h"
#include "maps.h"

#define VXLAN_FLAGS bpf_htonl(0x08000000)
#define TO_BACKEND 0x06
#define TO_CLIENT 0x0a
#define FRAME_REBALANCED 0x01	/* of a flow that was passed on */
#define FRAME_AGAIN 0x02		/* twice: not again */

/* RFC 5342 reserves these for local experiments. */
#define ETH_P_PROBE 0x88b5
#define ETH_P_PROBE_ANSWER 0x88b6

#define ENCAP_LEN 50		/* bytes before the inner frame */
#define OUTER_IP_LEN 36		/* IP, UDP and VXLAN headers */
#define INNER_OVERHEAD 50	/* between the inner and the outer IP packet's length */

/* Bytes of the longest outer IP packet that carries the mesh's packets to a node. */
INLINE __u16 mesh_mtu(const struct settings *s, const struct node *n)
{
	return s->mesh_mtu && s->mesh_mtu < n->mtu ? s->mesh_mtu : n->mtu;
}

/* Largest segment that fits behind a way of `mtu` once encapsulated. */
INLINE __u16 tunnel_mss(__u16 mtu, __u8 family)
{
	return mtu - INNER_OVERHEAD - (family == 4 ? 40 : 60);
}

struct vxlan_header {
	__be32 flags;
	__be32 vni;
};

struct outer {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan_header vxlan;
} __attribute__((packed, aligned(2)));	/* two, or clang would write it byte by byte */

_Static_assert(sizeof(struct outer) == ENCAP_LEN, "outer headers");

/* After a probe's inner Ethernet header. The answer carries the answering node's digest. */
struct probe {
	__u64 nonce;
	__u64 digest;
	__be32 via;	/* not zero: answer to this VTEP (the source address is another's: a proof of DSR) */
	__be32 pad;
} __attribute__((packed));

/* Both addresses of a node's row at once: they lie there as in the header. `o` is 8-byte aligned where it is on the stack. */
INLINE void copy_macs(struct outer *o, const struct node *n)
{
	_Static_assert(offsetof(struct node, smac) == offsetof(struct node, dmac) + 6, "as in an Ethernet header");
	*(__u64 *)(void *)o = *(const __u64 *)n->dmac;
	*(__u32 *)((void *)o + 8) = *(const __u32 *)(n->smac + 2);
}

/* `len`: bytes of the inner frame. IPv4 checksum as the kernel computes it, UDP checksum 0 (RFC 7348 section 5). */
INLINE void fill_outer(struct outer *o, const struct settings *s, const struct node *n, __u32 len, __u32 hash)
{
	__be32 from = s->vtep, to = n->vtep;

	copy_macs(o, n);
	o->eth.h_proto = bpf_htons(ETH_P_IP);
	*(__be16 *)&o->ip = bpf_htons(0x4500);	/* version, IHL; TOS */
	o->ip.tot_len = bpf_htons(len + OUTER_IP_LEN);
	o->ip.id = 0;
	o->ip.frag_off = bpf_htons(IP_DF);
	*(__be16 *)&o->ip.ttl = bpf_htons(64 << 8 | IPPROTO_UDP);
	o->ip.saddr = from;
	o->ip.daddr = to;
	/* Words of the header that are constant: 4500 + 0000 + 4000 + 4011. */
	__u64 sum = (__u64)bpf_htons(0x4500) + bpf_htons(0x4000) + bpf_htons(0x4011) + o->ip.tot_len + (__u64)from + to;

	o->ip.check = ~fold(sum);
	o->udp.source = bpf_htons(0xc000 | (hash >> 16 & 0x3fff));
	o->udp.dest = s->vxlan_port;
	o->udp.len = bpf_htons(len + 16);
	o->udp.check = 0;
	o->vxlan.flags = VXLAN_FLAGS;
	o->vxlan.vni = s->vni;
}

INLINE void fill_source_mac(__u8 *mac, __be32 vtep, __u8 flags)
{
	mac[0] = TO_BACKEND;
	mac[1] = flags;
	*(__u16 *)(mac + 2) = (__u16)vtep;
	*(__u16 *)(mac + 4) = (__u16)(vtep >> 16);
}

INLINE __be32 source_mac_vtep(const __u8 *mac)
{
	return (__u32) * (const __u16 *)(mac + 2) | (__u32) * (const __u16 *)(mac + 4) << 16;
}

#endif
