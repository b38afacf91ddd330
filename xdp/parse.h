/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Finds the TCP header of a packet, whatever the packet is read from.
 *
 * A program defines before it includes this file:
 *   PACKET  its context type, struct __sk_buff or struct xdp_md
 *   read()  copies `len` octets at `offset` to `to`, or returns -1 and copies nothing if they are
 *           not all within the packet
 * Offsets count from wherever read() counts them. No function here reads past what read() allows.
 */
#ifndef KEEPSWEEP_PARSE_H
#define KEEPSWEEP_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define VLAN_TAGS_MAX 2
/* Linux accepts 8 options within a header, not that many headers; no real chain is this long. */
#define IPV6_HEADERS_MAX 8

#define IPV4_OFFSET_MASK 0x1fff
#define IPV6_OFFSET_MASK 0xfff8

enum parse_result {
	PARSE_TCP,    /* `segment` is filled in */
	PARSE_ICMP,   /* ICMP over IPv4 or ICMPv6 over IPv6: all but the ports is filled in */
	PARSE_OTHER,  /* another protocol, or a fragment that carries no upper header */
	PARSE_WRONG,  /* a header that contradicts itself or the one before it */
	PARSE_SHORT,  /* ends early, or its headers are out of the reach of read() */
};

struct segment {
	__u32 version;                /* 4 or 6 */
	struct bpf_sock_tuple tuple;  /* network order, the member that `version` names */
	__u32 upper;                  /* offset of the TCP or ICMP header */
};

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

/* No extension header is shorter than this; what the octets mean depends on its kind. */
struct extension {
	__u8 next_header;
	__u8 length;
	__be16 fragment_offset;
	__be32 rest;
};

struct ports {
	__be16 source;
	__be16 dest;
};

static __always_inline enum parse_result parse_ipv4(PACKET *packet, __u32 offset,
						    struct segment *segment)
{
	struct iphdr ip;
	struct ports ports;

	if (read(packet, offset, &ip, sizeof(ip)))
		return PARSE_SHORT;
	if (ip.version != 4 || ip.ihl < 5)
		return PARSE_WRONG;
	if (ip.frag_off & bpf_htons(IPV4_OFFSET_MASK))
		return PARSE_OTHER;
	offset += ip.ihl * 4;

	segment->version = 4;
	segment->upper = offset;
	segment->tuple.ipv4.saddr = ip.saddr;
	segment->tuple.ipv4.daddr = ip.daddr;
	if (ip.protocol == IPPROTO_ICMP)
		return PARSE_ICMP;
	if (ip.protocol != IPPROTO_TCP)
		return PARSE_OTHER;
	if (read(packet, offset, &ports, sizeof(ports)))
		return PARSE_SHORT;
	segment->tuple.ipv4.sport = ports.source;
	segment->tuple.ipv4.dport = ports.dest;
	return PARSE_TCP;
}

static __always_inline enum parse_result parse_ipv6(PACKET *packet, __u32 offset,
						    struct segment *segment)
{
	struct ipv6hdr ip;
	struct ports ports;
	__u8 next_header;
	int i;

	if (read(packet, offset, &ip, sizeof(ip)))
		return PARSE_SHORT;
	if (ip.version != 6)
		return PARSE_WRONG;
	next_header = ip.nexthdr;
	offset += sizeof(ip);

	// Unrolled: without CAP_PERFMON the verifier also follows mispredicted branches, and on those a
	// loop has no end.
#pragma clang loop unroll(full)
	for (i = 0; i < IPV6_HEADERS_MAX; i++) {
		struct extension extension;
		__u8 kind = next_header;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING && kind != IPPROTO_DSTOPTS &&
		    kind != IPPROTO_AH && kind != IPPROTO_FRAGMENT)
			break;
		if (read(packet, offset, &extension, sizeof(extension)))
			return PARSE_SHORT;
		next_header = extension.next_header;
		if (kind == IPPROTO_FRAGMENT) {
			if (extension.fragment_offset & bpf_htons(IPV6_OFFSET_MASK))
				return PARSE_OTHER;
			offset += sizeof(extension);
		} else if (kind == IPPROTO_AH) {
			offset += (extension.length + 2) * 4;
		} else {
			offset += (extension.length + 1) * 8;
		}
	}

	segment->version = 6;
	segment->upper = offset;
	__builtin_memcpy(segment->tuple.ipv6.saddr, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(segment->tuple.ipv6.daddr, &ip.daddr, sizeof(ip.daddr));
	if (next_header == IPPROTO_ICMPV6)
		return PARSE_ICMP;
	if (next_header != IPPROTO_TCP)
		return PARSE_OTHER;
	if (read(packet, offset, &ports, sizeof(ports)))
		return PARSE_SHORT;
	segment->tuple.ipv6.sport = ports.source;
	segment->tuple.ipv6.dport = ports.dest;
	return PARSE_TCP;
}

/* Fills in `segment` from the packet of the EtherType `protocol`, VLAN tags or network header, that
 * begins at `offset`; or says why it cannot. */
static __noinline enum parse_result parse_network(PACKET *packet, __be16 protocol, __u32 offset,
						  struct segment *segment)
{
	int i;

	for (i = 0; i < VLAN_TAGS_MAX; i++) {
		struct vlan_tag tag;

		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		if (read(packet, offset, &tag, sizeof(tag)))
			return PARSE_SHORT;
		protocol = tag.protocol;
		offset += sizeof(tag);
	}

	if (protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(packet, offset, segment);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(packet, offset, segment);
	return PARSE_OTHER;
}

#endif
