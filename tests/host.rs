//! Reading this host's connections, beside what ss(8), the sockets themselves and the wire say.
//!
//! Every test runs in network namespaces of its own. Needs root: without it the tests fail if
//! CI=true, and say that they are skipped if not.

#![cfg(feature = "os")]
// clippy.toml allows it in tests, but takes the lab's own functions for something else.
#![allow(clippy::unwrap_used)]

#[path = "host/lab.rs"]
mod lab;
mod netns;

use keepsweep::io::host::{self, HostError, Namespace, Owners, Reader, TcpState};
use keepsweep::io::privilege;
use keepsweep::time::{Clock, Instant};
use keepsweep::wire::{Flags, SeqNumber};
use lab::*;
use netns::{in_namespace, ip};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn open() -> Reader {
    Reader::open().unwrap_or_else(|error| panic!("{error}"))
}

/// Every connection that ss lists, as states and ends.
fn by_ss(options: &str) -> HashSet<(TcpState, String, String)> {
    let ends = |ss: Ss| {
        let peer = match ss.peer.parse::<SocketAddr>() {
            Ok(peer) => plain(peer).to_string(),
            // Of a listener: no port.
            Err(_) => "any".to_owned(),
        };
        (ss.state, ss.local.to_string(), peer)
    };
    Ss::all(options, &[]).into_iter().map(ends).collect()
}

fn by_us(reader: &Reader) -> HashSet<(TcpState, String, String)> {
    let ends = |connection: host::Connection| {
        let peer = match connection.peer.port() {
            0 => "any".to_owned(),
            _ => connection.peer.to_string(),
        };
        (connection.state, connection.local.to_string(), peer)
    };
    all(reader).into_iter().map(ends).collect()
}

#[test]
fn fields_are_what_ss_and_the_socket_say() {
    in_namespace(|| {
        let reader = open();
        for family in FAMILIES {
            let Pair { mut ours, mut theirs, .. } = Pair::new(family);
            setsockopt(&ours, sockopt::Mark, &0x1234).unwrap();
            setsockopt(&ours, sockopt::BindToDevice, &"lo".into()).unwrap();
            match family {
                Family::V6 => set_option(&ours, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &0x48_i32),
                _ => set_option(&ours, libc::IPPROTO_IP, libc::IP_TOS, &0x28_i32),
            }
            ours.write_all(b"1234567").unwrap();
            theirs.read_exact(&mut [0; 7]).unwrap();
            theirs.write_all(b"12345").unwrap();
            ours.read_exact(&mut [0; 5]).unwrap();
            await_that(|| numbers(&reader, &ours).since_ack_received >= Duration::from_millis(30));
            // What was sent is younger than what was received, and both older than nothing.
            ours.write_all(b"8").unwrap();
            await_that(|| {
                let told = numbers(&reader, &ours);
                told.since_data_sent >= Duration::from_millis(12) && told.packets_out == 0
            });

            let before = find(&reader, &ours);
            let ss = Ss::of(&ours);
            let after = find(&reader, &ours);
            assert!(before.at < after.at);

            assert_eq!(before.state, TcpState::Established);
            assert_eq!(before.v4_mapped, family == Family::Mapped);
            assert_eq!(Some(before.inode), ss.number("ino"));
            let cookie = ss.value("sk").map(|hex| u64::from_str_radix(hex, 16).unwrap());
            assert_eq!(Some(before.cookie), cookie);
            let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
            assert_eq!(before.netns, std::os::unix::fs::MetadataExt::ino(&netns));

            let (was, is) = (before.numbers.unwrap(), after.numbers.unwrap());
            assert_eq!(ss.value("fwmark"), Some(format!("{:#x}", was.mark).as_str()));
            assert_eq!(was.mark, 0x1234);
            assert_eq!(was.bound_interface, 1, "lo");
            assert_eq!(was.tos, if family == Family::V6 { 0x48 } else { 0x28 });
            assert_eq!(ss.number("bytes_received"), Some(was.bytes_received));
            assert_eq!(was.bytes_received, 5);
            assert_eq!(ss.number("snd_wnd"), Some(was.snd_wnd.into()));
            let shifts = ss.value("wscale").unwrap().split_once(',').unwrap();
            assert_eq!(shifts.1, was.rcv_wscale.to_string());
            assert!(ss.has("ts") && was.timestamps.is_some_and(|with| !with.in_microseconds));
            assert_eq!(was.is_signed, Some(false));
            assert_eq!(
                (was.packets_out, was.retrans_out, was.retransmits, was.probes_out),
                (0, 0, 0, 0)
            );
            assert_eq!((was.snd_una, was.snd_nxt), (was.snd_nxt, was.write_seq));
            // ss in whole milliseconds.
            let near = Clock.tick() + Duration::from_millis(1);
            for (key, was, is) in [
                ("lastsnd", was.since_data_sent, is.since_data_sent),
                ("lastrcv", was.since_data_received, is.since_data_received),
                ("lastack", was.since_ack_received, is.since_ack_received),
            ] {
                // It leaves out what is 0, as when the acknowledgment has come just now.
                let ss = Duration::from_millis(ss.number(key).unwrap_or(0));
                assert!(was <= ss + near && ss <= is + near, "{key}: {was:?} {ss:?} {is:?}");
            }
            assert!(was.since_data_received > was.since_data_sent, "{was:?}");
        }
    });
}

#[test]
fn keepalive_is_what_was_set_and_else_the_namespaces() {
    in_namespace(|| {
        let reader = open();
        let Pair { ours, theirs, .. } = Pair::new(Family::V4);
        assert_eq!(numbers(&reader, &ours).keepalive, None);

        setsockopt(&ours, sockopt::TcpKeepIdle, &123).unwrap();
        setsockopt(&ours, sockopt::TcpKeepInterval, &45).unwrap();
        setsockopt(&ours, sockopt::TcpKeepCount, &6).unwrap();
        assert_eq!(numbers(&reader, &ours).keepalive, None, "set, but not switched on");
        let keepalive = |stream: &TcpStream| {
            setsockopt(stream, sockopt::KeepAlive, &true).unwrap();
            let keepalive = numbers(&reader, stream).keepalive.unwrap();
            // A second need not be a whole number of ticks.
            let seconds = |span: Duration| span.as_secs_f64().round() as u64;
            (seconds(keepalive.idle), seconds(keepalive.interval), keepalive.count)
        };
        assert_eq!(keepalive(&ours), (123, 45, 6));

        assert_eq!(keepalive(&theirs), (7200, 75, 9));
        set_sysctl("net/ipv4/tcp_keepalive_time", "600");
        set_sysctl("net/ipv4/tcp_keepalive_intvl", "7");
        set_sysctl("net/ipv4/tcp_keepalive_probes", "4");
        assert_eq!(keepalive(&theirs), (600, 7, 4));
        assert_eq!(keepalive(&ours), (123, 45, 6));
    });
}

/// Speaks both ways on a pair, and holds its numbers against the segments that came by.
#[track_caller]
fn compare_with_the_wire(reader: &Reader, tap: &Tap, family: Family) {
    let Pair { mut ours, mut theirs, .. } = Pair::new(family);
    theirs.write_all(&[7; 3000]).unwrap();
    ours.read_exact(&mut [0; 3000]).unwrap();
    let sent_from = Clock.now();
    ours.write_all(&[8; 700]).unwrap();
    let sent_until = Clock.now();
    theirs.read_exact(&mut [0; 700]).unwrap();
    // The peer's acknowledgement may be delayed.
    await_that(|| numbers(reader, &ours).packets_out == 0);
    let connection = find(reader, &ours);
    let told = connection.numbers.unwrap();

    let segments = tap.segments();
    let mine: Vec<_> = segments
        .iter()
        .filter(|seen| (seen.from, seen.to) == (connection.local, connection.peer))
        .collect();
    let yours: Vec<_> = segments
        .iter()
        .filter(|seen| (seen.from, seen.to) == (connection.peer, connection.local))
        .collect();
    let end = |seen: &&Seen| {
        let syn = u32::from(seen.flags.contains(Flags::SYN));
        seen.seq + (seen.len + syn)
    };
    let latest = |all: Vec<SeqNumber>| {
        all.into_iter().reduce(|a, b| if a.is_before(b) { b } else { a }).expect("segments")
    };
    assert_eq!(told.snd_nxt, latest(mine.iter().map(end).collect()));
    assert_eq!(told.write_seq, told.snd_nxt);
    assert_eq!(told.snd_una, latest(yours.iter().map(|seen| seen.ack).collect()));
    assert_eq!(told.rcv_nxt, latest(yours.iter().map(end).collect()));
    let last = mine.last().unwrap();
    assert_eq!(told.rcv_wup, last.ack);
    assert_eq!(told.rcv_wnd, u32::from(last.wnd) << told.rcv_wscale);
    assert_eq!(last.tos, told.tos);
    assert_eq!(told.bytes_received, 3000);

    let ts_recent = yours.last().unwrap().tsval;
    assert_eq!(told.timestamps.map(|with| with.ts_recent), ts_recent);
    let Some(timestamps) = told.timestamps else { return };
    // TSval = the clock + offset: that of the data, by when it was written.
    let unit = if timestamps.in_microseconds { 1_000 } else { 1_000_000 };
    let tsval = |at: Instant| ((at.as_nanos() / unit) as u32).wrapping_add(timestamps.offset);
    let data = mine.iter().find(|seen| seen.len == 700).unwrap().tsval.unwrap();
    let (from, until) = (SeqNumber(tsval(sent_from)), SeqNumber(tsval(sent_until)));
    let data = SeqNumber(data);
    assert!(!data.is_before(from) && !until.is_before(data), "{from:?} {data:?} {until:?}");
}

#[test]
fn numbers_are_those_on_the_wire() {
    in_namespace(|| {
        let (reader, tap) = (open(), Tap::open());
        for family in FAMILIES {
            compare_with_the_wire(&reader, &tap, family);
        }
        set_sysctl("net/ipv4/tcp_window_scaling", "0");
        let Pair { ours, .. } = Pair::new(Family::V4);
        assert_eq!(numbers(&reader, &ours).rcv_wscale, 0);
        set_sysctl("net/ipv4/tcp_timestamps", "0");
        let Pair { ours, .. } = Pair::new(Family::V4);
        assert_eq!(numbers(&reader, &ours).timestamps, None);
        for family in FAMILIES {
            compare_with_the_wire(&reader, &tap, family);
        }
    });
}

#[test]
fn timestamps_in_microseconds_are_told_from_milliseconds() {
    in_namespace(|| {
        let (reader, tap) = (open(), Tap::open());
        count_microseconds_on_loopback();
        let Pair { ours, theirs, .. } = Pair::new(Family::V4);
        for stream in [&ours, &theirs] {
            let with = numbers(&reader, stream).timestamps.unwrap();
            assert!(with.in_microseconds, "Linux 6.7 or newer");
        }
        tap.segments();
        compare_with_the_wire(&reader, &tap, Family::V4);
    });
}

#[test]
fn data_in_flight_and_retransmissions() {
    in_namespace(|| {
        let reader = open();
        for family in [Family::V4, Family::V6] {
            let Pair { mut ours, theirs, .. } = Pair::new(family);
            let port = theirs.local_addr().unwrap().port();
            drop_incoming(&format!("tcp dport {port}"));
            ours.write_all(&[9; 5000]).unwrap();
            let told = numbers(&reader, &ours);
            assert!(told.packets_out > 0, "{told:?}");
            assert_eq!(told.write_seq.distance(told.snd_una), 5000);
            assert_eq!(unacknowledged(&ours), 5000);
            await_that(|| numbers(&reader, &ours).retransmits > 0);
            // It may time out once more in between.
            let before = numbers(&reader, &ours);
            let ss = Ss::of(&ours);
            let after = numbers(&reader, &ours);
            let backoff = (before.retransmits..=after.retransmits).map(u64::from);
            let timer: u64 = {
                let timer = ss.value("timer").unwrap().trim_end_matches(')');
                timer.rsplit(',').next().unwrap().parse().unwrap()
            };
            assert!(backoff.into_iter().any(|times| times == timer), "{timer} {before:?}");
            assert_eq!(ss.number("unacked"), Some(u64::from(after.packets_out)));
            assert!(after.retrans_out > 0, "{after:?}");
            assert_eq!(ss.send_queue, 5000);
            nft("delete table inet lab");
        }
    });
}

#[test]
fn a_window_of_zero_and_the_kernels_probes() {
    in_namespace(|| {
        let reader = open();
        let Pair { mut ours, theirs, .. } = Pair::new(Family::V4);
        ours.set_nonblocking(true).unwrap();
        await_that(|| {
            let written = ours.write(&[0; 1 << 16]);
            written.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                && numbers(&reader, &ours).snd_wnd == 0
        });
        drop_incoming(&format!("tcp dport {}", theirs.local_addr().unwrap().port()));
        await_that(|| numbers(&reader, &ours).probes_out > 0);
        let told = numbers(&reader, &ours);
        assert_eq!((told.snd_wnd, told.packets_out), (0, 0), "{told:?}");
        assert!(told.snd_nxt.is_before(told.write_seq));
        assert!(Ss::of(&ours).value("timer").unwrap().starts_with("(persist,"));
    });
}

#[test]
fn states_of_full_and_small_sockets_are_those_of_ss() {
    in_namespace(|| {
        let reader = open().with_listeners(true);
        let half = Pair::new(Family::V4);
        half.theirs.shutdown(Shutdown::Write).unwrap();
        await_that(|| find(&reader, &half.ours).state == TcpState::CloseWait);
        await_that(|| find(&reader, &half.theirs).state == TcpState::FinWait2);

        // Closed by the application: FIN_WAIT2 and TIME_WAIT are small sockets from then on.
        let Pair { ours: orphans_peer, theirs: orphan, .. } = Pair::new(Family::V6);
        drop(orphan);
        let Pair { ours, theirs, .. } = Pair::new(Family::Mapped);
        let ends = (plain(ours.local_addr().unwrap()), plain(ours.peer_addr().unwrap()));
        drop((ours, theirs));
        let waiting = || {
            let mut found = all(&reader);
            found.retain(|one| (one.local, one.peer) == ends && one.state == TcpState::TimeWait);
            found.pop()
        };
        await_that(|| waiting().is_some());
        let waiting = waiting().unwrap();
        assert_eq!((waiting.numbers, waiting.v4_mapped, waiting.inode), (None, true, 0));
        let orphans_peer = orphans_peer.peer_addr().unwrap();
        let orphan = || {
            all(&reader).into_iter().find(|one| one.local == orphans_peer && one.peer.port() != 0)
        };
        await_that(|| orphan().is_some_and(|one| one.state == TcpState::FinWait2));
        assert_eq!(orphan().unwrap().numbers, None);

        // A request whose last segment is lost, on a listener for both families, and a SYN that is.
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let deaf = Family::V4.listen();
        let deaf_port = deaf.local_addr().unwrap().port();
        nft(&format!(
            "table inet lab {{ chain in {{ type filter hook input priority 0;
                tcp dport {port} tcp flags & syn == 0 drop; tcp dport {deaf_port} drop; }}; }}"
        ));
        let requested = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let syn = connect_later(&deaf);
        let requester = requested.local_addr().unwrap();
        let request = all(&reader).into_iter().find(|one| one.peer == requester).unwrap();
        assert_eq!((request.state, request.numbers.is_some()), (TcpState::SynReceived, false));
        // FIN_WAIT1, LAST_ACK, CLOSING: a FIN that is not acknowledged.
        let fin = Pair::new(Family::V4);
        let last = Pair::new(Family::V4);
        let both = Pair::new(Family::V6);
        last.theirs.shutdown(Shutdown::Write).unwrap();
        await_that(|| find(&reader, &last.ours).state == TcpState::CloseWait);
        let ports: Vec<_> = [&fin, &last, &both]
            .iter()
            .map(|pair| pair.theirs.local_addr().unwrap().port().to_string())
            .collect();
        let ports = ports.join(", ");
        nft(&format!(
            "table inet more {{ chain in {{ type filter hook input priority 0;
                tcp dport {{ {ports} }} drop; tcp sport {} drop; }}; }}",
            both.theirs.local_addr().unwrap().port()
        ));
        for pair in [&fin, &last, &both] {
            pair.ours.shutdown(Shutdown::Write).unwrap();
        }
        both.theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!(find(&reader, &fin.ours).state, TcpState::FinWait1);
        assert_eq!(find(&reader, &last.ours).state, TcpState::LastAck);

        let (ours, theirs) = (by_us(&reader), by_ss("-tnHa"));
        assert_eq!(ours, theirs);
        let states: HashSet<_> = ours.iter().map(|one| one.0).collect();
        for state in [
            TcpState::SynSent,
            TcpState::SynReceived,
            TcpState::FinWait1,
            TcpState::FinWait2,
            TcpState::TimeWait,
            TcpState::CloseWait,
            TcpState::LastAck,
            TcpState::Listen,
        ] {
            assert!(states.contains(&state), "{state:?} among {states:?}");
        }
        let never = all(&reader).into_iter().find(|one| one.state == TcpState::SynSent).unwrap();
        assert_eq!(never.numbers.unwrap().since_ack_received, Duration::MAX);

        let reader = reader.with_listeners(false);
        let mut connected = ours;
        connected.retain(|one| one.0 != TcpState::Listen);
        assert_eq!(by_us(&reader), connected);
        drop((half, orphans_peer, listener, requested, syn, fin, last, both));
    });
}

#[test]
fn signed_connections_are_told_from_others() {
    in_namespace(|| {
        let reader = open();
        let listener = Family::V4.listen();
        let plain_pair = Pair::new(Family::V4);
        let address = listener.local_addr().unwrap();
        sign(&listener, address);
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        sign(&socket, address);
        let to = nix::sys::socket::SockaddrStorage::from(address);
        nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let ours = TcpStream::from(socket);
        assert_eq!(numbers(&reader, &ours).is_signed, Some(true));
        assert_eq!(numbers(&reader, &theirs).is_signed, Some(true));
        assert_eq!(numbers(&reader, &plain_pair.ours).is_signed, Some(false));
    });
}

#[test]
fn link_local_connections_have_their_scope() {
    in_namespace(|| {
        ip("address add fe80::1/64 dev lo nodad");
        let reader = open();
        let listener = TcpListener::bind(link_local()).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        for stream in [&ours, &theirs] {
            let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let found = all(&reader);
            assert!(found.iter().any(|one| (one.local, one.peer) == ends), "{ends:?} {found:?}");
        }
    });
}

#[test]
fn thousands_are_listed_each_once_while_others_come_and_go() {
    in_namespace(|| {
        let reader = open();
        let pairs: Vec<_> = {
            let listener = Family::V4.listen();
            let pair = || (Family::V4.connect(&listener), listener.accept().unwrap().0);
            (0..3_000).map(|_| pair()).collect()
        };
        let ends = |one: &TcpStream| (one.local_addr().unwrap(), one.peer_addr().unwrap());
        let wanted: HashSet<_> = pairs.iter().flat_map(|(a, b)| [ends(a), ends(b)]).collect();
        assert_eq!(wanted.len(), pairs.len() * 2);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // In this namespace too.
            let churn = scope.spawn(|| {
                let listener = Family::V4.listen();
                let mut made = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) && made < 20_000 {
                    drop((Family::V4.connect(&listener), listener.accept().unwrap().0));
                    made += 1;
                }
                made
            });
            for _ in 0..20 {
                let found = all(&reader);
                let cookies: HashSet<_> = found.iter().map(|one| one.cookie).collect();
                assert_eq!(cookies.len(), found.len());
                let ends = found.iter().map(|one| (one.local, one.peer));
                assert_eq!(ends.filter(|ends| wanted.contains(ends)).count(), wanted.len());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(churn.join().unwrap() > 0);
        });
    });
}

/// A process that keeps `socket` as its standard input until it is told to end.
struct Keeper(Child);

impl Keeper {
    fn start(socket: OwnedFd) -> Keeper {
        Keeper(Command::new("sleep").arg("60").stdin(Stdio::from(socket)).spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn owners_are_found_shared_or_not_and_both_ways() {
    in_namespace(|| {
        let reader = open();
        let Pair { ours, theirs, listener } = Pair::new(Family::V4);
        let child = Keeper::start(ours.try_clone().unwrap().into());
        let only_child = Pair::new(Family::V6);
        let elsewhere = find(&reader, &only_child.ours);
        let second = Keeper::start(only_child.ours.into());
        let unaccepted = Family::V4.connect(&listener);
        let child_pid = child.0.id();

        let inodes = [&ours, &theirs].map(|stream| find(&reader, stream).inode);
        for read in [&|| reader.owners().unwrap(), &|| Owners::by_proc().unwrap()]
            as [&dyn Fn() -> Owners; 2]
        {
            // Children of other tests have all our descriptors too, until they are executed.
            let mut owners = Owners::default();
            await_that(|| {
                owners = read();
                let all = [inodes[0], inodes[1], elsewhere.inode];
                all.map(|inode| owners.of_inode(inode).map(|owner| owner.processes))
                    == [Some(2), Some(1), Some(1)]
            });
            let shared = owners.of_inode(inodes[0]).unwrap();
            assert_eq!(shared.pid, std::process::id().min(child_pid));
            let theirs = owners.of_inode(inodes[1]).unwrap();
            assert_eq!(theirs.pid, std::process::id());
            let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
            assert_eq!(theirs.comm, comm.trim());
            let target = std::fs::read_link(format!("/proc/self/fd/{}", theirs.fd)).unwrap();
            assert_eq!(target.to_str(), Some(format!("socket:[{}]", inodes[1]).as_str()));

            let other = owners.of(&elsewhere).unwrap();
            assert_eq!((&*other.comm, other.pid, other.fd), ("sleep", second.0.id(), 0));
            let ends = (unaccepted.peer_addr().unwrap(), unaccepted.local_addr().unwrap());
            let nobodys =
                all(&reader).into_iter().find(|one| (one.local, one.peer) == ends).unwrap();
            assert_eq!((nobodys.inode, owners.of(&nobodys)), (0, None));
        }
        let group = host::cgroup(child_pid).unwrap();
        let said = std::fs::read_to_string(format!("/proc/{child_pid}/cgroup")).unwrap();
        assert!(said.lines().any(|line| line.ends_with(&format!(":{group}"))), "{said}");
    });
}

#[test]
fn reads_on_after_all_capabilities_are_gone() {
    in_namespace(|| {
        let reader = open();
        let Pair { ours, theirs, .. } = Pair::new(Family::V4);
        privilege::drop_all().unwrap();
        assert_eq!(all(&reader).len(), 2);
        let owners = reader.owners().unwrap();
        assert_eq!(owners.of(&find(&reader, &ours)).unwrap().pid, std::process::id());
        drop(theirs);

        let found = host::namespaces().unwrap().found;
        assert_eq!(found[0].enter(|| all(&reader).len()).unwrap(), 2, "its own");

        let error = Reader::open().expect_err("no capability");
        assert!(matches!(error, HostError::Load { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("Operation not permitted") && text.contains("CAP_PERFMON"), "{text}");
    });
}

/// A connection between two ports that are the same in every namespace.
fn same_everywhere() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
    let address = "127.0.0.1:7001".parse::<SocketAddr>().unwrap();
    let fd = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    nix::sys::socket::bind(raw, &nix::sys::socket::SockaddrStorage::from(address)).unwrap();
    let to = nix::sys::socket::SockaddrStorage::from(listener.local_addr().unwrap());
    nix::sys::socket::connect(raw, &to).unwrap();
    let accepted = listener.accept().unwrap().0;
    (TcpStream::from(fd), accepted)
}

fn own_inode() -> u64 {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
    std::os::unix::fs::MetadataExt::ino(&namespace)
}

#[test]
fn equal_connections_in_two_namespaces_are_kept_apart() {
    in_namespace(|| {
        let reader = open();
        let here = own_inode();
        let mine = same_everywhere();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            in_namespace(move || {
                let _theirs = same_everywhere();
                tell.send(own_inode()).unwrap();
                let _ = ended.recv();
            });
        });
        let there = told.recv().unwrap();

        let found = host::namespaces().unwrap().found;
        let inodes: HashSet<_> = found.iter().map(|one| one.inode).collect();
        assert_eq!(inodes.len(), found.len());
        let by_inode = |inode| found.iter().find(|one| one.inode == inode).unwrap();
        assert!(found[0].is_own && by_inode(here).is_own && !by_inode(there).is_own);
        let mut cookies = HashSet::new();
        for inode in [here, there] {
            let inside = by_inode(inode).enter(|| all(&reader)).unwrap();
            assert_eq!(inside.len(), 2, "{inside:?}");
            assert!(inside.iter().all(|one| one.netns == inode));
            cookies.extend(inside.iter().map(|one| one.cookie));
        }
        assert_eq!((cookies.len(), own_inode()), (4, here));
        let owners = reader.owners().unwrap();
        let theirs = by_inode(there).enter(|| all(&reader)).unwrap();
        assert!(
            theirs
                .iter()
                .all(|one| { owners.of(one).is_some_and(|owner| owner.pid == std::process::id()) })
        );

        let there: Namespace = by_inode(there).clone();
        drop((end, mine));
        other.join().unwrap();
        let gone = there.enter(|| ()).expect_err("no thread is left in it");
        assert!(matches!(gone, HostError::Gone { .. }), "{gone}");
    });
}

/// A namespace with a name.
struct Named(String);

impl Named {
    fn new() -> Named {
        let name = format!("iter-test-{}", std::process::id());
        ip(&format!("netns add {name}"));
        Named(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn named_namespaces_have_their_names() {
    in_namespace(|| {
        let named = Named::new();
        let found = host::namespaces().unwrap().found;
        let one = found.iter().find(|one| one.names == [named.0.as_str()]).unwrap();
        assert_eq!((one.label(), one.pid, one.is_own), (named.0.clone(), None, false));
        assert_eq!(one.enter(own_inode).unwrap(), one.inode);

        let refused = std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                privilege::drop_all().unwrap();
                one.enter(|| ()).expect_err("no capability").to_string()
            });
            refused.join().unwrap()
        });
        assert!(refused.contains(&named.0) && refused.contains("CAP_SYS_ADMIN"), "{refused}");

        let one = one.clone();
        let name = named.0.clone();
        drop(named);
        let gone = one.enter(|| ()).expect_err("deleted");
        let expected =
            format!("enter network namespace {name}: it is gone; list the namespaces again");
        assert_eq!(gone.to_string(), expected);
    });
}
