/** Strong entity tags of JSON resources, RFC 9110 section 8.8.3, and the preconditions of section 13.1. */
import { createHash } from 'node:crypto';

export function etagOf(body: unknown): string {
	return `"${createHash('sha256').update(JSON.stringify(body)).digest('base64url').slice(0, 22)}"`;
}

/** Whether an If-Match or If-None-Match header names the tag. `weak`: W/ is ignored (If-None-Match only). */
export function matches(header: string, tag: string, weak: boolean): boolean {
	if (header.trim() === '*') return true;
	return header.split(',').some((t) => {
		const one = t.trim();
		return one === tag || (weak && one === `W/${tag}`);
	});
}
