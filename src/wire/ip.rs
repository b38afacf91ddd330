//! IPv4 (RFC 791, options skipped) and IPv6 (RFC 8200, extension headers walked).

use std::net::IpAddr;

/// What keepsweep keeps of an IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpHeader {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification; 0 for IPv6.
    pub id: u16,
}
