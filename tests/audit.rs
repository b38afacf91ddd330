//! `keepsweep audit` and its library, on real sockets in network namespaces of their own. Needs root.

mod netns;

use keepsweep::audit::{self, Audit, AuditError};
use keepsweep::engine::Control;
use keepsweep::io::privilege::{self, Capability};
use keepsweep::probe::classify::{Reason, State};
use keepsweep::time::Clock;
use keepsweep::wire::{Flags, IpHeader, LinkHeader, Options, Segment, SeqNumber};
use netns::{in_namespace, ip};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockname,
    sendto, socket,
};
use nix::unistd::Pid;
use serde_json::Value;
use snapbox::cmd::cargo_bin;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

/// Connects over the loopback of this thread's namespace.
fn pair(listen: &str, connect: &str) -> Pair {
    let listener = TcpListener::bind((listen, 0)).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let client = TcpStream::connect((connect, port)).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    Pair { client, server }
}

fn keepsweep(args: &str) -> Command {
    let mut command = Command::new(cargo_bin!("keepsweep"));
    command.args(args.split_whitespace()).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs an audit that must end with `code`, and returns its records.
fn audited(args: &str, code: i32) -> Vec<Value> {
    let output = keepsweep(&format!("audit --format ndjson {args}")).output().expect("runs");
    assert_eq!(output.status.code(), Some(code), "{args}: {}", said(&output));
    records(&output.stdout)
}

fn records(text: &[u8]) -> Vec<Value> {
    let lines = text.lines().map(|line| line.expect("UTF-8"));
    lines.map(|line| serde_json::from_str(&line).expect("JSON")).collect()
}

fn end(record: &Value, side: &str) -> SocketAddr {
    let ip = record[format!("{side}_ip")].as_str().expect("an address");
    let port = record[format!("{side}_port")].as_u64().expect("a port") as u16;
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("no {field}: {record}"))
}

/// The ends and states of the listed connections.
fn ends(records: &[Value]) -> BTreeSet<(SocketAddr, SocketAddr, String)> {
    let ends = |record: &Value| {
        (end(record, "local"), end(record, "peer"), text(record, "tcp_state").to_owned())
    };
    let set: BTreeSet<_> = records.iter().map(ends).collect();
    assert_eq!(set.len(), records.len(), "each once");
    set
}

/// The same as `ss` has it, v4-mapped addresses as they are on the wire.
fn ss() -> BTreeSet<(SocketAddr, SocketAddr, String)> {
    let output = Command::new("ss").args(["-tnaH"]).output().expect("ss runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let connections = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let state = match fields.next()? {
            "LISTEN" => return None,
            "ESTAB" => "established".to_owned(),
            state => state.to_ascii_lowercase(),
        };
        let mut address = |skip| {
            let address: SocketAddr = fields.nth(skip)?.parse().ok()?;
            Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
        };
        Some((address(2)?, address(0)?, state))
    });
    connections.collect()
}

/// Waits until `condition` holds, half a minute at most.
fn await_condition(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Clock.now();
    while !condition() {
        assert!(Clock.now().since(begun) < Duration::from_secs(30), "{what}: not within 30 s");
        Clock.sleep(Duration::from_millis(10));
    }
}

/// Ends a process of ours, if the test has not.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn lists_what_ss_lists_and_says_whose_it_is() {
    in_namespace(|| {
        let held = [pair("127.0.0.1", "127.0.0.1"), pair("::1", "::1"), pair("::", "127.0.0.1")];
        let half = pair("127.0.0.1", "127.0.0.1");
        half.client.shutdown(Shutdown::Write).expect("shut down");
        // The FIN has arrived.
        (&half.server).read_exact(&mut [0]).expect_err("the end");
        let closed = pair("::1", "::1");
        closed.client.shutdown(Shutdown::Both).expect("shut down");
        (&closed.server).read_exact(&mut [0]).expect_err("the end");
        drop(closed);

        let listed = audited("--dry-run --tcp-state all", 0);
        assert_eq!(ends(&listed), ss());
        let states: Vec<_> = listed.iter().map(|record| text(record, "tcp_state")).collect();
        for state in ["established", "close-wait", "fin-wait-2", "time-wait"] {
            assert!(states.contains(&state), "{states:?}");
        }
        for record in listed.iter().filter(|record| text(record, "tcp_state") == "established") {
            assert_eq!(record["pid"], std::process::id(), "{record}");
            let comm = std::fs::read_to_string("/proc/self/comm").expect("a name");
            assert_eq!(text(record, "comm"), comm.trim(), "{record}");
            let fd = record["fd"].as_i64().expect("a descriptor");
            let name: SockaddrStorage = getsockname(fd as RawFd).expect("of a socket");
            let port = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
                (Some(v4), _) => v4.port(),
                (None, v6) => v6.expect("of TCP").port(),
            };
            assert_eq!(record["local_port"], port, "{record}");
            assert!(record["findings"].as_array().is_some_and(Vec::is_empty), "{record}");
            assert!(record["keepalive"].is_null(), "{record}");
        }
        // The v4-mapped end as well as the IPv4 one.
        let mapped = held[2].client.local_addr().expect("an address");
        let ends_of_it = listed
            .iter()
            .filter(|record| end(record, "local") == mapped || end(record, "peer") == mapped);
        assert_eq!(ends_of_it.count(), 2);
        // Unless asked for, the states that end by themselves are left out, and said to be.
        let output = keepsweep("audit --dry-run --format csv").output().expect("runs");
        assert!(said(&output).contains("1 in time-wait"), "{}", said(&output));
        let rows = String::from_utf8_lossy(&output.stdout).lines().count();
        assert_eq!(rows, listed.len(), "a header, and no TIME_WAIT");
    });
}

#[test]
fn a_list_is_what_sweep_takes_for_flows() {
    in_namespace(|| {
        let _held = [pair("127.0.0.1", "127.0.0.1"), pair("::1", "::1")];
        let closed = pair("127.0.0.1", "127.0.0.1");
        closed.client.shutdown(Shutdown::Both).expect("shut down");
        (&closed.server).read_exact(&mut [0]).expect_err("the end");
        drop(closed);
        let dir = tempfile::tempdir().expect("a directory");
        for format in ["ndjson", "csv"] {
            let list = dir.path().join(format);
            let list = list.to_str().expect("a path");
            let output =
                keepsweep(&format!("audit --dry-run --tcp-state all --format {format} -o {list}"))
                    .output();
            assert!(output.expect("runs").status.success());
            let output = keepsweep(&format!("sweep --flows {list} --dry-run")).output();
            let output = output.expect("runs");
            assert!(output.status.success(), "{}", said(&output));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("127.0.0.1:") && text.contains("[::1]:"), "{text}");
            assert!(said(&output).contains("flows passed over: 1;"), "{}", said(&output));
        }
    });
}

#[test]
fn filters_by_peer_state_idleness_and_process() {
    in_namespace(|| {
        ip("address add 10.9.0.1/32 dev lo");
        let near = pair("127.0.0.1", "127.0.0.1");
        let far = pair("10.9.0.1", "10.9.0.1");
        far.client.shutdown(Shutdown::Write).expect("shut down");
        (&far.server).read_exact(&mut [0]).expect_err("the end");
        let of = |args: &str| ends(&audited(&format!("--dry-run {args}"), 0));
        assert_eq!(of("").len(), 4);
        assert_eq!(of("--peer 127.0.0.1").len(), 2);
        assert_eq!(of("--peer 10.9.0.0/16 --peer fd00::/8").len(), 2);
        let waiting = of("--tcp-state CLOSE_WAIT");
        let expected = (
            far.server.local_addr().expect("an address"),
            far.server.peer_addr().expect("an address"),
            "close-wait".to_owned(),
        );
        assert_eq!(waiting, [expected].into());
        assert_eq!(of("--idle-over 1h").len(), 0);
        assert_eq!(of("--idle-over 0s --tcp-state established").len(), 2);

        // A process of its own, with one connection, which this one does not hold.
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo ready >&3; read -u 3");
        let child = Command::new("bash").args(["-c", &script]).spawn().expect("bash runs");
        let child = Ended(child);
        let (mut server, _) = listener.accept().expect("accept");
        server.read_exact(&mut [0; 6]).expect("it is ready");
        let pid = child.0.id();
        let theirs = audited(&format!("--dry-run --pid {pid}"), 0);
        assert_eq!(theirs.len(), 1, "{theirs:?}");
        assert_eq!(end(&theirs[0], "peer"), server.local_addr().expect("an address"));
        assert_eq!(
            (theirs[0]["pid"].as_u64(), text(&theirs[0], "comm")),
            (Some(pid.into()), "bash")
        );
        drop(child);
        let output = keepsweep(&format!("audit --dry-run --pid {pid}")).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(&format!("look at process {pid}: no such process")));
        drop(near);
    });
}

/// A network namespace with a name, taken away at the end.
struct Named(String);

impl Named {
    fn new(name: &str) -> Named {
        let name = format!("audit-{}-{name}", std::process::id());
        ip(&format!("netns add {name}"));
        let named = Named(name);
        ip(&format!("-n {} link set lo up", named.0));
        named
    }

    /// Runs `f` on a thread inside of it.
    fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).expect("its file");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("enter");
                f()
            });
            thread.join().expect("no panic")
        })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn namespaces_are_told_apart_and_named() {
    in_namespace(|| {
        let (one, two) = (Named::new("one"), Named::new("two"));
        // The same ends in both.
        let held = [&one, &two].map(|named| {
            named.enter(|| {
                ip("address add 10.77.66.1/32 dev lo");
                let listener = TcpListener::bind("10.77.66.1:7777").expect("bind");
                let script = "exec 3<>/dev/tcp/10.77.66.1/7777; echo ready >&3; read -u 3";
                let child = Command::new("bash").args(["-c", script]).spawn().expect("bash runs");
                let (mut server, _) = listener.accept().expect("accept");
                server.read_exact(&mut [0; 6]).expect("it is ready");
                (Ended(child), server)
            })
        });
        let of = |args: &str| audited(&format!("--dry-run --peer 10.77.66.0/24 {args}"), 0);
        let by_netns = |records: &[Value], name: &str| {
            records.iter().filter(|record| text(record, "netns") == name).count()
        };
        let all = of("--netns all");
        assert_eq!(all.len(), 4, "{all:?}");
        assert_eq!((by_netns(&all, &one.0), by_netns(&all, &two.0)), (2, 2));
        let cookies: BTreeSet<_> = all.iter().map(|record| record["cookie"].as_u64()).collect();
        assert_eq!(cookies.len(), 4);
        let of_two = of(&format!("--netns {}", two.0));
        assert_eq!((of_two.len(), by_netns(&of_two, &two.0)), (2, 2));
        assert!(of("").is_empty());
        // A process is looked for where it is.
        let (child, _) = &held[1];
        let of_child = of(&format!("--pid {}", child.0.id()));
        assert_eq!((of_child.len(), by_netns(&of_child, &two.0)), (1, 1));

        let output = keepsweep("audit --dry-run --netns nosuch").output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("find network namespace nosuch: no such namespace"));
        assert!(said(&output).contains(&one.0), "{}", said(&output));
    });
}

#[test]
fn nothing_to_ask_is_no_failure() {
    in_namespace(|| {
        for args in ["audit", "audit --dry-run", "audit --format csv"] {
            let output = keepsweep(args).output().expect("runs");
            assert_eq!(output.status.code(), Some(0), "{args}: {}", said(&output));
            assert!(said(&output).contains("there is no such connection"), "{}", said(&output));
        }
    });
}

/// This thread's namespace with a peer in another one, over a pair of veths.
struct Peer {
    namespace: Named,
    listener: TcpListener,
}

const HERE: &str = "10.55.0.1";
const THERE: &str = "10.55.0.2";

impl Peer {
    fn new(name: &str) -> Peer {
        let namespace = Named::new(name);
        ip(&format!("link add up0 type veth peer name up0 netns {}", namespace.0));
        ip(&format!("address add {HERE}/24 dev up0"));
        ip("link set up0 up");
        ip(&format!("-n {} address add {THERE}/24 dev up0", namespace.0));
        ip(&format!("-n {} link set up0 up", namespace.0));
        let listener = namespace.enter(|| TcpListener::bind((THERE, 7000)).expect("bind"));
        Peer { namespace, listener }
    }

    /// A connection that has carried data both ways, and its other end.
    fn connect(&self) -> Pair {
        let mut client = TcpStream::connect((THERE, 7000)).expect("connect");
        let (mut server, _) = self.listener.accept().expect("accept");
        client.write_all(b"question").expect("written");
        server.read_exact(&mut [0; 8]).expect("read");
        server.write_all(b"answer").expect("written");
        client.read_exact(&mut [0; 6]).expect("read");
        Pair { client, server }
    }

    /// From now on it swallows all TCP that comes in, and sends none.
    fn falls_silent(&self) {
        self.nft("add table inet silence");
        for hook in ["prerouting", "output"] {
            self.nft(&format!(
                "add chain inet silence {hook} {{ type filter hook {hook} priority -400 ; }}"
            ));
            self.nft(&format!("add counter inet silence {hook}"));
            self.nft(&format!(
                "add rule inet silence {hook} meta l4proto tcp counter name {hook} drop"
            ));
        }
    }

    /// How many segments it has swallowed since it fell silent.
    fn swallowed(&self) -> u64 {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace.0, "nft", "-j"])
            .args(["list", "counter", "inet", "silence", "prerouting"])
            .output()
            .expect("nft runs");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let objects = answer["nftables"].as_array().expect("a list").iter();
        objects.filter_map(|object| object["counter"]["packets"].as_u64()).sum()
    }

    fn speaks_again(&self) {
        self.nft("delete table inet silence");
    }

    /// It forgets all its connections, and sends no RST about that.
    fn forgets(&self) {
        self.falls_silent();
        let netns = &self.namespace.0;
        let status = Command::new("ip")
            .args(["netns", "exec", netns, "ss", "-K", "state", "established"])
            .stdout(Stdio::null())
            .status();
        assert!(status.expect("ss runs").success());
        self.speaks_again();
    }

    /// A RST with this sequence number comes from where it is.
    fn resets(&self, stream: &TcpStream, seq: u32) {
        let here = stream.local_addr().expect("an address");
        let there = stream.peer_addr().expect("an address");
        let segment = Segment {
            ip: IpHeader { src: there.ip(), dst: here.ip(), ttl: 64, id: 0 },
            src_port: there.port(),
            dst_port: here.port(),
            seq: SeqNumber(seq),
            ack: SeqNumber(0),
            flags: Flags::RST,
            wnd: 0,
            options: Options::default(),
            payload: &[],
        };
        let mut packet = [0; 64];
        let len = segment.emit(&LinkHeader::Ip, &mut packet).expect("fits");
        self.namespace.enter(|| {
            let (family, flags) = (AddressFamily::Inet, SockFlag::SOCK_CLOEXEC);
            let socket = socket(family, SockType::Raw, flags, SockProtocol::Raw);
            let socket = socket.expect("a raw socket");
            let to = SockaddrStorage::from(here);
            let sent = sendto(socket.as_raw_fd(), &packet[..len], &to, MsgFlags::empty());
            assert_eq!(sent, Ok(len));
        });
    }

    fn nft(&self, words: &str) {
        let status =
            Command::new("ip").args(["netns", "exec", &self.namespace.0, "nft", words]).status();
        assert!(status.expect("nft runs").success(), "nft {words}");
    }
}

/// The record of the connection whose local end is that of `stream`.
fn of<'a>(records: &'a [Value], stream: &TcpStream) -> &'a Value {
    let local = stream.local_addr().expect("an address");
    let is_it = |record: &&Value| record["type"] == "peer" && end(record, "local") == local;
    records.iter().find(is_it).unwrap_or_else(|| panic!("{local} is not in {records:?}"))
}

fn is_whole(pair: &mut Pair) {
    pair.client.write_all(b"still").expect("written");
    pair.server.read_exact(&mut [0; 5]).expect("read");
    pair.server.write_all(b"there").expect("written");
    pair.client.read_exact(&mut [0; 5]).expect("read");
}

#[test]
fn verdicts_are_joined_with_the_connections() {
    in_namespace(|| {
        let peer = Peer::new("verdicts");
        let mut held = peer.connect();
        let records = audited("", 0);
        let record = of(&records, &held.client);
        assert_eq!((text(record, "state"), text(record, "reason")), ("alive", "ack"), "{record}");
        assert_eq!(
            (record["probes"].as_u64(), record["pid"].as_u64()),
            (Some(1), Some(std::process::id().into()))
        );
        let summary = records.last().expect("a summary");
        assert_eq!((summary["peers"].as_u64(), summary["alive"].as_u64()), (Some(1), Some(1)));
        assert_eq!(summary["by_process"][0]["alive"], 1, "{summary}");
        assert_eq!(summary["by_prefix"][0]["prefix"], "10.55.0.0/24", "{summary}");
        assert_eq!(summary["kernel_rsts"], 0, "{summary}");
        is_whole(&mut held);

        let pcap = tempfile::NamedTempFile::new().expect("a file");
        peer.falls_silent();
        let args = format!("--interval 500ms --count 3 --pcap {}", pcap.path().display());
        let records = audited(&args, 1);
        let record = of(&records, &held.client);
        let verdict = (text(record, "state"), text(record, "reason"));
        assert_eq!(verdict, ("down", "host-silent"), "{record}");
        assert!(std::fs::metadata(pcap.path()).expect("written").len() > 24);
        peer.speaks_again();
        is_whole(&mut held);

        peer.forgets();
        let output = keepsweep("audit").output().expect("runs");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let table = String::from_utf8(output.stdout).expect("UTF-8");
        let row = table.lines().nth(1).expect("a row");
        assert!(row.starts_with("rebooted  "), "{table}");
        assert!(row.contains("does not know the connection"), "{table}");
        let listed = audited("--dry-run", 0);
        assert_eq!(text(&listed[0], "tcp_state"), "established", "it has survived");
    });
}

#[test]
fn rounds_write_changes_only() {
    in_namespace(|| {
        let peer = Peer::new("rounds");
        let first = peer.connect();
        let child = keepsweep("audit --format ndjson --every 1s --interval 500ms --count 3")
            .stdout(Stdio::piped())
            .spawn();
        let mut child = Ended(child.expect("starts"));
        let out = child.0.stdout.take().expect("piped");
        let mut lines = BufReader::new(out).lines();
        let mut next = || -> Value {
            let line = lines.next().expect("a line").expect("UTF-8");
            serde_json::from_str(&line).expect("JSON")
        };
        let local = |stream: &TcpStream| stream.local_addr().expect("an address");
        let changed = |record: &Value, stream: &TcpStream, change: &str| {
            assert_eq!((end(record, "local"), text(record, "change")), (local(stream), change));
        };
        let record = next();
        changed(&record, &first.client, "new");
        assert_eq!((text(&record, "state"), record["round"].as_u64()), ("alive", Some(1)));
        // Whatever comes next is not about the first one: it has not changed.
        let second = peer.connect();
        let record = next();
        changed(&record, &second.client, "new");
        assert!(record["round"].as_u64() > Some(1), "{record}");
        let gone = local(&second.client);
        drop(second);
        let record = next();
        assert_eq!((text(&record, "type"), text(&record, "change")), ("gone", "gone"), "{record}");
        assert_eq!(end(&record, "local"), gone);
        peer.falls_silent();
        let record = next();
        changed(&record, &first.client, "state");
        assert_eq!((text(&record, "state"), text(&record, "state_before")), ("down", "alive"));
        let rounds = record["round"].as_u64().expect("a number");
        kill(Pid::from_raw(child.0.id() as i32), Signal::SIGINT).expect("signalled");
        let summary = next();
        assert_eq!(text(&summary, "type"), "summary", "{summary}");
        // Of all rounds: each has asked the first one, and the last has waited for its host, too.
        let probes = summary["sent_by_kind"]["probe-0"].as_u64();
        assert!(probes.is_some_and(|probes| probes > rounds), "{rounds}: {summary}");
        let elapsed_ms = summary["elapsed_ms"].as_u64().expect("a number");
        assert!(elapsed_ms >= (rounds - 1) * 1000 + 5000, "{rounds}: {summary}");
        assert_eq!(child.0.wait().expect("ends").code(), Some(130));
    });
}

/// What was said of a connection stands until the next answer, also in the summary.
#[test]
fn an_interrupted_round_changes_nothing_that_is_known() {
    in_namespace(|| {
        let peer = Peer::new("stop");
        let held = [peer.connect(), peer.connect()];
        let child = keepsweep("audit --format ndjson --every 100ms").stdout(Stdio::piped()).spawn();
        let mut child = Ended(child.expect("starts"));
        let mut out = BufReader::new(child.0.stdout.take().expect("piped"));
        for _ in &held {
            let mut line = String::new();
            out.read_line(&mut line).expect("a line");
            assert!(line.contains("\"state\":\"alive\""), "{line}");
        }
        peer.falls_silent();
        // Both are asked again, and neither can answer.
        await_condition("two probes in a later round", || peer.swallowed() >= 2);
        kill(Pid::from_raw(child.0.id() as i32), Signal::SIGINT).expect("signalled");
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).expect("read");
        assert_eq!(child.0.wait().expect("ends").code(), Some(130));
        let rest = records(&rest);
        assert_eq!(rest.len(), 1, "{rest:?}");
        let counts = ["peers", "alive", "undetermined"].map(|count| rest[0][count].as_u64());
        assert_eq!(counts, [Some(2), Some(2), Some(0)], "{}", rest[0]);
        assert_eq!(rest[0]["by_process"][0]["alive"], 2, "{}", rest[0]);
    });
}

#[test]
fn a_reader_that_goes_away_ends_the_rounds() {
    in_namespace(|| {
        let peer = Peer::new("pipe");
        let _held = peer.connect();
        let fifo = tempfile::tempdir().expect("a directory");
        let fifo = fifo.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
        for (output, every) in [("-".to_owned(), "1h"), (fifo.display().to_string(), "50ms")] {
            let args = format!("audit --format ndjson --every {every} -o {output}");
            let child = keepsweep(&args).stdout(Stdio::piped()).spawn();
            let mut child = Ended(child.expect("starts"));
            let reader: Box<dyn Read> = match output == "-" {
                true => Box::new(child.0.stdout.take().expect("piped")),
                false => Box::new(File::open(&fifo).expect("opened")),
            };
            let mut reader = BufReader::new(reader);
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line");
            assert!(line.contains("\"change\":\"new\""), "{line}");
            // Nothing changes from here on, so that nothing is written.
            drop(reader);
            let mut ended = None;
            await_condition("its end", || {
                ended = child.0.try_wait().expect("asked for");
                ended.is_some()
            });
            assert_eq!(ended.and_then(|status| status.code()), Some(0), "{args}");
        }
    });
}

/// Before anything is asked, and before earlier results are gone. What nobody has named is only a note.
#[test]
fn source_ports_that_are_taken_are_refused() {
    in_namespace(|| {
        let peer = Peer::new("ports");
        let _held = peer.connect();
        let _here = TcpListener::bind((HERE, 700)).expect("bind");
        let _there = peer.namespace.enter(|| TcpListener::bind((THERE, 800)).expect("bind"));
        let results = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(results.path(), "earlier").expect("written");
        peer.falls_silent();
        let there = &peer.namespace.0;
        for (args, why) in [
            ("--source-ports 50000-61000", "overlap this host's ephemeral ports".to_owned()),
            // Also if there is nobody to be asked.
            ("--peer 203.0.113.1 --source-ports 50000-61000", "overlap this host's".to_owned()),
            ("--source-ports 600-750", format!("are in use on this host: LISTEN {HERE}:700")),
            (
                &format!("--netns {there} --source-ports 600-900"),
                format!("network namespace {there}: source ports 600-900 are in use"),
            ),
        ] {
            let args = format!("audit {args} -o {}", results.path().display());
            let output = keepsweep(&args).output().expect("runs");
            assert_eq!(output.status.code(), Some(2), "{args}: {}", said(&output));
            assert!(said(&output).contains(&why), "{args}: {}", said(&output));
            assert!(said(&output).contains("with --source-ports LO-HI"), "{}", said(&output));
        }
        assert_eq!(peer.swallowed(), 0);
        assert_eq!(std::fs::read(results.path()).expect("read"), b"earlier");
        let records = audited("--source-ports 750-900", 1);
        assert_eq!(text(&records[0], "reason"), "host-silent", "others go");
    });
}

/// Nothing can be written from the first record on.
#[test]
fn a_full_disk_ends_the_rounds() {
    in_namespace(|| {
        let peer = Peer::new("full");
        let _held = peer.connect();
        for format in ["table", "ndjson", "csv"] {
            let args = format!("audit --format {format} --every 1s -o /dev/full");
            let child = keepsweep(&args).stderr(Stdio::piped()).spawn();
            let mut child = Ended(child.expect("starts"));
            let mut ended = None;
            await_condition("its end", || {
                ended = child.0.try_wait().expect("asked for");
                ended.is_some()
            });
            let mut said = String::new();
            let mut stderr = child.0.stderr.take().expect("piped");
            stderr.read_to_string(&mut said).expect("UTF-8");
            assert_eq!(ended.and_then(|status| status.code()), Some(3), "{args}: {said}");
            let why = "write to /dev/full: No space left on device (os error 28); 0 of 1 records";
            assert!(said.contains(why), "{args}: {said}");
        }
    });
}

/// A firewall's answer to the first probe, after the peer's own to the second.
#[test]
fn a_late_reset_does_not_reach_the_socket() {
    in_namespace(|| {
        let peer = Peer::new("late");
        // Neither has said a word: there is nothing old to acknowledge.
        let client = TcpStream::connect((THERE, 7000)).expect("connect");
        let (server, _) = peer.listener.accept().expect("accept");
        peer.falls_silent();
        let child = keepsweep("audit --format ndjson").stdout(Stdio::piped()).spawn();
        let mut child = Ended(child.expect("starts"));
        await_condition("a probe", || peer.swallowed() > 0);
        peer.speaks_again();
        let mut line = String::new();
        let mut out = BufReader::new(child.0.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("a line");
        let record: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(text(&record, "state"), "alive", "{record}");
        assert!(record["probes"].as_u64() >= Some(2), "{record}");
        peer.resets(&client, record["rcv_nxt"].as_u64().expect("a number") as u32);
        assert_eq!(child.0.wait().expect("ends").code(), Some(0));
        is_whole(&mut Pair { client, server });
    });
}

/// Each thread's effective capabilities, by the thread's number; the process's own is the first.
fn capabilities(pid: u32) -> Vec<(u32, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    let mut threads: Vec<u32> = threads.collect();
    threads.sort_unstable_by_key(|&thread| (thread != pid, thread));
    let held = threads.into_iter().filter_map(|thread| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
        // It may have ended.
        let status = status.ok()?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        Some((thread, u64::from_str_radix(effective.trim(), 16).expect("a number")))
    });
    held.collect()
}

#[test]
fn threads_hold_no_capability_that_they_do_not_need() {
    in_namespace(|| {
        let peer = Peer::new("caps");
        let _held = peer.connect();
        peer.falls_silent();
        let mask = |held: &[Capability]| -> u64 {
            held.iter().map(|capability| 1 << capability.index()).sum()
        };
        let others = mask(privilege::OTHERS);
        let own = mask(privilege::SWEEP) | mask(privilege::CONNECTIONS);
        // Not all of them: those are other tests'.
        let netns = std::fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino();
        let netns = format!("--netns net:[{netns}]");
        for (args, main) in [
            ("", 0),
            (&*netns, 0),
            ("--every 1s", own),
            (&format!("{netns} --every 1s"), own | others),
        ] {
            let args = format!("audit -q {args}");
            let before = peer.swallowed();
            let child = keepsweep(&args).stdout(Stdio::null()).spawn();
            let child = Ended(child.expect("starts"));
            // So that it has opened all that it opens.
            await_condition("a probe", || peer.swallowed() > before);
            let held = capabilities(child.0.id());
            assert!(held.len() > 4, "{args}: {held:?}");
            assert_eq!(held[0], (child.0.id(), main), "{args}: {held:x?}");
            // One asks the silent peers' hosts later, for which it opens another sweep; and one reads
            // connection tracking, where the kernel has it.
            let mut others: Vec<_> = held[1..].iter().map(|(_, held)| *held).collect();
            let conntrack = mask(&[Capability::CAP_NET_ADMIN]);
            others.retain(|held| *held != conntrack);
            others.sort_unstable();
            assert_eq!(others.pop(), Some(own), "{args}: {held:x?}");
            assert!(others.iter().all(|held| *held == 0), "{args}: {held:x?}");
        }
    });
}

#[test]
fn our_own_trouble_is_not_charged_to_the_connection() {
    in_namespace(|| {
        let peer = Peer::new("trouble");
        let held = peer.connect();
        let evidence = || {
            let records = audited("", 1);
            let record = of(&records, &held.client);
            assert_eq!(
                (text(record, "state"), text(record, "reason")),
                ("undetermined", "observer"),
                "{record}"
            );
            text(&record["evidence"][0], "kind").to_owned()
        };
        // Its carrier is gone: the route is still there.
        ip(&format!("-n {} link set up0 down", peer.namespace.0));
        assert_eq!(evidence(), "link-down");
        ip(&format!("-n {} link set up0 up", peer.namespace.0));
        // It is switched off: the route is gone with it.
        ip("link set up0 down");
        assert_eq!(evidence(), "link-down");
        ip("link set up0 up");
        ip(&format!("address delete {HERE}/24 dev up0"));
        assert_eq!(evidence(), "address-lost");
        ip(&format!("address add {HERE}/24 dev up0"));
        let records = audited("", 0);
        assert_eq!(text(of(&records, &held.client), "state"), "alive");
        // What has another cause is still called by its name.
        ip(&format!("route add unreachable {THERE}"));
        let records = audited("", 1);
        assert_eq!(text(of(&records, &held.client), "reason"), "no-route");
    });
}

/// While it is asked.
#[test]
fn a_link_that_goes_down_meanwhile_is_not_charged_to_the_connections() {
    in_namespace(|| {
        let peer = Peer::new("meanwhile");
        let held: Vec<_> = (0..4).map(|_| peer.connect()).collect();
        let there = |command: &str| format!("-n {} {command}", peer.namespace.0);
        for (undo, cut, kind) in [
            (None, there("link set up0 down"), "link-down"),
            (Some(there("link set up0 up")), "link set up0 down".into(), "link-down"),
            (
                Some("link set up0 up".into()),
                format!("address delete {HERE}/24 dev up0"),
                "address-lost",
            ),
        ] {
            if let Some(undo) = undo {
                ip(&undo);
                // What was in flight is sent once more, by the kernel and in its own time.
                let mut server = &held[0].server;
                server.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
                server.read_exact(&mut [0; 7]).expect("it comes through in the end");
                let records = audited("", 0);
                assert_eq!(records.len(), held.len() + 1, "it is well again");
            }
            peer.falls_silent();
            // In flight to the end.
            (&held[0].client).write_all(b"unheard").expect("written");
            let child = keepsweep("audit --format ndjson").stdout(Stdio::piped()).spawn();
            let child = child.expect("starts");
            await_condition("probes", || peer.swallowed() >= 4);
            ip(&cut);
            peer.speaks_again();
            let output = child.wait_with_output().expect("ends");
            let records = records(&output.stdout);
            for pair in &held {
                let record = of(&records, &pair.client);
                let said = (text(record, "state"), text(record, "reason"));
                assert_eq!(said, ("undetermined", "observer"), "{cut}: {record}");
                let seen = record["evidence"].as_array().and_then(|seen| seen.last());
                assert_eq!(seen.map(|seen| text(seen, "kind")), Some(kind), "{cut}: {record}");
            }
        }
    });
}

#[test]
fn an_application_asks_about_its_own_socket() {
    in_namespace(|| {
        let peer = Peer::new("own");
        let mut held = peer.connect();
        let verdict = audit::probe(&held.client).expect("asked");
        assert_eq!((verdict.state, verdict.reason), (State::Alive, Reason::Ack), "{verdict:?}");
        assert_eq!(verdict.peer, held.client.peer_addr().expect("an address"));
        is_whole(&mut held);
        let mut plan = audit::PLAN;
        plan.keepalive.interval = Duration::from_millis(500);
        plan.keepalive.count = 3;
        peer.falls_silent();
        let verdict = audit::probe_with(&held.client, plan).expect("asked");
        assert_eq!((verdict.state, verdict.reason), (State::Down, Reason::Silent), "{verdict:?}");
        // This thread has kept what it needs to do so again.
        peer.speaks_again();
        let verdict = audit::probe(&held.client).expect("asked");
        assert_eq!(verdict.state, State::Alive, "{verdict:?}");
        is_whole(&mut held);

        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let refused = audit::probe(&listener).expect_err("not connected");
        assert!(matches!(refused, AuditError::Usage(_)), "{refused}");
        assert!(refused.to_string().contains("it must be connected"), "{refused}");
        let file = File::open("/proc/self/comm").expect("a file");
        let refused = audit::probe(&file).expect_err("not a socket").to_string();
        assert!(refused.contains("get SO_COOKIE"), "{refused}");
    });
}

#[test]
fn a_namespace_that_vanishes_takes_none_with_it() {
    in_namespace(|| {
        let (stays, goes) = (Named::new("stays"), Named::new("goes"));
        let there = |named: &Named| {
            named.enter(|| {
                ip("address add 10.77.67.1/32 dev lo");
                pair("10.77.67.1", "10.77.67.1")
            })
        };
        let (kept, lost) = (there(&stays), there(&goes));
        let peer: ipnet::IpNet = "10.77.67.1/32".parse().expect("a prefix");
        let audit = Audit::new().every_netns().peer(peer);
        let listing = audit.list().expect("listed");
        assert_eq!(listing.len(), 4);
        let name = goes.0.clone();
        drop((goes, lost));
        let control = Control::default();
        let mut said = std::collections::BTreeMap::new();
        let asked = audit.probe(listing, &control, &mut |outcome| {
            let key = (outcome.listed.netns.to_string(), outcome.verdict.state);
            *said.entry(key).or_insert(0) += 1;
        });
        let summary = asked.expect("the other one is asked");
        assert_eq!(
            said,
            [((stays.0.clone(), State::Alive), 2), ((name.clone(), State::Undetermined), 2)].into()
        );
        assert_eq!((summary.peers, summary.faults.len()), (4, 0));
        let notices: Vec<String> = std::iter::from_fn(|| control.notices.pop()).collect();
        assert!(
            notices.iter().any(|notice| notice.contains(&format!("{name} is gone"))),
            "{notices:?}"
        );
        drop(kept);
    });
}
