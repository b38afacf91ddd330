//! The sending half: which peer is asked what, and when. Owns every flow and gives the verdicts.
//!
//! Driven by [`Sender::handle_heard`], [`Sender::advance`], [`Sender::poll_transmit`] and
//! [`Sender::poll_verdict`]; never waits, reads no clock.
#![forbid(unsafe_code)]

mod hear;
mod host;
mod kernel;
mod transmit;

pub use kernel::{HoldRequest, Readings};
pub use transmit::{Due, Poll, Receipt, Refusal, TxCounts};

use crate::io::{PathId, PathInfo};
use crate::probe::classify::{State, classify};
use crate::probe::craft::Crafter;
use crate::probe::evidence::{Seen, Sighting, Verdict};
use crate::probe::flow::{Flow, Stage};
use crate::probe::given::Given;
use crate::probe::health::Health;
use crate::probe::kernel_hops::KernelHops;
use crate::probe::matcher::Rejection;
use crate::probe::neighbour::{Hop, HopId, Moved, Neighbours};
use crate::probe::pace::Pacer;
use crate::probe::plan::Plan;
use crate::probe::prefix::{PrefixCap, Waiting};
use crate::probe::table::{FlowKey, Table};
use crate::probe::translations::Translations;
use crate::probe::wheel::{Entry, Wheel};
use crate::probe::{Slot, TargetId};
use crate::time::Instant;
use crate::wire::{EmitError, LinkType};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A peer to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Which one it is of those that the sweep was given.
    pub id: TargetId,
    /// Its address and port.
    pub peer: SocketAddr,
    /// Where frames to it go first; `None` if there is no route.
    pub hop: Option<HopId>,
}

/// Why a run ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interruption {
    /// Somebody wants it to.
    Wanted,
}

/// What a [`Sender`] starts from.
#[derive(Debug)]
pub struct Start {
    /// What is sent when.
    pub plan: Plan,
    /// The peers in the order in which they are to be asked; a peer's slot is its index here, counted
    /// from `first_slot`.
    pub targets: Vec<Target>,
    /// The flows of the last of `targets`, which somebody else has opened. They have their turns evenly
    /// among the others.
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

/// How many flows have had their first turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Started {
    /// Of those that the sender opens itself.
    owned: usize,
    given: usize,
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
    started: Started,
    neighbours: Neighbours,
    /// In whose name next hops are asked for, where it is not that of the probes.
    asks_as: HashMap<(PathId, IpAddr), IpAddr>,
    paths: Vec<PathInfo>,
    /// The paths to this host's own addresses.
    loopback: Vec<PathId>,
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
    translations: Arc<Translations>,
    /// What the guard is to be told of flows that this host's kernel owns.
    holds: VecDeque<HoldRequest>,
    /// When the next reading of the kernel's connections must begin, and when the last did.
    reading_wanted: Instant,
    reading_begun: Instant,
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
            started: Started::default(),
            asks_as: HashMap::new(),
            health: Health::new(paths.len()),
            kernel_hops: None,
            unseen: VecDeque::new(),
            unseen_since: Instant::ZERO,
            fallback: HashMap::new(),
            moved: VecDeque::new(),
            translations: Arc::default(),
            holds: VecDeque::new(),
            reading_wanted: Instant::ZERO,
            reading_begun: Instant::ZERO,
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
            paths,
            loopback: Vec::new(),
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

    /// Says through which paths this host's own addresses are reached. Such a peer is up: if it is
    /// silent, our own side keeps the answers back.
    #[must_use]
    pub fn with_loopback(self, loopback: Vec<PathId>) -> Self {
        Sender { loopback, ..self }
    }

    /// Says that somebody looks at the kernel's table of neighbours and tells of it
    /// ([`note_kernel_hop`](Self::note_kernel_hop)): where the kernel resolves next hops, silence is
    /// believed only by a look after it.
    #[must_use]
    pub fn with_looks(self) -> Self {
        Sender { kernel_hops: Some(KernelHops::default()), ..self }
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
            + size_of::<Hop>()
    }

    fn all_started(&self) -> Started {
        Started { owned: self.targets.len() - self.given.len(), given: self.given.len() }
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

    /// Gives the verdict on a flow and begins to close it.
    fn judge(&mut self, slot: Slot, now: Instant) {
        let index = self.index(slot);
        let is_this_host = self.egress(index).is_some_and(|path| self.loopback.contains(&path));
        let flow = &mut self.flows[index];
        let facts = &flow.facts;
        let silence = facts.exhausted || facts.neighbour_failed || facts.neighbour_reports > 0;
        // A trouble is the cause of silence if it reaches into the wait, and of what does not get out if
        // it is there now.
        let since = match flow.is_held_up() {
            true => Some(now),
            false => (silence && !facts.observer).then_some(flow.first_asked_at),
        };
        if let (Some(hop), Some(since)) = (self.targets[index].hop, since) {
            let Hop { path, source, .. } = *self.neighbours.hop(hop);
            if let Some((kind, until)) = self.health.trouble(slot, path, source)
                && until >= since
            {
                flow.blame_observer(kind, now);
            }
        }
        if silence && is_this_host && !flow.facts.observer {
            flow.blame_observer(Seen::ObserverFault, now);
        }
        if self.flows[index].must_be_read(now) {
            return self.touch(slot);
        }
        // A reading that was asked for on a hint comes too late to be a second verdict.
        self.flows[index].settle();
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
        let Target { id, peer, hop } = self.targets[index];
        let given = self.given(slot).map(|given| given.local);
        let flow = &mut self.flows[index];
        let (state, reason) = classify(&flow.facts);
        let local = given.or_else(|| {
            hop.filter(|_| flow.opens > 0)
                .map(|hop| SocketAddr::new(self.neighbours.hop(hop).source, flow.local_port))
        });
        Verdict {
            target: id,
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
        if flow.is_host() {
            self.ask_kernel(slot);
        }
        let flow = &mut self.flows[index];
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
        self.started = self.all_started();
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
                flow.leave_unread();
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
