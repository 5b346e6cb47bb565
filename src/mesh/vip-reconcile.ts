/**
 * VipEntries → maps. Adds before it deletes, writes nothing that is already so, may be repeated:
 *
 *     add:    tasks' addresses → tables → VIPs → namespaces
 *     delete: namespaces → VIPs → tables → tasks' addresses
 */
import { codeOf, sentence } from '../errors.js';
import {
	BackendState as BackendStates,
	type VipBackend as VipBackendRow,
	type VipKey,
	type Vip as VipRow,
} from '../loader/layout.gen.js';
import { maglev } from './maglev.js';
import type { PartError } from './reconcile.js';
import type { VipStore } from './store.js';
import type { VipEntries, VipEntry, VipIds } from './vip-entries.js';
import { vipKey } from './vips.js';

/** An address that no socket should be connected to any more. */
export interface GoneBackend {
	/** VNI. */
	readonly network: number;
	readonly address: string;
}

export interface VipResult {
	readonly rowsWritten: number;
	readonly rowsDeleted: number;
	readonly errors: readonly PartError[];
	/** Tasks that are down or gone since the last time. */
	readonly gone: readonly GoneBackend[];
}

export interface VipReconciler {
	reconcile(entries: VipEntries, nowMs: number): VipResult;
	/** A namespace that has just been seen, before the next reconcile(): its first dial is a matter of milliseconds. */
	attach(cookie: bigint, networks: readonly number[]): void;
}

const sameVip = (a: VipRow, b: VipRow): boolean => a.table === b.table && a.mask === b.mask && a.flags === b.flags;
const sameBackend = (a: VipBackendRow, b: VipBackendRow): boolean =>
	a.addr === b.addr && a.network === b.network && a.state === b.state;
const sameList = (a: readonly number[], b: readonly number[]): boolean =>
	a.length === b.length && a.every((x, i) => x === b[i]);

/** Reads the maps back and restores the indexes from them. */
export function createVipReconciler(store: VipStore, ids: VipIds): VipReconciler {
	const vips = new Map<string, readonly [VipKey, VipRow]>();
	for (const [key, row] of store.vips.entries()) {
		const name = vipKey(key.network, key.addr);
		vips.set(name, [key, row]);
		ids.vips.restore(name, row.table, 0);
	}
	const backends = new Map<number, VipBackendRow>(store.backends.entries());
	for (const [index, row] of backends) ids.backends.restore(vipKey(row.network, row.addr), index, 0);
	const namespaces = new Map<bigint, readonly number[]>(store.namespaces.entries());
	/** Slots that each table has. */
	const tables = new Map<number, Uint32Array>();
	for (const id of store.tables.ids()) {
		const slots = store.tables.read(id);
		if (slots !== undefined) tables.set(id, slots);
	}
	/** What an earlier agent left is not told apart yet from what is wanted. */
	let first = true;
	/** Entries that the maps follow, by service. */
	const applied = new Map<string, readonly VipEntry[]>();

	return {
		attach(cookie, networks) {
			if (networks.length === 0 || sameList(namespaces.get(cookie) ?? [], networks)) return;
			store.namespaces.setMany([[cookie, networks]]);
			namespaces.set(cookie, networks);
		},
		reconcile(e, nowMs) {
			const errors: PartError[] = [];
			const gone: GoneBackend[] = [];
			let rowsWritten = 0;
			let rowsDeleted = 0;
			const attempt = (part: string, action: () => void): boolean => {
				try {
					action();
					return true;
				} catch (error) {
					errors.push({ part, code: codeOf(error), message: sentence(error) });
					return false;
				}
			};
			const changed: VipEntry[] = [];
			for (const [name, s] of e.services) if (applied.get(name) !== s.entries) changed.push(...s.entries);

			// Addresses. One that is not to be chosen any more is not from here on, whatever the tables say.
			const rows: [number, VipBackendRow][] = [];
			for (const v of changed)
				for (const [index, row] of v.backends) {
					const was = backends.get(index);
					if (was !== undefined && sameBackend(was, row)) continue;
					rows.push([index, row]);
				}
			attempt('VIP backends', () => {
				if (rows.length === 0) return;
				store.backends.setMany(rows);
				for (const [index, row] of rows) {
					const was = backends.get(index);
					backends.set(index, row);
					if (row.state === BackendStates.BACKEND_DOWN && was !== undefined && was.state !== row.state)
						gone.push({ network: row.network, address: row.addr });
				}
				rowsWritten += rows.length;
			});

			// Tables. A mask never reaches beyond its table: a larger table comes before its mask, a smaller one after.
			const whole: [number, Uint32Array][] = [];
			const smaller: [number, Uint32Array][] = [];
			attempt('tables of VIPs', () => {
				for (const v of changed) {
					if (v.size === 0) continue;
					const slots = maglev(v.size, v.members);
					const was = tables.get(v.table);
					if (was === undefined || was.length < slots.length) whole.push([v.table, slots]);
					else if (was.length > slots.length) smaller.push([v.table, slots]);
					else if (was.some((x, i) => x !== slots[i])) {
						store.tables.write(v.table, slots);
						tables.set(v.table, slots);
						rowsWritten++;
					}
				}
				if (whole.length === 0) return;
				store.tables.put(whole);
				for (const [id, slots] of whole) tables.set(id, slots);
				rowsWritten += whole.length;
			});

			// VIPs.
			attempt('VIPs', () => {
				const next: [VipKey, VipRow][] = [];
				for (const v of changed) {
					// One whose table could not be made is no VIP yet.
					if (v.size > 0 && !tables.has(v.table)) continue;
					const row: VipRow = { table: v.table, mask: Math.max(0, v.size - 1), flags: v.flags };
					const was = vips.get(v.vip.key)?.[1];
					if (was === undefined || !sameVip(was, row))
						next.push([{ network: v.vip.network, addr: v.vip.address }, row]);
				}
				if (next.length === 0) return;
				store.vips.setMany(next);
				for (const [key, row] of next) vips.set(vipKey(key.network, key.addr), [key, row]);
				rowsWritten += next.length;
			});
			attempt('tables of VIPs', () => {
				if (smaller.length === 0) return;
				store.tables.put(smaller);
				for (const [id, slots] of smaller) tables.set(id, slots);
				rowsWritten += smaller.length;
			});

			// Namespaces.
			const wanted = e.namespaces;
			if (wanted !== undefined)
				attempt('namespaces', () => {
					const next = [...wanted].filter(
						([cookie, vnis]) => vnis.length > 0 && !sameList(namespaces.get(cookie) ?? [], vnis),
					);
					const going = [...namespaces.keys()].filter((cookie) => (wanted.get(cookie)?.length ?? 0) === 0);
					if (next.length > 0) store.namespaces.setMany(next);
					for (const [cookie, vnis] of next) namespaces.set(cookie, vnis);
					rowsWritten += next.length;
					if (going.length > 0) store.namespaces.deleteMany(going);
					for (const cookie of going) namespaces.delete(cookie);
					rowsDeleted += going.length;
				});
			if (errors.length > 0) return { rowsWritten, rowsDeleted, errors, gone };

			// Deletes, in reverse; nothing is looked for where nothing changed.
			const same =
				!first && applied.size === e.services.size && [...e.services].every(([n, s]) => applied.get(n) === s.entries);
			if (same) return { rowsWritten, rowsDeleted, errors, gone };
			const keys = new Set<string>();
			const used = new Set<number>();
			const named = new Set<number>();
			for (const s of e.services.values())
				for (const v of s.entries) {
					keys.add(v.vip.key);
					if (v.size > 0) used.add(v.table);
					for (const [index] of v.backends) named.add(index);
				}
			attempt('VIPs', () => {
				const going = [...vips].filter(([name]) => !keys.has(name));
				if (going.length === 0) return;
				store.vips.deleteMany(going.map(([, [key]]) => key));
				for (const [name] of going) {
					vips.delete(name);
					ids.vips.release(name, nowMs);
				}
				rowsDeleted += going.length;
			});
			attempt('tables of VIPs', () => {
				const going = [...tables.keys()].filter((id) => !used.has(id));
				if (going.length === 0) return;
				store.tables.delete(going);
				for (const id of going) tables.delete(id);
				rowsDeleted += going.length;
			});
			attempt('VIP backends', () => {
				const going = [...backends].filter(([index]) => !named.has(index));
				if (going.length === 0) return;
				store.backends.deleteMany(going.map(([index]) => index));
				for (const [index, row] of going) {
					backends.delete(index);
					ids.backends.release(vipKey(row.network, row.addr), nowMs);
					if (row.state !== BackendStates.BACKEND_DOWN) gone.push({ network: row.network, address: row.addr });
				}
				rowsDeleted += going.length;
			});
			if (errors.length === 0) {
				first = false;
				applied.clear();
				for (const [name, s] of e.services) applied.set(name, s.entries);
			}
			return { rowsWritten, rowsDeleted, errors, gone };
		},
	};
}
