import { createHash } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Compiled, type CompileOptions, compile, writeAtomic } from './compile.js';
import { LoaderError, reason } from './errors.js';

/** An object ready to load. */
export interface LoadableObject {
	/** `uplink_xdp.bpf.o` */
	readonly name: string;
	readonly object: Uint8Array;
	readonly warnings: string;
}

const MANIFEST = 'manifest.json';
const VERSION = 1;

interface Manifest {
	readonly version: number;
	readonly objects: Readonly<Record<string, { readonly sha256: string; readonly source: string }>>;
}

const sha256 = (b: Uint8Array) => createHash('sha256').update(b).digest('hex');

/** Writes compiled objects and their manifest, so that a machine without clang can load them. The manifest is last. */
export async function writeObjects(dir: string, objects: readonly Compiled[]): Promise<void> {
	await mkdir(dir, { recursive: true });
	const entries: Record<string, { sha256: string; source: string }> = {};
	for (const o of objects) {
		await writeAtomic(join(dir, o.name), o.object);
		entries[o.name] = { sha256: sha256(o.object), source: o.digest };
	}
	const manifest: Manifest = { version: VERSION, objects: entries };
	await writeAtomic(join(dir, MANIFEST), `${JSON.stringify(manifest, null, '\t')}\n`);
}

function parseManifest(path: string, text: string): Manifest {
	const bad = (what: string) => new LoaderError('BAD_OBJECT', `read ${path}: ${what}: write the objects again`);
	let m: unknown;
	try {
		m = JSON.parse(text);
	} catch (e) {
		throw bad(reason(e));
	}
	const { version, objects } = (m ?? {}) as Partial<Manifest>;
	if (version !== VERSION) throw bad(`version ${String(version)} is not ${VERSION}`);
	if (typeof objects !== 'object' || objects === null) throw bad('no objects');
	for (const o of Object.values(objects)) if (typeof o?.sha256 !== 'string') throw bad('an object has no sha256');
	return { version, objects };
}

/**
 * Reads precompiled objects, each held to the manifest's hash.
 * @throws LoaderError NO_OBJECT where the directory, its manifest or an object is absent; BAD_OBJECT where bytes differ
 */
export async function readObjects(dir: string, names: readonly string[]): Promise<readonly LoadableObject[]> {
	const path = join(dir, MANIFEST);
	let text: string;
	try {
		text = await readFile(path, 'utf8');
	} catch (e) {
		throw new LoaderError('NO_OBJECT', `read ${path}: no precompiled objects there`, { cause: e });
	}
	const manifest = parseManifest(path, text);
	return Promise.all(
		names.map(async (name) => {
			const entry = manifest.objects[name];
			if (!entry) throw new LoaderError('NO_OBJECT', `read ${path}: it has no ${name}: write the objects again`);
			let object: Uint8Array;
			try {
				object = await readFile(join(dir, name));
			} catch (e) {
				throw new LoaderError('NO_OBJECT', `read ${join(dir, name)}: ${reason(e)}`, { cause: e });
			}
			if (sha256(object) !== entry.sha256)
				throw new LoaderError(
					'BAD_OBJECT',
					`read ${join(dir, name)}: its hash is not the manifest's: write the objects again`,
				);
			return { name, object, warnings: '' };
		}),
	);
}

export interface ObjectsOptions extends CompileOptions {
	/** Where `<name>.c` lies for each `<name>.o`. */
	readonly sourceDir?: string;
	/** Precompiled objects; taken before clang is asked. */
	readonly objectDir?: string;
}

/**
 * Objects by name (`uplink_xdp.bpf.o`): precompiled where `objectDir` has them, else compiled.
 * @throws LoaderError NO_OBJECT with what to install, where there is neither clang nor an object
 */
export async function loadableObjects(names: readonly string[], o: ObjectsOptions): Promise<readonly LoadableObject[]> {
	const { sourceDir, objectDir, ...options } = o;
	let absent: LoaderError | undefined;
	if (objectDir !== undefined) {
		try {
			return await readObjects(objectDir, names);
		} catch (e) {
			// Damaged objects are not passed over: somebody meant this directory to be used.
			if (!(e instanceof LoaderError) || e.code !== 'NO_OBJECT' || sourceDir === undefined) throw e;
			absent = e;
		}
	}
	if (sourceDir === undefined)
		throw new LoaderError('NO_OBJECT', 'load: neither a directory of sources nor one of precompiled objects was given');
	try {
		return await Promise.all(names.map((name) => compile(join(sourceDir, name.replace(/\.o$/, '.c')), options)));
	} catch (e) {
		if (e instanceof LoaderError && e.code === 'NO_COMPILER')
			throw new LoaderError(
				'NO_OBJECT',
				`load: no clang and no precompiled object (${absent?.message ?? 'no object directory given'}): install the Debian package clang, or copy the objects of a node that has it`,
				{ cause: e },
			);
		throw e;
	}
}
