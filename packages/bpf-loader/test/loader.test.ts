/**
 * The loader on the real kernel, in a network namespace of its own:
 *
 *	bl0 (1000, 10.99.0.1) ──veth── bl1 (1001): what is attached here sees what bl0 sends
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Link, maps, probe, queryTcx } from 'libbpf-ts';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { parseMounts } from '../src/bpffs.js';
import { detachAll, type Loaded, LoaderError, load, loadableObjects, lockPinRoot } from '../src/index.js';
import { linkPins, pinPaths } from '../src/pins.js';
import {
	BAD_C,
	BL1,
	FRAME,
	freshPair,
	insideNetns,
	ONE_C,
	SHARED_H,
	sh,
	sources,
	type Workshop,
	workshop,
} from './support.js';

type Options = { maxEntries?: Record<string, number>; abi?: number; consts?: Record<string, unknown> };

async function start(w: Workshop, o: Options = {}): Promise<Loaded> {
	const objects = await loadableObjects(['one.bpf.o', 'two.bpf.o'], { sourceDir: w.path('.'), cacheDir: w.cache });
	return load({ objects, pinRoot: w.pinRoot, runDir: w.run, ...o });
}

const listing = (w: Workshop) => sh(`find ${w.pinRoot} | sort`);
const counter = (w: Workshop, i: number) => maps.fromPin<number, bigint>(`${w.pinRoot}/maps/counters`).get(i) ?? 0n;
/** One ARP request out of bl0. */
const knock = () =>
	void spawnSync('bash', ['-c', `echo > /dev/udp/10.99.0.${2 + Math.floor(Math.random() * 250)}/9; sleep 0.05`]);

async function code(p: Promise<unknown> | (() => unknown)): Promise<LoaderError> {
	try {
		await (typeof p === 'function' ? p() : p);
	} catch (e) {
		if (e instanceof LoaderError) return e;
		throw e;
	}
	throw new Error('it did not fail');
}

const here = fileURLToPath(import.meta.url);
const child = process.env.BL_LDR_CHILD;

if (child) {
	// A process to be killed: loads, and says when; `upgrade` commits, over and over with another constant.
	const w = JSON.parse(child) as { objects: string; cache: string; pinRoot: string; run: string; upgrade: boolean };
	const objects = await loadableObjects(['one.bpf.o', 'two.bpf.o'], { sourceDir: w.objects, cacheDir: w.cache });
	console.log('compiled');
	for (let step = 2; ; step++) {
		const maxEntries = { table: 16 + (step % 2) };
		const d = await load({
			objects,
			pinRoot: w.pinRoot,
			runDir: w.run,
			...(w.upgrade ? { consts: { step }, maxEntries } : {}),
		});
		console.log('loaded');
		if (!w.upgrade) setInterval(() => d, 1000);
		if (!w.upgrade) break;
		d.commit();
		d.close();
	}
} else if (insideNetns(import.meta.url, 'loader')) {
	/** What `auto` is here: tcx appeared in 6.6. */
	const TC = probe('tcx') ? 'tcx' : 'clsact';
	const test = suite('loader');
	let w: Workshop;
	test.before.each(() => {
		freshPair();
		w = workshop('loader');
		sources(w);
	});
	test.after.each(() => {
		detachAll(w.pinRoot, { runDir: w.run });
		w.done();
	});

	const attach = (d: Loaded) => {
		const xdp = d.attachXdp({ slot: 'xdp', programs: ['in_xdp', 'in_xdp_frags'], ifindex: BL1, mode: 'auto' });
		const tc = d.attachTc({ slot: 'tc', program: 'in_tc', ifindex: BL1, direction: 'ingress' });
		return { ...xdp, ...tc };
	};

	test('a first start makes every map, and nothing is pinned or attached before commit', async () => {
		using d = await start(w);
		assert.equal([...d.newMaps].sort(), ['counters', 'table']);
		assert.not(/maps\/|programs\//.test(listing(w)));
		assert.is((await code(() => attach(d))).code, 'NOT_COMMITTED');
		d.commit();
		assert.equal(attach(d), { mode: 'native', program: 'in_xdp', via: TC });
		knock();
		assert.ok(counter(w, 0) > 0n, 'XDP saw a packet');
		assert.ok(counter(w, 1) > 0n, 'TC saw a packet');
	});

	test('objects share maps by name', async () => {
		using d = await start(w);
		d.commit();
		const ids = ['in_xdp', 'in_tc'].map((p) => d.program(p).info().mapIds.includes(d.maps.get('counters')!.id));
		assert.equal(ids, [true, true]);
	});

	test('a restart with nothing changed takes programs, maps and links as they are', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		const before = first.attachments();
		const pins = listing(w);
		const link = Link.fromPin(linkPins(pinPaths(w.pinRoot))[0].path).info().id;
		first.close();
		using d = await start(w);
		assert.equal(d.newMaps, []);
		d.commit();
		attach(d);
		assert.equal(d.attachments(), before);
		assert.is(listing(w), pins);
		assert.is(Link.fromPin(linkPins(pinPaths(w.pinRoot))[0].path).info().id, link);
	});

	test('a changed program replaces the old one within the same link, and the maps stay', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		knock();
		const was = first.attachments();
		const seen = counter(w, 0);
		first.close();
		w.write('one.bpf.c', ONE_C.replace('count(0, step)', 'count(0, 1000)'));
		const linkId = () => Link.fromPin(linkPins(pinPaths(w.pinRoot)).find((p) => p.slot === 'xdp')!.path).info().id;
		const id = linkId();
		using d = await start(w);
		assert.equal(d.newMaps, []);
		assert.is(
			d.attachments().find((a) => a.slot === 'xdp')?.programId,
			was.find((a) => a.slot === 'xdp')?.programId,
			'not before commit',
		);
		d.commit();
		assert.is(linkId(), id);
		const now = d.attachments();
		assert.is.not(now.find((a) => a.slot === 'xdp')?.programId, was.find((a) => a.slot === 'xdp')?.programId);
		assert.is(
			now.find((a) => a.slot === 'tc')?.programId,
			was.find((a) => a.slot === 'tc')?.programId,
			'an unchanged one stays',
		);
		knock();
		assert.ok(counter(w, 0) >= seen + 1000n);
		assert.is(sh(`ls ${w.pinRoot}/programs | grep -c in_xdp-`).trim(), '1', 'the old pin is gone');
	});

	test('another constant is another program', async () => {
		const first = await start(w, { consts: { step: 5 } });
		first.commit();
		const id = first.program('in_xdp').id;
		first.program('in_xdp').testRun({ data: FRAME });
		assert.is(counter(w, 0), 5n);
		first.close();
		using d = await start(w, { consts: { step: 7 } });
		assert.is.not(d.program('in_xdp').id, id);
		d.program('in_xdp').testRun({ data: FRAME });
		assert.is(counter(w, 0), 12n);
	});

	test('programs that were replaced are let go of', async () => {
		const held = () => sh(`ls -l /proc/${process.pid}/fd | grep -c bpf-prog || true`).trim();
		const before = held();
		const first = await start(w, { consts: { step: 5 } });
		first.commit();
		attach(first);
		first.close();
		const second = await start(w, { consts: { step: 7 } });
		second.commit();
		second.close();
		assert.is(held(), before);
	});

	test('a map of another size is made aside, filled, and switched to with the programs', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		first.close();
		const counters = maps.fromPin(`${w.pinRoot}/maps/counters`).id;
		using d = await start(w, { maxEntries: { table: 64 } });
		assert.equal(d.newMaps, ['table']);
		assert.is(maps.fromPin(`${w.pinRoot}/maps/table`).maxEntries, 16, 'not before commit');
		d.commit();
		assert.is(maps.fromPin(`${w.pinRoot}/maps/table`).maxEntries, 64);
		assert.is(maps.fromPin(`${w.pinRoot}/maps/counters`).id, counters);
		const running = d.attachments().find((a) => a.slot === 'xdp');
		assert.is(running?.programId, d.program('in_xdp').id);
		assert.ok(
			d
				.program('in_xdp')
				.info()
				.mapIds.includes(maps.fromPin(`${w.pinRoot}/maps/table`).id),
		);
	});

	test('rows of another meaning (ABI) are not taken over', async () => {
		const first = await start(w, { abi: 1 });
		first.commit();
		first.close();
		const d = await start(w, { abi: 2 });
		assert.equal([...d.newMaps].sort(), ['counters', 'table']);
		d.commit();
		d.close();
		assert.match(listing(w), /abi-2\n/);
		assert.not.match(listing(w), /abi-1\n/);
		using again = await start(w, { abi: 2 });
		assert.equal(again.newMaps, []);
	});

	test('a program that the verifier refuses is reported with its telling line, and what runs stays', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		const before = first.attachments();
		const pins = listing(w);
		first.close();
		w.write('one.bpf.c', BAD_C);
		const e = await code(start(w));
		assert.is(e.code, 'VERIFIER_REJECTED');
		assert.match(
			e.message,
			/^load in_xdp of one\.bpf\.o: the kernel's verifier refused it: .*invalid access to packet/,
		);
		assert.match(e.detail, /R\d/);
		assert.is(listing(w), pins);
		w.write('one.bpf.c', ONE_C);
		using d = await start(w);
		d.commit();
		assert.equal(d.attachments(), before, 'and the lock was given back');
	});

	test('a link whose interface went is attached anew', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		first.close();
		freshPair();
		using d = await start(w);
		assert.ok(d.attachments().every((a) => a.severed));
		d.commit();
		assert.equal(attach(d), { mode: 'native', program: 'in_xdp', via: TC });
		assert.ok(d.attachments().every((a) => !a.severed));
		knock();
		assert.ok(counter(w, 0) > 0n);
	});

	test('a new interface, without waiting for the kernel; one that is gone is forgotten', async () => {
		const o = { slot: 'tc', program: 'in_tc', ifindex: BL1, direction: 'ingress' } as const;
		using d = await start(w);
		assert.is((await d.attachTcAsync(o).catch((e) => e)).code, 'NOT_COMMITTED');
		d.commit();
		await d.attachTcAsync(o);
		knock();
		assert.ok(counter(w, 1) > 0n, 'TC saw a packet');
		assert.equal(
			d.attachments().map((a) => [a.slot, a.kind, a.ifindex]),
			[['tc', TC, BL1]],
		);
		// What is attached is found, and not attached twice.
		await d.attachTcAsync(o);
		assert.equal(d.attachTc(o), { via: TC });
		assert.is(d.attachments().length, 1);
		d.forget('tc', BL1 + 1);
		assert.is(d.attachments().length, 1);
		sh('ip link del bl1');
		d.forget('tc', BL1);
		assert.equal(d.attachments(), []);
		const e = await d.attachTcAsync({ ...o, ifindex: 99_999 }).catch((x) => x);
		assert.is(e.code, 'NO_INTERFACE');
		assert.match(e.message, /no such (interface|device)/i);
	});

	if (TC === 'tcx')
		test('a program ahead of another of ours that is attached', async () => {
			const o = { slot: 'tc', program: 'in_tc', ifindex: BL1, direction: 'ingress', ahead: 'late' } as const;
			using d = await start(w);
			d.commit();
			const order = () => queryTcx(BL1, 'ingress').programs.map((p) => p.progId);
			const [early, late] = ['in_tc', 'in_tc_late'].map((name) => d.program(name).id);
			d.attachTc({ ...o, slot: 'late', program: 'in_tc_late' });
			for (const attach of [() => d.attachTc(o), () => d.attachTcAsync(o)]) {
				await attach();
				assert.equal(order(), [early, late]);
				d.detach('tc', BL1);
			}
			await d.attachTcAsync({ ...o, ahead: 'not attached' });
			assert.equal(order(), [late, early]);
		});

	test('generic where it is asked for, and back', async () => {
		using d = await start(w);
		d.commit();
		const xdp = (mode: 'auto' | 'native' | 'generic') =>
			d.attachXdp({ slot: 'xdp', programs: ['in_xdp'], ifindex: BL1, mode }).mode;
		assert.is(xdp('generic'), 'generic');
		assert.is(xdp('auto'), 'generic', 'auto keeps what is attached');
		assert.match(sh('ip link show bl1'), /xdpgeneric/);
		assert.is(xdp('native'), 'native');
		assert.is(d.attachments().length, 1);
	});

	test('a frame larger than a page takes the program for frags', async () => {
		sh('ip link set bl0 mtu 9000; ip link set bl1 mtu 9000');
		using d = await start(w);
		d.commit();
		const got = d.attachXdp({ slot: 'xdp', programs: ['in_xdp', 'in_xdp_frags'], ifindex: BL1, mode: 'auto' });
		assert.equal(got, { mode: 'native', program: 'in_xdp_frags' });
	});

	test("somebody else's XDP program is not replaced", async () => {
		using d = await start(w);
		d.commit();
		using other = d.program('in_xdp').attachXdp(BL1);
		const e = await code(() => attach(d));
		assert.is(e.code, 'ATTACH_FAILED');
		assert.match(e.message, /another XDP program is attached: ip link show bl1/);
		assert.is(other.info().ifindex, BL1);
	});

	test('clsact: attached, kept over a restart, replaced in place, removed; another filter is left alone', async () => {
		const via = { slot: 'tc', program: 'in_tc', ifindex: BL1, direction: 'ingress', via: 'clsact' } as const;
		const first = await start(w);
		first.commit();
		const other = first.program('in_tc').attachTc(BL1, 'ingress', { via: 'clsact', priority: 1, handle: 7 });
		other.disown();
		assert.equal(first.attachTc(via), { via: 'clsact' });
		knock();
		assert.ok(counter(w, 1) > 0n);
		const [was] = first.attachments();
		assert.is(was.programId, first.program('in_tc').id);
		first.close();
		w.write('shared.h', SHARED_H.replace('n + (', '100 + n + ('));
		const d = await start(w);
		d.commit();
		const [now] = d.attachments();
		assert.is(now.kind, 'clsact');
		assert.is.not(now.programId, was.programId);
		assert.equal(d.attachTc(via), { via: 'clsact' });
		assert.is(sh('tc filter show dev bl1 ingress | grep -c "handle 0xbee "').trim(), '1');
		d.close();
		const r = detachAll(w.pinRoot, { runDir: w.run });
		assert.equal([r.filters, r.left], [1, []]);
		assert.not.match(sh('tc filter show dev bl1 ingress'), /handle 0xbee /);
		assert.match(sh('tc filter show dev bl1 ingress'), /handle 0x7 /);
	});

	test('a cgroup hook is attached once and replaced in place', async () => {
		const root = sh('awk \'$3=="cgroup2"{print $2;exit}\' /proc/mounts').trim();
		const cgroup = `${root}/bl-ldr-${process.pid}`;
		mkdirSync(cgroup);
		try {
			const first = await start(w);
			first.commit();
			const o = { slot: 'dial4', program: 'dial4', path: cgroup };
			first.attachCgroup(o);
			first.attachCgroup(o);
			assert.is(first.attachments().length, 1);
			first.close();
			w.write('two.bpf.c', `${sh(`cat ${w.path('two.bpf.c')}`)}\n`.replace('count(2, 1)', 'count(2, 3)'));
			using d = await start(w);
			d.commit();
			const [a] = d.attachments();
			assert.equal([a.kind, a.program, a.programId], ['cgroup', 'dial4', d.program('dial4').id]);
			sh(`sh -c 'echo $$ > ${cgroup}/cgroup.procs; bash -c "echo > /dev/tcp/127.0.0.1/9" 2>/dev/null || true'`);
			assert.ok(counter(w, 2) >= 3n);
			// A program opened from its pin attaches as well.
			d.detach('dial4', a.cgroupId!);
			d.attachCgroup(o);
		} finally {
			detachAll(w.pinRoot, { runDir: w.run });
			rmdirSync(cgroup);
		}
	});

	test('a program that the new version no longer has is detached', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		first.close();
		const objects = await loadableObjects(['one.bpf.o'], { sourceDir: w.path('.'), cacheDir: w.cache });
		using d = await load({ objects, pinRoot: w.pinRoot, runDir: w.run });
		d.commit();
		assert.equal(
			d.attachments().map((a) => a.slot),
			['xdp'],
		);
	});

	test('detachAll needs nothing but the pins, leaves nothing, and can be repeated', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		assert.is((await code(() => detachAll(w.pinRoot, { runDir: w.run }))).code, 'LOCKED');
		first.close();
		const r = detachAll(w.pinRoot, { runDir: w.run });
		assert.equal(r, { links: TC === 'tcx' ? 2 : 1, filters: TC === 'tcx' ? 0 : 1, maps: 2, programs: 5, left: [] });
		assert.not(existsSync(w.pinRoot));
		assert.not.match(sh('ip link show bl1'), /xdp/);
		assert.equal(detachAll(w.pinRoot, { runDir: w.run }), { links: 0, filters: 0, maps: 0, programs: 0, left: [] });
	});

	const spawnChild = (upgrade: boolean) =>
		spawn(process.execPath, [here], {
			env: {
				...process.env,
				BL_LDR_CHILD: JSON.stringify({ objects: w.path('.'), cache: w.cache, pinRoot: w.pinRoot, run: w.run, upgrade }),
			},
			stdio: ['ignore', 'pipe', 'inherit'],
		});
	/** The pipe stays open: a child whose stdout closes would die of that instead of the signal. */
	const line = (p: ReturnType<typeof spawnChild>, text: string) =>
		new Promise<void>((ok, fail) => {
			p.stdout?.on('data', (chunk) => String(chunk).includes(text) && ok());
			p.once('exit', () => fail(new Error(`the child ended before it said ${text}`)));
		});

	test('two processes cannot work on one pinRoot; a killed one gives it back', async () => {
		const p = spawnChild(false);
		await line(p, 'loaded');
		const e = await code(start(w));
		assert.is(e.code, 'LOCKED');
		assert.match(e.message, new RegExp(`another process works on it \\(process ${p.pid}\\)`));
		p.kill('SIGKILL');
		await once(p, 'exit');
		using _ = await start(w);
	});

	test('killed in the middle of an upgrade, the old or the new programs run, and the next start repairs', async () => {
		const first = await start(w);
		first.commit();
		attach(first);
		first.close();
		for (let round = 0; round < 6; round++) {
			const p = spawnChild(true);
			await line(p, 'loaded');
			await new Promise((r) => setTimeout(r, 20 + round * 7));
			p.kill('SIGKILL');
			await once(p, 'exit');
			for (const pin of linkPins(pinPaths(w.pinRoot))) {
				using link = Link.fromPin(pin.path);
				assert.is(link.info().ifindex, BL1);
				assert.ok(link.info().progId > 0);
			}
			assert.is(linkPins(pinPaths(w.pinRoot)).length, TC === 'tcx' ? 2 : 1);
			const d = await start(w, { consts: { step: 1 } });
			d.commit();
			assert.equal(attach(d), { mode: 'native', program: 'in_xdp', via: TC });
			assert.is(d.attachments().find((a) => a.slot === 'xdp')?.programId, d.program('in_xdp').id);
			assert.not(existsSync(`${w.pinRoot}/next`));
			d.close();
		}
	});

	test('bpffs: a second one over the first is refused, as is a directory elsewhere', async () => {
		const mounts = parseMounts(
			'30 25 0:26 / /sys/fs/bpf rw - bpf bpf rw\n31 30 0:27 / /sys/fs/bpf/a\\040b rw shared:1 - bpf bpf rw\n',
		);
		assert.equal(mounts, [
			{ at: '/sys/fs/bpf', type: 'bpf' },
			{ at: '/sys/fs/bpf/a b', type: 'bpf' },
		]);
		const script = `import('${new URL('../src/bpffs.js', import.meta.url).href}').then((m) => m.ensureBpffs('/sys/fs/bpf/x')).then(() => console.log('fine'), (e) => console.log(e.code, e.message))`;
		const inMounts = (before: string) =>
			sh(
				`unshare -m sh -c '${before} ${process.execPath} --input-type=module -e "$SCRIPT"'`.replace(
					'$SCRIPT',
					script.replaceAll("'", "'\\''"),
				),
			);
		assert.match(
			inMounts('mount -t bpf bpf /sys/fs/bpf;'),
			/^STACKED_BPFFS pin at \/sys\/fs\/bpf\/x: .*umount \/sys\/fs\/bpf/,
		);
		assert.is(inMounts('umount /sys/fs/bpf;').trim(), 'fine', 'one is mounted where there is none');
		const elsewhere = { objects: [], pinRoot: `${w.dir}/pins`, runDir: w.run };
		assert.is((await code(load(elsewhere))).code, 'NO_BPFFS');
		// Neither may be taken for a directory of pins: detaching removes all that is below it.
		mkdirSync(elsewhere.pinRoot);
		writeFileSync(`${elsewhere.pinRoot}/kept`, 'kept');
		assert.throws(
			() => detachAll(elsewhere.pinRoot, { runDir: w.run }),
			(e: Error) => e instanceof LoaderError && e.code === 'NO_BPFFS' && /nothing was removed/.test(e.message),
		);
		assert.ok(existsSync(`${elsewhere.pinRoot}/kept`));
		const mounted = `${w.dir}/mounted`;
		mkdirSync(mounted);
		sh(`mount -t bpf bpf ${mounted}`);
		try {
			mkdirSync(`${mounted}/of-others`);
			const at = { objects: [], pinRoot: mounted, runDir: w.run };
			assert.is((await code(load(at))).code, 'NO_BPFFS');
			assert.throws(
				() => detachAll(mounted, { runDir: w.run }),
				(e: Error) => e instanceof LoaderError && e.code === 'NO_BPFFS',
			);
			assert.ok(existsSync(`${mounted}/of-others`));
		} finally {
			sh(`umount ${mounted}`);
		}
	});

	test('the lock is of the path', () => {
		const a = lockPinRoot(w.pinRoot, w.run);
		const b = lockPinRoot(`${w.pinRoot}-other`, w.run);
		assert.throws(
			() => lockPinRoot(`${w.pinRoot}/../${w.pinRoot.split('/').at(-1)}`, w.run),
			/another process works on it/,
		);
		a.release();
		lockPinRoot(w.pinRoot, w.run).release();
		b.release();
	});

	test.run();
}
