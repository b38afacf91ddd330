//! Asks the peers of this host's own connections whether they are still there.
//!
//! ```text
//! io::host::Reader ─Connection→ filter, attribute ─Listed→ Sweep, one in each namespace ─Verdict→ Outcome
//! ```
//!
//! [`Audit`] says which connections; [`Audit::list`] reads them, [`Audit::probe`] asks their peers.
//! [`probe`] asks about a single socket of the calling process. Nothing is changed: no connection
//! dies of being asked, and none is closed. Where one is silent, its peer's host is asked by a fresh SYN
//! ([`escalate`](crate::probe::escalate)), unless [`Audit::keepalives_only`] forbids it.
//!
//! ```no_run
//! use keepsweep::audit::Audit;
//! use keepsweep::engine::Control;
//! use keepsweep::probe::classify::State;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), keepsweep::audit::AuditError> {
//! let audit = Audit::new().idle_over(Duration::from_secs(3600));
//! let listing = audit.list()?;
//! println!("{} connections idle for an hour", listing.len());
//! audit.probe(listing, &Control::default(), &mut |outcome| {
//!     if outcome.verdict.state != State::Alive {
//!         let connection = &outcome.listed.connection;
//!         println!("{} → {}: {}", connection.local, connection.peer, outcome.verdict.state.name());
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod changes;
mod connection;
mod filter;
mod finding;
mod list;
mod own;
mod silence;
mod sweeps;
#[cfg(test)]
mod tests;

pub use changes::{Change, Changes};
pub use connection::{ASKED, Listed, Process, TCP_STATES, state_name};
pub use finding::{Finding, KEEPALIVE_OFF_OVER, Middlebox, findings};
pub use list::Listing;
pub use own::{probe, probe_with};

use crate::engine::EngineError;
use crate::io::host::{self, HostError, TcpState};
use crate::io::privilege::{self, Capability};
use crate::probe::evidence::Verdict;
use crate::probe::plan::{Close, PROFILES, Plan, ProbeBytes};
use crate::report::Summary;
use filter::Filter;
use ipnet::IpNet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Which connections to ask, and how. The default: those of the calling thread's network namespace
/// that are in a state of [`ASKED`], with [`PLAN`].
#[derive(Clone, Debug)]
pub struct Audit {
    scope: Scope,
    pids: Vec<u32>,
    filter: Filter,
    plan: Plan,
    keepalive_off_over: Duration,
    keepalives_only: bool,
    /// As they were named; without, [`DEFAULT`](crate::io::ports::DEFAULT) where nobody else has one of them.
    source_ports: Option<RangeInclusive<u16>>,
    pcap: Option<PathBuf>,
    gives_up_privileges: bool,
}

/// Which network namespaces.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Scope {
    /// The calling thread's; with processes named, theirs.
    Own,
    /// The one of this name.
    Named(String),
    /// All that can be found.
    All,
}

/// What is sent unless told otherwise: at once, five keepalives a second apart, 10,000 a second in
/// all.
pub const PLAN: Plan = Plan {
    keepalive: PROFILES[0].1,
    probe_bytes: ProbeBytes::Auto,
    connect_timeout: Duration::from_secs(15),
    close: Close::Rst,
    rate_pps: Some(10_000),
    rate_per_prefix_pps: None,
    seed: 0,
};

/// What came out for one connection.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The connection as it was when it was listed.
    pub listed: Arc<Listed>,
    /// What is said of its peer.
    pub verdict: Verdict,
    /// What else an operator wants to know of it.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Counts it in the summary of an audit, as the last word on its connection.
    fn count_in(&self, summary: &mut Summary) {
        let Outcome { listed, verdict, findings } = self;
        summary.peers += 1;
        summary.count_as(verdict.state, verdict.reason);
        let holder = listed.process.as_ref();
        let holder = holder.map(|process| (process.comm.to_string(), process.pid));
        let names = findings.iter().map(|finding| finding.name());
        let tally = summary.audit.get_or_insert_default();
        tally.count(holder, verdict.peer.ip(), verdict.state, names);
    }
}

/// Why an audit cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is no such namespace, process, or connection.
    #[error("{0}")]
    Usage(String),
    /// The kernel does not tell its connections.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Their peers cannot be asked.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Default for Audit {
    fn default() -> Self {
        Audit::new()
    }
}

impl Audit {
    /// Builds an audit of the calling thread's network namespace.
    pub fn new() -> Audit {
        Audit {
            scope: Scope::Own,
            pids: Vec::new(),
            filter: Filter::default(),
            plan: PLAN,
            keepalive_off_over: KEEPALIVE_OFF_OVER,
            keepalives_only: false,
            source_ports: None,
            pcap: None,
            gives_up_privileges: false,
        }
    }

    /// Looks into the network namespace of this name instead: as `ip netns` has it, or
    /// `net:[INODE]`.
    #[must_use]
    pub fn netns(self, name: impl Into<String>) -> Audit {
        Audit { scope: Scope::Named(name.into()), ..self }
    }

    /// Looks into every network namespace of this host.
    #[must_use]
    pub fn every_netns(self) -> Audit {
        Audit { scope: Scope::All, ..self }
    }

    /// Takes connections of this process only, or of those named so far; of its network namespace,
    /// unless another was asked for.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Audit {
        self.pids.push(pid);
        self
    }

    /// Takes connections to these peers only, or to those named so far.
    #[must_use]
    pub fn peer(mut self, peers: impl Into<IpNet>) -> Audit {
        self.filter.peers.push(peers.into());
        self
    }

    /// Takes only connections on which no data has moved, either way, for longer than `span`.
    #[must_use]
    pub fn idle_over(mut self, span: Duration) -> Audit {
        self.filter.idle_over = Some(span);
        self
    }

    /// Takes connections in these states, instead of those of [`ASKED`] whose socket somebody holds.
    /// What cannot be asked is listed, and `undetermined`.
    #[must_use]
    pub fn tcp_states(mut self, states: impl IntoIterator<Item = TcpState>) -> Audit {
        self.filter.states = Some(states.into_iter().collect());
        self
    }

    /// Sends by this plan instead of [`PLAN`]. Its rate is shared by all namespaces.
    #[must_use]
    pub fn plan(self, plan: Plan) -> Audit {
        Audit { plan, ..self }
    }

    /// Finds fault with connections without SO_KEEPALIVE that are idle for longer than `span`,
    /// instead of [`KEEPALIVE_OFF_OVER`].
    #[must_use]
    pub fn keepalive_off_over(self, span: Duration) -> Audit {
        Audit { keepalive_off_over: span, ..self }
    }

    /// Sends nothing but keepalives: the host of a silent connection is not asked by a fresh SYN, so
    /// that what a firewall has forgotten is `down`, too.
    #[must_use]
    pub fn keepalives_only(self) -> Audit {
        Audit { keepalives_only: true, ..self }
    }

    /// Sends fresh SYNs from these ports. No other socket may have one of them, in any of the network
    /// namespaces; where one has, hosts are not asked, and a notice says so
    /// ([`Audit::check_source_ports`] says it beforehand).
    #[must_use]
    pub fn source_ports(self, ports: RangeInclusive<u16>) -> Audit {
        Audit { source_ports: Some(ports), ..self }
    }

    /// Writes every probe and reply to this pcap file: possible for a single network namespace.
    #[must_use]
    pub fn pcap(self, path: impl Into<PathBuf>) -> Audit {
        Audit { pcap: Some(path.into()), ..self }
    }

    /// Has [`Audit::probe`] give up every capability of the calling thread, for good, as soon as it
    /// needs none any more: for whoever asks only once.
    #[must_use]
    pub fn gives_up_privileges(self) -> Audit {
        Audit { gives_up_privileges: true, ..self }
    }

    /// Returns the capabilities that it takes to list and to probe, again and again: a thread that does
    /// nothing else can give up the others ([`privilege::keep`]).
    pub fn capabilities(&self) -> Vec<Capability> {
        let looks_at_others = self.looks_for_namespaces() || host::owners_are_in_proc();
        let others = if looks_at_others { privilege::OTHERS } else { &[] };
        [&*self.sweep_capabilities(), others].concat()
    }

    /// Returns those that it takes to probe, in a namespace that the thread is in.
    fn sweep_capabilities(&self) -> Vec<Capability> {
        // The directory of the file may be another user's.
        let file = self.pcap.as_ref().map(|_| Capability::CAP_DAC_OVERRIDE);
        let both = [privilege::SWEEP, privilege::CONNECTIONS].concat();
        both.into_iter().chain(file).collect()
    }

    /// Says whether the connections may be those of other namespaces than the calling thread's.
    fn looks_for_namespaces(&self) -> bool {
        self.scope != Scope::Own || !self.pids.is_empty()
    }

    /// Returns what there is to find in `listed`, whether its peer is asked or not.
    pub fn findings(&self, listed: &Listed) -> Vec<Finding> {
        findings(listed, self.keepalive_off_over)
    }
}
