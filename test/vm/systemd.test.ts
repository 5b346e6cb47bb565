/**
 * docker/beeline.service under a real systemd, as README installs it: started, reloaded, killed, stopped, detached. The story is
 * systemd-guest.sh. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { hasTool, skip } from '../support/skip.js';
import { compileTools, root } from '../support/tools.js';
import { cannotUseDocker } from '../swarm/swarm.js';
import { cannotUseVm, compileForGuests, script } from './vm.js';

const name = 'under systemd';
const missing =
	process.env.BEELINE_VM !== '1'
		? 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/systemd runs it)'
		: (cannotUseVm('6.12') ??
			cannotUseDocker() ??
			(!existsSync('/lib/systemd/systemd') || !hasTool('systemctl') ? 'needs systemd (package systemd)' : undefined));
if (missing !== undefined) skip(name, missing);
else {
	const test = suite(name);
	test('the unit serves, restarts, stops without a cut and is detached; a file, then Docker, says what', async () => {
		compileTools();
		const objects = await compileForGuests();
		const r = spawnSync(
			script,
			[
				...['-k', '6.12', '-m', 'veth,bridge,br_netfilter,vxlan,overlay', '-M', '4096', '-t', '1700', 'bash', '-c'],
				`mkdir -p dist/bpf && cp "${objects}"/* dist/bpf/ && exec test/vm/systemd-guest.sh "${root}"`,
			],
			{ cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] },
		);
		assert.is(r.status, 0, r.stdout);
		for (const what of [
			'served under systemd',
			'killed, and started again',
			'stopped, and the datapath serves on',
			'detached of a file',
			'served a swarm under systemd',
			'followed a swarm under systemd',
			'detached of a swarm',
		])
			assert.ok(r.stdout.includes(`SEEN ${what}`), r.stdout);
	});
	test.run();
}
