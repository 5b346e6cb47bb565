/**
 * A story about encrypted networks, told by a program: on this kernel where it has ESP, else under stock Debian kernels. Emulated it takes
 * many minutes, so it runs where it is asked for: BEELINE_VM=1.
 */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { loadableObjects } from 'bpf-loader';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { whyNoEsp } from '../../src/agent/encryption.js';
import { run } from '../../src/agent/exec.js';
import { OBJECTS } from '../../src/loader/datapath.js';
import { cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';
import { compileTools, root } from '../support/tools.js';
import { cannotUseDocker } from '../swarm/swarm.js';
import { cannotUseVm, compileForGuests, runInGuest, type Series } from './vm.js';

const modules = ['esp4', 'xfrm_user', 'xfrm_interface', 'gcm', 'seqiv', 'veth', 'bridge'];

/** Its programs come from the cache of compiled objects, which a guest sees. */
async function prepare(): Promise<void> {
	compileTools();
	await loadableObjects(OBJECTS, {
		sourceDir: join(root, 'bpf'),
		cacheDir: process.env.BEELINE_CACHE || '/var/cache/beeline',
	});
}

function onThisKernel(guest: string): Promise<{ readonly code: number; readonly stdout: string }> {
	const child = spawn(process.execPath, ['--enable-source-maps', join(root, 'dist/test/vm', guest)], {
		stdio: ['ignore', 'pipe', 'inherit'],
	});
	let stdout = '';
	child.stdout.setEncoding('utf8').on('data', (text: string) => {
		stdout += text;
	});
	return new Promise((resolve) => child.on('close', (code) => resolve({ code: code ?? -1, stdout })));
}

export interface Story<Seen> {
	readonly name: string;
	/** Prints what it saw as JSON. */
	readonly guest: string;
	readonly judge: (seen: Seen) => void;
	readonly memoryMiB: number;
	readonly limitSeconds: number;
	/** Beside those of ESP. */
	readonly modules?: readonly string[];
	/** With engines: in a machine of its own only, and given the compiled objects' directory. */
	readonly docker?: boolean;
}

export async function tell<Seen>(s: Story<Seen>): Promise<void> {
	const test = suite('encryption');
	const judge = (o: { readonly code: number; readonly stdout: string }) => {
		assert.is(o.code, 0, 'what it saw is above');
		s.judge(JSON.parse(o.stdout) as Seen);
	};
	const cannot = cannotUseNamespaces() ?? cannotLoadBpf() ?? (s.docker ? cannotUseDocker() : undefined);
	if (cannot !== undefined) skip(s.name, cannot);
	else if (!s.docker && (await whyNoEsp(run)) === undefined)
		test(`${s.name} under this kernel`, async () => {
			await prepare();
			judge(await onThisKernel(s.guest));
		});
	else
		for (const series of ['6.1', '6.12'] as const satisfies readonly Series[]) {
			const name = `${s.name} under Linux ${series}`;
			const missing =
				process.env.BEELINE_VM === '1'
					? cannotUseVm(series)
					: 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/encryption runs it)';
			if (missing !== undefined) skip(name, missing);
			else
				test(name, async () => {
					await prepare();
					const { limitSeconds, memoryMiB } = s;
					const args = s.docker ? [await compileForGuests()] : [];
					const machine = { series, limitSeconds, memoryMiB, modules: [...modules, ...(s.modules ?? [])] };
					judge(await runInGuest(machine, s.guest, ...args));
				});
		}
	test.run();
}
