/*
 * Who speaks on the stream between agents, on a swarm of three engines (./bed; node1 is the manager) with certificates that
 * Swarm itself made: of this swarm, of another one, expired, a worker's where a manager's should be; then rotated, and locked.
 */
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { scenario } from '../support/scenario.js';
import { cannotLoadBpf, cannotUseNamespaces, hasTool } from '../support/skip.js';
import { waitFor } from '../support/wait.js';
import { cannotUseDocker, Swarm, sweepBeds } from './swarm.js';

const FILES = ['swarm-root-ca.crt', 'swarm-node.crt', 'swarm-node.key'];

/** Swarm's certificates of a node. */
const certificates = (swarm: Swarm, node: number): string =>
	join(swarm.directory, `node${node}/lib/swarm/certificates`);
const copied = (swarm: Swarm, from: string, name: string): string => {
	const to = join(swarm.directory, name);
	mkdirSync(to, { recursive: true });
	for (const f of FILES) cpSync(join(from, f), join(to, f));
	return to;
};
const leaf = (swarm: Swarm, node: number): X509Certificate =>
	new X509Certificate(readFileSync(join(certificates(swarm, node), FILES[1])));
const idOf = (swarm: Swarm, node: number): string => swarm.docker(node, 'info', '--format', '{{.Swarm.NodeID}}');

/** What a node's agent said since it was started, of what concerns the stream. */
const said = (swarm: Swarm, node: number): string[] =>
	(swarm.agents.get(node)?.output ?? '')
		.split('\n')
		.filter((l) => /is refused|is not followed|cannot speak to each other|cannot be served/.test(l));

async function build(): Promise<{ swarm: Swarm }> {
	sweepBeds();
	const swarm = Swarm.up(3);
	try {
		// The certificates of another swarm: node3 is one by itself for a moment, and its manager.
		const id = idOf(swarm, 3);
		const token = swarm.docker(1, 'swarm', 'join-token', '-q', 'worker');
		const at = ['--advertise-addr', swarm.address(3), '--listen-addr', `${swarm.address(3)}:2377`];
		swarm.docker(3, 'swarm', 'leave');
		swarm.docker(3, 'swarm', 'init', ...at);
		copied(swarm, certificates(swarm, 3), 'other');
		swarm.docker(3, 'swarm', 'leave', '--force');
		swarm.docker(3, 'swarm', 'join', '--token', token, ...at, `${swarm.address(1)}:2377`);
		swarm.docker(1, 'node', 'rm', '--force', id);
		await swarm.startAll();
		const create = ['service', 'create', '-d', '--no-resolve-image', '--name', 'web', '--mode', 'global'];
		swarm.docker(1, ...create, '--publish', '8080:80', '--stop-grace-period', '1s', 'beeline-test:latest');
		await swarm.serving('web', 3);
		return { swarm };
	} catch (e) {
		swarm.close();
		throw e;
	}
}

scenario(
	'certificates',
	cannotUseNamespaces() ??
		cannotLoadBpf() ??
		cannotUseDocker() ??
		(hasTool('openssl') ? undefined : 'needs openssl (install the package openssl)'),
	build,
	({ swarm }) => swarm.close(),
	(test) => {
		/** What a node knows of the service, changed on the manager with each call of `change`. */
		const knows = async (swarm: Swarm, node: number) =>
			(await swarm.services(node)).find((s) => s.name === 'web')?.options.drainTimeout;
		let changes = 10;
		const change = (swarm: Swarm): string => {
			const to = `${++changes}s`;
			swarm.docker(1, 'service', 'update', '-d', '--label-add', `beeline.drain-timeout=${to}`, 'web');
			return to;
		};
		const heard = (swarm: Swarm, node: number, what: string, limitMs = 20_000) =>
			waitFor(
				`node${node} to hear of ${what}`,
				async () => String(await knows(swarm, node)) === what,
				limitMs,
				50,
			).catch(async (e: Error) => {
				throw new Error(
					`${e.message}; it knows ${await knows(swarm, node)}\n${swarm.output(node)}\n${swarm.output(1)}`,
				);
			});
		const serves = async (swarm: Swarm, node: number) => {
			const r = await swarm.load(['-n', 30, '-c', 5, '-t', 3000, ...swarm.targets(8080, [node])]);
			assert.equal([r.ok, r.failures], [30, {}], JSON.stringify(r));
			assert.is(Object.keys(r.backends).length, 3, JSON.stringify(r.backends));
		};
		const alone = (swarm: Swarm, node: number) =>
			waitFor(
				`node${node} to follow nobody`,
				async () =>
					(await swarm.status(node)).warnings.some((w) => w.includes('the last known membership stays')) &&
					said(swarm, node).length > 0,
				15_000,
				50,
			).catch((e: Error) => {
				throw new Error(`${e.message}\n${swarm.output(node)}\n${swarm.output(1)}`);
			});
		/**
		 * Changes what nobody who is refused may hear of, and holds nodes to what they knew, over several attempts to connect.
		 * @param by what `at` have said once each by then
		 */
		const stay = async (swarm: Swarm, nodes: readonly number[], by: RegExp, at: readonly number[]) => {
			const before = await Promise.all(nodes.map((n) => knows(swarm, n)));
			const what = change(swarm);
			await heard(swarm, 1, what);
			// The pauses between attempts are 0.2, 0.5, 1, 2 s: the fourth is over by then.
			await sleep(5000);
			assert.equal(await Promise.all(nodes.map((n) => knows(swarm, n))), before, 'they know what they were not told');
			for (const n of at)
				assert.is(said(swarm, n).filter((l) => by.test(l)).length, 1, `node${n}:\n${said(swarm, n).join('\n')}`);
			for (const n of nodes) await serves(swarm, n);
			return what;
		};

		test('steady: what the manager lists is heard by both workers', async ({ swarm }) => {
			const what = change(swarm);
			for (const n of [1, 2, 3]) await heard(swarm, n, what);
		});

		test('rotation, to a CA that is named and certificates that last an hour, loses no stream', async ({ swarm }) => {
			const made = join(swarm.directory, 'ca');
			mkdirSync(made);
			execFileSync('openssl', ['ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', `${made}/ca.key`]);
			const ca = ['req', '-x509', '-new', '-key', `${made}/ca.key`, '-subj', '/CN=swarm-ca', '-days', '3650'];
			execFileSync('openssl', [...ca, '-out', `${made}/ca.crt`], { stdio: 'pipe' });
			swarm.docker(1, 'swarm', 'update', '--cert-expiry', '1h');
			const told = [1, 2, 3].map((n) => said(swarm, n));
			const before = [1, 2, 3].map((n) => readFileSync(join(certificates(swarm, n), 'swarm-node.crt'), 'utf8'));
			const ps = swarm.background(1, [
				...['docker', 'swarm', 'ca', '--rotate', '--quiet'],
				...['--ca-cert', `${made}/ca.crt`, '--ca-key', `${made}/ca.key`],
			]);
			let done = false;
			void ps.then(() => {
				done = true;
			});
			for (let i = 0; i < 30 && !done; i++) {
				const what = change(swarm);
				for (const n of [2, 3]) await heard(swarm, n, what, 5000);
				await sleep(500);
			}
			const r = await ps;
			assert.is(r.code, 0, r.stderr + r.stdout);
			const root = readFileSync(`${made}/ca.crt`, 'utf8').trim();
			for (const n of [1, 2, 3])
				await waitFor(
					`certificates of node${n} under the new CA`,
					() => {
						const read = (f: string) => readFileSync(join(certificates(swarm, n), f), 'utf8');
						return read('swarm-root-ca.crt').trim() === root && read('swarm-node.crt') !== before[n - 1];
					},
					40_000,
					200,
				);
			for (const n of [1, 2, 3]) {
				const { validTo } = leaf(swarm, n);
				assert.ok(Date.parse(validTo) - Date.now() < 3_700_000, `node${n}: ${validTo}`);
			}
			const what = change(swarm);
			for (const n of [2, 3]) await heard(swarm, n, what, 5000);
			for (const n of [1, 2, 3]) assert.equal(said(swarm, n), told[n - 1], `node${n}`);
			await serves(swarm, 3);
		});

		test('a worker that starts after the rotation is served with the new certificates', async ({ swarm }) => {
			await swarm.stopAgent(3);
			await swarm.start(3);
			// A manager’s agent looks for new certificates each 10 s.
			await heard(swarm, 3, change(swarm), 25_000);
		});

		test('a worker with the certificates of another swarm is refused, told of once, and keeps what it knew', async ({
			swarm,
		}) => {
			const mine = copied(swarm, join(swarm.directory, 'other'), 'node3-certificates');
			await swarm.stopAgent(3);
			await swarm.start(3, { membership: { source: 'docker', certificates: mine } });
			await alone(swarm, 3);
			const what = await stay(swarm, [3], /manager .* is not followed/, [3]);
			await heard(swarm, 2, what);
		});

		test('with an expired one of its own swarm too, and both ends say so', async ({ swarm }) => {
			const at = join(swarm.directory, 'node3-certificates');
			const made = join(swarm.directory, 'ca');
			const of = leaf(swarm, 3).subject;
			const part = (name: string) => new RegExp(`^${name}=(.+)$`, 'm').exec(of)?.[1];
			assert.is(part('CN'), idOf(swarm, 3));
			const name = `/O=${part('O')}/OU=${part('OU')}/CN=${part('CN')}`;
			const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: made, stdio: 'pipe' });
			openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', 'node.key');
			openssl('req', '-new', '-key', 'node.key', '-subj', name, '-out', 'node.csr');
			writeFileSync(join(made, 'ext'), 'keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n');
			const sign = ['x509', '-req', '-in', 'node.csr', '-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial'];
			openssl(...sign, '-extfile', 'ext', '-days', '0', '-out', 'node.crt');
			// Of a second that is over.
			await sleep(1500);
			const noted = said(swarm, 1).length;
			cpSync(join(certificates(swarm, 3), FILES[0]), join(at, FILES[0]));
			cpSync(join(made, 'node.crt'), join(at, FILES[1]));
			cpSync(join(made, 'node.key'), join(at, FILES[2]));
			await waitFor(
				'the manager’s agent to refuse it',
				() =>
					said(swarm, 1)
						.slice(noted)
						.some((l) => /expired/i.test(l)),
				25_000,
			);
			await stay(swarm, [3], /an agent at .* is refused: .*expired/i, [1]);
			assert.is(said(swarm, 3).filter((l) => /expired/i.test(l)).length, 1, said(swarm, 3).join('\n'));
		});

		test('with its own again it is served without a restart', async ({ swarm }) => {
			copied(swarm, certificates(swarm, 3), 'node3-certificates');
			// The longest pause between two attempts.
			await heard(swarm, 3, change(swarm), 25_000);
		});

		test('an agent that serves with a worker’s certificate is followed by nobody', async ({ swarm }) => {
			await swarm.stopAgent(1);
			await swarm.start(1, {
				membership: { source: 'docker', certificates: copied(swarm, certificates(swarm, 2), 'posed') },
			});
			for (const n of [2, 3]) await alone(swarm, n);
			await stay(swarm, [2, 3], /a worker that poses as manager/, [2, 3]);
			await swarm.stopAgent(1);
			for (const n of [2, 3])
				await waitFor(`node${n} to find nobody`, () => said(swarm, n).some((l) => /ECONNREFUSED/.test(l)), 25_000);
			for (const n of [2, 3]) await serves(swarm, n);
			await swarm.start(1);
			const what = change(swarm);
			for (const n of [2, 3]) await heard(swarm, n, what, 25_000);
		});

		test('autolock: streams that stand go on; what is started anew says what to do, and the token does it', async ({
			swarm,
		}) => {
			swarm.docker(1, 'swarm', 'update', '--autolock=true');
			await waitFor(
				'the manager’s key to be encrypted',
				() => /ENCRYPTED/.test(readFileSync(join(certificates(swarm, 1), FILES[2]), 'utf8')),
				20_000,
			);
			await waitFor(
				'the manager’s agent to say so',
				async () =>
					(await swarm.status(1)).warnings.some((w) =>
						/autolock\): set membership\.tokenFile to the same secret/.test(w),
					),
				25_000,
			);
			const what = change(swarm);
			for (const n of [2, 3]) await heard(swarm, n, what, 5000);
			assert.is(said(swarm, 1).filter((l) => /autolock/.test(l)).length, 1, said(swarm, 1).join('\n'));
			await swarm.stopAgent(1);
			await swarm.start(1);
			for (const n of [2, 3]) await alone(swarm, n);
			await stay(swarm, [2, 3], /autolock/, [1]);
			const tokenFile = join(swarm.directory, 'token');
			writeFileSync(tokenFile, 'c'.repeat(40));
			for (const n of [1, 2, 3]) {
				await swarm.stopAgent(n);
				swarm.launch(n, { membership: { source: 'docker', tokenFile } });
			}
			for (const n of [1, 2, 3]) await swarm.ready(n);
			const last = change(swarm);
			for (const n of [2, 3]) await heard(swarm, n, last, 25_000);
			await serves(swarm, 3);
		});
	},
);
