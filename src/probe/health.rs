//! How our own side fares: since when whose silence proves nothing, and which paths take no frames.
#![forbid(unsafe_code)]

use crate::io::PathId;
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::time::Instant;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Between two attempts to send on a path that refuses frames.
const HOLD: Duration = Duration::from_millis(250);

/// Whom a trouble of our own concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All flows: our threads stood still, or the clock.
    Everywhere,
    /// What is heard through this path.
    Path(PathId),
    /// Flows from this address of ours.
    Source(IpAddr),
    /// One flow.
    Flow(Slot),
}

/// Until when our side was sick, by kind.
#[derive(Clone, Debug, Default)]
struct Troubles(Vec<(Seen, Instant)>);

impl Troubles {
    /// Notes a trouble that lasts until `until`; one that went on without end then ends.
    fn note(&mut self, kind: Seen, until: Instant) {
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, end)) if *end == Instant::FAR_FUTURE => *end = until,
            Some((_, end)) => *end = until.max(*end),
            None => self.0.push((kind, until)),
        }
    }

    fn latest(&self) -> Option<(Seen, Instant)> {
        self.0.iter().copied().reduce(later)
    }
}

/// One egress path.
#[derive(Debug, Default)]
struct Path {
    troubles: Troubles,
    /// Through which paths answers to what left by this one were heard.
    heard_through: Vec<PathId>,
    hold: Option<Hold>,
    /// Flows that owe something while the path is held.
    parked: Vec<Slot>,
}

/// A path that refuses frames.
#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Instant,
    retry_at: Instant,
    /// Waited for long enough: its peers are not asked any more, only flows closed if it comes back.
    is_given_up: bool,
}

/// What is known of our own side.
#[derive(Debug)]
pub struct Health {
    everywhere: Troubles,
    paths: Vec<Path>,
    /// Paths that nothing leaves through.
    elsewhere: HashMap<PathId, Troubles>,
    sources: HashMap<IpAddr, Troubles>,
    flows: HashMap<Slot, Troubles>,
}

impl Health {
    /// Builds the record of `paths` egress paths, none of them sick.
    pub fn new(paths: usize) -> Self {
        Health {
            everywhere: Troubles::default(),
            paths: (0..paths).map(|_| Path::default()).collect(),
            elsewhere: HashMap::new(),
            sources: HashMap::new(),
            flows: HashMap::new(),
        }
    }

    /// Notes a trouble that lasts until `until`, [`Instant::FAR_FUTURE`] while nobody knows; noted
    /// again with an earlier instant it then ends.
    pub fn note(&mut self, scope: Scope, kind: Seen, until: Instant) {
        let troubles = match scope {
            Scope::Everywhere => &mut self.everywhere,
            Scope::Path(path) => match self.paths.get_mut(usize::from(path.0)) {
                Some(path) => &mut path.troubles,
                None => self.elsewhere.entry(path).or_default(),
            },
            Scope::Source(source) => self.sources.entry(source).or_default(),
            Scope::Flow(slot) => self.flows.entry(slot).or_default(),
        };
        troubles.note(kind, until);
    }

    /// Notes that what left by `sent` was answered through `heard`.
    pub fn note_answer(&mut self, sent: PathId, heard: PathId) {
        let path = &mut self.paths[usize::from(sent.0)];
        if !path.heard_through.contains(&heard) {
            path.heard_through.push(heard);
        }
    }

    /// Returns the latest trouble by which silence towards a flow proves nothing, and until when.
    ///
    /// Answers may come in where nothing went out (asymmetric routes). So another path's trouble
    /// counts too if answers were ever heard there, or while none has come by this path itself.
    pub fn trouble(&self, slot: Slot, path: PathId, source: IpAddr) -> Option<(Seen, Instant)> {
        let heard_through = &self.paths[usize::from(path.0)].heard_through;
        let concerns = |other: PathId| {
            other == path || heard_through.contains(&other) || !heard_through.contains(&path)
        };
        let egress = (0u8..).map(PathId).zip(self.paths.iter().map(|path| &path.troubles));
        egress
            .chain(self.elsewhere.iter().map(|(&path, troubles)| (path, troubles)))
            .filter(|&(other, _)| concerns(other))
            .map(|(_, troubles)| troubles)
            .chain([&self.everywhere])
            .chain(self.sources.get(&source))
            .chain(self.flows.get(&slot))
            .filter_map(Troubles::latest)
            .reduce(later)
    }

    /// Says whether a frame may be handed to `path` now; while it refuses them, one at a time, to
    /// see whether it still does.
    pub fn may_send(&mut self, path: PathId, now: Instant) -> bool {
        match &mut self.paths[usize::from(path.0)].hold {
            None => true,
            Some(hold) if now < hold.retry_at => false,
            Some(hold) => {
                hold.retry_at = now + HOLD;
                true
            }
        }
    }

    /// Notes that `path` refuses frames.
    pub fn hold(&mut self, path: PathId, now: Instant) {
        let hold = &mut self.paths[usize::from(path.0)].hold;
        let new = Hold { since: now, retry_at: now, is_given_up: false };
        hold.get_or_insert(new).retry_at = now + HOLD;
    }

    /// Keeps a flow that owes something until its path takes frames again.
    pub fn park(&mut self, path: PathId, slot: Slot) {
        self.paths[usize::from(path.0)].parked.push(slot);
    }

    /// Takes one of the flows that wait for `path`, to see by its frame whether it sends again.
    pub fn take_parked(&mut self, path: PathId) -> Option<Slot> {
        self.paths[usize::from(path.0)].parked.pop()
    }

    /// Notes that `path` takes frames again; returns the flows that waited, and for how long.
    pub fn release(&mut self, path: PathId, now: Instant) -> (Vec<Slot>, Duration) {
        let path = &mut self.paths[usize::from(path.0)];
        let since = path.hold.take().map_or(now, |hold| hold.since);
        (std::mem::take(&mut path.parked), now.since(since))
    }

    /// Notes that `path` has been waited for long enough.
    pub fn give_up(&mut self, path: PathId) {
        if let Some(hold) = &mut self.paths[usize::from(path.0)].hold {
            hold.is_given_up = true;
        }
    }

    /// Says whether `path` has been waited for long enough.
    pub fn is_given_up(&self, path: PathId) -> bool {
        self.paths[usize::from(path.0)].hold.is_some_and(|hold| hold.is_given_up)
    }

    /// Says whether any path has been waited for long enough.
    pub fn has_given_up(&self) -> bool {
        self.paths.iter().any(|path| path.hold.is_some_and(|hold| hold.is_given_up))
    }

    /// Returns a path that refused frames and may be tried again at `now` with one of the flows that
    /// wait for it.
    pub fn due(&self, now: Instant) -> Option<PathId> {
        let paths = (0u8..).map(PathId).zip(&self.paths);
        paths
            .filter(|(_, path)| !path.parked.is_empty())
            .find(|(_, path)| path.hold.is_some_and(|hold| hold.retry_at <= now))
            .map(|(id, _)| id)
    }

    /// Returns when [`due`](Self::due) has something to say.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let waiting = self.paths.iter().filter(|path| !path.parked.is_empty());
        waiting.filter_map(|path| path.hold.map(|hold| hold.retry_at)).min()
    }
}

/// Of two troubles that last as long, the first: it concerns more flows, and is the likelier cause. But
/// that frames are not sent is what comes of another one.
fn later(one: (Seen, Instant), other: (Seen, Instant)) -> (Seen, Instant) {
    let is_cause = one.0 == Seen::NotSent && other.1 == one.1;
    if other.1 > one.1 || is_cause { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: PathId = PathId(0);
    const OTHER: PathId = PathId(1);
    const ELSEWHERE: PathId = PathId(u8::MAX);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn trouble_of(health: &Health, path: PathId) -> Option<(Seen, Instant)> {
        health.trouble(Slot(1), path, IpAddr::from([10, 0, 0, 1]))
    }

    #[test]
    fn trouble_of_another_path_counts_only_where_its_answers_could_be_ours() {
        for other in [OTHER, ELSEWHERE] {
            let mut health = Health::new(2);
            health.note(Scope::Path(other), Seen::ObserverDrops, at(5));
            let noted = Some((Seen::ObserverDrops, at(5)));
            assert_eq!(trouble_of(&health, OURS), noted, "nothing was ever heard");
            health.note_answer(OURS, OURS);
            assert_eq!(trouble_of(&health, OURS), None);
            health.note_answer(OURS, other);
            assert_eq!(trouble_of(&health, OURS), noted, "answers come by it");
        }
    }

    #[test]
    fn trouble_that_went_on_ends_when_it_is_said_to() {
        let mut health = Health::new(1);
        health.note(Scope::Path(OURS), Seen::LinkDown, Instant::FAR_FUTURE);
        health.note(Scope::Path(OURS), Seen::ObserverFault, at(9));
        assert_eq!(trouble_of(&health, OURS), Some((Seen::LinkDown, Instant::FAR_FUTURE)));
        health.note(Scope::Path(OURS), Seen::LinkDown, at(7));
        assert_eq!(trouble_of(&health, OURS), Some((Seen::ObserverFault, at(9))));
        // Ended is ended: an earlier instant takes nothing back.
        health.note(Scope::Path(OURS), Seen::ObserverFault, at(3));
        assert_eq!(trouble_of(&health, OURS), Some((Seen::ObserverFault, at(9))));
    }

    #[test]
    fn a_cause_is_named_before_what_comes_of_it() {
        for kinds in [[Seen::NotSent, Seen::LinkDown], [Seen::LinkDown, Seen::NotSent]] {
            let mut health = Health::new(1);
            for kind in kinds {
                health.note(Scope::Path(OURS), kind, Instant::FAR_FUTURE);
            }
            let (kind, _) = trouble_of(&health, OURS).expect("there is one");
            assert_eq!(kind, Seen::LinkDown);
        }
    }

    #[test]
    fn trouble_of_a_source_or_a_flow_concerns_no_other() {
        let mut health = Health::new(1);
        health.note(Scope::Source(IpAddr::from([10, 0, 0, 2])), Seen::AddressLost, at(5));
        health.note(Scope::Flow(Slot(2)), Seen::RouteChanged, at(5));
        assert_eq!(trouble_of(&health, OURS), None);
        health.note(Scope::Source(IpAddr::from([10, 0, 0, 1])), Seen::AddressLost, at(5));
        assert_eq!(trouble_of(&health, OURS), Some((Seen::AddressLost, at(5))));
        health.note(Scope::Flow(Slot(1)), Seen::RouteChanged, at(6));
        assert_eq!(trouble_of(&health, OURS), Some((Seen::RouteChanged, at(6))));
    }

    #[test]
    fn a_path_that_refuses_is_tried_with_one_frame_at_a_time() {
        let mut health = Health::new(2);
        assert!(health.may_send(OURS, at(0)));
        health.hold(OURS, at(0));
        health.park(OURS, Slot(1));
        health.park(OURS, Slot(2));
        assert!(!health.may_send(OURS, at(249)) && health.due(at(249)).is_none());
        assert!(health.may_send(OTHER, at(1)));
        assert_eq!((health.next_wakeup(), health.due(at(250))), (Some(at(250)), Some(OURS)));
        assert!(health.may_send(OURS, at(250)));
        assert!(!health.may_send(OURS, at(251)), "one is enough");
        health.hold(OURS, at(251));
        assert!(!health.has_given_up());
        health.give_up(OURS);
        assert!(health.has_given_up() && health.is_given_up(OURS) && !health.is_given_up(OTHER));
        assert_eq!(
            health.release(OURS, at(600)),
            (vec![Slot(1), Slot(2)], Duration::from_millis(600))
        );
        assert!(health.may_send(OURS, at(600)) && !health.is_given_up(OURS));
        assert_eq!(health.next_wakeup(), None);
    }
}
