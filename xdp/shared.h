/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What the BPF programs and Rust agree on. Mirrored in src/io/guard.rs: change both.
 * A later map (exact tuples of file flows) goes beside these, it does not change them.
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

/* Index into `counters`. */
enum guard_counter {
	GUARD_DROPPED,       /* ingress: addressed to us, the kernel does not know the tuple */
	GUARD_PASSED_OWNED,  /* ingress: addressed to us, the kernel owns the tuple */
	GUARD_KERNEL_RSTS,   /* egress: RST from our address and port that the stack sent */
	GUARD_COUNTERS,
};

_Static_assert(sizeof(struct guard_source) == 20, "mirrored in src/io/guard.rs");
_Static_assert(sizeof(struct guard_ports) == 4, "mirrored in src/io/guard.rs");

#endif
