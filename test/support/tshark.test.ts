/* What a capture is judged by: a wrong checksum is a complaint, Linux's way of writing a right one is none. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { cannotDecode, skip } from './skip.js';
import { complaints } from './tshark.js';

const test = suite('tshark');

/** What is left of the sum of 16-bit words until the checksum of it would be 0. */
function complement(bytes: Buffer): number {
	let sum = 0;
	for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
	while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
	return 0xffff - sum;
}

/** An Ethernet frame with one TCP segment of two bytes, chosen so that its checksum is 0. */
function segment(written: number): Buffer {
	const ip = Buffer.from('4500002a000040004006000000000000' + '00000000', 'hex');
	ip.set([10, 0, 0, 1, 10, 0, 0, 2], 12);
	ip.writeUInt16BE(complement(ip), 10);
	const tcp = Buffer.from('8660005000000001000000015010ffff00000000' + '0000', 'hex');
	const pseudo = Buffer.concat([ip.subarray(12), Buffer.from([0, 6, 0, tcp.length]), tcp]);
	tcp.writeUInt16BE(complement(pseudo), 20);
	tcp.writeUInt16BE(written, 16);
	return Buffer.concat([Buffer.from('0242000000010242000000020800', 'hex'), ip, tcp, Buffer.alloc(4)]);
}

function capture(file: string, frames: readonly Buffer[]): void {
	const header = Buffer.from('d4c3b2a1020004000000000000000000ffff000001000000', 'hex');
	const records = frames.flatMap((frame) => {
		const record = Buffer.alloc(16);
		record.writeUInt32LE(frame.length, 8);
		record.writeUInt32LE(frame.length, 12);
		return [record, frame];
	});
	writeFileSync(file, Buffer.concat([header, ...records]));
}

test('a checksum of 0 may be written 0xffff; a wrong one is told', () => {
	const missing = cannotDecode();
	if (missing !== undefined) return skip('what tshark says', missing);
	const dir = mkdtempSync(join(tmpdir(), 'beeline-tshark-'));
	try {
		const file = join(dir, 'a.pcap');
		capture(file, [segment(0), segment(0xffff)]);
		assert.equal(complaints(file), []);
		capture(file, [segment(0), segment(0xffff), segment(0x1234)]);
		const told = complaints(file);
		assert.is(told.length, 1, told.join('\n'));
		assert.match(told[0], /^\s*3 .*INCORRECT/i);
	} finally {
		rmSync(dir, { recursive: true });
	}
});

test.run();
