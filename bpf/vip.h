/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Service VIPs inside overlay networks: (network, address) -> slot -> a task's address (docs/decisions/0013). Asked when a
 * socket connects, and for each datagram of one that does not; packets are never looked at.
 */
#ifndef BEELINE_VIP_H
#define BEELINE_VIP_H

#include "maglev.h"

#define ECONNREFUSED 111

/* 64 bits whose lower ones count up -> 32 that are spread over all slots. */
INLINE __u32 mix(__u64 x)
{
	__u32 hash = ((__u32)x ^ (__u32)(x >> 32)) * 0x9e3779b1u;

	return hash ^ hash >> 15;
}

/* The first of the namespace's networks in which the address is a VIP. */
INLINE struct vip *find_vip(const struct netns_networks *attached, const struct in6_addr *addr)
{
	struct vip_key k = { .addr = *addr };

	for (int i = 0; i < MAX_NETNS_NETWORKS; i++) {
		k.network = attached->networks[i];
		if (!k.network)
			return NULL;
		struct vip *vip = bpf_map_lookup_elem(&vips, &k);

		if (vip)
			return vip;
	}
	return NULL;
}

/* The slot's task, or while that is not active the next slots'. */
GLOBAL int pick_vip_backend(__u32 table, __u32 mask, __u32 hash, struct in6_addr *addr)
{
	if (!addr)
		return false;
	void *slots = bpf_map_lookup_elem(&vip_tables, &table);

	if (!slots)
		return false;
	for (__u32 i = 0; i <= MAX_NEXT_SLOTS; i++) {
		__u32 slot = (hash + i) & mask;
		__u32 *index = bpf_map_lookup_elem(slots, &slot);

		if (!index || !*index)
			return false;
		__u32 row = *index;
		struct vip_backend *b = bpf_map_lookup_elem(&vip_backends, &row);

		if (b && b->state == BACKEND_ACTIVE) {
			*addr = b->addr;
			return true;
		}
	}
	return false;
}

#endif
