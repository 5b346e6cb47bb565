/** The walk-through of overlay networks (`npm run demo -- overlay`) goes as it says. Topology: test/demo/overlay.ts. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { cannotRunEtcd } from '../support/etcd.js';
import { cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';

const test = suite('walk-through of overlay networks');
const why = cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotRunEtcd();

if (why) skip('walk-through of overlay networks', why);
else
	test('every step goes as it says', () => {
		const script = fileURLToPath(new URL('../demo/overlay.js', import.meta.url));
		const r = spawnSync(process.execPath, [script], { encoding: 'utf8', timeout: 200_000 });
		assert.is(r.status, 0, r.stdout + r.stderr);
		assert.match(r.stdout, /red is gone/);
	});

test.run();
