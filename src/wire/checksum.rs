//! The Internet checksum, in full (RFC 1071) and incrementally (RFC 1624).

use std::net::IpAddr;

/// Returns the Internet checksum of `bytes` (the complement of the folded sum), host order.
pub fn internet(bytes: &[u8]) -> u16 {
    let _ = bytes;
    todo!()
}

/// Returns the folded, not complemented sum of the pseudo-header for TCP (protocol 6) or ICMPv6.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: u32) -> u16 {
    let _ = (src, dst, protocol, length);
    todo!()
}

/// Returns the checksum after a 16-bit word changed from `old` to `new` (RFC 1624 eqn. 3).
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let _ = (checksum, old, new);
    todo!()
}

/// The same for a 32-bit field at an even offset.
pub const fn update32(checksum: u16, old: u32, new: u32) -> u16 {
    let _ = (checksum, old, new);
    todo!()
}
