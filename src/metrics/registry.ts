/** A prom-client registry that reads the kernel's counters when it is scraped, and at no other time. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { DnsCounters } from '../dns/counters.js';
import type { Counters } from '../mesh/store.js';
import { Monotonic } from './monotonic.js';
import { METRICS, type MetricKey, type MetricSpec } from './table.js';

/** What a scrape needs to know beside the counters; indexes are rows of the counter maps. */
export interface MetricsSnapshot {
	readonly frontends: readonly {
		readonly index: number;
		readonly service: string;
		readonly protocol: string;
		readonly port: number;
	}[];
	readonly backends: readonly {
		readonly index: number;
		readonly id: string;
		readonly service: string;
		readonly node: string;
		readonly state: 'active' | 'draining' | 'down';
	}[];
	/** Slots that are not stable, by service. */
	readonly slotsInTransition: ReadonlyMap<string, number>;
	/** Living flows by service. */
	readonly flows: ReadonlyMap<string, number>;
	readonly nodes: readonly { readonly name: string; readonly reachable: boolean }[];
	readonly refused: number;
}

/** Packets that are held for services without tasks. */
export interface HeldCounters {
	readonly waiting: number;
	/** Put back; no backend came for in time; no room for. */
	readonly ended: Readonly<Record<'released' | 'expired' | 'crowded', number>>;
}

export interface EncryptionCounters {
	readonly ready: number;
	readonly missing: number;
	readonly oldestSeconds: number;
	readonly sessions: number;
	readonly errors: number;
	readonly refused: number;
	readonly dropped: readonly { readonly direction: string; readonly reason: string; readonly packets: number }[];
}

export interface MetricsDeps {
	readonly version: string;
	readonly abi: number;
	readonly programs: readonly string[];
	readonly verdicts: readonly string[];
	/** undefined before the datapath is open: what comes from it is then absent. */
	readonly counters: () => Counters | undefined;
	readonly sizes: () => readonly { readonly map: string; readonly entries: number; readonly maxEntries: number }[];
	readonly snapshot: () => MetricsSnapshot | undefined;
	/** Seconds each program ran since it was loaded; undefined while statistics are off. */
	readonly runSeconds: () => readonly { readonly program: string; readonly seconds: number }[] | undefined;
	/** What the name service counted; undefined, or absent, where there is none. */
	readonly dns?: () => DnsCounters | undefined;
	/** Of services without tasks; undefined, or absent, where none may be. */
	readonly held?: () => HeldCounters | undefined;
	/** Of encrypted networks; undefined, or absent, where there are none. */
	readonly encryption?: () => EncryptionCounters | undefined;
}

export interface Metrics {
	/** One reconcile ended; seconds. */
	reconciled(seconds: number): void;
	reconcileFailed(): void;
	/** A change that was known `seconds` ago is in the maps. */
	converged(seconds: number): void;
	scrape(): Promise<{ text: string; contentType: string }>;
}

type Labels = Readonly<Record<string, string>>;

const STATES = ['active', 'draining', 'down'] as const;

export function createMetrics(deps: MetricsDeps): Metrics {
	const registry = new Registry();
	const counters = new Map<MetricKey, Counter>();
	const gauges = new Map<MetricKey, Gauge>();
	const histograms = new Map<MetricKey, Histogram>();
	for (const [key, spec] of Object.entries(METRICS) as [MetricKey, MetricSpec][]) {
		const common = { name: spec.name, help: spec.help, labelNames: [...spec.labels], registers: [registry] };
		if (spec.type === 'counter') counters.set(key, new Counter(common));
		else if (spec.type === 'gauge') gauges.set(key, new Gauge(common));
		else histograms.set(key, new Histogram({ ...common, buckets: [...(spec.buckets ?? [])] }));
	}
	const count = (key: MetricKey, labels: Labels, value: number) => counters.get(key)!.inc(labels, value);
	const set = (key: MetricKey, labels: Labels, value: number) => gauges.get(key)!.set(labels, value);

	const verdictSeries = new Monotonic();
	const frontendSeries = new Monotonic();
	const backendSeries = new Monotonic();
	const runSeries = new Map<string, { base: number; last: number }>();

	function collect(): void {
		for (const [key, metric] of counters) if (key !== 'reconcileErrors') metric.reset();
		for (const metric of gauges.values()) metric.reset();
		set('buildInfo', { version: deps.version, abi: String(deps.abi), node_version: process.version }, 1);

		const snapshot = deps.snapshot();
		const c = deps.counters();
		if (c !== undefined) {
			const rows = c.verdicts.map(
				(v) => [`${v.program} ${v.verdict}`, v.program * 64 + v.verdict, [v.packets, v.bytes]] as const,
			);
			for (const [name, [packets, bytes]] of verdictSeries.update(rows)) {
				const [p, v] = name.split(' ').map(Number) as [number, number];
				const labels = { program: deps.programs[p] ?? String(p), verdict: deps.verdicts[v] ?? String(v) };
				count('packets', labels, packets!);
				count('bytes', labels, bytes!);
			}
		}
		if (c !== undefined && snapshot !== undefined) {
			const frontends = snapshot.frontends.map((f) => {
				const row = c.frontends.get(f.index);
				return [
					JSON.stringify([f.service, f.protocol, f.port]),
					f.index,
					[row?.packets ?? 0n, row?.bytes ?? 0n],
				] as const;
			});
			for (const [name, [packets, bytes]] of frontendSeries.update(frontends)) {
				const [service, protocol, port] = JSON.parse(name) as [string, string, number];
				const labels = { service, protocol, port: String(port) };
				count('servicePackets', labels, packets!);
				count('serviceBytes', labels, bytes!);
			}
			const backends = snapshot.backends.map((b) => {
				const row = c.backends.get(b.index);
				const values = [row?.packets ?? 0n, row?.bytes ?? 0n, row?.newFlows ?? 0n];
				return [JSON.stringify([b.service, b.id, b.node]), b.index, values] as const;
			});
			for (const [name, [packets, bytes, newFlows]] of backendSeries.update(backends)) {
				const [service, backend, node] = JSON.parse(name) as [string, string, string];
				const labels = { service, backend, node };
				count('backendPackets', labels, packets!);
				count('backendBytes', labels, bytes!);
				count('backendNewFlows', labels, newFlows!);
			}
		}
		if (snapshot !== undefined) {
			for (const b of snapshot.backends) {
				for (const state of STATES) {
					set('backendState', { service: b.service, backend: b.id, node: b.node, state }, b.state === state ? 1 : 0);
				}
			}
			for (const [service, n] of snapshot.flows) set('flows', { service }, n);
			for (const [service, n] of snapshot.slotsInTransition) set('slotsInTransition', { service }, n);
			for (const n of snapshot.nodes) set('nodeReachable', { node: n.name }, n.reachable ? 1 : 0);
			set('invalid', {}, snapshot.refused);
		}
		for (const m of deps.sizes()) {
			set('mapEntries', { map: m.map }, m.entries);
			set('mapMaxEntries', { map: m.map }, m.maxEntries);
		}
		const dns = deps.dns?.();
		if (dns !== undefined) {
			for (const [result, n] of Object.entries(dns.queries)) count('dnsQueries', { result }, n);
			for (const [reason, n] of Object.entries(dns.failures)) count('dnsUpstreamFailures', { reason }, n);
			for (const [state, n] of Object.entries(dns.namespaces)) set('dnsNamespaces', { state }, n);
			count('dnsTruncated', {}, dns.truncated);
			set('dnsForwarding', {}, dns.inFlight);
		}
		const held = deps.held?.();
		if (held !== undefined) {
			set('heldPackets', {}, held.waiting);
			for (const [outcome, n] of Object.entries(held.ended)) count('heldEnded', { outcome }, n);
		}
		const keys = deps.encryption?.();
		if (keys !== undefined) {
			set('encryptionPeers', { state: 'ready' }, keys.ready);
			set('encryptionPeers', { state: 'missing' }, keys.missing);
			set('encryptionKeyAge', {}, keys.oldestSeconds);
			count('encryptionSessions', {}, keys.sessions);
			count('encryptionErrors', {}, keys.errors);
			count('encryptionRefused', {}, keys.refused);
			for (const { packets, ...labels } of keys.dropped) count('encryptionDropped', labels, packets);
		}
		const runs = new Map<string, number>();
		for (const r of deps.runSeconds() ?? []) runs.set(r.program, (runs.get(r.program) ?? 0) + r.seconds);
		for (const [program, seconds] of runs) {
			// An upgraded program begins at zero again.
			const s = runSeries.get(program) ?? { base: 0, last: 0 };
			if (seconds < s.last) s.base += s.last;
			s.last = seconds;
			runSeries.set(program, s);
			count('programRun', { program }, s.base + seconds);
		}
	}

	return {
		reconciled: (seconds) => histograms.get('reconcileDuration')!.observe(seconds),
		reconcileFailed: () => counters.get('reconcileErrors')!.inc(),
		converged: (seconds) => histograms.get('convergence')!.observe(seconds),
		async scrape() {
			collect();
			return { text: await registry.metrics(), contentType: registry.contentType };
		},
	};
}
