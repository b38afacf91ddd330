//! What changes about this host while a sweep runs, and whom it concerns.
//!
//! One thread is told that something changed, reads links, addresses and routes anew, and compares
//! them with what the sweep began with.

mod programs;

use super::Control;
use crate::io::raw::Likeness;
use crate::io::route::{Constraint, Interface, NeighbourTable, Route, Routes, interfaces};
use crate::io::watch::{Waker, Watch, Woken};
use crate::io::xdp::Redirect;
use crate::io::{IoError, PathId};
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::probe::sender::Readings;
use crate::time::{Clock, Instant};
use crate::wire::MacAddr;
use crossbeam::channel;
use programs::Programs;
use std::collections::{BTreeSet, HashMap};
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
/// After a link or an address is back, switches and neighbours need a while to find it.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at the kernel's table of neighbours.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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

/// How a route now compares with that of the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compared {
    Same,
    /// Another next hop on the same interface, from the same source.
    NextHop(IpAddr),
    Other,
}

impl Baseline {
    fn compare(&self, way: &Way, route: &Result<Route, IoError>) -> Compared {
        match *route {
            Ok(Route::Via { ifindex, next_hop, source })
                if (ifindex, source) == (way.ifindex, way.source) =>
            {
                if next_hop == way.next_hop {
                    Compared::Same
                } else {
                    Compared::NextHop(next_hop)
                }
            }
            // Looped: next hop and source are one.
            Ok(Route::Local { ifindex, source })
                if (ifindex, source, source) == (way.ifindex, way.source, way.next_hop) =>
            {
                Compared::Same
            }
            _ => Compared::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    name_of: u32,
    mac: MacAddr,
    losses: u32,
    down_since: Option<Instant>,
}

/// Watches the host on behalf of a sweep.
pub(super) struct HostWatch {
    watch: Watch,
    baseline: Baseline,
    links: Vec<(PathId, Link)>,
    sources: Vec<(IpAddr, Option<Instant>)>,
    /// What was last told of a slot, where that is not [`Compared::Same`].
    told: HashMap<u32, Compared>,
    /// Next hops last told to be unresolved.
    unresolved: BTreeSet<(PathId, IpAddr)>,
    is_blind: bool,
    programs: Programs,
}

impl HostWatch {
    /// Begins from what was found after `watch` was opened, so that no change falls in between.
    pub fn new(watch: Watch, baseline: Baseline) -> Self {
        let find = |index: u32| baseline.interfaces.iter().find(|known| known.index == index);
        let links = baseline.egress.iter().chain(&baseline.elsewhere);
        let links = links.filter_map(|&(path, index)| {
            let interface = find(index)?;
            let (mac, losses) = (interface.mac, interface.carrier_losses);
            Some((path, Link { name_of: index, mac, losses, down_since: None }))
        });
        let own: BTreeSet<IpAddr> = addresses(&baseline.interfaces).collect();
        let sources: BTreeSet<IpAddr> = baseline.ways.iter().map(|way| way.source).collect();
        HostWatch {
            links: links.collect(),
            // A source need not be an address of an interface: whole prefixes can be local.
            sources: sources.intersection(&own).map(|&source| (source, None)).collect(),
            told: HashMap::new(),
            unresolved: BTreeSet::new(),
            is_blind: false,
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
                    let events = self.check_links(control)?;
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
                look_next = now + LOOK_EVERY;
                let events = self.look(control, now);
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
                let mut events = self.check_links(control)?;
                events.extend(self.check_routes(control, outlook, now)?);
                if !events.is_empty() {
                    tell(events);
                }
                outlook.settle();
                routes_next = Clock.now() + Clock.now().since(now) * ROUTES_DUTY;
            }
        }
    }

    /// Looks at the kernel's table of neighbours. If that fails, nobody is told: without a look no
    /// silence is believed.
    fn look(&mut self, control: &Control, now: Instant) -> Vec<HostEvent> {
        let found = match NeighbourTable::open().and_then(|mut table| table.read()) {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    control.notices.push(format!(
                        "{error}; while it lasts, silence on the raw path proves nothing"
                    ));
                }
                return Vec::new();
            }
        };
        self.is_blind = false;
        let mut events = Vec::new();
        for entry in found {
            let paths = self.baseline.kernel_neighbours.iter();
            for &(path, _) in paths.filter(|(_, index)| *index == entry.ifindex) {
                let key = (path, entry.address);
                let is_news = match entry.is_resolved {
                    true => self.unresolved.remove(&key),
                    false => {
                        self.unresolved.insert(key);
                        true
                    }
                };
                if is_news {
                    events.push(HostEvent::Neighbour(path, entry.address, entry.is_resolved, now));
                }
            }
        }
        events.push(HostEvent::Looked(now));
        events
    }

    fn check_links(&mut self, control: &Control) -> Result<Vec<HostEvent>, IoError> {
        let found = interfaces()?;
        let now = Clock.now();
        let mut events = Vec::new();
        let Baseline { interfaces: known, egress, .. } = &self.baseline;
        for (path, link) in &mut self.links {
            let is_egress = egress.iter().any(|(egress, _)| egress == path);
            let name = known
                .iter()
                .find(|known| known.index == link.name_of)
                .map_or_else(String::new, |known| known.name.clone());
            let state = found.iter().find(|found| found.index == link.name_of);
            let is_up = state.is_some_and(|state| state.up && state.mac == link.mac);
            let what = match state {
                None => "gone",
                Some(state) if state.mac != link.mac => "with another MAC address",
                Some(state) if !state.enabled => "down",
                Some(_) => "without carrier",
            };
            let losses = state.map_or(link.losses, |state| state.carrier_losses);
            let say = |text: String| {
                if is_egress {
                    control.notices.push(text);
                } else {
                    tracing::info!("{text}");
                }
            };
            match (link.down_since, is_up) {
                (None, false) => {
                    link.down_since = Some(now);
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, Instant::FAR_FUTURE));
                    say(format!(
                        "{name}: {what}; until it is back, silence of peers behind it proves nothing"
                    ));
                }
                (Some(since), true) => {
                    link.down_since = None;
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, now + GRACE));
                    let away = now.since(since).as_secs_f64();
                    say(format!("{name}: back after {away:.1} s"));
                }
                (None, true) if losses != link.losses => {
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, now + GRACE));
                    say(format!("{name}: lost its carrier for a moment"));
                }
                _ => {}
            }
            link.losses = losses;
        }
        // Several interfaces are listened on as one path: it is well only if all are.
        let down: BTreeSet<PathId> =
            self.links.iter().filter_map(|(path, link)| link.down_since.map(|_| *path)).collect();
        events.retain(|event| match event {
            HostEvent::Trouble(Scope::Path(path), _, until) => {
                *until == Instant::FAR_FUTURE || !down.contains(path)
            }
            _ => true,
        });
        let own: BTreeSet<IpAddr> = addresses(&found).collect();
        for (source, lost_since) in &mut self.sources {
            let (scope, kind) = (Scope::Source(*source), Seen::AddressLost);
            match (*lost_since, own.contains(source)) {
                (None, false) => {
                    *lost_since = Some(now);
                    events.push(trouble(scope, kind, Instant::FAR_FUTURE));
                    control.notices.push(format!(
                        "{source}: no longer an address of this host; until it is back, silence \
                         towards it proves nothing"
                    ));
                }
                (Some(since), true) => {
                    *lost_since = None;
                    events.push(trouble(scope, kind, now + GRACE));
                    let away = now.since(since).as_secs_f64();
                    control
                        .notices
                        .push(format!("{source}: an address of this host again after {away:.1} s"));
                }
                _ => {}
            }
        }
        Ok(events)
    }

    /// Looks up every peer's route again, and tells of those that differ. What is known to be down is
    /// left out: routes vanish with links and addresses, and come back with them.
    fn check_routes(
        &mut self,
        control: &Control,
        outlook: &Outlook,
        begun: Instant,
    ) -> Result<Vec<HostEvent>, IoError> {
        let mut routes = Routes::open()?;
        let mut events = Vec::new();
        let Self { baseline, links, sources, told, .. } = self;
        let is_down = |way: &Way| {
            links.iter().any(|(path, link)| *path == way.path && link.down_since.is_some())
                || sources.iter().any(|(source, lost)| *source == way.source && lost.is_some())
        };
        let down: Vec<bool> = baseline.ways.iter().map(is_down).collect();
        let (mut redirected, mut strayed, mut returned) = (0u64, 0u64, 0u64);
        for (slot, &(peer, way)) in (0u32..).zip(&baseline.peers) {
            if slot.is_multiple_of(4096) && Clock.now().since(begun) > LONGEST_HOLD {
                outlook.settle();
            }
            let Some(way) = way.map(|way| way as usize).filter(|&way| !down[way]) else { continue };
            let way = &baseline.ways[way];
            // A link-local address is one of its link only.
            let oif = match peer {
                IpAddr::V6(peer) if peer.is_unicast_link_local() => Some(way.ifindex),
                _ => baseline.constraint.oif,
            };
            let given = (slot >= baseline.first_from_given).then_some(way.source);
            let source = given.or(baseline.constraint.source);
            let Likeness { mark, bound_interface } = way.likeness;
            let bound = (bound_interface != 0).then_some(bound_interface);
            let constraint = Constraint { oif: bound.or(oif), source, mark };
            let compared = baseline.compare(way, &routes.lookup(peer, &constraint));
            let before = told.get(&slot).copied().unwrap_or(Compared::Same);
            if compared == before {
                continue;
            }
            match compared {
                Compared::Same => told.remove(&slot),
                other => told.insert(slot, other),
            };
            let slot = Slot(slot);
            let now = Clock.now();
            let (scope, kind) = (Scope::Flow(slot), Seen::RouteChanged);
            match compared {
                Compared::Other => {
                    strayed += 1;
                    events.push(trouble(scope, kind, Instant::FAR_FUTURE));
                    continue;
                }
                Compared::NextHop(next_hop) => {
                    redirected += 1;
                    events.push(HostEvent::Redirect(slot, way.path, next_hop));
                }
                Compared::Same => {
                    returned += 1;
                    if matches!(before, Compared::NextHop(_)) {
                        events.push(HostEvent::Redirect(slot, way.path, way.next_hop));
                    }
                }
            }
            // What was sent meanwhile may have gone astray.
            events.push(trouble(scope, kind, now));
        }
        for (count, what) in [
            (redirected, "have another next hop now; their frames follow it"),
            (
                strayed,
                "have another route now, or none; until it is back, their silence proves nothing",
            ),
            (returned, "have the route again that they had at first"),
        ] {
            if count > 0 {
                control.notices.push(format!("routes changed: {count} peers {what}"));
            }
        }
        Ok(events)
    }
}

fn trouble(scope: Scope, kind: Seen, until: Instant) -> HostEvent {
    HostEvent::Trouble(scope, kind, until)
}

fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    interfaces.iter().flat_map(|interface| &interface.addresses).map(|address| address.addr())
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

    #[test]
    fn only_another_next_hop_on_the_same_way_can_be_followed() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let likeness = Likeness::default();
        let way = Way { path: PathId(0), ifindex: 3, next_hop: ip(1), source: ip(9), likeness };
        let via = |ifindex, next_hop, source| Ok(Route::Via { ifindex, next_hop, source });
        let baseline = Baseline::default();
        let looped = Way { next_hop: ip(9), ..way };
        let local = |source| Ok(Route::Local { ifindex: 3, source });
        assert_eq!(baseline.compare(&looped, &local(ip(9))), Compared::Same);
        assert_eq!(baseline.compare(&looped, &local(ip(8))), Compared::Other);
        assert_eq!(baseline.compare(&way, &local(ip(9))), Compared::Other);
        for (route, expected) in [
            (via(3, ip(1), ip(9)), Compared::Same),
            (via(3, ip(2), ip(9)), Compared::NextHop(ip(2))),
            (via(4, ip(1), ip(9)), Compared::Other),
            (via(3, ip(1), ip(8)), Compared::Other),
            (Ok(Route::Broadcast), Compared::Other),
            (Ok(Route::None(crate::io::route::NoRoute::NoRoute)), Compared::Other),
        ] {
            assert_eq!(baseline.compare(&way, &route), expected, "{route:?}");
        }
    }
}
