// Server sockets of another network namespace, for node:dgram and node:net to adopt by their fds. A Worker steps into the
// namespace for as long as it takes to make them: a socket belongs to the namespace of the thread that made it.
import { closeSync, openSync } from 'node:fs';
import { isIPv4 } from 'node:net';
import { isMainThread } from 'node:worker_threads';
import { BpfError, UsageError } from './errors.js';
import { native } from './ffi.js';
import { nsPath, permissionHint, setNetns } from './sys.js';

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_FLAGS = 0o2004000; // SOCK_CLOEXEC | SOCK_NONBLOCK
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const IFF_UP = 1;
const EINPROGRESS = 115;

/**
 * Calls `work` with the calling thread inside a network namespace, and brings the thread home again: it holds no namespace
 * alive afterwards. Only in a Worker (see Netns.run), and only for synchronous work.
 *
 * @param netns name under /run/netns, or path
 * @throws BpfError where the namespace cannot be entered
 */
export function withinNetns<T>(netns: string, work: () => T): T {
	if (isMainThread)
		throw new UsageError('withinNetns: a Worker is needed (setns on the main thread leaks into others)');
	const path = nsPath(netns);
	const home = openSync('/proc/thread-self/ns/net', 'r');
	try {
		let there: number;
		try {
			there = openSync(path, 'r');
		} catch (e) {
			throw new BpfError(`open network namespace ${path}`, 2, 'it cannot be opened', e);
		}
		try {
			setNetns(there);
		} finally {
			closeSync(there);
		}
		try {
			return work();
		} finally {
			setNetns(home);
		}
	} finally {
		closeSync(home);
	}
}

/**
 * Brings `lo` of the calling thread's namespace up: until then 127.0.0.0/8 is nowhere in it. Needs CAP_NET_ADMIN.
 *
 * @returns whether it was down
 * @throws BpfError
 */
export function loopbackUp(): boolean {
	const n = native();
	const failed = () => new BpfError('bring lo up', n.errno(), permissionHint(n.errno()));
	const fd = n.socket(AF_INET, SOCK_DGRAM | SOCK_FLAGS, 0);
	if (fd < 0) throw failed();
	try {
		// struct ifreq: a name of 16 bytes, then the flags as a short.
		const request = new Uint8Array(new ArrayBuffer(40));
		request.set(Buffer.from('lo'));
		if (n.ioctl(fd, SIOCGIFFLAGS, request) < 0) throw failed();
		const flags = new DataView(request.buffer);
		if (flags.getUint16(16, true) & IFF_UP) return false;
		flags.setUint16(16, flags.getUint16(16, true) | IFF_UP, true);
		if (n.ioctl(fd, SIOCSIFFLAGS, request) < 0) throw failed();
		return true;
	} finally {
		n.closeFd(fd);
	}
}

/** Two fds, non-blocking and closed on exec. Who gets them closes them. */
export interface Listeners {
	readonly udp: number;
	readonly tcp: number;
}

/**
 * A UDP socket and a listening TCP socket on one IPv4 address and port of the calling thread's namespace.
 *
 * @param address host order
 * @param backlog connections that wait to be accepted
 * @throws BpfError; EADDRINUSE where either port is taken. Neither socket is left behind.
 */
export function listenersOn(address: number, port: number, backlog = 128): Listeners {
	const n = native();
	const where = `${[24, 16, 8, 0].map((s) => (address >>> s) & 255).join('.')}:${port}`;
	const opened: number[] = [];
	const socket = (kind: 'UDP' | 'TCP', type: number): number => {
		const failed = () => new BpfError(`listen on ${where} (${kind})`, n.errno(), permissionHint(n.errno()));
		const fd = n.socket(AF_INET, type | SOCK_FLAGS, 0);
		if (fd < 0) throw failed();
		opened.push(fd);
		// Connections of an agent before this one may still be in TIME_WAIT. A UDP socket must not share its port.
		if (kind === 'TCP') {
			const one = new Uint8Array(new ArrayBuffer(4));
			one[0] = 1; // little-endian, as both supported machines are
			if (n.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, one, 4) < 0) throw failed();
		}
		const a = new Uint8Array(new ArrayBuffer(16));
		const v = new DataView(a.buffer);
		v.setUint16(0, AF_INET, true);
		v.setUint16(2, port);
		v.setUint32(4, address >>> 0);
		if (n.bind(fd, a, 16) < 0) throw failed();
		if (kind === 'TCP' && n.listen(fd, backlog) < 0) throw failed();
		return fd;
	};
	try {
		return { udp: socket('UDP', SOCK_DGRAM), tcp: socket('TCP', SOCK_STREAM) };
	} catch (e) {
		for (const fd of opened) n.closeFd(fd);
		throw e;
	}
}

/** The 16 bytes of an IPv6 address in text. */
function bytes6(address: string): readonly number[] {
	// A dotted tail is two hextets.
	const text = address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) =>
		[Number(a) * 256 + Number(b), Number(c) * 256 + Number(d)].map((n) => n.toString(16)).join(':'),
	);
	const [head, tail] = text.split('::');
	const of = (s: string | undefined) => (s ?? '').split(':').filter(Boolean);
	const zeros = tail === undefined ? 0 : 8 - of(head).length - of(tail).length;
	return [...of(head), ...Array<string>(zeros).fill('0'), ...of(tail)]
		.map((h) => Number.parseInt(h, 16))
		.flatMap((h) => [h >> 8, h & 255]);
}

/**
 * A UDP socket of the calling thread's namespace, neither bound nor connected: whoever adopts it does that.
 *
 * @returns its fd, non-blocking and closed on exec. Who gets it closes it.
 * @throws BpfError
 */
export function udpSocket(family: 4 | 6): number {
	const n = native();
	const fd = n.socket(family === 4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_FLAGS, 0);
	if (fd < 0) throw new BpfError('open UDP socket', n.errno(), permissionHint(n.errno()));
	return fd;
}

/**
 * A TCP socket of the calling thread's namespace on its way to a server: what is written waits until it is there.
 *
 * @param address text, of either family, without a zone
 * @returns its fd, non-blocking and closed on exec. Who gets it closes it.
 * @throws BpfError where there is no way there
 */
export function tcpTo(address: string, port: number): number {
	const n = native();
	const failed = () => new BpfError(`connect to ${address} port ${port}`, n.errno(), permissionHint(n.errno()));
	const four = isIPv4(address);
	const a = new Uint8Array(new ArrayBuffer(28));
	const v = new DataView(a.buffer);
	v.setUint16(0, four ? AF_INET : AF_INET6, true);
	v.setUint16(2, port);
	if (four) a.set(address.split('.').map(Number), 4);
	else a.set(bytes6(address), 8);
	const fd = n.socket(four ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_FLAGS, 0);
	if (fd < 0) throw failed();
	if (n.connect(fd, a, four ? 16 : 28) < 0 && n.errno() !== EINPROGRESS) {
		const e = failed();
		n.closeFd(fd);
		throw e;
	}
	return fd;
}
