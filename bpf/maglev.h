/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flow → slot → backend (docs/decisions/0002). A stable slot costs no flow lookup. A slot in transition follows
 * the rules of conntrack.h.
 */
#ifndef BEELINE_MAGLEV_H
#define BEELINE_MAGLEV_H

#include "parse.h"
#include "maps.h"

#define MAX_NEXT_SLOTS 16	/* slots tried after one whose backend is down */

INLINE __u32 rol32(__u32 word, int shift)
{
	return (word << shift) | (word >> (32 - shift));
}

/* Bob Jenkins' lookup3, mix and final, as in the kernel's jhash.h. */
#define JHASH_MIX(a, b, c) do {						\
	a -= c; a ^= rol32(c, 4);  c += b;				\
	b -= a; b ^= rol32(a, 6);  a += c;				\
	c -= b; c ^= rol32(b, 8);  b += a;				\
	a -= c; a ^= rol32(c, 16); c += b;				\
	b -= a; b ^= rol32(a, 19); a += c;				\
	c -= b; c ^= rol32(b, 4);  b += a;				\
} while (0)

#define JHASH_FINAL(a, b, c) do {					\
	c ^= b; c -= rol32(b, 14);					\
	a ^= c; a -= rol32(c, 11);					\
	b ^= a; b -= rol32(a, 25);					\
	c ^= b; c -= rol32(b, 16);					\
	a ^= c; a -= rol32(c, 4);					\
	b ^= a; b -= rol32(a, 14);					\
	c ^= b; c -= rol32(b, 24);					\
} while (0)

/* affinity: the client's address alone. */
INLINE __u32 flow_hash(const struct packet *p, __u32 seed, bool affinity)
{
	__u32 ports = affinity ? 0 : ((__u32)p->sport << 16 | p->dport) ^ p->proto;
	__u32 a = 0xdeadbeef + seed, b = a, c = a;

	if (likely(p->family == 4)) {
		a += p->src.s6_addr32[3];
		b += affinity ? 0 : p->dst.s6_addr32[3];
		c += ports;
		JHASH_FINAL(a, b, c);
		return c;
	}
	a += p->src.s6_addr32[0];
	b += p->src.s6_addr32[1];
	c += p->src.s6_addr32[2];
	JHASH_MIX(a, b, c);
	a += p->src.s6_addr32[3];
	if (!affinity) {
		b += p->dst.s6_addr32[0];
		c += p->dst.s6_addr32[1];
		JHASH_MIX(a, b, c);
		a += p->dst.s6_addr32[2];
		b += p->dst.s6_addr32[3];
		c += ports;
	}
	JHASH_FINAL(a, b, c);
	return c;
}

INLINE struct backend *backend_of(__u32 ref)
{
	__u32 i = ref & REF_INDEX_MASK;

	return bpf_map_lookup_elem(&backends, &i);
}

INLINE bool is_kernel(__u32 ref)
{
	return (ref & REF_INDEX_MASK) == REF_KERNEL;
}

/* Active or draining, and still the incarnation that was meant. */
INLINE bool is_incarnation(const struct backend *b, __u32 ref)
{
	return b && (b->state == BACKEND_ACTIVE || b->state == BACKEND_DRAINING) &&
	       b->generation == (ref & REF_GENERATION_MASK) >> REF_INDEX_BITS;
}

/* The kernel's mesh always is. */
INLINE bool is_alive(__u32 ref)
{
	return is_kernel(ref) || is_incarnation(backend_of(ref), ref);
}

INLINE __u32 *slot_of(__u32 table, __u32 slot)
{
	void *inner = bpf_map_lookup_elem(&tables, &table);

	return inner ? bpf_map_lookup_elem(inner, &slot) : NULL;
}

/* `current`, or while it is down the next slots' (DESIGN 5.3, "chosen backend down"). */
GLOBAL __u32 next_alive(__u32 table, __u32 mask, __u32 slot)
{
	for (__u32 i = 0; i <= MAX_NEXT_SLOTS; i++) {
		__u32 *word = slot_of(table, (slot + i) & mask);

		if (!word)
			return REF_NONE;
		__u32 ref = *word & REF_MASK;

		if (ref && is_alive(ref))
			return ref;
	}
	return REF_NONE;
}

/* The same, of no backend on the node `not`. */
GLOBAL __u32 next_elsewhere(__u32 table, __u32 mask, __u32 slot, __u32 not)
{
	for (__u32 i = 0; i <= MAX_NEXT_SLOTS; i++) {
		__u32 *word = slot_of(table, (slot + i) & mask);

		if (!word)
			return REF_NONE;
		__u32 ref = *word & REF_MASK;
		struct backend *b = ref && !is_kernel(ref) ? backend_of(ref) : NULL;

		if (is_incarnation(b, ref) && b->node != not)
			return ref;
	}
	return REF_NONE;
}

#endif
