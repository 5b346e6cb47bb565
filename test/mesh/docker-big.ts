/** The engine of docker-scale.test.ts: prints its socket, serves until it is ended. Answers are written once. */

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { recorded } from './docker-engine.js';

interface Made {
	[key: string]: unknown;
}

const [services, tasks, nodes] = process.argv.slice(2).map(Number);
const id = (kind: string, n: number): string => `${kind}${String(n).padStart(25 - kind.length, '0')}`;
const [node] = recorded<Made[]>('steady/nodes');
const service = recorded<Made[]>('steady/services').find((s) => (s.Spec as Made).Name === 'webvip') as Made;
const [task] = recorded<Made[]>('steady/tasks');
// As an engine writes it: with the whole specification, and each network's, in every task.
const full = {
	...task,
	Spec: (service.Spec as Made).TaskTemplate,
	NetworksAttachments: [1, 2].map(() => ({
		Network: { ...recorded<Made[]>('steady/networks')[0] },
		Addresses: ['10.0.0.9/24'],
	})),
};
const answers: Record<string, string> = {
	'/version': JSON.stringify(recorded('version')),
	'/nodes': JSON.stringify(
		Array.from({ length: nodes }, (_, i) => ({
			...node,
			ID: id('n', i),
			Description: { Hostname: `node${i}` },
			Status: { State: 'ready', Addr: `10.1.${i >> 8}.${i & 255}` },
		})),
	),
	'/services': JSON.stringify(
		Array.from({ length: services }, (_, i) => ({
			...service,
			ID: id('s', i),
			Spec: { ...(service.Spec as Made), Name: `service${i}` },
			Endpoint: { Ports: [{ Protocol: 'tcp', TargetPort: 80, PublishedPort: 10000 + i, PublishMode: 'ingress' }] },
		})),
	),
	'/networks': JSON.stringify(recorded('steady/networks')),
	'/tasks': JSON.stringify(
		Array.from({ length: services * tasks }, (_, i) => ({
			...full,
			ID: id('t', i),
			ServiceID: id('s', i % services),
			NodeID: id('n', i % nodes),
		})),
	),
};
const directory = mkdtempSync(join(tmpdir(), `bl${process.pid}-big-`));
process.on('exit', () => rmSync(directory, { recursive: true, force: true }));
process.on('SIGTERM', () => process.exit(0));
const socket = join(directory, 'docker.sock');
createServer((ask, answer) => {
	const path = new URL(ask.url ?? '/', 'http://x').pathname.replace(/^\/v1\.\d+/, '');
	answer.end(answers[path] ?? '[]');
}).listen(socket, () => {
	console.error(`  /tasks is ${(answers['/tasks'].length / 1e6).toFixed(0)} MB`);
	console.log(socket);
});
