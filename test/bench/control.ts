/**
 * Control plane: 1000 services of 100 backends on three nodes, from the file to the kernel's maps.
 *
 * `river`: the steps one by one in a process of their own, on real maps. `agent`: the command as a user runs it, in a
 * namespace, with agents on the other two nodes that answer its probes.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createClient } from '../../src/cli/client.js';
import { openDatapath } from '../../src/loader/datapath.js';
import { entries, type LocalFacts } from '../../src/mesh/entries.js';
import { createIds } from '../../src/mesh/ids.js';
import { createMaglevPool } from '../../src/mesh/maglev.js';
import { HEALTHY, plan } from '../../src/mesh/plan.js';
import { createReconciler } from '../../src/mesh/reconcile.js';
import { readMesh } from '../../src/mesh/sources/file.js';
import { Agent, type MeshDocument } from '../support/beeline.js';
import { mountBpffs, Topology } from '../support/netns.js';
import { root } from '../support/tools.js';
import { against, median, print, progress, spread } from './report.js';

const SERVICES = 1000;
const BACKENDS = 100;
const NODES = ['n1', 'n2', 'n3'];
/** After the first, which finds the code cold. */
const LATER_CHANGES = 7;
const GATE = { syncMs: 2000, changeMs: 50, rssMb: 150 };

/** `without`: one backend of one service is left out. */
function document(addresses: readonly string[], without: boolean): MeshDocument {
	return {
		nodes: NODES.map((name, i) => ({ name, address: addresses[i] })),
		services: Array.from({ length: SERVICES }, (_, s) => ({
			name: `s${s}`,
			ports: [{ published: 1024 + s, target: 80 }],
			backends: Array.from({ length: BACKENDS }, (_, b) => ({
				// Nothing local: an address behind no interface of this node would be reported, and not served.
				node: NODES[1 + (b % 2)],
				address: `172.18.${b}.${1 + (s % 250)}`,
			})).filter((_, b) => !(without && s === 500 && b === 50)),
		})),
	};
}

interface Sample {
	readonly [step: string]: number;
}

const mb = (bytes: number): number => bytes / (1 << 20);

/** One full sync and one change, in this process. Prints a Sample as JSON. */
export async function riverOnce(): Promise<void> {
	mountBpffs();
	const pinRoot = `/sys/fs/bpf/bl${process.pid}-control`;
	const sample: Record<string, number> = {};
	let at = performance.now();
	const lap = (step: string) => {
		sample[step] = performance.now() - at;
		at = performance.now();
	};
	const vteps = ['192.168.78.1', '192.168.78.2', '192.168.78.3'];
	const [before, after] = [false, true].map((w) => Buffer.from(JSON.stringify(document(vteps, w))));
	const d = await openDatapath({ pinRoot, bpfDir: join(root, 'bpf'), runDir: `/tmp/bl${process.pid}-control` });
	const pool = createMaglevPool();
	try {
		const facts: LocalFacts = {
			uplinks: [{ name: 'lo', ifindex: 1, l3Ifindex: 1, mtu: 1500, mac: '02:00:00:00:00:01', addresses: [vteps[0]] }],
			vtep: vteps[0],
			netnsCookie: 1n,
			mark: 1,
			nextHops: new Map(
				vteps.slice(1).map((v) => [v, { ifindex: 1, dmac: '02:00:00:00:00:02', smac: '02:00:00:00:00:01', mtu: 1500 }]),
			),
			dsrProven: new Set(),
			endpoints: new Map(),
			localPorts: [],
			gateways: new Map(),
			standInPorts: [1024, 31744],
			kernelPorts: new Set(),
			refusedPorts: new Map(),
		};
		const options = { vni: 12509184, vxlanPort: 4789, staleAfterMs: 60_000, returnPath: 'auto', trace: false } as const;
		const nowMs = () => Number(d.store.now() / 1_000_000n);
		const ids = createIds();
		const reconciler = createReconciler(d.store, ids, nowMs(), pool);
		at = performance.now();
		let reading = readMesh('mesh.yaml', before);
		lap('sync: read the file');
		let mesh = plan({ membership: reading.membership, self: 'n1', health: HEALTHY, nowMs: nowMs() });
		lap('sync: plan');
		let rows = entries(mesh, facts, options, ids, nowMs());
		lap('sync: entries');
		const full = await reconciler.reconcile(rows, nowMs());
		lap('sync: Maglev and maps');
		if (full.errors.length > 0 || full.tablesComputed < SERVICES)
			throw new Error(`the full sync was none: ${JSON.stringify(full)}`);
		sample['RSS after the sync, MB'] = mb(process.memoryUsage.rss());
		at = performance.now();
		reading = readMesh('mesh.yaml', after, reading);
		lap('change: read the file');
		mesh = plan({ membership: reading.membership, self: 'n1', health: HEALTHY, nowMs: nowMs(), previous: mesh });
		lap('change: plan');
		rows = entries(mesh, facts, options, ids, nowMs(), rows);
		lap('change: entries');
		const one = await reconciler.reconcile(rows, nowMs());
		lap('change: Maglev and maps');
		if (one.errors.length > 0 || one.slotsChanged === 0) throw new Error(`the change was none: ${JSON.stringify(one)}`);
		const sum = (what: string, but = '') =>
			Object.entries(sample).reduce((a, [k, v]) => a + (k.startsWith(what) && k !== but ? v : 0), 0);
		const total = {
			'sync, all steps': sum('sync: '),
			'sync, after reading': sum('sync: ', 'sync: read the file'),
			'change, all steps': sum('change: '),
			'change, after reading': sum('change: ', 'change: read the file'),
		};
		console.log(JSON.stringify({ ...sample, ...total }));
	} finally {
		await pool.close();
		d.takeDown();
		rmSync(`/tmp/bl${process.pid}-control`, { recursive: true, force: true });
		rmSync(pinRoot, { recursive: true, force: true });
	}
}

function river(): Sample {
	const main = fileURLToPath(new URL('./main.js', import.meta.url));
	const child = spawnSync(process.execPath, [main, 'control', '--inside'], {
		encoding: 'utf8',
		stdio: ['ignore', 'pipe', 'inherit'],
	});
	const line = child.stdout.trim().split('\n').at(-1) ?? '';
	if (child.status !== 0 || !line.startsWith('{'))
		throw new Error(`the control river's process ended with ${child.status}`);
	return JSON.parse(line) as Sample;
}

function memory(pid: number): { rss: number; peak: number } {
	const text = readFileSync(`/proc/${pid}/status`, 'utf8');
	const kb = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0);
	return { rss: kb('VmRSS') / 1024, peak: kb('VmHWM') / 1024 };
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/**
 * How long the agent's next reconcile takes after `save` has returned, told by its event stream: asking for its status
 * again and again would be part of what is measured.
 */
async function nextReconcile(agent: Agent, save: () => void): Promise<{ savedMs: number; knownMs: number }> {
	let saved = 0;
	let found: { savedMs: number; knownMs: number } | undefined;
	const reading = createClient({ agent: `unix:${agent.socket}` }).events('/v1/events?verdicts=false', (event, data) => {
		if (event === 'hello') {
			save();
			// After the writing: to make and print the document takes longer than the agent.
			saved = performance.now();
		} else if (event === 'reconcile' && saved > 0) {
			found = { savedMs: performance.now() - saved, knownMs: (JSON.parse(data) as { ms: number }).ms };
			// Ends the stream.
			throw new Error('heard');
		}
	});
	const ended = reading.then(
		() => new Error('the event stream ended before the change was applied'),
		(e: Error) => e,
	);
	const limit = sleep(60_000).then(() => new Error('waited 60 s for the change to be applied'));
	const why = await Promise.race([ended, limit]);
	if (found === undefined) throw why;
	return found;
}

async function agentOnce(): Promise<Sample> {
	const net = await Topology.build({ nodes: NODES.length });
	const agents: Agent[] = [];
	try {
		const addresses = NODES.map((n) => net.address(n).v4);
		for (const node of NODES) {
			const agent = new Agent(net, node);
			agents.push(agent);
			agent.writeConfig();
			agent.writeMesh(node === 'n1' ? document(addresses, false) : { ...document(addresses, false), services: [] });
		}
		const [first, ...others] = agents;
		await Promise.all(others.map((a) => a.start()));
		const began = performance.now();
		first.launch();
		await first.ready(120_000);
		const readyMs = performance.now() - began;
		// The agent's own word in its log: the run that made it ready.
		const firstRun = Number(/"ms":([\d.]+)[^\n]*"msg":"ready"/.exec(first.output())?.[1] ?? Number.NaN);
		const pid = first.running?.pid ?? 0;
		const loaded = memory(pid);
		// Whatever a start leaves to be done is done, and the garbage of the start is collected where it will be.
		await sleep(10_000);
		const settled = memory(pid);
		const change = await nextReconcile(first, () => first.writeMesh(document(addresses, true)));
		const after = memory(pid).rss;
		const later: number[] = [];
		for (let i = 0; i < LATER_CHANGES; i++)
			later.push((await nextReconcile(first, () => first.writeMesh(document(addresses, i % 2 === 1)))).savedMs);
		return {
			'start to ready': readyMs,
			'full sync, from the membership on': firstRun,
			'file saved to applied': change.savedMs,
			'known to applied': change.knownMs,
			'later changes, saved to applied': median(later),
			'RSS when ready, MB': loaded.rss,
			'RSS 10 s later, MB': settled.rss,
			'RSS after the change, MB': after,
			'RSS at most, MB': memory(pid).peak,
		};
	} finally {
		for (const a of agents) await a.detach().catch((e: Error) => progress(`control: ${e.message}`));
		net.close();
	}
}

function table(title: string, samples: readonly Sample[], gates: Readonly<Record<string, number>>): void {
	print(
		title,
		['step', 'median', 'range', 'of the gate'],
		Object.keys(samples[0]).map((step) => {
			const values = samples.map((s) => s[step]);
			const m = median(values);
			const unit = step.endsWith(', MB') ? 'MB' : 'ms';
			const gate = gates[step];
			return [
				step.replace(/, MB$/, ''),
				`${m.toFixed(unit === 'ms' && m < 100 ? 1 : 0)} ${unit}`,
				spread(values),
				gate === undefined ? '' : `${against(m / gate, 1)} of ${gate} ${unit}`,
			];
		}),
	);
}

export async function controlBench(runs: number, inside: boolean): Promise<void> {
	if (inside) return riverOnce();
	const rivers: Sample[] = [];
	const agents: Sample[] = [];
	for (let i = 0; i < runs; i++) {
		rivers.push(river());
		agents.push(await agentOnce());
		progress(`control: run ${i + 1} of ${runs}`);
	}
	table(
		`Control river alone, ${SERVICES} services × ${BACKENDS} backends, a fresh process each: median of ${runs}, ${availableParallelism()} CPUs`,
		rivers,
		{ 'sync, after reading': GATE.syncMs, 'sync, all steps': GATE.syncMs, 'change, after reading': GATE.changeMs },
	);
	table(`beeline agent with the same mesh, beside two small agents: median of ${runs}`, agents, {
		'full sync, from the membership on': GATE.syncMs,
		'known to applied': GATE.changeMs,
		'file saved to applied': GATE.changeMs,
		'later changes, saved to applied': GATE.changeMs,
		'RSS 10 s later, MB': GATE.rssMb,
		'RSS when ready, MB': GATE.rssMb,
		'RSS after the change, MB': GATE.rssMb,
	});
}
