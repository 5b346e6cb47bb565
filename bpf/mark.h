/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What uplink_xdp tells uplink_tc about a packet that it passes: 8 bytes of XDP metadata. They are the same for all
 * packets of a flow, or GRO would stop aggregating it.
 */
#ifndef BEELINE_MARK_H
#define BEELINE_MARK_H

#include "parse.h"

enum mark_kind {
	MARK_PEER = 1,		/* bpf_redirect_peer to `value` */
	MARK_NEIGH = 2,		/* bpf_redirect_neigh to `value` */
	MARK_RETURN = 3,	/* a reply that came by tunnel: on to the client */
	MARK_ENCAP = 4,		/* too big for its node: fragment, encapsulate; `value` is the backend */
};

struct mark {
	__u32 secret;	/* settings.mark */
	__u32 what;	/* kind << 28 | value */
};

#define MARK_VALUE 0x0fffffffu

INLINE int put_mark(struct xdp_md *ctx, __u32 secret, enum mark_kind kind, __u32 value)
{
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct mark)))
		return -1;
	struct mark *m = (void *)(long)ctx->data_meta;

	if ((void *)(m + 1) > (void *)(long)ctx->data)
		return -1;
	m->secret = secret;
	m->what = (__u32)kind << 28 | (value & MARK_VALUE);
	return 0;
}

#endif
