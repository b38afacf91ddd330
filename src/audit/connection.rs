//! A connection of this host, and whose it is.
#![forbid(unsafe_code)]

use crate::engine;
use crate::io::host::{Connection, Numbers, TcpState};
use crate::probe::given::TimestampClock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Every state that an audit can list: all but LISTEN and CLOSED, which are no connections.
pub const TCP_STATES: [TcpState; 9] = [
    TcpState::Established,
    TcpState::CloseWait,
    TcpState::FinWait2,
    TcpState::SynSent,
    TcpState::SynReceived,
    TcpState::FinWait1,
    TcpState::TimeWait,
    TcpState::LastAck,
    TcpState::Closing,
];

/// The states that last as long as both sides please, and in which a dead peer is never noticed:
/// what an audit asks unless told otherwise. In the others the kernel itself repeats something, or
/// waits for a timer, and gives up.
pub const ASKED: [TcpState; 3] = [TcpState::Established, TcpState::CloseWait, TcpState::FinWait2];

/// Returns the name of a state in records and on the command line, which is that of `ss`.
pub const fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "established",
        TcpState::SynSent => "syn-sent",
        TcpState::SynReceived => "syn-recv",
        TcpState::FinWait1 => "fin-wait-1",
        TcpState::FinWait2 => "fin-wait-2",
        TcpState::TimeWait => "time-wait",
        TcpState::Closed => "closed",
        TcpState::CloseWait => "close-wait",
        TcpState::LastAck => "last-ack",
        TcpState::Listen => "listen",
        TcpState::Closing => "closing",
    }
}

/// A process that holds a socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name (`comm`, proc(5)).
    pub comm: Arc<str>,
    /// The lowest descriptor by which it has the socket, if that is known.
    pub fd: Option<u32>,
    /// Its cgroup, as /proc/PID/cgroup names it: which container or service it is of.
    pub cgroup: Option<Arc<str>>,
}

/// A connection that this host's kernel owns, at the instant at which it was read, and whose it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// What the kernel says of it.
    pub connection: Connection,
    /// Who holds it; `None` if no process does, or none that we may look at.
    pub process: Option<Process>,
    /// The two ends that its packets have on the wire, ours first, where this host translates them.
    pub translated: Option<(SocketAddr, SocketAddr)>,
    /// Its network namespace: the name if it has one, else `net:[INODE]`.
    pub netns: Arc<str>,
}

impl Listed {
    /// Returns how long no data has moved, either way; `None` for a socket without numbers.
    ///
    /// Keepalives are no data: neither the kernel's nor an earlier audit's count.
    pub fn idle(&self) -> Option<Duration> {
        Self::idle_of(&self.connection)
    }

    pub(super) fn idle_of(connection: &Connection) -> Option<Duration> {
        let numbers = connection.numbers.as_ref()?;
        known(numbers.since_data_sent.min(numbers.since_data_received))
    }

    /// Returns how long the peer has not been heard: neither data nor an acknowledgement, be it of a
    /// keepalive.
    pub fn unheard(&self) -> Option<Duration> {
        let numbers = self.numbers()?;
        known(numbers.since_data_received.min(numbers.since_ack_received))
    }

    /// Returns how long no segment that this kernel keeps count of has passed, either way: what a
    /// middlebox counts.
    pub fn quiet(&self) -> Option<Duration> {
        self.idle().into_iter().chain(self.unheard()).min()
    }

    /// Returns the window that a segment sent now would carry in its header; `None` if it is 0, or
    /// the socket has none.
    pub fn window(&self) -> Option<u16> {
        self.numbers()?;
        Some(engine::given(&self.connection).wnd).filter(|&window| window > 0)
    }

    /// Returns the flow's timestamps as `--flows` has them; `None` also where their clock runs in
    /// microseconds, which that format has no place for.
    pub fn clock(&self) -> Option<TimestampClock> {
        engine::given(&self.connection).clock.filter(|clock| !clock.in_microseconds)
    }

    /// Returns the numbers of its socket, if it has any.
    pub fn numbers(&self) -> Option<&Numbers> {
        self.connection.numbers.as_ref()
    }
}

/// The kernel has not begun to count in some states, as SYN-SENT.
fn known(span: Duration) -> Option<Duration> {
    (span != Duration::MAX).then_some(span)
}
