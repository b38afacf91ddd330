//! Which next hops the kernel cannot resolve, where it is the kernel that resolves them (the raw
//! path): what its table of neighbours said each time that somebody looked.
//!
//! The kernel also reports by ICMP what it could not deliver, but in bursts of 50 at most
//! (net.ipv4.icmp_msgs_burst), so that the absence of a report says nothing.
#![forbid(unsafe_code)]

use crate::io::PathId;
use crate::time::Instant;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long silence waits for somebody to look; looks are a second apart.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What silence of a peer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// Packets to it left, as far as the next hop is concerned.
    Believed,
    /// Nobody has looked since.
    Unseen,
    /// The next hop does not answer the kernel.
    NoNeighbour,
    /// Our own side's: nobody looks, or the next hop was back too late.
    Doubtful,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// First and last look that found it unresolved.
    first: Instant,
    last: Instant,
    /// When it was seen resolved again.
    over: Option<Instant>,
}

/// The next hops of a sweep that the kernel could not resolve.
#[derive(Debug, Default)]
pub struct KernelHops {
    marks: HashMap<(PathId, IpAddr), Mark>,
    /// When the last look began.
    looked_at: Instant,
}

impl KernelHops {
    /// Takes in that a look which began at `at` found `next_hop` resolved or not. Entries that are
    /// absent are not told: the kernel throws out first what it could not resolve.
    pub fn note(&mut self, path: PathId, next_hop: IpAddr, is_resolved: bool, at: Instant) {
        match self.marks.get_mut(&(path, next_hop)) {
            Some(mark) if is_resolved => mark.over = mark.over.or(Some(at)),
            Some(mark) if mark.over.is_none() => mark.last = at,
            _ if is_resolved => {}
            _ => {
                let mark = Mark { first: at, last: at, over: None };
                self.marks.insert((path, next_hop), mark);
            }
        }
    }

    /// Takes in that the look which began at `at` is complete.
    pub fn looked(&mut self, at: Instant) {
        self.looked_at = at;
    }

    /// Returns when the last look began.
    pub fn looked_at(&self) -> Instant {
        self.looked_at
    }

    /// Says at `now` what it means that a peer behind `next_hop`, asked since `asked_since`, was
    /// silent up to `until`.
    pub fn silence(
        &self,
        path: PathId,
        next_hop: IpAddr,
        asked_since: Instant,
        until: Instant,
        now: Instant,
    ) -> Silence {
        let too_late = now >= until + PATIENCE;
        if self.looked_at < until {
            return if too_late { Silence::Doubtful } else { Silence::Unseen };
        }
        match self.marks.get(&(path, next_hop)) {
            None => Silence::Believed,
            // Seen once only, it may just have been asked for.
            Some(Mark { over: Some(over), first, last }) => {
                if *over >= asked_since && last > first {
                    Silence::Doubtful
                } else {
                    Silence::Believed
                }
            }
            // Of another time: nothing of ours was sent by it since.
            Some(Mark { last, .. }) if *last < asked_since => Silence::Believed,
            Some(Mark { first, .. }) if *first < self.looked_at => Silence::NoNeighbour,
            Some(_) if too_late => Silence::Doubtful,
            Some(_) => Silence::Unseen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: PathId = PathId(0);
    const HOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// One look a second, which finds the hop unresolved (`-`), resolved (`+`) or not at all (` `).
    fn seen(looks: &str) -> KernelHops {
        let mut hops = KernelHops::default();
        for (second, look) in (1..).zip(looks.chars()) {
            if look != ' ' {
                hops.note(PATH, HOP, look == '+', at(1000 * second));
            }
            hops.looked(at(1000 * second));
        }
        hops
    }

    #[test]
    fn silence_is_believed_only_by_a_look_after_it() {
        use Silence::{Believed, Doubtful, NoNeighbour, Unseen};
        for (looks, since, until, expected) in [
            ("     ", 500, 4_900, Believed),
            ("+++++", 500, 4_900, Believed),
            ("+++++", 500, 5_100, Unseen),
            ("-----", 500, 5_100, Unseen),
            ("-----", 500, 4_900, NoNeighbour),
            // Answered at first, and then vanished.
            ("++---", 500, 4_900, NoNeighbour),
            // Given up, and thrown out of a full table.
            ("---  ", 500, 4_900, NoNeighbour),
            // It may be being asked for just now.
            ("++++-", 500, 4_900, Unseen),
            ("+++-+", 500, 4_900, Believed),
            // Back, but what was sent before may not have left.
            ("----+", 500, 4_900, Doubtful),
            ("---++", 500, 4_900, Doubtful),
            ("--+++", 3_500, 4_900, Believed),
            // Of another time.
            ("--   ", 3_500, 4_900, Believed),
            ("--+  -", 3_500, 5_900, Unseen),
            ("--+ --", 3_500, 5_900, NoNeighbour),
        ] {
            let silence = seen(looks).silence(PATH, HOP, at(since), at(until), at(6_000));
            assert_eq!(silence, expected, "{looks:?} from {since} to {until}");
        }
        let other = IpAddr::from([10, 0, 0, 2]);
        let hops = seen("-----");
        assert_eq!(hops.silence(PATH, other, at(500), at(4_900), at(6_000)), Believed);
        assert_eq!(hops.silence(PathId(1), HOP, at(500), at(4_900), at(6_000)), Believed);
    }

    #[test]
    fn nobody_looks() {
        let hops = seen("+");
        let silence = |now| hops.silence(PATH, HOP, at(500), at(2_000), at(now));
        assert_eq!((silence(6_999), silence(7_000)), (Silence::Unseen, Silence::Doubtful));
    }
}
