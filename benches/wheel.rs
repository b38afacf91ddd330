//! What the timer wheel costs per timer, from setting to expiry.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use keepsweep::probe::wheel::Wheel;
use keepsweep::probe::{Generation, Slot};
use keepsweep::time::Instant;
use std::hint::black_box;
use std::time::Duration;

fn wheel(c: &mut Criterion) {
    let mut group = c.benchmark_group("wheel");
    group.sample_size(20);
    for timers in [10_000u32, 1_000_000] {
        // Spread over 75 s, the longest interval of a profile: most timers move down twice.
        let mut rng = fastrand::Rng::with_seed(1);
        let deadlines: Vec<Instant> =
            (0..timers).map(|_| Instant::from_nanos(rng.u64(..75_000_000_000))).collect();
        group.throughput(Throughput::Elements(u64::from(timers)));
        group.bench_function(format!("schedule+expire/{timers}"), |b| {
            b.iter_batched_ref(
                || Wheel::new(Instant::ZERO),
                |wheel| {
                    for (n, deadline) in deadlines.iter().enumerate() {
                        wheel.schedule(*deadline, Slot(n as u32), Generation(0));
                    }
                    let mut now = Instant::ZERO;
                    while !wheel.is_empty() {
                        now = now + Duration::from_millis(1);
                        while let Some(entry) = wheel.poll(now) {
                            black_box(entry);
                        }
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, wheel);
criterion_main!(benches);
