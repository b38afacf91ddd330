//! One JSON object a line: schema `keepsweep/1`.
#![forbid(unsafe_code)]

use super::tally::{ByState, Tally, by_need};
use super::{Audited, Layout, Record, Summary, XdpCounts, peer_ip, scoped_ip};
use crate::audit::{Change, Finding, Listed, state_name};
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

/// What an audit knows of a connection beside what became of its probes.
#[derive(Serialize)]
struct ConnectionFields<'a> {
    pid: Option<u32>,
    comm: Option<&'a str>,
    fd: Option<u32>,
    cgroup: Option<&'a str>,
    netns: &'a str,
    cookie: u64,
    idle_ms: Option<u64>,
    heard_ms: Option<u64>,
    tcp_state: &'static str,
    keepalive: Option<KeepaliveObject>,
    snd_una: Option<u32>,
    snd_nxt: Option<u32>,
    rcv_nxt: Option<u32>,
    wnd: Option<u16>,
    ts_recent: Option<u32>,
    ts_offset_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wire: Option<WireObject>,
    findings: Vec<&'static str>,
}

/// The ends on the wire of a connection that its host translates.
#[derive(Serialize)]
struct WireObject {
    peer_ip: IpAddr,
    peer_port: u16,
    local_ip: IpAddr,
    local_port: u16,
}

#[derive(Serialize)]
struct KeepaliveObject {
    idle_s: u64,
    interval_s: u64,
    count: u8,
}

/// A record of an audit.
#[derive(Serialize)]
struct AuditedObject<'a> {
    #[serde(flatten)]
    peer: PeerObject<'a>,
    #[serde(flatten)]
    connection: ConnectionFields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_before: Option<&'static str>,
}

/// A connection whose peer was not asked: what `--flows` reads.
#[derive(Serialize)]
struct ListedObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    peer_ip: String,
    peer_port: u16,
    local_ip: String,
    local_port: u16,
    name: Option<&'a str>,
    #[serde(flatten)]
    connection: ConnectionFields<'a>,
}

impl<'a> ConnectionFields<'a> {
    fn new(listed: &'a Listed, findings: &[Finding]) -> ConnectionFields<'a> {
        let process = listed.process.as_ref();
        let numbers = listed.numbers();
        let clock = listed.clock();
        let keepalive = numbers.and_then(|numbers| numbers.keepalive);
        ConnectionFields {
            pid: process.map(|process| process.pid),
            comm: process.map(|process| &*process.comm),
            fd: process.and_then(|process| process.fd),
            cgroup: process.and_then(|process| process.cgroup.as_deref()),
            netns: &listed.netns,
            cookie: listed.connection.cookie,
            idle_ms: listed.idle().map(whole_ms),
            heard_ms: listed.unheard().map(whole_ms),
            tcp_state: state_name(listed.connection.state),
            keepalive: keepalive.map(|keepalive| KeepaliveObject {
                idle_s: keepalive.idle.as_secs(),
                interval_s: keepalive.interval.as_secs(),
                count: keepalive.count,
            }),
            snd_una: numbers.map(|numbers| numbers.snd_una.0),
            snd_nxt: numbers.map(|numbers| numbers.snd_nxt.0),
            rcv_nxt: numbers.map(|numbers| numbers.rcv_nxt.0),
            wnd: listed.window(),
            ts_recent: clock.map(|clock| clock.ts_recent),
            ts_offset_ms: clock.map(|clock| clock.ts_offset),
            wire: listed.translated.map(|(local, peer)| WireObject {
                peer_ip: peer.ip(),
                peer_port: peer.port(),
                local_ip: local.ip(),
                local_port: local.port(),
            }),
            findings: findings.iter().map(|finding| finding.name()).collect(),
        }
    }
}

/// Appends a connection whose peer is not asked.
pub(super) fn listed(listed: &Listed, findings: &[Finding], out: &mut Vec<u8>) -> io::Result<()> {
    let object = ListedObject {
        schema: SCHEMA,
        r#type: "connection",
        peer_ip: scoped_ip(listed.connection.peer),
        peer_port: listed.connection.peer.port(),
        local_ip: scoped_ip(listed.connection.local),
        local_port: listed.connection.local.port(),
        name: None,
        connection: ConnectionFields::new(listed, findings),
    };
    line(&object, out)
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
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmits: Option<u8>,
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
            retransmits: match sighting.kind {
                Seen::InFlight(retransmits) => Some(retransmits),
                _ => None,
            },
        })?;
    }
    list.end()
}

#[derive(Serialize)]
struct SummaryObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    io: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rounds: Option<u32>,
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    xdp: &'a [XdpCounts],
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    audit: Option<TallyObject<'a>>,
}

/// What the summary of an audit has beside.
#[derive(Serialize)]
struct TallyObject<'a> {
    findings: &'a BTreeMap<&'static str, u64>,
    by_process: Vec<ProcessObject<'a>>,
    by_prefix: Vec<PrefixObject>,
}

#[derive(Serialize)]
struct ProcessObject<'a> {
    pid: Option<u32>,
    comm: Option<&'a str>,
    #[serde(flatten)]
    states: StatesObject,
}

#[derive(Serialize)]
struct PrefixObject {
    prefix: String,
    #[serde(flatten)]
    states: StatesObject,
}

#[derive(Serialize)]
struct StatesObject {
    alive: u64,
    down: u64,
    rebooted: u64,
    unreachable: u64,
    undetermined: u64,
}

impl StatesObject {
    fn new([alive, down, rebooted, unreachable, undetermined]: ByState) -> StatesObject {
        StatesObject { alive, down, rebooted, unreachable, undetermined }
    }
}

impl TallyObject<'_> {
    fn new(tally: &Tally) -> TallyObject<'_> {
        let processes = by_need(&tally.processes).into_iter();
        let prefixes = by_need(&tally.prefixes).into_iter();
        TallyObject {
            findings: &tally.findings,
            by_process: processes
                .map(|(holder, states)| ProcessObject {
                    pid: holder.as_ref().map(|(_, pid)| *pid),
                    comm: holder.as_ref().map(|(comm, _)| comm.as_str()),
                    states: StatesObject::new(*states),
                })
                .collect(),
            by_prefix: prefixes
                .map(|(prefix, states)| PrefixObject {
                    prefix: prefix.to_string(),
                    states: StatesObject::new(*states),
                })
                .collect(),
        }
    }
}

/// Returns whole microseconds.
pub(super) fn whole_us(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Returns whole milliseconds.
pub(super) fn whole_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Returns microseconds with one decimal: what a kernel's time stamp is good for.
pub(super) fn tenth_us(span: Duration) -> f64 {
    (span.as_nanos() as f64 / 100.0).round() / 10.0
}

/// Returns the record's type: a late reply overturns what was said before; a connection may be gone.
pub(super) fn record_type(record: &Record<'_>) -> &'static str {
    match record.connection.and_then(|connection| connection.change) {
        Some(Change::Gone) => "gone",
        _ if record.verdict.correction => "correction",
        _ => "peer",
    }
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
            r#type: record_type(record),
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
        let Some(Audited { listed, findings, change }) = record.connection else {
            return line(&object, out);
        };
        let state_before = match change {
            Some(Change::State(before)) => Some(before.name()),
            _ => None,
        };
        let object = AuditedObject {
            peer: object,
            connection: ConnectionFields::new(listed, findings),
            change: change.map(Change::name),
            state_before,
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
            rounds: (summary.rounds > 0).then_some(summary.rounds),
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
            elapsed_ms: whole_ms(summary.elapsed),
            rate_pps: summary.rate_pps(),
            reasons: reasons.collect(),
            sent_by_kind: &summary.sent_by_kind,
            guard_dropped: summary.guard_dropped,
            kernel_rsts: summary.kernel_rsts,
            corrections: summary.corrections,
            xdp: &summary.xdp,
            audit: summary.audit.as_ref().map(TallyObject::new),
        };
        line(&object, out)
    }
}
