//! What this host's kernel and the guard are asked for on behalf of the flows that the kernel owns.
#![forbid(unsafe_code)]

use super::Sender;
use crate::probe::Slot;
use crate::probe::host::Reading;
use crate::time::Instant;
use std::net::SocketAddr;
use std::time::Duration;

/// A 4-tuple whose resets the guard is to keep from our kernel, or to let through again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldRequest {
    /// On behalf of whom.
    pub slot: Slot,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// Whether to hold; else to let go.
    pub hold: bool,
}

/// What the kernel said of the flows that it owned at the beginning.
#[derive(Clone, PartialEq, Debug)]
pub struct Readings {
    /// When the reading began.
    pub begun: Instant,
    /// Of each flow; `None` if the kernel does not own it any more.
    pub flows: Vec<(Slot, Option<Reading>)>,
}

impl Sender {
    /// Returns the instant at which, or later, a reading of the kernel's connections must begin for
    /// all flows that wait for one; `None` while none does.
    pub fn wants_reading(&self) -> Option<Instant> {
        (self.reading_wanted > self.reading_begun).then_some(self.reading_wanted)
    }

    /// Takes in a reading. What it says of other senders' flows is left out.
    pub fn handle_readings(&mut self, readings: &Readings, now: Instant) {
        self.reading_begun = self.reading_begun.max(readings.begun);
        let slots = self.first_slot..self.first_slot + self.flows.len() as u32;
        for (slot, found) in readings.flows.iter().filter(|(slot, _)| slots.contains(&slot.0)) {
            let index = self.index(*slot);
            let flow = &mut self.flows[index];
            if flow.awaits_reading().is_some() {
                let step = flow.handle_reading(found.as_ref(), readings.begun, &self.plan);
                self.take_step(*slot, step, now);
            }
        }
    }

    /// Returns what the guard is to be told next.
    pub fn poll_hold(&mut self) -> Option<HoldRequest> {
        self.holds.pop_front()
    }

    /// Takes in whether the resets of `slot` are held from now on, as was asked for.
    pub fn handle_hold(&mut self, slot: Slot, is_held: bool, now: Instant) {
        let index = self.index(slot);
        let step = self.flows[index].handle_hold(is_held);
        self.take_step(slot, step, now);
    }

    /// Sends the whole plan on connections of this host's kernel, also while data is in flight, and
    /// whatever is heard: to show that they come to no harm.
    #[must_use]
    pub fn forced(mut self) -> Self {
        self.flows.iter_mut().for_each(|flow| flow.force());
        self
    }

    /// Asks for what the flow now wants of kernel and guard.
    pub(super) fn ask_kernel(&mut self, slot: Slot) {
        let index = self.index(slot);
        let flow = &mut self.flows[index];
        if let Some(since) = flow.awaits_reading() {
            // One that has come before it waited does not serve it.
            let later = self.reading_begun + Duration::from_nanos(1);
            self.reading_wanted = self.reading_wanted.max(since).max(later);
        }
        if let Some(hold) = flow.take_hold_request()
            && let Some(given) = self.given(slot)
        {
            let (local, peer) = (given.local, given.peer);
            self.holds.push_back(HoldRequest { slot, local, peer, hold });
        }
    }
}
