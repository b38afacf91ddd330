/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What the BPF programs and Rust agree on. Mirrored in src/io/guard.rs,
 * src/io/shield.rs and src/io/xdp/program.rs: change both sides.
 */
#ifndef KEEPSWEEP_SHARED_H
#define KEEPSWEEP_SHARED_H

#include <linux/types.h>

/* Key of `sources`: one of our source addresses. */
struct guard_source {
	__u32 version;  /* 4 or 6 */
	__u8 addr[16];  /* network order; IPv4 in the first four octets, the rest zero */
};

/* Value of `sources`: the ports that are ours on that address, both ends included, host order. */
struct guard_ports {
	__u16 lo;
	__u16 hi;
};

/* Key of `tuples`: a flow that was given, and that the kernel does not own; the value means nothing.
 * Key of `held`: one that the kernel owns, and whose RSTs and SYNs it must not get, as its packets come
 * in; the value is what its socket has, which is something else where this host translates them. */
struct guard_tuple {
	struct guard_source local;
	__u8 peer_addr[16];  /* as in guard_source */
	__u16 local_port;    /* host order */
	__u16 peer_port;
};

/* Index into `counters`. */
enum guard_counter {
	GUARD_DROPPED,       /* ingress: of a guarded flow, the kernel does not know the tuple */
	GUARD_PASSED_OWNED,  /* ingress: of a guarded flow, the kernel owns the tuple */
	GUARD_KERNEL_RSTS,   /* egress: RST of a guarded flow that the stack sent */
	GUARD_HELD,          /* ingress: RST or SYN of a held flow that the kernel owns */
	GUARD_COUNTERS,
};

/* Index into `counters` of the redirecting program. */
enum redirect_counter {
	REDIRECT_REDIRECTED, /* handed to the AF_XDP socket of its queue */
	REDIRECT_PASSED,     /* none of ours, or the kernel owns the tuple */
	REDIRECT_MALFORMED,  /* passed: it ends early or contradicts itself */
	REDIRECT_NO_SOCKET,  /* ours, and passed: its queue has no socket */
	REDIRECT_COUNTERS,
};

/* What the redirecting program knows of the interface that it runs on. */
struct redirect_interface {
	__u32 frame_max; /* octets that a UMEM frame holds: the kernel would drop a longer packet, or, where
	                  * frames lie close together, write it over its neighbours */
	__u8 mac[6];     /* its own address: frames to another one (promiscuous mode, bridges, macvlan) are
	                  * not for this host, whatever their IP address is */
	__u8 padding[2];
};

/* How many sockets can be shielded at one time: each costs 16 octets, in use or not. */
#define SHIELD_MAX (1 << 17)

/* Value of `shielded`: the RSTs without ACK that were kept from a socket. */
struct shield_kept {
	__u32 resets;
	__u32 seq;           /* SEG.SEQ of the last, host order */
};

/* Value of `frames`: an answer without options or data, and two octets of padding. */
struct replay_frame {
	__u64 words[7];
};

_Static_assert(sizeof(struct guard_source) == 20, "mirrored in src/io/guard.rs");
_Static_assert(sizeof(struct guard_ports) == 4, "mirrored in src/io/guard.rs");
_Static_assert(sizeof(struct guard_tuple) == 40, "mirrored in src/io/guard.rs");
_Static_assert(sizeof(struct redirect_interface) == 12, "mirrored in src/io/xdp/program.rs");
_Static_assert(sizeof(struct shield_kept) == 8, "mirrored in src/io/shield.rs");

#endif
