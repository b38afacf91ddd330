//! What is sent next, and through which path.
#![forbid(unsafe_code)]

use super::{Sender, Started, Target};
use crate::io::PathId;
use crate::probe::craft::{CraftError, Outgoing, WINDOW, emit_solicitation};
use crate::probe::evidence::Seen;
use crate::probe::flow::{MAX_OPENS, SegmentKind, Stage};
use crate::probe::given::{Given, Origin};
use crate::probe::kernel_hops::PATIENCE;
use crate::probe::neighbour::{Answer, Hop, HopId};
use crate::probe::prefix::{Prefix, PrefixCap, Waiting};
use crate::probe::table::{FlowKey, InsertError};
use crate::probe::{Generation, Slot};
use crate::time::Instant;
use crate::wire::SeqNumber;
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

/// A frame that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Through which path.
    pub path: PathId,
    /// On which flow; none for address resolution.
    pub slot: Option<Slot>,
    pub(super) what: What,
    pub(super) content: Content,
}

impl Due {
    /// Returns what tells the sender which frame it was, should it not leave.
    pub fn receipt(&self) -> Receipt {
        Receipt { path: self.path, what: self.what }
    }
}

/// Names a frame that was handed out to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    pub(super) path: PathId,
    pub(super) what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Segment { slot: Slot, generation: Generation, kind: SegmentKind },
    Request { next_hop: IpAddr },
}

/// What it was about a frame that it did not leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The path takes no frames for the moment: none of them is to blame.
    Path,
    /// The frame itself is not wanted; others may be.
    Frame,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Segment { crafter: u16, outgoing: Outgoing },
    Solicitation { source: IpAddr, next_hop: IpAddr },
}

/// What the sender wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Craft this with [`Sender::emit`] and send it.
    Transmit(Due),
    /// Something is due, but the rate does not allow it before this instant.
    Pace(Instant),
    /// Nothing is due before this instant, unless something is heard.
    Wait(Instant),
    /// Every verdict is given and every flow closed.
    Done,
}

/// Frames sent, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxCounts {
    pub(super) segments: [u64; 6],
    pub(super) arp: u64,
    pub(super) nd: u64,
}

impl TxCounts {
    /// Returns the count of every kind that was sent at all, by its name.
    pub fn by_kind(&self) -> BTreeMap<&'static str, u64> {
        use SegmentKind::{Ack, Fin, Probe0, Probe1, Rst, Syn};
        [Syn, Ack, Probe0, Probe1, Fin, Rst]
            .iter()
            .map(|&kind| (kind.name(), self.segments[kind as usize]))
            .chain([("arp", self.arp), ("nd", self.nd)])
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    /// Counts requests for the MAC address of `next_hop`.
    pub(super) fn requests(&mut self, next_hop: IpAddr) -> &mut u64 {
        if next_hop.is_ipv4() { &mut self.arp } else { &mut self.nd }
    }

    /// Returns the number of frames of all kinds.
    pub fn total(&self) -> u64 {
        self.segments.iter().sum::<u64>() + self.arp + self.nd
    }
}

/// Windows differ by less than this between repeats of one segment.
const WINDOW_VARIANTS: u16 = 8;

impl Sender {
    /// Returns what is to be sent now, if anything.
    pub fn poll_transmit(&mut self, now: Instant) -> Poll {
        let ready_at = self.pacer.ready_at(now);
        if ready_at > now && self.has_work(now) {
            return Poll::Pace(ready_at);
        }
        match self.next_due(now) {
            Some(due) => {
                // Cannot fail: it was ready at `now`.
                let _ = self.pacer.take(now);
                Poll::Transmit(due)
            }
            None if self.is_done() => Poll::Done,
            None => Poll::Wait(self.next_wakeup()),
        }
    }

    /// Nothing is left but to close flows behind paths that take no frames.
    pub(super) fn is_done(&self) -> bool {
        self.unfinished == 0 || self.unfinished == self.stranded()
    }

    /// Counts the flows that owe something through a path that has been given up, wherever they wait:
    /// for the path, for their network's turn, for a next hop that cannot be asked.
    pub(super) fn stranded(&self) -> usize {
        if !self.health.has_given_up() {
            return 0;
        }
        let flows = self.flows.iter().enumerate();
        let owing = flows.filter(|(_, flow)| !flow.finished && flow.owes());
        let paths = owing.filter_map(|(index, _)| self.egress(index));
        paths.filter(|&path| self.health.is_given_up(path)).count()
    }

    pub(super) fn has_work(&self, now: Instant) -> bool {
        let released = self.per_prefix.as_ref().and_then(PrefixCap::next_wakeup);
        released.is_some_and(|at| at <= now)
            || !self.owing.is_empty()
            || !self.ready.is_empty()
            || self.started != self.all_started()
            || self.neighbours.wants_request()
            || self.health.due(now).is_some()
    }

    pub(super) fn next_wakeup(&self) -> Instant {
        let wheel = self.wheel.next_wakeup().unwrap_or(Instant::FAR_FUTURE);
        let released = self.per_prefix.as_ref().and_then(PrefixCap::next_wakeup);
        let unseen = self.unseen.front().map(|entry| entry.deadline + PATIENCE);
        let wakeups = [self.neighbours.next_wakeup(), self.health.next_wakeup(), released, unseen];
        wakeups.into_iter().flatten().fold(wheel, Instant::min)
    }

    /// Flows under way come first, then address resolution, then new flows.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Due> {
        loop {
            if let Some(due) = self.next_owed(now) {
                return Some(due);
            }
            match self.per_prefix.as_mut().and_then(|cap| cap.release(now)) {
                Some(Waiting::Owing(slot)) => {
                    self.owing.push_back(slot);
                    continue;
                }
                Some(Waiting::Unstarted(slot)) => {
                    self.begin(slot, now);
                    continue;
                }
                None => {}
            }
            if let Some(path) = self.health.due(now)
                && let Some(slot) = self.health.take_parked(path)
            {
                self.owing.push_front(slot);
                continue;
            }
            if let Some(hop) = self.neighbours.poll_request(now) {
                let Hop { path, next_hop, source } = *hop;
                if !self.health.may_send(path, now) {
                    self.neighbours.handle_unsent(path, next_hop);
                    continue;
                }
                let source = self.asks_as.get(&(path, source)).copied().unwrap_or(source);
                *self.sent.requests(next_hop) += 1;
                let content = Content::Solicitation { source, next_hop };
                return Some(Due { path, slot: None, what: What::Request { next_hop }, content });
            }
            if let Some(slot) = self.ready.pop_front() {
                let index = self.index(slot);
                match self.flows[index].stage {
                    Stage::Unstarted | Stage::Resolving => {
                        if self.has_turn(slot, now) {
                            self.open(slot, now);
                        }
                    }
                    _ if !self.flows[index].queued => {}
                    // Under way when its next hop changed.
                    _ => self.owing.push_back(slot),
                }
                continue;
            }
            let slot = self.next_unstarted()?;
            if self.has_turn(slot, now) {
                self.begin(slot, now);
            }
        }
    }

    /// Returns the flow whose first turn it is: one slot after the other, given flows evenly among the
    /// others.
    fn next_unstarted(&mut self) -> Option<Slot> {
        let all = self.all_started();
        let Started { owned, given } = &mut self.started;
        // Whoever lags behind, as parts of them all.
        let is_owned =
            *owned < all.owned && (*given == all.given || *owned * all.given <= *given * all.owned);
        let (turn, before) = match is_owned {
            true => (owned, 0),
            false if *given < all.given => (given, all.owned),
            false => return None,
        };
        let index = before + *turn;
        *turn += 1;
        Some(Slot(self.first_slot + index as u32))
    }

    /// Says whether a flow may be begun now; else it waits for its network.
    pub(super) fn has_turn(&mut self, slot: Slot, now: Instant) -> bool {
        let index = self.index(slot);
        let Some(cap) = &mut self.per_prefix else { return true };
        let prefix = Prefix::of(self.targets[index].peer.ip());
        let has_turn = cap.has_turn(prefix, now);
        if !has_turn {
            cap.wait(prefix, Waiting::Unstarted(slot));
        }
        has_turn
    }

    pub(super) fn begin(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        if self.flows[index].is_judged() {
            return;
        }
        if let Some(obstacle) = self.given(slot).and_then(Given::obstacle) {
            let flow = &mut self.flows[index];
            if matches!(obstacle, Seen::LinkDown | Seen::AddressLost) {
                flow.blame_observer(obstacle, now);
            } else {
                flow.facts.unprobeable = true;
                flow.note_local(obstacle, now);
            }
            flow.settle();
            return self.judge(slot, now);
        }
        let Some(hop) = self.targets[index].hop else {
            let flow = &mut self.flows[index];
            flow.facts.no_route = true;
            flow.note_local(Seen::NoRoute, now);
            return self.judge(slot, now);
        };
        match self.neighbours.resolve(hop, slot) {
            Answer::Resolved(_) => self.open(slot, now),
            Answer::Pending => self.flows[index].stage = Stage::Resolving,
            Answer::Failed { since } => self.hop_failed(slot, since, now),
        }
    }

    /// Begins a handshake on a 4-tuple that this run has not used before, or takes up a given flow.
    pub(super) fn open(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        let Target { peer, hop: Some(hop), .. } = self.targets[index] else { return };
        let source = self.neighbours.hop(hop).source;
        let flow = &mut self.flows[index];
        if !flow.origin().is_owned() {
            let step = flow.take_up(now, &self.plan);
            return self.take_step(slot, step, now);
        }
        let span = u32::from(self.source_ports.end() - self.source_ports.start()) + 1;
        // Consecutive ports for one target: a closed 4-tuple is never used again (2 MSL).
        let offset = (keyed_hash(self.plan.seed, b"port", peer, 0) as u32)
            .wrapping_add(u32::from(flow.opens))
            % span;
        let local_port = self.source_ports.start() + offset as u16;
        let iss = SeqNumber(keyed_hash(self.plan.seed, b"iss", peer, local_port) as u32);
        flow.open(local_port, iss);
        let key = FlowKey { local: SocketAddr::new(source, local_port), peer };
        match self.table.insert(slot, &key, &flow.expect()) {
            Ok(generation) => {
                flow.generation = generation;
                self.touch(slot);
            }
            // A given flow has it.
            Err(InsertError::Duplicate) if flow.opens < MAX_OPENS => self.open(slot, now),
            Err(_) => {
                flow.note_local(Seen::ObserverFault, now);
                flow.facts.exhausted = true;
                flow.facts.observer = true;
                self.judge(slot, now);
            }
        }
    }

    pub(super) fn next_owed(&mut self, now: Instant) -> Option<Due> {
        loop {
            let slot = *self.owing.front()?;
            let index = self.index(slot);
            let Target { peer, hop: Some(hop), .. } = self.targets[index] else {
                self.owing.pop_front();
                continue;
            };
            let path = self.neighbours.hop(hop).path;
            if self.flows[index].owes() {
                if self.neighbours.mac(hop).is_none() {
                    self.owing.pop_front();
                    self.await_next_hop(slot, hop, now);
                    continue;
                }
                if let Some(cap) = &mut self.per_prefix
                    && !cap.allows(Prefix::of(peer.ip()), now)
                {
                    self.owing.pop_front();
                    cap.wait(Prefix::of(peer.ip()), Waiting::Owing(slot));
                    continue;
                }
                // Last: it is asked only for a frame that is sent then.
                if !self.health.may_send(path, now) {
                    self.owing.pop_front();
                    self.health.park(path, slot);
                    continue;
                }
            }
            let flow = &mut self.flows[index];
            let knew_peer = flow.knows_peer();
            let Some(kind) = flow.next_segment(now, &self.plan) else {
                flow.queued = false;
                self.owing.pop_front();
                continue;
            };
            let seq = match kind {
                SegmentKind::Syn => flow.iss,
                SegmentKind::Probe0 | SegmentKind::Probe1 => flow.snd_una() - 1,
                SegmentKind::Fin => flow.snd_una(),
                SegmentKind::Ack | SegmentKind::Rst => flow.snd_nxt(),
            };
            // A repeat differs by its window, which is never above the real one, and 0 only if that is.
            let (wnd, tos) = match flow.origin() {
                Origin::Owned => (WINDOW, 0),
                Origin::Given { wnd, tos, .. } => (wnd, tos),
            };
            let variant = flow.sent_in_all % WINDOW_VARIANTS.min(wnd).max(1);
            let outgoing = Outgoing {
                kind,
                mac: self.neighbours.mac(hop).unwrap_or_default(),
                local_port: flow.local_port,
                peer,
                seq,
                ack: (kind != SegmentKind::Syn && knew_peer).then_some(flow.seg_ack(kind)),
                wnd: wnd - variant,
                tos,
                // Tells frames of one flow apart in captures; DF is set, so no more is needed.
                ip_id: (slot.0 as u16).wrapping_mul(31).wrapping_add(flow.sent_in_all),
                timestamps: flow.origin().timestamps(now),
            };
            self.sent.segments[kind as usize] += 1;
            if let Some(cap) = &mut self.per_prefix {
                cap.charge(Prefix::of(peer.ip()), now);
            }
            let what = What::Segment { slot, generation: flow.generation, kind };
            self.touch(slot);
            let crafter = self.crafter_of_hop[hop.0 as usize];
            let content = Content::Segment { crafter, outgoing };
            return Some(Due { path, slot: Some(slot), what, content });
        }
    }

    /// Keeps a flow that owes something until its new next hop has answered.
    pub(super) fn await_next_hop(&mut self, slot: Slot, hop: HopId, now: Instant) {
        match self.neighbours.resolve(hop, slot) {
            Answer::Resolved(_) => self.owing.push_back(slot),
            Answer::Pending => {}
            Answer::Failed { since } => self.hop_failed(slot, since, now),
        }
    }

    /// Writes the frame `due` into `buf` and returns its length in octets.
    ///
    /// # Errors
    /// [`CraftError`]; `buf` is then unchanged.
    pub fn emit(&self, due: &Due, buf: &mut [u8]) -> Result<usize, CraftError> {
        match &due.content {
            Content::Segment { crafter, outgoing } => {
                self.crafters[usize::from(*crafter)].emit(outgoing, buf)
            }
            Content::Solicitation { source, next_hop } => {
                let path = &self.paths[usize::from(due.path.0)];
                emit_solicitation(path, *source, *next_hop, buf)
            }
        }
    }
}

/// Numbers that a peer or a bystander cannot foresee, the same for the same seed.
pub(super) fn keyed_hash(seed: u64, purpose: &[u8], peer: SocketAddr, salt: u16) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed, !seed);
    hasher.write(purpose);
    match peer {
        SocketAddr::V4(peer) => hasher.write(&peer.ip().octets()),
        SocketAddr::V6(peer) => {
            hasher.write(&peer.ip().octets());
            // One link-local address on two links: two peers, and the flow table tells them apart by
            // our port alone if our own address is the same on both.
            hasher.write_u32(peer.scope_id());
        }
    }
    hasher.write_u16(peer.port());
    hasher.write_u16(salt);
    hasher.finish()
}
