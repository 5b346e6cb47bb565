/** All programs pass the verifiers of the oldest supported kernel and of a newer one, attach, and go without a trace. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { skip } from '../support/skip.js';
import { cannotUseVm, compileForGuests, runInGuest, type Series } from './vm.js';

interface Report {
	readonly release: string;
	readonly programs: readonly string[];
	readonly attachments: number;
	readonly conntrack: Readonly<Record<'first' | 'second' | 'switched' | 'readable', boolean>>;
	readonly uplink: { readonly mode: string; readonly via: string };
	readonly jumbo: { readonly mode: string };
	readonly via: readonly string[];
	readonly left: readonly string[];
	readonly programsLeft: number;
	readonly mapsLeft: number;
}

const PROGRAMS = [
	...['uplink_xdp', 'uplink_xdp_frags', 'uplink_tc', 'uplink_tc_egress', 'endpoint_tc', 'overlay_tc'],
	...['gateway_tc', 'esp_tc'],
	...['connect4', 'connect6', 'sendmsg4', 'sendmsg6', 'recvmsg4', 'recvmsg6', 'getpeername4', 'getpeername6'],
];

const test = suite('kernels');
for (const [series, via] of [
	['6.1', 'clsact'],
	['6.12', 'tcx'],
] as const satisfies readonly (readonly [Series, string])[]) {
	const name = `the datapath loads, attaches and is taken down under Linux ${series}`;
	const missing = cannotUseVm(series);
	if (missing !== undefined) skip(name, missing);
	else
		test(name, async () => {
			const objects = await compileForGuests();
			const { code, stdout } = await runInGuest(
				{ series, modules: ['veth'], limitSeconds: 150 },
				'load-guest.js',
				objects,
			);
			assert.is(code, 0, stdout);
			const r = JSON.parse(stdout) as Report;
			assert.ok(r.release.startsWith(`${series}.`), r.release);
			for (const p of PROGRAMS) assert.ok(r.programs.includes(p), `${p} is not among ${r.programs.join()}`);
			assert.equal([r.uplink.mode, r.uplink.via, ...r.via], ['native', via, via, via]);
			assert.is(r.jumbo.mode, 'native');
			// A module there, which is loaded after the first start.
			assert.equal(r.conntrack, { first: false, second: true, switched: true, readable: true });
			assert.equal(r.left, []);
			assert.equal([r.programsLeft, r.mapsLeft], [0, 0]);
		});
}
test.run();
