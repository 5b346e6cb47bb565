// IPv4 datagrams beyond what node:dgram offers: many in one system call, the kernel's own receive times, whom an ICMP
// error speaks of, and packets with another's source address. Never blocks; the caller decides when to look.
import { BpfError } from './errors.js';
import { addressOf, native } from './ffi.js';
import { permissionHint } from './sys.js';

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const SOCK_FLAGS = 0o2004000; // SOCK_CLOEXEC | SOCK_NONBLOCK
const IPPROTO_RAW = 255;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SO_TIMESTAMPNS = 35;
const IP_RECVERR = 11;
const MSG_ERRQUEUE = 0x2000;
const CLOCK_REALTIME = 0;
const ORIGIN_ICMP = 2;

/** sizeof: struct mmsghdr, msghdr, iovec, sockaddr_in; on the 64-bit ABIs. */
const MMSGHDR = 64;
const MSGHDR = 56;
const IOVEC = 16;
const SOCKADDR = 16;
const CONTROL = 128;
const RECEIVE_BATCH = 64;
const RECEIVE_BYTES = 256;
const SEND_BATCH = 128;
/** What fits an Ethernet frame of 1500 bytes. */
const SEND_BYTES = 1472;

/** Off the heap of V8, which may move what is small. */
const memory = (n: number): Uint8Array => new Uint8Array(new ArrayBuffer(n));
const viewOf = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.byteLength);

export interface Datagram {
	/** IPv4 of the sender, host order. */
	readonly from: number;
	readonly port: number;
	/** A copy; what is longer than 256 bytes is cut. */
	readonly payload: Uint8Array;
	/** When the kernel got it: CLOCK_REALTIME, ms with a fraction (a double resolves 0.2 µs of it). */
	readonly atMs: number;
}

/** What a router or the other end said about a datagram, or this kernel did (no route, nobody answers ARP). */
export interface SocketError {
	/** IPv4 that the datagram went to, host order. */
	readonly to: number;
	readonly errno: number;
	/** It came from the network. */
	readonly icmp: boolean;
}

function sockaddr(into: DataView, at: number, address: number, port: number): void {
	into.setUint16(at, AF_INET, true);
	into.setUint16(at + 2, port);
	into.setUint32(at + 4, address >>> 0);
}

/** struct timespec of two 64-bit numbers, without a BigInt for each packet. */
function timespecMs(v: DataView, at: number): number {
	const seconds = v.getUint32(at + 4, true) * 0x1_0000_0000 + v.getUint32(at, true);
	return seconds * 1000 + v.getUint32(at + 8, true) / 1e6;
}

function open(what: string, type: number, protocol: number): number {
	const n = native();
	const fd = n.socket(AF_INET, type | SOCK_FLAGS, protocol);
	if (fd < 0) throw new BpfError(what, n.errno(), permissionHint(n.errno()));
	return fd;
}

function option(fd: number, what: string, level: number, name: number, value: number): void {
	const n = native();
	const v = memory(4);
	viewOf(v).setInt32(0, value, true);
	if (n.setsockopt(fd, level, name, v, 4) < 0) throw new BpfError(what, n.errno(), permissionHint(n.errno()));
}

/** One UDP socket over IPv4, and (made when first used) a raw one beside it. Addresses are numbers in host order. */
export class Datagrams implements Disposable {
	readonly #fd: number;
	#raw = -1;
	/** Port that it is bound to. */
	readonly port: number;

	readonly #receive: Uint8Array;
	readonly #receiveView: DataView;
	readonly #send: Uint8Array;
	readonly #sendView: DataView;
	readonly #error: Uint8Array;
	readonly #errorView: DataView;
	readonly #clock = memory(16);
	readonly #clockView = viewOf(this.#clock);

	/**
	 * Binds to an address of the calling thread's network namespace.
	 * @param address host order; 0: any
	 * @param port 0: the kernel chooses
	 * @throws BpfError
	 */
	constructor(address: number, port = 0) {
		const n = native();
		const what = 'open UDP socket';
		this.#fd = open(what, SOCK_DGRAM, 0);
		try {
			option(this.#fd, what, SOL_SOCKET, SO_TIMESTAMPNS, 1);
			option(this.#fd, what, 0, IP_RECVERR, 1);
			try {
				option(this.#fd, what, SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20);
			} catch {
				// Without CAP_NET_ADMIN the default has to do.
			}
			const a = memory(SOCKADDR);
			sockaddr(viewOf(a), 0, address, port);
			if (n.bind(this.#fd, a, SOCKADDR) < 0) throw new BpfError('bind UDP socket', n.errno());
			const length = memory(4);
			viewOf(length).setUint32(0, SOCKADDR, true);
			if (n.getsockname(this.#fd, a, length) < 0) throw new BpfError('bind UDP socket', n.errno());
			this.port = viewOf(a).getUint16(2);
		} catch (e) {
			n.closeFd(this.#fd);
			throw e;
		}

		// Headers, then what they point to: all in one piece each, filled in once.
		const layOut = (count: number, header: number, bytes: number, control: number): Uint8Array => {
			const each = header + IOVEC + SOCKADDR + control + bytes;
			const b = memory(each * count);
			const v = viewOf(b);
			const base = addressOf(b);
			for (let i = 0; i < count; i++) {
				const h = i * header;
				const iov = count * header + i * IOVEC;
				const name = count * (header + IOVEC) + i * SOCKADDR;
				const ctl = count * (header + IOVEC + SOCKADDR) + i * control;
				const data = count * (header + IOVEC + SOCKADDR + control) + i * bytes;
				v.setBigUint64(h, base + BigInt(name), true);
				v.setUint32(h + 8, SOCKADDR, true);
				v.setBigUint64(h + 16, base + BigInt(iov), true);
				v.setBigUint64(h + 24, 1n, true);
				if (control > 0) v.setBigUint64(h + 32, base + BigInt(ctl), true);
				v.setBigUint64(h + 40, BigInt(control), true);
				v.setBigUint64(iov, base + BigInt(data), true);
				v.setBigUint64(iov + 8, BigInt(bytes), true);
			}
			return b;
		};
		this.#receive = layOut(RECEIVE_BATCH, MMSGHDR, RECEIVE_BYTES, CONTROL);
		this.#receiveView = viewOf(this.#receive);
		this.#send = layOut(SEND_BATCH, MMSGHDR, SEND_BYTES, 0);
		this.#sendView = viewOf(this.#send);
		this.#error = layOut(1, MSGHDR, RECEIVE_BYTES, CONTROL * 4);
		this.#errorView = viewOf(this.#error);
	}

	/** CLOCK_REALTIME, ms with a fraction: what Datagram.atMs is measured by. */
	nowMs(): number {
		native().clockGettime(CLOCK_REALTIME, this.#clock);
		return timespecMs(this.#clockView, 0);
	}

	/**
	 * Sends them, in order. One that the kernel refuses (no route, a firewall's reject) is left out: its errno is in
	 * the answer, by its index.
	 * @throws RangeError for a payload of more than 1472 bytes
	 */
	send(
		list: readonly { readonly to: number; readonly port: number; readonly payload: Uint8Array }[],
	): Map<number, number> {
		const n = native();
		const v = this.#sendView;
		const refused = new Map<number, number>();
		for (let from = 0; from < list.length; from += SEND_BATCH) {
			const count = Math.min(SEND_BATCH, list.length - from);
			for (let i = 0; i < count; i++) {
				const { to, port, payload } = list[from + i];
				sockaddr(v, SEND_BATCH * (MMSGHDR + IOVEC) + i * SOCKADDR, to, port);
				this.#put(i, payload);
			}
			let at = 0;
			let tries = 0;
			while (at < count) {
				const r = n.sendmmsg(this.#fd, this.#send.subarray(at * MMSGHDR), count - at, 0);
				if (r > 0) {
					at += r;
					tries = 0;
					continue;
				}
				// An ICMP error about an earlier datagram is told to the next one, once: that one is not at fault.
				const errno = n.errno();
				if (tries++ < 2) continue;
				refused.set(from + at, errno);
				at++;
				tries = 0;
			}
		}
		return refused;
	}

	/** What has arrived; `limit` at most. */
	receive(limit = 4096): Datagram[] {
		const n = native();
		const v = this.#receiveView;
		const out: Datagram[] = [];
		let errors = 0;
		while (out.length < limit) {
			const r = n.recvmmsg(this.#fd, this.#receive, RECEIVE_BATCH, 0, null);
			if (r < 0) {
				// EAGAIN: nothing more. Anything else is an ICMP error, told once.
				if (n.errno() === 11 || errors++ > 64) return out;
				continue;
			}
			for (let i = 0; i < r; i++) {
				const name = RECEIVE_BATCH * (MMSGHDR + IOVEC) + i * SOCKADDR;
				const data = RECEIVE_BATCH * (MMSGHDR + IOVEC + SOCKADDR + CONTROL) + i * RECEIVE_BYTES;
				const length = Math.min(RECEIVE_BYTES, v.getUint32(i * MMSGHDR + MSGHDR, true));
				const control = RECEIVE_BATCH * (MMSGHDR + IOVEC + SOCKADDR) + i * CONTROL;
				let atMs = 0;
				// struct cmsghdr: length, level, type; then a timespec.
				if (
					v.getUint32(i * MMSGHDR + 40, true) >= 32 &&
					v.getInt32(control + 8, true) === SOL_SOCKET &&
					v.getInt32(control + 12, true) === SO_TIMESTAMPNS
				)
					atMs = timespecMs(v, control + 16);
				out.push({
					from: v.getUint32(name + 4),
					port: v.getUint16(name + 2),
					payload: this.#receive.slice(data, data + length),
					atMs,
				});
				// The kernel wrote lengths over the room there is.
				v.setUint32(i * MMSGHDR + 8, SOCKADDR, true);
				v.setUint32(i * MMSGHDR + 40, CONTROL, true);
			}
			if (r < RECEIVE_BATCH) return out;
		}
		return out;
	}

	/** What was said about datagrams sent before; `limit` at most. */
	errors(limit = 4096): SocketError[] {
		const n = native();
		const v = this.#errorView;
		const out: SocketError[] = [];
		const name = MSGHDR + IOVEC;
		const control = name + SOCKADDR;
		while (out.length < limit) {
			v.setUint32(8, SOCKADDR, true);
			v.setBigUint64(40, BigInt(CONTROL * 4), true);
			if (n.recvmsg(this.#fd, this.#error, MSG_ERRQUEUE) < 0) return out;
			const end = control + Number(v.getBigUint64(40, true));
			for (let at = control; at + 16 <= end; ) {
				const length = Number(v.getBigUint64(at, true));
				if (length < 16) break;
				// struct sock_extended_err: errno, origin, …
				if (v.getInt32(at + 8, true) === 0 && v.getInt32(at + 12, true) === IP_RECVERR)
					out.push({
						to: v.getUint32(name + 4),
						errno: v.getUint32(at + 16, true),
						icmp: v.getUint8(at + 20) === ORIGIN_ICMP,
					});
				at += (length + 7) & ~7;
			}
		}
		return out;
	}

	/**
	 * Sends one UDP datagram as if from another address (raw(7), IP_HDRINCL): the kernel's routes choose its way, the UDP
	 * checksum is 0. Needs CAP_NET_RAW.
	 * @returns 0, or the errno of what refused it
	 * @throws BpfError where raw sockets are not allowed
	 */
	sendFrom(
		source: { readonly address: number; readonly port: number },
		to: { readonly address: number; readonly port: number },
		payload: Uint8Array,
	): number {
		const n = native();
		if (this.#raw < 0) this.#raw = open('open raw socket', SOCK_RAW, IPPROTO_RAW);
		const packet = new Uint8Array(28 + payload.byteLength);
		const p = viewOf(packet);
		p.setUint8(0, 0x45);
		p.setUint16(2, packet.byteLength);
		p.setUint8(8, 64);
		p.setUint8(9, 17);
		p.setUint32(12, source.address >>> 0);
		p.setUint32(16, to.address >>> 0);
		p.setUint16(20, source.port);
		p.setUint16(22, to.port);
		p.setUint16(24, 8 + payload.byteLength);
		packet.set(payload, 28);
		const v = this.#sendView;
		sockaddr(v, SEND_BATCH * (MMSGHDR + IOVEC), to.address, 0);
		this.#put(0, packet);
		return n.sendmmsg(this.#raw, this.#send, 1, 0) === 1 ? 0 : n.errno();
	}

	/** Bytes of the i-th message to be sent. */
	#put(i: number, payload: Uint8Array): void {
		if (payload.byteLength > SEND_BYTES)
			throw new RangeError(`send datagram: ${payload.byteLength} bytes are more than ${SEND_BYTES}`);
		this.#send.set(payload, SEND_BATCH * (MMSGHDR + IOVEC + SOCKADDR) + i * SEND_BYTES);
		// Of a size_t whose upper half stays 0.
		this.#sendView.setUint32(SEND_BATCH * MMSGHDR + i * IOVEC + 8, payload.byteLength, true);
	}

	#closed = false;
	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		native().closeFd(this.#fd);
		if (this.#raw >= 0) native().closeFd(this.#raw);
	}

	[Symbol.dispose](): void {
		this.close();
	}
}
