/** beeline.yaml: what is true of this node alone (DESIGN 7.2). */
import { hostname } from 'node:os';
import { dirname, isAbsolute, resolve } from 'node:path';
import { isMap, isScalar } from 'yaml';
import { z } from 'zod';
import {
	address4,
	bool,
	check,
	duration,
	integer,
	keysOf,
	name,
	oneOf,
	type Problem,
	parseAddress,
	parseSource,
	port,
	prefix,
	readText,
	refuse,
	type Source,
	size,
	text,
	value,
	writeAtomically,
} from './mesh/sources/document.js';

/** `127.0.0.1:7980`, `[::1]:7980`, `localhost:7980` */
export interface Listen {
	readonly host: string;
	readonly port: number;
}

function parseListen(x: unknown): Listen | undefined {
	const m = typeof x === 'string' ? /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(x) : null;
	if (!m || Number(m[3]) < 1 || Number(m[3]) > 65535) return undefined;
	if (m[2] === 'localhost') return { host: 'localhost', port: Number(m[3]) };
	const host = m[1] === undefined ? parseAddress(m[2], 4) : parseAddress(m[1]);
	return host === undefined ? undefined : { host, port: Number(m[3]) };
}

/** `http://10.0.0.1:2379` without anything behind the port. */
function parseEndpoint(x: unknown): string | undefined {
	if (typeof x !== 'string') return undefined;
	let url: URL;
	try {
		url = new URL(x);
	} catch {
		return undefined;
	}
	if (
		!/^https?:$/.test(url.protocol) ||
		url.hostname === '' ||
		url.username !== '' ||
		url.search !== '' ||
		url.hash !== ''
	)
		return undefined;
	return url.pathname === '/' ? url.origin : undefined;
}

/** Whether only processes of this machine can reach it. */
export function isLoopback(host: string): boolean {
	return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

const path = value('an absolute or relative path', (x) =>
	typeof x === 'string' && x.length > 0 && !x.includes('\0') ? x : undefined,
);
const powerOfTwo = (min: number, max: number) =>
	value(`a power of two from ${min} to ${max}`, (x) =>
		typeof x === 'number' && Number.isInteger(x) && x >= min && x <= max && (x & (x - 1)) === 0 ? x : undefined,
	);

export const configSchema = z.strictObject({
	node: z
		.strictObject({
			name: name.optional(),
			address: address4.optional(),
		})
		.prefault({}),
	uplinks: z
		.array(
			value('the name of an interface', (x) => (typeof x === 'string' && /^[^\s/]{1,15}$/.test(x) ? x : undefined)),
		)
		.min(1, 'at least one interface, or no such key')
		.optional(),
	membership: z
		.strictObject({
			source: oneOf('file', 'docker', 'etcd').default('file'),
			file: path.default('mesh.yaml'),
			/** docker: a shared secret between agents, in place of Swarm's certificates. */
			tokenFile: path.optional(),
			/** docker: where Swarm's certificates are; default `swarm/certificates` under Docker's data root. */
			certificates: path.optional(),
			/** docker: TCP port of managers' agents; default 7981. */
			port: port.optional(),
			/** etcd: where it listens for clients. */
			endpoints: z
				.array(value('an address of etcd such as http://10.0.0.1:2379 or https://etcd1:2379', parseEndpoint))
				.min(1, 'at least one address of etcd')
				.optional(),
			/** etcd: what the keys of this mesh begin with; default /beeline. */
			prefix: value('a path such as /beeline, without / at its end', (x) =>
				typeof x === 'string' && /^(\/[A-Za-z0-9_.-]+)+$/.test(x) ? x : undefined,
			).optional(),
			/** etcd: PEM files of TLS: who may be etcd; who this node is. */
			ca: path.optional(),
			cert: path.optional(),
			key: path.optional(),
			/** etcd: where its authentication is on. */
			user: text('the name of a user').optional(),
			passwordFile: path.optional(),
		})
		.prefault({}),
	http: z
		.strictObject({
			listen: z
				.array(value('an address and a port such as 127.0.0.1:7980 or [::1]:7980', parseListen))
				.default([{ host: '127.0.0.1', port: 7980 }]),
			socket: path.default('/run/beeline/beeline.sock'),
			tokenFile: path.optional(),
		})
		.prefault({}),
	datapath: z
		.strictObject({
			xdp: oneOf('auto', 'native', 'generic').default('auto'),
			vxlanPort: port.default(4789),
			vni: integer(1, 16777215, 'a VNI').default(12509184),
			returnPath: oneOf('auto', 'dsr', 'tunnel').default('auto'),
			staleAfter: duration.default(60_000),
			acceptFirewallBypass: bool.default(false),
			/** Replies that can be turned back at once on this node (`revnat`): about 200 bytes each. */
			maxFlows: size(1024, 16777216).default(524288),
			/** Flows whose slot is in transition (`conntrack`). */
			maxTracked: size(1024, 16777216).default(262144),
			/** Handshakes in progress on slots in transition (`conntrack_half_open`). */
			maxHalfOpen: powerOfTwo(1024, 16777216).default(65536),
			/** Encrypted networks: the cluster's secret, the same on every node. */
			secretFile: path.optional(),
			/** UDP port of agents' messages about keys. */
			keyPort: port.default(7982),
			/** Between new keys of two nodes. */
			keyInterval: duration.default(12 * 3600_000),
		})
		.prefault({}),
	/** The way out of overlay networks on this node. */
	gatewayBridge: z
		.strictObject({
			subnet: prefix.optional(),
			enableIcc: bool.default(false),
			enableIpMasquerade: bool.default(true),
		})
		.prefault({}),
	/** Networks of Docker's (`docker network create -d beeline`); absent: none. */
	dockerPlugin: z
		.strictObject({
			socket: value('an absolute path that ends in .sock', (x) =>
				typeof x === 'string' && isAbsolute(x) && x.endsWith('.sock') ? x : undefined,
			).default('/run/docker/plugins/beeline.sock'),
			stateFile: path.default('/var/lib/beeline/docker-plugin.json'),
		})
		.optional(),
	// Not the root of the file system itself: it is everybody's, and cannot be removed.
	pinRoot: value('an absolute path on a BPF file system', (x) =>
		typeof x === 'string' && isAbsolute(x) && !['/', '/sys/fs/bpf'].includes(resolve(x)) ? x : undefined,
	).default('/sys/fs/bpf/beeline'),
	log: z.strictObject({ level: oneOf('trace', 'debug', 'info', 'warn', 'error').default('info') }).prefault({}),
});

/** beeline.yaml with all defaults; durations in milliseconds, paths absolute. */
export interface Config {
	/** Where it was read from; undefined: nothing but defaults. */
	readonly file?: string;
	readonly node: { readonly name: string; readonly address?: string };
	/** undefined: chosen as DESIGN 5.1 says. */
	readonly uplinks?: readonly string[];
	readonly membership: {
		readonly source: 'file' | 'docker' | 'etcd';
		readonly file: string;
		readonly tokenFile?: string;
		readonly certificates?: string;
		readonly port?: number;
		readonly endpoints?: readonly string[];
		readonly prefix?: string;
		readonly ca?: string;
		readonly cert?: string;
		readonly key?: string;
		readonly user?: string;
		readonly passwordFile?: string;
	};
	readonly http: { readonly listen: readonly Listen[]; readonly socket: string; readonly tokenFile?: string };
	readonly datapath: {
		readonly xdp: 'auto' | 'native' | 'generic';
		readonly vxlanPort: number;
		readonly vni: number;
		readonly returnPath: 'auto' | 'dsr' | 'tunnel';
		readonly staleAfter: number;
		readonly acceptFirewallBypass: boolean;
		readonly maxFlows: number;
		readonly maxTracked: number;
		readonly maxHalfOpen: number;
		readonly secretFile?: string;
		readonly keyPort: number;
		/** ms */
		readonly keyInterval: number;
	};
	readonly gatewayBridge: {
		/** IPv4; undefined: one that no route of the node overlaps. */
		readonly subnet?: string;
		readonly enableIcc: boolean;
		readonly enableIpMasquerade: boolean;
	};
	readonly dockerPlugin?: { readonly socket: string; readonly stateFile: string };
	readonly pinRoot: string;
	readonly log: { readonly level: 'trace' | 'debug' | 'info' | 'warn' | 'error' };
}

/** sun_path of unix(7), less its zero. What is longer is cut by Node.js, and bound elsewhere. */
const MAX_SOCKET_BYTES = 107;

const ETCD_KEYS = ['endpoints', 'prefix', 'ca', 'cert', 'key', 'user', 'passwordFile'] as const;

/** Keys that do not go together. */
function membershipProblems(m: z.output<typeof configSchema>['membership'], written: unknown): Problem[] {
	const problems: Problem[] = [];
	const say = (key: string, text: string, isKey = true) =>
		problems.push({ path: ['membership', key], text, ...(isKey ? { key: true } : {}) });
	if (m.source !== 'etcd') {
		for (const key of ETCD_KEYS)
			if (m[key] !== undefined)
				say(key, `is of source etcd, and source is ${m.source}: expected source: etcd, or no such key`);
		return problems;
	}
	const given = (written as { membership?: Record<string, unknown> } | null)?.membership ?? {};
	for (const key of ['file', 'tokenFile', 'certificates', 'port'])
		if (given[key] !== undefined) say(key, 'is not of source etcd: expected no such key');
	const { endpoints } = m;
	if (endpoints === undefined) {
		say('endpoints', 'is missing: expected addresses of etcd such as [http://10.0.0.1:2379]', false);
		return problems;
	}
	const tls = endpoints.some((e) => e.startsWith('https:'));
	for (const key of ['ca', 'cert', 'key'] as const)
		if (m[key] !== undefined && !tls)
			say(key, 'is for TLS, and no endpoint begins with https://: expected https:// there');
	if ((m.cert === undefined) !== (m.key === undefined))
		say(m.cert === undefined ? 'key' : 'cert', 'stands alone: expected both cert and key, or none');
	if ((m.user === undefined) !== (m.passwordFile === undefined))
		say(m.user === undefined ? 'passwordFile' : 'user', 'stands alone: expected both user and passwordFile, or none');
	return problems;
}

/**
 * Reads the text of beeline.yaml. Relative paths are relative to the file's directory.
 * @throws BeelineError BAD_YAML or INVALID_CONFIG: file, line, column, what was expected
 */
export function parseConfig(file: string, content: string, host: string = hostname()): Config {
	const source = parseSource(file, content);
	const result = check(configSchema, source.data ?? {});
	if (!result.data) throw refuse(source, result.problems);
	const c = result.data;
	const problems: Problem[] = [];
	const shown = c.http.listen.map((l) => `${l.host.includes(':') ? `[${l.host}]` : l.host}:${l.port}`);
	for (const [i, l] of c.http.listen.entries())
		if (!isLoopback(l.host) && c.http.tokenFile === undefined)
			problems.push({
				path: ['http', 'listen', i],
				text: `is ${shown[i]}, beyond loopback, without a token: expected http.tokenFile, or 127.0.0.1`,
			});
	for (const [i, l] of shown.entries())
		if (shown.indexOf(l) !== i)
			problems.push({ path: ['http', 'listen', i], text: `is ${l} a second time: expected each address once` });
	for (const [key, socket] of [
		['http', c.http.socket],
		['dockerPlugin', c.dockerPlugin?.socket ?? ''],
	] as const) {
		const bytes = Buffer.byteLength(resolve(dirname(resolve(file)), socket));
		if (bytes > MAX_SOCKET_BYTES)
			problems.push({
				path: [key, 'socket'],
				text: `is ${bytes} bytes long: expected a path of at most ${MAX_SOCKET_BYTES}`,
			});
	}
	if (c.datapath.keyPort === c.datapath.vxlanPort) {
		const written = (source.data as { datapath: object }).datapath;
		const [key, other] = 'keyPort' in written ? ['keyPort', 'vxlanPort'] : ['vxlanPort', 'keyPort'];
		problems.push({
			path: ['datapath', key],
			text: `is ${c.datapath.keyPort}, as datapath.${other} is: expected another port`,
		});
	}
	const { subnet } = c.gatewayBridge;
	if (subnet !== undefined && (subnet.includes(':') || Number(subnet.split('/')[1]) > 29))
		problems.push({
			path: ['gatewayBridge', 'subnet'],
			text: `is ${subnet}: expected an IPv4 prefix of 29 bits at most, such as 172.30.0.0/16`,
		});
	if (c.dockerPlugin !== undefined && c.membership.source === 'docker')
		problems.push({
			path: ['dockerPlugin'],
			text: 'gives Docker the networks of the membership, and with membership.source docker there are only its own: expected source file or etcd, or no such key',
		});
	for (const [i, u] of (c.uplinks ?? []).entries())
		if (c.uplinks?.indexOf(u) !== i)
			problems.push({ path: ['uplinks', i], text: `is ${u} a second time: expected each uplink once` });
	const at = (p: string) => resolve(dirname(resolve(file)), p);
	problems.push(...membershipProblems(c.membership, source.data));
	if (problems.length > 0) throw refuse(source, problems);
	return {
		file: resolve(file),
		node: { ...c.node, name: c.node.name ?? host },
		...(c.uplinks ? { uplinks: c.uplinks } : {}),
		membership: {
			source: c.membership.source,
			file: at(c.membership.file),
			...(c.membership.tokenFile === undefined ? {} : { tokenFile: at(c.membership.tokenFile) }),
			...(c.membership.certificates === undefined ? {} : { certificates: at(c.membership.certificates) }),
			...(c.membership.port === undefined ? {} : { port: c.membership.port }),
			...(c.membership.endpoints === undefined ? {} : { endpoints: c.membership.endpoints }),
			...(c.membership.source !== 'etcd' ? {} : { prefix: c.membership.prefix ?? '/beeline' }),
			...(c.membership.ca === undefined ? {} : { ca: at(c.membership.ca) }),
			...(c.membership.cert === undefined ? {} : { cert: at(c.membership.cert) }),
			...(c.membership.key === undefined ? {} : { key: at(c.membership.key) }),
			...(c.membership.user === undefined ? {} : { user: c.membership.user }),
			...(c.membership.passwordFile === undefined ? {} : { passwordFile: at(c.membership.passwordFile) }),
		},
		http: {
			listen: c.http.listen,
			socket: at(c.http.socket),
			...(c.http.tokenFile === undefined ? {} : { tokenFile: at(c.http.tokenFile) }),
		},
		datapath: {
			...c.datapath,
			...(c.datapath.secretFile === undefined ? {} : { secretFile: at(c.datapath.secretFile) }),
		},
		gatewayBridge: c.gatewayBridge,
		...(c.dockerPlugin === undefined
			? {}
			: { dockerPlugin: { socket: c.dockerPlugin.socket, stateFile: at(c.dockerPlugin.stateFile) } }),
		pinRoot: c.pinRoot,
		log: c.log,
	};
}

/** Reads beeline.yaml. @throws BeelineError READ_FAILED, BAD_YAML, INVALID_CONFIG */
export function loadConfig(file: string): Config {
	return parseConfig(file, readText(file, 'configuration'));
}

/** What an agent may change while it runs; the rest decides what it is, and needs a restart. */
export const changeableKeys = ['datapath.returnPath', 'datapath.staleAfter', 'log.level'] as const;

/** Whether beeline.yaml may have such a key: of a value, or of a group of them. */
export function isConfigKey(path: readonly string[]): boolean {
	return path.length > 0 && path.every((step, i) => keysOf(configSchema, path.slice(0, i)).includes(step));
}

/**
 * Writes values into beeline.yaml, keeping comments; `null` removes a key. Keys are paths (`datapath.returnPath`).
 * Nothing is written where the result would not be accepted.
 * @throws BeelineError INVALID_CONFIG, WRITE_FAILED
 */
export function updateConfig(file: string, values: Readonly<Record<string, unknown>>): Config {
	const source: Source = parseSource(file, readText(file, 'configuration'));
	const doc = source.doc();
	if (!isMap(doc.contents)) doc.contents = doc.createNode({}) as never;
	for (const [key, v] of Object.entries(values)) {
		const steps = key.split('.');
		if (v === null) doc.deleteIn(steps);
		else {
			const old = doc.getIn(steps, true);
			if (isScalar(old) && typeof v !== 'object') old.value = v;
			else doc.setIn(steps, doc.createNode(v));
		}
	}
	const next = doc.toString({ lineWidth: 0 });
	const config = parseConfig(file, next);
	writeAtomically(file, next);
	return config;
}
