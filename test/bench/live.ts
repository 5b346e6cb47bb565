/**
 * Frames that really leave: BPF_F_TEST_XDP_LIVE_FRAMES on one end of a veth, XDP_DROP and a counter on the other. Generator,
 * program, transmission and sink share one CPU. Runs in the namespace that main.ts makes.
 */
import { join } from 'node:path';
import { compile } from 'bpf-loader';
import { LIVE_FRAMES, open } from 'libbpf-ts';
import { run } from '../support/netns.js';
import { root } from '../support/tools.js';
import { ACK, frame } from './frames.js';
import { median, print, progress, spread } from './report.js';
import { buildRig, CLIENT, CLIENT_NUMBER, MAC, OWN, SERVICE } from './rig.js';

const REPEAT = 1 << 20;
const BATCH = 64;
const FRAME_WORDS = 14;

const ROWS = [
	{ name: 'bare XDP_TX', program: 'l_null' },
	{ name: 'floor: balance, stateless, TX', program: 'l_lb_vxlan_stateless' },
	{ name: 'uplink_xdp: established, TX', program: 'l_uplink' },
] as const;

export async function liveBench(runs: number): Promise<void> {
	const [{ ifindex }] = JSON.parse(run('ip', ['-j', 'link', 'show', 'dev', 'up0']).stdout) as { ifindex: number }[];
	const { object } = await compile(join(root, 'test/bench/bpf/sink.bpf.c'));
	using sink = open(object, { name: 'sink' }).loadSync();
	const rig = await buildRig({ flows: false, ifindex });
	// The near end too: only an interface with XDP has the receive queue that frames claim to come from.
	const links = ['down0', 'up0'].map((dev) => sink.program('sink').attachXdp(dev, { mode: 'native' }));
	try {
		const arrived = (sink.vars as Readonly<Record<string, { get(): unknown }>>).arrived;
		const bytes = frame(MAC, { source: CLIENT, destination: OWN, sourcePort: 1024, destinationPort: SERVICE }, ACK);
		const words = new BigUint64Array(FRAME_WORDS);
		new Uint8Array(words.buffer).set(bytes);
		// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
		const context = new DataView(new ArrayBuffer(24));
		context.setUint32(4, bytes.length, true);
		context.setUint32(12, ifindex, true);
		const all = ROWS.flatMap((row) =>
			[0, 19].map((flows) => {
				const { program, object } = rig.wrapped(row.program);
				const runner = program.runner({
					dataSize: bytes.length,
					ctxSize: context.byteLength,
					repeat: REPEAT,
					flags: LIVE_FRAMES,
					batchSize: BATCH,
				});
				const vars = object.vars as Readonly<Record<string, { set(v: unknown): void }>>;
				const once = () => {
					vars.frame_words.set([...words]);
					vars.flow_mask.set(flows === 0 ? 0 : 2 ** flows - 1);
					vars.flow_base.set(CLIENT_NUMBER);
					runner.data.set(bytes);
					runner.ctx.set(new Uint8Array(context.buffer));
					const before = arrived.get() as bigint;
					const start = process.hrtime.bigint();
					runner.run();
					const ns = Number(process.hrtime.bigint() - start);
					const n = Number((arrived.get() as bigint) - before);
					return { mpps: (n / ns) * 1000, arrived: n / REPEAT };
				};
				return { row, flows, once, mpps: [] as number[], arrived: [] as number[] };
			}),
		);
		for (const m of all) m.once();
		for (let i = 0; i < runs; i++) {
			for (const m of all) {
				const r = m.once();
				m.mpps.push(r.mpps);
				m.arrived.push(r.arrived);
			}
			progress(`live: run ${i + 1} of ${runs}`);
		}
		print(
			`Live frames of 64 bytes over veth, one CPU for all: median of ${runs} interleaved runs of 2^20`,
			['row', 'flows', 'Mpps', 'range', 'arrived', 'ratio to bare XDP_TX'],
			all.map((m) => {
				const base = all.find((b) => b.row === ROWS[0] && b.flows === m.flows) ?? m;
				return [
					m.row.name,
					m.flows === 0 ? '1' : `2^${m.flows}`,
					median(m.mpps).toFixed(2),
					spread(m.mpps, 2),
					`${(100 * median(m.arrived)).toFixed(1)} %`,
					median(m.mpps.map((x, i) => x / base.mpps[i])).toFixed(2),
				];
			}),
		);
	} finally {
		for (const l of links) l[Symbol.dispose]();
		rig.close();
	}
}
