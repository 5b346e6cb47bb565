/** Tells of changes of links, addresses, routes and neighbours, by one long-lived `ip monitor`. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

export interface KernelMonitor {
	close(): void;
}

/** `10.0.0.1 dev eth0 lladdr 52:54:… REACHABLE` → what it says of a neighbour. */
export function parseNeighbourLine(line: string): { key: string; mac: string | undefined; gone: boolean } | undefined {
	const m = /^(Deleted )?([0-9a-fA-F.:]+) dev (\S+)(?: lladdr ([0-9a-f:]{17}))?(.*)$/.exec(line);
	if (m === null || !/ (REACHABLE|STALE|DELAY|PROBE|FAILED|INCOMPLETE|PERMANENT|NOARP)\b/.test(` ${m[5]}`))
		return undefined;
	const failed = /\b(FAILED|INCOMPLETE)\b/.test(m[5]!);
	return { key: `${m[3]} ${m[2]}`, mac: failed ? undefined : m[4], gone: m[1] !== undefined };
}

/**
 * @param onChange what changed: `link`, `address`, `route` or `neighbour`, and the kernel's line
 * @param onEnd the monitor ended by itself; it is started again, and `restart` is reported as a change
 */
export function watchKernel(
	onChange: (kind: 'kernel' | 'neighbour', line: string) => void,
	onEnd: (why: string) => void,
): KernelMonitor {
	let child: ChildProcess | undefined;
	let closed = false;
	let timer: NodeJS.Timeout | undefined;
	let backoffMs = 500;
	const start = () => {
		const c = spawn('ip', ['-o', 'monitor', 'link', 'address', 'route', 'neigh'], {
			stdio: ['ignore', 'pipe', 'ignore'],
		});
		child = c;
		const begun = Date.now();
		let ended = false;
		const end = (why: string) => {
			if (ended || closed) return;
			ended = true;
			onEnd(why);
			backoffMs = Date.now() - begun > 60_000 ? 500 : Math.min(backoffMs * 2, 30_000);
			timer = setTimeout(() => {
				start();
				onChange('kernel', 'the monitor was restarted');
			}, backoffMs);
		};
		c.on('error', (e) => end(e.message));
		c.on('exit', (code, signal) => end(`ip monitor ended (${signal ?? code})`));
		createInterface({ input: c.stdout! }).on('line', (line) => {
			onChange(parseNeighbourLine(line) === undefined ? 'kernel' : 'neighbour', line);
		});
	};
	start();
	return {
		close() {
			closed = true;
			clearTimeout(timer);
			child?.kill();
		},
	};
}
