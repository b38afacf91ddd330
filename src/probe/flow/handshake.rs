//! The handshake of a flow that we open, up to the answer that confirms it.
#![forbid(unsafe_code)]

use super::{Flow, Owed, Stage, Step};
use crate::probe::matcher::Reply;
use crate::probe::plan::{EMPTY_PROBE_SPACING, Plan};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::time::Duration;

/// How often a connection is opened when its unconfirmed handshake is answered with RST: under SYN
/// cookies that happens whenever the ACK is lost but not the keepalive behind it (16 % of the time
/// at 20 % loss), and the peer is to be asked, not taken for one that closes.
pub const MAX_OPENS: u8 = 5;
/// SYN-ACKs after an answer that show that the answers come from a peer that does not hold the
/// connection: Linux answers keepalives from the request socket too, while its accept queue is full.
/// Fewer may be owed to lost ACKs; so may more, but then they end (see [`Flow::is_held`]).
pub(super) const UNHELD: u8 = 3;
/// Times that such a peer is asked again before the rest; Linux repeats a SYN-ACK five times.
const MAX_UNHELD: u8 = 8;
/// Linux repeats a SYN-ACK this often before it forgets the handshake (tcp_synack_retries).
const SYN_ACK_REPEATS: u8 = 5;
/// SYN-ACKs closer together than this are one that the network has duplicated: whoever repeats it
/// waits longer (Linux 1 s, TCP_TIMEOUT_INIT; RFC 6298 §2.1), or soon will, since the waits double.
const SYN_ACK_SPACING: Duration = Duration::from_millis(500);

impl Flow {
    /// Begins a handshake from `local_port` with the initial sequence number `iss`.
    pub fn open(&mut self, local_port: u16, iss: SeqNumber) {
        self.stage = Stage::SynSent;
        self.owed = Owed(Owed::SYN);
        // That of a keepalive on the connection before: this one has not been asked anything.
        self.deadline = Instant::FAR_FUTURE;
        self.opens += 1;
        self.syns = 0;
        self.confirmed = false;
        self.unheld = 0;
        self.peer_ttl = None;
        self.local_port = local_port;
        self.iss = iss;
        self.ask_anew();
    }

    pub(super) fn handle_syn_ack(&mut self, reply: &Reply, plan: &Plan) -> Step {
        if self.stage != Stage::SynSent {
            if reply.at.since(self.syn_ack_at) < SYN_ACK_SPACING {
                return Step::Continue;
            }
            // Repeated: our ACK was lost, so the peer does not hold the connection yet. But it is
            // not silent.
            self.confirmed = false;
            self.facts.ack |= self.is_asking();
            if self.stage != Stage::Confirming {
                self.unheld = self.unheld.saturating_add(1);
            }
            self.syn_ack_gap = self.syn_ack_gap.max(reply.at.since(self.syn_ack_at));
            self.syn_ack_at = reply.at;
            if self.stage == Stage::Resting && self.unheld <= MAX_UNHELD {
                self.stage = Stage::Confirming;
                self.ask_anew();
                self.deadline = self.asked_at + EMPTY_PROBE_SPACING;
            }
            return self.owe_again(Owed::ACK);
        }
        if self.syns == 1 && self.asked_at > Instant::ZERO {
            self.rtt = Some(reply.at.since(self.asked_at));
        }
        self.syn_ack_at = reply.at;
        self.syn_ack_gap = Duration::ZERO;
        self.irs = reply.seg_seq;
        self.rcv_nxt = reply.seg_seq + 1;
        self.peer_window_zero = reply.wnd == 0;
        self.peer_ttl = Some(reply.ttl);
        self.stage = Stage::Confirming;
        self.deadline = Instant::FAR_FUTURE;
        self.owed = Owed::default();
        if plan.keepalive.count == 0 {
            self.facts.ack = true;
            return Step::Verdict;
        }
        self.ask_anew();
        self.owe(Owed::ACK | Owed::PROBE)
    }

    /// Says whether the peer has stopped repeating its SYN-ACK before it could have given up: then
    /// an ACK of ours has arrived after all, and it holds the connection. Its waits double (RFC 6298
    /// §5.5), so that one more would have come by now.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        let next_due = self.syn_ack_at + 2 * self.syn_ack_gap + EMPTY_PROBE_SPACING;
        self.unheld < SYN_ACK_REPEATS && now > next_due
    }
}
