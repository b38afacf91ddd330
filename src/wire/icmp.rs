//! ICMP (RFC 792, 1812) and ICMPv6 (RFC 4443) errors that quote a TCP segment.

use super::{EmitError, IpHeader, LinkHeader, SeqNumber};
use std::net::SocketAddr;

/// What an ICMP error means to a prober, for both families.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum IcmpKind {
    /// Network unreachable or unknown; ICMPv6: no route to destination.
    Net,
    /// Host unreachable or unknown; ICMPv6: address unreachable.
    Host,
    /// Port (or protocol) unreachable.
    Port,
    /// Administratively prohibited (net, host, communication); ICMPv6: prohibited, policy, reject route.
    Admin,
    /// Time exceeded in transit.
    TimeExceeded,
    /// Fragmentation needed, packet too big: says nothing of reachability.
    TooBig,
    /// Any other error.
    Other,
}

/// The quoted segment: ours, as far as the reporter sent it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    /// Our address and port.
    pub src: SocketAddr,
    /// The peer's.
    pub dst: SocketAddr,
    /// The segment's sequence number: the last field an 8-octet quote holds.
    pub seq: SeqNumber,
    /// The acknowledgment number, if the quote is longer.
    pub ack: Option<SeqNumber>,
    /// IPv4 identification of the quoted packet; 0 for IPv6.
    pub ip_id: u16,
}

/// An ICMP or ICMPv6 error that quotes a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// The IP header around the error: `src` is who reports.
    pub ip: IpHeader,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub code: u8,
    /// The segment it complains of.
    pub quoted: Quoted,
}

impl IcmpError {
    /// Returns what type and code mean (RFC 792, RFC 1812 §5.2.7, RFC 4443 §3).
    pub fn kind(&self) -> IcmpKind {
        todo!()
    }
}

/// Writes an ICMP or ICMPv6 error (the family of `ip`) that quotes `quoted`, the packet complained
/// of from its IP header on, and returns the length. For the simulation and for tests.
///
/// # Errors
/// [`EmitError`]; `buf` is then unchanged.
pub fn emit_error(
    ip: &IpHeader,
    icmp_type: u8,
    code: u8,
    quoted: &[u8],
    link: &LinkHeader,
    buf: &mut [u8],
) -> Result<usize, EmitError> {
    let _ = (ip, icmp_type, code, quoted, link, buf);
    todo!()
}
