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
    Asking { tries: u16, since: Instant, waiting: Vec<Slot> },
    Resolved(MacAddr),
    Failed { since: Instant },
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
                false => (hop, Resolution::Resolved(MacAddr::default())),
            })
            .collect();
        Neighbours {
            hops,
            by_address,
            backlog: VecDeque::new(),
            asked: VecDeque::new(),
            due: VecDeque::new(),
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
            Resolution::Resolved(mac) => Some(mac),
            _ => None,
        }
    }

    /// Asks for `hop` on behalf of a flow.
    pub fn resolve(&mut self, hop: HopId, slot: Slot) -> Answer {
        match &mut self.hops[hop.0 as usize].1 {
            Resolution::Resolved(mac) => return Answer::Resolved(*mac),
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

    /// Takes in an answer; `None` if nobody asked, else the flows that waited for it.
    pub fn handle_answer(&mut self, path: PathId, ip: IpAddr, mac: MacAddr) -> Option<Vec<Slot>> {
        let mut waited = None;
        for hop in self.by_address.get(&(path, ip))?.clone() {
            let state = &mut self.hops[hop.0 as usize].1;
            if let Resolution::Asking { tries: 1.., waiting, .. } = state {
                waited.get_or_insert_with(Vec::new).append(waiting);
                *state = Resolution::Resolved(mac);
                self.in_flight -= 1;
            }
        }
        waited
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
        !self.due.is_empty() || (!self.backlog.is_empty() && self.in_flight < MAX_IN_FLIGHT)
    }

    /// Returns when [`expire`](Self::expire) has something to do next.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.asked.front().map(|&(deadline, _)| deadline)
    }

    /// Gives up everything that is still asked for (the run is interrupted): an answer that comes
    /// later wakes nobody.
    pub fn abandon(&mut self) {
        for (_, state) in &mut self.hops {
            if let Resolution::Asking { since, .. } = state {
                *state = Resolution::Failed { since: *since };
            }
        }
        self.in_flight = 0;
        self.backlog.clear();
        self.due.clear();
        self.asked.clear();
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
        assert_eq!(neighbours.handle_answer(PathId(0), hop(1).next_hop, mac), None);
        assert_eq!(neighbours.poll_request(now), Some(&hop(1)));
        assert_eq!(neighbours.poll_request(now), None);
        assert_eq!(neighbours.handle_answer(PathId(0), hop(2).next_hop, mac), None);
        let woken = neighbours.handle_answer(PathId(0), hop(1).next_hop, mac);
        assert_eq!(woken, Some(vec![Slot(7), Slot(8)]));
        assert_eq!(neighbours.resolve(HopId(0), Slot(9)), Answer::Resolved(mac));
        assert_eq!(neighbours.handle_answer(PathId(0), hop(1).next_hop, MacAddr::BROADCAST), None);
        assert_eq!(neighbours.mac(HopId(0)), Some(mac));
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
        assert_eq!(neighbours.handle_answer(PathId(1), next_hop, mac), Some(vec![Slot(8)]));
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
