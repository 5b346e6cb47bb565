/** Names of backends, the same on every node. */
import type { Protocol, Task } from './types.js';

type Place = Pick<Task, 'id' | 'node' | 'address4' | 'address6'>;

/** What distinguishes a task from the others of its node. */
function placeOf(t: Place): string {
	return t.id ?? t.address4 ?? t.address6 ?? 'process';
}

/** `web/node2/172.18.0.2/80/tcp` */
export function backendKey(service: string, t: Place, target: number, protocol: Protocol): string {
	return `${service}/${t.node}/${placeOf(t)}/${target}/${protocol}`;
}

/** The URL-safe id of a backend's key. `~` is unreserved in URLs (RFC 3986, 2.3) and in no name; the colons of IPv6 are not. */
export function idOf(key: string): string {
	return key.replaceAll('/', '~').replaceAll(':', '-');
}
