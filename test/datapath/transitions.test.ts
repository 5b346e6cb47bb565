/**
 * Tracked transitions (DESIGN 5.3) in uplink_xdp: each rule a story of one slot, whose clock the test drives. The table is
 * changed by the agent's own half (src/mesh/slots.ts). Backends a, b, c are on other nodes; the window is 100 s, that of UDP 20 s.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { FrontendFlag, REF_KERNEL, REF_NONE } from '../../src/loader/layout.gen.js';
import { applySlots, leaveToKernel, refGeneration, refIndex, settle, startFromKernel } from '../../src/mesh/slots.js';
import { icmpError, tcpPacket, udpPacket } from './flows.js';
import { build, type Packet } from './packets.js';
import { BACKENDS, fill, frontendRow, macOf, serviceIndex, TCP, tableOf, UDP } from './services.js';
import { ACTIVE, buildInterfaces, closeInterfaces, DOWN, insideNetns, MAC, UP0, World } from './world.js';

const test = suite('tracked transitions');
let w: World;
const WINDOW_S = 100;
const START_S = 5000;
const names = { far: 'a', other: 'b', third: 'c' } as const;
const refs = { a: BACKENDS.far, b: BACKENDS.other, c: BACKENDS.third, kernel: REF_KERNEL, none: REF_NONE } as const;
type Name = 'a' | 'b' | 'c' | 'kernel' | 'none';
const TABLE = tableOf('web', 4);
const UDP_TABLE = tableOf('dns', 4);
let now = 0;
let nextPort = 10000;

function at(seconds: number): void {
	now = seconds;
	w.clock = BigInt(Math.round((START_S + seconds) * 1e9));
}
const clock = () => ({ nowNs: BigInt(Math.round((START_S + now) * 1e9)), windowNs: BigInt(WINDOW_S) * 1_000_000_000n });
const known = (ref: number): boolean => {
	const b = w.store.backends.get(refIndex(ref));
	return b !== undefined && b.state !== 0 && b.generation === refGeneration(ref);
};
/** The agent's change of the slot, for TCP and UDP alike. */
function current(to: Name): void {
	for (const table of [TABLE, UDP_TABLE])
		w.store.tables.edit(table, (t) => applySlots(t, Uint32Array.of(refs[to]), clock(), known));
}
function state(name: 'a' | 'b' | 'c', s: number, generation = 0): void {
	const long = (Object.keys(names) as (keyof typeof names)[]).find((k) => names[k] === name) as keyof typeof names;
	w.store.backends.setMany([[refs[name], { state: s, generation, mac: macOf(long), node: 2 }]]);
}
const transition = () => w.store.tables.edit(TABLE, (t) => t.transition(0));
const neededAt = (): number => Number((transition()?.neededNs ?? 0n) / 1_000_000n) / 1000 - START_S;
const kept = (map: string): number => [...w.map(map).entries()].length;

/** Where a packet went: `a`, `b`, `c`, `kernel`, or its verdict. */
function went(p: Packet): string {
	const r = w.run('uplink_xdp', build(p), UP0);
	if (r.verdict === 'pass_kernel') return 'kernel';
	if (r.verdict !== 'encap_node') return r.verdict;
	return (Object.keys(refs) as Name[]).find((n) => refs[n] === r.event.ref) ?? `${r.event.ref}`;
}
interface Flow {
	readonly syn: (isn?: number) => string;
	readonly data: (seq?: number) => string;
	readonly fin: () => string;
	readonly rst: () => string;
	readonly error: () => string;
	readonly port: number;
}
function tcpFlow(six = false): Flow {
	const port = nextPort++;
	let isn = 1000;
	const packet = (flags: string, seq: number) => tcpPacket(port, 8080, flags, seq, six);
	return {
		port,
		syn(n = isn) {
			isn = n;
			return went(packet('syn', isn));
		},
		data: (seq = (isn + 1) >>> 0) => went(packet('ack', seq)),
		fin: () => went(packet('fin ack', (isn + 1) >>> 0)),
		rst: () => went(packet('rst', (isn + 1) >>> 0)),
		error: () => went(icmpError(port, 8080)),
	};
}
function udpFlow(): () => string {
	const port = nextPort++;
	return () => went(udpPacket(port, 53));
}
function flags(bits: number, generation = 0): void {
	w.store.frontends.setMany([
		[serviceIndex('web'), frontendRow('web', { flags: bits, proto: TCP, generation })],
		[serviceIndex('dns'), frontendRow('dns', { flags: bits, proto: UDP, generation })],
	]);
}

if (insideNetns(import.meta.url, 'datapath: tracked transitions')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open({ clockIsGiven: true });
		fill(w);
	});
	test.before.each(() => {
		for (const map of ['conntrack', 'conntrack_old', 'conntrack_half_open']) w.map(map).clear();
		for (const n of ['a', 'b', 'c'] as const) state(n, ACTIVE);
		for (const table of [TABLE, UDP_TABLE]) {
			w.store.tables.edit(table, (t) => {
				t.setSlot(0, refs.a);
				if (t.transition(0)) t.setTransition(0, { sinceNs: 0n, neededNs: 0n, previous: 0, generation: 0 });
			});
		}
		flags(0);
		at(0);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	test('stable: current, and nothing is remembered', () => {
		const f = tcpFlow();
		const u = udpFlow();
		assert.equal([f.syn(), f.data(), f.fin(), u(), u()], ['a', 'a', 'a', 'a', 'a']);
		assert.equal(['conntrack', 'conntrack_old', 'conntrack_half_open'].map(kept), [0, 0, 0]);
	});
	test('moving: a flow without a record is older than the change: previous, recorded; it stamps needed', () => {
		const f = tcpFlow();
		f.syn();
		current('b');
		assert.is(neededAt(), 0);
		at(7);
		assert.is(f.data(), 'a');
		assert.is(neededAt(), 7);
		assert.equal([kept('conntrack_old'), kept('conntrack'), kept('conntrack_half_open')], [1, 0, 0]);
		at(9);
		assert.is(f.data(), 'a');
		assert.is(neededAt(), 9);
	});
	test('moving: a new flow goes to current, and stays when the slot changes again', () => {
		current('b');
		const f = tcpFlow();
		assert.is(f.syn(), 'b');
		assert.equal([kept('conntrack_half_open'), kept('conntrack')], [1, 0]);
		assert.is(f.data(), 'b');
		assert.equal([kept('conntrack_half_open'), kept('conntrack')], [0, 1]);
		assert.is(neededAt(), 0, 'current needs no stamp');
		at(5);
		current('c');
		assert.is(f.data(), 'b');
		assert.is(neededAt(), 5);
		const old = tcpFlow();
		assert.is(old.data(), 'a', 'the oldest previous stays');
	});
	test('a handshake outlives a change: the same SYN keeps its backend, another asks anew', () => {
		current('b');
		const f = tcpFlow();
		assert.is(f.syn(1000), 'b');
		current('c');
		assert.is(f.syn(1000), 'b');
		assert.is(f.data(), 'b');
		const g = tcpFlow();
		g.syn(1000);
		current('b');
		assert.is(g.syn(2000), 'b');
		assert.is(g.data(), 'b');
	});
	test('what follows a SYN begins behind its sequence number, within a first window', () => {
		current('b');
		const followed = (isn: number, seq: number): string => {
			const f = tcpFlow();
			f.syn(isn);
			return f.data(seq >>> 0);
		};
		assert.is(followed(1000, 1001), 'b');
		assert.is(followed(1000, 1001 + 65535), 'b');
		assert.is(followed(1000, 1001 + 65536), 'a');
		assert.is(followed(1000, 1000), 'a');
		assert.is(followed(4294967295, 0), 'b');
		assert.is(followed(4294967290, 100), 'b');
	});
	for (const end of ['fin', 'rst'] as const)
		test(`a client’s ${end} marks a record closing: its flow stays, a new SYN asks anew and then replaces it`, () => {
			const f = tcpFlow();
			current('b');
			assert.is(f.data(50), 'a');
			assert.is(f[end](), 'a');
			assert.is(f.data(51), 'a', 'closing takes a while');
			assert.is(f.syn(900000), 'b');
			assert.is(f.data(52), 'a', 'the record is left until the new flow speaks');
			assert.is(f.data(900001), 'b');
			assert.is(f.data(52), 'b');
			current('c');
			assert.is(f.data(), 'b');
		});
	test('a SYN within a living flow’s record keeps its backend', () => {
		const f = tcpFlow();
		current('b');
		assert.is(f.data(50), 'a');
		assert.is(f.syn(777), 'a');
		assert.is(kept('conntrack_half_open'), 0);
	});
	test('a record whose backend is down: current meanwhile, and back when it returns', () => {
		const f = tcpFlow();
		current('b');
		assert.is(f.data(), 'a');
		state('a', DOWN);
		assert.is(f.data(), 'b');
		assert.is(kept('conntrack_old'), 1);
		state('a', ACTIVE);
		assert.is(f.data(), 'a');
	});
	test('a record whose backend is down: a SYN asks anew, and what follows it replaces the record', () => {
		const f = tcpFlow();
		current('b');
		assert.is(f.data(50), 'a');
		state('a', DOWN);
		assert.is(f.syn(5000), 'b');
		assert.is(f.data(5001), 'b');
		state('a', ACTIVE);
		assert.is(f.data(5002), 'b');
	});
	test('previous is down: current, unrecorded', () => {
		const f = tcpFlow();
		current('b');
		state('a', DOWN);
		assert.is(f.data(), 'b');
		assert.equal([kept('conntrack'), kept('conntrack_old')], [0, 0]);
		state('a', ACTIVE);
		assert.is(f.data(), 'a');
	});
	test('previous in another incarnation is not previous', () => {
		current('b');
		state('a', ACTIVE, 3);
		assert.is(tcpFlow().data(), 'b');
	});
	test('current and previous down, nobody next: dropped', () => {
		current('b');
		state('a', DOWN);
		state('b', DOWN);
		const f = tcpFlow();
		assert.equal([f.syn(), f.data(), udpFlow()()], ['drop_no_backend', 'drop_no_backend', 'drop_no_backend']);
	});
	test('settling: records hold, new flows are remembered, what is unknown goes to current, unrecorded', () => {
		const old = tcpFlow();
		const u = udpFlow();
		current('b');
		at(10);
		assert.equal([old.data(), u()], ['a', 'a']);
		at(90);
		assert.is(old.data(), 'a');
		at(101);
		assert.equal([old.data(), u()], ['a', 'a']);
		const unknown = tcpFlow();
		assert.is(unknown.data(), 'b');
		assert.is(kept('conntrack_old') + kept('conntrack'), 2);
		const fresh = tcpFlow();
		assert.is(fresh.syn(), 'b');
		assert.is(kept('conntrack_half_open'), 1);
		assert.is(fresh.data(), 'b');
	});
	test('stable again one window after needed: a flow that speaks stays, one that is silent beyond it moves', () => {
		const f = tcpFlow();
		current('b');
		for (let t = 90; t < 900; t += 90) {
			at(t);
			assert.is(f.data(), 'a', `at ${t}`);
		}
		at(810 + 101);
		assert.is(f.data(), 'b');
		at(810 + 102);
		w.store.tables.edit(TABLE, (t) => settle(t, clock()));
		assert.is(w.store.tables.read(TABLE)?.[0], refs.b);
		assert.is(f.data(), 'b');
	});
	test('the window’s edge', () => {
		current('b');
		at(100);
		assert.is(tcpFlow().data(), 'a');
		at(100.001);
		assert.is(tcpFlow().data(), 'b');
	});
	test('records of an earlier generation are none', () => {
		const f = tcpFlow();
		current('b');
		assert.is(f.data(), 'a');
		at(500);
		w.store.tables.edit(TABLE, (t) => settle(t, clock()));
		assert.is(f.data(), 'b');
		at(600);
		current('c');
		assert.is(f.data(), 'b', 'previous, not the record of a');
	});
	test('a promoted record of an earlier generation hides no later one', () => {
		current('b');
		const f = tcpFlow();
		f.syn();
		assert.is(f.data(), 'b');
		at(500);
		for (const table of [TABLE, UDP_TABLE]) w.store.tables.edit(table, (t) => settle(t, clock()));
		assert.is(f.data(), 'b');
		at(600);
		current('c');
		assert.is(f.data(), 'b');
		at(690);
		assert.is(f.data(), 'b');
		at(705);
		assert.is(f.data(), 'b', 'settling: the flow has a record of this generation');
	});
	test('UDP: previous for its window, then current; recorded both', () => {
		const u = udpFlow();
		const late = udpFlow();
		current('b');
		at(20);
		assert.is(u(), 'a');
		at(21);
		assert.equal([u(), late(), late()], ['a', 'b', 'b']);
		at(50);
		current('c');
		at(51);
		assert.equal([u(), late()], ['a', 'b']);
		assert.is(udpFlow()(), 'a', 'the oldest previous, for its window again');
		at(71);
		assert.equal([u(), late(), udpFlow()()], ['a', 'b', 'c']);
	});
	test('UDP: a record that names a down backend is dropped', () => {
		const u = udpFlow();
		current('b');
		assert.is(u(), 'a');
		state('a', DOWN);
		assert.equal([u(), u()], ['b', 'b']);
		state('a', ACTIVE);
		assert.is(u(), 'b');
	});
	test('current is down: the next slots, here none', () => {
		current('b');
		state('b', DOWN);
		assert.is(tcpFlow().syn(), 'drop_no_backend');
		assert.is(tcpFlow().data(), 'a');
	});
	test('an ICMP error goes where its flow goes, and teaches nothing', () => {
		current('b');
		const f = tcpFlow();
		assert.is(f.error(), 'a');
		assert.equal([kept('conntrack'), kept('conntrack_old'), neededAt()], [0, 0, 0]);
		assert.is(f.syn(), 'b');
		assert.is(f.error(), 'b', 'its handshake is under way');
		assert.is(kept('conntrack_half_open'), 1);
		assert.is(f.data(), 'b');
		assert.is(f.error(), 'b');
		f.fin();
		assert.is(f.error(), 'b');
	});
	test('a port taken over from the kernel: its flows stay with it for a window', () => {
		w.store.tables.edit(TABLE, (t) => startFromKernel(t, clock()));
		const f = tcpFlow();
		const g = tcpFlow();
		assert.equal([f.data(), f.data(), g.syn(), g.data(), f.data()], ['kernel', 'kernel', 'a', 'a', 'kernel']);
		assert.is(f.error(), 'pass_not_ours');
		at(90);
		assert.is(f.data(), 'kernel');
		at(101);
		assert.equal([f.data(), g.data(), tcpFlow().data()], ['kernel', 'a', 'a']);
		at(202);
		assert.equal([f.data(), g.data()], ['a', 'a']);
	});
	test('a port given back to the kernel: its new flows pass, the others stay', () => {
		const f = tcpFlow();
		f.syn();
		w.store.tables.edit(TABLE, (t) => leaveToKernel(t, clock(), known));
		const g = tcpFlow();
		assert.equal([f.data(), g.syn(), g.data(), f.data()], ['a', 'kernel', 'kernel', 'a']);
	});
	test('the agent is stale: new flows go to the kernel’s mesh whole, and stay there when it is back', () => {
		const heartbeat = (seconds: number) =>
			w.store.settings.set({
				...w.store.settings.get(),
				heartbeat_ns: BigInt((START_S + seconds) * 1e9),
				stale_after_ns: 60_000_000_000n,
			});
		flags(FrontendFlag.FRONTEND_KERNEL);
		heartbeat(0);
		const before = tcpFlow();
		assert.equal([before.syn(), before.data(), udpFlow()()], ['a', 'a', 'a']);
		at(60);
		assert.is(tcpFlow().syn(), 'a');
		at(61);
		const during = tcpFlow();
		assert.equal([during.syn(), during.syn(), during.data(), during.data(9999999)], Array(4).fill('pass_stale'));
		assert.equal([before.data(), tcpFlow().data()], ['a', 'a'], 'flows of the mesh stay in it');
		assert.is(udpFlow()(), 'pass_stale');
		assert.is(tcpFlow(true).syn(), 'pass_stale');
		at(62);
		heartbeat(62);
		const after = tcpFlow();
		assert.equal([after.syn(), after.data(), during.data(), before.data()], ['a', 'a', 'pass_stale', 'a']);
		at(160);
		heartbeat(160);
		assert.is(during.data(), 'pass_stale');
		assert.equal([during.syn(70000), during.data()], ['a', 'a'], 'a new SYN is a new flow');
		at(300);
		heartbeat(300);
		assert.is(during.data(), 'a');
		w.store.settings.set({ ...w.store.settings.get(), stale_after_ns: 0n });
	});
	test('a stale agent without a mesh of the kernel’s: the tables go on serving', () => {
		w.store.settings.set({ ...w.store.settings.get(), heartbeat_ns: 0n, stale_after_ns: 1n });
		const f = tcpFlow();
		assert.equal([f.syn(), f.data(), udpFlow()()], ['a', 'a', 'a']);
		w.store.settings.set({ ...w.store.settings.get(), stale_after_ns: 0n });
	});
	test('tracking none: the table alone says', () => {
		flags(FrontendFlag.FRONTEND_TRACK_NONE);
		const f = tcpFlow();
		f.syn();
		current('b');
		assert.equal([f.data(), f.syn(), udpFlow()()], ['b', 'b', 'b']);
		assert.equal(['conntrack', 'conntrack_old', 'conntrack_half_open'].map(kept), [0, 0, 0]);
	});
	test('tracking always: a flow is remembered while its slot is stable, and its record outlives transitions', () => {
		flags(FrontendFlag.FRONTEND_TRACK_ALWAYS);
		const f = tcpFlow();
		const u = udpFlow();
		assert.equal([f.syn(), f.data(), u()], ['a', 'a', 'a']);
		assert.is(kept('conntrack'), 2);
		current('b');
		at(1000);
		for (const table of [TABLE, UDP_TABLE]) w.store.tables.edit(table, (t) => settle(t, clock()));
		assert.equal([f.data(), u(), tcpFlow().syn(), tcpFlow().data()], ['a', 'a', 'b', 'b']);
		state('a', DOWN);
		assert.equal([f.data(), u()], ['b', 'b']);
		state('a', ACTIVE);
		assert.equal([f.data(), u()], ['a', 'b'], 'datagrams forget a backend that was down');
	});
	test('tracking auto, then always: records of a slot in transition hold, and then for ever', () => {
		const old = tcpFlow();
		old.syn();
		current('b');
		const young = tcpFlow();
		assert.equal([old.data(), young.syn(), young.data()], ['a', 'b', 'b']);
		flags(FrontendFlag.FRONTEND_TRACK_ALWAYS, 7);
		assert.equal([young.data(), old.data()], ['b', 'a']);
		at(150);
		flags(0, 7);
		flags(FrontendFlag.FRONTEND_TRACK_ALWAYS, 8);
		assert.equal([old.data(), tcpFlow().data()], ['b', 'b'], 'records of another generation are none');
	});
	test('tracking always, then auto: its records hold while their flows speak', () => {
		flags(FrontendFlag.FRONTEND_TRACK_ALWAYS, 7);
		w.store.untracked.deleteMany([serviceIndex('web'), serviceIndex('dns')]);
		const f = tcpFlow();
		const u = udpFlow();
		const closing = tcpFlow();
		assert.equal([f.syn(), f.data(), u(), closing.syn(), closing.data()], ['a', 'a', 'a', 'a', 'a']);
		const handshake = tcpFlow();
		assert.is(handshake.syn(), 'a');
		current('b');
		assert.is(handshake.data(), 'a');
		at(1000);
		for (const table of [TABLE, UDP_TABLE]) w.store.tables.edit(table, (t) => settle(t, clock()));
		const since = clock().nowNs;
		for (const name of ['web', 'dns'] as const)
			w.store.untracked.setMany([
				[serviceIndex(name), { since_ns: since, needed_ns: since, previous: 0, generation: 0 }],
			]);
		flags(FrontendFlag.FRONTEND_TRACKED, 7);
		const needed = () =>
			Number((w.store.untracked.get(serviceIndex('web'))?.needed_ns ?? 0n) / 1_000_000_000n) - START_S;
		at(1050);
		const before = kept('conntrack') + kept('conntrack_old') + kept('conntrack_half_open');
		assert.equal([tcpFlow().syn(), tcpFlow().data(), udpFlow()()], ['b', 'b', 'b']);
		assert.is(kept('conntrack') + kept('conntrack_old') + kept('conntrack_half_open'), before, 'none is made');
		assert.is(needed(), 1000);
		assert.equal([f.data(), u(), handshake.data(), f.error()], ['a', 'a', 'a', 'a']);
		assert.is(needed(), 1050);
		assert.equal([closing.fin(), closing.data(), closing.syn(70000), closing.data()], ['a', 'a', 'b', 'b']);
		// The slot moves again: records go over to it.
		current('c');
		const young = tcpFlow();
		assert.equal([f.data(), young.syn(), young.data(), closing.data(), tcpFlow().data()], ['a', 'c', 'c', 'b', 'b']);
		assert.equal([young.data(), handshake.data(), u()], ['c', 'a', 'a']);
		flags(FrontendFlag.FRONTEND_TRACK_ALWAYS, 7);
		assert.equal([f.data(), young.data(), handshake.data(), u()], ['a', 'c', 'a', 'a']);
	});
	test('a flood of SYNs and one of strange segments evict no flow that lives', () => {
		current('b');
		const flows = Array.from({ length: 500 }, () => tcpFlow());
		for (const f of flows) assert.equal([f.syn(), f.data()], ['b', 'b']);
		const r = w.runner('uplink_xdp');
		const packet = build({
			eth: { src: MAC.router, dst: MAC.up0 },
			ip: { src: '203.0.113.1', dst: '10.0.0.1' },
			tcp: { sport: 1, dport: 8080, flags: 'syn', seq: 5 },
		});
		r.data.set(packet);
		const ctx = new DataView(r.ctx.buffer);
		ctx.setUint32(4, packet.length, true);
		ctx.setUint32(12, UP0, true);
		for (const bits of [2, 16]) {
			r.data[14 + 20 + 13] = bits;
			for (let i = 0; i < 60000; i++) {
				r.data[28] = i >> 8;
				r.data[34] = 64 + (i & 127);
				r.data[35] = i & 255;
				r.data[29] = (i * 7) & 255;
				r.run(packet.length);
				if (i % 4096 === 0) w.drain();
			}
		}
		current('c');
		let moved = 0;
		for (const f of flows) if (f.data() !== 'b') moved++;
		assert.is(moved, 0);
	});

	test.run();
}
