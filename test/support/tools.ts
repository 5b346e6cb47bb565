import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The checkout this file was built in: the directory above dist/. */
export const root = findRoot(dirname(fileURLToPath(import.meta.url)));

function findRoot(start: string): string {
	for (let at = start; at !== dirname(at); at = dirname(at))
		if (existsSync(join(at, 'package-lock.json')) && existsSync(join(at, 'bpf'))) return at;
	throw new Error(`no checkout of Beeline above ${start}`);
}

const sources = join(root, 'test/support/c');
const output = join(root, 'dist/test/support/bin');

/** Those with `-static` need no library: they are what runs in images. */
const TOOLS = [
	...(['httpd', 'load', 'udpecho', 'udpload', 'frame', 'pass.o'] as const),
	...(['httpd-static', 'udpecho-static', 'load-static', 'udpload-static'] as const),
] as const;
export type Tool = (typeof TOOLS)[number];

/**
 * The path of a test program in C, compiled when it is missing or older than its sources.
 *
 * @throws when gcc (clang for pass.o) is missing or refuses the source
 */
export function tool(name: Tool): string {
	const path = join(output, name);
	if (existsSync(path) && statSync(path).mtimeMs > newestSource()) return path;
	mkdirSync(output, { recursive: true });
	const aside = `${path}.${process.pid}`;
	const [command, args] =
		name === 'pass.o'
			? ([
					'clang',
					[
						'-O2',
						'-g',
						'-target',
						'bpf',
						`-I/usr/include/${multiarch()}`,
						'-c',
						join(sources, 'pass.bpf.c'),
						'-o',
						aside,
					],
				] as const)
			: ([
					'gcc',
					[
						...['-O2', '-Wall', '-Wextra', '-Werror', ...(name.endsWith('-static') ? ['-static'] : [])],
						...[join(sources, `${name.replace('-static', '')}.c`), '-o', aside],
					],
				] as const);
	try {
		execFileSync(command, args, { stdio: 'pipe' });
	} catch (error) {
		const text = (error as { stderr?: Buffer }).stderr?.toString().trim() || (error as Error).message;
		throw new Error(`compile ${name}: ${text} (scripts/setup installs the compilers)`, { cause: error });
	}
	// Two test files may compile at once: the last rename wins, and both are whole.
	renameSync(aside, path);
	return path;
}

/** Compiles all of them, as scripts/setup does. */
export function compileTools(): void {
	for (const name of TOOLS) tool(name);
}

function newestSource(): number {
	return Math.max(...readdirSync(sources).map((file) => statSync(join(sources, file)).mtimeMs));
}

function multiarch(): string {
	const machine = { x64: 'x86_64', arm64: 'aarch64' }[process.arch as string] ?? process.arch;
	return `${machine}-linux-gnu`;
}
