import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { addressOf, parseSocket, parseSockets, TCP_CLOSE, TCP_LISTEN, writtenAs } from '../../src/proc-net.js';

const test = suite('sockets of /proc/net');

const HEAD = '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode';
const REST = '00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0';

for (const [what, line, expected] of [
	['TCP that listens', `   0: 00000000:1F90 00000000:0000 0A ${REST}`, ['0.0.0.0', 8080, '0.0.0.0', 0, TCP_LISTEN]],
	['an open connection', `  12: 020012AC:0050 01020304:C000 01 ${REST}`, ['172.18.0.2', 80, '4.3.2.1', 49152, '01']],
	[
		'UDP that is not connected',
		`80001: 0B00007F:D431 00000000:0000 07 ${REST}`,
		['127.0.0.11', 54321, '0.0.0.0', 0, TCP_CLOSE],
	],
	[
		'IPv6, and IPv4 in a socket of it',
		`   1: 180000FD000000000000000003000000:0016 0000000000000000FFFF00000800000A:0051 01 ${REST}`,
		['fd00:0018:0000:0000:0000:0000:0000:0003', 22, '10.0.0.8', 81, '01'],
	],
	[
		'nobody in particular',
		`   1: ${'0'.repeat(32)}:0016 ${'0'.repeat(32)}:0000 0A ${REST}`,
		['::', 22, '::', 0, TCP_LISTEN],
	],
	['the head', HEAD, undefined],
	['a line cut short', '   0: 00000000:1F90 00000000:0000', undefined],
	['an empty line', '', undefined],
] as const)
	test(`a line: ${what}`, () => {
		const s = parseSocket(line);
		assert.equal(s && [addressOf(s.local), s.localPort, addressOf(s.remote), s.remotePort, s.state], expected);
	});

test('an address as it is written there, and back', () => {
	for (const [address, written] of [
		['10.77.1.5', ['05014D0A', '0000000000000000FFFF000005014D0A']],
		['fd00:18::3', ['180000FD000000000000000003000000']],
		['2001:db8:1:2:3:4:5:6', ['B80D0120020001000400030006000500']],
		['::', ['0'.repeat(32)]],
	] as const)
		assert.equal(writtenAs(address), written);
	assert.equal(writtenAs('10.77.1.5').map(addressOf), ['10.77.1.5', '10.77.1.5']);
	assert.is(addressOf(writtenAs('2001:db8::6')[0]!), '2001:0db8:0000:0000:0000:0000:0000:0006');
});

test('a file of this kernel', async () => {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	try {
		const { port } = server.address() as { port: number };
		const own = parseSockets(readFileSync('/proc/self/net/tcp', 'utf8')).filter((s) => s.localPort === port);
		assert.equal(
			own.map((s) => [addressOf(s.local), s.remotePort, s.state]),
			[['127.0.0.1', 0, TCP_LISTEN]],
		);
	} finally {
		server.close();
	}
});

test.run();
