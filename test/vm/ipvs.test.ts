/**
 * Connections that are open through Docker's own mesh (IPVS) survive installing Beeline and uninstalling it. The story is
 * ./ipvs-guest.ts. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { skip } from '../support/skip.js';
import { cannotUseDocker } from '../swarm/swarm.js';
import { cannotUseVm, compileForGuests, runInGuest } from './vm.js';

interface Load {
	readonly ok: number;
	readonly failures: Readonly<Record<string, number>>;
	readonly backends: Readonly<Record<string, number>>;
	readonly clients: Readonly<Record<string, number>>;
}
interface Seen {
	readonly before: Load;
	readonly attached: boolean;
	readonly installed: Load;
	readonly dead: Load;
	readonly stale: Load;
	readonly back: Load;
	readonly leaving: Load;
	readonly made: Load;
	readonly after: Load;
	readonly old: Load & { readonly connections: number; readonly requests: number; readonly moved: number };
	readonly detach: { readonly code: number; readonly stdout: string; readonly stderr: string };
	readonly tracesBefore: Readonly<Record<string, unknown>>;
	readonly tracesAfter: Readonly<Record<string, unknown>>;
	readonly client: string;
}

const name = 'beside Docker’s own mesh on IPVS';
const missing =
	process.env.BEELINE_VM === '1'
		? (cannotUseVm('6.12') ?? cannotUseDocker())
		: 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/ipvs runs it)';
if (missing !== undefined) skip(name, missing);
else {
	let seen: Seen;
	const test = suite(name);
	test.before(async () => {
		const objects = await compileForGuests();
		const { code, stdout } = await runInGuest(
			{
				series: '6.12',
				modules: ['ip_vs', 'ip_vs_rr', 'xt_ipvs', 'br_netfilter', 'veth', 'bridge', 'vxlan', 'overlay'],
				limitSeconds: 1700,
				memoryMiB: 3072,
			},
			'ipvs-guest.js',
			objects,
		);
		if (code !== 0) {
			// uvu swallows what a `before` hook throws.
			process.on('exit', () => {
				process.exitCode = 1;
			});
			console.error(`\n  FAIL  ${name}: the guest exited with ${code}`);
			throw new Error(`exit ${code}`);
		}
		seen = JSON.parse(stdout) as Seen;
	});
	const all = (what: string, l: Load, ok: number) => {
		assert.equal(l.failures, {}, `${what}: ${JSON.stringify(l)}`);
		assert.is(l.ok, ok, what);
	};
	const byDocker = (what: string, l: Load) => {
		all(what, l, 20);
		assert.is(Object.keys(l.backends).length, 2, what);
		assert.not.ok(seen.client in l.clients, `${what}: ${JSON.stringify(l.clients)}`);
	};
	const byBeeline = (what: string, l: Load) => {
		all(what, l, 20);
		assert.is(Object.keys(l.backends).length, 2, what);
		assert.equal(Object.keys(l.clients), [seen.client], what);
	};

	test('Docker’s mesh serves before, and hides the client', () => byDocker('before', seen.before));
	test('installed, new connections come by Beeline with the client’s own address', () => {
		assert.ok(seen.attached);
		byBeeline('installed', seen.installed);
	});
	test('an agent that was killed is not missed; after staleAfter Docker’s mesh serves, and Beeline again when it is back', () => {
		byBeeline('dead', seen.dead);
		byDocker('stale', seen.stale);
		byBeeline('back', seen.back);
	});
	test('while it leaves, new connections go to Docker’s mesh, and those that Beeline made go on', () => {
		byDocker('leaving', seen.leaving);
		assert.equal(seen.made.failures, {}, JSON.stringify(seen.made));
		assert.equal(Object.keys(seen.made.clients), [seen.client]);
	});
	test('connections that were open through Docker’s mesh before lived through all of it', () => {
		assert.equal(seen.old.failures, {}, JSON.stringify(seen.old));
		assert.is(seen.old.connections, 20);
		assert.is(seen.old.moved, 0);
		assert.not.ok(seen.client in seen.old.clients, 'they stayed in Docker’s mesh');
	});
	test('uninstalled, nothing of Beeline is left and Docker’s mesh serves as before', () => {
		assert.is(seen.detach.code, 0, seen.detach.stderr);
		for (const what of Object.keys(seen.tracesBefore))
			assert.equal(seen.tracesAfter[what], seen.tracesBefore[what], what);
		byDocker('after', seen.after);
	});
	test.run();
}
