//! Threads, batches, queues: moves frames between `io` and `probe`, decides nothing.

use crate::probe::evidence::Verdict;
use crate::probe::plan::Plan;
use crate::report::Summary;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Which I/O path to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoKind {
    /// AF_PACKET for every interface that has MAC addresses.
    #[default]
    Auto,
    /// AF_PACKET.
    Packet,
}

/// What to sweep, and how.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is sent when.
    pub plan: Plan,
    /// The peers; `TargetId` is the index.
    pub targets: Vec<SocketAddr>,
    /// The I/O path.
    pub io: IoKind,
    /// Only through this interface.
    pub interface: Option<String>,
    /// Source address, instead of the one that the kernel's route look-up prefers.
    pub source: Option<IpAddr>,
    /// Source ports.
    pub source_ports: RangeInclusive<u16>,
    /// Write every probe and reply to this pcap file.
    pub pcap: Option<PathBuf>,
}

/// What a running sweep shows, and how it is stopped. All counters are cumulative.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to end the run early: flows are closed, unresolved peers become `undetermined/interrupted`.
    pub stop: AtomicBool,
    /// Frames sent.
    pub sent: AtomicU64,
    /// Replies matched.
    pub replies: AtomicU64,
    /// Verdicts by state, in the order of `State::ALL`.
    pub states: [AtomicU64; 5],
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

/// A sweep whose sockets, guard and routes are open; privileges are dropped by then.
#[derive(Debug)]
pub struct Sweep {}

impl Sweep {
    /// Checks privileges and ports, looks up routes, opens one path per egress interface, attaches
    /// the guard, then drops every capability.
    ///
    /// # Errors
    /// [`EngineError`], each naming operation, object and remedy.
    pub fn open(setup: Setup) -> Result<Sweep, EngineError> {
        let _ = setup;
        todo!()
    }

    /// Runs to the last verdict; each is handed to `report` on the calling thread as it is known.
    ///
    /// # Errors
    /// [`EngineError::System`] when the paths fail for good; verdicts known so far have been handed
    /// over, and unresolved peers as `undetermined`.
    pub fn run(
        self,
        control: &Control,
        report: &mut dyn FnMut(Verdict),
    ) -> Result<Summary, EngineError> {
        let _ = (control, report);
        todo!()
    }
}
