/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about flows (RFC 792, RFC 4443): who they are about, and those that we send ourselves. */
#ifndef BEELINE_ICMP_H
#define BEELINE_ICMP_H

#include "checksum.h"
#include "maps.h"

/* Bytes of the offending IP packet that our own errors carry. */
#define QUOTE4 128
#define QUOTE6 256

INLINE bool is_icmp(const struct packet *p)
{
	return p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

INLINE bool is_icmp_error(const struct packet *p)
{
	if (p->family == 4)
		return p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		       p->icmp_type == ICMP_PARAMETERPROB;
	return p->icmp_type >= ICMPV6_DEST_UNREACH && p->icmp_type <= ICMPV6_PARAMPROB;
}

/* The flow that an error is about: the stack of four nested calls has no room for it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} quoted_scratch SEC(".maps");

/*
 * The packet that an error quotes, turned round: `q` is the flow as its client would send it (the quoted packet is a
 * reply). q->l4 is the offset of the quoted ports, *ip the offset of the quoted IP header.
 */
NOINLINE int parse_quoted(void *data, void *end, const struct packet *p, struct packet *q)
{
	__u32 at = (p->l4 & 0x3ff) + 8;
	__u8 *l4;

	q->fragment = NOT_FRAGMENT;
	q->family = p->family;
	q->len = p->len;
	q->ref = 0;
	q->seq = q->ack = 0;
	q->tcp = TCP_ACK;
	q->icmp_type = p->icmp_type;	/* says that `q` is no packet but what is known of a flow */
	if (p->family == 4) {
		struct iphdr *ip = data + at;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return -1;
		q->proto = ip->protocol;
		map_ipv4(&q->src, ip->daddr);
		map_ipv4(&q->dst, ip->saddr);
		if (ip->frag_off & bpf_htons(IP_OFFSET))
			return -1;
		at += ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = data + at;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return -1;
		q->proto = ip->nexthdr;
		q->src = ip->daddr;
		q->dst = ip->saddr;
		at += sizeof(*ip);
	}
	if (q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP)
		return -1;
	l4 = data + at;
	if ((void *)(l4 + 8) > end)
		return -1;
	q->sport = *(__be16 *)(l4 + 2);
	q->dport = *(__be16 *)l4;
	q->l4 = at;
	return 0;
}

/* Bytes of IP packet that our own errors are made of. */
INLINE __u32 error_header_len(const struct packet *p)
{
	return p->family == 4 ? 20 + 8 : 40 + 8;
}

INLINE __u32 error_quote_len(const struct packet *p)
{
	return p->family == 4 ? QUOTE4 : QUOTE6;
}

/*
 * "Fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443) about `p`, from its destination to its sender. The
 * frame has room for the headers in front of the quoted IP packet. `mtu`: bytes of IP packet that fit.
 */
NOINLINE int fill_too_big(void *data, void *end, const struct packet *p, __u16 mtu)
{
	struct ethhdr *eth = data;

	if (p->family == 4) {
		struct iphdr *ip = data + ETH_HLEN;
		struct icmp_header *icmp = (void *)(ip + 1);

		if ((void *)(icmp + 1) + QUOTE4 > end)
			return -1;
		eth->h_proto = bpf_htons(ETH_P_IP);
		*(__u8 *)ip = 0x45;
		ip->tos = 0;
		ip->tot_len = bpf_htons(20 + 8 + QUOTE4);
		ip->id = 0;
		ip->frag_off = bpf_htons(IP_DF);
		ip->ttl = 64;
		ip->protocol = IPPROTO_ICMP;
		ip->check = 0;
		ip->saddr = p->dst.s6_addr32[3];
		ip->daddr = p->src.s6_addr32[3];
		ip->check = ip_checksum(ip);
		icmp->type = ICMP_DEST_UNREACH;
		icmp->code = ICMP_FRAG_NEEDED;
		icmp->checksum = 0;
		icmp->frag_needed.unused = 0;
		icmp->frag_needed.mtu = bpf_htons(mtu);
		icmp->checksum = ~fold((__u32)bpf_csum_diff(0, 0, (__be32 *)icmp, 8 + QUOTE4, 0));
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;
		struct icmp_header *icmp = (void *)(ip + 1);
		__u64 sum;

		if ((void *)(icmp + 1) + QUOTE6 > end)
			return -1;
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		*(__u32 *)ip = bpf_htonl(0x60000000);
		ip->payload_len = bpf_htons(8 + QUOTE6);
		ip->nexthdr = IPPROTO_ICMPV6;
		ip->hop_limit = 64;
		ip->saddr = p->dst;
		ip->daddr = p->src;
		icmp->type = ICMPV6_PKT_TOOBIG;
		icmp->code = 0;
		icmp->checksum = 0;
		icmp->mtu6 = bpf_htonl(mtu);
		sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)icmp, 8 + QUOTE6, 0);
		sum += bpf_htons(8 + QUOTE6) + bpf_htons(IPPROTO_ICMPV6);
#pragma unroll
		for (int i = 0; i < 4; i++)
			sum += (__u64)p->dst.s6_addr32[i] + p->src.s6_addr32[i];
		icmp->checksum = ~fold(sum);
	}
	return 0;
}

#endif
