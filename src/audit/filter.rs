//! Which connections are of interest.
#![forbid(unsafe_code)]

use super::{ASKED, Listed};
use crate::io::host::{Connection, TcpState};
use ipnet::IpNet;
use std::collections::HashMap;
use std::time::Duration;

/// What was asked for, of any connection.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Peers, or all if empty.
    pub peers: Vec<IpNet>,
    /// No data for longer than this.
    pub idle_over: Option<Duration>,
    /// TCP states; `None` for those that can be asked.
    pub states: Option<Vec<TcpState>>,
}

/// What a filter says of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is of interest.
    Yes,
    /// It would be, but it is in a state that cannot be asked, and no states were named.
    ButForState(TcpState),
    /// It is not.
    No,
}

impl Filter {
    /// Says whether `connection` is of interest; `sockets` are the inodes of the processes that were
    /// asked for, if any were.
    pub fn takes(&self, connection: &Connection, sockets: Option<&HashMap<u64, u32>>) -> Taken {
        // A socket without a file, as in TIME_WAIT, is nobody's.
        let is_theirs = sockets.is_none_or(|sockets| sockets.contains_key(&connection.inode));
        let peer = connection.peer.ip();
        let is_peer = self.peers.is_empty() || self.peers.iter().any(|net| net.contains(&peer));
        let is_idle = self
            .idle_over
            .is_none_or(|over| Listed::idle_of(connection).is_some_and(|idle| idle > over));
        match is_theirs && is_peer && is_idle {
            false => Taken::No,
            true if self.takes_state(connection) => Taken::Yes,
            // Whoever names states leaves the others out knowingly.
            true if self.states.is_some() => Taken::No,
            true => Taken::ButForState(connection.state),
        }
    }

    fn takes_state(&self, connection: &Connection) -> bool {
        match &self.states {
            Some(states) => states.contains(&connection.state),
            // FIN_WAIT2 of a socket that nobody holds is a small one with a timer, like TIME_WAIT.
            None => ASKED.contains(&connection.state) && connection.numbers.is_some(),
        }
    }
}
