/**
 * The script of the live page, run by the browser as one module without imports. Names from outside become text only: the
 * part of the DOM that it is typed with has nothing that takes markup.
 */
import type { BackendView, NodeView, ServiceView, StatusView } from '../schemas.js';

interface Element {
	textContent: string | null;
	className: string;
	hidden: boolean;
	checked: boolean;
	value: string;
	append(child: Element): void;
	remove(): void;
	setAttribute(name: string, value: string): void;
	addEventListener(type: string, listener: () => void): void;
}
export interface Page {
	title: string;
	readonly hidden: boolean;
	createElement(tag: string): Element;
	getElementById(id: string): Element | null;
	addEventListener(type: string, listener: () => void): void;
}

/** Text of a cell; with a class where it is good, something to look at (warn) or bad. */
type Cell = string | readonly [text: string, look: '' | 'good' | 'warn' | 'bad'];
/** Counters by what they count, at a time in ms of performance.now(). */
export interface Counts {
	readonly at: number;
	readonly of: ReadonlyMap<string, number>;
}
type Rates = ReadonlyMap<string, number>;

const POLL_MS = 2000;
/** A read of a large mesh costs its agent time: it rests this many times as long, within a limit. */
const REST = 9;
const MAX_REST_MS = 15_000;
const TIMEOUT_MS = 10_000;
const RETRY_MS = 3000;
const REDRAW_MS = 250;
const TRACE_LIMIT_MS = 5 * 60_000;
const MAX_ROWS = 500;
const MAX_EVENTS = 100;

const COUNTED: Readonly<Record<string, (label: (name: string) => string) => string>> = {
	beeline_packets_total: (label) => `verdict ${label('program')} ${label('verdict')}`,
	beeline_service_packets_total: (label) => `service ${label('service')}`,
	beeline_backend_packets_total: (label) => `packets ${label('backend')}`,
	beeline_backend_new_flows_total: (label) => `flows ${label('backend')}`,
};

/** Prometheus' text format → what the page shows of it. */
export function counts(text: string, at: number): Counts {
	const of = new Map<string, number>();
	for (const line of text.split('\n')) {
		const [, name, labels, value] = /^(\w+)\{(.*)\} (\S+)/.exec(line) ?? [];
		const key = COUNTED[name ?? ''];
		if (key === undefined) continue;
		const known: Record<string, string> = {};
		for (const [, label, quoted] of labels!.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
			known[label!] = quoted!.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
		const what = key((label) => known[label] ?? '');
		of.set(what, (of.get(what) ?? 0) + Number(value));
	}
	return { at, of };
}

/** Per second. A counter that is new or went back (the agent was restarted) has no rate yet. */
export function rates(before: Counts | undefined, now: Counts): Rates {
	const out = new Map<string, number>();
	const seconds = before === undefined ? 0 : (now.at - before.at) / 1000;
	for (const [key, value] of now.of) {
		const last = before?.of.get(key);
		if (last !== undefined && value >= last && seconds > 0) out.set(key, (value - last) / seconds);
	}
	return out;
}

const number = (n: number | null | undefined) =>
	n == null ? '–' : n.toLocaleString('en', { maximumFractionDigits: n < 10 ? 1 : 0 });
const clock = (at: string | null) => at?.replace('T', ' ').replace(/\.\d+Z$/, ' UTC') ?? '–';
const look = (state: string): Cell => [
	state,
	['active', 'serving'].includes(state) ? 'good' : state === 'down' || state.startsWith('refused') ? 'bad' : 'warn',
];

/** What an operator should look at. */
export function problemRows(s: StatusView): Cell[][] {
	const of = (what: string, why: string | null | undefined): Cell[][] => (why ? [[[what, 'bad'], why]] : []);
	return [
		...of('Membership', s.membership.error),
		...of('Reconcile', s.reconcile.lastError),
		...of('Tables differ from', s.differing.join(', ')),
		...of('No keys with', s.encryption?.missing.join(', ')),
		...of('Keys not renewed with', s.encryption?.stale.join(', ')),
		...s.refused.flatMap((r) => of(`${r.what} ${r.service === undefined ? '' : `of ${r.service} `}refused`, r.reason)),
		...s.warnings.map((w): Cell[] => [['Warning', 'warn'], w]),
	];
}

export function factRows(s: StatusView): Cell[][] {
	const r = s.reconcile;
	return [
		['Node', `${s.node} (${s.address}), Beeline ${s.version}, since ${clock(s.since)}`],
		['Uplinks', s.uplinks.map((u) => `${u.name} (XDP ${u.xdp}, MTU ${u.mtu})`).join(', ') || 'none'],
		['Membership', `${s.membership.source}, ${s.membership.place}, read ${clock(s.membership.readAt)}`],
		['Reconciles', `${number(r.runs)}, ${number(r.errors)} failed, last ${clock(r.lastAt)} in ${number(r.lastMs)} ms`],
		['Backends', `${number(s.totals.backendsActive)} of ${number(s.totals.backends)} active`],
		['Slots in transition', number(s.totals.slotsInTransition)],
		['Digest of the tables', s.digest],
	];
}

export function nodeRows(nodes: readonly NodeView[]): Cell[][] {
	return nodes.map((n) => [
		n.self ? `${n.name} (this one)` : n.name,
		n.address,
		look(n.state),
		n.self || n.reachable === null ? '–' : n.reachable ? ['yes', 'good'] : ['no', 'bad'],
		n.agentPresent === null ? '–' : n.agentPresent ? ['answers', 'good'] : ['refuses probes', 'warn'],
		n.rttMs === null ? '–' : `${n.rttMs.toFixed(2)} ms`,
		number(n.backends),
	]);
}

export function serviceRows(services: readonly ServiceView[], per: Rates): Cell[][] {
	return services.map((s) => {
		const bad = s.ports.some((p) => p.state === 'refused');
		const ports = s.ports.map((p) => {
			const why = p.state === 'serving' ? '' : ` ${p.state}${p.reason === null ? '' : `: ${p.reason}`}`;
			return `${p.published}→${p.target}/${p.protocol}${why}`;
		});
		const { total, active, draining, down } = s.backends;
		const rest = `${draining > 0 ? `, ${draining} draining` : ''}${down > 0 ? `, ${down} down` : ''}`;
		return [
			s.name,
			[ports.join(', ') || 'none', bad ? 'bad' : s.ports.every((p) => p.state === 'serving') ? '' : 'warn'],
			total === 0 && s.scaleFromZero !== null
				? 'none until somebody comes'
				: [`${active} of ${total} active${rest}`, down > 0 || active === 0 ? 'bad' : draining > 0 ? 'warn' : 'good'],
			number(per.get(`service ${s.name}`)),
			[number(s.slotsInTransition), s.slotsInTransition > 0 ? 'warn' : ''],
		];
	});
}

export function backendRows(backends: readonly BackendView[], per: Rates): Cell[][] {
	return backends.map((b) => [
		`${b.addresses.join(', ') || 'process'}, ${b.target}/${b.protocol}`,
		b.service,
		b.node,
		b.problem === null ? look(b.state) : [`${b.state}: ${b.problem}`, 'bad'],
		number(b.weight),
		number(per.get(`packets ${b.id}`)),
		// Counted where it lives only.
		b.local ? number(per.get(`flows ${b.id}`)) : '–',
	]);
}

/** Those with the most packets first. */
export function verdictRows(all: Counts, per: Rates): Cell[][] {
	return [...all.of]
		.filter(([key, n]) => key.startsWith('verdict ') && n > 0)
		.sort(([a, m], [b, n]) => (per.get(b) ?? 0) - (per.get(a) ?? 0) || n - m)
		.map(([key, n]) => {
			const [, program, verdict] = key.split(' ') as [string, string, string];
			return [[verdict, verdict.startsWith('drop') ? 'warn' : ''], program, number(per.get(key)), number(n)];
		});
}

/** One of /v1/events as a row; undefined: nothing to show. */
export function eventRow(type: string, data: string): Cell[] | undefined {
	const e = JSON.parse(data);
	const at = (e.at ?? '').slice(11, 23);
	if (type === 'reconcile')
		return e.error === null
			? [at, 'reconcile', `${e.cause}: ${number(e.changes)} changes in ${number(e.ms)} ms`]
			: [at, ['reconcile failed', 'bad'], `${e.cause}: ${e.error}`];
	if (type === 'lost') return ['', ['lost', 'warn'], `${number(e.events)} events: more came than were read`];
	if (type !== 'verdict') return undefined;
	const to = e.backend === null ? '' : `, backend ${e.backend}`;
	const ends = e.protocol === null ? 'not read here' : `${e.protocol} ${e.source} → ${e.destination}`;
	const what = `${ends}, ${e.bytes} bytes, ${e.program} on ${e.interface}${to}`;
	return [at, [e.verdict, e.verdict.startsWith('drop') ? 'warn' : ''], what];
}

/** Begins to follow the agent, while the page is seen. @returns what ends it */
export function start(page: Page, fetch: typeof globalThis.fetch): () => void {
	const at = (id: string) => page.getElementById(id)!;
	const say = (e: Element, text: string, className = '') => {
		// A live region is read out when it is written to, and a selection is lost: only what differs is written.
		if (e.textContent !== text) e.textContent = text;
		if (e.className !== className) e.className = className;
	};
	const drawn = new Map<string, { readonly row: Element; readonly cells: Element[] }[]>();
	const draw = (id: string, all: readonly Cell[][]) => {
		const rows = all.slice(0, MAX_ROWS);
		if (all.length > MAX_ROWS) rows.push([`and ${number(all.length - MAX_ROWS)} more`]);
		const old = drawn.get(id) ?? [];
		drawn.set(id, old);
		for (const { row } of old.splice(rows.length)) row.remove();
		for (const [i, cells] of rows.entries()) {
			if (old[i] === undefined) {
				old[i] = { row: page.createElement('tr'), cells: [] };
				at(id).append(old[i].row);
			}
			const { row, cells: there } = old[i];
			for (const cell of there.splice(cells.length)) cell.remove();
			for (const [j, cell] of cells.entries()) {
				if (there[j] === undefined) {
					there[j] = page.createElement(j === 0 ? 'th' : 'td');
					if (j === 0) there[j].setAttribute('scope', 'row');
					row.append(there[j]);
				}
				if (typeof cell === 'string') say(there[j], cell);
				else say(there[j], ...cell);
			}
		}
		at(`no-${id}`).hidden = rows.length > 0;
	};

	const chosen = () => at('service').value;
	let offered = '';
	const offer = (names: readonly string[]) => {
		if (offered === JSON.stringify(names)) return;
		offered = JSON.stringify(names);
		const was = chosen();
		say(at('service'), '');
		for (const name of ['', ...names]) {
			const option = page.createElement('option');
			option.textContent = name === '' ? 'all' : name;
			option.value = name;
			at('service').append(option);
		}
		at('service').value = names.includes(was) ? was : '';
		if (chosen() !== was) follow();
	};

	const get = async (path: string, signal = AbortSignal.timeout(TIMEOUT_MS)) => {
		const res = await fetch(path, { signal });
		if (res.ok) return res;
		const problem = (await res.json().catch(() => ({}))) as { detail?: string };
		throw new Error(problem.detail ?? `${path} answered ${res.status}`);
	};
	const json = async <T>(path: string) => (await get(path)).json() as Promise<T>;

	let last: Counts | undefined;
	let round = 0;
	const poll = async (mine: number) => {
		const of = chosen();
		const status = await json<StatusView>('/v1/status');
		const many = of === '' && status.totals.backends > 2 * MAX_ROWS;
		const query = of === '' ? '' : `?service=${encodeURIComponent(of)}`;
		const [{ nodes }, { services }, { backends }, metrics] = await Promise.all([
			json<{ nodes: NodeView[] }>('/v1/nodes'),
			json<{ services: ServiceView[] }>('/v1/services'),
			many ? { backends: [] } : json<{ backends: BackendView[] }>(`/v1/backends${query}`),
			get('/metrics').then((res) => res.text()),
		]);
		if (mine !== round) return;
		const now = counts(metrics, performance.now());
		const per = rates(last, now);
		last = now;
		const problems = problemRows(status);
		const state = `${status.ready ? 'ready' : 'not ready'}, ${status.state}`;
		say(at('state'), `${status.node}: ${state}`, state === 'ready, running' ? 'good' : 'warn');
		page.title = `${status.node} ${state}${problems.length > 0 ? ` (${problems.length})` : ''} – Beeline`;
		at('main').className = '';
		offer(services.map((s) => s.name));
		draw('problems', problems);
		draw('facts', factRows(status));
		draw('nodes', nodeRows(nodes));
		const shown = services.filter((s) => of === '' || s.name === of);
		draw('services', serviceRows(shown, per));
		draw('backends', backendRows(backends, per));
		say(at('no-backends'), many ? `${number(status.totals.backends)}: choose a service to see its backends.` : 'None.');
		draw('verdicts', verdictRows(now, per));
	};

	let timer: ReturnType<typeof setTimeout> | undefined;
	const watch = async () => {
		const mine = ++round;
		const began = performance.now();
		let rest = POLL_MS;
		try {
			await poll(mine);
			rest = Math.min(MAX_REST_MS, Math.max(POLL_MS, REST * (performance.now() - began)));
		} catch (e) {
			if (mine !== round) return;
			last = undefined;
			at('main').className = 'away';
			page.title = 'no answer – Beeline';
			say(at('state'), `No answer from the agent: ${(e as Error).message}. What is shown is old; trying again.`, 'bad');
		}
		if (mine === round) timer = setTimeout(watch, rest);
	};

	let events: Cell[][] = [];
	let redraw: ReturnType<typeof setTimeout> | undefined;
	const show = (row: Cell[] | undefined) => {
		if (row !== undefined) events = [row, ...events.slice(0, MAX_EVENTS - 1)];
		redraw ??= setTimeout(() => {
			redraw = undefined;
			draw('events', events);
		}, REDRAW_MS);
	};
	let reading: AbortController | undefined;
	/** Reads the events that are asked for now. An agent has few places for readers: there is one a page, and none when nobody looks. */
	const follow = async () => {
		reading?.abort();
		if (page.hidden) return;
		reading = new AbortController();
		const { signal } = reading;
		const traced = at('trace').checked;
		const of = traced && chosen() !== '' ? `&service=${encodeURIComponent(chosen())}` : '';
		while (!signal.aborted) {
			try {
				const res = await get(`/v1/events?verdicts=${traced}${of}`, signal);
				say(at('stream'), '');
				const reader = res.body!.pipeThrough(new TextDecoderStream()).getReader();
				for (let text = ''; ; ) {
					const { done, value } = await reader.read();
					if (done) throw new Error('the agent ended it');
					const messages = (text + value).split('\n\n');
					text = messages.pop()!;
					for (const m of messages) {
						const [, type, data] = /^event: (.*)\ndata: (.*)/.exec(m) ?? [];
						if (type !== undefined) show(eventRow(type, data!));
					}
				}
			} catch (e) {
				if (signal.aborted) return;
				say(at('stream'), `No events: ${(e as Error).message}. Trying again.`, 'bad');
			}
			await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
		}
	};

	let untick: ReturnType<typeof setTimeout> | undefined;
	const trace = () => {
		clearTimeout(untick);
		// Forgotten, it would cost every packet time for as long as the page is open.
		if (at('trace').checked)
			untick = setTimeout(() => {
				at('trace').checked = false;
				void follow();
			}, TRACE_LIMIT_MS);
		void follow();
	};
	const stop = () => {
		clearTimeout(timer);
		round++;
		reading?.abort();
	};
	const seen = () => {
		stop();
		if (page.hidden) last = undefined;
		if (page.hidden) return;
		void watch();
		void follow();
	};
	draw('events', events);
	page.addEventListener('visibilitychange', seen);
	at('service').addEventListener('change', seen);
	at('trace').addEventListener('change', trace);
	seen();
	return () => {
		stop();
		clearTimeout(untick);
		clearTimeout(redraw);
	};
}

const { document } = globalThis as { document?: Page };
if (document !== undefined) start(document, (...a) => fetch(...a));
