//! The guard, the port check and the dropping of privileges, against the real kernel.
//!
//! Every test runs in network namespaces of its own, which have no name and are gone with their
//! threads. Needs root: without it the tests fail if CI=true, and say that they are skipped if not.

#![cfg(feature = "os")]
// clippy.toml allows it in tests, but takes the lab's own functions for something else.
#![allow(clippy::unwrap_used)]

#[path = "guard/frames.rs"]
mod frames;
#[path = "guard/lab.rs"]
mod lab;
#[path = "netns/tun.rs"]
mod tun;

use aya::programs::{SchedClassifier, TcAttachType};
use frames::{Segment, ethernet, tagged};
use keepsweep::io::Transmit;
use keepsweep::io::guard::{Guard, GuardCounts, GuardError, GuardSpec, Guarded};
use keepsweep::io::ports::{self, PortsError};
use keepsweep::io::privilege::{self, Capability};
use keepsweep::io::raw::{Egress, RawTx};
use lab::{Lab, PacketSocket, await_that, set_sysctl};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_534;
const RST: u8 = 0x04;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

fn spec() -> GuardSpec {
    GuardSpec {
        sources: vec![lab::OURS_V4.into(), lab::OURS_V6.into()],
        ports: PORTS,
        tuples: Vec::new(),
        holds: 0,
    }
}

fn guard(lab: &Lab, interface: &str) -> Guard {
    Guard::attach(&[lab.interface(interface)], &spec()).unwrap()
}

/// A SYN-ACK from the peer to `port` of ours.
fn to_us(v6: bool, port: u16) -> Segment {
    let (peer, ours) = lab::addresses(v6);
    Segment::new(SocketAddr::new(peer, 80), SocketAddr::new(ours, port), SYN_ACK)
}

fn from_us(v6: bool, port: u16, flags: u8) -> Segment {
    let (peer, ours) = lab::addresses(v6);
    Segment::new(SocketAddr::new(ours, port), SocketAddr::new(peer, 80), flags)
}

fn attached_programs(interface: &str) -> Vec<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .iter()
        .flat_map(|side| SchedClassifier::query_tcx(interface, *side).unwrap().1)
        .map(|program| program.id())
        .collect()
}

#[test]
fn kernel_resets_unknown_flows_and_the_guard_keeps_it_from_it() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");

    for (v6, before) in [(false, 0), (true, 2)] {
        let frame = ethernet(&to_us(v6, 61_000));
        // c0 has no guard: the kernel answers, and its answer leaves by a0.
        lab.peer.send("d0", frame.clone());
        await_that(|| guard.counts().unwrap().kernel_rsts == before + 1);

        lab.peer.send("b0", frame.clone());
        await_that(|| guard.counts().unwrap().dropped == 1 + u64::from(v6));

        // A RST that leaked before would make this one too many.
        lab.peer.send("d0", frame);
        await_that(|| guard.counts().unwrap().kernel_rsts >= before + 2);
        assert_eq!(guard.counts().unwrap().kernel_rsts, before + 2, "v6: {v6}");
    }
}

/// On the raw path our own segments pass the guard on their way out: those are not the kernel's.
#[test]
fn resets_by_raw_socket_are_told_from_the_kernels() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let a0 = lab.interface("a0");
    let mut raw = RawTx::open(Egress::Interface { index: a0.index, name: "a0" }).unwrap();
    let tap = PacketSocket::open("a0", false);

    for (v6, before) in [(false, 0), (true, 1)] {
        let frame = lab::outbound(&from_us(v6, 61_000, RST));
        let packet = &frame[14..];
        raw.reserve().unwrap()[..packet.len()].copy_from_slice(packet);
        raw.submit(packet.len());
        assert_eq!(raw.flush().unwrap(), 1);
        assert_eq!(tap.receive_until(|seen| seen[14..] == *packet)[..6], lab::PEER_MAC);
        assert_eq!(guard.counts().unwrap().kernel_rsts, before, "v6: {v6}");

        // c0 has no guard: the kernel resets, and its RST leaves by a0 like ours.
        lab.peer.send("d0", ethernet(&to_us(v6, 61_000)));
        await_that(|| guard.counts().unwrap().kernel_rsts > before);
        assert_eq!(guard.counts().unwrap().kernel_rsts, before + 1, "v6: {v6}");
    }
}

#[test]
fn tap_sees_what_the_guard_drops() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let _listener = lab.peer.run(|| TcpListener::bind((lab::PEER_V4, 80)).unwrap());

    let tap = PacketSocket::open("a0", false);
    let sender = PacketSocket::open("a0", true);
    sender.send(&lab::outbound(&from_us(false, 61_001, SYN)));

    let syn_ack = tap.receive_until(|frame| {
        frame.len() >= 54 && frame[36..38] == 61_001_u16.to_be_bytes() && frame[47] == SYN_ACK
    });
    assert_eq!(syn_ack[26..30], lab::PEER_V4.octets());
    await_that(|| guard.counts().unwrap().dropped >= 1);
    assert_eq!(guard.counts().unwrap().kernel_rsts, 0);
}

/// A flow that was given: guarded by its tuple alone, and not the listener's that has its port.
#[test]
fn exact_tuples_are_guarded_even_on_the_port_of_a_listener() {
    let Some(lab) = Lab::new() else { return };
    let tuple = |v6: bool, peer_port: u16| {
        let (peer, ours) = lab::addresses(v6);
        (SocketAddr::new(ours, 443), SocketAddr::new(peer, peer_port))
    };
    let spec = GuardSpec {
        sources: Vec::new(),
        ports: PORTS,
        tuples: vec![tuple(false, 5_000), tuple(true, 5_000), tuple(false, 5_002)],
        holds: 0,
    };
    let guard = Guard::attach(&[lab.interface("a0")], &spec).unwrap();
    const ACK: u8 = 0x10;
    let acks = |v6: bool, peer_port: u16| {
        let (ours, peer) = tuple(v6, peer_port);
        ethernet(&Segment::new(peer, ours, ACK))
    };
    for (v6, before) in [(false, 0), (true, 1)] {
        let (_, ours) = lab::addresses(v6);
        let _listener = TcpListener::bind(SocketAddr::new(ours, 443)).unwrap();
        // Another connection to the same port is the listener's, which resets it: not counted.
        lab.peer.send("b0", acks(v6, 5_001));
        lab.peer.send("b0", acks(v6, 5_000));
        await_that(|| guard.counts().unwrap().dropped == before + 1);
        // By way of c0, which has no guard, the kernel gets it and resets it.
        lab.peer.send("d0", acks(v6, 5_001));
        lab.peer.send("d0", acks(v6, 5_000));
        await_that(|| guard.counts().unwrap().kernel_rsts == before + 1);
        let counts = guard.counts().unwrap();
        assert_eq!((counts.dropped, counts.passed_owned), (before + 1, 0), "v6: {v6}");
    }

    // A connection of the kernel's on such a tuple is its own.
    let (_, ours) = lab::addresses(false);
    let listener = TcpListener::bind(SocketAddr::new(ours, 443)).unwrap();
    let peer = tuple(false, 5_002).1;
    // The guard does not let the SYN in by a0: it has been told that this is another connection.
    drop(guard);
    let mut theirs = lab.peer.run(move || lab::connect_from(peer, SocketAddr::new(ours, 443)));
    let (mut stream, _) = listener.accept().unwrap();
    let guard = Guard::attach(&[lab.interface("a0")], &spec).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    theirs.write_all(b"still there?").unwrap();
    let mut buffer = [0; 12];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"still there?");
    let counts = guard.counts().unwrap();
    assert!(counts.passed_owned >= 1, "{counts:?}");
    assert_eq!((counts.dropped, counts.kernel_rsts), (0, 0));
}

/// A reset comes in with other ends than the socket's: this host would translate them.
#[test]
fn a_held_connection_is_told_by_its_ends_on_the_wire_too() {
    let Some(lab) = Lab::new() else { return };
    let spec = GuardSpec { sources: Vec::new(), ports: PORTS, tuples: Vec::new(), holds: 3 };
    let guard = Guard::attach(&[lab.interface("a0")], &spec).unwrap();
    let holds = guard.holds();
    for v6 in [false, true] {
        let (peer, ours) = lab::addresses(v6);
        let listener = TcpListener::bind(SocketAddr::new(ours, 444)).unwrap();
        let local = listener.local_addr().unwrap();
        let _theirs = lab.peer.run(move || TcpStream::connect(local).unwrap());
        let (_stream, peer_end) = listener.accept().unwrap();
        let before = guard.counts().unwrap().held;
        let wire = |port| (SocketAddr::new(ours, port), SocketAddr::new(peer, 9));
        let reset = |port| ethernet(&Segment::new(wire(port).1, wire(port).0, 0x04));
        // Said again, with others: those of before are held as well.
        for port in [20_000, 20_001] {
            holds.hold(local, peer_end, Some(wire(port))).unwrap();
        }
        assert_eq!(holds.count().unwrap(), 3);
        for port in [20_002, 20_000, 20_001] {
            lab.peer.send("b0", reset(port));
        }
        await_that(|| guard.counts().unwrap().held == before + 2);
        holds.let_go(local, peer_end).unwrap();
        assert_eq!(holds.count().unwrap(), 0);
        // A connection that is held and has no socket is over.
        holds.hold(SocketAddr::new(ours, 445), peer_end, Some(wire(20_000))).unwrap();
        lab.peer.send("b0", reset(20_000));
        holds.let_go(SocketAddr::new(ours, 445), peer_end).unwrap();
        holds.hold(local, peer_end, Some(wire(20_000))).unwrap();
        lab.peer.send("b0", reset(20_000));
        await_that(|| guard.counts().unwrap().held == before + 3);
        holds.let_go(local, peer_end).unwrap();
    }
}

/// What would end a connection of the kernel's is kept from it while it is held, and nothing else is.
#[test]
fn a_held_connection_survives_a_reset_that_fits_and_only_while_it_is_held() {
    let Some(lab) = Lab::new() else { return };
    let spec = GuardSpec { sources: Vec::new(), ports: PORTS, tuples: Vec::new(), holds: 2 };
    let guard = Guard::attach(&[lab.interface("a0")], &spec).unwrap();
    let holds = guard.holds();
    for (v6, held) in [(false, true), (true, true), (false, false), (true, false)] {
        let (peer, ours) = lab::addresses(v6);
        let listener = TcpListener::bind(SocketAddr::new(ours, 444)).unwrap();
        let local = listener.local_addr().unwrap();
        let mut theirs = lab.peer.run(move || TcpStream::connect(local).unwrap());
        let (mut stream, peer_end) = listener.accept().unwrap();
        assert_eq!(peer_end.ip(), peer);
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let before = guard.counts().unwrap().held;
        if held {
            // By whom has no privilege any more, as in a sweep.
            let unprivileged = {
                let holds = guard.holds();
                std::thread::spawn(move || {
                    privilege::drop_all().unwrap();
                    holds.hold(local, peer_end, None)
                })
            };
            unprivileged.join().unwrap().unwrap();
            assert_eq!(holds.count().unwrap(), 1);
            // It answers such a SYN with an ACK, which the peer would answer with RST.
            lab.peer.send("b0", ethernet(&Segment::new(peer_end, local, 0x02)));
            await_that(|| guard.counts().unwrap().held == before + 1);
        }
        theirs.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        // A reset at RCV.NXT.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&theirs, sockopt::Linger, &linger).unwrap();
        lab.peer.run(move || drop(theirs));
        if held {
            await_that(|| guard.counts().unwrap().held == before + 2);
            assert!(stream.take_error().unwrap().is_none());
            stream.set_nonblocking(true).unwrap();
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            holds.let_go(local, peer_end).unwrap();
            assert!(holds.let_go(local, peer_end).is_err(), "it is not held any more");
        } else {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(guard.counts().unwrap().held, before);
        }
        assert_eq!(holds.count().unwrap(), 0);
    }
    // Whom a listener would answer has no connection yet.
    let (peer, ours) = lab::addresses(false);
    let _listener = TcpListener::bind(SocketAddr::new(ours, 445)).unwrap();
    let (local, peer) = (SocketAddr::new(ours, 445), SocketAddr::new(peer, 5_005));
    holds.hold(local, peer, None).unwrap();
    let before = guard.counts().unwrap();
    let theirs = lab.peer.run(move || lab::connect_from(peer, local));
    assert_eq!(theirs.local_addr().unwrap(), peer);
    assert_eq!(guard.counts().unwrap(), before);
}

#[test]
fn connections_of_the_kernel_are_left_alone() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");

    for v6 in [false, true] {
        let (peer, ours) = lab::addresses(v6);
        // The kernel end sits inside the guarded range, as a listener and with a connection.
        let listener = TcpListener::bind(SocketAddr::new(ours, 61_010)).unwrap();
        let mut theirs = lab.peer.run(move || {
            let stream = TcpStream::connect(SocketAddr::new(ours, 61_010)).unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), peer);
            stream
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        theirs.write_all(b"still there?").unwrap();
        let mut buffer = [0; 12];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"still there?");
    }
    let counts = guard.counts().unwrap();
    assert!(counts.passed_owned >= 6, "{counts:?}");
    assert_eq!((counts.dropped, counts.kernel_rsts), (0, 0));
}

#[test]
fn other_ports_and_addresses_still_get_their_reset() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let connect = |address: IpAddr, port: u16| {
        let to = SocketAddr::new(address, port);
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_millis(300));
        lab.peer.run(connect).unwrap_err().kind()
    };
    for (address, other) in
        [(lab::OURS_V4.into(), lab::OTHER_V4.into()), (lab::OURS_V6.into(), lab::OTHER_V6.into())]
    {
        assert_eq!(connect(address, 60_999), ErrorKind::ConnectionRefused);
        assert_eq!(connect(address, 65_535), ErrorKind::ConnectionRefused);
        assert_eq!(connect(other, 61_000), ErrorKind::ConnectionRefused);
        assert_eq!(guard.counts().unwrap(), GuardCounts::default());
    }
    assert_eq!(connect(lab::OURS_V4.into(), 61_000), ErrorKind::TimedOut);
    assert_eq!(connect(lab::OURS_V4.into(), 65_534), ErrorKind::TimedOut);
    assert_eq!(connect(lab::OURS_V6.into(), 65_534), ErrorKind::TimedOut);
    assert!(guard.counts().unwrap().dropped >= 3);
}

#[test]
fn finds_the_ports_behind_tags_options_and_extensions() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let v4 = || to_us(false, 61_002);
    let v6 = || to_us(true, 61_002);

    // Hop-by-hop, routing, destination options: 8 octets each; AH: 24; fragment: offset 0, more.
    let all_extensions: &[(u8, &[u8])] = &[
        (0, &[0, 1, 4, 0, 0, 0, 0]),
        (43, &[0, 0, 0, 0, 0, 0, 0]),
        (44, &[0, 0, 1, 0, 0, 0, 7]),
        (51, &[4; 23]),
        (60, &[0, 1, 4, 0, 0, 0, 0]),
    ];
    let eight = [(60, &[0, 1, 4, 0, 0, 0, 0][..]); 8];
    let nine = [(60, &[0, 1, 4, 0, 0, 0, 0][..]); 9];

    let dropped = [
        ("plain v4", ethernet(&v4())),
        ("plain v6", ethernet(&v6())),
        ("v4, priority tag", tagged(&v4(), &[(0x8100, 0xe000)])),
        ("v4, options", ethernet(&v4().with_options(&[1; 4]))),
        ("v4, all options", ethernet(&v4().with_options(&[1; 40]))),
        ("v4, first fragment", ethernet(&v4().with_fragment(0x2000))),
        ("v6, extensions", ethernet(&v6().with_extensions(all_extensions))),
        ("v6, eight extensions", ethernet(&v6().with_extensions(&eight))),
        ("v4, large", ethernet(&v4().with_payload(1400))),
    ];
    let passed = [
        // For a VLAN device, or for nobody: the kernel does not answer these either, as the count of
        // its RSTs shows in the end.
        ("v4, one tag", tagged(&v4(), &[(0x8100, 5)])),
        ("v4, two tags", tagged(&v4(), &[(0x88a8, 5), (0x8100, 6)])),
        ("v6, two tags", tagged(&v6(), &[(0x88a8, 5), (0x8100, 6)])),
        ("v4, later fragment", ethernet(&v4().with_fragment(0x2001))),
        ("v6, later fragment", ethernet(&v6().with_extensions(&[(44, &[0, 0, 9, 0, 0, 0, 7])]))),
        ("v6, too many extensions", ethernet(&v6().with_extensions(&nine))),
        ("v4, three tags", tagged(&v4(), &[(0x88a8, 5), (0x8100, 6), (0x8100, 7), (0x8100, 8)])),
        ("v4, UDP", ethernet(&v4().with_protocol(17))),
        ("v6, UDP", ethernet(&v6().with_protocol(17))),
        ("v4, other port", ethernet(&to_us(false, 60_999))),
        ("v4, no ports", ethernet(&v4())[..34].to_vec()),
        ("v6, no ports", ethernet(&v6())[..54].to_vec()),
        ("v6, chain cut short", ethernet(&v6().with_extensions(all_extensions))[..56].to_vec()),
        ("v4, header cut short", ethernet(&v4())[..24].to_vec()),
        ("tag cut short", tagged(&v4(), &[(0x88a8, 5), (0x8100, 6)])[..19].to_vec()),
    ];

    let mut expected = 0;
    for (case, frame) in dropped {
        lab.peer.send("b0", frame);
        expected += 1;
        await_that(|| guard.counts().unwrap().dropped >= expected);
        assert_eq!(guard.counts().unwrap().dropped, expected, "{case}");
    }
    for (case, frame) in passed {
        lab.peer.send("b0", frame);
        // Frames stay in order: when this one has been dropped, the other has been judged.
        lab.peer.send("b0", ethernet(&v4()));
        expected += 1;
        await_that(|| guard.counts().unwrap().dropped >= expected);
        assert_eq!(guard.counts().unwrap().dropped, expected, "{case}");
    }
    // The kernel reads chains of any length. The counter has seen its answer to that one.
    assert_eq!(guard.counts().unwrap().kernel_rsts, 1);
}

#[test]
fn guards_interfaces_without_mac_addresses() {
    let Some(lab) = Lab::new() else { return };
    let mut tun = tun::open_tun("t0");
    lab::ip("link set t0 up");
    lab::ip("route add 198.51.100.0/24 dev t0");
    let guard = guard(&lab, "t0");

    let peer = SocketAddr::new([198, 51, 100, 7].into(), 80);
    let segment = Segment::new(peer, SocketAddr::new(lab::OURS_V4.into(), 61_003), SYN_ACK);
    tun.write_all(&segment.packet()).unwrap();
    tun.write_all(&to_us(true, 61_003).packet()).unwrap();
    await_that(|| guard.counts().unwrap().dropped == 2);

    lab.peer.send("d0", ethernet(&segment));
    await_that(|| guard.counts().unwrap().kernel_rsts == 1);
}

#[test]
fn frames_of_our_own_do_not_count_as_the_kernels() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let frame = lab::outbound(&from_us(false, 61_004, RST));
    let tap = lab.peer.run(|| PacketSocket::open("b0", false));

    PacketSocket::open("a0", true).send(&frame);
    let got = tap.receive_until(|got| got.len() >= frame.len() && got[..54] == frame[..54]);
    assert_eq!(got[47], RST);
    assert_eq!(guard.counts().unwrap().kernel_rsts, 0);

    // The same frame through the qdisc layer counts, so the counter would have seen it.
    PacketSocket::open("a0", false).send(&frame);
    await_that(|| guard.counts().unwrap().kernel_rsts == 1);
}

#[test]
fn attaches_at_the_head_and_detaches_on_drop() {
    let Some(lab) = Lab::new() else { return };
    let interfaces = [lab.interface("a0"), lab.interface("c0")];
    let first = Guard::attach(&interfaces, &spec()).unwrap();
    let [ingress, egress] = attached_programs("a0")[..] else { panic!("not one program a side") };

    let second = Guard::attach(&interfaces, &spec()).unwrap();
    let both = attached_programs("a0");
    assert_eq!((both.len(), both[1], both[3]), (4, ingress, egress), "the newer one is in front");
    assert_eq!(attached_programs("c0").len(), 4);

    // A child that another test of this process forks holds the links as well, until its exec.
    drop(second);
    await_that(|| attached_programs("a0") == [ingress, egress]);
    drop(first);
    await_that(|| attached_programs("a0").is_empty() && attached_programs("c0").is_empty());
}

#[test]
fn leaves_out_interfaces_that_are_gone() {
    let Some(lab) = Lab::new() else { return };
    let gone = Guarded { index: 4_000, name: "gone0".to_owned(), is_egress: true };
    let guard = Guard::attach(&[gone.clone(), lab.interface("a0")], &spec()).unwrap();
    assert_eq!(attached_programs("a0").len(), 2);
    drop(guard);
    await_that(|| attached_programs("a0").is_empty());

    let error = Guard::attach(&[gone], &spec()).unwrap_err();
    assert!(matches!(error, GuardError::NoInterface), "{error}");

    // Found by index, whatever it is called by now.
    let renamed = Guarded { name: "c0".to_owned(), ..lab.interface("a0") };
    let _guard = Guard::attach(&[renamed], &spec()).unwrap();
    assert_eq!((attached_programs("a0").len(), attached_programs("c0").len()), (2, 0));
}

#[test]
fn kill_leaves_nothing_behind() {
    let Some(lab) = Lab::new() else { return };
    // The child inherits this thread's network namespace.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_guard_until_killed", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().ends_with("guard attached")));
    assert_eq!(attached_programs("a0").len(), 2);

    child.kill().unwrap();
    child.wait().unwrap();
    await_that(|| attached_programs("a0").is_empty());
    let _again = guard(&lab, "a0");
    assert_eq!(attached_programs("a0").len(), 2);
}

#[test]
#[ignore = "the child process of kill_leaves_nothing_behind"]
fn holds_a_guard_until_killed() {
    let index = nix::net::if_::if_nametoindex("a0").unwrap();
    let a0 = Guarded { index, name: "a0".to_owned(), is_egress: true };
    let _guard = Guard::attach(&[a0], &spec()).unwrap();
    println!("guard attached");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn needs_exactly_the_capabilities_that_it_names() {
    let Some(lab) = Lab::new() else { return };
    // Capabilities belong to threads, so this thread stands for a whole process.
    let keep = |capabilities: &[Capability]| {
        let set = capabilities.iter().copied().collect();
        caps::set(None, caps::CapSet::Effective, &set).unwrap();
    };
    let needed = privilege::SWEEP;
    keep(needed);
    privilege::require(needed).unwrap();
    drop(guard(&lab, "a0"));
    PacketSocket::open("a0", true);

    for missing in needed {
        let rest: Vec<_> = needed.iter().copied().filter(|held| held != missing).collect();
        keep(&rest);
        let error = privilege::require(needed).unwrap_err();
        assert_eq!(error.missing, [*missing]);
        if *missing == Capability::CAP_NET_RAW {
            assert!(PacketSocket::try_open("a0", true).is_err());
        } else {
            let error = Guard::attach(&[lab.interface("a0")], &spec()).unwrap_err().to_string();
            assert!(error.contains("needs CAP_BPF and CAP_NET_ADMIN"), "{missing}: {error}");
        }
    }
}

#[test]
fn counts_are_readable_without_privileges_and_nothing_else_is_left() {
    let Some(lab) = Lab::new() else { return };
    let guard = guard(&lab, "a0");
    let sender = lab.peer.run(|| PacketSocket::open("b0", true));
    let theirs = tempfile::tempdir().unwrap();
    let ours = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(theirs.path(), Some(65_534), Some(65_534)).unwrap();

    privilege::drop_all().unwrap();

    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    for set in sets {
        assert_eq!(field(&status, set), 0, "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs:"), 1);
    assert_eq!(privilege::require(privilege::SWEEP).unwrap_err().missing, privilege::SWEEP);

    // Nothing comes back through exec, although this is still uid 0.
    let child = Command::new("cat").arg("/proc/self/status").output().unwrap();
    let child = String::from_utf8(child.stdout).unwrap();
    for set in sets {
        assert_eq!(field(&child, set), 0, "{set} after exec");
    }

    let error = PacketSocket::try_open("a0", true).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert!(Guard::attach(&[lab.interface("a0")], &spec()).is_err());
    sender.send(&ethernet(&to_us(false, 61_005)));
    await_that(|| guard.counts().unwrap().dropped == 1);
    ports::check(&PORTS).unwrap();

    std::fs::write(ours.path().join("out"), "x").unwrap();
    let error = std::fs::write(theirs.path().join("out"), "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);

    // Dropped without privileges, the guard goes all the same: the kernel answers again.
    drop(guard);
    let connect = || TcpStream::connect((lab::OURS_V4, 61_005)).unwrap_err().kind();
    assert_eq!(lab.peer.run(connect), ErrorKind::ConnectionRefused);
}

#[test]
fn refuses_ports_that_the_kernel_hands_out() {
    let Some(_lab) = Lab::new() else { return };
    set_sysctl("net/ipv4/ip_local_port_range", "32768 60999");
    ports::check(&PORTS).unwrap();
    for overlapping in [60_999..=61_005, 1_024..=32_768, 40_000..=40_001, 1_024..=65_535] {
        let error = ports::check(&overlapping).unwrap_err();
        assert!(matches!(error, PortsError::Ephemeral { .. }), "{error}");
        assert!(error.to_string().contains("32768-60999"), "{error}");
        assert!(error.to_string().contains("--source-ports LO-HI"), "{error}");
    }
    set_sysctl("net/ipv4/ip_local_port_range", "10000 65000");
    assert!(ports::check(&PORTS).is_err());
}

#[test]
fn refuses_ports_that_hold_a_socket() {
    let Some(lab) = Lab::new() else { return };
    let refused = |state: &str, local: &str| match ports::check(&PORTS) {
        Err(PortsError::InUse { holders, total, .. }) => {
            assert_eq!(holders.len(), total.min(5));
            assert!(
                holders.iter().any(|held| held.state == state && held.local.to_string() == local),
                "{state} {local} not in {holders:?}"
            );
            total
        }
        other => panic!("{state} {local}: {other:?}"),
    };
    // A child that another test of this process forks holds the sockets as well, until its exec.
    let await_free = || await_that(|| ports::check(&PORTS).is_ok());

    // At both ends of the range and just outside of it.
    for (port, inside) in [(60_999, false), (61_000, true), (65_534, true), (65_535, false)] {
        let listener = TcpListener::bind((lab::OURS_V4, port)).unwrap();
        if inside {
            assert_eq!(refused("LISTEN", &format!("192.0.2.1:{port}")), 1);
        } else {
            ports::check(&PORTS).unwrap();
        }
        drop(listener);
        await_free();
    }
    let wildcard = TcpListener::bind("[::]:61020").unwrap();
    assert_eq!(refused("LISTEN", "[::]:61020"), 1);
    drop(wildcard);
    await_free();

    let many: Vec<_> =
        (61_100..61_110).map(|port| TcpListener::bind((lab::OURS_V4, port)).unwrap()).collect();
    assert_eq!(refused("LISTEN", "192.0.2.1:61100"), 10);
    let error = ports::check(&PORTS).unwrap_err().to_string();
    assert!(error.contains("and 5 more") && error.contains("--source-ports LO-HI"), "{error}");
    drop(many);

    await_free();
    for v6 in [false, true] {
        let (peer, ours) = lab::addresses(v6);
        let listener = lab.peer.run(move || TcpListener::bind(SocketAddr::new(peer, 80)).unwrap());
        let local = SocketAddr::new(ours, 61_030);
        let bound = lab::bind(local);
        refused("BOUND", &local.to_string());

        let stream = lab::connect(bound, SocketAddr::new(peer, 80));
        refused("ESTAB", &local.to_string());
        let (theirs, _) = listener.accept().unwrap();
        drop(stream);
        drop(theirs);
        await_that(|| match ports::check(&PORTS) {
            Err(PortsError::InUse { holders, .. }) => {
                holders.iter().any(|held| held.local == local && held.state == "TIME-WAIT")
            }
            other => panic!("{other:?}"),
        });
    }
}
