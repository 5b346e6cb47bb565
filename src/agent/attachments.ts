/** Programs on the interfaces of this node: what is attached, what could not be, and what nothing wants any more. */
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { sentence } from '../errors.js';
import { type Datapath, isNoInterface } from '../loader/datapath.js';
import { endpointsOf } from '../mesh/entries.js';
import type { Mesh, MeshBackend } from '../mesh/plan.js';
import type { Run } from './exec.js';
import type { Local } from './local.js';
import { turnOffOffloads } from './offloads.js';

export interface AttachmentsDeps {
	readonly datapath: Datapath;
	readonly run: Run;
	readonly log: Logger;
	readonly xdp: () => Config['datapath']['xdp'];
	/** Names of interfaces, by index. */
	readonly names: () => ReadonlyMap<number, string> | undefined;
	/** Nothing may be attached any more. */
	readonly isClosed: () => boolean;
	/** For the operator, by what they are about. */
	readonly warnings: Map<string, string>;
	/** Offloads of a device were turned off, and are to be given back on detach. */
	readonly onOffloads: (device: string, features: readonly string[]) => void;
	/** An interface went between the look at it and the attaching. */
	readonly onGone: () => void;
	/** All that was attached beside the loop is done. */
	readonly onDone: () => void;
}

/** `known`: also those that are attached already. `beside`: new ones later. */
export interface How {
	readonly known: boolean;
	readonly beside: boolean;
}

/**
 * Programs of new interfaces are attached beside the loop, and what is attached is looked at in full looks only: each such
 * call waits for the kernel's one lock of all interfaces, which containers that come and go hold for hundreds of
 * milliseconds, just when one that died must go.
 */
export class Attachments {
	/** By index. */
	readonly uplinks = new Map<number, { readonly name: string; readonly mode: 'native' | 'generic' }>();
	readonly #endpoints = new Set<number>();
	readonly #gateways = new Set<number>();
	/** `uplink 3` → what has no program, and why. */
	readonly #errors = new Map<string, string>();
	readonly #attaching = new Set<string>();
	#besides: Promise<void> = Promise.resolve();
	readonly #deps: AttachmentsDeps;

	constructor(deps: AttachmentsDeps) {
		this.#deps = deps;
	}

	/** Some are still being attached beside the loop. */
	get busy(): boolean {
		return this.#attaching.size > 0;
	}
	get uplinkFailed(): boolean {
		return [...this.#errors.keys()].some((key) => key.startsWith('uplink '));
	}
	errors(): string[] {
		return [...this.#errors.values()];
	}
	/** Resolves when nothing is being attached beside the loop. */
	idle(): Promise<void> {
		return this.#besides;
	}

	/** Attachments of an earlier agent that nothing wants any more. */
	adopt(): void {
		for (const a of this.#deps.datapath.status().attachments) {
			if (a.ifindex === undefined || a.severed) continue;
			if (a.slot === 'uplink_xdp') this.uplinks.set(a.ifindex, { name: String(a.ifindex), mode: a.mode ?? 'native' });
			if (a.slot === 'endpoint_tc') this.#endpoints.add(a.ifindex);
			if (a.slot === 'gateway_tc') this.#gateways.add(a.ifindex);
		}
	}

	attachEndpoints(wanted: ReadonlySet<number>, how: How): void {
		const { datapath } = this.#deps;
		this.#attach('endpoint', wanted, how, {
			now: (ifindex) => datapath.attachEndpoint(ifindex),
			beside: (ifindex) => datapath.attachEndpointAsync(ifindex),
		});
	}

	/** @param names of the interfaces that there are */
	detachEndpoints(isWanted: (ifindex: number) => boolean, names: ReadonlyMap<number, string>): void {
		const { datapath } = this.#deps;
		for (const ifindex of this.#endpoints) {
			if (isWanted(ifindex)) continue;
			if (names.has(ifindex)) datapath.detachEndpoint(ifindex);
			else datapath.forgetEndpoint(ifindex);
			this.#endpoints.delete(ifindex);
		}
	}

	/** Keys of backends of this node whose endpoint has no program yet. */
	unattached(m: Mesh, l: Local): string[] {
		const waits = (b: MeshBackend) => {
			const [at4, at6] = endpointsOf(b, l.facts.endpoints);
			const endpoint = at4 ?? at6;
			return endpoint !== undefined && this.#attaching.has(`endpoint ${endpoint.ifindex}`);
		};
		if (!this.busy) return [];
		return [...m.services.values()].flatMap((s) =>
			s.backends.filter((b) => b.node === m.self && !b.gone && waits(b)).map((b) => b.key),
		);
	}

	/** Those that are not wanted any more are detached. */
	attachGateways(l: Local, how: How): void {
		const { datapath } = this.#deps;
		const wanted = l.facts.gateways;
		const isOwn = (ifindex: number) => wanted.get(ifindex)?.ifindex === ifindex;
		this.#attach('gateway', wanted.keys(), how, {
			now: (ifindex) => datapath.attachGateway(ifindex, isOwn(ifindex)),
			beside: (ifindex) => datapath.attachGatewayAsync(ifindex, isOwn(ifindex)),
		});
		for (const ifindex of this.#gateways) {
			if (wanted.has(ifindex)) continue;
			if (l.names.has(ifindex)) datapath.detachGateway(ifindex);
			else datapath.forgetGateway(ifindex);
			this.#gateways.delete(ifindex);
		}
	}

	/** Those that are not wanted any more are detached. */
	async attachUplinks(l: Local): Promise<void> {
		const { datapath, log, warnings } = this.#deps;
		for (const { link, l3 } of l.uplinks) {
			try {
				const a = datapath.attachUplink({
					ifindex: link.ifindex,
					name: link.name,
					mode: this.#deps.xdp(),
					mtu: Math.max(link.mtu, l3.mtu),
				});
				this.#errors.delete(`uplink ${link.ifindex}`);
				if (this.uplinks.get(link.ifindex)?.mode === a.mode) continue;
				this.uplinks.set(link.ifindex, { name: link.name, mode: a.mode });
				log.info({ uplink: link.name, mode: a.mode, program: a.program, via: a.via }, 'uplink attached');
				await this.#turnOffOffloads(link.name, a.mode);
				if (a.mode === 'generic') {
					warnings.set(
						`mode ${link.name}`,
						this.#deps.xdp() === 'generic'
							? `${link.name}: datapath.xdp is generic, so packets take the slower way: auto lets the driver do it where it can`
							: `${link.name}: its driver has no native XDP, so packets take the slower generic way`,
					);
				} else warnings.delete(`mode ${link.name}`);
			} catch (e) {
				this.#errors.set(`uplink ${link.ifindex}`, sentence(e));
			}
		}
		const wanted = new Set(l.uplinks.map((u) => u.link.ifindex));
		for (const [ifindex, a] of this.uplinks) {
			if (wanted.has(ifindex)) continue;
			datapath.detachUplink(ifindex);
			this.uplinks.delete(ifindex);
			this.#errors.delete(`uplink ${ifindex}`);
			warnings.delete(`mode ${a.name}`);
			warnings.delete(`offloads ${a.name}`);
			log.info({ uplink: a.name }, 'uplink detached');
		}
	}

	async #turnOffOffloads(device: string, mode: 'native' | 'generic'): Promise<void> {
		const { run, log, warnings, onOffloads } = this.#deps;
		try {
			const off = await turnOffOffloads(run, device, mode);
			if (off.length === 0) return;
			log.info({ uplink: device, off }, 'offloads that hide frames from XDP are off');
			warnings.set(
				`offloads ${device}`,
				`${device}: ${off.join(', ')} turned off, because they hide frames from XDP; given back on detach`,
			);
			onOffloads(device, off);
		} catch (e) {
			warnings.set(
				`offloads ${device}`,
				`${device}: offloads cannot be read (${sentence(e)}): turn rxvlan and lro off yourself`,
			);
		}
	}

	#ended(key: string, ifindex: number, into: Set<number>, failure?: { readonly error: unknown }): void {
		if (failure === undefined) {
			into.add(ifindex);
			this.#errors.delete(key);
		} else if (isNoInterface(failure.error)) {
			this.#errors.delete(key);
			this.#deps.onGone();
		} else {
			const name = this.#deps.names()?.get(ifindex) ?? `interface ${ifindex}`;
			this.#errors.set(key, `${name}: ${sentence(failure.error)}`);
		}
	}

	#attachBeside(key: string, ifindex: number, into: Set<number>, attach: () => Promise<void>): void {
		if (this.#attaching.has(key)) return;
		this.#attaching.add(key);
		this.#besides = this.#besides.then(async () => {
			try {
				if (this.#deps.isClosed()) return;
				await attach();
				this.#ended(key, ifindex, into);
			} catch (error) {
				this.#ended(key, ifindex, into, { error });
			}
			this.#attaching.delete(key);
			if (!this.busy) this.#deps.onDone();
		});
	}

	#attach(
		kind: 'endpoint' | 'gateway',
		wanted: Iterable<number>,
		how: How,
		attach: { readonly now: (ifindex: number) => unknown; readonly beside: (ifindex: number) => Promise<void> },
	): void {
		const into = kind === 'endpoint' ? this.#endpoints : this.#gateways;
		const all = new Set(wanted);
		for (const ifindex of all) {
			const key = `${kind} ${ifindex}`;
			const known = into.has(ifindex);
			if ((known && !how.known) || this.#attaching.has(key)) continue;
			if (!known && how.beside) {
				this.#attachBeside(key, ifindex, into, () => attach.beside(ifindex));
				continue;
			}
			try {
				attach.now(ifindex);
				this.#ended(key, ifindex, into);
			} catch (error) {
				this.#ended(key, ifindex, into, { error });
			}
		}
		for (const key of this.#errors.keys())
			if (key.startsWith(`${kind} `) && !all.has(Number(key.slice(kind.length + 1)))) this.#errors.delete(key);
	}
}
