import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createPluginApp } from '../../src/plugin/app.js';
import { LEAK_AFTER_MS } from '../../src/plugin/driver.js';
import { root } from '../support/tools.js';
import { type Engine, engine, NETWORKS, network } from './support.js';

const GENERIC = 'com.docker.network.generic';

const pool = (e: Engine, name: string, more: object = {}) =>
	e.call('IpamDriver.RequestPool', {
		AddressSpace: 'beeline',
		Pool: '',
		SubPool: '',
		Options: { 'beeline.network': name },
		V6: false,
		...more,
	});

async function address(e: Engine, poolId: string, wanted = ''): Promise<string> {
	const r = await e.call('IpamDriver.RequestAddress', { PoolID: poolId, Address: wanted, Options: null });
	return (r.Error ?? r.Address) as string;
}

const release = (e: Engine, PoolID: string, Address: string) =>
	e.call('IpamDriver.ReleaseAddress', { PoolID, Address });

const create = (e: Engine, id: string, name: string, subnet: string, more: object = {}) =>
	e.call('NetworkDriver.CreateNetwork', {
		NetworkID: id,
		Options: { [GENERIC]: { 'beeline.network': name }, ...more },
		IPv4Data: [{ AddressSpace: 'beeline', Pool: subnet, Gateway: '' }],
		IPv6Data: null,
	});

const endpoint = (e: Engine, network: string, id: string, Address: string, more: object = {}) =>
	e.call('NetworkDriver.CreateEndpoint', {
		NetworkID: network,
		EndpointID: id,
		Interface: { Address, AddressIPv6: '', MacAddress: '', ...more },
		Options: {},
	});

const joinIt = (e: Engine, network: string, id: string) =>
	e.call('NetworkDriver.Join', { NetworkID: network, EndpointID: id, SandboxKey: '/run/docker/netns/x', Options: {} });

const test = suite('Docker plugin: protocol');

test('what a real engine asked is answered as it was then', async () => {
	const recorded = readFileSync(join(root, 'test/fixtures/engine/plugin.jsonl'), 'utf8').trim().split('\n');
	const e = engine('node1');
	assert.ok(recorded.length > 20);
	const calls = new Set<string>();
	for (const line of recorded) {
		const { call, request, answer } = JSON.parse(line) as Record<'call' | 'request' | 'answer', never>;
		const now = await e.call(call, request);
		const source = /"SrcName":"[^"]+"/;
		assert.is(
			JSON.stringify(now).replace(source, '"SrcName":"…"'),
			JSON.stringify(answer).replace(source, '"SrcName":"…"'),
			line,
		);
		calls.add(call);
	}
	for (const call of ['CreateNetwork', 'CreateEndpoint', 'Join', 'Leave', 'DeleteEndpoint', 'DeleteNetwork'])
		assert.ok(calls.has(`NetworkDriver.${call}`), call);
});

test('it is a network and an IPAM driver, local, whose networks reach beyond the node', async () => {
	const e = engine('node1');
	assert.equal(await e.call('Plugin.Activate'), { Implements: ['NetworkDriver', 'IpamDriver'] });
	assert.equal(await e.call('NetworkDriver.GetCapabilities'), { Scope: 'local', ConnectivityScope: 'global' });
});

test('what is no request is refused with a sentence', async () => {
	const e = engine('node1');
	const app = createPluginApp({ driver: e.driver, log: () => undefined });
	const post = async (path: string, body: string) => {
		const r = await app.request(path, { method: 'POST', body });
		return [r.status, await r.text()];
	};
	assert.equal(await post('/NetworkDriver.Join', '{'), [200, '{"Err":"the request is no JSON"}']);
	assert.match((await post('/NetworkDriver.Join', '{"NetworkID":"n"}'))[1] as string, /not understood: EndpointID/);
	assert.equal(await post('/NetworkDriver.Fly', '{}'), [
		404,
		'{"Err":"/NetworkDriver.Fly is unknown to Beeline\'s plugin"}',
	]);
	assert.is((await post('/NetworkDriver.Join', JSON.stringify({ x: 'y'.repeat(2 << 20) })))[0], 413);
	assert.match(
		(await e.call('IpamDriver.RequestAddress', { PoolID: 'x' })).Error as string,
		/x is no pool of Beeline's/,
	);
});

test.run();

const addresses = suite('Docker plugin: addresses');

addresses('a pool is a network of the membership, by option or by a subnet that one network has', async () => {
	const e = engine('node1');
	assert.equal(await pool(e, 'red'), {
		PoolID: 'red/4',
		Pool: '10.44.0.0/24',
		Data: { 'com.docker.network.gateway': '10.44.0.1/24' },
	});
	assert.equal(await pool(e, 'red', { V6: true }), { PoolID: 'red/6', Pool: 'fd00:44::/64', Data: {} });
	assert.is((await pool(e, '', { Pool: '10.47.0.0/24' })).PoolID, 'green/4');
	const no = async (name: string, more: object, sentence: RegExp) =>
		assert.match((await pool(e, name, more)).Error as string, sentence);
	await no('none', {}, /no network none; it has red, blue, shut, closed, green, sealed, tiny/);
	await no('', {}, /say which network of Beeline's it is, by --ipam-opt beeline.network=NAME/);
	await no('', { Pool: '10.44.0.0/24' }, /the subnet of red and blue: say which/);
	await no('', { Pool: '10.99.0.0/24' }, /no network with the subnet 10.99.0.0\/24/);
	await no('red', { Pool: '10.99.0.0/24' }, /red is 10.44.0.0\/24, not 10.99.0.0\/24/);
	await no('red', { Pool: '10.44.0.0/24', SubPool: '10.45.0.0/28' }, /10.45.0.0\/28 is no part of/);
	await no('blue', { V6: true }, /blue has no IPv6 subnet/);
	await no('closed', {}, /closed is not manually attachable/);
	assert.match((await pool(engine('node1', []), 'red')).Error as string, /none yet: add it to mesh.yaml/);
});

addresses('two nodes never give out the same one', async () => {
	const given = new Set<string>();
	for (const node of ['node1', 'node2']) {
		const e = engine(node);
		for (let i = 0; i < 200; i++) {
			const a = await address(e, 'red/4');
			if (a.startsWith('network red: no address is free')) break;
			assert.not(given.has(a), a);
			given.add(a);
		}
	}
	assert.is(given.size, 253, 'all but the subnet, the gateway and the broadcast address');
});

addresses('what is released is given out again, and what is not is not', async () => {
	const e = engine('node1');
	assert.is(await address(e, 'tiny/4'), '10.49.0.2/29');
	assert.is(await address(e, 'tiny/4'), '10.49.0.3/29');
	assert.match(await address(e, 'tiny/4'), /network tiny: no address is free in 10.49.0.0\/30/);
	assert.equal(await release(e, 'tiny/4', '10.49.0.2'), {});
	assert.equal(await release(e, 'tiny/4', '10.49.0.2'), {}, 'a second time');
	assert.is(await address(e, 'tiny/4'), '10.49.0.2/29');
});

addresses('of an --ip-range only its part is given', async () => {
	const e = engine('node1');
	const p = await pool(e, 'red', { Pool: '10.44.0.0/24', SubPool: '10.44.0.64/26' });
	assert.is(await address(e, p.PoolID as string), '10.44.0.64/24');
});

addresses('a wanted address must be this node’s, and free', async () => {
	const declared = network('red', '10.44.0.0/24', 1, {
		endpoints: [
			{ id: 'd1', node: 'node1', address: '10.44.0.200', aliases: [] },
			{ id: 'd2', node: 'node2', address: '10.44.0.5', aliases: [] },
		],
	});
	const e = engine('node1', [declared]);
	assert.is(await address(e, 'red/4', '10.44.0.9'), '10.44.0.9/24');
	assert.match(await address(e, 'red/4', '10.44.0.9'), /Docker has it already, on this node/);
	assert.match(await address(e, 'red/4', '10.44.0.130'), /outside of 10.44.0.0\/25/);
	assert.match(await address(e, 'red/4', '10.44.0.1'), /it is the gateway/);
	assert.match(await address(e, 'red/4', '10.44.0.5'), /it is declared for node2/);
	assert.is(await address(e, 'red/4', '10.44.0.200'), '10.44.0.200/24', 'declared for this node');
});

addresses('a gateway is the network’s', async () => {
	const e = engine('node1');
	const Options = { RequestAddressType: 'com.docker.network.gateway' };
	const ask = (Address: string) => e.call('IpamDriver.RequestAddress', { PoolID: 'red/4', Address, Options });
	assert.equal(await ask(''), { Address: '10.44.0.1/24', Data: {} });
	assert.match(
		(await ask('10.44.0.9')).Error as string,
		/the gateway of network red is 10.44.0.1: leave out --gateway/,
	);
});

addresses('an IPv6 address is that of the IPv4 one before it', async () => {
	const e = engine('node2');
	assert.is(await address(e, 'red/4'), '10.44.0.128/24');
	assert.is(await address(e, 'red/6'), 'fd00:44::a2c:80/64');
	assert.match(await address(e, 'red/6'), /with its IPv4 address in the last 32 bits/);
	assert.is(await address(e, 'red/4', '10.44.0.140'), '10.44.0.140/24');
	assert.match(await address(e, 'red/6', 'fd00:44::a2c:8d'), /give --ip 10.44.0.141 with it/);
	assert.is(await address(e, 'red/6', 'fd00:44::a2c:8c'), 'fd00:44::a2c:8c/64');
});

addresses('what an engine that died asked for is free again after a while; what is used or kept is not', async () => {
	const e = engine('node1');
	assert.is(await address(e, 'red/4', '10.44.0.77'), '10.44.0.77/24');
	await e.call('NetworkDriver.CreateNetwork', {
		NetworkID: 'net',
		Options: { [GENERIC]: { 'beeline.network': 'red' } },
		IPv4Data: [
			{ AddressSpace: 'beeline', Pool: '10.44.0.0/24', Gateway: '', AuxAddresses: { printer: '10.44.0.77/24' } },
		],
		IPv6Data: [],
	});
	for (const id of ['a', 'b', 'c', 'd']) await endpoint(e, 'net', id, await address(e, 'red/4'));
	for (const id of ['a', 'b', 'd']) await joinIt(e, 'net', id);
	assert.is(await address(e, 'red/4'), '10.44.0.6/24', 'asked for, and no endpoint came');
	e.clock += LEAK_AFTER_MS - 1;
	assert.equal(await e.driver.reap(), []);
	e.plugged.delete('b');
	e.idle.add('d');
	e.clock += 1;
	assert.equal(await e.driver.reap(), [
		'endpoint 10.44.0.3 on red',
		'endpoint 10.44.0.4 on red',
		'endpoint 10.44.0.5 on red',
		'10.44.0.3 on red',
		'10.44.0.4 on red',
		'10.44.0.5 on red',
		'10.44.0.6 on red',
	]);
	assert.equal([...e.driver.reserved('red')].sort(), ['10.44.0.2', '10.44.0.77']);
	assert.equal([...e.plugged.keys()], ['a']);
	assert.match(await address(e, 'red/4', '10.44.0.77'), /Docker has it already/);
	assert.equal(await release(e, 'red/4', '10.44.0.77'), {});
	assert.is(await address(e, 'red/4', '10.44.0.77'), '10.44.0.77/24');
});

addresses('an engine that cleans up late does not free what another container has by now', async () => {
	const e = engine('node1');
	await create(e, 'net', 'red', '10.44.0.0/24');
	await endpoint(e, 'net', 'new', await address(e, 'red/4'));
	await joinIt(e, 'net', 'new');
	assert.equal(await release(e, 'red/4', '10.44.0.2'), {});
	assert.is(await address(e, 'red/4'), '10.44.0.3/24');
});

addresses.run();

const networks = suite('Docker plugin: networks and endpoints');

networks('a network without Beeline’s addresses, or that does not fit, is refused', async () => {
	const e = engine('node1');
	const data = (AddressSpace: string, Pool: string) => [{ AddressSpace, Pool, Gateway: '' }];
	const no = async (options: object, IPv4Data: unknown, sentence: RegExp) => {
		const Options = { [GENERIC]: options };
		const r = await e.call('NetworkDriver.CreateNetwork', { NetworkID: 'n', Options, IPv4Data, IPv6Data: [] });
		assert.match(r.Err as string, sentence);
	};
	const red = { 'beeline.network': 'red' };
	await no(red, data('LocalDefault', '10.44.0.0/24'), /two nodes would give the same: add --ipam-driver beeline/);
	await no(red, [], /add --ipam-driver beeline/);
	await no(red, data('beeline', '10.47.0.0/24'), /red is 10.44.0.0\/24, and the addresses are those of 10.47.0.0\/24/);
	await no({}, data('beeline', '10.44.0.0/24'), /the subnet of red and blue: say which by -o/);
	await no({ ...red, parent: 'eth0' }, data('beeline', '10.44.0.0/24'), /parent is no option of Beeline's/);
	await no({ ...red, 'com.docker.network.driver.mtu': 'x' }, data('beeline', '10.44.0.0/24'), /mtu is x/);
	await no(
		{ ...red, 'com.docker.network.driver.overlay.vxlanid_list': '9' },
		data('beeline', '10.44.0.0/24'),
		/red has VNI 5001/,
	);
	await no({ 'com.docker.network.driver.overlay.vxlanid_list': '9' }, data('beeline', '10.44.0.0/24'), /VNI 9/);
	await no(
		{ 'beeline.network': 'sealed' },
		data('beeline', '10.48.0.0/24'),
		/sealed is encrypted, and no secret is set/,
	);
	await no(
		{ ...red, encrypted: '' },
		data('beeline', '10.44.0.0/24'),
		/red is not encrypted: say options: { encrypted: true } of it in mesh\.yaml/,
	);
	const vault = { 'beeline.network': 'vault' };
	await no({ ...vault, encrypted: 'false' }, data('beeline', '10.50.0.0/24'), /vault is encrypted: leave -o/);
	assert.equal(e.store.get().networks, []);
	for (const encrypted of [{}, { encrypted: '' }, { encrypted: 'true' }]) {
		const Options = { [GENERIC]: { ...vault, ...encrypted } };
		const IPv4Data = data('beeline', '10.50.0.0/24');
		const r = await e.call('NetworkDriver.CreateNetwork', { NetworkID: 'v', Options, IPv4Data, IPv6Data: [] });
		assert.equal(r, {});
	}
});

networks('it is known by option, by VNI, by subnet', async () => {
	const e = engine('node1');
	const make = (NetworkID: string, generic: object, Pool: string) =>
		e.call('NetworkDriver.CreateNetwork', {
			NetworkID,
			Options: { [GENERIC]: generic },
			IPv4Data: [{ AddressSpace: 'beeline', Pool, Gateway: '' }],
			IPv6Data: [],
		});
	assert.equal(await make('a', { 'beeline.network': 'red' }, '10.44.0.0/24'), {});
	assert.equal(await make('b', { 'com.docker.network.driver.overlay.vxlanid_list': '5002' }, '10.44.0.0/24'), {});
	assert.equal(await make('c', {}, '10.47.0.0/24'), {});
	assert.equal(
		e.store.get().networks.map((n) => n.network),
		['red', 'blue', 'green'],
	);
});

networks('an endpoint lives from CreateEndpoint to DeleteEndpoint', async () => {
	const e = engine('node1');
	await create(e, 'net', 'red', '10.44.0.0/24', { 'com.docker.network.internal': true });
	await address(e, 'red/4');
	assert.equal(await endpoint(e, 'net', 'ep', '10.44.0.2/24'), { Interface: { MacAddress: '02:42:0a:2c:00:02' } });
	assert.equal(await joinIt(e, 'net', 'ep'), {
		InterfaceName: { SrcName: 'blp-ep', DstPrefix: 'eth' },
		Gateway: '',
		GatewayIPv6: '',
		StaticRoutes: [],
		DisableGatewayService: true,
	});
	assert.is(e.plugged.get('ep')?.id, 'red-10.44.0.2');
	assert.equal(await e.call('NetworkDriver.EndpointOperInfo', { NetworkID: 'net', EndpointID: 'ep' }), {
		Value: {
			'beeline.network': 'red',
			'com.docker.network.driver.overlay.vxlanid_list': '5001',
			'com.docker.network.endpoint.macaddress': '02:42:0a:2c:00:02',
		},
	});
	assert.match(
		(await endpoint(e, 'net', 'other', '10.44.0.2/24')).Err as string,
		/another endpoint of this node has it/,
	);
	assert.match((await endpoint(e, 'net', 'other', '10.50.0.2/24')).Err as string, /no address of 10.44.0.0\/24/);
	assert.match((await endpoint(e, 'nowhere', 'other', '10.44.0.2/24')).Err as string, /does not know Docker's network/);
	assert.match((await joinIt(e, 'net', 'other')).Err as string, /does not know the endpoint other: restart/);
	for (const call of ['Leave', 'DeleteEndpoint', 'DeleteEndpoint'])
		assert.equal(await e.call(`NetworkDriver.${call}`, { NetworkID: 'net', EndpointID: 'ep' }), {}, call);
	assert.is(e.plugged.size, 0);
	assert.equal(e.store.get().endpoints, []);
});

networks('a MAC that Docker names is not said again', async () => {
	const e = engine('node1');
	await create(e, 'net', 'red', '10.44.0.0/24');
	await address(e, 'red/4');
	const MacAddress = '02:42:00:00:00:07';
	assert.equal(await endpoint(e, 'net', 'ep', '10.44.0.2/24', { MacAddress }), { Interface: {} });
	await joinIt(e, 'net', 'ep');
	assert.is(e.plugged.get('ep')?.mac, MacAddress);
});

networks(
	'a plugin that starts anew knows what it told, and a network that goes takes its endpoints along',
	async () => {
		const before = engine('node1');
		await create(before, 'net', 'red', '10.44.0.0/24');
		await address(before, 'red/4');
		await endpoint(before, 'net', 'ep', '10.44.0.2/24');
		const e = engine('node1', NETWORKS, before.store);
		assert.is(await address(e, 'red/4'), '10.44.0.3/24');
		assert.is((await joinIt(e, 'net', 'ep')).Err, undefined);
		assert.equal(await e.call('NetworkDriver.DeleteNetwork', { NetworkID: 'net' }), {});
		assert.is(e.plugged.size, 0);
		assert.equal([e.store.get().networks, e.store.get().endpoints], [[], []]);
	},
);

networks.run();
