/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP (RFC 826) and neighbour discovery (RFC 4861) of overlay endpoints, answered from the map on their own node. */
#ifndef BEELINE_NEIGHBOUR_H
#define BEELINE_NEIGHBOUR_H

#include "overlay.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_OPTION_TARGET_MAC 2
#define ND_SOLICITED_OVERRIDE 0x60000000u

#define ICMP_ECHO 8
#define ICMP_ECHOREPLY 0
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

/* Target, checksum and the one option of an advertisement, behind its IPv6 header. */
struct nd_message {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	struct in6_addr target;
	__u8 option;
	__u8 option_len;	/* 8 bytes each */
	__u8 mac[6];
} __attribute__((packed));

/* The MAC of an address of the port's network; not its own, or it would find itself a duplicate. */
INLINE int resolve(const struct overlay_port *port, const struct in6_addr *addr, __u8 *mac)
{
	struct overlay_endpoint *e;

	if (same_addr(addr, &port->addr4) || same_addr(addr, &port->addr6))
		return -1;
	e = overlay_endpoint_of(port->vni, addr);
	if (e) {
		copy_mac(mac, e->mac);
		return 0;
	}
	if (slice_owner(port->vni, addr) == MAX_NODES)
		return -1;
	derive_mac(mac, addr);
	return 0;
}

/* Turns a request into its reply. */
GLOBAL int answer_arp(struct __sk_buff *skb, const struct overlay_port *port)
{
	struct ethhdr eth;
	struct in6_addr target;
	struct arp arp;
	__be32 addr;
	__u8 mac[6];

	if (!port || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) || arp.hardware != bpf_htons(1) ||
	    arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_len != 6 || arp.protocol_len != 4)
		return DROP_MALFORMED;
	/* Announcements and answers are for nobody: all answers come from here. */
	if (arp.operation != bpf_htons(ARP_REQUEST))
		return DROP_FLOOD;
	__builtin_memcpy(&addr, arp.target, 4);
	map_ipv4(&target, addr);
	if (resolve(port, &target, mac))
		return DROP_NO_ENDPOINT;
	copy_mac(eth.h_dest, eth.h_source);
	copy_mac(eth.h_source, mac);
	arp.operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 6);
	__builtin_memcpy(arp.target, arp.sender, 4);
	__builtin_memcpy(arp.sender_mac, mac, 6);
	__builtin_memcpy(arp.sender, &addr, 4);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0))
		return DROP_HELPER;
	return RETURN_NEIGHBOUR;
}

/* Turns a solicitation into an advertisement. One without a source asks for duplicates: there are none. */
GLOBAL int answer_solicitation(struct __sk_buff *skb, const struct packet *p, const struct overlay_port *port)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct nd_message nd;
	} __attribute__((packed, aligned(2))) m;
	__u64 sum = 0;
	__u8 mac[6];

	_Static_assert(sizeof(struct nd_message) == 32, "an advertisement with one option");
	if (!p || !port)
		return DROP_MALFORMED;
	if (p->l4 != ETH_HLEN + sizeof(struct ipv6hdr) || skb->len < ETH_HLEN + sizeof(struct ipv6hdr) + 24)
		return DROP_MALFORMED;
	struct in6_addr asker = p->src, target;
	__u8 hops;

	/* RFC 4861 section 7.1.1: 255 is proof that no router passed it on. */
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, 1) || hops != 255)
		return DROP_MALFORMED;
	if (is_unspecified(&asker) || bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct ipv6hdr) + 8, &target, 16))
		return DROP_NO_ENDPOINT;
	if (is_mapped(p, &target) || resolve(port, &target, mac))
		return DROP_NO_ENDPOINT;
	if (bpf_skb_change_tail(skb, sizeof(m), 0))
		return DROP_HELPER;
	__builtin_memset(&m, 0, sizeof(m));
	copy_mac(m.eth.h_dest, port->mac);
	copy_mac(m.eth.h_source, mac);
	m.eth.h_proto = bpf_htons(ETH_P_IPV6);
	m.ip.version = 6;
	m.ip.payload_len = bpf_htons(sizeof(m.nd));
	m.ip.nexthdr = IPPROTO_ICMPV6;
	m.ip.hop_limit = 255;
	m.ip.saddr = target;
	m.ip.daddr = asker;
	m.nd.type = ND_ADVERTISEMENT;
	m.nd.flags = bpf_htonl(ND_SOLICITED_OVERRIDE);
	m.nd.target = target;
	m.nd.option = ND_OPTION_TARGET_MAC;
	m.nd.option_len = 1;
	copy_mac(m.nd.mac, mac);
	sum = (__u32)bpf_csum_diff(NULL, 0, (void *)&m + ETH_HLEN + offsetof(struct ipv6hdr, saddr), 32 + sizeof(m.nd), 0);
	sum += bpf_htons(sizeof(m.nd)) + bpf_htons(IPPROTO_ICMPV6);
	m.nd.checksum = ~fold(sum);
	if (bpf_skb_store_bytes(skb, 0, &m, sizeof(m), 0))
		return DROP_HELPER;
	return RETURN_NEIGHBOUR;
}

#endif
