/** beeline agent: runs in the foreground until a signal ends it. */
import { startAgent } from '../agent/agent.js';
import { type Config, isLoopback, loadConfig } from '../config.js';
import { BeelineError, codeOf, sentence } from '../errors.js';
import { createApp } from '../http/app.js';
import { tokenFile } from '../http/guard.js';
import { listen, trySocket, tryTcp } from '../http/listen.js';
import { VERDICTS } from '../loader/layout.gen.js';
import { createPluginApp } from '../plugin/app.js';
import { createLog } from './log.js';
import { sources, version } from './places.js';

/** SIGTERM of a drained node: within the grace of Docker's and systemd's stop. */
const LEAVE_WITHIN_MS = 8_000;

export function needRoot(verb: string): void {
	if (process.geteuid?.() !== 0) {
		throw new BeelineError(
			'NO_ROOT',
			`beeline ${verb} needs root (CAP_BPF, CAP_NET_ADMIN): run it with sudo or as a system service`,
		);
	}
}

/**
 * What would stop the listener, before anything of the node is touched.
 * @returns what only a change over TCP will notice
 */
async function tryListener(config: Config, tcp: readonly string[]): Promise<string | undefined> {
	const { tokenFile: file, socket, listen: addresses } = config.http;
	const token = tokenFile(file).current();
	if (token !== undefined && 'error' in token && addresses.some((l) => !isLoopback(l.host)))
		throw new BeelineError('NO_TOKEN', `listening beyond loopback needs a token: ${token.error}`);
	try {
		await tryTcp(tcp);
		await trySocket(socket);
		if (config.dockerPlugin !== undefined) await trySocket(config.dockerPlugin.socket, 'dockerPlugin.socket');
	} catch (e) {
		throw new BeelineError('LISTEN_FAILED', sentence(e), { cause: e });
	}
	return token !== undefined && 'error' in token ? token.error : undefined;
}

/** @returns when the agent has ended. @throws BeelineError where it cannot start */
export async function agent(o: { readonly config: string; readonly leaveWithinMs?: number }): Promise<void> {
	const config = loadConfig(o.config);
	needRoot('agent');
	const log = createLog(config.log.level, config.node.name);
	const tcp = config.http.listen.map((l) => `${l.host.includes(':') ? `[${l.host}]` : l.host}:${l.port}`);
	const noToken = await tryListener(config, tcp);
	if (noToken !== undefined) log.warn(`${noToken}: until then nothing can be changed over TCP`);
	const stopping = new AbortController();
	let signals = 0;
	const onSignal = (name: string) => {
		signals++;
		if (signals > 1) {
			log.warn(`${name} again: leaving at once; traffic goes on`);
			process.exit(0);
		}
		log.info(`${name}: leaving`);
		stopping.abort();
	};
	process.on('SIGTERM', onSignal);
	process.on('SIGINT', onSignal);

	const ver = version();
	let a: Awaited<ReturnType<typeof startAgent>>;
	try {
		a = await startAgent({ config, version: ver, log, stop: stopping.signal, ...sources() });
	} catch (e) {
		if (codeOf(e) === 'STOPPED') return;
		throw e;
	}
	const app = createApp({
		api: a.api,
		tokens: tokenFile(config.http.tokenFile),
		metrics: () => a.metrics.scrape(),
		version: ver,
		verdicts: VERDICTS,
		onError: (err, path) => log.error({ err, path }, 'a request failed'),
	});
	let server: Awaited<ReturnType<typeof listen>>;
	try {
		server = await listen(app, config.http.socket, tcp);
	} catch (e) {
		await a.close();
		throw new BeelineError('LISTEN_FAILED', sentence(e), { cause: e });
	}
	log.info({ addresses: server.addresses }, 'listening');
	const { plugin } = a;
	let docker: Awaited<ReturnType<typeof listen>> | undefined;
	if (plugin !== undefined && config.dockerPlugin !== undefined) {
		const calls = createPluginApp({
			driver: plugin,
			log: (call, request, answer, ms) =>
				log[`${'Err' in answer || 'Error' in answer ? 'warn' : 'debug'}`](
					{ call, request, answer, ms: Math.round(ms) },
					'Docker',
				),
		});
		try {
			docker = await listen(calls, config.dockerPlugin.socket, [], { key: 'dockerPlugin.socket', host: 'localhost' });
		} catch (e) {
			await server.close();
			await a.close();
			throw new BeelineError('LISTEN_FAILED', sentence(e), { cause: e });
		}
		log.info({ addresses: docker.addresses }, 'serving networks to Docker');
	}
	process.on('SIGHUP', () => a.reload('SIGHUP'));

	if (!stopping.signal.aborted) {
		// The listener keeps the process alive; nothing else has to.
		await new Promise<void>((resolve) => stopping.signal.addEventListener('abort', () => resolve(), { once: true }));
	}
	await docker?.close();
	await server.close();
	if (a.leaving) {
		log.info('this node is drained or removed: the datapath is taken down');
		const left = await a.detach(o.leaveWithinMs ?? LEAVE_WITHIN_MS);
		for (const l of left) log.error(l);
	} else {
		await a.close();
		log.info('the datapath stays attached: traffic goes on');
	}
}
