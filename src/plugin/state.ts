/**
 * What an engine was told and goes by across boots: its networks, their endpoints, the addresses given out. One small file,
 * written before the engine hears of it; veths are not in it, for they do not outlive a boot.
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { BeelineError, codeOf, sentence } from '../errors.js';

export interface DockerNetwork {
	/** Docker's id. */
	readonly id: string;
	/** Name of the network of the membership. */
	readonly network: string;
	readonly internal: boolean;
	/** Bytes, of the underlay. */
	readonly mtu?: number;
}

export interface DockerEndpoint {
	/** Docker's id. */
	readonly id: string;
	/** Docker's id. */
	readonly networkId: string;
	readonly network: string;
	/** Beeline's id of it. */
	readonly name: string;
	readonly address: string;
	readonly address6?: string;
	readonly mac: string;
	/** ms since 1970. */
	readonly at: number;
}

export interface Reservation {
	readonly network: string;
	/** Of either family. */
	readonly address: string;
	/** `--aux-address` of a Docker network: it is for no container. */
	readonly kept?: boolean;
	/** Beeline's id of who is to have it; empty: an IPv6 address, which follows from one that is. */
	readonly holder: string;
	/** ms since 1970. */
	readonly at: number;
}

export interface PluginState {
	readonly networks: readonly DockerNetwork[];
	readonly endpoints: readonly DockerEndpoint[];
	readonly addresses: readonly Reservation[];
}

export const NO_PLUGIN_STATE: PluginState = { networks: [], endpoints: [], addresses: [] };

export interface PluginStore {
	get(): PluginState;
	/** @throws BeelineError WRITE_FAILED; then nothing has changed */
	set(next: PluginState): void;
}

/** @throws BeelineError READ_FAILED: a file that is there and cannot be read is not guessed at: addresses would be given out twice */
export function openPluginStore(file: string): PluginStore {
	let state = NO_PLUGIN_STATE;
	try {
		state = { ...state, ...(JSON.parse(readFileSync(file, 'utf8')) as Partial<PluginState>) };
	} catch (e) {
		if (codeOf(e) !== 'ENOENT')
			throw new BeelineError(
				'READ_FAILED',
				`read ${file}: ${sentence(e)}: it holds what Docker was told of its networks; restore it, or remove it and Docker's beeline networks`,
				{ cause: e },
			);
	}
	return {
		get: () => state,
		set(next) {
			try {
				mkdirSync(dirname(file), { recursive: true, mode: 0o755 });
				const aside = `${file}.${process.pid}`;
				writeFileSync(aside, `${JSON.stringify(next)}\n`, { mode: 0o600 });
				renameSync(aside, file);
			} catch (e) {
				throw new BeelineError('WRITE_FAILED', `write ${file}: ${sentence(e)}`, { cause: e });
			}
			state = next;
		},
	};
}

/** For tests. */
export function memoryPluginStore(state: PluginState = NO_PLUGIN_STATE): PluginStore {
	return {
		get: () => state,
		set(next) {
			state = next;
		},
	};
}
