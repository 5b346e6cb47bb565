/** Sockets as /proc/net/tcp, tcp6, udp and udp6 show them: a line each. Addresses are words of 32 bits in the host's order. */

export interface ProcSocket {
	/** As it is written there: see addressOf(). */
	readonly local: string;
	readonly localPort: number;
	readonly remote: string;
	/** 0: not connected. */
	readonly remotePort: number;
	/** Two digits. */
	readonly state: string;
}

export const TCP_LISTEN = '0A';
/** Also what a UDP socket is that is not connected. */
export const TCP_CLOSE = '07';

/** undefined: the head of the file, or no whole line. */
export function parseSocket(line: string): ProcSocket | undefined {
	const m =
		/^\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{2}) /.exec(
			line,
		);
	if (m === null) return undefined;
	const [, local, localPort, remote, remotePort, state] = m as unknown as readonly string[];
	return {
		local,
		localPort: Number.parseInt(localPort, 16),
		remote,
		remotePort: Number.parseInt(remotePort, 16),
		state,
	};
}

/** All of a file. */
export function parseSockets(text: string): ProcSocket[] {
	return text.split('\n').flatMap((line) => parseSocket(line) ?? []);
}

/** The text of an address there. IPv4 in a socket of IPv6 is IPv4; IPv6 has all its groups, of four digits, but for `::`. */
export function addressOf(hex: string): string {
	const bytes = Buffer.from(hex, 'hex');
	for (let i = 0; i < bytes.length; i += 4) bytes.subarray(i, i + 4).reverse();
	if (bytes.length === 4) return bytes.join('.');
	if (bytes.subarray(0, 12).equals(MAPPED)) return bytes.subarray(12).join('.');
	if (bytes.every((b) => b === 0)) return '::';
	return (bytes.toString('hex').match(/.{4}/g) ?? []).join(':');
}
const MAPPED = Buffer.from('00000000000000000000ffff', 'hex');

/** How an address is written there: IPv4 in two ways, as itself and as a socket of IPv6 has it. */
export function writtenAs(address: string): readonly string[] {
	const words = (bytes: readonly number[]): string => {
		let out = '';
		for (let i = 0; i < bytes.length; i += 4)
			for (let k = 3; k >= 0; k--) out += bytes[i + k].toString(16).padStart(2, '0').toUpperCase();
		return out;
	};
	if (!address.includes(':')) {
		const four = address.split('.').map(Number);
		return [words(four), words([...MAPPED, ...four])];
	}
	const [head, tail = ''] = address.split('::');
	const part = (s: string) => s.split(':').filter(Boolean);
	const gap = 8 - part(head).length - part(tail).length;
	const hextets = [...part(head), ...Array<string>(Math.max(0, gap)).fill('0'), ...part(tail)].map((x) =>
		Number.parseInt(x, 16),
	);
	return [words(hextets.flatMap((x) => [x >> 8, x & 255]))];
}
