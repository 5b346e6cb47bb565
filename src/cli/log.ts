/** Where the agent's log goes: JSON lines on standard output. */
import { type Logger, pino } from 'pino';

/** Lines that wait for room where they cannot be written; what comes then is lost. */
const MAX_WAITING_BYTES = 1 << 20;

/**
 * A disk that is full under the log is no reason to stop: what waits is written when there is room again.
 * @param node of every line
 */
export function createLog(level: string, node: string): Logger {
	const out = pino.destination({ dest: 1, sync: true, maxLength: MAX_WAITING_BYTES });
	out.on('error', () => undefined);
	return pino({ level, base: { node } }, out);
}
