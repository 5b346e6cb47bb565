/**
 * Encrypted networks carry traffic, and what is seen between nodes is ESP: ./encryption-guest.ts, on this kernel where it can, else under
 * a stock Debian kernel in a virtual machine (./run).
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
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

const MODULES = 'esp4,xfrm_user,xfrm_interface,gcm,seqiv,veth,bridge';
const runner = join(root, 'test/vm/run');
const guest = ['--enable-source-maps', join(root, 'dist/test/vm/encryption-guest.js')];
const cacheDir = process.env.BEELINE_CACHE || '/var/cache/beeline';

function missing(series: string): string | undefined {
	if (!existsSync(runner))
		return 'needs a kernel with ESP (CONFIG_INET_ESP, CONFIG_XFRM_INTERFACE), as distributions have';
	const r = spawnSync(runner, ['--missing', series], { encoding: 'utf8' });
	return r.status === 0
		? undefined
		: `needs a kernel with ESP, or a guest with one, which ${r.stdout.trim() || r.stderr.trim()}`;
}

function observe(command: string, args: readonly string[]): Promise<Seen> {
	const child = spawn(command, args, {
		cwd: root,
		stdio: ['ignore', 'pipe', 'inherit'],
		env: { ...process.env, NO_COLOR: '1' },
	});
	let stdout = '';
	child.stdout.setEncoding('utf8').on('data', (text: string) => {
		stdout += text;
	});
	return new Promise((resolve, reject) =>
		child.on('close', (code) => {
			if (code === 0) resolve(JSON.parse(stdout) as Seen);
			else reject(new Error(`${command} ended with ${code}; what it saw is above`));
		}),
	);
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
const here = unable === undefined && (await whyNoEsp(run)) === undefined;
for (const series of here ? ['this kernel'] : ['6.1', '6.12']) {
	const name = `endpoints on three nodes speak to each other by ESP under ${here ? series : `Linux ${series}`}`;
	const why = unable ?? (here ? undefined : missing(series));
	if (why !== undefined) {
		skip(name, why);
		continue;
	}
	test(name, async () => {
		compileTools();
		await loadableObjects(OBJECTS, { sourceDir: join(root, 'bpf'), cacheDir });
		judge(
			here
				? await observe(process.execPath, guest)
				: await observe(runner, ['-k', series, '-m', MODULES, '-t', '900', process.execPath, ...guest]),
		);
	});
}
test.run();
