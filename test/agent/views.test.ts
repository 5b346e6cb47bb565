import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { config, verdictEvent } from '../../src/agent/views.js';
import { parseConfig } from '../../src/config.js';
import * as s from '../../src/http/schemas.js';
import { type Event, PROGRAMS, VERDICTS } from '../../src/loader/layout.gen.js';
import type { Entries } from '../../src/mesh/entries.js';

test('the configuration as HTTP shows it is as its document says, key by key, and durations are text', () => {
	for (const text of ['', 'datapath: { secretFile: secret, keyInterval: 90m, staleAfter: 5s }']) {
		const view = JSON.parse(
			JSON.stringify(config(parseConfig('/etc/beeline/beeline.yaml', text, 'host1'), undefined, false)),
		);
		assert.equal(s.Config.parse(view), view);
	}
	const { datapath } = config(
		parseConfig('/etc/b.yaml', 'datapath: { secretFile: s, keyInterval: 90m }'),
		undefined,
		false,
	);
	assert.is(datapath.keyInterval, '1h30m');
	assert.is(datapath.secretFile, '/etc/s');
});

test('an event of a packet that the program did not read has no addresses, and no made-up ones', () => {
	const entries = { services: new Map() } as unknown as Entries;
	const event = (more: Partial<Event>): Event => ({
		time_ns: 0n,
		src: '::',
		dst: '::',
		sport: 0,
		dport: 0,
		proto: 0,
		program: PROGRAMS.indexOf('uplink_tc'),
		verdict: VERDICTS.indexOf('deliver_endpoint'),
		tcp_flags: 0,
		ifindex: 2,
		ref: 0,
		len: 74,
		...more,
	});
	const names = new Map([[2, 'eth0']]);
	const { at: _, ...marked } = verdictEvent(event({}), entries, names, 0n);
	assert.equal(marked, {
		type: 'verdict',
		program: 'uplink_tc',
		verdict: 'deliver_endpoint',
		protocol: null,
		source: null,
		destination: null,
		interface: 'eth0',
		bytes: 74,
		service: null,
		backend: null,
	});
	const { protocol, source, destination } = verdictEvent(
		event({ src: '::', dst: 'ff02::1', proto: 58 }),
		entries,
		names,
		0n,
	);
	assert.equal([protocol, source, destination], ['icmp6', '[::]:0', '[ff02::1]:0']);
});

test.run();
