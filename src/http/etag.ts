/** Strong entity tags of JSON resources, RFC 9110 section 8.8.3, and the preconditions of section 13.1. */
import { createHash } from 'node:crypto';

/** Of 22 characters; the first half is of what a change can alter, the second of the whole body. */
const HALF = 11;

const digest = (body: unknown) => createHash('sha256').update(JSON.stringify(body)).digest('base64url').slice(0, HALF);

/** @param settings what a change of the resource is about; the rest is measured and moves by itself */
export function etagOf(body: unknown, settings: unknown = body): string {
	return `"${digest(settings)}${digest(body)}"`;
}

const list = (header: string) => header.split(',').map((t) => t.trim());

/** Whether an If-None-Match header names the tag; W/ is ignored. */
export function known(header: string, tag: string): boolean {
	return header.trim() === '*' || list(header).some((t) => t === tag || t === `W/${tag}`);
}

/**
 * Whether an If-Match header names the resource as it is. Only the half of the settings counts: a round-trip time that was
 * measured anew, or slots that came to rest, are no change that somebody else made.
 */
export function unchanged(header: string, tag: string): boolean {
	return (
		header.trim() === '*' ||
		list(header).some(
			(t) => t.length === tag.length && t.endsWith('"') && t.slice(0, HALF + 1) === tag.slice(0, HALF + 1),
		)
	);
}
