import { type ChildProcess, spawn } from 'node:child_process';

/** A node process that was started somewhere else and answers { id, op, args } with { id, result } or { id, error }. */
export class IpcChild {
	readonly #process: ChildProcess;
	#next = 1;
	readonly #waiting = new Map<number, { done: (v: unknown) => void; fail: (e: Error) => void }>();

	/** @param command the whole of it, node included; what stands before must hand fds on (nsenter, bash's exec do) */
	constructor(command: readonly [string, ...string[]], env: Readonly<Record<string, string>> = {}) {
		this.#process = spawn(command[0], command.slice(1), {
			stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
			env: { ...process.env, ...env },
		});
		this.#process.on('message', (m: { id: number; result?: unknown; error?: string }) => {
			const w = this.#waiting.get(m.id);
			this.#waiting.delete(m.id);
			if (m.error !== undefined) w?.fail(new Error(m.error));
			else w?.done(m.result);
		});
		this.#process.on('exit', (code, signal) => {
			for (const w of this.#waiting.values()) w.fail(new Error(`${command.join(' ')} ended (${code ?? signal})`));
			this.#waiting.clear();
		});
	}

	call<T>(op: string, args?: unknown): Promise<T> {
		const id = this.#next++;
		return new Promise<T>((done, fail) => {
			this.#waiting.set(id, { done: done as (v: unknown) => void, fail });
			this.#process.send({ id, op, args });
		});
	}

	/** Not asked for its opinion; resolves when it has gone. */
	kill(): Promise<void> {
		if (this.#process.exitCode !== null || this.#process.signalCode !== null) return Promise.resolve();
		return new Promise((done) => {
			this.#process.once('exit', () => done());
			this.#process.kill('SIGKILL');
		});
	}
}
