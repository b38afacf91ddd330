//! Address resolution of our own: next hop → MAC, by ARP or ND, bounded in flight.
//!
//! Never through the kernel's neighbour table, which a /16 would overflow (gc_thresh3 = 1,024).
#![forbid(unsafe_code)]

use crate::io::PathId;
use crate::probe::Slot;
use crate::time::Instant;
use crate::wire::MacAddr;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// Index of a next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HopId(pub u32);

/// Next hops that may be asked for at the same time.
const MAX_IN_FLIGHT: usize = 16_384;
/// Between requests for one next hop (Linux: retrans_time_ms).
const SPACING: Duration = Duration::from_secs(1);
/// How long a MAC address is believed although peers behind it are silent.
const CONFIRMED_FOR: Duration = Duration::from_secs(2);
/// Where frames have no MAC address there is none to ask for again, ever.
const NO_MAC: Resolution =
    Resolution::Resolved { mac: MacAddr([0; 6]), confirmed: Instant::FAR_FUTURE, asked: None };
/// Fewest requests before a next hop is given up (Linux: mcast_solicit).
const MIN_TRIES: u16 = 3;

/// Where frames to a group of peers go first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Hop {
    /// The path out.
    pub path: PathId,
    /// The gateway, or the peer itself when it is on the link.
    pub next_hop: IpAddr,
    /// Our address towards it.
    pub source: IpAddr,
}

#[derive(Debug)]
enum Resolution {
    Unasked,
    Asking {
        tries: u16,
        since: Instant,
        waiting: Vec<Slot>,
    },
    /// `asked` is when it was last asked for again, if it was since it was last confirmed.
    Resolved {
        mac: MacAddr,
        confirmed: Instant,
        asked: Option<Instant>,
    },
    Failed {
        since: Instant,
    },
}

/// A next hop that has another MAC address than before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The next hop.
    pub next_hop: IpAddr,
    /// Its address up to now.
    pub from: MacAddr,
    /// Its address from now on.
    pub to: MacAddr,
}

/// What is known of a next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its MAC address.
    Resolved(MacAddr),
    /// Asked for; the flow will be named when it is known.
    Pending,
    /// It does not answer.
    Failed {
        /// When it was first asked.
        since: Instant,
    },
}

/// The next hops of a sweep.
#[derive(Debug)]
pub struct Neighbours {
    hops: Vec<(Hop, Resolution)>,
    by_address: HashMap<(PathId, IpAddr), Vec<HopId>>,
    /// Hops that wait for their first request.
    backlog: VecDeque<HopId>,
    /// Hops that wait for an answer, by deadline: the spacing is the same for all.
    asked: VecDeque<(Instant, HopId)>,
    /// Hops to ask now.
    due: VecDeque<HopId>,
    /// Hops to ask now although their address is known: peers behind them are silent.
    doubted: VecDeque<HopId>,
    in_flight: usize,
    max_tries: u16,
}

impl Neighbours {
    /// Takes the hops of a sweep; hops on paths without MAC addresses are resolved at once.
    pub fn new(hops: Vec<Hop>, count: u16, needs_mac: impl Fn(PathId) -> bool) -> Self {
        let mut by_address: HashMap<_, Vec<HopId>> = HashMap::with_capacity(hops.len());
        for (index, hop) in hops.iter().enumerate() {
            by_address.entry((hop.path, hop.next_hop)).or_default().push(HopId(index as u32));
        }
        let hops = hops
            .into_iter()
            .map(|hop| match needs_mac(hop.path) {
                true => (hop, Resolution::Unasked),
                false => (hop, NO_MAC),
            })
            .collect();
        Neighbours {
            hops,
            by_address,
            backlog: VecDeque::new(),
            asked: VecDeque::new(),
            due: VecDeque::new(),
            doubted: VecDeque::new(),
            in_flight: 0,
            max_tries: count.max(MIN_TRIES),
        }
    }

    /// Returns where frames via `hop` go.
    pub fn hop(&self, hop: HopId) -> &Hop {
        &self.hops[hop.0 as usize].0
    }

    /// Returns the MAC address of `hop`, if it is known.
    pub fn mac(&self, hop: HopId) -> Option<MacAddr> {
        match self.hops[hop.0 as usize].1 {
            Resolution::Resolved { mac, .. } => Some(mac),
            _ => None,
        }
    }

    /// Says whether frames via `hop` need a MAC address.
    pub fn needs_mac(&self, hop: HopId) -> bool {
        let state = &self.hops[hop.0 as usize].1;
        !matches!(state, Resolution::Resolved { confirmed: Instant::FAR_FUTURE, .. })
    }

    /// Asks for `hop` on behalf of a flow.
    pub fn resolve(&mut self, hop: HopId, slot: Slot) -> Answer {
        match &mut self.hops[hop.0 as usize].1 {
            Resolution::Resolved { mac, .. } => return Answer::Resolved(*mac),
            Resolution::Failed { since } => return Answer::Failed { since: *since },
            Resolution::Asking { waiting, .. } => waiting.push(slot),
            unasked @ Resolution::Unasked => {
                let (tries, since) = (0, Instant::FAR_FUTURE);
                *unasked = Resolution::Asking { tries, since, waiting: vec![slot] };
                self.backlog.push_back(hop);
            }
        }
        Answer::Pending
    }

    /// Adds a next hop that became known later.
    pub fn add(&mut self, hop: Hop, needs_mac: bool) -> HopId {
        let beside = self.by_address.entry((hop.path, hop.next_hop)).or_default();
        let id = HopId(self.hops.len() as u32);
        let known = beside.iter().find(|known| self.hops[known.0 as usize].0.source == hop.source);
        if let Some(&known) = known {
            return known;
        }
        beside.push(id);
        self.hops.push((hop, if needs_mac { Resolution::Unasked } else { NO_MAC }));
        id
    }

    /// Takes in an answer that came at `now`; `None` if nobody asked, else the flows that waited
    /// for it, and the change if the address is another one than before.
    pub fn handle_answer(
        &mut self,
        path: PathId,
        ip: IpAddr,
        answer: MacAddr,
        now: Instant,
    ) -> Option<(Vec<Slot>, Option<Moved>)> {
        let same = self.by_address.get(&(path, ip))?.clone();
        let is_doubted = same.iter().any(|hop| {
            matches!(self.hops[hop.0 as usize].1, Resolution::Resolved { asked: Some(_), .. })
        });
        let mut result = None;
        for hop in same {
            let state = &mut self.hops[hop.0 as usize].1;
            let (waited, moved) = match state {
                Resolution::Asking { tries: 1.., waiting, .. } => {
                    self.in_flight -= 1;
                    (std::mem::take(waiting), None)
                }
                Resolution::Resolved { mac, .. } if is_doubted => {
                    let moved = Moved { next_hop: ip, from: *mac, to: answer };
                    (Vec::new(), (*mac != answer).then_some(moved))
                }
                _ => continue,
            };
            *state = Resolution::Resolved { mac: answer, confirmed: now, asked: None };
            let (all, change) = result.get_or_insert_with(|| (Vec::new(), None));
            all.extend(waited);
            *change = change.or(moved);
        }
        result
    }

    /// Says that a peer behind `hop` is silent: if its MAC address was not confirmed lately, it is
    /// asked for again, while frames go on to the address that is known.
    pub fn doubt(&mut self, hop: HopId, now: Instant) {
        if let Resolution::Resolved { confirmed, asked, .. } = &mut self.hops[hop.0 as usize].1
            && now.since(*confirmed) >= CONFIRMED_FOR
            && asked.is_none_or(|at| now.since(at) >= SPACING)
        {
            *asked = Some(now);
            self.doubted.push_back(hop);
        }
    }

    /// Says that a request for `next_hop` did not leave: it was not asked.
    pub fn handle_unsent(&mut self, path: PathId, next_hop: IpAddr) {
        for hop in self.by_address.get(&(path, next_hop)).into_iter().flatten() {
            if let Resolution::Asking { tries, .. } = &mut self.hops[hop.0 as usize].1 {
                *tries = tries.saturating_sub(1);
            }
        }
    }

    /// Lets time pass; calls `failed` with every flow whose next hop is given up, and with when that
    /// was first asked.
    pub fn expire(&mut self, now: Instant, mut failed: impl FnMut(Slot, Instant)) {
        while let Some(&(deadline, hop)) = self.asked.front()
            && deadline <= now
        {
            self.asked.pop_front();
            let state = &mut self.hops[hop.0 as usize].1;
            let Resolution::Asking { tries, since, waiting } = state else { continue };
            if *tries < self.max_tries {
                self.due.push_back(hop);
            } else {
                let since = *since;
                waiting.drain(..).for_each(|slot| failed(slot, since));
                *state = Resolution::Failed { since };
                self.in_flight -= 1;
            }
        }
    }

    /// Returns the next hop to send a request for, counting it as sent at `now`.
    pub fn poll_request(&mut self, now: Instant) -> Option<&Hop> {
        if let Some(hop) = self.doubted.pop_front() {
            return Some(self.hop(hop));
        }
        let hop = loop {
            let hop = match self.due.pop_front() {
                Some(hop) => hop,
                None if self.in_flight < MAX_IN_FLIGHT => {
                    let hop = self.backlog.pop_front()?;
                    self.in_flight += 1;
                    hop
                }
                None => return None,
            };
            if let Resolution::Asking { tries, since, .. } = &mut self.hops[hop.0 as usize].1 {
                *tries += 1;
                *since = now.min(*since);
                break hop;
            }
        };
        self.asked.push_back((now + SPACING, hop));
        Some(self.hop(hop))
    }

    /// Says whether a request could be sent now.
    pub fn wants_request(&self) -> bool {
        !self.due.is_empty()
            || !self.doubted.is_empty()
            || (!self.backlog.is_empty() && self.in_flight < MAX_IN_FLIGHT)
    }

    /// Returns when [`expire`](Self::expire) has something to do next.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.asked.front().map(|&(deadline, _)| deadline)
    }

    /// Gives up everything that is still asked for (the run is interrupted): an answer that comes
    /// later wakes nobody. Returns the flows that waited.
    pub fn abandon(&mut self) -> Vec<Slot> {
        let mut waited = Vec::new();
        for (_, state) in &mut self.hops {
            if let Resolution::Asking { since, waiting, .. } = state {
                waited.append(waiting);
                *state = Resolution::Failed { since: *since };
            }
        }
        self.in_flight = 0;
        self.backlog.clear();
        self.due.clear();
        self.doubted.clear();
        self.asked.clear();
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(last: u8) -> Hop {
        Hop {
            path: PathId(0),
            next_hop: IpAddr::from([10, 0, 0, last]),
            source: IpAddr::from([10, 0, 0, 254]),
        }
    }

    #[test]
    fn answers_wake_every_flow_that_waited() {
        let mut neighbours = Neighbours::new(vec![hop(1), hop(2)], 5, |_| true);
        let now = Instant::from_nanos(1);
        assert_eq!(neighbours.resolve(HopId(0), Slot(7)), Answer::Pending);
        assert_eq!(neighbours.resolve(HopId(0), Slot(8)), Answer::Pending);
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        // Not asked yet: an answer now is a forgery.
        assert_eq!(neighbours.handle_answer(PathId(0), hop(1).next_hop, mac, now), None);
        assert_eq!(neighbours.poll_request(now), Some(&hop(1)));
        assert_eq!(neighbours.poll_request(now), None);
        assert_eq!(neighbours.handle_answer(PathId(0), hop(2).next_hop, mac, now), None);
        let woken = neighbours.handle_answer(PathId(0), hop(1).next_hop, mac, now);
        assert_eq!(woken, Some((vec![Slot(7), Slot(8)], None)));
        assert_eq!(neighbours.resolve(HopId(0), Slot(9)), Answer::Resolved(mac));
        let other = MacAddr::BROADCAST;
        assert_eq!(neighbours.handle_answer(PathId(0), hop(1).next_hop, other, now), None);
        assert_eq!(neighbours.mac(HopId(0)), Some(mac));
    }

    #[test]
    fn a_hop_with_silent_peers_is_asked_again_and_may_have_moved() {
        let mut neighbours = Neighbours::new(vec![hop(1)], 5, |_| true);
        let start = Instant::from_nanos(1);
        let (path, ip) = (PathId(0), hop(1).next_hop);
        let (from, to) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        neighbours.resolve(HopId(0), Slot(7));
        neighbours.poll_request(start);
        neighbours.handle_answer(path, ip, from, start);
        // Just confirmed.
        neighbours.doubt(HopId(0), start + CONFIRMED_FOR - Duration::from_nanos(1));
        assert_eq!(neighbours.poll_request(start), None);
        let now = start + CONFIRMED_FOR;
        for late in [Duration::ZERO, SPACING - Duration::from_nanos(1)] {
            neighbours.doubt(HopId(0), now + late);
        }
        assert!(neighbours.wants_request());
        assert_eq!(neighbours.poll_request(now), Some(&hop(1)));
        assert_eq!(neighbours.poll_request(now), None, "asked once a second");
        assert_eq!(neighbours.mac(HopId(0)), Some(from), "frames go on meanwhile");
        let moved = Moved { next_hop: ip, from, to };
        assert_eq!(neighbours.handle_answer(path, ip, to, now), Some((Vec::new(), Some(moved))));
        assert_eq!(neighbours.mac(HopId(0)), Some(to));
        // Nobody asked: a forgery.
        assert_eq!(neighbours.handle_answer(path, ip, from, now), None);
    }

    #[test]
    fn a_request_that_did_not_leave_is_no_try() {
        let mut neighbours = Neighbours::new(vec![hop(1)], 4, |_| true);
        neighbours.resolve(HopId(0), Slot(3));
        let mut now = Instant::ZERO;
        for _ in 0..20 {
            assert!(neighbours.poll_request(now).is_some());
            neighbours.handle_unsent(PathId(0), hop(1).next_hop);
            now = now + SPACING;
            neighbours.expire(now, |_, _| panic!("given up, although never asked"));
        }
    }

    #[test]
    fn an_address_is_one_path_s() {
        // Two routers of one link-local address, on two links.
        let next_hop: IpAddr = "fe80::1".parse().unwrap();
        let source = "fd00::1".parse().unwrap();
        let hops = [0, 1].map(|path| Hop { path: PathId(path), next_hop, source });
        let mut neighbours = Neighbours::new(hops.to_vec(), 5, |_| true);
        let now = Instant::from_nanos(1);
        for (hop, slot) in [(HopId(0), Slot(7)), (HopId(1), Slot(8))] {
            assert_eq!(neighbours.resolve(hop, slot), Answer::Pending);
            assert!(neighbours.poll_request(now).is_some());
        }
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        assert_eq!(
            neighbours.handle_answer(PathId(1), next_hop, mac, now),
            Some((vec![Slot(8)], None))
        );
        assert_eq!((neighbours.mac(HopId(0)), neighbours.mac(HopId(1))), (None, Some(mac)));
    }

    #[test]
    fn gives_up_after_the_plan_and_not_before() {
        let mut neighbours = Neighbours::new(vec![hop(1)], 4, |_| true);
        neighbours.resolve(HopId(0), Slot(3));
        let mut now = Instant::ZERO;
        let mut failed = Vec::new();
        for _ in 0..4 {
            assert!(neighbours.poll_request(now).is_some());
            assert!(neighbours.poll_request(now).is_none());
            neighbours.expire(now + SPACING / 2, |slot, _| failed.push(slot));
            assert!(!neighbours.wants_request() && failed.is_empty());
            now = now + SPACING;
            neighbours.expire(now, |slot, since| {
                failed.push(slot);
                assert_eq!(since, Instant::ZERO);
            });
        }
        assert_eq!(failed, [Slot(3)]);
        // Trouble of our own since it was asked weighs, whoever asks now.
        let failed = Answer::Failed { since: Instant::ZERO };
        assert_eq!(neighbours.resolve(HopId(0), Slot(4)), failed);
        assert_eq!(neighbours.next_wakeup(), None);
    }
}
