//! A cap on the frames towards one network, so that no site is hit harder than its operator allows.
//!
//! Whoever must wait for its network waits in that network's own queue, and holds up no other. A
//! network costs a few octets; only flows that wait cost some each.
#![forbid(unsafe_code)]

use crate::probe::Slot;
use crate::time::Instant;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// How far back a late frame is made good: what a sender's thread may oversleep.
const MEMORY: Duration = Duration::from_millis(10);
const NS_PER_S: u64 = 1_000_000_000;

/// A network that the cap holds for: an IPv4 /24 or an IPv6 /48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix(u64);

impl Prefix {
    /// Returns the network of `address`.
    pub fn of(address: IpAddr) -> Prefix {
        match address {
            // Beyond the 48 bits of the others.
            IpAddr::V4(address) => Prefix(1 << 63 | u64::from(address.to_bits() >> 8)),
            IpAddr::V6(address) => Prefix((address.to_bits() >> 80) as u64),
        }
    }
}

/// What a flow waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// To send what it owes.
    Owing(Slot),
    /// To be begun.
    Unstarted(Slot),
}

#[derive(Debug, Default)]
struct Network {
    /// When the cap allows the next frame, but for what may be made good.
    next: Instant,
    queues: Option<Box<Queues>>,
}

#[derive(Debug, Default)]
struct Queues {
    /// Flows under way come before new ones.
    owing: VecDeque<Slot>,
    unstarted: VecDeque<Slot>,
}

/// Paces frames by network.
///
/// At most rate × w + 1 + rate × 10 ms frames to a network in any time w.
#[derive(Debug)]
pub struct PrefixCap {
    step: Duration,
    networks: HashMap<Prefix, Network>,
    /// Every network that is waited for, once, by an instant before which it is not ready.
    ready: BinaryHeap<Reverse<(Instant, Prefix)>>,
}

impl PrefixCap {
    /// Builds a cap of `rate_pps` frames a second to a network; at least one.
    pub fn new(rate_pps: u64) -> Self {
        // Rounded up: never more than the cap.
        let step = Duration::from_nanos(NS_PER_S.div_ceil(rate_pps.max(1)));
        PrefixCap { step, networks: HashMap::new(), ready: BinaryHeap::new() }
    }

    /// Says whether a frame to `prefix` may be sent at `now`.
    pub fn allows(&self, prefix: Prefix, now: Instant) -> bool {
        self.networks.get(&prefix).is_none_or(|network| network.next <= now)
    }

    /// Says whether a new flow in `prefix` has its turn: those that wait come first.
    pub fn has_turn(&self, prefix: Prefix, now: Instant) -> bool {
        self.networks
            .get(&prefix)
            .is_none_or(|network| network.next <= now && network.queues.is_none())
    }

    /// Counts a frame to `prefix`, sent at `now`.
    pub fn charge(&mut self, prefix: Prefix, now: Instant) {
        let network = self.networks.entry(prefix).or_default();
        let oldest = Instant::from_nanos(now.as_nanos().saturating_sub(MEMORY.as_nanos() as u64));
        network.next = network.next.max(oldest) + self.step;
    }

    /// Takes back a [charge](Self::charge) for a frame to `prefix` that did not leave.
    pub fn refund(&mut self, prefix: Prefix) {
        if let Some(network) = self.networks.get_mut(&prefix) {
            let next = network.next.as_nanos().saturating_sub(self.step.as_nanos() as u64);
            network.next = Instant::from_nanos(next);
        }
    }

    /// Lets a flow wait until `prefix` is ready for it.
    pub fn wait(&mut self, prefix: Prefix, who: Waiting) {
        let network = self.networks.entry(prefix).or_default();
        let queues = network.queues.get_or_insert_with(|| {
            self.ready.push(Reverse((network.next, prefix)));
            Box::default()
        });
        match who {
            Waiting::Owing(slot) => queues.owing.push_back(slot),
            Waiting::Unstarted(slot) => queues.unstarted.push_back(slot),
        }
    }

    /// Returns a flow whose network is ready for a frame at `now`.
    ///
    /// It need not send one; until a frame is [charged](Self::charge) the next that waits for the
    /// same network may have its turn.
    pub fn release(&mut self, now: Instant) -> Option<Waiting> {
        while let Some(&Reverse((at, prefix))) = self.ready.peek()
            && at <= now
        {
            self.ready.pop();
            let Some(network) = self.networks.get_mut(&prefix) else { continue };
            let Some(queues) = &mut network.queues else { continue };
            // Frames were sent since it was entered.
            if network.next > now {
                self.ready.push(Reverse((network.next, prefix)));
                continue;
            }
            let who = match queues.owing.pop_front() {
                Some(slot) => Some(Waiting::Owing(slot)),
                None => queues.unstarted.pop_front().map(Waiting::Unstarted),
            };
            if queues.owing.is_empty() && queues.unstarted.is_empty() {
                network.queues = None;
            } else {
                self.ready.push(Reverse((network.next, prefix)));
            }
            if who.is_some() {
                return who;
            }
        }
        None
    }

    /// Returns an instant before which [`release`](Self::release) has nobody to name.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.ready.peek().map(|&Reverse((at, _))| at)
    }

    /// Forgets the flows that were to be begun.
    pub fn abandon_unstarted(&mut self) {
        for network in self.networks.values_mut() {
            if let Some(queues) = &mut network.queues {
                queues.unstarted = VecDeque::new();
                if queues.owing.is_empty() {
                    network.queues = None;
                }
            }
        }
        let networks = &self.networks;
        self.ready.retain(|Reverse((_, prefix))| {
            networks.get(prefix).is_some_and(|network| network.queues.is_some())
        });
    }

    /// Returns every flow that waits; the cap is given up.
    pub fn into_waiting(self) -> impl Iterator<Item = Waiting> {
        self.networks.into_values().filter_map(|network| network.queues).flat_map(|queues| {
            let owing = queues.owing.into_iter().map(Waiting::Owing);
            owing.chain(queues.unstarted.into_iter().map(Waiting::Unstarted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(5_000_000_000 + ms * 1_000_000)
    }

    fn prefix(text: &str) -> Prefix {
        Prefix::of(text.parse().unwrap())
    }

    #[test]
    fn networks_are_24_and_48_bits() {
        assert_eq!(prefix("10.0.0.1"), prefix("10.0.0.254"));
        assert_ne!(prefix("10.0.0.1"), prefix("10.0.1.1"));
        assert_eq!(prefix("2001:db8:1::1"), prefix("2001:db8:1:ffff::1"));
        assert_ne!(prefix("2001:db8:1::1"), prefix("2001:db8:2::1"));
        assert_ne!(prefix("0.10.0.1"), prefix("::a:0:0:0:0:1"));
    }

    #[test]
    fn flows_under_way_come_first_and_no_network_waits_for_another() {
        let mut cap = PrefixCap::new(10);
        let (one, two) = (prefix("10.0.0.1"), prefix("10.0.1.1"));
        assert!(cap.allows(one, at(0)) && cap.has_turn(one, at(0)));
        cap.charge(one, at(0));
        // 10 ms of a first frame's delay are made good, and no more.
        assert!(!cap.allows(one, at(89)) && cap.allows(one, at(90)));
        cap.wait(one, Waiting::Unstarted(Slot(1)));
        cap.wait(one, Waiting::Owing(Slot(2)));
        cap.wait(two, Waiting::Unstarted(Slot(3)));
        assert!(!cap.has_turn(one, at(90)), "others wait");
        assert_eq!(cap.release(at(0)), Some(Waiting::Unstarted(Slot(3))));
        cap.charge(two, at(0));
        assert_eq!(cap.release(at(0)), None);
        assert_eq!(cap.next_wakeup(), Some(at(90)));
        assert_eq!(cap.release(at(90)), Some(Waiting::Owing(Slot(2))));
        // It sent nothing: the next has its turn at once.
        assert_eq!(cap.release(at(90)), Some(Waiting::Unstarted(Slot(1))));
        assert_eq!((cap.release(at(90)), cap.next_wakeup()), (None, None));
    }

    #[test]
    fn an_interrupt_leaves_only_what_is_owed() {
        let mut cap = PrefixCap::new(1);
        for (address, slot) in [("10.0.0.1", 1), ("10.0.1.1", 2)] {
            cap.charge(prefix(address), at(0));
            cap.wait(prefix(address), Waiting::Unstarted(Slot(slot)));
        }
        cap.wait(prefix("10.0.0.1"), Waiting::Owing(Slot(3)));
        cap.abandon_unstarted();
        assert_eq!(cap.release(at(5_000)), Some(Waiting::Owing(Slot(3))));
        assert_eq!(cap.release(at(9_000)), None);
        cap.wait(prefix("10.0.0.1"), Waiting::Owing(Slot(4)));
        cap.wait(prefix("10.0.0.1"), Waiting::Unstarted(Slot(5)));
        let waiting: Vec<_> = cap.into_waiting().collect();
        assert_eq!(waiting, [Waiting::Owing(Slot(4)), Waiting::Unstarted(Slot(5))]);
    }

    proptest! {
        /// However late the sender comes back, and whoever waits: no window holds more than its share.
        #[test]
        fn no_window_holds_more_than_its_share(
            rate in 1u64..5_000,
            waits in prop::collection::vec(0u64..40_000_000, 50..400),
        ) {
            let mut cap = PrefixCap::new(rate);
            let one = prefix("10.0.0.1");
            (0..2_000).for_each(|slot| cap.wait(one, Waiting::Owing(Slot(slot))));
            let (mut now, mut sent) = (at(0), Vec::new());
            for late in waits {
                while cap.release(now).is_some() {
                    cap.charge(one, now);
                    sent.push(now.as_nanos());
                }
                let Some(wake) = cap.next_wakeup() else { break };
                prop_assert!(wake > now);
                now = wake + Duration::from_nanos(late);
            }
            for (n, from) in sent.iter().enumerate() {
                for (m, to) in sent.iter().enumerate().skip(n) {
                    let share = (to - from) as f64 * rate as f64 / 1e9;
                    let burst = 1.0 + rate as f64 * MEMORY.as_secs_f64();
                    prop_assert!((m - n + 1) as f64 <= share + burst + 1e-6);
                }
            }
        }
    }
}
