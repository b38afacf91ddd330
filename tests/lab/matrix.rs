//! Every cause that keepsweep tells apart, over each path and both address families at once, at 0, 1
//! and 5 % loss each way: 0 wrong states.

use crate::support::{Lab, Running, assert_every_queue_heard, holds_within, interface, pause};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Peers behind the router (256 of each family), port, cause, and what keepsweep must say.
const CAUSES: &[(&str, u16, &str, &str, &[&str])] = &[
    ("0", 8080, "alive", "alive", &["ack"]),
    ("1", 8081, "refused", "alive", &["refused"]),
    ("2", 8082, "closed-by-peer", "alive", &["closed-by-peer"]),
    ("3", 8083, "peer-data", "alive", &["data", "ack"]),
    ("4", 8084, "zero-window", "alive", &["zero-window"]),
    ("10", 8080, "down-from-the-start", "down", &["silent"]),
    ("11", 8080, "down-while-idle", "down", &["silent"]),
    ("12", 8080, "rebooted-while-idle", "rebooted", &["reset"]),
    ("20", 8080, "icmp-net", "unreachable", &["icmp-net"]),
    ("21", 8080, "icmp-host", "unreachable", &["icmp-host"]),
    ("22", 8080, "icmp-admin", "unreachable", &["icmp-admin"]),
    ("23", 8080, "icmp-ttl", "unreachable", &["icmp-ttl"]),
    ("24", 8080, "icmp-host-while-idle", "unreachable", &["icmp-host"]),
    ("25", 8080, "firewall-resets-while-idle", "unreachable", &["path-reset"]),
    ("30", 8080, "no-route", "unreachable", &["no-route"]),
    ("on-link", 8080, "neighbour-unanswered", "unreachable", &["neighbour"]),
];
/// They answer each SYN once, in a single packet: whose answers are lost for as long as it is asked is silent
/// to anyone.
const DO_NOT_REPEAT: [&str; 5] = ["refused", "icmp-net", "icmp-host", "icmp-admin", "icmp-ttl"];
const PEERS: usize = 256;
/// Fewer, as the raw path has the kernel ask for them, and its table of 1,024 belongs to the whole
/// machine.
const ON_LINK: usize = 64;

/// Returns the prefixes of a subnet, IPv4 and IPv6.
fn prefixes(subnet: &str) -> [String; 2] {
    match subnet {
        "on-link" => ["10.96.2.0/26".to_owned(), "fd96:0:0:2::/122".to_owned()],
        subnet => [format!("10.99.{subnet}.0/24"), format!("fd99:0:0:{subnet}::/120")],
    }
}

/// One test a line: its name, the lab's, the path, and per cent lost each way.
macro_rules! matrices {
    ($($(#[$attribute:meta])* $test:ident: $lab:literal, $way:expr, $loss:literal;)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $test() {
                matrix($lab, $way, $loss);
            }
        )*
    };
}

// Over AF_XDP every mode and number of queues, and every loss; all of it at once takes too long for
// every run: cargo test --features lab --test lab -- --ignored xdp_matrix
matrices! {
    packet_matrix_without_loss: "mp0", PACKET, "0";
    packet_matrix_at_1_percent_loss_each_way: "mp1", PACKET, "1";
    packet_matrix_at_5_percent_loss_each_way: "mp5", PACKET, "5";
    raw_matrix_without_loss: "mr0", RAW, "0";
    raw_matrix_at_1_percent_loss_each_way: "mr1", RAW, "1";
    raw_matrix_at_5_percent_loss_each_way: "mr5", RAW, "5";
    #[ignore = "one of twelve"]
    xdp_matrix_native_without_loss: "md0", xdp("drv", 1), "0";
    #[ignore = "one of twelve"]
    xdp_matrix_native_at_1_percent_loss_each_way: "md1", xdp("drv", 1), "1";
    xdp_matrix_native_at_5_percent_loss_each_way: "md5", xdp("drv", 1), "5";
    #[ignore = "one of twelve"]
    xdp_matrix_native_on_2_queues_without_loss: "mD0", xdp("drv", 2), "0";
    xdp_matrix_native_on_2_queues_at_1_percent_loss_each_way: "mD1", xdp("drv", 2), "1";
    #[ignore = "one of twelve"]
    xdp_matrix_native_on_2_queues_at_5_percent_loss_each_way: "mD5", xdp("drv", 2), "5";
    xdp_matrix_generic_without_loss: "ms0", xdp("skb", 1), "0";
    #[ignore = "one of twelve"]
    xdp_matrix_generic_at_1_percent_loss_each_way: "ms1", xdp("skb", 1), "1";
    #[ignore = "one of twelve"]
    xdp_matrix_generic_at_5_percent_loss_each_way: "ms5", xdp("skb", 1), "5";
    #[ignore = "one of twelve"]
    xdp_matrix_generic_on_2_queues_without_loss: "mS0", xdp("skb", 2), "0";
    #[ignore = "one of twelve"]
    xdp_matrix_generic_on_2_queues_at_1_percent_loss_each_way: "mS1", xdp("skb", 2), "1";
    xdp_matrix_generic_on_2_queues_at_5_percent_loss_each_way: "mS5", xdp("skb", 2), "5";
}

/// How probes leave and answers come back.
struct Way {
    io: &'static str,
    options: &'static [&'static str],
    queues: u32,
}

const PACKET: Way = Way { io: "packet", options: &[], queues: 1 };
const RAW: Way = Way { io: "raw", options: &[], queues: 1 };

fn xdp(mode: &'static str, queues: u32) -> Way {
    let options: &[&str] =
        if mode == "drv" { &["--xdp-mode", "drv"] } else { &["--xdp-mode", "skb"] };
    Way { io: "xdp", options, queues }
}

/// Starts a sweep whose connections to those who are alive, and to what breaks while idle, stand soon enough
/// to be broken in time. At 5 % loss five SYNs of one of the 2,560 are lost once in 45 sweeps, and it stands
/// too late, whatever keepsweep does: then it is the next sweep, of three.
fn start_connected(lab: &Lab, arguments: &[&str], loss: &str) -> Running {
    for _ in 0..if loss == "5" { 3 } else { 1 } {
        let sweep = lab.start(arguments);
        let all_stand = || lab.connections("8080") >= 5 * 2 * PEERS;
        if holds_within(Duration::from_secs(18), all_stand) {
            return sweep;
        }
        println!("not connected within 18 s:\n{}", lab.script(&["status"]));
        sweep.signal(Signal::SIGINT);
        println!("{}", sweep.finish().summary);
        lab.script(&["relisten"]);
    }
    panic!("no sweep was connected within 18 s");
}

fn matrix(name: &str, way: Way, loss: &str) {
    let Way { io, options, queues } = way;
    let Some(lab) = Lab::up(name, &[]) else { return };
    lab.set_queues(queues);
    let fault = |kind: &[&str], subnet: &str| {
        let [v4, v6] = prefixes(subnet);
        lab.script(&[&["fault"], kind, &[&v4, &v6]].concat());
    };
    lab.script(&["fault", "loss", loss]);
    fault(&["drop"], "10");
    fault(&["icmp", "net"], "20");
    fault(&["icmp", "host"], "21");
    fault(&["icmp", "admin"], "22");
    fault(&["ttl"], "23");
    fault(&["no-route"], "30");

    let mut targets = String::new();
    for (subnet, port, cause, ..) in CAUSES {
        let [v4, v6] = prefixes(subnet);
        writeln!(targets, "{v4}:{port} {cause}\n[{v6}]:{port} {cause}").expect("a string");
    }
    let list = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(list.path(), targets).expect("write targets");

    // At 5 % each way, five SYNs in a row draw nothing from one of the 2,560 peers that do not
    // repeat themselves (ICMP, refused) once in 45 runs; 63 s give six, and once in 455.
    let connect_timeout = if loss == "5" { "63s" } else { "31s" };
    // The idle time is long enough for what is broken meanwhile.
    let arguments = [
        "--format",
        "ndjson",
        "--io",
        io,
        "--targets",
        list.path().to_str().expect("path"),
        "--count",
        "8",
        "--idle",
        "26s",
        "--connect-timeout",
        connect_timeout,
        "--rate",
        "10000",
    ];
    let sweep = start_connected(&lab, &[&arguments[..], options].concat(), loss);
    // The prober must know it too: with 5 % loss each way one handshake in ten is confirmed a
    // second late, one in a hundred two.
    pause(Duration::from_secs(6));
    fault(&["drop"], "11");
    fault(&["reboot"], "12");
    fault(&["icmp", "host"], "24");
    fault(&["reset"], "25");
    let sweep = sweep.finish();

    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    let peers = 2 * ((CAUSES.len() - 1) * PEERS + ON_LINK);
    assert_eq!(sweep.peers.len(), peers, "{}", sweep.stderr);
    assert_eq!(sweep.summary["io"], io);
    if io == "xdp" {
        assert_every_queue_heard(&sweep, options[1], queues);
        // Every second one of those who talk says more at first than a frame holds.
        let link = interface(&sweep, "up0");
        assert!(link["passed"].as_u64() >= Some(PEERS as u64), "{link}");
    }
    let mut confusion: BTreeMap<(&str, &str, String), usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let (mut undetermined, mut unheard) = (0, 0);
    for record in sweep.peers.values() {
        let label = record["label"].as_str().expect("label");
        let (.., cause, state, reasons) =
            *CAUSES.iter().find(|cause| cause.2 == label).expect("a known cause");
        let (said, why) = (record["state"].as_str().unwrap_or(""), record["reason"].as_str());
        let is_ipv6 = record["peer_ip"].as_str().is_some_and(|ip| ip.contains(':'));
        let family = if is_ipv6 { "IPv6" } else { "IPv4" };
        let verdict = format!("{said}/{}", why.unwrap_or(""));
        *confusion.entry((cause, family, verdict)).or_default() += 1;
        if said == "undetermined" {
            undetermined += 1;
        } else if (said, why) == ("down", Some("silent")) && DO_NOT_REPEAT.contains(&label) {
            unheard += 1;
        } else if said != state || !reasons.contains(&why.unwrap_or("")) {
            wrong.push(record.to_string());
        }
    }
    let mut table = String::new();
    for ((cause, family, said), count) in &confusion {
        writeln!(table, "{cause:26} {family} {said:28} {count:5}").expect("a string");
    }
    println!("{io} {options:?}, {queues} queues, loss {loss} % each way\n{table}{}", sweep.summary);
    let some = &wrong[..wrong.len().min(3)];
    assert!(wrong.is_empty(), "{io}, loss {loss} %: {} wrong\n{table}{some:#?}", wrong.len());
    // Two of them come once in 400,000.
    let unlucky = usize::from(loss == "5");
    assert!(unheard <= unlucky, "{io}, loss {loss} %: {unheard} unheard\n{table}");
    let allowed = if loss == "5" { sweep.peers.len() / 100 } else { 0 };
    assert!(undetermined <= allowed, "{io}, loss {loss} %: {undetermined} undetermined\n{table}");
    sweep.assert_accounts();
}
