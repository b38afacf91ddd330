/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What connections.bpf.c writes and src/io/host/record.rs reads: change both sides.
 */
#ifndef KEEPSWEEP_HOST_H
#define KEEPSWEEP_HOST_H

#include <linux/types.h>

/* Bits of connection_record.flags. */
enum connection_flag {
	CONNECTION_FULL = 1 << 0,         /* a full socket: everything behind `peer_port` is set */
	CONNECTION_TIMESTAMPS = 1 << 1,   /* negotiated */
	CONNECTION_USEC_TS = 1 << 2,      /* their clock runs in microseconds */
	CONNECTION_SIGNED = 1 << 3,       /* has keys for TCP-MD5 or TCP-AO */
	CONNECTION_SIGNED_KNOWN = 1 << 4, /* this kernel tells whether it has */
	CONNECTION_KEEPALIVE = 1 << 5,    /* SO_KEEPALIVE */
	CONNECTION_WSCALE = 1 << 6,       /* window scaling negotiated */
};

struct connection_record {
	__u64 at_ns;          /* CLOCK_MONOTONIC, after all the rest was read */
	__u64 jiffies;        /* likewise */
	__u64 cookie;
	__u64 inode;          /* 0: no file holds the socket */
	__u64 bytes_received;
	__u8 local_addr[16];  /* network order; IPv4 in the first four octets, the rest zero */
	__u8 peer_addr[16];
	__u32 netns;          /* inode */
	__u32 uid;
	__u32 bound_interface;
	__u16 flags;
	__u16 family;
	__u16 local_port;     /* host order */
	__u16 peer_port;

	__u32 mark;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 rcv_wup;
	__u32 rcv_wnd;
	__u32 snd_wnd;
	__u32 packets_out;
	__u32 retrans_out;
	__u32 ts_recent;
	__u32 ts_offset;
	__u32 lsndtime;       /* these three in jiffies, the lower 32 bits; 0: never */
	__u32 lrcvtime;
	__u32 rcv_tstamp;
	__u32 keepalive_time; /* jiffies */
	__u32 keepalive_intvl;
	__u8 keepalive_probes;
	__u8 state;           /* enum of net/tcp_states.h */
	__u8 tos;
	__u8 rcv_wscale;
	__u8 retransmits;
	__u8 probes_out;
	__u8 pad[2];
};

/* A descriptor that refers to a TCP socket. */
struct owner_record {
	__u64 inode;   /* of the socket */
	__u32 pid;     /* as the first PID namespace numbers it */
	__u32 fd;
	__u8 comm[16]; /* padded with zeroes */
};

_Static_assert(sizeof(struct connection_record) == 168, "mirrored in src/io/host/record.rs");
_Static_assert(sizeof(struct owner_record) == 32, "mirrored in src/io/host/record.rs");

#endif
