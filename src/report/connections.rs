//! This host's connections for people: sorted by need, in words.
#![forbid(unsafe_code)]

use super::table::{evidence, shown};
use super::{Audited, Layout, Record, Summary, csv, ndjson, table};
use crate::audit::{Change, Finding, Listed, state_name};
use crate::probe::classify::{Reason, State};
use crate::probe::evidence::{Seen, Sighting, Verdict};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// A row that is known, and what it is sorted by.
#[derive(Debug)]
struct Row {
    need: Need,
    cells: [String; 8],
}

/// What needs attention most comes first; the rest by process, then by peer.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Need {
    state: usize,
    is_sound: bool,
    process: String,
    peer: std::net::SocketAddr,
}

/// Writes a table of connections and the states of their peers, sorted: so a round is held back
/// until it has ended.
#[derive(Debug)]
pub struct Connections {
    rows: Vec<Row>,
    /// Whether they are of several network namespaces.
    with_netns: bool,
    /// Whether rounds are compared.
    with_changes: bool,
}

impl Connections {
    /// Begins a table, with a column for the namespace and for what changed if those are wanted.
    pub fn new(with_netns: bool, with_changes: bool) -> Connections {
        Connections { rows: Vec::new(), with_netns, with_changes }
    }

    /// Which columns are shown.
    fn shows(&self) -> [bool; 8] {
        [self.with_changes, true, true, self.with_netns, true, true, true, true]
    }
}

/// Where each state stands in the order of attention.
const fn place(state: State) -> usize {
    match state {
        State::Down => 0,
        State::Rebooted => 1,
        State::Unreachable => 2,
        State::Undetermined => 3,
        State::Alive => 4,
    }
}

/// The last column is not padded: words.
const TITLES: [&str; 8] = ["CHANGE", "STATE", "PROCESS", "NETNS", "LOCAL", "PEER", "SILENT", "WHY"];

impl Layout for Connections {
    fn header(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>, _: &mut Vec<u8>) -> io::Result<()> {
        let Some(Audited { listed, findings, change }) = record.connection else { return Ok(()) };
        let verdict = record.verdict;
        let process = process(listed);
        let change = match change {
            None => String::new(),
            Some(Change::State(before)) => format!("was {}", before.name()),
            Some(change) => change.name().to_owned(),
        };
        let cells = [
            change,
            verdict.state.name().to_owned(),
            process.clone(),
            shown(&listed.netns),
            listed.connection.local.to_string(),
            listed.connection.peer.to_string(),
            listed.unheard().map_or_else(|| "-".to_owned(), span),
            why(verdict, listed, findings),
        ];
        let need = Need {
            state: place(verdict.state),
            is_sound: findings.is_empty(),
            process,
            peer: listed.connection.peer,
        };
        self.rows.push(Row { need, cells });
        Ok(())
    }

    fn rest(&mut self, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> io::Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_by(|one, other| one.need.cmp(&other.need));
        let shows = self.shows();
        let mut is_record = false;
        write_aligned(&TITLES, &shows, rows.iter().map(|row| &row.cells[..]), &mut |line| {
            out.extend_from_slice(line.as_bytes());
            // The first line is the header.
            if std::mem::replace(&mut is_record, true) {
                ends.push(out.len());
            }
        });
        Ok(())
    }

    fn summary(&mut self, summary: &Summary, out: &mut Vec<u8>) -> io::Result<()> {
        writeln!(out)?;
        out.write_all(table::summary(summary).as_bytes())
    }
}

/// Lays out rows below their titles, in columns as wide as their widest cell.
fn write_aligned<'a>(
    titles: &[&str],
    shows: &[bool],
    rows: impl Iterator<Item = &'a [String]> + Clone,
    line: &mut dyn FnMut(&str),
) {
    let mut widths: Vec<usize> = titles.iter().map(|title| title.len()).collect();
    for row in rows.clone() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut write = |cells: &mut dyn Iterator<Item = &str>| {
        text.clear();
        for ((cell, width), shows) in cells.zip(&widths).zip(shows) {
            if *shows {
                // Writing into a String cannot fail.
                let _ = write!(text, "{cell:<width$}  ");
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        line(&text);
    };
    write(&mut titles.iter().copied());
    for row in rows {
        write(&mut row.iter().map(String::as_str));
    }
}

fn process(listed: &Listed) -> String {
    match &listed.process {
        Some(process) => format!("{}[{}]", shown(&process.comm), process.pid),
        None => "-".to_owned(),
    }
}

/// Two units at most: `42s`, `12m 5s`, `2h 14m`, `3d 4h`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (unit, of) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3600 => (("m", 60), ("s", 1)),
        3600..86_400 => (("h", 3600), ("m", 60)),
        _ => (("d", 86_400), ("h", 3600)),
    };
    let rest = seconds % unit.1 / of.1;
    match rest {
        0 => format!("{}{}", seconds / unit.1, unit.0),
        rest => format!("{}{} {rest}{}", seconds / unit.1, unit.0, of.0),
    }
}

/// Says in words what became of the probes, and what else there is to know.
fn why(verdict: &Verdict, listed: &Listed, findings: &[Finding]) -> String {
    let mut text = in_words(verdict);
    let state = listed.connection.state;
    if !matches!(state, crate::io::host::TcpState::Established) {
        let _ = write!(text, "; {}", state_name(state));
    }
    if let Some((local, peer)) = listed.translated {
        let _ = write!(text, "; on the wire {local} → {peer}");
    }
    for finding in findings_in_words(findings) {
        let _ = write!(text, "; {finding}");
    }
    text
}

fn in_words(verdict: &Verdict) -> String {
    let is_about_translation = |seen: &Sighting| seen.kind == Seen::TranslationUnknown;
    let is_all_about_translation =
        !verdict.evidence.is_empty() && verdict.evidence.iter().all(is_about_translation);
    let seen = || evidence(&verdict.evidence);
    let because = |what: &str| match seen() {
        seen if seen.is_empty() => what.to_owned(),
        seen => format!("{what}: {seen}"),
    };
    match verdict.reason {
        Reason::Ack if verdict.probes == 0 => "was heard, unasked".to_owned(),
        Reason::Ack => "answers".to_owned(),
        Reason::Data => "sends data".to_owned(),
        Reason::ZeroWindow => "answers, takes no data (zero window)".to_owned(),
        Reason::ClosedByPeer => "has closed its side".to_owned(),
        Reason::Refused => "is up, but nothing listens".to_owned(),
        Reason::Silent => format!("no answer to {}", probes(verdict.probes)),
        Reason::HostSilent => {
            format!("no answer to {}, nor to fresh SYNs", probes(verdict.probes))
        }
        Reason::FlowStateLost => because("host is up, but the path has lost the connection"),
        Reason::Reset => "does not know the connection (RST)".to_owned(),
        Reason::ResetOrRebind => {
            "does not know the connection (RST), or not as this host translates it now".to_owned()
        }
        Reason::PathReset => "reset by something on the path (RST of another TTL)".to_owned(),
        Reason::Neighbour => "next hop does not answer ARP or ND".to_owned(),
        Reason::NoRoute => "no route".to_owned(),
        Reason::IcmpNet
        | Reason::IcmpHost
        | Reason::IcmpPort
        | Reason::IcmpAdmin
        | Reason::IcmpTtl
        | Reason::IcmpOther => because("the network says"),
        Reason::Observer if is_all_about_translation => {
            "not judged: how this host translates the connection is not known".to_owned()
        }
        Reason::Observer => because("this host was unfit to judge"),
        Reason::Unprobeable => because("cannot be asked"),
        Reason::Interrupted => "interrupted before an answer".to_owned(),
    }
}

fn probes(count: u16) -> String {
    if count == 1 { "1 probe".to_owned() } else { format!("{count} probes") }
}

fn findings_in_words(findings: &[Finding]) -> Vec<String> {
    let mut words = Vec::new();
    if findings.contains(&Finding::KeepaliveOff) {
        words.push("keepalive off".to_owned());
    }
    let forgetful: Vec<_> = findings
        .iter()
        .filter(|finding| matches!(finding, Finding::Idle(_)))
        .map(|finding| finding.name().trim_start_matches("idle-"))
        .collect();
    if !forgetful.is_empty() {
        words.push(format!("idle too long for {}", forgetful.join(" ")));
    }
    words
}

/// Writes connections whose peers are not asked, as a table.
pub fn write_table(
    list: &[(Arc<Listed>, Vec<Finding>)],
    with_netns: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    const TITLES: [&str; 9] =
        ["PROCESS", "LOCAL", "PEER", "TCP", "IDLE", "SILENT", "KEEPALIVE", "NETNS", "FINDINGS"];
    let rows: Vec<[String; 9]> = list
        .iter()
        .map(|(listed, findings)| {
            let age = |age: Option<Duration>| age.map_or_else(|| "-".to_owned(), span);
            let keepalive = match listed.numbers().map(|numbers| numbers.keepalive) {
                None => "-".to_owned(),
                Some(None) => "off".to_owned(),
                Some(Some(keepalive)) => format!(
                    "{}/{}/{}",
                    keepalive.idle.as_secs(),
                    keepalive.interval.as_secs(),
                    keepalive.count
                ),
            };
            [
                process(listed),
                listed.connection.local.to_string(),
                listed.connection.peer.to_string(),
                state_name(listed.connection.state).to_owned(),
                age(listed.idle()),
                age(listed.unheard()),
                keepalive,
                shown(&listed.netns),
                findings_in_words(findings).join("; "),
            ]
        })
        .collect();
    let shows = [true, true, true, true, true, true, true, with_netns, true];
    let mut written = Ok(());
    write_aligned(&TITLES, &shows, rows.iter().map(|row| &row[..]), &mut |line| {
        if written.is_ok() {
            written = out.write_all(line.as_bytes());
        }
    });
    written
}

/// Writes them as NDJSON.
pub fn write_ndjson(list: &[(Arc<Listed>, Vec<Finding>)], out: &mut impl Write) -> io::Result<()> {
    write_each(list, ndjson::listed, out)
}

/// Writes them as CSV.
pub fn write_csv(list: &[(Arc<Listed>, Vec<Finding>)], out: &mut impl Write) -> io::Result<()> {
    let mut header = Vec::new();
    csv::listed_header(&mut header)?;
    out.write_all(&header)?;
    write_each(list, csv::listed, out)
}

fn write_each(
    list: &[(Arc<Listed>, Vec<Finding>)],
    append: fn(&Listed, &[Finding], &mut Vec<u8>) -> io::Result<()>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut line = Vec::new();
    for (listed, findings) in list {
        line.clear();
        append(listed, findings, &mut line)?;
        out.write_all(&line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
