/** A network's document: the same in mesh.yaml, as a key of etcd and over HTTP. */
import ipaddr from 'ipaddr.js';
import { z } from 'zod';
import type { NetworkSpec } from '../types.js';
import { address, address4, bool, integer, mac, name, type Problem, prefix } from './document.js';

export const endpointSchema = z.strictObject({
	node: name,
	address: address4,
	address6: address.optional(),
	mac: mac.optional(),
	name: name.optional(),
	aliases: z.array(name).default([]),
	service: name.optional(),
});

export const networkSchema = z.strictObject({
	name,
	subnet: prefix,
	subnet6: prefix.optional(),
	gateway: address4.optional(),
	ipRange: prefix.optional(),
	vni: integer(1, 16777215, 'a VNI'),
	attachable: bool.default(false),
	ingress: bool.default(false),
	labels: z.record(z.string(), z.string()).optional(),
	slices: z.record(z.string(), prefix).optional(),
	endpoints: z.array(endpointSchema).default([]),
	options: z
		.strictObject({
			mtu: integer(576, 65535, 'an MTU').optional(),
			internal: bool.optional(),
			encrypted: bool.optional(),
		})
		.prefault({}),
});

type NetworkFile = z.output<typeof networkSchema>;

/** A network's document as the rest of the agent knows it. */
export function toNetwork(n: NetworkFile): NetworkSpec {
	return {
		name: n.name,
		driver: 'beeline',
		subnet: n.subnet,
		...(n.subnet6 === undefined ? {} : { subnet6: n.subnet6 }),
		...(n.gateway === undefined ? {} : { gateway: n.gateway }),
		...(n.ipRange === undefined ? {} : { ipRange: n.ipRange }),
		vni: n.vni,
		attachable: n.attachable,
		...(n.ingress ? { ingress: true } : {}),
		...(n.labels === undefined ? {} : { labels: n.labels }),
		options: { ...n.options, ...(n.slices ? { slices: n.slices } : {}) },
		endpoints: n.endpoints.map((e) => ({ ...e, id: `${n.name}-${e.address}` })),
	};
}

const isPart = (inner: string, outer: string): boolean => {
	const [o, bits] = ipaddr.parseCIDR(outer);
	const [i, innerBits] = ipaddr.parseCIDR(inner.includes('/') ? inner : `${inner}/${inner.includes(':') ? 128 : 32}`);
	return i.kind() === o.kind() && innerBits >= bits && i.match(o, bits);
};

/** What the schema of a network cannot say; paths are within the network. */
export function checkNetwork(n: NetworkFile, nodes: readonly { readonly name: string }[]): Problem[] {
	const problems: Problem[] = [];
	const names = new Set(nodes.map((x) => x.name));
	const known = () => [...names].slice(0, 8).join(', ');
	if (n.subnet.includes(':') || Number(n.subnet.split('/')[1]) > 30)
		problems.push({
			path: ['subnet'],
			text: `is ${n.subnet}: expected an IPv4 prefix of 30 bits at most, such as 10.44.0.0/24`,
		});
	if (n.subnet6 !== undefined && (!n.subnet6.includes(':') || Number(n.subnet6.split('/')[1]) > 96))
		problems.push({
			path: ['subnet6'],
			text: `is ${n.subnet6}: expected an IPv6 prefix of 96 bits at most, such as fd00:44::/64`,
		});
	if (problems.length > 0) return problems;
	if (n.gateway !== undefined && !isPart(n.gateway, n.subnet))
		problems.push({ path: ['gateway'], text: `is ${n.gateway}: expected an address of ${n.subnet}` });
	if (n.ipRange !== undefined && !isPart(n.ipRange, n.subnet))
		problems.push({ path: ['ipRange'], text: `is ${n.ipRange}: expected a part of ${n.subnet}` });
	const slices = Object.entries(n.slices ?? {});
	for (const [k, [node, slice]] of slices.entries()) {
		if (!names.has(node))
			problems.push({ path: ['slices', node], key: true, text: `is no node: expected one of ${known()}` });
		if (!isPart(slice, n.subnet))
			problems.push({ path: ['slices', node], text: `is ${slice}: expected a part of ${n.subnet}` });
		const other = slices.slice(0, k).find(([, s]) => isPart(s, slice) || isPart(slice, s));
		if (other)
			problems.push({
				path: ['slices', node],
				text: `is ${slice}, which overlaps ${other[1]} of ${other[0]}: expected a part of its own for each node`,
			});
	}
	const taken = new Set<string>();
	for (const [k, e] of n.endpoints.entries()) {
		if (!names.has(e.node))
			problems.push({
				path: ['endpoints', k, 'node'],
				text: `is ${JSON.stringify(e.node)}, which is no node: expected one of ${known()}`,
			});
		if (!isPart(e.address, n.subnet))
			problems.push({ path: ['endpoints', k, 'address'], text: `is ${e.address}: expected an address of ${n.subnet}` });
		for (const [field, a] of [
			['address', e.address],
			['address6', e.address6],
		] as const) {
			if (a === undefined) continue;
			if (taken.has(a))
				problems.push({
					path: ['endpoints', k, field],
					text: `is ${a}, as another endpoint's: expected each address once`,
				});
			taken.add(a);
		}
	}
	return problems;
}
