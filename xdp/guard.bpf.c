// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The guard. The kernel does not know the flows that keepsweep owns and would answer their
// SYN-ACKs and ACKs with RST, which kills them.
//
// Both programs return TCX_NEXT for what is none of their business, so that tcx programs behind
// them see it as if the guard were not there.

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Everything is read relative to the network header, which the kernel has set before any tcx program
 * runs: that is the same for devices with and without a MAC header, and for tags that the NIC has
 * taken off. */
#define PACKET struct __sk_buff

static __always_inline int read(struct __sk_buff *skb, __u32 offset, void *to, __u32 len)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, len, BPF_HDR_START_NET) ? -1 : 0;
}

#include "parse.h"
#include "shared.h"

/* The names of linux/bpf.h from 6.6 on, with the same values; older headers lack them. */
#define NEXT TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT

/* Enough for two VLAN tags, the longest IPv4 header and a TCP header, or IPv6 with extensions. */
#define HEADERS_MAX 256
#define VLAN_VID_MASK 0x0fff
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_RST 0x04

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by Rust */
	__type(key, struct guard_source);
	__type(value, struct guard_ports);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by Rust */
	__type(key, struct guard_tuple);
	__type(value, __u8);
} tuples SEC(".maps");

/* Filled and emptied by Rust while the programs run. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by Rust */
	__type(key, struct guard_tuple);
	__type(value, struct guard_tuple);
} held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += 1;
}

static __always_inline enum parse_result parse(struct __sk_buff *skb, struct segment *segment)
{
	enum parse_result result = parse_network(skb, skb->protocol, 0, segment);
	__u32 len = skb->len;

	if (result != PARSE_SHORT)
		return result;
	// Some drivers leave the headers in page fragments, where relative reads do not reach.
	if (bpf_skb_pull_data(skb, len < HEADERS_MAX ? len : HEADERS_MAX))
		return PARSE_SHORT;
	return parse_network(skb, skb->protocol, 0, segment);
}

/* Whether our end of the flow is one of our addresses and ports. */
static __always_inline int is_ours(const struct guard_tuple *flow)
{
	const struct guard_ports *ports = bpf_map_lookup_elem(&sources, &flow->local);

	return ports && ports->lo <= flow->local_port && flow->local_port <= ports->hi;
}

static __always_inline int is_given(const struct guard_tuple *flow)
{
	return bpf_map_lookup_elem(&tuples, flow) != 0;
}

/* The ends of the socket whose packets come in like this, if they are held. */
static __always_inline const struct guard_tuple *held_socket(const struct guard_tuple *flow)
{
	return bpf_map_lookup_elem(&held, flow);
}

/* `inbound`: our end is the destination. */
static __always_inline void flow_of(const struct segment *segment, int inbound,
				    struct guard_tuple *flow)
{
	const struct bpf_sock_tuple *tuple = &segment->tuple;
	__be16 sport, dport;

	flow->local.version = segment->version;
	if (segment->version == 4) {
		__builtin_memcpy(flow->local.addr,
				 inbound ? &tuple->ipv4.daddr : &tuple->ipv4.saddr, 4);
		__builtin_memcpy(flow->peer_addr,
				 inbound ? &tuple->ipv4.saddr : &tuple->ipv4.daddr, 4);
		sport = tuple->ipv4.sport;
		dport = tuple->ipv4.dport;
	} else {
		__builtin_memcpy(flow->local.addr,
				 inbound ? tuple->ipv6.daddr : tuple->ipv6.saddr, 16);
		__builtin_memcpy(flow->peer_addr,
				 inbound ? tuple->ipv6.saddr : tuple->ipv6.daddr, 16);
		sport = tuple->ipv6.sport;
		dport = tuple->ipv6.dport;
	}
	flow->local_port = bpf_ntohs(inbound ? dport : sport);
	flow->peer_port = bpf_ntohs(inbound ? sport : dport);
}

/* What a packet to that socket has for addresses and ports once it is translated. */
static __always_inline __u32 tuple_of(const struct guard_tuple *socket, struct bpf_sock_tuple *tuple)
{
	__be16 sport = bpf_htons(socket->peer_port), dport = bpf_htons(socket->local_port);

	if (socket->local.version == 4) {
		__builtin_memcpy(&tuple->ipv4.saddr, socket->peer_addr, 4);
		__builtin_memcpy(&tuple->ipv4.daddr, socket->local.addr, 4);
		tuple->ipv4.sport = sport;
		tuple->ipv4.dport = dport;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, socket->peer_addr, 16);
	__builtin_memcpy(tuple->ipv6.daddr, socket->local.addr, 16);
	tuple->ipv6.sport = sport;
	tuple->ipv6.dport = dport;
	return sizeof(tuple->ipv6);
}

/* Keeps from a socket what would end its connection, and nothing else. */
static __always_inline int hold(struct __sk_buff *skb, const struct segment *segment,
				const struct guard_tuple *socket)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 tuple_len;
	__u8 flags;
	int listens;

	if (read(skb, segment->upper + TCP_FLAGS, &flags, sizeof(flags)))
		return NEXT;
	if (!(flags & (TCP_RST | TCP_SYN)))
		return NEXT;
	tuple_len = tuple_of(socket, &tuple);
	sk = bpf_skc_lookup_tcp(skb, &tuple, tuple_len, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return NEXT;
	// The connection is over, and this may be the next one.
	listens = sk->state == BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	if (listens)
		return NEXT;
	count(GUARD_HELD);
	return DROP;
}

SEC("classifier")
int guard_ingress(struct __sk_buff *skb)
{
	const struct guard_tuple *socket;
	struct segment segment = {};
	struct guard_tuple flow = {};
	struct bpf_sock *sk;
	__u32 tuple_len;
	int given;

	// Another host's: the IP layer discards it (ip_rcv), and a bridge or macvlan above this
	// interface, which has a guard of its own, may be whom it is for.
	if (skb->pkt_type != PACKET_HOST)
		return NEXT;
	// The same of a VLAN device; without one the kernel takes the frame for another host's.
	if (skb->vlan_present && (skb->vlan_tci & VLAN_VID_MASK))
		return NEXT;
	if (parse(skb, &segment) != PARSE_TCP)
		return NEXT;

	flow_of(&segment, 1, &flow);
	socket = held_socket(&flow);
	if (socket)
		return hold(skb, &segment, socket);
	given = is_given(&flow);
	if (!given && !is_ours(&flow))
		return NEXT;

	tuple_len = segment.version == 4 ? sizeof(segment.tuple.ipv4) : sizeof(segment.tuple.ipv6);
	// The skc variant also finds request and TIME_WAIT sockets, which own their tuple too.
	sk = bpf_skc_lookup_tcp(skb, &segment.tuple, tuple_len, BPF_F_CURRENT_NETNS, 0);
	if (sk) {
		// A listener resets a connection that it does not know.
		int owned = !given || sk->state != BPF_TCP_LISTEN;

		bpf_sk_release(sk);
		if (owned) {
			count(GUARD_PASSED_OWNED);
			return NEXT;
		}
	}
	count(GUARD_DROPPED);
	return DROP;
}

/* Whether a raw IP socket has sent this, as keepsweep does on the raw path. The kernel's own resets
 * come from its control socket of protocol IPPROTO_TCP (tcp_v4_send_reset), from none
 * (tcp_v6_send_response), or from the socket of a connection. */
static __always_inline int is_from_raw_socket(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	return sk && sk->protocol == IPPROTO_RAW;
}

// Frames that keepsweep crafts itself bypass the qdisc layer on the packet path
// (PACKET_QDISC_BYPASS), and with it this program; those of the raw path are told by their socket.
// What is left comes from the stack.
SEC("classifier")
int guard_egress(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct guard_tuple flow = {};
	__u8 flags;

	if (parse(skb, &segment) != PARSE_TCP)
		return NEXT;

	flow_of(&segment, 0, &flow);
	if (!is_ours(&flow) && !is_given(&flow) && !held_socket(&flow))
		return NEXT;
	if (read(skb, segment.upper + TCP_FLAGS, &flags, sizeof(flags)))
		return NEXT;
	if ((flags & TCP_RST) && !is_from_raw_socket(skb))
		count(GUARD_KERNEL_RSTS);
	return NEXT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
