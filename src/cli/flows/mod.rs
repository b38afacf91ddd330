//! `--flows`: connections that somebody else has opened, from NDJSON or CSV, each once.
#![forbid(unsafe_code)]

mod csv;
mod line;
mod ndjson;
#[cfg(test)]
mod tests;

use super::targets::scope;
use super::targets::space::{self, Set};
use crate::probe::given::Given;
use indicatif::HumanCount;
use line::{FIELDS, Fields, Line, Malformed, NEEDED};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Faults named in one message; a file of another kind altogether would have thousands.
const FAULTS_SHOWN: usize = 10;
/// Longest line, in octets: an audit record with all its evidence has a few thousand.
const LONGEST_LINE: usize = 64 * 1024;

/// The flows to probe.
#[derive(Debug, Default)]
pub struct Flows {
    /// No two of the same ends.
    pub given: Vec<Given>,
    /// The names of those that have one, by index in `given`, ascending.
    pub names: Vec<(usize, Box<str>)>,
    /// Lines whose flow another line describes.
    pub duplicates: u64,
    /// Lines of an audit's list whose sockets have no numbers.
    pub without_numbers: u64,
}

/// Why a file of flows cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// It cannot be read.
    #[error("read {file}: {error}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// The first line of the CSV does not name the fields.
    #[error(
        "{file}: expected a flow as a JSON object, or a CSV header with {}; {missing} is missing",
        FIELDS[..NEEDED].join(", ")
    )]
    Header {
        /// The file.
        file: String,
        /// The first field that it does not name.
        missing: &'static str,
    },
    /// The header names a field twice.
    #[error("{file}: the header names {field} twice")]
    HeaderTwice {
        /// The file.
        file: String,
        /// Which field.
        field: &'static str,
    },
    /// Lines that are not flows, or not to be probed.
    #[error("{}", shown(.0, *.1))]
    Malformed(Vec<BadLine>, u64),
    /// Everything in it is excluded.
    #[error("{file}: no flows left: --exclude covers the peers of all")]
    Excluded {
        /// The file.
        file: String,
    },
    /// There is no socket in it that has sequence numbers.
    #[error(
        "{file}: no flows in it, only sockets without sequence numbers, as in TIME_WAIT: {}",
        HumanCount(*.sockets)
    )]
    WithoutNumbers {
        /// The file.
        file: String,
        /// How many there are.
        sockets: u64,
    },
    /// There is none in it.
    #[error("{file}: no flows in it")]
    Nothing {
        /// The file.
        file: String,
    },
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {fault}")]
pub struct BadLine {
    file: String,
    line: u64,
    fault: Fault,
}

/// Why the flow of a line is not probed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its peer is no single host.
    #[error("peer_ip: {0} is {1} and never a peer; take the line out")]
    Refused(IpAddr, &'static str),
    /// Its peer is a public address.
    #[error(
        "peer_ip: {0} is a public address; probe it only if you are entitled to, with \
         --allow-public"
    )]
    Public(IpAddr),
}

fn shown(bad: &[BadLine], total: u64) -> String {
    let mut lines: Vec<String> = bad.iter().map(BadLine::to_string).collect();
    let more = total.saturating_sub(bad.len() as u64);
    if more > 0 {
        lines.push(format!("and {} more", HumanCount(more)));
    }
    lines.join("\n")
}

/// Reads the flows of `path`, or of standard input if it is `-`, but for those whose peers are
/// `excluded`.
///
/// NDJSON and CSV are told apart by the first character that is not white space.
///
/// # Errors
/// [`FlowsError`]: all of them are the user's to mend.
pub fn collect(path: &Path, excluded: &Set, allow_public: bool) -> Result<Flows, FlowsError> {
    if path.as_os_str() == "-" {
        return read("standard input", io::stdin().lock(), excluded, allow_public);
    }
    let file = path.to_string_lossy();
    let opened = File::open(path)
        .map_err(|error| FlowsError::Unreadable { file: file.clone().into_owned(), error })?;
    read(&file, opened, excluded, allow_public)
}

pub(crate) fn read(
    file: &str,
    reader: impl Read,
    excluded: &Set,
    allow_public: bool,
) -> Result<Flows, FlowsError> {
    let mut intake = Intake {
        file,
        excluded,
        allow_public,
        flows: Flows::default(),
        left_out: false,
        bad: Vec::new(),
        faults: 0,
    };
    let unreadable = |error| FlowsError::Unreadable { file: file.to_owned(), error };
    let mut reader = BufReader::new(LineLimit { inner: reader, since_newline: 0 });
    let mut before = Vec::new();
    let first = skip_blank(&mut reader, &mut before).map_err(unreadable)?;
    let lines_before = before.iter().filter(|&&octet| octet == b'\n').count() as u64;
    let mut header = None;
    let mut line = Vec::new();
    for number in lines_before + 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        match (line.trim_ascii(), &mut header) {
            (b"", _) => {}
            (line, _) if first == Some(b'{') => intake.take(number, ndjson::fields(line)),
            (line, None) => header = Some(csv::Header::parse(file, line)?),
            (line, Some(header)) => intake.take(number, header.fields(line)),
        }
    }
    intake.finish()
}

/// Skips white space and a byte order mark; returns the first octet that is neither.
fn skip_blank(reader: &mut impl BufRead, skipped: &mut Vec<u8>) -> io::Result<Option<u8>> {
    const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
    loop {
        let octet = match reader.fill_buf()?.first() {
            None => return Ok(None),
            Some(&octet) => octet,
        };
        let in_mark = BYTE_ORDER_MARK.get(skipped.len()) == Some(&octet)
            && BYTE_ORDER_MARK.starts_with(skipped);
        if !in_mark && !octet.is_ascii_whitespace() {
            return Ok(Some(octet));
        }
        reader.consume(1);
        skipped.push(octet);
    }
}

/// What the lines amount to.
struct Intake<'a> {
    file: &'a str,
    excluded: &'a Set,
    allow_public: bool,
    flows: Flows,
    /// Some peer was excluded.
    left_out: bool,
    bad: Vec<BadLine>,
    faults: u64,
}

impl Intake<'_> {
    fn take(&mut self, line: u64, fields: Result<Fields<'_>, Malformed>) {
        let parsed = fields.and_then(|fields| line::parse(&fields)).map_err(Fault::from);
        let checked = parsed.and_then(|parsed| match &parsed {
            Line::Flow(given, _) if !self.is_excluded(given) => {
                self.check(given.peer.ip()).map(|()| parsed)
            }
            _ => Ok(parsed),
        });
        match checked {
            Ok(Line::Summary) => {}
            Ok(Line::WithoutNumbers) => self.flows.without_numbers += 1,
            Ok(Line::Flow(given, _)) if self.is_excluded(&given) => self.left_out = true,
            Ok(Line::Flow(given, name)) => {
                let index = self.flows.given.len();
                self.flows.given.push(*given);
                self.flows.names.extend(name.map(|name| (index, name)));
            }
            Err(fault) => {
                self.faults += 1;
                if self.bad.len() < FAULTS_SHOWN {
                    self.bad.push(BadLine { file: self.file.to_owned(), line, fault });
                }
            }
        }
    }

    fn is_excluded(&self, flow: &Given) -> bool {
        self.excluded.contains(&space::number(flow.peer.ip()))
    }

    /// The rules for targets hold for the peers of flows.
    fn check(&self, peer: IpAddr) -> Result<(), Fault> {
        let number = space::number(peer);
        let range = number..=number;
        let refused = scope::first_refused(&range).map(|(_, why)| why);
        let public = scope::first_public(&range).is_some();
        match refused {
            Some(why) => Err(Fault::Refused(peer, why)),
            None if public && !self.allow_public => Err(Fault::Public(peer)),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<Flows, FlowsError> {
        if self.faults > 0 {
            return Err(FlowsError::Malformed(self.bad, self.faults));
        }
        if self.flows.given.is_empty() {
            let file = self.file.to_owned();
            return Err(match (self.left_out, self.flows.without_numbers) {
                (true, _) => FlowsError::Excluded { file },
                (false, 0) => FlowsError::Nothing { file },
                (false, sockets) => FlowsError::WithoutNumbers { file, sockets },
            });
        }
        Ok(each_once(self.flows))
    }
}

/// Keeps the last of the lines that describe the same flow: in a file that grows it is the newest.
fn each_once(flows: Flows) -> Flows {
    let Flows { given, names, without_numbers, .. } = flows;
    let ends = |index: usize| -> (SocketAddr, SocketAddr) {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        (plain(given[index].local), plain(given[index].peer))
    };
    let mut order: Vec<usize> = (0..given.len()).collect();
    // Stable: lines of the same flow stay in their order.
    order.sort_by_key(|&index| ends(index));
    let mut last = vec![true; given.len()];
    for pair in order.windows(2) {
        last[pair[0]] = ends(pair[0]) != ends(pair[1]);
    }
    let mut kept = Flows { without_numbers, ..Flows::default() };
    let mut names = names.into_iter().peekable();
    for (index, flow) in given.into_iter().enumerate() {
        let name = names.next_if(|(named, _)| *named == index);
        if last[index] {
            kept.names.extend(name.map(|(_, name)| (kept.given.len(), name)));
            kept.given.push(flow);
        } else {
            kept.duplicates += 1;
        }
    }
    kept
}

/// Refuses a line that does not end, before it fills the memory.
struct LineLimit<R> {
    inner: R,
    since_newline: usize,
}

impl<R: Read> Read for LineLimit<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        for octet in buf.get(..len).unwrap_or_default() {
            self.since_newline = if *octet == b'\n' { 0 } else { self.since_newline + 1 };
            if self.since_newline > LONGEST_LINE {
                let text = format!("a line longer than {LONGEST_LINE} octets");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(len)
    }
}
