/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Slots in transition (DESIGN 5.3; docs/decisions/0002). Three tables, so that a flood of SYNs evicts
 * nothing that a living flow needs:
 *
 *	conntrack_half_open	a SYN was sent to `ref`; its successor is known by its sequence number
 *	conntrack		flows on `current`
 *	conntrack_old		flows on `previous`; losing one before the window's end is harmless
 */
#ifndef BEELINE_CONNTRACK_H
#define BEELINE_CONNTRACK_H

#include "maglev.h"

/* A model test drives time itself; the verifier removes the branch where it does not. */
const volatile bool clock_is_given;
__u64 given_clock_ns;

INLINE __u64 now_ns(void)
{
	return clock_is_given ? given_clock_ns : bpf_ktime_get_boot_ns();
}

/* Data behind a SYN begins at ISN + 1; a first segment may be reordered within the initial window. */
#define FOLLOWS_WINDOW 65536

INLINE bool follows(__u32 seq, __u32 isn)
{
	return seq - isn - 1 < FOLLOWS_WINDOW;
}

INLINE void flow_key_of(struct flow_key *k, const struct packet *p)
{
	k->client = p->src;
	k->addr = p->dst;
	k->client_port = p->sport;
	k->port = p->dport;
	k->proto = p->proto;
	k->kind = FLOW_SLOT;
	k->pad[0] = k->pad[1] = 0;
}

INLINE void remember(const struct flow_key *k, struct transition *t, __u32 ref, bool closing, __u32 generation)
{
	struct flow f = { .ref = ref, .generation = generation, .closing = closing };

	if (t && ref == t->previous)
		bpf_map_update_elem(&conntrack_old, k, &f, BPF_ANY);
	else
		bpf_map_update_elem(&conntrack, k, &f, BPF_ANY);
}

/* A record of a generation that does not count is none, and must not hide one in the other table. */
INLINE struct flow *record_of(const struct flow_key *k, __u32 generation, __u32 other)
{
	struct flow *f = bpf_map_lookup_elem(&conntrack, k);

	if (!f || (f->generation != generation && f->generation != other))
		f = bpf_map_lookup_elem(&conntrack_old, k);
	return f && (f->generation == generation || f->generation == other) ? f : NULL;
}

/* A flow stays elsewhere than its slot says, because of a record of the time when its frontend tracked always. */
INLINE void stamp_untracked(__u32 frontend, __u64 now)
{
	struct transition *u = bpf_map_lookup_elem(&untracked, &frontend);

	if (u)
		u->needed_ns = now;
}

/*
 * The backend of a flow whose slot is moving or settling, or whose service tracks always, or did. Records of both kinds
 * count whenever both may be: those of the slot's generation while it is not stable, those of the frontend's while it tracks
 * always and afterwards. One that is asked goes over to the kind that is made now (docs/decisions/0042). Returns REF_NONE
 * where nothing is alive.
 */
GLOBAL __u32 pick_tracked(const struct packet *p, const struct frontend *fe, __u32 slot)
{
	if (!p || !fe)
		return REF_NONE;
	bool v6 = p->family == 6;
	__u32 table = fe->tables[v6].table, mask = fe->tables[v6].mask;
	bool always = fe->flags & FRONTEND_TRACK_ALWAYS, tracked = fe->flags & FRONTEND_TRACKED;
	__u32 *word = slot_of(table, slot);

	if (!word)
		return REF_NONE;
	__u32 current = *word & REF_MASK;
	bool moving = *word >> SLOT_PHASE_SHIFT == SLOT_MOVING;
	void *inner = bpf_map_lookup_elem(&transitions, &table);
	struct transition *t = inner ? bpf_map_lookup_elem(inner, &slot) : NULL;
	__u64 now = now_ns();
	bool settling = false;

	if (moving && t && now - t->since_ns > fe->window_ns && (__s64)(now - t->since_ns) > 0) {
		moving = false;
		settling = now - t->needed_ns <= fe->window_ns || (__s64)(now - t->needed_ns) < 0;
	}
	if (!moving && !settling)
		t = NULL;
	if (!t)
		moving = false;
	if (!t && !always && !tracked)
		return is_alive(current) ? current : next_alive(table, mask, slot);

	__u32 generation = t && !always ? t->generation : fe->generation;
	__u32 other = t && always ? t->generation : tracked ? fe->generation : generation;
	bool udp = p->proto == IPPROTO_UDP;
	bool syn = is_syn(p);
	bool ending = p->tcp & (TCP_FIN | TCP_RST);
	bool quoted = p->icmp_type;	/* the flow of an ICMP error: it has no packet here, so nothing is learnt */
	struct flow_key k;

	flow_key_of(&k, p);
	struct flow *f = record_of(&k, generation, other);
	struct flow *half = udp ? NULL : bpf_map_lookup_elem(&conntrack_half_open, &k);

	if (half && !is_alive(half->ref))
		half = NULL;

	bool alive = f && is_alive(f->ref);
	/* A newer SYN was answered: its successor replaces a record that is closing or names a backend that is down. */
	bool superseded = f && !syn && !udp && (f->closing || !alive) && half && follows(p->seq, half->isn);

	if (f && !superseded && !(syn && f->closing) && !((syn || udp) && !alive)) {
		if (ending)
			f->closing = 1;
		if (f->generation != generation)
			f->generation = generation;
		if (f->ref != current && !quoted) {
			if (t)
				t->needed_ns = now;
			else if (tracked)
				stamp_untracked(table >> 1, now);
		}
		/* The record stays: a backend that was wrongly called down may return. */
		return alive ? f->ref : is_alive(current) ? current : next_alive(table, mask, slot);
	}
	if (f && udp && !quoted) {
		bpf_map_delete_elem(&conntrack, &k);
		bpf_map_delete_elem(&conntrack_old, &k);
	}
	if (half) {
		__u32 ref = half->ref;

		if (quoted)
			return ref;
		if (syn) {
			if (half->isn == p->seq)
				return ref;
		} else if (follows(p->seq, half->isn)) {
			bpf_map_delete_elem(&conntrack_half_open, &k);
			/* conntrack is asked first: an old record there must not hide the one that replaces it. */
			if (superseded) {
				bpf_map_delete_elem(&conntrack, &k);
				bpf_map_delete_elem(&conntrack_old, &k);
			}
			remember(&k, t, ref, ending, generation);
			if (t && ref != current)
				t->needed_ns = now;
			return ref;
		}
	}

	__u32 up = is_alive(current) ? current : next_alive(table, mask, slot);

	/* Of a stable slot, tracked no more: whom no record tells of is where the slot says. */
	if (!f && !t && !always)
		return up;
	if (syn) {
		struct flow h = { .ref = up, .generation = generation, .isn = p->seq };

		if (up)
			bpf_map_update_elem(&conntrack_half_open, &k, &h, BPF_ANY);
		return up;
	}
	if (!moving) {
		if (always && up && !quoted)
			remember(&k, t, up, ending, generation);
		return up;
	}

	__u32 ref = t && t->previous && is_alive(t->previous) ? t->previous : up;

	if (udp && t && now - t->since_ns > fe->udp_window_ns)
		ref = up;
	/* A stand-in for a backend that is down is not recorded. */
	if (ref && !quoted && (udp || (t && ref == t->previous))) {
		remember(&k, t, ref, ending, generation);
		if (t && ref != current)
			t->needed_ns = now;
	}
	return ref;
}

/*
 * Whether the client's address alone is hashed, for a flow of a frontend whose affinity changed. Another hash leads to
 * another slot, and so to another backend: open flows keep the one that they began with, by the rules of a slot that moves,
 * where nothing is ever down. The slot is picked from afterwards as any, and may be in transition itself.
 */
GLOBAL int is_hashed_by_client(const struct packet *p, const struct frontend *fe, __u32 index)
{
	if (!p || !fe)
		return false;
	bool affinity = fe->flags & FRONTEND_AFFINITY;
	__u32 current = affinity ? HASHED_BY_CLIENT : HASHED_BY_FLOW;
	struct transition *t = bpf_map_lookup_elem(&rehashes, &index);

	if (!t)
		return affinity;
	__u64 now = now_ns();
	bool moving = now - t->since_ns <= fe->window_ns || (__s64)(now - t->since_ns) < 0;

	if (!moving && now - t->needed_ns > fe->window_ns && (__s64)(now - t->needed_ns) > 0)
		return affinity;

	__u32 generation = t->generation;
	bool udp = p->proto == IPPROTO_UDP, syn = is_syn(p), quoted = p->icmp_type;
	struct flow_key k;

	flow_key_of(&k, p);
	k.kind = FLOW_HASH;
	struct flow *f = record_of(&k, generation, generation);
	__u32 half = 0, isn = 0;

	if (!udp) {
		struct flow *h = bpf_map_lookup_elem(&conntrack_half_open, &k);

		if (h && h->generation == generation) {
			half = h->ref;
			isn = h->isn;
		}
	}

	bool succeeds = half && !syn && !quoted && follows(p->seq, isn);

	if (f && !(f->closing && (syn || succeeds))) {
		if (p->tcp & (TCP_FIN | TCP_RST))
			f->closing = 1;
		if (f->ref != current && !quoted)
			t->needed_ns = now;
		return f->ref == HASHED_BY_CLIENT;
	}

	struct flow n = { .ref = current, .generation = generation, .closing = !!(p->tcp & (TCP_FIN | TCP_RST)) };

	if (half && (succeeds || quoted || (syn && isn == p->seq))) {
		n.ref = half;
		if (succeeds) {
			bpf_map_delete_elem(&conntrack_half_open, &k);
			bpf_map_delete_elem(&conntrack_old, &k);
			bpf_map_update_elem(&conntrack, &k, &n, BPF_ANY);
			if (half != current)
				t->needed_ns = now;
		}
		return half == HASHED_BY_CLIENT;
	}
	if (syn) {
		n.isn = p->seq;
		bpf_map_update_elem(&conntrack_half_open, &k, &n, BPF_ANY);
		return affinity;
	}
	if (!moving || t->previous == current || (udp && now - t->since_ns > fe->udp_window_ns))
		return affinity;
	if (!quoted) {
		n.ref = t->previous;
		bpf_map_update_elem(&conntrack_old, &k, &n, BPF_ANY);
		t->needed_ns = now;
	}
	return t->previous == HASHED_BY_CLIENT;
}

INLINE __u32 frontend_hash(const struct packet *p, const struct settings *s, const struct frontend *fe, __u32 index)
{
	bool affinity = fe->flags & FRONTEND_AFFINITY;

	if (unlikely(fe->flags & FRONTEND_REHASHED))
		affinity = is_hashed_by_client(p, fe, index);
	return flow_hash(p, s->hash_seed, affinity);
}

/*
 * The backend of a packet to a frontend; REF_NONE: none is alive. `*backend` is its row where a stable slot led to it,
 * and is left as it was where the rules above chose.
 */
INLINE __u32 pick(const struct packet *p, const struct frontend *fe, __u32 hash, struct backend **backend)
{
	bool v6 = p->family == 6;
	__u32 slot = hash & fe->tables[v6].mask;
	__u32 *word = slot_of(fe->tables[v6].table, slot);

	if (unlikely(!word))
		return REF_NONE;
	__u32 ref = *word & REF_MASK;

	if (unlikely(*word >> SLOT_PHASE_SHIFT != SLOT_STABLE || fe->flags & (FRONTEND_TRACK_ALWAYS | FRONTEND_TRACKED)) &&
	    !(fe->flags & FRONTEND_TRACK_NONE))
		return pick_tracked(p, fe, slot);
	if (unlikely(is_kernel(ref)))
		return ref;
	struct backend *b = ref ? backend_of(ref) : NULL;

	if (unlikely(!is_incarnation(b, ref)))
		return next_alive(fe->tables[v6].table, fe->tables[v6].mask, slot);
	*backend = b;
	return ref;
}

#endif
