/** Overlay networks and endpoints: network create|ls|inspect|rm, endpoint attach|ls|detach. */
import { BeelineError } from '../errors.js';
import type { EndpointView, NetworkView } from '../http/schemas.js';
import type { Client } from './client.js';
import { type Format, print, table } from './output.js';

export async function networks(client: Client, format: Format): Promise<void> {
	const { body } = await client.get('/v1/networks');
	if (format === 'json') return print(body);
	const list = (JSON.parse(body) as { networks: NetworkView[] }).networks;
	print(
		table(
			['NETWORK ID', 'NAME', 'DRIVER', 'SCOPE', 'SUBNET', 'VNI', 'ENDPOINTS'],
			list.map((n) => [
				n.Id,
				n.Name,
				n.Driver,
				n.Scope,
				n.IPAM.Config.map((c) => c.Subnet).join(' '),
				n.Options['com.docker.network.driver.overlay.vxlanid_list'] ?? '-',
				Object.keys(n.Containers).length,
			]),
		),
	);
}

/** As `docker network inspect`: a list, whatever was asked for. */
export async function networkInspect(client: Client, names: readonly string[]): Promise<void> {
	const out: unknown[] = [];
	for (const name of names) out.push(JSON.parse((await client.get(`/v1/networks/${encodeURIComponent(name)}`)).body));
	print(JSON.stringify(out, null, 4));
}

export interface CreateOptions {
	readonly driver: string;
	readonly subnet: readonly string[];
	readonly gateway?: string;
	readonly ipRange?: string;
	readonly attachable?: boolean;
	readonly internal?: boolean;
	readonly ingress?: boolean;
	readonly ipv6?: boolean;
	readonly opt: readonly string[];
	readonly label: readonly string[];
}

const VNI_OPTION = 'com.docker.network.driver.overlay.vxlanid_list';
const MTU_OPTION = 'com.docker.network.driver.mtu';

/** `docker network create`'s grammar → the body of POST /v1/networks. @throws BeelineError */
export function networkDocument(name: string, o: CreateOptions): Record<string, unknown> {
	const refuse = (what: string): never => {
		throw new BeelineError('BAD_OPTION', `network create: ${what}`);
	};
	if (o.driver !== 'overlay' && o.driver !== 'beeline') refuse(`--driver ${o.driver}: expected overlay`);
	const four = o.subnet.filter((s) => !s.includes(':'));
	const six = o.subnet.filter((s) => s.includes(':'));
	if (four.length > 1 || six.length > 1) refuse('give one --subnet of each family');
	if (six.length > 0 && !o.ipv6) refuse(`--subnet ${six[0]} is of IPv6: add --ipv6`);
	const options: Record<string, unknown> = o.internal ? { internal: true } : {};
	let vni: number | undefined;
	for (const opt of o.opt) {
		const [key, value = ''] = opt.split(/=(.*)/s);
		const number = /^\d+$/.test(value) ? Number(value) : undefined;
		if (key === 'encrypted') options.encrypted = value !== 'false';
		else if (key === MTU_OPTION || key === VNI_OPTION) {
			if (number === undefined) refuse(`--opt ${opt}: expected a number`);
			if (key === VNI_OPTION) vni = number;
			else options.mtu = number;
		} else refuse(`--opt ${key} is unknown: expected ${MTU_OPTION}, ${VNI_OPTION} or encrypted`);
	}
	return {
		name,
		...(four[0] === undefined ? {} : { subnet: four[0] }),
		...(six[0] === undefined ? {} : { subnet6: six[0] }),
		...(o.ipv6 && six.length === 0 ? { ipv6: true } : {}),
		...(o.gateway === undefined ? {} : { gateway: o.gateway }),
		...(o.ipRange === undefined ? {} : { ipRange: o.ipRange }),
		...(vni === undefined ? {} : { vni }),
		...(o.attachable ? { attachable: true } : {}),
		...(o.ingress ? { ingress: true } : {}),
		...(o.label.length === 0 ? {} : { labels: Object.fromEntries(o.label.map((l) => l.split(/=(.*)/s).slice(0, 2))) }),
		...(Object.keys(options).length === 0 ? {} : { options }),
	};
}

export async function networkCreate(client: Client, name: string, o: CreateOptions): Promise<void> {
	await client.send('POST', '/v1/networks', networkDocument(name, o));
	print(name);
}

export async function networkRemove(client: Client, names: readonly string[]): Promise<void> {
	for (const name of names) {
		await client.send('DELETE', `/v1/networks/${encodeURIComponent(name)}`);
		print(name);
	}
}

export async function endpoints(client: Client, format: Format): Promise<void> {
	const { body } = await client.get('/v1/endpoints');
	if (format === 'json') return print(body);
	const list = (JSON.parse(body) as { endpoints: EndpointView[] }).endpoints;
	print(
		table(
			['ID', 'NETWORK', 'ADDRESS', 'MAC', 'INTERFACE', 'NAMESPACE', 'NAME', 'SERVICE'],
			list.map((e) => [
				e.id,
				e.network,
				e.address6 === null ? e.address : `${e.address} ${e.address6}`,
				e.mac,
				e.interface,
				e.netns,
				e.name ?? '-',
				e.service ?? '-',
			]),
		),
	);
}

export interface AttachOptions {
	readonly network: string;
	readonly netns?: string;
	readonly pid?: string;
	readonly container?: string;
	readonly service?: string;
	readonly name?: string;
	readonly ip?: string;
	readonly alias: readonly string[];
}

/** A name of `ip netns` is as good as its path. */
function netnsPath(text: string): string {
	return text.includes('/') ? text : `/run/netns/${text}`;
}

/** Prints the endpoint: its address, or with -o json all of it. */
export async function endpointAttach(client: Client, o: AttachOptions, format: Format): Promise<void> {
	const places = [o.netns, o.pid, o.container].filter((x) => x !== undefined).length;
	if (places !== 1)
		throw new BeelineError('NO_NETNS', 'endpoint attach: give exactly one of --netns, --pid and --container');
	if (o.pid !== undefined && !/^[1-9]\d*$/.test(o.pid))
		throw new BeelineError('NO_NETNS', `--pid ${o.pid}: expected the number of a process`);
	const { body } = await client.send('POST', '/v1/endpoints', {
		network: o.network,
		...(o.netns === undefined ? {} : { netns: netnsPath(o.netns) }),
		...(o.pid === undefined ? {} : { pid: Number(o.pid) }),
		...(o.container === undefined ? {} : { container: o.container }),
		...(o.service === undefined ? {} : { service: o.service }),
		...(o.name === undefined ? {} : { name: o.name }),
		...(o.ip === undefined ? {} : { address: o.ip }),
		...(o.alias.length === 0 ? {} : { aliases: o.alias }),
	});
	if (format === 'json') return print(body);
	const e = JSON.parse(body) as EndpointView;
	print(`${e.id}: ${e.address}${e.address6 === null ? '' : ` ${e.address6}`} on ${e.interface} (${e.mac})`);
}

export async function endpointDetach(client: Client, id: string): Promise<void> {
	await client.send('DELETE', `/v1/endpoints/${encodeURIComponent(id)}`);
	print(id);
}
