/*
 * Inside a guest of ./run whose kernel has IPVS: Beeline comes and goes by `docker stack deploy` and `docker stack rm`, beside
 * Docker's own mesh. Topology: test/swarm/bed with one node. Prints what was seen as JSON; ./stack.test.ts judges it.
 * argv: directory of compiled objects, tar of the agent's image.
 */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { IMPORT_ARGS } from '../swarm/image.js';
import { cannotUseDocker, Swarm } from '../swarm/swarm.js';
import { answers, type Load, say, short } from './docker-mesh.js';
import { traces } from './traces.js';

const STALE_AFTER_S = 40;

/** docker/stack.yaml as it is, with another configuration beside it. */
function stackFile(directory: string): string {
	writeFileSync(
		join(directory, 'beeline.yaml'),
		`${readFileSync(join(root, 'docker/beeline.yaml'), 'utf8')}datapath: { staleAfter: ${STALE_AFTER_S}s }\n`,
	);
	const file = join(directory, 'stack.yaml');
	cpSync(join(root, 'docker/stack.yaml'), file);
	return file;
}

async function main(): Promise<object> {
	const missing = cannotUseDocker();
	if (missing !== undefined) throw new Error(missing);
	cpSync(process.argv[2], join(root, 'dist/bpf'), { recursive: true });
	writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
	const seen: Record<string, unknown> = { staleAfterS: STALE_AFTER_S };
	const swarm = Swarm.up(1);
	const agents = () => swarm.docker(1, 'ps', '-q', '--filter', 'label=com.docker.swarm.service.name=beeline_agent');
	try {
		say('the swarm is up');
		const create = ['service', 'create', '-d', '--no-resolve-image', '--name', 'web', '--replicas', '2'];
		swarm.docker(1, ...create, '--publish', '8080:80', 'beeline-test:latest');
		swarm.docker(1, 'import', ...IMPORT_ARGS, process.argv[3], 'beeline:test');
		say('the image is there');
		const load = (n: number) => swarm.load(['-n', n, '-c', 4, '-t', 20_000, ...swarm.targets(8080)]);
		const note = (r: Load) => {
			seen.last = r;
		};
		await answers('Docker’s mesh', 8, async () => short(await load(8)), note);
		seen.client = swarm.client;
		seen.before = short(await load(20));
		seen.tracesBefore = traces(swarm);
		const open = async (n: number) => {
			const l = swarm.startLoad(['-n', n, '-c', n, '-k', 0, '-i', 1000, '-t', 60_000, ...swarm.targets(8080)]);
			const report = l.report();
			await l.ready();
			return async () => {
				l.stop();
				const r = await report;
				return { ...short(r), connections: r.connections, requests: r.requests, moved: r.moved };
			};
		};
		const old = await open(10);
		say('Docker’s mesh serves');

		process.env.BEELINE_IMAGE = 'beeline:test';
		const file = stackFile(swarm.directory);
		swarm.docker(1, 'stack', 'deploy', '--resolve-image', 'never', '-c', file, 'beeline');
		swarm.installed(1);
		await waitFor('the agent', async () => (await swarm.status(1)).ready, 120_000, 1000);
		await swarm.serving('web', 2, 60_000);
		say('the agent is ready');
		seen.installed = short(await load(20));
		const made = await open(10);

		// A connection each second from here to the end.
		const each = swarm.startLoad([
			...['-n', 0, '-c', 50, '-r', 1, '-d', 1_700_000, '-t', 30_000, '-v'],
			...swarm.targets(8080),
		]);
		const eachReport = each.report();
		swarm.docker(1, 'stack', 'rm', 'beeline');
		await waitFor('the agent to end', () => agents() === '', 60_000, 500);
		const ended = performance.now();
		say('the agent has ended');
		seen.left = short(await load(4));
		await waitFor(
			'new connections to go to Docker’s mesh again',
			async () => {
				const r = await load(1);
				return r.ok === 1 && !(swarm.client in r.clients);
			},
			60_000,
			500,
		);
		seen.takenOverS = (performance.now() - ended) / 1000;
		say(`Docker’s mesh serves again after ${seen.takenOverS} s`);
		seen.stale = short(await load(20));
		seen.made = await made();

		// What the README says to do about what is left.
		const image = ['docker', 'run', '--rm', '--network', 'host', '--cap-add', 'NET_ADMIN', '--cap-add', 'SYS_ADMIN'];
		const left = await swarm.background(1, [
			...[...image, '-v', '/run:/run', '-v', '/sys/fs/bpf:/sys/fs/bpf', 'beeline:test', 'detach'],
		]);
		seen.detach = left;
		say('detached');
		seen.tracesAfter = traces(swarm);
		seen.after = short(await load(20));
		each.stop();
		const all = await eachReport;
		seen.each = { ...short(all), connections: all.connections };
		seen.old = await old();
		return seen;
	} catch (e) {
		const id = swarm
			.docker(1, 'ps', '-aq', '--filter', 'label=com.docker.swarm.service.name=beeline_agent')
			.split('\n')[0];
		const agent = id === '' ? undefined : swarm.exec(1, ['docker', 'logs', '--tail', '60', id], true);
		const tasks = swarm.exec(1, ['docker', 'service', 'ps', '--no-trunc', 'beeline_agent'], true).stdout;
		const log = readFileSync(join(swarm.directory, 'node1/dockerd.log'), 'utf8').slice(-6000);
		throw new Error(
			`${(e as Error).message}\n${JSON.stringify(seen)}\n${agent?.stdout}${agent?.stderr}\n${tasks}\n${log}`,
		);
	} finally {
		swarm.close();
	}
}

console.log(JSON.stringify(await main()));
process.exit(0);
