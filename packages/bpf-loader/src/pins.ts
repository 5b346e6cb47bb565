import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Names below a pinRoot. Everything that a later process must know is in them, for it may have nothing but the pins:
 *
 *	maps/NAME
 *	programs/NAME-DIGEST-ATTACHTYPE          DIGEST names code, constants and maps: the same digest is the same program
 *	links/SLOT-IFINDEX-MODE                  XDP; MODE is native or generic
 *	links/SLOT-IFINDEX-tcx
 *	links/SLOT-CGROUPID-cgroup
 *	clsact/SLOT-IFINDEX-DIRECTION-PRIORITY-HANDLE-NETNS     a pin of the filter's program, for the filter has no pin
 *	abi-N/                                   the meaning of the maps' rows
 *	next/                                    what a commit has not yet moved in place; of no use after a crash
 *
 * bpffs allows no dots in names.
 */
export interface PinPaths {
	readonly root: string;
	readonly maps: string;
	readonly programs: string;
	readonly links: string;
	readonly clsact: string;
	readonly next: string;
}

export function pinPaths(root: string): PinPaths {
	const at = (name: string) => join(root, name);
	return {
		root,
		maps: at('maps'),
		programs: at('programs'),
		links: at('links'),
		clsact: at('clsact'),
		next: at('next'),
	};
}

export type LinkPinKind = 'native' | 'generic' | 'tcx' | 'cgroup';

export interface LinkPin {
	readonly path: string;
	readonly slot: string;
	/** Interface index, or for cgroups the cgroup's id (the inode of its directory). */
	readonly target: string;
	readonly kind: LinkPinKind;
}

export interface ClsactPin {
	readonly path: string;
	readonly slot: string;
	readonly ifindex: number;
	readonly direction: 'ingress' | 'egress';
	readonly priority: number;
	readonly handle: number;
	/** Inode of the network namespace in which `ifindex` counts. */
	readonly netns: string;
}

export interface ProgramPin {
	readonly path: string;
	readonly name: string;
	readonly digest: string;
	/** enum bpf_attach_type */
	readonly attachType: number;
}

export function list(dir: string): readonly string[] {
	return existsSync(dir) ? readdirSync(dir).sort() : [];
}

export const linkPinName = (slot: string, target: string | number, kind: LinkPinKind) => `${slot}-${target}-${kind}`;

export function linkPins(p: PinPaths): readonly LinkPin[] {
	return list(p.links).flatMap((file) => {
		const m = /^(.+)-(\d+)-(native|generic|tcx|cgroup)$/.exec(file);
		return m ? [{ path: join(p.links, file), slot: m[1], target: m[2], kind: m[3] as LinkPinKind }] : [];
	});
}

export const clsactPinName = (c: Omit<ClsactPin, 'path'>) =>
	`${c.slot}-${c.ifindex}-${c.direction}-${c.priority}-${c.handle}-${c.netns}`;

export function clsactPins(p: PinPaths): readonly ClsactPin[] {
	return list(p.clsact).flatMap((file) => {
		const m = /^(.+)-(\d+)-(ingress|egress)-(\d+)-(\d+)-(\d+)$/.exec(file);
		return m
			? [
					{
						path: join(p.clsact, file),
						slot: m[1],
						ifindex: Number(m[2]),
						direction: m[3] as 'ingress' | 'egress',
						priority: Number(m[4]),
						handle: Number(m[5]),
						netns: m[6],
					},
				]
			: [];
	});
}

export const programPinName = (name: string, digest: string, attachType: number) => `${name}-${digest}-${attachType}`;

export function programPins(p: PinPaths): readonly ProgramPin[] {
	return list(p.programs).flatMap((file) => {
		const m = /^(.+)-([0-9a-f]+)-(\d+)$/.exec(file);
		return m ? [{ path: join(p.programs, file), name: m[1], digest: m[2], attachType: Number(m[3]) }] : [];
	});
}

/** The number of the `abi-N` directory; undefined where nothing was committed yet. */
export function pinnedAbi(p: PinPaths): number | undefined {
	const found = list(p.root).flatMap((f) => /^abi-(\d+)$/.exec(f)?.[1] ?? []);
	return found.length ? Number(found[0]) : undefined;
}

/** Inode of the main thread's network namespace. */
export function netnsInode(): string {
	return String(statSync('/proc/self/ns/net').ino);
}
