//! Builds frames octet by octet, so that they do not depend on the code under test.

use pnet::packet::util::checksum;
use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;

/// A TCP segment and what is odd about the headers before it.
pub struct Segment {
    source: SocketAddr,
    dest: SocketAddr,
    flags: u8,
    payload_len: usize,
    protocol: u8,
    options: Vec<u8>,
    fragment: u16,
    extensions: Vec<(u8, Vec<u8>)>,
}

impl Segment {
    pub fn new(source: SocketAddr, dest: SocketAddr, flags: u8) -> Self {
        Segment {
            source,
            dest,
            flags,
            payload_len: 0,
            protocol: TCP,
            options: Vec::new(),
            fragment: 0,
            extensions: Vec::new(),
        }
    }

    pub fn with_payload(self, payload_len: usize) -> Self {
        Segment { payload_len, ..self }
    }

    pub fn with_protocol(self, protocol: u8) -> Self {
        Segment { protocol, ..self }
    }

    /// IPv4 options, a multiple of four octets.
    pub fn with_options(self, options: &[u8]) -> Self {
        Segment { options: options.to_vec(), ..self }
    }

    /// IPv4 flags and fragment offset.
    pub fn with_fragment(self, fragment: u16) -> Self {
        Segment { fragment, ..self }
    }

    /// IPv6 extension headers: type, and everything after the octet "next header".
    pub fn with_extensions(self, extensions: &[(u8, &[u8])]) -> Self {
        let extensions = extensions.iter().map(|(kind, rest)| (*kind, rest.to_vec())).collect();
        Segment { extensions, ..self }
    }

    fn tcp(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.dest.port().to_be_bytes());
        bytes.extend(1_000_u32.to_be_bytes());
        bytes.extend(2_000_u32.to_be_bytes());
        bytes.extend([0x50, self.flags]);
        bytes.extend(1_024_u16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(vec![0; self.payload_len]);
        let mut summed = match (self.source.ip(), self.dest.ip()) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => [source.octets(), dest.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(dest)) => [source.octets(), dest.octets()].concat(),
            _ => panic!("mixed families"),
        };
        summed.extend([0, TCP]);
        summed.extend((bytes.len() as u16).to_be_bytes());
        summed.extend(&bytes);
        let sum = checksum(&summed, usize::MAX);
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let tcp = self.tcp();
        match (self.source.ip(), self.dest.ip()) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => {
                let header_len = 20 + self.options.len();
                let mut bytes = vec![0x40 | (header_len / 4) as u8, 0];
                bytes.extend(((header_len + tcp.len()) as u16).to_be_bytes());
                bytes.extend([0, 7]);
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([64, self.protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(dest.octets());
                bytes.extend(&self.options);
                let sum = checksum(&bytes, 5);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(tcp);
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(dest)) => {
                let kinds = self.extensions.iter().map(|(kind, _)| *kind);
                let mut next = kinds.chain([self.protocol]);
                let first = next.next().unwrap();
                let extensions: Vec<u8> = self
                    .extensions
                    .iter()
                    .flat_map(|(_, rest)| [next.next().unwrap()].into_iter().chain(rest.clone()))
                    .collect();
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend(((extensions.len() + tcp.len()) as u16).to_be_bytes());
                bytes.extend([first, 64]);
                bytes.extend(source.octets());
                bytes.extend(dest.octets());
                bytes.extend(extensions);
                bytes.extend(tcp);
                bytes
            }
            _ => panic!("mixed families"),
        }
    }
}

/// To us, from the peer.
pub fn ethernet(segment: &Segment) -> Vec<u8> {
    tagged(segment, &[])
}

/// As [`ethernet`], with VLAN tags (TPID, TCI), outermost first.
pub fn tagged(segment: &Segment, tags: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = [super::lab::OURS_MAC, super::lab::PEER_MAC].concat();
    for (tpid, tci) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    let ethertype: u16 = if segment.source.is_ipv4() { 0x0800 } else { 0x86dd };
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(segment.packet());
    bytes
}
