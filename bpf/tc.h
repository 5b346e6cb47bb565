/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the TC programs share. A packet here may be one of the stack's making: checksums still open
 * (CHECKSUM_PARTIAL), many segments in one skb (GSO), headers not linear. So every edit goes through the kernel's helpers.
 */
#ifndef BEELINE_TC_H
#define BEELINE_TC_H

#include <stddef.h>
#include <linux/pkt_cls.h>
#include "revnat.h"
#include "vxlan.h"
#include "icmp.h"
#include "frontend.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#define TC_CONTINUE TC_ACT_UNSPEC	/* to the next program or filter, then on as without us */
#define HEADERS 160			/* bytes that parse() and the quoted headers of ICMP need in a row */

/* skb marks (settings.mark + …), seen only between our own programs. */
#define SKB_OURS 0	/* leaves an uplink as it is: not for uplink_tc_egress */
#define SKB_SECOND 1	/* the clone that becomes the second fragment */

INLINE int parse_skb(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (unlikely(end - data < HEADERS && skb->len > (__u32)(end - data))) {
		bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	return parse(data, end, p);
}

INLINE __u32 l4_check_offset(const struct packet *p)
{
	return p->l4 + (p->proto == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
}

/* One address of the IP header, with every checksum that covers it. `offset4`, `offset6`: of the address in its header. */
INLINE int replace_addr(struct __sk_buff *skb, const struct packet *p, const struct in6_addr *from,
			const struct in6_addr *to, __u32 offset4, __u32 offset6)
{
	__u64 udp = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	bool has_l4 = p->fragment != LATER_FRAGMENT;

	if (p->family == 4) {
		__be32 a = from->s6_addr32[3], b = to->s6_addr32[3];

		if (has_l4 && bpf_l4_csum_replace(skb, l4_check_offset(p), a, b, BPF_F_PSEUDO_HDR | udp | 4))
			return -1;
		return bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), a, b, 4) ||
		       bpf_skb_store_bytes(skb, ETH_HLEN + offset4, &b, 4, 0);
	}
	if (has_l4) {
		__s64 diff = bpf_csum_diff((__be32 *)from, 16, (__be32 *)to, 16, 0);

		if (bpf_l4_csum_replace(skb, l4_check_offset(p), 0, diff, BPF_F_PSEUDO_HDR | udp))
			return -1;
		/*
		 * Where the sum of the whole packet is known (a card's, or conntrack's after it put fragments together), that helper
		 * takes the change off it, as if an IPv4 header's checksum made up for it. IPv6 has none; elsewhere this does nothing.
		 */
		bpf_csum_update(skb, diff);
	}
	return bpf_skb_store_bytes(skb, ETH_HLEN + offset6, to, 16, 0);
}

INLINE int replace_port(struct __sk_buff *skb, const struct packet *p, __be16 from, __be16 to, __u32 offset)
{
	__u64 udp = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (from == to || p->fragment == LATER_FRAGMENT)
		return 0;
	return bpf_l4_csum_replace(skb, l4_check_offset(p), from, to, udp | 2) ||
	       bpf_skb_store_bytes(skb, p->l4 + offset, &to, 2, 0);
}

/* The packet as the frontend would have sent it. */
GLOBAL int rewrite_reply(struct __sk_buff *skb, const struct packet *p, const struct revnat *v)
{
	if (!p || !v)
		return -1;
	struct in6_addr addr = v->addr, client = v->client;

	if (!same_addr(&p->src, &addr) && replace_addr(skb, p, &p->src, &addr, offsetof(struct iphdr, saddr),
						       offsetof(struct ipv6hdr, saddr)))
		return -1;
	if (!same_addr(&p->dst, &client) && replace_addr(skb, p, &p->dst, &client, offsetof(struct iphdr, daddr),
							 offsetof(struct ipv6hdr, daddr)))
		return -1;
	return replace_port(skb, p, p->sport, v->port, 0) || replace_port(skb, p, p->dport, v->client_port, 2);
}

NOINLINE __u32 find_mss_skb(struct __sk_buff *skb, const struct packet *p, __u16 *value)
{
	__u8 option[4];
	__u8 doff;
	__u32 at = p->l4 + 20, last;

	if (bpf_skb_load_bytes(skb, p->l4 + 12, &doff, 1))
		return 0;
	last = p->l4 + (doff >> 4) * 4;
	for (int i = 0; i < 20; i++) {
		if (at + 4 > last || bpf_skb_load_bytes(skb, at, option, 4))
			return 0;
		if (option[0] == 2 && option[1] == 4) {
			*value = option[2] << 8 | option[3];
			return at + 2;
		}
		if (option[0] == 0)
			return 0;
		if (option[0] == 1)
			at++;
		else if (option[1] < 2)
			return 0;
		else
			at += option[1];
	}
	return 0;
}

/* Largest segment that the client may be told, where its packets will come by tunnel. */
GLOBAL int clamp_mss_skb(struct __sk_buff *skb, const struct packet *p, __u16 mss)
{
	__u16 old = 0;

	if (!p)
		return 0;
	__u32 at = find_mss_skb(skb, p, &old);
	__be16 value = bpf_htons(mss), was = bpf_htons(old);

	if (!at || old <= mss)
		return 0;
	if ((at - p->l4) & 1) {	/* its bytes lie in two words: the sum sees them swapped */
		was = was >> 8 | was << 8;
		value = value >> 8 | value << 8;
	}
	bpf_l4_csum_replace(skb, l4_check_offset(p), was, value, 2);
	value = bpf_htons(mss);
	return bpf_skb_store_bytes(skb, at, &value, 2, 0);
}

/*
 * Out to the destination of `p`, over the device and next hop that the node's routes say for its source. A client that
 * is not `inside` may have an address that the node itself is on-link with by a bridge of tasks: out by the default route.
 */
GLOBAL int to_client(struct __sk_buff *skb, const struct packet *p, __u32 inside)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	struct bpf_redir_neigh nh = {};
	struct settings *s = settings_row();
	struct node *me;

	if (!p || !s)
		return TC_ACT_SHOT;
	__u32 self = s->self;

	fib.l4_protocol = p->proto;
	if (p->family == 4) {
		fib.family = AF_INET;
		fib.ipv4_src = p->src.s6_addr32[3];
		fib.ipv4_dst = p->dst.s6_addr32[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->src, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->dst, 16);
	}
	long r = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);

	me = bpf_map_lookup_elem(&nodes, &self);
	if (unlikely(!inside && me && (r == BPF_FIB_LKUP_RET_NOT_FWDED || fib.ifindex != me->ifindex))) {
		struct on_link *out = on_link_of(0, &p->dst);

		if (out) {
			nh.nh_family = fib.family;
			__builtin_memcpy(nh.ipv6_nh, &out->gateway, 16);
			if (fib.family == AF_INET)
				nh.ipv4_nh = out->gateway.s6_addr32[3];
			skb->mark = s->mark + SKB_OURS;
			return bpf_redirect_neigh(out->ifindex, &nh, sizeof(nh), 0);
		}
	}
	if (likely(r == BPF_FIB_LKUP_RET_SUCCESS || r == BPF_FIB_LKUP_RET_NO_NEIGH ||
		   r == BPF_FIB_LKUP_RET_FRAG_NEEDED)) {
		nh.nh_family = fib.family;
		if (fib.family == AF_INET)
			nh.ipv4_nh = fib.ipv4_dst;
		else
			__builtin_memcpy(nh.ipv6_nh, fib.ipv6_dst, 16);
		skb->mark = s->mark + SKB_OURS;
		return bpf_redirect_neigh(fib.ifindex, &nh, sizeof(nh), 0);
	}
	if (!me || !me->ifindex)
		return TC_ACT_SHOT;
	if (r == BPF_FIB_LKUP_RET_NOT_FWDED) {	/* the node itself is the client */
		bpf_skb_store_bytes(skb, 0, me->smac, 6, 0);
		return bpf_redirect(me->ifindex, BPF_F_INGRESS);
	}
	if (r == BPF_FIB_LKUP_RET_FWD_DISABLED) {
		skb->mark = s->mark + SKB_OURS;
		return bpf_redirect_neigh(me->ifindex, NULL, 0, 0);
	}
	return TC_ACT_SHOT;
}

/* Outer headers around an skb, whose Ethernet header becomes `inner`. `vni`: as in the VXLAN header. */
GLOBAL int encap_frame(struct __sk_buff *skb, const struct node *n, const struct ethhdr *inner, __be32 vni)
{
	struct settings *s = settings_row();
	struct outer o __attribute__((aligned(8)));

	if (!n || !inner || !s)
		return -1;
	__u32 len = skb->len, hash = bpf_get_hash_recalc(skb);
	__u64 how = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		    BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_FIXED_GSO;

	/*
	 * Room behind the MAC header: outer IP, UDP and VXLAN headers and the inner frame's own. What is a tunnel's packet
	 * already (of a VXLAN device in the endpoint) is refused as one more, but one that is a single segment needs only the room.
	 */
	if (bpf_skb_adjust_room(skb, ENCAP_LEN, BPF_ADJ_ROOM_MAC, how) &&
	    (skb->gso_size || bpf_skb_adjust_room(skb, ENCAP_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET)))
		return -1;
	fill_outer(&o, s, n, len, hash);
	o.vxlan.vni = vni;
	if (bpf_skb_store_bytes(skb, 0, &o, sizeof(o), BPF_F_INVALIDATE_HASH) ||
	    bpf_skb_store_bytes(skb, sizeof(o), inner, sizeof(*inner), 0))
		return -1;
	skb->mark = s->mark + SKB_OURS;
	return 0;
}

/* A packet of the mesh: the inner frame gets `to` and this node's VTEP as addresses. */
INLINE int encap_skb(struct __sk_buff *skb, const struct node *n, const struct mac_key *to)
{
	struct ethhdr inner = { .h_proto = skb->protocol };
	struct settings *s = settings_row();

	if (!s)
		return -1;
	copy_mac(inner.h_dest, to->mac);
	fill_source_mac(inner.h_source, s->vtep, 0);
	return encap_frame(skb, n, &inner, s->vni);
}

/* Bytes of the longest IP packet that an skb will be on the wire. */
INLINE __u32 wire_len(const struct __sk_buff *skb, const struct packet *p)
{
	if (likely(!skb->gso_size))
		return skb->len - ETH_HLEN;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 l4 = p->l4 & 0x3ff, header = 8;

	if (p->proto == IPPROTO_TCP) {
		if (data + l4 + 20 > end)
			return skb->len - ETH_HLEN;
		header = (*(__u8 *)(data + l4 + 12) >> 4) * 4;
	}
	return l4 - ETH_HLEN + header + skb->gso_size;
}

/* The error takes the packet's place in the skb. */
GLOBAL int turn_into_too_big(struct __sk_buff *skb, const struct packet *p, __u16 mtu)
{
	__u8 mac[12];

	if (!p)
		return -1;
	__u32 header = error_header_len(p), quote = error_quote_len(p);

	if (bpf_skb_change_tail(skb, ETH_HLEN + quote, 0) ||
	    bpf_skb_adjust_room(skb, header, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
	    bpf_skb_pull_data(skb, ETH_HLEN + header + quote))
		return -1;

	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return -1;
	copy_mac(mac, eth->h_dest);
	copy_mac(eth->h_dest, eth->h_source);
	copy_mac(eth->h_source, mac);
	return fill_too_big(data, end, p, mtu);
}

INLINE int finish_skb(struct __sk_buff *skb, enum program program, const struct packet *p, int verdict)
{
	/* Or clang keeps a pointer to a field of the context, which the verifier does not let be read. */
	asm volatile("" : "+r"(skb));
	if (count_verdict(program, verdict, p))
		trace(program, verdict, p, skb->ifindex);
	return passes(verdict) ? TC_CONTINUE : drops(verdict) ? TC_ACT_SHOT : p->action;
}

#endif
