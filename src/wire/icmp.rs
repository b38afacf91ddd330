//! ICMP (RFC 792, 1812) and ICMPv6 (RFC 4443) errors that quote a TCP segment.

use super::ip::{self, Upper};
use super::{Checksums, EmitError, IpHeader, Layer, LinkHeader, ParseError, SeqNumber, checksum};
use pnet::packet::icmp::{IcmpCode, IcmpType, MutableIcmpPacket};
use pnet::packet::ip::IpNextHeaderProtocols::{Icmp as ICMP, Icmpv6 as ICMPV6, Tcp as TCP};
use std::net::{IpAddr, SocketAddr};

/// Type, code, checksum, and four octets that depend on the type.
const HEADER_LEN: usize = 8;
/// What RFC 792 guarantees of the quoted packet behind its IP header.
const QUOTE_LEN: usize = 8;

/// ICMP types (RFC 792). Source quench and redirect quote a packet too, but are no errors.
mod v4 {
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
}

/// ICMPv6 error types (RFC 4443 §3).
mod v6 {
    pub(super) const UNREACHABLE: u8 = 1;
    pub(super) const TOO_BIG: u8 = 2;
    pub(super) const TIME_EXCEEDED: u8 = 3;
    pub(super) const PARAMETER_PROBLEM: u8 = 4;
}

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
        match (self.ip.src, self.icmp_type, self.code) {
            (IpAddr::V4(_), v4::UNREACHABLE, code) => match code {
                0 | 6 | 11 => IcmpKind::Net,
                1 | 7 | 12 => IcmpKind::Host,
                2 | 3 => IcmpKind::Port,
                4 => IcmpKind::TooBig,
                9 | 10 | 13 => IcmpKind::Admin,
                _ => IcmpKind::Other,
            },
            (IpAddr::V6(_), v6::UNREACHABLE, code) => match code {
                0 => IcmpKind::Net,
                3 => IcmpKind::Host,
                4 => IcmpKind::Port,
                1 | 5 | 6 => IcmpKind::Admin,
                _ => IcmpKind::Other,
            },
            (IpAddr::V6(_), v6::TOO_BIG, _) => IcmpKind::TooBig,
            // Code 1, reassembly time exceeded, comes from the peer itself.
            (IpAddr::V4(_), v4::TIME_EXCEEDED, 0) | (IpAddr::V6(_), v6::TIME_EXCEEDED, 0) => {
                IcmpKind::TimeExceeded
            }
            _ => IcmpKind::Other,
        }
    }

    /// Parses what an IP packet carries; `None` for anything but an error about a TCP segment.
    pub(super) fn parse(
        upper: Upper<'_>,
        checksums: Checksums,
    ) -> Result<Option<IcmpError>, ParseError> {
        let Upper { ip, bytes, .. } = upper;
        let (header, quote) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated(Layer::Icmp))?;
        let [icmp_type, code, ..] = *header;
        let v4 = ip.src.is_ipv4();
        if checksums == Checksums::Verify
            && checksum::add(pseudo_sum(&ip, bytes.len()), checksum::sum(bytes)) != 0xffff
        {
            return Err(ParseError::Checksum(Layer::Icmp));
        }
        let is_error = if v4 {
            matches!(icmp_type, v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM)
        } else {
            matches!(icmp_type, v6::UNREACHABLE..=v6::PARAMETER_PROBLEM)
        };
        if !is_error {
            return Ok(None);
        }
        // An extension structure (RFC 4884) begins no earlier than 128 octets into the quote, behind
        // every TCP field that is read here.
        let Some(quoted) = ip::parse_quote(quote, v4)? else { return Ok(None) };
        if quoted.protocol != TCP {
            return Ok(None);
        }
        Ok(Some(IcmpError { ip, icmp_type, code, quoted: Quoted::parse(quoted)? }))
    }
}

impl Quoted {
    fn parse(upper: Upper<'_>) -> Result<Quoted, ParseError> {
        let (&[s0, s1, d0, d1, seq @ ..], rest) = upper
            .bytes
            .split_first_chunk::<QUOTE_LEN>()
            .ok_or(ParseError::Truncated(Layer::Quote))?;
        Ok(Quoted {
            src: SocketAddr::new(upper.ip.src, u16::from_be_bytes([s0, s1])),
            dst: SocketAddr::new(upper.ip.dst, u16::from_be_bytes([d0, d1])),
            seq: SeqNumber(u32::from_be_bytes(seq)),
            ack: rest.first_chunk().map(|ack| SeqNumber(u32::from_be_bytes(*ack))),
            ip_id: upper.ip.id,
        })
    }
}

/// Only ICMPv6 sums up a pseudo-header (RFC 4443 §2.3).
fn pseudo_sum(ip: &IpHeader, len: usize) -> u16 {
    match ip.src {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header(ip.src, ip.dst, ICMPV6.0, len as u32),
    }
}

/// Writes an ICMP or ICMPv6 error (the family of `ip`) that quotes `quoted`, the packet complained
/// of from its IP header on, and returns the length. For the simulation and for tests.
///
/// `quoted` is written as it is: how much of it to quote is for the caller to decide.
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
    let protocol = if ip.src.is_ipv4() { ICMP } else { ICMPV6 };
    let have = buf.len();
    let (upper, total) = ip::emit(ip, protocol, HEADER_LEN + quoted.len(), link, buf)?;
    let too_short = EmitError::TooShort { need: total, have };
    let (header, quote) = upper.split_at_mut_checked(HEADER_LEN).ok_or(too_short)?;
    quote.copy_from_slice(quoted);
    header.fill(0);
    let mut icmp = MutableIcmpPacket::new(header).ok_or(too_short)?;
    icmp.set_icmp_type(IcmpType(icmp_type));
    icmp.set_icmp_code(IcmpCode(code));
    let sum = checksum::add(pseudo_sum(ip, upper.len()), checksum::sum(upper));
    MutableIcmpPacket::new(upper).ok_or(too_short)?.set_checksum(!sum);
    Ok(total)
}
