//! What crafting a frame costs: a patched template beside the same segment emitted in full.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use keepsweep::io::{PathId, PathInfo};
use keepsweep::probe::craft::{Crafter, Outgoing, WINDOW};
use keepsweep::probe::flow::SegmentKind;
use keepsweep::wire::{
    Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Segment, SeqNumber,
};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 1));
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const NEXT_HOP: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// The `n`th frame of a sweep: every variable field differs from the one before.
fn outgoing(kind: SegmentKind, n: u32) -> Outgoing {
    Outgoing {
        kind,
        mac: NEXT_HOP,
        local_port: 61_000 + (n & 0xfff) as u16,
        peer: SocketAddr::from((Ipv4Addr::from_bits(0x0a63_0000 + (n & 0xffff)), 443)),
        seq: SeqNumber(n.wrapping_mul(0x9e37_79b9)),
        ack: (kind != SegmentKind::Syn).then_some(SeqNumber(!n)),
        wnd: WINDOW - (n % 8) as u16,
        tos: 0,
        ip_id: n as u16,
        timestamps: None,
    }
}

fn segment(outgoing: &Outgoing, flags: Flags, mss: Option<u16>) -> Segment<'static> {
    Segment {
        ip: IpHeader { src: SOURCE, dst: outgoing.peer.ip(), ttl: 64, id: outgoing.ip_id },
        src_port: outgoing.local_port,
        dst_port: outgoing.peer.port(),
        seq: outgoing.seq,
        ack: outgoing.ack.unwrap_or(SeqNumber(0)),
        flags,
        wnd: outgoing.wnd,
        options: Options { mss, ..Options::default() },
        payload: if outgoing.kind == SegmentKind::Probe1 { &[0] } else { &[] },
    }
}

fn craft(c: &mut Criterion) {
    let path = PathInfo {
        id: PathId(0),
        interface: "bench0".into(),
        link: LinkType::Ethernet,
        mac: MAC,
        mtu: 1500,
    };
    let crafter = Crafter::new(&path, SOURCE).expect("a template fits");
    let link = LinkHeader::Ethernet { src: MAC, dst: NEXT_HOP, vlan: None };
    let mut group = c.benchmark_group("craft");
    for (name, kind, flags, mss) in [
        ("syn", SegmentKind::Syn, Flags::SYN, Some(1460)),
        ("probe-0", SegmentKind::Probe0, Flags::ACK, None),
        ("probe-1", SegmentKind::Probe1, Flags::ACK, None),
    ] {
        let (mut patched, mut emitted) = ([0; 128], [0; 128]);
        let one = outgoing(kind, 7);
        let len = crafter.emit(&one, &mut patched).expect("enough room");
        let full = segment(&one, flags, mss).emit(&link, &mut emitted).expect("enough room");
        assert_eq!(patched[..len], emitted[..full], "both write the same frame");

        let mut n = 0u32;
        group.bench_function(format!("{name}/template"), |b| {
            b.iter(|| {
                n = n.wrapping_add(1);
                crafter.emit(black_box(&outgoing(kind, n)), black_box(&mut patched))
            });
        });
        group.bench_function(format!("{name}/full"), |b| {
            b.iter(|| {
                n = n.wrapping_add(1);
                segment(black_box(&outgoing(kind, n)), flags, mss)
                    .emit(&link, black_box(&mut emitted))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, craft);
criterion_main!(benches);
