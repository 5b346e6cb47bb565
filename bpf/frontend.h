/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Is this packet for a frontend? Indexes before hashes: a port that nothing is published on costs one array read. */
#ifndef BEELINE_FRONTEND_H
#define BEELINE_FRONTEND_H

#include "conntrack.h"

/* Of a port in `ports` and `source_ports`. */
INLINE __u32 port_index(__u8 proto, __be16 port)
{
	return (proto == IPPROTO_UDP ? 1u << 16 : 0) | bpf_ntohs(port);
}

INLINE __u32 port_row(__u8 proto, __be16 port)
{
	__u32 i = port_index(proto, port);
	__u32 *row = bpf_map_lookup_elem(&ports, &i);

	return row ? *row : 0;
}

INLINE bool is_own4(const struct settings *s, __be32 addr)
{
#pragma unroll
	for (int i = 0; i < MAX_OWN_ADDRESSES; i++)
		if (s->own4[i] == addr)
			return addr != 0;	/* an unused place is no address */
	return false;
}

INLINE bool is_own(const struct settings *s, const struct packet *p)
{
	if (p->family == 4) {
		if (is_own4(s, p->dst.s6_addr32[3]))
			return true;
	} else {
#pragma unroll
		for (int i = 0; i < MAX_OWN_ADDRESSES; i++)
			if (same_addr(&s->own6[i], &p->dst))
				return (p->dst.s6_addr32[0] | p->dst.s6_addr32[1] | p->dst.s6_addr32[2] |
					p->dst.s6_addr32[3]) != 0;
	}
	if (likely(!(s->flags & SETTINGS_MORE_ADDRESSES)))
		return false;
	struct in6_addr key = p->dst;	/* kernel 6.1 takes keys from the stack, not from an argument's memory */

	return bpf_map_lookup_elem(&own_addresses, &key) != NULL;
}

/* Index of the frontend that an address and port belong to, or 0. */
INLINE __u32 find_frontend(const struct settings *s, __u32 row, const struct packet *p)
{
	if (unlikely(row & PORT_EXACT)) {
		struct frontend_key k = { .addr = p->dst, .port = p->dport, .proto = p->proto };
		__u32 *exact = bpf_map_lookup_elem(&exact_frontends, &k);

		if (exact)
			return *exact;
	}
	row &= PORT_FRONTEND_MASK;
	return row && is_own(s, p) ? row : 0;
}

/* An empty allow list is no list (the flag is unset); deny wins. */
GLOBAL int is_denied(const struct frontend *fe, const struct packet *p)
{
	if (!fe || !p)
		return true;
	struct acl_key k = { .prefixlen = 32 + 128, .acl = fe->acl, .addr = p->src };

	if (fe->flags & FRONTEND_DENY && bpf_map_lookup_elem(&deny, &k))
		return true;
	return fe->flags & FRONTEND_ALLOW && !bpf_map_lookup_elem(&allow, &k);
}

INLINE bool is_stale(const struct settings *s)
{
	return s->stale_after_ns && now_ns() - s->heartbeat_ns > s->stale_after_ns;
}

/* Of records of flows that began with the kernel's mesh while the agent was stale; no slot counts so far. */
#define STALE_GENERATION 0xfffffffeu

/* CLOCK_BOOTTIME of the last packet of such a flow. While it is 0, as nearly always, nobody looks for records. */
__u64 last_stale_ns;

/*
 * A packet to a port that the kernel's own mesh serves too: does it go there because the agent is stale, or because its
 * flow began there when it was? A handshake's SYN is remembered as for a slot in transition, for the same reasons.
 */
GLOBAL int goes_to_kernel(const struct settings *s, const struct frontend *fe, const struct packet *p)
{
	if (!s || !fe || !p)
		return false;
	bool syn = is_syn(p);

	if (p->proto == IPPROTO_UDP)
		return is_stale(s);
	if (!syn && !last_stale_ns)
		return false;

	bool stale = syn && is_stale(s);
	__u64 now = now_ns();
	struct flow_key k;

	if (!stale && (!last_stale_ns || now - last_stale_ns > fe->window_ns))
		return false;
	flow_key_of(&k, p);

	struct flow *f = bpf_map_lookup_elem(&conntrack, &k);

	if (f && f->generation != STALE_GENERATION)
		f = NULL;
	if (syn) {
		struct flow h = { .ref = REF_KERNEL, .generation = STALE_GENERATION, .isn = p->seq };

		if (stale) {
			bpf_map_update_elem(&conntrack_half_open, &k, &h, BPF_ANY);
			last_stale_ns = now;
		} else if (f) {
			bpf_map_delete_elem(&conntrack, &k);
		}
		return stale;
	}
	if (!f) {
		struct flow *half = bpf_map_lookup_elem(&conntrack_half_open, &k);

		if (!half || half->generation != STALE_GENERATION || !follows(p->seq, half->isn))
			return false;
		remember(&k, NULL, REF_KERNEL, false, STALE_GENERATION);
		bpf_map_delete_elem(&conntrack_half_open, &k);
	}
	last_stale_ns = now;
	return true;
}

#endif
