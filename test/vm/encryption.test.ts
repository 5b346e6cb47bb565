/** Encrypted networks carry traffic, and what is seen between nodes is ESP (./encryption-guest.ts). */
import * as assert from 'uvu/assert';
import type { Seen } from './encryption-guest.js';
import { tell } from './encryption-story.js';

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
	for (const [what, r] of Object.entries(seen.bulk)) {
		assert.equal([r.ok, r.failures], [1, {}], what);
		// An emulated machine stands still for longer than a retransmission timer now and then.
		assert.ok(r.retransmits <= 20, `${what}: ${r.retransmits} segments were sent again`);
	}
	assert.equal(seen.bulkDropped, {}, 'IPsec drops nothing meanwhile');
	assert.is(seen.plainInBulk, 0);
	console.log(`TCP in Mbit/s, encrypted and plain: ${JSON.stringify(seen.speed)}, median ratio ${seen.ratio}`);
}

await tell({
	name: 'endpoints on three nodes speak to each other by ESP',
	guest: 'encryption-guest.js',
	judge,
	memoryMiB: 2560,
	limitSeconds: 1150,
});
