/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * XDP on each uplink: clients' packets to frontends, and what other nodes send. The walk is drawn in README.md.
 */
#include "revnat.h"
#include "frontend.h"
#include "hold.h"
#include "overlay.h"
#include "rewrite.h"
#include "icmp.h"
#include "mark.h"
#include "owner.h"
#include "kernel_conntrack.h"

/* Where a packet is about to go, and on whose behalf. */
struct passage {
	struct local_backend *lb;	/* set: delivered on this node */
	__u32 ref;			/* else: the backend */
	struct backend *backend;	/* its row, where it is known already */
	__u32 hash;
	__u32 node;			/* ingress node; index in `nodes` */
	__be32 vtep;			/* its VTEP */
	__u8 flags;			/* FRAME_… of the inner source MAC */
};

/* Not a verdict: the walk goes on to the backend of the passage. */
#define TO_BE_SENT VERDICT_COUNT

INLINE __u32 frame_len(struct xdp_md *ctx, bool frags)
{
	return frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
}

INLINE int mark_for(struct xdp_md *ctx, const struct settings *s, const struct local_backend *lb)
{
	if (lb->delivery == DELIVER_PROCESS)
		return 0;
	return put_mark(ctx, s->mark, lb->delivery == DELIVER_PEER ? MARK_PEER : MARK_NEIGH, lb->ifindex);
}

/* The gateway in place of a client that the endpoint is on-link with. Returns 0, SHOW_GATEWAY where it was put there, or -2. */
GLOBAL int show_gateway(struct xdp_md *ctx, const struct packet *p, __u32 ifindex)
{
	if (!p)
		return -2;
	struct on_link *o = on_link_of(ifindex, &p->src);

	if (!o)
		return 0;
	return rewrite_source(ctx, p, &o->gateway) ? -2 : SHOW_GATEWAY;
}

/* Into an endpoint or to a process. `p` is the client's packet as it entered the mesh. */
INLINE int deliver(struct xdp_md *ctx, struct packet *p, const struct settings *s, const struct passage *to)
{
	const struct local_backend *lb = to->lb;
	struct in6_addr addr = p->family == 4 ? lb->addr4 : lb->addr6;
	__be16 client_port = p->sport, port = lb->port;
	__u32 node = to->node;
	int shown = lb->flags & LOCAL_ON_LINK;

	if (p->proto != lb->proto && p->fragment != LATER_FRAGMENT)
		return DROP_MALFORMED;
	if (unlikely((addr.s6_addr32[0] | addr.s6_addr32[1] | addr.s6_addr32[2] | addr.s6_addr32[3]) == 0))
		return DROP_UNKNOWN_BACKEND;	/* it has no address of this family */
	if (likely(p->fragment != LATER_FRAGMENT)) {
		shown = revnat_enter(ctx, p, lb, node, &client_port);
		if (unlikely(shown > 0))
			return shown;
	}
	if (rewrite_destination(ctx, p, &addr, port, client_port))
		return DROP_MALFORMED;
	if (unlikely(shown)) {
		shown = show_gateway(ctx, p, lb->ifindex);
		if (shown < SHOW_GATEWAY)
			return DROP_MALFORMED;
	}
	if (unlikely(is_syn(p))) {
		__u16 mtu = s->mesh_mtu;

		if (node != s->self && lb->return_path != RETURN_DSR) {
			struct node *n = bpf_map_lookup_elem(&nodes, &node);

			if (n)
				mtu = mesh_mtu(s, n);
		}
		/* The ingress network's MTU holds for every published connection, as with Docker's. */
		if (mtu)
			clamp_mss(ctx, p, tunnel_mss(mtu, p->family));
	}
	p->action = XDP_PASS;
	if (mark_for(ctx, s, lb))
		return DROP_HELPER;
	if (p->fragment == LATER_FRAGMENT)
		return DELIVER_FRAGMENT;
	if (unlikely(shown))
		return DELIVER_ON_LINK;
	return lb->delivery == DELIVER_PROCESS ? DELIVER_LOCAL_PROCESS : DELIVER_ENDPOINT;
}

/* An ICMP error about a flow of this backend, rewritten to speak of what the endpoint knows. */
GLOBAL int enter_icmp(struct xdp_md *ctx, const struct packet *p, const struct local_backend *lb)
{
	__u32 zero = 0;
	struct packet *q = bpf_map_lookup_elem(&quoted_scratch, &zero);
	__be16 quoted[2];
	struct on_link *o = NULL;
	bool found = false;

	if (!p || !lb || !q)
		return DROP_HELPER;
	struct in6_addr endpoint = p->family == 4 ? lb->addr4 : lb->addr6;
	struct revnat_key k = { .endpoint = endpoint, .port = lb->port, .proto = lb->proto };

	if (parse_quoted((void *)(long)ctx->data, (void *)(long)ctx->data_end, p, q))
		return DROP_MALFORMED;
	k.client = q->src;
	for (__u32 i = 0; i < REVNAT_CANDIDATES + ON_LINK_CANDIDATES && !found; i++) {
		if (i == REVNAT_CANDIDATES) {
			o = lb->flags & LOCAL_ON_LINK ? on_link_of(lb->ifindex, &q->src) : NULL;
			if (!o)
				break;
			k.client = o->gateway;
		}
		k.client_port = o ? gateway_candidate(q, o, i - REVNAT_CANDIDATES) : candidate(q, i);
		struct revnat *v = bpf_map_lookup_elem(&revnat, &k);

		if (!v)
			v = bpf_map_lookup_elem(&revnat_new, &k);
		found = v && is_mine(v, q);
	}
	if (!found)
		return DROP_UNKNOWN_BACKEND;
	quoted[0] = lb->port;
	quoted[1] = k.client_port;
	if (o && (rewrite_quoted_client(ctx, p, &q->src, &o->gateway) || rewrite_source(ctx, p, &o->gateway)))
		return DROP_MALFORMED;
	return rewrite_quoted(ctx, p, q, &endpoint, quoted) ? DROP_MALFORMED : 0;
}

INLINE int deliver_icmp(struct xdp_md *ctx, struct packet *p, const struct settings *s, const struct passage *to)
{
	int refused = enter_icmp(ctx, p, to->lb);

	if (refused)
		return refused;
	p->action = XDP_PASS;
	return mark_for(ctx, s, to->lb) ? DROP_HELPER : DELIVER_ICMP;
}

/* Prepends the outer headers. The inner packet is not touched. */
INLINE int encap(struct xdp_md *ctx, struct packet *p, const struct settings *s, const struct passage *to,
		 const struct backend *b, bool frags)
{
	__u32 node = b->node;
	struct node *n = bpf_map_lookup_elem(&nodes, &node);

	if (unlikely(!n || !(n->flags & NODE_RESOLVED)))
		return DROP_NO_NEXT_HOP;

	__u32 len = frame_len(ctx, frags), mtu = mesh_mtu(s, n);

	if (unlikely(len + OUTER_IP_LEN > mtu)) {
		if (is_icmp(p))
			return DROP_TOO_BIG;
		if (!p->df) {
			p->action = XDP_PASS;	/* uplink_tc fragments it */
			return put_mark(ctx, s->mark, MARK_ENCAP, to->ref) ? DROP_HELPER : ENCAP_FRAGMENTS;
		}
		p->action = XDP_TX;
		return answer_too_big(ctx, p, mtu - INNER_OVERHEAD) ? DROP_TOO_BIG : RETURN_TOO_BIG;
	}
	if (bpf_xdp_adjust_head(ctx, -ENCAP_LEN))
		return DROP_HELPER;

	struct outer *o = (void *)(long)ctx->data;
	struct ethhdr *inner = (void *)(o + 1);

	if ((void *)(inner + 1) > (void *)(long)ctx->data_end)
		return DROP_HELPER;
	copy_mac(inner->h_dest, b->mac);
	fill_source_mac(inner->h_source, to->vtep, to->flags);
	fill_outer(o, s, n, len, to->hash);
	p->action = n->ifindex == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(n->ifindex, 0);
	return to->flags & FRAME_REBALANCED ? ENCAP_REBALANCED : ENCAP_NODE;
}

/* To the backend of the passage: deliver here, or send it to its node. */
INLINE int send(struct xdp_md *ctx, struct packet *p, const struct settings *s, struct passage *to, bool frags)
{
	if (!to->lb) {
		struct backend *b = likely(to->backend) ? to->backend : backend_of(to->ref);

		if (!b)
			return DROP_NO_BACKEND;
		p->ref = to->ref;
		if (likely(b->node != s->self))
			return encap(ctx, p, s, to, b, frags);

		struct mac_key k = {};

		copy_mac(k.mac, b->mac);
		to->lb = bpf_map_lookup_elem(&local_backends, &k);
		if (!to->lb)
			return DROP_UNKNOWN_BACKEND;
	}
	p->ref = to->lb->ref;
	return unlikely(is_icmp(p)) ? deliver_icmp(ctx, p, s, to) : deliver(ctx, p, s, to);
}

/*
 * SYN for a backend that is down or unknown here: the next slots know better. `from`: the node that has passed it on already,
 * for the same reason, as where tasks of both have just started: not back to it.
 */
GLOBAL __u32 other_backend(const struct settings *s, const struct packet *p, __u32 from)
{
	if (!s || !p)
		return REF_NONE;
	__u32 row = port_row(p->proto, p->dport), index = row & PORT_FRONTEND_MASK;
	bool v6 = p->family == 6;

	if (row & PORT_EXACT) {
		struct frontend_key k = { .addr = p->dst, .port = p->dport, .proto = p->proto };
		__u32 *exact = bpf_map_lookup_elem(&exact_frontends, &k);

		if (exact)
			index = *exact;
	}
	struct frontend *fe = index ? bpf_map_lookup_elem(&frontends, &index) : NULL;

	if (!fe || !fe->tables[v6].table)
		return REF_NONE;
	__u32 hash = flow_hash(p, s->hash_seed, fe->flags & FRONTEND_AFFINITY);
	__u32 table = fe->tables[v6].table, mask = fe->tables[v6].mask;

	if (from != MAX_NODES)
		return next_elsewhere(table, mask, hash & mask, from);
	__u32 ref = next_alive(table, mask, hash & mask);

	return is_kernel(ref) ? REF_NONE : ref;
}

/* Flows that were sent on lie in conntrack beside this node's own, which they may be too: they may come back to where they entered. */
#define SENT_ON_GENERATION 0xffffffffu
#define SENT_ON_NS (8100ull * 1000000000)	/* 2 h 15 min, as the default trackingWindow */

__u64 sent_on_ns;	/* when such a flow was last seen */

INLINE bool was_sent_on_lately(void)
{
	return unlikely(sent_on_ns) && bpf_ktime_get_coarse_ns() - sent_on_ns < SENT_ON_NS;
}

/*
 * Where a flow goes whose backend is down or unknown here, and stays when the backend comes: an added backend is in the
 * tables of other nodes before this one has found its endpoint. `here`: the backend is known by now. `own`: it, where
 * nothing but a better place keeps the flow from it. `from`: see other_backend().
 */
GLOBAL __u32 sent_on(const struct settings *s, const struct packet *p, bool here, __u32 own, __u32 from)
{
	if (!s || !p || is_icmp(p) || p->fragment == LATER_FRAGMENT)
		return REF_NONE;
	bool syn = is_syn(p);
	struct flow_key k;

	flow_key_of(&k, p);
	k.kind = FLOW_SENT_ON;
	struct flow *f = bpf_map_lookup_elem(&conntrack, &k);

	if (f && f->generation == SENT_ON_GENERATION) {
		struct backend *b = backend_of(f->ref);

		if (b && b->node == from)
			return REF_NONE;
		if (is_alive(f->ref) && (!syn || !here || f->isn == p->seq)) {
			sent_on_ns = bpf_ktime_get_coarse_ns();
			return f->ref;
		}
		bpf_map_delete_elem(&conntrack, &k);
	}
	if (here || !(syn || p->proto == IPPROTO_UDP))
		return REF_NONE;

	struct flow n = { .ref = other_backend(s, p, from), .generation = SENT_ON_GENERATION, .isn = p->seq };

	if (n.ref == own)
		return REF_NONE;
	if (n.ref) {
		bpf_map_update_elem(&conntrack, &k, &n, BPF_ANY);
		sent_on_ns = bpf_ktime_get_coarse_ns();
	}
	return n.ref;
}

/*
 * A SYN for a backend that drains: this node, where the backend's task is being stopped, learns that first. Others still send
 * it new flows, and its listener may be closed. Not one that it has had before, and may have answered.
 */
GLOBAL int is_late(const struct packet *p, const struct local_backend *lb)
{
	if (!p || !lb || lb->state != BACKEND_DRAINING || !is_syn(p))
		return false;
	struct revnat_key k = {
		.client = p->src,
		.endpoint = p->family == 4 ? lb->addr4 : lb->addr6,
		.client_port = p->sport,
		.port = lb->port,
		.proto = p->proto,
	};
	struct revnat *v = bpf_map_lookup_elem(&revnat, &k);

	if (!v)
		v = bpf_map_lookup_elem(&revnat_new, &k);
	return !v || v->state == REVNAT_CLOSING || !is_mine(v, p);
}

/* Answered here so that a probe says "this node's datapath works", not "its agent does". Returns the action. */
GLOBAL int answer_probe(struct xdp_md *ctx, const struct settings *s)
{
	struct outer *o = (void *)(long)ctx->data;
	struct ethhdr *inner = (void *)(o + 1);
	struct probe *probe = (void *)(inner + 1);
	int action = XDP_TX;
	__be16 port;

	if (!s || (void *)(probe + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	if (probe->via) {
		__be32 via = probe->via;
		__u32 *index = bpf_map_lookup_elem(&vteps, &via);
		__u32 i = index ? *index : MAX_NODES;
		struct node *to = bpf_map_lookup_elem(&nodes, &i);

		if (!to || !(to->flags & NODE_RESOLVED))
			return XDP_DROP;
		copy_mac(o->eth.h_dest, to->dmac);
		copy_mac(o->eth.h_source, to->smac);
		o->ip.daddr = to->vtep;
		if (to->ifindex != ctx->ingress_ifindex)
			action = bpf_redirect(to->ifindex, 0);
	} else {
		__u8 mac[6];

		copy_mac(mac, o->eth.h_dest);
		copy_mac(o->eth.h_dest, o->eth.h_source);
		copy_mac(o->eth.h_source, mac);
		o->ip.daddr = o->ip.saddr;
	}
	o->ip.saddr = s->vtep;
	o->ip.ttl = 64;
	o->ip.check = 0;
	o->ip.check = ip_checksum(&o->ip);
	port = o->udp.source;
	o->udp.source = o->udp.dest;
	o->udp.dest = port;
	o->udp.check = 0;
	inner->h_proto = bpf_htons(ETH_P_PROBE_ANSWER);
	probe->digest = s->table_digest;
	return action;
}

/* A tunnelled reply: only what a frontend of this node may say goes on to the client. */
GLOBAL int may_return(const struct settings *s, const struct packet *p)
{
	if (!s || !p)
		return false;
	struct packet as_sent = { .dst = p->src, .family = p->family, .proto = p->proto, .dport = p->sport };

	if (is_icmp(p) || p->fragment == LATER_FRAGMENT)
		return is_own(s, &as_sent);
	return find_frontend(s, port_row(p->proto, p->sport), &as_sent) != 0;
}

/* The ways that lead to a node arrive where they leave. */
INLINE bool is_wrong_way(const struct xdp_md *ctx, const struct node *n)
{
	return n->ifindex && n->ifindex != ctx->ingress_ifindex;
}

/*
 * VXLAN of another VNI to our VTEP: an overlay network of ours, or the kernel's. The endpoint's MAC is written anew from
 * its row, so the sender need not know it.
 */
GLOBAL int overlay(struct xdp_md *ctx, struct packet *p, const struct settings *s)
{
	struct outer *o = (void *)(long)ctx->data;
	struct ethhdr *inner = (void *)(o + 1);

	if (!p || !s || (void *)(inner + 1) > (void *)(long)ctx->data_end)
		return PASS_FOREIGN_VNI;

	__u32 vni = vni_of(o->vxlan.vni);
	struct network *net = bpf_map_lookup_elem(&networks, &vni);

	if (!net)
		return PASS_FOREIGN_VNI;

	__be32 vtep = o->ip.saddr;
	__u32 *from = bpf_map_lookup_elem(&vteps, &vtep);

	if (!from)
		return DROP_UNKNOWN_VTEP;
	__u32 sender = *from;
	struct node *n = bpf_map_lookup_elem(&nodes, &sender);

	if (!n || sender == s->self || is_wrong_way(ctx, n))
		return DROP_UNKNOWN_VTEP;
	if (net->flags & NETWORK_ENCRYPTED)
		return DROP_PLAIN;
	if (o->vxlan.flags != VXLAN_FLAGS)
		return DROP_MALFORMED;
	if (bpf_xdp_adjust_head(ctx, ENCAP_LEN))
		return DROP_HELPER;

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	p->family = 0;
	if (parse(data, end, p) == PARSED_SHORT)
		return DROP_MALFORMED;
	if (!p->family)
		return DROP_FLOOD;

	struct in6_addr src = p->src, dst = p->dst;
	struct overlay_endpoint *to = is_mapped(p, &dst) ? NULL : overlay_endpoint_of(vni, &dst);

	if (!to || !to->ifindex)
		return is_group(p) ? DROP_FLOOD : DROP_NO_ENDPOINT;
	if (is_mapped(p, &src) || overlay_node_of(vni, &src) != sender)
		return DROP_SPOOFED;
	if ((void *)(eth + 1) > end)
		return DROP_MALFORMED;
	copy_mac(eth->h_dest, to->mac);
	p->action = XDP_PASS;
	return put_mark(ctx, s->mark, MARK_PEER, to->ifindex) ? DROP_HELPER : DELIVER_OVERLAY;
}

/* VXLAN to our VTEP. `p` describes the outer packet, afterwards the inner one. */
INLINE int tunnelled(struct xdp_md *ctx, struct packet *p, const struct settings *s, const struct uplink *up,
		     struct passage *to)
{
	struct outer *o = (void *)(long)ctx->data;
	struct ethhdr *inner = (void *)(o + 1);
	struct mac_key k = {};
	__u8 source[6];

	/* IP options in the outer header: nobody of ours sends them. */
	if (p->l4 != ETH_HLEN + sizeof(struct iphdr) || (void *)(o + 1) > (void *)(long)ctx->data_end)
		return PASS_FOREIGN_VNI;
	if (o->vxlan.vni != s->vni)
		return overlay(ctx, p, s);

	__be32 vtep = o->ip.saddr;
	__u32 *from = bpf_map_lookup_elem(&vteps, &vtep);

	if (!from)
		return DROP_UNKNOWN_VTEP;
	__u32 sender = *from;
	struct node *n = bpf_map_lookup_elem(&nodes, &sender);

	if (!n || sender == s->self || is_wrong_way(ctx, n))
		return DROP_UNKNOWN_VTEP;
	if (o->vxlan.flags != VXLAN_FLAGS || (void *)(inner + 1) > (void *)(long)ctx->data_end)
		return DROP_MALFORMED;
	if (unlikely(inner->h_proto == bpf_htons(ETH_P_PROBE))) {
		p->action = answer_probe(ctx, s);
		return p->action == XDP_DROP ? DROP_MALFORMED : RETURN_PROBE;
	}
	if (unlikely(inner->h_proto == bpf_htons(ETH_P_PROBE_ANSWER)))
		return PASS_NOT_OURS;	/* to the agent's socket */

	copy_mac(k.mac, inner->h_dest);
	copy_mac(source, inner->h_source);
	to->node = sender;
	to->vtep = vtep;
	to->flags = source[1];
	if (bpf_xdp_adjust_head(ctx, ENCAP_LEN))
		return DROP_HELPER;

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return DROP_MALFORMED;
	copy_mac(eth->h_dest, up->mac);
	copy_mac(eth->h_source, n->dmac);
	if (parse(data, end, p) != PARSED)
		return DROP_MALFORMED;

	if (k.mac[0] == TO_CLIENT) {
		if (!may_return(s, p))
			return DROP_BAD_RETURN;
		p->action = XDP_PASS;
		return put_mark(ctx, s->mark, MARK_RETURN, 0) ? DROP_HELPER : RETURN_FORWARD;
	}
	if (k.mac[0] != TO_BACKEND || source[0] != TO_BACKEND)
		return DROP_UNKNOWN_BACKEND;
	if (unlikely(to->flags & FRAME_REBALANCED)) {
		to->vtep = source_mac_vtep(source);
		from = bpf_map_lookup_elem(&vteps, &to->vtep);
		if (!from)
			return DROP_UNKNOWN_VTEP;
		to->node = *from;
	}
	if (is_icmp(p) && !is_icmp_error(p))
		return DROP_MALFORMED;
	to->lb = bpf_map_lookup_elem(&local_backends, &k);

	bool there = to->lb && to->lb->state != BACKEND_DOWN;
	bool late = there && unlikely(to->lb->state == BACKEND_DRAINING) && is_late(p, to->lb);

	if (likely(there && !late && !was_sent_on_lately()))
		return TO_BE_SENT;
	if (to->flags & FRAME_AGAIN || (late && to->flags & FRAME_REBALANCED))
		to->ref = REF_NONE;	/* or nodes would play ball */
	else
		to->ref = sent_on(s, p, there && !late, late ? to->lb->ref : REF_NONE,
				  to->flags & FRAME_REBALANCED ? sender : MAX_NODES);
	if (!to->ref)
		return there ? TO_BE_SENT : DROP_UNKNOWN_BACKEND;
	to->lb = NULL;
	to->flags |= to->flags & FRAME_REBALANCED ? FRAME_AGAIN : FRAME_REBALANCED;
	to->hash = to->ref;
	return TO_BE_SENT;
}

/* Does a socket of this node own the flow? Asked for ports that its sockets may use as source ports. */
GLOBAL int socket_has(struct xdp_md *ctx, const struct packet *p)
{
	return p && is_socket_flow(ctx, p);
}

/*
 * Does the packet answer a connection that somebody behind this node began, a container whose connections are masqueraded?
 * No socket here has such a flow; the kernel's conntrack does, and the packet is of its reply direction.
 */
GLOBAL int conntrack_has(struct xdp_md *ctx, const struct packet *p)
{
	struct kernel_ct_options o = { .netns_id = BPF_F_CURRENT_NETNS };
	struct bpf_sock_tuple t = {};
	struct nf_conn *ct;
	__u32 size;

	if (!has_kernel_conntrack || !p)
		return false;
	size = tuple_of(&t, p);
	o.l4proto = p->proto;
	ct = bpf_xdp_ct_lookup(ctx, &t, size, &o, sizeof(o));
	if (!ct)
		return false;
	bpf_ct_release(ct);
	return o.dir == KERNEL_CT_REPLY;
}

/* Did anything ever leave from the port that the packet is for? */
INLINE bool maybe_source(const struct settings *s, const struct packet *p)
{
	__u32 port = port_index(p->proto, p->dport);

	if (!(s->flags & SETTINGS_KNOW_SOURCES))
		return true;
	__u8 *used = bpf_map_lookup_elem(&source_ports, &port);

	return !used || *used;
}

/* Is the packet an answer to what the node, or what is behind it, began from this port? */
INLINE bool node_has(struct xdp_md *ctx, const struct settings *s, const struct packet *p, __u32 row)
{
	if (!maybe_source(s, p))
		return false;
	return (row & PORT_LOCAL && socket_has(ctx, p)) || (row & PORT_MASQUERADED && conntrack_has(ctx, p));
}

/*
 * A direct dial of a process' target port. It passes as it came, unless a flow of the mesh already uses the client's
 * port towards that socket: then it gets a stand-in port, as the second of two flows of the mesh would.
 */
GLOBAL int direct_dial(struct xdp_md *ctx, const struct packet *p, const struct settings *s)
{
	__u32 zero = 0;
	struct local_backend *lb = bpf_map_lookup_elem(&direct_scratch, &zero);

	if (!p || !s || !lb)
		return PASS_DIRECT;
	struct revnat_key k = {
		.client = p->src, .endpoint = p->dst, .client_port = p->sport, .port = p->dport, .proto = p->proto,
	};
	bool collides = false;
	__be16 port;

	for (int i = 0; i < REVNAT_CANDIDATES; i++) {
		k.client_port = candidate(p, i);
		struct revnat *v = bpf_map_lookup_elem(&revnat, &k);

		if (!v)
			v = bpf_map_lookup_elem(&revnat_new, &k);
		if (!v)
			continue;
		if (is_mine(v, p) || (i == 0 && is_syn(p) && v->state != REVNAT_CLOSING)) {
			collides = true;
			break;
		}
	}
	if (!collides)
		return PASS_DIRECT;
	lb->addr4 = p->dst;
	lb->addr6 = p->dst;
	lb->port = p->dport;
	lb->proto = p->proto;
	lb->delivery = DELIVER_PROCESS;
	lb->return_path = RETURN_DSR;
	if (revnat_enter(ctx, p, lb, s->self, &port) || rewrite_destination(ctx, p, &p->dst, p->dport, port))
		return PASS_DIRECT;
	return DELIVER_LOCAL_PROCESS;
}

/* An ICMP error about a reply goes where the flow goes. Returns the backend. */
GLOBAL __u32 find_icmp_flow(struct xdp_md *ctx, const struct packet *p, const struct settings *s)
{
	__u32 zero = 0;
	struct packet *q = bpf_map_lookup_elem(&quoted_scratch, &zero);

	if (!p || !s || !q || parse_quoted((void *)(long)ctx->data, (void *)(long)ctx->data_end, p, q))
		return REF_NONE;
	__u32 row = port_row(q->proto, q->dport), index = find_frontend(s, row, q);
	struct frontend *fe = index ? bpf_map_lookup_elem(&frontends, &index) : NULL;

	if (!fe || !fe->tables[q->family == 6].table)
		return REF_NONE;
	if (node_has(ctx, s, q, row))
		return REF_NONE;
	struct backend *b;
	__u32 ref = pick(q, fe, frontend_hash(q, s, fe, index), &b);

	return is_kernel(ref) ? REF_NONE : ref;
}

GLOBAL int remember_fragment(const struct packet *p, __u32 ref)
{
	struct fragment f = { .ref = ref };
	struct fragment_key k;

	if (!p)
		return 0;
	fragment_key_of(&k, p);
	return bpf_map_update_elem(&fragments, &k, &f, BPF_ANY);
}

/* A later fragment goes where the first went. Returns the backend. */
GLOBAL __u32 find_fragment(const struct packet *p)
{
	struct fragment_key k;

	if (!p)
		return REF_NONE;
	fragment_key_of(&k, p);
	struct fragment *f = bpf_map_lookup_elem(&fragments, &k);

	return f ? f->ref : REF_NONE;
}

/* A copy for the agent. Returns the verdict: where the ring is full nobody is woken, and the client asks again. */
GLOBAL int hold(struct xdp_md *ctx, const struct packet *p, __u32 frontend)
{
	if (!p)
		return DROP_NO_BACKEND;
	__u32 len = bpf_xdp_get_buff_len(ctx);
	struct held_packet *r = held_record(p, frontend, ctx->ingress_ifindex);

	if (!r)
		return DROP_NO_BACKEND;
	if (len && len <= HELD_MAX && !p->fragment) {
		/* What clang knows by now the verifier of 6.1 does not. */
		asm volatile("" : "+r"(len));
		len = ((len - 1) & (HELD_MAX - 1)) + 1;
		if (!bpf_xdp_load_bytes(ctx, 0, r->frame, len))
			r->h.len = len;
	}
	bpf_ringbuf_submit(r, 0);
	return HELD;
}

/* A packet to a published port. */
INLINE int published(struct xdp_md *ctx, struct packet *p, const struct settings *s, __u32 row, struct passage *to)
{
	__u32 index = find_frontend(s, row, p);
	struct frontend *fe = index ? bpf_map_lookup_elem(&frontends, &index) : NULL;

	if (!fe) {
		p->action = XDP_PASS;
		return row & PORT_PROCESS && is_own(s, p) ? direct_dial(ctx, p, s) : PASS_NOT_OURS;
	}
	if (unlikely((p->tcp & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)))
		return PASS_SYN_ACK;
	if (unlikely(row & (PORT_LOCAL | PORT_MASQUERADED)) && !is_syn(p) && node_has(ctx, s, p, row))
		return PASS_LOCAL_SOCKET;

	bool none = !fe->tables[p->family == 6].table;

	if (unlikely(none) && !rests(fe, p))
		return PASS_NO_BACKEND;
	if (unlikely(fe->flags & (FRONTEND_ALLOW | FRONTEND_DENY | FRONTEND_KERNEL))) {
		if (is_denied(fe, p))
			return DROP_DENIED;
		if (fe->flags & FRONTEND_KERNEL && goes_to_kernel(s, fe, p))
			return PASS_STALE;
	}
	if (unlikely(none)) {
		p->action = XDP_DROP;
		return hold(ctx, p, index);
	}
	to->hash = frontend_hash(p, s, fe, index);
	to->ref = pick(p, fe, to->hash, &to->backend);
	count_frontend(index, p->len);
	if (unlikely(!to->ref)) {
		p->action = XDP_DROP;
		return fe->flags & FRONTEND_HOLDS && begins(p) ? hold(ctx, p, index) : DROP_NO_BACKEND;
	}
	if (unlikely(is_kernel(to->ref)))
		return PASS_KERNEL;
	count_backend(to->ref, p->len);
	if (unlikely(p->fragment == FIRST_FRAGMENT))
		remember_fragment(p, to->ref);
	return TO_BE_SENT;
}

/* All but the length. */
INLINE void clear(struct packet *p)
{
	*p = (struct packet){ .len = p->len };
}

INLINE int walk(struct xdp_md *ctx, struct packet *p, bool frags)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	bool vxlan = false, ported = true;
	__u32 row = 0;
	struct settings *s;
	int verdict;

	/*
	 * Most of what is not ours has a port that nothing is published on, which costs one look at it; or it is on its way
	 * to another address. VXLAN is UDP.
	 */
	if (likely(is_plain(data, end))) {
		struct iphdr *ip = data + ETH_HLEN;
		struct tcphdr *tcp = (void *)(ip + 1);

		row = port_row(ip->protocol, tcp->dest);
		if (!row && ip->protocol == IPPROTO_TCP)
			return PASS_NOT_OURS;
		s = settings_row();
		if (unlikely(!s) || (row && !(row & PORT_EXACT || s->flags & SETTINGS_MORE_ADDRESSES) && !is_own4(s, ip->daddr)))
			return PASS_NOT_OURS;
		parse_plain(data, p);
	} else {
		clear(p);

		int parsed = parse(data, end, p);

		s = settings_row();
		if (unlikely(parsed || !s))
			return parsed == PARSED_HEADERS ? PASS_HEADERS : PASS_NOT_OURS;
		ported = (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) && p->fragment != LATER_FRAGMENT;
		if (ported)
			row = port_row(p->proto, p->dport);
	}

	__u32 slot = ctx->ingress_ifindex & (MAX_UPLINKS - 1);
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &slot);

	if (unlikely(!up || up->ifindex != ctx->ingress_ifindex))
		return PASS_NOT_OURS;
	if (ported) {
		vxlan = p->proto == IPPROTO_UDP && p->dport == s->vxlan_port && p->family == 4 &&
			p->dst.s6_addr32[3] == s->vtep && !p->fragment;
		if (!vxlan && !row)
			return PASS_NOT_OURS;
	}

	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end || unlikely(!same_mac(eth->h_dest, up->mac)))
		return PASS_NOT_OURS;

	struct passage to = { .node = s->self, .vtep = s->vtep };

	if (vxlan) {
		verdict = tunnelled(ctx, p, s, up, &to);
	} else if (likely(row)) {
		verdict = published(ctx, p, s, row, &to);
	} else {
		to.ref = p->fragment == LATER_FRAGMENT ? find_fragment(p) :
			 is_icmp_error(p)	       ? find_icmp_flow(ctx, p, s) :
							 REF_NONE;
		to.hash = p->fragment_id * 0x9e3779b1u;
		verdict = to.ref ? TO_BE_SENT : PASS_NOT_OURS;
	}
	return verdict == TO_BE_SENT ? send(ctx, p, s, &to, frags) : verdict;
}

/* What walk() had no need to know of a packet that is not ours, for the monitor. */
NOINLINE int describe(struct xdp_md *ctx, struct packet *p)
{
	clear(p);
	return parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, p);
}

INLINE int finish(struct xdp_md *ctx, struct packet *p, int verdict)
{
	if (count_verdict(PROGRAM_UPLINK_XDP, verdict, p)) {
		if (!p->family)
			describe(ctx, p);
		trace(PROGRAM_UPLINK_XDP, verdict, p, ctx->ingress_ifindex);
	}
	return passes(verdict) ? XDP_PASS : drops(verdict) ? XDP_DROP : p->action;
}

/* The rest of `p` is walk()'s to fill: it is not needed for most of what is not ours. */
INLINE int run(struct xdp_md *ctx, bool frags)
{
	struct packet p;

	p.len = frame_len(ctx, frags);
	p.family = 0;
	return finish(ctx, &p, walk(ctx, &p, frags));
}

SEC("xdp")
int uplink_xdp(struct xdp_md *ctx)
{
	return run(ctx, false);
}

/* Frames of more than a page. */
SEC("xdp.frags")
int uplink_xdp_frags(struct xdp_md *ctx)
{
	return run(ctx, true);
}

char _license[] SEC("license") = "Dual BSD/GPL";
