/**
 * Every resource of the HTTP interface: its shape, its documentation and one example. The agent's views (src/agent/api.ts)
 * are typed from here, so that an answer that does not fit the document does not compile.
 */
import { z } from '@hono/zod-openapi';

const PORT = 'expected a port from 1 to 65535';
const port = z.number(PORT).int(PORT).min(1, PORT).max(65535, PORT);
const protocol = z.enum(['tcp', 'udp']);
const instant = z.string().describe('RFC 3339, UTC');
const duration = z
	.string('expected a duration such as 60s or 2h15m')
	.regex(/^(\d+(ms|s|m|h|d))+$/, 'expected a duration such as 60s or 2h15m')
	.describe('Go-style duration: 60s, 2h15m');
const ipOrPrefix = z.string().min(2).max(49);

export const Problem = z
	.object({
		type: z.string().describe('about:blank, or a name of this document'),
		title: z.string(),
		status: z.number().int(),
		detail: z.string().describe('What happened, why, and what to do'),
		instance: z.string().optional().describe('Path of the request'),
		code: z.string().describe('Stable name of the error'),
		field: z.string().optional().describe('Path of the value that was refused: options.returnPath, ports[0].published'),
	})
	.openapi('Problem', {
		example: {
			type: 'about:blank',
			title: 'Unprocessable Content',
			status: 422,
			detail: 'options.returnPath: expected auto, dsr or tunnel',
			instance: '/v1/services/web',
			code: 'INVALID',
			field: 'options.returnPath',
		},
	});

export const Refusal = z
	.object({
		what: z.string().describe('A published port (tcp/8080), an uplink (eth1), a label'),
		service: z.string().optional(),
		reason: z.string(),
	})
	.openapi('Refusal', {
		example: {
			what: 'tcp/22',
			service: 'web',
			reason: 'port 22 is held by another socket (sshd): publish another port',
		},
	});

export const Uplink = z
	.object({
		name: z.string(),
		ifindex: z.number().int(),
		device: z.string().describe('The device that holds the addresses: the bridge, where the uplink is its port'),
		mac: z.string(),
		mtu: z.number().int().describe('bytes, of the device that holds the addresses'),
		addresses: z.array(z.string()),
		xdp: z.enum(['native', 'generic', 'none']),
	})
	.openapi('Uplink', {
		example: {
			name: 'eth0',
			ifindex: 2,
			device: 'br0',
			mac: '52:54:00:12:34:56',
			mtu: 1500,
			addresses: ['192.168.78.1', 'fd00:78::1'],
			xdp: 'native',
		},
	});

export const Status = z
	.object({
		version: z.string(),
		node: z.string(),
		address: z.string().describe('This node’s VTEP'),
		state: z.enum(['starting', 'running', 'leaving']),
		ready: z.boolean().describe('A complete apply has happened'),
		since: instant,
		pinRoot: z.string(),
		vni: z.number().int(),
		vxlanPort: port,
		membership: z.object({
			source: z.string(),
			place: z.string().describe('Where the membership is written: a file, a socket'),
			readAt: instant.nullable().describe('When the membership that the maps follow was read'),
			error: z.string().nullable().describe('Why the last reading was refused; the state before it is kept'),
		}),
		reconcile: z.object({
			runs: z.number().int(),
			errors: z.number().int(),
			lastAt: instant.nullable(),
			lastMs: z.number().nullable(),
			lastError: z.string().nullable(),
		}),
		uplinks: z.array(Uplink),
		totals: z.object({
			nodes: z.number().int(),
			services: z.number().int(),
			backends: z.number().int(),
			backendsActive: z.number().int(),
			slotsInTransition: z.number().int(),
		}),
		digest: z.string().describe('Of the tables: nodes with the same membership have the same digest'),
		differing: z.array(z.string()).describe('Nodes whose digest differs from this one’s'),
		refused: z.array(Refusal),
		encryption: z
			.object({
				interface: z.string().describe('What encrypts: an xfrm interface'),
				ready: z.number().int().describe('Nodes that there are keys with'),
				missing: z.array(z.string()).describe('Nodes that keys are wanted with'),
				stale: z.array(z.string()).describe('Nodes whose keys should have been renewed'),
				oldestKeysAt: instant.nullable().describe('When the oldest keys in use were made'),
				keyInterval: z.string().describe('datapath.keyInterval: time between new keys'),
			})
			.nullable()
			.describe('null: no network of this node is encrypted, or it cannot, and a warning says why'),
		warnings: z.array(z.string()),
	})
	.openapi('Status', {
		example: {
			version: '0.1.0',
			node: 'node1',
			address: '192.168.78.1',
			state: 'running',
			ready: true,
			since: '2026-01-02T03:04:05.000Z',
			pinRoot: '/sys/fs/bpf/beeline',
			vni: 12509184,
			vxlanPort: 4789,
			membership: {
				source: 'file',
				place: '/etc/beeline/mesh.yaml',
				readAt: '2026-01-02T03:04:05.000Z',
				error: null,
			},
			reconcile: { runs: 3, errors: 0, lastAt: '2026-01-02T03:04:06.000Z', lastMs: 4.2, lastError: null },
			uplinks: [
				{
					name: 'eth0',
					ifindex: 2,
					device: 'eth0',
					mac: '52:54:00:12:34:56',
					mtu: 1500,
					addresses: ['192.168.78.1', 'fd00:78::1'],
					xdp: 'native' as const,
				},
			],
			totals: { nodes: 3, services: 1, backends: 5, backendsActive: 5, slotsInTransition: 0 },
			digest: '8d3f1c2ab4e59077',
			differing: [],
			refused: [],
			encryption: {
				interface: 'bl-esp',
				ready: 2,
				missing: [],
				stale: [],
				oldestKeysAt: '2026-01-02T03:04:07.000Z',
				keyInterval: '12h',
			},
			warnings: [],
		},
	});

export const Node = z
	.object({
		name: z.string(),
		address: z.string(),
		self: z.boolean(),
		state: z.enum(['active', 'drained']),
		reachable: z.boolean().nullable().describe('null: nothing is sent to it, so nothing is known'),
		nextHop: z
			.object({ device: z.string(), gateway: z.string().nullable(), mac: z.string().nullable(), mtu: z.number().int() })
			.nullable(),
		dsr: z.boolean().describe('Replies with that node’s source address are known to arrive'),
		agentPresent: z
			.boolean()
			.nullable()
			.describe('true: its datapath answers probes; false: it lives and refuses them; null: it did not say'),
		rttMs: z.number().nullable().describe('Of probes, smoothed, ms'),
		digest: z.string().nullable().describe('Of its tables, as it last said'),
		digestDiffers: z.boolean().describe('From this node’s, for more than a few seconds'),
		backends: z.number().int(),
		revision: z
			.number()
			.int()
			.nullable()
			.describe('Of its document in etcd (mod_revision); null where the source has none'),
	})
	.openapi('Node', {
		example: {
			name: 'node2',
			address: '192.168.78.2',
			self: false,
			state: 'active',
			reachable: true,
			nextHop: { device: 'eth0', gateway: null, mac: '52:54:00:12:34:57', mtu: 1500 },
			dsr: false,
			agentPresent: true,
			rttMs: 0.082,
			digest: '8d3f1c2ab4e59077',
			digestDiffers: false,
			backends: 3,
			revision: null,
		},
	});
export const NodeCreate = z
	.strictObject({
		name: z
			.string()
			.min(1)
			.max(128)
			.regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'expected letters, digits, _ . or -, beginning with a letter or digit'),
		address: z.ipv4('expected an IPv4 address'),
	})
	.openapi('NodeCreate', { example: { name: 'node4', address: '192.168.78.4' } });
export const Nodes = z.object({ nodes: z.array(Node) }).openapi('Nodes', {
	example: {
		nodes: [
			{
				name: 'node2',
				address: '192.168.78.2',
				self: false,
				state: 'active' as const,
				reachable: true,
				nextHop: { device: 'eth0', gateway: null, mac: '52:54:00:12:34:57', mtu: 1500 },
				dsr: false,
				agentPresent: true,
				rttMs: 0.082,
				digest: '8d3f1c2ab4e59077',
				digestDiffers: false,
				backends: 3,
				revision: null,
			},
		],
	},
});

export const PublishedPort = z
	.strictObject({ published: port, target: port, protocol: protocol.default('tcp') })
	.openapi('PublishedPort', { example: { published: 8080, target: 80, protocol: 'tcp' } });

const TABLE_SIZE = 'expected auto or a power of two from 1024 to 131072';
const optionFields = {
	returnPath: z.enum(['auto', 'dsr', 'tunnel']),
	affinity: z.enum(['none', 'client-ip']),
	tracking: z.enum(['auto', 'always', 'none']),
	trackingWindow: duration,
	udpWindow: duration,
	tableSize: z.union(
		[
			z.literal('auto'),
			z
				.number()
				.int(TABLE_SIZE)
				.min(1024, TABLE_SIZE)
				.max(131072, TABLE_SIZE)
				.refine((n) => (n & (n - 1)) === 0, TABLE_SIZE),
		],
		TABLE_SIZE,
	),
	drainTimeout: duration,
	addresses: z.array(ipOrPrefix),
	allow: z.array(ipOrPrefix),
	deny: z.array(ipOrPrefix),
	prefer: z.enum(['none', 'local']),
	enable: z.boolean(),
};
const optionsExample = {
	returnPath: 'auto' as const,
	affinity: 'none' as const,
	tracking: 'auto' as const,
	trackingWindow: '2h15m',
	udpWindow: '60s',
	tableSize: 'auto' as const,
	drainTimeout: '60s',
	addresses: [],
	allow: [],
	deny: [],
	prefer: 'none' as const,
	enable: true,
};
export const ServiceOptions = z.object(optionFields).openapi('ServiceOptions', { example: optionsExample });
export const ServiceOptionsPatch = z
	.strictObject({
		returnPath: optionFields.returnPath.optional(),
		affinity: optionFields.affinity.optional(),
		tracking: optionFields.tracking.optional(),
		trackingWindow: duration.optional(),
		udpWindow: duration.optional(),
		tableSize: optionFields.tableSize.optional(),
		drainTimeout: duration.optional(),
		addresses: optionFields.addresses.optional(),
		allow: optionFields.allow.optional(),
		deny: optionFields.deny.optional(),
		prefer: optionFields.prefer.optional(),
		enable: optionFields.enable.optional(),
	})
	.openapi('ServiceOptionsPatch', { example: { returnPath: 'tunnel', drainTimeout: '30s' } });

const backendPlace = {
	node: z.string().min(1),
	address: z.string().optional(),
	addresses: z.array(z.string()).max(2).optional(),
};
const BackendCreate = z.strictObject({ ...backendPlace, weight: z.number().int().min(0).max(1000).optional() });

export const ServicePatch = z
	.strictObject({
		options: ServiceOptionsPatch.optional(),
		ports: z
			.strictObject({
				add: z.array(PublishedPort).optional().describe('One that is published already takes the new target'),
				remove: z
					.array(z.strictObject({ published: port.optional(), target: port.optional(), protocol: protocol.optional() }))
					.optional()
					.describe('Those that agree with everything that is named'),
			})
			.optional(),
		backends: z
			.strictObject({
				add: z.array(BackendCreate).optional().describe('One that is there already takes the new weight'),
				remove: z.array(z.strictObject(backendPlace)).optional(),
			})
			.optional(),
		replicas: z
			.number()
			.int()
			.min(0)
			.optional()
			.describe('How many backends take new flows; the last of the list are drained. 409 where there are not so many'),
	})
	.refine((p) => Object.values(p).some((v) => v !== undefined), 'expected options, ports, backends or replicas')
	.openapi('ServicePatch', { example: { options: { returnPath: 'tunnel', drainTimeout: '30s' } } });

export const Service = z
	.object({
		name: z.string(),
		ports: z.array(
			z.object({
				published: port,
				target: port,
				protocol,
				state: z.enum(['serving', 'empty', 'refused', 'kernel']).describe('kernel: left to the kernel’s own mesh'),
				reason: z.string().nullable(),
			}),
		),
		options: ServiceOptions,
		backends: z.object({
			total: z.number().int(),
			active: z.number().int(),
			draining: z.number().int(),
			down: z.number().int(),
		}),
		slotsInTransition: z.number().int(),
		scaleFromZero: z
			.string()
			.nullable()
			.describe(
				'For how long nobody comes before its tasks are stopped (label beeline.scale-from-zero); null: they stay',
			),
		vips: z
			.array(
				z.object({
					network: z.string(),
					vni: z.number().int(),
					address: z.string(),
					tasks: z.object({
						total: z.number().int(),
						active: z.number().int(),
						draining: z.number().int(),
						down: z.number().int(),
					}),
				}),
			)
			.describe('Addresses inside overlay networks that lead tasks of the same network to this service’s'),
		revision: z
			.number()
			.int()
			.nullable()
			.describe('Of its document in etcd (mod_revision); null where the source has none'),
	})
	.openapi('Service', {
		example: {
			name: 'web',
			ports: [{ published: 8080, target: 80, protocol: 'tcp', state: 'serving', reason: null }],
			options: optionsExample,
			backends: { total: 5, active: 5, draining: 0, down: 0 },
			slotsInTransition: 0,
			scaleFromZero: null,
			vips: [
				{
					network: 'appnet',
					vni: 4097,
					address: '10.77.1.2',
					tasks: { total: 5, active: 5, draining: 0, down: 0 },
				},
			],
			revision: null,
		},
	});
export const Services = z.object({ services: z.array(Service) }).openapi('Services', {
	example: {
		services: [
			{
				name: 'web',
				ports: [{ published: 8080, target: 80, protocol: 'tcp' as const, state: 'serving' as const, reason: null }],
				options: optionsExample,
				backends: { total: 5, active: 5, draining: 0, down: 0 },
				slotsInTransition: 0,
				scaleFromZero: null,
				vips: [
					{
						network: 'appnet',
						vni: 4097,
						address: '10.77.1.2',
						tasks: { total: 5, active: 5, draining: 0, down: 0 },
					},
				],
				revision: null,
			},
		],
	},
});

export const ServiceCreate = z
	.strictObject({
		name: z
			.string()
			.min(1)
			.max(128)
			.regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'expected letters, digits, _ . or -, beginning with a letter or digit'),
		ports: z.array(PublishedPort).default([]),
		options: ServiceOptionsPatch.optional(),
		backends: z.array(BackendCreate).default([]),
		networks: z
			.array(z.strictObject({ name: z.string().min(1), vip: z.string().optional() }))
			.optional()
			.describe('Overlay networks that its tasks are on; a VIP is given out where the source can'),
		endpointMode: z.enum(['vip', 'dnsrr']).optional(),
	})
	.refine((s) => s.ports.length > 0 || (s.networks ?? []).length > 0, {
		message: 'expected at least one published port, or a network',
		path: ['ports'],
	})
	.openapi('ServiceCreate', {
		example: {
			name: 'web',
			ports: [{ published: 8080, target: 80, protocol: 'tcp' }],
			backends: [{ node: 'node1', address: '172.18.0.2' }],
		},
	});

export const Backend = z
	.object({
		id: z.string().describe('URL-safe, the same on every node'),
		service: z.string(),
		node: z.string(),
		addresses: z.array(z.string()).describe('Empty: a process on the node'),
		target: port,
		protocol,
		weight: z.number(),
		state: z.enum(['active', 'draining', 'down']),
		local: z.boolean(),
		delivery: z.enum(['peer', 'neighbour', 'process']).nullable().describe('null: not on this node'),
		interface: z.string().nullable().describe('Host end, where it is on this node'),
		onLink: z
			.array(z.string())
			.describe('Subnets that it is on-link with: clients in there are shown to it as its gateway'),
		problem: z.string().nullable().describe('Why it cannot be delivered to'),
	})
	.openapi('Backend', {
		example: {
			id: 'web~node2~172.18.0.2~80~tcp',
			service: 'web',
			node: 'node2',
			addresses: ['172.18.0.2'],
			target: 80,
			protocol: 'tcp',
			weight: 1,
			state: 'active',
			local: false,
			delivery: null,
			interface: null,
			onLink: [],
			problem: null,
		},
	});
export const Backends = z.object({ backends: z.array(Backend) }).openapi('Backends', {
	example: {
		backends: [
			{
				id: 'web~node2~172.18.0.2~80~tcp',
				service: 'web',
				node: 'node2',
				addresses: ['172.18.0.2'],
				target: 80,
				protocol: 'tcp' as const,
				weight: 1,
				state: 'active' as const,
				local: false,
				delivery: null,
				interface: null,
				onLink: [],
				problem: null,
			},
		],
	},
});

export const Flow = z
	.object({
		protocol,
		client: z.string(),
		clientPort: z.number().int(),
		frontend: z.string(),
		frontendPort: z.number().int(),
		service: z.string().nullable(),
		backend: z.string().nullable(),
		ingress: z.string().nullable().describe('The node that the client dialled'),
		state: z.enum(['new', 'replied', 'established', 'closing']),
		idleMs: z.number().int(),
	})
	.openapi('Flow', {
		example: {
			protocol: 'tcp',
			client: '192.168.78.100',
			clientPort: 51234,
			frontend: '192.168.78.1',
			frontendPort: 8080,
			service: 'web',
			backend: 'web~node2~172.18.0.2~80~tcp',
			ingress: 'node1',
			state: 'established',
			idleMs: 120,
		},
	});
export const Flows = z
	.object({
		flows: z.array(Flow).describe('Of the backends on this node, and no other'),
		limited: z.boolean().describe('More exist than were asked for'),
	})
	.openapi('Flows', {
		example: {
			flows: [
				{
					protocol: 'tcp' as const,
					client: '192.168.78.100',
					clientPort: 51234,
					frontend: '192.168.78.1',
					frontendPort: 8080,
					service: 'web',
					backend: 'web~node2~172.18.0.2~80~tcp',
					ingress: 'node1',
					state: 'established' as const,
					idleMs: 120,
				},
			],
			limited: false,
		},
	});

export const Entries = z
	.object({
		maps: z.array(
			z.object({
				map: z.string(),
				entries: z.number().int(),
				maxEntries: z.number().int(),
				rows: z.array(z.string()).describe('Rows as text: one line each'),
				limited: z.boolean().describe('Only the first rows are printed'),
			}),
		),
	})
	.openapi('Entries', {
		example: {
			maps: [{ map: 'vteps', entries: 1, maxEntries: 4096, rows: ['192.168.78.2 → 1'], limited: false }],
		},
	});

const level = z.enum(['trace', 'debug', 'info', 'warn', 'error']);
export const Config = z
	.object({
		node: z.object({ name: z.string(), address: z.string() }),
		uplinks: z.array(z.string()),
		membership: z.object({
			source: z.string(),
			file: z.string().nullable(),
			endpoints: z.array(z.string()).nullable().describe('etcd'),
			prefix: z.string().nullable().describe('etcd'),
		}),
		http: z.object({ listen: z.array(z.string()), socket: z.string(), tokenFile: z.string().nullable() }),
		datapath: z.object({
			xdp: z.enum(['auto', 'native', 'generic']),
			vxlanPort: port,
			vni: z.number().int(),
			returnPath: z.enum(['auto', 'dsr', 'tunnel']),
			staleAfter: duration,
			acceptFirewallBypass: z.boolean(),
			maxFlows: z.number().int(),
			maxTracked: z.number().int(),
			maxHalfOpen: z.number().int(),
			secretFile: z.string().nullable().describe('Encrypted networks'),
			keyPort: port,
			keyInterval: duration,
		}),
		pinRoot: z.string(),
		log: z.object({ level }),
		trace: z.boolean().describe('Verdicts are recorded although nobody listens; not kept over a restart'),
	})
	.openapi('Config', {
		example: {
			node: { name: 'node1', address: '192.168.78.1' },
			uplinks: ['eth0'],
			membership: { source: 'file', file: '/etc/beeline/mesh.yaml', endpoints: null, prefix: null },
			http: { listen: ['127.0.0.1:7980'], socket: '/run/beeline/beeline.sock', tokenFile: '/etc/beeline/token' },
			datapath: {
				xdp: 'auto',
				vxlanPort: 4789,
				vni: 12509184,
				returnPath: 'auto',
				staleAfter: '60s',
				acceptFirewallBypass: false,
				maxFlows: 524288,
				maxTracked: 262144,
				maxHalfOpen: 65536,
				secretFile: null,
				keyPort: 7982,
				keyInterval: '12h',
			},
			pinRoot: '/sys/fs/bpf/beeline',
			log: { level: 'info' },
			trace: false,
		},
	});
export const ConfigPatch = z
	.strictObject({
		datapath: z
			.strictObject({
				returnPath: z.enum(['auto', 'dsr', 'tunnel']).optional(),
				staleAfter: duration.optional(),
			})
			.optional(),
		log: z.strictObject({ level }).optional(),
		trace: z.boolean().optional(),
	})
	.describe('What can be changed while the agent runs; the rest is read at start')
	.openapi('ConfigPatch', { example: { log: { level: 'debug' }, datapath: { staleAfter: '30s' } } });

export const VerdictEvent = z
	.object({
		type: z.literal('verdict'),
		at: instant,
		program: z.string(),
		verdict: z.string(),
		protocol: z
			.string()
			.nullable()
			.describe(
				'With source and destination null: the program did not read the packet (marked by uplink_xdp, not ours at a glance, or no IP)',
			),
		source: z.string().nullable(),
		destination: z.string().nullable(),
		interface: z.string(),
		bytes: z.number().int(),
		service: z.string().nullable(),
		backend: z.string().nullable(),
	})
	.openapi('VerdictEvent', {
		example: {
			type: 'verdict',
			at: '2026-01-02T03:04:05.000Z',
			program: 'uplink_xdp',
			verdict: 'encap_node',
			protocol: 'tcp',
			source: '192.168.78.100:51234',
			destination: '192.168.78.1:8080',
			interface: 'eth0',
			bytes: 74,
			service: 'web',
			backend: 'web~node2~172.18.0.2~80~tcp',
		},
	});
export const ReconcileEvent = z
	.object({
		type: z.literal('reconcile'),
		at: instant,
		cause: z.string(),
		ms: z.number(),
		changes: z.number().int(),
		error: z.string().nullable(),
	})
	.openapi('ReconcileEvent', {
		example: {
			type: 'reconcile',
			at: '2026-01-02T03:04:05.000Z',
			cause: 'mesh.yaml changed',
			ms: 4.2,
			changes: 3,
			error: null,
		},
	});

const exampleNetwork = {
	Name: 'red',
	Id: 'red',
	Scope: 'global',
	Driver: 'beeline',
	EnableIPv6: false,
	IPAM: { Driver: 'default', Config: [{ Subnet: '10.44.0.0/24', Gateway: '10.44.0.1' }] },
	Internal: false,
	Attachable: true,
	Ingress: false,
	Containers: {
		'red-10.44.0.2': {
			Name: 'web1',
			EndpointID: 'red-10.44.0.2',
			MacAddress: '02:42:0a:2c:00:02',
			IPv4Address: '10.44.0.2/24',
			IPv6Address: '',
		},
	},
	Options: { 'com.docker.network.driver.overlay.vxlanid_list': '5001' },
	Labels: {},
};
export const Network = z
	.object({
		Name: z.string(),
		Id: z.string(),
		Scope: z.string(),
		Driver: z.string().describe('beeline; overlay: Docker’s own, listed and not touched'),
		EnableIPv6: z.boolean(),
		IPAM: z.object({
			Driver: z.string(),
			Config: z.array(z.object({ Subnet: z.string(), Gateway: z.string().optional(), IPRange: z.string().optional() })),
		}),
		Internal: z.boolean(),
		Attachable: z.boolean(),
		Ingress: z.boolean(),
		Containers: z
			.record(
				z.string(),
				z.object({
					Name: z.string(),
					EndpointID: z.string(),
					MacAddress: z.string(),
					IPv4Address: z.string(),
					IPv6Address: z.string(),
				}),
			)
			.describe('Endpoints that this node knows, by id'),
		Options: z.record(z.string(), z.string()),
		Labels: z.record(z.string(), z.string()),
	})
	.openapi('Network', {
		description: 'An overlay network in Docker’s shape',
		example: exampleNetwork,
	});
export const Networks = z
	.object({ networks: z.array(Network) })
	.openapi('Networks', { example: { networks: [exampleNetwork] } });

export const NetworkCreate = z
	.strictObject({
		name: z
			.string()
			.min(1)
			.max(128)
			.regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'expected letters, digits, _ . or -, beginning with a letter or digit'),
		subnet: z.string().optional().describe('IPv4; default: the first free /24 of 10.0.0.0/8'),
		subnet6: z.string().optional(),
		ipv6: z.boolean().optional().describe('With subnet6 absent: a unique local prefix of the network’s own'),
		gateway: z.string().optional(),
		ipRange: z.string().optional(),
		vni: z.number().int().min(1).max(16777215).optional().describe('Default: the first free one from 4096 upward'),
		attachable: z.boolean().optional(),
		ingress: z.boolean().optional(),
		labels: z.record(z.string(), z.string()).optional(),
		options: z
			.strictObject({
				mtu: z.number().int().min(576).max(65535).optional().describe('Of the underlay'),
				internal: z.boolean().optional(),
				encrypted: z.boolean().optional(),
			})
			.optional(),
	})
	.openapi('NetworkCreate', { example: { name: 'red', subnet: '10.44.0.0/24', attachable: true } });

const exampleEndpoint = {
	id: 'red-10.44.0.2',
	network: 'red',
	node: 'node1',
	address: '10.44.0.2',
	address6: null,
	mac: '02:42:0a:2c:00:02',
	mtu: 1450,
	interface: 'eth0',
	netns: '/run/netns/web1',
	gatewayAddress: '172.30.0.2',
	name: 'web1',
	aliases: ['www'],
	service: 'web',
};
export const Endpoint = z
	.object({
		id: z.string().describe('URL-safe, unique in the cluster'),
		network: z.string(),
		node: z.string(),
		address: z.string(),
		address6: z.string().nullable(),
		mac: z.string(),
		mtu: z.number().int().describe('bytes'),
		interface: z.string().describe('Inside its namespace'),
		netns: z.string(),
		gatewayAddress: z.string().nullable().describe('On the gateway’s bridge; null on internal networks'),
		name: z.string().nullable(),
		aliases: z.array(z.string()),
		service: z.string().nullable(),
	})
	.openapi('Endpoint', {
		example: exampleEndpoint,
	});
export const Endpoints = z
	.object({ endpoints: z.array(Endpoint) })
	.openapi('Endpoints', { example: { endpoints: [exampleEndpoint] } });

export const EndpointAttach = z
	.strictObject({
		network: z.string().min(1),
		netns: z.string().min(1).optional().describe('Path of a network namespace'),
		pid: z.number().int().min(1).optional(),
		container: z.string().min(1).optional().describe('Of this node’s engine'),
		service: z.string().min(1).optional(),
		name: z.string().min(1).max(128).optional(),
		address: z.string().optional(),
		aliases: z.array(z.string().min(1).max(128)).max(32).optional(),
	})
	.refine((e) => [e.netns, e.pid, e.container].filter((x) => x !== undefined).length === 1, {
		message: 'expected exactly one of netns, pid and container',
		path: ['netns'],
	})
	.openapi('EndpointAttach', { example: { network: 'red', netns: '/run/netns/web1', name: 'web1' } });

export type NetworkCreateBody = z.infer<typeof NetworkCreate>;
export type NetworkView = z.infer<typeof Network>;
export type EndpointView = z.infer<typeof Endpoint>;
export type EndpointAttachBody = z.infer<typeof EndpointAttach>;
export type ProblemBody = z.infer<typeof Problem>;
export type RefusalView = z.infer<typeof Refusal>;
export type UplinkView = z.infer<typeof Uplink>;
export type StatusView = z.infer<typeof Status>;
export type NodeView = z.infer<typeof Node>;
export type NodeCreateBody = z.infer<typeof NodeCreate>;
export type ServiceView = z.infer<typeof Service>;
export type BackendView = z.infer<typeof Backend>;
export type FlowView = z.infer<typeof Flow>;
export type FlowsView = z.infer<typeof Flows>;
export type EntriesView = z.infer<typeof Entries>;
export type ConfigView = z.infer<typeof Config>;
export type ConfigPatchBody = z.infer<typeof ConfigPatch>;
export type ServiceOptionsView = z.infer<typeof ServiceOptions>;
export type ServiceOptionsPatchBody = z.infer<typeof ServiceOptionsPatch>;
export type ServicePatchBody = z.infer<typeof ServicePatch>;
export type ServiceCreateBody = z.infer<typeof ServiceCreate>;
export type VerdictEventBody = z.infer<typeof VerdictEvent>;
export type ReconcileEventBody = z.infer<typeof ReconcileEvent>;
