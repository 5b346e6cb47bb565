/*
 * The etcd source against a real etcd on loopback. Documents are written by etcdctl, another program than ours.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { codeOf, sentence } from '../../src/errors.js';
import {
	type EtcdMemory,
	type EtcdSource,
	type EtcdSourceOptions,
	openEtcdSource,
} from '../../src/mesh/sources/etcd.js';
import { createEtcd, endOf, type KeyValue } from '../../src/mesh/sources/etcd-client.js';
import { parseMembership } from '../../src/mesh/sources/file.js';
import type { Membership } from '../../src/mesh/types.js';
import { cannotRunEtcd, EtcdServer, makeCertificates, Wire } from '../support/etcd.js';
import { scenario } from '../support/scenario.js';
import { waitFor } from '../support/wait.js';

interface Opened {
	readonly source: EtcdSource;
	readonly changes: Membership[];
	readonly errors: string[];
	readonly log: string[];
}

/** Those that a failed test left open keep the process alive. */
const sources = new Set<EtcdSource>();
const closeAll = () => Promise.all([...sources].map((s) => s.close()));

let prefixes = 0;
/** Each test has keys of its own. */
const fresh = () => `/t${++prefixes}/beeline`;

function memory(kept?: readonly KeyValue[]): EtcdMemory & { kept: readonly KeyValue[] | undefined } {
	const m = {
		kept,
		read: () => m.kept,
		write(documents: readonly KeyValue[]) {
			m.kept = documents;
		},
	};
	return m;
}

async function open(
	options: EtcdSourceOptions,
	more: { memory?: EtcdMemory; lookMs?: number; stop?: AbortSignal; meshVni?: number } = {},
): Promise<Opened> {
	const opened = { changes: [] as Membership[], errors: [] as string[], log: [] as string[] };
	const source = await openEtcdSource(
		{
			options,
			memory: more.memory ?? memory(),
			log: (level, text) => opened.log.push(`${level} ${text}`),
			...(more.lookMs === undefined ? {} : { lookMs: more.lookMs }),
			...(more.meshVni === undefined ? {} : { meshVni: more.meshVni }),
		},
		{
			onChange: (m) => opened.changes.push(m),
			onSame: () => undefined,
			onError: (e) => opened.errors.push(e.message),
		},
		more.stop,
	);
	sources.add(source);
	return { source, ...opened };
}

/** What may mend itself is waited for, and said. */
async function waitsFor(options: EtcdSourceOptions, reason: RegExp): Promise<void> {
	const stop = new AbortController();
	const log: string[] = [];
	const waiting = openEtcdSource(
		{ options, memory: memory(), log: (_level, text) => log.push(text) },
		{ onChange: () => undefined, onSame: () => undefined, onError: () => undefined },
		stop.signal,
	).catch(codeOf);
	await waitFor('the reason', () => log.some((l) => reason.test(l))).catch((e: Error) => {
		throw new Error(`${e.message}: ${log.join('; ')}`);
	});
	stop.abort();
	assert.is(await waiting, 'STOPPED');
}

const web = (more: object = {}) => ({
	ports: [{ published: 8080, target: 80 }],
	backends: [{ node: 'n1', address: '172.18.0.2' }],
	...more,
});
const names = (m: Membership) => m.services.map((s) => s.name);
const sees = (source: EtcdSource, what: string, condition: (m: Membership) => unknown, limitMs = 10_000) =>
	waitFor(what, () => condition(source.current()), limitMs);

function twoNodes(etcd: EtcdServer, prefix: string): void {
	etcd.put(`${prefix}/nodes/n1`, { address: '192.168.78.1' });
	etcd.put(`${prefix}/nodes/n2`, { address: '192.168.78.2' });
}

scenario(
	'etcd source',
	cannotRunEtcd(),
	async () => ({ etcd: await EtcdServer.start() }),
	async ({ etcd }) => {
		await closeAll();
		await etcd.close();
	},
	(test) => {
		test('the same documents give the same membership as the file', async ({ etcd }) => {
			const prefix = fresh();
			const mesh = {
				nodes: [
					{ name: 'n1', address: '192.168.78.1' },
					{ name: 'n2', address: '192.168.78.2', drain: true },
				],
				services: [
					{
						name: 'dns',
						ports: [{ published: 53, target: 53, protocol: 'udp' }],
						backends: [{ node: 'n2' }],
					},
					{
						name: 'web',
						ports: [{ published: 8080, target: 80 }],
						options: { returnPath: 'tunnel', trackingWindow: '1h', allow: ['10.0.0.0/8'] },
						backends: [
							{ node: 'n1', address: '172.18.0.2', weight: 3 },
							{ node: 'n2', addresses: ['172.18.0.3', 'fd00::3'], drain: true },
						],
					},
				],
				networks: [{ name: 'red', subnet: '10.44.0.0/24', vni: 5001, attachable: true, options: { mtu: 1450 } }],
			};
			for (const kind of ['nodes', 'services', 'networks'] as const)
				for (const { name, ...document } of mesh[kind]) etcd.put(`${prefix}/${kind}/${name}`, document);
			const { source } = await open({ endpoints: [etcd.url], prefix });
			const fromFile = parseMembership('mesh.yaml', JSON.stringify(mesh));
			const { networks, ...rest } = source.current();
			assert.equal(rest, { nodes: fromFile.nodes, services: fromFile.services });
			assert.equal(
				networks,
				// A file's agents have no way to give out single addresses, so each owns a slice.
				fromFile.networks.map(({ options: { slices: _slices, ...options }, ...n }) => ({ ...n, options })),
			);
			assert.equal(source.problems(), []);
			await source.close();
		});

		test('a document that is written, changed or removed is followed; what did not change stays the same object', async ({
			etcd,
		}) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web());
			// No look of its own within the test: the watch alone tells.
			const { source, changes } = await open({ endpoints: [etcd.url], prefix }, { lookMs: 600_000 });
			assert.equal(names(source.current()), ['web']);
			const before = source.current().services[0];
			etcd.put(`${prefix}/services/dns`, 'ports: [{ published: 53, target: 53, protocol: udp }] # YAML, too');
			await sees(source, 'dns', (m) => names(m).join() === 'dns,web');
			assert.is(source.current().services[1], before);
			etcd.put(`${prefix}/services/web`, web({ options: { prefer: 'local' } }));
			await sees(source, 'the option', (m) => m.services[1]?.options.prefer === 'local');
			etcd.put(`${prefix}/nodes/n2`, { address: '192.168.78.2', drain: true });
			await sees(source, 'the drain', (m) => m.nodes[1]?.drained);
			etcd.ctl('del', `${prefix}/services/dns`);
			await sees(source, 'dns to go', (m) => names(m).join() === 'web');
			assert.is(changes.at(-1), source.current());
			etcd.put('/elsewhere/beeline/services/x', web());
			await source.close();
		});

		test('hundreds of keys come in pages, and a burst of changes in few lists', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			const direct = createEtcd({ endpoints: [etcd.url] });
			const put = async (from: number, to: number, target: number) => {
				for (let i = from; i < to; i += 100)
					await direct.txn(
						[],
						Array.from({ length: Math.min(100, to - i) }, (_, k) => ({
							put: `${prefix}/services/s${i + k}`,
							value: JSON.stringify({ ports: [{ published: 10_000 + i + k, target }] }),
						})),
					);
			};
			await put(0, 1300, 80);
			const { source, changes } = await open({ endpoints: [etcd.url], prefix }, { lookMs: 600_000 });
			assert.is(source.current().services.length, 1300);
			await put(0, 700, 81);
			await sees(source, 'all changes', (m) => m.services.filter((s) => s.ports[0]?.target === 81).length === 700);
			assert.ok(changes.length <= 7, `${changes.length} changes`);
			direct.close();
			await source.close();
		});

		test('etcd compacts while the agent is cut off: it lists anew and misses nothing', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/gone`, web());
			const wire = await Wire.to(etcd.port);
			const { source, errors } = await open({ endpoints: [`http://127.0.0.1:${wire.port}`], prefix });
			wire.cut();
			await waitFor('the loss to be noticed', () => source.error());
			assert.match(source.error()?.message ?? '', /closed the connection/);
			assert.equal(names(source.current()), ['gone'], 'a failed list is no empty list');
			etcd.ctl('del', `${prefix}/services/gone`);
			for (let i = 0; i < 5; i++) etcd.put(`${prefix}/services/web`, web({ options: { drainTimeout: `${i + 1}s` } }));
			const revision = JSON.parse(etcd.ctl('get', prefix, '-w', 'json')).header.revision as number;
			etcd.ctl('compaction', String(revision));
			wire.mend();
			await sees(source, 'the present state', (m) => names(m).join() === 'web');
			assert.is(source.current().services[0]?.options.drainTimeoutMs, 5000);
			await waitFor('the error to go', () => source.error() === undefined);
			assert.is(errors.length, 1, errors.join('\n'));
			etcd.put(`${prefix}/services/more`, web({ ports: [{ published: 1, target: 1 }] }));
			await sees(source, 'what comes after', (m) => names(m).join() === 'more,web');
			await source.close();
			wire.close();
		});

		test('a watch from a compacted revision says so', async ({ etcd }) => {
			const prefix = fresh();
			etcd.put(`${prefix}/nodes/n1`, { address: '192.168.78.1' });
			const revision = JSON.parse(etcd.ctl('get', prefix, '-w', 'json')).header.revision as number;
			etcd.put(`${prefix}/nodes/n1`, { address: '192.168.78.2' });
			etcd.ctl('compaction', String(revision + 1));
			const client = createEtcd({ endpoints: [etcd.url] });
			const error = await new Promise<unknown>((resolve) => {
				client.watch(
					{ key: `${prefix}/`, end: endOf(`${prefix}/`), from: revision },
					{ onOpen: () => undefined, onEvent: () => undefined, onEnd: resolve },
				);
			});
			assert.is(codeOf(error), 'ETCD_COMPACTED');
			client.close();
		});

		test('kill -9 of etcd: the last state stays; restarted, it is followed again', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web());
			const { source, changes } = await open({ endpoints: [etcd.url], prefix });
			await etcd.kill();
			await waitFor('the loss to be noticed', () => source.error());
			assert.match(source.error()?.message ?? '', /^etcd http:\/\/127\.0\.0\.1:\d+: connection refused$/);
			assert.equal(names(source.current()), ['web']);
			await etcd.launch();
			etcd.put(`${prefix}/services/dns`, web({ ports: [{ published: 53, target: 53 }] }));
			await sees(source, 'dns', (m) => names(m).join() === 'dns,web');
			assert.is(source.error(), undefined);
			assert.is(changes.length, 1);
			await source.close();
		});

		test('etcd holds its connections and answers nothing: noticed by the next look', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			const { source } = await open({ endpoints: [etcd.url], prefix, timeoutMs: 500 }, { lookMs: 100 });
			etcd.freeze(true);
			await waitFor('the loss to be noticed', () => source.error());
			assert.match(source.error()?.message ?? '', /no answer in 0.5 s/);
			etcd.freeze(false);
			etcd.put(`${prefix}/services/web`, web());
			await sees(source, 'web', (m) => names(m).join() === 'web');
			await source.close();
		});

		test('an endpoint that does not answer is left for another', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			const wire = await Wire.to(etcd.port);
			const { source } = await open({ endpoints: [`http://127.0.0.1:${wire.port}`, etcd.url], prefix });
			wire.cut();
			etcd.put(`${prefix}/services/web`, web());
			await sees(source, 'web', (m) => names(m).join() === 'web');
			etcd.put(`${prefix}/services/dns`, web({ ports: [{ published: 53, target: 53 }] }));
			await sees(source, 'dns', (m) => names(m).join() === 'dns,web');
			assert.is(source.error(), undefined);
			await source.close();
			wire.close();
		});

		test('an etcd that forgot everything empties nothing; filled again, it is followed', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web());
			const { source } = await open({ endpoints: [etcd.url], prefix });
			await etcd.wipe();
			await waitFor('the refusal', () => /names no node/.test(source.error()?.message ?? ''));
			assert.equal(names(source.current()), ['web']);
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web({ options: { prefer: 'local' } }));
			await sees(source, 'the new state', (m) => m.services[0]?.options.prefer === 'local');
			assert.is(source.error(), undefined);
			await source.close();
		});

		test('a bad document is reported, and what it said before stays, also over a restart', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web());
			const kept = memory();
			const first = await open({ endpoints: [etcd.url], prefix }, { memory: kept });
			const log = first.log;
			etcd.put(`${prefix}/services/web`, web({ ports: [{ published: 70_000, target: 80 }] }));
			etcd.put(`${prefix}/services/new`, web({ ports: [{ published: 1, target: 1 }], colour: 'red' }));
			etcd.put(`${prefix}/services/a/b`, web());
			etcd.put(`${prefix}/services/ok`, web({ ports: [{ published: 81, target: 80 }] }));
			etcd.put(`${prefix}/nodes/n2`, '{');
			const check = (source: EtcdSource) => {
				assert.equal(names(source.current()), ['ok', 'web']);
				assert.equal(source.current().services[1]?.ports, [{ published: 8080, target: 80, protocol: 'tcp' }]);
				assert.is(source.current().nodes.length, 2);
				const [node, ab, neu, port, ...more] = source.problems();
				assert.match(node ?? '', /nodes\/n2: .*not YAML.*\(what it said before stays in force\)$/);
				assert.match(ab ?? '', /services\/a\/b: is no key of a node, service, network or address/);
				assert.match(neu ?? '', /services\/new: colour is an unknown key: expected one of .* \(it is ignored\)$/);
				assert.match(
					port ?? '',
					/services\/web: ports\[0\]\.published is 70000: expected a port from 1 to 65535 \(what it said before stays in force\)$/,
				);
				assert.equal(more, []);
			};
			await waitFor('all to be seen', () => first.source.problems().length === 4);
			check(first.source);
			assert.is(log.filter((l) => /70000/.test(l)).length, 1, 'once');
			await first.source.close();
			const again = await open({ endpoints: [etcd.url], prefix }, { memory: kept });
			check(again.source);
			etcd.put(`${prefix}/services/web`, web());
			etcd.put(`${prefix}/nodes/n2`, { address: '192.168.78.3' });
			await waitFor('the reports to go', () => again.source.problems().length === 2);
			assert.is(again.source.current().nodes[1]?.address, '192.168.78.3');
			await again.source.close();
		});

		test('host bits in a prefix are cleared and told: without its document a service would be gone', async ({
			etcd,
		}) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web({ options: { allow: ['10.1.2.3/8', 'fd00::/16'], deny: ['10.9.9.9'] } }));
			etcd.put(`${prefix}/networks/red`, {
				subnet: '10.44.0.1/24',
				ipRange: '10.44.0.130/25',
				subnet6: 'fd00:44::1/64',
				slices: { n1: '10.44.0.1/26' },
				vni: 5001,
			});
			etcd.put(`${prefix}/networks/bad`, { subnet: '10.45.0.1/40', vni: 5002 });
			etcd.put(`${prefix}/networks/odd`, { subnet: 7, slices: ['10.45.0.1/24'], vni: 5003 });
			const { source } = await open({ endpoints: [etcd.url], prefix });
			const { services, networks } = source.current();
			assert.equal(
				[services[0]?.options.allow, services[0]?.options.deny],
				[['10.0.0.0/8', 'fd00::/16'], ['10.9.9.9/32']],
			);
			assert.equal(
				networks.map((n) => [n.name, n.subnet, n.ipRange, n.subnet6, n.options.slices]),
				[['red', '10.44.0.0/24', '10.44.0.128/25', 'fd00:44::/64', { n1: '10.44.0.0/26' }]],
			);
			const [bad, odd, ...told] = source.problems().map((p) => p.slice(prefix.length));
			assert.match(bad ?? '', /^\/networks\/bad: subnet is "10\.45\.0\.1\/40": expected a prefix .*\(it is ignored\)$/);
			assert.match(odd ?? '', /^\/networks\/odd: subnet is 7: expected a prefix .*\(it is ignored\)$/);
			assert.equal(told, [
				'/networks/red: subnet is "10.44.0.1/24": expected 10.44.0.0/24 without host bits (it is read as 10.44.0.0/24)',
				'/networks/red: subnet6 is "fd00:44::1/64": expected fd00:44::/64 without host bits (it is read as fd00:44::/64)',
				'/networks/red: ipRange is "10.44.0.130/25": expected 10.44.0.128/25 without host bits (it is read as 10.44.0.128/25)',
				'/networks/red: slices.n1 is "10.44.0.1/26": expected 10.44.0.0/26 without host bits (it is read as 10.44.0.0/26)',
				'/services/web: options.allow[0] is "10.1.2.3/8": expected 10.0.0.0/8 without host bits, or 10.1.2.3 for that address alone (it is read as 10.0.0.0/8)',
			]);
			await source.close();
		});

		test('a network with the VNI of the tunnel between nodes is ignored, and a writer is refused', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/networks/red`, { subnet: '10.44.0.0/24', vni: 77 });
			etcd.put(`${prefix}/networks/blue`, { subnet: '10.45.0.0/24', vni: 78 });
			const kept = memory();
			const { source } = await open({ endpoints: [etcd.url], prefix }, { meshVni: 77, memory: kept });
			const check = ({ current, problems }: EtcdSource) => {
				assert.equal(
					current().networks.map((n) => n.name),
					['blue'],
				);
				assert.equal(problems(), [
					`${prefix}/networks/red: vni is 77, that of the tunnel between nodes (datapath.vni): expected another (the network is ignored)`,
				]);
			};
			check(source);
			const e = await source.store.createNetwork('green', { subnet: '10.46.0.0/24', vni: 77 }).catch((x) => x);
			assert.equal(
				[codeOf(e), e.message, e.field],
				[
					'INVALID_CONFIG',
					'network green vni is 77, that of the tunnel between nodes (datapath.vni): expected another',
					'vni',
				],
			);
			await source.store.createNetwork('green', { subnet: '10.46.0.0/24', vni: 79 });
			await source.store.removeNetwork('green');
			await source.close();
			await etcd.kill();
			const remembered = await open({ endpoints: [etcd.url], prefix }, { meshVni: 77, memory: kept });
			check(remembered.source);
			await remembered.source.close();
			await etcd.launch();
		});

		test('documents that contradict each other: the older key keeps what both want', async ({ etcd }) => {
			const prefix = fresh();
			etcd.put(`${prefix}/nodes/n2`, { address: '192.168.78.1' });
			etcd.put(`${prefix}/nodes/n1`, { address: '192.168.78.1' });
			etcd.put(`${prefix}/nodes/n3`, { address: '192.168.78.3' });
			etcd.put(`${prefix}/services/z`, web({ backends: [{ node: 'n3' }, { node: 'n1' }, { node: 'n9' }] }));
			etcd.put(
				`${prefix}/services/a`,
				web({
					ports: [
						{ published: 8080, target: 1 },
						{ published: 8081, target: 2 },
					],
					backends: [],
				}),
			);
			etcd.put(`${prefix}/services/exact`, web({ options: { addresses: ['10.0.0.1'] }, backends: [] }));
			// Written last, and still the older key.
			etcd.put(`${prefix}/services/z`, web({ backends: [{ node: 'n3' }, { node: 'n1' }, { node: 'n9' }] }));
			const { source } = await open({ endpoints: [etcd.url], prefix });
			const m = source.current();
			assert.equal(
				m.nodes.map((n) => n.name),
				['n2', 'n3'],
			);
			assert.equal(
				m.services.map((s) => [s.name, s.ports.map((p) => p.published), s.tasks.map((t) => t.node)]),
				[
					['a', [8081], []],
					['exact', [8080], []],
					['z', [8080], ['n3']],
				],
			);
			assert.equal(source.problems(), [
				`${prefix}/nodes/n1: address is 192.168.78.1, which is node n2's (the node is ignored)`,
				`${prefix}/services/a: publishes tcp/8080, which service z published before (the port is left out)`,
				`${prefix}/services/z: has backends on n1, which is no node (they are left out)`,
				`${prefix}/services/z: has backends on n9, which is no node (they are left out)`,
			]);
			await source.close();
		});

		test('etcd away at a start: the remembered state is taken; without one it is waited for', async ({ etcd }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			etcd.put(`${prefix}/services/web`, web());
			const kept = memory();
			await (await open({ endpoints: [etcd.url], prefix }, { memory: kept })).source.close();
			await etcd.kill();
			const { source, log } = await open({ endpoints: [etcd.url], prefix }, { memory: kept });
			assert.equal(names(source.current()), ['web']);
			assert.match(source.error()?.message ?? '', /connection refused/);
			assert.ok(
				log.some((l) => /going by the membership that was known last/.test(l)),
				log.join('\n'),
			);
			const stop = new AbortController();
			const waiting = open({ endpoints: [etcd.url], prefix }, { stop: stop.signal });
			await new Promise((resolve) => setTimeout(resolve, 300));
			stop.abort();
			assert.is(codeOf(await waiting.catch((e: unknown) => e)), 'STOPPED');
			const late = open({ endpoints: [etcd.url], prefix });
			await etcd.launch();
			const came = await late;
			assert.equal(names(came.source.current()), ['web']);
			await came.source.close();
			await waitFor('the error to go', () => source.error() === undefined, 15_000);
			await source.close();
		});

		test('no node at all, nobody there, no etcd there: one sentence each', async ({ etcd }) => {
			const why = async (options: Partial<EtcdSourceOptions>) =>
				sentence(
					await open({ endpoints: [etcd.url], prefix: fresh(), ...options }).then(
						({ source }) => source.close().then(() => 'opened'),
						(e: unknown) => e,
					),
				);
			assert.match(
				await why({}),
				/^etcd http:.* under \/t\d+\/beeline\/ names no node: add this one with beeline node add/,
			);
			await waitsFor(
				{ endpoints: [etcd.url.replace('http', 'https')], prefix: fresh() },
				/if it speaks no TLS, write http:\/\/; waiting for it$/,
			);
			assert.match(
				await why({ ca: '/nowhere/ca.pem', endpoints: ['https://127.0.0.1:1'] }),
				/ca\.pem: it does not exist/,
			);
		});
	},
);

/** Newer gateways (etcd 3.5, and 3.6 with grpc-gateway 2) say the same in other words than 3.4. */
scenario(
	'other gateways',
	undefined,
	async () => {
		let answer: { status: number; body: unknown } = { status: 200, body: {} };
		const server = createServer((_req, res) => {
			res.writeHead(answer.status, { 'content-type': 'application/json' });
			res.end(typeof answer.body === 'string' ? answer.body : `${JSON.stringify(answer.body)}\n`);
		});
		await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
		const client = createEtcd({
			endpoints: [`http://127.0.0.1:${(server.address() as { port: number }).port}`],
			timeoutMs: 1000,
		});
		const say = (status: number, body: unknown) => {
			answer = { status, body };
		};
		return { server, client, say };
	},
	({ server, client }) => {
		client.close();
		server.close();
	},
	(test) => {
		for (const [what, status, body, code] of [
			[
				'compacted (3.6)',
				400,
				{ code: 11, message: 'etcdserver: mvcc: required revision has been compacted', details: [] },
				'ETCD_COMPACTED',
			],
			[
				'permission denied (3.5)',
				403,
				{ error: 'etcdserver: permission denied', code: 7, message: 'etcdserver: permission denied' },
				'ETCD_AUTH',
			],
			['no leader', 503, { code: 14, message: 'etcdserver: no leader' }, 'ETCD_AWAY'],
			['a full database', 429, { code: 8, message: 'etcdserver: mvcc: database space exceeded' }, 'ETCD_FULL'],
			['a gateway that is off', 404, '404 page not found', 'ETCD_ANSWER'],
			['something else', 200, '<html>', 'ETCD_ANSWER'],
			['another JSON', 200, {}, 'ETCD_ANSWER'],
		] as const)
			test(`a list answered by: ${what}`, async ({ client, say }) => {
				say(status, body);
				assert.is(codeOf(await client.range({ key: 'a' }).catch((e: unknown) => e)), code);
			});
		for (const [what, body, code] of [
			['compacted', { result: { header: {}, canceled: true, compact_revision: '7' } }, 'ETCD_COMPACTED'],
			['a broken stream', { error: { code: 14, message: 'etcdserver: server stopped', details: [] } }, 'ETCD_AWAY'],
			[
				'a refusal',
				{
					result: {
						created: true,
						canceled: true,
						cancel_reason: 'rpc error: code = PermissionDenied desc = etcdserver: permission denied',
					},
				},
				'ETCD_AUTH',
			],
		] as const)
			test(`a watch answered by: ${what}`, async ({ client, say }) => {
				say(200, body);
				const end = await new Promise<unknown>((resolve) =>
					client.watch(
						{ key: 'a', end: 'b', from: 1 },
						{ onOpen: () => undefined, onEvent: () => undefined, onEnd: resolve },
					),
				);
				assert.is(codeOf(end), code);
			});
	},
);

scenario(
	'etcd of three members',
	cannotRunEtcd(),
	async () => ({ members: await EtcdServer.cluster() }),
	async ({ members }) => {
		await closeAll();
		await Promise.all(members.map((m) => m.close()));
	},
	(test) => {
		test('the member that is spoken to dies: another is followed; the majority dies: the last state stays', async ({
			members,
		}) => {
			const [first, second, third] = members as [EtcdServer, EtcdServer, EtcdServer];
			const prefix = fresh();
			twoNodes(second, prefix);
			second.put(`${prefix}/services/web`, web());
			const endpoints = members.map((m) => m.url);
			const { source } = await open({ endpoints, prefix, timeoutMs: 2000 }, { lookMs: 500 });
			await first.kill();
			// Refused until there is a new leader, if it was that one.
			const dns = JSON.stringify(web({ ports: [{ published: 53, target: 53 }] }));
			await waitFor('a leader', () => second.tryCtl('put', `${prefix}/services/dns`, dns).code === 0, 30_000, 200);
			await sees(source, 'dns', (m) => names(m).join() === 'dns,web', 20_000);
			await waitFor('the error to go', () => source.error() === undefined, 20_000);
			await source.store.removeService('dns');
			await sees(source, 'dns to go', (m) => names(m).join() === 'web');
			await second.kill();
			// What is left holds the keys, but cannot know whether they are the last word.
			const error = await waitFor('the loss to be noticed', () => source.error(), 20_000);
			assert.match(error.message, /^no etcd endpoint answers \(.*connection refused.*; .*\)$/);
			assert.equal(names(source.current()), ['web']);
			assert.is(codeOf(await source.store.removeService('web').catch((e: unknown) => e)), 'ETCD_AWAY');
			await first.launch();
			const more = JSON.stringify(web({ ports: [{ published: 1, target: 1 }] }));
			await waitFor('a leader', () => third.tryCtl('put', `${prefix}/services/more`, more).code === 0, 30_000, 200);
			await sees(source, 'what comes after', (m) => names(m).join() === 'more,web', 20_000);
			await source.close();
		});
	},
);

scenario(
	'etcd behind a proxy that lets no stream through',
	cannotRunEtcd(),
	async () => {
		const etcd = await EtcdServer.start();
		let isOpen = false;
		const proxy = createServer((req, res) => {
			if (req.url === '/v3/watch' && !isOpen) {
				res.writeHead(502);
				res.end('Bad Gateway');
				return;
			}
			const { host: _host, ...headers } = req.headers;
			const on = request(`${etcd.url}${req.url}`, { method: req.method ?? 'POST', headers }, (answer) => {
				res.writeHead(answer.statusCode ?? 500, answer.headers);
				answer.pipe(res);
			});
			on.on('error', () => res.destroy());
			req.pipe(on);
		});
		await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
		const url = `http://127.0.0.1:${(proxy.address() as { port: number }).port}`;
		const mend = () => {
			isOpen = true;
		};
		return { etcd, proxy, url, mend };
	},
	async ({ etcd, proxy }) => {
		await closeAll();
		proxy.closeAllConnections();
		proxy.close();
		await etcd.close();
	},
	(test) => {
		test('changes are seen by lists alone, and it is said', async ({ etcd, url, mend }) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			const { source, log } = await open({ endpoints: [url], prefix });
			const problem = await waitFor('the report', () => source.problems()[0]);
			assert.match(problem, /answered 502 and is no etcd: Bad Gateway: changes are seen only when it is listed anew$/);
			etcd.put(`${prefix}/services/web`, web());
			await sees(source, 'web', (m) => names(m).join() === 'web');
			await new Promise((resolve) => setTimeout(resolve, 1500));
			assert.is(log.filter((l) => /changes are seen only/.test(l)).length, 1, log.join('\n'));
			assert.is(source.error(), undefined);
			mend();
			await waitFor('the report to go', () => source.problems().length === 0, 20_000);
			await source.close();
		});
	},
);

scenario(
	'etcd with TLS',
	cannotRunEtcd(),
	async () => {
		const directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-tls-`));
		const own = makeCertificates(directory, 'own');
		const other = makeCertificates(directory, 'other', '10.9.9.9');
		const etcd = await EtcdServer.start({ tls: { ...own, clients: true } });
		return { directory, own, other, etcd };
	},
	async ({ etcd, directory }) => {
		await closeAll();
		await etcd.close();
		rmSync(directory, { recursive: true });
	},
	(test) => {
		test('with the right certificates it works; what is wrong is one sentence', async ({
			etcd,
			own,
			other,
			directory,
		}) => {
			const prefix = fresh();
			twoNodes(etcd, prefix);
			const { ca, cert, key } = own;
			const { source } = await open({ endpoints: [etcd.url], prefix, ca, cert, key });
			etcd.put(`${prefix}/services/web`, web());
			await sees(source, 'web', (m) => names(m).join() === 'web');
			await source.close();
			const why = async (options: Partial<EtcdSourceOptions>) =>
				sentence(
					await open({ endpoints: [etcd.url], prefix, ca, cert, key, ...options }).then(
						({ source }) => source.close().then(() => 'opened'),
						(e: unknown) => e,
					),
				);
			const { ca: _ca, cert: _cert, key: _key, ...none } = { ca, cert, key };
			const without = async (options: EtcdSourceOptions) =>
				sentence(
					await open(options).then(
						() => 'opened',
						(e: unknown) => e,
					),
				);
			assert.match(
				await without({ ...none, endpoints: [etcd.url], prefix }),
				/signed by nobody that this machine knows: set membership\.ca$/,
			);
			assert.match(await why({ ca: other.ca }), /is not signed by an authority in .*other-ca\.pem$/);
			assert.match(
				await without({ endpoints: [etcd.url], prefix, ca }),
				/wants a client certificate: set membership\.cert and membership\.key$/,
			);
			assert.match(await why({ cert: other.cert, key: other.key }), /refuses the certificate in .*other-cert\.pem/);
			assert.match(
				await why({ key: other.key }),
				/membership\.cert and membership\.key .*: they do not belong together/,
			);
			writeFileSync(join(directory, 'junk.pem'), 'junk');
			assert.match(await why({ ca: join(directory, 'junk.pem') }), /membership\.ca .*junk\.pem: /);
			await waitsFor(
				{ endpoints: [etcd.url.replace('https', 'http')], prefix },
				/if it speaks TLS, write https:\/\/; waiting for it$/,
			);
			const stranger = await EtcdServer.start({ tls: other });
			assert.match(
				await why({ endpoints: [stranger.url], ca: other.ca }),
				/its certificate is for other names than this one$/,
			);
			await stranger.close();
			// etcd's gateway dials its own port with its own certificate.
			const serversOnly = makeCertificates(directory, 'server', '127.0.0.1', 'serverAuth');
			writeFileSync(join(directory, 'both.pem'), `${readFileSync(serversOnly.ca)}${readFileSync(ca)}`);
			const shy = await EtcdServer.start({
				tls: { ...own, clients: true, serves: serversOnly, trusts: join(directory, 'both.pem') },
			});
			await waitsFor(
				{ endpoints: [shy.url], prefix, ca: serversOnly.ca, cert, key },
				/its gateway cannot reach it: with client-cert-auth etcd's own certificate must be one for clients too .*; waiting for it$/,
			);
			await shy.close();
		});
	},
);

scenario(
	'etcd with users',
	cannotRunEtcd(),
	async () => {
		const etcd = await EtcdServer.start();
		const passwordFile = join(etcd.directory, 'password');
		writeFileSync(passwordFile, 'secret\n');
		return { etcd, passwordFile };
	},
	async ({ etcd }) => {
		await closeAll();
		await etcd.close();
	},
	(test) => {
		test('user and password, turned on while the agent runs; tokens that etcd forgot; refusals in one sentence', async ({
			etcd,
			passwordFile,
		}) => {
			const prefix = '/beeline';
			twoNodes(etcd, prefix);
			const options = { endpoints: [etcd.url], prefix, user: 'beeline', passwordFile };
			const { source } = await open(options, { lookMs: 200 });
			assert.match(source.problems().join(), /authentication is not enabled/);
			etcd.ctl('user', 'add', 'root:root');
			etcd.ctl('user', 'grant-role', 'root', 'root');
			etcd.ctl('user', 'add', 'beeline:secret');
			etcd.ctl('user', 'add', 'nobody:secret');
			etcd.ctl('role', 'add', 'mesh');
			etcd.ctl('role', 'grant-permission', 'mesh', '--prefix=true', 'readwrite', '/beeline/');
			etcd.ctl('user', 'grant-role', 'beeline', 'mesh');
			etcd.ctl('auth', 'enable');
			const root = (...args: string[]) => etcd.ctl('--user', 'root:root', ...args);
			root('put', `${prefix}/services/web`, JSON.stringify(web()));
			await sees(source, 'web', (m) => names(m).join() === 'web');
			await waitFor('the warning to go', () => source.problems().length === 0);
			// Its tokens lie in etcd's memory.
			await etcd
				.kill()
				.then(() => etcd.launch())
				.catch(() => undefined);
			root('put', `${prefix}/services/dns`, JSON.stringify(web({ ports: [{ published: 53, target: 53 }] })));
			await sees(source, 'dns', (m) => names(m).join() === 'dns,web');
			await source.store.drainNode('n2', true);
			assert.match(root('get', '--print-value-only', `${prefix}/nodes/n2`), /"drain":true/);
			await source.close();
			const why = async (o: Partial<EtcdSourceOptions>) =>
				sentence(
					await open({ ...options, ...o }).then(
						(opened) => opened.source.close().then(() => 'opened'),
						(e: unknown) => e,
					),
				);
			const wrong = join(etcd.directory, 'wrong');
			writeFileSync(wrong, 'guess');
			assert.match(await why({ passwordFile: wrong }), /refuses the password of user beeline: look at .*wrong$/);
			assert.match(await why({ user: 'nobody' }), /does not let user nobody do this: etcdctl role grant-permission/);
			const { user: _u, passwordFile: _p, ...anonymous } = options;
			assert.match(
				sentence(
					await open(anonymous).then(
						() => 'opened',
						(e: unknown) => e,
					),
				),
				/wants a user: set membership\.user and membership\.passwordFile$/,
			);
			// One that went by its memory says why it has nothing newer.
			const kept = memory([{ key: `${prefix}/nodes/n1`, value: '{"address":"192.168.78.1"}', create: 2, mod: 2 }]);
			const old = await open({ ...options, passwordFile: wrong }, { memory: kept });
			assert.match(old.source.error()?.message ?? '', /refuses the password/);
			await old.source.close();
		});
	},
);
