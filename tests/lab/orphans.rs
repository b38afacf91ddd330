//! Connections whose kernel socket is gone without a trace: opened by the kernel, read out and taken
//! away by TCP_REPAIR (net/ipv4/tcp.c), so that the peer holds them and nobody on our side does; and
//! put back, to see that nothing happened to them.

use keepsweep::time::Clock;
use nix::libc::{self, c_int};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const TCP_REPAIR: c_int = 19;
const TCP_REPAIR_QUEUE: c_int = 20;
const TCP_QUEUE_SEQ: c_int = 21;
const TCP_TIMESTAMP: c_int = 24;
const RECV_QUEUE: c_int = 1;
const SEND_QUEUE: c_int = 2;

/// The numbers of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Orphan {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub snd_una: u32,
    pub rcv_nxt: u32,
    pub ts_offset_ms: u32,
}

fn set(stream: &impl AsRawFd, option: c_int, value: c_int) {
    let (at, len) = ((&raw const value).cast(), size_of::<c_int>() as u32);
    // SAFETY: `at` points to `len` octets that outlive the call.
    let done = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, at, len) };
    assert_eq!(done, 0, "TCP option {option}: {}", std::io::Error::last_os_error());
}

fn get(stream: &impl AsRawFd, option: c_int) -> u32 {
    let (mut value, mut len) = (0u32, size_of::<u32>() as u32);
    let at = (&raw mut value).cast();
    // SAFETY: `at` points to `len` octets that outlive the call.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, at, &raw mut len)
    };
    assert_eq!(done, 0, "TCP option {option}: {}", std::io::Error::last_os_error());
    value
}

fn queue_seq(stream: &TcpStream, queue: c_int) -> u32 {
    set(stream, TCP_REPAIR_QUEUE, queue);
    get(stream, TCP_QUEUE_SEQ)
}

/// Says something to an echoing peer and waits for the answer.
fn converse(stream: &mut TcpStream, text: &[u8]) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream.write_all(text).expect("write");
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).expect("the echo");
    assert_eq!(answer, text);
}

impl Orphan {
    /// Reads the numbers of a connection that is at rest, and takes its socket away.
    pub fn of(stream: TcpStream) -> Orphan {
        let orphan = Orphan::read(&stream);
        // In repair mode a close sends nothing (tcp_close).
        drop(stream);
        orphan
    }

    /// Reads the numbers of a connection that is at rest; its socket is left in repair mode.
    pub fn read(stream: &TcpStream) -> Orphan {
        set(stream, TCP_REPAIR, 1);
        let monotonic_ms = (Clock.now().as_nanos() / 1_000_000) as u32;
        Orphan {
            local: stream.local_addr().expect("an address"),
            peer: stream.peer_addr().expect("an address"),
            snd_una: queue_seq(stream, SEND_QUEUE),
            rcv_nxt: queue_seq(stream, RECV_QUEUE),
            ts_offset_ms: get(stream, TCP_TIMESTAMP).wrapping_sub(monotonic_ms),
        }
    }

    /// Gives the connection a socket again, as if it had never been without.
    pub fn adopt(&self) -> TcpStream {
        let family = if self.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        // SAFETY: just opened, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, TCP_REPAIR, 1);
        let address = nix::sys::socket::SockaddrStorage::from;
        nix::sys::socket::bind(fd.as_raw_fd(), &address(self.local)).expect("bind");
        for (queue, seq) in [(SEND_QUEUE, self.snd_una), (RECV_QUEUE, self.rcv_nxt)] {
            set(&fd, TCP_REPAIR_QUEUE, queue);
            set(&fd, TCP_QUEUE_SEQ, seq as c_int);
        }
        // No handshake either.
        nix::sys::socket::connect(fd.as_raw_fd(), &address(self.peer)).expect("connect");
        set(&fd, TCP_REPAIR, 0);
        TcpStream::from(fd)
    }
}

/// Runs `job` in a network namespace, by its full name.
pub fn inside<T: Send>(namespace: &str, job: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{namespace}")).expect("the namespace");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns");
            job()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Opens a connection to each of `peers`, exchanges a few octets with it, and takes its socket away.
pub fn orphan(peers: impl Iterator<Item = IpAddr>, port: u16) -> Vec<Orphan> {
    let connect = |peer| {
        let mut stream = TcpStream::connect((peer, port)).expect("connect");
        converse(&mut stream, b"before");
        Orphan::of(stream)
    };
    peers.map(connect).collect()
}

/// Takes each connection up again, exchanges a few octets more, and takes its socket away.
pub fn continue_all(orphans: &mut [Orphan]) {
    for orphan in orphans {
        let mut stream = orphan.adopt();
        converse(&mut stream, b"and after");
        *orphan = Orphan { ts_offset_ms: orphan.ts_offset_ms, ..Orphan::of(stream) };
    }
}
