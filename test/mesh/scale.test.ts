/**
 * 1000 services × 100 backends through the whole control river. The limits are on this process's own CPU time and several
 * times what was measured (1.9 s and 35 ms): they catch a step that became quadratic, not a busy machine. The benchmark
 * measures.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { entries } from '../../src/mesh/entries.js';
import { createIds } from '../../src/mesh/ids.js';
import { HEALTHY, plan } from '../../src/mesh/plan.js';
import { createReconciler } from '../../src/mesh/reconcile.js';
import type { Membership } from '../../src/mesh/types.js';
import { createMemoryStore } from './memory-store.js';
import { DATAPATH, FACTS, OPTIONS } from './support.js';

const test = suite('scale');
const SERVICES = 1000;
const BACKENDS = 100;

const spec = (s: number, n: number) => ({
	name: `svc${s}`,
	ports: [{ published: 1024 + s, target: 80, protocol: 'tcp' as const }],
	options: OPTIONS,
	tasks: Array.from({ length: n }, (_, b) => ({
		node: `node${1 + ((s + b) % 100)}`,
		address4: `10.${s >> 8}.${s & 255}.${b}`,
		weight: 1,
		state: 'active' as const,
	})),
});
const cpuMs = (): number => process.cpuUsage().user / 1000;

test('100 000 backends are synced, one change among them touches one service, and a new agent writes nothing', async () => {
	const membership: Membership = {
		nodes: Array.from({ length: 100 }, (_, i) => ({
			name: `node${i + 1}`,
			address: `192.168.78.${i + 1}`,
			drained: false,
		})),
		services: Array.from({ length: SERVICES }, (_, s) => spec(s, BACKENDS)),
		networks: [],
	};
	const store = createMemoryStore(false);
	let ids = createIds();
	let reconciler = createReconciler(store, ids, 0);
	let at = cpuMs();
	let mesh = plan({ membership, self: 'node1', health: HEALTHY, nowMs: 0 });
	let rows = entries(mesh, FACTS, DATAPATH, ids, 0);
	let result = await reconciler.reconcile(rows, 0);
	const full = cpuMs() - at;
	assert.equal(result.errors, []);
	assert.is([...store.backends.entries()].length, SERVICES * BACKENDS);
	assert.is(result.tablesComputed, SERVICES);
	assert.ok(full < 10_000, `full sync: ${full} ms of CPU`);

	const fewer = { ...membership, services: membership.services.map((s, i) => (i === 7 ? spec(7, BACKENDS - 1) : s)) };
	at = cpuMs();
	mesh = plan({ membership: fewer, self: 'node1', health: HEALTHY, nowMs: 1, previous: mesh });
	rows = entries(mesh, FACTS, DATAPATH, ids, 1, rows);
	result = await reconciler.reconcile(rows, 1);
	const one = cpuMs() - at;
	assert.equal([result.tablesComputed, result.rowsWritten <= 3, result.errors.length], [1, true, 0]);
	assert.ok(one < 500, `one change: ${one} ms of CPU`);

	ids = createIds();
	reconciler = createReconciler(store, ids, 2);
	mesh = plan({ membership, self: 'node1', health: HEALTHY, nowMs: 2 });
	result = await reconciler.reconcile(entries(mesh, FACTS, DATAPATH, ids, 2), 2);
	assert.equal([result.errors, result.rowsDeleted], [[], 0]);
	assert.ok(result.rowsWritten <= 2, `${result.rowsWritten} rows`);
});

test.run();
