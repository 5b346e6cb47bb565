/** Containers use encrypted networks by the agent's Docker plugin (./encryption-docker-guest.ts). */
import * as assert from 'uvu/assert';
import type { DockerSeen } from './encryption-docker-guest.js';
import { tell } from './encryption-story.js';

function judgeDocker(seen: DockerSeen): void {
	assert.match(seen.refused, /open is not encrypted: say options: \{ encrypted: true \} of it in/);
	for (const shown of seen.shown) assert.match(shown, /mtu 1408 .*inet 10\.48\.0\.\d+\/24/);
	assert.equal(seen.pings, { 'c1 > c2': true, 'c2 > c1': true });
	assert.match(seen.pages['c1 > c2'], /"backend":"marked-c2"/);
	assert.match(seen.pages['c2 > c1'], /"backend":"marked-c1"/);
	assert.ok(seen.wire.kinds.esp > 10, JSON.stringify(seen.wire));
	assert.is(seen.wire.kinds['vxlan 5006'], undefined, JSON.stringify(seen.wire));
	assert.is(seen.wire.marker, false);
	assert.ok(seen.associations[0] >= 2 && seen.associations[1] === 0, 'the last container takes the keys along');
}

await tell({
	name: 'containers of two engines speak to each other by ESP',
	guest: 'encryption-docker-guest.js',
	judge: judgeDocker,
	memoryMiB: 3584,
	limitSeconds: 1100,
	modules: ['ip_vs', 'ip_vs_rr', 'xt_ipvs', 'br_netfilter', 'vxlan', 'overlay'],
	docker: true,
});
