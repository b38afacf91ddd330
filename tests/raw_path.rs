//! The raw path: the sending end alone, and sweeps of this host itself, of a device without MAC
//! addresses and of another namespace. Every test in network namespaces of its own.

mod netns;
#[path = "netns/tun.rs"]
mod tun;

use keepsweep::io::Transmit;
use keepsweep::io::raw::{Egress, RawTx};
use keepsweep::time::Clock;
use keepsweep::wire::{
    Checksums, Flags, IpHeader, LinkHeader, LinkType, Options, Packet, PcapReader, Segment,
    SeqNumber, parse,
};
use netns::{in_namespace, ip};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

fn segment(src: &str, dst: &str, number: u32) -> Vec<u8> {
    let [src, dst]: [IpAddr; 2] = [src, dst].map(|text| text.parse().expect("an address"));
    let segment = Segment {
        ip: IpHeader { src, dst, ttl: 64, id: if src.is_ipv4() { 7 } else { 0 } },
        src_port: 61_000,
        dst_port: 80,
        seq: SeqNumber(number),
        ack: SeqNumber(1),
        flags: Flags::ACK,
        wnd: 1000,
        options: Options::default(),
        payload: &[],
    };
    let mut packet = vec![0; 128];
    let len = segment.emit(&LinkHeader::Ip, &mut packet).expect("emit");
    packet.truncate(len);
    packet
}

fn submit(tx: &mut RawTx, packet: &[u8]) {
    tx.reserve().expect("room in the batch")[..packet.len()].copy_from_slice(packet);
    tx.submit(packet.len());
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("interface exists")
}

fn by_routes(name: &str) -> RawTx {
    RawTx::open(Egress::Routes { index: index(name), name }).expect("open the sending end")
}

fn bound_to(name: &str) -> RawTx {
    RawTx::open(Egress::Interface { index: index(name), name }).expect("open the sending end")
}

/// A tun device that is up, with an address of either family.
fn tun0() -> File {
    let file = tun::open_tun("tun0");
    ip("addr add 10.8.0.1/24 dev tun0");
    ip("addr add fd08::1/64 dev tun0 nodad");
    ip("link set tun0 up");
    file
}

/// Reads the next TCP segment that was sent through the device, if there is one.
fn next_segment(tun: &mut File) -> Option<Vec<u8>> {
    let mut packet = vec![0; 2048];
    loop {
        match tun.read(&mut packet) {
            Ok(len) => {
                if let Ok(Packet::Tcp(_)) = parse(&packet[..len], LinkType::Ip, Checksums::Verify) {
                    packet.truncate(len);
                    return Some(packet);
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                return None;
            }
        }
    }
}

#[test]
fn sends_both_families_in_order_and_unchanged() {
    in_namespace(|| {
        let mut tun = tun0();
        let mut tx = by_routes("tun0");
        let mut number = 0;
        for _ in 0..3 {
            let mut sent = Vec::new();
            while tx.reserve().is_some() {
                // In runs of uneven length.
                let packet = match number * number % 7 < 3 {
                    true => segment("10.8.0.1", "10.8.0.2", number),
                    false => segment("fd08::1", "fd08::2", number),
                };
                submit(&mut tx, &packet);
                sent.push(packet);
                number += 1;
            }
            assert_eq!(tx.flush().expect("flush"), sent.len());
            for packet in sent {
                assert_eq!(next_segment(&mut tun), Some(packet));
            }
            assert_eq!(next_segment(&mut tun), None);
        }
        assert_eq!(tx.flush().expect("flush an empty batch"), 0);
    });
}

#[test]
fn a_refused_packet_is_refused_alone() {
    in_namespace(|| {
        let mut tun = tun0();
        ip("link set tun0 mtu 1280");
        ip("route add unreachable 10.8.0.8");
        nft("add table ip t; add chain ip t o { type filter hook output priority 0; };
             add rule ip t o ip daddr 10.8.0.9 drop");
        let mut tx = by_routes("tun0");
        let good = |number| segment("10.8.0.1", "10.8.0.2", number);
        let no_packet = vec![0; 40];
        for packet in [
            good(0),
            good(1),
            segment("10.8.0.1", "10.8.0.9", 2),
            no_packet,
            segment("fd08::1", "fd08::2", 3),
            segment("10.8.0.1", "10.8.0.9", 4),
            good(5),
        ] {
            submit(&mut tx, &packet);
        }
        for (sent, errno) in [(2, libc::EPERM), (0, libc::EDESTADDRREQ), (1, libc::EPERM)] {
            let unsent = tx.flush().expect_err("one is refused");
            assert_eq!((unsent.sent, unsent.refused), (sent, 1), "{unsent}");
            assert_eq!(unsent.error.source.raw_os_error(), Some(errno), "{unsent}");
        }
        assert_eq!(tx.flush().expect("the rest leaves"), 1);
        let numbers: Vec<u32> = std::iter::from_fn(|| next_segment(&mut tun))
            .map(|packet| match parse(&packet, LinkType::Ip, Checksums::Verify) {
                Ok(Packet::Tcp(segment)) => segment.seq.0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(numbers, [0, 1, 3, 5]);
    });
}

/// Rules that choose a route by source see the source that stands in the packet.
#[test]
fn routes_are_chosen_by_source_too() {
    in_namespace(|| {
        let mut tun = tun0();
        ip("addr add 10.8.0.3/24 dev tun0");
        ip("addr add fd08::3/64 dev tun0 nodad");
        for family in ["-4", "-6"] {
            let [from, to] = match family {
                "-4" => ["10.8.0.3", "10.9.0.0/24"],
                _ => ["fd08::3", "fd09::/64"],
            };
            ip(&format!("{family} route add {to} dev tun0"));
            ip(&format!("{family} route add prohibit {to} table 100"));
            ip(&format!("{family} rule add from {from} lookup 100"));
        }
        let mut tx = by_routes("tun0");
        for (allowed, forbidden, dst) in
            [("10.8.0.1", "10.8.0.3", "10.9.0.9"), ("fd08::1", "fd08::3", "fd09::9")]
        {
            submit(&mut tx, &segment(allowed, dst, 0));
            assert_eq!(tx.flush().expect("the main table's route"), 1);
            assert!(next_segment(&mut tun).is_some());
            submit(&mut tx, &segment(forbidden, dst, 0));
            let error = tx.flush().expect_err("the rule forbids it").error;
            assert_eq!(error.source.raw_os_error(), Some(libc::EACCES), "{error}");
        }
    });
}

/// A route that vanishes is our own trouble; bound to the interface, IPv4 would go on without it.
#[test]
fn a_route_that_is_gone_refuses_what_it_led_to() {
    in_namespace(|| {
        let mut tun = tun0();
        ip("route add 10.9.0.0/24 dev tun0");
        let mut tx = by_routes("tun0");
        submit(&mut tx, &segment("10.8.0.1", "10.9.0.9", 0));
        assert_eq!(tx.flush().expect("a route"), 1);
        ip("route del 10.9.0.0/24 dev tun0");
        submit(&mut tx, &segment("10.8.0.1", "10.9.0.9", 1));
        submit(&mut tx, &segment("10.8.0.1", "10.8.0.2", 2));
        let unsent = tx.flush().expect_err("no route");
        assert_eq!((unsent.sent, unsent.refused), (0, 1), "{unsent}");
        assert_eq!(unsent.error.source.raw_os_error(), Some(libc::ENETUNREACH), "{unsent}");
        assert!(unsent.to_string().contains("the route is gone"), "{unsent}");
        assert_eq!(tx.flush().expect("another route"), 1);
        assert!(next_segment(&mut tun).is_some() && next_segment(&mut tun).is_some());
    });
}

#[test]
fn an_interface_that_is_down_or_gone_refuses_all() {
    for open in [bound_to, by_routes] {
        in_namespace(move || {
            let tun = tun0();
            let mut tx = open("tun0");
            ip("link set tun0 down");
            (0..3).for_each(|number| submit(&mut tx, &segment("10.8.0.1", "10.8.0.2", number)));
            let unsent = tx.flush().expect_err("down");
            assert_eq!((unsent.sent, unsent.refused), (0, 3), "{unsent}");
            assert_eq!(unsent.error.source.raw_os_error(), Some(libc::ENETDOWN), "{unsent}");
            assert!(unsent.to_string().contains("tun0") && !unsent.error.remedy.is_empty());

            drop(tun);
            (0..3).for_each(|number| submit(&mut tx, &segment("10.8.0.1", "10.8.0.2", number)));
            let unsent = tx.flush().expect_err("gone");
            assert_eq!((unsent.sent, unsent.refused), (0, 3), "{unsent}");
            assert_eq!(unsent.error.source.raw_os_error(), Some(libc::ENODEV), "{unsent}");
        });
    }
}

/// What a sweep has written.
struct Swept {
    code: Option<i32>,
    stderr: String,
    peers: HashMap<String, Value>,
    summary: Value,
}

impl Swept {
    #[track_caller]
    fn assert(&self, peer: &str, verdict: &str) {
        let record = &self.peers.get(peer).unwrap_or_else(|| panic!("{peer}: {}", self.stderr));
        let text = |field: &str| record[field].as_str().expect("text").to_owned();
        assert_eq!(format!("{}/{}", text("state"), text("reason")), verdict, "{record}");
    }

    fn number(&self, field: &str) -> u64 {
        self.summary[field].as_u64().unwrap_or_else(|| panic!("{field}: {}", self.stderr))
    }
}

fn sweep_command(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keepsweep"));
    command.args(["sweep", "--format", "ndjson"]).args(args.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn read(output: std::process::Output) -> Swept {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let (mut peers, mut summary) = (HashMap::new(), Value::Null);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let record: Value = serde_json::from_str(line).expect("a line is a JSON object");
        match record["type"].as_str() {
            Some("peer") => {
                let ip = record["peer_ip"].as_str().expect("peer_ip");
                let twice = peers.insert(format!("{ip}:{}", record["peer_port"]), record);
                assert!(twice.is_none(), "reported twice: {line}");
            }
            Some("summary") => summary = record,
            other => panic!("record type {other:?}: {line}"),
        }
    }
    Swept { code: output.status.code(), stderr, peers, summary }
}

fn sweep(args: &str) -> Swept {
    read(sweep_command(args).output().expect("keepsweep runs"))
}

fn nft(commands: &str) {
    let output = Command::new("nft").arg(commands).output().expect("run nft");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {commands}: {errors}");
}

fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address.parse::<SocketAddr>().expect("an address")).expect("listen")
}

#[test]
fn sweeps_this_host() {
    in_namespace(|| {
        let _tun = tun0();
        let alive = ["127.0.0.1:80", "127.0.0.5:80", "10.8.0.1:80"];
        let _listeners = alive.map(listen);
        let dir = tempfile::tempdir().expect("a directory");
        let pcap = dir.path().join("sweep.pcap");
        let targets = "127.0.0.0/28 10.8.0.1 -p 80";
        let swept = sweep(&format!("{targets} --pcap {}", pcap.display()));
        assert_eq!(swept.code, Some(0), "{}", swept.stderr);
        assert_eq!(swept.peers.len(), 17);
        for peer in alive {
            swept.assert(peer, "alive/ack");
        }
        swept.assert("127.0.0.2:80", "alive/refused");
        swept.assert("127.0.0.15:80", "alive/refused");
        assert_eq!(swept.summary["io"], "raw");
        // Neither ours, which pass the guard, nor those of the refusing peers.
        assert_eq!(swept.number("kernel_rsts"), 0, "{}", swept.summary);
        assert_eq!(swept.number("guard_dropped"), swept.number("frames_received"));

        let pcap = PcapReader::new(File::open(&pcap).expect("open the capture")).expect("pcap");
        assert_eq!(pcap.link(), LinkType::Ip);
        let frames = pcap.map(|frame| {
            let (_, frame) = frame.expect("a frame");
            parse(&frame, LinkType::Ip, Checksums::Trust).expect("a packet");
        });
        let all = swept.number("frames_sent") + swept.number("frames_received");
        assert_eq!(frames.count() as u64, all);
    });
}

/// Its connection gone without a word, the peer resets the keepalive: from this host to itself too.
#[test]
fn a_peer_on_this_host_can_lose_its_memory() {
    in_namespace(|| {
        let listener = listen("127.0.0.1:80");
        let running = sweep_command("127.0.0.1:80 --idle 3s").spawn().expect("keepsweep starts");
        let (connection, _) = listener.accept().expect("it connects");
        nft("add table ip t; add chain ip t o { type filter hook output priority 0; };
             add rule ip t o tcp sport 80 tcp flags & rst == rst drop");
        nix::sys::socket::setsockopt(
            &connection,
            nix::sys::socket::sockopt::Linger,
            &libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("set SO_LINGER");
        drop(connection);
        nft("delete table ip t");
        let swept = read(running.wait_with_output().expect("keepsweep ends"));
        swept.assert("127.0.0.1:80", "rebooted/reset");
        assert_eq!(swept.number("kernel_rsts"), 0);
    });
}

/// The firewall of this host drops what its own peer says: not a word is heard, and yet it is up.
#[test]
fn this_host_is_not_called_down() {
    in_namespace(|| {
        let _listener = listen("127.0.0.1:80");
        nft("add table ip t; add chain ip t o { type filter hook output priority 0; };
             add rule ip t o tcp sport 80 drop");
        let swept = sweep("127.0.0.1:80 --connect-timeout 1s");
        assert_eq!(swept.code, Some(1), "{}", swept.stderr);
        swept.assert("127.0.0.1:80", "undetermined/observer");
    });
}

#[test]
fn says_what_this_host_cannot_be_probed_by() {
    in_namespace(|| {
        let _tun = tun0();
        for (args, said) in [
            (
                "127.0.0.1:80 --io packet",
                "an address of this host, which the packet path cannot reach",
            ),
            ("10.8.0.2:80 --io packet", "tun0: the interface has no MAC addresses"),
            ("127.0.0.1:61001", "its port is one of our source ports 61000-65534"),
            ("127.0.0.1:80 -i tun0", "a loopback address, which is not behind tun0"),
        ] {
            let swept = sweep(args);
            assert_eq!(swept.code, Some(2), "{args}: {}", swept.stderr);
            assert!(swept.stderr.contains(said), "{args}: {}", swept.stderr);
        }
    });
}

#[test]
fn says_which_privileges_are_missing() {
    in_namespace(|| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups", env!("CARGO_BIN_EXE_keepsweep"), "sweep"])
            .args(["127.0.0.1:80", "--io", "raw"])
            .output()
            .expect("run setpriv");
        let swept = read(output);
        assert_eq!(swept.code, Some(3), "{}", swept.stderr);
        assert!(swept.stderr.contains("CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF"), "{}", swept.stderr);
    });
}

/// Answers SYNs and keepalives to 10.8.0.2 as a live peer does, until told to stop.
fn answer(mut tun: File, stop: Arc<AtomicBool>) {
    let deadline = Clock.now() + DEADLINE;
    while !stop.load(Ordering::Acquire) && Clock.now() < deadline {
        let Some(packet) = next_segment(&mut tun) else {
            Clock.sleep(Duration::from_micros(200));
            continue;
        };
        let Ok(Packet::Tcp(asked)) = parse(&packet, LinkType::Ip, Checksums::Verify) else {
            continue;
        };
        let is_syn = asked.flags.contains(Flags::SYN);
        let is_keepalive = !is_syn && !asked.flags.contains(Flags::RST) && asked.ack.0 == 1001;
        if asked.ip.dst != IpAddr::from([10, 8, 0, 2]) || !(is_syn || is_keepalive) {
            continue;
        }
        let reply = Segment {
            ip: IpHeader { src: asked.ip.dst, dst: asked.ip.src, ttl: 64, id: 0 },
            src_port: asked.dst_port,
            dst_port: asked.src_port,
            seq: SeqNumber(if is_syn { 1000 } else { 1001 }),
            ack: asked.seq + 1,
            flags: if is_syn { Flags::SYN.union(Flags::ACK) } else { Flags::ACK },
            wnd: 1000,
            options: Options::default(),
            payload: &[],
        };
        let mut packet = [0; 128];
        let len = reply.emit(&LinkHeader::Ip, &mut packet).expect("emit");
        tun.write_all(&packet[..len]).expect("write to the device");
    }
}

#[test]
fn sweeps_through_a_device_without_mac_addresses() {
    in_namespace(|| {
        let tun = tun0();
        let stop = Arc::new(AtomicBool::new(false));
        let peer = std::thread::spawn({
            let stop = stop.clone();
            move || answer(tun, stop)
        });
        let swept = sweep("10.8.0.2 10.8.0.3 -p 80 --connect-timeout 3s");
        stop.store(true, Ordering::Release);
        peer.join().expect("the peer ends");
        assert_eq!(swept.code, Some(1), "{}", swept.stderr);
        swept.assert("10.8.0.2:80", "alive/ack");
        swept.assert("10.8.0.3:80", "down/silent");
        assert_eq!(swept.summary["io"], "raw");
        assert_eq!(swept.number("kernel_rsts"), 0);
    });
}

#[test]
fn dry_run_shows_packets_without_ethernet_headers() {
    in_namespace(|| {
        let _tun = tun0();
        let dir = tempfile::tempdir().expect("a directory");
        let pcap = dir.path().join("dry.pcap");
        let output = sweep_command("10.8.0.2:80 127.0.0.1:80 --dry-run")
            .args(["--pcap".as_ref(), pcap.as_os_str()])
            .output()
            .expect("keepsweep runs");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains("tun0: IP 10.8.0.1"), "{text}");
        assert!(text.contains("lo: IP 127.0.0.1"), "{text}");
        let pcap = PcapReader::new(File::open(&pcap).expect("open the capture")).expect("pcap");
        assert_eq!(pcap.link(), LinkType::Ip);
        for frame in pcap {
            let (_, frame) = frame.expect("a frame");
            let packet = parse(&frame, LinkType::Ip, Checksums::Verify);
            assert!(matches!(packet, Ok(Packet::Tcp(_))), "{packet:?}");
        }
    });
}

/// A network namespace that lives as long as this value.
struct Namespace(File);

impl Namespace {
    fn new() -> Namespace {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare the network namespace");
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        });
        Namespace(thread.join().expect("a namespace"))
    }

    /// As `ip` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                job()
            });
            thread.join().expect("the job ends")
        })
    }
}

/// All namespaces have one table of neighbours: who fills it is alone.
static NEIGHBOURS: RwLock<()> = RwLock::new(());

/// Another host with 10.7.0.2 to 10.7.0.8 on a link that we are on as 10.7.0.1. Its listener, and the room
/// in the table of neighbours.
fn other_host() -> (Namespace, (TcpListener, RwLockReadGuard<'static, ()>)) {
    let room = NEIGHBOURS.read().unwrap_or_else(PoisonError::into_inner);
    let (there, listener) = lone_host();
    (there, (listener, room))
}

fn lone_host() -> (Namespace, TcpListener) {
    let there = Namespace::new();
    ip(&format!("link add near0 type veth peer name far0 netns {}", there.path()));
    ip("addr add 10.7.0.1/24 dev near0");
    ip("link set near0 up");
    let listener = there.run(|| {
        ip("link set lo up");
        for last in 2..=8 {
            ip(&format!("addr add 10.7.0.{last}/24 dev far0"));
        }
        ip("link set far0 up");
        listen("0.0.0.0:80")
    });
    (there, listener)
}

#[test]
fn sweeps_ethernet_and_this_host_by_raw_sockets_or_by_both() {
    in_namespace(|| {
        let (_there, _listener) = other_host();
        let _here = listen("10.7.0.1:80");
        for (args, io) in [("--io raw", "raw"), ("--io auto", "packet+raw")] {
            let swept = sweep(&format!("10.7.0.1:80 10.7.0.2:80 10.7.0.3:81 {args}"));
            assert_eq!(swept.code, Some(0), "{}", swept.stderr);
            swept.assert("10.7.0.1:80", "alive/ack");
            swept.assert("10.7.0.2:80", "alive/ack");
            swept.assert("10.7.0.3:81", "alive/refused");
            assert_eq!(swept.summary["io"], io);
            assert_eq!(swept.number("kernel_rsts"), 0, "{}", swept.summary);
        }
    });
}

#[test]
fn a_neighbour_that_does_not_answer_the_kernel() {
    in_namespace(|| {
        let (_there, _listener) = other_host();
        let swept = sweep("10.7.0.2 10.7.0.99 -p 80 --io raw --connect-timeout 5s");
        swept.assert("10.7.0.2:80", "alive/ack");
        swept.assert("10.7.0.99:80", "unreachable/neighbour");
        let evidence = &swept.peers["10.7.0.99:80"]["evidence"];
        assert_eq!(evidence[0]["kind"], "neighbour-failed", "{evidence}");
        assert_eq!(evidence[0]["from"], "10.7.0.1", "{evidence}");
    });
}

/// More of them than the kernel reports (`icmp_msgs_burst`).
#[test]
fn many_neighbours_that_do_not_answer_the_kernel_are_not_down() {
    in_namespace(|| {
        let (there, _listener) = other_host();
        ip("addr add 10.9.0.1/16 dev near0");
        ip("addr add fd07::1/64 dev near0 nodad");
        there.run(|| {
            ip("addr add 10.9.0.2/16 dev far0");
            ip("addr add fd07::2/64 dev far0 nodad");
        });
        let _listener = there.run(|| listen("[fd07::2]:80"));
        for (alive, absent) in [("10.9.0.2", "10.9.1.0/24"), ("fd07::2", "fd07::1:0/120")] {
            let swept = sweep(&format!("{alive} {absent} -p 80 --io raw --connect-timeout 5s"));
            assert_eq!(swept.peers.len(), 257, "{}", swept.stderr);
            let counted = count(&swept);
            assert_eq!(counted.get("alive/ack"), Some(&1), "{counted:?}");
            assert_eq!(counted.get("unreachable/neighbour"), Some(&256), "{counted:?}");
        }
    });
}

/// More of them than the kernel has room for (`gc_thresh3`).
#[test]
fn neighbours_that_the_kernel_has_no_room_for_are_not_down() {
    let _alone = NEIGHBOURS.write().unwrap_or_else(PoisonError::into_inner);
    in_namespace(|| {
        let (_there, _listener) = lone_host();
        ip("addr add 10.9.0.1/20 dev near0");
        let swept = sweep("10.9.4.0/21 -p 80 --io raw --connect-timeout 5s");
        let counted = count(&swept);
        assert!(!counted.keys().any(|said| said.starts_with("down")), "{counted:?}");
        assert!(counted.get("unreachable/neighbour") >= Some(&256), "{counted:?}");
        // Its neighbours go with it: a namespace is taken apart only later.
        ip("link del near0");
    });
}

/// How many peers each thing was said of.
fn count(swept: &Swept) -> HashMap<String, usize> {
    let mut counted = HashMap::new();
    for peer in swept.peers.values() {
        let said = ["state", "reason"].map(|key| peer[key].as_str().unwrap_or_default());
        *counted.entry(said.join("/")).or_default() += 1;
    }
    counted
}

/// However our own firewall keeps probes from leaving, and whatever it says in the name of others.
#[test]
fn our_own_firewall_accuses_nobody() {
    in_namespace(|| {
        let (_there, _listener) = other_host();
        nft(
            "add table ip t; add chain ip t o { type filter hook output priority 0; };
             add rule ip t o ip daddr 10.7.0.3 tcp dport 80 drop;
             add rule ip t o ip daddr 10.7.0.4 tcp dport 80 reject;
             add rule ip t o ip daddr 10.7.0.5 tcp dport 80 reject with tcp reset;
             add rule ip t o ip daddr 10.7.0.6 tcp dport 80 reject with icmp type host-unreachable;
             add rule ip t o ip daddr 10.7.0.7 tcp dport 80 reject with icmp type admin-prohibited",
        );
        let peers = "10.7.0.2 10.7.0.3 10.7.0.4 10.7.0.5 10.7.0.6 10.7.0.7";
        let swept = sweep(&format!("{peers} -p 80 --io raw --connect-timeout 2s"));
        swept.assert("10.7.0.2:80", "alive/ack");
        for last in 3..=7 {
            swept.assert(&format!("10.7.0.{last}:80"), "undetermined/observer");
        }
        assert_eq!(swept.code, Some(3), "{}", swept.stderr);
        assert!(swept.stderr.contains("this host's firewall refuses them"), "{}", swept.stderr);
    });
}

/// The usual ruleset of a host: answers never get as far as its input hook.
#[test]
fn a_stateful_firewall_on_the_way_in_changes_nothing() {
    in_namespace(|| {
        let (_there, _listener) = other_host();
        let _here = listen("127.0.0.1:80");
        nft("add table ip t; add chain ip t i { type filter hook input priority 0; policy drop; };
             add rule ip t i iif lo accept;
             add rule ip t i ct state established,related accept;
             add rule ip t i ct state invalid drop");
        let swept = sweep("10.7.0.2 127.0.0.1 10.7.0.3:81 -p 80 --io raw --idle 1s");
        assert_eq!(swept.code, Some(0), "{}", swept.stderr);
        swept.assert("10.7.0.2:80", "alive/ack");
        swept.assert("127.0.0.1:80", "alive/ack");
        swept.assert("10.7.0.3:81", "alive/refused");
    });
}

/// `cargo test --release --test raw_path -- --ignored --nocapture measure_tx`
#[test]
#[ignore = "a measurement"]
fn measure_tx_rate() {
    use keepsweep::io::packet::PacketTx;

    in_namespace(|| {
        // Swallows what it is given.
        ip("link add sink0 type ifb");
        ip("addr add 10.6.0.1/24 dev sink0");
        ip("link set sink0 up");
        ip("neigh add 10.6.0.2 lladdr 02:00:00:00:00:09 dev sink0");
        let total = 1_000_000;
        let packet = segment("10.6.0.1", "10.6.0.2", 0);
        let macs = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
        let frame = [&macs[..], &[8, 0], &packet].concat();
        let ends: [(&str, Box<dyn Transmit>, &[u8]); 2] = [
            ("raw", Box::new(by_routes("sink0")), &packet),
            ("packet", Box::new(PacketTx::open(index("sink0"), "sink0").expect("open")), &frame),
        ];
        for (name, mut tx, bytes) in ends {
            let start = Clock.now();
            for _ in 0..total {
                if tx.reserve().is_none() {
                    tx.flush().expect("flush");
                }
                tx.reserve().expect("room")[..bytes.len()].copy_from_slice(bytes);
                tx.submit(bytes.len());
            }
            tx.flush().expect("flush");
            let elapsed = Clock.now().since(start);
            println!("{name}: {:.0} frames/s", f64::from(total) / elapsed.as_secs_f64());
        }
    });
}
