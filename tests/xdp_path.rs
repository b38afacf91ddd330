//! The AF_XDP path against the real kernel: veth, copy mode, both XDP modes.
//!
//! Every test runs in network namespaces of its own, which have no name and are gone with their
//! threads. Needs root: without it the tests fail if CI=true, and say that they are skipped if not.

#![cfg(feature = "os")]
// clippy.toml allows it in tests, but takes the lab's own functions for something else.
#![allow(clippy::unwrap_used, dead_code)]

mod bpf;
#[path = "guard/frames.rs"]
mod frames;
#[path = "guard/lab.rs"]
mod lab;

use frames::{Segment, ethernet};
use keepsweep::io::guard::{Guard, GuardSpec};
use keepsweep::io::packet::PacketTx;
use keepsweep::io::xdp::{
    Attached, FrameLayout, Queue, QueueSpec, Redirect, RedirectSpec, Standing, XdpMode, ZeroCopy,
};
use keepsweep::io::{IoError, Receive, Transmit};
use keepsweep::time::Clock;
use keepsweep::wire::MacAddr;
use lab::{Lab, PacketSocket, await_that, ip, outbound};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_534;
const SYN_ACK: u8 = 0x12;
const SYN: u8 = 0x02;
const MODES: [XdpMode; 2] = [XdpMode::Drv, XdpMode::Skb];

/// The frame with this number from the peer to us; the number is the peer's port.
fn to_us(number: u16) -> Vec<u8> {
    let peer = SocketAddr::new(lab::PEER_V4.into(), number);
    ethernet(&Segment::new(peer, SocketAddr::new(lab::OURS_V4.into(), 61_000), SYN_ACK))
}

/// The other way round; the number is our port.
fn from_us(number: u16) -> Vec<u8> {
    let ours = SocketAddr::new(lab::OURS_V4.into(), number);
    outbound(&Segment::new(ours, SocketAddr::new(lab::PEER_V4.into(), 80), SYN))
}

fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

fn index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

fn open(interface: &str, zerocopy: ZeroCopy) -> Result<Queue, IoError> {
    Queue::open(QueueSpec { ifindex: index(interface), interface, queue_id: 0, zerocopy })
}

fn load(layout: FrameLayout) -> Redirect {
    let spec = RedirectSpec {
        mac: MacAddr(lab::OURS_MAC),
        sources: vec![lab::OURS_V4.into(), lab::OURS_V6.into()],
        ports: PORTS,
        queues: 1,
        frame_octets: layout.packet_octets(),
    };
    Redirect::load("a0", &spec).unwrap()
}

/// A queue on a0 with the program attached.
fn path(mode: XdpMode) -> (Queue, Redirect) {
    let zerocopy = ZeroCopy::Auto.settle(index("a0"));
    assert_eq!(zerocopy.layout(), FrameLayout::Packed, "veth has no zero-copy");
    path_with(mode, zerocopy)
}

fn path_with(mode: XdpMode, zerocopy: ZeroCopy) -> (Queue, Redirect) {
    let queue = open("a0", zerocopy).unwrap();
    let mut redirect = load(zerocopy.layout());
    redirect.set_socket(0, &queue.rx).unwrap();
    let (attached, why) = redirect.attach(index("a0"), mode).unwrap();
    let wanted = if mode == XdpMode::Skb { Attached::Skb } else { Attached::Drv };
    assert_eq!((attached, why.is_none()), (wanted, true));
    (queue, redirect)
}

/// Sends `frames` from the peer's end, in order and without loss.
fn send_from_peer(lab: &Lab, frames: Vec<Vec<u8>>) {
    lab.peer.run(move || {
        let mut tx = PacketTx::open(index("b0"), "b0").unwrap();
        transmit(&mut tx, &frames);
    });
}

fn transmit(tx: &mut dyn Transmit, frames: &[Vec<u8>]) {
    for frame in frames {
        if tx.reserve().is_none() {
            tx.flush().unwrap();
        }
        tx.reserve().unwrap()[..frame.len()].copy_from_slice(frame);
        tx.submit(frame.len());
    }
    tx.flush().unwrap();
}

/// Receives until `count` frames are there, and returns their source ports.
fn receive(queue: &mut Queue, count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    await_that(|| {
        let mut sink = |frame: keepsweep::io::RxFrame<'_>| ports.push(source_port(frame.bytes));
        queue.rx.receive(Duration::from_millis(10), &mut sink).unwrap();
        ports.len() >= count
    });
    ports
}

#[test]
fn answers_come_in_order_and_the_rings_go_round() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, redirect) = path(mode);
        let begun = Clock.now();
        // More than the rings hold, several times over.
        for round in 0..30_u16 {
            let numbers: Vec<u16> = (0..500).map(|n| round * 500 + n + 1).collect();
            send_from_peer(&lab, numbers.iter().map(|&n| to_us(n)).collect());
            assert_eq!(receive(&mut queue, 500), numbers);
        }
        let counts = redirect.counts().unwrap();
        assert_eq!((counts.redirected, counts.malformed, counts.no_socket), (15_000, 0, 0));
        let stats = queue.rx.stats().unwrap();
        assert_eq!((stats.received, stats.dropped), (15_000, 0));
        // Nothing came: everything up to a few milliseconds ago is known to have been handed over.
        let received = queue.rx.receive(Duration::ZERO, &mut |_| panic!("a frame")).unwrap();
        let now = Clock.now();
        assert!(received.complete_until > begun && received.complete_until < now);
        assert!(!queue.zerocopy);
    }
}

/// Where frames lie close together, none may be written over its neighbours.
#[test]
fn the_longest_frame_fits_and_a_longer_one_passes() {
    for mode in MODES {
        // The kernel copies in either case: veth cannot do otherwise.
        for zerocopy in [ZeroCopy::Auto, ZeroCopy::Off] {
            let Some(lab) = Lab::new() else { return };
            let longest = zerocopy.layout().packet_octets() as usize;
            // Longer than the peer's link would take.
            ip("link set a0 mtu 2000");
            lab.peer.run(|| ip("link set b0 mtu 2000"));
            let (mut queue, redirect) = path_with(mode, zerocopy);
            let tap = PacketSocket::open("a0", false);
            let frame = |number: u16, len: usize| {
                let mut frame = to_us(number);
                // Behind its end by the IP header; no two alike.
                frame.extend((frame.len()..len).map(|at| (at as u8) ^ number.to_be_bytes()[1]));
                frame
            };
            // So many that they go round in the ring.
            let lengths = [60, longest, longest - 1, 200].into_iter().cycle().take(10_000);
            let frames: Vec<_> = (1..).zip(lengths).map(|(n, len)| frame(n, len)).collect();
            for some in frames.chunks(500) {
                let sent = some.to_vec();
                lab.peer.run(move || {
                    let socket = PacketSocket::open("b0", true);
                    sent.iter().for_each(|frame| socket.send(frame));
                });
                let mut expected = some.iter();
                await_that(|| {
                    let mut check = |frame: keepsweep::io::RxFrame<'_>| {
                        assert_eq!(Some(frame.bytes), expected.next().map(Vec::as_slice));
                    };
                    queue.rx.receive(Duration::from_millis(10), &mut check).unwrap();
                    expected.len() == 0
                });
            }
            let long = frame(30_000, longest + 1);
            lab.peer.send("b0", long.clone());
            assert_eq!(tap.receive_until(|frame| frame.len() == long.len()), long);
            let counts = redirect.counts().unwrap();
            assert_eq!((counts.redirected, counts.malformed), (10_000, 0));
            assert_eq!(queue.rx.stats().unwrap().received, 10_000);
        }
    }
}

#[test]
fn a_program_for_longer_frames_is_refused() {
    let Some(_lab) = Lab::new() else { return };
    let queue = open("a0", ZeroCopy::Off).unwrap();
    let error = load(FrameLayout::Chunks).set_socket(0, &queue.rx).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
}

#[test]
fn what_is_not_ours_goes_its_way() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, redirect) = path(mode);
        let tap = PacketSocket::open("a0", false);
        let other = SocketAddr::new(lab::OURS_V4.into(), 60_000);
        let peer = SocketAddr::new(lab::PEER_V4.into(), 7);
        let passing = ethernet(&Segment::new(peer, other, SYN_ACK));
        send_from_peer(&lab, vec![to_us(1), passing.clone(), to_us(2)]);
        assert_eq!(receive(&mut queue, 2), [1, 2]);
        assert_eq!(tap.receive_until(|frame| frame[..12] == passing[..12]), passing);
        assert!(redirect.counts().unwrap().passed >= 1);
    }
}

#[test]
fn every_frame_leaves_once_and_in_order() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, _redirect) = path(mode);
        // Three times what the UMEM holds for sending.
        for round in 0..60_u16 {
            // No more than the reader's socket holds.
            let numbers: Vec<u16> = (0..100).map(|n| 1 + round * 100 + n).collect();
            let (ready, go) = channel();
            let wanted = numbers.clone();
            let seen = std::thread::scope(|scope| {
                let peer = &lab.peer;
                let reader = scope.spawn(move || {
                    peer.run(move || {
                        let socket = PacketSocket::open("b0", false);
                        ready.send(()).unwrap();
                        let mut seen = Vec::new();
                        while seen.len() < wanted.len() {
                            let frame = socket.receive_until(|frame| frame[..6] == lab::PEER_MAC);
                            seen.push(source_port(&frame));
                        }
                        seen
                    })
                });
                go.recv().unwrap();
                transmit(&mut queue.tx, &numbers.iter().map(|&n| from_us(n)).collect::<Vec<_>>());
                reader.join().unwrap()
            });
            assert_eq!(seen, numbers);
        }
    }
}

/// Frames that a0 has sent, by its own count.
fn sent_by_a0() -> u64 {
    let output = std::process::Command::new("ip").args(["-j", "-s", "link", "show", "a0"]).output();
    let links: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// The kernel gives the frames of all of them back through one ring.
#[test]
fn senders_that_share_a_queue_get_their_own_frames_back() {
    const ROUNDS: u16 = 40;
    let Some(_lab) = Lab::new() else { return };
    let (mut queue, _redirect) = path(XdpMode::Drv);
    let others = queue.tx.share(2).unwrap();
    let before = sent_by_a0();
    let mut halves: Vec<_> = others.into_iter().chain([queue.tx]).collect();
    std::thread::scope(|scope| {
        for half in &mut halves {
            scope.spawn(move || {
                // Several times what each of them has frames for.
                for round in 0..ROUNDS {
                    let frames: Vec<_> = (0..100).map(|n| from_us(1 + round * 100 + n)).collect();
                    transmit(half, &frames);
                }
                let counts = half.queue_counts().unwrap().unwrap();
                assert_eq!((counts.queue, counts.sent), (0, u64::from(ROUNDS) * 100));
                assert_eq!(counts.tx_invalid_descs, 0);
            });
        }
    });
    // The kernel itself says something now and then: neighbour and router discovery.
    assert!(sent_by_a0() - before >= 3 * u64::from(ROUNDS) * 100);
}

#[test]
fn a_queue_that_has_sent_is_not_shared_any_more() {
    let Some(_lab) = Lab::new() else { return };
    let (mut queue, _redirect) = path(XdpMode::Drv);
    // A frame in the batch is in use, whether it has been sent or not.
    queue.tx.reserve().unwrap()[..60].fill(0);
    queue.tx.submit(60);
    let error = queue.tx.share(1).unwrap_err().to_string();
    assert!(error.contains("share the tx frames on a0 queue 0"), "{error}");
    assert_eq!(queue.tx.flush().unwrap(), 1);
}

#[test]
fn drops_are_counted() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, redirect) = path(mode);
        for _ in 0..30 {
            send_from_peer(&lab, (0..500).map(|_| to_us(9)).collect());
        }
        await_that(|| {
            let counts = redirect.counts().unwrap();
            counts.redirected + counts.no_socket == 15_000
        });
        let mut handed = 0;
        await_that(|| queue.rx.receive(Duration::ZERO, &mut |_| handed += 1).unwrap().frames == 0);
        let stats = queue.rx.stats().unwrap();
        assert!(stats.dropped > 0);
        assert_eq!((stats.received, stats.received - stats.dropped), (15_000, handed));
        // And it goes on afterwards.
        send_from_peer(&lab, vec![to_us(3)]);
        assert_eq!(receive(&mut queue, 1), [3]);
    }
}

/// AF_XDP stamps nothing, so the claim rests on the clock and a margin: every frame that had left the
/// peer before an instant was claimed has been handed over by then.
#[test]
fn no_frame_comes_behind_the_claim() {
    const FRAMES: u16 = 500;
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, _redirect) = path(mode);
        let mut claims = Vec::new();
        let left = std::thread::scope(|scope| {
            let peer = &lab.peer;
            let sender = scope.spawn(move || {
                peer.run(|| {
                    let mut tx = PacketTx::open(index("b0"), "b0").unwrap();
                    let mut send = |number| {
                        transmit(&mut tx, &[to_us(number)]);
                        let left = Clock.now();
                        Clock.sleep(Duration::from_micros(u64::from(number % 7) * 300));
                        left
                    };
                    (0..FRAMES).map(&mut send).collect::<Vec<_>>()
                })
            });
            let mut claimed = keepsweep::time::Instant::ZERO;
            await_that(|| {
                let mut sink = |frame: keepsweep::io::RxFrame<'_>| {
                    claims.push((source_port(frame.bytes), claimed));
                };
                let wait = Duration::from_millis(2);
                claimed = queue.rx.receive(wait, &mut sink).unwrap().complete_until;
                claims.len() == usize::from(FRAMES)
            });
            sender.join().unwrap()
        });
        let slack = claims.iter().map(|&(number, claimed)| {
            let left = left[usize::from(number)];
            assert!(claimed <= left, "frame {number} left at {left:?}, claimed {claimed:?}");
            left.since(claimed)
        });
        println!("{mode:?}: closest {:?}", slack.min());
    }
}

fn has_program(interface: &str) -> bool {
    let output = Command::new("ip").args(["link", "show", interface]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().contains("prog/xdp")
}

#[test]
fn without_the_program_the_tap_hears_and_the_guard_holds() {
    let Some(lab) = Lab::new() else { return };
    let spec = GuardSpec {
        sources: vec![lab::OURS_V4.into()],
        ports: PORTS,
        tuples: Vec::new(),
        holds: 0,
    };
    let guard = Guard::attach(&[lab.interface("a0")], &spec).unwrap();
    let (mut queue, redirect) = path(XdpMode::Drv);
    send_from_peer(&lab, vec![to_us(1)]);
    assert_eq!(receive(&mut queue, 1), [1]);
    assert_eq!(guard.counts().unwrap().dropped, 0);

    let tap = PacketSocket::open("a0", false);
    drop(redirect);
    // A child that another test is just starting may have the program's descriptor a moment longer.
    await_that(|| !has_program("a0"));
    send_from_peer(&lab, vec![to_us(2)]);
    assert_eq!(source_port(&tap.receive_until(|frame| frame.len() >= 54 && frame[23] == 6)), 2);
    await_that(|| guard.counts().unwrap().dropped == 1);
    assert_eq!(guard.counts().unwrap().kernel_rsts, 0);
}

/// Puts `frames` into one batch and flushes it.
fn flush(queue: &mut Queue, frames: &[Vec<u8>]) -> Result<usize, keepsweep::io::Unsent> {
    for frame in frames {
        queue.tx.reserve().unwrap()[..frame.len()].copy_from_slice(frame);
        queue.tx.submit(frame.len());
    }
    queue.tx.flush()
}

/// Listens at the peer's end while `job` runs, and returns the source ports of our frames up to the
/// one that `job` is to send last.
fn heard_by_peer(lab: &Lab, last: u16, job: impl FnOnce()) -> Vec<u16> {
    let (ready, go) = channel();
    std::thread::scope(|scope| {
        let peer = &lab.peer;
        let reader = scope.spawn(move || {
            peer.run(move || {
                let socket = PacketSocket::open("b0", false);
                ready.send(()).unwrap();
                let mut seen = Vec::new();
                while seen.last() != Some(&last) {
                    let frame = socket.receive_until(|frame| frame[..6] == lab::PEER_MAC);
                    seen.push(source_port(&frame));
                }
                seen
            })
        });
        go.recv().unwrap();
        job();
        reader.join().unwrap()
    })
}

/// Sends frame 9 once the link takes frames again.
fn send_when_open(queue: &mut Queue) {
    await_that(|| flush(queue, &[from_us(9)]).is_ok_and(|sent| sent == 1));
}

/// What was refused is owed again: it must not leave as well when the link is back.
#[test]
fn a_dead_link_sends_nothing_and_nothing_later() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        let (mut queue, _redirect) = path(mode);
        ip("link set a0 down");
        // More batches than there are frames: the ring fills up with what cannot be sent.
        for _ in 0..24 {
            let unsent = flush(&mut queue, &vec![from_us(1); 128]).unwrap_err();
            assert_eq!((unsent.sent, unsent.refused), (0, 128));
            assert!(unsent.to_string().contains("a0 queue 0"), "{unsent}");
            assert_eq!(unsent.error.source.raw_os_error(), Some(libc::ENETDOWN), "{unsent}");
        }
        let seen = heard_by_peer(&lab, 9, || {
            ip("link set a0 up");
            send_when_open(&mut queue);
        });
        assert_eq!(seen, [9], "{mode:?}");
        // And it goes on: no more than the reader's socket holds.
        let numbers: Vec<u16> = (10..110).collect();
        let seen = heard_by_peer(&lab, 109, || {
            transmit(&mut queue.tx, &numbers.iter().map(|&n| from_us(n)).collect::<Vec<_>>());
        });
        assert_eq!(seen, numbers);
    }
}

#[test]
fn a_link_without_carrier_is_reported_too() {
    let Some(lab) = Lab::new() else { return };
    let (mut queue, _redirect) = path(XdpMode::Drv);
    lab.peer.run(|| ip("link set b0 down"));
    // More often than the ring has entries: each try spends one.
    let mut took = [Duration::ZERO; 24];
    for took in &mut took {
        let begun = Clock.now();
        let unsent = flush(&mut queue, &vec![from_us(1); 128]).unwrap_err();
        assert_eq!((unsent.sent, unsent.refused), (0, 128));
        assert!(unsent.to_string().contains("see whether its link is up"), "{unsent}");
        assert!(unsent.is_of_path(), "{unsent}");
        *took = Clock.now().since(begun);
    }
    // Other paths wait meanwhile, and no longer where the ring is full of what was withdrawn.
    for some in took.chunks(8) {
        assert!(some.iter().min() < Some(&Duration::from_millis(900)), "{took:?}");
    }
    lab.peer.run(|| ip("link set b0 up"));
    // Up is not yet open: the carrier comes later.
    let seen = heard_by_peer(&lab, 9, || send_when_open(&mut queue));
    assert_eq!(seen, [9]);
}

/// The kernel refuses at once, and for good.
#[test]
fn an_interface_that_is_gone_takes_nothing() {
    let Some(_lab) = Lab::new() else { return };
    let (mut queue, redirect) = path(XdpMode::Drv);
    ip("link del a0");
    for _ in 0..24 {
        let unsent = flush(&mut queue, &vec![from_us(1); 128]).unwrap_err();
        assert_eq!((unsent.sent, unsent.refused), (0, 128));
        assert!(unsent.error.is_of_link(), "{unsent}");
        assert!(unsent.to_string().contains("the interface is gone"), "{unsent}");
        let received = queue.rx.receive(Duration::ZERO, &mut |_| panic!("a frame"));
        received.unwrap();
    }
    let attachment = redirect.attachment().unwrap();
    assert_eq!(attachment.standing().unwrap(), Standing::Detached);
}

#[test]
fn what_becomes_of_the_program_is_known() {
    let Some(_lab) = Lab::new() else { return };
    let (_queue, redirect) = path(XdpMode::Drv);
    let attachment = redirect.attachment().unwrap();
    assert_eq!((attachment.interface(), attachment.ifindex()), ("a0", index("a0")));
    assert_eq!(attachment.standing().unwrap(), Standing::Attached);
    // By netlink a link cannot be taken off.
    let off = ["link", "set", "a0", "xdp", "off"];
    let output = std::process::Command::new("ip").args(off).output().unwrap();
    println!("xdp off: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(attachment.standing().unwrap(), Standing::Attached);
    for change in ["set a0 down", "set a0 name z0", "set z0 up"] {
        ip(&format!("link {change}"));
    }
    assert_eq!(attachment.standing().unwrap(), Standing::Attached);

    let mut other = load(FrameLayout::Packed);
    other.attach(index("c0"), XdpMode::Skb).unwrap();
    let other = other.attachment().unwrap();
    bpf::replace(attachment.program(), other.program());
    assert_eq!(attachment.standing().unwrap(), Standing::Replaced(other.program()));
    bpf::replace(other.program(), attachment.program());
    bpf::detach(attachment.program());
    let standings = [&attachment, &other].map(|one| one.standing().unwrap());
    assert!(standings.contains(&Standing::Detached), "{standings:?}");
}

#[test]
fn a_busy_queue_is_waited_for() {
    let Some(_lab) = Lab::new() else { return };
    let held = open("a0", ZeroCopy::Auto).unwrap();
    let error = open("a0", ZeroCopy::Auto).unwrap_err().to_string();
    assert!(error.contains("bind AF_XDP socket on a0 queue 0"), "{error}");
    assert!(error.contains("another program uses the queue"), "{error}");
    let release = std::thread::spawn(move || {
        Clock.sleep(Duration::from_millis(300));
        drop(held);
    });
    open("a0", ZeroCopy::Auto).unwrap();
    release.join().unwrap();
}

#[test]
fn refusals_name_interface_cause_and_remedy() {
    let Some(lab) = Lab::new() else { return };
    let refused = |result: Result<Queue, IoError>, parts: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refused(open("a0", ZeroCopy::On), &["bind AF_XDP socket on a0 queue 0", "--zerocopy auto"]);
    let ninth =
        QueueSpec { ifindex: index("a0"), interface: "a0", queue_id: 9, zerocopy: ZeroCopy::Auto };
    refused(Queue::open(ninth), &["a0 queue 9", "ethtool -l"]);

    // Another program is left alone, whatever the mode.
    let mut first = load(FrameLayout::Packed);
    first.attach(index("a0"), XdpMode::Drv).unwrap();
    for mode in [XdpMode::Auto, XdpMode::Drv, XdpMode::Skb] {
        let error = load(FrameLayout::Packed).attach(index("a0"), mode).unwrap_err().to_string();
        assert!(error.contains("on a0") && error.contains("another XDP program"), "{error}");
    }
    drop(first);

    // The peer's end has more transmit queues than ours has receive queues.
    ip(
        "link add m0 numrxqueues 1 numtxqueues 1 type veth peer name n0 numrxqueues 2 numtxqueues 2",
    );
    ip("link set m0 up");
    let error =
        load(FrameLayout::Packed).attach(index("m0"), XdpMode::Drv).unwrap_err().to_string();
    assert!(error.contains("ethtool -L") && error.contains("--xdp-mode skb"), "{error}");
    let (attached, why) = load(FrameLayout::Packed).attach(index("m0"), XdpMode::Auto).unwrap();
    assert_eq!(attached, Attached::Skb);
    assert!(why.unwrap().to_string().contains("(native)"));

    // No driver's part at all.
    let error =
        load(FrameLayout::Packed).attach(index("lo"), XdpMode::Drv).unwrap_err().to_string();
    assert!(error.contains("no native XDP"), "{error}");
    drop(lab);
}

#[test]
fn a_large_mtu_is_no_obstacle() {
    for mode in MODES {
        let Some(lab) = Lab::new() else { return };
        ip("link set a0 mtu 9000");
        lab.peer.run(|| ip("link set b0 mtu 9000"));
        let (mut queue, _redirect) = path(mode);
        let tap = PacketSocket::open("a0", false);
        let peer = SocketAddr::new(lab::PEER_V4.into(), 7);
        let ours = SocketAddr::new(lab::OURS_V4.into(), 61_000);
        let long = ethernet(&Segment::new(peer, ours, SYN_ACK).with_payload(1_900));
        lab.peer.send("b0", long.clone());
        lab.peer.send("b0", to_us(1));
        assert_eq!(receive(&mut queue, 1), [1]);
        // Too long for a frame: it is heard all the same, and not lost.
        let heard = tap.receive_until(|frame| frame.len() >= 54 && frame[23] == 6);
        assert_eq!(heard.len(), long.len());
        assert_eq!(queue.rx.stats().unwrap().dropped, 0);
    }
}
