/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC ingress on the host side of an overlay endpoint's veth: what the endpoint sends into its network. Routed by address:
 * into a neighbour on this node, or by VXLAN to the node that has it. The walk is drawn in README.md.
 */
#include "tc.h"
#include "neighbour.h"
#include <linux/if_packet.h>

/* To the endpoint itself. A function, or clang keeps a pointer into the context, which the verifier does not let be read. */
NOINLINE int back(struct __sk_buff *skb)
{
	return bpf_redirect(skb->ifindex, 0);
}

/* A ping of a service's address: the packet goes back as its own answer. */
GLOBAL int answer_echo(struct __sk_buff *skb, const struct packet *p)
{
	__u8 request = p && p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
	__u8 reply = p && p->family == 4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;
	__u8 macs[12];

	if (!p || p->icmp_type != request || p->fragment)
		return -1;
	struct in6_addr src = p->src, dst = p->dst;

	if (bpf_skb_load_bytes(skb, 0, macs, 12) || bpf_skb_store_bytes(skb, 0, macs + 6, 6, 0) ||
	    bpf_skb_store_bytes(skb, 6, macs, 6, 0))
		return -1;
	/* Two addresses that change places leave every sum as it is. */
	if (p->family == 4) {
		if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &dst.s6_addr32[3], 4, 0) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &src.s6_addr32[3], 4, 0))
			return -1;
	} else if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &dst, 16, 0) ||
		   bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), &src, 16, 0)) {
		return -1;
	}
	/* Type and code are one word of the checksum. */
	return bpf_l4_csum_replace(skb, p->l4 + offsetof(struct icmp_header, checksum), bpf_htons(request << 8),
				   bpf_htons(reply << 8), 2) ||
	       bpf_skb_store_bytes(skb, p->l4, &reply, 1, 0);
}

INLINE bool is_own_source(const struct packet *p, const struct overlay_port *port)
{
	if (p->family == 4)
		return same_addr(&p->src, &port->addr4);
	return same_addr(&p->src, &port->addr6) && !is_unspecified(&p->src);
}

/* To the node that has the endpoint. */
INLINE int encap_overlay(struct __sk_buff *skb, struct packet *p, const struct overlay_port *port, __u32 node,
			 const __u8 *mac, __u32 esp)
{
	struct node *n = bpf_map_lookup_elem(&nodes, &node);
	struct ethhdr inner = { .h_proto = skb->protocol };

	if (!n || !(n->flags & NODE_RESOLVED))
		return DROP_NO_NEXT_HOP;
	__u16 room = unlikely(esp) ? esp_inner_mtu(n->mtu) : n->mtu - INNER_OVERHEAD;

	if (unlikely(wire_len(skb, p) > room)) {
		/* The endpoint's own MTU fits the usual way; this one is narrower. */
		if ((is_icmp(p) && is_icmp_error(p)) || p->fragment == LATER_FRAGMENT ||
		    turn_into_too_big(skb, p, room))
			return DROP_TOO_BIG;
		p->action = back(skb);
		return RETURN_TOO_BIG;
	}
	copy_mac(inner.h_dest, mac);
	copy_mac(inner.h_source, port->mac);
	if (encap_frame(skb, n, &inner, bpf_htonl(port->vni << 8)))
		return DROP_HELPER;
	if (unlikely(esp)) {
		skb->mark = 0;	/* routes and rules of the node may look at it */
		p->action = bpf_redirect(esp, 0);
		return ENCAP_ESP;
	}
	p->action = bpf_redirect(n->ifindex, 0);
	return ENCAP_OVERLAY;
}

INLINE int route(struct __sk_buff *skb, struct packet *p, const struct settings *s, const struct overlay_port *port,
		 bool encrypted)
{
	struct overlay_endpoint *to;
	__u8 mac[6];
	__u32 node;

	if (unlikely(is_mapped(p, &p->dst)))
		return DROP_NO_ENDPOINT;
	to = overlay_endpoint_of(port->vni, &p->dst);
	if (likely(to)) {
		if (unlikely(to->flags & OVERLAY_VIP)) {
			if (!is_icmp(p) || answer_echo(skb, p))
				return DROP_NO_ENDPOINT;	/* connect() turns connections before they become packets */
			p->action = back(skb);
			return RETURN_ECHO;
		}
		if (to->ifindex) {
			if (bpf_skb_store_bytes(skb, 0, to->mac, 6, 0))
				return DROP_HELPER;
			/*
			 * The veth's host end calls a frame for its neighbour another host's. Kernels before 6.13 do not reset
			 * that on the way into the endpoint, which then drops it.
			 */
			if (skb->pkt_type != PACKET_HOST)
				bpf_skb_change_type(skb, PACKET_HOST);
			p->action = bpf_redirect_peer(to->ifindex, 0);
			return DELIVER_OVERLAY;
		}
		copy_mac(mac, to->mac);
		node = to->node;
	} else {
		node = slice_owner(port->vni, &p->dst);
		derive_mac(mac, &p->dst);
	}
	/* Nobody's; or this node's, and not attached. */
	if (unlikely(node == MAX_NODES || node == s->self))
		return DROP_NO_ENDPOINT;

	__u32 esp = encrypted ? esp_interface() : 0;

	if (unlikely(encrypted && !esp))
		return DROP_PLAIN;
	return encap_overlay(skb, p, port, node, mac, esp);
}

INLINE int walk(struct __sk_buff *skb, struct packet *p)
{
	__u32 ifindex = skb->ifindex;
	struct overlay_port *port = bpf_map_lookup_elem(&overlay_ports, &ifindex);
	struct settings *s = settings_row();

	if (!port || !s)
		return DROP_NO_ENDPOINT;

	__u32 vni = port->vni;
	struct network *net = bpf_map_lookup_elem(&networks, &vni);

	if (!net)
		return DROP_NO_ENDPOINT;

	int parsed = parse_skb(skb, p);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || parsed == PARSED_SHORT)
		return DROP_MALFORMED;
	if (unlikely(!same_mac(eth->h_source, port->mac)))
		return DROP_SPOOFED;
	if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
		int verdict = answer_arp(skb, port);

		p->action = back(skb);
		return verdict;
	}
	/* A tag lies beside the packet, and would go out on the uplink, into a VLAN of the underlay. */
	if (!p->family || unlikely(skb->vlan_present))
		return DROP_FLOOD;
	if (unlikely(p->family == 6 && p->proto == IPPROTO_ICMPV6 && p->icmp_type == ND_SOLICITATION)) {
		int verdict = answer_solicitation(skb, p, port);

		p->action = back(skb);
		return verdict;
	}
	if (unlikely(is_group(p)))
		return DROP_FLOOD;
	if (unlikely(!is_own_source(p, port)))
		return DROP_SPOOFED;
	return route(skb, p, s, port, net->flags & NETWORK_ENCRYPTED);
}

SEC("tc")
int overlay_tc(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_OVERLAY_TC, &p, walk(skb, &p));
}

char _license[] SEC("license") = "Dual BSD/GPL";
