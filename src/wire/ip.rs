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
/// But for the authentication header, which counts words and leaves out two of them (RFC 4302 §2.2).
const AUTHENTICATION_UNIT: usize = 4;
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
    /// Whether there was a fragment header, even of a whole packet (IPv6 only).
    pub(super) fragmented: bool,
    pub(super) bytes: &'a [u8],
}

/// Parses an IPv4 packet; `None` for a fragment.
#[inline]
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

#[inline]
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

#[inline(always)]
fn v4_upper<'a>(packet: &Ipv4Packet<'_>, bytes: &'a [u8]) -> Upper<'a> {
    let ip = IpHeader {
        src: packet.get_source().octets().into(),
        dst: packet.get_destination().octets().into(),
        ttl: packet.get_ttl(),
        id: packet.get_identification(),
    };
    Upper { ip, protocol: packet.get_next_level_protocol(), fragmented: false, bytes }
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
    let mut fragmented = false;
    for position in 0..=MAX_EXTENSIONS {
        match protocol {
            // RFC 8200 §4.1: hop-by-hop options only directly behind the IPv6 header.
            Protocols::Hopopt if position > 0 => break,
            Protocols::Hopopt
            | Protocols::Ipv6Opts
            | Protocols::Ipv6Route
            | Protocols::Ah
            | Protocols::Ipv6Frag => {}
            _ => {
                let ip = IpHeader {
                    src: packet.get_source().octets().into(),
                    dst: packet.get_destination().octets().into(),
                    ttl: packet.get_hop_limit(),
                    id: 0,
                };
                return Ok(Some(Upper { ip, protocol, fragmented, bytes }));
            }
        }
        let truncated = ParseError::Truncated(layer);
        let start = bytes.first_chunk::<EXTENSION_UNIT>().ok_or(truncated)?;
        let [next, units, high, low, ..] = *start;
        let mut len = EXTENSION_UNIT * (1 + usize::from(units));
        if protocol == Protocols::Ipv6Frag {
            len = EXTENSION_UNIT;
            fragmented = true;
            let (offset, more) = (u16::from_be_bytes([high, low]) >> 3, low & 1 != 0);
            // An atomic fragment (RFC 6946) is a whole packet. A first one is not, but a quote of
            // it holds the ports.
            if offset != 0 || (more && !quoted) {
                return Ok(None);
            }
        } else if protocol == Protocols::Ah {
            // Not verified, as the kernel without a policy for it does not: TCP's own numbers decide.
            len = AUTHENTICATION_UNIT * (2 + usize::from(units));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, LinkType, Packet, Segment, SeqNumber, parse};
    use std::net::Ipv6Addr;

    fn segment(src: IpAddr, dst: IpAddr) -> Segment<'static> {
        Segment {
            ip: IpHeader { src, dst, ttl: 64, id: 0 },
            src_port: 61_007,
            dst_port: 8080,
            seq: SeqNumber(1),
            ack: SeqNumber(2),
            flags: Flags::ACK,
            wnd: 3,
            options: Default::default(),
            payload: b"x",
        }
    }

    fn v4() -> Segment<'static> {
        segment([10, 98, 0, 1].into(), [10, 98, 0, 7].into())
    }

    fn v6() -> Segment<'static> {
        segment(Ipv6Addr::LOCALHOST.into(), "fd00::7".parse().unwrap())
    }

    fn frame(segment: Segment<'_>) -> Vec<u8> {
        let mut buf = vec![0; 128];
        let len = segment.emit(&LinkHeader::Ip, &mut buf).unwrap();
        buf.truncate(len);
        buf
    }

    fn verify(frame: &[u8]) -> Result<Packet<'_>, ParseError> {
        parse(frame, LinkType::Ip, Checksums::Verify)
    }

    /// Changes an IPv4 header and makes its checksum right again.
    fn v4_with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = frame(v4());
        change(&mut frame);
        frame[10..12].fill(0);
        let header_len = usize::from(frame[0] & 15) * 4;
        let sum = checksum::internet(&frame[..header_len.min(frame.len())]);
        frame[10..12].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// Puts extension headers before TCP: (kind, octets behind the next-header field).
    fn v6_with(extensions: &[(u8, &[u8])]) -> Vec<u8> {
        let mut frame = frame(v6());
        let tcp = frame.split_off(V6_LEN);
        let mut next = 6;
        let mut upper = tcp;
        for (kind, octets) in extensions.iter().rev() {
            let mut longer = vec![next];
            longer.extend(*octets);
            longer.extend(upper);
            (next, upper) = (*kind, longer);
        }
        frame[6] = next;
        frame[4..6].copy_from_slice(&(upper.len() as u16).to_be_bytes());
        frame.extend(upper);
        frame
    }

    const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const PAD_16: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ROUTED: &[u8] = &[0, 4, 0, 0, 0, 0, 0];
    const ATOMIC: &[u8] = &[0, 0, 0, 0, 0, 0, 9];
    /// 24 octets: four words beyond the first two.
    const AUTHENTICATED: &[u8] = &[4; 23];

    #[test]
    fn v4_options_are_skipped() {
        let frame = v4_with(|frame| {
            // Router alert (RFC 2113), which firewalls and IGMP use.
            frame.splice(20..20, [148, 4, 0, 0]);
            frame[0] = 0x46;
            frame[3] += 4;
        });
        assert_eq!(verify(&frame), Ok(Packet::Tcp(v4())));
    }

    #[test]
    fn v4_lengths_that_lie() {
        for (at, octet, error) in [
            (0, 0x44, ParseError::Malformed(Layer::Ipv4)), // header of 16
            (0, 0x4f, ParseError::Truncated(Layer::Ipv4)), // header of 60, frame of 41
            (0, 0x55, ParseError::Malformed(Layer::Ipv4)), // version 5
            (3, 19, ParseError::Malformed(Layer::Ipv4)),   // shorter than its header
            (3, 0, ParseError::Malformed(Layer::Ipv4)),
            (3, 42, ParseError::Truncated(Layer::Ipv4)), // longer than the frame
            (3, 39, ParseError::Truncated(Layer::Tcp)),
        ] {
            let frame = v4_with(|frame| frame[at] = octet);
            assert_eq!(verify(&frame), Err(error), "octet {at} = {octet:#x}");
        }
    }

    #[test]
    fn v4_checksum() {
        let mut frame = frame(v4());
        frame[8] -= 1; // a router that forgot to update it
        assert_eq!(verify(&frame), Err(ParseError::Checksum(Layer::Ipv4)));
        let hop_nearer = Segment { ip: IpHeader { ttl: 63, ..v4().ip }, ..v4() };
        assert_eq!(parse(&frame, LinkType::Ip, Checksums::Trust), Ok(Packet::Tcp(hop_nearer)));
    }

    #[test]
    fn v4_fragments_are_other() {
        for flags_and_offset in [0x2000, 0x2001, 0x0001, 0x1fff, 0x3fff] {
            let frame = v4_with(|frame| {
                frame[6..8].copy_from_slice(&u16::to_be_bytes(flags_and_offset));
            });
            assert_eq!(verify(&frame), Ok(Packet::Other), "{flags_and_offset:#06x}");
        }
        for whole in [0x0000, 0x4000, 0x8000] {
            let frame = v4_with(|frame| frame[6..8].copy_from_slice(&u16::to_be_bytes(whole)));
            assert_eq!(verify(&frame), Ok(Packet::Tcp(v4())), "{whole:#06x}");
        }
    }

    #[test]
    fn v6_extension_headers_are_walked() {
        let all =
            [(0, PAD_16), (60, PAD), (43, ROUTED), (44, ATOMIC), (51, AUTHENTICATED), (60, PAD_16)];
        let singly = all.chunks(1);
        for extensions in singly.chain([&all[..], &[(60, PAD); 8]]) {
            let frame = v6_with(extensions);
            assert_eq!(verify(&frame), Ok(Packet::Tcp(v6())), "{extensions:?}");
            for len in 0..frame.len() {
                assert!(verify(&frame[..len]).is_err(), "{extensions:?} cut to {len}");
            }
        }
    }

    #[test]
    fn v6_packets_that_are_not_whole_or_not_there_yet_are_other() {
        let first: &[u8] = &[0, 0, 1, 0, 0, 0, 9];
        let middle: &[u8] = &[0, 0, 9, 0, 0, 0, 9];
        let last: &[u8] = &[0, 0, 8, 0, 0, 0, 9];
        for fragment in [first, middle, last] {
            assert_eq!(verify(&v6_with(&[(44, fragment)])), Ok(Packet::Other));
        }
        // RFC 8200 §4.5: the two bits between offset and M are ignored.
        assert_eq!(verify(&v6_with(&[(44, &[0, 0, 6, 0, 0, 0, 9])])), Ok(Packet::Tcp(v6())));
        let one_hop_left: &[u8] = &[0, 4, 1, 0, 0, 0, 0];
        assert_eq!(verify(&v6_with(&[(43, one_hop_left)])), Ok(Packet::Other));
        // No next header; ESP; mobility.
        for protocol in [59, 50, 135] {
            assert_eq!(verify(&v6_with(&[(protocol, PAD)])), Ok(Packet::Other), "{protocol}");
        }
    }

    #[test]
    fn v6_chains_that_are_refused() {
        let malformed = Err(ParseError::Malformed(Layer::Ipv6));
        assert_eq!(verify(&v6_with(&[(60, PAD), (0, PAD)])), malformed, "hop-by-hop in the middle");
        assert_eq!(verify(&v6_with(&[(60, PAD); 9])), malformed, "too many");
        // A word too many: TCP is then read four octets late.
        let mut longer = AUTHENTICATED.to_vec();
        longer[0] += 1;
        assert!(verify(&v6_with(&[(51, &longer)])).is_err());
        let past_the_end: &[u8] = &[255, 1, 4, 0, 0, 0, 0];
        assert_eq!(
            verify(&v6_with(&[(60, past_the_end)])),
            Err(ParseError::Truncated(Layer::Ipv6))
        );
    }

    #[test]
    fn v6_payload_length() {
        let mut frame = frame(v6());
        frame[5] += 1;
        assert_eq!(verify(&frame), Err(ParseError::Truncated(Layer::Ipv6)));
        frame[5] = 0;
        assert_eq!(verify(&frame), Err(ParseError::Truncated(Layer::Tcp)));
    }
}
