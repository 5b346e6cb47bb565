/** What an operator is told of a key, or of an etcd that does not speak as it is spoken to: one short sentence. */
import { createServer, type Socket } from 'node:net';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { sentence } from '../../src/errors.js';
import { createEtcd } from '../../src/mesh/sources/etcd-client.js';
import { readDocument } from '../../src/mesh/sources/etcd-map.js';

test('a value that is no mapping, or has another name, is named and cut', () => {
	const problem = (value: string) => {
		const d = readDocument('/p', { key: '/p/services/web', value, create: 1, mod: 1 });
		return 'unknown' in d ? undefined : d.problem;
	};
	const long = 'x'.repeat(1_000_000);
	assert.is(problem(''), 'is empty: expected a mapping');
	assert.is(problem('[1, 2]'), 'is a list: expected a mapping');
	assert.is(problem(long), `is "${long.slice(0, 56)}…: expected a mapping`);
	assert.is(problem(JSON.stringify({ name: long })), `name is "${long.slice(0, 56)}…: expected web, as its key says`);
});

test('a server without TLS is told of in one way, however it closes', async () => {
	const said: string[] = [];
	for (const close of [(s: Socket) => s.end(), (s: Socket) => s.resetAndDestroy()]) {
		const server = createServer((s) => {
			s.on('error', () => undefined);
			s.once('data', () => close(s));
		});
		await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
		const { port } = server.address() as { port: number };
		const etcd = createEtcd({ endpoints: [`https://127.0.0.1:${port}`] });
		said.push(
			await etcd.range({ key: '/p/' }).then(
				() => 'an answer',
				(e: unknown) => sentence(e).replace(String(port), 'PORT'),
			),
		);
		await etcd.close?.();
		await new Promise((resolve) => server.close(resolve));
	}
	const expected = 'etcd https://127.0.0.1:PORT: it closed the connection: if it speaks no TLS, write http://';
	assert.equal(said, [expected, expected]);
});

test.run();
