//! IPv6 through the whole engine: a sweep of a kernel at the other end of a veth pair.
#![cfg(feature = "os")]

mod netns;

use keepsweep::engine::{Control, EngineError, IoKind, Setup, Sweep, preview};
use keepsweep::io::PathInfo;
use keepsweep::probe::TargetId;
use keepsweep::probe::classify::{Reason, State};
use keepsweep::probe::evidence::Verdict;
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use keepsweep::report::Summary;
use keepsweep::time::Clock;
use keepsweep::wire::{Checksums, LinkType, NdKind, Packet, PcapReader, parse};
use netns::{in_namespace, ip};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The other end: a thread in a network namespace of its own, which listens on port 80.
struct Far {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Far {
    /// Connects `near0` and `near1` here with `far0` and `far1` there and runs `configure` there.
    fn new(configure: impl FnOnce() + Send + 'static) -> Self {
        let (tell_tid, tid) = channel();
        let (linked, go_on) = channel::<()>();
        let (tell_ready, ready) = channel();
        let (done, end) = channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
            tell_tid.send(nix::unistd::gettid()).expect("somebody waits");
            go_on.recv().expect("the link is there");
            for sysctl in ["all/accept_dad", "default/accept_dad", "all/forwarding"] {
                let value = if sysctl.ends_with("forwarding") { "1" } else { "0" };
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{sysctl}"), value).expect("sysctl");
            }
            ip("link set lo up");
            ip("link set far0 up");
            ip("link set far1 up");
            configure();
            // Nobody accepts: such connections answer keepalives all the same. Up to 128 fit.
            let _listener = TcpListener::bind("[::]:80").expect("listen");
            tell_ready.send(()).expect("somebody waits");
            let _ = end.recv();
        });
        let tid = tid.recv().expect("a thread");
        for pair in [0, 1] {
            ip(&format!("link add near{pair} type veth peer name far{pair} netns {tid}"));
            ip(&format!("link set near{pair} up"));
        }
        linked.send(()).expect("the thread waits");
        ready.recv().expect("the far end is ready");
        Far { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn setup(targets: Vec<SocketAddr>) -> Setup {
    let keepalive = Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: 3 };
    Setup {
        plan: Plan {
            keepalive,
            probe_bytes: ProbeBytes::Auto,
            connect_timeout: Duration::from_secs(3),
            close: Close::Rst,
            rate_pps: Some(10_000),
            rate_per_prefix_pps: None,
            seed: 1,
        },
        targets,
        on_behalf: Vec::new(),
        flows: Vec::new(),
        io: IoKind::Auto,
        interface: None,
        source: None,
        source_ports: 61000..=65534,
        cpus: None,
        pcap: None,
        pcap_goes_on: false,
    }
}

fn sweep(setup: Setup) -> (HashMap<SocketAddr, Verdict>, Summary) {
    let sweep = Sweep::open(setup).expect("open");
    let mut verdicts = HashMap::new();
    let summary = sweep.run(&Control::default(), &mut |verdict| {
        let twice = verdicts.insert(verdict.peer, verdict);
        assert!(twice.is_none(), "reported twice: {twice:?}");
    });
    (verdicts, summary.expect("the paths hold"))
}

#[track_caller]
fn assert_said(
    verdicts: &HashMap<SocketAddr, Verdict>,
    peer: SocketAddr,
    state: State,
    reason: Reason,
) {
    let verdict = &verdicts[&peer];
    assert_eq!((verdict.state, verdict.reason), (state, reason), "{verdict:?}");
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn near_index() -> u32 {
    nix::net::if_::if_nametoindex("near0").expect("near0")
}

/// Waits until this end can be reached by, and has, its addresses.
fn await_addresses(addresses: &[&str]) {
    let begun = Clock.now();
    let are_there = || {
        let table = ip("-6 route show table local");
        addresses.iter().all(|own| table.contains(&format!("local {own} ")))
            && !ip("-6 addr show").contains("tentative")
    };
    while !are_there() {
        assert!(Clock.now().since(begun) < Duration::from_secs(20), "no addresses");
        Clock.sleep(Duration::from_millis(10));
    }
}

fn is_link_local(address: Option<SocketAddr>) -> bool {
    matches!(address.map(|own| own.ip()), Some(IpAddr::V6(own)) if own.is_unicast_link_local())
}

/// Both families, on link and behind a router that is known by its link-local address; what answers,
/// what refuses, what is silent and what no neighbour is.
#[test]
fn sweeps_both_families_together() {
    in_namespace(|| {
        let _far = Far::new(|| {
            ip("addr add fe80::fa/64 dev far0 nodad");
            ip("addr add fd98::2/64 dev far0 nodad");
            ip("addr add 10.98.0.2/24 dev far0");
            ip("-6 route add local fd99::/120 dev lo");
            ip("-6 route add blackhole fd99:1::/64");
            ip("-6 route add unreachable fd99:2::/64");
            ip("-6 route add prohibit fd99:3::/64");
        });
        ip("addr add fd98::1/64 dev near0 nodad");
        ip("addr add 10.98.0.1/24 dev near0");
        ip("-6 route add default via fe80::fa dev near0");
        await_addresses(&["fd98::1"]);

        let alive: Vec<_> = (1..=100).map(|last| at(&format!("fd99::{last:x}"), 80)).collect();
        let mut targets = alive.clone();
        let scoped = |ip: &str| {
            let ip = ip.parse().expect("an address");
            SocketAddr::V6(SocketAddrV6::new(ip, 80, 0, near_index()))
        };
        let link_local = scoped("fe80::fa");
        targets.extend([at("fd98::2", 80), at("10.98.0.2", 80), link_local]);
        targets.extend([at("fd98::2", 81), at("10.98.0.2", 81), at("fd99::7", 81)]);
        targets.extend([at("fd98::99", 80), scoped("fe80::99"), at("10.98.0.99", 80)]);
        targets.extend([at("fd99:1::1", 80), at("fd99:2::1", 80), at("fd99:3::1", 80)]);
        let given = targets.len();
        let (verdicts, summary) = sweep(setup(targets));

        assert_eq!(verdicts.len(), given);
        for peer in alive.into_iter().chain([at("fd98::2", 80), at("10.98.0.2", 80), link_local]) {
            assert_said(&verdicts, peer, State::Alive, Reason::Ack);
        }
        assert!(is_link_local(verdicts[&link_local].local));
        assert_eq!(
            verdicts[&at("fd99::1", 80)].local.map(|own| own.ip()),
            Some("fd98::1".parse().expect("an address"))
        );
        for peer in [at("fd98::2", 81), at("10.98.0.2", 81), at("fd99::7", 81)] {
            assert_said(&verdicts, peer, State::Alive, Reason::Refused);
        }
        for peer in [at("fd98::99", 80), scoped("fe80::99"), at("10.98.0.99", 80)] {
            assert_said(&verdicts, peer, State::Unreachable, Reason::Neighbour);
        }
        assert_said(&verdicts, at("fd99:1::1", 80), State::Down, Reason::Silent);
        assert_said(&verdicts, at("fd99:2::1", 80), State::Unreachable, Reason::IcmpNet);
        assert_said(&verdicts, at("fd99:3::1", 80), State::Unreachable, Reason::IcmpAdmin);

        // fe80::fa as a router and as a peer is one neighbour, fd98::2 another; each of two that are
        // not there is asked thrice. Over IPv4 there is one of each.
        assert!(summary.sent_by_kind["nd"] >= 8, "{:?}", summary.sent_by_kind);
        assert!(summary.sent_by_kind["arp"] >= 4, "{:?}", summary.sent_by_kind);
        assert_eq!(summary.kernel_rsts, 0, "the guard holds over IPv6");
        assert!(summary.guard_dropped >= 200, "{}", summary.guard_dropped);
        let rejected: u64 = summary.replies_rejected.values().sum();
        assert_eq!(summary.frames_received, summary.replies_matched + rejected);
    });
}

/// Answers that come in by another interface than the questions went out.
#[test]
fn hears_answers_elsewhere() {
    in_namespace(|| {
        let _far = Far::new(|| {
            ip("addr add fd98::2/64 dev far0 nodad");
            ip("addr add fd97::2/64 dev far1 nodad");
            ip("-6 route add fd98::1/128 via fd97::1");
            ip("-6 route add local fd99::/120 dev lo");
        });
        ip("addr add fd98::1/64 dev near0 nodad");
        ip("addr add fd97::1/64 dev near1 nodad");
        ip("-6 route add fd99::/120 via fd98::2");
        await_addresses(&["fd98::1", "fd97::1"]);
        let pcap = tempfile::NamedTempFile::new().expect("a file");
        let setup = Setup { pcap: Some(pcap.path().to_owned()), ..setup(vec![at("fd99::1", 80)]) };
        let (verdicts, summary) = sweep(setup);
        assert_said(&verdicts, at("fd99::1", 80), State::Alive, Reason::Ack);
        assert_eq!(summary.kernel_rsts, 0);

        let capture = PcapReader::new(pcap.reopen().expect("open")).expect("a capture");
        let frames = capture.map(|record| record.expect("a frame").1);
        // What comes in elsewhere is taken without its Ethernet header.
        let elsewhere = frames.filter(|frame| frame[..12] == [0; 12]).filter(|frame| {
            let packet = parse(frame, LinkType::Ethernet, Checksums::Trust);
            matches!(packet, Ok(Packet::Tcp(segment)) if segment.src_port == 80)
        });
        assert!(elsewhere.count() >= 2, "SYN-ACK and ACK");
    });
}

/// A host whose address is on its loopback, and its router known by a link-local address only: the
/// usual way in networks that route to every host.
#[test]
fn asks_for_next_hops_in_the_name_of_the_interface() {
    in_namespace(|| {
        let _far = Far::new(|| {
            ip("addr add fe80::fa/64 dev far0 nodad");
            ip("-6 route add fd98::1/128 via fe80::1 dev far0");
            ip("-6 route add local fd99::/120 dev lo");
        });
        ip("addr add fe80::1/64 dev near0 nodad");
        ip("addr add fd98::1/128 dev lo");
        ip("-6 route add default via fe80::fa dev near0");
        await_addresses(&["fd98::1", "fe80::1"]);
        let pcap = tempfile::NamedTempFile::new().expect("a file");
        let setup = Setup { pcap: Some(pcap.path().to_owned()), ..setup(vec![at("fd99::1", 80)]) };
        let (verdicts, _) = sweep(setup);
        assert_said(&verdicts, at("fd99::1", 80), State::Alive, Reason::Ack);
        let local = verdicts[&at("fd99::1", 80)].local.map(|own| own.ip());
        assert_eq!(local, Some("fd98::1".parse().expect("an address")));

        let capture = PcapReader::new(pcap.reopen().expect("open")).expect("a capture");
        let mut asked = 0;
        for record in capture {
            let (_, frame) = record.expect("a frame");
            if let Ok(Packet::Nd(message)) = parse(&frame, LinkType::Ethernet, Checksums::Trust)
                && message.kind == NdKind::Solicitation
            {
                assert!(message.src.is_unicast_link_local(), "{message:?}");
                asked += 1;
            }
        }
        assert!(asked > 0);
    });
}

/// The links of an address that every link has.
#[test]
fn link_local_peers_name_their_link() {
    in_namespace(|| {
        ip("link add near0 type veth peer name far0");
        ip("link set near0 up");
        ip("link set far0 up");
        await_addresses(&[]);
        let says = |setup: &Setup| match preview(setup, &mut |_, _, _| ()) {
            Err(EngineError::Usage(text)) => text,
            other => panic!("{other:?}"),
        };
        let bare = setup(vec![at("fe80::1", 80)]);
        assert!(says(&bare).contains("fe80::1%IFACE"), "{}", says(&bare));
        let on =
            |scope| vec![SocketAddrV6::new("fe80::1".parse().expect("v6"), 80, 0, scope).into()];
        let contradicts = Setup { interface: Some("far0".into()), ..setup(on(near_index())) };
        assert!(says(&contradicts).contains("near0"), "{}", says(&contradicts));
        let gone = setup(on(4_000));
        assert!(says(&gone).contains("no such interface"), "{}", says(&gone));
        let mapped = setup(vec![at("::ffff:10.0.0.1", 80)]);
        assert!(says(&mapped).contains("give it as 10.0.0.1"), "{}", says(&mapped));
        let source = Some("10.0.0.1".parse().expect("an address"));
        let mixed = Setup { source, ..setup(on(near_index())) };
        assert!(says(&mixed).contains("10.0.0.1"), "{}", says(&mixed));

        let through = |setup: Setup| {
            let mut seen = Vec::new();
            let show = &mut |TargetId(target): TargetId, path: &PathInfo, frame: &[u8]| {
                let peer = setup.targets[target as usize];
                seen.push((peer, path.interface.clone(), frame[14] >> 4));
            };
            preview(&setup, show).expect("a route");
            assert_eq!(seen.len(), setup.targets.len());
            seen
        };
        let scoped = on(near_index());
        let peer = scoped[0];
        assert_eq!(through(setup(scoped)), [(peer, "near0".to_owned(), 6)]);
        let by_option = Setup { interface: Some("far0".into()), ..bare };
        assert_eq!(through(by_option), [(at("fe80::1", 80), "far0".to_owned(), 6)]);
    });
}

/// By the kernel's own routes and neighbours: through a router, on link, and to ourselves.
#[test]
fn raw_sockets_reach_the_same_peers() {
    in_namespace(|| {
        let _far = Far::new(|| {
            ip("addr add fe80::fa/64 dev far0 nodad");
            ip("addr add fd98::2/64 dev far0 nodad");
            ip("-6 route add local fd99::/120 dev lo");
            ip("-6 route add prohibit fd99:3::/64");
        });
        ip("addr add fd98::1/64 dev near0 nodad");
        ip("-6 route add default via fe80::fa dev near0");
        ip("-6 route add local fd97::/64 dev lo");
        await_addresses(&["fd98::1"]);
        let _own = TcpListener::bind("[::]:80").expect("listen");

        let scoped = |ip: &str| {
            SocketAddr::V6(SocketAddrV6::new(ip.parse().expect("an address"), 80, 0, near_index()))
        };
        let alive = [
            at("fd99::7", 80),
            at("fd98::2", 80),
            scoped("fe80::fa"),
            at("::1", 80),
            at("fd98::1", 80),
        ];
        let refused = [at("fd98::2", 81), at("::1", 81)];
        // No address of an interface, and yet ours.
        let prefix = at("fd97::5", 80);
        let missing = [at("fd98::99", 80), scoped("fe80::99")];
        let prohibited = at("fd99:3::1", 80);
        let targets = [&alive[..], &refused, &missing, &[prefix, prohibited]].concat();
        let long = Plan { connect_timeout: Duration::from_secs(5), ..setup(Vec::new()).plan };
        let (verdicts, summary) =
            sweep(Setup { io: IoKind::Raw, plan: long, ..setup(targets.clone()) });
        assert_eq!(summary.io, "raw");
        assert_eq!(verdicts.len(), targets.len());
        for peer in alive.into_iter().chain([prefix]) {
            assert_said(&verdicts, peer, State::Alive, Reason::Ack);
        }
        for peer in refused {
            assert_said(&verdicts, peer, State::Alive, Reason::Refused);
        }
        for peer in missing {
            assert_said(&verdicts, peer, State::Unreachable, Reason::Neighbour);
        }
        assert_said(&verdicts, prohibited, State::Unreachable, Reason::IcmpAdmin);
        assert_eq!(summary.kernel_rsts, 0);
    });
}

/// What our own firewall keeps back, or says in the name of others, accuses nobody.
#[test]
fn our_own_firewall_accuses_nobody() {
    in_namespace(|| {
        let _far = Far::new(|| {
            for last in 2..=5 {
                ip(&format!("addr add fd98::{last}/64 dev far0 nodad"));
            }
        });
        ip("addr add fd98::1/64 dev near0 nodad");
        await_addresses(&["fd98::1"]);
        let rules = "add table ip6 t; add chain ip6 t o { type filter hook output priority 0; };
            add rule ip6 t o ip6 daddr fd98::3 tcp dport 80 drop;
            add rule ip6 t o ip6 daddr fd98::4 tcp dport 80 reject with tcp reset;
            add rule ip6 t o ip6 daddr fd98::5 tcp dport 80 reject with icmpv6 type addr-unreachable";
        let status = std::process::Command::new("nft").arg(rules).status().expect("run nft");
        assert!(status.success());
        let targets: Vec<_> = (2..=5).map(|last| at(&format!("fd98::{last}"), 80)).collect();
        let (verdicts, summary) = sweep(Setup { io: IoKind::Raw, ..setup(targets.clone()) });
        assert_said(&verdicts, targets[0], State::Alive, Reason::Ack);
        for &peer in &targets[1..] {
            assert_said(&verdicts, peer, State::Undetermined, Reason::Observer);
        }
        assert!(summary.faults[0].contains("this host's firewall refuses them"));
    });
}
