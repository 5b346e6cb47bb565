/** Peers on a network in memory: a clock that is turned by hand, nodes that answer, keep silent or refuse. */
import type { Datagram, SocketError } from 'libbpf-ts';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Peers, type PeersChange, type PeersInput, type ProbeSocket, TICK_MS } from '../../src/agent/peers.js';
import { decodeAnswer, encodeProbe, ip4Number } from '../../src/agent/probe.js';
import { DSR_AGAIN_MS } from '../../src/agent/probe-dsr.js';

const VNI = 12509184;
const PORT = 4789;
const TICK = TICK_MS;

interface Other {
	/** direct: answers, but not to another than the source. */
	does: 'answer' | 'silent' | 'refuse' | 'direct';
	latencyMs: number;
	digest: bigint;
	probes: number;
	spoofed: number;
}

const text = (ip: number): string => [24, 16, 8, 0].map((s) => (ip >>> s) & 255).join('.');

class Network {
	now = 1000;
	readonly others = new Map<string, Other>();
	readonly changes: PeersChange[] = [];
	readonly errors: string[] = [];
	/** The network lets packets through whose source is another's. */
	letsSpoofed = true;
	opened = 0;
	refusesToOpen = false;
	readonly peers: Peers;
	readonly #arriving: { at: number; d: Datagram }[] = [];
	readonly #refused: SocketError[] = [];
	#seed = 1;

	constructor(
		readonly count: number,
		options: { graceMs?: number } = {},
	) {
		for (let i = 2; i <= count; i++)
			this.others.set(this.address(i), { does: 'answer', latencyMs: 1, digest: 7n, probes: 0, spoofed: 0 });
		this.peers = new Peers({
			open: () => this.#socket(),
			now: () => this.now,
			random: () => {
				this.#seed = (Math.imul(this.#seed, 1664525) + 1013904223) >>> 0;
				return this.#seed / 2 ** 32;
			},
			...options,
			onChange: (c) => this.changes.push(c),
			onError: (e) => this.errors.push(e.message),
		});
		this.update();
	}

	address(i: number): string {
		return `10.0.${i >> 8}.${i & 255}`;
	}

	other(i: number): Other {
		return this.others.get(this.address(i)) as Other;
	}

	update(more: Partial<PeersInput> = {}): void {
		const nodes = Array.from({ length: this.count }, (_, i) => ({ name: `n${i + 1}`, address: this.address(i + 1) }));
		this.peers.update({
			...{ self: 'n1', vtep: this.address(1), vni: VNI, vxlanPort: PORT, nodes, digest: 7n, wantsDsr: false },
			...more,
		});
	}

	run(ms: number): void {
		for (const end = this.now + ms; this.now < end; this.now += TICK) this.peers.tick();
	}

	/** Turns the clock until it is so; the ms it took. */
	until(what: string, condition: () => boolean, limitMs = 60_000): number {
		const began = this.now;
		while (!condition()) {
			if (this.now - began > limitMs) throw new Error(`waited ${limitMs} ms for ${what}`);
			this.run(TICK);
		}
		return this.now - began;
	}

	state(i: number): string | undefined {
		return this.peers.views().get(`n${i}`)?.state;
	}

	get down(): string[] {
		return [...this.peers.downNodes].sort();
	}

	#arrive(to: number, source: number, port: number, payload: Uint8Array): void {
		const o = this.others.get(text(to));
		if (o === undefined) return;
		const own = source === ip4Number(this.address(1));
		if (own) o.probes++;
		else o.spoofed++;
		if (!own && !this.letsSpoofed) return;
		if (o.does === 'refuse' && own) this.#refused.push({ to, errno: 111, icmp: true });
		if (o.does === 'silent' || o.does === 'refuse') return;
		const view = new DataView(payload.buffer.slice(payload.byteOffset, payload.byteOffset + payload.byteLength));
		assert.is(view.getUint16(20), 0x88b5);
		if (o.does === 'direct' && view.getUint32(38) !== 0) return;
		// As answer_probe() does: to `via`, else to the source.
		const back = view.getUint32(38) || source;
		if (text(back) !== this.address(1)) return;
		view.setUint16(20, 0x88b6);
		view.setBigUint64(30, o.digest, true);
		const at = this.now + o.latencyMs;
		const d = { from: to, port: PORT, payload: new Uint8Array(view.buffer), atMs: at };
		assert.is(port, 40_000);
		this.#arriving.push({ at, d });
	}

	#socket(): ProbeSocket {
		if (this.refusesToOpen) throw new Error('no such address');
		this.opened++;
		return {
			port: 40_000,
			nowMs: () => this.now,
			send: (list) => {
				for (const m of list) {
					assert.is(m.port, PORT);
					this.#arrive(m.to, ip4Number(this.address(1)), 40_000, m.payload);
				}
				return new Map();
			},
			sendFrom: (source, to, payload) => {
				this.#arrive(to.address, source.address, source.port, payload);
				return 0;
			},
			receive: () => {
				const here = this.#arriving.filter((a) => a.at <= this.now);
				for (const a of here) this.#arriving.splice(this.#arriving.indexOf(a), 1);
				return here.map((a) => a.d);
			},
			errors: () => this.#refused.splice(0),
			close: () => undefined,
		};
	}
}

const test = suite('peers');

test('a probe is the frame that bpf/vxlan.h describes, and an answer is read back', () => {
	const probe = encodeProbe(VNI, { high: 0x11223344, low: 0x55667788 }, ip4Number('10.0.0.1'));
	assert.is(
		Buffer.from(probe).toString('hex'),
		`08000000${VNI.toString(16)}00${'060000000000'}${'060000000000'}88b5${'8877665544332211'}${'00'.repeat(8)}${'0a000001'}${'00'.repeat(4)}`,
	);
	assert.is(decodeAnswer(probe, VNI), undefined, 'a probe is no answer');
	const answer = Buffer.from(probe);
	answer.writeUInt16BE(0x88b6, 20);
	answer.writeBigUInt64LE(99n, 30);
	assert.equal(decodeAnswer(answer, VNI), { nonce: { high: 0x11223344, low: 0x55667788 }, digest: 99n });
	assert.is(decodeAnswer(answer, VNI + 1), undefined, 'of another VNI');
	assert.is(decodeAnswer(answer.subarray(0, 45), VNI), undefined, 'truncated');
});

test('nodes count as reachable before anything is known, and then by their answers', () => {
	const net = new Network(3);
	assert.equal(net.down, []);
	assert.is(net.state(2), 'unknown');
	assert.is(net.peers.settled, false);
	net.run(100);
	assert.is(net.peers.settled, true);
	assert.equal(net.peers.views().get('n2'), {
		name: 'n2',
		address: '10.0.0.2',
		state: 'reachable',
		reachable: true,
		agentPresent: true,
		rttMs: 1,
		digest: 7n,
		digestDiffers: false,
		dsr: false,
	});
	assert.is(net.peers.views().get('n1'), undefined, 'this node does not probe itself');
	assert.equal(net.changes, []);
});

test('a node that falls silent is down in under a second, from any moment, and back after two answers', () => {
	for (let wait = 500; wait < 760; wait += TICK) {
		const net = new Network(3);
		net.run(wait);
		net.other(3).does = 'silent';
		const took = net.until('n3 to be down', () => net.down.length > 0);
		assert.ok(took < 700, `${took} ms`);
		assert.equal(net.down, ['n3']);
		assert.is(net.state(3), 'unreachable');
		assert.equal(net.changes, [{ down: ['n3'], up: [], dsr: false }]);
		net.run(2000);
		net.other(3).does = 'answer';
		const back = net.until('n3 to be back', () => net.down.length === 0);
		assert.ok(back < 500, `${back} ms`);
		assert.is(net.changes.length, 2);
		assert.equal(net.changes[1], { down: [], up: ['n3'], dsr: false });
	}
});

test('two lost probes are no reason', () => {
	const net = new Network(2);
	net.run(500);
	const { probes } = net.other(2);
	net.other(2).does = 'silent';
	net.until('two probes to be lost', () => net.other(2).probes === probes + 2);
	net.other(2).does = 'answer';
	net.run(5000);
	assert.equal(net.changes, []);
});

test('an answer that comes after its time is an answer', () => {
	const net = new Network(2);
	net.other(2).latencyMs = 240;
	net.run(10_000);
	assert.equal(net.changes, []);
	assert.is(net.state(2), 'reachable');
	assert.is(net.peers.views().get('n2')?.rttMs, 240);
});

test('one answer does not bring a node back', () => {
	const net = new Network(2);
	net.other(2).does = 'silent';
	net.until('n2 to be down', () => net.down.length > 0);
	const { probes } = net.other(2);
	net.other(2).does = 'answer';
	net.until('one probe to be answered', () => net.other(2).probes === probes + 1);
	net.other(2).does = 'silent';
	net.run(3000);
	assert.equal(net.down, ['n2']);
	assert.is(net.changes.length, 1);
});

test('refused: the node lives, its agent is absent', () => {
	const net = new Network(3);
	net.run(500);
	net.other(2).does = 'refuse';
	const took = net.until('n2 to be down', () => net.down.length > 0);
	assert.ok(took < 600, `${took} ms`);
	assert.is(net.state(2), 'noAgent');
	assert.is(net.peers.views().get('n2')?.agentPresent, false);
	net.other(2).does = 'silent';
	net.run(12_000);
	assert.is(net.state(2), 'unreachable');
	assert.is(net.peers.views().get('n2')?.agentPresent, null);
});

test('in the grace after a first start who was never heard is not down; who was heard is', () => {
	const net = new Network(3, { graceMs: 5000 });
	net.other(2).does = 'refuse';
	net.run(1000);
	net.other(3).does = 'silent';
	net.run(1000);
	assert.equal(net.down, ['n3']);
	net.run(4000);
	assert.equal(net.down, ['n2', 'n3']);
});

test('the dead are asked less often the longer they are, and found within two seconds all the same', () => {
	const net = new Network(2);
	net.other(2).does = 'silent';
	const rate = (ms: number) => {
		const { probes } = net.other(2);
		net.run(ms);
		return ((net.other(2).probes - probes) * 1000) / ms;
	};
	net.run(2000);
	const early = rate(10_000);
	net.run(30_000);
	const later = rate(20_000);
	net.run(300_000);
	const late = rate(60_000);
	assert.ok(early > 2 && early < 6, `${early}/s`);
	assert.ok(later > 0.8 && later < 1.2, `${later}/s`);
	assert.ok(late > 0.4 && late < 0.6, `${late}/s`);
	net.other(2).does = 'answer';
	assert.ok(net.until('it to be back', () => net.down.length === 0) < 2500);
});

test('a stall of this process is nobody’s fault', () => {
	const net = new Network(50);
	net.run(1000);
	for (let i = 0; i < 20; i++) {
		// Answers lie in the socket meanwhile.
		net.now += 3000;
		net.run(TICK * (1 + (i % 7)));
	}
	assert.equal(net.changes, []);
});

test('a socket that hears nobody is opened anew, and one that cannot be opened is tried again', () => {
	const net = new Network(3);
	net.run(1000);
	assert.is(net.opened, 1);
	net.other(2).does = 'silent';
	net.other(3).does = 'silent';
	net.run(5000);
	assert.is(net.opened, 2);
	net.run(10_000);
	assert.is(net.opened, 3);
	net.refusesToOpen = true;
	net.run(20_000);
	assert.equal(net.errors, ['other nodes cannot be probed: no such address']);
	net.refusesToOpen = false;
	net.other(2).does = 'answer';
	net.run(4000);
	assert.equal(net.down, ['n3']);
});

test('nodes come and go; who stays keeps what is known of it', () => {
	const net = new Network(4);
	net.other(3).does = 'silent';
	net.run(2000);
	assert.equal(net.down, ['n3']);
	const node = (i: number) => ({ name: `n${i}`, address: net.address(i) });
	net.update({ nodes: [node(1), node(2), node(4)] });
	assert.equal(net.down, []);
	assert.equal([...net.peers.views().keys()], ['n2', 'n4']);
	assert.is(net.state(2), 'reachable');
	net.update({ nodes: [node(1), node(2), node(3), node(4)] });
	assert.is(net.state(3), 'unknown');
	assert.is(net.state(4), 'reachable');
});

test('tables that differ are named after a few seconds, and no longer once they agree', () => {
	const net = new Network(3);
	net.run(1000);
	net.other(2).digest = 8n;
	net.run(3000);
	assert.equal(net.peers.differing(), []);
	net.run(3000);
	assert.equal(net.peers.differing(), ['n2']);
	assert.is(net.peers.views().get('n2')?.digestDiffers, true);
	net.update({ digest: 8n });
	assert.equal(net.peers.differing(), []);
	net.run(6000);
	assert.equal(net.peers.differing(), ['n3']);
	net.other(3).digest = 8n;
	net.run(1000);
	assert.equal(net.peers.differing(), []);
});

test('DSR is proven by a third node where such packets get through', () => {
	const net = new Network(3);
	net.run(1000);
	assert.is(net.other(2).spoofed, 0, 'nobody wants to know');
	net.update({ wantsDsr: true });
	const took = net.until('DSR to be proven', () => net.peers.dsrProven().size === 2);
	assert.ok(took < 3000, `${took} ms`);
	assert.equal([...net.peers.dsrProven()].sort(), ['10.0.0.2', '10.0.0.3']);
	assert.ok(net.changes.every((c) => c.dsr));
	net.changes.length = 0;
	net.run(120_000);
	assert.equal(net.changes, []);
	net.update({ wantsDsr: false });
	assert.is(net.peers.dsrProven().size, 0);
	assert.equal(net.changes, [{ down: [], up: [], dsr: true }]);
});

test('DSR is never believed where such packets are swallowed, and given up where they begin to be', () => {
	const net = new Network(3);
	net.letsSpoofed = false;
	net.update({ wantsDsr: true });
	net.run(120_000);
	assert.is(net.peers.dsrProven().size, 0);
	assert.equal(net.changes, []);
	net.letsSpoofed = true;
	assert.ok(net.until('DSR to be proven', () => net.peers.dsrProven().size === 2) < 40_000);
	net.run(30_000);
	net.letsSpoofed = false;
	const took = net.until('DSR to be given up', () => net.peers.dsrProven().size === 0);
	assert.ok(took < DSR_AGAIN_MS * 1.1 + 3000, `${took} ms`);
});

test('a silent third node says nothing about DSR', () => {
	const net = new Network(3);
	net.update({ wantsDsr: true });
	net.until('DSR to be proven', () => net.peers.dsrProven().size === 2);
	for (const does of ['direct', 'silent'] as const) {
		net.other(3).does = does;
		net.run(60_000);
		assert.equal([...net.peers.dsrProven()].sort(), ['10.0.0.2', '10.0.0.3'], does);
	}
	net.letsSpoofed = false;
	net.run(60_000);
	assert.is(net.peers.dsrProven().size, 2, 'no third node is left to ask');
	net.other(3).does = 'answer';
	net.until('DSR to be given up', () => net.peers.dsrProven().size === 0);
});

test('two nodes have no third: DSR stays unproven', () => {
	const net = new Network(2);
	net.update({ wantsDsr: true });
	net.run(60_000);
	assert.is(net.peers.dsrProven().size, 0);
	assert.is(net.other(2).spoofed, 0);
});

test('answers that nobody asked for, or that guess the nonce, are ignored', () => {
	let now = 1000;
	const from = ip4Number('10.0.0.2');
	const foreign = Buffer.from(encodeProbe(VNI, { high: 1, low: 1 }));
	foreign.writeUInt16BE(0x88b6, 20);
	let guessed = Buffer.alloc(0);
	let right = Buffer.alloc(0);
	let honest = false;
	const socket: ProbeSocket = {
		port: 40_000,
		nowMs: () => now,
		send: (list) => {
			right = Buffer.from(list[0].payload);
			right.writeUInt16BE(0x88b6, 20);
			guessed = Buffer.from(right);
			guessed.writeUInt32LE((right.readUInt32LE(26) ^ 1) >>> 0, 26);
			return new Map();
		},
		sendFrom: () => 0,
		receive: () => [
			{ from, port: PORT, payload: foreign, atMs: 0 },
			{ from, port: PORT, payload: new Uint8Array(0), atMs: 0 },
			{ from: ip4Number('10.9.9.9'), port: PORT, payload: right, atMs: 0 },
			{ from, port: PORT, payload: guessed, atMs: 0 },
			{ from, port: PORT + 1, payload: right, atMs: 0 },
			...(honest ? [{ from, port: PORT, payload: right, atMs: now }] : []),
		],
		errors: () => [{ to: ip4Number('10.9.9.9'), errno: 111, icmp: true }],
		close: () => undefined,
	};
	const peers = new Peers({ open: () => socket, now: () => now, random: () => 0.5 });
	peers.update({
		...{ self: 'n1', vtep: '10.0.0.1', vni: VNI, vxlanPort: PORT, digest: 7n, wantsDsr: false },
		nodes: [{ name: 'n2', address: '10.0.0.2' }],
	});
	for (let i = 0; i < 100; i++, now += TICK) peers.tick();
	assert.equal([...peers.downNodes], ['n2']);
	honest = true;
	for (let i = 0; i < 100; i++, now += TICK) peers.tick();
	assert.equal([...peers.downNodes], []);
});

test('a thousand nodes: one that dies is down in under a second, and no other', () => {
	const net = new Network(1000);
	net.run(3000);
	net.other(777).does = 'silent';
	const took = net.until('n777 to be down', () => net.down.length > 0);
	assert.ok(took < 950, `${took} ms`);
	assert.equal(net.down, ['n777']);
	const probes = [...net.others.values()].reduce((n, o) => n + o.probes, 0);
	net.run(10_000);
	const rate = ([...net.others.values()].reduce((n, o) => n + o.probes, 0) - probes) / 10;
	assert.ok(rate < 3000, `${rate} probes a second`);
	assert.equal(net.down, ['n777']);
});

test.run();
