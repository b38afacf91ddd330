//! The end of a flow, and what still arrives after it.
#![forbid(unsafe_code)]

use super::{Flow, Owed, Stage, Step};
use crate::probe::classify::{State, classify};
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
/// Segments sent to end a flow, beyond which a peer that goes on talking is left alone.
const MAX_LATE_ANSWERS: u8 = 5;

impl Flow {
    /// Begins the close after a verdict, as `plan` wants it and the facts allow.
    pub fn close(&mut self, plan: &Plan, accused: bool, path_loses: bool) {
        self.accused = accused;
        if !self.origin.is_owned() {
            return self.leave();
        }
        self.closing_tries = 0;
        self.refused = 0;
        self.deadline = Instant::FAR_FUTURE;
        let established =
            !matches!(self.stage, Stage::SynSent | Stage::Unstarted | Stage::Resolving);
        let answered = established && !accused && !self.facts.exhausted;
        let fin_came = self.evidence.last().is_some_and(|sighting| sighting.kind == Seen::Fin);
        // A peer that reset us has nothing left to close; one behind a middlebox that did may.
        let reset = self.facts.reset && !self.facts.foreign_ttl;
        let gone = self.facts.refused || reset || (self.facts.closed && !fin_came);
        self.owed.0 &= Owed::ACK;
        if self.syns == 0 || gone {
            self.owed = Owed::default();
            self.stage = Stage::Closed;
        } else if self.facts.closed && !self.peer_window_zero {
            self.owed = Owed(Owed::FIN);
            self.stage = Stage::LastAck;
        } else if plan.close == Close::Fin && answered && !self.peer_window_zero {
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

    /// Takes in what comes after the verdict.
    pub(super) fn handle_late(&mut self, reply: &Reply) -> Step {
        if self.origin.is_owned() {
            self.answer_late(reply);
        }
        let step = if self.accused { self.correct(reply) } else { Step::Continue };
        if self.is_host() && self.stage == Stage::Lingering && self.is_last_answered_by(reply) {
            self.rtt = Some(reply.at.since(self.asked_at));
            // There may be nothing left to wait for.
            self.leave();
        }
        step
    }

    fn answer_late(&mut self, reply: &Reply) {
        let acks_fin = self.fin_sent && reply.seg_ack == self.snd_nxt();
        self.fin_acked |= acks_fin;
        match (self.stage, reply.kind) {
            (_, ReplyKind::Icmp { .. } | ReplyKind::OldConnection) => {}
            (_, ReplyKind::Rst | ReplyKind::RstToProbe | ReplyKind::RstToSyn) => {
                self.owed = Owed::default();
                self.stage = Stage::Closed;
            }
            (Stage::FinWait, ReplyKind::Fin { next }) => {
                self.advance_rcv_nxt(next);
                // If it has crossed our FIN on the way, ours may yet be lost.
                self.stage = if acks_fin { Stage::Closed } else { Stage::LastAck };
                self.owe(if acks_fin { Owed::ACK } else { Owed::FIN });
            }
            (Stage::FinWait, ReplyKind::Data { next }) => {
                self.advance_rcv_nxt(next);
                self.owe_ack(reply.at);
            }
            (Stage::LastAck, _) if acks_fin => self.stage = Stage::Closed,
            (Stage::LastAck, ReplyKind::Fin { .. }) if self.closing_tries < MAX_FINS => {
                self.owe(Owed::FIN);
            }
            (Stage::Closed, _) if self.closing_tries >= MAX_LATE_ANSWERS => {}
            (Stage::Closed, ReplyKind::Fin { .. }) if acks_fin => {
                // Our last ACK was lost.
                self.closing_tries += 1;
                self.owe(Owed::ACK);
            }
            (Stage::Closed, _) => {
                // Our FIN never arrived, so that a RST beyond it misses RCV.NXT (RFC 5961 §3.2).
                let beyond = self.fin_sent && !acks_fin;
                self.fin_sent &= !beyond;
                // Our RST was lost, or the peer opened only now: say again that it is over.
                if beyond || reply.at > self.asked_at + CROSSING {
                    self.owe(Owed::RST);
                }
            }
            _ => {}
        }
    }

    /// Weighs a late reply against the accusation.
    fn correct(&mut self, reply: &Reply) -> Step {
        let mut facts = self.facts;
        match reply.kind {
            ReplyKind::SynAck => facts.ack = true,
            ReplyKind::Ack => {
                facts.ack = true;
                facts.zero_window = reply.wnd == 0;
            }
            ReplyKind::Data { .. } => facts.data = true,
            ReplyKind::Fin { .. } => facts.closed = true,
            ReplyKind::RstToSyn => facts.refused = true,
            ReplyKind::RstToProbe if self.confirmed => {
                facts.reset = true;
                facts.foreign_ttl = self.has_foreign_ttl(reply);
            }
            ReplyKind::RstToProbe => facts.closed = true,
            ReplyKind::Rst | ReplyKind::Icmp { .. } | ReplyKind::OldConnection => {}
        }
        let (state, _) = classify(&facts);
        if state == classify(&self.facts).0 {
            return Step::Continue;
        }
        self.facts = facts;
        self.accused = state != State::Alive;
        self.replies = self.replies.saturating_add(1);
        self.note(self.seen(reply), reply);
        Step::Correction
    }
}
