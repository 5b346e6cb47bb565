/*
 * Encrypted networks where this kernel cannot encrypt, and what must hold everywhere: no plain packet of theirs leaves a node or
 * is let in. How they carry traffic is shown in vm/encryption, under a kernel that can. Topology: two nodes of the default one, and
 *
 *	secret 5101 10.45.0.0/24, encrypted    open 5102 10.46.0.0/24
 */
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { whyNoEsp } from '../../src/agent/encryption.js';
import { run } from '../../src/agent/exec.js';
import { beeline, Mesh } from '../support/beeline.js';
import { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces, skip } from '../support/skip.js';

interface Built {
	readonly net: Topology;
	readonly mesh: Mesh;
	readonly secretFile: string;
}

async function build(): Promise<Built> {
	const net = await Topology.build({ nodes: 2, clients: 1 });
	try {
		const secretFile = join(net.directory, 'secret');
		writeFileSync(secretFile, `${'s'.repeat(48)}\n`, { mode: 0o600 });
		const mesh = await Mesh.start(
			net,
			{
				services: [],
				networks: [
					{ name: 'secret', subnet: '10.45.0.0/24', vni: 5101, attachable: true, options: { encrypted: true } },
					{ name: 'open', subnet: '10.46.0.0/24', vni: 5102, attachable: true },
				],
			},
			{ configs: { n1: { datapath: { secretFile } } } },
		);
		net.addNamespace('x1');
		return { net, mesh, secretFile };
	} catch (error) {
		net.close();
		throw error;
	}
}

const bytes = (...parts: readonly (readonly number[])[]) => Buffer.from(parts.flat());
const mac = (text: string) => text.split(':').map((x) => Number.parseInt(x, 16));
const ip = (text: string) => text.split('.').map(Number);

/** VXLAN from n2 to n1 as n2 would send it in the clear: a UDP packet from 10.45.0.130 to 10.45.0.2. */
function plainFrame(net: Topology, vni: number): string {
	const inner = bytes(
		[0x02, 0x42, 10, 45, 0, 2, 0x02, 0x42, 10, 45, 0, 130, 8, 0],
		[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 45, 0, 130, 10, 45, 0, 2],
		[0, 9, 0, 9, 0, 8, 0, 0],
	);
	const length = 20 + 16 + inner.length;
	const header = bytes(
		[0x45, 0, length >> 8, length & 255, 0, 0, 0x40, 0, 64, 17, 0, 0],
		ip(net.address('n2').v4),
		ip(net.address('n1').v4),
	);
	let sum = 0;
	for (let i = 0; i < 20; i += 2) sum += header.readUInt16BE(i);
	header.writeUInt16BE(~((sum & 0xffff) + (sum >> 16)) & 0xffff, 10);
	const udp = length - 20;
	return Buffer.concat([
		bytes(mac(net.mac('n1')), mac(net.mac('n2')), [8, 0]),
		header,
		bytes([0xc0, 1, 4789 >> 8, 4789 & 255, udp >> 8, udp & 255, 0, 0]),
		bytes([8, 0, 0, 0, vni >> 16, (vni >> 8) & 255, vni & 255, 0]),
		inner,
	]).toString('hex');
}

const noEsp = await whyNoEsp(run);

scenario(
	'encrypted networks',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		const attach = async ({ net, mesh }: Built, node: string, network: string) =>
			mesh.agent(node).cli(['endpoint', 'attach', '--network', network, '--netns', net.ns('x1')], { mayFail: true });

		test('without the cluster’s secret attaching is refused, and the node says that the network is closed', async (b) => {
			const r = await attach(b, 'n2', 'secret');
			assert.is(r.code, 1);
			assert.match(
				r.stderr,
				/network secret is encrypted, and datapath.secretFile is not set: write the same secret of 32 bytes or more into a file on every node/,
			);
			assert.is(r.stderr.trim().split('\n').length, 1);
			assert.match(
				(await b.mesh.agent('n2').status()).warnings.join('\n'),
				/encrypted networks: they are closed, nothing of them leaves or enters this node: datapath.secretFile is not set/,
			);
		});

		const refusal = 'a kernel without ESP refuses to attach, and says what it lacks';
		if (noEsp === undefined) skip(refusal, 'this kernel has ESP (run it on one without)');
		else
			test(refusal, async (b) => {
				const r = await attach(b, 'n1', 'secret');
				assert.is(r.code, 1);
				assert.match(
					r.stderr,
					/network secret is encrypted, and this kernel has no (IPsec ESP|xfrm interfaces) \(.+\): boot one with CONFIG_/,
				);
				assert.is(r.stderr.trim().split('\n').length, 1);
				assert.match(
					(await b.mesh.agent('n1').status()).warnings.join('\n'),
					/nothing of them leaves or enters this node: this kernel has no/,
				);
				assert.equal(
					(b.net.ipJson('n1', 'link show') as { ifname: string }[]).map((l) => l.ifname),
					['lo', 'eth0'],
					'nothing is left behind',
				);
				const doctor = await b.mesh
					.agent('n1')
					.cli(['doctor', '--config', b.mesh.agent('n1').configFile], { local: true, mayFail: true });
				assert.match(doctor.stdout, /encryption +encrypted networks are refused: this kernel has no/);
			});

		test('a plain network is as before beside it', async (b) => {
			const r = await attach(b, 'n1', 'open');
			assert.is(r.code, 0, r.stderr);
		});

		test('plain VXLAN of an encrypted network is dropped and counted, also from a node of the mesh', async ({
			net,
			mesh,
		}) => {
			const dropped = async () => (await mesh.agent('n1').verdicts())['uplink_xdp drop_plain'] ?? 0;
			const before = await dropped();
			for (let i = 0; i < 3; i++) net.frame('n2', 'eth0', plainFrame(net, 5101));
			assert.is((await dropped()) - before, 3);
			net.frame('n2', 'eth0', plainFrame(net, 5102));
			assert.is((await dropped()) - before, 3, 'not of a plain network');
		});

		test('a secret that others can read, or that is short or missing, is refused at start', async ({
			net,
			mesh,
			secretFile,
		}) => {
			await mesh.agent('n1').stop();
			const start = async () => {
				const r = await net.execAsync('n1', [beeline, 'agent', '--config', mesh.agent('n1').configFile], {
					mayFail: true,
					timeoutMs: 30_000,
				});
				assert.is(r.code, 1);
				return r.stderr;
			};
			chmodSync(secretFile, 0o640);
			assert.match(await start(), /secretFile .*secret: others than its owner may use it \(mode 640\): chmod 600/);
			chmodSync(secretFile, 0o600);
			writeFileSync(secretFile, 'short\n');
			assert.match(await start(), /5 bytes are too few: expected 32 at least/);
			mesh.agent('n1').writeConfig({ datapath: { secretFile: '/nowhere/secret' } });
			assert.match(await start(), /secretFile \/nowhere\/secret: it does not exist/);
		});
	},
);
