//! A million established flows on a path that loses 5 % each way.

use crate::support::{Outcome, plan, sweep};
use keepsweep::io::sim::{Behaviour, Impairment, NetworkConfig, PeerGroup, Phase};
use keepsweep::probe::classify::State;
use keepsweep::probe::plan::{Keepalive, Plan};
use keepsweep::time::Clock;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const LOSS: f64 = 0.05;
const MANY: u32 = 1_000_000;
/// Loss begins when every flow is established, and long before the first keepalive.
const LOSSY_FROM: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);

fn flows(count: u32) -> Vec<SocketAddr> {
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    (0..count).map(|n| SocketAddr::new(Ipv4Addr::from(first + n).into(), 8080)).collect()
}

fn flows_v6(count: u32) -> Vec<SocketAddr> {
    let first = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).to_bits();
    (0..count)
        .map(|n| SocketAddr::new(Ipv6Addr::from_bits(first + u128::from(n)).into(), 8080))
        .collect()
}

fn network(seed: u64) -> NetworkConfig {
    let clean = Impairment { delay_us: 200, ..Impairment::NONE };
    let lossy = Impairment { loss: LOSS, ..clean };
    let from_ms = LOSSY_FROM.as_millis() as u64;
    NetworkConfig {
        seed,
        link: vec![
            Phase { from_ms: 0, out: clean, back: clean },
            Phase { from_ms, out: lossy, back: lossy },
        ],
        peers: ["10.0.0.0/8", "fd00::/64"]
            .map(|prefix| PeerGroup::new(prefix.parse().expect("a prefix"), Behaviour::Listen))
            .to_vec(),
        ..NetworkConfig::default()
    }
}

fn keepalives(count: u16) -> Plan {
    Plan { keepalive: Keepalive { idle: IDLE, interval: Duration::from_secs(1), count }, ..plan() }
}

fn false_dead(outcome: &Outcome) -> usize {
    outcome.verdicts.values().filter(|verdict| verdict.state != State::Alive).count()
}

/// RFC 9293 §3.8.4: silence to k independent probes is q^k, q = 1 − (1 − l)².
fn false_dead_rate_is_q_to_the(count: u16, peers: &[SocketAddr]) {
    let flows = peers.len() as f64;
    let q: f64 = 1.0 - (1.0 - LOSS) * (1.0 - LOSS);
    let begun = Clock.now();
    let outcome = sweep(keepalives(count), network(u64::from(count)), peers);
    let took = Clock.now().since(begun);
    assert_eq!(outcome.verdicts.len(), peers.len());
    let rate = q.powi(i32::from(count));
    let expected = flows * rate;
    let sigma = (expected * (1.0 - rate)).sqrt();
    let found = false_dead(&outcome) as f64;
    // Past the test harness, which would keep it to itself.
    let _ = writeln!(
        io::stderr(),
        "k = {count}: {found} false dead, {expected:.1} ± {sigma:.1} expected; {} ns per flow",
        took.as_nanos() / peers.len() as u128
    );
    if count == 9 {
        assert_eq!(found, 0.0);
    } else {
        assert!((found - expected).abs() <= 3.0 * sigma, "k = {count}: {found}");
    }
    // A late reply may overturn a verdict, but here every reply is 0.4 ms away.
    assert!(outcome.corrections.is_empty());
}

// A test each, so that they share out the cores.

#[test]
fn false_dead_rate_with_two_probes() {
    false_dead_rate_is_q_to_the(2, &flows(MANY));
}

#[test]
fn false_dead_rate_with_three_probes() {
    false_dead_rate_is_q_to_the(3, &flows(MANY));
}

#[test]
fn false_dead_rate_with_three_probes_over_ipv6() {
    false_dead_rate_is_q_to_the(3, &flows_v6(MANY / 4));
}

#[test]
fn false_dead_rate_with_four_probes() {
    false_dead_rate_is_q_to_the(4, &flows(MANY));
}

#[test]
fn nobody_is_false_dead_with_nine_probes() {
    false_dead_rate_is_q_to_the(9, &flows(MANY));
}

#[test]
fn the_same_seed_sends_the_same_bytes() {
    let peers = flows(20_000);
    let run = |seed: u64| {
        let plan = Plan { seed, rate_pps: Some(50_000), ..keepalives(4) };
        sweep(plan, network(seed), &peers).fingerprint
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
