//! Sequence number arithmetic (RFC 9293 §3.4).

/// A TCP sequence number: compares and subtracts modulo 2^32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// Returns `self - other` as a signed distance; negative when `self` is before `other`.
    pub const fn distance(self, other: SeqNumber) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// Says whether `self` is strictly before `other`.
    pub const fn is_before(self, other: SeqNumber) -> bool {
        self.distance(other) < 0
    }

    /// Says whether `self` lies in `[start, start + len)`.
    pub const fn is_in_window(self, start: SeqNumber, len: u32) -> bool {
        self.0.wrapping_sub(start.0) < len
    }
}

impl std::ops::Add<u32> for SeqNumber {
    type Output = SeqNumber;
    fn add(self, octets: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(octets))
    }
}

impl std::ops::Sub<u32> for SeqNumber {
    type Output = SeqNumber;
    fn sub(self, octets: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_sub(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps() {
        let last = SeqNumber(u32::MAX);
        assert_eq!(last + 1, SeqNumber(0));
        assert_eq!(SeqNumber(0) - 1, last);
        assert_eq!(SeqNumber(4).distance(last), 5);
        assert_eq!(last.distance(SeqNumber(4)), -5);
    }

    #[test]
    fn order_is_that_of_the_nearer_way_round() {
        let start = SeqNumber(0xffff_fff0);
        assert!(start.is_before(start + 1));
        assert!(start.is_before(start + 0x7fff_ffff));
        assert!(!start.is_before(start));
        assert!(!start.is_before(start - 1));
        assert!(!(start + 0x7fff_ffff).is_before(start));
    }

    #[test]
    fn windows_are_half_open_and_wrap() {
        let start = SeqNumber(u32::MAX - 1);
        assert!(start.is_in_window(start, 4));
        assert!(SeqNumber(1).is_in_window(start, 4));
        assert!(!SeqNumber(2).is_in_window(start, 4));
        assert!(!(start - 1).is_in_window(start, 4));
        assert!(!start.is_in_window(start, 0));
    }
}
