/**
 * A NameService in a process of its own, to be started inside a node's namespace as an agent is: it forwards from there.
 * Told what to do over IPC: { id, op, args } → { id, result } or { id, error }.
 *
 *	nsenter --net=… node nameservice.js RESOLV_CONF [LIMITS-JSON]
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { NameService, type ServedEndpoint } from '../../src/dns/server.js';
import type { NamedNetwork } from '../../src/dns/zone.js';

const lines: string[] = [];
const say = (level: string) => (a: unknown, b?: string) =>
	void lines.push(`${level}: ${typeof a === 'string' ? a : (b ?? '')}`);
const service = new NameService({
	log: { info: say('info'), warn: say('warn'), debug: say('debug') } as never,
	resolvConf: process.argv[2] ?? '',
	...(process.argv[3] ? { limits: JSON.parse(process.argv[3]) } : {}),
});
const delay = monitorEventLoopDelay({ resolution: 10 });
delay.enable();

const ops: Record<string, (args: never) => unknown> = {
	update: (networks: NamedNetwork[]) => service.update(networks),
	serve: (endpoint: ServedEndpoint) => service.serve(endpoint),
	forget: (id: string) => service.forget(id),
	counters: () => service.counters(),
	log: () => lines,
	/** Sockets, and network namespaces of threads: none but our own may stay. */
	facts: () => ({
		fds: readdirSync('/proc/self/fd').length,
		namespaces: new Set(readdirSync('/proc/self/task').map((t) => readlinkSync(`/proc/self/task/${t}/ns/net`))).size,
		threads: readdirSync('/proc/self/task').length,
		rssMb: process.memoryUsage().rss / 2 ** 20,
		delayMaxMs: delay.max / 1e6,
	}),
	close: () => service.close(),
};

process.on('message', async ({ id, op, args }: { id: number; op: string; args: never }) => {
	try {
		process.send?.({ id, result: (await ops[op]?.(args)) ?? null });
	} catch (e) {
		process.send?.({ id, error: (e as Error).message });
	}
});
process.on('disconnect', () => process.exit());
