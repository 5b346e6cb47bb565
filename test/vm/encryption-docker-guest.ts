/*
 * On a kernel with ESP: containers of two engines (test/swarm/bed) on an encrypted network, by the agent's plugin.
 *
 *	sealed 5006 10.48.0.0/24, encrypted    c1 on node1   c2 on node2
 *	open   5001 10.44.0.0/24
 *
 * Prints what was seen as JSON; ./encryption-docker.test.ts judges it. argv: directory of compiled objects.
 */
import { spawn } from 'node:child_process';
import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { root } from '../support/tools.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm } from '../swarm/swarm.js';
import { type Sight, sight } from './sight.js';

const began = performance.now();
const say = (what: string): void =>
	void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s: ${what}\n`);
const NODES = [1, 2];
const NAMES = ['c1', 'c2'] as const;

export interface DockerSeen {
	/** What docker printed when it was asked for encryption of the plain network. */
	refused: string;
	/** What each container shows of its interface. */
	shown: string[];
	/** By direction: pings, and who answered HTTP. */
	pings: Record<string, boolean>;
	pages: Record<string, string>;
	wire: Omit<Sight, 'esp'>;
	/** Keys of node1 while there is a container, and after it was removed. */
	associations: readonly [number, number];
}

async function main(): Promise<DockerSeen> {
	const missing = cannotUseDocker();
	if (missing !== undefined) throw new Error(missing);
	// Of the guest alone: it goes with the machine.
	cpSync(process.argv[2], join(root, 'dist/bpf'), { recursive: true });
	writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
	const seen = {} as DockerSeen;
	const swarm = Swarm.up(NODES.length);
	try {
		say('the engines are up');
		const secretFile = join(swarm.directory, 'secret');
		writeFileSync(secretFile, 's'.repeat(48), { mode: 0o600 });
		const mesh = {
			nodes: NODES.map((n) => ({ name: `node${n}`, address: swarm.address(n) })),
			services: [],
			networks: [
				{ name: 'sealed', subnet: '10.48.0.0/24', vni: 5006, attachable: true, options: { encrypted: true } },
				{ name: 'open', subnet: '10.44.0.0/24', vni: 5001, attachable: true },
			],
		};
		for (const n of NODES) {
			writeFileSync(join(swarm.directory, `node${n}`, 'mesh.yaml'), JSON.stringify(mesh));
			swarm.launch(n, {
				membership: { source: 'file', file: 'mesh.yaml' },
				dockerPlugin: { stateFile: join(swarm.directory, `node${n}`, 'docker-plugin.json') },
				datapath: { secretFile },
				log: { level: 'info' },
			});
		}
		for (const n of NODES) await swarm.ready(n, 60_000);
		say('the agents are ready');
		const create = (node: number, network: string) => {
			const ours = [`beeline.network=${network}`];
			const args = ['network', 'create', '-d', 'beeline', '-o', 'encrypted', '-o', ...ours];
			swarm.docker(node, ...args, '--ipam-driver', 'beeline', '--ipam-opt', ...ours, network);
		};
		try {
			create(1, 'open');
			seen.refused = '';
		} catch (e) {
			seen.refused = (e as { stderr: string }).stderr;
		}
		const file = join(swarm.directory, 'wire.pcap');
		const capture = spawn(
			'nsenter',
			[
				...[`--net=/run/netns/${swarm.prefix}-sw`, 'tcpdump', '-Z', 'root', '-U', '--immediate-mode', '-n'],
				...['-i', 'br0', '-w', file, 'udp', 'port', '4789', 'or', 'ip', 'proto', '50'],
			],
			{ stdio: ['ignore', 'ignore', 'pipe'] },
		);
		let told = '';
		capture.stderr.setEncoding('utf8').on('data', (text: string) => {
			told += text;
		});
		await waitFor('tcpdump to listen', () => told.includes('listening'));
		for (const [i, name] of NAMES.entries()) {
			create(i + 1, 'sealed');
			const run = ['run', '-d', '--name', name, '--hostname', `marked-${name}`, '--network', 'sealed'];
			swarm.docker(i + 1, ...run, 'beeline-test');
			say(`${name} runs`);
		}
		const inside = (i: number, ...command: string[]) => swarm.docker(i + 1, 'exec', NAMES[i], ...command);
		const address = (i: number) =>
			swarm.docker(i + 1, 'inspect', '-f', '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}', NAMES[i]);
		seen.shown = NAMES.map((_, i) => inside(i, 'ip', 'addr', 'show', 'dev', 'eth0').replace(/\s+/g, ' '));
		seen.pings = {};
		seen.pages = {};
		for (const [from, to] of [
			[0, 1],
			[1, 0],
		]) {
			const what = `${NAMES[from]} > ${NAMES[to]}`;
			seen.pings[what] = await waitFor(
				what,
				() => {
					try {
						inside(from, 'ping', '-c', '1', '-W', '5', address(to));
						return true;
					} catch {
						return false;
					}
				},
				20_000,
				500,
			).catch(() => false);
			seen.pages[what] = inside(from, 'wget', '-qO-', `http://${address(to)}/`);
		}
		say(JSON.stringify(seen));
		await sleep(1000);
		capture.kill('SIGINT');
		await new Promise((resolve) => capture.on('close', resolve));
		const { esp: _, ...wire } = sight(file, 'marked-');
		seen.wire = wire;
		const keys = () => swarm.exec(1, ['ip', 'xfrm', 'state', 'list', 'nokeys']).stdout.match(/^src /gm)?.length ?? 0;
		const before = keys();
		swarm.docker(1, 'rm', '-f', 'c1');
		await waitFor('node1 to drop its keys', () => keys() === 0, 20_000, 500).catch(() => undefined);
		seen.associations = [before, keys()];
		say(JSON.stringify([seen.wire, seen.associations]));
		return seen;
	} catch (e) {
		throw new Error(
			`${(e as Error).message}\n${JSON.stringify(seen)}\n${NODES.map((n) => swarm.output(n)).join('\n')}`,
		);
	} finally {
		swarm.close();
	}
}

console.log(JSON.stringify(await main()));
process.exit(0);
