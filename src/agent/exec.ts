/** The kernel's tables by iproute2 and its neighbours: run once, read once. */
import { execFile } from 'node:child_process';
import { BeelineError } from '../errors.js';

/** Runs a command and gives its standard output. */
export type Run = (command: string, args: readonly string[], input?: string) => Promise<string>;

/**
 * Runs in the agent's own network namespace.
 * @throws BeelineError NO_COMMAND, COMMAND_FAILED
 */
export const run: Run = (command, args, input) =>
	new Promise((resolve, reject) => {
		const child = execFile(
			command,
			[...args],
			{ maxBuffer: 256 << 20, timeout: 20_000, encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } },
			(e, stdout, stderr) => {
				if (e === null) return resolve(stdout);
				const line = `${command} ${args.join(' ')}`;
				if ((e as NodeJS.ErrnoException).code === 'ENOENT') {
					return reject(
						new BeelineError(
							'NO_COMMAND',
							`${command} is not installed: install it (Debian: iproute2, nftables, ethtool)`,
						),
					);
				}
				const why = stderr.trim().split('\n')[0] || e.message;
				reject(new BeelineError('COMMAND_FAILED', `${line}: ${why}`, { cause: e }));
			},
		);
		if (input !== undefined) child.stdin?.end(input);
	});

/** JSON of iproute2, which prints nothing at all for an empty list. */
export function json<T>(text: string): T[] {
	return text.trim() === '' ? [] : (JSON.parse(text) as T[]);
}

/** One array of each command of `ip -j -batch`. */
export function jsonLines<T>(text: string): T[][] {
	return text
		.split('\n')
		.filter((l) => l.startsWith('['))
		.map((l) => JSON.parse(l) as T[]);
}
