/**
 * Facts of this node are read beside the loop. Reading takes as long as the kernel and half a dozen programs do, up to a third
 * of a second on a busy node, and a task that died must not wait for that: the loop goes on with what it knows.
 */

import type { Mesh } from '../mesh/plan.js';
import type { Membership, ServiceSpec } from '../mesh/types.js';
import type { Asked, Held } from './asked.js';
import type { Local } from './local.js';

export interface Facts {
	readonly local: Local;
	/** What they were read for. */
	readonly asked: Asked;
	/** When reading began: what came later may not be in them. */
	readonly at: Date;
}

export class FactReader {
	#begun = 0;
	#taken = 0;
	#reading: Promise<void> | undefined;
	#found: Facts | undefined;
	#error: unknown;
	#again = false;
	readonly #collect: (mesh: Mesh) => Promise<Local>;
	readonly #onRead: (again: boolean) => void;

	/** `onRead`: something waits in take(); `again`: and is not new enough for all who ordered. */
	constructor(collect: (mesh: Mesh) => Promise<Local>, onRead: (again: boolean) => void) {
		this.#collect = collect;
		this.#onRead = onRead;
	}

	/** Number of the newest reading whose end take() has told. */
	get taken(): number {
		return this.#taken;
	}

	/** Begins to read, unless that is under way. Number of the reading that sees everything up to now. */
	order(mesh: Mesh, asked: Asked): number {
		if (this.#reading !== undefined) {
			this.#again = true;
			return this.#begun + 1;
		}
		this.#reading = this.#read(mesh, asked).then(() => {
			this.#reading = undefined;
			const again = this.#again;
			this.#again = false;
			this.#onRead(again);
		});
		return this.#begun;
	}

	/** Reads now. */
	async read(mesh: Mesh, asked: Asked): Promise<void> {
		await this.idle();
		await this.#read(mesh, asked);
	}

	/** Resolves when nothing is being read. */
	async idle(): Promise<void> {
		while (this.#reading !== undefined) await this.#reading;
	}

	/** What was read since the last time. @throws why it could not be read, once */
	take(): Facts | undefined {
		this.#taken = this.#reading === undefined ? this.#begun : this.#begun - 1;
		const [found, error] = [this.#found, this.#error];
		this.#found = this.#error = undefined;
		if (error !== undefined) throw error;
		return found;
	}

	async #read(mesh: Mesh, asked: Asked): Promise<void> {
		this.#begun++;
		const at = new Date();
		try {
			this.#found = { local: await this.#collect(mesh), asked, at };
			this.#error = undefined;
		} catch (e) {
			this.#error = e;
		}
	}
}

/** The membership as far as facts go: services that are held are as in `before`. */
export function knownPart(full: Membership, held: Held, before: Mesh | undefined): Membership {
	if (held.services.size === 0) return full;
	const specs = new Map<string, ServiceSpec>();
	for (const name of held.services) {
		const spec = before?.services.get(name)?.spec;
		if (spec !== undefined) specs.set(name, spec);
	}
	const services = full.services.flatMap((s) => (held.services.has(s.name) ? (specs.get(s.name) ?? []) : s));
	for (const [name, spec] of specs) if (!full.services.some((s) => s.name === name)) services.push(spec);
	return { ...full, services };
}
