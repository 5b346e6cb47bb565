import { suite, type uvu as Uvu } from 'uvu';

/**
 * A suite whose tests share something that must be built and closed, or a reason why it cannot be.
 * uvu swallows an error of a `before` hook and exits with 0: here it is printed and the process fails.
 *
 * @param missing why nothing can be run here (from skip.ts), or undefined
 */
export function scenario<T extends object>(
	name: string,
	missing: string | undefined,
	build: () => Promise<T>,
	close: (shared: T) => void | Promise<void>,
	define: (test: Uvu.Test<T>) => void,
): void {
	if (missing) {
		console.log(`SKIP ${name}: ${missing}`);
		return;
	}
	const test = suite<T>(name);
	let shared: T | undefined;
	test.before(async (context) => {
		try {
			shared = await build();
			Object.assign(context, shared);
		} catch (error) {
			console.error(`\n  FAIL  ${name}: could not be set up: ${(error as Error).stack}`);
			process.on('exit', () => {
				process.exitCode = 1;
			});
			throw error;
		}
	});
	test.after(async () => {
		if (shared) await close(shared);
	});
	define(test);
	test.run();
}
