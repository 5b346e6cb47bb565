/** Where this installation keeps its parts. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** dist/src/cli/places.js → the package. */
export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');

export function version(): string {
	return (JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }).version;
}

/** Whether sources were changed (a checkout was upgraded) after the objects were written. */
function isOlder(manifest: string, bpfDir: string): boolean {
	const written = statSync(manifest, { throwIfNoEntry: false })?.mtimeMs ?? 0;
	return readdirSync(bpfDir).some((f) => /\.[ch]$/.test(f) && statSync(join(bpfDir, f)).mtimeMs > written);
}

/** C sources, and objects that were compiled beforehand (`node docker/objects.mjs`), where they exist. */
export function sources(): { bpfDir?: string; objectDir?: string; cacheDir: string } {
	const bpfDir = join(ROOT, 'bpf');
	const objectDir = join(ROOT, 'dist', 'bpf');
	const haveSources = existsSync(join(bpfDir, 'mesh.h'));
	return {
		...(haveSources ? { bpfDir } : {}),
		...(existsSync(objectDir) && !(haveSources && isOlder(join(objectDir, 'manifest.json'), bpfDir))
			? { objectDir }
			: {}),
		cacheDir: process.env.BEELINE_CACHE || '/var/cache/beeline',
	};
}
