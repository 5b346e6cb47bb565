/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Overlay networks: where an inner address is. docs/decisions/0030-overlay-datapath.md. */
#ifndef BEELINE_OVERLAY_H
#define BEELINE_OVERLAY_H

#include "vxlan.h"

#define SLICE_BITS 160	/* of a whole key: VNI and address */

/* The VXLAN header holds it in its upper 24 bits. */
INLINE __u32 vni_of(__be32 field)
{
	return bpf_ntohl(field) >> 8;
}

INLINE struct overlay_endpoint *overlay_endpoint_of(__u32 vni, const struct in6_addr *addr)
{
	struct overlay_key k = { .vni = vni, .addr = *addr };

	return bpf_map_lookup_elem(&overlay_endpoints, &k);
}

/* Index of the node that owns the slice an address lies in; MAX_NODES: none does. */
INLINE __u32 slice_owner(__u32 vni, const struct in6_addr *addr)
{
	struct overlay_slice_key k = { .prefixlen = SLICE_BITS, .vni = vni, .addr = *addr };
	__u32 *node = bpf_map_lookup_elem(&overlay_slices, &k);

	return node ? *node : MAX_NODES;
}

/* The node that an address lives on; MAX_NODES: nobody has it. */
INLINE __u32 overlay_node_of(__u32 vni, const struct in6_addr *addr)
{
	struct overlay_endpoint *e = overlay_endpoint_of(vni, addr);

	if (likely(e))
		return e->flags & OVERLAY_VIP ? MAX_NODES : e->node;
	return slice_owner(vni, addr);
}

/* Docker's MAC of an IPv4 address; of an IPv6 address whose endpoint is not known by itself, the same of its last word. */
INLINE void derive_mac(__u8 *mac, const struct in6_addr *addr)
{
	mac[0] = 0x02;
	mac[1] = 0x42;
	*(__u16 *)(mac + 2) = addr->s6_addr16[6];
	*(__u16 *)(mac + 4) = addr->s6_addr16[7];
}

INLINE bool is_unspecified(const struct in6_addr *a)
{
	return (a->s6_addr32[0] | a->s6_addr32[1] | a->s6_addr32[2] | a->s6_addr32[3]) == 0;
}

/* An IPv4 address as maps write it, but in an IPv6 header: it is no address of the network's. */
INLINE bool is_mapped(const struct packet *p, const struct in6_addr *a)
{
	return p->family == 6 && a->s6_addr32[2] == bpf_htonl(0xffff) && (a->s6_addr32[0] | a->s6_addr32[1]) == 0;
}

/*
 * Largest inner packet whose ESP fits: IP 20, ESP 8, IV 8, ICV 16, and 8 that the kernel reserves for IP options (BEET); what is
 * between is padded, with 2 bytes of trailer, to a multiple of 4; in it UDP 8, VXLAN 8, Ethernet 14. Of 1500 bytes 1408 are left.
 */
INLINE __u16 esp_inner_mtu(__u16 mtu)
{
	return ((mtu - 60) & ~3) - 32;
}

/* The interface that makes ESP; 0: there is none. */
INLINE __u32 esp_interface(void)
{
	__u32 zero = 0;
	struct encryption *e = bpf_map_lookup_elem(&encryption, &zero);

	return e ? e->ifindex : 0;
}

/* Multicast and broadcast of either family. */
INLINE bool is_group(const struct packet *p)
{
	if (p->family == 6)
		return p->dst.s6_addr[0] == 0xff;
	return p->dst.s6_addr[12] >= 224;
}

#endif
