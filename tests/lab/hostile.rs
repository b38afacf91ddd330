//! Replies that nobody sent, replies a hundred times over, late, and without end: lab-forger sits on
//! the router.

use crate::support::{Lab, Running, Sweep, pause};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The attacker at work.
struct Forger {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Forger {
    /// Starts it; from the return on it sees what passes.
    fn start(lab: &Lab, args: &[&str]) -> Forger {
        let forger = env!("CARGO_BIN_EXE_lab-forger");
        let mut child = Command::new("ip")
            .args(["netns", "exec", &lab.namespace("router"), forger])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("lab-forger starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("readable");
        assert_eq!(line, "{\"ready\":true}\n");
        Forger { child, output }
    }

    /// Waits until everything that was asked for is out.
    fn finish(mut self) -> Value {
        let mut report = String::new();
        self.output.read_to_string(&mut report).expect("readable");
        assert!(self.child.wait().expect("lab-forger ends").success());
        serde_json::from_str(&report).expect("a JSON object")
    }

    /// Tells it that it is over.
    fn stop(mut self) -> Value {
        drop(self.child.stdin.take());
        self.finish()
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        // Already gone, unless the test is failing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts what the peers' kernels really send to the prober, behind every forgery.
fn count_true_replies(lab: &Lab) {
    lab.script(&[
        "exec",
        "router",
        "nft",
        "table inet truth { counter replies { }; chain count { type filter hook postrouting \
         priority 300; oifname up0 meta l4proto tcp counter name replies; }; }",
    ]);
}

fn true_replies(lab: &Lab) -> u64 {
    let listed =
        lab.script(&["exec", "router", "nft", "-j", "list", "counter", "inet", "truth", "replies"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let counters = listed["nftables"].as_array().expect("an array");
    let packets = counters.iter().find_map(|part| part["counter"]["packets"].as_u64());
    packets.expect("the counter")
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn rejected(sweep: &Sweep, reasons: &[&str]) -> u64 {
    let count = |reason: &&str| sweep.summary["replies_rejected"][reason].as_u64().unwrap_or(0);
    reasons.iter().map(count).sum()
}

fn forged(report: &Value, kinds: &[&str]) -> u64 {
    kinds.iter().map(|kind| number(&report["by_kind"], kind)).sum()
}

/// Every peer is in the state that its prefix (third octet) says.
fn assert_states(sweep: &Sweep, truth: impl Fn(u8) -> (&'static str, &'static [&'static str])) {
    let has_missed =
        number(&sweep.summary, "rx_dropped") > 0 || sweep.stderr.contains("stood still for");
    for record in sweep.peers.values() {
        let ip: std::net::Ipv4Addr =
            record["peer_ip"].as_str().expect("peer_ip").parse().expect("IP");
        let (state, reasons) = truth(ip.octets()[2]);
        let [said, why] = ["state", "reason"].map(|field| record[field].as_str().expect(field));
        // Frames lost or not heard in time on our own side accuse nobody.
        let excused = has_missed && (said, why) == ("undetermined", "observer") && state != "alive";
        assert!(
            (said == state && reasons.contains(&why)) || excused,
            "{record}\n{}",
            sweep.summary
        );
    }
}

#[test]
fn a_million_forged_replies_change_nothing() {
    const FORGED: u64 = 1_000_000;
    let Some(lab) = Lab::up_alone("forged", &[]) else { return };
    count_true_replies(&lab);
    lab.script(&["fault", "drop", "10.99.16.0/24"]);
    let forger = Forger::start(&lab, &["--forge", &FORGED.to_string(), "--rate", "80000"]);
    let args =
        ["10.99.0.0/16", "-p", "8080", "--rate", "10000", "--idle", "9s", "--format", "ndjson"];
    let sweep = lab.start(&args);
    let report = forger.finish();
    let connected = lab.connections("8080");
    assert!(connected > 0, "the sweep was over before the last forgery: {report}");
    let sweep = sweep.finish();
    println!("{report}\n{}", sweep.summary);
    assert_eq!(number(&report, "forged"), FORGED);
    assert_eq!(number(&report, "sent"), FORGED);

    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    assert_eq!(sweep.peers.len(), 65_536);
    assert_states(&sweep, |octet| match octet {
        16 => ("down", &["silent"]),
        _ => ("alive", &["ack"]),
    });
    sweep.assert_accounts();
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");

    // What was believed is what the peers sent, and answers to ARP.
    let (dropped, matched) =
        (number(&sweep.summary, "rx_dropped"), number(&sweep.summary, "replies_matched"));
    let truth = true_replies(&lab) + number(&sweep.summary["sent_by_kind"], "arp");
    assert!(matched <= truth && matched + dropped >= truth, "{matched} of {truth}, {dropped} lost");
    // And every forgery is counted where it belongs.
    let about = |reasons: &[&str], kinds: &[&str]| {
        let (rejected, forged) = (rejected(&sweep, reasons), forged(&report, kinds));
        let fits = rejected <= forged && rejected + dropped >= forged;
        assert!(
            fits,
            "{reasons:?} {rejected}, {kinds:?} {forged}, {dropped} lost\n{}",
            sweep.summary
        );
    };
    about(
        &["no-flow"],
        &["random-ack", "random-syn-ack", "random-rst", "random-data", "random-icmp", "icmp-port"],
    );
    // While the flow rests or is over, no quote is right.
    about(
        &["ack-unacceptable", "rst-seq", "rst-ack", "icmp-quote", "closed-flow", "syn"],
        &["ack", "data", "fin", "syn-ack", "rst", "rst-ack", "icmp-seq"],
    );
    // Few flows have a SYN out at any moment, which is when a RST must acknowledge it.
    for (reason, least) in [
        ("ack-unacceptable", 10_000),
        ("rst-seq", 10_000),
        ("rst-ack", 100),
        ("icmp-quote", 10_000),
    ] {
        assert!(rejected(&sweep, &[reason]) > least, "{reason}: {}", sweep.summary);
    }
}

/// ACKs to SYNs make keepsweep try other ports, and nothing worse.
#[test]
fn forged_hints_cost_ports_and_no_verdict() {
    let Some(lab) = Lab::up("hints", &[]) else { return };
    lab.script(&["fault", "drop", "10.99.1.0/26"]);
    let forger = Forger::start(&lab, &["--forge", "100000000", "--rate", "20000", "--hints"]);
    let sweep = lab.sweep(&["10.99.0.0/26", "10.99.1.0/26", "-p", "8080", "--rate", "500"]);
    let report = forger.stop();
    assert!(forged(&report, &["ack-to-syn"]) > 100, "{report}");
    assert_states(&sweep, |octet| match octet {
        // Its tuples are said to be taken: nobody is accused on such evidence.
        1 => ("undetermined", &["unprobeable"]),
        _ => ("alive", &["ack"]),
    });
    sweep.assert_accounts();
}

const MIXED: &[&str] = &["10.99.0.0/25", "10.99.12.0/25", "10.99.16.0/25", "-p", "8080"];

fn start_mixed(lab: &Lab) -> Running {
    let sweep = lab.start(&[MIXED, &["--idle", "6s", "--format", "ndjson"]].concat());
    lab.await_connections("8080", 3 * 128);
    // Until the handshakes are confirmed, late replies included.
    pause(Duration::from_secs(2));
    lab.script(&["fault", "reboot", "10.99.12.0/24"]);
    lab.script(&["fault", "drop", "10.99.16.0/24"]);
    sweep
}

fn mixed(octet: u8) -> (&'static str, &'static [&'static str]) {
    match octet {
        12 => ("rebooted", &["reset"]),
        16 => ("down", &["silent"]),
        _ => ("alive", &["ack"]),
    }
}

#[test]
fn replies_a_hundred_times_over_and_late() {
    let Some(lab) = Lab::up("copies", &[]) else { return };
    // The forger sends on what is dropped here: a quarter of all replies, up to 40 ms late.
    lab.script(&[
        "exec",
        "router",
        "nft",
        "table inet late { chain forward { type filter hook forward priority 0; \
         iifname down0 oifname up0 meta l4proto tcp @th,32,32 & 3 == 0 counter drop; }; }",
    ]);
    let forger = Forger::start(&lab, &["--duplicate", "99", "--delay", "40"]);
    let sweep = start_mixed(&lab).finish();
    let report = forger.stop();
    println!("{report}\n{}", sweep.summary);
    assert_eq!(sweep.peers.len(), 3 * 128, "{}", sweep.stderr);
    assert_states(&sweep, mixed);
    sweep.assert_accounts();
    let heard = number(&sweep.summary, "frames_received") + number(&sweep.summary, "rx_dropped");
    // SYN-ACK and ACK of each peer, a hundred times.
    assert!(heard >= 2 * 3 * 128 * 100, "{}", sweep.summary);
    assert!(number(&report, "delayed") > 100, "{report}");
}

/// Whoever sends data without end is acknowledged a few times a second.
#[test]
fn a_flood_of_data_draws_no_flood_of_acks() {
    let Some(lab) = Lab::up("flood", &[]) else { return };
    let forger = Forger::start(&lab, &["--forge", "400000", "--flood", "--rate", "50000"]);
    let args = ["10.99.0.0/28", "-p", "8080", "--idle", "10s", "--format", "ndjson"];
    let sweep = lab.start(&args).finish();
    let report = forger.finish();
    println!("{report}\n{}", sweep.summary);
    assert_eq!(sweep.code, Some(0), "{}", sweep.stderr);
    assert_states(&sweep, |_| ("alive", &["ack", "data"]));
    sweep.assert_accounts();
    assert!(number(&sweep.summary, "frames_received") > 200_000, "{}", sweep.summary);
    // Four a second to each of 16 peers, for 11 seconds at most.
    let acks = number(&sweep.summary["sent_by_kind"], "ack");
    assert!(acks <= 16 * (4 * 12 + 1), "{}", sweep.summary);
}
