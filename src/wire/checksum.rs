//! The Internet checksum, in full (RFC 1071) and incrementally (RFC 1624).

use std::net::IpAddr;

/// Returns the Internet checksum of `bytes` (the complement of the folded sum), host order.
///
/// An odd last octet is padded with a zero octet (RFC 1071 §1).
#[inline]
pub fn internet(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Returns the folded, not complemented sum of the pseudo-header for TCP (protocol 6) or ICMPv6.
///
/// `length` is that of header and payload, in octets (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline]
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: u32) -> u16 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => words32(src.to_bits()) + words32(dst.to_bits()),
        (src, dst) => address_words(src) + address_words(dst),
    };
    fold(addresses + u64::from(protocol) + words32(length))
}

/// Returns the checksum after a 16-bit word changed from `old` to `new` (RFC 1624 eqn. 3).
///
/// Equal to the full checksum except where everything summed up has become zero, which no TCP or
/// ICMPv6 checksum can: the protocol number in the pseudo-header is not zero.
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// The same for a 32-bit field at an even offset.
pub const fn update32(checksum: u16, old: u32, new: u32) -> u16 {
    !fold(!checksum as u64 + words32(!old) + words32(new))
}

/// Returns the checksum of words whose sum, as integers, is `sum`. A 32-bit field at an even offset may
/// be added whole.
pub const fn of_sum(sum: u64) -> u16 {
    !fold(sum)
}

/// Returns the folded ones' complement sum of `bytes`, host order.
#[inline]
pub(super) fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on byte order (RFC 1071 §2 B): words are added as they are loaded,
    // as wide as the accumulator can take without a carry out, and swapped once at the end.
    let (words, tail) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    u16::from_be(fold(total + u64::from(u32::from_ne_bytes(last))))
}

/// Adds two folded sums.
pub(super) const fn add(a: u16, b: u16) -> u16 {
    fold(a as u64 + b as u64)
}

const fn fold(sum: u64) -> u16 {
    // With its halves exchanged and added, each half is the sum of both, and the carry out of the lower
    // one has come around into the upper one (as csum_fold of the kernel).
    let sum = (sum.wrapping_add(sum.rotate_right(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16
}

const fn words32(field: u32) -> u64 {
    (field >> 16) as u64 + (field & 0xffff) as u64
}

fn address_words(address: IpAddr) -> u64 {
    u64::from(match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// RFC 1071 §3: the worked example, whose sum is ddf2.
    const RFC_1071: [u8; 8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

    /// The definition: 16-bit words, one by one.
    fn by_definition(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(sum(&RFC_1071), 0xddf2);
        assert_eq!(internet(&RFC_1071), 0x220d);
    }

    #[test]
    fn rfc_1624_example() {
        // §4: header checksum dd2f, the word 5555 becomes 3285; eqn. 2 of RFC 1141 gives ffff here.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn nothing_and_one_octet() {
        assert_eq!(internet(&[]), 0xffff);
        assert_eq!(internet(&[0x12]), 0xedff);
    }

    #[test]
    fn all_ones_do_not_overflow() {
        assert_eq!(internet(&vec![0xff; 65_535]), by_definition(&vec![0xff; 65_535]));
    }

    #[test]
    fn pseudo_headers_are_the_sum_of_their_octets() {
        let (src, dst) = (Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 99, 0, 7));
        let mut octets = [src.octets(), dst.octets()].concat();
        octets.extend([0, 6, 0, 20]);
        assert_eq!(pseudo_header(src.into(), dst.into(), 6, 20), sum(&octets));

        let (src, dst) = (Ipv6Addr::LOCALHOST, "2001:db8::ffff:7".parse::<Ipv6Addr>().unwrap());
        let mut octets = [src.octets(), dst.octets()].concat();
        octets.extend(70_000u32.to_be_bytes());
        octets.extend([0, 0, 0, 58]);
        assert_eq!(pseudo_header(src.into(), dst.into(), 58, 70_000), sum(&octets));
    }

    proptest! {
        #[test]
        fn sum_matches_the_definition(bytes: Vec<u8>) {
            prop_assert_eq!(internet(&bytes), by_definition(&bytes));
        }

        #[test]
        fn incremental_equals_full(mut bytes in prop::collection::vec(any::<u8>(), 8..200),
                                   at in any::<prop::sample::Index>(), new: u32, narrow: bool) {
            // Not all zero afterwards: see `update`.
            bytes[0] |= 1;
            let at = 2 + at.index(bytes.len() - 5) / 2 * 2;
            let before = internet(&bytes);
            let old = u32::from_be_bytes(*bytes[at..].first_chunk().unwrap());
            let updated = if narrow {
                bytes[at..at + 2].copy_from_slice(&(new as u16).to_be_bytes());
                update(before, (old >> 16) as u16, new as u16)
            } else {
                bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
                update32(before, old, new)
            };
            prop_assert_eq!(updated, internet(&bytes));
        }

        #[test]
        fn there_and_back(checksum in 0u16..0xffff, old: u32, new: u32) {
            prop_assume!(checksum != 0);
            prop_assert_eq!(update32(update32(checksum, old, new), new, old), checksum);
        }
    }
}
