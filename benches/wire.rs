//! What it costs to read and write one frame.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keepsweep::wire::icmp::emit_error;
use keepsweep::wire::{
    Checksums, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Segment, SeqNumber,
    Timestamps, checksum, parse,
};
use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};

const LINK: LinkHeader =
    LinkHeader::Ethernet { src: MacAddr([2; 6]), dst: MacAddr([4; 6]), vlan: None };

fn ack(src: IpAddr, dst: IpAddr) -> Segment<'static> {
    Segment {
        ip: IpHeader { src, dst, ttl: 64, id: 7 },
        src_port: 61_007,
        dst_port: 8080,
        seq: SeqNumber(0x0102_0304),
        ack: SeqNumber(0x0506_0708),
        flags: Flags::ACK,
        wnd: 64_240,
        options: Options::default(),
        payload: &[],
    }
}

fn v4() -> Segment<'static> {
    ack([10, 98, 0, 1].into(), [10, 99, 0, 7].into())
}

fn v6() -> Segment<'static> {
    ack(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::from_bits(7).into())
}

fn with_timestamps(segment: Segment<'static>) -> Segment<'static> {
    let timestamps = Some(Timestamps { tsval: 1, tsecr: 2 });
    Segment { options: Options { timestamps, ..Options::default() }, ..segment }
}

fn frame(segment: &Segment<'_>, link: &LinkHeader) -> Vec<u8> {
    let mut buf = vec![0; 2048];
    let len = segment.emit(link, &mut buf).expect("2,048 octets are enough");
    buf.truncate(len);
    buf
}

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let mut icmp = vec![0; 2048];
    let quote = frame(&v4(), &LinkHeader::Ip);
    let len = emit_error(&v4().ip, 3, 1, &quote, &LINK, &mut icmp).expect("enough room");
    icmp.truncate(len);
    for (name, frame) in [
        ("ack", frame(&v4(), &LINK)),
        ("ack-v6", frame(&v6(), &LINK)),
        ("ack-timestamps", frame(&with_timestamps(v4()), &LINK)),
        ("icmp-error", icmp),
    ] {
        assert!(parse(&frame, LinkType::Ethernet, Checksums::Verify).is_ok());
        for (suffix, checksums) in [("", Checksums::Verify), ("-trusted", Checksums::Trust)] {
            group.bench_function(format!("{name}{suffix}"), |b| {
                b.iter(|| parse(black_box(&frame), LinkType::Ethernet, checksums));
            });
        }
    }
    group.finish();
}

fn emitting(c: &mut Criterion) {
    let mut group = c.benchmark_group("emit");
    let mut buf = [0; 2048];
    for (name, segment) in
        [("ack", v4()), ("ack-v6", v6()), ("ack-timestamps", with_timestamps(v4()))]
    {
        group.bench_function(name, |b| {
            b.iter(|| black_box(&segment).emit(&LINK, black_box(&mut buf)));
        });
    }
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    let payload = [0x5a; 1460];
    group.bench_function("update32", |b| {
        b.iter(|| checksum::update32(black_box(0x1234), black_box(5), black_box(6)));
    });
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("1460", |b| b.iter(|| checksum::internet(black_box(&payload))));
    group.finish();
}

criterion_group!(benches, parsing, emitting, checksums);
criterion_main!(benches);
