/** What can go wrong between a C file and a running program; `code` is stable, the message is one sentence. */
export type LoaderErrorCode =
	| 'COMPILE_FAILED'
	| 'NO_COMPILER'
	| 'BAD_OBJECT'
	| 'NO_OBJECT'
	| 'LOCKED'
	| 'NO_BPFFS'
	| 'STACKED_BPFFS'
	| 'VERIFIER_REJECTED'
	| 'LOAD_FAILED'
	| 'LAYOUT_CHANGED'
	| 'ATTACH_FAILED'
	/** It is gone, or in another namespace. */
	| 'NO_INTERFACE'
	| 'NOT_COMMITTED';

/** `detail` is the whole text behind the sentence: the compiler's output, the verifier's log. */
export class LoaderError extends Error {
	readonly code: LoaderErrorCode;
	readonly detail: string;

	constructor(code: LoaderErrorCode, message: string, o: { detail?: string; cause?: unknown } = {}) {
		super(message, o.cause === undefined ? undefined : { cause: o.cause });
		this.name = 'LoaderError';
		this.code = code;
		this.detail = o.detail ?? '';
	}
}

/** Text of anything thrown. */
export function reason(e: unknown): string {
	return e instanceof Error ? e.message : String(e);
}
