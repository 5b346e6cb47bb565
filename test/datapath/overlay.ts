/**
 * Rows of overlay networks for the datapath's tests. Nodes and interfaces are world.ts'; addresses 10.7.0.N and fd07::N:
 *
 *	red 5001    a .2 (ov0)   b .3 (ov1)   vip .10     far .66 (on node 2, known by itself, MAC of its own)
 *	            slices: node 1 .0/26, node 2 .64/26, node 3 .128/26 (other uplink), node 5 .192/27 (narrow), node 6 .224/27
 *	blue 5002   c .2 (ov2), the same address and MAC as a; slice: node 2 .128/25
 *	secret 5003 e .2 (ov3)   f .3 (ov4)   far .66 (on node 2); encrypted
 */
import { NetworkFlag, OverlayFlag } from '../../src/loader/layout.gen.js';
import { OV, SELF, type World } from './world.js';

export const VNIS = { red: 5001, blue: 5002, secret: 5003 } as const;
export type NetworkName = keyof typeof VNIS;

interface Place {
	readonly network: NetworkName;
	readonly n: number;
	readonly mac: string;
	/** Host end of its veth, where it is on this node. */
	readonly ifindex: number;
}
const place = (network: NetworkName, n: number, ifindex: number, mac?: string): Place => ({
	network,
	n,
	ifindex,
	mac: mac ?? `02:42:0a:07:00:${n.toString(16).padStart(2, '0')}`,
});

/** Endpoints of this node. */
export const HERE = {
	a: place('red', 2, OV),
	b: place('red', 3, OV + 1),
	c: place('blue', 2, OV + 2),
	e: place('secret', 2, OV + 3),
	f: place('secret', 3, OV + 4),
} as const;
export type Name = keyof typeof HERE;

export const FAR = 66;
export const FAR_MAC = '02:99:00:00:00:66';
export const VIP = 10;

/** Address number `n` of every network. */
export const at = (n: number, six = false): string => (six ? `fd07::${n.toString(16)}` : `10.7.0.${n}`);

export function fillOverlay(w: World): void {
	const { store } = w;
	store.networks.setMany([
		[VNIS.red, { flags: 0 }],
		[VNIS.blue, { flags: 0 }],
		[VNIS.secret, { flags: NetworkFlag.NETWORK_ENCRYPTED }],
	]);
	for (const e of Object.values(HERE)) {
		const vni = VNIS[e.network];
		for (const six of [false, true])
			store.overlayEndpoints.setMany([
				[`${vni} ${at(e.n, six)}`, { node: SELF, ifindex: e.ifindex, mac: e.mac, flags: 0 }],
			]);
		store.overlayPorts.setMany([[e.ifindex, { addr4: at(e.n), addr6: at(e.n, true), vni, mac: e.mac }]]);
	}
	for (const six of [false, true]) {
		store.overlayEndpoints.setMany([
			[`${VNIS.red} ${at(FAR, six)}`, { node: 2, ifindex: 0, mac: FAR_MAC, flags: 0 }],
			[
				`${VNIS.red} ${at(VIP, six)}`,
				{ node: 2, ifindex: 0, mac: '02:42:0a:07:00:0a', flags: OverlayFlag.OVERLAY_VIP },
			],
			[`${VNIS.secret} ${at(FAR, six)}`, { node: 2, ifindex: 0, mac: FAR_MAC, flags: 0 }],
		]);
		const slice = (vni: number, n: number, bits: number): string => `${vni} ${at(n, six)}/${six ? 96 + bits : bits}`;
		store.overlaySlices.setMany([
			[slice(VNIS.red, 0, 26), SELF],
			[slice(VNIS.red, 64, 26), 2],
			[slice(VNIS.red, 128, 26), 3],
			[slice(VNIS.red, 192, 27), 5],
			[slice(VNIS.red, 224, 27), 6],
			[slice(VNIS.blue, 128, 25), 2],
		]);
	}
}
