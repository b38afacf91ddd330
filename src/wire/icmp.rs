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
    /// SEG.WND as it stands in the header, if the quote is longer still.
    pub wnd: Option<u16>,
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
            wnd: rest.get(6..).and_then(<[u8]>::first_chunk).map(|wnd| u16::from_be_bytes(*wnd)),
            ip_id: upper.ip.id,
        })
    }
}

/// Only ICMPv6 sums up a pseudo-header (RFC 4443 §2.3).
pub(super) fn pseudo_sum(ip: &IpHeader, len: usize) -> u16 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, LinkType, Packet, Segment, parse};
    use std::net::Ipv6Addr;

    fn probe(v4: bool) -> (Segment<'static>, Vec<u8>) {
        let (src, dst): (IpAddr, IpAddr) = if v4 {
            ([10, 98, 0, 1].into(), [10, 99, 0, 7].into())
        } else {
            (Ipv6Addr::LOCALHOST.into(), "fd00::7".parse().unwrap())
        };
        let segment = Segment {
            ip: IpHeader { src, dst, ttl: 1, id: if v4 { 0xabcd } else { 0 } },
            src_port: 61_007,
            dst_port: 8080,
            seq: SeqNumber(0x0102_0304),
            ack: SeqNumber(0x0506_0708),
            flags: Flags::ACK,
            wnd: 9,
            options: Default::default(),
            payload: &[],
        };
        let mut buf = vec![0; 128];
        let len = segment.emit(&LinkHeader::Ip, &mut buf).unwrap();
        buf.truncate(len);
        (segment, buf)
    }

    /// An error of this type and code about `quote`, parsed.
    fn parsed(
        icmp_type: u8,
        code: u8,
        quote: &[u8],
        v4: bool,
    ) -> Result<Packet<'static>, ParseError> {
        let (segment, _) = probe(v4);
        let router: IpAddr = if v4 { [10, 98, 0, 254].into() } else { "fe80::1".parse().unwrap() };
        let ip = IpHeader { src: router, dst: segment.ip.src, ttl: 255, id: 0 };
        let mut buf = [0; 512];
        let len = emit_error(&ip, icmp_type, code, quote, &LinkHeader::Ip, &mut buf).unwrap();
        match parse(&buf[..len], LinkType::Ip, Checksums::Verify)? {
            Packet::Icmp(error) => {
                assert_eq!((error.ip, error.icmp_type, error.code), (ip, icmp_type, code));
                Ok(Packet::Icmp(error))
            }
            Packet::Other => Ok(Packet::Other),
            packet => panic!("{packet:?}"),
        }
    }

    fn quoted(quote: &[u8], v4: bool) -> Result<Option<Quoted>, ParseError> {
        parsed(if v4 { 3 } else { 1 }, 0, quote, v4).map(|packet| match packet {
            Packet::Icmp(error) => Some(error.quoted),
            _ => None,
        })
    }

    fn expected(v4: bool, tcp_len: usize) -> Quoted {
        let (segment, _) = probe(v4);
        Quoted {
            src: (segment.ip.src, segment.src_port).into(),
            dst: (segment.ip.dst, segment.dst_port).into(),
            seq: segment.seq,
            ack: (tcp_len >= 12).then_some(segment.ack),
            wnd: (tcp_len >= 16).then_some(segment.wnd),
            ip_id: segment.ip.id,
        }
    }

    #[test]
    fn quotes_of_any_length() {
        for v4 in [true, false] {
            let (_, packet) = probe(v4);
            let ip_len = if v4 { 20 } else { 40 };
            for len in 0..=packet.len() {
                let wanted = if len < ip_len + 8 {
                    Err(ParseError::Truncated(Layer::Quote))
                } else {
                    Ok(Some(expected(v4, len - ip_len)))
                };
                assert_eq!(quoted(&packet[..len], v4), wanted, "{len} octets, v4: {v4}");
            }
        }
    }

    #[test]
    fn quotes_with_options_and_extension_headers() {
        let (_, mut packet) = probe(true);
        packet.splice(20..20, [1, 1, 1, 0]);
        packet[0] = 0x46;
        assert_eq!(quoted(&packet[..32], true), Ok(Some(expected(true, 8))));
        assert_eq!(quoted(&packet[..24], true), Err(ParseError::Truncated(Layer::Quote)));
        assert_eq!(quoted(&packet[..23], true), Err(ParseError::Truncated(Layer::Quote)));

        let (_, mut packet) = probe(false);
        packet[6] = 60;
        packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(quoted(&packet[..56], false), Ok(Some(expected(false, 8))));
        assert_eq!(quoted(&packet[..47], false), Err(ParseError::Truncated(Layer::Quote)));
    }

    #[test]
    fn what_a_router_changed_in_the_quote_does_not_matter() {
        let (_, mut packet) = probe(true);
        packet[8] = 0; // TTL
        packet[2..4].copy_from_slice(&[40, 0]); // total length in the wrong byte order: old BSDs
        packet[10..12].fill(0); // checksum
        assert_eq!(quoted(&packet, true), Ok(Some(expected(true, 20))));
    }

    #[test]
    fn quotes_of_no_interest() {
        for v4 in [true, false] {
            let (_, mut packet) = probe(v4);
            packet[if v4 { 9 } else { 6 }] = 17;
            assert_eq!(quoted(&packet, v4), Ok(None), "UDP");
        }
        let (_, mut packet) = probe(true);
        packet[7] = 1;
        assert_eq!(quoted(&packet, true), Ok(None), "not the first fragment");
        packet[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(quoted(&packet, true), Ok(Some(expected(true, 20))), "the first fragment");
    }

    #[test]
    fn quotes_that_are_refused() {
        for v4 in [true, false] {
            let (_, mut packet) = probe(v4);
            packet[0] ^= 0x20; // 4 becomes 6, 6 becomes 4
            assert_eq!(quoted(&packet, v4), Err(ParseError::Malformed(Layer::Quote)));
        }
        let (_, mut packet) = probe(true);
        packet[0] = 0x44;
        assert_eq!(quoted(&packet, true), Err(ParseError::Malformed(Layer::Quote)));
    }

    #[test]
    fn what_types_and_codes_mean() {
        use IcmpKind::*;
        let meanings = |v4: bool, icmp_type: u8, wanted: &[IcmpKind]| {
            let (_, packet) = probe(v4);
            for (code, kind) in wanted.iter().enumerate() {
                let packet = parsed(icmp_type, code as u8, &packet, v4);
                let Ok(Packet::Icmp(error)) = packet else { panic!("{packet:?}") };
                assert_eq!(error.kind(), *kind, "v4: {v4}, type {icmp_type}, code {code}");
            }
        };
        #[rustfmt::skip]
        let v4_unreachable = [
            Net, Host, Port, Port, TooBig, Other, Net, Host, Other, Admin, Admin, Net, Host, Admin,
            Other, Other, Other,
        ];
        meanings(true, 3, &v4_unreachable);
        meanings(true, 11, &[TimeExceeded, Other]);
        meanings(true, 12, &[Other, Other]);
        meanings(false, 1, &[Net, Admin, Other, Host, Port, Admin, Admin, Other]);
        meanings(false, 2, &[TooBig]);
        meanings(false, 3, &[TimeExceeded, Other]);
        meanings(false, 4, &[Other, Other]);
    }

    #[test]
    fn messages_that_are_no_errors_are_other() {
        let (_, packet) = probe(true);
        for icmp_type in [0, 4, 5, 8, 13] {
            assert_eq!(parsed(icmp_type, 0, &packet, true), Ok(Packet::Other), "{icmp_type}");
        }
        let (_, packet) = probe(false);
        for icmp_type in [0, 5, 127, 128, 134, 137] {
            assert_eq!(parsed(icmp_type, 0, &packet, false), Ok(Packet::Other), "{icmp_type}");
        }
    }

    #[test]
    fn wrong_checksums_and_short_messages() {
        for v4 in [true, false] {
            let (segment, packet) = probe(v4);
            let mut buf = [0; 512];
            let icmp_type = if v4 { 3 } else { 1 };
            let ip = IpHeader { dst: segment.ip.src, ..segment.ip };
            let len = emit_error(&ip, icmp_type, 0, &packet, &LinkHeader::Ip, &mut buf).unwrap();
            buf[len - 1] ^= 1;
            let with = |checksums| parse(&buf[..len], LinkType::Ip, checksums);
            assert_eq!(with(Checksums::Verify), Err(ParseError::Checksum(Layer::Icmp)));
            assert!(matches!(with(Checksums::Trust), Ok(Packet::Icmp(_))));

            let header_len = if v4 { 20 } else { 40 };
            let mut short = buf[..header_len + 7].to_vec();
            if v4 {
                short[2..4].copy_from_slice(&27u16.to_be_bytes());
            } else {
                short[4..6].copy_from_slice(&7u16.to_be_bytes());
            }
            assert_eq!(
                parse(&short, LinkType::Ip, Checksums::Trust),
                Err(ParseError::Truncated(Layer::Icmp))
            );
        }
    }
}
