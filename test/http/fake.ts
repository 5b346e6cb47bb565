/** An agent in memory that answers each resource with other values than the document's examples. */
import { type AgentApi, AgentError, type AgentEvent } from '../../src/agent/api.js';
import type {
	BackendView,
	ConfigView,
	EndpointView,
	NetworkView,
	NodeView,
	ServiceView,
	StatusView,
} from '../../src/http/schemas.js';

export interface FakeAgent extends AgentApi {
	ready: boolean;
	emit(event: AgentEvent): void;
	readonly listeners: Set<(event: AgentEvent) => void>;
}

const ENDPOINT: EndpointView = {
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
	aliases: [],
	service: null,
};

export function fakeAgent(): FakeAgent {
	const options: ServiceView['options'] = {
		returnPath: 'auto',
		affinity: 'none',
		tracking: 'auto',
		trackingWindow: '2h15m',
		udpWindow: '60s',
		tableSize: 'auto',
		drainTimeout: '60s',
		addresses: [],
		allow: ['10.0.0.0/8'],
		deny: [],
		prefer: 'none',
		enable: true,
	};
	let services: ServiceView[] = [
		{
			name: 'web',
			ports: [
				{ published: 8080, target: 80, protocol: 'tcp', state: 'serving', reason: null },
				{ published: 22, target: 22, protocol: 'tcp', state: 'refused', reason: 'port 22 is held by sshd' },
			],
			options,
			backends: { total: 2, active: 2, draining: 0, down: 0 },
			slotsInTransition: 12,
			scaleFromZero: null,
			vips: [],
			revision: 41,
		},
	];
	const backends: BackendView[] = [
		{
			id: 'web~node1~process~80~tcp',
			service: 'web',
			node: 'node1',
			addresses: [],
			target: 80,
			protocol: 'tcp',
			weight: 1,
			state: 'active',
			local: true,
			delivery: 'process',
			interface: null,
			onLink: [],
			problem: null,
		},
		{
			id: 'web~node2~172.18.0.2~80~tcp',
			service: 'web',
			node: 'node2',
			addresses: ['172.18.0.2', 'fd00::2'],
			target: 80,
			protocol: 'tcp',
			weight: 2,
			state: 'active',
			local: false,
			delivery: null,
			interface: null,
			onLink: [],
			problem: null,
		},
	];
	const nodes: NodeView[] = [
		{
			name: 'node1',
			address: '192.168.78.1',
			self: true,
			state: 'active',
			reachable: null,
			nextHop: null,
			dsr: false,
			agentPresent: null,
			rttMs: null,
			digest: null,
			digestDiffers: false,
			backends: 1,
			revision: 40,
		},
		{
			name: 'node2',
			address: '192.168.78.2',
			self: false,
			state: 'active',
			reachable: true,
			nextHop: { device: 'eth0', gateway: '192.168.78.254', mac: '52:54:00:00:00:02', mtu: 1500 },
			dsr: true,
			agentPresent: true,
			rttMs: 0.1,
			digest: 'ffffffffffffffff',
			digestDiffers: true,
			backends: 1,
			revision: 40,
		},
	];
	let config: ConfigView = {
		node: { name: 'node1', address: '192.168.78.1' },
		uplinks: ['eth0'],
		membership: { source: 'file', file: 'mesh.yaml', endpoints: null, prefix: null },
		http: { listen: ['127.0.0.1:7980'], socket: '/run/beeline/beeline.sock', tokenFile: null },
		pinRoot: '/sys/fs/bpf/beeline',
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
		log: { level: 'info' },
		trace: false,
	};
	const networks: NetworkView[] = [
		{
			Name: 'red',
			Id: 'red',
			Scope: 'global',
			Driver: 'beeline',
			EnableIPv6: false,
			IPAM: { Driver: 'default', Config: [{ Subnet: '10.44.0.0/24', Gateway: '10.44.0.1' }] },
			Internal: false,
			Attachable: true,
			Ingress: false,
			Containers: {},
			Options: { 'com.docker.network.driver.overlay.vxlanid_list': '5001' },
			Labels: {},
		},
	];
	const endpoints: EndpointView[] = [ENDPOINT];
	const listeners = new Set<(event: AgentEvent) => void>();
	const setState = (id: string, state: BackendView['state']) => {
		const i = backends.findIndex((b) => b.id === id);
		backends[i] = { ...backends[i]!, state };
	};
	const self: FakeAgent = {
		ready: true,
		listeners,
		emit: (event) => {
			for (const l of listeners) l(event);
		},
		status(): StatusView {
			return {
				version: '0.1.0',
				node: 'node1',
				address: '192.168.78.1',
				state: 'running',
				ready: self.ready,
				since: '2026-01-02T03:04:05.000Z',
				pinRoot: '/sys/fs/bpf/beeline',
				vni: 12509184,
				vxlanPort: 4789,
				membership: { source: 'file', place: 'mesh.yaml', readAt: null, error: 'mesh.yaml:3: unknown key' },
				reconcile: { runs: 1, errors: 1, lastAt: null, lastMs: null, lastError: 'no uplink' },
				uplinks: [
					{
						name: 'eth0',
						ifindex: 2,
						device: 'br0',
						mac: '52:54:00:00:00:01',
						mtu: 1500,
						addresses: ['192.168.78.1'],
						xdp: 'native',
					},
				],
				totals: { nodes: 2, services: 1, backends: 2, backendsActive: 2, slotsInTransition: 12 },
				digest: '00ff',
				differing: ['node2'],
				refused: [{ what: 'tcp/22', service: 'web', reason: 'port 22 is held by sshd' }],
				encryption: {
					interface: 'bl-esp',
					ready: 1,
					missing: ['node3'],
					stale: [],
					oldestKeysAt: '2026-01-02T03:04:07.000Z',
					keyInterval: '12h',
				},
				warnings: ['eth0: rp_filter is strict'],
			};
		},
		nodes: () => nodes,
		services: () => services,
		backends: () => backends,
		flows: (limit) => ({
			flows: [
				{
					protocol: 'udp' as const,
					client: 'fd00:78::64',
					clientPort: 4000,
					frontend: 'fd00:78::1',
					frontendPort: 53,
					service: null,
					backend: null,
					ingress: null,
					state: 'new' as const,
					idleMs: 1,
				},
			].slice(0, limit),
			limited: false,
		}),
		entries: () => ({
			maps: [{ map: 'vteps', entries: 1, maxEntries: 4096, rows: ['192.168.78.2 → 1'], limited: false }],
		}),
		config: () => config,
		async drainBackend(id) {
			setState(id, 'draining');
		},
		async undrainBackend(id) {
			setState(id, 'active');
		},
		async drainNode(name) {
			nodes[nodes.findIndex((n) => n.name === name)] = { ...nodes.find((n) => n.name === name)!, state: 'drained' };
		},
		async undrainNode(name) {
			nodes[nodes.findIndex((n) => n.name === name)] = { ...nodes.find((n) => n.name === name)!, state: 'active' };
		},
		async patchService(name, patch) {
			services = services.map((s) => (s.name === name ? { ...s, options: { ...s.options, ...patch.options } } : s));
		},
		async createService(body) {
			if (body.name === 'elsewhere') {
				throw new AgentError(409, 'REFUSED', 'the file names several nodes: write the service into mesh.yaml on each');
			}
			services = [
				...services,
				{
					name: body.name,
					ports: body.ports.map((p) => ({ ...p, state: 'empty' as const, reason: null })),
					options: { ...options, ...body.options },
					backends: { total: 0, active: 0, draining: 0, down: 0 },
					slotsInTransition: 0,
					scaleFromZero: null,
					vips: [],
					revision: null,
				},
			];
		},
		async removeService(name) {
			services = services.filter((s) => s.name !== name);
		},
		async addNode(node) {
			nodes.push({ ...nodes[1]!, ...node, backends: 0 });
		},
		async removeNode(name) {
			nodes.splice(
				nodes.findIndex((n) => n.name === name),
				1,
			);
		},
		networks: () => networks,
		async createNetwork(body) {
			networks.push({ ...networks[0]!, Name: body.name, Id: body.name });
		},
		async removeNetwork(name) {
			networks.splice(
				networks.findIndex((n) => n.Name === name),
				1,
			);
		},
		endpoints: () => endpoints,
		async attachEndpoint(request) {
			if (request.network !== 'red') throw new AgentError(404, 'NOT_FOUND', `network ${request.network} not found`);
			const e = { ...ENDPOINT, id: 'red-10.44.0.3', address: '10.44.0.3', netns: request.netns ?? '' };
			endpoints.push(e);
			return e;
		},
		async detachEndpoint(id) {
			endpoints.splice(
				endpoints.findIndex((e) => e.id === id),
				1,
			);
		},
		async patchConfig(patch) {
			config = { ...config, ...patch, datapath: { ...config.datapath, ...patch.datapath } };
		},
		subscribe(_want, listener) {
			listeners.add(listener);
			return () => listeners.delete(listener);
		},
	};
	return self;
}
