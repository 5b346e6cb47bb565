/** What the datapath's tests publish: one service for each thing that a packet may meet. */
import { Delivery, type Frontend, FrontendFlag, PortFlag, ReturnPath } from '../../src/loader/layout.gen.js';
import { ACTIVE, DOWN, DRAINING, EP0, fillNode, SELF, type World } from './world.js';

export const TCP = 6;
export const UDP = 17;

/** Backends by name: index in `backends`. */
export const BACKENDS = {
	far: 1,
	farther: 2,
	task: 3,
	process: 4,
	dead: 5,
	narrow: 6,
	unresolved: 7,
	taskTunnel: 8,
	taskDsr: 9,
	gone: 10,
	udpTask: 11,
	udpProcess: 12,
	draining: 13,
	other: 14,
	third: 15,
	neigh: 16,
	task4: 17,
} as const;
export type BackendName = keyof typeof BACKENDS;
export const macOf = (name: BackendName): string => `06:00:00:00:00:${String(BACKENDS[name]).padStart(2, '0')}`;

interface Service {
	readonly port: number;
	readonly proto?: number;
	readonly four?: readonly BackendName[];
	readonly six?: readonly BackendName[];
	readonly flags?: number;
	readonly portFlags?: number;
	/** Only on this address. */
	readonly only?: string;
	readonly acl?: number;
}

/** Frontends by name; their index is their place, from 1. */
export const SERVICES = {
	web: { port: 8080, four: ['far'], six: ['far'] },
	otherUplink: { port: 8081, four: ['farther'], six: ['farther'] },
	local: { port: 8082, four: ['task'], six: ['task'] },
	process: { port: 8083, four: ['process'], six: ['process'] },
	fourOnly: { port: 8084, four: ['far'] },
	allDown: { port: 8085, four: ['dead', 'dead'], six: ['dead', 'dead'] },
	oneDown: { port: 8086, four: ['dead', 'far'], six: ['dead', 'far'] },
	exact: { port: 8087, four: ['far'], six: ['far'], only: '10.1.0.1' },
	exactBeside: { port: 8088, four: ['farther'], only: '10.1.0.1' },
	beside: { port: 8088, four: ['far'] },
	allow: { port: 8089, four: ['far'], six: ['far'], flags: FrontendFlag.FRONTEND_ALLOW, acl: 1 },
	deny: { port: 8090, four: ['far'], six: ['far'], flags: FrontendFlag.FRONTEND_DENY, acl: 2 },
	both: { port: 8091, four: ['far'], flags: FrontendFlag.FRONTEND_ALLOW | FrontendFlag.FRONTEND_DENY, acl: 3 },
	localPort: { port: 40000, four: ['far'], six: ['far'], portFlags: PortFlag.PORT_LOCAL },
	localPortUdp: { port: 40000, proto: UDP, four: ['far'], portFlags: PortFlag.PORT_LOCAL },
	dns: { port: 53, proto: UDP, four: ['far'], six: ['far'] },
	dnsLocal: { port: 54, proto: UDP, four: ['udpTask'], six: ['udpTask'] },
	dnsProcess: { port: 55, proto: UDP, four: ['udpProcess'], six: ['udpProcess'] },
	narrow: { port: 8092, four: ['narrow'], six: ['narrow'] },
	narrowUdp: { port: 56, proto: UDP, four: ['narrow'], six: ['narrow'] },
	unresolved: { port: 8093, four: ['unresolved'] },
	kernel: { port: 8094, four: ['far'], flags: FrontendFlag.FRONTEND_KERNEL },
	kernelUdp: { port: 57, proto: UDP, four: ['far'], flags: FrontendFlag.FRONTEND_KERNEL },
	affinity: {
		port: 8095,
		four: ['far', 'farther', 'other', 'third'],
		six: ['far', 'farther', 'other', 'third'],
		flags: FrontendFlag.FRONTEND_AFFINITY,
	},
	spread: { port: 8096, four: ['far', 'farther', 'other', 'third'], six: ['far', 'farther', 'other', 'third'] },
	taskTunnel: { port: 8097, four: ['taskTunnel'], six: ['taskTunnel'] },
	taskDsr: { port: 8098, four: ['taskDsr'], six: ['taskDsr'] },
	second: { port: 8099, four: ['task'], six: ['task'] },
	gone: { port: 8100, four: ['gone', 'far'], six: ['gone', 'far'] },
	neigh: { port: 8101, four: ['neigh'] },
	processAgain: { port: 8102, four: ['process'], six: ['process'] },
	fourth: { port: 8103, four: ['task'] },
	fifth: { port: 8104, four: ['task'] },
	sixth: { port: 8105, four: ['task'] },
	rests: { port: 8106, flags: FrontendFlag.FRONTEND_HOLDS },
	restsDown: { port: 8107, four: ['dead'], six: ['dead'], flags: FrontendFlag.FRONTEND_HOLDS },
	restsFour: { port: 8108, four: ['far'], flags: FrontendFlag.FRONTEND_HOLDS },
	restsUdp: { port: 58, proto: UDP, flags: FrontendFlag.FRONTEND_HOLDS },
	restsDenied: { port: 8109, flags: FrontendFlag.FRONTEND_HOLDS | FrontendFlag.FRONTEND_DENY, acl: 2 },
} as const satisfies Record<string, Service>;
export type ServiceName = keyof typeof SERVICES;
export const serviceIndex = (name: ServiceName): number => Object.keys(SERVICES).indexOf(name) + 1;
export const tableOf = (name: ServiceName, family: 4 | 6): number => serviceIndex(name) * 2 + (family === 6 ? 1 : 0);

const WINDOW_NS = 100_000_000_000n;
const UDP_WINDOW_NS = 20_000_000_000n;

export function frontendRow(name: ServiceName, over: Partial<Frontend> = {}): Frontend {
	const s: Service = SERVICES[name];
	const ref = (family: 4 | 6, list: readonly BackendName[] | undefined) =>
		list ? { table: tableOf(name, family), mask: list.length - 1 } : { table: 0, mask: 0 };
	return {
		tables: [ref(4, s.four), ref(6, s.six)],
		window_ns: WINDOW_NS,
		udp_window_ns: UDP_WINDOW_NS,
		flags: s.flags ?? 0,
		port: s.port,
		proto: s.proto ?? TCP,
		acl: s.acl ?? 0,
		generation: 0,
		...over,
	};
}

/** Fills the maps of a world. */
export function fill(w: World): void {
	const s = w.store;
	fillNode(s);
	const at = (name: BackendName, node: number, state: number = ACTIVE) =>
		[BACKENDS[name], { state, generation: 0, mac: macOf(name), node }] as const;
	s.backends.setMany([
		at('far', 2),
		at('farther', 3),
		at('task', SELF),
		at('process', SELF),
		at('dead', 2, DOWN),
		at('narrow', 5),
		at('unresolved', 6),
		at('taskTunnel', SELF),
		at('taskDsr', SELF),
		at('gone', SELF, DOWN),
		at('udpTask', SELF),
		at('udpProcess', SELF),
		at('draining', 2, DRAINING),
		at('other', 2),
		at('third', 2),
		at('neigh', SELF),
		at('task4', SELF),
	]);
	const local = (
		name: BackendName,
		frontend: ServiceName,
		port: number,
		proto: number,
		delivery: number,
		returnPath: number = ReturnPath.RETURN_AUTO,
		state: number = ACTIVE,
	) =>
		[
			macOf(name),
			{
				addr4: delivery === Delivery.DELIVER_PROCESS ? '10.0.0.1' : '172.18.0.2',
				addr6: name === 'task4' ? '::' : delivery === Delivery.DELIVER_PROCESS ? 'fd00::1' : 'fd18::2',
				ref: BACKENDS[name],
				ifindex: delivery === Delivery.DELIVER_PROCESS ? 0 : EP0,
				frontend: serviceIndex(frontend),
				port,
				proto,
				state,
				delivery,
				return_path: returnPath,
				flags: 0,
			},
		] as const;
	s.localBackends.setMany([
		local('task', 'local', 80, TCP, Delivery.DELIVER_PEER),
		local('process', 'process', 9000, TCP, Delivery.DELIVER_PROCESS),
		local('taskTunnel', 'taskTunnel', 81, TCP, Delivery.DELIVER_PEER, ReturnPath.RETURN_TUNNEL),
		local('taskDsr', 'taskDsr', 82, TCP, Delivery.DELIVER_PEER, ReturnPath.RETURN_DSR),
		local('gone', 'gone', 83, TCP, Delivery.DELIVER_PEER, ReturnPath.RETURN_AUTO, DOWN),
		local('udpTask', 'dnsLocal', 5353, UDP, Delivery.DELIVER_PEER),
		local('udpProcess', 'dnsProcess', 9001, UDP, Delivery.DELIVER_PROCESS),
		local('neigh', 'neigh', 84, TCP, Delivery.DELIVER_NEIGH),
		local('task4', 'local', 85, TCP, Delivery.DELIVER_PEER),
	]);
	for (const name of Object.keys(SERVICES) as ServiceName[]) {
		const service: Service = SERVICES[name];
		const index = serviceIndex(name);
		s.frontends.setMany([[index, frontendRow(name)]]);
		const tables: [number, Uint32Array][] = [];
		for (const [family, list] of [
			[4, service.four],
			[6, service.six],
		] as const)
			if (list) tables.push([tableOf(name, family), Uint32Array.from(list, (b) => BACKENDS[b])]);
		s.tables.create(tables);
		const row = (service.proto === UDP ? 65536 : 0) + service.port;
		if (service.only) {
			s.exactFrontends.setMany([[{ addr: service.only, port: service.port, proto: service.proto ?? TCP }, index]]);
			s.ports.setMany([[row, (PortFlag.PORT_EXACT | (s.ports.get(row) ?? 0)) >>> 0]]);
		} else s.ports.setMany([[row, ((s.ports.get(row) ?? 0) | (service.portFlags ?? 0) | index) >>> 0]]);
	}
	s.ports.setMany([
		[9000, PortFlag.PORT_PROCESS],
		[65536 + 9001, PortFlag.PORT_PROCESS],
	]);
	s.allow.setMany([
		[{ acl: 1, prefix: '192.0.2.0/24' }, 1],
		[{ acl: 1, prefix: 'fd09::/16' }, 1],
		[{ acl: 3, prefix: '192.0.2.0/24' }, 1],
	]);
	s.deny.setMany([
		[{ acl: 2, prefix: '192.0.2.0/24' }, 1],
		[{ acl: 2, prefix: 'fd09::/16' }, 1],
		[{ acl: 3, prefix: '192.0.2.9/32' }, 1],
	]);
}
