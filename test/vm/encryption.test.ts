/**
 * Encrypted networks carry traffic, and what is seen between nodes is ESP (./encryption-guest.ts); whole agents bring them up and take
 * them down (./encryption-agents-guest.ts). On this kernel where it can, else under stock Debian kernels. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
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
import type { AgentsSeen } from './encryption-agents-guest.js';
import type { Seen } from './encryption-guest.js';
import { cannotUseVm, runInGuest, type Series } from './vm.js';

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

function judgeAgents(seen: AgentsSeen): void {
	assert.is(seen.mtu, 1408);
	assert.ok(seen.pings);
	assert.ok(seen.verdicts['overlay_tc encap_esp'] > 0 && seen.verdicts['esp_tc deliver_overlay'] > 0);
	assert.is(seen.metrics['beeline_encryption_peers{state="ready"}'], 1);
	assert.is(seen.metrics.beeline_encryption_errors_total, 0);
	assert.equal(seen.warnings, []);
	assert.ok(seen.spis.length >= 2);
	for (const spi of seen.spis) assert.ok(seen.spisAfter.includes(spi), 'a restarted agent keeps the keys');
	assert.ok(seen.steady[0] > 5 && seen.steady[0] - seen.steady[1] <= 1, JSON.stringify(seen.steady));
	assert.is(seen.leaks, false, 'no key and no secret in logs, state and configuration');
	assert.is(seen.left, 0, 'the last endpoint takes the keys along');
	assert.equal(seen.links, ['lo', 'eth0']);
	assert.is(seen.policies, '');
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
const stories = [
	['endpoints on three nodes speak to each other by ESP', 'encryption-guest.js', judge],
	['agents bring an encrypted network up and take it down', 'encryption-agents-guest.js', judgeAgents],
] as const;
const here = unable === undefined && (await whyNoEsp(run)) === undefined;
for (const [story, guest, verdict] of stories) {
	const tell = async (o: { readonly code: number; readonly stdout: string }) => {
		assert.is(o.code, 0, 'what it saw is above');
		(verdict as (seen: unknown) => void)(JSON.parse(o.stdout));
	};
	if (unable !== undefined) skip(story, unable);
	else if (here)
		test(`${story} under this kernel`, async () => {
			await prepare();
			await tell(await onThisKernel(guest));
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
					await tell(await runInGuest({ series, modules, limitSeconds: 1100, memoryMiB: 2560 }, guest));
				});
		}
}
test.run();
