/**
 * What this agent changed on the node outside of its pins, so that detach, perhaps by another process, can undo it. One
 * small file for each pinRoot, written atomically. It does not outlive a boot, and neither does what it names.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type EncryptionState, NO_ENCRYPTION_STATE } from './encryption.js';
import { NO_OVERLAY_STATE, type OverlayState } from './overlay.js';

export interface AgentState {
	/** Added to ip_local_reserved_ports. */
	readonly reservedPorts: readonly number[];
	/** Neighbours that the kernel was asked to keep resolved. */
	readonly neighbours: readonly { readonly device: string; readonly address: string }[];
	/** Offloads that were turned off, by device. */
	readonly offloads: readonly { readonly device: string; readonly feature: string }[];
	/** `tcp/8080` that the kernel's own mesh answers. */
	readonly kernelPorts: readonly string[];
	/** Endpoints on overlay networks, and their legs on the gateway's bridge. */
	readonly overlay: OverlayState;
	/** Keys of encrypted networks that are in the kernel: which, not what they are. */
	readonly encryption: EncryptionState;
}

export const NO_STATE: AgentState = {
	reservedPorts: [],
	neighbours: [],
	offloads: [],
	kernelPorts: [],
	overlay: NO_OVERLAY_STATE,
	encryption: NO_ENCRYPTION_STATE,
};

export function statePath(pinRoot: string, runDir = '/run/beeline'): string {
	return join(runDir, `state-${createHash('sha256').update(pinRoot).digest('hex').slice(0, 16)}.json`);
}

/** What a source remembers for a start without its server, beside the state. */
export function keptPath(stateFile: string, source: 'membership' | 'etcd'): string {
	return stateFile.replace(/state-([^/]*)$/, `${source}-$1`);
}

export function readState(path: string): AgentState {
	try {
		const s = JSON.parse(readFileSync(path, 'utf8')) as Partial<AgentState>;
		return {
			reservedPorts: s.reservedPorts ?? [],
			neighbours: s.neighbours ?? [],
			offloads: s.offloads ?? [],
			kernelPorts: s.kernelPorts ?? [],
			overlay: s.overlay ?? NO_OVERLAY_STATE,
			encryption: s.encryption ?? NO_ENCRYPTION_STATE,
		};
	} catch {
		return NO_STATE;
	}
}

export function writeState(path: string, state: AgentState): void {
	mkdirSync(join(path, '..'), { recursive: true, mode: 0o755 });
	const aside = `${path}.${process.pid}`;
	writeFileSync(aside, `${JSON.stringify(state)}\n`, { mode: 0o600 });
	renameSync(aside, path);
}

export function removeState(path: string): void {
	for (const file of [path, keptPath(path, 'membership'), keptPath(path, 'etcd')]) rmSync(file, { force: true });
}
