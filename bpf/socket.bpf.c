/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The node's own processes that dial a frontend get a backend at connect time, so that no packet needs an edit:
 *
 *	dialled                       becomes
 *	127.0.0.1:8080, 10.0.0.1:8080 a backend on this node: its address and target port
 *	                              else the chosen backend's node, same port: that node balances as for any client
 *
 * Tasks that dial a service's VIP of a network that they are attached to get one of its tasks (vip.h). What Docker's resolver
 * asks of the world from inside a container on a network of ours is asked of the agent first (names.h).
 *
 * Attached at the cgroup root, so first of all: in which network namespace is the caller?
 */
#include "frontend.h"
#include "count.h"
#include "names.h"
#include "vip.h"

#define PROCEED 1
#define REFUSE 0

enum caller {
	CALLER_UNKNOWN = 0,
	CALLER_NODE,	/* a process in the node's own namespace */
	CALLER_TASK,	/* one in a namespace that is attached to an overlay network */
};

INLINE enum caller caller_of(void *ctx, __u64 *netns, struct netns_networks **attached)
{
	struct settings *s = settings_row();

	*netns = bpf_get_netns_cookie(ctx);
	if (s && s->netns_cookie && *netns == s->netns_cookie)
		return CALLER_NODE;
	*attached = bpf_map_lookup_elem(&netns_networks, netns);
	return *attached ? CALLER_TASK : CALLER_UNKNOWN;
}

INLINE bool is_loopback(const struct in6_addr *a)
{
	if (a->s6_addr32[0] == 0 && a->s6_addr32[1] == 0 && a->s6_addr32[2] == bpf_htonl(0xffff))
		return (a->s6_addr32[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->s6_addr32[0] == 0 && a->s6_addr32[1] == 0 && a->s6_addr32[2] == 0 &&
	       a->s6_addr32[3] == bpf_htonl(1);
}

INLINE bool is_mapped(const struct bpf_sock_addr *ctx)
{
	return ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

/* A backend for a dial of p->dst, p->dport; false where that is no frontend. Fills the backend's half of `peer`. */
GLOBAL int choose(const struct packet *p, __u32 hash, struct socket_peer *peer)
{
	struct settings *s = settings_row();

	if (!p || !peer || !s)
		return false;
	__u32 row = port_row(p->proto, p->dport), index = row & PORT_FRONTEND_MASK;

	if (!row)
		return false;
	if (!index || !is_loopback(&p->dst) || row & PORT_EXACT)
		index = find_frontend(s, row, p);
	struct frontend *fe = index ? bpf_map_lookup_elem(&frontends, &index) : NULL;
	bool v6 = p->family == 6;

	if (!fe)
		return false;
	if (!fe->tables[v6].table)
		v6 = false;	/* IPv6 dialled, IPv4 answers: a mapped address will do */
	if (!fe->tables[v6].table)
		return false;

	__u32 ref = next_alive(fe->tables[v6].table, fe->tables[v6].mask, hash & fe->tables[v6].mask);
	struct backend *b = ref && !is_kernel(ref) ? backend_of(ref) : NULL;

	if (!b)
		return false;
	peer->ref = ref;
	if (b->node == s->self) {
		struct mac_key k = {};

		__builtin_memcpy(k.mac, b->mac, 6);
		struct local_backend *lb = bpf_map_lookup_elem(&local_backends, &k);

		if (!lb)
			return false;
		peer->backend_addr = v6 ? lb->addr6 : lb->addr4;
		peer->backend_port = lb->port;
	} else {
		__u32 node = b->node;
		struct node *n = bpf_map_lookup_elem(&nodes, &node);

		if (!n)
			return false;
		map_ipv4(&peer->backend_addr, n->vtep);
		peer->backend_port = p->dport;
	}
	count_backend(ref, 0);
	return true;
}

INLINE void describe(struct bpf_sock_addr *ctx, struct packet *p, bool v6)
{
	if (v6) {
		p->dst.s6_addr32[0] = ctx->user_ip6[0];
		p->dst.s6_addr32[1] = ctx->user_ip6[1];
		p->dst.s6_addr32[2] = ctx->user_ip6[2];
		p->dst.s6_addr32[3] = ctx->user_ip6[3];
	} else {
		map_ipv4(&p->dst, ctx->user_ip4);
	}
	p->family = v6 && !is_mapped(ctx) ? 6 : 4;
	p->dport = (__be16)ctx->user_port;
	p->proto = ctx->protocol == IPPROTO_UDP ? IPPROTO_UDP : IPPROTO_TCP;
}

INLINE void redirect_to(struct bpf_sock_addr *ctx, const struct in6_addr *addr, __be16 port, bool v6)
{
	if (v6) {
		ctx->user_ip6[0] = addr->s6_addr32[0];
		ctx->user_ip6[1] = addr->s6_addr32[1];
		ctx->user_ip6[2] = addr->s6_addr32[2];
		ctx->user_ip6[3] = addr->s6_addr32[3];
	} else {
		ctx->user_ip4 = addr->s6_addr32[3];
	}
	ctx->user_port = port;
}

/* Remembers what was dialled, and sends the socket to the backend. False: it could not be remembered, so it was not sent. */
INLINE bool turn(struct bpf_sock_addr *ctx, const struct socket_peer *peer, __u64 cookie, bool v6, bool datagram)
{
	if (datagram) {
		struct datagram_key k = { .socket = cookie, .addr = peer->backend_addr, .port = peer->backend_port };

		bpf_map_update_elem(&socket_datagrams, &k, peer, BPF_ANY);
	} else {
		struct bpf_sock *sk = ctx->sk;
		struct socket_peer *kept =
			sk ? bpf_sk_storage_get(&socket_peers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE) : NULL;

		if (!kept)
			return false;
		*kept = *peer;
	}
	redirect_to(ctx, &peer->backend_addr, peer->backend_port, v6);
	return true;
}

INLINE void count_dial(enum verdict verdict, const struct packet *p)
{
	if (count_verdict(PROGRAM_SOCKET, verdict, p))
		trace(PROGRAM_SOCKET, verdict, p, 0);
}

/* A dial from a namespace of an overlay network: every port and both protocols of a VIP are its service's. */
INLINE int dial_vip(struct bpf_sock_addr *ctx, struct netns_networks *attached, __u64 netns, bool v6, bool datagram)
{
	struct socket_peer peer = {};
	struct packet p = {};

	describe(ctx, &p, v6);
	struct vip *vip = find_vip(attached, &p.dst);

	if (!vip)
		return PROCEED;
	if (vip->flags & VIP_KERNEL) {
		struct settings *s = settings_row();

		if (!s || is_stale(s)) {
			count_dial(PASS_STALE, &p);
			return PROCEED;
		}
	}
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u32 hash = mix(vip->flags & VIP_AFFINITY ? netns : cookie);

	if (!pick_vip_backend(vip->table, vip->mask, hash, &peer.backend_addr)) {
		/* As IPVS: refused at once, where a packet to the VIP would wait for an answer that nobody gives. */
		count_dial(DROP_NO_BACKEND, &p);
		bpf_set_retval(-ECONNREFUSED);
		return REFUSE;
	}
	peer.addr = p.dst;
	peer.port = peer.backend_port = p.dport;
	if (turn(ctx, &peer, cookie, v6, datagram))
		count_dial(DELIVER_VIP, &p);
	return PROCEED;
}

/* A family that the socket cannot speak: an IPv4 socket and an IPv6 backend never meet, for tables are by family. */
INLINE int dial(struct bpf_sock_addr *ctx, bool v6, bool datagram)
{
	struct netns_networks *attached = NULL;
	struct socket_peer peer = {};
	struct packet p = {};
	__u64 netns;
	enum caller caller = caller_of(ctx, &netns, &attached);

	if (caller == CALLER_UNKNOWN)
		return PROCEED;
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return PROCEED;
	if (caller == CALLER_TASK) {
		if (!datagram && ctx->user_port == bpf_htons(DNS_PORT)) {
			describe(ctx, &p, v6);
			__be16 port = forwarded_query(ctx, netns, &p.dst);

			if (port) {
				struct in6_addr to;

				map_ipv4(&to, bpf_htonl(RESOLVER));
				redirect_to(ctx, &to, port, v6);
				return PROCEED;
			}
		}
		return attached ? dial_vip(ctx, attached, netns, v6, datagram) : PROCEED;
	}
	describe(ctx, &p, v6);
	__u64 cookie = bpf_get_socket_cookie(ctx);

	/* The same socket keeps its backend: every datagram of an unconnected one comes through here. */
	if (!choose(&p, mix(cookie ^ p.dport), &peer))
		return PROCEED;
	peer.addr = p.dst;
	peer.port = p.dport;
	p.ref = peer.ref;
	if (turn(ctx, &peer, cookie, v6, datagram))
		count_dial(DELIVER_SOCKET, &p);
	return PROCEED;
}

INLINE bool is_known(void *ctx)
{
	struct netns_networks *attached;
	__u64 netns;

	return caller_of(ctx, &netns, &attached) != CALLER_UNKNOWN;
}

/* Whoever asks for the peer sees what was dialled. */
INLINE int peer_name(struct bpf_sock_addr *ctx, bool v6)
{
	struct bpf_sock *sk = ctx->sk;
	struct packet p = {};

	if (!sk || !is_known(ctx))
		return PROCEED;
	struct socket_peer *peer = bpf_sk_storage_get(&socket_peers, sk, NULL, 0);

	if (!peer)
		return PROCEED;
	describe(ctx, &p, v6);
	if (p.dport == peer->backend_port && same_addr(&p.dst, &peer->backend_addr))
		redirect_to(ctx, &peer->addr, peer->port, v6);
	return PROCEED;
}

INLINE int datagram_source(struct bpf_sock_addr *ctx, bool v6)
{
	struct datagram_key k = {};
	struct packet p = {};

	if (!is_known(ctx))
		return PROCEED;
	describe(ctx, &p, v6);
	k.socket = bpf_get_socket_cookie(ctx);
	k.addr = p.dst;
	k.port = p.dport;
	struct socket_peer *peer = bpf_map_lookup_elem(&socket_datagrams, &k);

	if (peer)
		redirect_to(ctx, &peer->addr, peer->port, v6);
	else
		peer_name(ctx, v6);	/* a connected socket */
	return PROCEED;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return dial(ctx, false, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return dial(ctx, true, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return dial(ctx, false, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return dial(ctx, true, true);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return datagram_source(ctx, false);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return datagram_source(ctx, true);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return peer_name(ctx, false);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return peer_name(ctx, true);
}

char _license[] SEC("license") = "Dual BSD/GPL";
