/**
 * A service's affinity changes while flows are open (`rehashes`): each keeps its backend, new ones are hashed as the service
 * says now. Four slots, four backends on other nodes; the window is 100 s, that of UDP 20 s. The agent's half is
 * src/mesh/slots.ts; the test drives the clock.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { FrontendFlag } from '../../src/loader/layout.gen.js';
import { applySlots, isOver, rehash } from '../../src/mesh/slots.js';
import { icmpError, tcpPacket, udpPacket } from './flows.js';
import { build, type Packet } from './packets.js';
import { BACKENDS, fill, frontendRow, serviceIndex, TCP, tableOf, UDP } from './services.js';
import { buildInterfaces, closeInterfaces, insideNetns, UP0, World } from './world.js';

const test = suite('affinity changes');
let w: World;
const START_S = 5000;
const WINDOW_NS = 100_000_000_000n;
const LIST = [BACKENDS.far, BACKENDS.farther, BACKENDS.other, BACKENDS.third];
const TABLES = [tableOf('spread', 4), tableOf('spread', 6), tableOf('dns', 4)];
let now = 0;
let nextPort = 1024;

function at(seconds: number): void {
	now = seconds;
	w.clock = BigInt(Math.round((START_S + seconds) * 1e9));
}
const clock = () => ({ nowNs: BigInt(Math.round((START_S + now) * 1e9)), windowNs: WINDOW_NS });
const FRONTENDS = ['spread', 'dns'] as const;
const flagsNow = () => w.store.frontends.get(serviceIndex('spread'))?.flags ?? 0;

function setFlags(flags: number): void {
	for (const name of FRONTENDS) {
		const tables = [0, 1].map((i) =>
			name === 'dns' && i === 1 ? { table: 0, mask: 0 } : { table: tableOf(name, i === 0 ? 4 : 6), mask: 3 },
		) as [{ table: number; mask: number }, { table: number; mask: number }];
		w.store.frontends.setMany([
			[serviceIndex(name), frontendRow(name, { flags, proto: name === 'dns' ? UDP : TCP, tables })],
		]);
	}
}
/** What reconcile() does where the option changed. */
function affinity(on: boolean): void {
	for (const name of FRONTENDS)
		w.store.rehashes.setMany([
			[serviceIndex(name), rehash(flagsNow(), w.store.rehashes.get(serviceIndex(name)), clock())],
		]);
	setFlags((on ? FrontendFlag.FRONTEND_AFFINITY : 0) | FrontendFlag.FRONTEND_REHASHED);
}
const row = () => w.store.rehashes.get(serviceIndex('spread'));
const neededAt = () => Number((row()?.needed_ns ?? 0n) / 1_000_000n) / 1000 - START_S;
const kept = (map: string): number => [...w.map(map).entries()].length;

function went(p: Packet): number {
	const r = w.run('uplink_xdp', build(p), UP0);
	assert.is(r.verdict, 'encap_node');
	return r.event.ref;
}
function tcpFlow(six = false, port = nextPort++) {
	let isn = 1000;
	const packet = (flags: string, seq: number) => tcpPacket(port, 8096, flags, seq, six);
	return {
		syn: (n = isn) => {
			isn = n;
			return went(packet('syn', isn));
		},
		data: () => went(packet('ack', isn + 1)),
		fin: () => went(packet('fin ack', isn + 1)),
		error: () => went(icmpError(port, 8096)),
	};
}
function udpFlow(): () => number {
	const port = nextPort++;
	return () => went(udpPacket(port, 53));
}
/** Flows that were open before a change, with their backends; more than one backend has some. */
function open(n: number, six = false) {
	const flows = Array.from({ length: n }, () => tcpFlow(six)).map((flow) => ({ flow, backend: flow.syn() }));
	for (const f of flows) assert.is(f.flow.data(), f.backend);
	return flows;
}
const moved = (flows: ReturnType<typeof open>) => flows.filter((f) => f.flow.data() !== f.backend).length;
const spread = (list: readonly number[]) => new Set(list).size;

if (insideNetns(import.meta.url, 'datapath: affinity changes')) {
	test.before(async () => {
		await buildInterfaces();
		w = await World.open({ clockIsGiven: true });
		fill(w);
	});
	test.before.each(() => {
		for (const map of ['conntrack', 'conntrack_old', 'conntrack_half_open']) w.map(map).clear();
		w.store.rehashes.deleteMany(FRONTENDS.map(serviceIndex));
		w.store.tables.create(TABLES.map((id) => [id, Uint32Array.from(LIST)]));
		setFlags(0);
		at(0);
	});
	test.after(() => {
		w[Symbol.dispose]();
		closeInterfaces();
	});

	for (const six of [false, true])
		test(`open flows keep their backends, new ones go to one, IPv${six ? 6 : 4}`, () => {
			const flows = open(60, six);
			assert.is(spread(flows.map((f) => f.backend)), 4);
			affinity(true);
			assert.is(moved(flows), 0);
			const later = open(40, six);
			assert.is(spread(later.map((f) => f.backend)), 1);
			assert.equal([moved(later), moved(flows)], [0, 0]);
			assert.equal([kept('conntrack_old'), kept('conntrack'), kept('conntrack_half_open')], [60, 40, 0]);
		});

	test('and back: those of before, of meanwhile and of afterwards', () => {
		const before = open(40);
		affinity(true);
		const between = open(40);
		at(50);
		affinity(false);
		const after = open(40);
		assert.is(spread(after.map((f) => f.backend)), 4);
		assert.equal([before, between, after].map(moved), [0, 0, 0]);
	});

	test('a flow that speaks keeps its hash beyond the window; when the last is silent, the change is over', () => {
		const flows = open(20);
		affinity(true);
		for (const s of [60, 120, 180, 240]) {
			at(s);
			assert.is(moved(flows), 0, `${s} s`);
			assert.is(neededAt(), s);
		}
		const silent = Array.from({ length: 40 }, () => tcpFlow());
		assert.is(spread(silent.map((f) => f.data())), 1, 'settling: a flow that nobody knows is as new ones');
		at(300);
		assert.not.ok(isOver(row()!, clock()));
		at(341);
		assert.ok(isOver(row()!, clock()));
		assert.is(spread(flows.map((f) => f.flow.data())), 1);
	});

	test('a closing flow’s port begins anew, with its own hash until the new flow speaks', () => {
		const flows = open(40);
		affinity(true);
		assert.is(moved(flows), 0);
		assert.equal(
			flows.map((f) => f.flow.fin()),
			flows.map((f) => f.backend),
		);
		assert.is(moved(flows), 0, 'closing takes a while');
		const again = flows.map((f) => f.flow.syn(900_000));
		assert.is(spread(again), 1);
		assert.equal(
			flows.map((f) => f.flow.data()),
			again,
		);
		assert.equal([kept('conntrack_old'), kept('conntrack')], [0, 40]);
	});

	test('an ICMP error goes where its flow goes, and teaches nothing', () => {
		const flows = open(30);
		affinity(true);
		assert.equal(
			flows.map((f) => f.flow.error()),
			flows.map((f) => f.backend),
		);
		assert.is(kept('conntrack_old'), 0);
		assert.is(moved(flows), 0);
		at(90);
		flows.map((f) => f.flow.error());
		assert.is(neededAt(), 0);
	});

	test('datagrams of a flow that spoke within udpWindow stay; others are hashed anew', () => {
		const flows = Array.from({ length: 40 }, udpFlow).map((send) => ({ send, backend: send() }));
		assert.is(spread(flows.map((f) => f.backend)), 4);
		affinity(true);
		at(10);
		const stay = flows.slice(0, 20);
		assert.is(stay.filter((f) => f.send() !== f.backend).length, 0);
		at(30);
		assert.is(stay.filter((f) => f.send() !== f.backend).length, 0, 'a record holds');
		assert.is(spread(flows.slice(20).map((f) => f.send())), 1);
	});

	test('with tracking none the hash alone says', () => {
		const flows = open(40);
		setFlags(FrontendFlag.FRONTEND_AFFINITY | FrontendFlag.FRONTEND_TRACK_NONE);
		assert.is(spread(flows.map((f) => f.flow.data())), 1);
	});

	test('random changes of affinity and of slots, against a map of every flow: none moves', () => {
		let seed = 20261128;
		const random = (n: number) => {
			seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
			return (seed >>> 8) % n;
		};
		type Flow = { flow: ReturnType<typeof tcpFlow>; backend: number; spoke: number };
		let flows: Flow[] = [];
		let on = false;
		let seconds = 0;
		let packets = 0;
		let changes = 0;
		for (let step = 0; step < 1500; step++) {
			const what = random(100);
			if (what < 30 && flows.length < 150) {
				const flow = tcpFlow(false, 1024 + random(60000));
				const backend = flow.syn(random(2 ** 31));
				assert.is(flow.data(), backend, `step ${step}: a handshake`);
				flows.push({ flow, backend, spoke: seconds });
			} else if (what < 80) {
				for (let i = 0; i < 6 && flows.length > 0; i++) {
					const f = flows[random(flows.length)];
					packets++;
					assert.is(f.flow.data(), f.backend, `step ${step}, ${seconds - f.spoke} s after it spoke last`);
					f.spoke = seconds;
				}
			} else if (what < 84) {
				on = !on;
				changes++;
				affinity(on);
			} else if (what < 88) {
				const want = w.store.tables.read(TABLES[0])!.map((word) => word & 0x3fffffff);
				want[random(4)] = LIST[random(4)];
				w.store.tables.edit(TABLES[0], (t) => applySlots(t, want, clock(), () => true));
			} else {
				seconds += random(20);
				at(seconds);
				// Who is silent for a window is promised nothing.
				flows = flows.filter((f) => seconds - f.spoke < 95);
			}
		}
		assert.ok(changes > 30 && packets > 2000, `${changes} changes, ${packets} packets`);
	});

	test.run();
}
