/** GET /: the live page, one document with its style and script inside. What it may do is in its Content-Security-Policy. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

const STYLE = `
:root { color-scheme: light dark; --good: #17692c; --warn: #8a5300; --bad: #b3131b; --line: #8885; }
@media (prefers-color-scheme: dark) { :root { --good: #6fd38a; --warn: #f0b654; --bad: #ff8a85; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 0 1rem 2rem; }
h1 { font-size: 1.4rem; margin: 1rem 0 0; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0; }
.scroll { overflow: auto; max-height: 80vh; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); min-width: 4.5rem; }
thead th { font-weight: normal; opacity: .75; }
tbody th { font-weight: 600; min-width: 7rem; }
#problems *, #facts td, #events td:last-child { overflow-wrap: anywhere; }
#problems td, #facts td, #events td:last-child { width: 75%; min-width: 12rem; }
#services td:nth-child(2) { min-width: 14rem; }
.good { color: var(--good); }
.warn { color: var(--warn); }
.bad { color: var(--bad); }
.away { opacity: .55; }
select, input { font: inherit; }
label { margin-right: 1.5rem; }
`;

const head = (columns: readonly string[]) =>
	columns.length === 0 ? '' : `<thead><tr>${columns.map((c) => `<th scope="col">${c}</th>`).join('')}</tr></thead>`;
const section = (id: string, title: string, columns: readonly string[], none: string, note = '') => `
<section aria-labelledby="h-${id}"><h2 id="h-${id}">${title}</h2>${note}
<div class="scroll" role="region" tabindex="0" aria-labelledby="h-${id}"><table aria-labelledby="h-${id}">${head(columns)}<tbody id="${id}"></tbody></table></div>
<p id="no-${id}" hidden>${none}</p></section>`;

const BODY = `<h1>Beeline</h1>
<p id="state" role="status">Asking the agent …</p>
<noscript><p>This page needs JavaScript; <code>beeline status</code> says the same.</p></noscript>
<main id="main">${[
	section('problems', 'Problems', [], 'None.'),
	section('facts', 'This node', [], ''),
	section('nodes', 'Nodes', ['Node', 'Address', 'State', 'Reachable', 'Agent', 'Round trip', 'Backends'], 'None.'),
	'<p><label>Service <select id="service"><option value="">all</option></select></label></p>',
	section('services', 'Services', ['Service', 'Ports', 'Backends', 'Packets/s', 'Slots in transition'], 'None.'),
	section(
		'backends',
		'Backends',
		['Backend', 'Service', 'Node', 'State', 'Weight', 'Packets/s', 'New flows/s'],
		'None.',
		'<p>Packets are those that this node sent to them; new flows are known of this node’s own backends.</p>',
	),
	section('verdicts', 'Verdicts', ['Verdict', 'Program', 'Packets/s', 'Packets'], 'No packet yet.'),
	section(
		'events',
		'Events',
		['Time (UTC)', 'Event', 'Detail'],
		'None since the page was opened.',
		`<p><label><input type="checkbox" id="trace"> Packets’ verdicts too, for 5 minutes (of the service that is chosen; recording them costs each packet time)</label></p>
<p id="stream"></p>`,
	),
].join('')}
</main>`;

/** As tsc wrote it; the map stays behind. */
const SCRIPT = readFileSync(new URL('./live.js', import.meta.url), 'utf8').replace(/\n\/\/# sourceMappingURL=.*/, '');

const source = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

export const PAGE = {
	html: `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Beeline</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>${STYLE}</style></head><body>
${BODY}
<script type="module">${SCRIPT}</script></body></html>
`,
	headers: {
		'content-security-policy': [
			"default-src 'none'",
			`script-src ${source(SCRIPT)}`,
			`style-src ${source(STYLE)}`,
			"connect-src 'self'",
			'img-src data:',
			"base-uri 'none'",
			"form-action 'none'",
			"frame-ancestors 'none'",
			"require-trusted-types-for 'script'",
		].join('; '),
		'referrer-policy': 'no-referrer',
	},
} as const;
