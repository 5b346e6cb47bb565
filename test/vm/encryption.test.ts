/**
 * Encrypted networks carry traffic, and what is seen between nodes is ESP: ./encryption-guest.ts, on this kernel where it can, else under
 * stock Debian kernels. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
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
import type { Seen } from './encryption-guest.js';
import { cannotUseVm, runInGuest, type Series } from './vm.js';

const GUEST = 'encryption-guest.js';
const modules = ['esp4', 'xfrm_user', 'xfrm_interface', 'gcm', 'seqiv', 'veth', 'bridge'];

/** Its programs come from the cache of compiled objects, which a guest sees. */
async function prepare(): Promise<void> {
	compileTools();
	await loadableObjects(OBJECTS, {
		sourceDir: join(root, 'bpf'),
		cacheDir: process.env.BEELINE_CACHE || '/var/cache/beeline',
	});
}

function onThisKernel(): Promise<{ readonly code: number; readonly stdout: string }> {
	const child = spawn(process.execPath, ['--enable-source-maps', join(root, 'dist/test/vm', GUEST)], {
		stdio: ['ignore', 'pipe', 'inherit'],
	});
	let stdout = '';
	child.stdout.setEncoding('utf8').on('data', (text: string) => {
		stdout += text;
	});
	return new Promise((resolve) => child.on('close', (code) => resolve({ code: code ?? -1, stdout })));
}

function judge(seen: Seen): void {
	for (const [what, works] of Object.entries(seen.matrix)) assert.ok(works, `${what}: ${JSON.stringify(seen.matrix)}`);
	assert.equal(seen.tcp.few.slice(0, 2), [5, {}], 'five requests over TCP');
	assert.equal(seen.tcp.bulk.slice(0, 2), [1, {}], 'a megabyte over TCP and IPv6');
	assert.is(seen.wire.kinds['vxlan 5101'], undefined, 'no packet of the encrypted network is to be seen in the clear');
	assert.ok(seen.wire.kinds.esp > 100, JSON.stringify(seen.wire.kinds));
	assert.ok(seen.wire.kinds['vxlan 5102'] > 0, 'those of the plain network are seen');
	assert.is(seen.wire.marker, false, 'nothing that endpoints said is to be read');
	assert.equal(seen.refused, { plain: 3, copies: 1 }, 'plain packets and copies are dropped and counted');
	// The last may be on its way when ping ends.
	for (const [sent, received] of seen.steady) assert.ok(sent > 50 && sent - received <= 1, JSON.stringify(seen.steady));
	assert.is(seen.keys.n1?.errors, 0);
	assert.is(seen.keys.n2?.errors, 0);
	assert.ok((seen.keys.n1?.sessions ?? 0) >= 4, 'keys were renewed');
	assert.equal(seen.keys.warnings, []);
}

const test = suite('encryption');
const unable = cannotUseNamespaces() ?? cannotLoadBpf();
const story = 'endpoints on three nodes speak to each other by ESP';
if (unable !== undefined) skip(story, unable);
else if ((await whyNoEsp(run)) === undefined)
	test(`${story} under this kernel`, async () => {
		await prepare();
		const { code, stdout } = await onThisKernel();
		assert.is(code, 0, 'what it saw is above');
		judge(JSON.parse(stdout) as Seen);
	});
else
	for (const series of ['6.1', '6.12'] as const satisfies readonly Series[]) {
		const name = `${story} under Linux ${series}`;
		const missing =
			process.env.BEELINE_VM === '1'
				? cannotUseVm(series)
				: 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/encryption runs it)';
		if (missing !== undefined) skip(name, missing);
		else
			test(name, async () => {
				await prepare();
				const { code, stdout } = await runInGuest({ series, modules, limitSeconds: 1100 }, GUEST);
				assert.is(code, 0, 'what it saw is above');
				judge(JSON.parse(stdout) as Seen);
			});
	}
test.run();
