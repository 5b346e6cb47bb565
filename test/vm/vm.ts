/** Commands under stock Debian kernels in a virtual machine (`run` beside the source of this file). */
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { buildObjects } from '../../src/loader/datapath.js';
import type { Result } from '../support/netns.js';
import { compileTools, root } from '../support/tools.js';

export const script = join(root, 'test/vm/run');

export type Series = '6.1' | '6.12';

/** Why no guest with that kernel can be started, or undefined. */
export function cannotUseVm(series: Series): string | undefined {
	if (/^\/(tmp|run)\//.test(root))
		return `needs a checkout elsewhere than in ${root}: a guest's /tmp and /run are empty`;
	const r = spawnSync(script, ['--missing', series], { encoding: 'utf8' });
	return r.status === 0 ? undefined : r.stdout.trim() || r.stderr.trim();
}

/** What is compiled is compiled outside: a guest is emulated, and thirty times slower. Returns the objects' directory. */
export async function compileForGuests(): Promise<string> {
	compileTools();
	const outDir = join(root, 'dist/test/vm/objects');
	await buildObjects({ bpfDir: join(root, 'bpf'), outDir });
	return outDir;
}

/** Runs a compiled program of the tests as root in a guest; stderr is passed on. */
export function runInGuest(
	o: {
		readonly series: Series;
		readonly modules?: readonly string[];
		readonly limitSeconds: number;
		readonly memoryMiB?: number;
	},
	program: string,
	...args: readonly string[]
): Promise<Result> {
	const child = spawn(
		script,
		[
			...['-k', o.series, '-t', String(o.limitSeconds), '-M', String(o.memoryMiB ?? 2048)],
			...(o.modules === undefined ? [] : ['-m', o.modules.join(',')]),
			process.execPath,
			'--enable-source-maps',
			join(root, 'dist/test/vm', program),
			...args,
		],
		{
			cwd: root,
			stdio: ['ignore', 'pipe', 'pipe'],
			env: { ...process.env, BEELINE_NO_BUILD: '1', BEELINE_SLOWNESS: '6', NO_COLOR: '1' },
		},
	);
	let stdout = '';
	let stderr = '';
	child.stdout.setEncoding('utf8').on('data', (text: string) => {
		stdout += text;
	});
	child.stderr.setEncoding('utf8').on('data', (text: string) => {
		stderr += text;
		process.stderr.write(text);
	});
	return new Promise((resolve) => child.on('close', (code) => resolve({ code: code ?? -1, stdout, stderr })));
}

/** Runs a story in a guest, for a `before` hook. @returns what it printed as JSON */
export async function seenInGuest<T>(suite: string, ...how: Parameters<typeof runInGuest>): Promise<T> {
	const { code, stdout } = await runInGuest(...how);
	if (code !== 0) {
		// uvu swallows what a `before` hook throws.
		process.on('exit', () => {
			process.exitCode = 1;
		});
		console.error(`\n  FAIL  ${suite}: the guest exited with ${code}`);
		throw new Error(`exit ${code}`);
	}
	return JSON.parse(stdout) as T;
}
