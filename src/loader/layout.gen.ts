// Generated from bpf/mesh.h by src/loader/gen-layout.ts (npm run layout). Do not edit.
import { type Codec, getIp, getIp4, getList, getMac, putIp, putIp4, putList, putMac } from './text.js';

export const MESH_ABI = 1;
export const MAX_SERVICES_PORTS = 131072;
export const MAX_FRONTENDS = 65536;
export const MAX_BACKENDS = 131072;
export const MAX_NODES = 4096;
export const MAX_UPLINKS = 1024;
export const MAX_OWN_ADDRESSES = 8;
export const MAX_TABLE_SLOTS = 131072;
export const MAX_NETWORKS = 4096;
export const MAX_OVERLAY_ENDPOINTS = 262144;
export const MAX_OVERLAY_PORTS = 4096;
export const MAX_NETNS = 16384;
export const MAX_NETNS_NETWORKS = 16;
export const MAX_VIPS = 16384;
export const MAX_VIP_BACKENDS = 131072;
export const REF_INDEX_BITS = 22;
export const REF_INDEX_MASK = 0x003fffff;
export const REF_GENERATION_MASK = 0x3fc00000;
export const REF_MASK = 0x3fffffff;
export const REF_NONE = 0;
export const REF_KERNEL = 0x003fffff;
export const SLOT_PHASE_SHIFT = 30;
export const PORT_FRONTEND_MASK = 0x000fffff;
export const HELD_MAX = 512;
export const VERDICT_ROWS = 64;
export const MAX_FRAGMENTED = 2048;

/** enum slot_phase */
export const SlotPhase = {
	SLOT_STABLE: 0,
	SLOT_MOVING: 1,
} as const;

/** enum settings_flag */
export const SettingsFlag = {
	SETTINGS_MORE_ADDRESSES: 1,
	SETTINGS_TRACE: 2,
	SETTINGS_PROCESSES: 4,
	SETTINGS_WATCH_SOURCES: 8,
	SETTINGS_KNOW_SOURCES: 16,
} as const;

/** enum port_flag */
export const PortFlag = {
	PORT_EXACT: 2147483648,
	PORT_LOCAL: 1073741824,
	PORT_MASQUERADED: 268435456,
	PORT_PROCESS: 536870912,
} as const;

/** enum frontend_flag */
export const FrontendFlag = {
	FRONTEND_AFFINITY: 1,
	FRONTEND_TRACK_ALWAYS: 2,
	FRONTEND_TRACK_NONE: 4,
	FRONTEND_ALLOW: 8,
	FRONTEND_DENY: 16,
	FRONTEND_KERNEL: 32,
	FRONTEND_REHASHED: 64,
	FRONTEND_TRACKED: 128,
	FRONTEND_HOLDS: 256,
} as const;

/** enum hashed_by */
export const HashedBy = {
	HASHED_BY_FLOW: 1,
	HASHED_BY_CLIENT: 2,
} as const;

/** enum backend_state */
export const BackendState = {
	BACKEND_NONE: 0,
	BACKEND_ACTIVE: 1,
	BACKEND_DRAINING: 2,
	BACKEND_DOWN: 3,
} as const;

/** enum delivery */
export const Delivery = {
	DELIVER_PEER: 1,
	DELIVER_NEIGH: 2,
	DELIVER_PROCESS: 3,
} as const;

/** enum local_flag */
export const LocalFlag = {
	LOCAL_ON_LINK: 1,
	LOCAL_INSIDE: 2,
	LOCAL_MASQUERADED: 4,
} as const;

/** enum return_path */
export const ReturnPath = {
	RETURN_AUTO: 0,
	RETURN_DSR: 1,
	RETURN_TUNNEL: 2,
} as const;

/** enum node_flag */
export const NodeFlag = {
	NODE_RESOLVED: 1,
	NODE_DSR: 2,
} as const;

/** enum network_flag */
export const NetworkFlag = {
	NETWORK_ENCRYPTED: 1,
} as const;

/** enum overlay_flag */
export const OverlayFlag = {
	OVERLAY_VIP: 1,
} as const;

/** enum flow_kind */
export const FlowKind = {
	FLOW_SLOT: 0,
	FLOW_HASH: 1,
	FLOW_SENT_ON: 2,
} as const;

/** enum revnat_state */
export const RevnatState = {
	REVNAT_NEW: 0,
	REVNAT_REPLIED: 1,
	REVNAT_PROMOTED: 2,
	REVNAT_CLOSING: 3,
} as const;

/** enum vip_flag */
export const VipFlag = {
	VIP_AFFINITY: 1,
	VIP_KERNEL: 2,
} as const;

/** enum program */
export const Program = {
	PROGRAM_UPLINK_XDP: 0,
	PROGRAM_UPLINK_TC: 1,
	PROGRAM_UPLINK_TC_EGRESS: 2,
	PROGRAM_ENDPOINT_TC: 3,
	PROGRAM_SOCKET: 4,
	PROGRAM_OVERLAY_TC: 5,
	PROGRAM_ESP_TC: 6,
	PROGRAM_COUNT: 7,
} as const;

/** enum verdict */
export const Verdict = {
	PASS_NOT_OURS: 0,
	PASS_SYN_ACK: 1,
	PASS_LOCAL_SOCKET: 2,
	PASS_NO_BACKEND: 3,
	PASS_KERNEL: 4,
	PASS_STALE: 5,
	PASS_FOREIGN_VNI: 6,
	PASS_HEADERS: 7,
	PASS_DIRECT: 8,
	PASS_NO_REVNAT: 9,
	PASS_UNMARKED: 10,
	ENCAP_NODE: 11,
	ENCAP_FRAGMENTS: 12,
	ENCAP_REBALANCED: 13,
	ENCAP_OVERLAY: 14,
	ENCAP_ESP: 15,
	DELIVER_ENDPOINT: 16,
	DELIVER_LOCAL_PROCESS: 17,
	DELIVER_ICMP: 18,
	DELIVER_FRAGMENT: 19,
	DELIVER_SOCKET: 20,
	DELIVER_OVERLAY: 21,
	DELIVER_VIP: 22,
	DELIVER_ON_LINK: 23,
	RETURN_CLIENT_DSR: 24,
	RETURN_CLIENT_LOCAL: 25,
	RETURN_ENCAP: 26,
	RETURN_FORWARD: 27,
	RETURN_TOO_BIG: 28,
	RETURN_PROBE: 29,
	RETURN_FRAGMENTED: 30,
	RETURN_NEIGHBOUR: 31,
	RETURN_ECHO: 32,
	RETURN_TASK: 33,
	HELD: 34,
	DROP_MALFORMED: 35,
	DROP_UNKNOWN_VTEP: 36,
	DROP_UNKNOWN_BACKEND: 37,
	DROP_BAD_RETURN: 38,
	DROP_NO_BACKEND: 39,
	DROP_DENIED: 40,
	DROP_TOO_BIG: 41,
	DROP_NO_NEXT_HOP: 42,
	DROP_NO_PORT: 43,
	DROP_FRAGMENT: 44,
	DROP_SPOOFED: 45,
	DROP_NO_ENDPOINT: 46,
	DROP_FLOOD: 47,
	DROP_PLAIN: 48,
	DROP_HELPER: 49,
	VERDICT_COUNT: 50,
} as const;

/** Names of the verdicts, by number: labels of metrics and names in the monitor. */
export const VERDICTS: readonly string[] = [
	'pass_not_ours',
	'pass_syn_ack',
	'pass_local_socket',
	'pass_no_backend',
	'pass_kernel',
	'pass_stale',
	'pass_foreign_vni',
	'pass_headers',
	'pass_direct',
	'pass_no_revnat',
	'pass_unmarked',
	'encap_node',
	'encap_fragments',
	'encap_rebalanced',
	'encap_overlay',
	'encap_esp',
	'deliver_endpoint',
	'deliver_local_process',
	'deliver_icmp',
	'deliver_fragment',
	'deliver_socket',
	'deliver_overlay',
	'deliver_vip',
	'deliver_on_link',
	'return_client_dsr',
	'return_client_local',
	'return_encap',
	'return_forward',
	'return_too_big',
	'return_probe',
	'return_fragmented',
	'return_neighbour',
	'return_echo',
	'return_task',
	'held',
	'drop_malformed',
	'drop_unknown_vtep',
	'drop_unknown_backend',
	'drop_bad_return',
	'drop_no_backend',
	'drop_denied',
	'drop_too_big',
	'drop_no_next_hop',
	'drop_no_port',
	'drop_fragment',
	'drop_spoofed',
	'drop_no_endpoint',
	'drop_flood',
	'drop_plain',
	'drop_helper',
];

/** Names of the programs, by number. */
export const PROGRAMS: readonly string[] = ['uplink_xdp', 'uplink_tc', 'uplink_tc_egress', 'endpoint_tc', 'socket', 'overlay_tc', 'esp_tc'];

/** struct transition, 24 bytes */
export interface Transition {
	readonly since_ns: bigint;
	readonly needed_ns: bigint;
	readonly previous: number;
	readonly generation: number;
}

export const transitionCodec: Codec<Transition> = {
	size: 24,
	offsets: { since_ns: 0, needed_ns: 8, previous: 16, generation: 20 },
	encode(row, v, at) {
		v.setBigUint64(at, row.since_ns, true);
		v.setBigUint64(at + 8, row.needed_ns, true);
		v.setUint32(at + 16, row.previous, true);
		v.setUint32(at + 20, row.generation, true);
	},
	decode: (v, at) => ({
		since_ns: v.getBigUint64(at, true),
		needed_ns: v.getBigUint64(at + 8, true),
		previous: v.getUint32(at + 16, true),
		generation: v.getUint32(at + 20, true),
	}),
};

/** struct settings, 224 bytes */
export interface Settings {
	readonly heartbeat_ns: bigint;
	readonly stale_after_ns: bigint;
	readonly netns_cookie: bigint;
	readonly table_digest: bigint;
	readonly vtep: string;
	readonly vni: number;
	readonly vxlan_port: number;
	readonly flags: number;
	readonly self: number;
	readonly hash_seed: number;
	readonly mark: number;
	readonly mesh_mtu: number;
	readonly own4: readonly string[];
	readonly own6: readonly string[];
}

export const settingsCodec: Codec<Settings> = {
	size: 224,
	offsets: { heartbeat_ns: 0, stale_after_ns: 8, netns_cookie: 16, table_digest: 24, vtep: 32, vni: 36, vxlan_port: 40, flags: 42, self: 44, hash_seed: 48, mark: 52, mesh_mtu: 56, pad: 58, own4: 60, own6: 92, pad2: 220 },
	encode(row, v, at) {
		v.setBigUint64(at, row.heartbeat_ns, true);
		v.setBigUint64(at + 8, row.stale_after_ns, true);
		v.setBigUint64(at + 16, row.netns_cookie, true);
		v.setBigUint64(at + 24, row.table_digest, true);
		putIp4(row.vtep, v, at + 32);
		v.setUint32(at + 36, row.vni << 8);
		v.setUint16(at + 40, row.vxlan_port);
		v.setUint16(at + 42, row.flags, true);
		v.setUint32(at + 44, row.self, true);
		v.setUint32(at + 48, row.hash_seed, true);
		v.setUint32(at + 52, row.mark, true);
		v.setUint16(at + 56, row.mesh_mtu, true);
		putList(row.own4, v, at + 60, 8, 4, putIp4, 'settings.own4');
		putList(row.own6, v, at + 92, 8, 16, putIp, 'settings.own6');
		v.setUint8(at + 58, 0);
		v.setUint8(at + 59, 0);
		v.setUint8(at + 220, 0);
		v.setUint8(at + 221, 0);
		v.setUint8(at + 222, 0);
		v.setUint8(at + 223, 0);
	},
	decode: (v, at) => ({
		heartbeat_ns: v.getBigUint64(at, true),
		stale_after_ns: v.getBigUint64(at + 8, true),
		netns_cookie: v.getBigUint64(at + 16, true),
		table_digest: v.getBigUint64(at + 24, true),
		vtep: getIp4(v, at + 32),
		vni: v.getUint32(at + 36) >>> 8,
		vxlan_port: v.getUint16(at + 40),
		flags: v.getUint16(at + 42, true),
		self: v.getUint32(at + 44, true),
		hash_seed: v.getUint32(at + 48, true),
		mark: v.getUint32(at + 52, true),
		mesh_mtu: v.getUint16(at + 56, true),
		own4: getList(v, at + 60, 8, 4, getIp4),
		own6: getList(v, at + 92, 8, 16, getIp),
	}),
};

/** struct uplink, 16 bytes */
export interface Uplink {
	readonly ifindex: number;
	readonly mtu: number;
	readonly mac: string;
	readonly l3_ifindex: number;
}

export const uplinkCodec: Codec<Uplink> = {
	size: 16,
	offsets: { ifindex: 0, mtu: 4, mac: 6, l3_ifindex: 12 },
	encode(row, v, at) {
		v.setUint32(at, row.ifindex, true);
		v.setUint16(at + 4, row.mtu, true);
		putMac(row.mac, v, at + 6);
		v.setUint32(at + 12, row.l3_ifindex, true);
	},
	decode: (v, at) => ({
		ifindex: v.getUint32(at, true),
		mtu: v.getUint16(at + 4, true),
		mac: getMac(v, at + 6),
		l3_ifindex: v.getUint32(at + 12, true),
	}),
};

/** struct table_ref, 8 bytes */
export interface TableRef {
	readonly table: number;
	readonly mask: number;
}

export const tableRefCodec: Codec<TableRef> = {
	size: 8,
	offsets: { table: 0, mask: 4 },
	encode(row, v, at) {
		v.setUint32(at, row.table, true);
		v.setUint32(at + 4, row.mask, true);
	},
	decode: (v, at) => ({
		table: v.getUint32(at, true),
		mask: v.getUint32(at + 4, true),
	}),
};

/** struct frontend, 48 bytes */
export interface Frontend {
	readonly tables: readonly [TableRef, TableRef];
	readonly window_ns: bigint;
	readonly udp_window_ns: bigint;
	readonly flags: number;
	readonly port: number;
	readonly proto: number;
	readonly acl: number;
	readonly generation: number;
}

export const frontendCodec: Codec<Frontend> = {
	size: 48,
	offsets: { tables: 0, window_ns: 16, udp_window_ns: 24, flags: 32, port: 34, proto: 36, pad: 37, acl: 40, generation: 44 },
	encode(row, v, at) {
		tableRefCodec.encode(row.tables[0], v, at + 0);
		tableRefCodec.encode(row.tables[1], v, at + 8);
		v.setBigUint64(at + 16, row.window_ns, true);
		v.setBigUint64(at + 24, row.udp_window_ns, true);
		v.setUint16(at + 32, row.flags, true);
		v.setUint16(at + 34, row.port);
		v.setUint8(at + 36, row.proto);
		v.setUint32(at + 40, row.acl, true);
		v.setUint32(at + 44, row.generation, true);
		v.setUint8(at + 37, 0);
		v.setUint8(at + 38, 0);
		v.setUint8(at + 39, 0);
	},
	decode: (v, at) => ({
		tables: [tableRefCodec.decode(v, at + 0), tableRefCodec.decode(v, at + 8)],
		window_ns: v.getBigUint64(at + 16, true),
		udp_window_ns: v.getBigUint64(at + 24, true),
		flags: v.getUint16(at + 32, true),
		port: v.getUint16(at + 34),
		proto: v.getUint8(at + 36),
		acl: v.getUint32(at + 40, true),
		generation: v.getUint32(at + 44, true),
	}),
};

/** struct frontend_key, 20 bytes */
export interface FrontendKey {
	readonly addr: string;
	readonly port: number;
	readonly proto: number;
}

export const frontendKeyCodec: Codec<FrontendKey> = {
	size: 20,
	offsets: { addr: 0, port: 16, proto: 18, pad: 19 },
	encode(row, v, at) {
		putIp(row.addr, v, at);
		v.setUint16(at + 16, row.port);
		v.setUint8(at + 18, row.proto);
		v.setUint8(at + 19, 0);
	},
	decode: (v, at) => ({
		addr: getIp(v, at),
		port: v.getUint16(at + 16),
		proto: v.getUint8(at + 18),
	}),
};

/** struct backend, 16 bytes */
export interface Backend {
	readonly state: number;
	readonly generation: number;
	readonly mac: string;
	readonly node: number;
}

export const backendCodec: Codec<Backend> = {
	size: 16,
	offsets: { state: 0, generation: 1, mac: 2, node: 8, pad: 12 },
	encode(row, v, at) {
		v.setUint8(at, row.state);
		v.setUint8(at + 1, row.generation);
		putMac(row.mac, v, at + 2);
		v.setUint32(at + 8, row.node, true);
		v.setUint8(at + 12, 0);
		v.setUint8(at + 13, 0);
		v.setUint8(at + 14, 0);
		v.setUint8(at + 15, 0);
	},
	decode: (v, at) => ({
		state: v.getUint8(at),
		generation: v.getUint8(at + 1),
		mac: getMac(v, at + 2),
		node: v.getUint32(at + 8, true),
	}),
};

/** struct mac_key, 8 bytes */
export interface MacKey {
	readonly mac: string;
}

export const macKeyCodec: Codec<MacKey> = {
	size: 8,
	offsets: { mac: 0, pad: 6 },
	encode(row, v, at) {
		putMac(row.mac, v, at);
		v.setUint8(at + 6, 0);
		v.setUint8(at + 7, 0);
	},
	decode: (v, at) => ({
		mac: getMac(v, at),
	}),
};

/** struct local_backend, 52 bytes */
export interface LocalBackend {
	readonly addr4: string;
	readonly addr6: string;
	readonly ref: number;
	readonly ifindex: number;
	readonly frontend: number;
	readonly port: number;
	readonly proto: number;
	readonly state: number;
	readonly delivery: number;
	readonly return_path: number;
	readonly flags: number;
}

export const localBackendCodec: Codec<LocalBackend> = {
	size: 52,
	offsets: { addr4: 0, addr6: 16, ref: 32, ifindex: 36, frontend: 40, port: 44, proto: 46, state: 47, delivery: 48, return_path: 49, flags: 50, pad: 51 },
	encode(row, v, at) {
		putIp(row.addr4, v, at);
		putIp(row.addr6, v, at + 16);
		v.setUint32(at + 32, row.ref, true);
		v.setUint32(at + 36, row.ifindex, true);
		v.setUint32(at + 40, row.frontend, true);
		v.setUint16(at + 44, row.port);
		v.setUint8(at + 46, row.proto);
		v.setUint8(at + 47, row.state);
		v.setUint8(at + 48, row.delivery);
		v.setUint8(at + 49, row.return_path);
		v.setUint8(at + 50, row.flags);
		v.setUint8(at + 51, 0);
	},
	decode: (v, at) => ({
		addr4: getIp(v, at),
		addr6: getIp(v, at + 16),
		ref: v.getUint32(at + 32, true),
		ifindex: v.getUint32(at + 36, true),
		frontend: v.getUint32(at + 40, true),
		port: v.getUint16(at + 44),
		proto: v.getUint8(at + 46),
		state: v.getUint8(at + 47),
		delivery: v.getUint8(at + 48),
		return_path: v.getUint8(at + 49),
		flags: v.getUint8(at + 50),
	}),
};

/** struct on_link_key, 24 bytes */
export interface OnLinkKey {
	readonly prefixlen: number;
	readonly list: number;
	readonly addr: string;
}

export const onLinkKeyCodec: Codec<OnLinkKey> = {
	size: 24,
	offsets: { prefixlen: 0, list: 4, addr: 8 },
	encode(row, v, at) {
		v.setUint32(at, row.prefixlen, true);
		v.setUint32(at + 4, row.list, true);
		putIp(row.addr, v, at + 8);
	},
	decode: (v, at) => ({
		prefixlen: v.getUint32(at, true),
		list: v.getUint32(at + 4, true),
		addr: getIp(v, at + 8),
	}),
};

/** struct on_link, 24 bytes */
export interface OnLink {
	readonly gateway: string;
	readonly ifindex: number;
	readonly first_port: number;
	readonly port_count: number;
}

export const onLinkCodec: Codec<OnLink> = {
	size: 24,
	offsets: { gateway: 0, ifindex: 16, first_port: 20, port_count: 22 },
	encode(row, v, at) {
		putIp(row.gateway, v, at);
		v.setUint32(at + 16, row.ifindex, true);
		v.setUint16(at + 20, row.first_port, true);
		v.setUint16(at + 22, row.port_count, true);
	},
	decode: (v, at) => ({
		gateway: getIp(v, at),
		ifindex: v.getUint32(at + 16, true),
		first_port: v.getUint16(at + 20, true),
		port_count: v.getUint16(at + 22, true),
	}),
};

/** struct node, 24 bytes */
export interface Node {
	readonly vtep: string;
	readonly ifindex: number;
	readonly dmac: string;
	readonly smac: string;
	readonly mtu: number;
	readonly flags: number;
}

export const nodeCodec: Codec<Node> = {
	size: 24,
	offsets: { vtep: 0, ifindex: 4, dmac: 8, smac: 14, mtu: 20, flags: 22 },
	encode(row, v, at) {
		putIp4(row.vtep, v, at);
		v.setUint32(at + 4, row.ifindex, true);
		putMac(row.dmac, v, at + 8);
		putMac(row.smac, v, at + 14);
		v.setUint16(at + 20, row.mtu, true);
		v.setUint16(at + 22, row.flags, true);
	},
	decode: (v, at) => ({
		vtep: getIp4(v, at),
		ifindex: v.getUint32(at + 4, true),
		dmac: getMac(v, at + 8),
		smac: getMac(v, at + 14),
		mtu: v.getUint16(at + 20, true),
		flags: v.getUint16(at + 22, true),
	}),
};

/** struct network, 4 bytes */
export interface Network {
	readonly flags: number;
}

export const networkCodec: Codec<Network> = {
	size: 4,
	offsets: { flags: 0 },
	encode(row, v, at) {
		v.setUint32(at, row.flags, true);
	},
	decode: (v, at) => ({
		flags: v.getUint32(at, true),
	}),
};

/** struct encryption, 4 bytes */
export interface Encryption {
	readonly ifindex: number;
}

export const encryptionCodec: Codec<Encryption> = {
	size: 4,
	offsets: { ifindex: 0 },
	encode(row, v, at) {
		v.setUint32(at, row.ifindex, true);
	},
	decode: (v, at) => ({
		ifindex: v.getUint32(at, true),
	}),
};

/** struct overlay_key, 20 bytes */
export interface OverlayKey {
	readonly vni: number;
	readonly addr: string;
}

export const overlayKeyCodec: Codec<OverlayKey> = {
	size: 20,
	offsets: { vni: 0, addr: 4 },
	encode(row, v, at) {
		v.setUint32(at, row.vni, true);
		putIp(row.addr, v, at + 4);
	},
	decode: (v, at) => ({
		vni: v.getUint32(at, true),
		addr: getIp(v, at + 4),
	}),
};

/** struct overlay_endpoint, 16 bytes */
export interface OverlayEndpoint {
	readonly node: number;
	readonly ifindex: number;
	readonly mac: string;
	readonly flags: number;
}

export const overlayEndpointCodec: Codec<OverlayEndpoint> = {
	size: 16,
	offsets: { node: 0, ifindex: 4, mac: 8, flags: 14 },
	encode(row, v, at) {
		v.setUint32(at, row.node, true);
		v.setUint32(at + 4, row.ifindex, true);
		putMac(row.mac, v, at + 8);
		v.setUint16(at + 14, row.flags, true);
	},
	decode: (v, at) => ({
		node: v.getUint32(at, true),
		ifindex: v.getUint32(at + 4, true),
		mac: getMac(v, at + 8),
		flags: v.getUint16(at + 14, true),
	}),
};

/** struct overlay_slice_key, 24 bytes */
export interface OverlaySliceKey {
	readonly prefixlen: number;
	readonly vni: number;
	readonly addr: string;
}

export const overlaySliceKeyCodec: Codec<OverlaySliceKey> = {
	size: 24,
	offsets: { prefixlen: 0, vni: 4, addr: 8 },
	encode(row, v, at) {
		v.setUint32(at, row.prefixlen, true);
		v.setUint32(at + 4, row.vni, true);
		putIp(row.addr, v, at + 8);
	},
	decode: (v, at) => ({
		prefixlen: v.getUint32(at, true),
		vni: v.getUint32(at + 4, true),
		addr: getIp(v, at + 8),
	}),
};

/** struct overlay_port, 44 bytes */
export interface OverlayPort {
	readonly addr4: string;
	readonly addr6: string;
	readonly vni: number;
	readonly mac: string;
}

export const overlayPortCodec: Codec<OverlayPort> = {
	size: 44,
	offsets: { addr4: 0, addr6: 16, vni: 32, mac: 36, pad: 42 },
	encode(row, v, at) {
		putIp(row.addr4, v, at);
		putIp(row.addr6, v, at + 16);
		v.setUint32(at + 32, row.vni, true);
		putMac(row.mac, v, at + 36);
		v.setUint8(at + 42, 0);
		v.setUint8(at + 43, 0);
	},
	decode: (v, at) => ({
		addr4: getIp(v, at),
		addr6: getIp(v, at + 16),
		vni: v.getUint32(at + 32, true),
		mac: getMac(v, at + 36),
	}),
};

/** struct flow_key, 40 bytes */
export interface FlowKey {
	readonly client: string;
	readonly addr: string;
	readonly client_port: number;
	readonly port: number;
	readonly proto: number;
	readonly kind: number;
}

export const flowKeyCodec: Codec<FlowKey> = {
	size: 40,
	offsets: { client: 0, addr: 16, client_port: 32, port: 34, proto: 36, kind: 37, pad: 38 },
	encode(row, v, at) {
		putIp(row.client, v, at);
		putIp(row.addr, v, at + 16);
		v.setUint16(at + 32, row.client_port);
		v.setUint16(at + 34, row.port);
		v.setUint8(at + 36, row.proto);
		v.setUint8(at + 37, row.kind);
		v.setUint8(at + 38, 0);
		v.setUint8(at + 39, 0);
	},
	decode: (v, at) => ({
		client: getIp(v, at),
		addr: getIp(v, at + 16),
		client_port: v.getUint16(at + 32),
		port: v.getUint16(at + 34),
		proto: v.getUint8(at + 36),
		kind: v.getUint8(at + 37),
	}),
};

/** struct flow, 16 bytes */
export interface Flow {
	readonly ref: number;
	readonly generation: number;
	readonly isn: number;
	readonly closing: number;
}

export const flowCodec: Codec<Flow> = {
	size: 16,
	offsets: { ref: 0, generation: 4, isn: 8, closing: 12 },
	encode(row, v, at) {
		v.setUint32(at, row.ref, true);
		v.setUint32(at + 4, row.generation, true);
		v.setUint32(at + 8, row.isn, true);
		v.setUint32(at + 12, row.closing, true);
	},
	decode: (v, at) => ({
		ref: v.getUint32(at, true),
		generation: v.getUint32(at + 4, true),
		isn: v.getUint32(at + 8, true),
		closing: v.getUint32(at + 12, true),
	}),
};

/** struct revnat_key, 40 bytes */
export interface RevnatKey {
	readonly client: string;
	readonly endpoint: string;
	readonly client_port: number;
	readonly port: number;
	readonly proto: number;
}

export const revnatKeyCodec: Codec<RevnatKey> = {
	size: 40,
	offsets: { client: 0, endpoint: 16, client_port: 32, port: 34, proto: 36, pad: 37 },
	encode(row, v, at) {
		putIp(row.client, v, at);
		putIp(row.endpoint, v, at + 16);
		v.setUint16(at + 32, row.client_port);
		v.setUint16(at + 34, row.port);
		v.setUint8(at + 36, row.proto);
		v.setUint8(at + 37, 0);
		v.setUint8(at + 38, 0);
		v.setUint8(at + 39, 0);
	},
	decode: (v, at) => ({
		client: getIp(v, at),
		endpoint: getIp(v, at + 16),
		client_port: v.getUint16(at + 32),
		port: v.getUint16(at + 34),
		proto: v.getUint8(at + 36),
	}),
};

/** struct revnat, 64 bytes */
export interface Revnat {
	readonly addr: string;
	readonly client: string;
	readonly port: number;
	readonly client_port: number;
	readonly node: number;
	readonly ref: number;
	readonly isn: number;
	readonly state: number;
	readonly fins: number;
	readonly return_path: number;
	readonly inside: number;
	readonly used_ns: bigint;
}

export const revnatCodec: Codec<Revnat> = {
	size: 64,
	offsets: { addr: 0, client: 16, port: 32, client_port: 34, node: 36, ref: 40, isn: 44, state: 48, fins: 49, return_path: 50, inside: 51, pad: 52, used_ns: 56 },
	encode(row, v, at) {
		putIp(row.addr, v, at);
		putIp(row.client, v, at + 16);
		v.setUint16(at + 32, row.port);
		v.setUint16(at + 34, row.client_port);
		v.setUint32(at + 36, row.node, true);
		v.setUint32(at + 40, row.ref, true);
		v.setUint32(at + 44, row.isn, true);
		v.setUint8(at + 48, row.state);
		v.setUint8(at + 49, row.fins);
		v.setUint8(at + 50, row.return_path);
		v.setUint8(at + 51, row.inside);
		v.setBigUint64(at + 56, row.used_ns, true);
		v.setUint8(at + 52, 0);
		v.setUint8(at + 53, 0);
		v.setUint8(at + 54, 0);
		v.setUint8(at + 55, 0);
	},
	decode: (v, at) => ({
		addr: getIp(v, at),
		client: getIp(v, at + 16),
		port: v.getUint16(at + 32),
		client_port: v.getUint16(at + 34),
		node: v.getUint32(at + 36, true),
		ref: v.getUint32(at + 40, true),
		isn: v.getUint32(at + 44, true),
		state: v.getUint8(at + 48),
		fins: v.getUint8(at + 49),
		return_path: v.getUint8(at + 50),
		inside: v.getUint8(at + 51),
		used_ns: v.getBigUint64(at + 56, true),
	}),
};

/** struct fragment_key, 40 bytes */
export interface FragmentKey {
	readonly src: string;
	readonly dst: string;
	readonly id: number;
	readonly proto: number;
}

export const fragmentKeyCodec: Codec<FragmentKey> = {
	size: 40,
	offsets: { src: 0, dst: 16, id: 32, proto: 36, pad: 37 },
	encode(row, v, at) {
		putIp(row.src, v, at);
		putIp(row.dst, v, at + 16);
		v.setUint32(at + 32, row.id, true);
		v.setUint8(at + 36, row.proto);
		v.setUint8(at + 37, 0);
		v.setUint8(at + 38, 0);
		v.setUint8(at + 39, 0);
	},
	decode: (v, at) => ({
		src: getIp(v, at),
		dst: getIp(v, at + 16),
		id: v.getUint32(at + 32, true),
		proto: v.getUint8(at + 36),
	}),
};

/** struct fragment, 48 bytes */
export interface Fragment {
	readonly ref: number;
	readonly node: number;
	readonly addr: string;
	readonly client: string;
	readonly return_path: number;
	readonly inside: number;
}

export const fragmentCodec: Codec<Fragment> = {
	size: 48,
	offsets: { ref: 0, node: 4, addr: 8, client: 24, return_path: 40, inside: 41, pad: 42 },
	encode(row, v, at) {
		v.setUint32(at, row.ref, true);
		v.setUint32(at + 4, row.node, true);
		putIp(row.addr, v, at + 8);
		putIp(row.client, v, at + 24);
		v.setUint8(at + 40, row.return_path);
		v.setUint8(at + 41, row.inside);
		v.setUint8(at + 42, 0);
		v.setUint8(at + 43, 0);
		v.setUint8(at + 44, 0);
		v.setUint8(at + 45, 0);
		v.setUint8(at + 46, 0);
		v.setUint8(at + 47, 0);
	},
	decode: (v, at) => ({
		ref: v.getUint32(at, true),
		node: v.getUint32(at + 4, true),
		addr: getIp(v, at + 8),
		client: getIp(v, at + 24),
		return_path: v.getUint8(at + 40),
		inside: v.getUint8(at + 41),
	}),
};

/** struct acl_key, 24 bytes */
export interface AclKey {
	readonly prefixlen: number;
	readonly acl: number;
	readonly addr: string;
}

export const aclKeyCodec: Codec<AclKey> = {
	size: 24,
	offsets: { prefixlen: 0, acl: 4, addr: 8 },
	encode(row, v, at) {
		v.setUint32(at, row.prefixlen, true);
		v.setUint32(at + 4, row.acl, true);
		putIp(row.addr, v, at + 8);
	},
	decode: (v, at) => ({
		prefixlen: v.getUint32(at, true),
		acl: v.getUint32(at + 4, true),
		addr: getIp(v, at + 8),
	}),
};

/** struct packets_bytes, 16 bytes */
export interface PacketsBytes {
	readonly packets: bigint;
	readonly bytes: bigint;
}

export const packetsBytesCodec: Codec<PacketsBytes> = {
	size: 16,
	offsets: { packets: 0, bytes: 8 },
	encode(row, v, at) {
		v.setBigUint64(at, row.packets, true);
		v.setBigUint64(at + 8, row.bytes, true);
	},
	decode: (v, at) => ({
		packets: v.getBigUint64(at, true),
		bytes: v.getBigUint64(at + 8, true),
	}),
};

/** struct backend_counters, 24 bytes */
export interface BackendCounters {
	readonly packets: bigint;
	readonly bytes: bigint;
	readonly new_flows: bigint;
}

export const backendCountersCodec: Codec<BackendCounters> = {
	size: 24,
	offsets: { packets: 0, bytes: 8, new_flows: 16 },
	encode(row, v, at) {
		v.setBigUint64(at, row.packets, true);
		v.setBigUint64(at + 8, row.bytes, true);
		v.setBigUint64(at + 16, row.new_flows, true);
	},
	decode: (v, at) => ({
		packets: v.getBigUint64(at, true),
		bytes: v.getBigUint64(at + 8, true),
		new_flows: v.getBigUint64(at + 16, true),
	}),
};

/** struct socket_peer, 40 bytes */
export interface SocketPeer {
	readonly addr: string;
	readonly backend_addr: string;
	readonly port: number;
	readonly backend_port: number;
	readonly ref: number;
}

export const socketPeerCodec: Codec<SocketPeer> = {
	size: 40,
	offsets: { addr: 0, backend_addr: 16, port: 32, backend_port: 34, ref: 36 },
	encode(row, v, at) {
		putIp(row.addr, v, at);
		putIp(row.backend_addr, v, at + 16);
		v.setUint16(at + 32, row.port);
		v.setUint16(at + 34, row.backend_port);
		v.setUint32(at + 36, row.ref, true);
	},
	decode: (v, at) => ({
		addr: getIp(v, at),
		backend_addr: getIp(v, at + 16),
		port: v.getUint16(at + 32),
		backend_port: v.getUint16(at + 34),
		ref: v.getUint32(at + 36, true),
	}),
};

/** struct datagram_key, 32 bytes */
export interface DatagramKey {
	readonly socket: bigint;
	readonly addr: string;
	readonly port: number;
}

export const datagramKeyCodec: Codec<DatagramKey> = {
	size: 32,
	offsets: { socket: 0, addr: 8, port: 24, pad: 26 },
	encode(row, v, at) {
		v.setBigUint64(at, row.socket, true);
		putIp(row.addr, v, at + 8);
		v.setUint16(at + 24, row.port);
		v.setUint8(at + 26, 0);
		v.setUint8(at + 27, 0);
		v.setUint8(at + 28, 0);
		v.setUint8(at + 29, 0);
		v.setUint8(at + 30, 0);
		v.setUint8(at + 31, 0);
	},
	decode: (v, at) => ({
		socket: v.getBigUint64(at, true),
		addr: getIp(v, at + 8),
		port: v.getUint16(at + 24),
	}),
};

/** struct netns_networks, 64 bytes */
export interface NetnsNetworks {
	readonly networks: readonly [number, number, number, number, number, number, number, number, number, number, number, number, number, number, number, number];
}

export const netnsNetworksCodec: Codec<NetnsNetworks> = {
	size: 64,
	offsets: { networks: 0 },
	encode(row, v, at) {
		v.setUint32(at + 0, row.networks[0], true);
		v.setUint32(at + 4, row.networks[1], true);
		v.setUint32(at + 8, row.networks[2], true);
		v.setUint32(at + 12, row.networks[3], true);
		v.setUint32(at + 16, row.networks[4], true);
		v.setUint32(at + 20, row.networks[5], true);
		v.setUint32(at + 24, row.networks[6], true);
		v.setUint32(at + 28, row.networks[7], true);
		v.setUint32(at + 32, row.networks[8], true);
		v.setUint32(at + 36, row.networks[9], true);
		v.setUint32(at + 40, row.networks[10], true);
		v.setUint32(at + 44, row.networks[11], true);
		v.setUint32(at + 48, row.networks[12], true);
		v.setUint32(at + 52, row.networks[13], true);
		v.setUint32(at + 56, row.networks[14], true);
		v.setUint32(at + 60, row.networks[15], true);
	},
	decode: (v, at) => ({
		networks: [v.getUint32(at + 0, true), v.getUint32(at + 4, true), v.getUint32(at + 8, true), v.getUint32(at + 12, true), v.getUint32(at + 16, true), v.getUint32(at + 20, true), v.getUint32(at + 24, true), v.getUint32(at + 28, true), v.getUint32(at + 32, true), v.getUint32(at + 36, true), v.getUint32(at + 40, true), v.getUint32(at + 44, true), v.getUint32(at + 48, true), v.getUint32(at + 52, true), v.getUint32(at + 56, true), v.getUint32(at + 60, true)],
	}),
};

/** struct name_service, 24 bytes */
export interface NameService {
	readonly dialled: string;
	readonly port: number;
}

export const nameServiceCodec: Codec<NameService> = {
	size: 24,
	offsets: { dialled: 0, port: 16, pad: 18 },
	encode(row, v, at) {
		putIp(row.dialled, v, at);
		v.setUint16(at + 16, row.port);
		v.setUint8(at + 18, 0);
		v.setUint8(at + 19, 0);
		v.setUint8(at + 20, 0);
		v.setUint8(at + 21, 0);
		v.setUint8(at + 22, 0);
		v.setUint8(at + 23, 0);
	},
	decode: (v, at) => ({
		dialled: getIp(v, at),
		port: v.getUint16(at + 16),
	}),
};

/** struct vip_key, 20 bytes */
export interface VipKey {
	readonly network: number;
	readonly addr: string;
}

export const vipKeyCodec: Codec<VipKey> = {
	size: 20,
	offsets: { network: 0, addr: 4 },
	encode(row, v, at) {
		v.setUint32(at, row.network, true);
		putIp(row.addr, v, at + 4);
	},
	decode: (v, at) => ({
		network: v.getUint32(at, true),
		addr: getIp(v, at + 4),
	}),
};

/** struct vip, 16 bytes */
export interface Vip {
	readonly table: number;
	readonly mask: number;
	readonly flags: number;
}

export const vipCodec: Codec<Vip> = {
	size: 16,
	offsets: { table: 0, mask: 4, flags: 8, pad: 12 },
	encode(row, v, at) {
		v.setUint32(at, row.table, true);
		v.setUint32(at + 4, row.mask, true);
		v.setUint32(at + 8, row.flags, true);
		v.setUint8(at + 12, 0);
		v.setUint8(at + 13, 0);
		v.setUint8(at + 14, 0);
		v.setUint8(at + 15, 0);
	},
	decode: (v, at) => ({
		table: v.getUint32(at, true),
		mask: v.getUint32(at + 4, true),
		flags: v.getUint32(at + 8, true),
	}),
};

/** struct vip_backend, 24 bytes */
export interface VipBackend {
	readonly addr: string;
	readonly network: number;
	readonly state: number;
}

export const vipBackendCodec: Codec<VipBackend> = {
	size: 24,
	offsets: { addr: 0, network: 16, state: 20, pad: 21 },
	encode(row, v, at) {
		putIp(row.addr, v, at);
		v.setUint32(at + 16, row.network, true);
		v.setUint8(at + 20, row.state);
		v.setUint8(at + 21, 0);
		v.setUint8(at + 22, 0);
		v.setUint8(at + 23, 0);
	},
	decode: (v, at) => ({
		addr: getIp(v, at),
		network: v.getUint32(at + 16, true),
		state: v.getUint8(at + 20),
	}),
};

/** struct held, 64 bytes */
export interface Held {
	readonly time_ns: bigint;
	readonly client: string;
	readonly addr: string;
	readonly client_port: number;
	readonly port: number;
	readonly proto: number;
	readonly frontend: number;
	readonly ifindex: number;
	readonly len: number;
}

export const heldCodec: Codec<Held> = {
	size: 64,
	offsets: { time_ns: 0, client: 8, addr: 24, client_port: 40, port: 42, proto: 44, pad: 45, frontend: 48, ifindex: 52, len: 56, pad2: 60 },
	encode(row, v, at) {
		v.setBigUint64(at, row.time_ns, true);
		putIp(row.client, v, at + 8);
		putIp(row.addr, v, at + 24);
		v.setUint16(at + 40, row.client_port);
		v.setUint16(at + 42, row.port);
		v.setUint8(at + 44, row.proto);
		v.setUint32(at + 48, row.frontend, true);
		v.setUint32(at + 52, row.ifindex, true);
		v.setUint32(at + 56, row.len, true);
		v.setUint8(at + 45, 0);
		v.setUint8(at + 46, 0);
		v.setUint8(at + 47, 0);
		v.setUint8(at + 60, 0);
		v.setUint8(at + 61, 0);
		v.setUint8(at + 62, 0);
		v.setUint8(at + 63, 0);
	},
	decode: (v, at) => ({
		time_ns: v.getBigUint64(at, true),
		client: getIp(v, at + 8),
		addr: getIp(v, at + 24),
		client_port: v.getUint16(at + 40),
		port: v.getUint16(at + 42),
		proto: v.getUint8(at + 44),
		frontend: v.getUint32(at + 48, true),
		ifindex: v.getUint32(at + 52, true),
		len: v.getUint32(at + 56, true),
	}),
};

/** struct event, 64 bytes */
export interface Event {
	readonly time_ns: bigint;
	readonly src: string;
	readonly dst: string;
	readonly sport: number;
	readonly dport: number;
	readonly proto: number;
	readonly program: number;
	readonly verdict: number;
	readonly tcp_flags: number;
	readonly ifindex: number;
	readonly ref: number;
	readonly len: number;
}

export const eventCodec: Codec<Event> = {
	size: 64,
	offsets: { time_ns: 0, src: 8, dst: 24, sport: 40, dport: 42, proto: 44, program: 45, verdict: 46, tcp_flags: 47, ifindex: 48, ref: 52, len: 56, pad: 60 },
	encode(row, v, at) {
		v.setBigUint64(at, row.time_ns, true);
		putIp(row.src, v, at + 8);
		putIp(row.dst, v, at + 24);
		v.setUint16(at + 40, row.sport);
		v.setUint16(at + 42, row.dport);
		v.setUint8(at + 44, row.proto);
		v.setUint8(at + 45, row.program);
		v.setUint8(at + 46, row.verdict);
		v.setUint8(at + 47, row.tcp_flags);
		v.setUint32(at + 48, row.ifindex, true);
		v.setUint32(at + 52, row.ref, true);
		v.setUint32(at + 56, row.len, true);
		v.setUint8(at + 60, 0);
		v.setUint8(at + 61, 0);
		v.setUint8(at + 62, 0);
		v.setUint8(at + 63, 0);
	},
	decode: (v, at) => ({
		time_ns: v.getBigUint64(at, true),
		src: getIp(v, at + 8),
		dst: getIp(v, at + 24),
		sport: v.getUint16(at + 40),
		dport: v.getUint16(at + 42),
		proto: v.getUint8(at + 44),
		program: v.getUint8(at + 45),
		verdict: v.getUint8(at + 46),
		tcp_flags: v.getUint8(at + 47),
		ifindex: v.getUint32(at + 48, true),
		ref: v.getUint32(at + 52, true),
		len: v.getUint32(at + 56, true),
	}),
};
