//! What this host's kernel and the guard are asked for on behalf of the flows that the kernel owns.
#![forbid(unsafe_code)]

use super::Sender;
use crate::probe::Slot;
use crate::probe::given::Given;
use crate::probe::host::{Host, Reading, Wire};
use crate::probe::table::FlowKey;
use crate::probe::translations::Translations;
use crate::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A connection of our kernel's whose resets the guard is to keep from it, or to let through again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldRequest {
    /// On behalf of whom.
    pub slot: Slot,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// What ends its packets have outside of this host.
    pub wire: Wire,
    /// The socket's cookie.
    pub cookie: u64,
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
    /// Has the receivers told which flows have other ends on the wire than their sockets.
    #[must_use]
    pub fn with_translations(mut self, translations: Arc<Translations>) -> Self {
        for Given { local, peer, host, .. } in &self.given {
            if let Some(Host { latest, .. }) = host {
                translations.note(FlowKey { local: *local, peer: *peer }, Wire::Same, latest.wire);
            }
        }
        self.translations = translations;
        self
    }

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
                let before = flow.wire();
                let step = flow.handle_reading(found.as_ref(), readings.begun, &self.plan);
                let wire = flow.wire();
                if let Some(Given { local, peer, .. }) = self.given(*slot).copied() {
                    self.translations.note(FlowKey { local, peer }, before, wire);
                }
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
        let (request, wire) = (flow.take_hold_request(), flow.wire());
        if let Some(hold) = request
            && let Some(&Given { local, peer, host: Some(host), .. }) = self.given(slot)
        {
            let cookie = host.cookie;
            self.holds.push_back(HoldRequest { slot, local, peer, wire, cookie, hold });
        }
    }
}
