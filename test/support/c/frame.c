/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Puts raw Ethernet frames on an interface.
 *
 *	frame [-n TIMES] DEVICE HEX...
 *
 * With -n each frame is put there so many times in a row. A queue that is full is waited for.
 */
#include "common.h"
#include <linux/if_packet.h>
#include <net/if.h>

int main(int argc, char **argv)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	long times = 1;
	int fd;

	if (argc > 2 && !strcmp(argv[1], "-n")) {
		times = atol(argv[2]);
		argv += 2;
		argc -= 2;
	}
	if (argc < 3 || times < 1)
		die("usage: frame [-n TIMES] DEVICE HEX...");
	to.sll_ifindex = if_nametoindex(argv[1]);
	fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0 || !to.sll_ifindex)
		die("frame: %s: %s", argv[1], strerror(errno));
	for (int i = 2; i < argc; i++) {
		uint8_t data[9216];
		size_t n = strlen(argv[i]) / 2;

		if (n < 14 || n > sizeof(data))
			die("frame: 14 to %zu bytes in hex expected", sizeof(data));
		for (size_t j = 0; j < n; j++) {
			unsigned int byte;

			if (sscanf(argv[i] + 2 * j, "%2x", &byte) != 1)
				die("frame: not hex: %s", argv[i]);
			data[j] = byte;
		}
		for (long sent = 0; sent < times;) {
			if (sendto(fd, data, n, 0, (struct sockaddr *)&to, sizeof(to)) >= 0)
				sent++;
			else if (errno != ENOBUFS)
				die("frame: send: %s", strerror(errno));
		}
	}
	return 0;
}
