/* SPDX-License-Identifier: Apache-2.0 */
/* The datagram of udpload and udpecho: 64 bytes, then the pattern by place in the datagram. */
#ifndef BEELINE_TEST_UDP_H
#define BEELINE_TEST_UDP_H
#include "common.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

struct message {
	uint32_t sequence;
	uint32_t reply_size;	/* bytes of each reply; 0: as long as the question */
	uint32_t reply_count;	/* replies, in one UDP_SEGMENT send where > 1; 0: one */
	uint32_t part;		/* of a reply: its number */
	char backend[20];
	uint16_t client_port;
	uint16_t unused;
	uint8_t client[16];	/* mapped where IPv4 */
	uint8_t padding[8];
};
_Static_assert(sizeof(struct message) == 64, "struct message");

static inline void fill(uint8_t *data, size_t size)
{
	for (size_t i = sizeof(struct message); i < size; i++)
		data[i] = pattern(i);
}

static inline int intact(const uint8_t *data, size_t size)
{
	for (size_t i = sizeof(struct message); i < size; i++)
		if (data[i] != pattern(i))
			return 0;
	return 1;
}

/* do: DF and the path's MTU is obeyed; dont: the kernel may fragment; probe: DF, the path's MTU is ignored */
static inline void set_df(int fd, int family, const char *how)
{
	int v4 = !strcmp(how, "do") ? IP_PMTUDISC_DO : !strcmp(how, "probe") ? IP_PMTUDISC_PROBE : IP_PMTUDISC_DONT;
	int v6 = !strcmp(how, "do") ? IPV6_PMTUDISC_DO : !strcmp(how, "probe") ? IPV6_PMTUDISC_PROBE : IPV6_PMTUDISC_DONT;

	setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &v4, sizeof(v4));
	if (family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &v6, sizeof(v6));
}
#endif
