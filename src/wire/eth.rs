//! Ethernet II with 802.1Q tags, and ARP (RFC 826).

use super::{EmitError, Layer, ParseError};
use pnet::packet::arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket};
use pnet::packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::vlan::{ClassOfService, MutableVlanPacket};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

const HEADER_LEN: usize = 14;
const TAG_LEN: usize = 4;
/// Without the frame check sequence (IEEE 802.3 §4A.4.2).
const MIN_FRAME_LEN: usize = 60;

/// Tag protocol identifiers: 802.1Q, 802.1ad, and what switches used for stacked tags before it.
const TPIDS: [EtherType; 3] = [EtherTypes::Vlan, EtherTypes::PBridge, EtherTypes::QinQ];

/// A 48-bit MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is not a MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a MAC address (six pairs of hexadecimal digits, such as 02:00:5e:10:00:01)")]
pub struct MacAddrError;

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Reads `aa:bb:cc:dd:ee:ff`, in either case.
    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or(MacAddrError)?;
            // from_str_radix alone would take "+f".
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| MacAddrError)?;
        }
        if pairs.next().is_some() { Err(MacAddrError) } else { Ok(MacAddr(octets)) }
    }
}

/// The link header to write before an IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkHeader {
    /// None: the frame starts with the IP header.
    Ip,
    /// Ethernet II.
    Ethernet {
        /// Source address.
        src: MacAddr,
        /// Destination address.
        dst: MacAddr,
        /// 802.1Q tag control information (priority, VLAN id), if tagged.
        vlan: Option<u16>,
    },
}

impl LinkHeader {
    /// Returns the header's length: 0, 14 or 18 octets.
    pub const fn len(&self) -> usize {
        match self {
            LinkHeader::Ip => 0,
            LinkHeader::Ethernet { vlan: None, .. } => HEADER_LEN,
            LinkHeader::Ethernet { vlan: Some(_), .. } => HEADER_LEN + TAG_LEN,
        }
    }

    /// Says whether there is no header at all.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the header and returns what is behind it; `None`, if `buf` is shorter than the header.
    pub(super) fn emit<'b>(&self, ethertype: EtherType, buf: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let (header, rest) = buf.split_at_mut_checked(self.len())?;
        if let LinkHeader::Ethernet { src, dst, vlan } = self {
            let mut eth = MutableEthernetPacket::new(header)?;
            eth.set_source(src.0.into());
            eth.set_destination(dst.0.into());
            eth.set_ethertype(if vlan.is_some() { EtherTypes::Vlan } else { ethertype });
            if let Some(tci) = vlan {
                let mut tag = MutableVlanPacket::new(header.get_mut(HEADER_LEN..)?)?;
                tag.set_priority_code_point(ClassOfService((tci >> 13) as u8));
                tag.set_drop_eligible_indicator((tci >> 12 & 1) as u8);
                tag.set_vlan_identifier(tci & 0xfff);
                tag.set_ethertype(ethertype);
            }
        }
        Some(rest)
    }
}

/// Returns the EtherType behind up to two tags, and what follows it. Three tags are given back as
/// the EtherType of a tag, which nobody wants.
#[inline]
pub(super) fn parse(frame: &[u8]) -> Result<(EtherType, &[u8]), ParseError> {
    const TRUNCATED: ParseError = ParseError::Truncated(Layer::Ethernet);
    let mut ethertype = EthernetPacket::new(frame).ok_or(TRUNCATED)?.get_ethertype();
    let mut rest = frame.get(HEADER_LEN..).ok_or(TRUNCATED)?;
    for _ in 0..2 {
        if !TPIDS.contains(&ethertype) {
            break;
        }
        let tag;
        (tag, rest) = rest.split_first_chunk::<TAG_LEN>().ok_or(TRUNCATED)?;
        ethertype = EtherType(u16::from_be_bytes([tag[2], tag[3]]));
    }
    Ok((ethertype, rest))
}

/// What an ARP packet asks or says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum ArpOp {
    Request,
    Reply,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Arp {
    pub op: ArpOp,
    pub sender_mac: MacAddr,
    pub sender_ip: Ipv4Addr,
    pub target_mac: MacAddr,
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Writes the packet behind an Ethernet header (padded to 60 octets) and returns its length.
    ///
    /// # Errors
    /// [`EmitError::TooShort`], or [`EmitError::NoLinkHeader`] with [`LinkHeader::Ip`]; `buf` is
    /// then unchanged.
    pub fn emit(&self, link: &LinkHeader, buf: &mut [u8]) -> Result<usize, EmitError> {
        if link.is_empty() {
            return Err(EmitError::NoLinkHeader);
        }
        let too_short = EmitError::TooShort { need: MIN_FRAME_LEN, have: buf.len() };
        let frame = buf.get_mut(..MIN_FRAME_LEN).ok_or(too_short)?;
        frame.fill(0);
        let rest = link.emit(EtherTypes::Arp, frame).ok_or(too_short)?;
        let mut arp = MutableArpPacket::new(rest).ok_or(too_short)?;
        arp.set_hardware_type(ArpHardwareTypes::Ethernet);
        arp.set_protocol_type(EtherTypes::Ipv4);
        arp.set_hw_addr_len(6);
        arp.set_proto_addr_len(4);
        arp.set_operation(match self.op {
            ArpOp::Request => ArpOperations::Request,
            ArpOp::Reply => ArpOperations::Reply,
        });
        arp.set_sender_hw_addr(self.sender_mac.0.into());
        arp.set_sender_proto_addr(self.sender_ip.octets().into());
        arp.set_target_hw_addr(self.target_mac.0.into());
        arp.set_target_proto_addr(self.target_ip.octets().into());
        Ok(MIN_FRAME_LEN)
    }

    /// Parses what follows EtherType 0x0806; `None` for other operations, hardware or protocols.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Arp>, ParseError> {
        let arp = ArpPacket::new(bytes).ok_or(ParseError::Truncated(Layer::Arp))?;
        if arp.get_hardware_type() != ArpHardwareTypes::Ethernet
            || arp.get_protocol_type() != EtherTypes::Ipv4
        {
            return Ok(None);
        }
        if (arp.get_hw_addr_len(), arp.get_proto_addr_len()) != (6, 4) {
            return Err(ParseError::Malformed(Layer::Arp));
        }
        let op = match arp.get_operation() {
            ArpOperations::Request => ArpOp::Request,
            ArpOperations::Reply => ArpOp::Reply,
            _ => return Ok(None),
        };
        Ok(Some(Arp {
            op,
            sender_mac: MacAddr(arp.get_sender_hw_addr().octets()),
            sender_ip: arp.get_sender_proto_addr().octets().into(),
            target_mac: MacAddr(arp.get_target_hw_addr().octets()),
            target_ip: arp.get_target_proto_addr().octets().into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::parse as parse_tags;
    use super::*;
    use crate::wire::{Checksums, LinkType, Packet, parse};

    const A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);

    /// What Linux sends for this pair of addresses (tests/golden/linux-unfilled.pcap holds another).
    const REQUEST: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x06, // Ethernet
        0, 1, 0x08, 0, 6, 4, 0, 1, // who-has
        0x02, 0, 0, 0, 0, 0x0a, 10, 98, 0, 1, // from
        0, 0, 0, 0, 0, 0, 10, 98, 0, 2, // for
    ];

    fn request() -> Arp {
        Arp {
            op: ArpOp::Request,
            sender_mac: A,
            sender_ip: Ipv4Addr::new(10, 98, 0, 1),
            target_mac: MacAddr::default(),
            target_ip: Ipv4Addr::new(10, 98, 0, 2),
        }
    }

    #[test]
    fn arp_octets() {
        let mut buf = [0xee; 64];
        let link = LinkHeader::Ethernet { src: A, dst: MacAddr::BROADCAST, vlan: None };
        assert_eq!(request().emit(&link, &mut buf), Ok(60));
        assert_eq!(buf[..42], REQUEST);
        assert_eq!(buf[42..60], [0; 18], "padding must not leak what the buffer held");
        assert_eq!(buf[60..], [0xee; 4]);
        assert_eq!(
            parse(&REQUEST, LinkType::Ethernet, Checksums::Verify),
            Ok(Packet::Arp(request()))
        );
    }

    #[test]
    fn arp_round_trip_behind_a_tag() {
        let reply = Arp { op: ArpOp::Reply, sender_mac: B, target_mac: A, ..request() };
        let link = LinkHeader::Ethernet { src: B, dst: A, vlan: Some(0x6123) };
        let mut buf = [0; 60];
        assert_eq!(reply.emit(&link, &mut buf), Ok(60));
        assert_eq!(buf[12..18], [0x81, 0, 0x61, 0x23, 0x08, 0x06]);
        assert_eq!(parse(&buf, LinkType::Ethernet, Checksums::Verify), Ok(Packet::Arp(reply)));
    }

    #[test]
    fn arp_that_cannot_be_written() {
        let link = LinkHeader::Ethernet { src: A, dst: B, vlan: None };
        let mut buf = [0xee; 59];
        assert_eq!(
            request().emit(&link, &mut buf),
            Err(EmitError::TooShort { need: 60, have: 59 })
        );
        assert_eq!(request().emit(&LinkHeader::Ip, &mut buf), Err(EmitError::NoLinkHeader));
        assert_eq!(buf, [0xee; 59]);
    }

    #[test]
    fn arp_of_no_interest_or_broken() {
        let with = |at: usize, octet: u8| {
            let mut frame = REQUEST;
            frame[at] = octet;
            parse(&frame, LinkType::Ethernet, Checksums::Verify).map(|packet| format!("{packet:?}"))
        };
        assert_eq!(with(15, 6), Ok("Other".into()), "hardware type");
        assert_eq!(with(16, 0x86), Ok("Other".into()), "protocol type");
        assert_eq!(with(21, 8), Ok("Other".into()), "InARP");
        assert_eq!(with(18, 8), Err(ParseError::Malformed(Layer::Arp)));
        for len in 14..42 {
            assert_eq!(
                parse(&REQUEST[..len], LinkType::Ethernet, Checksums::Verify),
                Err(ParseError::Truncated(Layer::Arp))
            );
        }
    }

    #[test]
    fn tags() {
        let inner = [0x08, 0x00, 0xaa];
        let with = |tags: &[[u8; 4]]| {
            let mut frame = vec![0; 12];
            frame.extend(tags.as_flattened());
            frame.extend(inner);
            frame
        };
        let (q, ad, old) = ([0x81, 0, 0, 5], [0x88, 0xa8, 0, 6], [0x91, 0, 0, 7]);
        for tags in [&[][..], &[q], &[ad], &[ad, q], &[q, q], &[old, q]] {
            let frame = with(tags);
            assert_eq!(parse_tags(&frame), Ok((EtherTypes::Ipv4, &[0xaa][..])), "{tags:?}");
            for len in 0..frame.len() - 1 {
                assert_eq!(
                    parse_tags(&frame[..len]),
                    Err(ParseError::Truncated(Layer::Ethernet)),
                    "{tags:?} cut to {len}"
                );
            }
        }
        assert_eq!(
            parse(&with(&[q, q, q]), LinkType::Ethernet, Checksums::Verify),
            Ok(Packet::Other)
        );
    }

    #[test]
    fn mac_addresses_as_text() {
        let mac = MacAddr([0x02, 0xab, 0, 0x0f, 0xff, 0x7]);
        assert_eq!(mac.to_string(), "02:ab:00:0f:ff:07");
        assert_eq!("02:AB:00:0f:FF:07".parse(), Ok(mac));
        for wrong in
            ["", "02", "02:ab:00:0f:ff", "02:ab:00:0f:ff:07:", "2:ab:0:f:ff:7", "02:ab:00:0f:ff:+7"]
        {
            assert_eq!(wrong.parse::<MacAddr>(), Err(MacAddrError), "{wrong:?}");
        }
    }
}
