/**
 * Counters of the kernel as series that never go backwards. An index of a counter map is reused by another backend, and a
 * row is cleared; a series is named by its labels, and gains what its row gained.
 */
interface Series {
	index: number;
	/** What the series had before its row began. */
	base: readonly number[];
	last: readonly bigint[];
}

const MAX_GONE = 4096;

export class Monotonic {
	readonly #series = new Map<string, Series>();
	/** Series whose row went, oldest first: a backend that returns goes on from there. */
	readonly #gone = new Map<string, Series>();

	/**
	 * @param rows name of the series, index of its row, the row's values. Two rows of one name are added up by the caller.
	 * @returns the totals, by name
	 */
	update(rows: Iterable<readonly [name: string, index: number, values: readonly bigint[]]>): Map<string, number[]> {
		const totals = new Map<string, number[]>();
		for (const [name, index, values] of rows) {
			let s = this.#series.get(name);
			if (s === undefined) {
				s = this.#gone.get(name) ?? { index, base: values.map(() => 0), last: values.map(() => 0n) };
				this.#gone.delete(name);
				this.#series.set(name, s);
			}
			const last = s.last;
			if (s.index !== index || values.some((v, i) => v < last[i]!)) {
				s.base = s.base.map((b, i) => b + Number(last[i]));
				s.index = index;
			}
			s.last = values;
			const base = s.base;
			totals.set(
				name,
				values.map((v, i) => base[i]! + Number(v)),
			);
		}
		for (const [name, s] of this.#series) {
			if (totals.has(name)) continue;
			this.#gone.set(name, s);
			this.#series.delete(name);
		}
		for (const name of this.#gone.keys()) {
			if (this.#gone.size <= MAX_GONE) break;
			this.#gone.delete(name);
		}
		return totals;
	}
}
