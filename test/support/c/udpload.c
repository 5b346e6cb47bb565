/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP questions, and what came back.
 *
 *	udpload [options] ADDRESS:PORT...       sockets take the targets in turn; each socket is connected, but with -u
 *
 *	-n N       questions on each socket (0: until -d or SIGTERM); default 1
 *	-c N       sockets; default 1
 *	-i MS      pause between two questions of a socket; default 0: as soon as the answer is there
 *	-d MS      ends after MS
 *	-t MS      limit of each answer; default 1000
 *	-S N       bytes of a question (64 to 65000); default 64
 *	-R N       bytes of a reply; default as the question
 *	-g N       replies, sent at once with UDP_SEGMENT; default 1
 *	-D HOW     do: DF and the path's MTU is obeyed; dont (default); probe: DF, the path's MTU is ignored
 *	-s ADDR    source address; -p PORT: source port (the same for each socket)
 *	-u         sockets are not connected: each question names its target
 *
 * Prints one JSON object: sent, questions answered wholly, replies, lost, corrupt, moved (sockets whose backend changed), errors by
 * name (EMSGSIZE and what ICMP told), mtu (smallest that ICMP told, 0: none), backends, clients, sources (whom
 * answers seemed to be from), latencyUs, durationMs.
 */
#include "udp.h"
#include <linux/errqueue.h>

struct questioner {
	int fd, target, backend;
	uint32_t sequence, parts;
	int waiting;
	uint64_t asked_us, next_us;
	long asked;
};

static int sockets = 1, pause_ms, duration_ms, timeout_ms = 1000, size = 64, reply_size, replies = 1, source_port;
static long questions = 1;
static const char *df = "dont";
static union address source, targets[256];
static int target_count;
static struct tally errors, backends, clients, sources;
static int unconnected;
static struct latencies latencies;
static uint64_t sent, answered, replied, lost, corrupt, moved;
static uint32_t mtu;

static void read_errors(struct questioner *q)
{
	for (;;) {
		char control[512];
		uint8_t data[2048];
		struct iovec vector = { data, sizeof(data) };
		struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof(control) };

		if (recvmsg(q->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			return;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
			struct sock_extended_err error;
			char name[64];

			if (!(c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) &&
			    !(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
				continue;
			memcpy(&error, CMSG_DATA(c), sizeof(error));
			snprintf(name, sizeof(name), "%s%s", error.ee_origin == SO_EE_ORIGIN_LOCAL ? "" : "icmp_",
				 strerrorname_np(error.ee_errno));
			tally_add(&errors, name, 1);
			if (error.ee_errno == EMSGSIZE && error.ee_info && (!mtu || error.ee_info < mtu))
				mtu = error.ee_info;
		}
	}
}

static void ask(struct questioner *q, uint64_t now)
{
	static uint8_t data[65536];
	struct message *m = (struct message *)data;

	memset(m, 0, sizeof(*m));
	m->sequence = ++q->sequence;
	m->reply_size = reply_size;
	m->reply_count = replies > 1 ? replies : 0;
	fill(data, size);
	q->parts = 0;
	q->asked_us = now;
	q->next_us = now + (uint64_t)pause_ms * 1000;
	q->asked++;
	sent++;
	union address *to = &targets[q->target];

	if ((unconnected ? sendto(q->fd, data, size, 0, &to->any, address_length(to)) : send(q->fd, data, size, 0)) < 0) {
		tally_add(&errors, strerrorname_np(errno), 1);
		lost++;
		read_errors(q);
		/* An error is an answer: the next question may go, after a moment. */
		if (q->next_us < now + 2000)
			q->next_us = now + 2000;
		return;
	}
	q->waiting = 1;
}

static void hear(struct questioner *q, uint64_t now)
{
	static uint8_t data[65536];

	for (;;) {
		struct message *m = (struct message *)data;
		union address from = { 0 };
		socklen_t from_length = sizeof(from);
		ssize_t n = recvfrom(q->fd, data, sizeof(data), MSG_DONTWAIT, &from.any, &from_length);
		char name[64];
		union address client = { .v6 = { .sin6_family = AF_INET6 } };
		int index;

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			/* What ICMP told is counted from the error queue. */
			read_errors(q);
			continue;
		}
		if (n < (ssize_t)sizeof(*m) || n != (reply_size ? reply_size : size) || !intact(data, n)) {
			corrupt++;
			continue;
		}
		m->backend[sizeof(m->backend) - 1] = 0;
		memcpy(&client.v6.sin6_addr, m->client, 16);
		tally_add(&clients, address_text(&client, name, sizeof(name)), 1);
		tally_add(&sources, address_text(&from, name, sizeof(name)), 1);
		index = tally_add(&backends, m->backend, 1);
		if (q->backend >= 0 && q->backend != index)
			moved++;
		q->backend = index;
		replied++;
		if (m->sequence != q->sequence || !q->waiting)
			continue;
		if (++q->parts == (uint32_t)replies) {
			q->waiting = 0;
			answered++;
			latency_add(&latencies, now - q->asked_us);
		}
	}
}

int main(int argc, char **argv)
{
	struct questioner *all;
	struct epoll_event events[256];
	uint64_t start, end;
	int option, one = 1, epoll_fd;

	while ((option = getopt(argc, argv, "n:c:i:d:t:S:R:g:D:s:p:u")) != -1) {
		switch (option) {
		case 'n': questions = atol(optarg); break;
		case 'c': sockets = atoi(optarg); break;
		case 'i': pause_ms = atoi(optarg); break;
		case 'd': duration_ms = atoi(optarg); break;
		case 't': timeout_ms = atoi(optarg); break;
		case 'S': size = atoi(optarg); break;
		case 'R': reply_size = atoi(optarg); break;
		case 'g': replies = atoi(optarg); break;
		case 'D': df = optarg; break;
		case 's': parse_address(optarg, &source); break;
		case 'p': source_port = atoi(optarg); break;
		case 'u': unconnected = 1; break;
		default: die("usage: see the head of udpload.c");
		}
	}
	for (; optind < argc && target_count < (int)ARRAY_SIZE(targets); optind++)
		parse_target(argv[optind], &targets[target_count++]);
	if (!target_count || sockets < 1 || sockets > 20000 || size < 64 || size > 65000 || replies < 1 || replies > 60)
		die("udpload: name at least one ADDRESS:PORT; -c 1-20000, -S 64-65000, -g 1-60");
	if (!questions && !duration_ms)
		die("udpload: -n 0 needs -d");
	prepare();
	alarm(900);
	epoll_fd = epoll_create1(0);
	all = calloc(sockets, sizeof(*all));
	for (int i = 0; i < sockets; i++) {
		struct questioner *q = &all[i];
		union address *to = &targets[i % target_count];
		struct epoll_event event = { .events = EPOLLIN | EPOLLERR, .data.ptr = q };

		q->target = i % target_count;
		q->backend = -1;
		q->fd = socket(to->any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
		if (q->fd < 0)
			die("socket: %s", strerror(errno));
		set_df(q->fd, to->any.sa_family, df);
		if (to->any.sa_family == AF_INET)
			setsockopt(q->fd, IPPROTO_IP, IP_RECVERR, &one, sizeof(one));
		else
			setsockopt(q->fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof(one));
		if (source.any.sa_family || source_port) {
			union address from = source;

			if (!from.any.sa_family)
				from.any.sa_family = to->any.sa_family;
			address_set_port(&from, source_port);
			setsockopt(q->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
			if (bind(q->fd, &from.any, address_length(&from)))
				die("bind: %s", strerror(errno));
		}
		if (!unconnected && connect(q->fd, &to->any, address_length(to)))
			die("connect: %s", strerror(errno));
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, q->fd, &event);
	}

	start = now_us();
	end = duration_ms ? start + (uint64_t)duration_ms * 1000 : 0;
	for (;;) {
		uint64_t now = now_us();
		int over = stopping || (end && now >= end), busy = 0, n;

		for (int i = 0; i < sockets; i++) {
			struct questioner *q = &all[i];

			if (q->waiting && now > q->asked_us + (uint64_t)timeout_ms * 1000) {
				q->waiting = 0;
				lost++;
			}
			if (!q->waiting && !over && (!questions || q->asked < questions) && now >= q->next_us)
				ask(q, now);
			busy += q->waiting || (!over && (!questions || q->asked < questions));
		}
		if (!busy)
			break;
		n = epoll_wait(epoll_fd, events, ARRAY_SIZE(events), 2);
		now = now_us();
		for (int i = 0; i < n; i++) {
			if (events[i].events & EPOLLERR)
				read_errors(events[i].data.ptr);
			hear(events[i].data.ptr, now);
		}
	}
	printf("{\"sent\":%llu,\"answered\":%llu,\"replies\":%llu,\"lost\":%llu,\"corrupt\":%llu,\"moved\":%llu,\"mtu\":%u,\"durationMs\":%llu,",
	       (unsigned long long)sent, (unsigned long long)answered, (unsigned long long)replied, (unsigned long long)lost,
	       (unsigned long long)corrupt, (unsigned long long)moved, mtu, (unsigned long long)(now_us() - start) / 1000);
	tally_print("errors", &errors);
	putchar(',');
	tally_print("backends", &backends);
	putchar(',');
	tally_print("clients", &clients);
	putchar(',');
	tally_print("sources", &sources);
	putchar(',');
	latency_print(&latencies);
	printf("}\n");
	return 0;
}
