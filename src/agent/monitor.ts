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

/** Rules come in bursts: Docker writes dozens for a container. */
const RULES_SETTLE_MS = 300;
const RULES_EVERY_MS = 5000;

/**
 * Tells that netfilter's rules changed, by `nft monitor`, which hears of nft's and of iptables' over nf_tables; not of
 * iptables-legacy.
 */
export function watchRules(onChange: () => void): { readonly running: boolean; close(): void } {
	let child: ChildProcess | undefined;
	let closed = false;
	let running = false;
	let restart: NodeJS.Timeout | undefined;
	let due: NodeJS.Timeout | undefined;
	let lastAt = Number.NEGATIVE_INFINITY;
	const changed = () => {
		if (due !== undefined || closed) return;
		const inMs = Math.max(RULES_SETTLE_MS, lastAt + RULES_EVERY_MS - performance.now());
		due = setTimeout(() => {
			due = undefined;
			lastAt = performance.now();
			onChange();
		}, inMs);
	};
	const start = () => {
		const c = spawn('nft', ['monitor', 'ruleset'], { stdio: ['ignore', 'pipe', 'ignore'] });
		child = c;
		running = true;
		const end = () => {
			if (!running || closed) return;
			running = false;
			restart = setTimeout(start, 30_000);
		};
		c.on('error', end);
		c.on('exit', end);
		c.stdout?.on('data', changed);
	};
	start();
	return {
		get running() {
			return running;
		},
		close() {
			closed = true;
			clearTimeout(restart);
			clearTimeout(due);
			child?.kill();
		},
	};
}
