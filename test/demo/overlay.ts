/**
 * `npm run demo -- overlay`: the classic walk-through of overlay networks on three nodes that share one etcd. Every line
 * after `$` is run as it stands (by the agent of its node), so it can be repeated by hand.
 *
 *	 client        n1        n2        n3        e1: etcd
 *	   |           |         |         |         |        192.168.78.0/24
 *	 --+-----------+---------+---------+---------+--
 *	               a         b w1      w2                  namespaces of their own, attached to `red`
 */
import { Agent, targets } from '../support/beeline.js';
import { cannotRunEtcd, EtcdServer } from '../support/etcd.js';
import { removeLeftovers, Topology } from '../support/netns.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { tell } from './tell.js';

async function walk(print: (line: string) => void = console.log): Promise<number> {
	const missing = cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotRunEtcd();
	if (missing) {
		console.error(`the walk-through cannot run here: it ${missing}`);
		return 1;
	}
	print('Overlay networks. Everything happens in network namespaces of this machine and is removed at the end.\n');
	let wrong = 0;
	const check = (good: boolean, text: string) => {
		if (!good) wrong++;
		print(`   ${good ? 'ok' : 'WRONG'}: ${text}`);
	};
	const net = await Topology.build();
	let etcd: EtcdServer | undefined;
	const agents = new Map<string, Agent>();
	try {
		net.addNamespace('e1');
		net.plug('e1', 'eth0');
		net.ip('e1', ['addr add 192.168.78.50/24 dev eth0']);
		etcd = await EtcdServer.start({
			address: '192.168.78.50',
			before: ['nsenter', `--net=/run/netns/${net.ns('e1')}`, '--'],
		});
		const membership = { source: 'etcd', endpoints: [etcd.url] };
		const agent = (node: string) => agents.get(node) as Agent;
		/** Runs a line as an operator on `node` does. */
		const sh = async (node: string, line: string, mayFail = false): Promise<string> => {
			print(`   ${node}$ beeline ${line}`);
			const r = await agent(node).cli(line.split(' '), { mayFail });
			const out = (r.stdout + r.stderr).trim();
			print(out.replace(/^/gm, '      '));
			return out;
		};
		const inside = (name: string, line: string): string => {
			print(`   ${name}$ ${line}`);
			const r = net.exec(name, line.split(' '), { mayFail: true });
			const out = (r.stdout + r.stderr).trim();
			print(out.replace(/^/gm, '      '));
			return r.code === 0 ? out : `failed: ${out}`;
		};

		print('1. Three agents on one etcd; a network on all of them.');
		for (const node of net.nodes) {
			const a = new Agent(net, node, { membership });
			agents.set(node, a);
			a.writeConfig();
			await a.cli(['node', 'add', '--config', a.configFile], { local: true });
		}
		await Promise.all([...agents.values()].map((a) => a.start()));
		await sh('n1', 'network create -d overlay --subnet 10.44.0.0/24 --ipv6 --attachable red');
		await waitFor(
			'n3 to know the network',
			async () => (await agent('n3').request('GET', '/v1/networks/red')).status === 200,
		);
		await sh('n3', 'network ls');

		print('\n2. A namespace on n1 and one on n2 reach each other.');
		const attach = async (node: string, name: string, more = '') => {
			net.addNamespace(name);
			return sh(node, `endpoint attach --network red --netns ${net.ns(name)} --name ${name}${more}`);
		};
		await attach('n1', 'a');
		const b = /(\d+\.\d+\.\d+\.\d+)/.exec(await attach('n2', 'b'))?.[1] ?? '?';
		for (const node of ['n1', 'n2'])
			await waitFor(`${node} to know its next hops`, async () =>
				(await agent(node).nodes()).every((n) => n.self || n.nextHop?.mac),
			);
		await waitFor('n1 to know b', async () => JSON.stringify(await agent('n1').entries()).includes(b));
		check(
			/ 0% packet loss/.test(inside('a', `ping -c 3 -i 0.2 -W 1 ${b}`)),
			`a reaches b at ${b}, by VXLAN of the network's own VNI`,
		);

		print('\n3. A service with two tasks, on n2 and n3, published on port 9000 of every node.');
		await sh('n1', 'service create --network red --publish published=9000,target=80 --name web');
		await attach('n2', 'w1', ' --service web');
		await attach('n3', 'w2', ' --service web');
		for (const task of ['w1', 'w2']) await net.httpd(task, 80);
		for (const node of net.nodes)
			await waitFor(`${node} to know both tasks`, async () =>
				(await agent(node).services()).some((s) => s.name === 'web' && s.backends.active === 2),
			);
		const published = await net.load('c1', ['-n', 60, '-c', 6, ...targets(net, net.nodes, 9000)]);
		check(
			published.ok === 60 && Object.keys(published.backends).sort().join() === 'w1,w2',
			`60 requests to port 9000 of three nodes: ${JSON.stringify(published.backends)}, and the servers saw ${Object.keys(published.clients)}`,
		);

		print('\n4. Names, inside.');
		const vip = inside('a', 'dig +short @127.0.0.11 web');
		check(/^10\.44\.0\.\d+$/.test(vip), `web is ${vip}, its VIP`);
		const tasks = inside('a', 'dig +short @127.0.0.11 tasks.web').split('\n');
		check(tasks.length === 2, `tasks.web is both: ${tasks.join(' ')}`);
		check(inside('a', 'dig +short @127.0.0.11 b') === b, 'and b is b');
		const east = await net.load('a', ['-n', 40, '-c', 4, `${vip}:80`]);
		check(
			east.ok === 40 && Object.keys(east.backends).length === 2,
			`40 connections from a to the VIP: ${JSON.stringify(east.backends)}`,
		);

		print('\n5. A customised ingress network; a second one is refused.');
		await sh(
			'n1',
			'network create --ingress --subnet=10.11.0.0/16 --gateway=10.11.0.2 --opt com.docker.network.driver.mtu=1200 my-ingress',
		);
		check(/is already present/.test(await sh('n1', 'network create --ingress other', true)), 'one ingress network');
		check(
			/service web publishes a port/.test(await sh('n1', 'network rm my-ingress', true)),
			'it stays while a service publishes a port',
		);

		print('\n6. An encrypted network, where the kernel can.');
		const secret = await sh('n1', 'network create --opt encrypted --attachable secret', true);
		check(secret === 'secret' || /encrypt|ESP/i.test(secret), 'it is there, or the reason is said');

		print('\n7. Nothing in use goes; what is detached does.');
		check(/has active endpoints/.test(await sh('n1', 'network rm red', true)), 'red is in use');
		await sh('n1', 'service rm web');
		for (const [node, a] of agents) {
			const { endpoints } = await a.get<{ endpoints: { id: string }[] }>('/v1/endpoints');
			for (const e of endpoints) await sh(node, `endpoint detach ${e.id}`);
		}
		await waitFor('n1 to see that nobody is left', async () =>
			/^\{\}$/.test(JSON.stringify((await agent('n1').get<{ Containers: object }>('/v1/networks/red')).Containers)),
		);
		check((await sh('n1', 'network rm red')) === 'red', 'red is gone');
	} finally {
		for (const a of agents.values()) await a.detach().catch((e: Error) => console.error(e.message));
		await etcd?.close();
		net.close();
		removeLeftovers(process.pid);
	}
	print('\nAll namespaces, programs and pins are removed.');
	if (wrong) print(`${wrong} of the things shown above did not go as they should.`);
	return wrong ? 1 : 0;
}

await tell(walk);
