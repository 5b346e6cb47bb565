/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A UDP server that says who asked, in as many bytes and datagrams as the question wants.
 *
 *	udpecho -n NAME -p PORT [-a ADDRESS] [-D do|dont|probe] [-L SECONDS]
 *
 * Several replies go in one send with UDP_SEGMENT, as QUIC servers do. A reply leaves from the address that was asked.
 * Prints "listening" when ready, on stderr each kind of send error once, and on SIGTERM a JSON object of them.
 */
#include "udp.h"

struct packet_info6 { struct in6_addr address; int interface; };

int main(int argc, char **argv)
{
	static uint8_t in[65536], out[65536];
	struct tally errors = { 0 };
	union address at;
	const char *name = "udpecho", *df = "dont";
	int option, port = 80, seconds = 900, fd, one = 1, zero = 0;

	parse_address("::", &at);
	while ((option = getopt(argc, argv, "n:p:a:D:L:")) != -1) {
		switch (option) {
		case 'n': name = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'a': parse_address(optarg, &at); break;
		case 'D': df = optarg; break;
		case 'L': seconds = atoi(optarg); break;
		default: die("usage: udpecho -n NAME -p PORT [-a ADDRESS] [-D do|dont|probe] [-L SECONDS]");
		}
	}
	prepare();
	alarm(seconds);
	address_set_port(&at, port);
	fd = socket(at.any.sa_family, SOCK_DGRAM, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (at.any.sa_family == AF_INET6) {
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
		setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one));
	} else {
		setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one));
	}
	set_df(fd, at.any.sa_family, df);
	if (bind(fd, &at.any, address_length(&at)))
		die("bind port %d: %s", port, strerror(errno));
	{
		struct timeval wait = { .tv_usec = 200000 };

		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	}
	printf("listening\n");
	fflush(stdout);

	while (!stopping) {
		union address client = { 0 };
		char control_in[256], control_out[256] = { 0 };
		struct iovec vector = { in, sizeof(in) };
		struct msghdr question = { .msg_name = &client, .msg_namelen = sizeof(client), .msg_iov = &vector,
					   .msg_iovlen = 1, .msg_control = control_in, .msg_controllen = sizeof(control_in) };
		struct msghdr reply = { .msg_name = &client, .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control_out };
		struct message *asked = (struct message *)in;
		ssize_t length = recvmsg(fd, &question, 0);
		uint32_t size, count;
		size_t used = 0;

		if (length < (ssize_t)sizeof(*asked))
			continue;
		size = asked->reply_size ? asked->reply_size : (uint32_t)length;
		count = asked->reply_count ? asked->reply_count : 1;
		if (size < sizeof(*asked) || (uint64_t)size * count > sizeof(out))
			continue;
		if (!intact(in, length)) {
			tally_add(&errors, "corrupt", 1);
			continue;
		}
		for (uint32_t i = 0; i < count; i++) {
			struct message *m = (struct message *)(out + i * size);

			memset(m, 0, sizeof(*m));
			m->sequence = asked->sequence;
			m->part = i;
			m->reply_size = asked->reply_size;
			m->reply_count = asked->reply_count;
			snprintf(m->backend, sizeof(m->backend), "%s", name);
			m->client_port = address_port(&client);
			if (client.any.sa_family == AF_INET) {
				m->client[10] = m->client[11] = 0xff;
				memcpy(m->client + 12, &client.v4.sin_addr, 4);
			} else {
				memcpy(m->client, &client.v6.sin6_addr, 16);
			}
			fill(out + i * size, size);
		}
		vector = (struct iovec){ out, (size_t)size * count };
		reply.msg_namelen = address_length(&client);
		reply.msg_controllen = sizeof(control_out);
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&question); c; c = CMSG_NXTHDR(&question, c)) {
			struct cmsghdr *o = (struct cmsghdr *)(control_out + used);

			if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
				struct packet_info6 info;

				memcpy(&info, CMSG_DATA(c), sizeof(info));
				info.interface = 0;
				o->cmsg_level = IPPROTO_IPV6;
				o->cmsg_type = IPV6_PKTINFO;
				o->cmsg_len = CMSG_LEN(sizeof(info));
				memcpy(CMSG_DATA(o), &info, sizeof(info));
				used += CMSG_SPACE(sizeof(info));
			} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
				struct in_pktinfo info;

				memcpy(&info, CMSG_DATA(c), sizeof(info));
				info.ipi_ifindex = 0;
				info.ipi_spec_dst = info.ipi_addr;
				o->cmsg_level = IPPROTO_IP;
				o->cmsg_type = IP_PKTINFO;
				o->cmsg_len = CMSG_LEN(sizeof(info));
				memcpy(CMSG_DATA(o), &info, sizeof(info));
				used += CMSG_SPACE(sizeof(info));
			}
		}
		if (count > 1) {
			struct cmsghdr *o = (struct cmsghdr *)(control_out + used);
			uint16_t segment = size;

			o->cmsg_level = IPPROTO_UDP;
			o->cmsg_type = UDP_SEGMENT;
			o->cmsg_len = CMSG_LEN(sizeof(segment));
			memcpy(CMSG_DATA(o), &segment, sizeof(segment));
			used += CMSG_SPACE(sizeof(segment));
		}
		reply.msg_controllen = used;
		if (sendmsg(fd, &reply, 0) < 0) {
			int error = errno, index = tally_add(&errors, strerrorname_np(error), 1);

			if (errors.rows[index].count == 1)
				fprintf(stderr, "send: %s\n", strerror(error));
		} else {
			tally_add(&errors, "sent", count);
		}
	}
	tally_print("sends", &errors);
	putchar('\n');
	return 0;
}
