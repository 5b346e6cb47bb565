import { spawn } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { removeLeftovers } from './support/netns.js';
import { root } from './support/tools.js';

/*
 * Runs each test file in a node process of its own and counts.
 *
 *	node dist/test/run.js [FILTER...]        a filter is a part of the path: mesh/ netns/mesh
 *
 * Pure files run two at a time, those that share the machine (datapath, loader, netns, swarm) alone. A file that is silent
 * beyond its limit is killed, and what it left (namespaces, pins, files named after its pid) is removed.
 */

interface Outcome {
	readonly file: string;
	readonly passed: number;
	readonly failed: number;
	readonly skips: readonly string[];
	readonly seconds: number;
	readonly output: string;
	readonly problem?: string;
}

const alone = /(^|\/)(datapath|loader|netns|swarm|vm|bench|libbpf-ts|bpf-loader)\//;
const limitsMs: readonly (readonly [RegExp, number])[] = [
	[/\/netns\//, 300_000],
	[/\/swarm\//, 600_000],
	[/\/vm\/encryption-agents/, 3_900_000],
	[/\/vm\//, 2_400_000],
	[/./, 180_000],
];

function find(filters: readonly string[]): string[] {
	const files = ['.', ...readdirSync(`${root}/packages`).map((name) => `packages/${name}`)]
		.map((base) => (base === '.' ? 'dist/test' : `${base}/dist/test`))
		.filter((directory) => existsSync(`${root}/${directory}`))
		.flatMap((directory) =>
			readdirSync(`${root}/${directory}`, { recursive: true, encoding: 'utf8' })
				.filter((name) => name.endsWith('.test.js'))
				.map((name) => `${directory}/${name}`),
		)
		// tsc leaves the output of a source that was deleted or renamed.
		.filter((file) => existsSync(`${root}/${source(file)}`))
		.filter((file) => !filters.length || filters.some((filter) => source(file).includes(filter)));
	return files.sort();
}

function source(file: string): string {
	return file.replace('dist/test/', 'test/').replace(/\.js$/, '.ts');
}

/** Totals as uvu prints them; colours are off because the output is no terminal. */
export function totals(output: string): { total: number; passed: number; skipped: number } | undefined {
	const number = (word: string) => {
		const all = [...output.matchAll(new RegExp(`^\\s*${word}:\\s+(\\d+)`, 'gm'))];
		return all.length ? Number(all[all.length - 1][1]) : undefined;
	};
	const total = number('Total');
	return total === undefined ? undefined : { total, passed: number('Passed') ?? 0, skipped: number('Skipped') ?? 0 };
}

let current = new Set<number>();

async function runFile(file: string): Promise<Outcome> {
	const began = performance.now();
	const limitMs = limitsMs.find(([pattern]) => pattern.test(file))?.[1] ?? 180_000;
	const child = spawn(process.execPath, ['--enable-source-maps', file], {
		cwd: root,
		env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0' },
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	const pid = child.pid ?? -1;
	current.add(pid);
	let output = '';
	for (const stream of [child.stdout, child.stderr])
		stream.setEncoding('utf8').on('data', (text: string) => {
			// A test in a loop must not fill the memory.
			if (output.length < 4_000_000) output += text;
		});
	let timedOut = false;
	const timer = setTimeout(() => {
		timedOut = true;
		// SIGTERM lets it close its own topology, SIGKILL ends what does not listen.
		child.kill('SIGTERM');
		setTimeout(() => child.kill('SIGKILL'), 5000).unref();
	}, limitMs);
	const code = await new Promise<number | null>((resolve) => {
		child.on('error', () => resolve(-1));
		child.on('exit', (status) => {
			// A grandchild may hold the pipe: its output is not waited for.
			setTimeout(() => resolve(status), 20);
		});
	});
	clearTimeout(timer);
	current.delete(pid);
	if (code !== 0) removeLeftovers(pid);
	const skips = [...output.matchAll(/^SKIP (.+)$/gm)].map((match) => match[1]);
	const counted = totals(output);
	const seconds = (performance.now() - began) / 1000;
	const base = { file: source(file), skips, seconds, output };
	if (timedOut)
		return {
			...base,
			passed: counted?.passed ?? 0,
			failed: 1,
			problem: `ended after its limit of ${limitMs / 1000} s`,
		};
	if (!counted) {
		if (code === 0 && skips.length) return { ...base, passed: 0, failed: 0 };
		return { ...base, passed: 0, failed: 1, problem: code === 0 ? 'ran no test and named no skip' : `exit ${code}` };
	}
	// uvu swallows an error of a before hook and exits with 0: the tests that did not run are failures.
	const failed = counted.total - counted.passed;
	if (!failed && code !== 0) return { ...base, passed: counted.passed, failed: 1, problem: `exit ${code}` };
	if (!counted.total && !skips.length)
		return { ...base, passed: 0, failed: 1, problem: 'ran no test and named no skip' };
	return { ...base, passed: counted.passed, failed };
}

function report(outcome: Outcome): void {
	const { file, passed, failed, skips, seconds, problem, output } = outcome;
	const mark = failed ? 'FAIL' : passed ? 'ok  ' : 'skip';
	const counts = [`${passed} passed`, failed && `${failed} failed`, skips.length && `${skips.length} skipped`].filter(
		Boolean,
	);
	console.log(`${mark} ${file}  ${counts.join(', ')}  ${seconds.toFixed(1)} s${problem ? `  (${problem})` : ''}`);
	if (failed) console.log(output.replace(/^/gm, '     | ').trimEnd());
}

async function main(): Promise<number> {
	const filters = process.argv.slice(2).filter((argument) => !argument.startsWith('-'));
	const files = find(filters);
	if (!files.length) {
		console.error(
			`no test file${filters.length ? ` whose path contains ${filters.join(' or ')}` : ''}: see test/README.md`,
		);
		return 1;
	}
	const began = performance.now();
	const outcomes: Outcome[] = [];
	const pure = files.filter((file) => !alone.test(file));
	const lane = async () => {
		for (let file = pure.shift(); file; file = pure.shift()) {
			const outcome = await runFile(file);
			outcomes.push(outcome);
			report(outcome);
		}
	};
	await Promise.all([lane(), lane()]);
	for (const file of files.filter((name) => alone.test(name))) {
		const outcome = await runFile(file);
		outcomes.push(outcome);
		report(outcome);
	}
	const sum = (of: (outcome: Outcome) => number) => outcomes.reduce((total, outcome) => total + of(outcome), 0);
	const skipped = sum((outcome) => outcome.skips.length);
	if (skipped) {
		console.log('\nskipped:');
		for (const outcome of outcomes) for (const skip of outcome.skips) console.log(`  ${outcome.file}  ${skip}`);
	}
	const passed = sum((outcome) => outcome.passed);
	const failed = sum((outcome) => outcome.failed);
	if (failed) {
		console.log('\nfailed:');
		for (const outcome of outcomes.filter((one) => one.failed)) console.log(`  ${outcome.file}  ${outcome.failed}`);
	}
	console.log(
		`\n${passed} passed, ${failed} failed, ${skipped} skipped in ${outcomes.length} files, ${((performance.now() - began) / 1000).toFixed(1)} s`,
	);
	if (process.env.BEELINE_TEST_REPORT)
		writeFileSync(process.env.BEELINE_TEST_REPORT, `${passed} ${failed} ${skipped}\n`);
	return failed ? 1 : 0;
}

// Ctrl-C reaches the children too (same process group): they close what they built; what they leave is removed here.
for (const signal of ['SIGINT', 'SIGTERM'] as const)
	process.on(signal, () => {
		const pids = [...current];
		current = new Set();
		setTimeout(() => {
			for (const pid of pids) removeLeftovers(pid);
			process.exit(1);
		}, 1000);
	});

process.exitCode = await main();
