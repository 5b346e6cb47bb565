/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC ingress on the xfrm interface: VXLAN of encrypted networks, as the kernel's ESP gives it back. Nothing else comes here, and
 * nothing goes on from here into the node's own stack. The outer addresses are those of the security association, whatever
 * was in the packet (BEET mode), so they are proof of the sending node. The walk is drawn in README.md.
 */
#include "tc.h"
#include "overlay.h"

struct decrypted {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan_header vxlan;
	struct ethhdr inner;
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct decrypted) == ENCAP_LEN, "all that is taken off");

/* A MAC header of 14 bytes lies before the outer IP header: kernels leave that of the ESP frame there, but need not. */
INLINE bool has_mac_header(struct __sk_buff *skb, const struct decrypted *d)
{
	struct iphdr there;

	return !bpf_skb_load_bytes(skb, ETH_HLEN, &there, sizeof(there)) && there.saddr == d->ip.saddr &&
	       there.daddr == d->ip.daddr && there.check == d->ip.check;
}

INLINE int walk(struct __sk_buff *skb, struct packet *p)
{
	struct settings *s = settings_row();
	struct decrypted d = {};

	if (!s || bpf_skb_load_bytes_relative(skb, 0, &d, sizeof(d), BPF_HDR_START_NET))
		return DROP_MALFORMED;
	if (*(__u8 *)&d.ip != 0x45 || d.ip.protocol != IPPROTO_UDP || d.ip.frag_off & bpf_htons(IP_MF | IP_OFFSET) ||
	    d.udp.dest != s->vxlan_port || d.ip.daddr != s->vtep || d.vxlan.flags != VXLAN_FLAGS)
		return DROP_MALFORMED;

	__u32 vni = vni_of(d.vxlan.vni);
	struct network *net = bpf_map_lookup_elem(&networks, &vni);

	if (!net || !(net->flags & NETWORK_ENCRYPTED))
		return DROP_NO_ENDPOINT;

	__be32 vtep = d.ip.saddr;
	__u32 *from = bpf_map_lookup_elem(&vteps, &vtep);

	if (!from || *from == s->self)
		return DROP_UNKNOWN_VTEP;
	__u32 sender = *from;

	bool framed = has_mac_header(skb, &d);

	if (bpf_skb_adjust_room(skb, -ENCAP_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return DROP_MALFORMED;
	if (!framed && bpf_skb_change_head(skb, ETH_HLEN, 0))
		return DROP_HELPER;
	if (bpf_skb_store_bytes(skb, 0, &d.inner, sizeof(d.inner), 0))
		return DROP_HELPER;
	if (parse_skb(skb, p) == PARSED_SHORT)
		return DROP_MALFORMED;
	if (!p->family)
		return DROP_FLOOD;

	struct in6_addr src = p->src, dst = p->dst;
	struct overlay_endpoint *to = overlay_endpoint_of(vni, &dst);

	if (!to || !to->ifindex)
		return is_group(p) ? DROP_FLOOD : DROP_NO_ENDPOINT;
	if (overlay_node_of(vni, &src) != sender)
		return DROP_SPOOFED;
	if (bpf_skb_store_bytes(skb, 0, to->mac, 6, 0))
		return DROP_HELPER;
	/* By the veth and not into its peer: on the way the kernel learns the inner packet's protocol from its frame. */
	p->action = bpf_redirect(to->ifindex, 0);
	return DELIVER_OVERLAY;
}

SEC("tc")
int esp_tc(struct __sk_buff *skb)
{
	struct packet p = { .len = skb->len };

	return finish_skb(skb, PROGRAM_ESP_TC, &p, walk(skb, &p));
}

char _license[] SEC("license") = "Dual BSD/GPL";
