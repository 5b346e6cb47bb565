/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Names that Docker's resolver does not know (docs/decisions/0036). In a container it has 127.0.0.11, answers for its own engine,
 * and asks the world for the rest from inside the container's namespace:
 *
 *	container             dockerd, in the container's namespace          becomes
 *	query 127.0.0.11:53 -> its own names; else connect(8.8.8.8:53)   ->  connect(127.0.0.11:port), the agent
 */
#ifndef BEELINE_NAMES_H
#define BEELINE_NAMES_H

#include "maps.h"

#define DNS_PORT 53
#define RESOLVER 0x7f00000b	/* 127.0.0.11 */

/* Whatever else dials a name server there means that one: a process of the container is never called so by accident. */
INLINE bool is_docker(void)
{
	union {
		char text[16];
		__u64 first;
	} comm = {}, docker = { .text = "dockerd" };

	return !bpf_get_current_comm(comm.text, sizeof(comm.text)) && comm.first == docker.first;
}

/* The agent's own socket says that it is alive: without one the world is asked as ever. */
INLINE bool is_listening(struct bpf_sock_addr *ctx, __be16 port)
{
	struct bpf_sock_tuple at = { .ipv4 = { .daddr = bpf_htonl(RESOLVER), .dport = port } };
	struct bpf_sock *sk;

	if (ctx->protocol == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(ctx, &at, sizeof(at.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_tcp(ctx, &at, sizeof(at.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The port of the agent's name service where this dial is a query that Docker's resolver forwards; else 0. */
INLINE __be16 forwarded_query(struct bpf_sock_addr *ctx, __u64 netns, const struct in6_addr *server)
{
	struct name_service *ns = bpf_map_lookup_elem(&name_services, &netns);

	if (!ns || !ns->port || !is_docker() || !is_listening(ctx, ns->port))
		return 0;
	/* Two that dial at once are two servers of one container: either may be asked. */
	ns->dialled = *server;
	return ns->port;
}

#endif
