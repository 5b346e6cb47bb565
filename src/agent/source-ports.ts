/**
 * Ports that connections and datagrams of this node leave from, so that only packets to such ports are asked about
 * (docs/decisions/0017). `uplink_tc_egress` notes what leaves while it is attached; flows from before are read here, from
 * the kernel's conntrack and the node's own sockets. A port is `protocol (TCP 0, UDP 1) << 16 | port`, as in the maps.
 */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import ipaddr from 'ipaddr.js';
import { portKey } from '../mesh/entries.js';
import type { Protocol } from '../mesh/types.js';
import { parseSocket, TCP_LISTEN } from '../proc-net.js';

/** Where the answers of a masqueraded or own flow come to; undefined: a line of another kind, or of a client's. Pure. */
export function conntrackSource(line: string, own: ReadonlySet<string>): number | undefined {
	const protocol = /^ipv[46]\s+\d+\s+(tcp|udp)\s/.exec(line)?.[1];
	if (protocol === undefined) return undefined;
	const [, reply] = [...line.matchAll(/src=\S+ dst=(\S+) sport=\d+ dport=(\d+)/g)];
	return reply !== undefined && own.has(reply[1] as string)
		? portKey(protocol as Protocol, Number(reply[2]))
		: undefined;
}

/** Local port of a socket that does not listen, of a line of /proc/net/tcp, tcp6, udp or udp6. Pure. */
export function socketSource(line: string): number | undefined {
	const socket = parseSocket(line);
	return socket === undefined || socket.state === TCP_LISTEN ? undefined : socket.localPort;
}

/** An address as conntrack's lines have it: all eight groups of IPv6, of four digits. */
function asKernel(address: string): string {
	if (!address.includes(':')) return address;
	return ipaddr.IPv6.parse(address)
		.parts.map((x) => x.toString(16).padStart(4, '0'))
		.join(':');
}

export interface SourcePortsDeps {
	/** Notes ports for the programs. */
	readonly note: (ports: Iterable<number>) => void;
	/** The programs ask the kernel's conntrack. */
	readonly asksConntrack: boolean;
	/** Ports of the node's own sockets are asked about within. */
	readonly ownRange: () => { readonly from: number; readonly to: number };
	readonly onKnown: () => void;
	readonly log: (text: string) => void;
	/** Lines of a file of /proc/net. */
	readonly lines?: (name: string) => AsyncIterable<string>;
}

/** Line by line: conntrack's may be hundreds of megabytes. */
async function* linesOf(name: string): AsyncIterable<string> {
	yield* createInterface({ input: createReadStream(`/proc/net/${name}`), crlfDelay: Number.POSITIVE_INFINITY });
}

export class SourcePorts {
	/** Uplinks. */
	readonly #known = new Set<number>();
	/** Uplinks that were watched ever since reading began. */
	#reading: Set<number> | undefined;
	#failed = false;
	readonly #deps: SourcePortsDeps;

	constructor(deps: SourcePortsDeps) {
		this.#deps = deps;
	}

	/** Whether ports of all flows that leave by these uplinks are noted. */
	knows(uplinks: Iterable<number>): boolean {
		return [...uplinks].every((u) => this.#known.has(u));
	}

	/**
	 * @param uplinks those whose programs note ports now; none: the programs do not
	 * @param addresses of this node
	 */
	watch(uplinks: Iterable<number>, addresses: Iterable<string>): void {
		const wanted = new Set(uplinks);
		for (const set of [this.#known, this.#reading]) for (const u of set ?? []) if (!wanted.has(u)) set?.delete(u);
		if (this.#failed || this.#reading !== undefined || this.knows(wanted)) return;
		this.#reading = wanted;
		void this.#read(wanted, addresses);
	}

	async #read(uplinks: ReadonlySet<number>, addresses: Iterable<string>): Promise<void> {
		try {
			this.#deps.note(await this.#ports(addresses));
			for (const u of uplinks) this.#known.add(u);
			this.#deps.onKnown();
		} catch (e) {
			this.#failed = true;
			this.#deps.log(`each packet to a port that may be a source port is asked about: ${(e as Error).message}`);
		}
		this.#reading = undefined;
	}

	async #ports(addresses: Iterable<string>): Promise<Set<number>> {
		const { ownRange, asksConntrack, lines = linesOf } = this.#deps;
		const ports = new Set<number>();
		if (asksConntrack) {
			const own = new Set([...addresses].map(asKernel));
			for await (const line of lines('nf_conntrack')) {
				const port = conntrackSource(line, own);
				if (port !== undefined) ports.add(port);
			}
		}
		const range = ownRange();
		for (const [protocol, name] of [
			['tcp', 'tcp'],
			['tcp', 'tcp6'],
			['udp', 'udp'],
			['udp', 'udp6'],
		] as const) {
			try {
				for await (const line of lines(name)) {
					const port = socketSource(line);
					if (port !== undefined && port >= range.from && port <= range.to) ports.add(portKey(protocol, port));
				}
			} catch (e) {
				// A node without IPv6.
				if (name === protocol || (e as NodeJS.ErrnoException).code !== 'ENOENT') throw e;
			}
		}
		return ports;
	}
}
