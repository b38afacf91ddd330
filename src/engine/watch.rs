//! What changes about this host while a sweep runs, and whom it concerns.
//!
//! One thread is told that something changed, reads links, addresses and routes anew, and compares
//! them with what the sweep began with.

mod links;
mod neighbours;
mod programs;
mod routes;

use super::Control;
use crate::io::raw::Likeness;
use crate::io::route::{Constraint, Interface};
use crate::io::watch::{Waker, Watch, Woken};
use crate::io::xdp::Redirect;
use crate::io::{IoError, PathId};
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::probe::sender::Readings;
use crate::time::{Clock, Instant};
use crossbeam::channel;
use links::Links;
use neighbours::Neighbours;
use programs::Programs;
use routes::Strays;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A whole change (interface up, addresses, routes) is several messages: the others come so soon.
const SETTLE: Duration = Duration::from_millis(10);
/// Routes are compared at most this share of the time, as one in so many.
const ROUTES_DUTY: u32 = 10;
/// How long deadlines wait for a change of routes to be looked at; on a router that learns routes all
/// the time the sweep must go on.
const LONGEST_HOLD: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

/// Something that senders must know.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum HostEvent {
    /// Silence proves nothing until that instant.
    Trouble(Scope, Seen, Instant),
    /// Frames to the peer of this slot go by this next hop from now on.
    Redirect(Slot, PathId, IpAddr),
    /// Whether the kernel had resolved a next hop in a look that began then.
    Neighbour(PathId, IpAddr, bool, Instant),
    /// Of the look that began then everything was told.
    Looked(Instant),
    /// What the kernel says of its connections.
    Read(Arc<Readings>),
}

/// What the senders must know of the watch before they believe silence.
#[derive(Debug)]
pub(super) struct Outlook {
    /// While a change of routes has not been looked at: its instant (ns).
    unsettled_since: AtomicU64,
    /// Nobody watches any more, so that silence proves nothing.
    is_blind: AtomicBool,
}

impl Outlook {
    pub fn new() -> Self {
        Outlook { unsettled_since: AtomicU64::new(u64::MAX), is_blind: AtomicBool::new(false) }
    }

    /// Returns up to when all changes are known, in nanoseconds.
    pub fn settled_until(&self) -> u64 {
        self.unsettled_since.load(Ordering::Acquire)
    }

    /// Says whether the watch has failed. To be asked after [`settled_until`](Self::settled_until).
    pub fn is_blind(&self) -> bool {
        // Relaxed: `settled_until` was raised after it, and read before it.
        self.is_blind.load(Ordering::Relaxed)
    }

    fn unsettle(&self, since: Instant) {
        self.unsettled_since.store(since.as_nanos(), Ordering::Release);
    }

    fn settle(&self) {
        self.unsettled_since.store(u64::MAX, Ordering::Release);
    }
}

/// On the way out of the watch, however it ends: nobody waits for it, and unless it was called off
/// nobody takes its silence for good news.
struct LookedOut<'a> {
    outlook: &'a Outlook,
    is_called_off: bool,
}

impl Drop for LookedOut<'_> {
    fn drop(&mut self) {
        self.outlook.is_blind.store(!self.is_called_off, Ordering::Relaxed);
        self.outlook.settle();
    }
}

/// Where frames to a group of peers went when the sweep began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub path: PathId,
    pub ifindex: u32,
    pub next_hop: IpAddr,
    pub source: IpAddr,
    /// In whose name the kernel routes them.
    pub likeness: Likeness,
}

/// What the sweep began with.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    pub constraint: Constraint,
    pub interfaces: Vec<Interface>,
    /// Interface number by path.
    pub egress: Vec<(PathId, u32)>,
    /// Interfaces that are only listened on, all of them as this path.
    pub elsewhere: Vec<(PathId, u32)>,
    pub ways: Vec<Way>,
    /// By slot: the peer and its way, if it has one.
    pub peers: Vec<(IpAddr, Option<u32>)>,
    /// From this slot on the source addresses are given, too.
    pub first_from_given: u32,
    /// Paths whose next hops the kernel resolves, by interface number.
    pub kernel_neighbours: Vec<(PathId, u32)>,
}

/// Watches the host on behalf of a sweep.
pub(super) struct HostWatch {
    watch: Watch,
    baseline: Baseline,
    links: Links,
    strays: Strays,
    neighbours: Neighbours,
    programs: Programs,
}

impl HostWatch {
    /// Begins from what was found after `watch` was opened, so that no change falls in between.
    pub fn new(watch: Watch, baseline: Baseline) -> Self {
        HostWatch {
            links: Links::new(&baseline),
            strays: Strays::default(),
            neighbours: Neighbours::default(),
            programs: Programs::default(),
            watch,
            baseline,
        }
    }

    /// Watches these XDP programs too.
    pub fn with_programs(self, redirects: &[Redirect]) -> Self {
        HostWatch { programs: Programs::new(redirects, &self.baseline.egress), ..self }
    }

    /// Returns what ends [`run`](Self::run).
    pub fn waker(&self) -> Waker {
        self.watch.waker()
    }

    /// Tells `tell` of what concerns the senders until it is called off. While a change of routes
    /// has not been looked at, `outlook` has its instant.
    ///
    /// # Errors
    /// The kernel no longer says what changes; `outlook` is blind then.
    pub fn run(
        self,
        control: &Control,
        outlook: &Outlook,
        tell: &mut dyn FnMut(Vec<HostEvent>),
    ) -> Result<(), IoError> {
        let mut looked_out = LookedOut { outlook, is_called_off: false };
        let ended = self.watch(control, outlook, tell);
        looked_out.is_called_off = ended.is_ok();
        ended
    }

    fn watch(
        mut self,
        control: &Control,
        outlook: &Outlook,
        tell: &mut dyn FnMut(Vec<HostEvent>),
    ) -> Result<(), IoError> {
        // What happened between the opening of the watch and the first listing is in the queue.
        let mut routes_due: Option<Instant> = None;
        let mut routes_next = Instant::ZERO;
        let mut look_next = match self.baseline.kernel_neighbours.is_empty() {
            true => Instant::FAR_FUTURE,
            false => Instant::ZERO,
        };
        let mut programs_next = match self.programs.is_empty() {
            true => Instant::FAR_FUTURE,
            false => Instant::ZERO,
        };
        loop {
            let now = Clock.now();
            let wait = routes_due.map_or(LONG, |_| routes_next.since(now));
            let wait = wait.min(look_next.since(now)).min(programs_next.since(now));
            match self.watch.wait(wait)? {
                Woken::Called => return Ok(()),
                Woken::Changed => {
                    let now = Clock.now();
                    // Told at once: a link that is gone loses replies from now on.
                    let events = self.links.check(&self.baseline, control)?;
                    if !events.is_empty() {
                        tell(events);
                    }
                    if routes_due.is_none() {
                        routes_due = Some(now);
                        if routes_next.since(now) < LONGEST_HOLD {
                            outlook.unsettle(now);
                        }
                    }
                    if !self.watch.pause(SETTLE)? {
                        return Ok(());
                    }
                }
                Woken::Late => {}
            }
            let now = Clock.now();
            if now >= look_next {
                look_next = now + neighbours::LOOK_EVERY;
                let events = self.neighbours.look(&self.baseline, control, now);
                if !events.is_empty() {
                    tell(events);
                }
            }
            if now >= programs_next {
                programs_next = now + programs::LOOK_EVERY;
                let events = self.programs.look(control);
                if !events.is_empty() {
                    tell(events);
                }
            }
            if routes_due.is_some() && now >= routes_next {
                routes_due = None;
                // Again: of what has come since, a link or an address may be the cause.
                let mut events = self.links.check(&self.baseline, control)?;
                let Self { strays, baseline, links, .. } = &mut self;
                events.extend(strays.check(baseline, links, control, outlook, now)?);
                if !events.is_empty() {
                    tell(events);
                }
                outlook.settle();
                routes_next = Clock.now() + Clock.now().since(now) * ROUTES_DUTY;
            }
        }
    }
}

fn trouble(scope: Scope, kind: Seen, until: Instant) -> HostEvent {
    HostEvent::Trouble(scope, kind, until)
}

/// Hands each event to whom it concerns: what is of one flow to its owner, all else to everyone.
pub(super) fn deal_out(
    events: Vec<HostEvent>,
    share: usize,
    senders: &[channel::Sender<Vec<HostEvent>>],
) {
    let mut piles: Vec<Vec<HostEvent>> = senders.iter().map(|_| Vec::new()).collect();
    for event in events {
        match event {
            HostEvent::Redirect(slot, ..) | HostEvent::Trouble(Scope::Flow(slot), ..) => {
                if let Some(pile) = piles.get_mut(slot.0 as usize / share) {
                    pile.push(event);
                }
            }
            HostEvent::Trouble(..)
            | HostEvent::Neighbour(..)
            | HostEvent::Looked(_)
            | HostEvent::Read(_) => {
                piles.iter_mut().for_each(|pile| pile.push(event.clone()));
            }
        }
    }
    for (sender, pile) in senders.iter().zip(piles) {
        if !pile.is_empty() {
            // Fails only if the sender has ended, and then nobody wants to know.
            let _ = sender.send(pile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_watch_that_fails_holds_nobody_up_and_is_not_believed() {
        let fate = |end: &dyn Fn(&mut LookedOut<'_>)| {
            let outlook = Outlook::new();
            outlook.unsettle(Instant::from_nanos(7));
            assert_eq!((outlook.settled_until(), outlook.is_blind()), (7, false));
            let _ = catch_unwind(AssertUnwindSafe(|| {
                end(&mut LookedOut { outlook: &outlook, is_called_off: false });
            }));
            (outlook.settled_until(), outlook.is_blind())
        };
        assert_eq!(fate(&|_| {}), (u64::MAX, true));
        assert_eq!(fate(&|_| panic!("on purpose")), (u64::MAX, true));
        assert_eq!(fate(&|looked_out| looked_out.is_called_off = true), (u64::MAX, false));
    }

    #[test]
    fn flows_are_told_by_their_owner_and_the_rest_by_everyone() {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| channel::unbounded()).unzip();
        let everyone = trouble(Scope::Path(PathId(0)), Seen::LinkDown, Instant::ZERO);
        let one = trouble(Scope::Flow(Slot(10)), Seen::RouteChanged, Instant::ZERO);
        let beyond = HostEvent::Redirect(Slot(99), PathId(0), IpAddr::from([10, 0, 0, 1]));
        deal_out(vec![everyone.clone(), one.clone(), beyond], 10, &senders);
        let got: Vec<_> = receivers.iter().map(|receiver| receiver.try_recv()).collect();
        let all = Ok(vec![everyone.clone()]);
        assert_eq!(got, [all.clone(), Ok(vec![everyone, one]), all]);
    }
}
