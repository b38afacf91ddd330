//! What sockets are asked and told that no crate names.

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::socket::{AddressFamily, setsockopt, sockopt};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// The key of every signed connection.
const KEY: &[u8] = b"keepsweep lab";
/// TCP_MD5SIG_EXT and its flag for a prefix (include/uapi/linux/tcp.h).
const TCP_MD5SIG_EXT: c_int = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
const SO_COOKIE: c_int = 57;

/// A part of struct tcp_info (include/uapi/linux/tcp.h).
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// TCP_ESTABLISHED = 1, …
    pub state: u8,
    pub unacked: u32,
    pub last_ack_recv_ms: u32,
    pub notsent_bytes: u32,
    pub snd_wnd: u32,
    /// Since Linux 6.2.
    pub rcv_wnd: u32,
}

/// Reads an option into `value` and returns how many octets there were.
fn get(
    socket: &impl AsRawFd,
    level: c_int,
    option: c_int,
    value: &mut [u8],
) -> Result<usize, Errno> {
    let mut len = value.len() as libc::socklen_t;
    let at = value.as_mut_ptr().cast();
    // SAFETY: `at` points to `len` octets, which outlive the call.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, at, &raw mut len) };
    Errno::result(done).map(|_| len as usize)
}

pub fn info(socket: &impl AsRawFd) -> Result<Info, Errno> {
    let mut octets = [0; 256];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut octets)?;
    let at = |offset: usize| {
        u32::from_ne_bytes(octets[offset..offset + 4].try_into().expect("four octets"))
    };
    Ok(Info {
        state: octets[0],
        unacked: at(24),
        last_ack_recv_ms: at(56),
        notsent_bytes: at(144),
        snd_wnd: at(228),
        rcv_wnd: at(232),
    })
}

pub fn cookie(socket: &impl AsRawFd) -> Result<u64, Errno> {
    let mut octets = [0; 8];
    get(socket, libc::SOL_SOCKET, SO_COOKIE, &mut octets)?;
    Ok(u64::from_ne_bytes(octets))
}

/// Has every segment signed, whoever the peer is. To be said before the connection stands.
pub fn sign(socket: &impl AsRawFd, family: AddressFamily) -> Result<(), Errno> {
    /// struct tcp_md5sig.
    #[repr(C)]
    struct Signature {
        address: libc::sockaddr_storage,
        flags: u8,
        prefix_len: u8,
        key_len: u16,
        interface: c_int,
        key: [u8; 80],
    }
    // SAFETY: all zeroes is a sockaddr_storage: no address of no family.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    address.ss_family = family as libc::sa_family_t;
    let mut signature = Signature {
        address,
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_len: 0,
        key_len: KEY.len() as u16,
        interface: 0,
        key: [0; 80],
    };
    signature.key[..KEY.len()].copy_from_slice(KEY);
    let (at, len) = ((&raw const signature).cast(), size_of::<Signature>() as libc::socklen_t);
    // SAFETY: `at` points to `len` octets, which outlive the call.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_MD5SIG_EXT, at, len) };
    Errno::result(done).map(drop)
}

/// Switches the kernel's keepalive on; times in seconds.
pub fn arm(socket: &impl AsFd, idle: u32, interval: u32, count: u32) -> Result<(), Errno> {
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    setsockopt(socket, sockopt::KeepAlive, &true)
}
