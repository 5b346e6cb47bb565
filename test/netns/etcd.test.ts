/*
 * A mesh kept in etcd: built by the command line alone, changed under load, drained, and without its etcd.
 *
 *	 c1 (.100)     n1 (.1)       n2 (.2)       e1 (.50)
 *	   |              |             |             |        192.168.78.0/24, fd78::/64
 *	 --+--------------+--- br0 -----+-------------+--      e1: a real etcd on port 2379
 *	                n1t1        n2t1 n2t2
 */
import * as assert from 'uvu/assert';
import type { ServiceView } from '../../src/http/schemas.js';
import { Agent, targets } from '../support/beeline.js';
import { cannotRunEtcd, EtcdServer } from '../support/etcd.js';
import { type LoadReport, type RunningLoad, Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

interface Shared {
	net: Topology;
	etcd: EtcdServer;
	n1: Agent;
	n2: Agent;
}

async function build(): Promise<Shared> {
	const net = await Topology.build({ nodes: 2, tasks: { n1: 1, n2: 2 } });
	let etcd: EtcdServer | undefined;
	try {
		net.addNamespace('e1');
		net.plug('e1', 'eth0');
		net.ip('e1', ['addr add 192.168.78.50/24 dev eth0']);
		etcd = await EtcdServer.start({
			address: '192.168.78.50',
			before: ['nsenter', `--net=/run/netns/${net.ns('e1')}`, '--'],
		});
		for (const task of net.tasks()) await net.httpd(task, 80);
		const membership = { source: 'etcd', endpoints: [etcd.url], prefix: '/site/beeline' };
		const [n1, n2] = net.nodes.map((node) => new Agent(net, node, { membership })) as [Agent, Agent];
		for (const agent of [n1, n2]) agent.writeConfig();
		return { net, etcd, n1, n2 };
	} catch (error) {
		await etcd?.close();
		net.close();
		throw error;
	}
}

const both = ({ n1, n2 }: Shared) => [n1, n2];
const backendOf = (net: Topology, task: string) =>
	`${task.replace(/t\d+$/, '')}=${net.address(task).v4},${net.address(task).v6}`;
/** Each new connection of 300 over both nodes and families is answered. */
async function answered(net: Topology, port = 8080): Promise<LoadReport> {
	const report = await net.load('c1', [...['-n', 300, '-c', 30, '-t', 5000], ...targets(net, net.nodes, port, [4, 6])]);
	assert.equal(report.failures, {}, JSON.stringify(report));
	return report;
}
const served = (report: LoadReport) => Object.keys(report.backends).sort();
async function seesEverywhere(
	shared: Shared,
	what: string,
	condition: (service: ServiceView | undefined) => boolean,
): Promise<void> {
	for (const agent of both(shared))
		await waitFor(`${what} on ${agent.node}`, async () =>
			condition((await agent.services()).find((s) => s.name === 'web')),
		);
}

scenario(
	'a mesh in etcd',
	cannotUseNamespaces() ?? cannotLoadBpf() ?? cannotRunEtcd(),
	build,
	async ({ net, etcd, n1, n2 }) => {
		for (const agent of [n1, n2]) await agent.detach().catch((error: Error) => console.error(error.message));
		await etcd.close();
		net.close();
	},
	(test) => {
		test('nothing in etcd: the agent says what to do, and changes nothing', async ({ net, n1 }) => {
			const result = await n1.launch().ended;
			assert.is(result.code, 1);
			assert.match(
				result.stderr.trim(),
				/^etcd http:\/\/192\.168\.78\.50:2379 under \/site\/beeline\/ names no node: add this one with beeline node add --config FILE, or set membership\.prefix$/,
			);
			assert.not(/xdp/.test(net.exec('n1', ['ip', 'link', 'show', 'eth0']).stdout), 'no program is attached');
		});

		test('nodes add themselves, agents start, and a service that the command creates carries traffic', async (shared) => {
			const { net, etcd, n1, n2 } = shared;
			for (const agent of both(shared)) {
				await agent.cli(['node', 'add', '--config', agent.configFile], { local: true });
				// A provisioning tool may say it twice.
				await agent.cli(['node', 'add', '--config', agent.configFile], { local: true });
			}
			assert.equal(etcd.get('/site/beeline/nodes/n2'), { address: '192.168.78.2' });
			await Promise.all(both(shared).map((agent) => agent.start()));
			await n1.cli([
				...['service', 'create', '--publish', 'published=8080,target=80,protocol=tcp'],
				...['--backend', backendOf(net, 'n1t1'), '--backend', backendOf(net, 'n2t1'), '--name', 'web'],
			]);
			await seesEverywhere(shared, 'the service', (web) => web?.backends.active === 2);
			for (const agent of both(shared))
				await waitFor('the next hop', async () => (await agent.nodes()).every((n) => n.self || n.nextHop?.mac));
			assert.equal(served(await answered(net)), ['n1t1', 'n2t1']);
			assert.match((await n2.cli(['service', 'ls'])).stdout, /web +8080->80\/tcp +2\/2/);
			assert.match((await n2.cli(['node', 'ls'])).stdout, /n1 +192\.168\.78\.1 +active/);
			assert.is((await n1.status()).membership.source, 'etcd');
			// Nobody differs: the same keys are the same tables.
			assert.is((await n1.status()).digest, (await n2.status()).digest);
		});

		test('backends, ports and options change under load, by either node: no request fails', async (shared) => {
			const { net, n1, n2 } = shared;
			const load = net.startLoad('c1', [
				...['-n', 0, '-c', 60, '-r', 200, '-d', 120_000, '-t', 5000],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			await n2.cli(['service', 'update', '--backend-add', backendOf(net, 'n2t2'), 'web']);
			await seesEverywhere(shared, 'the backend', (web) => web?.backends.active === 3);
			await n1.cli(['service', 'update', '--option', 'returnPath=tunnel', '--publish-add', '8081:80', 'web']);
			await seesEverywhere(shared, 'the port', (web) => web?.ports.length === 2 && web.options.returnPath === 'tunnel');
			assert.equal(served(await answered(net, 8081)), ['n1t1', 'n2t1', 'n2t2']);
			await n2.cli(['service', 'update', '--publish-rm', 'published=8081', '--option', 'returnPath=auto', 'web']);
			await seesEverywhere(shared, 'the port to go', (web) => web?.ports.length === 1);
			const report = await load.finish();
			assert.equal(report.failures, {}, JSON.stringify(report));
			assert.ok(report.ok > 50, JSON.stringify(report));
		});

		test('a drain is the whole mesh’s: open connections stay, new ones go elsewhere on every node', async (shared) => {
			const { net, n1, n2 } = shared;
			const held: RunningLoad<LoadReport> = net.startLoad('c1', [
				...['-n', 60, '-c', 60, '-k', 0, '-i', 100, '-d', 120_000, '-t', 5000],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			await held.ready();
			// Tasks of both nodes have the same address there.
			const ambiguous = await n1.cli(['drain', net.address('n2t1').v4], { mayFail: true });
			assert.match(ambiguous.stderr, /names backend web~n1~.* and backend web~n2~.*: give the id/);
			const id =
				(await n1.backends()).find((b) => b.node === 'n2' && b.addresses[0] === net.address('n2t2').v4)?.id ?? '';
			await n1.cli(['drain', id]);
			await seesEverywhere(shared, 'the drain', (web) => web?.backends.draining === 1);
			assert.not.ok(served(await answered(net)).includes('n2t2'));
			await n2.cli(['undrain', id]);
			await seesEverywhere(shared, 'the end of the drain', (web) => web?.backends.draining === 0);
			await n2.cli(['drain', 'n1']);
			await seesEverywhere(shared, 'the drain of n1', (web) => web?.backends.draining === 1);
			assert.not.ok(served(await answered(net)).includes('n1t1'));
			await n1.cli(['undrain', 'n1']);
			await seesEverywhere(shared, 'n1 to be back', (web) => web?.backends.active === 3);
			assert.match((await n1.cli(['service', 'scale', 'web=1'])).stdout, /web scaled to 1/);
			await seesEverywhere(shared, 'one backend', (web) => web?.backends.active === 1);
			assert.equal(served(await answered(net)), ['n1t1']);
			await n2.cli(['service', 'scale', 'web=3']);
			await seesEverywhere(shared, 'three backends', (web) => web?.backends.active === 3);
			const report = await held.finish();
			assert.equal(report.failures, {}, JSON.stringify(report));
		});

		test('If-Match holds on all nodes; what does not fit is refused in one sentence', async (shared) => {
			const { n1, n2 } = shared;
			const before = await n1.get<ServiceView>('/v1/services/web');
			assert.ok((before.revision ?? 0) > 0);
			const tagOf = async (agent: Agent) => {
				const { stdout } = await agent.net.execAsync(agent.node, [
					...['curl', '-sD-', '-o/dev/null', '--unix-socket', agent.socket, 'http://localhost/v1/services/web'],
				]);
				return /^etag: (\S+)/im.exec(stdout)?.[1] ?? '';
			};
			const tag = await tagOf(n1);
			const patch = (agent: Agent, drainTimeout: string, headers = {}) =>
				agent.request('PATCH', '/v1/services/web', { options: { drainTimeout } }, headers);
			assert.is((await patch(n2, '5s')).status, 200);
			const stale = await patch(n1, '6s', { 'if-match': tag });
			assert.is(stale.status, 412, stale.text);
			await waitFor(
				'n1 to follow',
				async () => (await n1.get<ServiceView>('/v1/services/web')).options.drainTimeout === '5s',
			);
			const now = await waitFor('a tag', () => tagOf(n1));
			const fine = await patch(n1, '7s', { 'if-match': now });
			assert.is(fine.status, 200, fine.text);
			const create = (args: readonly string[]) => n2.cli(['service', 'create', ...args], { mayFail: true });
			for (const [args, expected] of [
				[['-p', '8080:81', 'other'], /^service other publishes tcp\/8080, which service web published before$/],
				[['-p', '9000:81', '--backend', 'n7', 'other'], /^service other has backends on n7, which is no node$/],
				[['-p', '9000:81', 'web'], /^service web exists already: remove it, or choose another name$/],
				[['-p', 'published=9000,target=80,mode=host', 'x'], /every port is published on all nodes: leave mode out$/],
			] as const) {
				const result = await create(args);
				assert.is(result.code, 1);
				assert.match(result.stderr.trim(), expected);
			}
			const option = ['--opt', 'com.docker.network.driver.overlay.vxlanid_list=12509184'];
			const clash = await n1.cli(['network', 'create', ...option, 'clash'], { mayFail: true });
			assert.match(
				clash.stderr.trim(),
				/^VNI 12509184 is that of the tunnel between nodes \(datapath\.vni\): choose another, or none$/,
			);
			const slip = await n1.cli(['network', 'create', '--subnet', '10.44.0.1/24', 'slip'], { mayFail: true });
			assert.match(
				slip.stderr.trim(),
				/^network slip subnet is "10\.44\.0\.1\/24": expected 10\.44\.0\.0\/24 without host bits$/,
			);
			const scale = await n1.cli(['service', 'scale', 'web=9'], { mayFail: true });
			assert.match(scale.stderr.trim(), /^service web has 3 backends, and Beeline starts no processes: add some with /);
			const rm = await n1.cli(['node', 'rm', 'n2'], { mayFail: true });
			assert.match(rm.stderr.trim(), /^node n2 has backends of service web: remove or move them first$/);
		});

		test('a bad document is reported where an operator looks, and the rest works', async ({ net, etcd, n2 }) => {
			etcd.put('/site/beeline/services/bad', { ports: [{ published: 0, target: 80 }] });
			const warning = await waitFor('the report', async () =>
				(await n2.status()).warnings.find((w) => w.includes('/site/beeline/services/bad')),
			);
			assert.match(warning, /ports\[0\]\.published is 0: expected a port from 1 to 65535 \(it is ignored\)$/);
			const { text } = await n2.request('GET', '/metrics');
			assert.match(text, /^beeline_refused 1$/m);
			await answered(net);
			etcd.put('/site/beeline/networks/clash', { subnet: '10.44.0.0/24', vni: 12509184 });
			const clash = await waitFor('the report', async () =>
				(await n2.status()).warnings.find((w) => w.includes('/site/beeline/networks/clash')),
			);
			assert.match(clash, /: vni is 12509184, that of the tunnel between nodes .* \(the network is ignored\)$/);
			etcd.ctl('del', '/site/beeline/networks/clash');
			etcd.ctl('del', '/site/beeline/services/bad');
			await waitFor('the report to go', async () => !(await n2.status()).warnings.some((w) => w.includes('/bad')));
		});

		test('etcd is killed: traffic goes on, an agent restarts from the last state, changes are refused', async (shared) => {
			const { net, etcd, n1, n2 } = shared;
			const doctor = async () =>
				(await n1.cli(['doctor', '--config', n1.configFile], { local: true, mayFail: true })).stdout;
			assert.match(await doctor(), /ok +etcd http:\/\/192\.168\.78\.50:2379 +2 nodes under \/site\/beeline\/nodes\//);
			const load = net.startLoad('c1', [
				...['-n', 0, '-c', 60, '-r', 200, '-d', 120_000, '-t', 5000],
				...targets(net, net.nodes, 8080, [4, 6]),
			]);
			await etcd.kill();
			for (const agent of both(shared))
				await waitFor('the loss to be shown', async () =>
					/connection refused/.test((await agent.status()).membership.error ?? ''),
				);
			const refused = await n2.cli(['service', 'update', '--option', 'prefer=local', 'web'], { mayFail: true });
			assert.is(refused.code, 1);
			assert.match(refused.stderr.trim(), /^etcd http:\/\/192\.168\.78\.50:2379: connection refused$/);
			await n1.stop('SIGKILL');
			await n1.start();
			assert.match(n1.output(), /going by the membership that was known last/);
			assert.equal(
				(await n1.services()).map((s) => s.name),
				['web'],
			);
			assert.is((await n1.status()).digest, (await n2.status()).digest);
			await answered(net);
			assert.match(await doctor(), /ERROR +etcd http:\/\/192\.168\.78\.50:2379 .*connection refused/);
			const report = await load.finish();
			assert.equal(report.failures, {}, JSON.stringify(report));
			await etcd.launch();
			for (const agent of both(shared))
				await waitFor('etcd to be read again', async () => (await agent.status()).membership.error === null, 20_000);
		});

		test('what is removed is gone everywhere, and a node that is removed leaves', async (shared) => {
			const { net, etcd, n1, n2 } = shared;
			await n1.cli([
				'service',
				'update',
				'--backend-rm',
				backendOf(net, 'n2t1'),
				'--backend-rm',
				backendOf(net, 'n2t2'),
				'web',
			]);
			await seesEverywhere(shared, 'one backend', (web) => (web?.backends.active ?? 0) === 1);
			await n1.cli(['node', 'rm', 'n2']);
			await waitFor('n2 to know', async () => (await n2.status()).state === 'leaving');
			await n2.stop('SIGTERM');
			assert.not(/xdp/.test(net.exec('n2', ['ip', 'link', 'show', 'eth0']).stdout), 'n2 took its programs down');
			await n1.cli(['service', 'rm', 'web']);
			await waitFor('the service to go', async () => (await n1.services()).length === 0);
			assert.is(etcd.ctl('get', '--prefix', '--keys-only', '/').trim(), '/site/beeline/nodes/n1');
		});
	},
);
