//! What is told of a connection.
#![forbid(unsafe_code)]

use crate::time::Instant;
use crate::wire::SeqNumber;
use std::net::SocketAddr;
use std::time::Duration;

/// State of a TCP socket (RFC 9293 §3.3.2, with the additions of include/net/tcp_states.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TcpState {
    /// ESTABLISHED.
    Established,
    /// SYN-SENT.
    SynSent,
    /// SYN-RECEIVED; on Linux a request socket.
    SynReceived,
    /// FIN-WAIT-1.
    FinWait1,
    /// FIN-WAIT-2; on Linux a small socket once the application has closed it.
    FinWait2,
    /// TIME-WAIT; on Linux a small socket of its own kind.
    TimeWait,
    /// CLOSED.
    Closed,
    /// CLOSE-WAIT.
    CloseWait,
    /// LAST-ACK.
    LastAck,
    /// LISTEN.
    Listen,
    /// CLOSING.
    Closing,
}

/// A connection at the instant at which it was read. What this kernel does not tell, or what a
/// request or TIME_WAIT socket does not have, is `None`.
#[derive(Clone, PartialEq, Debug)]
pub struct Connection {
    /// The kernel's clock at the reading.
    pub at: Instant,
    /// Our end, as it is on the wire: IPv4 for a v4-mapped socket. The scope of a link-local
    /// address is set.
    pub local: SocketAddr,
    /// The peer's end, likewise.
    pub peer: SocketAddr,
    /// Whether the socket is an IPv6 one that talks IPv4.
    pub v4_mapped: bool,
    /// Its state.
    pub state: TcpState,
    /// The socket's cookie: no other socket of this boot has it.
    pub cookie: u64,
    /// The inode of the network namespace.
    pub netns: u64,
    /// The inode of the socket in sockfs; 0 if no file holds it any more.
    pub inode: u64,
    /// The user who opened the socket; for a TIME_WAIT one 0, and for a request the listener's.
    pub uid: u32,
    /// What only a full socket has.
    pub numbers: Option<Numbers>,
}

/// The numbers of a full socket (struct tcp_sock, include/linux/tcp.h).
#[derive(Clone, PartialEq, Debug)]
pub struct Numbers {
    /// SND.UNA.
    pub snd_una: SeqNumber,
    /// SND.NXT.
    pub snd_nxt: SeqNumber,
    /// The end of what the application has written, sent or not (`write_seq`).
    pub write_seq: SeqNumber,
    /// RCV.NXT.
    pub rcv_nxt: SeqNumber,
    /// RCV.NXT as the last segment that we sent has said it (`rcv_wup`).
    pub rcv_wup: SeqNumber,
    /// The receive window that was last offered, in octets (`rcv_wnd`).
    pub rcv_wnd: u32,
    /// The shift of our windows, if scaling was negotiated (`rx_opt.rcv_wscale`).
    pub rcv_wscale: u8,
    /// The peer's window, in octets (`snd_wnd`).
    pub snd_wnd: u32,
    /// Octets received, as the peer counts them without SYN and FIN (`bytes_received`).
    pub bytes_received: u64,
    /// Segments sent and not acknowledged (`packets_out`).
    pub packets_out: u32,
    /// Of those, retransmitted ones (`retrans_out`).
    pub retrans_out: u32,
    /// Timeouts in a row (`icsk_retransmits`).
    pub retransmits: u8,
    /// Keepalive or zero-window probes that the kernel itself has out (`icsk_probes_out`).
    pub probes_out: u8,
    /// Timestamps, if they were negotiated.
    pub timestamps: Option<SocketTimestamps>,
    /// Whether segments are signed (TCP-MD5, TCP-AO); `None` if the kernel does not say.
    pub is_signed: Option<bool>,
    /// SO_MARK.
    pub mark: u32,
    /// The interface that the socket is bound to (SO_BINDTODEVICE), or that its link-local address
    /// is of; 0 for none.
    pub bound_interface: u32,
    /// The TOS or traffic class octet, without its ECN bits.
    pub tos: u8,
    /// SO_KEEPALIVE: `None` if it is off.
    pub keepalive: Option<SocketKeepalive>,
    /// How long ago data was last sent (`lsndtime`).
    ///
    /// This and the next two are exact to a tick of the kernel ([`crate::time::Clock::tick`], 1 to 10 ms) and
    /// wrap: beyond 2^32 ticks, 49 days at 1,000 a second, they start over. The kernel starts them
    /// with the connection; [`Duration::MAX`] where it has not, as in SYN-SENT.
    pub since_data_sent: Duration,
    /// How long ago data was last received (`icsk_ack.lrcvtime`).
    pub since_data_received: Duration,
    /// How long ago the last acknowledgement came in (`rcv_tstamp`).
    pub since_ack_received: Duration,
}

/// The timestamps of a socket (RFC 7323).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketTimestamps {
    /// The peer's latest TSval: what we echo (`rx_opt.ts_recent`).
    pub ts_recent: u32,
    /// What is added to the clock for a TSval (`tsoffset`), in the clock's own unit.
    pub offset: u32,
    /// Whether the clock runs in microseconds, not milliseconds (`tcp_usec_ts`, since Linux 6.7).
    pub in_microseconds: bool,
}

/// Keepalive as a socket has it, with the namespace's defaults filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketKeepalive {
    /// TCP_KEEPIDLE.
    pub idle: Duration,
    /// TCP_KEEPINTVL.
    pub interval: Duration,
    /// TCP_KEEPCNT.
    pub count: u8,
}
