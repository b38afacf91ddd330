//! IPv4 (RFC 791, options skipped) and IPv6 (RFC 8200, extension headers walked).

use super::{Checksums, EmitError, Layer, LinkHeader, ParseError, checksum};
use pnet::packet::ethernet::EtherTypes;
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols as Protocols};
use pnet::packet::ipv4::{Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use std::net::IpAddr;

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Extension headers come in multiples of this (RFC 8200 §4).
const EXTENSION_UNIT: usize = 8;
/// One of each kind, as RFC 8200 §4.1 recommends, and one more: nothing may keep us busy for long.
const MAX_EXTENSIONS: usize = 8;

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

/// What an IP packet carries, all headers of its own and all padding taken off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upper<'a> {
    pub(super) ip: IpHeader,
    pub(super) protocol: IpNextHeaderProtocol,
    pub(super) bytes: &'a [u8],
}

/// Parses an IPv4 packet; `None` for a fragment.
pub(super) fn parse_v4(
    bytes: &[u8],
    checksums: Checksums,
) -> Result<Option<Upper<'_>>, ParseError> {
    const LAYER: Layer = Layer::Ipv4;
    let (packet, header_len) = v4_header(bytes, LAYER)?;
    let total_len = usize::from(packet.get_total_length());
    if total_len < header_len {
        return Err(ParseError::Malformed(LAYER));
    }
    let upper = bytes.get(header_len..total_len).ok_or(ParseError::Truncated(LAYER))?;
    if checksums == Checksums::Verify && checksum::internet(&bytes[..header_len]) != 0 {
        return Err(ParseError::Checksum(LAYER));
    }
    if packet.get_fragment_offset() != 0 || packet.get_flags() & Ipv4Flags::MoreFragments != 0 {
        return Ok(None);
    }
    Ok(Some(v4_upper(&packet, upper)))
}

/// Parses an IPv6 packet; `None` for a fragment, and for one that still has hops of a routing
/// header before it.
pub(super) fn parse_v6(bytes: &[u8]) -> Result<Option<Upper<'_>>, ParseError> {
    const LAYER: Layer = Layer::Ipv6;
    let packet = v6_header(bytes, LAYER)?;
    let end = V6_LEN + usize::from(packet.get_payload_length());
    let payload = bytes.get(V6_LEN..end).ok_or(ParseError::Truncated(LAYER))?;
    v6_upper(&packet, payload, LAYER, false)
}

/// Parses the packet that an ICMP (`v4`) or ICMPv6 error quotes: its lengths and checksum describe
/// the whole packet, of which only a part may be there. `None` for a fragment without the ports.
pub(super) fn parse_quote(bytes: &[u8], v4: bool) -> Result<Option<Upper<'_>>, ParseError> {
    const LAYER: Layer = Layer::Quote;
    if v4 {
        let (packet, header_len) = v4_header(bytes, LAYER)?;
        let upper = &bytes[header_len..];
        Ok((packet.get_fragment_offset() == 0).then(|| v4_upper(&packet, upper)))
    } else {
        let packet = v6_header(bytes, LAYER)?;
        v6_upper(&packet, &bytes[V6_LEN..], LAYER, true)
    }
}

fn v4_header(bytes: &[u8], layer: Layer) -> Result<(Ipv4Packet<'_>, usize), ParseError> {
    let packet = Ipv4Packet::new(bytes).ok_or(ParseError::Truncated(layer))?;
    let header_len = usize::from(packet.get_header_length()) * 4;
    if packet.get_version() != 4 || header_len < V4_LEN {
        Err(ParseError::Malformed(layer))
    } else if header_len > bytes.len() {
        Err(ParseError::Truncated(layer))
    } else {
        Ok((packet, header_len))
    }
}

fn v4_upper<'a>(packet: &Ipv4Packet<'_>, bytes: &'a [u8]) -> Upper<'a> {
    let ip = IpHeader {
        src: packet.get_source().octets().into(),
        dst: packet.get_destination().octets().into(),
        ttl: packet.get_ttl(),
        id: packet.get_identification(),
    };
    Upper { ip, protocol: packet.get_next_level_protocol(), bytes }
}

fn v6_header(bytes: &[u8], layer: Layer) -> Result<Ipv6Packet<'_>, ParseError> {
    let packet = Ipv6Packet::new(bytes).ok_or(ParseError::Truncated(layer))?;
    if packet.get_version() == 6 { Ok(packet) } else { Err(ParseError::Malformed(layer)) }
}

/// Walks the extension headers of `packet`, whose payload (or what is quoted of it) is `bytes`.
fn v6_upper<'a>(
    packet: &Ipv6Packet<'_>,
    mut bytes: &'a [u8],
    layer: Layer,
    quoted: bool,
) -> Result<Option<Upper<'a>>, ParseError> {
    let mut protocol = packet.get_next_header();
    for position in 0..=MAX_EXTENSIONS {
        match protocol {
            // RFC 8200 §4.1: hop-by-hop options only directly behind the IPv6 header.
            Protocols::Hopopt if position > 0 => break,
            Protocols::Hopopt
            | Protocols::Ipv6Opts
            | Protocols::Ipv6Route
            | Protocols::Ipv6Frag => {}
            _ => {
                let ip = IpHeader {
                    src: packet.get_source().octets().into(),
                    dst: packet.get_destination().octets().into(),
                    ttl: packet.get_hop_limit(),
                    id: 0,
                };
                return Ok(Some(Upper { ip, protocol, bytes }));
            }
        }
        let truncated = ParseError::Truncated(layer);
        let start = bytes.first_chunk::<EXTENSION_UNIT>().ok_or(truncated)?;
        let [next, units, high, low, ..] = *start;
        let mut len = EXTENSION_UNIT * (1 + usize::from(units));
        if protocol == Protocols::Ipv6Frag {
            len = EXTENSION_UNIT;
            let (offset, more) = (u16::from_be_bytes([high, low]) >> 3, low & 1 != 0);
            // An atomic fragment (RFC 6946) is a whole packet. A first one is not, but a quote of
            // it holds the ports.
            if offset != 0 || (more && !quoted) {
                return Ok(None);
            }
        } else if protocol == Protocols::Ipv6Route {
            let segments_left = low;
            if segments_left != 0 {
                // The destination address is a hop, not the peer's, and not what TCP summed up.
                return Ok(None);
            }
        }
        bytes = bytes.get(len..).ok_or(truncated)?;
        protocol = IpNextHeaderProtocol(next);
    }
    Err(ParseError::Malformed(layer))
}

/// Writes link and IP header for an upper-layer packet of `len` octets into `buf`; returns the room
/// for it and the length of the whole frame.
///
/// # Errors
/// [`EmitError`]; `buf` is then unchanged.
pub(super) fn emit<'b>(
    ip: &IpHeader,
    protocol: IpNextHeaderProtocol,
    len: usize,
    link: &LinkHeader,
    buf: &'b mut [u8],
) -> Result<(&'b mut [u8], usize), EmitError> {
    let (ethertype, header_len) = match (ip.src, ip.dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (EtherTypes::Ipv4, V4_LEN),
        (IpAddr::V6(_), IpAddr::V6(_)) => (EtherTypes::Ipv6, V6_LEN),
        _ => return Err(EmitError::MixedFamilies),
    };
    let total_len = u16::try_from(header_len + len).map_err(|_| EmitError::TooLarge)?;
    let need = link.len() + usize::from(total_len);
    let too_short = EmitError::TooShort { need, have: buf.len() };
    let frame = buf.get_mut(..need).ok_or(too_short)?;
    let packet = link.emit(ethertype, frame).ok_or(too_short)?;
    let (header, upper) = packet.split_at_mut_checked(header_len).ok_or(too_short)?;
    header.fill(0);
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut v4 = MutableIpv4Packet::new(header).ok_or(too_short)?;
            v4.set_version(4);
            v4.set_header_length((V4_LEN / 4) as u8);
            v4.set_total_length(total_len);
            v4.set_identification(ip.id);
            v4.set_flags(Ipv4Flags::DontFragment);
            v4.set_ttl(ip.ttl);
            v4.set_next_level_protocol(protocol);
            v4.set_source(src.octets().into());
            v4.set_destination(dst.octets().into());
            let sum = checksum::internet(header);
            MutableIpv4Packet::new(header).ok_or(too_short)?.set_checksum(sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut v6 = MutableIpv6Packet::new(header).ok_or(too_short)?;
            v6.set_version(6);
            v6.set_payload_length(total_len - V6_LEN as u16);
            v6.set_next_header(protocol);
            v6.set_hop_limit(ip.ttl);
            v6.set_source(src.octets().into());
            v6.set_destination(dst.octets().into());
        }
        _ => return Err(EmitError::MixedFamilies),
    }
    Ok((upper, need))
}
