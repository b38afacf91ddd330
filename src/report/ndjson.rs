//! One JSON object a line: schema `keepsweep/1`.
#![forbid(unsafe_code)]

use super::{Layout, Record, Summary, XdpCounts, peer_ip};
use crate::io::QueueCounts;
use crate::probe::classify::State;
use crate::probe::evidence::{Seen, Sighting};
use serde::Serialize;
use serde::ser::SerializeSeq;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

const SCHEMA: &str = "keepsweep/1";

/// Writes NDJSON; the summary is the last object.
#[derive(Debug, Default)]
pub struct Ndjson;

/// Field order is part of the format: people read it, and `cut` and `diff` are used on it.
#[derive(Serialize)]
struct PeerObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    peer_ip: Option<String>,
    peer_port: u16,
    local_ip: Option<IpAddr>,
    local_port: Option<u16>,
    name: Option<&'a str>,
    label: Option<&'a str>,
    round: u32,
    state: &'static str,
    reason: &'static str,
    probes: u16,
    replies: u16,
    rtt_us: Option<f64>,
    #[serde(serialize_with = "evidence")]
    evidence: &'a [Sighting],
}

#[derive(Serialize)]
struct SightingObject {
    kind: &'static str,
    at_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seg_seq: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seg_ack: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<IpAddr>,
}

fn evidence<S: serde::Serializer>(seen: &&[Sighting], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(seen.len()))?;
    for sighting in *seen {
        let (icmp_type, icmp_code) = match sighting.kind {
            Seen::Icmp(_, icmp_type, icmp_code) => (Some(icmp_type), Some(icmp_code)),
            _ => (None, None),
        };
        list.serialize_element(&SightingObject {
            kind: sighting.kind.name(),
            at_us: whole_us(sighting.at),
            ttl: sighting.ttl,
            seg_seq: sighting.seg_seq.map(|seq| seq.0),
            seg_ack: sighting.seg_ack.map(|ack| ack.0),
            icmp_type,
            icmp_code,
            from: sighting.from,
        })?;
    }
    list.end()
}

#[derive(Serialize)]
struct SummaryObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    io: &'a str,
    peers: u64,
    alive: u64,
    down: u64,
    rebooted: u64,
    unreachable: u64,
    undetermined: u64,
    frames_sent: u64,
    frames_received: u64,
    replies_matched: u64,
    replies_rejected: &'a BTreeMap<&'static str, u64>,
    rx_dropped: u64,
    loss_estimate: f64,
    elapsed_ms: u64,
    rate_pps: u64,
    reasons: BTreeMap<String, u64>,
    sent_by_kind: &'a BTreeMap<&'static str, u64>,
    guard_dropped: u64,
    kernel_rsts: u64,
    corrections: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    xdp: Vec<XdpObject<'a>>,
}

#[derive(Serialize)]
struct XdpObject<'a> {
    interface: &'a str,
    redirected: u64,
    passed: u64,
    malformed: u64,
    no_socket: u64,
    queues: Vec<QueueObject>,
}

#[derive(Serialize)]
struct QueueObject {
    queue: u32,
    sent: u64,
    received: u64,
    rx_dropped: u64,
    rx_ring_full: u64,
    fill_ring_empty: u64,
    rx_invalid_descs: u64,
    tx_invalid_descs: u64,
}

impl<'a> From<&'a XdpCounts> for XdpObject<'a> {
    fn from(counts: &'a XdpCounts) -> Self {
        let XdpCounts { interface, redirected, passed, malformed, no_socket, queues } = counts;
        XdpObject {
            interface,
            redirected: *redirected,
            passed: *passed,
            malformed: *malformed,
            no_socket: *no_socket,
            queues: queues.iter().copied().map(QueueObject::from).collect(),
        }
    }
}

impl From<QueueCounts> for QueueObject {
    fn from(counts: QueueCounts) -> Self {
        let QueueCounts {
            queue,
            sent,
            received,
            rx_dropped,
            rx_ring_full,
            fill_ring_empty,
            rx_invalid_descs,
            tx_invalid_descs,
        } = counts;
        QueueObject {
            queue,
            sent,
            received,
            rx_dropped,
            rx_ring_full,
            fill_ring_empty,
            rx_invalid_descs,
            tx_invalid_descs,
        }
    }
}

/// Returns whole microseconds.
pub(super) fn whole_us(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Returns microseconds with one decimal: what a kernel's time stamp is good for.
pub(super) fn tenth_us(span: Duration) -> f64 {
    (span.as_nanos() as f64 / 100.0).round() / 10.0
}

/// Returns the record's type: a late reply overturns what was said before.
pub(super) const fn record_type(correction: bool) -> &'static str {
    if correction { "correction" } else { "peer" }
}

fn line(object: &impl Serialize, out: &mut Vec<u8>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object)?;
    out.push(b'\n');
    Ok(())
}

impl Layout for Ndjson {
    fn header(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let verdict = record.verdict;
        let object = PeerObject {
            schema: SCHEMA,
            r#type: record_type(verdict.correction),
            peer_ip: peer_ip(verdict),
            peer_port: verdict.peer.port(),
            local_ip: verdict.local.map(|local| local.ip()),
            local_port: verdict.local.map(|local| local.port()),
            name: record.name,
            label: record.label,
            round: verdict.round,
            state: verdict.state.name(),
            reason: verdict.reason.name(),
            probes: verdict.probes,
            replies: verdict.replies,
            rtt_us: verdict.rtt.map(tenth_us),
            evidence: &verdict.evidence,
        };
        line(&object, out)
    }

    fn summary(&mut self, summary: &Summary, out: &mut Vec<u8>) -> io::Result<()> {
        let reasons = summary.reasons.iter().map(|((state, reason), peers)| {
            (format!("{}/{}", state.name(), reason.name()), *peers)
        });
        let of = |state| summary.states[state as usize];
        let object = SummaryObject {
            schema: SCHEMA,
            r#type: "summary",
            io: &summary.io,
            peers: summary.peers,
            alive: of(State::Alive),
            down: of(State::Down),
            rebooted: of(State::Rebooted),
            unreachable: of(State::Unreachable),
            undetermined: of(State::Undetermined),
            frames_sent: summary.frames_sent,
            frames_received: summary.frames_received,
            replies_matched: summary.replies_matched,
            replies_rejected: &summary.replies_rejected,
            rx_dropped: summary.rx_dropped,
            loss_estimate: summary.loss_estimate,
            elapsed_ms: u64::try_from(summary.elapsed.as_millis()).unwrap_or(u64::MAX),
            rate_pps: summary.rate_pps(),
            reasons: reasons.collect(),
            sent_by_kind: &summary.sent_by_kind,
            guard_dropped: summary.guard_dropped,
            kernel_rsts: summary.kernel_rsts,
            corrections: summary.corrections,
            xdp: summary.xdp.iter().map(XdpObject::from).collect(),
        };
        line(&object, out)
    }
}
