import { detachAll, type TakenDown } from 'bpf-loader';
import { RUN_DIR } from './datapath.js';

/**
 * Removes every program, link, filter, map and pin below `pinRoot`, from the pins alone. Nothing there is no error.
 * `left` of the result names what could not be removed, a sentence each.
 * @throws LoaderError LOCKED while an agent runs on that pinRoot
 */
export function takeDown(pinRoot: string, o: { readonly runDir?: string } = {}): TakenDown {
	return detachAll(pinRoot, { runDir: o.runDir ?? RUN_DIR });
}
