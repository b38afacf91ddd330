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

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    cmd: u32,
    data: u32,
}

/// A structure of linux/ethtool.h, with the number of a question that it goes with in front.
trait Question {}
impl Question for Channels {}
impl Question for Value {}

const ETHTOOL_SGRO: u32 = 0x2c;
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
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    match ethtool(interface, &mut channels) {
        Ok(()) => {
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

/// Has a driver join what it receives (GRO), as most do unasked; `veth` also receives in batches then.
///
/// # Errors
/// No CAP_NET_ADMIN, or the driver cannot.
pub fn enable_gro(interface: &str) -> Result<(), IoError> {
    let mut value = Value { cmd: ETHTOOL_SGRO, data: 1 };
    ethtool(interface, &mut value).map_err(|errno| IoError {
        operation: "switch GRO on",
        object: interface.to_owned(),
        source: errno.into(),
        remedy: "",
    })
}

/// Asks the driver something; `T` begins with the number of the question, as linux/ethtool.h has it.
fn ethtool<T: Question>(interface: &str, question: &mut T) -> Result<(), Errno> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(question).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq whose data is the structure that goes with its own first
    // word (the promise of `Question`); both outlive the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(result).map(drop)
}
