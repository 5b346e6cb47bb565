/** The contract of every MeshStore, on the kernel's maps. */
import { type Datapath, openDatapath } from '../../src/loader/datapath.js';
import type { KernelStore } from '../../src/loader/store.js';
import type { RowStore } from '../../src/mesh/store.js';
import { storeContract } from '../mesh/store.contract.js';
import { SMALL, skipped, type Workshop, workshop } from './fixture.js';

function empty(s: KernelStore): void {
	const clear = <K, V>(rows: RowStore<K, V>) => rows.deleteMany([...rows.entries()].map(([k]) => k));
	clear(s.uplinks);
	clear(s.ownAddresses);
	clear(s.ports);
	clear(s.exactFrontends);
	clear(s.frontends);
	clear(s.rehashes);
	clear(s.untracked);
	clear(s.backends);
	clear(s.localBackends);
	clear(s.nodes);
	clear(s.vteps);
	clear(s.allow);
	clear(s.deny);
	clear(s.onLink);
	s.tables.delete(s.tables.ids());
}

const why = skipped();
if (why) console.log(`skipped: store contract on the kernel's maps: ${why}`);
else {
	const w: Workshop = workshop('contract');
	let d: Datapath | undefined;
	process.on('exit', () => {
		d?.takeDown();
		w.done();
	});
	d = await openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL });
	d.commit();
	const { store } = d;
	storeContract('kernel', () => ({ store, close: () => empty(store) })).run();
}
