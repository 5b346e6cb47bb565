export type { ClsactFilter, Dev, Direction, XdpMode } from './attach.js';
export { ensureBpffs } from './bpffs.js';
export { Btf, type BtfType, type StructField, type StructLayout, type Variable } from './btf.js';
export { bytesCodec, type Codec, u32, u64 } from './codec.js';
export { type Datagram, Datagrams, type SocketError } from './datagrams.js';
export { BpfError, NotSupportedError, UsageError, VerifierError } from './errors.js';
export { Link, type LinkInfo, type LinkKind } from './link.js';
export {
	BpfMap,
	type CreateOptions,
	type FromPinOptions,
	type InnerTemplate,
	MAP_FLAG,
	type MapInfo,
	type MapKind,
	MapOfMaps,
	maps,
	RawMap,
	TypedMap,
	type UpdateMode,
} from './map.js';
export { Mapping } from './mapping.js';
export { type ExecResult, inNetns, Netns, openNetns } from './netns.js';
export {
	BpfObject,
	type GlobalVar,
	type MapOf,
	type MapShape,
	OpenObject,
	type OpenOptions,
	open,
	type Shape,
} from './object.js';
export { enableStats, type Feature, probe } from './probe.js';
export {
	type AttachTcOptions,
	LIVE_FRAMES,
	Program,
	Runner,
	type RunnerOptions,
	type TestRunOptions,
	type TestRunResult,
} from './program.js';
export { type Attached, type HookState, queryCgroup, queryTcx } from './query.js';
export { RingBuffer } from './ring.js';
export { type Listeners, listenersOn, loopbackUp, tcpTo, udpSocket, withinNetns } from './sockets.js';
export { netnsCookie, type ProgramInfo, possibleCpus, shareHeap, trimHeap } from './sys.js';
