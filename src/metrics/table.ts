/**
 * Every metric of Beeline: name, type, help, unit, labels. Labels are bounded: by programs, verdicts, maps, and by what
 * the operator configured; never by a client's address or port.
 */
export interface MetricSpec {
	readonly name: string;
	readonly type: 'counter' | 'gauge' | 'histogram';
	readonly help: string;
	readonly unit:
		| 'packets'
		| 'bytes'
		| 'seconds'
		| 'flows'
		| 'entries'
		| 'slots'
		| 'errors'
		| 'queries'
		| 'messages'
		| 'none';
	readonly labels: readonly string[];
	/** Upper bounds of a histogram, in its unit. */
	readonly buckets?: readonly number[];
}

export const METRICS = {
	packets: {
		name: 'beeline_packets_total',
		type: 'counter',
		help: 'Packets by the program that saw them and its verdict (bpf/README.md lists them)',
		unit: 'packets',
		labels: ['program', 'verdict'],
	},
	bytes: {
		name: 'beeline_bytes_total',
		type: 'counter',
		help: 'Bytes, headers included, by program and verdict',
		unit: 'bytes',
		labels: ['program', 'verdict'],
	},
	servicePackets: {
		name: 'beeline_service_packets_total',
		type: 'counter',
		help: 'Packets of clients to a published port, on this node',
		unit: 'packets',
		labels: ['service', 'protocol', 'port'],
	},
	serviceBytes: {
		name: 'beeline_service_bytes_total',
		type: 'counter',
		help: 'Bytes of clients to a published port, on this node',
		unit: 'bytes',
		labels: ['service', 'protocol', 'port'],
	},
	backendPackets: {
		name: 'beeline_backend_packets_total',
		type: 'counter',
		help: 'Packets that this node sent to a backend',
		unit: 'packets',
		labels: ['service', 'backend', 'node'],
	},
	backendBytes: {
		name: 'beeline_backend_bytes_total',
		type: 'counter',
		help: 'Bytes that this node sent to a backend',
		unit: 'bytes',
		labels: ['service', 'backend', 'node'],
	},
	backendNewFlows: {
		name: 'beeline_backend_new_flows_total',
		type: 'counter',
		help: 'TCP and UDP flows that began at a backend of this node, whichever node received them',
		unit: 'flows',
		labels: ['service', 'backend', 'node'],
	},
	backendState: {
		name: 'beeline_backend_state',
		type: 'gauge',
		help: '1 for the state that a backend is in, 0 for the others',
		unit: 'none',
		labels: ['service', 'backend', 'node', 'state'],
	},
	flows: {
		name: 'beeline_flows',
		type: 'gauge',
		help: 'Living flows of the backends on this node',
		unit: 'flows',
		labels: ['service'],
	},
	mapEntries: {
		name: 'beeline_map_entries',
		type: 'gauge',
		help: 'Entries of a map',
		unit: 'entries',
		labels: ['map'],
	},
	mapMaxEntries: {
		name: 'beeline_map_max_entries',
		type: 'gauge',
		help: 'Capacity of a map',
		unit: 'entries',
		labels: ['map'],
	},
	slotsInTransition: {
		name: 'beeline_slots_in_transition',
		type: 'gauge',
		help: 'Slots of a service whose flows are tracked because the table is changing',
		unit: 'slots',
		labels: ['service'],
	},
	nodeReachable: {
		name: 'beeline_node_reachable',
		type: 'gauge',
		help: '1 where the way to a node is known, 0 where it is not',
		unit: 'none',
		labels: ['node'],
	},
	reconcileDuration: {
		name: 'beeline_reconcile_duration_seconds',
		type: 'histogram',
		help: 'From reading the membership to the last write of a map',
		unit: 'seconds',
		labels: [],
		buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
	},
	reconcileErrors: {
		name: 'beeline_reconcile_errors_total',
		type: 'counter',
		help: 'Reconciles that failed; the state before them is kept',
		unit: 'errors',
		labels: [],
	},
	convergence: {
		name: 'beeline_convergence_seconds',
		type: 'histogram',
		help: 'From the first sign of a change to its last write in the maps',
		unit: 'seconds',
		labels: [],
		buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
	},
	invalid: {
		name: 'beeline_refused',
		type: 'gauge',
		help: 'Ports, uplinks, labels and documents in etcd that are refused (GET /v1/status says why)',
		unit: 'entries',
		labels: [],
	},
	heldPackets: {
		name: 'beeline_held_packets',
		type: 'gauge',
		help: 'Packets that wait on this node for the first task of their service (beeline.scale-from-zero)',
		unit: 'packets',
		labels: [],
	},
	heldEnded: {
		name: 'beeline_held_packets_total',
		type: 'counter',
		help: 'Packets that were held, by what became of them: released (put back when a task was there), expired, crowded (no room)',
		unit: 'packets',
		labels: ['outcome'],
	},
	dnsQueries: {
		name: 'beeline_dns_queries_total',
		type: 'counter',
		help: 'Name queries of endpoints by what became of them: answer, nodata (ours, without such an address), forwarded (to the servers of the node), servfail, refused, malformed, unsupported, dropped',
		unit: 'queries',
		labels: ['result'],
	},
	dnsTruncated: {
		name: 'beeline_dns_truncated_total',
		type: 'counter',
		help: 'Answers that were cut because the client takes no more over UDP; it asks again over TCP',
		unit: 'queries',
		labels: [],
	},
	dnsUpstreamFailures: {
		name: 'beeline_dns_upstream_failures_total',
		type: 'counter',
		help: 'Servers of the node that gave no answer to a forwarded query: timeout, unreachable, failure (SERVFAIL or REFUSED), no_server (resolv.conf names none), busy (too many queries under way)',
		unit: 'queries',
		labels: ['reason'],
	},
	dnsForwarding: {
		name: 'beeline_dns_forwarding',
		type: 'gauge',
		help: 'Name queries that wait for a server of the node now',
		unit: 'queries',
		labels: [],
	},
	dnsNamespaces: {
		name: 'beeline_dns_namespaces',
		type: 'gauge',
		help: "Namespaces of endpoints by state: serving, beside Docker's resolver, or held by another server on port 53",
		unit: 'entries',
		labels: ['state'],
	},
	encryptionPeers: {
		name: 'beeline_encryption_peers',
		type: 'gauge',
		help: 'Nodes of encrypted networks by whether this node has keys with them: ready, or missing (wanted by endpoints here)',
		unit: 'entries',
		labels: ['state'],
	},
	encryptionKeyAge: {
		name: 'beeline_encryption_key_age_seconds',
		type: 'gauge',
		help: 'Age of the oldest keys in use; above datapath.keyInterval a node does not renew them',
		unit: 'seconds',
		labels: [],
	},
	encryptionSessions: {
		name: 'beeline_encryption_sessions_total',
		type: 'counter',
		help: 'Keys agreed on with other nodes, renewals included',
		unit: 'none',
		labels: [],
	},
	encryptionErrors: {
		name: 'beeline_encryption_errors_total',
		type: 'counter',
		help: 'Keys that could not be made or given to the kernel',
		unit: 'errors',
		labels: [],
	},
	encryptionRefused: {
		name: 'beeline_encryption_refused_messages_total',
		type: 'counter',
		help: 'Messages about keys from who has another secret or shares no encrypted network',
		unit: 'messages',
		labels: [],
	},
	encryptionDropped: {
		name: 'beeline_encryption_dropped_packets_total',
		type: 'counter',
		help: 'Packets that IPsec of this node dropped: no_keys, or the kernel’s reasons (/proc/net/xfrm_stat, which counts other IPsec too)',
		unit: 'packets',
		labels: ['direction', 'reason'],
	},
	programRun: {
		name: 'beeline_program_run_seconds_total',
		type: 'counter',
		help: 'Time that a program ran, while kernel.bpf_stats_enabled is 1',
		unit: 'seconds',
		labels: ['program'],
	},
	buildInfo: {
		name: 'beeline_build_info',
		type: 'gauge',
		help: 'Always 1',
		unit: 'none',
		labels: ['version', 'abi', 'node_version'],
	},
} as const satisfies Readonly<Record<string, MetricSpec>>;

export type MetricKey = keyof typeof METRICS;
