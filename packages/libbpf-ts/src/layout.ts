// C structs as offset tables. test/layout.test.ts compares every one with the C compiler's offsetof.

const SIZES = { u8: 1, u16: 2, u32: 4, i32: 4, u64: 8, ptr: 8, size: 8, name16: 16, tag8: 8 } as const;
type Scalar = keyof typeof SIZES;

export interface Layout<F extends string = string> {
	/** The C type, for the test. */
	readonly c: string;
	readonly size: number;
	readonly at: Readonly<Record<F, number>>;
	readonly kind: Readonly<Record<F, Scalar>>;
}

/** Natural alignment, as C lays it out. */
function layout<F extends string>(c: string, fields: Record<F, Scalar>, size?: number): Layout<F> {
	const at = {} as Record<F, number>;
	let off = 0;
	let widest = 1;
	for (const [name, kind] of Object.entries<Scalar>(fields) as [F, Scalar][]) {
		const align = kind === 'name16' || kind === 'tag8' ? 1 : SIZES[kind];
		widest = Math.max(widest, align);
		off = Math.ceil(off / align) * align;
		at[name] = off;
		off += SIZES[kind];
	}
	return { c, size: size ?? Math.ceil(off / widest) * widest, at, kind: fields };
}

export const OPEN_OPTS = layout('struct bpf_object_open_opts', {
	sz: 'size',
	object_name: 'ptr',
	relaxed_maps: 'u8',
	pin_root_path: 'ptr',
	removed: 'u32',
	kconfig: 'ptr',
	btf_custom_path: 'ptr',
	kernel_log_buf: 'ptr',
	kernel_log_size: 'size',
	kernel_log_level: 'u32',
});
export const MAP_CREATE_OPTS = layout('struct bpf_map_create_opts', {
	sz: 'size',
	btf_fd: 'u32',
	btf_key_type_id: 'u32',
	btf_value_type_id: 'u32',
	btf_vmlinux_value_type_id: 'u32',
	inner_map_fd: 'u32',
	map_flags: 'u32',
	map_extra: 'u64',
	numa_node: 'u32',
	map_ifindex: 'u32',
});
export const BATCH_OPTS = layout('struct bpf_map_batch_opts', { sz: 'size', elem_flags: 'u64', flags: 'u64' });
export const TEST_RUN_OPTS = layout('struct bpf_test_run_opts', {
	sz: 'size',
	data_in: 'ptr',
	data_out: 'ptr',
	data_size_in: 'u32',
	data_size_out: 'u32',
	ctx_in: 'ptr',
	ctx_out: 'ptr',
	ctx_size_in: 'u32',
	ctx_size_out: 'u32',
	retval: 'u32',
	repeat: 'i32',
	duration: 'u32',
	flags: 'u32',
	cpu: 'u32',
	batch_size: 'u32',
});
export const TC_HOOK = layout('struct bpf_tc_hook', {
	sz: 'size',
	ifindex: 'i32',
	attach_point: 'u32',
	parent: 'u32',
});
export const TC_OPTS = layout('struct bpf_tc_opts', {
	sz: 'size',
	prog_fd: 'i32',
	flags: 'u32',
	prog_id: 'u32',
	handle: 'u32',
	priority: 'u32',
});
export const LINK_CREATE_OPTS = layout('struct bpf_link_create_opts', { sz: 'size', flags: 'u32' });
export const PROG_INFO = layout('struct bpf_prog_info', {
	type: 'u32',
	id: 'u32',
	tag: 'tag8',
	jited_prog_len: 'u32',
	xlated_prog_len: 'u32',
	jited_prog_insns: 'u64',
	xlated_prog_insns: 'u64',
	load_time: 'u64',
	created_by_uid: 'u32',
	nr_map_ids: 'u32',
	map_ids: 'u64',
	name: 'name16',
	ifindex: 'u32',
	gpl: 'u32',
	netns_dev: 'u64',
	netns_ino: 'u64',
	nr_jited_ksyms: 'u32',
	nr_jited_func_lens: 'u32',
	jited_ksyms: 'u64',
	jited_func_lens: 'u64',
	btf_id: 'u32',
	func_info_rec_size: 'u32',
	func_info: 'u64',
	nr_func_info: 'u32',
	nr_line_info: 'u32',
	line_info: 'u64',
	jited_line_info: 'u64',
	nr_jited_line_info: 'u32',
	line_info_rec_size: 'u32',
	jited_line_info_rec_size: 'u32',
	nr_prog_tags: 'u32',
	prog_tags: 'u64',
	run_time_ns: 'u64',
	run_cnt: 'u64',
	recursion_misses: 'u64',
	verified_insns: 'u32',
	attach_btf_obj_id: 'u32',
	attach_btf_id: 'u32',
});
export const MAP_INFO = layout('struct bpf_map_info', {
	type: 'u32',
	id: 'u32',
	key_size: 'u32',
	value_size: 'u32',
	max_entries: 'u32',
	map_flags: 'u32',
	name: 'name16',
	ifindex: 'u32',
	btf_vmlinux_value_type_id: 'u32',
	netns_dev: 'u64',
	netns_ino: 'u64',
	btf_id: 'u32',
	btf_key_type_id: 'u32',
	btf_value_type_id: 'u32',
	pad: 'u32',
	map_extra: 'u64',
});
export const BTF_INFO = layout('struct bpf_btf_info', {
	btf: 'u64',
	btf_size: 'u32',
	id: 'u32',
	name: 'u64',
	name_len: 'u32',
	kernel_btf: 'u32',
});
/** The union's members lie over each other: `u0` and `u8` are its first two words (see readLinkInfo). */
export const LINK_INFO = layout('struct bpf_link_info', { type: 'u32', id: 'u32', prog_id: 'u32', u: 'u64' }, 64);
/** bpf(2) attributes. Sizes are ours: the kernel takes zeros for what an older caller left out. */
export const ATTR_LINK_CREATE = layout(
	'union bpf_attr.link_create',
	{
		prog_fd: 'u32',
		target: 'u32',
		attach_type: 'u32',
		flags: 'u32',
		/** tcx: fd or id of the anchor. */
		relative: 'u32',
		pad: 'u32',
		expected_revision: 'u64',
	},
	64,
);
export const ATTR_LINK_UPDATE = layout('union bpf_attr.link_update', {
	link_fd: 'u32',
	new_prog_fd: 'u32',
	flags: 'u32',
	old_prog_fd: 'u32',
});
export const ATTR_GET_ID = layout('union bpf_attr', { id: 'u32', next_id: 'u32', open_flags: 'u32' });
export const ATTR_INFO = layout('union bpf_attr.info', { bpf_fd: 'u32', info_len: 'u32', info: 'u64' });
export const ATTR_QUERY = layout(
	'union bpf_attr.query',
	{
		target: 'u32',
		attach_type: 'u32',
		query_flags: 'u32',
		attach_flags: 'u32',
		prog_ids: 'u64',
		prog_cnt: 'u32',
		pad: 'u32',
		prog_attach_flags: 'u64',
		link_ids: 'u64',
		link_attach_flags: 'u64',
		revision: 'u64',
	},
	64,
);

/** A zeroed struct with named access. Its memory stays at one address. */
export class Struct<F extends string> {
	readonly bytes: Uint8Array;
	private readonly dv: DataView;
	constructor(
		readonly layout: Layout<F>,
		values: Partial<Record<F, number | bigint>> = {},
	) {
		this.bytes = new Uint8Array(new ArrayBuffer(layout.size));
		this.dv = new DataView(this.bytes.buffer);
		if ('sz' in layout.at) this.set('sz' as F, layout.size);
		for (const [k, v] of Object.entries(values)) this.set(k as F, v as number | bigint);
	}
	set(field: F, v: number | bigint): this {
		const at = this.layout.at[field];
		switch (this.layout.kind[field]) {
			case 'u8':
				this.dv.setUint8(at, Number(v));
				break;
			case 'u16':
				this.dv.setUint16(at, Number(v), true);
				break;
			case 'u32':
			case 'i32':
				this.dv.setUint32(at, Number(v), true);
				break;
			default:
				this.dv.setBigUint64(at, BigInt(v), true);
		}
		return this;
	}
	num(field: F): number {
		const at = this.layout.at[field];
		switch (this.layout.kind[field]) {
			case 'u8':
				return this.dv.getUint8(at);
			case 'u16':
				return this.dv.getUint16(at, true);
			case 'i32':
				return this.dv.getInt32(at, true);
			case 'u32':
				return this.dv.getUint32(at, true);
			default:
				return Number(this.dv.getBigUint64(at, true));
		}
	}
	big(field: F): bigint {
		return this.dv.getBigUint64(this.layout.at[field], true);
	}
	text(field: F): string {
		const at = this.layout.at[field];
		const end = this.bytes.indexOf(0, at);
		return Buffer.from(this.bytes.subarray(at, end < 0 || end > at + 16 ? at + 16 : end)).toString();
	}
	u32At(off: number): number {
		return this.dv.getUint32(off, true);
	}
	u64At(off: number): bigint {
		return this.dv.getBigUint64(off, true);
	}
}
