/**
 * `npm run demo` and `beeline demo`: three nodes, real servers, real traffic, on this machine. It stands on the test
 * harness: namespaces, servers and clients are the same, and what it shows is what the tests assert.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import Table from 'cli-table3';
import { Mesh, targets, taskBackend } from '../support/beeline.js';
import { type LoadReport, removeLeftovers, Topology } from '../support/netns.js';
import { cannotLoadBpf, cannotUseNamespaces } from '../support/skip.js';
import { tell } from './tell.js';

const connections = 10_000;

/**
 * Runs the demo and takes everything down again, also after Ctrl-C.
 * @returns the exit status: 0 when everything it claims was seen
 */
async function demo(print: (line: string) => void = console.log): Promise<number> {
	const missing = cannotUseNamespaces() ?? cannotLoadBpf();
	if (missing) {
		console.error(`the demo cannot run here: it ${missing}`);
		return 1;
	}
	const began = performance.now();
	print('Beeline demo. Everything happens in network namespaces of this machine and is removed at the end.\n');
	const net = await Topology.build({ tasks: { n2: 3, n3: 2 } });
	let failures = 0;
	try {
		for (const task of net.tasks()) await net.httpd(task, 80);
		print(picture(net));
		failures += await story(net, print);
	} finally {
		net.close();
		removeLeftovers(process.pid);
	}
	const seconds = ((performance.now() - began) / 1000).toFixed(0);
	print(`\nAll namespaces, programs and pins are removed. ${seconds} s in all.`);
	if (failures) print(`${failures} of the things shown above did not go as they should.`);
	return failures ? 1 : 0;
}

async function story(net: Topology, print: (line: string) => void): Promise<number> {
	let wrong = 0;
	const check = (good: boolean, text: string) => {
		if (!good) wrong++;
		print(`   ${good ? 'ok' : 'WRONG'}: ${text}`);
	};
	const client4 = net.address('c1').v4;
	const client6 = net.address('c1').v6;

	const start = performance.now();
	const backends = net.tasks().map((task) => taskBackend(net, task));
	const mesh = await Mesh.start(net, {
		services: [{ name: 'web', ports: [{ published: 8080, target: 80 }], backends }],
	});
	try {
		print(
			`1. An agent on each node, ready after ${((performance.now() - start) / 1000).toFixed(1)} s. Port 8080 is published on all three.`,
		);
		const one = await net.execAsync('c1', ['curl', '-sS', '-m', '5', `http://${net.address('n1').v4}:8080/`], {
			mayFail: true,
		});
		print(`   client$ curl http://${net.address('n1').v4}:8080/\n   ${one.stdout.trim() || one.stderr.trim()}`);
		check(
			one.stdout.includes(`"client":"${client4}"`),
			`n1 runs no task, one on another node answered, and it saw ${client4}`,
		);

		print(`\n2. ${connections} connections to port 8080 of all three nodes, half of them over IPv6.`);
		const all = await net.load('c1', ['-n', connections, '-c', 200, ...targets(net, net.nodes, 8080, [4, 6])]);
		print(indent(table(net, all)));
		check(
			all.ok === connections,
			`${all.ok} answered, ${connections - all.ok} failed, ${rate(all)} connections a second`,
		);
		check(
			Object.keys(all.clients).every((address) => address === client4 || address === client6),
			`the servers saw ${Object.keys(all.clients).join(' and ')}: the client itself, through every node`,
		);

		print('\n3. kill -9 of all three agents, while 60 connections are open and 400 a second are made.');
		const held = net.startLoad('c1', [
			'-n',
			60,
			'-c',
			60,
			'-k',
			0,
			'-i',
			100,
			'-d',
			60_000,
			...targets(net, net.nodes, 8080, [4, 6]),
		]);
		await held.ready();
		const fresh = net.startLoad('c1', [
			'-n',
			0,
			'-c',
			100,
			'-r',
			400,
			'-d',
			60_000,
			...targets(net, net.nodes, 8080, [4, 6]),
		]);
		await sleep(500);
		for (const agent of mesh.agents.values()) await agent.stop('SIGKILL');
		await sleep(1500);
		print('   no agent runs now; the programs stay in the kernel');
		for (const agent of mesh.agents.values()) await agent.start();
		print('   the agents are back, on the maps that they left');

		print('\n4. A new version of the service: one task goes, another gets three shares.');
		await mesh.setBackends(
			'web',
			backends.slice(1).map((backend, i) => ({ ...backend, weight: i ? 1 : 3 })),
		);
		const changed = await net.load('c1', ['-n', 3000, '-c', 100, ...targets(net, net.nodes, 8080, [4, 6])]);
		print(indent(table(net, changed)));
		check(changed.ok === 3000, `${3000 - changed.ok} of 3000 new connections failed`);
		check(!(net.tasks()[0] in changed.backends), `none went to ${net.tasks()[0]}, which was removed`);
		const heldReport = await held.finish();
		const freshReport = await fresh.finish();
		check(
			Object.keys(heldReport.failures).length === 0 && heldReport.moved === 0,
			`of the 60 open connections ${sum(heldReport.failures)} broke and ${heldReport.moved} changed their backend in ${heldReport.ok} requests`,
		);
		check(
			freshReport.ok > 0 && sum(freshReport.failures) === 0,
			`of ${freshReport.connections} new ones ${sum(freshReport.failures)} failed, through steps 3 and 4`,
		);
	} finally {
		await mesh.close();
	}
	return wrong;
}

function picture(net: Topology): string {
	const at = (name: string) => net.address(name).v4;
	return [
		`   client ${at('c1')}`,
		'     |',
		'   --+-----------------+-----------------+-----------------+--   192.168.78.0/24, fd78::/64, MTU 1500',
		'                       |                 |                 |',
		`                  n1 ${at('n1')}   n2 ${at('n2')}   n3 ${at('n3')}`,
		`                    no task         ${net.tasks('n2').length} web servers     ${net.tasks('n3').length} web servers`,
		'',
	].join('\n');
}

function table(net: Topology, report: LoadReport): string {
	const out = new Table({
		head: ['node', 'task', 'address', 'requests', 'share'],
		colAligns: ['left', 'left', 'left', 'right', 'right'],
		style: { head: [], border: [] },
	});
	for (const task of Object.keys(report.backends).sort()) {
		const count = report.backends[task];
		out.push([
			task.replace(/t\d+$/, ''),
			task,
			net.address(task).v4,
			count,
			`${((100 * count) / report.ok).toFixed(1)} %`,
		]);
	}
	return out.toString();
}

const indent = (text: string) => text.replace(/^/gm, '   ');
const sum = (counts: Readonly<Record<string, number>>) =>
	Object.values(counts).reduce((total, count) => total + count, 0);
const rate = (report: LoadReport) => Math.round((1000 * report.connections) / Math.max(report.durationMs, 1));

await tell(demo);
