/** Where this installation keeps its parts. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** dist/src/cli/places.js → the package. */
export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');

export function version(): string {
	return (JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }).version;
}

/** C sources, and objects that were compiled beforehand (`node docker/objects.mjs`), where they exist. */
export function sources(): { bpfDir?: string; objectDir?: string; cacheDir: string } {
	const bpfDir = join(ROOT, 'bpf');
	const objectDir = join(ROOT, 'dist', 'bpf');
	return {
		...(existsSync(join(bpfDir, 'mesh.h')) ? { bpfDir } : {}),
		...(existsSync(objectDir) ? { objectDir } : {}),
		cacheDir: process.env.BEELINE_CACHE || '/var/cache/beeline',
	};
}
