import { Overlay } from '../../src/agent/overlay.js';
import { equalSlices } from '../../src/mesh/subnets.js';
import type { NetworkSpec } from '../../src/mesh/types.js';
import { createPluginApp } from '../../src/plugin/app.js';
import { createDriver, type Driver, type PlugRequest } from '../../src/plugin/driver.js';
import { memoryPluginStore, type PluginStore } from '../../src/plugin/state.js';

export const NODES = ['node1', 'node2'];

export function network(name: string, subnet: string, vni: number, more: Partial<NetworkSpec> = {}): NetworkSpec {
	return {
		name,
		driver: 'beeline',
		subnet,
		vni,
		attachable: true,
		endpoints: [],
		...more,
		options: { slices: equalSlices(subnet, NODES), ...more.options },
	};
}

export const NETWORKS = [
	network('red', '10.44.0.0/24', 5001, { subnet6: 'fd00:44::/64' }),
	network('blue', '10.44.0.0/24', 5002),
	network('shut', '10.45.0.0/24', 5003, { options: { internal: true } }),
	network('closed', '10.46.0.0/24', 5004, { attachable: false }),
	network('green', '10.47.0.0/24', 5005),
	network('sealed', '10.48.0.0/24', 5007, { options: { encrypted: true } }),
	network('tiny', '10.49.0.0/29', 5006),
	network('vault', '10.50.0.0/24', 5008, { options: { encrypted: true } }),
];

export interface Engine {
	readonly driver: Driver;
	readonly store: PluginStore;
	/** Docker's ids of endpoints that have a veth. */
	readonly plugged: Map<string, PlugRequest>;
	/** Those whose inner end is on the node. */
	readonly idle: Set<string>;
	/** ms. */
	clock: number;
	/** What an engine gets for what it asks. */
	call(path: string, request?: unknown): Promise<Record<string, unknown>>;
}

/** A node's plugin whose agent makes no veth; addresses are chosen as the agent chooses them. */
export function engine(self: string, networks: readonly NetworkSpec[] = NETWORKS, store = memoryPluginStore()): Engine {
	const plugged = new Map<string, PlugRequest>();
	const overlay = new Overlay({
		run: () => Promise.reject(new Error('no command is run')),
		gateway: {} as never,
		state: () => ({ endpoints: [], legs: [] }),
		save: () => undefined,
		reserved: (name) => driver.reserved(name),
	});
	const driver: Driver = createDriver({
		store,
		now: () => e.clock,
		host: {
			networks: () => networks,
			place: 'mesh.yaml',
			refusal: (n) => (n.attachable ? undefined : `network ${n.name} is not manually attachable`),
			cannotCarry: async (n) =>
				n.name === 'sealed' ? `network ${n.name} is encrypted, and no secret is set` : undefined,
			pick: async (n, address) => {
				const picked = overlay.pick({ network: n, self, reserved: new Set(), ...(address ? { address } : {}) });
				return { address: picked, holder: `${n.name}-${picked}` };
			},
			release: async () => undefined,
			plug: async (r) => {
				plugged.set(r.docker.endpoint, r);
				return `blp-${r.docker.endpoint}`.slice(0, 15);
			},
			unplug: async (id) => void plugged.delete(id),
			plugged: () => new Set(plugged.keys()),
			idle: async () => [...e.idle],
		},
	});
	const app = createPluginApp({ driver, log: () => undefined });
	const e: Engine = {
		driver,
		store,
		plugged,
		idle: new Set(),
		clock: 0,
		async call(path, request) {
			const answer = await app.request(`/${path}`, {
				method: 'POST',
				body: request === undefined ? null : JSON.stringify(request),
			});
			return (await answer.json()) as Record<string, unknown>;
		},
	};
	return e;
}
