//! What a group of connections is to be, and the port where the other end plays its part.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

/// What the accepting end does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Reads and forgets.
    Drain,
    /// Sends back what comes.
    Echo,
    /// Says that it has no more to say, and goes on reading.
    HalfClose,
    /// Never reads.
    Unread,
    /// Writes for as long as there is room.
    Flood,
    /// Reads and forgets, every segment signed (RFC 2385).
    Signed,
    /// Sends and takes bursts of pseudo-random octets.
    Stream,
    /// Reads and forgets, and closes when the other end does.
    Brief,
}

impl Manner {
    pub const ALL: [Manner; 8] = [
        Manner::Drain,
        Manner::Echo,
        Manner::HalfClose,
        Manner::Unread,
        Manner::Flood,
        Manner::Signed,
        Manner::Stream,
        Manner::Brief,
    ];

    /// Returns the port, of those from `first` on: an even number above it, or the odd one after
    /// if the server greets.
    pub fn port(self, first: u16, greets: bool) -> u16 {
        first + 2 * self.index() as u16 + u16::from(greets)
    }

    /// Returns its place in `ALL`.
    pub fn index(self) -> usize {
        Manner::ALL.iter().position(|manner| *manner == self).expect("ALL has every manner")
    }

    pub fn name(self) -> &'static str {
        match self {
            Manner::Drain => "drain",
            Manner::Echo => "echo",
            Manner::HalfClose => "half-close",
            Manner::Unread => "unread",
            Manner::Flood => "flood",
            Manner::Signed => "signed",
            Manner::Stream => "stream",
            Manner::Brief => "brief",
        }
    }
}

/// The state that a group's connections are brought to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Nothing under way.
    Idle,
    /// Data both ways, five times a second.
    Busy,
    /// The peer has closed, the application has not.
    CloseWait,
    /// The application has half-closed, the peer has not.
    FinWait2,
    /// The peer does not read and its window is 0; data waits to be sent.
    ZeroWindow,
    /// The application does not read and its own window is 0.
    Unread,
    /// Segments are signed (RFC 2385).
    Signed,
    /// Bursts both ways.
    Stream,
    /// Closed and opened anew all the time.
    Brief,
}

impl Condition {
    /// Returns what the peer must do for it.
    pub fn manner(self) -> Manner {
        match self {
            Condition::Idle | Condition::FinWait2 => Manner::Drain,
            Condition::Busy => Manner::Echo,
            Condition::CloseWait => Manner::HalfClose,
            Condition::ZeroWindow => Manner::Unread,
            Condition::Unread => Manner::Flood,
            Condition::Signed => Manner::Signed,
            Condition::Stream => Manner::Stream,
            Condition::Brief => Manner::Brief,
        }
    }
}

/// Connections of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: String,
    pub count: usize,
    /// Where they go, one address after the other.
    pub peers: IpNet,
    /// Where they come from, likewise; else the kernel chooses.
    #[serde(default)]
    pub from: Option<IpNet>,
    /// The port of the first, and of each the next one; else the kernel chooses.
    #[serde(default)]
    pub from_port: u16,
    /// Whether IPv4 is spoken through AF_INET6 sockets.
    #[serde(default)]
    pub mapped: bool,
    pub condition: Condition,
    /// First port of the server.
    pub port: u16,
    /// Whether the peer has said something before; if not, no octet was ever received (unless the
    /// condition is one that brings some).
    #[serde(default)]
    pub greeted: bool,
    /// SO_KEEPALIVE.
    #[serde(default)]
    pub keepalive: bool,
    /// SO_MARK; 0 for none.
    #[serde(default)]
    pub mark: u32,
    /// SO_BINDTODEVICE.
    #[serde(default)]
    pub device: Option<String>,
}

/// Returns the address of connection `index` within `net`, round and round.
pub fn address(net: IpNet, index: usize) -> IpAddr {
    let spare = u32::from(net.max_prefix_len() - net.prefix_len()).min(24);
    let host = index as u32 % (1 << spare);
    match net.network() {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() + host).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() + u128::from(host)).into()),
    }
}
