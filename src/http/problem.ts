/** RFC 9457 problem details: the only body that an error has. */
import type { Context } from 'hono';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import type { ProblemBody } from './schemas.js';

const TITLES: Readonly<Record<number, string>> = {
	400: 'Bad Request',
	401: 'Unauthorized',
	403: 'Forbidden',
	404: 'Not Found',
	405: 'Method Not Allowed',
	409: 'Conflict',
	412: 'Precondition Failed',
	413: 'Content Too Large',
	415: 'Unsupported Media Type',
	421: 'Misdirected Request',
	422: 'Unprocessable Content',
	500: 'Internal Server Error',
	503: 'Service Unavailable',
};

export interface ProblemInit {
	readonly status: ContentfulStatusCode;
	readonly code: string;
	readonly detail: string;
	readonly field?: string;
	readonly headers?: Readonly<Record<string, string>>;
}

/** An answer of type application/problem+json. */
export function problem(c: Context, p: ProblemInit): Response {
	const body: ProblemBody = {
		type: 'about:blank',
		title: TITLES[p.status] ?? 'Error',
		status: p.status,
		detail: p.detail,
		instance: c.req.path,
		code: p.code,
		...(p.field === undefined ? {} : { field: p.field }),
	};
	return c.body(JSON.stringify(body), p.status, { ...p.headers, 'content-type': 'application/problem+json' });
}

/** Thrown inside a handler; answered by the application's onError. */
export class HttpProblem extends Error {
	readonly init: ProblemInit;
	constructor(init: ProblemInit) {
		super(init.detail);
		this.init = init;
	}
}
