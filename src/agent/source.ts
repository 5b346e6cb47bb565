/** What the agent needs of a membership source. Each source of src/mesh/sources is fitted to it here. */
import type { Config } from '../config.js';
import { BeelineError, type BeelineError as SourceError } from '../errors.js';
import type { ServiceCreateBody, ServiceOptionsPatchBody } from '../http/schemas.js';
import * as file from '../mesh/sources/file.js';
import type { Membership } from '../mesh/types.js';

export interface Source {
	readonly name: string;
	/** Where an operator changes it. */
	readonly place: string;
	/** The last membership that was accepted. */
	current(): Membership;
	/** Why the last reading was refused. */
	error(): SourceError | undefined;
	/** Reads now; a change is told before this returns. */
	reload(): void;
	close(): void;
	/** Each writes the change where the source keeps it. @throws BeelineError */
	drainBackend(id: string, drained: boolean): void;
	drainNode(name: string, drained: boolean): void;
	patchService(name: string, options: ServiceOptionsPatchBody): void;
	createService(service: ServiceCreateBody): void;
	removeService(name: string): void;
	addNode(node: { readonly name: string; readonly address: string }): void;
	removeNode(name: string): void;
}

/** @throws BeelineError where the first reading is refused */
export function openSource(config: Config, events: file.FileSourceEvents): Source {
	if (config.membership.source !== 'file') {
		throw new BeelineError(
			'NOT_AVAILABLE',
			`membership.source ${config.membership.source} is not available in this version: use file`,
			{ field: 'membership.source' },
		);
	}
	const path = config.membership.file;
	const source = file.openFileSource(path, events);
	return {
		name: 'file',
		place: path,
		current: () => source.current(),
		error: () => source.error(),
		reload: () => source.reload(),
		close: () => source.close(),
		drainBackend: (id, drained) => void file.setBackendDrained(path, id, drained),
		drainNode: (name, drained) => void file.setNodeDrained(path, name, drained),
		patchService: (name, options) => void file.setServiceOptions(path, name, options),
		createService: (service) => void file.createService(path, service),
		removeService: (name) => void file.removeService(path, name),
		addNode: (node) => void file.addNode(path, node),
		removeNode: (name) => void file.removeNode(path, name),
	};
}
