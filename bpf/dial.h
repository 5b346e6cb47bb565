/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tasks that dial a published port of their own node (docs/decisions/0006):
 *
 *	task X:c → A:P		becomes
 *	to a task here		gateway:c' → endpoint:T		X itself may be that task
 *	to a process here	X:c' → A:T, up the stack
 *	to another node		A:c' → A:P, by tunnel		the reply is known by its two equal addresses
 */
#ifndef BEELINE_DIAL_H
#define BEELINE_DIAL_H

#define REVNAT_CTX struct __sk_buff
#include <linux/if_packet.h>
#include "owner.h"
#include "reply.h"
#include "hold.h"

/* A row made for one flow, and where the packet goes. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct local_backend);
} dial_scratch SEC(".maps");

INLINE void dial_fragment_key(struct fragment_key *k, const struct packet *p)
{
	fragment_key_of(k, p);
	k->pad[0] = 1;	/* the same tuple may be a reply to a client */
}

INLINE bool is_zero(const struct in6_addr *a)
{
	return (a->s6_addr32[0] | a->s6_addr32[1] | a->s6_addr32[2] | a->s6_addr32[3]) == 0;
}

/* Does a socket of this node own the flow that this would be a packet of? Its port is one that the node dials from. */
GLOBAL int node_dialled(struct __sk_buff *skb, const struct packet *p)
{
	return p && is_socket_flow(skb, p);
}

/* The frontend that a task dials, or 0. `at` becomes its address as other nodes know it: a gateway's is only ours. */
INLINE __u32 dialled_frontend(const struct settings *s, __u32 row, const struct packet *p, __u32 ifindex,
			      struct in6_addr *at)
{
	__u32 index = find_frontend(s, row, p);
	struct on_link *o;

	*at = p->dst;
	if (likely(index) || !(row & PORT_FRONTEND_MASK))
		return index;
	o = on_link_of(ifindex, &p->dst);
	if (!o || !same_addr(&o->gateway, &p->dst))
		return 0;
	if (p->family == 4)
		map_ipv4(at, s->vtep);
	else
		*at = s->own6[0];
	return is_zero(at) ? 0 : row & PORT_FRONTEND_MASK;
}

/* Addresses and ports in their new places, through a row that reads like a reply's. */
INLINE int rewrite_dial(struct __sk_buff *skb, const struct packet *p, const struct in6_addr *src, __be16 sport,
			const struct in6_addr *dst, __be16 dport)
{
	__u32 zero = 0;
	struct revnat *v = bpf_map_lookup_elem(&reply_scratch, &zero);

	if (!v)
		return -1;
	v->addr = *src;
	v->client = *dst;
	v->port = sport;
	v->client_port = dport;
	return rewrite_reply(skb, p, v);
}

/* To a backend of this node. */
INLINE int dial_here(struct __sk_buff *skb, struct packet *p, const struct settings *s, const struct backend *b)
{
	__u32 zero = 0;
	struct local_backend *lb = bpf_map_lookup_elem(&dial_scratch, &zero), *row;
	struct in6_addr seen = p->src, endpoint;
	struct mac_key k = {};
	__be16 port = p->sport;

	copy_mac(k.mac, b->mac);
	row = bpf_map_lookup_elem(&local_backends, &k);
	if (!row || !lb)
		return DROP_UNKNOWN_BACKEND;
	*lb = *row;
	lb->flags |= LOCAL_INSIDE;
	endpoint = p->family == 4 ? lb->addr4 : lb->addr6;
	if (is_zero(&endpoint))
		return DROP_UNKNOWN_BACKEND;
	if (p->fragment != LATER_FRAGMENT) {
		if (p->proto != lb->proto)
			return DROP_MALFORMED;

		int refused = revnat_enter(skb, p, lb, s->self, &port);

		if (refused > 0)
			return refused;
	}
	if (lb->flags & LOCAL_ON_LINK) {
		struct on_link *o = on_link_of(lb->ifindex, &p->src);

		if (o)
			seen = o->gateway;
	}
	if (rewrite_dial(skb, p, &seen, port, &endpoint, lb->port))
		return DROP_HELPER;
	if (lb->delivery == DELIVER_PROCESS) {
		p->action = TC_CONTINUE;
		return DELIVER_LOCAL_PROCESS;
	}
	/* It was addressed to the gateway's MAC, and is about to be somebody else's packet. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	p->action = lb->delivery == DELIVER_PEER ? bpf_redirect_peer(lb->ifindex, 0) :
						   bpf_redirect_neigh(lb->ifindex, NULL, 0, 0);
	return p->fragment == LATER_FRAGMENT ? DELIVER_FRAGMENT : DELIVER_ENDPOINT;
}

/* To a backend of another node. `at`: the frontend's address, and the task's as the backend sees it. */
INLINE int dial_away(struct __sk_buff *skb, struct packet *p, const struct settings *s, const struct backend *b,
		     const struct in6_addr *at)
{
	__u32 zero = 0, node = b->node;
	struct local_backend *lb = bpf_map_lookup_elem(&dial_scratch, &zero);
	struct node *n = bpf_map_lookup_elem(&nodes, &node);
	struct mac_key to = {};
	__be16 port = p->sport;

	copy_mac(to.mac, b->mac);
	if (!n || !lb || !(n->flags & NODE_RESOLVED))
		return DROP_NO_NEXT_HOP;
	if (unlikely(wire_len(skb, p) > mesh_mtu(s, n) - INNER_OVERHEAD)) {
		if (p->fragment == LATER_FRAGMENT || turn_into_too_big(skb, p, mesh_mtu(s, n) - INNER_OVERHEAD))
			return DROP_TOO_BIG;
		p->action = bpf_redirect(skb->ifindex, 0);
		return RETURN_TOO_BIG;
	}
	if (p->fragment != LATER_FRAGMENT) {
		lb->addr4 = *at;
		lb->addr6 = *at;
		lb->ref = p->ref;
		lb->ifindex = 0;
		lb->port = p->dport;
		lb->proto = p->proto;
		lb->delivery = DELIVER_NEIGH;
		lb->return_path = RETURN_TUNNEL;
		lb->flags = LOCAL_INSIDE | LOCAL_MASQUERADED;

		int refused = revnat_enter(skb, p, lb, s->self, &port);

		if (refused > 0)
			return refused;
	}
	if (rewrite_dial(skb, p, at, port, at, p->dport))
		return DROP_HELPER;
	p->src = *at;
	p->dst = *at;
	p->sport = port;
	if (unlikely(is_syn(p)))
		clamp_mss_skb(skb, p, tunnel_mss(mesh_mtu(s, n), p->family));
	if (encap_skb(skb, n, &to))
		return DROP_HELPER;
	p->action = bpf_redirect(n->ifindex, 0);
	return ENCAP_NODE;
}

/* A task that dials cannot be put back: it asks again after a second, by TCP. */
GLOBAL int wake(struct __sk_buff *skb, const struct packet *p, __u32 frontend)
{
	struct held_packet *r = p ? held_record(p, frontend, skb->ifindex) : NULL;

	if (!r)
		return DROP_NO_BACKEND;
	bpf_ringbuf_submit(r, 0);
	return HELD;
}

INLINE int dial(struct __sk_buff *skb, struct packet *p, const struct settings *s)
{
	struct backend *b = NULL;
	struct fragment_key fk;
	struct in6_addr at;

	if (unlikely(p->fragment == LATER_FRAGMENT)) {
		dial_fragment_key(&fk, p);
		struct fragment *f = bpf_map_lookup_elem(&fragments, &fk);

		if (!f)
			return PASS_NOT_OURS;
		p->ref = f->ref;
		at = f->addr;
	} else {
		if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
			return PASS_NOT_OURS;
		__u32 row = port_row(p->proto, p->dport);

		if (likely(!row))
			return PASS_NOT_OURS;
		__u32 index = dialled_frontend(s, row, p, skb->ifindex, &at);
		struct frontend *fe = index ? bpf_map_lookup_elem(&frontends, &index) : NULL;

		if (!fe)
			return PASS_NOT_OURS;
		if ((p->tcp & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
			return PASS_SYN_ACK;
		if (row & PORT_LOCAL && !is_syn(p) && node_dialled(skb, p))
			return PASS_LOCAL_SOCKET;
		bool none = !fe->tables[p->family == 6].table;

		if (none && !rests(fe, p))
			return PASS_NO_BACKEND;
		if (fe->flags & (FRONTEND_ALLOW | FRONTEND_DENY | FRONTEND_KERNEL)) {
			struct in6_addr task = p->src;
			bool denied;

			p->src = at;	/* as the node's other tasks' dials of other nodes are seen there */
			denied = is_denied(fe, p);
			p->src = task;
			if (denied)
				return DROP_DENIED;
			if (fe->flags & FRONTEND_KERNEL && goes_to_kernel(s, fe, p))
				return PASS_STALE;
		}
		p->action = TC_ACT_SHOT;	/* of HELD */
		if (none)
			return wake(skb, p, index);
		p->ref = pick(p, fe, frontend_hash(p, s, fe, index), &b);
		count_frontend(index, p->len);
		if (!p->ref)
			return fe->flags & FRONTEND_HOLDS && begins(p) ? wake(skb, p, index) : DROP_NO_BACKEND;
		if (is_kernel(p->ref))
			return PASS_KERNEL;
		count_backend(p->ref, p->len);
		if (unlikely(p->fragment == FIRST_FRAGMENT)) {
			struct fragment f = { .ref = p->ref, .addr = at };

			dial_fragment_key(&fk, p);
			bpf_map_update_elem(&fragments, &fk, &f, BPF_ANY);
		}
	}
	if (!b)
		b = backend_of(p->ref);
	if (!b)
		return DROP_NO_BACKEND;
	return b->node == s->self ? dial_here(skb, p, s, b) : dial_away(skb, p, s, b, &at);
}

#endif
