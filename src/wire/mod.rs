//! Bytes ↔ segments: everything keepsweep reads from or writes into a frame.
//!
//! Total on arbitrary bytes: no panic, no unsafe. Host order everywhere.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod describe;
pub mod eth;
pub mod icmp;
pub mod ip;
pub mod nd;
pub mod pcap;
pub mod seq;
pub mod tcp;

use pnet::packet::ethernet::EtherTypes;
use pnet::packet::ip::IpNextHeaderProtocols;
use std::net::IpAddr;

pub use describe::describe;
pub use eth::{Arp, ArpOp, LinkHeader, MacAddr, MacAddrError};
pub use icmp::{IcmpError, IcmpKind, Quoted};
pub use ip::IpHeader;
pub use nd::{Nd, NdKind};
pub use pcap::{PcapReader, PcapWriter};
pub use seq::SeqNumber;
pub use tcp::{Flags, Options, Segment, Timestamps};

/// What the first octet of a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkType {
    /// An Ethernet header, with or without one or two 802.1Q tags.
    Ethernet,
    /// An IPv4 or IPv6 header (tun, wireguard, raw sockets).
    Ip,
}

/// How far the checksums of a received frame can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksums {
    /// Verify; a TCP checksum field that equals the pseudo-header sum is accepted too, since a
    /// kernel on the same machine leaves it so for the device to fill.
    Verify,
    /// The kernel says that they are verified or not yet filled (TP_STATUS_CSUM_VALID,
    /// TP_STATUS_CSUMNOTREADY).
    Trust,
}

/// A received frame, as far as keepsweep cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// A TCP segment.
    Tcp(Segment<'a>),
    /// An ICMP or ICMPv6 error that quotes a TCP segment.
    Icmp(IcmpError),
    /// An ARP request or reply for IPv4 over Ethernet.
    Arp(Arp),
    /// A Neighbour Solicitation or Advertisement.
    Nd(Nd),
    /// Well-formed, and of no interest: other protocols, echo, non-first fragments.
    Other,
}

/// The layer at which a frame could not be parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Layer {
    Ethernet,
    Arp,
    Ipv4,
    Ipv6,
    Tcp,
    Icmp,
    Nd,
    Quote,
}

/// Why a frame could not be parsed. A malformed frame is a counter, never an abort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum ParseError {
    /// The frame ends before the header does.
    #[error("{0:?}: truncated")]
    Truncated(Layer),
    /// A version, header length, total length or option length that contradicts the frame.
    #[error("{0:?}: malformed")]
    Malformed(Layer),
    /// The checksum is wrong.
    #[error("{0:?}: wrong checksum")]
    Checksum(Layer),
}

/// Why a packet could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EmitError {
    /// The buffer is too short; it is then unchanged.
    #[error("buffer of {have} octets, {need} needed")]
    TooShort {
        /// Octets needed.
        need: usize,
        /// Octets there are.
        have: usize,
    },
    /// Source and destination are not of one address family.
    #[error("source and destination differ in address family")]
    MixedFamilies,
    /// The TCP options take more than 40 octets, or the packet more than 65,535.
    #[error("packet too large")]
    TooLarge,
    /// Address resolution without a link header to carry it.
    #[error("address resolution needs an Ethernet header")]
    NoLinkHeader,
}

/// Parses a received frame down to the part keepsweep matches on.
///
/// What follows the IP packet (Ethernet padding, a frame check sequence) is cut off. Every fragment
/// is [`Packet::Other`], the first one too: neither its length nor its checksum can be known.
///
/// # Errors
/// A frame that is truncated, contradicts itself, or (with [`Checksums::Verify`]) carries a wrong
/// IPv4 header, TCP or ICMP checksum.
#[inline]
pub fn parse(frame: &[u8], link: LinkType, checksums: Checksums) -> Result<Packet<'_>, ParseError> {
    let upper = match link {
        LinkType::Ethernet => match eth::parse(frame)? {
            (EtherTypes::Ipv4, bytes) => ip::parse_v4(bytes, checksums)?,
            (EtherTypes::Ipv6, bytes) => ip::parse_v6(bytes)?,
            (EtherTypes::Arp, bytes) => {
                return Ok(Arp::parse(bytes)?.map_or(Packet::Other, Packet::Arp));
            }
            _ => return Ok(Packet::Other),
        },
        LinkType::Ip => match frame.first().map(|octet| octet >> 4) {
            None => return Err(ParseError::Truncated(Layer::Ipv4)),
            Some(6) => ip::parse_v6(frame)?,
            // A version that is neither is for the IPv4 parser to refuse.
            Some(_) => ip::parse_v4(frame, checksums)?,
        },
    };
    let Some(upper) = upper else { return Ok(Packet::Other) };
    match (upper.protocol, upper.ip.src) {
        (IpNextHeaderProtocols::Tcp, _) => Ok(Packet::Tcp(Segment::parse(upper, checksums)?)),
        (IpNextHeaderProtocols::Icmpv6, IpAddr::V6(_)) if nd::is_nd(upper.bytes) => {
            Nd::parse(upper, checksums).map(Packet::Nd)
        }
        (IpNextHeaderProtocols::Icmp, IpAddr::V4(_))
        | (IpNextHeaderProtocols::Icmpv6, IpAddr::V6(_)) => {
            Ok(IcmpError::parse(upper, checksums)?.map_or(Packet::Other, Packet::Icmp))
        }
        _ => Ok(Packet::Other),
    }
}

#[cfg(test)]
mod tests;
