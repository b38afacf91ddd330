//! The sending half: which peer is asked what, and when. Owns every flow and gives the verdicts.
//!
//! Driven by [`Sender::handle_heard`], [`Sender::advance`], [`Sender::poll_transmit`] and
//! [`Sender::poll_verdict`]; never waits, reads no clock.
#![forbid(unsafe_code)]

use crate::io::{PathId, PathInfo};
use crate::probe::classify::{State, classify};
use crate::probe::craft::{CraftError, Crafter, Outgoing, WINDOW, emit_solicitation};
use crate::probe::evidence::{Seen, Sighting, Verdict};
use crate::probe::flow::{Flow, MAX_OPENS, SegmentKind, Stage, Step};
use crate::probe::given::{Given, Origin};
use crate::probe::health::{Health, Scope};
use crate::probe::kernel_hops::{KernelHops, PATIENCE, Silence};
use crate::probe::matcher::{Rejection, Reply, ReplyKind};
use crate::probe::neighbour::{Answer, Hop, HopId, Moved, Neighbours};
use crate::probe::pace::Pacer;
use crate::probe::plan::Plan;
use crate::probe::prefix::{Prefix, PrefixCap, Waiting};
use crate::probe::receiver::Heard;
use crate::probe::table::{FlowKey, InsertError, Table};
use crate::probe::wheel::{Entry, Wheel};
use crate::probe::{Generation, Slot, TargetId};
use crate::time::Instant;
use crate::wire::{EmitError, LinkType, MacAddr, SeqNumber};
use siphasher::sip::SipHasher13;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A path loses segments if more than one frame in this many had to be repeated to a peer that then
/// answered; less is the odd segment that was late. RSTs are then repeated too, also to peers that
/// were not affected themselves.
const LOSSY_REPEATS: u64 = 1000;
/// Windows differ by less than this between repeats of one segment.
const WINDOW_VARIANTS: u16 = 8;

/// A peer to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its address and port.
    pub peer: SocketAddr,
    /// Where frames to it go first; `None` if there is no route.
    pub hop: Option<HopId>,
}

/// A frame that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Through which path.
    pub path: PathId,
    /// On which flow; none for address resolution.
    pub slot: Option<Slot>,
    what: What,
    content: Content,
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
    path: PathId,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
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
enum Content {
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

/// Why a run ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interruption {
    /// Somebody wants it to.
    Wanted,
}

/// Frames sent, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxCounts {
    segments: [u64; 6],
    arp: u64,
    nd: u64,
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
    fn requests(&mut self, next_hop: IpAddr) -> &mut u64 {
        if next_hop.is_ipv4() { &mut self.arp } else { &mut self.nd }
    }

    /// Returns the number of frames of all kinds.
    pub fn total(&self) -> u64 {
        self.segments.iter().sum::<u64>() + self.arp + self.nd
    }
}

/// What a [`Sender`] starts from.
#[derive(Debug)]
pub struct Start {
    /// What is sent when.
    pub plan: Plan,
    /// The peers; a peer's slot and [`TargetId`] are its index here, counted from `first_slot`.
    pub targets: Vec<Target>,
    /// The flows of the last of `targets`, which somebody else has opened.
    pub given: Vec<Given>,
    /// The first of the table's slots that this sender owns: one for every target.
    pub first_slot: u32,
    /// The next hops that the targets name.
    pub hops: Vec<Hop>,
    /// The paths that the hops name, by [`PathId`].
    pub paths: Vec<PathInfo>,
    /// Whether to ask for the MAC addresses of next hops; else they stay zero (a dry run).
    pub resolve: bool,
    /// Source ports.
    pub source_ports: RangeInclusive<u16>,
    /// The flow table, shared with the receivers and with other senders.
    pub table: Arc<Table>,
    /// When the run begins.
    pub now: Instant,
}

/// The sending half of a sweep.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    targets: Vec<Target>,
    /// The flows of the last targets, as they were given.
    given: Vec<Given>,
    first_slot: u32,
    flows: Vec<Flow>,
    /// Targets in the seeded random order in which they are started, so that no subnet is hit in
    /// a burst.
    order: Vec<u32>,
    started: usize,
    neighbours: Neighbours,
    /// In whose name next hops are asked for, where it is not that of the probes.
    asks_as: HashMap<(PathId, IpAddr), IpAddr>,
    paths: Vec<PathInfo>,
    /// The path to this host's own addresses, if there is one.
    loopback: Option<PathId>,
    crafters: Vec<Crafter>,
    crafter_of_hop: Vec<u16>,
    source_ports: RangeInclusive<u16>,
    table: Arc<Table>,
    wheel: Wheel,
    pacer: Pacer,
    per_prefix: Option<PrefixCap>,
    /// Slots of flows that owe a segment.
    owing: VecDeque<Slot>,
    /// Slots of flows whose next hop has answered, to be opened in their turn: all at once they
    /// would put their SYNs before what the flows under way owe.
    ready: VecDeque<Slot>,
    verdicts: VecDeque<Verdict>,
    unfinished: usize,
    health: Health,
    /// What the kernel says of the next hops that it resolves for us, where somebody looks.
    kernel_hops: Option<KernelHops>,
    /// Deadlines of silent flows that wait for the next look, and which look was the last for them.
    unseen: VecDeque<Entry>,
    unseen_since: Instant,
    /// Where frames went before a flow's next hop changed.
    fallback: HashMap<Slot, HopId>,
    /// Next hops that have moved, to be told.
    moved: VecDeque<Moved>,
    /// Replies from peers that had to be asked again.
    late_replies: u64,
    path_loses: bool,
    repeats: u64,
    asked: u64,
    sent: TxCounts,
    rejected: [u64; Rejection::ALL.len()],
}

impl Sender {
    /// Builds the sender; nothing is due before the first [`poll_transmit`](Self::poll_transmit).
    ///
    /// # Errors
    /// [`EmitError`] if a source address cannot be crafted for.
    pub fn new(start: Start) -> Result<Self, EmitError> {
        let Start {
            plan,
            targets,
            given,
            first_slot,
            hops,
            paths,
            resolve,
            source_ports,
            table,
            now,
        } = start;
        let mut crafters = Vec::new();
        let mut known = HashMap::new();
        let mut crafter_of_hop = Vec::with_capacity(hops.len());
        for hop in &hops {
            let key = (hop.path, hop.source);
            let index = match known.get(&key) {
                Some(&index) => index,
                None => {
                    crafters.push(Crafter::new(&paths[usize::from(hop.path.0)], hop.source)?);
                    let index = (crafters.len() - 1) as u16;
                    known.insert(key, index);
                    index
                }
            };
            crafter_of_hop.push(index);
        }
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        let seed = plan.seed.wrapping_add(u64::from(first_slot));
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        let needs_mac =
            |path: PathId| resolve && paths[usize::from(path.0)].link == LinkType::Ethernet;
        let owned = targets.len().saturating_sub(given.len());
        let mut flows: Vec<Flow> = targets[..owned].iter().map(|_| Flow::new()).collect();
        flows.extend(given.iter().map(Flow::given));
        let mut sender = Sender {
            neighbours: Neighbours::new(hops, plan.keepalive.count, needs_mac),
            flows,
            unfinished: targets.len(),
            wheel: Wheel::new(now),
            pacer: Pacer::new(plan.rate_pps, now),
            per_prefix: plan.rate_per_prefix_pps.map(PrefixCap::new),
            owing: VecDeque::new(),
            ready: VecDeque::new(),
            verdicts: VecDeque::new(),
            started: 0,
            asks_as: HashMap::new(),
            health: Health::new(paths.len()),
            kernel_hops: None,
            unseen: VecDeque::new(),
            unseen_since: Instant::ZERO,
            fallback: HashMap::new(),
            moved: VecDeque::new(),
            late_replies: 0,
            path_loses: false,
            repeats: 0,
            asked: 0,
            sent: TxCounts::default(),
            rejected: [0; Rejection::ALL.len()],
            plan,
            targets,
            given,
            first_slot,
            order,
            paths,
            loopback: None,
            crafters,
            crafter_of_hop,
            source_ports,
            table,
        };
        sender.enter_given();
        Ok(sender)
    }

    /// Enters the given flows into the table before anything is sent, so that no sender opens a
    /// connection on a 4-tuple of theirs.
    fn enter_given(&mut self) {
        let owned = self.flows.len() - self.given.len();
        for (index, given) in (owned..).zip(&mut self.given) {
            if given.obstacle().is_some() || self.targets[index].hop.is_none() {
                continue;
            }
            let flow = &mut self.flows[index];
            let slot = Slot(self.first_slot + index as u32);
            let key = FlowKey { local: given.local, peer: given.peer };
            match self.table.insert(slot, &key, &flow.expect()) {
                Ok(generation) => flow.generation = generation,
                Err(_) => given.obstacle = Some(Seen::ObserverFault),
            }
        }
    }

    fn given(&self, slot: Slot) -> Option<&Given> {
        let owned = self.flows.len() - self.given.len();
        self.given.get(self.index(slot).checked_sub(owned)?)
    }

    /// Has next hops on `path` asked for from `address` where probes come from `source`.
    pub fn ask_as(&mut self, path: PathId, source: IpAddr, address: IpAddr) {
        self.asks_as.insert((path, source), address);
    }

    /// Says through which path this host's own addresses are reached. Such a peer is up: if it is
    /// silent, our own side keeps the answers back.
    #[must_use]
    pub fn with_loopback(self, loopback: Option<PathId>) -> Self {
        Sender { loopback, ..self }
    }

    /// Says that somebody looks at the kernel's table of neighbours and tells of it
    /// ([`note_kernel_hop`](Self::note_kernel_hop)): where the kernel resolves next hops, silence is
    /// believed only by a look after it.
    #[must_use]
    pub fn with_looks(self) -> Self {
        Sender { kernel_hops: Some(KernelHops::default()), ..self }
    }

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

    /// Returns the octets that a sender takes per target, beside the flow table.
    pub const fn memory_per_target() -> usize {
        // The target is held twice while senders take their shares; a flow's first sightings and its
        // verdict are allocated apart, and the wheel keeps an entry for each deadline.
        2 * size_of::<Target>()
            + size_of::<Flow>()
            + 4 * size_of::<Sighting>()
            + size_of::<Verdict>()
            + 2 * size_of::<Entry>()
            + size_of::<u32>()
            + size_of::<Hop>()
    }

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

    fn index(&self, slot: Slot) -> usize {
        (slot.0 - self.first_slot) as usize
    }

    /// Returns the path that a flow's frames leave through.
    fn egress(&self, index: usize) -> Option<PathId> {
        self.targets[index].hop.map(|hop| self.neighbours.hop(hop).path)
    }

    fn reject(&mut self, rejection: Rejection) {
        self.rejected[rejection as usize] += 1;
    }

    /// Says whether a reply is to a connection that is no more, and counts it then.
    fn is_stale(&mut self, index: usize, reply: &Reply) -> bool {
        let is_stale = self.flows[index].generation != reply.generation;
        // A hint that was not believed is counted where it was not believed.
        if is_stale && reply.kind != ReplyKind::OldConnection {
            self.reject(Rejection::StaleGeneration);
        }
        is_stale
    }

    fn handle_reply(&mut self, path: PathId, reply: &Reply, now: Instant) {
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
    fn handle_local(&mut self, path: PathId, reply: &Reply, now: Instant) {
        let index = self.index(reply.slot);
        let Some(egress) = self.egress(index) else { return };
        if egress == path {
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
    fn note_loss(&mut self, now: Instant) {
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

    fn take_step(&mut self, slot: Slot, step: Step, now: Instant) {
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

    /// Says that our own side lost frames or was otherwise sick until `until`: silence up to there
    /// accuses nobody whom `scope` takes in. See [`Health::note`] for troubles that go on.
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
    fn expire(&mut self, entry: Entry, now: Instant) {
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
    fn silence(&self, index: usize, now: Instant) -> Silence {
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
    fn expire_seen(&mut self, now: Instant) {
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
    fn hop_failed(&mut self, slot: Slot, since: Instant, now: Instant) {
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
    fn neighbour_failed(&mut self, slot: Slot, since: Instant, now: Instant) {
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
    fn is_done(&self) -> bool {
        self.unfinished == 0 || self.unfinished == self.stranded()
    }

    /// Counts the flows that owe something through a path that has been given up, wherever they wait:
    /// for the path, for their network's turn, for a next hop that cannot be asked.
    fn stranded(&self) -> usize {
        if !self.health.has_given_up() {
            return 0;
        }
        let flows = self.flows.iter().enumerate();
        let owing = flows.filter(|(_, flow)| !flow.finished && flow.owes());
        let paths = owing.filter_map(|(index, _)| self.egress(index));
        paths.filter(|&path| self.health.is_given_up(path)).count()
    }

    fn has_work(&self, now: Instant) -> bool {
        let released = self.per_prefix.as_ref().and_then(PrefixCap::next_wakeup);
        released.is_some_and(|at| at <= now)
            || !self.owing.is_empty()
            || !self.ready.is_empty()
            || self.started < self.order.len()
            || self.neighbours.wants_request()
            || self.health.due(now).is_some()
    }

    fn next_wakeup(&self) -> Instant {
        let wheel = self.wheel.next_wakeup().unwrap_or(Instant::FAR_FUTURE);
        let released = self.per_prefix.as_ref().and_then(PrefixCap::next_wakeup);
        let unseen = self.unseen.front().map(|entry| entry.deadline + PATIENCE);
        let wakeups = [self.neighbours.next_wakeup(), self.health.next_wakeup(), released, unseen];
        wakeups.into_iter().flatten().fold(wheel, Instant::min)
    }

    /// Flows under way come first, then address resolution, then new flows.
    fn next_due(&mut self, now: Instant) -> Option<Due> {
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
            let slot = Slot(self.first_slot + *self.order.get(self.started)?);
            self.started += 1;
            if self.has_turn(slot, now) {
                self.begin(slot, now);
            }
        }
    }

    /// Says whether a flow may be begun now; else it waits for its network.
    fn has_turn(&mut self, slot: Slot, now: Instant) -> bool {
        let index = self.index(slot);
        let Some(cap) = &mut self.per_prefix else { return true };
        let prefix = Prefix::of(self.targets[index].peer.ip());
        let has_turn = cap.has_turn(prefix, now);
        if !has_turn {
            cap.wait(prefix, Waiting::Unstarted(slot));
        }
        has_turn
    }

    fn begin(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        if self.flows[index].is_judged() {
            return;
        }
        if let Some(obstacle) = self.given(slot).and_then(Given::obstacle) {
            let flow = &mut self.flows[index];
            flow.facts.unprobeable = true;
            flow.note_local(obstacle, now);
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
    fn open(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        let Target { peer, hop: Some(hop) } = self.targets[index] else { return };
        let source = self.neighbours.hop(hop).source;
        let flow = &mut self.flows[index];
        if !flow.origin().is_owned() {
            flow.take_up(now, &self.plan);
            return self.touch(slot);
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

    fn next_owed(&mut self, now: Instant) -> Option<Due> {
        loop {
            let slot = *self.owing.front()?;
            let index = self.index(slot);
            let Target { peer, hop: Some(hop) } = self.targets[index] else {
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
            // A repeat differs by its window, which is never 0 and never above the real one.
            let wnd = match flow.origin() {
                Origin::Owned => WINDOW,
                Origin::Given { wnd, .. } => wnd,
            };
            let variant = flow.sent_in_all % WINDOW_VARIANTS.min(wnd).max(1);
            let outgoing = Outgoing {
                kind,
                mac: self.neighbours.mac(hop).unwrap_or_default(),
                local_port: flow.local_port,
                peer,
                seq,
                ack: (kind != SegmentKind::Syn && knew_peer).then_some(flow.rcv_nxt),
                wnd: wnd - variant,
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
    fn await_next_hop(&mut self, slot: Slot, hop: HopId, now: Instant) {
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

    /// Gives the verdict on a flow and begins to close it.
    fn judge(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        let is_this_host = self.loopback.is_some() && self.egress(index) == self.loopback;
        let flow = &mut self.flows[index];
        let facts = &flow.facts;
        let silence = facts.exhausted || facts.neighbour_failed || facts.neighbour_reports > 0;
        if let Some(hop) = self.targets[index].hop
            && silence
            && !flow.facts.observer
        {
            let Hop { path, source, .. } = *self.neighbours.hop(hop);
            if let Some((kind, until)) = self.health.trouble(slot, path, source)
                && until >= flow.first_asked_at
            {
                flow.facts.observer = true;
                flow.note_local(kind, now);
            }
        }
        if silence && is_this_host {
            flow.facts.observer = true;
            flow.note_local(Seen::ObserverFault, now);
        }
        let verdict = self.verdict(slot, false);
        let flow = &mut self.flows[index];
        if verdict.state == State::Alive {
            self.repeats += u64::from(flow.repeats);
            self.asked += u64::from(flow.sent_in_all);
        }
        let accused = matches!(verdict.state, State::Down | State::Rebooted | State::Unreachable);
        flow.close(&self.plan, accused, self.path_loses);
        self.verdicts.push_back(verdict);
        self.touch(slot);
    }

    fn verdict(&mut self, slot: Slot, correction: bool) -> Verdict {
        let index = self.index(slot);
        let Target { peer, hop } = self.targets[index];
        let given = self.given(slot).map(|given| given.local);
        let flow = &mut self.flows[index];
        let (state, reason) = classify(&flow.facts);
        let local = given.or_else(|| {
            hop.filter(|_| flow.opens > 0)
                .map(|hop| SocketAddr::new(self.neighbours.hop(hop).source, flow.local_port))
        });
        Verdict {
            target: TargetId(slot.0),
            peer,
            local,
            round: 1,
            state,
            reason,
            probes: flow.asked,
            replies: flow.replies,
            // Without a reply there is nothing that it would be the round-trip time of.
            rtt: flow.rtt.filter(|_| flow.replies > 0),
            evidence: flow.evidence.clone(),
            correction,
        }
    }

    /// Makes the flow's new condition known: to the receivers, the wheel and the transmit queue.
    fn touch(&mut self, slot: Slot) {
        let index = self.index(slot);
        let flow = &mut self.flows[index];
        if flow.opens > 0 {
            self.table.publish(slot, &flow.expect());
        }
        if flow.owes() && !flow.queued {
            flow.queued = true;
            self.owing.push_back(slot);
        }
        if flow.deadline != Instant::FAR_FUTURE && flow.deadline != flow.scheduled {
            flow.scheduled = flow.deadline;
            self.wheel.schedule(flow.deadline, slot, flow.generation);
        }
        let finished = flow.stage == Stage::Closed && !flow.owes();
        if finished != flow.finished {
            flow.finished = finished;
            if finished {
                flow.evidence = Vec::new();
                self.unfinished -= 1;
            } else {
                self.unfinished += 1;
            }
        }
    }

    /// Ends the run early: unresolved peers become `undetermined`, open flows are closed.
    pub fn interrupt(&mut self, now: Instant, why: Interruption) {
        self.started = self.order.len();
        // What is under way owes its peer an end.
        self.ready.retain(|slot| self.flows[(slot.0 - self.first_slot) as usize].queued);
        if let Some(cap) = &mut self.per_prefix {
            cap.abandon_unstarted();
        }
        let waited = self.neighbours.abandon();
        for index in 0..self.flows.len() {
            let flow = &mut self.flows[index];
            if !flow.is_judged() {
                match why {
                    Interruption::Wanted => flow.note_local(Seen::Interrupted, now),
                }
                self.judge(Slot(self.first_slot + index as u32), now);
            }
        }
        // What waited for a next hop goes on by the one that it had.
        waited.into_iter().for_each(|slot| self.hop_failed(slot, now, now));
    }

    /// Sends what is still owed as fast as the path takes it: the user cannot wait any longer.
    pub fn hurry(&mut self, now: Instant) {
        self.pacer = Pacer::new(None, now);
        for waiting in self.per_prefix.take().into_iter().flat_map(PrefixCap::into_waiting) {
            match waiting {
                Waiting::Owing(slot) => self.owing.push_back(slot),
                Waiting::Unstarted(slot) => self.begin(slot, now),
            }
        }
    }

    /// Returns the next verdict.
    pub fn poll_verdict(&mut self) -> Option<Verdict> {
        self.verdicts.pop_front()
    }

    /// Returns the frames sent so far.
    pub fn sent(&self) -> &TxCounts {
        &self.sent
    }

    /// Returns the replies that were matched but not believed, in the order of [`Rejection::ALL`].
    pub fn rejected(&self) -> &[u64; Rejection::ALL.len()] {
        &self.rejected
    }

    /// Returns how many SYNs and probes to live peers were repeats, and how many there were in all.
    pub fn repeats(&self) -> (u64, u64) {
        (self.repeats, self.asked)
    }
}

/// Numbers that a peer or a bystander cannot foresee, the same for the same seed.
fn keyed_hash(seed: u64, purpose: &[u8], peer: SocketAddr, salt: u16) -> u64 {
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
