/** Tables for people, the agent's own JSON for programs. */
import Table from 'cli-table3';

export type Format = 'table' | 'json';

export function print(text: string): void {
	process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
}

/** Rows under headings, without lines: what cut, sort and grep take. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
	const none = '';
	const t = new Table({
		head: [...head],
		style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2, compact: true },
		chars: {
			top: none,
			'top-mid': none,
			'top-left': none,
			'top-right': none,
			bottom: none,
			'bottom-mid': none,
			'bottom-left': none,
			'bottom-right': none,
			left: none,
			'left-mid': none,
			mid: none,
			'mid-mid': none,
			right: none,
			'right-mid': none,
			middle: none,
		},
	});
	for (const r of rows) t.push(r.map(String));
	return t
		.toString()
		.split('\n')
		.map((l) => l.trimEnd())
		.join('\n');
}
