//! Which addresses may be probed at all.
#![forbid(unsafe_code)]

use super::space::{self, Range, Set};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(high: [u16; 4], low: [u16; 4], prefix: u8) -> IpNet {
    let ([a, b, c, d], [e, f, g, h]) = (high, low);
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

const ZERO: [u16; 4] = [0; 4];

/// Never a peer, whatever the user allows (RFC 6890 §2.2.2 and §2.2.3: not a valid destination).
const NEVER: [(IpNet, &str); 5] = [
    (v4(0, 0, 0, 0, 8), "unspecified (0.0.0.0/8)"),
    (v4(224, 0, 0, 0, 4), "multicast (224.0.0.0/4)"),
    (v4(255, 255, 255, 255, 32), "broadcast (255.255.255.255)"),
    (v6(ZERO, ZERO, 128), "unspecified (::)"),
    (v6([0xff00, 0, 0, 0], ZERO, 8), "multicast (ff00::/8)"),
];

/// Not reachable across the Internet.
const NOT_PUBLIC: [IpNet; 23] = [
    // Private use (RFC 1918), shared (RFC 6598), loopback, link-local (RFC 3927), benchmarking
    // (RFC 2544) and documentation (RFC 5737).
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 2, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Loopback, local translation (RFC 8215), discard-only (RFC 6666) and dummy (RFC 9780)
    // prefixes, benchmarking (RFC 5180), documentation (RFC 3849, RFC 9637), segment routing
    // (RFC 9602), unique local (RFC 4193), link-local (RFC 4291) and the site-local of old (RFC 3879).
    v6(ZERO, [0, 0, 0, 1], 128),
    v6([0x64, 0xff9b, 1, 0], ZERO, 48),
    v6([0x100, 0, 0, 0], ZERO, 64),
    v6([0x100, 0, 0, 1], ZERO, 64),
    v6([0x2001, 2, 0, 0], ZERO, 48),
    v6([0x2001, 0x10, 0, 0], ZERO, 28),
    v6([0x2001, 0xdb8, 0, 0], ZERO, 32),
    v6([0x3fff, 0, 0, 0], ZERO, 20),
    v6([0x5f00, 0, 0, 0], ZERO, 16),
    v6([0xfc00, 0, 0, 0], ZERO, 8),
    v6([0xfd00, 0, 0, 0], ZERO, 8),
    LINK_LOCAL,
    v6([0xfec0, 0, 0, 0], ZERO, 10),
];

const LINK_LOCAL: IpNet = v6([0xfe80, 0, 0, 0], ZERO, 10);

static NEVER_RANGES: LazyLock<Vec<(Range, &str)>> =
    LazyLock::new(|| NEVER.iter().map(|(net, why)| (space::range(net), *why)).collect());
static NOT_PUBLIC_RANGES: LazyLock<Set> =
    LazyLock::new(|| NOT_PUBLIC.iter().map(space::range).collect());

/// Returns the first address of `range` that is never a peer, and why.
pub fn first_refused(range: &Range) -> Option<(IpAddr, &'static str)> {
    NEVER_RANGES.iter().find_map(|(never, why)| {
        let first = *range.start().max(never.start());
        space::overlap(never, range).then(|| (space::address(first), *why))
    })
}

/// Returns the first public address of `range`.
pub fn first_public(range: &Range) -> Option<IpAddr> {
    NOT_PUBLIC_RANGES.gaps(range).next().map(|gap| space::address(*gap.start()))
}

/// Returns the first IPv6 link-local address of `range`: such an address is one on every link.
pub fn first_link_local(range: &Range) -> Option<IpAddr> {
    let link_local = space::range(&LINK_LOCAL);
    let first = *range.start().max(link_local.start());
    space::overlap(&link_local, range).then(|| space::address(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Range {
        space::range(&text.parse().expect("a prefix"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn multicast_broadcast_and_unspecified_are_refused() {
        for text in ["0.0.0.0/32", "224.0.0.1/32", "239.255.255.255/32", "255.255.255.255/32"] {
            assert!(first_refused(&of(text)).is_some(), "{text}");
        }
        for text in ["::/128", "ff02::1/128", "ff00::/8", "ffff::/16", "::/0", "::/64"] {
            assert!(first_refused(&of(text)).is_some(), "{text}");
        }
        let (first, _) = first_refused(&of("192.0.0.0/2")).expect("it holds multicast");
        assert_eq!(first, ip("224.0.0.0"));
        let (first, why) = first_refused(&of("fe00::/7")).expect("it holds multicast");
        assert_eq!((first, why), (ip("ff00::"), "multicast (ff00::/8)"));
        for text in ["1.0.0.0/32", "223.255.255.255/32", "255.255.255.254/32", "10.255.255.255/32"]
        {
            assert_eq!(first_refused(&of(text)), None, "{text}");
        }
        for text in
            ["::1/128", "::2/128", "feff:ffff::/128", "fd00::/8", "2000::/3", "2001::ff/128"]
        {
            assert_eq!(first_refused(&of(text)), None, "{text}");
        }
    }

    #[test]
    fn public_is_all_that_is_not_set_aside() {
        for net in NOT_PUBLIC {
            assert_eq!(first_public(&space::range(&net)), None, "{net}");
        }
        for net in NOT_PUBLIC.iter().filter(|net| net.addr().is_ipv4()) {
            let range = space::range(net);
            assert!(first_public(&(range.start() - 1..=*range.start())).is_some(), "{net}");
            let after = space::address(range.end() + 1);
            assert_eq!(first_public(&(*range.end()..=range.end() + 1)), Some(after), "{net}");
        }
        let public = [
            "8.8.8.8",
            "2000::1",
            "2001:db7:ffff:ffff::1",
            "2001:db9::",
            "2001:20::1",
            "2002:a00:1::1",
            "2606:4700::1111",
            "3ffe::1",
            "3fff:1000::",
            "64:ff9b::808:808",
            "fbff::1",
            // Nobody's yet, and so not ours.
            "4000::1",
            "::a00:1",
        ];
        for text in public {
            let addr = space::number(ip(text));
            assert_eq!(first_public(&(addr..=addr)), Some(ip(text)), "{text}");
        }
        assert_eq!(first_public(&of("fc00::/7")), None);
        assert_eq!(first_public(&of("2001:db8::/31")), Some(ip("2001:db9::")));
        assert_eq!(first_public(&of("fe00::/9")), Some(ip("fe00::")));
    }

    #[test]
    fn link_local_is_known_in_ranges() {
        assert_eq!(first_link_local(&of("fe80::1/128")), Some(ip("fe80::1")));
        assert_eq!(first_link_local(&of("febf::1/128")), Some(ip("febf::1")));
        assert_eq!(first_link_local(&of("fe00::/8")), Some(ip("fe80::")));
        assert_eq!(first_link_local(&of("fec0::1/128")), None);
        assert_eq!(first_link_local(&of("169.254.0.0/16")), None);
    }
}
