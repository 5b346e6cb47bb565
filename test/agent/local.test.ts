import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type EndpointFacts, locate } from '../../src/agent/endpoints.js';
import { covers, parseIptables, parseNft } from '../../src/agent/firewall.js';
import { chooseUplinks, globalAddresses, type Link, whyNot } from '../../src/agent/links.js';
import { portsBeside } from '../../src/agent/local.js';
import { parseNeighbourLine } from '../../src/agent/monitor.js';
import { parseFeatures } from '../../src/agent/offloads.js';
import {
	contestedPorts,
	formatPortList,
	listening,
	parsePortList,
	parseSockets,
	refusePorts,
	unaskedPorts,
} from '../../src/agent/ports.js';
import type { Way } from '../../src/agent/routes.js';

let index = 1;
function link(name: string, more: Partial<Link> = {}, addresses: readonly string[] = []): Link {
	return {
		ifindex: index++,
		name,
		type: 'ether',
		kind: undefined,
		masterKind: undefined,
		master: undefined,
		mac: '52:54:00:00:00:01',
		mtu: 1500,
		up: true,
		peerElsewhere: false,
		parent: undefined,
		addresses: addresses.map((address) => ({
			family: address.includes(':') ? 6 : 4,
			address,
			prefixLength: 24,
			scope: address.startsWith('fe80') ? 'link' : 'global',
			tentative: false,
		})),
		...more,
	};
}

const lo = link('lo', { type: 'loopback' }, ['127.0.0.1']);
const eth0 = link('eth0', {}, ['192.168.78.1', 'fe80::1', 'fd00:78::1']);
const eth1 = link('eth1', { master: 'br0', masterKind: 'bridge' });
const br0 = link('br0', { kind: 'bridge' }, ['10.9.0.1']);
const vlan = link('eth0.5', { kind: 'vlan', parent: 'eth0' }, ['10.5.0.1']);
const wg = link('wg0', { type: 'none', kind: 'wireguard' }, ['10.6.0.1']);
const gwbridge = link('docker_gwbridge', { kind: 'bridge' }, ['172.18.0.1']);
const task = link('veth1', { kind: 'veth', master: 'docker_gwbridge', masterKind: 'bridge', peerElsewhere: true });
const all = [lo, eth0, eth1, br0, vlan, wg, gwbridge, task];
const names = (u: ReturnType<typeof chooseUplinks>) => u.uplinks.map((x) => `${x.link.name}:${x.l3.name}`);

test('where the kernel’s conntrack cannot be asked, published ports that are source ports too are named', () => {
	const of = (...ports: number[]) =>
		unaskedPorts(
			ports.map((port) => ({ port })),
			[[1024, 65535]],
		);
	assert.is(of(80, 443), undefined);
	assert.match(of(80, 40001, 8080, 40000, 8080) ?? '', /a published one \(8080,40000-40001\): /);
});

test('without a list: Ethernet devices with a global address; of a bridge its port; never Docker’s bridges', () => {
	assert.equal(names(chooseUplinks(all, undefined, new Set(['eth0']), new Set())), ['eth0:eth0', 'eth1:br0']);
});

test('where the bridge that has the VTEP has veths only, they lead outside, but for those of own backends', () => {
	const v1 = link('v1', { kind: 'veth', master: 'br0', masterKind: 'bridge', peerElsewhere: true });
	const v2 = link('v2', { kind: 'veth', master: 'br0', masterKind: 'bridge', peerElsewhere: true });
	const choose = (vtep: string) => names(chooseUplinks([br0, v1, v2], undefined, new Set(), new Set(['v2']), vtep));
	assert.equal(choose('10.9.0.1'), ['v1:br0']);
	assert.equal(choose('10.9.0.2'), []);
});

test('a device behind which own backends lie is chosen only where the default route is', () => {
	assert.equal(names(chooseUplinks([eth0], undefined, new Set(), new Set(['eth0']))), []);
	assert.equal(names(chooseUplinks([eth0], undefined, new Set(['eth0']), new Set(['eth0']))), ['eth0:eth0']);
});

test('with a list: a bridge’s port has the addresses of its bridge', () => {
	assert.equal(names(chooseUplinks(all, ['eth1', 'eth0'], new Set(), new Set())), ['eth1:br0', 'eth0:eth0']);
});

test('what cannot be an uplink is refused with the reason', () => {
	const table: [string, RegExp][] = [
		['eth9', /does not exist/],
		['lo', /loopback/],
		['wg0', /WireGuard/],
		['eth0.5', /VLAN of eth0/],
		['br0', /is a bridge: name the port.*eth1/],
	];
	for (const [name, reason] of table) {
		const { uplinks, refused } = chooseUplinks(all, [name], new Set(), new Set());
		assert.is(uplinks.length, 0, name);
		assert.match(refused[0]!.reason, reason);
	}
	assert.match(whyNot(link('eth3', { master: 'bond0', masterKind: 'bond' }), [])!, /name bond0/);
	assert.match(whyNot(link('tap0', { kind: 'tun' }), [])!, /tun/);
	assert.match(whyNot(link('eth4', { up: false }), [])!, /is down/);
	assert.is(whyNot(eth0, all), undefined);
});

test('own addresses are global ones, never link-local', () => {
	assert.equal(globalAddresses(eth0), ['192.168.78.1', 'fd00:78::1']);
});

const facts: EndpointFacts = {
	links: new Map(all.map((l) => [l.name, l])),
	neighbours: new Map([
		[
			'docker_gwbridge 172.18.0.2',
			{
				address: '172.18.0.2',
				device: 'docker_gwbridge',
				mac: '02:42:ac:12:00:02',
				managed: false,
				failed: false,
				permanent: false,
			},
		],
	]),
	forwarding: new Map([['docker_gwbridge 02:42:ac:12:00:02', 'veth1']]),
	uplinkDevices: new Set(['eth0', 'eth1']),
};
const way = (address: string, device: string, more: Partial<Way> = {}): Way => ({
	address,
	type: 'unicast',
	device,
	gateway: undefined,
	mtu: undefined,
	...more,
});

test('an endpoint behind a bridge is delivered to by the veth that the bridge learned it on', () => {
	assert.equal(locate(way('172.18.0.2', 'docker_gwbridge'), facts), {
		address: '172.18.0.2',
		delivery: 'peer',
		interface: 'veth1',
		ifindex: task.ifindex,
	});
	assert.is(locate(way('172.18.0.3', 'docker_gwbridge'), facts), 'unresolved');
});

test('an address that is no endpoint of this node says why', () => {
	const table: [Way, RegExp][] = [
		[way('10.1.1.1', '', { type: 'unreachable' }), /no route/],
		[way('192.168.78.1', 'lo', { type: 'local' }), /own address/],
		[way('192.168.78.9', 'eth0'), /behind the uplink eth0/],
		[way('10.7.0.1', 'br0', { gateway: '10.9.0.254' }), /routed by/],
		[way('10.6.0.2', 'wg0'), /not Ethernet/],
	];
	for (const [w, reason] of table) assert.match((locate(w, facts) as { problem: string }).problem, reason);
});

const SS = `udp   UNCONN 0      0      127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=7,fd=1))
tcp   LISTEN 0      128          0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=9,fd=3))
tcp   LISTEN 0      128             [::]:80            [::]:*    users:(("httpd",pid=5,fd=3),("httpd",pid=6,fd=3))
tcp   LISTEN 0      128                *:8080             *:*    users:(("dockerd",pid=5,fd=3))
`;

test('sockets of ss: address, port, holders', () => {
	assert.equal(
		parseSockets(SS).map((s) => `${s.protocol} ${s.address} ${s.port} ${s.by.join()}`),
		['udp 127.0.0.53 53 systemd-resolve', 'tcp 0.0.0.0 22 sshd', 'tcp :: 80 httpd', 'tcp * 8080 dockerd'],
	);
});

test('ports that are refused, and those that are not', () => {
	const rules = {
		sockets: parseSockets(SS),
		firewall: parseIptables('iptables', '*filter\n-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 9000 -j ACCEPT\n'),
		vxlanPort: 4789,
		httpPorts: new Set([7980]),
		acceptFirewallBypass: false,
		served: new Set<string>(),
	};
	const port = (protocol: 'tcp' | 'udp', n: number, more: object = {}) => ({
		service: 'web',
		protocol,
		port: n,
		allow: false,
		ownTargets: new Set<number>(),
		...more,
	});
	const why = (p: ReturnType<typeof port>, more: object = {}) => refusePorts([p], { ...rules, ...more })[0]?.reason;
	assert.match(why(port('tcp', 22))!, /held by sshd/);
	assert.match(why(port('udp', 53))!, /held by systemd-resolve/);
	assert.is(why(port('tcp', 53)), undefined, 'another protocol');
	assert.is(why(port('tcp', 8080)), undefined, 'dockerd’s');
	assert.match(why(port('tcp', 80))!, /held by httpd/);
	assert.is(why(port('tcp', 80, { ownTargets: new Set([80]) })), undefined, 'the service’s own process');
	assert.match(why(port('tcp', 2377))!, /Swarm/);
	assert.match(why(port('udp', 7946))!, /Swarm/);
	assert.match(why(port('udp', 4789))!, /VXLAN/);
	assert.is(why(port('tcp', 4789)), undefined);
	assert.match(why(port('tcp', 7980))!, /own HTTP/);
	assert.match(why(port('tcp', 9000))!, /firewall rule \(iptables -t filter INPUT\)/);
	assert.is(why(port('tcp', 9000, { allow: true })), undefined);
	assert.is(why(port('tcp', 9000), { acceptFirewallBypass: true }), undefined);
	assert.is(why(port('tcp', 22), { served: new Set(['tcp/22']) }), undefined, 'served already');

	const contested = (served: readonly string[]) =>
		contestedPorts([port('tcp', 22), port('tcp', 9000)], { ...rules, served: new Set(served) }).map((c) => c.key);
	assert.equal(contested([]), [], 'what is refused is told as such');
	assert.equal(contested(['tcp/22', 'tcp/9000']), ['tcp/22', 'tcp/9000']);
	assert.equal(contested(['tcp/9000', 'udp/22']), ['tcp/9000']);
});

test('what listens on given ports, as one text', async () => {
	const run = async () => `tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*
tcp LISTEN 0 128 [::]:8080 [::]:*
udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*
udp UNCONN 0 0 0.0.0.0:8080 0.0.0.0:*
`;
	assert.is(await listening(run, new Set([8080, 53])), 'tcp/8080 ::,udp/53 127.0.0.53,udp/8080 0.0.0.0');
	assert.is(await listening(run, new Set([81])), '');
});

test('stand-in ports lie where the kernel does not choose', () => {
	assert.equal(portsBeside({ from: 32768, to: 60999 }), [1024, 31744]);
	assert.equal(portsBeside({ from: 2000, to: 30000 }), [30001, 35535]);
	assert.equal(portsBeside({ from: 1024, to: 65535 }), [1024, 0]);
});

test('iptables: DNAT, restricting filters, harmless accepts, masquerade', () => {
	const f = parseIptables(
		'iptables',
		`*nat
-A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080
-A POSTROUTING -s 172.18.0.0/16 ! -o docker_gwbridge -j MASQUERADE
COMMIT
*filter
-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
-A INPUT -p tcp -m multiport --dports 443,8000:8010 -j DROP
-A OUTPUT -p tcp -m tcp --dport 25 -j DROP
COMMIT
`,
	);
	assert.ok(f.dnat.some((r) => covers(r, 'tcp', 8080)));
	assert.not(f.dnat.some((r) => covers(r, 'udp', 8080)));
	assert.equal(
		f.filter.map((r) => [r.from, r.to]),
		[
			[443, 443],
			[8000, 8010],
		],
	);
	assert.ok(f.masquerade);
});

test('nft: DNAT with maps, filters with sets, rules of a jumped-to chain', () => {
	const rule = (chain: string, expr: object[]) => ({ rule: { family: 'inet', table: 't', chain, expr } });
	const dport = (right: unknown) => ({
		match: { op: '==', left: { payload: { protocol: 'tcp', field: 'dport' } }, right },
	});
	const text = JSON.stringify({
		nftables: [
			{ chain: { family: 'inet', table: 't', name: 'pre', type: 'nat', hook: 'prerouting' } },
			{ chain: { family: 'inet', table: 't', name: 'in', type: 'filter', hook: 'input' } },
			{ chain: { family: 'inet', table: 't', name: 'services' } },
			{ chain: { family: 'inet', table: 't', name: 'unused' } },
			rule('pre', [dport(8080), { dnat: { addr: '172.18.0.2', port: 80 } }]),
			rule('in', [{ jump: { target: 'services' } }]),
			rule('services', [dport({ set: [443, { range: [8000, 8010] }] }), { drop: null }]),
			rule('in', [dport(80), { accept: null }]),
			rule('unused', [dport(25), { drop: null }]),
		],
	});
	const f = parseNft(text);
	assert.ok(f.dnat.some((r) => covers(r, 'tcp', 8080)));
	assert.equal(
		f.filter.map((r) => [r.from, r.to, r.place]),
		[
			[443, 443, 'nft inet t services'],
			[8000, 8010, 'nft inet t services'],
		],
	);
});

test('lists of ports, both ways', () => {
	assert.is(formatPortList(parsePortList('8080,80-82,443,8081')), '80-82,443,8080-8081');
	assert.is(formatPortList(parsePortList('\n')), '');
});

test('lines of ip monitor that tell of a neighbour', () => {
	assert.equal(parseNeighbourLine('172.30.0.2 dev br0 lladdr e6:2f:c0:84:87:02 managed extern_learn REACHABLE '), {
		key: 'br0 172.30.0.2',
		mac: 'e6:2f:c0:84:87:02',
		gone: false,
	});
	assert.is(parseNeighbourLine('172.30.0.77 dev br0 managed extern_learn FAILED ')?.mac, undefined);
	assert.is(parseNeighbourLine('10.1.1.0/24 dev br0 proto kernel scope link src 10.1.1.1 '), undefined);
	assert.is(parseNeighbourLine('3: br0    inet 10.1.1.1/24 scope global br0'), undefined);
});

test('features of ethtool that can be turned off', () => {
	const on = parseFeatures(
		'Features for eth0:\nrx-vlan-offload: on\nlarge-receive-offload: off [fixed]\ntx-lockless: on [fixed]\n',
	);
	assert.equal([...on], ['rx-vlan-offload']);
});

test.run();
