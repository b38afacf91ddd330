//! The AF_PACKET path: `sendmmsg` past the queueing discipline out, a TPACKET_V3 ring in.
//!
//! One sending and one receiving socket per egress interface. The sending socket is bound to
//! protocol 0 and so receives nothing; the receiving one takes every protocol (ETH_P_ALL) through
//! a classic BPF filter, because only ETH_P_ALL taps see a frame before tc ingress does, where the
//! guard drops it.

mod block;
mod filter;
mod ports;
mod ring;
mod rx;
mod tx;

pub use filter::{ElsewhereSpec, FilterSpec};
pub use ports::PortRanges;
pub use rx::{PacketRx, RxOptions};
pub use tx::PacketTx;

// As `crate::fuzz`, which alone wants it by this name.
#[cfg(any(all(test, not(loom)), feature = "fuzz"))]
pub(crate) use block::Frames;

use super::IoError;
use super::sockopt::set_option;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// An AF_PACKET socket and the interface it belongs to.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    ifindex: i32,
    interface: String,
}

impl Socket {
    /// Opens a socket that receives nothing until it is bound to a protocol.
    fn open(ifindex: u32, interface: &str) -> Result<Self, IoError> {
        Self::open_as(SockType::Raw, ifindex, interface)
    }

    /// The same for frames (`SockType::Raw`) or for packets from the network header on
    /// (`SockType::Datagram`). Index 0 stands for every interface.
    fn open_as(kind: SockType, ifindex: u32, interface: &str) -> Result<Self, IoError> {
        let error = |source| io_error("open AF_PACKET socket", interface, source);
        let ifindex = i32::try_from(ifindex).map_err(|_| error(Errno::ENODEV.into()))?;
        // Protocol 0 (nix: none): a socket made with a protocol would collect frames of every
        // interface, unfiltered, until it is bound.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, kind, flags, None)
            .map_err(|errno| error(errno.into()))?;
        Ok(Self { fd, ifindex, interface: interface.to_owned() })
    }

    fn error(&self, operation: &'static str, source: io::Error) -> IoError {
        io_error(operation, &self.interface, source)
    }

    /// Sets an integer or structure option that takes the kernel's own layout `T`.
    fn set<T>(
        &self,
        operation: &'static str,
        level: i32,
        option: i32,
        value: &T,
    ) -> Result<(), IoError> {
        set_option(&self.fd, level, option, value)
            .map_err(|errno| self.error(operation, errno.into()))
    }

    /// Binds to the interface and to `protocol` (host order; 0 receives nothing).
    fn bind(&self, protocol: u16) -> Result<(), IoError> {
        // SAFETY: sockaddr_ll is plain old data, for which all zero is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.ifindex;
        // SAFETY: the kernel reads one sockaddr_ll from `address`, which outlives the call.
        let result = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(result)
            .map(drop)
            .map_err(|errno| self.error("bind AF_PACKET socket", errno.into()))?;
        // An interface that is down does not fail the bind: it is left as a pending error.
        self.check("bind AF_PACKET socket")
    }

    /// Says whether the interface is up and has a carrier: ENETDOWN if not, ENODEV if it is gone.
    fn check_link(&self) -> Result<(), Errno> {
        // SAFETY: ifreq is plain old data, for which all zero is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = self.interface.as_bytes();
        // The last octet stays 0. A longer name is none of an interface ("the other interfaces").
        if name.len() >= request.ifr_name.len() {
            return Ok(());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        // SAFETY: SIOCGIFFLAGS reads the name from `request` and writes the flags into it.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        Errno::result(result)?;
        // SAFETY: the call succeeded, so that the flags are what the union holds.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0 {
            return Ok(());
        }
        Err(Errno::ENETDOWN)
    }

    /// Takes the socket's pending error, such as ENETDOWN after the interface went down.
    fn check(&self, operation: &'static str) -> Result<(), IoError> {
        match getsockopt(&self.fd, sockopt::SocketError) {
            Ok(0) => Ok(()),
            Ok(errno) => Err(self.error(operation, io::Error::from_raw_os_error(errno))),
            Err(errno) => Err(self.error(operation, errno.into())),
        }
    }
}

fn io_error(operation: &'static str, interface: &str, source: io::Error) -> IoError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "needs CAP_NET_RAW, try sudo",
        Some(libc::ENETDOWN) => "bring the interface up",
        Some(libc::ENXIO | libc::ENODEV) => "the interface is gone",
        _ => "",
    };
    IoError { operation, object: interface.to_owned(), source, remedy }
}
