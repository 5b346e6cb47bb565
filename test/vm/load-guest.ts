/** Inside a guest of ./run: loads and attaches the whole datapath under its kernel. argv: directory of compiled objects. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { OBJECTS, openDatapath } from '../../src/loader/datapath.js';

const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });

ip('link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'up1');
ip('link', 'add', 'task0', 'type', 'veth', 'peer', 'name', 'task1');
for (const name of ['up0', 'up1', 'task0', 'task1']) ip('link', 'set', name, 'up');
const index = (name: string): number => Number(readFileSync(`/sys/class/net/${name}/ifindex`, 'utf8'));

const d = await openDatapath({ pinRoot: '/sys/fs/bpf/beeline', objectDir: process.argv[2] });
d.commit();
const uplink = d.attachUplink({ ifindex: index('up0'), name: 'up0', mode: 'native', mtu: 1500 });
const jumbo = d.attachUplink({ ifindex: index('up1'), name: 'up1', mode: 'native', mtu: 9000 });
const endpoint = d.attachEndpoint(index('task0'));
const overlay = d.attachOverlay(index('task1'));
d.attachSocket('/sys/fs/cgroup');
const { programs, attachments } = d.status();
console.log(
	JSON.stringify({
		release: release(),
		objects: OBJECTS.length,
		programs: programs.map((p) => p.name),
		attachments: attachments.length,
		uplink,
		jumbo,
		via: [endpoint.via, overlay.via],
		left: d.takeDown().left,
		programsLeft: (JSON.parse(execFileSync('bpftool', ['-j', 'prog', 'show'], { encoding: 'utf8' })) as unknown[])
			.length,
		mapsLeft: (JSON.parse(execFileSync('bpftool', ['-j', 'map', 'show'], { encoding: 'utf8' })) as unknown[]).length,
	}),
);
