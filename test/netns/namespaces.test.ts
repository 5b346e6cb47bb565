/*
 * Which namespaces are attached to which network: real namespaces, bound to files as Docker binds them, and an engine that
 * says what it is told to.
 *
 *	n1t1, n1t2 behind gwbr0 of n1. In the engine's words both are endpoints of "red".
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openNetns } from 'libbpf-ts';
import * as assert from 'uvu/assert';
import { type Attachment, mergeAttached, type Namespaces, watchNamespaces } from '../../src/agent/namespaces.js';
import type { EngineEvent } from '../../src/mesh/sources/engine.js';
import { run, Topology } from '../support/netns.js';
import { scenario } from '../support/scenario.js';
import { cannotUseNamespaces } from '../support/skip.js';
import { waitFor } from '../support/wait.js';

class Bed {
	readonly directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-netns-`));
	containers: unknown[] = [];
	endpoints: Record<string, { IPv4Address: string; MacAddress: string }> = {};
	asked: string[] = [];
	hear: (e: EngineEvent) => void = () => undefined;
	readonly attached: Attachment[] = [];
	readonly watch: Namespaces;
	readonly #mounts = new Set<string>();

	constructor(
		readonly net: Topology,
		directory?: string,
	) {
		this.watch = watchNamespaces(
			{
				directory: directory ?? this.directory,
				log: () => undefined,
				blindMs: 300,
				engine: {
					get: async (path) => {
						this.asked.push(path);
						return path.startsWith('/networks/') ? { Containers: this.endpoints } : this.containers;
					},
					events: (_types, on) => {
						this.hear = (e) => on.onEvent(e);
						setTimeout(() => on.onOpen(), 5);
						return { close: () => undefined };
					},
				},
			},
			{ onAttached: (a) => void this.attached.push(a), onChange: () => undefined },
		);
	}

	/** As Docker does: a file, and then the namespace mounted on it. */
	async appear(name: string, sandbox: string, betweenMs = 0): Promise<void> {
		const file = join(this.directory, sandbox);
		writeFileSync(file, '');
		await new Promise((r) => setTimeout(r, betweenMs));
		run('mount', ['--bind', `/run/netns/${this.net.ns(name)}`, file]);
		this.#mounts.add(file);
	}

	disappear(sandbox: string): void {
		const file = join(this.directory, sandbox);
		run('umount', [file]);
		this.#mounts.delete(file);
		rmSync(file);
	}

	connect(network: string): void {
		this.hear({ type: 'network', action: 'connect', id: network, attributes: { container: 'c1', type: 'overlay' } });
	}

	endpoint(name: string, mac = this.net.mac(name)): { IPv4Address: string; MacAddress: string } {
		return { IPv4Address: `${this.net.address(name).v4}/16`, MacAddress: mac };
	}

	container(name: string, id: string): unknown {
		const { v4 } = this.net.address(name);
		const red = { NetworkID: 'red', IPAddress: v4, MacAddress: this.net.mac(name) };
		return { Id: id, NetworkSettings: { Networks: { red, bridge: { NetworkID: 'bridge', IPAddress: '' } } } };
	}

	async cookie(name: string): Promise<bigint> {
		const ns = await openNetns(`/run/netns/${this.net.ns(name)}`);
		try {
			return await ns.cookie();
		} finally {
			await ns.close();
		}
	}

	async known(): Promise<void> {
		await waitFor('a first look', () => this.watch.current() !== undefined);
	}

	async close(): Promise<void> {
		await this.watch.close();
		for (const m of this.#mounts) run('umount', [m], { mayFail: true });
		rmSync(this.directory, { recursive: true, force: true });
	}
}

async function build(): Promise<{ net: Topology }> {
	const net = await Topology.build({ nodes: 1, tasks: { n1: 2 } });
	await net.udpecho('n1t2', 53);
	return { net };
}

scenario(
	'namespaces',
	cannotUseNamespaces(),
	build,
	({ net }) => net.close(),
	(test) => {
		test('one that appears after its endpoint was told is attached at once', async ({ net }) => {
			const bed = new Bed(net);
			try {
				await bed.known();
				bed.endpoints = { c1: bed.endpoint('n1t1') };
				bed.connect('red');
				await waitFor('the network to be asked for', () => bed.asked.includes('/networks/red'));
				await bed.appear('n1t1', 'aaaaaaaaaaaa', 20);
				const cookie = await bed.cookie('n1t1');
				await waitFor('it to be attached', () => bed.attached.length > 0, 20_000, 1);
				assert.equal(bed.attached[0], { cookie, networks: ['red'] });
				assert.equal([...bed.watch.current()!], [[cookie, ['red']]]);
				bed.disappear('aaaaaaaaaaaa');
				await waitFor('it to be gone', () => bed.watch.current()?.size === 0);
			} finally {
				await bed.close();
			}
		});

		test('one that appears first waits for its endpoint; the list of containers is as good', async ({ net }) => {
			const bed = new Bed(net);
			try {
				await bed.known();
				await bed.appear('n1t1', 'aaaaaaaaaaaa');
				const cookie = await bed.cookie('n1t1');
				await waitFor('it to be seen', () => bed.watch.current()?.has(cookie));
				assert.equal(bed.attached, []);
				bed.containers = [bed.container('n1t1', 'c1')];
				bed.hear({ type: 'container', action: 'start', id: 'c1', attributes: {} });
				await waitFor('it to be attached', () => bed.watch.current()?.get(cookie)?.length === 1);
				bed.containers = [];
				bed.hear({
					type: 'network',
					action: 'disconnect',
					id: 'red',
					attributes: { container: 'c1', type: 'overlay' },
				});
				await waitFor('it to be detached', () => bed.watch.current()?.get(cookie)?.length === 0);
			} finally {
				await bed.close();
			}
		});

		test('an address alone is no proof: another bridge may use the same subnet', async ({ net }) => {
			const bed = new Bed(net);
			try {
				await bed.known();
				bed.endpoints = { c1: bed.endpoint('n1t1', '02:42:0a:0a:0a:0a') };
				bed.connect('red');
				await bed.appear('n1t1', 'aaaaaaaaaaaa');
				const cookie = await bed.cookie('n1t1');
				await waitFor('it to be seen', () => bed.watch.current()?.has(cookie));
				await new Promise((r) => setTimeout(r, 200));
				assert.equal([bed.attached, bed.watch.current()?.get(cookie)], [[], []]);
			} finally {
				await bed.close();
			}
		});

		test('what was there before is found, the engine’s own sandboxes are not looked into', async ({ net }) => {
			const directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-netns-`));
			const first = new Bed(net);
			try {
				first.containers = [first.container('n1t2', 'c2')];
				await first.appear('n1t2', 'bbbbbbbbbbbb');
				await first.appear('n1t1', '1-redredred');
				const cookie = await first.cookie('n1t2');
				const again = new Bed(net, first.directory);
				again.containers = first.containers;
				await waitFor('it to be found', () => again.watch.current()?.get(cookie)?.length === 1);
				assert.is(again.watch.current()?.size, 1);
				await again.close();
			} finally {
				await first.close();
				rmSync(directory, { recursive: true, force: true });
			}
		});

		test('sockets connected to an address that is gone are closed, in its network alone', async ({ net }) => {
			const bed = new Bed(net);
			try {
				bed.containers = [bed.container('n1t1', 'c1')];
				await bed.appear('n1t1', 'aaaaaaaaaaaa');
				const cookie = await bed.cookie('n1t1');
				await waitFor('it to be attached', () => bed.watch.current()?.get(cookie)?.length === 1);
				const { v4 } = net.address('n1t2');
				const plain = net.startUdpload('n1t1', ['-n', 0, '-c', 5, '-i', 20, '-d', 20_000, `${v4}:53`]);
				const mapped = net.startUdpload('n1t1', ['-n', 0, '-c', 5, '-i', 20, '-d', 20_000, `[::ffff:${v4}]:53`]);
				await waitFor(
					'ten sockets',
					() => net.exec('n1t1', ['ss', '-Hun', 'dst', v4]).stdout.trim().split('\n').length === 10,
				);
				assert.equal(await bed.watch.closeSockets('blue', [v4]), { found: 0, left: 0 });
				assert.equal(await bed.watch.closeSockets('red', ['172.18.99.99']), { found: 0, left: 0 });
				assert.equal(await bed.watch.closeSockets('red', ['172.18.99.99', v4]), { found: 10, left: 0 });
				await new Promise((r) => setTimeout(r, 200));
				for (const load of [plain, mapped]) {
					const r = await load.finish();
					assert.ok((r.errors.EDESTADDRREQ ?? 0) > 0 && r.answered > 0, JSON.stringify(r));
				}
			} finally {
				await bed.close();
			}
		});

		test('a directory that is not there is told, and met when it comes', async ({ net }) => {
			const directory = join(tmpdir(), `bl${process.pid}-netns-later`);
			const bed = new Bed(net, directory);
			try {
				await waitFor('the problem', () => bed.watch.problem());
				assert.match(bed.watch.problem()!, /netns-later cannot be watched .*mount it into the agent’s container/);
				assert.is(bed.watch.current(), undefined);
				run('mkdir', [directory]);
				await waitFor('it to be met', () => bed.watch.current() !== undefined);
				assert.is(bed.watch.problem(), undefined);
			} finally {
				await bed.close();
				rmSync(directory, { recursive: true, force: true });
			}
		});

		test('files that stay without a namespace are told: mounts that do not reach the agent', async ({ net }) => {
			const bed = new Bed(net);
			try {
				await bed.appear('n1t1', 'aaaaaaaaaa11');
				bed.containers = [bed.container('n1t1', 'c1')];
				bed.connect('red');
				await waitFor('the first', () => bed.watch.current()?.size === 1);
				writeFileSync(join(bed.directory, 'aaaaaaaaaa12'), '');
				await new Promise((r) => setTimeout(r, 600));
				assert.is(bed.watch.problem(), undefined, 'a file alone is what a killed engine leaves');
				bed.containers = [bed.container('n1t1', 'c1'), bed.container('n1t2', 'c2')];
				bed.connect('red');
				await waitFor('the problem', () => /rslave/.test(bed.watch.problem() ?? ''));
				assert.ok(bed.watch.problem()?.includes(net.address('n1t2').v4), bed.watch.problem());
				assert.is(bed.watch.current()?.size, 1, 'what is seen is served');
				await bed.appear('n1t2', 'aaaaaaaaaa12');
				bed.connect('red');
				await waitFor('its end', () => bed.watch.problem() === undefined && bed.watch.current()?.size === 2);
			} finally {
				await bed.close();
			}
		});

		test('a namespace on Docker’s networks and on ours is on all of them', () => {
			const ours = new Map([
				[1n, [5001]],
				[2n, [5001, 5002]],
			]);
			const dockers = new Map([
				[1n, []],
				[2n, [4097]],
				[3n, [4098]],
			]);
			assert.equal(
				[...mergeAttached(ours, dockers)],
				[
					[1n, [5001]],
					[2n, [5001, 5002, 4097]],
					[3n, [4098]],
				],
			);
		});
	},
);
