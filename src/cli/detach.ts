/** beeline detach: removes every program, link, map and pin of Beeline; needs no agent. */
import { existsSync } from 'node:fs';
import { undo } from '../agent/agent.js';
import { readState, statePath } from '../agent/state.js';
import { loadConfig } from '../config.js';
import { BeelineError, sentence } from '../errors.js';
import { openDatapath, RUN_DIR } from '../loader/datapath.js';
import { takeDown } from '../loader/takedown.js';
import { createIds } from '../mesh/ids.js';
import { createReconciler } from '../mesh/reconcile.js';
import { parseDuration } from '../mesh/sources/document.js';
import { needRoot } from './agent.js';
import { print } from './output.js';
import { sources } from './places.js';

const DEFAULT_WAIT_MS = 60_000;
const DEFAULT_PIN_ROOT = '/sys/fs/bpf/beeline';

export async function detach(o: {
	readonly config?: string;
	readonly wait?: string;
	readonly now?: boolean;
}): Promise<void> {
	needRoot('detach');
	if (o.now === true && o.wait !== undefined)
		throw new BeelineError('BAD_WAIT', 'detach: give --wait or --now, not both');
	const waitMs = o.now === true ? 0 : o.wait === undefined ? DEFAULT_WAIT_MS : parseDuration(o.wait);
	if (waitMs === undefined)
		throw new BeelineError('BAD_WAIT', `--wait ${o.wait}: expected a duration such as 60s or 2m`);
	const pinRoot = o.config === undefined ? DEFAULT_PIN_ROOT : loadConfig(o.config).pinRoot;
	const stateFile = statePath(pinRoot, RUN_DIR);
	const there = existsSync(pinRoot);
	if (there && waitMs > 0 && readState(stateFile).kernelPorts.length > 0) await handBack(pinRoot, waitMs);
	const { left } = takeDown(pinRoot);
	await undo(stateFile);
	if (left.length > 0) throw new BeelineError('LEFT', `detach: not everything could be removed: ${left.join('; ')}`);
	print(there ? `detached: nothing of ${pinRoot} is left` : `nothing to detach at ${pinRoot}`);
}

/** New flows go to the kernel's own mesh, and what is open may end. */
async function handBack(pinRoot: string, waitMs: number): Promise<void> {
	let d: Awaited<ReturnType<typeof openDatapath>>;
	try {
		d = await openDatapath({ pinRoot, ...sources() });
	} catch (e) {
		if ((e as { code?: string }).code === 'LOCKED') throw e;
		process.stderr.write(`open connections are cut, for the maps cannot be opened: ${sentence(e)}\n`);
		return;
	}
	try {
		// Maps of another layout are new and empty here: what runs is not theirs.
		if (d.newMaps.length > 0) return;
		const reconciler = createReconciler(d.store, createIds(), Number(d.store.now() / 1_000_000n));
		if (reconciler.leave().frontends === 0) return;
		const end = performance.now() + waitMs;
		while (performance.now() < end) {
			d.store.settings.set({ ...d.store.settings.get(), heartbeat_ns: d.store.now() });
			await new Promise((r) => setTimeout(r, Math.max(0, Math.min(1000, end - performance.now()))));
		}
	} finally {
		d.close();
	}
}
