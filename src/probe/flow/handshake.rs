//! The handshake of a flow that we open, up to the answer that confirms it.
#![forbid(unsafe_code)]

use super::{Flow, Owed, Stage, Step};
use crate::probe::matcher::Reply;
use crate::probe::plan::EMPTY_PROBE_SPACING;
use crate::wire::SeqNumber;

/// How often a connection is opened when its unconfirmed handshake is answered with RST: under SYN
/// cookies that happens whenever the ACK is lost but not the keepalive behind it (16 % of the time
/// at 20 % loss), and the peer is to be asked, not taken for one that closes.
pub const MAX_OPENS: u8 = 5;

impl Flow {
    /// Begins a handshake from `local_port` with the initial sequence number `iss`.
    pub fn open(&mut self, local_port: u16, iss: SeqNumber) {
        self.stage = Stage::SynSent;
        self.owed = Owed(Owed::SYN);
        self.opens += 1;
        self.syns = 0;
        self.confirmed = false;
        self.peer_ttl = None;
        self.local_port = local_port;
        self.iss = iss;
        self.ask_anew();
    }

    pub(super) fn handle_syn_ack(&mut self, reply: &Reply) -> Step {
        if self.stage != Stage::SynSent {
            // Repeated: our ACK was lost, so the peer does not hold the connection yet.
            self.confirmed = false;
            if self.stage == Stage::Resting {
                self.stage = Stage::Confirming;
                self.deadline = self.asked_at + EMPTY_PROBE_SPACING;
            }
            return self.owe_again(Owed::ACK);
        }
        if self.syns == 1 {
            self.rtt = Some(reply.at.since(self.asked_at));
        }
        self.irs = reply.seg_seq;
        self.rcv_nxt = reply.seg_seq + 1;
        self.peer_window_zero = reply.wnd == 0;
        self.peer_ttl = Some(reply.ttl);
        self.stage = Stage::Confirming;
        self.ask_anew();
        self.owed = Owed::default();
        self.owe(Owed::ACK | Owed::PROBE)
    }
}
