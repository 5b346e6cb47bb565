/** beeline demo: the script of the checkout. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { BeelineError } from '../errors.js';
import { ROOT } from './places.js';

export async function demo(args: readonly string[]): Promise<void> {
	const script = join(ROOT, 'scripts', 'demo');
	if (!existsSync(script))
		throw new BeelineError(
			'NO_DEMO',
			`the demo is not part of this installation: run it from a checkout (${script} is missing)`,
		);
	const code = await new Promise<number>((resolve, reject) => {
		const child = spawn('bash', [script, ...args], {
			stdio: 'inherit',
			env: { ...process.env, BEELINE_DEMO_FROM: 'beeline' },
		});
		for (const s of ['SIGINT', 'SIGTERM'] as const) process.on(s, () => child.kill(s));
		child.on('error', reject);
		child.on('exit', (c, signal) => resolve(signal === null ? (c ?? 1) : 1));
	});
	if (code !== 0) throw new BeelineError('DEMO_FAILED', 'the demo failed: its last lines say why');
}
