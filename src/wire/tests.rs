//! Properties of parsing and emitting as a whole.

use super::icmp::emit_error;
use super::*;
use pnet::packet::ethernet::EtherType;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const LINKS: [LinkType; 2] = [LinkType::Ethernet, LinkType::Ip];
const CHECKSUMS: [Checksums; 2] = [Checksums::Verify, Checksums::Trust];

fn link_type(link: &LinkHeader) -> LinkType {
    if link.is_empty() { LinkType::Ip } else { LinkType::Ethernet }
}

prop_compose! {
    fn any_link()(ethernet: bool, src: [u8; 6], dst: [u8; 6], vlan: Option<u16>) -> LinkHeader {
        if ethernet {
            LinkHeader::Ethernet { src: MacAddr(src), dst: MacAddr(dst), vlan }
        } else {
            LinkHeader::Ip
        }
    }
}

prop_compose! {
    fn any_ip()(v4: bool, src: u128, dst: u128, ttl: u8, id: u16) -> IpHeader {
        if v4 {
            let (src, dst) = (Ipv4Addr::from_bits(src as u32), Ipv4Addr::from_bits(dst as u32));
            IpHeader { src: src.into(), dst: dst.into(), ttl, id }
        } else {
            let (src, dst) = (Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst));
            IpHeader { src: src.into(), dst: dst.into(), ttl, id: 0 }
        }
    }
}

prop_compose! {
    /// Every combination that fits into 40 octets.
    fn any_options()(
        mss: Option<u16>,
        window_scale in prop::option::of(0u8..=14),
        sack_permitted: bool,
        timestamps in prop::option::of(any::<(u32, u32)>()),
        blocks in prop::collection::vec(any::<(u32, u32)>(), 0..=4),
    ) -> Options {
        let timestamps = timestamps.map(|(tsval, tsecr)| Timestamps { tsval, tsecr });
        let mut options =
            Options { mss, window_scale, sack_permitted, timestamps, sack: [None; 4] };
        for (at, (left, right)) in blocks.into_iter().enumerate() {
            let mut longer = options;
            longer.sack[at] = Some((SeqNumber(left), SeqNumber(right)));
            if options_len(&longer) <= 40 {
                options = longer;
            }
        }
        options
    }
}

/// The length that `Options::emit` promises, worked out independently.
fn options_len(options: &Options) -> usize {
    let blocks = options.sack.iter().flatten().count();
    4 * usize::from(options.mss.is_some())
        + 4 * usize::from(options.window_scale.is_some())
        + match (options.sack_permitted, options.timestamps) {
            (_, Some(_)) => 12,
            (true, None) => 4,
            (false, None) => 0,
        }
        + if blocks > 0 { 4 + 8 * blocks } else { 0 }
}

#[derive(Clone, Debug)]
struct Owned {
    ip: IpHeader,
    ports: (u16, u16),
    seq_ack: (u32, u32),
    flags: u8,
    wnd: u16,
    options: Options,
    payload: Vec<u8>,
}

impl Owned {
    fn segment(&self) -> Segment<'_> {
        Segment {
            ip: self.ip,
            src_port: self.ports.0,
            dst_port: self.ports.1,
            seq: SeqNumber(self.seq_ack.0),
            ack: SeqNumber(self.seq_ack.1),
            flags: Flags(self.flags),
            wnd: self.wnd,
            options: self.options,
            payload: &self.payload,
        }
    }

    fn frame(&self, link: &LinkHeader) -> Vec<u8> {
        let mut buf = vec![0xee; 2048];
        let len = self.segment().emit(link, &mut buf).unwrap();
        buf.truncate(len);
        buf
    }
}

prop_compose! {
    fn any_segment()(
        ip in any_ip(),
        ports: (u16, u16),
        seq_ack: (u32, u32),
        flags: u8,
        wnd: u16,
        options in any_options(),
        payload in prop_oneof![
            3 => Just(vec![]),
            1 => prop::collection::vec(any::<u8>(), 0..100),
            1 => prop::collection::vec(any::<u8>(), 1460),
        ],
    ) -> Owned {
        Owned { ip, ports, seq_ack, flags, wnd, options, payload }
    }
}

/// Frames of every kind that parse, so that mutations reach every parser.
fn any_frame() -> impl Strategy<Value = (Vec<u8>, LinkType)> {
    (any_segment(), any_link(), any_ip(), 0u8..5, any::<(u8, u8)>()).prop_map(
        |(segment, link, reporter, shape, (icmp_type, code))| {
            let mut buf = vec![0; 4096];
            let len = match (shape, reporter.src, segment.ip.src) {
                (0 | 1, ..) => segment.segment().emit(&link, &mut buf).unwrap(),
                (2, IpAddr::V4(sender_ip), _) if !link.is_empty() => {
                    let (sender_mac, target_mac) = (MacAddr([2; 6]), MacAddr([4; 6]));
                    let target_ip = Ipv4Addr::BROADCAST;
                    let op = ArpOp::Reply;
                    Arp { op, sender_mac, sender_ip, target_mac, target_ip }
                        .emit(&link, &mut buf)
                        .unwrap()
                }
                (2 | 3, IpAddr::V6(src), _) if !link.is_empty() => {
                    let kind = NdKind::Advertisement {
                        router: code & 1 != 0,
                        solicited: shape == 2,
                        overrides: code & 2 != 0,
                    };
                    let (dst, target) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
                    let mac = (code & 4 != 0).then_some(MacAddr([2; 6]));
                    Nd { kind, src, dst, target, mac }.emit(&link, &mut buf).unwrap()
                }
                _ => {
                    let quote = segment.frame(&LinkHeader::Ip);
                    let icmp_type = [1, 2, 3, 4, 11, 12][usize::from(icmp_type) % 6];
                    let ip = IpHeader { dst: segment.ip.src, ..segment.ip };
                    emit_error(&ip, icmp_type, code, &quote, &link, &mut buf).unwrap()
                }
            };
            buf.truncate(len);
            (buf, link_type(&link))
        },
    )
}

proptest! {
    #[test]
    fn segment_round_trip(segment in any_segment(), link in any_link(), padding in 0usize..60) {
        let mut frame = segment.frame(&link);
        let ip_len = if segment.ip.src.is_ipv4() { 20 } else { 40 };
        prop_assert_eq!(
            frame.len(),
            link.len() + ip_len + 20 + options_len(&segment.options) + segment.payload.len()
        );
        // Ethernet pads short frames, and not always with zeros.
        frame.extend(std::iter::repeat_n(0xa5, padding));
        for checksums in CHECKSUMS {
            prop_assert_eq!(
                parse(&frame, link_type(&link), checksums),
                Ok(Packet::Tcp(segment.segment()))
            );
        }
    }

    #[test]
    fn icmp_round_trip(
        segment in any_segment(), link in any_link(), cut in prop::option::of(0usize..40),
        kind in 0usize..3, code: u8,
    ) {
        let v4 = segment.ip.src.is_ipv4();
        let icmp_type = if v4 { [3, 11, 12][kind] } else { [1, 2, 4][kind] };
        let mut quote = segment.frame(&LinkHeader::Ip);
        let ip_len = if v4 { 20 } else { 40 };
        if let Some(cut) = cut {
            quote.truncate(ip_len + cut);
        }
        let ip = IpHeader { dst: segment.ip.src, ..segment.ip };
        let mut buf = [0xee; 4096];
        let len = emit_error(&ip, icmp_type, code, &quote, &link, &mut buf).unwrap();
        let parsed = parse(&buf[..len], link_type(&link), Checksums::Verify);
        if quote.len() < ip_len + 8 {
            prop_assert_eq!(parsed, Err(ParseError::Truncated(Layer::Quote)));
        } else {
            let whole = segment.segment();
            let quoted = Quoted {
                src: (whole.ip.src, whole.src_port).into(),
                dst: (whole.ip.dst, whole.dst_port).into(),
                seq: whole.seq,
                ack: (quote.len() >= ip_len + 12).then_some(whole.ack),
                wnd: (quote.len() >= ip_len + 16).then_some(whole.wnd),
                ip_id: whole.ip.id,
            };
            prop_assert_eq!(parsed, Ok(Packet::Icmp(IcmpError { ip, icmp_type, code, quoted })));
        }
    }

    #[test]
    fn a_short_buffer_is_refused_and_left_alone(
        segment in any_segment(), link in any_link(), at: prop::sample::Index,
    ) {
        let need = segment.frame(&link).len();
        let have = at.index(need);
        let mut buf = vec![0xee; have];
        prop_assert_eq!(
            segment.segment().emit(&link, &mut buf),
            Err(EmitError::TooShort { need, have })
        );
        prop_assert!(buf.iter().all(|&octet| octet == 0xee));
    }

    #[test]
    fn a_truncated_frame_is_never_a_segment(
        segment in any_segment(), link in any_link(), checksums in prop::sample::select(&CHECKSUMS),
    ) {
        let frame = segment.frame(&link);
        for len in 0..frame.len() {
            let parsed = parse(&frame[..len], link_type(&link), checksums);
            prop_assert!(matches!(parsed, Err(ParseError::Truncated(_))), "{len}: {parsed:?}");
        }
    }

    #[test]
    fn one_wrong_octet_is_noticed(
        segment in any_segment(), link in any_link(), at: prop::sample::Index, flip in 1u8..,
    ) {
        let mut frame = segment.frame(&link);
        // By chance, once in 65,536, the checksum looks as if it were left to the device.
        let IpHeader { src, dst, .. } = segment.ip;
        let tcp = &frame[link.len() + if src.is_ipv4() { 20 } else { 40 }..];
        let pseudo = checksum::pseudo_header(src, dst, 6, tcp.len() as u32);
        prop_assume!(tcp[16..18] != pseudo.to_be_bytes());
        let at = link.len() + at.index(frame.len() - link.len());
        // A sum cannot tell 0000 from ffff.
        let word = at - (at - link.len()) % 2;
        let before = frame[word..].first_chunk::<2>().copied();
        frame[at] ^= flip;
        let after = frame[word..].first_chunk::<2>().copied();
        prop_assume!(before.is_none() || ![before, after].iter().all(|word|
            matches!(word, Some([0, 0] | [0xff, 0xff]))));
        let parsed = parse(&frame, link_type(&link), Checksums::Verify);
        // Only fields outside every checksum may have changed: the hop limit, for one.
        if let Ok(Packet::Tcp(mut parsed)) = parsed {
            if segment.ip.src.is_ipv6() {
                parsed.ip.ttl = segment.ip.ttl;
            }
            prop_assert_eq!(parsed, segment.segment());
        }
    }

    #[test]
    fn arbitrary_octets_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for link in LINKS {
            for checksums in CHECKSUMS {
                if let Ok(packet) = parse(&bytes, link, checksums) {
                    prop_assert!(!describe(&packet).to_string().is_empty());
                }
            }
        }
    }

    #[test]
    fn mutated_frames_do_not_panic(
        (mut frame, link) in any_frame(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        prop_assert!(parse(&frame, link, Checksums::Verify).is_ok());
        for (at, octet) in changes {
            // Mostly headers: that is where lengths are.
            let at = at.index(frame.len().min(100));
            frame[at] = octet;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        for link in LINKS {
            for checksums in CHECKSUMS {
                if let Ok(packet) = parse(&frame, link, checksums) {
                    prop_assert!(!describe(&packet).to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_written() {
    let v4 = IpAddr::from([10, 0, 0, 1]);
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let sound = Owned {
        ip: IpHeader { src: v4, dst: v4, ttl: 64, id: 0 },
        ports: (1, 2),
        seq_ack: (3, 4),
        flags: 0x10,
        wnd: 5,
        options: Options::default(),
        payload: vec![],
    };
    let mut buf = vec![0xee; 70_000];
    let mut emit = |owned: &Owned| owned.segment().emit(&LinkHeader::Ip, &mut buf);

    let mixed = Owned { ip: IpHeader { dst: v6, ..sound.ip }, ..sound.clone() };
    assert_eq!(emit(&mixed), Err(EmitError::MixedFamilies));
    let largest = Owned { payload: vec![0; 65_495], ..sound.clone() };
    assert_eq!(emit(&largest), Ok(65_535));
    let too_large = Owned { payload: vec![0; 65_496], ..sound.clone() };
    assert_eq!(emit(&too_large), Err(EmitError::TooLarge));

    let block = Some((SeqNumber(1), SeqNumber(2)));
    let timestamps = Some(Timestamps { tsval: 1, tsecr: 2 });
    let options = Options { timestamps, sack: [block; 4], ..Options::default() };
    assert_eq!(emit(&Owned { options, ..sound.clone() }), Err(EmitError::TooLarge));
    let options = Options { timestamps, sack: [block, block, block, None], ..options };
    assert_eq!(emit(&Owned { options, ..sound }), Ok(80));
}

#[test]
fn frames_of_no_interest() {
    let other =
        |frame: &[u8], link| assert_eq!(parse(frame, link, Checksums::Verify), Ok(Packet::Other));
    let ethernet = |ethertype: EtherType| {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&ethertype.0.to_be_bytes());
        frame
    };
    other(&ethernet(EtherTypes::Lldp), LinkType::Ethernet);
    other(&ethernet(EtherType(46)), LinkType::Ethernet); // a length: 802.3
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        assert_eq!(
            parse(&[version << 4; 60], LinkType::Ip, Checksums::Verify),
            Err(ParseError::Malformed(Layer::Ipv4))
        );
    }
    assert_eq!(
        parse(&[], LinkType::Ip, Checksums::Verify),
        Err(ParseError::Truncated(Layer::Ipv4))
    );
    let v6_in_v4 = {
        let mut frame = ethernet(EtherTypes::Ipv4);
        frame[14] = 0x60;
        frame
    };
    assert_eq!(
        parse(&v6_in_v4, LinkType::Ethernet, Checksums::Verify),
        Err(ParseError::Malformed(Layer::Ipv4))
    );
}
