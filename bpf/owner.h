/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which socket of this node owns a flow. Asked only about ports that its sockets may use: a lookup costs as much as the
 * rest of a packet's way.
 */
#ifndef BEELINE_OWNER_H
#define BEELINE_OWNER_H

#include "parse.h"

/* A flow as the kernel's tables know it: `local` is this node's end. Returns the length that matters, which is the family. */
INLINE __u32 socket_tuple(struct bpf_sock_tuple *t, __u8 family, const struct in6_addr *remote, __be16 remote_port,
			  const struct in6_addr *local, __be16 local_port)
{
	if (family == 4) {
		t->ipv4.saddr = remote->s6_addr32[3];
		t->ipv4.daddr = local->s6_addr32[3];
		t->ipv4.sport = remote_port;
		t->ipv4.dport = local_port;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, remote, 16);
	__builtin_memcpy(t->ipv6.daddr, local, 16);
	t->ipv6.sport = remote_port;
	t->ipv6.dport = local_port;
	return sizeof(t->ipv6);
}

INLINE __u32 tuple_of(struct bpf_sock_tuple *t, const struct packet *p)
{
	return socket_tuple(t, p->family, &p->src, p->sport, &p->dst, p->dport);
}

/* Releases the socket. A listener, or a UDP socket that is not connected, is no proof of a flow. */
INLINE bool has_flow(struct bpf_sock *sk, bool tcp)
{
	bool has = tcp ? sk->state != BPF_TCP_LISTEN : sk->state == BPF_TCP_ESTABLISHED;

	bpf_sk_release(sk);
	return has;
}

/* `ctx`: of XDP or TC. */
INLINE bool is_socket_flow(void *ctx, const struct packet *p)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size = tuple_of(&t, p);

	if (p->proto == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
		if (sk) {
			/* Else the two ends become one, with a pointer that is of either kind. */
			asm volatile("" ::: "memory");
			return has_flow(sk, true);
		}
		return false;
	}
	sk = bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	return sk ? has_flow(sk, false) : false;
}

#endif
