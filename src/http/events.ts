/** GET /v1/events: server-sent events with a bounded queue, so that a slow reader costs itself events and nobody memory. */
import type { Context } from 'hono';
import { type SSEMessage, streamSSE } from 'hono/streaming';
import type { AgentApi, AgentEvent } from '../agent/api.js';

export interface EventOptions {
	/** Events kept for a reader that does not keep up. */
	readonly queue: number;
	readonly heartbeatMs: number;
}

export interface EventFilter {
	readonly verdicts: boolean;
	readonly service: string | undefined;
	readonly verdict: string | undefined;
}

function wanted(event: AgentEvent, filter: EventFilter): boolean {
	if (event.type === 'reconcile') return filter.service === undefined && filter.verdict === undefined;
	if (filter.service !== undefined && event.service !== filter.service) return false;
	return filter.verdict === undefined || event.verdict === filter.verdict;
}

export function streamEvents(
	c: Context,
	api: AgentApi,
	filter: EventFilter,
	options: EventOptions,
	closed: () => void,
): Response {
	return streamSSE(c, async (stream) => {
		const queue: SSEMessage[] = [];
		let lost = 0;
		let wake: (() => void) | undefined;
		const stop = api.subscribe({ verdicts: filter.verdicts }, (event) => {
			if (!wanted(event, filter)) return;
			if (queue.length >= options.queue) lost++;
			else queue.push({ event: event.type, data: JSON.stringify(event) });
			wake?.();
		});
		const finish = () => {
			stop();
			wake?.();
		};
		stream.onAbort(finish);
		try {
			await stream.writeSSE({ event: 'hello', data: '{}', retry: 2000 });
			let lastWrite = Date.now();
			while (!stream.aborted && !stream.closed) {
				if (queue.length === 0 && lost === 0) {
					const idle = options.heartbeatMs - (Date.now() - lastWrite);
					if (idle > 0) {
						await new Promise<void>((resolve) => {
							const timer = setTimeout(resolve, idle);
							wake = () => {
								clearTimeout(timer);
								resolve();
							};
						});
						wake = undefined;
						continue;
					}
					await stream.write(': heartbeat\n\n');
				} else if (lost > 0 && queue.length === 0) {
					const n = lost;
					lost = 0;
					await stream.writeSSE({ event: 'lost', data: JSON.stringify({ events: n }) });
				} else {
					await stream.writeSSE(queue.shift()!);
				}
				lastWrite = Date.now();
			}
		} finally {
			stop();
			closed();
		}
	});
}
