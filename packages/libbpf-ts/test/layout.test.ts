import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import * as layouts from '../src/layout.js';
import { dir, when, why } from './helpers.js';

/** Our names that stand for padding, unions, bit fields, or fields newer than the installed header. */
const NOT_IN_C = new Set([
	'pad',
	'u',
	'gpl',
	'target',
	'removed',
	'relative',
	'expected_revision',
	'link_ids',
	'link_attach_flags',
	'revision',
	'id',
]);
/** Structs that grow with the kernel, or whose size is ours to choose: only offsets are compared. */
const OPEN_ENDED = /^union bpf_attr|struct bpf_link_info|struct bpf_.*_info/;

when(test, why('cc'), 'every declared struct has the offsets the C compiler gives', () => {
	const tables = Object.values(layouts).filter((l): l is layouts.Layout => typeof l === 'object' && 'at' in l);
	assert.ok(tables.length >= 12);
	const expected = new Map<string, number>();
	const lines: string[] = [];
	for (const t of tables) {
		const [c, member] = t.c.split('.');
		for (const [field, at] of Object.entries(t.at)) {
			if (NOT_IN_C.has(field) && !(field === 'id' && c.startsWith('struct'))) continue;
			const path = member ? `${member}.${field}` : field;
			expected.set(`${t.c} ${field}`, at);
			const base = member ? ` - offsetof(${c}, ${member})` : '';
			lines.push(`printf("%s %s=%zu\\n", "${t.c}", "${field}", offsetof(${c}, ${path})${base});`);
		}
		if (!OPEN_ENDED.test(t.c)) {
			expected.set(`${t.c} size`, t.size);
			lines.push(`printf("${t.c} size=%zu\\n", sizeof(${c}));`);
		}
	}
	const source = join(dir, 'offsets.c');
	writeFileSync(
		source,
		`#include <stddef.h>\n#include <stdio.h>\n#include <stdbool.h>\n#include <linux/bpf.h>\n#include <bpf/bpf.h>\n#include <bpf/libbpf.h>\nint main(void) {\n${lines.join('\n')}\nreturn 0; }\n`,
	);
	execFileSync('cc', [source, '-o', join(dir, 'offsets')]);
	const got = execFileSync(join(dir, 'offsets'), { encoding: 'utf8' }).trim().split('\n');
	assert.is(got.length, expected.size);
	for (const line of got) {
		const [name, value] = line.split('=');
		// libbpf's option structs may grow: a shorter `sz` is what they are made for.
		if (name.endsWith(' size')) assert.ok(Number(value) >= expected.get(name)!, line);
		else assert.is(expected.get(name), Number(value), name);
	}
});

test('a struct keeps what was set, signed and unsigned', () => {
	const s = new layouts.Struct(layouts.TEST_RUN_OPTS, { repeat: -1, flags: 0xffffffff, data_in: 1n << 63n });
	assert.is(s.num('sz'), 80);
	assert.is(s.num('repeat'), -1);
	assert.is(s.num('flags'), 0xffffffff);
	assert.is(s.big('data_in'), 1n << 63n);
});

test.run();
