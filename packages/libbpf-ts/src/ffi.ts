// The only file that knows koffi. Everything else sees typed functions over numbers, Uint8Arrays and addresses.
import koffi from 'koffi';
import { BpfError } from './errors.js';

/** What a `void *` parameter takes. koffi checks no lengths: callers assert sizes. */
export type Mem = Uint8Array | bigint | null;
/** An opaque libbpf pointer. */
export type Ptr = bigint & { readonly __ptr?: never };

export interface Native {
	version(): string;
	openMem(bytes: Mem, size: number, opts: Mem): Ptr | null;
	load(obj: Ptr): number;
	loadAsync(obj: Ptr): Promise<number>;
	/** bpf_link_create() on another thread: an fd, or -errno. `opts`, struct bpf_link_create_opts, must outlive the call. */
	linkCreateAsync(progFd: number, target: number, attachType: number, opts: Uint8Array | null): Promise<number>;
	close(obj: Ptr): void;
	nextMap(obj: Ptr, prev: Ptr | null): Ptr | null;
	nextProgram(obj: Ptr, prev: Ptr | null): Ptr | null;
	objectBtf(obj: Ptr): Ptr | null;
	objectBtfFd(obj: Ptr): number;
	btfRaw(btf: Ptr, size: Mem): Ptr | null;
	mapName(m: Ptr): string;
	mapFd(m: Ptr): number;
	mapType(m: Ptr): number;
	mapFlags(m: Ptr): number;
	mapKeySize(m: Ptr): number;
	mapValueSize(m: Ptr): number;
	mapMaxEntries(m: Ptr): number;
	mapSetMaxEntries(m: Ptr, n: number): number;
	mapInitialValue(m: Ptr, size: Mem): Ptr | null;
	mapSetPinPath(m: Ptr, path: string | null): number;
	mapPinPath(m: Ptr): string | null;
	mapKeyType(m: Ptr): number;
	mapValueType(m: Ptr): number;
	mapReuseFd(m: Ptr, fd: number): number;
	mapSetAutocreate(m: Ptr, on: boolean): number;
	mapInner(m: Ptr): Ptr | null;
	mapSetInnerFd(m: Ptr, fd: number): number;
	progName(p: Ptr): string;
	progSection(p: Ptr): string;
	progFd(p: Ptr): number;
	progType(p: Ptr): number;
	progAttachType(p: Ptr): number;
	progSetAutoload(p: Ptr, on: boolean): number;
	progAutoload(p: Ptr): boolean;
	progSetLog(p: Ptr, buf: Mem, size: number): number;
	progSetLogLevel(p: Ptr, level: number): number;
	mapCreate(type: number, name: string, key: number, value: number, max: number, opts: Mem): number;
	progLoad(type: number, name: string, license: string, insns: Mem, count: number, opts: Mem): number;
	update(fd: number, key: Mem, value: Mem, flags: number): number;
	lookup(fd: number, key: Mem, value: Mem): number;
	lookupAndDelete(fd: number, key: Mem, value: Mem): number;
	remove(fd: number, key: Mem): number;
	nextKey(fd: number, key: Mem, next: Mem): number;
	updateBatch(fd: number, keys: Mem, values: Mem, count: Mem, opts: Mem): number;
	deleteBatch(fd: number, keys: Mem, count: Mem, opts: Mem): number;
	lookupBatch(fd: number, from: Mem, next: Mem, keys: Mem, values: Mem, count: Mem, opts: Mem): number;
	pin(fd: number, path: string): number;
	get(path: string): number;
	testRun(fd: number, opts: Mem): number;
	enableStats(kind: number): number;
	mallopt(option: number, value: number): number;
	mallocTrim(pad: number): number;
	possibleCpus(): number;
	tcHookCreate(hook: Mem): number;
	tcAttach(hook: Mem, opts: Mem): number;
	tcDetach(hook: Mem, opts: Mem): number;
	tcQuery(hook: Mem, opts: Mem): number;

	syscall(nr: number, cmd: number, attr: Mem, size: number): number;
	mmap(at: Mem, length: number, prot: number, flags: number, fd: number, offset: number): bigint;
	munmap(at: Mem, length: number): number;
	setns(fd: number, kind: number): number;
	ifIndex(name: string): number;
	ifName(index: number, out: Mem): string | null;
	fcntl(fd: number, cmd: number, arg: number): number;
	closeFd(fd: number): number;
	pageSize(): number;
	mount(source: string, target: string, type: string, flags: number, data: Mem): number;
	socket(domain: number, type: number, protocol: number): number;
	getsockopt(fd: number, level: number, name: number, value: Mem, length: Mem): number;
	setsockopt(fd: number, level: number, name: number, value: Mem, length: number): number;
	bind(fd: number, address: Mem, length: number): number;
	listen(fd: number, backlog: number): number;
	connect(fd: number, address: Mem, length: number): number;
	ioctl(fd: number, request: number, argument: Mem): number;
	getsockname(fd: number, address: Mem, length: Mem): number;
	sendmmsg(fd: number, messages: Mem, count: number, flags: number): number;
	recvmmsg(fd: number, messages: Mem, count: number, flags: number, timeout: Mem): number;
	recvmsg(fd: number, message: Mem, flags: number): number;
	clockGettime(clock: number, time: Mem): number;
	errno(): number;
}

let loaded: Native | undefined;

/** libbpf and libc, loaded on first use. Throws one sentence when libbpf.so.1 is missing. */
export function native(): Native {
	loaded ??= load();
	return loaded;
}

function library(name: string): ReturnType<typeof koffi.load> {
	try {
		return koffi.load(name);
	} catch (cause) {
		const e = new BpfError(`load ${name}`, 2, 'libbpf 1.x is not installed: apt-get install libbpf1', cause);
		throw e;
	}
}

function load(): Native {
	if (process.platform !== 'linux' || (process.arch !== 'x64' && process.arch !== 'arm64'))
		throw new BpfError(
			'load libbpf',
			95,
			`Linux on x86_64 or arm64 is needed, this is ${process.platform} ${process.arch}`,
		);
	const libc = koffi.load('libc.so.6');
	const bpf = library('libbpf.so.1');
	const f = <T>(lib: typeof bpf, signature: string): T => lib.func(signature) as unknown as T;
	const b = <K extends keyof Native>(_: K, signature: string): Native[K] => f<Native[K]>(bpf, signature);
	const c = <K extends keyof Native>(_: K, signature: string): Native[K] => f<Native[K]>(libc, signature);
	const loadObject = bpf.func('int bpf_object__load(void *o)');
	const linkCreate = bpf.func('int bpf_link_create(int prog, int target, int type, void *opts)');
	const n: Native = {
		mallopt: c('mallopt', 'int mallopt(int option, int value)'),
		mallocTrim: c('mallocTrim', 'int malloc_trim(size_t pad)'),
		version: b('version', 'const char *libbpf_version_string()'),
		openMem: b('openMem', 'void *bpf_object__open_mem(void *buf, size_t n, void *opts)'),
		load: loadObject as unknown as Native['load'],
		loadAsync: (obj) =>
			new Promise((done, fail) => {
				loadObject.async(obj, (err: unknown, r: number) => (err ? fail(err) : done(r)));
			}),
		linkCreateAsync: (progFd, target, attachType, opts) =>
			new Promise((done, fail) => {
				linkCreate.async(progFd, target, attachType, opts, (err: unknown, r: number) => (err ? fail(err) : done(r)));
			}),
		close: b('close', 'void bpf_object__close(void *o)'),
		nextMap: b('nextMap', 'void *bpf_object__next_map(void *o, void *m)'),
		nextProgram: b('nextProgram', 'void *bpf_object__next_program(void *o, void *p)'),
		objectBtf: b('objectBtf', 'void *bpf_object__btf(void *o)'),
		objectBtfFd: b('objectBtfFd', 'int bpf_object__btf_fd(void *o)'),
		btfRaw: b('btfRaw', 'void *btf__raw_data(void *b, void *n)'),
		mapName: b('mapName', 'const char *bpf_map__name(void *m)'),
		mapFd: b('mapFd', 'int bpf_map__fd(void *m)'),
		mapType: b('mapType', 'int bpf_map__type(void *m)'),
		mapFlags: b('mapFlags', 'uint32_t bpf_map__map_flags(void *m)'),
		mapKeySize: b('mapKeySize', 'uint32_t bpf_map__key_size(void *m)'),
		mapValueSize: b('mapValueSize', 'uint32_t bpf_map__value_size(void *m)'),
		mapMaxEntries: b('mapMaxEntries', 'uint32_t bpf_map__max_entries(void *m)'),
		mapSetMaxEntries: b('mapSetMaxEntries', 'int bpf_map__set_max_entries(void *m, uint32_t n)'),
		mapInitialValue: b('mapInitialValue', 'void *bpf_map__initial_value(void *m, void *n)'),
		mapSetPinPath: b('mapSetPinPath', 'int bpf_map__set_pin_path(void *m, const char *p)'),
		mapPinPath: b('mapPinPath', 'const char *bpf_map__pin_path(void *m)'),
		mapKeyType: b('mapKeyType', 'uint32_t bpf_map__btf_key_type_id(void *m)'),
		mapValueType: b('mapValueType', 'uint32_t bpf_map__btf_value_type_id(void *m)'),
		mapReuseFd: b('mapReuseFd', 'int bpf_map__reuse_fd(void *m, int fd)'),
		mapSetAutocreate: b('mapSetAutocreate', 'int bpf_map__set_autocreate(void *m, bool on)'),
		mapInner: b('mapInner', 'void *bpf_map__inner_map(void *m)'),
		mapSetInnerFd: b('mapSetInnerFd', 'int bpf_map__set_inner_map_fd(void *m, int fd)'),
		progName: b('progName', 'const char *bpf_program__name(void *p)'),
		progSection: b('progSection', 'const char *bpf_program__section_name(void *p)'),
		progFd: b('progFd', 'int bpf_program__fd(void *p)'),
		progType: b('progType', 'int bpf_program__type(void *p)'),
		progAttachType: b('progAttachType', 'int bpf_program__expected_attach_type(void *p)'),
		progSetAutoload: b('progSetAutoload', 'int bpf_program__set_autoload(void *p, bool on)'),
		progAutoload: b('progAutoload', 'bool bpf_program__autoload(void *p)'),
		progSetLog: b('progSetLog', 'int bpf_program__set_log_buf(void *p, void *b, size_t n)'),
		progSetLogLevel: b('progSetLogLevel', 'int bpf_program__set_log_level(void *p, uint32_t n)'),
		mapCreate: b(
			'mapCreate',
			'int bpf_map_create(int t, const char *n, uint32_t ks, uint32_t vs, uint32_t max, void *o)',
		),
		progLoad: b('progLoad', 'int bpf_prog_load(int t, const char *n, const char *l, void *insns, size_t cnt, void *o)'),
		update: b('update', 'int bpf_map_update_elem(int fd, void *k, void *v, uint64_t f)'),
		lookup: b('lookup', 'int bpf_map_lookup_elem(int fd, void *k, void *v)'),
		lookupAndDelete: b('lookupAndDelete', 'int bpf_map_lookup_and_delete_elem(int fd, void *k, void *v)'),
		remove: b('remove', 'int bpf_map_delete_elem(int fd, void *k)'),
		nextKey: b('nextKey', 'int bpf_map_get_next_key(int fd, void *k, void *n)'),
		updateBatch: b('updateBatch', 'int bpf_map_update_batch(int fd, void *k, void *v, void *n, void *o)'),
		deleteBatch: b('deleteBatch', 'int bpf_map_delete_batch(int fd, void *k, void *n, void *o)'),
		lookupBatch: b(
			'lookupBatch',
			'int bpf_map_lookup_batch(int fd, void *ib, void *ob, void *k, void *v, void *n, void *o)',
		),
		pin: b('pin', 'int bpf_obj_pin(int fd, const char *p)'),
		get: b('get', 'int bpf_obj_get(const char *p)'),
		testRun: b('testRun', 'int bpf_prog_test_run_opts(int fd, void *o)'),
		enableStats: b('enableStats', 'int bpf_enable_stats(int type)'),
		possibleCpus: b('possibleCpus', 'int libbpf_num_possible_cpus()'),
		tcHookCreate: b('tcHookCreate', 'int bpf_tc_hook_create(void *h)'),
		tcAttach: b('tcAttach', 'int bpf_tc_attach(void *h, void *o)'),
		tcDetach: b('tcDetach', 'int bpf_tc_detach(void *h, void *o)'),
		tcQuery: b('tcQuery', 'int bpf_tc_query(void *h, void *o)'),

		// Not declared variadic: koffi's variadic calls cost more, and on both ABIs the registers are the same.
		syscall: c('syscall', 'long syscall(long nr, long cmd, void *attr, ulong size)'),
		mmap: c('mmap', 'uintptr_t mmap(void *at, size_t len, int prot, int flags, int fd, long off)'),
		munmap: c('munmap', 'int munmap(void *at, size_t len)'),
		setns: c('setns', 'int setns(int fd, int kind)'),
		ifIndex: c('ifIndex', 'uint if_nametoindex(const char *n)'),
		ifName: c('ifName', 'const char *if_indextoname(uint i, void *out)'),
		fcntl: c('fcntl', 'int fcntl(int fd, int cmd, long arg)'),
		closeFd: c('closeFd', 'int close(int fd)'),
		pageSize: c('pageSize', 'int getpagesize()'),
		mount: c('mount', 'int mount(const char *s, const char *t, const char *ty, ulong f, void *d)'),
		socket: c('socket', 'int socket(int d, int t, int p)'),
		getsockopt: c('getsockopt', 'int getsockopt(int fd, int l, int n, void *v, void *len)'),
		setsockopt: c('setsockopt', 'int setsockopt(int fd, int l, int n, void *v, uint32_t len)'),
		bind: c('bind', 'int bind(int fd, void *a, uint32_t len)'),
		listen: c('listen', 'int listen(int fd, int n)'),
		connect: c('connect', 'int connect(int fd, void *a, uint32_t len)'),
		ioctl: c('ioctl', 'int ioctl(int fd, ulong r, void *a)'),
		getsockname: c('getsockname', 'int getsockname(int fd, void *a, void *len)'),
		sendmmsg: c('sendmmsg', 'int sendmmsg(int fd, void *m, uint n, int f)'),
		recvmmsg: c('recvmmsg', 'int recvmmsg(int fd, void *m, uint n, int f, void *t)'),
		recvmsg: c('recvmsg', 'long recvmsg(int fd, void *m, int f)'),
		clockGettime: c('clockGettime', 'int clock_gettime(int c, void *t)'),
		errno: () => koffi.errno(),
	};
	// Process-global, and a callback would deadlock with Workers: logs come through per-program buffers instead.
	(bpf.func('void *libbpf_set_print(void *fn)') as unknown as (fn: null) => unknown)(null);
	return n;
}

/** The address of a buffer's first byte. Valid while the buffer is reachable. */
export const addressOf = (bytes: Uint8Array): bigint => BigInt(koffi.address(bytes));

/** An ArrayBuffer over native memory. Nothing keeps that memory alive but its owner. */
export const viewOf = (at: bigint, length: number): ArrayBuffer => koffi.view(at, length);

/** Calls back whenever the fd is readable; keeps the event loop alive until unref() or close(). */
export function pollReadable(fd: number, onReadable: () => void): { ref(): void; unref(): void; close(): void } {
	return koffi.node.poll(fd, { readable: true }, onReadable);
}
