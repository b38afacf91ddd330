//! The command line as a user meets it. Nothing here sends a frame, and only what is compared octet
//! by octet needs a privilege.

mod netns;

use snapbox::cmd::{Command, cargo_bin};
use snapbox::{IntoData, file, str};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use tempfile::TempDir;

fn keepsweep(args: &[&str]) -> Command {
    // Help is wrapped to the terminal's width; without one, to COLUMNS.
    Command::new(cargo_bin!("keepsweep")).args(args).env("COLUMNS", "100").stdin("")
}

/// What keeps a dry run from looking up routes of this machine: a network namespace without any.
/// Where that cannot be had, a dry run shows other routes, and fails for broadcast addresses of
/// connected networks.
static WITHOUT_NETWORK: LazyLock<&[&str]> = LazyLock::new(|| {
    let ways: [&[&str]; 2] = [&["unshare", "--net", "--"], &["unshare", "-r", "--net", "--"]];
    let works = |way: &&&[&str]| {
        let output = std::process::Command::new(way[0]).args(&way[1..]).arg("true").output();
        output.is_ok_and(|output| output.status.success())
    };
    ways.iter().find(works).copied().unwrap_or(&["env", "--"])
});

/// Runs keepsweep where there is no network.
fn offline(args: &[&str]) -> Command {
    let way = *WITHOUT_NETWORK;
    Command::new(way[0]).args(&way[1..]).arg(cargo_bin!("keepsweep")).args(args).stdin("")
}

/// Runs a sweep that must be refused: exit 2, nothing on standard output, the reason on standard
/// error.
fn refused(args: &str, reason: impl IntoData) {
    let args: Vec<&str> = std::iter::once("sweep").chain(args.split_whitespace()).collect();
    keepsweep(&args).assert().code(2).stdout_eq("").stderr_eq(reason);
}

fn dir_with(name: &str, content: impl AsRef<[u8]>) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(name), content).expect("written");
    dir
}

fn refused_in(dir: &TempDir, args: &str, reason: impl IntoData) {
    let args: Vec<&str> = std::iter::once("sweep").chain(args.split_whitespace()).collect();
    keepsweep(&args).current_dir(dir.path()).assert().code(2).stdout_eq("").stderr_eq(reason);
}

fn dry(args: &str) -> String {
    let args = ["sweep", "--dry-run", "--seed", "42"].into_iter().chain(args.split_whitespace());
    let args: Vec<&str> = args.collect();
    let output = offline(&args).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The peers that a dry run lists below its header, without what it would send them.
fn dry_peers(args: &str) -> Vec<String> {
    let text = dry(args);
    let lines = text.lines().skip_while(|line| !line.is_empty()).skip(1);
    let without_frame = |line: &str| line.rsplit_once("  ").expect("two columns").0.to_owned();
    lines.map(without_frame).collect()
}

#[test]
fn help() {
    keepsweep(&["sweep", "--help"]).assert().code(0).stdout_eq(file!["snapshots/sweep-help.txt"]);
    keepsweep(&["sweep", "-h"]).assert().code(0).stdout_eq(file!["snapshots/sweep-help-short.txt"]);
    keepsweep(&["audit", "--help"]).assert().code(0).stdout_eq(file!["snapshots/audit-help.txt"]);
    keepsweep(&["audit", "-h"]).assert().code(0).stdout_eq(file!["snapshots/audit-help-short.txt"]);
    keepsweep(&["doctor", "--help"]).assert().code(0).stdout_eq(file!["snapshots/doctor-help.txt"]);
    keepsweep(&["bench", "--help"]).assert().code(0).stdout_eq(file!["snapshots/bench-help.txt"]);
    keepsweep(&["--help"]).assert().code(0).stdout_eq(file!["snapshots/help.txt"]);
    // Without a word: the same help, on standard error, as bad usage.
    keepsweep(&[]).assert().code(2).stdout_eq("").stderr_eq(file!["snapshots/no-arguments.txt"]);
}

#[test]
fn what_bench_cannot_measure_is_told() {
    for (args, why) in [
        (&["rx", "-i", "eth0"][..], "bench rx takes no -i"),
        (&["rx", "--io", "raw"], "--io packet measures it too"),
        (&["match", "--io", "xdp"], "in memory"),
        (&["tx", "--seconds", "0"], "0.1 to 3600 seconds"),
        (&["tx", "--io", "dpdk"], "invalid value 'dpdk'"),
        (&["everything"], "invalid value 'everything'"),
    ] {
        let output = keepsweep(&[&["bench"], args].concat()).output().expect("runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(said.contains(why), "{args:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn version() {
    let version = concat!("keepsweep ", env!("CARGO_PKG_VERSION"), "\n");
    keepsweep(&["--version"]).assert().code(0).stdout_eq(version);
}

#[test]
fn examples_in_the_help_are_valid() {
    let help = keepsweep(&["sweep", "--help"]).output().expect("runs").stdout;
    let help = String::from_utf8(help).expect("UTF-8");
    let dir = dir_with("fleet.txt", "10.0.0.1:5432 rack-7\n");
    let mut examples = 0;
    for line in help.lines() {
        let line = line.trim().trim_start_matches("sudo ");
        let Some(args) =
            line.strip_prefix("keepsweep sweep 10").map(|rest| format!("10{rest}")).or_else(|| {
                line.strip_prefix("keepsweep sweep --targets")
                    .map(|rest| format!("--targets{rest}"))
            })
        else {
            continue;
        };
        let args = ["sweep", "--dry-run"].into_iter().chain(args.split_whitespace());
        let mut seen = std::collections::HashSet::new();
        // An example may hold --dry-run already.
        let args: Vec<&str> = args.filter(|arg| *arg != "--dry-run" || seen.insert(*arg)).collect();
        offline(&args).current_dir(dir.path()).assert().code(0);
        examples += 1;
    }
    assert_eq!(examples, 4);
}

#[test]
fn what_is_not_built_yet_is_not_offered() {
    let missing =
        ["--rounds=2", "--every=1m", "--deep", "--false-dead=0.1", "--patience=1s", "--flows=-"];
    for option in missing {
        keepsweep(&["sweep", "10.0.0.1:80", "--dry-run", option]).assert().code(2).stdout_eq("");
    }
    for option in ["--kill=down", "--arm=60,5,3", "--yes"] {
        keepsweep(&["audit", "--dry-run", option]).assert().code(2).stdout_eq("");
    }
    keepsweep(&["explain"]).assert().code(2).stdout_eq("");
}

#[test]
fn dry_run_says_what_would_be_sent() {
    let dir = dir_with("fleet.txt", "10.0.0.1:5432  rack 7\n10.0.0.4/30\n");
    let args = "sweep --dry-run --seed 42 --targets fleet.txt -p 80,443 --exclude 10.0.0.6/31";
    let args: Vec<&str> = args.split(' ').collect();
    offline(&args)
        .current_dir(dir.path())
        .assert()
        .code(0)
        .stdout_eq(file!["snapshots/dry-run.txt"])
        .stderr_eq("");
}

/// Two interfaces with known addresses, and a prefix that cannot be reached.
const NETWORK: &[&str] = &[
    "link add up0 address 02:00:00:00:00:01 type veth peer name up1",
    "link add lan0 address 02:00:00:00:00:02 type veth peer name lan1",
    "link set up0 up",
    "link set up1 up",
    "link set lan0 up",
    "link set lan1 up",
    "addr add 10.98.0.1/24 dev up0",
    "addr add 10.96.0.1/22 dev lan0",
    "route add default via 10.98.0.254",
    "route add unreachable 10.99.30.0/24",
];

/// The frames themselves, to the octet. They are crafted without any capability.
#[test]
fn dry_run_shows_the_first_frame_to_every_peer() {
    netns::in_namespace(|| {
        for arguments in NETWORK {
            netns::ip(arguments);
        }
        let dir = dir_with("fleet.txt", "10.99.0.0/30  rack 7\n10.96.1.1\n10.99.30.1\n");
        Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
            .arg(cargo_bin!("keepsweep"))
            .args(["sweep", "--dry-run", "--seed", "42", "--targets", "fleet.txt", "-p", "8080"])
            .args(["--pcap", "first.pcap"])
            .current_dir(dir.path())
            .assert()
            .code(0)
            .stdout_eq(file!["snapshots/dry-run-frames.txt"])
            .stderr_eq("");
        let written = fs::read(dir.path().join("first.pcap")).expect("a capture");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dry-run.pcap");
        if std::env::var_os("KEEPSWEEP_BLESS").is_some() {
            fs::write(&golden, &written).expect("written");
        }
        assert_eq!(written, fs::read(golden).expect("tests/golden/dry-run.pcap"));
    });
}

#[test]
fn dry_run_fails_where_the_sweep_would() {
    let dir = dir_with("old.pcap", "kept");
    let args = ["sweep", "--dry-run", "10.0.0.1:80", "--pcap", "old.pcap", "-i", "nosuch0"];
    offline(&args).current_dir(dir.path()).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
keepsweep: interface nosuch0: no such interface; there are lo

"#]]);
    assert_eq!(fs::read(dir.path().join("old.pcap")).expect("read"), b"kept");
    let args = ["sweep", "--dry-run", "10.0.0.1:80", "--pcap", "none/x.pcap"];
    offline(&args).current_dir(dir.path()).assert().code(3).stdout_eq("").stderr_eq(str![[r#"
keepsweep: create none/x.pcap: No such file or directory (os error 2)

"#]]);
}

#[test]
fn only_this_host_is_behind_the_loopback() {
    refused(
        "10.0.0.1:80 -i lo --dry-run",
        "keepsweep: 10.0.0.1: not an address of this host, and nothing else is behind lo; leave out -i, \
         or it (--exclude 10.0.0.1)\n",
    );
    keepsweep(&["sweep", "127.0.0.1:80", "-i", "lo", "--dry-run"]).assert().code(0);
}

#[test]
fn dry_run_counts_every_address() {
    let peers = dry_peers("10.3.0.0/16 -p 8080");
    assert_eq!(peers.len(), 65_536);
    assert_eq!(peers[0], "10.3.0.0:8080");
    assert_eq!(peers[65_535], "10.3.255.255:8080");
}

#[test]
fn duplicates_are_said_once() {
    let args = ["sweep", "--dry-run", "10.0.0.0/30:80", "10.0.0.1", "10.0.0.2:80", "-p", "80"];
    let note = str![[r#"
keepsweep: note: duplicate targets: 2; each peer is probed once

"#]];
    offline(&args).assert().code(0).stderr_eq(note);
    let quiet: Vec<&str> = args.into_iter().chain(["-q"]).collect();
    offline(&quiet).assert().code(0).stderr_eq("");
    assert_eq!(dry_peers("10.0.0.0/30:80 10.0.0.1 10.0.0.2:80 -p 80").len(), 4);
}

#[test]
fn targets_come_from_standard_input_too() {
    let args = ["sweep", "--dry-run", "--targets", "-"];
    let output = offline(&args).stdin("10.0.0.1:80 a\n\n# none\n10.0.0.2:81\n").output();
    let text = String::from_utf8(output.expect("runs").stdout).expect("UTF-8");
    let peers: Vec<_> = text.lines().rev().take(3).collect();
    assert!(peers[0].starts_with("10.0.0.2:81  "), "{text}");
    assert!(peers[1].starts_with("10.0.0.1:80  a  ") && peers[2].is_empty(), "{text}");
    keepsweep(&args).stdin("10.0.0.1:80\nx y z\n:80\n").assert().code(2).stderr_eq(str![[r#"
keepsweep: standard input:3: ":80": neither a host name nor an IP address nor a CIDR prefix

"#]]);
}

#[test]
fn malformed_targets() {
    refused(
        "10.0.0.256 10.0.0.0/33:80 host:0 -p 80",
        str![[r#"
keepsweep: command line: "10.0.0.256": not an IP address
keepsweep: command line: "10.0.0.0/33:80": not a CIDR prefix
keepsweep: command line: "host:0": port 0 cannot be used

"#]],
    );
    let dir = dir_with("fleet.txt", "10.0.0.1:80\n\n10.0.0.2:99999 db\n10.0.0/24\n");
    refused_in(
        &dir,
        "--targets fleet.txt",
        str![[r#"
keepsweep: fleet.txt:3: "10.0.0.2:99999": "99999" is not a port (1 to 65535)
keepsweep: fleet.txt:4: "10.0.0/24": not a CIDR prefix

"#]],
    );
    let dir = dir_with("fleet.txt", b"\x7fELF\x02\x01\x01\xff\n");
    refused_in(
        &dir,
        "--targets fleet.txt",
        str![[r#"
keepsweep: fleet.txt:1: "/u{7f}ELF/u{2}/u{1}/u{1}�": not UTF-8 text

"#]],
    );
}

/// RFC 6761 §6.4: .invalid never resolves. A name without an address is a record, and never
/// somebody's accusation.
#[test]
fn names_without_an_address() {
    let args = ["sweep", "no-such-host.invalid", "-p", "80,443", "--format"];
    let said = str![[r#"
keepsweep: command line: resolve no-such-host.invalid: [..]

"#]];
    // Nobody to send to: no privilege is needed.
    offline(&args).arg("ndjson").assert().code(1).stderr_eq(said.clone()).stdout_eq(str![[r#"
{"schema":"keepsweep/1","type":"peer","peer_ip":null,"peer_port":80,"local_ip":null,"local_port":null,"name":"no-such-host.invalid","label":null,"round":1,"state":"undetermined","reason":"unprobeable","probes":0,"replies":0,"rtt_us":null,"evidence":[{"kind":"unresolved","at_us":0}]}
{"schema":"keepsweep/1","type":"peer","peer_ip":null,"peer_port":443,"local_ip":null,"local_port":null,"name":"no-such-host.invalid","label":null,"round":1,"state":"undetermined","reason":"unprobeable","probes":0,"replies":0,"rtt_us":null,"evidence":[{"kind":"unresolved","at_us":0}]}
{"schema":"keepsweep/1","type":"summary","io":"none","peers":2,"alive":0,"down":0,"rebooted":0,"unreachable":0,"undetermined":2,"frames_sent":0,"frames_received":0,"replies_matched":0,"replies_rejected":{},"rx_dropped":0,"loss_estimate":0.0,"elapsed_ms":0,"rate_pps":0,"reasons":{"undetermined/unprobeable":2},"sent_by_kind":{},"guard_dropped":0,"kernel_rsts":0,"corrections":0}

"#]].raw());
    offline(&args).args(["csv", "-q", "--only", "alive"]).assert().code(1).stderr_eq("").stdout_eq(
        str![[r#"
type,peer_ip,peer_port,local_ip,local_port,name,label,round,state,reason,probes,replies,rtt_us,evidence

"#]],
    );
    let dir = dir_with("fleet.txt", "10.0.0.1\nno-such-host.invalid rack 7\n");
    let args = ["sweep", "--dry-run", "--targets", "fleet.txt", "-p", "80"];
    let output = offline(&args).current_dir(dir.path()).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && text.contains("to this peer\n"), "{text}");
    assert!(text.ends_with("no-such-host.invalid:80  rack 7  no address\n"), "{text}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(text.starts_with("keepsweep: fleet.txt:2: resolve no-such-host.invalid: "), "{text}");
}

/// The names count once beside the peers that there are.
#[test]
fn names_without_an_address_beside_peers() {
    netns::in_namespace(|| {
        let args = ["sweep", "10.0.0.1:80", "no-such-host.invalid:80", "-q", "--format", "ndjson"];
        let output = keepsweep(&args).output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let objects: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let peers: Vec<_> = objects.iter().map(|object| &object["name"]).collect();
        assert_eq!(objects.len(), 3, "{text}");
        assert!(peers[0] == "no-such-host.invalid" && peers[1].is_null(), "{text}");
        let counts = |name: &str| objects[2][name].as_u64();
        assert_eq!(
            [counts("peers"), counts("unreachable"), counts("undetermined")],
            [Some(2), Some(1), Some(1)]
        );
    });
}

/// A resolver that does not answer: it is said what is waited for, and a signal ends it at once. Not
/// SIGINT, which a test run in the background inherits as ignored.
#[test]
fn a_hung_resolver_can_be_interrupted() {
    netns::in_namespace(|| {
        for arguments in &NETWORK[..5] {
            netns::ip(arguments);
        }
        netns::ip("addr add 10.98.0.1/24 dev up0");
        // Nobody has this address: queries wait for it.
        let dir = dir_with("resolv.conf", "nameserver 10.98.0.9\noptions timeout:30\n");
        netns::ip("neigh add 10.98.0.9 lladdr 02:00:00:00:00:09 dev up0");
        let script = "mount --make-rprivate / && mount --bind \"$1\" /etc/resolv.conf && \
                      exec \"$2\" sweep host.example.net:80";
        let mut child = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(dir.path().join("resolv.conf"))
            .arg(cargo_bin!("keepsweep"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = lines.next().expect("a line").expect("text");
        assert_eq!(first, "keepsweep: resolving host names: 0 of 1 so far");
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
        let ended = child.wait().expect("ended");
        assert_eq!(ended.signal(), Some(nix::sys::signal::Signal::SIGTERM as i32));
    });
}

#[test]
fn ipv6_targets() {
    let peers = dry_peers("[fd00::1]:80 2001:db8::7/127 fd00::1 ::ffff:10.0.0.7 -p 80");
    assert_eq!(peers, ["[fd00::1]:80", "[2001:db8::6]:80", "[2001:db8::7]:80", "10.0.0.7:80"]);
    assert_eq!(dry_peers("fd00::/125 --exclude fd00::4/126 --exclude ::1 -p 80").len(), 4);
    assert_eq!(dry_peers("[2001:db8::/112]:80").len(), 65_536);
    refused(
        "2001:db8::1",
        str![[r#"
keepsweep: command line: 2001:db8::1 has no port: give it one ([2001:db8::1]:PORT) or use -p

"#]],
    );
    refused(
        "fd00::/64 -p 80",
        str![[r#"
keepsweep: 2^64 targets (fd00::/64 alone 2^64) need more than 16 EiB of memory, and [..]iB are available; sweep them in parts

"#]],
    );
    refused(
        "2606:4700::1111 -p 80",
        str![[r#"
keepsweep: command line: 2606:4700::1111: 2606:4700::1111 is a public address; probe it only if you are entitled to, with --allow-public

"#]],
    );
    refused(
        "fe80::1 -p 22",
        str![[r#"
keepsweep: command line: fe80::1: fe80::1 is link-local, one on every link: say on which (fe80::1%INTERFACE), or use -i

"#]],
    );
    refused(
        "[fe80::1%nosuch0]:22 fd00::1%lo ::/0 -p 22",
        str![[r#"
keepsweep: command line: "[fe80::1%nosuch0]:22": no such interface: nosuch0; see: ip link
keepsweep: command line: "fd00::1%lo": only IPv6 link-local addresses (fe80::/10) have a scope: ADDRESS%INTERFACE
keepsweep: command line: "::/0": holds IPv4 addresses in their IPv6-mapped form; write them as IPv4

"#]],
    );
}

/// Whoever reads the records has a terminal, and the file may be anybody's.
#[test]
fn labels_with_control_characters() {
    let dir = dir_with("fleet.txt", "10.0.0.1:80 rack\t7\n10.0.0.2:80 \x1b[2Jgone\n");
    refused_in(
        &dir,
        "--targets fleet.txt",
        str![[r#"
keepsweep: fleet.txt:2: "10.0.0.2:80": control character '/u{1b}' in the label

"#]],
    );
}

#[test]
fn a_cap_for_each_network_is_announced() {
    let text = dry("10.0.0.0/24 -p 80 --rate-per-prefix 1500");
    assert!(
        text.contains("\nper prefix   at most 1,500 frames/s to an IPv4 /24 or IPv6 /48\n"),
        "{text}"
    );
    assert!(!dry("10.0.0.0/24 -p 80").contains("per prefix"));
    refused(
        "10.0.0.1:80 --rate-per-prefix max",
        str![[r#"
error: invalid value 'max' for '--rate-per-prefix <PPS>': expected frames per second; without a cap, leave it out

For more information, try '--help'.

"#]],
    );
}

/// All at once, and ready to be pasted.
#[test]
fn broadcast_addresses_of_connected_networks() {
    netns::in_namespace(|| {
        for arguments in NETWORK {
            netns::ip(arguments);
        }
        let args = ["sweep", "--dry-run", "10.98.0.240/28", "10.96.3.248/29", "-p", "80,81"];
        keepsweep(&args).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
keepsweep: 10.96.3.255, 10.98.0.255: broadcast or multicast addresses of connected networks, which must not be probed; leave them out (--exclude 10.96.3.255 --exclude 10.98.0.255)

"#]]);
        let cut = ["--exclude", "10.96.3.255", "--exclude", "10.98.0.255"];
        keepsweep(&args).args(cut).assert().code(0);
    });
}

#[test]
fn empty_lists() {
    refused(
        "-p 80",
        str![[r#"
keepsweep: no targets: give some, or a list of them with --targets FILE

"#]],
    );
    let dir = dir_with("fleet.txt", "# nobody yet\n\n");
    refused_in(
        &dir,
        "--targets fleet.txt -p 80",
        str![[r#"
keepsweep: no targets: give some, or a list of them with --targets FILE

"#]],
    );
    refused(
        "10.0.0.0/24 -p 80 --exclude 10.0.0.0/16",
        str![[r#"
keepsweep: no targets left: --exclude covers all that were given

"#]],
    );
}

#[test]
fn unreadable_lists() {
    let dir = tempfile::tempdir().expect("a directory");
    refused_in(
        &dir,
        "--targets fleet.txt -p 80",
        str![[r#"
keepsweep: read fleet.txt: No such file or directory (os error 2)

"#]],
    );
    refused_in(
        &dir,
        "--targets . -p 80",
        str![[r#"
keepsweep: read .: Is a directory (os error 21)

"#]],
    );
    refused_in(
        &dir,
        "10.0.0.1 -p 80 --exclude those.txt",
        str![[r#"
keepsweep: read --exclude those.txt (neither an address nor a prefix): No such file or directory (os error 2)

"#]],
    );
    let dir = dir_with("those.txt", "10.0.0.0/8 all of it\nfleet.example\n");
    refused_in(
        &dir,
        "10.0.0.1 -p 80 --exclude those.txt",
        str![[r#"
keepsweep: those.txt:2: "fleet.example": not an IP address

"#]],
    );
}

#[test]
fn missing_and_wrong_ports() {
    refused(
        "10.0.0.1",
        str![[r#"
keepsweep: command line: 10.0.0.1 has no port: give it one (10.0.0.1:PORT) or use -p

"#]],
    );
    refused(
        "10.0.0.1 -p 0",
        str![[r#"
error: invalid value '0' for '--port <PORT[,PORT...]>': port 0 cannot be used

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1 -p 80,",
        str![[r#"
error: invalid value '' for '--port <PORT[,PORT...]>': "" is not a port (1 to 65535)

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1 -p 65536",
        str![[r#"
error: invalid value '65536' for '--port <PORT[,PORT...]>': "65536" is not a port (1 to 65535)

For more information, try '--help'.

"#]],
    );
}

#[test]
fn targets_that_are_never_probed() {
    refused(
        "8.8.8.8 -p 53",
        str![[r#"
keepsweep: command line: 8.8.8.8: 8.8.8.8 is a public address; probe it only if you are entitled to, with --allow-public

"#]],
    );
    refused(
        "224.0.0.1 -p 80 --allow-public",
        str![[r#"
keepsweep: command line: 224.0.0.1: 224.0.0.1 is multicast (224.0.0.0/4) and never a peer

"#]],
    );
    refused(
        "255.255.255.255 -p 80 --allow-public",
        str![[r#"
keepsweep: command line: 255.255.255.255: 255.255.255.255 is broadcast (255.255.255.255) and never a peer

"#]],
    );
    refused(
        "0.0.0.0 -p 80 --allow-public",
        str![[r#"
keepsweep: command line: 0.0.0.0: 0.0.0.0 is unspecified (0.0.0.0/8) and never a peer

"#]],
    );
    refused(
        "0.0.0.0/0 -p 80 --allow-public",
        str![[r#"
keepsweep: command line: 0.0.0.0/0: 0.0.0.0 is unspecified (0.0.0.0/8) and never a peer; leave it out with --exclude

"#]],
    );
    assert_eq!(dry_peers("8.8.8.8:53 --allow-public"), ["8.8.8.8:53"]);
}

#[test]
fn more_targets_than_memory() {
    let ports: Vec<String> = (1..=3000).map(|port: u16| port.to_string()).collect();
    let reason = str![[r#"
keepsweep: 50,331,648,000 targets (10.0.0.0/8 alone 50,331,648,000) need about [..]iB of memory, and [..]; sweep them in parts

"#]];
    refused(&format!("10.0.0.0/8 -p {}", ports.join(",")), reason);
}

#[test]
fn settings_that_prove_nothing() {
    refused(
        "10.0.0.1:80 --count 0",
        str![[r#"
error: invalid value '0' for '--count <N>': without a probe there is nothing to tell; at least 1

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --rate 0",
        str![[r#"
error: invalid value '0' for '--rate <PPS|max>': at 0 frames per second nothing is ever sent

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --interval 200ms",
        str![[r#"
keepsweep: --interval 200ms: Linux answers one empty keepalive per 500ms, so silence to closer ones proves nothing; use 500ms or more, or --probe-bytes 1

"#]],
    );
    refused(
        "10.0.0.1:80 --interval 75",
        str![[r#"
error: invalid value '75' for '--interval <D>': time unit needed, for example 75sec or 75ms; expected a duration such as 250ms, 75s or 2h

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --connect-timeout 0s",
        str![[r#"
error: invalid value '0s' for '--connect-timeout <D>': must be longer than 0

For more information, try '--help'.

"#]],
    );
    assert!(dry("10.0.0.1:80 --interval 200ms --probe-bytes 1").contains("interval 200ms"));
    assert!(dry("10.0.0.1:80 --interval 500ms").contains("interval 500ms"));
}

#[test]
fn wrong_source() {
    refused(
        "10.0.0.1:80 --source-ports 61000",
        str![[r#"
error: invalid value '61000' for '--source-ports <LO-HI>': expected LO-HI, such as 61000-65534

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --source-ports 0-100",
        str![[r#"
error: invalid value '0-100' for '--source-ports <LO-HI>': port 0 cannot be used

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --source-ports 65000-61000",
        str![[r#"
error: invalid value '65000-61000' for '--source-ports <LO-HI>': 65000 is above 61000; expected LO-HI

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --source fd00::1",
        str![[r#"
keepsweep: command line: 10.0.0.1: cannot be probed from fd00::1 (--source), which is of the other address family

"#]],
    );
}

#[test]
fn unknown_state_profile_format() {
    refused(
        "10.0.0.1:80 --only dead",
        str![[r#"
error: invalid value 'dead' for '--only <STATE[,STATE...]>': no such state; there are alive, down, rebooted, unreachable, undetermined

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --profile solaris",
        str![[r#"
error: invalid value 'solaris' for '--profile <NAME>'
  [possible values: fast, linux, bsd, windows, rfc1122]

For more information, try '--help'.

"#]],
    );
    refused(
        "10.0.0.1:80 --format xml",
        str![[r#"
error: invalid value 'xml' for '--format <table|ndjson|csv>'
  [possible values: table, ndjson, csv]

For more information, try '--help'.

"#]],
    );
}

#[test]
fn output_that_cannot_be_opened_or_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = ["sweep", "10.0.0.1:80", "--dry-run", "-o"];
    let with = |path: &'static str| offline(&args).arg(path).current_dir(dir.path()).assert();
    with("none/results").code(3).stderr_eq(str![[r#"
keepsweep: open none/results for writing: No such file or directory (os error 2)

"#]]);
    with("/dev/full").code(3).stderr_eq(str![[r#"
keepsweep: write to /dev/full: No space left on device (os error 28)

"#]]);
    with("plan.txt").code(0).stdout_eq("").stderr_eq("");
    assert!(Path::exists(&dir.path().join("plan.txt")));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let way = *WITHOUT_NETWORK;
    let mut child = std::process::Command::new(way[0])
        .args(&way[1..])
        .arg(cargo_bin!("keepsweep"))
        .args(["sweep", "10.3.0.0/16:80", "--dry-run"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    // 65,536 lines do not fit into the pipe: the rest of them meet a closed one.
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("read");
    assert_eq!((child.wait().expect("ended").code(), err.as_str()), (Some(0), ""));
}

/// `keepsweep … >>log` must not empty the log, and `{ echo; keepsweep …; } >file` not the file.
#[test]
fn what_stands_in_standard_output_already_is_left_alone() {
    let dir = dir_with("log", "earlier\n");
    let log = dir.path().join("log");
    let out = fs::OpenOptions::new().append(true).open(&log).expect("open");
    let way = *WITHOUT_NETWORK;
    let status = std::process::Command::new(way[0])
        .args(&way[1..])
        .arg(cargo_bin!("keepsweep"))
        .args(["sweep", "--dry-run", "10.0.0.1:80"])
        .stdout(out)
        .status()
        .expect("runs");
    assert!(status.success());
    let text = fs::read_to_string(&log).expect("text");
    assert!(text.starts_with("earlier\ndry run"), "{text}");
}
