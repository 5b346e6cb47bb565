/*
 * Ports that must not be taken on a node: refused there with the reason, and the rest works. What comes later is told.
 *
 *	 c1 .100            n1 .1                              n2 .2
 *	   |                  |                                  |       192.168.78.0/24
 *	 --+------------------+----------------------------------+--
 *	                 22: a process, 7980: the agent       gwbr0
 *	                 an INPUT rule drops 8085, 8086       n2t1
 */
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Mesh, onTopology, type ServiceDocument, targets, taskBackend } from '../support/beeline.js';
import type { Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

async function build(): Promise<{ net: Topology; mesh: Mesh }> {
	return onTopology({ nodes: 2, tasks: { n2: 1 } }, async (net) => {
		await net.httpd('n2t1', 80);
		await net.udpecho('n2t1', 53);
		net.exec('n1', ['nft', '-f', '-'], {
			input: 'table inet t { chain input { type filter hook input priority 0; tcp dport { 8085, 8086 } drop\n}\n}\n',
		});
		const service = (
			name: string,
			published: number,
			protocol: 'tcp' | 'udp' = 'tcp',
			options: object = {},
		): ServiceDocument => ({
			name,
			ports: [{ published, target: protocol === 'tcp' ? 80 : 53, protocol }],
			options: { ...options },
			backends: [taskBackend(net, 'n2t1')],
		});
		await net.httpd('n1', 22);
		const mesh = await Mesh.start(
			net,
			{
				services: [
					service('web', 8080),
					service('dns', 8053, 'udp'),
					service('ssh', 22),
					service('managers', 2377),
					service('gossip', 7946),
					service('gossip-udp', 7946, 'udp'),
					service('vxlan', 4789, 'udp'),
					service('own', 7980),
					service('dropped', 8085),
					service('listed', 8086, 'tcp', { allow: ['192.168.78.0/24'] }),
				],
			},
			{ configs: { n1: { http: { listen: ['127.0.0.1:7980'] } } } },
		);
		return { mesh };
	});
}

scenario(
	'ports that are not taken',
	cannotUseNamespaces() ?? cannotLoadBpf(),
	build,
	async ({ net, mesh }) => {
		await mesh.close();
		net.close();
	},
	(test) => {
		const works = async (net: Topology, node: string, port: number, who: string) => {
			const report = await net.load('c1', ['-n', 10, '-t', 2000, ...targets(net, [node], port)]);
			assert.equal(
				[report.failures, Object.keys(report.backends)],
				[{}, [who]],
				`${node}:${port} ${JSON.stringify(report)}`,
			);
		};

		test('each is refused with its reason, on the node that it concerns', async ({ mesh }) => {
			const of = async (node: string) =>
				Object.fromEntries((await mesh.agent(node).status()).refused.map((r) => [r.what, r.reason]));
			const n1 = await of('n1');
			for (const [what, why] of [
				['tcp/22', /held by httpd on/],
				['tcp/2377', /Swarm’s managers|Swarm's managers/],
				['tcp/7946', /gossip/],
				['udp/7946', /gossip/],
				['udp/4789', /VXLAN/],
				['tcp/7980', /own HTTP port/],
				['tcp/8085', /firewall rule \(nft inet t input\) restricts port 8085/],
			] as const)
				assert.match(n1[what] ?? `${what} is not refused`, why);
			assert.is(Object.keys(n1).length, 7, JSON.stringify(n1));
			assert.equal(Object.keys(await of('n2')).sort(), ['tcp/2377', 'tcp/7946', 'udp/4789', 'udp/7946']);
			const states = new Map((await mesh.agent('n1').services()).map((s) => [s.name, s.ports[0].state]));
			assert.equal(
				['web', 'ssh', 'dropped', 'listed'].map((n) => states.get(n)),
				['serving', 'refused', 'refused', 'serving'],
			);
		});

		test('the rest works, and what held a port goes on', async ({ net }) => {
			await works(net, 'n1', 8080, 'n2t1');
			await works(net, 'n1', 8086, 'n2t1');
			await works(net, 'n1', 22, 'n1');
			await works(net, 'n2', 22, 'n2t1');
			await works(net, 'n2', 8085, 'n2t1');
			const udp = await net.udpload('c1', ['-n', 5, ...targets(net, ['n1'], 8053)]);
			assert.is(udp.answered, 5);
		});

		test('a process answers its own clients before, while and after a service wants its port, TCP and UDP', async ({
			net,
			mesh,
		}) => {
			const held = [await net.httpd('n1', 9022), await net.udpecho('n1', 9053)];
			const { document } = mesh;
			const from = (name: string, protocol: 'tcp' | 'udp', published: number, target: number): ServiceDocument => ({
				...{ name, ports: [{ published, target, protocol }], options: {} },
				backends: [taskBackend(net, 'n2t1')],
			});
			const wanting = [from('late', 'tcp', 9022, 80), from('late-udp', 'udp', 9053, 53)];
			const tcp = targets(net, ['n1'], 9022);
			const udp = targets(net, ['n1'], 9053);
			// New ones all the time, and some that stay.
			const loads = [
				net.startLoad('c1', ['-n', 0, '-d', 60_000, '-r', 200, '-c', 50, '-t', 5000, ...tcp]),
				net.startLoad('c1', ['-n', 5, '-c', 5, '-k', 0, '-d', 60_000, '-i', 10, '-t', 5000, ...tcp]),
			];
			const asking = net.startUdpload('c1', ['-n', 0, '-d', 60_000, '-c', 10, '-i', 10, '-t', 5000, ...udp]);
			try {
				await loads[1].ready();
				await sleep(300);
				await mesh.change({ ...document, services: [...document.services, ...wanting] });
				const refused = async () => (await mesh.agent('n1').status()).refused.map((r) => `${r.what} ${r.reason}`);
				const now = await refused();
				assert.ok(
					now.some((r) => /^tcp\/9022 .*held by httpd/.test(r)),
					now.join('; '),
				);
				assert.ok(
					now.some((r) => /^udp\/9053 .*held by udpecho/.test(r)),
					now.join('; '),
				);
				await works(net, 'n1', 9022, 'n1');
				await works(net, 'n2', 9022, 'n2t1');
				const there = await net.udpload('c1', ['-n', 5, ...targets(net, ['n2'], 9053)]);
				assert.equal([there.lost, Object.keys(there.backends)], [0, ['n2t1']]);
				await mesh.change(document);
				await works(net, 'n1', 9022, 'n1');
				await sleep(300);
			} catch (e) {
				for (const l of [...loads, asking]) await l.running.stop();
				throw e;
			}
			const [fresh, old, datagrams] = [await loads[0].finish(), await loads[1].finish(), await asking.finish()];
			for (const r of [fresh, old])
				assert.equal(
					[r.failures, r.ok === r.requests, Object.keys(r.backends), Object.keys(r.clients), r.moved],
					[{}, true, ['n1'], [net.address('c1').v4], 0],
					JSON.stringify(r),
				);
			assert.ok(fresh.ok > 100 && datagrams.answered > 100, JSON.stringify([fresh.ok, datagrams.answered]));
			assert.equal(
				[datagrams.lost, datagrams.errors, Object.keys(datagrams.backends), Object.keys(datagrams.sources)],
				[0, {}, ['n1'], [net.address('n1').v4]],
				JSON.stringify(datagrams),
			);
			// When it has gone the port is the service's.
			await mesh.change({ ...document, services: [...document.services, ...wanting] });
			for (const h of held) await h.stop();
			await waitFor(
				'9022 and 9053 to be served',
				async () => {
					const report = await net.load('c1', ['-n', 1, '-t', 500, ...tcp]);
					const there = await net.udpload('c1', ['-n', 1, '-t', 500, ...udp]);
					return report.backends.n2t1 === 1 && there.backends.n2t1 === 1;
				},
				20_000,
				200,
			);
			await mesh.change(document);
		});

		test('a process that comes to listen on a served port is told of within seconds, and until it goes', async ({
			net,
			mesh,
		}) => {
			const told = async () =>
				(await mesh.agent('n1').status()).warnings.some((w) =>
					/^tcp\/8080 of web is served all the same.*held by httpd/.test(w),
				);
			assert.not(await told());
			const intruder = await net.httpd('n1', 8080);
			await waitFor('status to say so', told, 15_000, 200);
			await works(net, 'n1', 8080, 'n2t1');
			await intruder.stop();
			await waitFor('status to be silent again', async () => !(await told()), 15_000, 200);
		});

		test('so is a rule that comes later', async ({ net, mesh }) => {
			const told = async () =>
				(await mesh.agent('n1').status()).warnings.some((w) =>
					/^tcp\/8080 of web is served all the same.*nft inet t input/.test(w),
				);
			assert.not(await told());
			net.exec('n1', ['nft', 'add', 'rule', 'inet', 't', 'input', 'tcp', 'dport', '8080', 'drop']);
			await waitFor('status to say so', told, 15_000, 200);
			await works(net, 'n1', 8080, 'n2t1');
			net.exec('n1', ['nft', 'flush', 'chain', 'inet', 't', 'input']);
			await waitFor('status to be silent again', async () => !(await told()), 15_000, 200);
			// And the port that the rule had kept is taken.
			await waitFor('8085 to be served', async () => {
				const report = await net.load('c1', ['-n', 1, '-t', 500, ...targets(net, ['n1'], 8085)]);
				return report.ok === 1 && report.backends.n2t1 === 1;
			});
		});
	},
);
