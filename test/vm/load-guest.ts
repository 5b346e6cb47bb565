/**
 * Inside a guest of ./run: loads and attaches the whole datapath under its kernel, then again where the kernel's conntrack is
 * there. argv: directory of compiled objects.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { OBJECTS, openDatapath } from '../../src/loader/datapath.js';
import { waitFor } from '../support/wait.js';

const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });

ip('link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'up1');
ip('link', 'add', 'task0', 'type', 'veth', 'peer', 'name', 'task1');
for (const name of ['up0', 'up1', 'task0', 'task1']) ip('link', 'set', name, 'up');
const index = (name: string): number => Number(readFileSync(`/sys/class/net/${name}/ifindex`, 'utf8'));

const options = { pinRoot: '/sys/fs/bpf/beeline', objectDir: process.argv[2] };
let d = await openDatapath(options);
d.commit();
const uplink = d.attachUplink({ ifindex: index('up0'), name: 'up0', mode: 'native', mtu: 1500 });
const jumbo = d.attachUplink({ ifindex: index('up1'), name: 'up1', mode: 'native', mtu: 9000 });
const endpoint = d.attachEndpoint(index('task0'));
const overlay = d.attachOverlay(index('task1'));
d.attachSocket('/sys/fs/cgroup');
const id = () => d.status().programs.find((p) => p.name === 'uplink_xdp')?.id;
const first = { asksConntrack: d.asksConntrack, id: id() };
// As dockerd or a rule that masquerades would.
execFileSync('modprobe', ['nf_conntrack'], { stdio: 'pipe' });
d.close();
d = await openDatapath(options);
d.commit();
const second = { asksConntrack: d.asksConntrack, id: id() };
const { programs, attachments } = d.status();
const { left } = d.takeDown();
const count = (what: 'prog' | 'map'): number =>
	(JSON.parse(execFileSync('bpftool', ['-j', what, 'show'], { encoding: 'utf8' })) as unknown[]).length;
// The kernel frees what was let go of in a time of its own.
await waitFor('the kernel to free programs and maps', () => count('prog') + count('map') === 0).catch(() => undefined);
console.log(
	JSON.stringify({
		release: release(),
		objects: OBJECTS.length,
		conntrack: {
			first: first.asksConntrack,
			second: second.asksConntrack,
			switched: first.id !== second.id,
			readable: existsSync('/proc/net/nf_conntrack'),
		},
		programs: programs.map((p) => p.name),
		attachments: attachments.length,
		uplink,
		jumbo,
		via: [endpoint.via, overlay.via],
		left,
		programsLeft: count('prog'),
		mapsLeft: count('map'),
	}),
);
