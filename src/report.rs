//! Records of what was found, as table, NDJSON or CSV.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

/// What a run has done: every frame accounted for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Summary {
    /// The I/O path ("packet").
    pub io: String,
    /// Peers given, and how many were found in each state, in the order of `State::ALL`.
    pub peers: u64,
    /// Count by state, in the order of `State::ALL`.
    pub states: [u64; 5],
    /// Count by (state, reason).
    pub reasons: BTreeMap<(crate::probe::classify::State, crate::probe::classify::Reason), u64>,
    /// Late replies that overturned a verdict.
    pub corrections: u64,
    /// Frames that we sent, in all and by kind ("syn", "ack", "probe-0", "probe-1", "rst", "fin", "arp").
    pub frames_sent: u64,
    /// By kind; adds up to `frames_sent`.
    pub sent_by_kind: BTreeMap<&'static str, u64>,
    /// Frames that reached us: `replies_matched` + the sum of `replies_rejected`.
    pub frames_received: u64,
    /// Replies that belong to a flow (or ARP replies that we had asked for).
    pub replies_matched: u64,
    /// Frames that were not believed, by reason ("rst-seq", "ack-unacceptable", "no-flow", …).
    pub replies_rejected: BTreeMap<&'static str, u64>,
    /// Frames lost on our own side (ring full).
    pub rx_dropped: u64,
    /// TCP segments that the guard kept from our kernel.
    pub guard_dropped: u64,
    /// RSTs that our own kernel sent from our address and port range: must be 0.
    pub kernel_rsts: u64,
    /// Share of probes to peers that did answer in the end that drew no reply, 0 to 1.
    pub loss_estimate: f64,
    /// What failed while the sweep went on: lost capture, a path that would not send.
    pub faults: Vec<String>,
    /// From the first frame to the last verdict.
    pub elapsed: Duration,
}
