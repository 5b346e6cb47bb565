import { unlinkSync } from 'node:fs';
import { UsageError } from './errors.js';
import { native } from './ffi.js';
import { check, closeFd, dupFd } from './sys.js';

/** A map or a program, by an fd of it. */
export abstract class Owned implements Disposable {
	private handle: number;

	/**
	 * @param owned dispose() closes the fd. What a BpfObject loaded belongs to the object.
	 * @param unusable why there may be no fd
	 */
	protected constructor(
		private readonly what: 'map' | 'program',
		fd: number,
		readonly name: string,
		private readonly owned: boolean,
		private readonly unusable = 'is closed',
	) {
		this.handle = fd;
	}

	get fd(): number {
		if (this.handle < 0) throw new UsageError(`${this.what} ${this.name} ${this.unusable}`);
		return this.handle;
	}
	/** The path must lie on a bpffs. */
	pin(path: string): void {
		check(
			`pin ${this.what} ${this.name} to ${path}`,
			native().pin(this.fd, path),
			'is the directory there, on a bpffs, and the name free?',
		);
	}
	unpin(path: string): void {
		unlinkSync(path);
	}
	/** An fd of its own, which the caller closes. */
	dup(): number {
		return dupFd(this.fd);
	}
	/** @internal The object that owned the fd has closed it. */
	forget(): void {
		this.handle = -1;
	}
	[Symbol.dispose](): void {
		if (!this.owned || this.handle < 0) return;
		closeFd(this.handle);
		this.handle = -1;
	}
}
