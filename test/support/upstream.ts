/**
 * A name server for tests, UDP and TCP, on port 53 of the addresses given. Over IPC any message is answered by the names
 * that were asked for, in order.
 *
 *	good.example     203.0.113.7 and 2001:db8::7
 *	big.example      cut over UDP; 100 addresses over TCP
 *	forged.example   first answers that are none (another id, another question), then the right one
 *	silent.example   nothing
 *	fail.example     SERVFAIL
 *	anything else    NXDOMAIN
 */
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import packet from 'dns-packet';

const asked: string[] = [];

type Send = (bytes: Buffer) => void;

function handle(query: Buffer, tcp: boolean, send: Send): void {
	const q = packet.decode(query);
	const question = q.questions![0]!;
	const { name, type } = question;
	asked.push(`${name} ${type}${tcp ? ' tcp' : ''}`);
	const say = (addresses: string[], more: { rcode?: number; id?: number; tc?: boolean; name?: string } = {}) =>
		send(
			packet.encode({
				type: 'response',
				id: more.id ?? q.id!,
				flags:
					packet.RECURSION_DESIRED |
					packet.RECURSION_AVAILABLE |
					(more.rcode ?? 0) |
					(more.tc ? packet.TRUNCATED_RESPONSE : 0),
				questions: [{ ...question, name: more.name ?? name }],
				answers: addresses.map((data) => ({ name, type: type as 'A', ttl: 30, data })),
			}),
		);
	switch (name.toLowerCase()) {
		case 'good.example':
			say(type === 'A' ? ['203.0.113.7'] : type === 'AAAA' ? ['2001:db8::7'] : []);
			break;
		case 'big.example':
			if (tcp) say(Array.from({ length: 100 }, (_, i) => `203.0.113.${i + 1}`));
			else say([], { tc: true });
			break;
		case 'forged.example':
			say(['6.6.6.6'], { id: (q.id! + 1) & 0xffff });
			say(['6.6.6.6'], { name: 'other.example' });
			setTimeout(() => say(['203.0.113.8']), 100);
			break;
		case 'fail.example':
			say([], { rcode: 2 });
			break;
		default:
			if (!/(^|\.)silent\.example$/i.test(name)) say([], { rcode: 3 });
	}
}

for (const address of process.argv.slice(2)) {
	const udp = createSocket(address.includes(':') ? 'udp6' : 'udp4');
	udp.on('message', (m, from) => handle(m, false, (b) => udp.send(b, from.port, from.address)));
	udp.bind(53, address);
	createServer((c) => {
		c.on('error', () => {});
		c.once('data', (b) =>
			handle(b.subarray(2), true, (r) => {
				const head = Buffer.alloc(2);
				head.writeUInt16BE(r.length);
				c.end(Buffer.concat([head, r]));
			}),
		);
	}).listen(53, address);
}

process.on('message', ({ id }: { id: number }) => process.send?.({ id, result: asked }));
process.on('disconnect', () => process.exit());
