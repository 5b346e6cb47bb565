/** Whose CPU time a transfer was: the programs' at both ends, and the kernel's softirq threads. */
import { readdirSync, readFileSync } from 'node:fs';
import type { Topology } from '../support/netns.js';
import { tool } from '../support/tools.js';

/** Of /proc/stat: USER_HZ, the same on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100;
/** CPU seconds that processes have had, with all their threads. */
function cpuSeconds(pids: readonly number[]): number {
	return pids.reduce((sum, pid) => {
		const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
			.replace(/^.*\) /, '')
			.split(' ');
		return sum + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
	}, 0);
}

/** Packets are worked on where they were sent, or here when there are many. */
export const softirqThreads = (): number[] =>
	readdirSync('/proc')
		.filter((pid) => /^\d+$/.test(pid))
		.map(Number)
		.filter((pid) => {
			try {
				return readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('ksoftirqd/');
			} catch {
				return false; // ended meanwhile
			}
		});

/** Runs `load` or `udpload` in a namespace; `cpu`: seconds of its own and of `pids`, who work for it. */
export async function measured<R>(
	net: Topology,
	name: string,
	pids: readonly number[],
	command: 'load' | 'udpload',
	args: readonly (string | number)[],
): Promise<{ report: R; cpu: number }> {
	const before = cpuSeconds(pids);
	const result = await net.execAsync(
		name,
		['bash', '-c', 'TIMEFORMAT="cpu %U %S"; time "$@"', 'bash', tool(command), ...args.map(String)],
		{ timeoutMs: 120_000 },
	);
	const own = /cpu (\S+) (\S+)/.exec(result.stderr);
	if (!own) throw new Error(`no times of ${command}: ${result.stderr}`);
	const cpu = cpuSeconds(pids) - before + Number(own[1]) + Number(own[2]);
	return { report: JSON.parse(result.stdout) as R, cpu };
}
