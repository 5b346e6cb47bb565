import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, statfsSync, writeSync } from 'node:fs';
import { mkdir, readFile, statfs } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { LoaderError, reason } from './errors.js';

const BPF_FS_MAGIC = 0xcafe4a11;

/** Mount points of a mountinfo text (proc_pid_mountinfo(5)) with the type of what is mounted there, in mount order. */
export function parseMounts(mountinfo: string): readonly { readonly at: string; readonly type: string }[] {
	return mountinfo
		.split('\n')
		.filter((l) => l.includes(' - '))
		.map((l) => {
			const [left, right] = l.split(' - ');
			const at = left
				.split(' ')[4]
				.replace(/\\([0-7]{3})/g, (_, o: string) => String.fromCharCode(Number.parseInt(o, 8)));
			return { at, type: right.split(' ')[0] };
		});
}

async function fsType(path: string): Promise<number> {
	for (let p = path; ; p = dirname(p)) {
		try {
			return (await statfs(p)).type;
		} catch (e) {
			if ((e as NodeJS.ErrnoException).code !== 'ENOENT' || p === '/') throw e;
		}
	}
}

/**
 * Makes sure that `pinRoot` lies on a BPF file system that nothing covers, mounting one at /sys/fs/bpf where there is none.
 * A second bpffs mounted over the first hides its pins while their programs stay attached.
 * @throws LoaderError NO_BPFFS, STACKED_BPFFS
 */
export async function ensureBpffs(pinRoot: string, o: { readonly mount?: boolean } = {}): Promise<void> {
	const path = resolve(pinRoot);
	const mounts = parseMounts(await readFile('/proc/self/mountinfo', 'utf8'));
	const under = mounts
		.filter((m) => m.type === 'bpf' && (path === m.at || path.startsWith(m.at === '/' ? '/' : `${m.at}/`)))
		.map((m) => m.at);
	const stacked = under.find((at, i) => under.indexOf(at) !== i);
	if (stacked !== undefined)
		throw new LoaderError(
			'STACKED_BPFFS',
			`pin at ${path}: two BPF file systems are mounted over each other at ${stacked}, and the lower one's pins are hidden: umount ${stacked}`,
		);
	if (mounts.some((m) => m.at === path) || path === '/')
		throw new LoaderError(
			'NO_BPFFS',
			`pin at ${path}: others pin on that file system too: choose a directory below it, such as ${join(path, 'beeline')}`,
		);
	if ((await fsType(path)) === BPF_FS_MAGIC) return;
	if ((o.mount ?? true) && path.startsWith('/sys/fs/bpf/')) {
		try {
			await promisify(execFile)('mount', ['-t', 'bpf', 'bpf', '/sys/fs/bpf']);
			return;
		} catch (e) {
			throw new LoaderError('NO_BPFFS', `mount the BPF file system at /sys/fs/bpf: ${reason(e).split('\n')[0]}`, {
				cause: e,
			});
		}
	}
	throw new LoaderError(
		'NO_BPFFS',
		`pin at ${path}: it does not lie on a BPF file system: mount -t bpf bpf /sys/fs/bpf, and choose a directory below it`,
	);
}

/**
 * Refuses what cannot be a directory of pins. Taking down removes all that is below it: nothing else may be meant.
 * @param root an absolute path of what exists
 * @throws LoaderError NO_BPFFS
 */
export function needPinDirectory(root: string): void {
	const mounted = root === '/' || parseMounts(readFileSync('/proc/self/mountinfo', 'utf8')).some((m) => m.at === root);
	if (mounted || statfsSync(root).type !== BPF_FS_MAGIC)
		throw new LoaderError(
			'NO_BPFFS',
			`detach ${root}: it is ${mounted ? 'where a file system is mounted' : 'not on a BPF file system'}, and pins lie in a directory on one: nothing was removed`,
		);
}

/** Held until released or until the process ends, however it ends. */
export interface PinLock {
	release(): void;
}

/**
 * One process at a time for one `pinRoot`: flock(2) on a file in `runDir` whose name comes from the path.
 * @throws LoaderError LOCKED, naming the process that holds it
 */
export function lockPinRoot(pinRoot: string, runDir: string): PinLock {
	const path = resolve(pinRoot);
	mkdirSync(runDir, { recursive: true });
	const file = join(runDir, `pins-${createHash('sha256').update(path).digest('hex').slice(0, 16)}.lock`);
	const fd = openSync(file, 'a+', 0o600);
	// flock(1) locks the open file that it inherits; the lock outlives it, as this process still holds that open file.
	const r = spawnSync('flock', ['--exclusive', '--nonblock', '3'], { stdio: ['ignore', 'ignore', 'pipe', fd] });
	if (r.status !== 0) {
		const holder = readFileSync(file, 'utf8').trim();
		closeSync(fd);
		if (r.error) throw new LoaderError('LOCKED', `lock ${path}: flock (Debian package util-linux): ${reason(r.error)}`);
		throw new LoaderError(
			'LOCKED',
			`lock ${path}: another process works on it${holder ? ` (process ${holder})` : ''}: stop it first, or choose another pinRoot`,
		);
	}
	ftruncateSync(fd, 0);
	writeSync(fd, String(process.pid));
	let held = true;
	return {
		release() {
			if (held) closeSync(fd);
			held = false;
		},
	};
}

export async function makeDir(path: string): Promise<void> {
	await mkdir(path, { recursive: true, mode: 0o700 });
}
