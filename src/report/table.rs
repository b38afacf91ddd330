//! A table for people: rows stream out as they are known, so widths are fixed beforehand.
#![forbid(unsafe_code)]

use super::tally::by_need;
use super::{Holder, Layout, Record, Summary, Tally, XdpCounts};
use crate::probe::classify::State;
use crate::probe::evidence::Sighting;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table as Grid};
use indicatif::{BinaryBytes, HumanCount};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

/// Names and labels wider than this push their row's other columns to the right.
const WIDEST: usize = 32;

/// Writes a table, and the summary below it.
#[derive(Debug)]
pub struct Table {
    peer: usize,
    name: usize,
    label: usize,
}

impl Table {
    /// Lays out columns for these peers ("10.0.0.1:80") and their names and labels. A column
    /// without content is left out.
    pub fn new<'a>(
        longest_peer: usize,
        names: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)>,
    ) -> Table {
        // There may be millions: few are worth a closer look.
        let wider = |than: usize, text: Option<&str>| match text {
            Some(text) if text.len() > than => than.max(shown(text).chars().count()),
            _ => than,
        };
        let (mut name, mut label) = (0, 0);
        for (host, tag) in names {
            (name, label) = (wider(name, host), wider(label, tag));
        }
        let column = |widest: usize, title: &str| match widest {
            0 => 0,
            widest => widest.min(WIDEST).max(title.len()),
        };
        Table {
            peer: longest_peer.max("PEER".len()),
            name: column(name, "NAME"),
            label: column(label, "LABEL"),
        }
    }

    fn row(&self, out: &mut Vec<u8>, cells: [&str; 8]) {
        let [peer, name, label, state, reason, probes, rtt, seen] = cells;
        let mut line = format!("{peer:<width$}", width = self.peer);
        for (text, width) in [(name, self.name), (label, self.label)] {
            if width > 0 {
                let _ = write!(line, "  {text:<width$}");
            }
        }
        let _ = write!(line, "  {state:<12}  {reason:<14}  {probes:>6}  {rtt:>8}  {seen}");
        out.extend_from_slice(line.trim_end().as_bytes());
        out.push(b'\n');
    }
}

/// Returns `text` with control characters escaped. Labels come from a file that anybody may have
/// written: what could steer the terminal is shown, not sent.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let control = c.is_control();
            control.then(|| c.escape_default()).into_iter().flatten().chain((!control).then_some(c))
        })
        .collect()
}

/// Returns how a peer without an address is shown.
pub(crate) fn by_name(name: &str, port: u16) -> String {
    format!("{}:{port}", shown(name))
}

/// Three digits and a unit: `81.4us`, `1.25ms`, `2.00s`.
fn rtt(span: Duration) -> String {
    let us = span.as_nanos() as f64 / 1e3;
    let (value, unit) = match us {
        us if us < 999.5 => (us, "us"),
        us if us < 999_500.0 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}{unit}")
}

/// `syn-ack, icmp-host x2 from 10.0.0.254`: what is alike and adjacent is counted.
pub(super) fn evidence(seen: &[Sighting]) -> String {
    let mut text = String::new();
    for alike in seen.chunk_by(|a, b| (a.kind.name(), a.from) == (b.kind.name(), b.from)) {
        let Some(first) = alike.first() else { continue };
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(first.kind.name());
        if alike.len() > 1 {
            let _ = write!(text, " x{}", alike.len());
        }
        if let Some(from) = first.from {
            let _ = write!(text, " from {from}");
        }
    }
    text
}

impl Layout for Table {
    fn header(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let titles = ["PEER", "NAME", "LABEL", "STATE", "REASON", "PROBES", "RTT", "SEEN"];
        self.row(out, titles);
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let verdict = record.verdict;
        let mut seen = evidence(&verdict.evidence);
        if verdict.correction {
            seen.insert_str(0, if seen.is_empty() { "corrected" } else { "corrected: " });
        }
        let peer = match record.name.filter(|_| verdict.peer.ip().is_unspecified()) {
            Some(name) => by_name(name, verdict.peer.port()),
            None => verdict.peer.to_string(),
        };
        let cells = [
            &peer,
            &record.name.map_or_else(String::new, shown),
            &record.label.map_or_else(String::new, shown),
            verdict.state.name(),
            verdict.reason.name(),
            &verdict.probes.to_string(),
            &verdict.rtt.map_or_else(|| "-".to_owned(), rtt),
            &seen,
        ];
        self.row(out, cells);
        Ok(())
    }

    fn summary(&mut self, summary: &Summary, out: &mut Vec<u8>) -> io::Result<()> {
        out.push(b'\n');
        out.extend_from_slice(self::summary(summary).as_bytes());
        Ok(())
    }
}

fn listed<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let counts: Vec<_> = counts.map(|(what, n)| format!("{what} {}", HumanCount(n))).collect();
    counts.join(", ")
}

fn in_all(total: u64, what: &str, parts: &BTreeMap<&'static str, u64>) -> String {
    let parts = listed(parts.iter().map(|(part, n)| (*part, *n)).filter(|(_, n)| *n > 0));
    match parts.as_str() {
        "" => format!("{}{what}", HumanCount(total)),
        parts => format!("{}{what} ({parts})", HumanCount(total)),
    }
}

/// `131,072 redirected, 3 passed; queue 0 sent 131,072, received 65,536`: what is zero is left out.
fn xdp(counts: &XdpCounts) -> String {
    let told = |counts: &[(&str, u64)]| {
        let counts = counts.iter().filter(|(_, n)| *n > 0);
        counts.map(|(what, n)| format!("{} {what}", HumanCount(*n))).collect::<Vec<_>>().join(", ")
    };
    let by_program = told(&[
        ("redirected", counts.redirected),
        ("passed", counts.passed),
        ("malformed", counts.malformed),
        ("for a queue without a socket", counts.no_socket),
    ]);
    let by_queue = counts.queues.iter().map(|queue| {
        let carried = told(&[
            ("sent", queue.sent),
            ("received", queue.received),
            ("dropped for want of a free frame", queue.rx_dropped),
            ("dropped at a full rx ring", queue.rx_ring_full),
            ("times without a free frame", queue.fill_ring_empty),
            ("bad addresses in the fill ring", queue.rx_invalid_descs),
            ("bad descriptors in the tx ring", queue.tx_invalid_descs),
        ]);
        match carried.as_str() {
            "" => format!("queue {} idle", queue.queue),
            carried => format!("queue {}: {carried}", queue.queue),
        }
    });
    let parts = [by_program].into_iter().chain(by_queue).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("; ")
}

fn grid(rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    columns(rows, ContentArrangement::Disabled)
}

/// Lays rows out in columns, and breaks what is wider than the terminal, if there is one.
pub(crate) fn grid_to_width(rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    columns(rows, ContentArrangement::Dynamic)
}

fn columns(rows: impl IntoIterator<Item = Vec<Cell>>, arrangement: ContentArrangement) -> String {
    let mut grid = Grid::new();
    grid.load_preset(NOTHING).set_content_arrangement(arrangement).add_rows(rows);
    for column in grid.column_iter_mut() {
        column.set_padding((0, 2));
    }
    grid.trim_fmt()
}

/// Returns the summary for people: peers by state and reason, then every frame accounted for.
pub fn summary(summary: &Summary) -> String {
    let count = |n: u64| Cell::new(HumanCount(n)).set_alignment(CellAlignment::Right);
    let states = State::ALL.into_iter().zip(summary.states).map(|(state, peers)| {
        let reasons = summary.reasons.iter().filter(|((of, _), n)| *of == state && **n > 0);
        let reasons = listed(reasons.map(|((_, reason), n)| (reason.name(), *n)));
        vec![Cell::new(state.name()), count(peers), Cell::new(reasons)]
    });
    let peers = vec![Cell::new("peers"), count(summary.peers), Cell::new("")];

    let line = |what: &str, text: String| vec![Cell::new(what), Cell::new(text)];
    let elapsed = Duration::from_millis(summary.elapsed.as_millis() as u64);
    let received = format!(
        "{} = {} matched + {}",
        HumanCount(summary.frames_received),
        HumanCount(summary.replies_matched),
        in_all(summary.rejected(), " rejected", &summary.replies_rejected)
    );
    let ours = format!(
        "{} dropped for lack of room; guard kept {} from our kernel; our kernel sent {} RSTs",
        HumanCount(summary.rx_dropped),
        HumanCount(summary.guard_dropped),
        HumanCount(summary.kernel_rsts)
    );
    let rate = HumanCount(summary.rate_pps());
    let mut frames = vec![
        line("frames sent", in_all(summary.frames_sent, "", &summary.sent_by_kind)),
        line("received", received),
        line("on our side", ours),
    ];
    frames.extend(
        summary.xdp.iter().map(|counts| line(&format!("xdp {}", counts.interface), xdp(counts))),
    );
    frames.extend([
        line("probes lost", format!("{:.2} % (estimate)", summary.loss_estimate * 100.0)),
        line(
            "elapsed",
            format!("{}, {rate} frames/s, io {}", humantime::format_duration(elapsed), summary.io),
        ),
    ]);
    if let Some(memory) = summary.memory {
        let [peak, targets] = [memory.peak, memory.targets].map(BinaryBytes);
        frames.push(line("memory", format!("{peak} at most, {targets} of it for the targets")));
    }
    if summary.rounds > 0 {
        let rounds = HumanCount(summary.rounds.into());
        let scope =
            format!("{rounds}; peers count as they were last, frames and time in all of them");
        frames.insert(0, line("rounds", scope));
    }
    if summary.corrections > 0 {
        frames.push(line("corrections", HumanCount(summary.corrections).to_string()));
    }
    let tally = summary.audit.as_ref().map_or_else(String::new, tally);
    format!("{}\n\n{tally}{}\n", grid(states.chain([peers])), grid(frames))
}

/// Processes and prefixes told of; the others are counted.
const TOLD: usize = 10;

/// Returns what an audit counts: findings, then processes and prefixes in the order of need.
fn tally(tally: &Tally) -> String {
    let mut text = String::new();
    if !tally.findings.is_empty() {
        let findings = listed(tally.findings.iter().map(|(what, n)| (*what, *n)));
        let _ = write!(text, "findings  {findings}\n\n");
    }
    let holder = |holder: &Holder| match holder {
        Some((comm, pid)) => format!("{}[{pid}]", shown(comm)),
        None => "held by no process".to_owned(),
    };
    let processes = by_need(&tally.processes).into_iter();
    let processes = processes.map(|(who, states)| (holder(who), *states));
    let prefixes = by_need(&tally.prefixes).into_iter();
    let prefixes = prefixes.map(|(prefix, states)| (prefix.to_string(), *states));
    for (title, rows) in
        [("process", processes.collect::<Vec<_>>()), ("peers in", prefixes.collect())]
    {
        if rows.is_empty() {
            continue;
        }
        let more = rows.len().saturating_sub(TOLD);
        let header = std::iter::once(title).chain(State::ALL.map(State::name));
        let header = header.map(Cell::new).collect();
        let count = |n: u64| Cell::new(HumanCount(n)).set_alignment(CellAlignment::Right);
        let told = rows.into_iter().take(TOLD).map(|(what, states)| {
            std::iter::once(Cell::new(what)).chain(states.map(count)).collect::<Vec<_>>()
        });
        let _ = write!(text, "{}", grid(std::iter::once(header).chain(told)));
        if more > 0 {
            let _ = write!(text, "\nand {} more", HumanCount(more as u64));
        }
        text.push_str("\n\n");
    }
    text
}
