/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The ABI between the agent and the programs: every value that lies in a map.
 *
 * What lies in a packet is __be16/__be32 from key to value; everything else is host order.
 * Addresses are 16 bytes in both families, IPv4 as ::ffff:a.b.c.d.
 * src/loader/layout.gen.ts is generated from this file's BTF (npm run layout): C is the truth.
 */
#ifndef BEELINE_MESH_H
#define BEELINE_MESH_H

#include <linux/types.h>
#include <linux/in6.h>

/* Raised by one when the meaning of a row changes; pinned maps of another ABI are not reused. */
#define MESH_ABI 1

#define MAX_SERVICES_PORTS	131072	/* protocol (TCP 0, UDP 1) << 16 | port in host order */
#define MAX_FRONTENDS		65536
#define MAX_BACKENDS		131072
#define MAX_NODES		4096
#define MAX_UPLINKS		1024	/* index: ifindex & 1023 */
#define MAX_OWN_ADDRESSES	8
#define MAX_TABLE_SLOTS		131072
#define MAX_NETWORKS		4096
#define MAX_OVERLAY_ENDPOINTS	262144
#define MAX_OVERLAY_PORTS	4096
#define MAX_NETNS		16384	/* namespaces of this node that are attached to an overlay network */
#define MAX_NETNS_NETWORKS	16	/* networks that one of them is attached to */
#define MAX_VIPS		16384
#define MAX_VIP_BACKENDS	131072

/*
 * A backend reference names one incarnation of a backend:
 *
 *	31 30 29        22 21                     0
 *	+----+------------+------------------------+
 *	|  0 | generation | index in `backends`    |
 *	+----+------------+------------------------+
 *
 * A slot is a reference with its phase in the two upper bits.
 */
#define REF_INDEX_BITS		22
#define REF_INDEX_MASK		0x003fffffu
#define REF_GENERATION_MASK	0x3fc00000u
#define REF_MASK		0x3fffffffu
#define REF_NONE		0u		/* no backend */
#define REF_KERNEL		0x003fffffu	/* the kernel's own mesh: the packet passes */
#define SLOT_PHASE_SHIFT	30

enum slot_phase {
	SLOT_STABLE = 0,
	SLOT_MOVING = 1,	/* settling is a moving slot whose `since` lies a window back */
};

/*
 * One cell of the table `transitions`: cold data of a slot that is not stable. Of `rehashes`: of a frontend's hash. Of `untracked`:
 * of the end of `tracking: always`.
 */
struct transition {
	__u64 since_ns;		/* CLOCK_BOOTTIME of the last change of `current` */
	__u64 needed_ns;	/* CLOCK_BOOTTIME of the last packet sent elsewhere than `current`; written by programs */
	__u32 previous;		/* reference; of a hash: enum hashed_by */
	__u32 generation;	/* records of another generation are no records */
};

/* settings.flags */
enum settings_flag {
	SETTINGS_MORE_ADDRESSES = 1 << 0,	/* own addresses beyond own4/own6 are in `own_addresses` */
	SETTINGS_TRACE = 1 << 1,		/* verdicts go to `events` */
	SETTINGS_PROCESSES = 1 << 2,		/* some backend is a process on this node */
	SETTINGS_WATCH_SOURCES = 1 << 3,	/* ports that connections and datagrams leave from are noted */
	SETTINGS_KNOW_SOURCES = 1 << 4,		/* `source_ports` has them all, those of older flows too */
};

/* One row: what every program needs to know about this node. */
struct settings {
	__u64 heartbeat_ns;	/* CLOCK_BOOTTIME, written once a second by the agent */
	__u64 stale_after_ns;
	__u64 netns_cookie;	/* of the node's own network namespace: `socket` acts only there */
	__u64 table_digest;	/* carried in probe answers */
	__be32 vtep;		/* this node's outer address */
	__be32 vni;		/* VNI << 8, as in the VXLAN header */
	__be16 vxlan_port;
	__u16 flags;		/* enum settings_flag */
	__u32 self;		/* this node's index in `nodes` */
	__u32 hash_seed;	/* the same on every node */
	__u32 mark;		/* skb mark of packets that our own programs made, random per boot */
	__u16 mesh_mtu;		/* of the ingress network, outer headers included; 0: what each way holds */
	__u16 pad;
	__be32 own4[MAX_OWN_ADDRESSES];			/* unused: 0 */
	struct in6_addr own6[MAX_OWN_ADDRESSES];	/* unused: :: */
	__u32 pad2;
};

/* `uplinks`: index is ifindex & (MAX_UPLINKS - 1). */
struct uplink {
	__u32 ifindex;		/* 0: no uplink */
	__u16 mtu;		/* of the L3 device */
	__u8 mac[6];		/* of the L3 device (the bridge's, where the uplink is its port) */
	__u32 l3_ifindex;	/* the device that holds the addresses */
};

/* `ports`: a row is flags and the index of a frontend (0: none). */
#define PORT_FRONTEND_MASK	0x000fffffu
enum port_flag {
	PORT_EXACT = 1u << 31,		/* ask exact_frontends first; a miss falls back to this row's frontend */
	PORT_LOCAL = 1u << 30,		/* sockets of this node may use the port as a source port: ask before taking a packet */
	PORT_MASQUERADED = 1u << 28,	/* the same of connections that the node masquerades: the kernel's conntrack is asked */
	PORT_PROCESS = 1u << 29,	/* target port of a process on this node: direct dials are watched for collisions */
};

enum frontend_flag {
	FRONTEND_AFFINITY = 1 << 0,	/* hash the client's address alone */
	FRONTEND_TRACK_ALWAYS = 1 << 1,
	FRONTEND_TRACK_NONE = 1 << 2,
	FRONTEND_ALLOW = 1 << 3,	/* a client must be in `allow` */
	FRONTEND_DENY = 1 << 4,		/* a client must not be in `deny` */
	FRONTEND_KERNEL = 1 << 5,	/* the kernel's own mesh answers too: when the agent is stale new flows pass */
	FRONTEND_REHASHED = 1 << 6,	/* FRONTEND_AFFINITY changed: `rehashes` tells which flows keep the other hash */
	FRONTEND_TRACKED = 1 << 7,	/* no more FRONTEND_TRACK_ALWAYS: its records hold until none is needed (`untracked`) */
	FRONTEND_HOLDS = 1 << 8,	/* who comes while there is no backend wakes the service, and is held (`held`) */
};

/* What a flow is hashed by: `previous` of a row of `rehashes`, and `ref` of its flows' records. */
enum hashed_by {
	HASHED_BY_FLOW = 1,
	HASHED_BY_CLIENT = 2,
};

struct table_ref {
	__u32 table;	/* index in `tables` and `transitions`; 0: the family has no backend, the packet passes */
	__u32 mask;	/* slots - 1; written after a larger table is in place */
};

/* One published port of one service. */
struct frontend {
	struct table_ref tables[2];	/* IPv4, IPv6 */
	__u64 window_ns;		/* trackingWindow */
	__u64 udp_window_ns;
	__u16 flags;			/* enum frontend_flag */
	__be16 port;			/* published */
	__u8 proto;
	__u8 pad[3];
	__u32 acl;			/* list id in `allow` and `deny` */
	__u32 generation;		/* of records of FRONTEND_TRACK_ALWAYS: another each time that it is set */
};

/* Asked only where the port's row says so. */
struct frontend_key {
	struct in6_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;	/* zero: hash maps compare every byte */
};

enum backend_state {
	BACKEND_NONE = 0,
	BACKEND_ACTIVE = 1,
	BACKEND_DRAINING = 2,
	BACKEND_DOWN = 3,
};

/* Hot: read for each packet. */
struct backend {
	__u8 state;		/* enum backend_state */
	__u8 generation;
	__u8 mac[6];		/* 06 + 40 bits of the hash of the stable key: names endpoint and target port to its node */
	__u32 node;		/* index in `nodes` */
	__u32 pad;
};

enum delivery {
	DELIVER_PEER = 1,	/* bpf_redirect_peer into the veth whose host end is ifindex */
	DELIVER_NEIGH = 2,	/* bpf_redirect_neigh to the interface ifindex */
	DELIVER_PROCESS = 3,	/* a process on this node */
};

/* local_backend.flags */
enum local_flag {
	LOCAL_ON_LINK = 1 << 0,		/* some clients must not be seen as they are: `on_link` says which */
	/* Only in rows that gateway_tc makes for a flow: */
	LOCAL_INSIDE = 1 << 1,		/* the client is a task of this node */
	LOCAL_MASQUERADED = 1 << 2,	/* and is seen as the frontend's own address */
};

enum return_path {
	RETURN_AUTO = 0,	/* DSR where the node's row says it is proven, else tunnel */
	RETURN_DSR = 1,
	RETURN_TUNNEL = 2,
};

struct mac_key {
	__u8 mac[6];
	__u8 pad[2];
};

/* `local_backends`: this node's own, by MAC. */
struct local_backend {
	struct in6_addr addr4;	/* IPv4-mapped; :: where the backend has none */
	struct in6_addr addr6;
	__u32 ref;		/* its reference */
	__u32 ifindex;
	__u32 frontend;		/* its frontend's index */
	__be16 port;		/* target port */
	__u8 proto;
	__u8 state;		/* enum backend_state */
	__u8 delivery;		/* enum delivery */
	__u8 return_path;	/* enum return_path */
	__u8 flags;		/* enum local_flag */
	__u8 pad;
};

/* `on_link`: longest-prefix trie over (list, address). */
struct on_link_key {
	__u32 prefixlen;	/* 32 + bits of the prefix, IPv4 as ::ffff:0:0/96 */
	__u32 list;		/* ifindex of an endpoint; 0: the node itself */
	struct in6_addr addr;	/* a client's */
};

/* What an endpoint is shown in place of the client. List 0: the way to clients that the node's routes would not find. */
struct on_link {
	struct in6_addr gateway;
	__u32 ifindex;		/* list 0: where the gateway is */
	__u16 first_port;	/* stand-in ports, outside those that the node's own dials use */
	__u16 port_count;
};

enum node_flag {
	NODE_RESOLVED = 1 << 0,	/* dmac, smac and ifindex are good */
	NODE_DSR = 1 << 1,	/* packets with that node's source address, sent by this one, arrive (proven by a probe) */
};

struct node {
	__be32 vtep;
	__u32 ifindex;		/* where packets to it leave: an uplink */
	__u8 dmac[6];
	__u8 smac[6];
	__u16 mtu;		/* of the way to it */
	__u16 flags;		/* enum node_flag */
};

enum network_flag {
	NETWORK_ENCRYPTED = 1 << 0,	/* no plain packet of it is sent or accepted */
};

/* `networks`: an overlay network, by its VNI in host order. */
struct network {
	__u32 flags;	/* enum network_flag */
};

/* `encryption`: one row. */
struct encryption {
	__u32 ifindex;	/* the xfrm interface, which lets nothing out but ESP; 0: none, encrypted networks are closed */
};

struct overlay_key {
	__u32 vni;
	struct in6_addr addr;
};

enum overlay_flag {
	OVERLAY_VIP = 1 << 0,	/* a service's address: connections are turned at connect time, pings are answered */
};

/* `overlay_endpoints`: where an address of a network is. */
struct overlay_endpoint {
	__u32 node;	/* index in `nodes` */
	__u32 ifindex;	/* on this node: host end of its veth; 0: on another */
	__u8 mac[6];
	__u16 flags;	/* enum overlay_flag */
};

/* `overlay_slices`: which node owns the part of a subnet; asked where the address itself is not known. */
struct overlay_slice_key {
	__u32 prefixlen;	/* 32 + bits of the prefix, IPv4 as ::ffff:0:0/96 */
	__u32 vni;
	struct in6_addr addr;
};

/* `overlay_ports`: what an endpoint of this node may send as, by the ifindex of its veth's host end. */
struct overlay_port {
	struct in6_addr addr4;	/* IPv4-mapped; :: where it has none */
	struct in6_addr addr6;
	__u32 vni;
	__u8 mac[6];
	__u8 pad[2];
};

/* What a record is about. One flow may have one of each. */
enum flow_kind {
	FLOW_SLOT = 0,		/* where it goes from the node that it entered */
	FLOW_HASH = 1,		/* what it is hashed by (`rehashes`) */
	FLOW_SENT_ON = 2,	/* where a node sends it on that has no backend for it, perhaps the one that it entered */
};

/* A flow as the client sent it. */
struct flow_key {
	struct in6_addr client;
	struct in6_addr addr;	/* of the frontend */
	__be16 client_port;
	__be16 port;
	__u8 proto;
	__u8 kind;		/* enum flow_kind */
	__u8 pad[2];
};

/* conntrack: flow -> backend, only for slots in transition. */
struct flow {
	__u32 ref;		/* FLOW_HASH: enum hashed_by */
	__u32 generation;
	__u32 isn;		/* half-open: the SYN's sequence number */
	__u32 closing;		/* a FIN or RST of the client was seen */
};

/* A flow as the endpoint sees it. */
struct revnat_key {
	struct in6_addr client;
	struct in6_addr endpoint;
	__be16 client_port;
	__be16 port;		/* target port */
	__u8 proto;
	__u8 pad[3];
};

enum revnat_state {
	REVNAT_NEW = 0,		/* a client packet was seen */
	REVNAT_REPLIED = 1,	/* and a reply */
	REVNAT_PROMOTED = 2,
	REVNAT_CLOSING = 3,	/* FIN of both sides, or RST */
};

struct revnat {
	struct in6_addr addr;	/* the frontend that replies must seem to come from */
	struct in6_addr client;	/* the client as it is */
	__be16 port;
	__be16 client_port;
	__u32 node;		/* ingress node; index in `nodes` */
	__u32 ref;		/* the backend */
	__u32 isn;		/* of the SYN-ACK */
	__u8 state;		/* enum revnat_state */
	__u8 fins;		/* 1: client's, 2: endpoint's */
	__u8 return_path;	/* enum return_path */
	__u8 inside;		/* the client is a task of this node */
	__u8 pad[4];
	__u64 used_ns;		/* CLOCK_BOOTTIME */
};

/* Later fragments follow the first. */
struct fragment_key {
	struct in6_addr src;
	struct in6_addr dst;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment {
	__u32 ref;		/* uplink: the backend */
	__u32 node;		/* endpoint: the ingress node */
	struct in6_addr addr;	/* endpoint: the frontend's address */
	struct in6_addr client;	/* endpoint: the client as it is */
	__u8 return_path;
	__u8 inside;
	__u8 pad[6];
};

/* `allow`, `deny`: longest-prefix tries over (list, address). */
struct acl_key {
	__u32 prefixlen;	/* 32 + bits of the prefix, IPv4 as ::ffff:0:0/96 */
	__u32 acl;
	struct in6_addr addr;
};

struct packets_bytes {
	__u64 packets;
	__u64 bytes;
};

struct backend_counters {
	__u64 packets;
	__u64 bytes;
	__u64 new_flows;
};

/* What `socket` remembers of a connected or sending socket. */
struct socket_peer {
	struct in6_addr addr;		/* what the process dialled */
	struct in6_addr backend_addr;	/* what it got */
	__be16 port;
	__be16 backend_port;
	__u32 ref;
};

struct datagram_key {
	__u64 socket;		/* cookie */
	struct in6_addr addr;	/* of the backend */
	__be16 port;
	__u8 pad[6];
};

/*
 * Service VIPs inside overlay networks. A network is named by its VNI, in host order, 0 is none; a VIP means something
 * only in its network.
 *
 *	netns cookie -> networks[]       `netns_networks`: where the caller is
 *	network, address -> table, mask  `vips`
 *	table -> slot -> index           `vip_tables`: a Maglev table without transitions, for it is asked once a socket
 *	index -> address, state          `vip_backends`
 */
struct netns_networks {
	__u32 networks[MAX_NETNS_NETWORKS];	/* 0 ends the list */
};

/* The agent's name service in a container's namespace, beside Docker's resolver: what that forwards comes here. */
struct name_service {
	struct in6_addr dialled;	/* written by `socket`: the server that Docker's resolver asked last */
	__be16 port;			/* UDP and TCP, on 127.0.0.11 */
	__u16 pad[3];
};

struct vip_key {
	__u32 network;
	struct in6_addr addr;
};

enum vip_flag {
	VIP_AFFINITY = 1 << 0,	/* a namespace gets the same task for every socket */
	VIP_KERNEL = 1 << 1,	/* Docker's IPVS answers too: when the agent is stale dials pass */
};

struct vip {
	__u32 table;	/* index in `vip_tables`; no such table: no task, dials are refused */
	__u32 mask;	/* slots - 1 */
	__u32 flags;	/* enum vip_flag */
	__u32 pad;
};

/* A task's address in one network: VIPs pass every port and protocol. */
struct vip_backend {
	struct in6_addr addr;
	__u32 network;
	__u8 state;	/* enum backend_state; only an active one is chosen */
	__u8 pad[3];
};

enum program {
	PROGRAM_UPLINK_XDP = 0,
	PROGRAM_UPLINK_TC = 1,
	PROGRAM_UPLINK_TC_EGRESS = 2,
	PROGRAM_ENDPOINT_TC = 3,
	PROGRAM_SOCKET = 4,
	PROGRAM_OVERLAY_TC = 5,
	PROGRAM_ESP_TC = 6,
	PROGRAM_COUNT = 7,
};

/*
 * Why and how a packet left a program: return value of walk(), index of the counter, label of the metric, name in the
 * monitor. Names are stable; meaning and remedy of each in README.md. VERDICT_COUNT is at most 64.
 */
enum verdict {
	PASS_NOT_OURS = 0,	/* no frontend, no match */
	PASS_SYN_ACK,		/* SYN-ACK to a published port: an answer to the node's own dial */
	PASS_LOCAL_SOCKET,	/* a socket of the node owns this flow */
	PASS_NO_BACKEND,	/* the family has no backend */
	PASS_KERNEL,		/* the flow belongs to the kernel's mesh */
	PASS_STALE,		/* the agent's heartbeat is old */
	PASS_FOREIGN_VNI,	/* VXLAN of another VNI */
	PASS_HEADERS,		/* options or extension headers that are not followed */
	PASS_DIRECT,		/* a direct dial of a process' or an endpoint's target port */
	PASS_NO_REVNAT,		/* an endpoint's packet that answers no flow of ours */
	PASS_UNMARKED,		/* uplink_tc: not marked by uplink_xdp */
	ENCAP_NODE,		/* to the backend's node */
	ENCAP_FRAGMENTS,	/* too big for its node: uplink_tc fragments and encapsulates it */
	ENCAP_REBALANCED,	/* a SYN for a backend that is down: to another node, once */
	ENCAP_OVERLAY,		/* to the node of an overlay network's endpoint */
	ENCAP_ESP,		/* the same of an encrypted network: to the interface that makes ESP of it */
	DELIVER_ENDPOINT,	/* into an endpoint */
	DELIVER_LOCAL_PROCESS,	/* to a process on the node */
	DELIVER_ICMP,		/* an ICMP error, to the backend that owns the flow */
	DELIVER_FRAGMENT,	/* a later fragment */
	DELIVER_SOCKET,		/* a node's process got a backend at connect time */
	DELIVER_OVERLAY,	/* into an endpoint of an overlay network */
	DELIVER_VIP,		/* a task that dialled a VIP got a task at connect time */
	DELIVER_ON_LINK,	/* into an endpoint, with the gateway's address: the client's own would be answered on-link */
	RETURN_CLIENT_DSR,	/* straight to the client */
	RETURN_CLIENT_LOCAL,	/* the flow entered on this node: straight to the client */
	RETURN_ENCAP,		/* by tunnel to the ingress node */
	RETURN_FORWARD,		/* came by tunnel, on to the client */
	RETURN_TOO_BIG,		/* ICMP fragmentation needed / packet too big, to the sender */
	RETURN_PROBE,		/* a probe, answered */
	RETURN_FRAGMENTED,	/* fragmented before encapsulation */
	RETURN_NEIGHBOUR,	/* ARP or a neighbour solicitation of an overlay endpoint, answered */
	RETURN_ECHO,		/* a ping of a service's VIP, answered */
	RETURN_TASK,		/* to a task of this node that dialled */
	HELD,			/* the service has no backend yet: the agent asks for one, and puts the packet back then */
	DROP_MALFORMED,		/* truncated or inconsistent headers in a packet meant for us */
	DROP_UNKNOWN_VTEP,	/* VXLAN of our VNI from an address that is no node's */
	DROP_UNKNOWN_BACKEND,	/* the inner MAC names no live backend of ours */
	DROP_BAD_RETURN,	/* tunnelled reply whose source is no frontend */
	DROP_NO_BACKEND,	/* every backend is down */
	DROP_DENIED,		/* allow or deny list */
	DROP_TOO_BIG,		/* does not fit, and cannot be told or fragmented */
	DROP_NO_NEXT_HOP,	/* the backend's node has no resolved next hop */
	DROP_NO_PORT,		/* the client's port and all its stand-ins are taken */
	DROP_FRAGMENT,		/* a later fragment whose first was not seen */
	DROP_SPOOFED,		/* an overlay endpoint's packet with a source that is not its own */
	DROP_NO_ENDPOINT,	/* no endpoint of the overlay network has the address */
	DROP_FLOOD,		/* broadcast, multicast, and what is not IP: overlay networks carry none */
	DROP_PLAIN,		/* an unencrypted packet of an encrypted network */
	DROP_HELPER,		/* a kernel helper refused: no headroom, no memory */
	VERDICT_COUNT,
};

/* Bytes of a frame that is held. A longer one wakes its service all the same. */
#define HELD_MAX 512

/* `held`: the first packet of a flow to a frontend that has no backend; the frame follows. */
struct held {
	__u64 time_ns;		/* CLOCK_BOOTTIME */
	struct in6_addr client;
	struct in6_addr addr;	/* of the frontend */
	__be16 client_port;
	__be16 port;
	__u8 proto;
	__u8 pad[3];
	__u32 frontend;
	__u32 ifindex;		/* where it came in */
	__u32 len;		/* bytes of the frame; 0: too long, or not to be put back */
	__u32 pad2;
};

/* `events`: one verdict, while SETTINGS_TRACE is set. */
struct event {
	__u64 time_ns;		/* CLOCK_BOOTTIME */
	struct in6_addr src;
	struct in6_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 program;		/* enum program */
	__u8 verdict;		/* enum verdict */
	__u8 tcp_flags;
	__u32 ifindex;
	__u32 ref;
	__u32 len;		/* bytes */
	__u32 pad;
};

#ifdef __bpf__
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key has padding");
_Static_assert(sizeof(struct flow_key) == 40, "flow_key has padding");
_Static_assert(sizeof(struct revnat_key) == 40, "revnat_key has padding");
_Static_assert(sizeof(struct datagram_key) == 32, "datagram_key has padding");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key has padding");
_Static_assert(sizeof(struct frontend) == 48, "frontend");
_Static_assert(__builtin_offsetof(struct settings, own4) <= 64, "settings: what packets need is in one cache line");
_Static_assert(sizeof(struct settings) == 224, "settings has padding");
_Static_assert(sizeof(struct backend) == 16, "backend: four to a cache line");
_Static_assert(sizeof(struct node) == 24, "node");
_Static_assert(sizeof(struct uplink) == 16, "uplink");
_Static_assert(sizeof(struct local_backend) == 52, "local_backend");
_Static_assert(sizeof(struct transition) == 24, "transition");
_Static_assert(sizeof(struct overlay_key) == 20, "overlay_key has padding");
_Static_assert(sizeof(struct overlay_endpoint) == 16, "overlay_endpoint");
_Static_assert(sizeof(struct overlay_slice_key) == 24, "overlay_slice_key has padding");
_Static_assert(sizeof(struct overlay_port) == 44, "overlay_port");
_Static_assert(sizeof(struct vip_key) == 20, "vip_key has padding");
_Static_assert(sizeof(struct vip_backend) == 24, "vip_backend");
_Static_assert(sizeof(struct on_link) == 24, "on_link");
_Static_assert(sizeof(struct name_service) == 24, "name_service");
_Static_assert(sizeof(struct revnat) == 64, "revnat: one cache line");
_Static_assert(VERDICT_COUNT <= 64, "verdicts fit their counter row");
#endif

#endif
