//! `--rate-per-prefix`: whole sweeps under a cap for each /24.

use crate::support::{Outcome, plan, sweep};
use keepsweep::io::sim::{Behaviour, Impairment, NetworkConfig, PeerGroup, Phase};
use keepsweep::probe::classify::State;
use keepsweep::probe::plan::Plan;
use keepsweep::time::Instant;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// What may be sent at once: a frame, and what a sender may make good of 10 ms.
fn burst(cap: u64) -> f64 {
    1.0 + cap as f64 / 100.0
}

fn network(loss: f64, behaviour: Behaviour) -> NetworkConfig {
    let link = Impairment { delay_us: 200, loss, ..Impairment::NONE };
    NetworkConfig {
        seed: 1,
        link: vec![Phase { from_ms: 0, out: link, back: link }],
        peers: vec![PeerGroup::new("10.0.0.0/8".parse().expect("a prefix"), behaviour)],
        ..NetworkConfig::default()
    }
}

/// The hosts of 10.0.`third`.0/24, each on these ports.
fn hosts(third: u8, ports: std::ops::Range<u16>) -> impl Iterator<Item = SocketAddr> {
    (0..=255).flat_map(move |host| {
        let ports = ports.clone();
        ports.map(move |port| SocketAddr::from((Ipv4Addr::new(10, 0, third, host), port)))
    })
}

fn by_prefix(outcome: &Outcome) -> BTreeMap<[u8; 3], Vec<u64>> {
    let mut sent: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for (at, to) in &outcome.sent_at {
        let [a, b, c, _] = to.octets();
        sent.entry([a, b, c]).or_default().push(at.as_nanos());
    }
    sent
}

/// In no time, however short or long, does a network get more than its share.
fn assert_capped(outcome: &Outcome, cap: u64) {
    for (prefix, sent) in by_prefix(outcome) {
        // The excess over the share only grows where frames are sent: the worst window that ends
        // with a frame begins with the one that is least ahead of its share.
        let ahead = |n: usize| n as f64 - sent[n] as f64 * cap as f64 / 1e9;
        let mut least = f64::MAX;
        for n in 0..sent.len() {
            least = least.min(ahead(n));
            let over = ahead(n) - least + 1.0;
            assert!(over <= burst(cap) + 1e-3, "{prefix:?}: {over} over at frame {n}");
        }
    }
}

fn took(outcome: &Outcome) -> f64 {
    let last = outcome.sent_at.iter().map(|(at, _)| *at).max().expect("frames were sent");
    last.since(Instant::from_nanos(1)).as_secs_f64()
}

fn alive(outcome: &Outcome) -> usize {
    outcome.verdicts.values().filter(|verdict| verdict.state == State::Alive).count()
}

#[test]
fn one_network_takes_the_time_that_its_cap_asks_for() {
    let peers: Vec<_> = hosts(0, 80..81).collect();
    for cap in [50, 200, 3_000] {
        let plan = Plan { rate_per_prefix_pps: Some(cap), ..plan() };
        let outcome = sweep(plan, network(0.0, Behaviour::Listen), &peers);
        assert_eq!(alive(&outcome), 256);
        assert_capped(&outcome, cap);
        // SYN, ACK, keepalive, RST.
        assert_eq!(outcome.sent_at.len(), 4 * 256);
        let due = 4.0 * 256.0 / cap as f64;
        let took = took(&outcome);
        assert!((due - 0.05..due * 1.01 + 0.05).contains(&took), "{cap}: {took} s, {due} s due");
    }
}

#[test]
fn no_network_waits_for_another() {
    // A thousand peers in one network, and one in each of two hundred others.
    let crowd: Vec<_> = hosts(0, 80..84).collect();
    let singles = (1..=200).map(|third| SocketAddr::from((Ipv4Addr::new(10, 0, third, 7), 80)));
    let peers: Vec<_> = crowd.iter().copied().chain(singles).collect();
    let plan = Plan { rate_per_prefix_pps: Some(100), rate_pps: Some(2_000), ..plan() };
    let outcome = sweep(plan, network(0.0, Behaviour::Listen), &peers);
    assert_eq!(alive(&outcome), peers.len());
    assert_capped(&outcome, 100);
    let mut sent = by_prefix(&outcome);
    let crowd = sent.remove(&[10, 0, 0]).expect("frames to the crowd");
    // 4,096 frames at 100 a second; the 800 to the others at the rate of the sweep.
    assert!((40.8..41.5).contains(&(crowd[4_095] as f64 / 1e9)));
    assert!(sent.values().flatten().all(|at| *at < 1_000_000_000));
}

#[test]
fn many_networks_together_reach_the_rate() {
    let peers: Vec<_> = (0..64).flat_map(|third| hosts(third, 80..81)).collect();
    let plan = Plan { rate_per_prefix_pps: Some(200), rate_pps: Some(10_000), ..plan() };
    let outcome = sweep(plan, network(0.0, Behaviour::Listen), &peers);
    assert_eq!(alive(&outcome), peers.len());
    assert_capped(&outcome, 200);
    // 64 × 200 is more than 10,000, which is what counts then, until the first networks are done.
    let took = took(&outcome);
    assert!((6.5..7.0).contains(&took), "{took} s");
}

/// Repeats, keepalives and closing segments of a lossy path keep to it too, and nobody is accused
/// because a segment had to wait.
#[test]
fn loss_and_silence_keep_to_the_cap() {
    let peers: Vec<_> = (0..4).flat_map(|third| hosts(third, 80..81)).collect();
    let plan = Plan { rate_per_prefix_pps: Some(300), ..plan() };
    let outcome = sweep(plan, network(0.05, Behaviour::Listen), &peers);
    assert_capped(&outcome, 300);
    assert_eq!(alive(&outcome), peers.len());
    let outcome = sweep(plan, network(0.0, Behaviour::Silent), &peers);
    assert_capped(&outcome, 300);
    let down = outcome.verdicts.values().filter(|verdict| verdict.state == State::Down);
    assert_eq!(down.count(), peers.len());
}
