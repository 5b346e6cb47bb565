/**
 * Addresses of overlay networks: who owns which, and what follows from them. Pure.
 *
 *	subnet 10.44.0.0/24, nodes a b c:   a .0/26   b .64/26   c .128/26   (.192/26 is nobody's)
 */
import ipaddr from 'ipaddr.js';
import type { NetworkSpec } from './types.js';

/** Bytes that VXLAN takes of the underlay's MTU. */
export const OVERLAY_OVERHEAD = 50;

/**
 * MTU of an endpoint, bytes. ESP takes 42 to 45 more: its header and IV 16, trailer 2, padding to a multiple of 4, ICV 16, and
 * 8 that the kernel reserves for IP options. Of 1500 bytes 1450 are left, encrypted 1408.
 */
export function innerMtu(underlay: number, encrypted: boolean): number {
	if (!encrypted) return underlay - OVERLAY_OVERHEAD;
	const sealed = Math.floor((underlay - 20 - 40) / 4) * 4;
	return sealed - 2 - (OVERLAY_OVERHEAD - 20);
}

function number4(address: string): number {
	const [a, b, c, d] = ipaddr.IPv4.parse(address).octets;
	return ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
}

function text4(n: number): string {
	return [n >>> 24, (n >>> 16) & 255, (n >>> 8) & 255, n & 255].join('.');
}

/** First and last address of an IPv4 prefix, as numbers. */
function range4(prefix: string): [number, number] {
	const [base, bits] = prefix.split('/');
	const first = number4(base);
	const size = 2 ** (32 - Number(bits));
	return [first, first + size - 1];
}

/** Docker's MAC of an address. */
export function macOfAddress(address4: string): string {
	const hex = ipaddr.IPv4.parse(address4).octets.map((x: number) => x.toString(16).padStart(2, '0'));
	return ['02', '42', ...hex].join(':');
}

/** The IPv6 address of an endpoint: the prefix, and its IPv4 address in the last 32 bits. */
export function address6Of(subnet6: string, address4: string): string {
	const bytes = ipaddr.IPv6.parse(subnet6.split('/')[0]).toByteArray();
	bytes.splice(12, 4, ...ipaddr.IPv4.parse(address4).octets);
	return new ipaddr.IPv6(bytes).toRFC5952String();
}

/** The address that no endpoint gets: Docker's default is the subnet's first. */
export function gatewayOf(n: Pick<NetworkSpec, 'gateway' | 'subnet'>): string {
	return n.gateway ?? text4(range4(n.subnet)[0] + 1);
}

/**
 * Node → its slice of a subnet: equal parts, as many as the next power of two, in the order of the nodes' names. None
 * where the subnet has fewer addresses than nodes.
 */
export function equalSlices(subnet: string, nodes: readonly string[]): Record<string, string> {
	const sorted = [...nodes].sort();
	const [base, bits] = subnet.split('/');
	const length = Number(bits) + Math.ceil(Math.log2(Math.max(1, sorted.length)));
	if (length > 32) return {};
	const size = 2 ** (32 - length);
	return Object.fromEntries(sorted.map((node, i) => [node, `${text4(number4(base) + i * size)}/${length}`]));
}

/** The IPv6 addresses of a slice. */
export function slice6(subnet6: string, slice: string): string {
	const [base, bits] = slice.split('/');
	return `${address6Of(subnet6, base)}/${96 + Number(bits)}`;
}

export const contains = (prefix: string, address: string): boolean => {
	const [first, last] = range4(prefix);
	const n = number4(address);
	return n >= first && n <= last;
};

/** Whether two IPv4 prefixes have an address in common. */
export function overlaps(a: string, b: string): boolean {
	const [x, y] = [range4(a), range4(b)];
	return x[0] <= y[1] && y[0] <= x[1];
}

/** The first /24 of 10.0.0.0/8 that overlaps none of these, as Docker chooses; undefined: all are taken. */
export function freeSubnet(taken: readonly string[]): string | undefined {
	for (let i = 0; i < 65536; i++) {
		const s = `10.${i >> 8}.${i & 255}.0/24`;
		if (!taken.some((t) => overlaps(t, s))) return s;
	}
	return undefined;
}

/** A unique local /64 (RFC 4193) for a network that wants IPv6 and names no prefix: its VNI is the global id's end. */
export function localSubnet6(vni: number): string {
	const base = new ipaddr.IPv6([0xfd62, 0x6565, vni >>> 16, vni & 0xffff, 0, 0, 0, 0]);
	return `${base.toRFC5952String()}/64`;
}

/**
 * The lowest free address of a slice, or undefined where it is full. Never the subnet's own, its broadcast address or
 * the gateway.
 */
export function freeAddress(n: NetworkSpec, slice: string, taken: ReadonlySet<string>): string | undefined {
	const [low, high] = range4(n.subnet);
	const [sliceLow, sliceHigh] = range4(slice);
	const [rangeLow, rangeHigh] = n.ipRange === undefined ? [low, high] : range4(n.ipRange);
	const gateway = gatewayOf(n);
	const last = Math.min(high - 1, sliceHigh, rangeHigh);
	for (let a = Math.max(low + 1, sliceLow, rangeLow); a <= last; a++) {
		const text = text4(a);
		if (text !== gateway && !taken.has(text)) return text;
	}
	return undefined;
}

/** Whether an address of the subnet may be an endpoint's: not its own, its broadcast address or the gateway. */
export function isForEndpoints(n: NetworkSpec, address: string): boolean {
	const [low, high] = range4(n.subnet);
	const a = number4(address);
	return a > low && a < high && address !== gatewayOf(n);
}

/**
 * A free address of the whole network from a random place on: nodes that ask at once seldom get the same. undefined: all are
 * taken. @param random whole number from 0 (inclusive) to its argument (exclusive)
 */
export function randomFreeAddress(
	n: NetworkSpec,
	isTaken: (address: string) => boolean,
	random: (below: number) => number,
): string | undefined {
	const [low, high] = range4(n.subnet);
	const [rangeLow, rangeHigh] = n.ipRange === undefined ? [low, high] : range4(n.ipRange);
	const first = Math.max(low + 1, rangeLow);
	const count = Math.min(high - 1, rangeHigh) - first + 1;
	if (count <= 0) return undefined;
	const gateway = gatewayOf(n);
	const start = random(count);
	for (let i = 0; i < count; i++) {
		const address = text4(first + ((start + i) % count));
		if (address !== gateway && !isTaken(address)) return address;
	}
	return undefined;
}
