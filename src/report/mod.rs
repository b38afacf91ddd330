//! Records of what was found, as table, NDJSON or CSV.
#![forbid(unsafe_code)]

#[cfg(feature = "cli")]
pub(crate) mod connections;
#[cfg(feature = "cli")]
mod csv;
#[cfg(feature = "cli")]
mod ndjson;
#[cfg(feature = "cli")]
pub(crate) mod table;
mod tally;

#[cfg(feature = "cli")]
pub use self::{connections::Connections, csv::Csv, ndjson::Ndjson, table::Table};

pub use tally::{ByState, Holder, Tally};

#[cfg(feature = "cli")]
use crate::audit::{Change, Finding, Listed};
use crate::io::QueueCounts;
use crate::probe::classify::{Reason, State};
use crate::probe::evidence::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
#[cfg(feature = "cli")]
use std::io;
#[cfg(feature = "cli")]
use std::net::SocketAddr;
use std::time::Duration;

/// What a run has done: every frame accounted for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Summary {
    /// The I/O path ("packet").
    pub io: String,
    /// Rounds, where there may be several: then peers are counted as they were last, frames and time in
    /// all of them. Else 0.
    pub rounds: u32,
    /// Peers given, and how many were found in each state, in the order of `State::ALL`.
    pub peers: u64,
    /// Count by state, in the order of `State::ALL`.
    pub states: [u64; 5],
    /// Count by (state, reason).
    pub reasons: BTreeMap<(State, Reason), u64>,
    /// Late replies that overturned a verdict.
    pub corrections: u64,
    /// Frames that we sent, in all and by kind ("syn", "ack", "probe-0", "probe-1", "rst", "fin", "arp", "nd").
    pub frames_sent: u64,
    /// By kind; adds up to `frames_sent`.
    pub sent_by_kind: BTreeMap<&'static str, u64>,
    /// Frames that reached us: `replies_matched` + the sum of `replies_rejected`.
    pub frames_received: u64,
    /// Replies that belong to a flow (or answers to our ARP and ND).
    pub replies_matched: u64,
    /// Frames that were not believed, by reason ("rst-seq", "ack-unacceptable", "no-flow", …).
    pub replies_rejected: BTreeMap<&'static str, u64>,
    /// Frames lost on our own side (ring full).
    pub rx_dropped: u64,
    /// What AF_XDP has counted, by interface; empty on the other paths.
    pub xdp: Vec<XdpCounts>,
    /// TCP segments that the guard kept from our kernel.
    pub guard_dropped: u64,
    /// RSTs that our own kernel sent from our address and port range: must be 0.
    pub kernel_rsts: u64,
    /// Share of probes to peers that did answer in the end that drew no reply, 0 to 1.
    pub loss_estimate: f64,
    /// What failed while the sweep went on: a capture cut short, a path that would not send.
    pub faults: Vec<String>,
    /// From the first frame to the last verdict.
    pub elapsed: Duration,
    /// Memory that was taken, if the kernel says.
    pub memory: Option<Memory>,
    /// What an audit counts beside.
    pub audit: Option<Tally>,
}

/// What AF_XDP has counted on one interface. Field order is part of the format of records.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct XdpCounts {
    /// The interface's name.
    pub interface: String,
    /// Frames that the XDP program handed to us.
    pub redirected: u64,
    /// Frames that it passed on to the stack: none of ours, or the kernel owns the tuple.
    pub passed: u64,
    /// Frames that it passed on since they end early or contradict themselves.
    pub malformed: u64,
    /// Frames of ours that it passed on, since the queue that they came in by has no socket.
    pub no_socket: u64,
    /// By queue, in order.
    pub queues: Vec<QueueCounts>,
}

/// Of what failed in many rounds so many are remembered.
const MOST_FAULTS: usize = 100;

/// Octets of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The most that the process has had at a time.
    pub peak: u64,
    /// What the targets take of it, with their names and labels.
    pub targets: u64,
}

impl Summary {
    /// Counts one verdict; corrections are counted apart, beside the verdicts they overturn.
    pub fn count(&mut self, verdict: &Verdict) {
        if verdict.correction {
            self.corrections += 1;
            return;
        }
        self.count_as(verdict.state, verdict.reason);
    }

    /// Counts one peer as being in this state for this reason.
    pub fn count_as(&mut self, state: State, reason: Reason) {
        self.states[state as usize] += 1;
        *self.reasons.entry((state, reason)).or_default() += 1;
    }

    /// Adds the frames of another sweep of the same run. Its verdicts are counted by whoever tells
    /// them; time and memory are those of the run, and stay.
    pub fn absorb(&mut self, other: Summary) {
        let (ours, theirs) = (self.frames_sent as f64, other.frames_sent as f64);
        if theirs > 0.0 {
            self.loss_estimate =
                (self.loss_estimate * ours + other.loss_estimate * theirs) / (ours + theirs);
            self.io = other.io;
        }
        add(&mut self.sent_by_kind, other.sent_by_kind);
        add(&mut self.replies_rejected, other.replies_rejected);
        self.frames_sent += other.frames_sent;
        self.frames_received += other.frames_received;
        self.replies_matched += other.replies_matched;
        self.rx_dropped += other.rx_dropped;
        self.guard_dropped += other.guard_dropped;
        self.kernel_rsts += other.kernel_rsts;
        for fault in other.faults {
            // What fails may fail in every round, and in namespaces that come and go.
            if self.faults.len() < MOST_FAULTS && !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    /// Returns the number of frames that were not believed, for whatever reason.
    pub fn rejected(&self) -> u64 {
        self.replies_rejected.values().sum()
    }

    /// Returns the mean rate of sent frames per second; 0 if no time passed.
    pub fn rate_pps(&self) -> u64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (self.frames_sent as f64 / seconds).round() as u64 } else { 0 }
    }
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    for (what, count) in more {
        *counts.entry(what).or_default() += count;
    }
}

/// Returns the peer's address as records have it: with the number of the interface, where it is one
/// on every link (RFC 4007 §11); nothing where no address is known.
#[cfg(feature = "cli")]
fn peer_ip(verdict: &Verdict) -> Option<String> {
    (!verdict.peer.ip().is_unspecified()).then(|| scoped_ip(verdict.peer))
}

/// Returns an address with the number of its interface, where it is one on every link.
#[cfg(feature = "cli")]
fn scoped_ip(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            format!("{}%{}", address.ip(), address.scope_id())
        }
        address => address.ip().to_string(),
    }
}

/// What is written of one peer.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What was found.
    pub verdict: &'a Verdict,
    /// The host name that the target was given as.
    pub name: Option<&'a str>,
    /// The label that the target was given with.
    pub label: Option<&'a str>,
    /// The connection of this host that it is about, in an audit.
    pub connection: Option<Audited<'a>>,
}

/// What an audit adds to a record.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug)]
pub struct Audited<'a> {
    /// The connection, and whose it is.
    pub listed: &'a Listed,
    /// What else was found.
    pub findings: &'a [Finding],
    /// How it differs from the round before, if rounds are compared.
    pub change: Option<Change>,
}

#[cfg(feature = "cli")]
impl Record<'_> {
    /// Says whether it tells of a connection that is gone, or in another state than before.
    pub fn is_change(&self) -> bool {
        let change = self.connection.and_then(|connection| connection.change);
        matches!(change, Some(Change::Gone | Change::State(_)))
    }
}

/// A way to write results: text is appended to a buffer, so that a record reaches the outside
/// whole or not at all. No method fails unless the encoder does.
#[cfg(feature = "cli")]
pub trait Layout: Send {
    /// Appends what stands before the first record.
    fn header(&mut self, out: &mut Vec<u8>) -> io::Result<()>;

    /// Appends one record.
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()>;

    /// Appends the records that were held back to be sorted, and to `ends` where each one ends.
    fn rest(&mut self, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> io::Result<()> {
        let (_, _) = (out, ends);
        Ok(())
    }

    /// Appends the summary, if this layout has a place for it.
    fn summary(&mut self, summary: &Summary, out: &mut Vec<u8>) -> io::Result<()>;
}

#[cfg(all(test, feature = "cli"))]
mod tests;
