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
