//! The records that the BPF programs write (`xdp/host.h`).

use super::{Connection, Numbers, SocketKeepalive, SocketTimestamps, TcpState};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

/// `struct connection_record`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct ConnectionRecord {
    at_ns: u64,
    jiffies: u64,
    cookie: u64,
    inode: u64,
    bytes_received: u64,
    local_addr: [u8; 16],
    peer_addr: [u8; 16],
    netns: u32,
    uid: u32,
    bound_interface: u32,
    flags: u16,
    family: u16,
    local_port: u16,
    peer_port: u16,
    mark: u32,
    snd_una: u32,
    snd_nxt: u32,
    write_seq: u32,
    rcv_nxt: u32,
    rcv_wup: u32,
    rcv_wnd: u32,
    snd_wnd: u32,
    packets_out: u32,
    retrans_out: u32,
    ts_recent: u32,
    ts_offset: u32,
    lsndtime: u32,
    lrcvtime: u32,
    rcv_tstamp: u32,
    keepalive_time: u32,
    keepalive_intvl: u32,
    keepalive_probes: u8,
    state: u8,
    tos: u8,
    rcv_wscale: u8,
    retransmits: u8,
    probes_out: u8,
    _pad: [u8; 2],
}

/// `struct owner_record`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct OwnerRecord {
    pub inode: u64,
    pub pid: u32,
    pub fd: u32,
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<ConnectionRecord>() == 168 && size_of::<OwnerRecord>() == 32);

/// `enum connection_flag`.
mod flag {
    pub const FULL: u16 = 1 << 0;
    pub const TIMESTAMPS: u16 = 1 << 1;
    pub const USEC_TS: u16 = 1 << 2;
    pub const SIGNED: u16 = 1 << 3;
    pub const SIGNED_KNOWN: u16 = 1 << 4;
    pub const KEEPALIVE: u16 = 1 << 5;
    pub const WSCALE: u16 = 1 << 6;
}

/// A struct of integers and of arrays of them, without padding.
///
/// # Safety
/// Every bit pattern is a value of it.
pub(super) unsafe trait Record: Copy + Default {
    /// Returns the record that starts at `octets`, or `None` if it ends early.
    fn read(octets: &[u8]) -> Option<Self> {
        let octets = octets.get(..size_of::<Self>())?;
        // SAFETY: as many octets as it has; read_unaligned asks for no alignment, and the implementer
        // of this trait promises that every bit pattern is a value.
        Some(unsafe { octets.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: repr(C), integers and arrays of them only.
unsafe impl Record for ConnectionRecord {}
// SAFETY: as above.
unsafe impl Record for OwnerRecord {}

impl ConnectionRecord {
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    pub fn at(&self) -> Instant {
        Instant::from_nanos(self.at_ns)
    }

    /// Returns the connection, or `None` if it is neither an IPv4 nor an IPv6 one in a known state.
    pub fn connection(&self, tick: Duration) -> Option<Connection> {
        let end = |address: &[u8; 16], port| self.end(address, port);
        let (local, is_mapped) = end(&self.local_addr, self.local_port)?;
        let (peer, _) = end(&self.peer_addr, self.peer_port)?;
        Some(Connection {
            at: self.at(),
            local,
            peer,
            v4_mapped: is_mapped,
            state: TcpState::from_kernel(self.state)?,
            cookie: self.cookie,
            netns: u64::from(self.netns),
            inode: self.inode,
            uid: self.uid,
            numbers: self.has(flag::FULL).then(|| self.numbers(tick)),
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Returns one end, and whether it is an IPv4 address in an IPv6 one.
    fn end(&self, address: &[u8; 16], port: u16) -> Option<(SocketAddr, bool)> {
        match i32::from(self.family) {
            libc::AF_INET => {
                let [a, b, c, d, ..] = *address;
                Some((SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port), false))
            }
            libc::AF_INET6 => {
                let v6 = Ipv6Addr::from(*address);
                if let Some(v4) = v6.to_ipv4_mapped() {
                    return Some((SocketAddr::new(IpAddr::V4(v4), port), true));
                }
                let scope = if v6.is_unicast_link_local() { self.bound_interface } else { 0 };
                Some((SocketAddrV6::new(v6, port, 0, scope).into(), false))
            }
            _ => None,
        }
    }

    fn numbers(&self, tick: Duration) -> Numbers {
        let age = |stamp: u32| match stamp {
            0 => Duration::MAX,
            // The stamps are the lower half of jiffies, and older than this reading of it.
            stamp => tick * (self.jiffies as u32).wrapping_sub(stamp),
        };
        let rcv_wscale = if self.has(flag::WSCALE) { self.rcv_wscale } else { 0 };
        Numbers {
            snd_una: SeqNumber(self.snd_una),
            snd_nxt: SeqNumber(self.snd_nxt),
            write_seq: SeqNumber(self.write_seq),
            rcv_nxt: SeqNumber(self.rcv_nxt),
            rcv_wup: SeqNumber(self.rcv_wup),
            // The kernel notes what it would offer, and offers what the field holds
            // (tcp_select_window, net/ipv4/tcp_output.c).
            rcv_wnd: self.rcv_wnd.min(u32::from(u16::MAX) << rcv_wscale.min(14)),
            rcv_wscale,
            snd_wnd: self.snd_wnd,
            bytes_received: self.bytes_received,
            packets_out: self.packets_out,
            retrans_out: self.retrans_out,
            retransmits: self.retransmits,
            probes_out: self.probes_out,
            timestamps: self.has(flag::TIMESTAMPS).then(|| SocketTimestamps {
                ts_recent: self.ts_recent,
                offset: self.ts_offset,
                in_microseconds: self.has(flag::USEC_TS),
            }),
            is_signed: self.has(flag::SIGNED_KNOWN).then(|| self.has(flag::SIGNED)),
            mark: self.mark,
            bound_interface: self.bound_interface,
            tos: self.tos,
            keepalive: self.has(flag::KEEPALIVE).then(|| SocketKeepalive {
                idle: tick * self.keepalive_time,
                interval: tick * self.keepalive_intvl,
                count: self.keepalive_probes,
            }),
            since_data_sent: age(self.lsndtime),
            since_data_received: age(self.lrcvtime),
            since_ack_received: age(self.rcv_tstamp),
        }
    }
}

impl TcpState {
    /// include/net/tcp_states.h; request sockets come as TCP_SYN_RECV.
    fn from_kernel(state: u8) -> Option<TcpState> {
        Some(match state {
            1 => TcpState::Established,
            2 => TcpState::SynSent,
            3 => TcpState::SynReceived,
            4 => TcpState::FinWait1,
            5 => TcpState::FinWait2,
            6 => TcpState::TimeWait,
            7 => TcpState::Closed,
            8 => TcpState::CloseWait,
            9 => TcpState::LastAck,
            10 => TcpState::Listen,
            11 => TcpState::Closing,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(4);

    fn record() -> ConnectionRecord {
        let mut local_addr = [0; 16];
        local_addr[..4].copy_from_slice(&[192, 0, 2, 1]);
        ConnectionRecord {
            local_addr,
            family: libc::AF_INET as u16,
            local_port: 5000,
            state: 1,
            flags: flag::FULL,
            jiffies: (7 << 32) + 10,
            ..ConnectionRecord::default()
        }
    }

    fn numbers(record: ConnectionRecord) -> Numbers {
        record.connection(TICK).and_then(|connection| connection.numbers).expect("a full socket")
    }

    #[test]
    fn ages_reach_back_across_the_wrap_of_jiffies() {
        let numbers = numbers(ConnectionRecord { lsndtime: u32::MAX - 4, lrcvtime: 9, ..record() });
        assert_eq!(numbers.since_data_sent, TICK * 15);
        assert_eq!(numbers.since_data_received, TICK);
        assert_eq!(numbers.since_ack_received, Duration::MAX, "never");
    }

    #[test]
    fn what_is_not_negotiated_or_not_told_is_none() {
        let numbers = numbers(ConnectionRecord { rcv_wscale: 7, ts_recent: 9, ..record() });
        assert_eq!((numbers.rcv_wscale, numbers.timestamps), (0, None));
        assert_eq!((numbers.is_signed, numbers.keepalive), (None, None));
    }

    #[test]
    fn small_sockets_have_no_numbers_and_unknown_states_no_connection() {
        let small = ConnectionRecord { flags: 0, state: 6, ..record() };
        let small = small.connection(TICK).expect("TIME_WAIT is known");
        assert_eq!((small.state, small.numbers), (TcpState::TimeWait, None));
        assert_eq!(ConnectionRecord { state: 99, ..record() }.connection(TICK), None);
        assert_eq!(ConnectionRecord { family: 40, ..record() }.connection(TICK), None);
    }

    #[test]
    fn link_local_ends_have_a_scope_and_mapped_ones_are_ipv4() {
        let ends = |local: &str, peer: &str| {
            let octets = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
            let record = ConnectionRecord {
                family: libc::AF_INET6 as u16,
                local_addr: octets(local),
                peer_addr: octets(peer),
                bound_interface: 3,
                ..record()
            };
            let connection = record.connection(TICK).expect("a connection");
            (connection.local.to_string(), connection.peer.to_string(), connection.v4_mapped)
        };
        let (local, peer, mapped) = ends("fe80::1", "2001:db8::1");
        assert_eq!((&*local, &*peer, mapped), ("[fe80::1%3]:5000", "[2001:db8::1]:0", false));
        let (local, peer, mapped) = ends("::ffff:192.0.2.1", "::ffff:192.0.2.2");
        assert_eq!((&*local, &*peer, mapped), ("192.0.2.1:5000", "192.0.2.2:0", true));
    }

    #[test]
    fn a_record_that_ends_early_is_none() {
        let octets = [0xff; size_of::<OwnerRecord>()];
        assert!(OwnerRecord::read(&octets[1..]).is_none());
        assert_eq!(OwnerRecord::read(&octets).map(|record| record.pid), Some(u32::MAX));
    }
}
