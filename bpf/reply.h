/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Replies of backends, on their way out of an endpoint (endpoint_tc) or of the node itself (uplink_tc_egress):
 * revnat, then straight to the client or by tunnel to the ingress node.
 */
#ifndef BEELINE_REPLY_H
#define BEELINE_REPLY_H

#include "fragment.h"

/* The inner destination of what goes back by tunnel. */
#define CLIENT_MAC { .mac = { TO_CLIENT } }

/* What a reply needs of its revnat record, copied: the record may be promoted meanwhile. */
GLOBAL int find_reply(const struct packet *p, struct revnat *out)
{
	struct revnat_key k;
	bool fresh;

	if (!p || !out)
		return -1;
	struct revnat *v = revnat_find(&k, p, &fresh);

	if (!v)
		return -1;
	/*
	 * A client's SYN opens a closing record before the endpoint can answer it: this answers a SYN that came another
	 * way, as by the kernel's mesh, from a client port that a flow of ours had before.
	 */
	if (unlikely((p->tcp & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) && v->state == REVNAT_CLOSING)) {
		bpf_map_delete_elem(&revnat, &k);
		bpf_map_delete_elem(&revnat_new, &k);
		return -1;
	}
	*out = *v;
	endpoint_spoke(&k, v, p, fresh);
	return 0;
}

GLOBAL int find_reply_fragment(const struct packet *p, struct revnat *out)
{
	struct fragment_key k;

	if (!p || !out)
		return -1;
	fragment_key_of(&k, p);
	struct fragment *f = bpf_map_lookup_elem(&fragments, &k);

	if (!f)
		return -1;
	out->addr = f->addr;
	out->client = f->client;
	out->node = f->node;
	out->ref = f->ref;
	out->return_path = f->return_path;
	out->inside = f->inside;
	return 0;
}

GLOBAL int remember_reply_fragment(const struct packet *p, const struct revnat *v)
{
	struct fragment_key k;
	struct fragment f = {};

	if (!p || !v)
		return -1;
	fragment_key_of(&k, p);
	f.addr = v->addr;
	f.client = v->client;
	f.inside = v->inside;
	f.node = v->node;
	f.ref = v->ref;
	f.return_path = v->return_path;
	return bpf_map_update_elem(&fragments, &k, &f, BPF_ANY);
}

/* The client that an ICMP error quotes and goes to, where the endpoint was shown another address. */
NOINLINE int rewrite_error_client(struct __sk_buff *skb, const struct packet *p, const struct in6_addr *seen,
				  const struct in6_addr *client)
{
	__u32 check = p->l4 + 2, quoted = p->l4 + 8;

	if (p->family == 4) {
		__be32 a = seen->s6_addr32[3], b = client->s6_addr32[3], to = p->dst.s6_addr32[3];

		return bpf_l3_csum_replace(skb, quoted + offsetof(struct iphdr, check), a, b, 4) ||
		       bpf_skb_store_bytes(skb, quoted + offsetof(struct iphdr, saddr), &b, 4, 0) ||
		       bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), to, b, 4) ||
		       bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &b, 4, 0);
	}
	__s64 d = bpf_csum_diff((__be32 *)seen, 16, (__be32 *)client, 16, 0);

	if (bpf_l4_csum_replace(skb, check, 0, d, 0))
		return -1;
	d = bpf_csum_diff((__be32 *)&p->dst, 16, (__be32 *)client, 16, 0);
	return bpf_l4_csum_replace(skb, check, 0, d, BPF_F_PSEUDO_HDR) ||
	       bpf_skb_store_bytes(skb, quoted + offsetof(struct ipv6hdr, saddr), client, 16, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), client, 16, 0);
}

/* An ICMP error that an endpoint sends about a client's packet: the quoted packet as the client sent it. */
GLOBAL int rewrite_reply_error(struct __sk_buff *skb, const struct packet *p, struct revnat *v)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet q = {};
	struct revnat_key k;
	bool fresh;

	if (!p || !v || parse_quoted(data, end, p, &q))
		return -1;
	/* parse_quoted() turned a request round: `q` is the reply that it would have got. */
	struct revnat *found = revnat_find(&k, &q, &fresh);

	if (!found)
		return -1;
	*v = *found;

	struct in6_addr addr = v->addr, client = v->client;
	__be16 port = v->port, client_port = v->client_port;

	if (unlikely(!same_addr(&q.dst, &client)) && rewrite_error_client(skb, p, &q.dst, &client))
		return -1;

	__u32 check = p->l4 + 2, quoted = p->l4 + 8, ports = q.l4 & 0x7ff;

	if (bpf_l4_csum_replace(skb, check, q.sport, port, 2) ||
	    bpf_l4_csum_replace(skb, check, q.dport, client_port, 2) ||
	    bpf_skb_store_bytes(skb, ports + 2, &port, 2, 0) || bpf_skb_store_bytes(skb, ports, &client_port, 2, 0))
		return -1;
	if (p->family == 4) {
		__be32 a = q.src.s6_addr32[3], b = addr.s6_addr32[3], own = p->src.s6_addr32[3];

		/* The quoted header's own checksum takes up its change of address. */
		return bpf_l3_csum_replace(skb, quoted + offsetof(struct iphdr, check), a, b, 4) ||
		       bpf_skb_store_bytes(skb, quoted + offsetof(struct iphdr, daddr), &b, 4, 0) ||
		       bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), own, b, 4) ||
		       bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &b, 4, 0);
	}
	__s64 d = bpf_csum_diff((__be32 *)&q.src, 16, (__be32 *)&addr, 16, 0);

	if (bpf_l4_csum_replace(skb, check, 0, d, 0))
		return -1;
	d = bpf_csum_diff((__be32 *)&p->src, 16, (__be32 *)&addr, 16, 0);
	return bpf_l4_csum_replace(skb, check, 0, d, BPF_F_PSEUDO_HDR) ||
	       bpf_skb_store_bytes(skb, quoted + offsetof(struct ipv6hdr, daddr), &addr, 16, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &addr, 16, 0);
}

INLINE bool by_tunnel(const struct revnat *v, const struct node *n)
{
	if (v->return_path == RETURN_AUTO)
		return !(n->flags & NODE_DSR);
	return v->return_path == RETURN_TUNNEL;
}

/* What find() says of a packet that answers a flow: no verdict has this number, and PASS_NOT_OURS is 0. */
#define FOUND (-1)

/* Which flow a packet answers: FOUND, or the verdict; an ICMP error is rewritten at once. */
INLINE int find(struct __sk_buff *skb, const struct packet *p, struct revnat *v)
{
	if (unlikely(p->fragment == LATER_FRAGMENT))
		return find_reply_fragment(p, v) ? PASS_NOT_OURS : FOUND;
	if (unlikely(is_icmp(p)))
		return is_icmp_error(p) && !rewrite_reply_error(skb, p, v) ? FOUND : PASS_NOT_OURS;
	if (find_reply(p, v))
		return PASS_NO_REVNAT;
	if (unlikely(p->fragment == FIRST_FRAGMENT))
		remember_reply_fragment(p, v);
	return FOUND;
}

/*
 * The walk of a reply. `own`: it comes from the node itself, by the egress hook, where a packet that stays as it is
 * goes on by itself. p->action is the TC action of a verdict that is neither pass nor drop.
 */
INLINE int reply(struct __sk_buff *skb, struct packet *p, const struct settings *s, bool own)
{
	struct mac_key client = CLIENT_MAC;
	__u32 zero = 0;
	struct revnat *v = bpf_map_lookup_elem(&reply_scratch, &zero);
	bool second = s->mark && skb->mark == s->mark + SKB_SECOND, cut = false;

	if (!v)
		return DROP_HELPER;
	if (second)
		skb->mark = 0;

	bool error = is_icmp(p);
	int found = find(skb, p, v);

	if (found != FOUND)
		return found;
	p->ref = v->ref;

	__u32 node = v->node;
	struct node *n = bpf_map_lookup_elem(&nodes, &node);

	if (!n)
		return DROP_NO_NEXT_HOP;

	/* A task of another node that dialled is seen as that node's own address: only a tunnel carries A → A. */
	bool local = node == s->self, tunnel = !local && (by_tunnel(v, n) || same_addr(&v->addr, &v->client));

	if (tunnel && !(n->flags & NODE_RESOLVED))
		return DROP_NO_NEXT_HOP;
	if (unlikely(tunnel && wire_len(skb, p) > mesh_mtu(s, n) - INNER_OVERHEAD)) {
		cut = !p->df && p->proto == IPPROTO_UDP && !skb->gso_size;
		if (!cut) {
			if (error || p->fragment == LATER_FRAGMENT || turn_into_too_big(skb, p, mesh_mtu(s, n) - INNER_OVERHEAD))
				return DROP_TOO_BIG;
			p->action = bpf_redirect(skb->ifindex, own ? BPF_F_INGRESS : 0);
			return RETURN_TOO_BIG;
		}
		if (!second) {
			skb->mark = s->mark + SKB_SECOND;
			bpf_clone_redirect(skb, skb->ifindex, own ? 0 : BPF_F_INGRESS);
			skb->mark = 0;
			/* On egress the clone ran through here meanwhile, and used the scratch row. */
			if (find(skb, p, v) != FOUND)
				return DROP_TOO_BIG;
		}
	}
	if (!error && rewrite_reply(skb, p, v))
		return DROP_HELPER;
	p->src = v->addr;
	p->dst = v->client;
	if (unlikely((p->tcp & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) && (!local || s->mesh_mtu))
		clamp_mss_skb(skb, p, tunnel_mss(local ? s->mesh_mtu : mesh_mtu(s, n), p->family));
	if (!tunnel) {
		p->action = own ? TC_CONTINUE : to_client(skb, p, v->inside);
		if (p->action == TC_ACT_SHOT)
			return DROP_NO_NEXT_HOP;
		return local ? RETURN_CLIENT_LOCAL : RETURN_CLIENT_DSR;
	}
	if (unlikely(cut ? fragment_skb(skb, p, n, &client, second) : encap_skb(skb, n, &client)))
		return cut ? DROP_TOO_BIG : DROP_HELPER;
	p->action = bpf_redirect(n->ifindex, 0);
	return cut ? RETURN_FRAGMENTED : RETURN_ENCAP;
}

#endif
