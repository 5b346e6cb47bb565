import { mkdirSync, readdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { compile, parseDepfile } from '../src/compile.js';
import { LoaderError, loadableObjects, mapSpecs, readBtf, readElf, readObjects, writeObjects } from '../src/index.js';
import { sources, workshop } from './support.js';

async function failure(p: Promise<unknown>): Promise<LoaderError> {
	try {
		await p;
	} catch (e) {
		if (e instanceof LoaderError) return e;
		throw e;
	}
	throw new Error('it did not fail');
}

test('a depfile with continued lines, spaces and dollars gives its prerequisites', () => {
	assert.equal(parseDepfile('a.o: a.c \\\n  b\\ c.h /usr/include/d$$.h\n'), ['a.c', 'b c.h', '/usr/include/d$.h']);
});

test('an object comes from the cache until a header that it includes changes, whatever its times say', async () => {
	const w = workshop('compile');
	try {
		sources(w);
		const o = { cacheDir: w.cache };
		const first = await compile(w.path('one.bpf.c'), o);
		assert.is(first.cached, false);
		assert.is(first.name, 'one.bpf.o');
		utimesSync(w.path('shared.h'), new Date(), new Date());
		const again = await compile(w.path('one.bpf.c'), o);
		assert.is(again.cached, true);
		assert.equal(again.object, first.object);
		writeFileSync(w.path('shared.h'), `${readFileSync(w.path('shared.h'), 'utf8')}#define MORE 1\n`);
		assert.is((await compile(w.path('one.bpf.c'), o)).cached, false);
		assert.is((await compile(w.path('one.bpf.c'), { ...o, defines: { ENTRIES: 32 } })).cached, false);
		assert.is((await compile(w.path('one.bpf.c'), { ...o, defines: { ENTRIES: 32 } })).cached, true);
		assert.equal(readdirSync(w.cache).length, 3, 'nothing else stays in the cache');
	} finally {
		w.done();
	}
});

test('a cache that cannot be written is one sentence that names it', async () => {
	const w = workshop('cache');
	try {
		sources(w);
		const file = w.write('file', '');
		const e = await failure(compile(w.path('one.bpf.c'), { cacheDir: join(file, 'cache') }));
		assert.is(e.code, 'COMPILE_FAILED');
		assert.is(
			e.message,
			`compile one.bpf.c: ${join(file, 'cache')} cannot be written (ENOTDIR): expected a directory for compiled objects`,
		);
	} finally {
		w.done();
	}
});

test('the same sources in another directory are the same object', async () => {
	const a = workshop('compile-a');
	const b = workshop('compile-b');
	try {
		sources(a);
		sources(b);
		const [x, y] = [await compile(a.path('one.bpf.c')), await compile(b.path('one.bpf.c'))];
		assert.is(x.digest, y.digest);
		assert.ok(Buffer.from(x.object).equals(y.object), 'byte for byte');
	} finally {
		a.done();
		b.done();
	}
});

test('warnings are handed on, from the cache too', async () => {
	const w = workshop('warn');
	try {
		sources(w);
		const src = w.write(
			'warn.bpf.c',
			'#include "shared.h"\nSEC("xdp") int x(struct xdp_md *ctx) { int unused; return 2; }\n',
		);
		for (const cached of [false, true]) {
			const r = await compile(src, { cacheDir: w.cache });
			assert.is(r.cached, cached);
			assert.match(r.warnings, /unused variable/);
		}
	} finally {
		w.done();
	}
});

test('an error in the source is one sentence with file, line and what clang says', async () => {
	const w = workshop('error');
	try {
		const e = await failure(compile(w.write('bad.bpf.c', 'int a;\nint b = c;\nint d = e;\n'), { cacheDir: w.cache }));
		assert.is(e.code, 'COMPILE_FAILED');
		assert.is(e.message, "compile bad.bpf.c: bad.bpf.c:2: use of undeclared identifier 'c'");
		assert.match(e.detail, /undeclared identifier 'e'/);
		const missing = await failure(compile(w.write('inc.bpf.c', '#include "gone.h"\n')));
		assert.is(missing.message, "compile inc.bpf.c: inc.bpf.c:1: 'gone.h' file not found");
		assert.match((await failure(compile('/nowhere/x.bpf.c'))).message, /no such file/);
	} finally {
		w.done();
	}
});

test('precompiled objects need no clang; damaged or absent ones are refused', async () => {
	const w = workshop('objects');
	try {
		sources(w);
		const out = join(w.dir, 'objects');
		await writeObjects(out, [await compile(w.path('one.bpf.c'))]);
		const names = ['one.bpf.o'];
		const [o] = await loadableObjects(names, { objectDir: out, clang: '/nonexistent/clang' });
		assert.equal(
			mapSpecs(o.object).map((s) => s.name),
			['counters', 'table'],
		);
		assert.is((await failure(readObjects(out, ['two.bpf.o']))).code, 'NO_OBJECT');
		writeFileSync(join(out, 'one.bpf.o'), 'damaged');
		const damaged = await failure(loadableObjects(names, { objectDir: out, sourceDir: join(w.dir, 'src') }));
		assert.is(damaged.code, 'BAD_OBJECT');
		const empty = join(w.dir, 'empty');
		mkdirSync(empty);
		const none = await failure(
			loadableObjects(names, { objectDir: empty, sourceDir: join(w.dir, 'src'), clang: '/nonexistent/clang' }),
		);
		assert.is(none.code, 'NO_OBJECT');
		assert.match(none.message, /no clang and no precompiled object.*install the Debian package clang/);
	} finally {
		w.done();
	}
});

test('an object is what its ELF sections and its BTF say', async () => {
	const w = workshop('btf');
	try {
		sources(w);
		const { object } = await compile(w.path('one.bpf.c'), { defines: { ENTRIES: 7 } });
		assert.ok(readElf(object).some((s) => s.name === 'xdp.frags'));
		assert.ok(readBtf(object).some((t) => t.kind === 'int' && t.name === 'unsigned long long' && t.size === 8));
		assert.equal(mapSpecs(object), [
			{ name: 'counters', type: 2, keySize: 4, valueSize: 8, maxEntries: 4, flags: 0 },
			{ name: 'table', type: 1, keySize: 4, valueSize: 4, maxEntries: 7, flags: 0 },
		]);
		assert.throws(() => readElf(new Uint8Array(100)), /no ELF file/);
		assert.throws(() => readElf(object.subarray(0, object.length - 10)), /truncated/);
	} finally {
		w.done();
	}
});

test.run();
