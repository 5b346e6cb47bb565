/**
 * What an engine asks of a network plugin and what it takes for an answer (libnetwork docs/remote.md, docs/ipam.md). Members
 * that are not read are let through: newer engines say more.
 */
import { z } from 'zod';

/** Go writes an empty slice, map or pointer as null. */
const text = z
	.string()
	.nullish()
	.transform((x) => x ?? '');
const id = z.string().min(1).max(512);
const record = z
	.record(z.string(), z.unknown())
	.nullish()
	.transform((x) => x ?? {});
const texts = z
	.record(z.string(), z.string())
	.nullish()
	.transform((x) => x ?? {});

const pool = z.object({ AddressSpace: text, Pool: text, Gateway: text, AuxAddresses: texts });
const pools = z
	.array(pool)
	.nullish()
	.transform((x) => x ?? []);

export const CreateNetwork = z.object({ NetworkID: id, Options: record, IPv4Data: pools, IPv6Data: pools });
export const DeleteNetwork = z.object({ NetworkID: id });
export const CreateEndpoint = z.object({
	NetworkID: id,
	EndpointID: id,
	Options: record,
	Interface: z
		.object({ Address: text, AddressIPv6: text, MacAddress: text })
		.nullish()
		.transform((x) => x ?? { Address: '', AddressIPv6: '', MacAddress: '' }),
});
export const OfEndpoint = z.object({ NetworkID: id, EndpointID: id });
export const Join = OfEndpoint.extend({ SandboxKey: text, Options: record });
export const RequestPool = z.object({
	AddressSpace: text,
	Pool: text,
	SubPool: text,
	Options: texts,
	V6: z
		.boolean()
		.nullish()
		.transform((x) => x ?? false),
});
export const ReleasePool = z.object({ PoolID: id });
export const RequestAddress = z.object({ PoolID: id, Address: text, Options: texts });
export const ReleaseAddress = z.object({ PoolID: id, Address: z.string().min(1) });

export type CreateNetworkRequest = z.output<typeof CreateNetwork>;
export type CreateEndpointRequest = z.output<typeof CreateEndpoint>;
export type EndpointRequest = z.output<typeof OfEndpoint>;
export type JoinRequest = z.output<typeof Join>;
export type RequestPoolRequest = z.output<typeof RequestPool>;
export type RequestAddressRequest = z.output<typeof RequestAddress>;
export type ReleaseAddressRequest = z.output<typeof ReleaseAddress>;

export interface JoinAnswer {
	readonly InterfaceName: { readonly SrcName: string; readonly DstPrefix: string };
	readonly Gateway: string;
	readonly GatewayIPv6: string;
	readonly StaticRoutes: readonly never[];
	/** Docker gives no leg on docker_gwbridge. */
	readonly DisableGatewayService: boolean;
}

/** Names that Docker's own drivers and libnetwork use for options. */
export const OPTION = {
	generic: 'com.docker.network.generic',
	internal: 'com.docker.network.internal',
	gateway: 'com.docker.network.gateway',
	requestType: 'RequestAddressType',
	mtu: 'com.docker.network.driver.mtu',
	vni: 'com.docker.network.driver.overlay.vxlanid_list',
	encrypted: 'encrypted',
	/** Ours: the network of the membership. */
	network: 'beeline.network',
} as const;
