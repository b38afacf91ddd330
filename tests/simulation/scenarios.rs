//! Scenarios: a TOML file each under `tests/scenarios`, run as they are written.

use crate::support::{plan, sweep};
use ipnet::IpNet;
use keepsweep::io::sim::{Event, Fault, NetworkConfig, PeerGroup};
use keepsweep::probe::classify::{Reason, State};
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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
    /// Frames of a kind that may be sent, at most.
    #[serde(default)]
    sent_at_most: BTreeMap<String, u64>,
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

fn addresses(prefix: IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(prefix) => {
            let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
            (first..=last).map(|bits| IpAddr::V4(bits.into())).collect()
        }
        IpNet::V6(prefix) => {
            let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
            (first..=last).map(|bits| IpAddr::V6(bits.into())).collect()
        }
    }
}

/// Which address families a scenario's peers are of.
#[derive(Clone, Copy, Debug)]
enum Families {
    /// IPv4, as it is written.
    AsWritten,
    /// All of it over IPv6.
    V6,
    /// Every other group of peers over IPv6, in one sweep with the rest.
    Mixed,
}

fn to_v6(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv6Addr::from_bits(0xfd << 120 | u128::from(ip.to_bits())).into(),
        IpAddr::V6(_) => ip,
    }
}

fn net_to_v6(net: IpNet) -> IpNet {
    let length = if let IpNet::V4(_) = net { 96 + net.prefix_len() } else { net.prefix_len() };
    IpNet::new(to_v6(net.addr()), length).expect("a prefix length")
}

/// What a router that says this over IPv4 says over IPv6 (RFC 7915 §4.2).
fn icmp_to_v6(icmp_type: u8, code: u8) -> (u8, u8) {
    match (icmp_type, code) {
        (3, 0) => (1, 0),
        (3, 1) => (1, 3),
        (3, 4) => (2, 0),
        (3, 13) => (1, 1),
        other => panic!("no counterpart of ICMP {other:?} is known"),
    }
}

fn event_to_v6(event: &Event) -> Event {
    let what = match event.what {
        Fault::Icmp { icmp_type, code, from, short_quote } => {
            let (icmp_type, code) = icmp_to_v6(icmp_type, code);
            Fault::Icmp { icmp_type, code, from: from.map(to_v6), short_quote }
        }
        Fault::TtlExceeded { from } => Fault::TtlExceeded { from: from.map(to_v6) },
        other => other,
    };
    Event { prefix: net_to_v6(event.prefix), what, ..event.clone() }
}

/// Puts a scenario's peers, and what befalls them, into IPv6 too; then asks for those of `families`.
fn translate(scenario: &mut Scenario, families: Families) {
    if let Families::AsWritten = families {
        return;
    }
    let network = &mut scenario.network;
    let peers = network.peers.clone().into_iter();
    network.peers.extend(peers.map(|group| PeerGroup { prefix: net_to_v6(group.prefix), ..group }));
    let events: Vec<_> = network.events.iter().map(event_to_v6).collect();
    network.events.extend(events);
    // A simulated link has one prefix.
    let on_link = network.on_link;
    let is_v6 = |index: usize, peers: &IpNet| match families {
        Families::V6 => true,
        _ => index % 2 == 1 && !on_link.is_some_and(|link| link.contains(peers)),
    };
    for (index, expect) in scenario.expect.iter_mut().enumerate() {
        if is_v6(index, &expect.peers) {
            expect.peers = net_to_v6(expect.peers);
        }
    }
    if let Families::V6 = families {
        network.on_link = network.on_link.map(net_to_v6);
        if let Some(count) = scenario.sent.remove("arp") {
            scenario.sent.insert("nd".into(), count);
        }
    }
}

fn run(path: &Path, families: Families) {
    let text = std::fs::read_to_string(path).expect("read scenario");
    let name = path.file_stem().expect("a name").to_string_lossy();
    let mut scenario: Scenario =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    translate(&mut scenario, families);
    let mut peers = Vec::new();
    for expect in &scenario.expect {
        let hosts = addresses(expect.peers).into_iter();
        peers.extend(hosts.map(|ip| SocketAddr::new(ip, expect.port)));
    }
    let about = format!("{name}, {families:?}: {}", scenario.about);
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
    for (kind, most) in &scenario.sent_at_most {
        let sent = outcome.sent.get(kind.as_str()).copied().unwrap_or(0);
        assert!(sent <= *most, "{about}: {sent} {kind} frames, {most} at most");
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
    run_all(Families::AsWritten);
}

#[test]
fn every_scenario_ends_the_same_over_ipv6() {
    run_all(Families::V6);
}

#[test]
fn every_scenario_ends_the_same_with_both_families_in_one_sweep() {
    run_all(Families::Mixed);
}

fn run_all(families: Families) {
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
        run(&file, families);
    }
}
