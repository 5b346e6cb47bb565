/** The command as a user runs it, against an agent in memory on a unix socket. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { parseBackend, parsePublish, parseUnpublish } from '../../src/cli/change.js';
import { parseAgent } from '../../src/cli/client.js';
import { createApp } from '../../src/http/app.js';
import { type Listening, listen } from '../../src/http/listen.js';
import { type FakeAgent, fakeAgent } from '../http/fake.js';

const bin = join(dirname(fileURLToPath(import.meta.url)), '../../../bin/beeline');

interface Ended {
	readonly code: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

interface Shared {
	directory: string;
	api: FakeAgent;
	server: Listening;
	where: string;
}

const test = suite<Shared>('command', {} as Shared);

function start(args: readonly string[], env: Record<string, string>): ChildProcess {
	return spawn(process.execPath, [bin, ...args], {
		env: { PATH: process.env.PATH ?? '', BEELINE_NO_BUILD: '1', ...env },
		stdio: ['ignore', 'pipe', 'pipe'],
	});
}

function run(args: readonly string[], env: Record<string, string>): Promise<Ended> {
	return new Promise((resolve, reject) => {
		const child = start(args, env);
		let stdout = '';
		let stderr = '';
		child.stdout?.on('data', (d) => {
			stdout += d;
		});
		child.stderr?.on('data', (d) => {
			stderr += d;
		});
		child.on('error', reject);
		child.on('close', (code) => resolve({ code, stdout, stderr }));
	});
}

test.before(async (c) => {
	c.directory = mkdtempSync(join(tmpdir(), 'bl-cli-'));
	c.api = fakeAgent();
	const app = createApp({
		api: c.api,
		tokens: { current: () => ({ token: 'sesame' }) },
		metrics: async () => ({ text: '', contentType: 'text/plain' }),
		version: '0.1.0',
	});
	const socket = join(c.directory, 'a.sock');
	c.server = await listen(app, socket, ['127.0.0.1:0']);
	c.where = `unix:${socket}`;
});
test.after(async (c) => {
	await c.server.close();
	rmSync(c.directory, { recursive: true });
});

async function fails(ended: Promise<Ended>, expected: RegExp) {
	const { code, stdout, stderr } = await ended;
	assert.is(code, 1, stderr);
	assert.is(stdout, '');
	assert.is(stderr.trim().split('\n').length, 1, stderr);
	assert.match(stderr, expected);
}

test('--version prints the version, and exits with 0', async () => {
	const { version } = JSON.parse(readFileSync(join(dirname(bin), '../package.json'), 'utf8')) as { version: string };
	assert.equal(await run(['--version'], {}), { code: 0, stdout: `${version}\n`, stderr: '' });
});

test('each reading verb prints a table, and with -o json the body of the answer', async (c) => {
	const env = { BEELINE_AGENT: c.where };
	const verbs: [string[], RegExp, string][] = [
		[['status'], /node1 \(192\.168\.78\.1\)[\s\S]*refused +tcp\/22 of web/, 'node'],
		[['nodes'], /NAME +ADDRESS[\s\S]*node2 +192\.168\.78\.2 +active +yes/, 'nodes'],
		[['node', 'ls'], /node2/, 'nodes'],
		[['services'], /web +8080->80\/tcp 22->22\/tcp \(refused\)/, 'services'],
		[['service', 'ls'], /web/, 'services'],
		[['backends'], /web~node2~172\.18\.0\.2~80~tcp +web +node2 +172\.18\.0\.2 fd00::2/, 'backends'],
		[['flows'], /udp +\[fd00:78::64\]:4000/, 'flows'],
		[['entries'], /vteps \(1 of 4096\)/, 'maps'],
	];
	await Promise.all(
		verbs.map(async ([args, table, key]) => {
			const text = await run(args, env);
			assert.is(text.code, 0, `${args}: ${text.stderr}`);
			assert.match(text.stdout, table);
			const json = await run([...args, '-o', 'json'], env);
			assert.ok(key in JSON.parse(json.stdout), args.join(' '));
		}),
	);
	assert.is(
		(await run(['--agent', c.where, '-o', 'json', 'nodes'], {})).stdout,
		`${JSON.stringify({ nodes: c.api.nodes() })}\n`,
	);
});

test('configuration: all of it, one key, a change, a key that must not change', async (c) => {
	const env = { BEELINE_AGENT: c.where };
	assert.match((await run(['config', 'get'], env)).stdout, /pinRoot: \/sys\/fs\/bpf\/beeline/);
	assert.is((await run(['config', 'get', 'datapath.vni'], env)).stdout, '12509184\n');
	await fails(run(['config', 'get', 'nothing'], env), /there is no nothing/);
	assert.is((await run(['config', 'set', 'log.level', 'debug'], env)).code, 0);
	assert.is(c.api.config().log.level, 'debug');
	await fails(
		run(['config', 'set', 'datapath.vni', '3'], env),
		/^datapath\.vni: is read when the agent starts and cannot be changed while it runs: set it in the configuration file \(beeline\.yaml\) and restart the agent$/m,
	);
	await fails(run(['config', 'set', 'node.name', 'n9'], env), /^node\.name: is read when the agent starts/);
	await fails(run(['config', 'set', 'datapath.vnii', '3'], env), /^datapath\.vnii: unknown key/);
});

test('drain: a node, a backend by id or address; what names several is refused', async (c) => {
	const env = { BEELINE_AGENT: c.where };
	assert.match((await run(['drain', 'node2'], env)).stdout, /node node2 drained/);
	assert.is(c.api.nodes()[1]?.state, 'drained');
	assert.match((await run(['undrain', 'node2'], env)).stdout, /undrained/);
	await run(['drain', '172.18.0.2'], env);
	assert.is(c.api.backends()[1]?.state, 'draining');
	await run(['undrain', 'web~node2~172.18.0.2~80~tcp'], env);
	assert.is(c.api.backends()[1]?.state, 'active');
	await fails(run(['drain', 'nobody'], env), /neither a node nor a backend/);
});

test('services and nodes of the file source', async (c) => {
	const env = { BEELINE_AGENT: c.where };
	const created = await run(['service', 'create', '-p', '53:53/udp', '--backend', 'node1=10.0.0.1*2', 'dns'], env);
	assert.is(created.code, 0, created.stderr);
	assert.equal(c.api.services()[1]?.ports[0]?.protocol, 'udp');
	assert.is((await run(['service', 'update', '--option', 'allow=10.0.0.0/8,fd00::/8', 'dns'], env)).code, 0);
	assert.equal(c.api.services()[1]?.options.allow, ['10.0.0.0/8', 'fd00::/8']);
	assert.match((await run(['service', 'inspect', 'dns'], env)).stdout, /"published": 53/);
	assert.is((await run(['service', 'rm', 'dns'], env)).code, 0);
	assert.is(c.api.services().length, 1);
	await fails(run(['service', 'create', '-p', '53:53', 'elsewhere'], env), /write the service into mesh\.yaml/);
	await fails(run(['service', 'update', '--option', 'returnPath=nat', 'web'], env), /options\.returnPath/);
	assert.equal(await run(['node', 'add', 'node3', '192.168.78.3'], env), {
		code: 0,
		stdout: 'node3\n',
		stderr: 'written into mesh.yaml of node1 alone: every other node reads its own copy, so write it into theirs too\n',
	});
	assert.equal(await run(['node', 'rm', 'node3'], env), {
		code: 0,
		stdout: 'node3\n',
		stderr: 'written into mesh.yaml of node1 alone: every other node reads its own copy, so write it into theirs too\n',
	});
	await fails(run(['node', 'rm', 'node3'], env), /no node "node3"/);
});

test('over TCP reading needs no token, changing does: from the environment or a file', async (c) => {
	const agent = `http://${c.server.addresses[1]}`;
	assert.is((await run(['nodes', '--agent', agent], {})).code, 0);
	await fails(run(['drain', 'node2', '--agent', agent], {}), /Authorization: Bearer/);
	assert.is((await run(['drain', 'node2', '--agent', agent], { BEELINE_TOKEN: 'sesame' })).code, 0);
	const file = join(c.directory, 'token');
	writeFileSync(file, 'sesame\n');
	assert.is((await run(['undrain', 'node2', '--agent', agent, '--token-file', file], {})).code, 0);
	await fails(run(['drain', 'node2', '--agent', agent, '--token-file', '/nowhere'], {}), /--token-file \/nowhere/);
});

test('mistakes are one sentence and exit 1', async (c) => {
	const env = { BEELINE_AGENT: c.where };
	await fails(run([], env), /a verb is missing/);
	await fails(run(['frob'], env), /^unknown command 'frob': add --help to see what there is$/m);
	await fails(run(['node', 'sl'], env), /^unknown command 'sl' \(Did you mean ls\?\): add --help/m);
	await fails(run(['nodes', '--frob'], env), /^unknown option '--frob': add --help to see what there is$/m);
	await fails(run(['drain'], env), /^missing required argument 'backend\|node': add --help/m);
	await fails(run(['nodes', '-o', 'xml'], env), /-o, --output/);
	await fails(run(['flows', '--limit', '0'], env), /--limit/);
	await fails(run(['agent'], env), /^required option '--config <file>' not specified: add --help/m);
	await fails(
		run(['agent', '--confg', 'a.yaml'], env),
		/^unknown option '--confg' \(Did you mean --config\?\): add --help/m,
	);
	await fails(run(['endpoint', 'attach'], env), /^required option '--network <name>' not specified: add --help/m);
	await fails(run(['help', 'frob'], env), /^unknown command 'frob': add --help/m);
	await fails(run(['service', 'help', 'frob'], env), /^unknown command 'frob': add --help/m);
	await fails(run(['service'], env), /^a verb is missing: add --help/m);
	await fails(run(['agent', '--config', '/nowhere.yaml'], env), /nowhere\.yaml/);
	await fails(run(['nodes'], { BEELINE_AGENT: 'unix:/nowhere.sock' }), /no agent answers at unix:\/nowhere\.sock/);
	await fails(run(['nodes'], { BEELINE_AGENT: 'http://127.0.0.1:1' }), /no agent answers/);
	await fails(run(['nodes'], { BEELINE_AGENT: 'nonsense' }), /expected unix:\/path or http:/);
	await fails(run(['demo', 'nope'], {}), /^demo nope: expected overlay, or nothing$/m);
	await fails(run(['demo', '--frob'], {}), /^demo --frob: expected overlay, or nothing$/m);
	await fails(run(['demo', 'overlay', 'red'], {}), /^demo overlay red: expected overlay, or nothing$/m);
});

test('a demo that cannot run says why once', async (c) => {
	// In place of the script, which would install what is missing.
	writeFileSync(join(c.directory, 'bash'), '#!/bin/sh\necho "setup: it needs root" >&2\nexit 1\n', { mode: 0o755 });
	await fails(run(['demo'], { PATH: `${c.directory}:${process.env.PATH}` }), /^setup: it needs root$/m);
});

test('help and version are no mistakes', async () => {
	const help = await run(['--help'], {});
	assert.is(help.code, 0);
	assert.match(help.stdout, /drain .*<backend\|node>/);
	assert.match((await run(['version'], {})).stdout, /^\d+\.\d+\.\d+\n$/);
});

test('a reader that goes away is no failure', async (c) => {
	const child = start(['entries'], { BEELINE_AGENT: c.where });
	child.stdout?.destroy();
	let stderr = '';
	child.stderr?.on('data', (d) => {
		stderr += d;
	});
	const code = await new Promise((resolve) => child.on('close', resolve));
	assert.is(code, 0, stderr);
	assert.is(stderr, '');
});

test('a full disk under the output is one sentence', async (c) => {
	const full = openSync('/dev/full', 'w');
	const child = spawn(process.execPath, [bin, 'nodes'], {
		env: { PATH: process.env.PATH ?? '', BEELINE_NO_BUILD: '1', BEELINE_AGENT: c.where },
		stdio: ['ignore', full, 'pipe'],
	});
	closeSync(full);
	let stderr = '';
	child.stderr?.on('data', (d) => {
		stderr += d;
	});
	const code = await new Promise((resolve) => child.on('close', resolve));
	assert.is(code, 1);
	assert.is(stderr, 'write to standard output: ENOSPC: no space left on device, write\n');
});

test('a log that cannot be written stops nothing', async () => {
	const full = openSync('/dev/full', 'w');
	const program = `import { createLog } from ${JSON.stringify(join(dirname(fileURLToPath(import.meta.url)), '../../src/cli/log.js'))};
		const log = createLog('info', 'node1');
		for (let i = 0; i < 20_000; i++) log.info({ text: 'x'.repeat(100) }, 'a line');
		setTimeout(() => console.error('alive', process.memoryUsage().heapUsed < 100e6), 50);`;
	const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
		stdio: ['ignore', full, 'pipe'],
		timeout: 30_000,
		killSignal: 'SIGKILL',
	});
	closeSync(full);
	let stderr = '';
	child.stderr?.on('data', (d) => {
		stderr += d;
	});
	const code = await new Promise((resolve) => child.on('close', resolve));
	assert.is(stderr, 'alive true\n');
	assert.is(code, 0);
});

test('monitor prints verdicts until the agent ends', async (c) => {
	const child = start(['monitor', '--verdict', 'encap_node'], { BEELINE_AGENT: c.where });
	let out = '';
	child.stdout?.on('data', (d) => {
		out += d;
	});
	const limit = Date.now() + 5000;
	while (c.api.listeners.size === 0 && Date.now() < limit) await new Promise((r) => setTimeout(r, 10));
	c.api.emit({
		type: 'verdict',
		at: '2026-01-02T03:04:05.678Z',
		program: 'uplink_xdp',
		verdict: 'encap_node',
		protocol: 'tcp',
		source: '192.168.78.100:51234',
		destination: '192.168.78.1:8080',
		interface: 'eth0',
		bytes: 74,
		service: 'web',
		backend: 'b',
	});
	c.api.emit({
		type: 'verdict',
		at: '2026-01-02T03:04:05.679Z',
		program: 'uplink_tc',
		verdict: 'encap_node',
		protocol: null,
		source: null,
		destination: null,
		interface: 'eth0',
		bytes: 124,
		service: null,
		backend: null,
	});
	while (out.split('\n').length < 3 && Date.now() < limit) await new Promise((r) => setTimeout(r, 10));
	child.kill();
	assert.match(
		out,
		/^03:04:05\.678 eth0 +uplink_xdp +encap_node +tcp 192\.168\.78\.100:51234 > 192\.168\.78\.1:8080 74 b\n03:04:05\.679 eth0 +uplink_tc +encap_node +\(not read here\) 124\n$/,
	);
});

test('grammar of ports, backends and agents', () => {
	assert.equal(parsePublish('8080:80'), { published: 8080, target: 80, protocol: 'tcp' });
	assert.equal(parsePublish('published=53,target=5353,protocol=udp'), { published: 53, target: 5353, protocol: 'udp' });
	assert.throws(() => parsePublish('8080'), /expected PUBLISHED:TARGET/);
	assert.throws(() => parsePublish('published=1,target=2,mode=host'), /leave mode out/);
	assert.throws(() => parsePublish('published=1,target=2,host=x'), /host is none of published, target, protocol/);
	assert.equal(parseUnpublish('80'), { target: 80 });
	assert.equal(parseUnpublish('53/udp'), { target: 53, protocol: 'udp' });
	assert.equal(parseUnpublish('8080:80'), { published: 8080, target: 80, protocol: 'tcp' });
	assert.equal(parseUnpublish('published=8080'), { published: 8080 });
	assert.throws(() => parseUnpublish('web'), /expected PUBLISHED:TARGET/);
	assert.equal(parseBackend('n1'), { node: 'n1' });
	assert.equal(parseBackend('n1=10.0.0.1,fd00::1*3'), { node: 'n1', addresses: ['10.0.0.1', 'fd00::1'], weight: 3 });
	assert.equal(parseAgent('unix:/run/x.sock'), { socketPath: '/run/x.sock' });
	assert.equal(parseAgent('http://[::1]:7980'), { host: '::1', port: 7980 });
	assert.throws(() => parseAgent('https://x'), /expected unix/);
});

test('the README names every verb and every flag', async () => {
	const readme = readFileSync(join(dirname(bin), '../README.md'), 'utf8');
	const table = readme.slice(readme.indexOf('## The command'), readme.indexOf('## Limits'));
	const help = async (verbs: readonly string[]): Promise<void> => {
		const { stdout } = await run([...verbs, '--help'], {});
		const own = stdout.split(/\n(?:Global Options|Commands):\n/)[0]!;
		for (const [, flag] of own.matchAll(/^ {2}(?:-\w, )?(--[\w-]+)/gm))
			if (!['--help', '--version', '--output'].includes(flag!))
				assert.ok(table.includes(flag!), `${verbs.join(' ')} ${flag} is not in the README`);
		const commands = /\nCommands:\n([\s\S]*?)(\n\n|$)/.exec(stdout)?.[1] ?? '';
		const names = [...commands.matchAll(/^ {2}(\w+)/gm)].map((m) => m[1]!).filter((n) => n !== 'help');
		for (const name of names) assert.match(table, new RegExp(`\\b${name}\\b`));
		await Promise.all(names.map((name) => help([...verbs, name])));
	};
	await help([]);
	const root = (await run(['--help'], {})).stdout;
	assert.match(root, /\n {2}monitor/);
});

test('config set of a key that JavaScript treats apart is refused as unknown', async (c) => {
	await fails(run(['config', 'set', '__proto__.x', '5'], { BEELINE_AGENT: c.where }), /^__proto__: unknown key/);
});

test.run();
