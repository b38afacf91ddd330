//! The raw path's sending end: packets from the IP header on, routed by the kernel.
//!
//! Two sockets for each egress interface, one a family, of protocol IPPROTO_RAW: the kernel takes
//! the IP header as it is (raw(7), IP_HDRINCL; ipv6(7), IPV6_HDRINCL) and such a socket is handed
//! nothing that is of interest to anyone. What is sent passes the output hooks of netfilter, the
//! kernel's routes and neighbours, and the queueing discipline. Replies are heard by
//! [`PacketRx::open_cooked`](super::packet::PacketRx::open_cooked).
//!
//! The kernel also says what it cannot deliver, in two ways. The call that sends fails; with
//! IP_RECVERR also when the queueing discipline has dropped the packet (net/ipv4/raw.c,
//! raw_send_hdrinc, swallows ENOBUFS without it). Or, if the next hop turns out not to answer, it
//! sends us an ICMP error from our own address over the loopback, where the receiving end of the
//! loopback hears it. A second raw socket of protocol IPPROTO_TCP with an error queue would be told
//! the same, no more, and be handed a copy of every TCP segment of this host besides.

use super::bare::Bare;
use super::batch::Batch;
use super::sockopt::set_option;
use super::{FrameBuf, IoError, Transmit, Unsent};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long a packet may be refused for want of memory. Nearly always it is the neighbour table that
/// is full, and then not for this packet only: to wait long for each would stop the sweep.
const SHORTAGE: Duration = Duration::from_millis(20);

/// Octets of send buffer: about 5,000 small packets, since each is charged with its skb. It must hold
/// what waits for neighbours that do not answer (three seconds' worth, 1,024 of them), and not more
/// than fq_codel does (10,240 packets), which drops what is too much in silence.
const SEND_BUFFER: usize = 2 << 20;

/// Which way a [`RawTx`] sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Egress<'a> {
    /// By the host's routes, which lead through this interface.
    Routes {
        /// Its index.
        index: u32,
        /// Its name, for messages.
        name: &'a str,
    },
    /// Through this interface whatever the routes say: IPv4 takes a destination to which no route
    /// leads through it, or that one forbids, to be on its link (net/ipv4/route.c,
    /// ip_route_output_key_hash_rcu).
    Interface {
        /// Its index.
        index: u32,
        /// Its name, for messages.
        name: &'a str,
    },
    /// To this host's own addresses, by whichever device the kernel loops them.
    Loopback,
}

/// What routing looks at in the socket that packets are sent in the name of, beside what stands in
/// them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Likeness {
    /// Its mark (SO_MARK).
    pub mark: u32,
    /// The interface that it is bound to (SO_BINDTODEVICE), also a VRF; 0 for none.
    pub bound_interface: u32,
}

/// Sends IPv4 and IPv6 packets through one interface by raw sockets.
#[derive(Debug)]
pub struct RawTx {
    v4: Socket,
    /// `None` where the kernel has no IPv6.
    v6: Option<Socket>,
    batch: Batch,
    /// The interface of link-local addresses; 0 for the loopback.
    ifindex: u32,
    /// The source address that the IPv4 socket is bound to.
    bound: Option<Ipv4Addr>,
}

impl RawTx {
    /// Opens the sending end.
    ///
    /// # Errors
    /// No CAP_NET_RAW. That an interface is down or gone shows on flushing.
    pub fn open(egress: Egress<'_>) -> Result<Self, IoError> {
        Self::open_like(egress, Likeness::default())
    }

    /// Opens a sending end whose packets are routed as those of a socket with this likeness.
    ///
    /// # Errors
    /// As [`open`](Self::open); a mark needs CAP_NET_ADMIN or CAP_NET_RAW.
    pub fn open_like(egress: Egress<'_>, likeness: Likeness) -> Result<Self, IoError> {
        let v4 = Socket::open(AddressFamily::Inet, egress, likeness)?;
        // Else a packet that the queueing discipline drops counts as sent.
        v4.set("set IP_RECVERR", libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        let v6 = match Socket::open(AddressFamily::Inet6, egress, likeness) {
            Ok(v6) => {
                v6.set("set IPV6_RECVERR", libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
                // A source of ours need not be on an interface: whole prefixes can be local.
                v6.set("set IPV6_FREEBIND", libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
                Some(v6)
            }
            Err(error) if error.source.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        let ifindex = match egress {
            Egress::Routes { index, .. } | Egress::Interface { index, .. } => index,
            Egress::Loopback => 0,
        };
        Ok(Self { v4, v6, batch: Batch::addressed(), ifindex, bound: None })
    }

    /// Lends the IPv4 socket to a loop that sends nothing but `packet`, to each of `to` in turn.
    pub fn bare<'a>(&'a mut self, packet: &[u8], to: &'a [Ipv4Addr]) -> Bare<'a> {
        Bare::new(self.v4.fd.as_fd(), &self.v4.interface, packet, to)
    }

    fn send_all(&mut self, sent: &mut usize) -> Result<(), IoError> {
        while self.batch.len() > 0 {
            let (is_v6, run) = self.batch.run();
            let socket = match (&self.v6, is_v6) {
                (Some(v6), true) => v6,
                (None, true) => return Err(self.v4.error("send packets", Errno::EAFNOSUPPORT)),
                // A packet without addresses too: the kernel refuses it (EDESTADDRREQ).
                (_, false) => &self.v4,
            };
            let (left, result) = self.batch.send(socket.fd.as_fd(), run, SHORTAGE);
            *sent += left;
            result.map_err(|errno| {
                // Through an interface that is down there is no route either.
                let errno = if errno == Errno::ENETUNREACH { self.why_no_route() } else { errno };
                socket.error("send packets", errno)
            })?;
        }
        Ok(())
    }
}

impl RawTx {
    /// Binds the IPv4 socket to the source of its first packet, nearly always that of all: it selects a
    /// route as the control message does that other sources take, and costs nothing then.
    fn bind(&mut self, source: Ipv4Addr) {
        let address = SockaddrIn::from(SocketAddrV4::new(source, 0));
        // Refused if it is not an address of this host: what the message says of it, sending tells.
        if bind(self.v4.fd.as_raw_fd(), &address).is_ok() {
            self.bound = Some(source);
        }
    }

    fn why_no_route(&self) -> Errno {
        let name = &self.v4.interface;
        let Ok(mut interfaces) = getifaddrs() else { return Errno::ENETUNREACH };
        match interfaces.find(|interface| interface.interface_name == *name) {
            _ if self.ifindex == 0 => Errno::ENETUNREACH,
            None => Errno::ENODEV,
            Some(interface) if !interface.flags.contains(InterfaceFlags::IFF_UP) => Errno::ENETDOWN,
            Some(_) => Errno::ENETUNREACH,
        }
    }
}

impl Transmit for RawTx {
    fn reserve(&mut self) -> Option<&mut FrameBuf> {
        self.batch.next_frame()
    }

    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`](super::FRAME_OCTETS), or no buffer is left to have been
    /// reserved.
    fn submit(&mut self, len: usize) {
        let addresses = addresses(self.batch.submit(len));
        if self.bound.is_none()
            && let Some((IpAddr::V4(source), _)) = addresses
        {
            self.bind(source);
        }
        self.batch.address(addresses, self.ifindex, self.bound);
    }

    fn flush(&mut self) -> Result<usize, Unsent> {
        let mut sent = 0;
        self.send_all(&mut sent).map(|()| sent).map_err(|error| {
            let refused = if is_of_interface(&error.source) { self.batch.len() } else { 1 };
            self.batch.forget(refused);
            Unsent { sent, refused, error }
        })
    }
}

/// Says whether no packet at all leaves through the interface; all else (a firewall, a route, the
/// neighbour table, a packet that is too long) concerns one destination.
fn is_of_interface(error: &io::Error) -> bool {
    use libc::{EAGAIN, EBADF, ENETDOWN, ENODEV, ENOTSOCK, ENXIO};
    // EAGAIN: the socket's buffer is full, and too little has left it for a while.
    matches!(error.raw_os_error(), Some(EAGAIN | EBADF | ENETDOWN | ENODEV | ENOTSOCK | ENXIO))
}

/// Reads source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let (src, rest) = packet.get(12..)?.split_first_chunk::<4>()?;
            Some((IpAddr::from(*src), IpAddr::from(*rest.first_chunk::<4>()?)))
        }
        6 => {
            let (src, rest) = packet.get(8..)?.split_first_chunk::<16>()?;
            Some((IpAddr::from(*src), IpAddr::from(*rest.first_chunk::<16>()?)))
        }
        _ => None,
    }
}

/// A raw socket and, for messages, the interface that it sends through.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    interface: String,
}

impl Socket {
    fn open(
        family: AddressFamily,
        egress: Egress<'_>,
        likeness: Likeness,
    ) -> Result<Self, IoError> {
        let interface = match egress {
            Egress::Routes { name, .. } | Egress::Interface { name, .. } => name,
            Egress::Loopback => "the loopback",
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw)
            .map_err(|errno| io_error("open raw socket", interface, errno))?;
        let socket = Socket { fd, interface: interface.to_owned() };
        if setsockopt(&socket.fd, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&socket.fd, sockopt::SndBuf, &SEND_BUFFER)
                .map_err(|errno| socket.error("set SO_SNDBUF", errno))?;
        }
        if likeness.mark != 0 {
            setsockopt(&socket.fd, sockopt::Mark, &likeness.mark)
                .map_err(|errno| socket.error("set SO_MARK", errno))?;
        }
        let bound = match (likeness.bound_interface, egress) {
            (0, Egress::Interface { index, .. }) => Some(index),
            (0, _) => None,
            (index, _) => Some(index),
        };
        if let Some(index) = bound {
            let index = libc::c_int::try_from(index)
                .map_err(|_| socket.error("bind raw socket", Errno::ENODEV))?;
            socket.set("bind raw socket", libc::SOL_SOCKET, SO_BINDTOIFINDEX, index)?;
        }
        Ok(socket)
    }

    fn set(
        &self,
        operation: &'static str,
        level: i32,
        option: i32,
        value: libc::c_int,
    ) -> Result<(), IoError> {
        set_option(&self.fd, level, option, &value).map_err(|errno| self.error(operation, errno))
    }

    fn error(&self, operation: &'static str, errno: Errno) -> IoError {
        io_error(operation, &self.interface, errno)
    }
}

/// asm-generic/socket.h; by name an interface could be mistaken for another.
const SO_BINDTOIFINDEX: i32 = 62;

fn io_error(operation: &'static str, interface: &str, errno: Errno) -> IoError {
    let remedy = match (operation, errno) {
        ("send packets", Errno::EPERM) => {
            "this host's firewall refuses them in its output hook (nft list ruleset); of \
             connections that a sweep opens, connection tracking never sees the answers, so that \
             `ct state invalid drop` must not apply to its source ports, or use sweep --io packet"
        }
        ("send packets", Errno::ENOBUFS) => {
            "the neighbour table or a transmit queue is full; use --io packet, or raise \
             net.ipv4.neigh.default.gc_thresh3"
        }
        (_, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES)
            if operation == "send packets" =>
        {
            "the route is gone since the sweep began, or forbids it (ip route get)"
        }
        (_, Errno::EPERM | Errno::EACCES) => "needs CAP_NET_RAW, try sudo",
        (_, Errno::ENETDOWN) => "bring the interface up",
        (_, Errno::ENXIO | Errno::ENODEV) => "the interface is gone",
        _ => "",
    };
    IoError { operation, object: interface.to_owned(), source: errno.into(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_addresses_of_either_family_and_of_nothing_else() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[12..].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(addresses(&v4), Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into())));
        assert_eq!(addresses(&v4[..19]), None);
        let mut v6 = [0; 40];
        v6[0] = 0x60;
        (v6[8], v6[23], v6[24], v6[39]) = (0xfd, 1, 0xfd, 2);
        let [src, dst] = ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap());
        assert_eq!(addresses(&v6), Some((src, dst)));
        assert_eq!(addresses(&v6[..39]), None);
        v6[0] = 0x50;
        assert_eq!(addresses(&v6), None);
        assert_eq!(addresses(&[]), None);
    }

    #[test]
    fn tells_a_refused_packet_from_a_lost_interface() {
        for (errno, all) in [
            (Errno::EPERM, false),
            (Errno::EHOSTUNREACH, false),
            (Errno::ENETUNREACH, false),
            (Errno::EMSGSIZE, false),
            (Errno::ENOBUFS, false),
            (Errno::ENETDOWN, true),
            (Errno::ENODEV, true),
        ] {
            let error = io_error("send packets", "eth0", errno);
            assert_eq!(is_of_interface(&error.source), all, "{errno}");
            assert!(errno == Errno::EMSGSIZE || !error.remedy.is_empty(), "{errno}");
        }
    }
}
