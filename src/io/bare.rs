//! The barest loops there are over the sockets of the paths: what a path's own work is measured by.
//!
//! They send one constant frame, keep no account of anything else, and wait for nothing.

use super::IoError;
use super::batch::Header;
use nix::errno::Errno;
use std::iter::{Copied, Cycle};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::slice;

/// Frames handed to the kernel before a loop looks at the clock again.
pub const BATCH: usize = 256;

/// A loop that sends one constant frame.
pub trait BareLoop {
    /// Sends up to [`BATCH`] frames and returns how many the kernel took; none is a shortage.
    ///
    /// # Errors
    /// The interface went away, or the socket failed.
    fn send(&mut self) -> Result<usize, IoError>;
}

/// Sends a constant frame by `sendmmsg`, or one by one by `sendto`.
///
/// A raw socket is told where to with each: to all peers in turn, since for one alone the kernel, and what
/// there is in it to look at packets, would find the same route in the same cache each time.
#[derive(Debug)]
pub struct Bare<'a> {
    socket: BorrowedFd<'a>,
    interface: String,
    // Heap blocks that do not move with this value: the headers point into them.
    frame: Box<[u8]>,
    /// One a header, or none.
    names: Box<[libc::sockaddr_in]>,
    destinations: Cycle<Copied<slice::Iter<'a, Ipv4Addr>>>,
    _piece: Box<libc::iovec>,
    headers: Box<[Header]>,
    one_by_one: bool,
}

impl<'a> Bare<'a> {
    pub(super) fn new(
        socket: BorrowedFd<'a>,
        interface: &str,
        frame: &[u8],
        to: &'a [Ipv4Addr],
    ) -> Self {
        let mut frame: Box<[u8]> = frame.into();
        // SAFETY: sockaddr_in is plain old data, for which all zero is a valid value.
        let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        name.sin_family = libc::AF_INET as libc::sa_family_t;
        let mut names = vec![name; if to.is_empty() { 0 } else { BATCH }].into_boxed_slice();
        let iov_len = frame.len();
        let mut piece = Box::new(libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len });
        // SAFETY: mmsghdr is plain old data; all zero is a message without address and control data.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = &raw mut *piece;
        header.msg_hdr.msg_iovlen = 1;
        let mut headers = vec![Header(header); BATCH].into_boxed_slice();
        for (Header(header), name) in headers.iter_mut().zip(&mut names) {
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        let interface = interface.to_owned();
        let destinations = to.iter().copied().cycle();
        let _piece = piece;
        Bare { socket, interface, frame, names, destinations, _piece, headers, one_by_one: false }
    }

    /// Has the frames sent one by one, by `sendto`.
    #[must_use]
    pub fn one_by_one(self) -> Self {
        Bare { one_by_one: true, ..self }
    }

    fn send_one(&mut self) -> Result<usize, Errno> {
        let (name, octets) = match (self.names.first_mut(), self.destinations.next()) {
            (Some(name), Some(to)) => {
                name.sin_addr.s_addr = u32::from(to).to_be();
                ((&raw const *name).cast(), size_of::<libc::sockaddr_in>())
            }
            _ => (std::ptr::null(), 0),
        };
        // SAFETY: the kernel reads the frame and, if there is one, the address of the given sizes.
        let result = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                self.frame.as_ptr().cast(),
                self.frame.len(),
                libc::MSG_DONTWAIT,
                name,
                octets as libc::socklen_t,
            )
        };
        Errno::result(result).map(|_| 1)
    }

    fn send_batch(&mut self) -> Result<usize, Errno> {
        for (name, to) in self.names.iter_mut().zip(&mut self.destinations) {
            name.sin_addr.s_addr = u32::from(to).to_be();
        }
        // SAFETY: every header names the one iovec, which names the frame, and its own address or none;
        // all live as long as this value. The kernel writes only `msg_len` of the headers.
        let result = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr().cast(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        Errno::result(result).map(|taken| taken as usize)
    }
}

impl BareLoop for Bare<'_> {
    fn send(&mut self) -> Result<usize, IoError> {
        let result = if self.one_by_one {
            let mut sent = 0;
            loop {
                match self.send_one() {
                    Ok(one) if sent + one < BATCH => sent += one,
                    Ok(one) => break Ok(sent + one),
                    Err(_) if sent > 0 => break Ok(sent),
                    Err(errno) => break Err(errno),
                }
            }
        } else {
            self.send_batch()
        };
        match result {
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => Ok(0),
            result => result.map_err(|errno| IoError {
                operation: "send a constant frame",
                object: self.interface.clone(),
                source: errno.into(),
                remedy: "",
            }),
        }
    }
}
