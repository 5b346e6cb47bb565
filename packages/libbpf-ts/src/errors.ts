import { getSystemErrorMap } from 'node:util';
import type { Feature } from './probe.js';

/** errnos libuv does not name, or that bpf(2) gives a meaning of its own. */
const EXTRA: Record<number, readonly [string, string]> = {
	5: ['EIO', 'input/output error'],
	34: ['ERANGE', 'numerical result out of range'],
	67: ['ENOLINK', 'link has been severed'],
	61: ['ENODATA', 'no data available'],
	116: ['ESTALE', 'stale file handle'],
	16: ['EBUSY', 'device or resource busy'],
	95: ['EOPNOTSUPP', 'operation not supported'],
	524: ['ENOTSUPP', 'operation not supported by this kernel'],
};
const CODES = new Map<string, number>();
for (const [n, [code]] of getSystemErrorMap()) if (-n < 4000) CODES.set(code, -n);
for (const [n, [code]] of Object.entries(EXTRA)) CODES.set(code, Number(n));

/** The errno of a code ('ENOENT' → 2); 0 when unknown. */
export const errnoOf = (code: string): number => CODES.get(code) ?? 0;

export function describeErrno(errno: number): { code: string; text: string } {
	const known = EXTRA[errno] ?? getSystemErrorMap().get(-errno);
	return known ? { code: known[0], text: known[1] } : { code: `E${errno}`, text: `error ${errno}` };
}

/** A failed kernel or libbpf operation: `op: what happened (why, and what to do)`. */
export class BpfError extends Error {
	override name = 'BpfError';
	readonly errno: number;
	/** 'ENOENT', 'EBUSY', … */
	readonly code: string;
	/** What was attempted, for example `attach xdp to eth0`. */
	readonly op: string;
	/** Why, where it is known. */
	readonly hint: string;

	constructor(op: string, errno: number, hint = '', cause?: unknown) {
		const { code, text } = describeErrno(errno);
		super(`${op}: ${text}${hint ? ` (${hint})` : ''}`, cause === undefined ? undefined : { cause });
		this.op = op;
		this.errno = errno;
		this.code = code;
		this.hint = hint;
	}
}

/** The verifier refused a program. `message` carries the telling line, `log` everything. */
export class VerifierError extends BpfError {
	override name = 'VerifierError';
	readonly program: string;
	readonly log: string;

	constructor(program: string, errno: number, log: string) {
		super(`load program ${program}`, errno, `verifier: ${tellingLine(log)}`);
		this.program = program;
		this.log = log;
	}

	/** The last lines of the log. */
	tail(lines = 20): string {
		return this.log.trimEnd().split('\n').slice(-lines).join('\n');
	}

	/** The line of the log that says why. */
	get reason(): string {
		return tellingLine(this.log);
	}
}

/** The running kernel (or libbpf) has no such feature. */
export class NotSupportedError extends BpfError {
	override name = 'NotSupportedError';
	readonly feature: Feature;

	constructor(op: string, feature: Feature, hint: string, errno = 95) {
		super(op, errno, hint);
		this.feature = feature;
	}
}

/** Lines of a verifier log that are bookkeeping: instructions, register states, source, statistics. */
const NOISE =
	/^(\d+: |; |R\d+(_\w+)?=|from \d|processed \d|verification time|stack depth|max_states|peak_states|mark_read|last_idx|first_idx|regs=|parent |mark_precise|func#|\s*$|-- BEGIN|-- END|arg#|propagating|caller:|callee:|returning from|to caller|BPF program is too large|\(.*\) )/;

/** The last line that is no bookkeeping, with the one before it where that belongs to it. */
export function tellingLine(log: string): string {
	const lines = log.trimEnd().split('\n');
	for (let i = lines.length - 1; i >= 0; i--) {
		if (/^BPF program is too large/.test(lines[i])) return lines[i].trim();
		if (NOISE.test(lines[i])) continue;
		const before = i > 0 && !NOISE.test(lines[i - 1]) ? `${lines[i - 1].trim()}; ` : '';
		return before + lines[i].trim();
	}
	return lines.at(-1)?.trim() ?? '';
}

/** What the caller did wrong (sizes, names, closed handles): no errno is involved. */
export class UsageError extends TypeError {
	override name = 'UsageError';
}
