/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters and the monitor: what finish() does with a verdict. */
#ifndef BEELINE_COUNT_H
#define BEELINE_COUNT_H

#include "parse.h"
#include "maps.h"

INLINE struct settings *settings_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

INLINE void add(struct packets_bytes *c, __u32 len)
{
	c->packets++;
	c->bytes += len;
}

INLINE void count_frontend(__u32 frontend, __u32 len)
{
	struct packets_bytes *c = bpf_map_lookup_elem(&frontend_counters, &frontend);

	if (c)
		add(c, len);
}

INLINE void count_backend(__u32 ref, __u32 len)
{
	__u32 i = ref & REF_INDEX_MASK;
	struct backend_counters *c = bpf_map_lookup_elem(&backend_counters, &i);

	if (c) {
		c->packets++;
		c->bytes += len;
	}
}

INLINE void count_new_flow(__u32 ref)
{
	__u32 i = ref & REF_INDEX_MASK;
	struct backend_counters *c = bpf_map_lookup_elem(&backend_counters, &i);

	if (c)
		c->new_flows++;
}

GLOBAL int trace(__u32 program, __u32 verdict, const struct packet *p, __u32 ifindex)
{
	if (!p)
		return 0;
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e)
		return 0;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->src = p->src;
	e->dst = p->dst;
	e->sport = p->sport;
	e->dport = p->dport;
	e->proto = p->proto;
	e->program = program;
	e->verdict = verdict;
	e->tcp_flags = p->tcp;
	e->ifindex = ifindex;
	e->ref = p->ref;
	e->len = p->len;
	e->pad = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Says whether the monitor wants to see it: trace() is the caller's, who then reads the interface from its context. */
INLINE bool count_verdict(enum program program, enum verdict verdict, const struct packet *p)
{
	__u32 row = program * VERDICT_ROWS + (verdict & (VERDICT_ROWS - 1));
	struct packets_bytes *c = bpf_map_lookup_elem(&verdict_counters, &row);
	struct settings *s = settings_row();

	if (likely(c))
		add(c, p->len);
	return s && unlikely(s->flags & SETTINGS_TRACE);
}

INLINE bool passes(enum verdict v)
{
	return v < ENCAP_NODE;
}

INLINE bool drops(enum verdict v)
{
	return v >= DROP_MALFORMED;
}

#endif
