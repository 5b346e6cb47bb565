import { mkdirSync, readFileSync, statfsSync } from 'node:fs';
import { resolve } from 'node:path';
import { BpfError } from './errors.js';
import { native } from './ffi.js';
import { permissionHint } from './sys.js';

const BPF_FS_MAGIC = 0xcafe4a11;

/**
 * Makes `path` a directory on a bpffs: where it is one already nothing is mounted. Several bpffs stacked on one
 * mount point hide older pins whose programs stay attached, and are refused.
 */
export function ensureBpffs(path = '/sys/fs/bpf'): void {
	const dir = resolve(path);
	const op = `prepare bpffs at ${dir}`;
	const stacked = bpffsMounts().filter((m) => dir === m || dir.startsWith(`${m}/`));
	const deepest = stacked.sort((a, b) => b.length - a.length)[0];
	const times = stacked.filter((m) => m === deepest).length;
	if (times > 1)
		throw new BpfError(
			op,
			16,
			`${times} bpffs are stacked on ${deepest} and hide each other's pins: umount ${deepest}`,
		);
	try {
		mkdirSync(dir, { recursive: true });
		if (statfsSync(dir).type === BPF_FS_MAGIC) return;
	} catch (e) {
		throw new BpfError(op, 2, 'the directory cannot be made', e);
	}
	const n = native();
	if (n.mount('bpf', dir, 'bpf', 0, null) !== 0) {
		const errno = n.errno();
		throw new BpfError(op, errno, permissionHint(errno) || `mount -t bpf bpf ${dir}`);
	}
}

/** Mount points of type bpf, as often as they are mounted. */
function bpffsMounts(): string[] {
	return readFileSync('/proc/self/mountinfo', 'utf8')
		.split('\n')
		.filter((l) => / - bpf /.test(l))
		.map((l) => l.split(' ')[4]);
}
