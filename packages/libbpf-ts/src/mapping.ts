// mmap that cannot crash the process: unmap() puts anonymous memory in the mapping's place, so that a typed array
// somebody kept reads zeros instead of raising SIGSEGV; the addresses are given back when the last view is collected.
import { BpfError, UsageError } from './errors.js';
import { native, viewOf } from './ffi.js';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;

const FAILED = (1n << 64n) - 1n;
const addresses = new FinalizationRegistry<{ at: bigint; length: number }>(({ at, length }) => {
	native().munmap(at, length);
});

/** Kernel memory seen from JavaScript. After unmap() every getter throws. */
export class Mapping implements Disposable {
	private view: ArrayBuffer | undefined;
	private words32: Uint32Array | undefined;
	private words64: BigUint64Array | undefined;
	private octets: Uint8Array | undefined;

	private constructor(
		private readonly op: string,
		private readonly at: bigint,
		/** Bytes. */
		readonly length: number,
	) {
		this.view = viewOf(at, length);
		addresses.register(this.view, { at, length });
	}

	static of(op: string, fd: number, length: number, offset = 0, readonly = false): Mapping {
		const n = native();
		const prot = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
		const at = BigInt.asUintN(64, BigInt(n.mmap(null, length, prot, MAP_SHARED, fd, offset)));
		if (at === FAILED) {
			const e = n.errno();
			throw new BpfError(op, e, e === 22 || e === 95 || e === 524 ? 'the map was not created with BPF_F_MMAPABLE' : '');
		}
		return new Mapping(op, at, length);
	}

	get buffer(): ArrayBuffer {
		if (!this.view) throw new UsageError(`${this.op}: already unmapped`);
		return this.view;
	}
	get bytes(): Uint8Array {
		this.octets ??= new Uint8Array(this.buffer);
		return this.octets;
	}
	get u32(): Uint32Array {
		this.words32 ??= new Uint32Array(this.buffer, 0, this.length >> 2);
		return this.words32;
	}
	get u64(): BigUint64Array {
		this.words64 ??= new BigUint64Array(this.buffer, 0, this.length >> 3);
		return this.words64;
	}

	/** Lets go of the kernel's memory at once. Can be repeated. */
	unmap(): void {
		if (!this.view) return;
		this.view = this.octets = this.words32 = this.words64 = undefined;
		native().mmap(
			this.at,
			this.length,
			PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
			-1,
			0,
		);
	}
	[Symbol.dispose](): void {
		this.unmap();
	}
}

/** Zeroed private memory that costs nothing until it is touched (verifier logs). The caller frees it. */
export function anonymous(length: number): { at: bigint; free(): void } {
	const n = native();
	const at = BigInt.asUintN(
		64,
		BigInt(n.mmap(null, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
	);
	if (at === FAILED) throw new BpfError(`allocate ${length} bytes`, n.errno());
	return { at, free: () => void n.munmap(at, length) };
}

let page = 0;
/** Bytes: 4096 on x86_64, up to 65536 on arm64. */
export function pageSize(): number {
	page ||= native().pageSize();
	return page;
}
export const pageUp = (n: number): number => Math.ceil(n / pageSize()) * pageSize();
