import { existsSync, rmSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { BpfError, maps, open, possibleCpus, VerifierError } from '../src/index.js';
import { type All, compile, pinDir, when, why } from './helpers.js';

const lack = why('root', 'clang');
let elf = '';
test.before(() => {
	if (!lack) elf = compile('all.bpf.c');
});
const thrown = (f: () => unknown): Error => {
	try {
		f();
	} catch (e) {
		return e as Error;
	}
	throw new Error('nothing was thrown');
};

when(test, lack, 'constants, sizes, disabled programs and maps are set before load', async () => {
	const o = open(elf)
		.setConst('cfg', { sample: 0, port: 443, limit: 5n })
		.setConst('action', 1)
		.setMaxEntries('flows', 2000)
		.disableProgram('connect_main')
		.setAutocreate('sockets', false);
	using b = await o.load();
	assert.equal(b.vars.cfg.get(), { sample: 0, port: 443, pad: 0, limit: 5n });
	assert.is(b.program('xdp_main').testRun({ data: new Uint8Array(64) }).retval, 1);
	assert.is(b.map('flows').maxEntries, 2000);
	assert.match(thrown(() => b.programs.connect_main).message, /has no program connect_main \(it has xdp_main/);
	assert.match(thrown(() => b.map('sockets')).message, /has no map sockets/);
	assert.match(thrown(() => o.setConst('action', 2)).message, /loaded or closed already/);
});

when(test, lack, 'globals are read and written while programs run', () => {
	using b = open(elf).loadSync();
	assert.is(b.vars.counter.get(), 0n);
	b.program('xdp_main').testRun({ data: new Uint8Array(64), repeat: 5 });
	assert.is(b.vars.counter.get(), 5n);
	b.vars.counter.set(100n);
	b.program('xdp_main').testRun({ data: new Uint8Array(64) });
	assert.is(b.vars.counter.get(), 101n);
	assert.is(b.vars.seed.get(), 7);
	assert.match(thrown(() => b.vars.action.set(1)).message, /use setConst before load/);
});

when(test, lack, 'names that do not exist are answered with those that do', () => {
	using o = open(elf);
	assert.match(thrown(() => o.setConst('acton', 1)).message, /no variable acton \(it has .*action/);
	assert.match(thrown(() => o.setMaxEntries('flow', 1)).message, /no map flow \(it has .*flows/);
	assert.match(thrown(() => o.disableProgram('x')).message, /no program x \(it has xdp_main/);
});

when(test, lack, 'a pinned map is created once, then reused with its entries', () => {
	const path = `${pinDir()}/recent`;
	{
		using b = open(elf).setPinPath('recent', path).loadSync();
		b.map<number, bigint>('recent').set(1, 11n);
	}
	using b = open(elf).setPinPath('recent', path).loadSync();
	assert.is(b.map<number, bigint>('recent').get(1), 11n);
	using pinned = maps.fromPin<number, bigint>(path);
	assert.is(pinned.get(1), 11n, 'codecs of a pinned map come from the kernel');
	assert.is(pinned.kind, 'lru_hash');
	const e = thrown(() => open(elf).setPinPath('recent', path).setMaxEntries('recent', 5).loadSync());
	assert.instance(e, BpfError);
	assert.match(e.message, /the map pinned at .* is not like recent: maxEntries is 1024 there, 5 here/);
	rmSync(path);
});

when(test, lack, 'a map of one object serves in another', () => {
	using a = open(elf).loadSync();
	using b = open(elf).reuseMap('recent', a.maps.recent).loadSync();
	a.map<number, bigint>('recent').set(9, 9n);
	assert.is(b.map<number, bigint>('recent').get(9), 9n);
	assert.is(a.maps.recent.id, b.maps.recent.id);
});

when(test, lack, 'a pinned map of maps is reused with its inner maps, and makes new ones', () => {
	const path = `${pinDir()}/rings`;
	{
		using b = open(elf).setPinPath('rings', path).loadSync();
		const rings = b.mapOfMaps<number, number, number>('rings');
		using inner = rings.createInner(500);
		inner.set(499, 5);
		rings.set(1, inner);
	}
	using b = open(elf).setPinPath('rings', path).loadSync();
	const rings = b.mapOfMaps<number, number, number>('rings');
	using kept = rings.openInner(1)!;
	assert.is(kept.get(499), 5);
	using more = rings.createInner(7);
	rings.set(2, more);
	assert.is(rings.getId(2), more.id);
	rings.unpin(path);
});

when(test, lack, 'keys by struct survive the pin too', () => {
	const path = `${pinDir()}/flows`;
	using b = open(elf).setPinPath('flows', path).loadSync();
	const key = { saddr: 1, port: 2, proto: 3, pad: 0 };
	b.map<All['key'], All['value']>('flows').set(key, { hits: 4n });
	using m = maps.fromPin<All['key'], All['value']>(path);
	assert.equal(
		[...m].map(([k, v]) => [k, v.hits]),
		[[key, 4n]],
	);
	m.unpin(path);
	assert.not(existsSync(path));
});

when(test, lack, 'a refused program throws the telling line and the whole log', async () => {
	const bad = compile(`#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int fine(struct xdp_md *ctx) { return 2; }
SEC("xdp") int reads_outside(struct xdp_md *ctx) { return *(volatile char *)(long)ctx->data; }
char L[] SEC("license") = "GPL";`);
	for (const verifierLog of ['on-failure', 'always'] as const) {
		const o = open(bad, { verifierLog });
		const e = await o.load().then(
			() => undefined,
			(e) => e,
		);
		assert.instance(e, VerifierError);
		assert.is(e.program, 'reads_outside');
		assert.is(e.code, 'EACCES');
		assert.match(e.reason, /invalid access to packet/);
		assert.match(e.message, /load program reads_outside: permission denied \(verifier: .*invalid access to packet/);
		assert.match(e.log, /R1=ctx/);
		assert.ok(e.tail(3).split('\n').length <= 3);
	}
});

when(test, lack, 'always-on logs are kept by program', () => {
	using b = open(elf, { verifierLog: 'always' }).loadSync();
	assert.match(b.logs.get('xdp_main') ?? '', /processed \d+ insns/);
});

when(test, lack, 'what is no BPF object says so', () => {
	assert.match(thrown(() => open('/nowhere.o')).message, /open BPF object \/nowhere\.o: no such file/);
	assert.match(thrown(() => open(new Uint8Array(100))).message, /compiled with clang/);
	assert.match(thrown(() => open('/nowhere.o')).message, /no such file/);
});

when(test, lack, 'the shape of an object can be written as TypeScript', () => {
	using o = open(elf);
	const s = o.shape('All');
	assert.match(s, /export interface All \{/);
	assert.match(
		s,
		/rings: \{ kind: 'array_of_maps'; key: number; value: number; innerKey: number; innerValue: number \}/,
	);
	assert.match(s, /programs: 'xdp_main' \|/);
	assert.match(s, /cfg: \{ sample: number; port: number; pad: number; limit: bigint \}/);
});

when(test, lack, 'a closed object refuses use instead of touching another fd', () => {
	const b = open(elf).loadSync();
	const m = b.map<number, bigint>('recent');
	const p = b.program('xdp_main');
	b[Symbol.dispose]();
	b[Symbol.dispose]();
	assert.match(thrown(() => m.get(1)).message, /map recent is closed/);
	assert.match(thrown(() => p.testRun({ data: new Uint8Array(64) })).message, /program xdp_main is closed/);
	assert.ok(possibleCpus() >= 1);
});

test.run();
