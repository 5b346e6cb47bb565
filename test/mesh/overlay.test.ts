/** Addresses of overlay networks, and their rows. */
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { overlayEntries } from '../../src/mesh/overlay.js';
import { address6Of, contains, equalSlices, freeAddress, gatewayOf, macOfAddress } from '../../src/mesh/subnets.js';
import type { NetworkSpec } from '../../src/mesh/types.js';

const test = suite('overlay networks');

const red: NetworkSpec = {
	name: 'red',
	driver: 'beeline',
	subnet: '10.44.0.0/24',
	subnet6: 'fd00:44::/64',
	vni: 5001,
	attachable: true,
	options: { slices: equalSlices('10.44.0.0/24', ['b', 'a', 'c']) },
};

test('slices are equal parts in the order of the names', () => {
	assert.equal(red.options.slices, { a: '10.44.0.0/26', b: '10.44.0.64/26', c: '10.44.0.128/26' });
	assert.equal(equalSlices('10.44.0.0/24', ['only']), { only: '10.44.0.0/24' });
	assert.equal(equalSlices('10.44.0.0/30', ['a', 'b', 'c', 'd', 'e']), {}, 'more nodes than addresses');
});

test('an address gives its MAC and its IPv6 address', () => {
	assert.is(macOfAddress('10.44.0.200'), '02:42:0a:2c:00:c8');
	assert.is(address6Of('fd00:44::/64', '10.44.0.2'), 'fd00:44::a2c:2');
});

test('the first free address is neither the subnet’s, nor the gateway, nor the broadcast address', () => {
	assert.is(gatewayOf(red), '10.44.0.1');
	assert.is(freeAddress(red, '10.44.0.0/26', new Set()), '10.44.0.2');
	assert.is(freeAddress(red, '10.44.0.0/26', new Set(['10.44.0.2', '10.44.0.3'])), '10.44.0.4');
	assert.is(freeAddress({ ...red, gateway: '10.44.0.2' }, '10.44.0.0/26', new Set()), '10.44.0.1');
	assert.is(freeAddress({ ...red, ipRange: '10.44.0.16/28' }, '10.44.0.0/26', new Set()), '10.44.0.16');
	assert.is(freeAddress({ ...red, ipRange: '10.44.0.16/28' }, '10.44.0.64/26', new Set()), undefined);
	const last = new Set(Array.from({ length: 62 }, (_, i) => `10.44.0.${192 + i}`));
	assert.is(freeAddress(red, '10.44.0.192/26', last), '10.44.0.254');
	assert.is(freeAddress(red, '10.44.0.192/26', new Set([...last, '10.44.0.254'])), undefined);
});

test('nodes that allocate by themselves never give out one address twice', () => {
	fc.assert(
		fc.property(
			fc.integer({ min: 16, max: 30 }),
			fc.uniqueArray(fc.string({ minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 9 }),
			fc.array(fc.nat(), { maxLength: 200 }),
			(bits, nodes, turns) => {
				const n = { ...red, subnet: `10.44.0.0/${bits}` };
				const slices = Object.entries(equalSlices(n.subnet, nodes));
				if (slices.length === 0) return;
				const all = new Set<string>();
				const own = new Map(slices.map(([node]) => [node, new Set<string>()]));
				for (const turn of turns) {
					const [node, slice] = slices[turn % slices.length];
					const taken = own.get(node) as Set<string>;
					const address = freeAddress(n, slice, taken);
					if (address === undefined) continue;
					assert.ok(contains(slice, address) && contains(n.subnet, address), `${address} of ${slice}`);
					assert.not(all.has(address), `${address} twice`);
					all.add(address);
					taken.add(address);
				}
			},
		),
	);
});

test('rows: slices of nodes, endpoints that the source knows, those of this node', () => {
	const net: NetworkSpec = {
		...red,
		endpoints: [
			{ id: 'x', node: 'b', address: '10.44.0.70', aliases: [] },
			{ id: 'y', node: 'a', address: '10.44.0.9', aliases: [] },
			{ id: 'z', node: 'gone', address: '10.44.0.10', aliases: [] },
		],
	};
	const nodes = new Map([
		['a', 1],
		['b', 2],
	]);
	const local = [
		{ id: 'y', vni: 5001, address4: '10.44.0.9', address6: 'fd00:44::a2c:9', mac: '02:42:0a:2c:00:09', ifindex: 7 },
		{ id: 'q', vni: 6000, address4: '10.44.0.9', mac: '02:42:0a:2c:00:09', ifindex: 8 },
	];
	const e = overlayEntries([net, { ...red, name: 'docker', driver: 'overlay', vni: 4097 }], nodes, 1, local);
	assert.equal([...e.networks], [[5001, { flags: 0 }]], 'Docker’s own networks are Docker’s');
	assert.equal(
		[...e.slices],
		[
			['5001 10.44.0.0/26', 1],
			['5001 fd00:44::a2c:0/122', 1],
			['5001 10.44.0.64/26', 2],
			['5001 fd00:44::a2c:40/122', 2],
		],
		'c is no node any more',
	);
	const there = { node: 2, ifindex: 0, mac: '02:42:0a:2c:00:46', flags: 0 };
	const here = { node: 1, ifindex: 7, mac: '02:42:0a:2c:00:09', flags: 0 };
	assert.equal(
		[...e.endpoints],
		[
			['5001 10.44.0.70', there],
			['5001 fd00:44::a2c:46', there],
			['5001 10.44.0.9', here],
			['5001 fd00:44::a2c:9', here],
		],
	);
	assert.equal([...e.ports], [[7, { addr4: '10.44.0.9', addr6: 'fd00:44::a2c:9', vni: 5001, mac: here.mac }]]);
});

test.run();
