//! What a reply says of the flow, and what follows from it.
#![forbid(unsafe_code)]

use super::handshake::UNHELD;
use super::{Flow, MAX_OPENS, Owed, Stage, Step};
use crate::probe::classify::ICMP_PROBES_APART;
use crate::probe::evidence::{Facts, Seen, Sighting};
use crate::probe::matcher::{Reply, ReplyKind};
use crate::probe::plan::{EMPTY_PROBE_SPACING, Plan};
use crate::time::Instant;
use crate::wire::SeqNumber;

/// Sightings kept for one verdict: a flood must not cost memory.
const MAX_SIGHTINGS: usize = 8;

impl Flow {
    /// Takes in a reply that the receiver has matched to this flow.
    pub fn handle(&mut self, reply: &Reply, plan: &Plan) -> Step {
        if self.is_judged() {
            return self.handle_late(reply);
        }
        let Some(kind) = self.still_means(reply) else { return Step::Continue };
        let reply = &Reply { kind, ..*reply };
        if kind != ReplyKind::OldConnection {
            self.replies = self.replies.saturating_add(1);
        }
        self.note(self.seen(reply), reply);
        match kind {
            ReplyKind::SynAck => self.handle_syn_ack(reply, plan),
            ReplyKind::Ack => {
                self.handle_segment(reply);
                if reply.wnd == 0 {
                    self.facts.zero_window = true;
                }
                self.facts.ack = true;
                self.handle_life(reply.at, plan)
            }
            ReplyKind::Data { next } => {
                self.handle_segment(reply);
                self.advance_rcv_nxt(next);
                self.facts.data = true;
                self.owe_ack(reply.at);
                self.handle_life(reply.at, plan)
            }
            ReplyKind::Fin { next } => {
                self.handle_segment(reply);
                self.advance_rcv_nxt(next);
                self.facts.closed = true;
                Step::Verdict
            }
            ReplyKind::RstToSyn => {
                self.facts.refused = true;
                Step::Verdict
            }
            ReplyKind::RstToProbe | ReplyKind::Rst if !self.confirmed && self.opens < MAX_OPENS => {
                Step::Reopen
            }
            // It took our SYN and then would not have us, again and again: up, and refusing.
            ReplyKind::RstToProbe if !self.confirmed => {
                self.facts.closed = true;
                Step::Verdict
            }
            ReplyKind::RstToProbe => {
                self.facts.reset = true;
                self.facts.foreign_ttl = self.has_foreign_ttl(reply);
                Step::Verdict
            }
            ReplyKind::Rst => {
                self.facts.closed = true;
                Step::Verdict
            }
            // The peer holds an older connection on this 4-tuple (left by a prober that was
            // killed): it answers SYNs with challenge ACKs, so only another tuple can connect.
            ReplyKind::OldConnection if self.origin.is_owned() && self.opens < MAX_OPENS => {
                Step::Reopen
            }
            ReplyKind::OldConnection if self.is_host() => self.look(reply.at),
            // Every tuple is taken. The SYN is repeated: the leftover may go away.
            ReplyKind::OldConnection => {
                self.facts.taken = true;
                Step::Continue
            }
            ReplyKind::Icmp { kind, quoted_id, .. } => {
                self.facts.icmp = Some(kind);
                // Two routers, or one that repeats itself, may report the same probe.
                let another = quoted_id != Some(self.icmp_id);
                if another && self.icmp_at != self.sent_in_all {
                    self.icmp_at = self.sent_in_all;
                    self.icmp_id = quoted_id.unwrap_or_default();
                    self.facts.icmp_probes = self.facts.icmp_probes.saturating_add(1);
                }
                if self.facts.icmp_probes >= ICMP_PROBES_APART {
                    Step::Verdict
                } else {
                    Step::Continue
                }
            }
        }
    }

    /// Says what a reply means by now: it was matched by what the flow published before the replies
    /// in front of it were heard.
    pub(super) fn still_means(&self, reply: &Reply) -> Option<ReplyKind> {
        let is_asking = self.is_asking();
        match reply.kind {
            // Nobody has asked yet.
            _ if matches!(self.stage, Stage::Unstarted | Stage::Resolving) => None,
            ReplyKind::OldConnection if self.is_host() => {
                (self.stage == Stage::Probing).then_some(reply.kind)
            }
            ReplyKind::OldConnection if !self.origin.is_owned() => is_asking.then_some(reply.kind),
            // The peer repeats it while it waits for the owner's ACK: it is not silent.
            ReplyKind::SynAck if !self.origin.is_owned() => Some(ReplyKind::Ack),
            ReplyKind::OldConnection if self.stage != Stage::SynSent => None,
            ReplyKind::Icmp { .. } if self.stage != Stage::SynSent && !is_asking => None,
            // SYN or probe has been answered since: the peer closes.
            ReplyKind::RstToSyn if self.stage != Stage::SynSent => self.as_close(reply),
            ReplyKind::RstToProbe if !is_asking => self.as_close(reply),
            kind => Some(kind),
        }
    }

    fn as_close(&self, reply: &Reply) -> Option<ReplyKind> {
        (reply.seg_seq == self.rcv_nxt).then_some(ReplyKind::Rst)
    }

    pub(super) fn has_foreign_ttl(&self, reply: &Reply) -> bool {
        self.peer_ttl.is_some_and(|ttl| ttl != reply.ttl)
    }

    fn handle_segment(&mut self, reply: &Reply) {
        let is_old = reply.seg_seq.is_before(self.rcv_nxt);
        self.peer_ttl = Some(reply.ttl);
        if !is_old || reply.wnd == 0 {
            self.peer_window_zero = reply.wnd == 0;
        }
        if self.is_asking() && self.is_last_answered_by(reply) {
            self.rtt = Some(reply.at.since(self.asked_at));
        }
        // The peer's own keepalive stands at RCV.NXT − 1 and wants an ACK.
        if is_old {
            self.owe_ack(reply.at);
        }
    }

    /// Says whether `reply` can only be the answer to the last probe.
    pub(super) fn is_last_answered_by(&self, reply: &Reply) -> bool {
        // Karn, unless the answer says which probe it is to; and an answer only: data and keepalives
        // of the peer's come when they like.
        let first = self.asked == 1 && self.asked_at > Instant::ZERO;
        let unambiguous = first || self.is_echoed_by(reply);
        let is_old = reply.seg_seq.is_before(self.rcv_nxt);
        unambiguous && reply.kind == ReplyKind::Ack && !is_old
    }

    pub(super) fn advance_rcv_nxt(&mut self, next: SeqNumber) {
        // The owner has not got what came to us: to acknowledge it would be to lose it.
        if self.origin.is_owned() && self.rcv_nxt.is_before(next) {
            self.rcv_nxt = next;
        }
    }

    /// The peer acknowledged something of ours beyond its SYN-ACK, or spoke.
    fn handle_life(&mut self, at: Instant, plan: &Plan) -> Step {
        self.confirmed = self.unheld < UNHELD;
        match self.stage {
            Stage::Probing if self.is_forced(plan) => Step::Continue,
            Stage::Probing => Step::Verdict,
            Stage::Confirming if plan.keepalive.idle.is_zero() => Step::Verdict,
            Stage::Confirming => {
                self.stage = Stage::Resting;
                self.facts = Facts::default();
                // Linux would not answer a second empty probe any sooner.
                self.deadline = at + plan.keepalive.idle.max(EMPTY_PROBE_SPACING);
                self.owed.0 &= !Owed::PROBE;
                Step::Continue
            }
            Stage::Resting => {
                // What came before the rest is over says nothing of what is after it.
                self.facts = Facts::default();
                Step::Continue
            }
            _ => Step::Continue,
        }
    }

    pub(super) fn seen(&self, reply: &Reply) -> Seen {
        match reply.kind {
            ReplyKind::SynAck => Seen::SynAck,
            ReplyKind::Ack if reply.wnd == 0 => Seen::ZeroWindow,
            ReplyKind::Ack | ReplyKind::OldConnection => Seen::Ack,
            ReplyKind::Data { .. } => Seen::Data,
            ReplyKind::Fin { .. } => Seen::Fin,
            ReplyKind::RstToSyn => Seen::RstToSyn,
            ReplyKind::RstToProbe => Seen::RstToProbe,
            ReplyKind::Rst => Seen::Rst,
            ReplyKind::Icmp { kind, icmp_type, code, .. } => Seen::Icmp(kind, icmp_type, code),
        }
    }

    pub(super) fn note(&mut self, kind: Seen, reply: &Reply) {
        // The last place is kept for what decides: the sighting that ends a flood.
        if self.evidence.len() >= MAX_SIGHTINGS {
            self.evidence.pop();
        }
        let from = match reply.kind {
            ReplyKind::Icmp { from, .. } => Some(from),
            _ => None,
        };
        let relative =
            |number: SeqNumber, base: SeqNumber| SeqNumber(number.0.wrapping_sub(base.0));
        let irs = if reply.kind == ReplyKind::SynAck { reply.seg_seq } else { self.irs };
        self.evidence.push(Sighting {
            kind,
            at: self.since_first_asked(reply.at),
            ttl: Some(reply.ttl),
            seg_seq: from.is_none().then(|| relative(reply.seg_seq, irs)),
            seg_ack: from.is_none().then(|| relative(reply.seg_ack, self.iss)),
            from,
        });
    }
}
