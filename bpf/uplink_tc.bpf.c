/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC on each uplink. Ingress finishes what uplink_xdp marked; egress sends replies of the node's own processes as their
 * frontends would.
 */
#include "reply.h"
#include "mark.h"
#include <linux/if_packet.h>

/* Too big for its node, and not forbidden to be fragmented. */
INLINE int send_fragments(struct __sk_buff *skb, struct packet *p, const struct settings *s, __u32 ref, bool second)
{
	struct backend *b = backend_of(ref);
	struct mac_key to = {};
	__u32 node;

	if (!b)
		return DROP_NO_BACKEND;
	node = b->node;
	copy_mac(to.mac, b->mac);
	p->ref = ref;

	struct node *n = bpf_map_lookup_elem(&nodes, &node);

	if (!n || !(n->flags & NODE_RESOLVED))
		return DROP_NO_NEXT_HOP;
	if (p->proto != IPPROTO_UDP || skb->gso_size)
		return DROP_TOO_BIG;
	if (!second) {
		struct fragment_key k;
		struct fragment f = { .ref = ref };

		fragment_key_of(&k, p);
		bpf_map_update_elem(&fragments, &k, &f, BPF_ANY);	/* tells the clone its backend */
		skb->mark = s->mark + SKB_SECOND;
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
		skb->mark = 0;
	}
	if (fragment_skb(skb, p, n, &to, second))
		return DROP_TOO_BIG;
	p->action = bpf_redirect(n->ifindex, 0);
	return RETURN_FRAGMENTED;
}

/* A reply that came by tunnel for a task of this node, which its backend knows by this node's address (gateway_tc). */
INLINE int to_dialler(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0;
	struct revnat *v = bpf_map_lookup_elem(&reply_scratch, &zero);

	if (!v)
		return DROP_HELPER;
	if (find(skb, p, v) != FOUND || !v->inside)
		return DROP_BAD_RETURN;
	if (!is_icmp(p) && rewrite_reply(skb, p, v))
		return DROP_HELPER;
	p->ref = v->ref;
	p->src = v->addr;
	p->dst = v->client;
	p->action = to_client(skb, p, true);
	return p->action == TC_ACT_SHOT ? DROP_NO_NEXT_HOP : RETURN_TASK;
}

INLINE int ingress(struct __sk_buff *skb, struct packet *p)
{
	struct settings *s = settings_row();
	struct mark *m = (void *)(long)skb->data_meta;

	if (!s)
		return PASS_UNMARKED;
	if (unlikely(skb->mark == s->mark + SKB_SECOND && s->mark)) {
		struct fragment_key k;

		skb->mark = 0;
		if (parse_skb(skb, p))
			return DROP_MALFORMED;
		fragment_key_of(&k, p);
		struct fragment *f = bpf_map_lookup_elem(&fragments, &k);

		return f ? send_fragments(skb, p, s, f->ref, true) : DROP_FRAGMENT;
	}
	if ((void *)(m + 1) > (void *)(long)skb->data || m->secret != s->mark)
		return PASS_UNMARKED;

	__u32 kind = m->what >> 28, value = m->what & MARK_VALUE;

	/*
	 * Where the uplink is a bridge's port, the frame carries the bridge's MAC and the port called it another host's. Kernels
	 * before 6.13 do not reset that on the way into the endpoint, which then drops it.
	 */
	if (unlikely(skb->pkt_type != PACKET_HOST))
		bpf_skb_change_type(skb, PACKET_HOST);
	if (likely(kind == MARK_PEER)) {
		p->action = bpf_redirect_peer(value, 0);
		return DELIVER_ENDPOINT;
	}
	if (kind == MARK_NEIGH) {
		p->action = bpf_redirect_neigh(value, NULL, 0, 0);
		return DELIVER_ENDPOINT;
	}
	if (parse_skb(skb, p))
		return DROP_MALFORMED;
	if (kind == MARK_RETURN) {
		if (unlikely(same_addr(&p->src, &p->dst)))
			return to_dialler(skb, p);
		p->action = to_client(skb, p, false);
		return p->action == TC_ACT_SHOT ? DROP_NO_NEXT_HOP : RETURN_FORWARD;
	}
	return kind == MARK_ENCAP ? send_fragments(skb, p, s, value, false) : PASS_UNMARKED;
}

SEC("tc")
int uplink_tc(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_UPLINK_TC, &p, ingress(skb, &p));
}

/*
 * A connection begins, or a datagram leaves, from a port of this node: its own, or one that it masquerades. uplink_xdp
 * asks whose a packet to such a port is, and only then. The program is on gateway devices too, where clients' ports pass.
 */
INLINE void note_source(struct __sk_buff *skb, const struct packet *p)
{
	__u32 slot = skb->ifindex & (MAX_UPLINKS - 1), port = port_index(p->proto, p->sport);
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &slot);
	__u8 *used = bpf_map_lookup_elem(&source_ports, &port);

	if (up && up->ifindex == skb->ifindex && used && !*used)
		*used = 1;
}

INLINE int egress(struct __sk_buff *skb, struct packet *p)
{
	struct settings *s = settings_row();

	if (!s)
		return PASS_NOT_OURS;
	if (skb->mark == s->mark + SKB_OURS && s->mark) {
		skb->mark = 0;
		return PASS_NOT_OURS;
	}
	if (likely(!(s->flags & (SETTINGS_PROCESSES | SETTINGS_WATCH_SOURCES))) || parse_skb(skb, p))
		return PASS_NOT_OURS;
	if (s->flags & SETTINGS_WATCH_SOURCES && (is_syn(p) || (p->proto == IPPROTO_UDP && p->fragment != LATER_FRAGMENT)))
		note_source(skb, p);
	if (likely(!(s->flags & SETTINGS_PROCESSES)))
		return PASS_NOT_OURS;
	if ((p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) && p->fragment != LATER_FRAGMENT &&
	    !(port_row(p->proto, p->sport) & PORT_PROCESS))
		return PASS_NOT_OURS;
	return reply(skb, p, s, true);
}

SEC("tc")
int uplink_tc_egress(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_UPLINK_TC_EGRESS, &p, egress(skb, &p));
}

char _license[] SEC("license") = "Dual BSD/GPL";
