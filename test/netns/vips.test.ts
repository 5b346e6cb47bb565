/*
 * Service VIPs at connect time, with real sockets and the real program, without Docker and without an agent: what the
 * membership says goes through plan, entries and reconcile into the pinned maps of `socket`.
 *
 *	n1t1 client in red     n1t2 n1t3 n1t4 tasks of web, in red     n1t5 in blue     n1t6 in no network that is known
 *	  all behind gwbr0 of n1 (172.18.0.0/16): what keeps blue from red here is the program alone
 *
 *	web: VIPs 172.18.7.7 and fd00:18::77 in red (VNI 4097), which nobody has
 */

import { openNetns } from 'libbpf-ts';
import * as assert from 'uvu/assert';
import { cgroupRoot } from '../../src/agent/agent.js';
import { type Datapath, openDatapath } from '../../src/loader/datapath.js';
import { VERDICTS } from '../../src/loader/layout.gen.js';
import type { BackendState, Membership, Task } from '../../src/mesh/types.js';
import { createVipIds, type VipEntries, vipEntries } from '../../src/mesh/vip-entries.js';
import { createVipReconciler, type VipReconciler } from '../../src/mesh/vip-reconcile.js';
import { type MeshVips, planVips } from '../../src/mesh/vips.js';
import { OPTIONS } from '../mesh/support.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';

const VIP4 = '172.18.7.7';
const VIP6 = 'fd00:18::77';

class World {
	#plan: MeshVips | undefined;
	#entries: VipEntries | undefined;
	readonly #ids = createVipIds();
	readonly #reconciler: VipReconciler;
	readonly states: Record<string, BackendState> = { n1t2: 'active', n1t3: 'active', n1t4: 'active' };
	affinity: 'none' | 'client-ip' = 'none';
	kernel = false;

	constructor(
		readonly net: Topology,
		readonly datapath: Datapath,
		readonly namespaces: Map<bigint, readonly number[]>,
	) {
		this.#reconciler = createVipReconciler(datapath.store.vip, this.#ids);
	}

	apply(): void {
		const tasks = Object.entries(this.states).map(
			([name, state]): Task => ({
				id: name,
				node: 'n1',
				on: { red: this.net.address(name).v4, red6: this.net.address(name).v6 },
				weight: 1,
				state,
			}),
		);
		const membership: Membership = {
			nodes: [{ name: 'n1', address: '192.168.78.1', drained: false }],
			services: [
				{
					name: 'web',
					ports: [],
					options: { ...OPTIONS, affinity: this.affinity },
					tasks,
					vips: [
						{ network: 'red', address: VIP4 },
						{ network: 'red6', address: VIP6 },
					],
				},
			],
			networks: [
				{ name: 'red', driver: 'overlay', subnet: '172.18.0.0/16', vni: 4097, attachable: true, options: {} },
				{ name: 'red6', driver: 'overlay', subnet: 'fd00:18::/64', vni: 4099, attachable: true, options: {} },
			],
		};
		this.#plan = planVips(membership, 'n1', { downNodes: new Set() }, this.#plan);
		const facts = { namespaces: this.namespaces, kernel: this.kernel };
		this.#entries = vipEntries(this.#plan, facts, this.#ids, Date.now(), this.#entries);
		const { errors } = this.#reconciler.reconcile(this.#entries, Date.now());
		assert.equal(errors, []);
	}

	/** Dials that got this verdict. */
	dials(verdict: string): number {
		const rows = this.datapath.store.counters().verdicts.filter((v) => VERDICTS[v.verdict] === verdict);
		return Number(rows.reduce((sum, v) => sum + v.packets, 0n));
	}
}

async function cookie(net: Topology, name: string): Promise<bigint> {
	const ns = await openNetns(`/run/netns/${net.ns(name)}`);
	try {
		return await ns.cookie();
	} finally {
		await ns.close();
	}
}

async function build(): Promise<{ world: World; net: Topology }> {
	const net = await Topology.build({ nodes: 1, tasks: { n1: 6 } });
	let datapath: Datapath | undefined;
	try {
		for (const t of ['n1t2', 'n1t3', 'n1t4']) {
			await net.httpd(t, 80);
			await net.udpecho(t, 53);
		}
		datapath = await openDatapath({
			pinRoot: net.pinRoot('n1'),
			bpfDir: `${root}/bpf`,
			runDir: net.directory,
			objects: ['socket.bpf.o'],
		});
		const world = new World(
			net,
			datapath,
			new Map([
				[await cookie(net, 'n1t1'), [4097, 4099]],
				[await cookie(net, 'n1t5'), [4098]],
			]),
		);
		world.apply();
		datapath.commit();
		datapath.attachSocket(cgroupRoot() as string);
		return { world, net };
	} catch (e) {
		datapath?.takeDown();
		net.close();
		throw e;
	}
}

scenario(
	'VIPs',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? (cgroupRoot() === undefined ? 'needs cgroup2 (mount it)' : undefined),
	build,
	({ world, net }) => {
		world.datapath.takeDown();
		net.close();
	},
	(test) => {
		for (const [what, target, peer] of [
			['IPv4', VIP4, VIP4],
			['IPv6', `[${VIP6}]`, VIP6],
			['IPv4 through an IPv6 socket (::ffff:)', `[::ffff:${VIP4}]`, VIP4],
		] as const) {
			test(`TCP to a VIP reaches all tasks, and the peer is the VIP: ${what}`, async ({ net }) => {
				const r = await net.load('n1t1', ['-n', 200, '-c', 20, '-t', 2000, `${target}:80`]);
				assert.equal(r.failures, {});
				assert.equal(Object.keys(r.backends).sort(), ['n1t2', 'n1t3', 'n1t4']);
				assert.equal(r.peers, { [peer]: 200 });
			});

			test(`connected UDP sockets too: ${what}`, async ({ net }) => {
				const r = await net.udpload('n1t1', ['-n', 3, '-c', 60, '-t', 2000, `${target}:53`]);
				assert.equal([r.lost, r.moved, r.errors], [0, 0, {}]);
				assert.equal(Object.keys(r.backends).sort(), ['n1t2', 'n1t3', 'n1t4']);
				assert.equal(r.sources, { [peer]: 180 });
			});

			test(`sockets that are not connected keep their task, and its answers are the VIP’s: ${what}`, async ({
				net,
			}) => {
				const r = await net.udpload('n1t1', ['-u', '-n', 5, '-c', 60, '-t', 2000, `${target}:53`]);
				assert.equal([r.lost, r.moved, r.errors], [0, 0, {}]);
				assert.equal(Object.keys(r.backends).sort(), ['n1t2', 'n1t3', 'n1t4']);
				assert.equal(r.sources, { [peer]: 300 });
			});
		}

		test('every port is the service’s; a direct dial of a task is left alone', async ({ net }) => {
			const other = await net.load('n1t1', ['-n', 5, '-t', 1000, `${VIP4}:81`]);
			assert.equal(other.failures, { refused: 5 }, 'nobody listens there: a task says so');
			const { v4 } = net.address('n1t3');
			const direct = await net.load('n1t1', ['-n', 5, '-t', 1000, `${v4}:80`]);
			assert.equal([direct.backends, direct.peers], [{ n1t3: 5 }, { [v4]: 5 }]);
		});

		test('a namespace of another network, and one of none, do not reach it', async ({ net }) => {
			for (const from of ['n1t5', 'n1t6']) {
				const r = await net.load(from, ['-n', 3, '-c', 3, '-t', 700, `${VIP4}:80`]);
				assert.is(r.ok, 0, `${from}: ${JSON.stringify(r)}`);
				const udp = await net.udpload(from, ['-u', '-n', 1, '-c', 3, '-t', 500, `${VIP4}:53`]);
				assert.is(udp.answered, 0, from);
			}
		});

		test('a task that drains or is down gets no new connection, and unconnected sockets pick another', async ({
			world,
			net,
		}) => {
			const load = net.startUdpload('n1t1', [
				'-u',
				'-n',
				0,
				'-c',
				40,
				'-i',
				20,
				'-t',
				1000,
				'-d',
				20_000,
				`${VIP4}:53`,
			]);
			const before = world.dials('deliver_vip');
			await waitFor('every socket to have asked twice', () => world.dials('deliver_vip') >= before + 100, 30_000);
			world.states.n1t2 = 'draining';
			world.states.n1t3 = 'down';
			world.apply();
			const r = await net.load('n1t1', ['-n', 100, '-c', 10, '-t', 2000, `${VIP4}:80`]);
			assert.equal([r.failures, r.backends], [{}, { n1t4: 100 }]);
			const then = world.dials('deliver_vip');
			await waitFor('every socket to have asked again', () => world.dials('deliver_vip') >= then + 100, 30_000);
			const udp = await load.finish();
			assert.is(udp.lost, 0);
			assert.ok(udp.moved > 10 && udp.moved <= 40, `${udp.moved} of 40 sockets moved, once each`);
			assert.equal(udp.sources, { [VIP4]: udp.replies });
		});

		test('with nobody left dials are refused at once', async ({ world, net }) => {
			world.states.n1t4 = 'down';
			world.apply();
			const r = await net.load('n1t1', ['-n', 5, '-t', 5000, `${VIP4}:80`]);
			assert.equal(r.failures, { refused: 5 });
			assert.ok(r.durationMs < 2000, `${r.durationMs} ms`);
			const udp = await net.udpload('n1t1', ['-u', '-n', 1, '-c', 3, '-t', 500, `${VIP4}:53`]);
			assert.equal(udp.errors, { ECONNREFUSED: 3 });
			for (const t of ['n1t2', 'n1t3', 'n1t4']) world.states[t] = 'active';
			world.apply();
			assert.is((await net.load('n1t1', ['-n', 5, '-t', 2000, `${VIP4}:80`])).ok, 5);
		});

		test('a dead agent: dials pass where IPVS answers too, and go on where it does not', async ({ world, net }) => {
			const { settings } = world.datapath.store;
			settings.set({ ...settings.get(), stale_after_ns: 60_000_000_000n, heartbeat_ns: 1n });
			assert.is((await net.load('n1t1', ['-n', 5, '-t', 2000, `${VIP4}:80`])).ok, 5);
			world.kernel = true;
			world.apply();
			const stale = await net.load('n1t1', ['-n', 3, '-c', 3, '-t', 700, `${VIP4}:80`]);
			assert.equal([stale.ok, world.dials('pass_stale')], [0, 3]);
			settings.set({ ...settings.get(), heartbeat_ns: world.datapath.store.now() });
			assert.is((await net.load('n1t1', ['-n', 5, '-t', 2000, `${VIP4}:80`])).ok, 5);
			world.kernel = false;
			world.apply();
		});

		test('client-ip affinity: one namespace, one task', async ({ world, net }) => {
			world.affinity = 'client-ip';
			world.apply();
			const r = await net.load('n1t1', ['-n', 60, '-c', 10, '-t', 2000, `${VIP4}:80`]);
			assert.is(Object.keys(r.backends).length, 1);
			world.affinity = 'none';
			world.apply();
		});

		test('a detached namespace does not reach it any more', async ({ world, net }) => {
			const mine = await cookie(net, 'n1t1');
			world.namespaces.set(mine, [4098]);
			world.apply();
			assert.is((await net.load('n1t1', ['-n', 2, '-c', 2, '-t', 700, `${VIP4}:80`])).ok, 0);
			world.namespaces.set(mine, [4098, 4097]);
			world.apply();
			assert.is((await net.load('n1t1', ['-n', 20, '-t', 2000, `${VIP4}:80`])).ok, 20);
		});
	},
);
