//! Ethernet II with 802.1Q tags, and ARP (RFC 826).

use super::EmitError;
use std::net::Ipv4Addr;

/// A 48-bit MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    // Display as aa:bb:cc:dd:ee:ff
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
        todo!()
    }
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
    /// [`EmitError::TooShort`]; `buf` is then unchanged.
    pub fn emit(&self, link: &LinkHeader, buf: &mut [u8]) -> Result<usize, EmitError> {
        let _ = (link, buf);
        todo!()
    }
}
