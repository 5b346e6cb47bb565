/** /etc/netns/NAME/resolv.conf: what `ip netns exec NAME` shows programs as /etc/resolv.conf. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { resolvConfFor } from '../dns/forward.js';

const MARK = '# written by beeline: names of overlay networks\n';

function fileOf(netns: string): string | undefined {
	const name = /^(?:\/var)?\/run\/netns\/([^/]+)$/.exec(netns)?.[1];
	return name === undefined ? undefined : `/etc/netns/${name}/resolv.conf`;
}

/** Names a namespace's resolver, unless its owner wrote the file. Namespaces that `ip netns` does not know have none. */
export function writeResolvConf(netns: string): void {
	const file = fileOf(netns);
	if (file === undefined || (existsSync(file) && !readFileSync(file, 'utf8').startsWith(MARK))) return;
	let node = '';
	try {
		node = readFileSync('/etc/resolv.conf', 'utf8');
	} catch {
		// A node without one has no domains to search.
	}
	mkdirSync(dirname(file), { recursive: true });
	writeFileSync(file, MARK + resolvConfFor(node));
}

export function removeResolvConf(netns: string): void {
	const file = fileOf(netns);
	if (file === undefined || !existsSync(file) || !readFileSync(file, 'utf8').startsWith(MARK)) return;
	rmSync(file);
	try {
		rmdirSync(dirname(file));
	} catch {
		// It holds other files.
	}
}
