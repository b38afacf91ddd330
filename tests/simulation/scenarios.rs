//! Scenarios: a TOML file each under `tests/scenarios`, run as they are written.

use crate::support::{plan, sweep};
use ipnet::IpNet;
use keepsweep::io::sim::NetworkConfig;
use keepsweep::probe::classify::{Reason, State};
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Scenario {
    /// What it shows.
    about: String,
    #[serde(default)]
    plan: PlanConfig,
    network: NetworkConfig,
    expect: Vec<Expect>,
    /// Connections that may be left at peers that could not be told.
    #[serde(default)]
    left_open: usize,
    /// How often a verdict is overturned by a late reply.
    #[serde(default)]
    corrections: usize,
    /// Frames of a kind that must be sent, exactly.
    #[serde(default)]
    sent: BTreeMap<String, u64>,
    /// The sweep must be over by then.
    ends_within_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct PlanConfig {
    idle_ms: u64,
    interval_ms: u64,
    count: u16,
    probe_bytes: String,
    close: String,
    connect_timeout_ms: u64,
    seed: u64,
}

impl Default for PlanConfig {
    fn default() -> Self {
        PlanConfig {
            idle_ms: 0,
            interval_ms: 1000,
            count: 5,
            probe_bytes: "auto".into(),
            close: "rst".into(),
            connect_timeout_ms: 15_000,
            seed: 1,
        }
    }
}

/// Peers and what keepsweep must say of every one of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Expect {
    peers: IpNet,
    #[serde(default = "http")]
    port: u16,
    state: State,
    reason: Reason,
    /// Keepalive probes (or SYNs) that the verdict took, where that is certain.
    probes: Option<u16>,
}

fn http() -> u16 {
    8080
}

fn resolve(config: &PlanConfig) -> Plan {
    Plan {
        keepalive: Keepalive {
            idle: Duration::from_millis(config.idle_ms),
            interval: Duration::from_millis(config.interval_ms),
            count: config.count,
        },
        probe_bytes: match config.probe_bytes.as_str() {
            "auto" => ProbeBytes::Auto,
            "0" => ProbeBytes::Zero,
            "1" => ProbeBytes::One,
            other => panic!("probe-bytes {other}"),
        },
        close: if config.close == "fin" { Close::Fin } else { Close::Rst },
        connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        seed: config.seed,
        ..plan()
    }
}

fn addresses(prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    let IpNet::V4(prefix) = prefix else { panic!("IPv4 only") };
    let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
    (first..=last).map(|bits| IpAddr::V4(bits.into()))
}

fn run(path: &Path) {
    let text = std::fs::read_to_string(path).expect("read scenario");
    let name = path.file_stem().expect("a name").to_string_lossy();
    let scenario: Scenario =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut peers = Vec::new();
    for expect in &scenario.expect {
        peers.extend(addresses(expect.peers).map(|ip| SocketAddr::new(ip, expect.port)));
    }
    let about = format!("{name}: {}", scenario.about);
    let outcome = sweep(resolve(&scenario.plan), scenario.network, &peers);
    for expect in &scenario.expect {
        for ip in addresses(expect.peers) {
            let verdict = &outcome.verdicts[&SocketAddr::new(ip, expect.port)];
            let said = (verdict.state, verdict.reason);
            assert_eq!(said, (expect.state, expect.reason), "{about}\n{verdict:?}");
            if let Some(probes) = expect.probes {
                assert_eq!(verdict.probes, probes, "{about}\n{verdict:?}");
            }
        }
    }
    assert_eq!(
        outcome.corrections.len(),
        scenario.corrections,
        "{about}\n{:?}",
        outcome.corrections
    );
    for (kind, count) in &scenario.sent {
        let sent = outcome.sent.get(kind.as_str()).copied().unwrap_or(0);
        assert_eq!(sent, *count, "{about}: {kind} frames\n{:?}", outcome.sent);
    }
    if let Some(limit) = scenario.ends_within_ms {
        assert!(
            outcome.ended.as_nanos() <= limit * 1_000_000,
            "{about}: ended {:?}",
            outcome.ended
        );
    }
    let left = outcome.network.connections().left_open();
    assert_eq!(left, scenario.left_open, "{about}\n{:?}", outcome.network.connections());
    // Nothing that we sent may have reached an application, and every frame is accounted for.
    let counters = outcome.counters();
    assert_eq!(
        (counters.delivered_octets, counters.malformed, counters.misaddressed),
        (0, 0, 0),
        "{about}"
    );
    let rejected: u64 = outcome.received.rejected.iter().sum();
    assert_eq!(outcome.received.frames, outcome.received.matched + rejected, "{about}");
    assert!(outcome.refused <= outcome.received.matched, "{about}");
}

#[test]
fn every_scenario_ends_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("tests/scenarios")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "scenarios are missing");
    for file in files {
        println!("{}", file.display());
        run(&file);
    }
}
