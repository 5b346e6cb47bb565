/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Reply → the frontend it must seem to come from. State, at the backend's node only.
 *
 * The endpoint sees the client's own address. Where one client port reaches one endpoint through two frontends, the
 * second flow gets a stand-in port, derived from the flow, so that any later packet finds it again:
 *
 *	candidate 0: the client's own port      candidates 1..3: 1024 + hash(flow, i) % 64512
 *
 * The first that is free or closed a minute ago is taken; else the first that has just closed.
 *
 * A client that the endpoint is on-link with (`on_link`) is shown as the gateway, whose ports are shared with all such
 * clients and with the node's own dials: eight candidates, all of them hashed, in a range that those dials do not use.
 */
#ifndef BEELINE_REVNAT_H
#define BEELINE_REVNAT_H

#include "maglev.h"
#include "count.h"
#include "owner.h"

#define REVNAT_CANDIDATES 4
#define ON_LINK_CANDIDATES 8

/* What the programs that enter flows run on. */
#ifndef REVNAT_CTX
#define REVNAT_CTX struct xdp_md
#endif

/* revnat_enter(): the endpoint is to see the gateway. No verdict has this number. */
#define SHOW_GATEWAY (-1)

/*
 * A record that closed so long ago is nobody's. Before, the endpoint's socket may not have heard the last ACK, or wait in
 * TIME-WAIT: whoever got its port would be answered for the old flow.
 */
#define CLOSED_NS (60ull * 1000000000)

/* What a candidate is to a new flow. */
enum { TAKEN, JUST_CLOSED, FREE };

#define FIN_CLIENT 1
#define FIN_ENDPOINT 2
#define BORN_WITHOUT_SYN 4

INLINE __u32 candidate_hash(const struct packet *p, __u32 i)
{
	__u32 a = p->src.s6_addr32[3] ^ p->src.s6_addr32[1], b = p->dst.s6_addr32[3] ^ p->dst.s6_addr32[1];
	__u32 c = ((__u32)p->sport << 16 | p->dport) + i;

	JHASH_FINAL(a, b, c);
	return c;
}

INLINE __be16 candidate(const struct packet *p, __u32 i)
{
	return i == 0 ? p->sport : bpf_htons(1024 + candidate_hash(p, i) % 64512);
}

INLINE __be16 gateway_candidate(const struct packet *p, const struct on_link *o, __u32 i)
{
	__u32 n = o->port_count, first = o->first_port;

	return bpf_htons(n ? first + (candidate_hash(p, i) ^ p->src.s6_addr32[3]) % n : 1024 + candidate_hash(p, i) % 64512);
}

/* What an endpoint is to be shown in place of a client; NULL: the client itself. */
NOINLINE struct on_link *on_link_of(__u32 list, const struct in6_addr *client)
{
	struct on_link_key k = { .prefixlen = 32 + 128, .list = list, .addr = *client };

	return bpf_map_lookup_elem(&on_link, &k);
}

INLINE bool is_mine(const struct revnat *v, const struct packet *p)
{
	return v->port == p->dport && v->client_port == p->sport && same_addr(&v->addr, &p->dst) &&
	       same_addr(&v->client, &p->src);
}

INLINE void promote(const struct revnat_key *k, struct revnat *v)
{
	v->state = REVNAT_PROMOTED;
	bpf_map_update_elem(&revnat, k, v, BPF_ANY);
	bpf_map_delete_elem(&revnat_new, k);
}

/* A client's packet of a known flow: what it says about the flow's life. */
INLINE void client_spoke(const struct revnat_key *k, struct revnat *v, const struct packet *p, __u32 node, bool fresh)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (v->node != node)
		v->node = node;	/* the client came in through another node: replies follow */
	if (now - v->used_ns > 500000000ull)
		v->used_ns = now;
	if (p->tcp & (TCP_FIN | TCP_RST)) {
		v->fins |= FIN_CLIENT;
		if (p->tcp & TCP_RST || (v->fins & FIN_ENDPOINT))
			v->state = REVNAT_CLOSING;
	} else if (unlikely(is_syn(p))) {
		if (v->state == REVNAT_CLOSING) {
			v->state = fresh ? REVNAT_NEW : REVNAT_PROMOTED;
			v->fins = 0;
		}
	} else if (fresh && v->state == REVNAT_REPLIED) {
		if (p->proto == IPPROTO_UDP || (p->tcp & TCP_ACK && p->ack == v->isn + 1))
			promote(k, v);
	}
}

/*
 * A socket of this node, other than a listener, that already owns the tuple: a direct dial of the same process, or
 * (`dialled`) the node's own dial of the same endpoint.
 */
NOINLINE bool socket_owns(REVNAT_CTX *ctx, const struct packet *p, const struct revnat_key *k, bool dialled)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size;

	if (p->proto != IPPROTO_TCP)
		return false;
	if (dialled)
		size = socket_tuple(&t, p->family, &k->endpoint, k->port, &k->client, k->client_port);
	else
		size = socket_tuple(&t, p->family, &k->client, k->client_port, &k->endpoint, k->port);
	sk = bpf_skc_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	return sk ? has_flow(sk, true) : false;
}

/*
 * Finds or makes the record of a client's packet and says which client port the endpoint shall see. Returns 0,
 * SHOW_GATEWAY, or the verdict to leave with. Looks through all candidates before it inserts: the flow may live at any of them.
 */
GLOBAL int revnat_enter(REVNAT_CTX *ctx, const struct packet *p, const struct local_backend *lb, __u32 node,
			__be16 *port)
{
	if (!p || !lb || !port)
		return DROP_HELPER;
	struct revnat_key k = {
		.client = p->src,
		.endpoint = p->family == 4 ? lb->addr4 : lb->addr6,
		.client_port = p->sport,
		.port = lb->port,
		.proto = p->proto,
	};

	if (lb->flags & LOCAL_MASQUERADED)
		k.client = k.endpoint;

	struct revnat *v = bpf_map_lookup_elem(&revnat, &k);

	if (likely(v && is_mine(v, p))) {
		if (v->return_path != lb->return_path)
			v->return_path = lb->return_path;	/* the service's option changed */
		client_spoke(&k, v, p, node, false);
		*port = p->sport;
		return 0;
	}

	bool syn = is_syn(p), tcp = p->proto == IPPROTO_TCP;
	int found = 0;
	__u32 zero = 0;
	/* The best candidate so far is kept in the row: in registers, each of its values would double what the verifier walks. */
	struct revnat *n = bpf_map_lookup_elem(&revnat_scratch, &zero);

	if (!n)
		return DROP_HELPER;
	n->state = TAKEN;
	struct on_link *o = lb->flags & LOCAL_ON_LINK ? on_link_of(lb->ifindex, &p->src) : NULL;

	if (unlikely(o)) {
		k.client = o->gateway;
		found = SHOW_GATEWAY;
	}
	for (int i = 0; i < ON_LINK_CANDIDATES; i++) {
		if (!o && i >= REVNAT_CANDIDATES)
			break;
		k.client_port = o ? gateway_candidate(p, o, i) : candidate(p, i);
		v = bpf_map_lookup_elem(&revnat, &k);
		bool fresh = !v;

		if (!v)
			v = bpf_map_lookup_elem(&revnat_new, &k);
		if (v) {
			if (is_mine(v, p)) {
				*port = k.client_port;
				client_spoke(&k, v, p, node, fresh);
				return found;
			}
			if (!syn || v->state != REVNAT_CLOSING)
				continue;

			__u8 how = bpf_ktime_get_coarse_ns() - v->used_ns < CLOSED_NS ? JUST_CLOSED : FREE;

			if (how > n->state) {
				n->state = how;
				n->client_port = k.client_port;
				n->fins = 1;	/* its record goes */
			}
		} else if (n->state < FREE) {
			if ((o || lb->delivery == DELIVER_PROCESS) && socket_owns(ctx, p, &k, o) && syn)
				continue;
			n->state = FREE;
			n->client_port = k.client_port;
			n->fins = 0;
		}
	}
	if (n->state == TAKEN)
		return DROP_NO_PORT;

	bool takes_over = n->fins;

	k.client_port = n->client_port;
	n->addr = p->dst;
	n->client = p->src;
	n->port = p->dport;
	n->client_port = p->sport;
	n->node = node;
	n->ref = lb->ref;
	n->isn = 0;
	n->state = REVNAT_NEW;
	n->fins = tcp && !syn ? BORN_WITHOUT_SYN : 0;
	n->return_path = lb->return_path;
	n->inside = !!(lb->flags & LOCAL_INSIDE);
	n->used_ns = bpf_ktime_get_coarse_ns();
	if (takes_over)
		bpf_map_delete_elem(&revnat, &k);
	if (bpf_map_update_elem(&revnat_new, &k, n, takes_over ? BPF_ANY : BPF_NOEXIST)) {
		/* Another CPU was first: it may have been this very flow. */
		v = bpf_map_lookup_elem(&revnat_new, &k);
		if (!v || !is_mine(v, p))
			return DROP_NO_PORT;
	} else if (syn || !tcp) {
		count_new_flow(lb->ref);
	}
	*port = k.client_port;
	return found;
}

/* The record that an endpoint's packet answers; `p` is the reply as the endpoint sent it. */
INLINE struct revnat *revnat_find(struct revnat_key *k, const struct packet *p, bool *fresh)
{
	struct revnat *v;

	k->client = p->dst;
	k->endpoint = p->src;
	k->client_port = p->dport;
	k->port = p->sport;
	k->proto = p->proto;
	k->pad[0] = k->pad[1] = k->pad[2] = 0;
	v = bpf_map_lookup_elem(&revnat, k);
	*fresh = !v;
	return v ? v : bpf_map_lookup_elem(&revnat_new, k);
}

INLINE void endpoint_spoke(const struct revnat_key *k, struct revnat *v, const struct packet *p, bool fresh)
{
	if (p->proto == IPPROTO_UDP) {
		if (unlikely(fresh && v->state == REVNAT_NEW))
			v->state = REVNAT_REPLIED;
		return;
	}
	if (unlikely(p->tcp & (TCP_SYN | TCP_FIN | TCP_RST))) {
		if (p->tcp & TCP_RST) {
			v->state = REVNAT_CLOSING;
			return;
		}
		if (p->tcp & TCP_FIN) {
			v->fins |= FIN_ENDPOINT;
			if (v->fins & FIN_CLIENT)
				v->state = REVNAT_CLOSING;
		} else if (fresh) {
			v->isn = p->seq;
			v->state = REVNAT_REPLIED;
		}
		return;
	}
	if (unlikely(fresh && v->state == REVNAT_NEW && v->fins & BORN_WITHOUT_SYN))
		promote(k, v);
}

#endif
