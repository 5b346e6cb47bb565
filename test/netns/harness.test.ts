/*
 * The harness itself, without Beeline: what the other tests of this directory take for granted.
 * Topology: the default one of test/support/netns.ts, two tasks on n2.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { statePath } from '../../src/agent/state.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotUseNamespaces } from '../support/skip.js';
import { root } from '../support/tools.js';

/**
 * Runs a story on a topology in a process group of its own, and presses Ctrl-C from the moment that it printed `from`
 * until it ends.
 * @param everyMs between two of them; 0: only one
 * @returns what it printed to standard error, and what is left of it
 */
async function interrupted(story: string, from: string, everyMs: number) {
	const at = (file: string) => JSON.stringify(join(root, 'dist/test', file));
	const program = `import { Topology } from ${at('support/netns.js')}; import { tell } from ${at('demo/tell.js')}; import { NO_STATE, statePath, writeState } from ${at('../src/agent/state.js')}; await tell(async () => { ${story} });`;
	const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
		detached: true,
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	const prefix = `bl${child.pid}-`;
	let stdout = '';
	let stderr = '';
	child.stdout.on('data', (part) => {
		stdout += part;
	});
	child.stderr.on('data', (part) => {
		stderr += part;
	});
	let over = false;
	const ended = new Promise<void>((resolve) =>
		child.on('close', () => {
			over = true;
			resolve();
		}),
	);
	while (!over && !stdout.includes(from)) await sleep(5);
	while (!over) {
		process.kill(-(child.pid as number), 'SIGINT');
		await (everyMs ? sleep(everyMs) : ended);
	}
	await ended;
	const left = ['/run/netns', '/sys/fs/bpf', tmpdir()].flatMap((directory) =>
		readdirSync(directory).filter((name) => name.startsWith(prefix)),
	);
	const state = statePath(`/sys/fs/bpf/${prefix}n1`);
	return { stderr, left: existsSync(state) ? [...left, state] : left };
}

async function build(): Promise<{ net: Topology }> {
	const net = await Topology.build({ tasks: { n2: 2 } });
	for (const task of net.tasks()) {
		await net.httpd(task, 80);
		await net.udpecho(task, 53);
	}
	await net.httpd('n1', 8000);
	// The kernel's own balancer: published 8080 and 8053 on n2, to its two tasks.
	net.exec('n2', ['nft', '-f', '-'], {
		input: `table ip balance {
				chain prerouting {
					type nat hook prerouting priority dstnat;
					tcp dport 8080 dnat to numgen inc mod 2 map { 0 : 172.18.0.2 . 80, 1 : 172.18.0.3 . 80 }
					udp dport 8053 dnat to 172.18.0.2:53
				}
			}
			table ip6 balance {
				chain prerouting {
					type nat hook prerouting priority dstnat;
					tcp dport 8080 dnat to [fd00:18::3]:80
					udp dport 8053 dnat to [fd00:18::3]:53
				}
			}`,
	});
	return { net };
}

scenario(
	'netns harness',
	cannotUseNamespaces(),
	build,
	({ net }) => net.close(),
	(test) => {
		test('a direct dial of a node process shows the client address, in both families', async ({ net }) => {
			const { v4, v6 } = net.address('n1');
			const report = await net.load('c1', ['-n', 200, `${v4}:8000`, `[${v6}]:8000`]);
			assert.equal(report.failures, {});
			assert.equal(report.ok, 200);
			assert.equal(report.clients, { [net.address('c1').v4]: 100, [net.address('c1').v6]: 100 });
		});

		test('nftables DNAT reaches the tasks behind gwbr0 with the client address', async ({ net }) => {
			const { v4, v6 } = net.address('n2');
			const report = await net.load('c1', ['-n', 400, `${v4}:8080`, `[${v6}]:8080`]);
			assert.equal(report.failures, {});
			assert.equal(report.backends, { n2t1: 100, n2t2: 300 });
			assert.equal(report.clients, { [net.address('c1').v4]: 200, [net.address('c1').v6]: 200 });
		});

		test('16 MB bodies pass both ways', async ({ net }) => {
			const targets = [`${net.address('n2').v4}:8080`, `[${net.address('n2').v6}]:8080`];
			for (const way of ['-D', '-U']) {
				const report = await net.load('c1', ['-n', 4, '-c', 2, way, 16_000_000, ...targets]);
				assert.equal(report.failures, {}, way);
				assert.equal(report.ok, 4, way);
			}
		});

		test('UDP echoes come back whole, with segmentation offload too', async ({ net }) => {
			const targets = [`${net.address('n2').v4}:8053`, `[${net.address('n2').v6}]:8053`];
			const echo = await net.udpload('c1', ['-n', 50, '-c', 4, '-S', 1400, ...targets]);
			assert.equal([echo.answered, echo.lost, echo.corrupt], [200, 0, 0]);
			const gso = await net.udpload('c1', ['-n', 20, '-c', 2, '-R', 1200, '-g', 10, ...targets]);
			assert.equal([gso.answered, gso.replies, gso.corrupt], [40, 400, 0]);
		});

		test('datagrams of 1472 bytes with DF arrive and 1473 are refused with the MTU', async ({ net }) => {
			const target = `${net.address('n2').v4}:8053`;
			const fits = await net.udpload('c1', ['-S', 1472, '-D', 'do', target]);
			assert.equal([fits.answered, fits.errors], [1, {}]);
			const large = await net.udpload('c1', ['-S', 1473, '-D', 'do', target]);
			assert.is(large.answered, 0);
			assert.ok(large.errors.EMSGSIZE >= 1);
			const fragmented = await net.udpload('c1', ['-S', 4000, target]);
			assert.is(fragmented.answered, 1);
		});

		test('held connections are counted as closed when the backend dies, and moved connections show', async ({
			net,
		}) => {
			const server = await net.httpd('n1', 8001, 'dies');
			const load = net.startLoad('c1', [
				'-n',
				20,
				'-c',
				20,
				'-k',
				0,
				'-i',
				20,
				'-d',
				10_000,
				`${net.address('n1').v4}:8001`,
			]);
			await load.ready();
			await server.stop('SIGKILL');
			const report = await load.report();
			assert.is((report.failures.closed ?? 0) + (report.failures.reset ?? 0), 20);
			assert.is(report.moved, 0);
		});

		test('one process holds one topology, whose names carry its pid', async ({ net: { prefix } }) => {
			const other = await Topology.build({ nodes: 1, clients: 0 }).catch((error: Error) => error);
			assert.instance(other, Error);
			assert.ok(existsSync('/run/netns') && readdirSync('/run/netns').some((name) => name.startsWith(prefix)));
		});

		test('Ctrl-C, once or held down, leaves nothing, and says so', async () => {
			const story =
				"const net = await Topology.build({ tasks: { n2: 2 } }); await net.httpd('n2t1', 80); writeState(statePath(net.pinRoot('n1')), NO_STATE); console.log('built'); await new Promise((r) => setTimeout(r, 60_000)); return 0;";
			for (const everyMs of [0, 15, 15, 15]) {
				const { stderr, left } = await interrupted(story, 'built', everyMs);
				assert.equal(left, [], `every ${everyMs} ms`);
				assert.is(stderr.trim(), 'Interrupted: all namespaces, programs and pins are removed.');
			}
		});

		test('Ctrl-C while namespaces are built is no error of a command', async () => {
			const story =
				"console.log('begins'); await Topology.build({ tasks: { n2: 2 } }); await new Promise((r) => setTimeout(r, 60_000)); return 0;";
			const { stderr, left } = await interrupted(story, 'begins', 0);
			assert.equal(left, []);
			assert.is(stderr.trim(), 'Interrupted: all namespaces, programs and pins are removed.');
		});
	},
);
