/**
 * etcd as a membership source. A watch says that something changed; what is true, a complete list of one revision decides.
 * After anything that went wrong everything is listed anew, so a lost watch and a compaction lose nothing; with etcd away
 * the last known state stays, also over a restart of the agent.
 */
import { BeelineError, codeOf, sentence } from '../../errors.js';
import type { Membership } from '../types.js';
import {
	createEtcd,
	type Etcd,
	type EtcdOptions,
	endOf,
	type KeyValue,
	type Range,
	type Watch,
} from './etcd-client.js';
import { type Document, mapDocuments, type ParseNetwork, parseNetwork, readDocument } from './etcd-map.js';
import { createStore, type EtcdStore } from './etcd-store.js';
import { shareMembership } from './file.js';

export interface EtcdSourceOptions extends EtcdOptions {
	/** Begins with /, ends without. */
	readonly prefix: string;
}

/** The last good value of every key, for a start without etcd. */
export interface EtcdMemory {
	read(): readonly KeyValue[] | undefined;
	write(documents: readonly KeyValue[]): void;
}

export interface EtcdSourceDeps {
	readonly options: EtcdSourceOptions;
	readonly memory: EtcdMemory;
	readonly log: (level: 'info' | 'warn' | 'error', text: string) => void;
	readonly parseNetwork?: ParseNetwork;
	/** VNI of the tunnel between nodes; no network gets it. */
	readonly meshVni?: number;
	readonly etcd?: Etcd;
	/** Between two looks without any event, ms; for tests. */
	readonly lookMs?: number;
}

export interface EtcdSourceEvents {
	/** Not called for the first. `readAtMs`: when the change was noticed (Date.now()). */
	onChange(membership: Membership, readAtMs: number): void;
	/** Listed again, and the same. */
	onSame(): void;
	onError(error: BeelineError): void;
}

export interface EtcdSource {
	readonly place: string;
	readonly store: EtcdStore;
	current(): Membership;
	error(): BeelineError | undefined;
	problems(): readonly string[];
	/** Revision of a document as it was in a membership of this source. */
	revisionOf(membership: Membership, kind: 'nodes' | 'services', name: string): number | undefined;
	/** Lists now. */
	reload(): void;
	/** Resolves when a list that is at least of this revision is the current one. @throws what the list failed with */
	reach(revision: number): Promise<void>;
	close(): Promise<void>;
}

/** Events within it are one. */
const DEBOUNCE_MS = 5;
/** Lists take no more than this part of the time. */
const LIST_SHARE = 0.1;
const MAX_PAUSE_MS = 2000;
/** A watch that says nothing may be dead, or at a member that is cut off from the others: a list finds out. */
const LOOK_MS = 10_000;
const RETRY_MS = [100, 200, 500, 1000, 2000, 5000];
/** Keys in one answer: with their values, and without. */
const PAGE = 500;
const KEYS_PAGE = 10_000;
/** How long a start waits for etcd before it goes by what it remembers. */
const REMEMBER_MS = 3000;
/** What no waiting mends. */
const PERMANENT = new Set(['ETCD_TLS', 'ETCD_AUTH', 'ETCD_ANSWER', 'READ_FAILED', 'NO_NODES']);

interface Kept {
	/** As listed. */
	readonly mod: number;
	readonly document: Document;
	/** The last value that could be read; undefined: none could. */
	readonly good?: KeyValue;
}

/**
 * Resolves when a membership is known. etcd may start later than the agent; what no waiting mends is thrown, unless the
 * state of an earlier agent is remembered.
 * @throws BeelineError ETCD_TLS, ETCD_AUTH, ETCD_ANSWER, READ_FAILED, NO_NODES; STOPPED when `stop` is aborted
 */
export async function openEtcdSource(
	deps: EtcdSourceDeps,
	on: EtcdSourceEvents,
	stop?: AbortSignal,
): Promise<EtcdSource> {
	const { options, memory, log, meshVni } = deps;
	const { prefix } = options;
	const network = deps.parseNetwork ?? parseNetwork;
	const etcd = deps.etcd ?? createEtcd(options);
	const place = `etcd ${etcd.place} under ${prefix}/`;
	const all = `${prefix}/`;
	const lookMs = deps.lookMs ?? LOOK_MS;

	let kept = new Map<string, Kept>();
	/** Whether `kept` is of the etcd that is spoken to, without a gap since. */
	let connected = false;
	let revision = 0;
	let cluster: string | undefined;
	let current: Membership | undefined;
	let problems: readonly string[] = [];
	/** Lists work and watches do not. */
	let watchProblem: string | undefined;
	const revisions = new WeakMap<Membership, Map<string, number>>();
	let error: BeelineError | undefined;
	let settled = false;
	let closed = false;
	let watch: Watch | undefined;
	let waiters: { readonly revision: number; resolve(): void; reject(e: unknown): void }[] = [];

	// ---- reading
	async function pages(keysOnly: boolean): Promise<Range> {
		const kvs: KeyValue[] = [];
		let first: Range | undefined;
		let from = all;
		for (;;) {
			const page = await etcd.range({
				key: from,
				end: endOf(all),
				limit: keysOnly ? KEYS_PAGE : PAGE,
				keysOnly,
				...(first === undefined ? {} : { revision: first.revision }),
			});
			first ??= page;
			for (const kv of page.kvs) kvs.push(kv);
			if (!page.more) return { revision: first.revision, cluster: first.cluster, kvs, more: false };
			from = `${page.kvs[page.kvs.length - 1]?.key}\0`;
		}
	}

	/** Every key of one revision. Values that have not changed since the last list of this connection are not read again. */
	async function complete(): Promise<Range> {
		if (!connected || kept.size === 0) return await pages(false);
		const keys = await pages(true);
		// Another etcd, or one restored from a backup: its revisions mean other values.
		if (keys.cluster !== cluster || keys.revision < revision) return await pages(false);
		const changed = keys.kvs.filter((kv) => kept.get(kv.key)?.mod !== kv.mod);
		if (changed.length > keys.kvs.length / 4 && changed.length > 50) return await pages(false);
		const values = new Map<string, KeyValue>();
		for (let i = 0; i < changed.length; i += 50) {
			const { gets } = await etcd.txn(
				[],
				changed.slice(i, i + 50).map((kv) => ({ get: kv.key, revision: keys.revision })),
			);
			for (const [kv] of gets) if (kv !== undefined) values.set(kv.key, kv);
		}
		return { ...keys, kvs: keys.kvs.map((kv) => values.get(kv.key) ?? kv) };
	}

	function take(list: Range): void {
		const next = new Map<string, Kept>();
		const unknown: string[] = [];
		for (const kv of list.kvs) {
			const was = kept.get(kv.key);
			if (
				connected &&
				was !== undefined &&
				was.mod === kv.mod &&
				list.cluster === cluster &&
				list.revision >= revision
			) {
				next.set(kv.key, was);
				continue;
			}
			// Not of one that was removed and made again meanwhile.
			const last = was?.document.create === kv.create ? was.document.spec : undefined;
			const document = readDocument(prefix, kv, last, network);
			if ('unknown' in document) {
				unknown.push(kv.key);
				continue;
			}
			const good = document.problem === undefined ? kv : last === undefined ? undefined : was?.good;
			next.set(kv.key, { mod: kv.mod, document, ...(good === undefined ? {} : { good }) });
		}
		const mapped = mapDocuments(
			[...next.values()].map((k) => k.document),
			unknown,
			meshVni,
		);
		if (mapped.membership.nodes.length === 0)
			throw new BeelineError(
				'NO_NODES',
				`${place} names no node: add this one with beeline node add --config FILE, or set membership.prefix`,
			);
		kept = next;
		if (adopt(mapped, list)) memory.write([...kept.values()].flatMap((k) => (k.good === undefined ? [] : [k.good])));
	}

	/** @returns whether it is another membership than before */
	function adopt(mapped: ReturnType<typeof mapDocuments>, list?: Range): boolean {
		const before = new Set(problems);
		problems = mapped.problems;
		for (const p of problems) if (!before.has(p)) log('warn', p);
		const next = shareMembership(current, mapped.membership);
		const same =
			current !== undefined &&
			next.nodes === current.nodes &&
			next.services === current.services &&
			next.networks === current.networks;
		if (!same) current = next;
		revisions.set(current as Membership, new Map([...kept].map(([key, k]) => [key, k.mod])));
		if (list !== undefined) {
			if (cluster !== undefined && (list.cluster !== cluster || list.revision < revision))
				log('warn', `${place} is another etcd than before, or was restored from a backup: what it says now is taken`);
			({ revision, cluster } = list);
			connected = true;
			if (error !== undefined) {
				error = undefined;
				if (settled) log('info', `${place} is read again`);
			}
		}
		const at = noticedAt ?? Date.now();
		noticedAt = undefined;
		if (settled) {
			if (same) on.onSame();
			else on.onChange(current as Membership, at);
		}
		const reached = waiters.filter((w) => w.revision <= revision);
		waiters = waiters.filter((w) => w.revision > revision);
		for (const w of reached) w.resolve();
		if (!settled && list !== undefined) ready?.();
		return !same;
	}

	function fail(e: unknown): void {
		connected = false;
		const next =
			e instanceof BeelineError ? e : new BeelineError('ETCD_AWAY', `${place}: ${sentence(e)}`, { cause: e });
		for (const w of waiters.splice(0)) w.reject(next);
		if (next.message === error?.message) return;
		error = next;
		if (settled) on.onError(next);
		else if (!PERMANENT.has(next.code)) log('warn', `${next.message}; waiting for it`);
	}

	// ---- the loop
	let noticedAt: number | undefined;
	let isDirty = false;
	let wake: (() => void) | undefined;
	function dirty(): void {
		isDirty = true;
		noticedAt ??= Date.now();
		wake?.();
	}
	/** Until somebody is dirty, or for so long. */
	async function rest(ms: number): Promise<void> {
		if (isDirty || closed) return;
		await new Promise<void>((resolve) => {
			const timer = setTimeout(resolve, ms);
			wake = () => {
				clearTimeout(timer);
				resolve();
			};
		});
		wake = undefined;
	}
	const pause = (ms: number) =>
		new Promise<void>((resolve) => {
			const timer = setTimeout(resolve, ms);
			wakePause = () => {
				clearTimeout(timer);
				resolve();
			};
		});
	let wakePause: (() => void) | undefined;

	async function list(): Promise<number> {
		const began = performance.now();
		isDirty = false;
		take(await complete());
		return performance.now() - began;
	}

	/** The present watch has opened. */
	let isWatched = false;

	/** Follows by watch and lists; resolves with why the watch ended. @throws what a list failed with */
	async function follow(took: number): Promise<BeelineError | undefined> {
		let lost: BeelineError | undefined;
		isWatched = false;
		watch = etcd.watch(
			{ key: all, end: endOf(all), from: revision + 1 },
			{
				onOpen() {
					isWatched = true;
					watchProblem = undefined;
				},
				onEvent: dirty,
				onEnd(e) {
					lost = e;
					dirty();
				},
			},
		);
		const { endpoint } = watch;
		try {
			let cost = took;
			for (;;) {
				// Lists cost, and what is written in bulk comes as many events.
				await pause(Math.min(MAX_PAUSE_MS, cost / LIST_SHARE - cost));
				await rest(lookMs);
				if (closed || lost !== undefined) return lost;
				if (isDirty) await pause(DEBOUNCE_MS);
				cost = await list();
				// The one that is watched did not answer.
				if (etcd.endpoint !== endpoint) return undefined;
			}
		} finally {
			watch.close();
		}
	}

	async function run(): Promise<void> {
		let failures = 0;
		const backOff = () => rest(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)] as number);
		while (!closed) {
			try {
				const took = await list();
				const since = performance.now();
				const lost = await follow(took);
				if (closed) return;
				// What happens until the next watch nobody tells.
				connected = false;
				isDirty = false;
				// One that never opened has not lasted, however long the pause after a dear list was.
				if (isWatched && performance.now() - since > 1000) failures = 0;
				if (lost === undefined) continue;
				if (codeOf(lost) === 'ETCD_COMPACTED') {
					await backOff();
					continue;
				}
				// The second time in a row it is no accident: lists have to do.
				const problem = failures > 0 ? `${lost.message}: changes are seen only when it is listed anew` : undefined;
				if (problem === undefined || problem !== watchProblem) log('info', problem ?? `${lost.message}; listing anew`);
				watchProblem = problem;
				if (problem === undefined) failures++;
				else await backOff();
			} catch (e) {
				if (closed) return;
				fail(e);
				if (!settled && PERMANENT.has(codeOf(e))) refused?.(e as BeelineError);
				isDirty = false;
				await backOff();
			}
		}
	}

	// ---- opening
	let refused: ((e: BeelineError) => void) | undefined;
	let ready: (() => void) | undefined;
	const remembered = memory.read();
	function remember(): boolean {
		if (remembered === undefined) return false;
		const documents = remembered.map((kv) => ({ kv, document: readDocument(prefix, kv, undefined, network) }));
		kept = new Map(
			documents.flatMap(({ kv, document }) =>
				'unknown' in document || document.spec === undefined
					? []
					: [[kv.key, { mod: kv.mod, document, good: kv }] as const],
			),
		);
		return kept.size > 0;
	}
	const hasMemory = remember();

	const source: EtcdSource = {
		place,
		store: createStore(etcd, prefix, network, meshVni),
		current: () => current as Membership,
		error: () => error,
		problems: () => [...problems, ...(watchProblem === undefined ? [] : [watchProblem]), ...etcd.problems()],
		revisionOf: (membership, kind, name) => revisions.get(membership)?.get(`${prefix}/${kind}/${name}`),
		reload: dirty,
		reach(wanted) {
			if (wanted <= revision && connected) return Promise.resolve();
			const p = new Promise<void>((resolve, reject) => waiters.push({ revision: wanted, resolve, reject }));
			dirty();
			wakePause?.();
			return p;
		},
		async close() {
			if (closed) return;
			closed = true;
			watch?.close();
			wake?.();
			wakePause?.();
			for (const w of waiters.splice(0)) w.reject(new BeelineError('CLOSED', 'the agent is ending'));
			etcd.close();
			await running;
		},
	};

	let running: Promise<void> = Promise.resolve();
	await new Promise<void>((resolve, reject) => {
		const done = (e?: BeelineError): void => {
			clearTimeout(timer);
			refused = undefined;
			ready = undefined;
			stop?.removeEventListener('abort', aborted);
			if (e === undefined) {
				settled = true;
				resolve();
			} else void source.close().then(() => reject(e));
		};
		const goByMemory = (): boolean => {
			if (!hasMemory || current !== undefined) return false;
			const documents = [...kept.values()].map((k) => k.document);
			const mapped = mapDocuments(documents, [], meshVni);
			if (mapped.membership.nodes.length === 0) return false;
			log('warn', `${error?.message ?? `${place} does not answer`}: going by the membership that was known last`);
			adopt(mapped);
			done();
			return true;
		};
		const aborted = () => done(new BeelineError('STOPPED', 'stopped while waiting for etcd'));
		refused = (e) => {
			if (!goByMemory()) done(e);
		};
		ready = () => done();
		const timer = setTimeout(goByMemory, REMEMBER_MS);
		if (stop?.aborted === true) return aborted();
		stop?.addEventListener('abort', aborted, { once: true });
		running = run();
	});
	return source;
}
