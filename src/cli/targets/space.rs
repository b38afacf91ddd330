//! Both address families as one number line: IPv4 lies where IPv6 has its mapped form
//! (::ffff:0:0/96, RFC 4291 §2.5.5.2), which no target can be written in otherwise.
#![forbid(unsafe_code)]

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rangemap::RangeInclusiveSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Consecutive addresses, of one family.
pub type Range = RangeInclusive<u128>;
/// Addresses.
pub type Set = RangeInclusiveSet<u128>;

const MAPPED: Range = 0xffff_0000_0000..=0xffff_ffff_ffff;

/// Returns an address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Returns the address that `number` stands for.
pub fn address(number: u128) -> IpAddr {
    Ipv6Addr::from_bits(number).to_canonical()
}

/// Returns the first and the last address of a prefix, as numbers.
pub fn range(net: &IpNet) -> Range {
    number(net.network())..=number(net.broadcast())
}

/// Returns how many addresses `range` holds; one less for all of them, which no u128 could tell.
pub fn size(range: &Range) -> u128 {
    (range.end() - range.start()).saturating_add(1)
}

/// Says whether two ranges have an address in common.
pub fn overlap(a: &Range, b: &Range) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

/// Returns the prefix in the family that it means: IPv4, if it is written in the mapped form.
pub fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    match (v6.network().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(address), Some(prefix)) => {
            Ipv4Net::new(address, prefix).map_or(net, |net| IpNet::V4(net.trunc()))
        }
        _ => net,
    }
}

/// Adds a prefix; one of IPv6 that is wider than the mapped form leaves IPv4 out.
pub fn insert(set: &mut Set, net: &IpNet) {
    let range = range(net);
    if matches!(net, IpNet::V6(_)) && overlap(&range, &MAPPED) {
        let (below, above) = (*MAPPED.start() - 1, *MAPPED.end() + 1);
        if *range.start() <= below {
            set.insert(*range.start()..=below);
        }
        if above <= *range.end() {
            set.insert(above..=*range.end());
        }
    } else {
        set.insert(range);
    }
}

/// Says whether an IPv6 prefix holds the mapped form of IPv4 and more.
pub fn spans_mapped(net: &Ipv6Net) -> bool {
    overlap(&range(&IpNet::V6(*net)), &MAPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn families_do_not_meet() {
        for text in ["0.0.0.0", "10.0.0.7", "255.255.255.255", "::", "fd00::1", "ff02::1"] {
            let written: IpAddr = text.parse().expect("an address");
            assert_eq!(address(number(written)), written);
        }
        assert_eq!(canonical(net("::ffff:10.0.0.7/128")), net("10.0.0.7/32"));
        assert_eq!(canonical(net("::ffff:10.0.0.0/104")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("::ffff:0:0/96")), net("0.0.0.0/0"));
        assert_eq!(canonical(net("fd00::/96")), net("fd00::/96"));
        let mut set = Set::new();
        insert(&mut set, &net("::/0"));
        assert!(!set.contains(&number(IpAddr::from([10, 0, 0, 1]))));
        assert!(set.contains(&0) && set.contains(&u128::MAX));
        insert(&mut set, &net("0.0.0.0/0"));
        assert_eq!(set.iter().count(), 1);
        assert_eq!(size(&range(&net("fd00::/64"))), 1 << 64);
        assert_eq!(size(&(0..=u128::MAX)), u128::MAX);
    }
}
