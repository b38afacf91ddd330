//! The end of a flow that we opened, and what still arrives after it.
#![forbid(unsafe_code)]

use super::{Flow, Owed, Stage, Step};
use crate::probe::evidence::Seen;
use crate::probe::matcher::{Reply, ReplyKind};
use crate::probe::plan::{Close, Plan};
use crate::time::Instant;
use std::time::Duration;

/// FINs sent before a peer that does not acknowledge them gets a RST.
pub(super) const MAX_FINS: u8 = 3;
/// RSTs sent to close a flow whose path has lost segments.
pub(super) const RSTS_UNDER_LOSS: u8 = 3;
pub(super) const RST_SPACING: Duration = Duration::from_millis(200);
/// How long segments that crossed our RST on the way may still arrive without proving it lost.
const CROSSING: Duration = Duration::from_millis(100);
/// RSTs sent to a peer that goes on talking on a flow that we have closed.
const MAX_LATE_RSTS: u8 = 5;

impl Flow {
    /// Begins the close after a verdict, as `plan` wants it and the facts allow.
    pub fn close(&mut self, plan: &Plan, accused: bool, path_loses: bool) {
        self.accused = accused;
        self.closing_tries = 0;
        self.deadline = Instant::FAR_FUTURE;
        let established =
            !matches!(self.stage, Stage::SynSent | Stage::Unstarted | Stage::Resolving);
        let answered = !self.facts.exhausted && established;
        self.owed.0 &= Owed::ACK;
        if self.syns == 0 || self.facts.refused || self.facts.reset {
            self.owed = Owed::default();
            self.stage = Stage::Closed;
        } else if self.facts.closed {
            // A FIN wants ours; after a RST there is nobody left to tell.
            let by_fin = self.evidence.last().is_some_and(|s| s.kind == Seen::Fin);
            self.owed = Owed(if by_fin { Owed::FIN } else { 0 });
            self.stage = if by_fin { Stage::LastAck } else { Stage::Closed };
        } else if plan.close == Close::Fin && answered {
            self.stage = Stage::FinWait;
            self.owe(Owed::FIN);
        } else {
            self.owed = Owed(Owed::RST);
            let repeat = established && (self.repeats > 0 || path_loses);
            self.stage = if repeat { Stage::Resetting } else { Stage::Closed };
        }
    }

    /// Resets once more a connection that was closed with a single RST, before it was known that
    /// the path loses segments. Says whether there is something to do.
    pub fn reset_again(&mut self, now: Instant) -> bool {
        let owes_rst = self.owed.0 & Owed::RST != 0;
        let by_one_rst = owes_rst || self.closing_tries == 1 && !self.fin_sent;
        if self.stage != Stage::Closed || !by_one_rst || !self.knows_peer() {
            return false;
        }
        self.stage = Stage::Resetting;
        if !owes_rst {
            self.deadline = now + RST_SPACING;
        }
        true
    }

    pub(super) fn handle_late(&mut self, reply: &Reply) -> Step {
        match (self.stage, reply.kind) {
            (_, ReplyKind::Icmp { .. } | ReplyKind::OldConnection | ReplyKind::RstToSyn) => {
                return Step::Continue;
            }
            (_, ReplyKind::Rst | ReplyKind::RstToProbe) => {
                self.owed = Owed::default();
                self.stage = Stage::Closed;
                return Step::Continue;
            }
            (Stage::LastAck, _) if reply.seg_ack == self.snd_nxt() => self.stage = Stage::Closed,
            (Stage::FinWait, ReplyKind::Fin { next }) => {
                self.advance_rcv_nxt(next);
                self.stage = Stage::Closed;
                return self.owe(Owed::ACK);
            }
            (Stage::FinWait, ReplyKind::Data { next }) => {
                self.advance_rcv_nxt(next);
                return self.owe(Owed::ACK);
            }
            (Stage::LastAck, ReplyKind::Fin { .. }) => {
                return self.owe(Owed::FIN);
            }
            // Our RST was lost, or the peer opened only now: say again that it is over.
            (Stage::Closed, _)
                if reply.at > self.asked_at + CROSSING && self.closing_tries < MAX_LATE_RSTS =>
            {
                self.owe(Owed::RST);
            }
            _ => {}
        }
        if self.accused {
            self.accused = false;
            let seen = self.seen(reply);
            self.replies = self.replies.saturating_add(1);
            self.note(seen, reply);
            self.facts.ack = true;
            return Step::Correction;
        }
        Step::Continue
    }
}
