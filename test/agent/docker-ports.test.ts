/** A published port that dockerd holds, seen from a container that sees no process of the node. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { refusePorts } from '../../src/agent/ports.js';

const published = { service: 'web', protocol: 'tcp' as const, port: 8080, allow: false, ownTargets: new Set<number>() };
const held = (by: readonly string[]) => [{ protocol: 'tcp' as const, port: 8080, address: '*', by }];
const ingress = { protocol: 'tcp' as const, from: 8080, to: 8080, place: 'iptables -t nat DOCKER-INGRESS' };
const why = (by: readonly string[], dnat: readonly (typeof ingress)[]) =>
	refusePorts([published], {
		sockets: held(by),
		firewall: { dnat, filter: [], masquerade: false },
		vxlanPort: 4789,
		httpPorts: new Set(),
		acceptFirewallBypass: false,
		served: new Set(),
	})[0]?.reason;

test('a nameless socket behind Docker’s ingress rule is dockerd’s', () => assert.is(why([], [ingress]), undefined));
test('a nameless socket without one is somebody’s', () => assert.match(why([], []) ?? '', /held by a socket/));
test('a named stranger is refused whatever the rules say', () =>
	assert.match(why(['nginx'], [ingress]) ?? '', /nginx/));
test('dockerd by its name is Docker’s', () => assert.is(why(['dockerd'], []), undefined));

test.run();
