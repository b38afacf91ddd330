// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Lists the TCP sockets of a network namespace, and the descriptors that refer to them. Both
// programs read and change nothing.
//
// The kernel's structs are declared here with no more than the fields in use; their offsets are
// filled in at load time from the BTF of the running kernel. A field that is not in every kernel is
// asked for first. Since Linux 5.15 a full socket is locked while its program runs (bpf_iter_tcp,
// net/ipv4/tcp_ipv4.c): its numbers belong together.

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "host.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define TCP_SYN_RECV 3
#define TCP_TIME_WAIT 6
#define TCP_NEW_SYN_RECV 12

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* include/net/sock.h */
enum sock_flags { SOCK_KEEPOPEN = 3 };

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct netns_ipv4 {
	int sysctl_tcp_keepalive_time;
	int sysctl_tcp_keepalive_intvl;
	__u8 sysctl_tcp_keepalive_probes;
};

struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
};

struct inode {
	unsigned long i_ino;
};

struct sock;

struct socket {
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct sock {
	struct sock_common __sk_common;
	__u32 sk_mark;
	__u16 sk_protocol;
	struct socket *sk_socket;
};

struct ipv6_pinfo {
	__u8 tclass;
};

struct inet_sock {
	struct sock sk;
	struct ipv6_pinfo *pinet6;
	__u8 tos;
};


struct inet_connection_sock {
	struct inet_sock icsk_inet;
	__u8 icsk_retransmits;
	__u8 icsk_probes_out;
	struct {
		__u32 lrcvtime;
	} icsk_ack;
};

struct tcp_options_received {
	__u32 ts_recent;
	__u16 tstamp_ok : 1;
	__u16 wscale_ok : 1;
	__u16 rcv_wscale : 4;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct tcp_md5sig_info {
	struct hlist_head head;
};

struct tcp_ao_info {
	struct hlist_head head;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 rcv_wup;
	__u32 rcv_wnd;
	__u32 snd_wnd;
	__u64 bytes_received;
	__u32 packets_out;
	__u32 retrans_out;
	struct tcp_options_received rx_opt;
	__u32 tsoffset;
	__u8 tcp_usec_ts : 1;
	__u32 lsndtime;
	__u32 rcv_tstamp;
	unsigned int keepalive_time;
	unsigned int keepalive_intvl;
	__u8 keepalive_probes;
	struct tcp_md5sig_info *md5sig_info;
	struct tcp_ao_info *ao_info;
};

struct inet_timewait_sock {
	volatile unsigned char tw_substate;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
};

struct task_struct {
	int tgid;
	struct task_struct *group_leader;
	char comm[16];
};

struct file;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	unsigned int uid;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/* Inode of a socket in sockfs (SOCK_INODE, include/net/sock.h), 0 for an orphan. */
static __always_inline __u64 socket_inode(struct socket *socket)
{
	return socket ? BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino) : 0;
}

static __always_inline __u8 state_of(struct sock_common *skc)
{
	if (skc->skc_state == TCP_NEW_SYN_RECV)
		return TCP_SYN_RECV;
	if (skc->skc_state != TCP_TIME_WAIT)
		return skc->skc_state;
	/* FIN_WAIT2 that no application holds any more is a small socket too. */
	struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(skc);
	return tw ? tw->tw_sk.tw_substate : TCP_TIME_WAIT;
}

static __always_inline void set_addresses(struct connection_record *to, struct sock_common *from)
{
	/* CONFIG_IPV6 */
	if (from->skc_family == AF_INET6 && bpf_core_field_exists(from->skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&to->local_addr, from, skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&to->peer_addr, from, skc_v6_daddr.in6_u.u6_addr8);
		return;
	}
	__be32 local = from->skc_rcv_saddr, peer = from->skc_daddr;
	__builtin_memcpy(to->local_addr, &local, sizeof(local));
	__builtin_memcpy(to->peer_addr, &peer, sizeof(peer));
}

static __always_inline __u16 signed_flags(struct tcp_sock *tp)
{
	__u16 flags = 0;

	/* CONFIG_TCP_MD5SIG. The list is kept when its last key goes. */
	if (bpf_core_field_exists(tp->md5sig_info)) {
		flags |= CONNECTION_SIGNED_KNOWN;
		struct tcp_md5sig_info *info = tp->md5sig_info;
		if (info && info->head.first)
			flags |= CONNECTION_SIGNED;
	}
	/* CONFIG_TCP_AO, since Linux 6.7. */
	if (bpf_core_field_exists(tp->ao_info) && tp->ao_info)
		flags |= CONNECTION_SIGNED_KNOWN | CONNECTION_SIGNED;
	return flags;
}

static __always_inline void set_numbers(struct connection_record *to, struct tcp_sock *tp)
{
	struct inet_connection_sock *icsk = &tp->inet_conn;
	struct inet_sock *inet = &icsk->icsk_inet;
	struct sock *sk = &inet->sk;
	struct net *net = sk->__sk_common.skc_net.net;
	struct tcp_options_received *options = &tp->rx_opt;
	__u16 flags = CONNECTION_FULL | signed_flags(tp);

	to->inode = socket_inode(sk->sk_socket);
	to->mark = sk->sk_mark;
	to->tos = inet->tos;
	if (to->family == AF_INET6 && bpf_core_field_exists(inet->pinet6)) {
		struct ipv6_pinfo *pinet6 = inet->pinet6;
		/* A v4-mapped socket sends IPv4, by the IPv4 setting. */
		__u32 *words = (__u32 *)to->peer_addr;
		bool is_mapped = !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
		if (pinet6 && !is_mapped)
			to->tos = pinet6->tclass;
	}

	to->snd_una = tp->snd_una;
	to->snd_nxt = tp->snd_nxt;
	to->write_seq = tp->write_seq;
	to->rcv_nxt = tp->rcv_nxt;
	to->rcv_wup = tp->rcv_wup;
	to->rcv_wnd = tp->rcv_wnd;
	to->snd_wnd = tp->snd_wnd;
	to->bytes_received = tp->bytes_received;
	to->packets_out = tp->packets_out;
	to->retrans_out = tp->retrans_out;
	to->retransmits = icsk->icsk_retransmits;
	to->probes_out = icsk->icsk_probes_out;

	if (BPF_CORE_READ_BITFIELD(options, wscale_ok)) {
		flags |= CONNECTION_WSCALE;
		to->rcv_wscale = BPF_CORE_READ_BITFIELD(options, rcv_wscale);
	}
	if (BPF_CORE_READ_BITFIELD(options, tstamp_ok)) {
		flags |= CONNECTION_TIMESTAMPS;
		to->ts_recent = options->ts_recent;
		to->ts_offset = tp->tsoffset;
		/* Since Linux 6.7; before, there was no other clock than that of milliseconds. */
		if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD(tp, tcp_usec_ts))
			flags |= CONNECTION_USEC_TS;
	}

	to->lsndtime = tp->lsndtime;
	to->lrcvtime = icsk->icsk_ack.lrcvtime;
	to->rcv_tstamp = tp->rcv_tstamp;

	if (sk->__sk_common.skc_flags & (1UL << SOCK_KEEPOPEN)) {
		flags |= CONNECTION_KEEPALIVE;
		/* As keepalive_time_when() and its kin, include/net/tcp.h. */
		to->keepalive_time = tp->keepalive_time ?: net->ipv4.sysctl_tcp_keepalive_time;
		to->keepalive_intvl = tp->keepalive_intvl ?: net->ipv4.sysctl_tcp_keepalive_intvl;
		to->keepalive_probes = tp->keepalive_probes ?: net->ipv4.sysctl_tcp_keepalive_probes;
	}
	to->flags = flags;
}

SEC("iter/tcp")
int connections(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct connection_record record = {};

	if (!skc)
		return 0;
	record.cookie = bpf_get_socket_cookie(skc);
	record.netns = skc->skc_net.net->ns.inum;
	record.uid = ctx->uid;
	record.bound_interface = skc->skc_bound_dev_if;
	record.family = skc->skc_family;
	record.local_port = skc->skc_num;
	record.peer_port = bpf_ntohs(skc->skc_dport);
	record.state = state_of(skc);
	set_addresses(&record, skc);

	/* None for TIME_WAIT and request sockets. */
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(skc);
	if (tp)
		set_numbers(&record, tp);

	record.jiffies = bpf_jiffies64();
	record.at_ns = bpf_ktime_get_ns();
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

SEC("iter/task_file")
int owners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner_record record = {};

	if (!task || !file)
		return 0;
	struct socket *socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	struct sock *sk = socket->sk;
	if (!sk || (sk->sk_protocol != IPPROTO_TCP && sk->sk_protocol != IPPROTO_MPTCP))
		return 0;
	__u16 family = sk->__sk_common.skc_family;
	if (family != AF_INET && family != AF_INET6)
		return 0;

	record.inode = socket_inode(socket);
	record.pid = task->tgid;
	record.fd = ctx->fd;
	BPF_CORE_READ_INTO(&record.comm, task, group_leader, comm);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
