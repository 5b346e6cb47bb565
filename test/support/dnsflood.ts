/**
 * Sends COUNT queries to 127.0.0.11 as fast as it can, NAME and numbered names under SUFFIX by turns, then waits until
 * nothing more is answered. Prints { sent, answers, rcodes } as JSON.
 *
 *	node dnsflood.js COUNT NAME SUFFIX
 */
import { createSocket } from 'node:dgram';
import packet from 'dns-packet';

const [count, name, suffix] = [Number(process.argv[2]), process.argv[3]!, process.argv[4]!];
const socket = createSocket('udp4');
const rcodes: Record<string, number> = {};
let answers = 0;
let last = performance.now();
socket.on('message', (m) => {
	answers++;
	const rcode = String(m[3]! & 15);
	rcodes[rcode] = (rcodes[rcode] ?? 0) + 1;
	last = performance.now();
});
let sent = 0;
function batch(): void {
	for (let i = 0; i < 200 && sent < count; i++, sent++) {
		const q = packet.encode({
			type: 'query',
			id: sent & 0xffff,
			flags: packet.RECURSION_DESIRED,
			questions: [{ name: sent % 2 ? `n${sent}.${suffix}` : name, type: 'A' }],
		});
		socket.send(q, 53, '127.0.0.11', () => {});
	}
	if (sent < count) return void setImmediate(batch);
	last = performance.now();
	const timer = setInterval(() => {
		if (performance.now() - last < 1000) return;
		clearInterval(timer);
		console.log(JSON.stringify({ sent, answers, rcodes }));
		socket.close();
	}, 100);
}
batch();
