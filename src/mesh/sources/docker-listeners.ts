/**
 * Where a task listens, by /proc of its container: one that listens on its address of the ingress network only, and not on
 * the leg where packets are delivered, has to get them by that address. Its namespace takes a packet for any of its addresses
 * on any interface.
 */
import { readFileSync } from 'node:fs';
import { addressOf, parseSockets, TCP_CLOSE, TCP_LISTEN } from '../../proc-net.js';
import type { Protocol } from '../types.js';

export interface Listener {
	readonly protocol: Protocol;
	/** Text; `0.0.0.0` and `::` are wildcards. */
	readonly address: string;
	readonly port: number;
}

const STATE = { tcp: TCP_LISTEN, udp: TCP_CLOSE } as const;

/** Of the text of a file of /proc/net. */
export function parseListeners(text: string, protocol: Protocol): Listener[] {
	return parseSockets(text)
		.filter((s) => s.state === STATE[protocol])
		.map((s) => ({ protocol, address: addressOf(s.local), port: s.localPort }));
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
