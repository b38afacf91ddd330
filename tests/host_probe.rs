//! Probing the connections of this host's own kernel, real sockets that live on: what is said of their
//! peers, and that nothing happens to them. Every test in network namespaces of its own.

#![cfg(feature = "os")]
// clippy.toml allows it in tests, but takes the helpers for something else.
#![allow(clippy::unwrap_used)]

mod netns;

use keepsweep::engine::{Control, IoKind, Setup, Sweep, given};
use keepsweep::io::host::{Connection, Reader, TcpState};
use keepsweep::probe::evidence::{Seen, Verdict};
use keepsweep::probe::given::Given;
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use keepsweep::report::Summary;
use keepsweep::time::Clock;
use netns::{in_namespace, ip};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// Another network namespace: where the peers are.
struct There(File);

impl There {
    fn new() -> There {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare the network namespace");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        });
        There(thread.join().expect("a namespace"))
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

    /// Connects this host to it: 10.7.0.1 and fd07::1 here, …2 there.
    fn link(&self) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ip(&format!("link add h0 type veth peer name p0 netns {path}"));
        let up = |name: &str, last: u8| {
            ip(&format!("addr add 10.7.0.{last}/24 dev {name}"));
            ip(&format!("addr add fd07::{last}/64 dev {name} nodad"));
            ip(&format!("link set {name} up"));
        };
        up("h0", 1);
        self.run(|| up("p0", 2));
    }

    /// The peer's kernel gets nothing that matches `what` any more.
    fn drop_input(&self, what: &str) {
        self.run(|| {
            nft(&format!(
                "table inet t {{ chain i {{ type filter hook input priority 0; {what} drop; }}; }}"
            ));
        });
    }
}

fn nft(text: &str) {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("run nft");
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write rules");
    assert!(child.wait().expect("nft ends").success(), "nft {text}");
}

/// A connection from this host to another one: both ends.
struct Pair {
    ours: TcpStream,
    theirs: TcpStream,
    listener: TcpListener,
}

impl Pair {
    fn new(there: &There, peer: &str) -> Pair {
        Pair::with(there, peer, |_| ())
    }

    fn with(there: &There, peer: &str, prepare: impl FnOnce(&raw_socket::Socket)) -> Pair {
        let peer: SocketAddr = peer.parse().expect("an address");
        let bind = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let listener = there.run(|| TcpListener::bind(bind).expect("listen"));
        let socket = raw_socket::Socket::new(peer);
        prepare(&socket);
        let ours = socket.connect(peer);
        let (theirs, _) = listener.accept().expect("accept");
        for end in [&ours, &theirs] {
            end.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        }
        Pair { ours, theirs, listener }
    }

    /// The peer says something, so that there is something old to acknowledge.
    fn with_data(mut self) -> Pair {
        self.theirs.write_all(b"welcome").expect("write");
        self.ours.read_exact(&mut [0; 7]).expect("read");
        self.ours.write_all(b"thanks").expect("write");
        self.theirs.read_exact(&mut [0; 6]).expect("read");
        self
    }

    /// Another connection to the same listener, whose peer has room for little.
    fn with_a_small_buffer(self) -> Pair {
        let listener = self.listener;
        // Those that it accepts inherit it.
        setsockopt(&listener, sockopt::RcvBuf, &4096).expect("SO_RCVBUF");
        let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let (theirs, _) = listener.accept().expect("accept");
        Pair { ours, theirs, listener }
    }

    fn local(&self) -> SocketAddr {
        plain(self.ours.local_addr().expect("an address"))
    }

    /// The peer forgets the connection without a word, as if it had been switched off and on. Its
    /// listener goes too, unless it is kept.
    fn forget(self, keep_listener: bool) -> (TcpStream, Option<TcpListener>) {
        let Pair { ours, theirs, listener } = self;
        repair(&theirs);
        drop(theirs);
        (ours, keep_listener.then_some(listener))
    }

    /// Octets go both ways, unharmed.
    fn assert_works(&mut self) {
        self.ours.write_all(b"still").expect("write");
        let mut heard = [0; 5];
        self.theirs.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"still");
        self.theirs.write_all(b"there").expect("write");
        self.ours.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"there");
    }
}

/// A socket that is closed in this mode says nothing (net/ipv4/tcp.c, __tcp_close).
fn repair(stream: &TcpStream) {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A socket before it is connected.
mod raw_socket {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};

    pub struct Socket(pub OwnedFd);

    impl Socket {
        pub fn new(peer: SocketAddr) -> Socket {
            let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let flags = SockFlag::SOCK_CLOEXEC;
            Socket(socket(family, SockType::Stream, flags, None).expect("a socket"))
        }

        pub fn connect(self, peer: SocketAddr) -> TcpStream {
            connect(self.0.as_raw_fd(), &SockaddrStorage::from(peer)).expect("connect");
            TcpStream::from(self.0)
        }
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn plan() -> Plan {
    Plan {
        keepalive: Keepalive {
            idle: Duration::ZERO,
            interval: Duration::from_millis(500),
            count: 4,
        },
        probe_bytes: ProbeBytes::Auto,
        connect_timeout: Duration::from_secs(15),
        close: Close::Rst,
        rate_pps: None,
        rate_per_prefix_pps: None,
        seed: 1,
    }
}

fn connections() -> HashMap<SocketAddr, Connection> {
    let reader = Reader::open().unwrap_or_else(|error| panic!("{error}"));
    let mut found = HashMap::new();
    reader
        .read(&mut |connection| {
            found.insert(plain(connection.local), connection);
        })
        .unwrap_or_else(|error| panic!("{error}"));
    found
}

/// What `flows` are found to be, by our end. On a thread of its own, which has no privilege any more
/// when it ends.
fn sweep(flows: Vec<Given>) -> (HashMap<SocketAddr, Verdict>, Summary) {
    sweep_by(plan(), flows)
}

fn sweep_by(plan: Plan, flows: Vec<Given>) -> (HashMap<SocketAddr, Verdict>, Summary) {
    let setup = Setup {
        plan,
        targets: Vec::new(),
        on_behalf: Vec::new(),
        flows,
        io: IoKind::Auto,
        interface: None,
        source: None,
        source_ports: 61_000..=65_534,
        pcap: None,
        pcap_goes_on: false,
        cpus: None,
    };
    let thread = std::thread::spawn(move || {
        let sweep = Sweep::open(setup).unwrap_or_else(|error| panic!("{error}"));
        let mut verdicts = HashMap::new();
        let control = Control::default();
        let summary = sweep.run(&control, &mut |verdict: Verdict| {
            let local = plain(verdict.local.expect("given"));
            assert!(verdicts.insert(local, verdict).is_none(), "once each, and no correction");
        });
        let summary = summary.unwrap_or_else(|error| panic!("{error}"));
        let notices: Vec<_> = std::iter::from_fn(|| control.notices.pop()).collect();
        assert_eq!((summary.kernel_rsts, summary.rx_dropped), (0, 0));
        assert!(
            summary.faults.is_empty() && notices.is_empty(),
            "{:?} {notices:?}",
            summary.faults
        );
        (verdicts, summary)
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What is said of connections by our ends, as an audit has them probed.
fn audit(locals: &[SocketAddr]) -> (HashMap<SocketAddr, Verdict>, Summary) {
    audit_by(plan(), locals)
}

fn audit_by(plan: Plan, locals: &[SocketAddr]) -> (HashMap<SocketAddr, Verdict>, Summary) {
    let found = connections();
    let flows = locals.iter().map(|local| given(&found[local])).collect();
    let (verdicts, summary) = sweep_by(plan, flows);
    // Nothing happened to any of them.
    let after = connections();
    for local in locals {
        let (before, after) = (&found[local], &after[local]);
        assert_eq!((before.cookie, before.state), (after.cookie, after.state), "{local}");
    }
    (verdicts, summary)
}

fn said(verdict: &Verdict) -> (&'static str, &'static str, u16) {
    (verdict.state.name(), verdict.reason.name(), verdict.probes)
}

fn assert_alive(stream: &TcpStream) {
    assert!(stream.take_error().expect("SO_ERROR").is_none());
    stream.set_nonblocking(true).expect("nonblocking");
    let error = (&mut &*stream).read(&mut [0]).expect_err("nothing came");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

const PEERS: [&str; 3] = ["10.7.0.2:80", "[fd07::2]:80", "[::ffff:10.7.0.2]:81"];

#[test]
fn peers_that_live_say_so_to_one_probe() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let mut pairs: Vec<_> =
            PEERS.iter().map(|peer| Pair::new(&there, peer).with_data()).collect();
        // And those that have never said a word.
        for port in 90..93 {
            pairs.push(Pair::new(&there, &format!("10.7.0.2:{port}")));
        }
        there.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", "0").expect("sysctl"));
        pairs.push(Pair::new(&there, "10.7.0.2:95").with_data());
        let locals: Vec<_> = pairs.iter().map(Pair::local).collect();
        let (verdicts, summary) = audit(&locals);
        for local in &locals {
            assert_eq!(said(&verdicts[local]), ("alive", "ack", 1), "{:?}", verdicts[local]);
            assert!(verdicts[local].rtt.is_some());
        }
        assert_eq!(summary.frames_sent, locals.len() as u64);
        pairs.iter_mut().for_each(Pair::assert_works);
    });
}

#[test]
fn a_peer_that_has_forgotten_is_found_out_and_our_socket_survives() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        // With something old to acknowledge, and without: that takes the guard.
        let mut streams = Vec::new();
        for (port, keep_listener) in [(80, true), (81, false)] {
            for peer in [format!("10.7.0.2:{port}"), format!("[fd07::2]:{port}")] {
                let (ours, listener) = Pair::new(&there, &peer).with_data().forget(keep_listener);
                streams.push((ours, listener));
            }
            let fresh = Pair::new(&there, &format!("10.7.0.2:{}", port + 10));
            streams.push(fresh.forget(keep_listener));
        }
        let locals: Vec<_> =
            streams.iter().map(|(ours, _)| plain(ours.local_addr().expect("an address"))).collect();
        let (verdicts, _) = audit(&locals);
        for local in &locals {
            assert_eq!(said(&verdicts[local]), ("rebooted", "reset", 1), "{:?}", verdicts[local]);
        }
        streams.iter().for_each(|(ours, _)| assert_alive(ours));
    });
}

/// A firewall lets nothing through that does not fit the connection: the reset with the old number is
/// lost, the one that fits is not.
#[test]
fn behind_a_firewall_that_drops_invalid_the_exact_probe_finds_out() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let (ours, _listener) = Pair::new(&there, "10.7.0.2:80").with_data().forget(true);
        // All resets but that at RCV.NXT.
        let local = plain(ours.local_addr().expect("an address"));
        let number = connections()[&local].numbers.clone().expect("numbers").rcv_nxt.0;
        there.run(|| {
            nft(&format!(
                "table inet t {{ chain o {{ type filter hook output priority 0; \
                 tcp flags & rst == rst tcp sequence != {number} drop; }}; }}"
            ));
        });
        let (verdicts, _) = audit(&[local]);
        assert_eq!(said(&verdicts[&local]), ("rebooted", "reset", 3), "{:?}", verdicts[&local]);
        assert_alive(&ours);
    });
}

/// One connection that cannot be asked must not keep the others from being asked.
#[test]
fn a_peer_that_has_become_a_broadcast_address_is_left_out() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let pairs = [Pair::new(&there, PEERS[0]), Pair::new(&there, PEERS[1])];
        ip("route add table local broadcast 10.7.0.2 dev h0 src 10.7.0.1");
        let locals: Vec<_> = pairs.iter().map(Pair::local).collect();
        let (verdicts, _) = audit(&locals);
        assert_eq!(verdicts[&locals[0]].state.name(), "undetermined");
        assert_eq!(said(&verdicts[&locals[1]]), ("alive", "ack", 1));
    });
}

#[test]
fn a_peer_that_is_gone_is_down_after_the_whole_plan() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let pairs = [
            Pair::new(&there, "10.7.0.2:80").with_data(),
            Pair::new(&there, "[fd07::2]:80").with_data(),
            Pair::new(&there, "10.7.0.2:81"),
        ];
        there.drop_input("meta l4proto tcp");
        let locals = pairs.each_ref().map(Pair::local);
        let (verdicts, _) = audit(&locals);
        for local in &locals {
            assert_eq!(said(&verdicts[local]), ("down", "silent", 4), "{:?}", verdicts[local]);
        }
        for pair in &pairs {
            assert_alive(&pair.ours);
        }
    });
}

#[test]
fn half_closed_and_stopped_connections_are_what_they_are() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let close_wait = Pair::new(&there, "10.7.0.2:80").with_data();
        close_wait.theirs.shutdown(Shutdown::Write).expect("shut down");
        let fin_wait = Pair::new(&there, "10.7.0.2:81").with_data();
        fin_wait.ours.shutdown(Shutdown::Write).expect("shut down");
        let mut stopped = Pair::new(&there, "10.7.0.2:82").with_a_small_buffer().with_data();
        stopped.ours.set_nonblocking(true).expect("nonblocking");
        // The peer does not read: its window closes.
        let end = Clock.now() + DEADLINE;
        loop {
            let _ = stopped.ours.write(&[0; 4096]);
            let numbers = connections()[&stopped.local()].numbers.clone().expect("numbers");
            if numbers.snd_wnd == 0 && numbers.packets_out == 0 {
                break;
            }
            assert!(Clock.now() < end, "the window does not close: {numbers:?}");
        }
        let locals = [close_wait.local(), fin_wait.local(), stopped.local()];
        let states = [TcpState::CloseWait, TcpState::FinWait2, TcpState::Established];
        let found = connections();
        assert_eq!(locals.map(|local| found[&local].state), states);
        let (verdicts, _) = audit(&locals);
        let reasons = ["ack", "ack", "zero-window"];
        for (local, reason) in locals.iter().zip(reasons) {
            let verdict = &verdicts[local];
            let (state, said, _) = said(verdict);
            assert_eq!((state, said), ("alive", reason), "{verdict:?}");
        }
    });
}

#[test]
fn data_in_flight_is_not_probed() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let mut pair = Pair::new(&there, "10.7.0.2:80").with_data();
        there.drop_input("meta l4proto tcp");
        pair.ours.write_all(b"is anybody there?").expect("write");
        let local = pair.local();
        let (verdicts, summary) = audit(&[local]);
        let verdict = &verdicts[&local];
        assert_eq!(said(verdict), ("undetermined", "unprobeable", 0));
        let [sighting] = &verdict.evidence[..] else { panic!("{verdict:?}") };
        assert!(
            matches!(sighting.kind, Seen::InFlight(retransmits) if retransmits > 0),
            "{verdict:?}"
        );
        assert_eq!(summary.frames_sent, 0);
        // The kernel itself has asked all the while, and is answered the next time: after 0.2 s, 0.4 s and so
        // on, at its fifth retransmission 3.2 s after the fourth. This plan looks for longer than that.
        there.run(|| nft("flush ruleset"));
        let mut patient = plan();
        patient.keepalive.count = 16;
        let (verdicts, _) = audit_by(patient, &[local]);
        assert_eq!(verdicts[&local].state.name(), "alive", "{:?}", verdicts[&local]);
        pair.theirs.read_exact(&mut [0; 17]).expect("read");
        pair.assert_works();
    });
}

/// A route that only marked packets have, and one that only a bound socket takes.
#[test]
fn packets_go_where_those_of_the_socket_go() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let path = format!("/proc/{}/fd/{}", std::process::id(), there.0.as_raw_fd());
        ip(&format!("link add h1 type veth peer name p1 netns {path}"));
        ip("addr add 10.8.0.1/24 dev h1");
        ip("link set h1 up");
        there.run(|| {
            ip("addr add 10.8.0.2/24 dev p1");
            ip("addr add 10.9.0.9/32 dev lo");
            ip("link set p1 up");
        });
        ip("route add blackhole 10.9.0.9/32");
        ip("route add 10.9.0.9/32 via 10.7.0.2 table 7");
        ip("rule add fwmark 0x77 lookup 7");
        let marked = Pair::with(&there, "10.9.0.9:80", |socket| {
            setsockopt(&socket.0, sockopt::Mark, &0x77).expect("SO_MARK");
        })
        .with_data();
        ip("route add 10.9.0.9/32 via 10.8.0.2 dev h1 metric 9");
        let bound = Pair::with(&there, "10.9.0.9:81", |socket| {
            setsockopt(&socket.0, sockopt::BindToDevice, &"h1".into()).expect("SO_BINDTODEVICE");
        })
        .with_data();
        let plain = Pair::new(&there, "10.7.0.2:80").with_data();
        // Of several paths through one interface only one listens: silence is believed all the same.
        let gone = Pair::new(&there, "10.8.0.2:83").with_data();
        there.drop_input("tcp dport 83");
        let mut pairs = [marked, plain, bound, gone];
        let locals = pairs.each_ref().map(Pair::local);
        let (verdicts, summary) = audit(&locals);
        for local in &locals[..3] {
            assert_eq!(said(&verdicts[local]), ("alive", "ack", 1), "{:?}", verdicts[local]);
        }
        assert_eq!(said(&verdicts[&locals[3]]), ("down", "silent", 4));
        assert_eq!((&*summary.io, summary.frames_sent), ("raw", 7));
        pairs[..3].iter_mut().for_each(Pair::assert_works);
    });
}

/// As `sweep --flows` gives them, with numbers that are nobody's: those of the kernel count.
#[test]
fn a_flow_from_a_file_is_probed_as_the_kernels_if_it_is() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let mut pair = Pair::new(&there, "10.7.0.2:80").with_data();
        let local = pair.local();
        let wrong = keepsweep::wire::SeqNumber(1);
        let known = given(&connections()[&local]);
        let flow = Given { snd_una: wrong, snd_nxt: wrong, rcv_nxt: wrong, host: None, ..known };
        let (verdicts, _) = sweep(vec![flow]);
        assert_eq!(said(&verdicts[&local]), ("alive", "ack", 1), "{:?}", verdicts[&local]);
        pair.assert_works();
        // One that has been closed since it was listed.
        drop(pair.ours);
        let (verdicts, summary) = sweep(vec![known]);
        let (state, reason, probes) = said(&verdicts[&local]);
        assert_eq!((state, reason, probes), ("undetermined", "unprobeable", 0));
        assert_eq!(summary.frames_sent, 0);
    });
}

/// What came between the listing and the probing is life enough.
#[test]
fn a_peer_that_has_spoken_since_it_was_listed_is_not_asked() {
    in_namespace(|| {
        let there = There::new();
        there.link();
        let mut pair = Pair::new(&there, "10.7.0.2:80").with_data();
        let local = pair.local();
        let known = given(&connections()[&local]);
        pair.assert_works();
        let (verdicts, summary) = sweep(vec![known]);
        let verdict = &verdicts[&local];
        assert_eq!(said(verdict), ("alive", "data", 0));
        assert_eq!(verdict.evidence[0].kind, Seen::KernelData);
        assert_eq!(summary.frames_sent, 0);
        pair.assert_works();
    });
}

/// Both ends are connections of this host.
#[test]
fn connections_of_this_host_to_itself_are_alive_from_either_end() {
    in_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:80").expect("listen");
        let mut ours = TcpStream::connect("127.0.0.1:80").expect("connect");
        let (mut theirs, _) = listener.accept().expect("accept");
        ours.write_all(b"hello").expect("write");
        theirs.read_exact(&mut [0; 5]).expect("read");
        theirs.write_all(b"hello").expect("write");
        ours.read_exact(&mut [0; 5]).expect("read");
        let locals = [&ours, &theirs].map(|end| end.local_addr().expect("an address"));
        // The server's end is one of several on its port.
        let found: Vec<_> = {
            let reader = Reader::open().unwrap();
            let mut found = Vec::new();
            reader.read(&mut |connection| found.push(given(&connection))).unwrap();
            found
        };
        assert_eq!(found.len(), 2);
        let (verdicts, _) = sweep(found);
        for local in &locals {
            assert_eq!(verdicts[local].state.name(), "alive", "{:?}", verdicts[local]);
        }
        assert_alive(&ours);
        assert_alive(&theirs);
    });
}
