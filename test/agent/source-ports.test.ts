import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { conntrackSource, SourcePorts, type SourcePortsDeps, socketSource } from '../../src/agent/source-ports.js';
import { waitFor } from '../support/wait.js';

const test = suite('source ports');

const flow = (original: string, reply: string, protocol = 'tcp      6 431999 ESTABLISHED') =>
	`ipv4     2 ${protocol} ${original} ${reply} [ASSURED] mark=0 zone=0 use=2`;
const MASQUERADED = flow(
	'src=172.18.0.2 dst=192.0.2.7 sport=40123 dport=443',
	'src=192.0.2.7 dst=10.0.0.1 sport=443 dport=8080',
);
const OWN = flow(
	'src=10.0.0.1 dst=192.0.2.7 sport=50001 dport=443',
	'src=192.0.2.7 dst=10.0.0.1 sport=443 dport=50001',
);
const CLIENTS = flow(
	'src=192.0.2.9 dst=10.0.0.1 sport=8081 dport=8080',
	'src=172.18.0.3 dst=192.0.2.9 sport=80 dport=8081',
);
const SIX =
	'ipv6     10 tcp      6 60 TIME_WAIT src=fd00:0018:0000:0000:0000:0000:0000:0002 dst=2001:0db8:0000:0000:0000:0000:0000:0001 sport=40124 dport=80 ' +
	'src=2001:0db8:0000:0000:0000:0000:0000:0001 dst=fd00:0000:0000:0000:0000:0000:0000:0001 sport=80 dport=8082 [ASSURED] mark=0 use=1';
const UDP = flow(
	'src=172.18.0.2 dst=192.0.2.7 sport=40123 dport=53',
	'src=192.0.2.7 dst=10.0.0.1 sport=53 dport=8083',
	'udp      17 29',
);
const socket = (port: number, state: string) =>
	`   1: 0100000A:${port.toString(16).toUpperCase().padStart(4, '0')} 070200C0:01BB ${state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4`;

test('lines of conntrack: flows that answers come back for', () => {
	const own = new Set(['10.0.0.1', 'fd00:0000:0000:0000:0000:0000:0000:0001']);
	assert.equal(
		[MASQUERADED, OWN, CLIENTS, SIX, UDP, '', 'nonsense'].map((l) => conntrackSource(l, own)),
		[8080, 50001, undefined, 8082, (1 << 16) | 8083, undefined, undefined],
	);
});

test('lines of sockets: not those that listen', () => {
	assert.equal([socket(40001, '01'), socket(8080, '0A'), '  sl  local_address rem_address   st'].map(socketSource), [
		40001,
		undefined,
		undefined,
	]);
});

function make(over: Partial<SourcePortsDeps> = {}) {
	const files: Record<string, readonly string[]> = {
		nf_conntrack: [MASQUERADED, CLIENTS, SIX],
		tcp: [socket(40001, '01'), socket(9000, '01'), socket(40002, '0A')],
		tcp6: [],
		udp: [socket(40003, '07'), socket(53, '07')],
		udp6: [],
	};
	const noted: number[][] = [];
	const logged: string[] = [];
	let known = 0;
	const s = new SourcePorts({
		note: (ports) => void noted.push([...ports]),
		asksConntrack: true,
		ownRange: () => ({ from: 32768, to: 60999 }),
		onKnown: () => void known++,
		log: (text) => void logged.push(text),
		async *lines(name) {
			yield* files[name] as readonly string[];
		},
		...over,
	});
	return { s, noted, logged, known: () => known };
}
const OF = ['10.0.0.1', 'fd00::1'];

test('what began before is noted once, for all uplinks that are watched', async () => {
	const { s, noted, known } = make();
	s.watch([2, 3], OF);
	assert.is(s.knows([2]), false);
	await waitFor('the first reading', () => known() === 1);
	assert.equal(noted, [[8080, 8082, 40001, (1 << 16) | 40003]]);
	assert.ok(s.knows([2, 3]) && !s.knows([2, 4]));
	s.watch([2, 3], OF);
	s.watch([2], OF);
	assert.equal([noted.length, s.knows([2]), s.knows([3])], [1, true, false], 'an uplink that was gone is not known');
	s.watch([2, 3], OF);
	await waitFor('the second reading', () => known() === 2);
	assert.ok(s.knows([2, 3]));
});

test('an uplink that was not watched all the while is not known', async () => {
	let go = () => {};
	const gate = new Promise<void>((done) => {
		go = done;
	});
	const { s, known } = make({
		// biome-ignore lint/correctness/useYield: an empty file
		async *lines() {
			await gate;
		},
	});
	s.watch([2, 3], OF);
	s.watch([3], OF);
	s.watch([2, 3], OF);
	go();
	await waitFor('the reading', () => known() === 1);
	assert.equal([s.knows([3]), s.knows([2])], [true, false]);
});

test('what cannot be read is told once, and nothing is known', async () => {
	const { s, logged, noted } = make({
		// biome-ignore lint/correctness/useYield: it fails
		async *lines() {
			throw new Error('no such file');
		},
	});
	s.watch([2], OF);
	await waitFor('the failure', () => logged.length > 0);
	s.watch([2, 3], OF);
	await new Promise((done) => setTimeout(done, 10));
	assert.equal([logged.length, noted, s.knows([2])], [1, [], false]);
});

test('without conntrack only sockets count, and a node may have no IPv6', async () => {
	const { s, noted, known } = make({
		asksConntrack: false,
		async *lines(name) {
			if (name.endsWith('6') || name === 'nf_conntrack') throw Object.assign(new Error(name), { code: 'ENOENT' });
			yield socket(40001, '01');
		},
	});
	s.watch([2], OF);
	await waitFor('the reading', () => known() === 1);
	assert.equal(noted, [[40001, (1 << 16) | 40001]]);
});

test.run();
