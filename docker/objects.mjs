// Compiles the programs into dist/bpf, where an agent finds them before it looks for clang. After `npx tsc -b`.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildObjects } from '../dist/src/loader/datapath.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const names = await buildObjects({ bpfDir: join(root, 'bpf'), outDir: process.argv[2] ?? join(root, 'dist/bpf') });
console.log(names.join('\n'));
