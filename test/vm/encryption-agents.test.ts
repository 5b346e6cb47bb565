/** Whole agents carry encrypted networks through what happens to nodes and keys (./encryption-agents-guest.ts). */
import * as assert from 'uvu/assert';
import type { AgentsSeen } from './encryption-agents-guest.js';
import { tell } from './encryption-story.js';

/** What may pass between the nodes beside ESP: neighbours, messages about keys, the plain network, the mesh's own probes (and that nobody takes them). */
const IN_THE_CLEAR = /^(ethertype 806|icmp6|icmp6 mld|udp 7982|vxlan 5102|vxlan 12509184( answered)?|icmp)$/;
/** The last may be on its way when ping ends. */
const allCame = ([sent, received]: readonly [number, number], what: string) =>
	assert.ok(sent > 10 && sent - received <= 1, `${what}: ${received} of ${sent}`);

function judgeAgents(seen: AgentsSeen): void {
	const text = JSON.stringify(seen);
	assert.equal(seen.mtu, { s1: 1408, s2: 1408, s3: 1408, o1: 1450, o2: 1450, o3: 1450 });

	assert.ok(seen.early.dropped > 0, 'what had no keys was dropped, and counted');
	assert.is(seen.early.vxlan, 0, 'and not sent as it was');
	assert.ok(seen.early.esp > 0);

	const { foreign } = seen;
	assert.equal([foreign.reached, foreign.associations], [0, 0], 'another secret: nothing goes there, nothing comes');
	assert.ok(foreign.others, 'the others are as they were, and so is the plain network of that node');
	const another = (who: RegExp) =>
		new RegExp(`^no keys with ${who.source}, .* the secret in datapath.secretFile there is another than this node's$`);
	for (const [node, who] of [
		['n1', /n3 \(192\.168\.78\.3\)/],
		['n2', /n3 \(192\.168\.78\.3\)/],
		['n3', /n1 \(192\.168\.78\.1\), n2 \(192\.168\.78\.2\)/],
	] as const) {
		assert.is(foreign.warnings[node].length, 1, `${node}: ${JSON.stringify(foreign.warnings)}`);
		assert.match(foreign.warnings[node][0], another(who));
		// n3 may hear of the one before it hears of the other.
		const most = node === 'n3' ? 2 : 1;
		assert.ok(foreign.said[node] >= 1 && foreign.said[node] <= most, `said once: ${JSON.stringify(foreign.said)}`);
	}
	assert.ok(foreign.refused > 0);
	assert.equal([foreign.status?.ready, foreign.status?.missing], [1, ['n3']]);

	assert.ok(seen.restart.spis.length >= 2);
	for (const spi of seen.restart.spis)
		assert.ok(seen.restart.spisAfter.includes(spi), 'a restarted agent keeps the keys');
	for (const [what, counted] of Object.entries(seen.restart.pings)) allCame(counted, what);
	assert.ok(seen.restart.back, 'with the right secret a node is reached');

	for (const [what, works] of Object.entries(seen.matrix)) assert.ok(works, `${what}: ${JSON.stringify(seen.matrix)}`);
	assert.is(Object.keys(seen.matrix).length, 6 * 4 + 6);
	for (const [what, came] of Object.entries(seen.across)) assert.not(came, `${what} are of different networks`);

	assert.ok(seen.edge.fits && seen.edge.fits6, '1408 bytes cross unfragmented');
	assert.match(seen.edge.local, /message too long, mtu[=:] ?1408/i);
	assert.match(seen.edge.beyond, /Frag needed and DF set \(mtu = 1408\)/i);

	const { rotation } = seen;
	assert.ok(rotation.sessions >= 6 && rotation.errors === 0, JSON.stringify(rotation));
	assert.ok(rotation.udp.sent > 100, JSON.stringify(rotation));
	assert.equal([rotation.udp.lost, rotation.udp.corrupt], [0, 0], 'keys change and no datagram is lost');
	assert.ok(rotation.tcp.requests > 100, JSON.stringify(rotation));
	assert.equal(rotation.tcp.failures, {});
	allCame(rotation.pings, 'while keys change');
	assert.ok(rotation.associations >= 4, JSON.stringify(rotation));

	assert.not(seen.cut.meanwhile);
	assert.ok(seen.cut.back, 'a node that was cut off is reached again');
	allCame(seen.cut.others, 'between the others');
	assert.not(seen.lost.meanwhile, 'without associations, policies or the interface nothing leaves');
	assert.ok(seen.lost.dropped, 'what came for keys that are lost is dropped and counted');
	assert.ok(seen.lost.back, 'a node whose kernel lost all makes new keys');
	assert.not(seen.removed.links.includes('bl-esp'));
	assert.equal([seen.removed.associations, seen.removed.meanwhile, seen.removed.back], [0, false, true], text);

	// All that was above, seen from the wire.
	const { wire } = seen;
	assert.is(wire.missed, 0, 'tcpdump saw everything');
	for (const kind of Object.keys(wire.kinds)) assert.match(kind, IN_THE_CLEAR, JSON.stringify(wire.kinds));
	assert.is(wire.marker, false, 'nothing that endpoints of the encrypted network said is to be read');
	assert.ok(wire.kinds['vxlan 5102'] > 0 && wire.inner[5102].includes('10.45.0.11 > 10.45.0.75'), JSON.stringify(wire));
	for (const between of wire.inner[5102]) assert.match(between, /^10\.45\.0\.(11|75|139) > /, 'its own endpoints only');
	assert.equal(Object.keys(wire.sealed.kinds), ['esp']);
	assert.ok(wire.sealed.kinds.esp > 1000);
	assert.is(wire.sealed.fragments, 0);
	assert.ok(wire.sealed.longest <= 1514, `${wire.sealed.longest} bytes`);

	assert.is(seen.metrics['beeline_encryption_peers{state="ready"}'], 2);
	assert.is(seen.metrics['beeline_encryption_peers{state="missing"}'], 0);
	assert.is(seen.metrics.beeline_encryption_errors_total, 0);
	assert.equal(seen.warnings, {});
	assert.is(seen.leaks, false, 'no key and no secret in logs, state and configuration');
	assert.is(seen.left, 0, 'the last endpoint takes the keys along');
	assert.equal(seen.links, ['lo', 'eth0']);
	assert.is(seen.policies, '');
}

await tell({
	name: 'agents keep an encrypted network closed and going through what happens to nodes and keys',
	guest: 'encryption-agents-guest.js',
	judge: judgeAgents,
	memoryMiB: 3584,
	limitSeconds: 1800,
});
