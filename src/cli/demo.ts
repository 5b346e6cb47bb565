/** beeline demo: the script of the checkout. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { BeelineError } from '../errors.js';
import { ROOT } from './places.js';

/**
 * Resolves with the exit status; where it is not 0, the script has said why.
 * @throws BeelineError BAD_ARGUMENT, NO_DEMO
 */
export async function demo(args: readonly string[]): Promise<number> {
	// Here, and not only in the script: that installs and builds before it reads its words.
	if (args.length > 1 || (args.length === 1 && args[0] !== 'overlay'))
		throw new BeelineError('BAD_ARGUMENT', `demo ${args.join(' ')}: expected overlay, or nothing`);
	const script = join(ROOT, 'scripts', 'demo');
	if (!existsSync(script))
		throw new BeelineError(
			'NO_DEMO',
			`the demo is not part of this installation: run it from a checkout (${script} is missing)`,
		);
	return await new Promise<number>((resolve, reject) => {
		const child = spawn('bash', [script, ...args], {
			stdio: 'inherit',
			env: { ...process.env, BEELINE_DEMO_FROM: 'beeline' },
		});
		for (const s of ['SIGINT', 'SIGTERM'] as const) process.on(s, () => child.kill(s));
		child.on('error', reject);
		child.on('exit', (code) => resolve(code ?? 1));
	});
}
