//! Counts of an audit: by process, by the peers' prefixes, by finding.
#![forbid(unsafe_code)]

use crate::probe::classify::State;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Counts by state, in the order of [`State::ALL`].
pub type ByState = [u64; State::ALL.len()];

/// Lengths of the prefixes that peers are counted by.
const PREFIXES: (u8, u8) = (24, 64);

/// A process as it is counted: its name and number; `None` for connections that nobody holds.
pub type Holder = Option<(String, u32)>;

/// What an audit counts beside states and reasons.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// By process.
    pub processes: BTreeMap<Holder, ByState>,
    /// By the peer's IPv4 /24 or IPv6 /64.
    pub prefixes: BTreeMap<IpNet, ByState>,
    /// By the finding's name.
    pub findings: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts one connection.
    pub fn count(
        &mut self,
        holder: Holder,
        peer: IpAddr,
        state: State,
        findings: impl Iterator<Item = &'static str>,
    ) {
        self.processes.entry(holder).or_default()[state as usize] += 1;
        self.prefixes.entry(prefix(peer)).or_default()[state as usize] += 1;
        for finding in findings {
            *self.findings.entry(finding).or_default() += 1;
        }
    }
}

/// Returns the prefix that `peer` is counted by.
fn prefix(peer: IpAddr) -> IpNet {
    // Both lengths are within their families.
    match peer {
        IpAddr::V4(peer) => Ipv4Net::new(peer, PREFIXES.0).unwrap_or_default().trunc().into(),
        IpAddr::V6(peer) => Ipv6Net::new(peer, PREFIXES.1).unwrap_or_default().trunc().into(),
    }
}

/// Returns the entries in the order in which they need attention: the most that are not alive
/// first, then the most at all.
#[cfg(feature = "cli")]
pub fn by_need<K: Ord>(counts: &BTreeMap<K, ByState>) -> Vec<(&K, &ByState)> {
    let mut sorted: Vec<_> = counts.iter().collect();
    let weight = |counts: &ByState| {
        let all: u64 = counts.iter().sum();
        (all - counts[State::Alive as usize], all)
    };
    // Stable: what weighs the same stays in the order of its name.
    sorted.sort_by_key(|(_, counts)| std::cmp::Reverse(weight(counts)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_by_process_and_prefix_and_the_sick_come_first() {
        let mut tally = Tally::default();
        let holder = |comm: &str| Some((comm.to_owned(), 7));
        let rows = [
            ("web", "10.0.0.1", State::Alive),
            ("web", "10.0.0.255", State::Alive),
            ("web", "10.0.1.0", State::Alive),
            ("db", "2001:db8::1", State::Down),
            ("cron", "2001:db8::ffff:0:0:1", State::Undetermined),
        ];
        for (comm, peer, state) in rows {
            let peer = peer.parse().expect("an address");
            tally.count(holder(comm), peer, state, ["idle-aws"].into_iter());
        }
        tally.count(None, "10.0.1.9".parse().expect("an address"), State::Alive, [].into_iter());
        let prefixes: Vec<_> =
            tally.prefixes.iter().map(|(net, n)| (net.to_string(), n.iter().sum())).collect();
        let expected = [("10.0.0.0/24", 2), ("10.0.1.0/24", 2), ("2001:db8::/64", 2)];
        assert_eq!(prefixes, expected.map(|(net, n): (&str, u64)| (net.to_owned(), n)));
        assert_eq!(tally.findings, [("idle-aws", 5)].into());
        let order: Vec<_> =
            by_need(&tally.processes).into_iter().map(|(who, _)| who.clone()).collect();
        assert_eq!(order, [holder("cron"), holder("db"), holder("web"), None]);
    }
}
