/**
 * docker/Dockerfile's image without a registry: the same programs from this machine's Debian, found by what they link to.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { buildObjects } from '../../src/loader/datapath.js';
import { root } from '../support/tools.js';

const TOOLS = ['ip', 'ss', 'bridge', 'ethtool', 'nft', 'iptables-save', 'ip6tables-save', 'flock', 'sh', 'env'];

function which(name: string): string | undefined {
	const found = spawnSync('sh', ['-c', `command -v ${name}`], {
		encoding: 'utf8',
		env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
	}).stdout.trim();
	return found === '' ? undefined : found;
}

/** Libraries that a program is linked to. */
function libraries(program: string): string[] {
	const out = spawnSync('ldd', [program], { encoding: 'utf8' }).stdout;
	return [...out.matchAll(/(\/\S+) \(0x/g)].map((m) => m[1]);
}

/** Writes the image as a tar that `docker import` takes; returns its path. The caller removes its directory. */
export async function makeAgentImage(prefix: string): Promise<{ tar: string; directory: string }> {
	const directory = join(tmpdir(), `${prefix}-agent`);
	const at = join(directory, 'root');
	rmSync(directory, { recursive: true, force: true });
	for (const d of ['bin', 'usr/bin', 'etc/beeline', 'tmp', 'proc', 'sys', 'dev', 'run', 'var', 'lib', 'lib64'])
		mkdirSync(join(at, d), { recursive: true });
	symlinkSync('/run', join(at, 'var/run'));
	const put = (file: string, to = file) => {
		const target = join(at, to);
		if (existsSync(target)) return;
		mkdirSync(dirname(target), { recursive: true });
		cpSync(realpathSync(file), target);
	};
	const programs = [process.execPath, ...TOOLS.flatMap((t) => which(t) ?? [])];
	for (const p of programs) {
		put(p, p === process.execPath ? 'usr/bin/node' : p.replace(/^\/s?bin\//, '/usr/bin/'));
		for (const l of libraries(p)) put(l);
	}
	// Dlopened, so no program is linked to it.
	const bpf = /=> (\/\S*libbpf\.so\.1)$/m.exec(spawnSync('/sbin/ldconfig', ['-p'], { encoding: 'utf8' }).stdout)?.[1];
	if (bpf === undefined) throw new Error('libbpf.so.1 is not installed');
	put(bpf);
	for (const l of libraries(bpf)) put(l);
	// iptables-save loads what reads each match.
	const extensions = join('/usr/lib', basename(dirname(bpf)), 'xtables');
	if (existsSync(extensions)) cpSync(extensions, join(at, extensions), { recursive: true, dereference: true });
	const app = join(at, 'beeline');
	mkdirSync(app);
	writeFileSync(join(app, 'package.json'), readFileSync(join(root, 'package.json')));
	for (const d of ['bin', 'dist/src']) cpSync(join(root, d), join(app, d), { recursive: true });
	for (const p of ['libbpf-ts', 'bpf-loader']) {
		cpSync(join(root, 'packages', p, 'package.json'), join(app, 'packages', p, 'package.json'));
		cpSync(join(root, 'packages', p, 'dist/src'), join(app, 'packages', p, 'dist/src'), { recursive: true });
	}
	const modules = execFileSync('npm', ['ls', '--omit=dev', '--all', '--parseable'], {
		cwd: root,
		encoding: 'utf8',
		stdio: ['ignore', 'pipe', 'ignore'],
	})
		.split('\n')
		.filter((m) => m.includes('/node_modules/') && existsSync(m));
	for (const m of modules) cpSync(m, join(app, m.slice(root.length)), { recursive: true, verbatimSymlinks: true });
	for (const p of ['libbpf-ts', 'bpf-loader']) {
		rmSync(join(app, 'node_modules', p), { recursive: true, force: true });
		symlinkSync(`../packages/${p}`, join(app, 'node_modules', p));
	}
	await buildObjects({ bpfDir: join(root, 'bpf'), outDir: join(app, 'dist/bpf') });
	const tar = join(directory, 'image.tar');
	execFileSync('tar', ['-C', at, '-cf', tar, '.']);
	rmSync(at, { recursive: true, force: true });
	return { tar, directory };
}

/** What docker/Dockerfile says of a container. */
export const IMPORT_ARGS = [
	'--change',
	'ENTRYPOINT ["beeline"]',
	'--change',
	'CMD ["agent", "--config", "/etc/beeline/beeline.yaml"]',
	'--change',
	'ENV PATH=/beeline/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
	'--change',
	'WORKDIR /beeline',
];
