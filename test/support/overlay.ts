/** Overlay networks over the nodes of a Topology: endpoints in namespaces, and the datapath without agents between them. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SEGMENTED_INSIDE } from '../../src/agent/veth.js';
import { macOfAddress } from '../../src/mesh/subnets.js';
import { mountBpffs, type Running, type Topology } from './netns.js';
import type { NodeRows } from './overlay-node.js';
import { waitFor } from './wait.js';

/** An endpoint: a namespace named after it. */
export interface EndpointSpec {
	readonly name: string;
	readonly node: string;
	readonly vni: number;
	/** Host part of its addresses in the network's subnets, 10.7.0.0/24 and fd07::/64. */
	readonly host: number;
}

export const address4 = (host: number): string => `10.7.0.${host}`;
export const address6 = (host: number): string => `fd07::${host.toString(16)}`;
export const endpointMac = (host: number): string => macOfAddress(address4(host));

export interface OverlaySpec {
	readonly endpoints: readonly EndpointSpec[];
	/** Nodes of the mesh that run no datapath of ours: their VTEPs are known, their endpoints are `elsewhere`. */
	readonly strangers?: readonly string[];
	/** Endpoints of such nodes. */
	readonly elsewhere?: readonly EndpointSpec[];
	/** VNIs; their flags. */
	readonly networks: Readonly<Record<number, number>>;
	/** Of the endpoints; default: the uplinks' less 50. */
	readonly mtu?: number;
	/** Only each node's slice (a /26) is known of other nodes' endpoints, not their addresses. */
	readonly slices?: Readonly<Record<string, string>>;
}

export type Counters = Readonly<Record<string, readonly [number, number]>>;

/** Nodes run child processes that hold the datapath; close() ends them. */
export class Overlay {
	readonly #children = new Map<string, Running>();

	private constructor(
		readonly net: Topology,
		readonly spec: OverlaySpec,
	) {}

	static async start(net: Topology, spec: OverlaySpec): Promise<Overlay> {
		const overlay = new Overlay(net, spec);
		mountBpffs();
		for (const e of spec.endpoints) overlay.#plug(e);
		await Promise.all(net.nodes.map((node) => overlay.#launch(node)));
		return overlay;
	}

	/** The veth of an endpoint: `e-NAME` on the node, eth0 inside. */
	#plug({ name, node, host }: EndpointSpec): void {
		const { net } = this;
		const mtu = this.spec.mtu ?? (net.options.mtu ?? 1500) - 50;
		net.addNamespace(name);
		net.veth(node, `e-${name}`, name, 'eth0', mtu);
		net.ip(name, [
			`link set eth0 address ${endpointMac(host)} up`,
			`addr add ${address4(host)}/24 dev eth0`,
			`addr add ${address6(host)}/64 dev eth0 nodad`,
		]);
		net.ip(node, [`link set e-${name} up`]);
		for (const feature of SEGMENTED_INSIDE)
			net.exec(name, ['ethtool', '-K', 'eth0', feature, 'off'], { mayFail: true });
	}

	#ifindex(node: string, device: string): number {
		return (this.net.ipJson(node, `link show dev ${device}`) as { ifindex: number }[])[0].ifindex;
	}

	#rows(node: string): NodeRows {
		const { net, spec } = this;
		const members = [...net.nodes, ...(spec.strangers ?? [])];
		const index = (name: string): number => members.indexOf(name) + 1;
		const mtu = net.options.mtu ?? 1500;
		const ifindex = this.#ifindex(node, 'eth0');
		const mac = net.mac(node);
		const endpoints: [string, NodeRows['endpoints'][number][1]][] = [];
		const ports: [number, NodeRows['ports'][number][1]][] = [];
		for (const e of [...spec.endpoints, ...(spec.elsewhere ?? [])]) {
			const here = e.node === node;
			if (!here && spec.slices?.[e.node] !== undefined) continue;
			const at = here ? this.#ifindex(node, `e-${e.name}`) : 0;
			const row = { node: index(e.node), ifindex: at, mac: endpointMac(e.host), flags: 0 };
			endpoints.push([`${e.vni} ${address4(e.host)}`, row], [`${e.vni} ${address6(e.host)}`, row]);
			if (here)
				ports.push([at, { addr4: address4(e.host), addr6: address6(e.host), vni: e.vni, mac: endpointMac(e.host) }]);
		}
		const vnis = Object.keys(spec.networks).map(Number);
		return {
			pinRoot: net.pinRoot(node),
			uplink: { ifindex, name: 'eth0', mtu, mac },
			self: index(node),
			vtep: net.address(node).v4,
			nodes: members.map((m) => [index(m), { vtep: net.address(m).v4, ifindex, dmac: net.mac(m), smac: mac, mtu }]),
			networks: vnis.map((vni) => [vni, { flags: spec.networks[vni] }]),
			endpoints,
			slices: Object.entries(spec.slices ?? {}).flatMap(([name, slice]) =>
				vnis.flatMap((vni) => {
					const [base, bits] = slice.split('/');
					const six = `fd07::${Number(base.split('.')[3]).toString(16)}/${96 + Number(bits)}`;
					return [
						[`${vni} ${slice}`, index(name)],
						[`${vni} ${six}`, index(name)],
					] as [string, number][];
				}),
			),
			ports,
		};
	}

	async #launch(node: string): Promise<void> {
		const { net } = this;
		const file = join(net.directory, `${node}-rows.json`);
		writeFileSync(file, JSON.stringify(this.#rows(node)));
		const child = net.spawn(node, [
			process.execPath,
			'--enable-source-maps',
			fileURLToPath(new URL('overlay-node.js', import.meta.url)),
			file,
		]);
		this.#children.set(node, child);
		await waitFor(
			`the datapath on ${node}`,
			() => {
				if (child.child.exitCode !== null) throw new Error(`it ended: ${child.stderr()}`);
				return child.stdout().includes('ready');
			},
			180_000,
		);
	}

	/** Packets and bytes by `program verdict`. */
	async counters(node: string): Promise<Counters> {
		const child = this.#children.get(node);
		if (!child) throw new Error(`no datapath on ${node}`);
		const before = child.stdout().length;
		child.child.kill('SIGUSR1');
		const line = await waitFor(`the counters of ${node}`, () => {
			const text = child.stdout().slice(before);
			return text.endsWith('\n') && text.trim();
		});
		return JSON.parse(line) as Counters;
	}

	/** Packets that a node gave the verdict while `work` ran. */
	async counted(node: string, verdict: string, work: () => void | Promise<void>): Promise<number> {
		const packets = async (): Promise<number> => (await this.counters(node))[verdict]?.[0] ?? 0;
		const before = await packets();
		await work();
		return (await packets()) - before;
	}

	/** A plain Linux vxlan device `vx0` in a namespace that is no node of ours, with its neighbours told by hand. */
	kernelNode(name: string, self: EndpointSpec): void {
		const { net, spec } = this;
		const others = spec.endpoints.filter((e) => e.vni === self.vni);
		net.ip(name, [
			`link add vx0 address ${endpointMac(self.host)} type vxlan id ${self.vni} local ${net.address(name).v4} dstport 4789 dev eth0 nolearning`,
			`link set vx0 mtu ${(net.options.mtu ?? 1500) - 50} up`,
			`addr add ${address4(self.host)}/24 dev vx0`,
			`addr add ${address6(self.host)}/64 dev vx0 nodad`,
			...others.flatMap((e) => [
				`neigh add ${address4(e.host)} lladdr ${endpointMac(e.host)} dev vx0 nud permanent`,
				`neigh add ${address6(e.host)} lladdr ${endpointMac(e.host)} dev vx0 nud permanent`,
			]),
		]);
		for (const e of others)
			net.exec(name, ['bridge', 'fdb', 'append', endpointMac(e.host), 'dev', 'vx0', 'dst', net.address(e.node).v4]);
	}

	/** Takes the programs off the uplinks, or puts them back: whichever they are not. */
	async toggle(): Promise<void> {
		await Promise.all(
			[...this.#children].map(async ([node, child]) => {
				const before = child.stdout().length;
				child.child.kill('SIGUSR2');
				await waitFor(`the uplink of ${node} to change`, () => /tached/.test(child.stdout().slice(before)), 10_000, 5);
			}),
		);
	}

	/** Takes the datapath down. Namespaces and veths stay. */
	async close(): Promise<void> {
		for (const child of this.#children.values()) await child.stop();
		this.#children.clear();
	}
}
