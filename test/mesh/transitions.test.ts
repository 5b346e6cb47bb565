/**
 * The promise of DESIGN 5.3 against a trivial model (a map of every flow): an established flow that stays on one ingress
 * node and speaks once per window never changes its backend while the mesh holds that backend alive.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { base, everything, type Profile, simulate } from './simulator.js';

const test = suite('tracked transitions');
const PACKETS = Number(process.env.MODEL_PACKETS ?? 100_000);

const profiles: readonly (readonly [string, Partial<Profile>, readonly number[]])[] = [
	['backends come, go, drain, die and change weight, all nodes see it at once', {}, [1, 2]],
	['tables grow and shrink', { resize: true }, [3]],
	['nodes learn of changes up to 24 s late and skip some', { delay: 4, slow: 20 }, [4]],
	['agents restart', { restart: 0.02 }, [5]],
	['living backends are called down and come back', { kinds: [...base.kinds, 'flap'] }, [6]],
	['somebody sends SYNs with the 5-tuples of living flows', { spoof: 2 }, [7]],
	['all flows are UDP', { udp: 1 }, [8]],
	['SYN floods', { flood: 500 }, [9]],
	['every flow is tracked', { tracking: 'always', longIdle: 1 }, [13]],
	['tracking changes between auto and always', { kinds: [...base.kinds, 'track'] }, [14, 15]],
	[
		'tracking changes nearly all the time',
		{ kinds: [...base.kinds, 'track', 'track', 'track', 'track', 'track'] },
		[16],
	],
	['tracking changes, of UDP', { udp: 1, kinds: [...base.kinds, 'track'] }, [17]],
	[
		'tracking is none now and then, for those whose slots did not change meanwhile',
		{ kinds: [...base.kinds, 'track', 'track', 'track'], trackings: ['none', 'auto', 'none', 'always', 'auto'] },
		[20, 21],
	],
	[
		'tracking is none now and then, of UDP',
		{ udp: 1, kinds: [...base.kinds, 'track', 'track'], trackings: ['none', 'auto'] },
		[22],
	],
	['everything at once', everything, [10, 11]],
	['everything at once, and tracking changes', { ...everything, kinds: [...base.kinds, 'flap', 'track'] }, [18, 19]],
];

for (const [name, profile, seeds] of profiles)
	for (const seed of seeds)
		test(`no established flow moves when ${name} (seed ${seed})`, async () => {
			const out = await simulate({ ...base, name, ...profile }, seed, PACKETS);
			const text = JSON.stringify(out);
			assert.ok(out.packets >= PACKETS && out.changes >= 10, `the run is one: ${text}`);
			assert.is(out.established, 0, text);
			assert.is(out.udp, 0, text);
			// A SYN repeated across a change may be answered by both backends; the client takes whichever is first.
			assert.ok(out.handshakes <= 2, text);
			assert.ok(out.stalled <= 20, text);
		});

test('tables too small for the living flows do break the promise, and the model sees it', async () => {
	const out = await simulate({ ...base, limits: { halfOpen: 64, conntrack: 100, old: 100 } }, 12, PACKETS);
	assert.ok(out.established > 0, JSON.stringify(out));
});

test.run();
