/** beeline node add --config: writes to etcd without an agent, for the first node has none. */
import { etcdOptions } from '../agent/source.js';
import { loadConfig } from '../config.js';
import { BeelineError, codeOf } from '../errors.js';
import { createEtcd } from '../mesh/sources/etcd-client.js';
import { keyOf, parseDocument } from '../mesh/sources/etcd-map.js';
import { createStore } from '../mesh/sources/etcd-store.js';
import type { NodeSpec } from '../mesh/types.js';
import { print } from './output.js';

/** The same node again is no error, so that a provisioning tool may repeat it. @throws BeelineError */
export async function nodeAddHere(file: string, name: string | undefined, address: string | undefined): Promise<void> {
	const config = loadConfig(file);
	const options = etcdOptions(config);
	const node = { name: name ?? config.node.name, address: address ?? config.node.address ?? '' };
	if (node.address === '')
		throw new BeelineError('NO_ADDRESS', `node add: ${file} has no node.address: give NAME ADDRESS, or set it there`);
	const etcd = createEtcd(options);
	try {
		const store = createStore(etcd, options.prefix);
		try {
			await store.addNode(node);
		} catch (e) {
			if (codeOf(e) !== 'CONFLICT') throw e;
			const [kv] = (await etcd.range({ key: keyOf(options.prefix, 'nodes', node.name) })).kvs;
			const there =
				kv === undefined ? undefined : (parseDocument({ kind: 'nodes', name: node.name }, kv.value) as NodeSpec);
			if (there?.address !== node.address) throw e;
		}
	} finally {
		etcd.close();
	}
	print(node.name);
}
