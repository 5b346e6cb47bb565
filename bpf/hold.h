/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who comes to a service that has no backend yet (docs/decisions/0045): handed to the agent, who asks for one. */
#ifndef BEELINE_HOLD_H
#define BEELINE_HOLD_H

#include "frontend.h"

/* Does the packet begin a flow? Another's is answered as it always was. */
INLINE bool begins(const struct packet *p)
{
	return is_syn(p) || (p->proto == IPPROTO_UDP && p->fragment != LATER_FRAGMENT);
}

/* A family without backends is not at rest where the other has some. */
INLINE bool rests(const struct frontend *fe, const struct packet *p)
{
	return fe->flags & FRONTEND_HOLDS && !(fe->tables[0].table | fe->tables[1].table) && begins(p);
}

struct held_packet {
	struct held h;
	__u8 frame[HELD_MAX];
};

INLINE struct held_packet *held_record(const struct packet *p, __u32 frontend, __u32 ifindex)
{
	struct held_packet *r = bpf_ringbuf_reserve(&held, sizeof(*r), 0);

	if (!r)
		return NULL;

	struct held *h = &r->h;

	h->time_ns = bpf_ktime_get_boot_ns();
	h->client = p->src;
	h->addr = p->dst;
	h->client_port = p->sport;
	h->port = p->dport;
	h->proto = p->proto;
	h->pad[0] = h->pad[1] = h->pad[2] = 0;
	h->frontend = frontend;
	h->ifindex = ifindex;
	h->len = 0;
	h->pad2 = 0;
	return r;
}

#endif
