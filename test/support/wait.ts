import { setTimeout as sleep } from 'node:timers/promises';

/** How many times longer every limit is where the machine is emulated (test/vm sets it). */
export const slowness = Number(process.env.BEELINE_SLOWNESS ?? 1);

/**
 * Waits until `condition` returns something truthy, and returns it.
 *
 * @param what is waited for: named in the error when `limitMs` has passed
 */
export async function waitFor<T>(
	what: string,
	condition: () => T | Promise<T>,
	limitMs = 10_000,
	everyMs = 20,
): Promise<Exclude<T, undefined | null | false | 0 | ''>> {
	const end = performance.now() + limitMs * slowness;
	let last: unknown;
	for (;;) {
		try {
			const value = await condition();
			if (value) return value as Exclude<T, undefined | null | false | 0 | ''>;
			last = undefined;
		} catch (error) {
			last = error;
		}
		if (performance.now() > end)
			throw new Error(`waited ${limitMs * slowness} ms for ${what}${last ? `: ${(last as Error).message}` : ''}`, {
				cause: last,
			});
		await sleep(everyMs);
	}
}
