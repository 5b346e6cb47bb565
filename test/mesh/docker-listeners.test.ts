/** Where a task listens, from /proc/net, and when that is not where packets are delivered. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { onlyAt, parseListeners, readListeners } from '../../src/mesh/sources/docker-listeners.js';

const HEAD = '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n';
const TCP = `${HEAD}   0: 0800000A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 020012AC:0050 01020304:C000 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
`;
const TCP6 = `${HEAD}   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000800000A:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
`;
const UDP = `${HEAD}  10: 0800000A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 6 2 0 0
`;
const show = (l: ReturnType<typeof parseListeners>) => l.map((x) => `${x.protocol} ${x.address} ${x.port}`);

test('listeners of both families; an open connection is none', () => {
	assert.equal(show(parseListeners(TCP, 'tcp')), ['tcp 10.0.0.8 80', 'tcp 0.0.0.0 8080']);
	assert.equal(show(parseListeners(TCP6, 'tcp')), ['tcp :: 22', 'tcp 10.0.0.8 81']);
	assert.equal(show(parseListeners(UDP, 'udp')), ['udp 10.0.0.8 53']);
	assert.equal(parseListeners('', 'tcp'), []);
});

test('ports that are listened on at the ingress address and where the leg does not lead', () => {
	const all = [...parseListeners(TCP, 'tcp'), ...parseListeners(TCP6, 'tcp'), ...parseListeners(UDP, 'udp')];
	assert.equal(onlyAt(all, '10.0.0.8', '172.18.0.2'), ['tcp/80', 'tcp/81', 'udp/53']);
	const everywhere = { protocol: 'tcp', address: '::', port: 80 } as const;
	const leg = { protocol: 'udp', address: '172.18.0.2', port: 53 } as const;
	assert.equal(onlyAt([...all, everywhere, leg], '10.0.0.8', '172.18.0.2'), ['tcp/81']);
	assert.equal(onlyAt(all, '10.0.0.9', undefined), []);
});

test('a process is believed only where its cgroup names the container', () => {
	const proc = mkdtempSync(join(tmpdir(), 'bl-proc-'));
	try {
		mkdirSync(join(proc, '7/net'), { recursive: true });
		writeFileSync(join(proc, '7/cgroup'), '0::/system.slice/docker-abc123.scope\n');
		for (const [name, text] of Object.entries({ tcp: TCP, tcp6: TCP6, udp: UDP, udp6: HEAD }))
			writeFileSync(join(proc, '7/net', name), text);
		assert.is(readListeners('abc123', 7, proc)?.length, 5);
		assert.is(readListeners('fff', 7, proc), undefined);
		assert.is(readListeners('abc123', 8, proc), undefined);
		assert.is(readListeners('abc123', 0, proc), undefined);
	} finally {
		rmSync(proc, { recursive: true });
	}
});

test.run();
