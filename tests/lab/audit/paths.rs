//! Connections that take another way than through a router: to this host itself, to neighbours.

use super::apps::{App, Held};
use super::report::Audit;
use crate::support::Lab;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn group(name: &str, peers: &str, port: u16) -> Value {
    json!({ "name": name, "count": 16, "peers": peers, "condition": "idle", "port": port })
}

/// Returns those of a group.
fn of(app: &mut App, name: &str) -> Vec<Held> {
    let mut held = app.list();
    held.retain(|held| held.group == name);
    assert_eq!(held.len(), 16, "{name}");
    held
}

fn assert_unharmed(app: &mut App) {
    let harmed = app.list().into_iter().find(|held| held.error.is_some() || held.state == "closed");
    assert!(harmed.is_none(), "{harmed:?}");
}

fn greeted(mut group: Value) -> Value {
    group["name"] = format!("{}-greeted", group["name"].as_str().expect("a name")).into();
    group["greeted"] = true.into();
    group
}

/// Both ends of each are connections of this host.
#[test]
fn to_this_host_itself() {
    let Some(lab) = Lab::up("auself", &[]) else { return };
    let host = lab.namespace("prober");
    let mut server = App::serve(&host, &[]);
    let mapped = {
        let mut mapped = group("mapped", "127.0.1.0/24", 9100);
        mapped["mapped"] = true.into();
        mapped
    };
    let groups = [
        greeted(group("v4", "127.0.0.1/32", 9100)),
        group("v6", "::1/128", 9100),
        mapped,
        group("address", "10.98.0.1/32", 9100),
    ];
    let mut app = App::connect(&host, &groups);
    let audit = Audit::run(&host, &[]);
    println!("{}", audit.summary);
    assert_eq!(audit.code, Some(0), "{}\n{}", audit.stderr, audit.summary);
    for held in [app.list(), server.list()] {
        assert_eq!(held.len(), 4 * 16);
        audit.assert_says(&host, &held, &["alive/ack"]);
    }
    assert_eq!(audit.records.len(), 2 * 4 * 16);
    assert_unharmed(&mut app);
    assert_unharmed(&mut server);
}

/// Whoever closes meanwhile is not accused of anything.
#[test]
fn closed_and_opened_all_the_time() {
    let Some(lab) = Lab::up("aubrief", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let groups = [("v4", "10.99.1.0/24"), ("v6", "fd99:0:0:1::/120")].map(|(name, net)| {
        let mut group = group(name, net, 9100);
        group["condition"] = "brief".into();
        group["count"] = 200.into();
        group
    });
    let app = App::connect(&host, &groups);
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..5 {
        // Slowly, so that many are closed before their turn comes.
        let audit = Audit::run(&host, &["--rate", "500"]);
        assert!(audit.records.len() >= 100, "{}", audit.summary);
        for record in audit.records.values() {
            let state = record["state"].as_str().unwrap_or("?");
            assert!(matches!(state, "alive" | "undetermined"), "{record}");
            *states.entry(format!("{state}/{}", record["reason"])).or_default() += 1;
        }
        // The RSTs are the application's: every other time it closes with one.
        audit.assert_only_probes();
    }
    println!("{states:?}");
    // Some were closed before their turn came, and some were not.
    assert!(states.len() > 1, "{states:?}");
    drop(app);
}

#[test]
fn to_neighbours() {
    let Some(lab) = Lab::up("aunear", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let shown = lab.script(&[
        "exec", "fleet", "ip", "-6", "-o", "addr", "show", "dev", "lan0", "scope", "link",
    ]);
    let address = shown.split_whitespace().find(|word| word.starts_with("fe80:")).expect("fe80::");
    let address = address.split('/').next().expect("an address");
    let mut link_local = group("link-local", &format!("{address}/128"), 9100);
    link_local["device"] = "lan0".into();
    let groups = [
        greeted(group("near", "10.96.1.0/28", 9100)),
        group("near6", "fd96:0:0:1::/124", 9100),
        group("lost", "10.96.1.128/28", 9100),
        link_local,
    ];
    let mut app = App::connect(&host, &groups);
    // Without a route it does not answer ARP either; what the host remembers would hide that.
    lab.script(&["fault", "gone", "10.96.1.128/28"]);
    lab.script(&["exec", "ip", "neigh", "flush", "dev", "lan0"]);
    let audit = Audit::run(&host, &[]);
    println!("{}", audit.summary);
    for name in ["near-greeted", "near6"] {
        audit.assert_says(&host, &of(&mut app, name), &["alive/ack"]);
    }
    audit.assert_says(&host, &of(&mut app, "lost"), &["unreachable/neighbour"]);
    audit.assert_says(&host, &of(&mut app, "link-local"), &["alive/ack"]);

    // They answer SYNs and nothing else, as behind a firewall that has forgotten their connections.
    let table = "table inet forgetful {
        chain in {
            type filter hook input priority 0
            tcp flags & (syn | ack) == ack drop
        }
    }";
    lab.script(&["exec", "fleet", "nft", table]);
    let audit = Audit::run(&host, &[]);
    println!("{}", audit.summary);
    for name in ["near-greeted", "near6", "link-local"] {
        audit.assert_says(&host, &of(&mut app, name), &["unreachable/flow-state-lost"]);
    }
    audit.assert_counts();
    assert_eq!(audit.summary["kernel_rsts"], 0, "{}", audit.summary);
    assert_unharmed(&mut app);
}
