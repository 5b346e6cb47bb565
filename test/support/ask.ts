/**
 * Asks a name server one question over a connected socket, as Docker's resolver forwards: TITLE udp|tcp SERVER NAME TYPE. The thread is
 * called TITLE. Prints the response code and the answers, a line each, or the error.
 */
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import packet from 'dns-packet';

const [title, via, server, name, type] = process.argv.slice(2) as [string, string, string, string, 'A'];
process.title = title;
const query = packet.encode({ type: 'query', id: 77, flags: packet.RECURSION_DESIRED, questions: [{ name, type }] });
const end = (line: string): never => {
	console.log(line);
	process.exit(0);
};
const show = (bytes: Buffer): void => {
	const r = packet.decode(bytes) as packet.DecodedPacket & { rcode: string };
	end([r.rcode, ...(r.answers ?? []).map((a) => `${'data' in a ? a.data : ''}`)].join('\n'));
};
setTimeout(() => end('silence'), 3000);
if (via === 'udp') {
	const socket = createSocket(server.includes(':') ? 'udp6' : 'udp4');
	socket.on('error', (e: NodeJS.ErrnoException) => end(e.code ?? e.message));
	socket.on('message', show);
	socket.connect(53, server, (e?: NodeJS.ErrnoException) => {
		if (e) end(e.code ?? e.message);
		socket.send(query);
	});
} else {
	const socket = connect(53, server);
	socket.on('error', (e: NodeJS.ErrnoException) => end(e.code ?? e.message));
	socket.on('connect', () =>
		socket.write(Buffer.concat([Buffer.from([query.length >> 8, query.length & 255]), query])),
	);
	let got = Buffer.alloc(0);
	socket.on('data', (part: Buffer) => {
		got = Buffer.concat([got, part]);
		if (got.length >= 2 && got.length >= 2 + got.readUInt16BE(0)) show(got.subarray(2, 2 + got.readUInt16BE(0)));
	});
}
