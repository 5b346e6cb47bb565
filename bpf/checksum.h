/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* RFC 1624 incremental checksums. A difference is an unfolded sum of ~old + new 16-bit words. */
#ifndef BEELINE_CHECKSUM_H
#define BEELINE_CHECKSUM_H

#include "parse.h"

INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

INLINE __u64 diff32(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

INLINE __u64 diff16(__be16 from, __be16 to)
{
	return (__u64)(__u16)~from + to;
}

/* Both families: the mapped prefix of an IPv4 address is the same before and after. */
INLINE __u64 diff_addr(const struct in6_addr *from, const struct in6_addr *to)
{
	return diff32(from->s6_addr32[0], to->s6_addr32[0]) + diff32(from->s6_addr32[1], to->s6_addr32[1]) +
	       diff32(from->s6_addr32[2], to->s6_addr32[2]) + diff32(from->s6_addr32[3], to->s6_addr32[3]);
}

INLINE __u16 apply_diff(__u16 check, __u64 diff)
{
	return ~fold((__u64)(__u16)~check + diff);
}

INLINE __u16 ip_checksum(const void *header)
{
	const __u16 *w = header;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += w[i];
	return ~fold(sum);
}

#endif
