//! The program over a table of packets, by BPF_PROG_TEST_RUN.

use super::*;
use aya::{TestRunOptions, programs::TestRun};
use frames::{Segment, ethernet, tagged};
use nix::sched::{CloneFlags, unshare};

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::Command;

// The same builder as the guard's tests, so that both programs are asked about the same packets.
#[path = "../../../../tests/guard/frames.rs"]
#[allow(unreachable_pub)]
mod frames;

mod lab {
    pub(super) const OURS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
    pub(super) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
}

const SYN_ACK: u8 = 0x12;
const LO: u16 = 61_000;
const HI: u16 = 65_534;
const FRAME_OCTETS: u32 = 1792;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Redirected,
    Passed,
    Malformed,
    NoSocket,
}
use Fate::{Malformed, NoSocket, Passed, Redirected};

fn ours(v6: bool) -> IpAddr {
    if v6 { "2001:db8::1".parse().unwrap() } else { "192.0.2.1".parse().unwrap() }
}

fn peer(v6: bool) -> SocketAddr {
    let address = if v6 { "2001:db8::2" } else { "192.0.2.2" };
    SocketAddr::new(address.parse().unwrap(), 80)
}

fn other(v6: bool) -> IpAddr {
    if v6 { "2001:db8::3".parse().unwrap() } else { "192.0.2.3".parse().unwrap() }
}

fn to_port(v6: bool, port: u16) -> Segment {
    Segment::new(peer(v6), SocketAddr::new(ours(v6), port), SYN_ACK)
}

fn answer(v6: bool) -> Segment {
    to_port(v6, LO)
}

/// What we sent and a router quotes.
fn probe(v6: bool, port: u16) -> Segment {
    Segment::new(SocketAddr::new(ours(v6), port), peer(v6), SYN_ACK)
}

/// An ICMP message to us that quotes `quote`.
fn icmp(v6: bool, kind: u8, quote: &[u8]) -> Vec<u8> {
    let protocol = if v6 { ICMPV6 } else { ICMP };
    let mut frame = ethernet(&answer(v6).with_protocol(protocol));
    frame.truncate(if v6 { 54 } else { 34 });
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(quote);
    let len = (frame.len() - 14) as u16;
    match v6 {
        true => frame[18..20].copy_from_slice(&(len - 40).to_be_bytes()),
        false => frame[16..18].copy_from_slice(&len.to_be_bytes()),
    }
    frame
}

fn with_octet(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    frame
}

/// The loaded program, and a socket that it may redirect to.
struct Bench {
    redirect: Redirect,
    _socket: OwnedFd,
}

impl Bench {
    fn new(with_socket: bool) -> Bench {
        let spec = RedirectSpec {
            mac: MacAddr(lab::OURS_MAC),
            sources: vec![ours(false), ours(true)],
            ports: LO..=HI,
            queues: 1,
            frame_octets: FRAME_OCTETS,
        };
        let mut redirect = Redirect::load("a test", &spec).unwrap();
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made, and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if with_socket {
            redirect.enter(0, socket.as_fd()).unwrap();
        }
        Bench { redirect, _socket: socket }
    }

    /// Runs the program on `frame` and returns what it did, by its verdict and its counters.
    fn run(&mut self, frame: &[u8]) -> Fate {
        let before = self.redirect.counts().unwrap();
        let program: &mut Xdp =
            self.redirect.programs.program_mut(PROGRAM).unwrap().try_into().unwrap();
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let verdict = program.test_run(options).unwrap().return_value;
        let after = self.redirect.counts().unwrap();
        let counted = [
            (Redirected, after.redirected - before.redirected),
            (Passed, after.passed - before.passed),
            (Malformed, after.malformed - before.malformed),
            (NoSocket, after.no_socket - before.no_socket),
        ];
        let mut fates = counted.into_iter().filter(|(_, count)| *count > 0);
        let (fate, count) = fates.next().expect("counted");
        assert_eq!((count, fates.next()), (1, None), "counted once");
        const XDP_PASS: u32 = 2;
        const XDP_REDIRECT: u32 = 4;
        assert_eq!(verdict, if fate == Redirected { XDP_REDIRECT } else { XDP_PASS });
        fate
    }

    #[track_caller]
    fn expect(&mut self, what: &str, frame: &[u8], fate: Fate) {
        assert_eq!(self.run(frame), fate, "{what}: {frame:02x?}");
    }
}

/// Runs `test` on a thread with a network namespace of its own.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root, and CI must not skip");
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn segments_to_our_addresses_and_ports_are_ours() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        for v6 in [false, true] {
            for (port, fate) in
                [(LO - 1, Passed), (LO, Redirected), (HI, Redirected), (HI + 1, Passed)]
            {
                bench.expect("port", &ethernet(&to_port(v6, port)), fate);
            }
            let elsewhere = Segment::new(peer(v6), SocketAddr::new(other(v6), LO), SYN_ACK);
            bench.expect("another address", &ethernet(&elsewhere), Passed);
            let ours_to_peer = Segment::new(SocketAddr::new(ours(v6), LO), peer(v6), SYN_ACK);
            bench.expect("from us", &ethernet(&ours_to_peer), Passed);
            bench.expect("UDP", &ethernet(&answer(v6).with_protocol(17)), Passed);
            bench.expect("ESP", &ethernet(&answer(v6).with_protocol(ESP)), Passed);
            let data = |octets| ethernet(&answer(v6).with_payload(octets));
            let headers = data(0).len();
            let room = FRAME_OCTETS as usize - headers;
            bench.expect("a full frame", &data(room), Redirected);
            bench.expect("too long", &data(room + 1), Passed);
        }
    });
}

#[test]
fn frames_to_other_stations_are_theirs() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        let frame = ethernet(&answer(false));
        for octet in 0..6 {
            bench.expect("another station", &with_octet(frame.clone(), octet, 0x55), Passed);
        }
        let mut broadcast = frame;
        broadcast[..6].fill(0xff);
        bench.expect("broadcast", &broadcast, Passed);
    });
}

#[test]
fn neighbour_protocols_are_left_to_the_kernel() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        let mut arp =
            [&lab::OURS_MAC[..], &lab::PEER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        arp.extend([&lab::PEER_MAC[..], &[192, 0, 2, 2], &lab::OURS_MAC, &[192, 0, 2, 1]].concat());
        bench.expect("ARP reply", &arp, Passed);
        for kind in [133, 134, 135, 136] {
            bench.expect("Neighbour Discovery", &icmp(true, kind, &[0; 24]), Passed);
        }
    });
}

#[test]
fn two_tags_are_looked_behind_and_a_third_is_not() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        for v6 in [false, true] {
            let tags = [(0x8100, 0), (0x88a8, 7), (0x8100, 8)];
            bench.expect("one tag", &tagged(&answer(v6), &tags[..1]), Redirected);
            bench.expect("two tags", &tagged(&answer(v6), &tags[..2]), Redirected);
            bench.expect("three tags", &tagged(&answer(v6), &tags), Passed);
            bench.expect("cut in the tag", &tagged(&answer(v6), &tags)[..16], Malformed);
        }
    });
}

#[test]
fn options_extensions_and_fragments() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        let v4 = || answer(false);
        bench.expect("longest options", &ethernet(&v4().with_options(&[1; 40])), Redirected);
        bench.expect("first fragment", &ethernet(&v4().with_fragment(0x2000)), Redirected);
        bench.expect("do not fragment", &ethernet(&v4().with_fragment(0x4000)), Redirected);
        for later in [1, 0x2001, 0x1fff] {
            bench.expect("later fragment", &ethernet(&v4().with_fragment(later)), Passed);
        }

        let extended = |list: &[(u8, &[u8])]| ethernet(&answer(true).with_extensions(list));
        let short: &[u8] = &[0, 0, 0, 0, 0, 0, 0];
        let long: &[u8] = &[1; 15];
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION] {
            bench.expect("8 octets", &extended(&[(kind, short)]), Redirected);
            bench.expect("16 octets", &extended(&[(kind, long)]), Redirected);
        }
        let authentication: &[u8] = &[&[4][..], &[0; 22]].concat();
        bench.expect("AH", &extended(&[(AUTHENTICATION, authentication)]), Redirected);
        bench.expect(
            "first fragment",
            &extended(&[(FRAGMENT, &[0, 0, 1, 0, 0, 0, 7])]),
            Redirected,
        );
        bench.expect("later fragment", &extended(&[(FRAGMENT, &[0, 0, 9, 0, 0, 0, 7])]), Passed);
        let chain = [
            (HOP_BY_HOP, short),
            (DESTINATION, long),
            (ROUTING, short),
            (FRAGMENT, &[0, 0, 0, 0, 0, 0, 7]),
            (AUTHENTICATION, authentication),
        ];
        bench.expect("a chain", &extended(&chain), Redirected);
        bench.expect("eight headers", &extended(&[(DESTINATION, short); 8]), Redirected);
        bench.expect("nine headers", &extended(&[(DESTINATION, short); 9]), Passed);
        let endless = with_octet(extended(&[(DESTINATION, short)]), 55, 255);
        bench.expect("an extension past the end", &endless, Malformed);
    });
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        let v4 = ethernet(&answer(false));
        bench.expect("version 6", &with_octet(v4.clone(), 14, 0x65), Malformed);
        bench.expect("IHL 4", &with_octet(v4.clone(), 14, 0x44), Malformed);
        bench.expect("IHL past the end", &with_octet(v4[..54].to_vec(), 14, 0x4f), Malformed);
        let v6 = ethernet(&answer(true));
        bench.expect("version 4", &with_octet(v6, 14, 0x40), Malformed);
    });
}

#[test]
fn frames_cut_short_are_malformed_up_to_the_ports() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        let extensions: &[(u8, &[u8])] = &[(DESTINATION, &[0; 7]), (FRAGMENT, &[0; 7])];
        for (frame, ports_end) in [
            (ethernet(&answer(false)), 14 + 20 + 4),
            (ethernet(&answer(false).with_options(&[1; 8])), 14 + 28 + 4),
            (tagged(&answer(false), &[(0x8100, 0), (0x8100, 0)]), 22 + 20 + 4),
            (ethernet(&answer(true)), 14 + 40 + 4),
            (ethernet(&answer(true).with_extensions(extensions)), 14 + 40 + 16 + 4),
            // Of a quote too, older routers send no more than the ports and the sequence number.
            (icmp(false, 3, &probe(false, LO).packet()), 14 + 20 + 8 + 20 + 4),
            (
                icmp(false, 3, &probe(false, LO).with_options(&[1; 4]).packet()),
                14 + 20 + 8 + 24 + 4,
            ),
            (icmp(true, 1, &probe(true, LO).packet()), 14 + 40 + 8 + 40 + 4),
            (
                icmp(true, 1, &probe(true, LO).with_extensions(extensions).packet()),
                14 + 40 + 8 + 40 + 16 + 4,
            ),
        ] {
            // The kernel takes no frame below an Ethernet header for a test.
            for len in 14..frame.len() {
                let fate = if len < ports_end { Malformed } else { Redirected };
                bench.expect("cut short", &frame[..len], fate);
            }
        }
    });
}

#[test]
fn errors_that_quote_us_are_ours() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        for v6 in [false, true] {
            let errors: &[u8] = if v6 { &[1, 2, 3, 4] } else { &[3, 4, 11, 12] };
            for kind in 0..=255 {
                let fate = if errors.contains(&kind) { Redirected } else { Passed };
                bench.expect("type", &icmp(v6, kind, &probe(v6, HI).packet()), fate);
            }
            let error = errors[0];
            for port in [LO - 1, HI + 1] {
                bench.expect("port", &icmp(v6, error, &probe(v6, port).packet()), Passed);
            }
            let theirs = Segment::new(SocketAddr::new(other(v6), LO), peer(v6), SYN_ACK);
            bench.expect("of another", &icmp(v6, error, &theirs.packet()), Passed);
            bench.expect("turned round", &icmp(v6, error, &answer(v6).packet()), Passed);
            let udp = probe(v6, LO).with_protocol(17).packet();
            bench.expect("quote of UDP", &icmp(v6, error, &udp), Passed);
            let nested = icmp(v6, error, &probe(v6, LO).packet())[14..].to_vec();
            bench.expect("quote of a quote", &icmp(v6, error, &nested), Passed);
            bench.expect("wrong family", &icmp(v6, error, &probe(!v6, LO).packet()), Malformed);
        }
        // The same number means something else in the other family.
        let frame = with_octet(icmp(false, 3, &probe(false, LO).packet()), 23, ICMPV6);
        bench.expect("ICMPv6 over IPv4", &frame, Passed);
        let later = probe(false, LO).with_fragment(3).packet();
        bench.expect("quote of a later fragment", &icmp(false, 3, &later), Passed);
    });
}

#[test]
fn what_the_kernel_owns_is_the_kernels() {
    in_namespace(|| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let mut bench = Bench::new(true);
        for v6 in [false, true] {
            let any = if v6 { "[::]:61010" } else { "0.0.0.0:61010" };
            let segment = ethernet(&to_port(v6, 61_010));
            let quote = icmp(v6, if v6 { 1 } else { 3 }, &probe(v6, 61_010).packet());
            let listener = TcpListener::bind(any).unwrap();
            bench.expect("to a listener", &segment, Passed);
            bench.expect("about a listener", &quote, Passed);
            drop(listener);
            bench.expect("after it", &segment, Redirected);
            bench.expect("after it", &quote, Redirected);
        }
    });
}

#[test]
fn queues_without_a_socket_pass_to_the_guard() {
    in_namespace(|| {
        let mut bench = Bench::new(false);
        bench.expect("ours", &ethernet(&answer(false)), NoSocket);
        bench.expect("not ours", &ethernet(&to_port(false, 80)), Passed);
    });
}

/// How long the program takes for an answer; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_per_frame() {
    in_namespace(|| {
        let mut bench = Bench::new(true);
        for (what, frame) in [
            ("IPv4", ethernet(&answer(false))),
            ("IPv6", ethernet(&answer(true))),
            ("not ours", ethernet(&to_port(false, 80))),
            ("ICMP", icmp(false, 3, &probe(false, LO).packet())),
        ] {
            let program: &mut Xdp =
                bench.redirect.programs.program_mut(PROGRAM).unwrap().try_into().unwrap();
            let mut runs: Vec<_> = (0..9)
                .map(|_| {
                    let options = TestRunOptions {
                        data_in: Some(&frame),
                        repeat: 1_000_000,
                        ..TestRunOptions::new()
                    };
                    program.test_run(options).unwrap().duration
                })
                .collect();
            runs.sort();
            println!("{what}: {:?} a frame", runs[runs.len() / 2]);
        }
    });
}
