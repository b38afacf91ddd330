//! CSV (RFC 4180) with a header line; evidence is one compact field.
#![forbid(unsafe_code)]

use super::ndjson::{record_type, tenth_us, whole_us};
use super::{Layout, Record, Summary, peer_ip};
use crate::probe::evidence::{Seen, Sighting};
use std::fmt::Write as _;
use std::io;

const COLUMNS: [&str; 14] = [
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

/// Writes CSV. It has no place for a summary.
#[derive(Debug, Default)]
pub struct Csv;

fn line<const N: usize>(fields: [&str; N], out: &mut Vec<u8>) -> io::Result<()> {
    let mut writer = ::csv::Writer::from_writer(out);
    writer.write_record(fields)?;
    writer.flush()
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
        line(COLUMNS, out)
    }

    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let verdict = record.verdict;
        let fields: [&str; COLUMNS.len()] = [
            record_type(verdict.correction),
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
        line(fields, out)
    }

    fn summary(&mut self, _: &Summary, _: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }
}
