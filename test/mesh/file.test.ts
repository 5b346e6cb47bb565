import {
	chmodSync,
	mkdtempSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { loadConfig, parseConfig, updateConfig } from '../../src/config.js';
import { BeelineError } from '../../src/errors.js';
import { formatDuration, parseDuration, parsePrefix, parseSize } from '../../src/mesh/sources/document.js';
import {
	addNode,
	changeService,
	createService,
	openFileSource,
	parseMembership,
	removeNode,
	removeService,
	setBackendDrained,
	setNodeDrained,
	setServiceOptions,
} from '../../src/mesh/sources/file.js';
import type { Membership } from '../../src/mesh/types.js';

const test = suite('file source and configuration');

const MESH = `# the mesh
nodes:
  - { name: node1, address: 192.168.78.1 } # first
  - { name: node2, address: 192.168.78.2 }
services:
  # the web
  - name: web
    ports: [{ published: 8080, target: 80, protocol: tcp }]
    options: { returnPath: auto, trackingWindow: 2h15m }
    backends:
      - { node: node2, address: 172.18.0.2, weight: 1 } # one
      - { node: node2, addresses: [172.18.0.3, "fd00::3"] }
      - { node: node1 }
networks:
  - { name: red, subnet: 10.44.0.0/24, vni: 5001, attachable: true, options: { mtu: 1500, internal: false } }
`;
const ONE = MESH.replace('  - { name: node2, address: 192.168.78.2 }\n', '').replaceAll('node2', 'node1');

const refusal = (f: () => unknown): BeelineError => {
	try {
		f();
	} catch (error) {
		if (error instanceof BeelineError) return error;
		throw error;
	}
	throw new Error('it was accepted');
};

function inDirectory(body: (path: (name: string) => string) => void | Promise<void>) {
	return async () => {
		const directory = mkdtempSync(join(tmpdir(), 'beeline-mesh-'));
		try {
			await body((name) => join(directory, name));
		} finally {
			rmSync(directory, { recursive: true });
		}
	};
}

async function until(what: string, met: () => boolean, ms = 3000): Promise<void> {
	const end = Date.now() + ms;
	while (!met()) {
		if (Date.now() > end) throw new Error(`waited ${ms} ms for ${what}`);
		await new Promise((r) => setTimeout(r, 1));
	}
}

test('mesh.yaml of the design is read, defaults filled in', () => {
	const m = parseMembership('mesh.yaml', MESH);
	assert.equal(m.nodes[1], { name: 'node2', address: '192.168.78.2', drained: false });
	assert.equal(m.services[0].tasks, [
		{ node: 'node2', address4: '172.18.0.2', weight: 1, state: 'active' },
		{ node: 'node2', address4: '172.18.0.3', address6: 'fd00::3', weight: 1, state: 'active' },
		{ node: 'node1', weight: 1, state: 'active' },
	]);
	assert.equal(m.services[0].options, {
		returnPath: 'auto',
		affinity: 'none',
		tracking: 'auto',
		trackingWindowMs: 8_100_000,
		udpWindowMs: 60_000,
		tableSize: 'auto',
		drainTimeoutMs: 60_000,
		addresses: [],
		allow: [],
		deny: [],
		prefer: 'none',
		enable: true,
	});
	assert.equal(m.networks[0].options, {
		mtu: 1500,
		internal: false,
		slices: { node1: '10.44.0.0/25', node2: '10.44.0.128/25' },
	});
});

test('JSON is YAML', () => {
	const json = JSON.stringify({ nodes: [{ name: 'n', address: '10.0.0.1' }], services: [] });
	assert.equal(parseMembership('mesh.yaml', json), {
		nodes: [{ name: 'n', address: '10.0.0.1', drained: false }],
		services: [],
		networks: [],
	});
	assert.match(
		refusal(() => parseMembership('m.json', json.replace('10.0.0.1', '10.0.0'))).message,
		/^m\.json:1:33: nodes\[0\]\.address is "10\.0\.0": expected an IPv4/,
	);
});

const refused: readonly (readonly [string, string, string, string])[] = [
	[
		'an unknown key',
		'published: 8080',
		'publishd: 8080',
		'mesh.yaml:8:15: services[0].ports[0].publishd is an unknown key: expected one of published, target, protocol (and 1 more)',
	],
	[
		'port 0',
		'published: 8080',
		'published: 0',
		'mesh.yaml:8:26: services[0].ports[0].published is 0: expected a port from 1 to 65535',
	],
	[
		'port 70000',
		'published: 8080',
		'published: 70000',
		'mesh.yaml:8:26: services[0].ports[0].published is 70000: expected a port from 1 to 65535',
	],
	[
		'a port published twice',
		'target: 80, protocol: tcp }',
		'target: 80 }, { published: 8080, target: 81 }',
		'mesh.yaml:8:59: services[0].ports[1].published is tcp/8080, which service web publishes already: expected each published port once per protocol and address',
	],
	[
		'a node without address',
		'name: node2, address: 192.168.78.2',
		'name: node2',
		'mesh.yaml:4:5: nodes[1].address is missing: expected an IPv4 address such as 10.0.0.1',
	],
	[
		'a backend on an unknown node',
		'node: node2, address: 172.18.0.2',
		'node: node9, address: 172.18.0.2',
		'mesh.yaml:11:17: services[0].backends[0].node is "node9", which is no node: expected one of node1, node2',
	],
	[
		'a VNI out of range',
		'vni: 5001',
		'vni: 16777216',
		'mesh.yaml:15:45: networks[0].vni is 16777216: expected a VNI from 1 to 16777215',
	],
	[
		'a subnet of IPv6 where IPv4 is expected',
		'subnet: 10.44.0.0/24',
		'subnet: fd00:44::/64',
		'mesh.yaml:15:26: networks[0].subnet is fd00:44::/64: expected an IPv4 prefix of 30 bits at most, such as 10.44.0.0/24',
	],
	[
		'a gateway of another subnet',
		'vni: 5001',
		'gateway: 10.45.0.1, vni: 5001',
		'mesh.yaml:15:49: networks[0].gateway is 10.45.0.1: expected an address of 10.44.0.0/24',
	],
	[
		'slices that overlap',
		'vni: 5001',
		'slices: { node1: 10.44.0.0/25, node2: 10.44.0.64/26 }, vni: 5001',
		'mesh.yaml:15:78: networks[0].slices.node2 is 10.44.0.64/26, which overlaps 10.44.0.0/25 of node1: expected a part of its own for each node',
	],
	[
		'an endpoint on an unknown node',
		'vni: 5001',
		'endpoints: [{ node: nowhere, address: 10.44.0.9 }], vni: 5001',
		'mesh.yaml:15:60: networks[0].endpoints[0].node is "nowhere", which is no node: expected one of node1, node2',
	],
	[
		'a node listed twice',
		'name: node2',
		'name: node1',
		'mesh.yaml:4:13: nodes[1].name is node1, as nodes[0] is: expected each node once (and 2 more)',
	],
	[
		'a backend listed twice',
		'172.18.0.3',
		'172.18.0.2',
		'mesh.yaml:12:9: services[0].backends[1] is 172.18.0.2 on node2, as backends[0] is: expected each backend once',
	],
	[
		'two addresses of one family',
		'"fd00::3"',
		'172.18.0.4',
		'mesh.yaml:12:48: services[0].backends[1].addresses[1] is 172.18.0.4, of the same family as the first: expected one address of each family',
	],
	[
		'a weight beyond 1000',
		'weight: 1 }',
		'weight: 1001 }',
		'mesh.yaml:11:53: services[0].backends[0].weight is 1001: expected a weight from 0 to 1000',
	],
	[
		'a bad prefix',
		'trackingWindow: 2h15m',
		'allow: [10.0.0.0/33]',
		'mesh.yaml:9:42: services[0].options.allow[0] is "10.0.0.0/33": expected a prefix such as 10.0.0.0/8 or fd00::/8',
	],
	[
		'an allow list with host bits',
		'trackingWindow: 2h15m',
		'allow: [10.1.2.3/8]',
		'mesh.yaml:9:42: services[0].options.allow[0] is "10.1.2.3/8": expected 10.0.0.0/8 without host bits, or 10.1.2.3 for that address alone',
	],
	[
		'a deny list with host bits of IPv6',
		'trackingWindow: 2h15m',
		'deny: [fd00::/16, "FD00::1/16"]',
		'mesh.yaml:9:52: services[0].options.deny[1] is "FD00::1/16": expected fd00::/16 without host bits, or fd00::1 for that address alone',
	],
	[
		'a subnet with host bits',
		'subnet: 10.44.0.0/24',
		'subnet: 10.44.0.1/24',
		'mesh.yaml:15:26: networks[0].subnet is "10.44.0.1/24": expected 10.44.0.0/24 without host bits',
	],
	[
		'slices with host bits',
		'vni: 5001',
		'slices: { node1: 10.44.0.0/25, node2: 10.44.0.130/25 }, vni: 5001',
		'mesh.yaml:15:78: networks[0].slices.node2 is "10.44.0.130/25": expected 10.44.0.128/25 without host bits',
	],
	[
		'a bad duration',
		'2h15m',
		'135',
		'mesh.yaml:9:50: services[0].options.trackingWindow is 135: expected a duration such as 60s or 2h15m',
	],
	[
		'a table that is no power of two',
		'trackingWindow: 2h15m',
		'tableSize: 1000',
		'mesh.yaml:9:45: services[0].options.tableSize is 1000: expected auto or a power of two from 1024 to 131072',
	],
	[
		'a loopback backend',
		'172.18.0.2',
		'127.0.0.1',
		'mesh.yaml:11:33: services[0].backends[0].address is "127.0.0.1": expected an IPv4 or IPv6 address such as 10.0.0.1 or fd00::1',
	],
	[
		'a list where a mapping belongs',
		'options: { returnPath: auto, trackingWindow: 2h15m }',
		'options: [a]',
		'mesh.yaml:9:14: services[0].options is a list: expected a mapping',
	],
];
for (const [what, from, to, message] of refused)
	test(`${what} is refused with file, line and what was expected`, () => {
		const error = refusal(() => parseMembership('mesh.yaml', MESH.replace(from, to)));
		assert.is(error.message, message);
		assert.is(error.code, 'INVALID_CONFIG');
	});

test('what is not YAML, or empty, is refused', () => {
	assert.match(
		refusal(() => parseMembership('mesh.yaml', MESH.replace('node1 }', 'node1'))).message,
		/^mesh\.yaml:\d+:\d+: not YAML: /,
	);
	assert.match(
		refusal(() => parseMembership('mesh.yaml', '')).message,
		/^mesh\.yaml:1:1: nodes is missing: expected a list$/,
	);
	assert.match(
		refusal(() => parseMembership('mesh.yaml', 'nodes: []')).message,
		/nodes is a list: expected at least one node$/,
	);
	assert.is(
		refusal(() => parseMembership('mesh.yaml', `${MESH}---\nnodes: []\n`)).message,
		'mesh.yaml:16:1: not YAML: a second document begins: expected one',
	);
	const nested = ['a: &a [x, x, x, x, x, x, x, x, x, x]'];
	for (const [i, of] of ['a', 'b', 'c', 'd'].entries())
		nested.push(`${'bcde'[i]}: &${'bcde'[i]} [${Array(10).fill(`*${of}`).join(', ')}]`);
	assert.is(
		refusal(() => parseMembership('mesh.yaml', nested.join('\n'))).message,
		'mesh.yaml:1:1: not YAML: its aliases (*name) stand for too much: expected the values themselves',
	);
});

test(
	'host bits sent over HTTP are refused with the field, and nothing is written',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		writeFileSync(file, MESH);
		const e = refusal(() => changeService(file, 'web', { options: { allow: ['10.1.2.3/8'] } }));
		assert.equal(
			[e.message, e.field],
			[
				'options.allow[0] is "10.1.2.3/8": expected 10.0.0.0/8 without host bits, or 10.1.2.3 for that address alone',
				'options.allow[0]',
			],
		);
		assert.is(readFileSync(file, 'utf8'), MESH);
	}),
);

test(
	'a directory in place of a file is called one',
	inDirectory((path) => {
		const e = refusal(() => loadConfig(path('.')));
		assert.match(e.message, /^read configuration .*: it is a directory: name a file in it$/);
	}),
);

test('one port on two addresses, or on one address beside all, is no conflict', () => {
	const with2 = (a: string, b: string) =>
		parseMembership(
			'm',
			`{nodes: [{name: n, address: 10.0.0.1}], services: [{name: a, ports: [{published: 80, target: 80}], options: {addresses: [${a}]}}, {name: b, ports: [{published: 80, target: 81}], options: {addresses: [${b}]}}]}`,
		);
	with2('10.0.0.1', '10.0.0.2');
	with2('10.0.0.1', '');
	assert.match(
		refusal(() => with2('10.0.0.1', '10.0.0.2, 10.0.0.1')).message,
		/tcp\/80, which service a publishes already/,
	);
	assert.match(refusal(() => with2('', '')).message, /tcp\/80, which service a publishes already/);
});

test('durations, sizes and prefixes', () => {
	for (const [text, ms] of [
		['60s', 60_000],
		['2h15m', 8_100_000],
		['500ms', 500],
		['1d', 86_400_000],
		['1.5s', 1500],
		['0', 0],
	] as const)
		assert.is(parseDuration(text), ms, text);
	for (const x of ['60', 60, '', 's', '-1s', '1 s', '1w', '999d']) assert.is(parseDuration(x), undefined, String(x));
	for (const ms of [0, 1, 1500, 60_000, 8_100_000, 86_399_999]) assert.is(parseDuration(formatDuration(ms)), ms);
	assert.equal([parseSize('64k'), parseSize('1Mi'), parseSize(12), parseSize('x')], [65536, 1048576, 12, undefined]);
	assert.equal(
		[
			parsePrefix('10.1.2.3/8'),
			parsePrefix('fd00::1/16'),
			parsePrefix('10.0.0.1'),
			parsePrefix('10.0.0.0/33'),
			parsePrefix('010.0.0.0/8'),
		],
		['10.0.0.0/8', 'fd00::/16', '10.0.0.1/32', undefined, undefined],
	);
});

test(
	'a change is known within 50 ms, in place, by rename and through a link; what did not change is the same object',
	inDirectory(async (path) => {
		writeFileSync(path('real.yaml'), MESH);
		symlinkSync('real.yaml', path('mesh.yaml'));
		const seen: { m: Membership; at: number }[] = [];
		const errors: string[] = [];
		const source = openFileSource(path('mesh.yaml'), {
			onChange: (m) => seen.push({ m, at: performance.now() }),
			onError: (e) => errors.push(e.message),
		});
		try {
			const latencies: number[] = [];
			const change = async (n: number, write: (text: string) => void) => {
				const before = seen.length;
				const at = performance.now();
				write(MESH.replace('weight: 1 ', `weight: ${n} `));
				await until(`change ${n}`, () => seen.length > before);
				latencies.push(seen[before].at - at);
				assert.is(source.current().services[0].tasks[0].weight, n);
			};
			const nodes = source.current().nodes;
			await change(2, (t) => writeFileSync(path('real.yaml'), t));
			await change(3, (t) => {
				writeFileSync(path('next.yaml'), t);
				renameSync(path('next.yaml'), path('real.yaml'));
			});
			await change(4, (t) => {
				writeFileSync(path('other.yaml'), t);
				symlinkSync('other.yaml', path('link'));
				renameSync(path('link'), path('mesh.yaml'));
			});
			assert.is(source.current().nodes, nodes);
			assert.equal(errors, []);
			assert.ok(Math.min(...latencies) < 50, `ms: ${latencies.join(' ')}`);
		} finally {
			source.close();
		}
	}),
);

test(
	'a network that takes the VNI of the tunnel between nodes is refused, at start and at a reload',
	inDirectory(async (path) => {
		writeFileSync(path('mesh.yaml'), MESH);
		const errors: string[] = [];
		const events = { onChange: () => undefined, onError: (e: BeelineError) => errors.push(e.message) };
		const message = /mesh\.yaml:\d+:\d+: networks\[0\]\.vni is (5001|5002), the VNI of the tunnel between nodes/;
		assert.match(refusal(() => openFileSource(path('mesh.yaml'), { ...events, meshVni: 5001 })).message, message);
		const source = openFileSource(path('mesh.yaml'), { ...events, meshVni: 5002 });
		try {
			writeFileSync(path('mesh.yaml'), MESH.replace('5001', '5002'));
			await until('the refusal', () => errors.length > 0);
			assert.match(errors[0], message);
			assert.is(source.current().networks[0].vni, 5001);
		} finally {
			source.close();
		}
	}),
);

test(
	'a bad reload keeps what was, says why once, and is over when the file is right again',
	inDirectory(async (path) => {
		writeFileSync(path('mesh.yaml'), MESH);
		const seen: Membership[] = [];
		const errors: string[] = [];
		const source = openFileSource(path('mesh.yaml'), {
			onChange: (m) => seen.push(m),
			onError: (e) => errors.push(e.message),
		});
		try {
			const before = source.current();
			writeFileSync(path('mesh.yaml'), MESH.replace('8080', '70000'));
			await until('the refusal', () => errors.length > 0);
			assert.is(source.current(), before);
			assert.match(errors[0], /mesh\.yaml:8:26: services\[0\]\.ports\[0\]\.published is 70000/);
			assert.ok(source.error());
			source.reload();
			assert.is(errors.length, 1);
			writeFileSync(path('mesh.yaml'), MESH);
			await until('the end of the error', () => source.error() === undefined);
			rmSync(path('mesh.yaml'));
			await until('the second refusal', () => errors.length > 1);
			assert.match(errors[1], /does not exist/);
			assert.is(source.current(), before);
			writeFileSync(path('mesh.yaml'), MESH.replace('8080', '8081'));
			await until('the change', () => seen.length > 0);
			assert.is(source.current().services[0].ports[0].published, 8081);
		} finally {
			source.close();
		}
	}),
);

test(
	'drains, options and nodes are written into the file; comments, order and mode stay',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		writeFileSync(file, MESH);
		chmodSync(file, 0o640);
		setServiceOptions(file, 'web', { returnPath: 'dsr', allow: ['10.0.0.0/8'], trackingWindow: null });
		setBackendDrained(file, 'web~node2~172.18.0.3~80~tcp', true);
		setNodeDrained(file, 'node1', true);
		const m = addNode(file, { name: 'node3', address: '192.168.78.3' });
		assert.equal([m.nodes[0].drained, m.services[0].tasks[1].state], [true, 'draining']);
		const text = readFileSync(file, 'utf8');
		for (const line of [
			'# the mesh',
			'  - { name: node1, address: 192.168.78.1, drain: true } # first',
			'  - { name: node3, address: 192.168.78.3 }',
			'  # the web',
			'    options: { returnPath: dsr, allow: [ 10.0.0.0/8 ] }',
			'      - { node: node2, address: 172.18.0.2, weight: 1 } # one',
			'      - { node: node2, addresses: [ 172.18.0.3, "fd00::3" ], drain: true }',
		])
			assert.ok(text.split('\n').includes(line), `${line}\nin\n${text}`);
		assert.is(statSync(file).mode & 0o777, 0o640);
		setBackendDrained(file, 'web~node2~172.18.0.3~80~tcp', false);
		setNodeDrained(file, 'node1', false);
		assert.is(readFileSync(file, 'utf8').includes('drain'), false);
		removeNode(file, 'node3');
		assert.is(readFileSync(file, 'utf8').includes('node3'), false);
	}),
);

test(
	'a bad edit changes nothing and names the field',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		writeFileSync(file, MESH);
		const codes = (
			[
				() => setServiceOptions(file, 'web', { returnPath: 'x' }),
				() => setServiceOptions(file, 'web', { retrunPath: 'dsr' }),
				() => setServiceOptions(file, 'nosuch', { returnPath: 'dsr' }),
				() => setBackendDrained(file, 'nosuch', true),
				() => setNodeDrained(file, 'nosuch', true),
				() => removeNode(file, 'node2'),
				() => addNode(file, { name: 'node1', address: '1.2.3.4' }),
				() => addNode(file, { name: 'node4', address: '192.168.78.1' }),
				() => createService(file, { name: 'db', ports: [{ published: 1, target: 1, protocol: 'tcp' }], backends: [] }),
				() => removeService(file, 'web'),
			] as const
		).map((f) => {
			const e = refusal(f);
			return `${e.code} ${e.field ?? ''}`.trim();
		});
		assert.equal(codes, [
			'INVALID_CONFIG options.returnPath',
			'INVALID_CONFIG options.retrunPath',
			'NOT_FOUND',
			'NOT_FOUND',
			'NOT_FOUND',
			'CONFLICT',
			'CONFLICT',
			'INVALID_CONFIG address',
			'CONFLICT',
			'CONFLICT',
		]);
		assert.is(readFileSync(file, 'utf8'), MESH);
	}),
);

test(
	'where the file names one node, services are made and removed',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		writeFileSync(file, ONE);
		const m = createService(file, {
			name: 'db',
			ports: [{ published: 5432, target: 5432, protocol: 'tcp' }],
			options: { drainTimeout: '30s' },
			backends: [{ node: 'node1' }],
		});
		assert.is(m.services[1].options.drainTimeoutMs, 30_000);
		assert.equal(
			removeService(file, 'db').services.map((s) => s.name),
			['web'],
		);
		assert.match(
			refusal(() =>
				createService(file, { name: 'x', ports: [{ published: 8080, target: 1, protocol: 'tcp' }], backends: [] }),
			).message,
			/tcp\/8080, which service web publishes already/,
		);
	}),
);

test(
	'what is refused of a new item, or of a change, is named as it was sent: no line of a file that was not written',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		writeFileSync(file, ONE);
		const port = { published: 81, target: 81, protocol: 'tcp' as const };
		for (const [act, field, message] of [
			[
				() => createService(file, { name: 'x', ports: [{ ...port, published: 8080 }], backends: [] }),
				'ports[0].published',
				'ports[0].published is tcp/8080, which service web publishes already: expected each published port once per protocol and address',
			],
			[
				() => createService(file, { name: 'x', ports: [port], backends: [{ node: 'node9' }] }),
				'backends[0].node',
				'backends[0].node is "node9", which is no node: expected one of node1',
			],
			[
				() => addNode(file, { name: 'node2', address: '127.0.0.1' }),
				'address',
				'address is "127.0.0.1": expected an IPv4 address such as 10.0.0.1',
			],
			[
				() => changeService(file, 'web', { backends: { add: [{ node: 'node9' }] } }),
				'backends[3].node',
				'backends[3].node is "node9", which is no node: expected one of node1',
			],
		] as const) {
			const e = refusal(act);
			assert.is(e.message, message);
			assert.is(e.field, field);
		}
		assert.is(readFileSync(file, 'utf8'), ONE);
	}),
);

test('beeline.yaml: defaults', () => {
	const c = parseConfig('/etc/beeline/beeline.yaml', '', 'host1');
	assert.equal(c, {
		file: '/etc/beeline/beeline.yaml',
		node: { name: 'host1' },
		membership: { source: 'file', file: '/etc/beeline/mesh.yaml' },
		http: { listen: [{ host: '127.0.0.1', port: 7980 }], socket: '/run/beeline/beeline.sock' },
		datapath: {
			xdp: 'auto',
			vxlanPort: 4789,
			vni: 12509184,
			returnPath: 'auto',
			staleAfter: 60_000,
			acceptFirewallBypass: false,
			maxFlows: 524288,
			maxTracked: 262144,
			maxHalfOpen: 65536,
			keyPort: 7982,
			keyInterval: 43_200_000,
		},
		gatewayBridge: { enableIcc: false, enableIpMasquerade: true },
		pinRoot: '/sys/fs/bpf/beeline',
		log: { level: 'info' },
	});
	assert.equal(parseConfig('/etc/beeline/beeline.yaml', 'dockerPlugin: {}', 'host1').dockerPlugin, {
		socket: '/run/docker/plugins/beeline.sock',
		stateFile: '/var/lib/beeline/docker-plugin.json',
	});
});

test(
	'ports, backends and replicas are changed in the file, and its comments stay',
	inDirectory((path) => {
		const file = path('mesh.yaml');
		const text = [
			'nodes: [ { name: node1, address: 10.0.0.1 } ]',
			'services:',
			'  - name: web',
			'    ports:',
			'      - { published: 8080, target: 80 } # the old one',
			'    backends:',
			'      - { node: node1, address: 172.18.0.2 } # first rack',
			'      - { node: node1, address: 172.18.0.3 } # second rack',
			'',
		];
		writeFileSync(file, text.join('\n'));
		changeService(file, 'web', {
			ports: { add: [{ published: 8443, target: 443, protocol: 'tcp' }] },
			backends: { remove: [{ node: 'node1', address: '172.18.0.2' }], add: [{ node: 'node1', weight: 2 }] },
		});
		assert.is(
			readFileSync(file, 'utf8'),
			[
				...text.slice(0, 5),
				'      - { published: 8443, target: 443, protocol: tcp }',
				text[5],
				text[7],
				'      - { node: node1, weight: 2 }',
				'',
			].join('\n'),
		);
		const m = changeService(file, 'web', { replicas: 1 });
		assert.equal(
			m.services[0].tasks.map((t) => t.state),
			['active', 'draining'],
		);
		assert.match(
			refusal(() => changeService(file, 'web', { replicas: 3 })).message,
			/has 2 backends, and Beeline starts no/,
		);
		writeFileSync(file, MESH);
		assert.match(
			refusal(() => changeService(file, 'web', { ports: { remove: [{ target: 80 }] } })).message,
			/this agent can write only its own copy/,
		);
	}),
);

for (const [what, text, message] of [
	[
		'an unknown key',
		'datapath: { vnii: 1 }',
		'b.yaml:1:13: datapath.vnii is an unknown key: expected one of xdp, vxlanPort, vni, returnPath, staleAfter, acceptFirewallBypass, maxFlows, maxTracked, maxHalfOpen, secretFile, keyPort, keyInterval',
	],
	[
		'a plugin socket that no engine finds',
		'dockerPlugin: { socket: beeline.sock }',
		'b.yaml:1:25: dockerPlugin.socket is "beeline.sock": expected an absolute path that ends in .sock',
	],
	[
		'networks for Docker from Docker',
		'membership: { source: docker }\ndockerPlugin: {}',
		'b.yaml:2:15: dockerPlugin gives Docker the networks of the membership, and with membership.source docker there are only its own: expected source file or etcd, or no such key',
	],
	['a VNI out of range', 'datapath: { vni: 0 }', 'b.yaml:1:18: datapath.vni is 0: expected a VNI from 1 to 16777215'],
	[
		'listening beyond loopback without a token',
		'http: { listen: ["0.0.0.0:7980"] }',
		'b.yaml:1:18: http.listen[0] is 0.0.0.0:7980, beyond loopback, without a token: expected http.tokenFile, or 127.0.0.1',
	],
	[
		'a subnet with host bits',
		'gatewayBridge: { subnet: 172.30.0.1/16 }',
		'b.yaml:1:26: gatewayBridge.subnet is "172.30.0.1/16": expected 172.30.0.0/16 without host bits',
	],
	[
		'an unknown source',
		'membership: { source: consul }',
		'b.yaml:1:23: membership.source is "consul": expected file, docker or etcd',
	],
	[
		'etcd without addresses',
		'membership: { source: etcd }',
		'b.yaml:1:1: membership.endpoints is missing: expected addresses of etcd such as [http://10.0.0.1:2379]',
	],
	[
		'an address of etcd with a path',
		'membership: { source: etcd, endpoints: ["http://10.0.0.1:2379/v3"] }',
		'b.yaml:1:41: membership.endpoints[0] is "http://10.0.0.1:2379/v3": expected an address of etcd such as http://10.0.0.1:2379 or https://etcd1:2379',
	],
	[
		'a prefix with a slash behind it',
		'membership: { source: etcd, endpoints: ["http://10.0.0.1:2379"], prefix: /beeline/ }',
		'b.yaml:1:74: membership.prefix is "/beeline/": expected a path such as /beeline, without / at its end',
	],
	[
		'certificates of TLS where there is none',
		'membership: { source: etcd, endpoints: ["http://10.0.0.1:2379"], ca: ca.pem }',
		'b.yaml:1:66: membership.ca is for TLS, and no endpoint begins with https://: expected https:// there',
	],
	[
		'a certificate without its key',
		'membership: { source: etcd, endpoints: ["https://10.0.0.1:2379"], cert: c.pem }',
		'b.yaml:1:67: membership.cert stands alone: expected both cert and key, or none',
	],
	[
		'a user without a password',
		'membership: { source: etcd, endpoints: ["http://10.0.0.1:2379"], user: beeline }',
		'b.yaml:1:66: membership.user stands alone: expected both user and passwordFile, or none',
	],
	[
		'a key of etcd with another source',
		'membership: { source: file, endpoints: ["http://10.0.0.1:2379"] }',
		'b.yaml:1:29: membership.endpoints is of source etcd, and source is file: expected source: etcd, or no such key',
	],
	[
		'a key of another source with etcd',
		'membership: { source: etcd, endpoints: ["http://10.0.0.1:2379"], file: mesh.yaml }',
		'b.yaml:1:66: membership.file is not of source etcd: expected no such key',
	],
	[
		'a bad address to listen on',
		'http: { listen: ["localhost"] }',
		'b.yaml:1:18: http.listen[0] is "localhost": expected an address and a port such as 127.0.0.1:7980 or [::1]:7980',
	],
	[
		'a relative pinRoot',
		'pinRoot: beeline',
		'b.yaml:1:10: pinRoot is "beeline": expected an absolute path on a BPF file system',
	],
	[
		'the root of the BPF file system as pinRoot',
		'pinRoot: /sys/fs/bpf/',
		'b.yaml:1:10: pinRoot is "/sys/fs/bpf/": expected an absolute path on a BPF file system',
	],
	[
		'an address to listen on twice',
		'http: { listen: ["127.0.0.1:7980", "127.0.0.1:7980"] }',
		'b.yaml:1:36: http.listen[1] is 127.0.0.1:7980 a second time: expected each address once',
	],
	[
		'a socket whose path is too long for the kernel',
		`http: { socket: /run/${'x'.repeat(110)} }`,
		'b.yaml:1:17: http.socket is 115 bytes long: expected a path of at most 107',
	],
	[
		'one port for VXLAN and for keys',
		'datapath: { keyPort: 4789 }',
		'b.yaml:1:22: datapath.keyPort is 4789, as datapath.vxlanPort is: expected another port',
	],
	[
		'an uplink named twice',
		'uplinks: [eth0, eth0]',
		'b.yaml:1:17: uplinks[1] is eth0 a second time: expected each uplink once',
	],
] as const)
	test(`beeline.yaml: ${what} is refused`, () => {
		assert.is(refusal(() => parseConfig('b.yaml', text, 'h')).message, message);
	});

test('beeline.yaml: beyond loopback with a token is accepted', () => {
	const c = parseConfig('/x/b.yaml', 'http: { listen: ["0.0.0.0:7980", "[::]:7980"], tokenFile: token }', 'h');
	assert.equal(c.http.listen, [
		{ host: '0.0.0.0', port: 7980 },
		{ host: '::', port: 7980 },
	]);
	assert.is(c.http.tokenFile, '/x/token');
});

test(
	'beeline.yaml: values are written back with comments kept, and bad ones are not',
	inDirectory((path) => {
		const file = path('beeline.yaml');
		writeFileSync(file, '# mine\ndatapath:\n  returnPath: auto # measured\n');
		assert.is(
			updateConfig(file, { 'datapath.returnPath': 'tunnel', 'log.level': 'debug' }).datapath.returnPath,
			'tunnel',
		);
		assert.is(readFileSync(file, 'utf8'), '# mine\ndatapath:\n  returnPath: tunnel # measured\nlog:\n  level: debug\n');
		assert.match(
			refusal(() => updateConfig(file, { 'datapath.returnPath': 'x' })).message,
			/datapath\.returnPath is "x": expected auto, dsr or tunnel/,
		);
		assert.is(loadConfig(file).log.level, 'debug');
		assert.is(refusal(() => loadConfig(path('none.yaml'))).code, 'READ_FAILED');
	}),
);

test.run();
