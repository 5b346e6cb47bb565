/**
 * npm run bench [-- PART...] [--runs N] [--only ROW]     PART: program, live, e2e, overlay, control; default all
 *
 * Prints tables of medians and ratios, and never asserts: a slow machine is no failure. What was seen: docs/benchmarks.md.
 */
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { run } from '../support/netns.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';

const PARTS = ['program', 'live', 'e2e', 'overlay', 'control'] as const;
type Part = (typeof PARTS)[number];
const DEFAULT_RUNS: Readonly<Record<Part, number>> = { program: 11, live: 11, e2e: 5, overlay: 31, control: 3 };

async function part(name: Part, runs: number, only: string, inside: boolean): Promise<void> {
	switch (name) {
		case 'program':
			return (await import('./program.js')).programBench(runs, only);
		case 'live':
			return (await import('./live.js')).liveBench(runs);
		case 'e2e':
			return (await import('./e2e.js')).e2eBench(runs);
		case 'overlay':
			return (await import('./overlay.js')).overlayBench(runs);
		case 'control':
			return (await import('./control.js')).controlBench(runs, inside);
	}
}

/** `program` needs routes and neighbours of its own and one CPU; `--inside` is this file's own argument. */
function inNamespace(name: Part, runs: number, only: string): number {
	const ns = `bl${process.pid}-bench`;
	const cpu = availableParallelism() - 1;
	run('ip', ['netns', 'add', ns]);
	try {
		run('ip', ['-n', ns, '-batch', '-'], {
			input: [
				'link set lo up',
				'link add up0 type veth peer name down0',
				'link set up0 up',
				'link set down0 up',
				'addr add 10.200.1.1/24 dev up0',
				'route add default via 10.200.1.254',
				'neigh add 10.200.1.254 lladdr 02:00:00:00:00:fe dev up0 nud permanent',
				'',
			].join('\n'),
		});
		run('nsenter', [`--net=/run/netns/${ns}`, 'sysctl', '-qw', 'net.ipv4.conf.all.forwarding=1']);
		const child = spawnSync(
			'nsenter',
			[
				`--net=/run/netns/${ns}`,
				'taskset',
				'-c',
				`${cpu}`,
				process.execPath,
				fileURLToPath(import.meta.url),
				'--inside',
				name,
				'--runs',
				`${runs}`,
				'--only',
				only,
			],
			{ stdio: 'inherit' },
		);
		return child.status ?? 1;
	} finally {
		run('ip', ['netns', 'del', ns], { mayFail: true });
	}
}

async function main(argv: readonly string[]): Promise<number> {
	const parts: Part[] = [];
	let runs: number | undefined;
	let only = '';
	let inside = false;
	for (let i = 0; i < argv.length; i++) {
		const arg = argv[i];
		if (arg === '--runs') runs = Number(argv[++i]);
		else if (arg === '--only') only = argv[++i];
		else if (arg === '--inside') inside = true;
		else if ((PARTS as readonly string[]).includes(arg)) parts.push(arg as Part);
		else throw new Error(`unknown argument ${arg} (known: ${PARTS.join(', ')}, --runs N, --only ROW)`);
	}
	if (runs !== undefined && !(Number.isInteger(runs) && runs > 0))
		throw new Error('--runs wants a whole number of runs, as --runs 11');
	const missing = cannotUseNamespaces() ?? cannotLoadBpf();
	if (missing) throw new Error(`the bench cannot run here: ${missing}`);
	for (const name of parts.length ? parts : PARTS) {
		const n = runs ?? DEFAULT_RUNS[name];
		if ((name === 'program' || name === 'live') && !inside) {
			if (inNamespace(name, n, only)) return 1;
		} else await part(name, n, only, inside);
	}
	return 0;
}

try {
	process.exitCode = await main(process.argv.slice(2));
} catch (error) {
	console.error(`bench: ${(error as Error).message}`);
	process.exitCode = 1;
}
