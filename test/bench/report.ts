/** What every part of the bench prints: rows of text, medians, ratios. */
import Table from 'cli-table3';

/** Middle value; of an even number of values the lower of the two. */
export function median(values: readonly number[]): number {
	if (values.length === 0) throw new RangeError('median of no values');
	return [...values].sort((a, b) => a - b)[(values.length - 1) >> 1];
}

/** Medians hide how noisy the machine was: the spread says it. */
export function spread(values: readonly number[], digits = 0): string {
	return `${Math.min(...values).toFixed(digits)}-${Math.max(...values).toFixed(digits)}`;
}

export function print(title: string, head: readonly string[], rows: readonly (readonly string[])[]): void {
	const table = new Table({
		head: [...head],
		style: { head: [], border: [], compact: true },
		colAligns: head.map((_, i) => (i === 0 ? 'left' : 'right')),
	});
	table.push(...rows.map((r) => [...r]));
	console.log(`\n${title}\n${table.toString()}`);
}

/** A gate is told, never asserted: `1.08 (≤ 1.15)`. */
export function against(ratio: number, gate: number | undefined): string {
	const text = ratio.toFixed(2);
	return gate === undefined ? text : `${text} (${ratio <= gate ? 'within' : 'ABOVE'} ${gate})`;
}

export function progress(text: string): void {
	process.stderr.write(`${text}\n`);
}
