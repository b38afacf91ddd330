//! Checks that a range of source ports is nobody else's.

use super::IoError;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, TCP_CLOSE,
};
use netlink_packet_sock_diag::inet::{
    InetRequestBuffer, InetResponseBuffer, REQUEST_LEN, SocketIdBuffer,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// The source ports of a sweep unless told otherwise: above where Linux puts ephemeral ports by default.
pub const DEFAULT: RangeInclusive<u16> = 61000..=65534;

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// How many sockets an error lists.
const LISTED: usize = 5;

/// A TCP socket of the kernel inside the range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub peer: SocketAddr,
    /// Its state, by the name that `ss` uses; `BOUND` if it has a port and does nothing with it.
    pub state: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.state, self.local)?;
        if self.peer.port() != 0 {
            write!(f, " → {}", self.peer)?;
        }
        Ok(())
    }
}

/// Why a range of source ports cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// The kernel gives ports of the range to its own connections.
    #[error(
        "source ports {}-{} overlap this host's ephemeral ports {}-{} ({EPHEMERAL}), which the kernel \
         gives to its own connections; choose others with --source-ports LO-HI",
        .wanted.start(), .wanted.end(), .ephemeral.start(), .ephemeral.end()
    )]
    Ephemeral {
        /// The range asked for.
        wanted: RangeInclusive<u16>,
        /// `net.ipv4.ip_local_port_range`.
        ephemeral: RangeInclusive<u16>,
    },
    /// Sockets of this host sit on ports of the range.
    #[error(
        "source ports {}-{} are in use on this host: {}; choose others with --source-ports LO-HI, \
         or see who it is: ss -tanp 'sport >= :{} and sport <= :{}'",
        .wanted.start(), .wanted.end(), listing(.holders, *.total), .wanted.start(), .wanted.end()
    )]
    InUse {
        /// The range asked for.
        wanted: RangeInclusive<u16>,
        /// A few of them, those with the lowest ports.
        holders: Vec<Holder>,
        /// All of them.
        total: usize,
    },
    /// It could not be found out.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn listing(holders: &[Holder], total: usize) -> String {
    let mut text = holders.iter().map(Holder::to_string).collect::<Vec<_>>().join(", ");
    if total > holders.len() {
        text.push_str(&format!(" and {} more", total - holders.len()));
    }
    text
}

/// Checks that the kernel neither uses nor hands out any TCP port of `ports`.
///
/// Looks at this network namespace's `ip_local_port_range` and at every IPv4 and IPv6 socket on any
/// local address. TIME_WAIT counts: the guard lets the kernel have what it owns, and a TIME_WAIT
/// socket that answers a peer's SYN-ACK draws a RST from it, which would read as a reboot. It is
/// gone within 60 s. A socket that is bound and does nothing yet counts too, where the kernel tells
/// (Linux 6.8). Needs no privilege.
///
/// # Errors
/// [`PortsError`], naming a few of the sockets in the way and what to do.
pub fn check(ports: &RangeInclusive<u16>) -> Result<(), PortsError> {
    let text = std::fs::read_to_string(EPHEMERAL)
        .map_err(|source| failed("read", EPHEMERAL.to_owned(), source))?;
    let ephemeral = parse_range(&text).ok_or_else(|| {
        failed("read", EPHEMERAL.to_owned(), io::Error::new(io::ErrorKind::InvalidData, text))
    })?;
    if overlap(ports, &ephemeral) {
        return Err(PortsError::Ephemeral { wanted: ports.clone(), ephemeral });
    }

    let mut lowest = Vec::new();
    let mut total = 0_usize;
    holders(ports, &mut |holder| {
        total += 1;
        // The kernel's order is that of a salted hash; the lowest ports make a stable message.
        lowest.push(holder);
        lowest.sort_by_key(|holder| (holder.local.port(), holder.local));
        lowest.truncate(LISTED);
    })?;
    if total > 0 {
        return Err(PortsError::InUse { wanted: ports.clone(), holders: lowest, total });
    }
    Ok(())
}

/// Hands every TCP socket of this network namespace with a local port in `ports` to `sink`: IPv4 and
/// IPv6, in whatever state, TIME_WAIT included. IPv4-mapped addresses are given as IPv4. Needs no
/// privilege.
///
/// # Errors
/// The kernel does not list its sockets.
pub fn holders(ports: &RangeInclusive<u16>, sink: &mut dyn FnMut(Holder)) -> Result<(), IoError> {
    for family in [AF_INET, AF_INET6] {
        dump(family, ports, sink).map_err(|source| IoError {
            operation: "list the TCP sockets",
            object: "this host (inet_diag)".to_owned(),
            source,
            remedy: "needs a kernel with CONFIG_INET_TCP_DIAG (modprobe tcp_diag)",
        })?;
    }
    Ok(())
}

fn failed(operation: &'static str, object: String, source: io::Error) -> IoError {
    IoError { operation, object, source, remedy: "" }
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut bounds = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next(), bounds.next()) {
        (Some(Ok(lo)), Some(Ok(hi)), None) => Some(lo..=hi),
        _ => None,
    }
}

fn overlap(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

/// Hands every TCP socket of `family` with a local port in `ports` to `sink`.
fn dump(family: u8, ports: &RangeInclusive<u16>, sink: &mut dyn FnMut(Holder)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(family, ports), 0)?;

    // As much as the kernel puts into one dump message.
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        let len = socket.recv(&mut &mut buffer[..], 0)?;
        let messages = buffer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
        if messages.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if read_dump(messages, ports, sink)? {
            return Ok(());
        }
    }
}

/// Reads what the kernel has put into one datagram of a dump; says whether it was the last.
pub(crate) fn read_dump(
    mut rest: &[u8],
    ports: &RangeInclusive<u16>,
    sink: &mut dyn FnMut(Holder),
) -> io::Result<bool> {
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => return status(message.payload()).map(|()| true),
            SOCK_DIAG_BY_FAMILY => {
                // The kernel has filtered already; a kernel that ignores the filter is caught here.
                if let Some(holder) = parse_holder(message.payload())
                    && ports.contains(&holder.local.port())
                {
                    sink(holder);
                }
            }
            _ => {}
        }
        let aligned = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(aligned..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads the negative errno at the start of NLMSG_DONE and NLMSG_ERROR.
fn status(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

/// Builds the dump request: `inet_diag_req_v2` and a filter program, so that the kernel returns only
/// sockets of the range (net/ipv4/inet_diag.c, `inet_diag_bc_run`).
fn request(family: u8, ports: &RangeInclusive<u16>) -> Vec<u8> {
    const HEADER_LEN: usize = 16;
    let filter = filter(ports);
    let mut bytes = vec![0; HEADER_LEN + REQUEST_LEN];

    let mut body = InetRequestBuffer::new(&mut bytes[HEADER_LEN..]);
    body.set_family(family);
    body.set_protocol(IPPROTO_TCP);
    // Every state, and those that later kernels add, but not sockets that never had a port.
    body.set_states(!(1 << TCP_CLOSE));
    bytes.extend_from_slice(&filter);

    let len = bytes.len() as u32;
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(len);
    header.set_message_type(SOCK_DIAG_BY_FAMILY);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    bytes
}

/// INET_DIAG_REQ_BYTECODE: local port >= start and local port <= end.
///
/// An operation is `{ u8 code, u8 yes, u16 no }` and its operand another of them, the port in `no`.
/// `yes` and `no` are distances in octets; one past the end plus 4 rejects.
fn filter(ports: &RangeInclusive<u16>) -> [u8; 20] {
    const INET_DIAG_REQ_BYTECODE: u16 = 1;
    const INET_DIAG_BC_S_GE: u8 = 2;
    const INET_DIAG_BC_S_LE: u8 = 3;
    const LEN: u16 = 20;

    let word = |code: u8, yes: u8, no: u16| {
        let [a, b] = no.to_ne_bytes();
        [code, yes, a, b]
    };
    let [len_a, len_b] = LEN.to_ne_bytes();
    let [kind_a, kind_b] = INET_DIAG_REQ_BYTECODE.to_ne_bytes();
    let words = [
        [len_a, len_b, kind_a, kind_b],
        word(INET_DIAG_BC_S_GE, 8, 20),
        word(0, 0, *ports.start()),
        word(INET_DIAG_BC_S_LE, 8, 12),
        word(0, 0, *ports.end()),
    ];
    let mut bytes = [0; LEN as usize];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word);
    }
    bytes
}

/// Reads `inet_diag_msg`, or `None` if it is cut short or of another family.
fn parse_holder(payload: &[u8]) -> Option<Holder> {
    let response = InetResponseBuffer::new_checked(payload).ok()?;
    let id = SocketIdBuffer::new_checked(response.socket_id()).ok()?;
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        match response.family() {
            AF_INET => bytes.first_chunk::<4>().map(|v4| Ipv4Addr::from(*v4).into()),
            AF_INET6 => bytes.first_chunk::<16>().map(|v6| Ipv6Addr::from(*v6).to_canonical()),
            _ => None,
        }
    };
    let port = |bytes: &[u8]| bytes.first_chunk::<2>().map(|port| u16::from_be_bytes(*port));
    Some(Holder {
        local: SocketAddr::new(address(id.source_address())?, port(id.source_port())?),
        peer: SocketAddr::new(address(id.destination_address())?, port(id.destination_port())?),
        state: state_name(response.state()),
    })
}

/// include/net/tcp_states.h, as `ss` spells them.
fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 14] = [
        "?",
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        // Among sockets that have a port: bound, and neither listening nor connected.
        "BOUND",
        "CLOSE-WAIT",
        "LAST-ACK",
        "LISTEN",
        "CLOSING",
        "SYN-RECV",
        "BOUND",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("?")
}
