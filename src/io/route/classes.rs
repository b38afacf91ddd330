//! The address space of one family, cut where any of a set of prefixes begins or ends.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use std::net::IpAddr;

/// Tells which addresses lie in the same prefixes: those whose longest match is the same one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Classes {
    /// First address of each stretch, ascending from 0, and the class of the stretch.
    stretches: Vec<(u128, usize)>,
}

impl Classes {
    /// Builds the classes of `prefixes`, which are all of one family; what none of them holds is a
    /// class of its own.
    pub fn new<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> Self {
        let mut ranges: Vec<(u128, u128)> = prefixes.map(range).collect();
        // Outer before inner, so that the stack below holds a chain of nested prefixes.
        ranges.sort_unstable_by_key(|&(first, last)| (first, std::cmp::Reverse(last)));
        ranges.dedup();
        let mut stretches = vec![(0, 0)];
        // The last address of each prefix around the present one, and its class.
        let mut around: Vec<(u128, usize)> = Vec::new();
        for (index, &(first, last)) in ranges.iter().enumerate() {
            close(&mut stretches, &mut around, Some(first));
            cut(&mut stretches, first, index + 1);
            around.push((last, index + 1));
        }
        close(&mut stretches, &mut around, None);
        Self { stretches }
    }

    /// Returns the class of an address, given as a number.
    pub fn class_of(&self, address: u128) -> usize {
        let after = self.stretches.partition_point(|&(first, _)| first <= address);
        // There is one before it: the first stretch starts at 0.
        self.stretches[after - 1].1
    }
}

/// Ends the prefixes that end before `next` (all of them if there is no next).
fn close(stretches: &mut Vec<(u128, usize)>, around: &mut Vec<(u128, usize)>, next: Option<u128>) {
    while let Some(&(last, _)) = around.last() {
        if next.is_some_and(|next| last >= next) {
            break;
        }
        around.pop();
        let outer = around.last().map_or(0, |&(_, class)| class);
        if let Some(after) = last.checked_add(1) {
            cut(stretches, after, outer);
        }
    }
}

fn cut(stretches: &mut Vec<(u128, usize)>, first: u128, class: usize) {
    match stretches.last_mut() {
        Some(stretch) if stretch.0 == first => stretch.1 = class,
        _ => stretches.push((first, class)),
    }
}

fn range(prefix: &IpNet) -> (u128, u128) {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    // For IPv4 ipnet calls the last address "broadcast"; for IPv6 it is the last one too.
    (number(prefix.network()), number(prefix.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn classes(prefixes: &[&str]) -> Classes {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|p| p.parse().unwrap()).collect();
        Classes::new(prefixes.iter())
    }

    fn v4(classes: &Classes, address: &str) -> usize {
        classes.class_of(u128::from(u32::from(address.parse::<Ipv4Addr>().unwrap())))
    }

    #[test]
    fn separates_inner_from_outer_prefixes() {
        let classes = classes(&["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]);
        let of = |address| v4(&classes, address);
        assert_eq!(of("10.1.2.2"), of("10.1.2.4"));
        assert_eq!(of("10.1.0.0"), of("10.1.255.255"));
        assert_eq!(of("10.0.255.255"), of("10.2.0.0"));
        assert_eq!(of("9.255.255.255"), of("11.0.0.0"));
        let all = [of("10.1.2.3"), of("10.1.2.4"), of("10.2.0.0"), of("8.8.8.8")];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(a), "{all:?}");
        }
    }

    #[test]
    fn covers_the_ends_of_the_address_space() {
        let classes = classes(&["::/1", "8000::/1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]);
        assert_ne!(classes.class_of(0), classes.class_of(1 << 127));
        assert_eq!(classes.class_of(1 << 127), classes.class_of(u128::MAX - 1));
        assert_ne!(classes.class_of(u128::MAX - 1), classes.class_of(u128::MAX));
        assert_eq!(Classes::new([].iter()).class_of(77), 0);
    }

    proptest! {
        /// Against a plain model: same class exactly if the longest match is the same.
        #[test]
        fn agrees_with_longest_match(
            nets in proptest::collection::vec((any::<u16>(), 14u8..=32), 0..40),
            addresses in proptest::collection::vec(any::<u16>(), 2..40),
        ) {
            // Crowded into 65,536 addresses, so that prefixes nest.
            let address = |low: u16| Ipv4Addr::from(0x0a01_0000 | u32::from(low));
            let nets: Vec<IpNet> = nets
                .iter()
                .map(|&(low, length)| IpNet::new(address(low).into(), length).unwrap().trunc())
                .collect();
            let classes = Classes::new(nets.iter());
            let longest = |a: Ipv4Addr| {
                nets.iter().filter(|net| net.contains(&IpAddr::V4(a))).max_by_key(|net| net.prefix_len())
            };
            for &a in &addresses {
                for &b in &addresses {
                    let (a, b) = (address(a), address(b));
                    let same = classes.class_of(u32::from(a).into()) == classes.class_of(u32::from(b).into());
                    prop_assert_eq!(same, longest(a) == longest(b), "{} {}", a, b);
                }
            }
        }
    }
}
