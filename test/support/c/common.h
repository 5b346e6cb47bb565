/* SPDX-License-Identifier: Apache-2.0 */
/* What the test servers and clients share: addresses, time, counters by name, the pattern of a body. */
#ifndef BEELINE_TEST_COMMON_H
#define BEELINE_TEST_COMMON_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))

static inline void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

static inline uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* A byte that depends on its place, so that a lost, doubled or misplaced segment shows. */
static inline uint8_t pattern(uint64_t i)
{
	return i ^ (i >> 8) ^ (i >> 16);
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline socklen_t address_length(const union address *a)
{
	return a->any.sa_family == AF_INET ? sizeof(a->v4) : sizeof(a->v6);
}

static inline void address_set_port(union address *a, int port)
{
	if (a->any.sa_family == AF_INET)
		a->v4.sin_port = htons(port);
	else
		a->v6.sin6_port = htons(port);
}

static inline int address_port(const union address *a)
{
	return ntohs(a->any.sa_family == AF_INET ? a->v4.sin_port : a->v6.sin6_port);
}

/* `10.0.0.1`, `fd00::1` */
static inline void parse_address(const char *text, union address *a)
{
	memset(a, 0, sizeof(*a));
	if (inet_pton(AF_INET, text, &a->v4.sin_addr) == 1)
		a->any.sa_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &a->v6.sin6_addr) == 1)
		a->any.sa_family = AF_INET6;
	else
		die("not an address: %s", text);
}

/* `10.0.0.1:80`, `[fd00::1]:80` */
static inline void parse_target(const char *text, union address *a)
{
	char host[64];
	const char *colon = strrchr(text, ':');
	size_t length;

	if (!colon)
		die("not address:port: %s", text);
	length = colon - text;
	if (*text == '[' && length > 2 && text[length - 1] == ']') {
		text++;
		length -= 2;
	}
	if (length >= sizeof(host))
		die("not address:port: %s", text);
	memcpy(host, text, length);
	host[length] = 0;
	parse_address(host, a);
	address_set_port(a, atoi(colon + 1));
}

/* The address without its port; a mapped IPv4 address as IPv4. */
static inline const char *address_text(const union address *a, char *out, size_t size)
{
	if (a->any.sa_family == AF_INET)
		return inet_ntop(AF_INET, &a->v4.sin_addr, out, size);
	if (IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr))
		return inet_ntop(AF_INET, a->v6.sin6_addr.s6_addr + 12, out, size);
	return inet_ntop(AF_INET6, &a->v6.sin6_addr, out, size);
}

/* Counters by name: few names, so a list does. A full list counts under "other". */
struct tally {
	int n;
	struct { char name[64]; uint64_t count; } rows[256];
};

static inline int tally_add(struct tally *t, const char *name, uint64_t by)
{
	int i;

	for (i = 0; i < t->n; i++)
		if (!strcmp(t->rows[i].name, name))
			goto found;
	if (t->n == ARRAY_SIZE(t->rows) - 1)
		name = "other";
	if (t->n == ARRAY_SIZE(t->rows)) {
		i = t->n - 1;
		goto found;
	}
	i = t->n++;
	snprintf(t->rows[i].name, sizeof(t->rows[i].name), "%.63s", name);
found:
	t->rows[i].count += by;
	return i;
}

static inline void tally_print(const char *key, const struct tally *t)
{
	printf("\"%s\":{", key);
	for (int i = 0; i < t->n; i++)
		printf("%s\"%s\":%llu", i ? "," : "", t->rows[i].name, (unsigned long long)t->rows[i].count);
	printf("}");
}

static inline int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

struct latencies {
	uint32_t *us;
	size_t n, room;
};

static inline void latency_add(struct latencies *l, uint64_t us)
{
	if (l->n == l->room) {
		if (l->room >= 1 << 24)
			return;
		l->room = l->room ? l->room * 2 : 4096;
		l->us = realloc(l->us, l->room * sizeof(*l->us));
		if (!l->us)
			die("out of memory");
	}
	l->us[l->n++] = us > UINT32_MAX ? UINT32_MAX : us;
}

static inline void latency_print(struct latencies *l)
{
	qsort(l->us, l->n, sizeof(*l->us), compare_u32);
	printf("\"latencyUs\":{\"p50\":%u,\"p99\":%u,\"max\":%u}", l->n ? l->us[l->n / 2] : 0,
	       l->n ? l->us[l->n * 99 / 100] : 0, l->n ? l->us[l->n - 1] : 0);
}

static volatile sig_atomic_t stopping;

static inline void on_stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static inline void prepare(void)
{
	struct rlimit files = { 65536, 65536 };
	struct sigaction stop = { .sa_handler = on_stop };

	if (setrlimit(RLIMIT_NOFILE, &files)) {
		getrlimit(RLIMIT_NOFILE, &files);
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGINT, &stop, NULL);
}
#endif
