//! Neighbour Discovery (RFC 4861), as far as it resolves addresses: solicitations, advertisements.

use super::icmp::pseudo_sum;
use super::ip::{self, Upper};
use super::{Checksums, EmitError, IpHeader, Layer, LinkHeader, MacAddr, ParseError, checksum};
use pnet::packet::icmpv6::ndp::{
    MutableNdpOptionPacket, MutableNeighborAdvertPacket, MutableNeighborSolicitPacket,
    NdpOptionPacket, NdpOptionType, NdpOptionTypes, NeighborAdvertFlags, NeighborAdvertPacket,
};
use pnet::packet::icmpv6::{Icmpv6Code, Icmpv6Type, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols::Icmpv6 as ICMPV6;
use std::net::{IpAddr, Ipv6Addr};

/// Type, code, checksum, flags, target: the same for both messages.
const HEADER_LEN: usize = 24;
/// A link-layer address option for Ethernet: type, length, address.
const OPTION_LEN: usize = 8;
/// Options come in multiples of this (RFC 4861 §4.6).
const OPTION_UNIT: usize = 8;
/// More of them nobody sends; nothing may keep us busy for long.
const MAX_OPTIONS: usize = 16;
/// What no packet has that a router has forwarded (RFC 4861 §3.1).
const HOP_LIMIT: u8 = 255;

/// What a message asks or says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdKind {
    /// Who has the target address?
    Solicitation,
    /// The target address is here.
    Advertisement {
        /// R: it is a router.
        router: bool,
        /// S: this answers a solicitation.
        solicited: bool,
        /// O: it replaces what is known.
        overrides: bool,
    },
}

/// A Neighbour Solicitation (RFC 4861 §4.3) or Advertisement (§4.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nd {
    /// Which of the two, and the flags.
    pub kind: NdKind,
    /// Source address of the packet.
    pub src: Ipv6Addr,
    /// Its destination address.
    pub dst: Ipv6Addr,
    /// The address asked for, or advertised.
    pub target: Ipv6Addr,
    /// The link-layer address option, if there is one: of the source in a solicitation, of the target
    /// in an advertisement.
    pub mac: Option<MacAddr>,
}

/// Returns the group that listens for solicitations of `target` (RFC 4291 §2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    let (high, low) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// Returns the MAC address of a multicast group (RFC 2464 §7).
pub fn multicast_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Says whether an ICMPv6 message is a solicitation or an advertisement.
pub(super) fn is_nd(icmp: &[u8]) -> bool {
    icmp.first().is_some_and(|&octet| {
        [Icmpv6Types::NeighborSolicit, Icmpv6Types::NeighborAdvert].contains(&Icmpv6Type(octet))
    })
}

impl Nd {
    /// Builds the solicitation that resolves `target`.
    pub fn solicit(src: Ipv6Addr, target: Ipv6Addr, mac: MacAddr) -> Nd {
        let dst = solicited_node(target);
        Nd { kind: NdKind::Solicitation, src, dst, target, mac: Some(mac) }
    }

    /// Writes the packet behind an Ethernet header and returns the length of the frame.
    ///
    /// # Errors
    /// [`EmitError::TooShort`], or [`EmitError::NoLinkHeader`] with [`LinkHeader::Ip`]; `buf` is
    /// then unchanged.
    pub fn emit(&self, link: &LinkHeader, buf: &mut [u8]) -> Result<usize, EmitError> {
        if link.is_empty() {
            return Err(EmitError::NoLinkHeader);
        }
        let have = buf.len();
        let ip = IpHeader { src: self.src.into(), dst: self.dst.into(), ttl: HOP_LIMIT, id: 0 };
        let len = HEADER_LEN + if self.mac.is_some() { OPTION_LEN } else { 0 };
        let (upper, total) = ip::emit(&ip, ICMPV6, len, link, buf)?;
        let too_short = EmitError::TooShort { need: total, have };
        upper.fill(0);
        let target = self.target.octets().into();
        let option_type = match self.kind {
            NdKind::Solicitation => {
                let mut solicit = MutableNeighborSolicitPacket::new(upper).ok_or(too_short)?;
                solicit.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
                solicit.set_target_addr(target);
                NdpOptionTypes::SourceLLAddr
            }
            NdKind::Advertisement { router, solicited, overrides } => {
                let mut advert = MutableNeighborAdvertPacket::new(upper).ok_or(too_short)?;
                advert.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
                let flags = [
                    (router, NeighborAdvertFlags::Router),
                    (solicited, NeighborAdvertFlags::Solicited),
                    (overrides, NeighborAdvertFlags::Override),
                ];
                let set = flags.iter().filter(|(set, _)| *set);
                advert.set_flags(set.fold(0, |octet, (_, flag)| octet | flag));
                advert.set_target_addr(target);
                NdpOptionTypes::TargetLLAddr
            }
        };
        if let Some(mac) = self.mac {
            let bytes = upper.get_mut(HEADER_LEN..).ok_or(too_short)?;
            let mut option = MutableNdpOptionPacket::new(bytes).ok_or(too_short)?;
            option.set_option_type(option_type);
            option.set_length((OPTION_LEN / OPTION_UNIT) as u8);
            option.set_data(&mac.0);
        }
        let sum = checksum::add(pseudo_sum(&ip, upper.len()), checksum::sum(upper));
        MutableNeighborSolicitPacket::new(upper).ok_or(too_short)?.set_checksum(!sum);
        Ok(total)
    }

    /// Parses an ICMPv6 message for which [`is_nd`] holds, with all the checks of RFC 4861 §7.1.1 and
    /// §7.1.2, and none of it fragmented (RFC 6980 §5).
    pub(super) fn parse(upper: Upper<'_>, checksums: Checksums) -> Result<Nd, ParseError> {
        const MALFORMED: ParseError = ParseError::Malformed(Layer::Nd);
        const TRUNCATED: ParseError = ParseError::Truncated(Layer::Nd);
        let Upper { ip, fragmented, bytes, .. } = upper;
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else { return Err(MALFORMED) };
        // The layouts are the same but for the flags, which a solicitation reserves.
        let message = NeighborAdvertPacket::new(bytes).ok_or(TRUNCATED)?;
        let options = bytes.get(HEADER_LEN..).ok_or(TRUNCATED)?;
        if checksums == Checksums::Verify
            && checksum::add(pseudo_sum(&ip, bytes.len()), checksum::sum(bytes)) != 0xffff
        {
            return Err(ParseError::Checksum(Layer::Nd));
        }
        let target: Ipv6Addr = message.get_target_addr().octets().into();
        let is_solicitation = message.get_icmpv6_type() == Icmpv6Types::NeighborSolicit;
        if ip.ttl != HOP_LIMIT
            || message.get_icmpv6_code() != Icmpv6Code(0)
            || target.is_multicast()
            || fragmented
        {
            return Err(MALFORMED);
        }
        let (kind, wanted) = if is_solicitation {
            (NdKind::Solicitation, NdpOptionTypes::SourceLLAddr)
        } else {
            let flags = message.get_flags();
            let kind = NdKind::Advertisement {
                router: flags & NeighborAdvertFlags::Router != 0,
                solicited: flags & NeighborAdvertFlags::Solicited != 0,
                overrides: flags & NeighborAdvertFlags::Override != 0,
            };
            (kind, NdpOptionTypes::TargetLLAddr)
        };
        let mac = link_address(options, wanted)?;
        let contradicts = match kind {
            // Who has no address yet can only ask the group, and names no link-layer address.
            NdKind::Solicitation => {
                src.is_unspecified() && (dst != solicited_node(target) || mac.is_some())
            }
            NdKind::Advertisement { solicited, .. } => solicited && dst.is_multicast(),
        };
        if contradicts { Err(MALFORMED) } else { Ok(Nd { kind, src, dst, target, mac }) }
    }
}

/// Returns the last link-layer address among `options` that is `wanted`; other options are skipped.
fn link_address(mut options: &[u8], wanted: NdpOptionType) -> Result<Option<MacAddr>, ParseError> {
    let mut mac = None;
    for _ in 0..MAX_OPTIONS {
        if options.is_empty() {
            return Ok(mac);
        }
        let option = NdpOptionPacket::new(options).ok_or(ParseError::Truncated(Layer::Nd))?;
        let len = OPTION_UNIT * usize::from(option.get_length());
        // RFC 4861 §4.6: nodes MUST silently discard a packet with an option of length zero.
        if len == 0 {
            return Err(ParseError::Malformed(Layer::Nd));
        }
        let (whole, rest) =
            options.split_at_checked(len).ok_or(ParseError::Truncated(Layer::Nd))?;
        if option.get_option_type() == wanted {
            // Another length is the address of another kind of link.
            let octets = whole.get(2..).and_then(|octets| octets.try_into().ok());
            mac = Some(MacAddr(octets.ok_or(ParseError::Malformed(Layer::Nd))?));
        }
        options = rest;
    }
    if options.is_empty() { Ok(mac) } else { Err(ParseError::Malformed(Layer::Nd)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{LinkType, Packet, parse};
    use proptest::prelude::*;

    const A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn advert() -> Nd {
        let kind = NdKind::Advertisement { router: true, solicited: true, overrides: true };
        let (src, dst) = (ip("fe80::fe"), ip("fd98::1"));
        Nd { kind, src, dst, target: ip("fd98::fe"), mac: Some(B) }
    }

    fn solicitation() -> Nd {
        Nd::solicit(ip("fd98::1"), ip("fd98::12:34ab"), A)
    }

    fn link() -> LinkHeader {
        LinkHeader::Ethernet { src: B, dst: A, vlan: None }
    }

    fn frame(message: &Nd) -> Vec<u8> {
        let mut buf = vec![0xee; 128];
        let len = message.emit(&link(), &mut buf).unwrap();
        buf.truncate(len);
        buf
    }

    fn verify(frame: &[u8]) -> Result<Packet<'_>, ParseError> {
        parse(frame, LinkType::Ethernet, Checksums::Verify)
    }

    /// Where the ICMPv6 message begins, and where its options do.
    const ICMP: usize = 14 + 40;
    const OPTIONS: usize = ICMP + HEADER_LEN;

    /// Changes a frame without extension headers and makes its length and checksum right again.
    fn with(message: &Nd, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = frame(message);
        change(&mut frame);
        let len = frame.len() - ICMP;
        frame[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        let address = |at: usize| Ipv6Addr::from(*frame[at..].first_chunk::<16>().unwrap());
        let ip = IpHeader { src: address(22).into(), dst: address(38).into(), ttl: 0, id: 0 };
        frame[ICMP + 2..ICMP + 4].fill(0);
        let sum = checksum::add(pseudo_sum(&ip, len), checksum::sum(&frame[ICMP..]));
        frame[ICMP + 2..ICMP + 4].copy_from_slice(&(!sum).to_be_bytes());
        frame
    }

    const MALFORMED: Result<Packet<'_>, ParseError> = Err(ParseError::Malformed(Layer::Nd));
    const TRUNCATED: Result<Packet<'_>, ParseError> = Err(ParseError::Truncated(Layer::Nd));

    /// What Linux sends for this pair of addresses, octet by octet.
    #[test]
    fn solicitation_octets() {
        let message = solicitation();
        assert_eq!(message.dst, ip("ff02::1:ff12:34ab"));
        assert_eq!(multicast_mac(message.dst), MacAddr([0x33, 0x33, 0xff, 0x12, 0x34, 0xab]));
        #[rustfmt::skip]
        let expected = [
            0x60, 0, 0, 0, 0, 32, 58, 255, // IPv6
            0xfd, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0xab,
            135, 0, 0, 0, 0, 0, 0, 0, // ICMPv6, its checksum left out
            0xfd, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0xab,
            1, 1, 0x02, 0, 0, 0, 0, 0x0a, // source link-layer address
        ];
        let frame = frame(&message);
        assert_eq!(frame[12..14], [0x86, 0xdd]);
        let mut without_sum = frame[14..].to_vec();
        without_sum[42..44].fill(0);
        assert_eq!(without_sum, expected);
        // The sum over everything, pseudo-header included, by hand rather than by `checksum`.
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum()
        };
        let mut sum = words(&frame[22..]) + 32 + 58;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
        assert_eq!(verify(&frame), Ok(Packet::Nd(message)));
    }

    #[test]
    fn what_cannot_be_written() {
        let mut buf = [0xee; 85];
        assert_eq!(
            advert().emit(&link(), &mut buf),
            Err(EmitError::TooShort { need: 86, have: 85 })
        );
        assert_eq!(advert().emit(&LinkHeader::Ip, &mut buf), Err(EmitError::NoLinkHeader));
        assert_eq!(buf, [0xee; 85]);
    }

    #[test]
    fn only_what_no_router_has_forwarded() {
        for message in [advert(), solicitation()] {
            let mut frame = frame(&message);
            for hop_limit in [254, 64, 1, 0] {
                frame[21] = hop_limit;
                assert_eq!(verify(&frame), MALFORMED, "hop limit {hop_limit}");
            }
            frame[21] = 255;
            assert_eq!(verify(&frame), Ok(Packet::Nd(message)));
        }
    }

    #[test]
    fn code_target_and_destination() {
        let message = advert();
        assert_eq!(verify(&with(&message, |_| ())), Ok(Packet::Nd(message)));
        assert_eq!(verify(&with(&message, |frame| frame[ICMP + 1] = 1)), MALFORMED, "code");
        assert_eq!(verify(&with(&message, |frame| frame[ICMP + 8] = 0xff)), MALFORMED, "target");
        let everyone = Nd { dst: ip("ff02::1"), ..message };
        assert_eq!(verify(&frame(&everyone)), MALFORMED, "solicited, but to everyone");
        let kind = NdKind::Advertisement { router: true, solicited: false, overrides: true };
        let unsolicited = Nd { kind, ..everyone };
        assert_eq!(verify(&frame(&unsolicited)), Ok(Packet::Nd(unsolicited)));

        let detecting = Nd { src: Ipv6Addr::UNSPECIFIED, mac: None, ..solicitation() };
        assert_eq!(verify(&frame(&detecting)), Ok(Packet::Nd(detecting)));
        let naming = Nd { mac: Some(A), ..detecting };
        assert_eq!(verify(&frame(&naming)), MALFORMED, "an address of nobody's");
        let direct = Nd { dst: detecting.target, ..detecting };
        assert_eq!(verify(&frame(&direct)), MALFORMED, "not to the group");
        let direct = Nd { dst: solicitation().target, ..solicitation() };
        assert_eq!(verify(&frame(&direct)), Ok(Packet::Nd(direct)), "a probe of reachability");
    }

    #[test]
    fn checksum_is_verified() {
        let mut frame = frame(&advert());
        frame[ICMP + 4] ^= 0x20;
        assert_eq!(verify(&frame), Err(ParseError::Checksum(Layer::Nd)));
        let trusted = parse(&frame, LinkType::Ethernet, Checksums::Trust);
        assert!(matches!(trusted, Ok(Packet::Nd(_))));
    }

    #[test]
    fn options_are_walked_and_bounded() {
        let message = advert();
        let bare = Nd { mac: None, ..message };
        assert_eq!(verify(&frame(&bare)), Ok(Packet::Nd(bare)));
        // A nonce (RFC 3971), 16 octets of something, and only then the address.
        let others = [14, 1, 0, 0, 0, 0, 0, 0, 200, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let behind = with(&message, |frame| drop(frame.splice(OPTIONS..OPTIONS, others)));
        assert_eq!(verify(&behind), Ok(Packet::Nd(message)));
        // The other message's option is none for this one.
        let foreign = with(&message, |frame| frame[OPTIONS] = 1);
        assert_eq!(verify(&foreign), Ok(Packet::Nd(bare)));

        assert_eq!(verify(&with(&message, |frame| frame[OPTIONS + 1] = 0)), MALFORMED, "length 0");
        let past_the_end = with(&message, |frame| frame[OPTIONS + 1] = 2);
        assert_eq!(verify(&past_the_end), TRUNCATED);
        let longer = with(&message, |frame| {
            frame[OPTIONS + 1] = 2;
            frame.extend([0; 8]);
        });
        assert_eq!(verify(&longer), MALFORMED, "an address of 14 octets");
        let many =
            |count| with(&bare, |frame| frame.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(count)));
        assert_eq!(verify(&many(16)), Ok(Packet::Nd(bare)));
        assert_eq!(verify(&many(17)), MALFORMED);
        for cut in 1..OPTION_LEN {
            let short = with(&message, |frame| frame.truncate(frame.len() - cut));
            assert_eq!(verify(&short), TRUNCATED, "{cut} octets short");
        }
        for len in 0..HEADER_LEN {
            let short = with(&bare, |frame| {
                frame.truncate(ICMP + len.max(4));
            });
            assert!(verify(&short).is_err(), "{len}");
        }
    }

    #[test]
    fn fragmented_messages_are_refused() {
        let put = |header: &[u8], next| {
            let mut frame = frame(&advert());
            frame.splice(ICMP..ICMP, header.iter().copied());
            frame[20] = next;
            let len = (frame.len() - ICMP) as u16;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
            frame
        };
        // RFC 6980 §5: not even an atomic fragment.
        assert_eq!(verify(&put(&[58, 0, 0, 0, 0, 0, 0, 9], 44)), MALFORMED);
        let padded = put(&[58, 0, 1, 4, 0, 0, 0, 0], 60);
        assert_eq!(verify(&padded), Ok(Packet::Nd(advert())));
    }

    proptest! {
        #[test]
        fn round_trip(
            solicits: bool, flags: (bool, bool, bool), src: u128, dst: u128, target: u128,
            mac: Option<[u8; 6]>, vlan: Option<u16>,
        ) {
            let (router, solicited, overrides) = flags;
            let kind = match solicits {
                true => NdKind::Solicitation,
                false => NdKind::Advertisement { router, solicited, overrides },
            };
            // None of the three with an address that the rules are about.
            let unicast = |bits: u128| Ipv6Addr::from_bits(bits >> 8 | 0xfd << 120);
            let (src, dst, target) = (unicast(src), unicast(dst), unicast(target));
            let message = Nd { kind, src, dst, target, mac: mac.map(MacAddr) };
            let link = LinkHeader::Ethernet { src: A, dst: B, vlan };
            let mut buf = [0xee; 128];
            let len = message.emit(&link, &mut buf).unwrap();
            prop_assert_eq!(verify(&buf[..len]), Ok(Packet::Nd(message)));
            for short in 0..len {
                prop_assert!(verify(&buf[..short]).is_err(), "cut to {}", short);
            }
        }

        #[test]
        fn arbitrary_options_do_not_panic(
            options in prop::collection::vec(any::<u8>(), 0..200), solicits: bool,
        ) {
            let message = if solicits { solicitation() } else { advert() };
            let bare = Nd { mac: None, ..message };
            let frame = with(&bare, |frame| frame.extend(&options));
            if let Ok(packet) = verify(&frame) {
                prop_assert!(matches!(packet, Packet::Nd(_)));
            }
        }
    }
}
