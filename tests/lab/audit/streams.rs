//! Probing connections whose data is in flight, which an audit avoids, harms no octet of it.

use super::apps::App;
use super::report::Audit;
use crate::support::Lab;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;

/// How many probes of each size, at least.
const PROBES: u64 = 1000;
/// How many octets, at least.
const OCTETS: u64 = 100_000_000;
/// How many of each family.
const STREAMS: usize = 34;

/// One end of a stream, as lab-app reports it.
#[derive(Debug, Deserialize)]
struct End {
    local: SocketAddr,
    peer: SocketAddr,
    sent: u64,
    received: u64,
    hash_sent: String,
    hash_received: String,
    error: Option<String>,
}

fn finish(app: &mut App) -> Vec<End> {
    let mut answer = app.ask("finish");
    serde_json::from_value(answer["streams"].take()).expect("a list of streams")
}

#[test]
fn probes_in_flight_leave_every_octet_where_it_was() {
    streams("austream", "1");
}

#[test]
fn probes_in_flight_leave_every_octet_where_it_was_without_timestamps() {
    streams("austream0", "0");
}

fn streams(name: &str, timestamps: &str) {
    let Some(lab) = Lab::up_alone(name, &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    lab.script(&["exec", "sysctl", "-q", &format!("net.ipv4.tcp_timestamps={timestamps}")]);
    let mut server = App::serve(&fleet, &[]);
    let group = |name: &str, net: &str, mapped: bool| -> Value {
        json!({
            "name": name, "count": STREAMS, "peers": net, "mapped": mapped,
            "condition": "stream", "port": 9100,
        })
    };
    let groups = [
        group("v4", "10.99.1.0/24", false),
        group("v6", "fd99:0:0:1::/120", false),
        group("mapped", "10.99.2.0/24", true),
    ];
    let mut client = App::connect(&host, &groups);
    for bytes in ["0", "1"] {
        let mut sent = 0;
        // Each asks every stream at least once.
        for _ in 0..2 * PROBES / STREAMS as u64 {
            let output = Audit::command(&host, &["--probe-bytes", bytes, "--rate", "max"])
                .env("KEEPSWEEP_TEST_PROBE_IN_FLIGHT", "1")
                .output()
                .expect("keepsweep starts");
            let audit = Audit::read(output);
            assert_eq!(audit.records.len(), 3 * STREAMS, "{}", audit.stderr);
            let dead = audit.records.values().find(|record| record["state"] != "alive");
            assert!(dead.is_none(), "{dead:?}\n{}", audit.stderr);
            audit.assert_harmless();
            sent += audit.sent(&format!("probe-{bytes}"));
            if sent >= PROBES {
                break;
            }
        }
        println!("{sent} probes of {bytes} octets");
        assert!(sent >= PROBES, "{sent} probes of {bytes} octets");
    }
    let ours = finish(&mut client);
    // By both ends: connections to different peers may come from the same port.
    let theirs = finish(&mut server).into_iter().map(|end| ((end.peer, end.local), end));
    let mut theirs: HashMap<(SocketAddr, SocketAddr), End> = theirs.collect();
    assert_eq!((ours.len(), theirs.len()), (3 * STREAMS, 3 * STREAMS));
    let (mut there, mut back) = (0, 0);
    for end in ours {
        let other = theirs.remove(&(end.local, end.peer)).expect("the other end");
        assert_eq!((&end.error, &other.error), (&None, &None), "{end:?} {other:?}");
        assert_eq!((end.sent, &end.hash_sent), (other.received, &other.hash_received));
        assert_eq!((end.received, &end.hash_received), (other.sent, &other.hash_sent));
        there += end.sent;
        back += end.received;
    }
    println!("{there} octets there and {back} back, timestamps {timestamps}");
    assert!(there >= OCTETS && back >= OCTETS, "{there} octets there and {back} back");
}
