/** Who is woken and who may rest (src/mesh/sources/docker-scale.ts), with an engine that keeps one service. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { parseLabels } from '../../src/mesh/sources/docker-labels.js';
import { createScaler, type Scaler } from '../../src/mesh/sources/docker-scale.js';
import type { Membership, Task } from '../../src/mesh/types.js';
import { waitFor } from '../support/wait.js';

const test = suite('scale from zero');
const IDLE_MS = 300;

class OneService {
	replicas: number;
	labels: Record<string, string> = { 'beeline.scale-from-zero': '10s' };
	index = 7;
	posts: string[] = [];
	refuse: string | undefined;
	constructor(replicas: number) {
		this.replicas = replicas;
	}
	async get(path: string): Promise<unknown> {
		assert.is(path, '/services/web');
		return {
			ID: 'w1',
			Version: { Index: this.index },
			Spec: {
				Name: 'web',
				Labels: this.labels,
				Mode: { Replicated: { Replicas: this.replicas } },
				TaskTemplate: { X: 1 },
			},
		};
	}
	async post(path: string, body: unknown): Promise<unknown> {
		this.posts.push(path);
		if (this.refuse !== undefined) throw new Error(this.refuse);
		const spec = body as {
			Labels: Record<string, string>;
			Mode: { Replicated: { Replicas: number } };
			TaskTemplate: unknown;
		};
		assert.equal(spec.TaskTemplate, { X: 1 });
		this.labels = spec.Labels;
		this.replicas = spec.Mode.Replicated.Replicas;
		this.index++;
		return {};
	}
}

const task: Task = { id: 't', node: 'node1', weight: 1, state: 'active' };
const membership = (tasks: readonly Task[], rests = true): Membership => ({
	nodes: [
		{ name: 'node1', id: 'n1', address: '192.0.2.1', drained: false },
		{ name: 'node2', id: 'n2', address: '192.0.2.2', drained: false },
	],
	networks: [],
	services: [
		{
			name: 'web',
			ports: [{ published: 80, target: 80, protocol: 'tcp' }],
			options: parseLabels('web', {}).options,
			tasks,
			...(rests ? { scaleFromZero: { idleMs: IDLE_MS } } : {}),
		},
	],
});

let scaler: Scaler | undefined;
const logged: string[] = [];
const open = (engine: OneService): Scaler => {
	logged.length = 0;
	scaler = createScaler({ engine, log: (_level, text) => logged.push(text), tickMs: 20, heardMs: 200 });
	return scaler;
};
test.after.each(() => scaler?.close());

/** Both nodes speak, as agents do all the time. */
function speak(s: Scaler, ms: number, busy: readonly string[] = []): Promise<void> {
	const timer = setInterval(() => {
		for (const n of ['n1', 'n2']) s.demand(n, { wanted: [], busy });
	}, 20);
	return new Promise((done) =>
		setTimeout(() => {
			clearInterval(timer);
			done();
		}, ms),
	);
}

test('a service that nobody uses loses its tasks, and its replicas are remembered; who comes brings them back', async () => {
	const engine = new OneService(3);
	const s = open(engine);
	s.update(membership([task]), 0);
	await speak(s, IDLE_MS + 400);
	assert.equal([engine.replicas, engine.labels['beeline.replicas']], [0, '3']);
	assert.equal(engine.posts, ['/services/w1/update?version=7']);
	s.update(membership([]), 0);
	s.demand('n2', { wanted: ['web', 'stranger'], busy: [] });
	await waitFor('it to be started', () => engine.replicas === 3);
	assert.equal(engine.labels, { 'beeline.scale-from-zero': '10s' });
	// Others that come meanwhile ask for nothing more.
	s.demand('n1', { wanted: ['web'], busy: [] });
	await new Promise((done) => setTimeout(done, 100));
	assert.is(engine.posts.length, 2);
});

test('one that is used stays', async () => {
	const engine = new OneService(2);
	const s = open(engine);
	s.update(membership([task]), 0);
	await speak(s, IDLE_MS + 400, ['web']);
	assert.equal([engine.replicas, engine.posts], [2, []]);
});

test('while a node says nothing nobody rests, and the operator is told', async () => {
	const engine = new OneService(2);
	const s = open(engine);
	s.update(membership([task]), 0);
	const timer = setInterval(() => s.demand('n1', { wanted: [], busy: [] }), 20);
	await new Promise((done) => setTimeout(done, IDLE_MS + 400));
	clearInterval(timer);
	assert.equal(engine.posts, []);
	assert.match(s.problems().join(), /do not go to rest: no agent of .*node2/);
});

test('without the label, or started by somebody else, it is left alone', async () => {
	const engine = new OneService(2);
	const s = open(engine);
	s.update(membership([task]), 0);
	s.update(membership([task], false), 0);
	await speak(s, IDLE_MS + 300);
	s.update(membership([]), 0);
	s.demand('n1', { wanted: ['web'], busy: [] });
	await new Promise((done) => setTimeout(done, 100));
	assert.equal([engine.replicas, engine.posts], [2, []]);
});

test('managers act one after another, so one does', async () => {
	const engine = new OneService(0);
	const s = open(engine);
	s.update(membership([]), 2);
	s.demand('n1', { wanted: ['web'], busy: [] });
	await new Promise((done) => setTimeout(done, 300));
	assert.equal(engine.posts, [], 'it is the turn of others');
	await waitFor('its own turn', () => engine.replicas === 1);
});

test('a refusal is told once, and tried again', async () => {
	const engine = new OneService(0);
	engine.refuse = 'POST /services/w1/update: 500 no leader';
	const s = open(engine);
	s.update(membership([]), 0);
	s.demand('n1', { wanted: ['web'], busy: [] });
	const told = () => s.problems().filter((p) => /service web could not be scaled: .*no leader/.test(p)).length;
	await waitFor('the refusal', () => told() === 1);
	engine.refuse = 'update out of sequence';
	await new Promise((done) => setTimeout(done, 1000));
	s.demand('n1', { wanted: ['web'], busy: [] });
	await waitFor('the second attempt', () => engine.posts.length === 2);
	engine.refuse = undefined;
	await new Promise((done) => setTimeout(done, 1000));
	s.demand('n1', { wanted: ['web'], busy: [] });
	await waitFor('it to be started', () => engine.replicas === 1);
	assert.is(told(), 0);
	assert.is(logged.filter((l) => /could not be scaled/.test(l)).length, 1);
});

test('the label', () => {
	const of = (text: string) => {
		const { scaleFromZero, problems } = parseLabels('web', {
			'beeline.scale-from-zero': text,
			'beeline.replicas': '2',
		});
		return problems.length > 0 ? problems.map((p) => p.reason).join() : scaleFromZero;
	};
	assert.equal(of('true'), { idleMs: 900_000 });
	assert.equal(of('10m'), { idleMs: 600_000 });
	assert.is(of('false'), undefined);
	for (const bad of ['', 'yes', '5s', '-1m'])
		assert.match(String(of(bad)), /^beeline\.scale-from-zero is .*expected true, false, or .*at least 10s\)$/);
});

test.run();
