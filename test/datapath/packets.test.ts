/** The builder and the printer, against each other and against packets of the kernel's making. */
import * as fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { build, fragments, frame, type Packet, print, sum16 } from './packets.js';

const A = '02:00:00:00:00:0a';
const B = '02:00:00:00:00:0b';

test('a frame is printed with every field', () => {
	const p: Packet = {
		eth: { src: A, dst: B },
		ip: { src: '192.0.2.9', dst: '10.0.0.1', ttl: 63, id: 7, df: true },
		tcp: { sport: 40000, dport: 8080, flags: 'syn', seq: 1000, options: ['nop', { mss: 1460 }] },
		data: 'hello',
	};
	assert.is(
		print(build(p)),
		frame`
			eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			ip 192.0.2.9 > 10.0.0.1 ttl 63 id 7 df len 53
			tcp 40000 > 8080 syn seq 1000 win 65535 nop mss 1460
			data "hello"
		`,
	);
});

test('tunnels, errors and fragments are printed with what they carry', () => {
	const inner: Packet = {
		eth: { src: A, dst: B },
		ip: { src: 'fd00::9', dst: 'fd00::1', extensions: ['hop-by-hop'] },
		udp: { sport: 53, dport: 5353 },
		data: 100,
	};
	const outer: Packet = {
		eth: { src: A, dst: B },
		ip: { src: '10.0.0.1', dst: '10.0.0.2' },
		udp: { sport: 50000, dport: 4789, vxlan: { vni: 12509184, frame: inner } },
	};
	assert.is(
		print(build(outer)),
		frame`
			eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			ip 10.0.0.1 > 10.0.0.2 ttl 64 len 206
			udp 50000 > 4789 no checksum
			vxlan 12509184
			  eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			  ip fd00::9 > fd00::1 ttl 64 hop-by-hop len 156
			  udp 53 > 5353
			  data 100 bytes #18953
		`,
	);
	const error: Packet = {
		eth: { src: A, dst: B },
		ip: { src: '10.0.0.254', dst: '10.0.0.1' },
		icmp: {
			type: 3,
			code: 4,
			mtu: 1400,
			about: { ip: { src: '10.0.0.1', dst: '192.0.2.9' }, udp: { sport: 1, dport: 2 } },
		},
	};
	assert.is(
		print(build(error)),
		frame`
			eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			ip 10.0.0.254 > 10.0.0.1 ttl 64 len 56
			icmp type 3 code 4 mtu 1400
			  about ip 10.0.0.1 > 192.0.2.9 ttl 64 len 28
			  about udp 1 > 2
		`,
	);
	const [first, second] = fragments({ ...inner, data: 40 }, 9, 32);
	assert.match(print(build(first)), /hop-by-hop fragment id 9 more len 88\nudp 53 > 5353 len 48/);
	assert.match(print(build(second)), /fragment id 9 offset 32 len 72\nprotocol 17\ndata 16 bytes/);
});

test('questions and answers about neighbours are printed with every field', () => {
	const arp = {
		operation: 'request',
		sender: '10.7.0.2',
		senderMac: A,
		target: '10.7.0.3',
	} as const;
	assert.is(
		print(build({ eth: { src: A, dst: B }, arp })),
		frame`
			eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			arp request 10.7.0.2 (02:00:00:00:00:0a) > 10.7.0.3 (00:00:00:00:00:00)
		`,
	);
	assert.match(
		print(
			build({ eth: { src: A, dst: B }, arp: { ...arp, operation: 'reply', targetMac: B, hardware: 6, macLength: 8 } }),
		),
		/arp reply 10\.7\.0\.2 \(02:00:00:00:00:0a\) > 10\.7\.0\.3 \(02:00:00:00:00:0b\) hardware 6 lengths 8 4$/,
	);
	const nd = (type: number, mac?: string): string =>
		print(
			build({
				eth: { src: A, dst: B },
				ip: { src: 'fd07::2', dst: 'fd07::3', ttl: 255 },
				icmp: { type, neighbour: { target: 'fd07::3', mac } },
			}),
		);
	assert.is(
		nd(136, A),
		frame`
			eth 02:00:00:00:00:0a > 02:00:00:00:00:0b
			ip fd07::2 > fd07::3 ttl 255 len 72
			icmp6 type 136 code 0
			solicited override target fd07::3 target mac 02:00:00:00:00:0a
		`,
	);
	assert.match(nd(135, A), /icmp6 type 135 code 0\ntarget fd07::3 source mac 02:00:00:00:00:0a$/);
	assert.match(nd(135), /icmp6 type 135 code 0\ntarget fd07::3$/);
});

test('a flipped bit is a bad checksum somewhere, or another text', () => {
	const p = build({
		eth: { src: A, dst: B },
		ip: { src: '192.0.2.9', dst: '10.0.0.1' },
		udp: { sport: 1, dport: 2 },
		data: 'x',
	});
	const text = print(p);
	fc.assert(
		fc.property(fc.integer({ min: 0, max: p.length * 8 - 1 }), (bit) => {
			const q = p.slice();
			q[bit >> 3] ^= 1 << (bit & 7);
			assert.is.not(print(q), text);
		}),
	);
});

test('what is built has good checksums', () => {
	const port = fc.integer({ min: 1, max: 65535 });
	const address = fc.oneof(
		fc.tuple(fc.ipV4(), fc.ipV4()),
		fc.tuple(fc.constantFrom('fd00::1', '2001:db8::ff'), fc.constantFrom('fd00::2', 'fe80::1')),
	);
	fc.assert(
		fc.property(address, port, port, fc.uint8Array({ maxLength: 99 }), fc.boolean(), ([src, dst], s, d, data, tcp) => {
			const l4 = { sport: s === 4789 ? 1 : s, dport: d === 4789 ? 1 : d };
			const bytes = build({ eth: { src: A, dst: B }, ip: { src, dst }, ...(tcp ? { tcp: l4 } : { udp: l4 }), data });
			assert.not.match(print(bytes), /bad checksum/);
		}),
	);
});

test('the checksum of RFC 1071, section 3', () => {
	assert.is(sum16(Uint8Array.from([0, 1, 242, 3, 244, 245, 246, 247])), 56818);
});

test.run();
