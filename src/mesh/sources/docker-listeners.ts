/**
 * Where a task listens, by /proc of its container: one that listens on its address of the ingress network only, and not on
 * the leg where packets are delivered, has to get them by that address. Its namespace takes a packet for any of its addresses
 * on any interface.
 */
import { readFileSync } from 'node:fs';
import type { Protocol } from '../types.js';

export interface Listener {
	readonly protocol: Protocol;
	/** Text; `0.0.0.0` and `::` are wildcards. */
	readonly address: string;
	readonly port: number;
}

/** TCP_LISTEN, and what an unconnected UDP socket is called. */
const STATE = { tcp: '0A', udp: '07' } as const;

/** `/proc/net/tcp`, `udp`: addresses are words of the host's byte order. */
export function parseListeners(text: string, protocol: Protocol): Listener[] {
	const out: Listener[] = [];
	for (const line of text.split('\n').slice(1)) {
		const m = /^\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) \S+ ([0-9A-F]{2}) /.exec(line);
		if (m === null || m[3] !== STATE[protocol]) continue;
		const bytes = Buffer.from(m[1], 'hex');
		for (let i = 0; i < bytes.length; i += 4) bytes.subarray(i, i + 4).reverse();
		const mapped = bytes.length === 16 && bytes.subarray(0, 12).equals(Buffer.from('00000000000000000000ffff', 'hex'));
		const four = bytes.length === 4 ? bytes : mapped ? bytes.subarray(12) : undefined;
		const address =
			four !== undefined
				? four.join('.')
				: bytes.every((b) => b === 0)
					? '::'
					: (bytes.toString('hex').match(/.{4}/g) ?? []).join(':');
		out.push({ protocol, address, port: Number.parseInt(m[2], 16) });
	}
	return out;
}

/** undefined: /proc does not show that container's process here (an agent in a container of its own). */
export function readListeners(container: string, pid: number, proc = '/proc'): Listener[] | undefined {
	try {
		// A pid of another PID namespace is somebody else.
		if (pid <= 0 || !readFileSync(`${proc}/${pid}/cgroup`, 'utf8').includes(container)) return undefined;
		return (['tcp', 'udp'] as const).flatMap((p) =>
			[p, `${p}6`].flatMap((f) => parseListeners(readFileSync(`${proc}/${pid}/net/${f}`, 'utf8'), p)),
		);
	} catch {
		return undefined;
	}
}

/** `tcp/80` of ports that are listened on at `address`, and neither everywhere nor on the leg. */
export function onlyAt(listeners: readonly Listener[], address: string, leg: string | undefined): string[] {
	const reached = new Set(
		listeners
			.filter((l) => l.address === '0.0.0.0' || l.address === '::' || l.address === leg)
			.map((l) => `${l.protocol}/${l.port}`),
	);
	const there = listeners.filter((l) => l.address === address).map((l) => `${l.protocol}/${l.port}`);
	return [...new Set(there)].filter((p) => !reached.has(p)).sort();
}
