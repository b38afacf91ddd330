//! Connections that keepsweep is given and did not open: asked, and left as they were.

use crate::orphans::{Orphan, continue_all, inside, orphan};
use crate::support::{Lab, Sweep};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use tempfile::NamedTempFile;

/// Where the fleet echoes.
const PORT: u16 = 8085;
const PEERS: usize = 256;

fn peers() -> impl Iterator<Item = IpAddr> {
    (0..PEERS as u32).map(|host| Ipv4Addr::from_bits(0x0a63_0000 + host).into())
}

/// Every other flow with its timestamps, as an audit or a checkpoint would write them.
fn write_ndjson(orphans: &[Orphan]) -> NamedTempFile {
    let mut text = String::new();
    for (index, orphan) in orphans.iter().enumerate() {
        let mut line = json!({
            "schema": "keepsweep/1", "type": "peer", "comm": "db",
            "local_ip": orphan.local.ip(), "local_port": orphan.local.port(),
            "peer_ip": orphan.peer.ip(), "peer_port": orphan.peer.port(),
            "snd_una": orphan.snd_una, "snd_nxt": orphan.snd_una, "rcv_nxt": orphan.rcv_nxt,
            "wnd": 502, "name": format!("conn-{index}"),
        });
        if index % 2 == 0 {
            line["ts_recent"] = 0.into();
            line["ts_offset_ms"] = orphan.ts_offset_ms.into();
        }
        writeln!(text, "{line}").expect("a string");
    }
    writeln!(text, "{}", json!({ "type": "summary", "peers": orphans.len() })).expect("a string");
    save(&text)
}

fn write_csv(orphans: &[Orphan]) -> NamedTempFile {
    let mut text = "rcv_nxt,snd_una,peer_ip,peer_port,local_port,local_ip\n".to_owned();
    for Orphan { local, peer, snd_una, rcv_nxt, .. } in orphans {
        let (ours, theirs) = (local.ip(), peer.ip());
        let (port, peer_port) = (local.port(), peer.port());
        writeln!(text, "{rcv_nxt},{snd_una},{theirs},{peer_port},{port},{ours}").expect("a string");
    }
    save(&text)
}

fn save(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), text).expect("write flows");
    file
}

fn sweep(lab: &Lab, file: &NamedTempFile, more: &[&str]) -> Sweep {
    let path = file.path().to_str().expect("path");
    let sweep = lab.sweep(&[&["--flows", path], more].concat());
    sweep.assert_accounts();
    assert_only_probes(&sweep);
    sweep
}

fn assert_only_probes(sweep: &Sweep) {
    let sent = sweep.summary["sent_by_kind"].as_object().expect("an object");
    let kinds: Vec<_> = sent.keys().map(String::as_str).collect();
    assert!(
        kinds.iter().all(|kind| ["arp", "nd", "probe-0", "probe-1"].contains(kind)),
        "{kinds:?}"
    );
}

#[test]
fn given_connections_are_asked_and_left_as_they_were() {
    let Some(lab) = Lab::up("flows", &[]) else { return };
    let prober = lab.namespace("prober");
    let mut orphans = inside(&prober, || orphan(peers(), PORT));
    assert_eq!(lab.connections("8085"), PEERS);

    for file in [write_ndjson(&orphans), write_csv(&orphans)] {
        let alive = sweep(&lab, &file, &[]);
        assert_eq!(alive.code, Some(0), "{}\n{}", alive.stderr, alive.summary);
        assert_eq!(alive.count("alive"), PEERS, "{}", alive.summary);
        assert!(alive.peers.values().all(|record| record["reason"] == "ack"));
        assert_eq!(alive.summary["guard_dropped"], PEERS, "{}", alive.summary);
        assert_eq!(lab.connections("8085"), PEERS);
    }
    inside(&prober, || continue_all(&mut orphans));

    // A quarter of them each: well, rebooted, silent, cut off.
    lab.script(&["fault", "reboot", "10.99.0.64/26", "8085"]);
    lab.script(&["fault", "drop", "10.99.0.128/26"]);
    lab.script(&["fault", "icmp", "host", "10.99.0.192/26"]);
    let broken = sweep(&lab, &write_ndjson(&orphans), &[]);
    assert_eq!(broken.code, Some(1), "{}", broken.stderr);
    for (index, orphan) in orphans.iter().enumerate() {
        let record = &broken.peers[&orphan.peer.to_string()];
        let expected = [
            ("alive", "ack"),
            ("rebooted", "reset"),
            ("down", "silent"),
            ("unreachable", "icmp-host"),
        ][index / 64];
        let said = (record["state"].as_str(), record["reason"].as_str());
        assert_eq!(said, (Some(expected.0), Some(expected.1)), "{record}");
        assert_eq!(record["name"], format!("conn-{index}"));
        assert_eq!(record["local_port"], orphan.local.port());
    }

    // Down or cut off, they were not harmed: their streams go on where they were.
    lab.script(&["heal"]);
    orphans.drain(64..128);
    assert_eq!(lab.connections("8085"), orphans.len());
    inside(&prober, || continue_all(&mut orphans));
    assert_eq!(lab.connections("8085"), orphans.len());
}

/// The prober is stopped while answers are under way, and while nothing has been asked yet.
#[test]
fn an_interruption_leaves_given_connections_alone() {
    let Some(lab) = Lab::up("flowsint", &[]) else { return };
    let prober = lab.namespace("prober");
    let mut orphans = inside(&prober, || orphan(peers(), PORT));
    let file = write_ndjson(&orphans);
    let path = file.path().to_str().expect("path");
    let args = ["--flows", path, "--format", "ndjson"];
    for (idle, rate) in [("1h", "10000"), ("0s", "100")] {
        let mut running = lab.start(&[&args[..], &["--idle", idle, "--rate", rate, "-v"]].concat());
        // Said once signals are caught and everything is open.
        running.await_message("probing begins");
        running.signal(Signal::SIGINT);
        let ended = running.finish();
        assert_eq!(ended.code, Some(130), "{}", ended.stderr);
        assert_eq!(ended.peers.len(), PEERS);
        assert!(ended.count("undetermined") > 0, "{}", ended.summary);
        assert_eq!(ended.count("undetermined") + ended.count("alive"), PEERS, "{}", ended.summary);
        ended.assert_accounts();
        assert_only_probes(&ended);
        assert_eq!(lab.connections("8085"), PEERS);
    }
    inside(&prober, || continue_all(&mut orphans));
}

#[test]
fn what_the_kernel_owns_is_probed_as_such_and_what_is_elsewhere_is_not() {
    let Some(lab) = Lab::up("flowsown", &[]) else { return };
    let prober = lab.namespace("prober");
    // Beside targets, and one flow that nobody owns.
    let (owned, orphan) = inside(&prober, || {
        let owned = TcpStream::connect((Ipv4Addr::new(10, 99, 0, 1), PORT)).expect("connect");
        (owned, orphan([Ipv4Addr::new(10, 99, 0, 2).into()].into_iter(), PORT)[0])
    });
    let local = owned.local_addr().expect("an address");
    let peer = owned.peer_addr().expect("an address");
    let flows = [
        Orphan { local, peer, ..orphan },
        orphan,
        Orphan { local: "10.1.2.3:40000".parse().expect("an address"), ..orphan },
    ];
    // One record a peer is what the lab's reader expects.
    let elsewhere = "10.99.0.3:8085".parse().expect("an address");
    let file = write_csv(&[flows[0], flows[1], Orphan { peer: elsewhere, ..flows[2] }]);
    let path = file.path().to_str().expect("path");
    let sweep = lab.sweep(&["--flows", path, "10.99.0.4:8080"]);
    sweep.assert_accounts();
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    let said = |peer: &str| {
        let record = &sweep.peers[peer];
        let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
        let kind = record["evidence"][0]["kind"].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"), kind)
    };
    let unprobeable = |kind: &str| ("undetermined".into(), "unprobeable".into(), kind.into());
    // Its numbers are the kernel's, whatever stands in the file.
    assert_eq!(said("10.99.0.1:8085"), ("alive".into(), "ack".into(), "ack".into()));
    assert_eq!(said("10.99.0.3:8085"), unprobeable("not-local"));
    assert_eq!(said("10.99.0.2:8085"), ("alive".into(), "ack".into(), "ack".into()));
    assert_eq!(sweep.peers["10.99.0.4:8080"]["state"], "alive");
    let note = "1 have a local address";
    assert!(sweep.stderr.contains(note), "{}", sweep.stderr);
    assert_eq!(lab.connections("8085"), 2);
}

#[test]
fn given_connections_of_both_families_are_left_as_they_were() {
    let Some(lab) = Lab::up("flows6", &[]) else { return };
    let prober = lab.namespace("prober");
    let first = "fd99::1".parse::<Ipv6Addr>().expect("an address").to_bits();
    let v6 = (0..32).map(|host| Ipv6Addr::from_bits(first + host).into());
    let mut orphans = inside(&prober, || orphan(peers().take(32).chain(v6), PORT));
    let alive = sweep(&lab, &write_ndjson(&orphans), &[]);
    assert_eq!(alive.code, Some(0), "{}\n{}", alive.stderr, alive.summary);
    assert_eq!(alive.count("alive"), 64, "{}", alive.summary);
    assert_eq!(alive.summary["guard_dropped"], 64, "{}", alive.summary);
    inside(&prober, || continue_all(&mut orphans));
}
