//! Threads, batches, queues: moves frames between `io` and `probe`, decides nothing.
//!
//! One thread drives each sending half, one per path a receiving half; the caller's thread gets the
//! verdicts. They meet in the flow table, the senders' queues of replies, and in what the receivers
//! say of how far they have heard. Peers are shared out between senders, so that at full rate every
//! core sends; a paced sweep has one sender, which alone keeps the rate.

pub mod bench;
mod capture;
mod given;
mod host;
mod open;
mod run;
mod watch;
mod xdp;

pub use host::given;
pub(crate) use open::check_source_ports;
pub use open::preview;

use crate::io::claim::Claim;
use crate::io::ports;
use crate::io::raw::Likeness;
use crate::io::xdp::{Redirect, XdpMode, ZeroCopy};
use crate::io::{PathInfo, Receive, Transmit, guard::Guard, shield::Shield};
use crate::probe::Slot;
use crate::probe::evidence::Verdict;
use crate::probe::given::Given;
use crate::probe::plan::Plan;
use crate::probe::receiver::Post;
use crate::probe::sender::Sender;
use crate::probe::table::{Family, Table};
use crate::probe::translations::Translations;
use capture::Capture;
use crossbeam::queue::SegQueue;
use host::Kernel;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use watch::HostWatch;

/// Which I/O path to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoKind {
    /// AF_PACKET for every interface that has MAC addresses, raw sockets for the others and for this
    /// host's own addresses.
    #[default]
    Auto,
    /// AF_PACKET.
    Packet,
    /// Raw sockets.
    Raw,
    /// AF_XDP.
    Xdp(XdpOptions),
}

/// How AF_XDP is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpOptions {
    /// Where the XDP program is to run.
    pub mode: XdpMode,
    /// Whether the driver is to read and write our frames itself.
    pub zerocopy: ZeroCopy,
}

/// What to sweep, and how.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is sent when.
    pub plan: Plan,
    /// The peers; `TargetId` is the index. No two may be equal but those
    /// that are asked on behalf of different addresses or ways.
    pub targets: Vec<SocketAddr>,
    /// In whose name each of the targets is asked, and from which of our addresses: that of a connection
    /// of this host's kernel. Empty where `source` and the routes of this host decide.
    pub on_behalf: Vec<(IpAddr, Likeness)>,
    /// Flows that somebody else has opened; their `TargetId`s go on from those of the targets. No two
    /// may have the same ends.
    pub flows: Vec<Given>,
    /// The I/O path.
    pub io: IoKind,
    /// Only through this interface.
    pub interface: Option<String>,
    /// Source address, instead of the one that the kernel's route look-up prefers.
    pub source: Option<IpAddr>,
    /// Source ports.
    pub source_ports: RangeInclusive<u16>,
    /// Where senders and receivers run; anywhere without it.
    pub cpus: Option<Cpus>,
    /// Write every probe and reply to this pcap file.
    pub pcap: Option<PathBuf>,
    /// Go on with that file where an earlier sweep by the same kind of paths has left it.
    pub pcap_goes_on: bool,
}

/// CPUs for the threads of a sweep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpus {
    /// One for each sender, from the first on again where there are more senders.
    pub senders: Vec<usize>,
    /// The same for receivers; that of queue n gets the n-th.
    pub receivers: Vec<usize>,
}

/// What a running sweep shows, and how it is stopped. All counters are cumulative.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to end the run early: flows are closed, unresolved peers become `undetermined/interrupted`.
    pub stop: AtomicBool,
    /// Set with `stop` to close what is open without regard to the rate.
    pub hurry: AtomicBool,
    /// Frames sent.
    pub sent: AtomicU64,
    /// Replies matched.
    pub replies: AtomicU64,
    /// Verdicts by state, in the order of `State::ALL`; without corrections.
    pub states: [AtomicU64; 5],
    /// What happened to this host meanwhile, in words, for whoever looks on. To be taken away.
    pub notices: SegQueue<String>,
    /// What was said once and need not be said again.
    noted: Mutex<HashSet<String>>,
}

impl Setup {
    /// Asks nobody yet, by this host's own routes and from the usual ports.
    pub fn new(plan: Plan, io: IoKind) -> Setup {
        Setup {
            plan,
            targets: Vec::new(),
            on_behalf: Vec::new(),
            flows: Vec::new(),
            io,
            interface: None,
            source: None,
            source_ports: ports::DEFAULT,
            cpus: None,
            pcap: None,
            pcap_goes_on: false,
        }
    }
}

impl Control {
    /// Adds a notice, unless it was added by this before: sweeps of one audit find the same again.
    pub(crate) fn note_once(&self, notice: String) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.insert(notice.clone()) {
            self.notices.push(notice);
        }
    }

    /// Counts a verdict.
    pub(crate) fn count(&self, verdict: &Verdict) {
        let more = u64::from(!verdict.correction);
        self.states[verdict.state as usize].fetch_add(more, Ordering::Relaxed);
    }
}

/// Why a sweep could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request itself is impossible (no such interface, source not on this host): exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Privilege, kernel feature or OS error: exit code 3.
    #[error("{0}")]
    System(String),
}

impl EngineError {
    fn system(error: impl fmt::Display) -> Self {
        EngineError::System(error.to_string())
    }
}

/// One egress interface: a sending end for every sender, and a receiving end.
struct Path {
    info: PathInfo,
    next_hops: HashSet<IpAddr>,
    transmits: Vec<Box<dyn Transmit>>,
    /// `None` where another path on the same interface hears its answers.
    receive: Option<Box<dyn Receive>>,
    /// Whether all that it receives comes from this host itself.
    loopback: bool,
}

/// A sweep whose sockets, guard and routes are open; privileges are dropped by then.
pub struct Sweep {
    senders: Vec<Sender>,
    paths: Vec<Path>,
    table: Arc<Table>,
    translations: Arc<Translations>,
    post: Arc<Post>,
    /// None if no target has a route.
    guard: Option<Guard>,
    /// None if there is nothing to be shielded, or no way to.
    shield: Option<Arc<Shield>>,
    /// The XDP programs, one for every interface that frames leave through by AF_XDP.
    redirects: Vec<Redirect>,
    capture: Option<Capture>,
    watch: Option<HostWatch>,
    /// What reads the kernel's connections again, and of which sockets.
    kernel: Option<(Kernel, HashMap<u64, Slot>)>,
    /// Held to the end, so that no other sweep takes our answers.
    _claims: Vec<Claim>,
    cpus: Option<Cpus>,
    peers: usize,
    /// The paths taken, as the summary names them.
    io: &'static str,
    notes: Vec<String>,
}

impl fmt::Debug for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.paths.iter().map(|path| &path.info).collect();
        f.debug_struct("Sweep").field("peers", &self.peers).field("paths", &paths).finish()
    }
}

/// Returns the octets of memory that a sweep takes per target, if its targets are of `family`.
pub const fn memory_per_target(family: Family) -> usize {
    Sender::memory_per_target()
        + size_of::<(IpAddr, Option<u32>)>()
        + Table::memory_for(1 << 16, family) / (1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sweeps_of_one_audit_find_again_is_shown_once() {
        let control = Control::default();
        for notice in ["one", "two", "one"] {
            control.note_once(notice.to_owned());
        }
        let shown = || std::iter::from_fn(|| control.notices.pop()).collect::<Vec<_>>();
        assert_eq!(shown(), ["one", "two"]);
        // Also where it was taken away meanwhile.
        control.note_once("two".to_owned());
        assert!(shown().is_empty());
    }
}
