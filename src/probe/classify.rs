//! From evidence to (state, reason): one total function.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The keepalive states, and the refusal to accuse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Up and reachable.
    Alive,
    /// Crashed, off, or rebooting.
    Down,
    /// Came back without its memory of the connection.
    Rebooted,
    /// Cannot be reached from here: the network says so.
    Unreachable,
    /// We must not accuse.
    Undetermined,
}

impl State {
    /// Every state, in the order of summaries.
    pub const ALL: [State; 5] =
        [State::Alive, State::Down, State::Rebooted, State::Unreachable, State::Undetermined];

    /// Returns the name used in records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            State::Alive => "alive",
            State::Down => "down",
            State::Rebooted => "rebooted",
            State::Unreachable => "unreachable",
            State::Undetermined => "undetermined",
        }
    }
}

/// Why a peer is in its state. The closed list of reasons that keepsweep can give today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Reason {
    Ack,
    Data,
    ZeroWindow,
    ClosedByPeer,
    Refused,
    Silent,
    Reset,
    PathReset,
    IcmpNet,
    IcmpHost,
    IcmpPort,
    IcmpAdmin,
    IcmpTtl,
    IcmpOther,
    Neighbour,
    NoRoute,
    Observer,
    Interrupted,
}

impl Reason {
    /// Returns the name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Ack => "ack",
            Reason::Data => "data",
            Reason::ZeroWindow => "zero-window",
            Reason::ClosedByPeer => "closed-by-peer",
            Reason::Refused => "refused",
            Reason::Silent => "silent",
            Reason::Reset => "reset",
            Reason::PathReset => "path-reset",
            Reason::IcmpNet => "icmp-net",
            Reason::IcmpHost => "icmp-host",
            Reason::IcmpPort => "icmp-port",
            Reason::IcmpAdmin => "icmp-admin",
            Reason::IcmpTtl => "icmp-ttl",
            Reason::IcmpOther => "icmp-other",
            Reason::Neighbour => "neighbour",
            Reason::NoRoute => "no-route",
            Reason::Observer => "observer",
            Reason::Interrupted => "interrupted",
        }
    }
}
