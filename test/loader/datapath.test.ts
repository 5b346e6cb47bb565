/**
 * Beeline's datapath on the real kernel, with fixture programs of the real names:
 *
 *	bl0 (1000) ──veth── bl1 (1001)
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LoaderError } from 'bpf-loader';
import { probe } from 'libbpf-ts';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { buildObjects, type Datapath, openDatapath } from '../../src/loader/datapath.js';
import { takeDown } from '../../src/loader/takedown.js';
import { BPF_DIR, FIXTURE, SMALL, sh, skipped, type Workshop, workshop } from './fixture.js';

const BL1 = 1001;

const why = skipped();
if (why) console.log(`skipped: datapath: ${why}`);
else if (!process.env.BL_LDR_NETNS) {
	const ns = `bl-ldr-dp-${process.pid}`;
	sh(`ip netns add ${ns}`);
	try {
		const r = spawnSync('nsenter', [`--net=/run/netns/${ns}`, process.execPath, fileURLToPath(import.meta.url)], {
			stdio: 'inherit',
			env: { ...process.env, BL_LDR_NETNS: ns },
		});
		process.exitCode = r.status ?? 1;
	} finally {
		sh(`ip netns del ${ns}`);
	}
} else {
	/** What `auto` is here: tcx appeared in 6.6. */
	const TC = probe('tcx') ? 'tcx' : 'clsact';
	const test = suite('datapath');
	let w: Workshop;
	const start = (o: Record<string, unknown> = {}): Promise<Datapath> =>
		openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, cacheDir: w.cache, runDir: w.run, maxEntries: SMALL, ...o });
	const shown = (d: Datapath) =>
		d
			.status()
			.attachments.map((a) => `${a.slot} ${a.kind} ${a.mode ?? a.direction ?? ''} ${a.program}`)
			.sort();

	test.before.each(() => {
		spawnSync('ip', ['link', 'del', 'bl0']);
		sh('ip link add bl0 index 1000 type veth peer name bl1 index 1001; ip link set bl0 up; ip link set bl1 up');
		w = workshop('datapath');
	});
	test.after.each(() => {
		takeDown(w.pinRoot, { runDir: w.run });
		w.done();
	});

	test('an uplink is XDP, TC ingress and TC egress, and an endpoint is TC ingress', async () => {
		const d = await start();
		assert.ok(d.newMaps.includes('revnat'));
		d.commit();
		const uplink = { ifindex: BL1, name: 'bl1', mode: 'auto', mtu: 1500 } as const;
		assert.equal(d.attachUplink(uplink), { mode: 'native', program: 'uplink_xdp', via: TC });
		assert.equal(d.attachEndpoint(1000), { via: TC });
		const all = [
			`endpoint_tc ${TC} ingress endpoint_tc`,
			`uplink_tc ${TC} ingress uplink_tc`,
			`uplink_tc_egress ${TC} egress uplink_tc_egress`,
			'uplink_xdp xdp native uplink_xdp',
		];
		assert.equal(shown(d), all);
		d.attachUplink(uplink);
		assert.equal(shown(d), all, 'again changes nothing');
		d.detachEndpoint(1000);
		d.detachUplink(BL1);
		assert.equal(shown(d), []);
		assert.is(d.takeDown().left.length, 0);
		assert.not(existsSync(w.pinRoot));
	});

	test('a larger MTU takes the program for frags, in the same link', async () => {
		const d = await start();
		d.commit();
		assert.is(d.attachUplink({ ifindex: BL1, name: 'bl1', mode: 'native', mtu: 1500 }).program, 'uplink_xdp');
		assert.is(d.attachUplink({ ifindex: BL1, name: 'bl1', mode: 'native', mtu: 9000 }).program, 'uplink_xdp_frags');
		sh('ip link set bl0 mtu 9000; ip link set bl1 mtu 9000');
		d.close();
		const again = await start();
		again.commit();
		assert.is(again.status().attachments.find((a) => a.slot === 'uplink_xdp')?.program, 'uplink_xdp_frags');
		again.close();
	});

	test('an uplink that cannot be attached whole is not attached at all, and the reason names it', async () => {
		const d = await start();
		d.commit();
		{
			using _ = d.program('uplink_xdp').attachXdp(BL1);
			assert.throws(
				() => d.attachUplink({ ifindex: BL1, name: 'bl1', mode: 'auto', mtu: 1500 }),
				(e: unknown) =>
					e instanceof LoaderError &&
					e.code === 'ATTACH_FAILED' &&
					/^uplink bl1: attach uplink_xdp: .*another XDP program/.test(e.message),
			);
			assert.equal(shown(d), []);
		}
		assert.throws(
			() => d.attachUplink({ ifindex: 4444, name: 'gone', mode: 'auto', mtu: 1500 }),
			/uplink gone: .*no such interface/,
		);
		d.close();
	});

	test('a restart finds what it left; a changed program is switched at commit; rows stay', async () => {
		const first = await start();
		first.commit();
		first.attachUplink({ ifindex: BL1, name: 'bl1', mode: 'auto', mtu: 1500 });
		first.store.vteps.setMany([['10.0.0.9', 9]]);
		const ids = first.status().attachments.map((a) => a.programId);
		first.close();
		const second = await start();
		assert.equal(second.newMaps, []);
		second.commit();
		assert.equal(
			second.status().attachments.map((a) => a.programId),
			ids,
		);
		assert.equal([...second.store.vteps.entries()], [['10.0.0.9', 9]]);
		second.close();
		w.write('uplink_xdp.bpf.c', FIXTURE['uplink_xdp.bpf.c'].replace('STEP', '2'));
		const third = await start();
		assert.equal(third.newMaps, []);
		third.commit();
		const now = third.status().attachments;
		assert.equal(
			now.filter((a, i) => a.programId !== ids[i]).map((a) => a.slot),
			['uplink_xdp'],
		);
		third.close();
	});

	test('a map of another size is empty and to be filled before commit; the rest is not asked for', async () => {
		const first = await start();
		first.commit();
		first.attachUplink({ ifindex: BL1, name: 'bl1', mode: 'auto', mtu: 1500 });
		first.store.vteps.setMany([['10.0.0.9', 9]]);
		first.store.nodes.setMany([
			[1, { vtep: '10.0.0.9', ifindex: 2, dmac: '02:00:00:00:00:01', smac: '02:00:00:00:00:02', mtu: 1500, flags: 1 }],
		]);
		first.close();
		const d = await start({ maxEntries: { ...SMALL, vteps: 8192 } });
		assert.equal(d.newMaps, ['vteps']);
		assert.equal([...d.store.vteps.entries()], []);
		assert.is([...d.store.nodes.entries()].length, 1);
		d.store.vteps.setMany([['10.0.0.9', 9]]);
		d.commit();
		assert.ok(
			d.status().attachments.every((a) => a.program !== undefined && !a.severed),
			'all run this load',
		);
		d.close();
	});

	test('socket programs attach to a cgroup together and leave it together', async () => {
		const root = sh('awk \'$3=="cgroup2"{print $2;exit}\' /proc/mounts').trim();
		const cgroup = `${root}/bl-ldr-dp-${process.pid}`;
		mkdirSync(cgroup);
		try {
			const d = await start();
			d.commit();
			d.attachSocket(cgroup);
			d.attachSocket(cgroup);
			assert.is(shown(d).length, 8);
			d.detachSocket();
			assert.equal(shown(d), []);
			d.close();
		} finally {
			rmdirSync(cgroup);
		}
	});

	test('a node without clang loads the objects that another one built', async () => {
		const outDir = join(w.bpf, 'objects');
		await buildObjects({ bpfDir: w.bpf, outDir });
		const d = await openDatapath({
			pinRoot: w.pinRoot,
			objectDir: outDir,
			clang: '/nonexistent/clang',
			runDir: w.run,
			maxEntries: SMALL,
		});
		d.commit();
		d.close();
		try {
			await openDatapath({ pinRoot: w.pinRoot, bpfDir: w.bpf, clang: '/nonexistent/clang', runDir: w.run });
			assert.unreachable('it loaded without clang and object');
		} catch (e) {
			assert.match((e as Error).message, /no clang and no precompiled object .*install the Debian package clang/);
		}
	});

	test('a frame put in by hand arrives as from the wire', async () => {
		const d = await start();
		d.commit();
		const frame = Uint8Array.from({ length: 60 }, (_, i) => (i < 6 ? 0xff : i === 12 ? 0x88 : i === 13 ? 0xb5 : 0));
		d.inject(BL1, frame);
		const passed = d.store.counters().verdicts.find((v) => v.program === 0 && v.verdict === 0);
		assert.equal([passed?.packets, passed?.bytes], [1n, 60n]);
		d.close();
	});

	test("the repository's own programs load", async () => {
		const objects = ['uplink_xdp', 'uplink_tc', 'endpoint_tc', 'gateway_tc', 'socket']
			.map((n) => `${n}.bpf.o`)
			.filter((n) => existsSync(join(BPF_DIR, n.replace(/\.o$/, '.c'))));
		const d = await start({ bpfDir: BPF_DIR, objects });
		d.commit();
		d.close();
	});

	test.run();
}
