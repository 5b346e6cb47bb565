/** Runs in a Worker of libbpf-ts: a socket to a name server, of the namespace that asks it. Its fd is the process's. */
import { isIPv4 } from 'node:net';
import { tcpTo, udpSocket, withinNetns } from 'libbpf-ts';

export interface AskJob {
	readonly netns: string;
	readonly via: 'udp' | 'tcp';
	readonly address: string;
	readonly port: number;
}

export const run = (job: AskJob): number =>
	withinNetns(job.netns, () =>
		job.via === 'udp' ? udpSocket(isIPv4(job.address) ? 4 : 6) : tcpTo(job.address, job.port),
	);
