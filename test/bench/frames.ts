/** Frames of the bench, byte by byte. Checksums are zero: what is measured does not read them. */
export interface Ends {
	readonly source: string;
	readonly destination: string;
	readonly sourcePort: number;
	readonly destinationPort: number;
}

export const TCP = 6;
export const UDP = 17;
export const SYN = 0x02;
export const ACK = 0x10;

const PLAIN = 64;
const ENCAP = 50;

function put4(v: DataView, at: number, address: string): void {
	for (const [i, byte] of address.split('.').entries()) v.setUint8(at + i, Number(byte));
}

function putMac(v: DataView, at: number, mac: string): void {
	for (const [i, byte] of mac.split(':').entries()) v.setUint8(at + i, Number.parseInt(byte, 16));
}

function ip4(v: DataView, at: number, protocol: number, length: number, source: string, destination: string): void {
	v.setUint8(at, 0x45);
	v.setUint16(at + 2, length);
	v.setUint16(at + 6, 0x4000);
	v.setUint8(at + 8, 64);
	v.setUint8(at + 9, protocol);
	put4(v, at + 12, source);
	put4(v, at + 16, destination);
}

/** The smallest Ethernet frame, 64 bytes. `flags`: of TCP; undefined: UDP. */
export function frame(to: string, ends: Ends, flags: number | undefined, from = '02:00:00:00:00:99'): Uint8Array {
	const bytes = new Uint8Array(PLAIN);
	const v = new DataView(bytes.buffer);
	putMac(v, 0, to);
	putMac(v, 6, from);
	v.setUint16(12, 0x0800);
	ip4(v, 14, flags === undefined ? UDP : TCP, PLAIN - 14, ends.source, ends.destination);
	v.setUint16(34, ends.sourcePort);
	v.setUint16(36, ends.destinationPort);
	if (flags === undefined) {
		v.setUint16(38, PLAIN - 34);
		return bytes;
	}
	v.setUint32(38, 1000);
	v.setUint8(46, 0x50);
	v.setUint8(47, flags);
	v.setUint16(48, 65535);
	return bytes;
}

export interface Tunnel {
	readonly to: string;
	readonly source: string;
	readonly destination: string;
	readonly port: number;
	readonly vni: number;
}

/** A frame behind outer headers (RFC 7348). */
export function tunnelled(inner: Uint8Array, t: Tunnel): Uint8Array {
	const bytes = new Uint8Array(ENCAP + inner.length);
	const v = new DataView(bytes.buffer);
	putMac(v, 0, t.to);
	putMac(v, 6, '02:00:00:00:00:98');
	v.setUint16(12, 0x0800);
	ip4(v, 14, UDP, bytes.length - 14, t.source, t.destination);
	v.setUint16(34, 50_000);
	v.setUint16(36, t.port);
	v.setUint16(38, bytes.length - 34);
	v.setUint32(42, 0x0800_0000);
	v.setUint32(46, t.vni << 8);
	bytes.set(inner, ENCAP);
	return bytes;
}
