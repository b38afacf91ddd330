//! Faults of our own host in the middle of a sweep: never a false `down`, no record lost, and an end.

use crate::support::{Lab, Running, Sweep, pause};
use keepsweep::time::Clock;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, socket, sockopt,
};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

/// Behind the router, through up0, and on the link of lan0.
pub const ROUTED: usize = 1024;
const ON_LINK: usize = 256;
pub const ALL: usize = ROUTED + ON_LINK;

/// Long enough a rest for a fault to come before the first keepalive after it.
pub const PLAN: &[&str] = &[
    "10.99.0.0/22",
    "10.96.1.0/24",
    "-p",
    "8080",
    "--idle",
    "4s",
    "--rate",
    "20000",
    "--format",
    "ndjson",
];

/// Starts a sweep of all peers and waits until every connection stands.
fn start(lab: &Lab) -> Running {
    start_by(lab, "packet")
}

/// The same by this I/O path.
pub fn start_by(lab: &Lab, io: &str) -> Running {
    let sweep = lab.start(&[PLAN, &["--io", io]].concat());
    lab.await_connections("8080", ALL);
    // The prober must know it too: the last bare ACK is not the last frame of a handshake.
    pause(Duration::from_millis(500));
    sweep
}

/// Waits for the end, within `seconds`, and checks what holds whatever the fault was.
pub fn finish(sweep: Running, seconds: u64) -> Sweep {
    let begun = Clock.now();
    let sweep = sweep.finish();
    let took = Clock.now().since(begun);
    assert!(took < Duration::from_secs(seconds), "{took:?}: {}", sweep.stderr);
    assert_eq!(sweep.peers.len(), ALL, "{}", sweep.stderr);
    assert_eq!(sweep.count("down"), 0, "false: {}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.count("unreachable"), 0, "false: {}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.count("rebooted"), 0, "false: {}\n{}", sweep.stderr, sweep.summary);
    sweep.assert_accounts();
    sweep
}

fn is_on_link(peer: &str) -> bool {
    peer.starts_with("10.96.")
}

/// Checks that the peers behind the router are undetermined, on that evidence, and the others alive.
pub fn assert_routed_undetermined(sweep: &Sweep, evidence: &[&str]) {
    for (peer, record) in &sweep.peers {
        if is_on_link(peer) {
            assert_eq!(record["state"], "alive", "{record}");
            continue;
        }
        assert_eq!(record["reason"], "observer", "{record}");
        let seen = record["evidence"].as_array().expect("a list");
        let told = seen.iter().any(|seen| evidence.iter().any(|kind| seen["kind"] == *kind));
        assert!(told, "{record}");
    }
}

pub fn assert_all_alive(sweep: &Sweep) {
    assert_eq!(sweep.count("alive"), ALL, "{}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.code, Some(0), "{}", sweep.stderr);
}

pub fn on_prober(lab: &Lab, command: &str) {
    let words: Vec<&str> = ["exec"].into_iter().chain(command.split(' ')).collect();
    lab.script(&words);
}

fn on_router(lab: &Lab, command: &str) {
    let words: Vec<&str> = ["exec", "router"].into_iter().chain(command.split(' ')).collect();
    lab.script(&words);
}

/// For good: the peers behind it are given up after five seconds, the others are not affected.
pub fn lost_for_good(name: &str, io: &str, said: &str, fault: impl Fn(&Lab)) {
    let Some(lab) = Lab::up(name, &[]) else { return };
    let sweep = start_by(&lab, io);
    fault(&lab);
    let sweep = finish(sweep, 25);
    assert_routed_undetermined(&sweep, &["link-down", "not-sent", "observer-fault"]);
    assert_eq!(sweep.code, Some(3), "{}", sweep.stderr);
    for text in [said, "up0", "no frame left for 5 s"] {
        assert!(sweep.stderr.contains(text), "{text:?}: {}", sweep.stderr);
    }
    // What could be closed is: the rest stands on the other side of the fault.
    let left = lab.connections("8080");
    assert_eq!(left, ROUTED, "connections left on the peers");
}

#[test]
fn interface_down() {
    lost_for_good("f-down", "packet", "up0: down", |lab| {
        lab.script(&["fault", "link-down", "prober/up0"]);
    });
}

#[test]
fn carrier_lost() {
    lost_for_good("f-carrier", "packet", "up0: without carrier", |lab| {
        lab.script(&["fault", "link-down", "router/up0"]);
    });
}

#[test]
fn interface_deleted() {
    lost_for_good("f-gone", "packet", "up0: gone", |lab| on_prober(lab, "ip link del up0"));
}

/// Back before the path is given up: what was due meanwhile is asked then, and everyone answers.
pub fn lost_for_a_while(name: &str, io: &str, link: &str) {
    let Some(lab) = Lab::up(name, &[]) else { return };
    let mut sweep = start_by(&lab, io);
    lab.script(&["fault", "link-down", link]);
    sweep.await_message("up0: ");
    // Into the time when keepalives are due: what passes is the rest of the peers.
    pause(Duration::from_secs(5));
    lab.script(&["heal", "link-down"]);
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    assert!(sweep.stderr.contains("up0: back after"), "{}", sweep.stderr);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn interface_down_and_up() {
    lost_for_a_while("f-flap", "packet", "prober/up0");
}

#[test]
fn carrier_lost_and_found() {
    lost_for_a_while("f-flap2", "packet", "router/up0");
}

/// Nobody answers ARP for an address that this host no longer has. (Our own requests, which still
/// name it, can teach it to the router again: so the peers are silenced as well.)
#[test]
fn source_address_removed() {
    let Some(lab) = Lab::up("f-addr", &[]) else { return };
    let sweep = start(&lab);
    on_prober(&lab, "ip addr del 10.98.0.1/24 dev up0");
    on_router(&lab, "ip neigh flush dev up0");
    lab.script(&["fault", "drop", "10.99.0.0/22"]);
    let sweep = finish(sweep, 25);
    assert_routed_undetermined(&sweep, &["address-lost"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    assert!(sweep.stderr.contains("10.98.0.1: no longer an address"), "{}", sweep.stderr);
}

#[test]
fn route_taken_away() {
    let Some(lab) = Lab::up("f-route", &[]) else { return };
    let sweep = start(&lab);
    lab.script(&["fault", "no-route", "10.99.0.0/22"]);
    lab.script(&["fault", "drop", "10.99.0.0/22"]);
    let sweep = finish(sweep, 25);
    assert_routed_undetermined(&sweep, &["route-changed"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    assert!(sweep.stderr.contains("1024 peers have another route now"), "{}", sweep.stderr);
}

/// The old router forwards nothing any more; the new one has another address on the same link.
#[test]
fn next_hop_replaced() {
    let Some(lab) = Lab::up("f-hop", &[]) else { return };
    for command in [
        "ip link add link up0 name mv0 type macvlan mode bridge",
        "ip link set mv0 up",
        "ip addr add 10.98.0.253/24 dev mv0",
        "sysctl -q net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.mv0.rp_filter=0",
    ] {
        on_router(&lab, command);
    }
    let sweep = start(&lab);
    // Only what is sent to the new router's MAC address gets through.
    on_router(&lab, "nft add table inet old");
    on_router(&lab, "nft add chain inet old in { type filter hook prerouting priority -300 ; }");
    on_router(&lab, "nft add rule inet old in iifname up0 meta l4proto tcp drop");
    on_prober(&lab, "ip route replace default via 10.98.0.253");
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    assert!(sweep.stderr.contains("1024 peers have another next hop now"), "{}", sweep.stderr);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

/// A failover: the router's address moves to another machine.
#[test]
fn next_hop_moves() {
    let Some(lab) = Lab::up("f-mac", &[]) else { return };
    let sweep = start(&lab);
    on_router(&lab, "ip link set up0 address 02:00:00:00:00:77");
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    let told = "10.98.0.254: has another MAC address now, 02:00:00:00:00:77";
    assert!(sweep.stderr.contains(told), "{}", sweep.stderr);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

/// Sends SYNs to the prober's ports from the fleet, one a millisecond: each spends a block of the
/// receive ring while nobody reads it.
fn trickle(lab: &Lab, frames: u16) {
    let namespace = File::open(format!("/run/netns/{}", lab.namespace("fleet"))).expect("netns");
    let flood = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("setns");
        for number in 0..frames {
            let (inet, stream) = (AddressFamily::Inet, SockType::Stream);
            let socket = socket(inet, stream, SockFlag::SOCK_NONBLOCK, None).expect("socket");
            let to = SockaddrIn::new(10, 98, 0, 1, 61_000 + number % 4000);
            // In progress: the SYN has left.
            connect(socket.as_raw_fd(), &to).expect_err("nobody answers");
            assert_eq!(getsockopt(&socket, sockopt::SocketError), Ok(0));
            pause(Duration::from_millis(1));
        }
    });
    flood.join().expect("SYNs sent");
}

/// Stopped while frames come in: the ring overflows, and whoever is silent may have answered.
#[test]
fn receive_ring_overflows() {
    let Some(lab) = Lab::up("f-ring", &[]) else { return };
    let sweep = start(&lab);
    lab.script(&["fault", "drop", "10.99.0.0/22"]);
    // The keepalives have been due since before it goes on.
    pause(Duration::from_secs(4));
    sweep.signal(Signal::SIGSTOP);
    trickle(&lab, 900);
    sweep.signal(Signal::SIGCONT);
    let sweep = finish(sweep, 25);
    assert!(sweep.summary["rx_dropped"].as_u64() > Some(0), "{}", sweep.summary);
    assert_routed_undetermined(&sweep, &["observer-drops", "observer-fault"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
}

/// As when a virtual machine is paused.
#[test]
fn stopped_for_a_while() {
    let Some(lab) = Lab::up("f-stop", &[]) else { return };
    let sweep = start(&lab);
    lab.script(&["fault", "drop", "10.99.0.0/22"]);
    pause(Duration::from_secs(4));
    sweep.signal(Signal::SIGSTOP);
    pause(Duration::from_secs(2));
    sweep.signal(Signal::SIGCONT);
    let sweep = finish(sweep, 25);
    assert_routed_undetermined(&sweep, &["observer-fault"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
    assert!(sweep.stderr.contains("stood still for"), "{}", sweep.stderr);
}

/// The sweep goes on to its end; the records wait.
#[test]
fn reader_asleep() {
    let Some(lab) = Lab::up("f-pipe", &[]) else { return };
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let sweep = lab.start_with(PLAN, Stdio::from(writer));
    lab.await_connections("8080", ALL);
    // Opened, rested, probed and closed, and not a record was read.
    lab.await_condition("no connections", || lab.connections("8080") == 0);
    pause(Duration::from_secs(20));
    let mut stdout = Vec::new();
    reader.read_to_end(&mut stdout).expect("readable");
    assert!(stdout.len() > 4 * 65_536, "{} octets fit into the pipe", stdout.len());
    let output = sweep.output();
    let sweep = Sweep::read(Output { stdout, ..output });
    assert_eq!(sweep.peers.len(), ALL);
    assert_all_alive(&sweep);
    sweep.assert_accounts();
    // The reader's sleep is not the sweep's.
    assert!(sweep.summary["elapsed_ms"].as_u64() < Some(15_000), "{}", sweep.summary);
}

/// A file system with room for 256 KiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> SmallDisk {
        let dir = tempfile::tempdir().expect("a directory");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "keepsweep-test"])
            .arg(dir.path())
            .status();
        assert!(mount.expect("mount starts").success());
        SmallDisk(dir)
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("path").to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn disk_fills_with_records() {
    let Some(lab) = Lab::up("f-disk", &[]) else { return };
    let disk = SmallDisk::mount();
    let file = disk.file("records");
    let output = lab.start(&[PLAN, &["-o", &file]].concat()).output();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(&file) && stderr.contains("of 1,280 records were written"), "{stderr}");
    // As many whole records as it says.
    let written = std::fs::read_to_string(&file).expect("readable");
    let whole = written.lines().filter(|line| line.ends_with('}')).count();
    let told = format!("; {whole} of 1,280 records");
    assert!(stderr.contains(&told) && whole > 100, "{told}: {stderr}");
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

#[test]
fn disk_fills_with_frames() {
    let Some(lab) = Lab::up("f-disk2", &[]) else { return };
    let disk = SmallDisk::mount();
    let file = disk.file("frames.pcap");
    let sweep = finish(lab.start(&[PLAN, &["--pcap", &file]].concat()), 25);
    assert_eq!(sweep.count("alive"), ALL, "{}", sweep.summary);
    assert_eq!(sweep.code, Some(3), "{}", sweep.stderr);
    for text in [file.as_str(), "No space left", "the capture ends after about"] {
        assert!(sweep.stderr.contains(text), "{text:?}: {}", sweep.stderr);
    }
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}
