//! How many queues an interface has (`ethtool -l`).

use crate::io::IoError;
use crate::io::guard::interface_name;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Channels {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Returns the number of queues of `interface` that can both send and receive. Needs no privilege.
///
/// A driver that cannot say how many it has has one: what comes in by another passes the XDP program.
///
/// # Errors
/// No such interface.
pub fn queues(interface: &str) -> Result<u32, IoError> {
    let error = |errno: Errno| IoError {
        operation: "count the queues",
        object: interface.to_owned(),
        source: errno.into(),
        remedy: if errno == Errno::ENODEV { "the interface is gone" } else { "" },
    };
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(error)?;
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(error(Errno::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq whose data is, for ETHTOOL_GCHANNELS, an ethtool_channels;
    // both outlive the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    match Errno::result(result) {
        Ok(_) => {
            let rx = channels.rx.saturating_add(channels.combined);
            let tx = channels.tx.saturating_add(channels.combined);
            Ok(rx.min(tx).max(1))
        }
        Err(Errno::EOPNOTSUPP) => Ok(1),
        Err(errno) => Err(error(errno)),
    }
}

/// The same of the interface with this index, whatever its name is by now.
///
/// # Errors
/// No such interface.
pub fn queues_of(ifindex: u32) -> Result<u32, IoError> {
    let gone = |source| IoError {
        operation: "count the queues",
        object: format!("interface {ifindex}"),
        source,
        remedy: "",
    };
    match interface_name(ifindex) {
        Ok(Some(name)) => queues(&name),
        Ok(None) => Err(gone(Errno::ENODEV.into())),
        Err(source) => Err(gone(source)),
    }
}
