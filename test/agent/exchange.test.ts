/*
 * Keys of encrypted networks: messages, derivation, and nodes that agree on keys over a network that loses, doubles, delays and
 * is read and replayed by an attacker. Time is a number, the kernel a pair of maps.
 */
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type EspKernel, Exchange, type Session } from '../../src/agent/exchange.js';
import {
	decodeMessage,
	deriveKey,
	type EspKey,
	encodeMessage,
	keyPairOf,
	MESSAGE_BYTES,
	messageKey,
	NO_KEY,
	newKeyPair,
	offers,
} from '../../src/agent/handshake.js';

const secret = Buffer.from('a secret of the cluster, long enough to be one');
const A = '192.168.78.1';
const B = '192.168.78.2';
const C = '192.168.78.10';

const handshake = suite('handshake');

handshake('a message is read by who has the secret, and by nobody else, nor when a bit of it is another', () => {
	const key = messageKey(secret);
	const m = { type: 'answer', from: A, to: C, a: newKeyPair().publicKey, b: newKeyPair().publicKey } as const;
	const bytes = encodeMessage(m, key);
	assert.is(bytes.length, MESSAGE_BYTES);
	assert.equal(decodeMessage(bytes, key), m);
	assert.is(decodeMessage(bytes, messageKey(Buffer.from('another secret of another cluster, as long'))), undefined);
	for (let bit = 0; bit < bytes.length * 8; bit += 7) {
		const bent = Buffer.from(bytes);
		bent[bit >> 3] ^= 1 << (bit & 7);
		assert.is(decodeMessage(bent, key), undefined, `bit ${bit}`);
	}
	assert.is(decodeMessage(bytes.subarray(1), key), undefined);
	assert.is(decodeMessage(Buffer.alloc(0), key), undefined);
});

handshake('both nodes derive the same key for a direction, and another for the other direction', () => {
	const [mine, theirs] = [keyPairOf(Buffer.from('1')), keyPairOf(Buffer.from('2'))];
	const [a, b] = [mine.publicKey, theirs.publicKey];
	const here = { secret, mine, theirs: b, a, b };
	const there = { secret, mine: theirs, theirs: a, a, b };
	const out = deriveKey(here, A, B);
	assert.equal(deriveKey(there, A, B), out);
	assert.is(out.key.length, 36, 'AES-256 and four bytes of salt');
	const back = deriveKey(here, B, A);
	assert.equal(deriveKey(there, B, A), back);
	const others = [
		deriveKey(here, A, C),
		deriveKey({ ...here, secret: Buffer.from('another secret of another cluster, as long') }, A, B),
		deriveKey({ ...here, theirs: keyPairOf(Buffer.from('3')).publicKey }, A, B),
		deriveKey({ ...here, b: NO_KEY }, A, B),
	];
	for (const o of [back, ...others]) {
		assert.not.equal(o.key, out.key);
		assert.not.equal(o.spi, out.spi);
	}
	// Pinned: nodes of different versions must agree.
	assert.is(out.spi, SPI_OF_THE_EXAMPLE);
	assert.is(out.key.subarray(0, 8).toString('hex'), KEY_OF_THE_EXAMPLE);
});
const SPI_OF_THE_EXAMPLE = 3458257863;
const KEY_OF_THE_EXAMPLE = '866fcd4466b5b179';

handshake('a point that yields no secret is refused', () => {
	const mine = newKeyPair();
	assert.throws(() => deriveKey({ secret, mine, theirs: NO_KEY, a: mine.publicKey, b: NO_KEY }, A, B));
});

handshake('the lower address makes the offers, by number and not by text', () => {
	assert.ok(offers(B, C) && !offers(C, B), '…2 is lower than …10');
	assert.ok(offers(A, B));
});
handshake.run();

/** mulberry32 */
function random(seed: number): () => number {
	let a = seed;
	return () => {
		a = (a + 0x6d2b79f5) | 0;
		let t = Math.imul(a ^ (a >>> 15), 1 | a);
		t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
		return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
	};
}

const INTERVAL = 60_000;
const OVERLAP = 5000;
const STEP = 20;

interface Host {
	readonly address: string;
	/** Its clock is wrong by, ms. */
	skew: number;
	/** Of its kernel, by `peer spi`. */
	readonly accepts: Map<string, string>;
	/** By peer: under which key packets leave. */
	readonly sends: Map<string, EspKey>;
	readonly associations: Map<string, string>;
	saved: readonly Session[];
	agent: Exchange | undefined;
	readonly wants: Map<string, boolean>;
	readonly errors: string[];
}

interface Faults {
	readonly loss: number;
	readonly doubled: number;
	readonly delayMs: number;
	readonly replayed: number;
	/** What a change of the kernel takes. */
	readonly kernelMs?: number;
}

/** Nodes, the network between them, and an attacker who has copies of everything. */
class World {
	now = 1_000_000;
	readonly hosts = new Map<string, Host>();
	readonly #onTheWay: { readonly at: number; readonly from: string; readonly to: string; readonly m: Buffer }[] = [];
	readonly #copies: { from: string; to: string; m: Buffer }[] = [];
	/** Keys that some association sent under, ever. */
	readonly used = new Set<string>();
	/** Ordered pairs that may have lost packets: one of them was switched off. */
	readonly excused = new Set<string>();
	sent = 0;
	lost: string[] = [];

	constructor(
		readonly addresses: readonly string[],
		readonly faults: Faults,
		readonly rnd: () => number,
	) {
		for (const address of addresses) {
			this.hosts.set(address, {
				address,
				skew: 0,
				accepts: new Map(),
				sends: new Map(),
				associations: new Map(),
				saved: [],
				agent: undefined,
				wants: new Map(addresses.filter((a) => a !== address).map((a) => [a, true])),
				errors: [],
			});
		}
	}

	host(address: string): Host {
		return this.hosts.get(address) as Host;
	}

	readonly #changes: { readonly at: number; readonly done: () => void }[] = [];
	#change(): Promise<void> {
		const ms = this.faults.kernelMs ?? 0;
		return ms === 0
			? Promise.resolve()
			: new Promise((done) => this.#changes.push({ at: this.now + this.rnd() * ms, done }));
	}

	#kernel(h: Host): EspKernel {
		return {
			accept: async (peer, k) => {
				await this.#change();
				const name = `${peer} ${k.spi}`;
				if (h.accepts.has(name)) throw new Error('File exists');
				h.accepts.set(name, k.key.toString('hex'));
			},
			use: async (peer, k) => {
				await this.#change();
				const key = k.key.toString('hex');
				if (this.used.has(key)) throw new Error(`${h.address} sends under a key for the second time`);
				this.used.add(key);
				h.associations.set(`${peer} ${k.spi}`, key);
				h.sends.set(peer, k);
			},
			drop: async (peer, sas) => {
				if (sas.in !== undefined) h.accepts.delete(`${peer} ${sas.in}`);
				if (sas.out !== undefined) {
					h.associations.delete(`${peer} ${sas.out}`);
					if (h.sends.get(peer)?.spi === sas.out) h.sends.delete(peer);
				}
			},
			close: async (peer) => {
				h.sends.delete(peer);
			},
		};
	}

	/** Starts an agent, on what the kernel and the state file have of the one before. */
	start(address: string): void {
		const h = this.host(address);
		const kept = h.saved.filter(
			(s) => h.accepts.has(`${s.peer} ${s.spiIn}`) && h.associations.has(`${s.peer} ${s.spiOut}`),
		);
		const split = (name: string) => ({ peer: name.split(' ')[0], spi: Number(name.split(' ')[1]) });
		const rest = [
			...[...h.accepts.keys()].map(split).map(({ peer, spi }) => ({ peer, in: spi })),
			...[...h.associations.keys()].map(split).map(({ peer, spi }) => ({ peer, out: spi })),
		].filter((r) => !kept.some((s) => s.peer === r.peer && ('in' in r ? s.spiIn === r.in : s.spiOut === r.out)));
		h.agent = new Exchange(
			{
				self: address,
				secret,
				intervalMs: INTERVAL,
				overlapMs: OVERLAP,
				now: () => this.now + h.skew,
				send: (to, m) => this.#send(address, to, m),
				kernel: this.#kernel(h),
				onChange: (s) => {
					h.saved = s;
				},
				onError: (e) => h.errors.push(e),
			},
			kept,
			rest,
		);
		h.agent.update(h.wants);
	}

	async stop(address: string): Promise<void> {
		const h = this.host(address);
		const { agent } = h;
		h.agent = undefined;
		for (const c of this.#changes.splice(0)) c.done();
		await agent?.close();
	}

	/** The kernel's memory is gone, and so is /run. */
	async reboot(address: string): Promise<void> {
		await this.stop(address);
		const h = this.host(address);
		h.accepts.clear();
		h.associations.clear();
		h.sends.clear();
		h.saved = [];
	}

	#send(from: string, to: string, m: Buffer): void {
		this.#copies.push({ from, to, m });
		for (let i = this.rnd() < this.faults.doubled ? 2 : 1; i > 0; i--)
			if (this.rnd() >= this.faults.loss)
				this.#onTheWay.push({ at: this.now + this.rnd() * this.faults.delayMs, from, to, m });
	}

	/** One packet each way between all that send at all: it must arrive. */
	#packets(): void {
		for (const h of this.hosts.values())
			for (const [peer, k] of h.sends) {
				this.sent++;
				if (this.host(peer).accepts.get(`${h.address} ${k.spi}`) !== k.key.toString('hex'))
					this.lost.push(`${h.address} > ${peer} at ${this.now}`);
			}
	}

	async run(ms: number): Promise<void> {
		for (const end = this.now + ms; this.now < end; this.now += STEP) {
			if (this.#copies.length > 0 && this.rnd() < this.faults.replayed) {
				const c = this.#copies[Math.floor(this.rnd() * this.#copies.length)];
				this.#onTheWay.push({ at: this.now, ...c });
			}
			const due = this.#onTheWay.filter((m) => m.at <= this.now);
			for (const m of due) {
				this.#onTheWay.splice(this.#onTheWay.indexOf(m), 1);
				this.host(m.to).agent?.receive(m.m, m.from);
			}
			for (const h of this.hosts.values()) h.agent?.tick();
			for (const c of this.#changes.filter((x) => x.at <= this.now)) {
				this.#changes.splice(this.#changes.indexOf(c), 1);
				c.done();
			}
			await new Promise((r) => setImmediate(r));
			this.#packets();
		}
	}

	/** Everybody who wants to can send to everybody. */
	complete(): boolean {
		return [...this.hosts.values()].every((h) => [...h.wants].every(([peer, w]) => !w || h.sends.has(peer)));
	}
}

const QUIET: Faults = { loss: 0, doubled: 0, delayMs: 2, replayed: 0 };
const ROUGH: Faults = { loss: 0.3, doubled: 0.1, delayMs: 300, replayed: 0.1 };

async function started(addresses: readonly string[], faults: Faults, seed: number): Promise<World> {
	const w = new World(addresses, faults, random(seed));
	for (const a of addresses) w.start(a);
	return w;
}

const exchange = suite('exchange');

exchange('three nodes have keys with each other after a few round trips', async () => {
	const w = await started([A, B, C], QUIET, 1);
	await w.run(200);
	assert.ok(w.complete());
	assert.equal(w.lost, []);
	for (const h of w.hosts.values()) {
		assert.is(h.agent?.sessions.length, 2);
		assert.equal(h.agent?.problems(), { missing: [], stale: [], foreign: new Set() });
	}
});

exchange('keys change every interval, no packet is lost, and the old ones go', async () => {
	const w = await started([A, B], QUIET, 2);
	await w.run(INTERVAL * 5.5);
	assert.equal(w.lost, []);
	assert.is(w.used.size, 2 * 6, 'one key each way at the start and after each interval');
	for (const h of w.hosts.values()) assert.equal([h.accepts.size, h.associations.size], [1, 1]);
});

exchange(
	'whatever the network and an attacker with copies do: what is sent is accepted, and no key is used twice',
	async () => {
		await fc.assert(
			fc.asyncProperty(
				fc.integer(),
				fc.array(fc.integer({ min: -300_000, max: 300_000 }), { minLength: 3, maxLength: 3 }),
				async (seed, skews) => {
					const w = new World([A, B, C], ROUGH, random(seed));
					for (const [i, h] of [...w.hosts.values()].entries()) h.skew = skews[i];
					for (const h of w.hosts.keys()) w.start(h);
					await w.run(INTERVAL * 3);
					// A clock is set right while it runs.
					w.host(A).skew = 0;
					await w.run(INTERVAL * 3);
					assert.ok(w.complete());
					assert.equal(w.lost, []);
					assert.ok(w.used.size >= 6 * 4, `${w.used.size} keys in six intervals`);
					for (const h of w.hosts.values()) assert.equal(h.errors, []);
				},
			),
			{ numRuns: 6, includeErrorInReport: true },
		);
	},
);

exchange('a machine whose kernel takes seconds for a change agrees on keys once, not again and again', async () => {
	await fc.assert(
		fc.asyncProperty(fc.integer(), async (seed) => {
			const w = await started([A, B, C], { ...QUIET, delayMs: 500, kernelMs: 2000 }, seed);
			await w.run(30_000);
			assert.ok(w.complete());
			assert.ok(w.used.size <= 12, `${w.used.size} keys of 6`);
			await w.run(INTERVAL * 3);
			assert.equal(w.lost, []);
		}),
		{ numRuns: 6, includeErrorInReport: true },
	);
});

exchange('agents that stop and start leave the keys as they are; while one is away the old ones stay', async () => {
	await fc.assert(
		fc.asyncProperty(fc.integer(), async (seed) => {
			const rnd = random(seed);
			const w = await started([A, B], { ...ROUGH, replayed: 0 }, seed);
			await w.run(10_000);
			assert.ok(w.complete());
			for (let i = 0; i < 4; i++) {
				const who = rnd() < 0.5 ? A : B;
				// Between a change and its confirmation an agent that dies may cost packets: not here.
				await w.stop(who);
				await w.run(rnd() * INTERVAL * 2);
				w.start(who);
				await w.run(20_000);
				assert.ok(w.complete());
			}
			for (const h of w.hosts.values()) assert.equal(h.errors, []);
			w.lost = [];
			await w.run(INTERVAL * 2);
			assert.equal(w.lost, []);
		}),
		{ numRuns: 6, includeErrorInReport: true },
	);
});

exchange('a node that was switched off has new keys within seconds, and old packets are no use', async () => {
	const w = await started([A, B], QUIET, 5);
	await w.run(1000);
	for (const who of [A, B, A]) {
		const before = [...w.host(A).accepts.values(), ...w.host(B).accepts.values()];
		await w.reboot(who);
		w.start(who);
		await w.run(2500);
		assert.ok(w.complete(), who);
		w.lost = [];
		await w.run(OVERLAP + 1000);
		assert.equal(w.lost, []);
		for (const key of [...w.host(A).accepts.values(), ...w.host(B).accepts.values()])
			assert.not(before.includes(key), 'a key of before');
	}
});

exchange('keys that vanish from the kernel are made anew', async () => {
	const w = await started([A, B], QUIET, 6);
	await w.run(1000);
	for (const who of [A, B]) {
		const h = w.host(who);
		h.accepts.clear();
		h.associations.clear();
		h.sends.clear();
		h.agent?.verify((spi) => [...h.accepts.keys(), ...h.associations.keys()].some((n) => n.endsWith(` ${spi}`)));
		await w.run(2500);
		assert.ok(w.complete(), who);
		assert.match(h.errors.join(), /gone from the kernel/);
		h.errors.length = 0;
	}
});

exchange('a node that wants none accepts keys, and who is no longer wanted has none', async () => {
	for (const [one, other] of [
		[A, B],
		[B, A],
	]) {
		const w = new World([A, B], QUIET, random(7));
		w.host(other).wants.set(one, false);
		w.start(A);
		w.start(B);
		await w.run(1000);
		assert.ok(w.host(one).sends.has(other) && w.host(other).accepts.size === 1, `${one} asked`);
		w.host(one).agent?.update(new Map([[other, false]]));
		await w.run(100);
		assert.equal([w.host(one).accepts.size, w.host(one).associations.size, w.host(one).sends.size], [0, 0, 0]);
		w.host(other).agent?.update(new Map());
		await w.run(100);
		assert.equal([w.host(other).accepts.size, w.host(other).associations.size], [0, 0]);
	}
});

exchange('messages of strangers, of other secrets, and one’s own sent back are refused and counted', async () => {
	const w = await started([A, B], QUIET, 8);
	const agent = w.host(A).agent as Exchange;
	const key = messageKey(secret);
	const m = { type: 'answer', from: B, to: A, a: newKeyPair().publicKey, b: newKeyPair().publicKey } as const;
	agent.receive(encodeMessage(m, messageKey(Buffer.from('x'.repeat(40)))), B);
	agent.receive(encodeMessage({ ...m, from: C }, key), C);
	agent.receive(encodeMessage(m, key), C);
	agent.receive(encodeMessage({ ...m, to: C }, key), B);
	agent.receive(encodeMessage({ ...m, type: 'offer' }, key), B);
	agent.receive(Buffer.from('hello'), B);
	assert.is(agent.counters.refused, 6);
	assert.equal(agent.problems().stale, [], 'who can write a sender’s address cannot make good keys look bad');
	await w.run(500);
	assert.ok(w.complete());
	// Keys are due, and the other’s agent comes back with another secret: packets go on under the old ones.
	await w.stop(B);
	w.now += INTERVAL;
	agent.receive(encodeMessage(m, messageKey(Buffer.from('x'.repeat(40)))), B);
	assert.equal(agent.problems(), { missing: [], stale: [B], foreign: new Set([B]) });
});

exchange('a kernel that takes no association is told of, and asked again with other keys', async () => {
	const w = new World([A, B], QUIET, random(9));
	w.start(A);
	w.start(B);
	const h = w.host(B);
	let refuse = true;
	const has = h.accepts.has.bind(h.accepts);
	h.accepts.has = (name) => refuse || has(name);
	await w.run(1500);
	assert.not(w.complete());
	assert.ok((h.agent as Exchange).counters.errors > 0);
	refuse = false;
	await w.run(4000);
	assert.ok(w.complete());
	// The same where only sending under them fails: the one that answers loses what it has accepted.
	const use = h.associations.set.bind(h.associations);
	h.associations.set = () => {
		h.associations.set = use;
		throw new Error('no memory');
	};
	await w.run(INTERVAL * 1.2);
	assert.match(h.errors.join(), /no memory/);
	w.lost = [];
	await w.run(INTERVAL);
	assert.ok(w.complete());
	assert.equal(w.lost, []);
});
exchange.run();
