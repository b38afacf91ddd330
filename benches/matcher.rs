//! What a reply costs from its first octet to the flow it belongs to: parse, look up, judge.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use keepsweep::probe::Slot;
use keepsweep::probe::matcher::{ReplyKind, match_icmp, match_segment};
use keepsweep::probe::table::{Expect, Family, FlowKey, Past, Phase, Table};
use keepsweep::time::Instant;
use keepsweep::wire::icmp::emit_error;
use keepsweep::wire::{
    Checksums, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Packet, Segment, SeqNumber,
    parse,
};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const LINK: LinkHeader =
    LinkHeader::Ethernet { src: MacAddr([2; 6]), dst: MacAddr([4; 6]), vlan: None };
/// Frames in turn, of random flows: their slots are not in the nearest caches when they come round.
const FRAMES: u32 = 4_096;

fn key(n: u32) -> FlowKey {
    FlowKey {
        local: SocketAddr::from((SOURCE, 61_000 + (n % 4_000) as u16)),
        peer: SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + n), 443)),
    }
}

/// A flow with a keepalive outstanding.
fn expect(n: u32) -> Expect {
    Expect {
        phase: Phase::Open,
        snd_una: SeqNumber(n),
        snd_nxt: SeqNumber(n),
        rcv_nxt: SeqNumber(!n),
        past: Past::UNKNOWN,
        probe_ack: SeqNumber(!n),
        probe_outstanding: true,
        given: false,
    }
}

fn segment(from: SocketAddr, to: SocketAddr, flags: Flags) -> Segment<'static> {
    Segment {
        ip: IpHeader { src: from.ip(), dst: to.ip(), ttl: 64, id: 0 },
        src_port: from.port(),
        dst_port: to.port(),
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags,
        wnd: 64_240,
        options: Options::default(),
        payload: &[],
    }
}

fn emit(segment: &Segment<'_>, link: &LinkHeader) -> Vec<u8> {
    let mut frame = vec![0; 256];
    let len = segment.emit(link, &mut frame).expect("enough room");
    frame.truncate(len);
    frame
}

fn ack(n: u32) -> Vec<u8> {
    let FlowKey { local, peer } = key(n);
    let seq = SeqNumber(!n);
    emit(&Segment { seq, ack: SeqNumber(n), ..segment(peer, local, Flags::ACK) }, &LINK)
}

fn rst(n: u32) -> Vec<u8> {
    let FlowKey { local, peer } = key(n);
    emit(&Segment { seq: SeqNumber(!n), ..segment(peer, local, Flags::RST) }, &LINK)
}

fn icmp(n: u32) -> Vec<u8> {
    let FlowKey { local, peer } = key(n);
    let probe = Segment { seq: SeqNumber(n) - 1, ..segment(local, peer, Flags::ACK) };
    let router = IpAddr::from([10, 98, 0, 254]);
    let ip = IpHeader { src: router, dst: SOURCE.into(), ttl: 63, id: 0 };
    let mut frame = vec![0; 256];
    let quoted = emit(&probe, &LinkHeader::Ip);
    let len = emit_error(&ip, 3, 1, &quoted, &LINK, &mut frame).expect("enough room");
    frame.truncate(len);
    frame
}

fn receive(table: &Table, frame: &[u8]) -> Option<ReplyKind> {
    let reply = match parse(frame, LinkType::Ethernet, Checksums::Verify).ok()? {
        Packet::Tcp(segment) => match_segment(table, &segment, Instant::ZERO),
        Packet::Icmp(error) => match_icmp(table, &error, Instant::ZERO),
        _ => return None,
    };
    reply.ok().map(|reply| reply.kind)
}

fn matching(c: &mut Criterion) {
    for flows in [10_000, 1_000_000] {
        let table = Table::with_capacity(flows as usize, Family::V4, [1, 2]);
        for n in 0..flows {
            table.insert(Slot(n), &key(n), &expect(n)).expect("an empty table has room");
        }
        let mut group = c.benchmark_group(format!("match/{flows}"));
        let mut rng = fastrand::Rng::with_seed(1);
        for (name, build) in [("ack", ack as fn(u32) -> Vec<u8>), ("rst", rst), ("icmp", icmp)] {
            let frames: Vec<_> = (0..FRAMES).map(|_| build(rng.u32(..flows))).collect();
            assert!(frames.iter().all(|frame| receive(&table, frame).is_some()), "{name}");
            let mut next = 0;
            group.bench_function(name, |b| {
                b.iter(|| {
                    next = (next + 1) % frames.len();
                    receive(&table, black_box(&frames[next]))
                });
            });
        }
        let stray: Vec<_> = (0..FRAMES).map(|n| ack(flows + n)).collect();
        let mut next = 0;
        group.bench_function("stray-ack", |b| {
            b.iter(|| {
                next = (next + 1) % stray.len();
                receive(&table, black_box(&stray[next]))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, matching);
criterion_main!(benches);
