/** Offloads that hide from XDP what is on the wire. */
import type { Run } from './exec.js';

/** `ethtool -k`: features that are on and can be turned off. */
export function parseFeatures(text: string): Set<string> {
	const on = new Set<string>();
	for (const line of text.split('\n')) {
		const m = /^\s*([a-z0-9-]+): on\s*$/.exec(line);
		if (m !== null) on.add(m[1]!);
	}
	return on;
}

const SHORT: Readonly<Record<string, string>> = {
	'rx-vlan-offload': 'rxvlan',
	'generic-receive-offload': 'gro',
	'large-receive-offload': 'lro',
};

/**
 * A VLAN tag that the card has taken off is not in the frame, so that tagged frames look untagged: rxvlan off. LRO and,
 * with generic XDP, GRO hand over frames that are longer than what was sent.
 * @returns what was turned off, as ethtool names it
 */
export async function turnOffOffloads(run: Run, device: string, mode: 'native' | 'generic'): Promise<string[]> {
	const on = parseFeatures(await run('ethtool', ['-k', device]));
	const unwanted = [
		'rx-vlan-offload',
		'large-receive-offload',
		...(mode === 'generic' ? ['generic-receive-offload'] : []),
	];
	const done: string[] = [];
	for (const feature of unwanted) {
		if (!on.has(feature)) continue;
		await run('ethtool', ['-K', device, SHORT[feature]!, 'off']);
		done.push(SHORT[feature]!);
	}
	return done;
}

export async function turnOnOffload(run: Run, device: string, feature: string): Promise<void> {
	await run('ethtool', ['-K', device, feature, 'on']).catch(() => '');
}
