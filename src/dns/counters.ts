/** What the name service counts: the labels of its metrics. */

/** How a query ended. */
export const RESULTS = [
	'answer',
	'nodata',
	'forwarded',
	'servfail',
	'refused',
	'malformed',
	'unsupported',
	'dropped',
] as const;
export type Result = (typeof RESULTS)[number];

/** Why a server of the node gave no answer; `busy`: it was not asked. */
export type Failure = 'timeout' | 'unreachable' | 'failure' | 'no_server' | 'busy';

/**
 * `beside`: Docker's resolver answers on 127.0.0.11 there, and asks us what it does not know; `held`: somebody else answers, and is
 * left alone.
 */
export type ServeState = 'serving' | 'beside' | 'held';

export interface DnsCounters {
	readonly queries: Readonly<Record<Result, number>>;
	readonly truncated: number;
	readonly failures: Readonly<Record<Failure, number>>;
	/** Forwarded queries under way. */
	readonly inFlight: number;
	readonly namespaces: Readonly<Record<ServeState, number>>;
}
