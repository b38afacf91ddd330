//! Whether the kernel's routes are still those that a sweep began with.

use super::links::Links;
use super::{Baseline, HostEvent, LONGEST_HOLD, Outlook, Way, trouble};
use crate::engine::Control;
use crate::io::IoError;
use crate::io::raw::Likeness;
use crate::io::route::{Constraint, Route, Routes};
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::time::{Clock, Instant};
use std::collections::HashMap;
use std::net::IpAddr;

/// How a route now compares with that of the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compared {
    Same,
    /// Another next hop on the same interface, from the same source.
    NextHop(IpAddr),
    Other,
}

impl Way {
    fn compare(&self, route: &Result<Route, IoError>) -> Compared {
        match *route {
            Ok(Route::Via { ifindex, next_hop, source })
                if (ifindex, source) == (self.ifindex, self.source) =>
            {
                if next_hop == self.next_hop { Compared::Same } else { Compared::NextHop(next_hop) }
            }
            // Looped: next hop and source are one.
            Ok(Route::Local { ifindex, source })
                if (ifindex, source, source) == (self.ifindex, self.source, self.next_hop) =>
            {
                Compared::Same
            }
            _ => Compared::Other,
        }
    }
}

/// What was last told of a slot's route, where that is not [`Compared::Same`].
#[derive(Debug, Default)]
pub(super) struct Strays {
    told: HashMap<u32, Compared>,
}

impl Strays {
    /// Looks up every peer's route again, and tells of those that differ. What is known to be down is
    /// left out: routes vanish with links and addresses, and come back with them.
    ///
    /// # Errors
    /// Routes cannot be looked up.
    pub fn check(
        &mut self,
        baseline: &Baseline,
        links: &Links,
        control: &Control,
        outlook: &Outlook,
        begun: Instant,
    ) -> Result<Vec<HostEvent>, IoError> {
        let mut routes = Routes::open()?;
        let mut events = Vec::new();
        let told = &mut self.told;
        let down: Vec<bool> = baseline.ways.iter().map(|way| links.is_down(way)).collect();
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
            let compared = way.compare(&routes.lookup(peer, &constraint));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::PathId;
    use crate::io::route::NoRoute;

    #[test]
    fn only_another_next_hop_on_the_same_way_can_be_followed() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let likeness = Likeness::default();
        let way = Way { path: PathId(0), ifindex: 3, next_hop: ip(1), source: ip(9), likeness };
        let via = |ifindex, next_hop, source| Ok(Route::Via { ifindex, next_hop, source });
        let looped = Way { next_hop: ip(9), ..way };
        let local = |source| Ok(Route::Local { ifindex: 3, source });
        assert_eq!(looped.compare(&local(ip(9))), Compared::Same);
        assert_eq!(looped.compare(&local(ip(8))), Compared::Other);
        assert_eq!(way.compare(&local(ip(9))), Compared::Other);
        for (route, expected) in [
            (via(3, ip(1), ip(9)), Compared::Same),
            (via(3, ip(2), ip(9)), Compared::NextHop(ip(2))),
            (via(4, ip(1), ip(9)), Compared::Other),
            (via(3, ip(1), ip(8)), Compared::Other),
            (Ok(Route::Broadcast), Compared::Other),
            (Ok(Route::None(NoRoute::NoRoute)), Compared::Other),
        ] {
            assert_eq!(way.compare(&route), expected, "{route:?}");
        }
    }
}
