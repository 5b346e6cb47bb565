/** The command. One file a verb, read when its verb is called: --help must not wait for a kernel library. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import type { ServiceUpdate } from './cli/change.js';
import type { Client } from './cli/client.js';
import type { AttachOptions, CreateOptions } from './cli/network.js';
import type { Format } from './cli/output.js';
import { version } from './cli/places.js';

interface Global {
	readonly agent?: string;
	readonly tokenFile?: string;
	readonly output: Format;
}

const collect = (value: string, list: string[]) => [...list, value];
function limit(text: string): number {
	const n = Number(text);
	if (!Number.isInteger(n) || n < 1 || n > 100_000) throw new InvalidArgumentError('expected 1 to 100000.');
	return n;
}

function replicas(text: string): number {
	const n = Number(text);
	if (!/^\d+$/.test(text) || n > 100_000) throw new InvalidArgumentError('expected a number of backends.');
	return n;
}

/** Commander asks for a required option before it sees an unknown one, so `--confg` would be told as a missing --config. */
function given(value: string | undefined, flags: string): string {
	if (value !== undefined) return value;
	throw new Error(`required option '${flags}' not specified: add --help to see what there is`);
}

function program(): Command {
	const root = new Command('beeline')
		.description('Routing mesh and overlay network for Docker Swarm and bare metal, in eBPF')
		.version(version(), '-V, --version', 'the version of this installation')
		.configureHelp({ sortSubcommands: false, showGlobalOptions: true })
		.showSuggestionAfterError(true)
		.exitOverride()
		.configureOutput({ writeErr: () => undefined });
	root.addOption(
		new Option('--agent <where>', 'unix:/path or http://host:port (default unix:/run/beeline/beeline.sock)').env(
			'BEELINE_AGENT',
		),
	);
	root.option('--token-file <file>', 'token for changes over TCP (or BEELINE_TOKEN)');
	root.addOption(
		new Option('-o, --output <format>', 'table, or json: the body of the agent’s answer')
			.choices(['table', 'json'])
			.default('table'),
	);

	const client = async (c: Command): Promise<[Client, Format]> => {
		const g = c.optsWithGlobals<Global>();
		const { createClient } = await import('./cli/client.js');
		const o = {
			...(g.agent === undefined ? {} : { agent: g.agent }),
			...(g.tokenFile === undefined ? {} : { tokenFile: g.tokenFile }),
		};
		return [createClient(o), g.output];
	};
	/** `-o` is accepted behind every verb too. */
	const verb = (on: Command, name: string, description: string) => {
		const c = on.command(name).description(description).exitOverride();
		c.addOption(new Option('-o, --output <format>').choices(['table', 'json']).hideHelp());
		c.addOption(new Option('--agent <where>').hideHelp());
		c.addOption(new Option('--token-file <file>').hideHelp());
		return c.configureOutput({ writeErr: () => undefined });
	};
	const read = () => import('./cli/read.js');
	const change = () => import('./cli/change.js');

	verb(
		root,
		'agent',
		'run the agent in the foreground; SIGTERM leaves the datapath attached, SIGHUP reads everything anew',
	)
		.option('--config <file>', 'beeline.yaml')
		.option(
			'--leave-within <duration>',
			'on SIGTERM of a drained node: how long open connections may go on (default 8s)',
		)
		.action(async (o: { config?: string; leaveWithin?: string }) => {
			const config = given(o.config, '--config <file>');
			const { parseDuration } = await import('./mesh/sources/document.js');
			const ms = o.leaveWithin === undefined ? undefined : parseDuration(o.leaveWithin);
			if (o.leaveWithin !== undefined && ms === undefined)
				throw new Error(`--leave-within ${o.leaveWithin}: expected a duration such as 8s`);
			await (await import('./cli/agent.js')).agent({
				config,
				...(ms === undefined ? {} : { leaveWithinMs: ms }),
			});
		});
	verb(root, 'detach', 'remove every program, link, map and pin; needs no agent')
		.option('--config <file>', 'beeline.yaml, for its pinRoot')
		.option(
			'--wait <duration>',
			'how long open connections may go on where the kernel’s own mesh takes over (default 60s)',
		)
		.option('--now', 'do not wait')
		.action(async (o) => (await import('./cli/detach.js')).detach(o));
	verb(root, 'status', 'this node, and what it could not do').action(async (_o, c: Command) =>
		(await read()).status(...(await client(c))),
	);
	verb(root, 'nodes', 'nodes of the mesh').action(async (_o, c: Command) => (await read()).nodes(...(await client(c))));
	verb(root, 'services', 'services and their published ports').action(async (_o, c: Command) =>
		(await read()).services(...(await client(c))),
	);
	verb(root, 'backends', 'where flows are sent')
		.option('--service <name>', 'of one service')
		.action(async (o: { service?: string }, c: Command) => (await read()).backends(...(await client(c)), o.service));
	verb(root, 'flows', 'living flows of this node’s backends')
		.option('--limit <n>', 'rows at most', limit, 1000)
		.action(async (o: { limit: number }, c: Command) => (await read()).flows(...(await client(c)), o.limit));
	verb(root, 'entries', 'the maps as they are')
		.option('--limit <n>', 'rows of each map at most', limit, 1000)
		.action(async (o: { limit: number }, c: Command) => (await read()).entries(...(await client(c)), o.limit));
	verb(root, 'monitor', 'packets’ verdicts, live')
		.option('--service <name>', 'of one service')
		.option('--verdict <name>', 'such as drop_no_backend')
		.action(async (o: { service?: string; verdict?: string }, c: Command) =>
			(await read()).monitor(...(await client(c)), o.service, o.verdict),
		);

	const config = verb(root, 'config', 'read or change the configuration of a running agent');
	verb(config, 'get', 'one key such as datapath.staleAfter, or everything')
		.argument('[key]')
		.action(async (key: string | undefined, _o, c: Command) => {
			const [api, format] = await client(c);
			await (await read()).configGet(api, key, format);
		});
	verb(config, 'set', 'change a key that may change while the agent runs')
		.argument('<key>')
		.argument('<value>')
		.action(async (key: string, value: string, _o, c: Command) =>
			(await change()).configSet((await client(c))[0], key, value),
		);

	for (const v of ['drain', 'undrain'] as const) {
		verb(root, v, v === 'drain' ? 'no new flows to a backend, or to all of a node' : 'new flows again')
			.argument('<backend|node>')
			.action(async (name: string, _o, c: Command) => (await change()).drain((await client(c))[0], name, v));
	}

	const node = verb(root, 'node', 'nodes in etcd, or in this agent’s mesh file');
	verb(node, 'ls', 'nodes of the mesh').action(async (_o, c: Command) => (await read()).nodes(...(await client(c))));
	verb(node, 'add', 'add a node; with --config this one, straight into etcd, before its agent runs')
		.option('--config <file>', 'beeline.yaml: where etcd is, and the default of NAME and ADDRESS')
		.argument('[name]')
		.argument('[address]')
		.action(async (name: string | undefined, address: string | undefined, o: { config?: string }, c: Command) => {
			if (o.config !== undefined)
				return await (await import('./cli/node-etcd.js')).nodeAddHere(o.config, name, address);
			if (name === undefined || address === undefined)
				throw new Error('node add: give NAME ADDRESS, or --config FILE to add this node');
			await (await change()).nodeAdd((await client(c))[0], name, address);
		});
	verb(node, 'rm', 'remove nodes')
		.argument('<name...>')
		.action(async (names: string[], _o, c: Command) => (await change()).nodeRemove((await client(c))[0], names));

	const service = verb(root, 'service', 'services in etcd, or in this agent’s mesh file');
	verb(service, 'ls', 'services').action(async (_o, c: Command) => (await read()).services(...(await client(c))));
	verb(service, 'inspect', 'one service, as JSON')
		.argument('<name>')
		.action(async (name: string, _o, c: Command) => (await read()).service((await client(c))[0], name));
	verb(service, 'create', 'create a service')
		.option(
			'-p, --publish <port>',
			'published=8080,target=80[,protocol=udp], or 8080:80[/udp]; may be repeated',
			collect,
			[],
		)
		.option('--network <network>', 'NAME, or name=NAME,vip=ADDRESS; may be repeated', collect, [])
		.addOption(new Option('--endpoint-mode <mode>', 'its name is a VIP, or all tasks').choices(['vip', 'dnsrr']))
		.option('--backend <backend>', 'NODE[=ADDRESS[,ADDRESS]][*WEIGHT]; may be repeated', collect, [])
		.option('--option <option>', 'NAME=VALUE such as returnPath=tunnel; may be repeated', collect, [])
		.option('--name <name>', 'the name, as Docker writes it')
		.argument('[name]')
		.action(
			async (
				argument: string | undefined,
				o: {
					publish: string[];
					backend: string[];
					option: string[];
					network: string[];
					endpointMode?: string;
					name?: string;
				},
				c: Command,
			) => {
				const name = argument ?? o.name;
				if (name === undefined) throw new Error('service create: a name is missing: give it last, or with --name');
				await (await change()).serviceCreate((await client(c))[0], name, o);
			},
		);
	verb(service, 'update', 'change options, published ports or backends of a service')
		.option('--option <option>', 'NAME=VALUE such as returnPath=tunnel; may be repeated', collect, [])
		.option('--publish-add <port>', 'publish a port, or give one another target; may be repeated', collect, [])
		.option('--publish-rm <port>', 'by its target port, or written as for --publish; may be repeated', collect, [])
		.option('--backend-add <backend>', 'NODE[=ADDRESS[,ADDRESS]][*WEIGHT]; may be repeated', collect, [])
		.option('--backend-rm <backend>', 'NODE[=ADDRESS]; may be repeated', collect, [])
		.option('--replicas <n>', 'how many backends take new flows', replicas)
		.argument('<name>')
		.action(async (name: string, o: ServiceUpdate, c: Command) =>
			(await change()).serviceUpdate((await client(c))[0], name, o),
		);
	verb(service, 'scale', 'how many backends of a service take new flows; the last ones are drained')
		.argument('<service=backends...>')
		.action(async (list: string[], _o, c: Command) => (await change()).serviceScale((await client(c))[0], list));
	verb(service, 'rm', 'remove services')
		.argument('<name...>')
		.action(async (names: string[], _o, c: Command) => (await change()).serviceRemove((await client(c))[0], names));

	const overlay = () => import('./cli/network.js');
	const network = verb(root, 'network', 'overlay networks');
	const networkLs = async (_o: unknown, c: Command) => (await overlay()).networks(...(await client(c)));
	verb(network, 'ls', 'overlay networks').action(networkLs);
	verb(root, 'networks', 'overlay networks').action(networkLs);
	verb(network, 'create', 'create an overlay network')
		.option('-d, --driver <driver>', 'overlay', 'overlay')
		.option('--subnet <prefix>', 'default: the first free /24 of 10.0.0.0/8; once for each family', collect, [])
		.option('--gateway <address>', 'default: the first of the subnet')
		.option('--ip-range <prefix>', 'part of the subnet that endpoints get addresses of')
		.option('--attachable', 'namespaces may be attached by hand')
		.option('--internal', 'no way out')
		.option('--ingress', 'the ingress network')
		.option('--ipv6', 'IPv6 too')
		.option('--opt <option>', 'com.docker.network.driver.mtu=N, …overlay.vxlanid_list=N, encrypted', collect, [])
		.option('--label <label>', 'KEY=VALUE; may be repeated', collect, [])
		.argument('<name>')
		.action(async (name: string, o: CreateOptions, c: Command) =>
			(await overlay()).networkCreate((await client(c))[0], name, o),
		);
	verb(network, 'rm', 'remove networks that nobody uses')
		.argument('<name...>')
		.action(async (names: string[], _o, c: Command) => (await overlay()).networkRemove((await client(c))[0], names));
	verb(network, 'inspect', 'networks, as JSON in Docker’s shape')
		.argument('<name...>')
		.action(async (names: string[], _o, c: Command) => (await overlay()).networkInspect((await client(c))[0], names));

	const endpoint = verb(root, 'endpoint', 'endpoints of this node on overlay networks');
	const endpointLs = async (_o: unknown, c: Command) => (await overlay()).endpoints(...(await client(c)));
	verb(endpoint, 'ls', 'endpoints of this node').action(endpointLs);
	verb(root, 'endpoints', 'endpoints of this node').action(endpointLs);
	verb(endpoint, 'attach', 'give a namespace an interface on a network')
		.option('--network <name>', 'the network: attachable, or with --service one of that service')
		.option('--netns <path>', 'network namespace: a path, or a name of ip netns')
		.option('--pid <pid>', 'of a process in the namespace')
		.option('--container <id>', 'of this node’s engine')
		.option('--service <name>', 'the service whose task it is')
		.option('--name <name>', 'its name on the network')
		.option('--ip <address>', 'of the part of the subnet that this node owns')
		.option('--alias <name>', 'another name; may be repeated', collect, [])
		.action(async (o: Omit<AttachOptions, 'network'> & { network?: string }, c: Command) => {
			const network = given(o.network, '--network <name>');
			const [api, format] = await client(c);
			await (await overlay()).endpointAttach(api, { ...o, network }, format);
		});
	verb(endpoint, 'detach', 'take the interface away')
		.argument('<id>')
		.action(async (id: string, _o, c: Command) => (await overlay()).endpointDetach((await client(c))[0], id));

	verb(root, 'doctor', 'what this node can do, and what to do about what it cannot; needs no agent')
		.option('--config <file>', 'beeline.yaml')
		.action(async (o: { config?: string }, c: Command) =>
			(await import('./cli/doctor.js')).doctor({ ...o, format: c.optsWithGlobals<Global>().output }),
		);
	verb(root, 'demo', 'three nodes, real servers, real traffic, on this machine')
		.allowUnknownOption()
		.argument('[args...]', 'overlay: the walk through overlay networks instead')
		.action(async (args: string[]) => {
			process.exitCode = await (await import('./cli/demo.js')).demo(args);
		});
	verb(root, 'version', 'version of this command').action(async () => {
		const { version } = await import('./cli/places.js');
		process.stdout.write(`${version()}\n`);
	});
	return root;
}

/** One sentence, whatever was thrown. */
function oneSentence(e: unknown): string {
	const text = e instanceof Error ? e.message : String(e);
	return text.split('\n')[0]!.replace(/^error: /, '');
}

/** What is wrong with the command's words; commander proposes a similar one in a second line. */
function misused(e: CommanderError): string {
	if (e.code === 'commander.help') {
		const words = process.argv.slice(2);
		const asked = words.includes('help') ? words[words.indexOf('help') + 1] : undefined;
		return `${asked === undefined ? 'a verb is missing' : `unknown command '${asked}'`}: add --help to see what there is`;
	}
	const text = e.message
		.replace(/^error: /, '')
		.replace(/\s*\n\s*/g, ' ')
		.replace(/\.$/, '');
	return e.code === 'commander.invalidArgument' ? text : `${text}: add --help to see what there is`;
}

async function main(): Promise<number> {
	// `beeline nodes | head -1` closes the pipe: that is no failure of ours.
	process.stdout.on('error', (e: NodeJS.ErrnoException) => {
		if (e.code === 'EPIPE') process.exit(0);
		process.stderr.write(`write to standard output: ${e.message}\n`);
		process.exit(1);
	});
	try {
		const root = program();
		if (process.argv.length <= 2) {
			process.stderr.write('a verb is missing: beeline --help lists them\n');
			return 1;
		}
		await root.parseAsync();
		// A verb whose child has said its sentence sets it.
		return Number(process.exitCode ?? 0);
	} catch (e) {
		if (e instanceof CommanderError) {
			if (e.exitCode === 0) return 0;
			process.stderr.write(`${misused(e)}\n`);
			return 1;
		}
		process.stderr.write(`${oneSentence(e)}\n`);
		const detail = (e as { detail?: unknown }).detail;
		if (process.env.BEELINE_DEBUG && typeof detail === 'string') process.stderr.write(`${detail}\n`);
		return 1;
	}
}

process.exitCode = await main();
// Children and watchers that a failed start left must not hold a command that has said its sentence.
if (process.exitCode !== 0) process.exit();
