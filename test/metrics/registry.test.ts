import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Counters } from '../../src/mesh/store.js';
import { Monotonic } from '../../src/metrics/monotonic.js';
import { createMetrics, type MetricsSnapshot } from '../../src/metrics/registry.js';
import { METRICS, type MetricSpec } from '../../src/metrics/table.js';

const SPECS: readonly MetricSpec[] = Object.values(METRICS);

function setUp() {
	const state = {
		counters: {
			verdicts: [{ program: 0, verdict: 1, packets: 7n, bytes: 700n }],
			frontends: new Map([[1, { packets: 10n, bytes: 1000n }]]),
			backends: new Map([
				[3, { packets: 5n, bytes: 500n, newFlows: 2n }],
				[4, { packets: 6n, bytes: 600n, newFlows: 1n }],
			]),
		} as Counters | undefined,
		snapshot: {
			frontends: [{ index: 1, service: 'web', protocol: 'tcp', port: 8080 }],
			backends: [
				{ index: 3, id: 'a', service: 'web', node: 'node1', state: 'active' },
				{ index: 4, id: 'b', service: 'web', node: 'node2', state: 'draining' },
			],
			slotsInTransition: new Map([['web', 12]]),
			flows: new Map([['web', 3]]),
			nodes: [{ name: 'node2', reachable: false }],
			refused: 1,
		} as MetricsSnapshot | undefined,
		run: undefined as { program: string; seconds: number }[] | undefined,
	};
	const metrics = createMetrics({
		version: '0.1.0',
		abi: 1,
		programs: ['uplink_xdp'],
		verdicts: ['pass_not_ours', 'encap_node'],
		counters: () => state.counters,
		sizes: () => [{ map: 'vteps', entries: 2, maxEntries: 4096 }],
		snapshot: () => state.snapshot,
		runSeconds: () => state.run,
		held: () => ({ waiting: 3, ended: { released: 2, expired: 1, crowded: 4 } }),
		dns: () => ({
			queries: {
				answer: 9,
				nodata: 1,
				forwarded: 4,
				servfail: 0,
				refused: 0,
				malformed: 2,
				unsupported: 0,
				dropped: 0,
			},
			truncated: 3,
			failures: { timeout: 5, unreachable: 0, failure: 0, no_server: 0, busy: 0 },
			inFlight: 2,
			namespaces: { serving: 7, beside: 2, held: 1 },
		}),
		encryption: () => ({
			...{ ready: 4, missing: 1, oldestSeconds: 90, sessions: 12, errors: 0, refused: 3 },
			dropped: [
				{ direction: 'out', reason: 'no_keys', packets: 2 },
				{ direction: 'in', reason: 'state_seq_error', packets: 5 },
			],
		}),
	});
	const value = async (line: string) => {
		const { text } = await metrics.scrape();
		const found = text.split('\n').find((l) => l.startsWith(`${line} `));
		return found === undefined ? undefined : Number(found.slice(line.length + 1));
	};
	return { state, metrics, value };
}

test('names follow the conventions of Prometheus and the interface', () => {
	for (const m of SPECS) {
		assert.match(m.name, /^beeline_[a-z_]+$/);
		if (m.type === 'counter') assert.match(m.name, /_total$/);
		else assert.not.match(m.name, /_total$/);
		if (m.unit === 'seconds') assert.match(m.name, /_seconds(_total)?$/);
		for (const l of m.labels) assert.not.match(l, /client|source/);
	}
	assert.is(new Set(SPECS.map((m) => m.name)).size, SPECS.length);
});

test('a scrape shows every metric of the table, with its help and type', async () => {
	const { metrics, state } = setUp();
	state.run = [{ program: 'uplink_xdp', seconds: 1.5 }];
	metrics.reconciled(0.003);
	metrics.converged(0.02);
	metrics.reconcileFailed();
	const { text, contentType } = await metrics.scrape();
	assert.match(contentType, /text\/plain; version=0\.0\.4/);
	for (const m of SPECS) {
		assert.ok(text.includes(`# HELP ${m.name} ${m.help}`), m.name);
		assert.ok(text.includes(`# TYPE ${m.name} ${m.type}`), m.name);
		assert.match(text, new RegExp(`^${m.name}(_bucket|_count)?[{ ]`, 'm'), `${m.name} has no sample`);
	}
});

test('values and labels', async () => {
	const { value, state } = setUp();
	for (let i = 0; i < 2; i++)
		assert.is(await value('beeline_dns_queries_total{result="answer"}'), 9, 'a total, not a sum');
	assert.is(await value('beeline_dns_queries_total{result="dropped"}'), 0);
	assert.is(await value('beeline_dns_upstream_failures_total{reason="timeout"}'), 5);
	assert.is(await value('beeline_dns_truncated_total'), 3);
	assert.is(await value('beeline_dns_forwarding'), 2);
	assert.is(await value('beeline_encryption_peers{state="ready"}'), 4);
	assert.is(await value('beeline_encryption_peers{state="missing"}'), 1);
	assert.is(await value('beeline_encryption_key_age_seconds'), 90);
	assert.is(await value('beeline_encryption_sessions_total'), 12);
	assert.is(await value('beeline_encryption_errors_total'), 0);
	assert.is(await value('beeline_encryption_refused_messages_total'), 3);
	assert.is(await value('beeline_dns_namespaces{state="beside"}'), 2);
	assert.is(await value('beeline_encryption_dropped_packets_total{direction="out",reason="no_keys"}'), 2);
	assert.is(await value('beeline_encryption_dropped_packets_total{direction="in",reason="state_seq_error"}'), 5);
	assert.is(await value('beeline_dns_namespaces{state="held"}'), 1);
	assert.is(await value('beeline_packets_total{program="uplink_xdp",verdict="encap_node"}'), 7);
	assert.is(await value('beeline_bytes_total{program="uplink_xdp",verdict="encap_node"}'), 700);
	assert.is(await value('beeline_service_packets_total{service="web",protocol="tcp",port="8080"}'), 10);
	assert.is(await value('beeline_backend_new_flows_total{service="web",backend="a",node="node1"}'), 2);
	assert.is(await value('beeline_backend_state{service="web",backend="b",node="node2",state="draining"}'), 1);
	assert.is(await value('beeline_backend_state{service="web",backend="b",node="node2",state="active"}'), 0);
	assert.is(await value('beeline_node_reachable{node="node2"}'), 0);
	assert.is(await value('beeline_slots_in_transition{service="web"}'), 12);
	assert.is(await value('beeline_flows{service="web"}'), 3);
	assert.is(await value('beeline_program_run_seconds_total{program="uplink_xdp"}'), undefined);
	state.run = [{ program: 'uplink_xdp', seconds: 2 }];
	assert.is(await value('beeline_program_run_seconds_total{program="uplink_xdp"}'), 2);
	state.run = [{ program: 'uplink_xdp', seconds: 0.5 }];
	assert.is(await value('beeline_program_run_seconds_total{program="uplink_xdp"}'), 2.5);
});

test('two scrapes do not add up, and what is gone is gone from the next one', async () => {
	const { value, state } = setUp();
	const a = 'beeline_backend_packets_total{service="web",backend="a",node="node1"}';
	assert.is(await value(a), 5);
	assert.is(await value(a), 5);
	state.snapshot = { ...state.snapshot!, backends: [] };
	assert.is(await value(a), undefined);
});

test('an index that another backend reuses makes no series go backwards', async () => {
	const { value, state } = setUp();
	const a = 'beeline_backend_packets_total{service="web",backend="a",node="node1"}';
	const b = 'beeline_backend_packets_total{service="web",backend="b",node="node2"}';
	assert.is(await value(a), 5);
	assert.is(await value(b), 6);
	const [first, second] = state.snapshot!.backends;
	state.snapshot = {
		...state.snapshot!,
		backends: [
			{ ...first!, index: 4 },
			{ ...second!, index: 9 },
		],
	};
	state.counters!.backends.set(4, { packets: 1n, bytes: 1n, newFlows: 0n });
	assert.is(await value(a), 6, '5 of row 3, 1 of row 4');
	assert.is(await value(b), 6, 'row 9 has nothing yet');
	state.counters!.backends.set(4, { packets: 0n, bytes: 0n, newFlows: 0n });
	assert.is(await value(a), 6, 'a cleared row');
});

test('before the datapath is open there are no figures, and a scrape is no error', async () => {
	const { metrics, state } = setUp();
	state.counters = undefined;
	state.snapshot = undefined;
	const { text } = await metrics.scrape();
	assert.match(text, /beeline_build_info{/);
	assert.not.match(text, /^beeline_packets_total{/m);
});

test('a series that returns goes on from its total', () => {
	const m = new Monotonic();
	assert.equal(m.update([['x', 1, [5n]]]).get('x'), [5]);
	assert.equal([...m.update([])], []);
	assert.equal(m.update([['x', 2, [1n]]]).get('x'), [6], 'another row');
	m.update([]);
	assert.equal(m.update([['x', 2, [3n]]]).get('x'), [8], 'the same row, not cleared');
});

test.run();
