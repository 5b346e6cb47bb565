import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createRunner } from '../../src/agent/runner.js';
import { BeelineError } from '../../src/errors.js';

const test = suite('runner');

test('a program’s output, with and without input; several at once', async () => {
	const { run, close } = createRunner();
	const outs = await Promise.all([run('echo', ['one']), run('cat', [], 'two\n'), run('sh', ['-c', 'echo $LC_ALL'])]);
	assert.equal(outs, ['one\n', 'two\n', 'C\n']);
	await close();
});

test('a refusal is the same as without the thread', async () => {
	const { run, close } = createRunner();
	const refused = async (command: string, args: string[]) => {
		const e = await run(command, args).catch((x) => x);
		assert.instance(e, BeelineError);
		return [e.code, e.message];
	};
	assert.equal(await refused('sh', ['-c', 'echo no >&2; exit 3']), ['COMMAND_FAILED', 'sh -c echo no >&2; exit 3: no']);
	assert.is((await refused('no-such-program', []))[0], 'NO_COMMAND');
	await close();
});

test('closed, it tells those who wait; asked again, it begins again', async () => {
	const { run, close } = createRunner();
	const waits = run('sleep', ['20']).catch((e) => e.code);
	await run('true', []);
	await close();
	assert.is(await waits, 'COMMAND_FAILED');
	assert.is(await run('echo', ['again']), 'again\n');
	await close();
});

test.run();
