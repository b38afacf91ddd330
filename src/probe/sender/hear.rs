//! What is heard, and what silence means when a deadline passes.
#![forbid(unsafe_code)]

use super::Sender;
use crate::io::PathId;
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::flow::Step;
use crate::probe::health::Scope;
use crate::probe::kernel_hops::{KernelHops, PATIENCE, Silence};
use crate::probe::matcher::{Rejection, Reply, ReplyKind};
use crate::probe::neighbour::{Answer, Hop};
use crate::probe::receiver::Heard;
use crate::probe::wheel::Entry;
use crate::time::Instant;
use crate::wire::MacAddr;

/// A path loses segments if more than one frame in this many had to be repeated to a peer that then
/// answered; less is the odd segment that was late. RSTs are then repeated too, also to peers that
/// were not affected themselves.
const LOSSY_REPEATS: u64 = 1000;

impl Sender {
    /// Takes in what a receiver has heard.
    pub fn handle_heard(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Reply { path, reply } => self.handle_reply(path, &reply, now),
            Heard::Local { path, reply } => self.handle_local(path, &reply, now),
            Heard::Neighbour { path, ip, mac } => {
                // Else not asked by this sender: by another one, or answered twice.
                if let Some((waited, moved)) = self.neighbours.handle_answer(path, ip, mac, now) {
                    self.ready.extend(waited);
                    self.moved.extend(moved);
                }
            }
        }
    }

    /// Says whether a reply is to a connection that is no more, and counts it then.
    pub(super) fn is_stale(&mut self, index: usize, reply: &Reply) -> bool {
        let is_stale = self.flows[index].generation != reply.generation;
        // A hint that was not believed is counted where it was not believed.
        if is_stale && reply.kind != ReplyKind::OldConnection {
            self.reject(Rejection::StaleGeneration);
        }
        is_stale
    }

    pub(super) fn handle_reply(&mut self, path: PathId, reply: &Reply, now: Instant) {
        let index = self.index(reply.slot);
        if self.is_stale(index, reply) {
            return;
        }
        let step = self.flows[index].handle(reply, &self.plan);
        if let Some(hop) = self.targets[index].hop {
            self.health.note_answer(self.neighbours.hop(hop).path, path);
        }
        let flow = &self.flows[index];
        if flow.repeats > 0 && reply.kind.is_from_peer() {
            self.note_loss(now);
        }
        self.take_step(reply.slot, step, now);
    }

    /// Takes in what this host itself has answered. That is the peer's word only if the peer is this
    /// host. Else our kernel could not deliver our segment, or our firewall would not: a fact about
    /// us. Without a neighbour table there is no neighbour that could be missing.
    pub(super) fn handle_local(&mut self, path: PathId, reply: &Reply, now: Instant) {
        let index = self.index(reply.slot);
        let Some(egress) = self.egress(index) else { return };
        if egress == path || self.loopback.contains(&egress) {
            return self.handle_reply(path, reply, now);
        }
        if self.is_stale(index, reply) {
            return;
        }
        let has_neighbours = self.paths[usize::from(egress.0)].mac != MacAddr::default();
        let step = self.flows[index].handle_local(reply, has_neighbours);
        self.take_step(reply.slot, step, now);
    }

    /// Flows that lost nothing are judged first, and their RSTs are lost like any other segment:
    /// so they are reset again.
    pub(super) fn note_loss(&mut self, now: Instant) {
        self.late_replies += 1;
        if self.path_loses || self.late_replies * LOSSY_REPEATS <= self.sent.total() {
            return;
        }
        self.path_loses = true;
        for index in 0..self.flows.len() {
            if self.flows[index].reset_again(now) {
                self.touch(Slot(self.first_slot + index as u32));
            }
        }
    }

    pub(super) fn take_step(&mut self, slot: Slot, step: Step, now: Instant) {
        match step {
            Step::Continue => self.touch(slot),
            Step::Verdict => self.judge(slot, now),
            Step::Reopen => self.open(slot, now),
            Step::Correction => {
                let verdict = self.verdict(slot, true);
                self.verdicts.push_back(verdict);
                self.touch(slot);
            }
        }
    }

    /// Lets time pass up to `now`, of which the receivers have heard everything up to
    /// `heard_until`: what is due later than that is not silence yet.
    pub fn advance(&mut self, now: Instant, heard_until: Instant) {
        let until = now.min(heard_until);
        while let Some(entry) = self.wheel.poll(until) {
            self.expire(entry, now);
        }
        self.expire_seen(now);
        let mut failed = Vec::new();
        self.neighbours.expire(until, |slot, since| failed.push((slot, since)));
        failed.into_iter().for_each(|(slot, since)| self.hop_failed(slot, since, now));
    }

    /// Lets a deadline pass.
    pub(super) fn expire(&mut self, entry: Entry, now: Instant) {
        let index = self.index(entry.slot);
        // The wheel never cancels: an entry counts only if it is still the flow's deadline.
        let counts = self.flows[index].deadline == entry.deadline;
        let silence = if counts { self.silence(index, now) } else { Silence::Believed };
        if silence == Silence::Unseen {
            return self.unseen.push_back(entry);
        }
        let flow = &mut self.flows[index];
        if flow.scheduled == entry.deadline {
            flow.scheduled = Instant::FAR_FUTURE;
        }
        if !counts {
            return;
        }
        match silence {
            Silence::Believed | Silence::Unseen => {}
            Silence::NoNeighbour => {
                flow.facts.neighbour_failed = true;
                if flow.facts.neighbour_reports == 0 {
                    flow.note_local(Seen::NeighbourFailed, now);
                }
            }
            Silence::Doubtful => {
                flow.facts.observer = true;
                flow.note_local(Seen::NotSent, now);
            }
        }
        let step = flow.expire(&self.plan);
        if step == Step::Continue
            && !flow.is_judged()
            && flow.asked > 0
            && let Some(hop) = self.targets[index].hop
        {
            self.neighbours.doubt(hop, now);
        }
        self.take_step(entry.slot, step, now);
    }

    /// Says what it means if the flow's deadline passes at `now`.
    pub(super) fn silence(&self, index: usize, now: Instant) -> Silence {
        let flow = &self.flows[index];
        let (Some(hops), Some(hop)) = (&self.kernel_hops, self.targets[index].hop) else {
            return Silence::Believed;
        };
        let Hop { path, next_hop, .. } = *self.neighbours.hop(hop);
        let is_settled = flow.replies > 0 || flow.facts.observer;
        if is_settled
            || !flow.ends_in_silence(&self.plan)
            || !self.paths[usize::from(path.0)].has_kernel_neighbours()
        {
            return Silence::Believed;
        }
        hops.silence(path, next_hop, flow.first_asked_at, flow.deadline, now)
    }

    /// Lets the deadlines pass that waited for a look, or waited too long for one.
    pub(super) fn expire_seen(&mut self, now: Instant) {
        let Some(looked_at) = self.kernel_hops.as_ref().map(KernelHops::looked_at) else { return };
        if looked_at > self.unseen_since {
            self.unseen_since = looked_at;
            for entry in std::mem::take(&mut self.unseen) {
                self.expire(entry, now);
            }
        }
        while let Some(entry) = self.unseen.front().copied()
            && entry.deadline + PATIENCE <= now
        {
            self.unseen.pop_front();
            self.expire(entry, now);
        }
    }

    /// A next hop that `slot` has waited for does not answer.
    pub(super) fn hop_failed(&mut self, slot: Slot, since: Instant, now: Instant) {
        let index = self.index(slot);
        // It may be another one by now than the one that failed.
        match self.targets[index].hop.map(|hop| self.neighbours.resolve(hop, slot)) {
            Some(Answer::Resolved(_)) => return self.ready.push_back(slot),
            Some(Answer::Pending) => return,
            Some(Answer::Failed { .. }) | None => {}
        }
        let Some(old) = self.fallback.remove(&slot) else {
            return self.neighbour_failed(slot, since, now);
        };
        self.health.note(Scope::Flow(slot), Seen::RouteChanged, Instant::FAR_FUTURE);
        self.targets[index].hop = Some(old);
        self.ready.push_back(slot);
    }

    /// Judges a flow whose next hop has been asked for in vain since `since`.
    pub(super) fn neighbour_failed(&mut self, slot: Slot, since: Instant, now: Instant) {
        let index = self.index(slot);
        let flow = &mut self.flows[index];
        if flow.is_judged() {
            return;
        }
        flow.first_asked_at = since;
        flow.facts.neighbour_failed = true;
        flow.note_local(Seen::NeighbourFailed, now);
        self.judge(slot, now);
    }
}
