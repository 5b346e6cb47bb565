import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Callback, Test } from 'uvu';
import { ensureBpffs } from '../src/index.js';

export type All = {
	key: { saddr: number; port: number; proto: number; pad?: number };
	value: Record<string, unknown>;
};

const has = (command: string, ...args: string[]): boolean => spawnSync(command, args, { stdio: 'ignore' }).status === 0;
export const missing = {
	root: process.geteuid?.() === 0 ? '' : 'not root',
	clang: has('clang', '--version') ? '' : 'no clang',
	cc: has('cc', '--version') ? '' : 'no C compiler',
	ip: has('ip', '-V') ? '' : 'no ip(8)',
};
export const why = (...needs: (keyof typeof missing)[]): string =>
	needs
		.map((n) => missing[n])
		.filter(Boolean)
		.join(', ');

/** Registers a test, or says by name why not. */
export function when<C>(test: Test<C>, lack: string, name: string, body: Callback<C>): void {
	if (lack) console.log(`skipped: ${name} (${lack})`);
	else test(name, body);
}

export const dir = mkdtempSync(join(tmpdir(), 'libbpf-ts-'));
export const pins = `/sys/fs/bpf/lbts-test-${process.pid}`;
const cleanups: (() => void)[] = [() => rmSync(dir, { recursive: true, force: true })];
/** Runs when the process ends, whatever happened. */
export const cleanup = (f: () => void): void => void cleanups.unshift(f);
process.on('exit', () => {
	for (const f of cleanups) {
		try {
			f();
		} catch (e) {
			console.error('cleanup:', e);
		}
	}
});
for (const s of ['SIGINT', 'SIGTERM'] as const) process.on(s, () => process.exit(1));

export function pinDir(): string {
	ensureBpffs();
	mkdirSync(pins, { recursive: true });
	cleanup(() => rmSync(pins, { recursive: true, force: true }));
	return pins;
}

export const fixture = (name: string): string => fileURLToPath(new URL(`../../test/fixtures/${name}`, import.meta.url));

/** Compiles C for BPF; `source` is a fixture's file name or C text. */
export function compile(source: string): string {
	const path = /\.c$/.test(source) ? fixture(source) : undefined;
	const out = join(dir, `${Math.random().toString(36).slice(2)}.bpf.o`);
	const arch = process.arch === 'x64' ? 'x86_64' : 'aarch64';
	execFileSync(
		'clang',
		['-O2', '-g', '-target', 'bpf', `-I/usr/include/${arch}-linux-gnu`, '-x', 'c', '-c', path ?? '-', '-o', out],
		{ input: path ? undefined : source, stdio: ['pipe', 'inherit', 'inherit'] },
	);
	return out;
}

export const sh = (command: string, ...args: string[]): string => execFileSync(command, args, { encoding: 'utf8' });

/** A namespace `lbts-…` holding a veth pair v0 and v1, both up. */
export function namespace(tag: string): string {
	const name = `lbts-${tag}-${process.pid}`;
	sh('ip', 'netns', 'add', name);
	cleanup(() => {
		if (existsSync(`/run/netns/${name}`)) sh('ip', 'netns', 'del', name);
	});
	sh('ip', '-n', name, 'link', 'add', 'v0', 'type', 'veth', 'peer', 'name', 'v1');
	for (const d of ['lo', 'v0', 'v1']) sh('ip', '-n', name, 'link', 'set', d, 'up');
	return name;
}

export const cgroup2 = (): string | undefined => /\S+ (\S+) cgroup2 /.exec(readFileSync('/proc/mounts', 'utf8'))?.[1];

/** Waits for a condition, for at most two seconds. */
export async function until(what: string, f: () => boolean): Promise<void> {
	const end = Date.now() + 2000;
	while (!f()) {
		if (Date.now() > end) throw new Error(`waited 2 s for ${what}`);
		await new Promise((r) => setTimeout(r, 5));
	}
}
