/**
 * `docker stack rm` of the agent beside Docker's own mesh (IPVS): by itself a node goes back to it within staleAfter. The
 * story is ./stack-guest.ts. Emulated it takes minutes, so it runs where it is asked for: BEELINE_VM=1.
 */
import { cpSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { skip } from '../support/skip.js';
import { root } from '../support/tools.js';
import { makeAgentImage } from '../swarm/image.js';
import { cannotUseDocker } from '../swarm/swarm.js';
import { type Load, MODULES, type Opened } from './docker-mesh.js';
import { cannotUseVm, compileForGuests, seenInGuest } from './vm.js';

interface Seen {
	readonly staleAfterS: number;
	readonly takenOverS: number;
	readonly client: string;
	readonly before: Load;
	readonly installed: Load;
	readonly left: Load;
	readonly stale: Load;
	readonly after: Load;
	readonly old: Opened;
	readonly made: Opened;
	readonly each: Load & { readonly connections: number };
	readonly detach: { readonly code: number; readonly stdout: string; readonly stderr: string };
	readonly tracesBefore: Readonly<Record<string, unknown>>;
	readonly tracesAfter: Readonly<Record<string, unknown>>;
}

const name = 'the stack beside Docker’s own mesh on IPVS';
const missing =
	process.env.BEELINE_VM === '1'
		? (cannotUseVm('6.12') ?? cannotUseDocker())
		: 'takes minutes in an emulated machine (BEELINE_VM=1 npm test -- vm/stack runs it)';
if (missing !== undefined) skip(name, missing);
else {
	let seen: Seen;
	const test = suite(name);
	test.before(async () => {
		const objects = await compileForGuests();
		// A guest's /tmp is empty.
		const made = await makeAgentImage(`bl${process.pid}-vm`);
		const tar = join(root, `dist/test/vm/bl${process.pid}-agent.tar`);
		try {
			cpSync(made.tar, tar);
			rmSync(made.directory, { recursive: true, force: true });
			const guest = { series: '6.12', modules: MODULES, limitSeconds: 1500, memoryMiB: 4096 } as const;
			seen = await seenInGuest<Seen>(name, guest, 'stack-guest.js', objects, tar);
		} finally {
			rmSync(tar, { force: true });
		}
	});
	const all = (what: string, l: Load, ok: number) => {
		assert.equal([l.ok, l.failures], [ok, {}], `${what}: ${JSON.stringify(l)}`);
	};

	test('deployed, new connections come with the client’s own address', () => {
		all('before', seen.before, 20);
		assert.not.ok(seen.client in seen.before.clients, JSON.stringify(seen.before));
		all('installed', seen.installed, 20);
		assert.equal(Object.keys(seen.installed.clients), [seen.client]);
	});
	test('removed, the tables serve until staleAfter has passed, and then Docker’s mesh does', () => {
		all('left', seen.left, 4);
		assert.equal(Object.keys(seen.left.clients), [seen.client]);
		// The heartbeat's period, and a look each half a second with an emulated client.
		assert.ok(seen.takenOverS < seen.staleAfterS + 15, `${seen.takenOverS} s`);
		all('stale', seen.stale, 20);
		assert.is(Object.keys(seen.stale.backends).length, 2);
		assert.not.ok(seen.client in seen.stale.clients, JSON.stringify(seen.stale));
	});
	test('no connection was cut or refused: those made before, by Beeline, and one each second', () => {
		all('each', seen.each, seen.each.connections);
		assert.ok(seen.each.connections > 20, JSON.stringify(seen.each));
		for (const [what, l, ours] of [
			['old', seen.old, false],
			['made', seen.made, true],
		] as const) {
			assert.equal([l.failures, l.connections, l.moved], [{}, 10, 0], `${what}: ${JSON.stringify(l)}`);
			assert.is(seen.client in l.clients, ours, what);
		}
	});
	test('`detach` from the image, as the README says, leaves nothing behind', () => {
		assert.is(seen.detach.code, 0, seen.detach.stderr);
		for (const what of Object.keys(seen.tracesBefore))
			assert.equal(seen.tracesAfter[what], seen.tracesBefore[what], what);
		all('after', seen.after, 20);
	});
	test.run();
}
