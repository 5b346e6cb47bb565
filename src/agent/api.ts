/**
 * What the agent offers to HTTP. createApp() knows this interface and nothing behind it, so the HTTP tests run without a
 * kernel.
 */
import type {
	BackendView,
	ConfigPatchBody,
	ConfigView,
	EndpointAttachBody,
	EndpointView,
	EntriesView,
	FlowsView,
	NetworkCreateBody,
	NetworkView,
	NodeCreateBody,
	NodeView,
	ReconcileEventBody,
	ServiceCreateBody,
	ServicePatchBody,
	ServiceView,
	StatusView,
	VerdictEventBody,
} from '../http/schemas.js';

export type AgentEvent = VerdictEventBody | ReconcileEventBody;

export interface AgentApi {
	status(): StatusView;
	nodes(): NodeView[];
	services(): ServiceView[];
	backends(): BackendView[];
	/** Living flows of this node's backends; `limit` rows at most. */
	flows(limit: number): FlowsView;
	/** The maps as text; `limit` rows of each at most. */
	entries(limit: number): EntriesView;
	config(): ConfigView;

	/**
	 * Commands resolve when the change is written where it belongs and the maps follow it. `exact`: only if the document is
	 * still what the views show now (412 otherwise); where the source has revisions.
	 * @throws AgentError
	 */
	drainBackend(id: string, exact?: boolean): Promise<void>;
	undrainBackend(id: string, exact?: boolean): Promise<void>;
	drainNode(name: string, exact?: boolean): Promise<void>;
	undrainNode(name: string, exact?: boolean): Promise<void>;
	patchService(name: string, patch: ServicePatchBody, exact?: boolean): Promise<void>;
	createService(service: ServiceCreateBody): Promise<void>;
	removeService(name: string, exact?: boolean): Promise<void>;
	addNode(node: NodeCreateBody): Promise<void>;
	removeNode(name: string, exact?: boolean): Promise<void>;
	networks(): NetworkView[];
	createNetwork(network: NetworkCreateBody): Promise<void>;
	removeNetwork(name: string): Promise<void>;
	endpoints(): EndpointView[];
	attachEndpoint(request: EndpointAttachBody): Promise<EndpointView>;
	detachEndpoint(id: string): Promise<void>;
	patchConfig(patch: ConfigPatchBody): Promise<void>;

	/**
	 * Calls `listener` for each event until the returned function is called. Packets' verdicts are recorded only while
	 * somebody asked for them.
	 */
	subscribe(want: { readonly verdicts: boolean }, listener: (event: AgentEvent) => void): () => void;
}

/** A command that was not carried out; `status` is the HTTP status that says so. */
export class AgentError extends Error {
	readonly status: 404 | 409 | 412 | 422 | 503;
	readonly code: string;
	readonly field: string | undefined;
	constructor(status: 404 | 409 | 412 | 422 | 503, code: string, message: string, field?: string) {
		super(message);
		this.name = 'AgentError';
		this.status = status;
		this.code = code;
		this.field = field;
	}
}
