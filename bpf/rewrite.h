/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Edits of a frame in XDP, where checksums are whole. TC uses the kernel's helpers instead (tc.h). */
#ifndef BEELINE_REWRITE_H
#define BEELINE_REWRITE_H

#include "checksum.h"
#include "icmp.h"
#include "maps.h"

/* Bound of any L4 offset, for the verifier: Ethernet, IPv6 and the extension headers that parse.h follows. */
#define L4_OFFSET(p) ((p)->l4 & 0x3ff)

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define MAX_TCP_OPTIONS 20

/* Offset of the MSS value in the frame, or 0. */
NOINLINE __u32 find_mss(void *data, void *end, __u32 l4)
{
	__u32 at = 20, header;

	l4 &= 0x3ff;
	if (data + l4 + 20 > end)
		return 0;
	header = (*(__u8 *)(data + l4 + 12) >> 4) * 4;
	for (int i = 0; i < MAX_TCP_OPTIONS; i++) {
		if (at >= 60 || at >= header)
			return 0;
		__u8 *option = data + l4 + at;

		if ((void *)(option + 4) > end) {
			if ((void *)(option + 1) > end || *option != TCP_OPTION_NOP)
				return 0;
			at++;
			continue;
		}
		if (option[0] == TCP_OPTION_MSS && option[1] == 4)
			return at + 4 <= header ? l4 + at + 2 : 0;
		if (option[0] == TCP_OPTION_END)
			return 0;
		if (option[0] == TCP_OPTION_NOP) {
			at++;
		} else {
			if (option[1] < 2)
				return 0;
			at += option[1];
		}
		at &= 0x7f;
	}
	return 0;
}

GLOBAL int clamp_mss(struct xdp_md *ctx, const struct packet *p, __u16 mss)
{
	if (!p)
		return 0;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 l4 = L4_OFFSET(p);
	__u32 at = find_mss(data, end, l4) & 0x7ff;
	struct tcphdr *tcp = data + l4;
	__u8 *value = data + at;

	if (!at || (void *)(value + 2) > end || (void *)(tcp + 1) > end)
		return 0;
	__u16 old = value[0] << 8 | value[1];

	if (old <= mss)
		return 0;
	value[0] = mss >> 8;
	value[1] = mss;
	/* An option at an odd offset puts its bytes into the other halves of two words: their sum swaps. */
	__u64 d = diff16(bpf_htons(old), bpf_htons(mss));
	__u16 folded = fold(d);

	if ((at - l4) & 1)
		folded = folded >> 8 | folded << 8;
	tcp->check = apply_diff(tcp->check, folded);
	return 0;
}

/* Destination address and port, source port. Ports of a later fragment are not there. */
GLOBAL int rewrite_destination(struct xdp_md *ctx, const struct packet *p, const struct in6_addr *addr, __be16 port,
			       __be16 client_port)
{
	if (!p || !addr)
		return -1;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 d = diff_addr(&p->dst, addr);
	__u32 l4 = L4_OFFSET(p);

	if (p->family == 4) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->check = apply_diff(ip->check, d);
		ip->daddr = addr->s6_addr32[3];
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->daddr = *addr;
	}
	if (p->fragment == LATER_FRAGMENT)
		return 0;
	d += diff16(p->dport, port) + diff16(p->sport, client_port);
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = data + l4;

		if ((void *)(tcp + 1) > end)
			return -1;
		tcp->dest = port;
		tcp->source = client_port;
		tcp->check = apply_diff(tcp->check, d);
	} else {
		struct udphdr *udp = data + l4;

		if ((void *)(udp + 1) > end)
			return -1;
		udp->dest = port;
		udp->source = client_port;
		if (udp->check) {
			__u16 c = apply_diff(udp->check, d);

			udp->check = c ? c : 0xffff;
		}
	}
	return 0;
}

/* The source address, after rewrite_destination(). */
NOINLINE int rewrite_source(struct xdp_md *ctx, const struct packet *p, const struct in6_addr *addr)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 d = diff_addr(&p->src, addr);
	__u16 *check;

	if (p->family == 4) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->check = apply_diff(ip->check, d);
		ip->saddr = addr->s6_addr32[3];
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->saddr = *addr;
	}
	if (p->fragment == LATER_FRAGMENT)
		return 0;
	if (p->proto == IPPROTO_UDP)
		check = data + L4_OFFSET(p) + offsetof(struct udphdr, check);
	else if (p->proto == IPPROTO_TCP)
		check = data + L4_OFFSET(p) + offsetof(struct tcphdr, check);
	else if (p->family == 6)
		check = data + L4_OFFSET(p) + offsetof(struct icmp_header, checksum);
	else
		return 0;
	if ((void *)(check + 1) > end)
		return -1;
	if (p->proto != IPPROTO_UDP || *check) {
		__u16 c = apply_diff(*check, d);

		*check = p->proto == IPPROTO_UDP && !c ? 0xffff : c;
	}
	return 0;
}

/*
 * Turns an error about a reply into one about what the endpoint sent: its own address and target port, and the client
 * port that it knows. The quoted IP header's checksum takes up the change of its address, so the ICMP checksum of
 * IPv4 sees the ports only.
 */
NOINLINE int rewrite_quoted(struct xdp_md *ctx, const struct packet *p, const struct packet *q,
			    const struct in6_addr *endpoint, const __be16 *ports)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 moved = diff_addr(&q->dst, endpoint);
	__u64 d = diff16(q->dport, ports[0]) + diff16(q->sport, ports[1]);
	__u32 quoted = (p->l4 & 0x3ff) + 8;
	__be16 *l4 = data + (q->l4 & 0x7ff);
	__u16 *check = data + (p->l4 & 0x3ff) + 2;

	if ((void *)(l4 + 4) > end || (void *)(check + 1) > end)
		return -1;
	l4[0] = ports[0];
	l4[1] = ports[1];
	if (p->family == 4) {
		struct iphdr *ip = data + ETH_HLEN, *in = data + quoted;

		if ((void *)(ip + 1) > end || (void *)(in + 1) > end)
			return -1;
		ip->check = apply_diff(ip->check, diff_addr(&p->dst, endpoint));
		ip->daddr = endpoint->s6_addr32[3];
		in->check = apply_diff(in->check, moved);
		in->saddr = endpoint->s6_addr32[3];
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN, *in = data + quoted;

		if ((void *)(ip + 1) > end || (void *)(in + 1) > end)
			return -1;
		d += moved + diff_addr(&p->dst, endpoint);	/* quoted source; pseudo header */
		ip->daddr = *endpoint;
		in->saddr = *endpoint;
	}
	*check = apply_diff(*check, d);
	return 0;
}

/* The destination that an error quotes: the client, as the endpoint knows it. */
NOINLINE int rewrite_quoted_client(struct xdp_md *ctx, const struct packet *p, const struct in6_addr *was,
				   const struct in6_addr *addr)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 d = diff_addr(was, addr);
	__u32 quoted = (p->l4 & 0x3ff) + 8;

	if (p->family == 4) {
		struct iphdr *in = data + quoted;

		/* The quoted header's checksum takes up the change. */
		if ((void *)(in + 1) > end)
			return -1;
		in->check = apply_diff(in->check, d);
		in->daddr = addr->s6_addr32[3];
	} else {
		struct ipv6hdr *in = data + quoted;
		__u16 *check = data + (p->l4 & 0x3ff) + 2;

		if ((void *)(in + 1) > end || (void *)(check + 1) > end)
			return -1;
		in->daddr = *addr;
		*check = apply_diff(*check, d);
	}
	return 0;
}

/* The error takes the packet's place in the frame, addressed to whoever sent it. */
GLOBAL int answer_too_big(struct xdp_md *ctx, const struct packet *p, __u16 mtu)
{
	int surplus;
	__u8 mac[6];

	if (!p)
		return -1;
	surplus = (int)p->len - (int)(ETH_HLEN + error_quote_len(p));
	if (surplus < 0 || bpf_xdp_adjust_tail(ctx, -surplus) || bpf_xdp_adjust_head(ctx, -(int)error_header_len(p)))
		return -1;

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data, *was = data + error_header_len(p);

	if ((void *)(was + 1) > end)
		return -1;
	copy_mac(mac, was->h_dest);
	copy_mac(eth->h_dest, was->h_source);
	copy_mac(eth->h_source, mac);
	return fill_too_big(data, end, p, mtu);
}

#endif
