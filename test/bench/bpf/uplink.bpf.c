/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * uplink_xdp as it is, behind a wrapper that puts the frame back. It is included, not linked: a program cannot call
 * another SEC("xdp") function, and the measured one must be the same inlined walk() and finish(), without a hook in it.
 */
#include "uplink_xdp.bpf.c"
#include "wrap.h"

__attribute__((noinline, weak)) int target(struct xdp_md *ctx)
{
	return run(ctx, false);
}

WRAP_XDP(w_uplink, target, PLAIN, 0)
WRAP_XDP(w_uplink_tunnelled, target, TUNNELLED, 50)
WRAP_LIVE(l_uplink, target)
