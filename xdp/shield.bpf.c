// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The shield: keeps what would end a connection from its socket. It runs when the kernel has found the
// socket (tcp_filter, net/ipv4/tcp_ipv4.c), and so behind every translation of addresses, whoever makes
// it; the guard, on the way in, runs before.

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PACKET struct __sk_buff

static __always_inline int read(struct __sk_buff *skb, __u32 offset, void *to, __u32 len)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, len, BPF_HDR_START_NET) ? -1 : 0;
}

#include "parse.h"
#include "shared.h"

#define DROP 0
#define PASS 1

#define TCP_SEQ 4
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* By the cookie of the socket. Filled and emptied by Rust while the program runs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SHIELD_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct shield_kept);
} shielded SEC(".maps");

SEC("cgroup_skb/ingress")
int shield_ingress(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct shield_kept *kept = bpf_map_lookup_elem(&shielded, &cookie);
	struct segment segment = {};
	__be32 seq;
	__u8 flags;

	if (!kept)
		return PASS;
	if (parse_network(skb, skb->protocol, 0, &segment) != PARSE_TCP)
		return PASS;
	if (read(skb, segment.upper + TCP_FLAGS, &flags, sizeof(flags)) ||
	    read(skb, segment.upper + TCP_SEQ, &seq, sizeof(seq)))
		return PASS;
	if (!(flags & (TCP_RST | TCP_SYN)))
		return PASS;
	// With ACK it may be the peer's own, and no answer.
	if ((flags & (TCP_RST | TCP_ACK)) == TCP_RST) {
		kept->seq = bpf_ntohl(seq);
		kept->resets += 1;
	}
	return DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
