/**
 * Sends COUNT queries to 127.0.0.11 as fast as it can, NAME and numbered names under SUFFIX by turns, then waits until
 * nothing more is answered. Prints { sent, answers, rcodes, ms } as JSON.
 *
 *	node dnsflood.js COUNT NAME SUFFIX [WINDOW]     WINDOW: no more than so many without an answer; NAME alone where SUFFIX is ''
 */
import { createSocket } from 'node:dgram';
import packet from 'dns-packet';

const [count, name, suffix] = [Number(process.argv[2]), process.argv[3]!, process.argv[4]!];
const window = Number(process.argv[5] ?? 0);
const began = performance.now();
const socket = createSocket('udp4');
const rcodes: Record<string, number> = {};
let answers = 0;
let last = performance.now();
socket.on('message', (m) => {
	answers++;
	const rcode = String(m[3]! & 15);
	rcodes[rcode] = (rcodes[rcode] ?? 0) + 1;
	last = performance.now();
	if (window > 0) one();
});
let sent = 0;
function one(): void {
	if (sent === count) return;
	const n = sent++;
	const q = packet.encode({
		type: 'query',
		id: n & 0xffff,
		flags: packet.RECURSION_DESIRED,
		questions: [{ name: n % 2 && suffix !== '' ? `n${n}.${suffix}` : name, type: 'A' }],
	});
	socket.send(q, 53, '127.0.0.11', () => {});
}
function batch(): void {
	if (window > 0) for (let i = 0; i < window; i++) one();
	else for (let i = 0; i < 200; i++) one();
	if (window === 0 && sent < count) return void setImmediate(batch);
	last = performance.now();
	const timer = setInterval(() => {
		if (performance.now() - last < 1000) return;
		clearInterval(timer);
		console.log(JSON.stringify({ sent, answers, rcodes, ms: Math.round(last - began) }));
		socket.close();
	}, 100);
}
batch();
