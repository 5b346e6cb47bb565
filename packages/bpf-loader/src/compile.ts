import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, constants, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { LoaderError, reason } from './errors.js';

export interface CompileOptions {
	/** Directories for `#include "…"`, before the system's. */
	readonly includes?: readonly string[];
	readonly defines?: Readonly<Record<string, string | number>>;
	/** Further flags, after the default ones. */
	readonly flags?: readonly string[];
	/** Name or path of clang; default `clang`. */
	readonly clang?: string;
	/** Where objects are kept; without it nothing is. */
	readonly cacheDir?: string;
}

export interface Compiled {
	/** File name of the source without `.c`, with `.o`: `uplink_xdp.bpf.o`. */
	readonly name: string;
	readonly object: Uint8Array;
	/** Of everything that went in: source, headers, flags, compiler. */
	readonly digest: string;
	/** In the cache; undefined without one. */
	readonly path: string | undefined;
	/** The compiler's warnings; those of the first compilation where the object came from the cache. */
	readonly warnings: string;
	readonly cached: boolean;
}

interface Run {
	readonly status: number;
	readonly stdout: string;
	readonly stderr: string;
}

const TRIPLETS: Readonly<Record<string, string>> = {
	x64: 'x86_64-linux-gnu',
	arm64: 'aarch64-linux-gnu',
	riscv64: 'riscv64-linux-gnu',
	loong64: 'loongarch64-linux-gnu',
};

function run(command: string, args: readonly string[]): Promise<Run> {
	return new Promise((ok, fail) => {
		execFile(command, args, { maxBuffer: 64 << 20 }, (e, stdout, stderr) => {
			if (e && typeof e.code !== 'number') {
				if ((e as NodeJS.ErrnoException).code === 'ENOENT')
					fail(
						new LoaderError(
							'NO_COMPILER',
							`compile: ${command} is not installed: install the Debian package clang, or give a directory of precompiled objects`,
							{ cause: e },
						),
					);
				else fail(e);
			} else ok({ status: typeof e?.code === 'number' ? e.code : 0, stdout, stderr });
		});
	});
}

const versions = new Map<string, Promise<string>>();

/** `clang --version`, once per process: the version is part of each object's digest. */
function clangVersion(clang: string): Promise<string> {
	let v = versions.get(clang);
	if (!v) {
		v = run(clang, ['--version']).then((r) => r.stdout);
		v.catch(() => versions.delete(clang));
		versions.set(clang, v);
	}
	return v;
}

/** Prerequisites of a makefile rule as `clang -M` prints it: `\ ` is a space in a name, `\` + newline goes on. */
export function parseDepfile(text: string): string[] {
	const joined = text.replace(/\\\r?\n/g, ' ');
	const list = joined.slice(joined.indexOf(':') + 1);
	return (list.match(/(?:\\.|\$\$|[^\s\\])+/g) ?? []).map((s) => s.replace(/\$\$/g, '$').replace(/\\(.)/g, '$1'));
}

/** The compiler's first error, without the path's directory. */
function firstError(stderr: string): string {
	const lines = stderr.split('\n');
	const line = lines.find((l) => /\b(fatal )?error:/.test(l)) ?? lines.find((l) => l.trim() !== '') ?? 'no message';
	const m = /^(.*?):(\d+):(\d+): (?:fatal )?error: (.*)$/.exec(line);
	return m ? `${basename(m[1])}:${m[2]}: ${m[4]}` : line.trim();
}

async function exists(path: string): Promise<boolean> {
	return access(path).then(
		() => true,
		() => false,
	);
}

/** Writes beside the target and renames, so that a reader sees a whole file or none. */
export async function writeAtomic(path: string, data: Uint8Array | string): Promise<void> {
	const aside = `${path}.${process.pid}.${Math.random().toString(36).slice(2)}`;
	try {
		await writeFile(aside, data);
		await rename(aside, path);
	} catch (e) {
		await rm(aside, { force: true });
		throw e;
	}
}

/**
 * Compiles one C file for the BPF target (CPU v3: 32-bit and atomic operations, in every kernel since 5.12).
 *
 * The cache's key is the content of the source and of every header that it includes, the system's too, the flags and
 * the compiler's version; paths do not count, so a checkout elsewhere shares the cache.
 * @throws LoaderError COMPILE_FAILED with the compiler's first error (`detail`: all of it); NO_COMPILER
 */
export async function compile(source: string, o: CompileOptions = {}): Promise<Compiled> {
	const src = resolve(source);
	const clang = o.clang ?? 'clang';
	if (!(await exists(src))) throw new LoaderError('COMPILE_FAILED', `compile ${source}: no such file`);
	const multiarch = `/usr/include/${TRIPLETS[process.arch] ?? `${process.arch}-linux-gnu`}`;
	const target = ['-target', 'bpf', '-O2', '-g', '-mcpu=v3', '-Wall', ...(o.flags ?? [])];
	const defines = Object.entries(o.defines ?? {})
		.sort(([a], [b]) => (a < b ? -1 : 1))
		.map(([k, v]) => `-D${k}=${v}`);
	// The kernel's asm/ headers lie in the host's multiarch directory, which clang leaves out for a foreign target.
	const paths = [...(o.includes ?? []).flatMap((d) => ['-I', resolve(d)]), '-idirafter', multiarch];
	const fail = (r: Run): LoaderError =>
		new LoaderError('COMPILE_FAILED', `compile ${basename(src)}: ${firstError(r.stderr)}`, { detail: r.stderr });

	const deps = await run(clang, [...target, ...defines, ...paths, '-M', src]);
	if (deps.status !== 0) throw fail(deps);
	const hash = createHash('sha256');
	const put = (s: string | Uint8Array) => hash.update(`${s.length}:`).update(s);
	put(await clangVersion(clang));
	for (const f of [...target, ...defines]) put(f);
	put(basename(src));
	for (const file of parseDepfile(deps.stdout)) put(await readFile(resolve(file)));
	const digest = hash.digest('hex').slice(0, 32);

	const name = `${basename(src).replace(/\.c$/, '')}.o`;
	const path = o.cacheDir && join(o.cacheDir, `${name.replace(/\.o$/, '')}-${digest}.o`);
	if (path && (await exists(path))) {
		const warnings = await readFile(`${path}.warnings`, 'utf8').catch(() => '');
		return { name, object: await readFile(path), digest, path, warnings, cached: true };
	}
	const dir = o.cacheDir ?? (await mkdtemp(join(tmpdir(), 'bpf-loader-')));
	try {
		await mkdir(dir, { recursive: true });
		await access(dir, constants.W_OK);
	} catch (e) {
		// A file system that is read-only is told by ENOENT of Node's own recursion.
		const code = (e as NodeJS.ErrnoException).code ?? reason(e);
		throw new LoaderError(
			'COMPILE_FAILED',
			`compile ${basename(src)}: ${dir} cannot be written (${code}): expected a directory for compiled objects`,
			{ cause: e },
		);
	}
	const aside = join(dir, `${name}.${process.pid}.${Math.random().toString(36).slice(2)}`);
	try {
		const built = await run(clang, [
			...target,
			...defines,
			...paths,
			`-ffile-prefix-map=${dirname(src)}/=`,
			'-c',
			src,
			'-o',
			aside,
		]);
		if (built.status !== 0) throw fail(built);
		const object = await readFile(aside);
		if (path) {
			if (built.stderr !== '') await writeAtomic(`${path}.warnings`, built.stderr);
			await rename(aside, path);
		}
		return { name, object, digest, path, warnings: built.stderr, cached: false };
	} catch (e) {
		if (e instanceof LoaderError) throw e;
		throw new LoaderError('COMPILE_FAILED', `compile ${basename(src)}: ${reason(e)}`, { cause: e });
	} finally {
		await rm(aside, { force: true });
		if (!o.cacheDir) await rm(dir, { recursive: true, force: true });
	}
}
