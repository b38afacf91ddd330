//! Craft by template, then patch: each segment kind is emitted once per path and source address,
//! and every frame is a copy with its own addresses, ports and numbers and incremental checksums.
#![forbid(unsafe_code)]

use crate::io::PathInfo;
use crate::probe::flow::SegmentKind;
use crate::wire::{
    Arp, ArpOp, EmitError, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Nd, Options, Segment,
    SeqNumber, Timestamps, checksum, nd,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The receive window that we advertise: what Linux offers at first on Ethernet. Repeats differ by
/// one, since Linux conntrack shortens the entry of a flow that repeats itself exactly.
pub const WINDOW: u16 = 64_240;
const TTL: u8 = 64;
/// IPv4 and TCP header without options, IPv6 and TCP header without options.
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = 60;

/// A frame could not be crafted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CraftError {
    /// The buffer is too short; it is then unchanged.
    #[error("frame of {need} octets does not fit a buffer of {have}")]
    TooShort {
        /// Octets needed.
        need: usize,
        /// Octets there are.
        have: usize,
    },
    /// The peer's address family is not the template's.
    #[error("peer and source differ in address family")]
    MixedFamilies,
}

/// One segment to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// What it is.
    pub kind: SegmentKind,
    /// MAC address of the next hop.
    pub mac: MacAddr,
    /// Our port.
    pub local_port: u16,
    /// The peer.
    pub peer: SocketAddr,
    /// SEG.SEQ.
    pub seq: SeqNumber,
    /// SEG.ACK; `None` leaves the ACK flag out.
    pub ack: Option<SeqNumber>,
    /// SEG.WND.
    pub wnd: u16,
    /// The TOS or traffic class octet.
    pub tos: u8,
    /// IPv4 identification.
    pub ip_id: u16,
    /// The timestamps option; a SYN never has it.
    pub timestamps: Option<Timestamps>,
}

/// Writes frames of every kind for one path and one source address.
#[derive(Clone, Debug)]
pub struct Crafter {
    bare: Template,
    byte: Template,
    syn: Template,
    /// With NOP, NOP and timestamps (RFC 7323 appendix A).
    stamped_bare: Template,
    stamped_byte: Template,
}

impl Crafter {
    /// Emits the templates.
    ///
    /// # Errors
    /// [`EmitError`] only if a template would not fit its buffer, which no interface causes.
    pub fn new(path: &PathInfo, source: IpAddr) -> Result<Self, EmitError> {
        let headers = if source.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
        let mss = Options { mss: Some(path.mtu.saturating_sub(headers)), ..Options::default() };
        let timestamps = Some(Timestamps { tsval: 0, tsecr: 0 });
        let stamped = Options { timestamps, ..Options::default() };
        Ok(Crafter {
            bare: Template::new(path, source, Options::default(), &[])?,
            byte: Template::new(path, source, Options::default(), &[0])?,
            syn: Template::new(path, source, mss, &[])?,
            stamped_bare: Template::new(path, source, stamped, &[])?,
            stamped_byte: Template::new(path, source, stamped, &[0])?,
        })
    }

    /// Writes `segment` into `buf` and returns its length in octets.
    ///
    /// Keepalives have SEG.SEQ = SND.UNA − 1, SEG.LEN 0 or 1 (RFC 9293 §3.8.4); that octet lies
    /// before SND.UNA, so a live peer discards it.
    ///
    /// # Errors
    /// [`CraftError`]; `buf` is then unchanged.
    #[inline]
    pub fn emit(&self, segment: &Outgoing, buf: &mut [u8]) -> Result<usize, CraftError> {
        let template = match (segment.kind, segment.timestamps) {
            (SegmentKind::Syn, _) => &self.syn,
            (SegmentKind::Probe1, None) => &self.byte,
            (SegmentKind::Probe1, Some(_)) => &self.stamped_byte,
            (_, None) => &self.bare,
            (_, Some(_)) => &self.stamped_bare,
        };
        template.patch(segment, buf)
    }
}

fn flags(kind: SegmentKind, has_ack: bool) -> Flags {
    let own = match kind {
        SegmentKind::Syn => Flags::SYN,
        SegmentKind::Fin => Flags::FIN,
        SegmentKind::Rst => Flags::RST,
        SegmentKind::Ack | SegmentKind::Probe0 | SegmentKind::Probe1 => Flags(0),
    };
    if has_ack { own.union(Flags::ACK) } else { own }
}

/// Room for the longest template: IPv6 with timestamps and one octet, 87.
const ROOM: usize = 128;
/// What most templates fit into: half as much to copy, and one cache line to write.
const SHORT: usize = 64;

/// An emitted frame whose variable fields are all zero.
#[derive(Clone, Debug)]
struct Template {
    frame: [u8; ROOM],
    len: usize,
    layout: Layout,
    shape: Shape,
    v4: bool,
    /// The octet of the TCP header that says how long it is.
    data_offset: u8,
    /// What the IPv4 header checksum is made of, without the fields that are filled in.
    ip_sum: u64,
    /// The same of the TCP checksum.
    tcp_sum: u64,
}

/// Which of the layouts that have a branch of their own a template has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// No options and no data.
    BareEthernetV4,
    ShortEthernetV4,
    ShortIpV4,
    Other,
}

/// Where a template's headers begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layout {
    ip_at: usize,
    tcp_at: usize,
    /// Whether it has timestamps, TSval 24 octets after the TCP header begins, and TSecr behind it.
    stamped: bool,
}

/// The layouts of nearly every frame of a sweep.
const ETHERNET_V4: Layout = Layout { ip_at: 14, tcp_at: 34, stamped: false };
const BARE_ETHERNET_V4_LEN: usize = ETHERNET_V4.tcp_at + 20;
const IP_V4: Layout = Layout { ip_at: 0, tcp_at: 20, stamped: false };

impl Template {
    fn new(
        path: &PathInfo,
        source: IpAddr,
        options: Options,
        data: &[u8],
    ) -> Result<Self, EmitError> {
        let v4 = source.is_ipv4();
        let link = match path.link {
            LinkType::Ethernet => {
                LinkHeader::Ethernet { src: path.mac, dst: MacAddr::default(), vlan: None }
            }
            LinkType::Ip => LinkHeader::Ip,
        };
        let dst: IpAddr =
            if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let segment = Segment {
            ip: IpHeader { src: source, dst, ttl: TTL, id: 0 },
            src_port: 0,
            dst_port: 0,
            seq: SeqNumber(0),
            ack: SeqNumber(0),
            flags: Flags(0),
            wnd: 0,
            options,
            payload: data,
        };
        let mut frame = [0; ROOM];
        let len = segment.emit(&link, &mut frame)?;
        let ip_at = link.len();
        let tcp_at = ip_at + if v4 { 20 } else { 40 };
        let sum = |at: usize| u64::from(!u16::from_be_bytes([frame[at], frame[at + 1]]));
        let ip_sum = if v4 { sum(ip_at + 10) } else { 0 };
        let (tcp_sum, stamped) = (sum(tcp_at + 16), options.timestamps.is_some());
        let layout = Layout { ip_at, tcp_at, stamped };
        let shape = match layout {
            ETHERNET_V4 if len == BARE_ETHERNET_V4_LEN => Shape::BareEthernetV4,
            ETHERNET_V4 if len <= SHORT => Shape::ShortEthernetV4,
            IP_V4 if len <= SHORT => Shape::ShortIpV4,
            _ => Shape::Other,
        };
        let data_offset = frame[tcp_at + 12];
        Ok(Template { frame, len, layout, shape, v4, data_offset, ip_sum, tcp_sum })
    }

    #[inline(always)]
    fn patch(&self, segment: &Outgoing, buf: &mut [u8]) -> Result<usize, CraftError> {
        let is_v4 = segment.peer.is_ipv4();
        // Nearly every frame: its length is known, too, and of the template only what is before the peer's
        // address stays.
        if self.shape == Shape::BareEthernetV4
            && is_v4
            && let Some(to) = buf.first_chunk_mut::<SHORT>()
        {
            const STAYS: usize = 32;
            const { assert!(ETHERNET_V4.tcp_at - 4 <= STAYS && BARE_ETHERNET_V4_LEN <= SHORT) };
            to[..STAYS].copy_from_slice(&self.frame[..STAYS]);
            let (need, have) = (BARE_ETHERNET_V4_LEN, SHORT);
            let filled = self.fill_in(ETHERNET_V4, segment, to);
            return filled.map(|()| need).ok_or(CraftError::TooShort { need, have });
        }
        let (need, have) = (self.len, buf.len());
        if have < need {
            return Err(CraftError::TooShort { need, have });
        }
        // Lengths and places that the compiler knows cost a few moves each. One branch a layout: what
        // branches have in common it would join, and call memcpy with a length again.
        let filled = match (buf.first_chunk_mut::<SHORT>(), self.frame.first_chunk::<SHORT>()) {
            (Some(to), Some(from)) if is_v4 && self.shape == Shape::ShortEthernetV4 => {
                *to = *from;
                self.fill_in(ETHERNET_V4, segment, to)
            }
            (Some(to), Some(from)) if is_v4 && self.shape == Shape::ShortIpV4 => {
                *to = *from;
                self.fill_in(IP_V4, segment, to)
            }
            _ if is_v4 != self.v4 => return Err(CraftError::MixedFamilies),
            // By value: whose address is given away must stand in memory, for the others too.
            _ => self.patch_any(*segment, &mut buf[..need]),
        };
        filled.ok_or(CraftError::TooShort { need, have })?;
        Ok(need)
    }

    #[inline(never)]
    fn patch_any(&self, segment: Outgoing, frame: &mut [u8]) -> Option<()> {
        frame.copy_from_slice(&self.frame[..frame.len()]);
        self.fill_in(self.layout, &segment, frame)
    }

    /// Writes what differs into `frame`, where the rest of the template stands already; `None` if it is too
    /// short for its own headers.
    #[inline(always)]
    fn fill_in(&self, layout: Layout, segment: &Outgoing, frame: &mut [u8]) -> Option<()> {
        // The address of the peer ends where the TCP header begins: its last word goes with the ports.
        let (before, fields) = frame.split_at_mut_checked(layout.tcp_at - 4)?;
        let (fields, behind) = fields.split_first_chunk_mut::<24>()?;
        let (link, ip) = before.split_at_mut_checked(layout.ip_at)?;
        if let Some(mac) = link.first_chunk_mut() {
            *mac = segment.mac.0;
        }
        // The template's fields are zero: a checksum is that of the template and the new words, summed
        // up and folded once (RFC 1071 §2).
        let mut sum = self.tcp_sum;
        let last_word = match segment.peer.ip() {
            IpAddr::V4(dst) => {
                let ip = ip.first_chunk_mut::<16>()?;
                let ip_sum = self.ip_sum + u64::from(segment.ip_id) + u64::from(dst.to_bits());
                let ip_sum = ip_sum + u64::from(segment.tos);
                if segment.tos != 0 {
                    ip[1] = segment.tos;
                }
                ip[4..6].copy_from_slice(&segment.ip_id.to_be_bytes());
                ip[10..12].copy_from_slice(&checksum::of_sum(ip_sum).to_be_bytes());
                sum += u64::from(dst.to_bits());
                dst.to_bits()
            }
            IpAddr::V6(dst) => {
                let ip = ip.first_chunk_mut::<36>()?;
                // The traffic class stands across octets; no checksum covers it.
                ip[0] |= segment.tos >> 4;
                ip[1] |= segment.tos << 4;
                ip[24..36].copy_from_slice(&dst.octets()[..12]);
                let words = dst.segments();
                sum += words.into_iter().map(u64::from).sum::<u64>();
                dst.to_bits() as u32
            }
        };
        let (local, peer) = (segment.local_port, segment.peer.port());
        let (seq, ack) = (segment.seq.0, segment.ack.map_or(0, |ack| ack.0));
        let flags = flags(segment.kind, segment.ack.is_some()).0;
        sum += u64::from(local) + u64::from(peer) + u64::from(seq) + u64::from(ack);
        sum += u64::from(flags) + u64::from(segment.wnd);
        // Neighbours together: a frame takes as long as it has writes.
        let ports = u64::from(local) << 16 | u64::from(peer);
        let ends = u64::from(last_word) << 32 | ports;
        let numbers = u64::from(seq) << 32 | u64::from(ack);
        fields[0..8].copy_from_slice(&ends.to_be_bytes());
        fields[8..16].copy_from_slice(&numbers.to_be_bytes());
        if let (true, Some(Timestamps { tsval, tsecr })) = (layout.stamped, segment.timestamps) {
            // Behind two octets of padding and the option's own kind and length.
            let stamps = behind.get_mut(4..12)?;
            stamps[..4].copy_from_slice(&tsval.to_be_bytes());
            stamps[4..].copy_from_slice(&tsecr.to_be_bytes());
            sum += u64::from(tsval) + u64::from(tsecr);
        }
        let [flags, wnd, sum] = [flags.into(), segment.wnd, checksum::of_sum(sum)].map(u64::from);
        let rest = u64::from(self.data_offset) << 56 | flags << 48 | wnd << 32 | sum << 16;
        fields[16..24].copy_from_slice(&rest.to_be_bytes());
        Some(())
    }
}

/// Writes the question for the MAC address of `next_hop`, an ARP request or a Neighbour Solicitation,
/// and returns its length in octets.
///
/// # Errors
/// [`CraftError`]; `buf` is then unchanged.
pub fn emit_solicitation(
    path: &PathInfo,
    source: IpAddr,
    next_hop: IpAddr,
    buf: &mut [u8],
) -> Result<usize, CraftError> {
    let to = |dst| LinkHeader::Ethernet { src: path.mac, dst, vlan: None };
    let have = buf.len();
    let emitted = match (source, next_hop) {
        (IpAddr::V4(sender_ip), IpAddr::V4(target_ip)) => {
            let (sender_mac, target_mac) = (path.mac, MacAddr::default());
            Arp { op: ArpOp::Request, sender_mac, sender_ip, target_mac, target_ip }
                .emit(&to(MacAddr::BROADCAST), buf)
        }
        (IpAddr::V6(source), IpAddr::V6(next_hop)) => {
            let solicitation = Nd::solicit(source, next_hop, path.mac);
            solicitation.emit(&to(nd::multicast_mac(solicitation.dst)), buf)
        }
        _ => return Err(CraftError::MixedFamilies),
    };
    emitted.map_err(|error| match error {
        EmitError::TooShort { need, .. } => CraftError::TooShort { need, have },
        _ => CraftError::MixedFamilies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::PathId;
    use crate::wire::{Checksums, Packet, parse};
    use proptest::prelude::*;

    fn path(link: LinkType) -> PathInfo {
        PathInfo {
            id: PathId(0),
            interface: "test0".into(),
            link,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        }
    }

    const KINDS: [SegmentKind; 6] = [
        SegmentKind::Syn,
        SegmentKind::Ack,
        SegmentKind::Probe0,
        SegmentKind::Probe1,
        SegmentKind::Fin,
        SegmentKind::Rst,
    ];

    proptest! {
        /// A patched template is, octet for octet, what emitting the segment in full gives.
        #[test]
        fn patched_equals_emitted(
            v4: bool, ethernet: bool, kind in 0usize..6, src: u128, dst: u128, mac: [u8; 6],
            ports: (u16, u16), seq: u32, ack: Option<u32>, wnd: u16, ip_id: u16,
            tos: u8, timestamps: Option<(u32, u32)>, spare in 0usize..41,
        ) {
            let address = |bits: u128| -> IpAddr {
                if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
            };
            let kind = KINDS[kind];
            let path = path(if ethernet { LinkType::Ethernet } else { LinkType::Ip });
            let outgoing = Outgoing {
                kind,
                mac: MacAddr(mac),
                local_port: ports.0,
                peer: SocketAddr::new(address(dst), ports.1),
                seq: SeqNumber(seq),
                ack: ack.map(SeqNumber),
                wnd,
                tos,
                ip_id: if v4 { ip_id } else { 0 },
                timestamps: timestamps.map(|(tsval, tsecr)| Timestamps { tsval, tsecr }),
            };
            let mss = path.mtu - if v4 { 40 } else { 60 };
            let segment = Segment {
                ip: IpHeader { src: address(src), dst: address(dst), ttl: 64, id: outgoing.ip_id },
                src_port: ports.0,
                dst_port: ports.1,
                seq: outgoing.seq,
                ack: SeqNumber(ack.unwrap_or(0)),
                flags: flags(kind, ack.is_some()),
                wnd,
                options: Options {
                    mss: (kind == SegmentKind::Syn).then_some(mss),
                    timestamps: outgoing.timestamps.filter(|_| kind != SegmentKind::Syn),
                    ..Options::default()
                },
                payload: if kind == SegmentKind::Probe1 { &[0] } else { &[] },
            };
            let link = if ethernet {
                LinkHeader::Ethernet { src: path.mac, dst: MacAddr(mac), vlan: None }
            } else {
                LinkHeader::Ip
            };
            let mut emitted = [0; 128];
            let full = segment.emit(&link, &mut emitted).unwrap();
            // What was sent from there before.
            let mut patched = vec![0xff; full + spare];
            let crafter = Crafter::new(&path, address(src)).unwrap();
            let len = crafter.emit(&outgoing, &mut patched).unwrap();
            // The TOS octet, whose checksum is verified below.
            let ip = if ethernet { 14 } else { 0 };
            match v4 {
                true => {
                    emitted[ip + 1] = tos;
                    emitted[ip + 10..ip + 12].copy_from_slice(&patched[ip + 10..ip + 12]);
                }
                false => {
                    emitted[ip] |= tos >> 4;
                    emitted[ip + 1] |= tos << 4;
                }
            }
            prop_assert_eq!(&patched[..len], &emitted[..full]);
            let parsed = parse(&patched[..len], path.link, Checksums::Verify);
            prop_assert_eq!(parsed, Ok(Packet::Tcp(segment)));
        }
    }

    #[test]
    fn next_hops_are_asked_for_in_their_own_way() {
        let path = path(LinkType::Ethernet);
        let mut buf = [7; 128];
        let mut ask = |source: &str, next_hop: &str| {
            let (source, next_hop) = (source.parse().unwrap(), next_hop.parse().unwrap());
            emit_solicitation(&path, source, next_hop, &mut buf).map(|len| buf[..len].to_vec())
        };
        let frame = ask("10.0.0.1", "10.0.0.2").unwrap();
        let Ok(Packet::Arp(arp)) = parse(&frame, LinkType::Ethernet, Checksums::Verify) else {
            panic!("no ARP")
        };
        assert_eq!((arp.op, arp.sender_mac), (ArpOp::Request, path.mac));
        assert_eq!(
            (arp.sender_ip.octets(), arp.target_ip.octets()),
            ([10, 0, 0, 1], [10, 0, 0, 2])
        );
        assert_eq!(frame[..6], [0xff; 6]);

        let frame = ask("fd00::1", "fd00::12:3456").unwrap();
        let asked =
            Nd::solicit("fd00::1".parse().unwrap(), "fd00::12:3456".parse().unwrap(), path.mac);
        let parsed = parse(&frame, LinkType::Ethernet, Checksums::Verify);
        assert_eq!(parsed, Ok(Packet::Nd(asked)));
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(frame[6..12], path.mac.0);

        assert_eq!(ask("fd00::1", "10.0.0.2"), Err(CraftError::MixedFamilies));
        let have = 60;
        let short = emit_solicitation(&path, asked.src.into(), asked.target.into(), &mut [0; 60]);
        assert_eq!(short, Err(CraftError::TooShort { need: 86, have }));
    }

    #[test]
    fn short_buffer_is_left_alone() {
        let crafter = Crafter::new(&path(LinkType::Ethernet), [10, 0, 0, 1].into()).unwrap();
        let outgoing = Outgoing {
            kind: SegmentKind::Probe0,
            mac: MacAddr::BROADCAST,
            local_port: 1,
            peer: ([10, 0, 0, 2], 80).into(),
            seq: SeqNumber(1),
            ack: None,
            wnd: WINDOW,
            tos: 0,
            ip_id: 0,
            timestamps: None,
        };
        let mut buf = [7; 53];
        let error = crafter.emit(&outgoing, &mut buf);
        assert_eq!(error, Err(CraftError::TooShort { need: 54, have: 53 }));
        assert_eq!(buf, [7; 53]);
    }
}
