//! How a sweep ends when something is in its way: signals, a full disk, a closed pipe, bad links.

use crate::support::Lab;
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};

/// A quarter of the lab's peers, held open: long enough to be interrupted.
const RESTING: &[&str] =
    &["10.99.0.0/20", "-p", "8080", "--idle", "1h", "--rate", "20000", "--format", "ndjson"];
const RESTING_PEERS: usize = 4096;

fn interrupted_by(name: &str, signal: Signal) {
    let Some(lab) = Lab::up(name, &[]) else { return };
    let sweep = lab.start(RESTING);
    lab.await_connections("8080", RESTING_PEERS);
    sweep.signal(signal);
    let sweep = sweep.finish();
    assert_eq!(sweep.code, Some(130), "{}", sweep.stderr);
    assert_eq!(sweep.count("undetermined"), RESTING_PEERS, "{}", sweep.summary);
    assert!(sweep.peers.values().all(|record| record["reason"] == "interrupted"));
    sweep.assert_accounts();
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn ctrl_c_closes_flows_and_reports() {
    interrupted_by("int", Signal::SIGINT);
}

/// The terminal is gone: a lost ssh session.
#[test]
fn sighup_closes_flows_and_reports() {
    interrupted_by("hup", Signal::SIGHUP);
}

#[test]
fn sigterm_closes_flows_and_reports() {
    interrupted_by("term", Signal::SIGTERM);
}

#[test]
fn the_run_after_kill_9_is_unharmed() {
    let Some(lab) = Lab::up("kill", &[]) else { return };
    // The same seed and hardly any source ports: every 4-tuple drawn is one that the killed run
    // left open at its peer, so that each has to be opened on another.
    let same = ["--seed", "7", "--source-ports", "61000-61003"];
    let killed = lab.start(&[RESTING, &same].concat());
    lab.await_connections("8080", RESTING_PEERS);
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.output().status.code(), None);
    assert_eq!(lab.connections("8080"), RESTING_PEERS);
    let sweep = lab.sweep(&[&["10.99.0.0/20", "-p", "8080"], &same[..]].concat());
    assert_eq!(sweep.code, Some(0), "{}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.count("alive"), RESTING_PEERS);
    sweep.assert_accounts();
}

#[test]
fn a_full_disk_says_how_many_records_it_holds() {
    let Some(lab) = Lab::up("full", &[]) else { return };
    let sweep = lab.start(&["10.99.0.0/22", "-p", "8080", "--format", "ndjson", "-o", "/dev/full"]);
    let output = sweep.output();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("/dev/full") && stderr.contains("of 1,024 records"), "{stderr}");
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let Some(lab) = Lab::up("pipe", &[]) else { return };
    let mut head = Command::new("head")
        .args(["-n", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("head starts");
    let pipe = head.stdin.take().expect("a pipe");
    let args = ["10.99.0.0/18", "-p", "8080", "--rate", "max", "--format", "ndjson"];
    let output = lab.start_with(&args, pipe.into()).output();
    head.wait().expect("head ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn bad_interfaces_and_sources_are_named() {
    let Some(lab) = Lab::up("bad", &[]) else { return };
    lab.script(&["exec", "ip", "link", "add", "spare0", "type", "veth", "peer", "name", "spare1"]);
    let rows: &[(&[&str], i32, &str)] = &[
        (&["10.99.0.1:8080", "-i", "nosuch0"], 2, "nosuch0"),
        (&["10.99.0.1:8080", "-i", "spare0"], 3, "spare0: down"),
        (&["10.99.0.1:8080", "--source", "10.1.2.3"], 2, "10.1.2.3"),
        (&["10.99.0.1:8080", "--source-ports", "40000-41000"], 2, "40000-41000"),
        (&["10.96.3.255:8080"], 2, "10.96.3.255"),
        (&["10.98.0.1:8080", "--io", "packet"], 2, "10.98.0.1"),
        (&["10.99.0.1:8080", "--cpus", "0,1023"], 2, "pin a thread on CPU 1023"),
        (&["10.99.0.1:8080", "--pcap", "/nonexistent/x.pcap"], 3, "/nonexistent/x.pcap"),
    ];
    for (args, code, named) in rows {
        let output = lab.start(args).output();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {stderr}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?} printed records");
    }
}

/// A slow rate must not keep who wants to leave: the second signal closes what is open at once.
#[test]
fn a_second_ctrl_c_closes_without_regard_to_the_rate() {
    let Some(lab) = Lab::up("hurry", &[]) else { return };
    let args = ["10.99.0.0/22", "-p", "8080", "--idle", "1h", "--format", "ndjson"];
    let mut sweep = lab.start(&[&args[..], &["--rate", "300"]].concat());
    lab.await_connections("8080", 500);
    // At the rate this would take seconds; all of it is over long before.
    sweep.signal(Signal::SIGINT);
    sweep.await_message("interrupted: closing the open connections");
    sweep.signal(Signal::SIGINT);
    let sweep = sweep.finish();
    assert_eq!(sweep.code, Some(130), "{}", sweep.stderr);
    assert_eq!(sweep.peers.len(), 1024);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn only_unreachable_targets_need_no_guard() {
    let Some(lab) = Lab::up("nowhere", &[]) else { return };
    lab.script(&["fault", "no-route", "10.99.0.0/24"]);
    let sweep = lab.sweep(&["10.99.0.0/28", "-p", "8080"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    assert!(sweep.peers.values().all(|record| record["reason"] == "no-route"), "{}", sweep.summary);
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    let Some(lab) = Lab::up("unpriv", &[]) else { return };
    let output = Command::new("ip")
        .args(["netns", "exec", &lab.namespace("prober")])
        .args(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"])
        .args([env!("CARGO_BIN_EXE_keepsweep"), "sweep", "10.99.0.1:8080"])
        .output()
        .expect("setpriv starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for word in ["CAP_NET_RAW", "CAP_BPF", "sudo", "setcap"] {
        assert!(stderr.contains(word), "{stderr}");
    }
}

#[test]
fn the_capture_holds_every_probe_and_reply() {
    let Some(lab) = Lab::up("pcap", &[]) else { return };
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let path = file.path().to_str().expect("path");
    lab.script(&["fault", "icmp", "host", "10.99.1.0/28"]);
    let sweep = lab.sweep(&[
        "10.99.0.0/26:8080",
        "10.99.2.0/26:8083",
        "10.99.1.0/28:8080",
        "10.96.1.0/28:8080",
        "--pcap",
        path,
        "--probe-bytes",
        "0",
    ]);
    sweep.assert_accounts();
    let frames = |filter: &[&str]| {
        let output = Command::new("tshark")
            .args(["-r", path, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"])
            .args(filter)
            .stderr(Stdio::null())
            .output()
            .expect("tshark starts");
        assert!(output.status.success(), "tshark cannot read the capture");
        String::from_utf8_lossy(&output.stdout).lines().count() as u64
    };
    let number = |field: &str| sweep.summary[field].as_u64().expect("a number");
    assert_eq!(frames(&[]), number("frames_sent") + number("frames_received"));
    assert_eq!(frames(&["-Y", "_ws.malformed"]), 0);
    // Checksums of our own frames; the peers' are left to their device.
    let ours = "ip.src == 10.98.0.1 && (tcp.checksum.status == 0 || ip.checksum.status == 0)";
    assert_eq!(frames(&["-Y", ours]), 0);
    assert!(frames(&["-Y", "tcp.analysis.keep_alive"]) > 0, "no keepalive recognised");
}
