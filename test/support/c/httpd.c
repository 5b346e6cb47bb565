/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small HTTP/1.1 server that says who asked: the backend of the tests and of the demo.
 *
 *	httpd -n NAME -p PORT [-a ADDRESS] [-L SECONDS]
 *
 *	GET /            {"backend":NAME,"client":ADDRESS,"port":PORT,"local":ADDRESS}
 *	GET /bytes?n=N   N bytes of the pattern
 *	POST /sink       counts the body: the same object with "bytes" and "bad" (bytes that were not the pattern)
 *
 * Keep-alive, both families on one socket. Prints "listening" when it can be dialled; ends after SECONDS (default 900),
 * so that nothing outlives a crashed test.
 */
#include "common.h"

#define READ_ROOM 65536

struct connection {
	int fd;
	union address client;
	char head[4096];
	int head_length;
	/* request body still to come */
	uint64_t body_left, body_seen, body_bad;
	int in_body;
	/* answer still to go */
	char answer[512];
	int answer_length, answer_sent;
	uint64_t bytes_total, bytes_sent;
	int close_after;
};

static int epoll_fd;
static const char *name = "httpd";

static void watch(struct connection *c, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void drop(struct connection *c)
{
	close(c->fd);
	free(c);
}

static void answer_who(struct connection *c, const char *more)
{
	char client[64], local[64], body[256];
	union address here = { 0 };
	socklen_t length = sizeof(here);
	int n;

	getsockname(c->fd, &here.any, &length);
	n = snprintf(body, sizeof(body), "{\"backend\":\"%s\",\"client\":\"%s\",\"port\":%d,\"local\":\"%s\"%s}\n", name,
		     address_text(&c->client, client, sizeof(client)), address_port(&c->client),
		     address_text(&here, local, sizeof(local)), more);
	c->answer_length = snprintf(c->answer, sizeof(c->answer),
				    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", n, body);
	c->answer_sent = 0;
	c->bytes_total = c->bytes_sent = 0;
}

/* Returns 0 when all has gone, 1 when the socket is full, -1 when the client is gone. */
static int flush(struct connection *c)
{
	static char chunk[READ_ROOM];

	while (c->answer_sent < c->answer_length) {
		ssize_t n = send(c->fd, c->answer + c->answer_sent, c->answer_length - c->answer_sent,
				 c->bytes_total ? MSG_MORE : 0);

		if (n < 0)
			return errno == EAGAIN ? 1 : -1;
		c->answer_sent += n;
	}
	while (c->bytes_sent < c->bytes_total) {
		size_t want = c->bytes_total - c->bytes_sent;
		ssize_t n;

		if (want > sizeof(chunk))
			want = sizeof(chunk);
		for (size_t i = 0; i < want; i++)
			chunk[i] = pattern(c->bytes_sent + i);
		n = send(c->fd, chunk, want, 0);
		if (n < 0)
			return errno == EAGAIN ? 1 : -1;
		c->bytes_sent += n;
	}
	return 0;
}

static void request(struct connection *c)
{
	char *length = strcasestr(c->head, "\r\ncontent-length:");
	char *n = strstr(c->head, "/bytes?n=");

	c->close_after = strcasestr(c->head, "\r\nconnection: close") != NULL;
	if (!strncmp(c->head, "POST ", 5)) {
		c->in_body = 1;
		c->body_left = length ? strtoull(length + 17, NULL, 10) : 0;
		c->body_seen = c->body_bad = 0;
		if (strcasestr(c->head, "\r\nexpect: 100"))
			if (send(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, 0) < 0)
				c->close_after = 1;
	} else if (n && n < strstr(c->head, "\r\n")) {
		c->bytes_total = strtoull(n + 9, NULL, 10);
		c->bytes_sent = 0;
		c->answer_length = snprintf(c->answer, sizeof(c->answer),
			"HTTP/1.1 200 OK\r\nX-Backend: %s\r\nContent-Length: %llu\r\n\r\n", name,
			(unsigned long long)c->bytes_total);
		c->answer_sent = 0;
	} else {
		answer_who(c, "");
	}
}

/* Returns -1 when the connection is over. */
static int serve(struct connection *c)
{
	static char room[READ_ROOM];

	for (;;) {
		int state = flush(c);

		if (state < 0)
			return -1;
		if (state > 0) {
			watch(c, EPOLLOUT);
			return 0;
		}
		if (c->answer_length && c->close_after)
			return -1;
		c->answer_length = c->answer_sent = 0;
		watch(c, EPOLLIN | EPOLLRDHUP);

		if (c->in_body) {
			size_t want = c->body_left < sizeof(room) ? c->body_left : sizeof(room);

			if (c->body_left) {
				ssize_t n = recv(c->fd, room, want, 0);

				if (n < 0)
					return errno == EAGAIN ? 0 : -1;
				if (!n)
					return -1;
				for (ssize_t i = 0; i < n; i++)
					c->body_bad += (uint8_t)room[i] != pattern(c->body_seen + i);
				c->body_seen += n;
				c->body_left -= n;
			}
			if (!c->body_left) {
				char more[96];

				snprintf(more, sizeof(more), ",\"bytes\":%llu,\"bad\":%llu",
					 (unsigned long long)c->body_seen, (unsigned long long)c->body_bad);
				answer_who(c, more);
				c->in_body = 0;
			}
			continue;
		}

		/* One byte beyond the head would be body: look first, then take the head alone. */
		ssize_t n = recv(c->fd, c->head + c->head_length, sizeof(c->head) - 1 - c->head_length, MSG_PEEK);
		char *end;
		int take;

		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		if (!n)
			return -1;
		c->head[c->head_length + n] = 0;
		end = strstr(c->head, "\r\n\r\n");
		take = end ? end + 4 - c->head - c->head_length : n;
		if (recv(c->fd, c->head + c->head_length, take, 0) != take)
			return -1;
		c->head_length += take;
		if (!end) {
			if (c->head_length >= (int)sizeof(c->head) - 1)
				return -1;
			continue;
		}
		c->head[c->head_length] = 0;
		c->head_length = 0;
		request(c);
	}
}

int main(int argc, char **argv)
{
	union address at;
	int option, port = 80, seconds = 900, one = 1, zero = 0, listener;
	struct epoll_event event, events[256];

	parse_address("::", &at);
	while ((option = getopt(argc, argv, "n:p:a:L:")) != -1) {
		switch (option) {
		case 'n': name = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'a': parse_address(optarg, &at); break;
		case 'L': seconds = atoi(optarg); break;
		default: die("usage: httpd -n NAME -p PORT [-a ADDRESS] [-L SECONDS]");
		}
	}
	prepare();
	alarm(seconds);
	address_set_port(&at, port);
	listener = socket(at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (at.any.sa_family == AF_INET6)
		setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (bind(listener, &at.any, address_length(&at)) || listen(listener, 4096))
		die("listen on port %d: %s", port, strerror(errno));
	epoll_fd = epoll_create1(0);
	event = (struct epoll_event){ .events = EPOLLIN, .data.ptr = NULL };
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
	printf("listening\n");
	fflush(stdout);

	while (!stopping) {
		int n = epoll_wait(epoll_fd, events, ARRAY_SIZE(events), -1);

		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (c) {
				if (serve(c))
					drop(c);
				continue;
			}
			for (int burst = 0; burst < 256; burst++) {
				union address client = { 0 };
				socklen_t length = sizeof(client);
				int fd = accept4(listener, &client.any, &length, SOCK_NONBLOCK);

				if (fd < 0)
					break;
				c = calloc(1, sizeof(*c));
				c->fd = fd;
				c->client = client;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				event = (struct epoll_event){ .events = EPOLLIN | EPOLLRDHUP, .data.ptr = c };
				epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
				if (serve(c))
					drop(c);
			}
		}
	}
	return 0;
}
