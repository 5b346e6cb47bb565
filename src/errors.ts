/**
 * An error for the operator: `message` is one sentence that says what failed, why, and what to do.
 * `code` is stable and for programs; `field` is the path of a refused value (`services[0].ports[0].published`).
 */
export class BeelineError extends Error {
	readonly code: string;
	readonly field?: string;

	constructor(code: string, message: string, options: { cause?: unknown; field?: string } = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause });
		this.name = 'BeelineError';
		this.code = code;
		this.field = options.field;
	}
}

/** The sentence of anything that was thrown. */
export function sentence(error: unknown): string {
	return error instanceof Error ? error.message : String(error);
}

/** The code of anything that was thrown: BeelineError's, Node's (`ENOENT`), or `UNKNOWN`. */
export function codeOf(error: unknown): string {
	if (typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string')
		return error.code;
	return 'UNKNOWN';
}
