/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP connections by the thousand, and what became of each.
 *
 *	load [options] ADDRESS:PORT...         connections take the targets in turn
 *
 *	-n N     connections in all (0: until -d); default 1
 *	-c N     open at once; default 100
 *	-k N     requests on each connection (0: until -d or SIGTERM); default 1
 *	-i MS    pause between two requests of a connection
 *	-r N     new connections a second at most (0: no limit)
 *	-d MS    ends after MS: no new connection or request begins, those under way may finish
 *	-t MS    limit of each connect and each answer; default 10000
 *	-D N     ask for N bytes; -U N: send N bytes
 *	-s ADDR  source address; -p PORT: source port (the same for each connection)
 *	-v       a row for each connection
 *
 * Prints "ready" on stderr when all connections of -n have had their first answer, and on stdout one JSON object:
 * connections, requests, ok, failures by kind, moved (connections whose backend changed), backends (answers by backend),
 * connectionsByBackend, clients (addresses the backends saw), peers (addresses that getpeername() told), retransmits, latencyUs,
 * durationMs; with -v startedAtMs (Unix time) and rows. SIGTERM ends as -d does.
 */
#include "common.h"

enum state { IDLE, CONNECTING, SENDING, READING, PAUSED };

struct connection {
	enum state state;
	int fd, target, number, port;
	uint64_t began_us, deadline_us, next_us;
	char head[1024];
	int head_length, head_sent;
	uint64_t up_sent;
	char answer[4096];
	int answer_length;
	int64_t body_left;
	uint64_t body_seen;
	int in_body;
	uint64_t requests;
	int backend;
};

struct row { int port, target, backend, last, retransmits, connect_ms; uint64_t requests, began_us; const char *failure; };

static int total = 1, concurrency = 100, pause_ms, rate, duration_ms, timeout_ms = 10000, source_port, verbose;
static long per_connection = 1;
static uint64_t bytes_down, bytes_up;
static union address source;
static union address targets[256];
static int target_count;

static int epoll_fd, open_count, started, ready_count;
static struct tally failures, backends, clients, locals, peers;
static struct latencies latencies;
static uint64_t requests, ok, retransmits, moved;
static struct row *rows;
static int row_count;
static uint64_t started_at_ms;

static int ending(uint64_t now, uint64_t end)
{
	return stopping || (end && now >= end);
}

static void finish(struct connection *c, const char *failure)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (c->fd >= 0) {
		if (!getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &length)) {
			retransmits += info.tcpi_total_retrans;
			if (verbose && c->number < row_count)
				rows[c->number].retransmits = info.tcpi_total_retrans;
		}
		close(c->fd);
	}
	if (failure)
		tally_add(&failures, failure, 1);
	if (verbose && c->number < row_count) {
		rows[c->number].requests = c->requests;
		rows[c->number].failure = failure;
		rows[c->number].port = c->port;
		rows[c->number].target = c->target;
	}
	c->fd = -1;
	c->state = IDLE;
	open_count--;
}

static const char *kind(int error, const char *otherwise)
{
	switch (error) {
	case ECONNREFUSED: return "refused";
	case ECONNRESET: case EPIPE: return "reset";
	case ETIMEDOUT: return "timed_out";
	case EHOSTUNREACH: return "host_unreachable";
	case ENETUNREACH: return "net_unreachable";
	case EADDRINUSE: case EADDRNOTAVAIL: return "address_in_use";
	default: return otherwise;
	}
}

static void watch(struct connection *c, int op, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void compose(struct connection *c, uint64_t now)
{
	if (bytes_up)
		c->head_length = snprintf(c->head, sizeof(c->head), "POST /sink HTTP/1.1\r\nHost: t\r\nContent-Length: %llu\r\n\r\n",
					  (unsigned long long)bytes_up);
	else if (bytes_down)
		c->head_length = snprintf(c->head, sizeof(c->head), "GET /bytes?n=%llu HTTP/1.1\r\nHost: t\r\n\r\n",
					  (unsigned long long)bytes_down);
	else
		c->head_length = snprintf(c->head, sizeof(c->head), "GET / HTTP/1.1\r\nHost: t\r\n\r\n");
	c->head_sent = 0;
	c->up_sent = 0;
	c->answer_length = 0;
	c->in_body = 0;
	c->body_seen = 0;
	c->state = SENDING;
	c->deadline_us = now + (uint64_t)timeout_ms * 1000;
	if (c->requests || !c->began_us)
		c->began_us = now;
	requests++;
}

static void begin(struct connection *c, uint64_t now)
{
	int one = 1;
	union address *to;

	memset(c, 0, sizeof(*c));
	c->number = started++;
	c->target = c->number % target_count;
	c->backend = -1;
	to = &targets[c->target];
	open_count++;
	if (verbose && c->number < row_count)
		rows[c->number].began_us = now;
	c->fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (source.any.sa_family || source_port) {
		union address from = source;

		if (!from.any.sa_family)
			from.any.sa_family = to->any.sa_family;
		setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (source_port)
			setsockopt(c->fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
		else
			setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
		address_set_port(&from, source_port);
		if (bind(c->fd, &from.any, address_length(&from))) {
			finish(c, kind(errno, "bind"));
			return;
		}
	}
	c->began_us = now;
	c->deadline_us = now + (uint64_t)timeout_ms * 1000;
	c->state = CONNECTING;
	if (connect(c->fd, &to->any, address_length(to)) && errno != EINPROGRESS) {
		finish(c, kind(errno, "connect"));
		return;
	}
	{
		union address here = { 0 };
		socklen_t length = sizeof(here);

		getsockname(c->fd, &here.any, &length);
		c->port = address_port(&here);
	}
	watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void quoted(const char *text, const char *key, char *out, size_t size)
{
	const char *at = strstr(text, key);
	size_t i = 0;

	if (at)
		for (at += strlen(key); *at && *at != '"' && *at != '\r' && i + 1 < size; at++)
			out[i++] = *at;
	out[i] = 0;
}

/* A whole answer has come. */
static void answered(struct connection *c, uint64_t now, uint64_t end)
{
	char backend[64], client[64];
	int index;

	if (bytes_down) {
		quoted(c->answer, "X-Backend: ", backend, sizeof(backend));
	} else {
		quoted(c->answer, "\"backend\":\"", backend, sizeof(backend));
		quoted(c->answer, "\"client\":\"", client, sizeof(client));
		tally_add(&clients, client, 1);
	}
	if (bytes_up) {
		char want[64];

		snprintf(want, sizeof(want), "\"bytes\":%llu,\"bad\":0}", (unsigned long long)bytes_up);
		if (!strstr(c->answer, want)) {
			finish(c, "corrupt");
			return;
		}
	}
	index = tally_add(&backends, backend, 1);
	if (c->backend >= 0 && c->backend != index)
		moved++;
	if (c->backend < 0) {
		union address peer = { 0 };
		socklen_t length = sizeof(peer);

		tally_add(&locals, backend, 1);
		if (!getpeername(c->fd, &peer.any, &length))
			tally_add(&peers, address_text(&peer, client, sizeof(client)), 1);
		if (verbose && c->number < row_count)
			rows[c->number].backend = index;
		if (++ready_count == total) {
			fputs("ready\n", stderr);
			fflush(stderr);
		}
	}
	if (verbose && c->number < row_count)
		rows[c->number].last = index;
	c->backend = index;
	ok++;
	c->requests++;
	latency_add(&latencies, now - c->began_us);
	if ((per_connection && (long)c->requests >= per_connection) || ending(now, end)) {
		finish(c, NULL);
	} else {
		/* Idle connections listen for the end of the stream, for that would be a failure. */
		c->state = PAUSED;
		c->next_us = now + (uint64_t)pause_ms * 1000;
		watch(c, EPOLL_CTL_MOD, EPOLLIN);
	}
}

static void advance(struct connection *c, uint64_t now, uint64_t end)
{
	static char room[65536];

	if (c->state == CONNECTING) {
		int error = 0;
		socklen_t length = sizeof(error);

		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		if (error) {
			finish(c, kind(error, "connect"));
			return;
		}
		if (verbose && c->number < row_count)
			rows[c->number].connect_ms = (now - c->began_us) / 1000;
		compose(c, now);
	}
	if (c->state == PAUSED) {
		char byte;
		ssize_t n = recv(c->fd, &byte, 1, MSG_PEEK);

		if (n < 0 && errno == EAGAIN)
			return;
		finish(c, n < 0 ? kind(errno, "recv") : n ? "unexpected_data" : "closed");
		return;
	}
	if (c->state == SENDING) {
		while (c->head_sent < c->head_length) {
			ssize_t n = send(c->fd, c->head + c->head_sent, c->head_length - c->head_sent, bytes_up ? MSG_MORE : 0);

			if (n < 0 && errno == EAGAIN) {
				watch(c, EPOLL_CTL_MOD, EPOLLOUT);
				return;
			}
			if (n < 0) {
				finish(c, kind(errno, "send"));
				return;
			}
			c->head_sent += n;
		}
		while (c->up_sent < bytes_up) {
			size_t want = bytes_up - c->up_sent < sizeof(room) ? bytes_up - c->up_sent : sizeof(room);
			ssize_t n;

			for (size_t i = 0; i < want; i++)
				room[i] = pattern(c->up_sent + i);
			n = send(c->fd, room, want, 0);
			if (n < 0 && errno == EAGAIN) {
				watch(c, EPOLL_CTL_MOD, EPOLLOUT);
				return;
			}
			if (n < 0) {
				finish(c, kind(errno, "send"));
				return;
			}
			c->up_sent += n;
			c->deadline_us = now + (uint64_t)timeout_ms * 1000;
		}
		c->state = READING;
		watch(c, EPOLL_CTL_MOD, EPOLLIN);
		return;
	}
	if (c->state != READING)
		return;
	for (;;) {
		char *head_end, *length;
		ssize_t n;

		if (c->in_body && bytes_down) {
			n = recv(c->fd, room, sizeof(room), 0);
			if (n > 0) {
				for (ssize_t i = 0; i < n; i++)
					if ((uint8_t)room[i] != pattern(c->body_seen + i)) {
						finish(c, "corrupt");
						return;
					}
				c->body_seen += n;
				c->body_left -= n;
				c->deadline_us = now + (uint64_t)timeout_ms * 1000;
				if (c->body_left <= 0) {
					answered(c, now, end);
					return;
				}
				continue;
			}
		} else {
			int want = sizeof(c->answer) - 1 - c->answer_length;

			/* The head byte by byte would be slow, a large body must not be swallowed with it: look first. */
			n = recv(c->fd, c->answer + c->answer_length, want, bytes_down ? MSG_PEEK : 0);
		}
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			finish(c, n < 0 ? kind(errno, "recv") : "closed");
			return;
		}
		c->answer[c->answer_length + n] = 0;
		head_end = strstr(c->answer, "\r\n\r\n");
		if (bytes_down) {
			int take = head_end ? head_end + 4 - c->answer - c->answer_length : n;

			if (recv(c->fd, c->answer + c->answer_length, take, 0) != take) {
				finish(c, "recv");
				return;
			}
			c->answer_length += take;
			c->answer[c->answer_length] = 0;
		} else {
			c->answer_length += n;
		}
		if (!head_end)
			continue;
		if (strncmp(c->answer, "HTTP/1.1 200", 12)) {
			finish(c, "bad_status");
			return;
		}
		length = strcasestr(c->answer, "\r\ncontent-length:");
		c->body_left = length ? strtoll(length + 17, NULL, 10) : 0;
		if (bytes_down) {
			c->in_body = 1;
			if (c->body_left != (int64_t)bytes_down) {
				finish(c, "corrupt");
				return;
			}
			continue;
		}
		if (c->answer + c->answer_length - (head_end + 4) >= c->body_left) {
			answered(c, now, end);
			return;
		}
	}
}

int main(int argc, char **argv)
{
	struct timespec wall;
	struct epoll_event events[512];
	struct connection *all;
	uint64_t start, end, checked = 0;
	int option;

	while ((option = getopt(argc, argv, "n:c:k:i:r:d:t:D:U:s:p:v")) != -1) {
		switch (option) {
		case 'n': total = atoi(optarg); break;
		case 'c': concurrency = atoi(optarg); break;
		case 'k': per_connection = atol(optarg); break;
		case 'i': pause_ms = atoi(optarg); break;
		case 'r': rate = atoi(optarg); break;
		case 'd': duration_ms = atoi(optarg); break;
		case 't': timeout_ms = atoi(optarg); break;
		case 'D': bytes_down = strtoull(optarg, NULL, 10); break;
		case 'U': bytes_up = strtoull(optarg, NULL, 10); break;
		case 's': parse_address(optarg, &source); break;
		case 'p': source_port = atoi(optarg); break;
		case 'v': verbose = 1; break;
		default: die("usage: see the head of load.c");
		}
	}
	for (; optind < argc && target_count < (int)ARRAY_SIZE(targets); optind++)
		parse_target(argv[optind], &targets[target_count++]);
	if (!target_count || concurrency < 1 || concurrency > 60000)
		die("load: name at least one ADDRESS:PORT; -c is 1 to 60000");
	if (!total && !duration_ms)
		die("load: -n 0 needs -d");
	if (total && concurrency > total)
		concurrency = total;
	prepare();
	/* Nothing outlives a crashed test. */
	alarm(900);
	row_count = verbose ? (total ? total : 100000) : 0;
	rows = calloc(row_count + 1, sizeof(*rows));
	all = calloc(concurrency, sizeof(*all));
	for (int i = 0; i < concurrency; i++)
		all[i].fd = -1;
	epoll_fd = epoll_create1(0);
	start = now_us();
	clock_gettime(CLOCK_REALTIME, &wall);
	started_at_ms = (uint64_t)wall.tv_sec * 1000 + wall.tv_nsec / 1000000;
	end = duration_ms ? start + (uint64_t)duration_ms * 1000 : 0;

	for (;;) {
		uint64_t now = now_us();
		int may_begin = (!total || started < total) && !ending(now, end);
		int n, wait_ms = 100;

		if (may_begin && open_count < concurrency) {
			int burst = 0;

			for (int i = 0; i < concurrency && burst < 64; i++) {
				if (all[i].state != IDLE)
					continue;
				if (total && started >= total)
					break;
				if (rate && (uint64_t)started * 1000000 > (now - start) * rate)
					break;
				begin(&all[i], now);
				burst++;
			}
			wait_ms = rate ? 1 : open_count < concurrency ? 0 : 100;
		}
		if (!open_count && !may_begin)
			break;
		n = epoll_wait(epoll_fd, events, ARRAY_SIZE(events), pause_ms && wait_ms > 5 ? 5 : wait_ms);
		now = now_us();
		for (int i = 0; i < n; i++)
			advance(events[i].data.ptr, now, end);
		/* Timers are few and coarse: all connections are looked through each 5 ms. */
		if (now - checked > 5000) {
			checked = now;
			for (int i = 0; i < concurrency; i++) {
				struct connection *c = &all[i];

				if (c->state == PAUSED && ending(now, end)) {
					finish(c, NULL);
				} else if (c->state == PAUSED && now >= c->next_us) {
					compose(c, now);
					advance(c, now, end);
				} else if (c->state != IDLE && c->state != PAUSED && now > c->deadline_us) {
					finish(c, c->state == CONNECTING ? "connect_timeout" : "answer_timeout");
				}
			}
		}
		/* With no pause the next request goes at once. */
		if (!pause_ms)
			for (int i = 0; i < n; i++) {
				struct connection *c = events[i].data.ptr;

				if (c->state == PAUSED) {
					compose(c, now);
					advance(c, now, end);
				}
			}
	}

	printf("{\"connections\":%d,\"requests\":%llu,\"ok\":%llu,\"moved\":%llu,\"retransmits\":%llu,\"durationMs\":%llu,", started,
	       (unsigned long long)requests, (unsigned long long)ok, (unsigned long long)moved, (unsigned long long)retransmits,
	       (unsigned long long)(now_us() - start) / 1000);
	tally_print("failures", &failures);
	putchar(',');
	tally_print("backends", &backends);
	putchar(',');
	tally_print("connectionsByBackend", &locals);
	putchar(',');
	tally_print("clients", &clients);
	putchar(',');
	tally_print("peers", &peers);
	putchar(',');
	latency_print(&latencies);
	if (verbose) {
		printf(",\"startedAtMs\":%llu,\"rows\":[", (unsigned long long)started_at_ms);
		for (int i = 0; i < started && i < row_count; i++) {
			char text[64];

			printf("%s{\"atMs\":%llu,\"port\":%d,\"target\":\"%s\",\"backend\":\"%s\",\"last\":\"%s\",\"requests\":%llu,\"connectMs\":%d,\"retransmits\":%d,\"failure\":%s%s%s}",
			       i ? "," : "", (unsigned long long)(rows[i].began_us - start) / 1000, rows[i].port,
			       address_text(&targets[rows[i].target], text, sizeof(text)),
			       rows[i].requests ? backends.rows[rows[i].backend].name : "",
			       rows[i].requests ? backends.rows[rows[i].last].name : "", (unsigned long long)rows[i].requests,
			       rows[i].connect_ms, rows[i].retransmits, rows[i].failure ? "\"" : "", rows[i].failure ? rows[i].failure : "null", rows[i].failure ? "\"" : "");
		}
		printf("]");
	}
	printf("}\n");
	return 0;
}
