/** Overlay networks and endpoints: network ls|inspect, endpoint attach|ls|detach. */
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
