import { setTimeout as sleep } from 'node:timers/promises';

/** Runs a demo to its end; also Ctrl-C, a reader that goes away and an error are one sentence. */
export async function tell(story: () => Promise<number>): Promise<void> {
	let told = false;
	// After the harness' own handler, which removes everything.
	process.on('exit', () => {
		if (!told) console.error('\nInterrupted: all namespaces, programs and pins are removed.');
	});
	process.stdout.on('error', () => process.exit(1));
	try {
		process.exitCode = await story();
	} catch (error) {
		// Ctrl-C ends commands of iproute2 too, and what failed then did so because of it: the signal's handler comes first.
		await sleep(100);
		console.error(error instanceof Error ? error.message : String(error));
		process.exitCode = 1;
	}
	told = true;
}
