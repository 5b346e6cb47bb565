/** One allocator in a process of its own: URL PREFIX NETWORK COUNT NODE → a line of JSON with the addresses that it got. */
import { createEtcd } from '../../src/mesh/sources/etcd-client.js';
import { createStore } from '../../src/mesh/sources/etcd-store.js';

const [url, prefix, network, count, node] = process.argv.slice(2) as [string, string, string, string, string];
const etcd = createEtcd({ endpoints: [url] });
const store = createStore(etcd, prefix);
const got: string[] = [];
let busy = 0;
let released = 0;
async function lane(from: number): Promise<void> {
	for (let i = from; i < Number(count); i += 4) {
		const endpoint = `${node}-${i}`;
		try {
			const { address } = await store.allocate(network, { node, endpoint });
			// Every fifth goes back, and may be given to the other one.
			if (i % 5 === 4) {
				await store.release(network, address, endpoint);
				released++;
			} else got.push(address);
		} catch (e) {
			if ((e as { code?: string }).code !== 'CONFLICT') throw e;
			busy++;
		}
	}
}
await Promise.all([0, 1, 2, 3].map(lane));
etcd.close();
process.stdout.write(`${JSON.stringify({ got, busy, released })}\n`);
