//! Notices that something about this host's interfaces, addresses, routes or rules has changed.
#![forbid(unsafe_code)]

use super::IoError;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Multicast groups of rtnetlink (linux/rtnetlink.h): links, addresses, routes and rules of both
/// families, and next hop objects.
const GROUPS: [libc::c_uint; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Listens for changes. It does not say what has changed: messages can be lost (ENOBUFS), so that
/// whoever wants to know reads the whole state again.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    waker: Waker,
    buffer: Vec<u8>,
}

/// Ends a [`Watch::wait`] from another thread, and all later ones.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Wakes whoever waits.
    pub fn wake(&self) {
        // Fails only if the counter is full: then it is awake.
        let _ = self.0.write(1);
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Something about the host changed.
    Changed,
    /// Somebody called [`Waker::wake`].
    Called,
    /// The time is up.
    Late,
}

impl Watch {
    /// Begins to listen; needs no privilege.
    ///
    /// # Errors
    /// The kernel refused a netlink socket or membership in a group.
    pub fn open() -> Result<Self, IoError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            for group in GROUPS {
                match socket.add_membership(group) {
                    // RTNLGRP_NEXTHOP: Linux 5.3.
                    Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
                    _ => {}
                }
            }
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok((socket, EventFd::from_flags(flags)?))
        };
        let (socket, event) = open().map_err(|source| failed("watch for changes", source))?;
        Ok(Watch { socket, waker: Waker(Arc::new(event)), buffer: vec![0; 8192] })
    }

    /// Returns what ends waiting.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Waits up to `wait` for a change, and takes note of all that there are.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(&mut self, wait: Duration) -> Result<Woken, IoError> {
        let mut fds = [
            PollFd::new(self.waker.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        let woken = wait_for(&mut fds, wait)?;
        if woken == Woken::Changed {
            self.drain().map_err(|source| failed("read changes", source))?;
        }
        Ok(woken)
    }

    /// Waits for `span`, whatever changes meanwhile; returns early, with `false`, if called.
    ///
    /// # Errors
    /// The wait itself failed.
    pub fn pause(&self, span: Duration) -> Result<bool, IoError> {
        let mut fds = [PollFd::new(self.waker.0.as_fd(), PollFlags::POLLIN)];
        Ok(wait_for(&mut fds, span)? == Woken::Late)
    }

    /// Throws away what has been told, within bounds: what comes faster than it is thrown away is a
    /// change as well.
    fn drain(&mut self) -> io::Result<()> {
        for _ in 0..4096 {
            match self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                // Messages were lost: that something changed is known already.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Waits until one of `fds` is ready, of which the first one is the waker's.
fn wait_for(fds: &mut [PollFd<'_>], wait: Duration) -> Result<Woken, IoError> {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(0) | Err(Errno::EINTR) => Ok(Woken::Late),
        Ok(_) if fds[0].any() == Some(true) => Ok(Woken::Called),
        Ok(_) => Ok(Woken::Changed),
        Err(errno) => Err(failed("poll netlink socket", errno.into())),
    }
}

fn failed(operation: &'static str, source: io::Error) -> IoError {
    IoError { operation, object: "this host".to_owned(), source, remedy: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_every_wait() {
        let mut watch = Watch::open().expect("a netlink socket");
        assert!(watch.pause(Duration::from_millis(1)).expect("waited"));
        watch.waker().wake();
        let long = Duration::from_secs(3600);
        assert_eq!(watch.wait(long).expect("woken"), Woken::Called);
        assert!(!watch.pause(long).expect("woken"));
    }
}
