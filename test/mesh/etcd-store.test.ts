/*
 * Changes of what etcd keeps, by several writers at once, against a real etcd on loopback.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import * as assert from 'uvu/assert';
import { codeOf, sentence } from '../../src/errors.js';
import { createEtcd, type Etcd } from '../../src/mesh/sources/etcd-client.js';
import { mapDocuments, readDocument } from '../../src/mesh/sources/etcd-map.js';
import { createStore, type EtcdStore } from '../../src/mesh/sources/etcd-store.js';
import { changeService } from '../../src/mesh/sources/service-change.js';
import { cannotRunEtcd, EtcdServer } from '../support/etcd.js';
import { scenario } from '../support/scenario.js';
import { root } from '../support/tools.js';

let prefixes = 0;
const fresh = () => `/s${++prefixes}`;
const why = (p: Promise<unknown>) =>
	p.then(
		() => 'done',
		(e: unknown) => `${codeOf(e)} ${sentence(e)}`,
	);

async function filled(etcd: Etcd): Promise<{ prefix: string; store: EtcdStore }> {
	const prefix = fresh();
	const store = createStore(etcd, prefix);
	await store.addNode({ name: 'n1', address: '192.168.78.1' });
	await store.addNode({ name: 'n2', address: '192.168.78.2' });
	return { prefix, store };
}
const web = {
	ports: [{ published: 8080, target: 80 }],
	backends: [
		{ node: 'n1', address: '172.18.0.2' },
		{ node: 'n2', addresses: ['172.18.0.3', 'fd00::3'] },
		{ node: 'n2' },
	],
};

scenario(
	'etcd store',
	cannotRunEtcd(),
	async () => {
		const server = await EtcdServer.start();
		return { server, etcd: createEtcd({ endpoints: [server.url] }) };
	},
	async ({ server, etcd }) => {
		etcd.close();
		await server.close();
	},
	(test) => {
		test('a writer is refused for host bits in a prefix; one that finds them there may change the rest', async ({
			server,
			etcd,
		}) => {
			const { prefix, store } = await filled(etcd);
			const slip = 'expected 10.0.0.0/8 without host bits, or 10.1.2.3 for that address alone';
			assert.is(
				await why(store.createService('web', { ...web, options: { allow: ['10.1.2.3/8'] } })),
				`INVALID_CONFIG service web options.allow[0] is "10.1.2.3/8": ${slip}`,
			);
			assert.is(
				await why(store.createNetwork('red', { subnet: '10.44.0.1/24', vni: 5001 })),
				'INVALID_CONFIG network red subnet is "10.44.0.1/24": expected 10.44.0.0/24 without host bits',
			);
			server.put(`${prefix}/services/web`, { ...web, options: { allow: ['10.1.2.3/8'] } });
			await store.changeService('web', { options: { prefer: 'local' } });
			await store.drainBackend('web~n2~172.18.0.3~80~tcp', true);
			const e = await store.changeService('web', { options: { deny: ['10.1.2.3/8'] } }).catch((x) => x);
			assert.equal([e.code, e.field], ['INVALID_CONFIG', 'options.deny[0]']);
			await store.changeService('web', { options: { allow: ['10.0.0.0/8'] } });
			assert.equal((server.get(`${prefix}/services/web`) as { options: unknown }).options, {
				allow: ['10.0.0.0/8'],
				prefer: 'local',
			});
		});

		test('services, nodes and networks are written as an operator would write them', async ({ server, etcd }) => {
			const { prefix, store } = await filled(etcd);
			await store.createService('web', web);
			assert.equal(server.get(`${prefix}/services/web`), web);
			await store.changeService('web', {
				options: { prefer: 'local' },
				ports: { add: [{ published: 8443, target: 443 }], remove: [{ target: 80 }] },
				backends: { add: [{ node: 'n1', address: '172.18.0.9', weight: 3 }], remove: [{ node: 'n2' }] },
			});
			assert.equal(server.get(`${prefix}/services/web`), {
				ports: [{ published: 8443, target: 443 }],
				options: { prefer: 'local' },
				backends: [web.backends[0], web.backends[1], { node: 'n1', address: '172.18.0.9', weight: 3 }],
			});
			await store.drainBackend('web~n2~172.18.0.3~443~tcp', true);
			const drains = () =>
				(server.get(`${prefix}/services/web`) as typeof web).backends.map((b) => (b as { drain?: boolean }).drain);
			assert.equal(drains(), [undefined, true, undefined]);
			await store.changeService('web', { replicas: 1 });
			assert.equal(drains(), [undefined, true, true]);
			await store.changeService('web', { replicas: 2 });
			assert.equal(drains(), [undefined, undefined, true]);
			await store.drainNode('n2', true);
			assert.equal(server.get(`${prefix}/nodes/n2`), { address: '192.168.78.2', drain: true });
			await store.drainNode('n2', false);
			assert.equal(server.get(`${prefix}/nodes/n2`), { address: '192.168.78.2' });
			await store.createNetwork('red', { subnet: '10.44.0.0/24', vni: 5001, attachable: true });
			assert.equal(server.get(`${prefix}/networks/red`), { subnet: '10.44.0.0/24', vni: 5001, attachable: true });
			await store.removeNetwork('red');
			await store.removeService('web');
			await store.removeNode('n2');
			assert.is(server.ctl('get', '--prefix', '--keys-only', prefix).trim(), `${prefix}/nodes/n1`);
		});

		test('what does not fit is refused with one sentence and writes nothing', async ({ server, etcd }) => {
			const { prefix, store } = await filled(etcd);
			await store.createService('web', web);
			const before = server.ctl('get', '--prefix', prefix);
			const other = { ports: [{ published: 9000, target: 80 }] };
			for (const [change, expected] of [
				[() => store.createService('web', other), /^CONFLICT service web exists already/],
				[
					() => store.createService('x', { ports: [{ published: 8080, target: 1 }] }),
					/^INVALID_CONFIG service x publishes tcp\/8080, which service web published before$/,
				],
				[
					() => store.createService('x', { ...other, backends: [{ node: 'n9' }] }),
					/has backends on n9, which is no node$/,
				],
				[
					() => store.createService('x', { ports: [] }),
					/^INVALID_CONFIG ports is missing: expected at least one published port, or networks$/,
				],
				[
					() => store.createService('x', { ...other, options: { prefer: 'far' } }),
					/options\.prefer is "far": expected none or local/,
				],
				[() => store.changeService('x', {}), /^NOT_FOUND there is no service "x"/],
				[
					() => store.changeService('web', { ports: { remove: [{ target: 81 }] } }),
					/^NOT_FOUND service web publishes no port 81/,
				],
				[
					() => store.changeService('web', { backends: { remove: [{ node: 'n1', address: '172.18.0.7' }] } }),
					/^NOT_FOUND service web has no backend n1 172\.18\.0\.7/,
				],
				[
					() => store.changeService('web', { replicas: 4 }),
					/^CONFLICT service web has 3 backends, and Beeline starts no processes/,
				],
				[() => store.drainBackend('web~n1~172.18.0.9~80~tcp', true), /^NOT_FOUND there is no backend/],
				[() => store.addNode({ name: 'n1', address: '192.168.78.9' }), /^CONFLICT node n1 exists already/],
				[
					() => store.addNode({ name: 'n3', address: '192.168.78.1' }),
					/^INVALID_CONFIG node n3 address is 192\.168\.78\.1, which is node n1's/,
				],
				[() => store.removeNode('n1'), /^CONFLICT node n1 has backends of service web/],
				[() => store.drainNode('n9', true), /^NOT_FOUND there is no node "n9"/],
				[() => store.allocate('red', { node: 'n1', endpoint: 'a' }), /^NOT_FOUND there is no network "red"/],
			] as const)
				assert.match(await why(change()), expected);
			assert.is(server.ctl('get', '--prefix', prefix), before);
		});

		test('a change that was decided from an older document is refused as stale', async ({ etcd }) => {
			const { store } = await filled(etcd);
			const made = await store.createService('web', web);
			const changed = await store.changeService('web', { options: { prefer: 'local' } }, made);
			assert.match(
				await why(store.changeService('web', { options: { prefer: 'none' } }, made)),
				/^STALE service web changed/,
			);
			assert.match(await why(store.removeService('web', made)), /^STALE/);
			assert.match(await why(store.drainBackend('web~n1~172.18.0.2~80~tcp', true, made)), /^STALE/);
			await store.removeService('web', changed);
		});

		test('of writers that publish the same port at once one wins, whoever they are', async ({ server, etcd }) => {
			const { prefix } = await filled(etcd);
			const clients = Array.from({ length: 4 }, () => createEtcd({ endpoints: [server.url] }));
			const stores = clients.map((c) => createStore(c, prefix));
			const results = await Promise.all(
				stores.flatMap((store, i) =>
					[0, 1, 2].map((k) => why(store.createService(`s${i}${k}`, { ports: [{ published: 7000 + k, target: 80 }] }))),
				),
			);
			assert.is(results.filter((r) => r === 'done').length, 3, results.join('\n'));
			assert.is(results.filter((r) => /^INVALID_CONFIG .* published before$/.test(r)).length, 9, results.join('\n'));
			for (const c of clients) c.close();
		});

		test('changes of one service by many at once are all in it', async ({ server, etcd }) => {
			const { prefix, store } = await filled(etcd);
			await store.createService('web', { ports: [{ published: 8080, target: 80 }] });
			const clients = Array.from({ length: 3 }, () => createEtcd({ endpoints: [server.url] }));
			const stores = clients.map((c) => createStore(c, prefix));
			await Promise.all(
				Array.from({ length: 24 }, (_, i) =>
					stores[i % 3]!.changeService('web', { backends: { add: [{ node: 'n1', address: `172.18.0.${i + 2}` }] } }),
				),
			);
			assert.is((server.get(`${prefix}/services/web`) as { backends: unknown[] }).backends.length, 24);
			for (const c of clients) c.close();
		});

		test('a node is not removed under a service that is created meanwhile', async ({ server, etcd }) => {
			const clients = Array.from({ length: 2 }, () => createEtcd({ endpoints: [server.url] }));
			for (let i = 0; i < 10; i++) {
				const { prefix } = await filled(etcd);
				const [a, b] = clients.map((c) => createStore(c, prefix)) as [EtcdStore, EtcdStore];
				const [created, removed] = await Promise.all([
					why(a.createService('web', { ports: [{ published: 80, target: 80 }], backends: [{ node: 'n2' }] })),
					why(b.removeNode('n2')),
				]);
				assert.ok((created === 'done') !== (removed === 'done'), `${created}; ${removed}`);
			}
			for (const c of clients) c.close();
		});

		test('a service that is removed while it is changed does not come back', async ({ server, etcd }) => {
			const clients = Array.from({ length: 2 }, () => createEtcd({ endpoints: [server.url] }));
			const { prefix } = await filled(etcd);
			const [a, b] = clients.map((c) => createStore(c, prefix)) as [EtcdStore, EtcdStore];
			for (let i = 0; i < 30; i++) {
				await a.createService('web', web);
				const [changed, removed] = await Promise.all([
					why(a.changeService('web', { options: { prefer: 'local' } })),
					why(b.removeService('web')),
				]);
				assert.is(removed, 'done');
				assert.ok(changed === 'done' || /^NOT_FOUND/.test(changed), changed);
				assert.is(server.get(`${prefix}/services/web`), undefined, `${changed}; ${removed}`);
			}
			for (const c of clients) c.close();
		});

		test('an address has one holder; it is asked for again, released, and gone with its node', async ({
			server,
			etcd,
		}) => {
			const { prefix, store } = await filled(etcd);
			await store.createNetwork('red', { subnet: '10.44.0.0/29', vni: 5001 });
			const one = await store.allocate('red', { node: 'n1', endpoint: 'a', wanted: '10.44.0.4' });
			assert.equal(one, { id: 'a', address: '10.44.0.4', aliases: [], node: 'n1', mac: '02:42:0a:2c:00:04' });
			assert.equal(server.get(`${prefix}/networks/red/addresses/10.44.0.4`), {
				node: 'n1',
				endpoint: 'a',
				mac: '02:42:0a:2c:00:04',
			});
			assert.equal(await store.allocate('red', { node: 'n1', endpoint: 'a', wanted: '10.44.0.4' }), one);
			assert.match(
				await why(store.allocate('red', { node: 'n2', endpoint: 'b', wanted: '10.44.0.4' })),
				/^CONFLICT 10\.44\.0\.4 of network red is held by endpoint a on n1/,
			);
			for (const [wanted, expected] of [
				['10.44.1.1', /^INVALID_CONFIG address is "10\.44\.1\.1": expected one of network red, 10\.44\.0\.0\/29$/],
				['10.44.0.0', /reserved/],
				['10.44.0.1', /reserved/],
				['10.44.0.7', /reserved/],
				['fd00::1', /expected one of/],
			] as const)
				assert.match(await why(store.allocate('red', { node: 'n2', endpoint: 'b', wanted })), expected);
			const rest = [];
			for (const endpoint of ['b', 'c', 'd', 'e'])
				rest.push((await store.allocate('red', { node: 'n2', endpoint })).address);
			assert.equal(rest.sort(), ['10.44.0.2', '10.44.0.3', '10.44.0.5', '10.44.0.6']);
			assert.match(
				await why(store.allocate('red', { node: 'n2', endpoint: 'f' })),
				/^CONFLICT network red has no free address in 10\.44\.0\.0\/29 \(5 are held\)/,
			);
			assert.match(await why(store.removeNetwork('red')), /^CONFLICT network red has endpoints, such as 10\.44\.0\.2/);
			assert.match(
				await why(store.release('red', '10.44.0.4', 'z')),
				/^CONFLICT .* held by endpoint a on n1, not by z$/,
			);
			await store.describe('red', '10.44.0.4', 'a', { name: 'db', aliases: ['d'] });
			await store.describe('red', '10.44.0.4', 'a', { name: 'db', aliases: ['d'] });
			assert.equal(server.get(`${prefix}/networks/red/addresses/10.44.0.4`), {
				...{ node: 'n1', endpoint: 'a', mac: '02:42:0a:2c:00:04' },
				...{ name: 'db', aliases: ['d'] },
			});
			assert.match(
				await why(store.describe('red', '10.44.0.4', 'z', { aliases: [] })),
				/^CONFLICT 10\.44\.0\.4 of network red is not held by endpoint z any more$/,
			);
			assert.is(await store.release('red', '10.44.0.4', 'a'), true);
			assert.is(await store.release('red', '10.44.0.4', 'a'), false);
			assert.match(await why(store.describe('red', '10.44.0.4', 'a', { aliases: [] })), /^CONFLICT/);
			await store.removeNode('n2');
			assert.equal(await store.list('red'), []);
			await store.removeNetwork('red');
			await store.createNetwork('blue', {
				subnet: '10.46.0.0/24',
				vni: 5002,
				gateway: '10.46.0.17',
				ipRange: '10.46.0.16/30',
				endpoints: [{ node: 'n1', address: '10.46.0.18' }],
			});
			// .17 is the gateway, .18 in the document, and the rest of the subnet only for who asks for it.
			const blue = (endpoint: string, more: object = {}) => store.allocate('blue', { node: 'n1', endpoint, ...more });
			const two = [await blue('a'), await blue('b')];
			assert.equal(two.map((e) => e.address).sort(), ['10.46.0.16', '10.46.0.19']);
			assert.match(await why(blue('c')), /^CONFLICT network blue has no free address/);
			assert.match(await why(blue('c', { wanted: '10.46.0.17' })), /reserved/);
			assert.match(await why(blue('c', { wanted: '10.46.0.18' })), /reserved/);
			const named = await blue('c', { wanted: '10.46.0.1', name: 'db', aliases: ['d'] });
			assert.is(named.name, 'db');
			assert.equal(
				await store.list('blue'),
				[...two, named].sort((x, y) => (x.address < y.address ? -1 : 1)),
			);
		});

		test('two processes take thousands of addresses at once: none twice, none lost, also when they run out', async ({
			server,
			etcd,
		}) => {
			const { prefix, store } = await filled(etcd);
			// 2045 can be had; of 2600 that are asked for 2080 would stay.
			await store.createNetwork('red', { subnet: '10.44.0.0/21', vni: 5001 });
			const run = (node: string) =>
				promisify(execFile)(
					process.execPath,
					[join(root, 'dist/test/mesh/etcd-allocator.js'), server.url, prefix, 'red', '1300', node],
					{ timeout: 120_000 },
				).then(({ stdout }) => JSON.parse(stdout) as { got: string[]; busy: number; released: number });
			const [a, b] = await Promise.all([run('n1'), run('n2')]);
			const all = [...a.got, ...b.got];
			assert.is(new Set(all).size, all.length, 'an address was given out twice');
			const listed = await store.list('red');
			assert.equal(listed.map((e) => e.address).sort(), all.sort());
			assert.ok(all.length > 1900 && all.length <= 2045, `${all.length}; ${a.busy} and ${b.busy} found none`);
			assert.ok(a.got.length > 500 && b.got.length > 500, `${a.got.length} and ${b.got.length}`);
		});

		test('any order of allocations and releases by two nodes keeps to what a map would say', async ({
			server,
			etcd,
		}) => {
			const other = createEtcd({ endpoints: [server.url] });
			const { prefix, store } = await filled(etcd);
			const stores = [store, createStore(other, prefix)] as const;
			let networks = 0;
			await fc.assert(
				fc.asyncProperty(
					fc.array(
						fc.record({
							who: fc.nat(1),
							release: fc.boolean(),
							endpoint: fc.nat(5),
							wanted: fc.option(fc.integer({ min: 2, max: 6 }), { nil: undefined }),
						}),
						{ minLength: 5, maxLength: 25 },
					),
					async (steps) => {
						const network = `p${++networks}`;
						await store.createNetwork(network, { subnet: '10.45.0.0/29', vni: networks });
						const model = new Map<string, string>();
						for (const { who, release, endpoint, wanted } of steps) {
							const me = `n${who + 1}-${endpoint}`;
							const at = `10.45.0.${wanted ?? 2}`;
							if (release) {
								const outcome = await why(stores[who]!.release(network, at, me));
								assert.is(outcome === 'done', !model.has(at) || model.get(at) === me, outcome);
								if (model.get(at) === me) model.delete(at);
								continue;
							}
							const got = await stores[who]!.allocate(network, {
								node: `n${who + 1}`,
								endpoint: me,
								...(wanted === undefined ? {} : { wanted: at }),
							}).catch((e: unknown) => codeOf(e));
							if (typeof got === 'string') {
								assert.is(got, 'CONFLICT');
								assert.ok(wanted === undefined ? model.size === 5 : model.get(at) !== me && model.has(at));
							} else {
								assert.ok(!model.has(got.address) || (wanted !== undefined && model.get(got.address) === me));
								model.set(got.address, me);
							}
						}
						const listed = await store.list(network);
						assert.equal(new Map(listed.map((e) => [e.address, e.id])), new Map([...model].sort()));
						for (const { address, id } of listed) await store.release(network, address, id);
						await store.removeNetwork(network);
					},
				),
				{ numRuns: 40 },
			);
			other.close();
		});

		test('any documents in any order of writing give every node the same membership, and no port twice', () => {
			const document = fc.record({
				key: fc.constantFrom(
					'nodes/a',
					'nodes/b',
					'services/x',
					'services/y',
					'services/z',
					'networks/r',
					'networks/s',
				),
				create: fc.integer({ min: 1, max: 9 }),
				port: fc.integer({ min: 1, max: 3 }),
				node: fc.constantFrom('a', 'b', 'c'),
			});
			fc.assert(
				fc.property(
					fc.uniqueArray(document, { selector: (d) => d.key, maxLength: 7 }),
					fc.func(fc.integer()),
					(documents, order) => {
						const read = documents.flatMap(({ key, create, port, node }) => {
							const [kind] = key.split('/');
							const value = JSON.stringify(
								kind === 'nodes'
									? { address: `10.0.0.${port}` }
									: kind === 'services'
										? {
												ports: [
													{ published: port, target: 80 },
													{ published: port + 1, target: 80 },
												],
												backends: [{ node }],
											}
										: { subnet: '10.1.0.0/24', vni: port },
							);
							const d = readDocument('/p', { key: `/p/${key}`, value, create, mod: create });
							return 'unknown' in d ? [] : [d];
						});
						const one = mapDocuments(read);
						const two = mapDocuments([...read].sort((a, b) => order(a.key) - order(b.key)));
						assert.equal(two, one);
						const ports = one.membership.services.flatMap((s) => s.ports.map((p) => p.published));
						assert.is(new Set(ports).size, ports.length);
						const nodes = new Set(one.membership.nodes.map((n) => n.name));
						for (const s of one.membership.services) for (const t of s.tasks) assert.ok(nodes.has(t.node));
					},
				),
				{ numRuns: 500 },
			);
		});

		test('replicas: the last rest first, the first work again first, and what did not change is the same', () => {
			const backends = ['a', 'b', 'c', 'd'].map((node) => ({ node }));
			const scaled = (from: typeof backends, replicas: number) =>
				changeService('web', { ports: [], backends: from }, { replicas }).backends as typeof backends;
			const drained = (list: readonly { node: string; drain?: boolean }[]) =>
				list
					.filter((b) => b.drain === true)
					.map((b) => b.node)
					.join('');
			const two = scaled(backends, 2);
			assert.is(drained(two), 'cd');
			assert.is(two[0], backends[0]);
			assert.is(drained(scaled(two, 3)), 'd');
			assert.is(drained(scaled(two, 0)), 'abcd');
			assert.is(drained(scaled(two, 4)), '');
		});
	},
);
