//! Connections that somebody else opened, as they are given to us.
#![forbid(unsafe_code)]

use crate::probe::evidence::Seen;
use crate::probe::host::{Host, Wire};
use crate::probe::table::FlowKey;
use crate::time::Instant;
use crate::wire::{SeqNumber, Timestamps};
use std::net::SocketAddr;

/// An established connection that keepsweep did not open, and never closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    /// The address and port of our side.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// SND.UNA (RFC 9293 §3.3.1).
    pub snd_una: SeqNumber,
    /// SND.NXT; beyond SND.UNA there is data in flight, and the flow is not probed.
    pub snd_nxt: SeqNumber,
    /// RCV.NXT.
    pub rcv_nxt: SeqNumber,
    /// The receive window as it stands in the header, above 0.
    pub wnd: u16,
    /// The flow's timestamps, if both sides use them (RFC 7323 §3.2).
    pub clock: Option<TimestampClock>,
    /// What is known from the start to forbid probing it.
    pub obstacle: Option<Seen>,
    /// What the kernel of this host says of it, if it is one of its connections. Then the numbers are
    /// those of the newest reading.
    pub host: Option<Host>,
}

impl Given {
    /// Returns why the flow must not be probed, if it must not.
    pub fn obstacle(&self) -> Option<Seen> {
        // A one-octet probe at SND.NXT − 1 was seen to reach the application; one at SND.UNA − 1 of
        // a flow in flight may be answered by a peer that is about to acknowledge more.
        let is_in_flight = self.snd_nxt != self.snd_una;
        // The kernel's own can be read again.
        let in_flight = (is_in_flight && self.host.is_none()).then_some(Seen::DataInFlight);
        self.obstacle.or(in_flight)
    }

    /// Returns the ends that its packets have outside of this host, as far as is known.
    pub fn wire(&self) -> (SocketAddr, SocketAddr) {
        match self.host.map(|host| host.latest.wire) {
            Some(Wire::Other(FlowKey { local, mut peer })) => {
                // The socket alone tells a scope.
                if peer.ip() == self.peer.ip() {
                    let port = peer.port();
                    peer = self.peer;
                    peer.set_port(port);
                }
                (local, peer)
            }
            _ => (self.local, self.peer),
        }
    }
}

/// Where the timestamps of a flow stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimestampClock {
    /// The peer's latest TSval: what we echo.
    pub ts_recent: u32,
    /// Our TSval less the milliseconds, or microseconds, of CLOCK_MONOTONIC, modulo 2^32: what Linux
    /// calls `tsoffset` (include/net/tcp.h).
    pub ts_offset: u32,
    /// Whether the clock runs in microseconds (`tcp_usec_ts`).
    pub in_microseconds: bool,
}

impl TimestampClock {
    /// Returns the option of a segment that is sent at `now`.
    pub fn timestamps(&self, now: Instant) -> Timestamps {
        let unit = if self.in_microseconds { 1_000 } else { 1_000_000 };
        let monotonic = (now.as_nanos() / unit) as u32;
        Timestamps { tsval: monotonic.wrapping_add(self.ts_offset), tsecr: self.ts_recent }
    }
}

/// Who opened a flow, and so what may be sent on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// We did: we answer the peer as a TCP must, and close it.
    Owned,
    /// Somebody else did. Nothing is ever sent but keepalives that look like the owner's: no answer
    /// to data or FIN, no ACK of what the owner has not got, no RST.
    Given {
        /// The window of the header.
        wnd: u16,
        /// The flow's timestamps.
        clock: Option<TimestampClock>,
        /// The TOS or traffic class octet.
        tos: u8,
    },
}

impl Origin {
    /// Says whether we opened it.
    pub const fn is_owned(self) -> bool {
        matches!(self, Origin::Owned)
    }

    /// Returns the timestamps option of a segment sent at `now`; our own SYNs offer none.
    pub fn timestamps(self, now: Instant) -> Option<Timestamps> {
        match self {
            Origin::Owned => None,
            Origin::Given { clock, .. } => clock.map(|clock| clock.timestamps(now)),
        }
    }
}

#[cfg(test)]
impl Given {
    /// Returns a flow from this port for tests: nothing is in flight, and all its numbers are 1.
    pub(crate) fn example(local_port: u16) -> Given {
        let one = SeqNumber(1);
        Given {
            local: ([10, 98, 0, 1], local_port).into(),
            peer: ([10, 99, 0, 7], 80).into(),
            snd_una: one,
            snd_nxt: one,
            rcv_nxt: one,
            wnd: 1,
            clock: None,
            obstacle: None,
            host: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_follow_the_clock_and_wrap() {
        let clock = TimestampClock { ts_recent: 7, ts_offset: u32::MAX, in_microseconds: false };
        let at = |ms: u64| clock.timestamps(Instant::from_nanos(ms * 1_000_000 + 999_999));
        assert_eq!(at(0), Timestamps { tsval: u32::MAX, tsecr: 7 });
        assert_eq!(at(1).tsval, 0);
        assert_eq!(at(1 << 32).tsval, u32::MAX);
        let fine = TimestampClock { in_microseconds: true, ..clock };
        assert_eq!(fine.timestamps(Instant::from_nanos(5_999)).tsval, 4);
    }

    #[test]
    fn data_in_flight_forbids_probing() {
        let given = Given::example(1);
        assert_eq!(given.obstacle(), None);
        assert_eq!(
            Given { snd_nxt: given.snd_una + 1, ..given }.obstacle(),
            Some(Seen::DataInFlight)
        );
        let owned = Given { obstacle: Some(Seen::KernelOwned), ..given };
        assert_eq!(owned.obstacle(), Some(Seen::KernelOwned));
    }
}
