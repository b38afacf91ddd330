//! Two network namespaces, ours and the peer's, with two links between them.

use super::frames::{Segment, ethernet};
use keepsweep::io::guard::Guarded;
use keepsweep::time::Clock;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub const PEER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
pub const OURS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];

/// The peer's address and ours.
pub fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    if v6 { (PEER_V6.into(), OURS_V6.into()) } else { (PEER_V4.into(), OURS_V4.into()) }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Peer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Peer {
    fn start() -> Peer {
        let (jobs, queue) = channel::<Job>();
        let (tell_tid, tid) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell_tid.send(nix::unistd::gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        let tid = tid.recv().unwrap();
        Peer { jobs: Some(jobs), thread: Some(thread), tid }
    }

    /// Runs `job` in the peer's namespace.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, result) = channel();
        let job = Box::new(move || tell.send(job()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the job panicked")
    }

    pub fn send(&self, interface: &'static str, frame: Vec<u8>) {
        self.run(move || PacketSocket::open(interface, true).send(&frame));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Interfaces a0 and c0 of ours, b0 and d0 of the peer; all addresses are on a0 and b0.
pub struct Lab {
    pub peer: Peer,
}

impl Lab {
    /// Moves this thread into a new namespace; `None`, with a word about it, without root.
    pub fn new() -> Option<Lab> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "needs root");
            eprintln!("skipped: needs root");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let peer = Peer::start();
        let tid = peer.tid;
        ip(&format!("link add a0 type veth peer name b0 netns {tid}"));
        ip(&format!("link add c0 type veth peer name d0 netns {tid}"));
        set_sysctl("net/ipv4/conf/all/rp_filter", "0");
        configure("a0", "c0", OURS_MAC);
        for address in [OURS_V4, OTHER_V4] {
            ip(&format!("addr add {address}/24 dev a0"));
        }
        for address in [OURS_V6, OTHER_V6] {
            ip(&format!("addr add {address}/64 dev a0 nodad"));
        }
        neighbours("a0", &[PEER_V4.into(), PEER_V6.into()], PEER_MAC);
        peer.run(|| {
            configure("b0", "d0", PEER_MAC);
            ip(&format!("addr add {PEER_V4}/24 dev b0"));
            ip(&format!("addr add {PEER_V6}/64 dev b0 nodad"));
            let ours = [OURS_V4.into(), OTHER_V4.into(), OURS_V6.into(), OTHER_V6.into()];
            neighbours("b0", &ours, OURS_MAC);
        });
        Some(Lab { peer })
    }

    /// An interface of ours, to be guarded both ways.
    pub fn interface(&self, name: &str) -> Guarded {
        let index = nix::net::if_::if_nametoindex(name).unwrap();
        Guarded { index, name: name.to_owned(), is_egress: true }
    }
}

fn configure(first: &str, second: &str, mac: [u8; 6]) {
    let mac = text(mac);
    for interface in [first, second] {
        // No address of its own on a link, hence no traffic that the test did not send.
        set_sysctl(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "1");
        set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        ip(&format!("link set {interface} address {mac} up"));
    }
}

fn neighbours(interface: &str, addresses: &[IpAddr], mac: [u8; 6]) {
    for address in addresses {
        ip(&format!("neigh add {address} dev {interface} lladdr {} nud permanent", text(mac)));
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Runs `ip ARGUMENTS` in this thread's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes to /proc/sys, which shows the namespace of the thread that opens it.
pub fn set_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// Waits until `condition` holds, and panics if it does not within ten seconds.
#[track_caller]
pub fn await_that(mut condition: impl FnMut() -> bool) {
    let clock = Clock;
    let start = clock.now();
    while !condition() {
        assert!(clock.now().since(start) < Duration::from_secs(10), "waited in vain");
        clock.sleep(Duration::from_millis(1));
    }
}

/// The same segment in a frame from us to the peer.
pub fn outbound(segment: &Segment) -> Vec<u8> {
    let mut frame = ethernet(segment);
    frame[..12].copy_from_slice(&[PEER_MAC, OURS_MAC].concat());
    frame
}

/// AF_PACKET, raw, on one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    pub fn open(interface: &str, bypass: bool) -> Self {
        Self::try_open(interface, bypass).unwrap()
    }

    pub fn try_open(interface: &str, bypass: bool) -> io::Result<Self> {
        let all = SockProtocol::EthAll;
        let fd = nix::sys::socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            all,
        )?;
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: `address` is a sockaddr_ll and `len` its size.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        let on: i32 = bypass.into();
        // SAFETY: the option takes an int.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let timeout = nix::sys::time::TimeVal::new(10, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
        Ok(PacketSocket(fd))
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame).unwrap(), frame.len());
    }

    /// Returns the first frame that is wanted; panics after ten seconds without any frame.
    pub fn receive_until(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = [0; 2048];
        for _ in 0..1_000 {
            // A wait with a limit is not taken up again by itself.
            let len = match nix::unistd::read(&self.0, &mut buffer) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.unwrap(),
            };
            if wanted(&buffer[..len]) {
                return buffer[..len].to_vec();
            }
        }
        panic!("not among the first 1000 frames");
    }
}

/// A TCP socket that has a port and does nothing.
pub fn bind(local: SocketAddr) -> OwnedFd {
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let none = None::<SockProtocol>;
    let fd =
        nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, none).unwrap();
    nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(local)).unwrap();
    fd
}

pub fn connect(bound: OwnedFd, peer: SocketAddr) -> TcpStream {
    nix::sys::socket::connect(bound.as_raw_fd(), &SockaddrStorage::from(peer)).unwrap();
    bound.into()
}

/// Connects to `to` from `from`, its port included.
pub fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{bind, connect, socket};
    let fd =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
            .unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    TcpStream::from(fd)
}
