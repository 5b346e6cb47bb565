import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type MapOfMaps, open, type RingBuffer, type TypedMap } from '../src/index.js';
import { compile, when, why } from './helpers.js';

// What OpenObject.shape() writes, shortened: the assignments below are checked by the compiler.
interface Counter {
	maps: {
		recent: { kind: 'lru_hash'; key: number; value: bigint };
		stats: { kind: 'percpu_array'; key: number; value: bigint };
		rings: { kind: 'array_of_maps'; key: number; value: number; innerKey: number; innerValue: number };
		events: { kind: 'ringbuf'; key: never; value: Uint8Array };
	};
	programs: 'xdp_main' | 'tc_main';
	vars: { action: number; counter: bigint };
}

when(test, why('root', 'clang'), 'a shape types maps, programs and variables', () => {
	using b = open<Counter>(compile('all.bpf.c')).setConst('action', 1).setMaxEntries('recent', 64).loadSync();
	const recent: TypedMap<number, bigint> = b.maps.recent;
	const stats: TypedMap<number, bigint[]> = b.maps.stats;
	const rings: MapOfMaps<number, number, number> = b.maps.rings;
	const events: RingBuffer<Uint8Array> = b.maps.events;
	recent.set(1, 2n);
	assert.is(recent.get(1), 2n);
	assert.is(stats.get(0)?.[0], 0n);
	using inner = rings.createInner(4);
	assert.is(inner.get(0), 0);
	assert.is(
		events.drain(() => {}),
		0,
	);
	const verdict: number = b.programs.xdp_main.testRun({ data: new Uint8Array(64) }).retval;
	assert.is(verdict, 1);
	const n: bigint = b.vars.counter.get();
	assert.is(n, 1n);
});

test.run();
