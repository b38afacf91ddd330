//! CSV (RFC 4180) with a header line; evidence is one compact field.
#![forbid(unsafe_code)]

use super::ndjson::{record_type, tenth_us, whole_ms, whole_us};
use super::{Audited, Layout, Record, Summary, peer_ip, scoped_ip};
use crate::audit::{Change, Finding, Listed, state_name};
use crate::io::host::Connection;
use crate::probe::evidence::{Seen, Sighting};
use std::fmt::Write as _;
use std::io;

const PEER: [&str; 14] = [
    "type",
    "peer_ip",
    "peer_port",
    "local_ip",
    "local_port",
    "name",
    "label",
    "round",
    "state",
    "reason",
    "probes",
    "replies",
    "rtt_us",
    "evidence",
];

/// What an audit adds.
const CONNECTION: [&str; 19] = [
    "pid",
    "comm",
    "fd",
    "cgroup",
    "netns",
    "cookie",
    "idle_ms",
    "heard_ms",
    "tcp_state",
    "keepalive",
    "snd_una",
    "snd_nxt",
    "rcv_nxt",
    "wnd",
    "ts_recent",
    "ts_offset_ms",
    "wire",
    "findings",
    "change",
];

/// What stands before it of a connection whose peer is not asked: what `--flows` reads.
const ENDS: [&str; 6] = ["type", "peer_ip", "peer_port", "local_ip", "local_port", "name"];

/// Writes CSV. It has no place for a summary.
#[derive(Debug, Default)]
pub struct Csv {
    of_connections: bool,
}

impl Csv {
    /// Writes the columns of an audit, too.
    pub const fn of_connections() -> Csv {
        Csv { of_connections: true }
    }
}

fn line<T: AsRef<[u8]>>(fields: impl IntoIterator<Item = T>, out: &mut Vec<u8>) -> io::Result<()> {
    let mut writer = ::csv::Writer::from_writer(out);
    writer.write_record(fields)?;
    writer.flush()
}

/// Appends the header of a list of connections whose peers are not asked.
pub(super) fn listed_header(out: &mut Vec<u8>) -> io::Result<()> {
    line(ENDS.iter().chain(&CONNECTION[..CONNECTION.len() - 1]), out)
}

/// Appends one of them.
pub(super) fn listed(listed: &Listed, findings: &[Finding], out: &mut Vec<u8>) -> io::Result<()> {
    let Connection { local, peer, .. } = &listed.connection;
    let [peer_ip, local_ip] = [peer, local].map(|address| scoped_ip(*address));
    let [peer_port, local_port] = [peer, local].map(|address| address.port().to_string());
    let ends = ["connection".to_owned(), peer_ip, peer_port, local_ip, local_port, String::new()];
    line(ends.into_iter().chain(connection(listed, findings)), out)
}

/// The fields of [`CONNECTION`] up to the findings.
fn connection(listed: &Listed, findings: &[Finding]) -> impl Iterator<Item = String> {
    let process = listed.process.as_ref();
    let numbers = listed.numbers();
    let clock = listed.clock();
    let keepalive = numbers.and_then(|numbers| numbers.keepalive).map(|keepalive| {
        let (idle, interval) = (keepalive.idle.as_secs(), keepalive.interval.as_secs());
        format!("{idle}/{interval}/{}", keepalive.count)
    });
    let findings: Vec<_> = findings.iter().map(|finding| finding.name()).collect();
    let fields: [String; CONNECTION.len() - 1] = [
        text(process.map(|process| process.pid)),
        text(process.map(|process| &process.comm)),
        text(process.and_then(|process| process.fd)),
        text(process.and_then(|process| process.cgroup.as_ref())),
        listed.netns.to_string(),
        listed.connection.cookie.to_string(),
        text(listed.idle().map(whole_ms)),
        text(listed.unheard().map(whole_ms)),
        state_name(listed.connection.state).to_owned(),
        keepalive.unwrap_or_default(),
        text(numbers.map(|numbers| numbers.snd_una.0)),
        text(numbers.map(|numbers| numbers.snd_nxt.0)),
        text(numbers.map(|numbers| numbers.rcv_nxt.0)),
        text(listed.window()),
        text(clock.map(|clock| clock.ts_recent)),
        text(clock.map(|clock| clock.ts_offset)),
        text(listed.translated.map(|(local, peer)| format!("{local} {peer}"))),
        findings.join(" "),
    ];
    fields.into_iter()
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// `kind@at_us`, then what there is of `ttl=`, `seq=`, `ack=`, `icmp=TYPE/CODE`, `from=`; sightings
/// are separated by `; `.
fn evidence(seen: &[Sighting]) -> String {
    let mut text = String::new();
    for sighting in seen {
        if !text.is_empty() {
            text.push_str("; ");
        }
        // Writing into a String cannot fail.
        let _ = write!(text, "{}@{}", sighting.kind.name(), whole_us(sighting.at));
        if let Some(ttl) = sighting.ttl {
            let _ = write!(text, " ttl={ttl}");
        }
        if let Some(seq) = sighting.seg_seq {
            let _ = write!(text, " seq={}", seq.0);
        }
        if let Some(ack) = sighting.seg_ack {
            let _ = write!(text, " ack={}", ack.0);
        }
        if let Seen::Icmp(_, icmp_type, icmp_code) = sighting.kind {
            let _ = write!(text, " icmp={icmp_type}/{icmp_code}");
        }
        if let Some(from) = sighting.from {
            let _ = write!(text, " from={from}");
        }
    }
    text
}

impl Layout for Csv {
    fn header(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let more: &[&str] = if self.of_connections { &CONNECTION } else { &[] };
        line(PEER.iter().chain(more), out)
    }

    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let verdict = record.verdict;
        let fields: [&str; PEER.len()] = [
            record_type(record),
            &text(peer_ip(verdict)),
            &verdict.peer.port().to_string(),
            &text(verdict.local.map(|local| local.ip())),
            &text(verdict.local.map(|local| local.port())),
            record.name.unwrap_or_default(),
            record.label.unwrap_or_default(),
            &verdict.round.to_string(),
            verdict.state.name(),
            verdict.reason.name(),
            &verdict.probes.to_string(),
            &verdict.replies.to_string(),
            &verdict.rtt.map_or_else(String::new, |rtt| format!("{:.1}", tenth_us(rtt))),
            &evidence(&verdict.evidence),
        ];
        let Some(Audited { listed, findings, change }) = record.connection else {
            return line(fields, out);
        };
        let change = text(change.map(Change::name));
        let more = connection(listed, findings).chain([change]);
        line(fields.map(str::to_owned).into_iter().chain(more), out)
    }

    fn summary(&mut self, _: &Summary, _: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }
}
