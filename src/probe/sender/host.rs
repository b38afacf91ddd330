//! What befalls our own side: frames that did not leave, paths that fail, next hops that move.
#![forbid(unsafe_code)]

use super::Sender;
use super::transmit::{Receipt, Refusal, What};
use crate::io::PathId;
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::flow::Step;
use crate::probe::health::Scope;
use crate::probe::neighbour::{Hop, Moved};
use crate::probe::prefix::Prefix;
use crate::time::Instant;
use std::net::IpAddr;

impl Sender {
    /// Takes in that the kernel had or had not resolved `next_hop` in a look that began at `at`.
    pub fn note_kernel_hop(&mut self, path: PathId, next_hop: IpAddr, resolved: bool, at: Instant) {
        if let Some(hops) = &mut self.kernel_hops {
            hops.note(path, next_hop, resolved, at);
        }
    }

    /// Takes in that all was told of a look that began at `at`.
    pub fn note_look(&mut self, at: Instant) {
        if let Some(hops) = &mut self.kernel_hops {
            hops.looked(at);
        }
    }

    /// Says that our own side lost frames or was otherwise sick until `until`: silence up to there
    /// accuses nobody whom `scope` takes in. See [`Health::note`](crate::probe::health::Health::note) for troubles that go on.
    pub fn note_trouble(&mut self, scope: Scope, kind: Seen, until: Instant) {
        self.health.note(scope, kind, until);
    }

    /// Says that a frame did not leave: its peer was not asked. It is owed again, and sent when the
    /// path takes frames again.
    pub fn handle_unsent(&mut self, receipt: Receipt, refusal: Refusal, now: Instant) {
        let Receipt { path, what } = receipt;
        if refusal == Refusal::Path {
            self.health.hold(path, now);
        }
        match what {
            What::Request { next_hop } => {
                *self.sent.requests(next_hop) -= 1;
                match refusal {
                    Refusal::Path => self.neighbours.handle_unsent(path, next_hop),
                    // It would be refused for ever: a try, whose failure is our own.
                    Refusal::Frame => self.health.note(Scope::Path(path), Seen::NotSent, now),
                }
            }
            What::Segment { slot, generation, kind } => {
                self.sent.segments[kind as usize] -= 1;
                let index = self.index(slot);
                if let Some(cap) = &mut self.per_prefix {
                    cap.refund(Prefix::of(self.targets[index].peer.ip()));
                }
                let flow = &mut self.flows[index];
                if flow.generation != generation {
                    return;
                }
                let step = match refusal {
                    Refusal::Path => {
                        flow.take_back(kind);
                        Step::Continue
                    }
                    Refusal::Frame => flow.refuse(kind, now),
                };
                self.take_step(slot, step, now);
            }
        }
    }

    /// Says that `path` takes frames again.
    pub fn handle_path_open(&mut self, path: PathId, now: Instant) {
        let (parked, held_up) = self.health.release(path, now);
        for slot in parked {
            let index = self.index(slot);
            self.flows[index].excuse(held_up);
            self.owing.push_back(slot);
        }
    }

    /// Gives up a path that has taken no frame for too long: peers behind it that are not resolved
    /// become `undetermined`. Flows are still closed if it opens before the others are done.
    pub fn fail_path(&mut self, path: PathId, now: Instant) {
        if self.health.is_given_up(path) {
            return;
        }
        self.health.give_up(path);
        for index in 0..self.flows.len() {
            let on_path =
                self.targets[index].hop.is_some_and(|hop| self.neighbours.hop(hop).path == path);
            let flow = &mut self.flows[index];
            if on_path && !flow.is_judged() {
                flow.facts.exhausted = true;
                flow.facts.observer = true;
                flow.note_local(Seen::NotSent, now);
                self.judge(Slot(self.first_slot + index as u32), now);
            }
        }
    }

    /// Sends what goes to the peer of `slot` by another next hop on the same path.
    pub fn redirect(&mut self, slot: Slot, next_hop: IpAddr) {
        let index = self.index(slot);
        let Some(old) = self.targets[index].hop else { return };
        let hop = Hop { next_hop, ..*self.neighbours.hop(old) };
        let needs_mac = self.neighbours.needs_mac(old);
        let new = self.neighbours.add(hop, needs_mac);
        if self.crafter_of_hop.len() == new.0 as usize {
            self.crafter_of_hop.push(self.crafter_of_hop[old.0 as usize]);
        }
        if self.neighbours.mac(old).is_some() {
            self.fallback.insert(slot, old);
        }
        self.targets[index].hop = Some(new);
    }

    /// Returns a next hop that has moved, once.
    pub fn poll_moved(&mut self) -> Option<Moved> {
        self.moved.pop_front()
    }
}
