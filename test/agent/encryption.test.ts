/*
 * Encryption as an agent runs it, on kernels that write down what they are told: two nodes on loopback agree on keys over real sockets.
 */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
	Encryption,
	type EncryptionInput,
	type EncryptionState,
	NO_ENCRYPTION_STATE,
	parseNoKeys,
	parsePolicies,
	parseStates,
	parseXfrmStat,
	peersOf,
	readSecret,
	whyNoEsp,
} from '../../src/agent/encryption.js';
import type { Run } from '../../src/agent/exec.js';
import { BeelineError } from '../../src/errors.js';
import { innerMtu } from '../../src/mesh/subnets.js';
import type { NetworkSpec } from '../../src/mesh/types.js';
import { waitFor } from '../support/wait.js';

const test = suite('encryption');

const network = (name: string, vni: number, encrypted: boolean, nodes: readonly string[]): NetworkSpec =>
	({
		name,
		driver: 'beeline',
		subnet: '10.45.0.0/24',
		vni,
		attachable: true,
		options: { encrypted, slices: Object.fromEntries(nodes.map((n, i) => [n, `10.45.0.${i * 64}/26`])) },
	}) as unknown as NetworkSpec;
const NODES = [
	{ name: 'n1', address: '127.0.0.1' },
	{ name: 'n2', address: '127.0.0.2' },
	{ name: 'n3', address: '127.0.0.3' },
];
const input = (self: string, attached: readonly number[], networks = [network('secret', 5101, true, ['n1', 'n2'])]) =>
	({ self, nodes: NODES, networks, attached: new Set(attached) }) satisfies EncryptionInput;

/** A kernel that has ESP, and remembers. */
class Kernel {
	readonly arguments: string[] = [];
	readonly states = new Map<string, string>();
	readonly policies = new Map<string, string>();
	up = false;
	there = false;
	refuse: string | undefined;

	readonly run: Run = async (command, args, stdin) => {
		const line = [command, ...args].join(' ');
		this.arguments.push(line);
		if (command === 'unshare') {
			if (this.refuse !== undefined) throw new BeelineError('COMMAND_FAILED', `${line}: ${this.refuse}`);
			return '';
		}
		if (line.includes('link show'))
			return this.there
				? JSON.stringify([{ ifindex: 7, flags: this.up ? ['UP'] : [], mtu: 1500, linkinfo: { info_kind: 'xfrm' } }])
				: '';
		if (line.includes('link add')) this.there = true;
		if (line.includes('link del')) this.there = this.up = false;
		if (/link set \S+ up/.test(line)) this.up = true;
		if (line.includes('state deleteall')) this.states.clear();
		if (line.includes('state list')) return [...this.states.values()].join('');
		if (line.includes('policy list')) return [...this.policies.values()].join('');
		if (line.includes('policy del')) this.policies.delete(/dst (\S+)/.exec(line)?.[1] as string);
		for (const l of (stdin ?? '').trim().split('\n')) this.#command(l);
		return '';
	};

	#command(line: string): void {
		const at = (word: string) => new RegExp(` ${word} (\\S+)`).exec(line)?.[1] as string;
		const name = `${at('src')} ${at('dst')} ${at('spi')}`;
		if (line.startsWith('xfrm state add')) {
			assert.match(
				line,
				/ mode beet if_id 48865 replay-window 1024 flag esn aead rfc4106\(gcm\(aes\)\) 0x[0-9a-f]{72} 128 sel /,
			);
			this.states.set(name, `src ${at('src')} dst ${at('dst')}\n\tproto esp spi ${at('spi')} reqid 48865 mode beet\n`);
		}
		if (line.startsWith('xfrm state del')) this.states.delete(name);
		if (line.startsWith('xfrm policy update')) {
			const head = /src (\S+) dst (\S+) proto udp dport 4789/.exec(line)?.[0];
			this.policies.set(at('dst'), `${head} \n\tdir out priority 0 \n\tif_id 0xbee1\n`);
		}
		if (line.startsWith('xfrm policy del')) this.policies.delete(at('dst'));
	}
}

class Node {
	readonly kernel = new Kernel();
	readonly log: string[] = [];
	readonly attached: number[] = [];
	state: EncryptionState = NO_ENCRYPTION_STATE;
	encryption: Encryption;

	constructor(readonly secret: Uint8Array | undefined = Buffer.alloc(40, 's')) {
		this.encryption = this.start();
	}

	start(): Encryption {
		this.encryption = new Encryption({
			run: this.kernel.run,
			...(this.secret === undefined ? {} : { secret: this.secret }),
			vxlanPort: 4789,
			keyPort: 40_000 + (process.pid % 20_000),
			intervalMs: 12 * 3600_000,
			state: () => this.state,
			save: (s) => {
				this.state = s;
			},
			attach: (ifindex) => this.attached.push(ifindex),
			log: (_, text) => this.log.push(text),
		});
		return this.encryption;
	}
}

test('two nodes agree on keys; arguments, logs and state hold none; the last endpoint takes them along', async () => {
	const [one, two] = [new Node(), new Node()];
	assert.is(await one.encryption.update(input('n1', [5101])), 7);
	assert.is(await two.encryption.update(input('n2', [])), 7);
	assert.equal(one.attached, [7], 'the program is on the interface before it is up');
	await waitFor('keys', () => one.encryption.metrics()?.ready === 1 && two.encryption.metrics()?.ready === 1);
	assert.equal([...one.kernel.states.keys()].sort(), [...two.kernel.states.keys()].sort());
	assert.is(one.kernel.states.size, 2, 'one each way');
	assert.equal([...one.kernel.policies.keys()], ['127.0.0.2/32']);
	assert.equal(one.encryption.warnings(), []);
	for (const n of [one, two]) {
		const told = [...n.kernel.arguments, ...n.log, JSON.stringify(n.state)].join('\n');
		assert.not.match(told, /0x[0-9a-f]{20}|s{40}/);
	}

	// Another agent takes over what the kernel has.
	const before = [...one.kernel.states.keys()];
	await one.encryption.close();
	one.start();
	assert.is(await one.encryption.update(input('n1', [5101])), 7);
	assert.is(one.encryption.metrics()?.ready, 1);
	assert.equal([...one.kernel.states.keys()], before);

	await one.encryption.update(input('n1', []));
	await waitFor('no keys', () => one.kernel.states.size === 0 && one.kernel.policies.size === 0);
	await one.encryption.update(input('n1', [], []));
	assert.not(one.kernel.there);
	assert.equal(one.state, NO_ENCRYPTION_STATE);
	await one.encryption.close();
	await two.encryption.close();
});

test('a node with another secret is named, once in the log, and so is its return', async () => {
	const one = new Node();
	const two = new Node(Buffer.alloc(40, 't'));
	await one.encryption.update(input('n1', [5101]));
	await two.encryption.update(input('n2', [5101]));
	const said = () => one.log.filter((x) => /no keys/.test(x));
	await waitFor('the log to be told', () => said().length > 0, 10_000);
	assert.match(
		said().join(),
		/^no keys with n2 \(127\.0\.0\.2\), so nothing of encrypted networks goes there or comes from there: the secret in datapath\.secretFile there is another than this node's$/,
	);
	assert.equal(one.encryption.warnings(), said());
	await new Promise((r) => setTimeout(r, 2500));
	assert.is(said().length, 1, 'once');
	assert.ok((one.encryption.metrics()?.refused ?? 0) > 0);
	assert.equal(one.encryption.view()?.missing, ['n2']);
	assert.is(one.kernel.states.size, 0);
	await two.encryption.close();
	const right = new Node();
	await right.encryption.update(input('n2', [5101]));
	await waitFor('keys', () => one.log.some((x) => x === 'there are new keys with n2 (127.0.0.2)'), 10_000);
	assert.equal(one.encryption.warnings(), []);
	const view = one.encryption.view();
	assert.equal([view?.ready, view?.missing, view?.stale], [1, [], []]);
	assert.ok(Date.now() - (view?.oldest?.getTime() ?? 0) < 10_000);
	await one.encryption.close();
	await right.encryption.close();
});

test('what the kernel dropped is read from what it prints', () => {
	assert.equal(
		parseXfrmStat('XfrmInError             \t0\nXfrmInStateSeqError     \t3\nXfrmOutNoStates \t7\nXfrmFwdHdrError 1\n'),
		[
			{ direction: 'in', reason: 'error', packets: 0 },
			{ direction: 'in', reason: 'state_seq_error', packets: 3 },
			{ direction: 'out', reason: 'no_states', packets: 7 },
			{ direction: 'out', reason: 'fwd_hdr_error', packets: 1 },
		],
	);
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
bl-esp:    1000      10    0    0    0     0          0         0     2000      20   14   14    0     0      13          0
`;
	assert.is(parseNoKeys(dev), 13);
	assert.is(parseNoKeys(''), 0);
});

test('without a secret, or on a kernel that cannot, nothing is begun and the reason is one sentence', async () => {
	const none = new Node();
	none.encryption = new Encryption({ run: none.kernel.run, state: () => none.state } as never);
	assert.match((await none.encryption.whyNot()) as string, /^datapath.secretFile is not set: write the same secret/);
	const old = new Node();
	old.kernel.refuse = 'RTNETLINK answers: Protocol not supported';
	assert.is(await old.encryption.update(input('n1', [5101])), 0);
	assert.is(
		old.encryption.warnings().join(),
		'encrypted networks: they are closed, nothing of them leaves or enters this node: this kernel has no IPsec ESP (Protocol not supported): boot one with CONFIG_XFRM_USER, CONFIG_INET_ESP and CONFIG_CRYPTO_GCM, as distributions’ kernels have'.replace(
			'’',
			"'",
		),
	);
	assert.equal(old.kernel.arguments.length, 1, 'it was only asked');
	assert.is(await old.encryption.update(input('n1', [], [network('open', 5102, false, ['n1', 'n2'])])), 0);
	assert.equal(old.encryption.warnings(), [], 'who has no encrypted network is not told');
});

test('what ip complains of is repeated without keys', async () => {
	const text = await whyNoEsp(async () => {
		throw new BeelineError('COMMAND_FAILED', `Error: argument "0x${'ab'.repeat(36)}" is wrong: bad key`);
	});
	assert.match(text as string, /no IPsec ESP \(bad key\)/);
});

test('peers are the nodes of encrypted networks that this node is part of; wanted where it has an endpoint', () => {
	const networks = [
		network('a', 1, true, ['n1', 'n2']),
		network('b', 2, true, ['n2', 'n3']),
		network('c', 3, false, ['n1', 'n3']),
	];
	assert.equal(peersOf(input('n1', [], networks)), new Map([['127.0.0.2', false]]));
	assert.equal(peersOf(input('n1', [1, 3], networks)), new Map([['127.0.0.2', true]]));
	assert.equal(
		peersOf(input('n2', [2], networks)),
		new Map([
			['127.0.0.1', false],
			['127.0.0.3', true],
		]),
	);
	assert.equal(peersOf(input('n3', [3], networks)), new Map([['127.0.0.2', false]]));
});

test('what iproute2 prints is read', () => {
	assert.equal(
		parseStates(
			'src 192.168.78.1 dst 192.168.78.2\n\tproto esp spi 0x12937fc3 reqid 48865 mode beet\n\treplay-window 0 flag esn\n\tif_id 0xbee1\nsrc 192.168.78.2 dst 192.168.78.1\n\tproto esp spi 0x00000100 reqid 48865 mode beet\n',
		),
		[
			{ src: '192.168.78.1', dst: '192.168.78.2', spi: 0x12937fc3 },
			{ src: '192.168.78.2', dst: '192.168.78.1', spi: 256 },
		],
	);
	assert.equal(
		parsePolicies(
			'src 192.168.78.1/32 dst 192.168.78.2/32 proto udp dport 4789 \n\tdir out priority 0 ptype main \n\ttmpl src 192.168.78.1 dst 192.168.78.2\n\t\tproto esp spi 0x12937fc3 reqid 48865 mode beet\n\tif_id 0xbee1\nsrc 10.0.0.0/8 dst 10.1.0.0/16 proto udp dport 4789 \n\tdir out priority 0 \n',
		),
		[{ src: '192.168.78.1', dst: '192.168.78.2', port: 4789 }],
		'others’ policies are not ours',
	);
});

test('an endpoint’s MTU leaves room for what is sealed', () => {
	for (const [underlay, plain, sealed] of [
		[1500, 1450, 1408],
		[1501, 1451, 1408],
		[1504, 1454, 1412],
		[9000, 8950, 8908],
	])
		assert.equal([innerMtu(underlay, false), innerMtu(underlay, true)], [plain, sealed], `${underlay}`);
});

test('the secret is 32 bytes or more, without its line break, in a file that only its owner may read', () => {
	const dir = mkdtempSync(join(tmpdir(), `bl${process.pid}-`));
	try {
		const file = join(dir, 'secret');
		const refusal = (content: string, mode = 0o600): string => {
			writeFileSync(file, content);
			chmodSync(file, mode);
			try {
				return `${readSecret(file).length}`;
			} catch (e) {
				return (e as Error).message;
			}
		};
		assert.is(refusal(`${'x'.repeat(32)}\r\n`), '32');
		assert.match(refusal('x'.repeat(31)), /31 bytes are too few: expected 32 at least/);
		assert.match(refusal('x'.repeat(64), 0o604), /others than its owner may use it \(mode 604\): chmod 600/);
		rmSync(file);
		assert.throws(() => readSecret(file), /it does not exist/);
	} finally {
		rmSync(dir, { recursive: true });
	}
});

test.run();
