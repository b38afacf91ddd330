//! `keepsweep audit` against the truth: real applications, real sockets, real faults.

mod apps;
mod firewall;
mod namespaces;
mod network;
mod paths;
mod privilege;
mod report;
mod streams;
mod translated;
mod truth;

use crate::support::{Lab, pause};
use apps::App;
use network::Network;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use report::Audit;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;
use truth::{Opinion, ROWS};

/// What the audits below are held against is itself held against the kernel's own keepalive.
#[test]
fn the_network_is_what_the_truth_says() {
    let Some(lab) = Lab::up_alone("autruth", &[]) else { return };
    let mut network = Network::raise(lab, |row| row.count.min(3));
    assert_eq!(network.resets(), 0);
    network.assert_kernel_agrees();
}

#[test]
fn every_verdict_is_right_and_no_connection_is_touched() {
    let Some(lab) = Lab::up_alone("audit", &[]) else { return };
    let mut network = Network::raise(lab, |row| row.count);
    assert!(network.truth.len() >= 10_000, "{}", network.truth.len());
    let host = network.lab.namespace("prober");
    let before = network.held();
    let states: HashMap<u64, &str> =
        before.iter().map(|held| (held.cookie, held.state.as_str())).collect();
    let audit = Audit::run(&host, &[]);

    assert_eq!(audit.code, Some(1), "{}\n{}", audit.stderr, audit.summary);
    let mut confusion: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (&(local, peer), known) in &network.truth {
        let record = audit.records.get(&(host.clone(), local, peer));
        let record = record.unwrap_or_else(|| panic!("{}: {local} → {peer}", known.group));
        let text = |field: &str| record[field].as_str().unwrap_or("?");
        let said = (text("state"), text("reason"));
        *confusion.entry((known.row.name, format!("{}/{}", said.0, said.1))).or_default() += 1;
        let is_right = known.row.verdicts.contains(&said)
            && record["cookie"].as_u64() == Some(known.cookie)
            && record["pid"].as_u64() == Some(known.pid.into())
            && record["comm"] == "lab-app"
            && record["tcp_state"].as_str() == states.get(&known.cookie).copied()
            && record["keepalive"].is_null()
                == (known.row.accepted || !known.group.contains("/true/"));
        if !is_right {
            wrong.push(format!("{}: {record}", known.group));
        }
    }
    let mut table = String::new();
    for ((row, said), count) in &confusion {
        writeln!(table, "{row:20} {said:28} {count:5}").expect("a string");
    }
    println!("{table}{}", audit.summary);
    let some = &wrong[..wrong.len().min(5)];
    assert!(wrong.is_empty(), "{} wrong\n{table}{some:#?}\n{}", wrong.len(), audit.stderr);
    assert_eq!(audit.records.len(), network.truth.len());
    audit.assert_counts();
    // Beside keepalives only what asks the hosts of silent connections.
    let known = ["probe-0", "probe-1", "syn", "rst"].map(|kind| audit.sent(kind));
    assert_eq!(audit.summary["frames_sent"], known.iter().sum::<u64>(), "{}", audit.summary);
    assert_eq!(audit.summary["kernel_rsts"], 0, "{}", audit.summary);

    network.assert_untouched(&before);
    assert_eq!(network.resets(), 0, "RSTs left the audited host");
    network.assert_alive_go_on();
}

/// Ctrl-C at several moments: before the first answer, while probes are out, while verdicts are
/// doubted, by the kernel and then by the hosts, and while connections are asked once more.
#[test]
fn an_interruption_leaves_every_connection_as_it_was() {
    let Some(lab) = Lab::up_alone("auint", &[]) else { return };
    let mut network = Network::raise(lab, |row| row.count.min(5));
    let host = network.lab.namespace("prober");
    let before = network.held();
    for after_ms in [100, 700, 1500, 2500, 3500, 7500, 10_500, 15_500] {
        let child = Audit::command(&host, &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("keepsweep starts");
        pause(Duration::from_millis(after_ms));
        let pid = Pid::from_raw(child.id() as i32);
        // Not SIGINT, which shells let their background jobs ignore: until it is caught, it would be lost.
        signal::kill(pid, Signal::SIGTERM).expect("signal");
        let output = child.wait_with_output().expect("keepsweep ends");
        // Before it catches signals it has done nothing that needs an end.
        if output.status.code().is_some() {
            let audit = Audit::read(output);
            assert_eq!(audit.code, Some(130), "{after_ms} ms: {}", audit.stderr);
            for (ends, record) in &audit.records {
                let row = network.truth[&(ends.1, ends.2)].row;
                let text = |field: &str| record[field].as_str().unwrap_or("?");
                let said = (text("state"), text("reason"));
                // Silence that could not be doubted yet.
                let is_known = row.opinion == Opinion::TimedOut && said == ("down", "silent");
                let is_right = row.verdicts.contains(&said)
                    || is_known
                    || said == ("undetermined", "interrupted");
                assert!(is_right, "{after_ms} ms: {}: {record}", row.name);
            }
        }
        network.assert_untouched(&before);
    }
    // What was still under way for them has come by now.
    pause(Duration::from_secs(2));
    network.assert_untouched(&before);
    assert_eq!(network.resets(), 0, "RSTs left the audited host");
    network.assert_alive_go_on();
}

/// Two processes, as one may not open so many files.
#[test]
fn twenty_thousand_healthy_connections_are_asked_once() {
    let Some(lab) = Lab::up_alone("audit20k", &[]) else { return };
    let host = lab.namespace("prober");
    let group = |net: &str| json!({ "name": "idle", "count": 10_000, "peers": net, "condition": "idle", "port": 8080 });
    let _apps = ["10.99.0.0/16", "fd99::/112"].map(|net| App::connect(&host, &[group(net)]));
    let audit = Audit::run(&host, &["--rate", "max"]);
    println!("{}", audit.summary);
    assert_eq!(audit.code, Some(0), "{}\n{}", audit.stderr, audit.summary);
    assert_eq!(audit.records.len(), 20_000);
    for record in audit.records.values() {
        assert_eq!((&record["state"], &record["reason"]), (&json!("alive"), &json!("ack")));
        assert_eq!(record["probes"], 1, "{record}");
    }
    audit.assert_harmless();
}

/// Every row has a name and a network of its own.
#[test]
fn the_truth_is_told_apart() {
    for (at, row) in ROWS.iter().enumerate() {
        for other in &ROWS[..at] {
            assert!(
                row.name != other.name && row.nets != other.nets,
                "{} {}",
                row.name,
                other.name
            );
        }
    }
}
