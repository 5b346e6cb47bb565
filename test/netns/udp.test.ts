/*
 * Datagrams at the edge of the MTU, and segmentation offload as QUIC servers use it.
 * Topology: the default one, MTU 1500; n2t1. 8053 tunnel, 8054 dsr; 8055 and 8056 the same to a server that sets DF.
 */
import * as assert from 'uvu/assert';
import { startServed, targets } from '../support/beeline.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';

const build = () =>
	startServed(
		{ nodes: 2, tasks: { n2: 1 } },
		(backends) => {
			const service = (published: number, target: number, returnPath: string) => ({
				name: `dns-${published}`,
				ports: [{ published, target, protocol: 'udp' as const }],
				options: { returnPath },
				backends,
			});
			return [
				service(8053, 53, 'tunnel'),
				service(8054, 53, 'dsr'),
				service(8055, 54, 'tunnel'),
				service(8056, 54, 'dsr'),
			];
		},
		(net) => net.udpecho('n2t1', 54, 'n2t1', ['-D', 'do']),
	);

scenario(
	'large datagrams',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		for (const family of [4, 6] as const) {
			// 1472 + 28 and 1452 + 48 are 1500 bytes: one packet on the client's wire, too large for the tunnel.
			const full = family === 4 ? 1472 : 1452;

			for (const [path, port] of [
				['tunnel', 8053],
				['dsr', 8054],
			] as const) {
				test(`replies with UDP_SEGMENT by ${path}, IPv${family}`, async ({ net, mesh }) => {
					const report = await net.udpload('c1', [
						'-n',
						20,
						'-c',
						4,
						'-R',
						1200,
						'-g',
						20,
						...targets(net, ['n1'], port, [family]),
					]);
					assert.equal(
						[report.answered, report.replies, report.lost, report.corrupt],
						[80, 1600, 0, 0],
						`${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`,
					);
				});

				test(`replies of ${full} bytes without DF by ${path}, IPv${family}`, async ({ net, mesh }) => {
					const report = await net.udpload('c1', ['-n', 10, '-R', full, ...targets(net, ['n1'], port, [family])]);
					assert.ok(report.answered >= 9, `${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
					assert.is(report.corrupt, 0);
				});
			}

			test(`questions of ${full} bytes that must not be fragmented: the sender is told the MTU, and adapts, IPv${family}`, async ({
				net,
				mesh,
			}) => {
				const target = targets(net, ['n1'], 8053, [family]);
				const refused = await net.udpload('c1', ['-n', 3, '-S', full, '-R', 64, '-D', 'do', ...target]);
				const said = `${JSON.stringify(refused)} ${JSON.stringify(await mesh.verdicts())}`;
				assert.is(refused.answered, 0, said);
				assert.ok((refused.errors.icmp_EMSGSIZE ?? 0) >= 1, said);
				assert.is(refused.mtu, 1450, said);
				const adapted = await net.udpload('c1', ['-n', 5, '-S', full - 50, '-R', 64, '-D', 'do', ...target]);
				assert.is(adapted.answered, 5, JSON.stringify(adapted));
			});

			test(`questions of ${full} bytes without DF arrive, IPv${family}`, async ({ net, mesh }) => {
				// IPv6 senders fragment themselves, once they were told: the first datagram may be lost.
				const target = targets(net, ['n1'], 8053, [family]);
				if (family === 6) await net.udpload('c1', ['-n', 1, '-S', full, '-R', 64, '-t', 300, ...target]);
				else net.exec('c1', ['ip', 'route', 'flush', 'cache']);
				const report = await net.udpload('c1', ['-n', 10, '-S', full, '-R', 64, ...target]);
				assert.is(report.answered, 10, `${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
				assert.is(report.corrupt, 0);
			});

			test(`replies of ${full} bytes with DF by tunnel: the server is told, IPv${family}`, async ({ net, mesh }) => {
				const target = targets(net, ['n1'], 8055, [family]);
				await net.udpload('c1', ['-n', 4, '-R', full, '-t', 300, ...target]);
				const route = net.exec('n2t1', [
					'ip',
					family === 4 ? '-4' : '-6',
					'route',
					'get',
					family === 4 ? net.address('c1').v4 : net.address('c1').v6,
				]);
				assert.match(route.stdout, /mtu 14[0-9][0-9]/, `${route.stdout} ${JSON.stringify(await mesh.verdicts())}`);
				const adapted = await net.udpload('c1', ['-n', 5, '-R', full - 50, ...target]);
				assert.is(adapted.answered, 5, JSON.stringify(adapted));
			});

			test(`replies of ${full} bytes with DF by dsr arrive, IPv${family}`, async ({ net }) => {
				// A new client address: what the tunnel taught the server's kernel is kept by destination.
				net.ip('c1', [family === 4 ? 'addr add 192.168.78.199/24 dev eth0' : 'addr add fd78::199/64 dev eth0 nodad']);
				const source = family === 4 ? '192.168.78.199' : 'fd78::199';
				const report = await net.udpload('c1', [
					'-n',
					5,
					'-R',
					full,
					'-s',
					source,
					...targets(net, ['n1'], 8056, [family]),
				]);
				assert.is(report.answered, 5, JSON.stringify(report));
			});

			test(`datagrams of 8000 bytes, in fragments, both ways, IPv${family}`, async ({ net, mesh }) => {
				const report = await net.udpload('c1', ['-n', 10, '-S', 8000, ...targets(net, ['n1'], 8053, [family])]);
				assert.ok(report.answered >= 9, `${JSON.stringify(report)} ${JSON.stringify(await mesh.verdicts())}`);
			});
		}
	},
);
