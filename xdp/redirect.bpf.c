// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Hands what may be an answer to us to the AF_XDP socket of the queue that it came in by, before the
// kernel builds an sk_buff of it. Everything else passes.
//
// ARP and Neighbour Discovery pass too: a redirected frame cannot also be copied to the kernel, which
// asks the same neighbours on its own account. An AF_PACKET socket beside the AF_XDP ones hears them,
// and with them whatever this program lets through: frames that are too long, those of queues without
// a socket, and everything after it was detached.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PACKET struct xdp_md

/* Two VLAN tags, an IPv6 header with extensions, an ICMPv6 header and the same once more. */
#define HEADERS_MAX 1023
/* Type, code, checksum and four octets whose meaning the type decides. */
#define ICMP_HEADER 8

/* From the first octet of the frame on. */
static __always_inline int read(struct xdp_md *xdp, __u32 offset, void *to, __u32 len)
{
	return offset > HEADERS_MAX || bpf_xdp_load_bytes(xdp, offset, to, len) ? -1 : 0;
}

#include "parse.h"
#include "shared.h"

/* Set by Rust before the program is attached. Alone in .bss, so that it is the map's one value. */
volatile struct redirect_interface interface = {};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1); /* set by Rust: the number of queues */
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by Rust */
	__type(key, struct guard_source);
	__type(value, struct guard_ports);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REDIRECT_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline int pass(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += 1;
	return XDP_PASS;
}

static __always_inline int is_our_mac(const __u8 *mac)
{
	int i;

	for (i = 0; i < ETH_ALEN; i++)
		if (mac[i] != interface.mac[i])
			return 0;
	return 1;
}

/* Whether an ICMP or ICMPv6 message of this type reports an error, and so quotes a packet. */
static __always_inline int is_error(__u32 version, __u8 type)
{
	if (version == 4)
		return type == 3 || type == 4 || type == 11 || type == 12;
	return 1 <= type && type <= 4;
}

/* Replaces `segment`, an ICMP message, by the segment that it quotes, with its ends exchanged: as the
 * answer to it would look. */
static __always_inline enum parse_result parse_quote(struct xdp_md *xdp, struct segment *segment)
{
	struct segment quoted = {};
	enum parse_result result;
	__be16 protocol = bpf_htons(segment->version == 4 ? ETH_P_IP : ETH_P_IPV6);
	__u8 type;

	if (read(xdp, segment->upper, &type, sizeof(type)))
		return PARSE_SHORT;
	if (!is_error(segment->version, type))
		return PARSE_OTHER;
	result = parse_network(xdp, protocol, segment->upper + ICMP_HEADER, &quoted);
	if (result != PARSE_TCP)
		return result;
	if (quoted.version == 4) {
		segment->tuple.ipv4.saddr = quoted.tuple.ipv4.daddr;
		segment->tuple.ipv4.daddr = quoted.tuple.ipv4.saddr;
		segment->tuple.ipv4.sport = quoted.tuple.ipv4.dport;
		segment->tuple.ipv4.dport = quoted.tuple.ipv4.sport;
	} else {
		__builtin_memcpy(segment->tuple.ipv6.saddr, quoted.tuple.ipv6.daddr, 16);
		__builtin_memcpy(segment->tuple.ipv6.daddr, quoted.tuple.ipv6.saddr, 16);
		segment->tuple.ipv6.sport = quoted.tuple.ipv6.dport;
		segment->tuple.ipv6.dport = quoted.tuple.ipv6.sport;
	}
	return PARSE_TCP;
}

/* Whether it is addressed to one of our addresses and ports. */
static __always_inline int is_ours(const struct segment *segment)
{
	const struct guard_ports *ports;
	struct guard_source dest = {};
	__u16 port;

	dest.version = segment->version;
	if (segment->version == 4) {
		__builtin_memcpy(dest.addr, &segment->tuple.ipv4.daddr, 4);
		port = bpf_ntohs(segment->tuple.ipv4.dport);
	} else {
		__builtin_memcpy(dest.addr, segment->tuple.ipv6.daddr, 16);
		port = bpf_ntohs(segment->tuple.ipv6.dport);
	}
	ports = bpf_map_lookup_elem(&sources, &dest);
	return ports && ports->lo <= port && port <= ports->hi;
}

/* The same question as the guard asks: what the kernel owns is the kernel's. */
static __always_inline int is_owned_by_kernel(struct xdp_md *xdp, struct segment *segment)
{
	__u32 len = segment->version == 4 ? sizeof(segment->tuple.ipv4) : sizeof(segment->tuple.ipv6);
	struct bpf_sock *sk;

	sk = bpf_skc_lookup_tcp(xdp, &segment->tuple, len, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

// In several buffers, which an interface with a large MTU needs (veth: above 3,500 octets).
SEC("xdp.frags")
int redirect(struct xdp_md *xdp)
{
	struct segment segment = {};
	enum parse_result result;
	struct ethhdr eth;
	__u32 counter = REDIRECT_REDIRECTED;
	__u64 *value;

	if (read(xdp, 0, &eth, sizeof(eth)))
		return pass(REDIRECT_MALFORMED);
	if (!is_our_mac(eth.h_dest) || bpf_xdp_get_buff_len(xdp) > interface.frame_max)
		return pass(REDIRECT_PASSED);
	result = parse_network(xdp, eth.h_proto, sizeof(eth), &segment);
	if (result == PARSE_ICMP)
		result = parse_quote(xdp, &segment);
	if (result == PARSE_WRONG || result == PARSE_SHORT)
		return pass(REDIRECT_MALFORMED);
	if (result != PARSE_TCP || !is_ours(&segment) || is_owned_by_kernel(xdp, &segment))
		return pass(REDIRECT_PASSED);

	if (bpf_redirect_map(&xsks, xdp->rx_queue_index, XDP_PASS) != XDP_REDIRECT)
		return pass(REDIRECT_NO_SOCKET);
	value = bpf_map_lookup_elem(&counters, &counter);
	if (value)
		*value += 1;
	return XDP_REDIRECT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
