//! Which addresses may be probed at all.
#![forbid(unsafe_code)]

use ipnet::Ipv4Net;
use rangemap::RangeInclusiveSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

const fn net(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Never a peer, whatever the user allows (RFC 6890 §2.2.2: not a valid destination).
const NEVER: [(Ipv4Net, &str); 3] = [
    (net(0, 0, 0, 0, 8), "unspecified (0.0.0.0/8)"),
    (net(224, 0, 0, 0, 4), "multicast (224.0.0.0/4)"),
    (net(255, 255, 255, 255, 32), "broadcast (255.255.255.255)"),
];

/// Not reachable across the Internet: private use (RFC 1918), shared (RFC 6598), loopback,
/// link-local (RFC 3927), benchmarking (RFC 2544) and documentation (RFC 5737).
const NOT_PUBLIC: [Ipv4Net; 10] = [
    net(10, 0, 0, 0, 8),
    net(100, 64, 0, 0, 10),
    net(127, 0, 0, 0, 8),
    net(169, 254, 0, 0, 16),
    net(172, 16, 0, 0, 12),
    net(192, 0, 2, 0, 24),
    net(192, 168, 0, 0, 16),
    net(198, 18, 0, 0, 15),
    net(198, 51, 100, 0, 24),
    net(203, 0, 113, 0, 24),
];

static NOT_PUBLIC_RANGES: LazyLock<RangeInclusiveSet<u32>> =
    LazyLock::new(|| NOT_PUBLIC.iter().map(range).collect());

/// Returns the first and the last address of a prefix, as numbers.
pub fn range(net: &Ipv4Net) -> RangeInclusive<u32> {
    net.network().to_bits()..=net.broadcast().to_bits()
}

/// Returns the first address of `range` that is never a peer, and why.
pub fn first_refused(range: &RangeInclusive<u32>) -> Option<(Ipv4Addr, &'static str)> {
    NEVER.iter().find_map(|(net, why)| {
        let never = self::range(net);
        let overlap = never.start() <= range.end() && range.start() <= never.end();
        overlap.then(|| (Ipv4Addr::from_bits(*range.start().max(never.start())), *why))
    })
}

/// Returns the first public address of `range`.
pub fn first_public(range: &RangeInclusive<u32>) -> Option<Ipv4Addr> {
    NOT_PUBLIC_RANGES.gaps(range).next().map(|gap| Ipv4Addr::from_bits(*gap.start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> RangeInclusive<u32> {
        range(&text.parse().expect("a prefix"))
    }

    #[test]
    fn multicast_broadcast_and_unspecified_are_refused() {
        for text in ["0.0.0.0/32", "224.0.0.1/32", "239.255.255.255/32", "255.255.255.255/32"] {
            assert!(first_refused(&of(text)).is_some(), "{text}");
        }
        let (first, _) = first_refused(&of("192.0.0.0/2")).expect("it holds multicast");
        assert_eq!(first, Ipv4Addr::new(224, 0, 0, 0));
        for text in ["1.0.0.0/32", "223.255.255.255/32", "255.255.255.254/32", "10.255.255.255/32"]
        {
            assert_eq!(first_refused(&of(text)), None, "{text}");
        }
    }

    #[test]
    fn public_is_all_that_is_not_set_aside() {
        for net in NOT_PUBLIC {
            let range = range(&net);
            assert_eq!(first_public(&range), None, "{net}");
            assert!(first_public(&(range.start() - 1..=*range.start())).is_some(), "{net}");
            let after = Ipv4Addr::from_bits(range.end() + 1);
            assert_eq!(first_public(&(*range.end()..=range.end() + 1)), Some(after), "{net}");
        }
        assert_eq!(first_public(&of("8.8.8.8/32")), Some(Ipv4Addr::new(8, 8, 8, 8)));
    }
}
