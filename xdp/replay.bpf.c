// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Sends frames out of memory, one after the other, over and over: for `keepsweep bench rx`, which runs
// it by BPF_PROG_TEST_RUN with live frames. What it returns the kernel does: the frame leaves through
// the interface as if a driver had forwarded it, without an sk_buff.

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "shared.h"

/* How many frames there are, less one; a power of two less one. Set by Rust. */
const volatile __u32 last_frame = 0;
/* Where they leave. Set by Rust. */
const volatile __u32 out_ifindex = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set by Rust */
	__type(key, __u32);
	__type(value, struct replay_frame);
} frames SEC(".maps");

/* Run on one CPU at a time. */
__u32 next_frame = 0;

SEC("xdp")
int replay(struct xdp_md *xdp)
{
	struct replay_frame *to = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	__u32 index = next_frame & last_frame;
	struct replay_frame *from = bpf_map_lookup_elem(&frames, &index);

	if (!from || (void *)(to + 1) > end)
		return XDP_ABORTED;
	next_frame++;
	*to = *from;
	return bpf_redirect(out_ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
