/** Program time against the floor, by BPF_PROG_TEST_RUN. Runs in a namespace of its own, on one CPU (main.ts). */
import { Program as Programs, VERDICTS } from '../../src/loader/layout.gen.js';
import { ACK, frame, SYN, tunnelled } from './frames.js';
import { against, median, print, progress, spread } from './report.js';
import {
	buildRig,
	CLIENT,
	CLIENT_NUMBER,
	LARGE_SERVICE,
	LOCAL_ENDPOINT,
	LOCAL_SERVICE,
	MAC,
	MASQUERADED_SERVICE,
	OWN,
	PEER,
	type Rig,
	SELF,
	SERVICE,
	SHARED_SERVICE,
	TUNNEL_MAC,
	TUNNEL_SERVICE,
	UDP_SERVICE,
	USED_MASQUERADED_SERVICE,
	USED_SHARED_SERVICE,
	VNI,
	VXLAN_PORT,
} from './rig.js';

/** Two rounds over 2^19 flows. */
const REPEAT = 1 << 20;
const FRAME_WORDS = 14;
const STATELESS = 'floor: balance, stateless';
const PARSE = 'floor: parse, drop';

interface Row {
	readonly name: string;
	readonly program: string;
	readonly frame: Uint8Array;
	/** Powers of two. */
	readonly flows: readonly number[];
	/** The row that this one's ratio is to. */
	readonly to?: string;
	readonly gate?: number;
	/** What every packet must have got, or the row would measure something else. */
	readonly verdict?: string;
	readonly by?: number;
}

function rows(): readonly Row[] {
	const ends = (destinationPort: number) => ({
		source: CLIENT,
		destination: OWN,
		sourcePort: 1024,
		destinationPort,
	});
	const tcp = (port: number, flags: number) => frame(MAC, ends(port), flags);
	const reply = frame(MAC, { source: LOCAL_ENDPOINT, destination: CLIENT, sourcePort: 80, destinationPort: 1024 }, ACK);
	const xdp = { program: 'w_uplink', by: Programs.PROGRAM_UPLINK_XDP };
	const both = [0, 19];
	return [
		{ name: 'wrapper alone', program: 'w_null', frame: tcp(SERVICE, ACK), flows: both },
		{ name: PARSE, program: 'w_parse_drop', frame: tcp(SERVICE, ACK), flows: both },
		{ name: STATELESS, program: 'w_lb_vxlan_stateless', frame: tcp(SERVICE, ACK), flows: both },
		{ name: 'floor: balance, LRU', program: 'w_lb_vxlan', frame: tcp(SERVICE, ACK), flows: both, to: STATELESS },
		{
			...xdp,
			name: 'established, 1024 slots',
			frame: tcp(SERVICE, ACK),
			flows: both,
			to: STATELESS,
			gate: 1.15,
			verdict: 'encap_node',
		},
		{
			...xdp,
			name: 'established, 16384 slots',
			frame: tcp(LARGE_SERVICE, ACK),
			flows: both,
			to: STATELESS,
			gate: 1.15,
			verdict: 'encap_node',
		},
		...(
			[
				['that masquerade may use', MASQUERADED_SERVICE],
				['that masquerade has used', USED_MASQUERADED_SERVICE],
				['of the node’s own range', SHARED_SERVICE],
				['of the node’s own range, used', USED_SHARED_SERVICE],
			] as const
		).map(([of, port]) => ({
			...xdp,
			name: `established, port ${of}`,
			frame: tcp(port, ACK),
			flows: both,
			to: STATELESS,
			verdict: 'encap_node',
		})),
		{
			...xdp,
			name: 'SYN, 1024 slots',
			frame: tcp(SERVICE, SYN),
			flows: both,
			to: STATELESS,
			gate: 1.15,
			verdict: 'encap_node',
		},
		{
			...xdp,
			name: 'UDP, 1024 slots',
			frame: frame(MAC, ends(UDP_SERVICE), undefined),
			flows: both,
			to: STATELESS,
			verdict: 'encap_node',
		},
		{
			...xdp,
			name: 'local delivery',
			frame: tcp(LOCAL_SERVICE, ACK),
			flows: both,
			to: STATELESS,
			verdict: 'deliver_endpoint',
		},
		{
			...xdp,
			name: 'decapsulation, delivery',
			program: 'w_uplink_tunnelled',
			frame: tunnelled(frame(TUNNEL_MAC, ends(TUNNEL_SERVICE), ACK, `06:00:${hex(PEER)}`), {
				to: MAC,
				source: PEER,
				destination: SELF,
				port: VXLAN_PORT,
				vni: VNI,
			}),
			flows: both,
			to: STATELESS,
			verdict: 'deliver_endpoint',
		},
		{ name: 'TC: wrapper alone', program: 'w_null_tc', frame: reply, flows: both },
		{
			name: 'TC: reply to a client',
			program: 'w_endpoint',
			by: Programs.PROGRAM_ENDPOINT_TC,
			frame: reply,
			flows: both,
			to: STATELESS,
			verdict: 'return_client_local',
		},
		...(
			[
				['TCP', reply],
				['UDP', frame(MAC, { source: OWN, destination: CLIENT, sourcePort: 5000, destinationPort: 1024 }, undefined)],
			] as const
		).map(([of, leaves]) => ({
			name: `TC: not ours, leaves by an uplink, ${of}`,
			program: 'w_egress',
			by: Programs.PROGRAM_UPLINK_TC_EGRESS,
			frame: leaves,
			flows: both,
			verdict: 'pass_not_ours',
		})),
		{
			...xdp,
			name: 'not ours: nothing published',
			frame: tcp(9999, ACK),
			flows: both,
			to: PARSE,
			gate: 1.5,
			verdict: 'pass_not_ours',
		},
		{
			...xdp,
			name: 'not ours: port published, routed through',
			gate: 1.5,
			frame: frame(MAC, { ...ends(SERVICE), destination: '10.9.9.9' }, ACK),
			flows: [0],
			to: PARSE,
			verdict: 'pass_not_ours',
		},
	];
}

function hex(address: string): string {
	return address
		.split('.')
		.map((n) => Number(n).toString(16).padStart(2, '0'))
		.join(':');
}

function verdicts(rig: Rig, by: number): Map<string, bigint> {
	return new Map(
		rig.store
			.counters()
			.verdicts.filter((v) => v.program === by)
			.map((v) => [VERDICTS[v.verdict], v.packets]),
	);
}

interface Measured {
	readonly row: Row;
	readonly flows: number;
	readonly run: () => number;
	readonly ns: number[];
}

/** One row at one number of flows, as a function that gives ns a packet. */
function prepare(rig: Rig, row: Row, flows: number): Measured {
	const { program, object } = rig.wrapped(row.program);
	const runner = program.runner({ dataSize: row.frame.length, repeat: REPEAT });
	const words = new BigUint64Array(FRAME_WORDS);
	new Uint8Array(words.buffer).set(row.frame.subarray(0, words.byteLength));
	const vars = object.vars as Readonly<Record<string, { set(v: unknown): void }>>;
	const run = () => {
		vars.frame_words.set([...words]);
		vars.frame_bytes.set(row.frame.length);
		vars.flow_mask.set(flows === 0 ? 0 : 2 ** flows - 1);
		vars.flow_base.set(CLIENT_NUMBER);
		runner.data.set(row.frame);
		runner.run();
		return runner.durationNs;
	};
	return { row, flows, run, ns: [] };
}

/** What the row does is looked at once: every packet has the verdict that is meant. */
function prove(rig: Rig, m: Measured): void {
	const { verdict, by, name } = m.row;
	const before = by === undefined ? new Map<string, bigint>() : verdicts(rig, by);
	m.run();
	if (verdict === undefined || by === undefined) return;
	const after = verdicts(rig, by);
	const got = [...after].map(([v, n]) => [v, n - (before.get(v) ?? 0n)] as const).filter(([, n]) => n > 0n);
	const right = got.find(([v]) => v === verdict)?.[1] ?? 0n;
	if (right < BigInt(REPEAT))
		throw new Error(
			`bench row "${name}" measures something else: expected ${REPEAT} ${verdict}, got ${got.map(([v, n]) => `${n} ${v}`).join(', ')}`,
		);
}

/** @param only rows whose name contains it, beside the floor's */
export async function programBench(runs: number, only = ''): Promise<void> {
	progress('program: building tables and 2^20 flow records');
	const rig = await buildRig({ flows: true });
	try {
		const all = rows()
			.filter((row) => row.to === undefined || row.name.includes(only))
			.flatMap((row) => row.flows.map((flows) => prepare(rig, row, flows)));
		for (const m of all) prove(rig, m);
		for (let i = 0; i < runs; i++) {
			for (const m of all) m.ns.push(m.run());
			progress(`program: run ${i + 1} of ${runs}`);
		}
		// Ratios run by run: what slows the machine for a while slows both sides.
		const ratio = (m: Measured, to: string) => {
			const base = all.find((b) => b.row.name === to && b.flows === m.flows) as Measured;
			return median(m.ns.map((ns, i) => ns / base.ns[i]));
		};
		print(
			`Program time: median of ${runs} interleaved runs of 2^20 packets, wrapper included`,
			['row', 'flows', 'ns', 'range', 'ratio to the floor'],
			all.map((m) => [
				m.row.name,
				m.flows === 0 ? '1' : `2^${m.flows}`,
				median(m.ns).toFixed(0),
				spread(m.ns),
				m.row.to === undefined
					? ''
					: against(ratio(m, m.row.to), m.flows === 0 && m.row.gate === 1.15 ? undefined : m.row.gate),
			]),
		);
	} finally {
		rig.close();
	}
}
