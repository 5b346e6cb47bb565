import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openNetns } from '../src/index.js';
import { namespace, when, why } from './helpers.js';

const lack = why('root', 'ip');

when(test, lack, 'datagrams in batches, with times, errors by destination, and another’s source address', async () => {
	const net = await openNetns(namespace('dg'));
	try {
		await net.exec('ip', ['link', 'set', 'lo', 'up']);
		const r = await net.run({ module: new URL('./fixtures/datagrams.js', import.meta.url) });
		assert.equal(r, {
			ports: true,
			refused: 0,
			count: 600,
			ordered: true,
			from: true,
			times: true,
			empty: 0,
			next: 0,
			errors: [{ to: 0x7f000002, errno: 111, icmp: true }],
			noRoute: [[0, 101]],
			rest: ['next', 'last'],
			raw: 0,
			spoofed: { from: 0x7f010203, port: 77, text: 'spoofed' },
		});
	} finally {
		await net.close();
	}
});

test.run();
