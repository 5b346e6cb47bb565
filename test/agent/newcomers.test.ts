import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createNewcomers } from '../../src/agent/newcomers.js';
import { HEALTHY, plan } from '../../src/mesh/plan.js';
import { mesh, service } from '../mesh/support.js';

const test = suite('newcomers');
const planned = (...tasks: string[]) =>
	plan({
		membership: mesh(['node1', 'node2', 'node3'], [service('web', '8080:80', tasks)]),
		self: 'node1',
		health: HEALTHY,
		nowMs: 0,
	});
const old = planned('node2 10.0.0.1');
const next = planned('node1 10.0.0.9', 'node2 10.0.0.1', 'node2 10.0.0.2', 'node3 10.0.0.3');
const macs = new Set((old.services.get('web')?.backends ?? []).map((b) => b.mac));
const keyOf = (address: string) => next.services.get('web')?.backends.find((b) => b.address4 === address)?.key;

function make(before: ReadonlySet<string> | undefined) {
	const at = {
		ms: 1000,
		digests: new Map<string, bigint | null>([
			['node2', 7n],
			['node3', 7n],
		]),
	};
	return {
		at,
		keys: createNewcomers({
			before,
			nowMs: () => at.ms,
			views: () => new Map([...at.digests].map(([node, digest]) => [node, { digest }])),
		}),
	};
}

test('what is new on another node waits until that node says the same of its tables', () => {
	const { at, keys } = make(macs);
	assert.equal(keys(next), [keyOf('10.0.0.2'), keyOf('10.0.0.3')]);
	at.digests.set('node2', next.digest);
	assert.equal(keys(next), [keyOf('10.0.0.3')]);
	at.digests.set('node2', 8n);
	assert.equal(keys(next), [keyOf('10.0.0.3')], 'once is enough');
});

test('it waits 15 s at most, and not for a node that does not answer', () => {
	const { at, keys } = make(macs);
	at.digests.set('node2', null);
	assert.equal(keys(next), [keyOf('10.0.0.3')]);
	at.ms = 15_999;
	assert.equal(keys(next).length, 1);
	at.ms = 16_000;
	assert.equal(keys(next), []);
});

test('without an agent before, and of what comes later, nothing waits', () => {
	assert.equal(make(undefined).keys(next), []);
	const { keys } = make(macs);
	assert.equal(keys(old), []);
	assert.equal(keys(next), []);
});

test.run();
