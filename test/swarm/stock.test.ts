/*
 * A stock Docker node and Beeline on one network (./bed, two engines of a swarm): node1 has Docker's overlay driver and no agent,
 * node2 an agent and an endpoint that is no container. What Docker's control plane does not know is told to its network's namespace
 * by hand, as README has it.
 *
 *	node1                                              node2
 *	 d1 10.44.0.2 ── br0 ── vxlan0 (5001)               e 10.44.0.128 ── bl-… overlay_tc
 *	     namespace /run/docker/netns/1-ID                  mesh.yaml: red, VNI 5001, node1 owns .0/25
 */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { EndpointView } from '../../src/http/schemas.js';
import { beeline } from '../support/beeline.js';
import type { LoadReport, UdpReport } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotDecode, cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { tool } from '../support/tools.js';
import { complaints, fieldsOf } from '../support/tshark.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const VNI = 5001;
const MESH_VNI = 12509184;
const OURS = { address: '10.44.0.128', mac: '02:42:0a:2c:00:80' };

interface Shared {
	readonly swarm: Swarm;
	/** Address of the container. */
	readonly theirs: string;
	/** Namespace of Docker's network on node1. */
	readonly sandbox: string;
}

async function build(): Promise<Shared> {
	sweepBeds();
	const swarm = Swarm.up(2);
	try {
		const mesh = {
			nodes: [1, 2].map((n) => ({ name: `node${n}`, address: swarm.address(n) })),
			services: [],
			networks: [{ name: 'red', subnet: '10.44.0.0/24', vni: VNI, attachable: true }],
		};
		writeFileSync(join(swarm.directory, 'node2', 'mesh.yaml'), JSON.stringify(mesh));
		await swarm.start(2, { membership: { source: 'file', file: 'mesh.yaml' } });
		swarm.exec(2, ['ip', 'netns', 'add', 'e']);
		const attach = [beeline, 'endpoint', 'attach', '--network', 'red', '--netns', 'e', '-o', 'json'];
		const e = JSON.parse(swarm.exec(2, attach).stdout) as EndpointView;
		assert.equal({ address: e.address, mac: e.mac }, OURS);
		for (const [program, port] of [
			['httpd', '80'],
			['udpecho', '7'],
		] as const)
			void swarm.background(2, ['nsenter', '--net=/run/netns/e', '--', tool(program), '-n', 'e', '-p', port]);

		// Docker gives addresses of node1's part, with the VNI that mesh.yaml has.
		const create = ['network', 'create', '-d', 'overlay', '--attachable', '--subnet', '10.44.0.0/24'];
		const option = ['--opt', `com.docker.network.driver.overlay.vxlanid_list=${VNI}`];
		const id = swarm.docker(1, ...create, '--ip-range', '10.44.0.0/25', ...option, 'red');
		swarm.docker(1, 'run', '-d', '--name', 'd1', '--hostname', 'd1', '--network', 'red', 'beeline-test');
		const theirs = swarm.docker(1, 'inspect', '-f', '{{.NetworkSettings.Networks.red.IPAddress}}', 'd1');
		return { swarm, theirs, sandbox: `/run/docker/netns/1-${id.slice(0, 10)}` };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

const fromDocker = (swarm: Swarm, ...command: string[]): boolean => {
	try {
		swarm.docker(1, 'exec', 'd1', ...command);
		return true;
	} catch {
		return false;
	}
};
const inside = (swarm: Swarm, ...command: string[]) =>
	swarm.exec(2, ['nsenter', '--net=/run/netns/e', '--', ...command], true);

/** What passes node1's port of the switch, where frames that XDP takes are seen too. */
async function capture(swarm: Swarm): Promise<{ readonly file: string; stop(): Promise<void> }> {
	const file = join(swarm.directory, 'wire.pcap');
	const dump = ['tcpdump', '-Z', 'root', '-U', '--immediate-mode', '-n', '-i', 'p1', '-w', file];
	const child = spawn('nsenter', [`--net=/run/netns/${swarm.prefix}-sw`, '--', ...dump, 'udp', 'port', '4789'], {
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	let said = '';
	child.stderr.setEncoding('utf8').on('data', (t: string) => {
		said += t;
	});
	await waitFor('tcpdump to listen', () => said.includes('listening'));
	return {
		file,
		stop: () =>
			new Promise((done) => {
				child.once('exit', () => done());
				// Packets lie in the kernel's buffer for a moment.
				setTimeout(() => child.kill('SIGINT'), 300);
			}),
	};
}

scenario(
	'a stock Docker node',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotUseDocker() ?? cannotDecode(),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		test('before it is told of the endpoint Docker’s network knows nobody there', ({ swarm }) => {
			assert.not(fromDocker(swarm, 'ping', '-c', '1', '-W', '2', OURS.address));
		});

		test('told of its MAC, and of the node that has it, they reach each other: ping, TCP and UDP both ways', async ({
			swarm,
			theirs,
			sandbox,
		}) => {
			const within = (...command: string[]) => swarm.exec(1, ['nsenter', `--net=${sandbox}`, '--', ...command]);
			const permanent = ['nud', 'permanent'];
			within('ip', 'neigh', 'replace', OURS.address, 'lladdr', OURS.mac, 'dev', 'vxlan0', ...permanent);
			within('bridge', 'fdb', 'replace', OURS.mac, 'dev', 'vxlan0', 'dst', swarm.address(2), 'self', 'permanent');

			const wire = await capture(swarm);
			assert.ok(fromDocker(swarm, 'ping', '-c', '3', '-W', '2', OURS.address), 'Docker > Beeline');
			const ping = inside(swarm, 'ping', '-n', '-c', '3', '-W', '2', theirs);
			assert.is(ping.code, 0, ping.stdout);
			// A full inner packet of 1450 bytes crosses unfragmented.
			const full = inside(swarm, 'ping', '-n', '-c', '1', '-W', '2', '-M', 'do', '-s', '1422', theirs);
			assert.is(full.code, 0, full.stdout + full.stderr);

			for (const body of [[], ['-D', '1000000'], ['-U', '1000000']]) {
				const few = ['-n', '20', '-c', '4', '-t', '10000', ...body];
				const there = await swarm.inside<LoadReport>(1, 'd1', ['/load', ...few, `${OURS.address}:80`]);
				assert.equal([there.failures, there.ok], [{}, 20], JSON.stringify(there));
				assert.equal(Object.keys(there.backends), ['e']);
				const back = JSON.parse(inside(swarm, tool('load'), ...few, `${theirs}:80`).stdout) as LoadReport;
				assert.equal([back.failures, back.ok], [{}, 20], JSON.stringify(back));
				assert.equal(Object.keys(back.backends), ['d1']);
				// Bodies of a size say nothing of their client.
				if (body.length > 0) continue;
				assert.equal([Object.keys(there.clients), Object.keys(back.clients)], [[theirs], [OURS.address]]);
			}
			const udp = ['-n', '20', '-c', '5'];
			const there = await swarm.inside<UdpReport>(1, 'd1', ['/udpload', ...udp, `${OURS.address}:7`]);
			const back = JSON.parse(inside(swarm, tool('udpload'), ...udp, `${theirs}:53`).stdout) as UdpReport;
			for (const r of [there, back]) assert.equal([r.answered, r.lost, r.corrupt], [100, 0, 0], JSON.stringify(r));
			await wire.stop();

			assert.equal(complaints(wire.file), []);
			const rows = fieldsOf(wire.file, ['frame.protocols', 'vxlan.vni', 'vxlan.flags', 'ip.src', 'frame.len']);
			// The agent's probes of node1, which has none, have the mesh's own VNI.
			const own = rows.filter(([, vni]) => vni !== `${MESH_VNI}`);
			for (const [, vni, flags, , length] of own) {
				assert.equal([vni, Number(flags)], [`${VNI}`, 0x0800]);
				assert.ok(Number(length) <= 1514, `${length} bytes on a wire of 1500`);
			}
			for (const kind of ['icmp', 'tcp', 'udp'])
				for (const node of [1, 2])
					assert.ok(
						own.some(
							([protocols, , , source]) =>
								protocols.includes(`vxlan:eth:ethertype:ip:${kind}`) && source.split(',')[0] === swarm.address(node),
						),
						`${kind} from node${node}`,
					);
		});

		test('a stranger’s address is not believed from the stock node', async ({ swarm, sandbox }) => {
			const spoofed = async () => {
				const text = swarm.exec(2, [
					...['curl', '-s', '--unix-socket', '/run/beeline/beeline.sock'],
					'http://localhost/metrics',
				]).stdout;
				return Number(/verdict="drop_spoofed".*? (\d+)$/m.exec(text)?.[1] ?? 0);
			};
			const before = await spoofed();
			// An address of node2's own part, sent from Docker's side.
			const sandboxed = (...command: string[]) =>
				swarm.exec(1, ['nsenter', `--net=${sandbox}`, '--', ...command], true);
			sandboxed('ip', 'addr', 'add', '10.44.0.200/24', 'dev', 'br0');
			sandboxed('ping', '-c', '2', '-W', '1', '-I', '10.44.0.200', OURS.address);
			sandboxed('ip', 'addr', 'del', '10.44.0.200/24', 'dev', 'br0');
			assert.ok((await spoofed()) > before);
		});
	},
);
