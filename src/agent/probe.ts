/**
 * Probe frames (struct probe in bpf/vxlan.h): VXLAN on the mesh VNI (RFC 7348) around an Ethernet frame of an experimental
 * type, as UDP payload. The other node's uplink_xdp answers them in the kernel, so an answer says that its datapath works,
 * whatever its agent does.
 */

const ETH_P_PROBE = 0x88b5;
const ETH_P_PROBE_ANSWER = 0x88b6;
const ETHERTYPE_AT = 20;
const NONCE_AT = 22;
const DIGEST_AT = 30;
const VIA_AT = 38;

/** VXLAN header 8, Ethernet header 14, probe 24. */
export const PROBE_BYTES = 46;

/** 64 bits: the high half is secret and one for each run, so that nobody off the path can answer. */
export interface Nonce {
	readonly high: number;
	readonly low: number;
}

export interface ProbeAnswer {
	readonly nonce: Nonce;
	/** Of the answering node's tables. */
	readonly digest: bigint;
}

/**
 * A probe as UDP payload.
 * @param via IPv4 (host order) that the answer is to go to; 0: to the source address
 */
export function encodeProbe(vni: number, nonce: Nonce, via = 0): Uint8Array {
	const v = new DataView(new ArrayBuffer(PROBE_BYTES));
	v.setUint8(0, 0x08);
	v.setUint32(4, (vni << 8) >>> 0);
	// Locally administered addresses that are nobody's: the frame is never delivered.
	v.setUint8(8, 0x06);
	v.setUint8(14, 0x06);
	v.setUint16(ETHERTYPE_AT, ETH_P_PROBE);
	v.setUint32(NONCE_AT, nonce.low, true);
	v.setUint32(NONCE_AT + 4, nonce.high, true);
	v.setUint32(VIA_AT, via >>> 0);
	return new Uint8Array(v.buffer);
}

/** A probe that is sent again and again, each time with another nonce. */
export interface ReusedProbe {
	readonly payload: Uint8Array;
	/** Writes the low half of the nonce. */
	renew(low: number): void;
}

export function reusedProbe(vni: number, high: number): ReusedProbe {
	const payload = encodeProbe(vni, { high, low: 0 });
	const v = new DataView(payload.buffer);
	return { payload, renew: (low) => v.setUint32(NONCE_AT, low, true) };
}

/** An answer's content; undefined: it is something else. The digest is in the byte order of Linux' little-endian ports. */
export function decodeAnswer(payload: Uint8Array, vni: number): ProbeAnswer | undefined {
	if (payload.byteLength < PROBE_BYTES) return undefined;
	const v = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
	if (v.getUint8(0) !== 0x08 || v.getUint32(4) >>> 8 !== vni || v.getUint16(ETHERTYPE_AT) !== ETH_P_PROBE_ANSWER)
		return undefined;
	return {
		nonce: { low: v.getUint32(NONCE_AT, true), high: v.getUint32(NONCE_AT + 4, true) },
		digest: v.getBigUint64(DIGEST_AT, true),
	};
}

/** `10.0.0.1` as a number, host order. */
export function ip4Number(address: string): number {
	return address.split('.').reduce((n, part) => (n * 256 + Number(part)) >>> 0, 0);
}
