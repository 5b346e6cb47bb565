import { LoaderError } from './errors.js';

/** A section of an ELF file; `data` is a view into the file, empty for SHT_NOBITS. */
export interface Section {
	readonly index: number;
	readonly name: string;
	readonly type: number;
	readonly flags: bigint;
	readonly link: number;
	readonly info: number;
	readonly data: Uint8Array;
}

const SHT_NOBITS = 8;

/** Text of a NUL-terminated string at `at`. */
export function cString(bytes: Uint8Array, at: number): string {
	let end = at;
	while (end < bytes.length && bytes[end] !== 0) end++;
	return Buffer.from(bytes.buffer, bytes.byteOffset + at, end - at).toString('latin1');
}

export function viewOf(bytes: Uint8Array): DataView {
	return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Sections of a 64-bit little-endian ELF file (System V ABI, chapter 4).
 * @throws LoaderError BAD_OBJECT where the file is no such thing
 */
export function readElf(bytes: Uint8Array): readonly Section[] {
	const view = viewOf(bytes);
	if (bytes.length < 64 || view.getUint32(0) !== 0x7f454c46)
		throw new LoaderError('BAD_OBJECT', 'the object is no ELF file: compile it with clang -target bpf');
	if (bytes[4] !== 2 || bytes[5] !== 1)
		throw new LoaderError('BAD_OBJECT', 'the object is not 64-bit little-endian: compile it with clang -target bpfel');
	const shoff = Number(view.getBigUint64(40, true));
	const entsize = view.getUint16(58, true);
	const count = view.getUint16(60, true);
	const names = view.getUint16(62, true);
	if (shoff + entsize * count > bytes.length)
		throw new LoaderError('BAD_OBJECT', 'the object is truncated: compile it again');
	const raw = Array.from({ length: count }, (_, index) => {
		const at = shoff + index * entsize;
		const type = view.getUint32(at + 4, true);
		const offset = Number(view.getBigUint64(at + 24, true));
		const size = type === SHT_NOBITS ? 0 : Number(view.getBigUint64(at + 32, true));
		return {
			index,
			nameAt: view.getUint32(at, true),
			type,
			flags: view.getBigUint64(at + 8, true),
			link: view.getUint32(at + 40, true),
			info: view.getUint32(at + 44, true),
			data: bytes.subarray(offset, offset + size),
		};
	});
	const strings = raw[names]?.data ?? new Uint8Array();
	return raw.map(({ nameAt, ...s }) => ({ ...s, name: cString(strings, nameAt) }));
}
