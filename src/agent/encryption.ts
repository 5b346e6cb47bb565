/**
 * Encrypted overlay networks on this node: one xfrm interface, and for each other node that shares such a network a security
 * association in each direction. overlay_tc hands VXLAN to the interface, which lets nothing out but ESP (no policy, no
 * packet); what comes as ESP appears on it decrypted, where esp_tc takes it. docs/decisions/0035-encryption.md.
 *
 *	endpoint ── overlay_tc ── VXLAN ──► bl-esp ── ESP ──► uplink          (IP protocol 50, in BEET mode: one IP header)
 *	endpoint ◄── esp_tc ◄── VXLAN ──── bl-esp ◄── ESP ── uplink
 */
import { createSocket, type Socket } from 'node:dgram';
import { readFileSync, statSync } from 'node:fs';
import { BeelineError, codeOf, sentence } from '../errors.js';
import type { NetworkSpec } from '../mesh/types.js';
import { type EspKernel, Exchange, type ExchangeCounters, type Session } from './exchange.js';
import { json, type Run } from './exec.js';
import { type EspKey, MIN_SECRET_BYTES } from './handshake.js';

export const ESP_INTERFACE = 'bl-esp';
/** Ties associations and policies to the interface; also the request id by which ours are told from others'. */
const ID = 0xbee1;
/** Packets; several receive queues reorder. */
const REPLAY_WINDOW = 1024;
const TICK_MS = 100;
const MOST_COMMANDS = 4;
/** How often the kernel is asked whether it still has what it was given. */
const VERIFY_MS = 10_000;
const OVERLAP_MS = 60_000;
/** A kernel that could not may have been given its module. */
const PROBE_AGAIN_MS = 30_000;
/** New keys take a round trip: sooner nobody is told that some are missing. */
const QUIET_MS = 5000;
const SPEAK_MS = 1000;
/** One sentence names so many nodes, and counts the others. */
const MOST_NAMES = 3;

export interface EncryptionState {
	/** The interface, and what belongs to it, was made. */
	readonly up: boolean;
	readonly sessions: readonly Session[];
}

export const NO_ENCRYPTION_STATE: EncryptionState = { up: false, sessions: [] };

export interface EncryptionInput {
	/** Name of this node. */
	readonly self: string;
	readonly nodes: readonly { readonly name: string; readonly address: string }[];
	readonly networks: readonly NetworkSpec[];
	/** VNIs of networks that this node has endpoints on. */
	readonly attached: ReadonlySet<number>;
	/** False: the kernel's interfaces are as they were, and are not looked at. */
	readonly looks?: boolean;
}

/** Packets that IPsec of this network namespace dropped: ours, and others' where there are any. */
export interface DroppedPackets {
	readonly direction: 'in' | 'out';
	/** The kernel's name for it, as state_seq_error; or no_keys. */
	readonly reason: string;
	readonly packets: number;
}

export interface EncryptionMetrics extends ExchangeCounters {
	/** Nodes that keys are wanted with, by whether there are any. */
	readonly ready: number;
	readonly missing: number;
	/** Seconds since the oldest keys in use were made; 0: there are none. */
	readonly oldestSeconds: number;
	readonly dropped: readonly DroppedPackets[];
}

export interface EncryptionView {
	readonly interface: string;
	/** Nodes that there are keys with. */
	readonly ready: number;
	/** Names of nodes that keys are wanted with, and of those whose keys should have been renewed. */
	readonly missing: readonly string[];
	readonly stale: readonly string[];
	/** When the oldest keys in use were made; undefined: there are none. */
	readonly oldest?: Date;
	readonly intervalMs: number;
}

export interface EncryptionDeps {
	readonly run: Run;
	/** undefined: datapath.secretFile is not set. */
	readonly secret?: Uint8Array;
	readonly vxlanPort: number;
	/** UDP, for the agents' messages about keys. */
	readonly keyPort: number;
	readonly intervalMs: number;
	readonly state: () => EncryptionState;
	readonly save: (state: EncryptionState) => void;
	/** The program onto the interface, which is down until then. */
	readonly attach: (ifindex: number) => void;
	readonly log: (level: 'info' | 'warn' | 'error' | 'debug', text: string) => void;
	/** A file below /proc/net, of the network namespace that this process is in; empty where there is none. */
	readonly procNet?: (name: string) => string;
}

/**
 * The cluster's secret, without a line break at its end.
 * @throws BeelineError BAD_SECRET
 */
export function readSecret(file: string): Uint8Array {
	const refuse = (why: string): never => {
		throw new BeelineError('BAD_SECRET', `datapath.secretFile ${file}: ${why}`, { field: 'datapath.secretFile' });
	};
	let bytes = Buffer.alloc(0);
	try {
		const { mode } = statSync(file);
		if ((mode & 0o077) !== 0)
			refuse(`others than its owner may use it (mode ${(mode & 0o777).toString(8)}): chmod 600 ${file}`);
		bytes = readFileSync(file);
	} catch (e) {
		if (e instanceof BeelineError) throw e;
		refuse(codeOf(e) === 'ENOENT' ? 'it does not exist' : sentence(e));
	}
	let end = bytes.length;
	while (end > 0 && (bytes[end - 1] === 10 || bytes[end - 1] === 13)) end--;
	if (end < MIN_SECRET_BYTES)
		refuse(`${end} bytes are too few: expected ${MIN_SECRET_BYTES} at least, such as of openssl rand -base64 48`);
	return bytes.subarray(0, end);
}

function readProcNet(name: string): string {
	try {
		return readFileSync(`/proc/net/${name}`, 'utf8');
	} catch {
		return '';
	}
}

/** Keys are in what `ip` is told, so they might be in what it complains about. */
const redact = (e: unknown): string => sentence(e).replace(/0x[0-9a-f]{16,}/gi, '(key)');

/**
 * Whether this kernel can encrypt, tried out in a namespace that goes at once.
 * @returns why it cannot
 */
export async function whyNoEsp(run: Run): Promise<string | undefined> {
	const attempt = (lines: string) => run('unshare', ['--net', 'ip', '-batch', '-'], `${lines}\n`);
	try {
		await attempt(
			`xfrm state add src 127.0.0.1 dst 127.0.0.1 proto esp spi 0x1000 mode beet flag esn replay-window 64 aead rfc4106(gcm(aes)) 0x${'00'.repeat(36)} 128 sel src 127.0.0.1/32 dst 127.0.0.1/32`,
		);
	} catch (e) {
		if (codeOf(e) === 'NO_COMMAND') return redact(e);
		return `this kernel has no IPsec ESP (${reason(e)}): boot one with CONFIG_XFRM_USER, CONFIG_INET_ESP and CONFIG_CRYPTO_GCM, as distributions' kernels have`;
	}
	try {
		await attempt(`link add ${ESP_INTERFACE} type xfrm if_id ${ID}`);
	} catch (e) {
		return `this kernel has no xfrm interfaces (${reason(e)}): boot one with CONFIG_XFRM_INTERFACE, as distributions' kernels have`;
	}
	return undefined;
}

/** What the kernel said, without the command. */
function reason(e: unknown): string {
	const text = redact(e);
	return text.slice(text.lastIndexOf(': ') + 2).replace(/\.$/, '');
}

interface Sa {
	readonly src: string;
	readonly dst: string;
	readonly spi: number;
}

/** `ip xfrm state list nokeys` */
export function parseStates(text: string): Sa[] {
	return [...text.matchAll(/^src (\S+) dst (\S+)\n\s+proto esp spi (0x[0-9a-f]+)/gm)].map(([, src, dst, spi]) => ({
		src,
		dst,
		spi: Number(spi),
	}));
}

/** Destinations of our policies in `ip xfrm policy list`. */
export function parsePolicies(text: string): { src: string; dst: string; port: number }[] {
	return text.split(/^(?=src )/m).flatMap((block) => {
		const m = /^src (\S+?)(?:\/32)? dst (\S+?)(?:\/32)? proto udp dport (\d+)/.exec(block);
		const id = /\bif_id (0x[0-9a-f]+|\d+)/.exec(block)?.[1];
		return m === null || Number(id) !== ID ? [] : [{ src: m[1], dst: m[2], port: Number(m[3]) }];
	});
}

const hex = (n: number) => `0x${n.toString(16)}`;
const policy = (self: string, peer: string, port: number) =>
	`src ${self}/32 dst ${peer}/32 proto udp dport ${port} dir out if_id ${ID}`;

/** /proc/net/xfrm_stat: lines as XfrmInStateSeqError 3. */
export function parseXfrmStat(text: string): DroppedPackets[] {
	return [...text.matchAll(/^Xfrm(\w+)\s+(\d+)$/gm)].map(([, name, packets]) => {
		const [, side, rest] = /^(In|Out)?(\w+)$/.exec(name) as unknown as [string, string | undefined, string];
		return {
			direction: side === 'In' ? 'in' : 'out',
			reason: rest.replaceAll(/(?<!^)([A-Z])/g, '_$1').toLowerCase(),
			packets: Number(packets),
		};
	});
}

/** Packets that the interface had no policy for, of /proc/net/dev: it counts them as without a carrier. */
export function parseNoKeys(text: string): number {
	const columns = new RegExp(`^\\s*${ESP_INTERFACE}:\\s*(.*)$`, 'm').exec(text)?.[1]?.trim().split(/\s+/);
	return Number(columns?.[14] ?? 0);
}

/** At most `most` at a time: a node of a thousand has as many keys to make when it starts. */
function limiter(most: number): <T>(work: () => Promise<T>) => Promise<T> {
	const waiting: (() => void)[] = [];
	let running = 0;
	return async (work) => {
		if (running >= most) await new Promise<void>((go) => waiting.push(go));
		running++;
		try {
			return await work();
		} finally {
			running--;
			waiting.shift()?.();
		}
	};
}

/** Associations and policies of one node, by iproute2. Keys go to its standard input: arguments are there for all to see. */
function espKernel(run: Run, self: string, vxlanPort: number): EspKernel {
	const limited = limiter(MOST_COMMANDS);
	const batch = async (lines: readonly string[]) => {
		try {
			await limited(() => run('ip', ['-batch', '-'], `${lines.join('\n')}\n`));
		} catch (e) {
			throw new BeelineError(codeOf(e), redact(e));
		}
	};
	const add = (src: string, dst: string, k: EspKey) =>
		`xfrm state add src ${src} dst ${dst} proto esp spi ${hex(k.spi)} reqid ${ID} mode beet if_id ${ID} replay-window ${REPLAY_WINDOW} flag esn aead rfc4106(gcm(aes)) 0x${k.key.toString('hex')} 128 sel src ${src}/32 dst ${dst}/32`;
	const del = async (src: string, dst: string, spi: number) => {
		await batch([`xfrm state del src ${src} dst ${dst} proto esp spi ${hex(spi)}`]).catch((e: Error) => {
			if (!/No such process/.test(e.message)) throw e;
		});
	};
	return {
		accept: (peer, key) => batch([add(peer, self, key)]),
		use: (peer, key) =>
			batch([
				add(self, peer, key),
				`xfrm policy update ${policy(self, peer, vxlanPort)} tmpl src ${self} dst ${peer} proto esp spi ${hex(key.spi)} reqid ${ID} mode beet`,
			]),
		async drop(peer, sas) {
			if (sas.in !== undefined) await del(peer, self, sas.in);
			if (sas.out !== undefined) await del(self, peer, sas.out);
		},
		async close(peer) {
			await batch([`xfrm policy del ${policy(self, peer, vxlanPort)}`]).catch((e: Error) => {
				if (!/No such (file|process)/.test(e.message)) throw e;
			});
		},
	};
}

/** The interface, associations and policies. Needs no agent. */
export async function removeEncryption(run: Run): Promise<void> {
	await run('ip', ['link', 'del', ESP_INTERFACE]).catch(() => '');
	await run('ip', ['xfrm', 'state', 'deleteall', 'reqid', `${ID}`]).catch(() => '');
	for (const p of parsePolicies(await run('ip', ['xfrm', 'policy', 'list', 'dir', 'out']).catch(() => '')))
		await run('ip', ['xfrm', 'policy', 'del', ...policy(p.src, p.dst, p.port).split(' ')]).catch(() => '');
}

/** Nodes that share an encrypted network with this one → whether this node has an endpoint on such a network. */
export function peersOf(input: EncryptionInput): ReadonlyMap<string, boolean> {
	const address = new Map(input.nodes.map((n) => [n.name, n.address]));
	const out = new Map<string, boolean>();
	for (const n of input.networks) {
		if (n.driver !== 'beeline' || !n.options.encrypted) continue;
		const members = new Set([...Object.keys(n.options.slices ?? {}), ...(n.endpoints ?? []).map((e) => e.node)]);
		if (!members.has(input.self) && !input.attached.has(n.vni)) continue;
		for (const name of members) {
			const a = address.get(name);
			if (a === undefined || name === input.self) continue;
			out.set(a, (out.get(a) ?? false) || input.attached.has(n.vni));
		}
	}
	return out;
}

interface Active {
	readonly self: string;
	readonly ifindex: number;
	readonly socket: Socket;
	readonly exchange: Exchange;
	readonly ticking: NodeJS.Timeout;
	readonly verifying: NodeJS.Timeout;
	readonly speaking: NodeJS.Timeout;
	readonly since: number;
}

export class Encryption {
	readonly #deps: EncryptionDeps;
	#active: Active | undefined;
	/** Why the kernel cannot, and when that was found out. */
	#probed: { readonly why: string | undefined; readonly at: number } | undefined;
	#failure: string | undefined;
	/** Some network of this node is encrypted. */
	#needed = false;
	/** Address → name. */
	#names: ReadonlyMap<string, string> = new Map();
	/** What the log was told: what is wrong with which node, or the sentence. */
	#told: ReadonlySet<string> = new Set();

	constructor(deps: EncryptionDeps) {
		this.#deps = deps;
	}

	/** Why this node cannot be on an encrypted network; undefined: it can. */
	async whyNot(): Promise<string | undefined> {
		if (this.#deps.secret === undefined)
			return 'datapath.secretFile is not set: write the same secret of 32 bytes or more into a file on every node, and name it there';
		const { run } = this.#deps;
		if (this.#probed === undefined || (this.#probed.why !== undefined && Date.now() - this.#probed.at > PROBE_AGAIN_MS))
			this.#probed = { why: await whyNoEsp(run), at: Date.now() };
		return this.#probed.why;
	}

	/**
	 * Brings the kernel to what the networks ask for. Can be repeated.
	 * @returns the interface that encrypts, for the map `encryption`; 0: none, so that nothing of these networks leaves
	 */
	async update(input: EncryptionInput): Promise<number> {
		const peers = peersOf(input);
		this.#needed = peers.size > 0;
		this.#names = new Map(input.nodes.map((n) => [n.address, n.name]));
		const self = input.nodes.find((n) => n.name === input.self)?.address;
		if (peers.size === 0 || self === undefined) {
			await this.#stop();
			return 0;
		}
		const why = await this.whyNot();
		if (why !== undefined) {
			this.#failure = `they are closed, nothing of them leaves or enters this node: ${why}`;
			this.#speak();
			return 0;
		}
		if (this.#active !== undefined && this.#active.self !== self) await this.#stop();
		let ifindex = 0;
		try {
			ifindex = this.#active !== undefined && input.looks === false ? this.#active.ifindex : await this.#device();
			if (this.#active !== undefined && this.#active.ifindex !== ifindex) await this.#leave();
			this.#active ??= await this.#start(self, ifindex);
		} catch (e) {
			// Keys that the kernel has serve on: what cannot be is that a packet leaves without.
			this.#failure = `${ifindex === 0 ? 'they are closed, nothing of them leaves or enters this node' : 'keys are not renewed'}: ${redact(e)}`;
			this.#speak();
			return ifindex;
		}
		this.#failure = undefined;
		this.#active.exchange.update(peers);
		return ifindex;
	}

	warnings(): string[] {
		return this.#complaints().map((c) => c.text);
	}

	/** `about`: what is wrong with which node. */
	#complaints(): { readonly text: string; readonly about: readonly string[] }[] {
		if (!this.#needed) return [];
		if (this.#failure !== undefined) {
			const text = `encrypted networks: ${this.#failure}`;
			return [{ text, about: [text] }];
		}
		if (this.#active === undefined || Date.now() - this.#active.since < QUIET_MS) return [];
		const { missing, stale, foreign } = this.#active.exchange.problems();
		const out: { text: string; about: string[] }[] = [];
		const complain = (addresses: readonly string[], kind: string, text: (who: string) => string) => {
			if (addresses.length === 0) return;
			const named = addresses.slice(0, MOST_NAMES).map((a) => `${this.#name(a)} (${a})`);
			const more = addresses.length - named.length;
			const who = `${named.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
			out.push({ text: text(who), about: addresses.map((a) => `${kind} ${a}`) });
		};
		const [theirs, ours] = [(a: string) => foreign.has(a), (a: string) => !foreign.has(a)];
		const other = "the secret in datapath.secretFile there is another than this node's";
		const none = 'so nothing of encrypted networks goes there or comes from there';
		complain(missing.filter(theirs), 'another secret', (who) => `no keys with ${who}, ${none}: ${other}`);
		complain(
			missing.filter(ours),
			'no keys',
			(who) =>
				`no keys with ${who}, ${none}: the agent there is away, its datapath.secretFile is another, its kernel has no ESP, or UDP ${this.#deps.keyPort} is closed between the nodes`,
		);
		complain(stale.filter(theirs), 'another secret', (who) => `the keys with ${who} are not renewed: ${other}`);
		complain(
			stale.filter(ours),
			'old keys',
			(who) => `the keys with ${who} are older than they should be: the agent there does not answer`,
		);
		return out;
	}

	#name(address: string): string {
		return this.#names.get(address) ?? address;
	}

	/** The log is told of each thing once, and when it is over. */
	#speak(): void {
		const complaints = this.#complaints();
		for (const c of complaints) if (c.about.some((x) => !this.#told.has(x))) this.#deps.log('warn', c.text);
		const now = new Set(complaints.flatMap((c) => c.about));
		const sessions = new Set(this.#active?.exchange.sessions.map((s) => s.peer));
		const wrong = new Set([...now].map((x) => x.slice(x.lastIndexOf(' ') + 1)));
		const over = [...this.#told].map((x) => x.slice(x.lastIndexOf(' ') + 1));
		for (const address of new Set(over))
			if (!wrong.has(address) && sessions.has(address))
				this.#deps.log('info', `there are new keys with ${this.#name(address)} (${address})`);
		this.#told = now;
	}

	metrics(): EncryptionMetrics | undefined {
		const exchange = this.#active?.exchange;
		if (exchange === undefined) return undefined;
		const { missing } = exchange.problems();
		const { sessions } = exchange;
		const procNet = this.#deps.procNet ?? readProcNet;
		const oldest = Math.min(...sessions.map((s) => s.at));
		return {
			...exchange.counters,
			ready: sessions.length,
			missing: missing.length,
			oldestSeconds: sessions.length === 0 ? 0 : Math.max(0, (Date.now() - oldest) / 1000),
			dropped: [
				{ direction: 'out', reason: 'no_keys', packets: parseNoKeys(procNet('dev')) },
				...parseXfrmStat(procNet('xfrm_stat')),
			],
		};
	}

	/** undefined: no network of this node is encrypted, or it cannot (warnings() says why). */
	view(): EncryptionView | undefined {
		const exchange = this.#active?.exchange;
		if (exchange === undefined) return undefined;
		const { missing, stale } = exchange.problems();
		const { sessions } = exchange;
		return {
			interface: ESP_INTERFACE,
			ready: sessions.length,
			missing: missing.map((a) => this.#name(a)),
			stale: stale.map((a) => this.#name(a)),
			...(sessions.length === 0 ? {} : { oldest: new Date(Math.min(...sessions.map((s) => s.at))) }),
			intervalMs: this.#deps.intervalMs,
		};
	}

	/** Lets go of the socket. Associations stay: packets go on. */
	async close(): Promise<void> {
		await this.#leave();
	}

	/** @returns its ifindex; it is up, with the program on it */
	async #device(): Promise<number> {
		const { run, attach } = this.#deps;
		const look = async () =>
			json<{ ifindex: number; flags: string[]; mtu: number; linkinfo?: { info_kind?: string } }>(
				await run('ip', ['-d', '-j', 'link', 'show', 'dev', ESP_INTERFACE]).catch(() => ''),
			)[0];
		let there = await look();
		if (there !== undefined && there.linkinfo?.info_kind !== 'xfrm')
			throw new BeelineError('TAKEN', `${ESP_INTERFACE} is no xfrm interface of ours: rename or remove it`);
		if (there === undefined) {
			this.#deps.save({ ...this.#deps.state(), up: true });
			await run('ip', ['link', 'add', ESP_INTERFACE, 'type', 'xfrm', 'if_id', `${ID}`]);
			there = await look();
			if (there === undefined) throw new BeelineError('GONE', `${ESP_INTERFACE} went as soon as it was made`);
		}
		if (!there.flags.includes('UP')) {
			attach(there.ifindex);
			// Its own MTU binds nobody: what fits is worked out from the way to the node.
			await run('ip', ['link', 'set', ESP_INTERFACE, 'mtu', '65535']);
			await run('ip', ['link', 'set', ESP_INTERFACE, 'addrgenmode', 'none']).catch(() => '');
			await run('ip', ['link', 'set', ESP_INTERFACE, 'up']);
		} else if (this.#active === undefined) attach(there.ifindex);
		return there.ifindex;
	}

	async #start(self: string, ifindex: number): Promise<Active> {
		const { run, vxlanPort, keyPort, intervalMs, secret, log, save } = this.#deps;
		const sas = parseStates(await run('ip', ['xfrm', 'state', 'list', 'nokeys', 'reqid', `${ID}`]));
		const has = (spi: number, src: string, dst: string) =>
			sas.some((s) => s.spi === spi && s.src === src && s.dst === dst);
		const policies = new Set(
			parsePolicies(await run('ip', ['xfrm', 'policy', 'list', 'dir', 'out'])).map((p) => p.dst),
		);
		const sessions = this.#deps
			.state()
			.sessions.filter((s) => has(s.spiIn, s.peer, self) && has(s.spiOut, self, s.peer) && policies.has(s.peer));
		const known = new Set(sessions.flatMap((s) => [`${s.peer} ${s.spiIn}`, `${self} ${s.spiOut}`]));
		const rest = sas
			.filter((s) => !known.has(`${s.src} ${s.spi}`))
			.map((s) => (s.src === self ? { peer: s.dst, out: s.spi } : { peer: s.src, in: s.spi }));

		const socket = createSocket('udp4');
		await new Promise<void>((resolve, reject) => {
			socket.once('error', (e) =>
				reject(new BeelineError('NO_SOCKET', `UDP ${self}:${keyPort} (datapath.keyPort): ${sentence(e)}`)),
			);
			socket.bind({ address: self, port: keyPort }, () => resolve());
		});
		socket.removeAllListeners('error');
		socket.on('error', (e) => log('warn', `keys of encrypted networks: ${sentence(e)}`));
		socket.unref();
		const exchange = new Exchange(
			{
				self,
				secret: secret as Uint8Array,
				intervalMs,
				overlapMs: Math.min(OVERLAP_MS, intervalMs),
				now: () => Date.now(),
				send: (peer, message) => socket.send(message, keyPort, peer, () => undefined),
				kernel: espKernel(run, self, vxlanPort),
				onChange: (list) => save({ up: true, sessions: list }),
				onError: (text) => log('error', text),
			},
			sessions,
			rest,
		);
		socket.on('message', (m, from) => exchange.receive(m, from.address));
		const ticking = setInterval(() => exchange.tick(), TICK_MS);
		const verifying = setInterval(() => {
			run('ip', ['xfrm', 'state', 'list', 'nokeys', 'reqid', `${ID}`]).then(
				(text) => {
					const spis = new Set(parseStates(text).map((s) => s.spi));
					exchange.verify((spi) => spis.has(spi));
				},
				(e) => log('warn', `keys of encrypted networks cannot be looked at: ${redact(e)}`),
			);
		}, VERIFY_MS);
		const speaking = setInterval(() => this.#speak(), SPEAK_MS);
		ticking.unref();
		verifying.unref();
		speaking.unref();
		log('info', `encrypted networks: ${ESP_INTERFACE} is up, keys are agreed on by UDP ${self}:${keyPort}`);
		return { self, ifindex, socket, exchange, ticking, verifying, speaking, since: Date.now() };
	}

	async #leave(): Promise<void> {
		const active = this.#active;
		if (active === undefined) return;
		this.#active = undefined;
		clearInterval(active.ticking);
		clearInterval(active.verifying);
		clearInterval(active.speaking);
		active.socket.close();
		await active.exchange.close();
	}

	/** No encrypted network is left. */
	async #stop(): Promise<void> {
		if (this.#active === undefined && !this.#deps.state().up) return;
		await this.#leave();
		await removeEncryption(this.#deps.run);
		this.#deps.save(NO_ENCRYPTION_STATE);
	}
}
