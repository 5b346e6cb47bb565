/** Labels of a Docker service (DESIGN 7.4) → options. A label that cannot be read is reported and ignored. Pure. */
import { BeelineError } from '../../errors.js';
import type { ServiceOptions, ServiceSpec } from '../types.js';
import { REPLICAS_LABEL } from './docker-scale.js';
import { formatDuration, hostBits, parseDuration, withoutHostBits } from './document.js';
import { parseOptions } from './file.js';

const PREFIX = 'beeline.';

/** Something an operator wrote that has no effect. */
export interface LabelProblem {
	readonly service: string;
	readonly label: string;
	/** One sentence. */
	readonly reason: string;
}

export interface ServiceLabels {
	readonly options: ServiceOptions;
	/** Weight of a task on this node. */
	readonly weightOf: (node: string) => number;
	readonly problems: readonly LabelProblem[];
	readonly scaleFromZero?: ServiceSpec['scaleFromZero'];
}

const list = (text: string): string[] =>
	text
		.split(/[\s,]+/)
		.map((x) => x.trim())
		.filter((x) => x !== '');

/** Label → option in the notation of DESIGN 7.2, and how its text becomes the option's value. */
const OPTIONS: Readonly<Record<string, readonly [option: string, read: (text: string) => unknown]>> = {
	'return-path': ['returnPath', (t) => t],
	affinity: ['affinity', (t) => t],
	tracking: ['tracking', (t) => t],
	'tracking-window': ['trackingWindow', (t) => t],
	'udp-window': ['udpWindow', (t) => t],
	'drain-timeout': ['drainTimeout', (t) => t],
	prefer: ['prefer', (t) => t],
	addresses: ['addresses', list],
	allow: ['allow', list],
	deny: ['deny', list],
	'table-size': ['tableSize', (t) => (/^\d+$/.test(t) ? Number(t) : t)],
	enable: ['enable', (t) => (t === 'true' ? true : t === 'false' ? false : t)],
};

const WEIGHT_MAX = 1000;
const DEFAULT_IDLE_MS = 15 * 60_000;
/** Nodes tell of their clients each five seconds. */
const LEAST_IDLE_MS = 10_000;

/** `3` for all, or `node1=2,node2=0`: nodes that are not named have 1. A text is a reason. */
export function parseWeight(text: string): ((node: string) => number) | string {
	const number = (t: string) => (/^\d{1,4}$/.test(t) && Number(t) <= WEIGHT_MAX ? Number(t) : undefined);
	const all = number(text.trim());
	if (all !== undefined) return () => all;
	const by = new Map<string, number>();
	for (const part of list(text)) {
		const at = part.lastIndexOf('=');
		const weight = at > 0 ? number(part.slice(at + 1)) : undefined;
		if (weight === undefined)
			return `is ${JSON.stringify(part)}: expected a weight from 0 to ${WEIGHT_MAX}, or node=N,…`;
		by.set(part.slice(0, at), weight);
	}
	if (by.size === 0) return `is empty: expected a weight from 0 to ${WEIGHT_MAX}, or node=N,…`;
	return (node) => by.get(node) ?? 1;
}

/** Reads what concerns Beeline; other labels are none of its business. */
export function parseLabels(service: string, labels: Readonly<Record<string, string>>): ServiceLabels {
	const problems: LabelProblem[] = [];
	const good: Record<string, unknown> = {};
	let weightOf = (_node: string): number => 1;
	let scaleFromZero: ServiceSpec['scaleFromZero'];
	for (const [label, text] of Object.entries(labels)) {
		if (!label.startsWith(PREFIX)) continue;
		const key = label.slice(PREFIX.length);
		const problem = (reason: string) => problems.push({ service, label, reason: `${label} ${reason}` });
		if (key === 'weight') {
			const weight = parseWeight(text);
			if (typeof weight === 'string') problem(weight);
			else weightOf = weight;
			continue;
		}
		if (key === 'scale-from-zero') {
			const idleMs = text === 'true' ? DEFAULT_IDLE_MS : parseDuration(text);
			if (text === 'false') continue;
			if (idleMs === undefined || idleMs < LEAST_IDLE_MS)
				problem(
					`is ${JSON.stringify(text)}: expected true, false, or for how long nobody comes before it goes to rest, such as 10m (at least ${formatDuration(LEAST_IDLE_MS)})`,
				);
			else scaleFromZero = { idleMs };
			continue;
		}
		if (label === REPLICAS_LABEL) continue;
		const known = Object.hasOwn(OPTIONS, key) ? OPTIONS[key] : undefined;
		if (known === undefined) {
			problem(`is no label of Beeline: expected one of ${Object.keys(OPTIONS).join(', ')}, weight, scale-from-zero`);
			continue;
		}
		const [option, read] = known;
		const value = read(text.trim());
		const accepted = (v: unknown): boolean => {
			try {
				parseOptions({ [option]: v });
				return true;
			} catch (e) {
				if (!(e instanceof BeelineError)) throw e;
				problem(e.message.replace(/^\S+ /, ''));
				return false;
			}
		};
		// Of a list only what is wrong is left out: one slip in an allow list must not admit everybody.
		if (Array.isArray(value))
			good[option] = value
				.map((v: string) => {
					const meant = option === 'allow' || option === 'deny' ? hostBits(v) : undefined;
					if (meant === undefined) return v;
					// Nobody waits for an answer here, and left out it would admit whom the list was written against.
					problem(`is ${JSON.stringify(v)}: expected ${withoutHostBits(meant, true)} (it is read as ${meant.prefix})`);
					return meant.prefix;
				})
				.filter((v) => accepted([v]));
		else if (accepted(value)) good[option] = value;
	}
	return {
		options: parseOptions(good),
		weightOf,
		problems,
		...(scaleFromZero === undefined ? {} : { scaleFromZero }),
	};
}
