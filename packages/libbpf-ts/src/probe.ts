import { hasTcx } from './attach.js';
import { native } from './ffi.js';
import { MAP_TYPE } from './map.js';
import { check, closeFd, linkCreate, linkDetach } from './sys.js';

export type Feature = 'tcx' | 'netkit' | 'batch' | 'ringbuf' | 'xdp-link' | 'prog-stats';

const SCHED_CLS = 3;
const NETKIT_PRIMARY = 54;
const ENODEV = 19;
const NO_SUCH_IFINDEX = 0x7ffffffe;
const known = new Map<Feature, boolean>();

/** Does the running kernel have it? Tried, not guessed from version numbers; remembered. Needs root. */
export function probe(feature: Feature): boolean {
	let r = known.get(feature);
	if (r === undefined) {
		r = TRIALS[feature]();
		known.set(feature, r);
	}
	return r;
}

/** `r0 = 0; exit`, in the given type. */
function withProgram<T>(type: number, use: (fd: number) => T): T {
	const insns = new Uint8Array([0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]);
	const fd = check('load a probe program', native().progLoad(type, 'probe', 'GPL', insns, 2, null));
	try {
		return use(fd);
	} finally {
		closeFd(fd);
	}
}
function withMap<T>(type: number, key: number, value: number, max: number, use: (fd: number) => T): T | undefined {
	const fd = native().mapCreate(type, 'probe', key, value, max, null);
	if (fd === -1) check('create a probe map', fd);
	if (fd < 0) return undefined;
	try {
		return use(fd);
	} finally {
		closeFd(fd);
	}
}

const TRIALS: Record<Feature, () => boolean> = {
	tcx: hasTcx,
	netkit: () => withProgram(SCHED_CLS, (fd) => linkCreate(fd, NO_SUCH_IFINDEX, NETKIT_PRIMARY) === -ENODEV),
	// An XDP link to no interface is EINVAL, known or not; LINK_DETACH came with the same release (5.9).
	'xdp-link': () => linkDetach(-1) !== -22,
	batch: () =>
		withMap(MAP_TYPE.hash, 4, 4, 1, (fd) => {
			const count = new Uint8Array(new ArrayBuffer(4));
			count[0] = 1;
			return native().updateBatch(fd, new Uint8Array(4), new Uint8Array(4), count, null) === 0;
		}) ?? false,
	ringbuf: () => withMap(MAP_TYPE.ringbuf, 0, 0, 65536, () => true) ?? false,
	'prog-stats': () => {
		const fd = native().enableStats(0);
		closeFd(fd);
		return fd >= 0;
	},
};

/** Counts run time and runs of every program (Program.info) until disposed of. Costs some ns a run. */
export function enableStats(): Disposable {
	let fd = check('enable program statistics', native().enableStats(0));
	return {
		[Symbol.dispose]() {
			closeFd(fd);
			fd = -1;
		},
	};
}
