/**
 * Connections that are open through Docker's own mesh (IPVS), and to its VIPs, survive installing Beeline and uninstalling it. The story is
 * ./ipvs-guest.ts. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { UdpReport } from '../support/netns.js';
import { skip } from '../support/skip.js';
import { cannotUseDocker } from '../swarm/swarm.js';
import { type Load, MODULES, type Opened } from './docker-mesh.js';
import { cannotUseVm, compileForGuests, seenInGuest } from './vm.js';

interface Seen {
	readonly before: Load;
	readonly attached: boolean;
	readonly installed: Load;
	readonly dead: Load;
	readonly stale: Load;
	readonly back: Load;
	readonly leaving: Load;
	readonly made: Load;
	readonly after: Load;
	readonly old: Opened;
	readonly detach: { readonly code: number; readonly stdout: string; readonly stderr: string };
	readonly tracesBefore: Readonly<Record<string, unknown>>;
	readonly tracesAfter: Readonly<Record<string, unknown>>;
	readonly client: string;
	readonly vip: {
		/** With its prefix. */
		readonly address: string;
		/** The task that dials. */
		readonly client: string;
		readonly before: Both;
		readonly installed: Both;
		readonly stale: Both;
		readonly after: Both;
		readonly old: Held;
		readonly made: Held;
		readonly always: { readonly dials: Dialled; readonly sockets: Udp; readonly datagrams: Udp };
	};
}
interface Dialled extends Load {
	readonly peers: Readonly<Record<string, number>>;
}
type Held = Dialled & Opened;
type Udp = Pick<UdpReport, 'sent' | 'lost' | 'corrupt' | 'moved' | 'errors' | 'backends' | 'clients' | 'sources'>;
interface Both {
	readonly tcp: Dialled;
	readonly udp: Udp;
}

const name = 'beside Docker’s own mesh on IPVS';
const missing =
	process.env.BEELINE_VM === '1'
		? (cannotUseVm('6.12') ?? cannotUseDocker())
		: 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/ipvs runs it)';
if (missing !== undefined) skip(name, missing);
else {
	let seen: Seen;
	const test = suite(name);
	test.before(async () => {
		const objects = await compileForGuests();
		const guest = { series: '6.12', modules: MODULES, limitSeconds: 1700, memoryMiB: 3072 } as const;
		seen = await seenInGuest<Seen>(name, guest, 'ipvs-guest.js', objects);
	});
	const all = (what: string, l: Load, ok: number) => {
		assert.equal(l.failures, {}, `${what}: ${JSON.stringify(l)}`);
		assert.is(l.ok, ok, what);
	};
	const byDocker = (what: string, l: Load) => {
		all(what, l, 20);
		assert.is(Object.keys(l.backends).length, 2, what);
		assert.not.ok(seen.client in l.clients, `${what}: ${JSON.stringify(l.clients)}`);
	};
	const byBeeline = (what: string, l: Load) => {
		all(what, l, 20);
		assert.is(Object.keys(l.backends).length, 2, what);
		assert.equal(Object.keys(l.clients), [seen.client], what);
	};

	test('Docker’s mesh serves before, and hides the client', () => byDocker('before', seen.before));
	test('installed, new connections come by Beeline with the client’s own address', () => {
		assert.ok(seen.attached);
		byBeeline('installed', seen.installed);
	});
	test('an agent that was killed is not missed; after staleAfter Docker’s mesh serves, and Beeline again when it is back', () => {
		byBeeline('dead', seen.dead);
		byDocker('stale', seen.stale);
		byBeeline('back', seen.back);
	});
	test('while it leaves, new connections go to Docker’s mesh, and those that Beeline made go on', () => {
		byDocker('leaving', seen.leaving);
		assert.equal(seen.made.failures, {}, JSON.stringify(seen.made));
		assert.equal(Object.keys(seen.made.clients), [seen.client]);
	});
	test('connections that were open through Docker’s mesh before lived through all of it', () => {
		assert.equal(seen.old.failures, {}, JSON.stringify(seen.old));
		assert.is(seen.old.connections, 20);
		assert.is(seen.old.moved, 0);
		assert.not.ok(seen.client in seen.old.clients, 'they stayed in Docker’s mesh');
	});
	test('uninstalled, nothing of Beeline is left and Docker’s mesh serves as before', () => {
		assert.is(seen.detach.code, 0, seen.detach.stderr);
		for (const what of Object.keys(seen.tracesBefore))
			assert.equal(seen.tracesAfter[what], seen.tracesBefore[what], what);
		byDocker('after', seen.after);
	});
	const ofVip = (what: string, b: Both, byBeeline: boolean) => {
		const vip = seen.vip.address.replace(/\/.*/, '');
		all(what, b.tcp, 20);
		assert.is(Object.keys(b.tcp.backends).length, 2, `${what}: ${JSON.stringify(b.tcp)}`);
		assert.equal(b.tcp.peers, { [vip]: 20 }, what);
		assert.equal([b.udp.lost, b.udp.corrupt, b.udp.errors], [0, 0, {}], `${what}: ${JSON.stringify(b.udp)}`);
		assert.is(Object.keys(b.udp.backends).length, 2, `${what}: ${JSON.stringify(b.udp)}`);
		assert.equal(Object.keys(b.udp.sources), [vip], what);
		for (const clients of [b.tcp.clients, b.udp.clients])
			assert.is(seen.vip.client in clients, byBeeline, `${what}: ${JSON.stringify(clients)}`);
	};
	test('a VIP that Docker’s IPVS answers is answered by Beeline, with the task’s own address, until it is uninstalled', () => {
		ofVip('before', seen.vip.before, false);
		ofVip('installed', seen.vip.installed, true);
		// The kernel answers too, so it is left to it while no agent vouches for the rows.
		ofVip('stale', seen.vip.stale, false);
		ofVip('after', seen.vip.after, false);
	});
	test('connections to the VIP that were open before, and those that Beeline made, lived through all of it', () => {
		for (const [name, l] of [
			['old', seen.vip.old],
			['made', seen.vip.made],
		] as const) {
			assert.equal([l.failures, l.connections, l.moved], [{}, 10, 0], `${name}: ${JSON.stringify(l)}`);
			assert.is(Object.keys(l.backends).length, 2, name);
			assert.is(seen.vip.client in l.clients, name === 'made', name);
		}
	});
	test('dials of the VIP, a second apart, and datagrams to it never failed meanwhile', () => {
		const { dials, sockets, datagrams } = seen.vip.always;
		assert.equal(dials.failures, {}, JSON.stringify(dials));
		assert.ok(dials.ok > 100, JSON.stringify(dials));
		for (const u of [sockets, datagrams])
			assert.equal([u.lost, u.corrupt, u.errors], [0, 0, {}], JSON.stringify(seen.vip.always));
		assert.is(sockets.moved, 0, 'a connected socket stays with its task');
	});
	test.run();
}
