import { mkdirSync, rmdirSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type BpfError, type BpfObject, Link, type Netns, open, openNetns, probe, queryCgroup } from '../src/index.js';
import { cgroup2, cleanup, compile, namespace, pinDir, sh, when, why } from './helpers.js';

// Every device lives in a namespace of this test's own: v0 ── v1.
const lack = why('root', 'clang', 'ip');
let b: BpfObject;
let ns = '';
let net: Netns;
test.before(async () => {
	if (lack) return;
	b = open(compile('all.bpf.c')).loadSync();
	ns = namespace('link');
	net = await openNetns(ns);
});
test.after(async () => {
	await net?.close();
	b?.[Symbol.dispose]();
});
const failure = async (f: () => unknown): Promise<BpfError> => {
	try {
		await f();
	} catch (e) {
		return e as BpfError;
	}
	throw new Error('nothing was thrown');
};
const shows = (dev: string) => sh('ip', '-n', ns, '-d', 'link', 'show', dev);

when(test, lack, 'xdp: native on veth, updated in place, and only if the expected program is there', async () => {
	const [main, grow] = [b.program('xdp_main'), b.program('xdp_grow')];
	using l = await net.attachXdp(main, 'v0');
	assert.is(l.kind, 'xdp');
	assert.is(l.mode, 'native');
	assert.equal(l.info(), {
		id: l.info().id,
		kind: 'xdp',
		progId: main.id,
		ifindex: await net.ifindex('v0'),
		attachType: 37,
	});
	assert.match(shows('v0'), /prog\/xdp id/);
	l.update(grow);
	assert.is(l.info().progId, grow.id);
	const stale = await failure(() => l.update(main, { expect: main }));
	assert.is(stale.code, 'EPERM');
	assert.match(stale.message, /update xdp link to program xdp_main: .*program xdp_main is not the one attached/);
	l.update(main, { expect: grow });
	assert.is(l.info().progId, main.id);
	const busy = await failure(() => net.attachXdp(grow, 'v0', { mode: 'native' }));
	assert.is(busy.op, 'attach xdp to v0');
	assert.match(busy.message, /another XDP program is attached: ip link show v0/);
});

when(test, lack, 'xdp: a disposed link detaches, generic mode is possible, wrong types are refused', async () => {
	assert.not.match(shows('v0'), /prog\/xdp/);
	{
		using l = await net.attachXdp(b.program('xdp_main'), 'v0', { mode: 'generic' });
		assert.is(l.mode, 'generic');
		assert.match(shows('v0'), /xdpgeneric/);
		assert.is((await failure(() => l.update(b.program('tc_main')))).code, 'EINVAL');
	}
	const none = await failure(() => net.attachXdp(b.program('xdp_main'), 'nosuch0'));
	assert.is(none.code, 'ENODEV');
	assert.match(none.message, /find interface nosuch0: no such device \(no interface of that name/);
});

when(test, lack, 'xdp: auto falls back to generic where the driver has no native XDP, and says why', async () => {
	using l = await net.attachXdp(b.program('xdp_main'), 'lo');
	assert.is(l.mode, 'generic');
	assert.is(l.fallback?.code, 'EOPNOTSUPP');
});

when(test, lack, 'a pinned link outlives its fd and is found again', async () => {
	const path = `${pinDir()}/link`;
	const main = b.program('xdp_main');
	{
		using l = await net.attachXdp(main, 'v0');
		l.pin(path);
	}
	assert.match(shows('v0'), /prog\/xdp/);
	using again = Link.fromPin(path);
	assert.is(again.kind, 'xdp');
	assert.is(again.info().progId, main.id);
	using byId = Link.fromId(again.info().id);
	assert.is(byId.info().ifindex, again.info().ifindex);
	again.update(b.program('xdp_grow'), { expect: main });
	again.unpin();
	assert.throws(() => again.unpin(), /not pinned/);
});

when(test, lack, 'a link whose interface is gone is severed: ifindex 0, and updates name the remedy', async () => {
	sh('ip', '-n', ns, 'link', 'add', 'gone0', 'type', 'veth', 'peer', 'name', 'gone1');
	using l = await net.attachXdp(b.program('xdp_main'), 'gone0');
	sh('ip', '-n', ns, 'link', 'del', 'gone0');
	assert.is(l.info().ifindex, 0);
	const e = await failure(() => l.update(b.program('xdp_grow')));
	assert.is(e.code, 'ENOLINK');
	assert.match(e.message, /unpin this link and attach anew/);
});

when(test, lack || (probe('tcx') ? '' : 'no tcx'), 'tcx: several on one hook, in the order asked for', async () => {
	const [main, other] = [b.program('tc_main'), b.program('tc_other')];
	using first = await net.attachTc(main, 'v0', 'ingress');
	assert.is(first.kind, 'tcx');
	assert.is(first.info().attachType, 46);
	using before = await net.attachTc(other, 'v0', 'ingress', { before: first });
	const hook = await net.queryTcx('v0', 'ingress');
	assert.equal(hook.programs, [
		{ progId: other.id, linkId: before.info().id },
		{ progId: main.id, linkId: first.info().id },
	]);
	const moved = await failure(() =>
		net.attachTc(b.program('tc_third'), 'v0', 'ingress', { expectedRevision: hook.revision - 1n }),
	);
	assert.is(moved.code, 'ESTALE');
	using third = await net.attachTc(b.program('tc_third'), 'v0', 'ingress', { expectedRevision: hook.revision });
	assert.is(third.info().progId, b.program('tc_third').id);
	using egress = await net.attachTc(main, 'v0', 'egress', { via: 'tcx' });
	assert.is(egress.info().attachType, 47);
	before.detach();
	using ahead = await net.attachTc(other, 'v0', 'ingress', { first: true });
	assert.equal(
		(await net.queryTcx('v0', 'ingress')).programs.map((p) => p.linkId),
		[ahead, first, third].map((l) => l.info().id),
	);
	const twice = await failure(() => net.attachTc(main, 'v0', 'ingress'));
	assert.is(twice.code, 'EEXIST');
	egress.update(other, { expect: main });
	assert.is(egress.info().progId, other.id);
	egress.detach();
	assert.is(egress.info().ifindex, 0);
});

when(test, lack, 'tc: auto takes tcx where the kernel has it and clsact where not', async () => {
	using l = await net.attachTc(b.program('tc_main'), 'v0', 'egress');
	assert.is(l.kind, probe('tcx') ? 'tcx' : 'clsact');
	assert.is(l.info().progId, b.program('tc_main').id);
	assert.ok((l.info().ifindex ?? 0) > 0);
});

when(test, lack, 'clsact: the same verbs without a kernel link, also from another namespace', async () => {
	const [main, other] = [b.program('tc_main'), b.program('tc_other')];
	const l = await net.attachTc(main, 'v1', 'ingress', { via: 'clsact', priority: 7, handle: 3 });
	assert.is(l.kind, 'clsact');
	assert.equal(l.clsactFilter, { ifindex: await net.ifindex('v1'), direction: 'ingress', priority: 7, handle: 3 });
	assert.is(l.info().progId, main.id);
	l.update(other, { expect: main });
	assert.is(l.info().progId, other.id);
	assert.is((await failure(() => l.update(main, { expect: main }))).code, 'EPERM');
	const taken = await failure(() => net.attachTc(main, 'v1', 'ingress', { via: 'clsact', priority: 7, handle: 3 }));
	assert.is(taken.code, 'EEXIST');
	assert.throws(() => l.pin('/sys/fs/bpf/x'), /cannot be pinned/);
	using egress = await net.attachTc(main, 'v1', 'egress', { via: 'clsact' });
	assert.ok(egress.info().progId);
	l[Symbol.dispose]();
	const filters = await net.exec('bpftool', ['net', 'show', 'dev', 'v1']);
	assert.not.match(filters.stdout, /clsact\/ingress/);
});

when(
	test,
	lack || (cgroup2() ? '' : 'no cgroup2'),
	'cgroup: attached to a directory, updated, gone with the link',
	async () => {
		const dir = `${cgroup2()}/lbts-${process.pid}`;
		mkdirSync(dir);
		cleanup(() => rmdirSync(dir));
		const p = b.program('connect_main');
		{
			using l = p.attachCgroup(dir);
			assert.is(l.kind, 'cgroup');
			assert.is(l.info().progId, p.id);
			assert.is(l.info().attachType, 10);
			assert.ok((l.info().cgroupId ?? 0n) > 0n);
			l.update(p, { expect: p });
			using second = p.attachCgroup(dir);
			assert.not.equal(second.info().id, l.info().id);
			assert.equal(
				queryCgroup(dir, 10).programs.map((x) => x.progId),
				[p.id, p.id],
			);
		}
		assert.is((await failure(() => p.attachCgroup('/proc'))).code, 'EBADF');
		assert.match((await failure(() => p.attachCgroup('/nowhere'))).message, /is it a cgroup2 directory/);
	},
);

test.run();
