import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { config } from '../../src/agent/views.js';
import { parseConfig } from '../../src/config.js';
import * as s from '../../src/http/schemas.js';

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

test.run();
