//! What the flow table costs on the hot path.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use keepsweep::probe::Slot;
use keepsweep::probe::table::{Expect, Family, FlowKey, Past, Phase, Table};
use keepsweep::wire::SeqNumber;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

fn key(n: u32) -> FlowKey {
    FlowKey {
        local: SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 61_000 + (n % 4_000) as u16)),
        peer: SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + n), 443)),
    }
}

fn expect(n: u32) -> Expect {
    Expect {
        phase: Phase::Open,
        snd_una: SeqNumber(n),
        snd_nxt: SeqNumber(n),
        rcv_nxt: SeqNumber(n),
        past: Past::UNKNOWN,
        probe_ack: SeqNumber(n),
        probe_outstanding: true,
        given: false,
    }
}

fn table(c: &mut Criterion) {
    for flows in [10_000, 1_000_000] {
        let table = Table::with_capacity(flows as usize, Family::V4, [1, 2]);
        for n in 0..flows {
            table.insert(Slot(n), &key(n), &expect(n)).expect("an empty table has room");
        }
        let mut group = c.benchmark_group(format!("table/{flows}"));
        // Random order: a sweep meets its flows in an order that no cache foresees.
        let mut rng = fastrand::Rng::with_seed(1);
        group.bench_function("lookup-hit", |b| {
            b.iter(|| table.lookup(black_box(&key(rng.u32(..flows)))));
        });
        group.bench_function("lookup-miss", |b| {
            b.iter(|| table.lookup(black_box(&key(flows + rng.u32(..flows)))));
        });
        group.bench_function("publish", |b| {
            b.iter(|| table.publish(Slot(rng.u32(..flows)), black_box(&expect(7))));
        });
        let mut fresh = flows;
        group.bench_function("remove+insert", |b| {
            b.iter(|| {
                let slot = Slot(rng.u32(..flows));
                // 2^24 addresses hold more tuples than are ever in the table at once.
                fresh = fresh.wrapping_add(1) & 0xff_ffff;
                table.remove(slot);
                // A tuple that comes round while it is still held is refused, at the same cost.
                black_box(table.insert(slot, &key(fresh), &expect(fresh))).ok()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, table);
criterion_main!(benches);
