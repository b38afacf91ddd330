//! What this host's kernel says of a connection that it owns, each time that it is read.
//!
//! The kernel is a witness beside the wire: it has seen every segment, also those that we filter out
//! or lose. A connection that it says has moved is alive, whatever we heard.
#![forbid(unsafe_code)]

use crate::probe::evidence::Seen;
use crate::probe::given::TimestampClock;
use crate::probe::table::FlowKey;
use crate::time::Instant;
use crate::wire::SeqNumber;

/// A flow that this host's kernel owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    /// The socket's cookie: another socket on the same 4-tuple has another one.
    pub cookie: u64,
    /// The first reading: what came after it is life.
    pub first: Reading,
    /// The newest one.
    pub latest: Reading,
}

impl Host {
    /// Returns a flow that was read once.
    pub const fn new(cookie: u64, reading: Reading) -> Self {
        Host { cookie, first: reading, latest: reading }
    }
}

/// A connection as the kernel has it at one instant (RFC 9293 §3.3.1; struct tcp_sock).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// When the reading began, or later.
    pub at: Instant,
    /// What forbids probing it: its state, or that it is signed.
    pub obstacle: Option<Seen>,
    /// Whether its state is one that only the peer's FIN leads to.
    pub is_closed_by_peer: bool,
    /// Whether the kernel still has the numbers below: not of what is left of a closed socket.
    pub has_numbers: bool,
    /// SND.UNA.
    pub snd_una: SeqNumber,
    /// SND.NXT.
    pub snd_nxt: SeqNumber,
    /// RCV.NXT.
    pub rcv_nxt: SeqNumber,
    /// RCV.NXT as the last segment of this host's has said it.
    pub rcv_wup: SeqNumber,
    /// The window field of a header that is sent now.
    pub wnd: u16,
    /// Whether the peer's window is 0.
    pub is_peer_window_zero: bool,
    /// Octets received, without SYN and FIN.
    pub bytes_received: u64,
    /// Whether segments are sent and not acknowledged, or are being sent again.
    pub is_in_flight: bool,
    /// Timeouts in a row.
    pub retransmits: u8,
    /// The flow's timestamps, if both sides use them.
    pub clock: Option<TimestampClock>,
    /// The TOS or traffic class octet, without its ECN bits: keepalives are not ECN-capable (RFC 3168
    /// §6.1.4).
    pub tos: u8,
    /// When the last acknowledgment came; good to a tick of the kernel's.
    pub last_ack_at: Instant,
    /// What ends its packets have outside of this host.
    pub wire: Wire,
    /// SEG.SEQ of the last RST without ACK that was kept from the socket since its resets are held.
    pub reset: Option<SeqNumber>,
}

/// The ends that the packets of a connection have outside of this host, where its own address
/// translation has done its work on the way out, and not yet on the way in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wire {
    /// Those of the socket, as far as anybody knows.
    #[default]
    Same,
    /// Others.
    Other(FlowKey),
    /// Nobody can say.
    Unknown,
}

/// What the peer has done between two readings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It has sent data.
    Data,
    /// It has sent FIN.
    Fin,
    /// It has acknowledged something, or repeated an acknowledgment.
    Ack,
}

impl Reading {
    /// Returns what the peer has done since `earlier` was read.
    pub fn life_since(&self, earlier: &Reading) -> Option<Life> {
        if self.is_closed_by_peer && !earlier.is_closed_by_peer {
            Some(Life::Fin)
        } else if !self.has_numbers {
            None
        } else if self.bytes_received != earlier.bytes_received {
            Some(Life::Data)
        } else if self.rcv_nxt != earlier.rcv_nxt {
            // What takes up a number and is no octet.
            Some(Life::Fin)
        } else if self.snd_una != earlier.snd_una || self.last_ack_at > earlier.at {
            Some(Life::Ack)
        } else {
            None
        }
    }

    /// Returns the SEG.ACK of an old-ack probe, if one can be sent.
    ///
    /// A host without the connection answers with RST at SEG.SEQ = that number (RFC 9293 §3.10.7.1),
    /// which lies two below what our kernel has acknowledged, and so outside its window: the socket
    /// survives it (net/ipv4/tcp_input.c, tcp_validate_incoming, which also looks at one below). Two
    /// octets must have been received and acknowledged, or it would lie before the peer's ISS.
    pub fn old_ack(&self) -> Option<SeqNumber> {
        let unacknowledged = u64::from(self.rcv_nxt.0.wrapping_sub(self.rcv_wup.0));
        let acknowledged = self.bytes_received.saturating_sub(unacknowledged);
        (acknowledged >= 2).then(|| self.rcv_wup - 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading {
            at: Instant::from_nanos(1_000),
            obstacle: None,
            is_closed_by_peer: false,
            has_numbers: true,
            snd_una: SeqNumber(u32::MAX),
            snd_nxt: SeqNumber(u32::MAX),
            rcv_nxt: SeqNumber(1),
            rcv_wup: SeqNumber(1),
            wnd: 502,
            is_peer_window_zero: false,
            bytes_received: 1 << 33,
            is_in_flight: false,
            retransmits: 0,
            clock: None,
            tos: 0,
            last_ack_at: Instant::from_nanos(900),
            wire: Wire::Same,
            reset: None,
        }
    }

    #[test]
    fn whatever_has_moved_is_life() {
        let first = reading();
        let later = Reading { at: Instant::from_nanos(9_000), ..first };
        assert_eq!(later.life_since(&first), None);
        let rows = [
            (Reading { last_ack_at: Instant::from_nanos(1_000), ..later }, None),
            (Reading { last_ack_at: Instant::from_nanos(1_001), ..later }, Some(Life::Ack)),
            (Reading { snd_una: SeqNumber(3), ..later }, Some(Life::Ack)),
            (Reading { rcv_nxt: SeqNumber(2), ..later }, Some(Life::Fin)),
            // 2^32 octets, so that the numbers are the same again.
            (Reading { bytes_received: (1 << 33) + (1 << 32), ..later }, Some(Life::Data)),
            // A FIN is the last word, whatever came before it.
            (Reading { bytes_received: 7, is_closed_by_peer: true, ..later }, Some(Life::Fin)),
            // What is left in TIME_WAIT, and after our own side alone has closed.
            (Reading { is_closed_by_peer: true, ..Reading::default() }, Some(Life::Fin)),
            (Reading::default(), None),
            // What our own side has done is none.
            (Reading { snd_nxt: SeqNumber(7), is_in_flight: true, ..later }, None),
            (Reading { rcv_wup: SeqNumber(0), retransmits: 3, wnd: 1, ..later }, None),
        ];
        for (reading, life) in rows {
            assert_eq!(reading.life_since(&first), life, "{reading:?}");
        }
        let closed = Reading { is_closed_by_peer: true, ..first };
        let later = Reading { is_closed_by_peer: true, ..later };
        assert_eq!(later.life_since(&closed), None, "it was before");
    }

    #[test]
    fn an_old_ack_takes_two_octets_that_were_acknowledged() {
        let rows = [
            (0, 0, None),
            (1, 0, None),
            (2, 0, Some(SeqNumber(u32::MAX))),
            (2, 1, None),
            (3, 1, Some(SeqNumber(u32::MAX - 1))),
            (u64::MAX, 100, Some(SeqNumber(u32::MAX - 100))),
        ];
        for (bytes_received, unacknowledged, old_ack) in rows {
            let rcv_wup = SeqNumber(1) - unacknowledged;
            let reading = Reading { bytes_received, rcv_wup, ..reading() };
            assert_eq!(reading.old_ack(), old_ack, "{bytes_received} {unacknowledged}");
        }
    }
}
