//! Sockets with every trait that a reading tells, and what others say of them.

use keepsweep::io::host::{Connection, Numbers, Reader, TcpState};
use keepsweep::time::Clock;
use keepsweep::wire::{Checksums, Flags, LinkType, Packet, SeqNumber, parse};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, socket,
    sockopt,
};
use std::mem;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Both ends of a connection of this namespace to itself.
pub struct Pair {
    pub ours: TcpStream,
    pub theirs: TcpStream,
    pub listener: TcpListener,
}

impl Pair {
    pub fn new(family: Family) -> Pair {
        let listener = family.listen();
        let ours = family.connect(&listener);
        let theirs = listener.accept().unwrap().0;
        Pair { ours, theirs, listener }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Family {
    V4,
    V6,
    Mapped,
}

pub const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

impl Family {
    fn address(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.1:0",
            Family::V6 => "[::1]:0",
            Family::Mapped => "[::ffff:127.0.0.1]:0",
        }
    }

    pub fn listen(self) -> TcpListener {
        TcpListener::bind(self.address()).unwrap()
    }

    pub fn connect(self, to: &TcpListener) -> TcpStream {
        TcpStream::connect(to.local_addr().unwrap()).unwrap()
    }
}

/// A socket that has called connect, without waiting for it.
pub fn connect_later(to: &TcpListener) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp).unwrap();
    let to = SockaddrStorage::from(to.local_addr().unwrap());
    let started = nix::sys::socket::connect(fd.as_raw_fd(), &to);
    assert_eq!(started, Err(nix::errno::Errno::EINPROGRESS));
    fd
}

/// An address as it is on the wire.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn all(reader: &Reader) -> Vec<Connection> {
    let mut connections = Vec::new();
    let reading = reader.read(&mut |connection| connections.push(connection)).unwrap();
    assert_eq!(reading.connections, connections.len());
    connections
}

/// The connection of a stream.
#[track_caller]
pub fn find(reader: &Reader, stream: &TcpStream) -> Connection {
    let ends = (plain(stream.local_addr().unwrap()), plain(stream.peer_addr().unwrap()));
    let mut found = all(reader);
    found.retain(|connection| (connection.local, connection.peer) == ends);
    assert_eq!(found.len(), 1, "{ends:?}: {found:?}");
    found.remove(0)
}

#[track_caller]
pub fn numbers(reader: &Reader, stream: &TcpStream) -> Numbers {
    find(reader, stream).numbers.expect("a full socket")
}

/// Waits until `condition` holds, and panics if it does not within ten seconds.
#[track_caller]
pub fn await_that(mut condition: impl FnMut() -> bool) {
    let start = Clock.now();
    while !condition() {
        assert!(Clock.now().since(start) < Duration::from_secs(10), "waited in vain");
        Clock.sleep(Duration::from_millis(1));
    }
}

/// A line of `ss`.
#[derive(Debug)]
pub struct Ss {
    pub state: TcpState,
    pub local: SocketAddr,
    pub peer: String,
    pub send_queue: u32,
    pub text: String,
}

impl Ss {
    /// Everything that `ss` lists, or what `filter` leaves of it.
    pub fn all(options: &str, filter: &[&str]) -> Vec<Ss> {
        let output = Command::new("ss").arg(options).args(filter).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(Ss::parse).collect()
    }

    #[track_caller]
    pub fn of(stream: &TcpStream) -> Ss {
        let local = format!("sport = :{}", stream.local_addr().unwrap().port());
        let peer = format!("dport = :{}", stream.peer_addr().unwrap().port());
        let mut lines = Ss::all("-tinoemOHa", &[&local, "and", &peer]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }

    fn parse(line: &str) -> Ss {
        let fields: Vec<_> = line.split_whitespace().collect();
        let state = match fields[0] {
            "ESTAB" => TcpState::Established,
            "SYN-SENT" => TcpState::SynSent,
            "SYN-RECV" => TcpState::SynReceived,
            "FIN-WAIT-1" => TcpState::FinWait1,
            "FIN-WAIT-2" => TcpState::FinWait2,
            "TIME-WAIT" => TcpState::TimeWait,
            "CLOSE-WAIT" => TcpState::CloseWait,
            "LAST-ACK" => TcpState::LastAck,
            "LISTEN" => TcpState::Listen,
            "CLOSING" => TcpState::Closing,
            other => panic!("{other}"),
        };
        Ss {
            state,
            send_queue: fields[2].parse().unwrap(),
            local: plain(fields[3].replace("%lo", "").replace('*', "[::]").parse().unwrap()),
            peer: fields[4].to_owned(),
            text: fields[5..].join(" "),
        }
    }

    /// What follows `key:`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.text.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key).map(|value| value.parse().unwrap())
    }

    pub fn has(&self, word: &str) -> bool {
        self.text.split(' ').any(|other| other == word)
    }
}

pub fn set_option<T>(socket: impl AsFd, level: i32, name: i32, value: &T) {
    // SAFETY: `value` is `size_of::<T>()` octets long.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// What of the written is not acknowledged: SIOCOUTQ.
pub fn unacknowledged(stream: &TcpStream) -> u32 {
    let mut octets = 0_i32;
    // SAFETY: the request writes an int.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut octets) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    octets as u32
}

/// Signs the segments between `socket` and `peer` (TCP-MD5, RFC 2385).
pub fn sign(socket: impl AsFd, peer: SocketAddr) {
    // struct tcp_md5sig (linux/tcp.h).
    #[repr(C)]
    struct Md5Sig {
        address: libc::sockaddr_storage,
        flags: u8,
        prefix_len: u8,
        key_len: u16,
        ifindex: i32,
        key: [u8; 80],
    }
    // SAFETY: all zero is a valid sockaddr_storage.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let SocketAddr::V4(peer) = peer else { panic!("IPv4 only") };
    let v4 = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(peer.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: a sockaddr_storage has room for every kind of address, and its alignment.
    unsafe { (&raw mut address).cast::<libc::sockaddr_in>().write(v4) };
    let mut key = [0; 80];
    key[..3].copy_from_slice(b"key");
    let option = Md5Sig { address, flags: 0, prefix_len: 0, key_len: 3, ifindex: 0, key };
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &option);
}

pub fn nft(rules: &str) {
    use std::io::Write;
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

/// Drops what comes in and `matches`.
pub fn drop_incoming(matches: &str) {
    nft(&format!(
        "table inet lab {{ chain in {{ type filter hook input priority 0; {matches} drop; }}; }}"
    ));
}

/// Writes to /proc/sys, which shows the namespace of the thread that opens it.
pub fn set_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// Makes connections to 127.0.0.1 count their timestamps in microseconds, by a feature of the route
/// that `ip` does not know everywhere (RTAX_FEATURE_TCP_USEC_TS, linux/rtnetlink.h).
pub fn count_microseconds_on_loopback() {
    use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
    const USEC_TS: u32 = 1 << 4;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut request = Vec::new();
    let attribute = |kind: u16, value: &[u8]| {
        [&(4 + value.len() as u16).to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    // struct rtmsg: all of 127.0.0.1, in the local table, of host scope, to be delivered here.
    let scope = libc::RT_SCOPE_HOST;
    request.extend([libc::AF_INET as u8, 32, 0, 0, 255, 3, scope, libc::RTN_LOCAL, 0, 0, 0, 0]);
    request.extend(attribute(libc::RTA_DST, &[127, 0, 0, 1]));
    request.extend(attribute(libc::RTA_OIF, &1_u32.to_ne_bytes()));
    let features = attribute(12, &USEC_TS.to_ne_bytes());
    request.extend(attribute(libc::RTA_METRICS, &features));
    let len = request.len() as u32 + 16;
    let kind = libc::RTM_NEWROUTE;
    let header =
        [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags as u16).to_ne_bytes(), &[0; 8]];
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.send(&[&header.concat(), &request[..]].concat(), 0).unwrap();
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0).unwrap();
    let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(error, 0, "{}", std::io::Error::from_raw_os_error(-error));
}

/// A segment on the wire.
#[derive(Clone, Debug)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: Flags,
    pub wnd: u16,
    pub len: u32,
    pub tsval: Option<u32>,
    pub tos: u8,
}

/// Every frame of the loopback interface from now on.
pub struct Tap(OwnedFd);

impl Tap {
    pub fn open() -> Tap {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
        setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        Tap(fd)
    }

    /// The segments since the last call, each once though lo shows it going and coming.
    pub fn segments(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            // SAFETY: all zero is a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
            let mut from_len = size_of_val(&from) as u32;
            // SAFETY: the buffer and the address are as long as the call is told.
            let len = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    MsgFlags::MSG_DONTWAIT.bits(),
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let Ok(len) = usize::try_from(len) else { return seen };
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let frame = &buffer[..len];
            let packet = parse(frame, LinkType::Ethernet, Checksums::Trust);
            let Ok(Packet::Tcp(segment)) = packet else { continue };
            let tos = match segment.ip.src.is_ipv4() {
                true => frame[15],
                false => frame[14] << 4 | frame[15] >> 4,
            };
            seen.push(Seen {
                from: SocketAddr::new(segment.ip.src, segment.src_port),
                to: SocketAddr::new(segment.ip.dst, segment.dst_port),
                seq: segment.seq,
                ack: segment.ack,
                flags: segment.flags,
                wnd: segment.wnd,
                len: segment.payload.len() as u32,
                tsval: segment.options.timestamps.map(|timestamps| timestamps.tsval),
                tos,
            });
        }
    }
}

/// fe80::1 on the loopback interface, without a port.
pub fn link_local() -> SocketAddr {
    let index = nix::net::if_::if_nametoindex("lo").unwrap();
    SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 0, 0, index).into()
}
