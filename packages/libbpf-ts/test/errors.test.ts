import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { tellingLine } from '../src/errors.js';
import { BpfError, ensureBpffs } from '../src/index.js';
import { cleanup, sh, when, why } from './helpers.js';

test('an error is one sentence with code, errno, op and cause', () => {
	const cause = new Error('deeper');
	const e = new BpfError('attach xdp to eth0', 16, 'another XDP program is attached: ip link show eth0', cause);
	assert.match(e.message, /^attach xdp to eth0: device or resource busy \(another XDP program is attached/);
	assert.is(e.code, 'EBUSY');
	assert.is(e.errno, 16);
	assert.is(e.op, 'attach xdp to eth0');
	assert.is(e.cause, cause);
	assert.is(new BpfError('x', 524).code, 'ENOTSUPP');
	assert.is(new BpfError('x', 67).code, 'ENOLINK');
	assert.is(new BpfError('x', 3999).code, 'E3999');
});

const TELLING: [what: string, log: string, line: string][] = [
	[
		'packet access',
		'0: R1=ctx() R10=fp0\n; return *(char *)ctx->data;\n0: (61) r1 = *(u32 *)(r1 +0)\n1: (71) r0 = *(u8 *)(r1 +0)\ninvalid access to packet, off=0 size=1, R1(id=0,off=0,r=0)\nR1 offset is outside of the packet\nprocessed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0\n',
		'invalid access to packet, off=0 size=1, R1(id=0,off=0,r=0); R1 offset is outside of the packet',
	],
	[
		'null pointer',
		"7: (85) call bpf_map_lookup_elem#1\n8: (79) r1 = *(u64 *)(r0 +0)\nR0 invalid mem access 'map_value_or_null'\nprocessed 9 insns\n",
		"R0 invalid mem access 'map_value_or_null'",
	],
	[
		'too large',
		'BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)\n',
		'BPF program is too large. Processed 1000001 insn',
	],
	['nothing', '', ''],
];
for (const [what, log, line] of TELLING)
	test(`the telling line of a verifier log: ${what}`, () => {
		assert.is(tellingLine(log), line);
	});

when(test, why('root'), 'bpffs is mounted once, recognised afterwards, and a stack of two is refused', () => {
	const dir = mkdtempSync(join(tmpdir(), 'lbts-bpffs-'));
	const mount = join(dir, 'fs');
	mkdirSync(mount);
	let mounts = 0;
	cleanup(() => {
		for (; mounts > 0; mounts--) sh('umount', mount);
		execFileSync('rm', ['-r', dir]);
	});
	ensureBpffs(mount);
	mounts++;
	ensureBpffs(mount);
	ensureBpffs(join(mount, 'sub/dir'));
	sh('mount', '-t', 'bpf', 'bpf', mount);
	mounts++;
	assert.throws(() => ensureBpffs(join(mount, 'sub')), /2 bpffs are stacked on .*hide each other's pins: umount/);
});

test('a machine without libbpf gets one sentence with the remedy', () => {
	const script = `
		import koffi from 'koffi';
		const load = koffi.load;
		koffi.load = (n, o) => { if (n.startsWith('libbpf')) throw new Error('cannot open shared object'); return o ? load(n, o) : load(n); };
		const { possibleCpus } = await import(${JSON.stringify(new URL('../src/index.js', import.meta.url).href)});
		try { possibleCpus(); } catch (e) { console.log(e.message); }`;
	const cwd = new URL('.', import.meta.url).pathname;
	const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8', cwd });
	assert.is(
		out.trim(),
		'load libbpf.so.1: no such file or directory (libbpf 1.x is not installed: apt-get install libbpf1)',
	);
});

test.run();
