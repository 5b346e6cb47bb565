/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frame → struct packet. Both families come out the same; nothing here looks into a map. */
#ifndef BEELINE_PARSE_H
#define BEELINE_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "mesh.h"

#define INLINE static __always_inline
#define NOINLINE static __attribute__((noinline, unused))
/* Verified once, by itself, and not again for each caller: its pointers may be NULL for all that the verifier knows. */
#define GLOBAL __attribute__((noinline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define MAX_IPV6_EXTENSIONS 4

/* RFC 792, RFC 4443. <linux/icmp.h> draws in the C library's headers, which a BPF target has not. */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_FRAG_NEEDED 4
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_PARAMPROB 4

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	union {
		struct {
			__be16 unused;
			__be16 mtu;
		} frag_needed;
		__be32 mtu6;
	};
};

enum fragment_part {
	NOT_FRAGMENT = 0,
	FIRST_FRAGMENT = 1,
	LATER_FRAGMENT = 2,	/* no L4 header */
};

struct packet {
	struct in6_addr src;
	struct in6_addr dst;
	__be16 sport;
	__be16 dport;
	__u32 seq;		/* TCP */
	__u32 ack;
	__u32 fragment_id;
	__u32 len;		/* bytes of the frame as it came */
	__u32 ref;		/* backend, for counters and the monitor */
	__u16 l4;		/* offset of the L4 header in the frame; of the fragment's payload in a later fragment */
	__u8 family;		/* 4 or 6 */
	__u8 proto;
	__u8 fragment;		/* enum fragment_part */
	__u8 tcp;		/* flags */
	__u8 df;		/* must not be fragmented on the way */
	__u8 icmp_type;
	int action;		/* what a verdict that is neither pass nor drop asks of the kernel */
};

enum parsed {
	PARSED = 0,
	PARSED_OTHER,		/* neither TCP, UDP nor ICMP over IP */
	PARSED_HEADERS,		/* extension headers that are not followed */
	PARSED_SHORT,		/* ends within its headers, or headers that contradict each other */
};

INLINE void map_ipv4(struct in6_addr *a, __be32 ip)
{
	a->s6_addr32[0] = 0;
	a->s6_addr32[1] = 0;
	a->s6_addr32[2] = bpf_htonl(0xffff);
	a->s6_addr32[3] = ip;
}

INLINE bool same_addr(const struct in6_addr *a, const struct in6_addr *b)
{
	return ((a->s6_addr32[0] ^ b->s6_addr32[0]) | (a->s6_addr32[1] ^ b->s6_addr32[1]) |
		(a->s6_addr32[2] ^ b->s6_addr32[2]) | (a->s6_addr32[3] ^ b->s6_addr32[3])) == 0;
}

INLINE bool same_mac(const __u8 *a, const __u8 *b)
{
	return (*(const __u16 *)a ^ *(const __u16 *)b) == 0 &&
	       (*(const __u16 *)(a + 2) ^ *(const __u16 *)(b + 2)) == 0 &&
	       (*(const __u16 *)(a + 4) ^ *(const __u16 *)(b + 4)) == 0;
}

INLINE void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u16 *)to = *(const __u16 *)from;
	*(__u16 *)(to + 2) = *(const __u16 *)(from + 2);
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

/* Ports, flags and sequence numbers; ports of ICMP are zero. */
INLINE int parse_l4(void *data, void *end, struct packet *p)
{
	void *l4 = data + (p->l4 & 0x3ff);

	asm volatile("" : "+r"(l4));	/* one register, or the verifier loses what the bounds check proved */

	p->sport = 0;
	p->dport = 0;
	p->tcp = 0;
	if (p->family == 6 && unlikely(p->fragment == LATER_FRAGMENT))
		return PARSED;	/* whatever its first one's extension headers lead to */
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if (p->fragment == LATER_FRAGMENT)
			return PARSED;
		if ((void *)(tcp + 1) > end)
			return PARSED_SHORT;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->seq = bpf_ntohl(tcp->seq);
		p->ack = bpf_ntohl(tcp->ack_seq);
		p->tcp = ((__u8 *)tcp)[13];
		return PARSED;
	}
	if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if (p->fragment == LATER_FRAGMENT)
			return PARSED;
		if ((void *)(udp + 1) > end)
			return PARSED_SHORT;
		p->sport = udp->source;
		p->dport = udp->dest;
		return PARSED;
	}
	if (p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		if (p->fragment == LATER_FRAGMENT)
			return PARSED_OTHER;
		if (l4 + 8 > end)
			return PARSED_SHORT;
		p->icmp_type = *(__u8 *)l4;
		return PARSED;
	}
	return PARSED_OTHER;
}

/* RFC 8200 section 4: hop-by-hop, routing and destination options, then a fragment header. Rare, so a call. */
NOINLINE int parse_extensions(void *data, void *end, struct packet *p)
{
	__u8 next = p->proto;
	__u32 off = p->l4 & 0x3ff;

	for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
		__u8 *h = data + off;

		if (next == IPPROTO_FRAGMENT) {
			if ((void *)(h + 8) > end)
				return PARSED_SHORT;
			__u16 where = bpf_ntohs(*(__be16 *)(h + 2));

			next = h[0];
			p->fragment_id = *(__u32 *)(h + 4);
			p->fragment = (where & 0xfff8) ? LATER_FRAGMENT : (where & 1) ? FIRST_FRAGMENT : NOT_FRAGMENT;
			off += 8;
			if (p->fragment == LATER_FRAGMENT)
				break;
		} else if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS) {
			if ((void *)(h + 2) > end)
				return PARSED_SHORT;
			/* Segments left: its destination is on the way, not at its end. */
			if (next == IPPROTO_ROUTING && ((void *)(h + 4) > end || h[3]))
				return PARSED_HEADERS;
			next = h[0];
			off += 8 + 8 * (__u32)h[1];
			if (off > 512)
				return PARSED_HEADERS;
		} else {
			break;
		}
	}
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT) {
		if (p->fragment != LATER_FRAGMENT)
			return PARSED_HEADERS;
	}
	p->proto = next;
	p->l4 = off;
	return PARSED;
}

INLINE int parse(void *data, void *end, struct packet *p)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return PARSED_SHORT;

	__be16 h_proto = *(__be16 *)(data + offsetof(struct ethhdr, h_proto));	/* packed: clang would read its bytes */

	p->fragment = NOT_FRAGMENT;
	if (likely(h_proto == bpf_htons(ETH_P_IP))) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return PARSED_SHORT;
		if (ip->version != 4 || ip->ihl < 5)
			return PARSED_SHORT;
		__u16 frag = bpf_ntohs(ip->frag_off);

		p->family = 4;
		p->proto = ip->protocol;
		p->df = !!(frag & IP_DF);
		p->fragment_id = ip->id;
		if (unlikely(frag & (IP_MF | IP_OFFSET)))
			p->fragment = (frag & IP_OFFSET) ? LATER_FRAGMENT : FIRST_FRAGMENT;
		p->l4 = ETH_HLEN + ip->ihl * 4;
		map_ipv4(&p->src, ip->saddr);
		map_ipv4(&p->dst, ip->daddr);
		return parse_l4(data, end, p);
	}
	if (h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return PARSED_SHORT;
		if (ip->version != 6)
			return PARSED_SHORT;
		p->family = 6;
		p->df = 1;
		p->proto = ip->nexthdr;
		p->l4 = ETH_HLEN + sizeof(*ip);
		p->src = ip->saddr;
		p->dst = ip->daddr;
		if (unlikely(p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_ICMPV6)) {
			int r = parse_extensions(data, end, p);

			if (r)
				return r;
			if (p->l4 > ETH_HLEN + sizeof(*ip) + 520)
				return PARSED_HEADERS;
		}
		return parse_l4(data, end, p);
	}
	return PARSED_OTHER;
}

/*
 * The commonest packets: TCP or UDP over IPv4 without options, whole. One look at the bounds (a frame has 60 bytes, so
 * a shorter one is rare), and everything at a fixed offset.
 */
INLINE bool is_plain(void *data, void *end)
{
	struct iphdr *ip = data + ETH_HLEN;

	if (data + ETH_HLEN + sizeof(*ip) + sizeof(struct tcphdr) > end)
		return false;
	return *(__be16 *)(data + offsetof(struct ethhdr, h_proto)) == bpf_htons(ETH_P_IP) && *(__u8 *)ip == 0x45 &&
	       !(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)) &&
	       (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP);
}

/* parse() of what is_plain(). */
INLINE void parse_plain(void *data, struct packet *p)
{
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	bool is_tcp = ip->protocol == IPPROTO_TCP;

	map_ipv4(&p->src, ip->saddr);
	map_ipv4(&p->dst, ip->daddr);
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->seq = is_tcp ? bpf_ntohl(tcp->seq) : 0;
	p->ack = is_tcp ? bpf_ntohl(tcp->ack_seq) : 0;
	p->fragment_id = ip->id;
	p->ref = 0;
	p->l4 = ETH_HLEN + sizeof(*ip);
	p->family = 4;
	p->proto = ip->protocol;
	p->fragment = NOT_FRAGMENT;
	p->tcp = is_tcp ? ((__u8 *)tcp)[13] : 0;
	p->df = !!(ip->frag_off & bpf_htons(IP_DF));
	p->icmp_type = 0;
	p->action = 0;
}

/*
 * RFC 791 tells fragments of different protocols apart. RFC 8200 does not, and the number in an IPv6 fragment header may be
 * that of an extension header which only the first fragment shows.
 */
INLINE void fragment_key_of(struct fragment_key *k, const struct packet *p)
{
	k->src = p->src;
	k->dst = p->dst;
	k->id = p->fragment_id;
	k->proto = p->family == 4 ? p->proto : 0;
	k->pad[0] = k->pad[1] = k->pad[2] = 0;
}

/* A new connection, not an answer to one. */
INLINE bool is_syn(const struct packet *p)
{
	return (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

#endif
