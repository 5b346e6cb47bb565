/**
 * The live page in a window without a browser: the document as an agent serves it, and the script that is in it, byte for
 * byte. Only fetch is the test's: it says which agent is asked.
 */
import { request } from 'node:http';
import { Readable } from 'node:stream';
import { Window } from 'happy-dom';
import type { Page } from '../../src/http/page/live.js';

export type Fetch = (path: string, init?: { readonly signal?: AbortSignal | null }) => Promise<Response>;

/** fetch() over a unix socket. */
export function fetchOver(socketPath: string): Fetch {
	return (path, init) =>
		new Promise((resolve, reject) => {
			const signal = init?.signal ?? undefined;
			const ask = request({ socketPath, path, headers: { host: 'localhost' }, signal }, (answer) => {
				const headers = Object.entries(answer.headers).map(([k, v]): [string, string] => [k, String(v)]);
				const body = Readable.toWeb(answer) as ReadableStream<Uint8Array>;
				resolve(new Response(body, { status: answer.statusCode ?? 0, headers }));
			});
			ask.on('error', reject);
			ask.end();
		});
}

export interface Opened {
	readonly document: Window['document'];
	/** Text of what has an id. */
	text(id: string): string;
	/** Cells of a table, row by row. */
	rows(id: string): string[][];
	set(id: string, change: { readonly checked?: boolean; readonly value?: string }): void;
	/** Another tab is looked at, or this one again. */
	hide(hidden: boolean): void;
	close(): Promise<void>;
}

/** Opens GET / and runs its script. */
export async function open(fetch: Fetch, hidden = false): Promise<Opened> {
	const html = await (await fetch('/')).text();
	const window = new Window({ url: 'http://localhost:7980/' });
	const { document } = window;
	document.write(html);
	let isHidden = hidden;
	Object.defineProperty(document, 'hidden', { get: () => isHidden });
	const script = document.querySelector('script')!.textContent;
	const { start } = (await import(
		`data:text/javascript,${encodeURIComponent(script)}`
	)) as typeof import('../../src/http/page/live.js');
	const stop = start(document as unknown as Page, fetch as typeof globalThis.fetch);
	const at = (id: string) => document.getElementById(id)!;
	return {
		document,
		text: (id) => at(id).textContent,
		rows: (id) => [...at(id).children].map((row) => [...row.children].map((cell) => cell.textContent)),
		set(id, change) {
			Object.assign(at(id), change);
			at(id).dispatchEvent(new window.Event('change'));
		},
		hide(next) {
			isHidden = next;
			document.dispatchEvent(new window.Event('visibilitychange'));
		},
		async close() {
			stop();
			await window.happyDOM.close();
		},
	};
}
